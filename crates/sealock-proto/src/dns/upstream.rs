//! What another resolver answers, read with distrust.
//!
//! An answer must repeat the id and the question, letter by letter: the case of the letters was drawn, so somebody who did
//! not see the question has to guess that too. Addresses are taken out, along at most [`CHAIN_LIMIT`] aliases; every other
//! kind of record passes as bytes, whose times to live are the only thing that is touched. Additional records are dropped:
//! what was not asked for is not believed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::record::Foreign;
use super::wire::{HEADER, Header, Question, RawRecord, Reader, kind};

/// Aliases that are followed.
pub const CHAIN_LIMIT: usize = 16;
/// Addresses that are taken of an answer: more than any program tries, and they fit into a UDP message.
pub const ADDRESSES_LIMIT: usize = 32;
/// The longest answer that is kept as bytes.
const BYTES_LIMIT: usize = 16 * 1024;
/// The longest that any record is kept (RFC 8767 §4 advises to cap at a day or a week).
const TTL_LIMIT: u32 = 86_400;
/// The longest that a «no» is kept; RFC 2308 §5 advises one to three hours, people who create a name expect less.
const EMPTY_TTL_LIMIT: u32 = 900;

/// Why bytes are no answer that can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// It answers something else; whoever sent it may be an impostor, so the true answer may still come.
    #[error("an answer to another question")]
    Foreign,
    /// It is the answer, with letters in another case: an impostor's luck, or a careless resolver.
    #[error("the question came back in other letters")]
    Letters,
    /// It did not fit into the datagram.
    #[error("cut off")]
    Truncated,
    /// It breaks the format.
    #[error("malformed")]
    Malformed,
    /// The resolver says that it failed, with this code.
    #[error("the resolver failed with code {0}")]
    Failed(u8),
    /// More than we keep.
    #[error("too long")]
    TooLong,
}

/// What came of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Whether there is such a name at all.
    pub exists: bool,
    /// What it says.
    pub content: Content,
    /// How long it may be kept.
    pub ttl: Duration,
}

/// What an answer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// The addresses of the name, itself or by its aliases.
    Addresses(Vec<IpAddr>),
    /// Records as they stood behind the question.
    Records(Records),
}

/// The answer and the authority section of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Records {
    bytes: Vec<u8>,
    counts: [u16; 2],
    /// Where times to live stand, and what they say.
    times: Vec<(usize, u32)>,
}

impl Records {
    /// The records, older by so much; with `at_most` for answers that are older than they should be.
    #[must_use]
    pub fn aged(&self, age: Duration, at_most: u32) -> Foreign {
        let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        let mut bytes = self.bytes.clone();
        for (at, ttl) in &self.times {
            let left = ttl.saturating_sub(age).min(at_most);
            if let Some(place) = bytes.get_mut(*at..*at + 4) {
                place.copy_from_slice(&left.to_be_bytes());
            }
        }
        Foreign {
            bytes,
            counts: self.counts,
        }
    }
}

impl Answer {
    /// Whether it holds nothing of what was asked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match &self.content {
            Content::Addresses(addresses) => addresses.is_empty(),
            Content::Records(records) => records.counts[0] == 0,
        }
    }
}

/// A question in bytes, with this id.
#[must_use]
pub fn ask(id: u16, question: &Question) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend_from_slice(&[0x01, 0, 0, 1, 0, 0, 0, 0, 0, 1]); // recursion desired; one question, one OPT record
    message.extend_from_slice(&question.encode());
    message.extend_from_slice(&[0, 0, 41]);
    message.extend_from_slice(&super::record::PAYLOAD.to_be_bytes());
    message.extend_from_slice(&[0; 6]);
    message
}

/// The name in letters whose case is drawn: each bit of `draw` decides one.
#[must_use]
pub fn scrambled(question: &Question, draw: u64) -> Question {
    let mut question = question.clone();
    let letters = question.name.iter_mut().filter(|b| b.is_ascii_alphabetic());
    for (at, letter) in letters.enumerate() {
        // A label's length is at most 63, below every letter.
        if (draw >> (at % 64)) & 1 == 1 {
            letter.make_ascii_uppercase();
        } else {
            letter.make_ascii_lowercase();
        }
    }
    question
}

/// Reads the answer to a question that was asked with this id.
///
/// # Errors
/// Why it cannot be used.
pub fn read(message: &[u8], id: u16, asked: &Question) -> Result<Answer, AnswerError> {
    let mut reader = Reader::new(message);
    let header = Header::read(&mut reader).ok_or(AnswerError::Foreign)?;
    if header.id != id || !header.is_answer || header.opcode != 0 || header.counts[0] != 1 {
        return Err(AnswerError::Foreign);
    }
    let question = reader.question().ok_or(AnswerError::Foreign)?;
    if question != *asked {
        let is_same = question.name.eq_ignore_ascii_case(&asked.name)
            && (question.kind, question.class) == (asked.kind, asked.class);
        return Err(if is_same {
            AnswerError::Letters
        } else {
            AnswerError::Foreign
        });
    }
    if header.is_truncated {
        return Err(AnswerError::Truncated);
    }
    let exists = match header.code {
        0 => true,
        3 => false,
        code => return Err(AnswerError::Failed(code)),
    };
    let read = Read::new(message, &mut reader, header.counts)?;
    match asked.kind {
        kind::A | kind::AAAA if exists => read.addresses(asked),
        _ => read.records(exists),
    }
}

/// The sections that are looked at.
struct Read<'a> {
    message: &'a [u8],
    answers: Vec<RawRecord<'a>>,
    authority: Vec<RawRecord<'a>>,
    from: usize,
    to: usize,
}

impl<'a> Read<'a> {
    fn new(
        message: &'a [u8],
        reader: &mut Reader<'a>,
        counts: [u16; 4],
    ) -> Result<Self, AnswerError> {
        let from = reader.place();
        let mut section =
            |count: u16| -> Option<Vec<_>> { (0..count).map(|_| reader.record()).collect() };
        let [_, answers, authority, _] = counts;
        let answers = section(answers).ok_or(AnswerError::Malformed)?;
        let authority = section(authority).ok_or(AnswerError::Malformed)?;
        Ok(Self {
            message,
            answers,
            authority,
            from,
            to: reader.place(),
        })
    }

    fn addresses(self, asked: &Question) -> Result<Answer, AnswerError> {
        let mut owner = asked.name.clone();
        let mut ttl = TTL_LIMIT;
        for _ in 0..CHAIN_LIMIT {
            let of_owner = |record: &&RawRecord<'_>| {
                record.class == 1 && record.owner.eq_ignore_ascii_case(&owner)
            };
            let mine = || self.answers.iter().filter(of_owner);
            let found: Vec<_> = mine()
                .filter(|record| record.kind == asked.kind)
                .take(ADDRESSES_LIMIT)
                .collect();
            if !found.is_empty() {
                let ttl = found
                    .iter()
                    .map(|record| lawful(record.ttl))
                    .fold(ttl, u32::min);
                let addresses: Option<_> = found.iter().map(|record| address(record)).collect();
                return Ok(Answer {
                    exists: true,
                    content: Content::Addresses(addresses.ok_or(AnswerError::Malformed)?),
                    ttl: Duration::from_secs(ttl.into()),
                });
            }
            let Some(alias) = mine().find(|record| record.kind == kind::CNAME) else {
                return self.records(true);
            };
            ttl = ttl.min(lawful(alias.ttl));
            let target = Reader::at(self.message, alias.data_at).name();
            owner = target.ok_or(AnswerError::Malformed)?;
        }
        Err(AnswerError::Malformed) // a loop of aliases, or as good as one
    }

    fn records(self, exists: bool) -> Result<Answer, AnswerError> {
        let bytes = &self.message[self.from..self.to];
        if bytes.len() > BYTES_LIMIT {
            return Err(AnswerError::TooLong);
        }
        let is_empty = self.answers.is_empty();
        let least = self.answers.iter().map(|record| lawful(record.ttl)).min();
        let ttl = if !exists || is_empty {
            self.emptiness()
        } else {
            least.unwrap_or_default()
        };
        let all = self.answers.iter().chain(&self.authority);
        let count = |section: &[RawRecord<'_>]| u16::try_from(section.len()).unwrap_or_default();
        Ok(Answer {
            exists,
            content: Content::Records(Records {
                times: all.map(|r| (r.ttl_at - self.from, lawful(r.ttl))).collect(),
                counts: [count(&self.answers), count(&self.authority)],
                bytes: bytes.to_vec(),
            }),
            ttl: Duration::from_secs(ttl.into()),
        })
    }

    /// How long a «no» holds: RFC 2308 §5. Without a zone's word it is not kept.
    fn emptiness(&self) -> u32 {
        let soa = self
            .authority
            .iter()
            .find(|record| record.kind == kind::SOA);
        let told = soa.and_then(|record| {
            let mut data = Reader::at(self.message, record.data_at);
            let (_primary, _mailbox) = (data.name()?, data.name()?);
            let numbers: Option<Vec<_>> = (0..5).map(|_| data.u32()).collect();
            Some(
                numbers?
                    .last()?
                    .min(&record.ttl)
                    .min(&EMPTY_TTL_LIMIT)
                    .to_owned(),
            )
        });
        told.unwrap_or(0)
    }
}

/// RFC 2181 §8: with the highest bit set it is nought.
fn lawful(ttl: u32) -> u32 {
    if ttl > i32::MAX.unsigned_abs() {
        0
    } else {
        ttl.min(TTL_LIMIT)
    }
}

fn address(record: &RawRecord<'_>) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(record.data).map(|octets| Ipv4Addr::from(octets).into());
    let v6 = || <[u8; 16]>::try_from(record.data).map(|octets| Ipv6Addr::from(octets).into());
    match record.kind {
        kind::A => v4.ok(),
        _ => v6().ok(),
    }
}

const _: () = assert!(
    HEADER + 255 + 4 + ADDRESSES_LIMIT * 28 <= 1_232,
    "an answer of addresses fits a datagram"
);
