//! One leg of a stream, and where an opener's legs come from.

use std::fmt;

use futures_util::future::BoxFuture;
use sealock_core::reason::Reason;
use sealock_proto::wire::Open;
use tokio_util::sync::CancellationToken;

use crate::transport::{BiStream, Lost, ReadError, WriteError};

/// A leg: a pipe to the stream's other agent, and the sign that it is to be left.
#[derive(Debug)]
pub struct Leg {
    /// The pipe.
    pub io: BiStream,
    leaving: CancellationToken,
}

impl Leg {
    /// A leg on a session that is to be left when `leaving` is cancelled.
    #[must_use]
    pub fn new(io: BiStream, leaving: CancellationToken) -> Self {
        Self { io, leaving }
    }

    /// A leg that is never left by choice.
    #[must_use]
    pub fn lasting(io: BiStream) -> Self {
        Self::new(io, CancellationToken::new())
    }

    pub(super) fn into_parts(self) -> (BiStream, CancellationToken) {
        (self.io, self.leaving)
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
