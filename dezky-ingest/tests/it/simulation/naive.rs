//! Plausible pumps with one mistake each, which prove that the simulation finds such mistakes.

use std::sync::Arc;
use std::time::Duration;

use dezky_core::source::{IngestSource, Pull, PullLimits};
use dezky_core::store::{AppendOptions, AuditStore, CursorAdvance, Lease};
use dezky_core::{Result, Runtime, SealedEvent};
use dezky_ingest::{IngestSummary, Intake};

use super::Driver;
use super::upstream::{SOURCE, SimSource};

pub(super) struct Naive {
    pub(super) mistake: Driver,
    pub(super) source: SimSource,
    pub(super) store: Arc<dyn AuditStore>,
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) holder: String,
    pub(super) pulls: u64,
}

impl Naive {
    pub(super) async fn run(mut self) {
        loop {
            // Like the real pump, retries after any error.
            let _ = self.round().await;
            self.runtime.sleep(Duration::from_secs(1)).await;
        }
    }

    async fn round(&mut self) -> Result<()> {
        let ttl = Duration::from_secs(6);
        let Some(lease) = self.store.acquire_lease("ingest:sim", &self.holder, ttl).await? else {
            return Ok(());
        };
        let mut cursor = self.store.cursor(SOURCE).await?;
        loop {
            let pull = self.source.pull(cursor.as_deref(), PullLimits::default()).await?;
            let Some(to) = pull.cursor.clone().filter(|to| Some(to) != cursor.as_ref()) else {
                return Ok(());
            };
            let moved = self.take(&lease, pull, cursor, to.clone()).await;
            match self.mistake {
                // Ignores the error.
                Driver::Swallows => {}
                _ => moved?,
            }
            cursor = Some(to);
        }
    }

    async fn take(
        &mut self,
        lease: &Lease,
        mut pull: Pull,
        from: Option<String>,
        to: String,
    ) -> Result<()> {
        let fence = (self.mistake != Driver::Unfenced).then(|| lease.fence());
        let from = match self.mistake {
            Driver::Swallows => self.store.cursor(SOURCE).await?,
            _ => from,
        };
        let cursor = Some(CursorAdvance { source: SOURCE.into(), from, to });
        let with =
            |cursor| AppendOptions { cursor, fence: fence.clone(), ..AppendOptions::default() };
        let intake = Intake::new(Arc::clone(&self.store), Arc::clone(&self.runtime));
        match self.mistake {
            Driver::CursorFirst => {
                self.store.append(Vec::<SealedEvent>::new(), with(cursor)).await?;
                intake.ingest(pull.events, pull.quarantine, with(None)).await?;
            }
            Driver::CursorLater => {
                self.pulls += 1;
                for pulled in &mut pull.events {
                    let id = pulled.event.external_id.take().unwrap_or_default();
                    pulled.event.external_id = Some(format!("{id}-{}-{}", self.holder, self.pulls));
                }
                intake.ingest(pull.events, pull.quarantine, with(None)).await?;
                self.store.append(Vec::<SealedEvent>::new(), with(cursor)).await?;
            }
            _ => {
                let _: IngestSummary =
                    intake.ingest(pull.events, pull.quarantine, with(cursor)).await?;
            }
        }
        Ok(())
    }
}
