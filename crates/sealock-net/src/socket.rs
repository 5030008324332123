//! TCP sockets as the pipe needs them: two halves, and an end that is never clean by accident.
//!
//! Every connection is armed to end by reset (RST), and only a finished one is disarmed. So neither a dropped half nor
//! the death of this process looks like a clean end to its peer (lesson 03). The library's own halves send FIN when
//! they are dropped.

use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use socket2::SockRef;
use tokio::net::TcpStream;

mod unix;

pub use unix::{UnixReader, UnixSocket, UnixWriter};

/// Makes the coming close of a socket a reset, so that its peer never takes it for a clean end; also the close that the
/// kernel does for a process that was killed.
pub fn reset_on_close(socket: &TcpStream) {
    set_linger(socket, Some(Duration::ZERO));
}

/// Undoes [`reset_on_close`], for an end that is meant: what was written before it still arrives.
pub fn close_cleanly(socket: &TcpStream) {
    set_linger(socket, None);
}

fn set_linger(socket: &TcpStream, linger: Option<Duration>) {
    // Fails only on a socket that is closed already, and then there is nobody left to tell.
    let _gone = SockRef::from(socket).set_linger(linger);
}

/// Parts a connection into what is read and what is written.
#[must_use]
pub fn split(stream: TcpStream) -> (TcpReader, TcpWriter) {
    reset_on_close(&stream);
    let stream = Arc::new(stream);
    let reader = TcpReader {
        stream: Arc::clone(&stream),
    };
    let writer = TcpWriter { stream };
    (reader, writer)
}

/// The half of a connection that bytes come from.
#[derive(Debug)]
pub struct TcpReader {
    stream: Arc<TcpStream>,
}

impl TcpReader {
    /// Waits for bytes and puts at most `limit` of them into the empty `buffer`; 0 is the clean end. Holds no memory
    /// while it waits.
    ///
    /// # Errors
    /// What the operating system says; a reset above all.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn read(&mut self, buffer: &mut BytesMut, limit: usize) -> io::Result<usize> {
        loop {
            self.stream.readable().await?;
            buffer.reserve(limit);
            match self.stream.try_read_buf(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Readiness is a guess; a flow that idles must not keep what a wrong one took.
                    *buffer = BytesMut::new();
                }
                outcome => return outcome,
            }
        }
    }
}

/// The half of a connection that bytes go to. Dropped without an end, it resets the connection.
#[derive(Debug)]
pub struct TcpWriter {
    stream: Arc<TcpStream>,
}

impl TcpWriter {
    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// What the operating system says; a reset above all.
    ///
    /// # Cancel safety
    /// Not safe: part of the bytes may be written.
    pub async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.stream.try_write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
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
        // A reset on close would also discard what the peer has not taken yet.
        set_linger(&self.stream, None);
        SockRef::from(self.stream.as_ref()).shutdown(Shutdown::Write)
    }

    /// Ends the connection abnormally, both directions at once, as soon as both halves are dropped.
    pub fn reset(&mut self) {
        reset_on_close(&self.stream);
    }
}
