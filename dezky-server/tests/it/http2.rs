//! HTTP/2 clients that disconnect: their resources are released once the work that continues
//! without them is done.

use std::time::Duration;

use dezky_ingest::signature::Secret;
use sqlx::{Connection as _, SqliteConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Process, SECRET, Server, WEBHOOK, until};

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The maximum time for a response.
const PATIENCE: Duration = Duration::from_secs(20);
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// A frame of HTTP/2.
pub(crate) fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    [&[0, length[0], length[1], kind, flags, 0, 0, 0, stream][..], payload].concat()
}

/// An HPACK string literal, after the byte that gives its representation.
fn text(before: u8, text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).ok().filter(|length| *length < 127).unwrap();
    [&[before, length], text.as_bytes()].concat()
}

/// The next frame: its head and its payload.
async fn read(stream: &mut TcpStream) -> std::io::Result<([u8; 9], Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await?;
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    stream.read_exact(&mut payload).await?;
    Ok((head, payload))
}

/// Pings, and answers the server's pings, until the server has closed the connection.
pub(crate) async fn live(stream: &mut TcpStream) {
    let mut answer = frame(PING, 0, 0, b"12345678");
    while stream.write_all(&answer).await.is_ok() {
        let payload = loop {
            match read(stream).await {
                Ok((head, payload)) if head[3] == PING => {
                    break (head[4] != ACK).then_some(payload);
                }
                Ok(_) => {}
                Err(_) => return,
            }
        };
        answer = if let Some(payload) = payload {
            frame(PING, ACK, 0, &payload)
        } else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            frame(PING, 0, 0, b"12345678")
        };
    }
}

/// A connection, frame by frame.
struct Http2 {
    stream: TcpStream,
    next: u8,
}

impl Http2 {
    async fn connect(address: impl tokio::net::ToSocketAddrs) -> Self {
        let mut connection = Self { stream: TcpStream::connect(address).await.unwrap(), next: 1 };
        connection.write(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
        connection
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// Opens a stream with its headers.
    async fn open(&mut self, method: u8, path: &str, more: &[u8], flags: u8) -> u8 {
        let stream = self.next;
        self.next += 2;
        // `http`, `:path` and `:authority` by their index in the static table.
        let head =
            [&[method, 0x86][..], &text(0x04, path), &text(0x01, "localhost"), more].concat();
        self.write(&frame(HEADERS, END_HEADERS | flags, stream, &head)).await;
        stream
    }

    /// A webhook and the beginning of its body.
    async fn post(&mut self, signature: &str, body: &[u8], flags: u8) -> u8 {
        let signature = [&text(0x00, "x-signature")[..], &text(0x00, signature)[1..]].concat();
        let stream = self.open(0x83, WEBHOOK, &signature, 0).await;
        self.write(&frame(DATA, flags, stream, body)).await;
        stream
    }

    async fn reset(&mut self, stream: u8) {
        const CANCEL: [u8; 4] = [0, 0, 0, 8];
        self.write(&frame(RST_STREAM, 0, stream, &CANCEL)).await;
    }

    /// Waits until the server has read everything so far.
    async fn ping(&mut self) {
        self.write(&frame(PING, 0, 0, b"12345678")).await;
        while self.read().await.0[3..5] != [PING, ACK] {}
    }

    /// A GET that succeeds.
    async fn get(&mut self, path: &str) {
        const STATUS_200: u8 = 0x88;
        let stream = self.open(0x82, path, &[], END_STREAM).await;
        loop {
            let (head, payload) = self.read().await;
            if (head[3], head[8]) == (HEADERS, stream) {
                assert_eq!(payload[0], STATUS_200);
                return;
            }
        }
    }

    /// The next frame.
    async fn read(&mut self) -> ([u8; 9], Vec<u8>) {
        let frame = tokio::time::timeout(PATIENCE, read(&mut self.stream)).await;
        frame.expect("the server answers").unwrap()
    }
}

fn login(id: &str) -> String {
    format!(
        r#"{{"events":[{{"id":"{id}","createdAt":"2026-11-21T20:00:00Z","type":"auth.success","data":{{}}}}]}}"#
    )
}

/// Limits so long that only a disconnect ends the wait for a body.
const PATIENT: [(&str, &str); 2] =
    [("DEZKY_HTTP_BODY_SECONDS", "600"), ("DEZKY_HTTP_BODY_STALL_SECONDS", "600")];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_whose_streams_were_reset_rests_and_ends() {
    let folder = tempfile::tempdir().unwrap();
    let set = [PATIENT.as_slice(), &[("DEZKY_HTTP_IDLE_SECONDS", "2")]].concat();
    let process = Process::start(folder.path(), &set);
    let mut client = Http2::connect(&process.address).await;
    for _ in 0..3 {
        let stream = client.post("x", b"{", 0).await;
        client.ping().await;
        client.reset(stream).await;
    }
    let closed = tokio::time::timeout(PATIENCE, live(&mut client.stream)).await;
    closed.expect("the server closes it");
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_break_off_give_back_the_place_and_the_memory() {
    let folder = tempfile::tempdir().unwrap();
    // Memory for 8 bodies from one address.
    let bounds = [("DEZKY_HTTP_MAX_CONNECTIONS", "3"), ("DEZKY_HTTP_BODY_MEMORY_BYTES", "2097152")];
    let process = Process::start(folder.path(), &[PATIENT, bounds].concat());
    for n in 0..6 {
        let mut client = Http2::connect(&process.address).await;
        for _ in 0..3 {
            let stream = client.post("x", b"{", 0).await;
            client.ping().await;
            // Some streams are reset, others end with their connection.
            if n % 2 == 0 {
                client.reset(stream).await;
            }
        }
        client.get("/health").await;
        drop(client);
        let answer = process.client.post_signed(WEBHOOK, &login(&format!("a-{n}"))).await;
        assert_eq!(answer.with_status(200)["received"], 1);
    }
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_that_goes_on_without_its_connection_keeps_the_place_until_it_is_done() {
    let set = [("DEZKY_HTTP_MAX_CONNECTIONS", "1"), ("DEZKY_STORE_LOCK_TIMEOUT_SECONDS", "300")];
    let server = Server::start(&set).await;
    let address = server.running.address();
    let mut other = SqliteConnection::connect(&server.url()).await.unwrap();
    let held = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let mut gone = Http2::connect(address).await;
    let body = login("gone");
    let signature = Secret::new(SECRET).unwrap().sign_base64(body.as_bytes());
    gone.post(&signature, body.as_bytes(), END_STREAM).await;
    // After these requests, the webhook waits for the store.
    for _ in 0..30 {
        gone.get("/health").await;
    }
    drop(gone);

    let mut next = Http2::connect(address).await;
    let served = tokio::time::timeout(Duration::from_secs(1), next.ping()).await;
    assert!(served.is_err(), "the connection's slot is not free yet");
    held.rollback().await.unwrap();
    next.get("/health").await;
    drop(next);
    until("the event", async || server.client.all("").await.len() == 1).await;
    server.stop().await;
}
