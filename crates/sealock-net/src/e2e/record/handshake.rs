//! The handshake: two agents prove themselves to each other, and what is left of it when they have.
//!
//! rustls is handed whole records, and none behind the handshake's last, so that nothing of the application's ends up in
//! it. Then it gives its keys away and is gone: for a stream that idles it would keep seven times what the keys need.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};
use sealock_core::reason::Reason;
use sealock_core::secret::Secret;
use sealock_proto::stream::{Ticket, TicketContext};
use sealock_proto::wire::StreamId;

use super::reason_of;
use crate::identity::PeerIdentity;
use crate::tls;
use crate::transport::record::keys::{Opens, Renewal, Seals};

/// The exporter's labels (RFC 5705 §4: private ones begin so): of the secret by which a stream is taken up again, and of
/// those that the keys of each direction are renewed from.
const RESUME_LABEL: &[u8] = b"EXPERIMENTAL sealock resume v1";
const CALLER_LABEL: &[u8] = b"EXPERIMENTAL sealock caller keys v1";
const PROVIDER_LABEL: &[u8] = b"EXPERIMENTAL sealock provider keys v1";

const HEADER: usize = 5; // RFC 8446 §5.1: kind, version (2 bytes), length (2 bytes)
const LONGEST: usize = HEADER + (1 << 14) + 256; // RFC 8446 §5.2

/// A handshake on its way.
pub(in crate::e2e) struct Tls {
    connection: Connection,
    stream: StreamId,
    /// What came and was not taken yet.
    held: BytesMut,
}

pub(in crate::e2e) fn client(config: Arc<ClientConfig>, stream: StreamId) -> Result<Tls, Reason> {
    let connection = ClientConnection::new(config, tls::unused_server_name())
        .map_err(|error| reason_of(&error, stream, false))?;
    Ok(Tls::new(connection.into(), stream))
}

pub(in crate::e2e) fn server(config: Arc<ServerConfig>, stream: StreamId) -> Result<Tls, Reason> {
    let connection =
        ServerConnection::new(config).map_err(|error| reason_of(&error, stream, false))?;
    Ok(Tls::new(connection.into(), stream))
}

/// What a handshake leaves behind.
pub(super) struct Established {
    pub(super) opens: Opens,
    pub(super) seals: Seals,
    pub(super) proof: Proof,
}

/// What was proved: who the other side is, and that nobody but the two has this secret (RFC 8446 §7.5).
pub(in crate::e2e) struct Proof {
    pub(in crate::e2e) peer: PeerIdentity,
    secret: Secret<[u8; 32]>,
}

impl Proof {
    /// The ticket by which the stream is taken up again.
    pub(in crate::e2e) fn ticket(&self, context: TicketContext) -> Arc<Ticket> {
        Arc::new(Ticket::new(self.secret.clone(), context))
    }
}

impl Tls {
    fn new(connection: Connection, stream: StreamId) -> Self {
        Self {
            connection,
            stream,
            held: BytesMut::new(),
        }
    }

    /// Whether there is nothing more to prove; something may still be to say.
    pub(super) fn is_done(&self) -> bool {
        !self.connection.is_handshaking()
    }

    /// Takes what came, as far as it belongs to the handshake.
    pub(super) fn hear(&mut self, bytes: &[u8]) -> Result<(), Reason> {
        self.held.extend_from_slice(bytes);
        while !self.is_done() {
            let Some(record) = self.next_record()? else {
                return Ok(());
            };
            let mut rest: &[u8] = &record;
            while !rest.is_empty() {
                // From memory it fails only where a message would be longer than any honest one.
                if !matches!(self.connection.read_tls(&mut rest), Ok(1..)) {
                    return Err(Reason::ProtocolViolation);
                }
                let state = self.connection.process_new_packets();
                state.map_err(|error| reason_of(&error, self.stream, false))?;
            }
        }
        Ok(())
    }

    fn next_record(&mut self) -> Result<Option<BytesMut>, Reason> {
        let Some(&[_, _, _, high, low]) = self.held.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = HEADER + usize::from(u16::from_be_bytes([high, low]));
        if length > LONGEST {
            return Err(Reason::ProtocolViolation);
        }
        Ok((self.held.len() >= length).then(|| self.held.split_to(length)))
    }

    /// What is to be said next.
    pub(super) fn say(&mut self) -> Bytes {
        let mut out = Vec::new();
        while self.connection.wants_write() {
            // Writing to memory cannot fail.
            if self.connection.write_tls(&mut out).is_err() {
                break;
            }
        }
        out.into()
    }

    /// Ends a handshake that is done, and of which all was said.
    pub(super) fn finish(self) -> Result<Established, Reason> {
        let Self {
            connection,
            stream,
            held,
        } = self;
        let leaf = connection.peer_certificates().and_then(<[_]>::first);
        let peer = leaf.and_then(|leaf| PeerIdentity::from_leaf(leaf).ok());
        let peer = peer.ok_or(Reason::PeerNotAuthentic)?;
        let export = |label| {
            let secret = connection.export_keying_material([0; 32], label, None);
            secret.map(Secret::new).map_err(|_| Reason::Internal)
        };
        let secret = export(RESUME_LABEL)?;
        let (caller, provider) = (export(CALLER_LABEL)?, export(PROVIDER_LABEL)?);
        let (ours, theirs) = match &connection {
            Connection::Client(_) => (caller, provider),
            Connection::Server(_) => (provider, caller),
        };
        let keys = connection.dangerous_extract_secrets();
        let keys = keys.map_err(|error| reason_of(&error, stream, false))?;
        let failed = |error| reason_of(&error, stream, false);
        let opens = Opens::new(keys.rx, Renewal(theirs), held).map_err(failed)?;
        let seals = Seals::new(keys.tx, Renewal(ours)).map_err(failed)?;
        let proof = Proof { peer, secret };
        Ok(Established {
            opens,
            seals,
            proof,
        })
    }
}
