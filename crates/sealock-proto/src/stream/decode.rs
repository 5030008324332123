//! Bytes of a leg to frames, however the bytes were cut.
//!
//! Payloads are slices of what was pushed, never copies: a DATA frame that spans chunks comes out in pieces. Nothing
//! is allocated from a length field; all that is kept between chunks is an unfinished header of under 67 bytes.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};
use sealock_core::reason::Reason;

use super::frame::{
    ACK, ACK_END, ATTACH, Ack, Attach, CLOSED, DATA, FIN, FLAG_END, FLAG_PROOF, Frame, GOAWAY,
    MAX_DATA, MAX_HEADER, RESET,
};
use super::{Epoch, Proof, varint};

/// Why bytes are no frames; the leg is of no use from there on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// No frame has this type.
    #[error("unknown frame type {0:#04x}")]
    UnknownType(u8),
    /// A DATA frame says it has more than [`MAX_DATA`] bytes.
    #[error("a data frame is longer than 65536 bytes")]
    TooLong,
    /// A DATA frame without bytes: it costs us and gives nothing.
    #[error("a data frame is empty")]
    EmptyData,
    /// An offset or epoch is beyond what a stream can have.
    #[error("a number is out of range")]
    OutOfRange,
    /// ATTACH has flags that this version does not know.
    #[error("unknown flags in an attach frame")]
    UnknownFlags,
}

/// Takes chunks of a leg's bytes and gives frames.
#[derive(Debug, Default)]
pub struct Decoder {
    chunks: VecDeque<Bytes>,
    head: Vec<u8>,
    payload_at: u64,
    payload_left: usize,
    failed: Option<DecodeError>,
}

enum Parsed {
    Whole(Frame),
    Data { offset: u64, length: usize },
}

impl Decoder {
    /// A decoder at the beginning of a leg.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Hands over the next bytes of the leg; ask for frames until there is none before pushing more.
    pub fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() && self.failed.is_none() {
            self.chunks.push_back(bytes);
        }
    }

    /// The next frame, or `None` until more bytes are pushed.
    ///
    /// # Errors
    /// When the bytes are no frame; the same error ever after.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator must not go on after an error"
    )]
    pub fn next(&mut self) -> Result<Option<Frame>, DecodeError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let result = self.decode();
        if let Err(error) = result {
            self.failed = Some(error);
            self.chunks = VecDeque::new();
        }
        result
    }

    fn decode(&mut self) -> Result<Option<Frame>, DecodeError> {
        while let Some(chunk) = self.chunks.front_mut() {
            if chunk.is_empty() {
                self.chunks.pop_front();
                continue;
            }
            if self.payload_left > 0 {
                let bytes = chunk.split_to(self.payload_left.min(chunk.len()));
                let offset = self.payload_at;
                self.payload_at += bytes.len() as u64;
                self.payload_left -= bytes.len();
                return Ok(Some(Frame::Data { offset, bytes }));
            }
            let parsed = if self.head.is_empty() {
                let parsed = parse(chunk)?;
                let used = parsed.as_ref().map_or(chunk.len(), |(_, used)| *used);
                if parsed.is_none() {
                    self.head.extend_from_slice(chunk);
                }
                chunk.advance(used);
                parsed
            } else {
                let known = self.head.len();
                let taken = chunk.len().min(MAX_HEADER - known);
                self.head.extend_from_slice(&chunk[..taken]);
                let parsed = parse(&self.head)?;
                let used = parsed.as_ref().map_or(taken, |(_, used)| used - known);
                if parsed.is_some() {
                    self.head = Vec::new();
                }
                chunk.advance(used);
                parsed
            };
            match parsed {
                None => {}
                Some((Parsed::Whole(frame), _)) => return Ok(Some(frame)),
                Some((Parsed::Data { offset, length }, _)) => {
                    self.payload_at = offset;
                    self.payload_left = length;
                }
            }
        }
        Ok(None)
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn varint(&mut self) -> Option<u64> {
        let (value, length) = varint::read(self.bytes.get(self.at..)?)?;
        self.at += length;
        Some(value)
    }

    fn proof(&mut self) -> Option<Proof> {
        let bytes = self.bytes.get(self.at..self.at + Proof::SIZE)?;
        self.at += Proof::SIZE;
        Some(Proof::from_bytes(bytes.try_into().ok()?))
    }
}

fn parse(bytes: &[u8]) -> Result<Option<(Parsed, usize)>, DecodeError> {
    let mut reader = Reader { bytes, at: 0 };
    let parsed = fields(&mut reader).transpose()?;
    Ok(parsed.map(|parsed| (parsed, reader.at)))
}

// `None` while bytes are missing.
fn fields(reader: &mut Reader<'_>) -> Option<Result<Parsed, DecodeError>> {
    let frame = match reader.byte()? {
        ATTACH => match attach(reader)? {
            Ok(attach) => Frame::Attach(attach),
            Err(error) => return Some(Err(error)),
        },
        DATA => {
            let (offset, length) = (reader.varint()?, reader.varint()?);
            return Some(data(offset, length));
        }
        kind @ (ACK | ACK_END) => Frame::Ack(Ack {
            delivered: reader.varint()?,
            limit: reader.varint()?,
            end_delivered: kind == ACK_END,
        }),
        FIN => Frame::Fin {
            offset: reader.varint()?,
        },
        RESET => Frame::Reset {
            reason: reset_reason(reader.varint()?),
        },
        CLOSED => Frame::Closed {
            verdict: Reason::from_number(reader.varint()?),
        },
        GOAWAY => Frame::GoAway,
        kind => return Some(Err(DecodeError::UnknownType(kind))),
    };
    Some(Ok(Parsed::Whole(frame)))
}

// A reset is never clean, whatever number it carries.
fn reset_reason(number: u64) -> Reason {
    let reason = Reason::from_number(number);
    if reason == Reason::Done {
        Reason::Unknown
    } else {
        reason
    }
}

fn data(offset: u64, length: u64) -> Result<Parsed, DecodeError> {
    if length == 0 {
        return Err(DecodeError::EmptyData);
    }
    if length > MAX_DATA as u64 {
        return Err(DecodeError::TooLong);
    }
    if offset + length > varint::MAX {
        return Err(DecodeError::OutOfRange);
    }
    let length = usize::try_from(length).map_err(|_| DecodeError::TooLong)?;
    Ok(Parsed::Data { offset, length })
}

fn attach(reader: &mut Reader<'_>) -> Option<Result<Attach, DecodeError>> {
    let Ok(epoch) = u32::try_from(reader.varint()?) else {
        return Some(Err(DecodeError::OutOfRange));
    };
    let (received, delivered, limit) = (reader.varint()?, reader.varint()?, reader.varint()?);
    let flags = reader.byte()?;
    if flags & !(FLAG_PROOF | FLAG_END) != 0 {
        return Some(Err(DecodeError::UnknownFlags));
    }
    let proof = if flags & FLAG_PROOF != 0 {
        Some(reader.proof()?)
    } else {
        None
    };
    Some(Ok(Attach {
        epoch: Epoch(epoch),
        received,
        delivered,
        limit,
        end_delivered: flags & FLAG_END != 0,
        proof,
    }))
}
