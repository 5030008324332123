//! What a flow's bytes come from and go to: every kind of socket behind two halves that pass `Bytes`.
//!
//! A half has four verbs with one meaning for every kind: read a chunk or a clean end, write a chunk, finish (a clean
//! end that the other side sees as such) and reset (an end that the other side never takes for a clean one).
//! Between two legs nothing is looked into, and a chunk that came in one piece is passed on as it is; where a transport
//! gives many small pieces, they are joined, which copies them once.

use bytes::{Bytes, BytesMut};
use sealock_core::reason::Reason;
use sealock_net::e2e::{SealedReader, SealedWriter};
use sealock_net::socket::{self, TcpReader, TcpWriter, UnixReader, UnixSocket, UnixWriter};
use sealock_net::transport::{BiStream, Lost, ReadError, RecvHalf, SendHalf, WriteError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The most that is read at once from a socket. One buffer of this size lives while bytes move, none while a flow idles.
const CHUNK: usize = 64 * 1024; // four TLS records; beyond this the measured gain is nil

/// One side of a flow, whole.
#[derive(Debug)]
pub enum Io {
    /// A TCP connection.
    Tcp(TcpStream),
    /// A unix stream socket.
    Unix(UnixSocket),
    /// The program's own standard input and output.
    Stdio,
    /// A leg: one stream of a session, its bytes not looked at.
    Leg(BiStream),
    /// A leg between two relays: what ends it is that relay's end, and tells nothing of the agent behind it.
    Passed(BiStream),
    /// The plain side of a stream that is encrypted end to end.
    Sealed(SealedReader, SealedWriter),
}

impl Io {
    /// Parts the side into what is read and what is written.
    #[must_use]
    pub fn split(self) -> (Reader, Writer) {
        match self {
            Self::Tcp(stream) => {
                let (reader, writer) = socket::split(stream);
                (Reader::Tcp(reader, BytesMut::new()), Writer::Tcp(writer))
            }
            Self::Unix(stream) => {
                let (reader, writer) = stream.split();
                (Reader::Unix(reader, BytesMut::new()), Writer::Unix(writer))
            }
            Self::Stdio => (
                Reader::Stdin(tokio::io::stdin(), BytesMut::new()),
                Writer::Stdout(tokio::io::stdout()),
            ),
            Self::Leg(leg) => (Reader::Leg(leg.recv), Writer::Leg(leg.send)),
            Self::Passed(leg) => (Reader::Passed(leg.recv), Writer::Passed(leg.send)),
            Self::Sealed(reader, writer) => (Reader::Sealed(reader), Writer::Sealed(writer)),
        }
    }

    /// Ends the side abnormally, unread and unanswered.
    pub fn reset(self, reason: Reason) {
        let (mut reader, mut writer) = self.split();
        reader.stop(reason);
        writer.reset(reason);
    }
}

/// The half of a side that bytes come from.
#[derive(Debug)]
pub enum Reader {
    /// A TCP connection, with the buffer that its next chunk goes to.
    Tcp(TcpReader, BytesMut),
    /// A unix stream socket, with the buffer that its next chunk goes to.
    Unix(UnixReader, BytesMut),
    /// Standard input, with the buffer that its next chunk goes to.
    Stdin(tokio::io::Stdin, BytesMut),
    /// A leg.
    Leg(RecvHalf),
    /// A leg between two relays.
    Passed(RecvHalf),
    /// The plain side of an encrypted stream.
    Sealed(SealedReader),
}

impl Reader {
    /// The next chunk; `None` at a clean end, which only the sender can make.
    ///
    /// # Errors
    /// The reason why the other side ended abnormally.
    ///
    /// # Cancel safety
    /// Safe: a chunk is either returned or still to be read.
    pub async fn read(&mut self) -> Result<Option<Bytes>, Reason> {
        match self {
            Self::Tcp(half, buffer) => take(half.read(buffer, CHUNK).await, buffer),
            Self::Unix(half, buffer) => take(half.read(buffer, CHUNK).await, buffer),
            Self::Stdin(stdin, buffer) => {
                buffer.reserve(CHUNK);
                take(stdin.read_buf(buffer).await, buffer)
            }
            Self::Leg(half) => half.read_chunk(CHUNK).await.map_err(leg_read),
            Self::Passed(half) => half.read_chunk(CHUNK).await.map_err(passed_read),
            Self::Sealed(half) => half.read().await,
        }
    }

    /// Tells the other side that nothing more will be read, and why.
    pub fn stop(&mut self, reason: Reason) {
        match self {
            // The abort of the write half resets the whole socket.
            Self::Tcp(..) | Self::Unix(..) | Self::Stdin(..) => {}
            Self::Leg(half) | Self::Passed(half) => half.stop(reason),
            Self::Sealed(half) => half.stop(reason),
        }
    }

    /// Says that both directions of the flow ended cleanly.
    pub fn done(&mut self) {
        match self {
            Self::Unix(half, _) => half.done(),
            Self::Tcp(..) | Self::Stdin(..) | Self::Leg(_) | Self::Passed(_) | Self::Sealed(_) => {}
        }
    }
}

/// Up to this much is copied out of the buffer it was read into, so that a few bytes do not keep all of it alive.
const SHORT: usize = 8 * 1024;

fn take(outcome: std::io::Result<usize>, buffer: &mut BytesMut) -> Result<Option<Bytes>, Reason> {
    // Whatever was read, the next wait holds no memory.
    let buffer = std::mem::take(buffer);
    let length = outcome.map_err(reset_by_peer)?;
    Ok((length > 0).then(|| {
        if length <= SHORT {
            Bytes::copy_from_slice(&buffer)
        } else {
            buffer.freeze()
        }
    }))
}

fn leg_read(error: ReadError) -> Reason {
    match error {
        ReadError::Lost(lost) => agent_lost(&lost),
        error @ (ReadError::Reset(_) | ReadError::Stopped) => error.reason(),
    }
}

fn leg_written(error: WriteError) -> Reason {
    match error {
        WriteError::Lost(lost) => agent_lost(&lost),
        error @ (WriteError::Stopped(_) | WriteError::Finished) => error.reason(),
    }
}

/// What the agent at a leg's other end is told when this one's session ends. Who may come back is not lost: the stream
/// waits for it. Who said goodbye, or whose process is gone, does not come back to its streams.
fn agent_lost(lost: &Lost) -> Reason {
    match lost {
        Lost::PeerGone | Lost::ByPeer(Reason::Draining) => Reason::PeerLost,
        Lost::ByPeer(_)
        | Lost::ByUs
        | Lost::Silent
        | Lost::PeerRestarted
        | Lost::Cut
        | Lost::Transport { .. } => Reason::SessionLost,
    }
}

/// What an agent is told when the other relay of its leg ends, in whatever way: the agent behind it is still there.
fn passed_read(error: ReadError) -> Reason {
    match error {
        ReadError::Lost(_) => Reason::SessionLost,
        error @ (ReadError::Reset(_) | ReadError::Stopped) => error.reason(),
    }
}

fn passed_written(error: WriteError) -> Reason {
    match error {
        WriteError::Lost(_) => Reason::SessionLost,
        error @ (WriteError::Stopped(_) | WriteError::Finished) => error.reason(),
    }
}

/// A local program's socket ended abnormally; which side that is, the carrier knows.
fn reset_by_peer(error: std::io::Error) -> Reason {
    Reason::carried_by(&error).unwrap_or(Reason::NearReset)
}

/// The half of a side that bytes go to.
#[derive(Debug)]
pub enum Writer {
    /// A TCP connection.
    Tcp(TcpWriter),
    /// A unix stream socket.
    Unix(UnixWriter),
    /// Standard output.
    Stdout(tokio::io::Stdout),
    /// A leg.
    Leg(SendHalf),
    /// A leg between two relays.
    Passed(SendHalf),
    /// The plain side of an encrypted stream.
    Sealed(SealedWriter),
}

impl Writer {
    /// Writes a whole chunk.
    ///
    /// # Errors
    /// The reason why the other side takes no more.
    ///
    /// # Cancel safety
    /// Not safe: part of the chunk may be on its way. A cancelled write is followed by a reset only.
    pub async fn write(&mut self, chunk: Bytes) -> Result<(), Reason> {
        match self {
            Self::Tcp(half) => half.write_all(&chunk).await.map_err(reset_by_peer),
            Self::Unix(half) => half.write_all(&chunk).await.map_err(reset_by_peer),
            Self::Stdout(stdout) => {
                stdout.write_all(&chunk).await.map_err(reset_by_peer)?;
                stdout.flush().await.map_err(reset_by_peer)
            }
            Self::Leg(half) => half.write(chunk).await.map_err(leg_written),
            Self::Passed(half) => half.write(chunk).await.map_err(passed_written),
            Self::Sealed(half) => half.write(chunk).await,
        }
    }

    /// Ends this direction cleanly; the other one goes on.
    ///
    /// # Errors
    /// The reason why the other side cannot be told.
    pub async fn finish(&mut self) -> Result<(), Reason> {
        match self {
            Self::Tcp(half) => half.finish().map_err(reset_by_peer),
            Self::Unix(half) => half.finish().map_err(reset_by_peer),
            Self::Stdout(stdout) => stdout.shutdown().await.map_err(reset_by_peer),
            Self::Leg(half) => half.finish().map_err(leg_written),
            Self::Passed(half) => half.finish().map_err(passed_written),
            Self::Sealed(half) => half.finish().await,
        }
    }

    /// After both directions ended: waits until the other side has all of it, where it says so.
    ///
    /// # Errors
    /// The reason why it did not get all.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn settled(&mut self) -> Result<(), Reason> {
        match self {
            // What is behind them says nothing more.
            Self::Tcp(_) | Self::Unix(_) | Self::Stdout(_) | Self::Leg(_) | Self::Passed(_) => {
                Ok(())
            }
            Self::Sealed(half) => half.settled().await,
        }
    }

    /// Ends the side abnormally: TCP sees RST, a leg RESET_STREAM, an encrypted stream RESET with the reason.
    ///
    /// A unix socket sees ECONNRESET when its reader is dropped before it is done, if its peer has said anything; else
    /// it has no such sign, and the end is only early. For standard output the exit code tells it.
    pub fn reset(&mut self, reason: Reason) {
        match self {
            Self::Tcp(half) => half.reset(),
            Self::Unix(_) | Self::Stdout(_) => {}
            Self::Leg(half) | Self::Passed(half) => half.reset(reason),
            Self::Sealed(half) => half.reset(reason),
        }
    }
}
