//! Policy held against an evaluator so naive that it can be believed: texts, loops, no index.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use std::net::IpAddr;

use super::*;
use crate::destination::Protocol;
use crate::fact::{Fact, Source};
use crate::name::TenantName;

const NOW: &str = "2026-01-05T12:00:00Z"; // a Monday

fn now() -> Timestamp {
    NOW.parse().expect("RFC 3339")
}

/// All that a question needs, owned.
#[derive(Debug, Clone)]
struct Case {
    caller: AgentId,
    groups: BTreeSet<GroupName>,
    labels: BTreeMap<String, String>,
    action: Action,
    service: ServiceName,
    service_labels: Option<BTreeMap<String, String>>,
    /// What is asked for in place of the service.
    destination: Option<Destination>,
}

impl Case {
    fn question(&self) -> Question<'_> {
        Question {
            caller: &self.caller,
            groups: &self.groups,
            labels: &self.labels,
            action: self.action,
            subject: match &self.destination {
                Some(destination) => Subject::Destination(destination),
                None => Subject::Service {
                    name: &self.service,
                    labels: self.service_labels.as_ref(),
                },
            },
        }
    }
}

/// Whether the text matches, tried in every way.
fn naive_glob(pattern: &str, text: &str) -> bool {
    if pattern == "*" {
        return true;
    }
    fn tail(pattern: &[char], text: &[char]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some(('*', more)), _) => (0..=text.len())
                .take_while(|eaten| !text[..*eaten].contains(&'.'))
                .any(|eaten| tail(more, &text[eaten..])),
            (Some((p, more)), Some((t, rest))) => p == t && tail(more, rest),
            (Some(_), None) | (None, Some(_)) => false,
        }
    }
    let chars = |text: &str| text.chars().collect::<Vec<_>>();
    tail(&chars(pattern), &chars(text))
}

/// 0 no, 1 unknown, 2 yes.
fn naive_pattern(pattern: &str, case: &Case, is_service: bool) -> u8 {
    let has = |labels: &BTreeMap<String, String>, label: &str| {
        labels.iter().any(|(k, v)| format!("{k}={v}") == label)
    };
    if let Some(label) = pattern.strip_prefix("label:") {
        return match (is_service, &case.service_labels) {
            (true, None) => 1,
            (true, Some(labels)) => 2 * u8::from(has(labels, label)),
            (false, _) => 2 * u8::from(has(&case.labels, label)),
        };
    }
    if let Some(group) = pattern.strip_prefix("group:") {
        return 2 * u8::from(case.groups.iter().any(|it| it.as_str() == group));
    }
    if pattern.contains(':') {
        return 1;
    }
    let name = if is_service {
        case.service.as_str()
    } else {
        case.caller.name.as_str()
    };
    2 * u8::from(naive_glob(pattern, name))
}

fn naive(rules: &[Rule], case: &Case) -> Decision {
    let applying = |effect: Effect| {
        let needed = if effect == Effect::Allow { 2 } else { 1 };
        let best = |patterns: Vec<String>, is_service| {
            let answers = patterns
                .iter()
                .map(|it| naive_pattern(it, case, is_service));
            answers.max().unwrap_or(0) >= needed
        };
        let texts = |rule: &Rule| {
            (
                rule.callers.iter().map(ToString::to_string).collect(),
                rule.services.iter().map(ToString::to_string).collect(),
            )
        };
        let reaches = |rule: &Rule, services: Vec<String>| match &case.destination {
            None => best(services, true),
            Some(destination) => rule.destinations.iter().any(|pattern| {
                let answer = pattern.matches(destination, effect);
                answer.satisfies(effect)
            }),
        };
        let applies = |rule: &&Rule| {
            let (callers, services) = texts(rule);
            let holds = rule.conditions.iter().all(|it| match it {
                Condition::Expires(at) => at.to_string().as_str() > NOW,
                Condition::Schedule(when) => when.to_string().starts_with("mon"),
                Condition::Unknown { .. } => effect == Effect::Deny,
            });
            rule.effect == effect
                && rule.actions.contains(&case.action)
                && best(callers, false)
                && reaches(rule, services)
                && holds
        };
        let ids = rules.iter().filter(applies).map(|rule| rule.id.clone());
        ids.min()
    };
    match (applying(Effect::Deny), applying(Effect::Allow)) {
        (Some(rule), _) => Decision::Denied { rule },
        (None, Some(rule)) => Decision::Allowed { rule },
        (None, None) => Decision::NoRule,
    }
}

const CALLERS: &[&str] = &[
    "*",
    "ci-*",
    "ci-1",
    "*-1",
    "web",
    "w*",
    "c*-*",
    "group:ops",
    "group:dev",
    "label:zone=eu",
    "label:zone=us",
    "user:ana",
];
const SERVICES: &[&str] = &[
    "*",
    "db.*",
    "db.prod",
    "*.prod",
    "d*",
    "db",
    "*.*",
    "db.prod.*",
    "*b*",
    "longprefix-*.prod",
    "label:tier=web",
    "label:tier=db",
    "host:x",
];
const DESTINATIONS: &[&str] = &[
    "*",
    "*:443",
    "*/udp",
    "api.example.com:443",
    "*.example.com",
    "**.example.com:8000-8999",
    "api-*.example.com:443/tcp",
    "10.0.0.0/8",
    "10.1.0.0/16:443",
    "0.0.0.0/0:80",
    "127.0.0.0/8",
    "169.254.169.254:80",
    "[2001:db8::/32]:443",
    "[64:ff9b::/96]",
    "[::/0]",
    "geo:de",
];
const CONDITION_SETS: &[&str] = &[
    "{}",
    "{}",
    "{}",
    r#"{"expires":"2027-01-01T00:00:00Z"}"#,
    r#"{"expires":"2025-01-01T00:00:00Z"}"#,
    r#"{"schedule":"mon 08:00-18:00"}"#,
    r#"{"schedule":"tue 08:00-18:00"}"#,
    r#"{"country":["ch"]}"#,
];

fn patterns<T: TryFrom<String> + fmt::Debug>(
    all: &'static [&'static str],
) -> impl Strategy<Value = Vec<T>> {
    let read = |it: &str| T::try_from(it.to_owned()).ok().expect("a good pattern");
    subsequence(all, 1..4).prop_map(move |some| some.into_iter().map(read).collect())
}

prop_compose! {
    fn any_rule()(
        id in 0..1000u32,
        effect in select(&Effect::ALL[..]),
        callers in patterns(CALLERS),
        services in patterns(SERVICES),
        destinations in prop_oneof![Just(Vec::new()), patterns(DESTINATIONS)],
        actions in subsequence(&Action::ALL[..], 1..=2),
        conditions in select(CONDITION_SETS),
    ) -> Rule {
        Rule {
            id: format!("r{id}").parse().expect("an id"),
            effect,
            callers,
            services,
            destinations,
            actions: actions.into_iter().collect(),
            conditions: serde_json::from_str(conditions).expect("conditions"),
        }
    }
}

fn any_rules(most: usize) -> impl Strategy<Value = Vec<Rule>> {
    proptest::collection::vec(any_rule(), 0..most).prop_map(|rules| {
        // One rule an id, as in the store.
        let unique: BTreeMap<RuleId, Rule> =
            rules.into_iter().map(|it| (it.id.clone(), it)).collect();
        unique.into_values().collect()
    })
}

fn any_labels(
    key: &'static str,
    values: &'static [&'static str],
) -> impl Strategy<Value = BTreeMap<String, String>> {
    subsequence(values, 0..=1).prop_map(move |some| {
        let pair = |value: &str| (key.to_owned(), value.to_owned());
        some.into_iter().map(pair).collect()
    })
}

prop_compose! {
    fn any_destination()(
        protocol in select(&Protocol::ALL[..]),
        address in select(&[
            "10.1.2.3", "192.0.2.1", "127.0.0.1", "169.254.169.254", "2001:db8::1", "64:ff9b::a01:203",
            "64:ff9b::7f00:1", "::ffff:10.1.2.3", "::1",
        ][..]),
        name in proptest::option::of(select(&[
            "api.example.com", "example.com", "a.b.example.com", "api-1.example.com", "else.test",
        ][..])),
        is_claim: bool,
        port in select(&[80, 443, 8000, 8443][..]),
    ) -> Destination {
        let address: IpAddr = address.parse().expect("an address");
        let at = Destination::at(protocol, (address, port).into());
        match name.map(|it| it.parse().expect("a name")) {
            None => at,
            Some(name) if is_claim => at.claimed(name, Source::Sni),
            Some(name) => Destination::named(protocol, Fact::new(name, Source::Dns), port),
        }
    }
}

prop_compose! {
    fn any_case()(
        caller in select(&["ci-1", "ci-2", "web", "w", "ana"][..]),
        groups in subsequence(&["ops", "dev"][..], 0..=2),
        labels in any_labels("zone", &["eu", "us"]),
        action in select(&Action::ALL[..]),
        service in select(&["db", "db.prod", "db.prod.eu", "web.prod", "longprefix-1.prod", "a.b"][..]),
        service_labels in proptest::option::of(any_labels("tier", &["web", "db"])),
        destination in proptest::option::of(any_destination()),
    ) -> Case {
        Case {
            caller: AgentId {
                tenant: "t".parse::<TenantName>().expect("a name"),
                name: caller.parse().expect("a name"),
            },
            groups: groups.into_iter().map(|it| it.parse().expect("a name")).collect(),
            labels,
            action,
            service: service.parse().expect("a name"),
            service_labels,
            destination,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn decides_as_the_naive_evaluator_does(rules in any_rules(40), case in any_case()) {
        let set = RuleSet::new(rules.clone());
        prop_assert_eq!(set.decide(&case.question(), now()), naive(&rules, &case));
    }

    // Rules of a bucket in random order once let an allow-all win over a deny.
    #[test]
    fn the_order_of_rules_never_matters(
        (rules, shuffled) in any_rules(12)
            .prop_flat_map(|rules| (Just(rules.clone()), Just(rules).prop_shuffle())),
        case in any_case(),
    ) {
        let one = RuleSet::new(rules).decide(&case.question(), now());
        let other = RuleSet::new(shuffled).decide(&case.question(), now());
        prop_assert_eq!(one, other);
    }

    #[test]
    fn a_deny_beside_an_allow_of_everything_always_wins(
        mut rules in any_rules(12),
        place in any::<prop::sample::Index>(),
        case in any_case(),
    ) {
        let all = |id: &str, effect| Rule {
            id: id.parse().expect("an id"),
            effect,
            callers: vec![CallerPattern::Any],
            services: vec![ServicePattern::Any],
            destinations: vec!["*".parse().expect("a pattern")],
            actions: Action::ALL.into(),
            conditions: Conditions::default(),
        };
        let mut deny = all("zz-deny", Effect::Deny);
        deny.callers = vec![CallerPattern::Name(case.caller.name.clone())];
        rules.insert(place.index(rules.len() + 1), deny);
        rules.insert(place.index(rules.len() + 1), all("a-allow", Effect::Allow));
        let decision = RuleSet::new(rules).decide(&case.question(), now());
        prop_assert!(matches!(decision, Decision::Denied { .. }), "{}", decision);
    }

    #[test]
    fn rules_round_trip_through_json(rule in any_rule()) {
        let json = serde_json::to_vec(&rule).expect("text");
        prop_assert_eq!(serde_json::from_slice::<Rule>(&json).expect("a rule"), rule);
    }

    #[test]
    fn rules_round_trip_through_toml(rules in any_rules(8)) {
        let from_here = |rule: &Rule| !serde_json::to_string(rule).expect("text").contains("country")
            && !rule.callers.iter().any(|it| matches!(it, CallerPattern::Unknown(_)))
            && !rule.services.iter().any(|it| matches!(it, ServicePattern::Unknown(_)))
            && !rule.destinations.iter().any(|it| matches!(it, DestinationPattern::Unknown(_)));
        let rules = rules.into_iter().filter(from_here).collect();
        let file = PolicyFile { rules, tests: Vec::new() };
        prop_assert_eq!(PolicyFile::parse(&file.to_toml(), "printed"), Ok(file));
    }

    #[test]
    fn an_explanation_tells_of_the_rule_that_decided(rules in any_rules(12), case in any_case()) {
        let set = RuleSet::new(rules);
        let explanation = set.explain(&case.question(), now());
        prop_assert_eq!(&explanation.decision, &set.decide(&case.question(), now()));
        let first = explanation.rules.first().filter(|rule| rule.applies);
        prop_assert_eq!(explanation.decision.rule(), first.map(|rule| &rule.id));
    }

    #[test]
    fn what_is_read_as_a_pattern_prints_as_it_was_written(
        text in prop_oneof![any::<String>(), "[a-c*.-]{1,6}", "[0-9.a:*/\\[\\]-]{1,12}", "(group|label|x):[a-c*.=-]{0,5}"],
    ) {
        if let Ok(pattern) = text.parse::<CallerPattern>() {
            prop_assert_eq!(pattern.to_string(), text.as_str());
        }
        if let Ok(pattern) = text.parse::<DestinationPattern>() {
            let again: DestinationPattern = pattern.to_string().parse().expect("as printed");
            prop_assert_eq!(again, pattern);
        }
        if let Ok(pattern) = text.parse::<ServicePattern>() {
            prop_assert_eq!(pattern.to_string(), text.as_str());
        }
    }

    #[test]
    fn every_error_of_any_text_has_a_line_of_it(
        text in prop_oneof![any::<String>(), r#"(\[\[(rule|test)\]\]\n((id|effect|x) = ("a"|1|\[\]|\{\})\n){0,3}){0,3}"#],
    ) {
        let lines = text.matches('\n').count() + 1;
        for error in PolicyFile::parse(&text, "any").err().unwrap_or_default() {
            prop_assert!((1..=lines).contains(&error.line), "{}", error);
        }
    }
}

#[test]
fn nothing_is_allowed_without_a_rule() {
    let case = Case {
        caller: AgentId {
            tenant: "t".parse().expect("a name"),
            name: "a".parse().expect("a name"),
        },
        groups: BTreeSet::new(),
        labels: BTreeMap::new(),
        action: Action::Open,
        service: "web".parse().expect("a name"),
        service_labels: Some(BTreeMap::new()),
        destination: None,
    };
    let decision = RuleSet::default().decide(&case.question(), now());
    assert_eq!(decision, Decision::NoRule);
    assert_eq!(decision.reason(), Some(Reason::PolicyDenied));
}

#[test]
fn a_stored_rule_that_could_never_match_is_refused() {
    for (callers, services, actions) in [
        ("[]", "[\"*\"]", "[\"open\"]"),
        ("[\"*\"]", "[]", "[\"open\"]"),
        ("[\"*\"]", "[\"*\"]", "[]"),
        ("[\"*\"]", "[\"*\"]", "[\"erase\"]"),
        ("[\"A\"]", "[\"*\"]", "[\"open\"]"),
    ] {
        let json = format!(
            r#"{{"id":"a","effect":"deny","callers":{callers},"services":{services},"actions":{actions}}}"#
        );
        assert!(serde_json::from_str::<Rule>(&json).is_err(), "{json}");
    }
}
