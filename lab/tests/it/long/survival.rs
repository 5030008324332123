//! What streams live through, in full: large transfers, long partitions, moves, and what they do not.

use std::{
    io::ErrorKind,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{
    Deployment, Family, Node,
    deployment::{RELAY_HOST, loopback},
    say, scene,
    traffic::{StallRule, Transfer, TransferError},
    wait,
};

use crate::{
    links::{MIB, SOON, nats},
    load::{Carried, Load, NEAR},
    survival::{DRAINED, KILLED, only_relay_drained},
};

/// The window within which a stream can be taken up again, and the machine's own pace.
const WINDOW: Duration = Duration::from_secs(120);
/// How long a stream may take to notice that a path is whole again: the pause between dials grows to 3 s.
const NOTICE: Duration = Duration::from_secs(8);

/// 20 × 64 MiB both ways; three times `disturb`.
fn twenty_large(
    it: &Deployment<'_>,
    mut disturb: impl FnMut() -> Result<()>,
    what: &str,
    most: Duration,
) -> Result<()> {
    let mut carried = Carried::start(it)?;
    let load = Load::start(it, 100, 20, Transfer::both_ways(0, 64 * MIB))?;
    for quarter in 1..=3 {
        load.wait_for_each(quarter * 16 * MIB, Duration::from_secs(200))?;
        disturb()?;
    }
    load.finish(&carried.origin, SOON)?.judge(what, most)?;
    carried.is_well()
}

/// F01.
#[test]
fn twenty_times_64_mib_both_ways_survive_three_deaths_of_their_only_relay() {
    scene(Family::V4, |lab| {
        let (it, mut roles) = Deployment::split(lab)?;
        let disturb = || {
            roles.relay.kill()?;
            roles.relay = it.start_relay(&[])?;
            Ok(())
        };
        twenty_large(&it, disturb, "F01, 64 MiB", KILLED)
    });
}

/// F01, drained, by its bar.
#[test]
fn no_stream_stalls_for_half_a_second_while_its_only_relay_is_restarted_in_order() {
    for _ in 0..3 {
        scene(Family::V4, |lab| only_relay_drained(lab, DRAINED));
    }
}

/// F15: the consumer's side and the relay are parted for a time within the window.
fn parted_for(seconds: u64) {
    scene(Family::V4, |lab| {
        let (it, _roles) = Deployment::split(lab)?;
        let outage = Duration::from_secs(seconds);
        let rule = StallRule::silence(outage + Duration::from_secs(30));
        let mut carried = Carried::start_with(&it, rule)?;
        let each = Transfer::both_ways(0, 2 * MIB)
            .paced(MIB / 4)
            .stalls_by(rule);
        let load = Load::start(&it, 1, 5, each)?;
        load.wait_for_each(MIB / 2, SOON)?;
        let parted = it.net.ix.part(it.net.ix.v4(21), it.net.ix.v4(RELAY_HOST))?;
        wait::pause(outage);
        parted.heal();
        load.finish(&carried.origin, SOON)?
            .judge(&format!("F15, {seconds} s"), outage + NOTICE)?;
        carried.is_well()
    });
}

#[test]
fn a_partition_of_one_second_is_outlived() {
    parted_for(1);
}

#[test]
fn a_partition_of_29_seconds_is_outlived() {
    parted_for(29);
}

#[test]
fn a_partition_of_31_seconds_is_outlived() {
    parted_for(31);
}

#[test]
fn a_partition_of_110_seconds_is_outlived() {
    parted_for(110);
}

/// The provider's line is away for half a minute and comes back with another address, behind a translator that has
/// forgotten it.
#[test]
fn a_provider_that_comes_back_from_elsewhere_goes_on_where_it_was() {
    const OUTAGE: Duration = Duration::from_secs(30);
    scene(Family::V4, |lab| {
        let (it, _roles) = Deployment::split(lab)?;
        let rule = StallRule::silence(OUTAGE * 2);
        let mut carried = Carried::start_with(&it, rule)?;
        let each = Transfer::both_ways(0, 2 * MIB)
            .paced(MIB / 4)
            .stalls_by(rule);
        let load = Load::start(&it, 1, 5, each)?;
        load.wait_for_each(MIB / 2, SOON)?;
        let [_, far] = nats(&it)?;
        let unplugged = it.net.ix.unplug(&far.namespace)?;
        wait::pause(OUTAGE);
        far.readdress(it.lab(), &it.net.ix, 22, 122)?;
        unplugged.heal();
        load.finish(&carried.origin, SOON)?
            .judge("the provider elsewhere", OUTAGE + NOTICE)?;
        carried.is_well()
    });
}

/// Past the window both ends come to the same verdict, and applications see a reset.
#[test]
fn a_partition_past_the_window_ends_both_sides_alike() {
    scene(Family::V4, |lab| {
        let (it, _roles) = Deployment::split(lab)?;
        let rule = StallRule::silence(WINDOW * 2);
        let mut carried = Carried::start_with(&it, rule)?;
        let each = Transfer::both_ways(7, 64 * MIB)
            .paced(MIB / 4)
            .stalls_by(rule);
        let running = each.start(&it.net.con, loopback(NEAR))?;
        running.wait_for(MIB / 2, SOON)?;
        let began = Instant::now();
        let parted = it.net.ix.part(it.net.ix.v4(21), it.net.ix.v4(RELAY_HOST))?;
        let client = running.finish().err().context("the client's end")?;
        let after = began.elapsed();
        let origin = carried.origin.report(7, Duration::from_secs(20));
        say(&format!("F15: the client saw `{client}` after {after:?}"));
        is_reset(&client)?;
        let origin = origin.err().context("the origin's end")?;
        is_reset(
            origin
                .downcast_ref()
                .with_context(|| format!("{origin:#}"))?,
        )?;
        ensure!(
            after >= WINDOW && after < WINDOW + Duration::from_secs(15),
            "{after:?}"
        );
        parted.heal();
        for node in [&carried.exposed, &carried.connected] {
            ensure!(
                says(node, "RESUME_EXPIRED"),
                "no such verdict: {}",
                node.stderr()
            );
        }
        carried.is_well()
    });
}

fn says(node: &Node, reason: &str) -> bool {
    node.stderr().contains(reason)
}

fn is_reset(error: &TransferError) -> Result<()> {
    let reset = matches!(
        error,
        TransferError::Cut {
            kind: ErrorKind::ConnectionReset,
            ..
        }
    );
    ensure!(reset, "`{error}` is no reset");
    Ok(())
}
