//! Two relays, for longer: one is stopped, is heard one way only, or dies on the way between them.

use std::fs;

use anyhow::{Context, Result, ensure};
use lab::{
    Deployment, Family, Spec, Topology,
    deployment::Twin,
    faults::{Fault, Traffic},
    pattern::{Pattern, Way},
    say, scene, wait,
};

use crate::{
    ladder::slow_page,
    links::{MIB, SOON},
    survival::OTHER,
    two_relays::{CONSUMER, PROVIDER, RELAYS, are_well, both_move, carrier, part, streams},
};

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
