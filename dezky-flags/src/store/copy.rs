use dezky_core::documents::Known;
use dezky_core::{Error, ErrorKind, Result};

use super::{FlagChange, FlagStore, FlagTable, MAX_COMMIT_CHANGES};
use crate::Flag;

/// Checks that the target has no flags, or those of the source at an earlier time.
///
/// # Errors
/// `state_conflict` if they are anything else. Nothing was changed.
pub async fn check_flags(from: &dyn FlagStore, to: &dyn FlagStore) -> Result<()> {
    changes_between(&to.table().await?, &from.table().await?).map(drop)
}

/// Updates the target's flags to the source's, without events: flags, versions of removed keys and
/// the revision. Returns the common table.
///
/// Cancel-safe and idempotent: a later call continues, also if the source has changed since.
///
/// # Errors
/// Those of [`check_flags`], and those of the stores.
///
/// ```
/// use dezky_core::Timestamp;
/// use dezky_core::store::MemoryAuditStore;
/// use dezky_flags::store::{FlagChange, FlagStore, DocumentFlagStore, copy_flags};
/// use dezky_flags::{Flag, NewFlag};
/// # use dezky_core::rt::TokioRuntime;
/// # use std::sync::Arc;
///
/// # async fn run() -> dezky_core::Result<()> {
/// # let runtime = Arc::new(TokioRuntime);
/// # let store = || DocumentFlagStore::in_memory(Arc::new(MemoryAuditStore::open(runtime.clone())));
/// let (from, to) = (store(), store());
/// let chat = Flag::new(NewFlag::new("chat"), Timestamp::MIN)?;
/// from.commit(vec![FlagChange::Create(chat.into())], Vec::new()).await?;
/// assert_eq!(copy_flags(&from, &to).await?, to.table().await?);
/// assert_eq!(to.revision().await?, 1);
/// # Ok(())
/// # }
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(run()).unwrap();
/// ```
pub async fn copy_flags(from: &dyn FlagStore, to: &dyn FlagStore) -> Result<FlagTable> {
    let (source, target) = (from.table().await?, to.table().await?);
    if target == FlagTable::default() {
        to.restore(source.clone()).await?;
        return Ok(source);
    }
    let mut changes = changes_between(&target, &source)?;
    while !changes.is_empty() {
        let rest = changes.split_off(changes.len().min(MAX_COMMIT_CHANGES));
        to.commit(changes, Vec::new()).await?;
        changes = rest;
    }
    Ok(source)
}

/// The changes that lead from an earlier table to a later one of the same store.
///
/// Each change of a key raises its version and the revision by one, so one change per version leads
/// to the later revision too. Only the last change of a key has the flag's real content.
fn changes_between(earlier: &FlagTable, later: &FlagTable) -> Result<Vec<FlagChange>> {
    if *earlier == FlagTable::default() {
        return Ok(Vec::new());
    }
    let flags = later.snapshot().flags;
    let mut changes = Vec::new();
    for flag in &flags {
        let versions = follow(earlier, &flag.key, flag.version)?;
        let is_other = match earlier.flag(&flag.key) {
            Some(here) if versions.is_empty() => here != flag,
            // A flag of another store may be older and yet not the same.
            Some(here) => here.created_at > flag.created_at,
            None => versions.is_empty(),
        };
        if is_other {
            return Err(other(&flag.key));
        }
        let mut is_here = earlier.flag(&flag.key).is_some();
        for version in versions {
            let flag = Box::new(Flag { version, ..flag.clone() });
            changes.push(if is_here {
                FlagChange::Replace(flag)
            } else {
                FlagChange::Create(flag)
            });
            is_here = true;
        }
    }
    for (key, removed) in later.removed() {
        let mut versions = follow(earlier, key, removed)?;
        let here = earlier.flag(key);
        let was_removed = versions.pop().is_some();
        // A key that the target lacks was created and removed in between.
        if here.is_some() != was_removed && (here.is_some() || versions.is_empty()) {
            return Err(other(key));
        }
        if !was_removed {
            continue;
        }
        let mut stands = here.cloned();
        for version in versions {
            let flag = match &stands {
                Some(flag) => Flag { version, ..flag.clone() },
                None => placeholder(key, version)?,
            };
            let change = Box::new(flag.clone());
            let is_here = stands.replace(flag).is_some();
            changes.push(if is_here {
                FlagChange::Replace(change)
            } else {
                FlagChange::Create(change)
            });
        }
        changes.push(FlagChange::Remove { key: key.to_owned(), version: removed - 1 });
    }
    let known = |key: &str| later.known(key) != Known::Never;
    let keys = earlier.snapshot().flags.into_iter().map(|flag| flag.key);
    let removed = earlier.removed().map(|(key, _)| key.to_owned());
    match keys.chain(removed).find(|key| !known(key)) {
        Some(key) => Err(other(&key)),
        None if earlier.revision() + changes.len() as u64 == later.revision() => Ok(changes),
        None => Err(Error::new(
            ErrorKind::StateConflict,
            "the target's flags have another history than the source's: name an empty store as the target",
        )),
    }
}

/// The versions of a key that the earlier table has not seen yet, up to `last`.
fn follow(earlier: &FlagTable, key: &str, last: u64) -> Result<Vec<u64>> {
    let seen = earlier.last_version(key);
    // So many changes between two copies mean another store.
    if seen > last || last - seen > 100_000 {
        return Err(other(key));
    }
    Ok((seen + 1..=last).collect())
}

fn placeholder(key: &str, version: u64) -> Result<Flag> {
    let flag = Flag::new(crate::NewFlag::new(key), dezky_core::Timestamp::MIN)?;
    Ok(Flag { version, ..flag })
}

fn other(key: &str) -> Error {
    Error::new(
        ErrorKind::StateConflict,
        format!("the target has its own flag {key}: name an empty store as the target"),
    )
}
