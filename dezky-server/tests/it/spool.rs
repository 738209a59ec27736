//! Webhooks while the store is away: kept in the spool, and moved into the log.

use sqlx::{Connection as _, SqliteConnection};
use tokio::io::AsyncWriteExt as _;
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
    // Killed now, what was acknowledged is on the disk.
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_hangs_up_is_heard_all_the_same_and_no_more_at_once_than_there_is_room_for() {
    let server = Server::start(&[]).await;
    let secret = dezky_ingest::signature::Secret::new(SECRET).unwrap();
    let head = |body: &str| {
        format!(
            "POST {WEBHOOK} HTTP/1.1\r\nHost: localhost\r\nX-Signature: {}\r\nContent-Length: {}\r\n\r\n",
            secret.sign_base64(body.as_bytes()),
            body.len()
        )
    };
    // The whole body, and gone before the answer.
    let mut stream = TcpStream::connect(server.running.address()).await.unwrap();
    let gone = body("gone");
    stream.write_all(format!("{}{gone}", head(&gone)).as_bytes()).await.unwrap();
    drop(stream);
    until("its event", async || server.client.all("").await.len() == 1).await;

    let mut slow = Vec::new();
    for n in 0..16 {
        let mut stream = TcpStream::connect(server.running.address()).await.unwrap();
        let part = body(&format!("slow-{n}"));
        stream.write_all(format!("{}{}", head(&part), &part[..20]).as_bytes()).await.unwrap();
        slow.push((stream, part));
    }
    until("all places are taken", async || {
        server.client.post_signed(WEBHOOK, &body("more")).await.status.as_u16() == 503
    })
    .await;
    let answer = server.client.post_signed(WEBHOOK, &body("more")).await;
    answer.problem(503, "too_many_webhooks");
    assert_eq!(answer.header("retry-after"), "1");
    for (stream, part) in &mut slow {
        stream.write_all(&part.as_bytes()[20..]).await.unwrap();
    }
    until("a place is free", async || {
        server.client.post_signed(WEBHOOK, &body("more")).await.status.as_u16() == 200
    })
    .await;
    until("all of them are there", async || server.client.all("").await.len() == 18).await;
    drop(slow);
    server.stop().await;
}
