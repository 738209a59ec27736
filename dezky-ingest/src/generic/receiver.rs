//! The receiver of signed posts: verify, unpack, decode, append, and only then acknowledge.

use std::borrow::Cow;
use std::io::Read as _;

use dezky_core::{Error, ErrorKind, Result};
use flate2::bufread::MultiGzDecoder;

use super::{Mapping, decode};
use crate::intake::{IngestSummary, Intake};
use crate::signature::{HEADER, Headers, Scheme, Secrets};
use crate::webhook::take_in_parts;

/// The maximum size of an unpacked body in bytes, unless set.
const MAX_BODY_BYTES: usize = 16 << 20;
/// The maximum ratio of a decompressed body to its request. JSON shrinks to a tenth or a fiftieth;
/// a thousandth is an attack on memory.
const MAX_RATIO: usize = 200;
/// The decompressed size that is always allowed, however small the request is.
const ANY_RATIO_BYTES: usize = 1 << 20;
/// Bytes unpacked at a time.
const CHUNK_BYTES: usize = 64 << 10;

/// Takes signed posts of one source into the log.
pub struct GenericReceiver {
    mapping: Mapping,
    secrets: Secrets,
    scheme: Scheme,
    max_body_bytes: usize,
    intake: Intake,
}

impl GenericReceiver {
    /// Creates a receiver for the source of `mapping`, whose posts are signed in `X-Signature`.
    /// Unpacked bodies have at most 16 MiB.
    pub fn new(mapping: Mapping, secrets: Secrets, intake: Intake) -> Self {
        let (scheme, max_body_bytes) = (Scheme::default(), MAX_BODY_BYTES);
        Self { mapping, secrets, scheme, max_body_bytes, intake }
    }

    /// Sets another signature scheme.
    #[must_use]
    pub fn with_scheme(mut self, scheme: Scheme) -> Self {
        self.scheme = scheme;
        self
    }

    /// Sets the maximum size of an unpacked body in bytes.
    #[must_use]
    pub fn with_max_body_bytes(mut self, max_body_bytes: usize) -> Self {
        self.max_body_bytes = max_body_bytes;
        self
    }

    /// The name under which the events are stored.
    pub fn source(&self) -> &str {
        self.mapping.source()
    }

    /// [`receive_request`](Self::receive_request) for a request whose only header is `X-Signature`,
    /// with `room` for any body within the bound.
    ///
    /// # Errors
    /// Those of [`receive_request`](Self::receive_request).
    pub async fn receive(&self, signature: Option<&str>, body: &[u8]) -> Result<IngestSummary> {
        let headers = Headers::new(signature.map(|value| (HEADER, value)));
        self.receive_request(&headers, body, |_| true).await
    }

    /// Verifies the headers' signature over the raw `body` and ingests its events. When this
    /// returns, everything that the mapping does not skip is durable in the log, in the quarantine
    /// or, if the [intake](Intake::with_spool) has one, in the spool. The same body again changes
    /// nothing and returns the same [`IngestSummary::received`].
    ///
    /// The signature covers the body as sent. After that, a body with `Content-Encoding: gzip` is
    /// unpacked, all its members, as long as `room` accepts the number of bytes unpacked so far.
    ///
    /// # Errors
    /// Nothing was written after one of these, which the sender should see:
    /// - `signature_invalid`;
    /// - `media_type`: the body has another encoding than gzip, or is not JSON and not declared as
    ///   JSON;
    /// - `body_invalid`: the body is not JSON, or an incomplete gzip file;
    /// - `too_large`: it has more events than [`MAX_BODY_EVENTS`](super::MAX_BODY_EVENTS), its
    ///   unpacked size exceeds the bound or 200 times the request, or it has an object that neither
    ///   the log nor the quarantine can keep as a whole;
    /// - `store_busy`: `room` returned false; the same request may succeed later.
    ///
    /// Those of [`Intake::ingest_or_spool`]: the sender should retry. A large body is stored in
    /// parts; those before the error stay and become duplicates.
    pub async fn receive_request(
        &self,
        headers: &Headers,
        body: &[u8],
        room: impl FnMut(usize) -> bool + Send,
    ) -> Result<IngestSummary> {
        let now = self.intake.runtime().now();
        self.scheme.verify(&self.secrets, headers, body, now)?;
        let decoded = {
            let body = self.unpacked(headers, body, room)?;
            decode(&self.mapping, &body, now).map_err(|error| as_said(error, &body, headers))?
        };
        take_in_parts(&self.intake, self.source(), decoded).await
    }

    /// The body without its content encoding.
    fn unpacked<'b>(
        &self,
        headers: &Headers,
        body: &'b [u8],
        room: impl FnMut(usize) -> bool,
    ) -> Result<Cow<'b, [u8]>> {
        let encodings = headers.get("content-encoding").unwrap_or_default().split(',');
        let encodings: Vec<_> = encodings
            .map(|encoding| encoding.trim().to_ascii_lowercase())
            .filter(|encoding| !encoding.is_empty() && encoding != "identity")
            .collect();
        match &encodings.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            [] => Ok(Cow::Borrowed(body)),
            ["gzip" | "x-gzip"] => gunzip(body, self.max_body_bytes, room).map(Cow::Owned),
            _ => {
                let what = "the only Content-Encoding that is read is gzip: send that, or none";
                Err(Error::new(ErrorKind::MediaUnsupported, what))
            }
        }
    }
}

/// All members of a gzip file.
fn gunzip(body: &[u8], max: usize, mut room: impl FnMut(usize) -> bool) -> Result<Vec<u8>> {
    let max_by_ratio = body.len().saturating_mul(MAX_RATIO).max(ANY_RATIO_BYTES);
    let (mut out, mut chunk) = (Vec::new(), vec![0; CHUNK_BYTES]);
    let mut decoder = MultiGzDecoder::new(body);
    loop {
        let read = decoder.read(&mut chunk).map_err(|error| {
            let what = "the body is not complete gzip, as Content-Encoding says: send all of it";
            Error::new(ErrorKind::BodyInvalid, what).with_source(error)
        })?;
        if read == 0 {
            return Ok(out);
        }
        let bytes = out.len() + read;
        if bytes > max {
            let what = format!("the body has more than {max} bytes, unpacked: send less at a time");
            return Err(Error::new(ErrorKind::TooLarge, what));
        }
        if bytes > max_by_ratio {
            let what = format!(
                "the body is more than {MAX_RATIO} times as large as the request: send it without Content-Encoding"
            );
            return Err(Error::new(ErrorKind::TooLarge, what));
        }
        if !room(bytes) {
            let what = "no memory is free to unpack the body: try again";
            return Err(Error::new(ErrorKind::StoreBusy, what));
        }
        out.extend_from_slice(&chunk[..read]);
    }
}

/// A body that is not JSON and not said to be: the type is what is wrong.
fn as_said(error: Error, body: &[u8], headers: &Headers) -> Error {
    // An empty body is not a form, whatever media type the client states by default.
    if body.trim_ascii().is_empty() {
        return error;
    }
    let is_other = headers
        .get("content-type")
        .is_some_and(|media_type| !media_type.to_ascii_lowercase().contains("json"));
    if error.kind() != ErrorKind::BodyInvalid || !is_other {
        return error;
    }
    let what = format!("{error}, with Content-Type: application/json");
    Error::new(ErrorKind::MediaUnsupported, what)
}
