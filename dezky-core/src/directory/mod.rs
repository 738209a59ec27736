//! The directory: tenants, partners and users of a platform, and how they change.
//!
//! [`Directory`] is the editor for platform code: every change commits together with its audit
//! event. [`DirectoryStore`] is the contract of the storage, [`DocumentDirectory`] implements it
//! with [documents](crate::documents), and [`DirectoryTenants`] finds the tenant of an event for
//! ingest.

mod documents;
mod edit;
mod fields;
mod input;
mod model;
mod tenants;

use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;

pub use self::documents::{DIRECTORY, DocumentDirectory};
pub use self::edit::Directory;
pub use self::fields::{
    MAX_DETAIL_CHARS, MAX_DOMAIN_BYTES, MAX_DOMAINS, MAX_EMAIL_BYTES, MAX_ID_BYTES, MAX_IDENTITIES,
    MAX_INTEGRATIONS, MAX_NAME_CHARS, MAX_PROVISIONING_ERROR_CHARS, MAX_SLUG_BYTES,
    MAX_SUBJECT_BYTES, MAX_USER_TENANTS, is_slug, slug as check_slug,
};
pub use self::input::{
    BillingPatch, ContactPatch, NewBilling, NewPartner, NewTenant, NewUser, PartnerPatch, Patch,
    ProvisioningReport, TenantPatch, UserPatch,
};
pub use self::model::{
    Billing, ContactInfo, INTEGRATIONS, Identity, Partner, PartnerStatus, ProvisioningStatus,
    Tenant, TenantStatus, User, UserStatus,
};
pub use self::tenants::DirectoryTenants;
pub use crate::change::Edit;
use crate::documents::Kind;
pub use crate::documents::MAX_PAGE;
use crate::store::{Anomaly, Capabilities};
use crate::{Error, ErrorKind, Result, SealedEvent, Timestamp};

/// The maximum number of changes per [`DirectoryStore::commit`].
pub const MAX_CHANGES: usize = 1_000;

/// The storage of the directory.
///
/// Every method may be called from many tasks at once. A commit is visible to every read that
/// begins after it, through any handle on the same database.
#[async_trait]
pub trait DirectoryStore: Send + Sync {
    /// The store's abilities beyond the contract's core.
    fn capabilities(&self) -> Capabilities;

    /// Compares the structure of the store's tables with their schema. Empty if they match,
    /// and for stores without such a structure. Read-only.
    async fn examine(&self) -> Result<Vec<Anomaly>> {
        Ok(Vec::new())
    }

    /// One tenant, also a deleted one, which owns no domains.
    async fn tenant(&self, key: TenantKey<'_>) -> Result<Option<Tenant>>;

    /// A page of tenants, by slug.
    ///
    /// # Errors
    /// `query_invalid` if `limit` is out of its bound.
    async fn tenants(&self, query: &TenantQuery) -> Result<Vec<Tenant>>;

    /// One partner, also a terminated one.
    async fn partner(&self, key: PartnerKey<'_>) -> Result<Option<Partner>>;

    /// A page of partners, by slug.
    ///
    /// # Errors
    /// `query_invalid` if `limit` is out of its bound.
    async fn partners(&self, query: &PartnerQuery) -> Result<Vec<Partner>>;

    /// One user, also a deactivated one.
    async fn user(&self, key: UserKey<'_>) -> Result<Option<User>>;

    /// A page of users, latest login first and those who never logged in last; among equals the
    /// greater id first.
    ///
    /// # Errors
    /// `query_invalid` if `limit` is out of its bound.
    async fn users(&self, query: &UserQuery) -> Result<Vec<User>>;

    /// The number of a partner's tenants that are not deleted.
    async fn count_tenants_of_partner(&self, partner_id: &str) -> Result<u64>;

    /// A number that grows with every change of a tenant, also a deletion or a restored document:
    /// the sum of all versions.
    ///
    /// The default reads all tenants; a store that can compute a sum overrides it.
    async fn tenants_revision(&self) -> Result<u64> {
        let mut query = TenantQuery { limit: MAX_PAGE, ..TenantQuery::default() };
        let mut sum = 0_u64;
        loop {
            let page = self.tenants(&query).await?;
            sum += page.iter().map(|tenant| tenant.version).sum::<u64>();
            if page.len() < query.limit {
                return Ok(sum);
            }
            query.after = page.last().map(|tenant| tenant.slug.clone());
        }
    }

    /// Makes all changes and stages the events in the outbox of the store's audit
    /// log, in one transaction, or does nothing.
    ///
    /// A document of version 1 must be new; one of version n must be stored at n − 1. Slugs, and a
    /// user's issuer and subject, never change. If the future is dropped, everything is committed
    /// or nothing is; read to find out.
    ///
    /// # Errors
    /// `field_invalid` if a document breaks a bound, `event_invalid` if an event
    /// does, `too_large`; `already_exists` names the key that is taken;
    /// `version_mismatch`; `not_found` if there is no document to change.
    async fn commit(&self, changes: Vec<DirectoryChange>, events: Vec<SealedEvent>) -> Result<()>;

    /// Takes over documents of another store as they are, whatever their version, in one
    /// transaction and without events: the write side of a copy. A document that the store has in
    /// the same or a later version stays. Idempotent.
    ///
    /// # Errors
    /// Those of [`commit`](Self::commit) except about versions; at most [`MAX_CHANGES`].
    async fn restore(&self, documents: Vec<DirectoryChange>) -> Result<()>;
}

/// A document in its new form.
#[derive(Debug, Clone, PartialEq)]
pub enum DirectoryChange {
    /// A tenant.
    Tenant(Box<Tenant>),
    /// A partner.
    Partner(Box<Partner>),
    /// A user.
    User(Box<User>),
}

impl DirectoryChange {
    /// Checks the document's bounds; every store does so before it commits.
    ///
    /// # Errors
    /// `field_invalid`, beginning with the field's JSON name.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Tenant(tenant) => tenant.validate(),
            Self::Partner(partner) => partner.validate(),
            Self::User(user) => user.validate(),
        }
    }

    /// The document's version.
    pub fn version(&self) -> u64 {
        match self {
            Self::Tenant(tenant) => tenant.version,
            Self::Partner(partner) => partner.version,
            Self::User(user) => user.version,
        }
    }

    fn kind(&self) -> &'static Kind {
        match self {
            Self::Tenant(_) => &documents::TENANT,
            Self::Partner(_) => &documents::PARTNER,
            Self::User(_) => &documents::USER,
        }
    }

    fn id(&self) -> &str {
        match self {
            Self::Tenant(tenant) => &tenant.id,
            Self::Partner(partner) => &partner.id,
            Self::User(user) => &user.id,
        }
    }

    /// The kind of document and its id, which no two changes of a commit share.
    pub(crate) fn identity(&self) -> (&'static str, &str) {
        (self.kind().what, self.id())
    }
}

impl From<Tenant> for DirectoryChange {
    fn from(tenant: Tenant) -> Self {
        Self::Tenant(Box::new(tenant))
    }
}

impl From<Partner> for DirectoryChange {
    fn from(partner: Partner) -> Self {
        Self::Partner(Box::new(partner))
    }
}

impl From<User> for DirectoryChange {
    fn from(user: User) -> Self {
        Self::User(Box::new(user))
    }
}

/// The key of a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TenantKey<'a> {
    /// By its slug.
    Slug(&'a str),
    /// By its id.
    Id(&'a str),
    /// By a domain that it owns, in lower case.
    Domain(&'a str),
}

/// The key of a partner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartnerKey<'a> {
    /// By its slug.
    Slug(&'a str),
    /// By its id.
    Id(&'a str),
}

/// The key of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserKey<'a> {
    /// By their id.
    Id(&'a str),
    /// By the claims of their tokens, compared as bytes.
    Subject {
        /// The issuer of the tokens.
        issuer: &'a str,
        /// The user's id at the issuer.
        subject: &'a str,
    },
    /// By their id in another system.
    Identity {
        /// The system.
        system: &'a str,
        /// Their id there.
        id: &'a str,
    },
}

/// A query of tenants, by slug.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantQuery {
    /// Only those whose slug sorts after this one.
    pub after: Option<String>,
    /// Only those with this status.
    pub status: Option<TenantStatus>,
    /// Only those of the partner with this id.
    pub partner_id: Option<String>,
    /// The maximum number, 1 to 500; 100 by default.
    pub limit: usize,
}

impl Default for TenantQuery {
    fn default() -> Self {
        Self { after: None, status: None, partner_id: None, limit: 100 }
    }
}

impl TenantQuery {
    /// The definition of the query, which every store must agree with.
    pub fn matches(&self, tenant: &Tenant) -> bool {
        self.after.as_ref().is_none_or(|after| tenant.slug > *after)
            && self.status.is_none_or(|status| tenant.status == status)
            && self.partner_id.as_ref().is_none_or(|id| tenant.partner_id.as_ref() == Some(id))
    }
}

/// A query of partners, by slug.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartnerQuery {
    /// Only those whose slug sorts after this one.
    pub after: Option<String>,
    /// Only those with this status.
    pub status: Option<PartnerStatus>,
    /// The maximum number, 1 to 500; 100 by default.
    pub limit: usize,
}

impl Default for PartnerQuery {
    fn default() -> Self {
        Self { after: None, status: None, limit: 100 }
    }
}

impl PartnerQuery {
    /// The definition of the query, which every store must agree with.
    pub fn matches(&self, partner: &Partner) -> bool {
        self.after.as_ref().is_none_or(|after| partner.slug > *after)
            && self.status.is_none_or(|status| partner.status == status)
    }
}

/// A query of users, latest login first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserQuery {
    /// Only those of the tenant with this id.
    pub tenant_id: Option<String>,
    /// Only those after this position.
    pub after: Option<UserCursor>,
    /// The maximum number, 1 to 500; 100 by default.
    pub limit: usize,
}

impl Default for UserQuery {
    fn default() -> Self {
        Self { tenant_id: None, after: None, limit: 100 }
    }
}

impl UserQuery {
    /// The definition of the query, which every store must agree with.
    pub fn matches(&self, user: &User) -> bool {
        self.tenant_id.as_ref().is_none_or(|id| user.tenant_ids.contains(id))
            && self.after.as_ref().is_none_or(|after| UserCursor::of(user) < *after)
    }
}

/// A user's position in the list, as text `<milliseconds>.<id>`, or `-.<id>` if they never logged
/// in. Greater is earlier in the list.
///
/// ```
/// use dezky_core::directory::UserCursor;
/// let cursor: UserCursor = "1767225600000.u-7".parse().unwrap();
/// assert_eq!(cursor.to_string(), "1767225600000.u-7");
/// assert!("-.u-7".parse::<UserCursor>().unwrap() < cursor);
/// assert_eq!("7".parse::<UserCursor>().unwrap_err().code(), "cursor_invalid");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct UserCursor {
    /// The time of their last login.
    pub last_login_at: Option<Timestamp>,
    /// Their id.
    pub id: String,
}

impl UserCursor {
    /// The position of `user`; a page after it starts with the next one.
    pub fn of(user: &User) -> Self {
        Self { last_login_at: user.last_login_at, id: user.id.clone() }
    }
}

impl fmt::Display for UserCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.last_login_at {
            Some(at) => write!(f, "{}.{}", at.as_millis(), self.id),
            None => write!(f, "-.{}", self.id),
        }
    }
}

impl FromStr for UserCursor {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let (at, id) = text.split_once('.')?;
            let last_login_at = match at {
                "-" => None,
                ms => Some(Timestamp::from_millis(ms.parse().ok()?)?),
            };
            fields::id("cursor", id).ok()?;
            Some(Self { last_login_at, id: id.to_owned() })
        };
        parse().ok_or_else(|| {
            Error::new(
                ErrorKind::CursorInvalid,
                "cursor is not from a list of users: start without one",
            )
        })
    }
}

/// The checks of every store before it reads its own state.
fn check_commit(changes: &[DirectoryChange]) -> Result<()> {
    if changes.len() > MAX_CHANGES {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!("a commit takes at most {MAX_CHANGES} changes: split it"),
        ));
    }
    changes.iter().try_for_each(DirectoryChange::validate)?;
    let identities: Vec<_> = changes.iter().map(DirectoryChange::identity).collect();
    fields::distinct("id", &identities)
}
