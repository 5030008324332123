//! TLS over TCP as a pipe for the mux: rustls makes the handshake, and then records are sealed and opened in the buffers
//! that go to the socket and come from it.
//!
//! What is written is copied once, into a record, and 64 KiB of records leave at once; what is read is copied once, out of
//! the opened record. Through the library's own buffers it would be three times each, and a read for each 4 KiB.
//! Keys are renewed before they wear out, and when the other side asks. An end without TLS's own mark is an error.

pub(crate) mod cipher;
mod handshake;
pub(crate) mod keys;
#[cfg(test)]
mod tests;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use rustls::{AlertDescription, Error, ExtractedSecrets, PeerMisbehaved};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::glitches::Glitches;
use cipher::{Key, Kind, Opener, Sealer};
use handshake::Renewal;
pub(super) use handshake::{accept, connect};

/// How much is sealed before it leaves: more would only wait here instead of in its stream.
const JOINED: usize = 64 * 1024;
/// How much is read at once.
const READ: usize = 64 * 1024;
/// After so few bytes between two waits, the next wait keeps no buffer.
const FEW: usize = 16 * 1024;
/// Uses of a key after which it is renewed. AES-GCM is good for 2^24.5 full records (RFC 8446 §5.5).
const WORN: u64 = 1 << 23;

/// A TLS connection after its handshake.
pub(super) struct Records {
    socket: TcpStream,
    sealer: Sealer,
    opener: Opener,
    renewal: Renewal,
    /// Opened and not read yet.
    plain: Bytes,
    /// Read from the socket since the last wait.
    lately: usize,
    /// The other side has marked its end.
    ended: bool,
    /// This side has marked its end.
    said_end: bool,
    glitches: Glitches,
    /// The certificates of the other side, if it had some.
    pub(super) chain: Option<Vec<CertificateDer<'static>>>,
    /// The protocol that the handshake agreed on.
    pub(super) protocol: Option<Vec<u8>>,
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

/// A TLS error as all readers and writers see it.
fn broken(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

const KEY_UPDATE: u8 = 24; // RFC 8446 §4.6.3, and its two words
const KEY_UPDATE_OF_OURS: &[u8] = &[KEY_UPDATE, 0, 0, 1, 0];
const KEY_UPDATE_AND_ANSWER: &[u8] = &[KEY_UPDATE, 0, 0, 1, 1];
const FATAL: u8 = 2;
const CLOSE_NOTIFY: &[u8] = &[1, 0];

impl Records {
    /// The socket without TLS, for those who go on with something else; with what came behind the last record that was
    /// read. Nothing if this side still has something to say, or not all was read.
    pub(super) fn into_socket(self) -> Option<(TcpStream, BytesMut)> {
        let is_done = self.plain.is_empty() && self.sealer.ready().is_empty() && !self.ended;
        is_done.then_some((self.socket, self.opener.buffer))
    }

    fn new(
        socket: TcpStream,
        secrets: ExtractedSecrets,
        renewal: Renewal,
        (buffer, plain): (BytesMut, Bytes),
    ) -> Result<Self, Error> {
        Ok(Self {
            socket,
            sealer: Sealer::new(Key::new(secrets.tx)?),
            opener: Opener {
                key: Key::new(secrets.rx)?,
                buffer,
            },
            renewal,
            plain,
            lately: 0,
            ended: false,
            said_end: false,
            glitches: Glitches::new(Instant::now()),
            chain: None,
            protocol: None,
        })
    }

    /// Opens records until one has bytes; says whether there is one.
    fn open(&mut self) -> Result<bool, Error> {
        while self.plain.is_empty() && !self.ended {
            let Some((kind, content)) = self.opener.open()? else {
                return Ok(false);
            };
            if (kind != Kind::Data || content.is_empty()) && self.glitches.is_flood(Instant::now())
            {
                return Err(PeerMisbehaved::TooManyEmptyFragments.into());
            }
            match kind {
                Kind::Data => self.plain = content.freeze(),
                Kind::Handshake => self.hear(&content)?,
                Kind::Alert => match content.as_ref() {
                    CLOSE_NOTIFY => self.ended = true,
                    [_, alert] => return Err(Error::AlertReceived((*alert).into())),
                    _ => return Err(Error::DecryptError),
                },
            }
        }
        Ok(!self.plain.is_empty())
    }

    fn hear(&mut self, word: &[u8]) -> Result<(), Error> {
        if word != KEY_UPDATE_OF_OURS && word != KEY_UPDATE_AND_ANSWER {
            // Tickets are not asked for, and nothing else may come after the handshake.
            return Err(PeerMisbehaved::MessageInterleavedWithHandshakeMessage.into());
        }
        self.opener.key = Key::new(self.renewal.next_of_theirs()?)?;
        if word == KEY_UPDATE_AND_ANSWER {
            self.renew()?;
        }
        Ok(())
    }

    fn renew(&mut self) -> Result<(), Error> {
        self.sealer.word(Kind::Handshake, KEY_UPDATE_OF_OURS)?;
        self.sealer.key = Key::new(self.renewal.next_of_ours()?)?;
        Ok(())
    }

    /// The other side broke TLS: it is told, if that can leave at once, and the connection is of no more use.
    fn give_up(&mut self, cx: &mut Context<'_>, error: Error) -> io::Error {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "a foreign enum of everything that can be wrong"
        )]
        let alert = match error {
            Error::AlertReceived(_) => return broken(error),
            Error::DecryptError => AlertDescription::BadRecordMac,
            Error::PeerSentOversizedRecord => AlertDescription::RecordOverflow,
            _ => AlertDescription::UnexpectedMessage,
        };
        if self
            .sealer
            .word(Kind::Alert, &[FATAL, alert.into()])
            .is_ok()
        {
            let _told = self.poll_drain(cx).is_ready();
        }
        broken(error)
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.sealer.ready().is_empty() {
            let written = Pin::new(&mut self.socket).poll_write(cx, self.sealer.ready());
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                length => self.sealer.sent(length),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let buffer = &mut self.opener.buffer;
        buffer.reserve(READ);
        let read = tokio_util::io::poll_read_buf(Pin::new(&mut self.socket), cx, buffer);
        match &read {
            Poll::Ready(read) => self.lately += read.as_ref().map_or(0, |length| *length),
            Poll::Pending => {
                if std::mem::take(&mut self.lately) < FEW && buffer.is_empty() {
                    *buffer = BytesMut::new();
                }
            }
        }
        read
    }
}

impl AsyncRead for Records {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            match self.open() {
                Ok(true) => break,
                Ok(false) if self.ended => return Poll::Ready(Ok(())),
                Ok(false) => {}
                Err(error) => return Poll::Ready(Err(self.give_up(cx, error))),
            }
            if ready!(self.poll_fill(cx))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        let length = buffer.remaining().min(self.plain.len());
        buffer.put_slice(&self.plain[..length]);
        self.plain.advance(length);
        if self.plain.is_empty() {
            self.plain = Bytes::new(); // its record's place is free again
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Records {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.sealer.ready().len() >= JOINED {
            ready!(self.poll_drain(cx))?;
        }
        if self.sealer.key.uses() >= WORN {
            self.renew().map_err(broken)?;
        }
        let taken = self.sealer.push(bytes, JOINED).map_err(broken)?;
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.sealer.close().map_err(broken)?;
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.said_end {
            self.said_end = true;
            self.sealer
                .word(Kind::Alert, CLOSE_NOTIFY)
                .map_err(broken)?;
        }
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
