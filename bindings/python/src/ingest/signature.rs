//! Signatures of webhooks.

use dezky::core::Timestamp;
use dezky::ingest::signature::{Headers, Preset, Scheme, SchemeConfig, Secret, Secrets};
use dezky::{Error, Runtime as _, TokioRuntime};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyMapping, PyString};

use super::arguments::{bytes, seconds_between};
use crate::convert::{text, timestamp, type_error, value_error};
use crate::error::exception;

/// The maximum number of secrets: each costs a digest of the body.
const MAX_SECRETS: usize = 32;
/// The maximum number of headers.
const MAX_HEADERS: usize = 1_000;

/// Verifies the signature of a webhook's raw body, before anything is parsed.
///
/// Returns nothing: a request that must not be trusted raises, so that a forgotten `if` can't
/// let it through. Comparisons take the same time whether and wherever they differ.
///
/// Args:
///     body: The raw body as received, not parsed and not decoded.
///     header: The value of the signature's header; `None` if it is missing. Or all headers of the
///         request, as a mapping or as pairs: schemes that sign more than the body need them.
///     secrets: One secret, or several of which any may have signed, such as the old and the new
///         one while a secret is replaced. A `str` is the text that the sender shows; `bytes` are
///         the key itself.
///     scheme: Who signs, and how:
///
///         - `"stalwart"`: `X-Signature`, base64 or hex, with or without `sha256=`. Another name
///           of it is `"dezky"`, the one in the configuration of dezky-server.
///         - `"github"`: `X-Hub-Signature-256: sha256=<hex>`.
///         - `"stripe"`: `Stripe-Signature: t=<seconds>,v1=<hex>`.
///         - `"standard-webhooks"`: `webhook-signature: v1,<base64>`, with `webhook-id` and
///           `webhook-timestamp`. Needs all headers.
///     tolerance: The largest difference between the sender's clock and ours, in seconds or as a
///         `timedelta`; 1 to 86,400 seconds, 300 by default. Only for schemes that sign a time
///         (`stripe`, `standard-webhooks`).
///     now: The time to compare with; the current time by default.
///
/// Raises:
///     SignatureInvalidError: The signature is missing or wrong, or its time is too far from ours.
///         The message says which, and contains no secret.
///     ConfigInvalidError: A secret is empty, or not in the form that the scheme requires.
///     ValueError: There is no secret, the scheme is unknown, or the tolerance is out of bounds.
///     TypeError: An argument has the wrong type, such as a body that was already decoded.
///
/// Examples:
///     >>> import hashlib, hmac
///     >>> from dezky.ingest import verify_signature
///     >>> body = b'{"events": []}'
///     >>> signature = hmac.new(b"s3cret", body, hashlib.sha256).hexdigest()
///     >>> verify_signature(body, signature, "s3cret")
///     >>> verify_signature(body + b" ", signature, ("s3cret", "older"))
///     Traceback (most recent call last):
///     dezky.errors.SignatureInvalidError: x-signature is not the signature of this body
#[pyfunction]
#[pyo3(
    signature = (body, header, secrets, *, scheme = None, tolerance = None, now = None),
    text_signature = "(body, header, secrets, *, scheme='stalwart', tolerance=None, now=None)"
)]
pub(super) fn verify_signature(
    py: Python<'_>,
    body: &Bound<'_, PyAny>,
    header: &Bound<'_, PyAny>,
    secrets: &Bound<'_, PyAny>,
    scheme: Option<&Bound<'_, PyAny>>,
    tolerance: Option<&Bound<'_, PyAny>>,
    now: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let body = bytes(body, "body", "the raw body as bytes, before it is decoded")?;
    let preset = scheme.map_or(Ok(Preset::Dezky), preset)?;
    let tolerance_seconds = match tolerance {
        Some(_) if matches!(preset, Preset::Dezky | Preset::Github) => {
            return Err(value_error(
                "tolerance",
                "needs a scheme that signs a time: use it with \"stripe\" or \"standard-webhooks\"",
            ));
        }
        Some(value) => Some(seconds_between(value, "tolerance", 1, 86_400)?.as_secs()),
        None => None,
    };
    let config = SchemeConfig { scheme: preset, tolerance_seconds, ..SchemeConfig::default() };
    let compiled = Scheme::compile(&config).map_err(|problem| value_error("scheme", problem))?;
    let secrets = read_secrets(secrets, preset, &compiled)?;
    let headers = read_headers(header, preset)?;
    let now: Timestamp = match now {
        Some(now) => timestamp(now, "now")?,
        None => TokioRuntime.now(),
    };
    py.detach(|| compiled.verify(&secrets, &headers, &body, now)).map_err(exception)
}

fn preset(scheme: &Bound<'_, PyAny>) -> PyResult<Preset> {
    match &*text(scheme, "scheme")? {
        // The second is the name in the configuration of the server.
        "stalwart" | "dezky" => Ok(Preset::Dezky),
        "github" => Ok(Preset::Github),
        "stripe" => Ok(Preset::Stripe),
        "standard-webhooks" => Ok(Preset::StandardWebhooks),
        _ => Err(value_error(
            "scheme",
            "must be \"stalwart\", \"github\", \"stripe\" or \"standard-webhooks\"",
        )),
    }
}

fn read_secrets(secrets: &Bound<'_, PyAny>, preset: Preset, scheme: &Scheme) -> PyResult<Secrets> {
    let mut read = Vec::new();
    if is_bytes(secrets) || secrets.is_instance_of::<PyString>() {
        read.push(secret(secrets, "secrets", preset, scheme)?);
    } else {
        let expected = "a str, bytes, or an iterable of them";
        let items = secrets.try_iter().map_err(|_| type_error("secrets", expected, secrets))?;
        for item in items {
            if read.len() == MAX_SECRETS {
                return Err(value_error("secrets", format_args!("has more than {MAX_SECRETS}")));
            }
            read.push(secret(&item?, "each of secrets", preset, scheme)?);
        }
    }
    if read.is_empty() {
        return Err(value_error("secrets", "is empty: give at least one, or anyone could sign"));
    }
    Secrets::new(read).map_err(exception)
}

fn is_bytes(value: &Bound<'_, PyAny>) -> bool {
    value.is_instance_of::<PyBytes>() || value.is_instance_of::<PyByteArray>()
}

fn secret(
    value: &Bound<'_, PyAny>,
    name: &str,
    preset: Preset,
    scheme: &Scheme,
) -> PyResult<Secret> {
    let named = |error: Error| exception(error.context(name));
    if is_bytes(value) {
        let key = bytes(value, name, "a str or bytes")?;
        return Secret::from_bytes(&*key).map_err(named);
    }
    if !value.is_instance_of::<PyString>() {
        return Err(type_error(name, "a str or bytes", value));
    }
    let text = text(value, name)?;
    if preset == Preset::StandardWebhooks {
        return scheme.secret(&text).map_err(named);
    }
    Secret::new(text).map_err(named)
}

/// The headers of the request: all of them, or only the one with the signature.
fn read_headers(header: &Bound<'_, PyAny>, preset: Preset) -> PyResult<Headers> {
    let name = match preset {
        Preset::Dezky => "x-signature",
        Preset::Github => "x-hub-signature-256",
        Preset::Stripe => "stripe-signature",
        Preset::StandardWebhooks => "webhook-signature",
    };
    if header.is_none() {
        return Ok(Headers::default());
    }
    if header.is_instance_of::<PyString>() || is_bytes(header) {
        if preset == Preset::StandardWebhooks {
            return Err(value_error(
                "header",
                "must be all headers of the request: the id and the time are signed too",
            ));
        }
        return Ok(Headers::new([(name, header_text(header, "header")?)]));
    }
    let expected = "a str, None, or the headers as a mapping or pairs";
    let wrong = || type_error("header", expected, header);
    let pairs = if header.cast::<PyMapping>().is_ok() || header.hasattr("items")? {
        header.call_method0("items")?
    } else {
        header.clone()
    };
    let mut lines = Vec::new();
    for pair in pairs.try_iter().map_err(|_| wrong())? {
        if lines.len() == MAX_HEADERS {
            return Err(value_error("header", format_args!("has more than {MAX_HEADERS} lines")));
        }
        let (name, value): (Bound<'_, PyAny>, Bound<'_, PyAny>) =
            pair?.extract().map_err(|_| wrong())?;
        // Frameworks give other headers in any form; only those that are text can matter.
        lines.push((header_text(&name, "header")?, header_text(&value, "header")?));
    }
    Ok(Headers::new(lines))
}

/// A text of a header. Servers give its bytes as Latin-1.
fn header_text(value: &Bound<'_, PyAny>, name: &str) -> PyResult<String> {
    if is_bytes(value) {
        let raw = bytes(value, name, "a str or bytes")?;
        return Ok(raw.iter().map(|byte| char::from(*byte)).collect());
    }
    if !value.is_instance_of::<PyString>() {
        return Err(type_error(&format!("each name and value in {name}"), "a str or bytes", value));
    }
    text(value, name)
}
