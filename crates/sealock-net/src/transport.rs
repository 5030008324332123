//! Connections with many streams, as sessions use them; the public types are ours, so that other transports can join.
//!
//! Accepting and the handshake are different calls: a loop that accepts never waits for a peer. Streams end cleanly only
//! when the other side said so; a half that is dropped unfinished resets. Codes of resets and closes are the numbers of
//! `Reason`. Deliberately absent: who may connect (`tls`, and [`admission`] before that) and reconnecting.

pub mod admission;
mod carrier;
pub mod conduit;
mod glitches;
mod keys;
mod mux;
mod network;
pub mod proxy;
mod pulse;
mod quic;
pub(crate) mod record;
mod tcp;
mod websocket;

use std::net::SocketAddr;
use std::time::Duration;

use sealock_core::reason::Reason;

use crate::identity::LeafError;
use crate::tls::verify::VerifyError;

pub use carrier::{BiStream, Connection, RecvHalf, SendHalf, StreamIo};
pub use keys::{KeysError, TransportKeys};
pub use network::NetworkChanges;
pub use proxy::ProxyError;
pub use quic::{Endpoint, Incoming};
pub use tcp::{Arrived, TcpEndpoint, TcpIncoming};

/// What a node may choose about its connections.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Streams that the other side may have open at once. Room is made as they come, not before.
    pub streams: u32,
    /// How often an idle connection shows that it is alive, soon after it was in use; the dialling side does it. One that
    /// idles for long does it more seldom, and one with streams more often.
    pub keep_alive: Duration,
    /// The silence after which an idle connection is given up, at the latest.
    pub idle_timeout: Duration,
    /// How many bytes may wait to be sent and acknowledged, on all streams of a connection together, where a carrier has
    /// one measure for all of them. When they are used up, a new stream waits behind all others.
    pub unsent: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            streams: 100,
            keep_alive: Duration::from_secs(1), // a relay that restarts learns within it who is still there
            idle_timeout: Duration::from_secs(30), // the longest time between keep-alives, and room for lost ones
            unsent: 16 * 1024 * 1024,              // 1 Gbit/s at 128 ms
        }
    }
}

impl Settings {
    /// How seldom a connection that idles for long shows that it is alive.
    fn seldom(&self) -> Duration {
        // Two that are lost must not be the end.
        pulse::SELDOM.min(self.idle_timeout / 2)
    }
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// The other side closed it and said why.
    #[error("the other side closed the connection: {0}")]
    ByPeer(Reason),
    /// This side closed it.
    #[error("this side closed the connection")]
    ByUs,
    /// Nothing was heard for too long.
    #[error("nothing was heard from the other side for too long")]
    Silent,
    /// The other side does not know the connection any more: it restarted.
    #[error("the other side restarted")]
    PeerRestarted,
    /// Nothing was heard, and the other side's machine says that nobody listens there: its process is gone.
    #[error("the other side's process is gone")]
    PeerGone,
    /// The TCP connection below ended without a farewell.
    #[error("the connection was cut off")]
    Cut,
    /// The other side's transport did not understand ours, or the other way round.
    #[error("the transport broke down (code {code:#x})")]
    Transport {
        /// The transport error code, as QUIC numbers them (RFC 9000 §20.1).
        code: u64,
    },
}

impl Lost {
    /// How a flow ends whose connection ended so.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::ByPeer(reason) => *reason,
            Self::ByUs => Reason::Cancelled,
            Self::Silent | Self::PeerRestarted | Self::PeerGone | Self::Cut => Reason::SessionLost,
            Self::Transport { .. } => Reason::ProtocolViolation,
        }
    }
}

/// What a server says that takes no connections: it is overloaded, or it is closing (RFC 9000 §20.1).
const CONNECTION_REFUSED: u64 = 0x02;

/// Why a connection was not made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address cannot be connected to: port 0, or a family that this machine lacks.
    #[error("{0} cannot be connected to")]
    Address(SocketAddr),
    /// This side is shutting down, or its TLS configuration is not fit for the transport.
    #[error("this endpoint cannot connect")]
    Endpoint,
    /// TCP does not get there.
    #[error("TCP does not get there")]
    Tcp(#[source] std::io::Error),
    /// The proxy on the way does not let us through.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// The handshake did not end in time.
    #[error(
        "the other side did not finish its handshake in time; hint: is its address open in the firewalls on the way?"
    )]
    Timeout,
    /// The other side's certificate was not accepted.
    #[error("the other side could not prove who it is")]
    NotAuthentic(#[source] VerifyError),
    /// The other side did not accept our certificate, or wanted one.
    #[error("the other side did not accept this node's certificate ({}); hint: {}", alert.text(), alert.hint())]
    NotAccepted {
        /// What it said.
        alert: Alert,
    },
    /// TLS ended for another reason.
    #[error("the TLS handshake ended")]
    Tls(#[source] rustls::Error),
    /// The peer's leaf could not be read again after the handshake.
    #[error("the other side's certificate cannot be read")]
    Leaf(#[source] LeafError),
    /// Who answered is no relay, or something between reads along.
    #[error("what answered there does not speak Sealock; hint: is the address that of a relay?")]
    NotSealock,
    /// The connection was lost in the middle.
    #[error("the connection was lost during the handshake")]
    Lost(#[source] Lost),
}

impl ConnectError {
    /// How an attempt that failed so is shown to users.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Address(_) | Self::Tcp(_) | Self::Proxy(_) => Reason::RelayUnreachable,
            Self::Endpoint => Reason::Internal,
            Self::Timeout => Reason::HandshakeTimeout,
            Self::NotAuthentic(error) => error.reason(),
            Self::NotAccepted {
                alert: Alert::NoCommonProtocol,
            } => Reason::VersionUnsupported,
            Self::NotAccepted { .. } => Reason::NotAdmitted,
            Self::NotSealock => Reason::RelayUnreachable,
            Self::Tls(_) | Self::Leaf(_) => Reason::PeerNotAuthentic,
            Self::Lost(lost) => match lost {
                Lost::ByPeer(reason) => *reason,
                Lost::ByUs => Reason::Cancelled,
                Lost::Silent
                | Lost::PeerRestarted
                | Lost::PeerGone
                | Lost::Cut
                | Lost::Transport {
                    code: CONNECTION_REFUSED,
                } => Reason::RelayUnreachable,
                Lost::Transport { .. } => Reason::ProtocolViolation,
            },
        }
    }

    /// Whether the same attempt may succeed later without anybody changing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.reason().is_transient()
    }
}

/// What the other side's TLS said when it gave up (RFC 8446 §6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alert {
    /// Our certificate is not valid at its time.
    Expired,
    /// It wants a certificate.
    CertificateRequired,
    /// Our certificate was refused.
    CertificateRefused,
    /// It speaks none of our protocols.
    NoCommonProtocol,
    /// Anything else, by its number.
    Other(u8),
}

impl Alert {
    fn from_number(number: u8) -> Self {
        match number {
            45 => Self::Expired,
            116 => Self::CertificateRequired,
            42..=44 | 46 | 48 | 49 | 51 => Self::CertificateRefused,
            120 => Self::NoCommonProtocol,
            other => Self::Other(other),
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Expired => "not valid at the time of its clock",
            Self::CertificateRequired => "it needs one",
            Self::CertificateRefused => "it was refused",
            Self::NoCommonProtocol => "no common protocol",
            Self::Other(_) => "it gave no reason that we know",
        }
    }

    fn hint(self) -> &'static str {
        match self {
            Self::Expired => {
                "compare the clocks of both machines; a certificate that ended needs a new token"
            }
            Self::CertificateRequired | Self::CertificateRefused => "join again with a new token",
            Self::NoCommonProtocol | Self::Other(_) => "compare `sealock version` on both machines",
        }
    }
}

/// Why no more can be read. A clean end is not among them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The other side gave the stream up.
    #[error("the other side reset the stream: {0}")]
    Reset(Reason),
    /// The connection is gone.
    #[error("the connection was lost")]
    Lost(#[source] Lost),
    /// This side stopped reading before.
    #[error("the stream is stopped")]
    Stopped,
}

/// Why no more can be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The other side wants no more.
    #[error("the other side stopped the stream: {0}")]
    Stopped(Reason),
    /// The connection is gone.
    #[error("the connection was lost")]
    Lost(#[source] Lost),
    /// This side finished or reset the stream before.
    #[error("the stream is finished")]
    Finished,
}

impl ReadError {
    /// How a flow ends that met this error.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Reset(reason) => *reason,
            Self::Lost(lost) => lost.reason(),
            Self::Stopped => Reason::Cancelled,
        }
    }
}

impl WriteError {
    /// How a flow ends that met this error.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Stopped(reason) => *reason,
            Self::Lost(lost) => lost.reason(),
            Self::Finished => Reason::Internal,
        }
    }
}

impl From<Lost> for Reason {
    fn from(lost: Lost) -> Self {
        lost.reason()
    }
}

impl From<ReadError> for Reason {
    fn from(error: ReadError) -> Self {
        error.reason()
    }
}

impl From<WriteError> for Reason {
    fn from(error: WriteError) -> Self {
        error.reason()
    }
}

impl From<ReadError> for std::io::Error {
    fn from(error: ReadError) -> Self {
        error.reason().into()
    }
}

impl From<WriteError> for std::io::Error {
    fn from(error: WriteError) -> Self {
        error.reason().into()
    }
}

#[cfg(test)]
mod battery;
#[cfg(test)]
mod tests;
