//! F25: certificates that end within seconds are renewed again and again, and nothing that lives notices.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use lab::{
    Begin, Deployment, Family,
    deployment::loopback,
    pattern::{Pattern, Way},
    say, scene,
    traffic::{PatternServer, Transfer},
    wait,
};

use crate::process_faults::small;

const KIB: u64 = 1 << 10;
// Renewed at half of its life: every 6 s, a hundred times.
const LIFE: &str = "12s";
const ROTATION: Duration = Duration::from_secs(6);
const ROTATIONS: u32 = 100;
const WATCH: Duration = ROTATION.saturating_mul(ROTATIONS);

#[test]
fn certificates_of_seconds_are_renewed_without_a_dropped_stream() {
    scene(Family::V4, |lab| {
        let (it, mut up) = Deployment::up(lab, Begin::Open)?;
        up.terminate(Duration::from_secs(20))?;
        let at = format!("{}:7443", it.relay_ip());
        let spec = it
            .public
            .spec("up", ["up", "--public", &at, "--listen", &at])?
            .env("SEALOCK_CONTROLLER__CERTIFICATE_TTL", LIFE);
        let mut up = it.lab().start(&it.net.rel1, spec)?;
        up.wait_for_line("That token works once", Duration::from_secs(20))?;
        // Joined again, now with certificates of the short life.
        for (machine, name) in [(&it.consumer, "cons2"), (&it.provider, "prov2")] {
            let token = it.token()?;
            let arguments = ["join", &token, "--name", name, "--force"];
            machine.run("join", arguments)?.success()?;
        }
        let origin = PatternServer::start(&it.net.prv, loopback(7000))?;
        let exposed = it.provider.expose("7000", "web")?;
        let connected = it.consumer.connect("web", 8080)?;

        let bytes = WATCH.as_secs() * 64 * KIB;
        let running = Transfer::both_ways(1, bytes)
            .paced(64 * KIB)
            .start(&it.net.con, loopback(8080))?;
        let began = Instant::now();
        let mut opens = 0;
        while began.elapsed() < WATCH {
            opens += 1;
            small(&it, 100 + opens)
                .with_context(|| format!("open {opens} after {:?}", began.elapsed()))?;
            wait::pause(Duration::from_millis(300));
        }
        let got = running
            .finish()
            .context("the stream that lived through it")?;
        let wanted = Pattern::new(1, Way::Down).sha256(bytes);
        ensure!(got.sha256 == wanted, "the stream differs");
        origin.report(1, Duration::from_secs(10))?;
        // The first two, and each renewal of either makes one more; jitter and the machine make some fewer.
        let sessions = up.stderr().matches("session up").count();
        say(&format!(
            "{opens} opens; longest gap {:?}; sessions at the relay: {sessions}",
            got.longest_gap
        ));
        let renewed = ROTATIONS as usize * 2;
        ensure!(
            (renewed * 3 / 4..renewed * 3 / 2).contains(&sessions),
            "{sessions} sessions"
        );
        ensure!(
            got.longest_gap < Duration::from_secs(2),
            "{:?}",
            got.longest_gap
        );
        for node in [&up, &exposed, &connected] {
            node.without_complaints()?;
        }
        Ok(())
    });
}
