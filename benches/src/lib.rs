//! Benchmarks live beside this crate root.
