//! The directory's stores against the conformance suite, and the editor on several of them.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dezky_core::directory::{
    Directory, DirectoryChange, DirectoryStore, DocumentDirectory, Edit, Identity, NewPartner,
    NewTenant, NewUser, Partner, PartnerKey, PartnerPatch, PartnerQuery, Patch, ProvisioningReport,
    ProvisioningStatus, Tenant, TenantKey, TenantPatch, TenantQuery, TenantStatus, User, UserKey,
    UserPatch, UserQuery, UserStatus,
};
use dezky_core::rt::TokioRuntime;
use dezky_core::store::{Capabilities, MemoryAuditStore, SqliteAuditStore, SqliteConfig};
use dezky_core::testkit::{BoxFuture, DirectoryHarness, OpenDirectory, Reopen};
use dezky_core::{
    Actor, AuditEvent, AuditLog, AuditStore, Error, ErrorKind, Result, Runtime, SealedEvent,
    Timestamp,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

struct Memory;

#[async_trait::async_trait]
impl DirectoryHarness for Memory {
    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(TokioRuntime)
    }

    fn block_on(&self, case: BoxFuture<'_, ()>) {
        crate::sqlite::tokio().block_on(case);
    }

    async fn open(&self, _which: Reopen) -> OpenDirectory {
        let log: Arc<dyn AuditStore> = Arc::new(MemoryAuditStore::open(self.runtime()));
        OpenDirectory { store: Arc::new(DocumentDirectory::in_memory(Arc::clone(&log))), log }
    }
}

struct Sqlite {
    folder: TempDir,
    opened: AtomicUsize,
}

impl Sqlite {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), opened: AtomicUsize::new(0) }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join(format!("{}.db", self.opened.load(Ordering::SeqCst)))
    }
}

#[async_trait::async_trait]
impl DirectoryHarness for Sqlite {
    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(TokioRuntime)
    }

    fn block_on(&self, case: BoxFuture<'_, ()>) {
        crate::sqlite::tokio().block_on(case);
    }

    async fn open(&self, which: Reopen) -> OpenDirectory {
        if which == Reopen::No {
            self.opened.fetch_add(1, Ordering::SeqCst);
        }
        let config = SqliteConfig::new(self.path());
        let log = SqliteAuditStore::open(config, &TokioRuntime).await.unwrap();
        let store = DocumentDirectory::open(&log.database()).await.unwrap();
        OpenDirectory { store: Arc::new(store), log: Arc::new(log) }
    }
}

mod memory {
    dezky_core::directory_store_conformance!(super::Memory);
}

mod sqlite {
    dezky_core::directory_store_conformance!(super::Sqlite::new());
}

const ACME: TenantKey<'_> = TenantKey::Slug("acme");
const RESELL: PartnerKey<'_> = PartnerKey::Slug("resell");
const BOB: UserKey<'_> = UserKey::Subject { issuer: "https://id.example/", subject: "bob" };

fn by() -> Edit {
    Edit {
        request_id: Some("r-1".into()),
        user_agent: Some("curl/8".into()),
        ..Edit::by(Actor::user("u-7").with_ip("203.0.113.7"))
    }
}

/// An editor on an in-memory directory.
struct Desk {
    directory: Directory,
    log: Arc<dyn AuditStore>,
}

impl Desk {
    fn new() -> Self {
        Self::on(|store| store)
    }

    fn on(wrap: impl FnOnce(Arc<dyn DirectoryStore>) -> Arc<dyn DirectoryStore>) -> Self {
        let log: Arc<dyn AuditStore> = Arc::new(MemoryAuditStore::open(Arc::new(TokioRuntime)));
        let audit = Arc::new(AuditLog::new(Arc::clone(&log), Arc::new(TokioRuntime)));
        let store = wrap(Arc::new(DocumentDirectory::in_memory(Arc::clone(&log))));
        Self { directory: Directory::new(store, audit, Arc::new(TokioRuntime)), log }
    }

    async fn events(&self) -> Vec<AuditEvent> {
        let rows = self.log.scan(0, 1_000).await.unwrap();
        rows.into_iter().map(|row| row.unwrap().stored.event).collect()
    }

    async fn last(&self) -> AuditEvent {
        self.events().await.pop().expect("has an event")
    }

    async fn acme(&self) -> Tenant {
        let mut new = NewTenant::new("acme", "Acme", "basic");
        new.status = Some(TenantStatus::Active);
        self.directory.create_tenant(new, &by()).await.unwrap()
    }

    async fn resell(&self) -> Partner {
        self.directory.create_partner(NewPartner::new("resell", "Resell"), &by()).await.unwrap()
    }

    async fn bob(&self) -> User {
        let new = NewUser::new("https://id.example/", "bob");
        self.directory.create_user(new, &by()).await.unwrap()
    }
}

fn own(event: &AuditEvent) -> Value {
    event.metadata.to_value()["_dezky"].clone()
}

fn patch<T: serde::de::DeserializeOwned>(json: Value) -> T {
    serde_json::from_value(json).unwrap()
}

#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(
    answer: Result<T>,
    kind: ErrorKind,
    begins: &str,
) -> Error {
    let error = answer.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().starts_with(begins), "{error}");
    error
}

#[tokio::test]
async fn every_change_has_its_event() {
    let desk = Desk::new();
    let (directory, by) = (&desk.directory, &by());
    let resell = desk.resell().await;
    let acme = desk.acme().await;
    assert!(uuid::Uuid::parse_str(&acme.id).unwrap().get_version_num() == 7);
    let attach =
        patch(json!({"partnerId": "resell", "name": "Acme Ltd", "domains": ["A.Example"]}));
    directory.update_tenant(ACME, attach, by).await.unwrap();
    let updated = desk.last().await;
    assert_eq!(
        own(&updated),
        json!({
            "requestId": "r-1",
            "userAgent": "curl/8",
            "before": {"name": "Acme", "domains": []},
            "after": {"name": "Acme Ltd", "domains": ["a.example"], "partnerId": resell.id},
        })
    );
    assert_eq!(updated.actor_id.as_deref(), Some("u-7"));
    assert_eq!(updated.actor_ip.as_deref(), Some("203.0.113.7"));
    assert_eq!(updated.resource_id, Some(acme.id.clone()));
    assert_eq!(updated.resource_name.as_deref(), Some("Acme Ltd"));

    let mut new = NewUser::new("https://id.example/", "bob");
    new.tenant_ids = vec![acme.id.clone()];
    directory.create_user(new, by).await.unwrap();
    directory.suspend_tenant(ACME, by).await.unwrap();
    directory.resume_tenant(TenantKey::Id(&acme.id), by).await.unwrap();
    let detached = directory
        .update_tenant(TenantKey::Domain("a.example"), patch(json!({"partnerId": null})), by)
        .await
        .unwrap();
    assert!(serde_json::to_value(&detached).unwrap().get("partnerId").is_none(), "gone, not null");
    directory.delete_tenant(ACME, by).await.unwrap();
    directory.update_partner(RESELL, patch(json!({"marginPct": 20})), by).await.unwrap();
    directory.terminate_partner(PartnerKey::Id(&resell.id), by).await.unwrap();
    directory.update_user(BOB, patch(json!({"platformAdmin": true})), by).await.unwrap();
    let bob = directory.deactivate_user(BOB, by).await.unwrap();
    assert_eq!((bob.status, bob.platform_admin, bob.version), (UserStatus::Deactivated, false, 3));

    let events = desk.events().await;
    let said: Vec<_> = events
        .iter()
        .map(|e| {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            (e.action.as_str(), text(&e.resource_type), text(&e.tenant_slug), text(&e.partner_slug))
        })
        .collect();
    let said: Vec<_> =
        said.iter().map(|(a, r, t, p)| (*a, r.as_str(), t.as_str(), p.as_str())).collect();
    assert_eq!(
        said,
        [
            ("partner.created", "partner", "", "resell"),
            ("tenant.created", "tenant", "acme", ""),
            ("tenant.updated", "tenant", "acme", "resell"),
            ("user.created", "user", "acme", "resell"),
            ("tenant.suspended", "tenant", "acme", "resell"),
            ("tenant.resumed", "tenant", "acme", "resell"),
            ("tenant.updated", "tenant", "acme", "resell"),
            ("tenant.deleted", "tenant", "acme", ""),
            ("partner.updated", "partner", "", "resell"),
            ("partner.terminated", "partner", "", "resell"),
            ("user.updated", "user", "", ""),
            ("user.deactivated", "user", "", ""),
        ]
    );
    let created = own(&events[1]);
    assert_eq!(created["after"]["slug"], "acme");
    assert!(created.get("before").is_none() && created["after"].get("version").is_none());
    assert_eq!(own(&events[4])["before"], json!({"status": "active"}));
    assert_eq!(own(&events[4])["after"], json!({"status": "suspended"}));
    assert_eq!(own(&events[6])["before"], json!({"partnerId": resell.id}));
    assert_eq!(own(&events[6])["after"], json!({}));
}

#[tokio::test]
async fn an_edit_that_changes_nothing_writes_nothing() {
    let desk = Desk::new();
    let (directory, by) = (&desk.directory, &by());
    let (acme, resell, bob) = (desk.acme().await, desk.resell().await, desk.bob().await);
    let same = patch(json!({"name": "Acme", "status": "active", "partnerId": null}));
    assert_eq!(directory.update_tenant(ACME, same, by).await.unwrap(), acme);
    assert_eq!(directory.resume_tenant(ACME, by).await.unwrap(), acme);
    assert_eq!(
        directory.update_partner(RESELL, PartnerPatch::default(), by).await.unwrap(),
        resell
    );
    assert_eq!(directory.update_user(BOB, patch(json!({"tenantIds": []})), by).await.unwrap(), bob);
    assert_eq!(desk.events().await.len(), 3, "those of making them");
    for _ in 0..2 {
        let acme = directory.suspend_tenant(ACME, by).await.unwrap();
        assert_eq!((acme.status, acme.version), (TenantStatus::Suspended, 2));
    }
    for _ in 0..2 {
        assert_eq!(directory.delete_tenant(ACME, by).await.unwrap().version, 3);
        assert_eq!(directory.terminate_partner(RESELL, by).await.unwrap().version, 2);
        assert_eq!(directory.deactivate_user(BOB, by).await.unwrap().version, 2);
    }
    assert_eq!(desk.events().await.len(), 7);
}

#[tokio::test]
async fn states_allow_what_they_say() {
    let desk = Desk::new();
    let (directory, by) = (&desk.directory, &by());
    let pending = directory.create_tenant(NewTenant::new("acme", "A", "basic"), by).await.unwrap();
    assert_eq!(pending.status, TenantStatus::Pending);
    let conflict = ErrorKind::StateConflict;
    refused(directory.resume_tenant(ACME, by).await, conflict, "the tenant is pending");
    directory.suspend_tenant(ACME, by).await.unwrap();
    let activate: TenantPatch = patch(json!({"status": "active"}));
    let answer = directory.update_tenant(ACME, activate.clone(), by).await;
    refused(answer, conflict, "the tenant is suspended: resume");
    assert_eq!(directory.resume_tenant(ACME, by).await.unwrap().status, TenantStatus::Active);
    let suspend = patch(json!({"status": "suspended"}));
    let answer = directory.update_tenant(ACME, suspend, by).await;
    refused(answer, ErrorKind::FieldInvalid, "status must be active in a patch");

    directory.delete_tenant(ACME, by).await.unwrap();
    let rename = patch(json!({"name": "B"}));
    for answer in [
        directory.suspend_tenant(ACME, by).await,
        directory.resume_tenant(ACME, by).await,
        directory.update_tenant(ACME, rename, by).await,
        directory.update_tenant(ACME, activate, by).await,
    ] {
        refused(answer, conflict, "the tenant is deleted");
    }
    desk.resell().await;
    directory.terminate_partner(RESELL, by).await.unwrap();
    let answer = directory.update_partner(RESELL, patch(json!({"name": "B"})), by).await;
    refused(answer, conflict, "the partner is terminated");

    desk.bob().await;
    directory.deactivate_user(BOB, by).await.unwrap();
    let admin = patch(json!({"platformAdmin": true}));
    refused(directory.update_user(BOB, admin, by).await, conflict, "the user is deactivated");
    let back = patch(json!({"status": "active", "platformAdmin": true}));
    let bob = directory.update_user(BOB, back, by).await.unwrap();
    assert!(bob.is_active() && bob.platform_admin);
    let out = patch(json!({"status": "deactivated"}));
    let answer = directory.update_user(BOB, out, by).await;
    refused(answer, ErrorKind::FieldInvalid, "status must be active");
}

#[tokio::test]
async fn partners_are_attached_by_id_or_slug_and_must_be_active() {
    let desk = Desk::new();
    let (directory, by) = (&desk.directory, &by());
    let resell = desk.resell().await;
    let acme = desk.acme().await;
    let missing = ErrorKind::NotFound;
    for id in ["nobody", "", "%"] {
        let answer = directory.update_tenant(ACME, patch(json!({"partnerId": id})), by).await;
        refused(answer, missing, "partnerId must be the id or the slug");
    }
    for key in [resell.id.as_str(), "resell"] {
        let attach = patch(json!({"partnerId": key}));
        let tenant = directory.update_tenant(ACME, attach, by).await.unwrap();
        assert_eq!((tenant.partner_id.as_ref(), tenant.version), (Some(&resell.id), 2));
    }
    directory.terminate_partner(RESELL, by).await.unwrap();
    let again: TenantPatch = patch(json!({"partnerId": resell.id, "name": "B"}));
    let tenant = directory.update_tenant(ACME, again, by).await.unwrap();
    assert_eq!((tenant.name.as_str(), tenant.partner_id), ("B", Some(resell.id.clone())));
    let mut new = NewTenant::new("other", "Other", "basic");
    new.partner_id = Some("resell".into());
    let answer = directory.create_tenant(new, by).await;
    refused(answer, ErrorKind::StateConflict, "partnerId must be that of an active partner");
    let nobody = TenantKey::Id("nobody");
    refused(directory.suspend_tenant(nobody, by).await, missing, "there is no such tenant");
    assert_eq!(acme.partner_id, None);
}

#[tokio::test]
async fn users_belong_to_tenants_that_are_there() {
    let desk = Desk::new();
    let (directory, by) = (&desk.directory, &by());
    let acme = desk.acme().await;
    let bob = desk.bob().await;
    let join = |ids: &[&str]| patch::<UserPatch>(json!({"tenantIds": ids}));
    let answer = directory.update_user(BOB, join(&[&acme.id, "nowhere"]), by).await;
    refused(answer, ErrorKind::NotFound, "tenantIds must be ids of tenants: nowhere");
    directory.update_user(BOB, join(&[&acme.id]), by).await.unwrap();
    directory.delete_tenant(ACME, by).await.unwrap();
    // Existing values may stay and be sent back, but can't be newly assigned.
    let mut again = join(&[&acme.id]);
    again.name = Patch::Set("Bob".into());
    directory.update_user(UserKey::Id(&bob.id), again, by).await.unwrap();
    let mut ada = NewUser::new("https://id.example/", "ada");
    ada.tenant_ids = vec![acme.id.clone()];
    let answer = directory.create_user(ada.clone(), by).await;
    refused(answer, ErrorKind::NotFound, "tenantIds must be ids of tenants");

    let ocis = Identity { system: "ocis".into(), id: "4c".into() };
    let mut has = UserPatch { identities: Some(vec![ocis.clone()]), ..UserPatch::default() };
    directory.update_user(BOB, has.clone(), by).await.unwrap();
    ada = NewUser { tenant_ids: Vec::new(), identities: vec![ocis], ..ada };
    let answer = directory.create_user(ada.clone(), by).await;
    refused(answer, ErrorKind::AlreadyExists, "identities: one of ocis");
    has.identities = Some(Vec::new());
    directory.update_user(BOB, has, by).await.unwrap();
    directory.create_user(ada.clone(), by).await.unwrap();
    refused(directory.create_user(ada, by).await, ErrorKind::AlreadyExists, "subject already");
}

#[tokio::test]
async fn logins_are_written_down_by_the_minute_and_without_events() {
    let desk = Desk::new();
    let directory = &desk.directory;
    desk.bob().await;
    let start = Timestamp::parse("2026-01-01T00:00:00Z").unwrap();
    let after = |seconds| start.saturating_add(Duration::from_secs(seconds));
    for (at, kept, version) in [
        (start, start, 2),
        (after(59), start, 2),
        (after(60), after(60), 3),
        (start, after(60), 3),
        (after(600), after(600), 4),
    ] {
        let bob = directory.record_login(BOB, at).await.unwrap();
        assert_eq!((bob.last_login_at, bob.version), (Some(kept), version));
    }
    // A login recorded with a clock that was ahead does not hide later ones.
    let ahead = Timestamp::parse("2099-01-01T00:00:00Z").unwrap();
    for (at, version) in [(ahead, 5), (after(700), 6)] {
        let bob = directory.record_login(BOB, at).await.unwrap();
        assert_eq!((bob.last_login_at, bob.version), (Some(at), version));
    }
    directory.deactivate_user(BOB, &by()).await.unwrap();
    let bob = directory.record_login(BOB, after(6_000)).await.unwrap();
    assert_eq!(bob.last_login_at, Some(after(700)));
    assert_eq!(desk.events().await.len(), 2, "made and deactivated");
    let answer = directory.record_login(UserKey::Id("nobody"), start).await;
    refused(answer, ErrorKind::NotFound, "there is no such user");
}

#[tokio::test]
async fn an_edit_of_a_version_is_made_to_no_other() {
    let desk = Desk::new();
    let directory = &desk.directory;
    desk.acme().await;
    let of = |version| Edit { if_version: Some(version), ..by() };
    let name = |name: &str| patch::<TenantPatch>(json!({"name": name}));
    assert_eq!(directory.update_tenant(ACME, name("B"), &of(1)).await.unwrap().version, 2);
    let answer = directory.update_tenant(ACME, name("C"), &of(1)).await;
    refused(answer, ErrorKind::VersionMismatch, "the tenant was changed in the meantime");
    let answer = directory.suspend_tenant(ACME, &of(3)).await;
    refused(answer, ErrorKind::VersionMismatch, "the tenant was changed in the meantime");
    assert_eq!(desk.events().await.len(), 2);
}

#[tokio::test]
async fn the_note_of_an_edit_is_in_its_event() {
    let desk = Desk::new();
    desk.acme().await;
    let noted = |note: String| Edit { note: Some(note), ..by() };
    desk.directory.suspend_tenant(ACME, &noted("as asked".into())).await.unwrap();
    assert_eq!(own(&desk.last().await)["note"], "as asked");

    let long = noted("x".repeat(1_001));
    let problem = "note must be at most 1000 bytes";
    refused(desk.directory.resume_tenant(ACME, &long).await, ErrorKind::FieldInvalid, problem);
    let new = NewPartner::new("resell", "Resell");
    refused(desk.directory.create_partner(new, &long).await, ErrorKind::FieldInvalid, problem);
    let store = desk.directory.store();
    assert_eq!(store.tenant(ACME).await.unwrap().unwrap().version, 2);
    assert_eq!(store.partner(RESELL).await.unwrap(), None);
    assert_eq!(desk.events().await.len(), 2);
}

/// Changes a tenant's plan just before each of the first commits, as another process might.
struct Rival {
    store: Arc<dyn DirectoryStore>,
    left: AtomicUsize,
}

#[async_trait::async_trait]
impl DirectoryStore for Rival {
    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }

    async fn tenant(&self, key: TenantKey<'_>) -> Result<Option<Tenant>> {
        self.store.tenant(key).await
    }

    async fn tenants(&self, query: &TenantQuery) -> Result<Vec<Tenant>> {
        self.store.tenants(query).await
    }

    async fn partner(&self, key: PartnerKey<'_>) -> Result<Option<Partner>> {
        let partner = self.store.partner(key).await;
        // Other editors commit between the read and its use.
        tokio::task::yield_now().await;
        partner
    }

    async fn partners(&self, query: &PartnerQuery) -> Result<Vec<Partner>> {
        self.store.partners(query).await
    }

    async fn user(&self, key: UserKey<'_>) -> Result<Option<User>> {
        self.store.user(key).await
    }

    async fn users(&self, query: &UserQuery) -> Result<Vec<User>> {
        self.store.users(query).await
    }

    async fn count_tenants_of_partner(&self, partner_id: &str) -> Result<u64> {
        self.store.count_tenants_of_partner(partner_id).await
    }

    async fn commit(&self, changes: Vec<DirectoryChange>, events: Vec<SealedEvent>) -> Result<()> {
        let take = |left: usize| left.checked_sub(1);
        if let Some(acme) = self.store.tenant(ACME).await?
            && self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok()
        {
            let version = acme.version + 1;
            let change = Tenant { plan: format!("plan-{version}"), version, ..acme };
            self.store.commit(vec![change.into()], Vec::new()).await?;
        }
        self.store.commit(changes, events).await
    }

    async fn restore(&self, documents: Vec<DirectoryChange>) -> Result<()> {
        self.store.restore(documents).await
    }
}

#[tokio::test]
async fn an_edit_that_lost_a_race_is_repeated_but_not_forever() {
    for (times, is_made) in [(3, true), (59, true), (60, false)] {
        let desk = Desk::on(|store| Arc::new(Rival { store, left: AtomicUsize::new(times) }));
        desk.acme().await;
        let answer = desk.directory.update_tenant(ACME, patch(json!({"name": "B"})), &by()).await;
        let acme = desk.directory.store().tenant(ACME).await.unwrap().unwrap();
        assert_eq!(acme.plan, format!("plan-{}", times + 1), "the rival's changes stay");
        assert_eq!(answer.is_ok(), is_made);
        assert_eq!(acme.name == "B", is_made);
        assert_eq!(desk.events().await.len(), if is_made { 2 } else { 1 });
    }
}

/// Facts checked before a change still hold when it commits.
#[tokio::test]
async fn a_partner_is_not_terminated_while_it_gets_a_tenant() {
    let desk = Desk::on(|store| Arc::new(Rival { store, left: AtomicUsize::new(0) }));
    desk.resell().await;
    desk.acme().await;
    let by = by();
    let attach = patch(json!({"partnerId": "resell"}));
    let mut new = NewTenant::new("other", "Other", "basic");
    new.partner_id = Some("resell".into());
    let (attached, created, ended) = tokio::join!(
        desk.directory.update_tenant(ACME, attach, &by),
        desk.directory.create_tenant(new, &by),
        desk.directory.terminate_partner(RESELL, &by),
    );
    let made = usize::from(attached.is_ok()) + usize::from(created.is_ok());
    ended.unwrap();
    let events = desk.events().await;
    let end = events.iter().position(|event| event.action == "partner.terminated").unwrap();
    assert_eq!(end, 2 + made, "who got the partner did before its end");
    assert_eq!(events.len(), end + 1);
}

/// However large a change and whatever its request contains, its event describes the change.
#[tokio::test]
async fn a_large_change_is_shown_by_its_difference() {
    let desk = Desk::new();
    let directory = &desk.directory;
    let acme = desk.acme().await;
    let chatty = Edit {
        request_id: Some("r".repeat(100_000)),
        user_agent: Some("\u{1}".repeat(100_000)),
        ..by()
    };
    let domains: Vec<_> = (0..101)
        .map(|n| {
            format!("d{n:03}.{}.{}.{}.example", "a".repeat(63), "b".repeat(63), "c".repeat(60))
        })
        .collect();
    let set = |domains: &[String]| patch::<TenantPatch>(json!({"domains": domains}));
    directory.update_tenant(ACME, set(&domains[..100]), &chatty).await.unwrap();
    let said = own(&desk.last().await);
    assert_eq!(said["before"], json!({"domains": []}));
    assert_eq!(said["after"]["domains"]["count"], 100);
    assert_eq!(said["after"]["domains"]["only"][0], domains[0]);
    assert_eq!((said["requestId"].as_str().unwrap().len(), said.get("dropped")), (128, None));
    directory.update_tenant(ACME, set(&domains[1..]), &chatty).await.unwrap();
    let said = own(&desk.last().await);
    assert_eq!(said["before"]["domains"], json!({"count": 100, "only": [domains[0]]}));
    assert_eq!(said["after"]["domains"], json!({"count": 100, "only": [domains[100]]}));

    let report = |n: usize, error: Option<String>| ProvisioningReport {
        integration: format!("system-{n}"),
        status: if error.is_some() { ProvisioningStatus::Error } else { ProvisioningStatus::Ok },
        error,
    };
    for n in 0..13 {
        let report = report(n, Some("ü".repeat(2_000)));
        directory.report_provisioning(ACME, report, &chatty).await.unwrap();
    }
    directory.report_provisioning(TenantKey::Id(&acme.id), report(3, None), &chatty).await.unwrap();
    let said = own(&desk.last().await);
    assert_eq!(said["after"]["provisioningStatus"]["system-3"], "ok");
    assert_eq!(said["before"]["provisioningErrors"]["count"], 13);
    assert_eq!(said["after"]["provisioningErrors"], json!({"count": 12, "only": {}}));

    let mut ids = Vec::new();
    for n in 0..4 {
        let mut new = NewTenant::new(format!("t-{n}"), "T", "basic");
        new.id = Some(format!("{}-{n}", "t".repeat(60)));
        ids.push(directory.create_tenant(new, &by()).await.unwrap().id);
    }
    desk.bob().await;
    let identities: Vec<_> = (0..32)
        .map(|n| json!({"system": "ocis", "id": format!("{n}-{}", "i".repeat(500))}))
        .collect();
    let change = patch(json!({"tenantIds": ids, "identities": identities}));
    directory.update_user(BOB, change, &chatty).await.unwrap();
    let said = own(&desk.last().await);
    assert_eq!(said["after"]["tenantIds"], json!(ids), "short values are shown in full");
    assert_eq!(said["after"]["identities"]["count"], 32);
}

#[tokio::test]
async fn a_committed_event_outlives_its_process() {
    let harness = Sqlite::new();
    let OpenDirectory { store, log } = harness.open(Reopen::No).await;
    let audit = Arc::new(AuditLog::new(log, harness.runtime()));
    let directory = Directory::new(Arc::clone(&store), audit, harness.runtime());
    let acme = directory.create_tenant(NewTenant::new("acme", "A", "basic"), &by()).await.unwrap();
    // Committed, but not relayed.
    let change = Tenant { name: "B".into(), version: 2, ..acme };
    let event = dezky_core::testkit::named_event("late").seal(&TokioRuntime);
    store.commit(vec![change.clone().into()], vec![event]).await.unwrap();
    drop((directory, store));

    let OpenDirectory { store, log } = harness.open(Reopen::Yes).await;
    assert_eq!(store.tenant(ACME).await.unwrap(), Some(change));
    assert_eq!(log.state().await.unwrap().head.next_seq, 1);
    assert_eq!(log.relay(100).await.unwrap().appended, 1);
}

#[tokio::test]
async fn a_database_is_checked_before_it_is_written_to() {
    let harness = Sqlite::new();
    let log =
        SqliteAuditStore::open(SqliteConfig::new(harness.path()), &TokioRuntime).await.unwrap();
    let reading = SqliteConfig::read_only(harness.path());
    let reader = SqliteAuditStore::open(reading.clone(), &TokioRuntime).await.unwrap();
    let answer = DocumentDirectory::open(&reader.database()).await;
    refused(answer, ErrorKind::StoreForeign, "the database holds no directory");

    let store = DocumentDirectory::open(&log.database()).await.unwrap();
    let reader = DocumentDirectory::open(&reader.database()).await.unwrap();
    assert_eq!(reader.tenant(ACME).await.unwrap(), None);
    let acme = DirectoryChange::from(Desk::new().acme().await);
    assert!(reader.commit(vec![acme.clone()], Vec::new()).await.is_err());
    store.commit(vec![acme], Vec::new()).await.unwrap();
    assert!(reader.tenant(ACME).await.unwrap().is_some());

    let mut tx = log.database().begin().await.unwrap();
    sqlx::query("UPDATE dezky_schema SET version = 9 WHERE component = 'directory'")
        .execute(&mut *tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let answer = DocumentDirectory::open(&log.database()).await;
    refused(answer, ErrorKind::SchemaNewer, "the database has schema version 9");
}

#[tokio::test]
async fn a_broken_document_is_named_and_not_quoted() {
    let harness = Sqlite::new();
    let log =
        SqliteAuditStore::open(SqliteConfig::new(harness.path()), &TokioRuntime).await.unwrap();
    let store = DocumentDirectory::open(&log.database()).await.unwrap();
    store.commit(vec![Desk::new().acme().await.into()], Vec::new()).await.unwrap();
    let mut tx = log.database().begin().await.unwrap();
    sqlx::query(r#"UPDATE dezky_tenants SET document = '{"slug":"secret"'"#)
        .execute(&mut *tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let error = store.tenant(ACME).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreCorrupt);
    assert!(!format!("{error:?}").contains("secret"), "{error:?}");
}

/// An active tenant with `slug`.
pub(crate) fn tenant(slug: &str) -> Tenant {
    patch(json!({
        "id": format!("t-{slug}"), "slug": slug, "name": "n", "plan": "basic", "version": 1,
        "status": "active",
        "createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:00Z",
    }))
}

/// A few documents whose unique values conflict.
fn any_change() -> impl Strategy<Value = DirectoryChange> {
    let domains = proptest::sample::subsequence(vec!["a.example", "b.example", "c.example"], 0..3);
    let tenant = (0..4_u8, 0..4_u8, 1..4_u64, domains, 0..4_usize, proptest::option::of(0..2_u8))
        .prop_map(|(id, slug, version, domains, status, partner)| {
            DirectoryChange::from(patch::<Tenant>(json!({
                "id": format!("t{id}"),
                // Mostly the one that belongs to the id.
                "slug": format!("s{}", if slug == 0 { 0 } else { id }),
                "name": "n", "plan": "basic", "domains": domains, "version": version,
                "status": TenantStatus::ALL[status],
                "partnerId": partner.map(|p| format!("p{p}")),
                "createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:00Z",
            })))
        });
    let ids = proptest::sample::subsequence(vec!["1", "2", "3"], 0..3);
    let user = (0..4_u8, 1..4_u64, ids, proptest::option::of(0..3_i64), 0..3_usize).prop_map(
        |(id, version, identities, login, tenants)| {
            let identities: Vec<_> =
                identities.iter().map(|id| json!({"system": "ocis", "id": id})).collect();
            let login = login.and_then(Timestamp::from_millis);
            let tenants = &["t0", "t1"][..tenants];
            DirectoryChange::from(patch::<User>(json!({
                "id": format!("u{id}"), "issuer": "i", "subject": format!("s{id}"),
                "identities": identities, "tenantIds": tenants,
                "lastLoginAt": login, "status": "active", "version": version,
                "createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:00Z",
            })))
        },
    );
    prop_oneof![tenant, user]
}

#[test]
fn a_tenant_that_comes_from_elsewhere_keeps_its_id() {
    crate::sqlite::tokio().block_on(async {
        let desk = Desk::new();
        let of = |slug: &str, id: &str| {
            let mut new = NewTenant::new(slug, "Acme", "basic");
            new.id = Some(id.into());
            new
        };
        let new = of("acme", "619699cfe1988ad9f06c144a");
        let kept = desk.directory.create_tenant(new, &by()).await.unwrap();
        assert_eq!(kept.id, "619699cfe1988ad9f06c144a");
        for (new, code, field) in [
            (of("other", "619699cfe1988ad9f06c144a"), "already_exists", "id"),
            (of("other", ""), "field_invalid", "id"),
            (of("other", &"x".repeat(200)), "field_invalid", "id"),
        ] {
            let error = desk.directory.create_tenant(new, &by()).await.unwrap_err();
            assert_eq!(error.code(), code, "{error}");
            assert!(error.to_string().starts_with(field), "{error}");
        }
        assert_eq!(desk.events().await.len(), 1);
    });
}

/// Commits of which many are refused.
pub(crate) fn any_commits() -> impl Strategy<Value = Vec<Vec<DirectoryChange>>> {
    proptest::collection::vec(proptest::collection::vec(any_change(), 1..3), 1..40)
}

/// Checks that for any commits to an empty store, the store answers like the memory store and ends
/// up with the same content.
pub(crate) async fn agrees_with_memory(
    store: &dyn DirectoryStore,
    commits: Vec<Vec<DirectoryChange>>,
) {
    let memory = Memory.open(Reopen::No).await.store;
    for changes in commits {
        let by_memory = memory.commit(changes.clone(), Vec::new()).await.map_err(|e| e.kind());
        let by_store = store.commit(changes.clone(), Vec::new()).await.map_err(|e| e.kind());
        assert_eq!(by_memory, by_store, "{changes:?}");
    }
    let tenants = TenantQuery::default();
    assert_eq!(memory.tenants(&tenants).await.unwrap(), store.tenants(&tenants).await.unwrap());
    for tenant_id in [None, Some("t0".to_owned()), Some("t1".to_owned())] {
        let users = UserQuery { tenant_id, ..UserQuery::default() };
        assert_eq!(memory.users(&users).await.unwrap(), store.users(&users).await.unwrap());
    }
    for domain in ["a.example", "b.example", "c.example"] {
        let key = TenantKey::Domain(domain);
        assert_eq!(memory.tenant(key).await.unwrap(), store.tenant(key).await.unwrap());
    }
    for id in ["1", "2", "3"] {
        let key = UserKey::Identity { system: "ocis", id };
        assert_eq!(memory.user(key).await.unwrap(), store.user(key).await.unwrap());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// For any commits, SQLite answers like the memory store and ends up with the same content.
    #[test]
    fn sqlite_agrees_with_memory(commits in any_commits()) {
        crate::sqlite::tokio().block_on(async {
            let harness = Sqlite::new();
            agrees_with_memory(&*harness.open(Reopen::No).await.store, commits).await;
        });
    }
}
