//! What must hold after every step, and at the end: K1 to K9 and K11 to K13 of the test plan.

use std::fmt;

use sealock_core::reason::Reason;

use super::agent::End;
use super::opener::{BACK_OFF, DIALS_A_MINUTE};
use super::plan::{Micros, POLICY_LAG, SECOND, WINDOW};
use super::provider::PLACES;
use super::world::{OPENER, PROVIDER, Place, Truth, World, small};
use crate::stream::{DecodeError, Epoch, Violation};

/// How long after everything healed each stream has its verdict.
const LIVENESS: Micros = WINDOW + 5 * SECOND;
/// By then every side has also stopped waiting for the other's last word.
const DRAINED: Micros = 2 * LIVENESS;

/// What a run found wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// K1: a byte that was read is not the one that was written there.
    WrongByte { place: Place, at: u64 },
    /// K2: a clean end, but not everything arrived.
    Incomplete {
        place: Place,
        read: u64,
        written: u64,
    },
    /// K3: a clean end that nobody made.
    FalseEnd { place: Place },
    /// K4: the counters of the two ends contradict each other.
    Counters { stream: usize },
    /// K5: two legs carry one epoch of a stream.
    TwoLegs { stream: usize, epoch: Epoch },
    /// K6: a leg was taken from somebody who is not the stream's opener.
    Stolen { stream: usize, by: usize },
    /// K7: a stream is open that policy has denied for longer than any enforcer may lag.
    Denied { stream: usize, since: Micros },
    /// K8: one stream holds more than it may.
    Memory { place: Place },
    /// K8: an agent keeps more streams without a leg than it may.
    Parked { agent: usize, count: usize },
    /// K9: the places that are taken are not the streams that live.
    Places {
        agent: usize,
        taken: usize,
        live: usize,
    },
    /// K9: an agent has a session with a relay, and the relay does not find it.
    Directory { relay: usize, agent: usize },
    /// K10: what a tenant saw depends on whether another one is there.
    Observed { tenant: usize, by: usize },
    /// A leg was let pass for an agent whose certificate had ended.
    Uncertified { leg: usize },
    /// K11: a decision has not exactly one line in the audit.
    Audit { leg: usize, by: &'static str },
    /// K12: nothing will ever happen again, or not in time.
    Stuck { what: &'static str, at: Micros },
    /// K13: more dials than the bound.
    Dials { stream: usize },
    /// A stream ended for a reason that nobody caused, or its ends disagree.
    Verdicts {
        stream: usize,
        verdicts: [Option<Result<(), Reason>>; 2],
    },
    /// What one side encoded the other could not decode.
    NoFrame(DecodeError),
    /// What one side says in a session the other does not understand, or not then.
    NoMessage,
    /// An honest peer was accused.
    Accused {
        stream: usize,
        side: usize,
        violation: Violation,
    },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

pub(super) fn stuck(world: &World, what: &'static str) -> Failure {
    Failure::Stuck {
        what,
        at: world.now,
    }
}

pub(super) fn after_step(world: &World) -> Result<(), Failure> {
    for (&place, end) in &world.ends {
        memory(world, place, end)?;
        progress(world, place, end)?;
    }
    for (stream, truth) in world.truths.iter().enumerate() {
        counters(world, stream)?;
        policy(world, stream, truth)?;
    }
    for agent in world.plan.tenants.iter().flat_map(|it| it.providers()) {
        places(world, agent)?;
    }
    directory(world)
}

fn directory(world: &World) -> Result<(), Failure> {
    for (index, relay) in world.relays.iter().enumerate() {
        for &session in &relay.sessions {
            let agent = world.sessions[session].agent;
            let offers = !world.sessions[session].relay_side.offers().is_empty();
            if offers && !relay.by_agent.contains_key(&agent) {
                return Err(Failure::Directory {
                    relay: index,
                    agent,
                });
            }
        }
    }
    Ok(())
}

fn memory(world: &World, place: Place, end: &End) -> Result<(), Failure> {
    let plan = &world.plan.streams[place.0];
    let (config, progress) = (&plan.config[place.1], end.stream.progress_report());
    let window = u64::from(
        config
            .max_window
            .max(config.initial_window)
            .max(config.early),
    );
    // The first chunk may be acknowledged in part, and is held whole.
    let replay = u64::from(config.max_window) + plan.apps[place.1].chunk as u64;
    let fits = progress.replay_bytes <= replay
        && progress.unread_bytes <= window
        && progress.limit - progress.delivered <= window;
    if fits {
        Ok(())
    } else {
        Err(Failure::Memory { place })
    }
}

// K12 and K13 of one end.
fn progress(world: &World, (stream, side): Place, end: &End) -> Result<(), Failure> {
    let waits = end.leg.is_none() || end.stream.verdict().is_some();
    if waits && !end.stream.is_released() && end.stream.next_timeout().is_none() {
        return Err(stuck(world, "a stream waits without a timer"));
    }
    let verdict_due = world.plan.heal_at + LIVENESS;
    if world.now > verdict_due && end.stream.verdict().is_none() {
        return Err(stuck(world, "the liveness phase takes too long"));
    }
    if world.now > world.plan.heal_at + DRAINED {
        return Err(stuck(world, "a map does not drain"));
    }
    if side == PROVIDER {
        return Ok(());
    }
    let minute_ago = world.now.saturating_sub(60 * SECOND);
    if end.dialled.iter().filter(|&&at| at > minute_ago).count() > DIALS_A_MINUTE {
        return Err(Failure::Dials { stream });
    }
    let agent = world.truths[stream].agents[OPENER];
    let idle = world.agents[agent].paused_until > 0 || end.stream.is_released();
    if end.leg.is_some() || idle || world.usable_sessions(agent).is_empty() {
        return Ok(());
    }
    // The first try waits for nobody, not even for the agent's other streams.
    let by = world.now + if end.attempts == 0 { 0 } else { BACK_OFF[1] };
    match end.dial_at {
        Some(at) if at <= by => Ok(()),
        _ => Err(stuck(world, "a parked stream does not dial")),
    }
}

// K4: acked <= delivered <= received <= sent <= limit, both ways.
fn counters(world: &World, stream: usize) -> Result<(), Failure> {
    let ends = [OPENER, PROVIDER].map(|side| world.ends.get(&(stream, side)));
    let [Some(opener), Some(provider)] = ends else {
        return Ok(());
    };
    let (opener, provider) = (
        opener.stream.progress_report(),
        provider.stream.progress_report(),
    );
    let ordered = [(opener, provider), (provider, opener)]
        .iter()
        .all(|(near, far)| {
            near.acked <= far.delivered
                && far.delivered <= far.received
                && far.received <= near.sent
                && near.sent <= far.limit
        });
    if ordered {
        Ok(())
    } else {
        Err(Failure::Counters { stream })
    }
}

fn policy(world: &World, stream: usize, truth: &Truth) -> Result<(), Failure> {
    let pair = (truth.agents[OPENER], truth.agents[PROVIDER]);
    let Some(&since) = world.policy.denied.get(&pair) else {
        return Ok(());
    };
    let Some(end) = world.ends.get(&(stream, PROVIDER)) else {
        return Ok(());
    };
    // A paused agent carries nothing, and hears of everything behind the pause.
    let paused = world.agents[pair.1].paused_until > 0;
    let heard = since.max(world.agents[pair.1].resumed_at);
    let open = end.leg.is_some() && !end.stream.is_ending();
    if open && !paused && world.now > heard + POLICY_LAG {
        return Err(Failure::Denied { stream, since });
    }
    Ok(())
}

fn places(world: &World, agent: usize) -> Result<(), Failure> {
    let live = world
        .ends
        .keys()
        .filter(|(stream, side)| {
            *side == PROVIDER && world.truths[*stream].agents[PROVIDER] == agent
        })
        .count();
    let taken = world.agents[agent].places;
    if taken != live || taken > PLACES {
        return Err(Failure::Places { agent, taken, live });
    }
    let count = world.parked_at(agent);
    if count > world.plan.parked_limit {
        return Err(Failure::Parked { agent, count });
    }
    Ok(())
}

/// K1: the bytes that an application was just given.
pub(super) fn bytes_read(world: &mut World, place: Place, bytes: &[u8]) -> Result<(), Failure> {
    let (stream, side) = place;
    let sides = &mut world.truths[stream].sides;
    let at = sides[side].read;
    let from = small(at);
    let expected = sides[1 - side].bytes.get(from..from + bytes.len());
    if expected != Some(bytes) {
        return Err(Failure::WrongByte { place, at });
    }
    sides[side].read += bytes.len() as u64;
    Ok(())
}

/// K2 and K3: the clean end that an application was just shown.
pub(super) fn clean_end(world: &World, place: Place) -> Result<(), Failure> {
    let (stream, side) = place;
    let sides = &world.truths[stream].sides;
    if !sides[1 - side].finished {
        return Err(Failure::FalseEnd { place });
    }
    let (read, written) = (sides[side].read, sides[1 - side].wrote);
    if read != written {
        return Err(Failure::Incomplete {
            place,
            read,
            written,
        });
    }
    Ok(())
}

/// K5 and K6: the leg that a provider has just taken.
pub(super) fn taken(world: &mut World, leg: usize) -> Result<(), Failure> {
    let known = &world.legs[leg];
    let (stream, epoch, by) = (known.stream, known.epoch, known.caller);
    if by != world.truths[stream].agents[OPENER] {
        return Err(Failure::Stolen { stream, by });
    }
    if !known.certified {
        return Err(Failure::Uncertified { leg });
    }
    match world.taken.insert((stream, epoch), leg) {
        Some(other) if other != leg => Err(Failure::TwoLegs { stream, epoch }),
        _ => Ok(()),
    }
}

/// K5: the leg that an opener's stream has just been carried by is the one that the provider took.
pub(super) fn one_leg(
    world: &World,
    stream: usize,
    epoch: Epoch,
    leg: Option<usize>,
) -> Result<(), Failure> {
    if world.taken.get(&(stream, epoch)).copied() == leg {
        Ok(())
    } else {
        Err(Failure::TwoLegs { stream, epoch })
    }
}

pub(super) fn at_the_end(world: &World) -> Result<(), Failure> {
    for (&(leg, by), &decisions) in &world.decisions {
        if decisions != 1 || world.audit.get(&(leg, by)) != Some(&1) {
            return Err(Failure::Audit { leg, by });
        }
    }
    for (stream, truth) in world.truths.iter().enumerate() {
        verdicts(world, stream, truth)?;
    }
    Ok(())
}

fn verdicts(world: &World, stream: usize, truth: &Truth) -> Result<(), Failure> {
    let verdicts = [OPENER, PROVIDER].map(|side| truth.sides[side].verdict);
    let caused = [OPENER, PROVIDER]
        .iter()
        .all(|&side| match truth.sides[side].verdict {
            Some(verdict) => is_caused(world, truth, side, verdict),
            None => truth.sides[side].died || !truth.sides[side].begun,
        });
    let agreed = match verdicts {
        [Some(opener), Some(provider)] => opener == provider || may_differ(world, truth),
        _ => true,
    };
    if caused && agreed {
        Ok(())
    } else {
        Err(Failure::Verdicts { stream, verdicts })
    }
}

// One end came to its verdict where no word of the other could reach it.
fn may_differ(world: &World, truth: &Truth) -> bool {
    let died = truth.sides.iter().any(|side| side.died);
    died || !truth.attached || truth.denied || truth.crowded_out || world.plan.outlasts
}

fn is_caused(world: &World, truth: &Truth, side: usize, verdict: Result<(), Reason>) -> bool {
    let sides = &truth.sides;
    match verdict {
        Ok(()) => {
            let whole = |reader: usize| sides[reader].read == sides[1 - reader].wrote;
            sides.iter().all(|side| side.finished) && whole(OPENER) && whole(PROVIDER)
        }
        Err(Reason::PolicyDenied | Reason::PolicyRevoked) => truth.denied,
        Err(Reason::Overloaded) => truth.crowded_out,
        Err(reason) if sides.iter().any(|side| side.reset_with == Some(reason)) => true,
        // The provider said that it does not know the stream; and each window ends for who is left alone.
        Err(Reason::PeerLost | Reason::ResumeExpired) => may_differ(world, truth),
        // What never was open was refused.
        Err(_) => side == OPENER && !truth.attached,
    }
}
