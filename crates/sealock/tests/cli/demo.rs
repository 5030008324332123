//! `sealock demo`: it holds all that it says, stays when it is asked to, and fails when a scene fails.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::program::{Running, eventually, sealock};

/// The demonstration ends itself after two minutes; a machine with other work needs more of them than an idle one.
const WHOLE: Duration = Duration::from_secs(100);

/// The demonstration with its state below `dir`.
fn demo(dir: &Path, arguments: &[&str]) -> Running {
    let mut command = sealock(dir, &[&["demo"], arguments].concat());
    command.env("TMPDIR", dir);
    Running::spawn(command)
}

/// The processes that it has started: the number and the words of each.
fn parts_of(demo: &Running) -> Vec<(String, String)> {
    let parent = format!("PPid:\t{}", demo.id());
    let processes = std::fs::read_dir("/proc").expect("readable");
    processes
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            // A process may be gone by now; then it is no part.
            let status = std::fs::read_to_string(path.join("status")).ok()?;
            status.lines().find(|line| *line == parent)?;
            let words = std::fs::read(path.join("cmdline")).ok()?;
            let words = String::from_utf8_lossy(&words).replace('\0', " ");
            Some((path.file_name()?.to_str()?.to_owned(), words))
        })
        .collect()
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).expect("readable").next().is_none()
}

#[test]
fn the_demonstration_shows_and_measures_all_it_promises_and_stays_until_it_is_stopped() {
    let dir = tempfile::tempdir().expect("a directory");
    let demo = demo(dir.path(), &["--stay"]);
    let told = demo.lines_until("Everything keeps running", WHOLE);
    let scenes = told.iter().filter(|line| line.contains("✓")).count();
    assert_eq!(scenes, 6, "{told:#?}");
    for words in [
        "path       caller → relay at 127.0.0.1:",
        "first byte ",
        "throughput ",
        "POLICY_DENIED",
        "blindness  0 of ",
        "revocation cut the live stream after ",
        "All scenes held",
        "sealock up ",
        "sealock join SLK1-",
        "sealock expose 3000 --as web",
        "sealock connect web --listen 127.0.0.1:8080",
    ] {
        let is_told = told.iter().any(|line| line.contains(words));
        assert!(is_told, "«{words}» is missing in {told:#?}");
    }
    let parts = parts_of(&demo);
    assert_eq!(parts.len(), 3, "a public side and two agents: {parts:?}");
    assert_eq!(demo.interrupt(), 0);
    assert!(is_empty(dir.path()), "its state is gone");
    for (process, words) in parts {
        let gone = !Path::new("/proc").join(&process).exists();
        assert!(gone, "process {process} is left: {words}");
    }
}

#[test]
fn a_scene_that_fails_fails_the_demonstration() {
    let dir = tempfile::tempdir().expect("a directory");
    let demo = demo(dir.path(), &[]);
    demo.lines_until("… 64 MiB", WHOLE);
    let parts = parts_of(&demo);
    let is_caller = |(_, words): &&(String, String)| words.contains("/caller agent");
    let (caller, _) = parts.iter().find(is_caller).expect("it runs");
    let killed = Command::new("kill").args(["-KILL", caller]).status();
    assert!(killed.expect("kill runs").success());
    let told = demo.lines_until("✗ 64 MiB", WHOLE);
    assert!(told.iter().all(|line| !line.contains("All scenes held")));
    let error = eventually(|| demo.errors(), |said| said.contains("the scene failed"));
    assert!(error.contains("the scene failed: 64 MiB"), "{error}");
    assert_eq!(demo.wait(), 1);
    assert!(is_empty(dir.path()), "its state is gone");
}
