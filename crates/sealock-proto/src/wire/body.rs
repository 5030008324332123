//! The protobuf bodies of messages, and their way to and from domain types.
//!
//! Every field of a stranger is checked here: lengths, names, counts. Reasons travel as numbers.

use std::str::FromStr;

use prost::Message as _;
use sealock_core::identity::AgentId;
use sealock_core::name::ServiceName;
use sealock_core::reason::Reason;

use crate::stream::Epoch;

use super::{
    CERTIFICATE_LIMIT, CHAIN_LIMIT, ConduitId, DecodeError, Drain, Forward, Hello, Incoming, Join,
    Message, Open, PRESENCE_LIMIT, Presence, Present, SERVICES_LIMIT, SUCCESSORS_LIMIT, Salt,
    Services, SessionKind, StreamId, Voucher, Welcome,
};

const HELLO: u8 = 0x01;
const WELCOME: u8 = 0x02;
const REGISTER: u8 = 0x03;
const REGISTERED: u8 = 0x04;
const DRAIN: u8 = 0x05;
const BYE: u8 = 0x06;
const WITHDRAW: u8 = 0x07;
const PEER: u8 = 0x08;
const PRESENCE: u8 = 0x09;
const OPEN: u8 = 0x10;
const INCOMING: u8 = 0x11;
const OPENED: u8 = 0x12;
const REFUSED: u8 = 0x13;
const CONTROLLER: u8 = 0x14;
const FORWARD: u8 = 0x15;
const JOIN: u8 = 0x16;
const JOINED: u8 = 0x17;

const SOFTWARE_LIMIT: usize = 64;
const SIGNATURE_LIMIT: usize = 80; // ECDSA P-256 in ASN.1 has 72 bytes at most

pub(super) fn is_known(kind: u8) -> bool {
    matches!(kind, HELLO..=PRESENCE | OPEN..=JOINED)
}

#[derive(Clone, PartialEq, prost::Message)]
struct HelloBody {
    #[prost(uint32, tag = "1")]
    protocol: u32,
    #[prost(bytes = "vec", tag = "2")]
    instance: Vec<u8>,
    #[prost(string, tag = "3")]
    software: String,
    #[prost(bool, tag = "4")]
    caller_only: bool,
    #[prost(message, optional, tag = "5")]
    voucher: Option<VoucherBody>,
    #[prost(string, tag = "6")]
    region: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct VoucherBody {
    #[prost(int64, tag = "1")]
    expires_ms: i64,
    #[prost(bytes = "vec", tag = "2")]
    signature: Vec<u8>,
    #[prost(bytes = "vec", repeated, tag = "3")]
    chain: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ForwardBody {
    #[prost(message, optional, tag = "1")]
    open: Option<StreamBody>,
    #[prost(bytes = "vec", tag = "2")]
    instance: Vec<u8>,
    #[prost(message, optional, tag = "3")]
    voucher: Option<VoucherBody>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PresentBody {
    #[prost(string, tag = "1")]
    tenant: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    offers: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PresenceBody {
    #[prost(message, repeated, tag = "1")]
    here: Vec<PresentBody>,
    #[prost(message, repeated, tag = "2")]
    gone: Vec<PresentBody>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct NumberBody {
    #[prost(uint64, tag = "1")]
    number: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ServicesBody {
    #[prost(uint64, tag = "1")]
    sequence: u64,
    #[prost(string, repeated, tag = "2")]
    names: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StreamBody {
    #[prost(bytes = "vec", tag = "1")]
    stream: Vec<u8>,
    #[prost(uint32, tag = "2")]
    epoch: u32,
    #[prost(string, tag = "3")]
    service: String,
    #[prost(string, tag = "4")]
    caller_tenant: String,
    #[prost(string, tag = "5")]
    caller_name: String,
    #[prost(string, tag = "6")]
    provider: String,
    #[prost(bytes = "vec", tag = "7")]
    conduit: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ConduitBody {
    #[prost(bytes = "vec", tag = "1")]
    conduit: Vec<u8>,
    #[prost(bool, tag = "2")]
    is_opener: bool,
    #[prost(bytes = "vec", tag = "3")]
    salt: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DrainBody {
    #[prost(string, repeated, tag = "1")]
    successors: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct NameBody {
    #[prost(string, tag = "1")]
    name: String,
}

pub(super) fn encode(message: &Message) -> (u8, Vec<u8>) {
    match message {
        Message::Hello(hello) => (
            HELLO,
            HelloBody {
                protocol: hello.protocol,
                instance: hello.instance.to_vec(),
                software: hello.software.clone(),
                caller_only: hello.kind == SessionKind::CallerOnly,
                voucher: hello.voucher.as_ref().map(voucher),
                region: hello
                    .region
                    .as_ref()
                    .map(ToString::to_string)
                    .unwrap_or_default(),
            }
            .encode_to_vec(),
        ),
        Message::Welcome(welcome) => (WELCOME, number(welcome.session)),
        Message::Register(list) => (REGISTER, services(list)),
        Message::Withdraw(list) => (WITHDRAW, services(list)),
        Message::Registered(list) => (REGISTERED, services(list)),
        Message::Drain(drain) => (
            DRAIN,
            DrainBody {
                successors: drain.successors.iter().map(ToString::to_string).collect(),
            }
            .encode_to_vec(),
        ),
        Message::Bye(reason) => (BYE, number(reason.number().into())),
        Message::Open(open) => (OPEN, open_body(open).encode_to_vec()),
        Message::Incoming(offer) => (INCOMING, incoming_body(offer).encode_to_vec()),
        Message::Opened(provider) => (
            OPENED,
            NameBody {
                name: provider.as_str().to_owned(),
            }
            .encode_to_vec(),
        ),
        Message::Refused(reason) => (REFUSED, number(reason.number().into())),
        Message::Controller => (CONTROLLER, Vec::new()),
        Message::Join(join) => (
            JOIN,
            ConduitBody {
                conduit: join.conduit.0.to_vec(),
                is_opener: join.is_opener,
                salt: join.salt.0.to_vec(),
            }
            .encode_to_vec(),
        ),
        Message::Joined(salt) => (
            JOINED,
            ConduitBody {
                salt: salt.0.to_vec(),
                ..ConduitBody::default()
            }
            .encode_to_vec(),
        ),
        Message::Peer => (PEER, Vec::new()),
        Message::Presence(presence) => (
            PRESENCE,
            PresenceBody {
                here: presence.here.iter().map(present).collect(),
                gone: presence.gone.iter().map(present).collect(),
            }
            .encode_to_vec(),
        ),
        Message::Forward(forward) => (
            FORWARD,
            ForwardBody {
                open: Some(StreamBody {
                    caller_tenant: forward.caller.tenant.to_string(),
                    caller_name: forward.caller.name.to_string(),
                    ..open_body(&forward.open)
                }),
                instance: forward.instance.to_vec(),
                voucher: Some(voucher(&forward.voucher)),
            }
            .encode_to_vec(),
        ),
    }
}

fn number(number: u64) -> Vec<u8> {
    NumberBody { number }.encode_to_vec()
}

fn services(list: &Services) -> Vec<u8> {
    let names = list
        .names
        .iter()
        .map(|name| name.as_str().to_owned())
        .collect();
    ServicesBody {
        sequence: list.sequence,
        names,
    }
    .encode_to_vec()
}

fn voucher(voucher: &Voucher) -> VoucherBody {
    VoucherBody {
        expires_ms: voucher.expires_ms,
        signature: voucher.signature.clone(),
        chain: voucher.chain.clone(),
    }
}

fn present(present: &Present) -> PresentBody {
    PresentBody {
        tenant: present.agent.tenant.as_str().to_owned(),
        name: present.agent.name.as_str().to_owned(),
        offers: present
            .offers
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
    }
}

fn open_body(open: &Open) -> StreamBody {
    StreamBody {
        stream: open.stream.0.to_vec(),
        epoch: open.epoch.0,
        service: open.service.as_str().to_owned(),
        provider: open
            .provider
            .as_ref()
            .map(|name| name.as_str().to_owned())
            .unwrap_or_default(),
        conduit: conduit_bytes(open.conduit),
        ..StreamBody::default()
    }
}

/// No bytes are no conduit.
fn conduit_bytes(conduit: Option<ConduitId>) -> Vec<u8> {
    conduit.map(|id| id.0.to_vec()).unwrap_or_default()
}

fn incoming_body(offer: &Incoming) -> StreamBody {
    StreamBody {
        stream: offer.stream.0.to_vec(),
        epoch: offer.epoch.0,
        service: offer.service.as_str().to_owned(),
        caller_tenant: offer.caller.tenant.as_str().to_owned(),
        caller_name: offer.caller.name.as_str().to_owned(),
        conduit: conduit_bytes(offer.conduit),
        ..StreamBody::default()
    }
}

pub(super) fn decode(kind: u8, body: &[u8]) -> Result<Message, DecodeError> {
    let fields = Fields { kind };
    Ok(match kind {
        HELLO => Message::Hello(fields.hello(body)?),
        WELCOME => Message::Welcome(Welcome {
            session: fields.number(body)?,
        }),
        REGISTER => Message::Register(fields.services(body)?),
        WITHDRAW => Message::Withdraw(fields.services(body)?),
        REGISTERED => Message::Registered(fields.services(body)?),
        DRAIN => Message::Drain(fields.drain(body)?),
        BYE => Message::Bye(Reason::from_number(fields.number(body)?)),
        OPEN => {
            let body: StreamBody = fields.body(body)?;
            let open = fields.open(&body)?;
            // An agent has no say in who takes a first leg.
            if open.provider.is_some() && open.epoch == Epoch::FIRST {
                return Err(fields.invalid("provider"));
            }
            Message::Open(open)
        }
        INCOMING => {
            let body: StreamBody = fields.body(body)?;
            let (stream, epoch, service) = fields.stream(&body)?;
            let caller = AgentId {
                tenant: fields.name("caller_tenant", &body.caller_tenant)?,
                name: fields.name("caller_name", &body.caller_name)?,
            };
            Message::Incoming(Incoming {
                stream,
                epoch,
                service,
                caller,
                conduit: fields.conduit(&body.conduit)?,
            })
        }
        OPENED => {
            let body: NameBody = fields.body(body)?;
            Message::Opened(fields.name("name", &body.name)?)
        }
        REFUSED => Message::Refused(Reason::from_number(fields.number(body)?)),
        CONTROLLER => Message::Controller,
        JOIN => {
            let body: ConduitBody = fields.body(body)?;
            Message::Join(Join {
                conduit: ConduitId(fields.sixteen("conduit", &body.conduit)?),
                is_opener: body.is_opener,
                salt: Salt(fields.sixteen("salt", &body.salt)?),
            })
        }
        JOINED => {
            let body: ConduitBody = fields.body(body)?;
            Message::Joined(Salt(fields.sixteen("salt", &body.salt)?))
        }
        PEER => Message::Peer,
        PRESENCE => Message::Presence(fields.presence(body)?),
        FORWARD => Message::Forward(Box::new(fields.forward(body)?)),
        unknown => return Err(DecodeError::UnknownType(unknown)),
    })
}

/// Reads the fields of one message; remembers its type for errors.
#[derive(Clone, Copy)]
struct Fields {
    kind: u8,
}

impl Fields {
    fn invalid(self, field: &'static str) -> DecodeError {
        DecodeError::Field {
            kind: self.kind,
            field,
        }
    }

    fn body<B: prost::Message + Default>(self, body: &[u8]) -> Result<B, DecodeError> {
        B::decode(body).map_err(|_| DecodeError::Body(self.kind))
    }

    fn number(self, body: &[u8]) -> Result<u64, DecodeError> {
        Ok(self.body::<NumberBody>(body)?.number)
    }

    fn name<N: FromStr>(self, field: &'static str, text: &str) -> Result<N, DecodeError> {
        text.parse().map_err(|_| self.invalid(field))
    }

    /// No text is no name.
    fn optional<N: FromStr>(
        self,
        field: &'static str,
        text: &str,
    ) -> Result<Option<N>, DecodeError> {
        if text.is_empty() {
            return Ok(None);
        }
        self.name(field, text).map(Some)
    }

    fn sixteen(self, field: &'static str, bytes: &[u8]) -> Result<[u8; 16], DecodeError> {
        bytes.try_into().map_err(|_| self.invalid(field))
    }

    fn conduit(self, bytes: &[u8]) -> Result<Option<ConduitId>, DecodeError> {
        if bytes.is_empty() {
            return Ok(None);
        }
        Ok(Some(ConduitId(self.sixteen("conduit", bytes)?)))
    }

    fn hello(self, body: &[u8]) -> Result<Hello, DecodeError> {
        let body: HelloBody = self.body(body)?;
        let printable = body.software.bytes().all(|b| b.is_ascii_graphic());
        if !printable || body.software.len() > SOFTWARE_LIMIT {
            return Err(self.invalid("software"));
        }
        let instance = self.sixteen("instance", &body.instance)?;
        let kind = if body.caller_only {
            SessionKind::CallerOnly
        } else {
            SessionKind::Full
        };
        Ok(Hello {
            protocol: body.protocol,
            instance,
            kind,
            software: body.software,
            voucher: body.voucher.map(|body| self.voucher(body)).transpose()?,
            region: self.optional("region", &body.region)?,
        })
    }

    fn services(self, body: &[u8]) -> Result<Services, DecodeError> {
        let body: ServicesBody = self.body(body)?;
        if body.names.len() > SERVICES_LIMIT {
            return Err(self.invalid("services"));
        }
        let names = body.names.iter().map(|text| self.name("services", text));
        Ok(Services {
            sequence: body.sequence,
            names: names.collect::<Result<_, _>>()?,
        })
    }

    fn voucher(self, body: VoucherBody) -> Result<Voucher, DecodeError> {
        let is_bounded = body.chain.len() <= CHAIN_LIMIT
            && body.chain.iter().all(|der| der.len() <= CERTIFICATE_LIMIT)
            && body.signature.len() <= SIGNATURE_LIMIT;
        if !is_bounded {
            return Err(self.invalid("voucher"));
        }
        Ok(Voucher {
            expires_ms: body.expires_ms,
            signature: body.signature,
            chain: body.chain,
        })
    }

    fn present(self, body: &PresentBody) -> Result<Present, DecodeError> {
        Ok(Present {
            agent: AgentId {
                tenant: self.name("tenant", &body.tenant)?,
                name: self.name("name", &body.name)?,
            },
            offers: self.optional("offers", &body.offers)?,
        })
    }

    fn presence(self, body: &[u8]) -> Result<Presence, DecodeError> {
        let body: PresenceBody = self.body(body)?;
        if body.here.len() + body.gone.len() > PRESENCE_LIMIT {
            return Err(self.invalid("agents"));
        }
        let read = |list: &[PresentBody]| -> Result<Vec<Present>, DecodeError> {
            list.iter().map(|body| self.present(body)).collect()
        };
        Ok(Presence {
            here: read(&body.here)?,
            gone: read(&body.gone)?,
        })
    }

    fn forward(self, body: &[u8]) -> Result<Forward, DecodeError> {
        let body: ForwardBody = self.body(body)?;
        let stream = body.open.ok_or_else(|| self.invalid("open"))?;
        let caller = AgentId {
            tenant: self.name("caller_tenant", &stream.caller_tenant)?,
            name: self.name("caller_name", &stream.caller_name)?,
        };
        let voucher = body.voucher.ok_or_else(|| self.invalid("voucher"))?;
        Ok(Forward {
            open: self.open(&stream)?,
            caller,
            instance: self.sixteen("instance", &body.instance)?,
            voucher: self.voucher(voucher)?,
        })
    }

    fn drain(self, body: &[u8]) -> Result<Drain, DecodeError> {
        let body: DrainBody = self.body(body)?;
        if body.successors.len() > SUCCESSORS_LIMIT {
            return Err(self.invalid("successors"));
        }
        let parse = |text: &String| self.name("successors", text);
        let successors = body.successors.iter().map(parse);
        Ok(Drain {
            successors: successors.collect::<Result<_, _>>()?,
        })
    }

    fn open(self, body: &StreamBody) -> Result<Open, DecodeError> {
        let (stream, epoch, service) = self.stream(body)?;
        let provider = self.optional("provider", &body.provider)?;
        // A later leg goes to nobody but the one who holds the other end.
        if provider.is_none() && epoch > Epoch::FIRST {
            return Err(self.invalid("provider"));
        }
        Ok(Open {
            stream,
            epoch,
            service,
            provider,
            conduit: self.conduit(&body.conduit)?,
        })
    }

    fn stream(self, body: &StreamBody) -> Result<(StreamId, Epoch, ServiceName), DecodeError> {
        if body.epoch < Epoch::FIRST.0 {
            return Err(self.invalid("epoch"));
        }
        let stream = StreamId(self.sixteen("stream", &body.stream)?);
        Ok((
            stream,
            Epoch(body.epoch),
            self.name("service", &body.service)?,
        ))
    }
}
