//! The input of edits: new documents and patches, and how they apply.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::fields;
use super::model::{
    Billing, ContactInfo, INTEGRATIONS, Identity, Partner, PartnerStatus, ProvisioningStatus,
    Tenant, TenantStatus, User, UserStatus,
};
use crate::domain::normal_form;
use crate::{Error, ErrorKind, Result, Timestamp};

/// A removable member of a patch (RFC 7396): absent, null or a value.
///
/// ```
/// use dezky_core::directory::{Patch, TenantPatch};
/// let patch: TenantPatch = serde_json::from_str(r#"{"partnerId": null}"#).unwrap();
/// assert_eq!((patch.partner_id, patch.name), (Patch::Clear, None));
/// assert_eq!(TenantPatch::default().partner_id, Patch::Keep);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Patch<T> {
    /// Absent: the field is kept.
    #[default]
    Keep,
    /// Null: the field is removed.
    Clear,
    /// The field's new value.
    Set(T),
}

impl<T> Patch<T> {
    fn apply(self, to: &mut Option<T>) {
        match self {
            Self::Keep => {}
            Self::Clear => *to = None,
            Self::Set(value) => *to = Some(value),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Patch<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Option::deserialize(deserializer)?.map_or(Self::Clear, Self::Set))
    }
}

/// A member that may be absent but not null.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// A member that is an object. Serde would read a list as its fields in their order.
fn object<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    Object::deserialize(deserializer).map(|Object(value)| value)
}

/// A member that is a list of objects.
fn objects<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    let values = Vec::<Object<T>>::deserialize(deserializer)?;
    Ok(values.into_iter().map(|Object(value)| value).collect())
}

/// The same, for a member that may be absent but not null.
fn present_objects<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<T>>, D::Error> {
    objects(deserializer).map(Some)
}

struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfMap<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for OfMap<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(members))
            }
        }

        deserializer.deserialize_map(OfMap(PhantomData)).map(Self)
    }
}

/// A new tenant. Domains are converted to their
/// [normal form](crate::domain::normal_form): lower case, international ones as `xn--…`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewTenant {
    /// See [`Tenant`].
    pub slug: String,
    /// See [`Tenant`].
    pub name: String,
    /// See [`Tenant`].
    pub plan: String,
    /// `pending`, or `active` if it is in use already.
    #[serde(default, deserialize_with = "present")]
    pub status: Option<TenantStatus>,
    /// See [`Tenant`].
    #[serde(default)]
    pub domains: Vec<String>,
    /// The id or the slug of an active partner.
    #[serde(default)]
    pub partner_id: Option<String>,
    /// See [`Tenant`].
    #[serde(default, deserialize_with = "object")]
    pub billing: NewBilling,
    /// The id of an imported tenant, so that it keeps its buckets in rollouts; `None` generates
    /// one.
    #[serde(default, deserialize_with = "present")]
    pub id: Option<String>,
}

impl NewTenant {
    /// A new document with the required fields only.
    pub fn new(slug: impl Into<String>, name: impl Into<String>, plan: impl Into<String>) -> Self {
        Self {
            slug: slug.into(),
            name: name.into(),
            plan: plan.into(),
            status: None,
            domains: Vec::new(),
            partner_id: None,
            billing: NewBilling::default(),
            id: None,
        }
    }

    pub(super) fn into_tenant(self, id: String, now: Timestamp) -> Result<Tenant> {
        let status = self.status.unwrap_or(TenantStatus::Pending);
        if !matches!(status, TenantStatus::Pending | TenantStatus::Active) {
            return Err(fields::invalid(
                "status",
                "pending or active for a new tenant: suspend or delete it afterwards",
            ));
        }
        let mut billing = Billing::default();
        self.billing.apply(&mut billing);
        let tenant = Tenant {
            id,
            slug: self.slug,
            name: self.name,
            status,
            plan: self.plan,
            domains: normal_domains(self.domains),
            partner_id: self.partner_id,
            billing,
            provisioning_status: INTEGRATIONS
                .map(|name| (name.to_owned(), ProvisioningStatus::Pending))
                .into(),
            provisioning_errors: BTreeMap::new(),
            version: 1,
            created_at: now,
            updated_at: now,
        };
        tenant.validate()?;
        Ok(tenant)
    }
}

/// A change of a tenant; absent members are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TenantPatch {
    /// See [`Tenant`].
    #[serde(deserialize_with = "present")]
    pub name: Option<String>,
    /// See [`Tenant`].
    #[serde(deserialize_with = "present")]
    pub plan: Option<String>,
    /// `active`, for a pending tenant. Suspending, resuming and deleting are separate operations.
    #[serde(deserialize_with = "present")]
    pub status: Option<TenantStatus>,
    /// Its domains, which replace the current ones.
    #[serde(deserialize_with = "present")]
    pub domains: Option<Vec<String>>,
    /// The id or the slug of an active partner; null detaches.
    pub partner_id: Patch<String>,
    /// Billing data, member by member.
    #[serde(deserialize_with = "object")]
    pub billing: BillingPatch,
}

impl TenantPatch {
    pub(super) fn apply(self, tenant: &mut Tenant) -> Result<()> {
        if let Some(status) = self.status
            && status != tenant.status
        {
            if status != TenantStatus::Active {
                return Err(fields::invalid(
                    "status",
                    "active in a patch: suspend, resume or delete by their own operations",
                ));
            }
            if tenant.status != TenantStatus::Pending {
                return Err(conflict(format!(
                    "the tenant is {}: resume it instead of patching its status",
                    tenant.status
                )));
            }
            tenant.status = status;
        }
        set(&mut tenant.name, self.name);
        set(&mut tenant.plan, self.plan);
        set(&mut tenant.domains, self.domains.map(normal_domains));
        self.partner_id.apply(&mut tenant.partner_id);
        self.billing.apply(&mut tenant.billing);
        Ok(())
    }
}

/// The billing data of a new document.
pub type NewBilling = BillingPatch;

/// A change of [`Billing`]; absent members are kept, null removes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[expect(missing_docs, reason = "the fields are those of Billing")]
pub struct BillingPatch {
    pub company: Patch<String>,
    pub vat_id: Patch<String>,
    pub email: Patch<String>,
    pub address: Patch<String>,
}

impl BillingPatch {
    fn apply(self, billing: &mut Billing) {
        self.company.apply(&mut billing.company);
        self.vat_id.apply(&mut billing.vat_id);
        self.email.apply(&mut billing.email);
        self.address.apply(&mut billing.address);
    }
}

/// A change of [`ContactInfo`]; absent members are kept, null removes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[expect(missing_docs, reason = "the fields are those of ContactInfo")]
pub struct ContactPatch {
    pub name: Patch<String>,
    pub email: Patch<String>,
    pub phone: Patch<String>,
}

impl ContactPatch {
    fn apply(self, contact: &mut ContactInfo) {
        self.name.apply(&mut contact.name);
        self.email.apply(&mut contact.email);
        self.phone.apply(&mut contact.phone);
    }
}

/// The outcome of provisioning a tenant in one integration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProvisioningReport {
    /// The integration: `authentik`, `stalwart`, `ocis`.
    pub integration: String,
    /// The new state.
    pub status: ProvisioningStatus,
    /// The reason of a failure, truncated to 2,000 characters; stored only with
    /// [`ProvisioningStatus::Error`].
    #[serde(default)]
    pub error: Option<String>,
}

impl ProvisioningReport {
    pub(super) fn apply(self, tenant: &mut Tenant) {
        let error = self.error.filter(|_| self.status == ProvisioningStatus::Error);
        match error {
            Some(error) => {
                let cut = error.chars().take(fields::MAX_PROVISIONING_ERROR_CHARS).collect();
                tenant.provisioning_errors.insert(self.integration.clone(), cut);
            }
            None => {
                tenant.provisioning_errors.remove(&self.integration);
            }
        }
        tenant.provisioning_status.insert(self.integration, self.status);
    }
}

/// A new partner. The domain is converted to its
/// [normal form](crate::domain::normal_form).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewPartner {
    /// See [`Partner`].
    pub slug: String,
    /// See [`Partner`].
    pub name: String,
    /// See [`Partner`].
    #[serde(default)]
    pub domain: Option<String>,
    /// See [`Partner`]; 0 by default.
    #[serde(default)]
    pub margin_pct: f64,
    /// See [`Partner`].
    #[serde(default, deserialize_with = "object")]
    pub contact_info: ContactPatch,
    /// See [`Partner`].
    #[serde(default, deserialize_with = "object")]
    pub billing_info: NewBilling,
}

impl NewPartner {
    /// A new document with the required fields only.
    pub fn new(slug: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            slug: slug.into(),
            name: name.into(),
            domain: None,
            margin_pct: 0.0,
            contact_info: ContactPatch::default(),
            billing_info: NewBilling::default(),
        }
    }

    pub(super) fn into_partner(self, id: String, now: Timestamp) -> Result<Partner> {
        let mut contact_info = ContactInfo::default();
        self.contact_info.apply(&mut contact_info);
        let mut billing_info = Billing::default();
        self.billing_info.apply(&mut billing_info);
        let partner = Partner {
            id,
            slug: self.slug,
            name: self.name,
            domain: self.domain.map(domain),
            status: PartnerStatus::Active,
            margin_pct: self.margin_pct,
            contact_info,
            billing_info,
            version: 1,
            created_at: now,
            updated_at: now,
        };
        partner.validate()?;
        Ok(partner)
    }
}

/// A change of a partner; absent members are kept.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PartnerPatch {
    /// See [`Partner`].
    #[serde(deserialize_with = "present")]
    pub name: Option<String>,
    /// See [`Partner`]; null removes it.
    pub domain: Patch<String>,
    /// See [`Partner`].
    #[serde(deserialize_with = "present")]
    pub margin_pct: Option<f64>,
    /// The contact, member by member.
    #[serde(deserialize_with = "object")]
    pub contact_info: ContactPatch,
    /// Billing data, member by member.
    #[serde(deserialize_with = "object")]
    pub billing_info: BillingPatch,
}

impl PartnerPatch {
    pub(super) fn apply(self, partner: &mut Partner) {
        set(&mut partner.name, self.name);
        self.domain.apply(&mut partner.domain);
        if let Some(given) = &mut partner.domain {
            *given = domain(std::mem::take(given));
        }
        set(&mut partner.margin_pct, self.margin_pct);
        self.contact_info.apply(&mut partner.contact_info);
        self.billing_info.apply(&mut partner.billing_info);
    }
}

/// A new user.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewUser {
    /// See [`User`].
    pub issuer: String,
    /// See [`User`].
    pub subject: String,
    /// See [`User`].
    #[serde(default)]
    pub email: Option<String>,
    /// See [`User`].
    #[serde(default)]
    pub name: Option<String>,
    /// See [`User`].
    #[serde(default, deserialize_with = "objects")]
    pub identities: Vec<Identity>,
    /// The ids of tenants that exist and are not deleted.
    #[serde(default)]
    pub tenant_ids: Vec<String>,
    /// See [`User`].
    #[serde(default)]
    pub platform_admin: bool,
    /// See [`User`].
    #[serde(default)]
    pub last_login_at: Option<Timestamp>,
}

impl NewUser {
    /// A new document with the required fields only.
    pub fn new(issuer: impl Into<String>, subject: impl Into<String>) -> Self {
        Self {
            issuer: issuer.into(),
            subject: subject.into(),
            email: None,
            name: None,
            identities: Vec::new(),
            tenant_ids: Vec::new(),
            platform_admin: false,
            last_login_at: None,
        }
    }

    pub(super) fn into_user(self, id: String, now: Timestamp) -> Result<User> {
        let user = User {
            id,
            issuer: self.issuer,
            subject: self.subject,
            email: self.email,
            name: self.name,
            identities: self.identities,
            tenant_ids: self.tenant_ids,
            platform_admin: self.platform_admin,
            status: UserStatus::Active,
            last_login_at: self.last_login_at,
            version: 1,
            created_at: now,
            updated_at: now,
        };
        user.validate()?;
        Ok(user)
    }
}

/// A change of a user; absent members are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct UserPatch {
    /// See [`User`]; null removes it.
    pub email: Patch<String>,
    /// See [`User`]; null removes it.
    pub name: Patch<String>,
    /// Their identities, which replace the current ones.
    #[serde(deserialize_with = "present_objects")]
    pub identities: Option<Vec<Identity>>,
    /// The ids of their tenants, which replace the current ones. Added ones must exist and not be
    /// deleted.
    #[serde(deserialize_with = "present")]
    pub tenant_ids: Option<Vec<String>>,
    /// Whether they administer the platform.
    #[serde(deserialize_with = "present")]
    pub platform_admin: Option<bool>,
    /// `active`, to reactivate a user. Deactivating is a separate operation.
    #[serde(deserialize_with = "present")]
    pub status: Option<UserStatus>,
}

impl UserPatch {
    pub(super) fn apply(self, user: &mut User) -> Result<()> {
        match self.status {
            Some(UserStatus::Deactivated) if user.is_active() => {
                return Err(fields::invalid(
                    "status",
                    "active in a patch: deactivate by its own operation",
                ));
            }
            Some(status) => user.status = status,
            None => {}
        }
        self.email.apply(&mut user.email);
        self.name.apply(&mut user.name);
        set(&mut user.identities, self.identities);
        set(&mut user.tenant_ids, self.tenant_ids);
        set(&mut user.platform_admin, self.platform_admin);
        if user.platform_admin && !user.is_active() {
            return Err(conflict(
                "the user is deactivated and can't be a platform admin: set the status to active with it",
            ));
        }
        Ok(())
    }
}

fn set<T>(to: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *to = value;
    }
}

/// A domain in its [normal form](crate::domain::normal_form). Other text is returned as it is; the
/// checks refuse it.
fn domain(text: String) -> String {
    normal_form(&text).unwrap_or(text)
}

fn normal_domains(domains: Vec<String>) -> Vec<String> {
    domains.into_iter().map(domain).collect()
}

pub(super) fn conflict(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::StateConflict, message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn tenant() -> Tenant {
        let mut new = NewTenant::new("acme", "Acme", "basic");
        new.partner_id = Some("p-1".into());
        new.billing.company = Patch::Set("Acme Ltd".into());
        new.into_tenant("t-1".into(), Timestamp::MIN).unwrap()
    }

    #[test]
    fn absent_stays_null_clears_a_value_sets() {
        let mut changed = tenant();
        let patch = json!({"partnerId": null, "billing": {"company": null, "vatId": "DE1"}});
        let patch: TenantPatch = serde_json::from_value(patch).unwrap();
        patch.apply(&mut changed).unwrap();
        assert_eq!((changed.partner_id.as_ref(), changed.billing.company.as_ref()), (None, None));
        assert_eq!(changed.billing.vat_id.as_deref(), Some("DE1"));
        assert_eq!(changed.name, "Acme");
        let text = serde_json::to_string(&changed).unwrap();
        assert!(!text.contains("partnerId") && !text.contains("null"), "{text}");

        let mut same = tenant();
        serde_json::from_str::<TenantPatch>("{}").unwrap().apply(&mut same).unwrap();
        assert_eq!(same, tenant());
    }

    #[test]
    fn what_must_be_there_is_not_null_and_what_is_unknown_is_refused() {
        for (json, says) in [
            (json!({"name": null}), "null"),
            (json!({"domains": null}), "null"),
            (json!({"slug": "new"}), "slug"),
            (json!({"partner": "x"}), "partner"),
            (json!({"billing": {"vat": "x"}}), "vat"),
            (json!({"status": "gone"}), "gone"),
        ] {
            let error = serde_json::from_value::<TenantPatch>(json.clone()).unwrap_err();
            assert!(error.to_string().contains(says), "{json}: {error}");
        }
        assert!(serde_json::from_value::<PartnerPatch>(json!({"marginPct": null})).is_err());
        assert!(serde_json::from_value::<UserPatch>(json!({"subject": "x"})).is_err());
        assert!(serde_json::from_value::<NewTenant>(json!({"slug": "a", "name": "A"})).is_err());
        for more in [json!({"version": 7}), json!({"id": null})] {
            let mut new = json!({"slug": "a", "name": "A", "plan": "basic"});
            new.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            assert!(serde_json::from_value::<NewTenant>(new).is_err(), "{more}");
        }
    }

    #[test]
    fn a_list_is_no_object() {
        fn check<T: serde::de::DeserializeOwned>(base: &Value, field: &str, list: &Value) {
            let mut json = base.clone();
            json[field] = list.clone();
            let error = serde_json::from_value::<T>(json).map(|_| ()).unwrap_err();
            assert!(error.to_string().contains("expected an object"), "{field}: {error}");
        }
        let tenant = json!({"slug": "a", "name": "A", "plan": "basic"});
        let partner = json!({"slug": "a", "name": "A"});
        let user = json!({"issuer": "https://id.example.com", "subject": "s"});
        for list in [json!([]), json!(["Acme"]), json!(["Acme", "DE1", "a@b.c", "street"])] {
            check::<NewTenant>(&tenant, "billing", &list);
            check::<TenantPatch>(&json!({}), "billing", &list);
            for field in ["contactInfo", "billingInfo"] {
                check::<NewPartner>(&partner, field, &list);
                check::<PartnerPatch>(&json!({}), field, &list);
            }
        }
        let pairs = json!([["ocis", "4c51"]]);
        check::<NewUser>(&user, "identities", &pairs);
        check::<UserPatch>(&json!({}), "identities", &pairs);

        let identities = json!([{"system": "ocis", "id": "4c51"}]);
        let patch: UserPatch = serde_json::from_value(json!({"identities": identities})).unwrap();
        let identity = Identity { system: "ocis".into(), id: "4c51".into() };
        assert_eq!(patch.identities, Some(vec![identity]));
        let unknown = json!({"identities": [{"system": "ocis", "id": "4c51", "x": 1}]});
        assert!(serde_json::from_value::<UserPatch>(unknown).is_err());
    }

    #[test]
    fn domains_are_kept_in_ascii_however_they_are_spelled() {
        let spelled = ["Bücher.Example.", "acme．example"].map(String::from).to_vec();
        let new = NewTenant { domains: spelled.clone(), ..NewTenant::new("a", "A", "basic") };
        let mut tenant = new.into_tenant("t-1".into(), Timestamp::MIN).unwrap();
        assert_eq!(tenant.domains, ["xn--bcher-kva.example", "acme.example"]);
        tenant.domains.clear();
        let patch = TenantPatch { domains: Some(spelled), ..TenantPatch::default() };
        patch.apply(&mut tenant).unwrap();
        assert_eq!(tenant.domains, ["xn--bcher-kva.example", "acme.example"]);
        for bad in ["a b", "a_b.example", "ü x.example", ""] {
            let domains = vec![bad.to_owned()];
            let new = NewTenant { domains, ..NewTenant::new("a", "A", "basic") };
            let error = new.into_tenant("t-1".into(), Timestamp::MIN).unwrap_err();
            assert!(error.to_string().starts_with("domains must be"), "{bad}: {error}");
        }
        let twice = ["bücher.example", "xn--bcher-kva.example"].map(String::from).to_vec();
        let new = NewTenant { domains: twice, ..NewTenant::new("a", "A", "basic") };
        let error = new.into_tenant("t-1".into(), Timestamp::MIN).unwrap_err();
        assert!(error.to_string().contains("repetition"), "{error}");
    }

    #[test]
    fn a_new_tenant_is_in_normal_form() {
        let new = json!({"slug": "a", "name": "A", "plan": "basic", "domains": ["A.Example"]});
        let new: NewTenant = serde_json::from_value(new).unwrap();
        let tenant = new.into_tenant("t-1".into(), Timestamp::MIN).unwrap();
        assert_eq!((tenant.status, tenant.version), (TenantStatus::Pending, 1));
        assert_eq!(tenant.domains, ["a.example"]);
        assert_eq!(tenant.provisioning_status.len(), INTEGRATIONS.len());
        let mut deleted = NewTenant::new("a", "A", "basic");
        deleted.status = Some(TenantStatus::Deleted);
        let error = deleted.into_tenant("t-1".into(), Timestamp::MIN).unwrap_err();
        assert!(error.to_string().starts_with("status must be pending or active"), "{error}");
    }

    #[test]
    fn a_report_replaces_the_one_before() {
        let mut tenant = tenant();
        let mut report = |status, error: Option<String>| {
            ProvisioningReport { integration: "ocis".into(), status, error }.apply(&mut tenant);
            tenant.validate().unwrap();
            (tenant.provisioning_status["ocis"], tenant.provisioning_errors.get("ocis").cloned())
        };
        let long = "ä".repeat(3_000);
        let (status, error) = report(ProvisioningStatus::Error, Some(long));
        assert_eq!((status, error.unwrap().chars().count()), (ProvisioningStatus::Error, 2_000));
        let done = report(ProvisioningStatus::Ok, Some("stale".into()));
        assert_eq!(done, (ProvisioningStatus::Ok, None));
    }

    fn member() -> impl Strategy<Value = Patch<String>> {
        prop_oneof![Just(Patch::Keep), Just(Patch::Clear), "[a-z]{1,3}".prop_map(Patch::Set),]
    }

    proptest! {
        /// A patch that is sent again after its answer was lost changes nothing.
        #[test]
        fn a_patch_again_changes_nothing(
            name in proptest::option::of("[a-z]{1,3}"),
            domains in proptest::option::of(proptest::collection::vec("[A-Za-z]{1,3}", 0..3)),
            partner_id in member(),
            company in member(),
            address in member(),
        ) {
            let billing = BillingPatch { company, address, ..BillingPatch::default() };
            let patch = TenantPatch { name, domains, partner_id, billing, ..TenantPatch::default() };
            let mut once = tenant();
            patch.clone().apply(&mut once).unwrap();
            let mut twice = once.clone();
            patch.apply(&mut twice).unwrap();
            prop_assert_eq!(once, twice);
        }
    }
}
