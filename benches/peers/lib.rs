//! Holds no code: the benchmarks are targets.
