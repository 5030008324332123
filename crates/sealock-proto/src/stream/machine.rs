//! The two directions, the leg and the end of a stream, put together.
//!
//! States: a leg is `None` (parked), `Asked` (the opener sent ATTACH and waits for the peer's) or `Live`. The ending
//! goes `Open` → (`Resetting` →) `Settled`, never back. Every state without a leg, and every one that waits for the
//! peer's last word, has a timer.

use std::time::Instant;

use bytes::Bytes;
use sealock_core::reason::Reason;

use super::bug::bug;
use super::inbound::Inbound;
use super::outbound::Outbound;
use super::{
    Ack, Attach, AttachError, Epoch, Event, Frame, Output, Proof, Read, Role, StreamConfig,
    Violation, WriteError,
};

/// One side of a resumable stream; idle, it holds under 1 KiB in all (a test says so).
#[derive(Debug)]
pub struct Stream {
    role: Role,
    config: StreamConfig,
    epoch: Epoch,
    leg: Leg,
    /// ATTACH is still to be sent on this leg, with this proof.
    attach_due: bool,
    /// GOAWAY is to be sent on this leg.
    go_away_due: bool,
    proof: Option<Proof>,
    outbound: Outbound,
    inbound: Inbound,
    ending: Ending,
    goodbye: Goodbye,
    /// When a stream without an answered leg gives up.
    expires_at: Option<Instant>,
    /// When an ending stream stops waiting for the peer's CLOSED.
    forget_at: Option<Instant>,
    /// The latest time that any verb was told.
    now: Instant,
    events: Events,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leg {
    None,
    Asked { since: Instant },
    Live,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Open,
    /// Reset by this side; the peer's word decides what the verdict is.
    Resetting(Reason),
    /// The verdict is known; `DONE` is the clean one.
    Settled(Reason),
}

/// What of the closing words was said and heard.
#[derive(Debug, Default)]
struct Goodbye {
    reset_sent: bool,
    closed_sent: bool,
    reset_heard: bool,
    closed_heard: bool,
    released: bool,
}

/// Which events wait to be told; each kind at most once, in the order of `poll`.
#[derive(Debug, Default)]
struct Events {
    parked: bool,
    leg_wanted: bool,
    attached: bool,
    readable: bool,
    writable: bool,
    fin_received: bool,
    fin_told: bool,
    peer_reset: Option<Reason>,
    closed: bool,
    released: bool,
}

impl Stream {
    /// A stream that has had no leg yet; the opener calls [`attach`](Self::attach) next, the accepter
    /// [`accept_attach`](Self::accept_attach).
    #[must_use]
    pub fn new(now: Instant, role: Role, config: StreamConfig) -> Self {
        let early = match role {
            Role::Opener => config.early,
            Role::Accepter => 0,
        };
        Self {
            role,
            config,
            epoch: Epoch(0),
            leg: Leg::None,
            attach_due: false,
            go_away_due: false,
            proof: None,
            outbound: Outbound::new(early.into()),
            inbound: Inbound::new(&config),
            ending: Ending::Open,
            goodbye: Goodbye::default(),
            expires_at: Some(now + config.resume_window),
            forget_at: None,
            now,
            events: Events::default(),
        }
    }

    /// The epoch of the current or, when parked, the last leg; 0 before the first.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The epoch that the opener's next leg will have: the one to make a proof for.
    #[must_use]
    pub fn next_epoch(&self) -> Option<Epoch> {
        self.epoch.next()
    }

    /// Begins a new leg; an earlier one is fenced off. Opener only.
    ///
    /// # Errors
    /// `WrongRole` for the accepter, `Over` after the release.
    pub fn attach(&mut self, now: Instant, proof: Option<Proof>) -> Result<Epoch, AttachError> {
        self.now = now;
        if self.role != Role::Opener {
            return Err(AttachError::WrongRole);
        }
        let epoch = self.epoch.next().ok_or(AttachError::Over)?;
        if self.goodbye.released {
            return Err(AttachError::Over);
        }
        // A leg that never answers must not put the end off.
        if self.expires_at.is_none() {
            self.expires_at = Some(now + self.config.resume_window);
        }
        self.begin_leg(epoch, Leg::Asked { since: now }, proof);
        Ok(epoch)
    }

    /// Takes the leg that began with `attach`, after the driver has checked who sent it; an earlier leg is fenced
    /// off. `proof` goes into our own ATTACH. Accepter only.
    ///
    /// # Errors
    /// `Stale` leaves the live leg as it is; after `Violation` the leg is taken, to carry the RESET.
    pub fn accept_attach(
        &mut self,
        now: Instant,
        attach: &Attach,
        proof: Option<Proof>,
    ) -> Result<(), AttachError> {
        self.now = now;
        if self.role != Role::Accepter {
            return Err(AttachError::WrongRole);
        }
        if self.goodbye.released {
            return Err(AttachError::Over);
        }
        if attach.epoch <= self.epoch {
            return Err(AttachError::Stale);
        }
        let forgotten = bug!(SecondResumeForgotten) && attach.epoch.0 > 2;
        let epoch = if forgotten { self.epoch } else { attach.epoch };
        self.begin_leg(epoch, Leg::Live, proof);
        self.expires_at = None;
        self.learn(attach)?;
        Ok(())
    }

    fn begin_leg(&mut self, epoch: Epoch, leg: Leg, proof: Option<Proof>) {
        self.epoch = epoch;
        self.leg = leg;
        self.attach_due = true;
        self.go_away_due = false;
        self.proof = proof;
        self.goodbye.reset_sent = false;
        self.goodbye.closed_sent = false;
        self.events.parked = false;
        self.events.leg_wanted = false;
        self.events.attached = leg == Leg::Live;
        self.inbound.begin_leg();
        self.outbound.begin_leg();
    }

    // What the peer's ATTACH says; also while ending, because CLOSED may need the leg.
    fn learn(&mut self, attach: &Attach) -> Result<(), Violation> {
        if self.ending != Ending::Open {
            return Ok(());
        }
        let ack = Ack {
            delivered: attach.delivered,
            limit: attach.limit,
            end_delivered: attach.end_delivered,
        };
        let learned = self
            .outbound
            .attach(attach.received, attach.delivered)
            .and_then(|()| {
                self.outbound
                    .ack(ack.delivered, ack.limit, ack.end_delivered)
            });
        self.judge(learned)?;
        self.progress();
        Ok(())
    }

    /// Takes a frame that arrived on the leg of `epoch`; one of an older leg is ignored.
    ///
    /// # Errors
    /// When the peer broke the protocol: the stream has then reset itself, drain on.
    pub fn handle_frame(
        &mut self,
        now: Instant,
        epoch: Epoch,
        frame: Frame,
    ) -> Result<(), Violation> {
        self.now = now;
        if epoch != self.epoch || self.leg == Leg::None {
            return self.fenced(frame);
        }
        match frame {
            Frame::Attach(attach) => self.answered(&attach),
            // These may come first: an accepter that has forgotten the stream knows no offsets to attach with.
            Frame::Reset { reason } => {
                self.peer_reset(reason);
                Ok(())
            }
            Frame::Closed { verdict } => self.peer_closed(verdict),
            Frame::GoAway => {
                self.attached()?;
                if self.role == Role::Accepter {
                    return self.judge(Err(Violation::StrayGoAway));
                }
                self.events.leg_wanted = true;
                Ok(())
            }
            Frame::Data { .. } | Frame::Ack(_) | Frame::Fin { .. }
                if self.ending != Ending::Open =>
            {
                Ok(())
            }
            Frame::Data { offset, bytes } => {
                self.attached()?;
                let fresh = self.inbound.data(now, offset, bytes);
                self.events.readable |= self.judge(fresh)?;
                Ok(())
            }
            Frame::Ack(ack) => {
                self.attached()?;
                let result = self
                    .outbound
                    .ack(ack.delivered, ack.limit, ack.end_delivered);
                self.judge(result)?;
                self.progress();
                Ok(())
            }
            Frame::Fin { offset } => {
                self.attached()?;
                let result = self.inbound.fin(offset);
                self.judge(result)?;
                self.progress();
                Ok(())
            }
        }
    }

    // What an older leg still delivers is none of ours: the new one brings it again.
    fn fenced(&mut self, frame: Frame) -> Result<(), Violation> {
        if bug!(TwoReaders)
            && let Frame::Data { offset, bytes } = frame
        {
            self.events.readable |= self.inbound.data(self.now, offset, bytes)?;
        }
        Ok(())
    }

    fn attached(&mut self) -> Result<(), Violation> {
        match self.leg {
            Leg::Live => Ok(()),
            Leg::None | Leg::Asked { .. } => self.judge(Err(Violation::NotAttached)),
        }
    }

    // The accepter's ATTACH on the leg that we asked for.
    fn answered(&mut self, attach: &Attach) -> Result<(), Violation> {
        let Leg::Asked { since } = self.leg else {
            return self.judge(Err(Violation::StrayAttach));
        };
        if attach.epoch != self.epoch {
            return self.judge(Err(Violation::StrayAttach));
        }
        self.leg = Leg::Live;
        self.expires_at = None;
        self.events.attached = true;
        let took = self.now.saturating_duration_since(since);
        self.inbound.sample_round_trip(took);
        self.learn(attach)
    }

    fn judge<T>(&mut self, result: Result<T, Violation>) -> Result<T, Violation> {
        if result.is_err() && self.ending == Ending::Open {
            self.begin_reset(Reason::ProtocolViolation);
        }
        result
    }

    fn peer_reset(&mut self, reason: Reason) {
        self.goodbye.reset_heard = true;
        match self.ending {
            Ending::Open if bug!(ErrorAsFin) => {
                self.settle(Reason::Done);
                self.events.fin_received = true;
            }
            Ending::Open => {
                self.events.peer_reset = Some(reason);
                self.settle(reason);
            }
            // Two resets crossed; both sides know whose wins.
            Ending::Resetting(own) => self.settle(match self.role {
                Role::Opener => own,
                Role::Accepter => reason,
            }),
            Ending::Settled(_) => {}
        }
    }

    fn peer_closed(&mut self, verdict: Reason) -> Result<(), Violation> {
        let ended = self.outbound.fin_was_sent() && self.inbound.is_at_end();
        let unfounded = verdict == Reason::Done && !ended;
        if unfounded && self.ending == Ending::Open {
            return self.judge(Err(Violation::ClosedEarly));
        }
        self.goodbye.closed_heard = true;
        match self.ending {
            Ending::Open => {
                if verdict != Reason::Done {
                    self.events.peer_reset = Some(verdict);
                }
                self.settle(verdict);
            }
            Ending::Resetting(own) => self.settle(if unfounded { own } else { verdict }),
            Ending::Settled(_) => {}
        }
        Ok(())
    }

    /// The leg of `epoch` died: when it is the current one, the stream parks until the resume window is over.
    pub fn detach(&mut self, now: Instant, epoch: Epoch) {
        self.now = now;
        if self.leg == Leg::None || epoch != self.epoch {
            return;
        }
        self.leg = Leg::None;
        self.attach_due = false;
        self.go_away_due = false;
        self.proof = None;
        self.events.attached = false;
        self.events.leg_wanted = false;
        self.events.parked = true;
        if self.expires_at.is_none() {
            self.expires_at = Some(now + self.config.resume_window);
        }
        let pointless = self.ending == Ending::Settled(Reason::ResumeExpired);
        if self.goodbye.closed_heard || pointless {
            self.release();
        }
    }

    /// Tells the opener that this side's end of the leg will go away. Accepter only, and only with a leg; else nothing.
    pub fn go_away(&mut self) {
        self.go_away_due = self.role == Role::Accepter && self.leg == Leg::Live;
    }

    /// Sets what the window and the replay buffer may grow to from here on; what was granted stays granted.
    pub fn set_max_window(&mut self, max: u32) {
        self.config.max_window = max;
    }

    /// Sets how much the window may grow from here on, however fast the application reads.
    pub fn set_window_room(&mut self, room: u32) {
        self.inbound.set_room(room);
    }

    /// Ends the stream at once and for this side alone: there is no leg and will be none.
    pub fn fail(&mut self, now: Instant, reason: Reason) {
        self.now = now;
        self.leg = Leg::None;
        if !matches!(self.ending, Ending::Settled(_)) {
            self.settle(reason);
        }
        self.release();
    }

    /// Takes as much of the front of `bytes` as the replay buffer has room for, and says how much.
    /// When that is not all, [`Event::Writable`] follows.
    ///
    /// # Errors
    /// After `finish`, and when the stream has ended.
    pub fn write(&mut self, bytes: &mut Bytes) -> Result<usize, WriteError> {
        self.write_within(usize::MAX, bytes)
    }

    /// The same, but takes `room` bytes at most.
    ///
    /// # Errors
    /// After `finish`, and when the stream has ended.
    pub fn write_within(&mut self, room: usize, bytes: &mut Bytes) -> Result<usize, WriteError> {
        if let Some(reason) = self.broken() {
            return Err(WriteError::Ended(reason));
        }
        self.outbound.write(bytes, room, &self.config)
    }

    /// How many bytes a write would take.
    #[must_use]
    pub fn writable(&self) -> usize {
        match self.ending {
            Ending::Open => self.outbound.writable(&self.config),
            Ending::Resetting(_) | Ending::Settled(_) => 0,
        }
    }

    /// Ends our direction behind what was written.
    ///
    /// # Errors
    /// When it was called before, and when the stream has ended.
    pub fn finish(&mut self) -> Result<(), WriteError> {
        if let Some(reason) = self.broken() {
            return Err(WriteError::Ended(reason));
        }
        self.outbound.finish()
    }

    /// Ends both directions at once; what is unread or unsent is dropped. `Closed` follows with the peer's answer.
    pub fn reset(&mut self, now: Instant, reason: Reason) {
        self.now = now;
        if self.ending == Ending::Open {
            // A reset is never clean, whatever it is called with.
            let reason = if reason == Reason::Done {
                Reason::Cancelled
            } else {
                reason
            };
            self.begin_reset(reason);
        }
    }

    /// Gives at most `max` bytes to the application: they are delivered, and will be acknowledged.
    pub fn read(&mut self, now: Instant, max: usize) -> Read {
        self.now = now;
        if let Some(reason) = self.broken() {
            return Read::Broken(reason);
        }
        if bug!(ErrorAsFin) && self.ending != Ending::Open {
            return Read::End;
        }
        let read = self.inbound.read(now, max, &self.config);
        self.progress();
        read
    }

    /// Tells the stream that a time it waited for has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        if self.leg == Leg::Live {
            self.inbound.handle_timeout(now);
        }
        if self.expires_at.is_some_and(|at| at <= now) {
            self.expires_at = None;
            self.expire();
        }
        if self.forget_at.is_some_and(|at| at <= now) {
            match (self.ending, self.leg) {
                // The peer had a leg to answer on, and did not.
                (Ending::Resetting(reason), Leg::Live) => self.settle(reason),
                (Ending::Resetting(_), Leg::None | Leg::Asked { .. }) => {
                    self.settle(Reason::ResumeExpired);
                }
                (Ending::Open | Ending::Settled(_), _) => {}
            }
            self.release();
        }
    }

    fn expire(&mut self) {
        match self.ending {
            // Also for a reset that the peer never answered: it will say the same of us.
            Ending::Open | Ending::Resetting(_) => self.settle(Reason::ResumeExpired),
            Ending::Settled(_) => {}
        }
        // With a leg that has not answered yet the peer still hears of it by RESET.
        if self.leg == Leg::None {
            self.release();
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        if self.goodbye.released {
            return None;
        }
        let ack_at = match self.leg {
            Leg::Live => self.inbound.next_timeout(),
            Leg::None | Leg::Asked { .. } => None,
        };
        [ack_at, self.expires_at, self.forget_at]
            .into_iter()
            .flatten()
            .min()
    }

    fn broken(&self) -> Option<Reason> {
        match self.ending {
            Ending::Open | Ending::Settled(Reason::Done) => None,
            Ending::Resetting(reason) | Ending::Settled(reason) => Some(reason),
        }
    }

    fn begin_reset(&mut self, reason: Reason) {
        self.ending = Ending::Resetting(reason);
        self.forget_at = Some(self.now + self.config.resume_window);
        self.drop_bytes();
    }

    fn settle(&mut self, verdict: Reason) {
        self.ending = Ending::Settled(verdict);
        self.forget_at = Some(self.now + self.config.resume_window);
        self.events.closed = true;
        self.drop_bytes();
    }

    fn drop_bytes(&mut self) {
        self.outbound.clear();
        self.inbound.clear();
        self.events.readable = false;
        self.events.writable = false;
    }

    fn release(&mut self) {
        if !self.goodbye.released {
            self.goodbye.released = true;
            self.events.released = true;
        }
    }

    // After anything that may have finished a direction or made room.
    fn progress(&mut self) {
        if self.ending != Ending::Open {
            return;
        }
        if self.inbound.is_at_end() && !self.events.fin_told {
            self.events.fin_told = true;
            self.events.fin_received = true;
        }
        self.events.writable |= self.outbound.take_relief(&self.config);
        if self.outbound.is_fin_acked() && self.inbound.is_at_end() {
            self.settle(Reason::Done);
        }
    }

    /// What to do next; events come before frames, so that a slow leg holds no event back.
    pub fn poll_output(&mut self) -> Output {
        if let Some(event) = self.poll_event() {
            return Output::Event(event);
        }
        if let Some(frame) = self.poll_frame() {
            return Output::Send(frame);
        }
        // Saying the last word may have released the stream.
        if let Some(event) = self.poll_event() {
            return Output::Event(event);
        }
        Output::Wait(self.next_timeout())
    }

    /// The next event, if one waits.
    pub fn poll_event(&mut self) -> Option<Event> {
        // `Released` was told, and it comes last.
        if self.goodbye.released && !self.events.released {
            return None;
        }
        let epoch = self.epoch;
        let verdict = match self.ending {
            Ending::Open | Ending::Resetting(_) | Ending::Settled(Reason::Done) => Ok(()),
            Ending::Settled(reason) => Err(reason),
        };
        let events = &mut self.events;
        if std::mem::take(&mut events.parked) {
            return Some(Event::Parked);
        }
        if std::mem::take(&mut events.leg_wanted) {
            return Some(Event::LegWanted);
        }
        if std::mem::take(&mut events.attached) {
            return Some(Event::Attached(epoch));
        }
        if std::mem::take(&mut events.readable) {
            return Some(Event::Readable);
        }
        if std::mem::take(&mut events.writable) {
            return Some(Event::Writable);
        }
        if std::mem::take(&mut events.fin_received) {
            return Some(Event::FinReceived);
        }
        if let Some(reason) = events.peer_reset.take() {
            return Some(Event::PeerReset(reason));
        }
        if std::mem::take(&mut events.closed) {
            return Some(Event::Closed(verdict));
        }
        std::mem::take(&mut events.released).then_some(Event::Released)
    }

    /// The next frame for the current leg, if there is a leg and something to say.
    pub fn poll_frame(&mut self) -> Option<Frame> {
        if self.leg == Leg::None || self.goodbye.released {
            return None;
        }
        if bug!(AttachWaits) && self.attach_due && self.epoch.0 > 1 && self.inbound.unread() > 0 {
            return None;
        }
        if std::mem::take(&mut self.attach_due) {
            return Some(self.attach_frame());
        }
        if std::mem::take(&mut self.go_away_due) {
            return Some(Frame::GoAway);
        }
        match self.ending {
            Ending::Open => self.poll_open_frame(),
            Ending::Resetting(reason) => self.reset_frame(reason),
            Ending::Settled(verdict) => {
                let heard = self.goodbye.reset_heard || self.goodbye.closed_heard;
                // Our own time ran out and the peer may not know.
                let frame = if verdict == Reason::ResumeExpired && !heard {
                    self.reset_frame(verdict)
                } else {
                    self.closed_frame(verdict)
                };
                if self.goodbye.closed_heard && self.goodbye.closed_sent {
                    self.release();
                }
                frame
            }
        }
    }

    fn attach_frame(&mut self) -> Frame {
        let Ack {
            delivered,
            limit,
            end_delivered,
        } = self.inbound.announce(self.now);
        Frame::Attach(Attach {
            epoch: self.epoch,
            received: self.inbound.received(),
            delivered,
            limit,
            end_delivered,
            proof: self.proof.take(),
        })
    }

    fn poll_open_frame(&mut self) -> Option<Frame> {
        // Before the answer the opener does not know where to go on, except at the very beginning.
        let early = self.epoch == Epoch(1);
        if self.leg != Leg::Live && !early {
            return None;
        }
        if self.leg == Leg::Live
            && let Some(ack) = self.inbound.take_ack(self.now)
        {
            return Some(Frame::Ack(ack));
        }
        if let Some((offset, bytes)) = self.outbound.take_data() {
            return Some(Frame::Data { offset, bytes });
        }
        let offset = self.outbound.take_fin()?;
        Some(Frame::Fin { offset })
    }

    fn reset_frame(&mut self, reason: Reason) -> Option<Frame> {
        if std::mem::replace(&mut self.goodbye.reset_sent, true) {
            return None;
        }
        Some(Frame::Reset { reason })
    }

    fn closed_frame(&mut self, verdict: Reason) -> Option<Frame> {
        if std::mem::replace(&mut self.goodbye.closed_sent, true) {
            return None;
        }
        Some(Frame::Closed { verdict })
    }

    /// The verdict, once there is one.
    #[must_use]
    pub fn verdict(&self) -> Option<Result<(), Reason>> {
        match self.ending {
            Ending::Open | Ending::Resetting(_) => None,
            Ending::Settled(Reason::Done) => Some(Ok(())),
            Ending::Settled(reason) => Some(Err(reason)),
        }
    }

    /// Whether the stream may be dropped.
    #[must_use]
    pub fn is_released(&self) -> bool {
        self.goodbye.released
    }

    /// Whether there is no leg.
    #[must_use]
    pub fn is_parked(&self) -> bool {
        self.leg == Leg::None
    }

    /// Whether the current leg carries the stream: both sides have attached.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.leg == Leg::Live
    }

    /// Whether the stream is over or about to be: reads and writes of bytes are no more.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.ending != Ending::Open
    }

    #[cfg(test)]
    pub(super) fn heap(&self) -> usize {
        self.outbound.heap() + self.inbound.heap()
    }

    /// How many bytes of memory the stream may come to hold by what it has promised and what it holds.
    #[must_use]
    pub fn committed(&self) -> u64 {
        match self.ending {
            Ending::Open => u64::from(self.inbound.window()) + self.outbound.replay_bytes(),
            Ending::Resetting(_) | Ending::Settled(_) => 0,
        }
    }

    /// How far ahead of reading the peer may send; nothing once the stream is ending.
    #[must_use]
    pub fn window(&self) -> u32 {
        match self.ending {
            Ending::Open => self.inbound.window(),
            Ending::Resetting(_) | Ending::Settled(_) => 0,
        }
    }

    /// The counters of both directions, for status pages, metrics and checkers.
    #[must_use]
    pub fn progress_report(&self) -> Progress {
        Progress {
            acked: self.outbound.acked(),
            sent: self.outbound.sent(),
            replay_bytes: self.outbound.replay_bytes(),
            received: self.inbound.received(),
            delivered: self.inbound.delivered(),
            unread_bytes: self.inbound.unread(),
            limit: self.inbound.limit(),
            window: self.inbound.window(),
        }
    }
}

/// How far a stream is, and what it holds in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Up to where the peer's application has read our bytes.
    pub acked: u64,
    /// The furthest of our bytes that was ever sent.
    pub sent: u64,
    /// Bytes held to be sent again.
    pub replay_bytes: u64,
    /// Up to where the peer's bytes have arrived.
    pub received: u64,
    /// Up to where our application has read them.
    pub delivered: u64,
    /// Bytes that arrived and are not read.
    pub unread_bytes: u64,
    /// Up to where the peer may send.
    pub limit: u64,
    /// How far ahead of reading the peer may send.
    pub window: u32,
}
