//! The ways by which an agent reaches its relay: which one it takes, what it says of those that it does not, and what a
//! stranger can do to the one that it has.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use lab::{
    Begin, Deployment, Family, Node, Spec,
    deployment::{PATIENCE, RELAY_PORT, loopback},
    faults::{Fault, Traffic},
    say, scene,
    traffic::{PatternServer, Transfer},
    wait,
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(20);
/// Where the consumer's translator is on the public network.
const NAT1_HOST: u8 = 21;
const PROXY_PORT: u16 = 3_128;
/// A proxy; what it speaks stands at its top.
const PROXY: &str = include_str!("proxy.py");
/// Ends other people's TCP connections; what it does stands at its top.
const RESETTER: &str = include_str!("resetter.py");

/// Takes every packet of the consumer to the relay, or only those over UDP.
pub(crate) fn keep_from_relay(it: &Deployment<'_>, traffic: Traffic) -> Result<Fault> {
    let (from, to) = (it.net.ix.v4(NAT1_HOST), it.relay_ip());
    it.net.ix.lose(traffic.from(from).to(to))
}

/// A provider of `web`, for as long as it is held.
pub(crate) fn provide(it: &Deployment<'_>) -> Result<(PatternServer, Node)> {
    let origin = PatternServer::start(&it.net.prv, loopback(7000))?;
    Ok((origin, it.provider.expose("7000", "web")?))
}

/// Waits until the consumer's `sealock status` says all of this, and returns it.
pub(crate) fn wait_status(it: &Deployment<'_>, words: &[&str]) -> Result<String> {
    wait::until(&format!("a status with {words:?}"), SOON, || {
        let status = it.consumer.ask("status")?;
        let says_all = words.iter().all(|word| status.contains(word));
        Ok(says_all.then_some(status))
    })
}

/// The lines about the ladder tell which rung is in use, and of each better one why it is not.
#[test]
fn status_tells_the_way_in_use_and_why_it_is_no_better_one() {
    scene(Family::V4, |lab| {
        let (it, _up) = Deployment::up(lab, Begin::Open)?;
        let _provider = provide(&it)?;
        let best = it.consumer.connect("web", 8080)?;
        let status = wait_status(&it, &["up over quic (UDP)"])?;
        ensure!(!status.contains("not over"), "{status}");
        drop(best);
        let _fault = keep_from_relay(&it, Traffic::any().udp())?;
        let _lower = it.consumer.connect("web", 8080)?;
        // At first it has said nothing; when its time is over, that it did not answer in time.
        let late = "not over quic: the other side did not finish its handshake in time";
        let status = wait_status(&it, &["up over tls (TCP)", late])?;
        let line = status.lines().find(|line| line.contains("not over quic"));
        let line = line.context("a line")?;
        ensure!(line.contains(", since "), "{line}");
        Transfer::both_ways(1, MIB).run(&it.net.con, loopback(8080))?;
        Ok(())
    });
}

/// The consumer's network lets nothing out but to its proxy.
fn only_through(scheme: &str, how: &str) {
    scene(Family::V4, |lab| {
        let (it, _up) = Deployment::up(lab, Begin::Open)?;
        let _provider = provide(&it)?;
        let at = SocketAddr::new(it.net.ix.v4(13), PROXY_PORT); // the machine `ctl`, which has nothing to do here
        let spec = Spec::new("proxy", "/usr/bin/python3")
            .args(["-c", PROXY])
            .args([at.ip().to_string(), at.port().to_string()]);
        let mut proxy = it.lab().start(&it.net.ctl, spec)?;
        proxy.wait_for_line("listening", PATIENCE)?;
        let _fault = keep_from_relay(&it, Traffic::any())?;
        let arguments = ["connect", "web", "--listen", "127.0.0.1:8080"];
        let spec = it.consumer.spec("connect", arguments)?;
        let spec = spec.env("ALL_PROXY", format!("{scheme}://{at}"));
        let mut connect = it.lab().start(&it.net.con, spec)?;
        connect.wait_for_line("listening on", PATIENCE)?;
        wait_status(&it, &["up over tls (TCP)", "not over quic: "])?;
        Transfer::both_ways(1, MIB).run(&it.net.con, loopback(8080))?;
        let relay = format!("{how} to {} {RELAY_PORT}", it.relay_ip());
        ensure!(proxy.stdout().contains(&relay), "{}", proxy.stdout());
        Ok(())
    });
}

#[test]
fn a_proxy_by_http_connect_is_way_enough() {
    only_through("http", "CONNECT");
}

#[test]
fn a_proxy_by_socks5_is_way_enough() {
    only_through("socks5", "SOCKS5");
}

/// F20: whoever is not on the path knows the ports and guesses the rest, 65 536 times; whoever is on it ends the leg's
/// connection, and the stream goes on over the next one.
#[test]
fn forged_resets_end_a_leg_at_most_and_no_stream() {
    scene(Family::V4, |lab| {
        let (it, _up) = Deployment::up(lab, Begin::Open)?;
        let _provider = provide(&it)?;
        let _fault = keep_from_relay(&it, Traffic::any().udp())?;
        let arguments = ["connect", "web", "--listen", "127.0.0.1:8080"];
        let spec = it.consumer.spec("connect", arguments)?;
        let spec = spec.env("RUST_LOG", "info");
        let mut connect = it.lab().start(&it.net.con, spec)?;
        connect.wait_for_line("listening on", PATIENCE)?;
        wait_status(&it, &["up over tls (TCP)"])?;
        let carrying = Transfer::both_ways(1, 4 * MIB)
            .paced(256 * KIB)
            .start(&it.net.con, loopback(8080))?;
        carrying.wait_for(KIB, SOON)?;
        let status = it.consumer.ask("status")?;
        let since = session_line(&status)?.to_owned();
        let reset = |mode: &str| -> Result<String> {
            let spec = Spec::new(mode, "/usr/bin/python3")
                .args(["-c", RESETTER])
                .args([mode, &RELAY_PORT.to_string()]);
            it.lab().run(&it.net.rel1, spec)?.success()
        };
        let said = reset("guess")?;
        say(&format!("F20: {}", said.trim()));
        let status = it.consumer.ask("status")?;
        ensure!(session_line(&status)? == since, "{since}, then {status}");
        let said = reset("know")?;
        say(&format!("F20: {}", said.trim()));
        let got = carrying.finish()?;
        say(&format!("F20: exact, longest gap {:?}", got.longest_gap));
        wait_status(&it, &["up over tls (TCP)"])?;
        let status = it.consumer.ask("status")?;
        ensure!(
            session_line(&status)? != since,
            "nothing was ended: {status}"
        );
        Ok(())
    });
}

/// The line of `sealock status` about the relay, without the round trip, which differs from time to time.
fn session_line(status: &str) -> Result<&str> {
    let line = status.lines().find(|line| line.contains("  relay "));
    let line = line.context("a relay")?;
    let (_, since) = line.rsplit_once("since ").context("a time")?;
    Ok(since)
}
