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
