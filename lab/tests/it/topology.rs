//! Networks: who reaches whom, directly and through address translation, and that nothing stays behind.

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lab::{Family, Namespace, Topology, namespace, scene};

const PORT: u16 = 7000;

/// Opens a connection and returns whom the listener saw.
fn caller_seen(listens: &Namespace, address: IpAddr, calls: &Namespace) -> Result<IpAddr> {
    let to = SocketAddr::new(address, PORT);
    let listener = listens.enter(move || TcpListener::bind(to))??;
    let call = calls.enter(move || TcpStream::connect_timeout(&to, Duration::from_millis(700)))?;
    drop(call.with_context(|| format!("{} calls {to}", calls.short()))?);
    Ok(listener.accept()?.1.ip())
}

#[test]
fn hosts_on_one_network_reach_each_other_by_both_families() {
    scene(Family::Both, |lab| {
        let ix = lab.bridge("ix")?;
        let (one, other) = (lab.host("one", &ix, 1)?, lab.host("other", &ix, 2)?);
        assert_eq!(lab.addresses(&ix, 2), [ix.v4(2), ix.v6(2)]);
        for (address, caller) in [(ix.v4(2), ix.v4(1)), (ix.v6(2), ix.v6(1))] {
            assert_eq!(caller_seen(&other, address, &one)?, caller);
        }
        Ok(())
    });
}

#[test]
fn a_family_that_was_not_asked_for_does_not_exist() {
    for (family, absent) in [(Family::V4, "-6"), (Family::V6, "-4")] {
        scene(family, |lab| {
            let ix = lab.bridge("ix")?;
            let host = lab.host("host", &ix, 1)?;
            assert_eq!(
                host.ip(&[absent, "addr", "show", "dev", "ix", "scope", "global"])?,
                ""
            );
            Ok(())
        });
    }
}

#[test]
fn a_translator_hides_its_hosts_and_lets_nobody_in() {
    scene(Family::Both, |lab| {
        let net = lab.lab6(true)?;
        let (nat1, nat2) = (net.nat1.context("nat1")?, net.nat2.context("nat2")?);
        assert_eq!(
            caller_seen(&net.rel1, net.ix.v4(11), &net.con)?,
            net.ix.v4(21)
        );
        assert_eq!(
            caller_seen(&net.rel1, net.ix.v6(11), &net.con)?,
            net.ix.v6(21)
        );
        assert_eq!(
            caller_seen(&net.org, nat2.inside.v4(42), &net.prv)?,
            nat2.inside.v4(41)
        );
        // A host outside that knows the way is still kept out.
        net.rel1.ip(&[
            "route",
            "add",
            &format!("{}/32", nat1.inside.v4(32)),
            "via",
            &net.ix.v4(21).to_string(),
        ])?;
        let entered = caller_seen(&net.con, nat1.inside.v4(32), &net.rel1);
        ensure!(entered.is_err(), "the provider's network is open");
        Ok(())
    });
}

#[test]
fn listening_sockets_of_a_host_are_listed() {
    scene(Family::V4, |lab| {
        let host = lab.namespace("host")?;
        assert_eq!(host.listeners()?, [""; 0]);
        let listener = host.enter(|| TcpListener::bind(("127.0.0.1", PORT)))??;
        let listed = host.listeners()?;
        ensure!(
            listed.len() == 1 && listed[0].contains("127.0.0.1:7000"),
            "{listed:?}"
        );
        drop(listener);
        Ok(())
    });
}

#[test]
fn nothing_stays_behind() -> Result<()> {
    let mut topology = Topology::new(Family::V4)?;
    let host = topology.namespace("host")?;
    let (name, directory) = (host.name().to_owned(), topology.directory().to_path_buf());
    // A program that its own starter does not know: only the namespace can end it.
    let mut node = topology.start(
        &host,
        lab::Spec::new("sh", "sh").args(["-c", "sleep 300 & echo $!; wait"]),
    )?;
    let orphan = node.wait_for_line("", Duration::from_secs(5))?;
    assert!(namespace::listed().contains(&name));
    assert!(fs::exists(format!("/proc/{orphan}"))?);

    drop((node, host, topology));

    assert!(!namespace::listed().contains(&name));
    assert!(!directory.exists());
    lab::wait::until("the end of the orphan", Duration::from_secs(5), || {
        // Dead, even where nobody collects the dead.
        let state =
            fs::read_to_string(format!("/proc/{orphan}/stat")).unwrap_or_else(|_| ") Z".into());
        Ok(state.contains(") Z").then_some(()))
    })
}

#[test]
fn namespaces_of_a_killed_test_are_swept() -> Result<()> {
    // A process that has ended, and so a pid that nobody has.
    let mut ended = std::process::Command::new("true").spawn()?;
    ended.wait()?;
    let name = format!("sl-{}-0-left", ended.id());
    let made = std::process::Command::new("ip")
        .args(["netns", "add", &name])
        .status()?;
    ensure!(made.success(), "ip netns add");
    drop(Topology::new(Family::V4)?);
    assert!(!namespace::listed().contains(&name));
    Ok(())
}

#[test]
fn a_failed_scene_fails_the_test_and_keeps_its_logs() -> Result<()> {
    let directory = OnceLock::new();
    let failed = std::panic::catch_unwind(|| {
        scene(Family::V4, |lab| {
            directory.set(lab.directory().to_path_buf()).ok();
            Err(anyhow::anyhow!("the reason"))
        });
    });
    let panic = failed.err().context("the scene passed")?;
    assert_eq!(
        panic.downcast_ref::<String>().map(String::as_str),
        Some("the reason")
    );
    let kept = directory.get().context("the scene ran")?;
    assert!(kept.is_dir());
    fs::remove_dir_all(kept)?;
    Ok(())
}
