//! Test utilities: a manual runtime, generated events, and the conformance suite that every store
//! of this crate passes.
//!
//! Run the whole suite against your own store with one macro call:
//!
//! ```
//! # use std::sync::Arc;
//! use dezky_core::store::{AuditStore, MemoryAuditStore};
//! use dezky_core::testkit::{BoxFuture, Reopen, StoreHarness};
//! use dezky_core::{Runtime, rt::TokioRuntime};
//!
//! struct Memory;
//!
//! #[async_trait::async_trait]
//! impl StoreHarness for Memory {
//!     fn runtime(&self) -> Arc<dyn Runtime> {
//!         Arc::new(TokioRuntime)
//!     }
//!     fn block_on(&self, case: BoxFuture<'_, ()>) {
//!         tokio::runtime::Runtime::new().unwrap().block_on(case);
//!     }
//!     async fn open(&self, _again: Reopen) -> Arc<dyn AuditStore> {
//!         Arc::new(MemoryAuditStore::open(self.runtime()))
//!     }
//! }
//!
//! dezky_core::audit_store_conformance!(Memory);
//! # fn main() {}
//! ```

pub mod conformance;
pub mod directory;
pub mod documents;
mod events;
mod runtime;

pub use futures_util::future::BoxFuture;

pub use self::conformance::{Reopen, StoreHarness};
pub use self::directory::{DirectoryHarness, OpenDirectory};
pub use self::documents::{DocumentsHarness, OpenDocuments};
pub use self::events::{EventGenerator, named_event};
pub use self::runtime::ManualRuntime;
