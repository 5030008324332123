//! What may not be done in some places: IO and clocks in the pure crates, `unsafe` anywhere but in one module.
//!
//! clippy bans single functions and types by each crate's own `clippy.toml`; this looks for whole modules of the
//! standard library, and holds the `clippy.toml` itself in place. Tests may do as they like.

use crate::{finding::Finding, lex::Source};

const PURE: [&str; 2] = ["crates/sealock-core/", "crates/sealock-proto/"];
// The only module that may call the system without the compiler's protection.
const UNSAFE_HOME: &str = "crates/sealock-net/src/sys";

const IMPURE_PATHS: [&str; 6] = [
    "std::fs",
    "std::process",
    "std::thread",
    "std::env",
    "io::stdin",
    "io::stdout",
];

const BANS: [&str; 6] = [
    "std::time::Instant::now",
    "std::time::SystemTime::now",
    "jiff::Timestamp::now",
    "std::fs::File",
    "std::net::TcpStream",
    "std::sync::Mutex",
];

/// The files that must exist for the bans to hold.
pub(crate) fn required_files() -> impl Iterator<Item = String> {
    PURE.iter().map(|krate| format!("{krate}clippy.toml"))
}

/// Checks that the `clippy.toml` of a pure crate still bans what it must.
pub(crate) fn check_bans(path: &str, text: &str) -> Vec<Finding> {
    if !required_files().any(|file| file == path) {
        return Vec::new();
    }
    BANS.iter()
        .filter(|ban| !text.contains(&format!("path = \"{ban}\"")))
        .map(|ban| Finding::new(path, 1, format!("`{ban}` is not banned in this pure crate")))
        .collect()
}

/// Checks the code of a Rust file.
pub(crate) fn check_source(path: &str, source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let is_pure = PURE
        .iter()
        .any(|krate| path.starts_with(&format!("{krate}src/")))
        && !path.ends_with("tests.rs");
    for (index, line) in source.code.lines().enumerate() {
        if words(line).any(|word| word == "unsafe") && !path.starts_with(UNSAFE_HOME) {
            findings.push(Finding::new(
                path,
                index + 1,
                format!("`unsafe` belongs into {UNSAFE_HOME}"),
            ));
        }
    }
    if is_pure {
        let product = source
            .code
            .lines()
            .take_while(|line| !line.contains("#[cfg(test)]"));
        for (index, line) in product.enumerate() {
            if let Some(found) = IMPURE_PATHS.iter().find(|path| line.contains(*path)) {
                findings.push(Finding::new(
                    path,
                    index + 1,
                    format!("`{found}` in a pure crate: make it an argument"),
                ));
            }
        }
    }
    findings
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, text: &str) -> usize {
        check_source(path, &Source::new(text)).len()
    }

    #[test]
    fn pure_crates_do_no_io_outside_their_tests() {
        let pure = "crates/sealock-proto/src/a.rs";
        for line in ["use std::fs;", "std::thread::spawn(f);", "std::io::stdin()"] {
            assert_eq!(check(pure, line), 1, "{line}");
            assert_eq!(check("crates/sealock-net/src/a.rs", line), 0, "{line}");
            assert_eq!(
                check(pure, &format!("#[cfg(test)]\nmod tests {{\n{line}\n}}")),
                0,
                "{line}"
            );
            assert_eq!(check(pure, &format!("// {line}")), 0, "{line}");
        }
    }

    #[test]
    fn unsafe_code_has_one_home() {
        let line = "unsafe { f() }";
        assert_eq!(check("crates/sealock-agent/src/a.rs", line), 1);
        assert_eq!(check("lab/src/a.rs", "unsafe fn f() {}"), 1);
        assert_eq!(check("crates/sealock-net/src/sys/linux.rs", line), 0);
        assert_eq!(
            check(
                "crates/sealock-net/src/lib.rs",
                "#[expect(unsafe_code)] mod sys;"
            ),
            0
        );
    }

    #[test]
    fn a_lifted_ban_is_found() {
        let path = "crates/sealock-core/clippy.toml";
        let all: String = BANS
            .iter()
            .map(|ban| format!("{{ path = \"{ban}\" }}\n"))
            .collect();
        assert_eq!(check_bans(path, &all), []);
        assert_eq!(check_bans(path, &all.replace("Mutex", "Once")).len(), 1);
        assert_eq!(check_bans(path, "").len(), BANS.len());
        assert_eq!(check_bans("clippy.toml", ""), []);
    }
}
