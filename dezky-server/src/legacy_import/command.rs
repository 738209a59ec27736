//! The command `import-origin`.

use std::time::Duration;

use clap::Args;
use dezky::Access;
use dezky_core::store::mongo_error;
use mongodb::options::ClientOptions;
use mongodb::{Client, Database};

use super::{Broken, Import, KINDS, Report};
use crate::app::head_file::HeadFile;
use crate::commands::print;
use crate::commands::progress::Progress;
use crate::commands::signals::Signals;
use crate::config::{FROM_VARIABLE, Settings, TO_VARIABLE};
use crate::failure::Failure;
use crate::store;

/// The bound of selecting a server.
const SELECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// `import-origin`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The database of the platform that dezky replaces, such as
    /// `mongodb://host/platform`
    #[arg(long, value_name = "URL", env = FROM_VARIABLE, hide_env_values = true)]
    from: String,
    /// The store to import into
    #[arg(long, value_name = "URL", env = TO_VARIABLE, hide_env_values = true)]
    to: String,
    /// Report what would be imported, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// The name of a collection that differs from the default; kinds are events, tenants,
    /// partners, users, flags and cursors
    #[arg(long = "collection", value_name = "KIND=NAME")]
    collections: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// `import-origin`: exit status 1 if a document was refused.
pub(crate) async fn run(settings: &Settings, options: Options) -> Result<(), Failure> {
    let Options { from, to, dry_run, collections, json } = options;
    let names = names(&collections)?;
    let to = settings.store_at("--to", &to)?;
    settings.check_other_store("--to", &to.url)?;
    let from = connect(&from).await?;
    let there = from.list_collection_names().await.map_err(|error| {
        let error = mongo_error(&error);
        if error.is_retryable() {
            return Failure::failed(
                "--from: the server can't be reached: check the URL and that it is up",
            );
        }
        Failure::usage(format!("--from: {error}"))
    })?;
    if !names.iter().any(|name| there.contains(name)) {
        return Err(Failure::usage(
            "--from: the database has none of the collections: name another database, or the collections by --collection KIND=NAME",
        ));
    }
    if let Some(path) = settings.head_path_of(&to.url) {
        let is_missing = async || Ok(store::schema(&to).await?.found.is_empty());
        HeadFile::new(path).check_missing(is_missing).await?;
    }
    let platform = if dry_run {
        None
    } else {
        let opened = store::open(&to, Access::Migrate).await;
        Some(opened.map_err(|failure| failure.context("--to"))?)
    };
    let mut signals = Signals::listen()?;
    let mut shown = Progress::new(json);
    let mut part = "";
    let mut progress = |what, done, total| {
        if part != what {
            part = what;
            shown.begin(what, 0);
        }
        shown.show(done, Some(total));
    };
    let import = Import { from, to: platform.as_ref(), names, progress: &mut progress };
    let done = tokio::select! {
        done = import.run() => done.map_err(broken),
        () = signals.next() => Err(Failure::failed(
            "stopped: the imported documents stay, and the same command resumes the import",
        )),
    };
    signals.end_at_once_on_the_next();
    if let Some(platform) = &platform {
        platform.close().await;
    }
    report(&done?, json)
}

fn report(report: &Report, as_json: bool) -> Result<(), Failure> {
    print(&if as_json {
        let json = serde_json::to_string(report);
        format!("{}\n", json.map_err(|error| Failure::failed(error.to_string()))?)
    } else {
        report.text()
    })?;
    match report.refused() {
        0 => Ok(()),
        refused => Err(Failure::failed(format!(
            "{refused} documents were refused: fix those that the report names, and import again"
        ))),
    }
}

/// The collections' names, in the order of [`KINDS`].
fn names(overrides: &[String]) -> Result<[String; 6], Failure> {
    let mut names = KINDS.map(|(_, name)| name.to_owned());
    for given in overrides {
        let kind_and_name = given.split_once('=').filter(|(_, name)| !name.is_empty());
        let place = kind_and_name
            .and_then(|(kind, name)| Some((KINDS.iter().position(|(k, _)| *k == kind)?, name)));
        let Some((place, name)) = place else {
            let kinds = KINDS.map(|(kind, _)| kind).join(", ");
            return Err(Failure::usage(format!(
                "--collection: must be KIND=NAME, the kind one of {kinds}"
            )));
        };
        name.clone_into(&mut names[place]);
    }
    Ok(names)
}

/// Connects to the source, which need not be a replica set. Errors do not repeat the URL: it may
/// contain a password.
async fn connect(url: &str) -> Result<Database, Failure> {
    let wrong = || {
        Failure::usage(
            "--from: must be the URL of a database of MongoDB: mongodb://host:27017/platform",
        )
    };
    let mut options = ClientOptions::parse(url).await.map_err(|_| wrong())?;
    options.server_selection_timeout.get_or_insert(SELECTION_TIMEOUT);
    let client = Client::with_options(options).map_err(|_| wrong())?;
    client.default_database().ok_or_else(wrong)
}

fn broken(broken: Broken) -> Failure {
    let what = match broken {
        Broken::Source(error) => format!("--from: {}", mongo_error(&error)),
        Broken::Target(error) => format!("--to: {error}"),
    };
    Failure::failed(format!(
        "{what}: the imported documents stay, and the same command resumes the import"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collections_are_named_by_their_kind() {
        let named = names(&["events=audit".into(), "flags=ff".into()]).unwrap();
        assert_eq!(named, ["partners", "tenants", "users", "ff", "audit", "ingestcursors"]);
        for wrong in ["events", "events=", "logs=audit"] {
            let refused = names(&[wrong.to_owned()]).unwrap_err();
            assert!(refused.to_string().contains("one of partners, tenants"), "{refused}");
        }
    }
}
