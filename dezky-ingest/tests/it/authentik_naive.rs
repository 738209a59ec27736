//! Naive pollers: each works on a small instance and loses events on a realistic one, where ours
//! does not.

use std::collections::BTreeSet;
use std::time::Duration;

use dezky_ingest::http::client_builder;
use dezky_ingest::testkit::AuthentikDouble;
use dezky_ingest::testkit::authentik_event;
use serde_json::Value;

use crate::authentik::{MINUTE, Setup};
use crate::run;

/// The state of a naive poller: a client and the events seen.
struct Naive {
    client: reqwest::Client,
    seen: BTreeSet<String>,
    newest: String,
}

impl Naive {
    fn new(double: &AuthentikDouble) -> Self {
        let client = client_builder(double.url()).unwrap().build().unwrap();
        Self { client, seen: BTreeSet::new(), newest: String::new() }
    }

    /// The rows of a page, and whether another page follows.
    async fn page(&self, double: &AuthentikDouble, query: &str) -> Option<(Vec<Value>, bool)> {
        let url = format!("{}/api/v3/events/events/?{query}", double.url());
        let response = self.client.get(url).bearer_auth(double.token()).send().await.unwrap();
        if !response.status().is_success() {
            return None;
        }
        let body: Value = response.json().await.unwrap();
        let rows = body["results"].as_array().unwrap().clone();
        Some((rows, body["pagination"]["next"] != 0))
    }

    /// Reads up to ten pages of events after the newest one seen.
    async fn poll_by_filter(&mut self, double: &AuthentikDouble) {
        for page in 1..=10 {
            let newest = &self.newest;
            let query = format!("created__gt={newest}&ordering=created&page_size=100&page={page}");
            let Some((rows, has_next)) = self.page(double, &query).await else { break };
            self.take(rows);
            if !has_next {
                break;
            }
        }
    }

    /// Reads newest first, and stops at the newest event already seen.
    async fn poll_without_overlap(&mut self, double: &AuthentikDouble) {
        let known = self.newest.clone();
        for page in 1.. {
            let query = format!("ordering=-created,-pk&page_size=100&page={page}");
            let Some((rows, has_next)) = self.page(double, &query).await else { break };
            let is_known = |row: &Value| row["created"].as_str().unwrap() <= known.as_str();
            let reached = rows.iter().any(is_known);
            self.take(rows.into_iter().filter(|row| !is_known(row)).collect());
            if reached || !has_next {
                break;
            }
        }
    }

    /// Reads oldest first, page by page to the end.
    async fn walk_oldest_first(&mut self, double: &AuthentikDouble) {
        for page in 1.. {
            let query = format!("ordering=created,pk&page_size=100&page={page}");
            let Some((rows, has_next)) = self.page(double, &query).await else { break };
            self.take(rows);
            if !has_next {
                break;
            }
        }
    }

    fn take(&mut self, rows: Vec<Value>) {
        for row in rows {
            let created = row["created"].as_str().unwrap();
            if created > self.newest.as_str() {
                created.clone_into(&mut self.newest);
            }
            self.seen.insert(row["pk"].as_str().unwrap().to_owned());
        }
    }

    /// The number of events on the server that this poller has not seen.
    fn missing(&self, double: &AuthentikDouble) -> usize {
        missing(double, &self.seen)
    }
}

/// The number of events on the server that are not in `seen`.
fn missing(double: &AuthentikDouble, seen: &BTreeSet<String>) -> usize {
    double.events().iter().filter(|e| !seen.contains(e["pk"].as_str().unwrap())).count()
}

#[test]
fn a_filter_on_created_goes_blind_at_a_thousand_and_one_and_ours_does_not() {
    run(async {
        let setup = Setup::with_events(1_000, MINUTE).await;
        let mut naive = Naive::new(&setup.double);
        naive.poll_by_filter(&setup.double).await;
        assert_eq!(naive.missing(&setup.double), 0, "it works on a small instance");
        let mut pump = setup.pump();
        setup.drain(&mut pump).await;

        setup.runtime.advance(MINUTE);
        setup.insert(1_000..1_001, MINUTE);
        for _ in 0..5 {
            naive.poll_by_filter(&setup.double).await;
        }
        assert_eq!(naive.missing(&setup.double), 1, "it only ever sees the oldest thousand");
        assert_eq!(pump.tick().await.unwrap().taken.stored, 1);
        assert_eq!(missing(&setup.double, &setup.ids().await), 0);
    });
}

#[test]
fn a_watermark_without_an_overlap_loses_what_commits_late_and_ours_does_not() {
    run(async {
        let setup = Setup::with_events(300, Duration::from_secs(10)).await;
        let mut naive = Naive::new(&setup.double);
        naive.poll_without_overlap(&setup.double).await;
        let mut pump = setup.pump();
        setup.drain(&mut pump).await;
        assert_eq!(naive.missing(&setup.double), 0, "it works on a quiet instance");

        setup.runtime.advance(MINUTE);
        // One event took five minutes to commit, the other committed at once.
        setup.double.insert(authentik_event(900, &setup.ago(MINUTE * 5)));
        setup.double.insert(authentik_event(901, &setup.ago(Duration::ZERO)));
        for _ in 0..5 {
            naive.poll_without_overlap(&setup.double).await;
        }
        assert_eq!(naive.missing(&setup.double), 1, "it never goes back");
        assert_eq!(pump.tick().await.unwrap().taken.stored, 2);
        assert_eq!(missing(&setup.double, &setup.ids().await), 0);
    });
}

#[test]
fn pages_by_number_lose_rows_as_old_ones_expire_and_ours_do_not() {
    run(async {
        let expire = |setup: &Setup, requests: std::ops::Range<usize>| {
            for nth in requests {
                setup.double.before_request(nth, |events| {
                    events.sort_by_key(|event| event["created"].as_str().unwrap().to_owned());
                    events.drain(..20);
                });
            }
        };
        let naively = Setup::with_events(1_000, MINUTE).await;
        let mut naive = Naive::new(&naively.double);
        expire(&naively, 1..6);
        naive.walk_oldest_first(&naively.double).await;
        assert_eq!(naive.missing(&naively.double), 100, "rows that moved to a page already read");

        let setup = Setup::with_events(1_000, MINUTE).await;
        // The first request is a poll; the scan of the backlog, oldest first, follows.
        expire(&setup, 2..7);
        setup.drain(&mut setup.pump()).await;
        assert_eq!(missing(&setup.double, &setup.ids().await), 0);
        let requests = setup.double.requests();
        assert!(requests.iter().any(|r| r.query.contains("ordering=created,pk")));
    });
}
