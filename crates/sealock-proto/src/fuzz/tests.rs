//! The committed corpora through the same bodies that are fuzzed: nothing breaks, and everything is reached.

use std::path::{Path, PathBuf};

use super::{Seen, TARGETS, Target};

mod long;

// More inputs than this are not minimised.
const INPUTS_LIMIT: usize = 2_000;

fn corpus_of(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(target.name)
}

fn inputs_of(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = corpus_of(target);
    let entries = std::fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut inputs: Vec<_> = entries
        .map(|entry| {
            let path = entry.expect("a readable directory").path();
            let bytes = std::fs::read(&path).expect("a readable file");
            (path, bytes)
        })
        .collect();
    inputs.sort();
    inputs
}

#[expect(clippy::print_stderr, reason = "names the input that breaks a promise")]
fn replay(target: &Target) -> Seen {
    let inputs = inputs_of(target);
    assert!(
        inputs.len() <= INPUTS_LIMIT,
        "{} inputs of {}; minimise them: scripts/fuzz.sh minimise",
        inputs.len(),
        target.name
    );
    let mut seen = Seen::new();
    for (path, bytes) in inputs {
        let Ok(reached) = std::panic::catch_unwind(|| (target.run)(&bytes)) else {
            eprintln!("the input is {}", path.display());
            panic!("{} breaks a promise", target.name);
        };
        seen.extend(reached);
    }
    seen
}

#[test]
fn every_corpus_replays_and_reaches_all_that_its_target_knows() {
    for target in TARGETS {
        let seen = replay(target);
        let all: Seen = target.reaches.iter().copied().collect();
        let missing: Vec<_> = all.difference(&seen).collect();
        let unknown: Vec<_> = seen.difference(&all).collect();
        assert!(
            missing.is_empty(),
            "{}: nothing reaches {missing:?}",
            target.name
        );
        assert!(
            unknown.is_empty(),
            "{}: not listed {unknown:?}",
            target.name
        );
    }
}

#[test]
fn every_target_has_a_file_for_the_fuzzer_and_every_file_a_target() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/fuzz_targets");
    let mut files: Vec<String> = std::fs::read_dir(&directory)
        .expect("the directory of the targets")
        .map(|entry| entry.expect("readable").path())
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    files.sort();
    let mut names: Vec<String> = TARGETS
        .iter()
        .map(|target| target.name.to_owned())
        .collect();
    names.sort();
    assert_eq!(files, names);
}
