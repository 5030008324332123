//! An agent's sessions to relays: made, kept, and made again.
//!
//! [`maintain`] keeps a session with each of up to two relays. Others hold [`Sessions`] and ask for the best one of the
//! moment, or wait for it. A session is replaced in one way, whatever the cause (a renewed identity, a relay that
//! drains, a better transport): the next one is up first, then the old one is said to be retiring, and it lives on for
//! the streams that it carries. A refusal that trying again cannot change slows the attempts down to a trickle and is
//! shown as the state.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sealock_core::address::HostPort;
use sealock_core::config::Transport;
use sealock_core::name::{Region, ServiceName};
use sealock_core::reason::Reason;
use sealock_proto::wire::{Incoming, Message, Open, SessionKind};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::identity::IdentityStore;
use crate::relays::RelayList;
use crate::stream::Leg;
use crate::transport::{BiStream, Connection};

mod board;
mod conduit;
mod dial;
mod keep;
mod live;
mod seats;

pub use board::{SessionStatus, Sessions, State};
pub use conduit::ConduitWay;
pub use dial::{DialError, Dialer, PassedOver, Plan, Ways};
pub use live::accept;

/// How long an open waits for a stream to become free.
const STREAM_WAIT: Duration = Duration::from_secs(2); // one that ends is free again a round trip later

/// Tells the sessions of a process apart; a number is never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(u64);

impl SessionId {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl std::fmt::Display for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A session with a relay; clones are the same one.
///
/// Who only moves bytes on a leg should not keep it: the connection of a retired session ends with the last of its
/// streams and the last of its clones.
#[derive(Debug, Clone)]
pub struct Session {
    id: SessionId,
    connection: Connection,
    number: u64,
    relay: HostPort,
    retiring: CancellationToken,
    conduits: Arc<ConduitWay>,
    /// What happens in the session is logged in it.
    span: tracing::Span,
}

impl Session {
    fn new(connection: Connection, number: u64, relay: HostPort, dialer: &Dialer) -> Self {
        let (transport, peer) = (connection.transport(), keep::relay_name(&connection));
        let peer = peer.as_ref().map(tracing::field::display);
        let span = tracing::info_span!("session", session_id = number, %relay, peer, %transport);
        let conduits = ConduitWay::new(dialer.clone(), relay.clone(), &connection);
        Self {
            id: SessionId::next(),
            conduits: Arc::new(conduits),
            connection,
            number,
            relay,
            retiring: CancellationToken::new(),
            span,
        }
    }

    /// Asks the relay for a leg. The answer comes on the leg itself, so that the caller can already send more.
    ///
    /// # Errors
    /// When the session is lost.
    pub async fn open_leg(&self, mut open: Open) -> Result<Leg, Reason> {
        let is_wanted = open.conduit.is_some() && self.conduits.is_open();
        open.conduit = open.conduit.filter(|_| is_wanted);
        let io = self.open_stream(&Message::Open(open)).await?;
        let leg = self.leg(io);
        Ok(if is_wanted {
            leg.awaiting_conduit()
        } else {
            leg
        })
    }

    /// A leg on this session; it is to be left when the session is.
    fn leg(&self, io: BiStream) -> Leg {
        Leg::new(io, self.retiring.clone()).with_way(Arc::clone(&self.conduits))
    }

    /// A stream that the relay joins with the controller, blindly.
    ///
    /// # Errors
    /// When the session is lost.
    pub async fn open_controller(&self) -> Result<BiStream, Reason> {
        let stream = self.open_stream(&Message::Controller).await?;
        stream.stand_by();
        Ok(stream)
    }

    async fn open_stream(&self, head: &Message) -> Result<BiStream, Reason> {
        // The relay allows only so many; who has them all in use is told so, and not left to wait.
        let opened = tokio::time::timeout(STREAM_WAIT, self.connection.open_bi()).await;
        let mut leg = opened.map_err(|_elapsed| Reason::QuotaExceeded)??;
        leg.send.write(head.encode()).await?;
        Ok(leg)
    }

    /// Which session of this process it is.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// The relay's number for the session.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// What carries it.
    #[must_use]
    pub fn transport(&self) -> Transport {
        self.connection.transport()
    }

    /// The relay that it is with.
    #[must_use]
    pub fn relay(&self) -> &HostPort {
        &self.relay
    }

    /// The time of a round trip to the relay.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.connection.rtt()
    }

    /// Completes when the session is to be left: another one took its place, its relay drains, or it is lost. Its legs
    /// may carry on for a while; a new leg belongs on [`Sessions::current`].
    ///
    /// # Cancel safety
    /// Safe; the future holds nothing of the session.
    pub fn retiring(&self) -> impl Future<Output = ()> + Send + use<> {
        self.retiring.clone().cancelled_owned()
    }

    /// Whether the session is lost, though that may not be told yet.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.connection.close_reason().is_some()
    }

    /// Whether the session is to be left.
    #[must_use]
    pub fn is_retiring(&self) -> bool {
        self.retiring.is_cancelled()
    }

    fn retire(&self) {
        self.retiring.cancel();
    }
}

/// A leg that a relay offers, its head read and not yet answered.
#[derive(Debug)]
pub struct Offered {
    /// What the relay says of it.
    pub incoming: Incoming,
    /// The leg.
    pub leg: Leg,
}

/// What a session is made of.
#[derive(Debug)]
pub struct SessionConfig {
    /// The relays that were given; an agent that offers services has a session with two, where there are two.
    pub relays: Vec<HostPort>,
    /// The relays that the controller tells, now and later.
    pub list: RelayList,
    /// Where this agent is: relays of the same region come first.
    pub region: Option<Region>,
    /// Dials them, with this agent's identity.
    pub dialer: Dialer,
    /// Who this agent is: it vouches with it for being at a relay.
    pub identity: IdentityStore,
    /// Random for each start of the process.
    pub instance: [u8; 16],
    /// What the session is for.
    pub kind: SessionKind,
    /// The services to offer, now and later.
    pub offers: watch::Receiver<BTreeSet<ServiceName>>,
    /// Where offered legs go; when it is full, a leg is refused.
    pub offered: mpsc::Sender<Offered>,
    /// Tells when the identity was renewed: the session is then made anew, and the old one lives on for its streams.
    pub renewed: watch::Receiver<()>,
    /// Cancelled when this agent takes nothing new: its offers are taken back, and what runs goes on.
    pub farewell: CancellationToken,
}

/// Says how to get at the sessions that the returned future keeps.
pub fn maintain(config: SessionConfig) -> (Sessions, impl Future<Output = ()> + Send + 'static) {
    let (board, sessions) = board::new(keep::slots(config.kind), config.relays.first());
    (sessions, keep::keep(Arc::new(config), board))
}
