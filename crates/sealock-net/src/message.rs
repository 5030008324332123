//! Messages on a transport's streams: one is read whole, and not a byte beyond it.

use bytes::BytesMut;
use sealock_core::reason::Reason;
use sealock_proto::wire::{DecodeError, HEADER_LENGTH, Header, Message};

use crate::transport::RecvHalf;

/// Why there is no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The stream ended, cleanly or not, before or within the message.
    #[error("the stream ended before a message was complete")]
    Ended(Reason),
    /// The bytes are not a message.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

impl ReadError {
    /// What to tell others of it.
    #[must_use]
    pub fn reason(self) -> Reason {
        match self {
            Self::Ended(reason) => reason,
            Self::Decode(_) => Reason::ProtocolViolation,
        }
    }
}

/// How many skippable messages may come in a row before it is taken for a flood.
const SKIPS: usize = 8;

/// Reads the next message that this version knows; reads nothing beyond it.
///
/// # Errors
/// When the stream ends first or the bytes are not a message.
///
/// # Cancel safety
/// Not safe: part of a message may have been read. [`Inbox`] keeps it.
pub async fn read(reader: &mut RecvHalf) -> Result<Message, ReadError> {
    next(reader, &mut BytesMut::new()).await
}

/// The reading end of a control stream: one message after another.
#[derive(Debug)]
pub struct Inbox {
    reader: RecvHalf,
    held: BytesMut,
}

impl Inbox {
    /// Reads messages from here on.
    #[must_use]
    pub fn new(reader: RecvHalf) -> Self {
        Self {
            reader,
            held: BytesMut::new(),
        }
    }

    /// The next message that this version knows.
    ///
    /// # Errors
    /// When the stream ends first or the bytes are not a message; then nothing more comes.
    ///
    /// # Cancel safety
    /// Safe: what was read of a message is kept.
    pub async fn next(&mut self) -> Result<Message, ReadError> {
        next(&mut self.reader, &mut self.held).await
    }
}

/// Goes on with the message of which `held` is the beginning.
async fn next(reader: &mut RecvHalf, held: &mut BytesMut) -> Result<Message, ReadError> {
    for _ in 0..SKIPS {
        fill(reader, held, HEADER_LENGTH).await?;
        let first = held.first_chunk().copied().unwrap_or_default();
        let header = Header::decode(first)?;
        // At most 16 KiB more, checked by the header.
        fill(reader, held, HEADER_LENGTH + header.body_length()).await?;
        let message = header.decode_body(&held[HEADER_LENGTH..])?;
        *held = BytesMut::new(); // a control stream is silent for hours
        if let Some(message) = message {
            return Ok(message);
        }
    }
    Err(ReadError::Ended(Reason::ProtocolViolation))
}

async fn fill(reader: &mut RecvHalf, held: &mut BytesMut, length: usize) -> Result<(), ReadError> {
    while held.len() < length {
        let chunk = reader.read_chunk(length - held.len()).await;
        let chunk = chunk.map_err(|error| ReadError::Ended(error.reason()))?;
        held.extend_from_slice(&chunk.ok_or(ReadError::Ended(Reason::Truncated))?);
    }
    Ok(())
}
