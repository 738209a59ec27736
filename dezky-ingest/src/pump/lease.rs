//! The lease of a pump: acquired, renewed in time whatever the pump waits for, released.

use std::future::{Future, pending};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use dezky_core::store::{Fence, Lease};
use dezky_core::{AuditStore, Result, Runtime, Timestamp};
use futures_util::future::{Either, select};

/// A lease, and the time of its renewal.
pub(super) struct LeaseKeeper {
    store: Arc<dyn AuditStore>,
    runtime: Arc<dyn Runtime>,
    name: String,
    holder: String,
    ttl: Duration,
    lease: Option<Lease>,
    /// The time of its renewal, by our clock.
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

    /// Whether the lease was ours at the last check.
    pub(super) fn is_held(&self) -> bool {
        self.lease.is_some()
    }

    /// The fence of an append.
    pub(super) fn fence(&self) -> Option<Fence> {
        self.lease.as_ref().map(Lease::fence)
    }

    /// Acquires or renews the lease. Returns whether it is ours.
    pub(super) async fn acquire(&mut self) -> Result<bool> {
        // Counted from before the request, because the store may answer slowly.
        let due = self.runtime.now().saturating_add(self.ttl / 3);
        let lease = self.store.acquire_lease(&self.name, &self.holder, self.ttl).await;
        // Set only now, so that a renewal that is dropped half-way is still due.
        self.due = due;
        self.lease = lease?;
        Ok(self.lease.is_some())
    }

    /// Acquires or renews the lease unless it is ours and not due.
    pub(super) async fn hold(&mut self) -> Result<bool> {
        let left = self.due.saturating_since(self.runtime.now());
        // More is left only if the clock was set back.
        if self.lease.is_some() && !left.is_zero() && left <= self.ttl / 3 {
            return Ok(true);
        }
        self.acquire().await
    }

    /// Renews the lease whenever it is due, and ends when the lease has changed: it is another
    /// replica's, or ours again after another had it. Without a lease it never ends.
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

    /// Does work and renews the lease meanwhile. Returns `None` if the lease was lost first, and
    /// drops the work.
    pub(super) async fn unless_lost<T>(
        &mut self,
        work: impl Future<Output = T> + Unpin,
    ) -> Option<T> {
        match select(work, pin!(self.keep())).await {
            Either::Left((done, _)) => Some(done),
            Either::Right(_) => None,
        }
    }

    /// Does work to its end and renews the lease meanwhile. The fence of the work detects a lost
    /// lease.
    pub(super) async fn keep_during<T>(&mut self, work: impl Future<Output = T>) -> T {
        match select(pin!(work), pin!(self.keep())).await {
            Either::Left((done, _)) => done,
            Either::Right(((), work)) => work.await,
        }
    }

    /// Releases the lease, so that another pump need not wait for it to lapse.
    pub(super) async fn release(&mut self) {
        if let Some(lease) = self.lease.take()
            && let Err(error) = self.store.release_lease(&lease).await
        {
            tracing::debug!(lease = self.name, code = error.code(), "not released: it will lapse");
        }
    }

    /// At most the time between two renewals, in case the clock was set back.
    fn until_due(&self) -> Duration {
        self.due.saturating_since(self.runtime.now()).min(self.ttl / 3)
    }
}
