use crate::{Actor, ActorType, NewEvent, NewMetadata, Outcome, Runtime, SealedEvent, Timestamp};

/// A small event of the platform, with a name of your choice in `resourceId`.
pub fn named_event(name: &str) -> NewEvent {
    NewEvent {
        resource_type: Some("tenant".into()),
        resource_id: Some(name.to_owned()),
        tenant_slug: Some("acme".into()),
        ..NewEvent::new("tenant.updated", Actor::user("u-1").with_email("ana@acme.test"))
    }
}

/// Generates events of all shapes from a runtime's randomness: a seeded
/// [`ManualRuntime`](super::ManualRuntime) always yields the same ones.
pub struct EventGenerator<'a> {
    runtime: &'a dyn Runtime,
    count: u64,
}

impl<'a> EventGenerator<'a> {
    /// Words that are difficult for case folding and pattern matching.
    pub const WORDS: [&'static str; 12] = [
        "acme",
        "Acme GmbH",
        "STRASSE",
        "straße",
        "100%",
        "a_b",
        "a.b",
        "İstanbul",
        "ΣΊΣΥΦΟΣ",
        "租户",
        "x\\y",
        ".*",
    ];
    const ACTIONS: [&'static str; 8] = [
        "tenant.created",
        "tenant.suspended",
        "tenantx.created",
        "mail.sent",
        "mailx.sent",
        "ocis.file_uploaded",
        "stalwart.auth_failed",
        "authentik.login",
    ];
    const SOURCES: [&'static str; 6] =
        ["platform-api", "authentik", "authentik:eu2", "authentikx", "stalwart", "ocis"];

    /// Draws randomness from `runtime`.
    pub fn new(runtime: &'a dyn Runtime) -> Self {
        Self { runtime, count: 0 }
    }

    /// Returns a number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        let mut bytes = [0; 8];
        self.runtime.fill_random(&mut bytes);
        usize::try_from(u64::from_le_bytes(bytes) % bound as u64).unwrap_or(0)
    }

    fn pick<'b>(&mut self, from: &[&'b str]) -> &'b str {
        from[self.below(from.len())]
    }

    fn maybe(&mut self, from: &[&str]) -> Option<String> {
        (self.below(3) > 0).then(|| self.pick(from).to_owned())
    }

    /// Returns the next event. All events are within one minute, so that many share a time.
    pub fn next_event(&mut self) -> NewEvent {
        self.count += 1;
        let actor = Actor {
            kind: ActorType::ALL[self.below(ActorType::ALL.len())],
            id: self.maybe(&["u-1", "u-2", "42", "ünï"]),
            email: self.maybe(&["ana@acme.test", "Ana@Acme.test", "BOB@example.com"]),
            ip: self.maybe(&["203.0.113.7", "2001:DB8::1", "::ffff:198.51.100.4", "not an ip"]),
        };
        let at = 1_767_225_600_000 + i64::try_from(self.below(60)).unwrap_or(0) * 1_000;
        let padding = "x".repeat(self.below(120));
        NewEvent {
            at: Timestamp::from_millis(at),
            outcome: Outcome::ALL[self.below(Outcome::ALL.len())],
            resource_type: self.maybe(&["tenant", "file", "flag"]),
            resource_id: self.maybe(&["t1", "t2", "%"]),
            resource_name: self.maybe(&Self::WORDS),
            tenant_slug: self.maybe(&["acme", "dezky", "nordic"]),
            partner_slug: self.maybe(&["nordic", "süd"]),
            source: self.pick(&Self::SOURCES).to_owned(),
            external_id: (self.below(4) > 0).then(|| format!("e-{}", self.count)),
            metadata: NewMetadata::from_source(format!(
                "{{\"n\":{},\"text\":\"{}\"}}",
                self.count, padding
            )),
            ..NewEvent::new(self.pick(&Self::ACTIONS), actor)
        }
    }

    /// Returns `count` sealed events.
    pub fn sealed(&mut self, count: usize) -> Vec<SealedEvent> {
        (0..count).map(|_| self.next_event().seal(self.runtime)).collect()
    }
}
