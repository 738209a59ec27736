//! Taking over definitions from elsewhere.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use dezky_core::{Error, ErrorKind, Result, SealedEvent};
use serde::Serialize;

use crate::model::check_note;
use crate::store::{FlagChange, MAX_COMMIT_CHANGES, MAX_FLAGS};
use crate::{Edit, Flag, Flags, NewFlag};

/// How many bytes of flags one commit of an import changes, as JSON, unless a single
/// flag has more.
const MAX_COMMIT_BYTES: usize = 4 << 20;
const DIFFERS: &str = "it is there with another definition: import with overwrite to replace it";
const UNREADABLE: &str = "it is there, but can't be read: remove it first";

/// How flags are imported.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImportMode {
    /// Replaces the definitions of flags that are there and differ; without it these are
    /// [refused](ImportOutcome::Refused).
    pub overwrite: bool,
    /// Says what would become of each, and changes nothing.
    pub dry_run: bool,
}

/// What became of the flags of an import, by key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Imported {
    /// Each flag's outcome.
    pub flags: BTreeMap<String, ImportOutcome>,
}

/// What became of a flag of an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "outcome")]
#[non_exhaustive]
pub enum ImportOutcome {
    /// There was none with its key.
    Created,
    /// It has the import's definition now, in a new version.
    Updated,
    /// It had that definition.
    Unchanged,
    /// It stays as it is.
    Refused {
        /// Why, and what would help.
        problem: &'static str,
    },
}

impl ImportOutcome {
    /// In a word, as JSON has it.
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
    /// How many flags have an outcome of this name.
    pub fn count(&self, outcome: &str) -> usize {
        self.flags.values().filter(|of| of.as_str() == outcome).count()
    }
}

/// What an import has to do.
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
    /// Brings the definitions of flags here: makes those that are not there, and where
    /// the mode says so replaces those that differ. A replacement is an edit like any
    /// other: the next version, its history kept, recorded as `flag.updated`.
    ///
    /// Everything is checked before anything is written. Idempotent: what was imported is
    /// unchanged the next time. Up to 1,000 changes and 4 MiB of flags commit together;
    /// more come in several commits, of which those before an error stay, and the same
    /// import again goes on. A flag that was removed is made again: whoever imports wants
    /// it. Other editors wait for a commit at most, and what they change of a flag that was
    /// committed stays.
    ///
    /// # Errors
    /// `field_invalid` names the flag, also if a key is there twice; `state_conflict` if
    /// the store would have more than 10,000 flags; those of
    /// [`FlagStore::commit`](crate::store::FlagStore::commit).
    pub async fn import(
        &self,
        flags: &[NewFlag],
        mode: ImportMode,
        edit: &Edit,
    ) -> Result<Imported> {
        check_note(edit.note.as_deref())?;
        let flags = self.checked(flags)?;
        let mut done = HashMap::new();
        let result = self.import_all(&flags, mode, edit, &mut done).await;
        if !done.is_empty() {
            self.tell().await;
        }
        result
    }

    async fn import_all(
        &self,
        flags: &[Flag],
        mode: ImportMode,
        edit: &Edit,
        done: &mut HashMap<String, ImportOutcome>,
    ) -> Result<Imported> {
        let mut attempts = 0;
        'planned: loop {
            let Plan { outcomes, mut steps } = self.plan(flags, mode, edit, done).await?;
            if mode.dry_run {
                return Ok(Imported { flags: outcomes });
            }
            while !steps.is_empty() {
                let rest = steps.split_off(fitting(&steps));
                let mut keys = Vec::with_capacity(steps.len());
                let (mut changes, mut events) = (Vec::new(), Vec::new());
                for Step { change, event, outcome } in steps {
                    keys.push((change.key().to_owned(), outcome));
                    changes.push(change);
                    events.push(event);
                }
                // For each commit anew: whoever kills a flag must not wait for all of them.
                let turn = self.turn.lock().await;
                let committed = self.store.commit(changes, events).await;
                drop(turn);
                match committed {
                    Ok(()) => done.extend(keys),
                    Err(error) => {
                        self.again(overtaken(error), &mut attempts).await?;
                        continue 'planned;
                    }
                }
                steps = rest;
            }
            return Ok(Imported { flags: outcomes });
        }
    }

    /// The flags as they would be made, each key once.
    fn checked(&self, flags: &[NewFlag]) -> Result<Vec<Flag>> {
        let now = self.runtime.now();
        let (mut keys, mut checked) = (HashSet::new(), Vec::with_capacity(flags.len()));
        for new in flags {
            let about = |problem: &str| {
                let key = if crate::model::is_key(&new.key) { &new.key } else { "without a key" };
                Error::new(ErrorKind::FieldInvalid, format!("the flag {key}: {problem}"))
            };
            let flag = Flag::new(new.clone(), now).map_err(|error| about(&error.to_string()))?;
            if !keys.insert(&new.key) {
                return Err(about("its key is there twice, leave one out"));
            }
            checked.push(flag);
        }
        Ok(checked)
    }

    /// Compares the flags with those that are there. What is `done` was committed before
    /// somebody came in between, and is theirs by now.
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
                    "there would be {count} flags, a store has at most {MAX_FLAGS}: import fewer, or remove some first"
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

/// How many of the steps go into one commit.
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

/// Somebody made, changed or removed a flag since it was looked at.
fn overtaken(error: Error) -> Error {
    match error.kind() {
        ErrorKind::AlreadyExists | ErrorKind::NotFound => {
            Error::new(ErrorKind::VersionMismatch, error.to_string())
        }
        _ => error,
    }
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
