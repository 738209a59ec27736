//! The rules of changes, once for all engines.

use std::collections::{HashMap, HashSet};

use super::kind::SEPARATOR;
use super::{Document, Held, Kind, Removal, RowsTx, Set, State, Unique};
use crate::{Error, ErrorKind, Result, SealedEvent};

/// A change of documents that commits as a whole, together with its events.
///
/// [`lock`](Self::lock) documents before changing them. Changes of one document build on each
/// other; uniqueness is checked on what all of them leave, so that a value may move from one
/// document to another. Dropped before [`commit`](Self::commit) it changes nothing.
pub struct Transaction<'a> {
    set: &'static Set,
    tx: Box<dyn RowsTx + 'a>,
    state: State,
    /// The places that are locked.
    places: HashMap<Place, Locked>,
    /// The last change of each place, in the order of the first ones.
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
    /// The place among the changes.
    change: Option<usize>,
}

struct Change {
    kind: &'static Kind,
    /// Without a text it was removed.
    document: Document,
}

impl<'a> Transaction<'a> {
    pub(super) fn new(set: &'static Set, state: State, tx: Box<dyn RowsTx + 'a>) -> Self {
        let (places, changes, events) = (HashMap::new(), Vec::new(), Vec::new());
        Self { set, tx, state, places, changes, events }
    }

    /// The state of the set as the changes so far leave it.
    pub fn state(&self) -> State {
        self.state
    }

    /// Reads what is stored under these ids, which may be any texts.
    ///
    /// # Errors
    /// `store_corrupt` if a version can't be read; those of reading the database.
    pub async fn lock<'i>(
        &mut self,
        kind: &'static Kind,
        ids: impl IntoIterator<Item = &'i str> + Send,
    ) -> Result<()> {
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

    /// Puts a document in its place.
    ///
    /// # Errors
    /// The kind's error for a [`Refusal`]; `internal` if the id is not [locked](Self::lock).
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

    /// Leaves the trace of a document that was removed elsewhere: how copies come in.
    ///
    /// # Errors
    /// `internal` if it is not [locked](Self::lock), or the kind keeps no traces.
    pub fn put_removed(&mut self, kind: &'static Kind, id: &str, version: u64) -> Result<()> {
        let place = (kind.table, id.to_owned());
        self.known_of(&place)?;
        if kind.removal != Removal::Kept {
            return Err(internal("this kind keeps nothing of removed documents"));
        }
        self.change(kind, &place, Known::Removed(version), Document::removed(id.into(), version));
        Ok(())
    }

    /// Takes over the revision of another database: how copies come in.
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

    /// Commits after `made`, or gives the transaction up and returns its error.
    ///
    /// # Errors
    /// The error of `made`, and those of [`commit`](Self::commit).
    pub async fn commit_after(self, made: Result<()>) -> Result<()> {
        if made.is_err() { self.end(made).await } else { self.commit().await }
    }

    /// Gives the transaction up at once; a dropped one may hold others up for a moment.
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

    /// The row that was there before the transaction.
    fn held(&self, kind: &Kind, id: &str) -> Option<&Held> {
        self.places.get(&(kind.table, id.to_owned()))?.held.as_ref()
    }

    /// The name of the document that is in its place after the changes so far.
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
            let there = |document: &&Document| self.held(kind, &document.id).is_some();
            let of_kind = self.changes.iter().filter(|change| change.kind.table == kind.table);
            let (put, erased): (Vec<_>, Vec<_>) = of_kind
                .map(|change| &change.document)
                .partition(|d| d.text.is_some() || kind.removal == Removal::Kept);
            let erased: Vec<&str> = ids(erased.into_iter().filter(there));
            let there: Vec<&str> = ids(put.iter().copied().filter(there));
            if !erased.is_empty() {
                self.tx.erase(kind, &erased).await?;
            }
            if !put.is_empty() {
                self.tx.put(kind, &put, &there).await?;
            }
        }
        if self.set.counts.is_some() && !self.changes.is_empty() {
            self.tx.set_state(self.state).await?;
        }
        Ok(())
    }

    /// Refuses names and owned values that other documents have. They are looked up rather than left
    /// to the engine's unique indexes: a statement that fails ends the transaction there, and
    /// says less.
    async fn check_unique(&mut self) -> Result<()> {
        let mut taken = HashSet::new();
        for &kind in self.set.kinds {
            let of_kind = || self.changes.iter().filter(|change| change.kind.table == kind.table);
            let changed: HashSet<&str> = of_kind().map(|change| &*change.document.id).collect();
            let documents = of_kind().map(|change| &change.document);
            let names: Vec<&str> = documents
                .clone()
                .filter(|d| self.held(kind, &d.id).is_none_or(|held| held.name != d.name))
                .filter_map(|document| document.name.as_deref())
                .collect();
            let owned: Vec<&str> =
                documents.flat_map(|document| &document.owned).map(String::as_str).collect();
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

fn ids<'d>(documents: impl Iterator<Item = &'d Document>) -> Vec<&'d str> {
    documents.map(|document| document.id.as_str()).collect()
}

/// How a document comes into its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// No document has the id; the version follows the last one that the id had, which is 0 if
    /// it never had any.
    New,
    /// The stored document has the version before.
    Next,
    /// Replaces any earlier version and leaves a later or equal one: how copies come in.
    AsIs,
}

/// The state of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// No document had it.
    Never,
    /// The version of the document that is there.
    Present(u64),
    /// The version that the removal made.
    Removed(u64),
}

impl Known {
    /// The version that the id has come to; 0 if it never had any.
    pub fn version(self) -> u64 {
        match self {
            Self::Never => 0,
            Self::Present(version) | Self::Removed(version) => version,
        }
    }

    /// Whether a document is there.
    pub fn is_present(self) -> bool {
        matches!(self, Self::Present(_))
    }
}

/// The version rule: whether a document of `version` may be put where the id is `known`.
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

/// The version rule: whether a document of `version` may be removed where the id is `known`.
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

/// Why a change is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal<'a> {
    /// A new document's id exists.
    Exists,
    /// There is no document to change.
    Missing,
    /// The stored version is not the expected one.
    Version,
    /// Another document has the name.
    NameTaken,
    /// The name differs from that of the stored document.
    NameFixed,
    /// Another document owns the value.
    OwnedTaken(&'a str),
}

/// The error of a refused change, for kinds without words of their own.
pub fn refuse(kind: &Kind, _id: &str, refusal: &Refusal<'_>) -> Error {
    let what = kind.what;
    let taken =
        |key| format!("{key} already exists: choose another, or change the one that is there");
    let (error, said) = match refusal {
        Refusal::Exists => (ErrorKind::AlreadyExists, taken("id")),
        Refusal::NameTaken => (ErrorKind::AlreadyExists, taken(kind.label())),
        Refusal::Missing => {
            (ErrorKind::NotFound, format!("there is no such {what}: make it first"))
        }
        Refusal::Version => {
            (ErrorKind::VersionMismatch, format!("the {what} was changed meanwhile: read it again"))
        }
        Refusal::NameFixed => (
            ErrorKind::FieldInvalid,
            format!("{} must be what it was: it never changes, make a new document", kind.label()),
        ),
        Refusal::OwnedTaken(value) => {
            let field = kind.owned.map_or("", |owned| owned.field);
            // Of a value in several columns only the first is told.
            let shown = match value.split_once(SEPARATOR) {
                Some((first, _)) => format!("one of {first}"),
                None => (*value).to_owned(),
            };
            (
                ErrorKind::AlreadyExists,
                format!("{field}: {shown} already exists at another {what}: remove it there first"),
            )
        }
    };
    Error::new(error, said)
}

fn internal(problem: &'static str) -> Error {
    Error::new(ErrorKind::Internal, problem)
}
