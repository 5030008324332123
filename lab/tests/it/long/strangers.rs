//! F41: two machines with one identity, as a cloned disk makes them.

use std::{fs, path::Path, time::Duration};

use anyhow::{Result, ensure};
use lab::{
    Begin, Deployment, Family, Machine, Node, deployment::loopback, say, scene,
    traffic::PatternServer, wait,
};

use crate::process_faults::works;

const SOON: Duration = Duration::from_secs(15);
// Long enough for a swap every few seconds to show.
const WATCH: Duration = Duration::from_secs(20);

#[test]
fn of_two_machines_with_one_identity_the_newer_serves_and_the_older_is_told() {
    scene(Family::V4, |lab| {
        let (it, up) = Deployment::up(lab, Begin::Open)?;
        let _origin = PatternServer::start(&it.net.prv, loopback(7000))?;
        let older = it.provider.expose("7000", "web")?;
        let _connected = it.consumer.connect("web", 8080)?;
        works(&it, 1, "opens before")?;

        let clone = Machine::new(it.lab(), &it.net.org);
        copy(it.provider.state(), clone.state())?;
        let _other = PatternServer::start(&it.net.org, loopback(7000))?;
        let newer = clone.expose("7000", "web")?;
        wait::until("the older to be told", SOON, || {
            Ok(is_told(&older).then_some(()))
        })?;
        works(&it, 10, "opens with two of them")?;
        let before = sessions(&up);
        wait::pause(WATCH);
        let swaps = sessions(&up) - before;
        say(&format!("sessions of `prov` in {WATCH:?}: {swaps}"));
        ensure!(swaps <= 1, "they swap each other out: {swaps} in {WATCH:?}");
        ensure!(
            !is_told(&newer),
            "the newer was put out: {}",
            newer.stderr()
        );
        works(&it, 30, "opens at the end")?;
        let told = it.provider.ask("status")?;
        say(&format!("status of the older:\n{told}"));
        ensure!(told.contains("down"), "{told}");
        Ok(())
    });
}

fn is_told(node: &Node) -> bool {
    node.stderr()
        .contains("another machine uses this agent's identity")
}

fn sessions(up: &Node) -> usize {
    let text = up.stderr();
    let lines = text.lines();
    lines
        .filter(|line| line.contains("session up") && line.contains("agent=default/prov"))
        .count()
}

/// Copies a state directory as a clone of a disk does; sockets and locks are of the running process.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to)?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    for entry in fs::read_dir(from)? {
        let (path, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
        let Some(name) = path.file_name() else {
            continue;
        };
        if kind.is_dir() {
            copy(&path, &to.join(name))?;
        } else if kind.is_file() {
            fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}
