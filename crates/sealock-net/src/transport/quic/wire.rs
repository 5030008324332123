//! What connections run over: the socket that is listened at, or a socket of its own for each connection that is dialled.
//!
//! A dialled connection's socket is connected: nobody but the peer can reach it, it is no open port, and the machine of
//! the peer can say that nobody listens there any more. Such a socket keeps the address that it began with; so when the
//! way to the peer begins at another address, the connection moves to another socket.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use noq::{EndpointConfig, TokioRuntime};
use parking_lot::Mutex;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::time::Instant;

use super::socket::{Port, Refusals};
use super::{PACKET_LIMIT, SOCKET_BUFFER, canonical};
use crate::sys;
use crate::transport::TransportKeys;

/// How often an attempt to connect looks by itself whether the peer's machine has said that nobody listens.
const REFUSAL_LOOK: Duration = Duration::from_millis(50);
/// How much longer a peer may take to answer all the same: a round trip around the world.
pub(super) const REFUSAL_GRACE: Duration = Duration::from_millis(300);

/// Between two stateless resets: none, for the library gives all packets that it takes in together the same time, and of
/// a fleet whose relay restarted one agent in each such batch would be told. Only an id that this machine made is
/// answered, by less than came in, so strangers gain nothing by it.
const RESET_INTERVAL: Duration = Duration::ZERO;

/// A socket with the QUIC endpoint on it.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) endpoint: noq::Endpoint,
    refusals: Mutex<Refusals>,
    /// The one peer of a connected socket.
    peer: Option<SocketAddr>,
}

impl Wire {
    /// A wire that anybody may come in by.
    pub(super) fn listen(
        address: SocketAddr,
        server: noq::ServerConfig,
        keys: &TransportKeys,
    ) -> io::Result<Arc<Self>> {
        let domain = Domain::for_address(address);
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        if address.ip().is_unspecified() && address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.bind(&address.into())?;
        Self::on(socket.into(), None, Some(server), keys)
    }

    /// A wire to `peer` alone.
    pub(super) fn dial(peer: SocketAddr, keys: &TransportKeys) -> io::Result<Arc<Self>> {
        let peer = canonical(peer);
        Self::on(sys::connected_udp(peer)?, Some(peer), None, keys)
    }

    fn on(
        socket: std::net::UdpSocket,
        peer: Option<SocketAddr>,
        server: Option<noq::ServerConfig>,
        keys: &TransportKeys,
    ) -> io::Result<Arc<Self>> {
        let mut config = EndpointConfig::new(Arc::new(keys.reset_key()));
        let ids = keys.connection_ids();
        config
            .cid_generator(Arc::new(move || Box::new(ids.clone())))
            .min_reset_interval(RESET_INTERVAL)
            .max_udp_payload_size(PACKET_LIMIT)
            .map_err(io::Error::other)?;
        let port = port(socket, peer.is_some())?;
        let refusals = Mutex::new(port.refusals());
        let runtime = Arc::new(TokioRuntime);
        let endpoint =
            noq::Endpoint::new_with_abstract_socket(config, server, Box::new(port), runtime)?;
        Ok(Arc::new(Self {
            endpoint,
            refusals,
            peer,
        }))
    }

    /// Whether since `begin` the machine of `remote` said that nobody listens there.
    pub(super) fn refused(&self, remote: SocketAddr, begin: Instant) -> bool {
        self.refusals.lock().since(remote, begin)
    }

    /// Waits until the machine of the one peer has said since `begin` that nobody listens there, and nothing has come from
    /// it until `patience` is over: whoever forged that has not kept the peer from answering. Endless where that cannot be.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn nobody_there(&self, begin: Instant, patience: Duration) {
        let Some(peer) = self.peer else {
            return std::future::pending().await;
        };
        loop {
            let refusals = self.refusals.lock().clone();
            if refusals.since(peer, begin) {
                tokio::time::sleep(patience).await;
                if !refusals.heard() {
                    return;
                }
            }
            if refusals.heard() {
                return std::future::pending().await;
            }
            // The time runs out without news where nobody reads the socket.
            let news = tokio::time::timeout(REFUSAL_LOOK, refusals.more());
            news.await.ok();
        }
    }

    /// Waits until the deadline; endless when something has come in by then.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn nothing_heard(&self, deadline: Instant) {
        tokio::time::sleep_until(deadline).await;
        if self.refusals.lock().heard() {
            std::future::pending::<()>().await;
        }
    }

    /// Moves a connection that was dialled to another socket if the way to its peer begins at another address by now;
    /// says whether it does.
    ///
    /// # Errors
    /// When there is no way at all, or no socket.
    pub(super) fn follow_route(&self) -> io::Result<bool> {
        let Some(peer) = self.peer else {
            return Ok(false);
        };
        let socket = sys::connected_udp(peer)?;
        let (old, new) = (self.endpoint.local_addr()?.ip(), socket.local_addr()?.ip());
        if old == new {
            return Ok(false);
        }
        let port = port(socket, true)?;
        *self.refusals.lock() = port.refusals();
        tracing::info!("the way to the peer begins at another address; the connection moves there");
        self.endpoint.rebind_abstract(Box::new(port))?;
        Ok(true)
    }
}

fn port(socket: std::net::UdpSocket, connected: bool) -> io::Result<Port> {
    let sizes = sys::raise_buffers(&socket, SOCKET_BUFFER)?;
    tracing::debug!(
        receive = sizes.receive,
        send = sizes.send,
        "socket buffers are set"
    );
    Port::new(socket, connected)
}

/// The wires that were dialled and are still in use.
#[derive(Debug, Default)]
pub(super) struct Dialled {
    wires: Mutex<Vec<Weak<Wire>>>,
    closed: AtomicBool,
}

impl Dialled {
    pub(super) fn add(&self, wire: &Arc<Wire>) {
        let mut wires = self.wires.lock();
        wires.retain(|wire| wire.strong_count() > 0);
        wires.push(Arc::downgrade(wire));
    }

    /// No more are to be dialled.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    pub(super) fn all(&self) -> Vec<Arc<Wire>> {
        self.wires.lock().iter().filter_map(Weak::upgrade).collect()
    }
}
