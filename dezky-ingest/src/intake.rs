//! The last step of every way in: find the tenant, seal, append.

use std::sync::Arc;

use dezky_core::source::{PulledEvent, QuarantineItem, TenantDirectory, TenantHint};
use dezky_core::store::{AppendOptions, AuditStore};
use dezky_core::{
    Actor, ErrorKind, Invalid, NewEvent, NewMetadata, Outcome, PLATFORM_SOURCE, Result, Runtime,
    SealedEvent,
};

/// Takes mapped events into the log: pumps and webhooks share it.
#[derive(Clone)]
pub struct Intake {
    store: Arc<dyn AuditStore>,
    runtime: Arc<dyn Runtime>,
    directory: Option<Arc<dyn TenantDirectory>>,
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    /// Events that are new in the log, without our own records about the batch.
    pub stored: usize,
    /// Events that were there already.
    pub duplicates: usize,
    /// Of these, those that say something else than the one that is there.
    pub conflicts: usize,
    /// Items that went to the quarantine, or were there already.
    pub quarantined: usize,
    /// Of these, the new ones.
    pub new_quarantined: usize,
}

impl Taken {
    /// Everything of the batch that is now kept: in the log or in the quarantine.
    pub fn received(&self) -> usize {
        self.stored + self.duplicates + self.quarantined
    }
}

impl Intake {
    /// Appends to `store`; tenants are not inferred until there is a directory.
    pub fn new(store: Arc<dyn AuditStore>, runtime: Arc<dyn Runtime>) -> Self {
        Self { store, runtime, directory: None }
    }

    /// Infers tenants by `directory`.
    #[must_use]
    pub fn with_directory(mut self, directory: Arc<dyn TenantDirectory>) -> Self {
        self.directory = Some(directory);
        self
    }

    /// Where events go.
    pub fn store(&self) -> &Arc<dyn AuditStore> {
        &self.store
    }

    /// The runtime.
    pub fn runtime(&self) -> &Arc<dyn Runtime> {
        &self.runtime
    }

    /// Appends a batch with what must commit with it.
    ///
    /// An event that breaks a bound of the contract goes to the quarantine, the
    /// rest goes on. Every item of the quarantine gets an `ingest.quarantined`
    /// event of its own on the timeline. Idempotent: the same batch again gives
    /// duplicates.
    ///
    /// # Errors
    /// Those of [`AuditStore::append`]; then nothing of the batch is kept.
    pub async fn take(
        &self,
        events: Vec<PulledEvent>,
        quarantine: Vec<QuarantineItem>,
        mut options: AppendOptions,
    ) -> Result<Taken> {
        let mut sealed = Vec::with_capacity(events.len());
        options.quarantine.extend(quarantine);
        for pulled in events {
            let event = self.with_tenant(pulled).await.seal(&*self.runtime);
            match event.validate() {
                Ok(()) => sealed.push(event),
                Err(invalid) => options.quarantine.push(refused(&event, &invalid)),
            }
        }
        let of_source = sealed.len();
        let quarantined = options.quarantine.len();
        sealed.extend(options.quarantine.iter().map(|item| self.notice(item)));
        let appended = self.store.append(sealed, options).await?;
        let receipts = &appended.receipts[..of_source];
        let count = |status| receipts.iter().filter(|r| r.status == status).count();
        let conflicts = count(dezky_core::store::ReceiptStatus::Conflict);
        let stored = count(dezky_core::store::ReceiptStatus::Appended);
        Ok(Taken {
            stored,
            duplicates: of_source - stored,
            conflicts,
            quarantined,
            new_quarantined: appended.new_quarantine,
        })
    }

    /// Asks the directory hint by hint; the event says how its tenant was found.
    /// A directory that can't answer delays nothing: the event lands unresolved.
    async fn with_tenant(&self, pulled: PulledEvent) -> NewEvent {
        let PulledEvent { mut event, tenant } = pulled;
        let Some(directory) = &self.directory else { return event };
        if event.tenant_slug.is_some() {
            return event;
        }
        for hint in &tenant {
            let (answer, via) = match hint {
                TenantHint::Slug { slug, via } => (directory.by_slug(slug).await, *via),
                TenantHint::Domain(domain) => (directory.by_domain(domain).await, "domain"),
                TenantHint::User { system, id } => (directory.by_user(system, id).await, "user"),
            };
            match answer {
                Ok(Some(slug)) => {
                    event.tenant_slug = Some(slug);
                    event.metadata.annotate("tenantBy", via);
                    return event;
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(code = error.code(), "the tenant directory does not answer");
                    event.metadata.annotate("tenantBy", "unresolved");
                    return event;
                }
            }
        }
        event.metadata.annotate("tenantBy", "none");
        event
    }

    /// The timeline's record of a quarantined item: the same item gives the same
    /// record, so a repeated batch adds none.
    fn notice(&self, item: &QuarantineItem) -> SealedEvent {
        tracing::warn!(
            source = item.source,
            reason = item.reason,
            key = item.key,
            "an item was quarantined"
        );
        let mut metadata = NewMetadata::default();
        metadata.annotate("reason", item.reason.clone());
        metadata.annotate("detail", item.detail.clone());
        metadata.annotate("key", item.key.clone());
        let mut event = NewEvent {
            at: Some(item.at),
            outcome: Outcome::Failure,
            resource_type: Some("source".into()),
            resource_id: Some(item.source.clone()),
            source: PLATFORM_SOURCE.into(),
            external_id: Some(notice_id(item)),
            metadata,
            ..NewEvent::new("ingest.quarantined", Actor::system())
        };
        event.cut_to_bounds();
        event.seal(&*self.runtime)
    }
}

fn notice_id(item: &QuarantineItem) -> String {
    use sha2::{Digest, Sha256};
    let digest = Sha256::new()
        .chain_update(item.source.as_bytes())
        .chain_update([0])
        .chain_update(item.key.as_bytes())
        .finalize();
    format!("quarantine:{}", hex::encode(&digest[..20]))
}

/// An event that the contract refuses, kept as it was mapped. Maps redact before
/// they map, so what is kept holds no secret.
fn refused(sealed: &SealedEvent, invalid: &Invalid) -> QuarantineItem {
    use sha2::{Digest, Sha256};
    let event = sealed.event();
    let mut source = event.source.clone();
    source.truncate(source.floor_char_boundary(64));
    let identity = event.external_id.as_deref().unwrap_or(event.metadata.as_str());
    QuarantineItem {
        source,
        key: format!("event:{}", hex::encode(Sha256::digest(identity.as_bytes()))),
        reason: ErrorKind::EventInvalid.code().into(),
        detail: invalid.to_string(),
        raw: serde_json::to_vec(event).unwrap_or_default(),
        at: event.at,
    }
}
