//! Machine paths that must not be in a repository: they are true on one machine only.

use crate::finding::Finding;

// Written in two parts, so that this file does not find itself.
const PRIVATE_DIRECTORIES: [&str; 2] = [concat!("/wo", "rk"), concat!("/ro", "ot")];

/// Finds absolute paths below a private directory, in any text file.
pub(crate) fn check(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for directory in PRIVATE_DIRECTORIES {
            if line
                .match_indices(directory)
                .any(|(at, _)| is_absolute(line, at, directory.len()))
            {
                findings.push(Finding::new(
                    path,
                    index + 1,
                    format!(
                        "`{directory}` is a path of one machine; use a relative or a temporary one"
                    ),
                ));
            }
        }
    }
    findings
}

/// Whether the match begins a path and is a whole component of it.
fn is_absolute(line: &str, at: usize, length: usize) -> bool {
    let inside_path =
        |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '}' | ')' | '~' | '/');
    let inside_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-');
    !line[..at].ends_with(inside_path) && !line[at + length..].starts_with(inside_word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_private_paths_and_leaves_others() {
        for (line, count) in [
            ("open(\"{}/main/x\")", 1),
            ("cd {} && make", 1),
            ("see {}.", 1),
            ("crates{}/x", 0),
            ("https://example.org{}", 0),
            ("{}space/x", 0),
            ("../{}", 0),
        ] {
            for directory in PRIVATE_DIRECTORIES {
                let line = line.replace("{}", directory);
                assert_eq!(check("a.md", &line).len(), count, "{line}");
            }
        }
    }
}
