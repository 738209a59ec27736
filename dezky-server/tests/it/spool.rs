//! Webhooks during an outage of the store: kept in the spool, then moved into the log.

use dezky_ingest::signature::Secret;
use sqlx::{Connection as _, SqliteConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Process, SECRET, Server, WEBHOOK, program, refusal, until};

fn body(id: &str) -> String {
    format!(
        r#"{{"events":[{{"id":"{id}","createdAt":"2026-11-21T20:00:00Z","type":"auth.success","data":{{}}}}]}}"#
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_held_costs_no_webhook() {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().join("webhooks.spool");
    let set = [("DEZKY_SPOOL_PATH", spool.to_str().unwrap())];
    let server = Server::start_in(folder, &set).await;
    let url = format!("sqlite://{}", server.folder.path().join("audit.db").display());
    let mut other = SqliteConnection::connect(&url).await.unwrap();
    let held = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    for id in ["a-1", "a-2", "a-1"] {
        let answer = server.client.post_signed(WEBHOOK, &body(id)).await;
        assert_eq!(answer.with_status(200)["received"], 1);
    }
    assert!(server.client.all("").await.is_empty());
    // If the server were killed now, the acknowledged events would be on disk.
    let kept = std::fs::read(&spool).unwrap();
    assert!(kept.windows(3).any(|w| w == b"a-2"));
    held.rollback().await.unwrap();
    until("the spool is moved", async || server.client.all("").await.len() == 2).await;
    until("the spool is empty", async || std::fs::read(&spool).unwrap() == b"dezky.spool v1\n")
        .await;
    assert_eq!(server.client.post_signed(WEBHOOK, &body("a-1")).await.json["received"], 1);
    assert_eq!(server.client.all("").await.len(), 2);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spool_belongs_to_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let set = [("DEZKY_SPOOL_PATH", "webhooks.spool")];
    let first = Process::start(folder.path(), &set);
    let second = program(&["serve"])
        .current_dir(folder.path())
        .envs([("DEZKY_LISTEN", "127.0.0.1:0"), ("STALWART_WEBHOOK_SECRET", SECRET)])
        .envs(set)
        .output()
        .unwrap();
    let line = refusal(&second, 2);
    assert!(line.contains("spool webhooks.spool: another process has it open"), "{line}");
    first.stop().await;
}

fn head(signature: &str, length: usize) -> String {
    format!(
        "POST {WEBHOOK} HTTP/1.1\r\nHost: localhost\r\nX-Signature: {signature}\r\nContent-Length: {length}\r\n\r\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_hangs_up_is_heard_all_the_same() {
    let server = Server::start(&[]).await;
    let url = format!("sqlite://{}", server.folder.path().join("audit.db").display());
    let mut other = SqliteConnection::connect(&url).await.unwrap();
    let held = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let gone = body("gone");
    let signature = Secret::new(SECRET).unwrap().sign_base64(gone.as_bytes());
    let mut stream = TcpStream::connect(server.running.address()).await.unwrap();
    let request = format!("{}{gone}", head(&signature, gone.len()));
    stream.write_all(request.as_bytes()).await.unwrap();
    // After these requests, the webhook waits for the store.
    for _ in 0..30 {
        assert!(server.client.all("").await.is_empty());
    }
    drop(stream);
    server.client.all("").await;
    held.rollback().await.unwrap();
    until("its event", async || server.client.all("").await.len() == 1).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_announced_and_not_sent_takes_no_room() {
    let server = Server::start(&[]).await;
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(server.running.address()).await.unwrap();
        let head = head("x", 16 << 20).replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        // After this response, the server waits for the body.
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 100");
        slow.push(stream);
    }
    let answer = server.client.post_signed(WEBHOOK, &body("more")).await;
    assert_eq!(answer.with_status(200)["received"], 1);
    drop(slow);
    server.stop().await;
}
