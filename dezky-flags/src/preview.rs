//! Previews of flag changes, tenant by tenant.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::store::Snapshot;
use crate::{Flag, FlagContext, FlagEvaluator as _, FlagOptions, FlagSet, FlagState};

/// Maximum number of tenants that a preview lists as gaining, and as losing, a flag. All of them
/// are counted.
pub const MAX_LISTED_TENANTS: usize = 1_000;
/// Maximum number of plans that a preview counts separately.
pub const MAX_LISTED_PLANS: usize = 1_000;
/// Maximum number of tenants that the previews of two snapshots list in total, in addition to one
/// gaining and one losing tenant per flag.
const MAX_LISTED_OF_ALL: usize = 100_000;

/// The effect of a flag's change on the known tenants.
///
/// In JSON the plans are under `byPlan`. `Display` summarizes the preview: `~14 of 40 tenants: 4
/// gain it, 0 lose it`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Preview {
    /// The number of tenants; `of` in JSON.
    #[serde(rename = "of")]
    pub total: u64,
    /// The number of tenants for which the flag was on.
    pub before_on: u64,
    /// The number of tenants for which the flag will be on.
    pub after_on: u64,
    /// The tenants for which the flag is switched on.
    pub gains: Flipped,
    /// The tenants for which the flag is switched off.
    pub loses: Flipped,
    /// The numbers by plan, for the first [`MAX_LISTED_PLANS`] plans seen. Tenants without a plan
    /// are under the empty string.
    pub by_plan: BTreeMap<String, PlanPreview>,
    /// The numbers of all other plans together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other_plans: Option<PlanPreview>,
}

/// The tenants for which a flag's value changes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Flipped {
    /// The number of tenants, always exact.
    pub count: u64,
    /// The tenants in the order in which they were seen, up to the [limit](Previewer::with_limit).
    pub tenants: Vec<FlippedTenant>,
}

/// A tenant for which a flag's value changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlippedTenant {
    /// The tenant's id.
    pub id: String,
    /// The tenant's slug.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slug: Option<String>,
    /// The tenant's plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
}

/// The numbers of a [`Preview`] for the tenants of one plan.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanPreview {
    /// See [`Preview::total`].
    #[serde(rename = "of")]
    pub total: u64,
    /// See [`Preview::before_on`].
    pub before_on: u64,
    /// See [`Preview::after_on`].
    pub after_on: u64,
    /// The number of tenants for which the flag is switched on.
    pub gains: u64,
    /// The number of tenants for which the flag is switched off.
    pub loses: u64,
}

/// Compares a flag before and after a change for all `tenants`. `None` stands for a flag that does
/// not exist.
///
/// Evaluates as a [`FlagSet`] does by default, so the result is exact. Each tenant is evaluated as
/// given, in the environment of its context.
///
/// ```
/// use dezky_core::Timestamp;
/// use dezky_flags::{Flag, FlagContext, FlagPatch, FlagState, NewFlag, preview};
/// let new = NewFlag { state: FlagState::Rollout, pct: 25, ..NewFlag::new("chat") };
/// let before = Flag::new(new, Timestamp::MIN).unwrap();
/// let after = before.patched(&FlagPatch { pct: Some(50), ..FlagPatch::default() }).unwrap();
/// let ids: Vec<_> = (0..400).map(|n| format!("t-{n}")).collect();
/// let tenants = ids.iter().map(|id| FlagContext { tenant_id: id, ..FlagContext::default() });
/// let preview = preview(Some(&before), Some(&after), tenants);
/// assert_eq!((preview.total, preview.loses.count), (400, 0));
/// assert_eq!(preview.after_on, preview.before_on + preview.gains.count);
/// ```
pub fn preview<'a>(
    before: Option<&Flag>,
    after: Option<&Flag>,
    tenants: impl IntoIterator<Item = FlagContext<'a>>,
) -> Preview {
    let mut previewer = Previewer::new(before, after);
    tenants.into_iter().for_each(|tenant| previewer.see(&tenant));
    previewer.finish()
}

/// Whether two states of a flag decide alike for everybody, judging by their definitions alone.
/// `None` stands for a flag that does not exist. If so, no tenant's value can change, and a preview
/// need not scan the tenants.
///
/// ```
/// use dezky_core::Timestamp;
/// use dezky_flags::{Flag, FlagState, NewFlag, decides_alike};
/// let off = Flag::new(NewFlag::new("chat"), Timestamp::MIN).unwrap();
/// assert!(decides_alike(Some(&off), None));
/// assert!(!decides_alike(Some(&off), Some(&Flag { state: FlagState::On, ..off.clone() })));
/// ```
pub fn decides_alike(one: Option<&Flag>, other: Option<&Flag>) -> bool {
    let decides = |flag: &&Flag| flag.state != FlagState::Off;
    match (one.filter(decides), other.filter(decides)) {
        (None, None) => true,
        (Some(one), Some(other)) => {
            let options = |flag: &Flag| FlagOptions { expires_at: None, ..flag.options.clone() };
            (one.state, one.pct, &one.scope, options(one))
                == (other.state, other.pct, &other.scope, options(other))
                && one.key == other.key
        }
        _ => false,
    }
}

/// Builds a [`Preview`] from tenants that arrive one by one. Keeps only the numbers and the listed
/// tenants.
#[derive(Debug)]
pub struct Previewer {
    key: String,
    before: FlagSet,
    after: FlagSet,
    limit: usize,
    preview: Preview,
}

impl Previewer {
    /// Creates a previewer of the change from `before` to `after`; `None` stands for a flag that
    /// does not exist. Lists at most [`MAX_LISTED_TENANTS`] gaining and as many losing tenants.
    pub fn new(before: Option<&Flag>, after: Option<&Flag>) -> Self {
        Self {
            key: before.or(after).map(|flag| flag.key.clone()).unwrap_or_default(),
            before: FlagSet::compile(before),
            after: FlagSet::compile(after),
            limit: MAX_LISTED_TENANTS,
            preview: Preview::default(),
        }
    }

    /// Lists at most `limit` gaining and as many losing tenants.
    #[must_use]
    pub fn with_limit(self, limit: usize) -> Self {
        Self { limit, ..self }
    }

    /// Adds a tenant. Each tenant must be added only once.
    pub fn see(&mut self, tenant: &FlagContext<'_>) {
        let before = self.before.evaluate(&self.key, tenant).value;
        let after = self.after.evaluate(&self.key, tenant).value;
        let preview = &mut self.preview;
        preview.total += 1;
        preview.before_on += u64::from(before);
        preview.after_on += u64::from(after);
        preview.plan(tenant.plan.unwrap_or_default()).count(before, after);
        let flipped = match (before, after) {
            (false, true) => &mut preview.gains,
            (true, false) => &mut preview.loses,
            _ => return,
        };
        flipped.count += 1;
        if flipped.tenants.len() < self.limit {
            flipped.tenants.push(FlippedTenant {
                id: tenant.tenant_id.to_owned(),
                slug: tenant.tenant_slug.map(str::to_owned),
                plan: tenant.plan.map(str::to_owned),
            });
        }
    }

    /// Returns the preview of all tenants added.
    pub fn finish(self) -> Preview {
        self.preview
    }
}

impl Preview {
    /// The numbers of `plan`.
    fn plan(&mut self, plan: &str) -> &mut PlanPreview {
        if self.by_plan.len() < MAX_LISTED_PLANS && !self.by_plan.contains_key(plan) {
            self.by_plan.insert(plan.to_owned(), PlanPreview::default());
        }
        match self.by_plan.get_mut(plan) {
            Some(plan) => plan,
            None => self.other_plans.get_or_insert_default(),
        }
    }
}

impl PlanPreview {
    fn count(&mut self, before: bool, after: bool) {
        self.total += 1;
        self.before_on += u64::from(before);
        self.after_on += u64::from(after);
        self.gains += u64::from(!before && after);
        self.loses += u64::from(before && !after);
    }
}

impl fmt::Display for Preview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { total, after_on, gains, loses, .. } = self;
        let (gain, lose) = (gains.count, loses.count);
        write!(f, "~{after_on} of {total} tenants: {gain} gain it, {lose} lose it")
    }
}

/// Previews the change of all flags from one snapshot to another, such as from a store's flags to
/// those of a file.
///
/// Flags that [decide alike](decides_alike) are left out. Unreadable flags count as off.
///
/// ```
/// use dezky_flags::FlagContext;
/// use dezky_flags::SnapshotPreviewer;
/// use dezky_flags::store::Snapshot;
/// let snapshot = Snapshot::default();
/// let mut previewer = SnapshotPreviewer::new(&snapshot, &snapshot);
/// previewer.see(&FlagContext { tenant_id: "t-1", ..FlagContext::default() });
/// assert!(previewer.finish().is_empty());
/// ```
#[derive(Debug)]
pub struct SnapshotPreviewer(BTreeMap<String, Previewer>);

impl SnapshotPreviewer {
    /// Creates a previewer of the change from `before` to `after`.
    pub fn new(before: &Snapshot, after: &Snapshot) -> Self {
        let mut pairs: BTreeMap<&str, (Option<&Flag>, Option<&Flag>)> = BTreeMap::new();
        for flag in &before.flags {
            pairs.entry(&flag.key).or_default().0 = Some(flag);
        }
        for flag in &after.flags {
            pairs.entry(&flag.key).or_default().1 = Some(flag);
        }
        pairs.retain(|_, (before, after)| !decides_alike(*before, *after));
        let limit = (MAX_LISTED_OF_ALL / pairs.len().max(1)).clamp(1, MAX_LISTED_TENANTS);
        let previewer = |(key, (before, after)): (&str, _)| {
            (key.to_owned(), Previewer::new(before, after).with_limit(limit))
        };
        Self(pairs.into_iter().map(previewer).collect())
    }

    /// Whether all flags decide alike, so that no tenant's value can change.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a tenant. Each tenant must be added only once.
    pub fn see(&mut self, tenant: &FlagContext<'_>) {
        self.0.values_mut().for_each(|previewer| previewer.see(tenant));
    }

    /// Returns the previews by flag. Each lists at most 1,000 gaining and 1,000 losing tenants,
    /// fewer if more than 100 flags differ.
    pub fn finish(self) -> BTreeMap<String, Preview> {
        self.0.into_iter().map(|(key, previewer)| (key, previewer.finish())).collect()
    }
}
