//! Copies of everything in one store to another, whatever their engines.
//!
//! ```
//! use dezky::{Access, Actor, NewEvent, Platform, StoreConfig, Stores, copy};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> dezky::Result<()> {
//! let from = Platform::open("memory://").await?;
//! from.log.record(NewEvent::new("tenant.created", Actor::system())).await;
//!
//! let to = Stores::open(&StoreConfig::parse("memory://")?, Access::Migrate).await?;
//! let copied = copy::copy(from.stores(), &to, |_| ()).await?;
//! assert_eq!((copied.rows, copied.head.next_seq), (1, 1));
//! # Ok(())
//! # }
//! ```

use dezky_core::copy::{
    CopyOptions, DocumentCounts, check_directory, check_log, compare_directories, compare_logs,
    copy_directory, copy_log, relay_all,
};
use dezky_core::store::Head;
use dezky_core::verify::{ExpectedHead, verify};
use dezky_core::{Error, ErrorKind, Result};
use dezky_flags::store::{FlagTable, check_flags, copy_flags};

use crate::engine::Stores;

/// The maximum number of rounds before the copy gives up: while the source keeps changing, both
/// ends never become equal.
const MAX_ROUNDS: usize = 5;

/// A part of the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyStep {
    /// Documents of the directory.
    Documents,
    /// Rows of the log.
    Rows,
    /// Rows of the source that are verified.
    VerifySource,
    /// Rows of the target that are verified.
    VerifyTarget,
}

impl CopyStep {
    /// The step in words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Documents => "documents",
            Self::Rows => "rows",
            Self::VerifySource => "verifying the source",
            Self::VerifyTarget => "verifying the target",
        }
    }
}

/// The progress of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyProgress {
    /// The part of the work.
    pub step: CopyStep,
    /// The number of documents or rows that this step has processed.
    pub done: u64,
    /// Their total number, where that is known.
    pub total: Option<u64>,
}

/// The content of both ends after a copy.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Copied {
    /// The number of rows that this call copied.
    pub rows: u64,
    /// The head of both logs.
    pub head: Head,
    /// The number of documents.
    pub documents: DocumentCounts,
    /// The flags.
    pub flags: FlagTable,
}

/// Copies log, directory and flags, until both ends are verified and equal.
///
/// Can be stopped at any time, also by dropping the future, and called again: it continues from
/// what the target has. `progress` is called often.
///
/// # Errors
/// `state_conflict` if the target contains anything else, then nothing was changed, or if
/// one of the stores is being written to. `store_corrupt` if one of the logs does not
/// verify. Those of the stores; after a retryable one the same call continues.
pub async fn copy(
    from: &Stores,
    to: &Stores,
    progress: impl FnMut(CopyProgress) + Send,
) -> Result<Copied> {
    Copy { from, to, progress, rows: 0, documents: DocumentCounts::default() }.run().await
}

struct Copy<'s, P> {
    from: &'s Stores,
    to: &'s Stores,
    progress: P,
    rows: u64,
    documents: DocumentCounts,
}

impl<P: FnMut(CopyProgress) + Send> Copy<'_, P> {
    async fn run(mut self) -> Result<Copied> {
        self.check().await.map_err(|error| {
            Error::new(error.kind(), format!("{error} (nothing was changed)")).with_source(error)
        })?;
        let mut difference = String::new();
        for _ in 0..MAX_ROUNDS {
            let flags = self.bring_over().await?;
            if let Some(found) = self.difference(&flags).await? {
                difference = found;
                continue;
            }
            let head = self.verify_both().await?;
            // Verifying takes a while: copy what was written in the meantime too.
            match self.difference(&flags).await? {
                None => {
                    let Self { rows, documents, .. } = self;
                    return Ok(Copied { rows, head, documents, flags });
                }
                Some(found) => difference = found,
            }
        }
        Err(Error::new(
            ErrorKind::StateConflict,
            format!(
                "one of the stores is being written to ({difference}): stop the servers on both, then repeat the command"
            ),
        ))
    }

    /// Refuses a target with other content before anything is written to it.
    async fn check(&self) -> Result<()> {
        let (from, to) = (self.from, self.to);
        relay_all(&*from.log).await?;
        check_log(&*from.log, &*to.log).await?;
        check_directory(&*from.directory, &*to.directory).await?;
        check_flags(&*from.flags, &*to.flags).await
    }

    async fn bring_over(&mut self) -> Result<FlagTable> {
        let (from, to, progress) = (self.from, self.to, &mut self.progress);
        relay_all(&*from.log).await?;
        // Documents before the log, so that everything that the log refers to exists.
        let step = CopyStep::Documents;
        progress(CopyProgress { step, done: 0, total: None });
        self.documents = copy_directory(&*from.directory, &*to.directory, |done| {
            progress(CopyProgress { step, done, total: None });
        })
        .await?;
        let flags = copy_flags(&*from.flags, &*to.flags).await?;
        let step = CopyStep::Rows;
        let done = to.log.state().await?.head.next_seq;
        progress(CopyProgress { step, done, total: None });
        let copied = copy_log(&*from.log, &*to.log, CopyOptions::default(), |copied| {
            progress(CopyProgress { step, done: copied.done, total: Some(copied.total) });
        });
        self.rows += copied.await?.rows;
        Ok(flags)
    }

    /// A difference between the ends, if there is one.
    async fn difference(&self, flags: &FlagTable) -> Result<Option<String>> {
        let (from, to) = (self.from, self.to);
        // Events of a change that was made in the meantime.
        if relay_all(&*from.log).await? > 0 {
            return Ok(Some("the log keeps growing".into()));
        }
        if let Some(found) = compare_logs(&*from.log, &*to.log).await? {
            return Ok(Some(found));
        }
        if let Some(found) = compare_directories(&*from.directory, &*to.directory).await? {
            return Ok(Some(found));
        }
        for store in [&from.flags, &to.flags] {
            if store.table().await? != *flags {
                return Ok(Some("the flags differ".into()));
            }
        }
        Ok(None)
    }

    /// Recomputes both logs up to the target's head.
    async fn verify_both(&mut self) -> Result<Head> {
        let head = self.to.log.state().await?.head;
        let expected =
            head.next_seq.checked_sub(1).map(|seq| ExpectedHead { seq, hash: head.hash });
        for (which, step, log) in [
            ("source", CopyStep::VerifySource, &self.from.log),
            ("target", CopyStep::VerifyTarget, &self.to.log),
        ] {
            let total = Some(head.next_seq);
            (self.progress)(CopyProgress { step, done: 0, total });
            let verdict = verify(&**log, expected, |done| {
                (self.progress)(CopyProgress { step, done, total });
            });
            let verdict = verdict.await?;
            // A copy reads the rows themselves, so it also rescues those that the source's
            // lists do not show.
            let problem = match step {
                CopyStep::VerifySource => verdict.finding.map(|found| found.to_string()),
                _ => verdict.problem(),
            };
            if let Some(problem) = problem {
                return Err(Error::new(
                    ErrorKind::StoreCorrupt,
                    format!("the {which} is not what was recorded: {problem}: run verify on it"),
                ));
            }
        }
        Ok(head)
    }
}
