//! What a database is to the log, alike for all engines that have a schema.

use crate::{Error, ErrorKind, Result};

/// The name under which the log's version is kept: other parts of the product
/// have versions of their own in the same database.
pub(super) const COMPONENT: &str = "audit";

/// What a database is, before anything in it is touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// No tables or collections at all.
    Empty,
    /// Some, none of them ours.
    Foreign,
    /// Ours, the log at this version; 0 where it was never set up.
    Version(usize),
}

impl Found {
    /// Whether steps are missing of the `known` ones. Refuses a newer log, somebody
    /// else's database unless it is to be `shared`, and missing steps unless they
    /// may be taken.
    pub(super) fn is_behind(self, known: usize, shared: bool, may_migrate: bool) -> Result<bool> {
        let version = match self {
            Self::Version(version) => version,
            Self::Foreign if !shared => {
                return Err(Error::new(
                    ErrorKind::StoreForeign,
                    "the database has tables but no audit log: name another one",
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

/// The statements that take a log from `version` to the end of `steps`, one part after
/// the other: parts are separated by blank lines. Where there may be events each is told
/// before it is given out, as it takes minutes on a large log.
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(super) fn parts(
    steps: &[&'static str],
    version: usize,
) -> impl Iterator<Item = &'static str> + use<> {
    let parts: Vec<_> = steps[version..].iter().flat_map(|step| step.split("\n\n")).collect();
    let (to, of) = (steps.len(), parts.len());
    parts.into_iter().zip(1_usize..).map(move |(part, number)| {
        tell(version, to, (number, of));
        part
    })
}

/// Tells how far the migration of a log is; a new one is made in no time.
pub(super) fn tell(from: usize, to: usize, (part, of): (usize, usize)) {
    if from > 0 {
        tracing::info!(from, to, part, of, "the log's schema is brought up to date");
    }
}

/// Refuses what was written by a newer version than the `known` one.
pub(super) fn check_version(version: usize, known: usize) -> Result<()> {
    if version > known {
        return Err(Error::new(
            ErrorKind::SchemaNewer,
            format!(
                "the database has schema version {version}, this program knows {known}: use a newer program"
            ),
        ));
    }
    Ok(())
}
