//! The ladder of transports by its own bars: down within 3 s, around blocked UDP within 1 s.

use std::time::Duration;

use anyhow::ensure;
use lab::{Begin, Deployment, Family, faults::Traffic, say, scene};

use crate::ladder::{Descent, around, descend};

/// F21: from the cut to TLS.
const DOWN: Duration = Duration::from_secs(3);
/// From an agent's start to its session when UDP never gets through.
const AROUND: Duration = Duration::from_secs(1);
const STARTS: usize = 9;

#[test]
fn one_download_lives_through_ten_seconds_without_udp() {
    let it = Descent {
        mib: 60,
        stay: Duration::from_secs(10),
        down: DOWN,
    };
    scene(Family::V4, |lab| descend(lab, &it));
}

#[test]
fn agents_without_udp_are_there_within_a_second_of_their_start() {
    scene(Family::V4, |lab| {
        let (it, _up) = Deployment::up(lab, Begin::Open)?;
        let _cut = it.net.ix.lose(Traffic::any().udp())?;
        let mut took = Vec::new();
        for n in 0..STARTS {
            took.push(around([&it.provider, &it.consumer][n % 2])?);
        }
        took.sort();
        let middle = took[STARTS / 2];
        say(&format!(
            "F21: {STARTS} starts, median {middle:?}, all {took:?}"
        ));
        ensure!(middle <= AROUND, "{middle:?}");
        Ok(())
    });
}
