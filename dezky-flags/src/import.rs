//! Importing flag definitions.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use dezky_core::change::retry;
use dezky_core::{Error, ErrorKind, Result, SealedEvent};
use futures_util::lock::Mutex as AsyncMutex;
use serde::Serialize;

use crate::edit::{as_version_mismatch, check_edit_of_several};
use crate::store::{FlagChange, MAX_COMMIT_CHANGES, MAX_FLAGS};
use crate::{Edit, Flag, Flags, NewFlag};

/// Maximum size of one commit of an import, in bytes of JSON. A single larger flag is still
/// committed.
const MAX_COMMIT_BYTES: usize = 4 << 20;
const DIFFERS: &str = "it exists with a different definition: import with overwrite to replace it";
const UNREADABLE: &str = "it exists but can't be read: remove it first";

/// Options of an import.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImportMode {
    /// Replaces existing flags whose definitions differ; without it these are
    /// [refused](ImportOutcome::Refused).
    pub overwrite: bool,
    /// Reports the outcome for each flag without changing anything.
    pub dry_run: bool,
}

/// The outcome of an import, by key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Imported {
    /// Each flag's outcome.
    pub flags: BTreeMap<String, ImportOutcome>,
}

/// The outcome for one imported flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "outcome")]
#[non_exhaustive]
pub enum ImportOutcome {
    /// No flag with its key existed.
    Created,
    /// The flag now has the imported definition, in a new version.
    Updated,
    /// The flag already had the imported definition.
    Unchanged,
    /// The flag was left unchanged.
    Refused {
        /// The reason, and how to resolve it.
        problem: &'static str,
    },
}

impl ImportOutcome {
    /// The outcome in one word, as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Unchanged => "unchanged",
            Self::Refused { .. } => "refused",
        }
    }
}

impl fmt::Display for ImportOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())?;
        match self {
            Self::Refused { problem } => write!(f, ": {problem}"),
            _ => Ok(()),
        }
    }
}

impl Imported {
    /// The number of flags with the outcome of this name.
    pub fn count(&self, outcome: &str) -> usize {
        self.flags.values().filter(|of| of.as_str() == outcome).count()
    }
}

/// The steps of an import.
#[derive(Default)]
struct Plan {
    outcomes: BTreeMap<String, ImportOutcome>,
    steps: Vec<Step>,
}

/// A flag's change and its event.
struct Step {
    change: FlagChange,
    event: SealedEvent,
    outcome: ImportOutcome,
}

impl Flags {
    /// Imports flag definitions: creates missing flags and, if the mode allows it, replaces
    /// existing ones that differ. A replacement is an ordinary edit: it makes a new version, keeps
    /// the history and is recorded as `flag.updated`.
    ///
    /// Everything is checked before anything is written. Idempotent: importing the same flags again
    /// changes nothing. Up to 1,000 changes and 4 MiB of flags commit together; a larger import
    /// takes several commits. If one of them fails, those before it persist, and repeating the
    /// import continues after them. Removed flags are created again, because importing them is a
    /// deliberate act. Other editors wait for one commit at most, and their changes to flags
    /// already committed are not overwritten.
    ///
    /// # Errors
    /// `field_invalid` names the flag, also for a duplicate key; `field_invalid` also for an edit
    /// [of a version](Edit::if_version); `state_conflict` if the store would have more than 10,000
    /// flags; those of
    /// [`FlagStore::commit`](crate::store::FlagStore::commit).
    pub async fn import(
        &self,
        flags: &[NewFlag],
        mode: ImportMode,
        edit: &Edit,
    ) -> Result<Imported> {
        check_edit_of_several(edit)?;
        let flags = self.checked(flags)?;
        let done = AsyncMutex::new(HashMap::new());
        let result = retry(&*self.runtime, None, || async {
            let mut done = done.lock().await;
            let Plan { outcomes, steps } = self.plan(&flags, mode, edit, &done).await?;
            if !mode.dry_run {
                self.carry_out(steps, &mut done).await?;
            }
            Ok(Imported { flags: outcomes })
        });
        let result = result.await;
        if !done.into_inner().is_empty() {
            self.publish().await;
        }
        result
    }

    async fn carry_out(
        &self,
        mut steps: Vec<Step>,
        done: &mut HashMap<String, ImportOutcome>,
    ) -> Result<()> {
        while !steps.is_empty() {
            let rest = steps.split_off(fitting(&steps));
            let mut keys = Vec::with_capacity(steps.len());
            let (mut changes, mut events) = (Vec::new(), Vec::new());
            for Step { change, event, outcome } in steps {
                keys.push((change.key().to_owned(), outcome));
                changes.push(change);
                events.push(event);
            }
            // One turn per commit: killing a flag must not wait for the whole import.
            let turn = self.turn.lock().await;
            let committed = self.store.commit(changes, events).await;
            drop(turn);
            committed.map_err(as_version_mismatch)?;
            done.extend(keys);
            steps = rest;
        }
        Ok(())
    }

    /// Validates the flags and rejects duplicate keys.
    fn checked(&self, flags: &[NewFlag]) -> Result<Vec<Flag>> {
        let now = self.runtime.now();
        let (mut keys, mut checked) = (HashSet::new(), Vec::with_capacity(flags.len()));
        for new in flags {
            let about = |problem: &str| {
                let key = if crate::model::is_key(&new.key) { &new.key } else { "(invalid key)" };
                Error::new(ErrorKind::FieldInvalid, format!("flag {key}: {problem}"))
            };
            let flag = Flag::new(new.clone(), now).map_err(|error| about(&error.to_string()))?;
            if !keys.insert(&new.key) {
                return Err(about("its key is given twice: leave one of the flags out"));
            }
            checked.push(flag);
        }
        Ok(checked)
    }

    /// Compares the flags with the store's. Flags in `done` were committed before another editor
    /// interfered; they are not touched again.
    async fn plan(
        &self,
        flags: &[Flag],
        mode: ImportMode,
        edit: &Edit,
        done: &HashMap<String, ImportOutcome>,
    ) -> Result<Plan> {
        let snapshot = self.store.snapshot().await?;
        let here: HashMap<_, _> = snapshot.flags.iter().map(|f| (f.key.as_str(), f)).collect();
        let unreadable: HashSet<_> = snapshot.invalid.iter().map(|f| f.key.as_str()).collect();
        let is_new = |new: &&Flag| {
            let key = new.key.as_str();
            !here.contains_key(key) && !unreadable.contains(key) && !done.contains_key(key)
        };
        let count = here.len() + unreadable.len() + flags.iter().filter(is_new).count();
        if count > MAX_FLAGS {
            return Err(Error::new(
                ErrorKind::StateConflict,
                format!(
                    "the import would bring the store to {count} flags, the maximum is {MAX_FLAGS}: import fewer, or remove some first"
                ),
            ));
        }
        let mut plan = Plan::default();
        for new in flags {
            let (outcome, step) = match here.get(new.key.as_str()) {
                _ if let Some(outcome) = done.get(&new.key) => (*outcome, None),
                _ if unreadable.contains(new.key.as_str()) => {
                    (ImportOutcome::Refused { problem: UNREADABLE }, None)
                }
                Some(flag) if is_defined_alike(flag, new) => (ImportOutcome::Unchanged, None),
                Some(_) if !mode.overwrite => (ImportOutcome::Refused { problem: DIFFERS }, None),
                Some(flag) => {
                    let mut after = redefined(flag, new);
                    after.version += 1;
                    let step = self.replacement("flag.updated", Some(flag), &mut after, edit);
                    (ImportOutcome::Updated, Some(step))
                }
                None => {
                    let last = self.store.last_version(&new.key).await?;
                    let (change, event, _) = self.creation(new.clone(), last, edit);
                    (ImportOutcome::Created, Some((change, event)))
                }
            };
            plan.outcomes.insert(new.key.clone(), outcome);
            plan.steps.extend(step.map(|(change, event)| Step { change, event, outcome }));
        }
        Ok(plan)
    }
}

/// The number of steps that fit into one commit.
fn fitting(steps: &[Step]) -> usize {
    let mut bytes = 0;
    let fits = |step: &&Step| {
        let flag = match &step.change {
            FlagChange::Create(flag) | FlagChange::Replace(flag) => Some(flag),
            FlagChange::Remove { .. } => None,
        };
        bytes += flag.map_or(0, |flag| serde_json::to_string(flag).map_or(0, |text| text.len()));
        bytes <= MAX_COMMIT_BYTES
    };
    let fitting = steps.iter().take(MAX_COMMIT_CHANGES).take_while(fits).count();
    fitting.clamp(1, MAX_COMMIT_CHANGES)
}

fn redefined(flag: &Flag, new: &Flag) -> Flag {
    Flag {
        description: new.description.clone(),
        state: new.state,
        pct: new.pct,
        scope: new.scope.clone(),
        options: new.options.clone(),
        ..flag.clone()
    }
}

fn is_defined_alike(flag: &Flag, new: &Flag) -> bool {
    redefined(flag, new) == *flag
}
