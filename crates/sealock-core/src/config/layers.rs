//! The layers of a configuration: flags over environment over file over defaults.

use std::path::Path;

use super::document::{Document, Section, Tombstone, unknown_key};
use super::origin::{ConfigError, Given, Origin};
use super::typed::{OPTIONS, TOMBSTONES, Typed, unknown, variable};
use super::value::StateDir;

/// Everything that was said, not yet read.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    file: Option<(String, String)>,
    environment: Vec<(String, String)>,
    flags: Vec<Flag>,
}

/// An option on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    /// The flag as it is typed, such as `--listen`.
    pub flag: String,
    /// The option that it sets, such as `relay.listen`.
    pub key: String,
    /// The value.
    pub value: String,
}

/// Variables with our prefix that are no options.
const NOT_OPTIONS: &[&str] = &["SEALOCK_CONFIG"]; // the path of the file itself

const PREFIX: &str = "SEALOCK_";

impl Layers {
    /// Nothing but defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the content of a file under the name by which errors call it.
    #[must_use]
    pub fn with_file(mut self, name: &str, text: &str) -> Self {
        self.file = Some((name.to_owned(), text.to_owned()));
        self
    }

    /// Adds the environment, all of it: what is not ours is passed over, and a home decides where state lies.
    #[must_use]
    pub fn with_environment(mut self, pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        self.environment.extend(pairs);
        self
    }

    /// Adds what was given on the command line; of one option the last counts.
    #[must_use]
    pub fn with_flags(mut self, flags: impl IntoIterator<Item = Flag>) -> Self {
        self.flags.extend(flags);
        self
    }

    /// Reads all layers and lays them over each other.
    pub(crate) fn merge(&self) -> Result<Typed, Vec<ConfigError>> {
        self.merge_with(TOMBSTONES)
    }

    fn merge_with(&self, tombstones: &[Tombstone]) -> Result<Typed, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let file = self.read_file(tombstones, &mut errors);
        let environment = self.read_environment(tombstones, &mut errors);
        let flags = self.read_flags(tombstones, &mut errors);
        if errors.is_empty() {
            let lower = file.over(self.home()).over(Typed::defaults());
            Ok(flags.over(environment).over(lower))
        } else {
            Err(errors)
        }
    }

    fn read_file(&self, tombstones: &[Tombstone], errors: &mut Vec<ConfigError>) -> Typed {
        let mut typed = Typed::default();
        let Some((name, text)) = &self.file else {
            return typed;
        };
        let (mut document, table) = Document::open(text, name);
        for (name, item) in &table {
            if !sections().any(|known| known == name.get_ref()) {
                let problem = unknown_key(name.get_ref(), sections(), tombstones);
                document.report(name.span(), problem);
                continue;
            }
            let Some(section) = item.get_ref().as_table() else {
                document.wrong_type(item, name.get_ref(), "a table");
                continue;
            };
            let section = Section {
                table: section,
                at: item.span(),
            };
            for (key, item) in section.table {
                let full = format!("{}.{}", name.get_ref(), key.get_ref());
                if !typed.put_item(&mut document, &full, item) {
                    document.report(key.span(), unknown(&full, tombstones));
                }
            }
        }
        errors.extend(document.finish().into_iter().map(ConfigError::from));
        typed
    }

    fn read_environment(&self, tombstones: &[Tombstone], errors: &mut Vec<ConfigError>) -> Typed {
        let mut typed = Typed::default();
        for (name, value) in &self.environment {
            let Some(key) = key_of(name) else {
                continue;
            };
            let origin = Origin::Environment {
                variable: name.clone(),
            };
            if let Err(problem) = typed.put_text(&key, value, &origin, tombstones) {
                errors.push(ConfigError { origin, problem });
            }
        }
        typed
    }

    fn read_flags(&self, tombstones: &[Tombstone], errors: &mut Vec<ConfigError>) -> Typed {
        let mut typed = Typed::default();
        for Flag { flag, key, value } in &self.flags {
            let origin = Origin::Flag { flag: flag.clone() };
            if let Err(problem) = typed.put_text(key, value, &origin, tombstones) {
                errors.push(ConfigError { origin, problem });
            }
        }
        typed
    }

    /// The default of `state.dir` for somebody with a home (XDG Base Directory specification).
    fn home(&self) -> Typed {
        let directory = |name: &str| {
            let found = self.environment.iter().find(|(it, _)| it == name);
            let path = found.map(|(_, value)| Path::new(value));
            // The specification: a relative path is invalid and ignored.
            path.filter(|path| path.is_absolute())
        };
        let state = match (directory("XDG_STATE_HOME"), directory("HOME")) {
            (Some(state), _) => Some(state.join("sealock")),
            (None, Some(home)) => Some(home.join(".local/state/sealock")),
            (None, None) => None,
        };
        Typed {
            state_dir: state.map(|path| Given {
                value: StateDir(path),
                origin: Origin::Default,
            }),
            ..Typed::default()
        }
    }
}

fn sections() -> impl Iterator<Item = &'static str> {
    let keys = OPTIONS.iter();
    keys.filter_map(|row| row.key.split_once('.').map(|(section, _)| section))
}

/// The option that a variable means to set; nothing when it is not ours.
///
/// With a double underscore it is surely meant for us. Without one it may be another's (an orchestrator sets
/// `SEALOCK_PORT` for a service of our name), unless it is a variable of ours but for the number of underscores.
fn key_of(name: &str) -> Option<String> {
    let rest = name.strip_prefix(PREFIX)?;
    if NOT_OPTIONS.contains(&name) {
        return None;
    }
    if let Some((section, key)) = rest.split_once("__") {
        // A variable in other letters is not quietly the same one: its key stays as no option is written.
        let exact = rest == rest.to_ascii_uppercase();
        let key = exact.then(|| format!("{section}.{key}").to_ascii_lowercase());
        return Some(key.unwrap_or_else(|| rest.to_owned()));
    }
    let bare = |name: &str| name.replace('_', "");
    let meant = |row: &&super::OptionRow| bare(&variable(row.key)) == bare(name);
    OPTIONS
        .iter()
        .find(meant)
        .map(|_| rest.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renamed_key_tells_its_new_name_in_every_layer() {
        let tombstones = [Tombstone {
            old: "relay.bind",
            now: "relay.listen",
        }];
        let layers = Layers::new()
            .with_file("f.toml", "[relay]\nbind = \"127.0.0.1:1\"\n")
            .with_environment([("SEALOCK_RELAY__BIND".to_owned(), "127.0.0.1:1".to_owned())])
            .with_flags([Flag {
                flag: "--bind".to_owned(),
                key: "relay.bind".to_owned(),
                value: "127.0.0.1:1".to_owned(),
            }]);
        let errors = layers.merge_with(&tombstones).expect_err("renamed");
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "f.toml:2: `relay.bind` is now called `relay.listen`\n  hint: write `relay.listen`",
                "SEALOCK_RELAY__BIND: `relay.bind` is now called `relay.listen`\n  hint: write `SEALOCK_RELAY__LISTEN`",
                "--bind: `relay.bind` is now called `relay.listen`\n  hint: write `relay.listen`",
            ]
        );
    }
}
