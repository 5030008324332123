//! The task behind a stream: moves frames between the machine and the leg of the moment, and the stream to the next leg.
//!
//! A leg that is lost parks the stream until another one takes it up or time is up. A leg that is to be left carries on
//! until its successor is there. Whatever ends a stream for good ends it here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sealock_core::reason::Reason;
use sealock_proto::stream::{AttachError, Role};

use super::Shared;
use super::carrier::{Carrier, Ended};
use super::leg::loses_only_the_leg;
use super::way::{Next, Way};
use crate::limit::PeerLimit;

/// Runs a stream from its first leg on until the peer needs nothing more of it.
///
/// A stream spends its life in `carry`; what comes before and after it, and the leg itself, have boxes of their own.
pub(super) async fn run(
    shared: Arc<Shared>,
    role: Role,
    mut carrier: Box<Carrier>,
    mut way: Way,
    parking: PeerLimit,
) {
    let begun = match role {
        Role::Opener => Box::pin(carrier.open(&shared)).await,
        Role::Accepter => Box::pin(carrier.accept(&shared)).await,
    };
    if let Err(reason) = begun {
        carrier.abandon(reason);
        shared.fail(reason);
        return;
    }
    loop {
        let lost = match carrier.carry(&shared, &mut way).await {
            Ended::Over => return Box::pin(carrier.part()).await,
            Ended::Next(next) => {
                if let Some(successor) = take(&shared, *next) {
                    carrier.succeed(successor);
                }
                continue;
            }
            Ended::Lost(reason) => reason,
        };
        // Whoever is at the leg's other end learns why, too.
        carrier.abandon(lost);
        if !loses_only_the_leg(lost) || !way.goes_on() {
            shared.fail(lost);
            return;
        }
        tracing::debug!(
            reason = lost.code(),
            epoch = carrier.epoch().0,
            "a stream lost its leg"
        );
        shared
            .machine
            .lock()
            .detach(Instant::now(), carrier.epoch());
        match Box::pin(park(&shared, &mut way, &parking)).await {
            Some(successor) => *carrier = successor,
            None => return,
        }
    }
}

/// Puts the stream on its next leg, unless that is stale.
fn take(shared: &Shared, next: Next) -> Option<Carrier> {
    let now = Instant::now();
    let mut machine = shared.machine.lock();
    let resume = shared.resume.get()?;
    match next {
        Next::Opened(leg, epoch) => {
            let proof = resume.ticket.prove(Role::Opener, epoch);
            // No leg was begun since the epoch was given out: this task alone begins legs.
            let epoch = machine.attach(now, Some(proof)).ok()?;
            Some(Carrier::later(leg, epoch, Some(now + ATTACH_DEADLINE)))
        }
        Next::Attached(candidate) => {
            let epoch = candidate.attach.epoch;
            let proof = resume.ticket.prove(Role::Accepter, epoch);
            let taken = machine.accept_attach(now, &candidate.attach, Some(proof));
            drop(machine);
            // Whoever waits for the answer may be gone; the stream does not mind.
            match taken {
                Ok(()) => {
                    let _told = candidate.answer.send(Ok(()));
                }
                // The leg was taken, to carry the RESET.
                Err(AttachError::Violation(violation)) => {
                    tracing::warn!(err = %violation, "the peer broke the stream's protocol");
                    let _told = candidate.answer.send(Err(Reason::ProtocolViolation));
                }
                Err(AttachError::Stale | AttachError::WrongRole | AttachError::Over) => {
                    candidate.leg.io.reset(Reason::AttachRefused);
                    let _told = candidate.answer.send(Err(Reason::AttachRefused));
                    return None;
                }
            }
            let mut carrier = Carrier::later(candidate.leg, epoch, None);
            carrier.go_on_with(candidate.decoder);
            Some(carrier)
        }
    }
}

/// How long the accepter may take to answer an ATTACH on a leg that it took.
const ATTACH_DEADLINE: Duration = Duration::from_secs(5);

/// Waits without a leg until there is another one, or the stream is over.
async fn park(shared: &Shared, way: &mut Way, parking: &PeerLimit) -> Option<Carrier> {
    // Without a secret that both sides know there is no going on.
    let Some(resume) = shared.resume.get() else {
        shared.fail(Reason::SessionLost);
        return None;
    };
    let Some(_place) = parking.enter(&resume.peer) else {
        tracing::warn!(peer = %resume.peer, "too many streams wait for another leg; one is given up");
        shared.fail(Reason::Overloaded);
        return None;
    };
    loop {
        let (released, deadline, epoch) = {
            let mut machine = shared.machine.lock();
            let news = shared.pass_on(&mut machine);
            (
                news.released || machine.is_released(),
                machine.next_timeout(),
                machine.next_epoch(),
            )
        };
        if released {
            if shared.verdict() == Some(Err(Reason::ResumeExpired)) {
                way.expire();
            }
            return None;
        }
        tokio::select! {
            biased; // a leg at the last moment is in time
            next = way.next(resume, epoch) => match next {
                Ok(next) => {
                    if let Some(carrier) = take(shared, next) {
                        tracing::debug!(epoch = carrier.epoch().0, "a stream has another leg");
                        return Some(carrier);
                    }
                }
                Err(reason) => {
                    tracing::debug!(reason = reason.code(), "a stream cannot be taken up again");
                    shared.fail(reason);
                    return None;
                }
            },
            () = shared.driver.notified() => {}
            () = super::until(deadline) => shared.machine.lock().handle_timeout(Instant::now()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_output<A, B, C, D, E, F>(_: impl Fn(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }

    // What every stream of an agent keeps for as long as it lives (issue 3: an idle stream is small).
    #[test]
    fn the_future_of_a_stream_and_its_leg_are_small() {
        let sizes = [size_of_output(run), size_of::<Carrier>()];
        assert!(sizes[0] <= 1_400 && sizes[1] <= 700, "{sizes:?} bytes");
    }
}
