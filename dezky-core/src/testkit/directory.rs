//! The conformance suite of [`DirectoryStore`]: one named test per case.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use async_trait::async_trait;
use futures_util::future::join_all;

use super::{BoxFuture, Reopen, named_event};
use crate::directory::{
    Billing, ContactInfo, Directory, DirectoryChange, DirectoryStore, DirectoryTenants, Edit,
    Identity, MAX_CHANGES, Partner, PartnerKey, PartnerQuery, PartnerStatus, ProvisioningReport,
    ProvisioningStatus, Tenant, TenantKey, TenantQuery, TenantStatus, User, UserCursor, UserKey,
    UserQuery, UserStatus,
};
use crate::store::Relayed;
use crate::{
    Actor, AuditLog, AuditStore, ErrorKind, NewEvent, Result, Runtime, SealedEvent,
    TenantDirectory, Timestamp,
};

/// The suite's access to a store.
#[async_trait]
pub trait DirectoryHarness: Send + Sync + 'static {
    /// The runtime that the store was created with.
    fn runtime(&self) -> Arc<dyn Runtime>;

    /// Runs a case to completion on the executor that the store needs.
    fn block_on(&self, case: BoxFuture<'_, ()>);

    /// Opens a store and its log: new empty ones, or those that this harness opened before. The
    /// latter are requested only if the store's capabilities include durable or shared.
    async fn open(&self, which: Reopen) -> OpenDirectory;
}

/// A directory and the log in which its events are staged.
pub struct OpenDirectory {
    /// The directory.
    pub store: Arc<dyn DirectoryStore>,
    /// The log.
    pub log: Arc<dyn AuditStore>,
}

/// Expands to one `#[test]` per case of the suite, in the current module.
///
/// Takes an expression that creates a [`DirectoryHarness`](crate::testkit::DirectoryHarness); it is
/// evaluated for each case.
#[macro_export]
macro_rules! directory_store_conformance {
    ($harness:expr) => {
        $crate::directory_store_conformance!(@cases $harness;
            committed_documents_are_read_back
            a_new_document_must_be_new
            a_change_compares_the_version
            fixed_members_can_not_be_changed
            slugs_are_unique_forever
            subjects_are_unique_and_addresses_are_not
            a_domain_belongs_to_one_tenant
            deletion_frees_domains
            domains_and_identities_move_within_a_commit
            an_identity_belongs_to_one_user
            a_refused_change_refuses_all_and_the_events
            a_dropped_commit_is_made_with_its_event_or_not
            an_event_out_of_bounds_refuses_the_changes
            a_document_out_of_bounds_is_refused
            a_commit_is_bounded
            staged_events_are_relayed_once
            of_changes_at_once_one_wins
            edits_at_once_are_all_made
            pages_of_tenants_agree_with_their_definition
            pages_of_partners_agree_with_their_definition
            pages_of_users_hold_over_ties
            limits_are_bounded
            customers_are_counted
            hostile_keys_find_nothing
            hostile_texts_are_literal
            ingest_finds_tenants
            a_copy_has_the_documents_as_they_were
            another_handle_sees_what_was_committed
        );
    };
    (@cases $harness:expr; $($case:ident)+) => {
        $(
            #[test]
            fn $case() {
                let harness = $harness;
                let run = $crate::testkit::directory::$case(&harness);
                $crate::testkit::DirectoryHarness::block_on(&harness, ::std::boxed::Box::pin(run));
            }
        )+
    };
}

type Harness<'a> = &'a dyn DirectoryHarness;

const T0: Timestamp = Timestamp::from_millis_clamped(1_767_225_600_000);

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millis_clamped(T0.as_millis() + ms)
}

/// An active tenant with `slug`, whose id is `t-<slug>`.
fn tenant(slug: &str) -> Tenant {
    Tenant {
        id: format!("t-{slug}"),
        slug: slug.to_owned(),
        name: slug.to_uppercase(),
        status: TenantStatus::Active,
        plan: "basic".into(),
        domains: Vec::new(),
        partner_id: None,
        billing: Billing::default(),
        provisioning_status: BTreeMap::new(),
        provisioning_errors: BTreeMap::new(),
        version: 1,
        created_at: T0,
        updated_at: T0,
    }
}

fn owner(slug: &str, domains: &[&str]) -> Tenant {
    Tenant { domains: domains.iter().map(|&d| d.to_owned()).collect(), ..tenant(slug) }
}

fn partner(slug: &str) -> Partner {
    Partner {
        id: format!("p-{slug}"),
        slug: slug.to_owned(),
        name: slug.to_uppercase(),
        domain: None,
        status: PartnerStatus::Active,
        margin_pct: 12.5,
        contact_info: ContactInfo::default(),
        billing_info: Billing::default(),
        version: 1,
        created_at: T0,
        updated_at: T0,
    }
}

fn user(subject: &str) -> User {
    User {
        id: format!("u-{subject}"),
        issuer: "https://id.example/".into(),
        subject: subject.to_owned(),
        email: None,
        name: None,
        identities: Vec::new(),
        tenant_ids: Vec::new(),
        platform_admin: false,
        status: UserStatus::Active,
        last_login_at: None,
        version: 1,
        created_at: T0,
        updated_at: T0,
    }
}

fn identity(system: &str, id: &str) -> Identity {
    Identity { system: system.into(), id: id.into() }
}

fn event(harness: Harness<'_>, name: &str) -> SealedEvent {
    named_event(name).seal(&*harness.runtime())
}

async fn put(store: &dyn DirectoryStore, changes: Vec<DirectoryChange>) {
    store.commit(changes, Vec::new()).await.expect("commits");
}

/// Expects `change` to be refused, and returns the error's kind and message.
async fn refused(
    store: &dyn DirectoryStore,
    change: impl Into<DirectoryChange>,
) -> (ErrorKind, String) {
    let error = store.commit(vec![change.into()], Vec::new()).await.expect_err("is refused");
    (error.kind(), error.to_string())
}

async fn by_slug(store: &dyn DirectoryStore, slug: &str) -> Option<Tenant> {
    store.tenant(TenantKey::Slug(slug)).await.expect("reads")
}

async fn by_domain(store: &dyn DirectoryStore, domain: &str) -> Option<String> {
    store.tenant(TenantKey::Domain(domain)).await.expect("reads").map(|tenant| tenant.slug)
}

async fn by_identity(store: &dyn DirectoryStore, system: &str, id: &str) -> Option<String> {
    let user = store.user(UserKey::Identity { system, id }).await.expect("reads");
    user.map(|user| user.subject)
}

/// Two handles to one store, as two processes would have; the same handle twice if the store can't
/// be shared.
async fn pair(h: Harness<'_>) -> [OpenDirectory; 2] {
    let first = h.open(Reopen::No).await;
    let second = if first.store.capabilities().shared {
        h.open(Reopen::Yes).await
    } else {
        OpenDirectory { store: Arc::clone(&first.store), log: Arc::clone(&first.log) }
    };
    [first, second]
}

async fn timeline(log: &dyn AuditStore) -> Vec<String> {
    while log.relay(100).await.expect("relays").more {}
    let rows = log.scan(0, 1_000).await.expect("scans");
    rows.into_iter().map(|row| row.expect("readable").stored.event.action).collect()
}

/// See the name.
pub async fn committed_documents_are_read_back(h: Harness<'_>) {
    let OpenDirectory { store, .. } = h.open(Reopen::No).await;
    let billing = Billing {
        company: Some("Acme Ltd".into()),
        vat_id: Some("DE1".into()),
        email: Some("pay@acme.example".into()),
        address: Some("Way 1\n12345 Town".into()),
    };
    let partner = Partner {
        domain: Some("resell.example".into()),
        contact_info: ContactInfo {
            name: Some("Ada".into()),
            email: Some("ada@resell.example".into()),
            phone: Some("+1 2".into()),
        },
        billing_info: billing.clone(),
        ..partner("resell")
    };
    let tenant = Tenant {
        partner_id: Some(partner.id.clone()),
        billing,
        provisioning_status: [("ocis".to_owned(), ProvisioningStatus::Error)].into(),
        provisioning_errors: [("ocis".to_owned(), "no\nspace".to_owned())].into(),
        ..owner("acme", &["acme.example", "acme.test"])
    };
    let user = User {
        email: Some("Bob@acme.example".into()),
        name: Some("Bob Ö".into()),
        identities: vec![identity("ocis", "4c-1"), identity("stalwart", "7")],
        tenant_ids: vec![tenant.id.clone()],
        platform_admin: true,
        last_login_at: Some(at(5)),
        ..user("bob")
    };
    let changes = vec![tenant.clone().into(), partner.clone().into(), user.clone().into()];
    put(&*store, changes).await;

    for key in [
        TenantKey::Slug("acme"),
        TenantKey::Id("t-acme"),
        TenantKey::Domain("acme.example"),
        TenantKey::Domain("acme.test"),
    ] {
        assert_eq!(store.tenant(key).await.unwrap().as_ref(), Some(&tenant), "{key:?}");
    }
    for key in [PartnerKey::Slug("resell"), PartnerKey::Id("p-resell")] {
        assert_eq!(store.partner(key).await.unwrap().as_ref(), Some(&partner), "{key:?}");
    }
    for key in [
        UserKey::Id("u-bob"),
        UserKey::Subject { issuer: "https://id.example/", subject: "bob" },
        UserKey::Identity { system: "ocis", id: "4c-1" },
        UserKey::Identity { system: "stalwart", id: "7" },
    ] {
        assert_eq!(store.user(key).await.unwrap().as_ref(), Some(&user), "{key:?}");
    }
    // A key of one kind never matches another kind.
    assert_eq!(store.tenant(TenantKey::Slug("t-acme")).await.unwrap(), None);
    assert_eq!(by_identity(&*store, "stalwart", "4c-1").await, None);

    let detached = Tenant { partner_id: None, domains: Vec::new(), version: 2, ..tenant };
    put(&*store, vec![detached.clone().into()]).await;
    assert_eq!(by_slug(&*store, "acme").await, Some(detached));
    assert_eq!(by_domain(&*store, "acme.example").await, None);
}

/// See the name.
pub async fn a_new_document_must_be_new(h: Harness<'_>) {
    let OpenDirectory { store, .. } = h.open(Reopen::No).await;
    let documents: [DirectoryChange; 3] =
        [tenant("a").into(), partner("a").into(), user("a").into()];
    for new in documents {
        put(&*store, vec![new.clone()]).await;
        let (kind, message) = refused(&*store, new).await;
        assert_eq!(kind, ErrorKind::AlreadyExists, "{message}");
        assert!(message.starts_with("id "), "{message}");
    }
}

/// See the name.
pub async fn a_change_compares_the_version(h: Harness<'_>) {
    let OpenDirectory { store, .. } = h.open(Reopen::No).await;
    assert_eq!(store.tenants_revision().await.unwrap(), 0);
    put(&*store, vec![tenant("a").into(), partner("a").into(), user("a").into()]).await;
    assert_eq!(store.tenants_revision().await.unwrap(), 1, "counts only changes of tenants");
    let versions = |version| -> [DirectoryChange; 3] {
        [
            Tenant { version, ..tenant("a") }.into(),
            Partner { version, ..partner("a") }.into(),
            User { version, ..user("a") }.into(),
        ]
    };
    for change in versions(3) {
        assert_eq!(refused(&*store, change).await.0, ErrorKind::VersionMismatch);
    }
    for change in versions(2) {
        put(&*store, vec![change.clone()]).await;
        assert_eq!(refused(&*store, change).await.0, ErrorKind::VersionMismatch);
    }
    let missing: [DirectoryChange; 3] = [
        Tenant { version: 2, ..tenant("b") }.into(),
        Partner { version: 2, ..partner("b") }.into(),
        User { version: 2, ..user("b") }.into(),
    ];
    for change in missing {
        assert_eq!(refused(&*store, change).await.0, ErrorKind::NotFound);
    }
    assert_eq!(by_slug(&*store, "a").await.unwrap().version, 2);
    assert_eq!(store.tenants_revision().await.unwrap(), 2, "a refused change has no effect");
}

/// See the name.
pub async fn fixed_members_can_not_be_changed(h: Harness<'_>) {
    let OpenDirectory { store, .. } = h.open(Reopen::No).await;
    put(&*store, vec![tenant("a").into(), partner("a").into(), user("a").into()]).await;
    let changes: [(DirectoryChange, &str); 4] = [
        (Tenant { slug: "b".into(), version: 2, ..tenant("a") }.into(), "slug"),
        (Partner { slug: "b".into(), version: 2, ..partner("a") }.into(), "slug"),
        (User { subject: "b".into(), version: 2, ..user("a") }.into(), "subject"),
        (User { issuer: "b".into(), version: 2, ..user("a") }.into(), "subject"),
    ];
    for (change, field) in changes {
        let (kind, message) = refused(&*store, change).await;
        assert_eq!(kind, ErrorKind::FieldInvalid);
        assert!(message.starts_with(field), "{message}");
    }
}

/// See the name.
pub async fn slugs_are_unique_forever(h: Harness<'_>) {
    let OpenDirectory { store, .. } = h.open(Reopen::No).await;
    let deleted = Tenant { status: TenantStatus::Deleted, ..tenant("gone") };
    let terminated = Partner { status: PartnerStatus::Terminated, ..partner("gone") };
    put(&*store, vec![tenant("a").into(), deleted.into(), terminated.into()]).await;
    let others: [DirectoryChange; 3] = [
        Tenant { id: "t-2".into(), ..tenant("a") }.into(),
        Tenant { id: "t-3".into(), ..tenant("gone") }.into(),
        Partner { id: "p-2".into(), ..partner("gone") }.into(),
    ];
    for other in others {
        let (kind, message) = refused(&*store, other).await;
        assert_eq!(kind, ErrorKind::AlreadyExists);
        assert!(message.starts_with("slug already exists"), "{message}");
    }
    let twins = vec![
        Tenant { id: "t-4".into(), ..tenant("twin") }.into(),
        Tenant { id: "t-5".into(), ..tenant("twin") }.into(),
    ];
    let error = store.commit(twins, Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    // Tenants and partners have separate namespaces.
    put(&*store, vec![partner("a").into()]).await;
}

/// See the name.
pub async fn subjects_are_unique_and_addresses_are_not(h: Harness<'_>) {
    let OpenDirectory { store, .. } = h.open(Reopen::No).await;
    let bob = User { email: Some("bob@x.example".into()), ..user("bob") };
    put(&*store, vec![bob.clone().into()]).await;
    let again = User { id: "u-2".into(), ..bob.clone() };
    let (kind, message) = refused(&*store, again.clone()).await;
    assert_eq!(kind, ErrorKind::AlreadyExists);
    assert!(message.starts_with("subject already exists"), "{message}");
    let elsewhere = User { issuer: "https://other.example".into(), ..again };
    let namesake = User { id: "u-3".into(), subject: "Bob".into(), ..bob };
    put(&*store, vec![elsewhere.into(), namesake.into()]).await;
    let issuer = "https://other.example";
    let found = store.user(UserKey::Subject { issuer, subject: "bob" }).await.unwrap();
    assert_eq!(found.unwrap().id, "u-2");
}

/// See the name.
pub async fn a_domain_belongs_to_one_tenant(h: Harness<'_>) {
    let OpenDirectory { store, .. } = h.open(Reopen::No).await;
    put(&*store, vec![owner("a", &["one.example"]).into(), tenant("b").into()]).await;
    let greedy = Tenant { version: 2, ..owner("b", &["two.example", "one.example"]) };
    for change in [greedy, owner("c", &["one.example"])] {
        let (kind, message) = refused(&*store, change).await;
        assert_eq!(kind, ErrorKind::AlreadyExists);
        assert!(
            message.starts_with("domains: one.example already belongs to another tenant"),
            "{message}"
        );
    }
    assert_eq!(by_domain(&*store, "one.example").await.as_deref(), Some("a"));
    assert_eq!(by_domain(&*store, "two.example").await, None, "the refused change has no effect");
    assert_eq!(by_slug(&*store, "c").await, None);
    // A tenant may keep its own domain.
    let same = Tenant { version: 2, ..owner("a", &["more.example", "one.example"]) };
    put(&*store, vec![same.into()]).await;
    assert_eq!(by_domain(&*store, "more.example").await.as_deref(), Some("a"));
}

/// See the name.
pub async fn deletion_frees_domains(h: Harness<'_>) {
    let OpenDirectory { store, .. } = h.open(Reopen::No).await;
    let before = owner("a", &["one.example"]);
    let deleted = Tenant { status: TenantStatus::Deleted, version: 2, ..before.clone() };
    put(&*store, vec![before.into()]).await;
    put(&*store, vec![deleted.clone().into()]).await;
    assert_eq!(by_domain(&*store, "one.example").await, None);
    assert_eq!(by_slug(&*store, "a").await, Some(deleted), "the document keeps its domains");
    put(&*store, vec![owner("b", &["one.example"]).into()]).await;
    assert_eq!(by_domain(&*store, "one.example").await.as_deref(), Some("b"));
}

/// See the name.
pub async fn domains_and_identities_move_within_a_commit(h: Harness<'_>) {
    let OpenDirectory { store, .. } = h.open(Reopen::No).await;
    let ada = User { identities: vec![identity("ocis", "1")], ..user("ada") };
    let bob = User { identities: vec![identity("ocis", "2")], ..user("bob") };
    let (a, b) = (owner("a", &["one.example"]), owner("b", &["two.example"]));
    put(&*store, vec![a.into(), b.into(), ada.clone().into(), bob.clone().into()]).await;
    put(
        &*store,
        vec![
            Tenant { version: 2, ..owner("a", &["two.example"]) }.into(),
            Tenant { version: 2, ..owner("b", &["one.example"]) }.into(),
            User { identities: bob.identities.clone(), version: 2, ..ada.clone() }.into(),
            User { identities: ada.identities, version: 2, ..bob }.into(),
        ],
    )
    .await;
    assert_eq!(by_domain(&*store, "one.example").await.as_deref(), Some("b"));
    assert_eq!(by_domain(&*store, "two.example").await.as_deref(), Some("a"));
    assert_eq!(by_identity(&*store, "ocis", "1").await.as_deref(), Some("bob"));
    assert_eq!(by_identity(&*store, "ocis", "2").await.as_deref(), Some("ada"));
}

/// See the name.
pub async fn an_identity_belongs_to_one_user(h: Harness<'_>) {
    let OpenDirectory { store, .. } = h.open(Reopen::No).await;
    let ada = User { identities: vec![identity("ocis", "1")], ..user("ada") };
    put(&*store, vec![ada.into()]).await;
    let bob =
        User { identities: vec![identity("stalwart", "1"), identity("ocis", "1")], ..user("bob") };
    let (kind, message) = refused(&*store, bob.clone()).await;
    assert_eq!(kind, ErrorKind::AlreadyExists);
    assert!(
        message.starts_with("identities: one of ocis already belongs to another user"),
        "{message}"
    );
    assert_eq!(
        by_identity(&*store, "stalwart", "1").await,
        None,
        "the refused change has no effect"
    );
    let other = User { identities: vec![identity("stalwart", "1")], ..bob };
    put(&*store, vec![other.into()]).await;
    assert_eq!(by_identity(&*store, "stalwart", "1").await.as_deref(), Some("bob"));
}

/// See the name.
pub async fn a_refused_change_refuses_all_and_the_events(h: Harness<'_>) {
    let OpenDirectory { store, log } = h.open(Reopen::No).await;
    put(&*store, vec![owner("a", &["one.example"]).into(), partner("p").into()]).await;
    let last: [DirectoryChange; 4] = [
        Tenant { id: "t-2".into(), ..tenant("a") }.into(),
        owner("c", &["one.example"]).into(),
        Tenant { version: 3, ..tenant("a") }.into(),
        Partner { version: 2, ..partner("q") }.into(),
    ];
    for last in last {
        let changes = vec![
            owner("b", &["two.example"]).into(),
            user("u").into(),
            Partner { version: 2, ..partner("p") }.into(),
            last,
        ];
        store.commit(changes, vec![event(h, "x")]).await.expect_err("is refused");
    }
    assert_eq!(by_slug(&*store, "b").await, None);
    assert_eq!(by_domain(&*store, "two.example").await, None);
    assert_eq!(store.user(UserKey::Id("u-u")).await.unwrap(), None);
    assert_eq!(store.partner(PartnerKey::Slug("p")).await.unwrap().unwrap().version, 1);
    assert_eq!(timeline(&*log).await, [""; 0]);
}

/// Polls `work` at most `polls` times, each time after it is woken, and then drops it.
async fn dropped_after(polls: usize, work: impl Future<Output = Result<()>>) {
    let (mut work, mut left) = (pin!(work), polls);
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(());
        }
        left -= 1;
        work.as_mut().poll(context).map(drop)
    })
    .await;
}

/// Drops a commit at each of its await points.
pub async fn a_dropped_commit_is_made_with_its_event_or_not(h: Harness<'_>) {
    let OpenDirectory { store, log } = h.open(Reopen::No).await;
    for polls in 0..24 {
        let slug = format!("n{polls}");
        let commit = store.commit(vec![tenant(&slug).into()], vec![event(h, &slug)]);
        dropped_after(polls, commit).await;
    }
    // Commits under way have finished before this one.
    store.commit(vec![tenant("last").into()], vec![event(h, "last")]).await.expect("commits");
    let tenants = store.tenants(&TenantQuery::default()).await.unwrap();
    let made: BTreeSet<_> = tenants.into_iter().map(|tenant| tenant.slug).collect();
    while log.relay(100).await.expect("relays").more {}
    let rows = log.scan(0, 100).await.unwrap();
    let told: Vec<_> = rows
        .into_iter()
        .map(|row| row.expect("readable").stored.event.resource_id.unwrap_or_default())
        .collect();
    assert_eq!(told.len(), made.len());
    assert_eq!(told.into_iter().collect::<BTreeSet<_>>(), made);
}

/// See the name.
pub async fn an_event_out_of_bounds_refuses_the_changes(h: Harness<'_>) {
    let OpenDirectory { store, log } = h.open(Reopen::No).await;
    let bad = NewEvent::new("Not A Verb", Actor::system()).seal(&*h.runtime());
    let changes = vec![owner("a", &["one.example"]).into()];
    let error = store.commit(changes.clone(), vec![event(h, "x"), bad]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::EventInvalid);
    assert!(error.to_string().contains("event 1: action"), "{error}");
    assert_eq!(by_slug(&*store, "a").await, None);
    assert_eq!(by_domain(&*store, "one.example").await, None);
    assert_eq!(timeline(&*log).await, [""; 0]);
    store.commit(changes, vec![event(h, "x")]).await.expect("the domain is still free");
}

/// See the name.
pub async fn a_document_out_of_bounds_is_refused(h: Harness<'_>) {
    let OpenDirectory { store, .. } = h.open(Reopen::No).await;
    let many = (0..101).map(|n| format!("d{n}.example")).collect();
    let megabyte = "x".repeat(1 << 20);
    let documents: Vec<(DirectoryChange, &str)> = vec![
        (tenant("A").into(), "slug must be 1 to 63"),
        (tenant("a%").into(), "id must be 1 to 64"),
        (Tenant { name: megabyte.clone(), ..tenant("a") }.into(), "name must be 1 to 200"),
        (Tenant { name: "a\0b".into(), ..tenant("a") }.into(), "name must be"),
        (owner("a", &["One.example"]).into(), "domains must be a domain in lower case"),
        (owner("a", &["bücher.example"]).into(), "domains must be ASCII"),
        (owner("a", &["x.example", "x.example"]).into(), "domains must be without repetition"),
        (Tenant { domains: many, ..tenant("a") }.into(), "domains must be at most 100"),
        (Tenant { plan: "Big!".into(), ..tenant("a") }.into(), "plan must be 1 to 63"),
        (Tenant { version: 0, ..tenant("a") }.into(), "version must be 1"),
        (Tenant { version: u64::MAX, ..tenant("a") }.into(), "version must be 1"),
        (Partner { margin_pct: 100.5, ..partner("a") }.into(), "marginPct must be 0 to 100"),
        (Partner { margin_pct: f64::NAN, ..partner("a") }.into(), "marginPct must be 0 to 100"),
        (User { subject: String::new(), ..user("a") }.into(), "subject must be 1 to 512"),
        (User { subject: megabyte, ..user("a") }.into(), "subject must be 1 to 512"),
        (User { email: Some("a@b@c".into()), ..user("a") }.into(), "email must be an e-mail"),
        (
            User { identities: vec![identity("ocis", "\0")], ..user("a") }.into(),
            "identities.id must be 1 to 512",
        ),
    ];
    for (document, begins) in documents {
        let (kind, message) = refused(&*store, document).await;
        assert_eq!(kind, ErrorKind::FieldInvalid, "{message}");
        assert!(message.starts_with(begins), "{message}");
    }
    assert!(store.tenants(&TenantQuery::default()).await.unwrap().is_empty());
}

/// See the name.
pub async fn a_commit_is_bounded(h: Harness<'_>) {
    let OpenDirectory { store, .. } = h.open(Reopen::No).await;
    put(&*store, Vec::new()).await;
    let twice = vec![tenant("a").into(), Tenant { version: 2, ..tenant("a") }.into()];
    let error = store.commit(twice, Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FieldInvalid);
    assert_eq!(by_slug(&*store, "a").await, None);
    let changes = |count: usize| (0..count).map(|n| tenant(&format!("n{n}")).into()).collect();
    let error = store.commit(changes(MAX_CHANGES + 1), Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    put(&*store, changes(MAX_CHANGES)).await;
    assert!(by_slug(&*store, "n999").await.is_some());
}

/// See the name.
pub async fn staged_events_are_relayed_once(h: Harness<'_>) {
    let OpenDirectory { store, log } = h.open(Reopen::No).await;
    let events = vec![event(h, "one"), event(h, "two")];
    store.commit(vec![tenant("a").into()], events).await.unwrap();
    assert_eq!(log.state().await.unwrap().head.next_seq, 0, "events wait for the relay");
    let relayed = log.relay(100).await.unwrap();
    assert_eq!(relayed, Relayed { appended: 2, ..Relayed::default() });
    assert_eq!(log.relay(100).await.unwrap(), Relayed::default());
    let rows = log.scan(0, 10).await.unwrap();
    let names: Vec<_> =
        rows.into_iter().map(|row| row.unwrap().stored.event.resource_id.unwrap()).collect();
    assert_eq!(names, ["one", "two"]);
}

/// See the name.
pub async fn of_changes_at_once_one_wins(h: Harness<'_>) {
    let handles = pair(h).await;
    let OpenDirectory { store, log } = &handles[0];
    put(&**store, vec![tenant("a").into()]).await;
    let commit = |n: usize| {
        let change = Tenant { name: format!("name {n}"), version: 2, ..tenant("a") };
        handles[n % 2].store.commit(vec![change.into()], vec![event(h, &n.to_string())])
    };
    let answers: Vec<Result<()>> = join_all((0..16).map(commit)).await;
    let winners: Vec<usize> = (0..16).filter(|&n| answers[n].is_ok()).collect();
    assert_eq!(winners.len(), 1, "{answers:?}");
    assert!(
        answers
            .iter()
            .filter_map(|a| a.as_ref().err())
            .all(|e| e.kind() == ErrorKind::VersionMismatch)
    );
    assert_eq!(by_slug(&**store, "a").await.unwrap().name, format!("name {}", winners[0]));
    assert_eq!(timeline(&**log).await.len(), 1);
    let create = |n: usize| {
        let new = Tenant { id: format!("t-{n}"), ..owner("b", &["b.example"]) };
        handles[n % 2].store.commit(vec![new.into()], Vec::new())
    };
    let answers = join_all((0..16).map(create)).await;
    assert_eq!(answers.iter().filter(|a| a.is_ok()).count(), 1, "{answers:?}");
}

/// The two editors act as two processes: they don't share a lock.
pub async fn edits_at_once_are_all_made(h: Harness<'_>) {
    const EACH: usize = 6;
    let handles = pair(h).await;
    let OpenDirectory { store, log } = &handles[0];
    put(&**store, vec![tenant("a").into()]).await;
    let editors = handles.each_ref().map(|OpenDirectory { store, log }| {
        let audit = Arc::new(AuditLog::new(Arc::clone(log), h.runtime()));
        Directory::new(Arc::clone(store), audit, h.runtime())
    });
    let by = Edit::by(Actor::user("u-7"));
    let edit = |n: usize| {
        let report = ProvisioningReport {
            integration: format!("system-{n}"),
            status: ProvisioningStatus::Ok,
            error: None,
        };
        editors[n % 2].report_provisioning(TenantKey::Slug("a"), report, &by)
    };
    for answer in join_all((0..2 * EACH).map(edit)).await {
        answer.expect("succeeds");
    }
    let after = by_slug(&**store, "a").await.unwrap();
    assert_eq!(after.provisioning_status.len(), 2 * EACH, "no edit is lost");
    assert_eq!(after.version, 1 + 2 * EACH as u64);
    assert_eq!(timeline(&**log).await, ["tenant.updated"; 2 * EACH]);
}

/// See the name.
pub async fn pages_of_tenants_agree_with_their_definition(h: Harness<'_>) {
    let OpenDirectory { store, .. } = h.open(Reopen::No).await;
    let slugs = ["a", "a-b", "a0", "aa", "b", "b-1", "b1", "z", "0", "9z"];
    let all: Vec<Tenant> = (0..)
        .zip(slugs)
        .map(|(n, slug)| Tenant {
            status: TenantStatus::ALL[n % TenantStatus::ALL.len()],
            partner_id: [None, Some("p-1".into()), Some("p-2".into())][n % 3].clone(),
            ..tenant(slug)
        })
        .collect();
    put(&*store, all.iter().cloned().map(Into::into).collect()).await;
    let statuses = TenantStatus::ALL.iter().copied().map(Some).chain([None]);
    for status in statuses {
        for partner_id in [None, Some("p-1"), Some("p-2"), Some("p-3")] {
            let partner_id = partner_id.map(str::to_owned);
            for limit in [1, 2, 500] {
                let mut query =
                    TenantQuery { after: None, status, partner_id: partner_id.clone(), limit };
                let mut expected: Vec<_> =
                    all.iter().filter(|t| query.matches(t)).map(|t| t.slug.clone()).collect();
                expected.sort();
                let mut found = Vec::new();
                loop {
                    let page = store.tenants(&query).await.unwrap();
                    assert!(page.len() <= limit);
                    let Some(last) = page.last() else { break };
                    query.after = Some(last.slug.clone());
                    found.extend(page.into_iter().map(|t| t.slug));
                }
                assert_eq!(found, expected, "{query:?}");
            }
        }
    }
}

/// See the name.
pub async fn pages_of_partners_agree_with_their_definition(h: Harness<'_>) {
    let OpenDirectory { store, .. } = h.open(Reopen::No).await;
    let all: Vec<Partner> = (0..)
        .zip(["b", "a", "a-1", "c", "0"])
        .map(|(n, slug)| Partner { status: PartnerStatus::ALL[n % 2], ..partner(slug) })
        .collect();
    put(&*store, all.iter().cloned().map(Into::into).collect()).await;
    for status in [None, Some(PartnerStatus::Active), Some(PartnerStatus::Terminated)] {
        let mut query = PartnerQuery { after: None, status, limit: 2 };
        let mut expected: Vec<_> =
            all.iter().filter(|p| query.matches(p)).map(|p| p.slug.clone()).collect();
        expected.sort();
        let mut found = Vec::new();
        loop {
            let page = store.partners(&query).await.unwrap();
            let Some(last) = page.last() else { break };
            query.after = Some(last.slug.clone());
            found.extend(page.into_iter().map(|p| p.slug));
        }
        assert_eq!(found, expected, "{query:?}");
    }
}

/// See the name.
pub async fn pages_of_users_hold_over_ties(h: Harness<'_>) {
    let OpenDirectory { store, .. } = h.open(Reopen::No).await;
    let logins = [None, Some(at(0)), Some(at(0)), Some(at(7)), Some(Timestamp::MIN), None];
    let tenants: [&[&str]; 4] = [&[], &["t-1"], &["t-1", "t-2"], &["t-2"]];
    let all: Vec<User> = (0..24)
        .map(|n| User {
            last_login_at: logins[n % logins.len()],
            tenant_ids: tenants[n % tenants.len()].iter().map(|&t| t.to_owned()).collect(),
            ..user(&format!("s{}", n * 7 % 24))
        })
        .collect();
    put(&*store, all.iter().cloned().map(Into::into).collect()).await;
    for tenant_id in [None, Some("t-1"), Some("t-2"), Some("t-3")] {
        for limit in [1, 3, 500] {
            let tenant_id = tenant_id.map(str::to_owned);
            let mut query = UserQuery { tenant_id, after: None, limit };
            let mut expected: Vec<_> =
                all.iter().filter(|u| query.matches(u)).map(UserCursor::of).collect();
            expected.sort();
            expected.reverse();
            let mut found = Vec::new();
            loop {
                let page = store.users(&query).await.unwrap();
                assert!(page.len() <= limit);
                let Some(last) = page.last() else { break };
                // Through text, as clients receive and return it.
                query.after = Some(UserCursor::of(last).to_string().parse().unwrap());
                found.extend(page.iter().map(UserCursor::of));
            }
            assert_eq!(found, expected, "{query:?}");
        }
    }
    // A login moves a user to the front; the user no longer appears at the old position.
    let moved = User { last_login_at: Some(at(9)), version: 2, ..all[1].clone() };
    put(&*store, vec![moved.clone().into()]).await;
    for tenant_id in [None, Some("t-1".to_owned())] {
        let page = store.users(&UserQuery { tenant_id, ..UserQuery::default() }).await.unwrap();
        assert_eq!(page[0], moved);
        assert_eq!(page.iter().filter(|u| u.id == moved.id).count(), 1);
    }
}

/// See the name.
pub async fn limits_are_bounded(h: Harness<'_>) {
    let OpenDirectory { store, .. } = h.open(Reopen::No).await;
    for limit in [0, 501, usize::MAX] {
        let tenants = store.tenants(&TenantQuery { limit, ..TenantQuery::default() }).await;
        let partners = store.partners(&PartnerQuery { limit, ..PartnerQuery::default() }).await;
        let users = store.users(&UserQuery { limit, ..UserQuery::default() }).await;
        for error in [tenants.unwrap_err(), partners.unwrap_err(), users.unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::QueryInvalid);
            assert_eq!(error.to_string(), "limit must be 1 to 500");
        }
    }
}

/// See the name.
pub async fn customers_are_counted(h: Harness<'_>) {
    let OpenDirectory { store, .. } = h.open(Reopen::No).await;
    let of = |slug: &str, partner: &str, status| Tenant {
        partner_id: Some(partner.into()),
        status,
        ..tenant(slug)
    };
    let tenants = [
        of("a", "p-1", TenantStatus::Active),
        of("b", "p-1", TenantStatus::Suspended),
        of("c", "p-1", TenantStatus::Deleted),
        of("d", "p-2", TenantStatus::Pending),
        tenant("e"),
    ];
    put(&*store, tenants.map(Into::into).into()).await;
    for (partner_id, count) in [("p-1", 2), ("p-2", 1), ("p-3", 0), ("", 0), ("%", 0)] {
        assert_eq!(store.count_tenants_of_partner(partner_id).await.unwrap(), count);
    }
    let detached = Tenant { version: 2, ..tenant("a") };
    put(&*store, vec![detached.into()]).await;
    assert_eq!(store.count_tenants_of_partner("p-1").await.unwrap(), 1);
}

/// See the name.
pub async fn hostile_keys_find_nothing(h: Harness<'_>) {
    let OpenDirectory { store, .. } = h.open(Reopen::No).await;
    let bob = User { identities: vec![identity("ocis", "1")], ..user("bob") };
    put(&*store, vec![owner("acme", &["acme.example"]).into(), partner("acme").into(), bob.into()])
        .await;
    let megabyte = "a".repeat(1 << 20);
    for key in
        ["", "%", "_cme", "acme%", "' OR 1=1 --", "acme'", "acme\0", "ACME", "acme ", &megabyte]
    {
        for tenant in [TenantKey::Slug(key), TenantKey::Id(key), TenantKey::Domain(key)] {
            assert_eq!(store.tenant(tenant).await.unwrap(), None);
        }
        for partner in [PartnerKey::Slug(key), PartnerKey::Id(key)] {
            assert_eq!(store.partner(partner).await.unwrap(), None);
        }
        for user in [
            UserKey::Id(key),
            UserKey::Subject { issuer: key, subject: "bob" },
            UserKey::Subject { issuer: "https://id.example/", subject: key },
            UserKey::Identity { system: "ocis", id: key },
            UserKey::Identity { system: key, id: "1" },
        ] {
            assert_eq!(store.user(user).await.unwrap(), None);
        }
        let of_partner = TenantQuery { partner_id: Some(key.into()), ..TenantQuery::default() };
        assert!(store.tenants(&of_partner).await.unwrap().is_empty());
        let of_tenant = UserQuery { tenant_id: Some(key.into()), ..UserQuery::default() };
        assert!(store.users(&of_tenant).await.unwrap().is_empty());
    }
}

/// See the name.
pub async fn hostile_texts_are_literal(h: Harness<'_>) {
    let OpenDirectory { store, .. } = h.open(Reopen::No).await;
    for (n, text) in (0..).zip([
        "%",
        "_",
        "'; DROP TABLE x; --",
        "\"\\",
        "ß İ ſ",
        "\u{202e}x",
        "{\"a\":1}",
        "👩‍👩‍👧",
    ]) {
        let user = User {
            id: format!("u-{n}"),
            name: Some(text.into()),
            identities: vec![identity("ocis", text)],
            ..user(text)
        };
        put(&*store, vec![user.clone().into()]).await;
        let issuer = "https://id.example/";
        for key in [
            UserKey::Subject { issuer, subject: text },
            UserKey::Identity { system: "ocis", id: text },
        ] {
            assert_eq!(store.user(key).await.unwrap().as_ref(), Some(&user), "{text}");
        }
    }
}

/// See the name.
pub async fn ingest_finds_tenants(h: Harness<'_>) {
    let OpenDirectory { store, .. } = h.open(Reopen::No).await;
    let gone = Tenant { status: TenantStatus::Deleted, ..owner("gone", &["gone.example"]) };
    let of = |subject: &str, tenants: &[&str]| User {
        identities: vec![identity("ocis", subject)],
        tenant_ids: tenants.iter().map(|t| format!("t-{t}")).collect(),
        ..user(subject)
    };
    put(
        &*store,
        vec![
            owner("acme", &["acme.example"]).into(),
            tenant("other").into(),
            gone.into(),
            of("one", &["acme"]).into(),
            of("one-left", &["gone", "acme"]).into(),
            of("two", &["acme", "other"]).into(),
            of("none", &[]).into(),
            of("left", &["gone"]).into(),
            User { status: UserStatus::Deactivated, ..of("out", &["other"]) }.into(),
        ],
    )
    .await;
    let tenants = DirectoryTenants(store);
    for (slug, found) in [("acme", true), ("gone", true), ("Acme", false), ("", false)] {
        let expected = found.then(|| slug.to_owned());
        assert_eq!(tenants.by_slug(slug).await.unwrap(), expected, "{slug}");
    }
    for (domain, slug) in [
        ("acme.example", Some("acme")),
        ("ACME.Example", Some("acme")),
        ("acme。example.", Some("acme")),
        ("not a domain", None),
        ("x.acme.example", None),
        ("gone.example", None),
    ] {
        assert_eq!(tenants.by_domain(domain).await.unwrap().as_deref(), slug, "{domain}");
    }
    for (id, slug) in [
        ("one", Some("acme")),
        ("one-left", Some("acme")),
        ("two", None),
        ("none", None),
        ("left", None),
        ("out", Some("other")),
        ("nobody", None),
    ] {
        assert_eq!(tenants.by_user("ocis", id).await.unwrap().as_deref(), slug, "{id}");
        assert_eq!(tenants.by_user("stalwart", id).await.unwrap(), None);
    }
}

/// Documents of any version can be restored repeatedly, but never to an earlier version.
pub async fn a_copy_has_the_documents_as_they_were(h: Harness<'_>) {
    let OpenDirectory { store, log } = h.open(Reopen::No).await;
    let acme = Tenant { version: 7, ..owner("acme", &["acme.test"]) };
    let other = Tenant { status: TenantStatus::Deleted, ..owner("old", &["acme.test"]) };
    let reseller = Partner { version: 3, ..partner("p") };
    let documents: Vec<DirectoryChange> =
        vec![acme.clone().into(), other.clone().into(), reseller.clone().into()];
    for _ in 0..2 {
        store.restore(documents.clone()).await.unwrap();
    }
    assert_eq!(store.tenant(TenantKey::Domain("acme.test")).await.unwrap(), Some(acme.clone()));
    assert_eq!(store.tenant(TenantKey::Slug("old")).await.unwrap(), Some(other));
    assert_eq!(store.partner(PartnerKey::Slug("p")).await.unwrap(), Some(reseller));
    assert_eq!(log.relay(10).await.unwrap(), Relayed::default());

    let changed = Tenant { version: 8, name: "B".into(), ..acme.clone() };
    store.commit(vec![changed.clone().into()], Vec::new()).await.unwrap();
    store.restore(documents).await.unwrap();
    assert_eq!(store.tenant(TenantKey::Id(&acme.id)).await.unwrap(), Some(changed));
    let thief = owner("thief", &["acme.test"]);
    let refused = store.restore(vec![partner("q").into(), thief.into()]).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::AlreadyExists);
    assert_eq!(store.partner(PartnerKey::Slug("q")).await.unwrap(), None);
}

/// Only for stores with [`Capabilities::shared`](crate::store::Capabilities).
pub async fn another_handle_sees_what_was_committed(h: Harness<'_>) {
    let first = h.open(Reopen::No).await;
    if !first.store.capabilities().shared {
        return;
    }
    let second = h.open(Reopen::Yes).await;
    first.store.commit(vec![tenant("a").into()], vec![event(h, "one")]).await.unwrap();
    let seen = by_slug(&*second.store, "a").await.expect("is seen");
    let change = Tenant { name: "second".into(), version: 2, ..seen };
    second.store.commit(vec![change.clone().into()], vec![event(h, "two")]).await.unwrap();
    assert_eq!(by_slug(&*first.store, "a").await, Some(change));
    let late = Tenant { version: 2, ..tenant("a") };
    assert_eq!(refused(&*first.store, late).await.0, ErrorKind::VersionMismatch);
    assert_eq!(timeline(&*second.log).await.len(), 2);
    assert_eq!(timeline(&*first.log).await.len(), 2);
    drop((first, second));
    let third = h.open(Reopen::Yes).await;
    assert_eq!(by_slug(&*third.store, "a").await.unwrap().name, "second");
    assert_eq!(third.store.examine().await.unwrap(), [], "the structure matches the schema");
}
