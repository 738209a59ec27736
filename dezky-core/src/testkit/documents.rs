//! The conformance suite of [documents](crate::documents): one named test per case.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use async_trait::async_trait;
use futures_util::future::join_all;
use serde_json::json;

use super::{BoxFuture, Reopen, named_event};
use crate::documents::{
    Document, Documents, Field, Filter, Key, Kind, MAX_PAGE, Order, Owned, Page, Put, Removal, Set,
    Side, State, Stored, Text, Value, Which, joined,
};
use crate::{Actor, AuditStore, ErrorKind, NewEvent, Result, Runtime, SealedEvent};

/// The suite's access to a database.
#[async_trait]
pub trait DocumentsHarness: Send + Sync + 'static {
    /// The runtime that the database was created with.
    fn runtime(&self) -> Arc<dyn Runtime>;

    /// Runs a case to completion on the executor that the database needs.
    fn block_on(&self, case: BoxFuture<'_, ()>);

    /// Opens a set in a new database, or in the one opened before by this harness. The latter is
    /// requested only for databases that report being shared.
    async fn open(&self, which: Reopen, set: &'static Set) -> OpenDocuments;
}

/// Documents and the log that receives their events.
#[derive(Clone)]
pub struct OpenDocuments {
    /// The documents.
    pub documents: Documents,
    /// The log.
    pub log: Arc<dyn AuditStore>,
}

/// Expands to one `#[test]` per case of the suite, in the current module.
///
/// Takes an expression that creates a
/// [`DocumentsHarness`](crate::testkit::DocumentsHarness); it is evaluated for each case.
#[macro_export]
macro_rules! documents_conformance {
    ($harness:expr) => {
        $crate::documents_conformance!(@cases $harness;
            what_was_committed_is_read_back
            hostile_keys_find_nothing
            a_version_follows_the_one_before
            a_name_belongs_to_one_document_and_stays
            an_owned_value_belongs_to_one_document
            values_move_within_a_commit
            a_removal_frees_what_the_document_had
            versions_go_on_where_removals_are_kept
            changes_of_a_commit_build_on_each_other
            a_refused_change_refuses_all_and_the_events
            a_dropped_transaction_changes_nothing
            a_dropped_commit_is_made_with_its_event_or_not
            of_new_names_at_once_one_wins
            of_changes_at_once_one_wins
            the_state_counts_every_change
            pages_follow_the_key
            pages_by_number_hold_over_ties
            a_list_that_no_index_serves_is_refused
            a_document_that_does_not_fit_its_kind_is_refused
            a_replaced_document_frees_its_name
            a_copy_takes_documents_as_they_are
            another_handle_sees_what_was_committed
            the_structure_is_that_of_the_schema
        );
    };
    (@cases $harness:expr; $($case:ident)+) => {
        $(
            #[test]
            fn $case() {
                let harness = $harness;
                let run = $crate::testkit::documents::$case(&harness);
                $crate::testkit::DocumentsHarness::block_on(&harness, ::std::boxed::Box::pin(run));
            }
        )+
    };
}

type Harness<'a> = &'a dyn DocumentsHarness;

static SUITE: Set = Set::new("suite", "dezky_suite_state", &[&ITEM, &PAIR, &TRACE]);

/// Keys of one column, and every kind of field.
static ITEM: Kind = Kind {
    name: &["title"],
    owned: Some(Owned {
        field: "codes",
        table: "dezky_suite_codes",
        columns: &["code"],
        owner: "item_id",
    }),
    fields: &[
        Field::text("status"),
        Field::number("score"),
        Field::texts(
            "tags",
            Side {
                table: "dezky_suite_tags",
                column: "tag",
                order: Some("score"),
                owner: "item_id",
            },
        ),
    ],
    ..Kind::new("item", "dezky_suite_items")
};

/// Keys of two columns, and no order of names.
static PAIR: Kind = Kind {
    name: &["realm", "login"],
    owned: Some(Owned {
        field: "accounts",
        table: "dezky_suite_accounts",
        columns: &["system", "account"],
        owner: "pair_id",
    }),
    fields: &[Field::number("seen")],
    removal: Removal::Never,
    ..Kind::new("pair", "dezky_suite_pairs")
};

/// Removals leave traces.
static TRACE: Kind = Kind { removal: Removal::Kept, ..Kind::new("trace", "dezky_suite_traces") };

fn item(id: &str, version: u64, codes: &[&str]) -> Document {
    scored(id, version, codes, 0, &[])
}

fn scored(id: &str, version: u64, codes: &[&str], score: i64, tags: &[&str]) -> Document {
    let status = if score % 2 == 0 { "even" } else { "odd" };
    let tags = tags.iter().map(|&tag| tag.to_owned()).collect();
    Document::new(id, version, &json!({"id": id, "version": version}))
        .expect("is JSON")
        .named(format!("title-{id}"))
        .owning(codes.iter().map(|&code| code.to_owned()))
        .with([Value::Text(Some(status.into())), Value::Number(score), Value::Texts(tags)])
}

fn pair(id: &str, name: [&str; 2], account: [&str; 2]) -> Document {
    Document::new(id, 1, &json!(id))
        .expect("is JSON")
        .named(joined(&name))
        .owning([joined(&account)])
        .with([Value::Number(0)])
}

fn trace(id: &str, version: u64) -> Document {
    Document::new(id, version, &json!(version)).expect("is JSON")
}

fn event(harness: Harness<'_>, name: &str) -> SealedEvent {
    named_event(name).seal(&*harness.runtime())
}

/// A change of one document.
enum Change {
    Put(Put, Document),
    Remove(&'static str, u64),
}

async fn make(
    documents: &Documents,
    kind: &'static Kind,
    changes: Vec<(&str, Change)>,
    events: Vec<SealedEvent>,
) -> Result<()> {
    let mut tx = documents.begin().await?;
    tx.lock(kind, changes.iter().map(|(id, _)| *id)).await?;
    let made = changes.into_iter().try_for_each(|(_, change)| match change {
        Change::Put(how, document) => tx.put(kind, how, document),
        Change::Remove(id, version) => tx.remove(kind, id, version),
    });
    tx.stage(events);
    tx.commit_after(made).await
}

async fn put(
    documents: &Documents,
    kind: &'static Kind,
    id: &str,
    how: Put,
    document: Document,
) -> Result<()> {
    make(documents, kind, vec![(id, Change::Put(how, document))], Vec::new()).await
}

async fn new(documents: &Documents, id: &str, codes: &[&str]) {
    put(documents, &ITEM, id, Put::New, item(id, 1, codes)).await.expect("is made");
}

async fn version(documents: &Documents, kind: &'static Kind, id: &str) -> Option<u64> {
    documents.get(kind, Key::Id(id)).await.expect("reads").map(|found| found.version().unwrap())
}

async fn owner(documents: &Documents, code: &str) -> Option<String> {
    documents.get(&ITEM, Key::Owned(code)).await.expect("reads").map(|found| found.id)
}

fn kind_of(done: Result<()>) -> (ErrorKind, String) {
    let error = done.expect_err("is refused");
    (error.kind(), error.to_string())
}

async fn timeline(log: &dyn AuditStore) -> BTreeSet<String> {
    while log.relay(100).await.expect("relays").more {}
    let rows = log.scan(0, 1_000).await.expect("scans");
    let ids = rows.into_iter().map(|row| row.expect("readable").stored.event.resource_id);
    ids.flatten().collect()
}

fn read_ids(found: &[Stored]) -> Vec<&str> {
    found.iter().map(|found| found.id.as_str()).collect()
}

/// Two handles to one database, as two processes would have; the same handle twice if the database
/// can't be shared.
async fn two(h: Harness<'_>) -> [OpenDocuments; 2] {
    let first = h.open(Reopen::No, &SUITE).await;
    let shared = first.documents.capabilities().shared;
    let second = if shared { h.open(Reopen::Yes, &SUITE).await } else { first.clone() };
    [first, second]
}

/// See the name.
pub async fn what_was_committed_is_read_back(h: Harness<'_>) {
    let OpenDocuments { documents, .. } = h.open(Reopen::No, &SUITE).await;
    new(&documents, "a", &["c1", "c2"]).await;
    for key in [Key::Id("a"), Key::Name("title-a"), Key::Owned("c1"), Key::Owned("c2")] {
        let found = documents.get(&ITEM, key).await.unwrap().expect("is found");
        assert_eq!((found.id.as_str(), found.version), ("a", Some(1)), "{key:?}");
        assert_eq!(found.read::<serde_json::Value>().unwrap(), json!({"id": "a", "version": 1}));
    }
    let account = ["mail", "7"];
    put(&documents, &PAIR, "p", Put::New, pair("p", ["r", "l"], account)).await.unwrap();
    for key in [Key::Name(&joined(&["r", "l"])), Key::Owned(&joined(&account))] {
        let found = documents.get(&PAIR, key).await.unwrap().expect("is found");
        assert_eq!(found.text, Text::Json("\"p\"".into()));
    }
    put(&documents, &ITEM, "a", Put::Next, item("a", 2, &["c2"])).await.unwrap();
    assert_eq!(
        (version(&documents, &ITEM, "a").await, owner(&documents, "c1").await),
        (Some(2), None)
    );
    assert_eq!(owner(&documents, "c2").await.as_deref(), Some("a"));
    assert_eq!(documents.sum_versions(&ITEM).await.unwrap(), 2);
}

/// See the name.
pub async fn hostile_keys_find_nothing(h: Harness<'_>) {
    let OpenDocuments { documents, .. } = h.open(Reopen::No, &SUITE).await;
    new(&documents, "a", &["c"]).await;
    put(&documents, &PAIR, "p", Put::New, pair("p", ["r", "l"], ["s", "i"])).await.unwrap();
    let hostile = [
        "",
        "\0",
        "a\0",
        "'",
        "\"",
        "%",
        "$ne",
        "{\"$ne\":null}",
        "A",
        "a\u{1f}",
        "\u{1f}",
        "é\u{301}",
    ];
    for text in hostile {
        for key in [Key::Id(text), Key::Name(text), Key::Owned(text)] {
            for kind in [&ITEM, &PAIR] {
                assert_eq!(documents.get(kind, key).await.unwrap(), None, "{key:?}");
            }
        }
        let missing = make(
            &documents,
            &TRACE,
            vec![(text, Change::Put(Put::Next, trace(text, 2)))],
            Vec::new(),
        );
        assert_eq!(kind_of(missing.await).0, ErrorKind::NotFound, "{text:?}");
        let filters = [Filter::Is("status", text), Filter::Is("tags", text)];
        for filter in filters {
            assert_eq!(documents.count(&ITEM, &[filter]).await.unwrap(), 0, "{filter:?}");
        }
    }
    for wrong in [joined(&["r"]), joined(&["r", "l", ""]), joined(&["l", "r"])] {
        assert_eq!(documents.get(&PAIR, Key::Name(&wrong)).await.unwrap(), None);
    }
}

/// See the name.
pub async fn a_version_follows_the_one_before(h: Harness<'_>) {
    let OpenDocuments { documents, .. } = h.open(Reopen::No, &SUITE).await;
    let try_put = async |how, version| {
        put(&documents, &ITEM, "a", how, item("a", version, &[])).await.map_err(|e| e.kind())
    };
    assert_eq!(try_put(Put::Next, 1).await, Err(ErrorKind::NotFound));
    assert_eq!(try_put(Put::New, 2).await, Err(ErrorKind::VersionMismatch));
    assert_eq!(try_put(Put::New, 1).await, Ok(()));
    assert_eq!(try_put(Put::New, 1).await, Err(ErrorKind::AlreadyExists));
    assert_eq!(try_put(Put::New, 2).await, Err(ErrorKind::AlreadyExists));
    for version in [1, 3] {
        assert_eq!(try_put(Put::Next, version).await, Err(ErrorKind::VersionMismatch));
    }
    assert_eq!(try_put(Put::Next, 2).await, Ok(()));
    let stale = make(&documents, &ITEM, vec![("a", Change::Remove("a", 1))], Vec::new()).await;
    assert_eq!(kind_of(stale).0, ErrorKind::VersionMismatch);
    let missing = make(&documents, &ITEM, vec![("b", Change::Remove("b", 1))], Vec::new()).await;
    let (kind, said) = kind_of(missing);
    assert_eq!(
        (kind, said.as_str()),
        (ErrorKind::NotFound, "there is no such item: create it first")
    );
    // Nothing is known about an id that is not locked.
    let mut tx = documents.begin().await.unwrap();
    assert_eq!(kind_of(tx.put(&ITEM, Put::New, item("c", 1, &[]))).0, ErrorKind::Internal);
    drop(tx);
    assert_eq!(version(&documents, &ITEM, "a").await, Some(2));
}

/// See the name.
pub async fn a_name_belongs_to_one_document_and_stays(h: Harness<'_>) {
    let OpenDocuments { documents, .. } = h.open(Reopen::No, &SUITE).await;
    new(&documents, "a", &[]).await;
    let taken = put(&documents, &ITEM, "b", Put::New, item("b", 1, &[]).named("title-a")).await;
    let (kind, said) = kind_of(taken);
    assert_eq!(kind, ErrorKind::AlreadyExists);
    assert!(said.starts_with("title already exists"), "{said}");
    let twice = ["b", "c"].map(|id| (id, Change::Put(Put::New, item(id, 1, &[]).named("same"))));
    let twice = make(&documents, &ITEM, twice.into(), Vec::new()).await;
    assert_eq!(kind_of(twice).0, ErrorKind::AlreadyExists);
    let renamed = put(&documents, &ITEM, "a", Put::Next, item("a", 2, &[]).named("other")).await;
    let (kind, said) = kind_of(renamed);
    assert_eq!(kind, ErrorKind::FieldInvalid);
    assert!(said.starts_with("title can't be changed"), "{said}");
    // Names of two columns differ if one of them does.
    for (id, name) in [("p", ["r", "l"]), ("q", ["r", "m"]), ("s", ["t", "l"])] {
        put(&documents, &PAIR, id, Put::New, pair(id, name, ["s", id])).await.unwrap();
    }
    let taken = put(&documents, &PAIR, "x", Put::New, pair("x", ["r", "l"], ["s", "x"])).await;
    assert_eq!(kind_of(taken).0, ErrorKind::AlreadyExists);
}

/// See the name.
pub async fn an_owned_value_belongs_to_one_document(h: Harness<'_>) {
    let OpenDocuments { documents, .. } = h.open(Reopen::No, &SUITE).await;
    new(&documents, "a", &["c1"]).await;
    let (kind, said) =
        kind_of(put(&documents, &ITEM, "b", Put::New, item("b", 1, &["c2", "c1"])).await);
    assert_eq!(kind, ErrorKind::AlreadyExists);
    assert!(said.starts_with("codes: c1 already belongs to another item"), "{said}");
    assert_eq!(
        (version(&documents, &ITEM, "b").await, owner(&documents, "c2").await),
        (None, None)
    );
    put(&documents, &PAIR, "p", Put::New, pair("p", ["r", "p"], ["mail", "7"])).await.unwrap();
    put(&documents, &PAIR, "q", Put::New, pair("q", ["r", "q"], ["files", "7"])).await.unwrap();
    let taken = put(&documents, &PAIR, "x", Put::New, pair("x", ["r", "x"], ["mail", "7"])).await;
    let (kind, said) = kind_of(taken);
    assert_eq!(kind, ErrorKind::AlreadyExists);
    assert!(said.starts_with("accounts: one of mail already belongs to another pair"), "{said}");
}

/// See the name.
pub async fn values_move_within_a_commit(h: Harness<'_>) {
    let OpenDocuments { documents, .. } = h.open(Reopen::No, &SUITE).await;
    new(&documents, "a", &["c1"]).await;
    new(&documents, "b", &["c2"]).await;
    let swapped = vec![
        ("a", Change::Put(Put::Next, item("a", 2, &["c2"]))),
        ("b", Change::Put(Put::Next, item("b", 2, &["c1"]))),
    ];
    make(&documents, &ITEM, swapped, Vec::new()).await.unwrap();
    assert_eq!(owner(&documents, "c1").await.as_deref(), Some("b"));
    assert_eq!(owner(&documents, "c2").await.as_deref(), Some("a"));
    // Values that a document keeps stay with it.
    put(&documents, &ITEM, "a", Put::Next, item("a", 3, &["c2"])).await.unwrap();
    assert_eq!(owner(&documents, "c2").await.as_deref(), Some("a"));
    put(&documents, &ITEM, "a", Put::Next, item("a", 4, &["c3", "c2"])).await.unwrap();
    assert_eq!(owner(&documents, "c3").await.as_deref(), Some("a"));
    let both = vec![
        ("a", Change::Put(Put::Next, item("a", 5, &["c2", "c1"]))),
        ("b", Change::Put(Put::Next, item("b", 3, &["c1"]))),
    ];
    assert_eq!(
        kind_of(make(&documents, &ITEM, both, Vec::new()).await).0,
        ErrorKind::AlreadyExists
    );
}

/// See the name.
pub async fn a_removal_frees_what_the_document_had(h: Harness<'_>) {
    let OpenDocuments { documents, .. } = h.open(Reopen::No, &SUITE).await;
    put(&documents, &ITEM, "a", Put::New, scored("a", 1, &["c"], 1, &["t"])).await.unwrap();
    let replaced = vec![
        ("a", Change::Remove("a", 1)),
        ("b", Change::Put(Put::New, scored("b", 1, &["c"], 1, &["t"]).named("title-a"))),
    ];
    make(&documents, &ITEM, replaced, Vec::new()).await.unwrap();
    assert_eq!(version(&documents, &ITEM, "a").await, None);
    assert_eq!(owner(&documents, "c").await.as_deref(), Some("b"));
    assert_eq!(documents.count(&ITEM, &[Filter::Is("tags", "t")]).await.unwrap(), 1);
    // The id is free too, also for another name in the same commit.
    let first = item("a", 1, &["d"]).named("first");
    put(&documents, &ITEM, "a", Put::New, first).await.unwrap();
    let again = vec![
        ("a", Change::Remove("a", 1)),
        ("a", Change::Put(Put::New, item("a", 1, &["d"]).named("other"))),
    ];
    make(&documents, &ITEM, again, Vec::new()).await.unwrap();
    let found = documents.get(&ITEM, Key::Name("other")).await.unwrap().expect("is found");
    assert_eq!((found.id.as_str(), found.version), ("a", Some(1)));
    assert_eq!(documents.get(&ITEM, Key::Name("first")).await.unwrap(), None);
    assert_eq!(documents.get(&ITEM, Key::Name("title-a")).await.unwrap().unwrap().id, "b");
    let never = make(&documents, &PAIR, vec![("p", Change::Remove("p", 1))], Vec::new()).await;
    assert_eq!(kind_of(never).0, ErrorKind::NotFound);
}

/// See the name.
pub async fn versions_go_on_where_removals_are_kept(h: Harness<'_>) {
    let OpenDocuments { documents, .. } = h.open(Reopen::No, &SUITE).await;
    put(&documents, &TRACE, "a", Put::New, trace("a", 1)).await.unwrap();
    make(&documents, &TRACE, vec![("a", Change::Remove("a", 1))], Vec::new()).await.unwrap();
    let found = documents.get(&TRACE, Key::Id("a")).await.unwrap().expect("is known");
    assert_eq!((found.text, found.version), (Text::Removed, Some(2)));
    let (state, present) = documents.all(&TRACE, Which::Present).await.unwrap();
    assert_eq!((present.len(), state.present, state.known), (0, 0, 1));
    assert_eq!(documents.all(&TRACE, Which::Known).await.unwrap().1.len(), 1);
    for (how, version, refused) in [
        (Put::Next, 3, ErrorKind::NotFound),
        (Put::New, 1, ErrorKind::VersionMismatch),
        (Put::New, 2, ErrorKind::VersionMismatch),
    ] {
        let done = put(&documents, &TRACE, "a", how, trace("a", version)).await;
        assert_eq!(kind_of(done).0, refused, "{how:?} {version}");
    }
    put(&documents, &TRACE, "a", Put::New, trace("a", 3)).await.unwrap();
    assert_eq!(version(&documents, &TRACE, "a").await, Some(3));
}

/// See the name.
pub async fn changes_of_a_commit_build_on_each_other(h: Harness<'_>) {
    let OpenDocuments { documents, .. } = h.open(Reopen::No, &SUITE).await;
    let changes = vec![
        ("a", Change::Put(Put::New, trace("a", 1))),
        ("a", Change::Put(Put::Next, trace("a", 2))),
        ("a", Change::Remove("a", 2)),
        ("b", Change::Put(Put::New, trace("b", 1))),
        ("b", Change::Remove("b", 1)),
        ("b", Change::Put(Put::New, trace("b", 3))),
    ];
    make(&documents, &TRACE, changes, Vec::new()).await.unwrap();
    let (state, known) = documents.all(&TRACE, Which::Known).await.unwrap();
    assert_eq!(state, State { revision: 6, present: 1, known: 2 });
    let known: Vec<_> = known.iter().map(|found| (found.version, found.text.clone())).collect();
    assert_eq!(known, [(Some(3), Text::Removed), (Some(3), Text::Json("3".into()))]);
}

/// See the name.
pub async fn a_refused_change_refuses_all_and_the_events(h: Harness<'_>) {
    let OpenDocuments { documents, log } = h.open(Reopen::No, &SUITE).await;
    new(&documents, "a", &["c"]).await;
    for refused in [item("a", 1, &[]), item("a", 7, &[])] {
        let changes = vec![
            ("b", Change::Put(Put::New, item("b", 1, &[]))),
            ("a", Change::Put(Put::Next, refused)),
        ];
        make(&documents, &ITEM, changes, vec![event(h, "refused")]).await.unwrap_err();
    }
    let taken = vec![("b", Change::Put(Put::New, item("b", 1, &["c"])))];
    make(&documents, &ITEM, taken, vec![event(h, "refused")]).await.unwrap_err();
    let invalid = NewEvent::new("Not A Verb", Actor::system()).seal(&*h.runtime());
    let fine = vec![("b", Change::Put(Put::New, item("b", 1, &[])))];
    let refused = make(&documents, &ITEM, fine, vec![invalid]).await;
    assert_eq!(kind_of(refused).0, ErrorKind::EventInvalid);
    assert_eq!(version(&documents, &ITEM, "b").await, None);
    assert_eq!(documents.state().await.unwrap().revision, 1);
    assert!(timeline(&*log).await.is_empty());
}

/// See the name.
pub async fn a_dropped_transaction_changes_nothing(h: Harness<'_>) {
    let OpenDocuments { documents, log } = h.open(Reopen::No, &SUITE).await;
    let mut tx = documents.begin().await.unwrap();
    tx.lock(&ITEM, ["a"]).await.unwrap();
    tx.put(&ITEM, Put::New, item("a", 1, &["c"])).unwrap();
    tx.stage([event(h, "dropped")]);
    assert_eq!(tx.state(), State { revision: 1, present: 1, known: 1 });
    drop(tx);
    new(&documents, "b", &["c"]).await;
    assert_eq!(version(&documents, &ITEM, "a").await, None);
    assert_eq!(documents.state().await.unwrap(), State { revision: 1, present: 1, known: 1 });
    assert!(timeline(&*log).await.is_empty());
}

/// See the name.
pub async fn a_dropped_commit_is_made_with_its_event_or_not(h: Harness<'_>) {
    let OpenDocuments { documents, log } = h.open(Reopen::No, &SUITE).await;
    for polls in 0..12 {
        let id = format!("n{polls}");
        let changes = vec![(id.as_str(), Change::Put(Put::New, item(&id, 1, &[])))];
        let mut commit = pin!(make(&documents, &ITEM, changes, vec![event(h, &id)]));
        for _ in 0..polls {
            if poll_fn(|context| Poll::Ready(commit.as_mut().poll(context))).await.is_ready() {
                break;
            }
        }
    }
    new(&documents, "last", &[]).await;
    let (_, made) = documents.all(&ITEM, Which::Present).await.unwrap();
    let made: BTreeSet<String> =
        made.into_iter().map(|found| found.id).filter(|id| id != "last").collect();
    assert_eq!(timeline(&*log).await, made);
}

/// See the name.
pub async fn of_new_names_at_once_one_wins(h: Harness<'_>) {
    let both = two(h).await;
    let makes = (0..8).map(|n| {
        let documents = &both[n % 2].documents;
        async move {
            let id = format!("n{n}");
            let document = item(&id, 1, &["code"]).named("the name");
            put(documents, &ITEM, &id, Put::New, document).await
        }
    });
    let made = join_all(makes).await;
    assert_eq!(made.iter().filter(|made| made.is_ok()).count(), 1);
    for refused in made.into_iter().filter(Result::is_err) {
        assert_eq!(kind_of(refused).0, ErrorKind::AlreadyExists);
    }
    assert_eq!(both[0].documents.state().await.unwrap().present, 1);
}

/// See the name.
pub async fn of_changes_at_once_one_wins(h: Harness<'_>) {
    let both = two(h).await;
    new(&both[0].documents, "a", &[]).await;
    let changes =
        (0..8).map(|n| put(&both[n % 2].documents, &ITEM, "a", Put::Next, item("a", 2, &[])));
    let made = join_all(changes).await;
    assert_eq!(made.iter().filter(|made| made.is_ok()).count(), 1);
    for refused in made.into_iter().filter(Result::is_err) {
        assert_eq!(kind_of(refused).0, ErrorKind::VersionMismatch);
    }
}

/// See the name.
pub async fn the_state_counts_every_change(h: Harness<'_>) {
    let OpenDocuments { documents, .. } = h.open(Reopen::No, &SUITE).await;
    assert_eq!(documents.state().await.unwrap(), State::default());
    new(&documents, "a", &[]).await;
    put(&documents, &ITEM, "a", Put::Next, item("a", 2, &[])).await.unwrap();
    put(&documents, &TRACE, "t", Put::New, trace("t", 1)).await.unwrap();
    assert_eq!(documents.state().await.unwrap(), State { revision: 3, present: 2, known: 2 });
    make(&documents, &ITEM, vec![("a", Change::Remove("a", 2))], Vec::new()).await.unwrap();
    make(&documents, &TRACE, vec![("t", Change::Remove("t", 1))], Vec::new()).await.unwrap();
    assert_eq!(documents.state().await.unwrap(), State { revision: 5, present: 0, known: 1 });
    make(&documents, &ITEM, Vec::new(), vec![event(h, "alone")]).await.unwrap();
    assert_eq!(documents.state().await.unwrap().revision, 5);
}

/// See the name.
pub async fn pages_follow_the_key(h: Harness<'_>) {
    let OpenDocuments { documents, .. } = h.open(Reopen::No, &SUITE).await;
    // In the order of bytes, which no collation gives.
    let ids = ["B", "a", "a b", "a-", "ab", "z", "é"];
    let made = ids
        .iter()
        .zip(0..)
        .map(|(&id, score)| (id, Change::Put(Put::New, scored(id, 1, &[], score, &[]))));
    make(&documents, &ITEM, made.collect(), Vec::new()).await.unwrap();
    for (filters, expected) in [
        (vec![], ids.to_vec()),
        (vec![Filter::Is("status", "odd")], vec!["a", "a-", "z"]),
        (vec![Filter::IsNot("status", "odd")], vec!["B", "a b", "ab", "é"]),
        (vec![Filter::Is("status", "none")], vec![]),
    ] {
        assert_eq!(documents.count(&ITEM, &filters).await.unwrap(), expected.len() as u64);
        let (mut after, mut seen) = (None::<String>, Vec::new());
        loop {
            let order = Order::Key { after: after.as_deref() };
            let page = Page { filters: filters.clone(), order, limit: 2 };
            let page = documents.page(&ITEM, &page).await.unwrap();
            let Some(last) = page.last() else { break };
            after = Some(format!("title-{}", last.id));
            seen.extend(page.into_iter().map(|found| found.id));
        }
        assert_eq!(seen, expected, "{filters:?}");
    }
    put(&documents, &TRACE, "t", Put::New, trace("t", 1)).await.unwrap();
    put(&documents, &TRACE, "gone", Put::New, trace("gone", 1)).await.unwrap();
    make(&documents, &TRACE, vec![("gone", Change::Remove("gone", 1))], Vec::new()).await.unwrap();
    let page = Page { filters: Vec::new(), order: Order::Key { after: None }, limit: 9 };
    assert_eq!(read_ids(&documents.page(&TRACE, &page).await.unwrap()), ["t"]);
}

/// See the name.
pub async fn pages_by_number_hold_over_ties(h: Harness<'_>) {
    let OpenDocuments { documents, .. } = h.open(Reopen::No, &SUITE).await;
    let scores = [i64::MIN, -1, 0, 0, 0, 7, i64::MAX];
    let made = scores.iter().enumerate().map(|(n, &score)| {
        let id = ["a", "b", "c", "ca", "d", "e", "f"][n];
        let tags: &[&str] = if n % 2 == 0 { &["t", "all"] } else { &["all"] };
        (id, Change::Put(Put::New, scored(id, 1, &[], score, tags)))
    });
    make(&documents, &ITEM, made.collect(), Vec::new()).await.unwrap();
    for (filters, expected) in [
        (vec![], ["f", "e", "d", "ca", "c", "b", "a"].as_slice()),
        (vec![Filter::Is("tags", "all")], &["f", "e", "d", "ca", "c", "b", "a"]),
        (vec![Filter::Is("tags", "t")], &["f", "d", "c", "a"]),
        (vec![Filter::Is("tags", "none")], &[]),
    ] {
        let (mut after, mut seen) = (None::<(i64, String)>, Vec::new());
        loop {
            let place = after.as_ref().map(|(score, id)| (*score, id.as_str()));
            let order = Order::Latest { field: "score", after: place };
            let page = Page { filters: filters.clone(), order, limit: 2 };
            let page = documents.page(&ITEM, &page).await.unwrap();
            let Some(last) = page.last() else { break };
            let n = ["a", "b", "c", "ca", "d", "e", "f"].iter().position(|id| *id == last.id);
            after = Some((scores[n.expect("was made")], last.id.clone()));
            seen.extend(page.into_iter().map(|found| found.id));
        }
        assert_eq!(seen, expected, "{filters:?}");
        assert_eq!(documents.count(&ITEM, &filters).await.unwrap(), expected.len() as u64);
    }
    // Changing the number moves the document in every list.
    put(&documents, &ITEM, "a", Put::Next, scored("a", 2, &[], 9, &["t"])).await.unwrap();
    let order = Order::Latest { field: "score", after: None };
    let page = Page { filters: vec![Filter::Is("tags", "t")], order, limit: 2 };
    assert_eq!(read_ids(&documents.page(&ITEM, &page).await.unwrap()), ["f", "a"]);
}

/// See the name.
pub async fn a_list_that_no_index_serves_is_refused(h: Harness<'_>) {
    let OpenDocuments { documents, .. } = h.open(Reopen::No, &SUITE).await;
    new(&documents, "a", &[]).await;
    let key = Order::Key { after: None };
    let latest = Order::Latest { field: "score", after: None };
    let [status, tags] = [Filter::Is("status", "even"), Filter::Is("tags", "t")];
    for (kind, filters, order) in [
        (&ITEM, vec![status, Filter::IsNot("status", "odd")], key),
        (&ITEM, vec![tags, tags], latest),
        (&ITEM, vec![Filter::IsNot("tags", "t")], latest),
        (&ITEM, vec![Filter::Is("score", "1")], key),
        (&ITEM, vec![tags], key),
        (&ITEM, vec![], Order::Latest { field: "status", after: None }),
        (&ITEM, vec![status], latest),
        (&ITEM, vec![tags, status], latest),
        (&PAIR, vec![], key),
    ] {
        let page = Page { filters, order, limit: 9 };
        let refused = documents.page(kind, &page).await.expect_err("is refused");
        assert_eq!(refused.kind(), ErrorKind::Internal, "{page:?}");
    }
    let twice = documents.count(&ITEM, &[status, status]).await.expect_err("is refused");
    assert_eq!(twice.kind(), ErrorKind::Internal);
    let unknown = [Filter::Is("color", "red")];
    let of_color = Page { filters: unknown.to_vec(), order: key, limit: 9 };
    let order = Order::Latest { field: "color", after: None };
    let by_color = Page { filters: Vec::new(), order, limit: 9 };
    for refused in [
        documents.page(&ITEM, &of_color).await.map(drop),
        documents.page(&ITEM, &by_color).await.map(drop),
        documents.count(&ITEM, &unknown).await.map(drop),
    ] {
        assert_eq!(kind_of(refused), (ErrorKind::Internal, "item has no field color".into()));
    }
    for limit in [0, MAX_PAGE + 1] {
        let page = Page { filters: vec![status], order: key, limit };
        let refused = documents.page(&ITEM, &page).await.expect_err("is refused");
        assert_eq!(refused.kind(), ErrorKind::QueryInvalid);
    }
    let page = Page { filters: vec![status], order: key, limit: MAX_PAGE };
    assert_eq!(read_ids(&documents.page(&ITEM, &page).await.unwrap()), ["a"]);
}

/// See the name.
pub async fn a_document_that_does_not_fit_its_kind_is_refused(h: Harness<'_>) {
    static OTHER: Kind = Kind::new("other", "dezky_suite_others");
    let OpenDocuments { documents, .. } = h.open(Reopen::No, &SUITE).await;
    let bare = |id: &str| Document::new(id, 1, &json!(null)).expect("is JSON");
    let fields = || [Value::Text(None), Value::Number(0), Value::Texts(Vec::new())];
    for (kind, document) in [
        (&ITEM, bare("a").with(fields())),
        (&ITEM, bare("a").named("title")),
        (&ITEM, bare("a").named("title").with([Value::Number(0), Value::Number(0)])),
        (&ITEM, bare("a").named("a\u{1f}b").with(fields())),
        (&ITEM, bare("a").named("title").owning(["\0".to_owned()]).with(fields())),
        (&PAIR, bare("a").named("one").with([Value::Number(0)])),
        (&TRACE, bare("a").named("title")),
        (&TRACE, bare("a").owning(["c".to_owned()])),
        (&TRACE, bare("a\n")),
        (&TRACE, bare("")),
        (&ITEM, bare("a").named("").with(fields())),
        (&ITEM, bare("a").named("title").owning([String::new()]).with(fields())),
        (&PAIR, bare("a").named(joined(&["", "login"])).with([Value::Number(0)])),
    ] {
        let id = document.id().to_owned();
        let refused = put(&documents, kind, &id, Put::New, document).await;
        assert_eq!(kind_of(refused).0, ErrorKind::Internal, "{id}");
    }
    let mut tx = documents.begin().await.unwrap();
    assert_eq!(kind_of(tx.lock(&OTHER, ["a"]).await).0, ErrorKind::Internal);
    drop(tx);
    assert_eq!(documents.state().await.unwrap(), State::default());
}

/// See the name.
pub async fn a_replaced_document_frees_its_name(h: Harness<'_>) {
    let OpenDocuments { documents, .. } = h.open(Reopen::No, &SUITE).await;
    new(&documents, "a", &["c"]).await;
    let changes = vec![
        ("b", Change::Put(Put::New, item("b", 1, &["c"]).named("title-a"))),
        ("a", Change::Remove("a", 1)),
        ("a", Change::Put(Put::New, item("a", 1, &[]).named("other"))),
    ];
    make(&documents, &ITEM, changes, Vec::new()).await.unwrap();
    for (name, id) in [("title-a", "b"), ("other", "a")] {
        let found = documents.get(&ITEM, Key::Name(name)).await.unwrap().expect("is found");
        assert_eq!(found.id, id);
    }
    assert_eq!(owner(&documents, "c").await.as_deref(), Some("b"));
    assert_eq!(documents.state().await.unwrap(), State { revision: 4, present: 2, known: 2 });
}

/// See the name.
pub async fn a_copy_takes_documents_as_they_are(h: Harness<'_>) {
    let OpenDocuments { documents, .. } = h.open(Reopen::No, &SUITE).await;
    for (version_in, version_after) in [(7, 7), (7, 7), (3, 7), (9, 9)] {
        put(&documents, &ITEM, "a", Put::AsIs, item("a", version_in, &["c"])).await.unwrap();
        assert_eq!(version(&documents, &ITEM, "a").await, Some(version_after));
    }
    let renamed = put(&documents, &ITEM, "a", Put::AsIs, item("a", 10, &[]).named("other")).await;
    assert_eq!(kind_of(renamed).0, ErrorKind::FieldInvalid);
    let taken = put(&documents, &ITEM, "b", Put::AsIs, item("b", 2, &["c"])).await;
    assert_eq!(kind_of(taken).0, ErrorKind::AlreadyExists);
    let mut tx = documents.begin().await.unwrap();
    tx.lock(&TRACE, ["t"]).await.unwrap();
    tx.put_removed(&TRACE, "t", 4).unwrap();
    tx.set_revision(40);
    tx.commit().await.unwrap();
    assert_eq!(version(&documents, &TRACE, "t").await, Some(4));
    assert_eq!(documents.state().await.unwrap(), State { revision: 40, present: 1, known: 2 });
}

/// See the name.
pub async fn another_handle_sees_what_was_committed(h: Harness<'_>) {
    let [one, other] = two(h).await;
    new(&one.documents, "a", &["c"]).await;
    assert_eq!(owner(&other.documents, "c").await.as_deref(), Some("a"));
    put(&other.documents, &ITEM, "a", Put::Next, item("a", 2, &[])).await.unwrap();
    assert_eq!(
        (version(&one.documents, &ITEM, "a").await, owner(&one.documents, "c").await),
        (Some(2), None)
    );
    assert_eq!(one.documents.state().await.unwrap(), other.documents.state().await.unwrap());
}

/// See the name.
pub async fn the_structure_is_that_of_the_schema(h: Harness<'_>) {
    let OpenDocuments { documents, .. } = h.open(Reopen::No, &SUITE).await;
    assert_eq!(documents.examine().await.unwrap(), []);
}
