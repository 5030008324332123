//! The ways by which this node may connect to relays: its sockets, the transports that it may use, and the proxy that
//! stands before the internet.

use std::io;

use sealock_core::config::{Transport, Upstreams};
use sealock_core::reason::Reason;

use crate::transport::{Endpoint, Settings, TcpEndpoint};

/// How relays may be reached; clones share the sockets.
#[derive(Debug, Clone)]
pub struct Ways {
    pub(super) udp: Endpoint,
    pub(super) tcp: TcpEndpoint,
    /// The best first, each once.
    pub(super) transports: Vec<Transport>,
    pub(super) upstreams: Upstreams,
}

/// Which ways there may be, before any socket is opened for them.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The transports to use, each once; the order is always from QUIC to the WebSocket.
    pub transports: Vec<Transport>,
    /// The proxies, which only carry what runs over TCP.
    pub upstreams: Upstreams,
}

/// Every transport, and no proxy.
impl Default for Plan {
    fn default() -> Self {
        Self {
            transports: Transport::ALL.to_vec(),
            upstreams: Upstreams::default(),
        }
    }
}

impl Plan {
    /// Opens the sockets.
    ///
    /// # Errors
    /// When no UDP socket can be had. Must be called within the runtime.
    pub fn open(&self, settings: Settings) -> io::Result<Ways> {
        let mut transports = self.transports.clone();
        transports.sort_unstable();
        transports.dedup();
        Ok(Ways {
            udp: Endpoint::client(settings)?,
            tcp: TcpEndpoint::client(settings),
            transports,
            upstreams: self.upstreams.clone(),
        })
    }
}

impl Ways {
    /// Closes every connection and makes no more.
    pub fn close(&self, reason: Reason) {
        self.udp.close(reason);
        self.tcp.close(reason);
    }

    /// Waits until the other sides have been told of closed connections.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn wait_idle(&self) {
        tokio::join!(self.udp.wait_idle(), self.tcp.wait_idle());
    }
}

/// QUIC alone, from that socket.
impl From<Endpoint> for Ways {
    fn from(udp: Endpoint) -> Self {
        Self {
            udp,
            tcp: TcpEndpoint::client(Settings::default()),
            transports: vec![Transport::Quic],
            upstreams: Upstreams::default(),
        }
    }
}
