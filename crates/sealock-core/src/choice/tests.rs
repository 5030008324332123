//! Which provider is chosen, over many opens and any candidates.

use proptest::prelude::*;

use super::*;

/// A provider of a test, which owns what a candidate borrows.
#[derive(Debug, Clone)]
struct Provider {
    name: AgentName,
    terms: Terms,
    is_taking: bool,
    is_beyond: bool,
    legs: usize,
}

impl Provider {
    fn new(number: usize, weight: u32) -> Self {
        Self {
            name: format!("p{number}").parse().expect("a name"),
            terms: Terms {
                weight: weight.try_into().expect("a weight"),
                ..Terms::default()
            },
            is_taking: true,
            is_beyond: false,
            legs: 0,
        }
    }

    fn of(number: usize, region: &str) -> Self {
        let mut provider = Self::new(number, 1);
        provider.terms.region = Some(self::region(region));
        provider
    }

    fn candidate(&self) -> Candidate<'_> {
        Candidate {
            agent: &self.name,
            terms: &self.terms,
            is_taking: self.is_taking,
            is_beyond: self.is_beyond,
            legs: self.legs,
        }
    }
}

fn region(text: &str) -> Region {
    text.parse().expect("a region")
}

/// An open by the caller of this number, from this place.
#[derive(Debug, Clone, Copy)]
struct Open<'a> {
    caller: usize,
    region: Option<&'a str>,
    is_sticky: bool,
    seed: u64,
}

const PLAIN: Open<'static> = Open {
    caller: 0,
    region: None,
    is_sticky: false,
    seed: 7,
};

fn ordered(open: Open<'_>, providers: &[Provider]) -> Vec<usize> {
    let caller = AgentId {
        tenant: "default".parse().expect("a name"),
        name: format!("caller-{}", open.caller).parse().expect("a name"),
    };
    let (service, region) = ("db".parse().expect("a name"), open.region.map(region));
    let asked = Asked {
        service: &service,
        caller: &caller,
        region: region.as_ref(),
        is_sticky: open.is_sticky,
        seed: open.seed,
    };
    let candidates: Vec<_> = providers.iter().map(Provider::candidate).collect();
    order(&asked, &candidates)
}

fn provider() -> impl Strategy<Value = Provider> {
    let terms = (1..=256_u32, any::<bool>(), 0..3_usize);
    (terms, any::<bool>(), any::<bool>(), 0..50_usize).prop_map(
        |((weight, standby, place), is_taking, is_beyond, legs)| {
            let region = [None, Some("here"), Some("there")][place].map(region);
            Provider {
                terms: Terms {
                    weight: weight.try_into().expect("a weight"),
                    standby,
                    region,
                },
                is_taking,
                is_beyond,
                legs,
                ..Provider::new(0, 1)
            }
        },
    )
}

/// Providers with names of their own.
fn providers() -> impl Strategy<Value = Vec<Provider>> {
    proptest::collection::vec(provider(), 0..8).prop_map(|mut all| {
        for (number, one) in all.iter_mut().enumerate() {
            one.name = format!("p{number}").parse().expect("a name");
        }
        all
    })
}

proptest! {
    #[test]
    fn all_who_take_flows_are_tried_once_and_nobody_else(
        providers in providers(), seed in any::<u64>(), is_sticky in any::<bool>(),
    ) {
        let mut found = ordered(Open { is_sticky, seed, ..PLAIN }, &providers);
        found.sort_unstable();
        let taking = (0..providers.len()).filter(|at| providers[*at].is_taking);
        prop_assert_eq!(found, taking.collect::<Vec<_>>());
    }

    #[test]
    fn a_standby_comes_only_after_every_active_one(
        providers in providers(), seed in any::<u64>(), is_sticky in any::<bool>(),
    ) {
        let found = ordered(Open { is_sticky, seed, region: Some("here"), ..PLAIN }, &providers);
        let standbys: Vec<bool> = found.iter().map(|at| providers[*at].terms.standby).collect();
        prop_assert!(standbys.is_sorted(), "{:?}", standbys);
    }

    #[test]
    fn the_callers_region_comes_first_among_active_ones_and_among_standbys(
        providers in providers(), seed in any::<u64>(), is_sticky in any::<bool>(),
    ) {
        let found = ordered(Open { is_sticky, seed, region: Some("here"), ..PLAIN }, &providers);
        let places = found.iter().map(|at| {
            let terms = &providers[*at].terms;
            (terms.standby, terms.region != Some(region("here")))
        });
        prop_assert!(places.is_sorted());
    }

    #[test]
    fn a_sticky_caller_keeps_its_provider_whatever_else_changes(
        providers in providers(), caller in any::<usize>(), seeds in any::<[u64; 2]>(), gone in any::<usize>(),
    ) {
        let open = Open { caller, is_sticky: true, seed: seeds[0], ..PLAIN };
        let before = ordered(open, &providers);
        let Some(&first) = before.first() else { return Ok(()) };
        // Another relay, other loads, and one of the others is not there any more.
        let mut later = providers;
        for (number, one) in later.iter_mut().enumerate() {
            one.is_beyond = !one.is_beyond;
            one.legs = number * 7;
        }
        let gone = gone % later.len();
        if gone != first {
            later[gone].is_taking = false;
        }
        let after = ordered(Open { seed: seeds[1], ..open }, &later);
        prop_assert_eq!(after.first(), Some(&first));
    }
}

/// How often each is the first of `opens`, when a flow ends before the next one begins.
fn shares(opens: u64, providers: &[Provider], open: impl Fn(u64) -> Open<'static>) -> Vec<f64> {
    let mut counts = vec![0.0; providers.len()];
    for number in 0..opens {
        counts[ordered(open(number), providers)[0]] += 1.0;
    }
    let opens: f64 = counts.iter().sum();
    counts.into_iter().map(|count| count / opens).collect()
}

fn assert_near(found: &[f64], weights: &[u32], bound: f64) {
    let total: u32 = weights.iter().sum();
    for (share, weight) in found.iter().zip(weights) {
        let wanted = f64::from(*weight) / f64::from(total);
        assert!((share - wanted).abs() < bound, "{found:?} for {weights:?}");
    }
}

const CASES: [&[u32]; 4] = [&[1, 1], &[3, 1], &[1, 2, 5], &[100, 50, 256, 1]];

fn weighted(weights: &[u32]) -> Vec<Provider> {
    let numbered = weights.iter().enumerate();
    numbered
        .map(|(number, weight)| Provider::new(number, *weight))
        .collect()
}

#[test]
fn the_shares_of_short_flows_follow_the_weights() {
    for weights in CASES {
        let found = shares(4_000, &weighted(weights), |seed| Open { seed, ..PLAIN });
        assert_near(&found, weights, 0.03); // four standard deviations of 4 000 draws
    }
}

#[test]
fn the_shares_of_long_flows_follow_the_weights() {
    for weights in CASES {
        let mut providers = weighted(weights);
        let opens = 20 * weights.iter().sum::<u32>();
        for seed in 0..u64::from(opens) {
            let first = ordered(Open { seed, ..PLAIN }, &providers)[0];
            providers[first].legs += 1;
        }
        let found: Vec<f64> = providers
            .iter()
            .map(|one| f64::from(u32::try_from(one.legs).expect("few")) / f64::from(opens))
            .collect();
        assert_near(&found, weights, 0.01);
    }
}

#[test]
fn the_shares_of_flows_that_overlap_stay_near_the_weights() {
    let mut providers = weighted(&[3, 1]);
    let mut running = std::collections::VecDeque::new();
    let mut counts = [0.0, 0.0];
    for seed in 0..4_000 {
        let first = ordered(Open { seed, ..PLAIN }, &providers)[0];
        providers[first].legs += 1;
        counts[first] += 1.0;
        running.push_back(first);
        if running.len() > 6 {
            let ended = running.pop_front().expect("some run");
            providers[ended].legs -= 1;
        }
    }
    assert_near(&counts.map(|count| count / 4_000.0), &[3, 1], 0.1);
}

#[test]
fn sticky_callers_spread_by_weight() {
    for weights in CASES {
        let found = shares(4_000, &weighted(weights), |number| Open {
            caller: usize::try_from(number).expect("small"),
            is_sticky: true,
            ..PLAIN
        });
        assert_near(&found, weights, 0.03);
    }
}

#[test]
fn a_provider_that_carries_less_for_its_weight_comes_first() {
    let mut providers = weighted(&[1, 1, 4]);
    for (legs, first) in [
        ([1, 0, 4], 1),
        ([1, 1, 3], 2),
        ([2, 1, 8], 1),
        ([2, 1, 0], 2),
    ] {
        for (one, legs) in providers.iter_mut().zip(legs) {
            one.legs = legs;
        }
        for seed in 0..50 {
            assert_eq!(
                ordered(Open { seed, ..PLAIN }, &providers)[0],
                first,
                "{legs:?}"
            );
        }
    }
}

#[test]
fn who_is_at_the_relay_itself_comes_before_who_is_behind_another_one() {
    let mut near = Provider::of(0, "here");
    let far = Provider {
        is_beyond: true,
        ..Provider::of(1, "here")
    };
    near.legs = 100;
    let elsewhere = Provider::of(2, "there");
    let found = ordered(
        Open {
            region: Some("here"),
            ..PLAIN
        },
        &[elsewhere, far, near],
    );
    assert_eq!(found, [2, 1, 0]);
}

#[test]
fn a_weight_is_1_to_256_and_written_so() {
    for (text, expected) in [
        ("1", Some(1)),
        ("256", Some(256)),
        ("0", None),
        ("257", None),
        ("+1", None),
    ] {
        let weight = text.parse::<Weight>().ok();
        assert_eq!(weight.map(Weight::number), expected, "{text}");
        let read = serde_json::from_str::<Weight>(text).ok();
        assert_eq!(read.map(Weight::number), expected, "{text} in JSON");
    }
}

#[test]
fn usual_terms_take_no_room_and_every_term_comes_back() {
    let usual = serde_json::to_string(&Terms::default()).expect("JSON");
    assert_eq!(usual, "{}");
    let terms = Terms {
        weight: 3.try_into().expect("a weight"),
        standby: true,
        region: Some(region("eu")),
    };
    let text = serde_json::to_string(&terms).expect("JSON");
    assert_eq!(serde_json::from_str::<Terms>(&text).expect("terms"), terms);
}
