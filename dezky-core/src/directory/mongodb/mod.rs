//! The directory in the MongoDB database of an audit log.
//!
//! Documents are JSON text in a field; what is asked for stands in fields beside it.
//! Whatever is unique is one field of texts, so that its index holds on every server.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::TryStreamExt;
use futures_util::lock::{Mutex as AsyncMutex, MutexGuard};
use mongodb::bson::{Bson, Document, doc};
use mongodb::{ClientSession, Collection};
use serde::de::DeserializeOwned;

use super::codec::{corrupt, from_text, limit, login, signed, to_text, unsigned};
use super::{
    DirectoryChange, DirectoryStore, Partner, PartnerKey, PartnerQuery, Tenant, TenantKey,
    TenantQuery, User, UserCursor, UserKey, UserQuery, check_commit, check_limit, check_version,
    refusal,
};
use crate::store::{Anomaly, Capabilities, MongoCollection, MongoDatabase};
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

const KINDS: [&Kind; 3] = [TENANT, PARTNER, USER];

/// Collections and indexes, a list a version; one that was released never changes.
fn steps() -> Vec<Vec<MongoCollection>> {
    // Who owns nothing lacks the field. The filter is one that servers find equal texts by.
    let owns = |field: &str| doc! { field: { "$gte": "" } };
    vec![vec![
        MongoCollection::new(STATE),
        MongoCollection::new(TENANT.collection)
            .unique("by_slug", doc! { "slug": 1 })
            .unique_where("by_domain", doc! { "domains": 1 }, owns("domains"))
            .index("by_status", doc! { "status": 1, "slug": 1 })
            .index("by_partner", doc! { "partner_id": 1, "slug": 1 })
            .index("by_partner_status", doc! { "partner_id": 1, "status": 1, "slug": 1 }),
        MongoCollection::new(PARTNER.collection)
            .unique("by_slug", doc! { "slug": 1 })
            .index("by_status", doc! { "status": 1, "slug": 1 }),
        MongoCollection::new(USER.collection)
            .unique("by_subject", doc! { "subject": 1 })
            .unique_where("by_identity", doc! { "identities": 1 }, owns("identities"))
            // Read backwards: one server of this protocol sorts texts of which one begins
            // another wrongly in a descending index.
            .index("by_login", doc! { "last_login": 1, "_id": 1 })
            .index("by_tenant", doc! { "tenant_ids": 1, "last_login": 1, "_id": 1 }),
    ]]
}

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
    /// The version that the directory's collections have with this program.
    pub fn schema_version() -> usize {
        steps().len()
    }

    /// Brings the directory's collections and indexes up to date; what is there already
    /// stays.
    ///
    /// # Errors
    /// `schema_newer`; `store_foreign` if collections are missing and the database was
    /// opened without migrating it.
    pub async fn open(database: &MongoDatabase) -> Result<Self> {
        database.migrate(COMPONENT, &steps()).await?;
        Ok(Self { database: database.clone(), writer: Arc::default() })
    }
}

#[async_trait]
impl DirectoryStore for MongoDirectory {
    fn capabilities(&self) -> Capabilities {
        Capabilities::DATABASE
    }

    async fn examine(&self) -> Result<Vec<Anomaly>> {
        self.database.examine(&steps()).await
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
            filter.extend(equals("partner_id", partner_id));
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
            filter.extend(equals("tenant_ids", tenant_id));
        }
        if let Some(UserCursor { last_login_at, id }) = &query.after {
            let at = login(*last_login_at);
            let earlier = doc! { "last_login": { "$lt": at } };
            let same = doc! { "last_login": at, "_id": { "$lt": id } };
            filter.insert("$or", [earlier, same].to_vec());
        }
        self.page(USER, filter, doc! { "last_login": -1, "_id": -1 }, query.limit).await
    }

    async fn count_tenants_of_partner(&self, partner_id: &str) -> Result<u64> {
        let filter = doc! { "partner_id": { "$eq": partner_id }, "status": { "$ne": "deleted" } };
        self.database.run(self.collection(TENANT).count_documents(filter)).await
    }

    async fn tenants_revision(&self) -> Result<u64> {
        let sum = doc! { "$group": { "_id": Bson::Null, "sum": { "$sum": "$version" } } };
        let tenants = self.collection(TENANT);
        let sums = async { tenants.aggregate([sum]).await?.try_collect::<Vec<_>>().await };
        match self.database.run(sums).await?.first().map(|found| found.get("sum")) {
            None => Ok(0),
            Some(Some(Bson::Int32(sum))) => Ok(unsigned(i64::from(*sum))),
            Some(Some(Bson::Int64(sum))) => Ok(unsigned(*sum)),
            Some(_) => Err(corrupt("the sum of the tenants' versions is not an integer")),
        }
    }

    async fn commit(&self, changes: Vec<DirectoryChange>, events: Vec<SealedEvent>) -> Result<()> {
        check_commit(&changes)?;
        let filed: Vec<Filed> = changes.iter().map(Filed::of).collect::<Result<_>>()?;
        let (_turn, mut session) = self.take_turn().await?;
        let changed = async {
            let stored = self.stored(&mut session, &filed).await?;
            for filed in &filed {
                let stored = stored.get(&filed.place());
                check_version(filed.kind.what, stored.map(|held| held.version), filed.version)?;
                filed.check_fixed(stored)?;
            }
            self.replace(&mut session, &filed, &stored).await
        };
        let changed = changed.await;
        self.end_turn(session, changed, &events).await
    }

    async fn restore(&self, documents: Vec<DirectoryChange>) -> Result<()> {
        check_commit(&documents)?;
        let mut filed: Vec<Filed> = documents.iter().map(Filed::of).collect::<Result<_>>()?;
        let (_turn, mut session) = self.take_turn().await?;
        let restored = async {
            let stored = self.stored(&mut session, &filed).await?;
            filed
                .retain(|new| stored.get(&new.place()).is_none_or(|old| old.version < new.version));
            for filed in &filed {
                filed.check_fixed(stored.get(&filed.place()))?;
            }
            self.replace(&mut session, &filed, &stored).await
        };
        let restored = restored.await;
        self.end_turn(session, restored, &[]).await
    }
}

impl MongoDirectory {
    fn collection(&self, kind: &Kind) -> Collection<Document> {
        self.database.collection(kind.collection)
    }

    async fn one<T: DeserializeOwned>(&self, kind: &Kind, filter: Document) -> Result<Option<T>> {
        let collection = self.collection(kind);
        let find = collection.find_one(filter).projection(doc! { "document": 1 });
        self.database.run(find).await?.as_ref().map(document).transpose()
    }

    async fn page<T: DeserializeOwned>(
        &self,
        kind: &Kind,
        filter: Document,
        sort: Document,
        max_rows: usize,
    ) -> Result<Vec<T>> {
        let collection = self.collection(kind);
        let find = collection.find(filter).sort(sort).limit(limit(max_rows));
        let find = find.projection(doc! { "document": 1 });
        let found = self.database.run(async { find.await?.try_collect::<Vec<_>>().await }).await?;
        found.iter().map(document).collect()
    }

    /// A transaction that excludes other writers until it ends.
    async fn take_turn(&self) -> Result<(MutexGuard<'_, ()>, ClientSession)> {
        let take = async || {
            let turn = self.writer.lock().await;
            let mut session = self.database.begin().await?;
            let states = self.database.collection::<Document>(STATE);
            let count = doc! { "$inc": { "turns": 1_i64 } };
            let update = states.update_one(doc! { "_id": COMPONENT }, count).upsert(true);
            self.database.run(update.session(&mut session)).await?;
            Ok((turn, session))
        };
        self.database.retry_busy(take).await
    }

    async fn end_turn(
        &self,
        session: ClientSession,
        done: Result<()>,
        events: &[SealedEvent],
    ) -> Result<()> {
        if let Err(error) = done {
            self.database.abort(session).await;
            return Err(error);
        }
        self.database.commit(session, events).await
    }

    /// What the transaction sees of the documents with one of `keys` in `field`.
    async fn held(
        &self,
        session: &mut ClientSession,
        kind: &'static Kind,
        field: &str,
        keys: &[&str],
    ) -> Result<Vec<Held>> {
        let collection = self.collection(kind);
        let mut held = Vec::new();
        for keys in keys.chunks(KEYS_A_READ) {
            let find = collection
                .find(doc! { field: { "$in": keys } })
                .projection(doc! { "version": 1, kind.name: 1, kind.owned: 1 });
            let found: Vec<Document> = self
                .database
                .run(async {
                    let mut cursor = find.session(&mut *session).await?;
                    cursor.stream(&mut *session).try_collect().await
                })
                .await?;
            for found in &found {
                held.push(Held::read(kind, found)?);
            }
        }
        Ok(held)
    }

    /// What stands in the places of `filed`.
    async fn stored(
        &self,
        session: &mut ClientSession,
        filed: &[Filed],
    ) -> Result<BTreeMap<Place, Held>> {
        let mut stored = BTreeMap::new();
        for kind in KINDS {
            let ids: Vec<&str> = of_kind(filed, kind).map(|filed| filed.id.as_str()).collect();
            let held = self.held(session, kind, "_id", &ids).await?;
            stored.extend(held.into_iter().map(|held| ((kind, held.id.clone()), held)));
        }
        Ok(stored)
    }

    /// Puts documents in the place of those that are `stored`, unless others have what
    /// is theirs alone.
    async fn replace(
        &self,
        session: &mut ClientSession,
        filed: &[Filed],
        stored: &BTreeMap<Place, Held>,
    ) -> Result<()> {
        let taken = self.taken(session, filed).await?;
        check_unique(filed, taken)?;
        for kind in KINDS {
            let collection = self.collection(kind);
            // What all of them had is given up first: a domain may move within a commit.
            let there: Vec<&str> = of_kind(filed, kind)
                .filter(|filed| stored.contains_key(&filed.place()))
                .map(|filed| filed.id.as_str())
                .collect();
            for ids in there.chunks(KEYS_A_READ) {
                let delete = collection.delete_many(doc! { "_id": { "$in": ids } });
                self.database.run(delete.session(&mut *session)).await?;
            }
            let documents: Vec<&Document> = of_kind(filed, kind).map(|f| &f.document).collect();
            if !documents.is_empty() {
                let insert = collection.insert_many(documents);
                self.database.run(insert.session(&mut *session)).await?;
            }
        }
        Ok(())
    }

    /// What other documents have of that which `filed` want. Looked up rather than left
    /// to the indexes: a write that fails ends the transaction, and says less.
    async fn taken(&self, session: &mut ClientSession, filed: &[Filed]) -> Result<BTreeSet<Claim>> {
        let mut taken = BTreeSet::new();
        for kind in KINDS {
            let ids: BTreeSet<&str> = of_kind(filed, kind).map(|f| f.id.as_str()).collect();
            let names: Vec<&str> = of_kind(filed, kind).map(|f| f.name.as_str()).collect();
            let owned: Vec<&str> =
                of_kind(filed, kind).flat_map(|f| &f.owned).map(String::as_str).collect();
            let mut held = self.held(session, kind, kind.name, &names).await?;
            held.extend(self.held(session, kind, kind.owned, &owned).await?);
            for held in held.into_iter().filter(|held| !ids.contains(held.id.as_str())) {
                taken.insert((kind, kind.name, held.name));
                taken.extend(held.owned.into_iter().map(|owned| (kind, kind.owned, owned)));
            }
        }
        Ok(taken)
    }
}

/// A document's kind and id.
type Place = (&'static Kind, String);
/// What one document of a kind alone may have: the field and its value.
type Claim = (&'static Kind, &'static str, String);

fn of_kind<'a>(filed: &'a [Filed], kind: &'static Kind) -> impl Iterator<Item = &'a Filed> {
    filed.iter().filter(move |filed| filed.kind == kind)
}

fn check_unique(filed: &[Filed], mut taken: BTreeSet<Claim>) -> Result<()> {
    for Filed { kind, name, owned, .. } in filed {
        if !taken.insert((kind, kind.name, name.clone())) {
            return Err(refusal::taken(kind.name));
        }
        for owned in owned {
            if !taken.insert((kind, kind.owned, owned.clone())) {
                return Err(match owned.split_once(SEPARATOR) {
                    Some((system, _)) => refusal::identity_taken(system),
                    None => refusal::domain_taken(owned),
                });
            }
        }
    }
    Ok(())
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
        let text = |field| match found.get_str(field) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(broken(kind.collection, field)),
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
                    fields.insert("partner_id", partner_id);
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
                    "tenant_ids": &user.tenant_ids,
                    "last_login": login(user.last_login_at),
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

    fn place(&self) -> Place {
        (self.kind, self.id.clone())
    }

    fn check_fixed(&self, stored: Option<&Held>) -> Result<()> {
        if stored.is_some_and(|stored| stored.name != self.name) {
            return Err(refusal::fixed(self.kind.name));
        }
        Ok(())
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
