//! Questions from sockets: one task for a socket, one more for a question that waits for an upstream.
//!
//! Nobody waits for a client: a datagram that finds no room is dropped, as any network may do, and a connection has a
//! deadline for each message. Whoever floods takes its own places only.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::{Desk, Over, Step};
use crate::limit::PeerLimit;
use crate::task::Spawner;

/// Questions that wait for an upstream, of all clients of a socket and of one.
const WAITING_LIMIT: [usize; 2] = [1_024, 256];
/// Connections of all clients of a listener and of one.
const CONNECTIONS_LIMIT: [usize; 2] = [256, 32];
/// How long a connection may say nothing (RFC 7766 §6.2.3: a few seconds).
const IDLE: Duration = Duration::from_secs(10);
/// How long one message may take, in or out; slower is not in earnest.
const MESSAGE: Duration = Duration::from_secs(5);
/// How long a socket rests after an error such as «too many open files».
const ERROR_REST: Duration = Duration::from_millis(100);
/// The longest question that is read: a name, EDNS and a signature or two.
const QUESTION_LIMIT: usize = 4_096;

/// Answers datagrams until dropped.
///
/// # Cancel safety
/// Dropping it ends the reading; questions that wait belong to `tasks` and are still answered.
pub async fn serve_udp(desk: Desk, socket: UdpSocket, tasks: &Spawner) {
    let socket = Arc::new(socket);
    let waiting = PeerLimit::<IpAddr>::new(WAITING_LIMIT[0], WAITING_LIMIT[1]);
    let mut buffer = vec![0; QUESTION_LIMIT];
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // An answer that nobody took comes back as an error of the socket; the next datagram is not concerned.
                if error.kind() != io::ErrorKind::ConnectionRefused {
                    tokio::time::sleep(ERROR_REST).await;
                }
                continue;
            }
        };
        match desk.step(Over::Udp, &buffer[..length]) {
            Step::Nothing => {}
            Step::Reply(reply) => send(&socket, &reply, client).await,
            Step::Wait(pending) => {
                let Some(place) = waiting.enter(&client.ip()) else {
                    continue;
                };
                let (desk, socket) = (desk.clone(), Arc::clone(&socket));
                tasks.spawn("dns question", async move {
                    let reply = desk.finish(&pending).await;
                    send(&socket, &reply, client).await;
                    drop(place);
                });
            }
        }
    }
}

async fn send(socket: &UdpSocket, reply: &[u8], client: std::net::SocketAddr) {
    if let Err(error) = socket.send_to(reply, client).await {
        tracing::debug!(err = %error, "a dns reply was not sent");
    }
}

/// Answers connections until dropped.
///
/// # Cancel safety
/// Dropping it stops accepting; connections belong to `tasks` and go on.
pub async fn serve_tcp(desk: Desk, listener: TcpListener, tasks: &Spawner) {
    let places = PeerLimit::<IpAddr>::new(CONNECTIONS_LIMIT[0], CONNECTIONS_LIMIT[1]);
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                // Without a place the connection is closed at once, and the client may come back.
                if let Some(place) = places.enter(&client.ip()) {
                    let desk = desk.clone();
                    tasks.spawn("dns connection", async move {
                        if let Err(error) = converse(&desk, stream).await {
                            tracing::debug!(err = %error, "a dns connection ended");
                        }
                        drop(place);
                    });
                }
            }
            Err(error) => {
                tracing::debug!(err = %error, "a dns connection was not accepted");
                tokio::time::sleep(ERROR_REST).await;
            }
        }
    }
}

/// One question after the other (RFC 7766 §6.2.1): a client that wants two at once opens two connections.
async fn converse(desk: &Desk, mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let Ok(length) = tokio::time::timeout(IDLE, stream.read_u16()).await? else {
            return Ok(()); // the client is done
        };
        let length = usize::from(length);
        if length > QUESTION_LIMIT {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut message = vec![0; length];
        tokio::time::timeout(MESSAGE, stream.read_exact(&mut message)).await??;
        let Some(reply) = desk.answer(Over::Tcp, &message).await else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
        let framed = [&length.to_be_bytes()[..], &reply].concat();
        tokio::time::timeout(MESSAGE, stream.write_all(&framed)).await??;
    }
}
