//! The issuers whose tokens are accepted, and their keys.
//!
//! Each issuer has a worker ([`Issuer::run`]) that fetches its keys at the start, before they get
//! stale, and when a token names an unknown one. Requests never fetch: they use the current keys,
//! or wait for the worker, a bounded time. So an issuer that hangs delays only its own tokens, and
//! no client can make an unfinished fetch start again.

mod cache;
mod examine;
mod fetch;

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use dezky_core::{Runtime, Timestamp};
use futures_util::future::{Either, select};
use tokio::sync::{Notify, Semaphore, watch};

use self::cache::Cache;
pub use self::cache::{COOL_DOWN, MAX_FRESH, MAX_STALE, MIN_FRESH};
pub use self::examine::{Examined, MAX_SKEW};
use self::fetch::Source;
pub use self::fetch::{FETCH_TIMEOUT, MAX_RESPONSE_BYTES, check_url};
use super::jwt::{Claims, Decoded, KeySet, Profile, Reason, Token};

/// The maximum time that a request waits for keys: longer than a whole fetch, of which discovery
/// and key set may take [`FETCH_TIMEOUT`] each.
pub const MAX_WAIT: Duration =
    FETCH_TIMEOUT.saturating_mul(2).saturating_add(Duration::from_secs(1));
/// The maximum number of requests that wait for the keys of one issuer.
pub const MAX_WAITING: usize = 1_000;

/// An issuer in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct IssuerConfig {
    /// Its tokens that are accepted.
    pub profile: Profile,
    /// The address of its discovery document, if it is not below the issuer.
    pub discovery_url: Option<String>,
    /// The address of its key set, if it is not to be discovered.
    pub jwks_uri: Option<String>,
}

impl IssuerConfig {
    /// An issuer whose keys are discovered.
    pub fn new(profile: Profile) -> Self {
        Self { profile, discovery_url: None, jwks_uri: None }
    }
}

/// A verified token's claims that the server uses.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verified {
    /// The issuer.
    pub issuer: String,
    /// The user's id at the issuer.
    pub subject: String,
    /// Whether the token is for operators.
    pub is_for_operators: bool,
    /// The e-mail address, as information.
    pub email: Option<String>,
    /// The name, as information.
    pub name: Option<String>,
    /// The time of the login, or of the token if it doesn't say.
    pub authenticated_at: Option<Timestamp>,
}

impl Verified {
    fn of(claims: &Claims<'_>) -> Self {
        Self {
            issuer: claims.issuer.to_owned(),
            subject: claims.subject.to_owned(),
            is_for_operators: claims.is_for_operators,
            email: claims.email.map(str::to_owned),
            name: claims.name.map(str::to_owned),
            authenticated_at: claims.authenticated_at.or(claims.issued_at),
        }
    }
}

/// Without the subject and what is personal.
impl fmt::Debug for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verified")
            .field("issuer", &self.issuer)
            .field("is_for_operators", &self.is_for_operators)
            .field("authenticated_at", &self.authenticated_at)
            .finish_non_exhaustive()
    }
}

/// The result of a token that is not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejection {
    /// The token is at fault.
    Token(Reason),
    /// The issuer's keys are not known yet or any more: the token may be fine.
    Unavailable,
}

impl From<Reason> for Rejection {
    fn from(reason: Reason) -> Self {
        Self::Token(reason)
    }
}

/// Logs a token that is refused: its issuer if it is a configured one, and never what the token
/// says.
pub(super) fn note(issuer: Option<&str>, rejection: &Rejection) {
    match rejection {
        Rejection::Token(reason) => {
            tracing::info!(issuer, code = reason.code(), %reason, "a token is refused");
        }
        Rejection::Unavailable => {
            tracing::info!(issuer, code = "issuer_unavailable", "a token can't be verified");
        }
    }
}

/// All issuers; clones share them.
#[derive(Clone, Default)]
pub struct Issuers(Arc<[Arc<Issuer>]>);

impl Issuers {
    /// The issuers of a configuration. Fetches nothing: [run](Issuer::run) each of them.
    ///
    /// # Errors
    /// `config_invalid` if the system's certificates can't be loaded.
    pub fn new(issuers: &[IssuerConfig], runtime: &Arc<dyn Runtime>) -> dezky_core::Result<Self> {
        let issuers = issuers.iter().map(|config| Issuer::new(config, runtime).map(Arc::new));
        Ok(Self(issuers.collect::<dezky_core::Result<_>>()?))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each issuer in turn.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Issuer>> {
        self.0.iter()
    }

    /// Verifies an access token. Waits only if its key is unknown, or if no keys of its issuer
    /// were fetched yet. Cancel-safe.
    pub async fn verify(&self, token: &[u8]) -> Result<Verified, Rejection> {
        let mut issuer = None;
        let verified = self.verify_of(token, &mut issuer).await;
        verified.inspect_err(|rejection| note(issuer, rejection))
    }

    /// [`verify`](Self::verify), which notes the configured issuer of the token.
    async fn verify_of<'i>(
        &'i self,
        token: &[u8],
        found: &mut Option<&'i str>,
    ) -> Result<Verified, Rejection> {
        let decoded = Decoded::new(token)?;
        let token = decoded.token()?;
        let issuer = self.0.iter().find(|issuer| issuer.profile.issuer == token.issuer());
        let issuer = issuer.ok_or(Reason::Issuer)?;
        *found = Some(issuer.name());
        issuer.verify(&token).await
    }
}

/// One issuer and its keys.
pub struct Issuer {
    profile: Profile,
    source: Source,
    cache: watch::Sender<Cache>,
    demand: Notify,
    waiting: Semaphore,
    runtime: Arc<dyn Runtime>,
}

impl Issuer {
    fn new(config: &IssuerConfig, runtime: &Arc<dyn Runtime>) -> dezky_core::Result<Self> {
        let IssuerConfig { profile, discovery_url, jwks_uri } = config;
        let source = Source::new(&profile.issuer, discovery_url.as_deref(), jwks_uri.as_deref())?;
        Ok(Self {
            profile: profile.clone(),
            source,
            cache: watch::Sender::default(),
            demand: Notify::new(),
            waiting: Semaphore::new(MAX_WAITING),
            runtime: Arc::clone(runtime),
        })
    }

    /// Its exact `iss`.
    pub fn name(&self) -> &str {
        &self.profile.issuer
    }

    /// The reason for which the last fetch failed, unless it succeeded.
    pub fn problem(&self) -> Option<String> {
        self.cache.borrow().problem.clone()
    }

    async fn verify(&self, token: &Token<'_>) -> Result<Verified, Rejection> {
        let (keys, attempts) = self.keys().await.ok_or(Rejection::Unavailable)?;
        let check = |keys: &KeySet| {
            token
                .verify(&self.profile, keys, self.runtime.now())
                .map(|claims| Verified::of(&claims))
        };
        match check(&keys) {
            Err(reason) if reason.may_need_new_keys() => match self.newer_keys(attempts).await? {
                Some(keys) => Ok(check(&keys)?),
                None => Err(reason.into()),
            },
            done => Ok(done?),
        }
    }

    /// The current keys, and the number of attempts until now. Waits for the first attempt.
    async fn keys(&self) -> Option<(Arc<KeySet>, u64)> {
        let current = |cache: &Cache| {
            let keys = cache.keys(self.runtime.now())?;
            Some((Arc::clone(keys), cache.attempts))
        };
        if let Some(current) = current(&self.cache.borrow()) {
            return Some(current);
        }
        // Nothing to wait for, unless a fetch is on its way or the worker is about to start one.
        let ended = {
            let cache = self.cache.borrow();
            if cache.attempts > 0 && !cache.is_fetching {
                return None;
            }
            cache.attempts
        };
        self.wait_for(|cache| cache.attempts > ended).await;
        current(&self.cache.borrow())
    }

    /// The keys of an attempt later than `seen`, which this begins if the cool-down is over;
    /// `None` if the current keys are the newest. If the last attempt failed or takes too long,
    /// nobody knows whether there are newer ones.
    async fn newer_keys(&self, seen: u64) -> Result<Option<Arc<KeySet>>, Rejection> {
        let now = self.runtime.now();
        {
            let cache = self.cache.borrow();
            if cache.attempts == seen && !cache.is_fetching {
                if !cache.may_refetch(now) {
                    let is_known = cache.problem.is_none();
                    return if is_known { Ok(None) } else { Err(Rejection::Unavailable) };
                }
                self.demand.notify_one();
            }
        }
        self.wait_for(|cache| cache.attempts > seen).await;
        let cache = self.cache.borrow();
        let is_newer = cache.attempts > seen && cache.problem.is_none();
        let keys = cache.keys(self.runtime.now()).filter(|_| is_newer);
        keys.cloned().map(Some).ok_or(Rejection::Unavailable)
    }

    /// Waits until the condition holds, at most [`MAX_WAIT`], and not at all if too many do.
    async fn wait_for(&self, mut condition: impl FnMut(&Cache) -> bool) {
        if condition(&self.cache.borrow()) {
            return;
        }
        let Ok(_place) = self.waiting.try_acquire() else { return };
        let mut changes = self.cache.subscribe();
        let changed = pin!(changes.wait_for(condition));
        let _ = select(changed, self.runtime.sleep(MAX_WAIT)).await;
    }

    /// Fetches the keys when they are due or asked for, until `stop` resolves.
    pub async fn run(&self, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        loop {
            let due = self.cache.borrow().due_in(self.runtime.now());
            let due = self.runtime.sleep(due);
            let asked = pin!(self.demand.notified());
            let woken = match select(&mut stop, select(due, asked)).await {
                Either::Left(_) => return,
                Either::Right((woken, _)) => matches!(woken, Either::Right(_)),
            };
            // Requests may ask a moment too late: for what has been fetched meanwhile.
            if woken && !self.cache.borrow().may_refetch(self.runtime.now()) {
                continue;
            }
            if let Either::Left(_) = select(&mut stop, pin!(self.refresh())).await {
                return;
            }
        }
    }

    async fn refresh(&self) {
        self.cache.send_modify(|cache| cache.begin(self.runtime.now()));
        let fetched = self.source.fetch(&*self.runtime).await;
        match &fetched {
            Ok(fetched) => {
                tracing::debug!(issuer = self.name(), keys = fetched.keys.usable(), "keys fetched");
            }
            Err(problem) => {
                let use_of_keys = self.cache.borrow().use_of_keys(self.runtime.now());
                tracing::warn!(
                    issuer = self.name(),
                    keys = use_of_keys,
                    %problem,
                    "the keys can't be fetched"
                );
            }
        }
        let fetched = fetched.map(|fetched| (fetched.keys, fetched.max_age));
        self.cache.send_modify(|cache| cache.end(fetched, self.runtime.now()));
    }
}
