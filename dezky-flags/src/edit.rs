//! Editing flags: the interface for platform code.

use std::collections::HashSet;
use std::sync::Arc;

use dezky_core::change::{Edit, check_note, retry, shown};
use dezky_core::{AuditLog, Error, ErrorKind, NewEvent, Result, Runtime, SealedEvent};
use futures_util::lock::Mutex as AsyncMutex;
use serde_json::{Map, Value, json};

use crate::store::{FlagChange, FlagStore, mismatch, not_found};
use crate::{
    Change, ChangeActor, FieldChange, Flag, FlagOptions, FlagPatch, FlagState, LiveFlags,
    MAX_HISTORY, NewFlag, Scope,
};

/// Maximum length of a field's value in a change, in bytes of JSON.
const SHOWN_BYTES: usize = 1 << 10;

/// A flag before and after an update; both are equal if nothing changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Updated {
    /// The flag before the update.
    pub before: Flag,
    /// The flag after the update.
    pub after: Flag,
}

/// Edits flags: each change and its event commit together, or neither does.
///
/// Share it in an `Arc`. The event is usually on the timeline when a call returns; if the log takes
/// longer than [`AuditLog::RELAY_WAIT`], it follows soon after. A dropped call has committed both
/// its change and its event, or neither.
///
/// ```
/// # use std::sync::Arc;
/// use dezky_core::{Actor, AuditLog, rt::TokioRuntime, store::MemoryAuditStore};
/// use dezky_flags::store::DocumentFlagStore;
/// use dezky_flags::{Edit, FlagPatch, FlagState, Flags, NewFlag};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> dezky_core::Result<()> {
/// let runtime = Arc::new(TokioRuntime);
/// let log = Arc::new(MemoryAuditStore::open(runtime.clone()));
/// let flags = Flags::new(
///     Arc::new(DocumentFlagStore::in_memory(log.clone())),
///     Arc::new(AuditLog::new(log, runtime.clone())),
///     runtime,
/// );
/// let edit = Edit::by(Actor::user("u-7"));
/// let flag = flags.create(NewFlag::new("chat.threads"), &edit).await?;
/// let patch = FlagPatch { state: Some(FlagState::On), ..FlagPatch::default() };
/// let flag = flags.update("chat.threads", &patch, &edit.of_version(flag.version)).await?;
/// assert_eq!((flag.version, flag.state), (2, FlagState::On));
/// # Ok(())
/// # }
/// ```
pub struct Flags {
    pub(crate) store: Arc<dyn FlagStore>,
    log: Arc<AuditLog>,
    pub(crate) runtime: Arc<dyn Runtime>,
    /// The live flags that every edit refreshes.
    live: Option<LiveFlags>,
    /// Held while editing: editors within this process queue up instead of racing each other.
    pub(crate) turn: AsyncMutex<()>,
}

impl Flags {
    /// Edits the flags of `store`. `log` must be the log in which the store stages its events.
    pub fn new(store: Arc<dyn FlagStore>, log: Arc<AuditLog>, runtime: Arc<dyn Runtime>) -> Self {
        Self { store, log, runtime, live: None, turn: AsyncMutex::new(()) }
    }

    /// Refreshes `live` before each editing call returns, so that decisions in this process reflect
    /// the edit at once. For other processes see [`LiveFlags`].
    #[must_use]
    pub fn with_live(mut self, live: LiveFlags) -> Self {
        self.live = Some(live);
        self
    }

    /// The store that is edited.
    pub fn store(&self) -> &Arc<dyn FlagStore> {
        &self.store
    }

    /// Returns all flags by key, except [invalid](crate::store::Snapshot::invalid) ones.
    pub async fn list(&self) -> Result<Vec<Flag>> {
        Ok(self.store.snapshot().await?.flags)
    }

    /// Returns the flag with this key.
    ///
    /// # Errors
    /// `state_conflict` for an invalid flag, which can only be killed or removed.
    pub async fn get(&self, key: &str) -> Result<Option<Flag>> {
        match self.read_flag(key).await? {
            Some(Found { invalid: Some(error), .. }) => Err(error),
            found => Ok(found.map(|found| found.flag)),
        }
    }

    /// Creates a flag; recorded as `flag.created`.
    ///
    /// # Errors
    /// `already_exists`, `field_invalid`, and those of [`FlagStore::commit`].
    pub async fn create(&self, new: NewFlag, edit: &Edit) -> Result<Flag> {
        check_note(edit.note.as_deref())?;
        let flag = Flag::new(new, self.runtime.now())?;
        self.commit(None, || async {
            let last = self.store.last_version(&flag.key).await?;
            let (change, event, flag) = self.creation(flag.clone(), last, edit);
            Ok((Some((change, event)), flag))
        })
        .await
    }

    /// Changes a flag; recorded as `flag.updated`, or as `flag.killed` if the patch [is a
    /// kill](FlagPatch::is_kill). The patch's note takes precedence over the edit's.
    ///
    /// A patch that changes nothing returns the flag unchanged, without a new version or an event.
    ///
    /// # Errors
    /// `not_found`, `version_mismatch`, `field_invalid`, and those of [`FlagStore::commit`];
    /// `state_conflict` for an invalid flag, which can only be killed or removed.
    pub async fn update(&self, key: &str, patch: &FlagPatch, edit: &Edit) -> Result<Flag> {
        self.update_and_compare(key, patch, edit).await.map(|updated| updated.after)
    }

    /// Like [`update`](Self::update), but also returns the flag as it was immediately before the
    /// change.
    ///
    /// # Errors
    /// Those of [`update`](Self::update).
    pub async fn update_and_compare(
        &self,
        key: &str,
        patch: &FlagPatch,
        edit: &Edit,
    ) -> Result<Updated> {
        let note = patch.note.clone().or_else(|| edit.note.clone());
        let edit = Edit { note: note.clone(), ..edit.clone() };
        let patch = FlagPatch { note, ..patch.clone() };
        let verb = if patch.is_kill() { "flag.killed" } else { "flag.updated" };
        self.patch(key, verb, &patch, &edit).await
    }

    /// Switches a flag off for everybody, whatever its version: `state` becomes `off` and `pct` 0;
    /// recorded as `flag.killed`. Idempotent: a flag that is already in that state is returned
    /// unchanged. An invalid flag can't be read, so it is replaced by a new flag that is off and
    /// keeps nothing but the key; it can be edited again.
    ///
    /// # Errors
    /// `not_found`, `field_invalid` for the note, and those of [`FlagStore::commit`].
    pub async fn kill(&self, key: &str, edit: &Edit) -> Result<Flag> {
        // Setting the percentage resets the hundredths as well.
        let patch = FlagPatch { state: Some(FlagState::Off), pct: Some(0), ..FlagPatch::default() };
        let edit = Edit { if_version: None, ..edit.clone() };
        self.patch(key, "flag.killed", &patch, &edit).await.map(|updated| updated.after)
    }

    /// Removes a flag and returns it; recorded as `flag.removed`. For an invalid flag, which can't
    /// be read, a flag that is off is returned.
    ///
    /// # Errors
    /// `not_found`, `version_mismatch`, `field_invalid` for the note, and those of
    /// [`FlagStore::commit`].
    pub async fn remove(&self, key: &str, edit: &Edit) -> Result<Flag> {
        check_note(edit.note.as_deref())?;
        self.commit(edit.if_version, || async {
            let Found { flag, invalid } = self.find(key, edit.if_version).await?;
            let shown = invalid.is_none().then_some(&flag);
            let event = self.seal("flag.removed", &flag.key, &differences(shown, None), edit);
            let change = FlagChange::Remove { key: flag.key.clone(), version: flag.version };
            Ok((Some((change, event)), flag))
        })
        .await
    }

    /// Creates those of `flags` whose keys have never existed, in one commit, and returns their
    /// number; each is recorded as `flag.created`.
    ///
    /// Idempotent. Existing flags stay unchanged and removed flags stay removed: operators' changes
    /// take precedence.
    ///
    /// # Errors
    /// `field_invalid`, also for a duplicate key and for an edit [of a version](Edit::if_version);
    /// those of [`FlagStore::commit`].
    pub async fn seed(&self, flags: &[NewFlag], edit: &Edit) -> Result<usize> {
        check_edit_of_several(edit)?;
        let now = self.runtime.now();
        let flags: Vec<_> =
            flags.iter().map(|new| Flag::new(new.clone(), now)).collect::<Result<_>>()?;
        let mut keys = HashSet::new();
        if let Some(twice) = flags.iter().find(|flag| !keys.insert(&*flag.key)) {
            return Err(Error::new(
                ErrorKind::FieldInvalid,
                format!("key: {} is given twice: leave one of the flags out", twice.key),
            ));
        }
        let turn = self.turn.lock().await;
        let seeded = retry(&*self.runtime, None, || async {
            let (mut changes, mut events) = (Vec::new(), Vec::new());
            for flag in &flags {
                if self.store.last_version(&flag.key).await? == 0 {
                    let (change, event, _) = self.creation(flag.clone(), 0, edit);
                    changes.push(change);
                    events.push(event);
                }
            }
            let new = changes.len();
            if new > 0 {
                // Another process may be seeding at the same time.
                self.store.commit(changes, events).await.map_err(as_version_mismatch)?;
            }
            Ok(new)
        });
        let new = seeded.await?;
        drop(turn);
        if new > 0 {
            self.publish().await;
        }
        Ok(new)
    }

    async fn patch(
        &self,
        key: &str,
        verb: &str,
        patch: &FlagPatch,
        edit: &Edit,
    ) -> Result<Updated> {
        check_note(edit.note.as_deref())?;
        self.commit(edit.if_version, || async {
            let Found { flag: before, invalid } = self.find(key, edit.if_version).await?;
            let shown = invalid.is_none().then_some(&before);
            if let Some(error) = invalid
                && verb != "flag.killed"
            {
                return Err(error);
            }
            let mut after = before.patched(patch)?;
            if shown == Some(&after) {
                return Ok((None, Updated { before, after }));
            }
            after.version += 1;
            let step = self.replacement(verb, shown, &mut after, edit);
            Ok((Some(step), Updated { before, after }))
        })
        .await
    }

    /// Commits the change that `plan` makes, if any, and publishes it; plans again if another
    /// editor was faster.
    async fn commit<T, F>(&self, expects: Option<u64>, plan: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<(Option<(FlagChange, SealedEvent)>, T)>>,
    {
        let turn = self.turn.lock().await;
        let committed = retry(&*self.runtime, expects, || async {
            let (step, planned) = plan().await?;
            let is_changed = step.is_some();
            if let Some((change, event)) = step {
                self.store.commit(vec![change], vec![event]).await?;
            }
            Ok((is_changed, planned))
        });
        let (is_changed, planned) = committed.await?;
        // The next editor need not wait for the timeline.
        drop(turn);
        if is_changed {
            self.publish().await;
        }
        Ok(planned)
    }

    /// Returns the flag, provided that it has the expected version.
    async fn find(&self, key: &str, expected: Option<u64>) -> Result<Found> {
        let found = self.read_flag(key).await?.ok_or_else(|| not_found(key))?;
        if expected.is_some_and(|version| version != found.flag.version) {
            return Err(mismatch(key));
        }
        Ok(found)
    }

    /// Returns the flag, or for an unreadable one its version and the error.
    async fn read_flag(&self, key: &str) -> Result<Option<Found>> {
        let error = match self.store.flag(key).await {
            Ok(flag) => return Ok(flag.map(|flag| Found { flag, invalid: None })),
            Err(error) if error.kind() == ErrorKind::StoreCorrupt => error,
            Err(error) => return Err(error),
        };
        // If the flag can't be read but its version can, the flag is invalid. Otherwise the store
        // has another fault.
        let version = self.store.last_version(key).await?;
        let Ok(flag) = Flag::new(NewFlag::new(key), self.runtime.now()) else {
            return Err(error);
        };
        let invalid = Error::new(ErrorKind::StateConflict, error.to_string());
        Ok(Some(Found { flag: Flag { version, ..flag }, invalid: Some(invalid) }))
    }

    /// The change that replaces `before` with `after`, which already has the next version, and its
    /// event. `before` is `None` if it can't be read.
    pub(crate) fn replacement(
        &self,
        verb: &str,
        before: Option<&Flag>,
        after: &mut Flag,
        edit: &Edit,
    ) -> (FlagChange, SealedEvent) {
        let changes = differences(before, Some(after));
        let event = self.seal(verb, &after.key, &changes, edit);
        add_to_history(after, &event, changes, edit);
        (FlagChange::Replace(Box::new(after.clone())), event)
    }

    /// The change that creates `flag`, its event, and the flag as it will be stored.
    pub(crate) fn creation(
        &self,
        mut flag: Flag,
        last: u64,
        edit: &Edit,
    ) -> (FlagChange, SealedEvent, Flag) {
        let changes = differences(None, Some(&flag));
        let event = self.seal("flag.created", &flag.key, &changes, edit);
        flag.version = last + 1;
        flag.created_at = event.event().at;
        add_to_history(&mut flag, &event, changes, edit);
        (FlagChange::Create(Box::new(flag.clone())), event, flag)
    }

    fn seal(&self, verb: &str, key: &str, changes: &[FieldChange], edit: &Edit) -> SealedEvent {
        let mut event = NewEvent {
            resource_type: Some("flag".into()),
            resource_id: Some(key.to_owned()),
            resource_name: Some(key.to_owned()),
            ..NewEvent::new(verb, edit.actor.clone())
        };
        let side = |value: fn(&FieldChange) -> &Value| -> Map<String, Value> {
            changes.iter().map(|c| (c.field.clone(), value(c).clone())).collect()
        };
        event.metadata.annotate("before", side(|change| &change.from));
        event.metadata.annotate("after", side(|change| &change.to));
        edit.annotate(&mut event.metadata);
        self.log.seal(event)
    }

    /// Refreshes the live flags and relays the commit's events onto the timeline.
    pub(crate) async fn publish(&self) {
        if let Some(live) = &self.live {
            // If the store can't be read now, the next poll refreshes the flags.
            let _ = live.refresh().await;
        }
        self.log.relay(AuditLog::RELAY_WAIT).await;
    }
}

/// A flag to be changed.
struct Found {
    flag: Flag,
    /// The error if the flag can't be read; `flag` is then a substitute that is off.
    invalid: Option<Error>,
}

/// Checks an edit of several flags, which have no version in common.
pub(crate) fn check_edit_of_several(edit: &Edit) -> Result<()> {
    if edit.if_version.is_some() {
        return Err(Error::new(
            ErrorKind::FieldInvalid,
            "if_version can't be given for several flags: leave it out, or update each flag alone",
        ));
    }
    check_note(edit.note.as_deref())
}

/// Turns the error of another editor's creation, change or removal into `version_mismatch`, which
/// is retried.
pub(crate) fn as_version_mismatch(error: Error) -> Error {
    match error.kind() {
        ErrorKind::AlreadyExists | ErrorKind::NotFound => {
            Error::new(ErrorKind::VersionMismatch, error.to_string())
        }
        _ => error,
    }
}

/// Adds the change to the flag's history, with the data of its event.
fn add_to_history(flag: &mut Flag, event: &SealedEvent, changes: Vec<FieldChange>, edit: &Edit) {
    let event = event.event();
    flag.updated_at = event.at;
    flag.history.truncate(MAX_HISTORY - 1);
    let actor = ChangeActor {
        kind: event.actor_type,
        id: event.actor_id.clone(),
        email: event.actor_email.clone(),
    };
    flag.history.insert(0, Change { at: event.at, actor, changes, note: edit.note.clone() });
}

/// The fields in which two states of a flag differ. `None` stands for a flag that does not exist.
fn differences(before: Option<&Flag>, after: Option<&Flag>) -> Vec<FieldChange> {
    let field = |name: &str, value: fn(&Flag) -> Value| {
        let (from, to) = (before.map_or(Value::Null, value), after.map_or(Value::Null, value));
        (from != to).then(|| FieldChange { field: name.to_owned(), from, to })
    };
    // Options that are at their defaults on both sides are not mentioned.
    let option = |name: &str, value: fn(&FlagOptions) -> Value| {
        let value =
            |flag: Option<&Flag>| value(flag.map_or(&FlagOptions::default(), |f| &f.options));
        let (from, to) = (value(before), value(after));
        (from != to).then(|| FieldChange { field: name.to_owned(), from, to })
    };
    let mut changes: Vec<_> = [
        field("description", |flag| json!(flag.description)),
        field("state", |flag| json!(flag.state)),
        field("pct", |flag| json!(flag.pct)),
        option("options.seed", |options| json!(options.seed)),
        option("options.pctHundredths", |options| json!(options.pct_hundredths)),
        option("options.requireActiveTenant", |options| json!(options.require_active_tenant)),
        option("options.expiresAt", |options| json!(options.expires_at)),
    ]
    .into_iter()
    .flatten()
    .collect();
    let nobody = Scope::default();
    let (from, to) = (before.map_or(&nobody, |f| &f.scope), after.map_or(&nobody, |f| &f.scope));
    for ((name, from), (_, to)) in from.axes().into_iter().zip(to.axes()) {
        if from != to {
            let (from, to) = (json!(from), json!(to));
            let shown = |value, other| shown(value, Some(other), SHOWN_BYTES);
            let (from, to) = (shown(&from, &to), shown(&to, &from));
            changes.push(FieldChange { field: name.to_owned(), from, to });
        }
    }
    changes
}
