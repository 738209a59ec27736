//! The examples stand beside this file, one short program each.

/// The project's front page: its Rust is compiled and run as a doc test.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct FrontPage;
