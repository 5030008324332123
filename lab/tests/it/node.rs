//! Programs: their output, their signals, and how they are seen to fail.

use std::{io::Write as _, time::Duration};

use anyhow::{Context, Result, ensure};
use lab::{Family, Node, Spec, Topology, scene};

const SOON: Duration = Duration::from_secs(5);

fn shell(lab: &mut Topology, script: &str) -> Result<Node> {
    let host = lab.namespace("host")?;
    lab.start(&host, Spec::new("sh", "sh").args(["-c", script]))
}

#[test]
fn output_is_kept_and_lines_are_waited_for() {
    scene(Family::V4, |lab| {
        let mut node = shell(
            lab,
            "echo first; sleep 0.1; echo second >&2; exec sleep 300",
        )?;
        assert_eq!(node.wait_for_line("second", SOON)?, "second");
        assert_eq!(
            (node.stdout(), node.stderr()),
            ("first\n".into(), "second\n".into())
        );
        ensure!(node.resident_bytes()? > 0);
        let missing = node.wait_for_line("third", Duration::from_millis(50));
        assert!(missing.is_err());
        Ok(())
    });
}

#[test]
fn a_program_that_ends_early_is_told_from_a_slow_one() {
    scene(Family::V4, |lab| {
        let mut node = shell(lab, "echo the cause >&2; exit 3")?;
        let error = node
            .wait_for_line("ready", SOON)
            .err()
            .context("it never gets ready")?;
        let text = format!("{error:#}");
        ensure!(
            text.contains("ended (exit status: 3)") && text.contains("the cause"),
            "{text}"
        );
        Ok(())
    });
}

#[test]
fn input_is_given_and_success_is_judged() {
    scene(Family::V4, |lab| {
        let host = lab.namespace("host")?;
        let given = lab.run(&host, Spec::new("cat", "cat").input("abc"))?;
        assert_eq!(given.success()?, "abc");
        let mut node = lab.start(&host, Spec::new("cat", "cat").open_input())?;
        let mut input = node.take_input().context("an open input")?;
        input.write_all(b"one\n")?;
        node.wait_for_line("one", SOON)?;
        drop(input);
        assert!(node.wait(SOON)?.success());
        let failed = lab.run(&host, Spec::new("false", "false"))?;
        assert!(failed.success().is_err());
        Ok(())
    });
}

#[test]
fn a_program_is_in_its_namespace_with_its_variables() {
    scene(Family::V4, |lab| {
        let host = lab.namespace("host")?;
        let spec = Spec::new("sh", "sh")
            .args(["-c", "ip netns identify $$; echo $LAB_WORD; pwd"])
            .env("LAB_WORD", "word")
            .directory("/tmp");
        let printed = lab.run(&host, spec)?.success()?;
        assert_eq!(printed, format!("{}\nword\n/tmp\n", host.name()));
        Ok(())
    });
}

#[test]
fn signals_reach_the_program_itself() {
    scene(Family::V4, |lab| {
        let mut node = shell(
            lab,
            "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.02; done",
        )?;
        node.wait_for_line("up", SOON)?;
        let state = |node: &Node| std::fs::read_to_string(format!("/proc/{}/stat", node.pid()));
        node.freeze()?;
        lab::wait::until("the freeze", SOON, || {
            Ok(state(&node)?.contains(" T ").then_some(()))
        })?;
        node.thaw()?;
        lab::wait::until("the thaw", SOON, || {
            Ok((!state(&node)?.contains(" T ")).then_some(()))
        })?;
        assert!(node.terminate(SOON)?.success());
        assert_eq!(node.stdout(), "up\nbye\n");
        assert!(node.kill().is_err(), "it has ended");
        Ok(())
    });
}

#[test]
fn what_a_program_holds_and_uses_is_seen() {
    scene(Family::V4, |lab| {
        let script = "echo up; read go; exec 8</dev/null 9</dev/null; echo open; read go; exec 8<&- 9<&-; echo closed; \
                      i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo used; read go";
        let host = lab.namespace("host")?;
        let mut node = lab.start(
            &host,
            Spec::new("sh", "sh").args(["-c", script]).open_input(),
        )?;
        let mut input = node.take_input().context("an open input")?;
        node.wait_for_line("up", SOON)?;
        let before = node.holdings()?;
        let used = node.cpu_time()?;
        assert_eq!(before.threads, 1);
        input.write_all(b"go\n")?;
        node.wait_for_line("open", SOON)?;
        assert_eq!(node.holdings()?.files, before.files + 2);
        assert!(
            node.wait_for_return_to(before, Duration::from_millis(50))
                .is_err()
        );
        input.write_all(b"go\n")?;
        node.wait_for_return_to(before, SOON)?;
        node.wait_for_line("used", SOON)?;
        ensure!(
            node.cpu_time()? >= used + Duration::from_millis(20),
            "{:?}",
            node.cpu_time()?
        );
        Ok(())
    });
}

#[test]
fn complaints_in_a_log_are_found() {
    scene(Family::V4, |lab| {
        let host = lab.namespace("host")?;
        for (text, complains) in [
            ("2026-01-01 ERROR flow: lost", true),
            ("thread 'main' panicked at src/x.rs:1", true),
            ("INFO no ERRORS, error=none", false),
        ] {
            let mut node = lab.start(&host, Spec::new("echo", "echo").args([text]))?;
            node.wait(SOON)?;
            assert_eq!(node.without_complaints().is_err(), complains, "{text}");
        }
        Ok(())
    });
}
