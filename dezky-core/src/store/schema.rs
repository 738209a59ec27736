//! Schema versions, for all engines that have a schema.

use crate::{Error, ErrorKind, Result};

/// The log's component name in the table of versions. Other components of the same database have
/// their own versions.
pub(super) const COMPONENT: &str = "audit";

/// The state of a database, examined before anything is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// The database has no tables or collections.
    Empty,
    /// The database has tables or collections, but none of ours.
    Foreign,
    /// The log's schema version; 0 if only other components were set up.
    Version(usize),
}

impl Found {
    /// Whether the schema lacks some of the `known` steps. Refuses a newer schema, another
    /// application's database unless it may be `shared`, and missing steps unless `may_migrate`.
    pub(super) fn is_behind(self, known: usize, shared: bool, may_migrate: bool) -> Result<bool> {
        let version = match self {
            Self::Version(version) => version,
            Self::Foreign if !shared => {
                return Err(Error::new(
                    ErrorKind::StoreForeign,
                    "the database has tables but no audit log: name another one, or allow sharing it",
                ));
            }
            Self::Empty | Self::Foreign => 0,
        };
        check_version(version, known)?;
        if version < known && !may_migrate {
            return Err(Error::new(
                ErrorKind::StoreForeign,
                "the database holds no audit log of this version: name another one, or migrate it",
            ));
        }
        Ok(version < known)
    }
}

/// The statements that migrate a log from `version` to the end of `steps`, part by part; blank
/// lines separate the parts. If the log may have events, each part is logged before it is yielded,
/// because it takes minutes on a large log.
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(super) fn parts(
    steps: &[&'static str],
    version: usize,
) -> impl Iterator<Item = &'static str> + use<> {
    let parts: Vec<_> = steps[version..].iter().flat_map(|step| step.split("\n\n")).collect();
    let (to, of) = (steps.len(), parts.len());
    parts.into_iter().zip(1_usize..).map(move |(part, number)| {
        log_progress(version, to, (number, of));
        part
    })
}

/// Logs the progress of a log's migration. Creating a new log is quick and not logged.
pub(super) fn log_progress(from: usize, to: usize, (part, of): (usize, usize)) {
    if from > 0 {
        tracing::info!(from, to, part, of, "the log's schema is being brought up to date");
    }
}

/// Refuses a schema that is newer than the `known` version.
pub(super) fn check_version(version: usize, known: usize) -> Result<()> {
    if version > known {
        return Err(Error::new(
            ErrorKind::SchemaNewer,
            format!(
                "the database has schema version {version}, which is newer than this build supports ({known}): upgrade dezky"
            ),
        ));
    }
    Ok(())
}
