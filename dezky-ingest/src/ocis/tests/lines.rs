use std::collections::BTreeSet;
use std::time::Duration;

use dezky_core::rt::TokioRuntime;
use dezky_core::{ActorType, Outcome, PulledEvent, QuarantineItem, Runtime, TenantHint, Timestamp};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{ADMIN, ALICE, BOB, ENOSPC_GLUED, EVENT_SHAPE, EVENT_TYPES, FIRST_GENERATION};
use crate::ocis::{
    ActionContext, Class, LineContext, MUTATIONS, OcisOptions, Optional, classify_action,
    classify_type, decode_line, decode_unterminated, line_key,
};
use crate::tail::{DecodedLine, Digest};

const STORAGE: &str = "a4ae10e7-423c-4886-8fa2-1de59d56176d";
const PROJECT: &str = "507f955f-6ba2-4229-a787-94c6b13802a5";
const SHARE: &str = "a4ae10e7-423c-4886-8fa2-1de59d56176d:a4c517a3-d987-4563-a6dd-3776109686c8:\
                     959ba38d-3365-4dcb-ac81-e2c72dc8870c";
const LINK_TOKEN: &str = "vVWhgJGKzZbATyf";

const ALL: OcisOptions = OcisOptions {
    share_accepted: true,
    share_declined: true,
    ocm_invites: true,
    link_access_failed: true,
};

fn now() -> Timestamp {
    Timestamp::parse("2026-12-01T00:00:00Z").unwrap()
}

fn generation(file: &str) -> Digest {
    Sha256::digest(file.lines().next().unwrap()).into()
}

/// The results of every line, with its number.
fn decode_file(file: &str, options: OcisOptions) -> Vec<(usize, Vec<DecodedLine>)> {
    let generation = generation(file);
    let context = LineContext { source: "ocis", options, generation: &generation, now: now() };
    let (mut offset, mut last_time) = (0, None);
    file.split_terminator('\n')
        .enumerate()
        .map(|(i, line)| {
            let mut decoded = Vec::new();
            decode_line(context, offset, line.as_bytes(), &mut last_time, |d| decoded.push(d));
            offset += line.len() as u64 + 1;
            (i + 1, decoded)
        })
        .collect()
}

fn decode_with(line: &[u8], options: OcisOptions) -> Vec<DecodedLine> {
    let generation = Digest::default();
    let context = LineContext { source: "ocis", options, generation: &generation, now: now() };
    let mut decoded = Vec::new();
    decode_line(context, 0, line, &mut None, |d| decoded.push(d));
    decoded
}

fn event(line: &str) -> PulledEvent {
    match <[DecodedLine; 1]>::try_from(decode_with(line.as_bytes(), ALL)) {
        Ok([DecodedLine::Event(event)]) => *event,
        other => panic!("{other:?}"),
    }
}

fn quarantined(line: &[u8]) -> QuarantineItem {
    match <[DecodedLine; 1]>::try_from(decode_with(line, ALL)) {
        Ok([DecodedLine::Quarantine(item)]) => *item,
        other => panic!("{other:?}"),
    }
}

fn first_generation() -> Vec<(usize, PulledEvent)> {
    decode_file(FIRST_GENERATION, OcisOptions::default())
        .into_iter()
        .filter_map(|(line, decoded)| match <[DecodedLine; 1]>::try_from(decoded) {
            Ok([DecodedLine::Event(event)]) => Some((line, *event)),
            Ok([DecodedLine::Skipped]) => None,
            other => panic!("line {line}: {other:?}"),
        })
        .collect()
}

fn line(number: usize) -> PulledEvent {
    first_generation().into_iter().find(|(n, _)| *n == number).unwrap().1
}

fn note<'a>(pulled: &'a PulledEvent, key: &str) -> &'a Value {
    pulled.event.metadata.annotation(key).unwrap_or(&Value::Null)
}

fn said(pulled: &PulledEvent) -> Value {
    serde_json::from_str(pulled.event.metadata.source().unwrap()).unwrap()
}

#[test]
fn the_first_generation_is_accounted_for() {
    let events = first_generation();
    assert_eq!(events.len(), 46);
    let numbers: BTreeSet<_> = events.iter().map(|(line, _)| *line).collect();
    let skipped: Vec<_> = (1..=50).filter(|line| !numbers.contains(line)).collect();
    assert_eq!(skipped, [17, 22, 27, 28]);

    let verbs: BTreeSet<_> = events.iter().map(|(_, e)| e.event.action.clone()).collect();
    let all: BTreeSet<_> = MUTATIONS.iter().map(|(verb, ..)| format!("ocis.{verb}")).collect();
    assert_eq!(verbs, all);

    let unknown: Vec<_> = events
        .iter()
        .filter(|(_, e)| e.event.actor.kind != ActorType::User)
        .map(|(line, _)| *line)
        .collect();
    assert_eq!(unknown, [29]);
    for (line, pulled) in &events {
        let event = &pulled.event;
        assert_eq!(event.actor.id.is_some(), event.actor.kind == ActorType::User, "line {line}");
        assert_eq!(event.outcome, Outcome::Success);
        assert_eq!(event.source, "ocis");
        let family = event.action.strip_prefix("ocis.").unwrap().split('_').next();
        assert_eq!(event.resource_type.as_deref(), family);
        assert!(event.external_id.as_deref().unwrap().starts_with("ocis1:"));
    }
    let keys: BTreeSet<_> = events.iter().map(|(_, e)| e.event.external_id.clone()).collect();
    assert_eq!(keys.len(), 46, "identical lines are kept apart by their place");

    let optional = decode_file(FIRST_GENERATION, ALL);
    let actions: Vec<_> = optional
        .iter()
        .filter(|(line, _)| [17, 22, 27, 28].contains(line))
        .map(|(_, decoded)| match decoded.as_slice() {
            [DecodedLine::Event(pulled)] => pulled.event.action.as_str(),
            [DecodedLine::Skipped] => "skipped",
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        actions,
        ["skipped", "ocis.share_accepted", "ocis.share_declined", "ocis.share_accepted"]
    );
}

#[test]
fn the_lines_worth_single_tests() {
    for (number, verb, actor) in [
        (3, "user_updated", ADMIN),
        (5, "group_member_added", ADMIN),
        (6, "space_created", ADMIN),
        (15, "file_uploaded", ALICE),
        (16, "file_uploaded", ALICE),
        (19, "file_moved", ALICE),
        (21, "share_created", ALICE),
        (23, "share_updated", ALICE),
        (26, "file_uploaded", BOB),
        (30, "link_created", ALICE),
        (35, "link_removed", ALICE),
    ] {
        let event = line(number).event;
        assert_eq!(event.action, format!("ocis.{verb}"), "line {number}");
        assert_eq!(event.actor.id.as_deref(), Some(actor), "line {number}");
        assert_eq!(event.metadata.annotation("actorSource").unwrap(), "message");
    }

    let renamed_user = line(3);
    assert_eq!(renamed_user.event.resource_id.as_deref(), Some(BOB));
    assert_eq!(said(&renamed_user)["Features"][0]["OldValue"], "Bob Example");

    let member = line(5);
    assert_eq!(
        member.event.resource_id.as_deref(),
        Some("72f4bbc1-5f11-4e73-8002-bf8d6f53c81b"),
        "the keys are right, the sentence is not"
    );
    assert_eq!(said(&member)["UserID"], BOB);
    assert_eq!(note(&member, "timeSource"), "previous_line");

    let space = line(6);
    assert_eq!(space.event.resource_id, Some(format!("{STORAGE}${PROJECT}")));
    assert_eq!(space.event.resource_name.as_deref(), Some("Tenant-Acme Project"));
    assert_eq!(
        space.tenant,
        [
            TenantHint::Slug { slug: "Tenant-Acme Project".into(), via: "space_name" },
            TenantHint::User { system: "ocis", id: ADMIN.into() }
        ]
    );
    assert_eq!(line(7).event.resource_name.as_deref(), Some("Tenant-Acme Files"));
    // It is the same space with and without the root node.
    assert_eq!(line(10).event.resource_id, space.event.resource_id);

    let upload = line(15);
    assert_eq!(upload.event.resource_name.as_deref(), Some("Reports/q1.txt"));
    assert_eq!(
        note(&upload, "file"),
        &json!({"storageId": STORAGE, "spaceId": PROJECT, "nodeId": PROJECT, "path": "Reports/q1.txt"})
    );
    assert_eq!(note(&upload, "spaceId"), &json!(format!("{STORAGE}${PROJECT}")));
    assert_eq!(upload.tenant, [TenantHint::User { system: "ocis", id: ALICE.into() }]);

    assert_eq!(line(16).event.resource_name.as_deref(), Some("Reports/Übersicht \"x\".txt"));

    let version = line(18);
    assert_eq!(version.event.resource_name, None);
    assert_eq!(note(&version, "file")["nodeId"], "5b711d07-37f7-4611-aac7-f684fd0fd95c");

    let moved = line(19);
    assert_eq!(moved.event.resource_name.as_deref(), Some("Reports/q1-final.txt"));
    assert_eq!(said(&moved)["OldPath"], "/Reports/q1.txt");

    let share = line(21);
    assert_eq!((share.event.resource_id.as_deref(), note(&share, "spaceId")), (None, &Value::Null));
    assert_eq!(note(&share, "rawAction"), "file_shared");

    let updated = line(23);
    assert_eq!(note(&updated, "rawAction"), "");
    assert_eq!(updated.event.resource_id.as_deref(), Some(SHARE));
    assert_eq!(note(&updated, "spaceId"), &json!(format!("{STORAGE}${ALICE}")));
    assert_ne!(updated.event.external_id, line(24).event.external_id);

    let removed = line(29);
    assert_eq!(removed.event.action, "ocis.share_removed");
    assert_eq!(removed.event.actor.kind, ActorType::System);
    assert_eq!(note(&removed, "actorSource"), "none");
    assert_eq!(
        removed.tenant,
        [TenantHint::User { system: "ocis", id: ALICE.into() }],
        "a personal space has its user's id"
    );

    assert_eq!(said(&line(30))["ShareToken"], "[redacted]");
    assert_eq!(line(31).event.resource_id.as_deref(), Some("OmlZwScwitsoqcX"));
    let purged = line(39);
    assert_eq!(
        (purged.event.action.as_str(), purged.event.resource_name),
        ("ocis.file_purged", None)
    );
}

#[test]
fn nobody_joins_a_tenant_by_naming_their_own_space_like_one() {
    let hints = |line: &Value| event(&line.to_string()).tenant;
    let user = |id: &str| TenantHint::User { system: "ocis", id: id.into() };
    let by = |id: &str, what: &str| format!("user '{id}' {what}");
    let created = json!({
        "Action": "space_created", "Time": "2026-11-21T23:59:51Z", "SpaceID": "st$al!al",
        "Message": by("al", "created a space 'al!al'"), "Name": "acme", "Type": "personal",
    });
    assert_eq!(hints(&created), [user("al")]);
    let mut by_an_admin = created.clone();
    by_an_admin["Message"] = by("root", "created a space 'al!al'").into();
    assert_eq!(hints(&by_an_admin), [user("root")]);
    let renamed = json!({
        "Action": "space_renamed", "Time": "2026-11-21T23:59:52Z", "SpaceID": "st$al",
        "Message": by("al", "renamed the space"), "NewName": "acme",
    });
    assert_eq!(hints(&renamed), [user("al")]);
    // For a project, the name is the hint.
    let mut project = created;
    project["Type"] = "project".into();
    project["SpaceID"] = "st$pr!pr".into();
    assert_eq!(hints(&project)[0], TenantHint::Slug { slug: "acme".into(), via: "space_name" });
}

#[test]
fn times_of_the_first_generation() {
    let at = |number| {
        let pulled = line(number);
        let source = note(&pulled, "timeSource").as_str().unwrap().to_owned();
        (pulled.event.at.unwrap().to_string(), source)
    };
    let is = |at: &str, source: &str| (at.to_owned(), source.to_owned());
    assert_eq!(at(1), is("2026-12-01T00:00:00.000Z", "reading"));
    assert_eq!(at(2), is("2026-12-01T00:00:00.000Z", "reading"));
    assert_eq!(at(3), is("2026-11-21T23:59:41.000Z", "event"));
    assert_eq!(at(4), is("2026-11-21T23:59:41.000Z", "previous_line"));
    assert_eq!(at(50), is("2026-11-22T00:00:42.000Z", "previous_line"));
    let without: Vec<_> = first_generation()
        .iter()
        .filter(|(_, pulled)| note(pulled, "timeSource") != "event")
        .map(|(line, _)| *line)
        .collect();
    assert_eq!(without, [1, 2, 4, 5, 10, 11, 42, 43, 50]);
}

#[test]
fn times_that_are_no_use_for_neighbours() {
    let mut last_time = None;
    let generation = Digest::default();
    let context = LineContext { source: "ocis", options: ALL, generation: &generation, now: now() };
    let mut read = |line: Value| {
        decode_line(context, 0, line.to_string().as_bytes(), &mut last_time, drop);
        last_time.map(|time| time.to_string())
    };
    let t = |second: u32| format!("2026-11-21T00:00:{second:02}Z");
    let kept = Some("2026-11-21T00:00:01.000Z".to_owned());
    assert_eq!(read(json!({"Action": "file_read", "Time": t(1)})), kept);
    for other in [
        json!({"Action": "public_link_accessed", "Success": true, "Time": t(2)}),
        json!({"Action": "public_link_accessed", "Success": false, "Time": t(2)}),
        json!({"Action": "share_accepted", "Time": t(2)}),
        json!({"Action": "share_declined", "Time": t(2)}),
        json!({"Action": "", "ShareWith": "x", "Time": t(2)}),
        json!({"Action": "not_known", "Time": t(2)}),
        json!({"Action": "file_create", "Time": ""}),
        json!({"Action": "file_create", "Time": "yesterday"}),
        json!({"Action": "file_create", "Time": "0001-01-01T00:00:00Z"}),
        json!({"Action": "file_create", "Time": "1970-01-01T00:00:00Z"}),
        json!({"Action": "file_create", "Time": "9999-12-31T23:59:59Z"}),
        json!({"Action": "file_create"}),
    ] {
        assert_eq!(read(other.clone()), kept, "{other}");
    }
    let event = json!({"type": "FileUploaded", "timestamp": "2026-11-21T01:00:03+01:00"});
    assert_eq!(read(event), Some("2026-11-21T00:00:03.000Z".to_owned()));
}

#[test]
fn line_keys_have_the_published_vectors() {
    let g = generation(FIRST_GENERATION);
    assert_eq!(hex::encode(g), "2ad45d80462b8646e4993862099b5043755011417f37455678cb7506964ca2e8");
    let (mut offset, mut keys) = (0, Vec::new());
    for line in FIRST_GENERATION.split_terminator('\n') {
        keys.push((offset, line_key("ocis", &g, offset, &Sha256::digest(line).into())));
        offset += line.len() as u64 + 1;
    }
    for (line, offset, key) in [
        (1, 0, "ocis1:9af838e00109effb3a8efa2b9a1e5ffa7b6a1cf5"),
        (2, 300, "ocis1:dfe9fa3c458c2bf9ab9b9a005a58fde3342a5ec4"),
        (23, 13_002, "ocis1:36ba29b447835a02f5f84e8c976b18132d6130b4"),
        (24, 13_972, "ocis1:3529f6e138a7cd46f1fe971e347846b42f8934c2"),
        (50, 29_154, "ocis1:e09b3b0b3859cf0f7ef119abe8528f2990dba6a3"),
    ] {
        assert_eq!(keys[line - 1], (offset, key.to_owned()));
        assert_eq!(self::line(line).event.external_id.as_deref(), Some(key));
    }
    let hash = Sha256::digest("").into();
    assert_ne!(line_key("ocis:b", &g, 0, &hash), line_key("ocis", &g, 0, &hash));
}

#[test]
fn a_full_disk_glues_lines() {
    let decoded = decode_file(ENOSPC_GLUED, OcisOptions::default());
    assert_eq!(decoded.len(), 15);
    let mut events = Vec::new();
    let mut fragments = Vec::new();
    for (line, decoded) in decoded {
        for decoded in decoded {
            match decoded {
                DecodedLine::Event(pulled) => events.push((line, *pulled)),
                DecodedLine::Quarantine(item) => fragments.push((line, *item)),
                DecodedLine::Skipped => panic!("line {line} skipped"),
            }
        }
    }
    assert_eq!(events.len(), 15);
    assert!(events.iter().all(|(_, e)| e.event.action == "ocis.group_created"));
    let (number, inside) = &events[13];
    assert_eq!(*number, 14);
    assert_eq!(inside.event.resource_id.as_deref(), Some("04476a5a-ff67-4ddc-be73-5cfb1226c7d9"));
    let physical = ENOSPC_GLUED.lines().nth(13).unwrap();
    assert_eq!(
        inside.event.external_id,
        Some(line_key("ocis", &generation(ENOSPC_GLUED), 3887, &Sha256::digest(physical).into()))
    );
    let [(14, fragment)] = fragments.as_slice() else { panic!("{fragments:?}") };
    assert_eq!((fragment.reason.as_str(), fragment.raw.len()), ("glued_fragment", 209));
    assert!(fragment.key.starts_with("line:ocis1:"));
    assert!(fragment.detail.contains("3887"));
}

#[test]
fn the_event_shape() {
    let decoded = decode_file(EVENT_SHAPE, OcisOptions::default());
    let mut events = Vec::new();
    let mut skipped = Vec::new();
    for (line, decoded) in decoded {
        match <[DecodedLine; 1]>::try_from(decoded) {
            Ok([DecodedLine::Event(pulled)]) => events.push((line, *pulled)),
            Ok([DecodedLine::Skipped]) => skipped.push(line),
            other => panic!("line {line}: {other:?}"),
        }
    }
    assert_eq!(skipped, [3, 5]);
    let slug = |slug: &str| TenantHint::Slug { slug: slug.into(), via: "space_name" };
    let user = |id: &str| TenantHint::User { system: "ocis", id: id.into() };
    for ((line, pulled), (number, verb, actor, own_id, tenant)) in events.iter().zip([
        (1, "space_created", ADMIN, true, vec![slug("acme"), user(ADMIN)]),
        (2, "file_uploaded", ALICE, false, vec![slug("acme"), user(ALICE)]),
        (4, "file_moved", ALICE, false, vec![slug("Tenant-Acme Files"), user(ALICE)]),
        (6, "share_created", ALICE, false, vec![slug("Alice Example"), user(ALICE)]),
        (7, "group_member_added", ADMIN, true, vec![user(ADMIN)]),
        (8, "user_updated", ADMIN, false, vec![user(ADMIN)]),
    ]) {
        let event = &pulled.event;
        assert_eq!(*line, number);
        assert_eq!(event.action, format!("ocis.{verb}"));
        assert_eq!(event.actor.id.as_deref(), Some(actor));
        assert_eq!(note(pulled, "actorSource"), "executing_user");
        assert_eq!(pulled.tenant, tenant);
        let id = event.external_id.as_deref().unwrap();
        assert_eq!(id.starts_with("1f0a6c52-3f7e-4d0b-9b57-2f6f5a0c1d0"), own_id, "{id}");
        assert_eq!(id.starts_with("ocis1:"), !own_id, "{id}");
    }
    assert_eq!(events.len(), 6);
    assert_eq!(events[0].1.event.resource_name.as_deref(), Some("acme"));
    assert_eq!(events[2].1.event.resource_name.as_deref(), Some("Reports/q1-final.txt"));
    assert_eq!(
        events[4].1.event.resource_id.as_deref(),
        Some("72f4bbc1-5f11-4e73-8002-bf8d6f53c81b")
    );
    assert_eq!(events[5].1.event.resource_id.as_deref(), Some(BOB));
    assert_eq!(note(&events[5].1, "timeSource"), "previous_line");
    assert_eq!(events[5].1.event.at.unwrap().to_string(), "2026-11-22T00:00:06.000Z");
}

#[test]
fn every_event_type_in_every_spelling() {
    let mut mutations = BTreeSet::new();
    let mut rows = 0;
    for row in EVENT_TYPES.lines().skip(1) {
        rows += 1;
        let columns: Vec<_> = row.split('\t').collect();
        let (go, actions, keys, verb) = (columns[0], columns[1], columns[2], columns[7]);
        let name = go.strip_prefix("events.").unwrap();
        let expected = match name {
            "FileDownloaded" => Class::Read,
            "LinkAccessed" => Class::LinkRead,
            "LinkAccessFailed" => Class::Optional(Optional::LinkAccessFailed),
            "ReceivedShareUpdated" => Class::Optional(Optional::ShareAccepted),
            "ScienceMeshInviteTokenGenerated" => Class::Optional(Optional::OcmInvite),
            "BackchannelLogout" => Class::Unknown,
            _ => {
                let verb = verb.strip_prefix("ocis.").unwrap().split(' ').next().unwrap();
                let (verb, ..) = MUTATIONS.iter().find(|(known, ..)| *known == verb).unwrap();
                mutations.insert(*verb);
                Class::Mutation(verb)
            }
        };
        let snake = name.chars().enumerate().fold(String::new(), |mut snake, (i, c)| {
            if c.is_ascii_uppercase() && i > 0 {
                snake.push('_');
            }
            snake.push(c.to_ascii_lowercase());
            snake
        });
        for spelling in [
            name,
            go,
            &snake,
            &snake.replace('_', "-"),
            &snake.replace('_', "."),
            &name.to_lowercase(),
        ] {
            assert_eq!(classify_type(spelling, ""), expected, "{spelling}");
        }

        // The values of `Action` for the row; an empty one is distinguished by its keys.
        let is_link = name.starts_with("Link");
        let share_types: &[&str] = match name {
            "ShareRemoved" => &["", "user", "group"],
            "ShareCreated" | "ShareUpdated" | "ReceivedShareUpdated" => &["user", "group"],
            _ if is_link => &["link"],
            _ => &[""],
        };
        if name == "BackchannelLogout" {
            continue;
        }
        let texts = actions
            .split(['|', ';', ','])
            .map(|action| action.trim().trim_start_matches("newer: + "));
        for action in texts {
            let action = action.split(' ').next().unwrap();
            let action = match action {
                "\"\"" => "",
                "generic" => "share_updated",
                action => action,
            };
            for share_type in share_types {
                let context = ActionContext {
                    share_type,
                    has_share_owner: keys.contains("ShareOwner"),
                    has_share_with: keys.contains("ShareWith"),
                    success: match name {
                        "LinkAccessed" => Some(true),
                        "LinkAccessFailed" => Some(false),
                        _ => None,
                    },
                };
                let expected = match action {
                    "" | "share_declined" if name == "ReceivedShareUpdated" => {
                        Class::Optional(Optional::ShareDeclined)
                    }
                    _ => expected,
                };
                let kebab = action.replace('_', "-");
                for spelling in [action, &kebab, &action.replace('_', ".")] {
                    assert_eq!(classify_action(spelling, context), expected, "{name}: {spelling}");
                }
            }
        }
    }
    assert_eq!((rows, mutations.len()), (34, 28));
}

#[test]
fn what_is_on_no_list_is_quarantined() {
    for (line, reason) in [
        (json!({"Action": "tag_added"}), "unknown_type"),
        (json!({"Action": ""}), "unknown_type"),
        (json!({"Action": null}), "unknown_type"),
        (json!({"Action": "file_shared", "ShareType": "federated"}), "unknown_type"),
        (json!({"Action": "shared"}), "unknown_type"),
        (json!({"type": "FileTouched"}), "unknown_type"),
        (json!({"type": "BackchannelLogout"}), "unknown_type"),
        (json!({"type": ["FileUploaded"]}), "unknown_type"),
        (json!({"level": "info", "message": "started"}), "unknown_shape"),
        (json!(["Action"]), "not_json"),
        (json!("text"), "not_json"),
    ] {
        let item = quarantined(line.to_string().as_bytes());
        assert_eq!(item.reason, reason, "{line}");
        assert_eq!(item.raw, line.to_string().as_bytes());
        assert_eq!((item.source.as_str(), item.at), ("ocis", now()));
        assert!(item.key.starts_with("line:ocis1:") && item.key.len() == 51);
    }
    assert!(quarantined(br#"{"Action":"tag_added"}"#).detail.contains("\"tag_added\""));
    let odd = quarantined(r#"{"Action":"alice@example.org did it"}"#.as_bytes());
    assert!(!odd.detail.contains("alice"), "{}", odd.detail);
    assert_eq!(quarantined(b"{\"Action\":").reason, "not_json");
    let nul = quarantined(b"\0\0\0\0");
    assert_eq!((nul.reason.as_str(), nul.raw.len()), ("nul_bytes", 0));
    assert!(decode_with(b" \r", ALL).is_empty());
    let long = format!(r#"{{"Action":"x","y":"{}"}}"#, "é".repeat(50_000));
    assert!(quarantined(long.as_bytes()).raw.len() <= 64 << 10);
}

#[test]
fn broken_surroundings_do_not_hide_an_event() {
    let line = FIRST_GENERATION.lines().next().unwrap();
    let crlf = decode_with(format!("{line}\r").as_bytes(), ALL);
    assert!(matches!(crlf.as_slice(), [DecodedLine::Event(_)]));
    let nul = decode_with(format!("\0\0{line}").as_bytes(), ALL);
    let [DecodedLine::Quarantine(block), DecodedLine::Event(event)] = nul.as_slice() else {
        panic!("{nul:?}")
    };
    assert_eq!(block.reason, "nul_bytes");
    assert_eq!(event.event.action, "ocis.user_created");
    // Only the newline between two lines was lost: two events with different ids.
    let both = decode_with(format!("{line}{line}").as_bytes(), ALL);
    let [DecodedLine::Event(a), DecodedLine::Event(b)] = both.as_slice() else {
        panic!("{both:?}")
    };
    assert_ne!(a.event.external_id, b.event.external_id);
    let marked = decode_with(format!("\u{feff}{line}").as_bytes(), ALL);
    assert!(matches!(marked.as_slice(), [DecodedLine::Event(_)]));
    let mut bad = line.as_bytes().to_vec();
    let at = line.find("created").unwrap();
    bad[at] = 0xff;
    let [DecodedLine::Event(bad)] = &decode_with(&bad, ALL)[..] else { panic!() };
    assert!(said(bad)["Message"].as_str().unwrap().contains('\u{fffd}'));
    assert_eq!(bad.event.actor.id.as_deref(), Some(ADMIN));
}

#[test]
fn an_unterminated_end_is_an_event_if_only_its_newline_is_missing() {
    let generation = Digest::default();
    let context = LineContext { source: "ocis", options: ALL, generation: &generation, now: now() };
    let line = FIRST_GENERATION.lines().next().unwrap();
    let read = |rest: &str| {
        let mut decoded = Vec::new();
        decode_unterminated(context, 0, rest.as_bytes(), &mut None, |d| decoded.push(d));
        decoded
    };
    assert!(matches!(&read(line)[..], [DecodedLine::Event(_)]));
    let half = read(&line[..100]);
    let [DecodedLine::Quarantine(item)] = half.as_slice() else { panic!("{half:?}") };
    assert_eq!(
        (item.reason.as_str(), item.raw.as_slice()),
        ("partial_line", &line.as_bytes()[..100])
    );
}

#[test]
fn actors() {
    let actor = |line: Value| {
        let pulled = event(&line.to_string());
        let source = note(&pulled, "actorSource").as_str().unwrap().to_owned();
        (pulled.event.actor.id, source)
    };
    let is = |id: Option<&str>, source: &str| (id.map(str::to_owned), source.to_owned());
    let upload = |message: &str| json!({"Action": "file_create", "User": "u", "Owner": "o", "Message": message});
    assert_eq!(actor(upload("user 'a' created file 'x'")), is(Some("a"), "message"));
    for message in ["", "user '' created", "by user 'a' ", "user 'a'", "user 'a'x", "User 'a' x"] {
        assert_eq!(actor(upload(message)), is(None, "none"), "{message}");
    }
    let share = |action: &str, share_type: &str, user: &str, message: &str| {
        json!({"Action": action, "ShareType": share_type, "User": user, "Message": message,
               "ShareWith": "g", "Owner": "o"})
    };
    assert_eq!(actor(share("file_unshared", "link", "u", "")), is(Some("u"), "user"));
    assert_eq!(actor(share("file_unshared", "", "", "")), is(None, "none"));
    assert_eq!(actor(share("share_declined", "user", "u", "")), is(Some("u"), "user"));
    // In these events, both fields contain the group.
    for action in ["share_accepted", "share_declined", ""] {
        let line = share(action, "group", "g", "user 'g' accepted share 's'");
        assert_eq!(actor(line.clone()), is(None, "group_share"), "{action}");
        let pulled = event(&line.to_string());
        assert_eq!(pulled.event.actor.kind, ActorType::System);
        assert_eq!(note(&pulled, "groupId"), "g");
    }
    let failed = json!({"Action": "public_link_accessed", "Success": false, "User": "u",
                        "Message": "link with token 'abcdefghijklmno' was accessed. Success: false"});
    assert_eq!(actor(failed.clone()), is(None, "none"));
    assert_eq!(event(&failed.to_string()).event.outcome, Outcome::Failure);
    let stranger = json!({"type": "FileUploaded", "executingUser": null, "User": "u"});
    assert_eq!(actor(stranger), is(None, "none"));
}

#[test]
fn no_token_gets_out() {
    let tokens = ["vVWhgJGKzZbATyf", "TOKENabcdefghij", "inviteINVITE1234"];
    let lines = [
        json!({"Action": "file_shared", "ShareType": "link", "ShareToken": tokens[0]}),
        json!({"Action": "", "ShareType": "link", "ShareOwner": "o", "ShareToken": tokens[0]}),
        json!({"Action": "public_link_accessed", "Success": false, "ShareToken": tokens[1],
               "Message": format!("link with token '{}' was accessed. Success: false", tokens[1])}),
        json!({"Action": "public_link_accessed", "Success": false,
               "Message": format!("link with token '{}' was accessed. Success: false", tokens[1])}),
        json!({"Action": "science_mesh_invite_token_generated", "Token": tokens[2],
               "InviteLink": format!("https://x.example/invite?token={}&providerDomain=x", tokens[2]),
               "Message": format!("user 'u' generated invite {} at \
                                  https://x.example/invite?token={}&providerDomain=x", tokens[2], tokens[2])}),
        json!({"Action": "some_new_link_thing", "ShareToken": tokens[0],
               "Message": format!("link {} changed", tokens[0])}),
        json!({"type": "LinkCreated", "token": tokens[0], "share": {"token": tokens[1]}}),
        json!({"no": "shape", "ShareToken": tokens[0]}),
    ];
    let mut broken: Vec<Vec<u8>> = Vec::new();
    for line in &lines {
        // A line truncated by a full disk, and a line after a crash.
        let text = line.to_string();
        broken.push(text.clone().into_bytes());
        broken.push(text[..text.len() - 1].into());
        broken.push(format!("{text}{{\"RemoteAddr\":").into_bytes());
        broken.push(format!("\0\0{text}\0").into_bytes());
        broken.push(format!("x{text}").into_bytes());
    }
    for line in broken {
        let decoded = decode_with(&line, ALL);
        assert!(!decoded.is_empty());
        let out = format!("{decoded:?}");
        for decoded in decoded {
            let raw = match decoded {
                DecodedLine::Quarantine(item) => String::from_utf8(item.raw).unwrap(),
                DecodedLine::Event(event) => {
                    event.event.metadata.into_metadata().as_str().to_owned()
                }
                DecodedLine::Skipped => continue,
            };
            for token in tokens {
                assert!(!raw.contains(token) && !out.contains(token), "{raw}");
            }
        }
    }
    let all: Vec<_> = decode_file(FIRST_GENERATION, ALL);
    assert!(!format!("{all:?}").contains(LINK_TOKEN));
    // Text that is not a secret stays exactly the same.
    let kept = event(
        r#"{"Action":"file_shared","ShareType":"link","ShareToken":"abcdefghi","N":12345678901234567890123,"F":1.50}"#,
    );
    assert_eq!(
        kept.event.metadata.source().unwrap(),
        r#"{"Action":"file_shared","ShareType":"link","ShareToken":"[redacted]","N":12345678901234567890123,"F":1.50}"#
    );
    assert_eq!(note(&kept, "redacted"), &json!(true));
}

#[test]
fn no_token_of_an_invitation_gets_out_wherever_the_line_breaks() {
    let line = r#"{"RemoteAddr":"","User":"u","URL":"","Method":"","UserAgent":"","Time":"2026-11-21T10:00:00Z","App":"admin_audit","Message":"user 'u' generated a ScienceMesh invite with token 'inviteINVITE1234'","Action":"science_mesh_invite_token_generated","CLI":false,"Level":1,"RecipientMail":"r@x.example","Token":"inviteINVITE1234","Description":"d","Expiration":1,"InviteLink":"https://x.example/invite?token=inviteINVITE1234\u0026providerDomain=x"}"#;
    let whole = event(line);
    assert_eq!(
        said(&whole)["Message"],
        "user 'u' generated a ScienceMesh invite with token '[redacted]'"
    );
    let next = json!({"Action": "group_created", "GroupID": "g"}).to_string();
    let next = next.replacen('{', r#"{"RemoteAddr":"","#, 1);
    for cut in 0..=line.len() {
        for broken in [line[..cut].to_owned(), format!("{}{next}", &line[..cut])] {
            for decoded in decode_with(broken.as_bytes(), ALL) {
                let out = match decoded {
                    DecodedLine::Quarantine(item) => String::from_utf8(item.raw).unwrap(),
                    DecodedLine::Event(event) => {
                        event.event.metadata.into_metadata().as_str().to_owned()
                    }
                    DecodedLine::Skipped => continue,
                };
                // The beginning of a secret does not appear either.
                assert!(!out.contains("'inv") && !out.contains("=inv"), "{out}");
                assert!(!out.contains("inviteI") && !out.contains("\"invi"), "{out}");
            }
        }
    }
}

#[test]
fn odd_lines_full_of_secrets_take_no_time() {
    const LINE_BYTES: usize = 1 << 20;
    let texts = |each: &dyn Fn(usize) -> String| -> String {
        (0..LINE_BYTES / each(0).len()).map(each).collect()
    };
    let members = texts(&|n| format!(r#""token":"secret{n:06}","#));
    let flood = format!(r#"{{"Action":"x",{members}"Message":"about secret000001"}}"#);
    let lines = [
        // The text contains one key nowhere and the other everywhere.
        texts(&|_| "token ".into()),
        texts(&|_| "invitelink ".into()),
        texts(&|n| format!(r#""token":"secret{n:06}" secret{n:06} "#)),
        flood.clone(),
        flood[..flood.len() - 1].to_owned(),
        format!(r#"{{"Action":"x","a":[{}0]}}"#, texts(&|_| r#"{"token":"secretive"},"#.into())),
    ];
    for line in &lines {
        let started = TokioRuntime.now();
        let item = quarantined(line.as_bytes());
        let took = TokioRuntime.now().saturating_since(started);
        // Searching the whole line for each secret would take minutes.
        assert!(took < Duration::from_secs(20), "{took:?}: {}", &line[..40]);
        let raw = String::from_utf8(item.raw).unwrap();
        assert!(!raw.contains("secret0") && !raw.contains("secretive"));
    }
}

#[test]
fn ids_and_names_stay_within_their_bounds() {
    let path = "ä".repeat(1_000);
    let line = json!({"Action": "file_create", "Path": format!("./{path}"), "FileID": "f".repeat(2_000),
                      "Message": format!("user '{}' created", "u".repeat(600))});
    let event = event(&line.to_string()).event;
    assert_eq!(event.resource_name.as_deref().map(str::len), Some(1_024));
    assert_eq!(event.resource_id.as_deref().map(str::len), Some(512));
    assert_eq!(event.actor.id.as_deref().map(str::len), Some(512));
    assert!(event.metadata.annotation("cut").unwrap().get("resourceName").is_some());

    for id in ["i".repeat(513), "a\0b".to_owned()] {
        let line = json!({"type": "FileUploaded", "id": id}).to_string();
        let pulled = self::event(&line);
        assert!(pulled.event.external_id.as_deref().unwrap().starts_with("ocis1:"));
        assert_eq!(note(&pulled, "rawId"), &json!(id));
    }
    for id in [json!(""), json!(null), json!(7)] {
        let pulled = self::event(&json!({"type": "FileUploaded", "id": id}).to_string());
        assert!(pulled.event.external_id.as_deref().unwrap().starts_with("ocis1:"));
    }
}

#[test]
fn received_shares_of_the_event_shape() {
    for (state, expected) in [
        ("", Optional::ShareAccepted),
        ("SHARE_STATE_ACCEPTED", Optional::ShareAccepted),
        ("SHARE_STATE_REJECTED", Optional::ShareDeclined),
        ("declined", Optional::ShareDeclined),
    ] {
        assert_eq!(classify_type("ReceivedShareUpdated", state), Class::Optional(expected));
    }
}

#[test]
fn times_are_read_and_doubted_as_of_all_sources() {
    let line = |time: &str| event(&json!({"Action": "file_create", "Time": time}).to_string());
    let read = line("2026-11-21T01:00:03,5+0100");
    assert_eq!(read.event.at, Timestamp::parse("2026-11-21T00:00:03.500Z"));
    assert_eq!(
        (note(&read, "timeSource"), note(&read, "timeProblem")),
        (&json!("event"), &Value::Null)
    );
    for (time, problem) in [
        ("9999-12-31T23:59:59Z", "ahead"),
        ("0001-01-01T00:00:00Z", "too_old"),
        ("yesterday", "unreadable"),
    ] {
        let doubted = line(time);
        assert_eq!(doubted.event.at, Some(now()), "{time}");
        assert_eq!(note(&doubted, "timeSource"), "reading");
        assert_eq!(
            (note(&doubted, "timeProblem"), note(&doubted, "rawAt")),
            (&json!(problem), &json!(time))
        );
    }
}

/// In 7.1.0-rc.1, if a folder is shared with a user, the paths in the user's lines are relative to
/// that folder; the event notes this.
#[test]
fn a_name_relative_to_a_folder_is_marked() {
    let line = |action: &str, file: &str, path: &str| {
        let line = json!({"RemoteAddr": "", "User": "", "Time": "2026-11-30T18:07:00Z",
                          "Message": "user 'bob' acted", "Action": action, "Path": path,
                          "Owner": "", "FileID": file});
        event(&line.to_string())
    };
    let relative = line("file_delete", "st$alice!folder/by-bob.txt", "./by-bob.txt");
    assert_eq!(relative.event.resource_name.as_deref(), Some("by-bob.txt"));
    assert_eq!(note(&relative, "resourceNameIn"), "folder");
    for (file, path) in [
        ("st$alice!alice/Shared/by-bob.txt", "./Shared/by-bob.txt"),
        ("st$alice!node", ""),
        ("st$alice!node", "."),
        ("node", ""),
    ] {
        let absolute = line("file_create", file, path);
        assert_eq!(note(&absolute, "resourceNameIn"), &Value::Null, "{file}");
    }
}

#[test]
fn secrets_by_name_and_in_addresses_go_as_of_all_sources() {
    let line = json!({
        "Action": "file_create", "Time": "2026-11-21T00:00:03Z", "Path": "./what?code=5",
        "URL": "https://u:S3@x/cb?code=S3", "Password": "S3",
    });
    let pulled = event(&line.to_string());
    assert!(!said(&pulled).to_string().contains("S3"), "{pulled:?}");
    assert_eq!(note(&pulled, "redacted"), true);
    assert_eq!(
        pulled.event.resource_name.as_deref(),
        Some("what?code=5"),
        "a name, not an address"
    );
    let odd = quarantined(br#"{"x":1,"url":"/?code=S3"}"#);
    assert!(!String::from_utf8_lossy(&odd.raw).contains("S3"));
}

#[test]
fn what_is_done_through_a_link_says_so_where_the_line_shows_it() {
    let link = "7993447f-687f-490d-875c-ac95e89a62a4";
    let line = |file: &str| {
        let line = json!({"RemoteAddr": "", "Time": "2026-11-30T18:07:00Z",
                          "Message": "user 'alice' created folder 'x'",
                          "Action": "container_create", "Path": "./x", "FileID": file});
        event(&line.to_string())
    };
    assert_eq!(note(&line(&format!("{link}$alice!token/x")), "actorBy"), "link");
    assert_eq!(note(&line("st$alice!alice/x"), "actorBy"), &Value::Null);
    let failed = json!({"RemoteAddr": "", "Time": "2026-11-30T18:07:00Z", "Success": false,
                        "Message": "link with token 'abcdefghij' was accessed. Success: false",
                        "Action": "public_link_accessed", "ShareToken": "abcdefghij"});
    let failed = event(&failed.to_string());
    assert_eq!(
        (note(&failed, "actorBy"), failed.event.actor.kind),
        (&json!("link"), ActorType::System)
    );
}
