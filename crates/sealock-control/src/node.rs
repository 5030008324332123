//! The node interface on the wire: TCP, TLS 1.3, HTTP/2, and who may come through each of them.
//!
//! Accepting and handshakes are separate, so no peer can hold another up; each handshake has a deadline, each source a
//! budget until it has shown a certificate, and a connection without one lives for a minute. What comes out behind is a
//! stream of connections that carry the identity which TLS proved, and nothing else says who a caller is.

mod budget;
mod recover;
mod service;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use sealock_net::identity::PeerIdentity;
use sealock_net::node_api::REQUEST_LIMIT;
use sealock_net::node_api::proto::node_server::NodeServer;
use sealock_net::task::Spawner;
use sealock_net::tls::peer_identity;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::meter::Meter;

pub use budget::Limits;
use budget::{Budgets, Place};
pub use service::{LEASE, NodeService, Shared};

const HANDSHAKE: Duration = Duration::from_secs(10); // three round trips of the slowest path that is of use
const ANONYMOUS: Duration = Duration::from_secs(60); // a join is one call
const CONNECTIONS: usize = 16_384; // below the usual limit of file descriptors
const READY: usize = 64; // handshakes that are done wait here for a moment; a full queue makes the next one wait
const ACCEPT_PAUSE: Duration = Duration::from_millis(100); // out of descriptors: others have to close some first
const STREAMS: u32 = 16; // a node needs one watch and a call or two
/// What HTTP/2 keeps for streams that a peer opened and gave up before they were looked at, and for those that we gave
/// up for its mistakes (CVE-2023-44487, CVE-2025-8671): beyond it the connection ends.
const RESETS: usize = 32; // every stream that a node may have, twice
const HEADERS: u32 = 16 * 1024; // a call has twenty short ones
const FRAME: u32 = 16 * 1024; // the least that RFC 9113 §4.2 allows
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(10);

/// Who is at the other end, as far as TLS proved it.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Where the connection comes from: often a relay's address.
    pub source: SocketAddr,
    /// Who it is, when it has shown a certificate.
    pub identity: Option<Arc<PeerIdentity>>,
}

/// Serves nodes that come to `listener`, counting their calls, until the scope is asked to stop.
pub async fn serve(
    listener: TcpListener,
    tls: TlsAcceptor,
    service: NodeService,
    meter: Meter,
    spawner: Spawner,
) {
    let (ready, incoming) = mpsc::channel(READY);
    let gate = Gate {
        tls,
        budgets: Arc::clone(service.budgets()),
        places: Arc::new(Semaphore::new(CONNECTIONS)),
        ready,
    };
    let accepting = spawner.clone();
    spawner.spawn("node-accept", async move {
        tokio::select! {
            biased; // a stopping controller takes no more connections
            () = accepting.stopping() => {}
            () = gate.accept(&listener, &accepting) => {}
        }
    });
    let generated = NodeServer::new(service).max_decoding_message_size(REQUEST_LIMIT);
    let served = Server::builder()
        .max_concurrent_streams(STREAMS)
        .http2_max_pending_accept_reset_streams(Some(RESETS))
        .http2_max_local_error_reset_streams(Some(RESETS))
        .http2_max_header_list_size(HEADERS)
        .max_frame_size(FRAME)
        .http2_keepalive_interval(Some(PING))
        .http2_keepalive_timeout(Some(PONG))
        .layer(meter)
        .add_service(generated)
        .serve_with_incoming_shutdown(ReceiverStream::new(incoming), spawner.stopping())
        .await;
    if let Err(err) = served {
        tracing::error!(%err, "the node interface ended");
    }
}

struct Gate {
    tls: TlsAcceptor,
    budgets: Arc<Budgets>,
    places: Arc<Semaphore>,
    ready: mpsc::Sender<io::Result<NodeStream>>,
}

impl Gate {
    async fn accept(&self, listener: &TcpListener, spawner: &Spawner) {
        loop {
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else {
                return; // never closed
            };
            match listener.accept().await {
                Ok((stream, source)) => self.greet(stream, source, place, spawner),
                Err(err) => {
                    tracing::warn!(%err, "the node listener cannot accept");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn greet(
        &self,
        stream: TcpStream,
        source: SocketAddr,
        place: OwnedSemaphorePermit,
        spawner: &Spawner,
    ) {
        // Dropped without a word: an answer would cost more than the attempt.
        let Some(unproven) = self.budgets.unproven(source.ip()) else {
            tracing::debug!("a source is over its budget of connections without a certificate");
            return;
        };
        let (tls, ready) = (self.tls.clone(), self.ready.clone());
        spawner.spawn("node-handshake", async move {
            stream.set_nodelay(true).ok(); // slower without, not wrong
            let Ok(Ok(tls)) = timeout(HANDSHAKE, tls.accept(stream)).await else {
                tracing::debug!("a handshake at the node listener failed or took too long");
                return;
            };
            let Ok(identity) = peer_identity(tls.get_ref().1.peer_certificates()) else {
                return;
            };
            let anonymous = identity.is_none().then(|| Anonymous {
                _unproven: unproven,
                deadline: Box::pin(sleep(ANONYMOUS)),
            });
            let peer = Peer {
                source,
                identity: identity.map(Arc::new),
            };
            let stream = NodeStream {
                tls,
                peer,
                anonymous,
                _place: place,
            };
            // The receiver is gone only when the server is.
            ready.send(Ok(stream)).await.ok();
        });
    }
}

/// Held by a connection without a certificate.
struct Anonymous {
    _unproven: Place,
    deadline: Pin<Box<Sleep>>,
}

/// A connection whose handshake is done.
struct NodeStream {
    tls: TlsStream<TcpStream>,
    peer: Peer,
    anonymous: Option<Anonymous>,
    _place: OwnedSemaphorePermit,
}

impl Connected for NodeStream {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for NodeStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(anonymous) = &mut self.anonymous
            && anonymous.deadline.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.tls).poll_read(cx, buffer)
    }
}

impl AsyncWrite for NodeStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

/// The part of an address that one party can be assumed to hold: an IPv6 host has a whole /64.
fn party(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let network = u128::from(v6) & !u128::from(u64::MAX);
            IpAddr::V6(network.into())
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}
