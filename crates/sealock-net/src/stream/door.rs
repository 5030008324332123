//! Where later legs find the streams that live at an accepter.
//!
//! A stream's id is its caller's choice, so an id that is live here already is refused, and a later leg is let in only
//! with a proof of the stream's own secret: no caller gets near another's stream by naming it (lessons 04 and 07).
//! What a door does not do is judge policy; who opens it has asked before.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use sealock_core::identity::AgentId;
use sealock_core::name::ServiceName;
use sealock_core::reason::Reason;
use sealock_proto::stream::{Attach, Decoder, Epoch, Frame, Role, Ticket};
use sealock_proto::wire::{ConduitId, StreamId};
use tokio::sync::{Notify, oneshot};

use super::leg::{Leg, Wish, lost_reading};
use crate::identity::PeerIdentity;

/// How long a leg may take to bring its ATTACH.
const ATTACH_DEADLINE: Duration = Duration::from_secs(5);
/// How much is read at once while the ATTACH is awaited; data follows it closely.
const CHUNK: usize = 64 * 1024;
/// Legs with a good proof that may wait for the stream's driver, which takes them at once.
const WAITING_LIMIT: usize = 4;
/// How many streams that could not be taken up in time are remembered, to say so to who comes later; and how many whose
/// caller never was heard.
const REMEMBERED_LIMIT: usize = 4_096; // × 16 bytes

/// The streams that live at an accepter; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Doors {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    live: HashMap<StreamId, Door>,
    expired: VecDeque<StreamId>,
    /// Those that were lost before their caller had proved itself: nothing that it said on them was heard.
    unheard: VecDeque<StreamId>,
}

/// The way in to a live stream; clones lead to the same one.
#[derive(Debug, Clone)]
pub struct Door(Arc<Hall>);

/// Behind a door. Most streams never see a second leg, so it holds no room for any until one comes.
#[derive(Debug)]
struct Hall {
    service: ServiceName,
    /// Nothing, for good, when the stream was lost before its caller had proved itself.
    settled: OnceLock<Option<Settled>>,
    waiting: Mutex<Waiting>,
    arrived: Notify,
}

/// Who waits for the stream's driver.
#[derive(Debug, Default)]
struct Waiting {
    candidates: VecDeque<Candidate>,
    /// The driver has ended and takes nobody any more.
    over: bool,
}

/// Who a stream belongs to, as it proved itself end to end.
#[derive(Debug)]
struct Settled {
    caller: AgentId,
    peer: PeerIdentity,
    ticket: Arc<Ticket>,
}

/// A leg with a good proof, and who waits to hear whether it carries the stream.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) leg: Leg,
    pub(super) decoder: Decoder,
    pub(super) attach: Attach,
    pub(super) answer: oneshot::Sender<Result<(), Reason>>,
}

/// A stream's place among the live ones, until its driver ends.
#[derive(Debug)]
pub struct Place {
    doors: Doors,
    id: StreamId,
    door: Door,
}

impl Doors {
    /// Enters a stream for a service; nothing when its id is live already.
    #[must_use]
    pub fn enter(&self, id: StreamId, service: ServiceName) -> Option<Place> {
        let door = Door(Arc::new(Hall {
            service,
            settled: OnceLock::new(),
            waiting: Mutex::default(),
            arrived: Notify::new(),
        }));
        let mut inner = self.inner.lock();
        if inner.live.contains_key(&id) {
            return None;
        }
        inner.live.insert(id, door.clone());
        drop(inner);
        Some(Place {
            doors: self.clone(),
            id,
            door,
        })
    }

    /// The door of a stream.
    ///
    /// # Errors
    /// [`Reason::ResumeExpired`] for a stream that waited in vain, [`Reason::PeerLost`] for one that is not known: the
    /// process that held it is gone.
    pub fn find(&self, id: StreamId) -> Result<Door, Reason> {
        let inner = self.inner.lock();
        match inner.live.get(&id) {
            Some(door) => Ok(door.clone()),
            None if inner.expired.contains(&id) => Err(Reason::ResumeExpired),
            None => Err(Reason::PeerLost),
        }
    }

    /// Whether a stream was here and was lost before its caller had proved itself, so that nothing it said was heard.
    #[must_use]
    pub(crate) fn never_heard(&self, id: StreamId) -> bool {
        self.inner.lock().unheard.contains(&id)
    }

    /// How many streams there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.lock().live.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Door {
    /// The service that the stream is for.
    #[must_use]
    pub fn service(&self) -> &ServiceName {
        &self.0.service
    }

    /// Who the stream belongs to, and by which certificate; nothing while that is not proved.
    #[must_use]
    pub fn owner(&self) -> Option<(&AgentId, &PeerIdentity)> {
        let settled = self.0.settled.get()?.as_ref()?;
        Some((&settled.caller, &settled.peer))
    }

    /// From here on later legs may come: from this caller, with proofs of this ticket.
    ///
    /// # Errors
    /// When the stream is lost already: its caller may have been told that nothing was heard on it.
    pub(crate) fn settle(
        &self,
        caller: AgentId,
        peer: PeerIdentity,
        ticket: Arc<Ticket>,
    ) -> Result<(), Reason> {
        let settled = Settled {
            caller,
            peer,
            ticket,
        };
        self.0
            .settled
            .set(Some(settled))
            .map_err(|_lost| Reason::SessionLost)
    }

    /// Takes a leg whose `Opened` was said, and puts it on a conduit when the relay waits for one: hears its ATTACH, checks
    /// the proof, and has the stream carried by it.
    ///
    /// # Errors
    /// Why the leg does not carry the stream; the leg is reset with the reason and the stream goes on as before.
    pub async fn let_in(
        &self,
        mut leg: Leg,
        epoch: Epoch,
        conduit: Option<ConduitId>,
    ) -> Result<(), Reason> {
        let hear = self.hear(&mut leg, epoch, conduit);
        let heard = tokio::time::timeout(ATTACH_DEADLINE, hear).await;
        match heard.unwrap_or(Err(Reason::OpenTimeout)) {
            Ok((attach, decoder)) => {
                let (answer, answered) = oneshot::channel();
                let candidate = Candidate {
                    leg,
                    decoder,
                    attach,
                    answer,
                };
                if let Err(refused) = self.0.wait(candidate) {
                    refused.leg.io.reset(Reason::Overloaded);
                    return Err(Reason::Overloaded);
                }
                // A driver that is gone has dropped the leg.
                answered.await.unwrap_or(Err(Reason::PeerLost))
            }
            Err(reason) => {
                leg.io.reset(reason);
                Err(reason)
            }
        }
    }

    async fn hear(
        &self,
        leg: &mut Leg,
        epoch: Epoch,
        conduit: Option<ConduitId>,
    ) -> Result<(Attach, Decoder), Reason> {
        let settled = self.0.settled.get().and_then(Option::as_ref);
        let settled = settled.ok_or(Reason::AttachRefused)?;
        if let Some(id) = conduit {
            leg.join(&Wish {
                id,
                role: Role::Accepter,
                epoch,
                ticket: Arc::clone(&settled.ticket),
            })
            .await?;
        }
        let mut decoder = Decoder::new();
        let attach = loop {
            match decoder.next() {
                Ok(Some(Frame::Attach(attach))) => break attach,
                Ok(None) => {}
                Ok(Some(_)) | Err(_) => return Err(Reason::ProtocolViolation),
            }
            let chunk = leg.read_chunk(CHUNK).await;
            let chunk = chunk.map_err(|error| lost_reading(&error))?;
            decoder.push(chunk.ok_or(Reason::SessionLost)?);
        };
        let proved = settled
            .ticket
            .verify(Role::Opener, attach.epoch, attach.proof.as_ref());
        if !proved || attach.epoch != epoch {
            return Err(Reason::AttachRefused);
        }
        Ok((attach, decoder))
    }
}

impl Hall {
    /// Lets somebody wait for the driver, unless it is gone or too many do.
    fn wait(&self, candidate: Candidate) -> Result<(), Box<Candidate>> {
        let mut waiting = self.waiting.lock();
        if waiting.over || waiting.candidates.len() >= WAITING_LIMIT {
            return Err(Box::new(candidate));
        }
        waiting.candidates.push_back(candidate);
        drop(waiting);
        self.arrived.notify_one();
        Ok(())
    }

    fn take(&self) -> Option<Candidate> {
        let mut waiting = self.waiting.lock();
        let candidate = waiting.candidates.pop_front()?;
        waiting.candidates.shrink_to_fit();
        Some(candidate)
    }

    /// Sends away who waits, and who comes.
    fn close(&self) {
        let mut waiting = self.waiting.lock();
        waiting.over = true;
        let candidates = std::mem::take(&mut waiting.candidates);
        drop(waiting);
        // Whoever waits for an answer hears that there is none.
        drop(candidates);
    }
}

impl Place {
    /// The next leg that the stream may go on by.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn next(&mut self) -> Candidate {
        let hall = &self.door.0;
        loop {
            if let Some(candidate) = hall.take() {
                return candidate;
            }
            hall.arrived.notified().await;
        }
    }

    /// Remembers that the stream waited in vain.
    pub(super) fn expire(&self) {
        remember(&mut self.doors.inner.lock().expired, self.id);
    }

    /// The stream's id.
    #[must_use]
    pub fn id(&self) -> StreamId {
        self.id
    }

    pub(crate) fn door(&self) -> &Door {
        &self.door
    }

    pub(crate) fn doors(&self) -> &Doors {
        &self.doors
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.door.0.close();
        // Before it is told that nothing was heard: from here on nothing will be.
        let is_unheard = self.door.0.settled.set(None).is_ok();
        let mut inner = self.doors.inner.lock();
        inner.live.remove(&self.id);
        if is_unheard {
            remember(&mut inner.unheard, self.id);
        }
    }
}

fn remember(streams: &mut VecDeque<StreamId>, id: StreamId) {
    if streams.len() >= REMEMBERED_LIMIT {
        streams.pop_front();
    }
    streams.push_back(id);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> ServiceName {
        "db".parse().expect("a name")
    }

    // S20: whoever names a live stream's id gets nothing, and the stream keeps its place.
    #[test]
    fn an_id_that_is_live_is_not_given_twice() {
        let doors = Doors::default();
        let enter = || doors.enter(StreamId([7; 16]), service());
        let first = enter();
        assert!(first.is_some() && enter().is_none());
        drop(first);
        assert!(enter().is_some());
    }

    fn settle(door: &Door) -> Result<(), Reason> {
        let agent = |name: &str| AgentId {
            tenant: "default".parse().expect("a name"),
            name: name.parse().expect("a name"),
        };
        let ca = crate::identity::testing::TestCa::new("sealock");
        let svid = ca.identity("default/agent/caller").current();
        let peer = PeerIdentity::clone(svid.expect("an identity").leaf());
        let context = sealock_proto::stream::TicketContext {
            stream: [1; 16],
            opener: agent("caller"),
            accepter: agent("provider"),
        };
        let secret = sealock_core::secret::Secret::new([7; 32]);
        door.settle(
            agent("caller"),
            peer,
            Arc::new(Ticket::new(secret, context)),
        )
    }

    #[test]
    fn what_is_said_to_be_unheard_is_never_heard_later_and_what_was_heard_is_not_said_to_be() {
        let doors = Doors::default();
        let enter = |id| {
            doors
                .enter(StreamId([id; 16]), service())
                .expect("a new id")
        };
        let (lost, heard) = (enter(1), enter(2));
        let door = lost.door().clone();
        assert!(!doors.never_heard(StreamId([1; 16])), "it may be yet");
        drop(lost);
        assert!(doors.never_heard(StreamId([1; 16])));
        assert_eq!(settle(&door), Err(Reason::SessionLost));
        assert_eq!(settle(heard.door()), Ok(()));
        drop(heard);
        assert!(!doors.never_heard(StreamId([2; 16])));
        assert!(!doors.never_heard(StreamId([3; 16])), "nobody knows it");
        for _ in 0..REMEMBERED_LIMIT {
            drop(enter(4));
        }
        assert!(!doors.never_heard(StreamId([1; 16])), "there is a bound");
    }

    #[test]
    fn a_stream_that_waited_in_vain_is_told_apart_from_one_that_nobody_knows() {
        let doors = Doors::default();
        let place = doors.enter(StreamId([1; 16]), service()).expect("a new id");
        place.expire();
        drop(place);
        let reason = |id| doors.find(StreamId([id; 16])).map(|_| ()).unwrap_err();
        assert_eq!(reason(1), Reason::ResumeExpired);
        assert_eq!(reason(2), Reason::PeerLost);
    }
}
