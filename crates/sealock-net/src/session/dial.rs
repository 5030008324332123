//! Dials a relay: its name's addresses in turn, with this node's identity, expecting a relay of our trust domain.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use sealock_core::address::HostPort;
use sealock_core::reason::Reason;
use sealock_core::token::CaPin;
use tokio::time::Instant;

use crate::identity::{IdentityStore, TrustStore};
use crate::tls;
use crate::transport::{ConnectError, Connection, Endpoint};

/// Why a relay was not reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Its name has no address.
    #[error("the name of {0} has no address")]
    NoAddress(HostPort),
    /// No address of it could be connected to; this is the error of the last one.
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

/// Dials relays.
#[derive(Debug, Clone)]
pub struct Dialer {
    endpoint: Endpoint,
    tls: Arc<ClientConfig>,
}

/// How long one address may take, with its name's look-up.
const ADDRESS_DEADLINE: Duration = Duration::from_secs(5); // three QUIC PTOs at a first guess of 333 ms, and room

impl Dialer {
    /// For sessions, with this identity.
    #[must_use]
    pub fn for_sessions(endpoint: Endpoint, identity: &IdentityStore, trust: &TrustStore) -> Self {
        Self {
            endpoint,
            tls: tls::relay_client(identity, trust),
        }
    }

    /// For a node that joins: it has no certificate, and judges by the pin of its token.
    #[must_use]
    pub fn for_joining(endpoint: Endpoint, pin: CaPin) -> Self {
        Self {
            endpoint,
            tls: tls::join_relay_client(pin),
        }
    }

    /// For a node whose certificate ended: it shows none, and judges by the roots that it trusts.
    #[must_use]
    pub fn for_recovery(endpoint: Endpoint, trust: &TrustStore) -> Self {
        Self {
            endpoint,
            tls: tls::recover_relay_client(trust),
        }
    }

    /// Connects to a relay.
    ///
    /// # Errors
    /// When no address of it answers as it must.
    ///
    /// # Cancel safety
    /// Dropping the future gives the attempt up.
    pub async fn dial(&self, relay: &HostPort) -> Result<Connection, DialError> {
        let mut last = DialError::NoAddress(relay.clone());
        for address in addresses(relay).await {
            let deadline = Instant::now() + ADDRESS_DEADLINE;
            match self
                .endpoint
                .connect(address, Arc::clone(&self.tls), deadline)
                .await
            {
                Ok(connection) => return Ok(connection),
                Err(error) => last = error.into(),
            }
        }
        Err(last)
    }

    /// Waits until there is a better way to a relay than the connection that there is, and connects by it. The session
    /// then moves to that connection by itself: see the cause «a better way» in `session::keep`.
    ///
    /// There is one way only, so none is ever better.
    ///
    /// # Cancel safety
    /// Dropping the future gives the attempt up.
    pub async fn better(&self, _relay: &HostPort, _than: &Connection) -> Connection {
        std::future::pending().await
    }
}

async fn addresses(relay: &HostPort) -> Vec<SocketAddr> {
    if let Some(address) = relay.as_socket_addr() {
        return vec![address];
    }
    let lookup = tokio::net::lookup_host((relay.host(), relay.port()));
    match tokio::time::timeout(ADDRESS_DEADLINE, lookup).await {
        Ok(Ok(found)) => found.collect(),
        Ok(Err(error)) => {
            tracing::debug!(%relay, err = %error, "the relay's name could not be looked up");
            Vec::new()
        }
        Err(_elapsed) => Vec::new(),
    }
}
