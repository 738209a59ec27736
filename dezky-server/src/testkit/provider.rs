//! A double of an OIDC provider, in the form of Authentik.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dezky_core::rt::TokioRuntime;
use dezky_core::{Runtime, Timestamp};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::{SigningKey, TokenBuilder};

/// The event of a logout token.
const LOGOUT_EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";
const MAX_FORM_BYTES: usize = 64 << 10;

/// An endpoint of the double.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Endpoint {
    /// `…/.well-known/openid-configuration`.
    Discovery,
    /// `…/jwks/`.
    KeySet,
    /// `/application/o/token/`.
    Token,
}

/// A fault of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// This status with an HTML body, as from a proxy.
    Html(u16),
    /// 302 to this address.
    Redirect(String),
    /// 200 with this body.
    Body(String),
    /// The right response after this time.
    Slow(Duration),
    /// No response.
    Hang,
}

/// A defect of a logout token. Each but `None` is a reason to refuse it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogoutDefect {
    /// None.
    None,
    /// It has a `nonce`.
    Nonce,
    /// `events` is missing.
    NoEvents,
    /// `events` lacks the logout's.
    OtherEvent,
    /// The event is not an object.
    EventNotObject,
    /// Neither `sub` nor `sid`.
    Nobody,
    /// Another audience.
    OtherAudience,
    /// Another issuer.
    OtherIssuer,
    /// Issued ten minutes ago.
    Old,
    /// No `iat`.
    NoTime,
    /// No `jti`.
    NoId,
    /// Signed with the client secret.
    Symmetric,
}

impl LogoutDefect {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::None,
        Self::Nonce,
        Self::NoEvents,
        Self::OtherEvent,
        Self::EventNotObject,
        Self::Nobody,
        Self::OtherAudience,
        Self::OtherIssuer,
        Self::Old,
        Self::NoTime,
        Self::NoId,
        Self::Symmetric,
    ];
}

/// A server that responds like an OIDC provider. It stops when it is dropped.
///
/// Every setting may change between requests. Its tokens are those of Authentik, which
/// [`TokenBuilder`] can turn into those of others, or into broken ones.
///
/// ```
/// use dezky_server::testkit::{Endpoint, Fault, IdentityProvider};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let provider = IdentityProvider::start().await?;
/// assert!(provider.issuer().ends_with("/application/o/api/"));
/// let token = provider.access_token("ana").claim("aud", serde_json::json!(["api", "x"])).sign();
/// assert_eq!(token.split('.').count(), 3);
/// provider.fail(Endpoint::KeySet, Fault::Html(502));
/// assert_eq!(provider.requests(Endpoint::KeySet), 0);
/// provider.stop().await;
/// # Ok(())
/// # }
/// ```
pub struct IdentityProvider {
    url: String,
    settings: Arc<Mutex<Settings>>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

/// A login that waits to be redeemed.
struct Code {
    subject: String,
    challenge: Option<String>,
    nonce: Option<String>,
}

struct Settings {
    url: String,
    issuer: String,
    /// Whether the issuer is that of the request's host.
    issuer_by_host: bool,
    client: String,
    secret: String,
    /// The key that signs is the last.
    keys: Vec<Arc<SigningKey>>,
    /// Odd keys before those.
    odd: Vec<Value>,
    /// The key set in place of the keys.
    key_set: Option<Value>,
    cache_control: Option<String>,
    ahead_seconds: i64,
    faults: BTreeMap<Endpoint, Fault>,
    requests: BTreeMap<Endpoint, usize>,
    codes: BTreeMap<String, Code>,
    /// The subject of each refresh token that is valid.
    refresh: BTreeMap<String, String>,
    used_refresh: BTreeSet<String>,
    omits_refresh_token: bool,
    made: u64,
}

impl IdentityProvider {
    /// Starts on a free port of 127.0.0.1, with an ES256 key, the client `api`, and the issuer
    /// `http://127.0.0.1:PORT/application/o/api/`.
    ///
    /// # Errors
    /// Those of binding the port.
    pub async fn start() -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let settings = Arc::new(Mutex::new(Settings {
            issuer: format!("{url}/application/o/api/"),
            url: url.clone(),
            issuer_by_host: false,
            client: "api".into(),
            secret: "client-secret-of-the-double".into(),
            keys: vec![Arc::new(SigningKey::es256("key-1"))],
            odd: Vec::new(),
            key_set: None,
            cache_control: None,
            ahead_seconds: 0,
            faults: BTreeMap::new(),
            requests: BTreeMap::new(),
            codes: BTreeMap::new(),
            refresh: BTreeMap::new(),
            used_refresh: BTreeSet::new(),
            omits_refresh_token: false,
            made: 0,
        }));
        let app = Router::new().fallback(answer).with_state(Arc::clone(&settings));
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let server = std::future::IntoFuture::into_future(axum::serve(listener, app));
            // Not gracefully: a request may hang.
            let _ = futures_util::future::select(std::pin::pin!(server), stopped).await;
        });
        Ok(Self { url, settings, stop: Some(stop), task })
    }

    /// Its address, without a slash at the end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The issuer in its tokens.
    pub fn issuer(&self) -> String {
        self.settings().issuer.clone()
    }

    /// The address of its discovery document.
    pub fn discovery_url(&self) -> String {
        format!("{}/application/o/api/.well-known/openid-configuration", self.url)
    }

    /// The address of its key set.
    pub fn jwks_uri(&self) -> String {
        format!("{}/application/o/api/jwks/", self.url)
    }

    /// Announces and issues for another issuer, such as one without the slash.
    pub fn set_issuer(&self, issuer: impl Into<String>) {
        self.settings().issuer = issuer.into();
    }

    /// Announces the issuer of the host under which it is asked, as Authentik does.
    pub fn set_issuer_by_host(&self, by_host: bool) {
        self.settings().issuer_by_host = by_host;
    }

    /// The key that signs.
    pub fn key(&self) -> Arc<SigningKey> {
        self.settings().signer()
    }

    /// Signs with `key` from now on. The former keys stay published if they overlap.
    pub fn rotate(&self, key: SigningKey, overlap: bool) {
        let mut settings = self.settings();
        if !overlap {
            settings.keys.clear();
        }
        settings.keys.push(Arc::new(key));
    }

    /// Publishes something odd before its keys.
    pub fn publish_first(&self, odd: Value) {
        self.settings().odd.push(odd);
    }

    /// Publishes this in place of its keys, such as `{}`; `None` publishes them again.
    pub fn set_key_set(&self, key_set: Option<Value>) {
        self.settings().key_set = key_set;
    }

    /// Sends this `Cache-Control` with the key set.
    pub fn set_cache_control(&self, value: Option<&str>) {
        self.settings().cache_control = value.map(str::to_owned);
    }

    /// Sets its clock ahead, or back: the times of its tokens and its `Date`.
    pub fn set_clock_ahead(&self, seconds: i64) {
        self.settings().ahead_seconds = seconds;
    }

    /// Fails at an endpoint until [`recover`](Self::recover).
    pub fn fail(&self, endpoint: Endpoint, fault: Fault) {
        self.settings().faults.insert(endpoint, fault);
    }

    /// Answers at an endpoint again.
    pub fn recover(&self, endpoint: Endpoint) {
        self.settings().faults.remove(&endpoint);
    }

    /// The number of requests that an endpoint has received.
    pub fn requests(&self, endpoint: Endpoint) -> usize {
        self.settings().requests.get(&endpoint).copied().unwrap_or_default()
    }

    /// An access token of the code flow, with a nonce.
    pub fn access_token(&self, subject: &str) -> TokenBuilder {
        self.settings().access_token(subject)
    }

    /// An ID token.
    pub fn id_token(&self, subject: &str) -> TokenBuilder {
        self.settings().access_token(subject).without("azp").without("uid").without("scope")
    }

    /// An access token signed with the client secret.
    pub fn symmetric_token(&self, subject: &str) -> TokenBuilder {
        let settings = self.settings();
        let key = SigningKey::hs256(settings.secret.as_bytes());
        settings.access_token(subject).signed_by(Arc::new(key))
    }

    /// An encrypted token (JWE) in its form: five parts that nobody can decrypt.
    pub fn encrypted_token(&self) -> String {
        let header = r#"{"alg":"RSA-OAEP-256","enc":"A256CBC-HS512","typ":"JWE"}"#;
        let part = |bytes: usize| URL_SAFE_NO_PAD.encode(vec![0x5a; bytes]);
        let header = URL_SAFE_NO_PAD.encode(header);
        format!("{header}.{}.{}.{}.{}", part(512), part(16), part(800), part(32))
    }

    /// An opaque token, as Zitadel issues them by default.
    pub fn opaque_token(&self) -> String {
        self.settings().random()
    }

    /// A logout token for a user and a session.
    pub fn logout_token(&self, subject: &str, session: &str, defect: LogoutDefect) -> String {
        let settings = self.settings();
        let (event, now) = (json!({ LOGOUT_EVENT: {} }), settings.seconds());
        let token = TokenBuilder::new(settings.signer())
            .header("typ", "logout+jwt")
            .claim("iss", settings.issuer.as_str())
            .claim("aud", settings.client.as_str())
            .claim("iat", now)
            .claim("exp", now + 600)
            .claim("jti", format!("logout-{}", settings.made))
            .claim("sub", subject)
            .claim("sid", session)
            .claim("events", event);
        let token = match defect {
            LogoutDefect::None => token,
            LogoutDefect::Nonce => token.claim("nonce", "n-0S6_WzA2Mj"),
            LogoutDefect::NoEvents => token.without("events"),
            LogoutDefect::OtherEvent => token.claim("events", json!({ "urn:other": {} })),
            LogoutDefect::EventNotObject => token.claim("events", json!({ LOGOUT_EVENT: true })),
            LogoutDefect::Nobody => token.without("sub").without("sid"),
            LogoutDefect::OtherAudience => token.claim("aud", "other"),
            LogoutDefect::OtherIssuer => token.claim("iss", "https://other.example/"),
            LogoutDefect::Old => token.claim("iat", now - 600).claim("exp", now - 300),
            LogoutDefect::NoTime => token.without("iat").without("exp"),
            LogoutDefect::NoId => token.without("jti"),
            LogoutDefect::Symmetric => {
                token.signed_by(Arc::new(SigningKey::hs256(settings.secret.as_bytes())))
            }
        };
        token.sign()
    }

    /// Logs a user in, as the authorization endpoint would: a code for the token endpoint, with
    /// the S256 challenge and the nonce of the request.
    pub fn authorize(&self, subject: &str, challenge: Option<&str>, nonce: Option<&str>) -> String {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let mut settings = self.settings();
        let code = settings.random();
        let login =
            Code { subject: subject.to_owned(), challenge: owned(challenge), nonce: owned(nonce) };
        settings.codes.insert(code.clone(), login);
        code
    }

    /// Answers the refresh grant without a new refresh token, and keeps the old one valid.
    pub fn omit_refresh_token(&self, omits: bool) {
        self.settings().omits_refresh_token = omits;
    }

    /// The client's id and secret.
    pub fn client(&self) -> (String, String) {
        let settings = self.settings();
        (settings.client.clone(), settings.secret.clone())
    }

    /// Stops the server.
    pub async fn stop(mut self) {
        self.stop = None;
        let _ = (&mut self.task).await;
    }

    fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Settings {
    fn signer(&self) -> Arc<SigningKey> {
        Arc::clone(self.keys.last().expect("a key"))
    }

    fn now(&self) -> Timestamp {
        let ms = TokioRuntime.now().as_millis() + self.ahead_seconds * 1_000;
        Timestamp::from_millis_clamped(ms)
    }

    fn seconds(&self) -> i64 {
        self.now().as_millis().div_euclid(1_000)
    }

    fn random(&mut self) -> String {
        self.made += 1;
        let mut bytes = [0; 24];
        TokioRuntime.fill_random(&mut bytes);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn access_token(&self, subject: &str) -> TokenBuilder {
        let now = self.seconds();
        TokenBuilder::new(self.signer())
            .claim("iss", self.issuer.as_str())
            .claim("sub", subject)
            .claim("aud", self.client.as_str())
            .claim("exp", now + 3_600)
            .claim("iat", now)
            .claim("auth_time", now)
            .claim("acr", "goauthentik.io/providers/oauth2/default")
            .claim("amr", json!(["pwd"]))
            .claim("nonce", "n-0S6_WzA2Mj")
            .claim("sid", format!("session-of-{subject}"))
            .claim("email", format!("{subject}@acme.example"))
            .claim("email_verified", false)
            .claim("name", subject)
            .claim("groups", json!(["acme"]))
            .claim("azp", self.client.as_str())
            .claim("uid", "bgCQkYjTbxJ3d83jiEjwlrFA4xHGAPYT6zmvHF1P")
            .claim("scope", "openid profile email")
    }

    fn discovery(&self, host: Option<&str>) -> Value {
        let issuer = match host {
            Some(host) if self.issuer_by_host => format!("http://{host}/application/o/api/"),
            _ => self.issuer.clone(),
        };
        json!({
            "issuer": issuer,
            "authorization_endpoint": format!("{}/application/o/authorize/", self.url),
            "token_endpoint": format!("{}/application/o/token/", self.url),
            "jwks_uri": format!("{}/application/o/api/jwks/", self.url),
            "response_types_supported": ["code"],
            "grant_types_supported": ["authorization_code", "refresh_token", "client_credentials"],
            "id_token_signing_alg_values_supported": [self.signer().algorithm()],
            "subject_types_supported": ["public"],
            "code_challenge_methods_supported": ["plain", "S256"],
        })
    }

    fn key_set(&self) -> Value {
        if let Some(key_set) = &self.key_set {
            return key_set.clone();
        }
        let keys = self.keys.iter().map(|key| key.jwk());
        json!({ "keys": self.odd.iter().cloned().chain(keys).collect::<Vec<_>>() })
    }

    /// The token endpoint.
    fn token(&mut self, form: &BTreeMap<String, String>) -> (StatusCode, Value) {
        let refused = |error: &str| (StatusCode::BAD_REQUEST, json!({ "error": error }));
        let get = |name: &str| form.get(name).map(String::as_str);
        if get("client_id") != Some(&self.client) || get("client_secret") != Some(&self.secret) {
            return refused("invalid_client");
        }
        let (subject, nonce) = match get("grant_type") {
            Some("authorization_code") => {
                let code = get("code").and_then(|code| self.codes.remove(code));
                let Some(code) = code else { return refused("invalid_grant") };
                let given = get("code_verifier")
                    .map(|verifier| URL_SAFE_NO_PAD.encode(Sha256::digest(verifier)));
                // A verifier without a challenge is refused as well.
                if code.challenge != given {
                    return refused("invalid_grant");
                }
                (code.subject, code.nonce)
            }
            Some("refresh_token") => {
                let token = get("refresh_token").unwrap_or_default();
                if self.used_refresh.contains(token) {
                    // A token that is used twice was stolen: nobody gets another one.
                    self.refresh.clear();
                    return refused("invalid_grant");
                }
                let Some(subject) = self.refresh.get(token).cloned() else {
                    return refused("invalid_grant");
                };
                if self.omits_refresh_token {
                    let access = self.access_token(&subject).sign();
                    let answer = json!({ "access_token": access, "token_type": "Bearer", "expires_in": 3_600 });
                    return (StatusCode::OK, answer);
                }
                self.refresh.remove(token);
                self.used_refresh.insert(token.to_owned());
                (subject, None)
            }
            Some("client_credentials") => (format!("ak-{}-client_credentials", self.client), None),
            _ => return refused("unsupported_grant_type"),
        };
        let with_nonce = |token: TokenBuilder| match &nonce {
            Some(nonce) => token.claim("nonce", nonce.as_str()),
            None => token.without("nonce"),
        };
        let access = with_nonce(self.access_token(&subject));
        let id = access.clone().without("azp").without("uid").without("scope");
        let refresh = self.random();
        self.refresh.insert(refresh.clone(), subject);
        let answer = json!({
            "access_token": access.sign(),
            "id_token": id.sign(),
            "refresh_token": refresh,
            "token_type": "Bearer",
            "expires_in": 3_600,
        });
        (StatusCode::OK, answer)
    }
}

async fn answer(State(settings): State<Arc<Mutex<Settings>>>, request: Request) -> Response {
    let lock = || settings.lock().unwrap_or_else(PoisonError::into_inner);
    let path = request.uri().path().to_owned();
    let endpoint = if path.ends_with("/.well-known/openid-configuration") {
        Endpoint::Discovery
    } else if path.ends_with("/jwks/") {
        Endpoint::KeySet
    } else if path == "/application/o/token/" {
        Endpoint::Token
    } else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let fault = {
        let mut settings = lock();
        *settings.requests.entry(endpoint).or_default() += 1;
        settings.faults.get(&endpoint).cloned()
    };
    match fault {
        None => {}
        Some(Fault::Html(status)) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
            let page = "<html><body><h1>Bad Gateway</h1></body></html>";
            return (status, [(header::CONTENT_TYPE, "text/html")], page).into_response();
        }
        Some(Fault::Redirect(to)) => {
            return (StatusCode::FOUND, [(header::LOCATION, to)]).into_response();
        }
        Some(Fault::Body(body)) => return body.into_response(),
        Some(Fault::Slow(wait)) => TokioRuntime.sleep(wait).await,
        Some(Fault::Hang) => std::future::pending().await,
    }
    let headers = request.headers().clone();
    let form = match endpoint {
        Endpoint::Token => axum::body::to_bytes(request.into_body(), MAX_FORM_BYTES).await,
        _ => Ok(Bytes::new()),
    };
    let Ok(form) = form else { return StatusCode::PAYLOAD_TOO_LARGE.into_response() };
    let mut settings = lock();
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let (status, body) = match endpoint {
        Endpoint::Discovery => (StatusCode::OK, settings.discovery(host)),
        Endpoint::KeySet => (StatusCode::OK, settings.key_set()),
        Endpoint::Token => settings.token(&pairs(&form)),
    };
    let mut response =
        (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response();
    set(response.headers_mut(), &header::DATE, &http_date(settings.now()));
    if endpoint == Endpoint::KeySet
        && let Some(value) = &settings.cache_control
    {
        set(response.headers_mut(), &header::CACHE_CONTROL, value);
    }
    response
}

fn set(headers: &mut HeaderMap, name: &header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

fn http_date(at: Timestamp) -> String {
    let since = Duration::from_millis(u64::try_from(at.as_millis()).unwrap_or_default());
    httpdate::fmt_http_date(std::time::SystemTime::UNIX_EPOCH + since)
}

/// The pairs of a form. A double needs no more than one value for each name.
fn pairs(form: &[u8]) -> BTreeMap<String, String> {
    let url = format!("http://x/?{}", String::from_utf8_lossy(form));
    let url = reqwest::Url::parse(&url).ok();
    url.iter().flat_map(|url| url.query_pairs().into_owned()).collect()
}
