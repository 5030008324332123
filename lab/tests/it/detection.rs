//! How soon those who are left notice what died, hung, moved or fell silent; and that they notice nothing else.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{
    Begin, Deployment, Family, Namespace, Node, Spec,
    deployment::{PATIENCE, RELAY_PORT, loopback},
    faults::Traffic,
    pattern::{Pattern, Way},
    say, scene,
    traffic::{PatternServer, Running, StallRule, Transfer},
    wait,
};

use crate::process_faults::{live, reset, works};

const KIB: u64 = 1 << 10;
const SOON: Duration = Duration::from_secs(20);
/// The application beside an agent that is killed sees it from its own kernel.
const OWN_RESET: Duration = Duration::from_secs(1);
/// A second of silence, what it takes to be asked, and the machine.
const PEER_RESET: Duration = Duration::from_secs(2);
/// Two seconds of silence, and the machine.
const LEFT: Duration = Duration::from_secs(4);

/// A provider and a consumer with their agents.
pub(crate) struct Pair {
    origin: PatternServer,
    exposed: Node,
    connected: Node,
}

impl Pair {
    pub(crate) fn start(it: &Deployment<'_>) -> Result<Self> {
        Self::start_with(it, StallRule::default())
    }

    /// The origin judges stalls by this rule.
    fn start_with(it: &Deployment<'_>, rule: StallRule) -> Result<Self> {
        Ok(Self {
            origin: PatternServer::start_with(&it.net.prv, loopback(7000), rule)?,
            exposed: expose(it)?,
            connected: connect(it)?,
        })
    }
}

/// Agents that tell of their sessions.
fn expose(it: &Deployment<'_>) -> Result<Node> {
    let spec = it
        .provider
        .spec("expose", ["expose", "7000", "--as", "web"])?;
    talking(it, &it.net.prv, spec, "exposed `")
}

fn connect(it: &Deployment<'_>) -> Result<Node> {
    let arguments = ["connect", "web", "--listen", "127.0.0.1:8080"];
    let spec = it.consumer.spec("connect", arguments)?;
    talking(it, &it.net.con, spec, "listening on")
}

fn talking(it: &Deployment<'_>, at: &Namespace, spec: Spec, ready: &str) -> Result<Node> {
    let mut node = it.lab().start(at, spec.env("RUST_LOG", "info"))?;
    node.wait_for_line(ready, PATIENCE)?;
    Ok(node)
}

/// How many lines of a program's log say this.
fn said(node: &Node, what: &str) -> usize {
    node.stderr().matches(what).count()
}

fn wait_said(node: &Node, what: &str, times: usize, within: Duration) -> Result<Duration> {
    let since = Instant::now();
    wait::until(&format!("`{what}` {times} times"), within, || {
        Ok((said(node, what) >= times).then_some(()))
    })?;
    Ok(since.elapsed())
}

/// A transfer of some seconds.
fn paced(it: &Deployment<'_>, stream: u64, seconds: u64) -> Result<Running> {
    patient(it, stream, seconds, StallRule::default())
}

/// The same, whose client judges stalls by this rule.
fn patient(it: &Deployment<'_>, stream: u64, seconds: u64, rule: StallRule) -> Result<Running> {
    let rate = 128 * KIB;
    let running = Transfer::both_ways(stream, seconds * rate)
        .paced(rate)
        .stalls_by(rule)
        .start(&it.net.con, loopback(8080))?;
    running.wait_for(KIB, SOON)?;
    Ok(running)
}

/// A stream that met a fault goes on to its end, and every byte of both directions is right.
fn whole(pair: &Pair, stream: u64, running: Running, what: &str) -> Result<()> {
    let down = running
        .finish()
        .with_context(|| format!("{what}: the client"))?;
    let up = pair.origin.report(stream, SOON);
    let up = up.with_context(|| format!("{what}: the origin"))?;
    for (got, way) in [(&down, Way::Down), (&up, Way::Up)] {
        let wanted = Pattern::new(stream, way).sha256(got.bytes);
        ensure!(got.sha256 == wanted, "{what}: {way:?} differs");
    }
    let gap = down.longest_gap;
    say(&format!("{what}: exact, longest gap {gap:?}"));
    Ok(())
}

/// F07: kills the provider's agent with so many answers under way; says how late the last client knew.
pub(crate) fn kill_provider(
    it: &Deployment<'_>,
    pair: &mut Pair,
    first: u64,
    streams: u64,
) -> Result<Duration> {
    let running: Vec<Running> = (first..first + streams)
        .map(|stream| live(it, stream))
        .collect::<Result<_>>()?;
    pair.exposed.kill()?;
    let since = Instant::now();
    let mut latest = Duration::ZERO;
    for running in running {
        latest = latest.max(reset(running, since, "F07, provider killed")?);
    }
    ensure!(latest <= PEER_RESET, "{latest:?}");
    pair.exposed = expose(it)?;
    works(it, first + 500_000, "a provider started again serves")?;
    Ok(latest)
}

/// F05: kills the consumer's agent with so many streams under way; says how late the last application knew.
pub(crate) fn kill_consumer(
    it: &Deployment<'_>,
    pair: &mut Pair,
    first: u64,
    streams: u64,
) -> Result<Duration> {
    let running: Vec<Running> = (first..first + streams)
        .map(|stream| live(it, stream))
        .collect::<Result<_>>()?;
    pair.connected.kill()?;
    let since = Instant::now();
    let mut latest = Duration::ZERO;
    for running in running {
        latest = latest.max(reset(running, since, "F05, consumer killed")?);
    }
    ensure!(latest <= OWN_RESET, "{latest:?}");
    pair.connected = connect(it)?;
    Ok(latest)
}

#[test]
fn agents_that_are_killed_reset_all_they_carried_within_their_bars() {
    scene(Family::V4, |lab| {
        let (it, up) = Deployment::up(lab, Begin::Open)?;
        let it = it.over_quic();
        let mut pair = Pair::start(&it)?;
        for round in 0..4 {
            let after = kill_provider(&it, &mut pair, 1_000 + 10 * round, 5)?;
            say(&format!(
                "F07, round {round}: the last of 5 after {after:?}"
            ));
        }
        for round in 0..2 {
            let after = kill_consumer(&it, &mut pair, 2_000 + 10 * round, 5)?;
            say(&format!(
                "F05, round {round}: the last of 5 after {after:?}"
            ));
        }
        up.without_complaints()
    });
}

/// F16: whichever direction it is that is lost, the writes of the other end still succeed.
#[test]
fn a_path_that_carries_one_way_only_is_left_within_four_seconds() {
    scene(Family::V4, |lab| {
        let (it, _up) = Deployment::up(lab, Begin::Open)?;
        let pair = Pair::start(&it)?;
        let (relay, provider) = (it.relay_ip(), it.net.ix.v4(22));
        for (turn, from, to) in [(1, provider, relay), (2, relay, provider)] {
            let running = paced(&it, turn, 6)?;
            let before = said(&pair.exposed, "no session to the relay");
            let fault = it.net.ix.lose(Traffic::any().from(from).to(to).udp())?;
            let after = wait_said(&pair.exposed, "no session to the relay", before + 1, SOON)?;
            say(&format!("F16, {from} to {to} lost: left after {after:?}"));
            ensure!(after <= LEFT, "{after:?}");
            fault.heal();
            whole(&pair, turn, running, "F16")?;
            works(&it, 100 * turn, "opens after the path is whole again")?;
        }
        Ok(())
    });
}

/// F04: stops the relay for so long, with a stream under way that waits for it.
pub(crate) fn stop_relay(it: &Deployment<'_>, relay: &mut Node, time: Duration) -> Result<()> {
    let rule = StallRule::silence(time + SOON);
    let pair = Pair::start_with(it, rule)?;
    let running = patient(it, 1, 4, rule)?;
    let before = said(&pair.exposed, "no session to the relay");
    let ended = said(relay, "session ended");
    relay.freeze()?;
    let since = Instant::now();
    let after = wait_said(&pair.exposed, "no session to the relay", before + 1, SOON)?;
    say(&format!("F04: the stopped relay was left after {after:?}"));
    ensure!(after <= LEFT, "{after:?}");
    wait::pause(time.saturating_sub(since.elapsed()));
    relay.thaw()?;
    let after = wait_said(relay, "session ended", ended + 2, SOON)?;
    say(&format!(
        "F04: it ended what it had been left with after {after:?}"
    ));
    // A stream that was taken elsewhere gets no bytes a second time from what the relay still held.
    whole(&pair, 1, running, "F04")?;
    let after = works(it, 100, "opens through the relay that goes on")?;
    ensure!(after <= Duration::from_secs(12), "{after:?}");
    Ok(())
}

#[test]
fn a_relay_that_is_stopped_is_left_and_its_old_sessions_are_over_when_it_goes_on() {
    scene(Family::V4, |lab| {
        let (it, mut roles) = Deployment::split(lab)?;
        stop_relay(&it, &mut roles.relay, Duration::from_secs(5))
    });
}

/// Keeps the machine's processors busy until dropped.
pub(crate) struct Burner(Arc<AtomicBool>);

impl Burner {
    pub(crate) fn start() -> Self {
        let burns = Arc::new(AtomicBool::new(true));
        for _ in 0..2 {
            let burns = Arc::clone(&burns);
            thread::spawn(move || {
                while burns.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Self(burns)
    }
}

impl Drop for Burner {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

#[test]
fn processes_that_are_starved_neither_die_for_others_nor_take_them_for_dead() {
    starve(Cores::All);
}

/// Where the processes of a scene may run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cores {
    All,
    /// All of them on one, beside what burns it.
    One,
}

/// F36: nobody is taken for dead who only lacks processor time, and nobody who does takes others for dead.
pub(crate) fn starve(cores: Cores) {
    scene(Family::V4, |lab| {
        let (it, mut up) = Deployment::up(lab, Begin::Open)?;
        let mut pair = Pair::start(&it)?;
        let running = paced(&it, 1, 16)?;
        let sessions = said(&up, "session up");
        if cores == Cores::One {
            for node in [&up, &pair.exposed, &pair.connected] {
                let pin = ["-acp", "0", &node.pid().to_string()];
                let spec = Spec::new("taskset", "taskset").args(pin);
                it.lab().run(&it.net.rel1, spec)?.success()?;
            }
        }
        let burner = Burner::start();
        let pulse = Duration::from_millis(200);
        let mut pulses = 0;
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(12) {
            for node in [&mut up, &mut pair.exposed, &mut pair.connected] {
                node.freeze()?;
                wait::pause(pulse);
                node.thaw()?;
                pulses += 1;
            }
        }
        drop(burner);
        let got = running.finish().context("the stream under way")?;
        say(&format!(
            "F36: {pulses} pulses, longest gap {:?}",
            got.longest_gap
        ));
        for node in [&up, &pair.exposed, &pair.connected] {
            ensure!(said(node, "given up") == 0, "a false verdict");
        }
        ensure!(
            said(&up, "session up") == sessions,
            "a session was made anew"
        );
        Ok(())
    });
}

/// A relay that was killed is back at its address, and tells its agents so by the keys that it kept.
#[test]
fn sessions_are_back_within_a_second_of_a_killed_relays_return() {
    scene(Family::V4, |lab| {
        let (it, mut roles) = Deployment::split(lab)?;
        let pair = Pair::start(&it)?;
        for turn in 0..3 {
            let running = paced(&it, 1 + turn, 4)?;
            let before = said(&pair.exposed, "session up");
            roles.relay.kill()?;
            let killed = Instant::now();
            roles.relay = it.start_relay(&[])?;
            let ready = Instant::now();
            wait_said(&pair.exposed, "session up", before + 1, SOON)?;
            wait_said(&roles.relay, "session up", 2, SOON)?;
            let back = ready.elapsed();
            let down = ready - killed;
            say(&format!(
                "relay killed for {down:?}: both sessions are back {back:?} after its return"
            ));
            ensure!(back <= Duration::from_secs(1), "{back:?}");
            whole(&pair, 1 + turn, running, "the relay killed")?;
            works(&it, 100 * (turn + 1), "opens after it")?;
        }
        Ok(())
    });
}

/// The UDP port that an agent dials out from.
fn dials_from(it: &Deployment<'_>, machine: &Namespace) -> Result<u16> {
    let listed = it
        .lab()
        .run(machine, Spec::new("ss", "ss").args(["-Hnu"]))?;
    let listed = listed.success()?;
    let relay = format!("{}:{RELAY_PORT}", it.relay_ip());
    let line = listed.lines().find(|line| line.contains(&relay));
    let line = line.with_context(|| format!("no socket to {relay} in `{listed}`"))?;
    // Without `-l` all are connected, so there is no column of states.
    let local = line.split_whitespace().nth(2).context("a local address")?;
    let (_, port) = local.rsplit_once(':').context("a port")?;
    Ok(port.parse()?)
}

/// An ICMP message that claims: nobody listens at `to`, where you have sent something from `from`.
fn forged(from: SocketAddrV4, to: SocketAddrV4) -> Vec<u8> {
    let mut message = vec![3, 3, 0, 0, 0, 0, 0, 0]; // RFC 792: destination unreachable, port unreachable
    let mut inner = [0; 28];
    inner[0] = 0x45;
    inner[2..4].copy_from_slice(&100_u16.to_be_bytes());
    inner[8] = 64;
    inner[9] = 17;
    inner[12..16].copy_from_slice(&from.ip().octets());
    inner[16..20].copy_from_slice(&to.ip().octets());
    let sum = checksum(&inner[..20]);
    inner[10..12].copy_from_slice(&sum);
    inner[20..22].copy_from_slice(&from.port().to_be_bytes());
    inner[22..24].copy_from_slice(&to.port().to_be_bytes());
    inner[24..26].copy_from_slice(&80_u16.to_be_bytes());
    message.extend_from_slice(&inner);
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum);
    message
}

fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|pair| {
        u32::from(u16::from_be_bytes([
            pair[0],
            pair.get(1).copied().unwrap_or(0),
        ]))
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(!sum & 0xffff).unwrap_or(0).to_be_bytes()
}

fn v4(address: IpAddr) -> Result<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(_) => anyhow::bail!("an address of IPv4"),
    }
}

/// Sends forged messages to `victim` from a stranger's machine, some milliseconds apart.
fn forge(stranger: &Namespace, victim: Ipv4Addr, message: Vec<u8>, times: usize) -> Result<()> {
    use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket};
    let sent = stranger.enter(move || -> Result<()> {
        let raw = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP))?;
        let to = SocketAddr::from((victim, 0));
        for _ in 0..times {
            sendto(&raw, &message, SendFlags::empty(), &to)?;
            wait::pause(Duration::from_millis(5));
        }
        Ok(())
    });
    sent?
}

/// How many messages of that kind a machine's kernel has taken in.
fn unreachables(machine: &Namespace) -> Result<u64> {
    let text = machine.enter(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))??;
    let mut lines = text.lines().filter(|line| line.starts_with("Icmp:"));
    let names = lines.next().context("names")?;
    let values = lines.next().context("values")?;
    let at = names
        .split(' ')
        .position(|name| name == "InDestUnreachs")
        .context("a counter")?;
    Ok(values.split(' ').nth(at).context("a value")?.parse()?)
}

/// F20: anybody can claim that a peer's port is closed; it goes on answering, and so nothing happens.
#[test]
fn forged_claims_that_nobody_listens_have_no_effect() {
    scene(Family::V4, |lab| {
        let (it, up) = Deployment::up(lab, Begin::Open)?;
        let pair = Pair::start(&it)?;
        let relay = SocketAddrV4::new(v4(it.relay_ip())?, RELAY_PORT);
        // The translator keeps the port that it translates, where that is free.
        let port = dials_from(&it, &it.net.prv)?;
        let agent = SocketAddrV4::new(v4(it.net.ix.v4(22))?, port);
        let running = paced(&it, 1, 8)?;
        let sessions = said(&up, "session up");
        let before = [unreachables(&it.net.rel1)?, unreachables(&it.net.prv)?];
        for _ in 0..5 {
            forge(&it.net.rel2, *relay.ip(), forged(relay, agent), 100)?;
            forge(&it.net.rel2, *agent.ip(), forged(agent, relay), 100)?;
        }
        let after = [unreachables(&it.net.rel1)?, unreachables(&it.net.prv)?];
        say(&format!(
            "F20: taken in at relay and agent: {before:?}, then {after:?}"
        ));
        for (before, after) in before.iter().zip(after) {
            ensure!(after - before >= 400, "the forgeries did not arrive");
        }
        let got = running.finish().context("the stream under way")?;
        say(&format!("F20: longest gap {:?}", got.longest_gap));
        ensure!(
            said(&up, "session up") == sessions,
            "a session was made anew"
        );
        for node in [&up, &pair.exposed, &pair.connected] {
            ensure!(said(node, "given up") == 0, "a forgery was believed");
        }
        Ok(())
    });
}

/// F22: an agent whose machine gets another address keeps its session when it is quiet, and is back soon when it is not.
#[test]
fn an_agent_whose_address_changes_is_there_again_at_once() {
    scene(Family::V4, |lab| {
        let (it, up) = Deployment::up(lab, Begin::Open)?;
        let pair = Pair::start(&it)?;
        works(&it, 1, "opens before")?;
        let inside = &it.net.nat2.as_ref().context("nat2")?.inside;
        let sessions = said(&up, "session up");
        change_address(&it.net.prv, inside.v4(41), inside.v4(49))?;
        wait_said(&pair.exposed, "the connection moves", 1, SOON)?;
        works(&it, 100, "F22: opens after a quiet agent's move")?;
        ensure!(
            said(&up, "session up") == sessions,
            "a session was made anew"
        );

        let running = paced(&it, 200, 6)?;
        change_address(&it.net.prv, inside.v4(49), inside.v4(50))?;
        let since = Instant::now();
        let moved = || said(&pair.exposed, "the connection moves") == 2;
        wait::until("the move", SOON, || Ok(moved().then_some(())))?;
        works(&it, 300, "F22: opens after a busy agent's move")?;
        let after = since.elapsed();
        ensure!(after <= LEFT, "{after:?}");
        whole(&pair, 200, running, "F22")
    });
}

fn change_address(machine: &Namespace, old: IpAddr, new: IpAddr) -> Result<()> {
    let all = machine.ip(&["-o", "-4", "addr", "show"])?;
    let line = all.lines().find(|line| line.contains(&format!("{old}/")));
    let line = line.with_context(|| format!("{old} is not in {all}"))?;
    let device = line.split_whitespace().nth(1).context("a device")?;
    let held = line.split_whitespace().nth(3).context("an address")?;
    let (_, length) = held.split_once('/').context("a length")?;
    let route = machine.ip(&["-4", "route", "show", "default"])?;
    let gateway = route.split_whitespace().nth(2).context("a gateway")?;
    machine.ip(&["addr", "del", held, "dev", device])?;
    machine.ip(&["addr", "add", &format!("{new}/{length}"), "dev", device])?;
    machine.ip(&["route", "add", "default", "via", gateway])?;
    Ok(())
}
