//! Messages on a transport's streams: one is read whole, and not a byte beyond it.

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
/// Not safe: part of a message may have been read.
pub async fn read(reader: &mut RecvHalf) -> Result<Message, ReadError> {
    for _ in 0..SKIPS {
        let mut header = [0; HEADER_LENGTH];
        fill(reader, &mut header).await?;
        let header = Header::decode(header)?;
        let mut body = vec![0; header.body_length()]; // at most 16 KiB, checked by the header
        fill(reader, &mut body).await?;
        if let Some(message) = header.decode_body(&body)? {
            return Ok(message);
        }
    }
    Err(ReadError::Ended(Reason::ProtocolViolation))
}

async fn fill(reader: &mut RecvHalf, mut space: &mut [u8]) -> Result<(), ReadError> {
    while !space.is_empty() {
        let chunk = reader.read_chunk(space.len()).await;
        let chunk = chunk.map_err(|error| ReadError::Ended(error.reason()))?;
        let chunk = chunk.ok_or(ReadError::Ended(Reason::Truncated))?;
        let (filled, rest) = space.split_at_mut(chunk.len());
        filled.copy_from_slice(&chunk);
        space = rest;
    }
    Ok(())
}
