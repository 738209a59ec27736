//! The directory in the MongoDB database of an audit log.
//!
//! Documents are JSON text in a field; what is asked for stands in fields beside it.
//! Whatever is unique is one field of texts, so that its index holds on every server.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::TryStreamExt;
use futures_util::lock::Mutex as AsyncMutex;
use mongodb::bson::{Bson, Document, doc};
use mongodb::{ClientSession, Collection};
use serde::de::DeserializeOwned;

use super::codec::{corrupt, from_text, limit, login, signed, to_text, unsigned};
use super::{
    DirectoryChange, DirectoryStore, Partner, PartnerKey, PartnerQuery, Tenant, TenantKey,
    TenantQuery, User, UserCursor, UserKey, UserQuery, check_commit, check_limit, check_version,
    refusal,
};
use crate::store::{Capabilities, MongoDatabase, mongo_error};
use crate::{Error, Result, SealedEvent};

/// The name under which the directory's version is kept.
const COMPONENT: &str = "directory";
/// One document, which whoever changes the directory changes first.
const STATE: &str = "dezky_directory_state";
/// Keys of one `$in`: a server may compare each document that it finds with all of them.
const KEYS_A_READ: usize = 100;

/// A kind of document: where it is, and what of it is unique.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    collection: &'static str,
    what: &'static str,
    /// The field of its unique name, which never changes.
    name: &'static str,
    /// The field of what no other one may have at the same time.
    owned: &'static str,
}

const TENANT: &Kind =
    &Kind { collection: "dezky_tenants", what: "tenant", name: "slug", owned: "domains" };
const PARTNER: &Kind =
    &Kind { collection: "dezky_partners", what: "partner", name: "slug", owned: "owned" };
const USER: &Kind =
    &Kind { collection: "dezky_users", what: "user", name: "subject", owned: "identities" };

/// A [`DirectoryStore`] in the database of a
/// [`MongoAuditStore`](crate::store::MongoAuditStore), in whose log its events are.
///
/// Clones share the connections. Any number of processes may use one database: those
/// that change the directory take turns, those that read wait for nobody.
///
/// ```no_run
/// use std::sync::Arc;
///
/// use dezky_core::directory::{DirectoryStore, MongoDirectory, TenantKey};
/// use dezky_core::rt::TokioRuntime;
/// use dezky_core::store::{MongoAuditStore, MongoConfig};
/// # async fn example() -> dezky_core::Result<()> {
/// let config = MongoConfig::new("mongodb://db.internal/platform?replicaSet=rs0");
/// let log = MongoAuditStore::open(config, Arc::new(TokioRuntime)).await?;
/// let store = MongoDirectory::open(&log.database()).await?;
/// assert_eq!(store.tenant(TenantKey::Slug("acme")).await?, None);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct MongoDirectory {
    database: MongoDatabase,
    /// Writers of this process queue here rather than in conflicts of the server.
    writer: Arc<AsyncMutex<()>>,
}

impl MongoDirectory {
    /// Brings the directory's collections and indexes up to date; what is there already
    /// stays.
    ///
    /// # Errors
    /// `schema_newer`; `store_foreign` if collections are missing and the database was
    /// opened without migrating it.
    pub async fn open(database: &MongoDatabase) -> Result<Self> {
        database.migrate(COMPONENT, STEPS).await?;
        Ok(Self { database: database.clone(), writer: Arc::default() })
    }

    fn collection(&self, kind: &Kind) -> Collection<Document> {
        self.database.collection(kind.collection)
    }

    async fn one<T: DeserializeOwned>(&self, kind: &Kind, filter: Document) -> Result<Option<T>> {
        let found = self
            .collection(kind)
            .find_one(filter)
            .projection(doc! { "document": 1 })
            .await
            .map_err(mongo_error)?;
        found.as_ref().map(document).transpose()
    }

    async fn page<T: DeserializeOwned>(
        &self,
        kind: &Kind,
        filter: Document,
        sort: Document,
        max_rows: usize,
    ) -> Result<Vec<T>> {
        let found: Vec<Document> = self
            .collection(kind)
            .find(filter)
            .sort(sort)
            .limit(limit(max_rows))
            .projection(doc! { "document": 1 })
            .await
            .map_err(mongo_error)?
            .try_collect()
            .await
            .map_err(mongo_error)?;
        found.iter().map(document).collect()
    }

    /// What the transaction sees under `keys` in `field`.
    async fn held(
        &self,
        session: &mut ClientSession,
        kind: &'static Kind,
        field: &str,
        keys: &[&str],
    ) -> Result<Vec<Held>> {
        let mut held = Vec::new();
        for keys in keys.chunks(KEYS_A_READ) {
            let mut cursor = self
                .collection(kind)
                .find(doc! { field: { "$in": keys } })
                .projection(doc! { "version": 1, kind.name: 1, kind.owned: 1 })
                .session(&mut *session)
                .await
                .map_err(mongo_error)?;
            while let Some(found) = cursor.next(&mut *session).await {
                held.push(Held::read(kind, &found.map_err(mongo_error)?)?);
            }
        }
        Ok(held)
    }

    /// Takes the documents' place: all that they had is given up before any is
    /// written, as a domain may move within a commit.
    async fn put(&self, session: &mut ClientSession, filed: &[Filed]) -> Result<()> {
        for kind in [TENANT, PARTNER, USER] {
            let of_kind = || filed.iter().filter(|filed| filed.kind == kind);
            let ids: Vec<&str> = of_kind().map(|filed| filed.id.as_str()).collect();
            for ids in ids.chunks(KEYS_A_READ) {
                self.collection(kind)
                    .delete_many(doc! { "_id": { "$in": ids } })
                    .session(&mut *session)
                    .await
                    .map_err(mongo_error)?;
            }
            if !ids.is_empty() {
                self.collection(kind)
                    .insert_many(of_kind().map(|filed| &filed.document))
                    .session(&mut *session)
                    .await
                    .map_err(mongo_error)?;
            }
        }
        Ok(())
    }
}

#[async_trait]
impl DirectoryStore for MongoDirectory {
    fn capabilities(&self) -> Capabilities {
        Capabilities::DATABASE
    }

    async fn tenant(&self, key: TenantKey<'_>) -> Result<Option<Tenant>> {
        let filter = match key {
            TenantKey::Id(id) => equals("_id", id),
            TenantKey::Slug(slug) => equals("slug", slug),
            TenantKey::Domain(domain) => equals("domains", domain),
        };
        self.one(TENANT, filter).await
    }

    async fn tenants(&self, query: &TenantQuery) -> Result<Vec<Tenant>> {
        check_limit(query.limit)?;
        let mut filter = after_slug(query.after.as_deref());
        if let Some(status) = query.status {
            filter.extend(equals("status", status.as_str()));
        }
        if let Some(partner_id) = &query.partner_id {
            filter.extend(equals("partnerId", partner_id));
        }
        self.page(TENANT, filter, doc! { "slug": 1 }, query.limit).await
    }

    async fn partner(&self, key: PartnerKey<'_>) -> Result<Option<Partner>> {
        let filter = match key {
            PartnerKey::Id(id) => equals("_id", id),
            PartnerKey::Slug(slug) => equals("slug", slug),
        };
        self.one(PARTNER, filter).await
    }

    async fn partners(&self, query: &PartnerQuery) -> Result<Vec<Partner>> {
        check_limit(query.limit)?;
        let mut filter = after_slug(query.after.as_deref());
        if let Some(status) = query.status {
            filter.extend(equals("status", status.as_str()));
        }
        self.page(PARTNER, filter, doc! { "slug": 1 }, query.limit).await
    }

    async fn user(&self, key: UserKey<'_>) -> Result<Option<User>> {
        let filter = match key {
            UserKey::Id(id) => equals("_id", id),
            UserKey::Subject { issuer, subject } => equals("subject", &joined(issuer, subject)),
            UserKey::Identity { system, id } => equals("identities", &joined(system, id)),
        };
        self.one(USER, filter).await
    }

    async fn users(&self, query: &UserQuery) -> Result<Vec<User>> {
        check_limit(query.limit)?;
        let mut filter = Document::new();
        if let Some(tenant_id) = &query.tenant_id {
            filter.extend(equals("tenantIds", tenant_id));
        }
        if let Some(UserCursor { last_login_at, id }) = &query.after {
            let at = login(*last_login_at);
            filter.insert(
                "$or",
                vec![
                    doc! { "lastLogin": { "$lt": at } },
                    doc! { "lastLogin": at, "_id": { "$lt": id } },
                ],
            );
        }
        self.page(USER, filter, doc! { "lastLogin": -1, "_id": -1 }, query.limit).await
    }

    async fn count_tenants_of_partner(&self, partner_id: &str) -> Result<u64> {
        let filter =
            doc! { "partnerId": { "$eq": partner_id }, "status": { "$ne": "deleted" } };
        self.collection(TENANT).count_documents(filter).await.map_err(mongo_error)
    }

    async fn commit(&self, changes: Vec<DirectoryChange>, events: Vec<SealedEvent>) -> Result<()> {
        check_commit(&changes)?;
        let filed: Vec<Filed> = changes.iter().map(Filed::of).collect::<Result<_>>()?;
        let _turn = self.writer.lock().await;
        let mut session = self.take_turn().await?;
        let stored = self.stored(&mut session, &filed).await?;
        for filed in &filed {
            let held = stored.get(&(filed.kind, filed.id.as_str()));
            check_version(filed.kind.what, held.map(|held| held.version), filed.version)?;
            if held.is_some_and(|held| held.name != filed.name) {
                return Err(refusal::fixed(filed.kind.name));
            }
        }
        self.check_unique(&mut session, &filed).await?;
        self.put(&mut session, &filed).await?;
        self.database.commit(session, &events).await
    }
}

impl MongoDirectory {
    /// A transaction that excludes other writers until it ends.
    async fn take_turn(&self) -> Result<ClientSession> {
        let (session, _) = self.database.begin_on(STATE).await?;
        Ok(session)
    }

    /// What is stored in the places of `filed`.
    async fn stored<'a>(
        &self,
        session: &mut ClientSession,
        filed: &'a [Filed],
    ) -> Result<BTreeMap<(&'static Kind, &'a str), Held>> {
        let mut stored = BTreeMap::new();
        for kind in [TENANT, PARTNER, USER] {
            let ids: Vec<&str> =
                filed.iter().filter(|f| f.kind == kind).map(|f| f.id.as_str()).collect();
            let mut held: BTreeMap<String, Held> = self
                .held(session, kind, "_id", &ids)
                .await?
                .into_iter()
                .map(|held| (held.id.clone(), held))
                .collect();
            stored.extend(ids.into_iter().filter_map(|id| Some(((kind, id), held.remove(id)?))));
        }
        Ok(stored)
    }

    /// Refuses what another document has. Looked up rather than left to the indexes: a
    /// write that fails ends the transaction, and says less.
    async fn check_unique(&self, session: &mut ClientSession, filed: &[Filed]) -> Result<()> {
        let mut taken = BTreeSet::new();
        for kind in [TENANT, PARTNER, USER] {
            let of_kind: Vec<&Filed> = filed.iter().filter(|filed| filed.kind == kind).collect();
            let ids: BTreeSet<&str> = of_kind.iter().map(|filed| filed.id.as_str()).collect();
            let names: Vec<&str> = of_kind.iter().map(|filed| filed.name.as_str()).collect();
            let owned: Vec<&str> =
                of_kind.iter().flat_map(|filed| &filed.owned).map(String::as_str).collect();
            let mut others = self.held(session, kind, kind.name, &names).await?;
            others.extend(self.held(session, kind, kind.owned, &owned).await?);
            for held in others.into_iter().filter(|held| !ids.contains(held.id.as_str())) {
                taken.insert((kind, kind.name, held.name));
                taken.extend(held.owned.into_iter().map(|owned| (kind, kind.owned, owned)));
            }
        }
        for filed in filed {
            let kind = filed.kind;
            if !taken.insert((kind, kind.name, filed.name.clone())) {
                return Err(refusal::taken(kind.name));
            }
            for owned in &filed.owned {
                if !taken.insert((kind, kind.owned, owned.clone())) {
                    return Err(filed.owned_taken(owned));
                }
            }
        }
        Ok(())
    }
}

/// What a stored document has.
struct Held {
    id: String,
    version: u64,
    name: String,
    owned: Vec<String>,
}

impl Held {
    fn read(kind: &Kind, found: &Document) -> Result<Self> {
        let text = |field| {
            let text = found.get_str(field).map_err(|_| broken(kind.collection, field))?;
            Ok(text.to_owned())
        };
        let version = found.get_i64("version").map_err(|_| broken(kind.collection, "version"))?;
        let owned = match found.get(kind.owned) {
            None => Vec::new(),
            Some(Bson::Array(values)) => {
                values.iter().filter_map(Bson::as_str).map(str::to_owned).collect()
            }
            Some(_) => return Err(broken(kind.collection, kind.owned)),
        };
        Ok(Self { id: text("_id")?, version: unsigned(version), name: text(kind.name)?, owned })
    }
}

/// A document as it is stored, and what of it is unique.
struct Filed {
    kind: &'static Kind,
    id: String,
    version: u64,
    name: String,
    owned: Vec<String>,
    document: Document,
}

impl Filed {
    fn of(change: &DirectoryChange) -> Result<Self> {
        let (kind, id, version, name, owned, mut fields, text) = match change {
            DirectoryChange::Tenant(tenant) => {
                let mut fields = doc! { "status": tenant.status.as_str() };
                if let Some(partner_id) = &tenant.partner_id {
                    fields.insert("partnerId", partner_id);
                }
                let owned = tenant.owned_domains().to_vec();
                let name = tenant.slug.clone();
                (TENANT, &tenant.id, tenant.version, name, owned, fields, to_text(tenant)?)
            }
            DirectoryChange::Partner(partner) => {
                let fields = doc! { "status": partner.status.as_str() };
                let name = partner.slug.clone();
                (PARTNER, &partner.id, partner.version, name, Vec::new(), fields, to_text(partner)?)
            }
            DirectoryChange::User(user) => {
                let fields = doc! {
                    "tenantIds": &user.tenant_ids,
                    "lastLogin": login(user.last_login_at),
                };
                let owned = user.identities.iter().map(|i| joined(&i.system, &i.id)).collect();
                let name = joined(&user.issuer, &user.subject);
                (USER, &user.id, user.version, name, owned, fields, to_text(user)?)
            }
        };
        fields.insert("_id", id);
        fields.insert("version", signed(version));
        fields.insert(kind.name, &name);
        // Absent rather than empty: a unique index takes empty lists for equal ones.
        if !owned.is_empty() {
            fields.insert(kind.owned, &owned);
        }
        fields.insert("document", text);
        Ok(Self { kind, id: id.clone(), version, name, owned, document: fields })
    }

    fn owned_taken(&self, owned: &str) -> Error {
        match owned.split_once(SEPARATOR) {
            Some((system, _)) => refusal::identity_taken(system),
            None => refusal::domain_taken(owned),
        }
    }
}

/// Between two texts that are a key together. Stored ones have no control characters,
/// so no other two make the same key.
const SEPARATOR: char = '\u{1f}';

fn joined(first: &str, second: &str) -> String {
    format!("{first}{SEPARATOR}{second}")
}

/// A condition whose value is a text, whatever is in it.
fn equals(field: &str, text: &str) -> Document {
    doc! { field: { "$eq": text } }
}

fn after_slug(after: Option<&str>) -> Document {
    after.map_or_else(Document::new, |after| doc! { "slug": { "$gt": after } })
}

fn document<T: DeserializeOwned>(found: &Document) -> Result<T> {
    from_text(found.get_str("document").map_err(|_| corrupt("a document lacks its text"))?)
}

fn broken(collection: &str, field: &str) -> Error {
    corrupt(format_args!("a document of {collection} lacks its {field}"))
}
