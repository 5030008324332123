//! A question as it stands on the wire (RFC 1035 §4, RFC 6891).
//!
//! A name is kept as its bytes, so that a reply repeats the very letters that were asked, upper and lower case.

use std::fmt::Write as _;

use sealock_core::host::HostName;

/// The length of a message's fixed beginning.
pub const HEADER: usize = 12;
const NAME_LIMIT: usize = 255; // RFC 1035 §2.3.4
const LABEL_LIMIT: u8 = 63; // RFC 1035 §2.3.4
const POINTER: u8 = 0xc0; // RFC 1035 §4.1.4
/// Records behind a question that are looked through for the OPT record; more is no honest question.
const RECORDS_LIMIT: u16 = 16;

/// The types of records that are treated by themselves; every other one is only a number.
pub mod kind {
    /// An IPv4 address.
    pub const A: u16 = 1;
    /// Another name's owner.
    pub const CNAME: u16 = 5;
    /// The beginning of a zone.
    pub const SOA: u16 = 6;
    /// The name of an address.
    pub const PTR: u16 = 12;
    /// An IPv6 address.
    pub const AAAA: u16 = 28;
    /// EDNS (RFC 6891).
    pub const OPT: u16 = 41;
    /// Where and how a service is reached (RFC 9460); it may hold addresses and the keys of encrypted hellos.
    pub const SVCB: u16 = 64;
    /// The same for HTTP.
    pub const HTTPS: u16 = 65;
    /// Types 128 and above up to here ask about messages and whole zones, not about a record (RFC 6895 §3.1).
    pub const META: std::ops::RangeInclusive<u16> = 128..=255;
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The name as it stood there, without compression, with its last empty label.
    pub name: Vec<u8>,
    /// The type of record.
    pub kind: u16,
    /// The class, 1 for the Internet.
    pub class: u16,
}

impl Question {
    /// A question of the Internet's class for a host.
    #[must_use]
    pub fn of(name: &HostName, kind: u16) -> Self {
        Self {
            name: encoded(name),
            kind,
            class: 1,
        }
    }

    /// The name as that of a host, where it is one.
    #[must_use]
    pub fn host(&self) -> Option<HostName> {
        text(&self.name).parse().ok()
    }

    /// Its bytes in a message.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let tail = [self.kind.to_be_bytes(), self.class.to_be_bytes()];
        [&self.name[..], &tail.concat()].concat()
    }
}

/// A name as labels.
#[must_use]
pub fn encoded(name: &HostName) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(name.as_str().len() + 2);
    for label in name.as_str().split('.') {
        // A host name's labels have at most 63 bytes.
        bytes.push(u8::try_from(label.len()).unwrap_or(LABEL_LIMIT));
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

/// Labels as text; bytes that no host name has are escaped, so that they cannot pass for dots or letters.
#[must_use]
pub fn text(name: &[u8]) -> String {
    let mut text = String::new();
    let mut rest = name;
    while let Some((&length, tail)) = rest.split_first() {
        let (label, tail) = tail.split_at(usize::from(length).min(tail.len()));
        for byte in label {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') {
                text.push(char::from(*byte));
            } else {
                let _infallible = write!(text, "\\{byte:03}");
            }
        }
        if length > 0 {
            text.push('.');
        }
        rest = tail;
    }
    text
}

/// What a client says of itself by EDNS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edns {
    /// The version that it speaks.
    pub version: u8,
    /// The longest UDP message that it takes.
    pub payload: u16,
}

/// A question with what came around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// What the reply must repeat.
    pub id: u16,
    /// Whether recursion is desired, which the reply repeats.
    pub wants_recursion: bool,
    /// Whether the client checks signatures itself, which the reply repeats.
    pub disables_checks: bool,
    /// What is asked.
    pub question: Question,
    /// EDNS, when the client speaks it.
    pub edns: Option<Edns>,
}

/// Why bytes are no question that can be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
    /// An answer, or too short to be anything: it gets no reply, or two servers could talk for ever.
    NoQuery,
    /// A question that breaks the format.
    Format {
        /// What the reply must repeat.
        id: u16,
    },
    /// A kind of message that is not a question (RFC 1035 §4.1.1).
    Opcode {
        /// What the reply must repeat.
        id: u16,
        /// Which kind.
        opcode: u8,
    },
}

/// Reads a question.
///
/// # Errors
/// Why it is none.
pub fn read(message: &[u8]) -> Result<Query, Unreadable> {
    let mut reader = Reader::new(message);
    let header = Header::read(&mut reader).ok_or(Unreadable::NoQuery)?;
    if header.is_answer {
        return Err(Unreadable::NoQuery);
    }
    let id = header.id;
    if header.opcode != 0 {
        let opcode = header.opcode;
        return Err(Unreadable::Opcode { id, opcode });
    }
    let broken = Unreadable::Format { id };
    let [questions, answers, authorities, additional] = header.counts;
    if questions != 1 {
        return Err(broken);
    }
    let question = reader.question().ok_or(broken)?;
    let records = answers
        .saturating_add(authorities)
        .saturating_add(additional);
    if records > RECORDS_LIMIT {
        return Err(broken);
    }
    let mut edns = None;
    for _ in 0..records {
        let record = reader.record().ok_or(broken)?;
        if record.kind == kind::OPT {
            let [_, version, _, _] = record.ttl.to_be_bytes();
            let payload = record.class;
            // RFC 6891 §6.1.1: one at most, of the root.
            if record.owner != [0] || edns.replace(Edns { version, payload }).is_some() {
                return Err(broken);
            }
        }
    }
    Ok(Query {
        id,
        wants_recursion: header.wants_recursion,
        disables_checks: header.disables_checks,
        question,
        edns,
    })
}

/// A message's fixed beginning.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) id: u16,
    pub(super) is_answer: bool,
    pub(super) opcode: u8,
    pub(super) is_truncated: bool,
    pub(super) wants_recursion: bool,
    pub(super) disables_checks: bool,
    pub(super) code: u8,
    pub(super) counts: [u16; 4],
}

impl Header {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let id = reader.u16()?;
        let flags = reader.u16()?;
        let [high, low] = flags.to_be_bytes();
        Some(Self {
            id,
            is_answer: high & 0x80 != 0,
            opcode: (high >> 3) & 0xf,
            is_truncated: high & 2 != 0,
            wants_recursion: high & 1 != 0,
            disables_checks: low & 0x10 != 0,
            code: low & 0xf,
            counts: [reader.u16()?, reader.u16()?, reader.u16()?, reader.u16()?],
        })
    }
}

/// A record as it stands in a message.
#[derive(Debug)]
pub(super) struct RawRecord<'a> {
    pub(super) owner: Vec<u8>,
    pub(super) kind: u16,
    pub(super) class: u16,
    pub(super) ttl: u32,
    /// Where the time to live stands in the message.
    pub(super) ttl_at: usize,
    pub(super) data: &'a [u8],
    /// Where the data begin in the message.
    pub(super) data_at: usize,
}

/// Takes a message apart from the front.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(message: &'a [u8]) -> Self {
        Self { message, at: 0 }
    }

    pub(super) fn at(message: &'a [u8], at: usize) -> Self {
        Self { message, at }
    }

    pub(super) fn place(&self) -> usize {
        self.at
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let taken = self.message.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(taken)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        let bytes = self.take(2)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        Some(u32::from(self.u16()?) << 16 | u32::from(self.u16()?))
    }

    /// A name without its compression (RFC 1035 §4.1.4).
    pub(super) fn name(&mut self) -> Option<Vec<u8>> {
        let mut name = Vec::new();
        let mut run = self.at; // a pointer leads before the run of labels that it ends, so there is no loop
        let mut at = self.at;
        let mut behind = None;
        loop {
            let length = *self.message.get(at)?;
            at += 1;
            match length {
                0 => break,
                1..=LABEL_LIMIT => {
                    let label = self.message.get(at..at + usize::from(length))?;
                    name.push(length);
                    name.extend_from_slice(label);
                    at += usize::from(length);
                }
                POINTER.. => {
                    let low = *self.message.get(at)?;
                    behind.get_or_insert(at + 1);
                    let target = usize::from(length & !POINTER) << 8 | usize::from(low);
                    if target >= run {
                        return None;
                    }
                    (run, at) = (target, target);
                }
                _ => return None, // RFC 6891 §5: no other kind of label is in use
            }
            if name.len() >= NAME_LIMIT {
                return None;
            }
        }
        name.push(0);
        self.at = behind.unwrap_or(at);
        Some(name)
    }

    pub(super) fn question(&mut self) -> Option<Question> {
        Some(Question {
            name: self.name()?,
            kind: self.u16()?,
            class: self.u16()?,
        })
    }

    pub(super) fn record(&mut self) -> Option<RawRecord<'a>> {
        let owner = self.name()?;
        let (kind, class) = (self.u16()?, self.u16()?);
        let ttl_at = self.at;
        let ttl = self.u32()?;
        let length = self.u16()?;
        let data_at = self.at;
        Some(RawRecord {
            owner,
            kind,
            class,
            ttl,
            ttl_at,
            data: self.take(length.into())?,
            data_at,
        })
    }
}
