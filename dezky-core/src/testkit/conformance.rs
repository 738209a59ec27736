//! The conformance suite of [`AuditStore`]: one named test per case.
//!
//! The cases express the contract in terms of the public trait, so a store that passes them can
//! replace any other.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use std::pin::Pin;

use futures_util::future::{Either, join_all, maybe_done, select};
use futures_util::{FutureExt, pin_mut, poll};
use uuid::Uuid;

use super::{BoxFuture, EventGenerator, ManualRuntime, named_event};
use crate::integrity::{GENESIS, chain_hash, erase};
use crate::source::QuarantineItem;
use crate::store::engine::SearchColumns;
use crate::store::{
    AppendOptions, AuditStoreExt, CursorAdvance, Dimension, EventKey, Head, ListQuery, LogPart,
    MAX_BATCH_EVENTS, MemoryAuditStore, ReceiptStatus, StoredRow, TallyCount, TallyInterval,
    TallyQuery,
};
use crate::verify::{Difference, ExpectedHead, verify};
use crate::{
    ActorType, AuditStore, ErrorKind, Field, NewEvent, Outcome, Runtime, SealedEvent, StoredEvent,
    Timestamp,
};

/// The suite's access to a store.
#[async_trait]
pub trait StoreHarness: Send + Sync + 'static {
    /// The runtime that the store was created with.
    fn runtime(&self) -> Arc<dyn Runtime>;

    /// Runs a case to completion on the executor that the store needs.
    fn block_on(&self, case: BoxFuture<'_, ()>);

    /// Opens a store: a new empty log, or the one opened before by this harness. The latter is
    /// requested only for stores that report being durable or shared.
    async fn open(&self, which: Reopen) -> Arc<dyn AuditStore>;

    /// Whether every read scans all rows, as doubles of servers do. Cases with many hundred reads
    /// then use fewer queries and rows.
    fn is_slow(&self) -> bool {
        false
    }
}

/// The log to open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reopen {
    /// A new log.
    No,
    /// The log opened last, while the first handle may still be in use.
    Yes,
}

/// Expands to one `#[test]` per case of the suite, in the current module.
///
/// Takes an expression that creates a [`StoreHarness`](crate::testkit::StoreHarness); it is
/// evaluated for each case.
#[macro_export]
macro_rules! audit_store_conformance {
    ($harness:expr) => {
        $crate::audit_store_conformance!(@cases $harness;
            appends_are_gapless_and_in_order
            the_chain_starts_at_zero_and_links_every_event
            a_duplicate_id_adds_nothing
            a_duplicate_external_id_adds_nothing
            external_ids_are_per_source
            absent_external_ids_are_all_different
            within_a_batch_the_first_wins
            a_duplicate_never_moves_the_head
            events_with_the_same_identity_are_found
            a_duplicate_with_another_content_is_a_conflict
            other_differences_are_no_conflict
            an_invalid_event_refuses_the_whole_batch
            a_batch_has_a_bound
            an_empty_append_is_fine
            a_cursor_moves_with_the_events
            a_cursor_that_moved_refuses_everything
            an_append_repeated_after_a_lost_answer_is_fine
            cursors_are_per_source
            a_lease_has_one_holder
            a_lapsed_lease_goes_to_the_next
            a_lapsed_lease_that_nobody_took_is_renewed
            an_old_holder_is_fenced_off
            a_lease_given_back_is_free
            quarantine_commits_with_the_cursor
            the_same_quarantine_item_is_kept_once
            quarantine_items_are_released_with_what_became_of_them
            staged_events_reach_the_log_in_order
            a_relay_again_adds_nothing
            two_hundred_identical_events_at_once_are_one
            appends_at_once_are_all_there
            a_dropped_leader_loses_no_followers_events
            a_refused_job_leaves_its_group_alone
            the_same_sealed_events_give_the_same_head
            a_clean_log_verifies
            an_expected_head_is_checked
            every_filter_agrees_with_its_definition
            every_tally_agrees_with_its_definition
            an_event_is_found_by_its_id_and_position
            events_of_one_time_stand_as_they_came
            pages_give_every_event_once
            pages_hold_while_events_arrive
            a_cursor_is_bound_to_its_filters_and_log
            limits_are_bounded
            pattern_characters_are_literal
            case_is_folded_by_unicode
            hostile_texts_are_literal_or_refused
            stored_events_are_read_back
            a_tail_yields_in_order_and_waits
            a_scan_is_bounded
            a_copy_continues_the_log_it_was_made_of
            a_part_that_does_not_fit_changes_nothing
            another_handle_sees_what_was_acknowledged
        );
    };
    (@cases $harness:expr; $($case:ident)+) => {
        $(
            #[test]
            fn $case() {
                let harness = $harness;
                let run = $crate::testkit::conformance::$case(&harness);
                $crate::testkit::StoreHarness::block_on(&harness, ::std::boxed::Box::pin(run));
            }
        )+
    };
}

type Harness<'a> = &'a dyn StoreHarness;

const MILLISECOND: Duration = Duration::from_millis(1);

fn seal(harness: Harness<'_>, event: NewEvent) -> SealedEvent {
    event.seal(&*harness.runtime())
}

fn named(harness: Harness<'_>, names: &[&str]) -> Vec<SealedEvent> {
    names.iter().map(|name| seal(harness, named_event(name))).collect()
}

fn external(source: &str, external_id: &str) -> NewEvent {
    NewEvent {
        source: source.to_owned(),
        external_id: Some(external_id.to_owned()),
        ..named_event(external_id)
    }
}

async fn append(store: &Arc<dyn AuditStore>, events: Vec<SealedEvent>) -> Vec<ReceiptStatus> {
    let appended = store.append(events, AppendOptions::default()).await.expect("appends");
    appended.receipts.iter().map(|r| r.status).collect()
}

async fn everything(store: &Arc<dyn AuditStore>) -> Vec<StoredEvent> {
    let mut events = Vec::new();
    loop {
        let from = i64::try_from(events.len()).unwrap();
        let rows = store.scan(from, 500).await.expect("scans");
        if rows.is_empty() {
            return events;
        }
        events.extend(rows.into_iter().map(|row| row.expect("readable").stored));
    }
}

async fn count(store: &Arc<dyn AuditStore>) -> u64 {
    let head = store.state().await.expect("has a state").head;
    assert_eq!(head.next_seq, everything(store).await.len() as u64, "seq is gapless");
    head.next_seq
}

async fn all_pages(store: &Arc<dyn AuditStore>, query: &ListQuery) -> Vec<StoredEvent> {
    let mut query = query.clone();
    let mut events = Vec::new();
    loop {
        let page = store.list(&query).await.expect("lists");
        assert!(page.events.len() <= query.limit, "a page has at most limit events");
        events.extend(page.events);
        match page.next_cursor {
            Some(cursor) => query.cursor = Some(cursor),
            None => return events,
        }
    }
}

fn ids(events: &[StoredEvent]) -> Vec<Uuid> {
    events.iter().map(|e| e.event.id).collect()
}

fn advance(from: Option<&str>, to: &str) -> AppendOptions {
    AppendOptions {
        cursor: Some(CursorAdvance {
            source: "ocis".into(),
            from: from.map(str::to_owned),
            to: to.to_owned(),
        }),
        ..AppendOptions::default()
    }
}

fn item(key: &str) -> QuarantineItem {
    QuarantineItem {
        source: "ocis".into(),
        key: key.into(),
        reason: "not_json".into(),
        detail: "the line is not JSON".into(),
        raw: vec![0xff, b'{', 0],
        at: Timestamp::MIN,
    }
}

type Change = fn(&mut NewEvent);
type MakeQuery = fn(String) -> ListQuery;

use ReceiptStatus::{Appended as New, Conflict, Duplicate};

/// See the name.
pub async fn appends_are_gapless_and_in_order(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    for batch in [&["a", "b", "c"][..], &["d"], &["e", "f"]] {
        let events = named(h, batch);
        let appended = store.append(events, AppendOptions::default()).await.unwrap();
        let seqs: Vec<_> = appended.receipts.iter().map(|r| r.seq).collect();
        assert!(seqs.windows(2).all(|w| w[1] == w[0] + 1), "receipts are in the batch's order");
    }
    let names: Vec<_> =
        everything(&store).await.into_iter().map(|e| e.event.resource_id.unwrap()).collect();
    assert_eq!(names, ["a", "b", "c", "d", "e", "f"]);
}

/// See the name.
pub async fn the_chain_starts_at_zero_and_links_every_event(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    assert_eq!(store.state().await.unwrap().head, Head::EMPTY);
    let events = named(h, &["a", "b", "c"]);
    let leaves: Vec<_> = events.iter().map(|e| *e.leaf_hash()).collect();
    append(&store, events).await;
    let mut prev = GENESIS;
    for (stored, leaf) in everything(&store).await.iter().zip(&leaves) {
        assert_eq!(stored.prev_hash, prev);
        assert_eq!(stored.hash, chain_hash(&prev, leaf));
        prev = stored.hash;
    }
    assert_eq!(store.state().await.unwrap().head, Head { next_seq: 3, hash: prev });
}

/// See the name.
pub async fn a_duplicate_id_adds_nothing(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    let events = named(h, &["a", "b"]);
    assert_eq!(append(&store, events.clone()).await, [New, New]);
    let again = store.append(events.clone(), AppendOptions::default()).await.unwrap();
    for (index, receipt) in again.receipts.iter().enumerate() {
        assert_eq!(receipt.status, Duplicate);
        assert_eq!(receipt.seq, index as u64, "the receipt has the seq of the stored event");
        assert_eq!(receipt.id, events[index].event().id);
    }
    assert_eq!(count(&store).await, 2);
}

/// See the name.
pub async fn a_duplicate_external_id_adds_nothing(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    let first = seal(h, external("ocis", "x-1"));
    let first_id = first.event().id;
    append(&store, vec![first]).await;
    // Sealed again, and therefore with another id.
    let again = vec![seal(h, external("ocis", "x-1")), seal(h, external("ocis", "x-2"))];
    let appended = store.append(again, AppendOptions::default()).await.unwrap();
    assert_eq!(appended.receipts[0].status, Duplicate);
    assert_eq!(appended.receipts[0].id, first_id);
    assert_eq!(appended.receipts[1].status, New);
    assert_eq!(appended.receipts[1].seq, 1, "a duplicate leaves no gap");
    assert_eq!(count(&store).await, 2);
}

/// See the name.
pub async fn external_ids_are_per_source(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    let events =
        ["ocis", "ocis:eu2", "stalwart"].map(|source| seal(h, external(source, "x-1"))).to_vec();
    assert_eq!(append(&store, events).await, [New, New, New]);
}

/// See the name.
pub async fn absent_external_ids_are_all_different(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    assert_eq!(append(&store, named(h, &["a", "a", "a"])).await, [New, New, New]);
}

/// See the name.
pub async fn within_a_batch_the_first_wins(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    let mut second = external("ocis", "x-1");
    second.resource_name = Some("second".into());
    let twice = seal(h, named_event("twice"));
    let batch = vec![seal(h, external("ocis", "x-1")), seal(h, second), twice.clone(), twice];
    assert_eq!(append(&store, batch).await, [New, Duplicate, New, Duplicate]);
    let events = everything(&store).await;
    assert_eq!(events.len(), 2);
    assert_eq!(events[0].event.resource_name, None);
}

/// See the name.
pub async fn a_duplicate_never_moves_the_head(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    let events = named(h, &["a", "b"]);
    append(&store, events.clone()).await;
    let head = store.state().await.unwrap().head;
    append(&store, events).await;
    assert_eq!(store.state().await.unwrap().head, head);
}

/// See the name.
pub async fn events_with_the_same_identity_are_found(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    let mut there = named(h, &["a", "b", "c"]);
    there.extend((0..3).map(|n| seal(h, external("ocis", &format!("x-{n}")))));
    append(&store, there.clone()).await;
    let asked = [
        there[2].clone(),
        seal(h, external("ocis", "x-1")),
        seal(h, external("ocis", "x-0")),
        seal(h, external("stalwart", "x-2")),
        named(h, &["d"]).remove(0),
    ];
    let head = store.state().await.unwrap().head;
    let mut found = store.find_same(&asked.iter().collect::<Vec<_>>()).await.unwrap();
    found.sort_by_key(|event| event.seq);
    let expected = [&there[2], &there[3], &there[4]].map(|sealed| sealed.event().clone());
    assert_eq!(found.into_iter().map(|stored| stored.event).collect::<Vec<_>>(), expected);
    assert!(store.find_same(&[]).await.unwrap().is_empty());
    assert_eq!(store.state().await.unwrap().head, head, "nothing was written");
    // And nothing is locked.
    append(&store, named(h, &["e"])).await;
}

/// See the name.
pub async fn a_duplicate_with_another_content_is_a_conflict(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    append(&store, vec![seal(h, external("ocis", "x-1"))]).await;
    let changes: [(Field, Change); 7] = [
        (Field::ActorType, |e| e.actor.kind = ActorType::Operator),
        (Field::ActorId, |e| e.actor.id = Some("someone".into())),
        (Field::ActorEmail, |e| e.actor.email = None),
        (Field::Action, |e| e.action = "tenant.deleted".into()),
        (Field::Outcome, |e| e.outcome = Outcome::Denied),
        (Field::ResourceType, |e| e.resource_type = None),
        (Field::ResourceId, |e| e.resource_id = Some("another".into())),
    ];
    for (field, change) in changes {
        let mut event = external("ocis", "x-1");
        change(&mut event);
        let appended = store.append(vec![seal(h, event)], AppendOptions::default()).await.unwrap();
        assert_eq!(appended.receipts[0].status, Conflict, "{}", field.name());
        assert_eq!(appended.receipts[0].differs, [field]);
        assert_eq!(appended.conflicts(), 1);
    }
    let events = everything(&store).await;
    assert_eq!(events.len(), 1, "the first event stays");
    assert_eq!(events[0].event.action, "tenant.updated");
}

/// See the name.
pub async fn other_differences_are_no_conflict(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    append(&store, vec![seal(h, external("ocis", "x-1"))]).await;
    let mut event = external("ocis", "x-1");
    event.at = Timestamp::from_millis(5);
    event.actor.ip = Some("203.0.113.9".into());
    event.resource_name = Some("renamed".into());
    event.tenant_slug = Some("moved".into());
    event.metadata.annotate("rawId", "another at every retry");
    assert_eq!(append(&store, vec![seal(h, event)]).await, [Duplicate]);
}

/// See the name.
pub async fn an_invalid_event_refuses_the_whole_batch(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    let changes: [(&str, Change); 11] = [
        ("action", |e| e.action = String::new()),
        ("action", |e| e.action = "Tenant.Created".into()),
        ("action", |e| e.action = "a".repeat(129)),
        // The log's own operations can't be reported by others.
        ("action", |e| e.action = "dezky.erased".into()),
        ("source", |e| e.source = "s".repeat(65)),
        ("externalId", |e| e.external_id = Some(String::new())),
        ("externalId", |e| e.external_id = Some("x".repeat(513))),
        ("tenantSlug", |e| e.tenant_slug = Some(String::new())),
        ("partnerSlug", |e| e.partner_slug = Some("p".repeat(64))),
        ("actorEmail", |e| e.actor.email = Some("e".repeat(321))),
        ("resourceName", |e| e.resource_name = Some("n".repeat(1025))),
    ];
    for (field, change) in changes {
        let mut event = named_event("bad");
        change(&mut event);
        let batch = vec![seal(h, named_event("good")), seal(h, event)];
        let options = AppendOptions { quarantine: vec![item("k")], ..advance(None, "1") };
        let error = store.append(batch, options).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::EventInvalid);
        let text = error.to_string();
        assert!(text.contains("event 1") && text.contains(field), "{text}");
    }
    let staged = seal(h, NewEvent { action: "dezky.erased".into(), ..named_event("bad") });
    let error = store.stage(vec![staged]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::EventInvalid);
    assert_eq!(count(&store).await, 0);
    assert_eq!(store.cursor("ocis").await.unwrap(), None);
    assert!(store.quarantined(0, 10).await.unwrap().is_empty());
}

/// See the name.
pub async fn a_batch_has_a_bound(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    let event = seal(h, named_event("a"));
    let batch = vec![event; MAX_BATCH_EVENTS + 1];
    let error = store.append(batch, AppendOptions::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(error.to_string().contains("10000"), "the bound is named");
    let long = advance(None, &"c".repeat(70_000));
    assert_eq!(store.append(Vec::new(), long).await.unwrap_err().kind(), ErrorKind::TooLarge);
}

/// See the name.
pub async fn an_empty_append_is_fine(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    assert_eq!(append(&store, Vec::new()).await, []);
    assert_eq!(store.state().await.unwrap().head, Head::EMPTY);
}

/// See the name.
pub async fn a_cursor_moves_with_the_events(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    assert_eq!(store.cursor("ocis").await.unwrap(), None);
    store.append(named(h, &["a"]), advance(None, "1")).await.unwrap();
    assert_eq!(store.cursor("ocis").await.unwrap().as_deref(), Some("1"));
    store.append(Vec::new(), advance(Some("1"), "2")).await.unwrap();
    assert_eq!(store.cursor("ocis").await.unwrap().as_deref(), Some("2"));
}

/// See the name.
pub async fn a_cursor_that_moved_refuses_everything(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    store.append(Vec::new(), advance(None, "1")).await.unwrap();
    for from in [None, Some("0")] {
        let options = AppendOptions { quarantine: vec![item("k")], ..advance(from, "2") };
        let error = store.append(named(h, &["a"]), options).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CursorMoved);
    }
    assert_eq!(count(&store).await, 0);
    assert!(store.quarantined(0, 10).await.unwrap().is_empty());
    assert_eq!(store.cursor("ocis").await.unwrap().as_deref(), Some("1"));
}

/// See the name.
pub async fn an_append_repeated_after_a_lost_answer_is_fine(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    let events = named(h, &["a", "b"]);
    store.append(events.clone(), advance(None, "1")).await.unwrap();
    let again = store.append(events, advance(None, "1")).await.unwrap();
    assert_eq!(again.duplicates(), 2);
    assert_eq!(count(&store).await, 2);
}

/// See the name.
pub async fn cursors_are_per_source(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    store.append(Vec::new(), advance(None, "1")).await.unwrap();
    assert_eq!(store.cursor("ocis:eu2").await.unwrap(), None);
    assert_eq!(store.cursor("OCIS").await.unwrap(), None);
    let names = ["z", "ocis:eu2", "a", "\u{e4}", "B", "ocis-x", "10", "9"];
    for name in names {
        let cursor = CursorAdvance { source: name.into(), from: None, to: "1".into() };
        let options = AppendOptions { cursor: Some(cursor), ..AppendOptions::default() };
        store.append(Vec::new(), options).await.unwrap();
    }
    let listed: Vec<_> = store.cursors().await.unwrap().into_iter().map(|(name, _)| name).collect();
    let mut expected: Vec<_> = names.into_iter().chain(["ocis"]).collect();
    expected.sort_unstable();
    assert_eq!(listed, expected, "sorted by the bytes of the source");
}

const LONG: Duration = Duration::from_mins(10);
const SHORT: Duration = Duration::from_millis(30);

/// See the name.
pub async fn a_lease_has_one_holder(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    let mine = store.acquire_lease("ingest:ocis", "a", LONG).await.unwrap().unwrap();
    assert_eq!(store.acquire_lease("ingest:ocis", "b", LONG).await.unwrap(), None);
    let renewed = store.acquire_lease("ingest:ocis", "a", LONG).await.unwrap().unwrap();
    assert_eq!(renewed.token, mine.token, "a renewal keeps the token");
    assert!(renewed.expires_at >= mine.expires_at);
    assert!(store.acquire_lease("ingest:other", "b", LONG).await.unwrap().is_some());
}

/// See the name.
pub async fn a_lapsed_lease_goes_to_the_next(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    let first = store.acquire_lease("l", "a", SHORT).await.unwrap().unwrap();
    let second = acquire_soon(h, &store, "l", "b").await;
    assert!(second.token > first.token);
}

/// See the name.
pub async fn a_lapsed_lease_that_nobody_took_is_renewed(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    let first = store.acquire_lease("l", "a", SHORT).await.unwrap().unwrap();
    h.runtime().sleep(SHORT * 2).await;
    let renewed = store.acquire_lease("l", "a", SHORT).await.unwrap().unwrap();
    assert_eq!(renewed.token, first.token);
    assert!(renewed.expires_at > first.expires_at);
    // An append that waited meanwhile.
    let waited = AppendOptions { fence: Some(first.fence()), ..AppendOptions::default() };
    store.append(named(h, &["a"]), waited.clone()).await.unwrap();
    acquire_soon(h, &store, "l", "b").await;
    let refused = store.append(named(h, &["b"]), waited).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Fenced);
}

/// Waits until a lease expires.
async fn acquire_soon(
    h: Harness<'_>,
    store: &Arc<dyn AuditStore>,
    name: &str,
    holder: &str,
) -> crate::store::Lease {
    for _ in 0..2_000 {
        if let Some(lease) = store.acquire_lease(name, holder, LONG).await.unwrap() {
            return lease;
        }
        h.runtime().sleep(Duration::from_millis(5)).await;
    }
    panic!("the lease never lapsed");
}

/// See the name.
pub async fn an_old_holder_is_fenced_off(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    let old = store.acquire_lease("l", "a", SHORT).await.unwrap().unwrap();
    let fenced = |lease: &crate::store::Lease, from, to: &str| AppendOptions {
        fence: Some(lease.fence()),
        ..advance(from, to)
    };
    store.append(named(h, &["a"]), fenced(&old, None, "1")).await.unwrap();
    let new = acquire_soon(h, &store, "l", "b").await;
    let refused = store.append(named(h, &["b"]), fenced(&old, Some("1"), "2")).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Fenced);
    assert_eq!(count(&store).await, 1);
    assert_eq!(store.cursor("ocis").await.unwrap().as_deref(), Some("1"));
    store.append(named(h, &["c"]), fenced(&new, Some("1"), "2")).await.unwrap();
    let unknown = AppendOptions {
        fence: Some(crate::store::Fence { lease: "never".into(), token: 1 }),
        ..AppendOptions::default()
    };
    assert_eq!(store.append(Vec::new(), unknown).await.unwrap_err().kind(), ErrorKind::Fenced);
}

/// See the name.
pub async fn a_lease_given_back_is_free(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    let first = store.acquire_lease("l", "a", LONG).await.unwrap().unwrap();
    store.release_lease(&first).await.unwrap();
    let again = store.acquire_lease("l", "a", LONG).await.unwrap().unwrap();
    assert!(again.token > first.token, "not even the same holder gets the released token");
    store.release_lease(&again).await.unwrap();
    let second = store.acquire_lease("l", "b", LONG).await.unwrap().unwrap();
    assert!(second.token > again.token);
    let stale = AppendOptions { fence: Some(first.fence()), ..AppendOptions::default() };
    let refused = store.append(named(h, &["late"]), stale).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Fenced);
    // The previous holder can't release the lease of its successor.
    store.release_lease(&first).await.unwrap();
    assert_eq!(store.acquire_lease("l", "a", LONG).await.unwrap(), None);
}

/// See the name.
pub async fn quarantine_commits_with_the_cursor(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    let options = AppendOptions { quarantine: vec![item("k1"), item("k2")], ..advance(None, "1") };
    let appended = store.append(named(h, &["a"]), options).await.unwrap();
    assert_eq!(appended.new_quarantine, 2);
    let kept = store.quarantined(0, 10).await.unwrap();
    assert_eq!(kept.iter().map(|k| &k.item).collect::<Vec<_>>(), [&item("k1"), &item("k2")]);
    assert_eq!(store.quarantined(kept[0].number, 10).await.unwrap(), kept[1..]);
    assert_eq!(store.quarantined(0, 1).await.unwrap(), kept[..1]);
    assert_eq!(store.quarantined(0, 0).await.unwrap(), []);
}

/// See the name.
pub async fn the_same_quarantine_item_is_kept_once(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    for (new, items) in [(1, vec![item("k"), item("k")]), (1, vec![item("k"), item("l")])] {
        let options = AppendOptions { quarantine: items, ..AppendOptions::default() };
        assert_eq!(store.append(Vec::new(), options).await.unwrap().new_quarantine, new);
    }
    let kept = store.quarantined(0, 10).await.unwrap();
    assert_eq!(kept.iter().map(|k| k.seen).collect::<Vec<_>>(), [3, 1]);
    let at_once = (0..5).map(|_| {
        let options = AppendOptions { quarantine: vec![item("m")], ..AppendOptions::default() };
        store.append(Vec::new(), options)
    });
    let new: usize =
        join_all(at_once).await.into_iter().map(|appended| appended.unwrap().new_quarantine).sum();
    assert_eq!(new, 1, "only one of several concurrent appends is new");
    for bad in [
        QuarantineItem { key: "k".repeat(513), ..item("k") },
        QuarantineItem { key: "a\0b".into(), ..item("k") },
        QuarantineItem { raw: vec![0; 65_537], ..item("k") },
    ] {
        let options = AppendOptions { quarantine: vec![bad], ..AppendOptions::default() };
        assert_eq!(
            store.append(Vec::new(), options).await.unwrap_err().kind(),
            ErrorKind::TooLarge
        );
    }
}

/// See the name.
pub async fn quarantine_items_are_released_with_what_became_of_them(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    let quarantine = ["a", "b", "c"].map(item).to_vec();
    let options = AppendOptions { quarantine, ..AppendOptions::default() };
    store.append(Vec::new(), options).await.unwrap();
    let kept = store.quarantined(0, 10).await.unwrap();
    let numbers: Vec<_> = kept.iter().map(|k| k.number).collect();
    let release =
        |numbers: &[i64]| AppendOptions { release: numbers.to_vec(), ..AppendOptions::default() };

    // A refused append releases nothing.
    let moved = AppendOptions { release: numbers.clone(), ..advance(Some("nowhere"), "1") };
    store.append(named(h, &["x"]), moved).await.unwrap_err();
    assert_eq!(store.quarantined(0, 10).await.unwrap(), kept);
    let many: Vec<i64> = (0..=1_000).collect();
    let refused = store.append(Vec::new(), release(&many)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::TooLarge);

    let events = named(h, &["x"]);
    let appended = store.append(events.clone(), release(&numbers[1..2])).await.unwrap();
    assert_eq!((appended.appended(), appended.released), (1, 1));
    let left: Vec<_> = [&kept[0], &kept[2]].into_iter().cloned().collect();
    assert_eq!(store.quarantined(0, 10).await.unwrap(), left);
    // Repeated, as after a lost answer.
    let again = store.append(events, release(&numbers[1..2])).await.unwrap();
    assert_eq!((again.duplicates(), again.released), (1, 0));

    // An item that is released and received again in one append is new, and numbers are never
    // reused.
    let options = AppendOptions { quarantine: vec![item("a")], ..release(&numbers) };
    let appended = store.append(Vec::new(), options).await.unwrap();
    assert_eq!((appended.released, appended.new_quarantine), (2, 1));
    let kept = store.quarantined(0, 10).await.unwrap();
    assert_eq!((kept.len(), kept[0].seen), (1, 1));
    assert!(kept[0].number > numbers[2]);
}

/// See the name.
pub async fn staged_events_reach_the_log_in_order(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    let events = named(h, &["a", "b", "c", "d", "e"]);
    store.stage(events[..3].to_vec()).await.unwrap();
    store.stage(events[3..].to_vec()).await.unwrap();
    assert_eq!(count(&store).await, 0, "staging takes no seq");
    let relayed = store.relay(2).await.unwrap();
    assert_eq!((relayed.appended, relayed.more), (2, true));
    while store.relay(2).await.unwrap().more {}
    let stored = everything(&store).await;
    let expected: Vec<_> = events.iter().map(|e| e.event().clone()).collect();
    assert_eq!(stored.into_iter().map(|e| e.event).collect::<Vec<_>>(), expected);
    assert!(verify(&*store, None, |_| ()).await.unwrap().finding.is_none());
    let mut bad = named_event("bad");
    bad.action = "BAD".into();
    assert!(store.stage(vec![seal(h, bad)]).await.is_err(), "invalid events are refused at once");
}

/// See the name.
pub async fn a_relay_again_adds_nothing(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    assert_eq!(store.relay(10).await.unwrap(), crate::store::Relayed::default());
    let events = named(h, &["a", "b"]);
    append(&store, events[..1].to_vec()).await;
    store.stage(events.clone()).await.unwrap();
    store.stage(events).await.unwrap();
    let relayed = store.relay(10).await.unwrap();
    assert_eq!((relayed.appended, relayed.duplicates), (1, 3));
    assert_eq!(store.relay(10).await.unwrap().appended, 0);
    assert_eq!(count(&store).await, 2);
}

/// See the name.
pub async fn two_hundred_identical_events_at_once_are_one(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    let event = seal(h, external("ocis", "x-1"));
    let appends = (0..200).map(|_| append(&store, vec![event.clone()]));
    let statuses: Vec<_> = join_all(appends).await.into_iter().flatten().collect();
    assert_eq!(statuses.iter().filter(|s| **s == New).count(), 1);
    assert_eq!(statuses.iter().filter(|s| **s == Duplicate).count(), 199);
    assert_eq!(count(&store).await, 1);
}

/// See the name.
pub async fn appends_at_once_are_all_there(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    let batches: Vec<_> = (0..50)
        .map(|b| (0..7).map(|n| seal(h, named_event(&format!("{b}-{n}")))).collect::<Vec<_>>())
        .collect();
    let appended =
        join_all(batches.iter().map(|batch| store.append(batch.clone(), AppendOptions::default())))
            .await;
    let stored = everything(&store).await;
    assert_eq!(stored.len(), 350);
    for (batch, appended) in batches.iter().zip(appended) {
        for (event, receipt) in batch.iter().zip(appended.unwrap().receipts) {
            let at = usize::try_from(receipt.seq).unwrap();
            assert_eq!(stored[at].event, *event.event(), "the receipt has its position");
        }
    }
    assert!(verify(&*store, None, |_| ()).await.unwrap().finding.is_none());
}

/// Drops the first of a group at every stage of its commit. The others' events must be there
/// exactly once, and the chain must be intact.
pub async fn a_dropped_leader_loses_no_followers_events(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    let mut acknowledged = BTreeSet::new();
    for polls in 0..12 {
        let leader = store.append(named(h, &["leader"]), AppendOptions::default());
        let mut leader = Box::pin(maybe_done(leader));
        let mut followers = Vec::new();
        // The leader starts its commit before the followers arrive.
        let _ = poll!(leader.as_mut());
        let mut ours = Vec::new();
        for n in 0..5 {
            let events = named(h, &[&format!("{polls}-{n}")]);
            ours.push(events[0].event().id);
            let append = store.append(events, AppendOptions::default());
            let mut follower = Box::pin(maybe_done(append));
            let _ = poll!(follower.as_mut());
            followers.push(follower);
        }
        for _ in 0..polls {
            let _ = poll!(leader.as_mut());
            h.runtime().sleep(Duration::from_millis(1)).await;
        }
        drop(leader);
        // One follower is dropped as well.
        if polls % 3 == 0 {
            followers.pop();
            ours.pop();
        }
        acknowledged.extend(ours);
        {
            let all = join_all(followers.iter_mut().map(Pin::as_mut));
            let limit = h.runtime().sleep(Duration::from_secs(30));
            pin_mut!(all, limit);
            let left_waiting = matches!(select(all, limit).await, Either::Right(_));
            assert!(!left_waiting, "the followers were left waiting");
        }
        for follower in &mut followers {
            let answer = follower.as_mut().take_output().expect("is done");
            assert_eq!(answer.unwrap().receipts.len(), 1);
        }
    }
    let stored = everything(&store).await;
    let mut seen = BTreeSet::new();
    for event in &stored {
        assert!(seen.insert(event.event.id), "no event is stored twice");
    }
    assert!(acknowledged.iter().all(|id| seen.contains(id)), "acknowledged events are stored");
    assert!(verify(&*store, None, |_| ()).await.unwrap().finding.is_none());
    assert_eq!(append(&store, named(h, &["after"])).await, [New], "the next append gets its turn");
}

/// See the name.
pub async fn a_refused_job_leaves_its_group_alone(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    let good = (0..10)
        .map(|n| store.append(named(h, &[&n.to_string()]), AppendOptions::default()).boxed());
    let bad = (0..10).map(|_| store.append(named(h, &["bad"]), advance(Some("elsewhere"), "2")));
    let answers = join_all(good.zip(bad).flat_map(|(good, bad)| [good, bad])).await;
    for pair in answers.chunks(2) {
        assert_eq!(pair[0].as_ref().unwrap().appended(), 1);
        assert_eq!(pair[1].as_ref().unwrap_err().kind(), ErrorKind::CursorMoved);
    }
    assert_eq!(count(&store).await, 10);
    assert!(verify(&*store, None, |_| ()).await.unwrap().finding.is_none());
}

/// For the same sealed events the head equals that of the memory store, however they are batched.
pub async fn the_same_sealed_events_give_the_same_head(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    let manual = ManualRuntime::new(11);
    let oracle: Arc<dyn AuditStore> = Arc::new(MemoryAuditStore::open(Arc::new(manual.clone())));
    let events = EventGenerator::new(&manual).sealed(1_000);
    for batch in events.chunks(137) {
        append(&store, batch.to_vec()).await;
    }
    for batch in events.chunks(900) {
        append(&oracle, batch.to_vec()).await;
    }
    assert_eq!(store.state().await.unwrap().head, oracle.state().await.unwrap().head);
}

/// See the name.
pub async fn a_clean_log_verifies(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    let empty = verify(&*store, None, |_| ()).await.unwrap();
    assert_eq!((empty.verified, empty.problem()), (0, None));
    let manual = ManualRuntime::new(3);
    append(&store, EventGenerator::new(&manual).sealed(2_345)).await;
    let mut progress = Vec::new();
    let verdict = verify(&*store, None, |n| progress.push(n)).await.unwrap();
    assert_eq!((verdict.finding, verdict.anomalies), (None, Vec::new()));
    assert_eq!(verdict.verified, 2_345);
    assert_eq!(verdict.head, store.state().await.unwrap().head);
    assert!(progress.len() >= 3 && progress.is_sorted());
}

/// See the name.
pub async fn an_expected_head_is_checked(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    append(&store, named(h, &["a", "b", "c"])).await;
    let events = everything(&store).await;
    for event in &events {
        let expected = ExpectedHead { seq: event.seq, hash: event.hash };
        assert_eq!(verify(&*store, Some(expected), |_| ()).await.unwrap().finding, None);
    }
    let cut = ExpectedHead { seq: 3, hash: [7; 32] };
    let finding = verify(&*store, Some(cut), |_| ()).await.unwrap().finding.unwrap();
    assert_eq!((finding.seq, finding.kind), (3, Difference::Cut));
    let other = ExpectedHead { seq: 1, hash: [7; 32] };
    let finding = verify(&*store, Some(other), |_| ()).await.unwrap().finding.unwrap();
    assert_eq!((finding.seq, finding.kind), (1, Difference::Altered));
}

/// Compares random queries over random events with the definition,
/// [`Filter::matches`](crate::store::engine::Filter::matches).
pub async fn every_filter_agrees_with_its_definition(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    let manual = ManualRuntime::new(5);
    let mut generator = EventGenerator::new(&manual);
    let (events, queries) = if h.is_slow() { (200, 40) } else { (600, 150) };
    append(&store, generator.sealed(events)).await;
    let all = everything(&store).await;
    let minute = Timestamp::from_millis(1_767_225_600_000).unwrap();
    for _ in 0..queries {
        let query = random_query(&mut generator, minute);
        let filter = query.filter().unwrap();
        let mut expected: Vec<_> = all
            .iter()
            .filter(|e| filter.matches(&e.event, &SearchColumns::of(&e.event)))
            .cloned()
            .collect();
        expected.sort_by_key(newest_first);
        assert_eq!(all_pages(&store, &query).await, expected, "{query:?}");
    }
}

/// Compares random tallies over random events with the definition, [`TallyCount::of`].
pub async fn every_tally_agrees_with_its_definition(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    let manual = ManualRuntime::new(6);
    let mut generator = EventGenerator::new(&manual);
    let (events, queries) = if h.is_slow() { (200, 30) } else { (600, 100) };
    let midnight = Timestamp::from_millis(1_767_225_600_000).unwrap();
    let spread = |generator: &mut EventGenerator<'_>| {
        let ms = i64::try_from(generator.below(72 * 3_600_000)).unwrap_or(0);
        let at = Timestamp::from_millis(midnight.as_millis() + ms - 36 * 3_600_000);
        NewEvent { at, ..generator.next_event() }
    };
    let mut sealed: Vec<_> = (0..events).map(|_| spread(&mut generator).seal(&manual)).collect();
    // Before 1970, where the remainder of a division is negative.
    let early = NewEvent { at: Timestamp::from_millis(-1), ..named_event("early") };
    sealed.push(early.seal(&manual));
    append(&store, sealed).await;
    let all = everything(&store).await;
    for n in 0..queries {
        let mut filters = random_query(&mut generator, midnight);
        // The last ones have no filter.
        if n + 5 > queries {
            filters = ListQuery::default();
        }
        let by = Dimension::ALL.into_iter().filter(|_| generator.below(2) == 0).collect();
        let interval = [TallyInterval::Hour, TallyInterval::Day][generator.below(2)];
        let query = TallyQuery { filters, interval, by };
        let filter = match query.filter() {
            Ok(filter) => filter,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::QueryInvalid);
                assert_eq!(store.tally(&query).await.unwrap_err().kind(), error.kind());
                continue;
            }
        };
        let mut expected: Vec<TallyCount> = Vec::new();
        for e in &all {
            if filter.matches(&e.event, &SearchColumns::of(&e.event)) {
                let one = TallyCount::of(&e.event, interval, &query.by);
                let same =
                    |other: &&mut TallyCount| TallyCount { count: 1, ..(**other).clone() } == one;
                match expected.iter_mut().find(same) {
                    Some(counted) => counted.count += 1,
                    None => expected.push(one),
                }
            }
        }
        expected.sort_by_key(|counted| (std::cmp::Reverse(counted.at), counted.clone()));
        let tally = store.tally(&query).await.unwrap();
        assert_eq!(tally.counts, expected, "{query:?}");
        assert_eq!((tally.since, tally.until), (filter.since, filter.until));
        assert_eq!(tally.counted_from, None);
    }
}

/// An event is found by its id and by its position, and nothing else is.
pub async fn an_event_is_found_by_its_id_and_position(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    append(&store, named(h, &["a", "b", "c"])).await;
    for stored in everything(&store).await {
        let by_id = store.get(EventKey::Id(stored.event.id)).await.unwrap();
        assert_eq!(by_id.as_ref(), Some(&stored));
        assert_eq!(store.get(EventKey::Seq(stored.seq)).await.unwrap(), Some(stored));
    }
    for key in [EventKey::Id(Uuid::nil()), EventKey::Seq(3), EventKey::Seq(u64::MAX)] {
        assert_eq!(store.get(key).await.unwrap(), None, "{key:?}");
    }
}

fn random_query(g: &mut EventGenerator<'_>, minute: Timestamp) -> ListQuery {
    let some = |g: &mut EventGenerator<'_>, from: &[&str]| {
        (g.below(5) == 0).then(|| from[g.below(from.len())].to_owned())
    };
    let time = |g: &mut EventGenerator<'_>| {
        (g.below(5) == 0).then(|| minute.saturating_add(Duration::from_secs(g.below(60) as u64)))
    };
    ListQuery {
        since: time(g),
        until: time(g),
        before: time(g),
        action: some(g, &["tenant", "tenant.", "tenant.sus", "mail.", "m", "%", "tenant.created"]),
        tenant_slug: some(g, &["acme", "ACME", "", "dezky"]),
        partner_slug: some(g, &["nordic", "süd", ""]),
        actor_id: some(g, &["u-1", "42", "ünï"]),
        actor_email: some(g, &["ANA@ACME.TEST", "ana@acme.test", "ana"]),
        resource_type: some(g, &["tenant", "flag"]),
        resource_id: some(g, &["t1", "%"]),
        outcome: (g.below(5) == 0).then(|| Outcome::ALL[g.below(3)]),
        source: some(g, &["authentik", "authentik:eu2", "ocis", "auth"]),
        q: some(g, &["ACME", "%", "_", "straße", "STRASSE", "σίσυφος", "租", "\\", ".*", "i̇s"]),
        limit: 1 + g.below(120),
        cursor: None,
    }
}

fn newest_first(event: &StoredEvent) -> impl Ord + use<> {
    std::cmp::Reverse((event.event.at, event.seq))
}

/// Of ten events of one millisecond, the one appended last is the newest, for any reader, in pages
/// of any size, and while others with the same time arrive.
pub async fn events_of_one_time_stand_as_they_came(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    let at = Timestamp::from_millis(1_767_225_600_000);
    let event = |name: &str| seal(h, NewEvent { at, ..named_event(name) });
    let names: Vec<String> = (0..10).map(|n| n.to_string()).collect();
    // Half of them in one append, with random ids in any order.
    append(&store, names[..5].iter().map(|name| event(name)).collect()).await;
    for name in &names[5..] {
        append(&store, vec![event(name)]).await;
    }
    let expected: Vec<_> = names.iter().rev().cloned().collect();
    let every_lead = [
        ListQuery::default(),
        ListQuery { tenant_slug: Some("acme".into()), ..ListQuery::default() },
        ListQuery { actor_id: Some("u-1".into()), ..ListQuery::default() },
        ListQuery { action: Some("tenant.updated".into()), ..ListQuery::default() },
        // Not answered by an index alone.
        ListQuery { resource_type: Some("tenant".into()), ..ListQuery::default() },
        ListQuery {
            since: at,
            until: at.map(|at| at.saturating_add(MILLISECOND)),
            ..ListQuery::default()
        },
    ];
    let limits = if h.is_slow() { vec![3, 10] } else { (1..=11).collect() };
    for query in &every_lead {
        for &limit in &limits {
            let pages = all_pages(&store, &ListQuery { limit, ..query.clone() }).await;
            assert_eq!(resource_ids(&pages), expected, "limit {limit}: {query:?}");
        }
    }
    let of_that_time =
        ListQuery { until: at.map(|at| at.saturating_add(MILLISECOND)), ..ListQuery::default() };
    for limit in if h.is_slow() { vec![4] } else { vec![1, 3, 9] } {
        let mut query = ListQuery { limit, ..of_that_time.clone() };
        let before = resource_ids(&all_pages(&store, &query).await);
        let mut seen = Vec::new();
        loop {
            let page = store.list(&query).await.unwrap();
            seen.extend(resource_ids(&page.events));
            append(&store, vec![event("same time"), seal(h, named_event("now"))]).await;
            match page.next_cursor {
                Some(cursor) => query.cursor = Some(cursor),
                None => break,
            }
        }
        assert_eq!(seen, before, "limit {limit}: those that came meanwhile are newer");
    }
}

fn resource_ids(events: &[StoredEvent]) -> Vec<String> {
    events.iter().filter_map(|e| e.event.resource_id.clone()).collect()
}

/// 2,000 events with the same time, in pages of many sizes: each is listed once.
pub async fn pages_give_every_event_once(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    let at = Timestamp::from_millis(1_767_225_600_000);
    let mut events: Vec<_> =
        (0..2_000).map(|n| seal(h, NewEvent { at, ..named_event(&n.to_string()) })).collect();
    // The smallest pages of a slow store while it holds few events.
    let rest = if h.is_slow() { events.split_off(60) } else { Vec::new() };
    append(&store, events).await;
    every_page_size(&store, &[1, 7]).await;
    append(&store, rest).await;
    every_page_size(&store, &[100, 333, 499, 500]).await;
    let whole = ListQuery { limit: 500, action: Some("none".into()), ..ListQuery::default() };
    assert!(store.list(&whole).await.unwrap().next_cursor.is_none());
}

async fn every_page_size(store: &Arc<dyn AuditStore>, limits: &[usize]) {
    let mut expected = ids(&everything(store).await);
    expected.reverse();
    for limit in limits {
        let query = ListQuery { limit: *limit, ..ListQuery::default() };
        assert_eq!(ids(&all_pages(store, &query).await), expected, "limit {limit}");
    }
}

/// See the name.
pub async fn pages_hold_while_events_arrive(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    let manual = ManualRuntime::new(9);
    let mut generator = EventGenerator::new(&manual);
    append(&store, generator.sealed(if h.is_slow() { 120 } else { 400 })).await;
    let mut expected = everything(&store).await;
    expected.sort_by_key(newest_first);
    let mut query = ListQuery { limit: 13, ..ListQuery::default() };
    let mut seen = Vec::new();
    loop {
        let page = store.list(&query).await.unwrap();
        seen.extend(ids(&page.events));
        // Newer and older events, also within the page's own minute.
        append(&store, generator.sealed(11)).await;
        match page.next_cursor {
            Some(cursor) => query.cursor = Some(cursor),
            None => break,
        }
    }
    let distinct: BTreeSet<_> = seen.iter().collect();
    assert_eq!(distinct.len(), seen.len(), "no event is listed twice");
    let mut rest = seen.iter();
    let kept = ids(&expected).iter().all(|id| rest.any(|s| s == id));
    assert!(kept, "every earlier event is listed, in order");
}

/// A page cursor as issued by version 1: `(at, id)`.
const CURSOR_OF_VERSION_1: &str =
    "AQAAAZt22qgA_____________________wD-AhE1F-55lcBT4-Zmp1OUukWUW0LjRw1jJcH07Xw-";

/// See the name.
pub async fn a_cursor_is_bound_to_its_filters_and_log(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    append(&store, named(h, &["a", "b", "c"])).await;
    let query = ListQuery { limit: 1, ..ListQuery::default() };
    let cursor = store.list(&query).await.unwrap().next_cursor.unwrap();
    let refused = |query: ListQuery| {
        let store = Arc::clone(&store);
        async move {
            let error = store.list(&query).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::CursorInvalid, "{query:?}");
        }
    };
    let with = |cursor: &str| ListQuery { cursor: Some(cursor.to_owned()), ..query.clone() };
    assert!(store.list(&with(&cursor)).await.is_ok());
    let other_page_size = ListQuery { limit: 2, ..with(&cursor) };
    assert!(store.list(&other_page_size).await.is_ok(), "the page size is not a filter");
    refused(ListQuery { q: Some("a".into()), ..with(&cursor) }).await;
    refused(ListQuery { since: Some(Timestamp::MIN), ..with(&cursor) }).await;
    for broken in ["", "x", "not base64 !!", &cursor[1..], &format!("{cursor}A")] {
        refused(with(broken)).await;
    }
    for at in 0..cursor.len() {
        let mut bytes = cursor.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        refused(with(std::str::from_utf8(&bytes).unwrap())).await;
    }
    refused(with(&"A".repeat(1 << 20))).await;
    // Version 1 had a different order.
    let old = store.list(&with(CURSOR_OF_VERSION_1)).await.unwrap_err();
    assert_eq!(old.kind(), ErrorKind::CursorInvalid);
    assert!(old.to_string().contains("start again from the first page"), "{old}");
    let other = h.open(Reopen::No).await;
    append(&other, named(h, &["a", "b", "c"])).await;
    let foreign = other.list(&query).await.unwrap().next_cursor.unwrap();
    refused(with(&foreign)).await;
}

/// See the name.
pub async fn limits_are_bounded(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    for limit in [0, 501, usize::MAX] {
        let query = ListQuery { limit, ..ListQuery::default() };
        let error = store.list(&query).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::QueryInvalid);
        assert!(error.to_string().contains("1 to 500"), "the bound is named");
    }
    for limit in [1, 500] {
        assert!(store.list(&ListQuery { limit, ..ListQuery::default() }).await.is_ok());
    }
}

/// See the name.
pub async fn pattern_characters_are_literal(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    let mut events = Vec::new();
    for (action, name) in [
        ("mail.sent", "100%"),
        ("mailx.sent", "100 percent"),
        ("mail_a.sent", "a_b"),
        ("tenant.suspended", "a.b"),
        ("tenant.created", "axb \\ .* [a-z] $where"),
    ] {
        let event = NewEvent {
            action: action.into(),
            resource_name: Some(name.into()),
            ..named_event(name)
        };
        events.push(seal(h, event));
    }
    append(&store, events).await;
    let matching = |query: ListQuery| {
        let store = Arc::clone(&store);
        async move { store.list(&query).await.unwrap().events.len() }
    };
    for (prefix, expected) in [
        ("mail.", 1),
        ("mail", 3),
        ("mail_", 1),
        ("mail%", 0),
        ("%", 0),
        (".*", 0),
        ("tenant", 2),
        ("tenant.", 2),
        ("tenant.sus", 1),
        ("tenant.suspended", 1),
        ("tenant.suspended.x", 0),
        ("TENANT", 0),
        ("", 5),
    ] {
        let query = ListQuery { action: Some(prefix.into()), ..ListQuery::default() };
        assert_eq!(matching(query).await, expected, "action {prefix:?}");
    }
    for (text, expected) in [
        ("%", 1),
        ("_", 1),
        ("a_b", 1),
        ("a.b", 1),
        ("\\", 1),
        (".*", 1),
        ("[a-z]", 1),
        ("$where", 1),
        ("100", 2),
        ("\u{1f}", 0),
        ("sent\u{1f}100", 0),
    ] {
        let query = ListQuery { q: Some(text.into()), ..ListQuery::default() };
        assert_eq!(matching(query).await, expected, "q {text:?}");
    }
}

/// See the name.
pub async fn case_is_folded_by_unicode(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    let mut event = named_event("fold");
    event.resource_name = Some("ÄRGER Straße ΣΊΣΥΦΟΣ ΟΔΟΣΣΕΑΣ İ".into());
    event.actor.email = Some("Änne@Example.COM".into());
    append(&store, vec![seal(h, event)]).await;
    for (text, expected) in [
        ("ärger", 1),
        ("ÄRGER", 1),
        ("straße", 1),
        ("STRASSE", 0),
        ("σίσυφος", 1),
        ("ΣΊΣΥΦΟΣ", 1),
        ("ΟΔΟΣ", 1),
        ("οδοσσ", 1),
        ("änne@", 1),
    ] {
        let query = ListQuery { q: Some(text.into()), ..ListQuery::default() };
        assert_eq!(store.list(&query).await.unwrap().events.len(), expected, "q {text:?}");
    }
    for (email, expected) in [("änne@example.com", 1), ("ÄNNE@EXAMPLE.com", 1), ("änne", 0)] {
        let query = ListQuery { actor_email: Some(email.into()), ..ListQuery::default() };
        assert_eq!(store.list(&query).await.unwrap().events.len(), expected, "{email:?}");
    }
}

/// See the name.
pub async fn hostile_texts_are_literal_or_refused(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    let hostile = [
        "'; DROP TABLE dezky_audit_events; --",
        "\"",
        "$where",
        "{\"$gt\":\"\"}",
        "a\0b",
        "\u{fffd}",
        "\u{10ffff}",
        "%00",
        "../..",
        "\r\n",
    ];
    let mut events = Vec::new();
    for text in hostile {
        let mut event = external("ocis", text);
        event.actor.id = Some(text.into());
        event.resource_name = Some(text.into());
        event.tenant_slug = Some(text.into());
        event.metadata.annotate(text, text);
        events.push(seal(h, event));
    }
    append(&store, events.clone()).await;
    assert_eq!(count(&store).await, hostile.len() as u64);
    assert_eq!(append(&store, events).await, vec![Duplicate; hostile.len()]);
    for text in hostile {
        let filters: [MakeQuery; 4] = [
            |t| ListQuery { actor_id: Some(t), ..ListQuery::default() },
            |t| ListQuery { resource_id: Some(t), ..ListQuery::default() },
            |t| ListQuery { tenant_slug: Some(t), ..ListQuery::default() },
            |t| ListQuery { q: Some(t), ..ListQuery::default() },
        ];
        for filter in filters {
            let found = store.list(&filter(text.to_owned())).await.unwrap().events;
            assert!(!found.is_empty(), "{text:?}");
            let normal = text.replace('\0', "\u{fffd}");
            assert!(found.iter().all(|e| e.event.actor_id.as_ref().unwrap().contains(&normal)));
        }
    }
    let long = ListQuery { q: Some("x".repeat(1 << 20)), ..ListQuery::default() };
    let error = store.list(&long).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::QueryInvalid);
    assert!(error.to_string().contains("1024"), "the bound is named");
    assert!(verify(&*store, None, |_| ()).await.unwrap().finding.is_none());
}

/// See the name.
pub async fn stored_events_are_read_back(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    let manual = ManualRuntime::new(1);
    let mut events = EventGenerator::new(&manual).sealed(300);
    let mut edge = named_event("edge");
    edge.at = Some(Timestamp::MIN);
    events.push(seal(h, edge));
    append(&store, events.clone()).await;
    let rows = store.scan(0, 1_000).await.unwrap();
    for (row, event) in rows.into_iter().zip(&events) {
        let row = row.unwrap();
        assert_eq!(row.stored.event, *event.event());
        assert_eq!(row.evidence, crate::integrity::Evidence::Salt(*event.salt()));
        assert_eq!(row.search_columns, SearchColumns::of(event.event()));
    }
}

/// See the name.
pub async fn a_tail_yields_in_order_and_waits(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    append(&store, named(h, &["a", "b"])).await;
    let mut tail = store.tail(h.runtime(), 1).poll_interval(Duration::from_millis(10));
    assert_eq!(tail.next().await.unwrap().seq, 1);
    let mut waiting = Box::pin(tail.next());
    for _ in 0..3 {
        assert!(poll!(waiting.as_mut()).is_pending(), "it waits for more");
        h.runtime().sleep(Duration::from_millis(1)).await;
    }
    append(&store, named(h, &["c", "d"])).await;
    assert_eq!(waiting.await.unwrap().event.resource_id.as_deref(), Some("c"));
    assert_eq!(tail.next().await.unwrap().seq, 3);
}

/// See the name.
pub async fn a_scan_is_bounded(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    append(&store, named(h, &["a", "b", "c"])).await;
    assert_eq!(store.scan(i64::MIN, 2).await.unwrap().len(), 2);
    assert_eq!(store.scan(2, 2).await.unwrap().len(), 1);
    assert_eq!(store.scan(3, 2).await.unwrap().len(), 0);
    assert_eq!(store.scan(i64::MAX, 2).await.unwrap().len(), 0);
    assert_eq!(store.scan(0, 0).await.unwrap().len(), 0, "no rows were requested");
}

/// A log of 30 events, two of them erased, with cursors and quarantined items, in parts of ten.
async fn parts_of_another_log() -> (MemoryAuditStore, Vec<LogPart>) {
    let manual = Arc::new(ManualRuntime::new(7));
    let other = MemoryAuditStore::open(manual.clone());
    other.append(EventGenerator::new(&*manual).sealed(30), advance(None, "1")).await.unwrap();
    let items = AppendOptions { quarantine: vec![item("a"), item("b")], ..Default::default() };
    other.append(Vec::new(), items).await.unwrap();
    let again = AppendOptions { quarantine: vec![item("b")], ..Default::default() };
    other.append(Vec::new(), again).await.unwrap();

    let state = other.state().await.unwrap();
    let mut rows: Vec<StoredRow> =
        other.scan(0, 100).await.unwrap().into_iter().map(Result::unwrap).collect();
    for row in [3, 17] {
        let row = &mut rows[row];
        let fields = [Field::ActorEmail, Field::Metadata];
        let (event, evidence) = erase(&row.stored.event, &row.evidence, &fields);
        row.search_columns = SearchColumns::of(&event);
        (row.stored.event, row.evidence) = (event, evidence);
        row.stored.erased = row.evidence.erased_fields();
    }
    let parts = rows.chunks(10).map(|rows| LogPart {
        log_id: state.log_id,
        cursor_key: state.cursor_key,
        rows: rows.to_vec(),
        cursors: Vec::new(),
        quarantine: Vec::new(),
    });
    let mut parts: Vec<_> = parts.collect();
    parts[2].cursors = other.cursors().await.unwrap();
    parts[2].quarantine = other.quarantined(0, 10).await.unwrap();
    (other, parts)
}

/// Part by part, with one part repeated as after a crash.
pub async fn a_copy_continues_the_log_it_was_made_of(h: Harness<'_>) {
    let (other, parts) = parts_of_another_log().await;
    let store = h.open(Reopen::No).await;
    for part in &parts {
        store.restore(part.clone()).await.unwrap();
        store.restore(part.clone()).await.unwrap();
    }
    assert_eq!(store.state().await.unwrap(), other.state().await.unwrap());
    let wanted: Vec<_> = parts.iter().flat_map(|part| &part.rows).collect();
    for (row, wanted) in store.scan(0, 100).await.unwrap().into_iter().zip(wanted) {
        let row = row.unwrap();
        assert_eq!(row.stored, wanted.stored);
        assert_eq!(
            (row.evidence, row.search_columns),
            (wanted.evidence.clone(), wanted.search_columns.clone())
        );
    }
    // Erasures that the other log claims are copied unchanged, and reported.
    let finding = verify(&*store, None, |_| ()).await.unwrap().finding.unwrap();
    assert_eq!((finding.seq, finding.kind), (3, Difference::Altered));
    assert!(finding.detail.contains("metadata was erased"), "{}", finding.detail);
    assert_eq!(store.cursors().await.unwrap(), [("ocis".to_owned(), "1".to_owned())]);
    let seen: Vec<_> = store.quarantined(0, 10).await.unwrap();
    let seen: Vec<_> = seen.into_iter().map(|q| (q.item.key, q.seen)).collect();
    assert_eq!(seen, [("a".to_owned(), 1), ("b".to_owned(), 2)]);

    // The copy continues like the original.
    let fresh = named(h, &["fresh"]);
    other.append(fresh.clone(), AppendOptions::default()).await.unwrap();
    append(&store, fresh).await;
    assert_eq!(store.state().await.unwrap(), other.state().await.unwrap());
}

/// See the name.
pub async fn a_part_that_does_not_fit_changes_nothing(h: Harness<'_>) {
    let (_, parts) = parts_of_another_log().await;
    let store = h.open(Reopen::No).await;
    let refused = |part: LogPart| async { store.restore(part).await.unwrap_err().kind() };
    assert_eq!(refused(parts[1].clone()).await, ErrorKind::StateConflict, "a gap");
    let mut forged = parts[0].clone();
    forged.rows[4].stored.event.action = "forged".into();
    assert_eq!(refused(forged).await, ErrorKind::StoreCorrupt);
    let mut torn = parts[0].clone();
    torn.rows.remove(5);
    assert_eq!(refused(torn).await, ErrorKind::StoreCorrupt);
    assert_eq!(count(&store).await, 0);

    store.restore(parts[0].clone()).await.unwrap();
    append(&store, named(h, &["of its own"])).await;
    assert_eq!(
        refused(parts[1].clone()).await,
        ErrorKind::StateConflict,
        "it has appended its own events"
    );
    let own = h.open(Reopen::No).await;
    append(&own, named(h, &["of its own"])).await;
    let refused = own.restore(parts[0].clone()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::StateConflict, "another log");
    assert_eq!(count(&own).await, 1);
    assert_eq!(own.cursors().await.unwrap(), []);
}

/// For durable or shared stores: a second handle reads the same log, appends to it, and keeps its
/// identity, cursors and pages.
pub async fn another_handle_sees_what_was_acknowledged(h: Harness<'_>) {
    let store = h.open(Reopen::No).await;
    let able = store.capabilities();
    append(&store, named(h, &["a", "b", "c"])).await;
    store.append(Vec::new(), advance(None, "1")).await.unwrap();
    if !able.durable && !able.shared {
        return;
    }
    let again = h.open(Reopen::Yes).await;
    assert_eq!(again.state().await.unwrap(), store.state().await.unwrap());
    assert_eq!(again.cursor("ocis").await.unwrap().as_deref(), Some("1"));
    let query = ListQuery { limit: 1, ..ListQuery::default() };
    let cursor = store.list(&query).await.unwrap().next_cursor;
    assert!(again.list(&ListQuery { cursor, ..query }).await.is_ok(), "paging continues");
    append(&again, named(h, &["d"])).await;
    append(&store, named(h, &["e"])).await;
    let names: Vec<_> =
        everything(&again).await.into_iter().filter_map(|e| e.event.resource_id).collect();
    assert_eq!(names, ["a", "b", "c", "d", "e"]);
    assert!(verify(&*again, None, |_| ()).await.unwrap().finding.is_none());
}
