//! The runs: many seeds clean, each planted defect found, found seeds replayed, one seed on demand.

use std::collections::BTreeSet;

use super::check::Failure;
use super::defect::Defect;
use super::world::{Stats, faults_of, run, run_apart};

/// How many in all, when SIM_SEEDS does not say.
const SEEDS: u64 = 12_000;
/// How many streams they make at least: a seed draws one to five for each tenant.
pub(crate) const STREAMS: u64 = 32_000;
const QUARTER: u64 = 1 << 48;
// 1 in so many runs twice.
const TWICE: u64 = 50;
// 1 in so many runs without each of its tenants, if it has two.
const APART: u64 = 10;
/// Within so many seeds every planted defect shows.
const BANK: u64 = 1_000;

/// Failing seeds that were once found, of this simulator and of the stream's.
pub(crate) fn seeds_of(text: &str) -> Vec<u64> {
    let lines = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim());
    lines
        .filter(|line| !line.is_empty())
        .map(|line| number(line).unwrap_or_else(|| panic!("{line} is no seed")))
        .collect()
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// A number that the tester chose.
#[expect(
    clippy::disallowed_methods,
    reason = "the number of seeds and the seed to replay are the tester's choice"
)]
pub(crate) fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(number(&text).unwrap_or_else(|| panic!("{name} is a number, not {text}")))
}

#[expect(
    clippy::print_stderr,
    reason = "a failure names the way to see it again"
)]
fn run_clean(seed: u64) -> Stats {
    match run(seed, None, &BTreeSet::new()) {
        Ok(stats) => stats,
        Err(failure) => {
            eprintln!("seed {seed:#x}: {failure}");
            eprintln!(
                "with the fewest faults: {:#?}",
                shrunk(seed, None, &failure)
            );
            eprintln!(
                "replay: SIM_SEED={seed:#x} cargo nextest run -p sealock-proto replay --no-capture"
            );
            panic!("seed {seed:#x}: {failure}");
        }
    }
}

/// K10: no tenant sees of another one whether it is there. Says how many were looked at.
fn run_each_apart(seed: u64) -> usize {
    run_apart(seed, None).unwrap_or_else(|failure| {
        panic!(
            "seed {seed:#x}: {failure}; replay: SIM_SEED={seed:#x} cargo nextest run -p sealock-proto replay --no-capture"
        )
    })
}

/// The faults without which the same kind of failure does not come: each one is left out in turn.
fn shrunk(seed: u64, defect: Option<Defect>, failure: &Failure) -> Vec<String> {
    let faults = faults_of(seed);
    let kind = std::mem::discriminant(failure);
    let mut skipped = BTreeSet::new();
    for index in 0..faults.len() {
        skipped.insert(index);
        let again = run(seed, defect, &skipped).err();
        if again.is_none_or(|again| std::mem::discriminant(&again) != kind) {
            skipped.remove(&index);
        }
    }
    let kept = faults
        .iter()
        .enumerate()
        .filter(|(index, _)| !skipped.contains(index));
    kept.map(|(_, fault)| format!("{fault:?}")).collect()
}

#[expect(clippy::print_stderr, reason = "shows what the seeds covered")]
fn run_quarter(quarter: u64) {
    let asked = from_environment("SIM_SEEDS");
    let count = asked.unwrap_or(SEEDS) / 4;
    let (mut total, mut apart) = (Stats::default(), 0);
    for index in 0..count {
        let seed = quarter * QUARTER + index;
        let stats = run_clean(seed);
        if index % TWICE == 0 {
            assert_eq!(
                run_clean(seed),
                stats,
                "seed {seed:#x} is not deterministic"
            );
        }
        if index % APART == 0 {
            apart += run_each_apart(seed);
        }
        total.streams += stats.streams;
        total.done += stats.done;
        total.resumes += stats.resumes;
        total.refusals += stats.refusals;
        total.thefts += stats.thefts;
        total.steps += stats.steps;
    }
    eprintln!("{count} seeds, {apart} tenants apart: {total:?}");
    assert!(
        asked.is_some() || 4 * total.streams >= STREAMS,
        "{} streams in a quarter of the seeds",
        total.streams
    );
    assert!(2 * total.done > total.streams, "most streams end cleanly");
    assert!(total.resumes > count / 2 && total.thefts > count / 20);
    assert!(
        apart as u64 > count / 100,
        "tenants are looked at beside another one and without"
    );
}

#[test]
fn a_fleet_keeps_its_streams_first_quarter_of_the_seeds() {
    run_quarter(0);
}

#[test]
fn a_fleet_keeps_its_streams_second_quarter_of_the_seeds() {
    run_quarter(1);
}

#[test]
fn a_fleet_keeps_its_streams_third_quarter_of_the_seeds() {
    run_quarter(2);
}

#[test]
fn a_fleet_keeps_its_streams_fourth_quarter_of_the_seeds() {
    run_quarter(3);
}

#[test]
fn replays_the_found_seeds_of_the_fleet_and_the_one_in_the_environment() {
    for seed in seeds_of(include_str!("seeds.txt")) {
        run_clean(seed);
        run_each_apart(seed);
    }
    let seed = from_environment("SIM_SEED").unwrap_or(1);
    assert_eq!(run_clean(seed), run_clean(seed), "a replay is exact");
    run_each_apart(seed);
}

#[expect(clippy::print_stderr, reason = "shows how soon the defect is found")]
fn finds(defect: Defect, expected: fn(&Failure) -> bool) {
    let none = BTreeSet::new();
    let found = (0..BANK).find_map(|seed| {
        let failure = run(seed, Some(defect), &none).err()?;
        Some((seed, failure))
    });
    let (seed, failure) = found.unwrap_or_else(|| panic!("{defect:?} stays hidden"));
    eprintln!("{defect:?} is found at seed {seed}: {failure}");
    assert!(expected(&failure), "{defect:?} shows as {failure}");
    // A shrunk plan still shows it.
    assert!(shrunk(seed, Some(defect), &failure).len() <= faults_of(seed).len());
}

#[test]
fn finds_lesson_02_a_leg_that_the_end_of_the_window_swallows() {
    finds(Defect::ExpiryTakesLeg, |failure| {
        matches!(
            failure,
            Failure::Stuck { .. } | Failure::Verdicts { .. } | Failure::Dials { .. }
        )
    });
}

#[test]
fn finds_lesson_03_a_lost_peer_shown_as_a_clean_end() {
    finds(Defect::LostAsDone, |failure| {
        matches!(failure, Failure::Verdicts { .. } | Failure::FalseEnd { .. })
    });
}

#[test]
fn finds_lesson_04_a_proof_that_nobody_checks() {
    finds(Defect::TicketUnchecked, |failure| {
        matches!(failure, Failure::Stolen { .. } | Failure::Accused { .. })
    });
}

#[test]
fn finds_lesson_09_a_leg_after_parking_that_is_not_recorded() {
    finds(Defect::LegNotRecorded, |failure| {
        matches!(
            failure,
            Failure::Stuck { .. } | Failure::Verdicts { .. } | Failure::Dials { .. }
        )
    });
}

#[test]
fn finds_lesson_10_streams_that_are_taken_up_one_after_another() {
    finds(Defect::OneAfterAnother, |failure| {
        matches!(failure, Failure::Stuck { .. })
    });
}

#[test]
fn finds_lesson_11_parked_streams_without_a_bound() {
    finds(Defect::ParkedUnbounded, |failure| {
        matches!(failure, Failure::Parked { .. })
    });
}

#[test]
fn finds_lesson_17_a_leg_that_policy_is_not_asked_about() {
    finds(Defect::PolicyOnce, |failure| {
        matches!(failure, Failure::Denied { .. })
    });
}

#[test]
fn finds_lesson_17_a_live_stream_that_a_denial_does_not_cut() {
    finds(Defect::LiveNotCut, |failure| {
        matches!(failure, Failure::Denied { .. })
    });
}

#[test]
fn finds_lesson_19_a_place_that_is_never_given_back() {
    finds(Defect::PlaceLeaks, |failure| {
        matches!(failure, Failure::Places { .. })
    });
}

#[test]
fn finds_what_an_older_leg_still_delivers() {
    finds(Defect::EpochUnfenced, |failure| {
        matches!(
            failure,
            Failure::Accused { .. }
                | Failure::WrongByte { .. }
                | Failure::NoFrame(_)
                | Failure::Counters { .. }
        )
    });
}

#[test]
fn finds_a_refusal_without_a_line_in_the_audit() {
    finds(Defect::RefusalUnaudited, |failure| {
        matches!(failure, Failure::Audit { .. })
    });
}

#[test]
fn finds_an_old_session_that_takes_the_new_one_along() {
    finds(Defect::FreshSessionRemoved, |failure| {
        matches!(failure, Failure::Directory { .. })
    });
}

#[test]
fn finds_an_opener_that_dials_without_a_pause() {
    finds(Defect::NoBackOff, |failure| {
        matches!(failure, Failure::Dials { .. })
    });
}

#[expect(clippy::print_stderr, reason = "shows how soon the defect is found")]
fn finds_apart(defect: Defect) {
    let found = (0..BANK).find_map(|seed| Some((seed, run_apart(seed, Some(defect)).err()?)));
    let (seed, failure) = found.unwrap_or_else(|| panic!("{defect:?} stays hidden"));
    eprintln!("{defect:?} is found at seed {seed}: {failure}");
    assert!(
        matches!(failure, Failure::Observed { .. }),
        "{defect:?} shows as {failure}"
    );
}

#[test]
fn finds_a_number_that_tells_a_tenant_how_busy_the_others_are() {
    finds_apart(Defect::NumbersShared);
}

#[test]
fn finds_a_service_of_another_tenant_taken_for_ones_own() {
    finds_apart(Defect::TenantsMixed);
}

#[test]
fn finds_a_leg_let_pass_with_a_certificate_that_has_ended() {
    finds(Defect::CertificateUnchecked, |failure| {
        matches!(failure, Failure::Uncertified { .. })
    });
}

#[test]
fn finds_a_stream_that_waits_by_the_time_of_day() {
    finds(Defect::TimersByWall, |failure| {
        matches!(failure, Failure::Verdicts { .. })
    });
}
