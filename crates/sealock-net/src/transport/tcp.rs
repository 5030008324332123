//! Connections over TCP: TLS 1.3 with a mux in it, or a WebSocket with the mux in that.
//!
//! One port serves both. TLS settles which it is: `sealock/1` and `sealock-join/1` begin the mux at once, `http/1.1`
//! and clients that name no protocol speak HTTP, where the path of an upgrade stands for the protocol. Identities are
//! proved in TLS alone, the same way as with QUIC. Deliberately absent: the way to the port (`proxy`, the dialler).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use sealock_core::config::Transport;
use sealock_core::reason::Reason;
use sealock_proto::wire::Join;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::mux::{self, Closer, Facts, Pipe, Side};
use super::{Alert, ConnectError, Connection, Lost, Settings, conduit, record, websocket};
use crate::identity::PeerIdentity;
use crate::task::Scope;
use crate::tls::verify::VerifyError;
use crate::tls::{alpn, peer_identity};

/// The first bytes of the listening side: it has accepted the other side's certificate. In TLS 1.3 a client is done
/// before the server has seen it.
const WELCOME: &[u8; 8] = b"sealock1";
/// Streams of a node without a certificate: the one that it may have, and one so that a second can be noticed.
const STRANGERS_STREAMS: u32 = 2;
const BACKLOG: i32 = 1_024; // a fleet that returns at once waits here, not in retransmissions
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(1); // descriptors that ran out come back within that

/// TCP's counterpart of `Endpoint`: makes and keeps connections over TCP, and listens when it is a server's.
#[derive(Debug, Clone)]
pub struct TcpEndpoint(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    listener: Option<(TcpListener, Arc<rustls::ServerConfig>)>,
    /// Drives the connections.
    tasks: Scope,
    open: Mutex<Vec<Closer>>,
    closed: CancellationToken,
}

impl TcpEndpoint {
    /// An endpoint that only dials.
    #[must_use]
    pub fn client(settings: Settings) -> Self {
        Self::new(settings, None)
    }

    /// An endpoint that listens at `address`; `tls` must offer the protocols of [`crate::tls::relay_tcp_listener`].
    ///
    /// # Errors
    /// When the address is not free. Must be called within the runtime.
    pub fn server(
        address: SocketAddr,
        tls: Arc<rustls::ServerConfig>,
        settings: Settings,
    ) -> io::Result<Self> {
        let listener = listen(address)?;
        let mut tls = rustls::ServerConfig::clone(&tls);
        tls.enable_secret_extraction = true; // for `record`, which seals and opens by itself
        let tls = Arc::new(tls);
        Ok(Self::new(settings, Some((listener, tls))))
    }

    fn new(settings: Settings, listener: Option<(TcpListener, Arc<rustls::ServerConfig>)>) -> Self {
        Self(Arc::new(Inner {
            settings,
            listener,
            tasks: Scope::new("connections over TCP"),
            open: Mutex::default(),
            closed: CancellationToken::new(),
        }))
    }

    /// The address that it listens at; nothing for one that only dials.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        let (listener, _) = self.0.listener.as_ref()?;
        listener.local_addr().ok()
    }

    /// Waits for somebody at the door; nothing is done for them before [`TcpIncoming::handshake`].
    ///
    /// Returns nothing when the endpoint is closed or does not listen. Errors of the system are waited out.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn accept(&self) -> Option<TcpIncoming> {
        let (listener, _) = self.0.listener.as_ref()?;
        let mut pause = FIRST_PAUSE;
        loop {
            let accepted = tokio::select! {
                biased; // a closed door lets nobody in
                () = self.0.closed.cancelled() => return None,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, remote)) => {
                    return Some(TcpIncoming {
                        stream,
                        remote: SocketAddr::new(remote.ip().to_canonical(), remote.port()),
                        endpoint: self.clone(),
                    });
                }
                Err(error) if is_of_one_peer(&error) => {}
                Err(error) => {
                    tracing::warn!(err = %error, "no connection can be accepted for now");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// Makes a connection over a TCP connection to the other side, by TLS or by a WebSocket, and returns when the other
    /// side has accepted our certificate as well. `host` is what a WebSocket's request names.
    ///
    /// # Errors
    /// When the other side is not whom `tls` expects, or does not accept us; `Endpoint` for QUIC.
    ///
    /// # Cancel safety
    /// Dropping the future gives the attempt up.
    pub async fn connect(
        &self,
        transport: Transport,
        stream: TcpStream,
        host: &str,
        tls: Arc<rustls::ClientConfig>,
        deadline: Instant,
    ) -> Result<Connection, ConnectError> {
        if self.0.closed.is_cancelled() {
            return Err(ConnectError::Endpoint);
        }
        let handshake = async {
            stream.set_nodelay(true).map_err(|_| cut())?;
            match transport {
                Transport::Quic => Err(ConnectError::Endpoint),
                Transport::Tls => self.dial_tls(stream, tls).await,
                Transport::Websocket => self.dial_websocket(stream, host, tls).await,
            }
        };
        // In a box: it holds a whole TLS client, and callers keep several side by side.
        tokio::time::timeout_at(deadline, Box::pin(handshake))
            .await
            .map_err(|_elapsed| ConnectError::Timeout)?
    }

    /// Brings one end of a conduit to a relay, and waits until the relay has joined it with the other one.
    ///
    /// # Errors
    /// When the relay is not whom `tls` expects, or the conduit is not joined by the deadline.
    ///
    /// # Cancel safety
    /// Dropping the future gives the attempt up.
    pub(crate) async fn join(
        stream: TcpStream,
        tls: &rustls::ClientConfig,
        join: Join,
    ) -> Result<conduit::Unkeyed, ConnectError> {
        let mut tls = tls.clone();
        tls.alpn_protocols = vec![alpn::CONDUIT.to_vec()];
        stream.set_nodelay(true).map_err(|_| cut())?;
        let connecting = record::connect(stream, &tls);
        let records = connecting.await.map_err(|error| failed(&error))?;
        if records.protocol.as_deref() != Some(alpn::CONDUIT) {
            return Err(ConnectError::NotSealock);
        }
        conduit::join(records, join).await
    }

    async fn dial_tls(
        &self,
        stream: TcpStream,
        tls: Arc<rustls::ClientConfig>,
    ) -> Result<Connection, ConnectError> {
        let remote = stream.peer_addr().ok();
        let connecting = record::connect(stream, &tls);
        let mut stream = connecting.await.map_err(|error| failed(&error))?;
        let mut welcome = [0; WELCOME.len()];
        let read = stream.read_exact(&mut welcome).await;
        read.map_err(|error| failed(&error))?;
        if welcome != *WELCOME {
            return Err(ConnectError::NotSealock);
        }
        let facts = Facts {
            peer: proved(stream.chain.take().as_deref())?,
            alpn: stream.protocol.take(),
            remote,
        };
        Ok(self.begin(Box::new(stream), Side::Dials, facts, Transport::Tls))
    }

    async fn dial_websocket(
        &self,
        stream: TcpStream,
        host: &str,
        tls: Arc<rustls::ClientConfig>,
    ) -> Result<Connection, ConnectError> {
        let remote = stream.peer_addr().ok();
        let protocol = tls.alpn_protocols.first().cloned().unwrap_or_default();
        let mut over_http = rustls::ClientConfig::clone(&tls);
        over_http.alpn_protocols = vec![alpn::HTTP.to_vec()];
        let connecting = record::connect(stream, &over_http);
        let mut stream = connecting.await.map_err(|error| failed(&error))?;
        let peer = proved(stream.chain.take().as_deref())?;
        let pipe = websocket::dial(stream, host, &protocol).await?;
        let facts = Facts {
            peer,
            alpn: Some(protocol),
            remote,
        };
        Ok(self.begin(joined(pipe), Side::Dials, facts, Transport::Websocket))
    }

    fn begin(
        &self,
        pipe: Box<dyn Pipe>,
        side: Side,
        facts: Facts,
        transport: Transport,
    ) -> Connection {
        let mut settings = self.0.settings;
        if side == Side::Listens && facts.peer.is_none() {
            settings.streams = settings.streams.min(STRANGERS_STREAMS);
        }
        let connection = mux::start(pipe, side, &settings, facts, &self.0.tasks.spawner());
        {
            let mut open = self.0.open.lock();
            if open.len() == open.capacity() {
                open.retain(|closer| !closer.is_gone()); // whenever it would grow: a constant share of each begin
            }
            open.push(connection.closer());
        }
        if self.0.closed.is_cancelled() {
            connection.close(Reason::Draining);
        }
        Connection::mux(connection, transport)
    }

    /// Closes every connection and accepts no more.
    pub fn close(&self, reason: Reason) {
        self.0.closed.cancel();
        for closer in self.0.open.lock().drain(..) {
            closer.close(reason);
        }
    }

    /// Waits until peers have been told of closed connections.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn wait_idle(&self) {
        self.0.tasks.idle().await;
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.ip().is_unspecified() && address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?; // connections of a process before this one may be in TIME_WAIT
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Whether an error of `accept` says something of that one connection only.
fn is_of_one_peer(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

/// What came in over TCP.
#[derive(Debug)]
pub enum Arrived {
    /// A connection with many streams.
    Connection(Connection),
    /// An agent with one end of a conduit.
    Conduit(conduit::Arriving),
}

/// Somebody at the door, of whom only the address is known; TCP has proved that. Dropping it hangs up.
#[derive(Debug)]
pub struct TcpIncoming {
    stream: TcpStream,
    remote: SocketAddr,
    endpoint: TcpEndpoint,
}

impl TcpIncoming {
    /// Where it is.
    #[must_use]
    pub fn remote_address(&self) -> SocketAddr {
        self.remote
    }

    /// Hangs up with a reset, which keeps nothing of it in the system.
    pub fn refuse(self) {
        // Without it the connection would only linger for a while.
        SockRef::from(&self.stream)
            .set_linger(Some(Duration::ZERO))
            .ok();
    }

    /// Goes through TLS, and through the WebSocket's upgrade when it is that.
    ///
    /// # Errors
    /// When it is not done by the deadline, the other side is not whom our TLS configuration expects, or it wanted
    /// something else of HTTP, which it has been told then.
    ///
    /// # Cancel safety
    /// Dropping the future gives the connection up.
    pub async fn handshake(self, deadline: Instant) -> Result<Connection, ConnectError> {
        match self.enter(deadline).await? {
            Arrived::Connection(connection) => Ok(connection),
            Arrived::Conduit(_) => Err(ConnectError::NotSealock),
        }
    }

    /// The same, also for who brings one end of a conduit.
    ///
    /// # Errors
    /// As of [`Self::handshake`].
    ///
    /// # Cancel safety
    /// Dropping the future gives the connection up.
    pub async fn enter(self, deadline: Instant) -> Result<Arrived, ConnectError> {
        tokio::time::timeout_at(deadline, Box::pin(self.welcome()))
            .await
            .map_err(|_elapsed| ConnectError::Timeout)?
    }

    async fn welcome(self) -> Result<Arrived, ConnectError> {
        let inner = &self.endpoint.0;
        let (_, tls) = inner.listener.as_ref().ok_or(ConnectError::Endpoint)?;
        self.stream.set_nodelay(true).map_err(|_| cut())?;
        let accepting = record::accept(self.stream, Arc::clone(tls));
        let mut stream = accepting.await.map_err(|error| failed(&error))?;
        let peer = proved(stream.chain.take().as_deref())?;
        let remote = Some(self.remote);
        let agreed = stream.protocol.take();
        if agreed.as_deref() == Some(alpn::CONDUIT) {
            let arriving = peer.map(|peer| conduit::Arriving::new(stream, peer));
            // A conduit is between agents; nobody else is told more than that this is no place for them.
            return arriving.map(Arrived::Conduit).ok_or_else(cut);
        }
        if let Some(protocol) = agreed.filter(|agreed| agreed != alpn::HTTP) {
            stream.write_all(WELCOME).await.map_err(|_| cut())?;
            stream.flush().await.map_err(|_| cut())?;
            let facts = Facts {
                peer,
                alpn: Some(protocol),
                remote,
            };
            let (pipe, side) = (Box::new(stream), Side::Listens);
            let connection = self.endpoint.begin(pipe, side, facts, Transport::Tls);
            return Ok(Arrived::Connection(connection));
        }
        let (pipe, protocol) = websocket::accept(stream).await?;
        let facts = Facts {
            peer,
            alpn: Some(protocol.to_vec()),
            remote,
        };
        let (pipe, side) = (joined(pipe), Side::Listens);
        let connection = self.endpoint.begin(pipe, side, facts, Transport::Websocket);
        Ok(Arrived::Connection(connection))
    }
}

/// A message that several of the mux's frames share: more would only wait here instead of in its stream.
const JOINED: usize = 64 * 1024;

/// A pipe whose small writes leave together.
fn joined(pipe: impl Pipe + 'static) -> Box<dyn Pipe> {
    Box::new(tokio::io::BufWriter::with_capacity(JOINED, pipe))
}

fn proved(chain: Option<&[CertificateDer<'_>]>) -> Result<Option<PeerIdentity>, ConnectError> {
    peer_identity(chain).map_err(ConnectError::Leaf)
}

pub(super) fn cut() -> ConnectError {
    ConnectError::Lost(Lost::Cut)
}

/// What an error of a TLS stream says about the handshake.
pub(super) fn failed(error: &io::Error) -> ConnectError {
    let inner = error.get_ref();
    let Some(error) = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return cut();
    };
    if let Some(error) = VerifyError::carried_by(error) {
        return ConnectError::NotAuthentic(error);
    }
    if let rustls::Error::AlertReceived(alert) = error {
        let alert = Alert::from_number((*alert).into());
        return ConnectError::NotAccepted { alert };
    }
    ConnectError::Tls(error.clone())
}
