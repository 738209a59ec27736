//! Rows with injected faults, between the real rows in memory and the real `ChainedStore`: they
//! fail as networks, databases and crashes do.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dezky_core::source::QuarantineItem;
use dezky_core::store::engine::{
    CursorKey, ExistingRow, LeaseRow, ListScan, NewRow, RowStore, RowTx, ScanPage, StagedEvent,
};
use dezky_core::store::{
    Capabilities, Head, LogState, MemoryAuditStore, QuarantinedItem, ScannedRow,
};
use dezky_core::{Error, ErrorKind, Result, Runtime, SealedEvent, Timestamp};
use futures_util::future::{Either, select};
use uuid::Uuid;

use super::world::{Fault, Point, Sim};

/// The maximum time that a writer waits for its turn.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// An instance's connection to the shared rows.
pub(super) struct ChaosRows {
    inner: Arc<MemoryAuditStore>,
    sim: Sim,
    who: u64,
}

impl ChaosRows {
    pub(super) fn new(inner: Arc<MemoryAuditStore>, sim: Sim, who: u64) -> Self {
        Self { inner, sim, who }
    }
}

/// The writes of a transaction, recorded at its commit.
#[derive(Default)]
pub(super) struct Commit {
    pub(super) who: u64,
    pub(super) rows: Vec<Row>,
    pub(super) quarantined: Vec<Timestamp>,
    pub(super) cursor: Option<String>,
    pub(super) lease: Option<LeaseRow>,
    /// Whether the lease was acquired or renewed, not released.
    pub(super) takes: bool,
}

pub(super) struct Row {
    pub(super) seq: u64,
    pub(super) source: String,
    pub(super) external_id: Option<String>,
    pub(super) name: Option<String>,
}

impl Sim {
    /// Applies faults at a point where this instance waits for something else.
    pub(super) async fn disturb(&self, who: u64, point: Point) -> Result<()> {
        let fault = self.world().draw(self.runtime().now(), who, point);
        match fault {
            Fault::None => Ok(()),
            Fault::Yield => {
                yield_once().await;
                Ok(())
            }
            Fault::Hang(wait) => {
                self.runtime().sleep(wait).await;
                Ok(())
            }
            Fault::Fail(kind) => Err(Error::new(kind, "injected fault")),
        }
    }
}

async fn yield_once() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

#[async_trait]
impl RowStore for ChaosRows {
    fn capabilities(&self) -> Capabilities {
        self.inner.rows().capabilities()
    }

    async fn begin(&self) -> Result<Box<dyn RowTx>> {
        self.sim.disturb(self.who, Point::Begin).await?;
        let begin = self.inner.rows().begin();
        let tx = match select(begin, self.sim.runtime().sleep(BUSY_TIMEOUT)).await {
            Either::Left((tx, _)) => tx?,
            Either::Right(_) => {
                return Err(Error::new(
                    ErrorKind::StoreBusy,
                    "timed out waiting for another writer",
                ));
            }
        };
        let commit = Commit { who: self.who, ..Commit::default() };
        Ok(Box::new(ChaosTx { tx, sim: self.sim.clone(), commit, now: None }))
    }

    async fn state(&self) -> Result<LogState> {
        self.inner.rows().state().await
    }

    async fn scan(&self, from_seq: i64, max_rows: usize) -> Result<Vec<ScannedRow>> {
        self.inner.rows().scan(from_seq, max_rows).await
    }

    async fn seq_of(&self, id: Uuid) -> Result<Option<i64>> {
        self.inner.rows().seq_of(id).await
    }

    async fn list(&self, scan: &ListScan<'_>) -> Result<ScanPage> {
        self.inner.rows().list(scan).await
    }

    async fn cursor(&self, source: &str) -> Result<Option<String>> {
        self.sim.disturb(self.who, Point::Read).await?;
        let cursor = self.inner.rows().cursor(source).await;
        self.sim.disturb(self.who, Point::Read).await?;
        cursor
    }

    async fn quarantined(&self, after: i64, max_items: usize) -> Result<Vec<QuarantinedItem>> {
        self.inner.rows().quarantined(after, max_items).await
    }

    async fn cursors(&self) -> Result<Vec<(String, String)>> {
        self.inner.rows().cursors().await
    }

    async fn has_staged(&self) -> Result<bool> {
        self.inner.rows().has_staged().await
    }
}

struct ChaosTx {
    tx: Box<dyn RowTx>,
    sim: Sim,
    commit: Commit,
    /// The time that the transaction has read.
    now: Option<Timestamp>,
}

impl ChaosTx {
    async fn disturb(&mut self, point: Point) -> Result<()> {
        self.sim.disturb(self.commit.who, point).await
    }
}

#[async_trait]
impl RowTx for ChaosTx {
    async fn head(&mut self) -> Result<Head> {
        self.tx.head().await
    }

    async fn existing(&mut self, events: &[&SealedEvent]) -> Result<Vec<ExistingRow>> {
        self.disturb(Point::Read).await?;
        self.tx.existing(events).await
    }

    async fn insert(&mut self, rows: &[NewRow<'_>]) -> Result<()> {
        self.disturb(Point::Write).await?;
        self.commit.rows.extend(rows.iter().map(|row| {
            let event = row.event;
            Row {
                seq: row.seq,
                source: event.source.clone(),
                external_id: event.external_id.clone(),
                name: event.resource_id.clone(),
            }
        }));
        self.tx.insert(rows).await
    }

    async fn set_head(&mut self, head: Head) -> Result<()> {
        self.disturb(Point::Write).await?;
        self.tx.set_head(head).await
    }

    async fn cursor(&mut self, source: &str) -> Result<Option<String>> {
        self.tx.cursor(source).await
    }

    async fn set_identity(&mut self, log_id: uuid::Uuid, cursor_key: &CursorKey) -> Result<()> {
        self.tx.set_identity(log_id, cursor_key).await
    }

    async fn set_cursor(&mut self, source: &str, cursor: &str) -> Result<()> {
        self.disturb(Point::Write).await?;
        self.commit.cursor = Some(cursor.to_owned());
        self.tx.set_cursor(source, cursor).await
    }

    async fn now(&mut self) -> Result<Timestamp> {
        let now = self.tx.now().await?;
        self.now = Some(now);
        Ok(now)
    }

    async fn lease(&mut self, name: &str) -> Result<Option<LeaseRow>> {
        self.disturb(Point::Read).await?;
        self.tx.lease(name).await
    }

    async fn set_lease(&mut self, name: &str, row: &LeaseRow) -> Result<()> {
        self.commit.lease = Some(row.clone());
        self.commit.takes = self.now.is_some_and(|now| row.expires_at > now);
        self.tx.set_lease(name, row).await
    }

    async fn quarantine(&mut self, items: &[QuarantineItem]) -> Result<usize> {
        self.disturb(Point::Write).await?;
        self.commit.quarantined.extend(items.iter().map(|item| item.at));
        self.tx.quarantine(items).await
    }

    async fn keep_quarantined(&mut self, items: &[QuarantinedItem]) -> Result<()> {
        self.tx.keep_quarantined(items).await
    }

    async fn release(&mut self, numbers: &[i64]) -> Result<usize> {
        self.tx.release(numbers).await
    }

    async fn stage(&mut self, events: &[SealedEvent]) -> Result<()> {
        self.tx.stage(events).await
    }

    async fn staged(&mut self, max_events: usize) -> Result<Vec<StagedEvent>> {
        self.tx.staged(max_events).await
    }

    async fn unstage(&mut self, numbers: &[i64]) -> Result<()> {
        self.tx.unstage(numbers).await
    }

    async fn commit(mut self: Box<Self>) -> Result<()> {
        // A failure here leaves nothing committed.
        self.disturb(Point::Commit).await?;
        let Self { tx, sim, commit, .. } = *self;
        let who = commit.who;
        tx.commit().await?;
        sim.world().committed(sim.runtime().now(), commit);
        // A failure here leaves everything committed, but the caller does not know.
        sim.disturb(who, Point::Committed).await
    }
}
