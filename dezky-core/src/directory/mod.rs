//! The directory: tenants, partners and users of a platform, and how they change.
//!
//! [`Directory`] is what platform code calls: every change commits together with
//! its audit event. [`DirectoryStore`] is the contract of where it is kept,
//! [`DocumentDirectory`] keeps it as [documents](crate::documents), and
//! [`DirectoryTenants`] answers ingest's question whose an event is.

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
pub use self::edit::{Directory, Edit};
pub use self::fields::{
    MAX_DETAIL_CHARS, MAX_DOMAIN_BYTES, MAX_DOMAINS, MAX_EMAIL_BYTES, MAX_ID_BYTES, MAX_IDENTITIES,
    MAX_INTEGRATIONS, MAX_NAME_CHARS, MAX_PROVISIONING_ERROR_CHARS, MAX_SLUG_BYTES,
    MAX_SUBJECT_BYTES, MAX_USER_TENANTS, email as check_email, is_slug, slug as check_slug,
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
use crate::documents::Kind;
use crate::store::{Anomaly, Capabilities};
use crate::{Error, ErrorKind, Result, SealedEvent, Timestamp};

/// The most documents of one page.
pub const MAX_PAGE: usize = 500;
/// The most changes of one [`DirectoryStore::commit`].
pub const MAX_CHANGES: usize = 1_000;

/// Where the documents are kept.
///
/// Every method may be called from many tasks at once. A commit is seen by every
/// read that begins after it, through any handle on the same database.
#[async_trait]
pub trait DirectoryStore: Send + Sync {
    /// What this store can do beyond the contract's core.
    fn capabilities(&self) -> Capabilities;

    /// Compares the structure of the store's tables with their schema. Empty if they match,
    /// and for stores without such a structure. Read-only.
    async fn examine(&self) -> Result<Vec<Anomaly>> {
        Ok(Vec::new())
    }

    /// One tenant, deleted ones included; but a deleted one owns no domains.
    async fn tenant(&self, key: TenantKey<'_>) -> Result<Option<Tenant>>;

    /// A page of tenants, by slug.
    ///
    /// # Errors
    /// `query_invalid` if `limit` is out of its bound.
    async fn tenants(&self, query: &TenantQuery) -> Result<Vec<Tenant>>;

    /// One partner, terminated ones included.
    async fn partner(&self, key: PartnerKey<'_>) -> Result<Option<Partner>>;

    /// A page of partners, by slug.
    ///
    /// # Errors
    /// `query_invalid` if `limit` is out of its bound.
    async fn partners(&self, query: &PartnerQuery) -> Result<Vec<Partner>>;

    /// One user, deactivated ones included.
    async fn user(&self, key: UserKey<'_>) -> Result<Option<User>>;

    /// A page of users: who logged in last comes first, who never did comes last;
    /// of equals the one with the greater id first.
    ///
    /// # Errors
    /// `query_invalid` if `limit` is out of its bound.
    async fn users(&self, query: &UserQuery) -> Result<Vec<User>>;

    /// How many tenants that are not deleted a partner looks after.
    async fn count_tenants_of_partner(&self, partner_id: &str) -> Result<u64>;

    /// A number that grows with every change of a tenant, deletions and what is restored
    /// included: the sum of all versions.
    ///
    /// This one reads all tenants; a store with a sum overrides it.
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
    /// A document of version 1 must be new; one of version n must be stored at
    /// n - 1. Slugs, and a user's issuer and subject, stay what they were. Not
    /// cancel-safe in its answer: if the future is dropped all of it is done or
    /// none; read to find out.
    ///
    /// # Errors
    /// `field_invalid` if a document breaks a bound, `event_invalid` if an event
    /// does, `too_large`; `already_exists` names the key that is taken;
    /// `version_mismatch`; `not_found` if there is no document to change.
    async fn commit(&self, changes: Vec<DirectoryChange>, events: Vec<SealedEvent>) -> Result<()>;

    /// Puts documents of another store here as they are, whatever their version, in
    /// one transaction and without an event: how copies come in. One that is here
    /// with the same version or a later one stays. Idempotent.
    ///
    /// # Errors
    /// As [`commit`](Self::commit), but for versions; at most [`MAX_CHANGES`].
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
    /// Checks the document's bounds; every store does before it commits.
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

/// How a tenant is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TenantKey<'a> {
    /// By its slug.
    Slug(&'a str),
    /// By its id.
    Id(&'a str),
    /// By a domain that it owns, in lower case.
    Domain(&'a str),
}

/// How a partner is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartnerKey<'a> {
    /// By its slug.
    Slug(&'a str),
    /// By its id.
    Id(&'a str),
}

/// How a user is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserKey<'a> {
    /// By their id.
    Id(&'a str),
    /// By what their tokens say, to the byte.
    Subject {
        /// Who says so.
        issuer: &'a str,
        /// Who they are to the issuer.
        subject: &'a str,
    },
    /// By who they are in another system.
    Identity {
        /// The system.
        system: &'a str,
        /// Their id there.
        id: &'a str,
    },
}

/// Which tenants, by slug.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantQuery {
    /// Only those whose slug comes after this one.
    pub after: Option<String>,
    /// Only those that stand so.
    pub status: Option<TenantStatus>,
    /// Only those of the partner with this id.
    pub partner_id: Option<String>,
    /// At most so many, 1 to 500; 100 unless set.
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

/// Which partners, by slug.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartnerQuery {
    /// Only those whose slug comes after this one.
    pub after: Option<String>,
    /// Only those that stand so.
    pub status: Option<PartnerStatus>,
    /// At most so many, 1 to 500; 100 unless set.
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

/// Which users, newest login first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserQuery {
    /// Only those of the tenant with this id.
    pub tenant_id: Option<String>,
    /// Only those after this place.
    pub after: Option<UserCursor>,
    /// At most so many, 1 to 500; 100 unless set.
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

/// A user's place among the others, as text `<milliseconds>.<id>`, of one who never
/// logged in `-.<id>`. Greater is earlier in the list.
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
    /// When they logged in last.
    pub last_login_at: Option<Timestamp>,
    /// Their id.
    pub id: String,
}

impl UserCursor {
    /// The place of `user`; a page after it begins with the next one.
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
                "cursor is not one that a list of users gave: begin without one",
            )
        })
    }
}

/// Refuses a page out of its bound.
fn check_limit(limit: usize) -> Result<()> {
    if (1..=MAX_PAGE).contains(&limit) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::QueryInvalid, format!("limit must be 1 to {MAX_PAGE}")))
}

/// What every store checks before it looks at what it holds.
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
