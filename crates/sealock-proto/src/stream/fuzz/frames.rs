//! Any bytes as the frames of a leg: the same frames however they are cut, and frames that encode to what they were.

use bytes::Bytes;

use crate::fuzz::{Input, Seen, Target};
use crate::stream::{DecodeError, Decoder, Frame, MAX_DATA};

pub(crate) const FRAMES: Target = Target {
    name: "wire_frame",
    run,
    reaches: &[
        "Attach",
        "Attach with proof",
        "Data",
        "Data in pieces",
        "Ack",
        "Ack with end",
        "Fin",
        "Reset",
        "Closed",
        "GoAway",
        "unfinished",
        "unknown type",
        "too long",
        "empty data",
        "out of range",
        "unknown flags",
    ],
};

fn run(input: &[u8]) -> Seen {
    let mut input = Input(input);
    let size = 1 + usize::from(input.byte());
    let bytes = Bytes::copy_from_slice(input.0);
    let mut seen = Seen::new();
    let whole = decode(std::iter::once(bytes.clone()), &mut Seen::new());
    let chunks = (0..bytes.len())
        .step_by(size)
        .map(|at| bytes.slice(at..bytes.len().min(at + size)));
    let pieces = decode(chunks, &mut seen);
    assert_eq!(whole, pieces, "alike in one piece and in many");
    let (frames, error) = whole;
    for frame in &frames {
        seen.insert(name_of(frame));
    }
    again(&frames);
    seen.insert(match error {
        None => "unfinished",
        Some(DecodeError::UnknownType(_)) => "unknown type",
        Some(DecodeError::TooLong) => "too long",
        Some(DecodeError::EmptyData) => "empty data",
        Some(DecodeError::OutOfRange) => "out of range",
        Some(DecodeError::UnknownFlags) => "unknown flags",
    });
    seen
}

/// All frames up to the first error, with the pieces of a DATA frame joined again.
fn decode(
    chunks: impl Iterator<Item = Bytes>,
    seen: &mut Seen,
) -> (Vec<Frame>, Option<DecodeError>) {
    let mut decoder = Decoder::new();
    let mut frames: Vec<Frame> = Vec::new();
    for chunk in chunks {
        decoder.push(chunk);
        loop {
            match decoder.next() {
                Ok(Some(frame)) => push(&mut frames, frame, seen),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(decoder.next(), Err(error), "an error stays");
                    return (frames, Some(error));
                }
            }
        }
    }
    (frames, None)
}

fn push(frames: &mut Vec<Frame>, frame: Frame, seen: &mut Seen) {
    if let (
        Some(Frame::Data { offset, bytes }),
        Frame::Data {
            offset: at,
            bytes: more,
        },
    ) = (frames.last_mut(), &frame)
        && *offset + bytes.len() as u64 == *at
    {
        seen.insert("Data in pieces");
        *bytes = [bytes.as_ref(), more.as_ref()].concat().into();
        return;
    }
    frames.push(frame);
}

// What came out goes in again and comes out the same; joined pieces may be longer than one frame.
fn again(frames: &[Frame]) {
    let mut decoder = Decoder::new();
    for frame in frames {
        if let Frame::Data { bytes, .. } = frame
            && bytes.len() > MAX_DATA
        {
            continue;
        }
        let encoded = frame.clone().encode();
        assert_eq!(
            encoded.size(),
            encoded.header.as_ref().len() + encoded.payload.as_ref().map_or(0, Bytes::len)
        );
        decoder.push(Bytes::copy_from_slice(encoded.header.as_ref()));
        let early = match &encoded.payload {
            Some(payload) => {
                assert_eq!(decoder.next(), Ok(None), "a header alone is no frame");
                decoder.push(payload.clone());
                decoder.next()
            }
            None => decoder.next(),
        };
        assert_eq!(early.as_ref(), Ok(&Some(frame.clone())));
    }
}

fn name_of(frame: &Frame) -> &'static str {
    match frame {
        Frame::Attach(attach) if attach.proof.is_some() => "Attach with proof",
        Frame::Attach(_) => "Attach",
        Frame::Data { .. } => "Data",
        Frame::Ack(ack) if ack.end_delivered => "Ack with end",
        Frame::Ack(_) => "Ack",
        Frame::Fin { .. } => "Fin",
        Frame::Reset { .. } => "Reset",
        Frame::Closed { .. } => "Closed",
        Frame::GoAway => "GoAway",
    }
}
