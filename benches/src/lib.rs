//! The benchmarks stand beside this file, one program each: `append.rs`.
