//! F31, F32, F37 and F38: what runs out, runs out for what is new; what lives goes on, and all is well again afterwards.

use std::{
    fs,
    io::Read as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{
    Begin, Deployment, Family, Machine, Node, Spec,
    deployment::{SmallDisk, loopback},
    say, scene,
    traffic::{PatternServer, Transfer},
    wait,
};

use crate::{
    load::{Carrying, NEAR},
    process_faults::{small, works},
};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(20);

/// Sets how many files a program may open from here on.
fn limit_files(it: &Deployment<'_>, node: &Node, files: usize) -> Result<()> {
    let spec = Spec::new("prlimit", "prlimit").args([
        format!("--pid={}", node.pid()),
        // The soft limit alone, so that it can be raised again.
        format!("--nofile={files}:"),
    ]);
    it.lab().run(&it.net.rel1, spec)?.success().map(drop)
}

/// F31.
#[test]
fn a_relay_without_free_files_carries_on_and_recovers() {
    scene(Family::V4, |lab| {
        let (it, roles) = Deployment::split(lab)?;
        let _origin = PatternServer::start(&it.net.prv, loopback(7000))?;
        let _exposed = it.provider.expose("7000", "web")?;
        let _connected = it.consumer.connect("web", 8080)?;
        let (first, second) = (it.token()?, it.token()?);
        let running = Transfer::both_ways(1, 8 * MIB)
            .paced(MIB)
            .start(&it.net.con, loopback(8080))?;
        running.wait_for(10_000, SOON)?;

        // Whatever it has open stays open; a new file would need a number that it may not have.
        limit_files(&it, &roles.relay, 3)?;
        let used = roles.relay.cpu_time()?;
        let since = Instant::now();
        small(&it, 2).context("an open needs no file of the relay")?;
        // Joining does: the relay dials the controller for it.
        let newcomer = Machine::new(it.lab(), &it.net.org);
        let join = newcomer.run("join", ["join", &first, "--name", "late"])?;
        say(&format!(
            "a join without files: {} after {:?}: {}",
            join.status,
            since.elapsed(),
            join.stderr
        ));
        ensure!(!join.status.success(), "it joined without a file");
        wait::pause(Duration::from_secs(3));
        let share = (roles.relay.cpu_time()? - used).as_secs_f64() / since.elapsed().as_secs_f64();
        say(&format!(
            "the relay used {:.0} % of a core meanwhile",
            share * 100.0
        ));
        ensure!(share < 0.5, "it spins: {share}");

        limit_files(&it, &roles.relay, 1024)?;
        let since = Instant::now();
        newcomer
            .join(&second, "late2")
            .context("after the limit went")?;
        say(&format!("a join after it: {:?}", since.elapsed()));
        running
            .finish()
            .context("the stream that lived through it")?;
        Ok(())
    });
}

/// F37 on an agent.
#[test]
fn an_agent_whose_disk_is_full_goes_on_and_keeps_up_with_policy() {
    scene(Family::V4, |lab| {
        let disk = SmallDisk::mount(&lab.directory().join("con-state"), 512)?;
        let outcome = full_disk(lab, &disk);
        // Unmounted before the topology removes its directory.
        drop(disk);
        outcome
    });
}

fn full_disk(lab: &mut lab::Topology, disk: &SmallDisk) -> Result<()> {
    let (it, _up) = Deployment::up(lab, Begin::Open)?;
    let _origin = PatternServer::start(&it.net.prv, loopback(7000))?;
    let _exposed = it.provider.expose("7000", "web")?;
    let connected = it.consumer.connect("web", 8080)?;
    let running = Transfer::both_ways(1, 6 * MIB)
        .paced(MIB)
        .start(&it.net.con, loopback(8080))?;
    running.wait_for(10_000, SOON)?;
    let filler = disk.fill()?;

    small(&it, 2).context("an open with a full disk")?;
    // The view that says so cannot be kept, and counts all the same.
    it.admin.ask("policy deny cons web --id no")?;
    let since = Instant::now();
    ensure!(running.finish().is_err(), "the deny did not cut");
    say(&format!(
        "with a full disk, a deny cuts after {:?}",
        since.elapsed()
    ));
    ensure!(small(&it, 3).is_err());
    it.admin.ask("policy remove no")?;
    works(&it, 10, "opens again after the deny went")?;
    let log = connected.stderr();
    ensure!(log.contains("could not be kept"), "nobody was told: {log}");

    fs::remove_file(filler)?;
    it.admin.ask("policy deny nobody web")?;
    let view = it.consumer.state().join("agent/views/default.json");
    wait::until("the view to be kept again", SOON, || {
        let kept = fs::read_to_string(&view).unwrap_or_default();
        Ok(kept.contains("nobody").then_some(()))
    })
}

/// F37 on the relay.
#[test]
fn a_relay_whose_disk_is_full_goes_on_and_keeps_up_with_policy() {
    scene(Family::V4, |lab| {
        let disk = SmallDisk::mount(&lab.directory().join("rel1-state"), 512)?;
        let outcome = full_relay(lab, &disk);
        drop(disk);
        outcome
    });
}

fn full_relay(lab: &mut lab::Topology, disk: &SmallDisk) -> Result<()> {
    let (it, roles) = Deployment::split(lab)?;
    let _origin = PatternServer::start(&it.net.prv, loopback(7000))?;
    let _exposed = it.provider.expose("7000", "web")?;
    let _connected = it.consumer.connect("web", 8080)?;
    works(&it, 1, "opens before")?;
    let running = Transfer::both_ways(10, 6 * MIB)
        .paced(MIB)
        .start(&it.net.con, loopback(8080))?;
    running.wait_for(10_000, SOON)?;
    let filler = disk.fill()?;

    small(&it, 20).context("an open with the relay's disk full")?;
    it.admin.ask("policy deny cons web --id no")?;
    let since = Instant::now();
    ensure!(running.finish().is_err(), "the deny did not cut");
    say(&format!(
        "with a full disk at the relay, a deny cuts after {:?}",
        since.elapsed()
    ));
    wait::until("the relay to tell that it keeps nothing", SOON, || {
        Ok(roles
            .relay
            .stderr()
            .contains("could not be kept")
            .then_some(()))
    })?;
    it.admin.ask("policy remove no")?;
    works(&it, 30, "opens again after the deny went")?;

    fs::remove_file(filler)?;
    it.admin.ask("policy deny nobody web")?;
    let view = it.public.state().join("relay/views/default.json");
    wait::until("the view to be kept again", SOON, || {
        let kept = fs::read_to_string(&view).unwrap_or_default();
        Ok(kept.contains("nobody").then_some(()))
    })
}

/// Another program that holds the database for so long, as a backup does.
const HOLDER: &str = "
import sqlite3, sys, time
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute('PRAGMA busy_timeout = 10000')
database.execute('BEGIN IMMEDIATE')
print('held', flush=True)
time.sleep(float(sys.argv[2]))
database.execute('ROLLBACK')
print('let go', flush=True)
time.sleep(3600)
";
const HELD: Duration = Duration::from_secs(30);

/// F38: what the controller cannot write it refuses by name; everybody else goes on.
#[test]
fn a_database_that_is_locked_for_thirty_seconds_stops_changes_and_nothing_else() {
    scene(Family::V4, |lab| {
        let (it, roles) = Deployment::split(lab)?;
        let _origin = PatternServer::start(&it.net.prv, loopback(7000))?;
        let _exposed = it.provider.expose("7000", "web")?;
        let _connected = it.consumer.connect("web", 8080)?;
        works(&it, 1, "opens before")?;
        let running = Transfer::both_ways(10, 40 * MIB)
            .paced(MIB)
            .start(&it.net.con, loopback(8080))?;
        running.wait_for(10_000, SOON)?;

        let database = it.admin.state().join("controller/db.sqlite");
        let database = database.to_str().context("a path in UTF-8")?;
        let seconds = HELD.as_secs().to_string();
        let spec = Spec::new("holder", "/usr/bin/python3");
        let spec = spec.args(["-c", HOLDER, database, &seconds]);
        let mut holder = it.lab().start(it.admin.namespace(), spec)?;
        holder.wait_for_line("held", SOON)?;
        let since = Instant::now();
        let mut opens = 0;
        while since.elapsed() < HELD - SOON / 2 {
            let asked = Instant::now();
            let refused = it.admin.run("deny", ["policy", "deny", "cons", "web"])?;
            ensure!(!refused.status.success(), "a locked database took a rule");
            ensure!(
                refused.stderr.contains("hint: try again"),
                "{}",
                refused.stderr
            );
            ensure!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
            it.admin.ask("policy list").context("reading")?;
            opens += 1;
            small(&it, 100 + opens).context("an open while the database is locked")?;
        }
        holder.wait_for_line("let go", HELD)?;
        say(&format!("{opens} opens while the database was locked"));
        let since = Instant::now();
        it.admin.ask("policy deny nobody web")?;
        say(&format!("a rule is taken {:?} after it", since.elapsed()));
        running
            .finish()
            .context("the stream that lived through it")?;
        roles.relay.without_complaints()?;
        small(&it, 900).context("an open at the end")
    });
}

/// F37 on the controller: it refuses to write and says so, and stays readable.
#[test]
fn a_controller_whose_disk_is_full_refuses_changes_and_carries_on() {
    scene(Family::V4, |lab| {
        let disk = SmallDisk::mount(&lab.directory().join("ctl-state"), 4096)?;
        let outcome = full_controller(lab, &disk);
        drop(disk);
        outcome
    });
}

fn full_controller(lab: &mut lab::Topology, disk: &SmallDisk) -> Result<()> {
    let (it, mut roles) = Deployment::split(lab)?;
    let _origin = PatternServer::start(&it.net.prv, loopback(7000))?;
    let _exposed = it.provider.expose("7000", "web")?;
    let _connected = it.consumer.connect("web", 8080)?;
    works(&it, 1, "opens before")?;
    let filler = disk.fill()?;
    let mut refused = None;
    for _ in 0..50 {
        // What the database has in reserve goes first.
        let made = it.admin.run("token", ["token", "create"])?;
        if !made.status.success() {
            refused = Some(made.stderr);
            break;
        }
    }
    let refused = refused.context("tokens are made without a place to keep them")?;
    say(&format!("with a full disk: {refused}"));
    ensure!(refused.contains("error:"), "{refused}");
    it.admin.ask("policy list").context("reading")?;
    small(&it, 50).context("an open with the controller's disk full")?;

    fs::remove_file(filler)?;
    let since = Instant::now();
    let mut again = it.admin.run("token", ["token", "create"])?;
    if !again.status.success() {
        // A store that once could not confirm a write takes no more until it is opened anew.
        say(&format!("after the disk was freed: {}", again.stderr));
        roles.controller.terminate(SOON)?;
        roles.controller = it.start_controller()?;
        again = it.admin.run("token", ["token", "create"])?;
    }
    again.success().context("after room was made")?;
    say(&format!("tokens again after {:?}", since.elapsed()));
    small(&it, 60).context("an open at the end")
}

/// F32: readers that hardly read hold up nobody but themselves.
#[test]
fn slow_readers_cost_little_and_hold_up_nobody_else() {
    const SLOW: u64 = 50;
    scene(Family::V4, |lab| {
        let (it, up) = Deployment::up(lab, Begin::Open)?;
        let _origin = PatternServer::start(&it.net.prv, loopback(7000))?;
        let exposed = it.provider.expose("7000", "web")?;
        let connected = it.consumer.connect("web", 8080)?;
        small(&it, 1)?;
        let nodes = [
            ("relay", &up),
            ("provider", &exposed),
            ("consumer", &connected),
        ];
        let before: Vec<u64> = nodes
            .iter()
            .map(|(_, node)| node.resident_bytes())
            .collect::<Result<_>>()?;
        let mut slow = Vec::new();
        for stream in 100..100 + SLOW {
            slow.push(Transfer::both_ways(stream, 64 * MIB).open(&it.net.con, loopback(8080))?);
        }
        wait::pause(Duration::from_secs(3));
        let began = Instant::now();
        let fast = Transfer::both_ways(2, 16 * MIB).run(&it.net.con, loopback(8080))?;
        say(&format!(
            "16 MiB both ways beside {SLOW} that do not read: {:?}, longest gap {:?}",
            began.elapsed(),
            fast.longest_gap
        ));
        for ((name, node), before) in nodes.iter().zip(before) {
            let more = node.resident_bytes()?.saturating_sub(before);
            say(&format!(
                "{name}: {} KiB more for each of them",
                more / 1024 / SLOW
            ));
            // A window of the stream, 2 MiB, and half as much for all else; both directions are full.
            ensure!(more / SLOW < 3 * MIB, "{name}: {more} bytes");
        }
        drop(slow);
        for (_, node) in nodes {
            node.without_complaints()?;
        }
        small(&it, 3).context("after they went")?;
        Ok(())
    });
}

/// F32 by its numbers: a hundred readers of 1 KiB a second, and ten as fast as they can.
#[test]
fn ten_fast_readers_keep_four_fifths_of_their_rate_beside_a_hundred_slow_ones() {
    const SLOW: u64 = 100;
    const FAST: u64 = 10;
    // What the windows of all streams of an agent share, and beside them 64 KiB for each stream.
    const SHARED: u64 = 256 * MIB;
    const BESIDE: u64 = MIB / 16;
    const ROUNDS: u64 = 3;
    scene(Family::V4, |lab| {
        let (mut carrying, ()) = Carrying::start(lab, |_| Ok(()))?;
        // Before anything is measured: what a process needs only once, it has.
        fast(&carrying, 1_000, FAST)?;
        let before = residents(&carrying)?;
        // The machine has other users, whose doing only ever makes a round slower: the best one counts.
        let mut best = [0.0_f64; 2];
        for round in 0..ROUNDS {
            let first = 10_000 * (1 + round);
            best[0] = best[0].max(fast(&carrying, first, FAST)?);
            let slow = SlowReaders::start(&carrying, first + 100, SLOW)?;
            best[1] = best[1].max(fast(&carrying, first + 1_000, FAST)?);
            for ((name, after), (_, before)) in residents(&carrying)?.into_iter().zip(&before) {
                let more = after.saturating_sub(*before);
                say(&format!(
                    "F32, {name}: {} KiB more for each",
                    more / 1024 / SLOW
                ));
                ensure!(more < SHARED + BESIDE * SLOW, "{name}: {more} bytes");
            }
            slow.stop()?;
        }
        let [alone, beside] = best;
        say(&format!(
            "F32: {FAST} fast ones alone {alone:.1} MiB/s, beside {SLOW} slow ones {beside:.1} MiB/s"
        ));
        ensure!(beside >= 0.8 * alone, "{beside:.1} of {alone:.1} MiB/s");
        carrying.is_well()
    });
}

/// Moves some bytes to so many readers at once; says how many mebibytes a second came in all.
fn fast(carrying: &Carrying<'_>, first: u64, count: u64) -> Result<f64> {
    const EACH: u64 = 4 * MIB;
    let each = Transfer {
        up: 0,
        ..Transfer::both_ways(0, EACH)
    };
    let began = Instant::now();
    let load = carrying.load(first, count, each)?;
    load.finish(&carrying.carried.origin, SOON)?;
    #[expect(clippy::cast_precision_loss, reason = "a figure to look at")]
    let mib = (count * EACH) as f64 / MIB as f64;
    Ok(mib / began.elapsed().as_secs_f64())
}

fn residents(carrying: &Carrying<'_>) -> Result<[(&'static str, u64); 3]> {
    Ok([
        ("relay", carrying.up.resident_bytes()?),
        ("provider", carrying.carried.exposed.resident_bytes()?),
        ("consumer", carrying.carried.connected.resident_bytes()?),
    ])
}

/// How long a hundred readers' buffers may take to fill: some hundreds of mebibytes.
const SETTLE: Duration = Duration::from_secs(60);
/// What the relay uses in a second in which only slow readers are served.
const STILL: Duration = Duration::from_millis(100);

/// Clients that read 1 KiB a second of what comes as fast as it may.
struct SlowReaders {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl SlowReaders {
    fn start(carrying: &Carrying<'_>, first: u64, count: u64) -> Result<Self> {
        let mut streams = Vec::new();
        for stream in first..first + count {
            let transfer = Transfer {
                up: 0,
                ..Transfer::both_ways(stream, 64 * MIB)
            };
            let client = transfer.open(&carrying.it.net.con, loopback(NEAR))?;
            client.set_read_timeout(Some(SOON))?;
            streams.push(client);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut part = [0; 1024];
            while !stopped.load(Ordering::Relaxed) {
                for stream in &mut streams {
                    stream.read_exact(&mut part).context("a slow reader")?;
                }
                wait::pause(Duration::from_secs(1));
            }
            Ok(())
        });
        let slow = Self { stop, thread };
        // Until their buffers are full, the systems' as well, they are as fast as others.
        wait::until("the slow readers' buffers to be full", SETTLE, || {
            let before = carrying.up.cpu_time()?;
            wait::pause(Duration::from_secs(1));
            let used = carrying.up.cpu_time()?.saturating_sub(before);
            Ok((used < STILL).then_some(()))
        })?;
        Ok(slow)
    }

    fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().ok().context("a reader panicked")?
    }
}
