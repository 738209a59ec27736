//! Flags without a database or a runtime: compile once, evaluate as often as you like.
//!
//! A decision is a pure function of flag and context: no network, no clock, no allocation, and the
//! same result in every process and on every machine.
//!
//! `cargo run -p dezky-examples --example flags`

use dezky::flags::{FlagSet, bucket};
use dezky::{Flag, FlagContext, FlagEvaluator, NewFlag, Timestamp};

/// In the form of `GET /flags`, or of a file that you ship.
const FLAGS: &str = r#"[
  {"key": "new_editor", "state": "rollout", "pct": 25},
  {"key": "beta_chat", "state": "targeted", "scope": {"plans": ["pro", "business"]}},
  {"key": "old_login", "state": "off"}
]"#;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let flags: Vec<NewFlag> = serde_json::from_str(FLAGS)?;
    let at = Timestamp::parse("2026-09-01T08:00:00Z").expect("a time");
    let flags = flags.into_iter().map(|new| Flag::new(new, at)).collect::<Result<Vec<_>, _>>()?;
    // Validated and compiled once, so that evaluating is fast.
    let set = FlagSet::compile(&flags);

    let acme = FlagContext {
        tenant_id: "619699cfe1988ad9f06c144a",
        plan: Some("pro"),
        ..FlagContext::default()
    };
    // Every decision has a reason.
    for (key, decision) in set.evaluate_all(&acme) {
        println!("{key}: {} ({})", decision.value, decision.reason);
    }
    assert!(set.evaluate("beta_chat", &acme).value);
    assert!(!set.evaluate("no_such_flag", &acme).value);

    // A rollout permanently assigns each tenant to one of a hundred buckets per flag, so raising
    // the percentage only adds tenants.
    let of_acme = bucket(acme.tenant_id, "new_editor");
    assert_eq!(set.evaluate("new_editor", &acme).value, of_acme < 25);
    let reached = (0..10_000).filter(|n| bucket(&format!("tenant-{n}"), "new_editor") < 25).count();
    println!("acme is in bucket {of_acme}; 25 % reach {reached} of 10000 tenants");
    Ok(())
}
