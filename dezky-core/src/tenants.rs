//! Finding out whose an event is, by the hints of its source.

use std::collections::HashMap;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::{Either, select};

use crate::source::{TenantDirectory, TenantHint};
use crate::{Error, ErrorKind, Runtime, SealedEvent, Timestamp};

/// The annotation that says how an event's tenant was found.
pub const TENANT_BY: &str = "tenantBy";
/// Its value while the directory has not answered.
pub const UNRESOLVED: &str = "unresolved";

/// How long the directory may take for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long for all of a batch.
const BATCH_TIMEOUT: Duration = Duration::from_secs(10);

/// The answer about an event's tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FoundTenant {
    /// The tenant, and which hint found it: the value of `_dezky.tenantBy`.
    Tenant {
        /// Its slug.
        slug: String,
        /// Which hint found it.
        via: &'static str,
    },
    /// The directory knows none for any hint.
    Nobody,
    /// The directory did not answer, so it is to be asked again.
    NoAnswer,
}

/// Finds the tenants of one batch, each question asked once, and none after the directory
/// failed, took over 2 s for an answer or over 10 s for all: a directory that is away
/// would otherwise be waited for once for every event.
pub struct TenantFinder<'d> {
    directory: &'d dyn TenantDirectory,
    runtime: &'d dyn Runtime,
    /// By kind or system, and by what was asked.
    answers: HashMap<(&'static str, String), Option<String>>,
    failed: bool,
    until: Timestamp,
}

impl<'d> TenantFinder<'d> {
    /// Asks `directory`.
    pub fn new(directory: &'d dyn TenantDirectory, runtime: &'d dyn Runtime) -> Self {
        let until = runtime.now().saturating_add(BATCH_TIMEOUT);
        Self { directory, runtime, answers: HashMap::new(), failed: false, until }
    }

    /// Asks hint by hint, best first.
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

    /// The answer to a hint; `None` if there is none to be had.
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
        // Made when it is polled: most answers are there before a timer is.
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
                // What can't be a slug would be refused, and the event with it.
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
    /// The value of `_dezky.tenantBy` for a tenant that was found.
    pub fn via(&self) -> &'static str {
        match self {
            Self::Slug { via, .. } => via,
            Self::Domain(_) => "domain",
            Self::User { .. } => "user",
        }
    }
}

/// An event whose tenant could not be asked for, and the hints to ask with.
///
/// Its id, `receivedAt` and salt are fixed; `tenantSlug` and `_dezky.tenantBy` are not
/// until it goes into a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnresolvedEvent {
    /// The event as it stands without an answer, `_dezky.tenantBy` being `unresolved`.
    pub event: SealedEvent,
    /// Candidates for its tenant, best first.
    pub tenant: Vec<TenantHint>,
}

impl UnresolvedEvent {
    /// The event with the directory's answer; as it stands without one.
    pub fn resolve(self, found: &FoundTenant) -> SealedEvent {
        let (slug, via) = match found {
            FoundTenant::Tenant { slug, via } => (Some(slug.clone()), *via),
            FoundTenant::Nobody => (None, "none"),
            FoundTenant::NoAnswer => return self.event,
        };
        let mut event = self.event.event().clone();
        event.tenant_slug = slug;
        // Whatever found it is no longer a word than `unresolved`, so it fits where that did.
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
        // The longest that is taken as it is.
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
