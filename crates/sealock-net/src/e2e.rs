//! End-to-end encryption between two agents: TLS 1.3 with both identities, above the resumable stream.
//!
//! The caller is the TLS client and pins the provider to those whom the controller named; the provider is the server.
//! Inside, before the application's bytes, the caller says once more for which service it comes and the provider
//! answers once: taken, or refused with a reason. So a relay can neither read, alter, repeat nor redirect: whatever it
//! does to the bytes becomes [`Reason::Integrity`], a cut becomes [`Reason::Truncated`], never a clean end.
//! Deliberately absent: session tickets and 0-RTT; every stream proves both identities afresh.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use rustls::ServerConfig;
use sealock_core::identity::AgentId;
use sealock_core::name::ServiceName;
use sealock_core::reason::Reason;
use sealock_proto::stream::TicketContext;
use sealock_proto::wire::StreamId;

use crate::identity::{IdentityStore, PeerIdentity, TrustStore};
use crate::stream::door::Place;
use crate::stream::{Again, Bulk, Leg, LegSource, Streams};
use crate::task::Spawner;
use crate::tls;

mod record;

pub use record::{SealedReader, SealedWriter};

/// How long the other side may take to prove itself.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// What an agent needs to call others, and to be called.
#[derive(Debug, Clone)]
pub struct EndToEnd {
    identity: IdentityStore,
    trust: TrustStore,
    server: Arc<ServerConfig>,
    streams: Streams,
}

/// An open as the caller means it.
pub struct Call {
    /// The stream that it is for.
    pub stream: StreamId,
    /// The service that it is for.
    pub service: ServiceName,
    /// Who may answer: nobody else's certificate is accepted.
    pub providers: BTreeSet<AgentId>,
    /// Says whether the certificate of the one who answers was revoked.
    pub judge: tls::Judge,
    /// Where the stream's later legs come from; without, it ends with its first.
    pub legs: Option<Arc<dyn LegSource>>,
    /// Streams of the same open that were lost after the application's bytes were said on them: the provider takes this
    /// one only when it heard nothing on those.
    pub instead_of: Vec<StreamId>,
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call")
            .field("stream", &self.stream)
            .field("service", &self.service)
            .field("providers", &self.providers)
            .finish_non_exhaustive()
    }
}

const ACCEPTED: u8 = 0;
const REFUSED: u8 = 1;
/// In the place of a name's length: streams follow that this one is instead of. No name is so long.
const INSTEAD: u8 = u8::MAX;
/// How many streams one may be instead of.
pub const INSTEAD_LIMIT: usize = 8; // more than an open is begun again

impl EndToEnd {
    /// As this identity, judging others by this trust; streams live in `tasks`.
    #[must_use]
    pub fn new(identity: IdentityStore, trust: TrustStore, tasks: Spawner) -> Self {
        let server = tls::e2e_server(&identity, &trust, None);
        Self {
            identity,
            trust,
            server,
            streams: Streams::new(tasks),
        }
    }

    /// The same, with so much memory for all streams together.
    #[must_use]
    pub fn with_memory(self, limit: u64) -> Self {
        Self {
            streams: self.streams.with_memory(limit),
            ..self
        }
    }

    /// The same, with another measure of what streams are bulk.
    #[must_use]
    pub fn with_bulk(self, bulk: Bulk) -> Self {
        Self {
            streams: self.streams.with_bulk(bulk),
            ..self
        }
    }

    /// Proves both sides to each other over a leg that the caller opened, asks for the service, and waits for the
    /// answer. `early` gives what may already travel with the question.
    ///
    /// # Errors
    /// The provider's refusal, or why it could not be heard or believed.
    pub async fn call(
        &self,
        leg: Leg,
        call: Call,
        early: impl FnOnce() -> Result<Bytes, Reason>,
    ) -> Result<(SealedReader, SealedWriter), Reason> {
        let Call {
            stream,
            service,
            providers,
            judge,
            legs,
            instead_of,
        } = call;
        let config = tls::e2e_client(&self.identity, &self.trust, &providers, Some(judge));
        let tls = record::client(config, stream)?;
        let again = legs.map(|source| Again {
            source,
            stream,
            service: service.clone(),
        });
        let halves = self.streams.open(leg, again)?;
        let talk = async {
            let (mut reader, mut writer, proof) = record::handshake(tls, stream, halves).await?;
            let provider = agent_of(&proof.peer)?;
            let context = TicketContext {
                stream: stream.0,
                opener: self.me()?,
                accepter: provider.clone(),
            };
            writer.outlive_legs(proof.ticket(context), provider);
            let question = question(&service, &instead_of, &early()?);
            writer.write(question).await?;
            match reader.take(1).await?.get_u8() {
                ACCEPTED => Ok((reader, writer)),
                REFUSED => Err(Reason::from_number(reader.take(4).await?.get_u32().into())),
                _ => Err(Reason::ProtocolViolation),
            }
        };
        talk.await
    }

    /// Lets a caller prove itself over a leg that it opened, and hears for which service it comes.
    ///
    /// # Errors
    /// Why the caller could not be heard or believed; it has been told.
    pub async fn answer(&self, leg: Leg, place: Place) -> Result<Caller, Reason> {
        let (stream, door, doors) = (place.id(), place.door().clone(), place.doors().clone());
        let tls = record::server(Arc::clone(&self.server), stream)?;
        let halves = self.streams.accept(leg, place)?;
        let talk = async {
            let (mut reader, mut writer, proof) = record::handshake(tls, stream, halves).await?;
            let agent = agent_of(&proof.peer)?;
            let context = TicketContext {
                stream: stream.0,
                opener: agent.clone(),
                accepter: self.me()?,
            };
            let ticket = proof.ticket(context);
            let peer = proof.peer;
            // The door first: a leg that is lost now may be followed by the next one at once.
            door.settle(agent.clone(), peer.clone(), Arc::clone(&ticket))?;
            writer.outlive_legs(ticket, agent.clone());
            let (service, instead_of) = match asked(&mut reader).await {
                Ok(asked) => asked,
                Err(reason) => {
                    writer.reset(reason);
                    return Err(reason);
                }
            };
            let caller = Caller {
                agent,
                peer,
                service,
                reader,
                writer,
            };
            // Bytes that were heard on another stream are not given to the application twice.
            if !instead_of.into_iter().all(|id| doors.never_heard(id)) {
                caller.refuse(Reason::SessionLost).await;
                return Err(Reason::SessionLost);
            }
            Ok(caller)
        };
        tokio::time::timeout(HANDSHAKE_DEADLINE, talk)
            .await
            .unwrap_or(Err(Reason::HandshakeTimeout))
    }

    /// How many streams wait for another leg.
    #[must_use]
    pub fn parked(&self) -> usize {
        self.streams.parked()
    }

    /// How many bytes the streams hold and have promised to hold.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.streams.memory()
    }

    /// How many streams that nobody uses any more are still saying goodbye.
    #[must_use]
    pub fn ending(&self) -> usize {
        self.streams.ending()
    }

    fn me(&self) -> Result<AgentId, Reason> {
        let svid = self.identity.current().ok_or(Reason::Internal)?;
        svid.id()
            .principal
            .as_agent()
            .cloned()
            .ok_or(Reason::Internal)
    }
}

/// The agent that the other side proved to be.
fn agent_of(peer: &PeerIdentity) -> Result<AgentId, Reason> {
    peer.agent().cloned().ok_or(Reason::PeerNotAuthentic)
}

/// What a caller asks for: a service, and the streams that this one is instead of.
async fn asked(reader: &mut SealedReader) -> Result<(ServiceName, Vec<StreamId>), Reason> {
    let mut length = reader.take(1).await?.get_u8();
    let mut instead_of = Vec::new();
    if length == INSTEAD {
        instead_of = replaced(reader).await?;
        length = reader.take(1).await?.get_u8();
    }
    let name = reader.take(length.into()).await?;
    let name = std::str::from_utf8(&name).map_err(|_| Reason::ProtocolViolation)?;
    let service = name.parse().map_err(|_| Reason::ProtocolViolation)?;
    Ok((service, instead_of))
}

/// The streams that a caller names instead of which it comes.
async fn replaced(reader: &mut SealedReader) -> Result<Vec<StreamId>, Reason> {
    let count = usize::from(reader.take(1).await?.get_u8());
    if count > INSTEAD_LIMIT {
        return Err(Reason::ProtocolViolation);
    }
    let mut streams = Vec::with_capacity(count);
    for _ in 0..count {
        let mut id = [0; 16];
        reader.take(id.len()).await?.copy_to_slice(&mut id);
        streams.push(StreamId(id));
    }
    Ok(streams)
}

/// The caller's question: the streams that this one is instead of, if any, the service's name behind its length, then
/// whatever it has already to say.
fn question(service: &ServiceName, instead_of: &[StreamId], early: &[u8]) -> Bytes {
    let name = service.as_str().as_bytes();
    let mut bytes = BytesMut::with_capacity(1 + name.len() + early.len());
    if !instead_of.is_empty() {
        let count = u8::try_from(instead_of.len()).unwrap_or(u8::MAX); // beyond the limit it is refused
        bytes.extend_from_slice(&[INSTEAD, count]);
        for stream in instead_of {
            bytes.extend_from_slice(&stream.0);
        }
    }
    bytes.extend_from_slice(&[u8::try_from(name.len()).unwrap_or(u8::MAX)]); // names have up to 253 bytes
    bytes.extend_from_slice(name);
    bytes.extend_from_slice(early);
    bytes.freeze()
}

/// A caller who proved its identity and waits for an answer. Dropped without one, its stream is reset as cancelled.
#[derive(Debug)]
pub struct Caller {
    agent: AgentId,
    peer: PeerIdentity,
    service: ServiceName,
    reader: SealedReader,
    writer: SealedWriter,
}

impl Caller {
    /// Who it is, by its end-to-end certificate.
    #[must_use]
    pub fn agent(&self) -> &AgentId {
        &self.agent
    }

    /// The certificate that it proved itself with.
    #[must_use]
    pub fn peer(&self) -> &PeerIdentity {
        &self.peer
    }

    /// The service that it asks for.
    #[must_use]
    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    /// Takes the flow; application bytes follow.
    ///
    /// # Errors
    /// Why the caller can no longer be told.
    pub async fn accept(mut self) -> Result<(SealedReader, SealedWriter), Reason> {
        self.writer.write(Bytes::from_static(&[ACCEPTED])).await?;
        Ok((self.reader, self.writer))
    }

    /// Refuses the flow. The reason travels encrypted, so the relay does not learn it.
    pub async fn refuse(mut self, reason: Reason) {
        let mut answer = BytesMut::from(&[REFUSED][..]);
        answer.extend_from_slice(&reason.number().to_be_bytes());
        let told = self.writer.write(answer.freeze()).await;
        if told.is_err() || self.writer.finish().await.is_err() {
            self.writer.reset(reason);
        }
    }
}

#[cfg(test)]
mod tests;
