//! Two relays: an agent loses one of them, or has only ever reached one, and streams find the way that is left; the long set has more.

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{
    Deployment, Family,
    deployment::{RELAY_HOST, SECOND_HOST, Twin},
    faults::{Fault, Traffic},
    scene,
    traffic::{StallRule, Transfer},
    wait,
};

use crate::{
    links::{MIB, SOON},
    load::{Carried, Load},
    survival::OTHER,
};

/// The relays' places on the public network.
pub(crate) const RELAYS: [u8; 2] = [RELAY_HOST, SECOND_HOST];
/// Where the translators of consumer and provider are on it.
pub(crate) const CONSUMER: u8 = 21;
pub(crate) const PROVIDER: u8 = 22;
/// A path is left after 2 s; an agent that knew only that relay dials the other within 3 s of its being there.
const MOVED: Duration = Duration::from_secs(10);
/// Long enough to tell the relay that carries from the one that is only kept alive.
const LOOK: Duration = Duration::from_millis(400);

/// Which relay carries the streams of the moment: the one that says more to the consumer.
pub(crate) fn carrier(it: &Deployment<'_>) -> Result<usize> {
    let ix = &it.net.ix;
    let count = |relay| ix.count(Traffic::any().from(ix.v4(relay)).to(ix.v4(CONSUMER)));
    let [first, second] = [count(RELAYS[0])?, count(RELAYS[1])?];
    wait::pause(LOOK);
    let [first, second] = [first.met()?, second.met()?];
    ensure!(
        first.max(second) > 3 * first.min(second),
        "neither of the relays carries alone: {first} and {second} packets"
    );
    Ok(usize::from(second > first))
}

/// An agent's side and a relay do not reach each other.
pub(crate) fn part(it: &Deployment<'_>, agent: u8, relay: usize) -> Result<Fault> {
    let ix = &it.net.ix;
    ix.part(ix.v4(agent), ix.v4(RELAYS[relay]))
}

/// Streams for about so many seconds, which wait for longer than any path takes to be found.
pub(crate) fn streams(it: &Deployment<'_>, count: u64, seconds: u64) -> Result<(Carried, Load)> {
    let rule = StallRule::silence(SOON);
    let carried = Carried::start_with(it, rule)?;
    let each = Transfer::both_ways(0, seconds * MIB / 8)
        .paced(MIB / 8)
        .stalls_by(rule);
    let load = Load::start(it, 1, count, each)?;
    load.wait_for_each(MIB / 16, SOON)?;
    Ok((carried, load))
}

/// Both agents begin at the first relay, alone; then one after the other loses it and finds the second.
pub(crate) fn both_move(first: u8, second: u8) {
    scene(Family::V4, |lab| {
        let (it, mut roles) = Deployment::twin(lab)?;
        let mut fences = [first, second]
            .map(|agent| part(&it, agent, 1).map(Some))
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        let (mut carried, load) = streams(&it, 8, 10)?;
        ensure!(carrier(&it)? == 0, "the fenced relay carries");
        let mut lost = Vec::new();
        for (agent, fence) in [first, second].into_iter().zip(&mut fences) {
            drop(fence.take());
            lost.push(part(&it, agent, 0)?);
            ensure!(load.is_under_way(), "the streams ended before the moves");
            // What was on the way arrives without a move; this does not.
            load.wait_for_each(load.most() + MIB / 8, SOON)?;
        }
        load.finish(&carried.origin, SOON)?
            .judge("both agents moved", MOVED)?;
        drop(lost);
        are_well(&mut roles)?;
        carried.is_well()
    });
}

pub(crate) fn are_well(roles: &mut Twin) -> Result<()> {
    for relay in &mut roles.relays {
        ensure!(relay.is_running()?, "a relay has ended");
        relay.without_complaints()?;
    }
    Ok(())
}

#[test]
fn the_provider_moves_to_another_relay_and_then_the_consumer() {
    both_move(PROVIDER, CONSUMER);
}

/// Lesson 10: all streams of a dead relay go on at once, not one after the other, and none is lost.
#[test]
fn three_hundred_streams_go_on_after_their_relays_death() {
    const STREAMS: u64 = 300;
    scene(Family::V4, |lab| {
        let (it, mut roles) = Deployment::twin(lab)?;
        let mut carried = Carried::start(&it)?;
        let each = Transfer::both_ways(0, 64 << 10).paced(8 << 10);
        let load = Load::start(&it, 1, STREAMS, each)?;
        load.wait_for_each(1 << 10, SOON)?;
        let dies = carrier(&it)?;
        roles.relays[dies].kill()?;
        ensure!(load.is_under_way(), "streams ended before the death");
        let gaps = load.finish(&carried.origin, SOON)?;
        gaps.judge("300 streams, their relay killed", OTHER)?;
        // None is left behind: the last one is hardly later than the others.
        ensure!(gaps.most() < 2 * OTHER, "{:?}", gaps.most());
        roles.relays[1 - dies].without_complaints()?;
        carried.is_well()
    });
}
