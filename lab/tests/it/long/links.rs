//! Bad links for longer: nine levels of them, a minute of flapping, idle translators, a thousand streams on a trickle.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use lab::{
    Begin, Deployment, Family, Topology,
    deployment::loopback,
    say, scene,
    traffic::{Received, StallRule, Transfer, TransferError},
    wait,
    wire::{Wire, lane::Heading},
};

use crate::{
    links::{MIB, SOON, nats, relay_wire},
    load::{Carried, Carrying, FAR, NEAR},
};

/// What a level's link is, each way, and how many bytes go over it each way.
struct Level {
    name: &'static str,
    script: &'static str,
    bytes: u64,
}

const fn level(name: &'static str, script: &'static str, bytes: u64) -> Level {
    Level {
        name,
        script,
        bytes,
    }
}

/// From a cable in a house to hardly a link. Both legs of a stream cross it, so every figure counts twice.
const LADDER: [Level; 9] = [
    level("house", "delay 500us", 4 * MIB),
    level("city", "delay 5ms, rate 100mbit", 4 * MIB),
    level(
        "country",
        "delay 15ms, jitter 2ms, rate 50mbit, loss 0.1",
        2 * MIB,
    ),
    level(
        "ocean",
        "delay 60ms, jitter 5ms, rate 20mbit, loss 0.5",
        MIB,
    ),
    level(
        "mobile",
        "delay 40ms, jitter 30ms, rate 5mbit, loss 1, reorder 1 20ms",
        MIB / 2,
    ),
    level(
        "satellite",
        "delay 280ms, jitter 20ms, rate 5mbit, burst 0.2 20",
        MIB / 4,
    ),
    level(
        "train",
        "delay 150ms, jitter 150ms, rate 1mbit, burst 2 10, duplicate 1",
        MIB / 8,
    ),
    level(
        "edge",
        "delay 400ms, jitter 200ms, rate 128kbit, loss 10",
        16_384,
    ),
    level(
        "hardly",
        "delay 1s, jitter 500ms, rate 64kbit, loss 30, corrupt 2",
        4_096,
    ),
];
/// What must carry, counted from 0: the first six.
const MUST_CARRY: usize = 6;

/// F14.
#[test]
fn a_ladder_of_links_carries_to_the_sixth_and_fails_clearly_above() {
    scene(Family::V4, |lab| {
        let (carrying, mut wire) = Carrying::start(lab, |it| relay_wire(it, ""))?;
        let Carrying {
            it,
            mut up,
            carried,
        } = carrying;
        drop(carried);
        for (n, level) in LADDER.iter().enumerate() {
            wire.change("clear")?;
            wire.change(level.script)?;
            let began = Instant::now();
            match over(&it, 10 + n as u64, level.bytes) {
                Ok(got) => say(&format!(
                    "F14, {}: {} bytes after {:?}",
                    level.name,
                    got.bytes,
                    began.elapsed()
                )),
                Err(error) => {
                    say(&format!("F14, {}: {error:#}", level.name));
                    ensure!(n >= MUST_CARRY, "{}: {error:#}", level.name);
                    is_clear(&error)?;
                }
            }
        }
        ensure!(up.is_running()?);
        up.without_complaints()
    });
}

/// New agents, so that sessions and streams are also begun on such a link, and one transfer.
fn over(it: &Deployment<'_>, stream: u64, bytes: u64) -> Result<Received> {
    let rule = StallRule::silence(Duration::from_secs(30));
    let _carried = Carried::start_with(it, rule)?;
    let transfer = Transfer::both_ways(stream, bytes).stalls_by(rule);
    transfer.run(&it.net.con, loopback(NEAR))
}

/// A failure is clear that has a reason in our words, or that is a refusal or a reset to the client.
fn is_clear(error: &anyhow::Error) -> Result<()> {
    let is_clear = match error.downcast_ref::<TransferError>() {
        Some(
            TransferError::Cut { .. }
            | TransferError::NotConnected(_)
            | TransferError::NotSent { .. }
            | TransferError::Stalled { .. },
        ) => true,
        Some(
            TransferError::Damaged(_)
            | TransferError::Short { .. }
            | TransferError::Long { .. }
            | TransferError::Broken
            | TransferError::NoHead,
        ) => false,
        None => format!("{error:#}").contains("_UNREACHABLE)"),
    };
    ensure!(is_clear, "not clear: {error:#}");
    Ok(())
}

/// F12: one packet in five is lost on either leg, each way, and ten mebibytes never stall.
#[test]
fn ten_mebibytes_cross_a_link_that_loses_one_packet_in_five() {
    scene(Family::V4, |lab| {
        let (mut carrying, mut wire) = Carrying::start(lab, |it| relay_wire(it, "delay 2ms"))?;
        wire.change("loss 20")?;
        let began = Instant::now();
        // Both ends judge by the stall rule: 10 KiB a second over half a minute.
        let load = carrying.load(1, 1, Transfer::both_ways(1, 10 * MIB))?;
        let gaps = load.finish(&carrying.carried.origin, SOON)?;
        let (took, gap) = (began.elapsed(), gaps.most());
        say(&format!(
            "F12: 10 MiB both ways at 20 % lost: {took:?}, longest gap {gap:?}"
        ));
        for heading in Heading::ALL {
            let lost = wire.counts(heading)?["lost"];
            ensure!(lost > 1_000, "only {lost} lost");
        }
        carrying.is_well()
    });
}

/// F18 in full: sixty times away for a second; no agent dials more than once a second meanwhile.
#[test]
fn two_minutes_of_flapping_end_exact() {
    const FLAPS: usize = 60;
    const SECONDS: usize = 2 * FLAPS;
    scene(Family::V4, |lab| {
        let (mut it, up) = Deployment::up(lab, Begin::Open)?;
        let log = "info,sealock_net::session::dial=debug";
        it.provider = it.provider.with_env("RUST_LOG", log);
        it.consumer = it.consumer.with_env("RUST_LOG", log);
        let mut wire = relay_wire(&it, "delay 2ms")?;
        let carried = Carried::start(&it)?;
        let mut carrying = Carrying { it, up, carried };
        let each = Transfer::both_ways(1, 40 * MIB).paced(MIB / 2);
        let load = carrying.load(1, 4, each)?;
        let before = dials(&carrying.carried);
        let script: Vec<String> = (0..FLAPS)
            .map(|n| format!("t={}s down, t={}s up", 2 * n, 2 * n + 1))
            .collect();
        let began = Instant::now();
        wire.change(&script.join(", "))?;
        wait::pause(Duration::from_secs(SECONDS as u64).saturating_sub(began.elapsed()));
        ensure!(before.iter().all(|dials| *dials > 0), "dials are not told");
        for (after, before) in dials(&carrying.carried).into_iter().zip(before) {
            let made = after - before;
            say(&format!(
                "F18: an agent dialled {made} times in {SECONDS} s"
            ));
            ensure!(made <= SECONDS, "{made} dials in {SECONDS} s");
        }
        load.finish(&carrying.carried.origin, Duration::from_secs(60))?
            .judge("F18, 60 times", Duration::from_secs(5))?;
        carrying.is_well()
    });
}

/// How often each agent has begun to dial a relay.
fn dials(carried: &Carried) -> [usize; 2] {
    [&carried.exposed, &carried.connected]
        .map(|node| node.stderr().matches("a dial begins").count())
}

/// F22, idle: mappings die after 30 s of silence, and both agents have nothing to say for longer.
#[test]
fn an_idle_session_keeps_its_mapping() {
    scene(Family::V4, |lab| {
        let (mut carrying, ()) = Carrying::start(lab, |it| {
            nats(it)?
                .into_iter()
                .try_for_each(|nat| nat.expire_idle(30))
        })?;
        let it = &carrying.it;
        let listener = it
            .net
            .prv
            .enter(|| TcpListener::bind(loopback(FAR + 1)))??;
        let _offered = it.provider.expose(&(FAR + 1).to_string(), "idle")?;
        let _reached = it.consumer.connect("idle", NEAR + 1)?;
        let mut client = it
            .net
            .con
            .enter(|| TcpStream::connect(loopback(NEAR + 1)))??;
        let (mut origin, _) = listener.accept()?;
        client.write_all(b"?")?;
        origin.read_exact(&mut [0; 1])?;
        wait::pause(Duration::from_secs(45));
        // The origin speaks first: nothing that the consumer sends can have made a new mapping.
        client.set_read_timeout(Some(SOON))?;
        let began = Instant::now();
        origin.write_all(b"!")?;
        client
            .read_exact(&mut [0; 1])
            .context("the origin's word")?;
        say(&format!(
            "F22, idle for 45 s: a byte took {:?}",
            began.elapsed()
        ));
        ensure!(began.elapsed() < Duration::from_secs(1));
        let began = Instant::now();
        let load = carrying.load(1, 1, Transfer::both_ways(1, 10_000))?;
        load.finish(&carrying.carried.origin, SOON)?;
        say(&format!(
            "F22, idle for 45 s: an open took {:?}",
            began.elapsed()
        ));
        ensure!(began.elapsed() < Duration::from_secs(1));
        carrying.is_well()
    });
}

/// A thousand streams over the provider's link, which they fill from then on.
fn trickle<'a>(lab: &'a mut Topology) -> Result<(Carrying<'a>, Wire, Vec<TcpStream>)> {
    const STREAMS: u64 = 1_000;
    // A relay refuses what it cannot open in time; that is not what is looked for here.
    const AT_ONCE: usize = 50;
    const STEADY: Duration = Duration::from_secs(30);
    // An origin that hears nothing for longer than the scene lasts would end a stream by itself.
    let rule = StallRule::silence(Duration::from_secs(300));
    let (it, up) = Deployment::up(lab, Begin::Open)?;
    let far = nats(&it)?[1];
    let script = "delay 5ms";
    let mut wire = it.lab().rewire(&far.namespace, &it.net.ix, 22, script)?;
    let carried = Carried::start_with(&it, rule)?;
    let carrying = Carrying { it, up, carried };
    let mut streams: Vec<TcpStream> = Vec::new();
    for first in (100..100 + STREAMS).step_by(AT_ONCE) {
        let begun = streams.len();
        for stream in (first..).take(AT_ONCE) {
            let transfer = Transfer {
                up: 0,
                ..Transfer::both_ways(stream, MIB)
            };
            let it = &carrying.it;
            streams.push(transfer.paced(2_000).open(&it.net.con, loopback(NEAR))?);
        }
        for client in &mut streams[begun..] {
            client.set_read_timeout(Some(SOON))?;
            client.read_exact(&mut [0; 1])?;
            client.set_nonblocking(true)?;
        }
    }
    wire.change("rate 256kbit, queue 64KiB")?;
    wait::pause(STEADY);
    Ok((carrying, wire, streams))
}

/// F24: a thousand streams share 256 kbit/s; none is lost, and what is forbidden ends soon.
#[test]
fn a_thousand_streams_on_a_trickle_starve_neither_the_session_nor_the_rules() {
    // The rule's way to the relay and the agents; the wire's queue alone holds 2 s of 256 kbit/s.
    const ENDED: Duration = Duration::from_secs(5);
    scene(Family::V4, |lab| {
        let (mut carrying, _wire, mut streams) = trickle(lab)?;
        for client in &mut streams {
            ensure!(!ended(client)?, "a stream was lost");
        }
        carrying.it.admin.ask("policy deny cons web")?;
        let began = Instant::now();
        wait::until("the rule to end all streams", SOON, || {
            let mut left = Vec::new();
            for mut client in streams.drain(..) {
                if !ended(&mut client)? {
                    left.push(client);
                }
            }
            streams = left;
            Ok(streams.is_empty().then_some(()))
        })?;
        say(&format!(
            "F24: a thousand streams were ended after {:?}",
            began.elapsed()
        ));
        ensure!(began.elapsed() < ENDED, "{:?}", began.elapsed());
        carrying.is_well()
    });
}

/// F24: who comes last must not wait for a thousand others to be done.
#[test]
fn a_new_stream_opens_on_a_link_that_a_thousand_others_fill() {
    scene(Family::V4, |lab| {
        let (mut carrying, _wire, _streams) = trickle(lab)?;
        let began = Instant::now();
        let open = Transfer::both_ways(1, 1_000);
        open.run(&carrying.it.net.con, loopback(NEAR))?;
        say(&format!("F24: a new stream took {:?}", began.elapsed()));
        carrying.is_well()
    });
}

/// Reads what there is; whether the stream was reset. A clean end is wrong.
fn ended(client: &mut TcpStream) -> Result<bool> {
    let mut buffer = [0; 65_536];
    loop {
        match client.read(&mut buffer) {
            Ok(0) => bail!("a clean end in the middle of a transfer"),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}
