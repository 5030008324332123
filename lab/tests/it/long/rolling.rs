//! F03: relays are restarted in turn, a hundred times, while clients open, carry and close, and some streams live through
//! all of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{
    Deployment, Family, Namespace,
    deployment::{Twin, loopback},
    say, scene,
    traffic::{StallRule, Transfer},
    wait,
};

use crate::{
    links::SOON,
    load::{Carried, Load, NEAR},
};

const RESTARTS: usize = 100;
const OPENS: u64 = 10_000;
/// F03's bar for one drain.
const DRAIN: Duration = Duration::from_secs(10);
/// From one restart to the next, where the drain is not slower: agents find both relays there.
const TURN: Duration = Duration::from_secs(3);
/// Clients that open one stream after the other.
const CLIENTS: u64 = 4;
/// What lives through all of it: so many streams, so many bytes a second, for longer than the restarts take.
const LIVE: u64 = 4;
const PACE: u64 = 32 << 10;
const LIFE: u64 = 400;
/// What a stream may show of a restart; the bar of F02 for a relay that dies.
const GAP: Duration = Duration::from_secs(4);

#[test]
fn a_hundred_restarts_of_relays_in_turn_refuse_and_break_nothing() {
    scene(Family::V4, |lab| {
        let (it, mut roles) = Deployment::twin(lab)?;
        let rule = StallRule::silence(SOON);
        let mut carried = Carried::start_with(&it, rule)?;
        let each = Transfer::both_ways(0, LIFE * PACE).paced(PACE);
        let live = Load::start(&it, 1, LIVE, each.stalls_by(rule))?;
        let clients: Vec<_> = (1..=CLIENTS)
            .map(|n| Client::start(&it.net.con, n * 1_000_000))
            .collect();
        let slowest = restart_in_turn(&it, &mut roles, &clients)?;
        ensure!(live.is_under_way(), "streams ended before the last restart");
        let (mut opens, mut worst) = (0, Duration::ZERO);
        for client in clients {
            let (made, longest) = client.finish()?;
            (opens, worst) = (opens + made, worst.max(longest));
        }
        say(&format!(
            "F03: {RESTARTS} restarts, slowest drain {slowest:?}; {opens} opens, none failed, slowest {worst:?}"
        ));
        ensure!(opens >= OPENS, "only {opens} opens");
        live.finish(&carried.origin, SOON)?.judge("F03", GAP)?;
        for relay in &roles.relays {
            relay.without_complaints()?;
        }
        carried.is_well()
    });
}

/// Restarts both relays in turn, and says how long the slowest of them took to end.
fn restart_in_turn(it: &Deployment<'_>, roles: &mut Twin, clients: &[Client]) -> Result<Duration> {
    let mut slowest = Duration::ZERO;
    for n in 0..RESTARTS {
        let began = Instant::now();
        let relay = &mut roles.relays[n % 2];
        let ended = relay.terminate(2 * DRAIN)?;
        let took = began.elapsed();
        ensure!(ended.success(), "restart {n}: {ended}");
        ensure!(took <= DRAIN, "restart {n}: the drain took {took:?}");
        relay.without_complaints()?;
        slowest = slowest.max(took);
        *relay = it.start_relay_of_two(n % 2, &[])?;
        ensure!(
            clients.iter().all(Client::is_running),
            "restart {n}: a client failed"
        );
        wait::pause(TURN.saturating_sub(began.elapsed()));
    }
    Ok(slowest)
}

/// Opens, moves 10 kB both ways and closes, one after the other, until it is stopped or an open fails.
struct Client {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<(u64, Duration)>>,
}

impl Client {
    fn start(namespace: &Namespace, first: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, namespace) = (Arc::clone(&stop), namespace.clone());
        let thread = thread::spawn(move || {
            let (mut opens, mut slowest) = (0, Duration::ZERO);
            while !stopped.load(Ordering::Relaxed) {
                let began = Instant::now();
                let transfer = Transfer::both_ways(first + opens, 10_000);
                let result = transfer.run(&namespace, loopback(NEAR));
                result.with_context(|| format!("open {opens}, after {:?}", began.elapsed()))?;
                slowest = slowest.max(began.elapsed());
                opens += 1;
            }
            Ok((opens, slowest))
        });
        Self { stop, thread }
    }

    fn is_running(&self) -> bool {
        !self.thread.is_finished()
    }

    fn finish(self) -> Result<(u64, Duration)> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().ok().context("a client panicked")?
    }
}
