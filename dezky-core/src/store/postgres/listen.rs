//! LISTEN on one connection, driven by the callers that wait for notifications.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};

use event_listener::Event;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, select};
use futures_util::lock::Mutex as AsyncMutex;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPool, PgPoolOptions};

/// PostgreSQL's channel, shared by all components so that one LISTEN receives everything.
pub(super) const CHANNEL: &str = "dezky";

pub(super) fn payload(scope: i64, channel: &str, value: u64) -> String {
    format!("{scope}:{value}:{channel}")
}

/// Receives the notifications of transactions in any process.
///
/// Spawns nothing: the first waiting caller drives the connection and wakes the others; when it is
/// dropped, the next one continues.
pub(super) struct Listener {
    options: PgConnectOptions,
    heard: Mutex<Heard>,
    news: Event,
    line: AsyncMutex<Line>,
}

/// Maximum number of channels whose last value is remembered. A log has two, but anyone who can
/// connect to the database can notify.
const MAX_CHANNELS: usize = 64;

#[derive(Default)]
struct Heard {
    /// Counts the events that make earlier values unreliable, such as a new connection.
    blanks: u64,
    /// The last value of each scope and channel.
    values: HashMap<(i64, String), u64>,
    closed: bool,
}

enum Line {
    Down,
    /// Kept across calls, so that connecting makes progress although callers give up early.
    Connecting(BoxFuture<'static, sqlx::Result<PgListener>>),
    Up(PgListener),
}

impl Listener {
    pub(super) fn new(pool: &PgPool) -> Self {
        Self {
            options: (*pool.connect_options()).clone(),
            heard: Mutex::default(),
            news: Event::new(),
            line: AsyncMutex::new(Line::Down),
        }
    }

    /// See [`PostgresDatabase::changed`](super::PostgresDatabase::changed).
    pub(super) async fn changed(&self, scope: i64, channel: &str, beyond: u64) {
        let key = (scope, channel.to_owned());
        let blanks = self.heard().blanks;
        loop {
            let news = self.news.listen();
            {
                let heard = self.heard();
                let value = heard.values.get(&key);
                if heard.blanks != blanks || value.is_some_and(|v| *v > beyond) {
                    return;
                }
            }
            select(news, pin!(self.drive())).await;
        }
    }

    /// Drives the connection until there is news. If connecting fails, the next caller tries
    /// again.
    async fn drive(&self) {
        let mut line = self.line.lock().await;
        loop {
            if self.heard().closed {
                *line = Line::Down;
                break;
            }
            match &mut *line {
                Line::Down => *line = Line::Connecting(connect(self.options.clone()).boxed()),
                Line::Connecting(connecting) => {
                    let connected = connecting.await;
                    *line = Line::Down;
                    let Ok(listener) = connected else { break };
                    *line = Line::Up(listener);
                    self.heard().blanks += 1;
                    self.news.notify(usize::MAX);
                    return;
                }
                Line::Up(listener) => match listener.try_recv().await {
                    Ok(Some(notification)) => {
                        if self.hear(notification.payload()) {
                            return;
                        }
                    }
                    Ok(None) | Err(_) => *line = Line::Down,
                },
            }
        }
        std::future::pending::<()>().await;
    }

    /// Notes a notification; returns whether it could be parsed.
    fn hear(&self, payload: &str) -> bool {
        let mut parts = payload.splitn(3, ':');
        let (Some(scope), Some(value), Some(channel)) = (parts.next(), parts.next(), parts.next())
        else {
            return false;
        };
        let (Ok(scope), Ok(value)) = (scope.parse(), value.parse()) else { return false };
        {
            let mut heard = self.heard();
            if heard.values.len() >= MAX_CHANNELS {
                heard.values.clear();
                heard.blanks += 1;
            }
            heard.values.insert((scope, channel.to_owned()), value);
        }
        self.news.notify(usize::MAX);
        true
    }

    /// Closes the connection; if a caller is driving it, that caller closes it.
    pub(super) fn close(&self) {
        self.heard().closed = true;
        self.news.notify(usize::MAX);
        if let Some(mut line) = self.line.try_lock() {
            *line = Line::Down;
        }
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // sqlx closes the connection in a spawned task, which needs a runtime. At the end of a
        // process there may be none, and no need to close it.
        if tokio::runtime::Handle::try_current().is_err() {
            std::mem::forget(std::mem::replace(self.line.get_mut(), Line::Down));
        }
    }
}

/// Opens a separate connection, so that the pool keeps all of its own.
async fn connect(options: PgConnectOptions) -> sqlx::Result<PgListener> {
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .max_lifetime(None)
        .idle_timeout(None)
        .connect_lazy_with(options);
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.eager_reconnect(false);
    listener.listen(CHANNEL).await?;
    Ok(listener)
}
