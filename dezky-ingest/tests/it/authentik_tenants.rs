//! Tenants of Authentik's events: the listing of groups, and users requested one by one.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use dezky_core::{Error, ErrorKind, Result, TenantDirectory};
use dezky_ingest::testkit::{Fault, authentik_event};
use serde_json::{Value, json};

use crate::authentik::{MINUTE, Setup, metadata};
use crate::run;

/// Knows the tenants `acme` and `zeta`.
#[derive(Default)]
struct Tenants {
    is_down: Mutex<bool>,
    /// Tenants added later, and the directory's revision.
    new: Mutex<Vec<String>>,
    revision: Mutex<Option<u64>>,
}

impl Tenants {
    fn add(&self, slug: &str) {
        self.new.lock().unwrap().push(slug.to_owned());
        let mut revision = self.revision.lock().unwrap();
        *revision = Some(revision.unwrap_or(0) + 1);
    }
}

#[async_trait]
impl TenantDirectory for Tenants {
    async fn by_slug(&self, slug: &str) -> Result<Option<String>> {
        if *self.is_down.lock().unwrap() {
            return Err(Error::new(ErrorKind::StoreUnavailable, "scripted"));
        }
        let is_new = self.new.lock().unwrap().iter().any(|new| new == slug);
        Ok((is_new || ["acme", "zeta"].contains(&slug)).then(|| slug.to_owned()))
    }

    async fn by_domain(&self, _domain: &str) -> Result<Option<String>> {
        Ok(None)
    }

    async fn by_user(&self, _system: &str, _id: &str) -> Result<Option<String>> {
        Ok(None)
    }

    async fn revision(&self) -> Result<Option<u64>> {
        Ok(*self.revision.lock().unwrap())
    }
}

/// A double with users 41 (staff), 42 (zeta and acme), 43 (an admin).
async fn with_groups() -> (Setup, Arc<Tenants>) {
    let mut setup = Setup::new().await;
    let tenants = Arc::new(Tenants::default());
    setup.directory = Some(Arc::clone(&tenants) as Arc<dyn TenantDirectory>);
    let groups =
        [("zeta", false), ("staff", false), ("dezky-platform-admins", false), ("acme", false)];
    for (name, is_superuser) in groups {
        setup.double.add_group(name, is_superuser);
    }
    setup.double.add_group("authentik Admins", true);
    setup.double.set_user(41, &["staff"]);
    setup.double.set_user(42, &["zeta", "staff", "acme"]);
    setup.double.set_user(43, &["dezky-platform-admins", "authentik Admins"]);
    (setup, tenants)
}

fn by_user(n: u64, user: Value, created: &str) -> Value {
    let mut event = authentik_event(n, created);
    event["user"] = user;
    event
}

/// The number of requests for single users.
fn lookups(setup: &Setup) -> usize {
    let is_one = |path: &str| path.starts_with("/api/v3/core/users/4");
    setup.double.requests().iter().filter(|request| is_one(&request.path)).count()
}

async fn found(setup: &Setup) -> Vec<(Option<String>, String)> {
    let found = setup.stored().await.into_iter().map(|e| {
        let by = metadata(&e)["_dezky"]["tenantBy"].as_str().unwrap().to_owned();
        (e.event.tenant_slug, by)
    });
    found.collect()
}

#[test]
fn the_tenant_is_the_first_of_the_users_groups_that_is_one() {
    run(async {
        let (setup, _) = with_groups().await;
        let at = |seconds: u64| setup.ago(Duration::from_secs(100 - seconds));
        setup.double.insert_all([
            by_user(1, json!({"pk": 41, "username": "a"}), &at(1)),
            by_user(2, json!({"pk": 42, "username": "b"}), &at(2)),
            by_user(3, json!({"pk": 43, "username": "c"}), &at(3)),
            by_user(4, json!({"pk": 43, "username": "c", "on_behalf_of": {"pk": 42}}), &at(4)),
            by_user(5, json!({}), &at(5)),
        ]);
        let mut pump = setup.pump();
        pump.tick().await.unwrap();
        let acme = || (Some("acme".to_owned()), "group".to_owned());
        let none = || (None, "none".to_owned());
        assert_eq!(found(&setup).await, [none(), acme(), none(), acme(), none()]);

        let listed = |setup: &Setup| {
            let users = setup.double.calls("/api/v3/core/users/");
            setup.double.calls("/api/v3/core/groups/") + users - lookups(setup)
        };
        assert_eq!(
            listed(&setup),
            3,
            "one request for the groups, and one for each tenant's users"
        );
        assert_eq!(lookups(&setup), 2, "the users that are in no listing");
        for n in 6..15 {
            setup.runtime.advance(MINUTE);
            setup.double.insert(by_user(n, json!({"pk": 42}), &setup.ago(Duration::ZERO)));
            pump.tick().await.unwrap();
        }
        assert_eq!(listed(&setup), 3, "listings are valid for ten minutes");
        setup.double.set_user(42, &["zeta"]);
        setup.runtime.advance(MINUTE);
        setup.double.insert(by_user(15, json!({"pk": 42}), &setup.ago(Duration::ZERO)));
        pump.tick().await.unwrap();
        assert_eq!(listed(&setup), 6);
        assert_eq!(found(&setup).await.last().unwrap().0.as_deref(), Some("zeta"));
    });
}

#[test]
fn without_a_listing_events_land_unresolved() {
    run(async {
        let (setup, tenants) = with_groups().await;
        *tenants.is_down.lock().unwrap() = true;
        setup.double.insert(by_user(1, json!({"pk": 42}), &setup.ago(MINUTE)));
        let mut pump = setup.pump();
        assert_eq!(pump.tick().await.unwrap().taken.stored, 1);
        assert_eq!(found(&setup).await, [(None, "unresolved".to_owned())]);
        *tenants.is_down.lock().unwrap() = false;
        setup.runtime.advance(MINUTE);
        setup.double.insert(by_user(2, json!({"pk": 42}), &setup.ago(Duration::ZERO)));
        pump.tick().await.unwrap();
        let found = found(&setup).await;
        assert_eq!(found[1].0.as_deref(), Some("acme"));
        assert_eq!(found[0].0, None, "it is never resolved again");
    });
}

/// A directory that never answers.
#[derive(Default)]
struct Hanging {
    asked: Mutex<usize>,
}

#[async_trait]
impl TenantDirectory for Hanging {
    async fn by_slug(&self, _slug: &str) -> Result<Option<String>> {
        *self.asked.lock().unwrap() += 1;
        std::future::pending().await
    }

    async fn by_domain(&self, _domain: &str) -> Result<Option<String>> {
        Ok(None)
    }

    async fn by_user(&self, _system: &str, _id: &str) -> Result<Option<String>> {
        Ok(None)
    }
}

#[test]
fn a_listing_that_hangs_holds_up_one_page_and_not_each() {
    run(async {
        let (mut setup, _) = with_groups().await;
        let hanging = Arc::new(Hanging::default());
        setup.directory = Some(Arc::clone(&hanging) as Arc<dyn TenantDirectory>);
        setup.insert(0..600, MINUTE);
        let mut pump = setup.pump();
        let mut tries = Vec::new();
        for _ in 0..5 {
            let clock = async {
                let mut seen = *hanging.asked.lock().unwrap();
                loop {
                    if *hanging.asked.lock().unwrap() > seen {
                        seen += 1;
                        setup.runtime.advance(Duration::from_secs(61));
                    }
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                tick = pump.tick() => { tick.unwrap(); }
                () = clock => {}
            }
            tries.push(*hanging.asked.lock().unwrap());
            setup.runtime.advance(MINUTE);
            setup
                .double
                .insert(authentik_event(1_000 + tries.len() as u64, &setup.ago(Duration::ZERO)));
        }
        assert_eq!(tries[0], 1, "one page of six");
        assert!(tries.windows(2).all(|two| two[1] - two[0] <= 1), "{tries:?}");
    });
}

/// Inserts an event by each of these users, a second apart, the last one now.
fn by_users(setup: &Setup, first: u64, users: &[u64]) {
    let events = users.iter().enumerate().map(|(at, pk)| {
        let age = Duration::from_secs((users.len() - at) as u64);
        by_user(first + at as u64, json!({"pk": pk, "username": "u"}), &setup.ago(age))
    });
    setup.double.insert_all(events);
}

fn group(slug: &str) -> (Option<String>, String) {
    (Some(slug.to_owned()), "group".to_owned())
}

fn nobodys(how: &str) -> (Option<String>, String) {
    (None, how.to_owned())
}

#[test]
fn a_server_that_does_not_filter_by_group_gives_nobody_a_foreign_tenant() {
    run(async {
        let (setup, _) = with_groups().await;
        setup.double.without_group_filter();
        by_users(&setup, 0, &[41, 42, 43]);
        setup.drain(&mut setup.pump()).await;
        assert_eq!(found(&setup).await, [nobodys("none"), group("acme"), nobodys("none")]);
    });
}

#[test]
fn a_user_who_is_newer_than_the_listing_is_asked_for_once() {
    run(async {
        let (setup, _) = with_groups().await;
        let mut pump = setup.pump();
        by_users(&setup, 1, &[42]);
        pump.tick().await.unwrap();
        assert_eq!(lookups(&setup), 0, "the listing knows them");
        setup.double.set_user(44, &["zeta", "acme", "dezky-platform-admins", "staff"]);
        for n in 0..5 {
            setup.runtime.advance(MINUTE);
            by_users(&setup, 10 + n, &[44]);
            pump.tick().await.unwrap();
        }
        assert_eq!(found(&setup).await[1..], vec![group("acme"); 5]);
        assert_eq!(lookups(&setup), 1);
    });
}

#[test]
fn who_is_gone_or_has_no_tenant_is_remembered_too() {
    run(async {
        let (setup, _) = with_groups().await;
        let mut pump = setup.pump();
        for n in 0..5 {
            setup.runtime.advance(MINUTE);
            // A user without a tenant's group, an admin, and a deleted user.
            by_users(&setup, n * 10, &[41, 43, 49]);
            pump.tick().await.unwrap();
        }
        assert_eq!(found(&setup).await, vec![nobodys("none"); 15]);
        assert_eq!(lookups(&setup), 3, "each once");
        setup.runtime.advance(MINUTE * 10);
        setup.double.set_user(49, &["acme"]);
        by_users(&setup, 100, &[49]);
        pump.tick().await.unwrap();
        assert_eq!(found(&setup).await[15], group("acme"), "not forever");
    });
}

#[test]
fn a_pull_asks_for_ten_users_at_most() {
    run(async {
        let (setup, _) = with_groups().await;
        let users: Vec<u64> = (400..430).collect();
        for pk in &users {
            setup.double.set_user(*pk, &["staff"]);
        }
        by_users(&setup, 0, &users);
        let mut pump = setup.pump();
        assert_eq!(pump.tick().await.unwrap().taken.stored, 30);
        let by: Vec<_> = found(&setup).await.into_iter().map(|(_, by)| by).collect();
        assert_eq!(by.iter().filter(|by| *by == "none").count(), 10);
        assert_eq!(by.iter().filter(|by| *by == "unresolved").count(), 20);
        assert_eq!(lookups(&setup), 10);
    });
}

#[test]
fn systems_and_strangers_are_never_asked_for() {
    run(async {
        let (setup, _) = with_groups().await;
        for (n, user) in [
            json!({}),
            json!({"pk": 45, "username": "AnonymousUser"}),
            json!({"pk": 46, "username": "x", "is_anonymous": true}),
            json!({"pk": null, "username": "pending"}),
            json!({"pk": "4/../../groups", "username": "odd"}),
        ]
        .into_iter()
        .enumerate()
        {
            setup.double.insert(by_user(n as u64, user, &setup.ago(MINUTE)));
        }
        assert_eq!(setup.pump().tick().await.unwrap().taken.stored, 5);
        assert_eq!(lookups(&setup), 0);
        let by: Vec<_> = found(&setup).await.into_iter().map(|(_, by)| by).collect();
        assert_eq!(by.iter().filter(|by| *by == "none").count(), 4);
    });
}

#[test]
fn without_the_permission_to_view_users_events_are_polled_as_ever() {
    run(async {
        let (setup, _) = with_groups().await;
        setup.double.set_user_permission(false);
        let mut pump = setup.pump();
        for n in 0..8 {
            by_users(&setup, n * 10, &[41, 42]);
            assert_eq!(pump.tick().await.unwrap().taken.stored, 2);
            setup.runtime.advance(MINUTE);
        }
        assert_eq!(found(&setup).await, vec![nobodys("unresolved"); 16]);
        let asked = setup.double.calls("/api/v3/core/");
        assert_eq!(asked, 2, "the groups, a minute later one user, and then not for ten");
        assert_eq!(setup.double.polls(), 8);
        setup.double.set_user_permission(true);
        setup.runtime.advance(MINUTE * 3);
        by_users(&setup, 100, &[42]);
        pump.tick().await.unwrap();
        assert_eq!(found(&setup).await.last(), Some(&group("acme")));
    });
}

#[test]
fn a_question_that_fails_leaves_the_event_unresolved_and_delays_nothing() {
    run(async {
        let throttled = Fault::Throttled(Some(300));
        let faults = [Fault::Html(502), Fault::Starting, Fault::Truncated, Fault::Reset, throttled];
        for fault in faults {
            let (setup, _) = with_groups().await;
            setup.double.fail_next_below("/api/v3/core/users/4", 1, fault.clone());
            let mut pump = setup.pump();
            by_users(&setup, 0, &[42, 41, 43]);
            assert_eq!(pump.tick().await.unwrap().taken.stored, 3, "{fault:?}");
            let expected = [group("acme"), nobodys("unresolved"), nobodys("unresolved")];
            assert_eq!(found(&setup).await, expected, "{fault:?}");
            assert_eq!(lookups(&setup), 1, "{fault:?}: not one more");
            setup.runtime.advance(MINUTE);
            by_users(&setup, 10, &[41]);
            pump.tick().await.unwrap();
            let waits = matches!(fault, Fault::Throttled(_));
            assert_eq!(lookups(&setup), if waits { 1 } else { 2 }, "{fault:?}");
            setup.runtime.advance(MINUTE * 5);
            by_users(&setup, 20, &[41]);
            pump.tick().await.unwrap();
            assert_eq!(found(&setup).await.last(), Some(&nobodys("none")), "{fault:?}");
        }
    });
}

#[test]
fn a_question_that_hangs_holds_a_pull_up_for_ten_seconds() {
    run(async {
        let (setup, _) = with_groups().await;
        let hangs = Fault::Slow(Duration::from_hours(1));
        setup.double.fail_next_below("/api/v3/core/users/4", 1, hangs);
        by_users(&setup, 0, &[41, 43]);
        let mut pump = setup.pump();
        let clock = async {
            while lookups(&setup) == 0 || setup.runtime.sleeping() < 2 {
                tokio::task::yield_now().await;
            }
            setup.runtime.advance(Duration::from_secs(11));
        };
        let (tick, ()) = tokio::join!(pump.tick(), clock);
        assert_eq!(tick.unwrap().taken.stored, 2);
        assert_eq!(found(&setup).await, vec![nobodys("unresolved"); 2]);
    });
}

#[test]
fn old_versions_say_the_keys_of_groups_whose_names_the_listing_knows() {
    run(async {
        let (setup, _) = with_groups().await;
        setup.double.without_group_objects();
        let mut pump = setup.pump();
        by_users(&setup, 0, &[42]);
        pump.tick().await.unwrap();
        setup.double.set_user(44, &["zeta", "acme"]);
        setup.double.add_group("globex", false);
        setup.double.set_user(45, &["globex"]);
        setup.runtime.advance(MINUTE);
        by_users(&setup, 10, &[44, 45, 43]);
        pump.tick().await.unwrap();
        let expected = [group("acme"), nobodys("unresolved"), nobodys("none")];
        assert_eq!(found(&setup).await[1..], expected);
    });
}

#[test]
fn the_users_of_a_tenant_that_was_made_just_now_find_it_at_once() {
    run(async {
        let (setup, tenants) = with_groups().await;
        *tenants.revision.lock().unwrap() = Some(1);
        setup.double.add_group("globex", false);
        setup.double.set_user(44, &["globex"]);
        setup.double.set_user(45, &["globex", "staff"]);
        let mut pump = setup.pump();
        by_users(&setup, 0, &[42, 44, 45]);
        pump.tick().await.unwrap();
        assert_eq!(found(&setup).await[1..], [nobodys("none"), nobodys("none")]);
        setup.runtime.advance(Duration::from_secs(10));
        tenants.add("globex");
        setup.runtime.advance(Duration::from_secs(1));
        by_users(&setup, 10, &[44, 45]);
        let before = setup.double.calls("/api/v3/core/");
        pump.tick().await.unwrap();
        assert_eq!(found(&setup).await[3..], [group("globex"), group("globex")]);
        let asked = setup.double.calls("/api/v3/core/") - before;
        assert_eq!(asked, 2, "the groups, and the users of the new one alone");
        // Known tenants stay known.
        setup.runtime.advance(MINUTE);
        by_users(&setup, 20, &[42]);
        pump.tick().await.unwrap();
        assert_eq!(found(&setup).await.last(), Some(&group("acme")));
        assert_eq!(setup.double.calls("/api/v3/core/") - before, 2);
    });
}

#[test]
fn a_user_that_authentik_can_not_give_costs_the_others_nothing() {
    run(async {
        let (setup, _) = with_groups().await;
        for pk in 100..130 {
            setup.double.set_user(pk, &["acme"]);
        }
        setup.double.poison_user(113);
        setup.double.without_exception_events();
        by_users(&setup, 0, &[42, 112, 114, 113, 41]);
        let mut pump = setup.pump();
        pump.tick().await.unwrap();
        let acme = || group("acme");
        let expected = [acme(), acme(), acme(), nobodys("unresolved"), nobodys("none")];
        assert_eq!(found(&setup).await, expected);
    });
}

#[test]
fn a_refused_list_of_groups_names_the_permission_that_is_missing() {
    run(async {
        let (lines, guard) = crate::authentik::logged();
        let (setup, _) = with_groups().await;
        setup.double.set_user_permission(false);
        by_users(&setup, 0, &[42]);
        setup.pump().tick().await.unwrap();
        drop(guard);
        let written = lines.text();
        assert!(written.contains("authentik_core.view_group"), "{written}");
        assert!(!written.contains("view_event"), "{written}");
    });
}
