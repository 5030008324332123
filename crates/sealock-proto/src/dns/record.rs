//! Replies as they go onto the wire (RFC 1035 §4.1, RFC 6891, RFC 8914).

use std::net::{Ipv4Addr, Ipv6Addr};

use sealock_core::host::HostName;

use super::wire::{HEADER, Query, encoded, kind};

/// The longest UDP message that crosses any network whole, and what we say that we take (dnsflagday.net, 2020).
pub const PAYLOAD: u16 = 1_232;
/// What a client takes without EDNS (RFC 1035 §2.3.4).
const SMALL: usize = 512;
/// What a length of two bytes can say (RFC 1035 §4.2.2).
const LARGE: usize = u16::MAX as usize;
/// The owner that is the question's name: a pointer to it.
const ASKED: [u8; 2] = [0xc0, 0x0c];

/// How a message came, and how its reply goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// In a datagram, which has little room.
    Udp,
    /// In a stream.
    Tcp,
}

/// What came of a question (RFC 1035 §4.1.1, RFC 6891 §9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// An answer, perhaps an empty one.
    NoError,
    /// The question could not be read.
    Format,
    /// We failed.
    Failure,
    /// There is no such name.
    NoName,
    /// A kind of question that is not answered.
    NotImplemented,
    /// The question is not to be answered for this client.
    Refused,
    /// A version of EDNS that we do not speak.
    Version,
}

impl Code {
    fn number(self) -> u16 {
        match self {
            Self::NoError => 0,
            Self::Format => 1,
            Self::Failure => 2,
            Self::NoName => 3,
            Self::NotImplemented => 4,
            Self::Refused => 5,
            Self::Version => 16,
        }
    }
}

/// Why there is no better answer (RFC 8914 §4), with a sentence for whoever looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Something that has no number of its own.
    Other(&'static str),
    /// The answer is older than it should be.
    Stale,
    /// Policy forbids it.
    Blocked(&'static str),
    /// The upstream does not answer.
    NoReachableAuthority,
    /// The upstream's answer is unusable.
    NetworkError,
}

impl Cause {
    fn parts(self) -> (u16, &'static str) {
        match self {
            Self::Other(text) => (0, text),
            Self::Stale => (3, "the upstream fails; this is what it said before"),
            Self::Blocked(text) => (15, text),
            Self::NoReachableAuthority => (22, "no upstream answers"),
            Self::NetworkError => (23, "the upstream's answer cannot be used"),
        }
    }
}

/// The data of a record of ours, whose owner is the name that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// An IPv4 address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// The name of an address.
    Ptr(HostName),
    /// The beginning of our zone.
    Soa(HostName),
}

/// A reply to one question.
#[derive(Debug, Clone)]
pub struct Reply<'a> {
    /// What it answers.
    pub query: &'a Query,
    /// What came of it.
    pub code: Code,
    /// Whether we own the name.
    pub is_ours: bool,
    /// Its records, all of the name that was asked for.
    pub answers: Vec<(Data, u32)>,
    /// For an empty answer of our own: the zone, and how long the emptiness holds (RFC 2308 §3).
    pub emptiness: Option<(HostName, u32)>,
    /// Records of an upstream, as they are.
    pub foreign: Option<Foreign>,
    /// Why it is not better.
    pub cause: Option<Cause>,
}

/// Records of an upstream, to stand behind the question as they stood there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// Their bytes.
    pub bytes: Vec<u8>,
    /// How many are in the answer and in the authority section.
    pub counts: [u16; 2],
}

impl<'a> Reply<'a> {
    /// A reply without records.
    #[must_use]
    pub fn empty(query: &'a Query, code: Code) -> Self {
        Self {
            query,
            code,
            is_ours: false,
            answers: Vec::new(),
            emptiness: None,
            foreign: None,
            cause: None,
        }
    }

    /// Its bytes. One that is too long for the client goes without records, marked, so that it asks again over TCP.
    #[must_use]
    pub fn encode(&self, over: Over) -> Vec<u8> {
        let room = match (over, self.query.edns) {
            (Over::Tcp, _) => LARGE,
            (Over::Udp, None) => SMALL,
            (Over::Udp, Some(edns)) => usize::from(edns.payload.min(PAYLOAD)).max(SMALL),
        };
        let whole = self.message(false);
        if whole.len() <= room {
            return whole;
        }
        self.message(true)
    }

    fn message(&self, is_cut: bool) -> Vec<u8> {
        let code = self.code.number();
        let high = 0x80 // an answer
            | u8::from(self.is_ours) << 2
            | u8::from(is_cut) << 1
            | u8::from(self.query.wants_recursion);
        let low = 0x80 | u8::from(self.query.disables_checks) << 4 | (code & 0xf) as u8;
        let mut body = Vec::new();
        let mut counts = [0, 0];
        if !is_cut {
            counts = self.records(&mut body);
        }
        let options = self.query.edns.map(|_| self.options(code));
        let mut message = Vec::with_capacity(HEADER + 300 + body.len());
        message.extend_from_slice(&self.query.id.to_be_bytes());
        message.extend_from_slice(&[high, low]);
        let additional = u16::from(options.is_some());
        for count in [1, counts[0], counts[1], additional] {
            message.extend_from_slice(&count.to_be_bytes());
        }
        message.extend_from_slice(&self.query.question.encode());
        message.extend_from_slice(&body);
        message.extend_from_slice(&options.unwrap_or_default());
        message
    }

    /// Appends the records; returns how many stand in the answer and in the authority section.
    fn records(&self, body: &mut Vec<u8>) -> [u16; 2] {
        if let Some(foreign) = &self.foreign {
            body.extend_from_slice(&foreign.bytes);
            return foreign.counts;
        }
        for (data, ttl) in &self.answers {
            push(body, &ASKED, data, *ttl);
        }
        if let Some((zone, ttl)) = &self.emptiness {
            push(body, &encoded(zone), &Data::Soa(zone.clone()), *ttl);
        }
        let answers = u16::try_from(self.answers.len()).unwrap_or(u16::MAX);
        [answers, u16::from(self.emptiness.is_some())]
    }

    /// The OPT record (RFC 6891 §6.1.2) with the cause (RFC 8914 §2).
    fn options(&self, code: u16) -> Vec<u8> {
        let cause = self.cause.map(Cause::parts);
        let cause = cause.map(|(number, text)| {
            let length = u16::try_from(2 + text.len()).unwrap_or(2);
            [
                &15_u16.to_be_bytes()[..], // the option's own number
                &length.to_be_bytes(),
                &number.to_be_bytes(),
                text.as_bytes(),
            ]
            .concat()
        });
        let cause = cause.unwrap_or_default();
        let length = u16::try_from(cause.len()).unwrap_or_default();
        let upper = code >> 4;
        [
            &[0][..],
            &kind::OPT.to_be_bytes(),
            &PAYLOAD.to_be_bytes(),
            &(u32::from(upper) << 24).to_be_bytes(),
            &length.to_be_bytes(),
            &cause,
        ]
        .concat()
    }
}

fn push(body: &mut Vec<u8>, owner: &[u8], data: &Data, ttl: u32) {
    let (kind, data) = match data {
        Data::A(address) => (kind::A, address.octets().to_vec()),
        Data::Aaaa(address) => (kind::AAAA, address.octets().to_vec()),
        Data::Ptr(name) => (kind::PTR, encoded(name)),
        Data::Soa(zone) => (kind::SOA, soa(zone, ttl)),
    };
    body.extend_from_slice(owner);
    body.extend_from_slice(&kind.to_be_bytes());
    body.extend_from_slice(&1_u16.to_be_bytes());
    body.extend_from_slice(&ttl.to_be_bytes());
    let length = u16::try_from(data.len()).unwrap_or_default();
    body.extend_from_slice(&length.to_be_bytes());
    body.extend_from_slice(&data);
}

/// RFC 1035 §3.3.13. Nobody transfers the zone, so only the last number, how long emptiness holds, has a meaning.
fn soa(zone: &HostName, ttl: u32) -> Vec<u8> {
    let mut data = [encoded(zone), encoded(zone)].concat();
    for number in [1, 3_600, 600, 86_400, ttl] {
        data.extend_from_slice(&u32::to_be_bytes(number));
    }
    data
}

/// The reply to a message of which no question could be read.
#[must_use]
pub fn unread(id: u16, opcode: u8, code: Code) -> Vec<u8> {
    let mut message = vec![0; HEADER];
    message[..2].copy_from_slice(&id.to_be_bytes());
    message[2] = 0x80 | opcode << 3;
    let code = (code.number() & 0xf) as u8;
    message[3] = code;
    message
}
