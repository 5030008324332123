//! F34: a fleet of agents on one relay. All of them come back soon after it was restarted, and those who come hold up
//! nobody who is there.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::ChildStdin,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{
    Deployment, Family, Namespace, Node, Spec, Topology, binary,
    deployment::{RELAY_PORT, SmallDisk, loopback},
    say, scene, wait,
};

use crate::{blindness::echo, detection::Burner};

/// What the controller of ten thousand agents keeps, many times over, in KiB.
const DATABASE: u32 = 512 << 10;
/// For each agent: a key, a certificate and two writes to the database.
const ENROLLED: Duration = Duration::from_millis(20);
/// When a crowd has failed for good.
const PATIENCE: Duration = Duration::from_secs(200);
/// What a relay may hold of memory for an agent that idles.
const PER_AGENT: u64 = 96 << 10;
/// More sessions than any crowd here, where the relay's own limit is as many as the largest.
const ROOM: &str = "20000";

/// A crowd in one process, with the words that it takes.
struct Swarm {
    node: Node,
    words: ChildStdin,
    agents: usize,
    answers: usize,
}

impl Swarm {
    /// Enrols its agents; the controller must not run meanwhile.
    fn enrol(it: &Deployment<'_>, agents: usize) -> Result<Self> {
        let relay = SocketAddr::new(it.relay_ip(), RELAY_PORT);
        // Each agent has a socket, and the system counts them.
        let spec = Spec::new("swarm", "prlimit")
            .args(["--nofile=16384"])
            .args([binary::example("swarm")?])
            .args([it.admin.state().join("controller")])
            .args([relay.to_string(), agents.to_string()])
            .open_input();
        let mut node = it.lab().start(&it.net.rel1, spec)?;
        let words = node.take_input().context("an open input")?;
        let within = ENROLLED * u32::try_from(agents)?;
        node.wait_for_line(&format!("enrolled {agents}"), within)?;
        Ok(Self {
            node,
            words,
            agents,
            answers: 0,
        })
    }

    fn say(&mut self, word: &str) -> Result<()> {
        writeln!(self.words, "{word}").context("a word to the swarm")
    }

    /// Waits until every agent has a session, or has one again.
    fn all_up(&mut self, what: &str) -> Result<Figures> {
        let line = wait::until(what, PATIENCE, || {
            ensure!(
                self.node.is_running()?,
                "the swarm has ended: {}",
                self.node.stderr()
            );
            let said = self.node.stdout();
            let mut answers = said.lines().filter(|line| line.starts_with("all up "));
            Ok(answers.nth(self.answers).map(str::to_owned))
        })?;
        self.answers += 1;
        say(&format!("F34, {} agents, {what}: {line}", self.agents));
        Figures::of(&line)
    }
}

/// What the swarm says of its agents.
struct Figures {
    last: Duration,
    dials_in_the_middle: u32,
}

impl Figures {
    fn of(line: &str) -> Result<Self> {
        Ok(Self {
            last: Duration::from_millis(figure(line, "last")?),
            dials_in_the_middle: figure(line, "dials_p50")?,
        })
    }
}

fn figure<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(
    line: &str,
    name: &str,
) -> Result<T> {
    let mut words = line.split(' ').filter_map(|word| word.split_once('='));
    let found = words.find(|(it, _)| *it == name);
    let (_, value) = found.with_context(|| format!("no {name} in `{line}`"))?;
    Ok(value.parse()?)
}

/// A byte after the other on a stream through the relay, each as soon as the one before is back.
struct Echoes {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Duration>>>,
}

/// Between two bytes: often enough to meet whatever holds the stream up, seldom enough to be no load.
const PAUSE: Duration = Duration::from_millis(5);
/// A stream that stands for so long is dead.
const DEAD: Duration = Duration::from_secs(30);

impl Echoes {
    fn start(consumer: &Namespace, port: u16) -> Result<Self> {
        let mut stream = consumer.enter(move || TcpStream::connect(loopback(port)))??;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(DEAD))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut times = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let began = Instant::now();
                stream.write_all(b"e")?;
                stream.read_exact(&mut [0]).context("an echo")?;
                times.push(began.elapsed());
                wait::pause(PAUSE);
            }
            Ok(times)
        });
        Ok(Self { stop, thread })
    }

    fn p99(self, what: &str) -> Result<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        let mut times = self.thread.join().ok().context("the client panicked")??;
        times.sort();
        let at = |hundredth: usize| times.get(times.len() * hundredth / 100).copied();
        let p99 = at(99).context("an echo")?;
        say(&format!(
            "F34, {} echoes {what}: p50 {:?}, p99 {p99:?}, most {:?}",
            times.len(),
            at(50).context("an echo")?,
            times.last().context("an echo")?
        ));
        Ok(p99)
    }
}

/// How long the stream is watched alone.
const ALONE: Duration = Duration::from_secs(5);

fn come_and_come_back(agents: usize, bar: Duration) {
    scene(Family::V4, |lab| {
        // Each enrolment is confirmed by the disk, twice; one in memory is not what is measured here.
        let disk = SmallDisk::mount(&lab.directory().join("ctl-state"), DATABASE)?;
        let outcome = judge(lab, agents, bar);
        drop(disk);
        outcome
    });
}

fn judge(lab: &mut Topology, agents: usize, bar: Duration) -> Result<()> {
    let (mut it, mut roles) = Deployment::split(lab)?;
    it.public = it
        .public
        .clone()
        .with_env("SEALOCK_RELAY__MAX_SESSIONS", ROOM);
    roles.relay.kill()?;
    roles.relay = it.start_relay(&[])?;
    let listener = it.net.prv.enter(|| TcpListener::bind(loopback(7000)))??;
    thread::spawn(move || echo(&listener));
    let _exposed = it.provider.expose("7000", "web")?;
    let _connected = it.consumer.connect("web", 8080)?;

    roles.controller.terminate(PATIENCE)?;
    let mut swarm = Swarm::enrol(&it, agents)?;
    roles.controller = it.start_controller()?;
    wait::pause(Duration::from_secs(3));

    // The crowd makes its half of each handshake on this machine too, where others would have their own.
    let burner = Burner::start();
    let echoes = Echoes::start(&it.net.con, 8080)?;
    wait::pause(ALONE);
    let alone = echoes.p99("on a busy machine")?;
    drop(burner);
    let (memory, used) = (roles.relay.resident_bytes()?, roles.relay.cpu_time()?);
    let echoes = Echoes::start(&it.net.con, 8080)?;
    swarm.say("go")?;
    swarm.all_up("all at once")?;
    let beside = echoes.p99("beside those who come")?;
    let each = roles.relay.resident_bytes()?.saturating_sub(memory) / u64::try_from(agents)?;
    say(&format!(
        "F34, {agents} agents: {} KiB of the relay for each; {:?} of processor time",
        each >> 10,
        roles.relay.cpu_time()?.saturating_sub(used)
    ));

    swarm.say("kill")?;
    roles.relay.kill()?;
    roles.relay = it.start_relay(&[])?;
    swarm.say("ready")?;
    let back = swarm.all_up("back after a restart")?;
    let load = std::fs::read_to_string("/proc/loadavg")?;
    say(&format!("F34, load average {load}"));
    ensure!(
        back.last < bar,
        "the last one is back after {:?}",
        back.last
    );
    ensure!(
        back.dials_in_the_middle <= 2,
        "{} dials",
        back.dials_in_the_middle
    );
    ensure!(each < PER_AGENT, "{each} bytes for each agent");
    say(&format!(
        "F34: p99 {:.1} times",
        beside.as_secs_f64() / alone.as_secs_f64()
    ));
    roles.relay.without_complaints()
}

#[test]
fn a_thousand_agents_are_back_within_five_seconds_of_a_restart() {
    come_and_come_back(1_000, Duration::from_secs(5));
}

#[test]
fn ten_thousand_agents_are_back_within_a_minute_of_a_restart() {
    come_and_come_back(10_000, Duration::from_secs(60));
}
