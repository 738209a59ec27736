//! Files of JSON lines, one event each.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

use dezky_core::json::{Doc, Value};
use dezky_core::{QuarantineItem, Result, Runtime, Timestamp};

use super::mapping::Mapped;
use super::{LINE_KEY_PREFIX, Mapping, sequence, without_mark};
use crate::body::not_json;
use crate::tail::{DecodedLine, FileTail, Line, LineDecoder, TailConfig};

/// Decodes the lines of a file by a mapping.
///
/// Blank lines are skipped. A line that is not a JSON object, or has no action, is one quarantine
/// item; several objects in one line are one event each. An event without an id is identified by
/// its line ([`Line::key`]), so equal lines are separate events. `map.events` applies only to
/// bodies.
///
/// Secrets are hidden as in a body: events and quarantined text hold none. The hashes of the tail,
/// in line keys and cursors, cover the original lines.
#[derive(Debug)]
pub struct MappedLines(Mapping);

impl MappedLines {
    /// Creates a decoder that uses `mapping`.
    pub fn new(mapping: Mapping) -> Self {
        Self(mapping)
    }

    /// Creates a tail that follows `path` as the mapping's source. Long values of lines over
    /// `max_line_bytes` are cut; such a line goes to the quarantine if it is longer than 64 MiB or
    /// not a JSON object. Opens nothing; `config_invalid` if a value is out of bounds.
    pub fn follow(
        mapping: Mapping,
        path: impl Into<PathBuf>,
        max_line_bytes: usize,
        runtime: Arc<dyn Runtime>,
    ) -> Result<FileTail> {
        let mut config = TailConfig::new(path, mapping.source());
        config.max_line_bytes = max_line_bytes;
        FileTail::new(config, Arc::new(Self::new(mapping)), runtime)
    }

    fn read(&self, line: &Line<'_>, text: &str, each: &mut dyn FnMut(DecodedLine)) {
        let error = match Doc::parse(text) {
            Ok(doc) => return each(self.object(line, doc.root(), line.key())),
            Err(error) => error,
        };
        // Several objects without a newline between them.
        let list = sequence(text, usize::MAX).ok().flatten();
        if let Some(list) = list.as_ref().and_then(|list| Doc::parse(list).ok())
            && list.root().elements().all(Value::is_object)
        {
            for (n, object) in list.root().elements().enumerate() {
                let key = if n == 0 { line.key() } else { format!("{}#{n}", line.key()) };
                each(self.object(line, object, key));
            }
            return;
        }
        // Text that can't be parsed can't be redacted, so nothing of it is kept.
        let item = if line.is_complete {
            line.quarantine("not_json", &not_json(line.bytes.len(), &error), b"")
        } else {
            let detail = "the beginning of a line, not kept, as there may be secrets in it";
            line.quarantine("partial_line", detail, b"")
        };
        each(item.into());
    }

    /// Maps an object of the line; `key` identifies it unless it has an id.
    fn object(&self, line: &Line<'_>, object: Value<'_>, key: String) -> DecodedLine {
        let clean = self.0.clean(object);
        let is_redacted = matches!(clean, Cow::Owned(_));
        match self.0.map(object, &clean, is_redacted, line.now) {
            Mapped::Event(mut pulled) => {
                pulled.event.external_id.get_or_insert(key);
                if let Some(cut) = &line.cut {
                    cut.annotate(&mut pulled.event.metadata);
                }
                DecodedLine::Event(pulled)
            }
            Mapped::Skipped => DecodedLine::Skipped,
            Mapped::Odd(reason, what) => {
                let mut item =
                    line.quarantine(reason, &format!("the line {what}"), clean.as_bytes());
                item.key = format!("{LINE_KEY_PREFIX}{key}");
                item.into()
            }
        }
    }
}

impl LineDecoder for MappedLines {
    fn decode(
        &self,
        line: Line<'_>,
        _last_time: &mut Option<Timestamp>,
        each: &mut dyn FnMut(DecodedLine),
    ) {
        let text = String::from_utf8_lossy(line.bytes);
        let text = without_mark(&text).trim_ascii();
        if !text.is_empty() {
            self.read(&line, text, each);
        }
    }

    fn too_long(&self, head: Line<'_>, bytes: u64) -> QuarantineItem {
        let detail = format!(
            "a line of {bytes} bytes is over the limit; not kept, as there may be secrets in \
             its first"
        );
        head.quarantine("line_too_long", &detail, b"")
    }
}
