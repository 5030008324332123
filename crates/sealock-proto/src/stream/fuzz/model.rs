//! Two streams against the naive model, step by step as the input says.

use crate::fuzz::{Input, Seen, Target};
use crate::stream::model::{Pair, Step};

pub(crate) const MODEL: Target = Target {
    name: "stream_model",
    run,
    reaches: &[
        "DONE",
        "CANCELLED",
        "RESUME_EXPIRED",
        "bytes both ways",
        "taken up again",
    ],
};

const STEPS: usize = 150;

fn run(input: &[u8]) -> Seen {
    let mut input = Input(input);
    let mut pair = Pair::new();
    pair.step(&Step::Attach);
    let mut legs = 1;
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        let step = step(&mut input);
        legs += usize::from(matches!(step, Step::Attach));
        pair.step(&step);
    }
    pair.settle();
    let verdict = pair.judge();
    let mut seen = Seen::from([match verdict {
        Ok(()) => "DONE",
        Err(reason) => reason.code(),
    }]);
    if verdict.is_ok() && pair.carried_both_ways() {
        seen.insert("bytes both ways");
    }
    if verdict.is_ok() && legs > 1 {
        seen.insert("taken up again");
    }
    seen
}

fn step(input: &mut Input<'_>) -> Step {
    let kind = input.byte();
    let side = usize::from(kind & 1);
    let amount = usize::from(input.byte());
    match kind >> 1 {
        0..=29 => Step::Write {
            side,
            length: amount,
        },
        30..=59 => Step::Read {
            side,
            max: 1 + amount,
        },
        60..=99 => Step::Carry {
            from: side,
            bytes: 1 + amount,
        },
        100..=104 => Step::Finish { side },
        105 if amount < 8 => Step::Reset { side },
        105..=109 => Step::Cut,
        110..=117 => Step::Attach,
        118 if amount < 8 => Step::Wait { millis: 120_000 },
        _ => Step::Wait {
            millis: amount as u64,
        },
    }
}
