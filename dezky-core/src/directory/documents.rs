//! The directory as documents: the keys, indexed fields and tables of tenants, partners and
//! users.

use async_trait::async_trait;
use serde::de::DeserializeOwned;

use super::{
    DirectoryChange, DirectoryStore, Partner, PartnerKey, PartnerQuery, Tenant, TenantKey,
    TenantQuery, User, UserCursor, UserKey, UserQuery, check_commit,
};
use crate::documents::{
    Collection, Database, Document, Documents, Field, Filter, Index, Key, Kind, MemoryDatabase,
    Order, Owned, Page, Put, Removal, Schema, Set, Side, Stored, Transaction, Value, joined,
};
use crate::store::{Anomaly, Capabilities};
use crate::{AuditStore, Result, SealedEvent, Timestamp};

/// The documents of a directory.
pub static DIRECTORY: Set = Set {
    component: "directory",
    state: "dezky_directory_state",
    counts: None,
    kinds: &[&TENANT, &PARTNER, &USER],
    schema: Schema::Steps {
        sqlite: &[include_str!("sqlite/v1.sql")],
        postgres: &[include_str!("postgres/v1.sql")],
        catalogue: include_str!("postgres/catalogue.tsv"),
        mongodb: &[&[
            Collection { name: "dezky_directory_state", indexes: &[] },
            Collection {
                name: "dezky_tenants",
                indexes: &[
                    Index::Unique("by_slug", "slug"),
                    Index::UniqueIfThere("by_domain", "domains"),
                    Index::Plain("by_status", &["status", "slug"]),
                    Index::Plain("by_partner", &["partner_id", "slug"]),
                    Index::Plain("by_partner_status", &["partner_id", "status", "slug"]),
                ],
            },
            Collection {
                name: "dezky_partners",
                indexes: &[
                    Index::Unique("by_slug", "slug"),
                    Index::Plain("by_status", &["status", "slug"]),
                ],
            },
            Collection {
                name: "dezky_users",
                indexes: &[
                    Index::Unique("by_subject", "subject"),
                    Index::UniqueIfThere("by_identity", "identities"),
                    // Read backwards: a server of this protocol sorts a text and its prefix
                    // wrongly in a descending index.
                    Index::Plain("by_login", &["last_login", "_id"]),
                    Index::Plain("by_tenant", &["tenant_ids", "last_login", "_id"]),
                ],
            },
        ]],
    },
};

pub(super) static TENANT: Kind = Kind {
    name: &["slug"],
    owned: Some(Owned {
        field: "domains",
        table: "dezky_tenant_domains",
        columns: &["domain"],
        owner: "tenant_id",
    }),
    fields: &[Field::text("status"), Field::text("partner_id")],
    removal: Removal::Never,
    ..Kind::new("tenant", "dezky_tenants")
};

pub(super) static PARTNER: Kind = Kind {
    name: &["slug"],
    fields: &[Field::text("status")],
    removal: Removal::Never,
    ..Kind::new("partner", "dezky_partners")
};

pub(super) static USER: Kind = Kind {
    name: &["issuer", "subject"],
    owned: Some(Owned {
        field: "identities",
        table: "dezky_user_identities",
        columns: &["system", "id"],
        owner: "user_id",
    }),
    fields: &[
        Field::number("last_login"),
        Field::texts(
            "tenant_ids",
            Side {
                table: "dezky_user_tenants",
                column: "tenant_id",
                order: Some("last_login"),
                owner: "user_id",
            },
        ),
    ],
    removal: Removal::Never,
    ..Kind::new("user", "dezky_users")
};

/// A [`DirectoryStore`] in the database of an audit log, in which its events are staged.
///
/// Clones share the connections. Any number of processes may use one database: changes are made one
/// at a time, and reads never wait.
///
/// ```
/// use dezky_core::directory::{DirectoryStore, DocumentDirectory, TenantKey};
/// use dezky_core::rt::TokioRuntime;
/// use dezky_core::store::{SqliteAuditStore, SqliteConfig};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> dezky_core::Result<()> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("audit.db");
/// let log = SqliteAuditStore::open(SqliteConfig::new(path), &TokioRuntime).await?;
/// let store = DocumentDirectory::open(&log.database()).await?;
/// assert_eq!(store.tenant(TenantKey::Slug("acme")).await?, None);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct DocumentDirectory {
    documents: Documents,
}

impl DocumentDirectory {
    /// Opens the directory of a database; creates or migrates its tables.
    ///
    /// # Errors
    /// The errors of [`Documents::open`].
    pub async fn open(database: impl Into<Database>) -> Result<Self> {
        Ok(Self { documents: Documents::open(&DIRECTORY, database).await? })
    }

    /// Creates an empty directory in memory whose events are staged in `log`.
    pub fn in_memory(log: std::sync::Arc<dyn AuditStore>) -> Self {
        Self { documents: Documents::in_memory(&DIRECTORY, MemoryDatabase::new(log)) }
    }

    async fn one<T: DeserializeOwned>(
        &self,
        kind: &'static Kind,
        key: Key<'_>,
    ) -> Result<Option<T>> {
        self.documents.get(kind, key).await?.map(|found| found.read()).transpose()
    }

    async fn page<T: DeserializeOwned>(
        &self,
        kind: &'static Kind,
        page: Page<'_>,
    ) -> Result<Vec<T>> {
        self.documents.page(kind, &page).await?.iter().map(Stored::read).collect()
    }

    async fn write(
        &self,
        changes: &[DirectoryChange],
        events: Vec<SealedEvent>,
        as_they_are: bool,
    ) -> Result<()> {
        check_commit(changes)?;
        let documents = changes.iter().map(document).collect::<Result<Vec<_>>>()?;
        let mut tx = self.documents.begin().await?;
        let changed = change(&mut tx, changes, documents, as_they_are).await;
        tx.stage(events);
        tx.commit_after(changed).await
    }
}

async fn change(
    tx: &mut Transaction<'_>,
    changes: &[DirectoryChange],
    documents: Vec<Document>,
    as_they_are: bool,
) -> Result<()> {
    for &kind in DIRECTORY.kinds {
        let of_kind = changes.iter().filter(|change| change.kind().table == kind.table);
        tx.lock(kind, of_kind.map(DirectoryChange::id)).await?;
    }
    for (change, document) in changes.iter().zip(documents) {
        let put = match change.version() {
            _ if as_they_are => Put::AsIs,
            1 => Put::New,
            _ => Put::Next,
        };
        tx.put(change.kind(), put, document)?;
    }
    Ok(())
}

#[async_trait]
impl DirectoryStore for DocumentDirectory {
    fn capabilities(&self) -> Capabilities {
        self.documents.capabilities()
    }

    async fn examine(&self) -> Result<Vec<Anomaly>> {
        self.documents.examine().await
    }

    async fn tenant(&self, key: TenantKey<'_>) -> Result<Option<Tenant>> {
        let key = match key {
            TenantKey::Id(id) => Key::Id(id),
            TenantKey::Slug(slug) => Key::Name(slug),
            TenantKey::Domain(domain) => Key::Owned(domain),
        };
        self.one(&TENANT, key).await
    }

    async fn tenants(&self, query: &TenantQuery) -> Result<Vec<Tenant>> {
        self.page(&TENANT, page_of_tenants(query)).await
    }

    async fn partner(&self, key: PartnerKey<'_>) -> Result<Option<Partner>> {
        let key = match key {
            PartnerKey::Id(id) => Key::Id(id),
            PartnerKey::Slug(slug) => Key::Name(slug),
        };
        self.one(&PARTNER, key).await
    }

    async fn partners(&self, query: &PartnerQuery) -> Result<Vec<Partner>> {
        self.page(&PARTNER, page_of_partners(query)).await
    }

    async fn user(&self, key: UserKey<'_>) -> Result<Option<User>> {
        match key {
            UserKey::Id(id) => self.one(&USER, Key::Id(id)).await,
            UserKey::Subject { issuer, subject } => {
                self.one(&USER, Key::Name(&joined(&[issuer, subject]))).await
            }
            UserKey::Identity { system, id } => {
                self.one(&USER, Key::Owned(&joined(&[system, id]))).await
            }
        }
    }

    async fn users(&self, query: &UserQuery) -> Result<Vec<User>> {
        self.page(&USER, page_of_users(query)).await
    }

    async fn count_tenants_of_partner(&self, partner_id: &str) -> Result<u64> {
        let filters = [Filter::Is("partner_id", partner_id), Filter::IsNot("status", "deleted")];
        self.documents.count(&TENANT, &filters).await
    }

    async fn tenants_revision(&self) -> Result<u64> {
        self.documents.sum_versions(&TENANT).await
    }

    async fn commit(&self, changes: Vec<DirectoryChange>, events: Vec<SealedEvent>) -> Result<()> {
        self.write(&changes, events, false).await
    }

    async fn restore(&self, documents: Vec<DirectoryChange>) -> Result<()> {
        self.write(&documents, Vec::new(), true).await
    }
}

fn page_of_tenants(query: &TenantQuery) -> Page<'_> {
    let status = query.status.map(|status| Filter::Is("status", status.as_str()));
    let partner = query.partner_id.as_ref().map(|id| Filter::Is("partner_id", id));
    Page {
        filters: status.into_iter().chain(partner).collect(),
        order: Order::Key { after: query.after.as_deref() },
        limit: query.limit,
    }
}

fn page_of_partners(query: &PartnerQuery) -> Page<'_> {
    let status = query.status.map(|status| Filter::Is("status", status.as_str()));
    let order = Order::Key { after: query.after.as_deref() };
    Page { filters: status.into_iter().collect(), order, limit: query.limit }
}

fn page_of_users(query: &UserQuery) -> Page<'_> {
    let tenant = query.tenant_id.as_ref().map(|id| Filter::Is("tenant_ids", id));
    let place = |after: &UserCursor| login(after.last_login_at);
    let after = query.after.as_ref().map(|after| (place(after), after.id.as_str()));
    let order = Order::Latest { field: "last_login", after };
    Page { filters: tenant.into_iter().collect(), order, limit: query.limit }
}

/// A login as it is stored; users without one are listed last.
fn login(at: Option<Timestamp>) -> i64 {
    at.map_or(i64::MIN, Timestamp::as_millis)
}

fn document(change: &DirectoryChange) -> Result<Document> {
    let (id, version) = (change.id(), change.version());
    Ok(match change {
        DirectoryChange::Tenant(tenant) => {
            let status = tenant.status.as_str().to_owned();
            Document::new(id, version, tenant)?
                .named(&tenant.slug)
                .owning(tenant.owned_domains().to_vec())
                .with([Value::Text(Some(status)), Value::Text(tenant.partner_id.clone())])
        }
        DirectoryChange::Partner(partner) => {
            let status = partner.status.as_str().to_owned();
            Document::new(id, version, partner)?
                .named(&partner.slug)
                .with([Value::Text(Some(status))])
        }
        DirectoryChange::User(user) => {
            let last_login = login(user.last_login_at);
            Document::new(id, version, user)?
                .named(joined(&[&user.issuer, &user.subject]))
                .owning(user.identities.iter().map(|i| joined(&[&i.system, &i.id])))
                .with([Value::Number(last_login), Value::Texts(user.tenant_ids.clone())])
        }
    })
}

/// Every list reads along an index in its order, whatever its filters.
#[cfg(test)]
mod tests {
    use sqlx::{
        AssertSqlSafe, Connection, Execute, Executor, PgConnection, Postgres, QueryBuilder, Row,
        Sqlite,
    };

    use super::*;
    use crate::Runtime;
    use crate::directory::{PartnerStatus, TenantStatus};
    use crate::documents::plans;
    use crate::rt::TokioRuntime;
    use crate::store::{PostgresAuditStore, PostgresConfig, SqliteAuditStore, SqliteConfig};

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

    fn queries() -> (Vec<TenantQuery>, Vec<PartnerQuery>, Vec<UserQuery>) {
        let (mut tenants, mut partners, mut users) = (Vec::new(), Vec::new(), Vec::new());
        for after in [None, Some("s".to_owned())] {
            for status in [None, Some(TenantStatus::Active), Some(TenantStatus::Pending)] {
                for partner_id in [None, Some("p2".to_owned()), Some("p".to_owned())] {
                    let after = after.clone();
                    tenants.push(TenantQuery { after, status, partner_id, limit: 500 });
                }
            }
            for status in [None, Some(PartnerStatus::Active)] {
                partners.push(PartnerQuery { after: after.clone(), status, limit: 500 });
            }
            let last_login_at = Timestamp::from_millis(500);
            let after = after.map(|id| UserCursor { last_login_at, id });
            for tenant_id in [None, Some("t7".to_owned()), Some("t".to_owned())] {
                users.push(UserQuery { tenant_id, after: after.clone(), limit: 500 });
            }
        }
        (tenants, partners, users)
    }

    fn with_pages(mut see: impl FnMut(&Kind, &Page<'_>)) {
        let (tenants, partners, users) = queries();
        for query in &tenants {
            see(&TENANT, &page_of_tenants(query));
        }
        for query in &partners {
            see(&PARTNER, &page_of_partners(query));
        }
        for query in &users {
            see(&USER, &page_of_users(query));
        }
    }

    #[tokio::test]
    async fn no_query_of_sqlite_scans_or_sorts() {
        let folder = tempfile::tempdir().unwrap();
        let config = SqliteConfig::new(folder.path().join("audit.db"));
        let log = SqliteAuditStore::open(config, &TokioRuntime).await.unwrap();
        DocumentDirectory::open(&log.database()).await.unwrap();
        let filters = [Filter::Is("partner_id", "p"), Filter::IsNot("status", "deleted")];
        let mut selects = vec![plans::count::<Sqlite>(&TENANT, &filters)];
        with_pages(|kind, page| selects.push(plans::page(kind, page)));
        selects.extend(DIRECTORY.kinds.iter().flat_map(|kind| plans::look_ups(kind)));
        assert_eq!(selects.len(), 29 + 8);
        let mut connection = log.database().read().await.unwrap();
        for select in selects {
            let select = select.sql();
            let explain = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {}", select.as_str()));
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
                    || (step.contains("SCAN")
                        && !step.ends_with("dezky_users_login")
                        && !step.ends_with("CONSTANT ROW")
                        && !step.ends_with("SCAN k"))
            };
            assert_eq!(plan.iter().find(is_bad), None, "{}: {plan:?}", select.as_str());
        }
    }

    #[tokio::test]
    async fn no_query_of_postgresql_scans_or_sorts() {
        let server = test_server();
        let mut random = [0; 8];
        TokioRuntime.fill_random(&mut random);
        let schema = format!("dezky_test_plans_{:016x}", u64::from_be_bytes(random));
        let mut admin = PgConnection::connect(&server).await.unwrap();
        admin.execute(AssertSqlSafe(format!("CREATE SCHEMA {schema}"))).await.unwrap();
        let url = format!("{server}?options=-c%20search_path%3D{schema}");
        let log = PostgresAuditStore::open(PostgresConfig::new(url), &TokioRuntime).await.unwrap();
        let database = log.database();
        DocumentDirectory::open(&database).await.unwrap();
        let mut tx = database.begin().await.unwrap();
        tx.run(ROWS).await.unwrap();
        tx.commit().await.unwrap();

        let explain = |mut select: QueryBuilder<Postgres>| {
            let mut query = select.build();
            let arguments = query.take_arguments().unwrap().unwrap();
            let explain = format!("EXPLAIN {}", query.sql().as_str());
            (explain.clone(), sqlx::query_with(AssertSqlSafe(explain), arguments))
        };
        let mut selects = Vec::new();
        with_pages(|kind, page| selects.push(plans::page(kind, page)));
        assert_eq!(selects.len(), 28);
        for select in selects {
            let (sql, explain) = explain(select);
            let plan = database.read_scan().await.unwrap().fetch_all(explain).await.unwrap();
            let plan: Vec<String> = plan.iter().map(|row| row.get(0)).collect();
            let is_bad =
                |step: &&String| ["Seq Scan", "Sort", "Bitmap"].iter().any(|s| step.contains(s));
            assert_eq!(plan.iter().find(is_bad), None, "{sql}: {plan:?}");
        }
        for select in DIRECTORY.kinds.iter().flat_map(|kind| plans::look_ups(kind)) {
            let (sql, explain) = explain(select);
            let plan = database.begin_log().await.unwrap().fetch_all(explain).await.unwrap();
            let plan: Vec<String> = plan.iter().map(|row| row.get(0)).collect();
            assert!(!plan.iter().any(|step| step.contains("Seq Scan")), "{sql}: {plan:?}");
        }
        log.close().await;
        admin.execute(AssertSqlSafe(format!("DROP SCHEMA {schema} CASCADE"))).await.unwrap();
    }

    #[expect(clippy::disallowed_methods, reason = "tests read the address of their server")]
    fn test_server() -> String {
        std::env::var("DEZKY_TEST_POSTGRES")
            .expect("DEZKY_TEST_POSTGRES is not set: run this under .ci/with-servers")
    }
}
