//! The directory in the SQLite file of an audit log.
//!
//! Documents are JSON text; what is asked for stands in columns and side tables.

use async_trait::async_trait;
use serde::de::DeserializeOwned;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection};

use super::codec::{from_text, limit, login, signed, to_text, unsigned};
use super::{
    DirectoryChange, DirectoryStore, Partner, PartnerKey, PartnerQuery, Tenant, TenantKey,
    TenantQuery, User, UserKey, UserQuery, check_commit, check_limit, check_version, refusal,
};
use crate::store::{Anomaly, Capabilities, SqliteDatabase, sqlite_error};
use crate::{Result, SealedEvent};

/// One SQL script a version; a script that was released never changes.
const STEPS: &[&str] = &[include_str!("v1.sql")];
/// The name under which the directory's version is kept.
const COMPONENT: &str = "directory";

/// A [`DirectoryStore`] in the file of an
/// [`SqliteAuditStore`](crate::store::SqliteAuditStore), in whose log its events are.
///
/// Clones share the connections. Several processes may use one file on one machine.
///
/// ```
/// use dezky_core::directory::{DirectoryStore, SqliteDirectory, TenantKey};
/// use dezky_core::rt::TokioRuntime;
/// use dezky_core::store::{SqliteAuditStore, SqliteConfig};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> dezky_core::Result<()> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("audit.db");
/// let log = SqliteAuditStore::open(SqliteConfig::new(path), &TokioRuntime).await?;
/// let store = SqliteDirectory::open(&log.database()).await?;
/// assert_eq!(store.tenant(TenantKey::Slug("acme")).await?, None);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct SqliteDirectory {
    database: SqliteDatabase,
}

impl SqliteDirectory {
    /// The version that the directory's tables have with this program.
    pub fn schema_version() -> usize {
        STEPS.len()
    }

    /// Brings the directory's tables up to date; what is there already stays.
    ///
    /// # Errors
    /// `schema_newer`; `store_foreign` if the tables are missing and the database
    /// was opened for reading alone.
    pub async fn open(database: &SqliteDatabase) -> Result<Self> {
        database.migrate(COMPONENT, STEPS).await?;
        Ok(Self { database: database.clone() })
    }

    async fn one<T: DeserializeOwned>(
        &self,
        sql: &'static str,
        keys: &[&str],
    ) -> Result<Option<T>> {
        let mut connection = self.database.read().await?;
        let mut query = sqlx::query(sql);
        for key in keys {
            query = query.bind(*key);
        }
        let row = query.fetch_optional(&mut *connection).await.map_err(sqlite_error)?;
        row.as_ref().map(document).transpose()
    }

    async fn page<T: DeserializeOwned>(&self, mut sql: QueryBuilder<Sqlite>) -> Result<Vec<T>> {
        let mut connection = self.database.read().await?;
        let rows = sql.build().fetch_all(&mut *connection).await.map_err(sqlite_error)?;
        rows.iter().map(document).collect()
    }
}

#[async_trait]
impl DirectoryStore for SqliteDirectory {
    fn capabilities(&self) -> Capabilities {
        Capabilities::DATABASE
    }

    async fn examine(&self) -> Result<Vec<Anomaly>> {
        self.database.examine(STEPS).await
    }

    async fn tenant(&self, key: TenantKey<'_>) -> Result<Option<Tenant>> {
        match key {
            TenantKey::Id(id) => {
                self.one("SELECT document FROM dezky_tenants WHERE id = ?", &[id]).await
            }
            TenantKey::Slug(slug) => {
                self.one("SELECT document FROM dezky_tenants WHERE slug = ?", &[slug]).await
            }
            TenantKey::Domain(domain) => {
                let sql = "SELECT t.document FROM dezky_tenant_domains d \
                    JOIN dezky_tenants t ON t.id = d.tenant_id WHERE d.domain = ?";
                self.one(sql, &[domain]).await
            }
        }
    }

    async fn tenants(&self, query: &TenantQuery) -> Result<Vec<Tenant>> {
        check_limit(query.limit)?;
        self.page(select_tenants(query)).await
    }

    async fn partner(&self, key: PartnerKey<'_>) -> Result<Option<Partner>> {
        match key {
            PartnerKey::Id(id) => {
                self.one("SELECT document FROM dezky_partners WHERE id = ?", &[id]).await
            }
            PartnerKey::Slug(slug) => {
                self.one("SELECT document FROM dezky_partners WHERE slug = ?", &[slug]).await
            }
        }
    }

    async fn partners(&self, query: &PartnerQuery) -> Result<Vec<Partner>> {
        check_limit(query.limit)?;
        self.page(select_partners(query)).await
    }

    async fn user(&self, key: UserKey<'_>) -> Result<Option<User>> {
        match key {
            UserKey::Id(id) => {
                self.one("SELECT document FROM dezky_users WHERE id = ?", &[id]).await
            }
            UserKey::Subject { issuer, subject } => {
                let sql = "SELECT document FROM dezky_users WHERE issuer = ? AND subject = ?";
                self.one(sql, &[issuer, subject]).await
            }
            UserKey::Identity { system, id } => {
                let sql = "SELECT u.document FROM dezky_user_identities i \
                    JOIN dezky_users u ON u.id = i.user_id WHERE i.system = ? AND i.id = ?";
                self.one(sql, &[system, id]).await
            }
        }
    }

    async fn users(&self, query: &UserQuery) -> Result<Vec<User>> {
        check_limit(query.limit)?;
        self.page(select_users(query)).await
    }

    async fn count_tenants_of_partner(&self, partner_id: &str) -> Result<u64> {
        let mut connection = self.database.read().await?;
        let count: i64 = sqlx::query_scalar(COUNT_TENANTS)
            .bind(partner_id)
            .fetch_one(&mut *connection)
            .await
            .map_err(sqlite_error)?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    async fn tenants_revision(&self) -> Result<u64> {
        let mut connection = self.database.read().await?;
        let sum: i64 = sqlx::query_scalar(SUM_VERSIONS)
            .fetch_one(&mut *connection)
            .await
            .map_err(sqlite_error)?;
        Ok(u64::try_from(sum).unwrap_or(0))
    }

    async fn commit(&self, changes: Vec<DirectoryChange>, events: Vec<SealedEvent>) -> Result<()> {
        check_commit(&changes)?;
        let mut tx = self.database.begin().await?;
        replace(&mut tx, &changes, check_version).await?;
        self.database.commit(tx, &events).await
    }

    async fn restore(&self, documents: Vec<DirectoryChange>) -> Result<()> {
        check_commit(&documents)?;
        let mut tx = self.database.begin().await?;
        let mut newer = Vec::with_capacity(documents.len());
        for document in documents {
            let stored = stored_version(&mut tx, &document).await?;
            if stored.is_none_or(|stored| stored < document.version()) {
                newer.push(document);
            }
        }
        replace(&mut tx, &newer, |_, _, _| Ok(())).await?;
        self.database.commit(tx, &[]).await
    }
}

/// Compares what is stored with the version of a document to be.
type VersionCheck = fn(&str, Option<u64>, u64) -> Result<()>;

/// Puts documents in the place of those that are there.
async fn replace(
    tx: &mut SqliteConnection,
    changes: &[DirectoryChange],
    check: VersionCheck,
) -> Result<()> {
    // What all of them had is given up first: a domain may move within a commit.
    for change in changes {
        match change {
            DirectoryChange::Tenant(tenant) => leave_tenant(tx, tenant, check).await?,
            DirectoryChange::Partner(partner) => leave_partner(tx, partner, check).await?,
            DirectoryChange::User(user) => leave_user(tx, user, check).await?,
        }
    }
    for change in changes {
        match change {
            DirectoryChange::Tenant(tenant) => put_tenant(tx, tenant).await?,
            DirectoryChange::Partner(partner) => put_partner(tx, partner).await?,
            DirectoryChange::User(user) => put_user(tx, user).await?,
        }
    }
    Ok(())
}

async fn stored_version(
    tx: &mut SqliteConnection,
    document: &DirectoryChange,
) -> Result<Option<u64>> {
    let sql = match document {
        DirectoryChange::Tenant(_) => "SELECT version FROM dezky_tenants WHERE id = ?",
        DirectoryChange::Partner(_) => "SELECT version FROM dezky_partners WHERE id = ?",
        DirectoryChange::User(_) => "SELECT version FROM dezky_users WHERE id = ?",
    };
    let version: Option<i64> = sqlx::query_scalar(sql)
        .bind(document.identity().1)
        .fetch_optional(tx)
        .await
        .map_err(sqlite_error)?;
    Ok(version.map(unsigned))
}

const SUM_VERSIONS: &str = "SELECT coalesce(sum(version), 0) FROM dezky_tenants";

const COUNT_TENANTS: &str =
    "SELECT count(*) FROM dezky_tenants WHERE partner_id = ? AND status <> 'deleted'";

fn select_tenants(query: &TenantQuery) -> QueryBuilder<Sqlite> {
    let mut sql = QueryBuilder::new("SELECT document FROM dezky_tenants WHERE slug > ");
    sql.push_bind(query.after.clone().unwrap_or_default());
    if let Some(status) = query.status {
        sql.push(" AND status = ").push_bind(status.as_str());
    }
    if let Some(partner_id) = &query.partner_id {
        sql.push(" AND partner_id = ").push_bind(partner_id.clone());
    }
    sql.push(" ORDER BY slug LIMIT ").push_bind(limit(query.limit));
    sql
}

fn select_partners(query: &PartnerQuery) -> QueryBuilder<Sqlite> {
    let mut sql = QueryBuilder::new("SELECT document FROM dezky_partners WHERE slug > ");
    sql.push_bind(query.after.clone().unwrap_or_default());
    if let Some(status) = query.status {
        sql.push(" AND status = ").push_bind(status.as_str());
    }
    sql.push(" ORDER BY slug LIMIT ").push_bind(limit(query.limit));
    sql
}

fn select_users(query: &UserQuery) -> QueryBuilder<Sqlite> {
    let (mut sql, id) = match &query.tenant_id {
        Some(tenant_id) => {
            let mut sql = QueryBuilder::new(
                "SELECT u.document FROM dezky_user_tenants p \
                 JOIN dezky_users u ON u.id = p.user_id WHERE p.tenant_id = ",
            );
            sql.push_bind(tenant_id.clone());
            (sql, "p.user_id")
        }
        None => (QueryBuilder::new("SELECT p.document FROM dezky_users p WHERE true"), "p.id"),
    };
    if let Some(after) = &query.after {
        sql.push(format_args!(" AND (p.last_login, {id}) < ("));
        sql.push_bind(login(after.last_login_at)).push(", ");
        sql.push_bind(after.id.clone()).push(")");
    }
    sql.push(format_args!(" ORDER BY p.last_login DESC, {id} DESC LIMIT "));
    sql.push_bind(limit(query.limit));
    sql
}

async fn leave_tenant(
    tx: &mut SqliteConnection,
    tenant: &Tenant,
    check: VersionCheck,
) -> Result<()> {
    let stored: Option<(i64, String)> =
        sqlx::query_as("SELECT version, slug FROM dezky_tenants WHERE id = ?")
            .bind(&tenant.id)
            .fetch_optional(&mut *tx)
            .await
            .map_err(sqlite_error)?;
    check("tenant", stored.as_ref().map(|s| unsigned(s.0)), tenant.version)?;
    if stored.is_some_and(|(_, slug)| slug != tenant.slug) {
        return Err(refusal::fixed("slug"));
    }
    delete(tx, "DELETE FROM dezky_tenant_domains WHERE tenant_id = ?", &tenant.id).await
}

async fn leave_partner(
    tx: &mut SqliteConnection,
    partner: &Partner,
    check: VersionCheck,
) -> Result<()> {
    let stored: Option<(i64, String)> =
        sqlx::query_as("SELECT version, slug FROM dezky_partners WHERE id = ?")
            .bind(&partner.id)
            .fetch_optional(&mut *tx)
            .await
            .map_err(sqlite_error)?;
    check("partner", stored.as_ref().map(|s| unsigned(s.0)), partner.version)?;
    if stored.is_some_and(|(_, slug)| slug != partner.slug) {
        return Err(refusal::fixed("slug"));
    }
    Ok(())
}

async fn leave_user(tx: &mut SqliteConnection, user: &User, check: VersionCheck) -> Result<()> {
    let stored: Option<(i64, String, String)> =
        sqlx::query_as("SELECT version, issuer, subject FROM dezky_users WHERE id = ?")
            .bind(&user.id)
            .fetch_optional(&mut *tx)
            .await
            .map_err(sqlite_error)?;
    check("user", stored.as_ref().map(|s| unsigned(s.0)), user.version)?;
    if stored.is_some_and(|(_, issuer, subject)| issuer != user.issuer || subject != user.subject) {
        return Err(refusal::fixed("subject"));
    }
    delete(&mut *tx, "DELETE FROM dezky_user_identities WHERE user_id = ?", &user.id).await?;
    delete(tx, "DELETE FROM dezky_user_tenants WHERE user_id = ?", &user.id).await
}

async fn put_tenant(tx: &mut SqliteConnection, tenant: &Tenant) -> Result<()> {
    let put = sqlx::query(
        "INSERT INTO dezky_tenants (id, slug, status, partner_id, version, document) \
         VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET status = excluded.status, \
         partner_id = excluded.partner_id, version = excluded.version, \
         document = excluded.document ON CONFLICT (slug) DO NOTHING",
    )
    .bind(&tenant.id)
    .bind(&tenant.slug)
    .bind(tenant.status.as_str())
    .bind(&tenant.partner_id)
    .bind(signed(tenant.version))
    .bind(to_text(tenant)?)
    .execute(&mut *tx)
    .await
    .map_err(sqlite_error)?;
    if put.rows_affected() == 0 {
        return Err(refusal::taken("slug"));
    }
    for domain in tenant.owned_domains() {
        let put =
            sqlx::query("INSERT INTO dezky_tenant_domains VALUES (?, ?) ON CONFLICT DO NOTHING")
                .bind(domain)
                .bind(&tenant.id)
                .execute(&mut *tx)
                .await
                .map_err(sqlite_error)?;
        if put.rows_affected() == 0 {
            return Err(refusal::domain_taken(domain));
        }
    }
    Ok(())
}

async fn put_partner(tx: &mut SqliteConnection, partner: &Partner) -> Result<()> {
    let put = sqlx::query(
        "INSERT INTO dezky_partners (id, slug, status, version, document) VALUES (?, ?, ?, ?, ?) \
         ON CONFLICT (id) DO UPDATE SET status = excluded.status, version = excluded.version, \
         document = excluded.document ON CONFLICT (slug) DO NOTHING",
    )
    .bind(&partner.id)
    .bind(&partner.slug)
    .bind(partner.status.as_str())
    .bind(signed(partner.version))
    .bind(to_text(partner)?)
    .execute(&mut *tx)
    .await
    .map_err(sqlite_error)?;
    if put.rows_affected() == 0 {
        return Err(refusal::taken("slug"));
    }
    Ok(())
}

async fn put_user(tx: &mut SqliteConnection, user: &User) -> Result<()> {
    let put = sqlx::query(
        "INSERT INTO dezky_users (id, issuer, subject, last_login, version, document) \
         VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET \
         last_login = excluded.last_login, version = excluded.version, \
         document = excluded.document ON CONFLICT (issuer, subject) DO NOTHING",
    )
    .bind(&user.id)
    .bind(&user.issuer)
    .bind(&user.subject)
    .bind(login(user.last_login_at))
    .bind(signed(user.version))
    .bind(to_text(user)?)
    .execute(&mut *tx)
    .await
    .map_err(sqlite_error)?;
    if put.rows_affected() == 0 {
        return Err(refusal::taken("subject"));
    }
    for identity in &user.identities {
        let put = sqlx::query(
            "INSERT INTO dezky_user_identities VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(&identity.system)
        .bind(&identity.id)
        .bind(&user.id)
        .execute(&mut *tx)
        .await
        .map_err(sqlite_error)?;
        if put.rows_affected() == 0 {
            return Err(refusal::identity_taken(&identity.system));
        }
    }
    for tenant_id in &user.tenant_ids {
        sqlx::query("INSERT INTO dezky_user_tenants VALUES (?, ?, ?)")
            .bind(tenant_id)
            .bind(login(user.last_login_at))
            .bind(&user.id)
            .execute(&mut *tx)
            .await
            .map_err(sqlite_error)?;
    }
    Ok(())
}

async fn delete(tx: &mut SqliteConnection, sql: &'static str, id: &str) -> Result<()> {
    sqlx::query(sql).bind(id).execute(tx).await.map_err(sqlite_error)?;
    Ok(())
}

fn document<T: DeserializeOwned>(row: &SqliteRow) -> Result<T> {
    from_text(row.try_get(0).map_err(sqlite_error)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::{PartnerStatus, TenantStatus, UserCursor};
    use crate::rt::TokioRuntime;
    use crate::store::{SqliteAuditStore, SqliteConfig};

    /// Every list walks an index in its order, whatever it asks for.
    #[tokio::test]
    async fn no_query_scans_or_sorts() {
        let folder = tempfile::tempdir().unwrap();
        let config = SqliteConfig::new(folder.path().join("audit.db"));
        let log = SqliteAuditStore::open(config, &TokioRuntime).await.unwrap();
        let store = SqliteDirectory::open(&log.database()).await.unwrap();

        let mut selects = vec![COUNT_TENANTS.to_owned()];
        for after in [None, Some("a".to_owned())] {
            for status in [None, Some(TenantStatus::Active)] {
                for partner_id in [None, Some("p".to_owned())] {
                    let after = after.clone();
                    let query = TenantQuery { after, status, partner_id, limit: 1 };
                    selects.push(select_tenants(&query).sql().as_str().to_owned());
                }
            }
            for status in [None, Some(PartnerStatus::Active)] {
                let query = PartnerQuery { after: after.clone(), status, limit: 1 };
                selects.push(select_partners(&query).sql().as_str().to_owned());
            }
            let after = after.map(|id| UserCursor { last_login_at: None, id });
            for tenant_id in [None, Some("t".to_owned())] {
                let query = UserQuery { tenant_id, after: after.clone(), limit: 1 };
                selects.push(select_users(&query).sql().as_str().to_owned());
            }
        }
        let mut connection = store.database.read().await.unwrap();
        for select in selects {
            let explain = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {select}"));
            let plan: Vec<String> = sqlx::query(explain)
                .fetch_all(&mut *connection)
                .await
                .unwrap()
                .iter()
                .map(|row| row.get("detail"))
                .collect();
            // The first page of all users begins at the index's end.
            let is_bad = |step: &&String| {
                step.contains("TEMP B-TREE")
                    || (step.contains("SCAN") && !step.ends_with("dezky_users_login"))
            };
            assert_eq!(plan.iter().find(is_bad), None, "{select}: {plan:?}");
        }
    }
}
