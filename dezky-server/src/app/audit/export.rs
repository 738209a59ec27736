//! Exports of the timeline: what they read, and their events.

use std::time::Duration;

use dezky::Platform;
use dezky_core::store::{AuditStore, ListPage, ListQuery};
use dezky_core::{
    Actor, Edit, Error, ErrorKind, NewEvent, NewMetadata, Outcome, RecordOutcome, Result,
    StoredEvent,
};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::render::export::Format;

/// The number of events per page.
const PAGE_EVENTS: usize = 500;
/// The maximum number of attempts to read a page while the store is unavailable.
const ATTEMPTS: u32 = 4;
/// The pause after a failed attempt.
const PAUSE: Duration = Duration::from_millis(250);

/// The events that match and were in the log when the export began, newest first.
pub(crate) struct Pages {
    query: ListQuery,
    /// Events from here on were appended later, also those with an earlier time.
    end_seq: u64,
    is_over: bool,
}

impl Pages {
    /// The pages of the log as it is now. The limit and the cursor of `filters` are not used.
    ///
    /// # Errors
    /// `query_invalid`; those of the store.
    pub(crate) async fn of(store: &dyn AuditStore, filters: ListQuery) -> Result<Self> {
        let query = ListQuery { limit: PAGE_EVENTS, cursor: None, ..filters };
        query.filter()?;
        let end_seq = store.state().await?.head.next_seq;
        Ok(Self { query, end_seq, is_over: false })
    }

    /// The next events, perhaps none yet; `None` at the end.
    pub(crate) async fn next(
        &mut self,
        store: &dyn AuditStore,
    ) -> Result<Option<Vec<StoredEvent>>> {
        if self.is_over {
            return Ok(None);
        }
        let mut page = self.read(store).await?;
        page.events.retain(|stored| stored.seq < self.end_seq);
        self.is_over = page.next_cursor.is_none();
        self.query.cursor = page.next_cursor;
        Ok(Some(page.events))
    }

    async fn read(&self, store: &dyn AuditStore) -> Result<ListPage> {
        let mut attempts = 1;
        loop {
            match store.list(&self.query).await {
                Err(error) if error.is_retryable() && attempts < ATTEMPTS => {
                    attempts += 1;
                    tokio::time::sleep(PAUSE).await;
                }
                read => return read,
            }
        }
    }
}

/// An export on the timeline.
pub(crate) struct Recorded {
    /// The id of the export: that of its first event.
    pub(crate) id: Uuid,
    by: Edit,
    tenant_slug: Option<String>,
}

/// The end of an export.
pub(crate) struct Ended {
    /// The number of events that were sent.
    pub(crate) events: u64,
    /// The reason why it is not whole, as a stable word; `None` if it is.
    pub(crate) reason: Option<&'static str>,
}

impl Recorded {
    /// Records that an export begins, before anything is read. The event has the tenant whose log
    /// is exported, if it is of one tenant, so that the tenant's own log shows the access.
    ///
    /// # Errors
    /// `store_unavailable` if neither the log nor the spool has the event: then nothing may be
    /// exported.
    pub(crate) async fn begin(
        platform: &Platform,
        by: Edit,
        filters: &ListQuery,
        format: Format,
    ) -> Result<Self> {
        let tenant_slug = filters.tenant_slug.clone().filter(|slug| !slug.is_empty());
        let of_tenant = tenant_slug.as_deref();
        let what = json!({ "format": format.as_str(), "filters": shown(filters) });
        let event = event("audit.exported", &by, of_tenant, what);
        let recorded = platform.log.record(event).await;
        if recorded.outcome == RecordOutcome::Lost {
            return Err(Error::new(
                ErrorKind::StoreUnavailable,
                "an export is recorded before it begins, and the log does not accept events: try again",
            ));
        }
        Ok(Self { id: recorded.id, by, tenant_slug })
    }

    /// Records the end of the export.
    pub(crate) async fn end(self, platform: &Platform, ended: Ended) {
        let mut what = json!({ "events": ended.events, "whole": ended.reason.is_none() });
        if let Some(reason) = ended.reason {
            what["reason"] = reason.into();
        }
        let event = NewEvent {
            resource_id: Some(self.id.to_string()),
            outcome: if ended.reason.is_none() { Outcome::Success } else { Outcome::Failure },
            ..event("audit.export_ended", &self.by, self.tenant_slug.as_deref(), what)
        };
        platform.log.record(event).await;
    }
}

fn event(action: &str, by: &Edit, tenant_slug: Option<&str>, what: Value) -> NewEvent {
    let mut metadata = NewMetadata::from_value(what);
    by.annotate(&mut metadata);
    NewEvent {
        resource_type: Some("audit_export".into()),
        tenant_slug: tenant_slug.map(str::to_owned),
        metadata,
        ..NewEvent::new(action, Actor::clone(&by.actor))
    }
}

/// The filters that are set, by the names of their parameters.
fn shown(filters: &ListQuery) -> Value {
    let mut set = Map::new();
    let time = |time: Option<dezky_core::Timestamp>| time.map(|time| time.to_string());
    for (name, value) in [
        ("since", time(filters.since)),
        ("until", time(filters.until)),
        ("before", time(filters.before)),
        ("action", filters.action.clone()),
        ("tenantSlug", filters.tenant_slug.clone()),
        ("partnerSlug", filters.partner_slug.clone()),
        ("actorId", filters.actor_id.clone()),
        ("actorEmail", filters.actor_email.clone()),
        ("resourceType", filters.resource_type.clone()),
        ("resourceId", filters.resource_id.clone()),
        ("outcome", filters.outcome.map(|outcome| outcome.as_str().to_owned())),
        ("source", filters.source.clone()),
        ("q", filters.q.clone()),
    ] {
        if let Some(value) = value {
            set.insert(name.to_owned(), value.into());
        }
    }
    set.into()
}
