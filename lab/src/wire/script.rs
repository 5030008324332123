//! The time-line of a wire: when which direction changes, in words.
//!
//! `delay 20ms, t=2s down, t=32s up, t=40s there loss 20`: clauses between commas, semicolons or line ends. `t=` says
//! when, counted from the start; a clause without it happens with the one before. `there` or `back` says which
//! direction; a clause without either changes both.

use std::{fmt, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{
    lane::Heading,
    profile::{Setting, duration},
};

/// A change of the profile at its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// When, from the start of the script.
    pub at: Duration,
    /// In which direction; none for both.
    pub heading: Option<Heading>,
    /// What.
    pub setting: Setting,
    words: String,
}

impl Change {
    /// Whether it changes this direction.
    #[must_use]
    pub fn concerns(&self, heading: Heading) -> bool {
        self.heading.is_none_or(|one| one == heading)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

/// Parses a script; its clauses stand in order of time.
///
/// # Errors
///
/// Names the clause that is wrong, or that lies before its predecessor.
pub fn parse(text: &str) -> Result<Vec<Change>> {
    let mut changes: Vec<Change> = Vec::new();
    for clause in text.split([',', ';', '\n']) {
        let clause = clause.trim();
        if clause.is_empty() {
            continue;
        }
        let last = changes.last().map_or(Duration::ZERO, |change| change.at);
        let change = one(clause, last).with_context(|| format!("in `{clause}`"))?;
        ensure!(change.at >= last, "`{clause}` lies before its predecessor");
        changes.push(change);
    }
    Ok(changes)
}

fn one(clause: &str, last: Duration) -> Result<Change> {
    let all: Vec<&str> = clause.split_whitespace().collect();
    let mut words = all.as_slice();
    let mut at = last;
    if let [time, rest @ ..] = words
        && let Some(time) = time.strip_prefix("t=")
    {
        (at, words) = (duration(time)?, rest);
    }
    let mut heading = None;
    if let [word, rest @ ..] = words
        && let Some(named) = Heading::parse(word)
    {
        (heading, words) = (Some(named), rest);
    }
    Ok(Change {
        at,
        heading,
        setting: Setting::parse(words)?,
        words: all.join(" "),
    })
}
