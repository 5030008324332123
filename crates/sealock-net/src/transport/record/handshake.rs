//! The handshake of a TLS connection over TCP, by rustls; what is left of it afterwards are keys.
//!
//! Deliberately absent: a deadline, which the caller has.

use std::io;
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::kernel::KernelConnection;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{
    ClientConfig, CommonState, ConnectionTrafficSecrets, Error, ExtractedSecrets, ServerConfig,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Records, broken};
use crate::tls::unused_server_name;

/// What a peer may send before it has proved anything: the longest handshake message and what may come with it.
const HEARD_LIMIT: usize = 64 * 1024;
const PIECE: usize = 4 * 1024; // a flight with one certificate

/// Proves this side to a server and the server to it.
pub(in crate::transport) async fn connect(
    socket: TcpStream,
    config: &ClientConfig,
) -> io::Result<Records> {
    let mut config = config.clone();
    config.enable_secret_extraction = true; // the keys are used here, and by nobody else
    let connection = UnbufferedClientConnection::new(Arc::new(config), unused_server_name());
    shake(socket, connection.map_err(broken)?).await
}

/// Proves this side to a client, and the client to it where that has a certificate.
pub(in crate::transport) async fn accept(
    socket: TcpStream,
    config: Arc<ServerConfig>,
) -> io::Result<Records> {
    let connection = UnbufferedServerConnection::new(config);
    shake(socket, connection.map_err(broken)?).await
}

/// What a connection is to the other side: client or server.
trait Shakes: Sized {
    type Data;

    fn step<'c, 'i>(&'c mut self, heard: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;

    fn state(&self) -> &CommonState;

    fn finish(self) -> Result<(ExtractedSecrets, Renewal), Error>;
}

impl Shakes for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn step<'c, 'i>(&'c mut self, heard: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(heard)
    }

    fn state(&self) -> &CommonState {
        self
    }

    fn finish(self) -> Result<(ExtractedSecrets, Renewal), Error> {
        let (secrets, keys) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Renewal::Client(keys)))
    }
}

impl Shakes for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn step<'c, 'i>(&'c mut self, heard: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(heard)
    }

    fn state(&self) -> &CommonState {
        self
    }

    fn finish(self) -> Result<(ExtractedSecrets, Renewal), Error> {
        let (secrets, keys) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Renewal::Server(keys)))
    }
}

/// Where later keys of a connection come from (RFC 8446 §7.2).
pub(super) enum Renewal {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

impl Renewal {
    pub(super) fn next_of_ours(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        match self {
            Self::Client(keys) => keys.update_tx_secret(),
            Self::Server(keys) => keys.update_tx_secret(),
        }
    }

    pub(super) fn next_of_theirs(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        match self {
            Self::Client(keys) => keys.update_rx_secret(),
            Self::Server(keys) => keys.update_rx_secret(),
        }
    }
}

enum Step {
    Go,
    Send,
    Read,
    Over,
    Failed(Error),
}

async fn shake<S: Shakes>(mut socket: TcpStream, mut connection: S) -> io::Result<Records> {
    let (mut heard, mut said) = (BytesMut::new(), Vec::new());
    // What the other side said behind its part of the handshake.
    let mut early = BytesMut::new();
    loop {
        let (step, used) = step(&mut connection, &mut heard, &mut said, &mut early);
        heard.advance(used);
        match step {
            Step::Go => {}
            Step::Send => {
                socket.write_all(&said).await?;
                said.clear();
            }
            Step::Over if !connection.state().is_handshaking() => break,
            Step::Over | Step::Read => {
                if heard.len() >= HEARD_LIMIT {
                    return Err(broken(Error::PeerSentOversizedRecord));
                }
                heard.reserve(PIECE);
                if socket.read_buf(&mut heard).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Step::Failed(error) => {
                // The alert, which waits before anything else, and which the other side may not hear any more.
                let _alert = self::step(&mut connection, &mut heard, &mut said, &mut early);
                socket.write_all(&said).await.ok();
                return Err(broken(error));
            }
        }
    }
    let state = connection.state();
    let chain = state.peer_certificates().map(|chain| {
        let owned = chain.iter().map(|one| one.clone().into_owned());
        owned.collect()
    });
    let protocol = state.alpn_protocol().map(<[u8]>::to_vec);
    let (secrets, renewal) = connection.finish().map_err(broken)?;
    let rest = (heard, early.freeze());
    let mut records = Records::new(socket, secrets, renewal, rest).map_err(broken)?;
    (records.chain, records.protocol) = (chain, protocol);
    Ok(records)
}

/// Goes on by what was heard; says what is to be done, and how much of it is used up.
fn step<S: Shakes>(
    connection: &mut S,
    heard: &mut [u8],
    said: &mut Vec<u8>,
    early: &mut BytesMut,
) -> (Step, usize) {
    let UnbufferedStatus { discard, state } = connection.step(heard);
    let step = match state {
        Ok(ConnectionState::EncodeTlsData(mut data)) => match encode(&mut data, said) {
            Ok(()) => Step::Go,
            Err(_) => Step::Failed(Error::EncryptError),
        },
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Step::Send
        }
        Ok(ConnectionState::BlockedHandshake) => Step::Read,
        Ok(ConnectionState::WriteTraffic(_)) => Step::Over,
        Ok(ConnectionState::ReadTraffic(mut traffic)) => {
            while let Some(Ok(record)) = traffic.next_record() {
                early.extend_from_slice(record.payload);
            }
            Step::Go
        }
        // An end, or early data, which nobody allows.
        Ok(_) => Step::Failed(Error::HandshakeNotComplete),
        Err(error) => Step::Failed(error),
    };
    (step, discard)
}

fn encode<D>(data: &mut EncodeTlsData<'_, D>, said: &mut Vec<u8>) -> Result<(), EncodeError> {
    let begun = said.len();
    let written = match data.encode(&mut []) {
        Err(EncodeError::InsufficientSize(size)) => {
            said.resize(begun + size.required_size, 0);
            data.encode(&mut said[begun..])?
        }
        other => other?,
    };
    said.truncate(begun + written);
    Ok(())
}
