//! The rules of changes, once for all engines.

use std::collections::{HashMap, HashSet};

use super::kind::SEPARATOR;
use super::{
    Document, Field, Held, Holds, Kind, Refusal, Removal, RowsTx, Set, State, Unique, Value, Write,
    internal,
};
use crate::{Result, SealedEvent};

/// Changes of documents that commit as a whole, together with their events.
///
/// [`lock`](Self::lock) documents before changing them. Changes of one document build on each
/// other; uniqueness is checked on their common result, so that a value may move from one document
/// to another. Dropping it before [`commit`](Self::commit) changes nothing.
pub struct Transaction<'a> {
    set: &'static Set,
    tx: Box<dyn RowsTx + 'a>,
    state: State,
    /// The ids that are locked.
    places: HashMap<Place, Locked>,
    /// The last change of each id, in the order of their first changes.
    changes: Vec<Change>,
    events: Vec<SealedEvent>,
}

/// A kind's table and an id.
type Place = (&'static str, String);

struct Locked {
    /// The row that was there.
    held: Option<Held>,
    /// The state of the id after the changes so far.
    known: Known,
    /// The index among the changes.
    change: Option<usize>,
}

struct Change {
    kind: &'static Kind,
    /// A document without text was removed.
    document: Document,
}

impl<'a> Transaction<'a> {
    pub(super) fn new(set: &'static Set, state: State, tx: Box<dyn RowsTx + 'a>) -> Self {
        let (places, changes, events) = (HashMap::new(), Vec::new(), Vec::new());
        Self { set, tx, state, places, changes, events }
    }

    /// The state of the set after the changes so far.
    pub fn state(&self) -> State {
        self.state
    }

    /// Reads the documents with these ids, which may be any texts, so that they can be changed.
    ///
    /// # Errors
    /// `store_corrupt` if a version can't be read; `internal` if the kind is not one of the set;
    /// those of reading the database.
    pub async fn lock<'i>(
        &mut self,
        kind: &'static Kind,
        ids: impl IntoIterator<Item = &'i str> + Send,
    ) -> Result<()> {
        if !self.set.kinds.iter().any(|of_set| of_set.table == kind.table) {
            return Err(internal("the kind is not one of the set"));
        }
        let ids: Vec<&str> = ids.into_iter().collect();
        if ids.is_empty() {
            return Ok(());
        }
        let mut found: HashMap<String, Held> =
            self.tx.held(kind, &ids).await?.into_iter().map(|h| (h.id.clone(), h)).collect();
        for id in ids {
            self.places.entry((kind.table, id.to_owned())).or_insert_with(|| {
                let held = found.remove(id);
                let known = held.as_ref().map_or(Known::Never, Held::known);
                Locked { held, known, change: None }
            });
        }
        Ok(())
    }

    /// Puts a document under its id.
    ///
    /// # Errors
    /// The kind's error for a [`Refusal`]; `internal` if the id is not [locked](Self::lock), or
    /// the document does not have the keys and fields that the kind declares, or a key is empty or
    /// has a control character.
    pub fn put(&mut self, kind: &'static Kind, how: Put, document: Document) -> Result<()> {
        let place = (kind.table, document.id.clone());
        let before = self.known_of(&place)?;
        let refused = |refusal| Err((kind.refuse)(kind, &document.id, &refusal));
        if how == Put::AsIs {
            if before != Known::Never && before.version() >= document.version {
                return Ok(());
            }
        } else if let Err(refusal) = check(before, how, document.version) {
            return refused(refusal);
        }
        if before.is_present() && self.name_at(&place) != document.name.as_deref() {
            return refused(Refusal::NameFixed);
        }
        if !fits(kind, &document) {
            return Err(internal("the document's keys or fields are not those of its kind"));
        }
        self.change(kind, &place, Known::Present(document.version), document);
        Ok(())
    }

    /// Removes the document that has this version.
    ///
    /// # Errors
    /// The kind's error for a [`Refusal`]; `internal` if the id is not [locked](Self::lock), or
    /// documents of the kind are never removed.
    pub fn remove(&mut self, kind: &'static Kind, id: &str, version: u64) -> Result<()> {
        let place = (kind.table, id.to_owned());
        let before = self.known_of(&place)?;
        check_removal(before, version).map_err(|refusal| (kind.refuse)(kind, id, &refusal))?;
        let known = match kind.removal {
            Removal::Erased => Known::Never,
            Removal::Kept => Known::Removed(version + 1),
            Removal::Never => return Err(internal("a document of this kind is never removed")),
        };
        self.change(kind, &place, known, Document::removed(id.to_owned(), version + 1));
        Ok(())
    }

    /// Adds the trace of a document that was removed elsewhere: the write side of a copy.
    ///
    /// # Errors
    /// `internal` if the id is not [locked](Self::lock), or the kind keeps no traces.
    pub fn put_removed(&mut self, kind: &'static Kind, id: &str, version: u64) -> Result<()> {
        let place = (kind.table, id.to_owned());
        self.known_of(&place)?;
        if kind.removal != Removal::Kept {
            return Err(internal("documents of this kind leave no traces"));
        }
        self.change(kind, &place, Known::Removed(version), Document::removed(id.into(), version));
        Ok(())
    }

    /// Takes over the revision of another database: the write side of a copy.
    pub fn set_revision(&mut self, revision: u64) {
        self.state.revision = revision;
    }

    /// Adds events, to be staged in the outbox of the audit log with the commit.
    pub fn stage(&mut self, events: impl IntoIterator<Item = SealedEvent>) {
        self.events.extend(events);
    }

    /// Commits the changes and their events, or nothing.
    ///
    /// # Errors
    /// A kind's error for the [`Refusal`] of a name or an owned value; `event_invalid`.
    /// `store_unavailable` and `store_busy`: the outcome is unknown.
    pub async fn commit(mut self) -> Result<()> {
        let written = self.write().await;
        self.end(written).await
    }

    /// Commits if `made` succeeded; otherwise rolls back and returns its error.
    ///
    /// # Errors
    /// The error of `made`, and those of [`commit`](Self::commit).
    pub async fn commit_after(self, made: Result<()>) -> Result<()> {
        if made.is_err() { self.end(made).await } else { self.commit().await }
    }

    /// Changes nothing, like a drop. MongoDB has rolled back when this returns, whereas a dropped
    /// transaction is aborted in the background and may delay others for a moment. On the other
    /// engines this does not differ from a drop.
    pub async fn abort(self) {
        self.tx.abort().await;
    }

    async fn end(self, done: Result<()>) -> Result<()> {
        if done.is_err() {
            self.tx.abort().await;
            return done;
        }
        self.tx.commit(&self.events).await
    }

    fn known_of(&self, place: &Place) -> Result<Known> {
        let locked = self.places.get(place);
        locked.map(|locked| locked.known).ok_or_else(|| internal("a document was not locked"))
    }

    /// The name of the document after the changes so far.
    fn name_at(&self, place: &Place) -> Option<&str> {
        let locked = self.places.get(place)?;
        match locked.change {
            Some(change) => self.changes[change].document.name.as_deref(),
            None => locked.held.as_ref()?.name.as_deref(),
        }
    }

    fn change(&mut self, kind: &'static Kind, place: &Place, after: Known, document: Document) {
        let Some(locked) = self.places.get_mut(place) else { return };
        let before = std::mem::replace(&mut locked.known, after);
        let count = |number: u64, was: bool, is: bool| {
            (number + u64::from(is)).saturating_sub(u64::from(was))
        };
        let State { revision, present, known } = self.state;
        self.state = State {
            revision: revision + 1,
            present: count(present, before.is_present(), after.is_present()),
            known: count(known, before != Known::Never, after != Known::Never),
        };
        if let Some(change) = locked.change {
            self.changes[change].document = document;
        } else {
            locked.change = Some(self.changes.len());
            self.changes.push(Change { kind, document });
        }
    }

    async fn write(&mut self) -> Result<()> {
        self.check_unique().await?;
        for &kind in self.set.kinds {
            let (mut erased, mut writes) = (Vec::new(), Vec::new());
            for Change { document, .. } in of_kind(&self.changes, kind) {
                let mut held = held(&self.places, kind, &document.id);
                let is_put = document.text.is_some() || kind.removal == Removal::Kept;
                // A document made in the place of a removed one frees its name first.
                if held.is_some_and(|held| !is_put || held.name != document.name) {
                    erased.push(document.id.as_str());
                    held = None;
                }
                if is_put {
                    writes.push(Write { document, held });
                }
            }
            if !erased.is_empty() {
                self.tx.erase(kind, &erased).await?;
            }
            if !writes.is_empty() {
                self.tx.put(kind, &writes).await?;
            }
        }
        if self.set.counts.is_some() && !self.changes.is_empty() {
            self.tx.set_state(self.state).await?;
        }
        Ok(())
    }

    /// Refuses names and owned values that other documents have. They are looked up rather than
    /// left to the engine's unique indexes: a statement that fails ends the transaction, and its
    /// error says less. Only values that are new to a document are.
    async fn check_unique(&mut self) -> Result<()> {
        let mut taken = HashSet::new();
        for &kind in self.set.kinds {
            let (mut changed, mut names, mut owned) = (HashSet::new(), Vec::new(), Vec::new());
            for Change { document, .. } in of_kind(&self.changes, kind) {
                let held = held(&self.places, kind, &document.id);
                changed.insert(&*document.id);
                let is_new = |name: &&str| held.and_then(|h| h.name.as_deref()) != Some(name);
                names.extend(document.name.as_deref().filter(is_new));
                let values = document.owned.iter();
                owned.extend(values.filter(|&v| held.is_none_or(|h| !h.owned.contains(v))));
            }
            let owned: Vec<&str> = owned.into_iter().map(String::as_str).collect();
            for (unique, wanted) in [(Unique::Name, names), (Unique::Owned, owned)] {
                if wanted.is_empty() {
                    continue;
                }
                for (value, holder) in self.tx.holders(kind, unique, &wanted).await? {
                    if !changed.contains(&*holder) {
                        taken.insert((kind.table, unique, value));
                    }
                }
            }
        }
        for Change { kind, document } in &self.changes {
            let refused = |refusal| Err((kind.refuse)(kind, &document.id, &refusal));
            if let Some(name) = &document.name
                && !taken.insert((kind.table, Unique::Name, name.clone()))
            {
                return refused(Refusal::NameTaken);
            }
            for value in &document.owned {
                if !taken.insert((kind.table, Unique::Owned, value.clone())) {
                    return refused(Refusal::OwnedTaken(value));
                }
            }
        }
        Ok(())
    }
}

impl Held {
    fn known(&self) -> Known {
        if self.is_present { Known::Present(self.version) } else { Known::Removed(self.version) }
    }
}

fn of_kind<'c>(changes: &'c [Change], kind: &Kind) -> impl Iterator<Item = &'c Change> {
    let table = kind.table;
    changes.iter().filter(move |change| change.kind.table == table)
}

/// The row that was there before the transaction.
fn held<'p>(places: &'p HashMap<Place, Locked>, kind: &Kind, id: &str) -> Option<&'p Held> {
    places.get(&(kind.table, id.to_owned()))?.held.as_ref()
}

/// Whether a document has the keys and fields that its kind declares. No column of a key is empty,
/// because lists begin after the empty key, or has a control character, so that keys of several
/// columns are told apart and every engine can store them.
fn fits(kind: &Kind, document: &Document) -> bool {
    let is_key = |key: &str, columns: &[&str]| {
        let is_part = |part: &str| !part.is_empty() && !part.contains(char::is_control);
        key.split(SEPARATOR).count() == columns.len() && key.split(SEPARATOR).all(is_part)
    };
    let holds = |(field, value): (&Field, &Value)| match value {
        Value::Text(_) => matches!(field.holds, Holds::Text),
        Value::Number(_) => matches!(field.holds, Holds::Number),
        Value::Texts(_) => matches!(field.holds, Holds::Texts(_)),
    };
    let owned = kind.owned.map_or(&[][..], |owned| owned.columns);
    is_key(&document.id, &[kind.id])
        && document.name.is_some() != kind.name.is_empty()
        && document.name.iter().all(|name| is_key(name, kind.name))
        && document.owned.iter().all(|value| is_key(value, owned))
        && document.fields.len() == kind.fields.len()
        && kind.fields.iter().zip(&document.fields).all(holds)
}

/// The condition on which a document is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// No document has the id; the version follows the last one of the id, 0 if there was none.
    New,
    /// The stored document has the version before.
    Next,
    /// Replaces an earlier version and keeps an equal or later one: the write side of a copy.
    AsIs,
}

/// The state of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// No document ever had it.
    Never,
    /// The version of the document.
    Present(u64),
    /// The version that the removal made.
    Removed(u64),
}

impl Known {
    /// The last version of the id; 0 if it never had any.
    pub fn version(self) -> u64 {
        match self {
            Self::Never => 0,
            Self::Present(version) | Self::Removed(version) => version,
        }
    }

    /// Whether a document has the id.
    pub fn is_present(self) -> bool {
        matches!(self, Self::Present(_))
    }
}

/// The version rule: whether a document of `version` may be put under an id in the state `known`.
///
/// # Errors
/// A [`Refusal`] of existence or version.
pub fn check(known: Known, how: Put, version: u64) -> Result<(), Refusal<'static>> {
    match (how, known) {
        (Put::AsIs, _) => Ok(()),
        (Put::New, Known::Present(_)) => Err(Refusal::Exists),
        (Put::Next, Known::Never | Known::Removed(_)) => Err(Refusal::Missing),
        _ if known.version().checked_add(1) == Some(version) => Ok(()),
        _ => Err(Refusal::Version),
    }
}

/// The version rule: whether a document of `version` may be removed if the state of its id is
/// `known`.
///
/// # Errors
/// A [`Refusal`] of existence or version.
pub fn check_removal(known: Known, version: u64) -> Result<(), Refusal<'static>> {
    match known {
        Known::Never | Known::Removed(_) => Err(Refusal::Missing),
        Known::Present(there) if there == version => Ok(()),
        Known::Present(_) => Err(Refusal::Version),
    }
}
