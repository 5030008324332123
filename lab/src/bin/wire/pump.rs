//! The threads of a wire: two for each direction, one that reads frames and one that sends them when they are due.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Instant,
};

use anyhow::{Context, Result};
use lab::wire::{
    lane::{Heading, Lane, Output, Tally},
    profile::Setting,
};
use tun_rs::SyncDevice;

// A frame of the largest interface there is.
const FRAME: usize = 65_536 + 14;

/// Both directions of a wire.
pub(crate) struct Pump {
    began: Instant,
    ends: [SyncDevice; 2],
    sides: [Side; 2],
}

struct Side {
    lane: Mutex<Lane>,
    changed: Condvar,
}

impl Pump {
    /// A wire between two devices. Nothing moves before [`Pump::start`].
    pub(crate) fn new(ends: [SyncDevice; 2], seed: u64, began: Instant) -> Self {
        let side = |heading| Side {
            lane: Mutex::new(Lane::new(heading, seed)),
            changed: Condvar::new(),
        };
        Self {
            began,
            ends,
            sides: Heading::ALL.map(side),
        }
    }

    /// Starts carrying. What ends a direction arrives at the receiver.
    pub(crate) fn start(self: &Arc<Self>) -> Receiver<Result<()>> {
        let (ended, end) = channel();
        for heading in Heading::ALL {
            let (pump, tell) = (Arc::clone(self), ended.clone());
            thread::spawn(move || tell_end(&tell, pump.read(heading)));
            let (pump, tell) = (Arc::clone(self), ended.clone());
            thread::spawn(move || tell_end(&tell, pump.send(heading)));
        }
        end
    }

    /// Changes a direction.
    pub(crate) fn apply(&self, heading: Heading, setting: Setting) {
        self.lane(heading).apply(setting);
    }

    /// What became of a direction's packets.
    pub(crate) fn tally(&self, heading: Heading) -> Tally {
        self.lane(heading).tally()
    }

    fn read(&self, heading: Heading) -> Result<()> {
        let [from, _] = self.devices(heading);
        let mut buffer = vec![0; FRAME];
        loop {
            let size = from.recv(&mut buffer).context("reading a frame")?;
            let frame = buffer[..size].to_vec();
            self.lane(heading).handle_frame(self.began.elapsed(), frame);
            self.side(heading).changed.notify_one();
        }
    }

    fn send(&self, heading: Heading) -> Result<()> {
        let [_, to] = self.devices(heading);
        let mut lane = self.lane(heading);
        loop {
            let now = self.began.elapsed();
            let changed = &self.side(heading).changed;
            match lane.poll_output(now) {
                Output::Send(frame) => {
                    drop(lane);
                    // The other end may be down for a moment, as when its address is set: then the frame is lost.
                    to.send(&frame).ok();
                    lane = self.lane(heading);
                }
                Output::Wait(at) => {
                    let waited = changed.wait_timeout(lane, at.saturating_sub(now));
                    lane = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                Output::Idle => {
                    lane = changed.wait(lane).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    fn devices(&self, heading: Heading) -> [&SyncDevice; 2] {
        let [one, other] = &self.ends;
        match heading {
            Heading::There => [one, other],
            Heading::Back => [other, one],
        }
    }

    fn side(&self, heading: Heading) -> &Side {
        let [there, back] = &self.sides;
        match heading {
            Heading::There => there,
            Heading::Back => back,
        }
    }

    fn lane(&self, heading: Heading) -> MutexGuard<'_, Lane> {
        let lane = self.side(heading).lane.lock();
        lane.unwrap_or_else(PoisonError::into_inner)
    }
}

fn tell_end(tell: &Sender<Result<()>>, end: Result<()>) {
    // Nobody listens once the program is on its way out.
    tell.send(end).ok();
}
