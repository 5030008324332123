//! A resolver that misbehaves as its names say, and what becomes of the questions (F42).

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sealock_proto::dns::server::Naming;
use sealock_proto::dns::wire::{self, Query, Question, kind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use super::tests::desk;
use super::*;
use crate::task::Scope;

/// The resolver; it answers by the first label of a name.
#[derive(Clone)]
pub(super) struct Resolver {
    at: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    asked: HashMap<String, usize>,
    /// From then on it says nothing.
    is_gone: bool,
}

const ASKED: [u8; 2] = [0xc0, 0x0c];

fn record(kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).expect("short");
    [
        &ASKED[..],
        &kind.to_be_bytes(),
        &[0, 1],
        &ttl.to_be_bytes(),
        &length.to_be_bytes(),
        data,
    ]
    .concat()
}

/// An answer with these records of the question's name.
fn answer(query: &Query, flags: [u8; 2], records: &[Vec<u8>]) -> Vec<u8> {
    let count = u16::try_from(records.len()).expect("few").to_be_bytes();
    let head = [
        &query.id.to_be_bytes()[..],
        &flags,
        &[0, 1],
        &count,
        &[0, 0, 0, 0],
    ]
    .concat();
    [head, query.question.encode(), records.concat()].concat()
}

const GOOD: [u8; 2] = [0x81, 0x80];

impl Resolver {
    pub(super) async fn start(scope: &Scope) -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
                .await
                .expect("loopback");
            // Somebody else may have the same number for TCP.
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().expect("bound")).await {
                break (udp, tcp);
            }
        };
        let at = udp.local_addr().expect("bound");
        let resolver = Self {
            at,
            state: Arc::default(),
        };
        let by_udp = resolver.clone();
        scope.spawn("resolver", async move {
            let mut buffer = [0; 4_096];
            loop {
                let Ok((length, client)) = udp.recv_from(&mut buffer).await else {
                    continue;
                };
                for reply in by_udp.replies(&buffer[..length], true) {
                    udp.send_to(&reply, client).await.expect("loopback");
                }
            }
        });
        let by_tcp = resolver.clone();
        scope.spawn("resolver", async move {
            loop {
                let (mut stream, _) = tcp.accept().await.expect("accepted");
                let length = stream.read_u16().await.expect("a question");
                let mut message = vec![0; length.into()];
                stream.read_exact(&mut message).await.expect("a question");
                for reply in by_tcp.replies(&message, false) {
                    let length = u16::try_from(reply.len()).expect("a message");
                    stream.write_u16(length).await.expect("sent");
                    stream.write_all(&reply).await.expect("sent");
                }
            }
        });
        resolver
    }

    pub(super) fn upstreams(&self, scope: &Scope) -> Upstreams {
        Upstreams::new(vec![self.at], Vec::new(), scope.spawner())
    }

    /// How often a name was asked for, over UDP.
    pub(super) fn asked(&self, name: &str) -> usize {
        self.state.lock().asked.get(name).copied().unwrap_or(0)
    }

    fn replies(&self, message: &[u8], is_udp: bool) -> Vec<Vec<u8>> {
        let query = wire::read(message).expect("a question");
        let name = query.question.host().expect("a host");
        let mut state = self.state.lock();
        if is_udp {
            *state.asked.entry(name.as_str().to_owned()).or_default() += 1;
        }
        if state.is_gone {
            return Vec::new();
        }
        let address = record(kind::A, 60, &[192, 0, 2, 1]);
        let good = answer(&query, GOOD, std::slice::from_ref(&address));
        match name.as_str().split('.').next().unwrap_or_default() {
            "text" => vec![answer(
                &query,
                GOOD,
                &[record(16, 60, b"\x10told by the test")],
            )],
            "long" if is_udp => vec![answer(&query, [0x83, 0x80], &[])],
            "long" => vec![answer(
                &query,
                GOOD,
                &vec![record(16, 60, &[&[200][..], &[b'x'; 200]].concat()); 8],
            )],
            "absent" => vec![answer(&query, [0x81, 0x83], &[])],
            "broken" => vec![answer(&query, [0x81, 0x82], &[])],
            "silent" => Vec::new(),
            "brief" => vec![answer(&query, GOOD, &[record(kind::A, 0, &[192, 0, 2, 1])])],
            "inside" => vec![answer(
                &query,
                GOOD,
                &[address, record(kind::A, 0, &[127, 0, 0, 1])],
            )],
            "thousand" => {
                let many = (0..1_000_u16)
                    .map(|n| record(kind::A, 60, &[&[192, 0], &n.to_be_bytes()[..]].concat()));
                vec![answer(&query, GOOD, &many.collect::<Vec<_>>())]
            }
            "circle" => vec![answer(&query, GOOD, &[record(5, 60, &ASKED)])],
            "pointer" => {
                let mut bytes = answer(&query, GOOD, &[address]);
                let at = bytes.len() - 16;
                let target = 0xc000 | u16::try_from(at).expect("short");
                bytes[at..at + 2].copy_from_slice(&target.to_be_bytes());
                vec![bytes]
            }
            "careless" => {
                let lower = Query {
                    question: Question::of(&name, query.question.kind),
                    ..query.clone()
                };
                vec![answer(&lower, GOOD, &[address])]
            }
            // An impostor guesses: other ids and names, in front of the true answer.
            "guessed" if is_udp => {
                let evil = record(kind::A, 60, &[203, 0, 113, 66]);
                let guesses = (1..100).map(|n| {
                    let guess = Query {
                        id: query.id.wrapping_add(n),
                        ..query.clone()
                    };
                    answer(&guess, GOOD, std::slice::from_ref(&evil))
                });
                guesses.chain([good]).collect()
            }
            _ => vec![good],
        }
    }
}

/// The code of the reply, and its addresses.
async fn ask(desk: &Desk, name: &str) -> (u8, Vec<IpAddr>) {
    let name: HostName = name.parse().expect("a name");
    let question = Question::of(&name, kind::A);
    let message = sealock_proto::dns::upstream::ask(7, &question);
    let reply = desk.answer(Over::Udp, &message).await.expect("a reply");
    let read = sealock_proto::dns::upstream::read(&reply, 7, &question);
    let addresses = match read.map(|answer| answer.content) {
        Ok(sealock_proto::dns::upstream::Content::Addresses(addresses)) => addresses,
        Ok(sealock_proto::dns::upstream::Content::Records(_)) | Err(_) => Vec::new(),
    };
    (reply[3] & 0xf, addresses)
}

const TRUE: [IpAddr; 1] = [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))];

// F42
#[tokio::test]
async fn whatever_the_resolver_says_the_workload_hears_the_truth_or_a_clear_no() {
    let scope = Scope::new("test");
    let resolver = Resolver::start(&scope).await;
    let desk = desk(Naming::Real, resolver.upstreams(&scope));
    for (name, code, addresses) in [
        ("good.example", 0, &TRUE[..]),
        ("brief.example", 0, &TRUE),
        ("careless.example", 0, &TRUE),
        ("guessed.example", 0, &TRUE),
        ("absent.example", 3, &[]),
        ("broken.example", 2, &[]),
        ("circle.example", 2, &[]),
        ("pointer.example", 2, &[]),
        ("inside.example", 5, &[]),
        ("other.test", 5, &[]),
    ] {
        let told = ask(&desk, name).await;
        assert_eq!(told, (code, addresses.to_vec()), "{name}");
    }
    assert_eq!(resolver.asked("other.test"), 0, "policy comes first");
    let (code, addresses) = ask(&desk, "thousand.example").await;
    assert_eq!((code, addresses.len()), (0, 32));
}

#[tokio::test]
async fn an_answer_without_a_time_to_live_is_asked_for_each_time_and_a_failure_is_not() {
    let scope = Scope::new("test");
    let resolver = Resolver::start(&scope).await;
    let desk = desk(Naming::Real, resolver.upstreams(&scope));
    for _ in 0..3 {
        assert_eq!(ask(&desk, "brief.example").await.0, 0);
    }
    // More, where this machine stood still and a datagram was sent again.
    assert!(resolver.asked("brief.example") >= 3);
    // Both rounds at the one resolver; the next question comes within the second in which nobody is asked.
    assert_eq!(ask(&desk, "broken.example").await.0, 2);
    let asked = resolver.asked("broken.example");
    let begun = Instant::now();
    assert_eq!(ask(&desk, "broken.example").await.0, 2);
    let is_soon = begun.elapsed() < Duration::from_millis(500);
    assert!(
        !is_soon || resolver.asked("broken.example") == asked,
        "a storm"
    );
}

// The clock is virtual where nobody is waited for, so this takes no five seconds.
#[tokio::test]
async fn when_resolvers_fall_silent_the_old_answer_serves() {
    let scope = Scope::new("test");
    let resolver = Resolver::start(&scope).await;
    let desk = desk(Naming::Real, resolver.upstreams(&scope));
    assert_eq!(ask(&desk, "brief.example").await, (0, TRUE.to_vec()));
    resolver.state.lock().is_gone = true;
    tokio::time::pause();
    assert_eq!(ask(&desk, "brief.example").await, (0, TRUE.to_vec()));
    assert_eq!(ask(&desk, "silent.example").await, (2, Vec::new()));
}
