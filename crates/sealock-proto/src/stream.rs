//! The resumable stream: ordered bytes between two agents that outlive the legs which carry them.
//!
//! The idea: every byte has an offset, the receiver says how far its application has read, and the sender keeps
//! what is not yet read. A **leg** is any ordered, reliable byte pipe (a relayed QUIC stream today). Each leg begins
//! with one ATTACH a side, at an epoch above all earlier ones, in which both sides say how far they have received;
//! both send on from there, and whatever an older leg still delivers is fenced off by its epoch. The opener makes
//! legs, the accepter parks and waits.
//!
//! A [`Stream`] is driven, it does nothing by itself. After each call of an input verb (`attach`, `accept_attach`,
//! `handle_*`, `detach`, `write`, `read`, `finish`, `reset`, `fail`) drain it: [`Stream::poll_output`] until it
//! answers `Wait`, or, while the leg takes no bytes, [`Stream::poll_event`] until `None` and
//! [`Stream::next_timeout`]. Frames are made at the moment they are asked for, so not asking is the back-pressure.
//!
//! What is left to the driver: to check the proof of an ATTACH before it hands it over (the accepter's side: the first
//! frame of a new leg, to [`Stream::accept_attach`]; the opener's: to [`Stream::handle_frame`]), to answer a leg for a
//! stream that it does not know with CLOSED(`RESUME_EXPIRED`), and after [`Event::Released`] to let what was written
//! to the leg arrive before it closes it.
//!
//! How a stream ends, so that both sides come to one verdict:
//! - a direction ends by FIN, in order behind its data; ACK with the end flag says that the application has it all;
//! - when both directions ended so, a side is settled with `Ok` and says CLOSED(`DONE`);
//! - RESET(reason) overtakes data and is answered by CLOSED(verdict); of two resets that cross, the opener's wins;
//!   who has already settled answers with its own verdict, which the other side takes over;
//! - a side forgets the stream ([`Event::Released`]) after the peer's CLOSED, or when time is up.
//!
//! A side that was cut off for the whole window while the other had already settled gets `RESUME_EXPIRED`: no
//! protocol can tell it what nothing can reach it with. Nothing else makes verdicts differ.
//!
//! Deliberately absent: a clock, IO, randomness, locks; encryption (TLS runs above); which leg to use (path).

mod bug;
mod decode;
pub mod frame;
mod inbound;
mod machine;
mod outbound;
pub mod ticket;
mod varint;

#[cfg(any(test, fuzzing))]
#[expect(clippy::panic, reason = "a broken promise is what a fuzzer looks for")]
pub(crate) mod fuzz;
#[cfg(any(test, fuzzing))]
#[expect(clippy::panic, reason = "a broken promise is what a fuzzer looks for")]
mod model;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sealock_core::reason::Reason;

pub use self::decode::{DecodeError, Decoder};
pub use self::frame::{Ack, Attach, Encoded, Frame, Header, MAX_DATA};
pub use self::machine::{Progress, Stream};
pub use self::ticket::{Proof, Ticket, TicketContext};

// An empty queue of chunks with more room than this gives its memory back.
const IDLE_CHUNKS: usize = 8;

/// Which side of a stream this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The side that asked for the stream; it makes every leg.
    Opener,
    /// The side that was asked; it waits for legs.
    Accepter,
}

/// The number of a leg within its stream; each leg's is above all earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Epoch(pub u32);

impl Epoch {
    /// The epoch of a stream's first leg.
    pub const FIRST: Self = Self(1);

    /// The epoch of the leg after this one, or `None` after four thousand million legs.
    #[must_use]
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The sizes and times of a stream; both sides may differ in all but `early`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamConfig {
    /// How many bytes the peer may send ahead of the application's reading, at first; also the least that the
    /// replay buffer takes.
    pub initial_window: u32,
    /// What the window and the replay buffer may grow to.
    pub max_window: u32,
    /// How many bytes the opener may send on the first leg before the accepter has said its limit. Part of the
    /// protocol: every accepter grants at least this.
    pub early: u32,
    /// How long after reading an acknowledgement may wait for more to acknowledge.
    pub ack_delay: Duration,
    /// How long a stream without a leg waits for one, and how long a settled one waits for the peer's CLOSED.
    pub resume_window: Duration,
}

impl Default for StreamConfig {
    fn default() -> Self {
        Self {
            initial_window: 256 << 10,
            max_window: 16 << 20,
            // A post-quantum ClientHello with early data fits.
            early: 16 << 10,
            // Under a round trip of most relayed paths, over a burst of reads.
            ack_delay: Duration::from_millis(10),
            resume_window: Duration::from_secs(120),
        }
    }
}

/// What a stream wants its driver to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Write this frame to the current leg, the one of [`Stream::epoch`].
    Send(Frame),
    /// Something that the driver or the application waits for.
    Event(Event),
    /// Nothing more until an input verb is called, or [`Stream::handle_timeout`] at this time.
    Wait(Option<Instant>),
}

/// What happened on a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The leg of this epoch carries the stream: the peer has answered, or its ATTACH was accepted.
    Attached(Epoch),
    /// The stream has no leg; the opener makes one, the accepter waits.
    Parked,
    /// The accepter's end of the leg will go away soon: make another one meanwhile. Opener only.
    LegWanted,
    /// Bytes can be read.
    Readable,
    /// A write that was cut short can go on.
    Writable,
    /// The peer's end was reached: everything before it has been read.
    FinReceived,
    /// The peer ended the stream abnormally; reads and writes fail with this reason.
    PeerReset(Reason),
    /// The verdict: both directions ended cleanly, or why not. Comes exactly once.
    Closed(Result<(), Reason>),
    /// The peer needs nothing more from this side: drop the stream and its leg. Comes last, exactly once.
    Released,
}

/// What a read gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    /// The next bytes; they count as delivered.
    Data(Bytes),
    /// Nothing yet: wait for [`Event::Readable`] or [`Event::FinReceived`].
    Blocked,
    /// The peer ended the direction cleanly and everything before its end has been read.
    End,
    /// The stream ended abnormally; never to be taken for an end.
    Broken(Reason),
}

/// Why a write or finish was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// `finish` was called before.
    #[error("this direction is already finished")]
    Finished,
    /// The stream has ended.
    #[error("the stream ended: {0}")]
    Ended(Reason),
}

/// Why a leg was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// Not above the epoch of an earlier leg: a replay or a loser of a race. The live leg is untouched.
    #[error("the leg's epoch is not above that of an earlier leg")]
    Stale,
    /// The opener makes legs and the accepter takes them, not the other way about.
    #[error("this side of a stream does not do that with a leg")]
    WrongRole,
    /// The stream is released or out of epochs; answer the leg with [`Frame::Closed`].
    #[error("the stream is over")]
    Over,
    /// The ATTACH contradicts what is known. The leg was taken, to carry the RESET; keep draining.
    #[error(transparent)]
    Violation(#[from] Violation),
}

/// How a peer broke the protocol; the stream resets itself with `PROTOCOL_VIOLATION`, the driver drains on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A leg began with another frame than ATTACH.
    #[error("a frame came before the leg's ATTACH")]
    NotAttached,
    /// A second ATTACH on a leg, or one of another epoch.
    #[error("an ATTACH does not belong to its leg")]
    StrayAttach,
    /// Acknowledged less than before.
    #[error("an acknowledgement went backwards")]
    AckBackwards,
    /// Acknowledged, or claimed to have received, what was never sent.
    #[error("an acknowledgement is beyond what was sent")]
    AckBeyondSent,
    /// The offset up to which we may send went backwards.
    #[error("a limit went backwards")]
    LimitBackwards,
    /// Acknowledged an end that was never sent.
    #[error("the end was acknowledged before it was sent")]
    EndNotSent,
    /// Sent beyond the limit that we granted.
    #[error("data is beyond the limit")]
    BeyondLimit,
    /// Left bytes out.
    #[error("bytes are missing before this offset")]
    Gap,
    /// Data behind the end of its direction.
    #[error("data is beyond the end")]
    AfterFin,
    /// A second end at another offset, or one before received data.
    #[error("the end moved")]
    FinMoved,
    /// An opener asked for a leg, which only it can make.
    #[error("the side that makes legs asked for one")]
    StrayGoAway,
    /// Claimed that both directions ended when ours has not.
    #[error("the peer closed a stream that has not ended")]
    ClosedEarly,
}
