//! The schema: collections and indexes, as numbered steps.

use mongodb::IndexModel;
use mongodb::bson::{Document, RawDocumentBuf, doc};
use mongodb::options::IndexOptions;

use super::database::{MongoDatabase, mongo_error};
use crate::store::schema::{COMPONENT, Found, check_version, log_progress};
use crate::{Error, ErrorKind, Result};

/// The collection of the components' versions.
pub(super) const SCHEMA: &str = "dezky_schema";
/// The collection of the log's own document: identity, base, head, counters.
pub(super) const LOG: &str = "dezky_audit_log";
pub(super) const EVENTS: &str = "dezky_audit_events";
pub(super) const CURSORS: &str = "dezky_cursors";
pub(super) const LEASES: &str = "dezky_leases";
pub(super) const QUARANTINE: &str = "dezky_quarantine";
pub(super) const OUTBOX: &str = "dezky_outbox";

/// The indexes of list scans. They end with the document's key, which is `seq`.
pub(super) const BY_AT: &str = "by_at_seq";
pub(super) const BY_TENANT: &str = "by_tenant_at_seq";
pub(super) const BY_ACTOR: &str = "by_actor_at_seq";
pub(super) const BY_ACTION: &str = "by_action_at_seq";

/// The server's code if a collection already exists.
const NAMESPACE_EXISTS: i32 = 48;
/// The server's code if an index does not exist.
const INDEX_NOT_FOUND: i32 = 27;

/// The steps of the log. A released step never changes.
pub(super) fn steps() -> Vec<Vec<MongoCollection>> {
    let first = vec![
        MongoCollection::new(LOG),
        // The document's key is `seq`.
        MongoCollection::new(EVENTS)
            .unique("by_id", doc! { "id": 1 })
            // The filtered field comes first, because not every server uses a partial index that
            // has it later. With a filter on the type, servers would not use the index for a given
            // value.
            .unique_where(
                "by_external_id",
                doc! { "external_id": 1, "source": 1 },
                doc! { "external_id": { "$gte": "" } },
            )
            .index("by_at", doc! { "at": 1, "id": 1 })
            .index("by_tenant", doc! { "tenant_slug": 1, "at": 1, "id": 1 })
            .index("by_actor", doc! { "actor_id": 1, "at": 1, "id": 1 })
            .index("by_action", doc! { "action": 1, "at": 1, "id": 1 }),
        MongoCollection::new(CURSORS),
        MongoCollection::new(LEASES),
        MongoCollection::new(QUARANTINE).unique("by_key", doc! { "source": 1, "key": 1 }),
        MongoCollection::new(OUTBOX),
    ];
    // Indexes for the order (at, seq). They have new names, because an index can't be renamed.
    let second = vec![
        MongoCollection::new(EVENTS)
            .index(BY_AT, doc! { "at": 1, "_id": 1 })
            .index(BY_TENANT, doc! { "tenant_slug": 1, "at": 1, "_id": 1 })
            .index(BY_ACTOR, doc! { "actor_id": 1, "at": 1, "_id": 1 })
            .index(BY_ACTION, doc! { "action": 1, "at": 1, "_id": 1 })
            .without_index("by_at")
            .without_index("by_tenant")
            .without_index("by_actor")
            .without_index("by_action"),
    ];
    vec![first, second]
}

/// A collection and its indexes, as created by a step of a migration.
#[derive(Debug, Clone)]
pub struct MongoCollection {
    name: String,
    indexes: Vec<IndexModel>,
    dropped: Vec<String>,
}

impl MongoCollection {
    /// A collection without additional indexes.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), indexes: Vec::new(), dropped: Vec::new() }
    }

    /// Adds an index.
    #[must_use]
    pub fn index(self, name: &str, keys: Document) -> Self {
        self.with(keys, IndexOptions::builder().name(name.to_owned()).build())
    }

    /// Adds a unique index.
    #[must_use]
    pub fn unique(self, name: &str, keys: Document) -> Self {
        self.with(keys, IndexOptions::builder().name(name.to_owned()).unique(true).build())
    }

    /// Adds a unique index over the documents that match `filter`. `keys` should begin with the
    /// filter's field.
    #[must_use]
    pub fn unique_where(self, name: &str, keys: Document, filter: Document) -> Self {
        let options = IndexOptions::builder().name(name.to_owned()).unique(true);
        self.with(keys, options.partial_filter_expression(filter).build())
    }

    /// Drops an index that an earlier step created, after creating those of this step.
    #[must_use]
    pub fn without_index(mut self, name: &str) -> Self {
        self.dropped.push(name.to_owned());
        self
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn indexes(&self) -> &[IndexModel] {
        &self.indexes
    }

    pub(super) fn dropped(&self) -> &[String] {
        &self.dropped
    }

    fn with(mut self, keys: Document, options: IndexOptions) -> Self {
        self.indexes.push(IndexModel::builder().keys(keys).options(options).build());
        self
    }
}

/// Examines a database without changing it.
pub(super) async fn inspect(database: &MongoDatabase) -> Result<Found> {
    if let Some(version) = version_of(database, COMPONENT).await? {
        return Ok(Found::Version(version));
    }
    let names = database.run(database.database().list_collection_names()).await?;
    Ok(if names.iter().any(|name| name == SCHEMA) {
        Found::Version(0)
    } else if names.iter().all(|name| name.starts_with("system.")) {
        Found::Empty
    } else {
        Found::Foreign
    })
}

/// The schema version of a component, if it was ever set up.
pub(super) async fn version_of(database: &MongoDatabase, component: &str) -> Result<Option<usize>> {
    let schema = database.collection::<RawDocumentBuf>(SCHEMA);
    let found = database.run(schema.find_one(doc! { "_id": { "$eq": component } })).await?;
    found
        .map(|found| {
            let version = found.get_i64("version").ok().and_then(|v| usize::try_from(v).ok());
            version.ok_or_else(|| {
                Error::new(
                    ErrorKind::StoreCorrupt,
                    format!("the version of {component} can't be read: restore a backup"),
                )
            })
        })
        .transpose()
}

/// The newest version of the log's schema.
pub(super) fn known_version() -> usize {
    steps().len()
}

/// Migrates the log's schema to the newest version; `fresh` is the document of a new log.
pub(super) async fn migrate(database: &MongoDatabase, fresh: Document) -> Result<()> {
    // Marks the database as ours first, so that an interrupted migration can continue.
    set_version(database, COMPONENT, 0).await?;
    let version = version_of(database, COMPONENT).await?.unwrap_or(0);
    check_version(version, known_version())?;
    let steps = steps();
    for (step, number) in steps[version..].iter().zip(1..) {
        log_progress(version, steps.len(), (number, steps.len() - version));
        make(database, step).await?;
    }
    let log = database.collection::<Document>(LOG);
    let insert = doc! { "$setOnInsert": fresh };
    upsert(database, &log, doc! { "_id": "log" }, insert).await?;
    set_version(database, COMPONENT, steps.len()).await
}

/// Runs the steps of a component after `version`.
pub(super) async fn take_steps(
    database: &MongoDatabase,
    component: &str,
    version: usize,
    steps: &[Vec<MongoCollection>],
) -> Result<()> {
    for step in &steps[version..] {
        make(database, step).await?;
    }
    set_version(database, component, steps.len()).await
}

async fn make(database: &MongoDatabase, step: &[MongoCollection]) -> Result<()> {
    for collection in step {
        let name = &collection.name;
        let made = database.run(async {
            match database.database().create_collection(name).await {
                Err(error) if has_code(&error, NAMESPACE_EXISTS) => Ok(()),
                made => made,
            }
        });
        made.await?;
        if !collection.indexes.is_empty() {
            let indexes = collection.indexes.clone();
            // Without a time limit, because a later step may index many rows.
            let made = database.collection::<Document>(name).create_indexes(indexes).await;
            made.map_err(|error| mongo_error(&error))?;
        }
        for index in &collection.dropped {
            let indexes = database.collection::<Document>(name);
            let dropped = database.run(async {
                match indexes.drop_index(index).await {
                    // Another process that runs the same step has dropped it.
                    Err(error) if has_code(&error, INDEX_NOT_FOUND) => Ok(()),
                    dropped => dropped,
                }
            });
            dropped.await?;
        }
    }
    Ok(())
}

/// Raises the version of a component; a higher one stays.
async fn set_version(database: &MongoDatabase, component: &str, version: usize) -> Result<()> {
    let version = i64::try_from(version).unwrap_or(i64::MAX);
    let schema = database.collection::<Document>(SCHEMA);
    upsert(database, &schema, doc! { "_id": component }, doc! { "$max": { "version": version } })
        .await
}

async fn upsert(
    database: &MongoDatabase,
    collection: &mongodb::Collection<Document>,
    filter: Document,
    update: Document,
) -> Result<()> {
    let mut raced = 0;
    loop {
        let upsert = collection.update_one(filter.clone(), update.clone()).upsert(true);
        match database.run(upsert).await {
            Ok(_) => return Ok(()),
            // Another process inserted it at the same time.
            Err(error) if error.kind() == ErrorKind::AlreadyExists && raced < 8 => raced += 1,
            Err(error) => return Err(error),
        }
    }
}

fn has_code(error: &mongodb::error::Error, wanted: i32) -> bool {
    matches!(&*error.kind, mongodb::error::ErrorKind::Command(command) if command.code == wanted)
}
