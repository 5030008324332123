//! Texts that people paste and files say: join tokens, and the patterns of policy rules with what they match.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use sealock_core::identity::AgentId;
use sealock_core::name::ServiceName;
use sealock_core::policy::{
    Action, Answer, CallerPattern, PatternError, Question, ServicePattern, Subject,
};
use sealock_core::token::{JoinToken, TokenError};

use crate::fuzz::{Seen, Target};

pub(super) const TOKEN: Target = Target {
    name: "join_token",
    run: token,
    reaches: &["token", "prefix", "alphabet", "damaged", "no text"],
};

fn token(input: &[u8]) -> Seen {
    let Ok(text) = std::str::from_utf8(input) else {
        return Seen::from(["no text"]);
    };
    let outcome = match text.parse::<JoinToken>() {
        Ok(token) => {
            let again: JoinToken = token.to_text().parse().expect("our own text");
            assert_eq!(again.to_text(), token.to_text());
            assert!(!token.addresses.is_empty());
            "token"
        }
        Err(TokenError::Prefix) => "prefix",
        Err(TokenError::Alphabet) => "alphabet",
        Err(TokenError::Damaged) => "damaged",
    };
    Seen::from([outcome])
}

pub(super) const PATTERN: Target = Target {
    name: "policy_pattern",
    run: pattern,
    reaches: &[
        "caller",
        "service",
        "empty",
        "double star",
        "upper case",
        "empty label",
        "malformed",
        "unknown kind",
        "bad group",
        "bad label",
        "no text",
        "matches",
        "matches not",
        "cannot say",
    ],
};

/// The first line is a pattern, the second the name of who calls or of what is called, and the others their labels.
fn pattern(input: &[u8]) -> Seen {
    let Ok(text) = std::str::from_utf8(input) else {
        return Seen::from(["no text"]);
    };
    let mut seen = Seen::new();
    let (pattern, rest) = text.split_once('\n').unwrap_or((text, ""));
    seen.insert(parsed::<CallerPattern>(pattern, "caller"));
    seen.insert(parsed::<ServicePattern>(pattern, "service"));
    let mut lines = rest.split('\n');
    let name = lines.next().unwrap_or_default();
    let labels = lines.filter_map(|line| line.split_once('='));
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let labels: BTreeMap<String, String> = labels.collect();
    if let (Ok(service), Ok(wanted)) = (name.parse(), ServicePattern::try_from(pattern.to_owned()))
    {
        seen.insert(service_matches(pattern, &wanted, &service, &labels));
    }
    if let (Ok(name), Ok(wanted)) = (name.parse(), CallerPattern::try_from(pattern.to_owned())) {
        let caller = AgentId {
            tenant: "default".parse().expect("a label"),
            name,
        };
        seen.insert(caller_matches(pattern, &wanted, &caller, &labels));
    }
    seen
}

fn service_matches(
    pattern: &str,
    wanted: &ServicePattern,
    service: &ServiceName,
    labels: &BTreeMap<String, String>,
) -> &'static str {
    let answer = wanted.matches(service, Some(labels));
    let expected = match pattern.split_once(':') {
        None => by_name(pattern, service.as_str()),
        Some(("label", label)) => by_label(label, labels),
        Some(_) => Answer::Unknown,
    };
    assert_eq!(answer, expected, "{pattern:?} and {service}");
    // What nobody knows of can have a name, and no labels.
    let unknown = wanted.matches(service, None);
    assert!(unknown == answer || unknown == Answer::Unknown);
    name_of(answer)
}

fn caller_matches(
    pattern: &str,
    wanted: &CallerPattern,
    caller: &AgentId,
    labels: &BTreeMap<String, String>,
) -> &'static str {
    let groups = BTreeSet::from([GROUP.parse().expect("a name")]);
    let service = "any".parse().expect("a name");
    let answer = wanted.matches(&Question {
        caller,
        groups: &groups,
        labels,
        action: Action::Open,
        subject: Subject::Service {
            name: &service,
            labels: None,
        },
    });
    let expected = match pattern.split_once(':') {
        None => by_name(pattern, caller.name.as_str()),
        Some(("group", group)) => Answer::from(group == GROUP),
        Some(("label", label)) => by_label(label, labels),
        Some(_) => Answer::Unknown,
    };
    assert_eq!(answer, expected, "{pattern:?} and {caller}");
    name_of(answer)
}

/// The only group that a caller is in.
const GROUP: &str = "ops";

/// What a pattern of names means, said once more and slowly: label by label, and a star is any part of one.
fn by_name(pattern: &str, name: &str) -> Answer {
    let (patterns, labels): (Vec<_>, Vec<_>) =
        (pattern.split('.').collect(), name.split('.').collect());
    let same = patterns.len() == labels.len();
    let all = || {
        patterns
            .iter()
            .zip(&labels)
            .all(|(pattern, label)| by_star(pattern, label))
    };
    Answer::from(pattern == "*" || (same && all()))
}

fn by_star(pattern: &str, label: &str) -> bool {
    let Some((before, behind)) = pattern.split_once('*') else {
        return pattern == label;
    };
    let rest = label.strip_prefix(before);
    rest.is_some_and(|rest| (0..=rest.len()).any(|at| by_star(behind, &rest[at..])))
}

fn by_label(label: &str, labels: &BTreeMap<String, String>) -> Answer {
    let pair = label.split_once('=');
    Answer::from(pair.is_some_and(|(key, value)| labels.get(key).is_some_and(|it| it == value)))
}

fn name_of(answer: Answer) -> &'static str {
    match answer {
        Answer::Yes => "matches",
        Answer::No => "matches not",
        Answer::Unknown => "cannot say",
    }
}

fn parsed<P>(text: &str, name: &'static str) -> &'static str
where
    P: FromStr<Err = PatternError> + ToString + PartialEq + std::fmt::Debug,
{
    match text.parse::<P>() {
        Ok(pattern) => {
            // What a rule file says is what a listing shows: parse(print) = id.
            assert_eq!(pattern.to_string().parse::<P>().ok(), Some(pattern));
            name
        }
        Err(error) => match error {
            PatternError::Empty => "empty",
            PatternError::DoubleStar(_) => "double star",
            PatternError::UpperCase { .. } => "upper case",
            PatternError::EmptyLabel(_) => "empty label",
            PatternError::Malformed { .. } => "malformed",
            PatternError::UnknownKind { .. } => "unknown kind",
            PatternError::Group(_) => "bad group",
            PatternError::Label(_) => "bad label",
        },
    }
}
