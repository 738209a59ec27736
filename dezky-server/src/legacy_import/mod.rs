//! Import of the database of the platform that this one replaces: a service on Mongoose, whose
//! collections hold events, tenants, partners, users, flags and the
//! cursors of ingest. `docs/import-origin.md` has the mapping field by field.
//!
//! Writes nothing to the source. What it writes here depends only on the documents, so that a
//! second import adds nothing.

pub(crate) mod command;
mod cursors;
mod directory;
mod events;
mod fields;
mod flags;
mod report;

use dezky::Platform;
use dezky_core::directory::{DirectoryChange, PartnerKey, TenantKey, UserKey};
use dezky_core::rt::TokioRuntime;
use dezky_core::store::{AppendOptions, CursorAdvance};
use dezky_core::{ErrorKind, QuarantineItem, SealedEvent};
use dezky_flags::store::FlagChange;
use futures_util::TryStreamExt as _;
use mongodb::bson::{Document, doc};
use mongodb::{Cursor, Database};

use self::cursors::Cursor as OldCursor;
use self::events::Mapped;
use self::fields::Fields;
pub(crate) use self::report::Report;
use self::report::{Collection, TakenCursor};

/// The number of documents in a batch from the server.
const BATCH: u32 = 500;
/// The maximum number of events in an append, and its approximate maximum size in bytes.
const APPEND_EVENTS: usize = 500;
const APPEND_BYTES: usize = 4 << 20;

/// The kinds of collections, and their default names in Mongoose.
pub(crate) const KINDS: [(&str, &str); 6] = [
    ("partners", "partners"),
    ("tenants", "tenants"),
    ("users", "users"),
    ("flags", "featureflags"),
    ("events", "auditevents"),
    ("cursors", "ingestcursors"),
];

/// The reason why an import did not complete.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The earlier platform's database failed.
    Source(mongodb::error::Error),
    /// The target store failed.
    Target(dezky_core::Error),
}

impl From<mongodb::error::Error> for Broken {
    fn from(error: mongodb::error::Error) -> Self {
        Self::Source(error)
    }
}

impl From<dezky_core::Error> for Broken {
    fn from(error: dezky_core::Error) -> Self {
        Self::Target(error)
    }
}

/// An import, with its source and its target.
pub(crate) struct Import<'i> {
    pub(crate) from: Database,
    /// `None`: a dry run, which writes nothing.
    pub(crate) to: Option<&'i Platform>,
    /// The collections' names, in the order of [`KINDS`].
    pub(crate) names: [String; 6],
    /// Called with the kind that is being read, the number read, and about the total.
    pub(crate) progress: &'i mut (dyn FnMut(&'static str, u64, u64) + Send),
}

impl Import<'_> {
    /// Imports what is missing here, and reports what it found.
    pub(crate) async fn run(mut self) -> Result<Report, Broken> {
        let mut report = Report { dry_run: self.to.is_none(), ..Report::default() };
        let there = self.from.list_collection_names().await?;
        for (index, (kind, _)) in KINDS.into_iter().enumerate() {
            let mut collection = Collection::new(kind, &self.names[index]);
            collection.found = there.contains(&self.names[index]);
            if collection.found {
                match kind {
                    "partners" => self.documents(&mut collection, directory::partner).await?,
                    "tenants" => self.documents(&mut collection, directory::tenant).await?,
                    "users" => self.documents(&mut collection, directory::user).await?,
                    "flags" => self.flags(&mut collection).await?,
                    "events" => self.events(&mut collection, &mut report).await?,
                    _ => self.cursors(&mut collection, &mut report).await?,
                }
            }
            report.collections.push(collection);
        }
        Ok(report)
    }

    /// All documents of a collection, in the order of `sort`.
    async fn read(
        &mut self,
        collection: &Collection,
        sort: Document,
    ) -> Result<(Cursor<Document>, u64), Broken> {
        let from = self.from.collection::<Document>(&collection.name);
        let total = from.estimated_document_count().await?;
        let documents = from.find(doc! {}).sort(sort).allow_disk_use(true).batch_size(BATCH);
        Ok((documents.await?, total))
    }

    fn tell(&mut self, collection: &Collection, total: u64) {
        (self.progress)(collection.kind, collection.read, total);
    }

    async fn documents(
        &mut self,
        collection: &mut Collection,
        map: directory::Map,
    ) -> Result<(), Broken> {
        let (mut documents, total) = self.read(collection, doc! { "_id": 1 }).await?;
        while let Some(document) = documents.try_next().await? {
            collection.read += 1;
            let mut fields = Fields::new(document);
            let mapped = map(&mut fields, collection);
            let id = fields.id.clone();
            collection.unknown(&fields.rest());
            match mapped {
                Ok(document) => self.put(collection, &id, document).await?,
                Err(problem) => collection.refuse(&id, problem),
            }
            self.tell(collection, total);
        }
        Ok(())
    }

    /// Writes a document unless one with its id exists.
    async fn put(
        &self,
        collection: &mut Collection,
        id: &str,
        document: DirectoryChange,
    ) -> Result<(), Broken> {
        let Some(platform) = self.to else {
            collection.imported += 1;
            return Ok(());
        };
        let store = platform.directory.store();
        let is_here = match &document {
            DirectoryChange::Partner(_) => store.partner(PartnerKey::Id(id)).await?.is_some(),
            DirectoryChange::Tenant(_) => store.tenant(TenantKey::Id(id)).await?.is_some(),
            DirectoryChange::User(_) => store.user(UserKey::Id(id)).await?.is_some(),
        };
        if is_here {
            collection.existing += 1;
            return Ok(());
        }
        match store.restore(vec![document]).await {
            Ok(()) => collection.imported += 1,
            Err(error) if is_of_document(error.kind()) => {
                collection.refuse(id, error.to_string());
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    async fn flags(&mut self, collection: &mut Collection) -> Result<(), Broken> {
        let (mut documents, total) = self.read(collection, doc! { "_id": 1 }).await?;
        while let Some(document) = documents.try_next().await? {
            collection.read += 1;
            let mut fields = Fields::new(document);
            let mapped = flags::flag(&mut fields, collection);
            let id = fields.id.clone();
            collection.unknown(&fields.rest());
            self.tell(collection, total);
            let flag = match mapped {
                Ok(flag) => flag,
                Err(problem) => {
                    collection.refuse(&id, problem);
                    continue;
                }
            };
            let Some(platform) = self.to else {
                collection.imported += 1;
                continue;
            };
            let store = platform.flags.store();
            // A document that was removed here stays removed.
            if store.last_version(&flag.key).await? > 0 {
                collection.existing += 1;
                continue;
            }
            match store.commit(vec![FlagChange::Create(Box::new(flag))], Vec::new()).await {
                Ok(()) => collection.imported += 1,
                Err(error) if is_of_document(error.kind()) => {
                    collection.refuse(&id, error.to_string());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Imports the events, oldest first, so that a new log begins with them in their order.
    async fn events(
        &mut self,
        collection: &mut Collection,
        report: &mut Report,
    ) -> Result<(), Broken> {
        let (mut documents, total) = match self.read(collection, doc! { "at": 1, "_id": 1 }).await {
            Ok(documents) => documents,
            // The server can't sort so many documents by a field without an index.
            Err(Broken::Source(error)) if is_refusal(&error) => {
                collection.change("order: by _id, as the server can't sort by at");
                self.read(collection, doc! { "_id": 1 }).await?
            }
            Err(broken) => return Err(broken),
        };
        let mut batch = Batch::default();
        while let Some(document) = documents.try_next().await? {
            collection.read += 1;
            batch.push(events::map(document, collection, &mut report.external_ids));
            if batch.is_full() {
                self.append(std::mem::take(&mut batch), collection).await?;
            }
            self.tell(collection, total);
        }
        self.append(batch, collection).await
    }

    async fn append(&self, batch: Batch, collection: &mut Collection) -> Result<(), Broken> {
        let Batch { mut events, items, .. } = batch;
        let quarantined = items.len() as u64;
        let Some(platform) = self.to else {
            collection.imported += events.len() as u64;
            collection.quarantined += quarantined;
            return Ok(());
        };
        if events.is_empty() && items.is_empty() {
            return Ok(());
        }
        let own = events.len();
        // Quarantined items get an event on the timeline as well.
        events.extend(items.iter().map(|item| item.notice(&TokioRuntime)));
        let options = AppendOptions { quarantine: items, ..AppendOptions::default() };
        let mut appended = platform.store.append(events, options).await?;
        appended.receipts.truncate(own);
        collection.imported += appended.appended() as u64;
        collection.existing += appended.duplicates() as u64;
        collection.conflicts += appended.conflicts() as u64;
        collection.quarantined += quarantined;
        Ok(())
    }

    /// Imports the cursors, after the events: a reader that continues at a cursor relies on the
    /// events before it.
    async fn cursors(
        &mut self,
        collection: &mut Collection,
        report: &mut Report,
    ) -> Result<(), Broken> {
        let (mut documents, total) = self.read(collection, doc! { "_id": 1 }).await?;
        while let Some(document) = documents.try_next().await? {
            collection.read += 1;
            let mut fields = Fields::new(document);
            let (source, cursor) = cursors::cursor(&mut fields);
            collection.unknown(&fields.rest());
            self.tell(collection, total);
            let outcome = match cursor {
                OldCursor::At(cursor) => self.set_cursor(&source, cursor, collection).await?,
                OldCursor::Again(why) => {
                    format!("{why}: the source is read again, and existing events add nothing")
                }
            };
            report.cursors.push(TakenCursor { source, outcome });
        }
        Ok(())
    }

    async fn set_cursor(
        &self,
        source: &str,
        to: String,
        collection: &mut Collection,
    ) -> Result<String, Broken> {
        if let Some(platform) = self.to {
            if platform.store.cursor(source).await?.is_some() {
                collection.existing += 1;
                return Ok("the one that is here stays".into());
            }
            let advance = CursorAdvance { source: source.to_owned(), from: None, to: to.clone() };
            let options = AppendOptions { cursor: Some(advance), ..AppendOptions::default() };
            platform.store.append(Vec::new(), options).await?;
        }
        collection.imported += 1;
        Ok(format!("continues at {to}"))
    }
}

/// The events and items of one append.
#[derive(Default)]
struct Batch {
    events: Vec<SealedEvent>,
    items: Vec<QuarantineItem>,
    bytes: usize,
}

impl Batch {
    fn push(&mut self, mapped: Mapped) {
        match mapped {
            Mapped::Event(event) => {
                self.bytes += 512 + event.event().metadata.as_str().len();
                self.events.push(*event);
            }
            Mapped::Odd(item) => {
                self.bytes += 512 + item.raw.len();
                self.items.push(*item);
            }
        }
    }

    fn is_full(&self) -> bool {
        self.events.len() + self.items.len() >= APPEND_EVENTS || self.bytes >= APPEND_BYTES
    }
}

/// Whether the error is about the document, not about the store.
fn is_of_document(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::AlreadyExists | ErrorKind::FieldInvalid | ErrorKind::StateConflict)
}

/// Whether the server answered with an error.
fn is_refusal(error: &mongodb::error::Error) -> bool {
    matches!(*error.kind, mongodb::error::ErrorKind::Command(_))
}
