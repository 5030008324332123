//! The ways by which an agent reaches its relay: which one it takes, and what it says of those that it does not.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use lab::{
    Begin, Deployment, Family, Node, Spec,
    deployment::{PATIENCE, RELAY_PORT, loopback},
    faults::{Fault, Traffic},
    scene,
    traffic::{PatternServer, Transfer},
    wait,
};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(20);
/// Where the consumer's translator is on the public network.
const NAT1_HOST: u8 = 21;
const PROXY_PORT: u16 = 3_128;
/// A proxy; what it speaks stands at its top.
const PROXY: &str = include_str!("proxy.py");

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

/// The consumer's agent, and `web` at its port 8080, for as long as both are held.
pub(crate) fn consume(it: &Deployment<'_>, proxy: Option<String>) -> Result<[Node; 2]> {
    let mut spec = it
        .consumer
        .spec("agent", ["agent"])?
        .env("RUST_LOG", "info");
    if let Some(proxy) = proxy {
        spec = spec.env("ALL_PROXY", proxy);
    }
    let mut agent = it.lab().start(&it.net.con, spec)?;
    agent.wait_for_line("runs; ", PATIENCE)?;
    it.consumer.wait_ready()?;
    Ok([agent, it.consumer.connect("web", 8080)?])
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
        let best = consume(&it, None)?;
        let status = wait_status(&it, &["up over quic (UDP)"])?;
        ensure!(!status.contains("not over"), "{status}");
        drop(best);
        let _fault = keep_from_relay(&it, Traffic::any().udp())?;
        let _lower = consume(&it, None)?;
        let because = "not over quic: no answer so far";
        let status = wait_status(&it, &["up over tls (TCP)", because])?;
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
        let _consumer = consume(&it, Some(format!("{scheme}://{at}")))?;
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
