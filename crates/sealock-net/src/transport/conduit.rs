//! A conduit: a TCP connection of each of a stream's two agents to one relay, which carries one leg and nothing else.
//!
//! Both agents prove themselves to the relay in TLS and name the conduit; the relay joins the two and from then on moves
//! bytes within the kernel. What the agents say is sealed from one to the other, in records that look as before, under
//! keys that come from the stream's own secret: the relay opens nothing and seals nothing, and whoever alters, drops or
//! repeats a byte ends the leg, never the stream ([ADR 19](docs/adr/0019-conduits.md)).

use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use sealock_core::reason::Reason;
use sealock_core::secret::Secret;
use sealock_proto::wire::{HEADER_LENGTH, Header, Join, Message, Salt};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::record::Records;
use super::record::cipher::Kind;
use super::record::keys::{Opens, Seals};
use super::{ConnectError, Lost, ReadError, WriteError};
use crate::identity::PeerIdentity;

mod pour;
mod rendezvous;

pub use rendezvous::{Conduits, Expected};

/// How much is sealed before it leaves.
const SEALED: usize = 128 * 1024; // a batch of the stream's frames
/// How much is read at once.
const READ: usize = 128 * 1024;
/// What is worth joining to one piece: what one read brings.
const ENOUGH: usize = 112 * 1024;
/// Up to so much that is written at once leaves no buffer behind.
const FEW: usize = 16 * 1024;
/// How long the kernel may have no word of what it sent, and how often it asks when nothing is sent. The session tells of
/// a relay that stands still; this tells of a way that swallows TCP alone.
const UNANSWERED: Duration = Duration::from_secs(4);
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Records without a byte, one after the other, that are no flood yet.
const EMPTY_LIMIT: u8 = 32;

/// Lets the kernel notice a peer that cannot be reached.
fn watch(socket: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(socket);
    let keepalive = TcpKeepalive::new()
        .with_time(ASK_EVERY)
        .with_interval(ASK_EVERY);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(UNANSWERED))?;
    socket.set_tcp_nodelay(true)
}

/// An agent's end of a conduit that the relay has joined.
#[derive(Debug)]
pub struct Conduit {
    /// Towards the other agent.
    pub send: Sender,
    /// From the other agent.
    pub recv: Receiver,
}

/// A conduit of which the other agent's salt is known, and no key is made yet.
#[derive(Debug)]
pub struct Unkeyed {
    socket: TcpStream,
    early: BytesMut,
    /// The other agent's.
    pub salt: Salt,
}

/// Brings a conduit to a relay over a TLS connection, and waits until it is joined.
pub(super) async fn join(mut records: Records, join: Join) -> Result<Unkeyed, ConnectError> {
    say(&mut records, &Message::Join(join))
        .await
        .map_err(|_| cut())?;
    let salt = match hear(&mut records).await.map_err(|_| cut())? {
        Some(Message::Joined(salt)) => salt,
        Some(Message::Refused(reason)) => return Err(ConnectError::Lost(Lost::ByPeer(reason))),
        Some(_) | None => return Err(ConnectError::NotSealock),
    };
    let (socket, early) = records.into_socket().ok_or(ConnectError::NotSealock)?;
    watch(&socket).map_err(ConnectError::Tcp)?;
    Ok(Unkeyed {
        socket,
        early,
        salt,
    })
}

fn cut() -> ConnectError {
    ConnectError::Lost(Lost::Cut)
}

async fn say(records: &mut Records, message: &Message) -> io::Result<()> {
    records.write_all(&message.encode()).await?;
    records.flush().await
}

/// The next message; nothing for what is none.
async fn hear(records: &mut Records) -> io::Result<Option<Message>> {
    let mut head = [0; HEADER_LENGTH];
    records.read_exact(&mut head).await?;
    let Ok(header) = Header::decode(head) else {
        return Ok(None);
    };
    let mut body = vec![0; header.body_length()];
    records.read_exact(&mut body).await?;
    Ok(header.decode_body(&body).ok().flatten())
}

impl Unkeyed {
    /// Seals what this side says with what comes of one secret, and opens what the other says with what comes of the other.
    ///
    /// # Errors
    /// When the cryptography fails.
    pub fn keyed(
        self,
        ours: Secret<[u8; 32]>,
        theirs: Secret<[u8; 32]>,
    ) -> Result<Conduit, Reason> {
        let seals = Seals::from_secret(ours).map_err(|_| Reason::Internal)?;
        let opens = Opens::from_secret(theirs, self.early).map_err(|_| Reason::Internal)?;
        let (reader, writer) = self.socket.into_split();
        Ok(Conduit {
            send: Sender {
                socket: writer,
                seals,
                ahead: 0,
            },
            recv: Receiver {
                socket: reader,
                opens,
                empty: 0,
            },
        })
    }
}

/// What an agent says on a conduit.
pub struct Sender {
    socket: OwnedWriteHalf,
    seals: Seals,
    /// How many of the bytes that are to be written are sealed, and have not all left.
    ahead: usize,
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

impl Sender {
    /// Writes all of `chunks`.
    ///
    /// # Errors
    /// When the conduit is gone.
    ///
    /// # Cancel safety
    /// What has left is cut off the front of the chunks; the same call must be made again, with nothing before what was
    /// there.
    pub async fn write_all_chunks(&mut self, chunks: &mut [Bytes]) -> Result<(), WriteError> {
        let mut written = 0;
        loop {
            while !self.seals.ready().is_empty() {
                let sent = self.socket.write(self.seals.ready()).await;
                match sent {
                    Ok(length) if length > 0 => self.seals.sent(length),
                    Ok(_) | Err(_) => return Err(WriteError::Lost(Lost::Cut)),
                }
            }
            written += self.ahead;
            cut_off(chunks, std::mem::take(&mut self.ahead));
            if chunks.iter().all(Bytes::is_empty) {
                if written < FEW {
                    self.seals.forget_buffer();
                }
                return Ok(());
            }
            self.seal(chunks).map_err(|error| {
                tracing::error!(err = %error, "what goes to a conduit cannot be sealed");
                WriteError::Lost(Lost::Cut)
            })?;
        }
    }

    fn seal(&mut self, chunks: &[Bytes]) -> Result<(), rustls::Error> {
        for chunk in chunks {
            let taken = self.seals.push(chunk, SEALED)?;
            self.ahead += taken;
            if taken < chunk.len() {
                break;
            }
        }
        self.seals.close()
    }

    /// Says nothing more.
    pub fn finish(&mut self) {
        // Where it fails, the other side sees the end anyway.
        SockRef::from(self.socket.as_ref())
            .shutdown(std::net::Shutdown::Write)
            .ok();
    }

    /// Ends both directions; what was written may be lost.
    pub fn abort(&mut self) {
        let socket = SockRef::from(self.socket.as_ref());
        socket.set_linger(Some(Duration::ZERO)).ok();
        socket.shutdown(std::net::Shutdown::Both).ok();
    }
}

/// Takes so many bytes off the front.
fn cut_off(chunks: &mut [Bytes], mut length: usize) {
    for chunk in chunks {
        let part = length.min(chunk.len());
        chunk.advance(part);
        length -= part;
        if length == 0 {
            return;
        }
    }
}

/// What the other agent says on a conduit.
pub struct Receiver {
    socket: OwnedReadHalf,
    opens: Opens,
    /// Records without a byte since the last one with some.
    empty: u8,
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver").finish_non_exhaustive()
    }
}

impl Receiver {
    /// The next piece; nothing when the connection ended, which nobody vouches for.
    ///
    /// # Errors
    /// When the conduit is gone, or somebody on the way altered it.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn read_chunk(&mut self) -> Result<Option<Bytes>, ReadError> {
        loop {
            let opened = self.open().map_err(|error| {
                tracing::warn!(err = %error, "what comes over a conduit was altered on the way");
                ReadError::Lost(Lost::Cut)
            })?;
            if let Some(piece) = opened {
                return Ok(Some(piece));
            }
            let buffer = self.opens.buffer();
            buffer.reserve(READ);
            match self.socket.read_buf(buffer).await {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(_) => return Err(ReadError::Lost(Lost::Cut)),
            }
        }
    }

    fn open(&mut self) -> Result<Option<Bytes>, rustls::Error> {
        let mut joined = BytesMut::new();
        while joined.len() < ENOUGH {
            let Some((kind, content)) = self.opens.open()? else {
                break;
            };
            if kind != Kind::Data || (content.is_empty() && self.empty >= EMPTY_LIMIT) {
                return Err(rustls::Error::DecryptError);
            }
            if content.is_empty() {
                self.empty += 1;
                continue;
            }
            self.empty = 0;
            if joined.is_empty() {
                joined = content;
            } else {
                // At once for all that may follow: a buffer that grows is copied each time.
                joined.reserve(content.len() + self.opens.waiting().min(ENOUGH));
                joined.extend_from_slice(&content);
            }
        }
        Ok((!joined.is_empty()).then(|| joined.freeze()))
    }
}

/// An agent that has come to a relay with its end of a conduit, and has not said of which.
#[derive(Debug)]
pub struct Arriving {
    records: Box<Records>, // of some KiB
    peer: PeerIdentity,
}

impl Arriving {
    pub(super) fn new(records: Records, peer: PeerIdentity) -> Self {
        let records = Box::new(records);
        Self { records, peer }
    }

    /// Who it proved to be.
    #[must_use]
    pub fn peer(&self) -> &PeerIdentity {
        &self.peer
    }

    /// Hears which conduit it is.
    async fn hear(&mut self) -> Option<Join> {
        match hear(&mut self.records).await {
            Ok(Some(Message::Join(join))) => Some(join),
            Ok(_) | Err(_) => None,
        }
    }

    /// Sends it away.
    pub async fn refuse(mut self, reason: Reason) {
        // Who does not take it sees the end of the connection.
        say(&mut self.records, &Message::Refused(reason)).await.ok();
    }

    /// Tells it that the other agent is there; from here on the socket carries what the agents say to each other.
    async fn joined(mut self, salt: Salt) -> io::Result<TcpStream> {
        say(&mut self.records, &Message::Joined(salt)).await?;
        match self.records.into_socket() {
            // It waits for our word before it says more.
            Some((socket, early)) if early.is_empty() => {
                watch(&socket)?;
                Ok(socket)
            }
            Some(_) | None => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

#[cfg(test)]
mod tests;
