//! Where a value came from, and what is told of it.

use std::fmt;

use super::document::{FileError, Problem};
use super::typed::{OptionRow, Standard, variable};

/// Where a value came from, the strongest last.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// The table of options.
    Default,
    /// A file.
    File {
        /// The file as the user named it.
        name: String,
        /// The line, counted from 1.
        line: usize,
    },
    /// The environment.
    Environment {
        /// The variable.
        variable: String,
    },
    /// The command line.
    Flag {
        /// The flag as it is typed.
        flag: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.pad("default"),
            Self::File { name, line } => write!(f, "{name}:{line}"),
            Self::Environment { variable } => f.pad(variable),
            Self::Flag { flag } => f.pad(flag),
        }
    }
}

/// A value with its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given<T> {
    /// What was said.
    pub value: T,
    /// Where it was said.
    pub origin: Origin,
}

/// Something wrong in the configuration, with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Where it stands.
    pub origin: Origin,
    /// What is wrong.
    pub problem: Problem,
}

impl ConfigError {
    /// What to do about it, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match (&self.origin, &self.problem) {
            (Origin::Environment { .. }, Problem::UnknownKey { nearest, .. }) => {
                nearest.map(|key| format!("did you mean `{}`?", variable(key)))
            }
            (Origin::Environment { .. }, Problem::Renamed { now, .. }) => {
                Some(format!("write `{}`", variable(now)))
            }
            _ => self.problem.hint(),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.problem)?;
        match self.hint() {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ConfigError {}

impl From<FileError> for ConfigError {
    fn from(error: FileError) -> Self {
        Self {
            origin: Origin::File {
                name: error.file,
                line: error.line,
            },
            problem: error.problem,
        }
    }
}

/// An option as it stands, for `sealock config explain`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// `section.key`.
    pub key: &'static str,
    /// The value; without one, what holds then.
    pub value: Result<String, &'static str>,
    /// Where it came from.
    pub origin: Origin,
    /// What the option does.
    pub doc: &'static str,
}

impl Explained {
    pub(crate) fn new((row, value): (&OptionRow, Option<(String, Origin)>)) -> Self {
        let (value, origin) = match (value, row.standard) {
            (Some((value, origin)), _) => (Ok(value), origin),
            (None, Standard::Value(value)) => (Ok(value.to_owned()), Origin::Default),
            (None, Standard::Nothing(meaning)) => (Err(meaning), Origin::Default),
        };
        Self {
            key: row.key,
            value,
            origin,
            doc: row.doc,
        }
    }
}
