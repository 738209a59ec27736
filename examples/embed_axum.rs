//! The log inside your own service: an axum service keeps notes in SQLite, and each change commits
//! together with its event or not at all.
//!
//! `cargo run -p dezky-examples --example embed_axum`

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing};
use dezky::core::store::{ListPage, SqliteAuditStore, SqliteDatabase, sqlite_error};
use dezky::{Actor, AuditLog, ListQuery, NewEvent, Platform};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// The handlers' shared state: the platform, and its database file.
struct App {
    platform: Platform,
    file: SqliteDatabase,
}

/// Every error of the log has a stable code, suitable for responses.
struct Problem(dezky::Error);

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, self.0.code()).into_response()
    }
}

async fn create(app: State<Arc<App>>, Path(text): Path<String>) -> Result<StatusCode, Problem> {
    let event = NewEvent::new("note.created", Actor::user("u-1").with_ip("203.0.113.7"));
    // Your own transaction, with your own tables in it.
    let mut tx = app.file.begin().await.map_err(Problem)?;
    let insert = sqlx::query("INSERT INTO notes (text) VALUES (?)").bind(text).execute(&mut *tx);
    insert.await.map_err(|error| Problem(sqlite_error(error)))?;
    app.file.commit(tx, &[app.platform.log.seal(event)]).await.map_err(Problem)?;
    // Both are durable by now; relaying makes the timeline current before the response.
    app.platform.log.relay(AuditLog::RELAY_WAIT).await;
    Ok(StatusCode::CREATED)
}

async fn timeline(app: State<Arc<App>>) -> Result<Json<ListPage>, Problem> {
    app.platform.store.list(&ListQuery::default()).await.map(Json).map_err(Problem)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let url = format!("sqlite://{}", folder.path().join("service.db").display());
    let platform = Platform::open(&url).await?;
    let database = platform.stores().database().expect("is opened by its URL");
    let file = database.log_as::<SqliteAuditStore>().expect("is SQLite").database();
    file.migrate("notes", &["CREATE TABLE notes (text TEXT) STRICT"]).await?;
    let routes = Router::new()
        .route("/notes/{text}", routing::post(create))
        .route("/timeline", routing::get(timeline))
        .with_state(Arc::new(App { platform, file }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::select! {
        served = axum::serve(listener, routes) => served?,
        timeline = ask(address) => assert!(timeline?.contains("note.created")),
    }
    Ok(())
}

async fn ask(address: SocketAddr) -> std::io::Result<String> {
    let mut answers = String::new();
    for request in ["POST /notes/milk", "GET /timeline"] {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        stream.write_all(format!("{request} HTTP/1.0\r\n\r\n").as_bytes()).await?;
        stream.read_to_string(&mut answers).await?;
    }
    println!("{answers}");
    Ok(answers)
}
