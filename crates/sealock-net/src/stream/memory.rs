//! What the streams of an agent may hold together: bytes in buffers, and streams without a leg.
//!
//! Nothing that was taken over is ever thrown away for want of room. What a stream holds or promises is reserved first,
//! so the sum is bounded: as room gets scarce, streams begin smaller and grow less and then no more, and the applications
//! feel it as back-pressure. What each stream has for itself lets it move all the same, so no stream waits for another.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use sealock_proto::stream::{Read, Stream, WriteError};

use crate::limit::PeerLimit;

/// How much the streams of an agent may hold and promise to hold together, unless it is told otherwise: sixteen streams
/// at full size, or four thousand that idle.
pub const MEMORY_LIMIT: u64 = 256 << 20;
const WIDE: u32 = 16 << 20; // 1 Gbit/s at 128 ms
const NARROW: u32 = 1 << 20; // 1 Gbit/s at 8 ms
/// What every stream has for itself in each direction, whatever the others hold, so that all of them move at all times.
/// The protocol lets an opener send as much before it hears of a window.
const LEAST: u32 = 16 << 10;
/// First windows, and up to how many eighths of the memory they are given: four thousand streams have room, as many as
/// a port of our own takes.
const FIRST_WINDOWS: [(u32, u64); 3] = [(256 << 10, 3), (64 << 10, 5), (LEAST, 8)];
/// Up to how many eighths streams grow; the rest is for those that begin.
const GROWN: u64 = 6;

/// The bytes that an agent's streams hold and have promised to hold; clones share them. Whatever is held was reserved
/// before, so the sum never passes the limit.
#[derive(Debug, Clone)]
pub(super) struct Memory {
    inner: Arc<Reserved>,
}

#[derive(Debug)]
struct Reserved {
    limit: u64,
    used: AtomicU64,
}

impl Memory {
    pub(super) fn new(limit: u64) -> Self {
        let used = AtomicU64::new(0);
        Self {
            inner: Arc::new(Reserved { limit, used }),
        }
    }

    /// What is reserved.
    pub(super) fn used(&self) -> u64 {
        self.inner.used.load(Ordering::Relaxed)
    }

    fn eighths(&self, count: u64) -> u64 {
        self.inner.limit / 8 * count
    }

    /// Reserves room for one more stream, and says how large its first window is; nothing when there is no room.
    pub(super) fn enter(&self) -> Option<(Share, u32)> {
        let first = |&(window, eighths): &(u32, u64)| {
            let held = u64::from(window) + u64::from(LEAST);
            let within = self.eighths(eighths);
            (self.reserve(held, within) == held).then_some((window, held))
        };
        let (window, held) = FIRST_WINDOWS.iter().find_map(first)?;
        let share = Share {
            memory: self.clone(),
            held: AtomicU64::new(held),
        };
        Some((share, window))
    }

    /// Reserves so many bytes, all of them or, where that passes `within`, none.
    fn reserve(&self, bytes: u64, within: u64) -> u64 {
        let add = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= within);
        let reserved = (self.inner.used).fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        reserved.map_or(0, |_before| bytes)
    }

    fn give_back(&self, bytes: u64) {
        self.inner.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// What the window and the replay buffer of a stream may grow to, as things are.
    fn ceiling(&self) -> u32 {
        if self.used() < self.inner.limit / 2 {
            WIDE
        } else {
            NARROW
        }
    }
}

/// A stream's share of its agent's memory.
#[derive(Debug)]
pub(super) struct Share {
    memory: Memory,
    /// Changed under the lock of the stream's machine only.
    held: AtomicU64,
}

impl Share {
    /// Writes as much of the front of `bytes` as there is memory for, and says how much.
    pub(super) fn write(
        &self,
        machine: &mut Stream,
        bytes: &mut Bytes,
    ) -> Result<usize, WriteError> {
        let replay = replay(machine);
        let wish = machine.writable().min(bytes.len());
        let own = usize::try_from(u64::from(LEAST).saturating_sub(replay)).unwrap_or(wish);
        // What does not fit into the stream's own part is reserved, or left to the application to keep.
        let grown = wish.saturating_sub(own);
        let room = if self.grow(grown as u64) {
            wish
        } else {
            wish.min(own)
        };
        let taken = machine.write_within(room, bytes);
        self.settle(machine);
        taken
    }

    /// Reads, and lets the window grow meanwhile where there is memory for that.
    pub(super) fn read(&self, machine: &mut Stream, now: Instant, max: usize) -> Read {
        let window = machine.window();
        let room = window.min(self.memory.ceiling().saturating_sub(window));
        let room = if self.grow(room.into()) { room } else { 0 };
        machine.set_window_room(room);
        let read = machine.read(now, max);
        self.settle(machine);
        read
    }

    fn grow(&self, bytes: u64) -> bool {
        let within = self.memory.eighths(GROWN);
        let grown = self.memory.reserve(bytes, within) == bytes;
        if grown {
            self.held.fetch_add(bytes, Ordering::Relaxed);
        }
        grown
    }

    /// Gives back what the machine does not hold, and bounds what its replay buffer may grow to.
    pub(super) fn settle(&self, machine: &mut Stream) {
        machine.set_max_window(self.memory.ceiling());
        let held = match machine.window() {
            0 => 0,
            window => u64::from(window) + replay(machine).max(LEAST.into()),
        };
        self.keep(held);
    }

    fn keep(&self, held: u64) {
        let before = self.held.load(Ordering::Relaxed);
        // Nothing grows without having been reserved.
        debug_assert!(held <= before, "{held} held, {before} reserved");
        if held < before {
            self.held.store(held, Ordering::Relaxed);
            self.memory.give_back(before - held);
        }
    }
}

fn replay(machine: &Stream) -> u64 {
    machine.committed() - u64::from(machine.window())
}

impl Drop for Share {
    fn drop(&mut self) {
        self.keep(0);
    }
}

const PARKED_LIMIT: usize = 4_096; // as many as a port of our own takes flows
pub(super) const PARKED_LIMIT_PER_PEER: usize = 1_024; // a peer that cuts all its legs leaves room for the others

/// Places for streams without a leg.
pub(super) fn parking() -> PeerLimit {
    PeerLimit::new(PARKED_LIMIT, PARKED_LIMIT_PER_PEER)
}

#[cfg(test)]
mod tests {
    use sealock_proto::stream::{Role, StreamConfig};

    use super::*;

    #[test]
    fn streams_begin_smaller_as_memory_gets_scarce_and_none_begins_beyond_the_limit() {
        let memory = Memory::new(MEMORY_LIMIT);
        let shares: Vec<(Share, u32)> = std::iter::from_fn(|| memory.enter()).collect();
        let of = |window| shares.iter().filter(|(_, first)| *first == window).count();
        for (window, _) in FIRST_WINDOWS {
            assert!(of(window) > 300, "{window}: {}", of(window));
        }
        assert!(shares.len() > 4_096, "a port's worth: {}", shares.len());
        assert!(memory.used() <= MEMORY_LIMIT);
        drop(shares);
        assert_eq!(memory.used(), 0);
        assert_eq!(memory.enter().map(|(_, first)| first), Some(256 << 10));
    }

    // S43: between the look and the step nobody else gets in.
    #[test]
    fn streams_of_many_threads_never_hold_more_than_the_limit_together() {
        let memory = Memory::new(8 << 20);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        let entered: Vec<_> = (0..16).filter_map(|_| memory.enter()).collect();
                        let grown = entered.iter().filter(|(share, _)| share.grow(100_000));
                        assert!(grown.count() <= 83, "more than there is");
                        assert!(memory.used() <= 8 << 20);
                    }
                });
            }
        });
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn streams_that_grow_leave_room_for_those_that_begin() {
        let memory = Memory::new(MEMORY_LIMIT);
        let (share, _) = memory.enter().expect("the first one");
        while share.grow(1 << 20) {}
        assert!(memory.used() <= MEMORY_LIMIT / 8 * GROWN);
        assert_eq!(memory.ceiling(), NARROW);
        let (_, first) = memory.enter().expect("a place");
        assert_eq!(first, LEAST);
    }

    // At the limit a stream still takes what it has for itself, and a full one waits for its own peer alone.
    #[test]
    fn a_stream_moves_although_others_hold_all_that_there_is() {
        let memory = Memory::new(1 << 20);
        let (greedy, _) = memory.enter().expect("the first one");
        let (share, window) = memory.enter().expect("the second one");
        while greedy.grow(1 << 10) {}
        let config = StreamConfig {
            initial_window: window,
            ..StreamConfig::default()
        };
        let mut machine = Stream::new(Instant::now(), Role::Opener, config);
        let mut bytes = Bytes::from(vec![7; 100_000]);
        assert_eq!(share.write(&mut machine, &mut bytes), Ok(LEAST as usize));
        assert_eq!(share.write(&mut machine, &mut bytes), Ok(0));
        drop(greedy);
        let taken = share.write(&mut machine, &mut bytes);
        assert!(taken.is_ok_and(|taken| taken > 0), "{taken:?}");
    }
}
