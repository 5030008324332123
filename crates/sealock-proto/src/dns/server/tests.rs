//! Questions and answers as they stand on the wire, against a tenant of two services and the rules of a test.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::vip::Vips;
use super::super::wire::{Header, Question, RawRecord, Reader, encoded};
use super::super::{origin, upstream};
use super::*;

/// A tenant with two services, of which one may be opened; names below `example` are allowed.
struct Test(Vips, Instant);

impl Test {
    fn new(now: Instant) -> Self {
        let names = ["web", "db.staging"].map(|name| name.parse().expect("a name"));
        let mut vips = Vips::new("default".parse().expect("a name"));
        vips.assign(now, &BTreeSet::from(names));
        Self(vips, now)
    }
}

impl World for Test {
    fn allows_service(&self, name: &ServiceName) -> bool {
        name.as_str() != "db.staging" && name.as_str() != "secret"
    }
    fn find(&self, name: &ServiceName) -> Found {
        self.0.find(self.1, name)
    }
    fn service_at(&self, address: IpAddr) -> Option<ServiceName> {
        self.0.service_at(self.1, address).cloned()
    }
    fn allows_name(&self, name: &HostName) -> bool {
        name.as_str().ends_with(".example") || name.as_str().ends_with(".corp")
    }
    fn allows_address(&self, _: &HostName, address: IpAddr) -> bool {
        !address.is_loopback()
    }
}

fn server(naming: Naming) -> Server {
    let settings = Settings {
        zone: ZONE.parse().expect("a name"),
        naming,
        split: ["corp", "deep.corp"]
            .map(|zone| zone.parse().expect("a name"))
            .to_vec(),
    };
    Server::new(settings, Book::new(3))
}

/// A question as stub resolvers send it, with EDNS.
fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut message = upstream::ask(
        7,
        &Question {
            name: labels(name),
            kind,
            class: 1,
        },
    );
    message[3] |= 0x10; // checking disabled, which is repeated
    message
}

fn labels(name: &str) -> Vec<u8> {
    let labels = name.split('.').filter(|label| !label.is_empty());
    let mut bytes: Vec<u8> = labels
        .flat_map(|label| {
            [
                &[u8::try_from(label.len()).expect("short")],
                label.as_bytes(),
            ]
            .concat()
        })
        .collect();
    bytes.push(0);
    bytes
}

/// A reply, read: the code, records as `name ttl type data`, and the number of an extended error.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    code: u8,
    answers: Vec<String>,
    authority: usize,
    cause: Option<u16>,
    is_cut: bool,
    is_ours: bool,
}

fn shown(message: &[u8], record: &RawRecord<'_>) -> String {
    let data = match record.data.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(record.data).expect("four")).to_string(),
        16 if record.kind == kind::AAAA => {
            IpAddr::from(<[u8; 16]>::try_from(record.data).expect("16")).to_string()
        }
        _ if record.kind == kind::PTR => {
            wire::text(&Reader::at(message, record.data_at).name().expect("a name"))
        }
        length => format!("{length} bytes"),
    };
    format!(
        "{} {} {} {data}",
        wire::text(&record.owner),
        record.ttl,
        record.kind
    )
}

fn told(message: &[u8]) -> Told {
    let mut reader = Reader::new(message);
    let header = Header::read(&mut reader).expect("a header");
    assert!(header.is_answer);
    if header.counts[0] == 1 {
        reader.question().expect("the question");
    }
    let mut section = |count: u16| {
        (0..count)
            .map(|_| reader.record().expect("a record"))
            .collect::<Vec<_>>()
    };
    let [_, answers, authority, additional] = header.counts;
    let (answers, authority, additional) =
        (section(answers), section(authority), section(additional));
    assert_eq!(
        reader.place(),
        message.len(),
        "nothing behind the last record"
    );
    let cause = additional
        .iter()
        .find(|record| record.kind == kind::OPT && record.data.len() >= 6);
    let upper = additional
        .iter()
        .map(|record| record.ttl >> 24)
        .max()
        .unwrap_or_default();
    Told {
        code: header.code | u8::try_from(upper << 4).expect("small"),
        answers: answers
            .iter()
            .map(|record| shown(message, record))
            .collect(),
        authority: authority.len(),
        cause: cause.map(|record| u16::from_be_bytes([record.data[4], record.data[5]])),
        is_cut: header.is_truncated,
        is_ours: message[2] & 4 != 0,
    }
}

fn reply(server: &mut Server, now: Instant, message: &[u8]) -> Vec<u8> {
    match server.handle_query(now, Over::Udp, message, &Test::new(now)) {
        Outcome::Reply(reply) => reply,
        other @ (Outcome::Forward(_) | Outcome::Nothing) => panic!("no reply: {other:?}"),
    }
}

fn ask(server: &mut Server, name: &str, kind: u16) -> Told {
    told(&reply(server, origin(), &query(name, kind)))
}

fn records(answers: &[&str]) -> Vec<String> {
    answers.iter().map(|&text| text.to_owned()).collect()
}

#[test]
fn services_have_addresses_and_what_they_do_not_have_is_empty() {
    let mut server = server(Naming::Synthetic);
    let web = ask(&mut server, "web.sealock.internal", kind::A);
    assert_eq!(
        web.answers,
        records(&["web.sealock.internal. 30 1 100.72.69.17"])
    );
    assert!(web.is_ours && web.code == 0 && web.authority == 0);
    let web = ask(&mut server, "WEB.Sealock.internal", kind::AAAA);
    let v6 = "WEB.Sealock.internal. 30 28 fdcd:bcff:8e04:0:aaf4:a907:a43:b5a6";
    assert_eq!(web.answers, records(&[v6]));
    for (name, kind) in [
        ("web.sealock.internal", 16),
        ("web.sealock.internal", kind::HTTPS),
        ("staging.sealock.internal", kind::A), // a service lies below it
        ("sealock.internal", kind::AAAA),
    ] {
        let empty = ask(&mut server, name, kind);
        assert_eq!(
            (empty.code, empty.answers.len(), empty.authority),
            (0, 0, 1),
            "{name}"
        );
    }
    let nobody = ask(&mut server, "nobody.sealock.internal", kind::A);
    assert_eq!((nobody.code, nobody.authority), (3, 1));
    assert_eq!(
        ask(&mut server, "sealock.internal", kind::SOA)
            .answers
            .len(),
        1
    );
}

// Which services there are that it may not open, a workload cannot find out.
#[test]
fn a_forbidden_service_looks_the_same_whether_it_exists() {
    let mut server = server(Naming::Synthetic);
    let there = ask(&mut server, "db.staging.sealock.internal", kind::A);
    assert_eq!((there.code, there.cause), (5, Some(15)));
    assert_eq!(there, ask(&mut server, "secret.sealock.internal", kind::A));
}

#[test]
fn names_outside_policy_are_refused_and_told_why() {
    let mut server = server(Naming::Synthetic);
    for name in ["evil.test", "a.b.c.evil.test", "example.evil.test", "."] {
        let refused = ask(&mut server, name, kind::A);
        assert_eq!((refused.code, refused.cause), (5, Some(15)), "{name}");
        assert!(refused.answers.is_empty());
    }
    let odd = reply(
        &mut server,
        origin(),
        &upstream::ask(
            1,
            &Question {
                name: b"\x05a.b\0c\x07example\0".to_vec(),
                kind: 1,
                class: 1,
            },
        ),
    );
    assert_eq!(told(&odd).code, 5, "bytes that no host name has");
}

#[test]
fn a_synthetic_address_leads_back_to_its_name() {
    let mut server = server(Naming::Synthetic);
    let now = origin();
    let a = ask(&mut server, "a.example", kind::A);
    assert_eq!(a.answers, records(&["a.example. 60 1 198.18.0.1"]));
    let aaaa = ask(&mut server, "A.example", kind::AAAA);
    assert_eq!(
        aaaa.answers,
        records(&["A.example. 60 28 fdcd:bcff:8e04:1::1"])
    );
    let names = server.book().names(now, [198, 18, 0, 1].into());
    assert_eq!(names, ["a.example".parse().expect("a name")]);
    let back = ask(&mut server, "1.0.18.198.in-addr.arpa", kind::PTR);
    assert_eq!(
        back.answers,
        records(&["1.0.18.198.in-addr.arpa. 30 12 a.example."])
    );
    let nibbles = format!(
        "1.{}1.0.0.0.4.0.e.8.f.f.c.b.d.c.d.f.ip6.arpa",
        "0.".repeat(15)
    );
    assert_eq!(ask(&mut server, &nibbles, kind::PTR).answers.len(), 1);
    assert_eq!(
        ask(&mut server, "2.0.18.198.in-addr.arpa", kind::PTR).code,
        3
    );
    assert_eq!(
        ask(&mut server, "17.69.72.100.in-addr.arpa", kind::PTR).answers,
        records(&["17.69.72.100.in-addr.arpa. 30 12 web.sealock.internal."])
    );
    assert_eq!(
        ask(&mut server, "17.69.72.100.in-addr.arpa", kind::A).code,
        0
    );
    assert_eq!(ask(&mut server, "8.8.8.8.in-addr.arpa", kind::PTR).code, 5);
    // Keys of encrypted hellos and other addresses stay away.
    let https = ask(&mut server, "a.example", kind::HTTPS);
    assert_eq!((https.code, https.answers.len()), (0, 0));
    assert_eq!(
        ask(&mut server, "localhost", kind::A).answers,
        records(&["localhost. 30 1 127.0.0.1"])
    );
}

#[test]
fn without_a_place_left_the_failure_has_its_reason() {
    let mut server = server(Naming::Synthetic);
    for name in ["a.example", "b.example", "c.example"] {
        assert_eq!(ask(&mut server, name, kind::A).code, 0);
    }
    let full = ask(&mut server, "d.example", kind::A);
    assert_eq!((full.code, full.cause), (2, Some(0)));
    assert_eq!(ask(&mut server, "a.example", kind::A).code, 0);
}

#[test]
fn what_is_no_question_is_answered_as_the_standards_say() {
    let mut server = server(Naming::Synthetic);
    let now = origin();
    let good = query("a.example", kind::A);
    let version = {
        let mut m = good.clone();
        let at = m.len() - 5;
        m[at] = 1;
        m
    };
    assert_eq!(told(&reply(&mut server, now, &version)).code, 16, "BADVERS");
    let opcode = {
        let mut m = good.clone();
        m[2] |= 5 << 3;
        m
    };
    let update = reply(&mut server, now, &opcode);
    assert_eq!((told(&update).code, update[2] >> 3 & 0xf), (4, 5));
    assert_eq!(ask(&mut server, "a.example", 255).code, 4, "ANY");
    assert_eq!(ask(&mut server, "a.example", 252).code, 4, "AXFR");
    for (at, byte) in [(5, 0), (5, 2), (12, 0xff), (12, 0x40), (11, 0)] {
        let mut broken = good.clone();
        broken[at] = byte;
        if at == 11 {
            broken[11] = 200; // records that are not there
        }
        assert_eq!(told(&reply(&mut server, now, &broken)).code, 1, "byte {at}");
    }
    let twice = {
        let mut m = good.clone();
        m[11] = 2;
        let opt = m[m.len() - 11..].to_vec();
        [m, opt].concat()
    };
    assert_eq!(
        told(&reply(&mut server, now, &twice)).code,
        1,
        "two OPT records"
    );
    let answer = {
        let mut m = good.clone();
        m[2] |= 0x80;
        m
    };
    for silent in [&answer[..], &good[..5], b""] {
        let outcome = server.handle_query(now, Over::Udp, silent, &Test::new(now));
        assert!(matches!(outcome, Outcome::Nothing));
    }
    let chaos = {
        let mut m = good.clone();
        let at = 12 + labels("a.example").len() + 3;
        m[at] = 3;
        m
    };
    assert_eq!(told(&reply(&mut server, now, &chaos)).code, 5);
    // Without EDNS in the question there is none in the reply.
    let plain = {
        let mut m = query("evil.test", kind::A);
        m.truncate(m.len() - 11);
        m[11] = 0;
        m
    };
    assert_eq!(told(&reply(&mut server, now, &plain)).cause, None);
}

/// A record of an upstream: owner, type, time to live, data.
type Given = (Vec<u8>, u16, u32, Vec<u8>);

/// An answer of an upstream: the question, then these records as (owner, kind, ttl, data).
fn answer_of(id: u16, asked: &Question, code: u8, sections: [&[Given]; 2]) -> Vec<u8> {
    let mut message = [&id.to_be_bytes()[..], &[0x81, 0x80 | code, 0, 1]].concat();
    for section in sections {
        message.extend_from_slice(&u16::try_from(section.len()).expect("few").to_be_bytes());
    }
    message.extend_from_slice(&[0, 0]);
    message.extend_from_slice(&asked.encode());
    for (owner, kind, ttl, data) in sections.into_iter().flatten() {
        message.extend_from_slice(owner);
        message.extend_from_slice(&kind.to_be_bytes());
        message.extend_from_slice(&[0, 1]);
        message.extend_from_slice(&ttl.to_be_bytes());
        message.extend_from_slice(&u16::try_from(data.len()).expect("short").to_be_bytes());
        message.extend_from_slice(data);
    }
    message
}

fn forwarded(server: &mut Server, now: Instant, name: &str, kind: u16) -> Box<Pending> {
    match server.handle_query(now, Over::Udp, &query(name, kind), &Test::new(now)) {
        Outcome::Forward(pending) => pending,
        other @ (Outcome::Reply(_) | Outcome::Nothing) => panic!("not forwarded: {other:?}"),
    }
}

fn asked(name: &str, kind: u16) -> Question {
    Question {
        name: labels(name),
        kind,
        class: 1,
    }
}

const ASKED: [u8; 2] = [0xc0, 0x0c];

#[test]
fn real_addresses_pass_with_the_age_of_their_answer() {
    let (mut server, now) = (server(Naming::Real), origin());
    let pending = forwarded(&mut server, now, "a.EXAMPLE", kind::A);
    let alias = (ASKED.to_vec(), kind::CNAME, 100, labels("b.other.test"));
    let address = |last| (labels("B.other.test"), kind::A, 50, vec![192, 0, 2, last]);
    let message = answer_of(
        9,
        &asked("a.EXAMPLE", kind::A),
        0,
        [&[address(1), alias, address(2)], &[]],
    );
    let answer = upstream::read(&message, 9, &asked("a.EXAMPLE", kind::A)).expect("an answer");
    assert_eq!(answer.ttl, Duration::from_secs(50));
    let age = Duration::from_secs(20);
    let reply =
        told(&server.handle_answer(now, &pending, Asked::Answer(&answer, age), &Test::new(now)));
    assert_eq!(
        reply.answers,
        records(&["a.EXAMPLE. 30 1 192.0.2.1", "a.EXAMPLE. 30 1 192.0.2.2"])
    );
    let name: HostName = "a.example".parse().expect("a name");
    assert_eq!(server.book().names(now, [192, 0, 2, 2].into()), [name]);
    let stale = told(&server.handle_answer(now, &pending, Asked::Stale(&answer), &Test::new(now)));
    assert_eq!((stale.code, stale.cause), (0, Some(3)));
    assert!(stale.answers[0].contains(" 30 "));
    let silent = told(&server.handle_answer(now, &pending, Asked::Silent, &Test::new(now)));
    assert_eq!((silent.code, silent.cause), (2, Some(22)));
    let failed = told(&server.handle_answer(now, &pending, Asked::Failed, &Test::new(now)));
    assert_eq!((failed.code, failed.cause), (2, Some(23)));
}

// S24: a public name that leads inside is no name at all, however the address is mixed with others.
#[test]
fn an_answer_that_leads_inside_is_refused_whole() {
    let now = origin();
    for inside in [[127, 0, 0, 1], [100, 72, 69, 17], [198, 18, 0, 1]] {
        for naming in [Naming::Real, Naming::Checked] {
            let mut server = server(naming);
            let pending = forwarded(&mut server, now, "a.example", kind::A);
            let records =
                [[192, 0, 2, 1], inside].map(|a| (ASKED.to_vec(), kind::A, 0, a.to_vec()));
            let message = answer_of(9, &asked("a.example", kind::A), 0, [&records, &[]]);
            let answer =
                upstream::read(&message, 9, &asked("a.example", kind::A)).expect("an answer");
            let reply = told(&server.handle_answer(
                now,
                &pending,
                Asked::Answer(&answer, Duration::ZERO),
                &Test::new(now),
            ));
            assert_eq!(
                (reply.code, reply.cause, reply.answers.len()),
                (5, Some(15), 0)
            );
            assert!(server.book().names(now, [192, 0, 2, 1].into()).is_empty());
        }
    }
}

#[test]
fn a_checked_name_gets_an_address_of_ours_when_it_exists() {
    let (mut server, now) = (server(Naming::Checked), origin());
    let pending = forwarded(&mut server, now, "a.example", kind::A);
    let record = (ASKED.to_vec(), kind::A, 5, vec![192, 0, 2, 1]);
    let message = answer_of(9, &asked("a.example", kind::A), 0, [&[record], &[]]);
    let answer = upstream::read(&message, 9, &asked("a.example", kind::A)).expect("an answer");
    let there = told(&server.handle_answer(
        now,
        &pending,
        Asked::Answer(&answer, Duration::ZERO),
        &Test::new(now),
    ));
    assert_eq!(there.answers, records(&["a.example. 60 1 198.18.0.1"]));
    let soa = (
        labels("example"),
        kind::SOA,
        600,
        [&[0, 0][..], &[0; 19], &[60]].concat(),
    );
    let message = answer_of(9, &asked("a.example", kind::A), 3, [&[], &[soa]]);
    let answer = upstream::read(&message, 9, &asked("a.example", kind::A)).expect("an answer");
    assert_eq!(
        answer.ttl,
        Duration::from_secs(60),
        "the zone's word for emptiness"
    );
    let absent = told(&server.handle_answer(
        now,
        &pending,
        Asked::Answer(&answer, Duration::from_secs(10)),
        &Test::new(now),
    ));
    assert_eq!(
        (absent.code, absent.answers.len(), absent.authority),
        (3, 0, 1)
    );
}

#[test]
fn the_longest_zone_decides_which_upstreams_know() {
    let (mut server, now) = (server(Naming::Real), origin());
    for (name, upstreams) in [
        ("a.example", 0),
        ("corp", 1),
        ("a.corp", 1),
        ("x.deep.corp", 2),
        ("deep.corp", 2),
    ] {
        if name != "corp" {
            assert_eq!(
                forwarded(&mut server, now, name, kind::A).upstreams,
                upstreams,
                "{name}"
            );
        }
    }
    assert_eq!(
        forwarded(&mut server, now, "xcorp.example", 16).upstreams,
        0
    );
}

#[test]
fn an_answer_that_does_not_fit_is_cut_and_comes_whole_over_tcp() {
    let now = origin();
    let text = (ASKED.to_vec(), 16, 60, [&[255][..], &[b'x'; 255]].concat());
    let many = vec![text; 8];
    let message = answer_of(9, &asked("a.example", 16), 0, [&many, &[]]);
    let answer = upstream::read(&message, 9, &asked("a.example", 16)).expect("an answer");
    for (over, is_cut, count) in [(Over::Udp, true, 0), (Over::Tcp, false, 8)] {
        let mut server = server(Naming::Real);
        let Outcome::Forward(pending) =
            server.handle_query(now, over, &query("a.example", 16), &Test::new(now))
        else {
            panic!("not forwarded");
        };
        let bytes = server.handle_answer(
            now,
            &pending,
            Asked::Answer(&answer, Duration::from_secs(45)),
            &Test::new(now),
        );
        let reply = told(&bytes);
        assert_eq!((reply.is_cut, reply.answers.len()), (is_cut, count));
        assert!(over == Over::Tcp || bytes.len() < 512);
        assert!(
            reply
                .answers
                .iter()
                .all(|record| record.starts_with("a.example. 15 16"))
        );
    }
}

// F42, lessons «DNS»: an answer with a thousand records, one that runs in circles, one of an impostor.
#[test]
fn hostile_answers_are_bounded_or_refused() {
    let ask_a = asked("a.example", kind::A);
    let many: Vec<_> = (0..1_000_u16)
        .map(|n| {
            (
                ASKED.to_vec(),
                kind::A,
                0x8000_0001,
                [&[192, 0], &n.to_be_bytes()[..]].concat(),
            )
        })
        .collect();
    let answer =
        upstream::read(&answer_of(9, &ask_a, 0, [&many, &[]]), 9, &ask_a).expect("an answer");
    assert_eq!(
        answer.ttl,
        Duration::ZERO,
        "a time to live with the highest bit"
    );
    assert!(
        matches!(&answer.content, Content::Addresses(a) if a.len() == upstream::ADDRESSES_LIMIT)
    );

    let read = |message: &[u8]| upstream::read(message, 9, &ask_a).expect_err("no answer");
    let alias = |from: &str, to: &str| (labels(from), kind::CNAME, 60, labels(to));
    let circle = [
        alias("a.example", "b.example"),
        alias("b.example", "a.example"),
    ];
    assert_eq!(
        read(&answer_of(9, &ask_a, 0, [&circle, &[]])),
        upstream::AnswerError::Malformed
    );
    let mut pointer = answer_of(
        9,
        &ask_a,
        0,
        [&[(vec![0xc0, 0x1b], kind::A, 60, vec![192, 0, 2, 1])], &[]],
    );
    assert_eq!(
        read(&pointer),
        upstream::AnswerError::Malformed,
        "a pointer to itself"
    );
    pointer.truncate(20);
    assert_eq!(read(&pointer), upstream::AnswerError::Foreign);
    let short = (ASKED.to_vec(), kind::A, 60, vec![192, 0, 2]);
    assert_eq!(
        read(&answer_of(9, &ask_a, 0, [&[short], &[]])),
        upstream::AnswerError::Malformed
    );
    assert_eq!(
        read(&answer_of(8, &ask_a, 0, [&[], &[]])),
        upstream::AnswerError::Foreign
    );
    let other = answer_of(9, &asked("b.example", kind::A), 0, [&[], &[]]);
    assert_eq!(read(&other), upstream::AnswerError::Foreign);
    let letters = answer_of(9, &asked("A.example", kind::A), 0, [&[], &[]]);
    assert_eq!(read(&letters), upstream::AnswerError::Letters);
    assert_eq!(
        read(&answer_of(9, &ask_a, 2, [&[], &[]])),
        upstream::AnswerError::Failed(2)
    );
    let cut = {
        let mut m = answer_of(9, &ask_a, 0, [&[], &[]]);
        m[2] |= 2;
        m
    };
    assert_eq!(read(&cut), upstream::AnswerError::Truncated);
}

#[test]
fn drawn_letters_change_nothing_but_their_case() {
    let plain = Question::of(&"ab-c1.example".parse().expect("a name"), kind::A);
    assert_eq!(upstream::scrambled(&plain, 0), plain);
    let upper = upstream::scrambled(&plain, u64::MAX);
    assert_eq!(upper.name, b"\x05AB-C1\x07EXAMPLE\0");
    assert_eq!(upper.host(), plain.host());
    assert_eq!(
        encoded(&"ab-c1.example".parse().expect("a name")),
        plain.name
    );
}

proptest! {
    #[test]
    fn any_bytes_get_a_reply_that_can_be_read_or_none(bytes in prop::collection::vec(any::<u8>(), 0..80), flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4)) {
        let now = origin();
        let mut near = query("web.sealock.internal", kind::A);
        for (at, byte) in flips {
            let at = at.index(near.len());
            near[at] = byte;
        }
        for message in [bytes, near] {
            let mut server = server(Naming::Synthetic);
            if let Outcome::Reply(reply) = server.handle_query(now, Over::Udp, &message, &Test::new(now)) {
                prop_assert_eq!(&reply[..2], &message[..2]);
                told(&reply);
            }
        }
    }
}
