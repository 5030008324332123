//! Messages between an agent and a relay: on a session's control stream, and at the head of every other stream.
//!
//! A message is a type byte, a length (16 bit, big-endian) and a protobuf body of at most 16 KiB. Protobuf's own
//! structs stop in `wire/body.rs`; what leaves this module are domain types, already validated. A type from 0x80 up
//! may be skipped by a receiver that does not know it; any other unknown type is a violation, because skipping it
//! would change what the next one means. Deliberately absent: payload; that is never parsed between two agents.

use bytes::{BufMut, Bytes, BytesMut};
use sealock_core::address::HostPort;
use sealock_core::identity::AgentId;
use sealock_core::name::{AgentName, NodeName, Region, ServiceName};
use sealock_core::reason::Reason;

use crate::stream::Epoch;

mod body;

/// The version of the messages; also part of the ALPN, so two majors never meet.
pub const PROTOCOL_VERSION: u32 = 1;

/// Bytes before a message's body: its type and its length.
pub const HEADER_LENGTH: usize = 3;

/// The longest body of a message, in bytes. A longer one is refused before any of it is read.
pub const BODY_LIMIT: usize = 16 * 1024;

/// How many services one message may name (names have up to 253 bytes); an agent with more sends several messages.
pub const SERVICES_LIMIT: usize = 60;

/// Identifies a stream between two agents for its whole life, over all its legs: 128 random bits of its opener.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub [u8; 16]);

impl std::fmt::Display for StreamId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for StreamId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// Names a conduit: a TCP connection of each of a stream's two agents to one relay, which joins them for one leg. 128
/// random bits of the stream's opener.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConduitId(pub [u8; 16]);

// Whoever knows it and has the certificate of one of the two agents takes that agent's place.
impl std::fmt::Debug for ConduitId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[conduit]")
    }
}

/// Random for each attempt of each agent, so that no key of a conduit is ever used for two of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Salt(pub [u8; 16]);

/// An agent's first message on a conduit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    /// Which one it is.
    pub conduit: ConduitId,
    /// The agent opened the stream; otherwise it accepted it.
    pub is_opener: bool,
    /// The agent's.
    pub salt: Salt,
}

/// What an agent's session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SessionKind {
    /// The agent's own: it offers services and opens them. A newer one takes its place.
    Full,
    /// A short-lived program beside the agent, with the same identity: it only opens services.
    CallerOnly,
}

/// An agent's word that it has a session with one relay, under the key of its certificate: that relay shows it to
/// others when it passes a leg of the agent on, so that no relay can speak for an agent that is not at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Voucher {
    /// When it ends, in milliseconds since 1970; not after the certificate.
    pub expires_ms: i64,
    /// ECDSA P-256 with SHA-256 over [`Voucher::signed_bytes`], ASN.1.
    pub signature: Vec<u8>,
    /// The agent's chain in DER, the leaf first.
    pub chain: Vec<Vec<u8>>,
}

impl Voucher {
    /// What the agent signs: whom it vouches before, for which process, until when.
    #[must_use]
    pub fn signed_bytes(relay: &NodeName, instance: [u8; 16], expires_ms: i64) -> Vec<u8> {
        let mut bytes = b"sealock voucher 1\0".to_vec(); // no other signature of this key begins so
        bytes.extend_from_slice(&instance);
        bytes.extend_from_slice(&expires_ms.to_be_bytes());
        bytes.extend_from_slice(relay.as_str().as_bytes());
        bytes
    }
}

/// How many certificates a voucher may bring, and how long one may be.
pub const CHAIN_LIMIT: usize = 4;
const CERTIFICATE_LIMIT: usize = 3 * 1024; // a P-256 leaf has 600 bytes

/// An agent's first message: who the process is, beyond what its certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The version of the messages that the agent speaks.
    pub protocol: u32,
    /// Random for each start of the process: tells a reconnect from a second machine with the same identity.
    pub instance: [u8; 16],
    /// What the session is for.
    pub kind: SessionKind,
    /// The program's version, for people.
    pub software: String,
    /// For legs to agents that are at other relays only; without it there are none.
    pub voucher: Option<Voucher>,
    /// Where the agent is, as its operator calls it: providers of the same region come first for it.
    pub region: Option<Region>,
}

/// The relay's answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The relay's number for the session, for logs on both sides.
    pub session: u64,
}

/// Services that an agent speaks of: offers, takes back, or hears about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Services {
    /// Counts the lists of this session, so that an answer can be matched to its question.
    pub sequence: u64,
    /// The names of the services, at most [`SERVICES_LIMIT`].
    pub names: Vec<ServiceName>,
}

/// How many successors a message may name; an agent has sessions with two relays.
pub const SUCCESSORS_LIMIT: usize = 16;

/// One side takes no new streams; live ones may finish.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Drain {
    /// Of a relay: where others are that take over, at most [`SUCCESSORS_LIMIT`].
    pub successors: Vec<HostPort>,
}

/// A caller asks its relay for a leg to a provider of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// The stream that the leg will carry.
    pub stream: StreamId,
    /// Which leg of the stream this is.
    pub epoch: Epoch,
    /// The service, in the caller's own tenant.
    pub service: ServiceName,
    /// For a leg after the first: the agent that holds the stream's other end. Nobody else will do.
    pub provider: Option<AgentName>,
    /// The caller would have the leg's bytes go over a conduit of this name.
    pub conduit: Option<ConduitId>,
}

/// A relay offers a leg to a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming {
    /// The stream that the leg will carry.
    pub stream: StreamId,
    /// Which leg of the stream this is.
    pub epoch: Epoch,
    /// The service that was asked for.
    pub service: ServiceName,
    /// Who the relay says is calling. The provider believes only the end-to-end certificate.
    pub caller: AgentId,
    /// The relay waits for both agents to bring this conduit.
    pub conduit: Option<ConduitId>,
}

/// A relay passes the open of an agent on to another relay, once and no further.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// What the agent asked for. The provider of a first leg is the relay's choice: that one before any other.
    pub open: Open,
    /// The agent.
    pub caller: AgentId,
    /// The process of the agent, as in its [`Hello`].
    pub instance: [u8; 16],
    /// Its word that it is at the relay that forwards.
    pub voucher: Voucher,
}

/// One thing that a relay says of an agent at it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Present {
    /// The agent.
    pub agent: AgentId,
    /// A service that it offers; none: it is here at all, so that its streams can be taken up.
    pub offers: Option<ServiceName>,
}

/// A relay says which agents are at it and what they offer: what changed since it said so last.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Presence {
    /// This is so now.
    pub here: Vec<Present>,
    /// This no more.
    pub gone: Vec<Present>,
}

/// How many things one [`Presence`] may say, here and gone together.
pub const PRESENCE_LIMIT: usize = 40; // × 395 bytes of names and their framing

/// A message between an agent and a relay, or between two relays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Agent → relay, first on the control stream.
    Hello(Hello),
    /// Relay → agent, first on the control stream.
    Welcome(Welcome),
    /// Agent → relay: it offers these services from here on, besides those it offered before.
    Register(Services),
    /// Agent → relay: it offers these services no more.
    Withdraw(Services),
    /// Relay → agent, the answer to either: these of the named services the tenant's view does not let it provide
    /// yet; they begin to work when the view does.
    Registered(Services),
    /// Either way: takes no new streams; live ones may finish.
    Drain(Drain),
    /// Either way: the session ends, and why.
    Bye(Reason),
    /// Caller → relay, at a stream's head.
    Open(Open),
    /// Relay → provider, at a stream's head.
    Incoming(Incoming),
    /// Provider → relay → caller: this agent took the leg; from here on the relay passes bytes on blindly.
    Opened(AgentName),
    /// Instead of [`Message::Opened`]: no leg, and why.
    Refused(Reason),
    /// Relay → relay, first on the control stream: tell me who is at you, from now on.
    Peer,
    /// Relay → relay, the answer to it, and again on every change.
    Presence(Presence),
    /// Relay → relay, at a stream's head.
    Forward(Box<Forward>),
    /// Agent → relay, at a stream's head: join this stream with the controller, blindly.
    Controller,
    /// Agent → relay, first on a conduit.
    Join(Join),
    /// Relay → agent, last on a conduit before the other agent's bytes; the salt is the other agent's.
    Joined(Salt),
}

/// Why bytes are not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A type that neither is known nor may be skipped.
    #[error("message type {0:#04x} is unknown")]
    UnknownType(u8),
    /// The header announces more than [`BODY_LIMIT`].
    #[error("a message of {0} bytes is over the limit of 16 KiB")]
    TooLong(usize),
    /// The body is no protobuf message of its type.
    #[error("the body of message type {0:#04x} cannot be read")]
    Body(u8),
    /// A field is missing or not what its type allows.
    #[error("the field `{field}` of message type {kind:#04x} is not valid")]
    Field {
        /// The message's type.
        kind: u8,
        /// The field's name.
        field: &'static str,
    },
}

/// A message's header: what follows, and how much of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    kind: u8,
    length: u16,
}

impl Header {
    /// Reads a header.
    ///
    /// # Errors
    /// When the body would be over [`BODY_LIMIT`] or the type must not be skipped and is unknown.
    pub fn decode(bytes: [u8; HEADER_LENGTH]) -> Result<Self, DecodeError> {
        let [kind, high, low] = bytes;
        let length = u16::from_be_bytes([high, low]);
        if usize::from(length) > BODY_LIMIT {
            return Err(DecodeError::TooLong(length.into()));
        }
        if !body::is_known(kind) && kind < SKIPPABLE {
            return Err(DecodeError::UnknownType(kind));
        }
        Ok(Self { kind, length })
    }

    /// How many bytes of body follow.
    #[must_use]
    pub fn body_length(self) -> usize {
        self.length.into()
    }

    /// Reads the body that followed this header; `None` for a message that may be skipped and is not known.
    ///
    /// # Errors
    /// When the body is not what the header's type asks for.
    pub fn decode_body(self, body: &[u8]) -> Result<Option<Message>, DecodeError> {
        if !body::is_known(self.kind) {
            return Ok(None);
        }
        body::decode(self.kind, body).map(Some)
    }
}

const SKIPPABLE: u8 = 0x80;

impl Message {
    /// The message as it goes over the wire.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let (kind, body) = body::encode(self);
        let mut frame = BytesMut::with_capacity(HEADER_LENGTH + body.len());
        frame.put_u8(kind);
        // Every sender keeps its lists within SERVICES_LIMIT and its texts within their types' limits, so it fits.
        frame.put_u16(u16::try_from(body.len()).unwrap_or(u16::MAX));
        frame.put_slice(&body);
        frame.freeze()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn samples() -> Vec<Message> {
        let service: ServiceName = "db.prod".parse().expect("a name");
        let agent: AgentName = "laptop".parse().expect("a name");
        let caller = AgentId {
            tenant: "default".parse().expect("a name"),
            name: agent.clone(),
        };
        let (stream, epoch) = (StreamId([3; 16]), Epoch(7));
        vec![
            Message::Hello(Hello {
                protocol: 1,
                instance: [1; 16],
                kind: SessionKind::CallerOnly,
                software: "0.1.0".into(),
                voucher: Some(voucher()),
                region: Some("eu".parse().expect("a region")),
            }),
            Message::Welcome(Welcome { session: 9 }),
            Message::Register(Services {
                sequence: 2,
                names: vec![service.clone()],
            }),
            Message::Withdraw(Services {
                sequence: 3,
                names: vec![service.clone()],
            }),
            Message::Registered(Services {
                sequence: 2,
                names: vec![service.clone()],
            }),
            Message::Drain(Drain::default()),
            Message::Drain(Drain {
                successors: vec!["relay.example:7443".parse().expect("an address")],
            }),
            Message::Bye(Reason::Superseded),
            Message::Open(Open {
                stream,
                epoch: Epoch::FIRST,
                service: service.clone(),
                provider: None,
                conduit: None,
            }),
            Message::Open(Open {
                stream,
                epoch,
                service: service.clone(),
                provider: Some(agent.clone()),
                conduit: Some(ConduitId([5; 16])),
            }),
            Message::Incoming(Incoming {
                stream,
                epoch,
                service: service.clone(),
                caller: caller.clone(),
                conduit: Some(ConduitId([5; 16])),
            }),
            Message::Incoming(Incoming {
                stream,
                epoch,
                service,
                caller,
                conduit: None,
            }),
            Message::Join(Join {
                conduit: ConduitId([5; 16]),
                is_opener: true,
                salt: Salt([6; 16]),
            }),
            Message::Joined(Salt([7; 16])),
            Message::Opened(agent),
            Message::Refused(Reason::PolicyDenied),
            Message::Controller,
            Message::Peer,
            Message::Presence(Presence {
                here: vec![present("a", None), present("a", Some("db"))],
                gone: vec![present("b", None), present("c", Some("db"))],
            }),
            Message::Forward(Box::new(Forward {
                open: Open {
                    stream,
                    epoch: Epoch::FIRST,
                    service: "db".parse().expect("a name"),
                    provider: None,
                    conduit: None,
                },
                caller: caller_of("a"),
                instance: [4; 16],
                voucher: voucher(),
            })),
        ]
    }

    fn present(agent: &str, offers: Option<&str>) -> Present {
        Present {
            agent: caller_of(agent),
            offers: offers.map(|name| name.parse().expect("a name")),
        }
    }

    fn caller_of(name: &str) -> AgentId {
        AgentId {
            tenant: "default".parse().expect("a name"),
            name: name.parse().expect("a name"),
        }
    }

    fn voucher() -> Voucher {
        Voucher {
            expires_ms: 1_800_000_000_000,
            signature: vec![7; 70],
            chain: vec![vec![1; 600], vec![2; 500]],
        }
    }

    #[test]
    fn a_voucher_is_for_one_relay_one_process_and_one_time() {
        let relay = |text: &str| text.parse::<NodeName>().expect("a name");
        let good = Voucher::signed_bytes(&relay("a"), [1; 16], 5);
        for other in [
            Voucher::signed_bytes(&relay("b"), [1; 16], 5),
            Voucher::signed_bytes(&relay("a"), [2; 16], 5),
            Voucher::signed_bytes(&relay("a"), [1; 16], 6),
        ] {
            assert_ne!(good, other);
        }
    }

    fn decode(frame: &[u8]) -> Result<Option<Message>, DecodeError> {
        let (header, body) = frame.split_first_chunk().expect("a whole header");
        let header = Header::decode(*header)?;
        header.decode_body(&body[..header.body_length().min(body.len())])
    }

    #[test]
    fn the_samples_hold_every_message() {
        // From 0x80 up nothing is known, and all may be skipped.
        let known = (0..0x80).filter(|kind| Header::decode([*kind, 0, 0]).is_ok());
        let sampled: BTreeSet<u8> = samples().iter().map(|it| it.encode()[0]).collect();
        assert_eq!(sampled, known.collect());
    }

    #[test]
    fn every_message_round_trips() {
        for message in samples() {
            assert_eq!(decode(&message.encode()), Ok(Some(message)));
        }
    }

    // F43: whatever a stranger changes, the answer is an error or another valid message, never a panic.
    #[test]
    fn every_flipped_byte_and_every_truncation_is_survived() {
        for message in samples() {
            let frame = message.encode();
            for at in 0..frame.len() {
                for bit in 0..8 {
                    let mut flipped = frame.to_vec();
                    flipped[at] ^= 1 << bit;
                    let _outcome = decode(&flipped);
                }
                if at >= HEADER_LENGTH && at < frame.len() - 1 {
                    assert_ne!(
                        decode(&frame[..at]),
                        Ok(Some(message.clone())),
                        "cut at {at}"
                    );
                }
            }
        }
    }

    #[test]
    fn lengths_over_the_limit_are_refused_from_the_header_alone() {
        assert_eq!(
            Header::decode([0x01, 0x40, 0x01]),
            Err(DecodeError::TooLong(0x4001))
        );
        assert_eq!(
            Header::decode([0x01, 0xff, 0xff]),
            Err(DecodeError::TooLong(0xffff))
        );
    }

    // S41: groups within groups, numbers without an end, and lengths that claim everything, in every kind of message.
    #[test]
    fn bombs_in_place_of_bodies_are_errors() {
        let deep = vec![0x0b; BODY_LIMIT];
        let endless = vec![0xff; BODY_LIMIT];
        let wide = vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
        for message in samples() {
            let kind = message.encode()[0];
            for bomb in [&deep, &endless, &wide] {
                let [_, _, high, low] = u32::try_from(bomb.len()).expect("short").to_be_bytes();
                let frame = [&[kind, high, low][..], bomb].concat();
                match decode(&frame) {
                    Err(_) => {}
                    // What has no body is not looked for in one.
                    Ok(Some(Message::Controller | Message::Peer)) => {}
                    outcome => panic!("{kind:#x}: {outcome:?}"),
                }
            }
        }
    }

    #[test]
    fn unknown_types_are_refused_unless_they_may_be_skipped() {
        assert_eq!(
            Header::decode([0x7f, 0, 0]),
            Err(DecodeError::UnknownType(0x7f))
        );
        assert_eq!(decode(&[0x80, 0, 2, 1, 2]), Ok(None));
    }

    #[test]
    fn too_many_services_are_refused() {
        let names = vec!["a".parse().expect("a name"); SERVICES_LIMIT + 1];
        let frame = Message::Register(Services { sequence: 1, names }).encode();
        assert_eq!(
            decode(&frame),
            Err(DecodeError::Field {
                kind: 0x03,
                field: "services"
            })
        );
    }

    #[test]
    fn the_longest_presence_of_the_longest_names_fits_into_a_message() {
        let label = "x".repeat(63);
        let long = Present {
            agent: AgentId {
                tenant: label.parse().expect("a name of 63 bytes"),
                name: label.parse().expect("a name of 63 bytes"),
            },
            offers: Some(
                format!("{label}.{label}.{label}.{}", "y".repeat(61))
                    .parse()
                    .expect("a name of 253 bytes"),
            ),
        };
        let message = Message::Presence(Presence {
            here: vec![long; PRESENCE_LIMIT],
            gone: Vec::new(),
        });
        assert_eq!(decode(&message.encode()), Ok(Some(message)));
    }

    #[test]
    fn only_a_relay_says_who_shall_take_a_first_leg() {
        let open = |epoch, provider: Option<&str>| Open {
            stream: StreamId([3; 16]),
            epoch,
            service: "db".parse().expect("a name"),
            provider: provider.map(|name| name.parse().expect("a name")),
            conduit: None,
        };
        for (open, by_agent, by_relay) in [
            (open(Epoch::FIRST, None), true, true),
            (open(Epoch::FIRST, Some("host")), false, true),
            (open(Epoch(2), Some("host")), true, true),
            (open(Epoch(2), None), false, false),
        ] {
            let told = decode(&Message::Open(open.clone()).encode());
            assert_eq!(told.is_ok(), by_agent, "{open:?}");
            let forward = Forward {
                open,
                caller: caller_of("a"),
                instance: [4; 16],
                voucher: voucher(),
            };
            let told = decode(&Message::Forward(Box::new(forward.clone())).encode());
            assert_eq!(told.is_ok(), by_relay, "{forward:?}");
        }
    }

    #[test]
    fn the_longest_list_of_the_longest_names_fits_into_a_message() {
        let name = format!("{0}.{0}.{0}.{1}", "x".repeat(63), "y".repeat(61));
        let names = vec![name.parse().expect("a name of 253 bytes"); SERVICES_LIMIT];
        let message = Message::Register(Services {
            sequence: u64::MAX,
            names,
        });
        assert_eq!(decode(&message.encode()), Ok(Some(message)));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(frame in proptest::collection::vec(any::<u8>(), 3..300)) {
            let _outcome = decode(&frame);
        }
    }
}
