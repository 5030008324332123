//! A fleet of agents on one relay: all of them are back soon after it was restarted.

use std::{
    io::Write as _,
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use lab::{Family, Machine, Spec, binary, deployment::RELAY_PORT, say, scene, wait};

const AGENTS: usize = 1_000;
/// F34's bar, from the relay's start.
const BACK: Duration = Duration::from_secs(5);
/// A relay takes ten strangers a second from one address, and all of them join from one.
const JOINED: Duration = Duration::from_secs(200);

/// F34.
#[test]
fn a_thousand_agents_are_back_within_five_seconds_of_a_restart() {
    scene(Family::V4, |lab| {
        let host = lab.namespace("host")?;
        let public = Machine::new(lab, &host);
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, RELAY_PORT)).to_string();
        let up = ["up", "--public", &at, "--listen", &at];
        let mut relay = public.start("up", up, "That token works once")?;

        // Each agent has a socket, and the system counts them.
        let spec = Spec::new("swarm", "prlimit")
            .args(["--nofile=16384"])
            .args([binary::example("swarm")?])
            .args([lab.directory().join("swarm")])
            .args([AGENTS.to_string()])
            .open_input();
        let mut swarm = lab.start(&host, spec)?;
        let mut tokens = swarm.take_input().context("an open input")?;
        for _ in 0..AGENTS {
            let printed = public.ask("token create")?;
            let mut words = printed.split_whitespace();
            let token = words.find(|word| word.starts_with("SLK1-"));
            writeln!(tokens, "{}", token.context("a token")?)?;
        }
        let all = format!("all {AGENTS} up");
        swarm.wait_for_line(&all, JOINED)?;
        let before = relay.resident_bytes()?;

        relay.kill()?;
        let began = Instant::now();
        relay = public.start("up", up, "That token works once")?;
        wait::until("all agents to be back", 12 * BACK, || {
            ensure!(
                swarm.is_running()?,
                "the swarm has ended: {}",
                swarm.stderr()
            );
            let said = swarm.stdout();
            let (_, after) = said.split_once("first lost").unwrap_or_default();
            Ok(after.contains(&all).then_some(()))
        })?;
        say(&format!(
            "F34: {AGENTS} agents back {:?} after the relay was killed and started again; {} MiB for it",
            began.elapsed(),
            before >> 20
        ));
        ensure!(began.elapsed() < BACK, "{:?}", began.elapsed());
        relay.without_complaints()
    });
}
