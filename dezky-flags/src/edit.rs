//! Changing flags: what platform code calls.

use std::sync::Arc;

use dezky_core::{Actor, AuditLog, Result, Runtime};
use futures_util::lock::Mutex as AsyncMutex;

use crate::store::FlagStore;
use crate::{Flag, FlagPatch, NewFlag};

/// Who changes a flag, and what is known about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// Who.
    pub actor: Actor,
    /// Why, at most 1,000 bytes. A patch's own note comes before it.
    pub note: Option<String>,
    /// The id of the request that asked for it, cut to 128 bytes.
    pub request_id: Option<String>,
    /// The program that asked for it, cut to 512 bytes.
    pub user_agent: Option<String>,
}

impl Edit {
    /// An edit of which only the actor is known.
    pub const fn by(actor: Actor) -> Self {
        Self { actor, note: None, request_id: None, user_agent: None }
    }
}

/// Changes flags, each change together with its event on the timeline.
///
/// Share it by `Arc`.
pub struct Flags {
    store: Arc<dyn FlagStore>,
    log: Arc<AuditLog>,
    runtime: Arc<dyn Runtime>,
    turn: AsyncMutex<()>,
}

impl Flags {
    /// Edits the flags of `store`, whose events go to `log`: the log that the
    /// store stages them in.
    pub fn new(store: Arc<dyn FlagStore>, log: Arc<AuditLog>, runtime: Arc<dyn Runtime>) -> Self {
        Self { store, log, runtime, turn: AsyncMutex::new(()) }
    }

    /// Where the flags are.
    pub fn store(&self) -> &Arc<dyn FlagStore> {
        &self.store
    }

    /// All flags, by key.
    pub async fn list(&self) -> Result<Vec<Flag>> {
        Ok(self.store.snapshot().await?.flags)
    }

    /// The flag with this key.
    pub async fn get(&self, key: &str) -> Result<Option<Flag>> {
        self.store.flag(key).await
    }

    /// Makes a flag; recorded as `flag.created`.
    ///
    /// # Errors
    /// `already_exists`, `field_invalid`, those of [`FlagStore::commit`].
    pub async fn create(&self, new: NewFlag, edit: &Edit) -> Result<Flag> {
        unimplemented(&self.log, &self.runtime, &self.turn, new, edit)
    }

    /// Changes a flag; recorded as `flag.updated`, or `flag.killed` where the patch
    /// [is a kill](FlagPatch::is_kill), its note being the patch's or the edit's.
    ///
    /// With `expected` only if the flag still has that version; without it the patch
    /// is made on whatever the flag is by then. A patch that changes nothing returns
    /// the flag as it is: no version, no event.
    ///
    /// # Errors
    /// `not_found`, `version_mismatch`, `field_invalid`, those of [`FlagStore::commit`].
    pub async fn update(
        &self,
        key: &str,
        patch: &FlagPatch,
        expected: Option<u64>,
        edit: &Edit,
    ) -> Result<Flag> {
        unimplemented(&self.log, &self.runtime, &self.turn, (key, patch, expected), edit)
    }

    /// Switches a flag off for everybody, whatever its version: `state` becomes
    /// `off`, `pct` 0; recorded as `flag.killed`. Idempotent: one that is so already
    /// is returned as it is.
    ///
    /// # Errors
    /// `not_found`, `field_invalid` for the note, those of [`FlagStore::commit`].
    pub async fn kill(&self, key: &str, edit: &Edit) -> Result<Flag> {
        unimplemented(&self.log, &self.runtime, &self.turn, key, edit)
    }

    /// Removes a flag and returns it; recorded as `flag.removed`. With `expected`
    /// only if it still has that version.
    ///
    /// # Errors
    /// `not_found`, `version_mismatch`, `field_invalid` for the note, those of
    /// [`FlagStore::commit`].
    pub async fn remove(&self, key: &str, expected: Option<u64>, edit: &Edit) -> Result<Flag> {
        unimplemented(&self.log, &self.runtime, &self.turn, (key, expected), edit)
    }

    /// Makes those of `flags` that never were, together, and says how many.
    ///
    /// Idempotent. A flag that is there stays as it is, and one that was removed
    /// stays away: what operators did comes first.
    ///
    /// # Errors
    /// `field_invalid`, those of [`FlagStore::commit`].
    pub async fn seed(&self, flags: &[NewFlag], edit: &Edit) -> Result<usize> {
        unimplemented(&self.log, &self.runtime, &self.turn, flags, edit)
    }
}

fn unimplemented<T, A>(
    _: &Arc<AuditLog>,
    _: &Arc<dyn Runtime>,
    _: &AsyncMutex<()>,
    _: A,
    _: &Edit,
) -> Result<T> {
    Err(dezky_core::Error::new(dezky_core::ErrorKind::Internal, "not there yet"))
}
