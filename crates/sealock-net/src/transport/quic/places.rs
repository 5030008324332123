//! How many streams the other side may have open at once: few at first, twice as many whenever half are in use.
//!
//! The QUIC library keeps room for every stream that is allowed, open or not. So a silent session costs what it uses,
//! and a busy one gets to its limit without asking. Rooms are not taken back.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::transport::Settings;

pub(super) const STREAMS_AT_FIRST: u32 = 64;

/// The places of one connection's streams.
#[derive(Debug)]
pub(super) struct Places(Mutex<State>);

#[derive(Debug)]
struct State {
    open: u32,
    allowed: u32,
    limit: u32,
}

impl Places {
    pub(super) fn new(settings: &Settings) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            open: 0,
            allowed: settings.streams.min(STREAMS_AT_FIRST),
            limit: settings.streams,
        })))
    }

    /// Takes a place for a stream that the other side opened. Says how many to allow from here on, if that is more.
    pub(super) fn take(self: &Arc<Self>) -> (Place, Option<u32>) {
        let mut state = self.0.lock();
        state.open += 1;
        let mut more = None;
        if state.open.saturating_mul(2) > state.allowed && state.allowed < state.limit {
            state.allowed = state.allowed.saturating_mul(2).min(state.limit);
            more = Some(state.allowed);
        }
        (Place(Arc::clone(self)), more)
    }

    /// Sets what is allowed, without a beginning.
    pub(super) fn allow(&self, streams: u32) {
        let mut state = self.0.lock();
        state.allowed = streams;
        state.limit = streams;
    }
}

/// One stream's place, free again when dropped.
#[derive(Debug)]
pub(super) struct Place(Arc<Places>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.lock().open -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_double_while_half_are_in_use_and_stop_at_the_limit() {
        let settings = Settings {
            streams: 200,
            ..Settings::default()
        };
        let places = Places::new(&settings);
        let mut taken = Vec::new();
        let mut allowed = vec![STREAMS_AT_FIRST];
        for _ in 0..200 {
            let (place, more) = places.take();
            taken.push(place);
            allowed.extend(more);
        }
        assert_eq!(allowed, [64, 128, 200]);
    }

    #[test]
    fn streams_that_ended_leave_their_places() {
        let places = Places::new(&Settings::default());
        for _ in 0..1_000 {
            let (_place, more) = places.take();
            assert_eq!(more, None);
        }
    }
}
