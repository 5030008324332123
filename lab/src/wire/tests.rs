//! The model in virtual time: what is promised, exactly where it is exact, within its spread where it is chance.

use std::time::Duration;

use super::{
    frame,
    lane::{Heading, Lane, Output, Tally},
    profile::Share,
    script,
};

const MS: Duration = Duration::from_millis(1);

/// An Ethernet frame with a UDP datagram in it, its checksum right.
fn datagram(number: u32, payload: usize) -> Vec<u8> {
    let mut udp = vec![0x1b, 0x58, 0x1b, 0x59, 0, 0, 0, 0];
    let length = u16::try_from(8 + payload).expect("short");
    udp[4..6].copy_from_slice(&length.to_be_bytes());
    udp.extend(number.to_be_bytes());
    udp.resize(8 + payload, 7);
    let mut ip = vec![
        0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ];
    ip[2..4].copy_from_slice(&(20 + length).to_be_bytes());
    let sum = checksum(&ip, &udp);
    udp[6..8].copy_from_slice(&(!sum).to_be_bytes());
    [&[2; 12][..], &[8, 0], &ip, &udp].concat()
}

/// The sum over pseudo-header and segment, which is all ones when the checksum in it is right.
fn checksum(ip: &[u8], segment: &[u8]) -> u16 {
    let length = u16::try_from(segment.len()).expect("short").to_be_bytes();
    let pseudo = [&ip[12..20], &[0, ip[9]], &length].concat();
    let mut bytes = [&pseudo, segment].concat();
    bytes.resize(bytes.len().next_multiple_of(2), 0);
    let mut sum = 0_u32;
    for word in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([word[0], word[1]]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded")
}

fn lane(script: &str) -> Lane {
    seeded(script, 1)
}

fn seeded(script: &str, seed: u64) -> Lane {
    let mut lane = Lane::new(Heading::There, seed);
    for change in script::parse(script).expect("a script") {
        lane.apply(change.setting);
    }
    lane
}

/// Everything that leaves, with its time, in order.
fn drain(lane: &mut Lane) -> Vec<(Duration, Vec<u8>)> {
    let (mut now, mut sent) = (Duration::ZERO, Vec::new());
    loop {
        match lane.poll_output(now) {
            Output::Send(frame) => sent.push((now, frame)),
            Output::Wait(at) => {
                assert!(at > now, "a wait for what is past");
                now = at;
            }
            Output::Idle => return sent,
        }
    }
}

fn number(frame: &[u8]) -> u32 {
    u32::from_be_bytes(frame[42..46].try_into().expect("four bytes"))
}

/// Sends that many packets, one each millisecond, and returns what leaves.
fn sent(lane: &mut Lane, packets: u32) -> Vec<(Duration, Vec<u8>)> {
    for n in 0..packets {
        lane.handle_frame(MS * n, datagram(n, 100));
    }
    drain(lane)
}

fn near(value: u64, wanted: u64, spread: u64) {
    assert!(
        value.abs_diff(wanted) <= spread,
        "{value} is not {wanted} ± {spread}"
    );
}

#[test]
fn a_perfect_cable_changes_nothing() {
    let mut lane = lane("");
    let got = sent(&mut lane, 100);
    assert_eq!(got.len(), 100);
    for (n, (_, frame)) in (0..).zip(&got) {
        assert_eq!(frame, &datagram(n, 100));
    }
    assert_eq!(lane.tally().passed, 100);
}

#[test]
fn delay_is_exact_and_jitter_stays_within_its_span_and_keeps_the_order() {
    let got = sent(&mut lane("delay 20ms"), 50);
    for (n, (at, frame)) in (0..).zip(&got) {
        assert_eq!((*at, number(frame)), (MS * (n + 20), n));
    }
    let got = sent(&mut lane("delay 20ms, jitter 10ms"), 2_000);
    let mut last = 0;
    let mut late = Duration::ZERO;
    for (at, frame) in &got {
        let n = number(frame);
        assert!(n >= last, "{n} overtook {last}");
        last = n;
        let took = *at - MS * n;
        assert!(took >= MS * 20 && took <= MS * 30, "{took:?}");
        late = late.max(took);
    }
    assert!(late > MS * 29, "the whole span is used: {late:?}");
}

#[test]
fn loss_and_copies_come_at_their_share() {
    let mut lane = lane("loss 20, duplicate 10");
    let got = sent(&mut lane, 10_000);
    // Five standard deviations of 10 000 draws at 20 % are 200.
    near(lane.tally().lost, 2_000, 200);
    near(lane.tally().duplicated, 800, 150);
    assert_eq!(
        got.len() as u64,
        10_000 - lane.tally().lost + lane.tally().duplicated
    );
}

#[test]
fn bursts_lose_neighbours_and_as_many_as_the_model_says() {
    let mut lane = lane("burst 1 25");
    let got = sent(&mut lane, 20_000);
    // The bad state's share: 1 / (1 + 25); a burst has four packets on average, so the spread is wider than by chance.
    near(lane.tally().lost, 769, 300);
    let mut runs = 0;
    let mut last = None;
    for (_, frame) in &got {
        let n = number(frame);
        runs += u64::from(last.is_some_and(|last| n > last + 1));
        last = Some(n);
    }
    let mean = lane.tally().lost / runs.max(1);
    assert!((3..=5).contains(&mean), "bursts of {mean}");
}

#[test]
fn held_packets_are_overtaken_and_nothing_is_lost() {
    let mut lane = lane("delay 5ms, reorder 10 4ms");
    let got = sent(&mut lane, 1_000);
    assert_eq!(got.len(), 1_000);
    near(lane.tally().reordered, 100, 50);
    let late = got
        .windows(2)
        .filter(|pair| number(&pair[0].1) > number(&pair[1].1))
        .count();
    assert!(late >= 50, "{late} came late");
}

#[test]
fn a_rate_spaces_packets_and_a_full_queue_loses_the_rest() {
    // 128 bytes of IP each: 128 kbit/s carry 125 a second.
    let mut lane = lane("rate 128kbit, queue 12800B");
    for n in 0..1_000 {
        lane.handle_frame(Duration::ZERO, datagram(n, 100));
    }
    let got = drain(&mut lane);
    assert_eq!(got.len(), 101, "one on the line and a hundred in the queue");
    assert_eq!(lane.tally().overflowed, 899);
    for (n, (at, _)) in (1..).zip(&got) {
        assert_eq!(*at, MS * 8 * n);
    }
}

#[test]
fn a_flipped_bit_breaks_the_checksum_or_keeps_it_as_told() {
    for payload in [4, 5, 100, 101] {
        for (script, fits) in [("corrupt 100", false), ("forge 100", true)] {
            for seed in 0..200 {
                let mut lane = seeded(script, seed);
                let before = datagram(9, payload);
                lane.handle_frame(Duration::ZERO, before.clone());
                let (_, after) = drain(&mut lane).pop().expect("it passes");
                let changed: u32 = before[42..]
                    .iter()
                    .zip(&after[42..])
                    .map(|(one, other)| (one ^ other).count_ones())
                    .sum();
                let is_right = checksum(&after[14..34], &after[34..]) == 0xffff;
                assert_eq!(is_right, fits, "{script} with seed {seed}");
                assert_eq!(after[..34], before[..34], "nothing outside is touched");
                assert!(!fits || changed == 1, "{changed} bits of the payload");
            }
        }
    }
}

#[test]
fn what_is_down_carries_nothing_and_what_finds_neighbours_suffers_only_then() {
    let arp = [&[2; 12][..], &[8, 6], &[0; 28]].concat();
    let mut solicit = [&[2; 12][..], &[0x86, 0xdd], &[0; 40], &[135, 0, 0, 0]].concat();
    solicit[14 + 6] = 58;
    for frame in [arp, solicit] {
        let mut lane = lane("loss 100, delay 1s");
        lane.handle_frame(Duration::ZERO, frame.clone());
        assert_eq!(drain(&mut lane), [(Duration::ZERO, frame.clone())]);
        lane.apply(script::parse("down").expect("a script")[0].setting);
        lane.handle_frame(Duration::ZERO, frame);
        assert_eq!(lane.poll_output(Duration::ZERO), Output::Idle);
        assert_eq!(lane.tally().cut, 1);
    }
}

#[test]
fn packets_that_are_too_long_vanish() {
    let mut lane = lane("mtu 128");
    lane.handle_frame(Duration::ZERO, datagram(1, 100));
    lane.handle_frame(Duration::ZERO, datagram(2, 101));
    assert_eq!(drain(&mut lane).len(), 1);
    assert_eq!(lane.tally().too_long, 1);
}

#[test]
fn the_same_seed_and_packets_suffer_the_same_whatever_the_times() {
    let script = "loss 10, burst 2 30, duplicate 5, corrupt 5, forge 5";
    let once = sent(&mut seeded(script, 7), 2_000);
    let mut slower = seeded(script, 7);
    for n in 0..2_000 {
        slower.handle_frame(MS * 13 * n, datagram(n, 100));
    }
    let again = drain(&mut slower);
    let frames = |sent: &[(Duration, Vec<u8>)]| -> Vec<Vec<u8>> {
        sent.iter().map(|(_, frame)| frame.clone()).collect()
    };
    assert_eq!(frames(&once), frames(&again));
    let other = sent(&mut seeded(script, 8), 2_000);
    assert_ne!(frames(&once), frames(&other));
}

#[test]
fn the_two_directions_draw_apart() {
    let lost = |heading| -> Tally {
        let mut lane = Lane::new(heading, 1);
        lane.apply(script::parse("loss 50").expect("a script")[0].setting);
        sent(&mut lane, 1_000);
        lane.tally()
    };
    assert_ne!(lost(Heading::There), lost(Heading::Back));
}

#[test]
fn a_script_says_when_where_and_what() {
    let changes = script::parse("delay 20ms; t=2s down, t=32s up, loss 1\nt=1m there loss 0.5")
        .expect("a script");
    let lines: Vec<String> = changes
        .iter()
        .map(|change| format!("{:?} {:?} {change}", change.at, change.heading))
        .collect();
    assert_eq!(
        lines,
        [
            "0ns None delay 20ms",
            "2s None t=2s down",
            "32s None t=32s up",
            "32s None loss 1",
            "60s Some(There) t=1m there loss 0.5",
        ]
    );
    for wrong in [
        "loss",
        "loss 101",
        "loss x",
        "delay 20",
        "rate 5",
        "rate 0bit",
        "t=5s up, t=4s down",
        "there",
        "fly",
    ] {
        assert!(script::parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn shares_are_percent() {
    assert_eq!(Share::parse("100%").expect("a share"), Share::ALL);
    assert_eq!(Share::parse("0").expect("a share"), Share::NONE);
    assert_eq!(
        Share::parse("12.5").expect("a share").to_string(),
        "12.5000000%"
    );
}

#[test]
fn frames_cut_short_are_left_alone() {
    let whole = datagram(1, 20);
    for length in 0..whole.len() {
        let mut frame = whole[..length].to_vec();
        assert!(!frame::corrupt(&mut frame, 5) && !frame::forge(&mut frame, 5));
        assert_eq!(frame, whole[..length]);
    }
}
