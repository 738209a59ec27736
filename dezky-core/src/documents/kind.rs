//! The declaration of document types as data.

use super::{Filter, internal};
use crate::{Error, ErrorKind, Result};

/// A set of document types that are opened together and share a revision.
///
/// With [`Schema::OfKinds`] the tables follow from the kinds. Freeze them as [`Schema::Steps`]
/// before a released kind changes.
#[derive(Debug)]
pub struct Set {
    /// The name of the schema's version, and of the notifications of changes.
    pub component: &'static str,
    /// The table or collection with the one row that every transaction locks first.
    pub state: &'static str,
    /// The columns of the state's row; `None` for a set without a revision.
    pub counts: Option<Counts>,
    /// The document types.
    pub kinds: &'static [&'static Kind],
    /// The tables.
    pub schema: Schema,
}

impl Set {
    /// A set with a revision, whose tables follow from its kinds. Names of tables begin with
    /// `dezky_`.
    pub const fn new(
        component: &'static str,
        state: &'static str,
        kinds: &'static [&'static Kind],
    ) -> Self {
        let counts = Some(Counts { present: "present", known: "known" });
        Self { component, state, counts, kinds, schema: Schema::OfKinds }
    }

    /// The schema's version in each engine.
    pub const fn versions(&self) -> SchemaVersions {
        match self.schema {
            Schema::OfKinds => SchemaVersions { sqlite: 1, postgres: 1, mongodb: 1 },
            Schema::Steps { sqlite, postgres, mongodb, .. } => SchemaVersions {
                sqlite: sqlite.len(),
                postgres: postgres.len(),
                mongodb: mongodb.len(),
            },
        }
    }
}

/// The counting columns of a set's state, next to `revision`.
#[derive(Debug, Clone, Copy)]
pub struct Counts {
    /// The number of documents.
    pub present: &'static str,
    /// The number of documents and of traces of removed ones.
    pub known: &'static str,
}

/// The version of a set's schema in each engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchemaVersions {
    /// In SQLite.
    pub sqlite: usize,
    /// In PostgreSQL.
    pub postgres: usize,
    /// In MongoDB.
    pub mongodb: usize,
}

/// The tables of a set.
#[derive(Debug, Clone, Copy)]
pub enum Schema {
    /// Derived from the kinds, as version 1.
    OfKinds,
    /// Explicit steps, one per version; a released step never changes.
    Steps {
        /// SQL scripts.
        sqlite: &'static [&'static str],
        /// SQL scripts.
        postgres: &'static [&'static str],
        /// The objects after PostgreSQL's steps, which
        /// [`examine`](super::Documents::examine) compares: one per line with kind, name, table
        /// and definition, separated by tabs.
        catalogue: &'static str,
        /// Collections and indexes.
        mongodb: &'static [&'static [Collection]],
    },
}

/// A collection of MongoDB and its indexes.
#[derive(Debug, Clone, Copy)]
pub struct Collection {
    /// Its name.
    pub name: &'static str,
    /// Its indexes.
    pub indexes: &'static [Index],
}

/// An index of MongoDB, ascending.
#[derive(Debug, Clone, Copy)]
pub enum Index {
    /// Name and fields.
    Plain(&'static str, &'static [&'static str]),
    /// Name and field: no two documents have the same value in it.
    Unique(&'static str, &'static str),
    /// The same, among the documents that have the field.
    UniqueIfThere(&'static str, &'static str),
}

/// A document type.
///
/// ```
/// use dezky_core::documents::{Field, Kind, Owned};
/// static SESSION: Kind = Kind {
///     owned: Some(Owned {
///         field: "tokens",
///         table: "dezky_session_tokens",
///         columns: &["token"],
///         owner: "session_id",
///     }),
///     fields: &[Field::text("user_id"), Field::number("seen_at")],
///     ..Kind::new("session", "dezky_sessions")
/// };
/// ```
#[derive(Debug)]
pub struct Kind {
    /// The word for it in errors.
    pub what: &'static str,
    /// Its table or collection.
    pub table: &'static str,
    /// The column of the id; in MongoDB it is `_id`.
    pub id: &'static str,
    /// The column or field of the JSON text.
    pub document: &'static str,
    /// The columns of the unique name, which never changes; empty without one. MongoDB stores all
    /// of it in a field with the name of the last column.
    pub name: &'static [&'static str],
    /// The values that only one document may own.
    pub owned: Option<Owned>,
    /// The fields that lists filter and sort by.
    pub fields: &'static [Field],
    /// The trace that a removed document leaves.
    pub removal: Removal,
    /// Makes the error of a refused change from the kind, the document's id and the reason.
    pub refuse: fn(&Self, &str, &Refusal<'_>) -> Error,
}

impl Kind {
    /// A document type without name, owned values and fields.
    pub const fn new(what: &'static str, table: &'static str) -> Self {
        Self {
            what,
            table,
            id: "id",
            document: "document",
            name: &[],
            owned: None,
            fields: &[],
            removal: Removal::Erased,
            refuse,
        }
    }

    /// The field of the whole name in MongoDB, and the word for it in errors.
    pub(super) fn label(&self) -> &'static str {
        self.name.last().copied().unwrap_or(self.id)
    }

    /// The column by which lists in the order of the key are sorted.
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub(super) fn key(&self) -> &'static str {
        match self.name {
            [] => self.id,
            [name] => name,
            _ => panic!("a name of several columns has no order"),
        }
    }

    /// A field that a caller names.
    ///
    /// # Errors
    /// `internal` if the kind does not declare it.
    pub(super) fn field(&self, name: &str) -> Result<&Field> {
        let field = self.fields.iter().find(|declared| declared.name == name);
        field.ok_or_else(|| internal(format!("{} has no field {name}", self.what)))
    }

    /// The index of a field that the kind declares.
    pub(super) fn place(&self, field: &str) -> usize {
        let place = self.fields.iter().position(|declared| declared.name == field);
        place.unwrap_or_else(|| panic!("{} has no field {field}", self.what))
    }

    /// The side tables of fields that hold texts, each with the index of its field.
    pub(super) fn sides(&self) -> impl Iterator<Item = (usize, &'static Side)> {
        self.fields.iter().enumerate().filter_map(|(place, field)| match &field.holds {
            Holds::Texts(side) => Some((place, side)),
            Holds::Text | Holds::Number => None,
        })
    }

    /// The side table that leads a list with these filters.
    pub(super) fn side_of(&self, filters: &[Filter<'_>]) -> Option<&'static Side> {
        let is_asked = |place: usize| filters.iter().any(|f| f.field() == self.fields[place].name);
        self.sides().find_map(|(place, side)| is_asked(place).then_some(side))
    }
}

/// Values, each of which at most one document of the kind owns.
#[derive(Debug, Clone, Copy)]
pub struct Owned {
    /// The field in MongoDB, and the word for it in errors.
    pub field: &'static str,
    /// The table of the values.
    pub table: &'static str,
    /// The columns of a value.
    pub columns: &'static [&'static str],
    /// The column of the document's id.
    pub owner: &'static str,
}

/// A field that lists filter or sort by: a copy of part of the document.
#[derive(Debug)]
pub struct Field {
    /// The column or field.
    pub name: &'static str,
    /// Its values.
    pub holds: Holds,
}

impl Field {
    /// A text, or none.
    pub const fn text(name: &'static str) -> Self {
        Self { name, holds: Holds::Text }
    }

    /// A number.
    pub const fn number(name: &'static str) -> Self {
        Self { name, holds: Holds::Number }
    }

    /// Any number of texts.
    pub const fn texts(name: &'static str, side: Side) -> Self {
        Self { name, holds: Holds::Texts(side) }
    }
}

/// The values of a field.
#[derive(Debug)]
pub enum Holds {
    /// A text, or none.
    Text,
    /// A number.
    Number,
    /// Any number of texts; in SQL in a side table.
    Texts(Side),
}

/// The table of a field's texts.
#[derive(Debug)]
pub struct Side {
    /// Its name.
    pub table: &'static str,
    /// The column of the text.
    pub column: &'static str,
    /// The field of numbers by which the documents with a text are listed, the greatest first;
    /// `None` lists them by id.
    pub order: Option<&'static str>,
    /// The column of the document's id.
    pub owner: &'static str,
}

/// The trace that a removed document leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// Nothing: id, name and owned values are free again.
    Erased,
    /// Its id and version, so that the versions of a new document continue. Only for kinds without
    /// name, owned values and fields.
    Kept,
    /// Documents are never removed, so the role needs no right to delete.
    Never,
}

/// The reason for which a change is refused.
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

/// The error of a refused change, for kinds that don't word their own.
pub fn refuse(kind: &Kind, _id: &str, refusal: &Refusal<'_>) -> Error {
    let what = kind.what;
    let taken =
        |key| format!("{key} already exists: choose another, or change the existing document");
    let (error, said) = match refusal {
        Refusal::Exists => (ErrorKind::AlreadyExists, taken("id")),
        Refusal::NameTaken => (ErrorKind::AlreadyExists, taken(kind.label())),
        Refusal::Missing => {
            (ErrorKind::NotFound, format!("there is no such {what}: create it first"))
        }
        Refusal::Version => (
            ErrorKind::VersionMismatch,
            format!("the {what} was changed in the meantime: read it again"),
        ),
        Refusal::NameFixed => (
            ErrorKind::FieldInvalid,
            format!("{} can't be changed: create a new document", kind.label()),
        ),
        Refusal::OwnedTaken(value) => {
            let field = kind.owned.map_or("", |owned| owned.field);
            // Of a value in several columns only the first is shown.
            let shown = match value.split_once(SEPARATOR) {
                Some((first, _)) => format!("one of {first}"),
                None => (*value).to_owned(),
            };
            (
                ErrorKind::AlreadyExists,
                format!(
                    "{field}: {shown} already belongs to another {what}: remove it there first"
                ),
            )
        }
    };
    Error::new(error, said)
}

/// Separates the columns of a key. Keys have no control characters, so that no two are joined to
/// the same text.
pub(super) const SEPARATOR: char = '\u{1f}';

/// A key of several columns as one text.
pub fn joined(columns: &[&str]) -> String {
    columns.join(SEPARATOR.encode_utf8(&mut [0; 4]))
}

/// The columns of a key; `None` if no stored key can equal it.
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(super) fn split<'a>(key: &'a str, columns: &[&str]) -> Option<Vec<&'a str>> {
    let parts: Vec<_> = key.split(SEPARATOR).collect();
    (parts.len() == columns.len()).then_some(parts)
}
