//! The lease of a pump: taken, renewed in time whatever the pump waits for, given
//! back.

use std::future::{Future, pending};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use dezky_core::store::{Fence, Lease};
use dezky_core::{AuditStore, Result, Runtime, Timestamp};
use futures_util::future::{Either, select};

/// A lease, and when it is to be renewed.
pub(super) struct LeaseKeeper {
    store: Arc<dyn AuditStore>,
    runtime: Arc<dyn Runtime>,
    name: String,
    holder: String,
    ttl: Duration,
    lease: Option<Lease>,
    /// When it is renewed, by our clock.
    due: Timestamp,
}

impl LeaseKeeper {
    pub(super) fn new(
        store: Arc<dyn AuditStore>,
        runtime: Arc<dyn Runtime>,
        name: String,
        holder: String,
        ttl: Duration,
    ) -> Self {
        Self { store, runtime, name, holder, ttl, lease: None, due: Timestamp::MIN }
    }

    /// Whether the lease was ours when it was last looked at.
    pub(super) fn is_held(&self) -> bool {
        self.lease.is_some()
    }

    /// The condition for an append.
    pub(super) fn fence(&self) -> Option<Fence> {
        self.lease.as_ref().map(Lease::fence)
    }

    /// Takes or renews the lease; says whether it is ours.
    pub(super) async fn acquire(&mut self) -> Result<bool> {
        // From before the store's answer, which may take its time.
        let due = self.runtime.now().saturating_add(self.ttl / 3);
        let lease = self.store.acquire_lease(&self.name, &self.holder, self.ttl).await;
        // Not before: a renewal that is dropped half way is still due.
        self.due = due;
        self.lease = lease?;
        Ok(self.lease.is_some())
    }

    /// The same, unless it is ours and need not be renewed yet.
    pub(super) async fn hold(&mut self) -> Result<bool> {
        let left = self.due.saturating_since(self.runtime.now());
        // More is left only where the clock was set back.
        if self.lease.is_some() && !left.is_zero() && left <= self.ttl / 3 {
            return Ok(true);
        }
        self.acquire().await
    }

    /// Renews the lease whenever it is due, and ends when it is not what it was:
    /// another one's, or ours again after it had lapsed. Without a lease it never
    /// ends.
    pub(super) async fn keep(&mut self) {
        let Some(token) = self.lease.as_ref().map(|lease| lease.token) else {
            return pending().await;
        };
        loop {
            self.runtime.sleep(self.until_due()).await;
            match self.acquire().await {
                Ok(_) if self.lease.as_ref().is_some_and(|lease| lease.token == token) => {}
                Ok(_) => return,
                // It may still be ours; the fence protects the log.
                Err(error) => {
                    tracing::debug!(lease = self.name, code = error.code(), "not renewed");
                }
            }
        }
    }

    /// Does work and renews the lease meanwhile; `None` if it was lost before the
    /// end, and the work dropped.
    pub(super) async fn unless_lost<T>(
        &mut self,
        work: impl Future<Output = T> + Unpin,
    ) -> Option<T> {
        match select(work, pin!(self.keep())).await {
            Either::Left((done, _)) => Some(done),
            Either::Right(_) => None,
        }
    }

    /// Does work that must come to its end, and renews the lease meanwhile. The
    /// fence of the work says whether the lease was lost.
    pub(super) async fn keep_during<T>(&mut self, work: impl Future<Output = T>) -> T {
        match select(pin!(work), pin!(self.keep())).await {
            Either::Left((done, _)) => done,
            Either::Right(((), work)) => work.await,
        }
    }

    /// Gives the lease back, so that another pump need not wait for it to lapse.
    pub(super) async fn release(&mut self) {
        if let Some(lease) = self.lease.take()
            && let Err(error) = self.store.release_lease(&lease).await
        {
            tracing::debug!(
                lease = self.name,
                code = error.code(),
                "not given back: it will lapse"
            );
        }
    }

    /// Never longer than from one renewal to the next, should the clock be set back.
    fn until_due(&self) -> Duration {
        self.due.saturating_since(self.runtime.now()).min(self.ttl / 3)
    }
}
