//! Filters, limits and page cursors of `list`.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::rows::{CursorKey, ListPlace, SearchColumns};
use crate::{AuditEvent, Error, ErrorKind, Outcome, Result, StoredEvent, Timestamp};

/// What `list` is asked: every filter must match; none set matches everything.
///
/// ```
/// use dezky_core::store::ListQuery;
/// let query = ListQuery { action: Some("tenant.".into()), limit: 20, ..ListQuery::default() };
/// assert!(query.filter().is_ok());
/// assert!(ListQuery { limit: 501, ..ListQuery::default() }.filter().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListQuery {
    /// Only events at or after.
    pub since: Option<Timestamp>,
    /// Only events before.
    pub until: Option<Timestamp>,
    /// Only events before; the smaller of this and `until` holds.
    pub before: Option<Timestamp>,
    /// A leading part of the action, literally: `tenant.` or `tenant.suspended`.
    pub action: Option<String>,
    /// The tenant; the empty text finds events of none.
    pub tenant_slug: Option<String>,
    /// The partner.
    pub partner_slug: Option<String>,
    /// The actor's id.
    pub actor_id: Option<String>,
    /// The actor's e-mail address, whole, in any case.
    pub actor_email: Option<String>,
    /// The resource's type.
    pub resource_type: Option<String>,
    /// The resource's id.
    pub resource_id: Option<String>,
    /// The outcome.
    pub outcome: Option<Outcome>,
    /// The source; without an instance all its instances too.
    pub source: Option<String>,
    /// A text within action, resourceName, actorEmail or tenantSlug, in any case.
    pub q: Option<String>,
    /// The most events of a page, 1 to 500.
    pub limit: usize,
    /// Where to go on: [`ListPage::next_cursor`] of a page of the same filters.
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
    /// The events of a page where nothing else is asked.
    pub const DEFAULT_LIMIT: usize = 100;
    /// The most events of a page.
    pub const MAX_LIMIT: usize = 500;
    /// The most bytes of a filter's text.
    pub const MAX_FILTER_BYTES: usize = 1_024;

    /// Checks the bounds and folds the case of filters that ignore it.
    pub fn filter(&self) -> Result<Filter> {
        if !(1..=Self::MAX_LIMIT).contains(&self.limit) {
            return Err(invalid(format!("limit is {}: it must be 1 to 500", self.limit)));
        }
        let text = |name: &str, value: &Option<String>| match value {
            Some(v) if v.len() > Self::MAX_FILTER_BYTES => {
                Err(invalid(format!("{name} has {} bytes: at most 1024", v.len())))
            }
            // Stored texts have U+FFFD where U+0000 was.
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

/// A checked query, as engines compare it: bytes only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Filter {
    /// `at` is at or after.
    pub since: Option<Timestamp>,
    /// `at` is before.
    pub until: Option<Timestamp>,
    /// `action` begins with.
    pub action_prefix: Option<String>,
    /// `tenantSlug`.
    pub tenant: Option<TenantMatch>,
    /// `partnerSlug` equals.
    pub partner_slug: Option<String>,
    /// `actorId` equals.
    pub actor_id: Option<String>,
    /// The folded `actorEmail` equals.
    pub actor_email_fold: Option<String>,
    /// `resourceType` equals.
    pub resource_type: Option<String>,
    /// `resourceId` equals.
    pub resource_id: Option<String>,
    /// `outcome` equals.
    pub outcome: Option<Outcome>,
    /// `source`.
    pub source: Option<SourceMatch>,
    /// [`SearchColumns::search`] contains.
    pub search: Option<String>,
}

/// How `tenantSlug` is matched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum TenantMatch {
    /// It is absent.
    None,
    /// It equals.
    Slug(String),
}

/// How `source` is matched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SourceMatch {
    /// The source itself.
    pub exact: String,
    /// The beginning of its instances' names, `authentik:`; none if an instance was asked.
    pub instances: Option<String>,
}

impl SourceMatch {
    fn new(exact: String) -> Self {
        let instances = (!exact.contains(':')).then(|| format!("{exact}:"));
        Self { exact, instances }
    }
}

impl Filter {
    /// Whether only conditions on `at` and those a driver takes in are set, so
    /// that every row of the driver's range matches.
    pub fn is_index_only(&self, index: &super::ScanIndex) -> bool {
        let mut rest = self.clone();
        rest.since = None;
        rest.until = None;
        match index {
            super::ScanIndex::Time => {}
            super::ScanIndex::Tenant => rest.tenant = None,
            super::ScanIndex::Actor => rest.actor_id = None,
        }
        rest == Self::EVERYTHING
    }

    /// The filter that everything matches.
    pub const EVERYTHING: Self = Self {
        since: None,
        until: None,
        action_prefix: None,
        tenant: None,
        partner_slug: None,
        actor_id: None,
        actor_email_fold: None,
        resource_type: None,
        resource_id: None,
        outcome: None,
        source: None,
        search: None,
    };

    /// Whether `event`, with its derived columns, matches. This is the definition
    /// that engines' queries must agree with.
    pub fn matches(&self, event: &AuditEvent, search_columns: &SearchColumns) -> bool {
        fn equals(wanted: Option<&String>, value: Option<&String>) -> bool {
            wanted.is_none_or(|w| value == Some(w))
        }
        self.since.is_none_or(|t| event.at >= t)
            && self.until.is_none_or(|t| event.at < t)
            && self.action_prefix.as_ref().is_none_or(|p| event.action.starts_with(p.as_str()))
            && self.tenant.as_ref().is_none_or(|t| match t {
                TenantMatch::None => event.tenant_slug.is_none(),
                TenantMatch::Slug(slug) => event.tenant_slug.as_ref() == Some(slug),
            })
            && equals(self.partner_slug.as_ref(), event.partner_slug.as_ref())
            && equals(self.actor_id.as_ref(), event.actor_id.as_ref())
            && equals(self.actor_email_fold.as_ref(), search_columns.actor_email.as_ref())
            && equals(self.resource_type.as_ref(), event.resource_type.as_ref())
            && equals(self.resource_id.as_ref(), event.resource_id.as_ref())
            && self.outcome.is_none_or(|o| event.outcome == o)
            && self.source.as_ref().is_none_or(|s| {
                event.source == s.exact
                    || s.instances.as_ref().is_some_and(|i| event.source.starts_with(i.as_str()))
            })
            && self.search.as_ref().is_none_or(|q| search_columns.search.contains(q.as_str()))
    }

    fn digest(&self) -> [u8; 16] {
        let text = serde_json::to_vec(self).expect("a filter serialises");
        let digest = Sha256::digest(&text);
        let mut first = [0; 16];
        first.copy_from_slice(&digest[..16]);
        first
    }
}

/// One page.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListPage {
    /// The events, newest first.
    pub events: Vec<StoredEvent>,
    /// Where to go on; `None` at the end.
    pub next_cursor: Option<String>,
    /// The page is short because looking further would have cost too much;
    /// go on with the cursor.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

/// Version 2 names a place by `(at, seq)`, version 1 did by `(at, id)`.
const CURSOR_VERSION: u8 = 2;
const MAC_BYTES: usize = 16;
const CURSOR_BYTES: usize = 1 + 8 + 8 + 16 + MAC_BYTES;
/// Version and length of the cursors that were given out before.
const FIRST_VERSION: (u8, usize) = (1, 1 + 8 + 16 + 16 + MAC_BYTES);

/// The text of a page cursor: place, digest of the filters, MAC.
pub(super) fn encode_cursor(key: &CursorKey, filter: &Filter, (at, seq): ListPlace) -> String {
    let mut bytes = Vec::with_capacity(CURSOR_BYTES);
    bytes.push(CURSOR_VERSION);
    bytes.extend_from_slice(&at.as_millis().to_be_bytes());
    bytes.extend_from_slice(&seq.to_be_bytes());
    bytes.extend_from_slice(&filter.digest());
    let mac = cursor_mac(key, &bytes).finalize().into_bytes();
    bytes.extend_from_slice(&mac[..MAC_BYTES]);
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The place of a page cursor, if this log made it for these filters.
///
/// A cursor of version 1 is refused: it names a place among events of one time
/// that stood in another order, so that going on there would repeat some and skip
/// others.
pub(super) fn decode_cursor(key: &CursorKey, filter: &Filter, text: &str) -> Result<ListPlace> {
    let refused = || {
        cursor_invalid(
            "the cursor was not made by this log for these filters: start again from the first page, without a cursor",
        )
    };
    // Longer text is not decoded at all.
    if text.len() > CURSOR_BYTES * 2 {
        return Err(refused());
    }
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| refused())?;
    if bytes.first().is_some_and(|version| (*version, bytes.len()) == FIRST_VERSION) {
        return Err(cursor_invalid(
            "the cursor is of an older version of dezky, which listed events of one time in another order: start again from the first page, without a cursor",
        ));
    }
    if bytes.len() != CURSOR_BYTES || bytes[0] != CURSOR_VERSION {
        return Err(refused());
    }
    let (body, mac) = bytes.split_at(CURSOR_BYTES - MAC_BYTES);
    cursor_mac(key, body).verify_truncated_left(mac).map_err(|_| refused())?;
    if body[17..33] != filter.digest() {
        return Err(refused());
    }
    let at = i64::from_be_bytes(body[1..9].try_into().map_err(|_| refused())?);
    let seq = u64::from_be_bytes(body[9..17].try_into().map_err(|_| refused())?);
    Ok((Timestamp::from_millis(at).ok_or_else(refused)?, seq))
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

    /// Made by version 1 of `KEY`, no filter, 2026-01-01T00:00:00Z and the id of all
    /// bits set.
    const OF_VERSION_1: &str =
        "AQAAAZt22qgA_____________________wD-AhE1F-55lcBT4-Zmp1OUukWUW0LjRw1jJcH07Xw-";
    const OF_VERSION_2: &str = "AgAAAZt22qgAAAAAAAAAACkA_gIRNRfueZXAU-PmZqdTHgPvNAYs5MPusmejlfTxHw";

    #[test]
    fn a_cursor_of_version_2_is_read_for_ever() {
        let place = (Timestamp::from_millis(1_767_225_600_000).unwrap(), 41);
        assert_eq!(encode_cursor(&KEY, &Filter::EVERYTHING, place), OF_VERSION_2);
        assert_eq!(decode_cursor(&KEY, &Filter::EVERYTHING, OF_VERSION_2).unwrap(), place);
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
    fn a_place_of_any_size_comes_back() {
        for place in [(Timestamp::MIN, 0), (Timestamp::MAX, u64::MAX)] {
            let text = encode_cursor(&KEY, &Filter::EVERYTHING, place);
            assert_eq!(decode_cursor(&KEY, &Filter::EVERYTHING, &text).unwrap(), place);
        }
    }
}
