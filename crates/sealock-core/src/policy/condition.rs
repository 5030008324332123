//! Conditions: when a rule speaks at all.
//!
//! A condition answers yes, no or unknown; unknown never satisfies an allow and always satisfies a deny. A new one is
//! a file of its own with one struct, a variant and a line in [`CONDITIONS`]. In a stored rule a condition that this
//! version does not know, or whose value it cannot read, is kept and is unknown; in a file it is an error.

mod expires;
mod schedule;

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use self::expires::Expires;
pub use self::schedule::Schedule;
use super::{Answer, Question};

/// Why a value is not a condition's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` needs {wanted}, such as `{example}`")]
pub struct ConditionError {
    /// The condition.
    pub name: &'static str,
    /// What its value must be.
    pub wanted: &'static str,
    /// A value that would do.
    pub example: &'static str,
}

/// A line of the table of conditions: all that files, help and the reference need.
#[derive(Debug)]
pub struct ConditionKind {
    /// The key in a rule.
    pub name: &'static str,
    /// What it means, in one sentence.
    pub doc: &'static str,
    /// What its value must be.
    pub wanted: &'static str,
    /// A value that works.
    pub example: &'static str,
    read: fn(&str) -> Option<Condition>,
}

impl ConditionKind {
    /// Reads the condition's value.
    ///
    /// # Errors
    /// When the text is not what the condition needs.
    pub fn parse(&self, text: &str) -> Result<Condition, ConditionError> {
        (self.read)(text).ok_or(ConditionError {
            name: self.name,
            wanted: self.wanted,
            example: self.example,
        })
    }
}

/// Every condition that this version knows.
pub const CONDITIONS: &[ConditionKind] = &[
    ConditionKind {
        name: Expires::NAME,
        doc: Expires::DOC,
        wanted: Expires::WANTED,
        example: Expires::EXAMPLE,
        read: |text| Expires::parse(text).map(Condition::Expires),
    },
    ConditionKind {
        name: Schedule::NAME,
        doc: Schedule::DOC,
        wanted: Schedule::WANTED,
        example: Schedule::EXAMPLE,
        read: |text| Schedule::parse(text).map(Condition::Schedule),
    },
];

/// One condition of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// The rule ends at a time.
    Expires(Expires),
    /// The rule speaks at certain hours.
    Schedule(Schedule),
    /// A condition of a newer version; it can never be decided.
    Unknown {
        /// Its key.
        name: String,
        /// Its value, kept as it came.
        value: serde_json::Value,
    },
}

impl Condition {
    /// The condition's key in a rule.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Expires(_) => Expires::NAME,
            Self::Schedule(_) => Schedule::NAME,
            Self::Unknown { name, .. } => name,
        }
    }

    /// Whether it holds.
    #[must_use]
    pub fn eval(&self, _question: &Question<'_>, now: Timestamp) -> Answer {
        match self {
            Self::Expires(expires) => expires.eval(now),
            Self::Schedule(schedule) => schedule.eval(now),
            Self::Unknown { .. } => Answer::Unknown,
        }
    }

    /// What was compared with what, in words.
    #[must_use]
    pub fn explain(&self, now: Timestamp) -> String {
        match self {
            Self::Expires(expires) => expires.explain(now),
            Self::Schedule(schedule) => schedule.explain(now),
            Self::Unknown { name, .. } => {
                format!("`{name}` needs a newer version: it cannot be decided here")
            }
        }
    }

    fn stored(name: String, value: serde_json::Value) -> Self {
        let known = CONDITIONS.iter().find(|kind| kind.name == name);
        let read = |kind: &ConditionKind| kind.parse(value.as_str()?).ok();
        known
            .and_then(read)
            .unwrap_or(Self::Unknown { name, value })
    }

    fn value(&self) -> serde_json::Value {
        match self {
            Self::Expires(expires) => expires.to_string().into(),
            Self::Schedule(schedule) => schedule.to_string().into(),
            Self::Unknown { value, .. } => value.clone(),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expires(expires) => expires.fmt(f),
            Self::Schedule(schedule) => schedule.fmt(f),
            Self::Unknown { value, .. } => value.fmt(f),
        }
    }
}

/// The conditions of a rule, each at most once; all must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Conditions(BTreeMap<String, Condition>);

impl Conditions {
    /// Adds a condition; one of the same kind is replaced.
    pub fn put(&mut self, condition: Condition) {
        self.0.insert(condition.name().to_owned(), condition);
    }

    /// Whether the rule speaks at all times.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Every condition, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Condition> {
        self.0.values()
    }

    /// Whether all hold: one no decides, otherwise one unknown.
    #[must_use]
    pub fn eval(&self, question: &Question<'_>, now: Timestamp) -> Answer {
        let mut all = Answer::Yes;
        for condition in self.iter() {
            match condition.eval(question, now) {
                Answer::Yes => {}
                Answer::No => return Answer::No,
                Answer::Unknown => all = Answer::Unknown,
            }
        }
        all
    }
}

impl FromIterator<Condition> for Conditions {
    fn from_iter<I: IntoIterator<Item = Condition>>(conditions: I) -> Self {
        let mut all = Self::default();
        for condition in conditions {
            all.put(condition);
        }
        all
    }
}

impl Serialize for Conditions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, it)| (name, it.value())))
    }
}

impl<'de> Deserialize<'de> for Conditions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let stored = BTreeMap::<String, serde_json::Value>::deserialize(deserializer)?;
        Ok(stored
            .into_iter()
            .map(|(name, value)| Condition::stored(name, value))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_is_what_its_condition_prints() {
        for kind in CONDITIONS {
            let condition = kind.parse(kind.example).expect(kind.name);
            assert_eq!(condition.to_string(), kind.example);
            assert_eq!(condition.name(), kind.name);
            let stored = Condition::stored(kind.name.to_owned(), condition.value());
            assert_eq!(stored, condition);
        }
    }

    #[test]
    fn nonsense_is_an_error_that_shows_an_example() {
        for kind in CONDITIONS {
            for text in ["", "soon", "2026", "\0", "mon"] {
                let error = kind.parse(text).expect_err(text).to_string();
                assert!(error.contains(kind.example), "{error}");
            }
        }
    }

    #[test]
    fn what_a_newer_version_stored_is_kept_and_never_decided() {
        for json in [
            r#"{"country":["ch"]}"#,
            r#"{"expires":{"after_idle":"1h"}}"#,
            r#"{"schedule":"mon-fri 8-18 Europe/Zurich"}"#,
        ] {
            let conditions: Conditions = serde_json::from_str(json).expect("kept");
            assert_eq!(serde_json::to_string(&conditions).expect("text"), json);
            assert!(
                conditions
                    .iter()
                    .all(|it| matches!(it, Condition::Unknown { .. }))
            );
        }
    }
}
