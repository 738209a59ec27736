//! `GET /audit/export`: all events that match, as a file.

use std::io;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, header};
use axum::response::{IntoResponse as _, Response};
use dezky_core::{Edit, StoredEvent};
use futures_util::stream;
use tokio::sync::mpsc;

use super::filters;
use super::scope::Scope;
use crate::app::AppState;
use crate::app::audit::ExportPermit;
use crate::app::audit::export::{Ended, Pages, Recorded};
use crate::auth::Caller;
use crate::http::parameters::Parameters;
use crate::http::problem::Problem;
use crate::render::export::{Encoder, Format};

/// The size of a chunk, in bytes. One is sent while the next is made.
const CHUNK_BYTES: usize = 64 << 10;
/// The longest time in which a client takes no chunk.
const CHUNK_TIMEOUT: Duration = Duration::from_mins(1);

/// `GET /audit/export`: the events that match and are in the log now, newest first.
///
/// The access is on the timeline before the first byte is sent. The last line says that the export
/// is whole; without it, it was cut off.
pub(super) async fn export(
    State(state): State<AppState>,
    scope: Scope,
    method: Method,
    parameters: Parameters,
    headers: HeaderMap,
    caller: Caller,
) -> Result<Response, Problem> {
    if method == Method::HEAD {
        // It would record an access that reads nothing.
        return Err(Problem::method_not_allowed());
    }
    let query = filters::parse(&parameters, &scope, &["format"])?;
    let format = format(parameters.get("format"), &headers)?;
    let Some(permit) = state.audit.admit_export() else {
        return Err(Problem::too_many(
            "too_many_exports",
            "too many exports are in progress: retry when one has ended",
        ));
    };
    let store = &state.platform.store;
    let mut pages = Pages::of(&**store, query.clone()).await?;
    let by = Edit::from(caller);
    let recorded = Recorded::begin(&state.platform, by, &query, format).await?;
    // The first page is read before the answer begins, so that a store that fails is a problem.
    let first = match pages.next(&**store).await {
        Ok(first) => first,
        Err(error) => {
            let ended = Ended { events: 0, reason: Some(error.code()) };
            recorded.end(&state.platform, ended).await;
            return Err(error.into());
        }
    };
    let encoder = Encoder { format, with_position: scope.sees_positions() };
    let (sender, receiver) = mpsc::channel(1);
    let export = Export { state, permit, encoder, pages, recorded, sender, chunk: Vec::new() };
    tokio::spawn(export.run(first));
    let name = format!("attachment; filename=\"audit.{}\"", format.as_str());
    let headers = [
        (header::CONTENT_TYPE, format.content_type()),
        (header::CONTENT_DISPOSITION, name.as_str()),
        (header::CACHE_CONTROL, "no-store"),
    ];
    Ok((headers, body(receiver)).into_response())
}

/// The format: the parameter, or the first acceptable one.
fn format(parameter: Option<&str>, headers: &HeaderMap) -> Result<Format, Problem> {
    match parameter {
        Some("ndjson") => return Ok(Format::Ndjson),
        Some("csv") => return Ok(Format::Csv),
        Some(_) => return Err(Problem::query_invalid("format must be ndjson or csv")),
        None => {}
    }
    let mut accepted = headers.get_all(header::ACCEPT).iter().peekable();
    if accepted.peek().is_none() {
        return Ok(Format::Ndjson);
    }
    let mut best: Option<(u16, Format)> = None;
    for range in accepted.flat_map(|value| value.to_str().unwrap_or_default().split(',')) {
        let (media, parameters) = range.split_once(';').unwrap_or((range, ""));
        let format = match media.trim().to_ascii_lowercase().as_str() {
            "text/csv" | "text/*" => Format::Csv,
            "application/x-ndjson" | "application/ndjson" | "application/*" | "*/*" => {
                Format::Ndjson
            }
            _ => continue,
        };
        let weight = weight(parameters);
        if weight > 0 && best.is_none_or(|(other, _)| weight > other) {
            best = Some((weight, format));
        }
    }
    best.map(|(_, format)| format).ok_or_else(Problem::not_acceptable)
}

/// The weight in the parameters of a media range, in thousandths.
fn weight(parameters: &str) -> u16 {
    let given = parameters.split(';').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("q").then(|| value.trim().parse::<f32>().ok())?
    });
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 1000")]
    given.map_or(1_000, |q| (q.clamp(0.0, 1.0) * 1_000.0) as u16)
}

/// A part of the body.
enum Chunk {
    Part(Bytes),
    Last(Bytes),
}

/// The body: an error at the end unless the last chunk has come, so that HTTP shows as well that
/// something is missing.
fn body(receiver: mpsc::Receiver<Chunk>) -> Body {
    Body::from_stream(stream::unfold(Some(receiver), |receiver| async {
        let mut receiver = receiver?;
        Some(match receiver.recv().await {
            Some(Chunk::Part(bytes)) => (Ok(bytes), Some(receiver)),
            Some(Chunk::Last(bytes)) => (Ok(bytes), None),
            None => (Err(io::Error::other("the export was cut off")), None),
        })
    }))
}

/// A running export.
struct Export {
    state: AppState,
    permit: ExportPermit,
    encoder: Encoder,
    pages: Pages,
    recorded: Recorded,
    sender: mpsc::Sender<Chunk>,
    chunk: Vec<u8>,
}

/// A reason for which an export is not whole, as a stable word.
type Reason = &'static str;

impl Export {
    async fn run(mut self, first: Option<Vec<StoredEvent>>) {
        let mut events = 0;
        let reason = self.write(first, &mut events).await.err();
        let Self { state, permit, recorded, sender, .. } = self;
        // The client learns of the end before it is recorded.
        drop(sender);
        recorded.end(&state.platform, Ended { events, reason }).await;
        drop(permit);
    }

    async fn write(
        &mut self,
        first: Option<Vec<StoredEvent>>,
        events: &mut u64,
    ) -> Result<(), Reason> {
        self.encoder.begin(&mut self.chunk);
        let mut page = first;
        while let Some(stored) = page {
            for stored in stored {
                self.encoder.event(&stored, &mut self.chunk);
                *events += 1;
                if self.chunk.len() >= CHUNK_BYTES {
                    let part = Chunk::Part(std::mem::take(&mut self.chunk).into());
                    self.send(part).await?;
                }
            }
            page = tokio::select! {
                biased;
                () = self.permit.stopped() => return Err("ending"),
                // A filter that matches rarely sends nothing for long.
                () = self.sender.closed() => return Err("client_gone"),
                page = self.pages.next(&*self.state.platform.store) => page.map_err(|error| {
                    tracing::error!(code = error.code(), %error, "an export was cut off");
                    error.code()
                })?,
            };
        }
        self.encoder.end(self.recorded.id, *events, &mut self.chunk);
        let last = Chunk::Last(std::mem::take(&mut self.chunk).into());
        self.send(last).await
    }

    async fn send(&mut self, chunk: Chunk) -> Result<(), Reason> {
        tokio::select! {
            biased;
            () = self.permit.stopped() => Err("ending"),
            sent = tokio::time::timeout(CHUNK_TIMEOUT, self.sender.send(chunk)) => match sent {
                Ok(Ok(())) => Ok(()),
                Ok(Err(_)) => Err("client_gone"),
                Err(_) => Err("too_slow"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn the_format_is_the_parameter_or_what_the_client_prefers() {
        let accepting = |accept: &'static str| {
            let mut headers = HeaderMap::new();
            if !accept.is_empty() {
                headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            }
            headers
        };
        for (parameter, accept, expected) in [
            (None, "", Some(Format::Ndjson)),
            (None, "*/*", Some(Format::Ndjson)),
            (None, "text/csv", Some(Format::Csv)),
            (None, "TEXT/CSV; charset=utf-8", Some(Format::Csv)),
            (None, "application/x-ndjson", Some(Format::Ndjson)),
            (None, "text/html, text/csv;q=0.9, */*;q=0.1", Some(Format::Csv)),
            (None, "text/csv;q=0, application/x-ndjson;q=0.2", Some(Format::Ndjson)),
            (None, "text/csv;q=0", None),
            (None, "application/pdf", None),
            (Some("csv"), "application/x-ndjson", Some(Format::Csv)),
            (Some("ndjson"), "text/csv", Some(Format::Ndjson)),
            (Some("xlsx"), "*/*", None),
        ] {
            let chosen = format(parameter, &accepting(accept));
            assert_eq!(chosen.ok(), expected, "{parameter:?} {accept}");
        }
    }
}
