//! The body of a request while it arrives, within bounds of time and rate.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures_util::stream;
use hyper::body::{Body as _, Frame, Incoming};
use tokio::sync::watch;
use tokio::time::Instant;

use super::connection::Connection;
use super::limits::HttpLimits;

/// The least rate of a body, averaged over [`HttpLimits::body_stall`]. A slow sender holds
/// memory that others need.
const MIN_BYTES_PER_SECOND: u64 = 1_024;
/// How much of an unread body is discarded, so that a sender that writes first and reads later
/// gets its answer.
const MAX_DISCARDED_BYTES: usize = 64 << 20;

/// The reason why a body is incomplete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyError {
    /// The connection ended, or the sender broke the protocol.
    Aborted,
    /// It took longer than this.
    TimedOut(Duration),
    /// Less than the least rate arrived in this time.
    TooSlow(Duration),
    /// The server is stopping.
    Stopping,
}

impl BodyError {
    /// The reason in an error of reading a body.
    pub(crate) fn of(error: &axum::Error) -> Self {
        let mut error: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(inner) = error {
            if let Some(reason) = inner.downcast_ref() {
                return *reason;
            }
            error = inner.source();
        }
        Self::Aborted
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aborted => f.write_str("the body broke off"),
            Self::TimedOut(within) => {
                write!(f, "the body did not come in time: send it within {} s", within.as_secs())
            }
            Self::TooSlow(within) => write!(
                f,
                "the body arrived too slowly: send at least {} bytes every {} s",
                least(*within),
                within.as_secs()
            ),
            Self::Stopping => f.write_str("the server ends before the body came: send it again"),
        }
    }
}

impl std::error::Error for BodyError {}

fn least(within: Duration) -> u64 {
    MIN_BYTES_PER_SECOND.saturating_mul(within.as_secs()).max(1)
}

/// The bounds of a body: its deadline and its least rate.
pub(super) struct Pace {
    whole: (Duration, Instant),
    stall: Duration,
    /// The bytes received since the last check of the rate, and the time of the next check.
    received: u64,
    check_at: Instant,
    ending: Ending,
}

/// The deadline of bodies once the server is stopping.
pub(super) type Ending = watch::Receiver<Option<Instant>>;

impl Pace {
    pub(super) fn new(bounds: &HttpLimits, ending: Ending) -> Self {
        let now = Instant::now();
        Self {
            whole: (bounds.body, now + bounds.body),
            stall: bounds.body_stall,
            received: 0,
            check_at: now + bounds.body_stall,
            ending,
        }
    }

    /// Counts received bytes. Time in which nobody read the body does not count against the
    /// sender.
    fn received(&mut self, bytes: usize) {
        let now = Instant::now();
        if self.check_at <= now {
            (self.received, self.check_at) = (0, now + self.stall);
        }
        self.received += bytes as u64;
    }

    /// The deadline that has passed, whatever the rate.
    fn is_over(&self) -> Option<BodyError> {
        let (now, (within, at)) = (Instant::now(), self.whole);
        if at <= now {
            return Some(BodyError::TimedOut(within));
        }
        let is_ended = self.ending.borrow().is_some_and(|at| at <= now);
        is_ended.then_some(BodyError::Stopping)
    }

    /// Resolves when a deadline has passed or the rate was too low.
    async fn over(&mut self) -> BodyError {
        let (within, at) = self.whole;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(at) => return BodyError::TimedOut(within),
                () = ended(&mut self.ending) => return BodyError::Stopping,
                () = tokio::time::sleep_until(self.check_at) => {
                    if self.received < least(self.stall) {
                        return BodyError::TooSlow(self.stall);
                    }
                    (self.received, self.check_at) = (0, Instant::now() + self.stall);
                }
            }
        }
    }
}

/// Resolves at the deadline of bodies once the server is stopping.
async fn ended(ending: &mut Ending) {
    // An error means that the server is gone, which counts as stopping.
    let at = ending.wait_for(Option::is_some).await.ok().and_then(|at| *at);
    tokio::time::sleep_until(at.unwrap_or_else(Instant::now)).await;
}

/// The body of a request, read within its bounds.
pub(super) struct IncomingBody {
    /// `None` after its end, or once it is abandoned.
    body: Option<Incoming>,
    pace: Pace,
    connection: Arc<Connection>,
    /// Whether unread bytes have to be read from the connection, because the next request
    /// follows them.
    needs_draining: bool,
    /// Whether the sender sends it without waiting for `100 Continue`.
    is_on_its_way: bool,
}

impl IncomingBody {
    /// `None` without a body. With `needs_draining` the unread rest is read and discarded if it
    /// `is_on_its_way`: closing a connection with unread bytes would drop the answer of a
    /// sender that still writes.
    pub(super) fn new(
        body: Incoming,
        pace: Pace,
        connection: Arc<Connection>,
        needs_draining: bool,
        is_on_its_way: bool,
    ) -> Option<Self> {
        let is_there = !body.is_end_stream();
        is_there.then(|| Self { body: Some(body), pace, connection, needs_draining, is_on_its_way })
    }

    pub(super) fn into_body(self) -> Body {
        Body::from_stream(stream::unfold(self, |mut incoming| async {
            let part = incoming.next().await?;
            Some((part, incoming))
        }))
    }

    /// The next part. Cancel-safe.
    async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        self.is_on_its_way = true;
        loop {
            if let Some(reason) = self.pace.is_over().filter(|_| self.body.is_some()) {
                return Some(Err(self.refuse(reason)));
            }
            let body = self.body.as_mut()?;
            let frame = std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context));
            let _awaited = self.connection.awaits_body();
            let frame = tokio::select! {
                biased;
                frame = frame => frame,
                reason = self.pace.over() => return Some(Err(self.refuse(reason))),
            };
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => {
                    self.pace.received(data.len());
                    return Some(Ok(data));
                }
                // Trailers are ignored.
                Some(Ok(Err(_))) => {}
                Some(Err(_)) => {
                    self.body = None;
                    return Some(Err(BodyError::Aborted));
                }
                None => {
                    self.body = None;
                    return None;
                }
            }
        }
    }

    /// Abandons the body for this reason.
    fn refuse(&mut self, reason: BodyError) -> BodyError {
        // Nothing is drained: the time for that is over, too.
        self.body = None;
        reason
    }

    /// Drains the unread rest, if it has to be.
    fn drain(&mut self) {
        let is_left = self.needs_draining && self.is_on_its_way;
        let Some(body) = self.body.take().filter(|_| is_left) else { return };
        // Without a runtime the process ends.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let ending = self.pace.ending.clone();
            runtime.spawn(discard(body, self.pace.whole.1, self.pace.stall, ending));
        }
    }
}

impl Drop for IncomingBody {
    fn drop(&mut self) {
        self.drain();
    }
}

/// Reads the rest of a body within the bounds of time and size.
async fn discard(mut body: Incoming, until: Instant, stall: Duration, mut ending: Ending) {
    let reading = async {
        let mut left = MAX_DISCARDED_BYTES;
        loop {
            let frame = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context));
            let Ok(Some(Ok(frame))) = tokio::time::timeout(stall, frame).await else { return };
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            let Some(rest) = left.checked_sub(bytes) else { return };
            left = rest;
        }
    };
    tokio::select! {
        _ = tokio::time::timeout_at(until, reading) => {}
        () = ended(&mut ending) => {}
    }
}
