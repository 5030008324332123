//! Policy files: rules in TOML, with test cases beside them.
//!
//! ```toml
//! [[rule]]
//! id = "ci-reads-db"
//! effect = "allow"
//! callers = ["ci-*", "group:ops"]
//! services = ["db.*"]
//! expires = 2030-01-31T18:00:00Z
//!
//! [[test]]
//! caller = "ci-1"
//! service = "db.prod"
//! expect = "allow"
//! ```
//!
//! Everything that is not understood is an error, never a default: a mistyped effect does not become an allow.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::ops::Range;

use jiff::Timestamp;

use super::condition::CONDITIONS;
use super::{
    Action, Condition, Conditions, Decision, DestinationPattern, Effect, Question, Rule, RuleId,
    RuleSet, Subject,
};
use crate::config::document::{Document, Item, Section};
use crate::config::{FileError, Problem, Tombstone};
use crate::destination::Destination;
use crate::identity::AgentId;
use crate::name::{AgentName, GroupName, ServiceName, TenantName};

/// The rules and test cases of one file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PolicyFile {
    /// The rules, as the file has them.
    pub rules: Vec<Rule>,
    /// The test cases, as the file has them.
    pub tests: Vec<PolicyTest>,
}

/// A case that the rules of its file must decide as expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyTest {
    /// The line of the file in which it begins.
    pub line: usize,
    /// Who asks.
    pub caller: AgentName,
    /// The groups that the caller is in.
    pub groups: BTreeSet<GroupName>,
    /// The caller's labels.
    pub labels: BTreeMap<String, String>,
    /// What is asked for.
    pub goal: TestGoal,
    /// What is to be done.
    pub action: Action,
    /// When it is asked; otherwise when the tests are run.
    pub at: Option<Timestamp>,
    /// What must come out.
    pub expect: Effect,
}

/// What a test case asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TestGoal {
    /// A service.
    Service {
        /// Its name.
        name: ServiceName,
        /// Its labels.
        labels: BTreeMap<String, String>,
    },
    /// A place outside.
    Destination(Destination),
}

impl TestGoal {
    fn subject(&self) -> Subject<'_> {
        match self {
            Self::Service { name, labels } => Subject::Service {
                name,
                labels: Some(labels),
            },
            Self::Destination(destination) => Subject::Destination(destination),
        }
    }
}

impl std::fmt::Display for TestGoal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Service { name, .. } => name.fmt(f),
            Self::Destination(destination) => destination.fmt(f),
        }
    }
}

/// How a test case ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestOutcome {
    /// The case.
    pub test: PolicyTest,
    /// What the rules decided.
    pub decision: Decision,
}

impl TestOutcome {
    /// Whether the decision is the expected one.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.decision.is_allowed() == (self.test.expect == Effect::Allow)
    }
}

/// Keys of rules and tests that were renamed.
const TOMBSTONES: &[Tombstone] = &[];

const TOP: &[&str] = &["rule", "test"];
const TEST_KEYS: &[&str] = &[
    "caller",
    "groups",
    "labels",
    "service",
    "service_labels",
    "destination",
    "action",
    "at",
    "expect",
];
const RULE_KEYS: &[&str] = &[
    "id",
    "effect",
    "callers",
    "services",
    "destinations",
    "actions",
];

impl PolicyFile {
    /// Reads a file; `file` is its name in errors.
    ///
    /// # Errors
    /// All that is wrong with it, in the order of lines. A file with one error gives no rules at all.
    pub fn parse(text: &str, file: &str) -> Result<Self, Vec<FileError>> {
        Self::parse_with(text, file, TOMBSTONES)
    }

    fn parse_with(
        text: &str,
        file: &str,
        tombstones: &[Tombstone],
    ) -> Result<Self, Vec<FileError>> {
        let (mut document, table) = Document::open(text, file);
        let top = Section {
            table: &table,
            at: 0..0,
        };
        top.only(&mut document, TOP, tombstones);
        let mut read = Self::default();
        let mut lines: BTreeMap<RuleId, usize> = BTreeMap::new();
        for section in tables(&mut document, &top, "rule") {
            let Some((rule, at)) = rule(&mut document, &section, tombstones) else {
                continue;
            };
            let line = document.line(at.start);
            if let Some(first) = lines.get(&rule.id) {
                let problem = Problem::Duplicate {
                    what: "rule",
                    name: rule.id.to_string(),
                    line: *first,
                };
                document.report(at, problem);
                continue;
            }
            lines.insert(rule.id.clone(), line);
            read.rules.push(rule);
        }
        for section in tables(&mut document, &top, "test") {
            read.tests.extend(test(&mut document, &section, tombstones));
        }
        if document.is_clean() {
            Ok(read)
        } else {
            Err(document.finish())
        }
    }

    /// Decides every test case with the rules of the file alone.
    #[must_use]
    pub fn run_tests(&self, now: Timestamp) -> Vec<TestOutcome> {
        let rules = RuleSet::new(self.rules.clone());
        let cases = self.tests.iter();
        cases.map(|test| test.run(&rules, now)).collect()
    }

    /// The rules as a policy file; reading it again gives the same rules.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let rules: Vec<String> = self.rules.iter().map(Rule::to_toml).collect();
        rules.join("\n")
    }
}

impl PolicyTest {
    fn run(&self, rules: &RuleSet, now: Timestamp) -> TestOutcome {
        // Rules never name a tenant, so any will do.
        let tenant: TenantName = "test".parse().expect("a lower-case label is a name");
        let caller = AgentId {
            tenant,
            name: self.caller.clone(),
        };
        let question = Question {
            caller: &caller,
            groups: &self.groups,
            labels: &self.labels,
            action: self.action,
            subject: self.goal.subject(),
        };
        TestOutcome {
            test: self.clone(),
            decision: rules.decide(&question, self.at.unwrap_or(now)),
        }
    }
}

fn tables<'a, 't>(
    document: &mut Document<'t>,
    top: &Section<'a, 't>,
    key: &str,
) -> Vec<Section<'a, 't>> {
    match top.get(key) {
        Some(item) => document.tables(item, key),
        None => Vec::new(),
    }
}

/// Reads a rule; it comes with the place of its id.
fn rule(
    document: &mut Document<'_>,
    section: &Section<'_, '_>,
    tombstones: &[Tombstone],
) -> Option<(Rule, Range<usize>)> {
    let known: Vec<&'static str> = RULE_KEYS
        .iter()
        .copied()
        .chain(CONDITIONS.iter().map(|kind| kind.name))
        .collect();
    section.only(document, &known, tombstones);
    let id = section.need(document, "id");
    let at = id.map_or_else(|| section.at.clone(), Item::span);
    let id: Option<RuleId> = id.and_then(|item| document.parsed(item, "id"));
    let effect = section
        .need(document, "effect")
        .and_then(|item| word(document, item, "effect", &Effect::ALL, Effect::as_str));
    let callers = list(document, section, "callers");
    let destinations: Option<Vec<DestinationPattern>> = match section.get("destinations") {
        Some(_) => list(document, section, "destinations"),
        None => Some(Vec::new()),
    };
    // A rule speaks of services or of destinations; only one that names neither is told to name services.
    let only_destinations =
        section.get("services").is_none() && destinations.as_ref().is_none_or(|it| !it.is_empty());
    let services = if only_destinations {
        Some(Vec::new())
    } else {
        list(document, section, "services")
    };
    let actions = match section.get("actions") {
        Some(item) => actions(document, item),
        None => BTreeSet::from([Action::Open]),
    };
    let conditions = conditions(document, section);
    let rule = Rule {
        id: id?,
        effect: effect?,
        callers: callers?,
        services: services?,
        destinations: destinations?,
        actions,
        conditions,
    };
    Some((rule, at))
}

/// A list of patterns that must be there and must not be empty.
fn list<T>(document: &mut Document<'_>, section: &Section<'_, '_>, key: &str) -> Option<Vec<T>>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    let item = section.need(document, key)?;
    let is_empty = item.get_ref().as_array().is_some_and(|it| it.is_empty());
    if is_empty {
        let why = "the list is empty, so the rule would never match: write [\"*\"] for all";
        return document.accept(Err(why), item.span(), key);
    }
    Some(document.parsed_list(item, key))
}

fn actions(document: &mut Document<'_>, item: &Item<'_>) -> BTreeSet<Action> {
    let texts = document.texts(item, "actions");
    if item.get_ref().as_array().is_some_and(|it| it.is_empty()) {
        let why = "the list is empty, so the rule would never match";
        document.accept::<(), _>(Err(why), item.span(), "actions");
    }
    let read = texts.into_iter().filter_map(|(text, at)| {
        let outcome = one_of(&text, &Action::ALL, Action::as_str);
        document.accept(outcome, at, "actions")
    });
    read.collect()
}

fn conditions(document: &mut Document<'_>, section: &Section<'_, '_>) -> Conditions {
    let mut conditions = Conditions::default();
    for kind in CONDITIONS {
        let Some(item) = section.get(kind.name) else {
            continue;
        };
        let Some(text) = document.text(item, kind.name) else {
            continue;
        };
        let outcome = kind.parse(&text);
        if let Some(condition) = document.accept(outcome, item.span(), kind.name) {
            conditions.put(condition);
        }
    }
    conditions
}

fn test(
    document: &mut Document<'_>,
    section: &Section<'_, '_>,
    tombstones: &[Tombstone],
) -> Option<PolicyTest> {
    section.only(document, TEST_KEYS, tombstones);
    let caller = section
        .need(document, "caller")
        .and_then(|item| document.parsed(item, "caller"));
    let goal = goal(document, section);
    let expect = section
        .need(document, "expect")
        .and_then(|item| word(document, item, "expect", &Effect::ALL, Effect::as_str));
    let groups = match section.get("groups") {
        Some(item) => document.parsed_list(item, "groups").into_iter().collect(),
        None => BTreeSet::new(),
    };
    let action = match section.get("action") {
        Some(item) => word(document, item, "action", &Action::ALL, Action::as_str),
        None => Some(Action::Open),
    };
    let labels = section.labels(document, "labels");
    let at = section
        .get("at")
        .and_then(|item| document.parsed(item, "at"));
    Some(PolicyTest {
        line: document.line(section.at.start),
        caller: caller?,
        groups,
        labels,
        goal: goal?,
        action: action?,
        at,
        expect: expect?,
    })
}

/// What a test case asks for: a service, or a destination as `HOST:PORT` with or without its protocol.
fn goal(document: &mut Document<'_>, section: &Section<'_, '_>) -> Option<TestGoal> {
    if let Some(item) = section.get("destination") {
        if section.get("service").is_some() {
            let why = "a case asks for a service or for a destination, not for both";
            return document.accept(Err(why), item.span(), "destination");
        }
        let read = document.parsed(item, "destination");
        return read.map(TestGoal::Destination);
    }
    let name = section.need(document, "service");
    let name = name.and_then(|item| document.parsed(item, "service"));
    let labels = section.labels(document, "service_labels");
    Some(TestGoal::Service {
        name: name?,
        labels,
    })
}

fn word<T: Copy>(
    document: &mut Document<'_>,
    item: &Item<'_>,
    key: &str,
    all: &[T],
    name: fn(T) -> &'static str,
) -> Option<T> {
    let text = document.text(item, key)?;
    document.accept(one_of(&text, all, name), item.span(), key)
}

/// The member whose name the text is, to the letter.
fn one_of<T: Copy>(text: &str, all: &[T], name: fn(T) -> &'static str) -> Result<T, String> {
    let found = all.iter().find(|it| name(**it) == text);
    found.copied().ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|it| name(*it)).collect();
        let shown: String = text.chars().take(80).collect();
        format!(
            "`{}` is none of `{}`",
            shown.escape_default(),
            names.join("`, `")
        )
    })
}

impl Rule {
    /// The rule as a `[[rule]]` of a policy file.
    ///
    /// A condition of a newer version is printed too, so that this version refuses the file: leaving it out would widen
    /// the rule.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let texts = |all: Vec<String>| {
            let quoted: Vec<String> = all.into_iter().map(|it| quoted(&it)).collect();
            format!("[{}]", quoted.join(", "))
        };
        let callers = texts(self.callers.iter().map(ToString::to_string).collect());
        let subjects = [
            (
                "services",
                self.services.iter().map(ToString::to_string).collect(),
            ),
            (
                "destinations",
                self.destinations.iter().map(ToString::to_string).collect(),
            ),
        ];
        let subjects = subjects
            .into_iter()
            .filter(|(_, all): &(_, Vec<_>)| !all.is_empty());
        let subjects: String = subjects
            .map(|(key, all)| format!("{key} = {}\n", texts(all)))
            .collect();
        let actions = texts(self.actions.iter().map(ToString::to_string).collect());
        let mut toml = format!(
            "[[rule]]\nid = {}\neffect = {}\ncallers = {callers}\n{subjects}actions = {actions}\n",
            quoted(self.id.as_str()),
            quoted(self.effect.as_str()),
        );
        for condition in self.conditions.iter() {
            let key = match condition {
                Condition::Expires(_) | Condition::Schedule(_) => condition.name().to_owned(),
                Condition::Unknown { name, .. } => quoted(name),
            };
            writeln!(toml, "{key} = {}", quoted(&condition.to_string()))
                .expect("a String takes all that is written");
        }
        toml
    }
}

fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-05T12:00:00Z";

    fn now() -> Timestamp {
        NOW.parse().expect("RFC 3339")
    }

    fn errors(text: &str) -> Vec<String> {
        let errors = PolicyFile::parse(text, "p.toml").expect_err("must be refused");
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_rule_of_destinations_needs_no_services_and_its_cases_are_run() {
        let text = r#"
[[rule]]
id = "out"
effect = "allow"
callers = ["*"]
destinations = ["*.example.com:443", "10.0.0.0/8"]

[[test]]
caller = "ci"
destination = "api.example.com:443"
expect = "allow"

[[test]]
caller = "ci"
destination = "10.1.2.3:53/udp"
expect = "allow"

[[test]]
caller = "ci"
destination = "example.com:443"
expect = "deny"

[[test]]
caller = "ci"
service = "db"
expect = "deny"
"#;
        let file = PolicyFile::parse(text, "p.toml").expect("a good file");
        let outcomes = file.run_tests(now());
        assert_eq!(outcomes.len(), 4);
        for outcome in outcomes {
            assert!(outcome.passed(), "{}", outcome.test.goal);
        }
        let rules = file.rules;
        let printed = rules[0].to_toml();
        assert_eq!(
            PolicyFile::parse(&printed, "printed").map(|read| read.rules),
            Ok(rules)
        );
    }

    #[test]
    fn a_rule_or_a_case_of_nothing_or_of_both_is_refused() {
        let rule = "[[rule]]\nid = \"a\"\neffect = \"deny\"\ncallers = [\"*\"]\n";
        for (more, fix) in [
            ("", "services"),
            ("destinations = []\n", "never match"),
            ("destinations = [\"10.0.0.1/8\"]\n", "10.0.0.0/8"),
        ] {
            let found = errors(&format!("{rule}{more}")).join("\n");
            assert!(found.contains(fix), "{more}: {found}");
        }
        let both = "[[test]]\ncaller = \"a\"\nservice = \"db\"\ndestination = \"a.example:1\"\nexpect = \"deny\"\n";
        let found = errors(both).join("\n");
        assert!(found.contains("not for both"), "{found}");
    }

    const GOOD: &str = r#"
[[rule]]
id = "ops"
effect = "allow"
callers = ["group:ops", "ci-*"]
services = ["db.*", "label:tier=web"]
expires = 2030-01-31T18:00:00Z

[[rule]]
id = "no-prod"
effect = "deny"
callers = ["ci-*"]
services = ["db.prod"]
actions = ["open", "provide"]
schedule = "mon-fri 08:00-18:00"

[[test]]
caller = "ana"
groups = ["ops"]
service = "db.prod"
expect = "allow"

[[test]]
caller = "ci-1"
service = "db.prod"
expect = "deny"

[[test]]
caller = "ci-1"
service = "db.prod"
at = "2026-01-10T12:00:00Z"
expect = "allow"

[[test]]
caller = "ana"
service = "x"
service_labels = { tier = "web" }
expect = "allow"
"#;

    #[test]
    fn tests_of_a_file_are_decided_by_its_rules() {
        let file = PolicyFile::parse(GOOD, "p.toml").expect("a good file");
        let outcomes = file.run_tests(now());
        let passed: Vec<(usize, bool)> = outcomes
            .iter()
            .map(|outcome| (outcome.test.line, outcome.passed()))
            .collect();
        // Ana without the group may not.
        assert_eq!(passed, [(17, true), (23, true), (28, true), (34, false)]);
    }

    #[test]
    fn every_error_is_shown_with_its_line() {
        let text = r#"
[[rule]]
id = "a"
efect = "allow"
callers = ["CI"]
services = []

[[rule]]
id = "a b"
effect = "alow"
callers = "ci"
services = ["db.", "ok", "x..y"]
actions = ["opne"]
expires = "tomorrow"

[[tests]]
"#;
        let found = errors(text);
        let wanted = [
            "p.toml:2: `effect` is missing",
            "p.toml:4: unknown key `efect`\n  hint: did you mean `effect`?",
            "p.toml:5: `callers`: `CI` has upper-case letters: write `ci`",
            "p.toml:6: `services`: the list is empty",
            "p.toml:9: `id`: `a b` is not a rule id",
            "p.toml:10: `effect`: `alow` is none of `allow`, `deny`",
            "p.toml:11: `callers` must be a list of texts",
            "p.toml:12: `services`: `db.` has an empty label",
            "p.toml:12: `services`: `x..y` has an empty label",
            "p.toml:13: `actions`: `opne` is none of `open`, `provide`",
            "p.toml:14: `expires`: `expires` needs a time",
            "p.toml:16: unknown key `tests`\n  hint: did you mean `test`?",
        ];
        assert_eq!(found.len(), wanted.len(), "{found:#?}");
        for (found, wanted) in found.iter().zip(wanted) {
            assert!(found.starts_with(wanted), "{found}\n{wanted}");
        }
    }

    // A typo in an effect once meant allow.
    #[test]
    fn only_the_exact_words_are_effects() {
        for effect in ["Allow", "ALLOW", "allow ", "permit", "", "true", "allowed"] {
            let text = format!(
                "[[rule]]\nid = \"a\"\neffect = \"{effect}\"\ncallers = [\"*\"]\nservices = [\"*\"]\n"
            );
            let found = errors(&text);
            assert!(found[0].contains("is none of `allow`, `deny`"), "{found:?}");
        }
    }

    #[test]
    fn a_second_rule_of_one_id_and_broken_toml_are_errors() {
        let rule =
            "[[rule]]\nid = \"a\"\neffect = \"deny\"\ncallers = [\"*\"]\nservices = [\"*\"]\n";
        let found = errors(&format!("{rule}{rule}"));
        assert_eq!(found, ["p.toml:7: rule `a` is there already, in line 2"]);
        let found = errors(&format!("{rule}\n[[rule]\n"));
        assert!(found[0].starts_with("p.toml:7: "), "{found:?}");
    }

    #[test]
    fn a_renamed_key_tells_its_new_name() {
        let tombstones = [Tombstone {
            old: "who",
            now: "callers",
        }];
        let text = "[[rule]]\nid = \"a\"\neffect = \"deny\"\nwho = [\"*\"]\nservices = [\"*\"]\n";
        let found = PolicyFile::parse_with(text, "p.toml", &tombstones).expect_err("renamed");
        assert_eq!(
            found[1].to_string(),
            "p.toml:4: `who` is now called `callers`\n  hint: write `callers`"
        );
    }

    #[test]
    fn a_condition_of_a_newer_version_is_not_lost_in_print() {
        let json = r#"{"id":"a","effect":"allow","callers":["*"],"services":["*"],"actions":["open"],"conditions":{"country":["ch"]}}"#;
        let rule: Rule = serde_json::from_str(json).expect("kept");
        assert_eq!(serde_json::to_string(&rule).expect("text"), json);
        let found = errors(&rule.to_toml());
        assert_eq!(found, ["p.toml:7: unknown key `country`"]);
    }
}
