//! The log inside a service of your own: an axum service keeps notes in SQLite, and
//! each change and its event commit together or not at all.
//!
//! `cargo run -p dezky-examples --example embed_axum`

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use dezky_core::rt::TokioRuntime;
use dezky_core::store::{ListPage, ListQuery, SqliteAuditStore, SqliteConfig, sqlite_error};
use dezky_core::{Actor, AuditLog, AuditStore, NewEvent};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// What the handlers share: the log, and the file that it is in.
struct App {
    store: Arc<SqliteAuditStore>,
    log: AuditLog,
}

type Answer<T> = Result<T, (StatusCode, String)>;

fn problem(error: dezky_core::Error) -> (StatusCode, String) {
    (StatusCode::INTERNAL_SERVER_ERROR, error.code().to_owned())
}

async fn create(State(app): State<Arc<App>>, Path(text): Path<String>) -> Answer<StatusCode> {
    let actor = Actor::user("u-1").with_ip("203.0.113.7");
    let event =
        NewEvent { resource_name: Some(text.clone()), ..NewEvent::new("note.created", actor) };
    // Your own transaction, with your own tables in it.
    let database = app.store.database();
    let mut tx = database.begin().await.map_err(problem)?;
    let insert = sqlx::query("INSERT INTO notes (text) VALUES (?)").bind(text).execute(&mut *tx);
    insert.await.map_err(|error| problem(sqlite_error(error)))?;
    database.commit(tx, &[app.log.seal(event)]).await.map_err(problem)?;
    // Both are safe by now; this makes the timeline current when we answer.
    app.log.relay(AuditLog::RELAY_WAIT).await;
    Ok(StatusCode::CREATED)
}

async fn timeline(State(app): State<Arc<App>>) -> Answer<Json<ListPage>> {
    app.store.list(&ListQuery::default()).await.map(Json).map_err(problem)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let config = SqliteConfig::new(folder.path().join("service.db"));
    let store = Arc::new(SqliteAuditStore::open(config, &TokioRuntime).await?);
    let table = "CREATE TABLE notes (text TEXT NOT NULL) STRICT";
    store.database().migrate("notes", &[table]).await?;
    let log = AuditLog::new(store.clone(), Arc::new(TokioRuntime));

    let routes = Router::new()
        .route("/notes/{text}", post(create))
        .route("/timeline", get(timeline))
        .with_state(Arc::new(App { store, log }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async { axum::serve(listener, routes).await });

    assert!(ask(address, "POST /notes/milk").await?.starts_with("HTTP/1.0 201"));
    let timeline = ask(address, "GET /timeline").await?;
    assert!(timeline.contains(r#""action":"note.created""#), "{timeline}");
    println!("{timeline}");
    Ok(())
}

async fn ask(address: SocketAddr, request: &str) -> std::io::Result<String> {
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream.write_all(format!("{request} HTTP/1.0\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
