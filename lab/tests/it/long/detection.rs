//! Deaths and hangs as often, and for as long, as nobody waits for after a change.

use std::time::Duration;

use lab::{Begin, Deployment, Family, say, scene};

use crate::detection::{Cores, Pair, kill_consumer, kill_provider, starve, stop_relay};

/// F07: 500 answers that are cut in the middle.
#[test]
fn five_hundred_answers_of_killed_providers_end_by_reset() {
    scene(Family::V4, |lab| {
        let (it, _up) = Deployment::up(lab, Begin::Open)?;
        let it = it.over_quic();
        let mut pair = Pair::start(&it)?;
        let mut latest = Duration::ZERO;
        for round in 0..25 {
            latest = latest.max(kill_provider(&it, &mut pair, 1_000 + 100 * round, 20)?);
        }
        say(&format!("F07: the last of 500 after {latest:?}"));
        Ok(())
    });
}

/// F05: a thousand streams whose own agent is killed.
#[test]
fn a_thousand_streams_of_killed_consumers_end_by_reset() {
    scene(Family::V4, |lab| {
        let (it, _up) = Deployment::up(lab, Begin::Open)?;
        let it = it.over_quic();
        let mut pair = Pair::start(&it)?;
        let mut latest = Duration::ZERO;
        for round in 0..50 {
            latest = latest.max(kill_consumer(&it, &mut pair, 1_000 + 100 * round, 20)?);
        }
        say(&format!("F05: the last of 1000 after {latest:?}"));
        Ok(())
    });
}

/// F04, the minute.
#[test]
fn a_relay_that_is_stopped_for_a_minute_is_left_and_taken_up_again() {
    scene(Family::V4, |lab| {
        let (it, mut roles) = Deployment::split(lab)?;
        stop_relay(&it, &mut roles.relay, Duration::from_secs(60))
    });
}

/// F36 by its words: one core for all of them, and a burner on it.
#[test]
fn processes_that_share_one_core_with_a_burner_neither_die_nor_take_others_for_dead() {
    starve(Cores::One);
}
