//! `sealock demo` where there is no network at all but the machine itself.

use std::time::Duration;

use anyhow::ensure;
use lab::{Family, Spec, say, scene};

/// The demonstration ends itself after two minutes; a machine with other work needs more of them than an idle one.
const WHOLE: Duration = Duration::from_secs(100);

#[test]
fn the_demonstration_needs_nothing_but_loopback() {
    scene(Family::V4, |lab| {
        let alone = lab.namespace("alone")?;
        let links = alone.ip(&["-oneline", "link"])?;
        let others = links.lines().filter(|line| !line.contains(" lo: "));
        // Kernels with tunnel modules make a few devices in each namespace; they are down and lead nowhere.
        ensure!(others.clone().all(|line| !line.contains("UP")), "{links}");
        let demo = lab.start(&alone, Spec::sealock("demo")?.args(["demo"]))?;
        let told = demo.finish(WHOLE)?.success()?;
        say(&told);
        ensure!(told.matches("✓").count() == 6, "{told}");
        ensure!(told.contains("All scenes held"), "{told}");
        Ok(())
    });
}
