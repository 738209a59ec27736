use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use futures_util::stream::{self, Stream};

use super::{AuditStore, LogState};
use crate::{Error, ErrorKind, Result, Runtime, StoredEvent};

/// Follows a log in order of `seq`.
///
/// Events appended by this process are seen at once, those of others within the poll interval or
/// when the engine notifies. `seq` is assigned in commit order, so no late commit is missed.
pub struct Tail {
    store: Arc<dyn AuditStore>,
    runtime: Arc<dyn Runtime>,
    next_seq: u64,
    ready: VecDeque<StoredEvent>,
    poll_interval: Duration,
    /// Whether it has read any event, so that the log must reach to `next_seq`.
    followed: bool,
    /// The number of consecutive notifications after which there was nothing to read.
    in_vain: u32,
}

impl Tail {
    const BATCH_ROWS: usize = 500;
    /// After this many notifications in vain, waits for the poll interval. A source of
    /// notifications may be faulty, such as a connection that breaks whenever it is made.
    const MAX_IN_VAIN: u32 = 8;

    pub(super) fn new(
        store: Arc<dyn AuditStore>,
        runtime: Arc<dyn Runtime>,
        from_seq: u64,
    ) -> Self {
        Self {
            store,
            runtime,
            next_seq: from_seq,
            ready: VecDeque::new(),
            poll_interval: Duration::from_millis(500),
            followed: false,
            in_vain: 0,
        }
    }

    /// Sets the interval at which appends of other processes are polled for; 500 ms by default.
    #[must_use]
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.poll_interval = interval;
        self
    }

    /// The next event; waits for it at the end of the log. Cancel-safe.
    ///
    /// # Errors
    /// `pruned` if the next event was archived; `store_corrupt` at a row that is missing or
    /// unreadable; those of reading the store.
    pub async fn next(&mut self) -> Result<StoredEvent> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            self.fill().await?;
            if self.ready.is_empty() {
                self.wait().await;
            } else {
                self.in_vain = 0;
            }
        }
    }

    async fn wait(&mut self) {
        let tick = self.runtime.sleep(self.poll_interval);
        if self.in_vain >= Self::MAX_IN_VAIN {
            tick.await;
            self.in_vain = 0;
            return;
        }
        self.in_vain += 1;
        if let Either::Right(_) = select(self.store.changed(self.next_seq), tick).await {
            self.in_vain = 0;
        }
    }

    /// The events as a stream that never ends; after an error it retries once per poll interval.
    pub fn into_stream(self) -> impl Stream<Item = Result<StoredEvent>> + Send {
        stream::unfold((self, false), |(mut tail, failed)| async move {
            if failed {
                tail.runtime.sleep(tail.poll_interval).await;
            }
            let item = tail.next().await;
            let failed = item.is_err();
            Some((item, (tail, failed)))
        })
    }

    async fn fill(&mut self) -> Result<()> {
        let from = i64::try_from(self.next_seq).unwrap_or(i64::MAX);
        let rows = self.store.scan(from, Self::BATCH_ROWS).await?;
        let first = rows.first().map(|row| match row {
            Ok(row) => i64::try_from(row.stored.seq).unwrap_or(i64::MAX),
            Err(row) => row.seq,
        });
        if first != Some(from) {
            self.explain_absence(&self.store.state().await?)?;
            // Rows become visible in order, so a later row without this one means a gap.
            return match first {
                Some(later) => self.broken(u64::try_from(later).unwrap_or(0), "follows a gap"),
                None => Ok(()),
            };
        }
        for row in rows {
            match row {
                Ok(row) if row.stored.seq == self.next_seq => {
                    self.next_seq += 1;
                    self.followed = true;
                    self.ready.push_back(row.stored);
                }
                Ok(row) => return self.broken(row.stored.seq, "follows a gap"),
                Err(row) => {
                    return self.broken(u64::try_from(row.seq).unwrap_or(0), &row.problem);
                }
            }
        }
        Ok(())
    }

    fn explain_absence(&self, state: &LogState) -> Result<()> {
        if self.followed && self.next_seq > state.head.next_seq {
            return self.broken(state.head.next_seq, "the log ends before events already read");
        }
        if self.next_seq < state.base.next_seq {
            return Err(Error::new(
                ErrorKind::Pruned,
                format!(
                    "seq {} was archived: the log begins at {}",
                    self.next_seq, state.base.next_seq
                ),
            ));
        }
        Ok(())
    }

    /// Ends a batch at a row that can't be followed; an error if no events precede it.
    fn broken(&self, seq: u64, problem: &str) -> Result<()> {
        if self.ready.is_empty() {
            return Err(Error::new(
                ErrorKind::StoreCorrupt,
                format!("seq {seq}: {problem}: run verify"),
            ));
        }
        Ok(())
    }
}
