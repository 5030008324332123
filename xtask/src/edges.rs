//! Who may know whom: the edges between crates, the homes of large libraries, and the imports inside the pipe.

use crate::{finding::Finding, lex::Source};

/// Each crate of the workspace and the ones it may depend on.
const EDGES: &[(&str, &[&str])] = &[
    ("sealock-core", &[]),
    ("sealock-proto", &["sealock-core"]),
    ("sealock-net", &["sealock-core", "sealock-proto"]),
    (
        "sealock-flow",
        &["sealock-core", "sealock-proto", "sealock-net"],
    ),
    (
        "sealock-relay",
        &[
            "sealock-core",
            "sealock-proto",
            "sealock-net",
            "sealock-flow",
        ],
    ),
    (
        "sealock-agent",
        &[
            "sealock-core",
            "sealock-proto",
            "sealock-net",
            "sealock-flow",
        ],
    ),
    (
        "sealock-control",
        &["sealock-core", "sealock-proto", "sealock-net"],
    ),
    (
        "sealock",
        &[
            "sealock-core",
            "sealock-proto",
            "sealock-net",
            "sealock-flow",
            "sealock-relay",
            "sealock-agent",
            "sealock-control",
        ],
    ),
    ("lab", &["sealock-core"]),
    ("xtask", &["sealock-core"]),
    ("sealock-fuzz", &["sealock-proto"]),
    ("sealock-replay", &["sealock-proto"]),
];

/// Libraries that belong to one crate, which hides them from the others.
const HOMES: &[(&str, &str)] = &[
    ("noq", "sealock-net"),
    ("noq-proto", "sealock-net"),
    ("tonic", "sealock-net sealock-control"),
    ("sqlx", "sealock-control"),
    ("clap", "sealock"),
];

/// Crates without clock, IO, randomness or locks: such libraries would bring them in.
const PURE: &[&str] = &["sealock-core", "sealock-proto"];
const IMPURE: &[&str] = &[
    "tokio",
    "rand",
    "parking_lot",
    "socket2",
    "rustix",
    "libc",
    "tracing",
    "arc-swap",
    "rustls",
];

const SECTIONS: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];

/// Holds one manifest against the allowed edges.
pub(crate) fn check_manifest(path: &str, text: &str) -> Vec<Finding> {
    let manifest: toml::Table = match text.parse() {
        Ok(manifest) => manifest,
        Err(error) => return vec![Finding::new(path, 1, format!("not a manifest: {error}"))],
    };
    let name = manifest
        .get("package")
        .and_then(|package| package.get("name"))
        .and_then(toml::Value::as_str)
        .unwrap_or_default();
    let Some((_, allowed)) = EDGES.iter().find(|(krate, _)| *krate == name) else {
        let message = format!(
            "crate `{name}` has no place in the list of edges; a new crate needs a decision record"
        );
        return vec![Finding::new(path, 1, message)];
    };
    let mut findings = Vec::new();
    if manifest.get("lints").is_none() {
        findings.push(Finding::new(path, 1, "no [lints]: add `workspace = true`"));
    }
    for section in SECTIONS {
        for dependency in dependencies(&manifest, section) {
            let line = line_of(text, section, &dependency);
            if let Some(message) = broken_edge(name, allowed, section, &dependency) {
                findings.push(Finding::new(path, line, message));
            }
        }
    }
    findings
}

fn broken_edge(name: &str, allowed: &[&str], section: &str, dependency: &str) -> Option<String> {
    let is_ours = EDGES.iter().any(|(krate, _)| *krate == dependency);
    if is_ours && !allowed.contains(&dependency) {
        return Some(format!("`{name}` must not know `{dependency}`"));
    }
    if let Some((_, home)) = HOMES.iter().find(|(library, _)| *library == dependency)
        && !home.split(' ').any(|home| home == name)
    {
        return Some(format!("`{dependency}` belongs to {home}, not to `{name}`"));
    }
    if section == "dependencies" && PURE.contains(&name) && IMPURE.contains(&dependency) {
        return Some(format!("`{name}` is pure and must not use `{dependency}`"));
    }
    None
}

/// The packages of a section, by the name that the registry knows, also where one is renamed or for one target.
fn dependencies(manifest: &toml::Table, section: &str) -> Vec<String> {
    let targets = manifest.get("target").and_then(toml::Value::as_table);
    let tables = std::iter::once(manifest.get(section)).chain(
        targets
            .into_iter()
            .flat_map(|targets| targets.values().map(|target| target.get(section))),
    );
    tables
        .flatten()
        .filter_map(toml::Value::as_table)
        .flatten()
        .map(|(key, value)| {
            let package = value.get("package").and_then(toml::Value::as_str);
            package.unwrap_or(key).to_owned()
        })
        .collect()
}

fn line_of(text: &str, section: &str, dependency: &str) -> usize {
    let header = format!("[{section}]");
    text.lines()
        .enumerate()
        .skip_while(|(_, line)| line.trim() != header)
        .find(|(_, line)| {
            line.trim()
                .strip_prefix(dependency)
                .is_some_and(|rest| rest.starts_with([' ', '.', '=']))
        })
        .map_or(1, |(index, _)| index + 1)
}

/// Inlets know no outlets and outlets know no inlets; the roles know no transport.
pub(crate) fn check_imports(path: &str, source: &Source) -> Vec<Finding> {
    let banned: &[(&str, &str)] = if is_module(path, "crates/sealock-flow/src/inlet") {
        &[("outlet", "an inlet knows no outlet")]
    } else if is_module(path, "crates/sealock-flow/src/outlet") {
        &[("inlet", "an outlet knows no inlet")]
    } else {
        &[]
    };
    let mut findings = Vec::new();
    for (index, line) in source.code.lines().enumerate() {
        for (word, message) in banned {
            if names_module(line, word) {
                findings.push(Finding::new(path, index + 1, *message));
            }
        }
    }
    findings
}

fn is_module(path: &str, module: &str) -> bool {
    path.strip_prefix(module)
        .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
}

/// Whether a line of code names a module: `word::…`, `…::word`, or `word` inside a braced import.
fn names_module(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let (before, after) = (line[..at].trim_end(), line[at + word.len()..].trim_start());
        let is_word = !line[..at].ends_with(is_word_character)
            && !line[at + word.len()..].starts_with(is_word_character);
        let in_import = before.ends_with(['{', ','])
            && after.starts_with(['}', ',', ':'])
            && line.contains("use ");
        is_word && (after.starts_with("::") || before.ends_with("::") || in_import)
    })
}

fn is_word_character(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(findings: &[Finding]) -> Vec<&str> {
        findings.iter().map(Finding::message).collect()
    }

    fn manifest(name: &str, body: &str) -> Vec<Finding> {
        let text = format!("[package]\nname = \"{name}\"\n[lints]\nworkspace = true\n{body}");
        check_manifest("crates/x/Cargo.toml", &text)
    }

    #[test]
    fn refuses_an_edge_that_is_not_in_the_list_and_names_its_line() {
        let findings = manifest(
            "sealock-control",
            "[dependencies]\nsealock-net.workspace = true\nsealock-flow.workspace = true\n",
        );
        assert_eq!(
            messages(&findings),
            ["`sealock-control` must not know `sealock-flow`"]
        );
        assert_eq!(findings[0].line(), 7);
        assert_eq!(
            manifest(
                "sealock-core",
                "[dev-dependencies]\nsealock-proto = { path = \"..\" }"
            )
            .len(),
            1
        );
        assert_eq!(
            manifest(
                "sealock-core",
                "[dependencies]\np = { package = \"sealock-proto\" }"
            )
            .len(),
            1
        );
        assert_eq!(
            manifest(
                "sealock-core",
                "[target.'cfg(unix)'.dependencies]\nsealock-net = \"1\""
            )
            .len(),
            1
        );
        assert_eq!(
            manifest(
                "sealock",
                "[dependencies]\nsealock-control.workspace = true"
            ),
            []
        );
    }

    #[test]
    fn refuses_libraries_away_from_their_home_and_clocks_in_pure_crates() {
        let home = manifest("sealock-agent", "[dependencies]\nnoq = \"1\"");
        assert_eq!(
            messages(&home),
            ["`noq` belongs to sealock-net, not to `sealock-agent`"]
        );
        let impure = manifest("sealock-proto", "[dependencies]\ntokio = \"1\"");
        assert_eq!(
            messages(&impure),
            ["`sealock-proto` is pure and must not use `tokio`"]
        );
    }

    #[test]
    fn refuses_unknown_crates_and_crates_without_lints() {
        assert_eq!(manifest("sealock-extra", "").len(), 1);
        let findings = check_manifest("Cargo.toml", "[package]\nname = \"lab\"\n");
        assert_eq!(messages(&findings), ["no [lints]: add `workspace = true`"]);
    }

    #[test]
    fn keeps_inlets_and_outlets_apart() {
        let check = |path: &str, text: &str| check_imports(path, &Source::new(text)).len();
        let inlet = "crates/sealock-flow/src/inlet/port.rs";
        for line in [
            "use crate::outlet::direct;",
            "use crate::outlet;",
            "use crate::{hop, outlet, rule};",
            "use super::super::outlet::{Opened};",
            "let way = outlet::open(x);",
        ] {
            assert_eq!(check(inlet, line), 1, "{line}");
            assert_eq!(check("crates/sealock-flow/src/inlet.rs", line), 1, "{line}");
            assert_eq!(check("crates/sealock-flow/src/hop.rs", line), 0, "{line}");
            let other = line.replace("outlet", "inlet");
            assert_eq!(
                check("crates/sealock-flow/src/outlet/direct.rs", &other),
                1,
                "{other}"
            );
        }
        for line in [
            "// crate::outlet is never known here",
            "let outlets = 1;",
            "span.record(\"outlet\", 1);",
        ] {
            assert_eq!(check(inlet, line), 0, "{line}");
        }
    }
}
