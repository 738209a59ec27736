//! The body of a request while it arrives: at the sender's pace, but not at any pace.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures_util::stream;
use hyper::body::{Body as _, Frame, Incoming};
use tokio::sync::watch;
use tokio::time::Instant;

use super::connection::Line;
use super::limits::HttpLimits;

/// The least that must come of a body, in bytes a second, taken over
/// [`HttpLimits::body_stall`]. A sender that waits holds memory that others need.
const MIN_BYTES_PER_SECOND: u64 = 1_024;
/// How much of a body that nobody reads is thrown away, so that a sender who writes
/// first and reads later gets its answer.
const MAX_DISCARDED_BYTES: usize = 64 << 20;

/// Why a body did not come to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unfinished {
    /// The sender broke off.
    Broken,
    /// It took longer than this.
    Late(Duration),
    /// In this time it moved less than it must.
    Slow(Duration),
    /// The server ends.
    Ending,
}

impl Unfinished {
    /// The reason in an error of reading.
    pub(crate) fn of(error: &axum::Error) -> Self {
        let mut error: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(inner) = error {
            if let Some(reason) = inner.downcast_ref() {
                return *reason;
            }
            error = inner.source();
        }
        Self::Broken
    }
}

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken => f.write_str("the body broke off"),
            Self::Late(within) => {
                write!(f, "the body did not come in time: send it within {} s", within.as_secs())
            }
            Self::Slow(within) => write!(
                f,
                "the body came too slowly: send at least {} bytes every {} s",
                least(*within),
                within.as_secs()
            ),
            Self::Ending => f.write_str("the server ends before the body came: send it again"),
        }
    }
}

impl std::error::Error for Unfinished {}

fn least(within: Duration) -> u64 {
    MIN_BYTES_PER_SECOND.saturating_mul(within.as_secs()).max(1)
}

/// The pace that a body has to keep.
pub(super) struct Pace {
    whole: (Duration, Instant),
    stall: Duration,
    /// What came since the last look, and when the next one is.
    came: u64,
    look_at: Instant,
    ending: Ending,
}

/// Until when what is under way must have come, once the server ends.
pub(super) type Ending = watch::Receiver<Option<Instant>>;

impl Pace {
    pub(super) fn new(bounds: &HttpLimits, ending: Ending) -> Self {
        let now = Instant::now();
        Self {
            whole: (bounds.body, now + bounds.body),
            stall: bounds.body_stall,
            came: 0,
            look_at: now + bounds.body_stall,
            ending,
        }
    }

    /// Counts what came. Time in which nobody waited for it is not the sender's.
    fn came(&mut self, bytes: usize) {
        let now = Instant::now();
        if self.look_at <= now {
            (self.came, self.look_at) = (0, now + self.stall);
        }
        self.came += bytes as u64;
    }

    /// Why the sender is not waited for any longer, however much it sends.
    fn is_over(&self) -> Option<Unfinished> {
        let (now, (within, at)) = (Instant::now(), self.whole);
        if at <= now {
            return Some(Unfinished::Late(within));
        }
        let is_ended = self.ending.borrow().is_some_and(|at| at <= now);
        is_ended.then_some(Unfinished::Ending)
    }

    /// Resolves when the sender is not waited for any longer.
    async fn over(&mut self) -> Unfinished {
        let (within, at) = self.whole;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(at) => return Unfinished::Late(within),
                () = ended(&mut self.ending) => return Unfinished::Ending,
                () = tokio::time::sleep_until(self.look_at) => {
                    if self.came < least(self.stall) {
                        return Unfinished::Slow(self.stall);
                    }
                    (self.came, self.look_at) = (0, Instant::now() + self.stall);
                }
            }
        }
    }
}

/// Resolves when the server ends and waits no longer for what is under way.
async fn ended(ending: &mut Ending) {
    // An error says that the server is gone, which is an end too.
    let at = ending.wait_for(Option::is_some).await.ok().and_then(|at| *at);
    tokio::time::sleep_until(at.unwrap_or_else(Instant::now)).await;
}

/// A body on its way in.
pub(super) struct Arriving {
    /// Until its end, or until it is given up.
    body: Option<Incoming>,
    pace: Pace,
    line: Arc<Line>,
    /// Whether what is left unread has to be read on the connection, where the next request
    /// comes behind it.
    needs_draining: bool,
    /// Whether the sender does not wait to be asked for it.
    is_on_its_way: bool,
}

impl Arriving {
    /// `None` where there is no body. With `needs_draining` what is left unread is read
    /// and thrown away, if it `is_on_its_way`: who closes a connection in which something
    /// was not read takes the answer away from a sender that still writes.
    pub(super) fn new(
        body: Incoming,
        pace: Pace,
        line: Arc<Line>,
        needs_draining: bool,
        is_on_its_way: bool,
    ) -> Option<Self> {
        let is_there = !body.is_end_stream();
        is_there.then(|| Self { body: Some(body), pace, line, needs_draining, is_on_its_way })
    }

    pub(super) fn into_body(self) -> Body {
        Body::from_stream(stream::unfold(self, |mut arriving| async {
            let part = arriving.next().await?;
            Some((part, arriving))
        }))
    }

    /// The next part; cancel-safe.
    async fn next(&mut self) -> Option<Result<Bytes, Unfinished>> {
        self.is_on_its_way = true;
        loop {
            if let Some(reason) = self.pace.is_over().filter(|_| self.body.is_some()) {
                return Some(Err(self.refuse(reason)));
            }
            let body = self.body.as_mut()?;
            let frame = std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context));
            let _awaited = self.line.awaits_body();
            let frame = tokio::select! {
                biased;
                frame = frame => frame,
                reason = self.pace.over() => return Some(Err(self.refuse(reason))),
            };
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => {
                    self.pace.came(data.len());
                    return Some(Ok(data));
                }
                // Trailers mean nothing here.
                Some(Ok(Err(_))) => {}
                Some(Err(_)) => {
                    self.body = None;
                    return Some(Err(Unfinished::Broken));
                }
                None => {
                    self.body = None;
                    return None;
                }
            }
        }
    }

    /// Gives the sender up, for this reason.
    fn refuse(&mut self, reason: Unfinished) -> Unfinished {
        // The time for reading on is over, too.
        self.body = None;
        reason
    }

    /// Nobody reads what is left.
    fn give_up(&mut self) {
        let is_left = self.needs_draining && self.is_on_its_way;
        let Some(body) = self.body.take().filter(|_| is_left) else { return };
        // Outside of the runtime everything ends.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let ending = self.pace.ending.clone();
            runtime.spawn(discard(body, self.pace.whole.1, self.pace.stall, ending));
        }
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// Reads what is left of a body, within the bounds of time and size.
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
