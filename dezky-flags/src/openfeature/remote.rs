//! A provider that queries a server over OFREP and caches its answers.

mod http;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::{Range, RangeInclusive};
use std::pin::pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dezky_core::{Error, ErrorKind, Result, Runtime};
use futures_util::StreamExt as _;
use futures_util::future::{Either, select};
use futures_util::lock::Mutex as AsyncMutex;
use futures_util::stream;
use open_feature::provider::{
    FeatureProvider, ProviderMetadata, ProviderStatus, ResolutionDetails,
};
use open_feature::{
    EvaluationContext, EvaluationError, EvaluationErrorCode, EvaluationReason, EvaluationResult,
    FlagMetadata, StructValue,
};
use serde::Deserialize;
use serde_json::{Value, json};

use self::http::{Api, Fetched};
use super::provider::{error, not_a_bool, not_found};
use super::{ENVIRONMENT, MAX_TARGETING_KEY_BYTES, PARTNER_SLUG, PLAN, TARGETING_KEY, TENANT_SLUG};
use crate::MAX_SCOPE_VALUE_BYTES;

/// The allowed poll intervals.
const POLL_INTERVALS: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_hours(1);
/// The number of contexts refreshed concurrently.
const CONCURRENCY: usize = 8;

/// The token for the server. Its `Debug` output reveals nothing.
#[derive(Clone)]
pub struct OfrepToken(String);

impl OfrepToken {
    /// Creates a token; surrounding whitespace is removed.
    ///
    /// # Errors
    /// `config_invalid` if the token is empty or can't be sent in a header.
    pub fn new(token: &str) -> Result<Self> {
        let token = token.trim();
        let is_text = token.bytes().all(|b| b.is_ascii_graphic());
        if token.is_empty() || token.len() > 8 << 10 || !is_text {
            let what = "token must be 1 to 8192 printable ASCII characters without spaces: \
                        give the server's operator token";
            return Err(Error::new(ErrorKind::ConfigInvalid, what));
        }
        Ok(Self(token.to_owned()))
    }
}

impl fmt::Debug for OfrepToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OfrepToken")
    }
}

/// The server and how often it is queried.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RemoteConfig {
    /// The server's address, such as `https://flags.example.org`; `/ofrep/v1` is appended.
    pub base_url: String,
    /// The token, if the server requires one.
    pub token: Option<OfrepToken>,
    /// The interval at which answers are revalidated, 5 s; 100 ms to an hour.
    pub poll_interval: Duration,
    /// Time limit for a request, 2 s.
    pub request_timeout: Duration,
    /// Maximum size of an answer in bytes, 16 MiB.
    pub max_answer_bytes: usize,
    /// Maximum number of contexts with cached answers, 1,000; beyond that, the least recently used
    /// ones are dropped.
    pub max_contexts: usize,
    /// The time after which an unused context's answers are dropped, 10 min.
    pub keep_idle: Duration,
}

impl RemoteConfig {
    /// The default settings for the server at `base_url`.
    pub fn new(base_url: impl Into<String>) -> Self {
        Self {
            base_url: base_url.into(),
            token: None,
            poll_interval: Duration::from_secs(5),
            request_timeout: Duration::from_secs(2),
            max_answer_bytes: 16 << 20,
            max_contexts: 1_000,
            keep_idle: Duration::from_mins(10),
        }
    }

    fn validate(&self) -> Result<()> {
        let refused = |what: &'static str| Err(Error::new(ErrorKind::ConfigInvalid, what));
        let is_address = reqwest::Url::parse(&self.base_url).is_ok_and(|url| {
            matches!(url.scheme(), "http" | "https")
                && url.username().is_empty()
                && url.password().is_none()
                && url.query().is_none()
                && url.fragment().is_none()
        });
        if !is_address {
            return refused(
                "base_url must be an http or https address without user, query and fragment, such \
                 as https://flags.example.org: set the token in its own field",
            );
        }
        if !POLL_INTERVALS.contains(&self.poll_interval) {
            return refused("poll_interval must be 100 ms to 1 h");
        }
        if self.request_timeout.is_zero() || self.max_answer_bytes == 0 || self.max_contexts == 0 {
            return refused(
                "request_timeout, max_answer_bytes and max_contexts must be above 0: raise them",
            );
        }
        Ok(())
    }
}

/// The flags of a server as a provider for OpenFeature's Rust SDK.
///
/// The first evaluation for a context requests all flags from the server; later ones are answered
/// from memory. [`run`](Self::run) keeps the answers current with conditional requests. Without it,
/// an evaluation whose answers are older than two poll intervals queries the server itself. If the
/// server is unreachable, the last answers stay in use, with the reason `STALE` once they are older
/// than two poll intervals, and no request is made for one poll interval or the server's
/// `Retry-After`.
///
/// Only the targeting key and the four axes are sent, and only the server knows whether a tenant is
/// active. The server also handles missing or invalid members: flags that do not depend on them are
/// answered, the others are errors. Every flag is a bool. Requires Tokio, because reqwest does.
///
/// Clones share the answers.
///
/// ```no_run
/// use std::sync::Arc;
/// use dezky_core::rt::TokioRuntime;
/// use dezky_flags::openfeature::{OfrepToken, RemoteConfig, RemoteFlagProvider};
/// use open_feature::OpenFeature;
///
/// # async fn example() -> dezky_core::Result<()> {
/// let mut config = RemoteConfig::new("https://flags.example.org");
/// config.token = Some(OfrepToken::new("the-operator-token")?);
/// let provider = RemoteFlagProvider::new(config, Arc::new(TokioRuntime))?;
/// let follows = provider.clone();
/// tokio::spawn(async move { follows.run(std::future::pending()).await });
/// OpenFeature::singleton_mut().await.set_provider(provider).await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RemoteFlagProvider {
    shared: Arc<Shared>,
}

struct Shared {
    config: RemoteConfig,
    runtime: Arc<dyn Runtime>,
    api: Api,
    metadata: ProviderMetadata,
    /// By the request body for the context.
    contexts: Mutex<HashMap<Arc<str>, Arc<CachedContext>>>,
    /// The interval during which the server is not queried, in milliseconds.
    pause: Mutex<Range<i64>>,
    /// The error of the last request, if it failed.
    failure: Mutex<Option<Error>>,
}

/// A context that was evaluated.
struct CachedContext {
    body: Arc<str>,
    /// Time of the last evaluation, in milliseconds.
    used: AtomicI64,
    /// Held while querying the server.
    querying: AsyncMutex<()>,
    answers: Mutex<Option<Arc<Answers>>>,
}

/// The server's answers for a context.
struct Answers {
    tag: Option<String>,
    /// By key; or the error for the whole context.
    flags: EvaluationResult<HashMap<String, Answer>>,
    /// The revision of the flags, if the server states it.
    revision: Option<u64>,
    /// Time at which the server last confirmed the answers, in milliseconds.
    confirmed: AtomicI64,
}

/// A server's answers on all flags for one context; see
/// [`resolve_all`](RemoteFlagProvider::resolve_all).
#[derive(Clone)]
pub struct RemoteAnswers {
    answers: Arc<Answers>,
    is_stale: bool,
}

impl RemoteAnswers {
    /// The keys of all flags, in no particular order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.answers.flags.iter().flat_map(HashMap::keys).map(String::as_str)
    }

    /// The answer on one flag, as [`resolve_bool_value`](FeatureProvider::resolve_bool_value) gives
    /// it.
    ///
    /// # Errors
    /// `FlagNotFound`; the server's, if the flag depends on a member of the context that is missing
    /// or invalid.
    pub fn get(&self, key: &str) -> EvaluationResult<ResolutionDetails<bool>> {
        let flags = self.answers.flags.as_ref().map_err(Clone::clone)?;
        flags.get(key).ok_or_else(|| not_found(key))?.details(self.is_stale)
    }

    /// The revision of the flags, if the server states it.
    pub fn revision(&self) -> Option<u64> {
        self.answers.revision
    }

    /// Whether the server has not confirmed the answers for two poll intervals.
    pub fn is_stale(&self) -> bool {
        self.is_stale
    }
}

impl fmt::Debug for RemoteAnswers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { answers, is_stale } = self;
        f.debug_struct("RemoteAnswers")
            .field("revision", &answers.revision)
            .field("is_stale", is_stale)
            .finish_non_exhaustive()
    }
}

/// The answer for one flag in OFREP's form.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    key: String,
    value: Option<Value>,
    reason: Option<String>,
    variant: Option<String>,
    #[serde(default)]
    metadata: BTreeMap<String, Value>,
    error_code: Option<String>,
    error_details: Option<String>,
}

impl RemoteFlagProvider {
    /// Creates a provider without querying the server.
    ///
    /// # Errors
    /// `config_invalid` names the field and the bound; also if the system's certificates, needed
    /// for `https`, can't be read.
    pub fn new(config: RemoteConfig, runtime: Arc<dyn Runtime>) -> Result<Self> {
        config.validate()?;
        let api = Api::new(&config)?;
        let shared = Shared {
            config,
            runtime,
            api,
            metadata: ProviderMetadata::new("dezky-ofrep"),
            contexts: Mutex::default(),
            pause: Mutex::default(),
            failure: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Keeps the answers current until `shutdown` resolves. Failures of the server don't end it;
    /// dropping the future is equivalent to `shutdown`.
    pub async fn run(&self, shutdown: impl Future<Output = ()> + Send) {
        let mut shutdown = pin!(shutdown);
        loop {
            let step = pin!(async {
                self.shared.runtime.sleep(self.shared.config.poll_interval).await;
                self.refresh().await;
            });
            if let Either::Left(_) = select(shutdown.as_mut(), step).await {
                return;
            }
        }
    }

    /// Queries the server now for each context in use.
    pub async fn refresh(&self) {
        let contexts = self.shared.contexts_in_use();
        stream::iter(contexts)
            .for_each_concurrent(CONCURRENCY, |cached| async move {
                self.shared.query(&cached, Duration::ZERO).await;
            })
            .await;
    }

    /// The server's answers on all flags for a context, from memory as far as an evaluation would
    /// take them from there.
    ///
    /// # Errors
    /// The server's, if it rejects the context; `General("SERVER_UNAVAILABLE")` if it has not
    /// answered for this context yet, with the reason in [`failure`](Self::failure).
    pub async fn resolve_all(
        &self,
        context: &EvaluationContext,
    ) -> EvaluationResult<RemoteAnswers> {
        let shared = &self.shared;
        let cached = shared.context(body(context));
        // Two intervals, so that `run` refreshes an answer before an evaluation has to.
        let max_age = shared.config.poll_interval * 2;
        if shared.age(&cached).is_none_or(|age| age >= max_age) {
            shared.query(&cached, max_age).await;
        }
        let Some(answers) = cached.answers() else {
            return Err(error(
                EvaluationErrorCode::General("SERVER_UNAVAILABLE".into()),
                "the flag server is unreachable and has not answered for this context yet",
            ));
        };
        if let Err(refusal) = &answers.flags {
            return Err(refusal.clone());
        }
        let is_stale = shared.age(&cached).is_none_or(|age| age >= max_age);
        Ok(RemoteAnswers { answers, is_stale })
    }

    /// The error of the last request, if it failed: `auth_failed` if the server rejects the token,
    /// else `store_unavailable`. The last answers stay in use.
    pub fn failure(&self) -> Option<Error> {
        self.shared.failure().clone()
    }
}

impl fmt::Debug for RemoteFlagProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteFlagProvider").finish_non_exhaustive()
    }
}

#[async_trait]
impl FeatureProvider for RemoteFlagProvider {
    /// `Ready`, or `STALE` while the server is unreachable.
    fn status(&self) -> ProviderStatus {
        if self.failure().is_some() { ProviderStatus::STALE } else { ProviderStatus::Ready }
    }

    fn metadata(&self) -> &ProviderMetadata {
        &self.shared.metadata
    }

    async fn resolve_bool_value(
        &self,
        flag_key: &str,
        evaluation_context: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<bool>> {
        self.resolve_all(evaluation_context).await?.get(flag_key)
    }

    async fn resolve_int_value(
        &self,
        flag_key: &str,
        _: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<i64>> {
        Err(not_a_bool(flag_key))
    }

    async fn resolve_float_value(
        &self,
        flag_key: &str,
        _: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<f64>> {
        Err(not_a_bool(flag_key))
    }

    async fn resolve_string_value(
        &self,
        flag_key: &str,
        _: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<String>> {
        Err(not_a_bool(flag_key))
    }

    async fn resolve_struct_value(
        &self,
        flag_key: &str,
        _: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<StructValue>> {
        Err(not_a_bool(flag_key))
    }
}

impl Shared {
    fn now(&self) -> i64 {
        self.runtime.now().as_millis()
    }

    /// Returns the context for a request body, creating it if needed.
    fn context(&self, body: String) -> Arc<CachedContext> {
        let now = self.now();
        let mut contexts = self.contexts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cached) = contexts.get(body.as_str()) {
            cached.used.store(now, Ordering::Relaxed);
            return Arc::clone(cached);
        }
        if contexts.len() >= self.config.max_contexts {
            let oldest = contexts.values().min_by_key(|cached| cached.used.load(Ordering::Relaxed));
            if let Some(body) = oldest.map(|cached| Arc::clone(&cached.body)) {
                contexts.remove(&body);
            }
        }
        let body: Arc<str> = body.into();
        let cached = Arc::new(CachedContext {
            body: Arc::clone(&body),
            used: AtomicI64::new(now),
            querying: AsyncMutex::default(),
            answers: Mutex::default(),
        });
        contexts.insert(body, Arc::clone(&cached));
        cached
    }

    /// Returns the contexts in use and drops those that have been idle for too long.
    fn contexts_in_use(&self) -> Vec<Arc<CachedContext>> {
        let idle = i64::try_from(self.config.keep_idle.as_millis()).unwrap_or(i64::MAX);
        let since = self.now().saturating_sub(idle);
        let mut contexts = self.contexts.lock().unwrap_or_else(PoisonError::into_inner);
        contexts.retain(|_, cached| cached.used.load(Ordering::Relaxed) >= since);
        contexts.values().cloned().collect()
    }

    /// The age of the answers, if there are any. Answers from the future have the maximum age: the
    /// clock was set back by an unknown amount.
    fn age(&self, cached: &CachedContext) -> Option<Duration> {
        let confirmed = cached.answers()?.confirmed.load(Ordering::Relaxed);
        let age = self.now().saturating_sub(confirmed);
        Some(u64::try_from(age).map_or(Duration::MAX, Duration::from_millis))
    }

    /// Whether the server must not be queried now. A clock that is set back to before the pause
    /// ends it.
    fn is_paused(&self) -> bool {
        let now = self.now();
        self.pause.lock().unwrap_or_else(PoisonError::into_inner).contains(&now)
    }

    /// Queries the server, unless a concurrent query has produced answers younger than `max_age` or
    /// the server must not be queried now. A caller that has answers does not wait for another
    /// caller's query.
    async fn query(&self, cached: &CachedContext, max_age: Duration) {
        let turn = match self.age(cached) {
            Some(_) => cached.querying.try_lock(),
            None => Some(cached.querying.lock().await),
        };
        let Some(_turn) = turn else { return };
        if self.age(cached).is_some_and(|age| age < max_age) || self.is_paused() {
            return;
        }
        let before = cached.answers();
        let tag = before.as_ref().and_then(|answers| answers.tag.as_deref());
        let request = pin!(self.api.query(&cached.body, tag));
        let timeout = self.config.request_timeout;
        let fetched = match select(request, self.runtime.sleep(timeout)).await {
            Either::Left((fetched, _)) => fetched,
            Either::Right(_) => {
                Fetched::failed(format!("no answer within {} ms", timeout.as_millis()))
            }
        };
        let confirmed = AtomicI64::new(self.now());
        match fetched {
            Fetched::Unchanged => {
                let Some(before) = &before else {
                    let problem = "it answers 304 to a request without If-None-Match";
                    return self.failed(Error::new(ErrorKind::StoreUnavailable, problem), None);
                };
                before.confirmed.store(self.now(), Ordering::Relaxed);
            }
            Fetched::Answers { tag, flags, revision } => {
                let flags = flags.into_iter().map(|flag| (flag.key.clone(), flag)).collect();
                cached.set(Answers { tag, flags: Ok(flags), revision, confirmed });
            }
            Fetched::Refused(refusal) => {
                cached.set(Answers { tag: None, flags: Err(refusal), revision: None, confirmed });
            }
            Fetched::Failed { error, wait } => return self.failed(error, wait),
        }
        if self.failure().take().is_some() {
            tracing::info!("the flag server is reachable again");
        }
    }

    fn failure(&self) -> MutexGuard<'_, Option<Error>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, error: Error, wait: Option<Duration>) {
        let wait = wait.unwrap_or_default().max(self.config.poll_interval);
        let wait = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
        let now = self.now();
        *self.pause.lock().unwrap_or_else(PoisonError::into_inner) = now..now.saturating_add(wait);
        let problem = error.to_string();
        if self.failure().replace(error).is_none() {
            tracing::warn!(problem, "the flag server is unreachable: the last answers stay in use");
        }
    }
}

impl CachedContext {
    fn answers(&self) -> Option<Arc<Answers>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, answers: Answers) {
        *self.answers.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(answers));
    }
}

impl Answer {
    fn details(&self, is_stale: bool) -> EvaluationResult<ResolutionDetails<bool>> {
        if let Some(code) = &self.error_code {
            return Err(refusal(code, self.error_details.as_deref()));
        }
        let value = match self.value {
            Some(Value::Bool(value)) => value,
            Some(_) => return Err(not_a_bool(&self.key)),
            None => {
                let message = format!("{}: the server answered without a value", self.key);
                return Err(error(EvaluationErrorCode::General("NO_VALUE".into()), message));
            }
        };
        let reason = if is_stale { "STALE" } else { self.reason.as_deref().unwrap_or("UNKNOWN") };
        Ok(ResolutionDetails {
            value,
            variant: self.variant.clone(),
            reason: Some(reason_of(reason)),
            flag_metadata: Some(metadata_of(&self.metadata)),
        })
    }
}

/// The request body for a context; equal contexts have equal bodies.
///
/// The server judges the members, so invalid ones are sent too, but in a short form: a value of
/// another type as 0, and a text that exceeds its bound cut to just above it. This keeps bodies
/// within the size that a server reads.
fn body(context: &EvaluationContext) -> String {
    let mut members = BTreeMap::new();
    if let Some(key) = &context.targeting_key {
        members.insert(TARGETING_KEY, text(key, MAX_TARGETING_KEY_BYTES));
    }
    for name in [TENANT_SLUG, PLAN, PARTNER_SLUG, ENVIRONMENT] {
        if let Some(value) = context.custom_fields.get(name) {
            let value = value.as_str().map_or(json!(0), |value| text(value, MAX_SCOPE_VALUE_BYTES));
            members.insert(name, value);
        }
    }
    json!({ "context": members }).to_string()
}

/// Returns `text`, cut so that a text longer than `max_bytes` still exceeds it.
fn text(text: &str, max_bytes: usize) -> Value {
    text[..text.ceil_char_boundary(max_bytes + 1)].into()
}

/// Converts an error of OFREP.
fn refusal(code: &str, details: Option<&str>) -> EvaluationError {
    let code = match code {
        "FLAG_NOT_FOUND" => EvaluationErrorCode::FlagNotFound,
        "PARSE_ERROR" => EvaluationErrorCode::ParseError,
        "TARGETING_KEY_MISSING" => EvaluationErrorCode::TargetingKeyMissing,
        "INVALID_CONTEXT" => EvaluationErrorCode::InvalidContext,
        other => EvaluationErrorCode::General(other.to_owned()),
    };
    EvaluationError { code, message: details.map(str::to_owned) }
}

fn reason_of(reason: &str) -> EvaluationReason {
    match reason {
        "STATIC" => EvaluationReason::Static,
        "DEFAULT" => EvaluationReason::Default,
        "TARGETING_MATCH" => EvaluationReason::TargetingMatch,
        "SPLIT" => EvaluationReason::Split,
        "DISABLED" => EvaluationReason::Disabled,
        "UNKNOWN" => EvaluationReason::Unknown,
        other => EvaluationReason::Other(other.to_owned()),
    }
}

/// Converts metadata; values other than strings, numbers and bools can't be represented.
fn metadata_of(members: &BTreeMap<String, Value>) -> FlagMetadata {
    let mut metadata = FlagMetadata::default();
    for (name, value) in members {
        match value {
            Value::Bool(value) => metadata.add_value(name, *value),
            Value::String(value) => metadata.add_value(name, value.as_str()),
            Value::Number(value) => match (value.as_i64(), value.as_f64()) {
                (Some(whole), _) => metadata.add_value(name, whole),
                (None, Some(float)) => metadata.add_value(name, float),
                (None, None) => {}
            },
            _ => {}
        }
    }
    metadata
}

#[cfg(test)]
mod tests {
    use dezky_core::testkit::ManualRuntime;

    use super::*;

    #[test]
    fn a_configuration_out_of_its_bounds_is_refused() {
        let refused = |change: fn(&mut RemoteConfig)| {
            let mut config = RemoteConfig::new("http://127.0.0.1:1");
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert!(RemoteConfig::new("HTTPS://flags").validate().is_ok());
        for url in
            ["flags:80", "http://", "http://ana:s3cret@flags", "http://flags?a=b", "ftp://flags"]
        {
            let refused = RemoteConfig::new(url).validate().unwrap_err().to_string();
            assert!(refused.contains("base_url") && !refused.contains("s3cret"), "{refused}");
        }
        let short = refused(|config| config.poll_interval = Duration::from_millis(99));
        assert!(short.contains("poll_interval must be 100 ms to 1 h"));
        // The interval is doubled, which must not overflow.
        let long = refused(|config| config.poll_interval = Duration::MAX);
        assert_eq!(long, short);
        assert!(refused(|config| config.max_contexts = 0).contains("max_contexts"));
        assert!(OfrepToken::new(" \n").is_err() && OfrepToken::new("a b").is_err());
        assert_eq!(format!("{:?}", OfrepToken::new(" t ").unwrap()), "OfrepToken");
    }

    fn provider(runtime: &ManualRuntime) -> RemoteFlagProvider {
        let config = RemoteConfig::new("http://127.0.0.1:1");
        RemoteFlagProvider::new(config, Arc::new(runtime.clone())).unwrap()
    }

    #[test]
    fn setting_the_clock_back_makes_every_answer_stale() {
        let runtime = ManualRuntime::new(1);
        let shared = provider(&runtime).shared;
        let before = runtime.now();
        runtime.advance(Duration::from_hours(1));
        let cached = shared.context("{}".into());
        let confirmed = AtomicI64::new(shared.now());
        cached.set(Answers { tag: None, flags: Ok(HashMap::new()), revision: None, confirmed });
        shared.failed(Error::new(ErrorKind::StoreUnavailable, "gone"), None);
        assert_eq!((shared.age(&cached), shared.is_paused()), (Some(Duration::ZERO), true));
        runtime.set_now(before);
        assert_eq!((shared.age(&cached), shared.is_paused()), (Some(Duration::MAX), false));
        runtime.advance(Duration::from_hours(1) + shared.config.poll_interval);
        let age = shared.config.poll_interval;
        assert_eq!((shared.age(&cached), shared.is_paused()), (Some(age), false));
    }

    #[test]
    fn an_answer_is_reported_by_its_content() {
        let of = |text: &str| serde_json::from_str::<Answer>(text).unwrap().details(false);
        let code = |text: &str| of(text).unwrap_err().code;
        let told = of(r#"{"key":"k","value":true,"metadata":{"a":1,"b":[2]},"more":1}"#).unwrap();
        assert_eq!((told.value, told.reason), (true, Some(EvaluationReason::Unknown)));
        assert_eq!(told.flag_metadata.unwrap().values.len(), 1);
        assert_eq!(code(r#"{"key":"k","value":"on"}"#), EvaluationErrorCode::TypeMismatch);
        let none = EvaluationErrorCode::General("NO_VALUE".into());
        assert_eq!(code(r#"{"key":"k","reason":"DISABLED"}"#), none);
        let failed = r#"{"key":"k","errorCode":"FLAG_NOT_FOUND","errorDetails":"d"}"#;
        assert_eq!(code(failed), EvaluationErrorCode::FlagNotFound);
    }

    #[test]
    fn only_members_that_decide_are_sent() {
        let context = EvaluationContext::default()
            .with_targeting_key("t-1")
            .with_custom_field(PLAN, "pro")
            .with_custom_field("email", "ana@acme.example");
        assert_eq!(body(&context), r#"{"context":{"plan":"pro","targetingKey":"t-1"}}"#);
        assert_eq!(body(&EvaluationContext::default()), r#"{"context":{}}"#);
    }

    #[test]
    fn invalid_members_are_sent_in_short_form() {
        let context = EvaluationContext::default()
            .with_targeting_key("ü".repeat(1 << 20))
            .with_custom_field(PLAN, 7)
            .with_custom_field(ENVIRONMENT, "x".repeat(1 << 20));
        let body = body(&context);
        assert!(body.len() < 600, "{}", body.len());
        let sent: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(sent["context"]["targetingKey"].as_str().unwrap().len(), 258);
        assert_eq!(sent["context"]["environment"].as_str().unwrap().len(), 129);
        assert_eq!(sent["context"]["plan"], 0);
    }
}
