use std::sync::atomic::{AtomicUsize, Ordering};

use dezky_core::Runtime;
use dezky_core::testkit::{BoxFuture, Reopen};
use dezky_flags::testkit::{FlagStoreHarness, Opened};

use super::*;

/// A folder, and the number of stores created in it.
struct Files(tempfile::TempDir, AtomicUsize);

#[async_trait]
impl FlagStoreHarness for Files {
    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(TokioRuntime)
    }

    fn block_on(&self, case: BoxFuture<'_, ()>) {
        tokio::runtime::Runtime::new().expect("starts").block_on(case);
    }

    async fn open(&self, _which: Reopen) -> Opened {
        let number = self.1.fetch_add(1, Ordering::Relaxed);
        let (store, log) = open(self.0.path().join(format!("{number}.json"))).expect("opens");
        Opened { store, log }
    }
}

dezky_flags::flag_store_conformance!(Files(
    tempfile::tempdir().expect("a folder"),
    AtomicUsize::new(0)
));

/// A mistake in a manual edit of the file must not cost the flags.
#[test]
fn a_file_that_cannot_be_read_is_refused_and_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("flags.json");
    std::fs::write(&path, "{\"revision\": 1,").expect("writes");
    let Err(error) = open(path.clone()) else { panic!("is refused") };
    assert_eq!(error.code(), "store_corrupt");
    assert_eq!(std::fs::read(&path).expect("reads"), b"{\"revision\": 1,");
}

/// A change that can't be saved has no event.
#[test]
fn a_change_that_cannot_be_written_leaves_no_event() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = Files(tempfile::tempdir().expect("a folder"), AtomicUsize::new(0));
    files.block_on(Box::pin(async {
        let (store, log) = open(folder.path().join("flags.json")).expect("opens");
        std::fs::create_dir(folder.path().join("flags.new")).expect("stands in the way");
        let flags = Flags::new(
            store.clone(),
            Arc::new(AuditLog::new(log.clone(), Arc::new(TokioRuntime))),
            Arc::new(TokioRuntime),
        );
        let edit = Edit::by(Actor::system());
        flags.seed(&seeded_flags(), &edit).await.expect_err("can't be written");
        assert_eq!(store.revision().await.expect("reads"), 0);
        assert_eq!(log.relay(100).await.expect("relays").appended, 0);
    }));
}
