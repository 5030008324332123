//! QUIC by the noq library, which no other module names.

mod places;
#[cfg(test)]
mod sim;
mod socket;
mod stream;
mod watch;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use noq::crypto::ClientConfig as ClientCrypto;
use noq::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use noq::{ConnectionError, MtuDiscoveryConfig, PathId, TransportConfig, VarInt};
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use sealock_core::reason::Reason;
use tokio::time::Instant;

use super::pulse::Side;
use super::{Alert, ConnectError, Lost, Settings, TransportKeys};
use crate::identity::PeerIdentity;
use crate::sys;
use crate::task::Scope;
use crate::tls::verify::VerifyError;
use crate::tls::{UNUSED_NAME, peer_identity};

use places::{Places, STREAMS_AT_FIRST};
use stream::halves;
pub(crate) use stream::{RecvHalf, SendHalf};
use watch::Watch;
use wire::{Dialled, REFUSAL_GRACE, Wire};

// More than ~1 000 gaps in one stream end the whole connection, and 2 MiB are ~1 700 packets: the most that is safe.
const STREAM_WINDOW: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024; // 1 Gbit/s at 128 ms
const SHARED_WINDOW: u32 = 256 * 1024 * 1024; // 1 000 streams that fill the window which each has at first
/// What each stream beyond the first ones adds to the window of its connection: what one has at first. What was written
/// counts against that window before it is sent, so on a slow link a thousand streams with full buffers would otherwise
/// leave none of it to a new one.
const WINDOW_PER_STREAM: u32 = 256 * 1024;
const SOCKET_BUFFER: usize = 8 * 1024 * 1024; // 1 000 agents that return at once lose no handshake packet
const INCOMING_BUFFER: u64 = 16 * 1024; // a first flight with a post-quantum key is 2 packets; early data is off
const INCOMING_TOTAL: u64 = 16 * 1024 * 1024; // half of the memory that strangers may use
const INCOMING_QUEUE: usize = 4_096; // what comes within one wait for the processor; × 1.2 KiB of one first packet
/// How much longer than its deadline a dial waits for a peer that has answered: one that is busy with a crowd gets to
/// everybody in the end, and a dial that begins anew costs both sides a handshake more.
const BUSY: Duration = Duration::from_secs(10);

// Ten packets of this size, the most that the library hands to the kernel at once, are just under the 64 KiB that one
// segmented send may have; larger packets would be lost.
const PACKET_LIMIT: u16 = 6_500;
const ETHERNET: u32 = 1_500;
const IP_AND_UDP: u32 = 40 + 8; // IPv6 without options; IPv4 is shorter
// Each trial costs both ends a packet of mere padding, read byte for byte: four trials where finer steps take eight.
const SIZE_STEP: u16 = 400;

/// The packets that are tried on the way to `peer`: larger than Ethernet's where the way is known to take them, as
/// within a machine and in networks with jumbo frames. The library begins at 1 200 bytes and feels its way up.
fn packet_sizes(peer: SocketAddr) -> Option<MtuDiscoveryConfig> {
    let mtu = sys::route_mtu(SocketAddr::new(peer.ip().to_canonical(), peer.port())).ok()?;
    if mtu <= ETHERNET {
        return None;
    }
    let largest = u16::try_from(mtu - IP_AND_UDP).unwrap_or(u16::MAX);
    let mut sizes = MtuDiscoveryConfig::default();
    sizes
        .upper_bound(largest.min(PACKET_LIMIT))
        .minimum_change(SIZE_STEP);
    Some(sizes)
}

fn transport(settings: &Settings, sizes: Option<MtuDiscoveryConfig>) -> TransportConfig {
    let mut config = TransportConfig::default();
    let idle =
        noq::IdleTimeout::try_from(settings.idle_timeout).unwrap_or_else(|_| VarInt::MAX.into());
    config
        .max_concurrent_bidi_streams(settings.streams.min(STREAMS_AT_FIRST).into())
        .max_concurrent_uni_streams(VarInt::from_u32(0)) // the protocol has none
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(CONNECTION_WINDOW.into())
        .send_window(settings.unsent.into())
        .datagram_receive_buffer_size(None) // the protocol has none
        .max_idle_timeout(Some(idle))
        .enable_segmentation_offload(true)
        .mtu_discovery_config(Some(sizes.unwrap_or_default()))
        // noq 1.4 writes its ACK_FREQUENCY frame without asking whether it fits, and where it does not, a panic in its
        // own clean-up ends the process: a relay that is asked for fewer acknowledgements dies of it now and then.
        .ack_frequency_config(None)
        .congestion_controller_factory(Arc::new(noq::congestion::CubicConfig::default()));
    config
}

/// The longest pauses before a port at which nobody listens is tried again. Another process that takes a relay's place
/// listens within some tenths of a second; who comes later is for the next dial.
const AGAIN: [Duration; 3] = [
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
];
/// What a refusal may say of the way: less is the speed of an idle machine, more is what RFC 9002 begins with.
const SHORTEST_FIRST_RTT: Duration = Duration::from_millis(25);
const LONGEST_FIRST_RTT: Duration = Duration::from_millis(333);

/// From where and to where connections are made.
#[derive(Debug, Clone)]
pub struct Endpoint {
    way: Way,
    settings: Settings,
    keys: TransportKeys,
    server: Option<noq::ServerConfig>,
    /// The watches over the connections.
    tasks: Arc<Scope>,
}

#[derive(Debug, Clone)]
enum Way {
    /// One socket for all, which others can come in by.
    Listens(Arc<Wire>),
    /// A socket for each connection.
    Dials(Arc<Dialled>),
}

impl Endpoint {
    /// An endpoint that only dials, from a port of its own for each connection, which nobody else can reach.
    ///
    /// # Errors
    /// None; the sockets are made as connections are.
    pub fn client(settings: Settings) -> io::Result<Self> {
        let keys = TransportKeys::generate();
        let way = Way::Dials(Arc::default());
        Ok(Self::new(way, settings, keys, None))
    }

    /// An endpoint that listens at `address`, and can dial as well.
    ///
    /// # Errors
    /// When the address is not free. Must be called within the runtime.
    pub fn server(
        address: SocketAddr,
        tls: Arc<rustls::ServerConfig>,
        settings: Settings,
        keys: &TransportKeys,
    ) -> io::Result<Self> {
        let crypto = QuicServerConfig::try_from(tls).map_err(io::Error::other)?;
        let mut config = noq::ServerConfig::with_crypto(Arc::new(crypto));
        config
            .transport_config(Arc::new(transport(&settings, None)))
            .max_incoming(INCOMING_QUEUE)
            .incoming_buffer_size(INCOMING_BUFFER)
            .incoming_buffer_size_total(INCOMING_TOTAL);
        let way = Way::Listens(Wire::listen(address, config.clone(), keys)?);
        Ok(Self::new(way, settings, keys.clone(), Some(config)))
    }

    fn new(
        way: Way,
        settings: Settings,
        keys: TransportKeys,
        server: Option<noq::ServerConfig>,
    ) -> Self {
        Self {
            way,
            settings,
            keys,
            server,
            tasks: Arc::new(Scope::new("watches")),
        }
    }

    /// The address that is listened at.
    ///
    /// # Errors
    /// When the system does not tell, or this endpoint only dials.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.way {
            Way::Listens(wire) => wire.endpoint.local_addr(),
            Way::Dials(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Connects, and returns when the other side has accepted our certificate as well. Whoever has not answered at all by
    /// the deadline is given up then, and one that has is given ten seconds more.
    ///
    /// Where nobody listens, the same is tried again a few times: a relay that is started again is back in a moment.
    ///
    /// # Errors
    /// When the other side is not reached, is not whom `tls` expects, or does not accept us.
    ///
    /// # Cancel safety
    /// Dropping the future gives the attempt up.
    pub async fn connect(
        &self,
        address: SocketAddr,
        tls: Arc<rustls::ClientConfig>,
        deadline: Instant,
    ) -> Result<super::Connection, ConnectError> {
        let crypto = QuicClientConfig::try_from(tls).map_err(|_| ConnectError::Endpoint)?;
        let crypto: Arc<dyn ClientCrypto> = Arc::new(crypto);
        let mut config = transport(&self.settings, packet_sizes(address));
        for longest in AGAIN {
            // Agents that lost a relay together do not come back together.
            let pause = longest.mul_f64(rand::random_range(0.5..1.0));
            let (begin, wire) = (Instant::now(), self.wire(address)?);
            let with = (Arc::clone(&crypto), config.clone());
            tokio::select! {
                biased; // a handshake that is done counts
                made = self.shake_hands(&wire, address, with, deadline) => return made,
                () = wire.nobody_there(begin, pause) => {}
            }
            // The refusal went there and back: what the next first packet has to wait for is known.
            let refused_after = begin.elapsed().saturating_sub(pause);
            config.initial_rtt(refused_after.clamp(SHORTEST_FIRST_RTT, LONGEST_FIRST_RTT));
        }
        let (begin, wire) = (Instant::now(), self.wire(address)?);
        tokio::select! {
            biased; // a handshake that is done counts
            made = self.shake_hands(&wire, address, (crypto, config), deadline) => made,
            () = wire.nobody_there(begin, REFUSAL_GRACE) => Err(ConnectError::Lost(Lost::PeerGone)),
        }
    }

    async fn shake_hands(
        &self,
        wire: &Arc<Wire>,
        address: SocketAddr,
        (crypto, transport): (Arc<dyn ClientCrypto>, TransportConfig),
        deadline: Instant,
    ) -> Result<super::Connection, ConnectError> {
        let mut config = noq::ClientConfig::new(crypto);
        config
            .transport_config(Arc::new(transport))
            .token_store(Arc::new(noq::NoneTokenStore)); // a token would link our connections
        let connecting = wire
            .endpoint
            .connect_with(config, address, UNUSED_NAME)
            .map_err(|error| connect_error(&error, address))?;
        let handshake = async {
            let connection = connecting.await?;
            // In TLS 1.3 a client is done before the server has seen its certificate.
            connection.handshake_confirmed().await?;
            Ok(connection)
        };
        let made = Made {
            wire: Arc::clone(wire),
            side: Side::Dialled,
            settings: self.settings,
            tasks: Arc::clone(&self.tasks),
        };
        tokio::select! {
            biased; // a handshake that is done counts
            made = made.finish(handshake, deadline + BUSY) => made,
            () = wire.nothing_heard(deadline) => Err(ConnectError::Timeout),
        }
    }

    fn wire(&self, address: SocketAddr) -> Result<Arc<Wire>, ConnectError> {
        match &self.way {
            Way::Listens(wire) => Ok(Arc::clone(wire)),
            Way::Dials(dialled) => self.dial(dialled, address),
        }
    }

    fn dial(&self, dialled: &Dialled, address: SocketAddr) -> Result<Arc<Wire>, ConnectError> {
        if dialled.is_closed() {
            return Err(ConnectError::Endpoint);
        }
        let wire = Wire::dial(address, &self.keys).map_err(|error| {
            tracing::debug!(err = %error, "there is no way to this address");
            ConnectError::Address(address)
        })?;
        dialled.add(&wire);
        Ok(wire)
    }

    /// Waits for somebody at the door; nothing is done for them before [`Incoming::handshake`].
    ///
    /// Returns nothing when the endpoint is closed.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn accept(&self) -> Option<Incoming> {
        let Way::Listens(wire) = &self.way else {
            return None;
        };
        Some(Incoming {
            inner: wire.endpoint.accept().await?,
            made: Made {
                wire: Arc::clone(wire),
                side: Side::Listens,
                settings: self.settings,
                tasks: Arc::clone(&self.tasks),
            },
            server: self.server.clone(),
        })
    }

    fn wires(&self) -> Vec<Arc<Wire>> {
        match &self.way {
            Way::Listens(wire) => vec![Arc::clone(wire)],
            Way::Dials(dialled) => dialled.all(),
        }
    }

    /// How many connections are open.
    #[must_use]
    pub fn connections(&self) -> usize {
        let open = |wire: &Arc<Wire>| wire.endpoint.open_connections();
        self.wires().iter().map(open).sum()
    }

    /// Closes every connection and accepts no more.
    pub fn close(&self, reason: Reason) {
        if let Way::Dials(dialled) = &self.way {
            dialled.close();
        }
        for wire in self.wires() {
            wire.endpoint.close(reason.number().into(), b"");
        }
    }

    /// Waits until peers have been told of closed connections, or three round trips have passed.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn wait_idle(&self) {
        for wire in self.wires() {
            wire.endpoint.wait_idle().await;
        }
    }
}

/// Somebody at the door, of whom only the address is known. Dropping it refuses.
#[derive(Debug)]
pub struct Incoming {
    inner: noq::Incoming,
    made: Made,
    server: Option<noq::ServerConfig>,
}

impl Incoming {
    /// Where it claims to be.
    #[must_use]
    pub fn remote_address(&self) -> SocketAddr {
        canonical(self.inner.remote_address())
    }

    /// Whether it proved that it receives what is sent to its address.
    #[must_use]
    pub fn is_validated(&self) -> bool {
        self.inner.remote_address_validated()
    }

    /// Asks it to prove its address and come again; refuses it when it has done so already.
    pub fn retry(self) {
        if let Err(error) = self.inner.retry() {
            error.into_incoming().refuse();
        }
    }

    /// Tells it that we do not talk to it.
    pub fn refuse(self) {
        self.inner.refuse();
    }

    /// Lets it wait for an answer that never comes.
    pub fn ignore(self) {
        self.inner.ignore();
    }

    /// Goes through the handshake.
    ///
    /// # Errors
    /// When it is not done by the deadline, or the other side is not whom our TLS configuration expects.
    ///
    /// # Cancel safety
    /// Dropping the future gives the connection up.
    pub async fn handshake(self, deadline: Instant) -> Result<super::Connection, ConnectError> {
        let sizes = packet_sizes(self.inner.remote_address());
        let connecting = match (self.server, sizes) {
            (Some(mut server), Some(sizes)) => {
                let transport = transport(&self.made.settings, Some(sizes));
                server.transport_config(Arc::new(transport));
                self.inner.accept_with(Arc::new(server))
            }
            (_, None) | (None, _) => self.inner.accept(),
        };
        let connecting = connecting.map_err(failed_handshake)?;
        self.made.finish(connecting, deadline).await
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// What a connection is made on and with.
#[derive(Debug)]
struct Made {
    wire: Arc<Wire>,
    side: Side,
    settings: Settings,
    tasks: Arc<Scope>,
}

impl Made {
    async fn finish(
        self,
        handshake: impl Future<Output = Result<noq::Connection, ConnectionError>>,
        deadline: Instant,
    ) -> Result<super::Connection, ConnectError> {
        let connection = tokio::time::timeout_at(deadline, handshake)
            .await
            .map_err(|_| ConnectError::Timeout)?
            .map_err(failed_handshake)?;
        let chain = connection
            .peer_identity()
            .and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok());
        let peer = peer_identity(chain.as_ref().map(|chain| chain.as_slice()))
            .map_err(ConnectError::Leaf)?;
        let alpn = connection
            .handshake_data()
            .and_then(|data| data.downcast::<HandshakeData>().ok())
            .and_then(|data| data.protocol);
        let facts = Arc::new(Facts { peer, alpn });
        let Self {
            wire,
            side,
            settings,
            tasks,
        } = self;
        Ok(super::Connection::quic(Connection {
            places: Places::new(&settings),
            watch: Watch::begin(&connection, wire, side, &settings, tasks),
            room: Arc::new(Mutex::new(CONNECTION_WINDOW)),
            inner: connection,
            facts,
        }))
    }
}

fn connect_error(error: &noq::ConnectError, address: SocketAddr) -> ConnectError {
    match error {
        noq::ConnectError::InvalidRemoteAddress(_) => ConnectError::Address(address),
        noq::ConnectError::EndpointStopping
        | noq::ConnectError::CidsExhausted
        | noq::ConnectError::InvalidServerName(_)
        | noq::ConnectError::NoDefaultClientConfig
        | noq::ConnectError::UnsupportedVersion => ConnectError::Endpoint,
    }
}

const TLS_CODES: std::ops::RangeInclusive<u64> = 0x100..=0x1ff; // RFC 9001 §4.8

fn failed_handshake(error: ConnectionError) -> ConnectError {
    if let ConnectionError::TransportError(error) = &error
        && let Some(tls) = error.crypto.as_deref()
        && let Some(tls) = tls.downcast_ref::<rustls::Error>()
    {
        return match VerifyError::carried_by(tls) {
            Some(error) => ConnectError::NotAuthentic(error),
            None => ConnectError::Tls(tls.clone()),
        };
    }
    if let ConnectionError::ConnectionClosed(close) = &error
        && let code = u64::from(close.error_code)
        && TLS_CODES.contains(&code)
    {
        let alert = Alert::from_number(code.to_le_bytes()[0]);
        return ConnectError::NotAccepted { alert };
    }
    ConnectError::Lost(lost(&error))
}

fn lost(error: &ConnectionError) -> Lost {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            Lost::ByPeer(Reason::from_number(close.error_code.into_inner()))
        }
        ConnectionError::ConnectionClosed(close) => Lost::Transport {
            code: close.error_code.into(),
        },
        ConnectionError::TransportError(error) => Lost::Transport {
            code: error.code.into(),
        },
        ConnectionError::Reset => Lost::PeerRestarted,
        ConnectionError::TimedOut => Lost::Silent,
        ConnectionError::LocallyClosed => Lost::ByUs,
        // RFC 9000 §20.1: PROTOCOL_VIOLATION and INTERNAL_ERROR name what the library reports without a code.
        ConnectionError::VersionMismatch => Lost::Transport { code: 0x0a },
        ConnectionError::CidsExhausted => Lost::Transport { code: 0x01 },
    }
}

#[derive(Debug)]
struct Facts {
    peer: Option<PeerIdentity>,
    alpn: Option<Vec<u8>>,
}

/// A connection whose both ends are known; clones are the same connection, and it closes when the last one and all of
/// its streams are dropped.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    inner: noq::Connection,
    facts: Arc<Facts>,
    places: Arc<Places>,
    watch: Arc<Watch>,
    /// What may be unread on all streams together.
    room: Arc<Mutex<u32>>,
}

impl Connection {
    /// Who the other side proved to be; nobody if it came without a certificate.
    #[must_use]
    pub(crate) fn peer(&self) -> Option<&PeerIdentity> {
        self.facts.peer.as_ref()
    }

    /// The protocol that the handshake agreed on.
    #[must_use]
    pub(crate) fn alpn(&self) -> Option<&[u8]> {
        self.facts.alpn.as_deref()
    }

    /// Opens a stream; waits while the other side allows no more.
    ///
    /// The other side sees it with the first bytes written.
    ///
    /// # Errors
    /// When the connection is gone.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn open_bi(&self) -> Result<(SendHalf, RecvHalf), Lost> {
        let opened = self.inner.open_bi().await;
        let (send, recv) = opened.map_err(|error| self.watch.lost(&error))?;
        let hold = self.watch.hold(None);
        self.make_room_for(self.watch.attending());
        Ok(halves(send, recv, hold))
    }

    /// Waits for a stream that the other side opens.
    ///
    /// # Errors
    /// When the connection is gone.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn accept_bi(&self) -> Result<(SendHalf, RecvHalf), Lost> {
        let accepted = self.inner.accept_bi().await;
        let (send, recv) = accepted.map_err(|error| self.watch.lost(&error))?;
        let (place, more) = self.places.take();
        if let Some(more) = more {
            self.inner.set_max_concurrent_bi_streams(more.into());
        }
        let hold = self.watch.hold(Some(place));
        self.make_room_for(self.watch.attending());
        Ok(halves(send, recv, hold))
    }

    /// Lets the other side have this many streams open at once; fewer than before takes effect as streams end.
    pub(crate) fn allow_streams(&self, streams: u32) {
        self.places.allow(streams);
        self.inner.set_max_concurrent_bi_streams(streams.into());
    }

    /// Ends the connection and every stream in it; one that has ended already keeps its cause.
    pub(crate) fn close(&self, reason: Reason) {
        // The library would tell streams that have not looked yet that this side closed them.
        if self.inner.close_reason().is_none() {
            self.inner.close(reason.number().into(), b"");
        }
    }

    /// Waits until the connection has ended, and tells how.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn closed(&self) -> Lost {
        self.watch.lost(&self.inner.closed().await)
    }

    /// How the connection ended, if it has.
    #[must_use]
    pub(crate) fn close_reason(&self) -> Option<Lost> {
        let ended = self.inner.close_reason();
        ended.map(|error| self.watch.lost(&error))
    }

    /// The round-trip time as QUIC sees it.
    #[must_use]
    pub(crate) fn rtt(&self) -> Option<Duration> {
        self.inner.rtt(PathId::ZERO)
    }

    /// Widens what may be unread on all streams together.
    pub(crate) fn make_room(&self) {
        self.widen(SHARED_WINDOW);
    }

    /// The more streams, the more; it does not shrink again.
    fn make_room_for(&self, streams: usize) {
        let streams = u32::try_from(streams).unwrap_or(u32::MAX);
        let wanted = streams.saturating_mul(WINDOW_PER_STREAM).min(SHARED_WINDOW);
        // In doublings: the other side is told of each.
        self.widen(wanted.next_power_of_two());
    }

    fn widen(&self, window: u32) {
        let mut room = self.room.lock();
        if *room < window {
            *room = window;
            self.inner.set_receive_window(window.into());
        }
    }

    /// The largest packets that reach the other side, as far as is known.
    #[must_use]
    pub(crate) fn packet_size(&self) -> Option<u16> {
        Some(self.inner.path(PathId::ZERO)?.stats().current_mtu)
    }

    /// Where the other side is; it may move.
    #[must_use]
    pub(crate) fn remote_address(&self) -> Option<SocketAddr> {
        let path = self.inner.path(PathId::ZERO)?;
        path.remote_address().ok().map(canonical)
    }

    /// A number that tells this connection from the others of the process.
    #[must_use]
    pub(crate) fn id(&self) -> usize {
        self.inner.stable_id()
    }
}
