//! Reading events page by page, and the iterators over them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dezky::core::{AuditStoreExt as _, StoredEvent};
use dezky::{AuditStore, ListQuery, TokioRuntime};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use super::event::Event;
use super::log::Shared;
use crate::error::exception;
use crate::runtime::{self, Owned};

/// The maximum number of events that a tail hands on at once.
const TAIL_EVENTS: usize = 500;

/// The pages of a list.
pub(crate) struct ListPages {
    store: Arc<dyn AuditStore>,
    query: ListQuery,
    /// The number of events still wanted.
    left: u64,
    at_end: bool,
}

impl ListPages {
    pub(super) fn new(store: Arc<dyn AuditStore>, query: ListQuery, limit: Option<u64>) -> Self {
        Self { store, query, left: limit.unwrap_or(u64::MAX), at_end: false }
    }

    /// The next events; `None` at the end. Cancel-safe; after an error it may be called again.
    pub(super) async fn next(&mut self) -> dezky::Result<Option<Vec<StoredEvent>>> {
        while !self.at_end {
            let left = usize::try_from(self.left).unwrap_or(usize::MAX);
            self.query.limit = left.min(ListQuery::MAX_LIMIT);
            let page = self.store.list(&self.query).await?;
            self.left -= page.events.len() as u64;
            self.at_end = page.next_cursor.is_none() || self.left == 0;
            self.query.cursor = page.next_cursor;
            // A page may be empty because the search reached its budget.
            if !page.events.is_empty() {
                return Ok(Some(page.events));
            }
        }
        Ok(None)
    }
}

/// The events of a tail, as many at once as are there.
pub(crate) struct TailPages {
    store: Arc<dyn AuditStore>,
    from_seq: u64,
    chunks: BoxStream<'static, Vec<dezky::Result<StoredEvent>>>,
    end: TailEnd,
}

enum TailEnd {
    Never,
    /// The head at the first read.
    AtHead,
    /// After this number of events.
    After(u64),
}

impl TailPages {
    /// The events from `from_seq` on, without end or up to the log's head.
    pub(super) fn new(store: Arc<dyn AuditStore>, from_seq: u64, follow: bool) -> Self {
        let tail = store.tail(Arc::new(TokioRuntime), from_seq);
        let chunks = tail.into_stream().ready_chunks(TAIL_EVENTS).boxed();
        let end = if follow { TailEnd::Never } else { TailEnd::AtHead };
        Self { store, from_seq, chunks, end }
    }

    async fn next(&mut self) -> dezky::Result<Option<Vec<dezky::Result<StoredEvent>>>> {
        if let TailEnd::AtHead = self.end {
            let head = self.store.state().await?.head;
            self.end = TailEnd::After(head.next_seq.saturating_sub(self.from_seq));
        }
        let TailEnd::After(left) = &mut self.end else { return Ok(self.chunks.next().await) };
        if *left == 0 {
            return Ok(None);
        }
        let Some(mut chunk) = self.chunks.next().await else { return Ok(None) };
        chunk.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
        *left -= chunk.iter().filter(|event| event.is_ok()).count() as u64;
        Ok(Some(chunk))
    }
}

/// What an iterator reads.
pub(crate) enum Source {
    List(Box<ListPages>),
    Tail(TailPages),
}

impl From<ListPages> for Source {
    fn from(pages: ListPages) -> Self {
        Self::List(Box::new(pages))
    }
}

impl From<TailPages> for Source {
    fn from(pages: TailPages) -> Self {
        Self::Tail(pages)
    }
}

impl Source {
    /// The next events, or an error behind events that were read before it; `None` at the end.
    async fn next(&mut self) -> Option<Vec<dezky::Result<StoredEvent>>> {
        let read = match self {
            Self::List(pages) => {
                let page = pages.next().await;
                page.map(|page| page.map(|page| page.into_iter().map(Ok).collect()))
            }
            Self::Tail(pages) => pages.next().await,
        };
        read.unwrap_or_else(|error| Some(vec![Err(error)]))
    }
}

/// Events that were read, and the source of more.
///
/// An event leaves [`ready`](Self::ready) only in the thread that hands it to Python, so that a
/// cancelled wait loses none.
pub(crate) struct EventPages {
    shared: Arc<Shared>,
    ready: Mutex<VecDeque<dezky::Result<StoredEvent>>>,
    /// `None` once the log is closed: what it still waits for would hold up the connections.
    source: tokio::sync::Mutex<Option<Owned<Source>>>,
}

impl EventPages {
    pub(crate) fn new(shared: Arc<Shared>, source: impl Into<Source>) -> Arc<Self> {
        let pages = Arc::new(Self {
            shared,
            ready: Mutex::default(),
            source: tokio::sync::Mutex::new(Some(Owned::new(source.into()))),
        });
        pages.shared.watch(&pages);
        pages
    }

    /// Ends reading, because the log is closed.
    pub(super) async fn end(&self) {
        drop(self.source.lock().await.take());
    }

    fn ready(&self) -> MutexGuard<'_, VecDeque<dezky::Result<StoredEvent>>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pop(&self) -> PyResult<Option<Event>> {
        let next = self.ready().pop_front();
        next.transpose().map(|event| event.map(Event)).map_err(exception)
    }

    /// Reads until events are ready. Returns `false` at the end.
    async fn fill(&self) -> PyResult<bool> {
        let read = async {
            let mut source = self.source.lock().await;
            // Another thread may have read them.
            if !self.ready().is_empty() {
                return true;
            }
            let Some(source) = source.as_mut() else { return false };
            match source.next().await {
                Some(events) => {
                    self.ready().extend(events);
                    true
                }
                None => false,
            }
        };
        self.shared.while_open(read).await
    }
}

/// An iterator over events.
#[pyclass(frozen, module = "dezky._dezky", name = "EventIterator")]
pub(crate) struct EventIterator {
    pages: Arc<EventPages>,
}

impl EventIterator {
    pub(crate) fn new(pages: Arc<EventPages>) -> Self {
        Self { pages }
    }
}

#[pymethods]
impl EventIterator {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Event>> {
        runtime::check_fork()?;
        loop {
            if let Some(event) = self.pages.pop()? {
                return Ok(Some(event));
            }
            let pages = Arc::clone(&self.pages);
            if !runtime::wait(py, async move { pages.fill().await })?? {
                return Ok(None);
            }
        }
    }
}

/// The native part of an asynchronous iterator over events.
#[pyclass(frozen, module = "dezky._dezky", name = "EventSource")]
pub(crate) struct EventSource {
    pages: Arc<EventPages>,
}

#[pymethods]
impl EventSource {
    /// Takes an event that was read already.
    fn pop(&self) -> PyResult<Option<Event>> {
        self.pages.pop()
    }

    /// Waits until events were read; `False` at the end.
    fn fill<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let pages = self.pages.clone();
        runtime::future(py, async move { pages.fill().await })
    }
}

/// An asynchronous iterator over events.
pub(crate) fn event_stream(py: Python<'_>, pages: Arc<EventPages>) -> PyResult<Bound<'_, PyAny>> {
    static CLASS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    CLASS.import(py, "dezky._aio", "EventStream")?.call1((EventSource { pages },))
}
