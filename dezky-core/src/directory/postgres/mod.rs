//! The directory in the PostgreSQL database of an audit log.
//!
//! Documents are JSON text; what is asked for stands in columns and side tables.

use async_trait::async_trait;
use serde::de::DeserializeOwned;
use sqlx::postgres::PgRow;
use sqlx::{Postgres, QueryBuilder, Row};

use super::codec::{corrupt, from_text, limit, login, signed, to_text, unsigned};
use super::{
    DirectoryChange, DirectoryStore, Partner, PartnerKey, PartnerQuery, Tenant, TenantKey,
    TenantQuery, User, UserKey, UserQuery, check_commit, check_limit, check_version, refusal,
};
use crate::store::{Anomaly, Capabilities, PostgresDatabase, PostgresTransaction, postgres_error};
use crate::{Result, SealedEvent};

/// One SQL script a version; a script that was released never changes.
const STEPS: &[&str] = &[include_str!("v1.sql")];
/// The database's objects after the steps, for [`PostgresDatabase::examine`].
const CATALOGUE: &str = include_str!("catalogue.tsv");
/// The name under which the directory's version is kept.
const COMPONENT: &str = "directory";
/// The rights that the directory needs.
const RIGHTS: &[(&str, &[&str])] = &[
    ("dezky_directory_state", &["SELECT", "UPDATE"]),
    ("dezky_tenants", &["SELECT", "INSERT", "UPDATE"]),
    ("dezky_tenant_domains", &["SELECT", "INSERT", "DELETE"]),
    ("dezky_partners", &["SELECT", "INSERT", "UPDATE"]),
    ("dezky_users", &["SELECT", "INSERT", "UPDATE"]),
    ("dezky_user_identities", &["SELECT", "INSERT", "DELETE"]),
    ("dezky_user_tenants", &["SELECT", "INSERT", "DELETE"]),
];

/// A [`DirectoryStore`] in the database of a
/// [`PostgresAuditStore`](crate::store::PostgresAuditStore), in whose log its events
/// are.
///
/// Clones share the connections. Any number of processes may use one database: those
/// that change the directory take turns, those that read wait for nobody.
///
/// ```no_run
/// use dezky_core::directory::{DirectoryStore, PostgresDirectory, TenantKey};
/// use dezky_core::rt::TokioRuntime;
/// use dezky_core::store::{PostgresAuditStore, PostgresConfig};
/// # async fn example() -> dezky_core::Result<()> {
/// let config = PostgresConfig::new("postgres://dezky@db.internal/platform");
/// let log = PostgresAuditStore::open(config, &TokioRuntime).await?;
/// let store = PostgresDirectory::open(&log.database()).await?;
/// assert_eq!(store.tenant(TenantKey::Slug("acme")).await?, None);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct PostgresDirectory {
    database: PostgresDatabase,
}

impl PostgresDirectory {
    /// The version that the directory's tables have with this program.
    pub fn schema_version() -> usize {
        STEPS.len()
    }

    /// Brings the directory's tables up to date; what is there already stays.
    ///
    /// # Errors
    /// `schema_newer`; `store_foreign` if the tables are missing and the database
    /// was opened without migrating it; `config_invalid` if the role lacks rights.
    pub async fn open(database: &PostgresDatabase) -> Result<Self> {
        database.migrate(COMPONENT, STEPS).await?;
        database.check_rights(RIGHTS).await?;
        Ok(Self { database: database.clone() })
    }

    async fn one<T: DeserializeOwned>(
        &self,
        sql: &'static str,
        keys: &[&str],
    ) -> Result<Option<T>> {
        let mut tx = self.database.read().await?;
        let mut query = sqlx::query(sql);
        for key in keys {
            query = query.bind(storable(key));
        }
        let row = tx.fetch_optional(query).await?;
        tx.commit().await?;
        row.as_ref().map(document).transpose()
    }

    async fn page<T: DeserializeOwned>(&self, mut sql: QueryBuilder<Postgres>) -> Result<Vec<T>> {
        let mut tx = self.database.read_walk().await?;
        let rows = tx.fetch_all(sql.build()).await?;
        tx.commit().await?;
        rows.iter().map(document).collect()
    }
}

#[async_trait]
impl DirectoryStore for PostgresDirectory {
    fn capabilities(&self) -> Capabilities {
        Capabilities::DATABASE
    }

    async fn examine(&self) -> Result<Vec<Anomaly>> {
        self.database.examine(CATALOGUE).await
    }

    async fn tenant(&self, key: TenantKey<'_>) -> Result<Option<Tenant>> {
        match key {
            TenantKey::Id(id) => {
                self.one("SELECT document FROM dezky_tenants WHERE id = $1", &[id]).await
            }
            TenantKey::Slug(slug) => {
                self.one("SELECT document FROM dezky_tenants WHERE slug = $1", &[slug]).await
            }
            TenantKey::Domain(domain) => {
                let sql = "SELECT t.document FROM dezky_tenant_domains d \
                    JOIN dezky_tenants t ON t.id = d.tenant_id WHERE d.domain = $1";
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
                self.one("SELECT document FROM dezky_partners WHERE id = $1", &[id]).await
            }
            PartnerKey::Slug(slug) => {
                self.one("SELECT document FROM dezky_partners WHERE slug = $1", &[slug]).await
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
                self.one("SELECT document FROM dezky_users WHERE id = $1", &[id]).await
            }
            UserKey::Subject { issuer, subject } => {
                let sql = "SELECT document FROM dezky_users WHERE issuer = $1 AND subject = $2";
                self.one(sql, &[issuer, subject]).await
            }
            UserKey::Identity { system, id } => {
                let sql = "SELECT u.document FROM dezky_user_identities i \
                    JOIN dezky_users u ON u.id = i.user_id WHERE i.system = $1 AND i.id = $2";
                self.one(sql, &[system, id]).await
            }
        }
    }

    async fn users(&self, query: &UserQuery) -> Result<Vec<User>> {
        check_limit(query.limit)?;
        self.page(select_users(query)).await
    }

    async fn count_tenants_of_partner(&self, partner_id: &str) -> Result<u64> {
        let mut tx = self.database.read().await?;
        let count = sqlx::query(COUNT_TENANTS).bind(storable(partner_id));
        let count = tx.fetch_optional(count).await?;
        tx.commit().await?;
        count.map_or(Ok(0), |row| number(&row, 0))
    }

    async fn tenants_revision(&self) -> Result<u64> {
        let mut tx = self.database.read().await?;
        let sum = tx.fetch_optional(sqlx::query(SUM_VERSIONS)).await?;
        tx.commit().await?;
        sum.map_or(Ok(0), |row| number(&row, 0))
    }

    async fn commit(&self, changes: Vec<DirectoryChange>, events: Vec<SealedEvent>) -> Result<()> {
        check_commit(&changes)?;
        let mut tx = self.database.begin_log().await?;
        take_turn(&mut tx).await?;
        replace(&mut tx, &changes, check_version).await?;
        self.database.commit(tx, &events).await
    }

    async fn restore(&self, documents: Vec<DirectoryChange>) -> Result<()> {
        check_commit(&documents)?;
        let mut tx = self.database.begin_log().await?;
        take_turn(&mut tx).await?;
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
    tx: &mut PostgresTransaction,
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
    tx: &mut PostgresTransaction,
    document: &DirectoryChange,
) -> Result<Option<u64>> {
    let sql = match document {
        DirectoryChange::Tenant(_) => "SELECT version FROM dezky_tenants WHERE id = $1",
        DirectoryChange::Partner(_) => "SELECT version FROM dezky_partners WHERE id = $1",
        DirectoryChange::User(_) => "SELECT version FROM dezky_users WHERE id = $1",
    };
    let stored = tx.fetch_optional(sqlx::query(sql).bind(document.identity().1)).await?;
    stored.map(|row| number(&row, 0)).transpose()
}

/// A key in a form that PostgreSQL takes, which has no NUL in texts. No key that is
/// stored has a control character, so another one in its place finds and orders the
/// same.
fn storable(key: &str) -> String {
    key.replace('\0', "\u{1}")
}

/// Excludes other writers until the transaction ends. What they committed before is
/// seen by every statement after this one, as none of ours began earlier.
async fn take_turn(tx: &mut PostgresTransaction) -> Result<()> {
    tx.fetch_optional(sqlx::query("SELECT one FROM dezky_directory_state FOR UPDATE"))
        .await?
        .map(|_| ())
        .ok_or_else(|| corrupt("the row of dezky_directory_state is missing"))
}

const SUM_VERSIONS: &str = "SELECT coalesce(sum(version), 0)::bigint FROM dezky_tenants";

const COUNT_TENANTS: &str =
    "SELECT count(*) FROM dezky_tenants WHERE partner_id = $1 AND status <> 'deleted'";

fn select_tenants(query: &TenantQuery) -> QueryBuilder<Postgres> {
    let mut sql = QueryBuilder::new("SELECT document FROM dezky_tenants WHERE slug > ");
    sql.push_bind(storable(query.after.as_deref().unwrap_or_default()));
    if let Some(status) = query.status {
        sql.push(" AND status = ").push_bind(status.as_str());
    }
    if let Some(partner_id) = &query.partner_id {
        sql.push(" AND partner_id = ").push_bind(storable(partner_id));
    }
    sql.push(" ORDER BY slug LIMIT ").push_bind(limit(query.limit));
    sql
}

fn select_partners(query: &PartnerQuery) -> QueryBuilder<Postgres> {
    let mut sql = QueryBuilder::new("SELECT document FROM dezky_partners WHERE slug > ");
    sql.push_bind(storable(query.after.as_deref().unwrap_or_default()));
    if let Some(status) = query.status {
        sql.push(" AND status = ").push_bind(status.as_str());
    }
    sql.push(" ORDER BY slug LIMIT ").push_bind(limit(query.limit));
    sql
}

fn select_users(query: &UserQuery) -> QueryBuilder<Postgres> {
    let (mut sql, id) = match &query.tenant_id {
        Some(tenant_id) => {
            let mut sql = QueryBuilder::new(
                "SELECT u.document FROM dezky_user_tenants p \
                 JOIN dezky_users u ON u.id = p.user_id WHERE p.tenant_id = ",
            );
            sql.push_bind(storable(tenant_id));
            (sql, "p.user_id")
        }
        None => (QueryBuilder::new("SELECT p.document FROM dezky_users p WHERE true"), "p.id"),
    };
    if let Some(after) = &query.after {
        sql.push(format_args!(" AND (p.last_login, {id}) < ("));
        sql.push_bind(login(after.last_login_at)).push(", ");
        sql.push_bind(storable(&after.id)).push(")");
    }
    sql.push(format_args!(" ORDER BY p.last_login DESC, {id} DESC LIMIT "));
    sql.push_bind(limit(query.limit));
    sql
}

async fn leave_tenant(
    tx: &mut PostgresTransaction,
    tenant: &Tenant,
    check: VersionCheck,
) -> Result<()> {
    let sql = "SELECT version, slug FROM dezky_tenants WHERE id = $1";
    let stored = stored(tx, sql, &tenant.id).await?;
    check("tenant", stored.version, tenant.version)?;
    if stored.differs(&[&tenant.slug]) {
        return Err(refusal::fixed("slug"));
    }
    if stored.version.is_none() {
        return Ok(());
    }
    delete(tx, "DELETE FROM dezky_tenant_domains WHERE tenant_id = $1", &tenant.id).await
}

async fn leave_partner(
    tx: &mut PostgresTransaction,
    partner: &Partner,
    check: VersionCheck,
) -> Result<()> {
    let sql = "SELECT version, slug FROM dezky_partners WHERE id = $1";
    let stored = stored(tx, sql, &partner.id).await?;
    check("partner", stored.version, partner.version)?;
    if stored.differs(&[&partner.slug]) {
        return Err(refusal::fixed("slug"));
    }
    Ok(())
}

async fn leave_user(tx: &mut PostgresTransaction, user: &User, check: VersionCheck) -> Result<()> {
    let sql = "SELECT version, issuer, subject FROM dezky_users WHERE id = $1";
    let stored = stored(tx, sql, &user.id).await?;
    check("user", stored.version, user.version)?;
    if stored.differs(&[&user.issuer, &user.subject]) {
        return Err(refusal::fixed("subject"));
    }
    if stored.version.is_none() {
        return Ok(());
    }
    delete(tx, "DELETE FROM dezky_user_identities WHERE user_id = $1", &user.id).await?;
    delete(tx, "DELETE FROM dezky_user_tenants WHERE user_id = $1", &user.id).await
}

/// What stands in the place of a document to be: its version, and what never changes.
struct Stored {
    version: Option<u64>,
    fixed: Vec<String>,
}

impl Stored {
    fn differs(&self, fixed: &[&String]) -> bool {
        self.version.is_some() && !self.fixed.iter().eq(fixed.iter().copied())
    }
}

async fn stored(tx: &mut PostgresTransaction, sql: &'static str, id: &str) -> Result<Stored> {
    let Some(row) = tx.fetch_optional(sqlx::query(sql).bind(id)).await? else {
        return Ok(Stored { version: None, fixed: Vec::new() });
    };
    let fixed = (1..row.len()).map(|column| row.try_get(column).map_err(postgres_error));
    Ok(Stored { version: Some(number(&row, 0)?), fixed: fixed.collect::<Result<_>>()? })
}

async fn put_tenant(tx: &mut PostgresTransaction, tenant: &Tenant) -> Result<()> {
    let put = sqlx::query(
        "INSERT INTO dezky_tenants (id, slug, status, partner_id, version, document) \
         SELECT $1, $2, $3, $4, $5, $6 \
         WHERE NOT EXISTS (SELECT 1 FROM dezky_tenants WHERE slug = $2 AND id <> $1) \
         ON CONFLICT (id) DO UPDATE SET status = excluded.status, \
         partner_id = excluded.partner_id, version = excluded.version, \
         document = excluded.document",
    )
    .bind(&tenant.id)
    .bind(&tenant.slug)
    .bind(tenant.status.as_str())
    .bind(&tenant.partner_id)
    .bind(signed(tenant.version))
    .bind(to_text(tenant)?);
    if tx.execute(put).await? == 0 {
        return Err(refusal::taken("slug"));
    }
    for domain in tenant.owned_domains() {
        let put = sqlx::query(
            "INSERT INTO dezky_tenant_domains (domain, tenant_id) VALUES ($1, $2) \
             ON CONFLICT DO NOTHING",
        )
        .bind(domain)
        .bind(&tenant.id);
        if tx.execute(put).await? == 0 {
            return Err(refusal::domain_taken(domain));
        }
    }
    Ok(())
}

async fn put_partner(tx: &mut PostgresTransaction, partner: &Partner) -> Result<()> {
    let put = sqlx::query(
        "INSERT INTO dezky_partners (id, slug, status, version, document) \
         SELECT $1, $2, $3, $4, $5 \
         WHERE NOT EXISTS (SELECT 1 FROM dezky_partners WHERE slug = $2 AND id <> $1) \
         ON CONFLICT (id) DO UPDATE SET status = excluded.status, version = excluded.version, \
         document = excluded.document",
    )
    .bind(&partner.id)
    .bind(&partner.slug)
    .bind(partner.status.as_str())
    .bind(signed(partner.version))
    .bind(to_text(partner)?);
    if tx.execute(put).await? == 0 {
        return Err(refusal::taken("slug"));
    }
    Ok(())
}

async fn put_user(tx: &mut PostgresTransaction, user: &User) -> Result<()> {
    let put = sqlx::query(
        "INSERT INTO dezky_users (id, issuer, subject, last_login, version, document) \
         SELECT $1, $2, $3, $4, $5, $6 WHERE NOT EXISTS \
         (SELECT 1 FROM dezky_users WHERE issuer = $2 AND subject = $3 AND id <> $1) \
         ON CONFLICT (id) DO UPDATE SET last_login = excluded.last_login, \
         version = excluded.version, document = excluded.document",
    )
    .bind(&user.id)
    .bind(&user.issuer)
    .bind(&user.subject)
    .bind(login(user.last_login_at))
    .bind(signed(user.version))
    .bind(to_text(user)?);
    if tx.execute(put).await? == 0 {
        return Err(refusal::taken("subject"));
    }
    for identity in &user.identities {
        let put = sqlx::query(
            "INSERT INTO dezky_user_identities (system, id, user_id) VALUES ($1, $2, $3) \
             ON CONFLICT DO NOTHING",
        )
        .bind(&identity.system)
        .bind(&identity.id)
        .bind(&user.id);
        if tx.execute(put).await? == 0 {
            return Err(refusal::identity_taken(&identity.system));
        }
    }
    if user.tenant_ids.is_empty() {
        return Ok(());
    }
    let put = sqlx::query(
        "INSERT INTO dezky_user_tenants (tenant_id, last_login, user_id) \
         SELECT tenant_id, $2, $3 FROM unnest($1) AS tenant_id",
    )
    .bind(&user.tenant_ids)
    .bind(login(user.last_login_at))
    .bind(&user.id);
    tx.execute(put).await.map(drop)
}

async fn delete(tx: &mut PostgresTransaction, sql: &'static str, id: &str) -> Result<()> {
    tx.execute(sqlx::query(sql).bind(id)).await.map(drop)
}

fn document<T: DeserializeOwned>(row: &PgRow) -> Result<T> {
    from_text(row.try_get(0).map_err(postgres_error)?)
}

fn number(row: &PgRow, column: usize) -> Result<u64> {
    row.try_get(column).map(unsigned).map_err(postgres_error)
}

#[cfg(test)]
mod tests {
    use sqlx::{AssertSqlSafe, Connection, Execute, Executor, PgConnection};

    use super::*;
    use crate::directory::{PartnerStatus, TenantStatus, UserCursor};
    use crate::rt::TokioRuntime;
    use crate::store::{PostgresAuditStore, PostgresConfig};
    use crate::{Runtime, Timestamp};

    const ROWS: &str = "
        INSERT INTO dezky_tenants SELECT 't' || n, 's' || n,
            CASE WHEN n % 4 = 0 THEN 'deleted' ELSE 'active' END,
            CASE WHEN n % 2 = 0 THEN 'p' || n % 50 END, 1, repeat('x', 500)
            FROM generate_series(1, 20000) n;
        INSERT INTO dezky_partners SELECT 'p' || n, 's' || n,
            CASE WHEN n % 4 = 0 THEN 'terminated' ELSE 'active' END, 1, repeat('x', 500)
            FROM generate_series(1, 20000) n;
        INSERT INTO dezky_users SELECT 'u' || n, 'i', 's' || n, n % 1000, 1, repeat('x', 500)
            FROM generate_series(1, 20000) n;
        INSERT INTO dezky_user_tenants SELECT 't' || n % 50, n % 1000, 'u' || n
            FROM generate_series(1, 20000) n;
        ANALYZE dezky_tenants, dezky_partners, dezky_users, dezky_user_tenants";

    /// Every list walks an index in its order, whatever it asks for, and however often.
    #[tokio::test]
    async fn no_query_scans_or_sorts() {
        let server = test_server();
        let mut random = [0; 8];
        TokioRuntime.fill_random(&mut random);
        let schema = format!("dezky_test_plans_{:016x}", u64::from_be_bytes(random));
        let mut admin = PgConnection::connect(&server).await.unwrap();
        admin.execute(AssertSqlSafe(format!("CREATE SCHEMA {schema}"))).await.unwrap();
        let url = format!("{server}?options=-c%20search_path%3D{schema}");
        let log = PostgresAuditStore::open(PostgresConfig::new(url), &TokioRuntime).await.unwrap();
        let store = PostgresDirectory::open(&log.database()).await.unwrap();
        let mut tx = store.database.begin().await.unwrap();
        tx.run(ROWS).await.unwrap();
        tx.commit().await.unwrap();

        for mut select in selects() {
            let mut query = select.build();
            let arguments = query.take_arguments().unwrap().unwrap();
            let select = query.sql();
            let explain = AssertSqlSafe(format!("EXPLAIN {}", select.as_str()));
            let mut tx = store.database.read_walk().await.unwrap();
            let plan = tx.fetch_all(sqlx::query_with(explain, arguments)).await.unwrap();
            let plan: Vec<String> = plan.iter().map(|row| row.get(0)).collect();
            let is_bad =
                |step: &&String| ["Seq Scan", "Sort", "Bitmap"].iter().any(|s| step.contains(s));
            assert_eq!(plan.iter().find(is_bad), None, "{}: {plan:?}", select.as_str());
        }
        log.close().await;
        admin.execute(AssertSqlSafe(format!("DROP SCHEMA {schema} CASCADE"))).await.unwrap();
    }

    fn selects() -> Vec<QueryBuilder<Postgres>> {
        let mut selects = Vec::new();
        for after in [None, Some("s".to_owned())] {
            for status in [None, Some(TenantStatus::Active), Some(TenantStatus::Pending)] {
                for partner_id in [None, Some("p2".to_owned()), Some("p".to_owned())] {
                    let after = after.clone();
                    selects.push(select_tenants(&TenantQuery {
                        after,
                        status,
                        partner_id,
                        limit: 500,
                    }));
                }
            }
            for status in [None, Some(PartnerStatus::Active)] {
                let query = PartnerQuery { after: after.clone(), status, limit: 500 };
                selects.push(select_partners(&query));
            }
            let last_login_at = Timestamp::from_millis(500);
            let after = after.map(|id| UserCursor { last_login_at, id });
            for tenant_id in [None, Some("t7".to_owned()), Some("t".to_owned())] {
                selects.push(select_users(&UserQuery {
                    tenant_id,
                    after: after.clone(),
                    limit: 500,
                }));
            }
        }
        selects
    }

    #[expect(clippy::disallowed_methods, reason = "a test is told of its server")]
    fn test_server() -> String {
        std::env::var("DEZKY_TEST_POSTGRES")
            .expect("DEZKY_TEST_POSTGRES is not set: run this by .ci/with-servers")
    }
}
