//! A synthetic but faithful database of the previous platform: Mongoose's collections with
//! `ObjectId`s, dates, null hashes and the sources' payloads.

use dezky_ingest::testkit::authentik_event;
use mongodb::Database;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Bson, DateTime, Document, doc};
use serde_json::{Value, json};

/// An event of Stalwart whose `id` is shared by all events of its second and type.
pub(crate) fn stalwart_event(name: &str) -> Value {
    json!({
        "id": "178696080012035", "createdAt": "2026-08-17T10:00:00Z", "type": "auth.failed",
        "data": {"accountName": name, "remoteIp": "203.0.113.7", "contents": "a1 LOGIN x S3CRET"},
    })
}

/// An event whose `id` identifies it.
pub(crate) fn old_stalwart_event() -> Value {
    json!({
        "id": "184467440737095516", "createdAt": "2026-08-17T10:00:01Z", "type": "account.created",
        "data": {"account": "bob@acme.example"},
    })
}

/// The events of Authentik's list.
pub(crate) fn authentik_events() -> Vec<Value> {
    (1..=5).map(|n| authentik_event(n, &format!("2026-08-17T09:00:0{n}Z"))).collect()
}

pub(crate) fn id(kind: u8, number: u32) -> ObjectId {
    // The seconds of 2026-08-17T08:00:00Z, then a part that is unique to the document.
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&1_786_953_600_u32.to_be_bytes());
    bytes[4] = kind;
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    ObjectId::from_bytes(bytes)
}

fn at(seconds: i64) -> DateTime {
    DateTime::from_millis((1_786_953_600 + seconds) * 1_000)
}

/// JSON as Mongoose stores it.
fn bson(value: &Value) -> Bson {
    match value {
        Value::Null => Bson::Null,
        Value::Bool(value) => Bson::Boolean(*value),
        Value::Number(number) => match number.as_i64().map(i32::try_from) {
            Some(Ok(number)) => Bson::Int32(number),
            _ => Bson::Double(number.as_f64().unwrap()),
        },
        Value::String(text) => Bson::String(text.clone()),
        Value::Array(values) => Bson::Array(values.iter().map(bson).collect()),
        Value::Object(members) => {
            Bson::Document(members.iter().map(|(k, v)| (k.clone(), bson(v))).collect())
        }
    }
}

fn event(number: u32, seconds: i64, more: Document) -> Document {
    let mut document = doc! {
        "_id": id(5, number), "at": at(seconds), "actorType": "user", "actorId": Bson::Null,
        "actorEmail": Bson::Null, "actorIp": Bson::Null, "outcome": "success",
        "resourceType": Bson::Null, "resourceId": Bson::Null, "resourceName": Bson::Null,
        "tenantSlug": Bson::Null, "partnerSlug": Bson::Null, "source": "platform-api",
        "metadata": {}, "prevHash": Bson::Null, "hash": Bson::Null,
        "createdAt": at(seconds + 1), "updatedAt": at(seconds + 1), "__v": 0,
    };
    document.extend(more);
    document
}

fn said(source: &str, id: &str, action: &str, payload: &Value) -> Document {
    doc! { "source": source, "externalId": id, "action": action, "metadata": bson(payload) }
}

/// The number of documents in the events' collection; one of them is not a valid event.
pub(crate) const EVENTS: u64 = 48;

fn events() -> Vec<Document> {
    let mut all: Vec<_> = (0..32)
        .map(|n| {
            let action = ["tenant.created", "tenant.suspended", "flag.updated"][n as usize % 3];
            // Not in the order of their ids.
            event(
                n,
                i64::from(n * 37 % 32),
                doc! {
                    "action": action, "actorType": "operator", "actorId": "op-1",
                    "actorEmail": "Ada@dezky.example", "actorIp": "::ffff:203.0.113.9",
                    "tenantSlug": "acme", "resourceType": "tenant", "resourceId": id(2, 1),
                    "metadata": {"n": n, "apiKey": "S3CRET"},
                },
            )
        })
        .collect();
    for (n, payload) in (100..).zip(authentik_events()) {
        let pk = payload["pk"].as_str().unwrap();
        all.push(event(
            n,
            3_600 + i64::from(n),
            said("authentik", pk, "authentik.login", &payload),
        ));
    }
    for (n, name) in (200..).zip(["alice@acme.example", "carol@acme.example"]) {
        // The previous platform's unique index admitted each id once.
        let id = format!("17869608001203{n}");
        let payload = stalwart_event(name);
        all.push(event(n, 7_200, said("stalwart", &id, "stalwart.auth_failed", &payload)));
    }
    let old = old_stalwart_event();
    all.push(event(
        210,
        7_201,
        said("stalwart", "184467440737095516", "stalwart.account_created", &old),
    ));
    let part = json!({"accountName": "dave@acme.example"});
    all.push(event(
        211,
        7_202,
        said("stalwart", "178696080212035", "stalwart.auth_success", &part),
    ));
    let genuine = json!({"Action": "file_create", "Path": "/a", "ShareToken": "S3CRET-S3CRET"});
    all.push(event(300, 8_000, said("ocis", "10469822:0", "ocis.file_uploaded", &genuine)));
    let shaped = json!({"type": "FileUploaded", "id": "line-1", "path": "/b"});
    all.push(event(301, 8_001, said("ocis", "10469822:200", "ocis.file_uploaded", &shaped)));
    // Malformed ones: normalised, with unknown fields, without a time.
    all.push(event(400, 9_000, doc! {"action": "Tenant Deleted!", "actorType": "robot"}));
    all.push(event(
        401,
        9_001,
        doc! {"action": "tenant.updated", "geo": {"city": "Aarhus", "token": "S3CRET"}},
    ));
    all.push(event(
        402,
        9_002,
        doc! {"action": "tenant.updated", "resourceName": "x".repeat(2_000)},
    ));
    let mut timeless = event(403, 0, doc! {"action": "user.deactivated"});
    for time in ["at", "createdAt", "updatedAt"] {
        timeless.remove(time);
    }
    all.push(timeless);
    all.push(event(404, 9_004, doc! {"action": Bson::Null, "metadata": {"password": "S3CRET"}}));
    all.reverse();
    all
}

/// Inserts all documents.
pub(crate) async fn fill(database: &Database) {
    let insert = async |name: &str, documents: Vec<Document>| {
        database.collection(name).insert_many(documents).await.unwrap();
    };
    insert(
        "partners",
        vec![doc! {
            "_id": id(1, 1), "slug": "resell", "name": "Resell", "domain": "Resell.example",
            "status": "active", "marginPct": 12.5, "contactInfo": {"name": "Eve", "fax": "1"},
            "billingInfo": {"company": "Resell ApS", "vatId": "DK1"},
            "createdAt": at(0), "updatedAt": at(1), "__v": 0,
        }],
    )
    .await;
    insert("tenants", vec![
        doc! {
            "_id": id(2, 1), "slug": "acme", "name": "Acme", "status": "active", "plan": "pro",
            "domains": ["Acme.example"], "partnerId": id(1, 1), "seats": 12,
            "billing": {"company": "Acme ApS", "email": "pay@acme.example"},
            "provisioningStatus": {"authentik": "ok", "stalwart": "ok", "ocis": "error"},
            "provisioningErrors": {"ocis": "no space left"},
            "createdAt": at(0), "updatedAt": at(1), "__v": 2,
        },
        doc! {"_id": id(2, 2), "slug": "old", "name": "Old", "status": "deleted", "plan": "basic",
              "domains": ["acme.example"], "createdAt": at(0), "updatedAt": at(9)},
        doc! {"_id": id(2, 3), "slug": "small", "name": "Small", "status": "pending",
              "plan": "basic", "domains": [], "createdAt": at(0), "updatedAt": at(0)},
    ]).await;
    insert("users", vec![doc! {
        "_id": id(3, 1), "issuer": "https://id.example/application/o/dezky/", "subject": "ada",
        "email": "ada@dezky.example", "name": "Ada", "tenantIds": [id(2, 1), id(2, 3)],
        "identities": [{"system": "ocis", "id": "4c510ada", "_id": id(9, 1)}], "platformAdmin": true,
        "status": "active", "lastLoginAt": at(100), "createdAt": at(0), "updatedAt": at(100),
    }]).await;
    insert("featureflags", vec![
        doc! {
            "_id": id(4, 1), "key": "chat_v2", "description": "Threads", "state": "rollout",
            "pct": 25, "scope": {"plans": ["pro"], "tenantSlugs": [], "partnerSlugs": [], "environments": []},
            "history": [
                {"at": at(5), "actor": "ada@dezky.example", "changes": [{"field": "pct", "from": 0, "to": 10}]},
                {"at": at(9), "actor": "ada@dezky.example", "changes": [{"field": "pct", "from": 10, "to": 25}], "note": "more"},
            ],
            "createdAt": at(0), "updatedAt": at(9), "__v": 1,
        },
        doc! {"_id": id(4, 2), "key": "legacy", "state": "off", "createdAt": at(0), "updatedAt": at(0)},
    ]).await;
    insert("auditevents", events()).await;
    insert("ingestcursors", vec![
        doc! {"_id": id(6, 1), "source": "authentik", "cursor": "2026-08-17T09:00:05.000Z", "updatedAt": at(0)},
        doc! {"_id": id(6, 2), "source": "ocis", "cursor": "10469822:400", "updatedAt": at(0)},
    ]).await;
    insert("sessions", vec![doc! {"_id": 1, "token": "S3CRET"}]).await;
}
