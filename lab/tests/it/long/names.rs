//! F42: the name of a service's origin, and everything that a name server can do to whoever asks it.

use std::{
    fs,
    ops::RangeFrom,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{
    Begin, Deployment, Family, Node, Spec, binary,
    deployment::loopback,
    say, scene,
    traffic::{PatternServer, Transfer},
    wait,
};

use crate::{
    links::SOON,
    load::{FAR, NEAR},
};

const RESOLVER: &str = include_str!("../resolver.py");
/// Given to the system as `/etc/resolv.conf` of one program alone.
const WITH_RESOLVER: &str = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
/// An answer is used for a second; then the server is asked again.
const ASKED_AGAIN: Duration = Duration::from_millis(1_500);
/// Less than two seconds for a server that says nothing, and the machine.
const STALE: Duration = Duration::from_secs(4);
/// Five seconds for a question without an answer, an open that is refused, and the machine.
const REFUSED: Duration = Duration::from_secs(12);

/// The name server of the provider's machine.
struct Resolver {
    mode: PathBuf,
    log: PathBuf,
    _server: Node,
}

impl Resolver {
    fn start(it: &Deployment<'_>) -> Result<Self> {
        let file = |name| it.lab().directory().join(name);
        let (mode, log) = (file("dns-mode"), file("dns-log"));
        fs::write(&mode, "good")?;
        fs::write(&log, "")?;
        let spec = Spec::new("resolver", "/usr/bin/python3").args(["-c", RESOLVER]);
        let mut server = it.lab().start(&it.net.prv, spec.args([&mode, &log]))?;
        server.wait_for_line("answering", SOON)?;
        Ok(Self {
            mode,
            log,
            _server: server,
        })
    }

    /// From here on it answers so; waits until what it said before is not used any more.
    fn says(&self, mode: &str) -> Result<()> {
        fs::write(&self.mode, mode)?;
        fs::write(&self.log, "")?;
        wait::pause(ASKED_AGAIN);
        Ok(())
    }

    /// What it was asked since, a question in a line.
    fn asked(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.log)?)
    }
}

/// The provider's process, on a machine that asks this server.
fn expose(it: &Deployment<'_>, servers: &Path) -> Result<Node> {
    let target = format!("db.lab.test:{FAR}");
    let spec = Spec::new("expose", "unshare")
        .args(["--mount", "sh", "-c", WITH_RESOLVER])
        .args([servers, binary::sealock()?, Path::new("--state")])
        .args([it.provider.state()])
        .args(["expose", &target, "--as", "web"])
        .env("RUST_LOG", "info");
    let mut node = it.lab().start(it.provider.namespace(), spec)?;
    node.wait_for_line("exposed `", SOON)?;
    Ok(node)
}

/// Waits until the name is known, and by an answer that was given after all that was asked before: a question to a server
/// that says nothing goes on for two times five seconds, and nobody asks a second one meanwhile.
fn settle(it: &Deployment<'_>, resolver: &Resolver, streams: &mut RangeFrom<u64>) -> Result<()> {
    resolver.says("good")?;
    wait::until("the name to be known", SOON, || {
        let stream = streams.next().context("a number")?;
        let is_served = open(it, stream).1.is_ok();
        let is_answered = resolver.asked()?.contains("good");
        Ok((is_served && is_answered).then_some(()))
    })
}

/// Opens a flow to the name, moves some bytes over it, and says how long that took.
fn open(it: &Deployment<'_>, stream: u64) -> (Duration, Result<()>) {
    let began = Instant::now();
    let moved = Transfer::both_ways(stream, 1_000).run(&it.net.con, loopback(NEAR));
    (began.elapsed(), moved.map(drop))
}

#[test]
fn whatever_a_name_server_does_a_name_that_was_known_is_served_and_none_is_made_up() {
    scene(Family::V4, |lab| {
        let (it, up) = Deployment::up(lab, Begin::Open)?;
        let _origin = PatternServer::start(&it.net.prv, loopback(FAR))?;
        let resolver = Resolver::start(&it)?;
        let servers = it.lab().directory().join("resolv.conf");
        fs::write(&servers, "nameserver 127.0.0.1\noptions timeout:5\n")?;

        // A name that nobody ever knew: refused in time, whether the server says no, or nothing.
        let exposed = expose(&it, &servers)?;
        let connected = it.consumer.connect("web", NEAR)?;
        for (n, mode) in ["nothing", "failure", "silence"].iter().enumerate() {
            resolver.says(mode)?;
            let (took, moved) = open(&it, 1 + n as u64);
            say(&format!("F42, unknown and {mode}: {took:?}"));
            ensure!(moved.is_err(), "{mode}: a name was made up");
            ensure!(took < REFUSED, "{mode}: {took:?}");
        }

        // Known once, it is served whatever happens, but for a plain no.
        let steps = [
            ("good", Some(true)),
            ("thousand", Some(true)),
            ("failure", Some(true)),
            ("silence", Some(true)),
            ("loop", None),
            ("other", Some(true)),
            ("nothing", Some(false)),
        ];
        let mut others = 1_000..;
        for (n, (mode, serves)) in steps.into_iter().enumerate() {
            settle(&it, &resolver, &mut others)?;
            resolver.says(mode)?;
            let (took, moved) = open(&it, 10 + n as u64);
            let asked = resolver.asked()?;
            say(&format!(
                "F42, {mode}: {took:?}, {} questions",
                asked.lines().count()
            ));
            ensure!(!asked.is_empty(), "{mode}: the server was not asked");
            // The system takes an answer that cannot be read for a «no», and that is believed.
            ensure!(
                serves.is_none_or(|serves| moved.is_ok() == serves),
                "{mode}: {moved:?}"
            );
            ensure!(took < STALE, "{mode}: {took:?}");
            if mode == "thousand" {
                ensure!(asked.contains("tcp"), "the thousand were not fetched");
            }
        }

        storm(&it, &resolver, &mut others)?;
        for node in [&exposed, &connected, &up] {
            node.without_complaints()?;
        }
        Ok(())
    });
}

/// Many flows at once ask for one name once: for each family, and again where no answer comes.
fn storm(it: &Deployment<'_>, resolver: &Resolver, others: &mut RangeFrom<u64>) -> Result<()> {
    const FLOWS: u64 = 50;
    for (mode, first) in [("good", 100), ("silence", 200)] {
        settle(it, resolver, others)?;
        resolver.says(mode)?;
        let flows = (first..first + FLOWS)
            .map(|stream| Transfer::both_ways(stream, 1_000).start(&it.net.con, loopback(NEAR)));
        for flow in flows.collect::<Result<Vec<_>>>()? {
            flow.finish()
                .with_context(|| format!("{mode}, a flow of many"))?;
        }
        let questions = resolver.asked()?.lines().count();
        say(&format!(
            "F42, {FLOWS} flows at once, {mode}: {questions} questions"
        ));
        // Two families a question; the flows may take some seconds, with a question each.
        ensure!(
            questions <= 12,
            "{mode}: {questions} questions for {FLOWS} flows"
        );
    }
    Ok(())
}
