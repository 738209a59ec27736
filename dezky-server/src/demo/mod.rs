//! The demo: a platform with three tenants, whose bundled events arrive through the real sources.
//!
//! Everything is in one folder: the database, the webhook secret, and the audit log that a
//! simulated oCIS writes and rotates. A simulated Authentik listens on a port of this machine. Of
//! the environment only the settings of logging count.

mod identity;
mod log_file;
mod report;
mod story;
mod webhooks;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use dezky_core::Runtime as _;
use dezky_core::rt::TokioRuntime;
use dezky_core::store::{AuditStoreExt as _, Head};
use dezky_ingest::authentik::{ApiToken, AuthentikConfig};
use dezky_ingest::{Pump, PumpConfig, Tick};

use self::identity::Identity;
use self::log_file::LogFile;
use self::report::{Counts, Report, Row};
use self::webhooks::Sender;
use crate::app::workers::{follow_ocis, poll_authentik};
use crate::commands::print;
use crate::commands::signals::Signals;
use crate::commands::verify::last_of;
use crate::config::{AuthentikApi, Config, OcisLog, Settings};
use crate::failure::Failure;
use crate::lifecycle::{Running, bind};
use crate::telemetry::logging;

/// The default port.
const DEFAULT_PORT: u16 = 8080;
/// The interval between events while the demo runs.
const EVENT_INTERVAL: Duration = Duration::from_secs(3);
/// The number of events between two rotations of the log file.
const EVENTS_PER_ROTATION: u64 = 30;
/// The interval at which the log file is read and Authentik is polled.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The options of `demo`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Ingest everything, print the timeline, and exit
    #[arg(long)]
    once: bool,
    /// The port on 127.0.0.1; 0 takes a free one [default: 8080, with --once 0]
    #[arg(long, value_name = "N")]
    port: Option<u16>,
    /// The folder of the demo
    #[arg(long, value_name = "DIR", default_value = "dezky-demo")]
    data: PathBuf,
    /// Print one JSON object instead of tables, with --once
    #[arg(long, requires = "once")]
    json: bool,
}

/// `demo`.
pub(crate) async fn run(options: Options) -> Result<(), Failure> {
    let mut signals = Signals::listen()?;
    let port = options.port.unwrap_or(if options.once { 0 } else { DEFAULT_PORT });
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    // First, so that a port in use leaves no folder behind.
    let listener = bind(listen, "take a free one with --port 0").await?;
    let folder = Folder::prepare(&options.data)?;
    let secret = folder.secret()?;
    let config = folder.config(&secret)?;
    logging::start(&config.log);
    let mut demo = Demo::start(&folder, config, listener, &secret).await?;
    let taken = tokio::select! {
        taken = demo.take_bundled() => taken?,
        () = signals.next() => {
            demo.running.stop().await?;
            return if options.once {
                Err(Failure::failed("interrupted before everything was ingested"))
            } else {
                Ok(())
            };
        }
    };
    print(&if options.json { taken.to_json() } else { taken.to_text() })?;
    if options.once {
        return demo.running.stop().await;
    }
    print(&folder.invitation(demo.running.address()))?;
    demo.go_on(signals).await
}

/// A server and its simulated sources.
struct Demo {
    running: Running,
    systems: Systems,
    ocis: Pump,
    authentik: Pump,
}

/// The simulated systems around the platform.
struct Systems {
    stalwart: Sender,
    ocis: LogFile,
    authentik: Identity,
}

impl Demo {
    async fn start(
        folder: &Folder,
        config: Config,
        listener: tokio::net::TcpListener,
        secret: &str,
    ) -> Result<Self, Failure> {
        let running = Running::start(config, listener).await?;
        let platform = running.platform();
        let systems = Systems {
            stalwart: Sender::new(running.address(), secret)?,
            ocis: LogFile::new(folder.path.join("ocis")),
            authentik: Identity::start().await?,
        };
        let log = OcisLog {
            path: systems.ocis.path(),
            poll: POLL_INTERVAL,
            max_line_bytes: 1 << 20,
            spaces: BTreeMap::new(),
            service_accounts: BTreeSet::new(),
        };
        let ocis = follow_ocis(&log, &platform.intake, held(PumpConfig::default()))?;
        let (url, token) = systems.authentik.address();
        let token =
            ApiToken::new(&token).map_err(|e| Failure::failed(format!("Authentik: {e}")))?;
        let admin_groups = vec!["dezky-platform-admins".to_owned()];
        let api = AuthentikApi { url, token, poll: POLL_INTERVAL, admin_groups };
        let authentik = poll_authentik(&api, platform, held(AuthentikConfig::pump_config()))?;
        Ok(Self { running, systems, ocis, authentik })
    }

    /// Ingests the bundled events and counts the results.
    async fn take_bundled(&mut self) -> Result<Report, Failure> {
        let before = self.count().await?;
        story::furnish(self.running.platform()).await.map_err(untold)?;
        let received = self.systems.stalwart.send_bundled().await?;
        let mut read = Tick::default();
        while self.systems.ocis.write_next_generation()? {
            drain(&mut self.ocis, "oCIS", &mut read).await?;
        }
        drain(&mut self.ocis, "oCIS", &mut read).await?;
        let mut polled = Tick::default();
        drain(&mut self.authentik, "Authentik", &mut polled).await?;
        story::operate(self.running.platform()).await.map_err(untold)?;
        let after = self.count().await?;
        let head = self.verified_head().await?;
        let rows = rows(&before, &after, received, &read, &polled);
        let flags = story::flags(self.running.platform()).await.map_err(untold)?;
        Ok(Report { rows, newest: after.newest, flags, head: last_of(&head) })
    }

    async fn count(&self) -> Result<Counts, Failure> {
        Counts::of(&**self.running.store())
            .await
            .map_err(|e| Failure::failed(format!("store: {e}")))
    }

    async fn verified_head(&self) -> Result<Head, Failure> {
        let verdict = dezky_core::verify::verify(&**self.running.store(), None, |_| {})
            .await
            .map_err(|error| Failure::failed(format!("verify: {error}")))?;
        match verdict.problem() {
            None => Ok(verdict.head),
            Some(problem) => {
                Err(Failure::failed(format!("the log differs from what was recorded: {problem}")))
            }
        }
    }

    /// Generates events, and prints them as they arrive, until a signal.
    async fn go_on(self, mut signals: Signals) -> Result<(), Failure> {
        let Self { mut running, mut systems, ocis, authentik } = self;
        let state = running.store().state().await;
        let from = state.map_err(|error| Failure::failed(format!("store: {error}")))?.head.next_seq;
        let mut arriving = running.store().tail(std::sync::Arc::new(TokioRuntime), from);
        running.spawn_pump(ocis);
        running.spawn_pump(authentik);
        let mut clock = tokio::time::interval(EVENT_INTERVAL);
        let mut happened = 0_u64;
        let ended = loop {
            tokio::select! {
                () = signals.next() => break Ok(()),
                failure = running.failed() => break Err(failure),
                event = arriving.next() => match event {
                    Ok(event) => print(&report::line(&event))?,
                    Err(error) => break Err(Failure::failed(format!("store: {error}"))),
                },
                _ = clock.tick() => {
                    if let Err(failure) = systems.happen(happened).await {
                        logging::tell(&format!("dezky-server: {failure}"));
                    }
                    happened += 1;
                }
            }
        };
        signals.end_at_once_on_the_next();
        let stopped = running.stop().await;
        ended.and(stopped)
    }
}

impl Systems {
    /// Sends one event through one of the sources; rotates the log file now and then.
    async fn happen(&mut self, number: u64) -> Result<(), Failure> {
        let now = TokioRuntime.now();
        if number % EVENTS_PER_ROTATION == EVENTS_PER_ROTATION - 1 {
            self.ocis.rotate()?;
        }
        match number % 3 {
            0 => self.ocis.append_fresh(number / 3, now),
            1 => self.stalwart.send_fresh(number / 3, now).await,
            _ => {
                self.authentik.happen(number / 3, now);
                Ok(())
            }
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is what map_err hands over")]
fn untold(error: dezky_core::Error) -> Failure {
    Failure::failed(format!("the platform: {error}: name another folder"))
}

/// The same holder in every run, so that a lease of the last run is this one's.
fn held(mut pump: PumpConfig) -> PumpConfig {
    pump.holder = Some("demo".into());
    pump
}

/// Runs the pump until nothing is waiting.
async fn drain(pump: &mut Pump, system: &str, sum: &mut Tick) -> Result<(), Failure> {
    loop {
        let tick =
            pump.tick().await.map_err(|error| Failure::failed(format!("{system}: {error}")))?;
        sum.taken += tick.taken;
        sum.skipped += tick.skipped;
        if !tick.more {
            return Ok(());
        }
    }
}

/// The results of each source's events, from the timeline before and after and from the sources'
/// own counts.
fn rows(before: &Counts, after: &Counts, received: usize, read: &Tick, polled: &Tick) -> Vec<Row> {
    after
        .by_source
        .iter()
        .map(|(source, stored)| {
            let new = stored - before.by_source.get(source).unwrap_or(&0);
            let quarantined = |counts: &Counts| *counts.quarantined.get(source).unwrap_or(&0);
            let quarantined = quarantined(after) - quarantined(before);
            let (duplicates, skipped) = match source.as_str() {
                "stalwart" => (received.saturating_sub(new + quarantined), 0),
                "ocis" => (read.taken.duplicates, read.skipped),
                "authentik" => (polled.taken.duplicates, polled.skipped),
                _ => (0, 0),
            };
            Row { source: source.clone(), stored: *stored, new, duplicates, skipped, quarantined }
        })
        .collect()
}

/// The file that is locked while a demo runs, and stays in its folder.
const LOCK: &str = ".lock";

/// The folder of the demo.
struct Folder {
    /// Held while the demo runs: two would rotate each other's files.
    _lock: std::fs::File,
    path: PathBuf,
    /// The path as text, for the printed commands.
    text: String,
}

impl Folder {
    fn prepare(path: &Path) -> Result<Self, Failure> {
        let name = path.display().to_string();
        let refused = |problem: String| {
            Failure::usage(format!("--data {name}: {problem}: name another folder"))
        };
        // The printed commands must work from any folder.
        let path = std::path::absolute(path).map_err(|error| refused(error.to_string()))?;
        let Some(text) = path.to_str().map(str::to_owned) else {
            return Err(refused("its name is not UTF-8".into()));
        };
        if text.contains('?') {
            return Err(refused("its name has a ?, which a store's URL can't have".into()));
        }
        // The demo would rotate a log in it.
        let is_empty = || std::fs::read_dir(&path).is_ok_and(|mut there| there.next().is_none());
        if path.is_dir() && !path.join(LOCK).is_file() && !is_empty() {
            return Err(refused("is not empty, and no demo ran in it".into()));
        }
        std::fs::create_dir_all(path.join("ocis"))
            .map_err(|error| refused(format!("can't be created ({error})")))?;
        let mut options = std::fs::OpenOptions::new();
        let lock = options
            .write(true)
            .create(true)
            .truncate(false)
            .open(path.join(LOCK))
            .map_err(|error| refused(format!("can't be written ({error})")))?;
        if lock.try_lock().is_err() {
            return Err(refused("another demo runs in it".into()));
        }
        Ok(Self { _lock: lock, path, text })
    }

    /// The webhook secret, created by the first run.
    fn secret(&self) -> Result<String, Failure> {
        let path = self.path.join("webhook-secret");
        let refused = |error: std::io::Error| {
            Failure::usage(format!(
                "{}: {error}: remove it, or name another folder",
                path.display()
            ))
        };
        match std::fs::read_to_string(&path) {
            Ok(secret) if !secret.is_empty() => return Ok(secret),
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(refused(error));
            }
            _ => {}
        }
        let mut random = [0; 24];
        TokioRuntime.fill_random(&mut random);
        let secret = format!("demo-{}", hex::encode(random));
        write_private(&path, secret.as_bytes()).map_err(refused)?;
        Ok(secret)
    }

    /// The configuration: like any server's, but independent of the environment.
    fn config(&self, secret: &str) -> Result<Config, Failure> {
        let mut set = vec![
            ("DEZKY_STORE".to_owned(), self.store_url()),
            ("STALWART_WEBHOOK_SECRET".to_owned(), secret.to_owned()),
        ];
        let level = std::env::var("DEZKY_LOG").unwrap_or_default();
        // The demo prints its own progress.
        let level = if level.is_empty() { "error".to_owned() } else { level };
        set.push(("DEZKY_LOG".to_owned(), level));
        Settings::load(None, set, None)?.config()
    }

    fn store_url(&self) -> String {
        format!("sqlite://{}", self.path.join("dezky.db").display())
    }

    /// Commands to try, ready to paste into a shell.
    fn invitation(&self, address: SocketAddr) -> String {
        let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
        let secret = quoted(&format!("{}/webhook-secret", self.text));
        let program = std::env::current_exe()
            .ok()
            .and_then(|path| path.to_str().map(quoted))
            .unwrap_or_else(|| "dezky-server".into());
        let store = quoted(&self.store_url());
        format!(
            r#"
dezky-server listens on http://{address}; Ctrl-C stops it. Try:

  curl -s 'http://{address}/audit?tenantSlug=acme&limit=5'

  curl -s 'http://{address}/audit?action=authentik.login&outcome=failure&limit=5'

  curl -s -X POST http://{address}/flags/jmap_native_v2/kill

  curl -s -H 'Content-Type: application/json' -d '{{"tenantSlug":"globex"}}' \
    'http://{address}/flags/evaluate?explain=true'

  curl -s -X POST http://{address}/tenants/globex/suspend

  BODY='{{"events":[{{"createdAt":"'$(date -u +%Y-%m-%dT%H:%M:%SZ)'","type":"auth.failed","data":{{"accountName":"you@example.com","remoteIp":"203.0.113.99"}}}}]}}'
  SIGNATURE=$(printf '%s' "$BODY" | openssl dgst -sha256 -hmac "$(cat {secret})" -binary | openssl base64)
  curl -s -X POST -H "X-Signature: $SIGNATURE" --data-binary "$BODY" http://{address}/ingest/stalwart/webhook

  {program} flags list --store {store}

  {program} verify --store {store}

New events:
"#
        )
    }
}

/// Writes a new file that only its owner can read.
fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    // Written under another name first, so that a half-written file is never found.
    let temporary = path.with_extension("new");
    let _ = std::fs::remove_file(&temporary);
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?
        .write_all(bytes)?;
    std::fs::rename(&temporary, path)
}
