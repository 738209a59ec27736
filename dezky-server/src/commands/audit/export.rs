//! `audit export`.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use clap::Args;
use dezky::Platform;
use dezky_core::Edit;

use super::output::Output;
use super::{Filters, refused};
use crate::app::audit::export::{Ended, Pages, Recorded};
use crate::commands::operator;
use crate::commands::progress::Progress;
use crate::commands::signals::Signals;
use crate::failure::Failure;
use crate::render::export::{Encoder, Format};

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    filters: Filters,
    /// The format
    #[arg(long, value_enum, default_value = "ndjson")]
    format: Format,
    /// Write to this file, which must not exist yet, instead of the standard output
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Where the export goes.
enum Target {
    Output(Output),
    File(PathBuf, File),
}

impl Target {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        match self {
            Self::Output(output) => output.write(bytes),
            Self::File(path, file) => file.write_all(bytes).map_err(|error| {
                Failure::failed(format!("{} can't be written: {error}", path.display()))
            }),
        }
    }

    fn is_open(&self) -> bool {
        match self {
            Self::Output(output) => output.is_open(),
            Self::File(..) => true,
        }
    }

    /// Makes what was written durable.
    fn finish(&mut self) -> Result<(), Failure> {
        match self {
            Self::Output(_) => Ok(()),
            Self::File(path, file) => file.sync_all().map_err(|error| {
                Failure::failed(format!("{} can't be written: {error}", path.display()))
            }),
        }
    }
}

/// The reason why an export is not whole, and the command's failure if it is one.
type Cut = (&'static str, Option<Failure>);

impl Options {
    pub(crate) async fn run(self, platform: &Platform) -> Result<(), Failure> {
        let mut signals = Signals::listen()?;
        let query = self.filters.into_query();
        let mut pages = Pages::of(&*platform.store, query.clone()).await.map_err(refused)?;
        let mut target = match self.output {
            None => Target::Output(Output::stdout()),
            Some(path) => {
                // Only for this user, because it has the events' personal data.
                let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
                let file = file.map_err(|error| {
                    Failure::usage(format!("--output {}: {error}: name a new file", path.display()))
                })?;
                Target::File(path, file)
            }
        };
        let by = Edit::by(operator());
        let recorded = Recorded::begin(platform, by, &query, self.format).await;
        let recorded = recorded.map_err(refused)?;
        let encoder = Encoder { format: self.format, with_position: true };
        let mut events = 0;
        let written = tokio::select! {
            biased;
            () = signals.next() => {
                let failure = Failure::failed("interrupted: the export is not whole");
                Err(("interrupted", Some(failure)))
            }
            written = write(platform, &mut pages, encoder, &recorded, &mut target, &mut events) => {
                written
            }
        };
        let (reason, failure) = match written {
            Ok(()) => (None, None),
            Err((reason, failure)) => (Some(reason), failure),
        };
        recorded.end(platform, Ended { events, reason }).await;
        failure.map_or(Ok(()), Err)
    }
}

async fn write(
    platform: &Platform,
    pages: &mut Pages,
    encoder: Encoder,
    recorded: &Recorded,
    target: &mut Target,
    events: &mut u64,
) -> Result<(), Cut> {
    let failing = |failure: Failure| ("output_failed", Some(failure));
    let mut progress = Progress::new(matches!(target, Target::Output(_)));
    progress.begin("events", 0);
    let mut chunk = Vec::new();
    encoder.begin(&mut chunk);
    loop {
        let page = pages.next(&*platform.store).await.map_err(|error| {
            let reason = error.code();
            (reason, Some(refused(error).context("the export is not whole")))
        })?;
        let Some(page) = page else { break };
        for stored in &page {
            encoder.event(stored, &mut chunk);
        }
        target.write(&chunk).map_err(failing)?;
        if !target.is_open() {
            return Err(("client_gone", None));
        }
        chunk.clear();
        *events += page.len() as u64;
        if matches!(target, Target::File(..)) {
            progress.show(*events, None);
        }
    }
    encoder.end(recorded.id, *events, &mut chunk);
    target.write(&chunk).and_then(|()| target.finish()).map_err(failing)?;
    if target.is_open() { Ok(()) } else { Err(("client_gone", None)) }
}
