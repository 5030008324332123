//! Flows that ended are gone everywhere: at both agents and at the relay, which holds no file for any of them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::{
    Begin, Deployment, Family, Spec,
    deployment::loopback,
    say, scene,
    traffic::{PatternServer, Transfer},
    wait,
};

const SOON: Duration = Duration::from_secs(10);

#[test]
fn flows_that_ended_are_gone_at_both_agents_and_at_the_relay() {
    scene(Family::V4, |lab| {
        let (it, up) = Deployment::up(lab, Begin::Open)?;
        let _origin = PatternServer::start(&it.net.prv, loopback(7000))?;
        let agents = [it.provider.agent()?, it.consumer.agent()?];
        it.provider.ask("expose 7000 --as web --detach")?;
        it.consumer.ask("connect web --listen 8080 --detach")?;
        for stream in 0..200 {
            Transfer::both_ways(stream, 10_000)
                .run(&it.net.con, loopback(8080))
                .with_context(|| format!("stream {stream}"))?;
        }
        for machine in [&it.provider, &it.consumer] {
            let mut last = String::new();
            let gone = wait::until("the flows to be gone", SOON, || {
                last = machine.ask("status")?;
                Ok(last.contains("  0 live flow(s)").then_some(()))
            });
            gone.with_context(|| format!("{}:\n{last}", machine.namespace().short()))?;
        }
        let ended = || up.stderr().matches("flow ended").count();
        wait::until("the relay's flows to be gone", SOON, || {
            Ok((ended() >= 200).then_some(()))
        })
        .with_context(|| {
            format!(
                "{} of 200 ended; {}",
                ended(),
                flows_of(&it).unwrap_or_default()
            )
        })?;
        say(&format!("at the relay: {}", flows_of(&it)?));
        for agent in &agents {
            agent.without_complaints()?;
        }
        up.without_complaints()
    });
}

/// What the relay's metrics say of flows.
fn flows_of(it: &Deployment<'_>) -> Result<String> {
    let get = Spec::new("metrics", "curl").args(["-sS", "http://127.0.0.1:9100/metrics"]);
    let text = it.lab().run(&it.net.rel1, get)?.success()?;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let lines: Vec<&str> = lines.filter(|line| line.contains("flow")).collect();
    ensure!(!lines.is_empty(), "no metrics of flows in {text}");
    Ok(lines.join("; "))
}
