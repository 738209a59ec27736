//! The part of the timeline that a caller may read.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use dezky_core::StoredEvent;
use dezky_core::store::ListQuery;
use serde::{Serialize, Serializer};

use crate::http::problem::Problem;

/// The part of the timeline that a caller may read.
///
/// The layer that admits the caller puts it into the request's extensions. Without one, nothing is
/// readable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// The whole log.
    Everything,
    /// The events of the tenant with this slug, without `seq`, `prevHash` and `hash`: a gapless
    /// number would count the events of others.
    Tenant(String),
}

impl<S: Send + Sync> FromRequestParts<S> for Scope {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let scope = parts.extensions.get().cloned().filter(Self::is_bound);
        scope.ok_or_else(|| Problem::forbidden("this caller may not read the timeline"))
    }
}

impl Scope {
    /// Whether this is a scope at all. In a query, the empty slug selects the events without a tenant,
    /// which are no tenant's to read.
    fn is_bound(&self) -> bool {
        self.tenant() != Some("")
    }

    /// Whether the caller sees `seq`, `prevHash` and `hash`.
    pub(crate) fn sees_positions(&self) -> bool {
        matches!(self, Self::Everything)
    }

    /// The tenant that a caller is bound to.
    pub(crate) fn tenant(&self) -> Option<&str> {
        match self {
            Self::Everything => None,
            Self::Tenant(slug) => Some(slug),
        }
    }

    /// Restricts a query to this scope. Another tenant's slug is refused rather than replaced, so
    /// that nobody takes one tenant's events for another's.
    pub(super) fn restrict(&self, query: &mut ListQuery) -> Result<(), Problem> {
        let Self::Tenant(own) = self else { return Ok(()) };
        if !self.is_bound() {
            return Err(Problem::forbidden("this caller may not read the timeline"));
        }
        if query.tenant_slug.as_ref().is_some_and(|given| given != own) {
            return Err(Problem::query_invalid(format!(
                "tenantSlug must be {own}, the tenant of this caller: leave it out"
            )));
        }
        query.tenant_slug = Some(own.clone());
        Ok(())
    }

    /// Refuses callers who may not see the whole log.
    pub(super) fn require_everything(&self) -> Result<(), Problem> {
        match self {
            Self::Everything => Ok(()),
            Self::Tenant(_) => {
                Err(Problem::forbidden("only operators may read this: it covers all tenants"))
            }
        }
    }

    /// Whether an event is in this scope.
    pub(super) fn contains(&self, stored: &StoredEvent) -> bool {
        self.tenant().is_none_or(|own| stored.event.tenant_slug.as_deref() == Some(own))
    }
}

/// An event as a caller sees it.
pub(super) struct Shown<'a>(pub(super) &'a StoredEvent, pub(super) &'a Scope);

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.1.sees_positions() {
            self.0.serialize(serializer)
        } else {
            self.0.without_position().serialize(serializer)
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    #[tokio::test]
    async fn an_empty_slug_reads_nothing() {
        for (scope, is_admitted) in [
            (Some(Scope::Everything), true),
            (Some(Scope::Tenant("acme".to_owned())), true),
            (Some(Scope::Tenant(String::new())), false),
            (None, false),
        ] {
            let (mut parts, ()) = Request::new(()).into_parts();
            if let Some(scope) = scope.clone() {
                parts.extensions.insert(scope);
            }
            let taken = Scope::from_request_parts(&mut parts, &()).await;
            assert_eq!(taken.is_ok(), is_admitted, "{scope:?}");
        }
        let mut query = ListQuery::default();
        assert!(Scope::Tenant(String::new()).restrict(&mut query).is_err());
        assert_eq!(query.tenant_slug, None);
    }
}
