//! Two agents with a relay between them that does what a test wants with the frames it passes on.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use sealock_proto::stream::{Decoder, Frame};
use sealock_proto::wire::Message;
use tokio::time::Instant;

use super::*;
use crate::identity::testing::TestCa;
use crate::stream::door::Doors;
use crate::task::Scope;
use crate::tls;
use crate::transport::{Connection, Endpoint, RecvHalf, SendHalf, Settings, TransportKeys};

const PATIENCE: Duration = Duration::from_secs(10);

/// An agent's connection to the relay, as both ends hold it.
async fn session(ca: &TestCa, relay: &Endpoint, agent: &str) -> (Connection, Connection) {
    let address = relay.local_addr().expect("bound");
    let deadline = Instant::now() + PATIENCE;
    let dial = async {
        let endpoint = Endpoint::client(Settings::default()).expect("a socket");
        let tls = tls::relay_client(&ca.identity(agent), &ca.trust_store());
        endpoint
            .connect(address, tls, deadline)
            .await
            .expect("connected")
    };
    let welcome = async {
        let incoming = relay.accept().await.expect("somebody");
        incoming.handshake(deadline).await.expect("welcomed")
    };
    tokio::join!(dial, welcome)
}

/// Passes chunks on, unseen.
async fn pass(mut from: RecvHalf, mut to: SendHalf) {
    while let Ok(Some(chunk)) = from.read_chunk(64 * 1024).await {
        if to.write(chunk).await.is_err() {
            return;
        }
    }
}

/// What a relay makes of some bytes at an offset. Told are also how many came before.
type Change = fn(u64, Bytes, u64) -> Vec<Frame>;

/// Passes frames on, payload as `change` makes it; after an end that it made up, nothing.
async fn tamper(mut from: RecvHalf, mut to: SendHalf, change: Change) {
    let (mut decoder, mut before) = (Decoder::new(), 0);
    while let Ok(Some(chunk)) = from.read_chunk(64 * 1024).await {
        decoder.push(chunk);
        while let Ok(Some(frame)) = decoder.next() {
            let frames = if let Frame::Data { offset, bytes } = frame {
                let length = bytes.len() as u64;
                let frames = change(offset, bytes, before);
                before += length;
                frames
            } else {
                vec![frame]
            };
            for frame in frames {
                let made_up = matches!(frame, Frame::Fin { .. });
                let encoded = frame.encode();
                let header = Bytes::copy_from_slice(encoded.header.as_ref());
                let payload = encoded.payload.unwrap_or_default();
                if to.write(header).await.is_err() || to.write(payload).await.is_err() {
                    return;
                }
                if made_up {
                    // A true end comes last too, so nothing that matters is held back.
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}

/// What the provider reads of 256 KiB that the caller sends, when the relay changes frames on the way.
async fn heard_through(change: Change) -> (usize, Result<(), Reason>) {
    let ca = TestCa::new("sealock");
    let scope = Scope::new("test");
    let listener = tls::relay_listener(&ca.identity("relay/r"), &ca.trust_store());
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let keys = TransportKeys::generate();
    let relay = Endpoint::server(any, listener, Settings::default(), &keys).expect("a port");
    let (caller, caller_leg) = session(&ca, &relay, "default/agent/caller").await;
    let (provider, provider_leg) = session(&ca, &relay, "default/agent/provider").await;
    scope.spawn("relay", async move {
        let mut near = caller_leg.accept_bi().await.expect("a leg");
        let far = provider_leg.open_bi().await.expect("a leg");
        let opened = Message::Opened("provider".parse().expect("a name"));
        near.send.write(opened.encode()).await.expect("told");
        tokio::join!(
            tamper(near.recv, far.send, change),
            pass(far.recv, near.send)
        );
    });
    let stream = StreamId([1; 16]);
    let end = |path: &str| EndToEnd::new(ca.identity(path), ca.trust_store(), scope.spawner());
    let (calling, answering) = (end("default/agent/caller"), end("default/agent/provider"));
    let providers = ["provider"].map(|name| AgentId {
        tenant: "default".parse().expect("a name"),
        name: name.parse().expect("a name"),
    });
    let call = Call {
        stream,
        service: "echo".parse().expect("a name"),
        providers: BTreeSet::from(providers),
        judge: Arc::new(|_| Ok(())),
        legs: None,
        instead_of: Vec::new(),
    };
    let leg = caller.open_bi().await.expect("a leg");
    scope.spawn("caller", async move {
        let early = || Ok(Bytes::new());
        if let Ok((_reader, mut writer)) = calling.call(Leg::lasting(leg), call, early).await {
            // Told apart from the handshake by its place in the stream.
            let _cut = writer.write(Bytes::from(vec![7; 256 * 1024])).await;
            let _cut = writer.finish().await;
            std::future::pending::<()>().await;
        }
    });
    let leg = provider.accept_bi().await.expect("a leg");
    let place = Doors::default().enter(stream, "echo".parse().expect("a name"));
    let leg = Leg::lasting(leg);
    let taken = answering.answer(leg, place.expect("a new id")).await;
    let taken = taken.expect("a caller");
    let (mut reader, _writer) = taken.accept().await.expect("taken");
    let mut length = 0;
    loop {
        match reader.read().await {
            Ok(Some(bytes)) => {
                assert!(
                    bytes.iter().all(|&byte| byte == 7),
                    "an altered byte got through"
                );
                assert!(bytes.len() <= 64 * 1024, "held back: {}", bytes.len());
                length += bytes.len();
            }
            Ok(None) => return (length, Ok(())),
            Err(reason) => return (length, Err(reason)),
        }
    }
}

/// Where in the stream the application's bytes surely go: behind both flights of the handshake.
const MIDDLE: u64 = 100_000;

#[tokio::test]
async fn what_nobody_touches_arrives_whole_and_ends_cleanly() {
    let untouched: Change = |offset, bytes, _| vec![Frame::Data { offset, bytes }];
    assert_eq!(heard_through(untouched).await, (256 * 1024, Ok(())));
}

// Issue 3, bad input: offsets that are repeated or overlap give no byte twice.
#[tokio::test]
async fn bytes_that_are_sent_again_in_whole_or_in_part_are_taken_once() {
    let again: Change = |offset, bytes, _| {
        let half = bytes.len() / 2;
        let whole = Frame::Data {
            offset,
            bytes: bytes.clone(),
        };
        let start = Frame::Data {
            offset,
            bytes: bytes.slice(..half),
        };
        let rest = Frame::Data {
            offset: offset + half as u64,
            bytes: bytes.slice(half..),
        };
        vec![start.clone(), whole.clone(), rest, whole, start]
    };
    assert_eq!(heard_through(again).await, (256 * 1024, Ok(())));
}

// S03, F47: an altered byte is found by decryption and never reaches the application.
#[tokio::test]
async fn an_altered_byte_ends_the_stream_as_integrity() {
    let (length, outcome) = heard_through(|offset, bytes, before| {
        let mut altered = bytes.to_vec();
        if before < MIDDLE && before + bytes.len() as u64 >= MIDDLE {
            altered[0] ^= 1;
        }
        let bytes = altered.into();
        vec![Frame::Data { offset, bytes }]
    })
    .await;
    assert!(length < 256 * 1024);
    assert_eq!(outcome, Err(Reason::Integrity));
}

// Lesson 03: an end that the relay makes up lacks the mark inside the encryption.
#[tokio::test]
async fn an_end_that_the_relay_makes_up_is_a_truncation() {
    let (length, outcome) = heard_through(|offset, bytes, before| {
        vec![if before < MIDDLE {
            Frame::Data { offset, bytes }
        } else {
            Frame::Fin { offset }
        }]
    })
    .await;
    assert!(length < 256 * 1024);
    assert_eq!(outcome, Err(Reason::Truncated));
}
