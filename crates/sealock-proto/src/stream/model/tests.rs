//! Steps at random on a pair and its model.

use proptest::prelude::*;

use super::{Pair, Step};

fn step() -> impl Strategy<Value = Step> {
    let side = 0..2usize;
    prop_oneof![
        8 => (side.clone(), 0..60usize).prop_map(|(side, length)| Step::Write { side, length }),
        8 => (side.clone(), 1..60usize).prop_map(|(side, max)| Step::Read { side, max }),
        12 => (side.clone(), 1..120usize).prop_map(|(from, bytes)| Step::Carry { from, bytes }),
        1 => side.clone().prop_map(|side| Step::Finish { side }),
        1 => side.prop_map(|side| Step::Reset { side }),
        2 => Just(Step::Cut),
        3 => Just(Step::Attach),
        2 => (0..30u64).prop_map(|millis| Step::Wait { millis }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_machine_does_what_the_naive_model_says(
        steps in proptest::collection::vec(step(), 0..80)
    ) {
        let mut pair = Pair::new();
        pair.step(&Step::Attach);
        for step in &steps {
            pair.step(step);
        }
        pair.settle();
        let _verdict = pair.judge();
    }
}
