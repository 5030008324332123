//! Any bytes as a question of a workload and as an answer of an upstream: nothing breaks, and replies can be read.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use sealock_core::host::HostName;
use sealock_core::name::ServiceName;

use super::book::Book;
use super::origin;
use super::record::Over;
use super::server::{Asked, Naming, Outcome, Server, Settings, World, ZONE};
use super::upstream::{self, Answer, AnswerError, Content};
use super::vip::{Found, Vip};
use super::wire::{Header, Question, Reader, kind};
use crate::fuzz::{Input, Seen, Target};

pub(crate) const MESSAGE: Target = Target {
    name: "dns_message",
    run: message,
    reaches: &[
        "reply", "forward", "nothing", "answered", "refused", "cut", "failed", "no name",
    ],
};

/// Everything below `example` is allowed, and all services but those that begin with `x`.
struct Anything;

impl World for Anything {
    fn allows_service(&self, name: &ServiceName) -> bool {
        !name.as_str().starts_with('x')
    }
    fn find(&self, name: &ServiceName) -> Found {
        match name.as_str() {
            "db" => Found::Service(Vip {
                v4: Some(DB.into()),
                v6: None,
            }),
            "web" => Found::Service(Vip {
                v4: None,
                v6: Some(Ipv4Addr::from(DB).to_ipv6_mapped()),
            }),
            "between" => Found::Between,
            _ => Found::Nothing,
        }
    }
    fn service_at(&self, address: IpAddr) -> Option<ServiceName> {
        (address == IpAddr::from(DB)).then(|| "db".parse().expect("a name"))
    }
    fn allows_name(&self, name: &HostName) -> bool {
        name.as_str().ends_with("example")
    }
    fn allows_address(&self, _: &HostName, address: IpAddr) -> bool {
        !address.is_loopback()
    }
}

/// Where one service is.
const DB: [u8; 4] = [100, 64, 0, 9];
/// What upstreams say in place of so many addresses; more than these do not fit into a short reply.
const LOOPBACK: usize = 24;
const STALE: usize = 25;
const FAILED: usize = 26;
const SILENT: usize = 27;

/// The first byte chooses how names get addresses, and how much an upstream would say or how many names were asked for.
fn message(input: &[u8]) -> Seen {
    let now = origin();
    let mut input = Input(input);
    let how = input.byte();
    let naming = match how & 3 {
        0 => Naming::Synthetic,
        1 => Naming::Checked,
        _ => Naming::Real,
    };
    let over = if how & 4 == 0 { Over::Udp } else { Over::Tcp };
    let zone = ZONE.parse().expect("a name");
    let settings = Settings {
        zone,
        naming,
        split: Vec::new(),
    };
    let count = usize::from(how >> 3);
    let mut book = Book::new(2);
    for name in ["one.example", "two.example"].iter().take(count) {
        let name = name.parse().expect("a name");
        book.give(now, &name).expect("there is room for two");
    }
    let mut server = Server::new(settings, book);
    let mut seen = Seen::new();
    let reply = match server.handle_query(now, over, input.0, &Anything) {
        Outcome::Nothing => return Seen::from(["nothing"]),
        Outcome::Reply(reply) => {
            seen.insert("reply");
            reply
        }
        Outcome::Forward(pending) => {
            seen.insert("forward");
            let said = match count {
                LOOPBACK => vec![[127, 0, 0, 1].into()],
                _ => vec![[192, 0, 2, 1].into(); count],
            };
            let answer = Answer {
                exists: true,
                content: Content::Addresses(said),
                ttl: Duration::from_secs(60),
            };
            let asked = match count {
                STALE => Asked::Stale(&answer),
                FAILED => Asked::Failed,
                SILENT => Asked::Silent,
                _ => Asked::Answer(&answer, Duration::ZERO),
            };
            server.handle_answer(now, &pending, asked, &Anything)
        }
    };
    let header = readable(&reply);
    assert_eq!(reply[..2], input.0[..2], "the id is repeated");
    assert!(over == Over::Tcp || reply.len() <= 1_232);
    if header.counts[1] > 0 {
        seen.insert("answered");
    }
    match header.code {
        2 => drop(seen.insert("failed")),
        3 => drop(seen.insert("no name")),
        5 => drop(seen.insert("refused")),
        _ => {}
    }
    if header.is_truncated {
        seen.insert("cut");
    }
    seen
}

/// Every record can be read, and nothing stands behind the last.
fn readable(message: &[u8]) -> Header {
    let mut reader = Reader::new(message);
    let header = Header::read(&mut reader).expect("a header");
    for _ in 0..header.counts[0] {
        reader.question().expect("the question");
    }
    for _ in 0..header.counts[1..].iter().sum() {
        reader.record().expect("a record");
    }
    assert_eq!(reader.place(), message.len());
    header
}

pub(crate) const ANSWER: Target = Target {
    name: "dns_answer",
    run: answer,
    reaches: &[
        "addresses",
        "records",
        "no such name",
        "foreign",
        "letters",
        "truncated",
        "malformed",
        "failed",
        "too long",
    ],
};

/// The first byte chooses the question, all else is the answer to it.
fn answer(input: &[u8]) -> Seen {
    let mut input = Input(input);
    let kind = match input.byte() {
        0 => kind::A,
        1 => kind::AAAA,
        other => u16::from(other),
    };
    let asked = Question::of(&"a.example".parse().expect("a name"), kind);
    let read = match upstream::read(input.0, 7, &asked) {
        Ok(read) => read,
        Err(error) => {
            return Seen::from([match error {
                AnswerError::Foreign => "foreign",
                AnswerError::Letters => "letters",
                AnswerError::Truncated => "truncated",
                AnswerError::Malformed => "malformed",
                AnswerError::Failed(_) => "failed",
                AnswerError::TooLong => "too long",
            }]);
        }
    };
    assert!(read.ttl <= Duration::from_secs(86_400));
    let outcome = match &read.content {
        Content::Addresses(addresses) => {
            assert!(!addresses.is_empty() && addresses.len() <= upstream::ADDRESSES_LIMIT);
            "addresses"
        }
        Content::Records(records) => {
            let young = records.aged(Duration::ZERO, u32::MAX);
            let old = records.aged(Duration::from_secs(1), 30);
            assert_eq!(young.bytes.len(), old.bytes.len());
            "records"
        }
    };
    let absent = (!read.exists).then_some("no such name");
    absent.into_iter().chain([outcome]).collect()
}
