//! Finds the tenants of events from the hints of their sources.

use std::collections::HashMap;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::{Either, select};

use crate::source::{TenantDirectory, TenantHint};
use crate::{Error, ErrorKind, Runtime, SealedEvent, Timestamp};

/// The annotation that states how an event's tenant was found.
pub const TENANT_BY: &str = "tenantBy";
/// Its value while the directory has not answered.
pub const UNRESOLVED: &str = "unresolved";

/// Time limit for one answer of the directory.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Time limit for all answers of a batch.
const BATCH_TIMEOUT: Duration = Duration::from_secs(10);

/// The directory's answer about an event's tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FoundTenant {
    /// The tenant, and the hint that found it: the value of `_dezky.tenantBy`.
    Tenant {
        /// The tenant's slug.
        slug: String,
        /// The hint that found the tenant.
        via: &'static str,
    },
    /// The directory knows no tenant for any hint.
    Nobody,
    /// The directory did not answer and must be asked again.
    NoAnswer,
}

/// Finds the tenants of one batch. Each question is asked once, and none after the directory
/// failed, took over 2 s for one answer or over 10 s for the batch: otherwise every event would
/// wait for an unavailable directory.
pub struct TenantFinder<'d> {
    directory: &'d dyn TenantDirectory,
    runtime: &'d dyn Runtime,
    /// By kind or system, and by the value looked up.
    answers: HashMap<(&'static str, String), Option<String>>,
    failed: bool,
    until: Timestamp,
}

impl<'d> TenantFinder<'d> {
    /// Looks tenants up in `directory`.
    pub fn new(directory: &'d dyn TenantDirectory, runtime: &'d dyn Runtime) -> Self {
        let until = runtime.now().saturating_add(BATCH_TIMEOUT);
        Self { directory, runtime, answers: HashMap::new(), failed: false, until }
    }

    /// Tries the hints in order, best first.
    pub async fn find(&mut self, hints: &[TenantHint]) -> FoundTenant {
        for hint in hints {
            match self.ask(hint).await {
                Some(Some(slug)) => return FoundTenant::Tenant { slug, via: hint.via() },
                Some(None) => {}
                None => return FoundTenant::NoAnswer,
            }
        }
        FoundTenant::Nobody
    }

    /// The answer to a hint; `None` if the directory does not answer.
    async fn ask(&mut self, hint: &TenantHint) -> Option<Option<String>> {
        let question = match hint {
            TenantHint::Slug { slug, .. } => ("slug", slug.clone()),
            TenantHint::Domain(domain) => ("domain", domain.clone()),
            TenantHint::User { system, id } => (*system, format!("user {id}")),
        };
        if let Some(answer) = self.answers.get(&question) {
            return Some(answer.clone());
        }
        if self.failed {
            return None;
        }
        let answer = match hint {
            TenantHint::Slug { slug, .. } => self.directory.by_slug(slug),
            TenantHint::Domain(domain) => self.directory.by_domain(domain),
            TenantHint::User { system, id } => self.directory.by_user(system, id),
        };
        // Created when polled: most answers arrive before a timer is needed.
        let timeout = pin!(async {
            let left = self.until.saturating_since(self.runtime.now());
            self.runtime.sleep(left.min(ANSWER_TIMEOUT)).await;
        });
        let answer = match select(answer, timeout).await {
            Either::Left((answer, _)) => answer,
            Either::Right(_) => Err(Error::new(ErrorKind::StoreUnavailable, "no answer in time")),
        };
        match answer {
            Ok(answer) => {
                // A value that can't be a slug would make the store reject the event.
                let answer = answer.filter(|slug| (1..=63).contains(&slug.len()));
                self.answers.insert(question, answer.clone());
                Some(answer)
            }
            Err(error) => {
                tracing::warn!(code = error.code(), "the tenant directory does not answer");
                self.failed = true;
                None
            }
        }
    }
}

impl TenantHint {
    /// The value of `_dezky.tenantBy` if this hint finds the tenant.
    pub fn via(&self) -> &'static str {
        match self {
            Self::Slug { via, .. } => via,
            Self::Domain(_) => "domain",
            Self::User { .. } => "user",
        }
    }
}

/// An event for which the directory was not available, and its tenant hints.
///
/// Its id, `receivedAt` and salt are fixed; `tenantSlug` and `_dezky.tenantBy` are not until it is
/// appended to a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnresolvedEvent {
    /// The event without an answer: its `_dezky.tenantBy` is `unresolved`.
    pub event: SealedEvent,
    /// Candidates for its tenant, best first.
    pub tenant: Vec<TenantHint>,
}

impl UnresolvedEvent {
    /// Applies the directory's answer; without an answer the event stays as it is.
    pub fn resolve(self, found: &FoundTenant) -> SealedEvent {
        let (slug, via) = match found {
            FoundTenant::Tenant { slug, via } => (Some(slug.clone()), *via),
            FoundTenant::Nobody => (None, "none"),
            FoundTenant::NoAnswer => return self.event,
        };
        let mut event = self.event.event().clone();
        event.tenant_slug = slug;
        // No value is longer than `unresolved`, so it fits wherever that did.
        if let Some(metadata) = event.metadata.annotated(TENANT_BY, &via.into()) {
            event.metadata = metadata;
        }
        SealedEvent::new(event, *self.event.salt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::ManualRuntime;
    use crate::{Actor, NewEvent};

    #[test]
    fn an_event_at_its_bound_has_room_for_the_answer() {
        let runtime = ManualRuntime::new(1);
        let event = |bytes| {
            let mut event = NewEvent::new("a.b", Actor::system());
            let text = serde_json::json!({ "text": "x".repeat(bytes) });
            event.metadata = crate::NewMetadata::from_source(text.to_string());
            event.metadata.annotate(TENANT_BY, UNRESOLVED);
            event.seal(&runtime)
        };
        // The largest size that is stored unchanged.
        let is_whole = |bytes: &usize| event(*bytes).event().metadata.as_str().len() > *bytes;
        let whole = (60_000..66_000).rev().find(is_whole).unwrap();
        assert!(!is_whole(&(whole + 1)), "{whole}");
        for via in
            ["none", "domain", "user", "group", "mapping", "space_map", "space_name", "spool"]
        {
            let found = FoundTenant::Tenant { slug: "t".repeat(63), via };
            let unresolved = UnresolvedEvent { event: event(whole), tenant: Vec::new() };
            let resolved = unresolved.resolve(&found);
            assert_eq!(resolved.event().metadata.to_value()["_dezky"][TENANT_BY], via);
            assert_eq!(resolved.validate(), Ok(()));
        }
    }
}
