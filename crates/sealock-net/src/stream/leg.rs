//! One leg of a stream, on a session or on a conduit, and where an opener's legs come from.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use sealock_core::reason::Reason;
use sealock_proto::stream::{Epoch, Role, Ticket};
use sealock_proto::wire::{ConduitId, Join, Open, Salt};
use tokio_util::sync::CancellationToken;

use crate::session::ConduitWay;
use crate::transport::conduit::{Conduit, Receiver, Sender};
use crate::transport::{BiStream, Lost, ReadError, RecvHalf, SendHalf, WriteError};

/// A leg: a pipe to the stream's other agent, and the sign that it is to be left.
#[derive(Debug)]
pub struct Leg {
    /// The pipe; with a conduit, what tells how the leg ends.
    pub io: BiStream,
    leaving: CancellationToken,
    way: Option<Arc<ConduitWay>>,
    /// A conduit was asked for with its open.
    awaits_conduit: bool,
    conduit: Option<Box<Conduit>>,
}

/// A conduit that shall carry a leg.
#[derive(Debug)]
pub(super) struct Wish {
    pub(super) id: ConduitId,
    pub(super) role: Role,
    pub(super) epoch: Epoch,
    pub(super) ticket: Arc<Ticket>,
}

impl Leg {
    /// A leg on a session that is to be left when `leaving` is cancelled.
    #[must_use]
    pub fn new(io: BiStream, leaving: CancellationToken) -> Self {
        Self {
            io,
            leaving,
            way: None,
            awaits_conduit: false,
            conduit: None,
        }
    }

    /// A leg that is never left by choice.
    #[must_use]
    pub fn lasting(io: BiStream) -> Self {
        Self::new(io, CancellationToken::new())
    }

    /// The same leg, whose relay is reached by conduits in this way.
    #[must_use]
    pub fn with_way(self, way: Arc<ConduitWay>) -> Self {
        Self {
            way: Some(way),
            ..self
        }
    }

    /// The same leg, with whose open a conduit was asked for.
    #[must_use]
    pub fn awaiting_conduit(self) -> Self {
        Self {
            awaits_conduit: true,
            ..self
        }
    }

    /// Ends both directions.
    pub(super) fn give_up(&mut self, reason: Reason) {
        self.io.send.reset(reason);
        self.io.recv.stop(reason);
    }

    pub(super) fn awaits_conduit(&self) -> bool {
        self.awaits_conduit
    }

    /// Has the leg's bytes go over a conduit; nothing was said on it but the answer to its open.
    ///
    /// # Errors
    /// When there is none; the leg is of no more use.
    pub(super) async fn join(&mut self, wish: &Wish) -> Result<(), Reason> {
        let way = self.way.as_ref().ok_or(Reason::SessionLost)?;
        let salt = Salt(rand::random());
        let is_opener = wish.role == Role::Opener;
        let join = Join {
            conduit: wish.id,
            is_opener,
            salt,
        };
        let unkeyed = way.join(join).await?;
        let (salts, other) = if is_opener {
            ((salt, unkeyed.salt), Role::Accepter)
        } else {
            ((unkeyed.salt, salt), Role::Opener)
        };
        let secret = |role| wish.ticket.conduit_secret(role, wish.epoch, salts);
        let conduit = unkeyed.keyed(secret(wish.role), secret(other))?;
        self.conduit = Some(Box::new(conduit));
        Ok(())
    }

    /// The next bytes.
    pub(super) async fn read_chunk(&mut self, max: usize) -> Result<Option<Bytes>, ReadError> {
        match &mut self.conduit {
            None => self.io.recv.read_chunk(max).await,
            Some(conduit) => read_over(&mut conduit.recv, &mut self.io.recv).await,
        }
    }

    pub(super) fn into_parts(self) -> Parts {
        let BiStream { send, recv } = self.io;
        let (writer, reader) = match self.conduit {
            None => (LegWriter::Session(send), LegReader::Session(recv)),
            Some(conduit) => (
                LegWriter::Conduit(Box::new((conduit.send, send))),
                LegReader::Conduit(Box::new((conduit.recv, recv))),
            ),
        };
        Parts {
            writer,
            reader,
            leaving: self.leaving,
            way: self.way,
        }
    }
}

/// A leg, taken apart.
pub(super) struct Parts {
    pub(super) writer: LegWriter,
    pub(super) reader: LegReader,
    pub(super) leaving: CancellationToken,
    /// How conduits lead to its relay.
    pub(super) way: Option<Arc<ConduitWay>>,
}

/// The half of a leg that goes to the other agent. A conduit's leg on the session tells how it ends.
#[derive(Debug)]
pub(super) enum LegWriter {
    Session(SendHalf),
    Conduit(Box<(Sender, SendHalf)>),
}

impl LegWriter {
    pub(super) fn is_conduit(&self) -> bool {
        matches!(self, Self::Conduit(_))
    }

    /// Writes all of `chunks`.
    ///
    /// # Cancel safety
    /// What has been written is cut off the front of the chunks; the same call can be made again.
    pub(super) async fn write_all_chunks(
        &mut self,
        chunks: &mut [Bytes],
    ) -> Result<(), WriteError> {
        match self {
            Self::Session(half) => half.write_all_chunks(chunks).await,
            Self::Conduit(both) => both.0.write_all_chunks(chunks).await,
        }
    }

    /// Ends this direction cleanly; what was written still arrives.
    pub(super) fn finish(&mut self) -> Result<(), WriteError> {
        match self {
            Self::Session(half) => half.finish(),
            Self::Conduit(both) => {
                both.0.finish();
                both.1.finish()
            }
        }
    }

    pub(super) fn reset(&mut self, reason: Reason) {
        match self {
            Self::Session(half) => half.reset(reason),
            Self::Conduit(both) => {
                both.0.abort();
                both.1.reset(reason);
            }
        }
    }

    /// Waits until the other side wants no more (the reason) or has all after [`Self::finish`] (nothing).
    pub(super) async fn stopped(&self) -> Result<Option<Reason>, Lost> {
        match self {
            Self::Session(half) => half.stopped().await,
            Self::Conduit(both) => both.1.stopped().await,
        }
    }
}

/// The half of a leg that comes from the other agent.
#[derive(Debug)]
pub(super) enum LegReader {
    Session(RecvHalf),
    Conduit(Box<(Receiver, RecvHalf)>),
}

impl LegReader {
    /// The stream of the session, where that carries the leg.
    pub(super) fn of_session(&mut self) -> Option<&mut RecvHalf> {
        match self {
            Self::Session(half) => Some(half),
            Self::Conduit(_) => None,
        }
    }

    /// The next bytes; nothing at the end.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn read_chunk(&mut self, max: usize) -> Result<Option<Bytes>, ReadError> {
        match self {
            Self::Session(half) => half.read_chunk(max).await,
            Self::Conduit(both) => {
                let (conduit, leg) = &mut **both;
                read_over(conduit, leg).await
            }
        }
    }

    pub(super) fn stop(&mut self, reason: Reason) {
        match self {
            Self::Session(half) => half.stop(reason),
            Self::Conduit(both) => both.1.stop(reason),
        }
    }
}

/// Bytes come over the conduit; how it ends is told on the leg.
async fn read_over(conduit: &mut Receiver, leg: &mut RecvHalf) -> Result<Option<Bytes>, ReadError> {
    tokio::select! {
        biased; // a reason is worth more than bytes, which come again
        // The other side has said its last word, which is on the conduit.
        told = told(leg) => told?,
        chunk = conduit.read_chunk() => match chunk? {
            Some(chunk) => return Ok(Some(chunk)),
            None => return told_end(leg).await,
        },
    }
    conduit.read_chunk().await
}

/// Waits for how a conduit's leg ends: with nothing, after the last word was said.
async fn told(leg: &mut RecvHalf) -> Result<(), ReadError> {
    match leg.read_chunk(1).await? {
        None => Ok(()),
        Some(_) => Err(ReadError::Reset(Reason::ProtocolViolation)),
    }
}

/// How long the word of a leg's end may come after its conduit's.
const WORD_LATER: Duration = Duration::from_secs(1);

/// The end of a connection is an end only when the leg says so too.
async fn told_end(leg: &mut RecvHalf) -> Result<Option<Bytes>, ReadError> {
    match tokio::time::timeout(WORD_LATER, told(leg)).await {
        Ok(told) => told.map(|()| None),
        Err(_elapsed) => Err(ReadError::Lost(Lost::Cut)),
    }
}

/// Makes the later legs of a stream, for its opener.
pub trait LegSource: fmt::Debug + Send + Sync + 'static {
    /// Opens a leg; it may wait for a way to be there. The answer to the open comes on the leg. After `attempt` answers
    /// that were refusals, another way than the best may have a better one.
    ///
    /// # Errors
    /// Why there is no leg now.
    fn open(&self, open: Open, attempt: u32) -> BoxFuture<'_, Result<Leg, Reason>>;
}

/// Whether an end for this reason is the end of a leg only, so that the stream can go on by another one.
///
/// All other reasons are somebody's will, or say that there is nobody to go on with: they end the stream.
#[must_use]
pub fn loses_only_the_leg(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::SessionLost
            | Reason::RelayUnreachable
            | Reason::Draining
            | Reason::NoProvider
            | Reason::OpenTimeout
            | Reason::HandshakeTimeout
            | Reason::Overloaded
            | Reason::QuotaExceeded
            | Reason::NoPolicy
            | Reason::PolicyStale
            // A certificate that ended is renewed within the window, and a relay's wrong clock is not the only relay.
            | Reason::NotAdmitted
    )
}

/// How a leg ended that could not be read further. A leg that somebody dropped without a word says nothing of the
/// stream: whoever gives up a stream says so within it.
pub(super) fn lost_reading(error: &ReadError) -> Reason {
    match error {
        ReadError::Reset(Reason::Cancelled) => Reason::SessionLost,
        ReadError::Reset(reason) => *reason,
        ReadError::Lost(lost) => lost_by(lost),
        ReadError::Stopped => Reason::Internal,
    }
}

/// How a leg ended that could not be written further.
pub(super) fn lost_writing(error: &WriteError) -> Reason {
    match error {
        WriteError::Stopped(Reason::Cancelled) => Reason::SessionLost,
        WriteError::Stopped(reason) => *reason,
        WriteError::Lost(lost) => lost_by(lost),
        WriteError::Finished => Reason::Internal,
    }
}

// What a relay says of the session is about the session: it decides over the stream only where it is policy.
fn lost_by(lost: &Lost) -> Reason {
    match lost {
        Lost::ByPeer(reason @ (Reason::IdentityRevoked | Reason::Superseded)) => *reason,
        Lost::ByPeer(_)
        | Lost::ByUs
        | Lost::Silent
        | Lost::PeerRestarted
        | Lost::PeerGone
        | Lost::Cut
        | Lost::Transport { .. } => Reason::SessionLost,
    }
}
