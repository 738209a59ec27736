//! Notification of changes, by a change stream that the waiting callers drive.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use event_listener::Event;
use futures_util::StreamExt;
use futures_util::future::{Either, pending, select};
use futures_util::lock::Mutex;
use mongodb::bson::{RawDocument, RawDocumentBuf, doc};
use mongodb::change_stream::ChangeStream;
use mongodb::change_stream::event::ChangeStreamEvent;

use super::database::{MongoDatabase, mongo_error, no_answer};
use crate::{Error, ErrorKind, Result};

/// The delay before a broken stream is reopened.
const REOPEN_AFTER: Duration = Duration::from_secs(1);

/// A growing number in a document, raised by any process.
///
/// Spawns nothing: one of the waiting callers reads the stream for all of them. Clones share it.
#[derive(Clone)]
pub struct MongoCounter(Arc<Inner>);

struct Inner {
    database: MongoDatabase,
    collection: &'static str,
    id: &'static str,
    field: &'static str,
    value: AtomicU64,
    told: Event,
    stream: Mutex<Option<Stream>>,
    /// Set if the server has no change streams, the user can't read them, or the counter has ended.
    off: AtomicBool,
}

/// A counter as its database refers to it, without keeping it alive.
pub(super) struct WeakCounter(Weak<Inner>);

impl WeakCounter {
    pub(super) fn is_there(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// Ends the stream; if a caller is driving it, that caller ends it. Callers then wait forever.
    pub(super) fn end(&self) {
        let Some(counter) = self.0.upgrade() else { return };
        counter.off.store(true, Ordering::Release);
        counter.told.notify(usize::MAX);
        if let Some(mut stream) = counter.stream.try_lock() {
            *stream = None;
        }
    }
}

type Stream = ChangeStream<ChangeStreamEvent<RawDocumentBuf>>;

impl MongoCounter {
    pub(super) fn new(
        database: MongoDatabase,
        collection: &'static str,
        id: &'static str,
        field: &'static str,
    ) -> Self {
        Self(Arc::new(Inner {
            database,
            collection,
            id,
            field,
            value: AtomicU64::new(0),
            told: Event::new(),
            stream: Mutex::new(None),
            off: AtomicBool::new(false),
        }))
    }

    pub(super) fn downgrade(&self) -> WeakCounter {
        WeakCounter(Arc::downgrade(&self.0))
    }

    /// Resolves when the number exceeds `beyond`. Never resolves if the server has no change
    /// streams, if the user can't read them, or while a stream is broken; callers must also poll.
    /// Cancel-safe.
    pub async fn changed(&self, beyond: u64) {
        let inner = &*self.0;
        loop {
            let told = inner.told.listen();
            if inner.value.load(Ordering::Acquire) > beyond {
                return;
            }
            if inner.off.load(Ordering::Acquire) {
                return pending().await;
            }
            match select(pin!(inner.stream.lock()), told).await {
                Either::Left((mut stream, _)) => inner.follow(&mut stream, beyond).await,
                Either::Right(_) => {}
            }
        }
    }
}

impl Inner {
    /// Reads the stream until the number exceeds `beyond`, or change streams are off.
    async fn follow(&self, stream: &mut Option<Stream>, beyond: u64) {
        while self.value.load(Ordering::Acquire) <= beyond && !self.off.load(Ordering::Acquire) {
            match stream {
                None => match self.open().await {
                    Ok((opened, value)) => {
                        *stream = Some(opened);
                        self.tell(value);
                    }
                    Err(error) if error.is_retryable() => {
                        self.database.runtime().sleep(REOPEN_AFTER).await;
                    }
                    Err(error) => {
                        tracing::warn!(%error, "change streams can't be read: polling for changes");
                        self.off.store(true, Ordering::Release);
                        self.told.notify(usize::MAX);
                    }
                },
                Some(open) => {
                    let told = self.told.listen();
                    if self.off.load(Ordering::Acquire) {
                        break;
                    }
                    match select(open.next(), told).await {
                        Either::Left((Some(Ok(event)), _)) => {
                            if let Some(value) = self.value_in(&event) {
                                self.tell(value);
                            }
                        }
                        Either::Left(_) => {
                            *stream = None;
                            self.database.runtime().sleep(REOPEN_AFTER).await;
                        }
                        // The counter was ended.
                        Either::Right(_) => {}
                    }
                }
            }
        }
        if self.off.load(Ordering::Acquire) {
            *stream = None;
        }
    }

    /// Opens the stream, and then reads the number, so that no change in between is missed.
    async fn open(&self) -> Result<(Stream, u64)> {
        let changed = format!("updateDescription.updatedFields.{}", self.field);
        let written = format!("fullDocument.{}", self.field);
        let ours = doc! { "$match": {
            "documentKey._id": { "$eq": self.id },
            "$or": [{ changed: { "$exists": true } }, { written: { "$exists": true } }],
        }};
        let collection = self.database.collection::<RawDocumentBuf>(self.collection);
        let stream = match self.database.bounded(collection.watch().pipeline([ours])).await {
            Some(Ok(stream)) => stream,
            Some(Err(error)) if refuses_streams(&error) => {
                let error = mongo_error(&error);
                return Err(Error::new(ErrorKind::ConfigInvalid, error.to_string()));
            }
            Some(Err(error)) => return Err(mongo_error(&error)),
            None => return Err(no_answer()),
        };
        let document = self.database.run(collection.find_one(doc! { "_id": self.id })).await?;
        Ok((stream, document.and_then(|document| self.read(&document)).unwrap_or(0)))
    }

    fn value_in(&self, event: &ChangeStreamEvent<RawDocumentBuf>) -> Option<u64> {
        match (&event.update_description, &event.full_document) {
            (Some(update), _) => {
                let value = update.updated_fields.get_i64(self.field).ok()?;
                u64::try_from(value).ok()
            }
            (None, Some(document)) => self.read(document),
            (None, None) => None,
        }
    }

    fn read(&self, document: &RawDocument) -> Option<u64> {
        document.get_i64(self.field).ok().and_then(|value| u64::try_from(value).ok())
    }

    /// Stores the value even if it is smaller than before, as after restoring a backup.
    fn tell(&self, value: u64) {
        self.value.store(value, Ordering::Release);
        self.told.notify(usize::MAX);
    }
}

/// Whether the server does not support change streams, or the user can't read them.
fn refuses_streams(error: &mongodb::error::Error) -> bool {
    use mongodb::error::ErrorKind::Command;
    matches!(&*error.kind, Command(command)
        if matches!(command.code, 13 | 20 | 59 | 115 | 238 | 40_324 | 40_573))
}
