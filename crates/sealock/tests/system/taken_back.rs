//! Streams that policy takes back, live or without a leg, and attempts to take over what belongs to somebody else: each
//! attach is judged and written down once, and the true owner notices nothing.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use sealock_agent::AgentHandle;
use sealock_core::identity::AgentId;
use sealock_core::reason::Reason;
use sealock_net::task::Scope;
use sealock_proto::stream::{Attach, Decoder, Epoch, Frame};
use sealock_proto::wire::{Incoming, SessionKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::audited::rows;
use crate::deployment::{READY, address, any_port, expose_echo, serve};
use crate::evil_relay::{EvilRelay, Tape, Trick};
use crate::resume::{Called, attach, open, taken_up};
use crate::world::{World, until};

/// How a change of the view ends what it no longer allows.
struct Change {
    what: &'static str,
    make: fn(&mut Called) -> Result<()>,
    /// Why the stream is cut.
    cut: Reason,
    /// Why an attach is refused.
    refused: Reason,
}

const CHANGES: [Change; 2] = [
    Change {
        what: "a rule is removed",
        make: |called| {
            called.world.forbid_everything();
            Ok(())
        },
        cut: Reason::PolicyRevoked,
        refused: Reason::PolicyDenied,
    },
    Change {
        what: "the caller is revoked",
        make: |called| called.world.revoke("caller", &called.svid),
        cut: Reason::IdentityRevoked,
        refused: Reason::IdentityRevoked,
    },
];

impl Change {
    /// The provider's own view changes; the relay, which may be hostile, knows nothing of it.
    fn reach_the_provider(&self, called: &mut Called) -> Result<()> {
        (self.make)(called)?;
        let view = called.world.view(2, jiff::Timestamp::now())?;
        called.provider.views().put(view)?;
        Ok(())
    }
}

// F27: what cuts a live stream is told to its caller, in so many words.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_stream_that_policy_takes_back_is_reset_with_the_reason() -> Result<()> {
    for change in CHANGES {
        let mut called = Called::start().await?;
        called.works().await?;
        change.reach_the_provider(&mut called)?;
        let ended = tokio::time::timeout(READY, called.halves.0.read()).await?;
        assert_eq!(ended, Err(change.cut), "{}", change.what);
        let rows = rows(called.provider.audit(), "caller", 2).await?;
        assert_eq!(rows[1].reason, change.cut, "{}", change.what);
    }
    Ok(())
}

// S06: what was taken back while a stream had no leg is not given back by a new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_stream_that_policy_takes_back_is_not_taken_up_again() -> Result<()> {
    for change in CHANGES {
        let tasks = Scope::new("test");
        let (ended_in, mut ended) = mpsc::channel(1);
        let target = serve(&tasks, move |mut stream: TcpStream| {
            let ended = ended_in.clone();
            async move {
                let read = stream.read(&mut [0; 1]).await;
                let _heard = ended.send(read.map_err(|error| error.kind())).await;
            }
        })
        .await?;
        let mut called = Called::start_with(tasks, target).await?;
        called.owner.connection.close(Reason::SessionLost);
        let parked = || called.provider.parked() == 1;
        until("the stream is parked", READY, parked).await?;

        change.reach_the_provider(&mut called)?;
        let ended = tokio::time::timeout(READY, ended.recv()).await?;
        let reset = Some(Err(std::io::ErrorKind::ConnectionReset));
        assert_eq!(ended, reset, "{}: the program is told", change.what);

        let again = called
            .world
            .connect_as("caller", called.relay.listen)
            .await?;
        let _control = again.greet(SessionKind::CallerOnly, [3; 16]).await?;
        let head = open(called.stream, Epoch(2), Some("provider"))?;
        let refused = taken_up(&again, head, attach(Epoch(2), None)).await?;
        assert_eq!(refused, Some(change.refused), "{}", change.what);
        let rows = rows(called.provider.audit(), "caller", 3).await?;
        let reasons: Vec<Reason> = rows.iter().map(|row| row.reason).collect();
        let expected = [Reason::Done, change.cut, change.refused];
        assert_eq!(reasons, expected, "{}", change.what);
    }
    Ok(())
}

/// A stream that its caller has taken up again, through a relay that kept a copy of how.
struct Robbed {
    relay: EvilRelay,
    provider: AgentHandle,
    _caller: AgentHandle,
    stream: TcpStream,
    /// What a leg with the owner's genuine proof began with.
    genuine: (Incoming, Bytes),
    _tasks: Scope,
}

impl Robbed {
    async fn start() -> Result<Self> {
        let (world, tasks) = (World::new()?, Scope::new("test"));
        let tape = Arc::<Tape>::default();
        let relay = EvilRelay::start(&world, Trick::Record(Arc::clone(&tape)))?;
        let (provider, caller) = world.pair(relay.listen).await?;
        expose_echo(&provider, &tasks).await?;
        let listen = caller.connect("echo".parse()?, &any_port()).await?;
        let mut stream = TcpStream::connect(address(&listen)?).await?;
        echoes(&mut stream).await?;
        tape.cut.send_replace(true);
        echoes(&mut stream).await?;
        let genuine = tape.second.lock().take().context("no second leg")?;
        Ok(Self {
            relay,
            provider,
            _caller: caller,
            stream,
            genuine,
            _tasks: tasks,
        })
    }

    /// What the provider says to a leg that is made of the genuine one; it is written down once.
    async fn replay(&self, change: impl FnOnce(&mut Incoming, &mut Bytes)) -> Result<Reason> {
        let before = self.provider.audit().untold().len();
        let (mut incoming, mut first) = self.genuine.clone();
        change(&mut incoming, &mut first);
        let caller = incoming.caller.name.clone();
        let refused = self.relay.offer(incoming, first).await?;
        let refused = refused.context("the leg was taken")?;
        let audit = self.provider.audit();
        let written = || audit.untold().len() == before + 1;
        until("it is written down once", READY, written).await?;
        let rows = audit.untold();
        let row = rows.last().context("a row")?;
        ensure!(
            row.reason == refused && row.caller.name == caller,
            "{row:?}"
        );
        Ok(refused)
    }
}

async fn echoes(stream: &mut TcpStream) -> Result<()> {
    let talk = async {
        stream.write_all(b"still mine").await?;
        let mut answer = [0; 10];
        stream.read_exact(&mut answer).await?;
        ensure!(&answer == b"still mine", "another answer");
        Ok(())
    };
    tokio::time::timeout(READY, talk)
        .await
        .context("it hangs")?
}

/// The genuine ATTACH with another epoch, as somebody without the secret can make it.
fn with_epoch(first: &Bytes, epoch: Epoch) -> Bytes {
    let mut decoder = Decoder::new();
    decoder.push(first.clone());
    let Ok(Some(Frame::Attach(attach))) = decoder.next() else {
        return Bytes::new();
    };
    let encoded = Frame::Attach(Attach { epoch, ..attach }).encode();
    Bytes::copy_from_slice(encoded.header.as_ref())
}

fn agent(tenant: &str, name: &str) -> AgentId {
    AgentId {
        tenant: tenant.parse().expect("a name"),
        name: name.parse().expect("a name"),
    }
}

// S16, S17, S20, F48: a proof is good for one leg, for one caller, once; whoever replays it changes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_genuine_proof_that_somebody_replays_is_refused_and_its_owner_goes_on() -> Result<()> {
    let mut robbed = Robbed::start().await?;
    let taken = rows(robbed.provider.audit(), "caller", 2).await?;
    let good =
        |row: &sealock_flow::audit::Decision| row.reason == Reason::Done && row.rule.is_some();
    ensure!(taken.iter().all(good), "the open and the attach: {taken:?}");

    type Forgery = fn(&mut Incoming, &mut Bytes);
    let cases: [(&str, Forgery, Reason); 8] = [
        ("the same again", |_, _| {}, Reason::AttachRefused),
        (
            "for a later epoch than it proves",
            |incoming, _| incoming.epoch = Epoch(3),
            Reason::AttachRefused,
        ),
        (
            "with a later epoch written into it",
            |incoming, first| {
                incoming.epoch = Epoch(3);
                *first = with_epoch(first, Epoch(3));
            },
            Reason::AttachRefused,
        ),
        (
            "with the first epoch written into it",
            |_, first| *first = with_epoch(first, Epoch::FIRST),
            Reason::AttachRefused,
        ),
        (
            "as the stream's first leg",
            |incoming, _| incoming.epoch = Epoch::FIRST,
            Reason::StreamInUse,
        ),
        (
            "as another agent",
            |incoming, _| incoming.caller = agent("default", "mallory"),
            Reason::PeerNotAuthentic,
        ),
        (
            "as the agent of that name in another tenant",
            |incoming, _| incoming.caller = agent("other", "caller"),
            Reason::PeerNotAuthentic,
        ),
        (
            "for another service",
            |incoming, _| incoming.service = "vault".parse().expect("a name"),
            Reason::PeerNotAuthentic,
        ),
    ];
    for (what, forge, expected) in cases {
        let refused = robbed.replay(forge).await.context(what)?;
        assert_eq!(refused, expected, "{what}");
        echoes(&mut robbed.stream).await.context(what)?;
    }

    robbed.stream.shutdown().await?;
    ensure!(robbed.stream.read(&mut [0; 1]).await? == 0, "a clean end");
    let forgotten = || robbed.provider.load() == (0, 0);
    until("the stream is over at the provider", READY, forgotten).await?;
    let refused = robbed.replay(|_, _| {}).await?;
    assert_eq!(refused, Reason::PeerLost, "after the close");
    Ok(())
}
