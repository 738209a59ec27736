//! `[head]`: the file with the log's head.

use super::keys::{Key, Kind, key};

/// The problem of a head path that leads to something else.
pub(crate) const NOT_A_HEAD_FILE: &str = "is not a regular file: name a file, such as dezky.head";

#[rustfmt::skip]
pub(super) const KEYS: &[Key] = &[
    key("head.path", "DEZKY_HEAD_PATH", Kind::Text, "", "\"/var/lib/dezky/dezky.head\"",
        "The file in which the server notes the log's head, so that a store restored from a\nbackup is noticed. By default it is next to an SQLite file, with the ending .head,\nelse dezky.head in the working folder."),
];
