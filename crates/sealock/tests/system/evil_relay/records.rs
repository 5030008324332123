//! A relay that reads the stream of a caller and alters the TLS records in it, so that the stream itself stays whole:
//! what finds it out is the encryption between the agents alone.

use bytes::{Bytes, BytesMut};
use sealock_proto::stream::{Decoder, Frame};

use super::*;

/// What becomes of one of the caller's records. Those that are only there for machines on the way (RFC 8446 §D.4) are
/// not counted: the first is the offer, the second begins with the caller's certificate.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Tampering {
    /// One bit at so many hundredths of it.
    Flip(usize, usize),
    Drop(usize),
    Repeat(usize),
    /// Comes behind the record that follows it.
    Later(usize),
    /// Nothing is encrypted: what the caller would have asked for inside stands there in plain.
    Strip,
}

const HEADER: usize = 5; // RFC 8446 §5.1: kind, version (2 bytes), length (2 bytes)
const CHANGE_CIPHER_SPEC: u8 = 20;
const OFFER: usize = 0;
const PROOF: usize = 1;

/// The records of one direction, as they come and as they go.
struct Records {
    tampering: Tampering,
    unfinished: BytesMut,
    count: usize,
    later: Option<Bytes>,
}

impl Records {
    fn take(&mut self, bytes: &[u8]) -> Vec<Bytes> {
        self.unfinished.extend_from_slice(bytes);
        let mut passed = Vec::new();
        while self.unfinished.len() >= HEADER {
            let length = u16::from_be_bytes([self.unfinished[3], self.unfinished[4]]);
            let length = HEADER + usize::from(length);
            if self.unfinished.len() < length {
                break;
            }
            let record = self.unfinished.split_to(length).freeze();
            if record[0] == CHANGE_CIPHER_SPEC {
                passed.push(record);
            } else {
                passed.extend(self.alter(record));
                self.count += 1;
            }
        }
        passed
    }

    fn alter(&mut self, record: Bytes) -> Vec<Bytes> {
        match self.tampering {
            Tampering::Flip(number, hundredth) if number == self.count => {
                let mut flipped = record.to_vec();
                let at = HEADER + (flipped.len() - HEADER - 1) * hundredth / 100;
                flipped[at] ^= 1;
                vec![flipped.into()]
            }
            Tampering::Drop(number) if number == self.count => Vec::new(),
            Tampering::Repeat(number) if number == self.count => vec![record.clone(), record],
            Tampering::Later(number) if number == self.count => {
                self.later = Some(record);
                Vec::new()
            }
            Tampering::Strip if self.count == OFFER => vec![Bytes::from_static(b"\x04echo\x03")],
            Tampering::Strip => Vec::new(),
            Tampering::Flip(..)
            | Tampering::Drop(_)
            | Tampering::Repeat(_)
            | Tampering::Later(_) => [record].into_iter().chain(self.later.take()).collect(),
        }
    }
}

/// Passes on the frames of a caller, with what is altered in them at offsets that fit.
pub(super) async fn tamper((mut from, mut to): Way, tampering: Tampering) {
    let mut records = Records {
        tampering,
        unfinished: BytesMut::new(),
        count: 0,
        later: None,
    };
    let (mut decoder, mut passed) = (Decoder::new(), 0);
    while let Ok(Some(chunk)) = from.read_chunk(64 * 1024).await {
        decoder.push(chunk);
        while let Ok(Some(frame)) = decoder.next() {
            let mut frames = Vec::new();
            match frame {
                Frame::Data { bytes, .. } => {
                    for bytes in records.take(&bytes) {
                        let offset = passed;
                        passed += bytes.len() as u64;
                        frames.push(Frame::Data { offset, bytes });
                    }
                }
                Frame::Fin { .. } => frames.push(Frame::Fin { offset: passed }),
                Frame::Attach(_)
                | Frame::Ack(_)
                | Frame::Reset { .. }
                | Frame::Closed { .. }
                | Frame::GoAway => frames.push(frame),
            }
            for frame in frames {
                let encoded = frame.encode();
                let header = Bytes::copy_from_slice(encoded.header.as_ref());
                let payload = encoded.payload.unwrap_or_default();
                if to.write(header).await.is_err() || to.write(payload).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// No record has so high a number.
const NONE: usize = usize::MAX;

// The test below says nothing unless this relay can pass on what is true.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_reads_frames_and_alters_no_record_delivers_everything() -> Result<()> {
    let scene = Scene::start(Trick::Tamper(Tampering::Drop(NONE))).await?;
    let (bytes, ended) = scene.fetch(3).await?;
    ended?;
    assert!(bytes == truth(3));
    assert_eq!(*scene.reached.lock(), 1);
    Ok(())
}

// S03: from the caller to the provider too, the offer is stripped or edited, inner records are dropped, repeated and put
// in another order. No byte goes either way, the program behind is not reached, and both write down why. Not dropped is
// the offer itself: a provider waits for it, as for that of a caller who is slow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_relay_does_to_a_callers_handshake_the_provider_refuses() -> Result<()> {
    for tampering in [
        Tampering::Strip,
        Tampering::Flip(OFFER, 1), // its version
        Tampering::Flip(OFFER, 10),
        Tampering::Flip(OFFER, 50), // the shares of the key
        Tampering::Flip(OFFER, 100),
        Tampering::Repeat(OFFER),
        Tampering::Flip(PROOF, 50),
        Tampering::Drop(PROOF),
        Tampering::Repeat(PROOF),
        Tampering::Later(PROOF),
    ] {
        let what = format!("{tampering:?}");
        let scene = Scene::start(Trick::Tamper(tampering)).await?;
        assert_eq!(scene.expect_reset(&what).await?, 0, "{what}");
        assert_eq!(*scene.reached.lock(), 0, "{what}");
        for agent in &scene.agents[..2] {
            let rows = rows(agent.audit(), "caller", 1).await?;
            let named = [Reason::Integrity, Reason::ProtocolViolation];
            assert!(named.contains(&rows[0].reason), "{what}: {rows:?}");
        }
    }
    Ok(())
}
