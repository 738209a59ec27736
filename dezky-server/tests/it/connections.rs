//! Clients that send nothing, read nothing, or disconnect in the middle.

use std::time::{Duration, Instant};

use dezky_ingest::signature::Secret;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::http2::{PREFACE, frame, live};
use crate::support::{Process, SECRET, Server, WEBHOOK, until};

/// Longer than any limit in these tests, and shorter than the default limit for idle connections.
const LONG: Duration = Duration::from_mins(1);

async fn connect(process: &Process, first: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(&process.address).await.unwrap();
    stream.write_all(first).await.unwrap();
    stream
}

/// Waits until the server closes the connection, and returns what it sent until then.
async fn closed(stream: &mut TcpStream) -> Vec<u8> {
    let mut said = Vec::new();
    let mut part = [0; 4_096];
    let reading = async {
        // A reset connection counts as closed too.
        while let Ok(bytes @ 1..) = stream.read(&mut part).await {
            said.extend_from_slice(&part[..bytes]);
        }
    };
    tokio::time::timeout(LONG, reading).await.expect("the server closes it");
    said
}

/// Answers HTTP/2 pings and sends its own until the server closes the connection.
async fn lives_until_closed(mut stream: TcpStream) {
    tokio::time::timeout(LONG, live(&mut stream)).await.expect("the server closes it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_without_a_request_ends() {
    let folder = tempfile::tempdir().unwrap();
    let process = Process::start(folder.path(), &[("DEZKY_HTTP_IDLE_SECONDS", "4")]);
    let mut silent = connect(&process, b"").await;
    let mut letter = connect(&process, b"P").await;
    let mut head = connect(&process, b"GET /health HTTP/1.1\r\nHost: local").await;
    let mut rests = connect(&process, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    let settings = frame(4, 0, 0, &[]);
    let pings = connect(&process, &[PREFACE, &settings].concat()).await;
    tokio::join!(
        async { assert_eq!(closed(&mut silent).await, b"") },
        async { assert_eq!(closed(&mut letter).await, b"") },
        async { drop(closed(&mut head).await) },
        async { assert!(closed(&mut rests).await.starts_with(b"HTTP/1.1 200")) },
        lives_until_closed(pings),
    );
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_house_full_of_silent_connections_lets_others_in() {
    let folder = tempfile::tempdir().unwrap();
    let process = Process::start(folder.path(), &[("DEZKY_HTTP_MAX_CONNECTIONS", "8")]);
    let mut silent = Vec::new();
    for n in 0..12 {
        let head =
            format!("POST {WEBHOOK} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n");
        let first = [&b""[..], b"P", PREFACE, head.as_bytes()][n % 4];
        silent.push(connect(&process, first).await);
    }
    let began = Instant::now();
    for _ in 0..3 {
        let answer = process.client.get("/health").await;
        assert_eq!(answer.status, 200);
    }
    assert!(began.elapsed() < LONG, "{:?}", began.elapsed());
    until("the log reports it", async || process.stderr().contains("silent connections made way"))
        .await;
    drop(silent);
    process.stop().await;
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_out_of_files_lets_others_in() {
    let folder = tempfile::tempdir().unwrap();
    let process = Process::start(folder.path(), &[]);
    let limit = std::process::Command::new("prlimit")
        .args(["--pid", &process.id().to_string(), "--nofile=48:48"])
        .status();
    assert!(limit.expect("util-linux has it").success());
    let mut silent = Vec::new();
    for _ in 0..60 {
        silent.push(connect(&process, b"P").await);
    }
    assert_eq!(process.client.get("/health").await.status, 200);
    until("the log reports it", async || {
        process.stderr().contains("a connection was not accepted")
    })
    .await;
    drop(silent);
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_takes_no_answer_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let process = Process::start(folder.path(), &[("DEZKY_HTTP_WRITE_SECONDS", "1")]);
    // Pipelined requests whose responses are never read.
    let mut piles = connect(&process, b"").await;
    let requests = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(64);
    let piling = async { while piles.write_all(&requests).await.is_ok() {} };
    // HTTP/2 with a flow-control window of 0, and pings.
    let request = [&[0x82, 0x86, 0x04, 7][..], b"/health", &[0x01, 9], b"localhost"].concat();
    let settings = frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let opened = [PREFACE, &settings, &frame(1, 0x05, 1, &request)].concat();
    let holds = connect(&process, &opened).await;
    tokio::join!(
        async { tokio::time::timeout(LONG, piling).await.expect("the server closes it") },
        lives_until_closed(holds),
    );
    assert_eq!(process.client.get("/health").await.status, 200);
    process.stop().await;
}

fn post(id: &str, padding: usize) -> Vec<u8> {
    let event = format!(
        r#"{{"events":[{{"id":"{id}","createdAt":"2026-11-21T20:00:00Z","type":"auth.success","data":{{}}}}]}}"#
    );
    let body = format!("{event}{}", " ".repeat(padding));
    let signature = Secret::new(SECRET).unwrap().sign_base64(body.as_bytes());
    let length = body.len();
    format!("POST {WEBHOOK} HTTP/1.1\r\nHost: localhost\r\nX-Signature: {signature}\r\nContent-Length: {length}\r\n\r\n{body}").into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_came_whole_is_stored_whoever_has_gone() {
    let server = Server::start(&[]).await;
    let mut load = Vec::new();
    for n in 0..60 {
        let (address, request) = (server.running.address(), post(&format!("gone-{n}"), 300_000));
        load.push(tokio::spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(&request).await.unwrap();
        }));
    }
    for sender in load {
        sender.await.unwrap();
    }
    until("all of them", async || server.client.all("").await.len() == 60).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_that_closed_its_side_gets_its_answer() {
    let server = Server::start(&[]).await;
    let requests = [
        post("a-1", 100_000),
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        b"POST /flags HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}".to_vec(),
    ];
    for (request, status) in requests.iter().zip(["200", "200", "415"]) {
        let mut stream = TcpStream::connect(server.running.address()).await.unwrap();
        stream.write_all(request).await.unwrap();
        stream.shutdown().await.unwrap();
        let said = String::from_utf8(closed(&mut stream).await).unwrap();
        assert!(said.starts_with(&format!("HTTP/1.1 {status}")), "{said}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_stops_one_byte_short_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let process = Process::start(folder.path(), &[("DEZKY_HTTP_BODY_STALL_SECONDS", "1")]);
    let request = post("a-1", 0);
    let mut stream = connect(&process, &request[..request.len() - 1]).await;
    let said = String::from_utf8(closed(&mut stream).await).unwrap();
    assert!(said.starts_with("HTTP/1.1 408") && said.contains("1024 bytes every 1 s"), "{said}");
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_refusal_reaches_a_sender_that_reads_when_it_has_written() {
    let server = Server::start(&[("DEZKY_OPERATOR_TOKEN", "t0ken")]).await;
    let large = vec![b' '; 12 << 20];
    for (path, status) in [("/nothing", "404"), ("/audit", "401"), ("/flags", "401")] {
        let length = large.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
        );
        let mut stream = TcpStream::connect(server.running.address()).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&large).await.unwrap();
        let said = String::from_utf8(closed(&mut stream).await).unwrap();
        assert!(said.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {said}");
    }
    server.stop().await;
}
