//! What reaches the terminal: lines, tables and JSON, with every control character made harmless.
//!
//! Names of agents, audit rows and error texts come from other machines. An escape sequence in one of them could rewrite
//! what the user sees, so nothing is printed past [`clean`]. Deliberately absent: colour.

use std::fmt::Write as _;
use std::io::{self, Write};

use comfy_table::Table;
use serde::Serialize;

/// Prints a line for the user on standard output.
pub(crate) fn line(text: &str) {
    put(&mut io::stdout().lock(), &clean(text));
}

/// Prints a line beside the output proper: errors, hints, what a foreground verb is doing.
pub(crate) fn error(text: &str) {
    put(&mut io::stderr().lock(), &clean(text));
}

/// Prints a value as one JSON document.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    put(&mut io::stdout().lock(), &clean_json(&text));
    Ok(())
}

/// Prints rows under a header; says `nothing` where there are none.
pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>, nothing: &str) {
    if rows.is_empty() {
        return error(nothing);
    }
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header.iter().copied());
    for row in rows {
        table.add_row(row.iter().map(|cell| clean_cell(cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text = table.to_string();
    for row in text.lines() {
        line(row.trim_end());
    }
}

/// A line that nobody reads any more (a closed pipe, a full disk) ends nothing: the verb's work goes on.
fn put(out: &mut impl Write, text: &str) {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(b'\n');
    out.write_all(&bytes).and_then(|()| out.flush()).ok();
}

fn is_harmful(c: char) -> bool {
    // Bidirectional overrides reorder what is shown (Unicode TR 36 §2.6).
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn clean(text: &str) -> String {
    escape(
        text,
        |c| c != '\n' && is_harmful(c),
        |c| c.escape_default().to_string(),
    )
}

fn clean_cell(text: &str) -> String {
    escape(text, is_harmful, |c| c.escape_default().to_string())
}

/// JSON has escapes of its own, so that a program still reads the same text.
fn clean_json(text: &str) -> String {
    let harmful = |c| c != '\n' && is_harmful(c);
    escape(text, harmful, |c| format!("\\u{:04x}", u32::from(c)))
}

fn escape(text: &str, is_bad: impl Fn(char) -> bool, escaped: impl Fn(char) -> String) -> String {
    text.chars().fold(String::new(), |mut out, c| {
        if is_bad(c) {
            // Writing to a String cannot fail.
            write!(out, "{}", escaped(c)).ok();
        } else {
            out.push(c);
        }
        out
    })
}

/// A time as people read it: UTC, to the second.
pub(crate) fn time(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// A time that may not be there.
pub(crate) fn maybe_time(at: Option<jiff::Timestamp>) -> String {
    at.map_or_else(|| "-".to_owned(), time)
}

/// Several things in one cell.
pub(crate) fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    if items.is_empty() {
        "-".to_owned()
    } else {
        items.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_of_strangers_never_reach_the_terminal() {
        assert_eq!(
            clean("a\u{1b}[2Jb\rc\u{9b}d\u{202e}e"),
            "a\\u{1b}[2Jb\\rc\\u{9b}d\\u{202e}e"
        );
        assert_eq!(clean("ümlaut\nline"), "ümlaut\nline");
        assert_eq!(clean_cell("a\nb"), "a\\nb");
    }

    #[test]
    fn json_stays_json_and_means_the_same() {
        let value = serde_json::json!({"a": "x\u{9b}\u{1b}\u{202e}y"});
        let text = clean_json(&serde_json::to_string_pretty(&value).expect("plain data"));
        assert!(text.chars().all(|c| c == '\n' || !is_harmful(c)), "{text}");
        let back: serde_json::Value = serde_json::from_str(&text).expect("still JSON");
        assert_eq!(back, value);
    }
}
