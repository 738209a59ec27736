//! Tests with the fixtures and on real files.

mod lines;
mod tail;

/// The complete file of a running oCIS 7.0.0, renamed while it was running.
const FIRST_GENERATION: &str = include_str!("../../../tests/data/ocis/first-generation.log");
/// A file written while the disk was full in between.
const ENOSPC_GLUED: &str = include_str!("../../../tests/data/ocis/enospc-glued.log");
/// Lines in the format of oCIS, written by another program.
const EVENT_SHAPE: &str = include_str!("../../../tests/data/ocis/event-shape.log");
/// Every event type.
const EVENT_TYPES: &str = include_str!("../../../tests/data/ocis/ocis-events.tsv");

const ADMIN: &str = "9278ef9e-a324-488a-a04d-216645d73f6c";
const ALICE: &str = "a4c517a3-d987-4563-a6dd-3776109686c8";
const BOB: &str = "0566577b-79a2-4a33-9c6b-5fe7f23c9c26";
