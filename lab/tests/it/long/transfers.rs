//! Large transfers and many at once: every byte of every stream is right at both ends.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::{
    Begin, Deployment, Family,
    deployment::loopback,
    pattern::{Pattern, Way},
    say, scene,
    traffic::{PatternServer, Running, Transfer},
};

use crate::three_machines::exact;

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);

fn rate(bytes: u64, began: Instant) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a figure to look at")]
    let mib = bytes as f64 / MIB as f64;
    mib / began.elapsed().as_secs_f64()
}

#[test]
fn large_transfers_both_ways_are_exact() {
    scene(Family::V4, |lab| {
        let (it, up) = Deployment::up(lab, Begin::Open)?;
        let origin = PatternServer::start(&it.net.prv, loopback(7000))?;
        let exposed = it.provider.expose("7000", "web")?;
        let connected = it.consumer.connect("web", 8080)?;
        for (stream, [up, down]) in [(1, [64 * MIB; 2]), (2, [0, 64 * MIB]), (3, [64 * MIB, 0])] {
            let began = Instant::now();
            exact(&it, &origin, stream, [up, down])?;
            let rate = rate(up + down, began);
            say(&format!(
                "{} MiB up, {} MiB down: {rate:.0} MiB/s",
                up / MIB,
                down / MIB
            ));
        }
        twenty_at_once(&it, &origin)?;
        for node in [&up, &exposed, &connected] {
            node.without_complaints()?;
        }
        Ok(())
    });
}

/// 64 MiB each way again, but by twenty streams side by side.
fn twenty_at_once(it: &Deployment<'_>, origin: &PatternServer) -> Result<()> {
    const BYTES: u64 = 64 * MIB / 20;
    let began = Instant::now();
    let running: Vec<(u64, Running)> = (100..120)
        .map(|stream| {
            let transfer = Transfer::both_ways(stream, BYTES);
            Ok((stream, transfer.start(&it.net.con, loopback(8080))?))
        })
        .collect::<Result<_>>()?;
    let mut longest = Duration::ZERO;
    for (stream, running) in running {
        let down = running.finish()?;
        let up = origin.report(stream, SOON)?;
        for (got, way) in [(down, Way::Down), (up, Way::Up)] {
            let wanted = Pattern::new(stream, way).sha256(BYTES);
            ensure!(
                (got.bytes, &got.sha256) == (BYTES, &wanted),
                "stream {stream} {way:?}"
            );
            longest = longest.max(got.longest_gap);
        }
    }
    let rate = rate(2 * 20 * BYTES, began);
    say(&format!(
        "20 streams both ways: {rate:.0} MiB/s, longest gap {longest:?}"
    ));
    Ok(())
}
