//! The cursors of the earlier platform's readers.

use dezky_core::Timestamp;
use dezky_ingest::{authentik, ocis, tail};

use super::fields::Fields;

/// The result for a cursor.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cursor {
    /// Reading continues here.
    At(String),
    /// Reading can't continue, for this reason: the source is read again, and duplicates add
    /// nothing.
    Again(&'static str),
}

/// The source of a cursor, and the result.
pub(super) fn cursor(fields: &mut Fields) -> (String, Cursor) {
    fields.take("createdAt");
    fields.take("updatedAt");
    let source = fields.text("source").unwrap_or_else(|| fields.id.clone());
    let said = ["cursor", "value", "position"].iter().find_map(|name| fields.text(name));
    let Some(said) = said else { return (source, Cursor::Again("it says nothing")) };
    let cursor = match source.split(':').next() {
        Some(authentik::SOURCE) => match Timestamp::parse(&said) {
            Some(at) => Cursor::At(authentik::cursor_from(at)),
            None => Cursor::Again("it is not a time"),
        },
        // The tail verifies the place before it reads from there.
        Some(ocis::SYSTEM) => match tail::Cursor::parse(&said) {
            Ok(_) => Cursor::At(said),
            Err(_) => Cursor::Again("it is not <inode>:<position>"),
        },
        _ => Cursor::Again("the source has none here"),
    };
    (source, cursor)
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{DateTime, Document, doc};

    use super::*;

    fn mapped(document: Document) -> (String, Cursor) {
        cursor(&mut Fields::new(document))
    }

    #[test]
    fn each_goes_on_where_it_can() {
        let watermark = r#"{"v":2,"n":0,"watermark":"2026-01-01T00:00:00.000Z"}"#;
        let at = DateTime::from_millis(1_767_225_600_000);
        for said in [
            doc! {"source": "authentik", "cursor": "2026-01-01T00:00:00Z"},
            doc! {"_id": "authentik", "value": at},
        ] {
            assert_eq!(mapped(said), ("authentik".into(), Cursor::At(watermark.into())));
        }
        let ocis = mapped(doc! {"source": "ocis", "cursor": "10469822:18028"});
        assert_eq!(ocis.1, Cursor::At("10469822:18028".into()));
        for odd in [
            doc! {"source": "authentik", "cursor": "yesterday"},
            doc! {"source": "ocis", "cursor": "18028"},
            doc! {"source": "ocis"},
            doc! {"source": "stalwart", "cursor": "1"},
        ] {
            assert!(matches!(mapped(odd).1, Cursor::Again(_)));
        }
    }
}
