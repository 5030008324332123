//! The sockets that take a workload's questions for names: a message in, a reply out, from the address that was asked.
//!
//! A workload may ask any resolver that it likes: it hears ours. Deliberately absent: what the replies say.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::{DatagramReceiver, StreamListener};
use crate::task::Spawner;

/// Gives replies; a message without one stays without.
pub trait Answers: Send + Sync + 'static {
    /// To a message that came as a datagram.
    fn to_datagram(&self, message: &[u8]) -> Option<Vec<u8>>;

    /// To a message that came over a stream.
    fn to_stream(&self, message: &[u8]) -> Option<Vec<u8>>;
}

const DATAGRAM_LIMIT: usize = 4_096; // no question is longer; what is cut off is unreadable and says so
/// How long a stream may be silent.
const STREAM_LIMIT: Duration = Duration::from_secs(10); // RFC 7766 §6.2.3: seconds
/// How many streams are served at once; others wait in the kernel's backlog.
const STREAMS_LIMIT: usize = 64;
/// How long the sockets rest after an error such as «too many open files».
const ERROR_REST: Duration = Duration::from_millis(100); // ten tries a second cost nothing and recover within one

/// Answers datagrams, until dropped. An error of one never ends the socket.
///
/// # Cancel safety
/// Safe.
pub async fn answer_datagrams(socket: DatagramReceiver, answers: Arc<dyn Answers>) {
    let mut buffer = vec![0; DATAGRAM_LIMIT];
    loop {
        match socket.receive(&mut buffer).await {
            Ok(datagram) => {
                let Some(reply) = answers.to_datagram(&buffer[..datagram.length]) else {
                    continue;
                };
                let source = datagram.destination.ip();
                if let Err(error) = socket.reply(&reply, datagram.remote, source) {
                    tracing::debug!(err = %error, "a reply about a name could not be sent");
                }
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
            Err(error) => {
                tracing::warn!(err = %error, "a question for a name could not be taken");
                tokio::time::sleep(ERROR_REST).await;
            }
        }
    }
}

/// Answers streams, until dropped. An error of one never ends the listener.
///
/// # Cancel safety
/// Dropping it stops accepting; streams belong to `tasks` and go on.
pub async fn answer_streams(listener: StreamListener, answers: Arc<dyn Answers>, tasks: &Spawner) {
    let slots = Arc::new(Semaphore::new(STREAMS_LIMIT));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok(captured) => {
                let answers = Arc::clone(&answers);
                tasks.spawn("names", async move {
                    // It ends as the workload or its silence will; there is nobody to tell more.
                    answer(captured.stream, answers.as_ref()).await.ok();
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(err = %error, "a stream of questions for names could not be accepted");
                tokio::time::sleep(ERROR_REST).await;
            }
        }
    }
}

/// Messages with their lengths before them (RFC 1035 §4.2.2).
async fn answer(mut stream: TcpStream, answers: &dyn Answers) -> io::Result<()> {
    loop {
        let message = tokio::time::timeout(STREAM_LIMIT, message(&mut stream)).await??;
        let Some(reply) = answers.to_stream(&message) else {
            return Ok(());
        };
        let length = u16::try_from(reply.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        let whole = [&length.to_be_bytes(), reply.as_slice()].concat();
        tokio::time::timeout(STREAM_LIMIT, stream.write_all(&whole)).await??;
    }
}

async fn message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > DATAGRAM_LIMIT {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(message)
}
