//! One question to one resolver.
//!
//! Each goes from a socket of its own, so the port is the kernel's draw, with an id and letters that are drawn too; who
//! does not see the question has to guess some fifty bits. A suspicious answer is asked for again over TCP, which cannot
//! be answered from aside.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use sealock_proto::dns::upstream::{self, Answer, AnswerError};
use sealock_proto::dns::wire::Question;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// How long a resolver may take for a datagram; one that asks the world needs a second now and then.
pub(super) const PATIENCE: Duration = Duration::from_millis(1_500);
/// Datagrams with other answers that are read over; more are an attack, and TCP ends it.
const FOREIGN_LIMIT: usize = 16;
/// The longest datagram that is read; ours say less.
const DATAGRAM_LIMIT: usize = 4_096;

/// Why a resolver told nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    /// It did not answer in time, or nobody listens there.
    #[error("the resolver does not answer")]
    Silent,
    /// It answered what cannot be used.
    #[error("the resolver's answer cannot be used: {0}")]
    Unusable(#[from] AnswerError),
}

impl From<io::Error> for AskError {
    fn from(error: io::Error) -> Self {
        tracing::debug!(err = %error, "a resolver cannot be asked");
        Self::Silent
    }
}

/// Asks, by UDP first.
///
/// # Cancel safety
/// Safe: the answer is lost.
pub(super) async fn ask(resolver: SocketAddr, question: &Question) -> Result<Answer, AskError> {
    let question = upstream::scrambled(question, rand::random());
    let by_udp = tokio::time::timeout(PATIENCE, by_udp(resolver, &question)).await;
    match by_udp.map_err(|_| AskError::Silent)? {
        Err(AskError::Unusable(
            AnswerError::Truncated | AnswerError::Letters | AnswerError::Foreign,
        )) => {}
        told => return told,
    }
    // Letters in another case may be the resolver's way; over TCP they prove nothing and must not matter.
    let question = upstream::scrambled(&question, 0);
    let by_tcp = tokio::time::timeout(PATIENCE, by_tcp(resolver, &question)).await;
    by_tcp.map_err(|_| AskError::Silent)?
}

async fn by_udp(resolver: SocketAddr, question: &Question) -> Result<Answer, AskError> {
    let any: SocketAddr = if resolver.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(resolver).await?; // the kernel drops what others send
    let id = rand::random();
    socket.send(&upstream::ask(id, question)).await?;
    let mut buffer = vec![0; DATAGRAM_LIMIT];
    for _ in 0..FOREIGN_LIMIT {
        let length = socket.recv(&mut buffer).await?;
        if length == buffer.len() {
            return Err(AnswerError::Truncated.into()); // what did not fit was cut off, and nobody says so
        }
        match upstream::read(&buffer[..length], id, question) {
            Err(AnswerError::Foreign) => {}
            told => return Ok(told?),
        }
    }
    Err(AnswerError::Foreign.into())
}

async fn by_tcp(resolver: SocketAddr, question: &Question) -> Result<Answer, AskError> {
    let mut stream = TcpStream::connect(resolver).await?;
    let id = rand::random();
    let message = upstream::ask(id, question);
    let length = u16::try_from(message.len()).unwrap_or_default();
    let framed = [&length.to_be_bytes()[..], &message].concat();
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut answer = Vec::new();
    // Memory grows with what comes, not with what was announced.
    (&mut stream)
        .take(length.into())
        .read_to_end(&mut answer)
        .await?;
    Ok(upstream::read(&answer, id, question)?)
}
