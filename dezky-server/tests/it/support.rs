//! Servers for tests, in this process and as separate processes.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dezky::{Access, StoreConfig, Stores};
use dezky_core::AuditLog;
use dezky_core::directory::Directory;
use dezky_core::rt::TokioRuntime;
use dezky_flags::Flags;
use dezky_ingest::signature::Secret;
use dezky_server::lifecycle::{Running, bind};
use dezky_server::{Config, Settings};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use tempfile::TempDir;

pub(crate) use crate::servers::{Database, Engine};

/// The secret that signs the webhooks of the tests.
pub(crate) const SECRET: &str = "test-shared-secret-0123456789abcdef";
/// The path of the first instance's webhook.
pub(crate) const WEBHOOK: &str = "/ingest/stalwart/webhook";
/// The maximum time to wait for a condition.
const DEADLINE: Duration = Duration::from_mins(1);

/// Polls `condition` until it holds.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !condition().await {
        assert!(began.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// An answer: its status, headers and JSON.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) json: Value,
}

impl Answer {
    async fn of(response: reqwest::Response) -> reqwest::Result<Self> {
        let (status, headers) = (response.status(), response.headers().clone());
        let json = serde_json::from_slice(&response.bytes().await?).unwrap_or(Value::Null);
        Ok(Self { status, headers, json })
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap_or("?"))
    }

    /// Checks the shape of a problem, and returns its detail.
    pub(crate) fn problem(&self, status: u16, code: &str) -> &str {
        assert_eq!(
            (self.status.as_u16(), self.json["code"].as_str()),
            (status, Some(code)),
            "{self:?}"
        );
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(self.json["status"], status);
        assert!(self.json["type"].is_string() && self.json["title"].is_string());
        self.json["detail"].as_str().expect("a detail")
    }

    /// Checks the status, and returns the JSON.
    pub(crate) fn with_status(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        self.json
    }

    pub(crate) fn events(&self) -> &[Value] {
        assert_eq!(self.status, StatusCode::OK, "{self:?}");
        self.json["events"].as_array().expect("events")
    }
}

/// A client of one server.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
    token: Option<String>,
}

impl Client {
    pub(crate) fn new(base: String) -> Self {
        let http = dezky_ingest::http::client_builder("http:")
            .unwrap()
            .timeout(Duration::from_secs(30))
            .build()
            .unwrap();
        Self { http, base, token: None }
    }

    /// This client with an operator token.
    pub(crate) fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// A request with a body whose content type is JSON.
    pub(crate) fn document(
        &self,
        method: Method,
        path: &str,
        body: impl Into<reqwest::Body>,
    ) -> reqwest::RequestBuilder {
        self.request(method, path).header("Content-Type", "application/json").body(body)
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(self.document(Method::POST, path, body.to_string())).await
    }

    pub(crate) async fn patch(&self, path: &str, body: Value) -> Answer {
        self.send(self.document(Method::PATCH, path, body.to_string())).await
    }

    /// A POST without a body.
    pub(crate) async fn act(&self, path: &str) -> Answer {
        self.send(self.request(Method::POST, path)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(self.request(Method::DELETE, path)).await
    }

    /// The response's status; `None` if the server is gone.
    pub(crate) async fn try_status(&self, request: reqwest::RequestBuilder) -> Option<u16> {
        let answer = Answer::of(request.send().await.ok()?).await.ok()?;
        Some(answer.status.as_u16())
    }

    pub(crate) async fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        Answer::of(request.send().await.unwrap()).await.unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path)).await
    }

    pub(crate) async fn post_signed(&self, path: &str, body: &str) -> Answer {
        self.try_post_signed(path, body).await.unwrap()
    }

    /// Like [`Self::post_signed`]; fails if the server is gone.
    pub(crate) async fn try_post_signed(&self, path: &str, body: &str) -> reqwest::Result<Answer> {
        let signature = Secret::new(SECRET).unwrap().sign_base64(body.as_bytes());
        let request = self.request(Method::POST, path).header("X-Signature", signature);
        Answer::of(request.body(body.to_owned()).send().await?).await
    }

    /// Every event that matches, page by page; `query` begins with `&` or is empty.
    pub(crate) async fn all(&self, query: &str) -> Vec<Value> {
        let mut events = Vec::new();
        let mut cursor = String::new();
        loop {
            let answer = self.get(&format!("/audit?limit=500{query}{cursor}")).await;
            events.extend(answer.events().iter().cloned());
            match answer.json["nextCursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return events,
            }
        }
    }
}

/// The events in the order of the log.
pub(crate) fn in_order(mut events: Vec<Value>) -> Vec<Value> {
    events.sort_by_key(|event| event["seq"].as_u64());
    events
}

/// The verbs of events, in the order of the log.
pub(crate) fn verbs(events: Vec<Value>) -> Vec<String> {
    let verb = |event: &Value| event["action"].as_str().unwrap().to_owned();
    in_order(events).iter().map(verb).collect()
}

/// The directory and the flags in a server's store, as another program uses them, because no
/// route creates users.
pub(crate) struct Embedder {
    pub(crate) directory: Directory,
    pub(crate) flags: Flags,
    stores: Stores,
}

impl Embedder {
    pub(crate) async fn open(server: &Server) -> Self {
        let stores = Stores::open(&server.store, Access::Write).await.unwrap();
        let runtime = Arc::new(TokioRuntime);
        let log = Arc::new(AuditLog::new(stores.log.clone(), runtime.clone()));
        let directory = Directory::new(stores.directory.clone(), log.clone(), runtime.clone());
        Self { directory, flags: Flags::new(stores.flags.clone(), log, runtime), stores }
    }

    pub(crate) async fn close(self) {
        self.stores.close().await;
    }
}

/// A server in this process, on a free port, with its own folder.
pub(crate) struct Server {
    pub(crate) client: Client,
    pub(crate) running: Running,
    pub(crate) folder: TempDir,
    store: StoreConfig,
    /// The database if the store is not a file; dropped last.
    database: Option<Database>,
}

/// The configuration of a test's server: a store in `folder`, a free port, [`SECRET`], and the
/// variables in `more`.
pub(crate) fn config(folder: &Path, more: &[(&str, &str)]) -> Config {
    let store = format!("sqlite://{}", folder.join("audit.db").display());
    let set = [
        ("DEZKY_LISTEN", "127.0.0.1:0"),
        ("DEZKY_STORE", &store),
        ("STALWART_WEBHOOK_SECRET", SECRET),
    ];
    let set = set.iter().chain(more).map(|(name, value)| ((*name).into(), (*value).into()));
    Settings::load(None, set, None).unwrap().config().unwrap()
}

impl Server {
    pub(crate) async fn start(more: &[(&str, &str)]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), more).await
    }

    /// Starts a server with its own store on an engine.
    pub(crate) async fn on(engine: Engine, more: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let Some(database) = Database::new(engine).await else {
            return Self::start_in(folder, more).await;
        };
        let head = folder.path().join("dezky.head").display().to_string();
        let place = [("DEZKY_STORE", database.url.as_str()), ("DEZKY_HEAD_PATH", &head)];
        let mut server = Self::start_in(folder, &[&place, more].concat()).await;
        server.database = Some(database);
        server
    }

    /// The store's URL.
    pub(crate) fn url(&self) -> String {
        match &self.database {
            Some(database) => database.url.clone(),
            None => self.store.url.to_string(),
        }
    }

    pub(crate) async fn start_in(folder: TempDir, more: &[(&str, &str)]) -> Self {
        Self::with(config(folder.path(), more), folder).await
    }

    /// Starts a server with this configuration.
    pub(crate) async fn with(config: Config, folder: TempDir) -> Self {
        let store = config.store.clone();
        let listener = bind(config.listen, "").await.unwrap();
        let running = Running::start(config, listener).await.unwrap();
        let client = Client::new(format!("http://{}", running.address()));
        Self { client, running, folder, store, database: None }
    }

    /// Stops the server, and returns its folder.
    pub(crate) async fn stop(self) -> TempDir {
        self.running.stop().await.unwrap();
        self.folder
    }
}

/// The binary, without this process's environment.
pub(crate) fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dezky-server"));
    command.env_clear().stdin(Stdio::null()).args(arguments);
    command
}

pub(crate) fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    program(arguments).envs(environment.iter().copied()).output().unwrap()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Checks the exit status, and that one line says why; returns it.
pub(crate) fn refusal(output: &Output, status: i32) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(status), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("dezky-server: "), "{text}");
    text
}

/// Spawns `serve` with its store in `folder`; also returns the path of its standard error.
pub(crate) fn spawn_serve(folder: &Path, more: &[(&str, &str)]) -> (Child, PathBuf) {
    let stderr = folder.join("stderr");
    let stderr_file = File::create(&stderr).unwrap().into();
    (spawn_serve_with(folder, more, stderr_file), stderr)
}

fn spawn_serve_with(folder: &Path, more: &[(&str, &str)], stderr: Stdio) -> Child {
    with_environment(&mut program(&["serve"]), folder, stderr, more).spawn().unwrap()
}

fn with_environment<'c>(
    command: &'c mut Command,
    folder: &Path,
    stderr: Stdio,
    more: &[(&str, &str)],
) -> &'c mut Command {
    command
        .current_dir(folder)
        .env("DEZKY_LISTEN", "127.0.0.1:0")
        .env("STALWART_WEBHOOK_SECRET", SECRET)
        .envs(more.iter().copied())
        .stdout(Stdio::piped())
        .stderr(stderr)
}

/// `serve` as a separate process, killed at the end.
pub(crate) struct Process {
    child: Child,
    pub(crate) client: Client,
    pub(crate) address: String,
    stderr: PathBuf,
}

impl Process {
    /// Starts a server with its store in `folder`, and waits until it listens.
    pub(crate) fn start(folder: &Path, more: &[(&str, &str)]) -> Self {
        let (child, stderr) = spawn_serve(folder, more);
        Self::listening(child, stderr)
    }

    /// Like [`Self::start`], with the test's command, which becomes the server.
    pub(crate) fn start_by(mut command: Command, folder: &Path, more: &[(&str, &str)]) -> Self {
        let stderr = folder.join("stderr");
        let child =
            with_environment(&mut command, folder, File::create(&stderr).unwrap().into(), more)
                .spawn()
                .unwrap();
        Self::listening(child, stderr)
    }

    /// Like [`Self::start`], with the test's standard error.
    pub(crate) fn start_with_stderr(folder: &Path, more: &[(&str, &str)], stderr: Stdio) -> Self {
        Self::listening(spawn_serve_with(folder, more, stderr), folder.join("stderr"))
    }

    /// Waits until it listens.
    fn listening(mut child: Child, stderr: PathBuf) -> Self {
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let base = line.trim().strip_prefix("dezky-server listens on ").unwrap_or_else(|| {
            panic!("{line}{}", std::fs::read_to_string(&stderr).unwrap_or_default())
        });
        let address = base.strip_prefix("http://").unwrap().to_owned();
        Self { child, client: Client::new(base.to_owned()), address, stderr }
    }

    pub(crate) fn stderr(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap()
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGKILL, and waits for the end.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    }

    /// The exit status, if the process has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Sends SIGTERM, and waits for the end.
    pub(crate) async fn stop(mut self) {
        self.terminate();
        until("the end after SIGTERM", async || self.ended().is_some()).await;
        assert!(self.ended().unwrap().success(), "{}", self.stderr());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
