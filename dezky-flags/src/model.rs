//! The flag model: stored flags, new flags and patches, with their bounds.

use std::fmt;
use std::str::FromStr;

use dezky_core::change::check_note;
use dezky_core::{ActorType, Error, ErrorKind, Result, Timestamp};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// Maximum length of a flag's key in bytes.
pub const MAX_KEY_BYTES: usize = 64;
/// A key that no new flag may have: HTTP APIs use it as the path of the evaluation endpoint.
pub const RESERVED_KEY: &str = "evaluate";
/// Maximum length of a flag's description in bytes.
pub const MAX_DESCRIPTION_BYTES: usize = 1_000;
/// The highest percentage.
pub const MAX_PCT: u8 = 100;
/// The highest number of hundredths of a percentage point added to the whole percentage.
pub const MAX_PCT_HUNDREDTHS: u8 = 99;
/// Maximum length of a seed in bytes.
pub const MAX_SEED_BYTES: usize = 64;
/// Maximum number of values on one axis of a scope.
pub const MAX_SCOPE_VALUES: usize = 1_000;
/// Maximum length of a scope value in bytes.
pub const MAX_SCOPE_VALUE_BYTES: usize = 128;
/// Maximum number of changes in a flag's history; older changes are dropped.
pub const MAX_HISTORY: usize = 20;
/// The note that turns a patch with `state` `off` into a kill.
pub const KILL_SWITCH_NOTE: &str = "kill-switch";

/// A feature flag, as stores keep it and the HTTP API sends it.
///
/// Code that builds a flag checks it with [`validate`](Self::validate); stores do so as well.
///
/// ```
/// use dezky_core::Timestamp;
/// use dezky_flags::{Flag, FlagState, NewFlag};
/// let new = NewFlag { state: FlagState::On, ..NewFlag::new("chat.threads") };
/// let flag = Flag::new(new, Timestamp::MIN).unwrap();
/// assert_eq!(flag.version, 1);
/// assert_eq!(serde_json::to_value(&flag).unwrap()["state"], "on");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
// Ignoring a field that this version does not know could silently change decisions.
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Flag {
    /// The flag's name: `[a-z0-9][a-z0-9_.-]{0,63}`.
    pub key: String,
    /// A description of the feature. At most 1,000 bytes without control characters other than line
    /// feeds and tabs.
    pub description: String,
    /// The rule by which the flag is decided.
    pub state: FlagState,
    /// The percentage of tenants, 0 to 100, that a rollout includes.
    pub pct: u8,
    /// The contexts that targeting and rollout apply to.
    pub scope: Scope,
    /// Further conditions; none by default.
    #[serde(default, skip_serializing_if = "FlagOptions::is_default")]
    pub options: FlagOptions,
    /// The newest 20 changes, newest first.
    pub history: Vec<Change>,
    /// Counts the changes of the key, including removals, so that a flag recreated under the same
    /// key has a higher version than its predecessor ever had.
    pub version: u64,
    /// Creation time.
    pub created_at: Timestamp,
    /// Time of the last change.
    pub updated_at: Timestamp,
}

/// The rule by which a flag is decided.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlagState {
    /// Off for everybody.
    #[default]
    Off,
    /// On for everybody.
    On,
    /// On for contexts in the scope; an empty scope matches nobody.
    Targeted,
    /// On for a percentage of the tenants in the scope; an empty scope matches everybody.
    Rollout,
}

impl FlagState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Off, Self::On, Self::Targeted, Self::Rollout];

    /// The text form, as stored and sent.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
            Self::Targeted => "targeted",
            Self::Rollout => "rollout",
        }
    }
}

impl fmt::Display for FlagState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for FlagState {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| invalid("state", "one of off on targeted rollout"))
    }
}

/// The contexts that a flag applies to: every non-empty axis must contain the context's value.
///
/// An axis holds at most 1,000 values of 1 to 128 bytes without control characters. It is a set,
/// stored sorted and without duplicates.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
// Ignoring an axis that this version does not know could silently widen the flag.
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Scope {
    /// Plans.
    pub plans: Vec<String>,
    /// Tenant slugs.
    pub tenant_slugs: Vec<String>,
    /// Partner slugs.
    pub partner_slugs: Vec<String>,
    /// Environments: `production`, `staging`.
    pub environments: Vec<String>,
}

/// Conditions of a flag beyond its state, percentage and scope.
///
/// ```
/// use dezky_flags::FlagOptions;
/// let options: FlagOptions = serde_json::from_str(r#"{"pctHundredths": 50}"#).unwrap();
/// assert_eq!(options, FlagOptions { pct_hundredths: 50, ..FlagOptions::default() });
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct FlagOptions {
    /// Replaces the key in the bucket's input: flags with the same seed include the same tenants,
    /// and a flag moved to a new key keeps its tenants. 1 to 64 bytes without control characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<String>,
    /// Hundredths of a percentage point, 0 to 99, added to [`Flag::pct`]: a rollout with `pct` 0
    /// and 50 hundredths includes half a percent. A tenant included by the whole percentage is
    /// included whatever the hundredths are. Must be 0 if `pct` is 100.
    #[serde(skip_serializing_if = "is_zero")]
    pub pct_hundredths: u8,
    /// Switches the flag off for inactive tenants, whatever its state.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub require_active_tenant: bool,
    /// The time by which the flag should be removed. It does not affect decisions; the report of
    /// stale flags lists the flag from this time on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
}

impl FlagOptions {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    fn validate(&self, pct: u8) -> Result<()> {
        let is_seed = |seed: &str| {
            (1..=MAX_SEED_BYTES).contains(&seed.len()) && !seed.chars().any(char::is_control)
        };
        if !self.seed.as_deref().is_none_or(is_seed) {
            return Err(invalid("options.seed", SEED_BOUND));
        }
        if self.pct_hundredths > MAX_PCT_HUNDREDTHS || pct == MAX_PCT && self.pct_hundredths > 0 {
            return Err(invalid("options.pctHundredths", HUNDREDTHS_BOUND));
        }
        Ok(())
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes it so")]
fn is_zero(number: &u8) -> bool {
    *number == 0
}

/// An entry of a flag's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// Time of the change.
    pub at: Timestamp,
    /// The actor that made the change.
    pub actor: ChangeActor,
    /// The changed fields.
    pub changes: Vec<FieldChange>,
    /// The actor's reason for the change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// The actor of a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChangeActor {
    /// The kind of actor.
    #[serde(rename = "type")]
    pub kind: ActorType,
    /// The actor's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The actor's e-mail address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
}

/// A changed field.
///
/// If the JSON of an axis exceeds 1 KiB, the value is `{"count": n, "only": […]}` instead: the
/// number of values, and as many as fit of those that the other side lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FieldChange {
    /// The field's JSON path: `state`, `scope.plans`.
    pub field: String,
    /// The previous value. If the flag was created: null, or for an axis the empty list.
    pub from: Value,
    /// The new value. If the flag was removed: null, or for an axis the empty list.
    pub to: Value,
}

/// The definition from which a flag is created.
///
/// Deserializing checks it as [`from_json`](Self::from_json) does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NewFlag {
    /// See [`Flag::key`].
    pub key: String,
    /// See [`Flag::description`]; empty if absent.
    pub description: String,
    /// See [`Flag::state`]; off if absent.
    pub state: FlagState,
    /// See [`Flag::pct`]; 0 if absent.
    pub pct: u8,
    /// See [`Flag::scope`]; empty if absent.
    pub scope: Scope,
    /// See [`Flag::options`]; defaults if absent.
    #[serde(skip_serializing_if = "FlagOptions::is_default")]
    pub options: FlagOptions,
}

/// A change of a flag. Absent fields keep their values.
///
/// Deserializing checks it as [`from_json`](Self::from_json) does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FlagPatch {
    /// See [`Flag::description`].
    pub description: Option<String>,
    /// See [`Flag::state`].
    pub state: Option<FlagState>,
    /// See [`Flag::pct`]. Resets the hundredths to 0 unless the patch sets them too.
    pub pct: Option<u8>,
    /// See [`Flag::scope`].
    pub scope: ScopePatch,
    /// See [`Flag::options`].
    pub options: OptionsPatch,
    /// The reason for the change, at most 1,000 bytes without control characters other than line
    /// feeds and tabs. With `state` off, [`KILL_SWITCH_NOTE`] turns the patch into a kill.
    pub note: Option<String>,
}

/// A change of a scope. A given axis is replaced; an absent one keeps its values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScopePatch {
    /// See [`Scope::plans`].
    pub plans: Option<Vec<String>>,
    /// See [`Scope::tenant_slugs`].
    pub tenant_slugs: Option<Vec<String>>,
    /// See [`Scope::partner_slugs`].
    pub partner_slugs: Option<Vec<String>>,
    /// See [`Scope::environments`].
    pub environments: Option<Vec<String>>,
}

/// A change of a flag's options. Absent options keep their values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OptionsPatch {
    /// See [`FlagOptions::seed`]; `Some(None)` removes it.
    pub seed: Option<Option<String>>,
    /// See [`FlagOptions::pct_hundredths`].
    pub pct_hundredths: Option<u8>,
    /// See [`FlagOptions::require_active_tenant`].
    pub require_active_tenant: Option<bool>,
    /// See [`FlagOptions::expires_at`]; `Some(None)` removes it.
    pub expires_at: Option<Option<Timestamp>>,
}

impl Flag {
    /// Creates version 1 of a flag, without history, for use without a store.
    ///
    /// # Errors
    /// `field_invalid` names the field and its bound.
    pub fn new(new: NewFlag, at: Timestamp) -> Result<Self> {
        let mut flag = Self {
            key: new.key,
            description: new.description,
            state: new.state,
            pct: new.pct,
            scope: new.scope,
            options: new.options,
            history: Vec::new(),
            version: 1,
            created_at: at,
            updated_at: at,
        };
        if flag.key == RESERVED_KEY {
            let bound = "other than evaluate, which is the path of the evaluation endpoint";
            return Err(invalid("key", bound));
        }
        flag.scope.normalize();
        flag.validate()?;
        Ok(flag)
    }

    /// Returns the flag with `patch` applied but with its version, times and history unchanged, to
    /// preview a change.
    ///
    /// A patch to `off` with the note [`KILL_SWITCH_NOTE`] sets `pct` to 0 as well.
    ///
    /// # Errors
    /// `field_invalid` names the field and its bound.
    pub fn patched(&self, patch: &FlagPatch) -> Result<Self> {
        let mut flag = self.clone();
        if let Some(description) = &patch.description {
            flag.description.clone_from(description);
        }
        flag.state = patch.state.unwrap_or(flag.state);
        if let Some(pct) = patch.pct {
            flag.pct = pct;
            flag.options.pct_hundredths = 0;
        }
        patch.options.apply(&mut flag.options);
        if patch.is_kill() {
            flag.pct = 0;
            flag.options.pct_hundredths = 0;
        }
        let ScopePatch { plans, tenant_slugs, partner_slugs, environments } = &patch.scope;
        for (axis, patch) in [
            (&mut flag.scope.plans, plans),
            (&mut flag.scope.tenant_slugs, tenant_slugs),
            (&mut flag.scope.partner_slugs, partner_slugs),
            (&mut flag.scope.environments, environments),
        ] {
            if let Some(values) = patch {
                axis.clone_from(values);
            }
        }
        flag.scope.normalize();
        flag.validate()?;
        check_note(patch.note.as_deref())?;
        Ok(flag)
    }

    /// Checks every bound.
    ///
    /// # Errors
    /// `field_invalid` names the field and its bound.
    pub fn validate(&self) -> Result<()> {
        if !is_key(&self.key) {
            return Err(invalid("key", KEY_BOUND));
        }
        if self.description.len() > MAX_DESCRIPTION_BYTES || has_control(&self.description) {
            return Err(invalid("description", TEXT_BOUND));
        }
        if self.pct > MAX_PCT {
            return Err(invalid("pct", PCT_BOUND));
        }
        self.scope.validate()?;
        self.options.validate(self.pct)?;
        if self.history.len() > MAX_HISTORY {
            return Err(invalid("history", "at most 20 changes"));
        }
        if self.version == 0 || i64::try_from(self.version).is_err() {
            return Err(invalid("version", "1 to 2^63 - 1"));
        }
        Ok(())
    }

    /// Whether every field that decisions depend on is within its bounds. The key is not checked,
    /// because buckets are defined for any key.
    pub(crate) fn is_decidable(&self) -> bool {
        let checked = self.scope.validate().and_then(|()| self.options.validate(self.pct));
        checked.is_ok() && self.pct <= MAX_PCT
    }

    /// The second half of the bucket's input: the seed if there is one, else the key.
    pub fn bucket_key(&self) -> &str {
        self.options.seed.as_deref().unwrap_or(&self.key)
    }

    /// The rollout's percentage including hundredths, such as 12.5.
    pub fn percentage(&self) -> f64 {
        f64::from(self.threshold()) / 100.0
    }

    /// The rollout's percentage in hundredths of a percentage point, 0 to 10,000.
    ///
    /// ```
    /// use dezky_core::Timestamp;
    /// use dezky_flags::{Flag, FlagOptions, NewFlag};
    /// let options = FlagOptions { pct_hundredths: 50, ..FlagOptions::default() };
    /// let new = NewFlag { pct: 12, options, ..NewFlag::new("chat") };
    /// assert_eq!(Flag::new(new, Timestamp::MIN).unwrap().threshold(), 1_250);
    /// ```
    pub fn threshold(&self) -> u16 {
        u16::from(self.pct) * 100 + u16::from(self.options.pct_hundredths)
    }
}

impl OptionsPatch {
    /// Applies the patch to `options`.
    pub fn apply(&self, options: &mut FlagOptions) {
        if let Some(seed) = &self.seed {
            options.seed.clone_from(seed);
        }
        options.pct_hundredths = self.pct_hundredths.unwrap_or(options.pct_hundredths);
        options.require_active_tenant =
            self.require_active_tenant.unwrap_or(options.require_active_tenant);
        options.expires_at = self.expires_at.unwrap_or(options.expires_at);
    }
}

impl Scope {
    /// The axes with their JSON paths.
    pub(crate) fn axes(&self) -> [(&'static str, &Vec<String>); 4] {
        [
            ("scope.plans", &self.plans),
            ("scope.tenantSlugs", &self.tenant_slugs),
            ("scope.partnerSlugs", &self.partner_slugs),
            ("scope.environments", &self.environments),
        ]
    }

    fn normalize(&mut self) {
        for axis in [
            &mut self.plans,
            &mut self.tenant_slugs,
            &mut self.partner_slugs,
            &mut self.environments,
        ] {
            axis.sort_unstable();
            axis.dedup();
        }
    }

    fn validate(&self) -> Result<()> {
        for (path, values) in self.axes() {
            if values.len() > MAX_SCOPE_VALUES {
                return Err(invalid(path, "at most 1000 values"));
            }
            if let Some(at) = values.iter().position(|value| !is_scope_value(value)) {
                return Err(invalid(
                    &format!("{path}[{at}]"),
                    "1 to 128 bytes without control characters",
                ));
            }
            if !values.is_sorted_by(|a, b| a < b) {
                return Err(invalid(path, "sorted, each value once"));
            }
        }
        Ok(())
    }
}

impl NewFlag {
    /// A flag that is `off` and has no description.
    pub fn new(key: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            description: String::new(),
            state: FlagState::Off,
            pct: 0,
            scope: Scope::default(),
            options: FlagOptions::default(),
        }
    }

    /// Reads a new flag from a JSON object: `key`, and optionally `description`, `state`, `pct`,
    /// `scope` and `options`.
    ///
    /// # Errors
    /// `field_invalid`, with a message that begins with the field's JSON path and states the bound.
    /// Unknown fields are errors.
    ///
    /// ```
    /// use dezky_flags::NewFlag;
    /// use serde_json::json;
    /// let error = NewFlag::from_json(&json!({"key": "chat", "pct": 101})).unwrap_err();
    /// assert!(error.to_string().starts_with("pct must be a whole number from 0 to 100"));
    /// ```
    pub fn from_json(value: &Value) -> Result<Self> {
        let known = ["key", "description", "state", "pct", "scope", "options"];
        let fields = Fields::of(value, "", &known)?;
        let scope = fields.scope()?;
        let mut options = FlagOptions::default();
        fields.options()?.apply(&mut options);
        let flag = Self {
            key: fields.text("key")?.ok_or_else(|| invalid("key", KEY_BOUND))?,
            description: fields.text("description")?.unwrap_or_default(),
            state: fields.state()?.unwrap_or_default(),
            pct: fields.pct()?.unwrap_or(0),
            scope: Scope {
                plans: scope.plans.unwrap_or_default(),
                tenant_slugs: scope.tenant_slugs.unwrap_or_default(),
                partner_slugs: scope.partner_slugs.unwrap_or_default(),
                environments: scope.environments.unwrap_or_default(),
            },
            options,
        };
        Flag::new(flag.clone(), Timestamp::MIN)?;
        Ok(flag)
    }
}

impl FlagPatch {
    /// Reads a patch from a JSON object with any of `description`, `state`, `pct`, `scope` (axis by
    /// axis), `options` (one by one, null removes) and `note`.
    ///
    /// # Errors
    /// `field_invalid`, with a message that begins with the field's JSON path and states the bound.
    /// Unknown fields are errors.
    ///
    /// ```
    /// use dezky_flags::{FlagPatch, FlagState};
    /// use serde_json::json;
    /// let patch = FlagPatch::from_json(&json!({"state": "rollout", "pct": 25})).unwrap();
    /// assert_eq!((patch.state, patch.pct), (Some(FlagState::Rollout), Some(25)));
    /// ```
    pub fn from_json(value: &Value) -> Result<Self> {
        let known = ["description", "state", "pct", "scope", "options", "note"];
        let fields = Fields::of(value, "", &known)?;
        let patch = Self {
            description: fields.text("description")?,
            state: fields.state()?,
            pct: fields.pct()?,
            scope: fields.scope()?,
            options: fields.options()?,
            note: fields.text("note")?,
        };
        // Except for hundredths at 100 %, the bounds don't depend on the patched flag.
        Flag::new(NewFlag::new("k"), Timestamp::MIN)?.patched(&patch)?;
        Ok(patch)
    }

    /// Whether the patch is recorded as a kill.
    pub fn is_kill(&self) -> bool {
        self.state == Some(FlagState::Off) && self.note.as_deref() == Some(KILL_SWITCH_NOTE)
    }
}

impl<'de> Deserialize<'de> for NewFlag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_json(&Value::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for FlagPatch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_json(&Value::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

const KEY_BOUND: &str =
    "1 to 64 lower-case letters, digits, _, . or -, starting with a letter or a digit";
const PCT_BOUND: &str = "a whole number from 0 to 100 (hundredths go into options.pctHundredths)";
const SEED_BOUND: &str = "a string of 1 to 64 bytes without control characters";
const HUNDREDTHS_BOUND: &str = "a whole number from 0 to 99, and 0 if pct is 100";
const TEXT_BOUND: &str =
    "at most 1000 bytes without control characters other than line feeds and tabs";

/// Whether `text` has the form of a key: `[a-z0-9][a-z0-9_.-]{0,63}`.
pub(crate) fn is_key(text: &str) -> bool {
    text.len() <= MAX_KEY_BYTES
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-'))
}

fn is_scope_value(text: &str) -> bool {
    (1..=MAX_SCOPE_VALUE_BYTES).contains(&text.len()) && !text.chars().any(char::is_control)
}

fn has_control(text: &str) -> bool {
    text.contains(|c: char| c.is_control() && !matches!(c, '\n' | '\t'))
}

fn invalid(path: &str, bound: &str) -> Error {
    Error::new(ErrorKind::FieldInvalid, format!("{path} must be {bound}"))
}

/// The members of a JSON object; errors name the member's full path.
struct Fields<'a> {
    members: &'a Map<String, Value>,
    prefix: &'static str,
}

impl<'a> Fields<'a> {
    fn of(value: &'a Value, prefix: &'static str, known: &[&str]) -> Result<Self> {
        let name = if prefix.is_empty() { "the body" } else { prefix.trim_end_matches('.') };
        let members = value.as_object().ok_or_else(|| invalid(name, "a JSON object"))?;
        if let Some(unknown) = members.keys().find(|name| !known.contains(&name.as_str())) {
            let shown = &unknown[..unknown.floor_char_boundary(MAX_KEY_BYTES)];
            return Err(Error::new(
                ErrorKind::FieldInvalid,
                format!("{prefix}{shown} is not a field: use {}", known.join(", ")),
            ));
        }
        Ok(Self { members, prefix })
    }

    fn text(&self, name: &str) -> Result<Option<String>> {
        match self.members.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(invalid(name, "a string, or absent")),
        }
    }

    fn state(&self) -> Result<Option<FlagState>> {
        let Some(value) = self.members.get("state") else { return Ok(None) };
        value.as_str().unwrap_or_default().parse().map(Some)
    }

    fn pct(&self) -> Result<Option<u8>> {
        let Some(value) = self.members.get("pct") else { return Ok(None) };
        let pct = value.as_u64().and_then(|pct| u8::try_from(pct).ok());
        pct.filter(|pct| *pct <= MAX_PCT).map(Some).ok_or_else(|| invalid("pct", PCT_BOUND))
    }

    fn scope(&self) -> Result<ScopePatch> {
        let Some(value) = self.members.get("scope") else { return Ok(ScopePatch::default()) };
        let known = ["plans", "tenantSlugs", "partnerSlugs", "environments"];
        let axes = Fields::of(value, "scope.", &known)?;
        Ok(ScopePatch {
            plans: axes.values("plans")?,
            tenant_slugs: axes.values("tenantSlugs")?,
            partner_slugs: axes.values("partnerSlugs")?,
            environments: axes.values("environments")?,
        })
    }

    fn options(&self) -> Result<OptionsPatch> {
        let Some(value) = self.members.get("options") else { return Ok(OptionsPatch::default()) };
        let known = ["seed", "pctHundredths", "requireActiveTenant", "expiresAt"];
        let options = Fields::of(value, "options.", &known)?;
        let named = |name: &str| options.members.get(name);
        let hundredths = |value: &Value| {
            let number = value.as_u64().and_then(|number| u8::try_from(number).ok());
            number
                .filter(|number| *number <= MAX_PCT_HUNDREDTHS)
                .ok_or_else(|| invalid("options.pctHundredths", HUNDREDTHS_BOUND))
        };
        let switch = |value: &Value| {
            value.as_bool().ok_or_else(|| invalid("options.requireActiveTenant", "true or false"))
        };
        let seed = |value: &Value| match value {
            Value::Null => Ok(None),
            Value::String(seed) => Ok(Some(seed.clone())),
            _ => Err(invalid("options.seed", SEED_BOUND)),
        };
        let time = |value: &Value| match value {
            Value::Null => Ok(None),
            value => value.as_str().and_then(Timestamp::parse).map(Some).ok_or_else(|| {
                invalid("options.expiresAt", "a time such as 2027-01-31T00:00:00Z, or null")
            }),
        };
        Ok(OptionsPatch {
            seed: named("seed").map(seed).transpose()?,
            pct_hundredths: named("pctHundredths").map(hundredths).transpose()?,
            require_active_tenant: named("requireActiveTenant").map(switch).transpose()?,
            expires_at: named("expiresAt").map(time).transpose()?,
        })
    }

    fn values(&self, name: &str) -> Result<Option<Vec<String>>> {
        let Some(value) = self.members.get(name) else { return Ok(None) };
        let path = format!("{}{name}", self.prefix);
        let Some(values) = value.as_array() else {
            return Err(invalid(&path, "a list of strings, or absent"));
        };
        if values.len() > MAX_SCOPE_VALUES {
            return Err(invalid(&path, "at most 1000 values"));
        }
        let text = |(at, value): (usize, &Value)| match value.as_str() {
            Some(text) if is_scope_value(text) => Ok(text.to_owned()),
            _ => Err(invalid(
                &format!("{path}[{at}]"),
                "a string of 1 to 128 bytes without control characters",
            )),
        };
        values.iter().enumerate().map(text).collect::<Result<_>>().map(Some)
    }
}
