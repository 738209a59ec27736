use dezky_core::Runtime;

use crate::{Flag, FlagContext, FlagOptions, FlagState, MAX_PCT, NewFlag, Scope};

/// Generates flags and contexts from a runtime's randomness: a seeded
/// [`ManualRuntime`](dezky_core::testkit::ManualRuntime) always yields the same ones.
///
/// Scopes and contexts draw from few values, so that they match often.
pub struct FlagGenerator<'a> {
    runtime: &'a dyn Runtime,
    count: u64,
}

/// The longest seed has the maximum length, and makes most digests longer than one block.
const SEEDS: [&str; 4] =
    ["seed", "süd", "a:b", "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"];

/// A context that owns its strings.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are those of the context")]
pub struct Asker {
    pub tenant_id: String,
    pub tenant_slug: Option<String>,
    pub plan: Option<String>,
    pub partner_slug: Option<String>,
    pub environment: Option<String>,
    pub tenant_active: Option<bool>,
}

impl Asker {
    /// Borrows the context.
    pub fn context(&self) -> FlagContext<'_> {
        FlagContext {
            tenant_id: &self.tenant_id,
            tenant_slug: self.tenant_slug.as_deref(),
            plan: self.plan.as_deref(),
            partner_slug: self.partner_slug.as_deref(),
            environment: self.environment.as_deref(),
            tenant_active: self.tenant_active,
        }
    }
}

impl<'a> FlagGenerator<'a> {
    const PLANS: [&'static str; 3] = ["free", "pro", "enterprise"];
    const TENANTS: [&'static str; 5] = ["acme", "dezky", "straße", "租户", "x\\y"];
    const PARTNERS: [&'static str; 3] = ["nordic", "süd", "%"];
    const ENVIRONMENTS: [&'static str; 2] = ["production", "staging"];

    /// Draws randomness from `runtime`.
    pub fn new(runtime: &'a dyn Runtime) -> Self {
        Self { runtime, count: 0 }
    }

    /// Returns a number below `bound`, which must not be 0.
    pub fn below(&self, bound: u64) -> u64 {
        let mut bytes = [0; 8];
        self.runtime.fill_random(&mut bytes);
        u64::from_le_bytes(bytes) % bound
    }

    fn draw(&self, bound: u64) -> usize {
        usize::try_from(self.below(bound)).unwrap_or(0)
    }

    fn pick<'v>(&self, values: &[&'v str]) -> &'v str {
        values[usize::try_from(self.below(values.len() as u64)).unwrap_or(0)]
    }

    fn maybe(&self, values: &[&str]) -> Option<String> {
        match self.below(8) {
            0 => None,
            // An empty value differs from an absent one.
            1 => Some(String::new()),
            _ => Some(self.pick(values).to_owned()),
        }
    }

    /// Leaves half of the axes empty and makes some long.
    fn axis(&self, values: &[&str]) -> Vec<String> {
        match self.below(8) {
            0..4 => Vec::new(),
            4 => (0..40)
                .map(|n| format!("{}-{n}", self.pick(values)))
                .chain(self.some(values))
                .collect(),
            _ => self.some(values).collect(),
        }
    }

    fn some(&self, values: &[&str]) -> impl Iterator<Item = String> {
        let kept = values.iter().filter(|_| self.below(2) == 0);
        kept.map(|value| (*value).to_owned()).collect::<Vec<_>>().into_iter()
    }

    /// Returns the next flag, with a unique key.
    pub fn next_flag(&mut self) -> Flag {
        self.count += 1;
        let pct = u8::try_from(self.below(101)).unwrap_or(0);
        let new = NewFlag {
            options: self.options(pct),
            description: self.pick(&["", "Threads in chat.", "Ü'\"\\%_"]).to_owned(),
            state: FlagState::ALL[usize::try_from(self.below(4)).unwrap_or(0)],
            pct,
            scope: Scope {
                plans: self.axis(&Self::PLANS),
                tenant_slugs: self.axis(&Self::TENANTS),
                partner_slugs: self.axis(&Self::PARTNERS),
                environments: self.axis(&Self::ENVIRONMENTS),
            },
            ..NewFlag::new(format!("{}{}", self.pick(&["chat.", "a_b-", "0"]), self.count))
        };
        Flag::new(new, self.runtime.now()).expect("generated flags are within the bounds")
    }

    /// Leaves half of the flags at the defaults.
    fn options(&self, pct: u8) -> FlagOptions {
        if self.below(2) == 0 {
            return FlagOptions::default();
        }
        let hundredths = u8::try_from(self.below(100)).unwrap_or(0);
        FlagOptions {
            seed: (self.below(3) == 0).then(|| self.pick(&SEEDS).to_owned()),
            pct_hundredths: if pct == MAX_PCT { 0 } else { hundredths },
            require_active_tenant: self.below(3) == 0,
            expires_at: (self.below(4) == 0).then(|| self.runtime.now()),
        }
    }

    /// Returns the next `count` flags.
    pub fn flags(&mut self, count: usize) -> Vec<Flag> {
        (0..count).map(|_| self.next_flag()).collect()
    }

    /// Returns a random context, whose tenant id makes digests of one block, two blocks, or more.
    pub fn asker(&self) -> Asker {
        let id = self.below(1_000);
        Asker {
            tenant_id: match id % 8 {
                0 => format!("{id:040}"),
                1 => format!("{id:0110}"),
                2 => format!("ü:{id}"),
                _ => format!("t-{id}"),
            },
            tenant_slug: self.maybe(&Self::TENANTS),
            plan: self.maybe(&Self::PLANS),
            partner_slug: self.maybe(&Self::PARTNERS),
            environment: self.maybe(&Self::ENVIRONMENTS),
            tenant_active: [None, Some(false), Some(true), Some(true)][self.draw(4)],
        }
    }
}
