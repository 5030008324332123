//! What one seed draws before its run: sizes, paces and which faults may happen.

use std::time::Duration;

use crate::sim::rng::Rng;
use crate::stream::StreamConfig;

/// Microseconds of virtual time.
pub(super) type Micros = u64;

pub(super) const SECOND: Micros = 1_000_000;
/// The longest that an acknowledgement is put off.
pub(super) const ACK_DELAY: Micros = 20_000;

#[derive(Debug)]
pub(super) struct Plan {
    pub(super) config: [StreamConfig; 2],
    pub(super) apps: [AppPlan; 2],
    pub(super) faults: Faults,
}

#[derive(Debug)]
pub(super) struct AppPlan {
    pub(super) total: usize,
    pub(super) write_chunk: usize,
    pub(super) write_gap: Micros,
    pub(super) read_chunk: usize,
    pub(super) read_gap: Micros,
    pub(super) read_from: Micros,
    /// Writes only when the other side's end was read: needs half-close to work.
    pub(super) answers: bool,
    pub(super) reset_at: Option<Micros>,
}

#[derive(Debug)]
pub(super) struct Faults {
    /// How many faults there may be; the liveness phase begins behind the last.
    pub(super) budget: u32,
    pub(super) cut_percent: u64,
    pub(super) cut_span: u64,
    pub(super) cut_time: Micros,
    pub(super) move_percent: u64,
    pub(super) twice_percent: u64,
    pub(super) delay: Micros,
    pub(super) notice: Micros,
    pub(super) dial: Micros,
    pub(super) resplit_percent: u64,
    pub(super) transport: usize,
    /// An outage may be longer than the resume window.
    pub(super) outlasts: bool,
    /// One frame of a hostile peer is put in.
    pub(super) evil_at: Option<Micros>,
}

impl Plan {
    pub(super) fn draw(rng: &mut Rng) -> Self {
        let tiny = rng.chance(25);
        let early = if tiny {
            0
        } else {
            u32::try_from(rng.scaled(2_048)).expect("small")
        };
        let mut apps = [app(rng, tiny), app(rng, tiny)];
        let bytes = apps[0].total.max(apps[1].total);
        // Many tiny windows of a long stream cost much time and show nothing that a short stream does not.
        let least = 1 + u32::try_from(bytes / 256).expect("small");
        let config = [(); 2].map(|()| config(rng, tiny, least, early));
        apps[1].answers = rng.chance(15);
        for app in &mut apps {
            if rng.chance(10) {
                app.reset_at = Some(rng.scaled(SECOND));
            }
        }
        Self {
            config,
            apps,
            faults: faults(rng, bytes as u64),
        }
    }

    /// How long the applications may take by their own pace, whatever the legs do.
    pub(super) fn pace(&self) -> Micros {
        let mut sum = 0;
        for (app, other) in [(0, 1), (1, 0)].map(|(a, b)| (&self.apps[a], &self.apps[b])) {
            let writes = app.total / app.write_chunk + 1;
            // A read may give as little as one written chunk or one window.
            let reads = other.total + 1;
            sum += writes as u64 * app.write_gap + reads as u64 * app.read_gap + app.read_from;
        }
        sum
    }
}

fn config(rng: &mut Rng, tiny: bool, least: u32, early: u32) -> StreamConfig {
    let max = if tiny { 16 } else { 8_192 };
    let initial_window = least + u32::try_from(rng.scaled(max)).expect("small");
    StreamConfig {
        initial_window,
        max_window: initial_window + u32::try_from(rng.scaled(4 * max)).expect("small"),
        early,
        ack_delay: Duration::from_micros(rng.upto(ACK_DELAY)),
        resume_window: Duration::from_secs(120),
    }
}

fn app(rng: &mut Rng, tiny: bool) -> AppPlan {
    let total = match (tiny, rng.upto(9)) {
        (_, 0) => 0,
        (true, _) => rng.size(150),
        (false, 1..=7) => rng.size(3_000),
        (false, _) => rng.size(24_000),
    };
    let least = 1 + total / 64;
    AppPlan {
        total,
        write_chunk: least + usize::try_from(rng.scaled(4_096)).expect("small"),
        write_gap: if rng.chance(50) {
            0
        } else {
            rng.scaled(20_000)
        },
        read_chunk: least + usize::try_from(rng.scaled(4_096)).expect("small"),
        read_gap: if rng.chance(60) {
            0
        } else {
            rng.scaled(20_000)
        },
        read_from: if rng.chance(80) {
            0
        } else {
            rng.scaled(3 * SECOND)
        },
        answers: false,
        reset_at: None,
    }
}

fn faults(rng: &mut Rng, bytes: u64) -> Faults {
    let outlasts = rng.chance(5);
    let delay = 1 + rng.scaled(SECOND);
    // Cuts are worth most while bytes are on their way.
    let span = match rng.upto(3) {
        0 => 100,
        1 => 60 + bytes / 8,
        2 => 80 + bytes / 2,
        _ => 100 + 2 * bytes,
    };
    let some = |rng: &mut Rng, percent: u64| if rng.chance(60) { rng.upto(percent) } else { 0 };
    Faults {
        budget: if rng.chance(10) {
            0
        } else {
            1 + u32::try_from(rng.upto(9)).expect("small")
        },
        cut_percent: if rng.chance(85) { 60 + rng.upto(40) } else { 0 },
        cut_span: span,
        cut_time: if rng.chance(70) {
            1 + rng.upto(6 * delay)
        } else {
            1 + rng.scaled(2 * SECOND)
        },
        move_percent: some(rng, 60),
        twice_percent: some(rng, 60),
        delay,
        notice: rng.scaled(4 * SECOND),
        dial: if outlasts {
            rng.upto(150 * SECOND)
        } else {
            rng.scaled(2 * SECOND)
        },
        resplit_percent: rng.upto(50),
        transport: 1 + usize::try_from(rng.scaled(8_192)).expect("small"),
        outlasts,
        evil_at: rng.chance(4).then(|| rng.scaled(SECOND)),
    }
}
