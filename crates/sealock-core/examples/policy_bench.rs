//! Prints how long one uncached policy decision takes with 10 000 rules: `cargo run -p sealock-core --example policy_bench`.
//!
//! Five shapes of rule sets, each asked so that no rule applies: no early answer flatters the figure. Every rule is
//! expired, so the last shape also measures conditions.
#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a measurement reads the clock and prints"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::time::Instant;

use sealock_core::identity::AgentId;
use sealock_core::policy::condition::Expires;
use sealock_core::policy::{
    Action, Condition, Conditions, Effect, Question, Rule, RuleSet, Subject,
};

const RULES: usize = 10_000;
const ROUNDS: u32 = 2_000;

/// The caller and the service pattern of the n-th rule.
type Patterns = fn(usize) -> [String; 2];

fn main() {
    let shapes: [(&str, Patterns); 5] = [
        ("exact names", |n| {
            [format!("agent-{n}"), format!("svc-{n}.prod")]
        }),
        ("every caller, exact services", |n| {
            ["*".to_owned(), format!("svc-{n}.prod")]
        }),
        ("groups, distinct globs", |n| {
            [format!("group:g{}", n % 50), format!("svc-{n}-*.prod")]
        }),
        ("globs on both sides", |n| {
            [format!("*-{n}"), format!("s{}*.prod", n % 100)]
        }),
        ("1 000 expired grants for the caller", |n| match n % 10 {
            0 => ["*".to_owned(), "svc-*.prod".to_owned()],
            _ => [format!("agent-{n}"), "*".to_owned()],
        }),
    ];
    for (shape, patterns) in shapes {
        let rules = (0..RULES).map(|n| rule(n, patterns(n))).collect();
        let start = Instant::now();
        let rules = RuleSet::new(rules);
        let compiled = start.elapsed();
        let each = measure(&rules);
        println!(
            "{shape}: {each} ns a decision ({RULES} rules, compiled in {} ms)",
            compiled.as_millis()
        );
    }
}

fn rule(n: usize, [caller, service]: [String; 2]) -> Rule {
    Rule {
        id: format!("rule-{n:05}").parse().expect("an id"),
        effect: if n.is_multiple_of(4) {
            Effect::Deny
        } else {
            Effect::Allow
        },
        callers: vec![caller.parse().expect("a caller pattern")],
        services: vec![service.parse().expect("a service pattern")],
        destinations: Vec::new(),
        actions: BTreeSet::from([Action::Open]),
        conditions: Conditions::from_iter([Condition::Expires(Expires::at(expired()))]),
    }
}

fn expired() -> jiff::Timestamp {
    "2025-01-01T00:00:00Z".parse().expect("RFC 3339")
}

fn measure(rules: &RuleSet) -> u128 {
    let caller = AgentId {
        tenant: "default".parse().expect("a name"),
        name: "nobody-at-all".parse().expect("a name"),
    };
    let groups = ["g1", "g2", "g3"].map(|it| it.parse().expect("a name"));
    let groups = BTreeSet::from(groups);
    let labels = BTreeMap::from([("zone".to_owned(), "eu".to_owned())]);
    let service = "svc-none.prod".parse().expect("a name");
    let question = Question {
        caller: &caller,
        groups: &groups,
        labels: &labels,
        action: Action::Open,
        subject: Subject::Service {
            name: &service,
            labels: Some(&labels),
        },
    };
    let now = "2026-01-05T12:00:00Z".parse().expect("RFC 3339");
    let start = Instant::now();
    for _ in 0..ROUNDS {
        black_box(rules.decide(black_box(&question), now));
    }
    start.elapsed().as_nanos() / u128::from(ROUNDS)
}
