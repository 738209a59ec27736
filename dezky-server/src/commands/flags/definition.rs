//! A flag's definition on the command line.

use clap::Args;
use dezky_core::Timestamp;
use dezky_flags::{FlagPatch, FlagState, MAX_PCT, NewFlag, OptionsPatch, ScopePatch};

/// The named parts of a flag; the rest stays as it is.
#[derive(Debug, Args)]
pub(super) struct Definition {
    /// off; on: for everybody, whatever the scope; targeted: in scope, for nobody if the scope
    /// is empty; rollout: for a percentage of the tenants in scope, of all if it is empty
    #[arg(long)]
    pub(super) state: Option<FlagState>,
    /// The percentage of tenants that a rollout reaches, 0 to 100, such as 25 or 0.5
    #[arg(long, value_name = "N", value_parser = percentage, allow_negative_numbers = true)]
    pct: Option<Percentage>,
    /// A description of what the flag switches
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// A plan of the scope; repeat it for more. A tenant is in scope if plan, tenant, partner
    /// and environment all match
    #[arg(long = "plan", value_name = "NAME")]
    plans: Vec<String>,
    /// A tenant of the scope, by slug; repeat it for more
    #[arg(long = "tenant", value_name = "SLUG")]
    pub(super) tenants: Vec<String>,
    /// A partner of the scope, by slug; repeat it for more
    #[arg(long = "partner", value_name = "SLUG")]
    partners: Vec<String>,
    /// An environment of the scope; repeat it for more
    #[arg(long = "environment", value_name = "NAME")]
    environments: Vec<String>,
    /// Empty the axes that are not named
    #[arg(long)]
    clear_scope: bool,
    /// Replaces the key in the rollout's bucket; empty: the key again
    #[arg(long, value_name = "TEXT")]
    seed: Option<String>,
    /// Off for tenants that are not active
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    require_active_tenant: Option<bool>,
    /// The time by which the flag should be removed, such as 2027-01-31T00:00:00Z, or never;
    /// does not affect decisions
    #[arg(long, value_name = "TIME", value_parser = expiry)]
    expires: Option<Expiry>,
}

/// A percentage in hundredths.
#[derive(Debug, Clone, Copy)]
struct Percentage {
    whole: u8,
    hundredths: u8,
}

fn percentage(text: &str) -> Result<Percentage, String> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let read = || {
        let whole = whole.parse().ok().filter(|whole| *whole <= MAX_PCT)?;
        let hundredths = format!("{fraction:0<2}").parse().ok()?;
        (whole < MAX_PCT || hundredths == 0).then_some(Percentage { whole, hundredths })
    };
    (is_number(whole) && is_number(fraction) && fraction.len() <= 2)
        .then(read)
        .flatten()
        .ok_or_else(|| "it must be 0 to 100, with at most two decimals".to_owned())
}

/// The time by which a flag should be removed, if any.
#[derive(Debug, Clone, Copy)]
struct Expiry(Option<Timestamp>);

fn expiry(text: &str) -> Result<Expiry, String> {
    if text == "never" {
        return Ok(Expiry(None));
    }
    let at = Timestamp::parse(text);
    at.map(|at| Expiry(Some(at)))
        .ok_or_else(|| "it must be a time such as 2027-01-31T00:00:00Z, or never".to_owned())
}

impl Definition {
    /// The change of the named parts.
    pub(super) fn patch(self, note: Option<String>) -> FlagPatch {
        let clear = self.clear_scope;
        let axis = |values: Vec<String>| (clear || !values.is_empty()).then_some(values);
        FlagPatch {
            description: self.description,
            state: self.state,
            pct: self.pct.map(|pct| pct.whole),
            options: OptionsPatch {
                // An empty text means none.
                seed: self.seed.map(|seed| Some(seed).filter(|seed| !seed.is_empty())),
                pct_hundredths: self.pct.map(|pct| pct.hundredths),
                require_active_tenant: self.require_active_tenant,
                expires_at: self.expires.map(|Expiry(at)| at),
            },
            scope: ScopePatch {
                plans: axis(self.plans),
                tenant_slugs: axis(self.tenants),
                partner_slugs: axis(self.partners),
                environments: axis(self.environments),
            },
            note,
        }
    }
}

/// A new flag with the named parts.
pub(super) fn made(key: &str, patch: FlagPatch) -> NewFlag {
    let mut new = NewFlag::new(key);
    new.description = patch.description.unwrap_or_default();
    new.state = patch.state.unwrap_or_default();
    new.pct = patch.pct.unwrap_or_default();
    patch.options.apply(&mut new.options);
    new.scope.plans = patch.scope.plans.unwrap_or_default();
    new.scope.tenant_slugs = patch.scope.tenant_slugs.unwrap_or_default();
    new.scope.partner_slugs = patch.scope.partner_slugs.unwrap_or_default();
    new.scope.environments = patch.scope.environments.unwrap_or_default();
    new
}
