//! Unix stream sockets as the pipe needs them: two halves, and an end that is no clean one by accident.
//!
//! A unix socket has no reset. But a socket that is closed while bytes of its peer wait in it unread tells that peer
//! `ECONNRESET`, and the kernel closes so for a process that was killed, too. So the last byte of what the peer has
//! said is passed on and left in the socket, and is taken out only with the flow's clean end. There is no such sign for
//! a peer that has not said a byte yet: it sees an end.

use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use rustix::net::{RecvFlags, recv};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::UnixStream;

/// A connection, whole.
#[derive(Debug)]
pub struct UnixSocket {
    stream: UnixStream,
    held: bool,
}

impl From<UnixStream> for UnixSocket {
    fn from(stream: UnixStream) -> Self {
        let held = false;
        Self { stream, held }
    }
}

impl UnixSocket {
    /// Puts at most `limit` bytes that are there into the empty `buffer`, without waiting.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there, also at an end, which shows again when the half is read.
    pub fn try_read(&mut self, buffer: &mut BytesMut, limit: usize) -> io::Result<usize> {
        let Self { stream, held } = self;
        stream.try_io(Interest::READABLE, || take(stream, held, buffer, limit))
    }

    /// Parts the connection into what is read and what is written.
    #[must_use]
    pub fn split(self) -> (UnixReader, UnixWriter) {
        let stream = Arc::new(self.stream);
        let reader = UnixReader {
            stream: Arc::clone(&stream),
            held: self.held,
        };
        (reader, UnixWriter { stream })
    }
}

/// The half of a connection that bytes come from. Dropped before its flow is done, it resets the connection.
#[derive(Debug)]
pub struct UnixReader {
    stream: Arc<UnixStream>,
    /// Whether the first byte that waits in the socket was passed on already.
    held: bool,
}

impl UnixReader {
    /// Waits for bytes and puts at most `limit` of them into the empty `buffer`; 0 is the clean end. Holds no memory
    /// while it waits.
    ///
    /// # Errors
    /// What the operating system says; a reset above all.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn read(&mut self, buffer: &mut BytesMut, limit: usize) -> io::Result<usize> {
        let Self { stream, held } = self;
        loop {
            // Asked before the bytes are counted: what was said before an end is there when the end is.
            let is_closed = stream.ready(Interest::READABLE).await?.is_read_closed();
            let read = stream.try_io(Interest::READABLE, || take(stream, held, buffer, limit));
            match read {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    *buffer = BytesMut::new();
                }
                outcome => return outcome,
            }
            if is_closed {
                return stream.take_error()?.map_or(Ok(0), Err);
            }
        }
    }

    /// Says that the flow ended cleanly in both directions, so that the close is no reset.
    pub fn done(&mut self) {
        if std::mem::take(&mut self.held) {
            // Fails only on a socket whose peer is gone, and then there is nobody left to tell.
            let _gone = recv(&self.stream, &mut [0; 1], RecvFlags::DONTWAIT);
        }
    }
}

/// Takes what waits in the socket but for its last byte, which is copied and held.
fn take(
    stream: &UnixStream,
    held: &mut bool,
    buffer: &mut BytesMut,
    limit: usize,
) -> io::Result<usize> {
    let old = usize::from(*held);
    let waiting = usize::try_from(rustix::io::ioctl_fionread(stream)?).unwrap_or(limit);
    let fresh = waiting.saturating_sub(old).min(limit);
    if fresh == 0 {
        return Err(ErrorKind::WouldBlock.into());
    }
    let out = old + fresh - 1;
    buffer.reserve(out + 1);
    if out > 0 {
        buffer.resize(out, 0);
        let read = recv(stream, &mut buffer[..], RecvFlags::DONTWAIT);
        buffer.truncate(read.map_or(0, |(length, _)| length));
        read?;
        *held = false;
    }
    let mut last = [0; 1];
    if let Ok((1, _)) = recv(stream, &mut last, RecvFlags::DONTWAIT | RecvFlags::PEEK) {
        buffer.extend_from_slice(&last);
        *held = true;
    }
    buffer.advance(old);
    match buffer.len() {
        0 => Err(ErrorKind::WouldBlock.into()),
        length => Ok(length),
    }
}

/// The half of a connection that bytes go to.
#[derive(Debug)]
pub struct UnixWriter {
    stream: Arc<UnixStream>,
}

impl UnixWriter {
    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// What the operating system says.
    ///
    /// # Cancel safety
    /// Not safe: part of the bytes may be written.
    pub async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.stream.try_write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.stream.writable().await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Ends this direction cleanly; the other one goes on.
    ///
    /// # Errors
    /// When the peer is gone.
    pub fn finish(&mut self) -> io::Result<()> {
        SockRef::from(self.stream.as_ref()).shutdown(Shutdown::Write)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const LIMIT: usize = 1_000;

    fn pair() -> (UnixStream, UnixReader, UnixWriter) {
        let (peer, ours) = UnixStream::pair().expect("sockets");
        let (reader, writer) = UnixSocket::from(ours).split();
        (peer, reader, writer)
    }

    async fn all(reader: &mut UnixReader) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            let mut buffer = BytesMut::new();
            match reader.read(&mut buffer, LIMIT).await? {
                0 => return Ok(all),
                length => assert!(length == buffer.len() && length <= LIMIT),
            }
            all.extend_from_slice(&buffer);
        }
    }

    /// What the peer of a dropped connection reads: its end, or the kind of error.
    async fn end(mut peer: UnixStream) -> Result<usize, ErrorKind> {
        let read = peer.read(&mut [0; 1]).await;
        read.map_err(|error| error.kind())
    }

    #[tokio::test]
    async fn every_byte_arrives_once_whatever_the_sizes() {
        let (mut peer, mut reader, _writer) = pair();
        let bytes: Vec<u8> = (0..500_000_u32).map(|n| (n % 251) as u8).collect();
        let sent = bytes.clone();
        let send = async move {
            let mut rest = &sent[..];
            for size in [1, 2, 999, 1_000, 1_001, 1, 70_000].into_iter().cycle() {
                let (chunk, after) = rest.split_at(size.min(rest.len()));
                peer.write_all(chunk).await.expect("taken");
                if size == 1 {
                    tokio::task::yield_now().await; // so that a byte alone is read alone, too
                }
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            peer.shutdown().await.expect("an end");
            peer
        };
        let (_peer, read) = tokio::join!(send, all(&mut reader));
        assert!(read.expect("a clean end") == bytes, "the bytes differ");
    }

    #[tokio::test]
    async fn a_peer_that_said_something_sees_a_reset_unless_the_flow_is_done() {
        for is_done in [false, true] {
            let (mut peer, mut reader, writer) = pair();
            peer.write_all(b"all of it").await.expect("taken");
            let mut buffer = BytesMut::new();
            let length = reader.read(&mut buffer, LIMIT).await.expect("there");
            assert_eq!((length, &buffer[..]), (9, &b"all of it"[..]));
            if is_done {
                reader.done();
            }
            drop((reader, writer));
            let wanted = if is_done {
                Ok(0)
            } else {
                Err(ErrorKind::ConnectionReset)
            };
            assert_eq!(end(peer).await, wanted, "done: {is_done}");
        }
    }

    // The limit of it, as it is told in the documentation.
    #[tokio::test]
    async fn a_peer_that_said_nothing_sees_an_end() {
        let (peer, reader, writer) = pair();
        drop((reader, writer));
        assert_eq!(end(peer).await, Ok(0));
    }

    #[tokio::test]
    async fn a_half_closed_peer_still_hears_and_then_sees_a_reset() {
        let (mut peer, mut reader, mut writer) = pair();
        peer.write_all(b"question").await.expect("taken");
        peer.shutdown().await.expect("an end");
        assert_eq!(all(&mut reader).await.expect("a clean end"), b"question");
        writer.write_all(b"half an ans").await.expect("taken");
        drop((reader, writer));
        peer.read_exact(&mut [0; 11]).await.expect("what was said");
        assert_eq!(end(peer).await, Err(ErrorKind::ConnectionReset));
    }

    #[tokio::test]
    async fn a_finished_direction_ends_and_the_other_goes_on() {
        let (mut peer, mut reader, mut writer) = pair();
        writer.finish().expect("an end");
        assert_eq!(peer.read(&mut [0; 1]).await.expect("an end"), 0);
        peer.write_all(b"later").await.expect("taken");
        peer.shutdown().await.expect("an end");
        assert_eq!(all(&mut reader).await.expect("a clean end"), b"later");
    }

    #[tokio::test]
    async fn a_peer_that_leaves_bytes_unread_is_heard_as_a_reset() {
        let (mut peer, mut reader, mut writer) = pair();
        peer.write_all(b"before").await.expect("taken");
        writer.write_all(b"never read").await.expect("taken");
        drop(peer);
        let ended = all(&mut reader).await.map_err(|error| error.kind());
        assert_eq!(ended, Err(ErrorKind::ConnectionReset));
    }

    #[tokio::test]
    async fn what_is_taken_before_the_parting_is_held_as_well() {
        let (mut peer, ours) = UnixStream::pair().expect("sockets");
        let mut whole = UnixSocket::from(ours);
        peer.write_all(b"early").await.expect("taken");
        whole.stream.readable().await.expect("readable");
        let mut buffer = BytesMut::new();
        assert_eq!(whole.try_read(&mut buffer, LIMIT).ok(), Some(5));
        let (mut reader, writer) = whole.split();
        peer.write_all(b", late").await.expect("taken");
        let mut buffer = BytesMut::new();
        assert_eq!(reader.read(&mut buffer, LIMIT).await.ok(), Some(6));
        assert_eq!(&buffer[..], b", late");
        drop((reader, writer));
        assert_eq!(end(peer).await, Err(ErrorKind::ConnectionReset));
    }
}
