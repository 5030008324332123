//! A relay with a valid certificate and bad intentions: whatever it does, the application sees the whole truth or a
//! reset, never a wrong byte and never a clean end before the end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use sealock_agent::AgentHandle;
use sealock_core::reason::Reason;
use sealock_flow::audit::Decision;
use sealock_net::e2e::EndToEnd;
use sealock_net::identity::IdentityStore;
use sealock_net::message;
use sealock_net::stream::Leg;
use sealock_net::stream::door::Doors;
use sealock_net::task::{Scope, Spawner};
use sealock_net::tls;
use sealock_net::transport::{
    BiStream, Connection, Endpoint, RecvHalf, SendHalf, Settings, TransportKeys,
};
use sealock_proto::stream::Epoch;
use sealock_proto::wire::{Incoming, Message, Open, Services, SessionKind, Welcome};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

use crate::audited::rows;
use crate::deployment::{READY, address, any_port, serve};
use crate::world::{World, until};

mod records;

/// What the relay does with a leg.
#[derive(Debug, Clone)]
pub(crate) enum Trick {
    /// Passes on what the provider sends, but for what this does to it.
    Alter(Alteration),
    /// Passes on what the caller sends, but for what this does to its records.
    Tamper(records::Tampering),
    /// Gives the leg to another agent than the view names.
    GiveTo(&'static str),
    /// Answers the leg itself, by this certificate.
    Answer(IdentityStore),
    /// Tells the provider that somebody else calls.
    CallIt(&'static str),
    /// Gives each of two flows what belongs to the other.
    Swap(Arc<Mutex<Option<Pair>>>),
    /// Takes the leg and says nothing on it, ever.
    Hold(Arc<Mutex<Vec<BiStream>>>),
    /// Cuts a stream's first leg on demand, and keeps a copy of how its second one began.
    Record(Arc<Tape>),
    /// Loses the first leg when the caller has all of the handshake and the provider lacks its end.
    LoseLastFlight(Arc<AtomicBool>),
}

/// What a relay keeps of the streams that it carries.
#[derive(Debug, Default)]
pub(crate) struct Tape {
    /// Cuts the first legs.
    pub(crate) cut: watch::Sender<bool>,
    /// How the second leg was offered to the provider, and what the caller said first on it.
    pub(crate) second: Mutex<Option<(Incoming, Bytes)>>,
}

type Pair = (BiStream, BiStream);

/// What happens to the bytes from the provider to the caller, at this offset.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Alteration {
    Nothing,
    Flip(usize),
    Drop(usize),
    Repeat(usize),
    Reorder(usize),
    /// Ends the stream, as if it were the end.
    CutCleanly(usize),
}

/// The provider's flight of the handshake is longer than this: a certificate, and a key that no quantum computer breaks.
const FLIGHT: usize = 1_000;
/// Below this a leg waits for an answer of the other side, and no more bytes come before.
const HANDSHAKE: usize = 10_000;
/// How many bytes an alteration that moves bytes is about.
const PIECE: usize = 2_000;

pub(crate) struct EvilRelay {
    pub(crate) listen: SocketAddr,
    inner: Inner,
    _tasks: Scope,
}

#[derive(Clone)]
struct Inner {
    trick: Trick,
    agents: Arc<Mutex<BTreeMap<String, Connection>>>,
    end_to_end: Option<EndToEnd>,
    tasks: Spawner,
}

impl EvilRelay {
    pub(crate) fn start(world: &World, trick: Trick) -> Result<Self> {
        let identity = world.ca.identity("relay/relay-1");
        let listener = tls::relay_listener(&identity, &world.ca.trust_store());
        let endpoint = Endpoint::server(
            SocketAddr::from(([127, 0, 0, 1], 0)),
            listener,
            Settings::default(),
            &TransportKeys::generate(),
        )?;
        let tasks = Scope::new("evil relay");
        let end_to_end = match &trick {
            Trick::Answer(identity) => {
                let trust = world.ca.trust_store();
                Some(EndToEnd::new(identity.clone(), trust, tasks.spawner()))
            }
            Trick::Alter(_)
            | Trick::Tamper(_)
            | Trick::GiveTo(_)
            | Trick::CallIt(_)
            | Trick::Swap(_)
            | Trick::Hold(_)
            | Trick::Record(_)
            | Trick::LoseLastFlight(_) => None,
        };
        let inner = Inner {
            trick,
            agents: Arc::default(),
            end_to_end,
            tasks: tasks.spawner(),
        };
        let listen = endpoint.local_addr()?;
        let shared = inner.clone();
        tasks.spawn("accept", async move {
            while let Some(incoming) = endpoint.accept().await {
                let inner = shared.clone();
                inner.tasks.clone().spawn("session", async move {
                    let deadline = tokio::time::Instant::now() + READY;
                    if let Ok(connection) = incoming.handshake(deadline).await {
                        let _ended = inner.session(connection).await;
                    }
                });
            }
        });
        Ok(Self {
            listen,
            inner,
            _tasks: tasks,
        })
    }

    /// Offers the provider a leg that nobody opened, which begins with these bytes; says what came of it.
    pub(crate) async fn offer(&self, incoming: Incoming, first: Bytes) -> Result<Option<Reason>> {
        let provider = self.inner.agents.lock().get("provider").cloned();
        let mut leg = provider.context("connected")?.open_bi().await?;
        leg.send.write(Message::Incoming(incoming).encode()).await?;
        crate::resume::outcome(leg, first).await
    }
}

impl Inner {
    async fn session(&self, connection: Connection) -> Result<()> {
        let agent = connection.peer().and_then(|peer| peer.agent()).cloned();
        let name = agent.context("an agent")?.name.to_string();
        let mut control = connection.accept_bi().await?;
        message::read(&mut control.recv).await?;
        let welcome = Message::Welcome(Welcome { session: 7 });
        control.send.write(welcome.encode()).await?;
        self.agents.lock().insert(name.clone(), connection.clone());
        self.tasks.spawn("control", async move {
            while let Ok(heard) = message::read(&mut control.recv).await {
                if let Message::Register(list) | Message::Withdraw(list) = heard {
                    let answer = Message::Registered(Services {
                        sequence: list.sequence,
                        names: Vec::new(),
                    });
                    let _told = control.send.write(answer.encode()).await;
                }
            }
        });
        while let Ok(mut leg) = connection.accept_bi().await {
            let (inner, name) = (self.clone(), name.clone());
            self.tasks.spawn("leg", async move {
                if let Ok(Message::Open(open)) = message::read(&mut leg.recv).await {
                    let _ended = inner.leg(&name, open, leg).await;
                }
            });
        }
        Ok(())
    }

    async fn leg(&self, caller: &str, open: Open, mut near: BiStream) -> Result<()> {
        if let Some(end_to_end) = &self.end_to_end {
            near.send
                .write(Message::Opened("provider".parse()?).encode())
                .await?;
            let place = Doors::default().enter(open.stream, open.service.clone());
            let caller = end_to_end
                .answer(Leg::lasting(near), place.context("a new id")?)
                .await;
            let (mut reader, mut writer) = caller.context("believed")?.accept().await?;
            writer.write(Bytes::from_static(b"from the relay")).await?;
            reader.read().await?;
            return Ok(());
        }
        if let Trick::Hold(held) = &self.trick {
            held.lock().push(near);
            return Ok(());
        }
        let (mut to, mut called) = ("provider", caller);
        if let Trick::GiveTo(other) = &self.trick {
            to = other;
        }
        if let Trick::CallIt(other) = &self.trick {
            called = other;
        }
        let provider = self.agents.lock().get(to).cloned().context("connected")?;
        let mut far = provider.open_bi().await?;
        let incoming = Message::Incoming(Incoming {
            stream: open.stream,
            epoch: open.epoch,
            service: open.service,
            caller: sealock_core::identity::AgentId {
                tenant: "default".parse()?,
                name: called.parse()?,
            },
            conduit: None,
        });
        far.send.write(incoming.encode()).await?;
        self.play((near, far), incoming).await
    }

    async fn play(&self, (near, far): Pair, incoming: Message) -> Result<()> {
        match &self.trick {
            Trick::Record(tape) => self.record(tape, (near, far), incoming).await?,
            Trick::LoseLastFlight(lost) if !lost.swap(true, Ordering::Relaxed) => {
                lose_last_flight(near, far).await;
            }
            Trick::Swap(waiting) => {
                let other = waiting.lock().take();
                match other {
                    None => *waiting.lock() = Some((near, far)),
                    Some((other_near, other_far)) => {
                        self.swap((near, far), (other_near, other_far));
                    }
                }
            }
            Trick::Alter(alteration) => self.splice(near, far, *alteration),
            Trick::Tamper(tampering) => {
                let (up, down) = ((near.recv, far.send), (far.recv, near.send));
                self.tasks.spawn("up", records::tamper(up, *tampering));
                self.tasks.spawn("down", pump(down, Alteration::Nothing, 0));
            }
            Trick::GiveTo(_)
            | Trick::Answer(_)
            | Trick::CallIt(_)
            | Trick::Hold(_)
            | Trick::LoseLastFlight(_) => self.splice(near, far, Alteration::Nothing),
        }
        Ok(())
    }

    async fn record(
        &self,
        tape: &Arc<Tape>,
        (mut near, mut far): Pair,
        incoming: Message,
    ) -> Result<()> {
        let Message::Incoming(incoming) = incoming else {
            anyhow::bail!("no leg: {incoming:?}");
        };
        if incoming.epoch == Epoch::FIRST {
            let mut cut = tape.cut.subscribe();
            self.tasks.spawn("first leg", async move {
                let up = pump((near.recv, far.send), Alteration::Nothing, 0);
                let down = pump((far.recv, near.send), Alteration::Nothing, 0);
                tokio::select! {
                    _cut = cut.wait_for(|cut| *cut) => {}
                    _ended = async { tokio::join!(up, down) } => {}
                }
            });
            return Ok(());
        }
        let answer = message::read(&mut far.recv).await?;
        near.send.write(answer.encode()).await?;
        let first = near.recv.read_chunk(64 * 1024).await?;
        let first = first.context("no ATTACH")?;
        *tape.second.lock() = Some((incoming, first.clone()));
        far.send.write(first).await?;
        self.splice(near, far, Alteration::Nothing);
        Ok(())
    }

    fn splice(&self, near: BiStream, far: BiStream, alteration: Alteration) {
        let (up, down) = ((near.recv, far.send), (far.recv, near.send));
        self.tasks.spawn("up", pump(up, Alteration::Nothing, 0));
        self.tasks.spawn("down", pump(down, alteration, 0));
    }

    /// The handshakes go where they belong; what follows goes to the other flow.
    fn swap(&self, one: Pair, other: Pair) {
        self.tasks
            .spawn("up", pump((one.0.recv, one.1.send), Alteration::Nothing, 0));
        self.tasks.spawn(
            "up",
            pump((other.0.recv, other.1.send), Alteration::Nothing, 0),
        );
        let (one, other) = ((one.1.recv, one.0.send), (other.1.recv, other.0.send));
        self.tasks.spawn("down", cross(one, other));
    }
}

type Way = (RecvHalf, SendHalf);

/// Passes on the caller's first flight and the provider's; what the caller says then is lost, and the leg with it.
async fn lose_last_flight(near: BiStream, far: BiStream) {
    let answered = Arc::new(AtomicUsize::new(0));
    let up = async {
        let (mut from, mut to) = (near.recv, far.send);
        while let Ok(Some(chunk)) = from.read_chunk(8 * 1024).await {
            if answered.load(Ordering::Relaxed) > FLIGHT {
                // The caller is done with its handshake by now.
                tokio::time::sleep(Duration::from_millis(50)).await;
                return;
            }
            if to.write(chunk).await.is_err() {
                return;
            }
        }
    };
    let down = async {
        let (mut from, mut to) = (far.recv, near.send);
        while let Ok(Some(chunk)) = from.read_chunk(8 * 1024).await {
            answered.fetch_add(chunk.len(), Ordering::Relaxed);
            if to.write(chunk).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = up => {}
        () = async { down.await; std::future::pending().await } => {}
    }
}

/// Passes on the first bytes of both, and then the rest of each to the other.
async fn cross(one: Way, other: Way) {
    let (one, other) = tokio::join!(first(one), first(other));
    let (Some((from_one, to_one)), Some((from_other, to_other))) = (one, other) else {
        return;
    };
    tokio::join!(
        pump((from_one, to_other), Alteration::Nothing, 0),
        pump((from_other, to_one), Alteration::Nothing, 0)
    );
}

async fn first((mut from, mut to): Way) -> Option<Way> {
    let mut passed = 0;
    while passed < 50_000 {
        let chunk = from.read_chunk(50_000 - passed).await.ok()??;
        passed += chunk.len();
        to.write(chunk).await.ok()?;
    }
    Some((from, to))
}

async fn pump((mut from, mut to): Way, alteration: Alteration, mut at: usize) {
    loop {
        match from.read_chunk(8 * 1024).await {
            Ok(Some(chunk)) => {
                // The piece that an alteration is about must be whole.
                let chunk = widen(chunk, &mut from, alteration, at).await;
                let length = chunk.len();
                let Some(chunk) = alter(chunk, alteration, at) else {
                    let _ended = to.finish();
                    return;
                };
                at += length;
                if to.write(chunk).await.is_err() {
                    return;
                }
            }
            Ok(None) => {
                let _ended = to.finish();
                return;
            }
            Err(error) => return to.reset(error.reason()),
        }
    }
}

fn offset_of(alteration: Alteration) -> usize {
    match alteration {
        Alteration::Nothing => usize::MAX,
        Alteration::Flip(at)
        | Alteration::Drop(at)
        | Alteration::Repeat(at)
        | Alteration::Reorder(at)
        | Alteration::CutCleanly(at) => at,
    }
}

async fn widen(chunk: Bytes, from: &mut RecvHalf, alteration: Alteration, at: usize) -> Bytes {
    let offset = offset_of(alteration);
    if offset < HANDSHAKE || !(at..at + chunk.len()).contains(&offset) {
        return chunk;
    }
    let mut whole = BytesMut::from(&chunk[..]);
    while at + whole.len() < offset + 2 * PIECE {
        match from.read_chunk(2 * PIECE).await {
            Ok(Some(more)) => whole.extend_from_slice(&more),
            Ok(None) | Err(_) => break,
        }
    }
    whole.freeze()
}

fn alter(chunk: Bytes, alteration: Alteration, at: usize) -> Option<Bytes> {
    let offset = offset_of(alteration);
    let Some(here) = offset.checked_sub(at).filter(|here| *here < chunk.len()) else {
        return Some(chunk);
    };
    let (before, rest) = chunk.split_at(here);
    let (piece, after) = rest.split_at(PIECE.min(rest.len()));
    let altered = match alteration {
        Alteration::Nothing => return Some(chunk),
        Alteration::Flip(_) => {
            let mut flipped = piece.to_vec();
            flipped[0] ^= 0x10;
            [before, &flipped, after].concat()
        }
        Alteration::Drop(_) => [before, after].concat(),
        Alteration::Repeat(_) => [before, piece, piece, after].concat(),
        Alteration::Reorder(_) => {
            let (next, after) = after.split_at(PIECE.min(after.len()));
            [before, next, piece, after].concat()
        }
        Alteration::CutCleanly(_) => return None,
    };
    Some(altered.into())
}

const LENGTH: usize = 300_000;

fn truth(seed: u8) -> Vec<u8> {
    (0..LENGTH)
        .map(|n| (n % 251) as u8 ^ (n / 251 % 256) as u8 ^ seed)
        .collect()
}

/// A provider of `echo` that sends what it always sends, once it has heard the byte that says which.
struct Scene {
    world: World,
    _relay: EvilRelay,
    agents: Vec<AgentHandle>,
    listen: SocketAddr,
    /// How often somebody reached the program behind the service.
    reached: Arc<Mutex<usize>>,
    _tasks: Scope,
}

impl Scene {
    async fn start(trick: Trick) -> Result<Self> {
        Self::start_in(World::new()?, trick, |_| Ok(())).await
    }

    /// The provider starts with the view as `then` leaves it, the caller with the one from before.
    async fn start_in(
        mut world: World,
        trick: Trick,
        then: impl FnOnce(&mut World) -> Result<()>,
    ) -> Result<Self> {
        let tasks = Scope::new("test");
        let relay = EvilRelay::start(&world, trick)?;
        let caller = world
            .agent("caller", SessionKind::CallerOnly, relay.listen)
            .await?;
        then(&mut world)?;
        let mut agents = vec![caller];
        let reached = Arc::new(Mutex::new(0));
        for name in ["provider", "mallory"] {
            let agent = world.agent(name, SessionKind::Full, relay.listen).await?;
            let counter = Arc::clone(&reached);
            let target = serve(&tasks, move |mut stream: TcpStream| {
                *counter.lock() += 1;
                async move {
                    let seed = stream.read_u8().await.unwrap_or(0);
                    let _told = stream.write_all(&truth(seed)).await;
                    let _told = stream.shutdown().await;
                    let _heard = stream.read(&mut [0; 1]).await;
                }
            })
            .await?;
            ensure!(agent.expose("echo".parse()?, target, BTreeMap::new()));
            agents.push(agent);
        }
        let listen = agents[0].connect("echo".parse()?, &any_port()).await?;
        Ok(Self {
            world,
            _relay: relay,
            agents,
            listen: address(&listen)?,
            reached,
            _tasks: tasks,
        })
    }

    async fn fetch(&self, seed: u8) -> Result<(Vec<u8>, std::io::Result<()>)> {
        let mut bytes = Vec::new();
        let ask = async {
            let mut stream = TcpStream::connect(self.listen).await?;
            stream.write_all(&[seed]).await?;
            Ok(stream)
        };
        let mut stream = match ask.await {
            Ok(stream) => stream,
            Err(error) => return Ok((bytes, Err(error))), // the reset was quicker
        };
        let mut buffer = vec![0; 64 * 1024];
        let reading = async {
            loop {
                match stream.read(&mut buffer).await {
                    Ok(0) => return Ok(()),
                    Ok(length) => bytes.extend_from_slice(&buffer[..length]),
                    Err(error) => return Err(error),
                }
            }
        };
        let ended = tokio::time::timeout(Duration::from_secs(20), reading)
            .await
            .context("the application hangs")?;
        Ok((bytes, ended))
    }

    /// The application got the truth up to some point, and then a reset.
    async fn expect_reset(&self, what: &str) -> Result<usize> {
        let (bytes, ended) = self.fetch(3).await?;
        ensure!(truth(3).starts_with(&bytes), "{what}: a wrong byte");
        let kind = ended.map_err(|error| error.kind());
        ensure!(
            kind == Err(std::io::ErrorKind::ConnectionReset),
            "{what}: {kind:?} after {} bytes",
            bytes.len()
        );
        Ok(bytes.len())
    }
}

// The other tests say nothing unless this relay can pass on what is true.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_alters_nothing_delivers_everything() -> Result<()> {
    let scene = Scene::start(Trick::Alter(Alteration::Nothing)).await?;
    let (bytes, ended) = scene.fetch(3).await?;
    ended?;
    assert!(bytes == truth(3));
    Ok(())
}

// S01, K1, lesson 01: altered, dropped, repeated, re-ordered or cut in the middle of the application's bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_relay_does_to_the_bytes_is_a_reset_and_never_a_wrong_byte() -> Result<()> {
    expect_resets(&[
        Alteration::Flip(100_000),
        Alteration::Flip(200_001),
        Alteration::Drop(100_000),
        Alteration::Repeat(100_000),
        Alteration::Reorder(100_000),
    ])
    .await
}

// Lesson 03: only the sender's own end is an end. A leg that a relay ends is a leg that was lost, and the next one goes
// on where it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leg_that_a_relay_cuts_cleanly_is_followed_by_another_and_nothing_is_missing()
-> Result<()> {
    let scene = Scene::start(Trick::Alter(Alteration::CutCleanly(100_000))).await?;
    let (bytes, ended) = scene.fetch(3).await?;
    ended?;
    assert!(bytes == truth(3));
    Ok(())
}

// S03, down-grade: the same within the handshake. Bytes that are missing from it are waited for, so none is taken out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_relay_does_to_the_handshake_is_a_reset_before_any_byte() -> Result<()> {
    expect_resets(&[
        Alteration::Flip(30),
        Alteration::Flip(700),
        Alteration::Repeat(30),
        Alteration::CutCleanly(30),
        Alteration::CutCleanly(700),
    ])
    .await
}

async fn expect_resets(alterations: &[Alteration]) -> Result<()> {
    for &trick in alterations {
        let scene = Scene::start(Trick::Alter(trick)).await?;
        let arrived = scene.expect_reset(&format!("{trick:?}")).await?;
        assert!(arrived < LENGTH, "{trick:?}");
    }
    Ok(())
}

// S02, K5: what belongs to one flow never reaches the application of another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_streams_that_a_relay_mixes_are_both_reset() -> Result<()> {
    let scene = Scene::start(Trick::Swap(Arc::default())).await?;
    let (one, other) = tokio::join!(scene.fetch(1), scene.fetch(2));
    for (seed, outcome) in [(1, one?), (2, other?)] {
        let (bytes, ended) = outcome;
        assert!(truth(seed).starts_with(&bytes), "a byte of the other flow");
        let kind = ended.map_err(|error| error.kind());
        assert_eq!(kind, Err(std::io::ErrorKind::ConnectionReset));
    }
    Ok(())
}

// S02, S10: neither the relay itself nor another agent can answer in the place of the provider.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_but_the_provider_that_the_view_names_can_answer() -> Result<()> {
    for path in [
        "relay/relay-1",
        "default/agent/mallory",
        "other/agent/provider",
    ] {
        let world = World::new()?;
        let identity = world.ca.identity(path);
        let scene = Scene::start_in(world, Trick::Answer(identity), |_| Ok(())).await?;
        assert_eq!(scene.expect_reset(path).await?, 0, "{path}");
        let reason = scene.agents[0].stdio("echo".parse()?).await;
        assert_eq!(reason, Reason::PeerNotAuthentic, "{path}");
        let rows = rows(scene.agents[0].audit(), "caller", 2).await?;
        let told = |row: &Decision| row.rule.is_some() && row.reason == Reason::PeerNotAuthentic;
        assert!(rows.iter().all(told), "{path}: {rows:?}");
    }
    let scene = Scene::start(Trick::GiveTo("mallory")).await?;
    assert_eq!(scene.expect_reset("another agent").await?, 0);
    assert_eq!(
        *scene.reached.lock(),
        0,
        "the impostor's program was reached"
    );
    Ok(())
}

// S04, S12: the provider believes the certificate that the caller shows it, not what the relay says of the caller.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_lies_about_the_caller_is_not_believed() -> Result<()> {
    let scene = Scene::start(Trick::CallIt("second")).await?;
    assert_eq!(scene.expect_reset("a lie").await?, 0);
    assert_eq!(*scene.reached.lock(), 0);
    let reason = scene.agents[0].stdio("echo".parse()?).await;
    assert_eq!(reason, Reason::PeerNotAuthentic);
    let provider = &scene.agents[1];
    for audit in [scene.agents[0].audit(), provider.audit()] {
        let rows = rows(audit, "caller", 2).await?;
        let told = |row: &Decision| row.reason == Reason::PeerNotAuthentic;
        assert!(rows.iter().all(told), "{rows:?}");
    }
    Ok(())
}

// S04: what the provider's own view denies is refused, although caller and relay say that it is fine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denied_open_that_a_relay_forwards_is_refused_by_the_provider() -> Result<()> {
    let trick = Trick::Alter(Alteration::Nothing);
    let scene = Scene::start_in(World::new()?, trick, |world| {
        world.forbid_everything();
        Ok(())
    })
    .await?;
    assert_eq!(scene.expect_reset("denied").await?, 0);
    assert_eq!(*scene.reached.lock(), 0);
    let reason = scene.agents[0].stdio("echo".parse()?).await;
    assert_eq!(reason, Reason::PolicyDenied);
    assert!(scene.world.entries.len() > 1);
    Ok(())
}

// Lesson «the agent obeyed any dial request»: what a provider does not offer right now, no relay gets it to open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_provider_does_not_offer_is_refused_whoever_may_ask() -> Result<()> {
    let mut world = World::new()?;
    world.provide("other", &["provider"])?;
    let scene = Scene::start_in(world, Trick::Alter(Alteration::Nothing), |_| Ok(())).await?;
    assert!(!scene.fetch(1).await?.0.is_empty(), "the way is open");
    let before = *scene.reached.lock();
    let reason = scene.agents[0].stdio("other".parse()?).await;
    assert_eq!(reason, Reason::PeerRefused);
    assert_eq!(*scene.reached.lock(), before);
    Ok(())
}

// F27: a leg that is lost when only the caller is done with the handshake costs a round trip, as nothing was used yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leg_that_is_lost_at_the_end_of_the_handshake_is_no_end_of_the_open() -> Result<()> {
    let (tasks, world) = (Scope::new("test"), World::new()?);
    let lost = Arc::new(AtomicBool::new(false));
    let relay = EvilRelay::start(&world, Trick::LoseLastFlight(Arc::clone(&lost)))?;
    let (provider, caller) = world.pair(relay.listen).await?;
    crate::deployment::expose_echo(&provider, &tasks).await?;
    assert_eq!(caller.stdio("echo".parse()?).await, Reason::Done);
    assert!(lost.load(Ordering::Relaxed), "no leg was lost");
    assert_eq!(
        rows(caller.audit(), "caller", 1).await?[0].reason,
        Reason::Done
    );
    Ok(())
}

// S05: a provider that would allow it never hears of what the relay's view denies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_relay_denies_never_reaches_the_provider() -> Result<()> {
    let tasks = Scope::new("test");
    let mut world = World::new()?;
    let rules = world.entries.clone();
    world.forbid_everything();
    let relay = world.relay().await?;
    world.entries = rules;
    let (provider, caller) = world.pair(relay.listen).await?;
    crate::deployment::expose_echo(&provider, &tasks).await?;
    let offered = || {
        relay
            .directory
            .list()
            .iter()
            .any(|one| !one.offers.is_empty())
    };
    until("the provider offers", READY, offered).await?;
    let reason = caller.stdio("echo".parse()?).await;
    assert_eq!(reason, Reason::PolicyDenied);
    Ok(())
}

// S15, H3: a provider's certificate that was stolen and revoked is no use, not even with a relay that helps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_certificate_cannot_answer_for_the_name_it_bears() -> Result<()> {
    let mut world = World::new()?;
    let stolen = world.svid("default/agent/provider")?;
    world.revoke("provider", &stolen)?;
    let trick = Trick::Answer(IdentityStore::new(stolen));
    let scene = Scene::start_in(world, trick, |_| Ok(())).await?;
    assert_eq!(scene.expect_reset("revoked").await?, 0);
    let reason = scene.agents[0].stdio("echo".parse()?).await;
    assert_eq!(reason, Reason::PeerNotAuthentic);
    Ok(())
}

// F07, lesson 11: a relay that never answers an open costs the caller seconds, and leaves nothing behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_that_nobody_answers_leaves_nothing_behind() -> Result<()> {
    let world = World::new()?;
    let tasks = Scope::new("streams");
    let listener =
        tls::relay_listener(&world.ca.identity("relay/relay-1"), &world.ca.trust_store());
    let endpoint = Endpoint::server(
        SocketAddr::from(([127, 0, 0, 1], 0)),
        listener,
        Settings::default(),
        &TransportKeys::generate(),
    )?;
    let listen = endpoint.local_addr()?;
    let (held_in, mut held) = mpsc::channel(1);
    let black_hole = Scope::new("black hole");
    black_hole.spawn("relay", async move {
        let deadline = tokio::time::Instant::now() + READY;
        if let Some(incoming) = endpoint.accept().await
            && let Ok(connection) = incoming.handshake(deadline).await
        {
            let _held = held_in.send(connection).await;
            endpoint.accept().await;
        }
    });
    let caller = world.connect_as("caller", listen).await?;
    let _connection = held.recv().await.context("a connection")?;
    let identity = world.ca.identity("default/agent/caller");
    let end_to_end = EndToEnd::new(identity, world.ca.trust_store(), tasks.spawner());
    for _ in 0..50 {
        let leg = caller.connection.open_bi().await?;
        let call = crate::world::call("echo", &["provider"])?;
        let calling = end_to_end.call(Leg::lasting(leg), call, || Ok(Bytes::new()));
        let gave_up = tokio::time::timeout(Duration::from_millis(5), calling).await;
        assert!(gave_up.is_err(), "a black hole answered");
    }
    until("the streams are forgotten", Duration::from_secs(2), || {
        tasks.is_empty()
    })
    .await
}

// Lesson 11: an open that a relay takes and never answers ends by itself, with a reason, and takes nothing along.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_that_is_taken_and_never_answered_ends_as_open_timeout() -> Result<()> {
    let held = Arc::new(Mutex::new(Vec::new()));
    let scene = Scene::start(Trick::Hold(Arc::clone(&held))).await?;
    let caller = &scene.agents[0];
    let began = std::time::Instant::now();
    assert_eq!(caller.stdio("echo".parse()?).await, Reason::OpenTimeout);
    assert!(began.elapsed() < Duration::from_secs(20), "bounded"); // 15 s at most, and a slow machine
    assert_eq!(held.lock().len(), 1, "the relay was asked once");
    assert_eq!(*scene.reached.lock(), 0, "and nobody else was");
    until("the flow is forgotten", Duration::from_secs(2), || {
        caller.load().0 == 0
    })
    .await
}
