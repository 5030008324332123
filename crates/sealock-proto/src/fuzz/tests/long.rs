//! F43: inputs that are drawn from the committed ones by chance, as many as one asks for, without a nightly compiler.
//!
//! Each execution has a seed of its own, so that one that breaks a promise can be seen again alone:
//! `FUZZ_EXECUTIONS` says how many of each target, `FUZZ_SEED` where they begin. Deliberately absent: what tells a
//! fuzzer which input reached something new; the committed inputs are what it found.
//!
//! Done on 2026-11-21: 2 × 10^7 of `control_message`, 10^7 of `stream_machine`, 10^6 of each other target, none of which
//! broke a promise. F43's 10^9 of each take 9 hours of one such processor, at 1 to 12 µs an execution: 20 minutes for
//! messages, an hour and a half for frames, three hours for two streams against their model.

use super::super::{TARGETS, Target};
use super::inputs_of;
use crate::sim::rng::{Rng, mix};
use crate::sim::tests::from_environment;

/// How many of each target, when nobody says: half a minute of the slowest in a debug build.
const EXECUTIONS: u64 = 1_000_000;
/// No input grows beyond this: what is longer is more of the same.
const LENGTH_LIMIT: usize = 8 << 10;
/// What one input suffers at most.
const CHANGES: u64 = 6;
/// Where lengths and numbers change their meaning.
const EDGES: [u64; 12] = [
    0,
    1,
    0x3f,
    0x7f,
    0xff,
    0x4000,
    0xffff,
    0x1_0000,
    u32::MAX as u64,
    1 << 62,
    i64::MAX as u64,
    u64::MAX,
];

fn index(rng: &mut Rng, length: usize) -> usize {
    let last = u64::try_from(length.saturating_sub(1)).expect("short");
    usize::try_from(rng.upto(last)).expect("short")
}

/// A piece of an input, empty or not.
fn piece(rng: &mut Rng, bytes: &[u8]) -> std::ops::Range<usize> {
    let from = index(rng, bytes.len() + 1);
    let length = index(rng, (bytes.len() - from).min(64) + 1);
    from..from + length
}

fn change(rng: &mut Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    match rng.upto(7) {
        0 if !bytes.is_empty() => {
            let at = index(rng, bytes.len());
            bytes[at] ^= 1 << rng.upto(7);
        }
        1 if !bytes.is_empty() => {
            let at = index(rng, bytes.len());
            bytes[at] = rng.next().to_le_bytes()[0];
        }
        2 => bytes.truncate(index(rng, bytes.len() + 1)),
        3 => drop(bytes.drain(piece(rng, bytes))),
        4 => {
            let again = bytes[piece(rng, bytes)].to_vec();
            let at = index(rng, bytes.len() + 1);
            bytes.splice(at..at, again);
        }
        5 => {
            let taken = other[piece(rng, other)].to_vec();
            let place = piece(rng, bytes);
            bytes.splice(place, taken);
        }
        6 => {
            let edge = EDGES[index(rng, EDGES.len())].to_be_bytes();
            let width = 1 << rng.upto(3);
            let from = index(rng, bytes.len() + 1);
            let until = bytes.len().min(from + width);
            bytes.splice(from..until, edge[8 - width..].iter().copied());
        }
        _ => {
            let at = index(rng, bytes.len() + 1);
            let new = rng.next().to_le_bytes();
            bytes.splice(at..at, new[..index(rng, 8)].iter().copied());
        }
    }
    bytes.truncate(LENGTH_LIMIT);
}

fn input_of(seed: u64, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut bytes = corpus[index(&mut rng, corpus.len())].clone();
    for _ in 0..=rng.upto(CHANGES - 1) {
        let other = index(&mut rng, corpus.len());
        change(&mut rng, &mut bytes, &corpus[other]);
    }
    bytes
}

#[expect(clippy::print_stderr, reason = "names the input that breaks a promise")]
fn feed(target: &Target, bytes: &[u8], how: impl Fn() -> String) {
    let outcome = std::panic::catch_unwind(|| (target.run)(bytes));
    let Ok(seen) = outcome else {
        eprintln!("{}, {}: {bytes:02x?}", target.name, how());
        panic!("{} breaks a promise", target.name);
    };
    let unknown = seen.iter().find(|name| !target.reaches.contains(name));
    assert_eq!(unknown, None, "{}: not in the list of the target", how());
}

/// Every input with each of its bits turned, and cut at each of its bytes.
fn bits_and_cuts(target: &Target, corpus: &[Vec<u8>]) -> usize {
    let mut count = 0;
    for whole in corpus {
        for at in 0..whole.len() {
            feed(target, &whole[..at], || format!("cut at {at}"));
            for bit in 0..8 {
                let mut turned = whole.clone();
                turned[at] ^= 1 << bit;
                feed(target, &turned, || format!("bit {bit} at {at}"));
            }
            count += 9;
        }
    }
    count
}

#[expect(clippy::print_stderr, reason = "says how many there were")]
fn mutate(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name);
    let target = target.expect("a target of this name");
    let corpus = inputs_of(target).into_iter().map(|(_, bytes)| bytes);
    let corpus: Vec<Vec<u8>> = corpus.collect();
    let first = from_environment("FUZZ_SEED").unwrap_or(0);
    let count = from_environment("FUZZ_EXECUTIONS").unwrap_or(EXECUTIONS);
    let all = bits_and_cuts(target, &corpus);
    for number in 0..count {
        let seed = first.wrapping_add(number);
        let bytes = input_of(mix(seed), &corpus);
        feed(target, &bytes, || {
            format!("FUZZ_SEED={seed} FUZZ_EXECUTIONS=1")
        });
    }
    eprintln!("{name}: {all} bits and cuts, {count} by chance from {first}");
}

#[test]
fn altered_tokens_break_no_promise() {
    mutate("join_token");
}

#[test]
fn altered_patterns_break_no_promise() {
    mutate("policy_pattern");
}

#[test]
fn altered_messages_break_no_promise() {
    mutate("control_message");
}

#[test]
fn altered_frames_break_no_promise() {
    mutate("wire_frame");
}

#[test]
fn altered_talks_with_a_stream_break_no_promise() {
    mutate("stream_machine");
}

#[test]
fn altered_talks_of_two_streams_break_no_promise() {
    mutate("stream_model");
}

#[test]
fn altered_uses_of_the_replay_buffer_break_no_promise() {
    mutate("replay_buffer");
}

#[test]
fn altered_proofs_break_no_promise() {
    mutate("ticket");
}

#[test]
fn altered_questions_for_names_break_no_promise() {
    mutate("dns_message");
}

#[test]
fn altered_answers_of_resolvers_break_no_promise() {
    mutate("dns_answer");
}

#[test]
fn altered_beginnings_of_streams_break_no_promise() {
    mutate("sniff_stream");
}

#[test]
fn altered_beginnings_of_quic_flows_break_no_promise() {
    mutate("sniff_quic");
}
