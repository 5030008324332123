//! How a stream comes by its next leg: an opener makes it, an accepter waits for it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use sealock_core::identity::AgentId;
use sealock_core::name::{AgentName, ServiceName};
use sealock_core::reason::Reason;
use sealock_proto::stream::Epoch;
use sealock_proto::wire::{Message, Open, StreamId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::door::{Candidate, Place};
use super::leg::{Leg, LegSource, loses_only_the_leg};
use crate::message;

const FIRST_PAUSE: Duration = Duration::from_millis(50); // a provider that lost its relay needs some round trips
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
/// How long a leg may take to be answered, from the open on.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// How many streams ask for one provider at once. A wave takes two round trips when it is there, and when it is not
/// only so many ask in vain.
const ASKING_LIMIT: usize = 128;

/// The way of a stream to its next leg.
pub(super) enum Way {
    Opener(Box<Asking>),
    Accepter(Place),
}

/// A leg that the stream may go on by.
pub(super) enum Next {
    /// The provider answered for a leg of this epoch; the ATTACH is still to be said.
    Opened(Leg, Epoch),
    /// The caller said its ATTACH, with a good proof.
    Attached(Candidate),
}

/// What an opener asks for again.
#[derive(Debug, Clone)]
pub struct Again {
    /// Where legs come from.
    pub source: Arc<dyn LegSource>,
    /// The stream.
    pub stream: StreamId,
    /// The service that it is for.
    pub service: ServiceName,
}

/// An opener that asks for a leg, or may come to do so.
pub(super) struct Asking {
    again: Option<Again>,
    gates: Gates,
    wanted: bool,
    attempts: u32,
    attempt: Option<BoxFuture<'static, (Result<Leg, Reason>, Epoch)>>,
    /// A place among those who ask, kept while the answers are refusals.
    turn: Option<OwnedSemaphorePermit>,
}

impl Asking {
    pub(super) fn new(again: Option<Again>, gates: Gates) -> Self {
        Self {
            again,
            gates,
            wanted: false,
            attempts: 0,
            attempt: None,
            turn: None,
        }
    }

    // The refusal of a leg that would have ended the stream is an error; every other one is a reason to ask again.
    async fn next(&mut self, provider: &AgentId, epoch: Option<Epoch>) -> Result<Next, Reason> {
        loop {
            let (Some(again), Some(epoch)) = (&self.again, epoch) else {
                return Err(Reason::SessionLost);
            };
            if self.turn.is_none() {
                self.turn = Some(self.gates.turn(provider).await);
            }
            let attempts = self.attempts;
            let attempt = self.attempt.get_or_insert_with(|| {
                Box::pin(ask(again.clone(), epoch, provider.name.clone(), attempts))
            });
            let (outcome, epoch) = attempt.await;
            self.attempt = None;
            match outcome {
                Ok(leg) => {
                    self.rest();
                    return Ok(Next::Opened(leg, epoch));
                }
                Err(reason) if loses_only_the_leg(reason) => {
                    tracing::debug!(reason = reason.code(), "no other leg yet");
                    self.attempts += 1;
                }
                Err(reason) => {
                    self.rest();
                    return Err(reason);
                }
            }
        }
    }

    fn rest(&mut self) {
        self.wanted = false;
        self.attempts = 0;
        self.turn = None;
    }
}

async fn ask(
    again: Again,
    epoch: Epoch,
    provider: AgentName,
    attempts: u32,
) -> (Result<Leg, Reason>, Epoch) {
    if attempts > 0 {
        let pause = FIRST_PAUSE
            .saturating_mul(1 << attempts.min(8))
            .min(LONGEST_PAUSE);
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
    }
    let open = Open {
        stream: again.stream,
        epoch,
        service: again.service.clone(),
        provider: Some(provider),
    };
    (answered(again.source.as_ref(), open, attempts).await, epoch)
}

async fn answered(source: &dyn LegSource, open: Open, attempt: u32) -> Result<Leg, Reason> {
    // Waiting for a session takes as long as it takes; what is bounded is the answer.
    let mut leg = source.open(open, attempt).await?;
    let answer = tokio::time::timeout(ANSWER_DEADLINE, message::read(&mut leg.io.recv)).await;
    match answer {
        Ok(Ok(Message::Opened(_))) => Ok(leg),
        Ok(Ok(Message::Refused(reason))) => Err(reason),
        Ok(Ok(_)) => Err(Reason::ProtocolViolation),
        // A leg that breaks in the asking says nothing of the stream.
        Ok(Err(error)) if error.reason() == Reason::ProtocolViolation => Err(error.reason()),
        Ok(Err(_)) => Err(Reason::SessionLost),
        Err(_elapsed) => {
            leg.io.reset(Reason::OpenTimeout);
            Err(Reason::OpenTimeout)
        }
    }
}

impl Way {
    /// Whether there can be a next leg at all.
    pub(super) fn goes_on(&self) -> bool {
        match self {
            Self::Opener(asking) => asking.again.is_some(),
            Self::Accepter(_) => true,
        }
    }

    /// An opener shall make another leg, while it still has one.
    pub(super) fn want(&mut self) {
        if let Self::Opener(asking) = self {
            asking.wanted = asking.again.is_some();
        }
    }

    /// Whether another leg may come while there still is one.
    pub(super) fn is_open(&self) -> bool {
        match self {
            Self::Opener(asking) => asking.wanted,
            Self::Accepter(_) => true,
        }
    }

    /// The next leg, for the stream's next epoch.
    ///
    /// # Errors
    /// The reason of somebody who will not let the stream go on.
    ///
    /// # Cancel safety
    /// Safe: an attempt that was begun goes on at the next call.
    pub(super) async fn next(
        &mut self,
        peer: &AgentId,
        epoch: Option<Epoch>,
    ) -> Result<Next, Reason> {
        match self {
            Self::Opener(asking) => asking.next(peer, epoch).await,
            Self::Accepter(place) => Ok(Next::Attached(place.next().await)),
        }
    }

    /// The stream waited in vain.
    pub(super) fn expire(&self) {
        if let Self::Accepter(place) = self {
            place.expire();
        }
    }
}

/// One gate for each provider that legs are asked of; clones share them.
#[derive(Clone, Default)]
pub(super) struct Gates(Arc<Mutex<HashMap<AgentId, Weak<Semaphore>>>>);

impl Gates {
    async fn turn(&self, provider: &AgentId) -> OwnedSemaphorePermit {
        let gate = self.gate(provider);
        match gate.acquire_owned().await {
            Ok(turn) => turn,
            // Nobody closes a gate.
            Err(_closed) => std::future::pending().await,
        }
    }

    fn gate(&self, provider: &AgentId) -> Arc<Semaphore> {
        let mut gates = self.0.lock();
        if let Some(gate) = gates.get(provider).and_then(Weak::upgrade) {
            return gate;
        }
        gates.retain(|_, gate| gate.strong_count() > 0);
        let gate = Arc::new(Semaphore::new(ASKING_LIMIT));
        gates.insert(provider.clone(), Arc::downgrade(&gate));
        gate
    }
}

impl fmt::Debug for Gates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gates").finish_non_exhaustive()
    }
}
