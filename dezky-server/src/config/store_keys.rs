//! `[store]`: the keys.

use super::keys::{Key, Kind, key};

#[rustfmt::skip]
pub(super) const KEYS: &[Key] = &[
    key("store.url", "DEZKY_STORE", Kind::Text, "\"sqlite://dezky.db\"", "",
        "Where the log is kept: sqlite:// and the path of a file, literally; with three\nslashes it is absolute (sqlite:///var/lib/dezky/audit.db). Or the URL of a server:\npostgres://dezky@db.example.com/platform?sslmode=verify-full or\nmongodb://dezky@db.example.com/platform?replicaSet=rs0&tls=true, in the environment\nwith a password. A URL as the key store at the root of the file does the same."),
    key("store.password", "DEZKY_STORE_PASSWORD", Kind::Secret, "", "",
        "The password of the user that the URL names, as it is."),
    key("store.password_file", "DEZKY_STORE_PASSWORD_FILE", Kind::Text, "", "\"/run/secrets/dezky-store-password\"",
        "The same from a file; a newline at its end does not count."),
    key("store.migrate", "DEZKY_STORE_MIGRATE", Kind::Switch, "true", "",
        "With false a schema that is not up to date stops the start: `dezky-server migrate`\nmends it."),
    key("store.pooler", "DEZKY_STORE_POOLER", Kind::Text, "\"none\"", "",
        "transaction where PgBouncer or the like gives each transaction another connection\nof PostgreSQL, else none."),
    key("store.max_connections", "DEZKY_STORE_MAX_CONNECTIONS", Kind::Number(1, 1_000), "10", "",
        "The most connections to a server, {min} to {max}; PostgreSQL has one more, to be told of\nwhat others append."),
    key("store.acquire_timeout_seconds", "DEZKY_STORE_ACQUIRE_TIMEOUT_SECONDS", Kind::Number(1, 300), "5", "",
        "How long to wait for a connection to a server, {min} to {max}."),
    key("store.lock_timeout_seconds", "DEZKY_STORE_LOCK_TIMEOUT_SECONDS", Kind::Number(1, 300), "5", "",
        "How long a writer waits for another one, {min} to {max}."),
    key("store.statement_timeout_seconds", "DEZKY_STORE_STATEMENT_TIMEOUT_SECONDS", Kind::Number(1, 3_600), "30", "",
        "How long a statement on a server may take, {min} to {max}."),
    key("store.idle_timeout_seconds", "DEZKY_STORE_IDLE_TIMEOUT_SECONDS", Kind::Number(1, 300), "5", "",
        "How long a transaction may wait for its next statement before PostgreSQL ends it,\n{min} to {max}: a writer that stalls holds the others up no longer."),
];
