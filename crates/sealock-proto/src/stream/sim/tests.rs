//! The runs: many seeds clean, each planted defect found, one seed replayed.

use std::collections::BTreeMap;

use super::check::Failure;
use super::world::{Outcome, run, run_from_outside};
use crate::sim::tests::{from_environment, seeds_of};
use crate::stream::bug::{Bug, plant};

/// How many in all, when SIM_SEEDS does not say: each is a stream, and their legs are more than 10^5 resumes.
const SEEDS: u64 = 68_000;
// 10^5 simulated streams in every run of the tests, by this simulator and the fleet's.
const _: () = assert!(SEEDS + crate::sim::tests::STREAMS >= 100_000);
const QUARTER: u64 = 1 << 48;

#[expect(
    clippy::print_stderr,
    reason = "a failure names the way to see it again"
)]
fn report(seed: u64, failure: &Failure) {
    eprintln!("seed {seed:#x}: {failure}");
    eprintln!("replay: SIM_SEED={seed:#x} cargo nextest run -p sealock-proto replay --no-capture");
}

fn run_clean(seed: u64) -> Outcome {
    match run(seed) {
        Ok(outcome) => outcome,
        Err(failure) => {
            report(seed, &failure);
            panic!("seed {seed:#x}: {failure}");
        }
    }
}

#[expect(clippy::print_stderr, reason = "shows what the seeds covered")]
fn run_quarter(quarter: u64) {
    let asked = from_environment("SIM_SEEDS");
    let count = asked.unwrap_or(SEEDS) / 4;
    let mut verdicts: BTreeMap<String, u64> = BTreeMap::new();
    let (mut legs, mut steps) = (0, 0);
    for index in 0..count {
        let seed = quarter * QUARTER + index;
        let outcome = run_clean(seed);
        legs += outcome.legs;
        steps += outcome.steps;
        let verdict = match outcome.verdict {
            Some(Ok(())) => "DONE".to_owned(),
            Some(Err(reason)) => reason.code().to_owned(),
            None => "none".to_owned(),
        };
        *verdicts.entry(verdict).or_default() += 1;
        if index % 50 == 0 {
            assert_eq!(
                run(seed),
                Ok(outcome),
                "seed {seed:#x} is not deterministic"
            );
        }
    }
    eprintln!("{count} seeds, {legs} legs, {steps} steps: {verdicts:?}");
    let done = verdicts.get("DONE").copied().unwrap_or(0);
    let resumes = u64::try_from(legs).expect("few") - count;
    assert!(
        asked.is_some() || resumes > 25_000,
        "the four tests make 10^5 resumes"
    );
    assert!(2 * done > count, "most streams end cleanly: {verdicts:?}");
}

#[test]
fn a_stream_survives_any_legs_first_quarter_of_the_seeds() {
    run_quarter(0);
}

#[test]
fn a_stream_survives_any_legs_second_quarter_of_the_seeds() {
    run_quarter(1);
}

#[test]
fn a_stream_survives_any_legs_third_quarter_of_the_seeds() {
    run_quarter(2);
}

#[test]
fn a_stream_survives_any_legs_fourth_quarter_of_the_seeds() {
    run_quarter(3);
}

#[test]
fn replays_the_found_seeds_and_the_one_in_the_environment() {
    for seed in seeds_of(include_str!("seeds.txt")) {
        run_clean(seed);
    }
    let seed = from_environment("SIM_SEED").unwrap_or(1);
    assert_eq!(run(seed), Ok(run_clean(seed)), "a replay is exact");
}

// ---- the bug bank: lessons.md, one by one

const BANK: u64 = 1_000;

#[test]
fn a_thousand_seeds_are_clean_without_a_planted_defect() {
    for seed in 0..BANK {
        run_clean(seed);
    }
}

#[expect(clippy::print_stderr, reason = "shows how soon the defect is found")]
fn finds(bug: Bug, expected: fn(&Failure) -> bool) {
    plant(Some(bug));
    let found = (0..BANK).find_map(|seed| run(seed).err().map(|failure| (seed, failure)));
    let outside =
        (0..BANK).find_map(|seed| run_from_outside(seed).err().map(|failure| (seed, failure)));
    plant(None);
    let (seed, failure) = found.unwrap_or_else(|| panic!("{bug:?} stays hidden"));
    eprintln!("{bug:?} is found at seed {seed}: {failure}");
    assert!(expected(&failure), "{bug:?} shows as {failure}");
    let (seed, failure) = outside.unwrap_or_else(|| panic!("{bug:?} does no harm"));
    eprintln!("{bug:?} is found from outside at seed {seed}: {failure}");
}

#[test]
fn finds_lesson_01_two_readers_after_an_attach() {
    finds(Bug::TwoReaders, |failure| {
        matches!(
            failure,
            Failure::WrongByte { .. } | Failure::Counters { .. } | Failure::Accused { .. }
        )
    });
}

#[test]
fn finds_lesson_03_an_error_turned_into_a_clean_end() {
    finds(Bug::ErrorAsFin, |failure| {
        matches!(
            failure,
            Failure::FalseEnd { .. } | Failure::Incomplete { .. } | Failure::Verdicts(_)
        )
    });
}

#[test]
fn finds_lesson_05_bytes_in_flight_dropped_at_an_attach() {
    finds(Bug::NoRetransmit, |failure| {
        matches!(
            failure,
            Failure::Accused { .. } | Failure::WrongByte { .. } | Failure::Stuck { .. }
        )
    });
}

#[test]
fn finds_lesson_06_bytes_counted_too_late() {
    finds(Bug::LateCount, |failure| {
        matches!(failure, Failure::Accused { .. } | Failure::Counters { .. })
    });
}

#[test]
fn finds_lesson_07_an_unbounded_acknowledgement() {
    finds(Bug::AckUnbounded, |failure| {
        matches!(failure, Failure::NotNoticed { .. })
    });
}

#[test]
fn finds_lesson_08_eviction_of_what_is_not_acknowledged() {
    finds(Bug::Evict, |failure| {
        matches!(
            failure,
            Failure::Memory { .. } | Failure::Accused { .. } | Failure::Counters { .. }
        )
    });
}

#[test]
fn finds_lesson_09_the_second_resume_not_recorded() {
    finds(Bug::SecondResumeForgotten, |failure| {
        matches!(
            failure,
            Failure::Stuck { .. } | Failure::Accused { .. } | Failure::Verdicts(_)
        )
    });
}

#[test]
fn finds_lesson_10_an_attach_that_waits_for_other_business() {
    finds(Bug::AttachWaits, |failure| {
        matches!(failure, Failure::Stuck { .. } | Failure::Verdicts(_))
    });
}
