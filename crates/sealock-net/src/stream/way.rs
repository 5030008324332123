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
use sealock_proto::stream::{Epoch, Role};
use sealock_proto::wire::{ConduitId, Message, Open, StreamId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::Resume;
use super::door::{Candidate, Place};
use super::leg::{Leg, LegSource, Wish, loses_only_the_leg};
use crate::message;

const FIRST_PAUSE: Duration = Duration::from_millis(50); // a provider that lost its relay needs some round trips
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
/// How long a leg may take to be answered, from the open on.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// How many streams ask one provider for their next leg at once: all that may be parked with it, so that a session that
/// is lost is made good in one go. Beyond are streams that leave a leg which still carries; they do not mind waiting.
const ASKING_LIMIT: usize = super::memory::PARKED_LIMIT_PER_PEER;
/// How many streams go on asking a provider that is not there: enough to hear soon that it is back, few enough to be no
/// burden to relays. As soon as one is answered, all others ask too.
const SCOUTS_LIMIT: usize = 16;

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
    /// The next leg had better be a conduit.
    wants_conduit: bool,
    /// What the stream moved in a second before it went over a conduit.
    before_conduit: u64,
    /// A conduit was slower than what the stream had.
    was_slower: bool,
    attempts: u32,
    attempt: Option<BoxFuture<'static, (Result<Leg, Reason>, Epoch)>>,
    /// The gate of the provider, for as long as this stream wants a leg.
    gate: Option<(Arc<Gate>, watch::Receiver<u64>)>,
    /// A place among those who ask.
    place: Option<OwnedSemaphorePermit>,
    /// A place among those who go on asking, kept while the answers are refusals.
    scout: Option<OwnedSemaphorePermit>,
}

impl Asking {
    pub(super) fn new(again: Option<Again>, gates: Gates) -> Self {
        Self {
            again,
            gates,
            wanted: false,
            wants_conduit: false,
            before_conduit: 0,
            was_slower: false,
            attempts: 0,
            attempt: None,
            gate: None,
            place: None,
            scout: None,
        }
    }

    // The refusal of a leg that would have ended the stream is an error; every other one is a reason to ask again.
    async fn next(&mut self, resume: &Resume, epoch: Option<Epoch>) -> Result<Next, Reason> {
        let provider = &resume.peer;
        loop {
            let (Some(again), Some(epoch)) = (&self.again, epoch) else {
                return Err(Reason::SessionLost);
            };
            if self.attempt.is_none() {
                let again = again.clone();
                let pause = self.turn(provider).await;
                let wish = self.wants_conduit.then(|| Wish {
                    id: ConduitId(rand::random()),
                    role: Role::Opener,
                    epoch,
                    ticket: Arc::clone(&resume.ticket),
                });
                let asked = (epoch, provider.name.clone(), wish);
                let asking = ask(again, asked, (pause, self.attempts));
                self.attempt = Some(Box::pin(asking));
            }
            let Some(attempt) = &mut self.attempt else {
                continue;
            };
            let (outcome, epoch) = attempt.await;
            self.attempt = None;
            self.place = None;
            match outcome {
                Ok(leg) => {
                    if let Some((gate, _)) = &self.gate {
                        gate.is_answered();
                    }
                    self.rest();
                    return Ok(Next::Opened(leg, epoch));
                }
                Err(reason) if loses_only_the_leg(reason) => {
                    tracing::debug!(reason = reason.code(), "no other leg yet");
                    // What is not to be had is not waited for.
                    self.wants_conduit = false;
                    self.attempts += 1;
                }
                Err(reason) => {
                    self.rest();
                    return Err(reason);
                }
            }
        }
    }

    /// Waits until it is this stream's turn to ask, and says after which pause: at first at once, like all others; after
    /// a refusal when somebody was answered, or from time to time as one of the scouts.
    ///
    /// # Cancel safety
    /// Safe.
    async fn turn(&mut self, provider: &AgentId) -> Duration {
        let gates = &self.gates;
        let (gate, answered) = self.gate.get_or_insert_with(|| gates.gate(provider));
        if self.attempts > 0 && self.scout.is_none() {
            tokio::select! {
                biased; // an answer to somebody else is better news than a place to go on asking in vain
                Ok(()) = answered.changed() => {
                    self.place = Some(taken(&gate.places).await);
                    return Duration::ZERO;
                }
                scout = taken(&gate.scouts) => self.scout = Some(scout),
            }
        }
        if self.scout.is_some() {
            let pause = FIRST_PAUSE.saturating_mul(1 << self.attempts.min(8));
            // Spread, so that one of them asks often.
            let spread = rand::random_range(0.5..1.0);
            return pause.min(LONGEST_PAUSE).mul_f64(spread);
        }
        self.place = Some(taken(&gate.places).await);
        Duration::ZERO
    }

    fn rest(&mut self) {
        self.wanted = false;
        self.wants_conduit = false;
        self.attempts = 0;
        self.gate = None;
        self.place = None;
        self.scout = None;
    }
}

async fn taken(places: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    match Arc::clone(places).acquire_owned().await {
        Ok(place) => place,
        // Nobody closes a gate.
        Err(_closed) => std::future::pending().await,
    }
}

async fn ask(
    again: Again,
    (epoch, provider, wish): (Epoch, AgentName, Option<Wish>),
    (pause, attempts): (Duration, u32),
) -> (Result<Leg, Reason>, Epoch) {
    tokio::time::sleep(pause).await;
    let open = Open {
        stream: again.stream,
        epoch,
        service: again.service.clone(),
        provider: Some(provider),
        conduit: wish.as_ref().map(|wish| wish.id),
    };
    let mut leg = answered(again.source.as_ref(), open, attempts).await;
    if let (Ok(answered), Some(wish)) = (&mut leg, &wish)
        && answered.awaits_conduit()
        && let Err(reason) = answered.join(wish).await
    {
        answered.give_up(reason);
        leg = Err(reason);
    }
    (leg, epoch)
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

    /// An opener shall put the stream on a conduit; it moves so much in a second without.
    pub(super) fn want_conduit(&mut self, rate: u64) {
        if let Self::Opener(asking) = self
            && asking.again.is_some()
            && !asking.was_slower
        {
            asking.before_conduit = rate;
            asking.wants_conduit = true;
            asking.wanted = true;
        }
    }

    /// What the stream moved in a second before it went over the conduit that it is on.
    pub(super) fn before_conduit(&self) -> u64 {
        match self {
            Self::Opener(asking) => asking.before_conduit,
            Self::Accepter(_) => 0,
        }
    }

    /// An opener shall go back from a conduit to the session, for good.
    pub(super) fn leave_conduit(&mut self) {
        if let Self::Opener(asking) = self {
            asking.was_slower = true;
            self.want();
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
        resume: &Resume,
        epoch: Option<Epoch>,
    ) -> Result<Next, Reason> {
        match self {
            // In a box: a stream whose leg is good never asks.
            Self::Opener(asking) => Box::pin(asking.next(resume, epoch)).await,
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
pub(super) struct Gates(Arc<Mutex<HashMap<AgentId, Weak<Gate>>>>);

/// Who asks a provider for legs, and whether somebody was answered.
struct Gate {
    places: Arc<Semaphore>,
    scouts: Arc<Semaphore>,
    /// Counts the answers.
    answers: watch::Sender<u64>,
}

impl Gate {
    fn is_answered(&self) {
        self.answers.send_modify(|count| *count += 1);
    }
}

impl Gates {
    fn gate(&self, provider: &AgentId) -> (Arc<Gate>, watch::Receiver<u64>) {
        let mut gates = self.0.lock();
        let known = gates.get(provider).and_then(Weak::upgrade);
        let gate = known.unwrap_or_else(|| {
            gates.retain(|_, gate| gate.strong_count() > 0);
            let gate = Arc::new(Gate {
                places: Arc::new(Semaphore::new(ASKING_LIMIT)),
                scouts: Arc::new(Semaphore::new(SCOUTS_LIMIT)),
                answers: watch::Sender::default(),
            });
            gates.insert(provider.clone(), Arc::downgrade(&gate));
            gate
        });
        let answers = gate.answers.subscribe();
        (gate, answers)
    }
}

impl fmt::Debug for Gates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gates").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use sealock_core::secret::Secret;
    use sealock_proto::stream::{Ticket, TicketContext};

    use super::*;

    /// A relay that answers nobody, or refuses everybody.
    #[derive(Debug, Default)]
    struct Deaf {
        asked: AtomicUsize,
        refuses: Option<Reason>,
    }

    impl LegSource for Deaf {
        fn open(&self, _open: Open, _attempt: u32) -> BoxFuture<'_, Result<Leg, Reason>> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            Box::pin(async {
                if let Some(reason) = self.refuses {
                    return Err(reason);
                }
                std::future::pending().await
            })
        }
    }

    fn provider() -> AgentId {
        AgentId {
            tenant: "default".parse().expect("a name"),
            name: "provider".parse().expect("a name"),
        }
    }

    fn resume() -> Resume {
        let context = TicketContext {
            stream: [1; 16],
            opener: provider(),
            accepter: provider(),
        };
        let ticket = Ticket::new(Secret::new([7; 32]), context);
        Resume {
            ticket: Arc::new(ticket),
            peer: provider(),
        }
    }

    /// This many streams that want another leg of one provider.
    fn asking(source: &Arc<Deaf>, gates: &Gates, count: usize) -> Vec<Asking> {
        let again = || Again {
            source: Arc::clone(source) as Arc<dyn LegSource>,
            stream: StreamId(rand::random()),
            service: "db".parse().expect("a name"),
        };
        let asking = || Asking::new(Some(again()), gates.clone());
        std::iter::repeat_with(asking).take(count).collect()
    }

    /// Lets them all ask for so long.
    async fn ask_for(streams: &mut [Asking], time: Duration) {
        let resume = resume();
        let all = streams
            .iter_mut()
            .map(|one| one.next(&resume, Some(Epoch(2))));
        let all = futures_util::future::join_all(all);
        assert!(tokio::time::timeout(time, all).await.is_err(), "an answer");
    }

    // Issue 3, item 1: no stream of a session that was lost waits for another one.
    #[tokio::test(start_paused = true)]
    async fn all_streams_of_a_lost_session_ask_at_once() {
        let (source, gates) = (Arc::<Deaf>::default(), Gates::default());
        let mut streams = asking(&source, &gates, ASKING_LIMIT + 10);
        ask_for(&mut streams, Duration::from_millis(1)).await;
        assert_eq!(source.asked.load(Ordering::Relaxed), ASKING_LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn while_a_provider_is_away_few_go_on_asking_and_often_enough() {
        let refusing = Deaf {
            refuses: Some(Reason::NoProvider),
            ..Deaf::default()
        };
        let (source, gates) = (Arc::new(refusing), Gates::default());
        let mut streams = asking(&source, &gates, ASKING_LIMIT);
        ask_for(&mut streams, Duration::from_millis(1)).await;
        assert_eq!(source.asked.load(Ordering::Relaxed), ASKING_LIMIT);
        ask_for(&mut streams, Duration::from_secs(60)).await;
        let scouted = source.asked.load(Ordering::Relaxed) - ASKING_LIMIT;
        // Each scout asks at least every four seconds, and twice as often at most, but for the first pauses.
        let (least, most) = (SCOUTS_LIMIT * 60 / 4, SCOUTS_LIMIT * (60 / 2 + 10));
        assert!((least..=most).contains(&scouted), "{scouted}");
        let (gate, _) = gates.gate(&provider());
        gate.is_answered();
        ask_for(&mut streams, Duration::from_millis(1)).await;
        let again = source.asked.load(Ordering::Relaxed) - ASKING_LIMIT - scouted;
        assert!(again >= ASKING_LIMIT - SCOUTS_LIMIT, "{again} were told");
    }

    // F25, F28: a relay that does not take the caller's certificate at this moment ends no stream; policy does.
    #[tokio::test(start_paused = true)]
    async fn a_stream_asks_again_while_its_agents_certificate_is_not_taken() {
        let refusing = |refuses| {
            let refuses = Some(refuses);
            Arc::new(Deaf {
                refuses,
                ..Deaf::default()
            })
        };
        let (source, gates) = (refusing(Reason::NotAdmitted), Gates::default());
        let mut streams = asking(&source, &gates, 1);
        ask_for(&mut streams, Duration::from_secs(20)).await;
        assert!(source.asked.load(Ordering::Relaxed) > 3);
        let source = refusing(Reason::PolicyDenied);
        let mut streams = asking(&source, &gates, 1);
        let answer = streams[0].next(&resume(), Some(Epoch(2))).await;
        assert_eq!(answer.err(), Some(Reason::PolicyDenied));
    }
}
