//! `expires`: the rule ends at a time.

use std::fmt;

use jiff::Timestamp;

use crate::policy::Answer;

/// The time at which a rule ends; at that very moment it no longer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expires(Timestamp);

impl Expires {
    pub(super) const NAME: &'static str = "expires";
    pub(super) const DOC: &'static str = "The rule ends at this time.";
    pub(super) const WANTED: &'static str = "a time with its offset (RFC 3339)";
    pub(super) const EXAMPLE: &'static str = "2030-01-31T18:00:00Z";

    /// Ends a rule at `at`.
    #[must_use]
    pub fn at(at: Timestamp) -> Self {
        Self(at)
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        text.parse().ok().map(Self)
    }

    pub(super) fn eval(self, now: Timestamp) -> Answer {
        (now < self.0).into()
    }

    pub(super) fn explain(self, now: Timestamp) -> String {
        match self.eval(now) {
            Answer::Yes => format!("it ends at {}", self.0),
            Answer::No | Answer::Unknown => format!("it ended at {}", self.0),
        }
    }
}

impl fmt::Display for Expires {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_until_the_very_moment() {
        let expires = Expires::parse("2030-01-31T19:00:00+01:00").expect("RFC 3339");
        for (now, answer) in [
            ("2030-01-31T17:59:59.999Z", Answer::Yes),
            ("2030-01-31T18:00:00Z", Answer::No),
            ("2031-01-01T00:00:00Z", Answer::No),
        ] {
            assert_eq!(expires.eval(now.parse().expect(now)), answer, "{now}");
        }
    }

    #[test]
    fn refuses_a_time_without_an_offset() {
        for text in ["2030-01-31T18:00:00", "2030-01-31", "18:00"] {
            assert_eq!(Expires::parse(text), None, "{text}");
        }
    }
}
