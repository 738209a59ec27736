//! The server keeps working if its log output can't be written.

use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::Stdio;

use reqwest::Method;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Client, Process, WEBHOOK, program, run, until};

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_served_though_the_log_is_full_or_its_reader_gone() {
    let full = || Stdio::from(OpenOptions::new().write(true).open("/dev/full").unwrap());
    let gone = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    for stderr in [full(), gone()] {
        let folder = tempfile::tempdir().unwrap();
        let mut process = Process::start_with_stderr(folder.path(), &[], stderr);
        let body = r#"{"events":[{"id":"a-1","createdAt":"2026-11-21T20:00:00Z","type":"auth.success","data":{}}]}"#;
        for _ in 0..3 {
            let answer = process.client.post_signed(WEBHOOK, body).await;
            assert_eq!(answer.with_status(200)["received"], 1);
        }
        process.terminate();
        until("the end", async || process.ended().is_some()).await;
        assert!(process.ended().unwrap().success());
    }
}

/// Counts responses, up to `most`.
async fn answers(stream: &mut (impl AsyncRead + Unpin), most: usize) -> usize {
    let (mut text, mut found) = (Vec::new(), 0);
    let mut part = [0; 8 << 10];
    while found < most {
        let bytes = stream.read(&mut part).await.unwrap();
        assert!(bytes > 0, "{found} answers");
        text.extend_from_slice(&part[..bytes]);
        let mark = b"HTTP/1.1 200";
        while let Some(at) = text.windows(mark.len()).position(|window| window == mark) {
            text.drain(..at + mark.len());
            found += 1;
        }
    }
    found
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_nobody_reads_holds_nothing_up_and_tells_what_was_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let set = [("DEZKY_LOG_FORMAT", "json")];
    let process = Process::start_with_stderr(folder.path(), &set, writer.into());
    // More lines than the pipe and the queue of lines can hold.
    let mut stream = TcpStream::connect(&process.address).await.unwrap();
    let (mut reads, mut writes) = stream.split();
    let requests = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(3_000);
    let (written, answers) = tokio::join!(writes.write_all(&requests), answers(&mut reads, 3_000));
    written.unwrap();
    assert_eq!(answers, 3_000);
    let reading = std::thread::spawn(move || {
        let (mut text, mut part) = (String::new(), [0; 8 << 10]);
        while !text.contains("lines of the log were lost") {
            let bytes = reader.read(&mut part).unwrap();
            assert!(bytes > 0, "the loss was not reported");
            text.push_str(&String::from_utf8_lossy(&part[..bytes]));
        }
        reader
    });
    until("the log reports it", async || {
        assert_eq!(process.client.get("/health").await.status, 200);
        reading.is_finished()
    })
    .await;
    // The reader stays open, so that the log can still be written.
    let _reader = reading.join().unwrap();
    assert_eq!(process.client.get("/health").await.status, 200);
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_has_to_end_ends_though_nobody_reads_its_log() {
    let folder = tempfile::tempdir().unwrap();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let stderr = writer.try_clone().unwrap().into();
    // Keeps the pipe full until the reader is dropped.
    let filling = std::thread::spawn(move || while writer.write_all(&[b'\n'; 4_096]).is_ok() {});
    let mut process = Process::start_with_stderr(folder.path(), &[], stderr);
    assert_eq!(process.client.get("/health").await.status, 200);
    std::fs::remove_file(folder.path().join("dezky.db")).unwrap();
    until("the end", async || process.ended().is_some()).await;
    assert_eq!(process.ended().unwrap().code(), Some(1));
    drop(reader);
    filling.join().unwrap();
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_output_is_full_serves() {
    let folder = tempfile::tempdir().unwrap();
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut child = program(&["serve"])
        .current_dir(folder.path())
        .env("DEZKY_LISTEN", address.to_string())
        .stdout(full)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let said = lines.find(|line| line.as_ref().unwrap().contains("could not be printed"));
    assert!(said.unwrap().unwrap().contains(&address.to_string()));
    let client = Client::new(format!("http://{address}"));
    let answer = client.try_status(client.request(Method::GET, "/health")).await;
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(answer, Some(200));
}

#[cfg(unix)]
#[test]
fn a_command_whose_reader_has_gone_ends_quietly_with_its_own_status() {
    let cases = [(&["config", "example"][..], 0), (&["verify"], 2), (&["--help"], 0)];
    for (arguments, status) in cases {
        let folder = tempfile::tempdir().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = program(arguments);
        command.current_dir(folder.path()).stdout(writer.try_clone().unwrap()).stderr(writer);
        assert_eq!(command.status().unwrap().code(), Some(status), "{arguments:?}");
    }
    // If only standard output fails, standard error says why.
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = program(&["config", "example"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("the output can't be written"), "{said}");
    assert!(run(&["config", "example"], &[]).status.success());
}
