//! When to ask whether a peer is still there, and when to stop believing it: a state machine without clock or socket.
//!
//! A path lives by what comes back, never by what could be written: the side that dialled wants its probes answered,
//! the side that listens wants to hear anything that is authentic. While streams run the peer is asked all the time;
//! a connection that idles is asked ever more seldom. Silence counts only while this process ran: one that was stopped
//! or starved judges nobody by the answers that it could not read. Deliberately absent: what a probe is.

use std::time::Duration;

use tokio::time::Instant;

use super::Lost;

/// How often a peer is asked while streams run on the connection.
pub(super) const ATTENTIVE: Duration = Duration::from_millis(250); // a fraction of what people notice, 4 packets a second
/// The silence that ends a connection with streams: with the one interval before it is noticed, two seconds in all.
const SILENCE: Duration = Duration::from_millis(1_750);
/// On a way so long that answers are late by nature, this many round trips.
const SILENT_ROUND_TRIPS: u32 = 3;
/// The silence after which the word of the peer's machine that nobody listens there is believed.
const REFUSED_SILENCE: Duration = Duration::from_secs(1); // four questions that a living peer would have answered
/// The silence after which this side looks whether its own address is still the right one.
const DOUBT: Duration = Duration::from_millis(500);
/// The silence that ends a connection that has moved to another address.
const MOVED_SILENCE: Duration = Duration::from_millis(500); // a challenge and its answer, and as much again
/// The silence that ends an idle connection. Nothing waits for it, and a Wi-Fi roam takes 3 to 8 s.
const IDLE_SILENCE: Duration = Duration::from_secs(10);
/// How long an idle connection is asked as often as before, so that a restart of the other side shows at once.
const BACK_OFF_AFTER: Duration = Duration::from_secs(120);
/// How seldom an idle connection is asked in the end.
pub(super) const SELDOM: Duration = Duration::from_secs(15); // the shortest-lived NAT mappings live 20 s

/// Which side of a connection asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// It dialled: it keeps the connection alive, and wants its own probes answered.
    Dialled,
    /// It listens: it asks only when it has not heard from a peer that has streams open.
    Listens,
}

/// What was seen since the last look.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen {
    /// The peer answered something of ours.
    pub(super) answered: bool,
    /// The peer said anything that is authentic.
    pub(super) heard: bool,
    /// Streams run that carry somebody's bytes.
    pub(super) attended: bool,
    /// Since the silence began, the peer's machine said that nobody listens there.
    pub(super) refused: bool,
    /// The time of a round trip.
    pub(super) rtt: Duration,
}

/// What to do now, and when to look again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// Ask the peer.
    pub(super) probe: bool,
    /// Look whether this side's own address has changed.
    pub(super) doubt: bool,
    /// The connection is over.
    pub(super) verdict: Option<Lost>,
    /// When to look again; sooner when the first stream opens. Nothing: only then.
    pub(super) next: Option<Instant>,
}

/// Whether a peer is there.
#[derive(Debug)]
pub(super) struct Pulse {
    side: Side,
    /// The interval of an idle connection soon after it was in use.
    keep_alive: Duration,
    seldom: Duration,
    looked: Instant,
    /// What was to pass between the last look and this one.
    planned: Duration,
    /// How long, of the time that this process ran, the peer has owed an answer.
    silent: Duration,
    attended: bool,
    /// Since when no stream runs.
    idle_since: Instant,
    /// A question of an idle connection is open.
    asked: bool,
    /// The connection has moved to another address since the peer was last there.
    moved: bool,
}

impl Pulse {
    /// A connection that is up since `now`. An idle one is asked every `keep_alive`, later every `seldom`.
    #[must_use]
    pub(super) fn new(side: Side, keep_alive: Duration, seldom: Duration, now: Instant) -> Self {
        Self {
            side,
            keep_alive,
            seldom: seldom.max(keep_alive),
            looked: now,
            planned: Duration::ZERO,
            silent: Duration::ZERO,
            attended: false,
            idle_since: now,
            asked: false,
            moved: false,
        }
    }

    /// The connection has moved to the address that is right. A peer that takes the move answers at once; one that does
    /// not is reached sooner by a new connection.
    pub(super) fn handle_move(&mut self) {
        self.moved = true;
        self.silent = Duration::ZERO;
    }

    /// Whether streams ran at the last look.
    #[must_use]
    pub(super) fn is_attentive(&self) -> bool {
        self.attended
    }

    /// Looks at what was seen, at the time that the last step named or when a stream opens.
    pub(super) fn handle_look(&mut self, now: Instant, seen: Seen) -> Step {
        let ran = self.ran(now);
        self.looked = now;
        let step = match (seen.attended, self.side) {
            (true, _) => self.attend(now, ran, seen),
            (false, Side::Dialled) => self.idle(now, ran, seen),
            (false, Side::Listens) => {
                self.rest(now);
                Step::wait(None)
            }
        };
        let next = step.next.map(|next| next.saturating_duration_since(now));
        self.planned = next.unwrap_or(Duration::ZERO);
        step
    }

    /// Of the time since the last look, what this process certainly had: a look that comes late tells of our own lack
    /// of processor time, in which answers have been waiting for us.
    fn ran(&self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.looked);
        passed.min(self.planned)
    }

    fn alive(&mut self, seen: Seen) -> bool {
        let alive = match self.side {
            Side::Dialled => seen.answered,
            Side::Listens => seen.heard,
        };
        self.moved &= !alive;
        alive
    }

    fn attend(&mut self, now: Instant, ran: Duration, seen: Seen) -> Step {
        // Silence from before the first stream was nobody's concern, and may be that of a peer that was not asked.
        let begins = !std::mem::replace(&mut self.attended, true);
        if begins || self.alive(seen) {
            self.silent = Duration::ZERO;
        } else {
            self.silent += ran;
        }
        let limit = SILENCE.max(seen.rtt * SILENT_ROUND_TRIPS);
        let asks = begins || self.side == Side::Dialled || !seen.heard;
        self.judge(now + ATTENTIVE, limit, seen.refused)
            .unwrap_or_else(|| Step {
                probe: asks,
                ..Step::wait(Some(now + ATTENTIVE))
            })
    }

    fn idle(&mut self, now: Instant, ran: Duration, seen: Seen) -> Step {
        self.rest(now);
        if !std::mem::replace(&mut self.asked, true) {
            self.silent = Duration::ZERO;
            return Step::probe(now + self.keep_alive);
        }
        if !self.alive(seen) {
            self.silent += ran;
            let next = now + self.keep_alive;
            return self
                .judge(next, IDLE_SILENCE, seen.refused)
                .unwrap_or_else(|| Step::probe(next));
        }
        self.silent = Duration::ZERO;
        match self.interval(now).checked_sub(self.keep_alive) {
            Some(more) if !more.is_zero() => {
                self.asked = false;
                Step::wait(Some(now + more))
            }
            _ => Step::probe(now + self.keep_alive),
        }
    }

    /// What follows from a silence that is no longer ordinary; `next` is when one more answer is due.
    fn judge(&self, next: Instant, limit: Duration, refused: bool) -> Option<Step> {
        if self.silent < DOUBT {
            return None;
        }
        let limit = if self.moved { MOVED_SILENCE } else { limit };
        let verdict = if refused && self.silent >= REFUSED_SILENCE {
            Lost::PeerGone
        } else if self.silent >= limit {
            Lost::Silent
        } else {
            return Some(Step {
                doubt: true,
                ..Step::probe(next)
            });
        };
        Some(Step {
            verdict: Some(verdict),
            ..Step::wait(None)
        })
    }

    fn rest(&mut self, now: Instant) {
        if std::mem::replace(&mut self.attended, false) {
            self.idle_since = now;
            self.asked = false;
            self.silent = Duration::ZERO;
        }
    }

    /// The interval of an idle connection: doubled with each time that it has idled so long.
    fn interval(&self, now: Instant) -> Duration {
        let idle = now.saturating_duration_since(self.idle_since);
        let doublings = idle.as_secs() / BACK_OFF_AFTER.as_secs();
        let factor = 1 << doublings.min(16);
        self.keep_alive.saturating_mul(factor).min(self.seldom)
    }
}

impl Step {
    fn wait(next: Option<Instant>) -> Self {
        Self {
            probe: false,
            doubt: false,
            verdict: None,
            next,
        }
    }

    fn probe(next: Instant) -> Self {
        Self {
            probe: true,
            ..Self::wait(Some(next))
        }
    }
}

#[cfg(test)]
mod tests;
