//! One connection, and what its client keeps the server waiting for.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use hyper::body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::connections::Place;
use super::limits::HttpLimits;

/// So much of what is owed has to leave to count as progress: signs of life are none.
const STEP_BYTES: u64 = 16 << 10;

/// A connection: who is waited for, and since when.
pub(super) struct Line {
    network: IpAddr,
    activity: Mutex<Activity>,
    cut: Notify,
    /// Held until the last work for the connection is done, so that work is bounded by
    /// connections whether they last or not.
    _place: Place,
}

struct Activity {
    /// Requests whose answers have not left our hands.
    under_way: usize,
    /// Since when there have been some.
    busy_since: Instant,
    /// Since when there has been none of them, and nothing of an answer has left.
    idle_since: Instant,
    /// Bytes of answers that were handed on and have not left, and what has left of them
    /// since the last step.
    owed: u64,
    left: u64,
    /// Bodies whose next part is waited for.
    bodies: usize,
    /// When something came last.
    read_at: Instant,
    /// Since when the socket has taken nothing though there is something to write.
    blocked_since: Option<Instant>,
    /// Answers whose client takes no more of them, by number: since when. An HTTP/2
    /// client can hold an answer back while the socket takes other things.
    untaken: BTreeMap<u64, Instant>,
    next: u64,
    is_cut: bool,
}

/// Why a connection has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// No request for so long.
    Idle,
    /// What was answered is not taken.
    Stalled,
}

impl Line {
    pub(super) fn new(place: Place, network: IpAddr) -> Self {
        let now = Instant::now();
        let activity = Activity {
            under_way: 0,
            busy_since: now,
            idle_since: now,
            owed: 0,
            left: 0,
            bodies: 0,
            read_at: now,
            blocked_since: None,
            untaken: BTreeMap::new(),
            next: 0,
            is_cut: false,
        };
        Self { network, activity: Mutex::new(activity), cut: Notify::new(), _place: place }
    }

    /// Where the client is.
    pub(super) fn network(&self) -> IpAddr {
        self.network
    }

    /// A request begins; it ends when its answer has left, or the guard is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> UnderWay {
        let mut activity = self.activity();
        if activity.under_way == 0 {
            activity.busy_since = Instant::now();
        }
        activity.under_way += 1;
        drop(activity);
        UnderWay(Arc::clone(self))
    }

    /// The next part of a body is waited for until the guard is dropped.
    pub(super) fn awaits_body(self: &Arc<Self>) -> impl Drop + use<> {
        struct Awaited(Arc<Line>);
        impl Drop for Awaited {
            fn drop(&mut self) {
                self.0.activity().bodies -= 1;
            }
        }
        self.activity().bodies += 1;
        Awaited(Arc::clone(self))
    }

    /// Since when the client has kept the server waiting, if it does. One of a crowd does so
    /// from the beginning of a request whose body is still to come; of others it counts when
    /// something came last.
    pub(super) fn quiet_since(&self, is_of_crowd: bool) -> Option<Instant> {
        self.activity().quiet_since(is_of_crowd)
    }

    /// Something came.
    pub(super) fn came_at(&self, now: Instant) {
        self.activity().read_at = now;
    }

    /// Whether a bound is over.
    pub(super) fn due(&self, bounds: &HttpLimits) -> Option<Due> {
        let (activity, now) = (self.activity(), Instant::now());
        let is_over = |(at, _): &(Instant, Due)| *at <= now;
        activity.bounds(bounds).filter(is_over).min_by_key(|(at, _)| *at).map(|(_, due)| due)
    }

    /// When to look next: at the next bound, or so soon that none that begins meanwhile
    /// is missed by much.
    pub(super) fn next_look(&self, bounds: &HttpLimits, gone_at: Option<Instant>) -> Instant {
        let now = Instant::now();
        let soon = now + bounds.idle.min(bounds.write) / 4;
        let activity = self.activity();
        // One that is over and still here waits for `gone_at`.
        let next = activity.bounds(bounds).map(|(at, _)| at).filter(|at| *at > now);
        next.chain(gone_at.filter(|at| *at > now)).fold(soon, Instant::min)
    }

    /// Ends the connection if its client has kept the server waiting since `since` or
    /// longer; whether it does. One that has begun a request meanwhile goes on.
    pub(super) fn end_if_quiet(&self, is_of_crowd: bool, since: Instant) -> bool {
        let mut activity = self.activity();
        if activity.quiet_since(is_of_crowd).is_none_or(|quiet| quiet > since) {
            return false;
        }
        activity.is_cut = true;
        drop(activity);
        self.cut.notify_one();
        true
    }

    /// Resolves when the connection has to end at once.
    pub(super) async fn cut(&self) {
        self.cut.notified().await;
    }

    #[cfg(test)]
    pub(super) fn is_cut(&self) -> bool {
        self.activity().is_cut
    }

    fn activity(&self) -> MutexGuard<'_, Activity> {
        self.activity.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Activity {
    fn quiet_since(&self, is_of_crowd: bool) -> Option<Instant> {
        if self.is_cut {
            return None;
        }
        match self.stalled_since() {
            Some(since) => Some(since),
            None if self.under_way == 0 => Some(self.idle_since),
            None => {
                let since = if is_of_crowd { self.busy_since } else { self.read_at };
                (self.bodies > 0).then_some(since)
            }
        }
    }

    fn stalled_since(&self) -> Option<Instant> {
        self.untaken.values().copied().chain(self.blocked_since).min()
    }

    /// Counts bytes that the socket took.
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
        // An answer that is handed on whole may still be leaving, at the client's pace.
        let idle_for = if self.owed > 0 { bounds.idle.max(bounds.write) } else { bounds.idle };
        let idle = (self.under_way == 0).then(|| (self.idle_since + idle_for, Due::Idle));
        stalled.into_iter().chain(idle)
    }
}

/// A request that is under way.
pub(super) struct UnderWay(Arc<Line>);

impl UnderWay {
    /// The request's answer, which is under way until it has been taken.
    pub(super) fn answer(self, body: Body) -> Answer {
        let number = {
            let mut activity = self.0.activity();
            activity.next += 1;
            let number = activity.next;
            activity.untaken.insert(number, Instant::now());
            number
        };
        Answer { body, under_way: self, number }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut activity = self.0.activity();
        activity.under_way -= 1;
        activity.idle_since = Instant::now();
    }
}

/// The body of an answer, watched for being taken.
pub(super) struct Answer {
    body: Body,
    under_way: UnderWay,
    number: u64,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        let mut activity = self.under_way.0.activity();
        if let Poll::Ready(Some(Ok(frame))) = &frame {
            activity.owed += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        if frame.is_pending() {
            // It is up to us.
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

impl Drop for Answer {
    fn drop(&mut self) {
        self.under_way.0.activity().untaken.remove(&self.number);
    }
}

/// The bytes of a connection, watched for moving.
pub(super) struct Watched<S> {
    stream: S,
    line: Arc<Line>,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, line: Arc<Line>) -> Self {
        Self { stream, line }
    }

    fn wrote(&self, written: &Poll<io::Result<usize>>) {
        let mut activity = self.line.activity();
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

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.line.came_at(Instant::now());
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
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
    use crate::http::connections::House;

    #[tokio::test]
    async fn an_answer_that_leaves_slowly_is_no_idle_connection() {
        let house = House::new(1);
        let line = house.enter(house.place().unwrap(), [203, 0, 113, 7].into());
        let watched = Watched::new((), Arc::clone(&line));
        let wrote = |bytes| watched.wrote(&Poll::Ready(Ok(bytes)));
        let mut answer = line.begin().answer(Body::from(vec![0; 1 << 20]));
        std::future::poll_fn(|context| Pin::new(&mut answer).poll_frame(context)).await;
        drop(answer);
        let idle_since = || line.activity().idle_since;
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
        let house = House::new(1);
        let line = house.enter(house.place().unwrap(), [203, 0, 113, 7].into());
        let watched = Watched::new((), Arc::clone(&line));
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
        let mut answer = line.begin().answer(Body::from(vec![0; 1 << 20]));
        std::future::poll_fn(|context| Pin::new(&mut answer).poll_frame(context)).await;
        drop(answer);
        watched.wrote(&Poll::Ready(Ok(16 << 10)));
        assert_eq!(line.due(&bounds), None);
        watched.wrote(&Poll::Ready(Ok(1 << 20)));
        assert_eq!(line.due(&bounds), Some(Due::Idle), "nothing is owed any more");
    }
}
