//! Service accounts of oCIS, which are not people.

use std::collections::BTreeSet;
use std::sync::Arc;

use dezky_core::{ActorType, Error, ErrorKind, PulledEvent, Result, TenantHint};

/// The maximum number of service accounts.
const MAX_ACCOUNTS: usize = 100;

/// The ids of oCIS' service accounts.
#[derive(Debug, Clone)]
pub(super) struct ServiceAccounts(Arc<BTreeSet<String>>);

impl ServiceAccounts {
    pub(super) fn checked(ids: BTreeSet<String>) -> Result<Self> {
        let fits = |id: &String| (1..=512).contains(&id.len());
        if ids.len() > MAX_ACCOUNTS || !ids.iter().all(fits) {
            let what =
                "service_accounts of the oCIS tail must be at most 100 ids of 1 to 512 bytes";
            return Err(Error::new(ErrorKind::ConfigInvalid, what));
        }
        Ok(Self(Arc::new(ids)))
    }

    /// Changes the actor's type to system if it is a service account: it keeps its id, and has no
    /// tenant.
    pub(super) fn see(&self, pulled: &mut PulledEvent) {
        let actor = &mut pulled.event.actor;
        let Some(id) = actor.id.as_ref().filter(|id| self.0.contains(*id)) else { return };
        actor.kind = ActorType::System;
        pulled
            .tenant
            .retain(|hint| !matches!(hint, TenantHint::User { id: user, .. } if user == id));
        pulled.event.metadata.annotate("actorBy", "service_account");
    }
}
