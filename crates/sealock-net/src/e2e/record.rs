//! TLS records over a resumable stream, as two halves, each with a key of its own.
//!
//! rustls makes the handshake; from then on records are sealed and opened here, where a stream that idles holds its two
//! keys and little else ([ADR 16](docs/adr/0016-end-to-end-records-of-our-own.md)). Deliberately absent: words of TLS
//! other than its end and its alerts; keys are renewed without any.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use sealock_core::identity::AgentId;
use sealock_core::reason::Reason;
use sealock_proto::stream::Ticket;
use sealock_proto::wire::StreamId;

use crate::stream::{StreamReader, StreamWriter};
use crate::transport::record::cipher::Kind;
use crate::transport::record::keys::{Opens, Seals};

mod handshake;

use handshake::Established;
pub(super) use handshake::{Proof, Tls, client, server};

/// What TLS makes of a peer's bytes, as a reason: between two that have proved themselves only somebody on the way, or a
/// defect, breaks a record.
fn reason_of(error: &rustls::Error, stream: StreamId, is_established: bool) -> Reason {
    use rustls::{AlertDescription, Error};
    tracing::warn!(stream_id = %stream, err = %error, "end-to-end encryption failed");
    let altered = matches!(
        error,
        Error::DecryptError | Error::AlertReceived(AlertDescription::BadRecordMac)
    );
    let not_authentic = matches!(
        error,
        Error::InvalidCertificate(_) | Error::NoCertificatesPresented | Error::AlertReceived(_)
    );
    match (altered, not_authentic) {
        (true, _) => Reason::Integrity,
        (false, true) => Reason::PeerNotAuthentic,
        (false, false) if is_established => Reason::Integrity,
        (false, false) => Reason::ProtocolViolation,
    }
}

const CLOSE_NOTIFY: &[u8] = &[1, 0]; // RFC 8446 §6.1: a warning, and its number
/// How much is joined to one piece: with the record that passes it, four of them.
const ENOUGH: usize = 48 * 1024;
/// Records without a byte, one after the other, that are no flood yet.
const EMPTY_LIMIT: u8 = 32;

/// Proves both sides to each other.
pub(super) async fn handshake(
    mut tls: Tls,
    stream: StreamId,
    (mut reader, mut writer): (StreamReader, StreamWriter),
) -> Result<(SealedReader, SealedWriter, Proof), Reason> {
    let outcome = shake(&mut tls, &mut reader, &mut writer).await;
    if let Err(reason) = outcome {
        // The alert tells the peer's TLS, the reset its stream; what is no record at all has no alert.
        let alert = tls.say();
        if alert.is_empty() || writer.write(alert).await.is_ok() {
            writer.reset(reason);
        }
        return Err(reason);
    }
    let Established {
        opens,
        seals,
        proof,
    } = tls.finish()?;
    let reader = SealedReader {
        records: Records::new(opens, stream),
        stream: reader,
        plaintext: Bytes::new(),
    };
    let writer = SealedWriter {
        seals,
        stream: writer,
    };
    Ok((reader, writer, proof))
}

async fn shake(
    tls: &mut Tls,
    reader: &mut StreamReader,
    writer: &mut StreamWriter,
) -> Result<(), Reason> {
    loop {
        let out = tls.say();
        if !out.is_empty() {
            writer.write(out).await?;
        }
        if tls.is_done() {
            return Ok(());
        }
        let bytes = reader.read().await?.ok_or(Reason::Truncated)?;
        tls.hear(&bytes)?;
    }
}

/// What the records of the other side come to.
struct Records {
    opens: Opens,
    stream: StreamId,
    /// Records without a byte since the last one with some.
    empty: u8,
    /// How it ended behind what was opened; `DONE` where the other side marked its end.
    ended: Option<Reason>,
}

impl Records {
    fn new(opens: Opens, stream: StreamId) -> Self {
        Self {
            opens,
            stream,
            empty: 0,
            ended: None,
        }
    }

    /// The next piece: of what came, as much as can be opened and is worth joining.
    fn open(&mut self) -> Result<Decrypted, Reason> {
        let mut plain = BytesMut::new();
        while plain.len() < ENOUGH && self.ended.is_none() {
            match self.next() {
                Ok(None) => break,
                Ok(Some(content)) if plain.is_empty() => plain = content,
                Ok(Some(content)) => {
                    // At once for all that may follow: a buffer that grows is copied each time.
                    plain.reserve(content.len() + self.opens.waiting().min(ENOUGH));
                    plain.extend_from_slice(&content);
                }
                Err(ended) => self.ended = Some(ended),
            }
        }
        // What was whole before the end comes before it.
        match self.ended {
            _ if !plain.is_empty() => Ok(Decrypted::Plaintext(plain.freeze())),
            None => Ok(Decrypted::Hungry),
            Some(Reason::Done) => Ok(Decrypted::End),
            Some(reason) => Err(reason),
        }
    }

    /// The content of the next record, or how it ends there.
    fn next(&mut self) -> Result<Option<BytesMut>, Reason> {
        loop {
            let opened = self.opens.open();
            let opened = opened.map_err(|error| reason_of(&error, self.stream, true))?;
            let Some((kind, content)) = opened else {
                return Ok(None);
            };
            match kind {
                Kind::Data if !content.is_empty() => {
                    self.empty = 0;
                    return Ok(Some(content));
                }
                Kind::Data if self.empty < EMPTY_LIMIT => self.empty += 1,
                Kind::Data => return Err(Reason::ProtocolViolation),
                Kind::Alert if content == CLOSE_NOTIFY => return Err(Reason::Done),
                Kind::Alert => return Err(self.told(&content)),
                // Nothing of a handshake comes behind it.
                Kind::Handshake => return Err(Reason::Integrity),
            }
        }
    }

    /// Why the other side's TLS gave up: it has not accepted who we are, but for what comes of an altered record.
    fn told(&self, alert: &[u8]) -> Reason {
        let &[_, alert] = alert else {
            return Reason::Integrity;
        };
        reason_of(
            &rustls::Error::AlertReceived(alert.into()),
            self.stream,
            true,
        )
    }
}

enum Decrypted {
    Plaintext(Bytes),
    End,
    Hungry,
}

/// The half of an encrypted stream that plaintext comes from.
pub struct SealedReader {
    records: Records,
    stream: StreamReader,
    plaintext: Bytes,
}

impl std::fmt::Debug for SealedReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealedReader")
            .field("stream", &self.stream)
            .finish_non_exhaustive()
    }
}

impl SealedReader {
    /// The next plaintext; `None` at the clean end that the peer marked inside the encryption.
    ///
    /// # Errors
    /// The reason why the stream ended otherwise.
    ///
    /// # Cancel safety
    /// Safe: plaintext is either returned or still to be read.
    pub async fn read(&mut self) -> Result<Option<Bytes>, Reason> {
        if !self.plaintext.is_empty() {
            return Ok(Some(std::mem::take(&mut self.plaintext)));
        }
        loop {
            match self.records.open()? {
                Decrypted::Plaintext(bytes) => return Ok(Some(bytes)),
                Decrypted::End => return Ok(None),
                Decrypted::Hungry => {}
            }
            // A stream that ends without TLS's own end mark was cut by somebody.
            let ciphertext = self.stream.read().await?.ok_or(Reason::Truncated)?;
            self.records.opens.push(ciphertext);
        }
    }

    /// Exactly `length` bytes of plaintext, for the words before the application's own.
    ///
    /// # Cancel safety
    /// Safe: what was read is kept.
    pub(super) async fn take(&mut self, length: usize) -> Result<Bytes, Reason> {
        while self.plaintext.len() < length {
            let held = std::mem::take(&mut self.plaintext);
            let more = self.read().await;
            self.plaintext = held;
            let more = more?.ok_or(Reason::Truncated)?;
            let joined = [self.plaintext.as_ref(), more.as_ref()].concat();
            self.plaintext = joined.into();
        }
        Ok(self.plaintext.split_to(length))
    }

    /// Says that nothing more will be read. The stream as a whole is ended by its writing half.
    pub fn stop(&mut self, _reason: Reason) {}
}

/// The half of an encrypted stream that plaintext goes to.
pub struct SealedWriter {
    seals: Seals,
    stream: StreamWriter,
}

impl std::fmt::Debug for SealedWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealedWriter")
            .field("stream", &self.stream)
            .finish_non_exhaustive()
    }
}

impl SealedWriter {
    /// Encrypts and sends.
    ///
    /// # Errors
    /// The reason why the stream ended.
    ///
    /// # Cancel safety
    /// Not safe: after a cancelled write the stream can only be reset.
    pub async fn write(&mut self, plaintext: Bytes) -> Result<(), Reason> {
        let ciphertext = self.seals.seal(&plaintext);
        drop(plaintext);
        self.stream
            .write(ciphertext.map_err(|_| Reason::Internal)?)
            .await
    }

    /// Ends this direction cleanly, inside the encryption and on the stream.
    ///
    /// # Errors
    /// The reason why the stream ended before.
    pub async fn finish(&mut self) -> Result<(), Reason> {
        let end = self.seals.word(Kind::Alert, CLOSE_NOTIFY);
        self.stream
            .write(end.map_err(|_| Reason::Internal)?)
            .await?;
        self.stream.finish()
    }

    /// Waits until both sides know how the stream ended.
    ///
    /// # Errors
    /// The reason why it did not end cleanly.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn settled(&mut self) -> Result<(), Reason> {
        self.stream.settled().await
    }

    /// From here on the stream outlives its legs.
    pub(super) fn outlive_legs(&self, ticket: Arc<Ticket>, peer: AgentId) {
        self.stream.outlive_legs(ticket, peer);
    }

    /// Ends the stream abnormally, both directions at once.
    pub fn reset(&mut self, reason: Reason) {
        self.stream.reset(reason);
    }
}

#[cfg(test)]
mod tampering;
