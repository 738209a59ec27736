//! The error for a refused URL says what is wrong, what is allowed, and what to do.

use std::net::TcpListener;

use dezky::{Access, ErrorKind, Platform, StoreConfig, StoreUrl, Stores};

async fn refused(url: &str) -> String {
    let error = Platform::open(url).await.err().expect("is refused");
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{error:?}");
    error.to_string()
}

#[tokio::test]
async fn an_error_names_the_option_its_bounds_and_the_fix() {
    for (url, said) in [
        ("dezky.db", "the store's URL: must be a URL: sqlite:// and the path of a file"),
        ("redis://x", "the store's URL: has an unknown scheme: use sqlite://"),
        ("sqlite://", "names no file: write sqlite:// and the path of one"),
        ("sqlite://:memory:", "must outlive the process"),
        ("memory://x", "write memory:// alone"),
        ("sqlite://x.db?lock_timeout_seconds=0", "lock_timeout_seconds: is 0: it must be 1 to 300"),
        ("sqlite://x.db?lock_timeout_seconds=5s", "must be a whole number from 1 to 300"),
        ("sqlite://x.db?pooler=none", "pooler: has no effect on sqlite: leave it out"),
        ("sqlite://x.db?mode=rwc", "mode: no such option: sqlite has lock_timeout_seconds, shared"),
        ("postgres://u@h/x?max_connections=1001", "max_connections: is 1001: it must be 1 to 1000"),
        ("postgres://u@h/x?pooler=yes", "pooler: must be none or transaction"),
        ("postgres://u@h/x?sslmod=require", "unknown option sslmod: remove it, or correct it"),
        ("mongodb://u@h/x?idle_timeout_seconds=5", "has no effect on mongodb: leave it out"),
        ("mongodb:///x", "names no host: write mongodb://user@host/database"),
    ] {
        let found = refused(url).await;
        assert!(found.contains(said), "{url}: {found}");
    }
    assert!(!std::path::Path::new("x.db").exists(), "nothing was created");
}

#[tokio::test]
async fn options_that_are_set_by_field_are_checked_too() {
    let mut config = StoreConfig::new(StoreUrl::parse("memory://").unwrap());
    config.max_connections = 0;
    let error = Stores::open(&config, Access::Migrate).await.err().unwrap();
    assert_eq!(error.to_string(), "max_connections: is 0: it must be 1 to 1000");
}

#[tokio::test]
async fn a_missing_file_is_created_by_migrating_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dezky.db");
    let config = StoreConfig::parse(&format!("sqlite://{}", path.display())).unwrap();
    let error = Stores::open(&config, Access::Use).await.err().unwrap();
    assert!(error.to_string().contains("there is no such file"), "{error}");
    assert!(!path.exists());
    let nowhere = format!("sqlite://{}", folder.path().join("none/dezky.db").display());
    assert!(refused(&nowhere).await.contains("none"), "it names the path");
}

/// If a server is unreachable, the error is retryable, because it may come back.
#[tokio::test]
async fn a_server_that_is_away_is_named_without_its_password() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for scheme in ["postgres", "mongodb"] {
        let url = format!("{scheme}://u:p4ss@127.0.0.1:{port}/x?acquire_timeout_seconds=1");
        let error = Platform::open(&url).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{error:?}");
        let said = error.to_string();
        assert!(said.contains(&format!("{scheme}://u@127.0.0.1:{port}/x")), "{said}");
        assert!(!format!("{error:?}").contains("p4ss"));
    }
}
