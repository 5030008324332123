//! That tests speak of every reason. A flow's end that nobody has seen is a guess.
//!
//! A reason counts when the code of a test names its variant, or a text in one its code; comments do not count. That
//! cannot prove that the test produces it, but one that is named in no test is certainly not produced.

use sealock_core::reason::Reason;

use crate::{finding::Finding, lex::Source};

/// The list itself, which names them all and is no test.
pub(crate) const LIST: &str = "crates/sealock-core/src/reason.rs";
/// How a module of tests begins in a file of other code; it ends with the file.
const MODULE: &str = "#[cfg(test)]\nmod tests {";

/// The code of tests, file by file.
#[derive(Debug, Default)]
pub(crate) struct Tests(String);

impl Tests {
    /// Takes the part of a Rust file that is a test.
    pub(crate) fn add(&mut self, path: &str, text: &str, source: &Source) {
        // The checks' own tests make up what they need.
        if path == LIST || path.starts_with("xtask/") {
            return;
        }
        let is_test_file = path.contains("/tests/")
            || path.ends_with("/tests.rs")
            || path.ends_with("/battery.rs");
        let start = if is_test_file {
            Some(0)
        } else {
            text.find(MODULE)
        };
        if let Some(start) = start {
            self.0.push_str(&without_comments(text, source)[start..]);
            self.0.push('\n');
        }
    }

    /// The reasons that are named nowhere; `list` is the text that lists them.
    pub(crate) fn check(&self, all: &[Reason], list: &str) -> Vec<Finding> {
        let missing = all.iter().filter(|reason| !self.speaks_of(**reason));
        missing
            .map(|reason| {
                let entry = format!("{:?}", reason.code());
                let line = list.lines().position(|line| line.contains(&entry));
                let message = format!("no test speaks of {reason}");
                Finding::new(LIST, line.map_or(1, |line| line + 1), message)
            })
            .collect()
    }

    fn speaks_of(&self, reason: Reason) -> bool {
        self.names(&format!("Reason::{reason:?}")) || self.names(reason.code())
    }

    fn names(&self, word: &str) -> bool {
        let in_word = |c: char| c.is_alphanumeric() || c == '_';
        self.0.match_indices(word).any(|(at, _)| {
            !self.0[..at].ends_with(in_word) && !self.0[at + word.len()..].starts_with(in_word)
        })
    }
}

/// The text with every comment blank; positions stay.
fn without_comments(text: &str, source: &Source) -> String {
    let bytes = text.bytes().zip(source.comments.bytes());
    let kept = bytes.map(|(byte, comment)| match comment {
        b' ' | b'\n' => byte,
        _ => b' ',
    });
    // Comments begin and end between characters, so what is left is text.
    String::from_utf8_lossy(&kept.collect::<Vec<_>>()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Reason; 3] = [Reason::PeerLost, Reason::Truncated, Reason::Done];
    const ENTRIES: &str = "first\n\"PEER_LOST\"\n\"TRUNCATED\"\n\"DONE\"\n";

    /// The lines of the list whose reasons this file does not speak of.
    fn missing(path: &str, text: &str) -> Vec<usize> {
        let mut tests = Tests::default();
        tests.add(path, text, &Source::new(text));
        let findings = tests.check(&ALL, ENTRIES);
        findings.iter().map(Finding::line).collect()
    }

    #[test]
    fn a_reason_that_only_product_code_names_is_found() {
        let product = "fn a() { Reason::PeerLost }";
        assert_eq!(missing("a/src/b.rs", product), [2, 3, 4]);
        let declared = format!("#[cfg(test)]\nmod tests;\n{product}");
        assert_eq!(missing("a/src/b.rs", &declared), [2, 3, 4]);
        let module = format!("{MODULE}\n{product}");
        assert_eq!(missing("a/src/b.rs", &module), [3, 4]);
        assert_eq!(missing(LIST, &module), [2, 3, 4]);
        assert_eq!(missing("xtask/src/a.rs", &module), [2, 3, 4]);
    }

    #[test]
    fn a_test_speaks_of_a_reason_by_its_variant_or_its_code_and_not_in_a_comment() {
        let whole = "Reason::Done Reason::Truncated \"PEER_LOST\"";
        assert_eq!(missing("a/src/tests.rs", whole), Vec::<usize>::new());
        let parts = "\"PEER_LOST\" \"DONE_NOT\" Reason::Truncated2";
        assert_eq!(missing("a/tests/b.rs", parts), [3, 4]);
        let comment = "// «DONE» Reason::Done\nReason::Truncated // PEER_LOST";
        assert_eq!(missing("a/src/battery.rs", comment), [2, 4]);
    }
}
