//! The three jobs on every engine, also after reopening: record, ingest, decide.

use std::sync::Arc;
use std::time::Duration;

use dezky::directory::TenantStatus;
use dezky::ingest::ocis::{OcisConfig, OcisTail};
use dezky::ingest::signature::{Secret, Secrets};
use dezky::ingest::stalwart::StalwartReceiver;
use dezky::verify::verify;
use dezky::{
    Access, Actor, Edit, FlagEvaluator as _, FlagPatch, FlagState, ListQuery, NewEvent, NewFlag,
    NewPartner, NewTenant, Platform, Pump, PumpConfig, RecordOutcome, Runtime as _, Spool,
    SpoolConfig, StoreConfig, Stores, TokioRuntime,
};

use crate::Place;

/// A line as oCIS 7 writes it when somebody uploads a file.
const UPLOADED: &str = r#"{"RemoteAddr":"","User":"u-1","URL":"","Method":"","UserAgent":"","Time":"2026-09-01T08:00:00Z","App":"admin_audit","Message":"File \"f-1\" was uploaded","Action":"file_create","CLI":false,"Level":1,"Path":"/notes.md","Owner":"","FileID":"f-1"}"#;

const BODY: &[u8] = br#"{"events":[{"createdAt":"2026-08-17T10:00:00Z","type":"auth.failed",
    "data":{"accountName":"alice@example.com","remoteIp":"203.0.113.7"}}]}"#;

fn by() -> Edit {
    Edit::by(Actor::user("u-7"))
}

async fn actions(platform: &Platform) -> Vec<String> {
    let page = platform.store.list(&ListQuery::default()).await.unwrap();
    let mut events = page.events;
    events.sort_by_key(|stored| stored.seq);
    events.into_iter().map(|stored| stored.event.action).collect()
}

/// The directory and a flag for `acme`.
async fn furnish(platform: &Platform) {
    let partner = NewPartner::new("north", "North");
    let partner = platform.directory.create_partner(partner, &by()).await.unwrap();
    let acme = NewTenant {
        domains: vec!["example.com".into()],
        partner_id: Some(partner.id),
        status: Some(TenantStatus::Active),
        ..NewTenant::new("acme", "Acme Ltd", "pro")
    };
    platform.directory.create_tenant(acme, &by()).await.unwrap();
    let flag = NewFlag { state: FlagState::Targeted, ..NewFlag::new("new_editor") };
    platform.flags.create(flag, &by()).await.unwrap();
}

async fn record(platform: &Platform) {
    let event = NewEvent::new("tenant.suspended", Actor::user("u-7"));
    let recorded = platform.log.record(event).await;
    assert!(matches!(recorded.outcome, RecordOutcome::Appended { .. }), "{recorded:?}");
}

/// A signed webhook and a followed file; the webhook's event is acme's, by its domain.
async fn take_in(platform: &Platform) {
    let secrets = Secrets::from_texts(["the secret"]).unwrap();
    let receiver = StalwartReceiver::new("stalwart", secrets, platform.intake.clone()).unwrap();
    let signature = Secret::new("the secret").unwrap().sign_base64(BODY);
    let taken = receiver.receive(Some(&signature), BODY, None).await.unwrap();
    assert_eq!(taken.received(), 1);
    receiver.receive(Some("deadbeef"), BODY, None).await.unwrap_err();

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    std::fs::write(&path, format!("{UPLOADED}\n")).unwrap();
    let tail = OcisTail::new(OcisConfig::new(&path), platform.runtime().clone()).unwrap();
    let mut pump = Pump::new(Box::new(tail), platform.intake.clone(), PumpConfig::default());
    assert_eq!(pump.tick().await.unwrap().taken.stored, 1);
}

/// Decides by the tenant's plan and its partner.
async fn decide(platform: &Platform) {
    let acme = platform.subject("acme").await.unwrap().unwrap();
    assert_eq!(acme.tenant().slug, "acme");
    let context = acme.context(Some("production"));
    assert_eq!((context.partner_slug, context.tenant_active), (Some("north"), Some(true)));
    let decision = platform.live.evaluate("new_editor", &context);
    assert_eq!(decision.reason.to_string(), "empty_scope");

    let before = platform.flags.get("new_editor").await.unwrap().unwrap();
    let patch = FlagPatch { state: Some(FlagState::On), ..FlagPatch::default() };
    let after = before.patched(&patch).unwrap();
    let preview = platform.preview(Some(&before), Some(&after), None).await.unwrap();
    assert_eq!((preview.gains.count, preview.loses.count), (1, 0));

    platform.flags.update("new_editor", &patch, &by()).await.unwrap();
    assert!(platform.live.evaluate("new_editor", &context).value);
    assert!(platform.subject("nobody").await.unwrap().is_none());
}

async fn check(platform: &Platform) {
    let verdict = verify(&*platform.store, None, |_| ()).await.unwrap();
    assert_eq!(verdict.problem(), None);
    let query = ListQuery { tenant_slug: Some("acme".into()), ..ListQuery::default() };
    let acmes = platform.store.list(&query).await.unwrap().events;
    assert!(acmes.iter().any(|stored| stored.event.action == "stalwart.auth_failed"));
}

async fn three_jobs(url: &str) -> Platform {
    let platform = Platform::open(url).await.unwrap();
    furnish(&platform).await;
    record(&platform).await;
    take_in(&platform).await;
    decide(&platform).await;
    check(&platform).await;
    platform
}

const ACTIONS: [&str; 7] = [
    "partner.created",
    "tenant.created",
    "flag.created",
    "tenant.suspended",
    "stalwart.auth_failed",
    "ocis.file_uploaded",
    "flag.updated",
];

async fn three_jobs_and_again(url: &str) {
    let platform = three_jobs(url).await;
    assert_eq!(actions(&platform).await, ACTIONS);
    platform.close().await;

    let platform = Platform::open(url).await.unwrap();
    assert_eq!(actions(&platform).await, ACTIONS);
    let acme = platform.subject("acme").await.unwrap().unwrap();
    assert!(platform.live.evaluate("new_editor", &acme.context(None)).value);
    record(&platform).await;
    check(&platform).await;
    platform.close().await;
}

#[tokio::test]
async fn in_memory() {
    let platform = three_jobs("memory://").await;
    assert_eq!(actions(&platform).await, ACTIONS);
    let other = Platform::open("memory://").await.unwrap();
    assert!(actions(&other).await.is_empty(), "another platform is another store");
}

#[tokio::test]
async fn in_an_sqlite_file() {
    three_jobs_and_again(&Place::sqlite().url).await;
}

#[tokio::test]
async fn on_postgres() {
    three_jobs_and_again(&Place::postgres().await.url).await;
}

#[tokio::test]
async fn on_mongodb() {
    three_jobs_and_again(&Place::mongodb().url).await;
}

/// Polls `is_met` until it holds.
async fn until<F: Future<Output = bool>>(mut is_met: impl FnMut() -> F) {
    let poll = async {
        while !is_met().await {
            TokioRuntime.sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), poll).await.expect("happens within 30 s");
}

#[tokio::test]
async fn running_relays_drains_and_follows_until_it_is_told_to_stop() {
    let place = Place::sqlite();
    let folder = tempfile::tempdir().unwrap();
    let spool = SpoolConfig::new(folder.path().join("audit.spool"));
    let spool = Spool::open(spool, Arc::new(TokioRuntime)).await.unwrap();
    let event = NewEvent::new("tenant.suspended", Actor::system()).seal(&TokioRuntime);
    spool.push(std::slice::from_ref(&event)).await.unwrap();

    let config = StoreConfig::parse(&place.url).unwrap();
    let stores = Stores::open(&config, Access::Migrate).await.unwrap();
    let platform = Platform::builder(stores).spool(spool).build().await.unwrap();
    let staged = NewEvent::new("tenant.resumed", Actor::system()).seal(&TokioRuntime);
    platform.store.stage(vec![staged]).await.unwrap();

    // Another process changes a flag.
    let other = Platform::open(&place.url).await.unwrap();
    let flag = NewFlag { state: FlagState::On, ..NewFlag::new("new_editor") };

    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let work = async {
        other.flags.create(flag, &by()).await.unwrap();
        until(async || actions(&platform).await.len() == 3).await;
        let context = dezky::FlagContext { tenant_id: "t-1", ..Default::default() };
        until(async || platform.live.evaluate("new_editor", &context).value).await;
        stop.send(()).unwrap();
    };
    let running = platform.run(async {
        let _ = stopped.await;
    });
    let (ended, ()) = futures_util::join!(running, work);
    ended.unwrap();
    assert_eq!(platform.log.spool_status().unwrap().pending, 0);
    let mut found = actions(&platform).await;
    found.sort();
    assert_eq!(found, ["flag.created", "tenant.resumed", "tenant.suspended"]);
}
