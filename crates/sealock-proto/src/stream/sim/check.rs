//! What must hold after every step, and at the end (K1–K4, K8 and K12 of the test plan).

use std::fmt;

use sealock_core::reason::Reason;

use super::world::{Side, World};
use crate::stream::{DecodeError, Progress, Role, Violation};

/// What a run found wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// K1: a byte that was read is not the one that was written there.
    WrongByte { reader: Role, near: u64 },
    /// K2: a clean end, but not everything arrived.
    Incomplete {
        reader: Role,
        read: u64,
        written: u64,
    },
    /// K3: a clean end that nobody made.
    FalseEnd { reader: Role },
    /// K4: the counters contradict each other.
    Counters {
        sender: Role,
        near: Box<Progress>,
        far: Box<Progress>,
    },
    /// K8: more memory than allowed.
    Memory { side: Role, progress: Box<Progress> },
    /// K12: nothing will ever happen again, or not in time.
    Stuck { what: &'static str, at: u64 },
    /// What one side encoded the other could not decode.
    NoFrame(DecodeError),
    /// An honest peer was accused.
    Accused { side: Role, violation: Violation },
    /// A broken frame was taken for good.
    NotNoticed { side: Role, kind: u64 },
    /// The two sides came to different verdicts, or to one that nobody caused.
    Verdicts([Option<Result<(), Reason>>; 2]),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

pub(super) fn after_step(world: &World) -> Result<(), Failure> {
    if world.from_outside {
        return Ok(());
    }
    for (near, far) in [(0, 1), (1, 0)] {
        one_side(world, near)?;
        if !world.tainted {
            counters(world, near, far)?;
        }
    }
    Ok(())
}

// K8 and K12 of one side.
fn one_side(world: &World, side: usize) -> Result<(), Failure> {
    let Some(stream) = &world.sides[side].stream else {
        return Ok(());
    };
    let progress = stream.progress_report();
    let config = &world.plan.config[side];
    let window = config
        .max_window
        .max(config.initial_window)
        .max(config.early);
    // The first chunk may be acknowledged in part, and is held whole.
    let replay = u64::from(config.max_window) + world.plan.apps[side].write_chunk as u64;
    let granted = progress.limit - progress.delivered;
    if progress.replay_bytes > replay
        || progress.unread_bytes > window.into()
        || granted > window.into()
    {
        let side = world.sides[side].role;
        return Err(Failure::Memory {
            side,
            progress: Box::new(progress),
        });
    }
    let waits = stream.is_parked() || (stream.verdict().is_some() && !stream.is_released());
    if waits && !stream.is_released() && stream.next_timeout().is_none() {
        return Err(stuck(world, "a stream waits without a timer"));
    }
    Ok(())
}

// K4: acked <= delivered <= received <= sent <= limit.
fn counters(world: &World, near: usize, far: usize) -> Result<(), Failure> {
    let sender = &world.sides[near];
    let progress = |side: &Side| {
        side.stream
            .as_ref()
            .map(crate::stream::Stream::progress_report)
    };
    let (Some(near), Some(far)) = (progress(sender), progress(&world.sides[far])) else {
        return Ok(());
    };
    let ordered = near.acked <= far.delivered
        && far.delivered <= far.received
        && far.received <= near.sent
        && near.sent <= far.limit;
    if ordered {
        return Ok(());
    }
    let (sender, near, far) = (sender.role, Box::new(near), Box::new(far));
    Err(Failure::Counters { sender, near, far })
}

pub(super) fn stuck(world: &World, what: &'static str) -> Failure {
    Failure::Stuck {
        what,
        at: world.now,
    }
}

/// The clean end that `reader` was just shown.
pub(super) fn at_clean_end(world: &World, reader: usize) -> Result<(), Failure> {
    let (side, peer) = (&world.sides[reader], &world.sides[1 - reader]);
    let reader = side.role;
    if !peer.finished {
        return Err(Failure::FalseEnd { reader });
    }
    let (read, written) = (side.read, peer.wrote);
    if read != written {
        return Err(Failure::Incomplete {
            reader,
            read,
            written,
        });
    }
    Ok(())
}

/// The verdicts, when both sides have forgotten the stream.
pub(super) fn at_the_end(world: &World) -> Result<(), Failure> {
    let verdicts = [0, 1].map(|side| world.sides[side].verdict);
    let [opener, accepter] = verdicts;
    let failure = Err(Failure::Verdicts(verdicts));
    let caused = |verdict: Result<(), Reason>| match verdict {
        Ok(()) => world.sides.iter().all(|side| side.finished),
        Err(Reason::ResumeExpired) => world.plan.faults.outlasts,
        Err(Reason::ProtocolViolation) => world.tainted,
        Err(reason) => world
            .sides
            .iter()
            .any(|side| side.reset_with == Some(reason)),
    };
    let Some(opener) = opener else { return failure };
    if !caused(opener) {
        return failure;
    }
    // An accepter that no leg ever reached has nothing to say.
    let Some(accepter) = accepter else {
        let never = world.sides[1].never_reached;
        return if never && opener != Ok(()) {
            Ok(())
        } else {
            failure
        };
    };
    if !caused(accepter) {
        return failure;
    }
    // Who was cut off for the whole window cannot know what the other had settled before.
    let cut_off = |verdict| verdict == Err(Reason::ResumeExpired);
    if opener == accepter || cut_off(opener) || cut_off(accepter) {
        return Ok(());
    }
    failure
}
