use clap::Args;
use dezky_core::AuditStore;
use dezky_core::copy::{
    CopyOptions, DocumentCounts, check_directory, check_log, compare_directories, compare_logs,
    copy_directory, copy_log, relay_all,
};
use dezky_core::store::Head;
use dezky_core::verify::{ExpectedHead, verify};
use dezky_flags::store::{FlagTable, check_flags, copy_flags};
use serde_json::json;

use super::progress::Progress;
use super::{Signals, last_of, print};
use crate::config::{FROM_VARIABLE, Settings, StoreConfig, StoreUrl, TO_VARIABLE, is_same_file};
use crate::failure::Failure;
use crate::platform::Platform;
use crate::stores::Access;

/// How often the source is looked at again before the copy is given up: on a platform
/// that goes on changing, it would never be equal.
const MAX_ROUNDS: usize = 5;

/// `copy`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The store to copy
    #[arg(long, value_name = "URL", env = FROM_VARIABLE, hide_env_values = true)]
    from: String,
    /// Where to: an empty store, or one that an earlier run began
    #[arg(long, value_name = "URL", env = TO_VARIABLE, hide_env_values = true)]
    to: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// `copy`: exit status 0 only if both ends hold the same in the end.
pub(crate) async fn run(settings: &Settings, options: Options) -> Result<(), Failure> {
    let Options { from, to, json } = options;
    let (from, to) = (settings.store_at("--from", &from)?, settings.store_at("--to", &to)?);
    if is_same(&from.url, &to.url) {
        return Err(Failure::usage("--to: is the store of --from: name another one"));
    }
    settings.check_other_store("--to", &to.url)?;
    // Nothing is made at the source: a mistyped name must not leave an empty store.
    let source = open(&from, Access::Use, "--from").await?;
    let target = match open(&to, Access::Migrate, "--to").await {
        Ok(target) => target,
        Err(failure) => {
            source.close().await;
            return Err(failure);
        }
    };
    // Not before: a server that does not answer is waited for, and nothing is lost by an
    // end meanwhile.
    let mut signals = Signals::listen()?;
    let mut copy = Copy {
        from: &source,
        to: &target,
        progress: Progress::new(json),
        rows: 0,
        documents: DocumentCounts::default(),
    };
    let done = tokio::select! {
        done = copy.run() => done,
        () = signals.next() => Err(Failure::no(
            "stopped: what was copied stays, and the same command goes on from there",
        )),
    };
    let report = done.map(|copied| (copy.rows, copied));
    signals.end_at_once_on_the_next();
    source.close().await;
    target.close().await;
    let (rows, copied) = report?;
    copied.print(rows, json)
}

/// Opens one of the ends.
pub(crate) async fn open(
    store: &StoreConfig,
    access: Access,
    option: &str,
) -> Result<Platform, Failure> {
    let opened = Platform::open(store, access).await;
    opened.map_err(|failure| failure.context(option))
}

/// Whether two URLs are the same store, as far as that can be told from them. (A store
/// that is copied onto itself is equal already.)
fn is_same(from: &StoreUrl, to: &StoreUrl) -> bool {
    match (from, to) {
        (StoreUrl::Sqlite(from), StoreUrl::Sqlite(to)) => is_same_file(from, to),
        _ => from == to,
    }
}

struct Copy<'p> {
    from: &'p Platform,
    to: &'p Platform,
    progress: Progress,
    /// How many rows were brought over.
    rows: u64,
    documents: DocumentCounts,
}

/// What both ends hold.
struct Copied {
    head: Head,
    documents: DocumentCounts,
    flags: FlagTable,
}

impl Copy<'_> {
    async fn run(&mut self) -> Result<Copied, Failure> {
        self.check()
            .await
            .map_err(|refused| Failure::no(format!("{refused} (nothing was changed)")))?;
        let mut difference = String::new();
        for _ in 0..MAX_ROUNDS {
            let flags = self.bring_over().await?;
            if let Some(found) = self.difference(&flags).await? {
                difference = found;
                continue;
            }
            let head = self.verify_both().await?;
            // Verifying takes a while: whatever came meanwhile is copied too.
            match self.difference(&flags).await? {
                None => return Ok(Copied { head, documents: self.documents, flags }),
                Some(found) => difference = found,
            }
        }
        Err(Failure::no(format!(
            "one of the stores is being written to ({difference}): stop the servers on both, then give the same command again"
        )))
    }

    /// Refuses a target with something of its own, before anything is written there.
    async fn check(&self) -> Result<(), Failure> {
        let (from, to) = (self.from, self.to);
        relay_all(&*from.store).await.map_err(refused)?;
        check_log(&*from.store, &*to.store).await.map_err(refused)?;
        let (left, right) = (from.directory.store(), to.directory.store());
        check_directory(&**left, &**right).await.map_err(refused)?;
        check_flags(&**from.flags.store(), &**to.flags.store()).await.map_err(refused)
    }

    async fn bring_over(&mut self) -> Result<FlagTable, Failure> {
        let (from, to, progress) = (self.from, self.to, &mut self.progress);
        relay_all(&*from.store).await.map_err(refused)?;
        // Documents before the log: what the log speaks of is there.
        let (left, right) = (from.directory.store(), to.directory.store());
        progress.begin("documents", 0);
        self.documents = copy_directory(&**left, &**right, |done| progress.show(done, None))
            .await
            .map_err(refused)?;
        let flags = copy_flags(&**from.flags.store(), &**to.flags.store()).await;
        let flags = flags.map_err(refused)?;
        progress.begin("rows", to.store.state().await.map_err(refused)?.head.next_seq);
        let copied = copy_log(&*from.store, &*to.store, CopyOptions::default(), |copied| {
            progress.show(copied.done, Some(copied.total));
        });
        self.rows += copied.await.map_err(refused)?.rows;
        Ok(flags)
    }

    /// What differs between the ends, if anything does.
    async fn difference(&self, flags: &FlagTable) -> Result<Option<String>, Failure> {
        let (from, to) = (self.from, self.to);
        // Events of a change that was made meanwhile.
        if relay_all(&*from.store).await.map_err(refused)? > 0 {
            return Ok(Some("the log goes on".into()));
        }
        if let Some(found) = compare_logs(&*from.store, &*to.store).await.map_err(refused)? {
            return Ok(Some(found));
        }
        let (left, right) = (from.directory.store(), to.directory.store());
        if let Some(found) = compare_directories(&**left, &**right).await.map_err(refused)? {
            return Ok(Some(found));
        }
        for store in [from.flags.store(), to.flags.store()] {
            if store.table().await.map_err(refused)? != *flags {
                return Ok(Some("the flags differ".into()));
            }
        }
        Ok(None)
    }

    /// Recomputes both logs up to the head that they have come to.
    async fn verify_both(&mut self) -> Result<Head, Failure> {
        let head = self.to.store.state().await.map_err(refused)?.head;
        let expected =
            head.next_seq.checked_sub(1).map(|seq| ExpectedHead { seq, hash: head.hash });
        for (which, what, store) in [
            ("source", "verifying the source", &self.from.store),
            ("target", "verifying the target", &self.to.store),
        ] {
            self.progress.begin(what, 0);
            let store: &dyn AuditStore = &**store;
            let verdict = verify(store, expected, |done| {
                self.progress.show(done, Some(head.next_seq));
            });
            let verdict = verdict.await.map_err(refused)?;
            // A copy reads the rows themselves, so it also rescues those that the source's
            // lists don't show.
            let problem = if which == "source" {
                verdict.finding.map(|found| found.to_string())
            } else {
                verdict.problem()
            };
            if let Some(problem) = problem {
                return Err(Failure::no(format!(
                    "the {which} is not what was recorded: {problem}: run verify on it"
                )));
            }
        }
        Ok(head)
    }
}

impl Copied {
    fn print(&self, rows: u64, as_json: bool) -> Result<(), Failure> {
        let DocumentCounts { partners, tenants, users } = self.documents;
        let flags = self.flags.snapshot().flags.len();
        let (events, head) = (self.head.next_seq, last_of(&self.head));
        if as_json {
            let head = head.map(|(seq, hash)| json!({ "seq": seq, "hash": hash }));
            let report = json!({
                "ok": true, "copied": rows, "events": events, "head": head,
                "partners": partners, "tenants": tenants, "users": users, "flags": flags,
            });
            return print(&format!("{report}\n"));
        }
        let head = head.map_or("no head yet".into(), |(seq, hash)| format!("head {seq}:{hash}"));
        print(&format!(
            "copied: {rows} rows\nok: both ends verified and equal: {events} events, {head}; {partners} partners, {tenants} tenants, {users} users, {flags} flags\n"
        ))
    }
}

/// The answer of a store as that of the command.
#[expect(clippy::needless_pass_by_value, reason = "it is what map_err hands over")]
fn refused(error: dezky_core::Error) -> Failure {
    if error.is_retryable() {
        return Failure::no(format!(
            "{error}: what was copied stays, and the same command goes on from there"
        ));
    }
    Failure::no(error.to_string())
}
