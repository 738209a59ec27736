//! The directory in the SQLite file of an audit log.
//!
//! Documents are JSON text; what is asked for stands in columns and side tables.

use async_trait::async_trait;

use super::{
    DirectoryChange, DirectoryStore, Partner, PartnerKey, PartnerQuery, Tenant, TenantKey,
    TenantQuery, User, UserKey, UserQuery,
};
use crate::store::{Capabilities, SqliteDatabase};
use crate::{Result, SealedEvent};

/// A [`DirectoryStore`] in the file of an
/// [`SqliteAuditStore`](crate::store::SqliteAuditStore).
#[derive(Debug, Clone)]
pub struct SqliteDirectory {
    database: SqliteDatabase,
}

/// One SQL script a version; a script that was released never changes.
const STEPS: &[&str] = &[include_str!("v1.sql")];
/// The name under which the directory's version is kept.
const COMPONENT: &str = "directory";

impl SqliteDirectory {
    /// Brings the directory's tables up to date; an existing directory is found again.
    ///
    /// # Errors
    /// `schema_newer`; `store_foreign` if the tables are missing and the database
    /// was opened for reading alone.
    pub async fn open(database: &SqliteDatabase) -> Result<Self> {
        database.migrate(COMPONENT, STEPS).await?;
        Ok(Self { database: database.clone() })
    }
}

#[async_trait]
impl DirectoryStore for SqliteDirectory {
    fn capabilities(&self) -> Capabilities {
        Capabilities::DATABASE
    }
    async fn tenant(&self, _key: TenantKey<'_>) -> Result<Option<Tenant>> {
        unreachable!()
    }
    async fn tenants(&self, _query: &TenantQuery) -> Result<Vec<Tenant>> {
        unreachable!()
    }
    async fn partner(&self, _key: PartnerKey<'_>) -> Result<Option<Partner>> {
        unreachable!()
    }
    async fn partners(&self, _query: &PartnerQuery) -> Result<Vec<Partner>> {
        unreachable!()
    }
    async fn user(&self, _key: UserKey<'_>) -> Result<Option<User>> {
        unreachable!()
    }
    async fn users(&self, _query: &UserQuery) -> Result<Vec<User>> {
        unreachable!()
    }
    async fn count_tenants_of_partner(&self, _partner_id: &str) -> Result<u64> {
        unreachable!()
    }
    async fn commit(
        &self,
        _changes: Vec<DirectoryChange>,
        _events: Vec<SealedEvent>,
    ) -> Result<()> {
        unreachable!("{:?}", self.database)
    }
}
