//! The documents: tenants, partners, users.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::fields;
use crate::event::text_enum;
use crate::{Invalid, Result, Timestamp};

/// The integrations that a new tenant is to be provisioned in.
pub const INTEGRATIONS: [&str; 3] = ["authentik", "stalwart", "ocis"];

text_enum! {
    /// The status of a tenant.
    TenantStatus {
        /// Created, not yet in use.
        Pending = "pending",
        /// In use.
        Active = "active",
        /// Not in use until it is resumed.
        Suspended = "suspended",
        /// Deleted; the document is kept, owns no domains and can't be changed.
        Deleted = "deleted",
    }
}

text_enum! {
    /// The state of provisioning a tenant in one integration.
    ProvisioningStatus {
        /// To be done.
        Pending = "pending",
        /// Done.
        Ok = "ok",
        /// Failed; the reason is in `provisioningErrors`.
        Error = "error",
    }
}

text_enum! {
    /// The status of a partner.
    PartnerStatus {
        /// May have customers.
        Active = "active",
        /// Gets no new customers; existing ones stay until they are detached.
        Terminated = "terminated",
    }
}

text_enum! {
    /// The status of a user.
    UserStatus {
        /// May use the platform.
        Active = "active",
        /// May not use the platform.
        Deactivated = "deactivated",
    }
}

/// Billing data: a tenant's `billing` and a partner's `billingInfo`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Billing {
    /// The company's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub company: Option<String>,
    /// Its VAT identification number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vat_id: Option<String>,
    /// The address for invoices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// The postal address, in lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// The contact at a partner.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContactInfo {
    /// A person or a team.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Their e-mail address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// Their phone number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phone: Option<String>,
}

/// A customer of the platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tenant {
    /// The id, which never changes because rollouts of flags depend on it; a UUID unless imported.
    pub id: String,
    /// The name in URLs and in the audit log; unique, also among deleted tenants, and never
    /// changed.
    pub slug: String,
    /// The display name.
    pub name: String,
    /// The status.
    pub status: TenantStatus,
    /// The key of its plan.
    pub plan: String,
    /// Its domains, in lower case. A domain belongs to one tenant that is not deleted.
    #[serde(default)]
    pub domains: Vec<String>,
    /// The id of its partner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partner_id: Option<String>,
    /// Billing data.
    #[serde(default)]
    pub billing: Billing,
    /// The state of provisioning, by integration.
    #[serde(default)]
    pub provisioning_status: BTreeMap<String, ProvisioningStatus>,
    /// The reason why provisioning failed, by integration.
    #[serde(default)]
    pub provisioning_errors: BTreeMap<String, String>,
    /// Counts the changes, from 1.
    pub version: u64,
    /// The time of creation.
    pub created_at: Timestamp,
    /// The time of the last change.
    pub updated_at: Timestamp,
}

/// A reseller with tenants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Partner {
    /// The id, which never changes; a UUID unless imported.
    pub id: String,
    /// The name in URLs and in the audit log; unique and never changed.
    pub slug: String,
    /// The display name.
    pub name: String,
    /// Their domain, in lower case; it is informational and not unique.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// The status.
    pub status: PartnerStatus,
    /// Their share, in percent, 0 to 100.
    pub margin_pct: f64,
    /// The contact.
    #[serde(default)]
    pub contact_info: ContactInfo,
    /// Billing data.
    #[serde(default)]
    pub billing_info: Billing,
    /// Counts the changes, from 1.
    pub version: u64,
    /// The time of creation.
    pub created_at: Timestamp,
    /// The time of the last change.
    pub updated_at: Timestamp,
}

/// A user as another system knows them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Identity {
    /// The system: `authentik`, `stalwart`, `ocis`.
    pub system: String,
    /// The user's id there.
    pub id: String,
}

/// A person who logs in.
///
/// Identified by `(issuer, subject)`, never by e-mail address: two users may have the same one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// The id, which never changes; a UUID unless imported.
    pub id: String,
    /// The issuer of their tokens, compared as bytes.
    pub issuer: String,
    /// Their id at the issuer. Unique together with it; neither ever changes.
    pub subject: String,
    /// Their e-mail address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// Their name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Their identities in other systems. An identity belongs to one user.
    #[serde(default)]
    pub identities: Vec<Identity>,
    /// The ids of the tenants they belong to.
    #[serde(default)]
    pub tenant_ids: Vec<String>,
    /// Whether they administer the platform.
    #[serde(default)]
    pub platform_admin: bool,
    /// The status.
    pub status: UserStatus,
    /// The time of their last login, to about a minute; `None` if they never logged in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_login_at: Option<Timestamp>,
    /// Counts the changes, from 1.
    pub version: u64,
    /// The time of creation.
    pub created_at: Timestamp,
    /// The time of the last change.
    pub updated_at: Timestamp,
}

impl Tenant {
    /// Whether it is not deleted.
    pub fn is_present(&self) -> bool {
        self.status != TenantStatus::Deleted
    }

    /// The domains that it owns; none if it is deleted.
    pub fn owned_domains(&self) -> &[String] {
        if self.is_present() { &self.domains } else { &[] }
    }

    /// Checks every bound.
    ///
    /// # Errors
    /// `field_invalid`, beginning with the field's JSON name.
    pub fn validate(&self) -> Result<()> {
        fields::id("id", &self.id)?;
        fields::slug("slug", &self.slug)?;
        fields::name("name", &self.name)?;
        fields::plan(&self.plan)?;
        fields::count("domains", self.domains.len(), fields::MAX_DOMAINS)?;
        self.domains.iter().try_for_each(|domain| fields::domain("domains", domain))?;
        fields::distinct("domains", &self.domains)?;
        optional(self.partner_id.as_ref(), "partnerId", fields::id)?;
        self.billing.validate("billing")?;
        for (field, integrations) in [
            ("provisioningStatus", self.provisioning_status.keys().collect::<Vec<_>>()),
            ("provisioningErrors", self.provisioning_errors.keys().collect()),
        ] {
            fields::count(field, integrations.len(), fields::MAX_INTEGRATIONS)?;
            integrations.iter().try_for_each(|name| fields::integration(field, name))?;
        }
        let cut = fields::MAX_PROVISIONING_ERROR_CHARS;
        if self.provisioning_errors.values().any(|e| e.chars().count() > cut) {
            return Err(fields::invalid(
                "provisioningErrors",
                format_args!("texts of at most {cut} characters: shorten them"),
            ));
        }
        fields::version(self.version)
    }
}

impl Partner {
    /// Checks every bound.
    ///
    /// # Errors
    /// `field_invalid`, beginning with the field's JSON name.
    pub fn validate(&self) -> Result<()> {
        fields::id("id", &self.id)?;
        fields::slug("slug", &self.slug)?;
        fields::name("name", &self.name)?;
        optional(self.domain.as_ref(), "domain", fields::domain)?;
        fields::margin_pct(self.margin_pct)?;
        self.contact_info.validate("contactInfo")?;
        self.billing_info.validate("billingInfo")?;
        fields::version(self.version)
    }
}

impl User {
    /// Whether they may use the platform.
    pub fn is_active(&self) -> bool {
        self.status == UserStatus::Active
    }

    /// Checks every bound.
    ///
    /// # Errors
    /// `field_invalid`, beginning with the field's JSON name.
    pub fn validate(&self) -> Result<()> {
        fields::id("id", &self.id)?;
        fields::foreign("issuer", &self.issuer)?;
        fields::foreign("subject", &self.subject)?;
        optional(self.email.as_ref(), "email", fields::email)?;
        optional(self.name.as_ref(), "name", fields::name)?;
        fields::count("identities", self.identities.len(), fields::MAX_IDENTITIES)?;
        for identity in &self.identities {
            fields::system("identities.system", &identity.system)?;
            fields::foreign("identities.id", &identity.id)?;
        }
        fields::distinct("identities", &self.identities)?;
        fields::count("tenantIds", self.tenant_ids.len(), fields::MAX_USER_TENANTS)?;
        self.tenant_ids.iter().try_for_each(|id| fields::id("tenantIds", id))?;
        fields::distinct("tenantIds", &self.tenant_ids)?;
        fields::version(self.version)
    }
}

impl Billing {
    fn validate(&self, field: &str) -> Result<()> {
        optional(self.company.as_ref(), &format!("{field}.company"), fields::name)?;
        optional(self.vat_id.as_ref(), &format!("{field}.vatId"), fields::name)?;
        optional(self.email.as_ref(), &format!("{field}.email"), fields::email)?;
        optional(self.address.as_ref(), &format!("{field}.address"), fields::detail)
    }
}

impl ContactInfo {
    fn validate(&self, field: &str) -> Result<()> {
        optional(self.name.as_ref(), &format!("{field}.name"), fields::name)?;
        optional(self.email.as_ref(), &format!("{field}.email"), fields::email)?;
        optional(self.phone.as_ref(), &format!("{field}.phone"), fields::name)
    }
}

fn optional(
    value: Option<&String>,
    field: &str,
    check: fn(&str, &str) -> Result<()>,
) -> Result<()> {
    value.map_or(Ok(()), |text| check(field, text))
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;

    use super::*;

    /// Documents as version 1 wrote them, which must stay readable: never change one.
    const TENANT_V1: &str = r#"{"id":"507f1f77bcf86cd799439011","slug":"acme","name":"Acme Ö","status":"suspended","plan":"pro_2.1","domains":["acme.example","xn--bcher-kva.example"],"partnerId":"p-1","billing":{"company":"Acme Ltd","vatId":"DE1","email":"pay@acme.example","address":"Way 1\n12345 Town"},"provisioningStatus":{"authentik":"ok","ocis":"error","stalwart":"pending"},"provisioningErrors":{"ocis":"no space"},"version":7,"createdAt":"2026-01-01T00:00:00.000Z","updatedAt":"2026-11-21T20:12:21.123Z"}"#;
    const PARTNER_V1: &str = r#"{"id":"p-1","slug":"resell","name":"Resell","domain":"resell.example","status":"terminated","marginPct":12.5,"contactInfo":{"name":"Ada","email":"ada@resell.example","phone":"+1 2"},"billingInfo":{"company":"Resell Ltd"},"version":2,"createdAt":"2026-01-01T00:00:00.000Z","updatedAt":"2026-01-02T00:00:00.000Z"}"#;
    const USER_V1: &str = r#"{"id":"u-1","issuer":"https://id.example/","subject":"s","email":"bob@acme.example","name":"Bob","identities":[{"system":"ocis","id":"4c"}],"tenantIds":["507f1f77bcf86cd799439011"],"platformAdmin":true,"status":"deactivated","lastLoginAt":"2026-01-01T00:00:00.000Z","version":3,"createdAt":"2026-01-01T00:00:00.000Z","updatedAt":"2026-01-02T00:00:00.000Z"}"#;

    /// The same without optional members.
    const LEAST_V1: [&str; 3] = [
        r#"{"id":"t-1","slug":"acme","name":"Acme","status":"pending","plan":"basic","domains":[],"billing":{},"provisioningStatus":{},"provisioningErrors":{},"version":1,"createdAt":"2026-01-01T00:00:00.000Z","updatedAt":"2026-01-01T00:00:00.000Z"}"#,
        r#"{"id":"p-1","slug":"resell","name":"Resell","status":"active","marginPct":0.0,"contactInfo":{},"billingInfo":{},"version":1,"createdAt":"2026-01-01T00:00:00.000Z","updatedAt":"2026-01-01T00:00:00.000Z"}"#,
        r#"{"id":"u-1","issuer":"i","subject":"s","identities":[],"tenantIds":[],"platformAdmin":false,"status":"active","version":1,"createdAt":"2026-01-01T00:00:00.000Z","updatedAt":"2026-01-01T00:00:00.000Z"}"#,
    ];

    fn read<T: DeserializeOwned + Serialize>(text: &str) -> T {
        let document = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&document).unwrap(), text, "is written as it was read");
        document
    }

    #[test]
    fn documents_of_version_1_stay_readable() {
        let [tenant, partner, user] = LEAST_V1;
        for text in [TENANT_V1, tenant] {
            read::<Tenant>(text).validate().unwrap();
        }
        for text in [PARTNER_V1, partner] {
            read::<Partner>(text).validate().unwrap();
        }
        for text in [USER_V1, user] {
            read::<User>(text).validate().unwrap();
        }
        let tenant: Tenant = read(TENANT_V1);
        assert_eq!(tenant.provisioning_status["ocis"], ProvisioningStatus::Error);
        assert_eq!(tenant.billing.vat_id.as_deref(), Some("DE1"));
        let user: User = read(USER_V1);
        assert_eq!((user.identities[0].id.as_str(), user.is_active()), ("4c", false));
    }

    #[test]
    fn a_part_is_named_by_its_path() {
        let mut tenant: Tenant = read(TENANT_V1);
        tenant.billing.email = Some("pay".into());
        let error = tenant.validate().unwrap_err().to_string();
        assert!(error.starts_with("billing.email must be an e-mail address"), "{error}");
        tenant.billing.email = None;
        tenant.provisioning_errors.insert("a b".into(), String::new());
        let error = tenant.validate().unwrap_err().to_string();
        assert!(error.starts_with("provisioningErrors must be by integrations"), "{error}");
        tenant.provisioning_errors = [("ocis".to_owned(), "x".repeat(2_001))].into();
        let error = tenant.validate().unwrap_err().to_string();
        assert!(error.starts_with("provisioningErrors must be texts of at most 2000"), "{error}");
    }
}
