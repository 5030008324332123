//! Measures Sealock beside what people use today: plain loopback, `ssh -L`, stunnel on both sides, haproxy.
//!
//! All systems stay up together and take turns: each round asks every one of them for the same work, in an order that
//! shifts from round to round, so a busy machine is busy for all. What is reported are medians over the rounds, and
//! ratios. Options are pairs: `--sealock PROGRAM` and, each optional, `--handshakes PROGRAM`, `--layers PROGRAM`,
//! `--out FILE`, `--date TEXT`, `--commit TEXT`, `--rounds N`, `--mib N`, `--idle N`, `--only NAME,NAME`,
//! `--profile SECONDS`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool whose answer is its output"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "plain threads; there is no runtime whose worker could be blocked"
)]

mod load;
mod process;
mod profile;
mod report;
mod systems;

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use load::Way;
use profile::Work;
use report::{Memory, OURS, Report};
use systems::{Sealock, System, VARIANTS};

/// One kind of transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Shape {
    pub(crate) up: bool,
    pub(crate) streams: usize,
}

pub(crate) const SHAPES: [Shape; 4] = [
    Shape {
        up: false,
        streams: 1,
    },
    Shape {
        up: true,
        streams: 1,
    },
    Shape {
        up: false,
        streams: 8,
    },
    Shape {
        up: true,
        streams: 8,
    },
];

impl Shape {
    pub(crate) fn name(self) -> String {
        let way = if self.up { "up" } else { "down" };
        format!("{} × {way}", self.streams)
    }

    fn way(self) -> Way {
        if self.up { Way::Up } else { Way::Down }
    }
}

/// How many streams idle while memory is read, and then as many again.
const IDLE_STREAMS: u64 = 500;
const ECHOES: usize = 1_000;
const FIRST_BYTES: usize = 100;
const OPENERS: usize = 8;
const OPENS: usize = 400;
const HANDSHAKES: usize = 300; // by each knocker
/// Agents that make one session after the other.
const KNOCKERS: [&str; 4] = ["knocker-1", "knocker-2", "knocker-3", "knocker-4"];
/// After the last change, until memory is read: timers of closed streams have run by then.
const SETTLE: Duration = Duration::from_secs(3);

#[derive(Debug)]
struct Options(BTreeMap<String, String>);

impl Options {
    fn of_process() -> anyhow::Result<Self> {
        let mut words = std::env::args().skip(1);
        let mut options = BTreeMap::new();
        while let Some(word) = words.next() {
            let name = word
                .strip_prefix("--")
                .context("an option begins with --")?;
            let value = words
                .next()
                .with_context(|| format!("{word} wants a value"))?;
            options.insert(name.to_owned(), value);
        }
        Ok(Self(options))
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn number(&self, name: &str, otherwise: u64) -> anyhow::Result<u64> {
        self.text(name).map_or(Ok(otherwise), |text| {
            text.parse()
                .with_context(|| format!("--{name} wants a number"))
        })
    }

    /// `--rounds 0 --profile N` measures nothing else.
    fn wants_profile_alone(&self) -> bool {
        self.text("rounds") == Some("0")
    }

    fn wants(&self, system: &str) -> bool {
        self.text("only")
            .is_none_or(|only| only.split(',').any(|it| it == system))
    }
}

/// A directory for everything that the systems write; removed at the end.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing of it is of use to anybody.
        let _left = std::fs::remove_dir_all(&self.0);
    }
}

fn main() -> anyhow::Result<()> {
    let options = Options::of_process()?;
    let program = options.text("sealock").context("--sealock is missing")?;
    let scratch = Scratch(std::env::temp_dir().join(format!("sl-bench-{}", std::process::id())));
    std::fs::create_dir(&scratch.0)?;
    let dir = &scratch.0;
    let origin = load::serve()?;

    let mut systems = Vec::new();
    if options.wants("loopback") {
        systems.push(systems::loopback(origin)?);
    }
    if options.wants("haproxy") {
        systems.push(systems::haproxy(origin, dir)?);
    }
    if options.wants("stunnel") {
        systems.push(systems::stunnel(origin, dir)?);
    }
    if options.wants("ssh") {
        systems.push(systems::ssh(origin, dir)?);
    }
    let mut sealock = None;
    for variant in VARIANTS.into_iter().filter(|it| options.wants(it.key)) {
        let (control, system) = Sealock::start(variant, Path::new(program), origin, dir)?;
        sealock.get_or_insert(control);
        systems.push(system);
    }
    ensure!(!systems.is_empty(), "--only names none of the systems");

    let mut report = Report::default();
    if !options.wants_profile_alone() {
        measure(&mut report, &systems, &options)?;
    }
    let seconds = options.number("profile", 0)?;
    let ours = systems.iter().find(|it| it.name.starts_with(OURS));
    if let Some(system) = ours.or_else(|| systems.last()).filter(|_| seconds > 0) {
        for work in [Work::Bytes, Work::Opens] {
            eprintln!("bench: profile of {}, {}", system.name, work.unit());
            let profile = profile::take(system, work, seconds, dir)?;
            report.profiles.push(profile);
        }
    }
    let mut outcome = Ok(());
    if let (Some(sealock), Some(client)) = (&sealock, options.text("handshakes")) {
        // What was measured before is shown also when this fails.
        for who in KNOCKERS {
            sealock.join(who)?;
        }
        for knockers in [1, KNOCKERS.len()] {
            eprintln!("bench: handshakes of {knockers} at once");
            // What was measured before is shown also when this fails.
            match handshakes(sealock, client, knockers) {
                Ok(rate) => report.handshakes.push((knockers, rate)),
                Err(error) => outcome = Err(error),
            }
        }
    }
    if let Some(program) = options.text("layers") {
        eprintln!("bench: the resumable layer");
        match layers(program) {
            Ok(table) => report.layers = table,
            Err(error) => outcome = Err(error),
        }
    }
    let text = report.markdown(&options.0);
    println!("{text}");
    if let Some(path) = options.text("out") {
        std::fs::write(path, text)?;
        eprintln!("bench: written to {path}");
    }
    outcome
}

fn measure(report: &mut Report, systems: &[System], options: &Options) -> anyhow::Result<()> {
    // Memory first: afterwards the allocators hold what the transfers needed.
    report.idle_streams = usize::try_from(options.number("idle", IDLE_STREAMS)?)?;
    for system in systems.iter().filter(|system| !system.parts().is_empty()) {
        eprintln!("bench: memory of {}", system.name);
        let memory = memory(system, report.idle_streams).with_context(|| system.name.to_owned())?;
        report.memory.insert(system.name, memory);
    }
    let rounds = options.number("rounds", 5)?;
    let bytes = options.number("mib", 256)? << 20;
    for round in 0..rounds {
        for turn in 0..systems.len() {
            let system = &systems[(turn + usize::try_from(round)?) % systems.len()];
            eprintln!("bench: round {} of {rounds}, {}", round + 1, system.name);
            round_of(report, system, bytes).with_context(|| system.name.to_owned())?;
        }
    }
    Ok(())
}

fn round_of(report: &mut Report, system: &System, bytes: u64) -> anyhow::Result<()> {
    let entry = system.entry;
    let figures = report.systems.entry(system.name).or_default();
    for shape in SHAPES {
        let before: Vec<f64> = costs(system);
        let took = load::transfer(entry, shape.way(), shape.streams, bytes)?;
        let gigabytes = bytes as f64 / 1e9;
        let figure = figures.transfers.entry(shape).or_default();
        figure.rates.push(bytes as f64 / 1e6 / took.as_secs_f64());
        let mut sum = 0.0;
        for ((part, after), before) in system.parts().iter().zip(costs(system)).zip(before) {
            let cost = (after - before) / gigabytes;
            figure.parts.entry(part.name).or_default().push(cost);
            sum += cost;
        }
        figure.cpu.push(sum);
    }
    figures.echo.add(load::echo(entry, ECHOES)?);
    let mut times = Vec::with_capacity(FIRST_BYTES);
    for _ in 0..FIRST_BYTES {
        times.push(load::first_byte(entry)?.0);
    }
    figures.first_byte.add(times);
    let before = system.cpu_seconds();
    figures.opens.push(load::opens(entry, OPENERS, OPENS)?);
    let cost = (system.cpu_seconds() - before) / OPENS as f64;
    figures.cpu_per_open.push(cost * 1e3);
    Ok(())
}

fn costs(system: &System) -> Vec<f64> {
    let parts = system.parts().iter();
    parts.map(|part| part.cost().cpu_seconds).collect()
}

fn memory(system: &System, count: usize) -> anyhow::Result<Vec<Memory>> {
    let read = || {
        thread::sleep(SETTLE);
        let parts = system.parts().iter();
        parts.map(|part| part.cost().rss_kib).collect::<Vec<_>>()
    };
    let idle = read();
    let streams = idle_streams(system, count)?;
    let busy = read();
    let more = idle_streams(system, count)?;
    let busier = read();
    drop((streams, more));
    thread::sleep(SETTLE);
    let parts = system.parts().iter().zip(idle).zip(busy).zip(busier);
    let memory = parts.map(|(((part, idle), with_some), with_double)| Memory {
        part: part.name,
        idle,
        with_some,
        with_double,
    });
    Ok(memory.collect())
}

fn idle_streams(system: &System, count: usize) -> anyhow::Result<Vec<TcpStream>> {
    let open = |index| {
        let opened = load::first_byte(system.entry);
        let (_, stream) = opened.with_context(|| format!("idle stream {index}"))?;
        Ok(stream)
    };
    (0..count).map(open).collect()
}

/// The table of what the resumable layer costs.
fn layers(program: &str) -> anyhow::Result<String> {
    let output = Command::new(program).output();
    let output = output.context("starting the measurement of the layers")?;
    if !output.status.success() {
        bail!("layers: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Sessions a second of identities that no agent uses meanwhile: median of three runs.
fn handshakes(sealock: &Sealock, client: &str, knockers: usize) -> anyhow::Result<f64> {
    let knockers = &KNOCKERS[..knockers];
    let mut rates = Vec::new();
    for _ in 0..3 {
        let output = Command::new(client)
            .args([sealock.relay.to_string(), HANDSHAKES.to_string()])
            .args(knockers.iter().map(|who| sealock.state(who)))
            .output()
            .context("starting the client of the handshakes")?;
        if !output.status.success() {
            bail!("handshakes: {}", String::from_utf8_lossy(&output.stderr));
        }
        rates.push(String::from_utf8_lossy(&output.stdout).trim().parse()?);
    }
    Ok(report::median(&rates))
}
