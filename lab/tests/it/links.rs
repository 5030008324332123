//! Bad links under live streams: slow, lossy, out of order, too narrow for long packets.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{
    Deployment, Family, Namespace, Nat, Spec,
    deployment::{RELAY_HOST, RELAY_PORT},
    say, scene,
    traffic::Transfer,
    wait,
    wire::{Wire, lane::Heading},
};

use crate::load::{Carried, Carrying, Load};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// What a stream may show of a fault that its path repairs by itself.
const GAP: Duration = Duration::from_secs(5);
/// What a stream may show of a mapping that has changed: a keep-alive, and the check of the new path.
const MOVED: Duration = Duration::from_secs(1);
/// Forges messages of the network; what it does stands at its top.
const FORGER: &str = include_str!("forge.py");

/// A wire in place of the relay's cable: both legs of every stream suffer.
pub(crate) fn relay_wire(it: &Deployment<'_>, script: &str) -> Result<Wire> {
    it.lab()
        .rewire(&it.net.rel1, &it.net.ix, RELAY_HOST, script)
}

/// Moves bytes both ways and returns how many mebibytes a second went each way.
pub(crate) fn goodput(carrying: &Carrying<'_>, stream: u64, bytes: u64) -> Result<f64> {
    let began = Instant::now();
    let load = carrying.load(stream, 1, Transfer::both_ways(stream, bytes))?;
    load.finish(&carrying.carried.origin, SOON)?;
    #[expect(clippy::cast_precision_loss, reason = "a figure to look at")]
    let mib = bytes as f64 / MIB as f64;
    Ok(mib / began.elapsed().as_secs_f64())
}

/// F12.
#[test]
fn loss_makes_streams_slower_and_never_wrong() {
    scene(Family::V4, |lab| {
        let (mut carrying, mut wire) = Carrying::start(lab, |it| relay_wire(it, "delay 2ms"))?;
        let mut last = f64::MAX;
        for (percent, bytes) in [(0, 4 * MIB), (1, 4 * MIB), (5, MIB), (20, MIB / 4)] {
            wire.change(&format!("loss {percent}"))?;
            let rate = goodput(&carrying, 1 + percent, bytes)?;
            say(&format!("F12, {percent} % lost: {rate:.2} MiB/s"));
            ensure!(
                rate <= last,
                "more lost and faster: {rate:.2} after {last:.2}"
            );
            last = rate;
        }
        ensure!(wire.counts(Heading::Back)?["lost"] > 100);
        carrying.is_well()
    });
}

/// F13.
#[test]
fn packets_out_of_order_twice_or_spoilt_leave_every_byte_right() {
    scene(Family::V4, |lab| {
        let script = "delay 2ms, reorder 5 4ms, duplicate 5, corrupt 1, forge 1";
        let (mut carrying, mut wire) = Carrying::start(lab, |it| relay_wire(it, script))?;
        let rate = goodput(&carrying, 1, 2 * MIB)?;
        say(&format!("F13: {rate:.2} MiB/s"));
        for heading in Heading::ALL {
            let counts = wire.counts(heading)?;
            for what in ["reordered", "duplicated", "corrupted", "forged"] {
                ensure!(counts[what] > 0, "nothing was {what}: {counts:?}");
            }
        }
        carrying.is_well()
    });
}

/// F19: from one moment on packets above 1 280 bytes vanish, and nothing says so.
#[test]
fn a_path_that_swallows_long_packets_is_repaired() {
    for family in [Family::V4, Family::V6] {
        scene(family, |lab| {
            let (mut carrying, mut wire) = Carrying::start(lab, |it| relay_wire(it, "delay 2ms"))?;
            let each = Transfer::both_ways(1, 12 * MIB).paced(4 * MIB);
            let load = carrying.load(1, 2, each)?;
            load.wait_for_each(4 * MIB, SOON)?;
            wire.change("mtu 1280")?;
            load.finish(&carrying.carried.origin, SOON)?
                .judge("F19", GAP)?;
            ensure!(wire.counts(Heading::There)?["too_long"] > 0);
            carrying.is_well()
        });
    }
}

/// F18, in short: the relay's line is there for a second and away for a second.
#[test]
fn a_flapping_link_delays_and_changes_nothing() {
    scene(Family::V4, |lab| {
        let (mut carrying, mut wire) = Carrying::start(lab, |it| relay_wire(it, "delay 2ms"))?;
        let load = carrying.load(1, 4, Transfer::both_ways(1, 4 * MIB).paced(MIB / 2))?;
        load.wait_for_each(MIB / 4, SOON)?;
        wire.change("down, t=1s up, t=2s down, t=3s up, t=4s down, t=5s up")?;
        load.finish(&carrying.carried.origin, SOON)?
            .judge("F18", GAP)?;
        carrying.is_well()
    });
}

/// F20: what a stranger can say about somebody else's packets is no reason to believe it.
#[test]
fn forged_messages_of_the_network_change_nothing() {
    scene(Family::V4, |lab| {
        let (mut carrying, ()) = Carrying::start(lab, |_| Ok(()))?;
        let load = carrying.load(1, 4, Transfer::both_ways(1, 4 * MIB).paced(MIB / 2))?;
        load.wait_for_each(MIB / 4, SOON)?;
        let it = &carrying.it;
        let forger = |name: &str, arguments: [&str; 2]| {
            Spec::new(name, "/usr/bin/python3")
                .args(["-c", FORGER])
                .args(arguments)
        };
        let look = forger("look", ["look", &RELAY_PORT.to_string()]);
        let seen = it.lab().run(&it.net.rel1, look)?.success()?;
        let packets: Vec<&str> = seen.lines().collect();
        ensure!(packets.len() == 2, "the look saw {seen}");
        // One is the relay's and tells the relay, the other is an agent's and tells that one.
        let told = packets.iter().map(|packet| {
            it.lab()
                .start(&it.net.ctl, forger("forger", ["tell", packet]))
        });
        for node in told.collect::<Result<Vec<_>>>()? {
            let said = node.finish(SOON)?.success()?;
            let (number, _) = said.split_once(" forged").context("a number")?;
            say(&format!("F20: {said}"));
            ensure!(number.parse::<u32>()? > 500, "{said}");
        }
        // Both of them were told: their kernels have taken it in.
        for host in [&it.net.rel1, &it.net.con, &it.net.prv] {
            say(&format!(
                "F20: {} was told {} times",
                host.short(),
                told_unreachable(host)?
            ));
        }
        let agents = told_unreachable(&it.net.con)? + told_unreachable(&it.net.prv)?;
        ensure!(told_unreachable(&it.net.rel1)? > 500 && agents > 500);
        load.finish(&carrying.carried.origin, SOON)?
            .judge("F20", MOVED)?;
        carrying.is_well()
    });
}

/// How many times a machine's kernel was told by ICMP that something cannot be reached.
fn told_unreachable(host: &Namespace) -> Result<u64> {
    let table = host.enter(|| fs::read_to_string("/proc/thread-self/net/snmp"))??;
    let mut lines = table.lines().filter(|line| line.starts_with("Icmp:"));
    let names = lines.next().context("the names")?.split_whitespace();
    let numbers = lines.next().context("the numbers")?.split_whitespace();
    let mut both = names.zip(numbers);
    let (_, number) = both
        .find(|(name, _)| *name == "InDestUnreachs")
        .context("InDestUnreachs")?;
    Ok(number.parse()?)
}

pub(crate) fn nats<'a>(it: &'a Deployment<'_>) -> Result<[&'a Nat; 2]> {
    let near = it.net.nat1.as_ref().context("nat1")?;
    Ok([near, it.net.nat2.as_ref().context("nat2")?])
}

/// F22: either side's translator gives other ports, then another address, in the middle of a transfer.
#[test]
fn a_translator_that_forgets_or_moves_is_hardly_felt() {
    scene(Family::V4, |lab| {
        let (mut carrying, ()) = Carrying::start(lab, |_| Ok(()))?;
        let load = carrying.load(1, 4, Transfer::both_ways(1, 4 * MIB).paced(MIB / 2))?;
        let [near, far] = nats(&carrying.it)?;
        let (lab, ix) = (carrying.it.lab(), &carrying.it.net.ix);
        let steps: [&dyn Fn() -> Result<()>; 4] = [
            &|| near.forget(),
            &|| far.forget(),
            &|| near.readdress(lab, ix, 21, 121),
            &|| far.readdress(lab, ix, 22, 122),
        ];
        for (step, n) in steps.iter().zip(1..) {
            load.wait_for_each(n * MIB * 3 / 4, SOON)?;
            step()?;
            let nat = if n % 2 == 1 { near } else { far };
            wait::until("a new mapping to be used", SOON, || {
                Ok((nat.mapped_again()? > 0).then_some(()))
            })?;
        }
        load.finish(&carrying.carried.origin, SOON)?
            .judge("F22", MOVED)?;
        carrying.is_well()
    });
}

/// F17, the part of one relay: controller and relay do not reach each other.
#[test]
fn a_relay_cut_off_from_its_controller_carries_and_opens() {
    scene(Family::V4, |lab| {
        let (it, mut roles) = Deployment::split(lab)?;
        let carried = Carried::start(&it)?;
        let load = Load::start(&it, 1, 2, Transfer::both_ways(1, 4 * MIB).paced(MIB / 2))?;
        load.wait_for_each(MIB / 2, SOON)?;
        let parted = it.net.ix.part(it.net.ix.v4(RELAY_HOST), it.net.ix.v4(13))?;
        load.wait_for_each(2 * MIB, SOON)?;
        let more = Load::start(&it, 10, 5, Transfer::both_ways(10, MIB / 4))?;
        more.finish(&carried.origin, SOON)?
            .judge("F17, opened meanwhile", MOVED)?;
        load.finish(&carried.origin, SOON)?.judge("F17", MOVED)?;
        ensure!(parted.lost()? > 0, "they had nothing to say to each other");
        parted.heal();
        it.admin.ask("policy deny cons web")?;
        wait::until("a rule made after the cut", SOON, || {
            let refused = Load::start(&it, 20, 1, Transfer::both_ways(20, 1_000))?;
            Ok(refused
                .finish(&carried.origin, Duration::from_millis(100))
                .err())
        })?;
        ensure!(roles.relay.is_running()? && roles.controller.is_running()?);
        roles.relay.without_complaints()
    });
}
