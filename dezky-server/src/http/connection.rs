//! A connection, and the time that its client keeps the server waiting.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use hyper::body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::Instant;

use super::limits::HttpLimits;

/// The bytes of answers that must leave to count as progress; mere signs of life do not.
const STEP_BYTES: u64 = 16 << 10;

/// A connection and its activity.
pub(super) struct Connection {
    network: IpAddr,
    activity: Mutex<Activity>,
    closed: Notify,
    /// Held until the last work for the connection is done, so that the bound of connections
    /// is a bound of work as well.
    _permit: OwnedSemaphorePermit,
}

struct Activity {
    /// Requests whose answers are not handed to the socket completely.
    requests: usize,
    /// The time since which there have been some.
    busy_since: Instant,
    /// The time since which there have been none, and no byte of an answer has left.
    idle_since: Instant,
    /// Bytes of answers that were handed on and have not left, and the bytes that have left
    /// since the last step.
    owed: u64,
    left: u64,
    /// Bodies whose next part the server waits for.
    bodies: usize,
    /// The time at which bytes were last received.
    read_at: Instant,
    /// The time since which the socket has accepted nothing while there is something to write.
    blocked_since: Option<Instant>,
    /// The times since which clients have not taken answers, by the answer's number. An HTTP/2
    /// client can hold one answer back while the socket accepts others.
    untaken: BTreeMap<u64, Instant>,
    next: u64,
    is_closed: bool,
}

/// The reason for closing a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// No request for too long.
    Idle,
    /// The client does not take an answer.
    Stalled,
}

impl Connection {
    pub(super) fn new(permit: OwnedSemaphorePermit, network: IpAddr) -> Self {
        let now = Instant::now();
        let activity = Activity {
            requests: 0,
            busy_since: now,
            idle_since: now,
            owed: 0,
            left: 0,
            bodies: 0,
            read_at: now,
            blocked_since: None,
            untaken: BTreeMap::new(),
            next: 0,
            is_closed: false,
        };
        Self { network, activity: Mutex::new(activity), closed: Notify::new(), _permit: permit }
    }

    /// The client's network.
    pub(super) fn network(&self) -> IpAddr {
        self.network
    }

    /// Begins a request, which ends when its answer has left or the guard is dropped.
    pub(super) fn begin_request(self: &Arc<Self>) -> RequestGuard {
        let mut activity = self.activity();
        if activity.requests == 0 {
            activity.busy_since = Instant::now();
        }
        activity.requests += 1;
        drop(activity);
        RequestGuard(Arc::clone(self))
    }

    /// Notes that the server waits for the next part of a body, until the guard is dropped.
    pub(super) fn awaits_body(self: &Arc<Self>) -> impl Drop + use<> {
        struct Awaited(Arc<Connection>);
        impl Drop for Awaited {
            fn drop(&mut self) {
                self.0.activity().bodies -= 1;
            }
        }
        self.activity().bodies += 1;
        Awaited(Arc::clone(self))
    }

    /// The time since which the client has kept the server waiting, if it does. While a body is
    /// due, that is the request's beginning for a client of the majority, and the last received
    /// bytes for others.
    pub(super) fn quiet_since(&self, is_of_majority: bool) -> Option<Instant> {
        self.activity().quiet_since(is_of_majority)
    }

    /// Notes that bytes were received.
    pub(super) fn received_at(&self, now: Instant) {
        self.activity().read_at = now;
    }

    /// The bound that has passed first, if any has.
    pub(super) fn due(&self, bounds: &HttpLimits) -> Option<Due> {
        let (activity, now) = (self.activity(), Instant::now());
        let is_over = |(at, _): &(Instant, Due)| *at <= now;
        activity.bounds(bounds).filter(is_over).min_by_key(|(at, _)| *at).map(|(_, due)| due)
    }

    /// The time of the next check: at the next bound, or early enough that a bound that begins in the
    /// meantime is not missed by much.
    pub(super) fn next_check(&self, bounds: &HttpLimits, gone_at: Option<Instant>) -> Instant {
        let now = Instant::now();
        let soon = now + bounds.idle.min(bounds.write) / 4;
        let activity = self.activity();
        // A bound that has passed already waits for `gone_at`.
        let next = activity.bounds(bounds).map(|(at, _)| at).filter(|at| *at > now);
        next.chain(gone_at.filter(|at| *at > now)).fold(soon, Instant::min)
    }

    /// Closes the connection if its client has kept the server waiting since `since` or longer,
    /// and returns whether it did. A connection that has begun a request goes on.
    pub(super) fn close_if_quiet(&self, is_of_majority: bool, since: Instant) -> bool {
        let mut activity = self.activity();
        if activity.quiet_since(is_of_majority).is_none_or(|quiet| quiet > since) {
            return false;
        }
        activity.is_closed = true;
        drop(activity);
        self.closed.notify_one();
        true
    }

    /// Resolves when the connection has to be closed at once.
    pub(super) async fn closed(&self) {
        self.closed.notified().await;
    }

    #[cfg(test)]
    pub(super) fn is_closed(&self) -> bool {
        self.activity().is_closed
    }

    fn activity(&self) -> MutexGuard<'_, Activity> {
        self.activity.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Activity {
    fn quiet_since(&self, is_of_majority: bool) -> Option<Instant> {
        if self.is_closed {
            return None;
        }
        match self.stalled_since() {
            Some(since) => Some(since),
            None if self.requests == 0 => Some(self.idle_since),
            None => {
                let since = if is_of_majority { self.busy_since } else { self.read_at };
                (self.bodies > 0).then_some(since)
            }
        }
    }

    fn stalled_since(&self) -> Option<Instant> {
        self.untaken.values().copied().chain(self.blocked_since).min()
    }

    /// Counts bytes that the socket accepted.
    fn left_by(&mut self, bytes: u64) {
        if self.owed == 0 {
            return;
        }
        self.owed = self.owed.saturating_sub(bytes);
        self.left += bytes;
        if self.left >= STEP_BYTES || self.owed == 0 {
            (self.left, self.idle_since) = (0, Instant::now());
        }
    }

    fn bounds(&self, bounds: &HttpLimits) -> impl Iterator<Item = (Instant, Due)> + use<> {
        let stalled = self.stalled_since().map(|since| (since + bounds.write, Due::Stalled));
        // An answer that was handed on completely may still be leaving, at the client's pace.
        let idle_for = if self.owed > 0 { bounds.idle.max(bounds.write) } else { bounds.idle };
        let idle = (self.requests == 0).then(|| (self.idle_since + idle_for, Due::Idle));
        stalled.into_iter().chain(idle)
    }
}

/// A request in progress.
pub(super) struct RequestGuard(Arc<Connection>);

impl RequestGuard {
    /// The body of the request's answer. The request ends when the client has taken it.
    pub(super) fn answer(self, body: Body) -> WatchedBody {
        let number = {
            let mut activity = self.0.activity();
            activity.next += 1;
            let number = activity.next;
            activity.untaken.insert(number, Instant::now());
            number
        };
        WatchedBody { body, request: self, number }
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let mut activity = self.0.activity();
        activity.requests -= 1;
        activity.idle_since = Instant::now();
    }
}

/// The body of an answer, watched for progress.
pub(super) struct WatchedBody {
    body: Body,
    request: RequestGuard,
    number: u64,
}

impl hyper::body::Body for WatchedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        let mut activity = self.request.0.activity();
        if let Poll::Ready(Some(Ok(frame))) = &frame {
            activity.owed += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        if frame.is_pending() {
            // The server produces the next part; the client is not late.
            activity.untaken.remove(&self.number);
        } else {
            activity.untaken.insert(self.number, Instant::now());
        }
        drop(activity);
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for WatchedBody {
    fn drop(&mut self) {
        self.request.0.activity().untaken.remove(&self.number);
    }
}

/// The stream of a connection, watched for progress.
pub(super) struct WatchedStream<S> {
    stream: S,
    connection: Arc<Connection>,
}

impl<S> WatchedStream<S> {
    pub(super) fn new(stream: S, connection: Arc<Connection>) -> Self {
        Self { stream, connection }
    }

    fn wrote(&self, written: &Poll<io::Result<usize>>) {
        let mut activity = self.connection.activity();
        if written.is_pending() {
            activity.blocked_since.get_or_insert_with(Instant::now);
        } else {
            activity.blocked_since = None;
        }
        if let Poll::Ready(Ok(bytes)) = written {
            activity.left_by(*bytes as u64);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WatchedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.connection.received_at(Instant::now());
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WatchedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.wrote(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.wrote(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hyper::body::Body as _;

    use super::*;
    use crate::http::connections::Connections;

    #[tokio::test]
    async fn an_answer_that_leaves_slowly_is_no_idle_connection() {
        let connections = Connections::new(1);
        let connection =
            connections.register(connections.try_admit().unwrap(), [203, 0, 113, 7].into());
        let watched = WatchedStream::new((), Arc::clone(&connection));
        let wrote = |bytes| watched.wrote(&Poll::Ready(Ok(bytes)));
        let mut answer = connection.begin_request().answer(Body::from(vec![0; 1 << 20]));
        std::future::poll_fn(|context| Pin::new(&mut answer).poll_frame(context)).await;
        drop(answer);
        let idle_since = || connection.activity().idle_since;
        let handed_on = idle_since();
        wrote(1_000);
        assert_eq!(idle_since(), handed_on, "that may be an answer to a ping");
        wrote(16 << 10);
        let moved = idle_since();
        assert!(moved > handed_on);
        wrote(1 << 20);
        assert!(idle_since() > moved, "all of it has left");
        let all = idle_since();
        wrote(1 << 20);
        assert_eq!(idle_since(), all, "nothing is owed any more");
    }

    #[tokio::test]
    async fn an_answer_that_is_leaving_has_the_time_of_a_write() {
        let connections = Connections::new(1);
        let connection =
            connections.register(connections.try_admit().unwrap(), [203, 0, 113, 7].into());
        let watched = WatchedStream::new((), Arc::clone(&connection));
        let hour = Duration::from_hours(1);
        let bounds = HttpLimits {
            max_connections: 1,
            idle: Duration::ZERO,
            write: hour,
            body: hour,
            body_stall: hour,
            body_memory: 1 << 20,
            ending: hour,
        };
        let mut answer = connection.begin_request().answer(Body::from(vec![0; 1 << 20]));
        std::future::poll_fn(|context| Pin::new(&mut answer).poll_frame(context)).await;
        drop(answer);
        watched.wrote(&Poll::Ready(Ok(16 << 10)));
        assert_eq!(connection.due(&bounds), None);
        watched.wrote(&Poll::Ready(Ok(1 << 20)));
        assert_eq!(connection.due(&bounds), Some(Due::Idle), "nothing is owed any more");
    }
}
