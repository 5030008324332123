//! Streams that outlive their legs: relays that go and come, another relay, and whoever tries to take a stream over.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use parking_lot::Mutex;
use sealock_core::address::{HostPort, Target};
use sealock_core::config::Transport;
use sealock_core::reason::Reason;
use sealock_net::e2e::EndToEnd;
use sealock_net::identity::{IdentityStore, Svid};
use sealock_net::message;
use sealock_net::stream::Leg;
use sealock_net::task::{Scope, Spawner};
use sealock_net::transport::BiStream;
use sealock_proto::stream::{Attach, Epoch, Frame, Proof};
use sealock_proto::wire::{Message, Open, SessionKind, StreamId};
use sealock_relay::RelayHandle;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::oneshot;

use crate::deployment::{
    READY, address, any_port, echo_server, eventually, expose_echo, free_udp_port,
};
use crate::several_relays::{LONG_DRAIN, holds, two_relays};
use crate::world::{self, Raw, World};

/// How long a stream may stand still while its relay is away and comes back. The lab judges how long it does; here it is
/// told from one that stands still for ever, on a machine that may do much else.
const STALL_LIMIT: Duration = Duration::from_secs(40);

/// How long a healed rung may stay unused.
const CLIMB_LIMIT: Duration = Duration::from_secs(30);

/// What every position of a transfer holds: a lost, doubled or displaced byte is wrong at its place.
fn pattern(position: u64) -> u8 {
    let mixed = position.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> 56) as u8
}

/// One connection of an application, kept busy both ways through an echo.
async fn round_and_round(
    stream: TcpStream,
    stop: Arc<AtomicBool>,
    moved: Arc<AtomicU64>,
) -> Result<u64> {
    let (mut reader, mut writer) = stream.into_split();
    let send = async {
        let mut sent = 0_u64;
        while !stop.load(Ordering::Relaxed) {
            let chunk: Vec<u8> = (sent..sent + 16 * 1024).map(pattern).collect();
            writer.write_all(&chunk).await?;
            sent += chunk.len() as u64;
        }
        writer.shutdown().await?;
        anyhow::Ok(sent)
    };
    let check = async {
        let (mut position, mut buffer) = (0_u64, vec![0; 64 * 1024]);
        loop {
            let read = tokio::time::timeout(STALL_LIMIT, reader.read(&mut buffer)).await;
            let length = read.with_context(|| format!("no progress at {position}"))??;
            if length == 0 {
                return Ok(position);
            }
            for &byte in &buffer[..length] {
                ensure!(byte == pattern(position), "a wrong byte at {position}");
                position += 1;
            }
            moved.fetch_add(length as u64, Ordering::Relaxed);
        }
    };
    let (sent, received) = tokio::try_join!(send, check)?;
    ensure!(
        sent == received,
        "{sent} bytes went out and {received} came back"
    );
    Ok(received)
}

/// Some connections that are busy until they are told to end.
pub(crate) struct Traffic {
    endings: Vec<oneshot::Receiver<Result<u64>>>,
    _tasks: Scope,
    stop: Arc<AtomicBool>,
    /// What came back on each connection.
    moved: Vec<Arc<AtomicU64>>,
}

/// What each connection brings back before the next thing happens to it.
const MOVES: u64 = 32 << 10;

impl Traffic {
    pub(crate) async fn start(listen: SocketAddr, connections: usize) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (tasks, mut endings, mut moved) = (Scope::new("traffic"), Vec::new(), Vec::new());
        for _ in 0..connections {
            let stream = TcpStream::connect(listen).await?;
            let count = Arc::<AtomicU64>::default();
            let run = round_and_round(stream, Arc::clone(&stop), Arc::clone(&count));
            moved.push(count);
            let (tell, ending) = oneshot::channel();
            tasks.spawn("connection", async move {
                // Nobody waits for it in a test that failed already.
                let _heard = tell.send(run.await);
            });
            endings.push(ending);
        }
        Ok(Self {
            endings,
            _tasks: tasks,
            stop,
            moved,
        })
    }

    /// Waits until bytes move on every connection.
    pub(crate) async fn moves(&self) -> Result<()> {
        let now = |count: &Arc<AtomicU64>| count.load(Ordering::Relaxed);
        let before: Vec<u64> = self.moved.iter().map(now).collect();
        world::until("bytes move", STALL_LIMIT, || {
            let mut all = self.moved.iter().zip(&before);
            all.all(|(count, before)| now(count) > before + MOVES)
        })
        .await
    }

    /// Ends them all and says that every byte was right.
    pub(crate) async fn finish(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for ending in self.endings {
            ensure!(ending.await?? > 0, "a connection moved nothing");
        }
        Ok(())
    }
}

/// One address for relays that follow each other, as a process that restarts keeps it.
pub(crate) struct Front {
    pub(crate) address: SocketAddr,
    relay: Arc<Mutex<SocketAddr>>,
    /// What happens to connections of TCP.
    pub(crate) wires: Arc<Wires>,
    /// Whether packets of UDP are lost here.
    swallows: Arc<AtomicBool>,
    _tasks: Scope,
}

impl Front {
    pub(crate) async fn start(relay: SocketAddr) -> Result<Self> {
        let tasks = Scope::new("front");
        let address = free_udp_port()?;
        let front = Arc::new(UdpSocket::bind(address).await?);
        let relay = Arc::new(Mutex::new(relay));
        let (swallows, wires) = (Arc::new(AtomicBool::new(false)), Arc::<Wires>::default());
        let listener = TcpListener::bind(address).await?;
        tasks.spawn(
            "front of TCP",
            join(
                (listener, Arc::clone(&wires)),
                Arc::clone(&relay),
                tasks.spawner(),
            ),
        );
        let lost = Arc::clone(&swallows);
        let (to, spawner) = (Arc::clone(&relay), tasks.spawner());
        tasks.spawn("front", async move {
            let mut ways: HashMap<(SocketAddr, SocketAddr), Arc<UdpSocket>> = HashMap::new();
            let mut packet = vec![0; 64 * 1024];
            while let Ok((length, from)) = front.recv_from(&mut packet).await {
                if lost.load(Ordering::Relaxed) {
                    continue;
                }
                let relay = *to.lock();
                let way = match ways.get(&(from, relay)) {
                    Some(way) => Arc::clone(way),
                    None => {
                        let Ok(way) = UdpSocket::bind("127.0.0.1:0").await else {
                            return;
                        };
                        let way = Arc::new(way);
                        let ends = (Arc::clone(&way), Arc::clone(&front));
                        let back = answers(ends, from, Arc::clone(&lost));
                        spawner.spawn("answers", back);
                        ways.insert((from, relay), Arc::clone(&way));
                        way
                    }
                };
                // A packet that is lost is what networks do.
                let _sent = way.send_to(&packet[..length], relay).await;
            }
        });
        Ok(Self {
            address,
            relay,
            wires,
            swallows,
            _tasks: tasks,
        })
    }
}

/// What happens to all connections of TCP that go through a front.
#[derive(Debug, Default)]
pub(crate) struct Wires {
    /// New ones are hung up on.
    pub(crate) are_refused: AtomicBool,
    /// Which life they are in: those of an earlier one are cut.
    life: AtomicU64,
    /// How many bytes are still to be altered, one in each piece.
    pub(crate) spoil: AtomicU64,
}

impl Wires {
    /// Cuts all that there are.
    pub(crate) fn cut(&self) {
        self.life.fetch_add(1, Ordering::Relaxed);
    }

    /// Passes bytes on in one direction.
    async fn carry(&self, from: OwnedReadHalf, mut to: OwnedWriteHalf, life: u64) -> Result<()> {
        let (mut from, mut buffer) = (from, vec![0; 64 * 1024]);
        loop {
            // A wire that idles is cut too, a little later.
            let read = tokio::time::timeout(Duration::from_millis(50), from.read(&mut buffer));
            let read = read.await;
            ensure!(self.life.load(Ordering::Relaxed) == life, "cut");
            let Ok(length) = read else { continue };
            let length = length?;
            if length == 0 {
                return Ok(to.shutdown().await?);
            }
            let spent = |left: u64| left.checked_sub(1);
            if self
                .spoil
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, spent)
                .is_ok()
            {
                buffer[length / 2] ^= 1;
            }
            to.write_all(&buffer[..length]).await?;
        }
    }
}

/// Joins every connection with one to the relay of the moment.
async fn join(
    (listener, wires): (TcpListener, Arc<Wires>),
    relay: Arc<Mutex<SocketAddr>>,
    tasks: Spawner,
) {
    while let Ok((near, _)) = listener.accept().await {
        if wires.are_refused.load(Ordering::Relaxed) {
            continue;
        }
        let (relay, wires) = (*relay.lock(), Arc::clone(&wires));
        tasks.spawn("joined", async move {
            let life = wires.life.load(Ordering::Relaxed);
            if let Ok(far) = TcpStream::connect(relay).await {
                let ((near, to_near), (far, to_far)) = (near.into_split(), far.into_split());
                let up = wires.carry(near, to_far, life);
                let down = wires.carry(far, to_near, life);
                let _ended = tokio::try_join!(up, down);
            }
        });
    }
}

async fn answers(
    (way, front): (Arc<UdpSocket>, Arc<UdpSocket>),
    to: SocketAddr,
    lost: Arc<AtomicBool>,
) {
    let mut packet = vec![0; 64 * 1024];
    while let Ok(length) = way.recv(&mut packet).await {
        if !lost.load(Ordering::Relaxed) {
            let _sent = front.send_to(&packet[..length], to).await;
        }
    }
}

// F01: every byte is at its place, and no connection ends, though the only relay goes away three times.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_live_through_restarts_of_the_only_relay() -> Result<()> {
    let tasks = Scope::new("test");
    let world = World::new()?;
    let mut relay = world.relay().await?;
    let front = Front::start(relay.listen).await?;
    let provider = world
        .agent("provider", SessionKind::Full, front.address)
        .await?;
    let caller = world
        .agent("caller", SessionKind::CallerOnly, front.address)
        .await?;
    expose_echo(&provider, &tasks).await?;
    let port = address(&caller.connect("echo".parse()?, &any_port()).await?)?;
    eventually(port, b"warm").await?;
    let traffic = Traffic::start(port, 8).await?;
    for _ in 0..3 {
        traffic.moves().await?;
        relay.stop().await;
        relay = world.relay().await?;
        *front.relay.lock() = relay.listen;
    }
    traffic.moves().await?;
    traffic.finish().await
}

// F01 at its worst moment: whoever has spoken and was not answered yet is heard once, and not reset.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opens_under_way_when_the_only_relay_goes_are_begun_again() -> Result<()> {
    let tasks = Scope::new("test");
    let world = World::new()?;
    let mut relay = world.relay().await?;
    let front = Front::start(relay.listen).await?;
    let provider = world
        .agent("provider", SessionKind::Full, front.address)
        .await?;
    let caller = world
        .agent("caller", SessionKind::CallerOnly, front.address)
        .await?;
    expose_echo(&provider, &tasks).await?;
    let port = address(&caller.connect("echo".parse()?, &any_port()).await?)?;
    eventually(port, b"warm").await?;
    // Each time the handshakes have come a little further.
    for progress in [0, 20] {
        let traffic = Traffic::start(port, 6).await?;
        tokio::time::sleep(Duration::from_millis(progress)).await;
        relay.stop().await;
        relay = world.relay().await?;
        *front.relay.lock() = relay.listen;
        traffic.moves().await?;
        traffic.finish().await?;
    }
    Ok(())
}

// A4, F21: where UDP is cut the streams go on over TLS, and where it works again they are back on QUIC; the
// applications see one connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_fall_to_tls_when_udp_is_cut_and_climb_back_when_it_heals() -> Result<()> {
    let tasks = Scope::new("test");
    let world = World::new()?;
    let relay = world.relay().await?;
    let front = Front::start(relay.listen).await?;
    let provider = world
        .agent("provider", SessionKind::Full, front.address)
        .await?;
    let caller = world
        .agent("caller", SessionKind::CallerOnly, front.address)
        .await?;
    expose_echo(&provider, &tasks).await?;
    let port = address(&caller.connect("echo".parse()?, &any_port()).await?)?;
    eventually(port, b"warm").await?;
    let traffic = Traffic::start(port, 3).await?;
    let all_are_on = |transport| {
        let agents = [&provider, &caller];
        agents.iter().all(|agent| agent.transports() == [transport])
    };
    assert!(all_are_on(Transport::Quic));
    traffic.moves().await?;
    front.swallows.store(true, Ordering::Relaxed);
    world::until("TLS carries", READY, || all_are_on(Transport::Tls)).await?;
    traffic.moves().await?;
    front.swallows.store(false, Ordering::Relaxed);
    world::until("QUIC is back", CLIMB_LIMIT, || all_are_on(Transport::Quic)).await?;
    traffic.moves().await?;
    traffic.finish().await
}

// K2: streams leave a relay that drains before it ends: it does not have to wait for them, and they lose nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_leave_a_relay_that_drains_for_another_one() -> Result<()> {
    let tasks = Scope::new("test");
    let world = World::new()?;
    let [first, second] = two_relays(&world).await?;
    let at = [first.listen, second.listen];
    let provider = world.agent_of("provider", SessionKind::Full, &at).await?;
    let caller = world.agent_of("caller", SessionKind::Full, &at).await?;
    expose_echo(&provider, &tasks).await?;
    let port = address(&caller.connect("echo".parse()?, &any_port()).await?)?;
    eventually(port, b"warm").await?;
    let traffic = Traffic::start(port, 4).await?;
    traffic.moves().await?;
    // Whichever carries most of them: the other one takes them over.
    for relay in [&first, &second] {
        holds(relay, "provider", 1).await?;
    }
    let carried = |relay: &RelayHandle| relay.live.len();
    let (drained, left) = if carried(&first) > carried(&second) {
        (first, second)
    } else {
        (second, first)
    };
    ensure!(carried(&drained) > 0, "nothing would have to move");
    tokio::time::timeout(LONG_DRAIN / 2, drained.drain(LONG_DRAIN))
        .await
        .context("the relay waits for streams that do not leave it")?;
    traffic.moves().await?;
    ensure!(carried(&left) >= 4, "the other relay carries them");
    traffic.finish().await
}

/// A stream that an agent called by hand, so that its id is known.
pub(crate) struct Called {
    pub(crate) world: World,
    pub(crate) relay: RelayHandle,
    pub(crate) provider: sealock_agent::AgentHandle,
    pub(crate) owner: Raw,
    /// The certificate that the owner proved itself with end to end.
    pub(crate) svid: Svid,
    _control: BiStream,
    pub(crate) stream: StreamId,
    pub(crate) halves: (
        sealock_net::e2e::SealedReader,
        sealock_net::e2e::SealedWriter,
    ),
    _tasks: Scope,
}

impl Called {
    pub(crate) async fn start() -> Result<Self> {
        let tasks = Scope::new("test");
        let target = echo_server(&tasks).await?;
        Self::start_with(tasks, target).await
    }

    /// The same, with this program behind the service.
    pub(crate) async fn start_with(tasks: Scope, target: Target) -> Result<Self> {
        let world = World::new()?;
        let relay = world.relay().await?;
        let provider = world
            .agent("provider", SessionKind::Full, relay.listen)
            .await?;
        ensure!(provider.expose("echo".parse()?, target, BTreeMap::new()));
        let owner = world.connect_as("caller", relay.listen).await?;
        let control = owner.greet(SessionKind::CallerOnly, [1; 16]).await?;
        let svid = world.svid("default/agent/caller")?;
        let identity = IdentityStore::new(svid.clone());
        let end_to_end = EndToEnd::new(identity, world.ca.trust_store(), tasks.spawner());
        let (stream, halves) = loop {
            let call = world::call("echo", &["provider"])?;
            let stream = call.stream;
            let open = open(stream, Epoch::FIRST, None)?;
            let mut io = owner.connection.open_bi().await?;
            io.send.write(open.encode()).await?;
            match end_to_end
                .call(Leg::lasting(io), call, || Ok(Bytes::new()))
                .await
            {
                Ok(halves) => break (stream, halves),
                // The offer takes a moment to arrive.
                Err(Reason::NoProvider) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(reason) => bail!(reason),
            }
        };
        Ok(Self {
            world,
            relay,
            provider,
            owner,
            svid,
            _control: control,
            stream,
            halves,
            _tasks: tasks,
        })
    }

    /// The stream works as before.
    pub(crate) async fn works(&mut self) -> Result<()> {
        let (reader, writer) = &mut self.halves;
        writer.write(Bytes::from_static(b"still mine")).await?;
        let mut heard = Vec::new();
        while heard.len() < b"still mine".len() {
            let more = tokio::time::timeout(READY, reader.read()).await;
            heard.extend_from_slice(&more??.context("an end")?);
        }
        ensure!(heard == b"still mine");
        Ok(())
    }
}

pub(crate) fn open(stream: StreamId, epoch: Epoch, provider: Option<&str>) -> Result<Message> {
    Ok(Message::Open(Open {
        stream,
        epoch,
        service: "echo".parse()?,
        provider: provider.map(str::parse).transpose()?,
        conduit: None,
    }))
}

pub(crate) fn attach(epoch: Epoch, proof: Option<[u8; 32]>) -> Bytes {
    let encoded = Frame::Attach(Attach {
        epoch,
        received: 0,
        delivered: 0,
        limit: 1 << 18,
        end_delivered: false,
        proof: proof.map(Proof::from_bytes),
    })
    .encode();
    Bytes::copy_from_slice(encoded.header.as_ref())
}

/// What comes of a later leg that somebody opens by hand and begins with these bytes.
pub(crate) async fn taken_up(by: &Raw, head: Message, first: Bytes) -> Result<Option<Reason>> {
    let mut leg = by.connection.open_bi().await?;
    leg.send.write(head.encode()).await?;
    outcome(leg, first).await
}

/// What comes of a leg whose head was said, when it begins with these bytes.
pub(crate) async fn outcome(mut leg: BiStream, first: Bytes) -> Result<Option<Reason>> {
    let answer = message::read(&mut leg.recv).await?;
    if let Message::Refused(reason) = answer {
        return Ok(Some(reason));
    }
    ensure!(matches!(answer, Message::Opened(_)), "{answer:?}");
    leg.send.write(first).await?;
    let answer = tokio::time::timeout(READY, leg.recv.read_chunk(1_024)).await;
    Ok(answer?.err().map(|error| error.reason()))
}

// S16, S20, F48: knowing a stream's id is worth nothing to another agent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_agent_gets_nowhere_near_a_stream_that_it_names() -> Result<()> {
    let mut called = Called::start().await?;
    let mallory = called
        .world
        .connect_as("mallory", called.relay.listen)
        .await?;
    let _control = mallory.greet(SessionKind::CallerOnly, [2; 16]).await?;
    let head = open(called.stream, Epoch(2), Some("provider"))?;
    let refused = taken_up(&mallory, head, attach(Epoch(2), Some([7; 32]))).await?;
    assert_eq!(refused, Some(Reason::PeerNotAuthentic));
    called.works().await
}

// S17, F48: the caller's own relay could open a leg in its name, and has no proof to bring.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_leg_without_the_streams_own_proof_is_refused_and_the_stream_goes_on() -> Result<()>
{
    let mut called = Called::start().await?;
    let cases: BTreeMap<&str, (Epoch, Option<[u8; 32]>)> = BTreeMap::from([
        ("without a proof", (Epoch(2), None)),
        ("with a made-up proof", (Epoch(2), Some([7; 32]))),
        ("for another epoch than was opened", (Epoch(3), None)),
    ]);
    for (what, (epoch, proof)) in cases {
        let head = open(called.stream, Epoch(2), Some("provider"))?;
        let refused = taken_up(&called.owner, head, attach(epoch, proof)).await?;
        assert_eq!(refused, Some(Reason::AttachRefused), "{what}");
        called.works().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_nobody_holds_any_more_is_refused_as_lost() -> Result<()> {
    let called = Called::start().await?;
    let head = open(StreamId([9; 16]), Epoch(2), Some("provider"))?;
    let refused = taken_up(&called.owner, head, Bytes::new()).await?;
    assert_eq!(refused, Some(Reason::PeerLost));
    let head = open(called.stream, Epoch(2), Some("nobody"))?;
    let refused = taken_up(&called.owner, head, Bytes::new()).await?;
    assert_eq!(refused, Some(Reason::PolicyRevoked), "not a provider of it");
    Ok(())
}

// Point 1 of lesson 10: a provider that is gone for good delays nobody, and its streams end for the right reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_says_goodbye_ends_its_streams_at_once() -> Result<()> {
    let called = Called::start().await?;
    called.provider.stop().await;
    let (mut reader, _writer) = called.halves;
    let ended = tokio::time::timeout(READY, reader.read()).await?;
    assert!(ended.is_err(), "a goodbye is no clean end: {ended:?}");
    let _kept: HostPort = called.relay.listen.into();
    Ok(())
}

// An end that was only written down here is no end yet: the flow is done when the other agent says so too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_ended_cleanly_only_when_both_sides_say_so() -> Result<()> {
    let mut good = Called::start().await?;
    good.works().await?;
    let (reader, writer) = &mut good.halves;
    writer.finish().await?;
    assert_eq!(reader.read().await?, None);
    let settled = tokio::time::timeout(READY, writer.settled()).await?;
    assert_eq!(settled, Ok(()));

    let mut cut = Called::start().await?;
    cut.works().await?;
    cut.owner.connection.close(Reason::SessionLost);
    let (_reader, writer) = &mut cut.halves;
    // Whether the loss is known yet or not.
    let _written = writer.finish().await;
    let settled = tokio::time::timeout(READY, writer.settled()).await?;
    assert_eq!(settled, Err(Reason::SessionLost));
    Ok(())
}
