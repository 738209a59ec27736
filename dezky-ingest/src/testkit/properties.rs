//! Properties that hold for any bytes: one function per fuzz target. The fuzz targets in `fuzz/` and
//! a test that mutates their corpus (`tests/it/fuzz.rs`) share them. Each panics if its property does
//! not hold.

use std::ops::ControlFlow;
use std::time::Duration;

use dezky_core::{PulledEvent, QuarantineItem, Runtime, Timestamp};
use serde_json::{Value, json};

use crate::authentik;
use crate::authentik::protocol::{Answer, Item, Memory, Page, Poll, Position, Settings};
use crate::ocis::{self, LineContext};
use crate::stalwart;
use crate::tail::{Cursor, DecodedLine, Frame, Framer, LONG_LINE_KEPT_BYTES};

/// Planted as a secret; no output may contain it.
const SECRET: &str = "Zq7plantedSecretZq7";

/// The maximum size of a quarantine item, in bytes.
const MAX_RAW: usize = 64 << 10;

/// The lines do not depend on how the bytes are split, are within the bound, and cover all bytes.
///
/// The first byte determines the maximum length of a line, the second how chunks are cut.
pub fn framer(data: &[u8]) {
    let [bound, cuts, bytes @ ..] = data else { return };
    let max_line_bytes = 1 + usize::from(*bound);
    let whole = lines(max_line_bytes, [bytes]);
    let mut state = u32::from(*cuts);
    let mut rest = bytes;
    let chunks = std::iter::from_fn(|| {
        state = state.wrapping_mul(0x0019_660d).wrapping_add(0x3c6e_f35f);
        let cut = (state >> 24) as usize % (1 + usize::from(*cuts) % 64);
        let (chunk, behind) = rest.split_at_checked(cut)?;
        rest = behind;
        Some(chunk)
    });
    let chunks: Vec<_> = chunks.take(1 + bytes.len()).collect();
    let taken: usize = chunks.iter().map(|chunk| chunk.len()).sum();
    let split = lines(max_line_bytes, chunks.into_iter().chain([&bytes[taken..]]));
    assert_eq!(whole, split);
    let mut next = 0;
    for line in &whole {
        assert_eq!(line.offset, next);
        next += line.bytes + 1;
        let is_long = line.bytes > max_line_bytes as u64;
        assert_eq!(line.ends.is_some(), is_long);
        let kept = &bytes[usize::try_from(line.offset).unwrap()..][..line.kept.len()];
        assert_eq!(line.kept, kept);
        match &line.ends {
            Some(tail) => assert!(line.kept.len().max(tail.len()) <= LONG_LINE_KEPT_BYTES),
            None => assert_eq!(line.kept.len() as u64, line.bytes),
        }
    }
    let ends = bytes.split(|b| *b == b'\n').count() - 1;
    assert_eq!(whole.iter().filter(|line| line.is_complete).count(), ends);
}

#[derive(Debug, PartialEq)]
struct Line {
    offset: u64,
    bytes: u64,
    is_complete: bool,
    /// The line, or the head of a long one.
    kept: Vec<u8>,
    /// The tail of a long one.
    ends: Option<Vec<u8>>,
}

fn lines<'a>(max_line_bytes: usize, chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<Line> {
    let line = |frame: Frame<'_>, is_complete| match frame {
        Frame::Line { offset, bytes } => {
            Line { offset, bytes: bytes.len() as u64, is_complete, kept: bytes.into(), ends: None }
        }
        Frame::TooLong { offset, bytes, head, tail, .. } => {
            Line { offset, bytes, is_complete, kept: head.into(), ends: Some(tail.into()) }
        }
    };
    let mut framer = Framer::new(0, max_line_bytes);
    let mut lines = Vec::new();
    for chunk in chunks {
        let _ = framer.push(chunk, |frame| {
            lines.push(line(frame, true));
            ControlFlow::<()>::Continue(())
        });
    }
    lines.extend(framer.unterminated().map(|frame| line(frame, false)));
    lines
}

/// Decoding a line is deterministic and bounded, and no token in it gets out.
pub fn ocis_line(data: &[u8], runtime: &dyn Runtime) {
    if contains(data, SECRET) {
        return;
    }
    let decoded = decode_line(data, runtime);
    assert_eq!(format!("{decoded:?}"), format!("{:?}", decode_line(data, runtime)));
    assert!(decoded.len() <= 1 + data.len());
    let mut planted = serde_json::from_slice(data).unwrap_or_else(
        |_| json!({"Action": "link_created", "Name": String::from_utf8_lossy(data)}),
    );
    plant(&mut planted, &["ShareToken", "token"]);
    if let Value::Object(members) = &mut planted {
        members.insert("Message".into(), format!("created link with token '{SECRET}'").into());
        no_secret(&decode_line(planted.to_string().as_bytes(), runtime));
    }
}

fn decode_line(line: &[u8], runtime: &dyn Runtime) -> Vec<Output> {
    let generation = [7; 32];
    let options = ocis::OcisOptions {
        share_accepted: true,
        share_declined: true,
        ocm_invites: true,
        link_access_failed: true,
    };
    let context =
        LineContext { source: "ocis", options, generation: &generation, now: Timestamp::MIN };
    let mut kept = Vec::new();
    let mut each = |decoded| match decoded {
        DecodedLine::Event(event) => kept.push(Output::event(*event, line.len(), runtime)),
        DecodedLine::Quarantine(item) => kept.push(Output::item(&item)),
        DecodedLine::Skipped => {}
    };
    ocis::decode_line(context, 0, line, &mut None, &mut each);
    ocis::decode_unterminated(context, 0, line, &mut None, &mut each);
    kept
}

/// Decoding a body is deterministic and bounded, and no password line or token in it gets out.
pub fn stalwart_body(data: &[u8], runtime: &dyn Runtime) {
    if contains(data, SECRET) {
        return;
    }
    let decoded = decode_body(data, runtime);
    assert_eq!(format!("{decoded:?}"), format!("{:?}", decode_body(data, runtime)));
    let mut body: Value = serde_json::from_slice(data).unwrap_or_default();
    plant(&mut body, &["contents"]);
    let details = json!({"id": SECRET, "details": [SECRET], "contents": SECRET});
    let body = json!([
        body,
        {"type": "auth.error", "data": details},
        {"type": "smtp.error", "data": {"causedBy": {"type": "auth.error", "data": details}}},
        {"nothing": body, "data": details},
    ]);
    no_secret(&decode_body(body.to_string().as_bytes(), runtime));
}

fn decode_body(body: &[u8], runtime: &dyn Runtime) -> Vec<Output> {
    let decoded = stalwart::decode("stalwart", body, None, Timestamp::MIN);
    assert!(decoded.events.len() <= body.len());
    assert!(decoded.quarantine.len() <= 101, "malformed items are bounded");
    let mut kept: Vec<Output> = Vec::new();
    for pulled in decoded.events {
        assert!(pulled.event.external_id.is_some());
        kept.push(Output::event(pulled, body.len(), runtime));
    }
    kept.extend(decoded.quarantine.iter().map(Output::item));
    kept
}

/// Reading a page is deterministic and bounded; no secret in it gets out; and the poller can
/// continue from whatever it says.
pub fn authentik_page(data: &[u8], runtime: &dyn Runtime) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if text.contains(SECRET) {
        return;
    }
    let read = read_page(text, runtime);
    assert_eq!(format!("{read:?}"), format!("{:?}", read_page(text, runtime)));
    let items = match serde_json::from_str(text) {
        Ok(Value::Object(mut page)) => page.remove("results").unwrap_or_default(),
        other => json!([{"pk": "1", "created": "2026-01-01T00:00:00Z", "action": "login",
            "context": other.unwrap_or_default()}]),
    };
    let mut items = if items.is_array() { items } else { json!([items]) };
    plant(&mut items, &["password", "apiToken", "client_secret"]);
    let page = json!({"pagination": {"next": 0, "count": 1}, "results": items});
    no_secret(&read_page(&page.to_string(), runtime));
}

fn read_page(text: &str, runtime: &dyn Runtime) -> Vec<Output> {
    let Some(Page { count, has_next, before, items }) = Page::parse(text) else {
        return Vec::new();
    };
    let read: Vec<_> = items.iter().map(|raw| (Item::read(raw), raw.get().len())).collect();
    let positions: Vec<Option<Position>> =
        read.iter().map(|(item, _)| item.position.clone()).collect();
    let now = runtime.now();
    let mut poll = Poll::resume(settings(), None, Memory::default()).unwrap();
    for _ in 0..5 {
        if poll.request(now).is_none()
            || poll
                .answer(now, Answer::Page { count, has_next, before, positions: &positions })
                .is_err()
        {
            break;
        }
        let cursor = poll.cursor(None, true).unwrap();
        canonical_cursor(&cursor);
    }
    let mut kept = Vec::new();
    for (item, bytes) in read {
        kept.push(match item.event {
            Ok(event) => {
                let _ = authentik::tenant_user(&event);
                Output::event(authentik::map("authentik", event).into(), text.len(), runtime)
            }
            Err(odd) => Output::item(&fit(authentik::malformed_item("authentik", odd, bytes, now))),
        });
    }
    kept
}

/// Truncates an item as the intake does.
fn fit(mut item: QuarantineItem) -> QuarantineItem {
    item.raw.truncate(MAX_RAW);
    item
}

fn settings() -> Settings {
    Settings { page_size: 100, overlap: Duration::from_mins(10), interval: Duration::from_mins(1) }
}

/// A cursor that can be parsed survives being written and parsed again.
pub fn cursors(data: &[u8], runtime: &dyn Runtime) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // An old cursor, without the generation, is accepted but never written.
    let is_old = |cursor: &Cursor| cursor.at.generation.is_none() && cursor.at.position > 0;
    if let Ok(cursor) = Cursor::parse(text)
        && !is_old(&cursor)
    {
        let written = cursor.to_string();
        assert_eq!(Cursor::parse(&written).unwrap(), cursor);
        assert_eq!(Cursor::parse(&written).unwrap().to_string(), written);
    }
    let Ok(mut poll) = Poll::resume(settings(), Some(text), Memory::default()) else { return };
    let now = runtime.now();
    for answer in [Answer::TooLarge, Answer::NoSuchPage, Answer::NoSuchPage, Answer::TooLarge] {
        if poll.request(now).is_none() || poll.answer(now, answer).is_err() {
            break;
        }
    }
    let written = poll.cursor(Some(text), true).unwrap();
    // The count of cursors never overflows in practice.
    if !written.contains("\"n\":18446744073709551615") {
        canonical_cursor(&written);
    }
}

fn canonical_cursor(text: &str) {
    let poll = Poll::resume(settings(), Some(text), Memory::default()).unwrap();
    assert_eq!(poll.cursor(Some(text), false), None, "nothing has changed");
}

/// Decoded output, to be searched for secrets.
#[derive(Debug)]
struct Output {
    debug: String,
    text: String,
}

impl Output {
    fn event(mut pulled: PulledEvent, input: usize, runtime: &dyn Runtime) -> Self {
        let debug = format!("{pulled:?}");
        let source = pulled.event.metadata.source().unwrap_or_default();
        assert!(source.len() <= 1_024 + 6 * input, "{} from {input} bytes", source.len());
        // A random id would tell equal events apart.
        pulled.event.id = "019b76da-a800-7000-8000-000000000001".parse().ok();
        // Every event can be sealed and is then within the log's bounds, except for an external id
        // that is too long.
        let sealed = pulled.event.seal(runtime);
        if let Err(invalid) = sealed.validate() {
            assert!(invalid.to_string().contains("externalId"), "{invalid}");
        }
        Self { debug, text: serde_json::to_string(sealed.event()).unwrap() }
    }

    fn item(item: &QuarantineItem) -> Self {
        assert!(item.raw.len() <= MAX_RAW && item.key.len() <= 512 && item.reason.len() <= 64);
        Self {
            debug: String::new(),
            text: format!("{item:?} {}", String::from_utf8_lossy(&item.raw)),
        }
    }
}

/// Plants the secret under `names` in every object.
fn plant(value: &mut Value, names: &[&str]) {
    match value {
        Value::Object(members) => {
            members.values_mut().for_each(|value| plant(value, names));
            for name in names {
                members.insert((*name).to_owned(), SECRET.into());
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| plant(value, names)),
        _ => {}
    }
}

fn no_secret(kept: &[Output]) {
    for Output { debug, text } in kept {
        assert!(!debug.contains(SECRET) && !text.contains(SECRET), "{debug} {text}");
    }
}

fn contains(data: &[u8], text: &str) -> bool {
    data.windows(text.len()).any(|window| window == text.as_bytes())
}
