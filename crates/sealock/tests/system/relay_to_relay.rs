//! Legs from one relay to another: who is believed, who judges, and what happens when one of them goes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustls::ClientConfig;
use sealock_core::identity::AgentId;
use sealock_core::reason::Reason;
use sealock_flow::audit::Decision;
use sealock_net::identity::Svid;
use sealock_net::message;
use sealock_net::relays::Relay;
use sealock_net::task::Scope;
use sealock_net::tls;
use sealock_net::tls::voucher::vouch;
use sealock_net::transport::BiStream;
use sealock_proto::stream::Epoch;
use sealock_proto::wire::{Forward, Message, Open, Presence, Present, SessionKind, StreamId};
use sealock_relay::RelayHandle;
use tokio::net::TcpStream;

use crate::deployment::{
    READY, address, any_port, echo_between, eventually, exchange, expose_echo, free_udp_port,
};
use crate::several_relays::{holds, say};
use crate::world::{Raw, World, slow_way, until};

const INSTANCE: [u8; 16] = [5; 16];

fn listed(name: &str, relay: &RelayHandle) -> Result<Relay> {
    Ok(Relay {
        name: name.parse()?,
        addresses: vec![relay.listen.into()],
        region: None,
        connected: true,
    })
}

/// Two relays that know each other, each connected to the other.
pub(crate) async fn neighbours(world: &World) -> Result<[RelayHandle; 2]> {
    let relays = unconnected(world).await?;
    let list = [
        listed("relay-1", &relays[0])?,
        listed("relay-2", &relays[1])?,
    ];
    introduce(&relays, &list).await?;
    Ok(relays)
}

async fn unconnected(world: &World) -> Result<[RelayHandle; 2]> {
    Ok([
        world.relay_called("relay-1", free_udp_port()?).await?,
        world.relay_called("relay-2", free_udp_port()?).await?,
    ])
}

async fn introduce(relays: &[RelayHandle; 2], list: &[Relay]) -> Result<()> {
    for relay in relays {
        relay.relays.set(list.to_vec());
    }
    let all = || relays.iter().all(|relay| relay.peers() == 1);
    until("the relays are connected", READY, all).await
}

/// The decisions of a relay about this service, when there are some.
async fn decisions(relay: &RelayHandle, service: &str) -> Result<Vec<Decision>> {
    let look = async {
        loop {
            let mut found = relay.audit.untold();
            found.retain(|one| one.goal.to_string() == service);
            if !found.is_empty() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(READY, look)
        .await
        .context("no decision")
}

// A7: a caller at one relay opens a service whose provider is at another; both relays judge and write it down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leg_goes_from_one_relay_to_another_and_both_judge_it() -> Result<()> {
    let tasks = Scope::new("test");
    let world = World::new()?;
    let [near, far] = neighbours(&world).await?;
    let provider = world
        .agent("provider", SessionKind::Full, far.listen)
        .await?;
    let caller = world
        .agent("caller", SessionKind::Full, near.listen)
        .await?;
    expose_echo(&provider, &tasks).await?;
    let listen = address(&caller.connect("echo".parse()?, &any_port()).await?)?;
    eventually(listen, b"begin").await?;
    let payload: Vec<u8> = (0..1_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    for _ in 0..20 {
        assert!(exchange(listen, &payload).await? == payload);
    }
    for relay in [&near, &far] {
        let rows = decisions(relay, "echo").await?;
        ensure!(
            rows.iter().all(|row| row.caller.name.as_str() == "caller"),
            "{rows:?}"
        );
        ensure!(rows.iter().any(|row| row.rule.is_some()), "{rows:?}");
    }
    Ok(())
}

/// Between two relays of a test, there and back.
const ROUND_TRIP: Duration = Duration::from_millis(120);

/// How long it takes from the connection of a program to the first answer, and how long the next answer takes.
async fn answer_times(listen: SocketAddr) -> Result<[Duration; 2]> {
    let mut began = Instant::now();
    let mut stream = TcpStream::connect(listen).await?;
    let mut times = [Duration::ZERO; 2];
    for time in &mut times {
        say(&mut stream, b"x").await?;
        *time = began.elapsed();
        began = Instant::now();
    }
    Ok(times)
}

// A7: before the application's bytes go, an open over two relays takes one round trip between them, not two.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_over_two_relays_costs_one_round_trip_between_them() -> Result<()> {
    let tasks = Scope::new("test");
    let world = World::new()?;
    let relays = unconnected(&world).await?;
    let (near, far) = (&relays[0], &relays[1]);
    let slow = slow_way(&tasks, far.listen, ROUND_TRIP / 2).await?;
    let by_the_slow_way = Relay {
        addresses: vec![slow.into()],
        ..listed("relay-2", far)?
    };
    let list = vec![listed("relay-1", near)?, by_the_slow_way];
    introduce(&relays, &list).await?;
    let provider = world
        .agent("provider", SessionKind::Full, far.listen)
        .await?;
    let caller = world
        .agent("caller", SessionKind::Full, near.listen)
        .await?;
    let listen = echo_between(&provider, &caller, &tasks).await?;
    // The quickest of some: whatever else the machine does only adds.
    let mut quickest = answer_times(listen).await?;
    for _ in 0..4 {
        let times = answer_times(listen).await?;
        quickest = [quickest[0].min(times[0]), quickest[1].min(times[1])];
    }
    let [first, next] = quickest;
    ensure!(
        next >= ROUND_TRIP && first >= 2 * ROUND_TRIP,
        "{quickest:?}"
    );
    ensure!(
        first < 3 * ROUND_TRIP,
        "more than one to open: {quickest:?}"
    );
    Ok(())
}

// A7: many legs share one connection; those that are refused or reset leave it to the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn legs_that_are_refused_leave_the_shared_connection_to_the_others() -> Result<()> {
    let tasks = Scope::new("test");
    let mut world = World::new()?;
    world.provide("nobody", &["provider"])?;
    let [near, far] = neighbours(&world).await?;
    let provider = world
        .agent("provider", SessionKind::Full, far.listen)
        .await?;
    let caller = world
        .agent("caller", SessionKind::Full, near.listen)
        .await?;
    expose_echo(&provider, &tasks).await?;
    let listen = address(&caller.connect("echo".parse()?, &any_port()).await?)?;
    eventually(listen, b"begin").await?;
    for _ in 0..20 {
        assert_eq!(caller.stdio("nobody".parse()?).await, Reason::NoProvider);
        let answer = exchange(listen, b"between refusals").await?;
        assert_eq!(answer, b"between refusals");
    }
    assert_eq!((near.peers(), far.peers()), (1, 1));
    Ok(())
}

// A7: when the other relay is gone there is a reason, and soon; when the provider comes to ours, all is well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_is_gone_is_no_provider_and_the_provider_elsewhere_is_found() -> Result<()> {
    let tasks = Scope::new("test");
    let world = World::new()?;
    let [near, far] = neighbours(&world).await?;
    let at = [far.listen, near.listen];
    let provider = world
        .agent("provider", SessionKind::Full, far.listen)
        .await?;
    let second = world
        .agent_of("second", SessionKind::Full, &at[1..])
        .await?;
    let caller = world
        .agent("caller", SessionKind::Full, near.listen)
        .await?;
    expose_echo(&provider, &tasks).await?;
    let listen = address(&caller.connect("echo".parse()?, &any_port()).await?)?;
    eventually(listen, b"begin").await?;
    far.stop().await;
    let began = Instant::now();
    assert_eq!(caller.stdio("echo".parse()?).await, Reason::NoProvider);
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    drop(second);
    provider.stop().await;
    let provider = world
        .agent("provider", SessionKind::Full, near.listen)
        .await?;
    expose_echo(&provider, &tasks).await?;
    eventually(listen, b"elsewhere").await?;
    Ok(())
}

/// A relay of the deployment in the hands of somebody else.
struct Compromised {
    raw: Raw,
    control: BiStream,
}

impl Compromised {
    fn client(world: &World, relay: &str) -> Arc<ClientConfig> {
        let identity = world.ca.identity(&format!("relay/{relay}"));
        tls::mesh_client(&identity, &world.ca.trust_store())
    }

    /// Connects to `to` as the relay `relay`, which `to` has on its list.
    async fn at(world: &World, to: &RelayHandle, relay: &str) -> Result<Self> {
        let raw = Raw::connect(to.listen, Self::client(world, relay)).await?;
        let mut control = raw.connection.open_bi().await?;
        control.send.write(Message::Peer.encode()).await?;
        Ok(Self { raw, control })
    }

    async fn presence(&mut self) -> Result<Presence> {
        let heard = tokio::time::timeout(READY, message::read(&mut self.control.recv)).await??;
        if let Message::Presence(presence) = heard {
            return Ok(presence);
        }
        anyhow::bail!("{heard:?}")
    }

    /// Passes a leg on; hears what the other relay, or the provider, says.
    async fn forward(&self, forward: &Forward) -> Result<Message> {
        let mut leg = self.raw.connection.open_bi().await?;
        let message = Message::Forward(Box::new(forward.clone()));
        leg.send.write(message.encode()).await?;
        Ok(tokio::time::timeout(READY, message::read(&mut leg.recv)).await??)
    }
}

fn forward(svid: &Svid, relay: &str, service: &str) -> Result<Forward> {
    Ok(Forward {
        open: Open {
            stream: StreamId(rand::random()),
            epoch: Epoch::FIRST,
            service: service.parse()?,
            provider: None,
            conduit: None,
        },
        caller: svid.leaf().agent().context("an agent")?.clone(),
        instance: INSTANCE,
        voucher: vouch(svid, &relay.parse()?, INSTANCE)?,
    })
}

/// One relay, which knows of another that somebody took over, and a provider at it.
async fn besieged(
    world: &World,
    tasks: &Scope,
) -> Result<(RelayHandle, sealock_agent::AgentHandle)> {
    let relay = world.relay_called("relay-1", free_udp_port()?).await?;
    let provider = world
        .agent("provider", SessionKind::Full, relay.listen)
        .await?;
    expose_echo(&provider, tasks).await?;
    holds(&relay, "provider", 1).await?;
    let evil = Relay {
        name: "relay-2".parse()?,
        addresses: vec![free_udp_port()?.into()],
        region: None,
        connected: true,
    };
    relay.relays.set(vec![listed("relay-1", &relay)?, evil]);
    Ok((relay, provider))
}

// Lesson 13, S04, S06: a relay that is compromised calls as nobody but the agents that vouched for being at it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compromised_relay_cannot_call_as_an_agent_that_did_not_vouch_for_it() -> Result<()> {
    let tasks = Scope::new("test");
    let world = World::new()?;
    let (relay, _provider) = besieged(&world, &tasks).await?;
    let mut evil = Compromised::at(&world, &relay, "relay-2").await?;
    let provider: AgentId = "default/provider"
        .split_once('/')
        .map(agent_id)
        .context("an id")??;
    let told = |offers| Present {
        agent: provider.clone(),
        offers,
    };
    let here = [told(None), told(Some("echo".parse()?))];
    assert_eq!(evil.presence().await?.here, here);

    let caller = world.svid("default/agent/caller")?;
    let mallory = world.svid("default/agent/mallory")?;
    let good = forward(&caller, "relay-2", "echo")?;
    let answer = evil.forward(&good).await?;
    ensure!(
        matches!(answer, Message::Opened(_)),
        "the good one: {answer:?}"
    );

    let own_key = {
        // The agent's certificate, which everybody sees, and a signature of the attacker's own key.
        let mut forged = good.clone();
        forged.voucher.signature = vouch(&mallory, &"relay-2".parse()?, INSTANCE)?.signature;
        forged
    };
    let mut expired = good.clone();
    expired.voucher.expires_ms = jiff::Timestamp::now().as_millisecond() - 1;
    let mut prolonged = good.clone();
    prolonged.voucher.expires_ms += 3_600_000;
    let mut absent = good.clone();
    absent.voucher.chain.clear();
    absent.voucher.signature.clear();
    let as_another = Forward {
        caller: good.caller.clone(),
        ..forward(&mallory, "relay-2", "echo")?
    };
    let cases = [
        (
            "a signature of another key",
            own_key,
            Reason::PeerNotAuthentic,
        ),
        ("an expired voucher", expired, Reason::NotAdmitted),
        ("a prolonged voucher", prolonged, Reason::PeerNotAuthentic),
        ("no voucher", absent, Reason::PeerNotAuthentic),
        (
            "another agent's voucher",
            as_another,
            Reason::PeerNotAuthentic,
        ),
        (
            "a voucher for another relay",
            forward(&caller, "relay-1", "echo")?,
            Reason::PeerNotAuthentic,
        ),
        (
            "a voucher for another process",
            Forward {
                instance: [6; 16],
                ..good.clone()
            },
            Reason::PeerNotAuthentic,
        ),
    ];
    for (what, forward, reason) in cases {
        assert_eq!(
            evil.forward(&forward).await?,
            Message::Refused(reason),
            "{what}"
        );
    }
    let answer = evil.forward(&good).await?;
    ensure!(
        matches!(answer, Message::Opened(_)),
        "the connection lives on: {answer:?}"
    );
    let rows = decisions(&relay, "echo").await?;
    let refused = rows
        .iter()
        .filter(|row| row.reason == Reason::PeerNotAuthentic);
    ensure!(
        refused.count() >= 6,
        "each refusal is written down: {rows:?}"
    );
    Ok(())
}

fn agent_id((tenant, name): (&str, &str)) -> Result<AgentId> {
    Ok(AgentId {
        tenant: tenant.parse()?,
        name: name.parse()?,
    })
}

// C2, S07: whoever was revoked, or what policy denies, is refused at the other relay by its own view.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_other_relay_judges_by_its_own_view() -> Result<()> {
    let tasks = Scope::new("test");
    let mut world = World::new()?;
    world.forbid_everything();
    world.allow("callers", "caller", "*");
    let revoked = world.svid("default/agent/caller")?;
    world.revoke("caller", &revoked)?;
    let (relay, _provider) = besieged(&world, &tasks).await?;
    let evil = Compromised::at(&world, &relay, "relay-2").await?;
    let mallory = world.svid("default/agent/mallory")?;
    let caller = world.svid("default/agent/caller")?;
    for (what, svid, reason) in [
        (
            "a revoked certificate",
            &revoked,
            Some(Reason::IdentityRevoked),
        ),
        ("no rule", &mallory, Some(Reason::PolicyDenied)),
        ("its newer certificate", &caller, None),
    ] {
        let answer = evil.forward(&forward(svid, "relay-2", "echo")?).await?;
        match reason {
            Some(reason) => assert_eq!(answer, Message::Refused(reason), "{what}"),
            None => ensure!(matches!(answer, Message::Opened(_)), "{what}: {answer:?}"),
        }
    }
    Ok(())
}

// A7: a leg that was passed on is not passed on again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leg_is_passed_on_once_and_no_further() -> Result<()> {
    let tasks = Scope::new("test");
    let world = World::new()?;
    let [middle, far] = neighbours(&world).await?;
    let provider = world
        .agent("provider", SessionKind::Full, far.listen)
        .await?;
    expose_echo(&provider, &tasks).await?;
    holds(&far, "provider", 1).await?;
    let caller = world
        .agent("caller", SessionKind::Full, middle.listen)
        .await?;
    let listen = address(&caller.connect("echo".parse()?, &any_port()).await?)?;
    eventually(listen, b"once is fine").await?;
    let mut list = middle.relays.current().to_vec();
    list.push(Relay {
        name: "relay-3".parse()?,
        addresses: vec![free_udp_port()?.into()],
        region: None,
        connected: true,
    });
    middle.relays.set(list);
    let third = Compromised::at(&world, &middle, "relay-3").await?;
    let svid = world.svid("default/agent/caller")?;
    let answer = third.forward(&forward(&svid, "relay-3", "echo")?).await?;
    assert_eq!(answer, Message::Refused(Reason::NoProvider));
    Ok(())
}

// B4, S09, S10: only a relay of the deployment speaks as one; nobody else is told who is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_relays_of_the_deployment_are_let_in_as_relays() -> Result<()> {
    let tasks = Scope::new("test");
    let world = World::new()?;
    let (relay, _provider) = besieged(&world, &tasks).await?;
    let agent = tls::mesh_client(
        &world.ca.identity("default/agent/mallory"),
        &world.ca.trust_store(),
    );
    let unlisted = Compromised::client(&world, "relay-9");
    for (what, client, expected) in [
        ("an agent", agent, Reason::NotAdmitted),
        (
            "a relay that is on no list",
            unlisted,
            Reason::ControllerUnreachable,
        ),
    ] {
        // The relay may be quicker than the end of our handshake.
        let reason = match Raw::connect(relay.listen, client).await {
            Ok(raw) => {
                let lost = tokio::time::timeout(READY, raw.connection.closed()).await?;
                lost.reason()
            }
            Err(error) => error.reason(),
        };
        assert_eq!(reason, expected, "{what}");
    }
    let mut stranger = World::new()?;
    stranger.ca = sealock_net::identity::testing::TestCa::new("sealock");
    let outcome = Raw::connect(relay.listen, Compromised::client(&stranger, "relay-2")).await;
    ensure!(outcome.is_err(), "a relay of another authority was let in");
    Ok(())
}
