use clap::Args;
use dezky::copy::{Copied, CopyProgress};
use dezky::{Access, StoreConfig, Stores};
use dezky_core::copy::DocumentCounts;
use serde_json::json;

use super::print;
use super::progress::Progress;
use super::signals::Signals;
use super::verify::last_of;
use crate::config::{FROM_VARIABLE, Settings, TO_VARIABLE};
use crate::failure::Failure;
use crate::store;

/// `copy`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The store to copy
    #[arg(long, value_name = "URL", env = FROM_VARIABLE, hide_env_values = true)]
    from: String,
    /// The target: an empty store, or the partial copy of an earlier run
    #[arg(long, value_name = "URL", env = TO_VARIABLE, hide_env_values = true)]
    to: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// `copy`: exit status 0 only if both ends are equal afterwards.
pub(crate) async fn run(settings: &Settings, options: Options) -> Result<(), Failure> {
    let Options { from, to, json } = options;
    let (from, to) = (settings.store_at("--from", &from)?, settings.store_at("--to", &to)?);
    if from.url.is_same_store(&to.url) {
        return Err(Failure::usage("--to: is the same store as --from: name another one"));
    }
    settings.check_other_store("--to", &to.url)?;
    // The source is never created: a mistyped name must not leave an empty store.
    let source = open(&from, Access::Use, "--from").await?;
    let target = match open(&to, Access::Migrate, "--to").await {
        Ok(target) => target,
        Err(failure) => {
            source.close().await;
            return Err(failure);
        }
    };
    // Only now: until both ends are open, dying from a signal loses nothing.
    let mut signals = Signals::listen()?;
    let mut shown = Progress::new(json);
    let mut step = None;
    let progress = |CopyProgress { step: now, done, total }: CopyProgress| {
        if step.replace(now) != Some(now) {
            shown.begin(now.as_str(), done);
        }
        shown.show(done, total);
    };
    let copied = tokio::select! {
        copied = dezky::copy::copy(&source, &target, progress) => copied.map_err(refused),
        () = signals.next() => Err(Failure::failed(
            "stopped: the partial copy stays, and the same command resumes it",
        )),
    };
    signals.end_at_once_on_the_next();
    source.close().await;
    target.close().await;
    report(&copied?, json)
}

/// Opens one of the ends.
async fn open(config: &StoreConfig, access: Access, option: &str) -> Result<Stores, Failure> {
    let opened = store::open_stores(config, access).await;
    opened.map_err(|failure| failure.context(option))
}

fn report(copied: &Copied, as_json: bool) -> Result<(), Failure> {
    let Copied { rows, head, documents, flags, .. } = copied;
    let DocumentCounts { partners, tenants, users } = documents;
    let flags = flags.snapshot().flags.len();
    let (events, head) = (head.next_seq, last_of(head));
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

/// A store's error as the command's failure.
#[expect(clippy::needless_pass_by_value, reason = "map_err passes it by value")]
fn refused(error: dezky_core::Error) -> Failure {
    if error.is_retryable() {
        return Failure::failed(format!(
            "{error}: the partial copy stays, and the same command resumes it"
        ));
    }
    Failure::failed(error.to_string())
}
