//! A flow at its first moment: where it came in, what is known of it, and the side that waits for an answer.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use sealock_core::fact::Facts;
use sealock_core::name::{AgentName, Region};
use sealock_core::reason::Reason;
use sealock_net::e2e::Caller;
use sealock_net::socket::{self, UnixSocket};
use sealock_net::transport::BiStream;
use sealock_proto::door::{connect, socks5};
use sealock_proto::stream::Epoch;
use sealock_proto::wire::{ConduitId, Message, StreamId, Voucher};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::io::Io;

/// Where flows can come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InletKind {
    /// A local listener for one service.
    Port,
    /// The program's own standard input and output.
    Stdio,
    /// An open that came over a session.
    Session,
    /// An open that another relay passed on.
    Peer,
    /// A workload's connection: every address is its own, and ours.
    Anyip,
    /// A workload's connection, whose destination the kernel rewrote and remembers.
    Redirect,
    /// A workload's connection, turned over by a packet mark.
    Tproxy,
    /// A client that asked for it by SOCKS5.
    Socks5,
    /// A client that asked for it as of an HTTP proxy.
    HttpConnect,
}

impl InletKind {
    /// The word in logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Port => "port",
            Self::Stdio => "stdio",
            Self::Session => "session",
            Self::Peer => "peer",
            Self::Anyip => "anyip",
            Self::Redirect => "redirect",
            Self::Tproxy => "tproxy",
            Self::Socks5 => "socks5",
            Self::HttpConnect => "http_connect",
        }
    }
}

/// A flow that wants to be.
#[derive(Debug)]
pub struct Arrival {
    /// Where it came in.
    pub inlet: InletKind,
    /// What is known of it.
    pub facts: Facts,
    /// Which leg of which stream it is, when it came over a session.
    pub leg: Option<LegHead>,
    /// Who waits for an answer.
    pub near: Near,
}

/// What was said of a leg when it was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegHead {
    /// The stream that it carries.
    pub stream: StreamId,
    /// Which leg of the stream it is.
    pub epoch: Epoch,
    /// For a leg after the first: the agent that holds the stream's other end. For a first one that another relay passed
    /// on: the agent that it chose.
    pub provider: Option<AgentName>,
    /// The caller would have the leg go over a conduit of this name.
    pub conduit: Option<ConduitId>,
    /// Where the caller says that it is.
    pub region: Option<Region>,
    /// At the relay that the caller is at: the caller's word for that, for passing the leg on to another relay. A leg
    /// that was passed on has none, so it goes no further.
    pub vouched: Option<Arc<Vouched>>,
}

impl LegHead {
    /// The agent that holds the stream's other end: nobody else will do.
    #[must_use]
    pub fn holder(&self) -> Option<&AgentName> {
        self.provider.as_ref().filter(|_| self.epoch > Epoch::FIRST)
    }

    /// The agent that another relay chose: it comes before any other.
    #[must_use]
    pub fn chosen(&self) -> Option<&AgentName> {
        self.provider
            .as_ref()
            .filter(|_| self.epoch == Epoch::FIRST)
    }
}

/// A caller's word for being at a relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vouched {
    /// The caller's process.
    pub instance: [u8; 16],
    /// Its word.
    pub voucher: Voucher,
}

impl Arrival {
    /// The same arrival, which came in here.
    #[must_use]
    pub fn over(self, inlet: InletKind) -> Self {
        let near = match (inlet, self.near) {
            (InletKind::Peer, Near::Leg(leg)) => Near::Passed(leg),
            (_, near) => near,
        };
        Self {
            inlet,
            near,
            ..self
        }
    }

    /// The same arrival, of a caller who says that it is there.
    #[must_use]
    pub fn in_region(mut self, region: Option<Region>) -> Self {
        if let Some(leg) = &mut self.leg {
            leg.region = region;
        }
        self
    }

    /// The same arrival, whose leg may be passed on to another relay.
    #[must_use]
    pub fn vouched(mut self, vouched: Option<Arc<Vouched>>) -> Self {
        if let Some(leg) = &mut self.leg {
            leg.vouched = vouched;
        }
        self
    }
}

/// The side that a flow came from. It is answered exactly once: accepted or refused, both of which consume it.
#[derive(Debug)]
pub enum Near {
    /// A TCP connection, accepted by the kernel; all it can be told is a reset.
    Tcp(TcpStream),
    /// A unix stream socket, accepted by the kernel.
    Unix(UnixSocket),
    /// A TCP connection whose client asked for its goal in a protocol, and is answered in it.
    Asked(TcpStream, Wording),
    /// The program's own standard input and output; the exit code is the answer.
    Stdio,
    /// At a relay: the caller's leg. Its provider answers through the relay; only a refusal is the relay's own.
    Leg(BiStream),
    /// At a relay: the caller's leg, passed on by another relay.
    Passed(BiStream),
    /// At a provider: a caller who proved its identity end to end and waits inside the encryption.
    Sealed(Box<Caller>),
}

/// In which protocol a client waits for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wording {
    /// SOCKS5.
    Socks5,
    /// HTTP.
    Http,
}

impl Wording {
    fn granted(self) -> Vec<u8> {
        match self {
            Self::Socks5 => socks5::Reply::Granted.encode().to_vec(),
            Self::Http => connect::GRANTED.to_vec(),
        }
    }

    fn refusal(self, reason: Reason) -> Vec<u8> {
        match self {
            Self::Socks5 => socks5::Reply::of(reason).encode().to_vec(),
            Self::Http => connect::refusal(reason),
        }
    }
}

/// How long an answer may take to leave; it fits into the buffer of any socket that is new.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// How long a client that was refused may take to close.
const LINGER_LIMIT: Duration = Duration::from_secs(1); // it does so as soon as it has the answer

/// Says a last word and waits until its reader closes: to close first, with something of it unread, would be a reset,
/// which overtakes the word.
pub(crate) async fn last_word(mut stream: TcpStream, word: &[u8]) {
    if word.is_empty() {
        return;
    }
    let said = async {
        stream.write_all(word).await?;
        socket::close_cleanly(&stream);
        stream.shutdown().await?;
        let mut unheard = [0; 512];
        while stream.read(&mut unheard).await? > 0 {}
        std::io::Result::Ok(())
    };
    // Whoever does not close in time, or resets, has its answer or does not want it.
    tokio::time::timeout(LINGER_LIMIT, said).await.ok();
}

/// The most that is taken along with an open before it is answered.
const EARLY_LIMIT: usize = 16 * 1024; // one TLS record

impl Near {
    /// What the near side has already sent, without waiting: it can travel with the open and save a round trip.
    ///
    /// # Errors
    /// When the near side is gone. A socket tells its error once and an end from then on, so it must be heard here.
    pub fn early(&mut self) -> Result<Bytes, Reason> {
        let mut buffer = BytesMut::new();
        let read = match self {
            Self::Tcp(stream) | Self::Asked(stream, _) => {
                buffer.resize(EARLY_LIMIT, 0);
                stream.try_read(&mut buffer)
            }
            Self::Unix(stream) => stream.try_read(&mut buffer, EARLY_LIMIT),
            Self::Stdio | Self::Leg(_) | Self::Passed(_) | Self::Sealed(_) => {
                return Ok(Bytes::new());
            }
        };
        match read {
            // An end shows again when the flow is carried.
            Ok(length) => buffer.truncate(length),
            Err(error) if error.kind() == ErrorKind::WouldBlock => buffer.clear(),
            Err(_) => return Err(Reason::NearReset),
        }
        Ok(buffer.freeze())
    }

    /// Answers that the way is open.
    ///
    /// # Errors
    /// The reason why the near side can no longer be told.
    pub async fn accept(self) -> Result<Io, Reason> {
        match self {
            Self::Tcp(stream) => Ok(Io::Tcp(stream)),
            Self::Unix(stream) => Ok(Io::Unix(stream)),
            Self::Asked(mut stream, wording) => {
                let granted = wording.granted();
                let told = tokio::time::timeout(ANSWER_LIMIT, stream.write_all(&granted)).await;
                match told {
                    Ok(Ok(())) => Ok(Io::Tcp(stream)),
                    Ok(Err(_)) | Err(_) => Err(Reason::NearReset),
                }
            }
            Self::Stdio => Ok(Io::Stdio),
            Self::Leg(leg) => Ok(Io::Leg(leg)),
            Self::Passed(leg) => Ok(Io::Passed(leg)),
            Self::Sealed(caller) => caller
                .accept()
                .await
                .map(|(reader, writer)| Io::Sealed(reader, writer)),
        }
    }

    /// Answers that there is no way, in the words that the near side understands.
    pub async fn refuse(self, reason: Reason) {
        match self {
            Self::Tcp(stream) => Io::Tcp(stream).reset(reason),
            Self::Unix(stream) => Io::Unix(stream).reset(reason),
            Self::Asked(stream, wording) => last_word(stream, &wording.refusal(reason)).await,
            Self::Stdio => {}
            Self::Leg(mut leg) | Self::Passed(mut leg) => {
                // A refusal is a whole answer: the caller reads it, then a clean end.
                let told = leg.send.write(Message::Refused(reason).encode()).await;
                if told.and_then(|()| leg.send.finish()).is_err() {
                    leg.send.reset(reason);
                }
                leg.recv.stop(reason);
            }
            Self::Sealed(caller) => caller.refuse(reason).await,
        }
    }
}
