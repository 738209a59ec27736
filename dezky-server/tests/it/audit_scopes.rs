//! The part of the timeline that a caller may read: random events and filters, compared with the
//! definition, on every engine.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use axum::{Extension, Router};
use dezky_core::store::engine::{Filter, SearchColumns};
use dezky_core::store::{AppendOptions, AuditStore, ListQuery};
use dezky_core::testkit::{EventGenerator, ManualRuntime};
use dezky_core::{Outcome, StoredEvent};
use dezky_server::Scope;
use reqwest::Method;
use serde_json::Value;

use crate::sse::{Message, Messages};
use crate::support::{Client, Engine, Server, until};

/// Serves routes of the timeline on a free port.
pub(crate) async fn serve(routes: Router) -> Client {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, routes).await });
    Client::new(format!("http://{address}"))
}

/// Every event of the log.
pub(crate) async fn everything(store: &dyn AuditStore) -> Vec<StoredEvent> {
    let mut all: Vec<StoredEvent> = Vec::new();
    loop {
        let rows = store.scan(i64::try_from(all.len()).unwrap(), 1_000).await.unwrap();
        if rows.is_empty() {
            return all;
        }
        all.extend(rows.into_iter().map(|row| row.unwrap().stored));
    }
}

fn in_scope(scope: &Scope, stored: &StoredEvent) -> bool {
    match scope {
        Scope::Everything => true,
        Scope::Tenant(slug) => stored.event.tenant_slug.as_ref() == Some(slug),
    }
}

/// The events that a caller should get, in the order of the log.
fn expected<'e>(all: &'e [StoredEvent], scope: &Scope, filter: &Filter) -> Vec<&'e StoredEvent> {
    let matches = |stored: &&StoredEvent| {
        in_scope(scope, stored) && filter.matches(&stored.event, &SearchColumns::of(&stored.event))
    };
    all.iter().filter(matches).collect()
}

/// An event as the caller should see it.
fn shown(scope: &Scope, stored: &StoredEvent) -> Value {
    let mut json = serde_json::to_value(stored).unwrap();
    if *scope != Scope::Everything {
        let members = json.as_object_mut().unwrap();
        for hidden in ["seq", "prevHash", "hash"] {
            assert!(members.remove(hidden).is_some());
        }
    }
    json
}

fn random_filters(g: &mut EventGenerator<'_>, scope: &Scope) -> ListQuery {
    let some = |g: &mut EventGenerator<'_>, from: &[&str]| {
        (g.below(4) == 0).then(|| from[g.below(from.len())].to_owned())
    };
    let tenants: &[&str] = match scope {
        Scope::Everything => &["acme", "nordic", ""],
        Scope::Tenant(slug) => &[slug],
    };
    ListQuery {
        action: some(g, &["tenant.", "mail.", "audit.", "m"]),
        tenant_slug: some(g, tenants),
        partner_slug: some(g, &["nordic", "süd"]),
        actor_id: some(g, &["u-1", "ünï"]),
        actor_email: some(g, &["ANA@ACME.TEST"]),
        resource_type: some(g, &["tenant", "flag"]),
        outcome: (g.below(4) == 0).then(|| Outcome::ALL[g.below(3)]),
        source: some(g, &["authentik", "ocis", "platform-api"]),
        q: some(g, &["ACME", "%", "straße", "租"]),
        ..ListQuery::default()
    }
}

/// The filters as parameters, each with an `&` in front.
fn parameters(query: &ListQuery) -> String {
    let mut text = String::new();
    for (name, value) in [
        ("action", &query.action),
        ("tenantSlug", &query.tenant_slug),
        ("partnerSlug", &query.partner_slug),
        ("actorId", &query.actor_id),
        ("actorEmail", &query.actor_email),
        ("resourceType", &query.resource_type),
        ("outcome", &query.outcome.map(|outcome| outcome.to_string())),
        ("source", &query.source),
        ("q", &query.q),
    ] {
        let Some(value) = value else { continue };
        let _ = write!(text, "&{name}=");
        for byte in value.bytes() {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

/// One caller, and what it should see.
struct Caller<'s> {
    scope: Scope,
    client: Client,
    store: &'s dyn AuditStore,
}

impl Caller<'_> {
    async fn check_list(&self, filters: &ListQuery, limit: usize) {
        let all = everything(self.store).await;
        let mut expected = expected(&all, &self.scope, &filters.filter().unwrap());
        expected.sort_by_key(|stored| std::cmp::Reverse((stored.event.at, stored.seq)));
        let expected: Vec<_> = expected.iter().map(|stored| shown(&self.scope, stored)).collect();
        let (mut got, mut cursor) = (Vec::new(), String::new());
        loop {
            let path = format!("/audit?limit={limit}{}{cursor}", parameters(filters));
            let answer = self.client.get(&path).await;
            got.extend(answer.events().iter().cloned());
            match answer.json["nextCursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        assert_eq!(got, expected, "{:?} {filters:?}", self.scope);
    }

    async fn export(&self, filters: &ListQuery, format: &str) -> String {
        let before = self.store.state().await.unwrap().head.next_seq;
        let path = format!("/audit/export?format={format}{}", parameters(filters));
        let response = self.client.request(Method::GET, &path).send().await.unwrap();
        assert_eq!(response.status(), 200, "{response:?}");
        let text = response.text().await.unwrap();
        // Its beginning and its end are on the timeline.
        until("the end of the export", async || {
            self.store.state().await.unwrap().head.next_seq == before + 2
        })
        .await;
        text
    }

    async fn check_export(&self, filters: &ListQuery) {
        let all = everything(self.store).await;
        let mut expected = expected(&all, &self.scope, &filters.filter().unwrap());
        expected.sort_by_key(|stored| std::cmp::Reverse((stored.event.at, stored.seq)));
        let text = self.export(filters, "ndjson").await;
        let mut lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let trailer = lines.pop().unwrap();
        assert_eq!(trailer["export"]["whole"], true);
        assert_eq!(trailer["export"]["events"], expected.len());
        let jsons: Vec<_> = expected.iter().map(|stored| shown(&self.scope, stored)).collect();
        assert_eq!(lines, jsons, "{:?} {filters:?}", self.scope);

        let all = everything(self.store).await;
        let expected = self::expected(&all, &self.scope, &filters.filter().unwrap());
        let text = self.export(filters, "csv").await;
        let records: Vec<&str> = text.split_terminator("\r\n").collect();
        assert_eq!(records.len(), expected.len() + 2, "{text}");
        assert_eq!(records[0].contains("hash"), self.scope == Scope::Everything);
        let mut ids: Vec<&str> =
            records[1..=expected.len()].iter().map(|record| &record[..36]).collect();
        let mut all_ids: Vec<String> =
            expected.iter().map(|stored| stored.event.id.to_string()).collect();
        ids.sort_unstable();
        all_ids.sort_unstable();
        assert_eq!(ids, all_ids);
        let end = format!("#whole,{},", expected.len());
        assert!(records.last().unwrap().starts_with(&end), "{records:?}");
    }

    async fn check_stats(&self, filters: &ListQuery) {
        let all = everything(self.store).await;
        let filter = filters.filter().unwrap();
        let mut counts: BTreeMap<[String; 4], u64> = BTreeMap::new();
        for stored in expected(&all, &self.scope, &filter) {
            let e = &stored.event;
            // The generator's events are all of the first minute of 2026.
            if !e.at.to_string().starts_with("2026-01-01T00:0") {
                continue;
            }
            let tenant = e.tenant_slug.clone().unwrap_or_default();
            let key = [e.source.clone(), e.action.clone(), e.outcome.to_string(), tenant];
            *counts.entry(key).or_default() += 1;
        }
        let range = "since=2026-01-01T00:30:00Z&until=2026-01-01T00:31:00Z";
        let path = format!("/audit/stats?{range}{}", parameters(filters));
        let report = self.client.get(&path).await.with_status(200);
        let mut got = BTreeMap::new();
        for counted in report["counts"].as_array().unwrap() {
            assert_eq!(counted["at"], "2026-01-01T00:00:00.000Z");
            let text = |name: &str| counted[name].as_str().unwrap_or_default().to_owned();
            let key = ["source", "action", "outcome", "tenantSlug"].map(text);
            assert!(got.insert(key, counted["count"].as_u64().unwrap()).is_none());
        }
        assert_eq!(got, counts, "{:?} {filters:?}", self.scope);
        assert_eq!(report["total"], counts.values().sum::<u64>());
        assert_eq!(report.get("partial"), None);
    }

    async fn check_gets(&self) {
        for (n, stored) in everything(self.store).await.iter().enumerate() {
            // A part of them is enough, because each is a request.
            if n % 7 > 0 {
                continue;
            }
            let answer = self.client.get(&format!("/audit/{}", stored.event.id)).await;
            if in_scope(&self.scope, stored) {
                assert_eq!(answer.with_status(200), shown(&self.scope, stored));
            } else {
                let said = answer.problem(404, "not_found").to_owned();
                let absent = uuid::Uuid::nil();
                let absent = self.client.get(&format!("/audit/{absent}")).await;
                assert_eq!(absent.problem(404, "not_found"), said, "both look the same");
            }
            let by_seq = self.client.get(&format!("/audit/{}", stored.seq)).await;
            match self.scope {
                Scope::Everything => assert_eq!(by_seq.with_status(200)["seq"], stored.seq),
                Scope::Tenant(_) => {
                    by_seq.problem(400, "field_invalid");
                }
            }
        }
    }

    /// Callers of one tenant learn nothing of others by asking for them.
    async fn check_refusals(&self) {
        let Scope::Tenant(own) = &self.scope else { return };
        for route in ["/audit", "/audit/stream", "/audit/export", "/audit/stats"] {
            for other in ["dezky", ""] {
                let answer = self.client.get(&format!("{route}?tenantSlug={other}")).await;
                assert!(answer.problem(400, "query_invalid").contains(own));
            }
        }
        self.client.get("/audit/head").await.problem(403, "forbidden");
        for id in ["0", "41", "AAAA"] {
            let answer = self.client.get(&format!("/audit/stream?lastEventId={id}")).await;
            let said = answer.problem(400, "cursor_invalid");
            assert!(!said.contains(char::is_numeric), "{said}");
        }
    }

    async fn open(&self, filters: &ListQuery, last: Option<&str>) -> Messages {
        let path = format!("/audit/stream?from=start{}", parameters(filters));
        let mut request = self.client.request(Method::GET, &path);
        if let Some(last) = last {
            request = request.header("Last-Event-ID", last);
        }
        Messages::of(request.send().await.unwrap())
    }
}

/// A stream that was read a bit, was broken off, and resumed.
async fn resumed(caller: &Caller<'_>, filters: &ListQuery) -> (Vec<Message>, Messages) {
    let mut stream = caller.open(filters, None).await;
    let all = everything(caller.store).await;
    let half = expected(&all, &caller.scope, &filters.filter().unwrap()).len() / 2;
    let mut got = Vec::new();
    for _ in 0..half {
        got.push(stream.next_data().await.unwrap());
    }
    let Some(last) = got.last().and_then(|message| message.id.clone()) else {
        return (got, stream);
    };
    drop(stream);
    (got, caller.open(filters, Some(&last)).await)
}

pub(crate) async fn a_caller_reads_exactly_its_part(engine: Engine) {
    let server = Server::on(engine, &[]).await;
    let (events, rounds) = if engine == Engine::Mongodb { (60, 1) } else { (400, 8) };
    let store = Arc::clone(server.running.store());
    let runtime = ManualRuntime::new(17);
    let mut generator = EventGenerator::new(&runtime);
    store.append(generator.sealed(events), AppendOptions::default()).await.unwrap();
    let scope = |slug: &str| Scope::Tenant(slug.to_owned());
    let mut callers = Vec::new();
    for scope in [Scope::Everything, scope("acme"), scope("nordic"), scope("nobody")] {
        let client = serve(server.running.audit_routes().layer(Extension(scope.clone()))).await;
        callers.push(Caller { scope, client, store: &*store });
    }
    for caller in &callers {
        for _ in 0..rounds {
            let filters = random_filters(&mut generator, &caller.scope);
            caller.check_list(&filters, 1 + generator.below(100)).await;
            caller.check_export(&filters).await;
            caller.check_stats(&filters).await;
        }
        let none = ListQuery::default();
        caller.check_list(&none, 500).await;
        caller.check_export(&none).await;
        caller.check_stats(&none).await;
        caller.check_gets().await;
        caller.check_refusals().await;
    }
    let mut streams = Vec::new();
    for caller in &callers {
        for round in 0..4 {
            let filters = match round {
                0 => ListQuery::default(),
                _ => random_filters(&mut generator, &caller.scope),
            };
            streams.push((caller, filters.clone(), resumed(caller, &filters).await));
        }
    }
    store.append(generator.sealed(events / 6), AppendOptions::default()).await.unwrap();
    let all = everything(&*store).await;
    let mut reading = Vec::new();
    for (caller, filters, (mut got, mut stream)) in streams {
        let expected: Vec<Value> = expected(&all, &caller.scope, &filters.filter().unwrap())
            .into_iter()
            .map(|stored| shown(&caller.scope, stored))
            .collect();
        while got.len() < expected.len() {
            got.push(stream.next_data().await.unwrap());
        }
        reading.push((caller, filters, got, stream, expected));
    }
    // The stop ends the streams, so nothing may come any more.
    let stopping = tokio::spawn(server.stop());
    for (caller, filters, got, mut stream, expected) in reading {
        let end = stream.next_data().await.unwrap();
        assert_eq!(end.event.as_deref(), Some("end"), "{:?} {filters:?}: {end:?}", caller.scope);
        assert!(end.data.contains("\"ending\""), "{end:?}");
        assert_eq!(stream.next().await, None);
        let datas: Vec<Value> =
            got.iter().map(|message| serde_json::from_str(&message.data).unwrap()).collect();
        assert_eq!(datas, expected, "{:?} {filters:?}", caller.scope);
        for (message, event) in got.iter().zip(&expected) {
            let id = message.id.as_deref().unwrap();
            match caller.scope {
                Scope::Everything => assert_eq!(id, event["seq"].to_string()),
                Scope::Tenant(_) => assert_eq!(id.len(), 44, "{id}"),
            }
        }
    }
    stopping.await.unwrap();
}
