//! TOML files of people: read with the place of every value, so that all errors are shown at once, each with its line.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::policy::Label;

/// What is wrong with something that a person wrote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Not TOML.
    #[error("{0}")]
    Syntax(String),
    /// A key that does not exist.
    #[error("unknown key `{key}`")]
    UnknownKey {
        /// The key.
        key: String,
        /// The known key that is nearest to it.
        nearest: Option<&'static str>,
    },
    /// A key that has another name since.
    #[error("`{key}` is now called `{now}`")]
    Renamed {
        /// The key.
        key: String,
        /// Its present name.
        now: &'static str,
    },
    /// A key that must be there.
    #[error("`{key}` is missing")]
    Missing {
        /// The key.
        key: String,
    },
    /// A value of the wrong type.
    #[error("`{key}` must be {wanted}, not {found}")]
    WrongType {
        /// The key.
        key: String,
        /// What it must be.
        wanted: &'static str,
        /// What stands there.
        found: &'static str,
    },
    /// A value that its type refuses; the text tells why and what to write.
    #[error("`{key}`: {why}")]
    Invalid {
        /// The key.
        key: String,
        /// Why it is refused.
        why: String,
    },
    /// Something that is there twice.
    #[error("{what} `{name}` is there already, in line {line}")]
    Duplicate {
        /// What kind of thing.
        what: &'static str,
        /// Its name.
        name: String,
        /// Where the first one is.
        line: usize,
    },
}

impl Problem {
    /// What to do about it, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownKey { nearest, .. } => {
                nearest.map(|nearest| format!("did you mean `{nearest}`?"))
            }
            Self::Renamed { now, .. } => Some(format!("write `{now}`")),
            Self::Syntax(_)
            | Self::Missing { .. }
            | Self::WrongType { .. }
            | Self::Invalid { .. }
            | Self::Duplicate { .. } => None,
        }
    }
}

/// A problem with its place in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileError {
    /// The file as the user named it.
    pub file: String,
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong.
    pub problem: Problem,
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.problem)?;
        match self.problem.hint() {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for FileError {}

/// A key that was renamed: the old name is an error that tells the new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tombstone {
    /// The key that no longer exists.
    pub old: &'static str,
    /// What it is called now.
    pub now: &'static str,
}

/// Tells what is wrong with a key that is none of `known`.
pub(crate) fn unknown_key(
    key: &str,
    known: impl IntoIterator<Item = &'static str>,
    tombstones: &[Tombstone],
) -> Problem {
    let shown = || key.escape_debug().to_string();
    if let Some(tombstone) = tombstones.iter().find(|it| it.old == key) {
        return Problem::Renamed {
            key: shown(),
            now: tombstone.now,
        };
    }
    let near = known.into_iter().map(|it| (distance(key, it), it)).min();
    // Half of a short word may be wrong before a guess is worse than none.
    let limit = (key.chars().count() / 2).clamp(1, 3);
    Problem::UnknownKey {
        key: shown(),
        nearest: near.filter(|(far, _)| *far <= limit).map(|(_, it)| it),
    }
}

/// How many letters must be changed, added or left out (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(128).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

/// A file that is being read, and what was found wrong with it.
#[derive(Debug)]
pub(crate) struct Document<'t> {
    file: &'t str,
    line_starts: Vec<usize>,
    errors: Vec<FileError>,
}

/// A value with its place.
pub(crate) type Item<'t> = Spanned<DeValue<'t>>;

impl<'t> Document<'t> {
    /// Parses as much as can be parsed; what cannot be is noted.
    pub(crate) fn open(text: &'t str, file: &'t str) -> (Self, DeTable<'t>) {
        let newlines = text.match_indices('\n').map(|(at, _)| at + 1);
        let mut document = Self {
            file,
            line_starts: std::iter::once(0).chain(newlines).collect(),
            errors: Vec::new(),
        };
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let at = error.span().unwrap_or_default();
            document.report(at, Problem::Syntax(error.message().to_owned()));
        }
        (document, table.into_inner())
    }

    /// The file's name in errors.
    pub(crate) fn file(&self) -> &str {
        self.file
    }

    /// The line of a place, counted from 1.
    pub(crate) fn line(&self, at: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= at)
    }

    /// Notes a problem at a place.
    pub(crate) fn report(&mut self, at: Range<usize>, problem: Problem) {
        self.errors.push(FileError {
            file: self.file.to_owned(),
            line: self.line(at.start),
            problem,
        });
    }

    /// Everything that was noted, in the order of lines.
    pub(crate) fn finish(self) -> Vec<FileError> {
        let mut errors = self.errors;
        errors.sort_by_key(|error| error.line);
        errors
    }

    /// Whether nothing was noted so far.
    pub(crate) fn is_clean(&self) -> bool {
        self.errors.is_empty()
    }

    /// The tables of a `[[list]]`; anything else is noted.
    pub(crate) fn tables<'a>(&mut self, item: &'a Item<'t>, key: &str) -> Vec<Section<'a, 't>> {
        let Some(array) = item.get_ref().as_array() else {
            self.wrong_type(item, key, "a list of tables: write `[[…]]`");
            return Vec::new();
        };
        let mut tables = Vec::new();
        for item in array.iter() {
            match item.get_ref().as_table() {
                Some(table) => tables.push(Section {
                    table,
                    at: item.span(),
                }),
                None => self.wrong_type(item, key, "a list of tables: write `[[…]]`"),
            }
        }
        tables
    }

    /// A text, or a number or date as it is written; lists and tables are noted.
    pub(crate) fn text(&mut self, item: &Item<'_>, key: &str) -> Option<String> {
        match item.get_ref() {
            DeValue::String(text) => Some(text.to_string()),
            DeValue::Integer(number) => Some(number.to_string()),
            DeValue::Float(number) => Some(number.as_str().to_owned()),
            DeValue::Boolean(truth) => Some(truth.to_string()),
            DeValue::Datetime(time) => Some(time.to_string()),
            DeValue::Array(_) | DeValue::Table(_) => {
                self.wrong_type(item, key, "a text");
                None
            }
        }
    }

    /// A list of texts, each with its place.
    pub(crate) fn texts(&mut self, item: &Item<'_>, key: &str) -> Vec<(String, Range<usize>)> {
        let Some(array) = item.get_ref().as_array() else {
            self.wrong_type(item, key, "a list of texts: write `[\"…\"]`");
            return Vec::new();
        };
        let texts = array.iter();
        texts
            .filter_map(|item| Some((self.text(item, key)?, item.span())))
            .collect()
    }

    /// A text that a type must accept; its refusal is noted.
    pub(crate) fn parsed<T>(&mut self, item: &Item<'_>, key: &str) -> Option<T>
    where
        T: std::str::FromStr<Err: fmt::Display>,
    {
        let text = self.text(item, key)?;
        self.accept(text.parse(), item.span(), key)
    }

    /// A list of texts that a type must accept; every refusal is noted.
    pub(crate) fn parsed_list<T>(&mut self, item: &Item<'_>, key: &str) -> Vec<T>
    where
        T: std::str::FromStr<Err: fmt::Display>,
    {
        let texts = self.texts(item, key);
        texts
            .into_iter()
            .filter_map(|(text, at)| self.accept(text.parse(), at, key))
            .collect()
    }

    /// The value, or a note of why it was refused.
    pub(crate) fn accept<T, E: fmt::Display>(
        &mut self,
        outcome: Result<T, E>,
        at: Range<usize>,
        key: &str,
    ) -> Option<T> {
        match outcome {
            Ok(value) => Some(value),
            Err(why) => {
                let (key, why) = (key.to_owned(), why.to_string());
                self.report(at, Problem::Invalid { key, why });
                None
            }
        }
    }

    /// Notes a value of the wrong type.
    pub(crate) fn wrong_type(&mut self, item: &Item<'_>, key: &str, wanted: &'static str) {
        let problem = Problem::WrongType {
            key: key.to_owned(),
            wanted,
            found: item.get_ref().type_str(),
        };
        self.report(item.span(), problem);
    }
}

/// A table of a file with its place.
#[derive(Debug)]
pub(crate) struct Section<'a, 't> {
    pub(crate) table: &'a DeTable<'t>,
    pub(crate) at: Range<usize>,
}

impl<'a, 't> Section<'a, 't> {
    /// The value of a key.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Item<'t>> {
        let found = self.table.iter().find(|(name, _)| name.get_ref() == key);
        found.map(|(_, item)| item)
    }

    /// The value of a key that must be there; its lack is noted.
    pub(crate) fn need(&self, document: &mut Document<'_>, key: &str) -> Option<&'a Item<'t>> {
        let item = self.get(key);
        if item.is_none() {
            let key = key.to_owned();
            document.report(self.at.clone(), Problem::Missing { key });
        }
        item
    }

    /// A table of labels, empty when the key is absent; every bad label is noted.
    pub(crate) fn labels(
        &self,
        document: &mut Document<'_>,
        key: &str,
    ) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        let Some(item) = self.get(key) else {
            return labels;
        };
        let Some(table) = item.get_ref().as_table() else {
            document.wrong_type(item, key, "a table of labels: write { KEY = \"VALUE\" }");
            return labels;
        };
        for (name, item) in table {
            let Some(value) = document.text(item, key) else {
                continue;
            };
            let outcome = Label::new(name.get_ref(), &value);
            if let Some(label) = document.accept(outcome, name.span(), key) {
                labels.insert(label.key().to_owned(), label.value().to_owned());
            }
        }
        labels
    }

    /// Notes every key that is none of `known`.
    pub(crate) fn only(
        &self,
        document: &mut Document<'_>,
        known: &[&'static str],
        tombstones: &[Tombstone],
    ) {
        for (key, _) in self.table {
            if !known.contains(&key.get_ref().as_ref()) {
                let problem = unknown_key(key.get_ref(), known.iter().copied(), tombstones);
                document.report(key.span(), problem);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_lines_from_one_also_at_their_edges() {
        let (document, _) = Document::open("a = 1\nb = 2\n", "f");
        let lines: Vec<usize> = [0, 5, 6, 11, 12].map(|at| document.line(at)).into();
        assert_eq!(lines, [1, 1, 2, 2, 3]);
    }

    #[test]
    fn guesses_near_keys_only() {
        for (typed, nearest) in [
            ("efect", Some("effect")),
            ("callers ", Some("callers")),
            ("service", Some("services")),
            ("zzzzzz", None),
            ("x", None),
        ] {
            let problem = unknown_key(typed, ["effect", "callers", "services"], &[]);
            let Problem::UnknownKey { nearest: got, .. } = problem else {
                panic!("{problem}");
            };
            assert_eq!(got, nearest, "{typed}");
        }
    }

    #[test]
    fn a_tombstone_tells_the_new_name() {
        let tombstones = [Tombstone {
            old: "bind",
            now: "listen",
        }];
        let problem = unknown_key("bind", ["listen"], &tombstones);
        assert_eq!(problem.to_string(), "`bind` is now called `listen`");
        assert_eq!(problem.hint().as_deref(), Some("write `listen`"));
    }
}
