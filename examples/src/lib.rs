//! The examples are in the parent folder, one short program each.

/// The project's front page: its Rust code is compiled and run as doc tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct FrontPage;
