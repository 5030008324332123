//! How soon a better way is taken again, and what a stranger can do to the one that there is.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{
    Begin, Deployment, Family, Spec,
    deployment::{RELAY_PORT, loopback},
    faults::Traffic,
    say, scene,
    traffic::Transfer,
    wait,
};

use crate::ways::{consume, keep_from_relay, provide, wait_status};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(20);
/// Ends other people's TCP connections; what it does stands at its top.
const RESETTER: &str = include_str!("../resetter.py");
/// The looks are farthest apart by then: 2, 4, 8 and 16 seconds, and what each takes.
const SELDOM: Duration = Duration::from_secs(50);
/// A burst of news, a look that has just begun in vain, and the machine; without news it would be up to twenty seconds.
const NEWS: Duration = Duration::from_secs(8);
const ROUNDS: u32 = 3;

/// A network that changes is looked at at once: a new address, as after plugging in a cable or a roam.
#[test]
fn an_address_that_is_added_leads_to_the_better_way_at_once() {
    scene(Family::V4, |lab| {
        let (it, _up) = Deployment::up(lab, Begin::Open)?;
        let _provider = provide(&it)?;
        let mut took = Vec::new();
        for round in 1..=ROUNDS {
            let fault = keep_from_relay(&it, Traffic::any().udp())?;
            let _consumer = consume(&it, None)?;
            wait_status(&it, &["up over tls (TCP)"])?;
            wait::pause(SELDOM);
            fault.heal();
            let address = format!("198.51.100.{round}/32");
            it.net.con.ip(&["addr", "add", &address, "dev", "lo"])?;
            let since = Instant::now();
            wait_status(&it, &["up over quic (UDP)"])?;
            took.push(since.elapsed());
        }
        say(&format!("climbed {took:?} after the change"));
        let slowest: Option<&Duration> = took.iter().max();
        ensure!(*slowest.context("rounds")? < NEWS, "{took:?}");
        Result::Ok(())
    });
}

/// F20: whoever is not on the path knows the ports and guesses the rest, 65 536 times each way, which a translator on the
/// path may take for the truth; whoever is on it knows. The leg's connection may end, and the stream goes on over the
/// next one with every byte right.
#[test]
fn forged_resets_end_a_leg_at_most_and_no_stream() {
    scene(Family::V4, |lab| {
        let (it, _up) = Deployment::up(lab, Begin::Open)?;
        let _provider = provide(&it)?;
        let _fault = keep_from_relay(&it, Traffic::any().udp())?;
        let _consumer = consume(&it, None)?;
        wait_status(&it, &["up over tls (TCP)"])?;
        let carrying = Transfer::both_ways(1, 2 * MIB)
            .paced(256 * KIB)
            .start(&it.net.con, loopback(8080))?;
        carrying.wait_for(KIB, SOON)?;
        let status = it.consumer.ask("status")?;
        let since = session_line(&status)?.to_owned();
        let reset = |mode: &str| -> Result<String> {
            let spec = Spec::new(mode, "/usr/bin/python3")
                .args(["-c", RESETTER])
                .args([mode, &RELAY_PORT.to_string()]);
            it.lab().run(&it.net.rel1, spec)?.success()
        };
        let said = reset("guess")?;
        say(&format!("F20: {}", said.trim()));
        let status = it.consumer.ask("status")?;
        let ended = session_line(&status)? != since;
        say(&format!("F20: the guesses ended the leg: {ended}"));
        wait_status(&it, &["up over tls (TCP)"])?;
        let since = session_line(&it.consumer.ask("status")?)?.to_owned();
        let said = reset("know")?;
        say(&format!("F20: {}", said.trim()));
        let got = carrying.finish()?;
        say(&format!("F20: exact, longest gap {:?}", got.longest_gap));
        wait_status(&it, &["up over tls (TCP)"])?;
        let status = it.consumer.ask("status")?;
        ensure!(
            session_line(&status)? != since,
            "nothing was ended: {status}"
        );
        Ok(())
    });
}

/// The line of `sealock status` about the relay, without the round trip, which differs from time to time.
fn session_line(status: &str) -> Result<&str> {
    let line = status.lines().find(|line| line.contains("  relay "));
    let line = line.context("a relay")?;
    let (_, since) = line.rsplit_once("since ").context("a time")?;
    Ok(since)
}
