//! The bounds of connections and request bodies.

use std::time::Duration;

/// The bounds of connections and of the requests on them.
#[derive(Debug, Clone, Copy)]
pub struct HttpLimits {
    /// The most connections.
    pub max_connections: usize,
    /// The longest time without a request.
    pub idle: Duration,
    /// The longest time in which a client takes nothing of an answer.
    pub write: Duration,
    /// The longest time for a request's body.
    pub body: Duration,
    /// The interval at which a body's rate is checked.
    pub body_stall: Duration,
    /// The memory of webhooks' bodies, in bytes.
    pub body_memory: usize,
    /// The longest that bodies may go on arriving when the server ends. Answers have half as
    /// long again to leave.
    pub ending: Duration,
}
