//! Which reasons no test speaks of. A flow's end that nobody has seen is a guess.
//!
//! A reason counts as seen when a test names its variant or its code. That does not prove that the test produces
//! it, but one that is named nowhere is certainly not produced. `reason.rs` itself, which lists them all, is no test.

use sealock_core::reason::Reason;

const LIST: &str = "crates/sealock-core/src/reason.rs";

/// Collects the text of tests, file by file.
#[derive(Debug, Default)]
pub(crate) struct Tests(String);

impl Tests {
    /// Takes the part of a Rust file that is a test.
    pub(crate) fn add(&mut self, path: &str, text: &str) {
        if path == LIST {
            return;
        }
        let is_test_file = path.contains("/tests/")
            || path.ends_with("/tests.rs")
            || path.ends_with("/battery.rs");
        let test = if is_test_file {
            Some(0)
        } else {
            text.find("#[cfg(test)]")
        };
        if let Some(start) = test {
            self.0.push_str(&text[start..]);
            self.0.push('\n');
        }
    }

    /// The reasons that are named nowhere.
    pub(crate) fn untested(&self, all: &[Reason]) -> Vec<Reason> {
        let is_named = |reason: &Reason| {
            let variant = format!("Reason::{reason:?}");
            self.names(&variant) || self.names(reason.code())
        };
        all.iter()
            .copied()
            .filter(|reason| !is_named(reason))
            .collect()
    }

    fn names(&self, word: &str) -> bool {
        let in_word = |c: char| c.is_alphanumeric() || c == '_';
        self.0.match_indices(word).any(|(at, _)| {
            !self.0[..at].ends_with(in_word) && !self.0[at + word.len()..].starts_with(in_word)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_that_only_product_code_names_is_untested() {
        let all = [Reason::PeerLost, Reason::Truncated, Reason::Done];
        let untested = |path: &str, text: &str| {
            let mut tests = Tests::default();
            tests.add(path, text);
            tests.untested(&all)
        };
        let product = "fn a() { Reason::PeerLost }";
        assert_eq!(untested("a/src/b.rs", product), all);
        assert_eq!(
            untested("a/src/b.rs", &format!("#[cfg(test)] {product}")),
            all[1..]
        );
        assert_eq!(
            untested(
                "a/tests/b.rs",
                "\"PEER_LOST\" \"DONE_NOT\" Reason::Truncated2"
            ),
            all[1..]
        );
        assert_eq!(
            untested("a/src/tests.rs", "Reason::Done Reason::Truncated PEER_LOST"),
            []
        );
        assert_eq!(untested(LIST, "#[cfg(test)] Reason::Done"), all);
    }
}
