//! The outbox: events that committed with their mutation and wait to be appended.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use mongodb::ClientSession;
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Bson, Document, RawDocumentBuf, doc};
use mongodb::options::FindOptions;
use sha2::{Digest, Sha256};

use super::database::MongoDatabase;
use super::schema::OUTBOX;
use crate::store::codec::{limit, staged_event};
use crate::store::engine::{StagedEvent, UnreadableStaged};
use crate::{Result, Runtime, SealedEvent};

/// The bits of a number below its millisecond.
const COUNT_BITS: u32 = 20;
const MAX_MILLIS: u64 = (1 << (63 - COUNT_BITS)) - 1;

/// Generates the keys of the rows that this process stages. They grow, because the relay reads
/// rows in the order of their keys; between processes they are ordered to the millisecond. A
/// counter in the database would serialise the callers' transactions.
pub(super) struct Order {
    process: [u8; 8],
    next: AtomicU64,
}

impl Order {
    pub(super) fn new(runtime: &dyn Runtime) -> Self {
        let mut process = [0; 8];
        runtime.fill_random(&mut process);
        Self { process, next: AtomicU64::new(0) }
    }

    /// Reserves `count` consecutive numbers, and returns the first.
    fn take(&self, runtime: &dyn Runtime, count: usize) -> u64 {
        let mut drawn = [0; 4];
        runtime.fill_random(&mut drawn);
        let millis = u64::try_from(runtime.now().as_millis()).unwrap_or(0).min(MAX_MILLIS);
        // Random, so that numbers of two processes in the same millisecond differ.
        let drawn = u64::from(u32::from_le_bytes(drawn) >> (33 - COUNT_BITS));
        let now = (millis << COUNT_BITS) | drawn;
        let count = count as u64;
        let take = |next: u64| Some(next.max(now).saturating_add(count));
        let before = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        before.unwrap_or_else(|same| same).max(now)
    }

    fn key(&self, number: u64) -> Binary {
        let mut bytes = Vec::with_capacity(16);
        bytes.extend_from_slice(&number.to_be_bytes());
        bytes.extend_from_slice(&self.process);
        Binary { subtype: BinarySubtype::Generic, bytes }
    }
}

/// Writes events into the outbox in a transaction.
pub(super) async fn stage(
    database: &MongoDatabase,
    session: &mut ClientSession,
    events: &[SealedEvent],
) -> Result<()> {
    if events.is_empty() {
        return Ok(());
    }
    let order = database.order();
    let first = order.take(database.runtime(), events.len());
    let rows = (first..)
        .zip(events)
        .map(|(number, event)| doc! { "_id": order.key(number), "event": event.to_json() });
    let outbox = database.collection::<Document>(OUTBOX);
    database.run(outbox.insert_many(rows).session(session)).await?;
    Ok(())
}

/// The row keys by the numbers that a relay's transaction uses.
#[derive(Default)]
pub(super) struct Staged {
    keys: HashMap<i64, Bson>,
}

impl Staged {
    pub(super) async fn read(
        &mut self,
        database: &MongoDatabase,
        session: &mut ClientSession,
        max_events: usize,
    ) -> Result<Vec<StagedEvent>> {
        let sorted = FindOptions::builder().sort(doc! { "_id": 1 });
        let options = sorted.limit(limit(max_events)).build();
        let rows = database.find(OUTBOX, doc! {}, options, Some(session)).await?;
        Ok(rows.iter().map(|row| self.staged(row)).collect())
    }

    fn staged(&mut self, row: &RawDocumentBuf) -> StagedEvent {
        let key = row.get("_id").ok().flatten().and_then(|key| Bson::try_from(key).ok());
        let key = key.unwrap_or(Bson::Null);
        let mut number = number_of(&key);
        while self.keys.get(&number).is_some_and(|other| *other != key) {
            number = number.wrapping_add(1) & i64::MAX;
        }
        self.keys.insert(number, key);
        if let Ok(text) = row.get_str("event") {
            return staged_event(number, text);
        }
        let raw = row.as_bytes().to_vec();
        let problem = "event is not a text".into();
        StagedEvent { number, event: Err(UnreadableStaged { raw, problem }) }
    }

    pub(super) fn keys(&self, numbers: &[i64]) -> Vec<Bson> {
        numbers.iter().filter_map(|number| self.keys.get(number).cloned()).collect()
    }
}

/// The number of a row. The quarantine identifies the row by it, so it must be unique and stable.
fn number_of(key: &Bson) -> i64 {
    let ours = match key {
        Bson::Binary(binary) => <&[u8; 16]>::try_from(binary.bytes.as_slice()).ok(),
        _ => None,
    };
    let first = |bytes: &[u8]| i64::from_be_bytes(bytes[..8].try_into().unwrap_or_default());
    let number = match ours {
        Some(bytes) => first(bytes),
        None => first(&Sha256::digest(key.to_string())),
    };
    number & i64::MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::ManualRuntime;

    #[test]
    fn keys_grow_whatever_the_clock_does() {
        let runtime = ManualRuntime::new(1);
        let order = Order::new(&runtime);
        let mut last = 0;
        for count in [1, 10_000, 1, 3] {
            let first = order.take(&runtime, count);
            assert!(first >= last, "{first} after {last}");
            last = first + count as u64;
            assert!(order.key(first).bytes < order.key(first + 1).bytes);
            let key = Bson::Binary(order.key(first));
            assert_eq!(u64::try_from(number_of(&key)).unwrap(), first);
        }
        assert_eq!(number_of(&Bson::Int32(7)), number_of(&Bson::Int32(7)));
        assert_ne!(number_of(&Bson::Int32(7)), number_of(&Bson::Int32(8)));
    }
}
