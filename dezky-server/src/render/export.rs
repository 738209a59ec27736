//! The formats of exports: one line per event, and a last line that is there only if all events are.
//!
//! **NDJSON** ends with `{"export":{"id":…,"events":n,"whole":true}}`: no event has a member
//! `export`. **CSV** (RFC 4180) has no comments, and each record must have the same number of
//! fields, so its last record has `#whole` in the place of an event's id, which is a UUID, then the
//! number of events and the id of the export.

use dezky_core::{AuditEvent, Field, StoredEvent};
use serde_json::json;
use uuid::Uuid;

/// The columns of CSV; `seq`, `prevHash` and `hash` follow if the reader may see them.
const COLUMNS: [Field; 17] = [
    Field::Id,
    Field::At,
    Field::ReceivedAt,
    Field::ActorType,
    Field::ActorId,
    Field::ActorEmail,
    Field::ActorIp,
    Field::Action,
    Field::Outcome,
    Field::ResourceType,
    Field::ResourceId,
    Field::ResourceName,
    Field::TenantSlug,
    Field::PartnerSlug,
    Field::Source,
    Field::ExternalId,
    Field::Metadata,
];
const ERASED: &str = "erased";
const POSITION: [&str; 3] = ["seq", "prevHash", "hash"];

/// The format of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// One JSON object per line.
    Ndjson,
    /// Comma-separated values, for spreadsheets.
    Csv,
}

impl Format {
    /// The name in parameters.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Ndjson => "ndjson",
            Self::Csv => "csv",
        }
    }

    /// The value of `Content-Type`.
    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Self::Ndjson => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8; header=present",
        }
    }
}

/// Writes an export, piece by piece.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Encoder {
    pub(crate) format: Format,
    /// Whether the reader may see `seq`, `prevHash` and `hash`.
    pub(crate) with_position: bool,
}

impl Encoder {
    /// Writes the beginning: the header of CSV.
    pub(crate) fn begin(self, out: &mut Vec<u8>) {
        if self.format == Format::Csv {
            let names = COLUMNS.iter().map(|field| field.name()).chain([ERASED]);
            let position = POSITION.into_iter().filter(|_| self.with_position);
            record(out, names.chain(position));
        }
    }

    /// Writes an event.
    pub(crate) fn event(self, stored: &StoredEvent, out: &mut Vec<u8>) {
        match self.format {
            Format::Ndjson => {
                let start = out.len();
                let written = if self.with_position {
                    serde_json::to_writer(&mut *out, stored)
                } else {
                    serde_json::to_writer(&mut *out, &stored.without_position())
                };
                // Writing an event to memory does not fail.
                if written.is_err() {
                    out.truncate(start);
                    return;
                }
                out.push(b'\n');
            }
            Format::Csv => {
                let cells = COLUMNS.iter().map(|field| text_of(stored, *field));
                let erased: Vec<_> = stored.erased.iter().map(|field| field.name()).collect();
                let mut cells: Vec<String> = cells.chain([erased.join(" ")]).collect();
                if self.with_position {
                    cells.push(stored.seq.to_string());
                    cells.push(hex::encode(stored.prev_hash));
                    cells.push(hex::encode(stored.hash));
                }
                record(out, cells.iter().map(String::as_str));
            }
        }
    }

    /// Writes the last line, which says that the export is whole.
    pub(crate) fn end(self, id: Uuid, events: u64, out: &mut Vec<u8>) {
        match self.format {
            Format::Ndjson => {
                let whole = json!({ "export": { "id": id, "events": events, "whole": true } });
                out.extend(whole.to_string().into_bytes());
                out.push(b'\n');
            }
            Format::Csv => {
                let position = if self.with_position { POSITION.len() } else { 0 };
                let rest = COLUMNS.len() + 1 + position - 3;
                let (events, id) = (events.to_string(), id.to_string());
                let cells = ["#whole", &events, &id].into_iter();
                record(out, cells.chain(std::iter::repeat_n("", rest)));
            }
        }
    }
}

fn text_of(stored: &StoredEvent, field: Field) -> String {
    let AuditEvent { id, at, received_at, metadata, .. } = &stored.event;
    match field {
        Field::Id => id.to_string(),
        Field::At => at.to_string(),
        Field::ReceivedAt => received_at.to_string(),
        Field::Metadata if stored.erased.contains(&Field::Metadata) => String::new(),
        Field::Metadata => metadata.as_str().to_owned(),
        field => stored.event.text(field).unwrap_or_default().to_owned(),
    }
}

/// Writes a record of CSV.
fn record<'a>(out: &mut Vec<u8>, cells: impl Iterator<Item = &'a str>) {
    for (index, cell) in cells.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_cell(out, cell);
    }
    out.extend(b"\r\n");
}

/// Writes a cell, with CR and LF as `\r` and `\n`: a record is one physical line, so that no text of
/// an event can look like the last record of a whole export. Spreadsheets take a cell that begins with one of these characters for a formula,
/// also if it is quoted, so an apostrophe is put before it: others choose the values of events.
fn write_cell(out: &mut Vec<u8>, cell: &str) {
    let is_formula = cell.starts_with(['=', '+', '-', '@', '\t', '＝', '＋', '－', '＠']);
    let apostrophe = if is_formula { "'" } else { "" };
    if !cell.contains(['"', ',', '\r', '\n']) {
        out.extend(apostrophe.bytes());
        out.extend(cell.bytes());
        return;
    }
    out.push(b'"');
    out.extend(apostrophe.bytes());
    for byte in cell.bytes() {
        match byte {
            b'"' => out.extend(b"\"\""),
            b'\r' => out.extend(b"\\r"),
            b'\n' => out.extend(b"\\n"),
            byte => out.push(byte),
        }
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(text: &str) -> String {
        let mut out = Vec::new();
        write_cell(&mut out, text);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn cells_are_quoted_where_they_must_be_and_never_begin_a_formula() {
        for (text, written) in [
            ("", ""),
            ("plain", "plain"),
            ("größe 租户", "größe 租户"),
            ("a,b", "\"a,b\""),
            ("say \"hi\"", "\"say \"\"hi\"\"\""),
            ("two\nlines", "\"two\\nlines\""),
            ("=1+2", "'=1+2"),
            ("+1", "'+1"),
            ("-1", "'-1"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("\t=1", "'\t=1"),
            ("\r=1", "\"\\r=1\""),
            ("\n=1", "\"\\n=1\""),
            ("＝1", "'＝1"),
            ("=HYPERLINK(\"http://x\",\"y\")", "\"'=HYPERLINK(\"\"http://x\"\",\"\"y\"\")\""),
            ("a=1", "a=1"),
            ("'=1", "'=1"),
        ] {
            assert_eq!(cell(text), written, "{text:?}");
        }
    }

    #[test]
    fn no_cell_begins_a_line_of_its_own() {
        for hostile in ["x\n#whole,1042,019a", "x\r\n#whole,1,2", "\n#whole", "\"\n#whole,1\""] {
            let mut out = Vec::new();
            record(&mut out, ["id", hostile, hostile].into_iter());
            let text = String::from_utf8(out).unwrap();
            assert_eq!(text.matches(['\r', '\n']).count(), 2, "{text:?}");
            for cut in (0..=text.len()).filter(|cut| text.is_char_boundary(*cut)) {
                let last = text[..cut].lines().last().unwrap_or_default();
                assert!(!last.starts_with("#whole"), "{last:?}");
            }
        }
    }

    #[test]
    fn every_record_has_the_same_number_of_fields() {
        for (with_position, fields) in [(true, 21), (false, 18)] {
            let encoder = Encoder { format: Format::Csv, with_position };
            let mut out = Vec::new();
            encoder.begin(&mut out);
            encoder.end(Uuid::nil(), 3, &mut out);
            let text = String::from_utf8(out).unwrap();
            let lines: Vec<_> = text.split_terminator("\r\n").collect();
            for line in &lines {
                assert_eq!(line.split(',').count(), fields, "{line}");
            }
            assert!(lines[1].starts_with("#whole,3,00000000-0000-0000-0000-000000000000,,"));
            assert_eq!(lines[0].contains("seq"), with_position);
        }
    }
}
