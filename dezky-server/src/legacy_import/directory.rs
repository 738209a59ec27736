//! Tenants, partners and users of the earlier platform.

use dezky_core::directory::{
    Billing, ContactInfo, DirectoryChange, Identity, Partner, PartnerStatus, ProvisioningStatus,
    Tenant, TenantStatus, User, UserStatus,
};
use dezky_core::domain::normal_form;
use dezky_core::{Result, Timestamp};

use super::fields::Fields;
use super::report::Collection;

/// Maps a document of the kind.
pub(super) type Map = fn(&mut Fields, &mut Collection) -> Result<DirectoryChange, String>;

/// A tenant; it keeps its id, on which rollouts depend.
pub(super) fn tenant(
    fields: &mut Fields,
    report: &mut Collection,
) -> Result<DirectoryChange, String> {
    let slug = slug(fields)?;
    let (created_at, updated_at) = times(fields);
    let status = status(fields, TenantStatus::Active, TenantStatus::Suspended, report);
    let said = fields.text("plan");
    let plan = plan(said.as_deref().unwrap_or("unknown"));
    if said.as_ref() != Some(&plan) {
        report.change("plan");
    }
    let tenant = Tenant {
        id: fields.id.clone(),
        name: name(fields, &slug, report),
        slug,
        status,
        plan,
        domains: Vec::new(),
        partner_id: None,
        billing: Billing::default(),
        provisioning_status: std::collections::BTreeMap::new(),
        provisioning_errors: std::collections::BTreeMap::new(),
        version: 1,
        created_at,
        updated_at,
    };
    let mut tenant = Checked::new(tenant, Tenant::validate)?;
    for domain in fields.texts("domains") {
        let domain = normal_domain(&domain);
        tenant.set(report, "domains", |t| t.domains.push(domain));
    }
    let partner_id = fields.text("partnerId");
    tenant.set(report, "partnerId", |t| t.partner_id = partner_id);
    billing(fields.part("billing"), "billing", report, &mut tenant, |t| &mut t.billing);
    for (integration, said) in fields.text_members("provisioningStatus") {
        let status = provisioning(&said, report);
        tenant.set(report, "provisioningStatus", |t| {
            t.provisioning_status.insert(integration, status);
        });
    }
    for (integration, error) in fields.text_members("provisioningErrors") {
        let error: String = error.chars().take(2_000).collect();
        tenant.set(report, "provisioningErrors", |t| {
            t.provisioning_errors.insert(integration, error);
        });
    }
    Ok(tenant.document.into())
}

/// A partner.
pub(super) fn partner(
    fields: &mut Fields,
    report: &mut Collection,
) -> Result<DirectoryChange, String> {
    let slug = slug(fields)?;
    let (created_at, updated_at) = times(fields);
    let partner = Partner {
        id: fields.id.clone(),
        name: name(fields, &slug, report),
        slug,
        domain: None,
        status: status(fields, PartnerStatus::Active, PartnerStatus::Terminated, report),
        margin_pct: 0.0,
        contact_info: ContactInfo::default(),
        billing_info: Billing::default(),
        version: 1,
        created_at,
        updated_at,
    };
    let mut partner = Checked::new(partner, Partner::validate)?;
    let domain = fields.text("domain").map(|domain| normal_domain(&domain));
    partner.set(report, "domain", |p| p.domain = domain);
    let margin_pct = fields.number("marginPct").unwrap_or(0.0);
    partner.set(report, "marginPct", |p| p.margin_pct = margin_pct);
    let mut contact = fields.part("contactInfo");
    let (name, email, phone) = (contact.text("name"), contact.text("email"), contact.text("phone"));
    partner.set(report, "contactInfo.name", |p| p.contact_info.name = name);
    partner.set(report, "contactInfo.email", |p| p.contact_info.email = email);
    partner.set(report, "contactInfo.phone", |p| p.contact_info.phone = phone);
    unknown_parts("contactInfo", contact, report);
    let info = fields.part("billingInfo");
    billing(info, "billingInfo", report, &mut partner, |p| &mut p.billing_info);
    Ok(partner.document.into())
}

/// A user, identified by issuer and subject.
pub(super) fn user(
    fields: &mut Fields,
    report: &mut Collection,
) -> Result<DirectoryChange, String> {
    let (created_at, updated_at) = times(fields);
    let issuer =
        fields.text("issuer").ok_or("it has no issuer: add one there, then import again")?;
    let subject = fields.text("subject").or_else(|| fields.text("sub"));
    let status = status(fields, UserStatus::Active, UserStatus::Deactivated, report);
    let user = User {
        id: fields.id.clone(),
        issuer,
        subject: subject.ok_or("it has no subject: add one there, then import again")?,
        email: None,
        name: None,
        identities: Vec::new(),
        tenant_ids: Vec::new(),
        // As for a user who is deactivated here.
        platform_admin: fields.is_set("platformAdmin") && status == UserStatus::Active,
        status,
        last_login_at: fields.time("lastLoginAt"),
        version: 1,
        created_at,
        updated_at,
    };
    let mut user = Checked::new(user, User::validate)?;
    let (email, name) = (fields.text("email"), fields.text("name"));
    user.set(report, "email", |u| u.email = email);
    user.set(report, "name", |u| u.name = name);
    for mut identity in fields.parts("identities") {
        if let (Some(system), Some(id)) = (identity.text("system"), identity.text("id")) {
            let system = system.to_lowercase();
            user.set(report, "identities", |u| u.identities.push(Identity { system, id }));
        }
        unknown_parts("identities", identity, report);
    }
    for id in fields.texts("tenantIds") {
        user.set(report, "tenantIds", |u| u.tenant_ids.push(id));
    }
    Ok(user.document.into())
}

/// A document within its bounds: a change that would break one is left out.
struct Checked<T> {
    document: T,
    validate: fn(&T) -> Result<()>,
}

impl<T: Clone> Checked<T> {
    /// Starts without the optional fields; what is invalid then can't be left out.
    fn new(document: T, validate: fn(&T) -> Result<()>) -> Result<Self, String> {
        validate(&document).map_err(|error| error.to_string())?;
        Ok(Self { document, validate })
    }

    fn set(&mut self, report: &mut Collection, field: &str, change: impl FnOnce(&mut T)) {
        let mut changed = self.document.clone();
        change(&mut changed);
        if (self.validate)(&changed).is_ok() {
            self.document = changed;
        } else {
            report.change(field);
        }
    }
}

/// A domain in the form of the directory, if it is valid.
fn normal_domain(text: &str) -> String {
    normal_form(text.trim()).unwrap_or_else(|| text.trim().to_lowercase())
}

fn slug(fields: &mut Fields) -> Result<String, String> {
    fields.text("slug").ok_or_else(|| "it has no slug: give it one there, then import again".into())
}

/// The times of creation and of the last change.
fn times(fields: &mut Fields) -> (Timestamp, Timestamp) {
    fields.take("createdAt");
    let created = fields.made.unwrap_or(Timestamp::MIN);
    (created, fields.time("updatedAt").unwrap_or(created))
}

fn name(fields: &mut Fields, slug: &str, report: &mut Collection) -> String {
    let said = fields.text("name").unwrap_or_default();
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let name: String = said.chars().map(clean).take(200).collect();
    if name == said && !name.trim().is_empty() {
        return name;
    }
    report.change("name");
    if name.trim().is_empty() { slug.to_owned() } else { name }
}

/// The key of a plan.
fn plan(said: &str) -> String {
    let key = |c: char| match c.to_ascii_lowercase() {
        c @ ('a'..='z' | '0'..='9' | '_' | '.' | '-') => c,
        _ => '-',
    };
    let plan: String = said.chars().map(key).take(63).collect();
    let plan = plan.trim_start_matches(['_', '.', '-']);
    if plan.is_empty() { "unknown".into() } else { plan.to_owned() }
}

/// The status. An unknown one may mean that the user was locked out, so it must not admit them.
fn status<T: std::str::FromStr>(
    fields: &mut Fields,
    absent: T,
    unknown: T,
    report: &mut Collection,
) -> T {
    let Some(text) = fields.text("status") else { return absent };
    text.to_lowercase().parse().unwrap_or_else(|_| {
        report.change("status");
        unknown
    })
}

/// The state of provisioning, in the words of the provisioner.
fn provisioning(said: &str, report: &mut Collection) -> ProvisioningStatus {
    match said.to_lowercase().as_str() {
        "pending" => ProvisioningStatus::Pending,
        "ok" => ProvisioningStatus::Ok,
        "error" => ProvisioningStatus::Error,
        other => {
            report.change("provisioningStatus");
            match other {
                "done" | "success" | "provisioned" | "active" | "ready" => ProvisioningStatus::Ok,
                "failed" | "failure" => ProvisioningStatus::Error,
                _ => ProvisioningStatus::Pending,
            }
        }
    }
}

fn billing<T: Clone>(
    mut said: Fields,
    field: &'static str,
    report: &mut Collection,
    document: &mut Checked<T>,
    of: fn(&mut T) -> &mut Billing,
) {
    let (company, vat_id, email) = (said.text("company"), said.text("vatId"), said.text("email"));
    let address = said.lines("address").map(|text| text.replace('\r', ""));
    document.set(report, &format!("{field}.company"), |d| of(d).company = company);
    document.set(report, &format!("{field}.vatId"), |d| of(d).vat_id = vat_id);
    document.set(report, &format!("{field}.email"), |d| of(d).email = email);
    document.set(report, &format!("{field}.address"), |d| of(d).address = address);
    unknown_parts(field, said, report);
}

fn unknown_parts(field: &str, part: Fields, report: &mut Collection) {
    let rest = part.rest();
    report.unknown(&rest.into_iter().map(|(name, v)| (format!("{field}.{name}"), v)).collect());
}

#[cfg(test)]
mod tests {
    use mongodb::bson::oid::ObjectId;
    use mongodb::bson::{DateTime, Document, doc};
    use serde_json::json;

    use super::*;

    fn mapped(map: Map, document: Document) -> (Result<DirectoryChange, String>, Collection) {
        let mut report = Collection::default();
        let mut fields = Fields::new(document);
        let mapped = map(&mut fields, &mut report);
        report.unknown(&fields.rest());
        (mapped, report)
    }

    fn id(digit: char) -> ObjectId {
        ObjectId::parse_str(digit.to_string().repeat(24)).unwrap()
    }

    #[test]
    fn a_tenant_keeps_its_id_and_gives_up_what_breaks_a_bound() {
        let (tenant, report) = mapped(
            tenant,
            doc! {
                "_id": id('5'), "slug": "acme", "name": "Acme", "status": "active", "plan": "Pro",
                "domains": ["Acme.example", "b ad", "acme.example"], "partnerId": id('6'),
                "billing": {"company": "Acme Ltd", "email": "nobody", "address": {"line1": "Way 1", "city": "Town"}},
                "provisioningStatus": {"authentik": "ok", "ocis": "done"},
                "provisioningErrors": {"ocis": "none"}, "seats": 12,
                "createdAt": DateTime::from_millis(0), "updatedAt": DateTime::from_millis(1_000),
            },
        );
        let Ok(DirectoryChange::Tenant(tenant)) = tenant else { panic!("{tenant:?}") };
        assert_eq!((tenant.id.as_str(), tenant.plan.as_str()), (&*"5".repeat(24), "pro"));
        assert_eq!(tenant.domains, ["acme.example"]);
        assert_eq!(tenant.partner_id.as_deref(), Some(&*"6".repeat(24)));
        assert_eq!(tenant.billing.address.as_deref(), Some("Way 1\nTown"));
        assert_eq!(tenant.billing.email, None);
        assert_eq!(tenant.provisioning_status["ocis"], ProvisioningStatus::Ok);
        assert_eq!(tenant.updated_at.as_millis(), 1_000);
        let changed = json!({"billing.email": 1, "domains": 2, "plan": 1, "provisioningStatus": 1});
        assert_eq!(json!(report.changed), changed);
        assert_eq!(json!(report.unknown), json!({"seats": 1}));
        let (refused, _) = mapped(super::tenant, doc! {"_id": id('5'), "slug": "No Slug"});
        assert!(refused.unwrap_err().starts_with("slug must be"));
    }

    #[test]
    fn partners_and_users() {
        let (partner, report) = mapped(
            partner,
            doc! {
                "_id": id('6'), "slug": "resell", "name": "Resell", "domain": "Resell.example",
                "status": "terminated", "marginPct": 12.5, "contactInfo": {"name": "Ada", "fax": "1"},
                "billingInfo": {"vatId": "DE1"},
            },
        );
        let Ok(DirectoryChange::Partner(partner)) = partner else { panic!("{partner:?}") };
        assert_eq!((partner.status, partner.margin_pct), (PartnerStatus::Terminated, 12.5));
        assert_eq!(partner.domain.as_deref(), Some("resell.example"));
        assert_eq!(json!(report.unknown), json!({"contactInfo.fax": 1}));

        let (user, report) = mapped(
            user,
            doc! {
                "_id": id('7'), "issuer": "https://id.example/", "subject": "s", "email": "a@b.example",
                "identities": [{"system": "ocis", "id": "4c"}, {"system": "ocis", "id": "4c"}],
                "tenantIds": [id('5')], "platformAdmin": true, "lastLoginAt": DateTime::from_millis(5),
            },
        );
        let Ok(DirectoryChange::User(user)) = user else { panic!("{user:?}") };
        assert_eq!((user.identities.len(), user.tenant_ids.len()), (1, 1));
        assert!(user.platform_admin && user.last_login_at.is_some());
        assert_eq!(json!(report.changed), json!({"identities": 1}));
        let (user, report) = mapped(
            super::user,
            doc! {"_id": id('7'), "issuer": "https://id.example/", "subject": "s", "status": "blocked",
            "platformAdmin": true},
        );
        let Ok(DirectoryChange::User(user)) = user else { panic!("{user:?}") };
        assert_eq!((user.status, report.changed["status"]), (UserStatus::Deactivated, 1));
        assert!(!user.platform_admin);
        let (refused, _) = mapped(super::user, doc! {"_id": id('7'), "email": "a@b.example"});
        assert!(refused.unwrap_err().contains("issuer"));
    }
}
