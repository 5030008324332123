//! The ladder of transports under one and the same connection of curl: down when UDP is cut, up again when it is healed.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use lab::{
    Begin, Deployment, Family, Machine, Namespace, Spec,
    deployment::loopback,
    faults::Traffic,
    pattern::{Pattern, Way},
    say, scene, wait,
};

use crate::links::SOON;

const MIB: usize = 1 << 20;
/// A cut of UDP is answered by another transport within this time, doubled for a machine that others use as well.
const DOWN: Duration = Duration::from_secs(6);
/// So is its healing by the way back up.
const UP: Duration = Duration::from_secs(30);
/// UDP that is blocked from the start costs no more than this, doubled likewise.
const AROUND: Duration = Duration::from_secs(2);

/// What one download lives through.
pub(crate) struct Descent {
    /// How much is downloaded, at a mebibyte a second: it must outlast both changes.
    pub(crate) mib: usize,
    /// How long both agents stay on TLS before UDP is healed.
    pub(crate) stay: Duration,
    /// From the cut to TLS on both agents.
    pub(crate) down: Duration,
}

/// F21, cut later: one TCP connection of curl begins over QUIC, goes on over TLS, and ends over QUIC, exact.
pub(crate) fn descend(lab: &mut lab::Topology, it: &Descent) -> Result<()> {
    let (at, up) = Deployment::up(lab, Begin::Open)?;
    let files = at.lab().directory().join("files");
    fs::create_dir(&files)?;
    let page = Pattern::new(1, Way::Down).bytes(0, it.mib * MIB);
    let origin = slow_page(&at.net.prv, &page)?;
    let agents = [at.provider.agent()?, at.consumer.agent()?];
    at.provider.ask("expose 3000 --as web --detach")?;
    at.consumer.ask("connect web --listen 8080 --detach")?;
    let got = files.join("got");
    let spec = Spec::new("curl", "curl")
        .args(["-sS", "--fail"])
        .args(["http://127.0.0.1:8080/page", "-o"])
        .args([&got]);
    let mut curl = at.lab().start(&at.net.con, spec)?;
    wait::until("the download to begin", SOON, || {
        let size = fs::metadata(&got).map_or(0, |file| file.len());
        Ok((size >= 64 << 10).then_some(()))
    })?;
    both_over(&at, "quic", SOON)?;
    let cut = at.net.ix.lose(Traffic::any().udp())?;
    both_over(&at, "tls", it.down)?;
    wait::pause(it.stay);
    both_over(&at, "tls", Duration::ZERO)?;
    ensure!(cut.lost()? > 0, "UDP was not cut");
    cut.heal();
    both_over(&at, "quic", UP)?;
    if !curl.is_running()? {
        let ended = curl.finish(SOON)?;
        bail!(
            "it ended before the way up: {} {}",
            ended.status,
            ended.stderr
        );
    }
    let ended = curl.wait(Duration::from_secs(90))?;
    ensure!(ended.success(), "{ended}: {}", curl.stderr());
    ensure!(fs::read(&got)? == page, "the page differs");
    origin.join().ok().context("the origin")??;
    for node in agents.iter().chain([&up]) {
        node.without_complaints()?;
    }
    Ok(())
}

/// A web server for one caller, that sends a mebibyte a second and no more.
pub(crate) fn slow_page(at: &Namespace, page: &[u8]) -> Result<JoinHandle<Result<()>>> {
    let listener = at.enter(|| TcpListener::bind(loopback(3000)))??;
    let page = page.to_vec();
    Ok(thread::spawn(move || {
        let (mut caller, _) = listener.accept()?;
        let mut head = BufReader::new(caller.try_clone()?).lines();
        while head
            .next()
            .is_some_and(|line| line.is_ok_and(|line| !line.is_empty()))
        {}
        let (length, began) = (page.len(), Instant::now());
        write!(
            caller,
            "HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n"
        )?;
        for (n, part) in (0..).zip(page.chunks(MIB / 8)) {
            let due = Duration::from_millis(125 * n);
            wait::pause(due.saturating_sub(began.elapsed()));
            caller.write_all(part)?;
        }
        Ok(())
    }))
}

/// Waits until both agents say that their session is up over a transport, and nothing else of it.
fn both_over(it: &Deployment<'_>, transport: &str, within: Duration) -> Result<()> {
    let began = Instant::now();
    let words = format!("up over {transport} ");
    let mut said = String::new();
    let waited = wait::until(&format!("sessions over {transport}"), within, || {
        said = it.consumer.ask("status")? + &it.provider.ask("status")?;
        Ok((said.matches(&words).count() == 2).then_some(()))
    });
    waited.map_err(|error| error.context(said))?;
    let after = began.elapsed();
    say(&format!("F21: both over {transport} after {after:?}"));
    Ok(())
}

#[test]
fn one_download_goes_over_tls_while_udp_is_cut_and_over_quic_again_after() {
    let it = Descent {
        mib: 8,
        stay: Duration::ZERO,
        down: DOWN,
    };
    scene(Family::V4, |lab| descend(lab, &it));
}

/// F21, from the start: how long an agent takes to a session over TLS when nothing of UDP gets through.
pub(crate) fn around(machine: &Machine<'_>) -> Result<Duration> {
    let spec = machine.spec("agent", ["agent"])?.env("RUST_LOG", "info");
    let lab = machine.lab();
    let began = Instant::now();
    let mut agent = lab.start(machine.namespace(), spec)?;
    let line = agent.wait_for_line("session up", SOON)?;
    let after = began.elapsed();
    say(&format!(
        "F21: without UDP from the start: {after:?}: {line}"
    ));
    let said = machine.ask("status")?;
    ensure!(said.contains("up over tls "), "{said}");
    ensure!(said.contains("not over quic: "), "{said}");
    Ok(after)
}

#[test]
fn an_agent_without_udp_has_a_session_over_tls_soon_after_its_start() {
    scene(Family::V4, |lab| {
        let (it, _up) = Deployment::up(lab, Begin::Open)?;
        let cut = it.net.ix.lose(Traffic::any().udp())?;
        let after = around(&it.provider)?;
        ensure!(cut.lost()? > 0, "UDP was not tried");
        ensure!(after <= AROUND, "{after:?}");
        Ok(())
    });
}
