//! What a source file looks like: its size, its functions' sizes, its opening sentence, its open ends.

use crate::{finding::Finding, lex::Source};

const LINES_PER_FILE: usize = 1_000;
const LINES_PER_FUNCTION: usize = 100;
// Shorter than this no sentence says what a file is for.
const HEADER_CHARACTERS: usize = 12;

/// Checks a path by its name alone.
pub(crate) fn check_path(path: &str) -> Vec<Finding> {
    if path.rsplit('/').next() == Some("mod.rs") {
        return vec![Finding::new(
            path,
            1,
            "no mod.rs: a module `x` is `x.rs` and its children are in `x/`",
        )];
    }
    Vec::new()
}

/// Checks the text of a Rust file.
pub(crate) fn check_source(path: &str, text: &str, source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(header(path, text));
    let lines = text.lines().count();
    if lines > LINES_PER_FILE {
        findings.push(Finding::new(
            path,
            lines,
            format!("{lines} lines; {LINES_PER_FILE} is the most for a file"),
        ));
    }
    for function in functions(&source.code) {
        if function.lines > LINES_PER_FUNCTION {
            let message = format!(
                "fn `{}` has {} lines; {LINES_PER_FUNCTION} is the most: which part of it wants a name?",
                function.name, function.lines
            );
            findings.push(Finding::new(path, function.starts, message));
        }
    }
    findings.extend(open_ends(path, source));
    findings
}

fn header(path: &str, text: &str) -> Option<Finding> {
    let first = text.lines().next().unwrap_or_default();
    let sentence = first.strip_prefix("//!").map(str::trim);
    match sentence {
        Some(sentence) if sentence.chars().count() >= HEADER_CHARACTERS => None,
        Some(_) => Some(Finding::new(
            path,
            1,
            "the `//!` line does not say what the file is for",
        )),
        None => Some(Finding::new(
            path,
            1,
            "the first line is `//!` and says what the file is for",
        )),
    }
}

/// A remark that something is missing must say where the work is written down; and code has no such macros.
fn open_ends(path: &str, source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in source.comments.lines().enumerate() {
        for (mark, required) in [("TODO", true), ("FIXME", false), ("XXX", false)] {
            for (at, _) in line.match_indices(mark) {
                let after = &line[at + mark.len()..];
                if is_whole_word(line, at, mark.len()) && !(required && names_issue(after)) {
                    let message = format!(
                        "`{mark}`: write `TODO(#123)` with the number of its issue, or do it"
                    );
                    findings.push(Finding::new(path, index + 1, message));
                }
            }
        }
    }
    for (index, line) in source.code.lines().enumerate() {
        if ["todo!", "unimplemented!"]
            .iter()
            .any(|stub| line.contains(stub))
        {
            findings.push(Finding::new(
                path,
                index + 1,
                "a stub that ends the program",
            ));
        }
    }
    findings
}

fn is_whole_word(line: &str, at: usize, length: usize) -> bool {
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    !line[..at].ends_with(in_word) && !line[at + length..].starts_with(in_word)
}

fn names_issue(after: &str) -> bool {
    after
        .strip_prefix("(#")
        .and_then(|rest| rest.split_once(')'))
        .is_some_and(|(number, _)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

#[derive(Debug, PartialEq, Eq)]
struct Function<'a> {
    name: &'a str,
    starts: usize,
    lines: usize,
}

/// The functions of a text whose comments and literals are blank. Blank lines do not count.
fn functions(code: &str) -> Vec<Function<'_>> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        if !is_whole_word(code, at, 2) {
            continue;
        }
        let after = code[at + 3..].trim_start();
        let name_end = after
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(after.len());
        if name_end == 0 {
            continue; // `fn (…)`: a type
        }
        if let Some((start, end)) = body(code, at) {
            found.push(Function {
                name: &after[..name_end],
                starts: code[..at].matches('\n').count() + 1,
                lines: code[start..end]
                    .lines()
                    .filter(|line| !line.trim().is_empty())
                    .count(),
            });
        }
    }
    found
}

/// The span between a function's braces; `None` where it has no body.
fn body(code: &str, from: usize) -> Option<(usize, usize)> {
    let mut brackets = 0_i32;
    let mut braces = 0_i32;
    let mut start = 0;
    for (at, character) in code[from..].char_indices() {
        match character {
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets -= 1,
            ';' if brackets == 0 && braces == 0 => return None,
            '{' => {
                if braces == 0 {
                    start = from + at + 1;
                }
                braces += 1;
            }
            '}' => {
                braces -= 1;
                if braces == 0 {
                    return Some((start, from + at));
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "//! A file that says what it is for.\n";

    fn check(text: &str) -> Vec<String> {
        check_source("a.rs", text, &Source::new(text))
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn a_good_file_has_no_findings() {
        let text = format!(
            "{HEADER}// TODO(#12): later\nfn a() -> [u8; 2] {{ b(\"TODO {{\") }}\ntrait T {{ fn c(); }}\n"
        );
        assert_eq!(check(&text), [""; 0]);
    }

    #[test]
    fn a_file_opens_with_its_purpose() {
        assert_eq!(check("fn a() {}").len(), 1);
        assert_eq!(check("//! DESC\n").len(), 1);
        assert_eq!(check("").len(), 1);
    }

    #[test]
    fn a_file_has_at_most_a_thousand_lines() {
        let at_most = |lines: usize| check(&format!("{HEADER}{}", "//\n".repeat(lines - 1)));
        assert_eq!(at_most(1_000), [""; 0]);
        assert_eq!(at_most(1_001).len(), 1);
    }

    #[test]
    fn a_function_has_at_most_a_hundred_lines_of_code() {
        let function = |lines: usize| {
            let statements = "    b(\"}\");\n\n    // }\n".repeat(lines);
            check(&format!(
                "{HEADER}impl A {{\nfn a<'x>(x: &'x [u8; 3]) {{\n{statements}}}\n}}\n"
            ))
        };
        assert_eq!(function(100), [""; 0]);
        assert_eq!(
            function(101),
            ["a.rs:3: fn `a` has 101 lines; 100 is the most: which part of it wants a name?"]
        );
    }

    #[test]
    fn open_ends_name_their_issue() {
        for (line, count) in [
            ("// TODO: later", 1),
            ("/* TODO(me): later */", 1),
            ("// TODO(#): later", 1),
            ("// FIXME(#3)", 1),
            ("fn a() { todo!() }", 1),
            ("fn a() { unimplemented!(\"x\") }", 1),
            ("// TODO(#3)", 0),
            ("// a TODOLIST", 0),
            ("const A: &str = \"TODO\";", 0),
        ] {
            assert_eq!(check(&format!("{HEADER}{line}\n")).len(), count, "{line}");
        }
    }

    #[test]
    fn modules_have_no_mod_rs() {
        assert_eq!(check_path("crates/a/src/b/mod.rs").len(), 1);
        assert_eq!(check_path("crates/a/src/model.rs"), []);
    }
}
