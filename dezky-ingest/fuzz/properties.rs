//! What must hold for any bytes: one function a target, shared by the fuzz targets
//! here and by a test that runs the corpus and mutations of it (`tests/it/fuzz.rs`).

use std::ops::ControlFlow;
use std::time::Duration;

use dezky_core::testkit::ManualRuntime;
use dezky_core::{PulledEvent, QuarantineItem, Runtime, Timestamp};
use dezky_ingest::authentik;
use dezky_ingest::authentik::protocol::{Answer, Item, Memory, Page, Place, Poll, Settings};
use dezky_ingest::ocis::{self, LineContext};
use dezky_ingest::stalwart;
use dezky_ingest::tail::{Cursor, Decoded, Frame, Framer, LONG_LINE_KEPT_BYTES};
use serde_json::{Value, json};

/// Stands where secrets stand, and must be in nothing that comes out.
const SECRET: &str = "Zq7plantedSecretZq7";

/// The most bytes kept of something in quarantine.
const MAX_RAW: usize = 64 << 10;

/// The lines are the same however the bytes are split, within the bound, and all of
/// the bytes are in them.
///
/// The first byte says how long a line may be, the second how chunks are cut.
pub(crate) fn framer(data: &[u8]) {
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

/// A line is decoded alike twice, to bounded things, and a token in it does not come
/// out.
pub(crate) fn ocis_line(data: &[u8]) {
    if contains(data, SECRET) {
        return;
    }
    let decoded = decode_line(data);
    assert_eq!(format!("{decoded:?}"), format!("{:?}", decode_line(data)));
    assert!(decoded.len() <= 1 + data.len());
    let mut planted = serde_json::from_slice(data).unwrap_or_else(
        |_| json!({"Action": "link_created", "Name": String::from_utf8_lossy(data)}),
    );
    plant(&mut planted, &["ShareToken", "token"]);
    if let Value::Object(members) = &mut planted {
        members.insert("Message".into(), format!("created link with token '{SECRET}'").into());
        no_secret(&decode_line(planted.to_string().as_bytes()));
    }
}

fn decode_line(line: &[u8]) -> Vec<Kept> {
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
        Decoded::Event(event) => kept.push(Kept::event(*event, line.len())),
        Decoded::Quarantine(item) => kept.push(Kept::item(&item)),
        Decoded::Skipped => {}
    };
    ocis::decode_line(context, 0, line, &mut None, &mut each);
    ocis::decode_unterminated(context, 0, line, &mut None, &mut each);
    kept
}

/// A body is decoded alike twice, to bounded things, and no password line and no token
/// in it comes out.
pub(crate) fn stalwart_body(data: &[u8]) {
    if contains(data, SECRET) {
        return;
    }
    let decoded = decode_body(data);
    assert_eq!(format!("{decoded:?}"), format!("{:?}", decode_body(data)));
    let mut body: Value = serde_json::from_slice(data).unwrap_or_default();
    plant(&mut body, &["contents"]);
    let details = json!({"id": SECRET, "details": [SECRET], "contents": SECRET});
    let body = json!([
        body,
        {"type": "auth.error", "data": details},
        {"type": "smtp.error", "data": {"causedBy": {"type": "auth.error", "data": details}}},
        {"nothing": body, "data": details},
    ]);
    no_secret(&decode_body(body.to_string().as_bytes()));
}

fn decode_body(body: &[u8]) -> Vec<Kept> {
    let decoded = stalwart::decode("stalwart", body, None, Timestamp::MIN);
    assert!(decoded.events.len() <= body.len());
    assert!(decoded.quarantine.len() <= 101, "what is odd is bounded");
    let mut kept: Vec<Kept> = Vec::new();
    for pulled in decoded.events {
        assert!(pulled.event.external_id.is_some());
        kept.push(Kept::event(pulled, body.len()));
    }
    kept.extend(decoded.quarantine.iter().map(Kept::item));
    kept
}

/// A page is read alike twice, to bounded things; no secret in it comes out; and the
/// poller goes on from whatever it says.
pub(crate) fn authentik_page(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if text.contains(SECRET) {
        return;
    }
    let read = read_page(text);
    assert_eq!(format!("{read:?}"), format!("{:?}", read_page(text)));
    let items = match serde_json::from_str(text) {
        Ok(Value::Object(mut page)) => page.remove("results").unwrap_or_default(),
        other => json!([{"pk": "1", "created": "2026-01-01T00:00:00Z", "action": "login",
            "context": other.unwrap_or_default()}]),
    };
    let mut items = if items.is_array() { items } else { json!([items]) };
    plant(&mut items, &["password", "apiToken", "client_secret"]);
    let page = json!({"pagination": {"next": 0, "count": 1}, "results": items});
    no_secret(&read_page(&page.to_string()));
}

fn read_page(text: &str) -> Vec<Kept> {
    let Some(Page { count, has_next, before, items }) = Page::parse(text) else {
        return Vec::new();
    };
    let read: Vec<_> = items.iter().map(|raw| (Item::read(raw), raw.get().len())).collect();
    let places: Vec<Option<Place>> = read.iter().map(|(item, _)| item.place.clone()).collect();
    let now = ManualRuntime::new(1).now();
    let mut poll = Poll::resume(settings(), None, Memory::default()).unwrap();
    for _ in 0..5 {
        if poll.request(now).is_none()
            || poll.answer(now, Answer::Page { count, has_next, before, places: &places }).is_err()
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
                Kept::event(authentik::map("authentik", event).into(), text.len())
            }
            Err(odd) => Kept::item(&fit(authentik::malformed_item("authentik", odd, bytes, now))),
        });
    }
    kept
}

/// The intake bounds what the source leaves to it.
fn fit(mut item: QuarantineItem) -> QuarantineItem {
    item.raw.truncate(MAX_RAW);
    item
}

fn settings() -> Settings {
    Settings { page_size: 100, overlap: Duration::from_mins(10), interval: Duration::from_mins(1) }
}

/// What is read as a cursor is written so that it is read as the same.
pub(crate) fn cursors(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // An old cursor, without the generation, is read and never written.
    let is_old = |cursor: &Cursor| cursor.at.generation.is_none() && cursor.at.position > 0;
    if let Ok(cursor) = Cursor::parse(text)
        && !is_old(&cursor)
    {
        let written = cursor.to_string();
        assert_eq!(Cursor::parse(&written).unwrap(), cursor);
        assert_eq!(Cursor::parse(&written).unwrap().to_string(), written);
    }
    let Ok(mut poll) = Poll::resume(settings(), Some(text), Memory::default()) else { return };
    let now = ManualRuntime::new(1).now();
    for answer in [Answer::TooLarge, Answer::NoSuchPage, Answer::NoSuchPage, Answer::TooLarge] {
        if poll.request(now).is_none() || poll.answer(now, answer).is_err() {
            break;
        }
    }
    let written = poll.cursor(Some(text), true).unwrap();
    // The number of cursors does not come to its end in this universe.
    if !written.contains("\"n\":18446744073709551615") {
        canonical_cursor(&written);
    }
}

fn canonical_cursor(text: &str) {
    let poll = Poll::resume(settings(), Some(text), Memory::default()).unwrap();
    assert_eq!(poll.cursor(Some(text), false), None, "nothing has changed");
}

/// What is kept of what came in, and can be looked through.
#[derive(Debug)]
struct Kept {
    debug: String,
    text: String,
}

impl Kept {
    fn event(pulled: PulledEvent, input: usize) -> Self {
        let debug = format!("{pulled:?}");
        let source = pulled.event.metadata.source().unwrap_or_default();
        assert!(source.len() <= 1_024 + 6 * input, "{} from {input} bytes", source.len());
        // Every event can be sealed, and what is sealed is within the log's bounds, but
        // for an identity that is too long.
        let sealed = pulled.event.seal(&ManualRuntime::new(1));
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

/// Puts the secret under `names` into every object.
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

fn no_secret(kept: &[Kept]) {
    for Kept { debug, text } in kept {
        assert!(!debug.contains(SECRET) && !text.contains(SECRET), "{debug} {text}");
    }
}

fn contains(data: &[u8], text: &str) -> bool {
    data.windows(text.len()).any(|window| window == text.as_bytes())
}
