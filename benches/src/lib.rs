//! The benchmarks are in the parent folder, one program each: `append.rs`.
