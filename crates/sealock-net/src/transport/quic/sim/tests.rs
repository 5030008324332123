//! Many seeds exact, alike when run twice, and each happening by itself with its bound of time.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use noq_proto::Event;

use super::identity::Identities;
use super::node::{KEEP_ALIVE, Node};
use super::world::{Happening, Outcome, Plan, Rng, World};
use crate::transport::TransportKeys;

const SEEDS: u64 = 150;
// 1 in so many runs twice.
const TWICE: u64 = 25;

fn draw(rng: &mut Rng) -> Plan {
    let some = |rng: &mut Rng, max| if rng.chance(60) { rng.upto(max) } else { 0 };
    let happenings = [(); 3].map(|()| {
        let happening = match rng.upto(4) {
            0 => Happening::Restart,
            1 => Happening::Rebind,
            2 => Happening::KillLeg,
            3 => Happening::Silence(rng.upto(6_000)),
            _ => return None,
        };
        Some((rng.upto(8_000), happening))
    });
    let size = |rng: &mut Rng| {
        let shift = rng.upto(12);
        usize::try_from(rng.upto(600_000 >> shift)).expect("small")
    };
    Plan {
        bytes: [size(rng), size(rng)],
        loss_percent: some(rng, 40),
        duplicate_percent: some(rng, 20),
        delay_us: 1 + rng.upto(300_000),
        jitter_us: some(rng, 200_000),
        happenings,
    }
}

#[expect(
    clippy::print_stderr,
    reason = "a failure names the way to see it again"
)]
fn run(seed: u64, identities: &Identities) -> Outcome {
    let plan = draw(&mut Rng(seed ^ 0x9_0007));
    match World::new(seed, plan, identities).run() {
        Ok(outcome) => outcome,
        Err(failure) => {
            eprintln!("seed {seed:#x}: {failure}\n{plan:#?}");
            eprintln!(
                "replay: SIM_SEED={seed:#x} cargo nextest run -p sealock-net replays_a_seed --no-capture"
            );
            panic!("seed {seed:#x}: {failure}");
        }
    }
}

fn from_environment(name: &str) -> Option<u64> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the seed to replay is the tester's choice"
    )]
    let text = std::env::var(name).ok()?;
    let value = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    Some(value.unwrap_or_else(|_| panic!("{name} is a number, not {text}")))
}

#[expect(clippy::print_stderr, reason = "shows what the seeds covered")]
#[test]
fn a_stream_over_quic_arrives_exact_whatever_the_network_does() {
    let identities = Identities::new();
    let count = from_environment("SIM_QUIC_SEEDS").unwrap_or(SEEDS);
    let mut total = Outcome::default();
    for seed in 0..count {
        let outcome = run(seed, &identities);
        if seed % TWICE == 0 {
            let again = run(seed, &identities);
            assert_eq!(again, outcome, "seed {seed:#x} is not deterministic");
        }
        total.legs += outcome.legs;
        total.connections += outcome.connections;
        total.stateless_resets += outcome.stateless_resets;
        total.reset_codes += outcome.reset_codes;
        total.lost += outcome.lost;
    }
    eprintln!("{count} seeds: {total:?}");
    assert!(
        u64::from(total.legs) > count + count / 4,
        "streams are taken up again"
    );
    assert!(total.stateless_resets > 0 && total.reset_codes > 0 && total.lost > 0);
}

#[test]
fn replays_a_seed_of_quic() {
    let identities = Identities::new();
    let seed = from_environment("SIM_SEED").unwrap_or(1);
    assert_eq!(run(seed, &identities), run(seed, &identities));
}

fn calm(happening: Happening) -> Plan {
    Plan {
        bytes: [3_000_000, 3_000_000],
        loss_percent: 0,
        duplicate_percent: 0,
        delay_us: 25_000,
        jitter_us: 0,
        happenings: [Some((400, happening)), None, None],
    }
}

fn run_calm(happening: Happening) -> Outcome {
    let world = World::new(7, calm(happening), &Identities::new());
    world.run().expect("exact")
}

#[test]
fn a_restart_with_kept_keys_is_told_by_a_stateless_reset_within_a_keep_alive() {
    let outcome = run_calm(Happening::Restart);
    assert_eq!(
        (outcome.stateless_resets, outcome.legs, outcome.connections),
        (1, 2, 2)
    );
    let noticed = outcome.noticed_in.expect("noticed");
    // A busy stream's next packet is answered within a round trip of 50 ms.
    assert!(
        noticed <= KEEP_ALIVE + Duration::from_millis(60),
        "{noticed:?}"
    );
}

#[test]
fn another_address_of_the_dialler_costs_neither_connection_nor_leg() {
    let outcome = run_calm(Happening::Rebind);
    assert_eq!((outcome.legs, outcome.connections), (1, 1));
}

#[test]
fn a_leg_that_is_reset_carries_its_code_and_the_next_one_needs_no_handshake() {
    let outcome = run_calm(Happening::KillLeg);
    assert_eq!(
        (outcome.legs, outcome.connections, outcome.reset_codes),
        (2, 1, 1)
    );
}

#[test]
fn a_silence_shorter_than_the_idle_time_costs_neither_connection_nor_leg() {
    let outcome = run_calm(Happening::Silence(3_000));
    assert_eq!((outcome.legs, outcome.connections), (1, 1));
    assert!(outcome.took < Duration::from_secs(10), "{:?}", outcome.took);
}

// RFC 9002: a lost flight is sent again, and with 30 % loss both ways the handshake still ends.
#[test]
fn a_handshake_ends_under_heavy_loss() {
    let identities = Identities::new();
    for seed in 0..20 {
        let plan = Plan {
            bytes: [100, 100],
            loss_percent: 30,
            happenings: [None; 3],
            ..calm(Happening::KillLeg)
        };
        let outcome = World::new(seed, plan, &identities).run().expect("exact");
        assert!(outcome.connections >= 1 && outcome.legs >= 1);
    }
}

/// Two ends make a connection over a perfect network; says how many of them have it, and how many ACK_FREQUENCY frames
/// they sent.
fn shake_hands(identities: &Identities) -> (usize, u64) {
    let address = |port| SocketAddr::from(([10, 0, 0, 1], port));
    let keys = TransportKeys::generate();
    let mut ends = [
        (address(1), Node::new(identities, &keys, [1; 32], false)),
        (address(2), Node::new(identities, &keys, [2; 32], true)),
    ];
    let (mut now, mut connected) = (Instant::now(), 0);
    ends[0].1.connect(now, address(2));
    for _ in 0..ROUNDS {
        for at in 0..2 {
            let (from, end) = &mut ends[at];
            let from = *from;
            for (_, event) in end.drive(now) {
                connected += usize::from(matches!(event, Event::Connected));
            }
            for (_, bytes) in std::mem::take(&mut end.outbox) {
                ends[1 - at].1.receive(now, from, &bytes);
            }
        }
        now += Duration::from_millis(1);
    }
    let connections = ends
        .iter_mut()
        .flat_map(|(_, end)| end.connections.values_mut());
    let asked = connections.map(|connection| connection.stats().frame_tx.ack_frequency);
    (connected, asked.sum())
}

/// More than a handshake needs, and the first exchanges after it.
const ROUNDS: usize = 12;

/// Wherever the packets of 1 200 bytes end in what a handshake says, what follows fits. And nobody asks for fewer
/// acknowledgements: the library writes that frame without asking whether it fits, which ended relays.
#[test]
fn handshakes_of_every_length_fit_their_packets_and_ask_for_no_fewer_acknowledgements() {
    // The shortest packet that the library puts behind another takes 87 bytes.
    for padding in (0..1_200).step_by(8) {
        assert_eq!(
            shake_hands(&Identities::padded(padding)),
            (2, 0),
            "certificates longer by {padding} bytes"
        );
    }
}
