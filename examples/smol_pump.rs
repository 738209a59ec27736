//! Another executor: a pump on smol, without Tokio.
//!
//! The libraries access time, sleep, blocking work and randomness through `Runtime`: four methods
//! let any executor drive them. (Some parts require Tokio and say so: the SQL stores, and the HTTP
//! client of the Authentik source.)
//!
//! `cargo run -p dezky-examples --example smol_pump`

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dezky_core::rt::BlockingWork;
use dezky_core::store::MemoryAuditStore;
use dezky_core::{AuditStore, AuditStoreExt, Runtime, Timestamp};
use dezky_ingest::ocis::{OcisConfig, OcisTail};
use dezky_ingest::{Intake, Pump, PumpConfig};
use futures_util::future::BoxFuture;

struct SmolRuntime;

impl Runtime for SmolRuntime {
    #[expect(clippy::disallowed_methods, reason = "a runtime is where the clock is read")]
    fn now(&self) -> Timestamp {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_millis_clamped(since_1970.as_millis().try_into().unwrap_or(i64::MAX))
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            smol::Timer::after(duration).await;
        })
    }

    fn unblock(&self, work: BlockingWork) -> BoxFuture<'static, Box<dyn Any + Send>> {
        Box::pin(smol::unblock(work))
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        getrandom::fill(bytes).expect("the operating system's random generator answers");
    }
}

/// A line as written by oCIS 7 when a user uploads a file.
const UPLOADED: &str = r#"{"RemoteAddr":"","User":"u-1","URL":"","Method":"","UserAgent":"","Time":"2026-09-01T08:00:00Z","App":"admin_audit","Message":"File \"f-1\" was uploaded","Action":"file_create","CLI":false,"Level":1,"Path":"/notes.md","Owner":"","FileID":"f-1"}"#;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("audit.log");
    std::fs::write(&path, format!("{UPLOADED}\n"))?;

    let runtime: Arc<dyn Runtime> = Arc::new(SmolRuntime);
    let store: Arc<dyn AuditStore> = Arc::new(MemoryAuditStore::open(runtime.clone()));
    let tail = OcisTail::new(OcisConfig::new(&path), runtime.clone())?;
    let intake = Intake::new(store.clone(), runtime.clone());
    let mut pump = Pump::new(Box::new(tail), intake, PumpConfig::default());

    smol::block_on(async {
        // The pump is a value: `run` ends when the given future resolves.
        let (stop, stopped) = smol::channel::bounded::<()>(1);
        let pumping = smol::spawn(async move {
            pump.run(async move {
                let _ = stopped.recv().await;
            })
            .await;
        });
        let event = store.tail(runtime, 0).next().await?;
        println!("seq {}: {}", event.seq, event.event.action);
        assert_eq!(event.event.action, "ocis.file_uploaded");
        stop.send(()).await?;
        pumping.await;
        Ok(())
    })
}
