//! How soon a better way is taken again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Begin, Deployment, Family, deployment::PATIENCE, faults::Traffic, say, scene, wait};

use crate::ways::{keep_from_relay, provide, wait_status};

/// The looks are farthest apart by then: 2, 4, 8 and 16 seconds, and what each takes.
const SELDOM: Duration = Duration::from_secs(50);
/// A burst of news, a look that has just begun in vain, and the machine; without news it would be up to twenty seconds.
const NEWS: Duration = Duration::from_secs(8);
const ROUNDS: u32 = 3;

/// A network that changes is looked at at once: a new address, as after plugging in a cable or a roam.
#[test]
fn an_address_that_is_added_leads_to_the_better_way_at_once() {
    scene(Family::V4, |lab| {
        let (it, _up) = Deployment::up(lab, Begin::Open)?;
        let _provider = provide(&it)?;
        let mut took = Vec::new();
        for round in 1..=ROUNDS {
            let fault = keep_from_relay(&it, Traffic::any().udp())?;
            let arguments = ["connect", "web", "--listen", "127.0.0.1:8080"];
            let spec = it.consumer.spec("connect", arguments)?;
            let mut connect = it.lab().start(&it.net.con, spec.env("RUST_LOG", "info"))?;
            connect.wait_for_line("listening on", PATIENCE)?;
            wait_status(&it, &["up over tls (TCP)"])?;
            wait::pause(SELDOM);
            fault.heal();
            let address = format!("198.51.100.{round}/32");
            it.net.con.ip(&["addr", "add", &address, "dev", "lo"])?;
            let since = Instant::now();
            wait_status(&it, &["up over quic (UDP)"])?;
            took.push(since.elapsed());
        }
        say(&format!("climbed {took:?} after the change"));
        let slowest: Option<&Duration> = took.iter().max();
        ensure!(*slowest.context("rounds")? < NEWS, "{took:?}");
        Result::Ok(())
    });
}
