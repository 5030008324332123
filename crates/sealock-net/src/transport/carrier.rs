//! Connections, streams and their halves as all of Sealock sees them, whatever carries them.
//!
//! Each carrier has the same promises: order, a half-close each way, resets with a reason each way, streams that do not
//! hold each other up, and an end of the connection that says why. A carrier that breaks is an error, never an end.
//! Deliberately absent: how a carrier keeps them (`quic`, `mux`), and how connections are made.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use sealock_core::config::Transport;
use sealock_core::reason::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Lost, ReadError, WriteError, mux, quic};
use crate::identity::PeerIdentity;

/// A connection whose both ends are known; clones are the same connection, and it closes when the last one and all of
/// its streams are dropped.
#[derive(Debug, Clone)]
pub struct Connection(Carrier);

#[derive(Debug, Clone)]
enum Carrier {
    Quic(quic::Connection),
    Mux(mux::Connection, Transport),
}

impl Connection {
    pub(super) fn quic(connection: quic::Connection) -> Self {
        Self(Carrier::Quic(connection))
    }

    pub(super) fn mux(connection: mux::Connection, transport: Transport) -> Self {
        Self(Carrier::Mux(connection, transport))
    }

    /// What carries the connection.
    #[must_use]
    pub fn transport(&self) -> Transport {
        match &self.0 {
            Carrier::Quic(_) => Transport::Quic,
            Carrier::Mux(_, transport) => *transport,
        }
    }

    /// Who the other side proved to be; nobody if it came without a certificate.
    #[must_use]
    pub fn peer(&self) -> Option<&PeerIdentity> {
        match &self.0 {
            Carrier::Quic(it) => it.peer(),
            Carrier::Mux(it, _) => it.peer(),
        }
    }

    /// The protocol that the handshake agreed on.
    #[must_use]
    pub fn alpn(&self) -> Option<&[u8]> {
        match &self.0 {
            Carrier::Quic(it) => it.alpn(),
            Carrier::Mux(it, _) => it.alpn(),
        }
    }

    /// Opens a stream; waits while the other side allows no more.
    ///
    /// The other side sees it with the first bytes written.
    ///
    /// # Errors
    /// When the connection is gone.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn open_bi(&self) -> Result<BiStream, Lost> {
        match &self.0 {
            Carrier::Quic(it) => it.open_bi().await.map(BiStream::quic),
            Carrier::Mux(it, _) => it.open_bi().await.map(BiStream::mux),
        }
    }

    /// Waits for a stream that the other side opens.
    ///
    /// # Errors
    /// When the connection is gone.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn accept_bi(&self) -> Result<BiStream, Lost> {
        match &self.0 {
            Carrier::Quic(it) => it.accept_bi().await.map(BiStream::quic),
            Carrier::Mux(it, _) => it.accept_bi().await.map(BiStream::mux),
        }
    }

    /// Lets the other side have this many streams open at once; fewer than before takes effect as streams end.
    pub fn allow_streams(&self, streams: u32) {
        match &self.0 {
            Carrier::Quic(it) => it.allow_streams(streams),
            Carrier::Mux(it, _) => it.allow_streams(streams),
        }
    }

    /// Ends the connection and every stream in it; one that has ended already keeps its cause.
    pub fn close(&self, reason: Reason) {
        match &self.0 {
            Carrier::Quic(it) => it.close(reason),
            Carrier::Mux(it, _) => it.close(reason),
        }
    }

    /// Waits until the connection has ended, and tells how.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn closed(&self) -> Lost {
        match &self.0 {
            Carrier::Quic(it) => it.closed().await,
            Carrier::Mux(it, _) => it.closed().await,
        }
    }

    /// How the connection ended, if it has.
    #[must_use]
    pub fn close_reason(&self) -> Option<Lost> {
        match &self.0 {
            Carrier::Quic(it) => it.close_reason(),
            Carrier::Mux(it, _) => it.close_reason(),
        }
    }

    /// The round-trip time as the carrier sees it.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        match &self.0 {
            Carrier::Quic(it) => it.rtt(),
            Carrier::Mux(it, _) => it.rtt(),
        }
    }

    /// Makes room for the streams of many who know nothing of each other: what some of them leave unread for a while does
    /// not hold up the others.
    pub fn make_room(&self) {
        match &self.0 {
            Carrier::Quic(it) => it.make_room(),
            // Each stream has a window of its own there, and none is shared.
            Carrier::Mux(..) => {}
        }
    }

    /// The largest packets that reach the other side, as far as is known and the carrier has any.
    #[must_use]
    pub fn packet_size(&self) -> Option<u16> {
        match &self.0 {
            Carrier::Quic(it) => it.packet_size(),
            Carrier::Mux(..) => None,
        }
    }

    /// Where the other side is; it may move.
    #[must_use]
    pub fn remote_address(&self) -> Option<SocketAddr> {
        match &self.0 {
            Carrier::Quic(it) => it.remote_address(),
            Carrier::Mux(it, _) => it.remote_address(),
        }
    }

    /// A number that tells this connection from the others of the process.
    #[must_use]
    pub fn id(&self) -> usize {
        match &self.0 {
            Carrier::Quic(it) => it.id(),
            Carrier::Mux(it, _) => it.id(),
        }
    }
}

/// A stream with both of its halves.
#[derive(Debug)]
pub struct BiStream {
    /// Towards the other side.
    pub send: SendHalf,
    /// From the other side.
    pub recv: RecvHalf,
}

impl BiStream {
    fn quic((send, recv): (quic::SendHalf, quic::RecvHalf)) -> Self {
        Self {
            send: SendHalf(SendCarrier::Quic(send)),
            recv: RecvHalf(RecvCarrier::Quic(recv)),
        }
    }

    fn mux((send, recv): (mux::SendHalf, mux::RecvHalf)) -> Self {
        Self {
            send: SendHalf(SendCarrier::Mux(send)),
            recv: RecvHalf(RecvCarrier::Mux(recv)),
        }
    }

    /// The stream as one reader and writer, for libraries that want that.
    #[must_use]
    pub fn into_io(self) -> StreamIo {
        StreamIo {
            stream: self,
            finished: false,
        }
    }

    /// Says that the stream stands for as long as its connection does and carries nobody's bytes: it alone is no reason
    /// to ask the peer all the time whether it is there.
    pub fn stand_by(&self) {
        match &self.send.0 {
            SendCarrier::Quic(it) => it.stand_by(),
            SendCarrier::Mux(it) => it.stand_by(),
        }
    }

    /// Gives both directions up.
    pub fn reset(mut self, reason: Reason) {
        self.send.reset(reason);
        self.recv.stop(reason);
    }
}

/// The half towards the other side. Dropped before [`Self::finish`] it resets, so a lost task is never a clean end.
#[derive(Debug)]
pub struct SendHalf(SendCarrier);

#[derive(Debug)]
enum SendCarrier {
    Quic(quic::SendHalf),
    Mux(mux::SendHalf),
}

impl SendHalf {
    /// Writes all of `bytes`, without copying them where the carrier can; waits while the other side takes no more.
    ///
    /// # Errors
    /// When the other side wants no more, or the connection is gone.
    ///
    /// # Cancel safety
    /// A part may have been written; only a reset is sensible then.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), WriteError> {
        match &mut self.0 {
            SendCarrier::Quic(it) => it.write(bytes).await,
            SendCarrier::Mux(it) => it.write(bytes).await,
        }
    }

    /// Writes all of `chunks`, without copying them where the carrier can.
    ///
    /// # Errors
    /// When the other side wants no more, or the connection is gone.
    ///
    /// # Cancel safety
    /// What has been written is cut off the front of the chunks, so the same call can be made again.
    pub async fn write_all_chunks(&mut self, chunks: &mut [Bytes]) -> Result<(), WriteError> {
        match &mut self.0 {
            SendCarrier::Quic(it) => it.write_all_chunks(chunks).await,
            SendCarrier::Mux(it) => it.write_all_chunks(chunks).await,
        }
    }

    /// Ends this direction cleanly; what was written still arrives.
    ///
    /// # Errors
    /// When the other side stopped the stream, or it has ended already.
    pub fn finish(&mut self) -> Result<(), WriteError> {
        match &mut self.0 {
            SendCarrier::Quic(it) => it.finish(),
            SendCarrier::Mux(it) => it.finish(),
        }
    }

    /// Gives this direction up; what was written may be lost.
    pub fn reset(&mut self, reason: Reason) {
        match &mut self.0 {
            SendCarrier::Quic(it) => it.reset(reason),
            SendCarrier::Mux(it) => it.reset(reason),
        }
    }

    /// Waits until the other side wants no more (the reason) or has all after [`Self::finish`] (nothing).
    ///
    /// # Errors
    /// When the connection is gone.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn stopped(&self) -> Result<Option<Reason>, Lost> {
        match &self.0 {
            SendCarrier::Quic(it) => it.stopped().await,
            SendCarrier::Mux(it) => it.stopped().await,
        }
    }

    /// The stream's number in its connection.
    #[must_use]
    pub fn id(&self) -> u64 {
        match &self.0 {
            SendCarrier::Quic(it) => it.id(),
            SendCarrier::Mux(it) => it.id(),
        }
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize, WriteError>> {
        match &mut self.0 {
            SendCarrier::Quic(it) => it.poll_write(cx, bytes),
            SendCarrier::Mux(it) => it.poll_write(cx, bytes),
        }
    }
}

/// The half from the other side. Dropped before its end it tells the other side to stop.
#[derive(Debug)]
pub struct RecvHalf(RecvCarrier);

#[derive(Debug)]
enum RecvCarrier {
    Quic(quic::RecvHalf),
    Mux(mux::RecvHalf),
}

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
    pub async fn read_chunk(&mut self, max: usize) -> Result<Option<Bytes>, ReadError> {
        match &mut self.0 {
            RecvCarrier::Quic(it) => it.read_chunk(max).await,
            RecvCarrier::Mux(it) => it.read_chunk(max).await,
        }
    }

    /// Tells the other side that we want no more.
    pub fn stop(&mut self, reason: Reason) {
        match &mut self.0 {
            RecvCarrier::Quic(it) => it.stop(reason),
            RecvCarrier::Mux(it) => it.stop(reason),
        }
    }

    /// Waits until the other side gives the stream up (the reason), or has ended it cleanly (nothing).
    ///
    /// # Errors
    /// When the connection is gone.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn reset_received(&mut self) -> Result<Option<Reason>, Lost> {
        match &mut self.0 {
            RecvCarrier::Quic(it) => it.reset_received().await,
            RecvCarrier::Mux(it) => it.reset_received().await,
        }
    }

    /// The stream's number in its connection.
    #[must_use]
    pub fn id(&self) -> u64 {
        match &self.0 {
            RecvCarrier::Quic(it) => it.id(),
            RecvCarrier::Mux(it) => it.id(),
        }
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<(), ReadError>> {
        match &mut self.0 {
            RecvCarrier::Quic(it) => it.poll_read(cx, buffer),
            RecvCarrier::Mux(it) => it.poll_read(cx, buffer),
        }
    }
}

/// A stream as one reader and writer; errors carry their [`Reason`], see `Reason::carried_by`.
///
/// Shutting down finishes our direction; dropping it before that resets.
#[derive(Debug)]
pub struct StreamIo {
    stream: BiStream,
    finished: bool,
}

impl StreamIo {
    /// The two halves again.
    #[must_use]
    pub fn into_stream(self) -> BiStream {
        self.stream
    }
}

impl AsyncRead for StreamIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(self.stream.recv.poll_read(cx, buffer));
        Poll::Ready(read.map_err(Into::into))
    }
}

impl AsyncWrite for StreamIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(self.stream.send.poll_write(cx, bytes));
        Poll::Ready(written.map_err(Into::into))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // what was written is on its way by itself
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.finished {
            return Poll::Ready(Ok(()));
        }
        self.finished = true;
        Poll::Ready(self.stream.send.finish().map_err(Into::into))
    }
}
