//! `[head]`: the file with the log's head.

use super::keys::{Key, Kind, key};

/// The problem of a head path at which there is something else.
pub(crate) const NOT_A_HEAD_FILE: &str = "is not a regular file: name a file, such as dezky.head";

#[rustfmt::skip]
pub(super) const KEYS: &[Key] = &[
    key("head.path", "DEZKY_HEAD_PATH", Kind::Text, "", "\"/var/lib/dezky/dezky.head\"",
        "The file in which the server notes how far the log has come, so that a store that\nwas restored from a backup is noticed. Unless set it is beside an SQLite file, with\n.head at its end, else dezky.head in the working folder."),
];
