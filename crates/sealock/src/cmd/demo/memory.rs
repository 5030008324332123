//! Looks for bytes in the memory of a process of ours: all that it can read and write, as the kernel lists it.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};

use anyhow::Context;

/// What a search saw.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Searched {
    pub(super) bytes: u64,
    pub(super) found: u64,
}

const CHUNK: usize = 1 << 20;

/// Searches the memory of a process.
pub(super) fn search(pid: u32, needle: &[u8]) -> anyhow::Result<Searched> {
    let maps =
        File::open(format!("/proc/{pid}/maps")).context("listing the memory of a process")?;
    let mut memory =
        File::open(format!("/proc/{pid}/mem")).context("reading the memory of a process")?;
    let mut searched = Searched::default();
    for line in BufReader::new(maps).lines() {
        if let Some((from, to)) = writable(&line?) {
            search_region(&mut memory, from, to, needle, &mut searched);
        }
    }
    Ok(searched)
}

/// The range of a line of `/proc/PID/maps`, when its memory can be read and written.
fn writable(line: &str) -> Option<(u64, u64)> {
    let mut fields = line.split_ascii_whitespace();
    let (from, to) = fields.next()?.split_once('-')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    fields
        .next()?
        .starts_with("rw")
        .then_some((hex(from)?, hex(to)?))
}

/// Regions come and go under a live process; what is gone cannot hold anything.
fn search_region(memory: &mut File, from: u64, to: u64, needle: &[u8], searched: &mut Searched) {
    if memory.seek(SeekFrom::Start(from)).is_err() {
        return;
    }
    let mut held = Vec::with_capacity(CHUNK + needle.len());
    let mut left = to - from;
    while left > 0 {
        let take = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        let start = held.len();
        held.resize(start + take, 0);
        let Ok(length) = memory.read(&mut held[start..]) else {
            return;
        };
        if length == 0 {
            return;
        }
        held.truncate(start + length);
        searched.bytes += length as u64;
        left -= length as u64;
        searched.found += count(&held, needle);
        // The tail may be the head of a match that goes on in the next chunk; a whole match cannot hide in it.
        let keep = held.len().saturating_sub(needle.len() - 1);
        held.drain(..keep);
    }
}

/// How often `needle` stands in `held`.
///
/// The system's own search for one byte finds the places to look at: hundreds of MiB take a moment even unoptimised.
fn count(held: &[u8], needle: &[u8]) -> u64 {
    // Memory is full of zeros; every other byte is as good a sign as the next one.
    let Some(sign) = needle.iter().position(|byte| *byte != 0) else {
        return 0;
    };
    let (mut rest, mut found) = (held, 0);
    // Reading a slice does not fail.
    while let Ok(1..) = rest.skip_until(needle[sign]) {
        let after = held.len() - rest.len();
        let start = (after - 1).checked_sub(sign);
        found += u64::from(start.is_some_and(|start| held[start..].starts_with(needle)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_every_place_once() {
        for (held, needle, times) in [
            (&b"abcabcab"[..], &b"abc"[..], 2),
            (b"aaaa", b"aa", 3),
            (b"c", b"abc", 0),
            (b"", b"abc", 0),
            (b"\0\0\0x\0x", b"\0x", 2),
            (b"x\0", b"\0x", 0),
        ] {
            assert_eq!(count(held, needle), times, "{needle:?} in {held:?}");
        }
    }

    #[test]
    fn finds_what_this_process_holds() {
        let needle: [u8; 24] = std::array::from_fn(|at| (at * 37 + 11) as u8);
        let held = needle.to_vec();
        let searched = search(std::process::id(), &needle).expect("our own memory");
        assert!(
            searched.found >= 1 && searched.bytes > 0,
            "{searched:?} {}",
            held.len()
        );
    }
}
