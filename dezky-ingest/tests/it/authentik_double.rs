//! Authentik's test double reproduces the behaviour that a poller must handle.
//!
//! | behaviour | test |
//! |---|---|
//! | 1 only with the trailing slash | `an_address_without_its_slash_is_not_found` |
//! | 2 403 and never 401; an empty list for internal accounts | `refusals_are_403_and_say_why` |
//! | 3 unknown parameters are ignored | `filters_on_created_are_ignored` |
//! | 4 known filters | `known_filters_select` |
//! | 5 ordering, invalid terms, ties | `what_the_order_does_not_tell_apart_is_shuffled` |
//! | 6 four profiles | `profiles_differ_in_page_size_actions_and_search` |
//! | 7 pagination over the current table | `pages_are_numbered_as_authentik_does`, `pages_are_of_the_table_as_it_is` |
//! | 8 search | `search_is_words_or_a_language` |
//! | 9 changes between requests | `the_table_changes_between_requests` |
//! | 10 faults | `each_fault_is_what_it_says`, `a_token_is_rotated_in_the_middle` |
//! | 11 users, groups, actions | `users_groups_and_actions_are_listed` |
//! | 11 a group that is not there is 400 | `a_filter_by_an_unknown_group_is_400` |
//! | facts 14.1 a row that it can't give | `a_row_that_can_not_be_given_breaks_each_page_with_it_and_adds_an_event` |
//! | 12 every request is recorded | `requests_are_recorded` |

use std::collections::BTreeSet;
use std::time::Duration;

use dezky_ingest::http::client_builder;
use dezky_ingest::testkit::{AuthentikDouble, Fault, Profile, authentik_event};
use serde_json::{Value, json};

use crate::run;

const EVENTS: &str = "/api/v3/events/events/";

/// Events a second apart, from 08:00:00 on.
fn events(numbers: std::ops::Range<u64>) -> Vec<Value> {
    numbers
        .map(|n| {
            let created = format!("2026-09-01T08:{:02}:{:02}Z", n / 60 % 60, n % 60);
            authentik_event(n, &created)
        })
        .collect()
}

async fn double(profile: Profile, numbers: std::ops::Range<u64>) -> AuthentikDouble {
    AuthentikDouble::builder().profile(profile).events(events(numbers)).start().await.unwrap()
}

async fn get(double: &AuthentikDouble, path: &str, header: Option<&str>) -> (u16, Value) {
    let client = client_builder(double.url()).unwrap().build().unwrap();
    let mut request = client.get(format!("{}{path}", double.url()));
    if let Some(header) = header {
        request = request.header("Authorization", header);
    }
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

async fn list(double: &AuthentikDouble, query: &str) -> (u16, Value) {
    get(double, &format!("{EVENTS}?{query}"), Some("Bearer double-token")).await
}

async fn count(double: &AuthentikDouble, query: &str) -> u64 {
    let (status, body) = list(double, query).await;
    assert_eq!(status, 200, "{query}: {body}");
    body["pagination"]["count"].as_u64().unwrap()
}

fn keys(body: &Value) -> Vec<String> {
    let results = body["results"].as_array().unwrap();
    results.iter().map(|event| event["pk"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn an_address_without_its_slash_is_not_found() {
    run(async {
        let double = double(Profile::V2025_12, 0..3).await;
        let token = Some("Bearer double-token");
        assert_eq!(get(&double, "/api/v3/events/events", token).await.0, 404);
        assert_eq!(get(&double, "/api/v3/events/events/", token).await.0, 200);
        assert_eq!(get(&double, "/events/events/", token).await.0, 404);
    });
}

#[test]
fn refusals_are_403_and_say_why() {
    run(async {
        let double = double(Profile::V2025_12, 0..3).await;
        for (header, said) in [
            (None, "Authentication credentials were not provided."),
            (Some("Bearer other"), "Token invalid/expired"),
            (Some("Basic ZGV6a3k="), "Unsupported authentication type"),
        ] {
            let (status, body) = get(&double, EVENTS, header).await;
            assert_eq!((status, body), (403, json!({"detail": said})));
        }
        double.set_permission(false);
        let (status, body) = list(&double, "").await;
        assert_eq!(status, 403);
        assert_eq!(body["detail"], "You do not have permission to perform this action.");
        double.hide_all();
        assert_eq!(count(&double, "").await, 0);
    });
}

#[test]
fn filters_on_created_are_ignored() {
    run(async {
        for profile in [Profile::Pre2025_8, Profile::V2025_8, Profile::V2025_12, Profile::V2026_5] {
            let double = double(profile, 0..30).await;
            for filter in ["created__gt", "created__gte", "created__lt", "user__pk", "nonsense"] {
                for value in ["2026-09-01T08:00:20Z", "garbage", ""] {
                    assert_eq!(count(&double, &format!("{filter}={value}")).await, 30);
                }
            }
        }
    });
}

#[test]
fn known_filters_select() {
    run(async {
        let double = double(Profile::V2025_12, 0..3).await;
        let mut other = authentik_event(10, "2026-09-01T09:00:00Z");
        other["action"] = "custom_Risk".into();
        other["client_ip"] = "198.51.100.7".into();
        other["user"]["username"] = "bo".into();
        other["brand"]["name"] = "globex".into();
        other["context"]["model"] =
            json!({"pk": 5, "name": "x", "model_name": "user", "app": "authentik_core"});
        other["context"]["authorized_application"] = json!({"pk": "6a1f", "name": "Mail"});
        double.insert(other);
        for (query, expected) in [
            ("action=RISK", 1),
            ("action=LOGI", 3),
            ("action=custom_", 1),
            ("actions=login", 3),
            ("actions=login&actions=logout", 3),
            ("actions=logout", 0),
            ("actions=custom_", 0),
            ("username=bo", 1),
            ("username=b", 0),
            ("client_ip=198.51.100.7", 1),
            ("context_model_pk=5", 1),
            ("context_model_name=user", 1),
            ("context_model_app=authentik_core", 1),
            ("context_model_app=authentik", 0),
            ("context_authorized_app=6a1f", 1),
            ("brand_name=globex", 1),
            ("tenant_name=globex", 4),
            ("username=", 4),
        ] {
            assert_eq!(count(&double, query).await, expected, "{query}");
        }
        for query in ["actions=custom_Risk", "actions=login&actions=quantum"] {
            let (status, body) = list(&double, query).await;
            assert_eq!(status, 400, "{query}");
            assert!(body["actions"][0].as_str().unwrap().starts_with("Select a valid choice."));
        }
    });
}

#[test]
fn the_brand_was_a_tenant_before() {
    run(async {
        let double = double(Profile::Pre2025_8, 0..2).await;
        let mut old = authentik_event(10, "2026-09-01T09:00:00Z");
        let brand = old["brand"].take();
        old["tenant"] = brand;
        old["tenant"]["name"] = "globex".into();
        old.as_object_mut().unwrap().remove("brand");
        double.insert(old);
        assert_eq!(count(&double, "tenant_name=globex").await, 1);
        assert_eq!(count(&double, "actions=nonsense").await, 3, "not known yet");
    });
}

#[test]
fn what_the_order_does_not_tell_apart_is_shuffled() {
    run(async {
        let double = double(Profile::V2025_12, 0..0).await;
        double.insert_all((0..40).map(|n| authentik_event(n, "2026-09-01T08:00:00Z")));
        let asked = async |ordering: &str| {
            keys(&list(&double, &format!("ordering={ordering}&page_size=100")).await.1)
        };
        for ordering in ["created,pk", "-created,-pk", "pk", "nonsense,pk,event_uuid"] {
            let (one, two) = (asked(ordering).await, asked(ordering).await);
            assert_eq!(one, two, "{ordering}");
            assert_eq!(one.is_sorted(), !ordering.contains('-'), "{ordering}");
        }
        for ordering in ["created", "-created", "", "event_uuid", "created,event_uuid", "brand"] {
            let (one, two) = (asked(ordering).await, asked(ordering).await);
            assert_ne!(one, two, "{ordering}");
            assert_eq!(BTreeSet::from_iter(one), BTreeSet::from_iter(two), "{ordering}");
        }
        double.insert(authentik_event(50, "2026-09-01T08:00:00.5Z"));
        let newest = authentik_event(50, "")["pk"].as_str().unwrap().to_owned();
        assert_eq!(asked("event_uuid").await[0], newest, "-created where nothing is valid");
    });
}

#[test]
fn profiles_differ_in_page_size_actions_and_search() {
    run(async {
        for (profile, default, largest, completes) in [
            (Profile::Pre2025_8, 100, 150, false),
            (Profile::V2025_8, 100, 150, true),
            (Profile::V2025_12, 20, 100, true),
            (Profile::V2026_5, 20, 100, true),
        ] {
            let double = double(profile, 0..150).await;
            let rows = async |query: &str| keys(&list(&double, query).await.1).len();
            assert_eq!(rows("").await, default, "{profile:?}");
            assert_eq!(rows("page_size=1000").await, largest, "{profile:?}");
            for odd in ["0", "-1", "many"] {
                assert_eq!(rows(&format!("page_size={odd}")).await, default, "{profile:?} {odd}");
            }
            let body = list(&double, "").await.1;
            assert_eq!(body.get("autocomplete").is_some(), completes, "{profile:?}");
            let status = list(&double, "actions=nonsense").await.0;
            assert_eq!(status == 400, profile != Profile::Pre2025_8, "{profile:?}");
            double.set_max_page_size(Some(7));
            assert_eq!(rows("page_size=100").await, 7, "{profile:?}");
            assert_eq!(rows("").await, 7, "{profile:?}");
        }
    });
}

#[test]
fn pages_are_numbered_as_authentik_does() {
    run(async {
        let double = double(Profile::V2025_12, 0..25).await;
        let page = async |query: &str| list(&double, query).await;
        assert_eq!(
            page("page=2&page_size=10").await.1["pagination"],
            json!({
                "next": 3, "previous": 1, "count": 25, "current": 2, "total_pages": 3,
                "start_index": 11, "end_index": 20,
            })
        );
        let last = page("page=last&page_size=10").await.1;
        assert_eq!((&last["pagination"]["next"], keys(&last).len()), (&json!(0), 5));
        for number in ["0", "-1", "4", "one", "99999999999999999999"] {
            let (status, body) = page(&format!("page={number}&page_size=10")).await;
            assert_eq!((status, body), (404, json!({"detail": "Invalid page."})), "{number}");
        }
        double.delete(|_| true);
        assert_eq!(
            page("").await.1["pagination"],
            json!({
                "next": 0, "previous": 0, "count": 0, "current": 1, "total_pages": 1,
                "start_index": 0, "end_index": 0,
            })
        );
    });
}

#[test]
fn pages_are_of_the_table_as_it_is() {
    run(async {
        let double = double(Profile::V2025_12, 0..20).await;
        let asked = async |number: usize| {
            keys(&list(&double, &format!("ordering=created,pk&page_size=10&page={number}")).await.1)
        };
        let first = asked(1).await;
        double.expire(4);
        let second = asked(2).await;
        assert_eq!((first.len(), second.len()), (10, 6), "four were never on a page");
    });
}

#[test]
fn search_is_words_or_a_language() {
    run(async {
        let since = "search=created >= \"2026-09-01 08:00:20\"";
        for profile in [Profile::Pre2025_8, Profile::V2025_8, Profile::V2025_12] {
            let double = double(profile, 0..30).await;
            assert_eq!(count(&double, since).await, 0, "{profile:?}: 200, and no row");
            assert_eq!(count(&double, "search=login ANA@acme").await, 30, "{profile:?}");
            assert_eq!(count(&double, "search=login nobody").await, 0, "{profile:?}");
        }
        let double = double(Profile::V2026_5, 0..90).await;
        for (query, expected) in [
            ("created >= \"2026-09-01 08:00:20\"", 70),
            ("created > \"2026-09-01 08:00:20\"", 69),
            ("created < \"2026-09-01 08:00:20\"", 20),
            ("created <= \"2026-09-01 08:00:20\"", 21),
            ("created >= \"2026-09-01 08:01\"", 30),
            ("created >= \"1970-01-01\"", 90),
            // No T, no Z and no fraction: not in the language, so words again.
            ("created >= \"2026-09-01T08:00:20Z\"", 0),
            ("ana login", 90),
        ] {
            assert_eq!(count(&double, &format!("search={query}")).await, expected, "{query}");
        }
    });
}

#[test]
fn the_table_changes_between_requests() {
    run(async {
        let double = double(Profile::V2025_12, 0..10).await;
        double.before_request(1, |events| {
            events.extend((10..13).map(|n| authentik_event(n, "2026-09-01T07:00:00Z")));
        });
        double.before_request(2, |events| {
            events.extend((0..200).map(|n| authentik_event(100 + n, "2026-09-01T09:00:00Z")));
        });
        let mut counts = Vec::new();
        for _ in 0..3 {
            counts.push(count(&double, "").await);
        }
        assert_eq!(counts, [10, 13, 213]);
        let oldest = list(&double, "ordering=created,pk&page_size=3").await.1;
        assert!(oldest["results"][0]["created"].as_str().unwrap().contains("07:00:00"));
        let mut gone = authentik_event(500, "2027-09-01T00:00:00Z");
        gone["user"]["pk"] = 7.into();
        gone["context"]["dump"] = "x".repeat(5 << 20).into();
        double.insert(gone);
        assert!(list(&double, "page_size=1").await.1.to_string().len() > 5 << 20);
        assert_eq!(double.delete_user(7), 1);
        double.expire(3);
        assert_eq!(double.len(), 210);
        double.insert_all(events(1_000..13_000));
        assert_eq!(count(&double, "").await, 12_210);
    });
}

#[test]
fn each_fault_is_what_it_says() {
    run(async {
        let double = double(Profile::V2025_12, 0..10).await;
        for (fault, status, said) in [
            (Fault::Html(502), 502, "<html>"),
            (Fault::Html(503), 503, "<html>"),
            (Fault::Text(502), 502, "upstream"),
            (Fault::Text(503), 503, "upstream"),
            (Fault::Starting, 503, "authentik starting"),
            (Fault::Throttled(Some(3)), 429, "throttled"),
            (Fault::Truncated, 200, "{\"pagination"),
        ] {
            double.fail_next(1, fault.clone());
            let (got, body) = list(&double, "").await;
            assert_eq!(got, status, "{fault:?}");
            assert!(body.to_string().replace('\\', "").contains(said), "{fault:?}: {body}");
        }
        let client = client_builder(double.url()).unwrap().build().unwrap();
        let ask = || {
            let url = format!("{}{EVENTS}", double.url());
            client.get(url).bearer_auth("double-token").send()
        };
        for (fault, said) in [
            (Fault::Throttled(Some(7)), Some("7")),
            (Fault::Throttled(None), None),
            (
                Fault::ThrottledUntil("Tue, 01 Sep 2026 08:00:00 GMT".into()),
                Some("Tue, 01 Sep 2026 08:00:00 GMT"),
            ),
        ] {
            double.fail_next(1, fault);
            let response = ask().await.unwrap();
            let header = response.headers().get("Retry-After").map(|h| h.to_str().unwrap());
            assert_eq!((response.status().as_u16(), header), (429, said));
        }
        double.fail_next(1, Fault::Reset);
        assert!(ask().await.unwrap().bytes().await.is_err(), "the body is truncated");
        double.fail_next(1, Fault::SlowBody(Duration::from_millis(1)));
        assert_eq!(keys(&ask().await.unwrap().json().await.unwrap()).len(), 10);
        double.fail_next_below("/api/v3/core/", 1, Fault::Html(502));
        assert_eq!(list(&double, "").await.0, 200, "the fault affects only its path");
        assert_eq!(get(&double, "/api/v3/core/users/", None).await.0, 502);
    });
}

#[test]
fn a_token_is_rotated_in_the_middle() {
    run(async {
        let double = double(Profile::V2025_12, 0..10).await;
        double.set_token_before_request(1, "rotated");
        let mut statuses = Vec::new();
        for _ in 0..3 {
            statuses.push(list(&double, "").await.0);
        }
        assert_eq!(statuses, [200, 403, 403]);
    });
}

#[test]
fn users_groups_and_actions_are_listed() {
    run(async {
        let double = double(Profile::V2025_12, 0..0).await;
        double.add_group("acme", false);
        double.add_group("authentik Admins", true);
        double.set_user(41, &["acme", "authentik Admins"]);
        double.set_user(42, &[]);
        let token = Some("Bearer double-token");
        let asked = async |path: &str| get(&double, &format!("/api/v3/{path}"), token).await;
        let (_, user) = asked("core/users/41/").await;
        assert_eq!(user["groups_obj"][1]["name"], "authentik Admins");
        assert_eq!(user["groups_obj"][1]["is_superuser"], true);
        assert_eq!(user["groups"][0], user["groups_obj"][0]["pk"]);
        for unknown in ["core/users/40/", "core/users/ana/", "core/nothing/"] {
            assert_eq!(asked(unknown).await.0, 404, "{unknown}");
        }
        let (_, users) = asked("core/users/?groups_by_name=acme&include_groups=false").await;
        assert_eq!(users["pagination"]["count"], 1);
        assert_eq!(users["results"][0]["pk"], 41);
        assert!(users["results"][0]["groups_obj"].is_null());
        let (_, groups) = asked("core/groups/?members_by_pk=41").await;
        assert_eq!(groups["pagination"]["count"], 2);
        assert_eq!(asked("core/groups/?members_by_pk=42").await.1["pagination"]["count"], 0);
        let (_, actions) = asked("events/events/actions/").await;
        assert_eq!(actions.as_array().unwrap().len(), 38);
        double.without_group_objects();
        assert!(asked("core/users/41/").await.1.get("groups_obj").is_none());
        double.set_user_permission(false);
        assert_eq!(asked("core/users/41/").await.0, 403);
        assert_eq!(asked("core/groups/").await.0, 403);
        assert_eq!(list(&double, "").await.0, 200, "events are another permission");
    });
}

#[test]
fn requests_are_recorded() {
    run(async {
        let double = double(Profile::V2025_12, 0..3).await;
        list(&double, "page=1&created__gt=x").await;
        list(&double, "page=9").await;
        get(&double, "/api/v3/core/users/7/", Some("Bearer double-token")).await;
        let requests = double.requests();
        let queries: Vec<_> = requests.iter().map(|r| (r.query.as_str(), r.status)).collect();
        assert_eq!(queries, [("page=1&created__gt=x", 200), ("page=9", 404), ("", 404)]);
        assert_eq!((double.polls(), double.calls("/api/v3/core/users/")), (2, 1));
    });
}

#[test]
fn a_row_that_can_not_be_given_breaks_each_page_with_it_and_adds_an_event() {
    run(async {
        let double = double(Profile::V2025_12, 0..30).await;
        double.set_clock(|| "2026-09-01T09:00:00Z".into());
        let pk = authentik_event(10, "")["pk"].as_str().unwrap().to_owned();
        double.poison(&pk);
        let (status, body) = list(&double, "ordering=created,pk&page_size=20").await;
        assert_eq!(status, 500);
        assert!(body.as_str().unwrap().starts_with("<!DOCTYPE html>"), "{body}");
        assert_eq!(list(&double, "ordering=created,pk&page_size=1&page=11").await.0, 500);
        assert_eq!(list(&double, "ordering=created,pk&page_size=10").await.0, 200);
        let (_, newest) = list(&double, "ordering=-created,-pk&page_size=2").await;
        assert_eq!(newest["pagination"]["count"], 32, "each try adds one");
        assert_eq!(newest["results"][0]["action"], "system_exception");
        double.cure(&pk);
        assert_eq!(list(&double, "ordering=created,pk&page_size=20").await.0, 200);
        // Users in the same way.
        double.add_group("acme", false);
        double.set_user(42, &["acme"]);
        double.poison_user(42);
        let token = Some("Bearer double-token");
        for path in ["core/users/?groups_by_name=acme", "core/users/42/"] {
            assert_eq!(get(&double, &format!("/api/v3/{path}"), token).await.0, 500, "{path}");
        }
    });
}

#[test]
fn a_filter_by_an_unknown_group_is_400() {
    run(async {
        let double = double(Profile::V2025_12, 0..1).await;
        let path = "/api/v3/core/users/?groups_by_name=nosuch";
        let (status, body) = get(&double, path, Some("Bearer double-token")).await;
        assert_eq!(status, 400);
        assert!(body["groups_by_name"][0].as_str().unwrap().contains("nosuch"), "{body}");
    });
}
