//! The pulse in virtual time.

use super::*;

const KEEP_ALIVE: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

/// A peer that answers after a while, until it does not.
struct World {
    pulse: Pulse,
    begin: Instant,
    now: Instant,
    seen: Seen,
    probes: Vec<Duration>,
}

impl World {
    fn new(side: Side) -> Self {
        let begin = Instant::now();
        Self {
            pulse: Pulse::new(side, KEEP_ALIVE, SELDOM, begin),
            begin,
            now: begin,
            seen: Seen::default(),
            probes: Vec::new(),
        }
    }

    fn with_streams(side: Side) -> Self {
        let mut world = Self::new(side);
        world.seen.attended = true;
        world
    }

    /// Looks, then lets the time pass until the next look, which comes `late`.
    fn look(&mut self, late: Duration) -> Step {
        let step = self.pulse.handle_look(self.now, self.seen);
        if step.probe {
            self.probes.push(self.now - self.begin);
        }
        self.now = step.next.unwrap_or(self.now) + late;
        step
    }

    /// Looks for so long with what is seen; the verdict, and how long after the begin of this it came.
    fn run(&mut self, time: Duration) -> Option<(Lost, Duration)> {
        let begin = self.now;
        while self.now - begin <= time {
            let now = self.now;
            let step = self.look(Duration::ZERO);
            if let Some(verdict) = step.verdict {
                return Some((verdict, now - begin));
            }
            step.next?;
        }
        None
    }

    fn answers(&mut self) {
        self.seen.answered = true;
        self.seen.heard = true;
    }

    fn is_silent(&mut self) {
        self.seen.answered = false;
        self.seen.heard = false;
    }
}

#[test]
fn a_connection_with_streams_is_dead_two_seconds_after_its_last_answer() {
    for side in [Side::Dialled, Side::Listens] {
        let mut world = World::with_streams(side);
        world.answers();
        assert_eq!(world.run(60 * KEEP_ALIVE), None);
        // An answer may have come just behind the last look: that is the interval more.
        world.is_silent();
        let (verdict, after) = world.run(60 * KEEP_ALIVE).expect("a verdict");
        assert_eq!(verdict, Lost::Silent);
        assert!((1_500 * MS..=1_750 * MS).contains(&after), "{after:?}");
    }
}

// F16: bytes that come in say nothing of those that go out.
#[test]
fn a_dialler_that_hears_but_gets_no_answers_gives_up_and_a_listener_does_not() {
    let mut dialler = World::with_streams(Side::Dialled);
    dialler.seen.heard = true;
    let (verdict, after) = dialler.run(60 * KEEP_ALIVE).expect("a verdict");
    assert_eq!(verdict, Lost::Silent);
    assert!(after <= 2_000 * MS, "{after:?}");
    let mut listener = World::with_streams(Side::Listens);
    listener.seen.heard = true;
    assert_eq!(listener.run(60 * KEEP_ALIVE), None);
    assert_eq!(listener.probes.len(), 1, "the first look only");
}

// F36: looks that come late are this process's own want of processor time.
#[test]
fn time_in_which_this_process_did_not_run_is_nobodys_silence() {
    let mut world = World::with_streams(Side::Dialled);
    world.look(Duration::ZERO);
    for _ in 0..4 {
        // Stopped for a minute; the answers that came meanwhile have not been read yet.
        world.look(60 * KEEP_ALIVE);
    }
    assert_eq!(world.look(Duration::ZERO).verdict, None);
    world.answers();
    assert_eq!(world.look(Duration::ZERO).verdict, None);
    world.is_silent();
    // Two hundred milliseconds in each four hundred.
    let mut looks = 0;
    let begin = world.now;
    while world.look(200 * MS).verdict.is_none() {
        looks += 1;
    }
    let ended = world.now - begin;
    assert!(looks >= 4 && ended >= 2_000 * MS, "{looks} {ended:?}");
}

#[test]
fn a_long_way_is_given_its_round_trips() {
    let mut world = World::with_streams(Side::Dialled);
    world.seen.rtt = Duration::from_secs(3);
    let (_, after) = world.run(60 * KEEP_ALIVE).expect("a verdict");
    assert!((9_000 * MS..=9_500 * MS).contains(&after), "{after:?}");
}

#[test]
fn a_peer_whose_machine_says_that_it_is_gone_is_believed_after_a_second_of_silence() {
    for side in [Side::Dialled, Side::Listens] {
        let mut world = World::with_streams(side);
        world.seen.refused = true;
        // F20: what anybody can forge has no effect while the peer goes on.
        world.answers();
        assert_eq!(world.run(60 * KEEP_ALIVE), None);
        world.is_silent();
        let (verdict, after) = world.run(60 * KEEP_ALIVE).expect("a verdict");
        assert_eq!(verdict, Lost::PeerGone);
        assert!((750 * MS..=1_000 * MS).contains(&after), "{after:?}");
    }
}

#[test]
fn an_idle_connection_is_asked_ever_more_seldom_and_at_once_when_a_stream_opens() {
    let mut world = World::new(Side::Dialled);
    world.answers();
    assert_eq!(world.run(KEEP_ALIVE * 3_600), None);
    let between: Vec<Duration> = world.probes.windows(2).map(|two| two[1] - two[0]).collect();
    assert!(between.is_sorted(), "{between:?}");
    assert_eq!(between.first(), Some(&KEEP_ALIVE));
    assert_eq!(between.last(), Some(&SELDOM));
    let asked_often = world.probes.iter().filter(|at| **at < BACK_OFF_AFTER);
    assert_eq!(asked_often.count(), 120);
    world.seen.attended = true;
    let step = world.look(Duration::ZERO);
    assert!(step.probe);
    assert_eq!(step.next, Some(world.now));
    world.seen.attended = false;
    world.look(Duration::ZERO);
    assert_eq!(world.look(Duration::ZERO).next, Some(world.now));
    let again = world.probes.len();
    world.run(BACK_OFF_AFTER / 2);
    assert!(world.probes.len() - again >= 59, "in use a moment ago");
}

#[test]
fn an_idle_connection_that_lost_its_peer_outlives_a_roam_and_is_dead_soon_after() {
    let mut world = World::new(Side::Dialled);
    world.answers();
    world.run(KEEP_ALIVE * 3_600);
    world.is_silent();
    let (verdict, after) = world.run(KEEP_ALIVE * 60).expect("a verdict");
    assert_eq!(verdict, Lost::Silent);
    let most = SELDOM + IDLE_SILENCE + KEEP_ALIVE;
    assert!((IDLE_SILENCE..=most).contains(&after), "{after:?}");
}

#[test]
fn a_listener_asks_no_idle_peer_and_only_a_silent_one() {
    let mut world = World::new(Side::Listens);
    let step = world.look(Duration::ZERO);
    assert_eq!((step.probe, step.next), (false, None));
    world.now += 100 * KEEP_ALIVE;
    world.seen.attended = true;
    // What was silent before the first stream opened was not asked.
    assert_eq!(world.look(Duration::ZERO).verdict, None);
    world.answers();
    world.run(KEEP_ALIVE);
    let before = world.probes.len();
    world.is_silent();
    world.run(KEEP_ALIVE);
    assert!(world.probes.len() - before >= 3, "{:?}", world.probes);
}

#[test]
fn a_silence_is_doubted_before_it_is_believed() {
    let mut world = World::with_streams(Side::Dialled);
    world.answers();
    assert!(!world.look(Duration::ZERO).doubt);
    world.is_silent();
    let mut doubted = Vec::new();
    while doubted.len() < 20 {
        let at = world.now;
        let step = world.look(Duration::ZERO);
        if step.verdict.is_some() {
            break;
        }
        if step.doubt {
            doubted.push(at);
        }
    }
    assert!(doubted.len() >= 3, "{doubted:?}");
}

#[test]
fn a_peer_that_does_not_take_a_move_is_left_soon_and_one_that_does_is_an_ordinary_peer_again() {
    let mut world = World::with_streams(Side::Dialled);
    world.answers();
    world.look(Duration::ZERO);
    world.pulse.handle_move();
    world.is_silent();
    let (_, after) = world.run(60 * KEEP_ALIVE).expect("a verdict");
    assert!((250 * MS..=750 * MS).contains(&after), "{after:?}");
    let mut world = World::with_streams(Side::Dialled);
    world.pulse.handle_move();
    world.answers();
    world.run(KEEP_ALIVE);
    world.is_silent();
    let (_, after) = world.run(60 * KEEP_ALIVE).expect("a verdict");
    assert!(after >= 1_500 * MS, "{after:?}");
}
