//! The two halves of a stream.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use sealock_core::reason::Reason;
use tokio::io::ReadBuf;

use super::watch::Hold;
use crate::transport::{Lost, ReadError, WriteError};

/// The halves of a stream.
pub(super) fn halves(
    send: noq::SendStream,
    recv: noq::RecvStream,
    hold: Arc<Hold>,
) -> (SendHalf, RecvHalf) {
    // One that has just ended has no turn to be given.
    send.set_priority(YOUNG_TURN).ok();
    let send = SendHalf {
        inner: send,
        ended: false,
        youth: YOUTH,
        hold: Arc::clone(&hold),
    };
    let recv = RecvHalf {
        inner: recv,
        ended: false,
        surplus: Bytes::new(),
        failed: None,
        hold,
    };
    (send, recv)
}

/// How much of a stream goes before what older streams have to send: a handshake's flight and a first word, so that a
/// new stream opens in some round trips also where a thousand others fill the way.
const YOUTH: u32 = 4 * 1024;
/// Whose turn comes first, the highest one before all others: the session's own streams, new ones, all others.
const STANDING_TURN: i32 = 2;
const YOUNG_TURN: i32 = 1;
const GROWN_TURN: i32 = 0;

/// The half towards the other side. Dropped before [`Self::finish`] it resets, so a lost task is never a clean end.
#[derive(Debug)]
pub(crate) struct SendHalf {
    inner: noq::SendStream,
    ended: bool,
    /// How much more goes before what older streams have to send.
    youth: u32,
    /// Ends with both halves.
    hold: Arc<Hold>,
}

impl SendHalf {
    /// Writes all of `bytes` without copying them; waits while the other side takes no more.
    ///
    /// # Errors
    /// When the other side wants no more, or the connection is gone.
    ///
    /// # Cancel safety
    /// A part may have been written; only a reset is sensible then.
    pub(crate) async fn write(&mut self, bytes: Bytes) -> Result<(), WriteError> {
        let length = bytes.len();
        let written = self.inner.write_chunk(bytes).await;
        self.grow(length);
        written.map_err(|error| write_error(error, &self.hold))
    }

    /// Writes all of `chunks` without copying them.
    ///
    /// # Errors
    /// When the other side wants no more, or the connection is gone.
    ///
    /// # Cancel safety
    /// What has been written is cut off the front of the chunks, so the same call can be made again.
    pub(crate) async fn write_all_chunks(
        &mut self,
        chunks: &mut [Bytes],
    ) -> Result<(), WriteError> {
        let length = match self.youth {
            0 => 0,
            _ => chunks.iter().map(Bytes::len).sum(),
        };
        let written = self.inner.write_all_chunks(chunks).await;
        self.grow(length);
        written.map_err(|error| write_error(error, &self.hold))
    }

    /// Counts what was written: behind so much, a stream waits its turn like all others. The packet at hand goes as it is.
    fn grow(&mut self, length: usize) {
        if self.youth == 0 {
            return;
        }
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        self.youth = self.youth.saturating_sub(length);
        if self.youth == 0 && self.hold.attends() {
            // One that has ended has no turn.
            self.inner.set_priority(GROWN_TURN).ok();
        }
    }

    /// Ends this direction cleanly; what was written still arrives.
    ///
    /// # Errors
    /// When the other side stopped the stream, or it has ended already.
    pub(crate) fn finish(&mut self) -> Result<(), WriteError> {
        self.ended = true;
        self.inner.finish().map_err(|_| WriteError::Finished)
    }

    /// Gives this direction up; what was written may be lost.
    pub(crate) fn reset(&mut self, reason: Reason) {
        self.ended = true;
        // An error says that the stream has ended already, which is all that is wanted.
        self.inner.reset(reason.number().into()).ok();
    }

    /// Waits until the other side wants no more (the reason) or has received all after [`Self::finish`] (nothing).
    ///
    /// # Errors
    /// When the connection is gone.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn stopped(&self) -> Result<Option<Reason>, Lost> {
        match self.inner.stopped().await {
            Ok(code) => Ok(code.map(given_up)),
            Err(noq::StoppedError::ConnectionLost(error)) => Err(self.hold.lost(&error)),
            Err(noq::StoppedError::ZeroRttRejected) => Err(Lost::ByUs), // we never send early data
        }
    }

    /// The stream is no reason to ask the peer more often whether it is there, and nobody's bytes keep its words waiting.
    pub(crate) fn stand_by(&self) {
        self.hold.stand_by();
        // One that has ended has no turn.
        self.inner.set_priority(STANDING_TURN).ok();
    }

    /// The stream's number in its connection.
    #[must_use]
    pub(crate) fn id(&self) -> u64 {
        self.inner.id().into()
    }

    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize, WriteError>> {
        Pin::new(&mut self.inner)
            .poll_write(cx, bytes)
            .map_err(|error| write_error(error, &self.hold))
    }
}

impl Drop for SendHalf {
    fn drop(&mut self) {
        if !self.ended {
            // The library would finish the stream, and the other side would take the rest for the whole.
            self.reset(Reason::Cancelled);
        }
    }
}

/// The half from the other side. Dropped before its end it tells the other side to stop.
#[derive(Debug)]
pub(crate) struct RecvHalf {
    inner: noq::RecvStream,
    ended: bool,
    /// What was taken from the library beyond what was asked for.
    surplus: Bytes,
    /// An abnormal end that was met behind bytes; the library tells it once and calls the stream finished from then on.
    failed: Option<ReadError>,
    hold: Arc<Hold>,
}

/// From this much on, a reader takes what has arrived in one piece, however many packets it came in.
const WORTH_JOINING: usize = 16 * 1024;
/// How many pieces are taken at once: 64 KiB of packets of Ethernet's size.
const PIECES: usize = 48;

impl RecvHalf {
    /// The next bytes, at most `max` of them; nothing at the clean end.
    ///
    /// For a `max` of 16 KiB and more, pieces that wait are joined: one copy costs less than what each piece would on
    /// its further way. A single piece is passed on as it is.
    ///
    /// # Errors
    /// When the other side gave the stream up, or the connection is gone.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn read_chunk(&mut self, max: usize) -> Result<Option<Bytes>, ReadError> {
        if !self.surplus.is_empty() {
            let length = max.min(self.surplus.len());
            return Ok(Some(self.surplus.split_to(length)));
        }
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let read = self.inner.read_chunk(max).await;
        if matches!(read, Ok(None) | Err(_)) {
            self.ended = true;
        }
        let read = read.map_err(|error| read_error(error, &self.hold))?;
        Ok(read.map(|first| {
            if max < WORTH_JOINING || first.len() >= max / 2 {
                return first;
            }
            self.join(first, max)
        }))
    }

    /// Joins `first` and what else has arrived, without waiting. An end that it meets is left to the next read.
    fn join(&mut self, first: Bytes, max: usize) -> Bytes {
        let mut pieces = vec![Bytes::new(); PIECES];
        let more = self.inner.read_many_chunks(&mut pieces).now_or_never();
        let count = match more {
            Some(Ok(Some(count))) => count,
            Some(Err(error)) => {
                self.ended = true;
                self.failed = Some(read_error(error, &self.hold));
                return first;
            }
            None | Some(Ok(None)) => return first,
        };
        pieces.truncate(count);
        let length = pieces.iter().map(Bytes::len).sum::<usize>();
        let mut joined = BytesMut::with_capacity(first.len() + length);
        joined.extend_from_slice(&first);
        for piece in &pieces {
            joined.extend_from_slice(piece);
        }
        let mut joined = joined.freeze();
        if joined.len() > max {
            self.surplus = joined.split_off(max);
        }
        joined
    }

    /// Tells the other side that we want no more.
    pub(crate) fn stop(&mut self, reason: Reason) {
        self.ended = true;
        // An error says that the stream has ended already, which is all that is wanted.
        self.inner.stop(reason.number().into()).ok();
    }

    /// Waits until the other side gives the stream up (the reason), or all of it has arrived (nothing).
    ///
    /// # Errors
    /// When the connection is gone.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn reset_received(&mut self) -> Result<Option<Reason>, Lost> {
        match self.inner.received_reset().await {
            Ok(code) => Ok(code.map(given_up)),
            Err(noq::ResetError::ConnectionLost(error)) => Err(self.hold.lost(&error)),
            Err(noq::ResetError::ZeroRttRejected) => Err(Lost::ByUs), // we never send early data
        }
    }

    /// The stream's number in its connection.
    #[must_use]
    pub(crate) fn id(&self) -> u64 {
        self.inner.id().into()
    }

    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<(), ReadError>> {
        if !self.surplus.is_empty() {
            let length = buffer.remaining().min(self.surplus.len());
            buffer.put_slice(&self.surplus.split_to(length));
            return Poll::Ready(Ok(()));
        }
        if let Some(error) = &self.failed {
            return Poll::Ready(Err(error.clone()));
        }
        match ready!(self.inner.poll_read(cx, buffer.initialize_unfilled())) {
            Ok(length) => {
                self.ended |= length == 0 && buffer.remaining() > 0;
                buffer.advance(length);
                Poll::Ready(Ok(()))
            }
            Err(error) => {
                self.ended = true;
                Poll::Ready(Err(read_error(error, &self.hold)))
            }
        }
    }
}

impl Drop for RecvHalf {
    fn drop(&mut self) {
        if !self.ended {
            self.stop(Reason::Cancelled);
        }
    }
}

/// The reason in a reset or a stop. Neither is ever a clean end, whatever number the other side sends.
fn given_up(code: noq::VarInt) -> Reason {
    let reason = Reason::from_number(code.into_inner());
    if reason == Reason::Done {
        return Reason::Unknown;
    }
    reason
}

fn read_error(error: noq::ReadError, hold: &Hold) -> ReadError {
    match error {
        noq::ReadError::Reset(code) => ReadError::Reset(given_up(code)),
        noq::ReadError::ConnectionLost(error) => ReadError::Lost(hold.lost(&error)),
        noq::ReadError::ClosedStream | noq::ReadError::ZeroRttRejected => ReadError::Stopped,
    }
}

fn write_error(error: noq::WriteError, hold: &Hold) -> WriteError {
    match error {
        noq::WriteError::Stopped(code) => WriteError::Stopped(given_up(code)),
        noq::WriteError::ConnectionLost(error) => WriteError::Lost(hold.lost(&error)),
        noq::WriteError::ClosedStream | noq::WriteError::ZeroRttRejected => WriteError::Finished,
    }
}
