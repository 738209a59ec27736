//! The memory used by bodies of unauthenticated senders.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use reqwest::Method;
use serde_json::json;

use crate::support::{Process, Server, WEBHOOK};

fn head(length: usize) -> String {
    format!(
        "POST {WEBHOOK} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    )
}

/// Sends a whole body, then reads the response.
async fn send(address: String, body: Vec<u8>) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(head(body.len()).as_bytes()).await.unwrap();
    stream.write_all(&body).await.expect("the server keeps reading");
    let mut said = String::new();
    stream.read_to_string(&mut said).await.expect("an answer");
    said
}

/// The peak memory of a process, in bytes.
#[cfg(target_os = "linux")]
fn peak(process: &Process) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unsigned_bodies_take_no_more_memory_than_they_may_and_all_are_answered() {
    let folder = tempfile::tempdir().unwrap();
    let set = [("DEZKY_HTTP_BODY_MEMORY_BYTES", "16777216"), ("DEZKY_MAX_BODY_BYTES", "4194304")];
    let process = Process::start(folder.path(), &set);
    let before = peak(&process);
    let senders: Vec<_> =
        (0..60).map(|_| tokio::spawn(send(process.address.clone(), vec![b' '; 4 << 20]))).collect();
    for sender in senders {
        let said = sender.await.unwrap();
        let is_no_room = said.starts_with("HTTP/1.1 503") && said.contains("retry-after: 1");
        assert!(is_no_room || said.starts_with("HTTP/1.1 401"), "{said}");
    }
    let grown = peak(&process) - before;
    // 8 MiB of bodies, and the buffers of 60 connections.
    assert!(grown < 32 << 20, "{grown}");
    process.stop().await;
}

/// More than half of the memory for large bodies below.
const LARGE: usize = 5 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_sent_large_bodies_leave_room_for_small_ones() {
    let set = [
        ("DEZKY_HTTP_BODY_MEMORY_BYTES", "4194304"),
        ("DEZKY_MAX_BODY_BYTES", "8388608"),
        ("DEZKY_HTTP_BODY_SECONDS", "600"),
        ("DEZKY_HTTP_BODY_STALL_SECONDS", "600"),
    ];
    let server = Server::start(&set).await;
    let address = server.running.address().to_string();
    let mut held = Vec::new();
    for _ in 0..6 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(head(LARGE).as_bytes()).await.unwrap();
        stream.write_all(&vec![b' '; LARGE - 1]).await.unwrap();
        held.push(stream);
    }
    for n in 0..5 {
        let body = format!(
            r#"{{"events":[{{"id":"a-{n}","createdAt":"2026-11-21T20:00:00Z","type":"auth.success","data":{{}}}}]}}"#
        );
        let answer = server.client.post_signed(WEBHOOK, &body).await;
        assert_eq!(answer.with_status(200)["received"], 1);
    }
    // The memory suffices for one of them; the others were refused.
    let mut refused = 0;
    for mut stream in held {
        stream.write_all(b" ").await.unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        let is_refused = said.starts_with("HTTP/1.1 503");
        assert!(is_refused || said.starts_with("HTTP/1.1 401"), "{said}");
        refused += usize::from(is_refused);
    }
    assert!((1..6).contains(&refused), "{refused}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_with_more_events_than_it_may_have_is_refused_whole() {
    let server = Server::start(&[("DEZKY_STALWART_MAX_BODY_EVENTS", "3")]).await;
    let body = |events: usize| {
        let events: Vec<_> = (0..events)
            .map(|n| {
                format!(
                    r#"{{"id":"a-{n}","createdAt":"2026-11-21T20:00:00Z","type":"auth.success"}}"#
                )
            })
            .collect();
        format!(r#"{{"events":[{}]}}"#, events.join(","))
    };
    let answer = server.client.post_signed(WEBHOOK, &body(4)).await;
    let detail = answer.problem(413, "too_large");
    assert!(detail.contains("4 events") && detail.contains("send at most 3"), "{detail}");
    assert!(server.client.all("").await.is_empty());
    let answer = server.client.post_signed(WEBHOOK, &body(3)).await;
    assert_eq!(answer.with_status(200)["received"], 3);
    server.stop().await;
}

/// Only webhooks of declared sources accept compressed bodies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_content_encoding_is_refused_where_none_is_read() {
    let server = Server::start(&[]).await;
    let client = &server.client;
    client.post("/flags", json!({"key": "a"})).await.with_status(201);
    let tenant = r#"{"slug":"acme","name":"Acme","plan":"pro"}"#;
    for (method, path, body) in [
        (Method::POST, "/tenants", tenant),
        (Method::PATCH, "/tenants/acme", r#"{"name":"Acme"}"#),
        (Method::POST, "/partners", r#"{"slug":"p","name":"P"}"#),
        (Method::POST, "/audit", r#"{"action":"a.b"}"#),
        (Method::POST, "/flags", r#"{"key":"b"}"#),
        (Method::POST, "/flags/a/kill", r#"{"note":"x"}"#),
        (Method::POST, "/flags/evaluate", r#"{"tenantSlug":"acme"}"#),
    ] {
        for encoding in ["br", "gzip", "identity, gzip"] {
            let request = client.document(method.clone(), path, body);
            let answer = client.send(request.header("Content-Encoding", encoding)).await;
            let said = answer.problem(415, "media_type");
            assert!(said.contains("Content-Encoding"), "{path}: {said}");
        }
    }
    let request = client.document(Method::POST, "/ofrep/v1/evaluate/flags", "{}");
    let answer = client.send(request.header("Content-Encoding", "gzip")).await;
    assert_eq!(answer.status, 415, "{answer:?}");
    let request = client.document(Method::POST, "/tenants", tenant);
    client.send(request.header("Content-Encoding", "identity")).await.with_status(201);
    server.stop().await;
}
