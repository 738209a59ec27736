//! Contains no code: the benchmarks are separate targets.
