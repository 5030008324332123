//! Dials relays, with this node's identity, expecting a relay of our trust domain.
//!
//! The transports are the rungs of a ladder: QUIC, TLS over TCP, a WebSocket. A dial tries them with every address of the
//! relay, each a little after the other (`race`), and takes the first whose handshake is done. Who is on a lower rung
//! looks for a better one from time to time, and at once when the network changes ([`Dialer::better`]), so no rung
//! sticks. What a better rung said when it was passed over is kept for `sealock status`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustls::ClientConfig;
use sealock_core::address::HostPort;
use sealock_core::config::Transport;
use sealock_core::reason::Reason;
use sealock_core::token::CaPin;
use sealock_proto::wire::Join;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::identity::{IdentityStore, TrustStore};
use crate::tls;
use crate::transport::conduit::Unkeyed;
use crate::transport::{ConnectError, Connection, NetworkChanges, TcpEndpoint, proxy};

mod race;
mod ways;

use race::Race;
pub use ways::{Plan, Ways};

/// Why a relay was not reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Its name has no address.
    #[error("the name of {0} has no address")]
    NoAddress(HostPort),
    /// No way to it led anywhere; this is the error that tells most.
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

impl DialError {
    /// How an attempt that failed so is shown to users.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            // Silence is what a dead relay and a closed firewall have in common.
            Self::NoAddress(_) | Self::Connect(ConnectError::Timeout) => Reason::RelayUnreachable,
            Self::Connect(error) => error.reason(),
        }
    }
}

/// A transport that was tried and is not in use, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassedOver {
    /// Which one.
    pub transport: Transport,
    /// What it said; silence is a reason too.
    pub because: String,
    /// Since when it has been so.
    pub since: jiff::Timestamp,
}

/// Dials relays; clones share what they learnt.
#[derive(Debug, Clone)]
pub struct Dialer {
    ways: Ways,
    tls: Arc<ClientConfig>,
    learnt: Arc<Mutex<BTreeMap<HostPort, Learnt>>>,
}

/// What is known of the ways to one relay.
#[derive(Debug, Default)]
struct Learnt {
    passed_over: Vec<PassedOver>,
    /// When a better way was found last.
    climbed: Option<Instant>,
}

/// The first look for a better rung: a firewall that dropped one burst is passed over in a moment.
const FIRST_LOOK: Duration = Duration::from_secs(2);
/// The longest pause between two looks; with a look's own time, a rung that healed is back in use within 30 s.
const LONGEST_LOOK: Duration = Duration::from_secs(20);
/// A rung that did not hold for so long is not climbed at once again.
const FLAPPING: Duration = Duration::from_secs(60);
/// One change of the network comes as a burst of messages, and a new address is of use only after its route.
const SETTLES: Duration = Duration::from_millis(100);

impl Dialer {
    /// For sessions, with this identity.
    #[must_use]
    pub fn for_sessions(
        ways: impl Into<Ways>,
        identity: &IdentityStore,
        trust: &TrustStore,
    ) -> Self {
        Self::new(ways, tls::relay_client(identity, trust))
    }

    /// For a relay's connections to other relays.
    #[must_use]
    pub fn for_peers(ways: impl Into<Ways>, identity: &IdentityStore, trust: &TrustStore) -> Self {
        Self::new(ways, tls::mesh_client(identity, trust))
    }

    /// For a node that joins: it has no certificate, and judges by the pin of its token.
    #[must_use]
    pub fn for_joining(ways: impl Into<Ways>, pin: CaPin) -> Self {
        Self::new(ways, tls::join_relay_client(pin))
    }

    /// For a node whose certificate ended: it shows none, and judges by the roots that it trusts.
    #[must_use]
    pub fn for_recovery(ways: impl Into<Ways>, trust: &TrustStore) -> Self {
        Self::new(ways, tls::recover_relay_client(trust))
    }

    fn new(ways: impl Into<Ways>, tls: Arc<ClientConfig>) -> Self {
        Self {
            ways: ways.into(),
            tls,
            learnt: Arc::default(),
        }
    }

    /// Connects to a relay by the first way that gets there.
    ///
    /// # Errors
    /// When none does.
    ///
    /// # Cancel safety
    /// Dropping the future gives every attempt up.
    pub async fn dial(&self, relay: &HostPort) -> Result<Connection, DialError> {
        self.race(relay, &self.ways.transports).await
    }

    /// Whether conduits may be made: they run over TLS, for which a node may have no leave.
    pub(super) fn may_join(&self) -> bool {
        self.ways.transports.contains(&Transport::Tls)
    }

    /// Brings one end of a conduit to the relay that a session found at `address`.
    pub(super) async fn join(
        &self,
        relay: &HostPort,
        address: Option<SocketAddr>,
        join: Join,
    ) -> Result<Unkeyed, ConnectError> {
        let stream = match (self.ways.upstreams.towards(relay), address) {
            (Some(upstream), _) => proxy::open(&upstream, relay).await?,
            (None, Some(address)) => TcpStream::connect(address)
                .await
                .map_err(ConnectError::Tcp)?,
            (None, None) => return Err(ConnectError::Endpoint),
        };
        TcpEndpoint::join(stream, &self.tls, join).await
    }

    async fn race(
        &self,
        relay: &HostPort,
        transports: &[Transport],
    ) -> Result<Connection, DialError> {
        tracing::debug!(%relay, "a dial begins");
        let mut race = Race::new(&self.ways, &self.tls, relay);
        let outcome = race.run(transports).await;
        let told = race.told();
        let mut learnt = self.learnt.lock();
        let known = learnt.entry(relay.clone()).or_default();
        if let Ok(connection) = &outcome {
            let reached = connection.transport();
            known.passed_over.retain(|it| it.transport < reached);
        }
        for (transport, because) in told {
            known.note(transport, because);
        }
        outcome
    }

    /// What the transports said that are better than the one in use, at the last look.
    #[must_use]
    pub fn passed_over(&self, relay: &HostPort, in_use: Transport) -> Vec<PassedOver> {
        let learnt = self.learnt.lock();
        let known = learnt.get(relay).map(|known| known.passed_over.as_slice());
        let mut better: Vec<_> = known.unwrap_or_default().to_vec();
        better.retain(|it| it.transport < in_use);
        better
    }

    /// Waits until there is a better way to a relay than the connection that there is, and connects by it. The session
    /// then moves to that connection by itself: see the cause «a better way» in `session::keep`.
    ///
    /// # Cancel safety
    /// Dropping the future gives the attempt up.
    pub async fn better(&self, relay: &HostPort, than: &Connection) -> Connection {
        let all = self.ways.transports.iter().copied();
        let rungs: Vec<_> = all.filter(|it| *it < than.transport()).collect();
        if rungs.is_empty() {
            return std::future::pending().await;
        }
        let mut network = NetworkChanges::watch();
        let mut pause = if self.is_flapping(relay) {
            LONGEST_LOOK
        } else {
            FIRST_LOOK
        };
        loop {
            tokio::select! { // order is free: both lead to the same look
                () = tokio::time::sleep(pause.mul_f64(rand::random_range(0.75..1.0))) => {
                    pause = (pause * 2).min(LONGEST_LOOK);
                }
                () = network.changed() => {
                    tokio::time::sleep(SETTLES).await;
                    pause = FIRST_LOOK;
                }
            }
            if let Ok(connection) = self.race(relay, &rungs).await {
                tracing::info!(%relay, transport = %connection.transport(), "a better way to the relay");
                let mut learnt = self.learnt.lock();
                learnt.entry(relay.clone()).or_default().climbed = Some(Instant::now());
                return connection;
            }
        }
    }

    fn is_flapping(&self, relay: &HostPort) -> bool {
        let learnt = self.learnt.lock();
        let climbed = learnt.get(relay).and_then(|known| known.climbed);
        climbed.is_some_and(|when| when.elapsed() < FLAPPING)
    }
}

impl Learnt {
    /// Notes what a transport said; the time stays while it says nothing else.
    fn note(&mut self, transport: Transport, because: String) {
        let known = self
            .passed_over
            .iter_mut()
            .find(|it| it.transport == transport);
        match known {
            Some(known) if known.because == because => {}
            Some(known) => {
                known.because = because;
                known.since = jiff::Timestamp::now();
            }
            None => self.passed_over.push(PassedOver {
                transport,
                because,
                since: jiff::Timestamp::now(),
            }),
        }
    }
}

#[cfg(test)]
mod tests;
