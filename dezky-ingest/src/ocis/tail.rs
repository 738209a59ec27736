//! The tail of the audit log: the file tail with oCIS' lines.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use dezky_core::{
    AuditStore, Error, ErrorKind, IngestSource, Pull, PullLimits, QuarantineItem, Result, Runtime,
    Timestamp, Waiting,
};
use serde::{Deserialize, Serialize};

use super::accounts::ServiceAccounts;
use super::map::{self, OcisOptions, SYSTEM};
use super::spaces::{self, Names, Spaces};
use crate::tail::{
    DecodedLine, FileTail, Line, LineDecoder, TailConfig, default_max_line_bytes,
    default_max_siblings,
};

/// Configuration of [`OcisTail`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OcisConfig {
    /// The file in `AUDIT_FILEPATH`. Rotated files are searched for in the same directory.
    pub path: PathBuf,
    /// The source's name: `ocis`, or `ocis:<instance>` for further instances.
    #[serde(default = "default_source")]
    pub source: String,
    /// The maximum length of a line in bytes; 1 MiB unless set. Long values of longer lines are
    /// cut. A line that is longer than 64 MiB, or longer than this and not a JSON object, is
    /// skipped and recorded.
    #[serde(default = "default_max_line_bytes")]
    pub max_line_bytes: usize,
    /// The number of rotated files that are read, the youngest ones; 256 unless set.
    #[serde(default = "default_max_siblings")]
    pub max_siblings: usize,
    /// Events that are included only on request.
    #[serde(default)]
    pub options: OcisOptions,
    /// The tenants of spaces: slugs by the id of a space, with or without its storage
    /// (`<storage>$<space>`). At most 10,000.
    #[serde(default)]
    pub spaces: BTreeMap<String, String>,
    /// The ids of oCIS' service accounts (`OCIS_SERVICE_ACCOUNT_ID`), whose actions are the
    /// system's, not a person's. At most 100.
    #[serde(default)]
    pub service_accounts: BTreeSet<String>,
}

fn default_source() -> String {
    SYSTEM.to_owned()
}

impl OcisConfig {
    /// Follows `path` as the source `ocis`, with the default bounds.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            source: default_source(),
            max_line_bytes: default_max_line_bytes(),
            max_siblings: default_max_siblings(),
            options: OcisOptions::default(),
            spaces: BTreeMap::new(),
            service_accounts: BTreeSet::new(),
        }
    }

    /// Returns the same configuration for the source `ocis:<instance>`.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<String>) -> Self {
        self.source = source.into();
        self
    }

    fn check(&self) -> Result<()> {
        if self.source.split(':').next() == Some(SYSTEM) {
            return Ok(());
        }
        let what = "the source of the oCIS tail must be ocis or ocis:<instance>";
        Err(Error::new(ErrorKind::ConfigInvalid, what))
    }
}

/// Follows oCIS' audit log file: a [`FileTail`] whose lines are oCIS'.
///
/// - A pull for the same cursor gives the same events with the same external
///   ids, in this process or another.
/// - Events and items hold no tokens. The hashes in ids and cursors cover the raw lines, tokens
///   included.
/// - The guarantees of the file tail hold: no line is lost or read twice across rotation and
///   restarts, and an `ingest.gap` event records where lines may be lost.
///
/// The tenant of an event is inferred from the configured map of spaces, the name of its space, the
/// actor, or the user whose personal space it is. Names are learned from lines about spaces. Known
/// names belong to a cursor: if a pull continues from another cursor than this tail returned last,
/// names are learned again from the log, if there is [one](Self::with_log).
pub struct OcisTail {
    tail: FileTail,
    options: OcisOptions,
    map: Arc<HashMap<String, String>>,
    accounts: ServiceAccounts,
    log: Option<Arc<dyn AuditStore>>,
    /// The names at the cursor `at`.
    names: Arc<Names>,
    at: Option<String>,
    /// Whether to read them from the log.
    is_behind: bool,
    /// The cursor of the last pull, and the names in its lines.
    given: Option<(String, Arc<OcisLines>)>,
}

impl OcisTail {
    /// Creates a tail that takes its clock and its thread for files from `runtime`. Opens nothing;
    /// `config_invalid` if a value is out of bounds.
    pub fn new(config: OcisConfig, runtime: Arc<dyn Runtime>) -> Result<Self> {
        config.check()?;
        let OcisConfig {
            path,
            source,
            max_line_bytes,
            max_siblings,
            options,
            spaces,
            service_accounts,
        } = config;
        let map = Arc::new(spaces::checked(&spaces)?);
        let accounts = ServiceAccounts::checked(service_accounts)?;
        let names = Arc::<Names>::default();
        let lines = OcisLines::new(options, &map, &accounts, &names);
        let config = TailConfig { path, source, max_line_bytes, max_siblings };
        let tail = FileTail::new(config, Arc::new(lines), runtime)?;
        Ok(Self {
            tail,
            options,
            map,
            accounts,
            log: None,
            names,
            at: None,
            is_behind: true,
            given: None,
        })
    }

    /// Learns the names of spaces from `log` after a restart or after another replica was active:
    /// from the newest 10,000 events of this source, per kind that contains a name. If the log does
    /// not answer, nothing is delayed, and the next pull asks again.
    #[must_use]
    pub fn with_log(mut self, log: Arc<dyn AuditStore>) -> Self {
        self.log = Some(log);
        self
    }

    /// Brings the known names to the state at `cursor`.
    async fn learn(&mut self, cursor: Option<&str>) {
        if let Some((to, lines)) = self.given.take()
            && Some(to.as_str()) == cursor
        {
            let told = std::mem::take(
                &mut *lines.spaces.told.lock().unwrap_or_else(PoisonError::into_inner),
            );
            if !told.is_empty() {
                Arc::make_mut(&mut self.names).extend(told);
            }
            self.at = Some(to);
        }
        // Stays set until the log answers, even if this future is dropped.
        self.is_behind |= self.at.as_deref() != cursor;
        self.at = cursor.map(str::to_owned);
        let Some(log) = self.log.as_ref().filter(|_| self.is_behind) else { return };
        match spaces::from_log(&**log, self.tail.name()).await {
            Ok(names) => {
                self.names = Arc::new(names);
                self.is_behind = false;
            }
            Err(error) => {
                let source = self.tail.name();
                tracing::warn!(source, code = error.code(), "names of spaces are learned later");
            }
        }
    }
}

impl std::fmt::Debug for OcisTail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OcisTail").field("tail", &self.tail).finish_non_exhaustive()
    }
}

#[async_trait]
impl IngestSource for OcisTail {
    fn name(&self) -> &str {
        self.tail.name()
    }

    async fn pull(&mut self, cursor: Option<&str>, limits: PullLimits) -> Result<Pull> {
        self.learn(cursor).await;
        let lines = Arc::new(OcisLines::new(self.options, &self.map, &self.accounts, &self.names));
        let decoder = Arc::clone(&lines);
        let pull = self.tail.pull_with(decoder, cursor, limits).await?;
        self.given = pull.cursor.clone().map(|to| (to, lines));
        Ok(pull)
    }

    fn waiting(&self) -> Option<Waiting> {
        self.tail.waiting()
    }
}

/// The lines of one pull.
struct OcisLines {
    options: OcisOptions,
    accounts: ServiceAccounts,
    spaces: Spaces,
}

impl OcisLines {
    fn new(
        options: OcisOptions,
        map: &Arc<HashMap<String, String>>,
        accounts: &ServiceAccounts,
        names: &Arc<Names>,
    ) -> Self {
        let (map, known) = (Arc::clone(map), Arc::clone(names));
        let spaces = Spaces { map, known, told: Mutex::default() };
        Self { options, accounts: accounts.clone(), spaces }
    }
}

impl LineDecoder for OcisLines {
    fn decode(
        &self,
        line: Line<'_>,
        last_time: &mut Option<Timestamp>,
        each: &mut dyn FnMut(DecodedLine),
    ) {
        map::decode_tailed(self.options, &line, last_time, |mut decoded| {
            if let DecodedLine::Event(pulled) = &mut decoded {
                self.accounts.see(pulled);
                self.spaces.see(pulled);
            }
            each(decoded);
        });
    }

    fn too_long(&self, head: Line<'_>, bytes: u64) -> QuarantineItem {
        map::tailed_too_long(self.options, &head, bytes)
    }
}
