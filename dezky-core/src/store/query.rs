//! Filters, limits and page cursors of `list`.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::engine::{CursorKey, Filter, ListPosition, SearchColumns, SourceMatch, TenantMatch};
use super::sealed;
use crate::{Error, ErrorKind, Outcome, Result, StoredEvent, Timestamp};

/// The parameters of `list`. An event must match every filter that is set.
///
/// ```
/// use dezky_core::store::ListQuery;
/// let query = ListQuery { action: Some("tenant.".into()), limit: 20, ..ListQuery::default() };
/// assert!(query.filter().is_ok());
/// assert!(ListQuery { limit: 501, ..ListQuery::default() }.filter().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListQuery {
    /// The earliest time of an event.
    pub since: Option<Timestamp>,
    /// The time before which events must be.
    pub until: Option<Timestamp>,
    /// Like `until`; the earlier of the two applies.
    pub before: Option<Timestamp>,
    /// A literal prefix of the action: `tenant.` or `tenant.suspended`.
    pub action: Option<String>,
    /// The tenant; the empty text matches events without a tenant.
    pub tenant_slug: Option<String>,
    /// The partner.
    pub partner_slug: Option<String>,
    /// The actor's id.
    pub actor_id: Option<String>,
    /// The actor's complete e-mail address, ignoring case.
    pub actor_email: Option<String>,
    /// The resource's type.
    pub resource_type: Option<String>,
    /// The resource's id.
    pub resource_id: Option<String>,
    /// The outcome.
    pub outcome: Option<Outcome>,
    /// The source; without an instance, all its instances match too.
    pub source: Option<String>,
    /// A substring of action, resourceName, actorEmail or tenantSlug, ignoring case.
    pub q: Option<String>,
    /// Maximum number of events per page, 1 to 500.
    pub limit: usize,
    /// The position to continue from: [`ListPage::next_cursor`] of a page with the same filters.
    pub cursor: Option<String>,
}

impl Default for ListQuery {
    /// No filter, 100 events.
    fn default() -> Self {
        Self {
            since: None,
            until: None,
            before: None,
            action: None,
            tenant_slug: None,
            partner_slug: None,
            actor_id: None,
            actor_email: None,
            resource_type: None,
            resource_id: None,
            outcome: None,
            source: None,
            q: None,
            limit: Self::DEFAULT_LIMIT,
            cursor: None,
        }
    }
}

impl ListQuery {
    /// The default number of events per page.
    pub const DEFAULT_LIMIT: usize = 100;
    /// Maximum number of events per page.
    pub const MAX_LIMIT: usize = 500;
    /// Maximum length of a filter's text in bytes.
    pub const MAX_FILTER_BYTES: usize = 1_024;

    /// Checks the bounds, and folds the case of filters that ignore case.
    ///
    /// # Errors
    /// `query_invalid` names the parameter and its bound.
    pub fn filter(&self) -> Result<Filter> {
        if !(1..=Self::MAX_LIMIT).contains(&self.limit) {
            return Err(invalid(format!("limit is {}: it must be 1 to 500", self.limit)));
        }
        let text = |name: &str, value: &Option<String>| match value {
            Some(v) if v.len() > Self::MAX_FILTER_BYTES => {
                Err(invalid(format!("{name} has {} bytes: at most 1024", v.len())))
            }
            // In stored texts, U+FFFD replaces U+0000.
            Some(v) => Ok(Some(v.replace('\0', "\u{fffd}"))),
            None => Ok(None),
        };
        let until = match (self.until, self.before) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        Ok(Filter {
            since: self.since,
            until,
            action_prefix: text("action", &self.action)?.filter(|v| !v.is_empty()),
            tenant: text("tenantSlug", &self.tenant_slug)?.map(|slug| {
                if slug.is_empty() { TenantMatch::None } else { TenantMatch::Slug(slug) }
            }),
            partner_slug: text("partnerSlug", &self.partner_slug)?,
            actor_id: text("actorId", &self.actor_id)?,
            actor_email_fold: text("actorEmail", &self.actor_email)?
                .map(|v| SearchColumns::fold(&v)),
            resource_type: text("resourceType", &self.resource_type)?,
            resource_id: text("resourceId", &self.resource_id)?,
            outcome: self.outcome,
            source: text("source", &self.source)?.map(SourceMatch::new),
            search: text("q", &self.q)?.map(|v| SearchColumns::fold(&v)).filter(|v| !v.is_empty()),
        })
    }
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::QueryInvalid, message)
}

/// The digest of the filters, to which a cursor is bound.
fn digest(filter: &Filter) -> [u8; 16] {
    let text = serde_json::to_vec(filter).expect("a filter serialises");
    let digest = Sha256::digest(&text);
    let mut first = [0; 16];
    first.copy_from_slice(&digest[..16]);
    first
}

/// One page of a list.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListPage {
    /// The events, newest first.
    pub events: Vec<StoredEvent>,
    /// The cursor of the next page; `None` at the end.
    pub next_cursor: Option<String>,
    /// Whether the page is short because the scan reached its budget; continue with the cursor.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

/// Version 3 seals a position `(at, seq)`; version 2 held it in the clear, version 1 held
/// `(at, id)`.
const CURSOR_VERSION: u8 = 3;
const POSITION_BYTES: usize = 8 + 8;
const CURSOR_BYTES: usize = 1 + sealed::TAG_BYTES + POSITION_BYTES;
const MAC_BYTES: usize = 16;
/// Versions and lengths of the previous forms of cursors.
const SECOND_VERSION: (u8, usize) = (2, 1 + POSITION_BYTES + 16 + MAC_BYTES);
const FIRST_VERSION: (u8, usize) = (1, 1 + 8 + 16 + 16 + MAC_BYTES);
/// The purpose of the seal.
const CURSOR: &str = "cursor.v3";

/// The text of a page cursor: the sealed position, bound to the filters.
pub(super) fn encode_cursor(key: &CursorKey, filter: &Filter, (at, seq): ListPosition) -> String {
    let mut position = [0; POSITION_BYTES];
    position[..8].copy_from_slice(&at.as_millis().to_be_bytes());
    position[8..].copy_from_slice(&seq.to_be_bytes());
    let mut bytes = Vec::with_capacity(CURSOR_BYTES);
    bytes.push(CURSOR_VERSION);
    bytes.extend(sealed::seal(key, CURSOR, &digest(filter), position));
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The position in a page cursor, if this log issued it for these filters.
///
/// Cursors of version 1 are refused: events with equal times had a different order, so continuing
/// would repeat some of them and skip others.
pub(super) fn decode_cursor(key: &CursorKey, filter: &Filter, text: &str) -> Result<ListPosition> {
    let refused = || {
        cursor_invalid(
            "the cursor was not issued by this log for these filters: start again from the first page, without a cursor",
        )
    };
    // Don't decode longer text.
    if text.len() > FIRST_VERSION.1 * 2 {
        return Err(refused());
    }
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| refused())?;
    let position = match (bytes.first().copied().unwrap_or_default(), bytes.len()) {
        FIRST_VERSION => {
            return Err(cursor_invalid(
                "the cursor is from an older version of dezky, which listed events with equal times in a different order: start again from the first page, without a cursor",
            ));
        }
        SECOND_VERSION => position_of_version_2(key, filter, &bytes),
        (CURSOR_VERSION, CURSOR_BYTES) => sealed::open(key, CURSOR, &digest(filter), &bytes[1..]),
        _ => None,
    };
    let position: [u8; POSITION_BYTES] = position.ok_or_else(refused)?;
    let (at, seq) = position.split_first_chunk::<8>().ok_or_else(refused)?;
    let seq = u64::from_be_bytes(seq.try_into().map_err(|_| refused())?);
    Ok((Timestamp::from_millis(i64::from_be_bytes(*at)).ok_or_else(refused)?, seq))
}

/// The position in a cursor of version 2: position, digest of the filters, MAC.
fn position_of_version_2(
    key: &CursorKey,
    filter: &Filter,
    bytes: &[u8],
) -> Option<[u8; POSITION_BYTES]> {
    let (body, mac) = bytes.split_at_checked(bytes.len() - MAC_BYTES)?;
    cursor_mac(key, body).verify_truncated_left(mac).ok()?;
    let (position, filters) = body[1..].split_first_chunk()?;
    (*filters == digest(filter)).then_some(*position)
}

fn cursor_invalid(message: &'static str) -> Error {
    Error::new(ErrorKind::CursorInvalid, message)
}

fn cursor_mac(key: &CursorKey, body: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&key.0).expect("HMAC takes keys of any length");
    mac.update(b"dezky.audit.cursor.v2\0");
    mac.update(body);
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: CursorKey = CursorKey([7; 32]);

    /// A cursor of version 1 with `KEY`, no filter, 2026-01-01T00:00:00Z and an id with all bits
    /// set.
    const OF_VERSION_1: &str =
        "AQAAAZt22qgA_____________________wD-AhE1F-55lcBT4-Zmp1OUukWUW0LjRw1jJcH07Xw-";
    const OF_VERSION_3: &str = "A2-atVTLfcpDWmwrS20pyEZqxM2G3BYDyO1kGtxBdFs-";
    const OF_VERSION_2: &str = "AgAAAZt22qgAAAAAAAAAACkA_gIRNRfueZXAU-PmZqdTHgPvNAYs5MPusmejlfTxHw";

    #[test]
    fn a_cursor_of_version_2_is_always_readable() {
        let position = (Timestamp::from_millis(1_767_225_600_000).unwrap(), 41);
        assert_eq!(decode_cursor(&KEY, &Filter::EVERYTHING, OF_VERSION_2).unwrap(), position);
    }

    #[test]
    fn a_cursor_of_version_3_is_always_readable_and_hides_its_position() {
        let position = (Timestamp::from_millis(1_767_225_600_000).unwrap(), 41);
        let text = encode_cursor(&KEY, &Filter::EVERYTHING, position);
        assert_eq!(text, OF_VERSION_3);
        assert_eq!(decode_cursor(&KEY, &Filter::EVERYTHING, &text).unwrap(), position);
        let bytes = URL_SAFE_NO_PAD.decode(&text).unwrap();
        for part in [position.0.as_millis().to_be_bytes(), position.1.to_be_bytes()] {
            assert!(!bytes.windows(8).any(|window| window == part));
        }
    }

    #[test]
    fn a_cursor_of_version_1_is_refused_and_told_from_a_forged_one() {
        let refused = |text: &str| decode_cursor(&KEY, &Filter::EVERYTHING, text).unwrap_err();
        let old = refused(OF_VERSION_1);
        assert_eq!(old.kind(), ErrorKind::CursorInvalid);
        assert!(old.to_string().contains("older version of dezky"), "{old}");
        assert!(old.to_string().contains("start again from the first page"), "{old}");
        let forged = refused(&OF_VERSION_1[1..]);
        assert_eq!(forged.kind(), ErrorKind::CursorInvalid);
        assert!(!forged.to_string().contains("older"), "{forged}");
    }

    #[test]
    fn cursors_hold_positions_of_any_size() {
        for position in [(Timestamp::MIN, 0), (Timestamp::MAX, u64::MAX)] {
            let text = encode_cursor(&KEY, &Filter::EVERYTHING, position);
            assert_eq!(decode_cursor(&KEY, &Filter::EVERYTHING, &text).unwrap(), position);
        }
    }
}
