//! The relay's door and its sessions under strangers and bad agents, while an honest flow goes on beside them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use sealock_agent::AgentHandle;
use sealock_core::identity::{AgentId, Role};
use sealock_core::reason::Reason;
use sealock_net::identity::testing::{Leaf, TestCa};
use sealock_net::message;
use sealock_net::task::Scope;
use sealock_net::tls::alpn;
use sealock_net::transport::{BiStream, ConnectError, Lost};
use sealock_proto::wire::{
    ConduitId, Forward, Header, Incoming, Join, Message, Presence, Present, Salt, Services,
    SessionKind, Voucher, Welcome,
};
use sealock_relay::RelayHandle;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::deployment::{READY, address, echo_between, eventually, exchange};
use crate::world::{Raw, RelayLimits, World, agent_leaf, hello, open, until};

/// An honest provider and caller at a relay, with a flow that goes round for as long as the test lasts.
struct Honest {
    world: World,
    relay: RelayHandle,
    _agents: [AgentHandle; 2],
    listen: SocketAddr,
    stream: TcpStream,
    _tasks: Scope,
}

impl Honest {
    async fn start() -> Result<Self> {
        Self::start_with(RelayLimits::default()).await
    }

    async fn start_with(limits: RelayLimits) -> Result<Self> {
        let (world, tasks) = (World::new()?, Scope::new("test"));
        let relay = world.relay_with(limits).await?;
        let (provider, caller) = world.pair(relay.listen).await?;
        let listen = echo_between(&provider, &caller, &tasks).await?;
        let mut honest = Self {
            world,
            relay,
            _agents: [provider, caller],
            listen,
            stream: TcpStream::connect(listen).await?,
            _tasks: tasks,
        };
        honest.undisturbed().await?;
        Ok(honest)
    }

    /// The flow still carries both ways, and a new one opens too.
    async fn undisturbed(&mut self) -> Result<()> {
        let round = async {
            self.stream.write_all(b"still here").await?;
            let mut answer = [0; 10];
            self.stream.read_exact(&mut answer).await?;
            ensure!(&answer == b"still here", "the honest flow was altered");
            let fresh = exchange(self.listen, b"and a new one").await?;
            ensure!(fresh == b"and a new one", "a new flow was altered");
            Ok(())
        };
        tokio::time::timeout(READY, round)
            .await
            .context("the honest flow hangs")?
    }
}

/// How long the relay may let somebody wait who says nothing; see `WORD_DEADLINE` there.
const PATIENCE: Duration = Duration::from_secs(8);

async fn closed(raw: &Raw) -> Result<Lost> {
    tokio::time::timeout(PATIENCE, raw.connection.closed())
        .await
        .context("the relay keeps the connection")
}

// S09, S10, S11: who comes with the wrong certificate, or none, gets no session and learns why not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_gets_a_session_without_an_agents_valid_certificate() -> Result<()> {
    let mut honest = Honest::start().await?;
    let (world, at) = (&honest.world, honest.relay.listen);
    let good = "spiffe://sealock/default/agent/caller";
    let stranger = TestCa::new("sealock");
    let expired = Leaf {
        from: -7_200,
        until: -3_600,
        ..agent_leaf(&[good])
    };
    let future = Leaf {
        from: 3_600,
        ..agent_leaf(&[good])
    };
    let plain = Leaf {
        names: Vec::new(),
        common_name: Some("caller"),
        ..agent_leaf(&[good])
    };
    let cases = [
        ("expired", &world.ca, expired),
        ("not yet valid", &world.ca, future),
        ("another root", &stranger, agent_leaf(&[good])),
        (
            "another trust domain",
            &world.ca,
            agent_leaf(&["spiffe://other/default/agent/caller"]),
        ),
        (
            "two names, the good one first",
            &world.ca,
            agent_leaf(&[good, "spiffe://sealock/default/agent/mallory"]),
        ),
        (
            "two names, the good one last",
            &world.ca,
            agent_leaf(&["spiffe://sealock/default/agent/mallory", good]),
        ),
        ("a common name only", &world.ca, plain),
        (
            "upper case",
            &world.ca,
            agent_leaf(&["spiffe://sealock/default/agent/CALLER"]),
        ),
        (
            "percent encoding",
            &world.ca,
            agent_leaf(&["spiffe://sealock/default/agent/call%65r"]),
        ),
        (
            "a way up",
            &world.ca,
            agent_leaf(&["spiffe://sealock/x/../default/agent/caller"]),
        ),
    ];
    for (what, ca, leaf) in cases {
        let outcome = Raw::connect(at, world.with_certificate(ca, &leaf)?).await;
        match outcome {
            Err(ConnectError::NotAccepted { .. }) => {}
            Err(other) => anyhow::bail!("{what}: {other}"),
            Ok(_) => anyhow::bail!("{what}: let in"),
        }
    }
    // Relays have a protocol of their own; on an agent's they are nobody.
    for leaf in [
        Leaf::of(Role::Relay, &["spiffe://sealock/relay/relay-1"]),
        agent_leaf(&["spiffe://sealock/relay/relay-1"]),
    ] {
        let reason = match Raw::connect(at, world.with_certificate(&world.ca, &leaf)?).await {
            Ok(relay) => closed(&relay).await?.reason(),
            Err(error) => error.reason(), // the relay was quicker than the end of our handshake
        };
        assert_eq!(reason, Reason::NotAdmitted);
    }
    let nobody = match Raw::connect(at, world.without_certificate(alpn::SESSION)).await {
        Ok(raw) => closed(&raw).await?.reason(),
        Err(error) => error.reason(), // the relay was quicker than the end of our handshake
    };
    assert_eq!(nobody, Reason::NotAdmitted);
    honest.undisturbed().await
}

/// Everything that an agent may say with a name in it, with this one.
pub(crate) fn with_name(service: &str) -> Result<Vec<Message>> {
    let services = Services {
        sequence: 1,
        names: vec![service.parse()?],
    };
    Ok(vec![
        Message::Register(services.clone()),
        Message::Withdraw(services),
        open(service)?,
    ])
}

/// Whether an agent says this with a name in it: a new message has to be put on one of the two sides.
fn is_with_name(message: &Message) -> bool {
    match message {
        Message::Register(_) | Message::Withdraw(_) | Message::Open(_) => true,
        Message::Hello(_)
        | Message::Welcome(_)
        | Message::Registered(_)
        | Message::Drain(_)
        | Message::Bye(_)
        | Message::Incoming(_)
        | Message::Opened(_)
        | Message::Refused(_)
        | Message::Peer
        | Message::Presence(_)
        | Message::Forward(_)
        | Message::Controller
        | Message::Join(_)
        | Message::Joined(_) => false,
    }
}

/// What the relay answers to a message, with the name taken out that the answer repeats.
pub(crate) async fn answer_to(
    raw: &Raw,
    control: &mut BiStream,
    message: &Message,
) -> Result<Message> {
    if matches!(message, Message::Open(_)) {
        let mut leg = raw.connection.open_bi().await?;
        leg.send.write(message.encode()).await?;
        return Ok(message::read(&mut leg.recv).await?);
    }
    control.send.write(message.encode()).await?;
    let mut answer = message::read(&mut control.recv).await?;
    if let Message::Registered(services) = &mut answer {
        for name in &mut services.names {
            *name = "name".parse()?;
        }
    }
    Ok(answer)
}

// S11: an agent of another tenant may come in, and finds nothing there, neither forbidden nor existing, whatever it says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_tenants_agent_cannot_tell_our_services_from_none() -> Result<()> {
    let mut honest = Honest::start().await?;
    let identity = honest.world.ca.identity("other/agent/caller");
    let raw = honest
        .world
        .connect_with(&identity, honest.relay.listen)
        .await?;
    let mut control = raw.greet(SessionKind::Full, [1; 16]).await?;
    // Names of one length, so that not even an answer's size could differ.
    for (ours, nobodys) in with_name("echo")?.iter().zip(&with_name("nil0")?) {
        assert!(is_with_name(ours), "{ours:?}");
        let to_ours = answer_to(&raw, &mut control, ours).await?;
        let to_nobodys = answer_to(&raw, &mut control, nobodys).await?;
        assert_eq!(to_ours, to_nobodys, "{ours:?}");
    }
    let (refused, _leg) = raw.open("echo").await?;
    assert_eq!(refused, Message::Refused(Reason::NoPolicy));
    honest.undisturbed().await
}

// F43: a first message with any one byte altered, or cut anywhere, costs its sender a connection at most, and no time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_message_that_is_altered_or_cut_anywhere_is_answered_in_time() -> Result<()> {
    let mut honest = Honest::start().await?;
    let good = hello(SessionKind::CallerOnly, [7; 16]).encode();
    let altered = (0..good.len()).map(|at| {
        let mut bytes = good.to_vec();
        bytes[at] ^= 0xff;
        (format!("altered at {at}"), bytes)
    });
    let cut = (0..good.len()).map(|at| (format!("cut at {at}"), good[..at].to_vec()));
    for (what, bytes) in altered.chain(cut) {
        let raw = honest
            .world
            .connect_as("mallory", honest.relay.listen)
            .await?;
        let mut control = raw.connection.open_bi().await?;
        if !bytes.is_empty() {
            control.send.write(bytes.into()).await?;
        }
        control.send.finish()?;
        // Some bytes may be anything: the instance, the program's version. Then there is a welcome, and an end like any.
        let answer = async {
            match message::read(&mut control.recv).await {
                Ok(Message::Welcome(_)) => Ok(()),
                Ok(other) => anyhow::bail!("{what}: {other:?}"),
                Err(_) => {
                    let reason = raw.connection.closed().await;
                    let named = [
                        Lost::ByPeer(Reason::ProtocolViolation),
                        Lost::ByPeer(Reason::VersionUnsupported),
                        Lost::ByPeer(Reason::Truncated),
                    ];
                    ensure!(named.contains(&reason), "{what}: {reason:?}");
                    Ok(())
                }
            }
        };
        tokio::time::timeout(PATIENCE, answer)
            .await
            .with_context(|| format!("{what}: no answer"))??;
    }
    honest.undisturbed().await
}

// Two versions that have no protocol in common part at once, and each knows why: older and newer, by their own words.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_speaks_another_protocol_is_told_so_at_once() -> Result<()> {
    let mut honest = Honest::start().await?;
    let config = honest.world.without_certificate(b"sealock/99");
    let began = Instant::now();
    let reason = match Raw::connect(honest.relay.listen, config).await {
        Ok(raw) => closed(&raw).await?.reason(),
        Err(error) => error.reason(), // the relay was quicker than the end of our handshake
    };
    assert_eq!(reason, Reason::VersionUnsupported);
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    honest.undisturbed().await
}

// S28, S29, lesson 11: every stage has a deadline, also behind the handshake.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_says_nothing_is_shown_out() -> Result<()> {
    let mut honest = Honest::start().await?;
    let (world, at) = (&honest.world, honest.relay.listen);
    let silent = world.connect_as("mallory", at).await?;
    let half = world.connect_as("mallory", at).await?;
    let mut control = half.connection.open_bi().await?;
    control
        .send
        .write(hello(SessionKind::Full, [1; 16]).encode().slice(..5))
        .await?;
    let joining = Raw::connect(at, world.without_certificate(alpn::JOIN)).await?;
    let began = Instant::now();
    for (what, raw) in [("silent", &silent), ("half", &half), ("joining", &joining)] {
        let lost = closed(raw).await.context(what)?;
        assert_eq!(lost, Lost::ByPeer(Reason::HandshakeTimeout), "{what}");
    }
    assert!(began.elapsed() < PATIENCE);
    honest.undisturbed().await
}

// S32, F43: what cannot be a first frame ends the connection with a code, before its body is waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_and_giants_at_the_first_word_end_the_connection() -> Result<()> {
    let mut honest = Honest::start().await?;
    let first_words: [(&str, Vec<u8>); 6] = [
        ("unknown type", vec![0x7f, 0, 0]),
        ("a giant", vec![0x01, 0xff, 0xff]),
        ("just too long", vec![0x01, 0x40, 0x01]),
        ("zeros", vec![0; 64]),
        ("no protobuf", vec![0x01, 0, 4, 0xff, 0xff, 0xff, 0xff]),
        ("a web browser", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
    ];
    for (what, words) in first_words {
        let raw = honest
            .world
            .connect_as("mallory", honest.relay.listen)
            .await?;
        let mut control = raw.connection.open_bi().await?;
        control.send.write(words.into()).await?;
        let lost = closed(&raw).await.context(what)?;
        assert_eq!(lost, Lost::ByPeer(Reason::ProtocolViolation), "{what}");
    }
    honest.undisturbed().await
}

// F43: every message that may not come now ends the session with a code, at its beginning and in the middle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_out_of_order_ends_the_session() -> Result<()> {
    let mut honest = Honest::start().await?;
    let services = Services {
        sequence: 1,
        names: vec!["echo".parse()?],
    };
    let Message::Open(asked) = open("echo")? else {
        bail!("not an open");
    };
    let caller = AgentId {
        tenant: "default".parse()?,
        name: "mallory".parse()?,
    };
    let never = [
        Message::Welcome(Welcome { session: 1 }),
        Message::Registered(services.clone()),
        Message::Incoming(Incoming {
            stream: asked.stream,
            epoch: asked.epoch,
            service: asked.service.clone(),
            caller: caller.clone(),
            conduit: None,
        }),
        Message::Opened("mallory".parse()?),
        Message::Refused(Reason::Done),
        Message::Controller,
        Message::Join(Join {
            conduit: ConduitId([1; 16]),
            is_opener: true,
            salt: Salt([1; 16]),
        }),
        Message::Joined(Salt([1; 16])),
        Message::Peer,
        Message::Presence(Presence {
            here: vec![Present {
                agent: caller.clone(),
                offers: None,
            }],
            gone: Vec::new(),
        }),
        Message::Forward(Box::new(Forward {
            open: asked.clone(),
            caller,
            instance: [1; 16],
            voucher: Voucher {
                expires_ms: 1,
                signature: vec![1; 70],
                chain: vec![vec![1; 600]],
            },
        })),
        Message::Open(asked),
    ];
    let not_first = [
        Message::Register(services.clone()),
        Message::Withdraw(services),
        Message::Drain(Default::default()),
        Message::Bye(Reason::Done),
    ];
    let first = hello(SessionKind::Full, [1; 16]);
    let kinds = never.iter().chain(&not_first).chain([&first]);
    let kinds: BTreeSet<u8> = kinds.map(|message| message.encode()[0]).collect();
    let known = (0..0x80).filter(|kind| Header::decode([*kind, 0, 0]).is_ok());
    assert_eq!(kinds, known.collect(), "every message has its place here");
    for message in never.iter().chain(&not_first) {
        let raw = honest
            .world
            .connect_as("mallory", honest.relay.listen)
            .await?;
        let mut control = raw.connection.open_bi().await?;
        control.send.write(message.encode()).await?;
        let lost = closed(&raw).await?;
        assert_eq!(
            lost,
            Lost::ByPeer(Reason::ProtocolViolation),
            "first: {message:?}"
        );
    }
    let again = hello(SessionKind::Full, [1; 16]);
    for message in never.iter().chain([&again]) {
        let raw = honest
            .world
            .connect_as("mallory", honest.relay.listen)
            .await?;
        let mut control = raw.greet(SessionKind::Full, [1; 16]).await?;
        control.send.write(message.encode()).await?;
        let lost = closed(&raw).await?;
        assert_eq!(
            lost,
            Lost::ByPeer(Reason::ProtocolViolation),
            "later: {message:?}"
        );
    }
    until("the bad sessions are forgotten", READY, || {
        honest.relay.directory.agents() == 2
    })
    .await?;
    honest.undisturbed().await
}

// F43: junk on a control stream costs its sender the session and nobody else anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_bytes_of_junk_end_one_session_only() -> Result<()> {
    let mut honest = Honest::start().await?;
    let raw = honest
        .world
        .connect_as("mallory", honest.relay.listen)
        .await?;
    let mut control = raw.greet(SessionKind::Full, [1; 16]).await?;
    let junk: Vec<u8> = (0..10_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    control.send.write(junk.into()).await?;
    assert_eq!(closed(&raw).await?, Lost::ByPeer(Reason::ProtocolViolation));
    honest.undisturbed().await
}

// F43: a flood of messages that may be skipped is a flood all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_skippable_messages_is_not_read_for_ever() -> Result<()> {
    let mut honest = Honest::start().await?;
    let raw = honest
        .world
        .connect_as("mallory", honest.relay.listen)
        .await?;
    let mut control = raw.greet(SessionKind::Full, [1; 16]).await?;
    control
        .send
        .write(Bytes::from([0x80, 0, 0].repeat(50)))
        .await?;
    assert_eq!(closed(&raw).await?, Lost::ByPeer(Reason::ProtocolViolation));
    honest.undisturbed().await
}

// S28, lesson 11: streams that never say what they are for are given up, and the session goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_without_a_head_are_reset_in_time() -> Result<()> {
    let mut honest = Honest::start().await?;
    let raw = honest
        .world
        .connect_as("mallory", honest.relay.listen)
        .await?;
    let _control = raw.greet(SessionKind::Full, [1; 16]).await?;
    let mut streams = Vec::new();
    for _ in 0..40 {
        let mut stream = raw.connection.open_bi().await?;
        stream.send.write(Bytes::from_static(&[0x08])).await?;
        streams.push(stream);
    }
    honest.undisturbed().await?;
    for mut stream in streams {
        let ended = tokio::time::timeout(PATIENCE, stream.recv.read_chunk(16)).await?;
        let reason = ended.err().map(|error| error.reason());
        assert_eq!(reason, Some(Reason::HandshakeTimeout));
    }
    let (answer, _leg) = raw.open("nothing-of-this-name").await?;
    assert_eq!(answer, Message::Refused(Reason::NoSuchService));
    honest.undisturbed().await
}

// S28, C8: a node without a certificate gets one stream, few bytes and little time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joining_node_gets_one_stream_few_bytes_and_little_time() -> Result<()> {
    let tasks = Scope::new("test");
    // A controller that takes everything and never answers.
    let sink = crate::deployment::serve(&tasks, |mut stream: TcpStream| async move {
        let _ended = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await?;
    let controller = Some(address(&sink)?.into());
    let limits = RelayLimits {
        controller,
        ..RelayLimits::default()
    };
    let mut honest = Honest::start_with(limits).await?;
    let at = honest.relay.listen;
    let join = || async { Raw::connect(at, honest.world.without_certificate(alpn::JOIN)).await };

    let many = join().await?;
    let mut streams = Vec::new();
    for _ in 0..2 {
        let mut stream = many.connection.open_bi().await?;
        stream.send.write(Bytes::from_static(b"hello")).await?;
        streams.push(stream);
    }
    assert_eq!(
        closed(&many).await?,
        Lost::ByPeer(Reason::ProtocolViolation),
        "a second stream"
    );

    let fat = join().await?;
    let mut stream = fat.connection.open_bi().await?;
    let _cut = stream.send.write(vec![7; 200_000].into()).await;
    assert_eq!(
        closed(&fat).await?,
        Lost::ByPeer(Reason::QuotaExceeded),
        "too many bytes"
    );

    let slow = join().await?;
    let mut stream = slow.connection.open_bi().await?;
    stream.send.write(Bytes::from_static(b"hello")).await?;
    let began = Instant::now();
    let lost = tokio::time::timeout(Duration::from_secs(15), slow.connection.closed()).await?;
    assert_eq!(lost, Lost::ByPeer(Reason::HandshakeTimeout), "too long");
    assert!(
        began.elapsed() > Duration::from_secs(5),
        "an enrolment may take a while"
    );
    honest.undisturbed().await
}

// S28: strangers who hold every slot for joining hold them briefly, and others come in after them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_strangers_do_not_keep_others_from_joining() -> Result<()> {
    let mut honest = Honest::start().await?;
    let at = honest.relay.listen;
    let config = honest.world.without_certificate(alpn::JOIN);
    let mut strangers = Vec::new();
    for _ in 0..40 {
        // Some are told at once that there are too many of them.
        strangers.extend(Raw::connect(at, config.clone()).await.ok());
    }
    tokio::time::sleep(PATIENCE).await;
    let left = strangers
        .iter()
        .filter(|raw| raw.connection.close_reason().is_none())
        .count();
    assert_eq!(left, 0, "strangers still hold a slot");
    let mut join = Raw::connect(at, config).await?.connection.open_bi().await?;
    join.send.write(Bytes::from_static(b"hello")).await?;
    // Nobody listens where the controller should be, and that is what the node is told: it got a slot.
    let answer = join.recv.read_chunk(16).await;
    assert_eq!(
        answer.err().map(|error| error.reason()),
        Some(Reason::ControllerUnreachable)
    );
    honest.undisturbed().await
}

// S85, lesson «every leaf could act»: an offer that no view confirms is never opened.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_the_view_names_no_provider_of_never_gets_an_open() -> Result<()> {
    let mut honest = Honest::start().await?;
    let raw = honest
        .world
        .connect_as("mallory", honest.relay.listen)
        .await?;
    let mut control = raw.greet(SessionKind::Full, [1; 16]).await?;
    let register = Message::Register(Services {
        sequence: 1,
        names: vec!["echo".parse()?],
    });
    control.send.write(register.encode()).await?;
    let answer = message::read(&mut control.recv).await?;
    let waiting = Message::Registered(Services {
        sequence: 1,
        names: vec!["echo".parse()?],
    });
    assert_eq!(answer, waiting, "the relay says that it does not count");
    for _ in 0..5 {
        honest.undisturbed().await?;
    }
    let incoming = tokio::time::timeout(Duration::from_millis(200), raw.connection.accept_bi());
    assert!(incoming.await.is_err(), "the impostor got an open");
    Ok(())
}

// F41, lesson «swapped each other out for ever»: the newest wins once, the loser hears why, a caller takes no place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_machine_with_an_agents_identity_takes_its_place_once() -> Result<()> {
    let world = World::new()?;
    let relay = world.relay().await?;
    let first = world.connect_as("mallory", relay.listen).await?;
    let _control = first.greet(SessionKind::Full, [1; 16]).await?;
    let beside = world.connect_as("mallory", relay.listen).await?;
    let _control_beside = beside.greet(SessionKind::CallerOnly, [3; 16]).await?;
    assert!(first.connection.close_reason().is_none());
    let second = world.connect_as("mallory", relay.listen).await?;
    let _control_second = second.greet(SessionKind::Full, [2; 16]).await?;
    assert_eq!(closed(&first).await?, Lost::ByPeer(Reason::Superseded));
    assert!(beside.connection.close_reason().is_none());
    assert!(second.connection.close_reason().is_none());
    Ok(())
}

// K10: what a relay tells an agent of its session says nothing of how many others there are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_number_of_a_session_tells_nobody_how_many_there_are() -> Result<()> {
    let world = World::new()?;
    let relay = world.relay().await?;
    let mut told = Vec::new();
    for agent in ["mallory", "caller", "provider"] {
        let raw = world.connect_as(agent, relay.listen).await?;
        let mut control = raw.connection.open_bi().await?;
        let hello = hello(SessionKind::Full, [1; 16]).encode();
        control.send.write(hello).await?;
        let answer = message::read(&mut control.recv).await?;
        let Message::Welcome(Welcome { session }) = answer else {
            anyhow::bail!("{agent}: {answer:?}");
        };
        told.push(session);
    }
    let counted = told.windows(2).any(|two| two[0].abs_diff(two[1]) < 1_000);
    assert!(!counted, "{told:?}");
    Ok(())
}

// F41: two whole agents with one identity do not chase each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_agents_with_one_identity_do_not_play_ping_pong() -> Result<()> {
    let world = World::new()?;
    let relay = world.relay().await?;
    let first = world
        .agent("mallory", SessionKind::Full, relay.listen)
        .await?;
    let second = world
        .agent("mallory", SessionKind::Full, relay.listen)
        .await?;
    let winner = relay.directory.list();
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(
        relay.directory.list(),
        winner,
        "the place changed hands again"
    );
    assert_eq!(
        first.ready(Duration::from_millis(10)).await,
        Err(Reason::Superseded)
    );
    assert_eq!(second.ready(Duration::from_millis(10)).await, Ok(()));
    Ok(())
}

// S85: a session that only calls has nothing to offer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_only_calls_cannot_register() -> Result<()> {
    let mut honest = Honest::start().await?;
    let raw = honest
        .world
        .connect_as("provider", honest.relay.listen)
        .await?;
    let mut control = raw.greet(SessionKind::CallerOnly, [1; 16]).await?;
    let register = Message::Register(Services {
        sequence: 1,
        names: vec!["echo".parse()?],
    });
    control.send.write(register.encode()).await?;
    assert_eq!(closed(&raw).await?, Lost::ByPeer(Reason::ProtocolViolation));
    honest.undisturbed().await
}

// Lesson «the 101st waited for ever»: an agent that has all its streams in use is answered, not left to wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stream_beyond_the_limit_is_answered() -> Result<()> {
    let limits = RelayLimits {
        streams: 20,
        ..RelayLimits::default()
    };
    let honest = Honest::start_with(limits).await?;
    let mut held = Vec::new();
    let refused = loop {
        let mut stream = TcpStream::connect(honest.listen).await?;
        stream.write_all(b"x").await?;
        let began = Instant::now();
        let mut byte = [0; 1];
        let answer = stream.read(&mut byte);
        match tokio::time::timeout(Duration::from_secs(5), answer).await? {
            Ok(1) => held.push(stream),
            ended => break (ended.map_err(|error| error.kind()), began.elapsed()),
        }
        ensure!(held.len() <= 20, "there is no limit");
    };
    assert_eq!(refused.0, Err(std::io::ErrorKind::ConnectionReset));
    assert!(refused.1 < Duration::from_secs(4), "{:?}", refused.1);
    drop(held);
    eventually(honest.listen, b"room again").await?;
    Ok(())
}

// Lesson «quotas with an answer»: an honest burst is no attack. Each flow takes four of this process's 1,024 files.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_flows_opened_at_once_all_open() -> Result<()> {
    let honest = Honest::start().await?;
    let tasks = Scope::new("burst");
    let (done_in, mut done) = tokio::sync::mpsc::channel(200);
    for n in 0..200u32 {
        let (listen, done_in) = (honest.listen, done_in.clone());
        tasks.spawn("one", async move {
            let answer = exchange(listen, &n.to_be_bytes()).await;
            let whole = answer.is_ok_and(|answer| answer == n.to_be_bytes());
            let _heard = done_in.send(whole).await;
        });
    }
    drop(done_in);
    let mut good = 0;
    while let Some(whole) = done.recv().await {
        good += usize::from(whole);
    }
    assert_eq!(good, 200);
    Ok(())
}
