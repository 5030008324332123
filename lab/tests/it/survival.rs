//! Streams that live through the death of what carries them: not one byte wrong, and a short silence.

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{Deployment, Family, Topology, deployment::RELAY_HOST, scene, traffic::Transfer};

use crate::{
    links::{MIB, SOON},
    load::{Carried, Load},
};

/// From the last byte before a relay's death to the first one after its return.
pub(crate) const KILLED: Duration = Duration::from_millis(1_500);
/// The same when another relay is there and the dead one stays dead.
pub(crate) const OTHER: Duration = Duration::from_secs(4);
/// What an orderly end may cost.
pub(crate) const DRAINED: Duration = Duration::from_millis(500);

/// Twenty streams for about nine seconds.
fn twenty(it: &Deployment<'_>) -> Result<Load> {
    let each = Transfer::both_ways(0, 9 * MIB / 8).paced(MIB / 8);
    let load = Load::start(it, 100, 20, each)?;
    load.wait_for_each(MIB / 8, SOON)?;
    Ok(load)
}

/// F01, in short; the long set moves 64 MiB on each.
#[test]
fn twenty_streams_survive_three_deaths_of_their_only_relay() {
    scene(Family::V4, |lab| {
        let (it, mut roles) = Deployment::split(lab)?;
        let mut carried = Carried::start(&it)?;
        let load = twenty(&it)?;
        for death in 1..=3 {
            load.wait_for_each(death * MIB / 4, SOON)?;
            roles.relay.kill()?;
            roles.relay = it.start_relay(&[])?;
        }
        load.finish(&carried.origin, SOON)?.judge("F01", KILLED)?;
        roles.relay.without_complaints()?;
        carried.is_well()
    });
}

/// The same in order: the only relay is asked to end, its agents have nowhere to go meanwhile, and another takes its
/// place. Says how the streams took it.
pub(crate) fn only_relay_drained(lab: &mut Topology, most: Duration) -> Result<()> {
    // Streams that nobody can take over are not waited for any longer.
    const DRAIN_TIME: &str = "1s";
    let (mut it, mut roles) = Deployment::split(lab)?;
    it.public = it.public.with_env("SEALOCK_RELAY__DRAIN_TIME", DRAIN_TIME);
    roles.relay.terminate(SOON)?;
    roles.relay = it.start_relay(&[])?;
    let mut carried = Carried::start(&it)?;
    let each = Transfer::both_ways(0, MIB / 2).paced(MIB / 8);
    let load = Load::start(&it, 100, 20, each)?;
    load.wait_for_each(MIB / 16, SOON)?;
    let ended = roles.relay.terminate(SOON)?;
    ensure!(ended.success(), "{ended}");
    roles.relay = it.start_relay(&[])?;
    ensure!(
        load.is_under_way(),
        "the relay waited for its streams to end"
    );
    load.finish(&carried.origin, SOON)?
        .judge("the only relay drained", most)?;
    roles.relay.without_complaints()?;
    carried.is_well()
}

#[test]
fn twenty_streams_survive_an_orderly_restart_of_their_only_relay() {
    // As much again for a machine that others use as well; the long set judges by the bar itself.
    scene(Family::V4, |lab| only_relay_drained(lab, 2 * DRAINED));
}

/// F02, and both agents move in either order: whichever relay they use dies, and then the other one.
#[test]
fn streams_move_to_the_relay_that_is_left() {
    scene(Family::V4, |lab| {
        let (it, mut roles) = Deployment::twin(lab)?;
        let mut carried = Carried::start(&it)?;
        let load = twenty(&it)?;
        roles.relays[0].kill()?;
        load.wait_for_each(MIB / 2, SOON)?;
        roles.relays[0] = it.start_relay_of_two(0, &[])?;
        load.wait_for_each(3 * MIB / 4, SOON)?;
        roles.relays[1].kill()?;
        load.finish(&carried.origin, SOON)?.judge("F02", OTHER)?;
        carried.is_well()
    });
}

/// F08: the second relay dies while streams are on their way to it.
#[test]
fn a_second_death_during_the_first_recovery_changes_nothing() {
    scene(Family::V4, |lab| {
        let (it, mut roles) = Deployment::twin(lab)?;
        let mut carried = Carried::start(&it)?;
        let load = twenty(&it)?;
        for (round, pause) in (1..).zip([0, 150, 600]) {
            load.wait_for_each(round * MIB / 4, SOON)?;
            roles.relays[0].kill()?;
            lab::wait::pause(Duration::from_millis(pause));
            roles.relays[1].kill()?;
            roles.relays[1] = it.start_relay_of_two(1, &[])?;
            roles.relays[0] = it.start_relay_of_two(0, &[])?;
        }
        load.finish(&carried.origin, SOON)?.judge("F08", OTHER)?;
        carried.is_well()
    });
}

/// F15, in short: the consumer's side and the relay are parted for five seconds.
#[test]
fn a_partition_is_outlived() {
    scene(Family::V4, |lab| {
        let (it, mut roles) = Deployment::split(lab)?;
        let mut carried = Carried::start(&it)?;
        let load = twenty(&it)?;
        let parted = it.net.ix.part(it.net.ix.v4(21), it.net.ix.v4(RELAY_HOST))?;
        lab::wait::pause(Duration::from_secs(5));
        ensure!(parted.lost()? > 0, "nothing was lost");
        parted.heal();
        // Five seconds of it are the fault itself.
        load.finish(&carried.origin, SOON)?
            .judge("F15, 5 s", Duration::from_secs(8))?;
        roles.relay.without_complaints()?;
        ensure!(roles.relay.is_running()?);
        carried.is_well()
    });
}
