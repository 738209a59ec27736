use dezky_core::Runtime;

use crate::{Flag, FlagContext, FlagOptions, FlagState, MAX_PCT, NewFlag, Scope};

/// Generates flags and those who ask for them from a runtime's randomness: with a
/// seeded [`ManualRuntime`](dezky_core::testkit::ManualRuntime) always the same ones.
///
/// Few values stand in scopes and contexts, so that they meet often.
pub struct FlagGenerator<'a> {
    runtime: &'a dyn Runtime,
    count: u64,
}

/// The longest one is as long as may be, and makes most digests longer than a block.
const SEEDS: [&str; 4] =
    ["seed", "süd", "a:b", "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"];

/// A context that owns its texts.
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
    /// The context.
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

    /// Draws from `runtime`.
    pub fn new(runtime: &'a dyn Runtime) -> Self {
        Self { runtime, count: 0 }
    }

    /// A number below `bound`, which must not be 0.
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
            // Absent and empty are not the same.
            1 => Some(String::new()),
            _ => Some(self.pick(values).to_owned()),
        }
    }

    /// Half of the axes are empty, some are long.
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

    /// The next flag: its key is unique.
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

    /// Half of the flags ask for nothing.
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

    /// `count` flags.
    pub fn flags(&mut self, count: usize) -> Vec<Flag> {
        (0..count).map(|_| self.next_flag()).collect()
    }

    /// Somebody who asks: by an id whose digests take one block, two, or more.
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
