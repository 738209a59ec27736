//! Comparison of the collections' options and indexes with the schema.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::pin::pin;
use std::time::Duration;

use futures_util::TryStreamExt;
use futures_util::future::{Either, select};
use mongodb::IndexModel;
use mongodb::bson::{Bson, Document, doc};
use mongodb::options::{CreateCollectionOptions, Hint};
use mongodb::results::{CollectionSpecification, CollectionType};

use super::database::{MongoDatabase, mongo_error, no_answer};
use super::schema::{self, EVENTS, MongoCollection};
use crate::Result;
use crate::store::codec::signed;
use crate::store::structure::{Object, compare, unreached};
use crate::store::{Anomaly, Extent, Head};

/// Time limit for one count of all documents.
const LOOK: Duration = Duration::from_mins(10);

/// Returns the reasons not to trust reads of the log. Documents appended after `head` are
/// ignored.
pub(super) async fn examine(
    database: &MongoDatabase,
    extent: Extent,
    head: Head,
) -> Result<Vec<Anomaly>> {
    let expected = made_by(&schema::steps());
    let found = all_objects(database, &expected).await?;
    let mut anomalies = compare(&expected, &found);
    if extent == Extent::Rows {
        anomalies.extend(unreached_rows(database, &expected, &found, head).await?);
    }
    Ok(anomalies)
}

/// Compares the definitions of a component's collections and indexes with those that its
/// steps create.
pub(super) async fn definitions(
    database: &MongoDatabase,
    steps: &[Vec<MongoCollection>],
) -> Result<Vec<Anomaly>> {
    let expected = made_by(steps);
    let mut found = all_objects(database, &expected).await?;
    // TTL indexes of any collection are found with the log's structure.
    found.retain(|object| {
        object.kind != "TTL index" && expected.iter().any(|ours| ours.table == object.table)
    });
    Ok(compare(&expected, &found))
}

async fn all_objects(database: &MongoDatabase, expected: &[Object]) -> Result<Vec<Object>> {
    let mut found = Vec::new();
    for collection in collections(database).await? {
        found.extend(objects(database, &collection, expected).await?);
    }
    Ok(found)
}

/// The objects after all of the steps.
fn made_by(steps: &[Vec<MongoCollection>]) -> Vec<Object> {
    let mut made: BTreeMap<(String, String), Object> = BTreeMap::new();
    for collection in steps.iter().flatten() {
        let name = collection.name();
        let table = object("table", name, name, &options_of(None));
        made.insert((name.to_owned(), String::new()), table);
        for index in collection.indexes() {
            let index = index_object(name, index);
            made.insert((name.to_owned(), index.name.clone()), index);
        }
        for gone in collection.dropped() {
            made.remove(&(name.to_owned(), format!("{name}.{gone}")));
        }
    }
    made.into_values().collect()
}

fn object(kind: &str, name: &str, table: &str, definition: &str) -> Object {
    let [kind, name, table, definition] = [kind, name, table, definition].map(str::to_owned);
    Object { kind, name, table, definition }
}

async fn collections(database: &MongoDatabase) -> Result<Vec<CollectionSpecification>> {
    let all: Vec<CollectionSpecification> = database
        .run(async { database.database().list_collections().await?.try_collect().await })
        .await?;
    Ok(all.into_iter().filter(|collection| collection.name.starts_with("dezky_")).collect())
}

/// A collection and its indexes. Other components' collections count only for TTL indexes,
/// which are never part of a schema.
async fn objects(
    database: &MongoDatabase,
    collection: &CollectionSpecification,
    expected: &[Object],
) -> Result<Vec<Object>> {
    let name = collection.name.as_str();
    let is_view = matches!(collection.collection_type, CollectionType::View);
    let definition =
        if is_view { "a view".to_owned() } else { options_of(Some(&collection.options)) };
    let is_ours = expected.iter().any(|object| object.table == name);
    let mut objects = Vec::new();
    if is_ours {
        objects.push(object("table", name, name, &definition));
    }
    if is_view {
        return Ok(objects);
    }
    let indexes: Vec<IndexModel> = database
        .run(async {
            database.collection::<Document>(name).list_indexes().await?.try_collect().await
        })
        .await?;
    for index in indexes {
        let expires = index.options.as_ref().is_some_and(|options| options.expire_after.is_some());
        let mut index = index_object(name, &index);
        if expires {
            // Not an additional index like others: it deletes documents.
            "TTL index".clone_into(&mut index.kind);
        }
        objects.push(index);
    }
    Ok(objects)
}

/// Describes the options of a collection that affect what is written or read.
fn options_of(options: Option<&CreateCollectionOptions>) -> String {
    let mut text = "a collection".to_owned();
    let Some(options) = options else { return text };
    for (is_set, what) in [
        (
            options.validator.as_ref().is_some_and(|validator| !validator.is_empty()),
            "with a validator",
        ),
        (options.capped == Some(true), "that is capped"),
        (options.collation.as_ref().is_some_and(|c| c.locale != "simple"), "with a collation"),
        (options.timeseries.is_some(), "of time series"),
        (options.expire_after_seconds.is_some(), "whose documents expire"),
        (options.view_on.is_some(), "that shows another one"),
    ] {
        if is_set {
            let _ = write!(text, ", {what}");
        }
    }
    text
}

fn index_object(collection: &str, index: &IndexModel) -> Object {
    let options = index.options.clone().unwrap_or_default();
    let name = options.name.clone().unwrap_or_default();
    let keys: Vec<_> =
        index.keys.iter().map(|(key, value)| format!("{key}: {}", direction(value))).collect();
    let mut definition = format!("({})", keys.join(", "));
    for (is_set, what) in [
        (options.unique == Some(true), "unique"),
        (options.sparse == Some(true), "sparse"),
        (options.hidden == Some(true), "hidden"),
        (options.collation.as_ref().is_some_and(|c| c.locale != "simple"), "with a collation"),
        (options.expire_after.is_some(), "deletes documents (TTL)"),
    ] {
        if is_set {
            let _ = write!(definition, ", {what}");
        }
    }
    if let Some(filter) = &options.partial_filter_expression {
        let _ = write!(definition, ", where {filter}");
    }
    object("index", &format!("{collection}.{name}"), collection, &definition)
}

/// The direction of a key, whichever number type the server returns.
fn direction(value: &Bson) -> String {
    match value {
        Bson::Int32(number) => number.to_string(),
        Bson::Int64(number) => number.to_string(),
        Bson::Double(number) => number.to_string(),
        other => other.to_string(),
    }
}

/// Compares the number of documents that each index reaches with that of the collection.
/// Partial indexes serve deduplication, not lists, and are left out.
async fn unreached_rows(
    database: &MongoDatabase,
    expected: &[Object],
    found: &[Object],
    head: Head,
) -> Result<Vec<Anomaly>> {
    let next_seq = signed(head.next_seq)?;
    let count = async |hint: Hint| -> Result<i64> {
        let events = database.collection::<Document>(EVENTS);
        let counting = events.count_documents(doc! { "_id": { "$lt": next_seq } }).hint(hint);
        let bound = database.runtime().sleep(LOOK);
        match select(pin!(async { counting.await }), bound).await {
            Either::Left((counted, _)) => {
                let counted = counted.map_err(|error| mongo_error(&error))?;
                Ok(i64::try_from(counted).unwrap_or(i64::MAX))
            }
            Either::Right(_) => Err(no_answer()),
        }
    };
    let rows = count(Hint::Keys(doc! { "$natural": 1 })).await?;
    let mut anomalies = Vec::new();
    for index in expected.iter().filter(|object| object.kind == "index" && object.table == EVENTS) {
        if !found.contains(index) || index.definition.contains(", where ") {
            continue;
        }
        let name = index.name.strip_prefix(&format!("{EVENTS}.")).unwrap_or_default();
        let reached = count(Hint::Name(name.to_owned())).await?;
        anomalies.extend(unreached(&index.name, reached, rows));
    }
    Ok(anomalies)
}
