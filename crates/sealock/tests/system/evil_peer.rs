//! An agent with a valid certificate that breaks the protocol between agents: the other side ends with a reason, holds
//! no memory for it, and serves others meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::{Bytes, BytesMut};
use sealock_core::reason::Reason;
use sealock_net::e2e::EndToEnd;
use sealock_net::message;
use sealock_net::stream::Leg;
use sealock_net::task::Scope;
use sealock_net::transport::ReadError;
use sealock_proto::stream::{Ack, Attach, Epoch, Frame};
use sealock_proto::wire::{Message, Open, Services, SessionKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::audited::rows;
use crate::deployment::{READY, address, any_port, echo_between, exchange, expose_echo};
use crate::world::{World, call, until};

fn bytes_of(frames: impl IntoIterator<Item = Frame>) -> Bytes {
    let mut bytes = BytesMut::new();
    for frame in frames {
        let encoded = frame.encode();
        bytes.extend_from_slice(encoded.header.as_ref());
        bytes.extend_from_slice(encoded.payload.as_deref().unwrap_or_default());
    }
    bytes.freeze()
}

fn attach() -> Frame {
    attach_at(0, 0)
}

fn attach_at(received: u64, delivered: u64) -> Frame {
    Frame::Attach(Attach {
        epoch: Epoch::FIRST,
        received,
        delivered,
        limit: 1 << 20,
        end_delivered: false,
        proof: None,
    })
}

/// The largest number that a frame can carry.
const MOST: u64 = (1 << 62) - 1;

fn later() -> Frame {
    Frame::Attach(Attach {
        epoch: Epoch(2),
        received: 0,
        delivered: 0,
        limit: 1 << 20,
        end_delivered: false,
        proof: None,
    })
}

fn data(offset: u64, length: usize) -> Frame {
    let bytes = vec![7; length].into();
    Frame::Data { offset, bytes }
}

fn ack(delivered: u64, limit: u64) -> Frame {
    Frame::Ack(Ack {
        delivered,
        limit,
        end_delivered: false,
    })
}

/// What no honest side sends first on a leg.
fn bad_beginnings() -> Vec<(&'static str, Bytes)> {
    let giant = [
        &bytes_of([attach()])[..],
        &[0x02, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    ]
    .concat();
    vec![
        ("garbage", Bytes::from(vec![0xff; 100])),
        ("data before ATTACH", bytes_of([data(0, 10)])),
        (
            "an acknowledgement of what was never sent",
            bytes_of([attach(), ack(1 << 30, 1 << 31)]),
        ),
        (
            "an acknowledgement of all that a number can say",
            bytes_of([attach(), ack(MOST, MOST)]),
        ),
        (
            "less acknowledged than before",
            bytes_of([attach_at(1, 1), ack(0, 1 << 20)]),
        ),
        ("more read than received", bytes_of([attach_at(0, 1)])),
        (
            "more received than was ever sent",
            bytes_of([attach_at(MOST, 0)]),
        ),
        (
            "data at the end of all numbers",
            bytes_of([attach(), data(MOST - 10, 10)]),
        ),
        (
            "an end beyond what came",
            bytes_of([attach(), Frame::Fin { offset: MOST }]),
        ),
        (
            "an acknowledged end that nobody made",
            bytes_of([
                attach(),
                Frame::Ack(Ack {
                    delivered: 0,
                    limit: 1 << 20,
                    end_delivered: true,
                }),
            ]),
        ),
        (
            "a later epoch on the first leg, without a proof",
            bytes_of([attach(), later()]),
        ),
        ("a limit that goes back", bytes_of([attach(), ack(0, 1)])),
        ("a gap", bytes_of([attach(), data(10, 10)])),
        (
            "data beyond the limit",
            bytes_of([attach(), data(1 << 20, 10)]),
        ),
        ("a second ATTACH", bytes_of([attach(), attach()])),
        (
            "data behind the end",
            bytes_of([attach(), Frame::Fin { offset: 0 }, data(0, 10)]),
        ),
        (
            "an end that moves",
            bytes_of([attach(), Frame::Fin { offset: 5 }, Frame::Fin { offset: 9 }]),
        ),
        (
            "a verdict before the end",
            bytes_of([
                attach(),
                Frame::Closed {
                    verdict: Reason::Done,
                },
            ]),
        ),
        ("a giant length", giant.into()),
    ]
}

/// Reads until the other side ends the leg; says how, and how much it had to say.
async fn ended(leg: &mut sealock_net::transport::BiStream) -> Result<(Option<Reason>, usize)> {
    let mut length = 0;
    let reading = async {
        loop {
            match leg.recv.read_chunk(64 * 1024).await {
                Ok(Some(chunk)) => length += chunk.len(),
                Ok(None) => return None,
                Err(ReadError::Reset(reason)) => return Some(reason),
                Err(other) => return Some(other.reason()),
            }
        }
    };
    let reason = tokio::time::timeout(Duration::from_secs(14), reading)
        .await
        .context("the leg stays open")?;
    Ok((reason, length))
}

// F43, X6, lesson 07: a caller that breaks the stream's protocol loses its stream, and nobody else anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_breaks_the_streams_protocol_loses_its_stream_alone() -> Result<()> {
    let tasks = Scope::new("test");
    let world = World::new()?;
    let relay = world.relay().await?;
    let (provider, caller) = world.pair(relay.listen).await?;
    let listen = echo_between(&provider, &caller, &tasks).await?;
    let mallory = world.connect_as("mallory", relay.listen).await?;
    let _control = mallory.greet(SessionKind::CallerOnly, [1; 16]).await?;
    let mut legs = Vec::new();
    for (what, bytes) in bad_beginnings() {
        let (answer, mut leg) = mallory.open("echo").await?;
        ensure!(matches!(answer, Message::Opened(_)), "{what}: {answer:?}");
        let _may_be_cut = leg.send.write(bytes).await;
        legs.push((what, leg));
    }
    ensure!(exchange(listen, b"honest").await? == b"honest");
    let endings = legs.iter_mut().map(|(what, leg)| async move {
        let (reason, length) = ended(leg).await.context(*what)?;
        ensure!(length < 4_096, "{what}: {length} bytes came back");
        anyhow::Ok((*what, reason))
    });
    let endings = futures_util::future::join_all(endings).await;
    for ending in endings {
        let (what, reason) = ending?;
        assert_eq!(reason, Some(Reason::ProtocolViolation), "{what}");
    }
    let rows = rows(provider.audit(), "mallory", legs.len()).await?;
    for row in rows {
        assert_eq!(row.reason, Reason::ProtocolViolation);
    }
    drop(legs);
    until("the relay forgets them", READY, || relay.live.is_empty()).await?;
    Ok(())
}

// F43, X6: a provider that breaks it costs the caller one flow, which ends with a reason and in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_breaks_the_streams_protocol_is_told_from_a_clean_end() -> Result<()> {
    let world = World::new()?;
    let relay = world.relay().await?;
    let caller = world
        .agent("caller", SessionKind::CallerOnly, relay.listen)
        .await?;
    let evil = world.connect_as("provider", relay.listen).await?;
    let mut control = evil.greet(SessionKind::Full, [1; 16]).await?;
    let register = Message::Register(Services {
        sequence: 1,
        names: vec!["echo".parse()?],
    });
    control.send.write(register.encode()).await?;
    message::read(&mut control.recv).await?;
    for (what, bytes) in bad_beginnings() {
        let service = "echo".parse()?;
        let opening = async {
            let began = Instant::now();
            (caller.stdio(service).await, began.elapsed())
        };
        let answering = async {
            let mut leg = evil.connection.accept_bi().await?;
            message::read(&mut leg.recv).await?;
            leg.send
                .write(Message::Opened("provider".parse()?).encode())
                .await?;
            let _may_be_cut = leg.send.write(bytes).await;
            anyhow::Ok(leg)
        };
        let ((reason, took), leg) = tokio::join!(opening, answering);
        drop(leg.context(what)?);
        assert_eq!(reason, Reason::ProtocolViolation, "{what}");
        assert!(took < Duration::from_secs(5), "{what}: {took:?}");
    }
    until("the relay forgets them", READY, || relay.live.is_empty()).await?;
    Ok(())
}

// S20, lesson 04: a stream's number that is live at the provider cannot be taken, and its owner notices nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_number_that_is_live_at_the_provider_is_refused() -> Result<()> {
    let tasks = Scope::new("test");
    let world = World::new()?;
    let relay = world.relay().await?;
    let provider = world
        .agent("provider", SessionKind::Full, relay.listen)
        .await?;
    expose_echo(&provider, &tasks).await?;
    let offered = || {
        relay
            .directory
            .list()
            .iter()
            .any(|one| !one.offers.is_empty())
    };
    until("the provider offers", READY, offered).await?;

    let owner = world.connect_as("caller", relay.listen).await?;
    let _control = owner.greet(SessionKind::CallerOnly, [1; 16]).await?;
    let thief = world.connect_as("mallory", relay.listen).await?;
    let _control_of_thief = thief.greet(SessionKind::CallerOnly, [2; 16]).await?;
    let call = call("echo", &["provider"])?;
    let open = Message::Open(Open {
        stream: call.stream,
        epoch: Epoch::FIRST,
        service: call.service.clone(),
        provider: None,
        conduit: None,
    });
    let mut leg = owner.connection.open_bi().await?;
    leg.send.write(open.encode()).await?;
    let trust = world.ca.trust_store();
    let identity = world.ca.identity("default/agent/caller");
    let end_to_end = EndToEnd::new(identity, trust, tasks.spawner());
    let (mut reader, mut writer) = end_to_end
        .call(Leg::lasting(leg), call, || Ok(Bytes::new()))
        .await?;

    let mut stolen = thief.connection.open_bi().await?;
    stolen.send.write(open.encode()).await?;
    let answer = message::read(&mut stolen.recv).await?;
    assert_eq!(answer, Message::Refused(Reason::StreamInUse));

    writer.write(Bytes::from_static(b"still mine")).await?;
    assert_eq!(
        reader.read().await?,
        Some(Bytes::from_static(b"still mine"))
    );
    writer.finish().await?;
    assert_eq!(reader.read().await?, None);
    Ok(())
}

// F07, lesson «100 aborted downloads wedged a provider»: flows that were aborted leave nothing, anywhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_aborted_flows_leave_nothing_behind() -> Result<()> {
    let tasks = Scope::new("test");
    let world = World::new()?;
    let relay = world.relay().await?;
    let (provider, caller) = world.pair(relay.listen).await?;
    let target = crate::deployment::serve(&tasks, |mut stream: TcpStream| async move {
        let block = vec![5; 64 * 1024];
        while stream.write_all(&block).await.is_ok() {}
    })
    .await?;
    ensure!(provider.expose("echo".parse()?, target, Default::default()));
    let listen = address(&caller.connect("echo".parse()?, &any_port()).await?)?;
    let offered = || {
        relay
            .directory
            .list()
            .iter()
            .any(|one| !one.offers.is_empty())
    };
    until("the provider offers", READY, offered).await?;
    let baseline = (caller.load(), provider.load(), relay.load());
    for n in 0..200 {
        let mut stream = TcpStream::connect(listen).await?;
        if n % 4 != 0 {
            stream.read_exact(&mut [0; 1_000]).await?;
        }
        if n % 2 == 0 {
            sealock_net::socket::reset_on_close(&stream);
        }
    }
    let back = || (caller.load(), provider.load(), relay.load()) == baseline;
    let came_back = until("everything is as before", Duration::from_secs(5), back).await;
    let now = (caller.load(), provider.load(), relay.load());
    came_back.with_context(|| format!("{baseline:?} before, {now:?} after"))?;
    let mut stream = TcpStream::connect(listen).await?;
    stream.read_exact(&mut [0; 1_000]).await?;
    Ok(())
}
