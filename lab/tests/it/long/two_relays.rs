//! Two relays, for longer: one is stopped, is heard one way only, or dies on the way between them.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{
    Deployment, Family, Spec, Topology,
    deployment::{Twin, loopback},
    faults::{Fault, Traffic},
    pattern::{Pattern, Way},
    say, scene,
    traffic::Transfer,
    wait,
};

use crate::{
    ladder::slow_page,
    links::{MIB, SOON},
    load::{Load, NEAR},
    survival::OTHER,
    two_relays::{CONSUMER, PROVIDER, RELAYS, are_well, both_move, carrier, part, streams},
};

/// What a stream that is not touched may show all the same on a busy machine.
const UNTOUCHED: Duration = Duration::from_secs(1);

#[test]
fn the_consumer_moves_to_another_relay_and_then_the_provider() {
    both_move(CONSUMER, PROVIDER);
}

/// F04: a relay that is stopped for five seconds is left, whichever it is, and streams go on by the other.
#[test]
fn streams_leave_a_relay_that_is_stopped() {
    scene(Family::V4, |lab| {
        let (it, mut roles) = Deployment::twin(lab)?;
        let (mut carried, load) = streams(&it, 8, 9)?;
        let stopped = carrier(&it)?;
        let ended = said(&roles.relays[stopped].stderr(), "session ended");
        let before = load.most();
        roles.relays[stopped].freeze()?;
        load.wait_for_each(before + MIB / 8, SOON)?;
        ensure!(carrier(&it)? != stopped, "a stopped relay carries");
        roles.relays[stopped].thaw()?;
        // What it had in hand is over: the agents have left it, and tell it so.
        wait::until("the end of its old sessions", SOON, || {
            let log = roles.relays[stopped].stderr();
            Ok((said(&log, "session ended") >= ended + 2).then_some(()))
        })?;
        ensure!(load.is_under_way(), "the streams ended too early");
        load.finish(&carried.origin, SOON)?
            .judge("F04, one of two", OTHER)?;
        are_well(&mut roles)?;
        carried.is_well()
    });
}

fn said(log: &str, what: &str) -> usize {
    log.matches(what).count()
}

/// F16: the carrying relay hears one side no more, or is not heard; writes still succeed on one end.
#[test]
fn streams_leave_a_path_that_carries_one_way_only() {
    scene(Family::V4, |lab| {
        let (it, mut roles) = Deployment::twin(lab)?;
        let (mut carried, load) = streams(&it, 8, 12)?;
        for is_deaf in [true, false] {
            let left = carrier(&it)?;
            let ix = &it.net.ix;
            let [relay, agent] = [ix.v4(RELAYS[left]), ix.v4(PROVIDER)];
            let way = if is_deaf {
                Traffic::any().from(agent).to(relay)
            } else {
                Traffic::any().from(relay).to(agent)
            };
            let before = load.most();
            let fault = ix.lose(way)?;
            load.wait_for_each(before + MIB / 8, SOON)?;
            ensure!(fault.lost()? > 0, "nothing was lost");
        }
        ensure!(load.is_under_way(), "the streams ended too early");
        load.finish(&carried.origin, SOON)?
            .judge("F16, one of two", OTHER)?;
        are_well(&mut roles)?;
        carried.is_well()
    });
}

/// The consumer reaches only the first relay and the provider only the second.
fn apart<'a>(lab: &'a mut Topology) -> Result<(Deployment<'a>, Twin, [Fault; 2])> {
    let (it, roles) = Deployment::twin(lab)?;
    let fences = [part(&it, CONSUMER, 1)?, part(&it, PROVIDER, 0)?];
    Ok((it, roles, fences))
}

#[test]
fn a_page_is_fetched_over_two_relays_while_either_of_them_dies() {
    const PAGE: usize = 6 << 20;
    scene(Family::V4, |lab| {
        let (it, mut roles, fences) = apart(lab)?;
        let files = it.lab().directory().join("files");
        fs::create_dir(&files)?;
        let page = Pattern::new(1, Way::Down).bytes(0, PAGE);
        let origin = slow_page(&it.net.prv, &page)?;
        let exposed = it.provider.expose("3000", "web")?;
        let connected = it.consumer.connect("web", 8080)?;
        let got = files.join("got");
        let get = Spec::new("curl", "curl")
            .args(["-sS", "--fail"])
            .args(["http://127.0.0.1:8080/page", "-o"])
            .args([&got]);
        let mut curl = it.lab().start(&it.net.con, get)?;
        for (dies, part) in [(0, 1), (1, 3)] {
            wait::until("some of the page", SOON, || {
                let size = fs::metadata(&got).map_or(0, |file| file.len());
                Ok((size >= part << 20).then_some(()))
            })?;
            roles.relays[dies].kill()?;
            roles.relays[dies] = it.start_relay_of_two(dies, &[])?;
        }
        ensure!(
            curl.is_running()?,
            "curl ended too early: {}",
            curl.stderr()
        );
        let ended = curl.finish(SOON).context("curl")?;
        ensure!(ended.status.success(), "{}", ended.stderr);
        ensure!(fs::read(&got)? == page, "the page differs");
        origin.join().ok().context("the origin")??;
        for fence in &fences {
            say(&format!("packets that met a fence: {}", fence.lost()?));
        }
        are_well(&mut roles)?;
        for node in [&exposed, &connected] {
            node.without_complaints()?;
        }
        Ok(())
    });
}

/// F17: the relays do not reach each other. Streams that each of them carries alone are not touched, and nor are opens.
#[test]
fn relays_that_are_parted_carry_on_with_what_is_theirs() {
    scene(Family::V4, |lab| {
        let (it, mut roles) = Deployment::twin(lab)?;
        let (mut carried, load) = streams(&it, 8, 12)?;
        let ix = &it.net.ix;
        let parted = ix.part(ix.v4(RELAYS[0]), ix.v4(RELAYS[1]))?;
        let before = load.most();
        load.wait_for_each(before + MIB / 4, SOON)?;
        let more = Load::start(&it, 50, 5, Transfer::both_ways(50, MIB / 8))?;
        more.finish(&carried.origin, SOON)?
            .judge("F17, opened meanwhile", UNTOUCHED)?;
        ensure!(parted.lost()? > 0, "they had nothing to say to each other");
        parted.heal();
        ensure!(load.is_under_way(), "the streams ended too early");
        load.finish(&carried.origin, SOON)?
            .judge("F17, relays parted", UNTOUCHED)?;
        are_well(&mut roles)?;
        carried.is_well()
    });
}

/// F17: a stream over both of two relays waits until they reach each other again; who opens one meanwhile is refused in
/// time, by a relay that knows that what it had heard of the other's agents is old.
#[test]
fn a_stream_over_two_relays_outlives_their_partition_and_opens_are_refused_meanwhile() {
    /// The legs between them are given up after 2 s, and what was known of the other's agents with them.
    const FORGOTTEN: Duration = Duration::from_secs(10);
    scene(Family::V4, |lab| {
        let (it, mut roles, fences) = apart(lab)?;
        let (mut carried, load) = streams(&it, 4, 8)?;
        let ix = &it.net.ix;
        let parted = ix.part(ix.v4(RELAYS[0]), ix.v4(RELAYS[1]))?;
        let began = Instant::now();
        wait::until(
            "the relay to know that the provider is not reached",
            FORGOTTEN,
            || {
                let log = roles.relays[0].stderr();
                let open = Transfer::both_ways(50, 1_000).run(&it.net.con, loopback(NEAR));
                ensure!(open.is_err(), "an open went over a link that is cut");
                let more = &roles.relays[0].stderr()[log.len()..];
                Ok(more.contains("NO_PROVIDER").then_some(()))
            },
        )?;
        // What was under way when the path broke is given the time in which its provider might come back. Who comes
        // after that is told at once, by a relay that knows.
        let opened = Instant::now();
        let open = Transfer::both_ways(51, 1_000).run(&it.net.con, loopback(NEAR));
        ensure!(open.is_err(), "an open went over a link that is cut");
        say(&format!(
            "F17: refused by its name after {:?}, the next one within {:?}",
            opened - began,
            opened.elapsed()
        ));
        ensure!(opened.elapsed() < UNTOUCHED, "{:?}", opened.elapsed());
        ensure!(load.is_under_way(), "the streams ended too early");
        parted.heal();
        load.finish(&carried.origin, SOON)?
            .judge("F17, over both", FORGOTTEN + OTHER + OTHER)?;
        let more = Load::start(&it, 60, 2, Transfer::both_ways(60, MIB / 8))?;
        more.finish(&carried.origin, SOON)?;
        drop(fences);
        are_well(&mut roles)?;
        carried.is_well()
    });
}
