//! Test utilities: generated flags and contexts, and the conformance suite that every store of this
//! crate passes.
//!
//! Run the whole suite against your own store with one macro call:
//!
//! ```
//! # use std::sync::Arc;
//! use dezky_core::store::MemoryAuditStore;
//! use dezky_core::testkit::{BoxFuture, Reopen};
//! use dezky_core::{Runtime, rt::TokioRuntime};
//! use dezky_flags::store::DocumentFlagStore;
//! use dezky_flags::testkit::{FlagStoreHarness, Opened};
//!
//! struct Memory;
//!
//! #[async_trait::async_trait]
//! impl FlagStoreHarness for Memory {
//!     fn runtime(&self) -> Arc<dyn Runtime> {
//!         Arc::new(TokioRuntime)
//!     }
//!     fn block_on(&self, case: BoxFuture<'_, ()>) {
//!         tokio::runtime::Runtime::new().unwrap().block_on(case);
//!     }
//!     async fn open(&self, _again: Reopen) -> Opened {
//!         let log = Arc::new(MemoryAuditStore::open(self.runtime()));
//!         Opened { store: Arc::new(DocumentFlagStore::in_memory(log.clone())), log }
//!     }
//! }
//!
//! dezky_flags::flag_store_conformance!(Memory);
//! # fn main() {}
//! ```

pub mod conformance;
mod flags;

pub use self::conformance::{FlagStoreHarness, Opened};
pub use self::flags::{Asker, FlagGenerator};
