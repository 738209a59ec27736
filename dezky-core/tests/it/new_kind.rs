//! A new type of document costs its declaration, on every engine.

use dezky_core::documents::{Document, Documents, Key, Kind, Owned, Put, Set};
use dezky_core::rt::TokioRuntime;
use dezky_core::{Actor, ErrorKind, NewEvent, Result};
use serde_json::json;

use crate::documents::Place;
use crate::servers::{Engine, tokio};

/// A sink for alerts: its name is unique, and no two sinks send to one address.
static SINK: Kind = Kind {
    name: &["name"],
    owned: Some(Owned {
        field: "addresses",
        table: "dezky_sink_addresses",
        columns: &["address"],
        owner: "sink_id",
    }),
    ..Kind::new("sink", "dezky_sinks")
};
static SINKS: Set = Set::new("sinks", "dezky_sinks_state", &[&SINK]);

async fn create(sinks: &Documents, id: &str, name: &str, address: &str) -> Result<()> {
    let sink = Document::new(id, 1, &json!({"name": name, "address": address}))?;
    let created = NewEvent::new("sink.created", Actor::user("u-7"));
    let mut tx = sinks.begin().await?;
    tx.lock(&SINK, [id]).await?;
    tx.put(&SINK, Put::New, sink.named(name).owning([address.to_owned()]))?;
    tx.stage([created.seal(&TokioRuntime)]);
    tx.commit().await
}

#[test]
fn a_new_document_type_runs_on_every_engine() {
    tokio().block_on(async {
        for engine in Engine::ALL {
            let place = Place::new(engine).await;
            let (database, log) = place.open().await;
            let sinks = Documents::open(&SINKS, database).await.unwrap();
            create(&sinks, "s-1", "pager", "pager@a.example").await.unwrap();
            for (name, address) in [("pager", "b@a.example"), ("mail", "pager@a.example")] {
                let refused = create(&sinks, "s-2", name, address).await.unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::AlreadyExists, "{engine:?}: {name}");
            }
            for key in [Key::Name("pager"), Key::Owned("pager@a.example")] {
                assert_eq!(sinks.get(&SINK, key).await.unwrap().unwrap().id, "s-1", "{engine:?}");
            }
            assert_eq!(log.relay(100).await.unwrap().appended, 1, "{engine:?}");
        }
    });
}
