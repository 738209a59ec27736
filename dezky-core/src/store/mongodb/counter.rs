//! Being told of changes, by a change stream that whoever waits drives.

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

/// How long after a stream has broken a new one is opened.
const REOPEN_AFTER: Duration = Duration::from_secs(1);

/// A number in a document that only grows, and that others raise.
///
/// Nothing runs by itself: one of those who wait reads the stream for all of them.
/// Clones share it.
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
    /// The server has no change streams, or the user may not read them, or it has ended.
    off: AtomicBool,
}

/// A counter that its database does not keep.
pub(super) struct WeakCounter(Weak<Inner>);

impl WeakCounter {
    pub(super) fn is_there(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// Ends its stream, by those who wait for it if there are any: they wait for ever.
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

    /// Resolves when the number is beyond `beyond`. Waits for ever where the server
    /// has no change streams or the user may not read them, and while a stream is
    /// broken: combine it with looking now and then. Cancel-safe.
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
    /// Reads the stream until the number is beyond `beyond`, or there is none.
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
                        tracing::warn!(%error, "no change streams here: changes are polled for");
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
                        // It is over.
                        Either::Right(_) => {}
                    }
                }
            }
        }
        if self.off.load(Ordering::Acquire) {
            *stream = None;
        }
    }

    /// The stream, and the number as it is when the stream has begun.
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

    /// Not the greatest ever seen: a database that was restored has gone back.
    fn tell(&self, value: u64) {
        self.value.store(value, Ordering::Release);
        self.told.notify(usize::MAX);
    }
}

/// Whether the server knows no change streams, or the user may not read them.
fn refuses_streams(error: &mongodb::error::Error) -> bool {
    use mongodb::error::ErrorKind::Command;
    matches!(&*error.kind, Command(command)
        if matches!(command.code, 13 | 20 | 59 | 115 | 238 | 40_324 | 40_573))
}
