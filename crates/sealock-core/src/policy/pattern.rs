//! Patterns: which callers and services a rule speaks of.
//!
//! | pattern | callers | services | matches |
//! |---|---|---|---|
//! | `*` | yes | yes | everything |
//! | `ci-*`, `db.*` | yes | yes | names; a `*` stands for any characters of *one* label, so `db.*` is not `db.a.b` |
//! | `group:NAME` | yes | no | members of the group |
//! | `label:KEY=VALUE` | yes | yes | what carries exactly this label |
//!
//! A `.` is a dot. There are deliberately no regular expressions, no case folding and no «fixing»: a pattern that is
//! not canonical is an error that tells what to write. A kind of pattern from a newer version is kept when it comes
//! from the store ([`CallerPattern::Unknown`]) and cannot be decided; in a file it is an error.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Answer;
use crate::name::{AgentName, GroupName, NameError, ServiceName};
use crate::policy::Question;

/// Why a text is not a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Nothing was given.
    #[error("a pattern must not be empty: write `*` for everything")]
    Empty,
    /// More than one `*` in a row.
    #[error("`{0}` has `**`: a `*` stays within one label, and a lone `*` matches everything")]
    DoubleStar(String),
    /// Upper-case letters, which no name has.
    #[error("`{text}` has upper-case letters: write `{lower}`")]
    UpperCase {
        /// What was given.
        text: String,
        /// What was probably meant.
        lower: String,
    },
    /// A dot at the end or twice in a row.
    #[error("`{0}` has an empty label: leave out the dot at an end or after a dot")]
    EmptyLabel(String),
    /// A character that no name has.
    #[error("`{text}` is no pattern: use a-z, 0-9, inner hyphens and `*`{dots}")]
    Malformed {
        /// What was given, escaped.
        text: String,
        /// A note on dots for the kinds that allow them.
        dots: &'static str,
    },
    /// A `kind:` that does not exist here.
    #[error("`{kind}:` is no kind of pattern here: use {known}")]
    UnknownKind {
        /// What stands before the colon, escaped.
        kind: String,
        /// The kinds that there are.
        known: &'static str,
    },
    /// A group that is no name.
    #[error(transparent)]
    Group(#[from] NameError),
    /// A label that is none.
    #[error(transparent)]
    Label(#[from] LabelError),
}

/// Why a text is not a label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// No `=`.
    #[error("`{0}` is no label: write KEY=VALUE")]
    NoValue(String),
    /// A key with other characters, or too long.
    #[error("`{0}` is no label key: use 1 to 63 of a-z, 0-9, `-`, `_`, `.` and `/`")]
    Key(String),
    /// A value with other characters, or too long.
    #[error("`{0}` is no label value: use 1 to 63 of A-Z, a-z, 0-9 and `-_./:@+`")]
    Value(String),
}

/// A key and a value that are said of an agent or a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label {
    key: Arc<str>,
    value: Arc<str>,
}

impl Label {
    /// Checks a key and a value.
    ///
    /// # Errors
    /// When one of them is empty, longer than 63 bytes or holds other characters than labels may.
    pub fn new(key: &str, value: &str) -> Result<Self, LabelError> {
        let in_key = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_./".contains(&b);
        let in_value = |b: u8| b.is_ascii_alphanumeric() || b"-_./:@+".contains(&b);
        let short = |text: &str| (1..=63).contains(&text.len());
        if !short(key) || !key.bytes().all(in_key) {
            return Err(LabelError::Key(shown(key)));
        }
        if !short(value) || !value.bytes().all(in_value) {
            return Err(LabelError::Value(shown(value)));
        }
        Ok(Self {
            key: key.into(),
            value: value.into(),
        })
    }

    /// What is described.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// How it is described.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.value
    }

    fn is_in(&self, labels: &BTreeMap<String, String>) -> bool {
        labels.get(self.key()).map(String::as_str) == Some(self.value())
    }
}

impl FromStr for Label {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| LabelError::NoValue(shown(text)))?;
        Self::new(key, value)
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key, self.value)
    }
}

/// A text for an error message: escaped and cut.
pub(super) fn shown(text: &str) -> String {
    let start: String = text.chars().take(80).collect();
    start.escape_default().to_string()
}

/// A name with at least one `*` in it, each of which stands for any characters of one label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Glob(Arc<str>);

impl Glob {
    /// The glob as it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the whole name matches, label by label.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let mut labels = name.split('.');
        let all = self.0.split('.').all(|pattern| {
            labels
                .next()
                .is_some_and(|label| label_matches(pattern.as_bytes(), label.as_bytes()))
        });
        all && labels.next().is_none()
    }

    /// What every match begins with.
    pub(super) fn prefix(&self) -> &str {
        self.0.split('*').next().unwrap_or_default()
    }

    /// What every match ends with.
    pub(super) fn suffix(&self) -> &str {
        self.0.rsplit('*').next().unwrap_or_default()
    }
}

/// Greedy matching that goes back to the last `*` only; linear for one `*`, never exponential.
fn label_matches(pattern: &[u8], label: &[u8]) -> bool {
    let (mut at, mut here) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while here < label.len() {
        if pattern.get(at) == Some(&b'*') {
            star = Some((at, here));
            at += 1;
        } else if pattern.get(at) == label.get(here) {
            at += 1;
            here += 1;
        } else if let Some((star_at, eaten)) = star {
            star = Some((star_at, eaten + 1));
            (at, here) = (star_at + 1, eaten + 1);
        } else {
            return false;
        }
    }
    pattern[at..].iter().all(|b| *b == b'*')
}

/// What a text without `kind:` is.
pub(super) enum Plain<N> {
    Any,
    Name(N),
    Glob(Glob),
}

pub(super) fn plain<N: FromStr>(text: &str, dots: &'static str) -> Result<Plain<N>, PatternError> {
    if text.is_empty() {
        return Err(PatternError::Empty);
    }
    if text == "*" {
        return Ok(Plain::Any);
    }
    if text.contains("**") {
        return Err(PatternError::DoubleStar(shown(text)));
    }
    if text.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(PatternError::UpperCase {
            text: shown(text),
            lower: shown(&text.to_ascii_lowercase()),
        });
    }
    if !dots.is_empty() && text.split('.').any(str::is_empty) {
        return Err(PatternError::EmptyLabel(shown(text)));
    }
    let malformed = || PatternError::Malformed {
        text: shown(text),
        dots,
    };
    if !text.contains('*') {
        return text.parse().map(Plain::Name).map_err(|_| malformed());
    }
    // A glob is lawful when it could match a name: put a letter for each star.
    let example: Result<N, _> = text.replace('*', "a").parse();
    match example {
        Ok(_) => Ok(Plain::Glob(Glob(text.into()))),
        Err(_) => Err(malformed()),
    }
}

/// Which agents a rule speaks of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum CallerPattern {
    /// Every agent of the tenant.
    Any,
    /// The agent of this name.
    Name(AgentName),
    /// Agents whose name matches.
    Glob(Glob),
    /// Members of the group.
    Group(GroupName),
    /// Agents with the label.
    Label(Label),
    /// A kind of pattern that this version does not know; whom it matches cannot be decided.
    Unknown(Arc<str>),
}

impl FromStr for CallerPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        match text.split_once(':') {
            Some(("group", name)) => Ok(Self::Group(name.parse()?)),
            Some(("label", label)) => Ok(Self::Label(label.parse()?)),
            Some((kind, _)) => Err(PatternError::UnknownKind {
                kind: shown(kind),
                known: "NAME, `group:NAME` or `label:KEY=VALUE`",
            }),
            None => Ok(match plain(text, "")? {
                Plain::Any => Self::Any,
                Plain::Name(name) => Self::Name(name),
                Plain::Glob(glob) => Self::Glob(glob),
            }),
        }
    }
}

impl TryFrom<String> for CallerPattern {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Self, PatternError> {
        match text.parse() {
            Err(PatternError::UnknownKind { .. }) => Ok(Self::Unknown(text.into())),
            other => other,
        }
    }
}

impl From<CallerPattern> for String {
    fn from(pattern: CallerPattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for CallerPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.pad("*"),
            Self::Name(name) => name.fmt(f),
            Self::Glob(glob) => f.pad(glob.as_str()),
            Self::Group(group) => write!(f, "group:{group}"),
            Self::Label(label) => write!(f, "label:{label}"),
            Self::Unknown(text) => f.pad(text),
        }
    }
}

impl CallerPattern {
    /// Whether the question's caller is one of those meant.
    #[must_use]
    pub fn matches(&self, question: &Question<'_>) -> Answer {
        match self {
            Self::Any => Answer::Yes,
            Self::Name(name) => (*name == question.caller.name).into(),
            Self::Glob(glob) => glob.matches(question.caller.name.as_str()).into(),
            Self::Group(group) => question.groups.contains(group).into(),
            Self::Label(label) => label.is_in(question.labels).into(),
            Self::Unknown(_) => Answer::Unknown,
        }
    }
}

/// Which services a rule speaks of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ServicePattern {
    /// Every service of the tenant.
    Any,
    /// The service of this name.
    Name(ServiceName),
    /// Services whose name matches.
    Glob(Glob),
    /// Services with the label.
    Label(Label),
    /// A kind of pattern that this version does not know; what it matches cannot be decided.
    Unknown(Arc<str>),
}

impl FromStr for ServicePattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        match text.split_once(':') {
            Some(("label", label)) => Ok(Self::Label(label.parse()?)),
            Some((kind, _)) => Err(PatternError::UnknownKind {
                kind: shown(kind),
                known: "NAME or `label:KEY=VALUE`",
            }),
            None => Ok(match plain(text, ", labels joined by dots")? {
                Plain::Any => Self::Any,
                Plain::Name(name) => Self::Name(name),
                Plain::Glob(glob) => Self::Glob(glob),
            }),
        }
    }
}

impl TryFrom<String> for ServicePattern {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Self, PatternError> {
        match text.parse() {
            Err(PatternError::UnknownKind { .. }) => Ok(Self::Unknown(text.into())),
            other => other,
        }
    }
}

impl From<ServicePattern> for String {
    fn from(pattern: ServicePattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for ServicePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.pad("*"),
            Self::Name(name) => name.fmt(f),
            Self::Glob(glob) => f.pad(glob.as_str()),
            Self::Label(label) => write!(f, "label:{label}"),
            Self::Unknown(text) => f.pad(text),
        }
    }
}

impl ServicePattern {
    /// Whether a service of this name and these labels is meant; of an unknown service the labels cannot be decided.
    #[must_use]
    pub fn matches(
        &self,
        service: &ServiceName,
        labels: Option<&BTreeMap<String, String>>,
    ) -> Answer {
        match self {
            Self::Any => Answer::Yes,
            Self::Name(name) => (name == service).into(),
            Self::Glob(glob) => glob.matches(service.as_str()).into(),
            Self::Label(label) => match labels {
                Some(labels) => label.is_in(labels).into(),
                None => Answer::Unknown,
            },
            Self::Unknown(_) => Answer::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(pattern: &str) -> Result<ServicePattern, PatternError> {
        pattern.parse()
    }

    fn service_matches(pattern: &str, name: &str) -> bool {
        match service(pattern).expect(pattern) {
            ServicePattern::Any => true,
            ServicePattern::Name(wanted) => wanted.as_str() == name,
            ServicePattern::Glob(glob) => glob.matches(name),
            ServicePattern::Label(_) | ServicePattern::Unknown(_) => panic!("{pattern} is no name"),
        }
    }

    // S08: a dot is a dot, a star never leaves its label, nothing is matched in part.
    #[test]
    fn a_star_stays_within_one_label_and_a_dot_is_literal() {
        for (pattern, name, expected) in [
            ("*", "a.b.c", true),
            ("db.*", "db.prod", true),
            ("db.*", "db", false),
            ("db.*", "db.prod.eu", false),
            ("db.*", "dbxprod", false),
            ("db.*", "xdb.prod", false),
            ("*.prod", "db.prod", true),
            ("*.prod", "prod", false),
            ("*.*", "a.b", true),
            ("*.*", "a", false),
            ("db*", "db", true),
            ("db*", "db-1", true),
            ("db*", "db.prod", false),
            ("*db", "xdb", true),
            ("a*c*e", "abcde", true),
            ("a*c*e", "abde", false),
            ("a*a", "a", false),
            ("a.b", "a.b", true),
            ("a.b", "axb", false),
        ] {
            assert_eq!(service_matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    // S08: every spelling that could mean something else elsewhere is refused with the fix.
    #[test]
    fn refuses_patterns_that_are_not_canonical_and_names_the_fix() {
        for (pattern, fix) in [
            ("", "write `*`"),
            ("**", "lone `*`"),
            ("db.**", "within one label"),
            ("DB.*", "write `db.*`"),
            ("db.", "leave out the dot"),
            (".db", "leave out the dot"),
            ("db..prod", "leave out the dot"),
            ("db%2eprod", "use a-z"),
            ("db//prod", "use a-z"),
            ("db prod", "use a-z"),
            ("-*", "use a-z"),
            ("*-", "use a-z"),
            ("^db$", "use a-z"),
            ("d[ab]", "use a-z"),
            ("dä", "use a-z"),
            ("db:5432", "`label:KEY=VALUE`"),
            ("group:ops", "`label:KEY=VALUE`"),
            ("label:tier", "KEY=VALUE"),
            ("label:Tier=x", "label key"),
            ("label:tier=", "label value"),
            ("label:tier=a b", "label value"),
        ] {
            let error = service(pattern).expect_err(pattern).to_string();
            assert!(error.contains(fix), "{pattern}: {error}");
        }
        for pattern in ["a.b", "group:", "group:A", "agent:x", "ci-**"] {
            assert!(pattern.parse::<CallerPattern>().is_err(), "{pattern}");
        }
    }

    #[test]
    fn an_error_escapes_and_cuts_what_it_repeats() {
        let text = format!("\u{1b}{}", "x".repeat(5_000));
        let error = service(&text).expect_err("an escape").to_string();
        assert!(!error.contains('\u{1b}') && error.len() < 300, "{error}");
    }

    #[test]
    fn a_kind_of_a_newer_version_is_kept_from_the_store_but_not_from_people() {
        let stored: CallerPattern = serde_json::from_str("\"user:ana\"").expect("kept");
        assert_eq!(stored, CallerPattern::Unknown("user:ana".into()));
        assert_eq!(
            serde_json::to_string(&stored).expect("text"),
            "\"user:ana\""
        );
        assert!("user:ana".parse::<CallerPattern>().is_err());
        assert!(serde_json::from_str::<CallerPattern>("\"CI\"").is_err());
    }

    #[test]
    fn globs_do_not_explode() {
        let glob = Glob(format!("{}b", "a*".repeat(20)).into());
        assert!(!glob.matches(&"a".repeat(63)));
    }
}
