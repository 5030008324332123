//! How an agent brings its end of a conduit to the relay that a session is with.

use std::net::SocketAddr;
use std::time::Duration;

use parking_lot::Mutex;
use sealock_core::address::HostPort;
use sealock_core::reason::Reason;
use sealock_proto::wire::Join;
use tokio::time::Instant;

use super::dial::Dialer;
use crate::transport::Connection;
use crate::transport::conduit::Unkeyed;

/// How long a conduit may take: a TCP connection, a TLS handshake, and the same of the other agent.
const JOIN_DEADLINE: Duration = Duration::from_secs(4);
/// After one that failed, how long none is tried: what carries the streams meanwhile is as good as it was.
const REST: Duration = Duration::from_secs(60);

/// The way of conduits to one relay, in one session.
#[derive(Debug)]
pub struct ConduitWay {
    dialer: Dialer,
    relay: HostPort,
    /// Where the session found the relay.
    address: Option<SocketAddr>,
    not_before: Mutex<Option<Instant>>,
}

impl ConduitWay {
    pub(super) fn new(dialer: Dialer, relay: HostPort, connection: &Connection) -> Self {
        Self {
            dialer,
            relay,
            address: connection.remote_address(),
            not_before: Mutex::new(None),
        }
    }

    /// Whether a conduit is worth a try at this moment.
    #[must_use]
    pub fn is_open(&self) -> bool {
        let rests = self.not_before.lock().is_some_and(|at| Instant::now() < at);
        !rests && self.dialer.may_join()
    }

    /// Brings an end to the relay, and waits for the other agent's.
    ///
    /// # Errors
    /// `SESSION_LOST` when there is no conduit, for whatever cause: only the leg that it was for is lost.
    ///
    /// # Cancel safety
    /// Dropping the future gives the attempt up.
    pub(crate) async fn join(&self, join: Join) -> Result<Unkeyed, Reason> {
        let joined = self.dialer.join(&self.relay, self.address, join);
        let outcome = tokio::time::timeout(JOIN_DEADLINE, joined).await;
        let because = match outcome {
            Ok(Ok(unkeyed)) => return Ok(unkeyed),
            Ok(Err(error)) => error.to_string(),
            Err(_elapsed) => "the other agent did not come".to_owned(),
        };
        tracing::info!(relay = %self.relay, because, "there is no conduit");
        self.rest();
        Err(Reason::SessionLost)
    }

    /// A conduit was not to be had, or broke.
    pub(crate) fn rest(&self) {
        *self.not_before.lock() = Some(Instant::now() + REST);
    }
}
