//! TLS records over a resumable stream, as two halves that share one TLS state.
//!
//! The state is locked for the time of one chunk's encryption or decryption, never while waiting. Only the writing half
//! sends: what the reading half causes (an answer to a key update) leaves with the next thing written.

use std::io::{BufRead, Write as _};
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};
use sealock_core::identity::AgentId;
use sealock_core::reason::Reason;
use sealock_core::secret::Secret;
use sealock_proto::stream::{Ticket, TicketContext};
use sealock_proto::wire::StreamId;

use crate::identity::PeerIdentity;
use crate::stream::{StreamReader, StreamWriter};
use crate::tls;

type Shared = Arc<Mutex<Tls>>;

/// The TLS state of one stream.
#[derive(Debug)]
pub(super) struct Tls {
    connection: Connection,
    stream: StreamId,
}

pub(super) fn client(config: Arc<ClientConfig>, stream: StreamId) -> Result<Tls, Reason> {
    let connection = ClientConnection::new(config, tls::unused_server_name())
        .map_err(|error| reason_of(&error, stream, false))?;
    Ok(Tls::new(connection.into(), stream))
}

pub(super) fn server(config: Arc<ServerConfig>, stream: StreamId) -> Result<Tls, Reason> {
    let connection =
        ServerConnection::new(config).map_err(|error| reason_of(&error, stream, false))?;
    Ok(Tls::new(connection.into(), stream))
}

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

impl Tls {
    fn new(mut connection: Connection, stream: StreamId) -> Self {
        // Back-pressure is the stream's; TLS itself never holds more than the chunk in hand.
        connection.set_buffer_limit(None);
        Self { connection, stream }
    }

    /// Takes ciphertext in; leaves in `bytes` what does not fit before plaintext is read.
    fn take_in(&mut self, bytes: &mut Bytes) -> Result<(), Reason> {
        while !bytes.is_empty() {
            let mut rest: &[u8] = bytes;
            let Ok(taken) = self.connection.read_tls(&mut rest) else {
                return Ok(()); // plaintext waits
            };
            bytes.advance(taken);
            let is_established = !self.connection.is_handshaking();
            let state = self.connection.process_new_packets();
            state.map_err(|error| reason_of(&error, self.stream, is_established))?;
            if taken == 0 {
                return Ok(()); // the end was marked
            }
        }
        Ok(())
    }

    /// Gives the ciphertext that waits to be sent.
    fn give_out(&mut self, room: usize) -> Bytes {
        let mut out = Vec::with_capacity(room);
        while self.connection.wants_write() {
            // Writing to memory cannot fail.
            if self.connection.write_tls(&mut out).is_err() {
                break;
            }
        }
        out.into()
    }
}

/// The exporter's label of the resume secret (RFC 5705 §4: private labels begin so).
const RESUME_LABEL: &[u8] = b"EXPERIMENTAL sealock resume v1";
/// How much plaintext is decrypted before it is handed on: with the record that passes it, four of them.
const PLAINTEXT: usize = 48 * 1024;
/// What a record adds to its 16 KiB of plaintext, and an allowance for one more.
const RECORD_OVERHEAD: usize = 22 + 1;
const RECORD: usize = 16 * 1024;

/// Proves both sides to each other.
pub(super) async fn handshake(
    mut tls: Tls,
    (mut reader, mut writer): (StreamReader, StreamWriter),
) -> Result<(SealedReader, SealedWriter), Reason> {
    let outcome = shake(&mut tls, &mut reader, &mut writer).await;
    match outcome {
        Ok(rest) => {
            let shared = Arc::new(Mutex::new(tls));
            let reader = SealedReader {
                tls: Arc::clone(&shared),
                stream: reader,
                ciphertext: rest,
                plaintext: Bytes::new(),
                broken: None,
            };
            Ok((
                reader,
                SealedWriter {
                    tls: shared,
                    stream: writer,
                },
            ))
        }
        Err(reason) => {
            // The alert tells the peer's TLS, the reset its stream.
            let alert = tls.give_out(0);
            if !alert.is_empty() && writer.write(alert).await.is_ok() {
                writer.reset(reason);
            }
            Err(reason)
        }
    }
}

async fn shake(
    tls: &mut Tls,
    reader: &mut StreamReader,
    writer: &mut StreamWriter,
) -> Result<Bytes, Reason> {
    let mut rest = Bytes::new();
    loop {
        let out = tls.give_out(0);
        if !out.is_empty() {
            writer.write(out).await?;
        }
        if !tls.connection.is_handshaking() {
            return Ok(rest);
        }
        rest = reader.read().await?.ok_or(Reason::Truncated)?;
        tls.take_in(&mut rest)?;
    }
}

/// The half of an encrypted stream that plaintext comes from.
#[derive(Debug)]
pub struct SealedReader {
    tls: Shared,
    stream: StreamReader,
    ciphertext: Bytes,
    plaintext: Bytes,
    /// Why nothing comes after what was read.
    broken: Option<Reason>,
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
            match self.decrypt()? {
                Decrypted::Plaintext(bytes) => return Ok(Some(bytes)),
                Decrypted::End => return Ok(None),
                Decrypted::Hungry => {}
            }
            // A stream that ends without TLS's own end mark was cut by somebody.
            self.ciphertext = self.stream.read().await?.ok_or(Reason::Truncated)?;
        }
    }

    /// Joins the records that are there to one piece.
    fn decrypt(&mut self) -> Result<Decrypted, Reason> {
        if let Some(reason) = self.broken {
            return Err(reason);
        }
        let mut tls = self.tls.lock();
        let mut bytes = BytesMut::new();
        let rest = loop {
            // TLS takes in no more than a record before its plaintext is read.
            if let Err(reason) = tls.take_in(&mut self.ciphertext) {
                break Err(reason);
            }
            let mut plain = tls.connection.reader();
            match plain.fill_buf() {
                Ok([]) => break Ok(Decrypted::End),
                Ok(part) => {
                    if bytes.is_empty() {
                        // At once for all that may follow: a buffer that grows is copied each time.
                        let more = self.ciphertext.len().min(PLAINTEXT);
                        bytes.reserve(part.len() + more);
                    }
                    bytes.extend_from_slice(part);
                    let length = part.len();
                    plain.consume(length);
                    if bytes.len() >= PLAINTEXT {
                        break Ok(Decrypted::Hungry);
                    }
                }
                Err(error)
                    if error.kind() == std::io::ErrorKind::WouldBlock
                        && self.ciphertext.is_empty() =>
                {
                    break Ok(Decrypted::Hungry);
                }
                Err(_) => break Err(Reason::Truncated),
            }
        };
        // What was whole before the end comes before it.
        match rest {
            Ok(_) if !bytes.is_empty() => Ok(Decrypted::Plaintext(bytes.freeze())),
            Err(reason) if !bytes.is_empty() => {
                self.broken = Some(reason);
                Ok(Decrypted::Plaintext(bytes.freeze()))
            }
            rest => rest,
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

    /// Who the other side is, as its certificate proved.
    #[must_use]
    pub fn peer(&self) -> Option<PeerIdentity> {
        let tls = self.tls.lock();
        PeerIdentity::from_leaf(tls.connection.peer_certificates()?.first()?).ok()
    }

    /// The ticket by which the stream is taken up again, from a secret that only the two ends of the encryption have
    /// (RFC 8446 §7.5).
    ///
    /// # Errors
    /// [`Reason::Internal`] before the handshake is over.
    pub(super) fn ticket(&self, context: TicketContext) -> Result<Arc<Ticket>, Reason> {
        let tls = self.tls.lock();
        let secret = tls
            .connection
            .export_keying_material([0; 32], RESUME_LABEL, None)
            .map_err(|_| Reason::Internal)?;
        Ok(Arc::new(Ticket::new(Secret::new(secret), context)))
    }

    /// Says that nothing more will be read. The stream as a whole is ended by its writing half.
    pub fn stop(&mut self, _reason: Reason) {}
}

enum Decrypted {
    Plaintext(Bytes),
    End,
    Hungry,
}

/// The half of an encrypted stream that plaintext goes to.
#[derive(Debug)]
pub struct SealedWriter {
    tls: Shared,
    stream: StreamWriter,
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
        let records = plaintext.len() / RECORD + 1;
        let ciphertext = {
            let mut tls = self.tls.lock();
            tls.connection
                .writer()
                .write_all(&plaintext)
                .map_err(|_| Reason::Internal)?;
            tls.give_out(plaintext.len() + records * RECORD_OVERHEAD)
        };
        self.stream.write(ciphertext).await
    }

    /// Ends this direction cleanly, inside the encryption and on the stream.
    ///
    /// # Errors
    /// The reason why the stream ended before.
    pub async fn finish(&mut self) -> Result<(), Reason> {
        let end = {
            let mut tls = self.tls.lock();
            tls.connection.send_close_notify();
            tls.give_out(RECORD_OVERHEAD)
        };
        self.stream.write(end).await?;
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
