//! Files of JSON lines, one event each.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

use dezky_core::{QuarantineItem, Result, Runtime, Timestamp};

use super::mapping::Mapped;
use super::{Mapping, not_json, without_mark};
use crate::json::Doc;
use crate::tail::{Decoded, FileTail, Line, LineDecoder, TailConfig};

/// Lines of a file as a mapping reads them.
///
/// A blank line is nothing. One that is no JSON object, or has no action, is one item
/// in quarantine. An event without an id of its own has that of its line
/// ([`Line::key`]), so equal lines are events of their own. `map.events` is for bodies
/// and plays no part here.
///
/// Secrets are hidden as in a body: they are in no event and no quarantined text. The
/// hashes of the tail, in line keys and cursors, are over the lines as they stand.
#[derive(Debug)]
pub struct MappedLines(Mapping);

impl MappedLines {
    /// Lines that `mapping` reads.
    pub fn new(mapping: Mapping) -> Self {
        Self(mapping)
    }

    /// Follows `path` as the mapping's source. Of lines longer than `max_line_bytes` the
    /// long values are cut; one that is longer than 64 MiB or no JSON object goes to the
    /// quarantine. Opens nothing; `config_invalid` if a bound is broken.
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

    fn read(&self, line: &Line<'_>, text: &str) -> Decoded {
        let bytes = line.bytes.len();
        let doc = match Doc::parse(text) {
            Ok(doc) => doc,
            // What can't be parsed can't be redacted, so nothing of it is kept.
            Err(_) if !line.is_complete => {
                let detail = "the beginning of a line, not kept, as there may be secrets in it";
                return line.quarantine("partial_line", detail, b"").into();
            }
            Err(error) => {
                return line.quarantine("not_json", &not_json(bytes, &error), b"").into();
            }
        };
        let clean = self.0.clean(doc.root());
        let is_redacted = matches!(clean, Cow::Owned(_));
        match self.0.map(doc.root(), &clean, is_redacted, line.now) {
            Mapped::Event(mut pulled) => {
                pulled.event.external_id.get_or_insert_with(|| line.key());
                if let Some(cut) = &line.cut {
                    pulled.event.metadata.annotate("cut", cut.note());
                }
                Decoded::Event(pulled)
            }
            Mapped::Skipped => Decoded::Skipped,
            Mapped::Odd(reason, what) => {
                let detail = format!("the line {what}");
                line.quarantine(reason, &detail, clean.as_bytes()).into()
            }
        }
    }
}

impl LineDecoder for MappedLines {
    fn decode(
        &self,
        line: Line<'_>,
        _last_time: &mut Option<Timestamp>,
        each: &mut dyn FnMut(Decoded),
    ) {
        let text = String::from_utf8_lossy(line.bytes);
        let text = without_mark(&text).trim_ascii();
        if !text.is_empty() {
            each(self.read(&line, text));
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
