//! The actions of a simulated platform's operators: they create a partner and three tenants, roll
//! out, kill and switch on a flag, and suspend and resume a tenant. Uses the library, as a service
//! that embeds it would.

use dezky::Platform;
use dezky_core::directory::{
    Edit, Identity, NewPartner, NewTenant, NewUser, PartnerKey, TenantKey, TenantStatus, UserKey,
};
use dezky_core::store::ListQuery;
use dezky_core::{Actor, ActorType, Result};
use dezky_flags::{FlagPatch, FlagState, ScopePatch, seeded_flags};
use serde_json::Value;

use crate::render::decisions::{explained, tabulated};

/// The tenant whose flags are shown.
const SHOWN_TENANT: &str = "acme";

const PARTNER: &str = "nordwind";
/// Slug, id, name, plan, domain, whether it belongs to the partner. The ids are fixed, so that
/// rollouts reach the same tenants in every demo.
const TENANTS: [(&str, &str, &str, &str, &str, bool); 3] = [
    ("acme", "01960a3e-7c11-7b52-9a40-6d1f0c5e8a01", "Acme GmbH", "pro", "example.com", true),
    (
        "globex",
        "01960a3e-7c11-7b52-9a40-6d1f0c5e8a02",
        "Globex AG",
        "business",
        "example.net",
        true,
    ),
    ("initech", "01960a3e-7c11-7b52-9a40-6d1f0c5e8a03", "Initech", "free", "example.org", false),
];
const ISSUER: &str = "https://id.example.com/application/o/portal/";
/// Subject, e-mail, tenant, id in oCIS.
const USERS: [(&str, &str, &str, &str); 2] = [
    ("alice", "alice@example.com", "acme", "a4c517a3-d987-4563-a6dd-3776109686c8"),
    ("bob", "bob@example.net", "globex", "0566577b-79a2-4a33-9c6b-5fe7f23c9c26"),
];

fn operator() -> Edit {
    let actor = Actor { id: Some("op-1".into()), ..Actor::of(ActorType::Operator) };
    Edit::by(actor.with_email("olivia@platform.example").with_ip("198.51.100.5"))
}

fn flags_operator(note: &str) -> Edit {
    Edit { note: Some(note.into()), ..operator() }
}

/// Creates partner, tenants, users and the seeded flags unless they exist.
pub(super) async fn furnish(platform: &Platform) -> Result<()> {
    let directory = &platform.directory;
    if directory.store().partner(PartnerKey::Slug(PARTNER)).await?.is_none() {
        let mut partner = NewPartner::new(PARTNER, "Nordwind IT");
        partner.margin_pct = 20.0;
        directory.create_partner(partner, &operator()).await?;
    }
    for (slug, id, name, plan, domain, has_partner) in TENANTS {
        if directory.store().tenant(TenantKey::Slug(slug)).await?.is_none() {
            let mut tenant = NewTenant::new(slug, name, plan);
            tenant.id = Some(id.into());
            tenant.status = Some(TenantStatus::Active);
            tenant.domains = vec![domain.into()];
            tenant.partner_id = has_partner.then(|| PARTNER.into());
            directory.create_tenant(tenant, &operator()).await?;
        }
    }
    for (subject, email, tenant, ocis_id) in USERS {
        let key = UserKey::Subject { issuer: ISSUER, subject };
        if directory.store().user(key).await?.is_none() {
            let tenant = directory.store().tenant(TenantKey::Slug(tenant)).await?;
            let mut user = NewUser::new(ISSUER, subject);
            user.email = Some(email.into());
            user.tenant_ids = tenant.into_iter().map(|tenant| tenant.id).collect();
            user.identities = vec![Identity { system: "ocis".into(), id: ocis_id.into() }];
            directory.create_user(user, &operator()).await?;
        }
    }
    platform.flags.seed(&seeded_flags(), &flags_operator("a new platform")).await?;
    Ok(())
}

/// The operators' daily actions; done once, however often the demo runs.
pub(super) async fn operate(platform: &Platform) -> Result<()> {
    let last_step = ListQuery { action: Some("tenant.resumed".into()), ..ListQuery::default() };
    if !platform.store.list(&last_step).await?.events.is_empty() {
        return Ok(());
    }
    let change = async |key: &str, note: &str, patch: FlagPatch| {
        platform.flags.update(key, &patch, &flags_operator(note)).await
    };
    let rollout = |pct: u8| FlagPatch {
        state: Some(FlagState::Rollout),
        pct: Some(pct),
        ..FlagPatch::default()
    };
    let targeted = |scope: ScopePatch| FlagPatch {
        state: Some(FlagState::Targeted),
        scope,
        ..FlagPatch::default()
    };
    let of = |values: &[&str]| Some(values.iter().map(|&value| value.to_owned()).collect());

    change("new_billing_engine", "first quarter", rollout(25)).await?;
    change("files_office_coediting", "most of them", rollout(75)).await?;
    let paying = ScopePatch { plans: of(&["pro", "business"]), ..ScopePatch::default() };
    change("gdpr_export_v2", "paying customers", targeted(paying)).await?;
    let pilot = ScopePatch { tenant_slugs: of(&["globex"]), ..ScopePatch::default() };
    change("chat_guest_access", "the pilot", targeted(pilot)).await?;

    change("jmap_native_v2", "a quarter first", rollout(25)).await?;
    platform.flags.kill("jmap_native_v2", &flags_operator("IMAP clients lose mail")).await?;
    let on = FlagPatch { state: Some(FlagState::On), ..FlagPatch::default() };
    change("jmap_native_v2", "fixed, for everybody", on).await?;

    let (initech, by) = (TenantKey::Slug("initech"), operator());
    platform.directory.suspend_tenant(initech, &by).await?;
    platform.directory.resume_tenant(initech, &by).await?;
    Ok(())
}

/// The decisions for a tenant with reasons, flag by flag.
pub(super) struct TenantFlags {
    pub(super) tenant: &'static str,
    pub(super) decisions: Value,
    pub(super) table: String,
}

/// The flags of the tenant that is shown.
pub(super) async fn flags(platform: &Platform) -> Result<TenantFlags> {
    let flags = platform.live.current();
    let subject = platform.subject(SHOWN_TENANT).await?;
    let context = subject.as_ref().map(|subject| subject.context(Some("production")));
    let decisions = context.map(|context| flags.snapshot().explain_all(&context));
    let decisions = decisions.unwrap_or_default();
    Ok(TenantFlags {
        tenant: SHOWN_TENANT,
        decisions: explained(&decisions),
        table: tabulated(&decisions),
    })
}
