//! What one seed draws before its run: the fleet, its streams and the faults that will happen.

use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use sealock_core::identity::AgentId;

use super::rng::{Rng, mix};
use crate::stream::StreamConfig;

/// Microseconds of virtual time.
pub(super) type Micros = u64;

pub(super) const SECOND: Micros = 1_000_000;
/// The window to take a stream up again.
pub(super) const WINDOW: Micros = 120 * SECOND;
/// The longest time from a change of policy to the last enforcer that knows it.
pub(super) const POLICY_LAG: Micros = 2 * SECOND;

// Faults happen within this time; no single one lasts long enough to end a window, unless the plan outlasts.
const SAFETY: Micros = 40 * SECOND;
// Slow enough to be there when faults come, quick enough for the liveness bound.
const PIECES: usize = 30;
const LAST_START: Micros = 20 * SECOND;
const LONGEST_FAULT: Micros = 20 * SECOND;

const HOUR: i64 = 3_600 * 1_000_000;
/// How far a clock is wrong: an hour of summer time, and ten years after a battery was empty.
const CLOCK_STEPS: [i64; 4] = [HOUR, -HOUR, 87_660 * HOUR, -87_660 * HOUR];

// The numbers of `Plan::fault`; the last two are legs that break.
const KINDS: u64 = 14;
// Two tenants cost twice, and most of what can go wrong goes wrong within one.
const TWO_TENANTS_PERCENT: u64 = 25;

#[derive(Debug)]
pub(super) struct Plan {
    pub(super) tenants: Vec<Tenant>,
    pub(super) relays: usize,
    pub(super) streams: Vec<StreamPlan>,
    pub(super) faults: Vec<Planned>,
    /// When the liveness phase begins.
    pub(super) heal_at: Micros,
    /// The one-way delay of each link, and what a lost packet adds.
    pub(super) delay: Micros,
    pub(super) loss_percent: u64,
    /// How long a side hears nothing before it gives a session up.
    pub(super) detect: Micros,
    /// How many streams without a leg a provider keeps.
    pub(super) parked_limit: usize,
    /// How many bytes a leg has on its way at most.
    pub(super) transport: usize,
    /// A fault may be longer than the resume window.
    pub(super) outlasts: bool,
}

/// The agents of one tenant: openers first, then providers, and a thief as the last one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tenant {
    number: usize,
    first: usize,
    openers: usize,
    providers: usize,
}

/// A fault, when it comes, and whose it is: a tenant that is not there has none, but relays are everybody's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Planned {
    pub(super) at: Micros,
    pub(super) tenant: usize,
    pub(super) fault: Fault,
}

#[derive(Debug)]
pub(super) struct StreamPlan {
    pub(super) tenant: usize,
    pub(super) opener: usize,
    pub(super) provider: usize,
    pub(super) starts_at: Micros,
    pub(super) apps: [AppPlan; 2],
    pub(super) config: [StreamConfig; 2],
}

#[derive(Debug)]
pub(super) struct AppPlan {
    pub(super) total: usize,
    pub(super) chunk: usize,
    pub(super) write_gap: Micros,
    pub(super) read_chunk: usize,
    pub(super) read_gap: Micros,
    pub(super) reset_at: Option<Micros>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing gets through a link, both ways or one way only.
    Clog {
        agent: usize,
        relay: usize,
        ways: [bool; 2],
        lasts: Micros,
    },
    /// One leg breaks, its sessions live.
    KillLeg { pick: usize },
    /// A relay dies and comes back; with its reset keys the agents learn of it at once.
    RelayCrash {
        relay: usize,
        lasts: Micros,
        persisted: bool,
    },
    /// An agent does nothing for a while, and then all at once.
    AgentPause { agent: usize, lasts: Micros },
    /// An agent's process dies and another one takes its place.
    AgentCrash { agent: usize, lasts: Micros },
    /// A caller may not reach a provider for a while.
    PolicyFlip {
        caller: usize,
        provider: usize,
        lasts: Micros,
    },
    /// An opener makes a new leg although the old one lives.
    Move { pick: usize },
    /// A provider's end of a leg will go away, and it asks for another leg.
    GoAway { pick: usize },
    /// A timer fires early, or for nothing.
    Spurious { pick: usize },
    /// A hostile agent, or relay, wants a stream of others.
    Thief { pick: usize, kind: u64 },
    /// An agent's certificate ends, and nobody renews it for a while.
    CertificateEnds { agent: usize, lasts: Micros },
    /// The wall clock of a relay or an agent is wrong for a while.
    ClockStep { node: Node, by: i64, lasts: Micros },
}

/// Who has a clock of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    Relay(usize),
    Agent(usize),
}

impl Plan {
    /// The plan of a seed, and what each tenant draws from while it runs: what one does never moves another's chances.
    pub(super) fn draw(seed: u64) -> (Self, Vec<Rng>) {
        let mut rng = Rng::new(seed);
        let count = if rng.chance(TWO_TENANTS_PERCENT) {
            2
        } else {
            1
        };
        let mut plan = Self {
            tenants: Vec::new(),
            relays: 1 + rng.size(1),
            streams: Vec::new(),
            faults: Vec::new(),
            heal_at: LAST_START + 10 * SECOND,
            delay: 1 + rng.scaled(SECOND / 2),
            loss_percent: if rng.chance(50) { rng.upto(40) } else { 0 },
            detect: SECOND + rng.upto(3 * SECOND),
            parked_limit: 1 + rng.size(5),
            transport: 1 + rng.size(8_191),
            outlasts: rng.chance(5),
        };
        let tiny = rng.chance(20);
        let draws = (0..count).map(|number| {
            let mut rng = Rng::new(mix(seed ^ mix(number as u64)));
            plan.add_tenant(&mut rng, number, tiny);
            rng
        });
        let draws = draws.collect();
        plan.faults.sort_by_key(|planned| planned.at);
        let ends = plan.faults.iter().map(|it| it.at + it.fault.lasts());
        plan.heal_at = ends.fold(plan.heal_at, Micros::max);
        (plan, draws)
    }

    fn add_tenant(&mut self, rng: &mut Rng, number: usize, tiny: bool) {
        let tenant = Tenant {
            number,
            first: self.agents(),
            openers: 1 + rng.size(2),
            providers: 1 + rng.size(1),
        };
        self.tenants.push(tenant);
        let streams = (0..=rng.size(4)).map(|_| {
            let mut apps = [(); 2].map(|()| app(rng, tiny));
            // What one side writes the other reads in so many pieces at most.
            for side in [0, 1] {
                apps[side].read_chunk += apps[1 - side].total / PIECES;
            }
            let bytes = apps[0].total.max(apps[1].total);
            StreamPlan {
                tenant: number,
                opener: tenant.opener(rng),
                provider: tenant.provider(rng),
                starts_at: rng.upto(LAST_START),
                config: config(rng, tiny, bytes),
                apps,
            }
        });
        self.streams.extend(streams);
        // Which kinds there are at all is drawn first: a rare pair of faults needs runs without the others.
        let kinds: Vec<u64> = (0..KINDS).filter(|_| rng.chance(45)).collect();
        let count = if kinds.is_empty() { 0 } else { rng.size(24) };
        for _ in 0..count {
            let at = rng.upto(SAFETY);
            let kind = kinds[rng.size(kinds.len() - 1)];
            let fault = self.fault(rng, tenant, kind);
            let tenant = number;
            self.faults.push(Planned { at, tenant, fault });
        }
    }

    pub(super) fn agents(&self) -> usize {
        self.tenants.last().map_or(0, |last| last.thief() + 1)
    }

    pub(super) fn tenant_of(&self, agent: usize) -> usize {
        let its = |tenant: &Tenant| agent <= tenant.thief();
        self.tenants.iter().position(its).unwrap_or_default()
    }

    pub(super) fn is_thief(&self, agent: usize) -> bool {
        self.tenants.iter().any(|tenant| tenant.thief() == agent)
    }

    fn fault(&self, rng: &mut Rng, tenant: Tenant, kind: u64) -> Fault {
        let lasts = if self.outlasts && rng.chance(50) {
            1 + rng.upto(150 * SECOND)
        } else {
            1 + if rng.chance(50) {
                rng.scaled(LONGEST_FAULT)
            } else {
                rng.upto(LONGEST_FAULT)
            }
        };
        let short = lasts.min(LONGEST_FAULT);
        let pick = rng.size(1_000);
        match kind {
            0 | 1 => Fault::Clog {
                agent: tenant.honest(rng),
                relay: rng.size(self.relays - 1),
                ways: [[true, true], [true, false], [false, true]][rng.size(2)],
                lasts,
            },
            2 => Fault::RelayCrash {
                relay: rng.size(self.relays - 1),
                lasts,
                persisted: rng.chance(50),
            },
            3 => Fault::AgentPause {
                agent: tenant.honest(rng),
                lasts: short,
            },
            4 => Fault::AgentCrash {
                agent: tenant.honest(rng),
                lasts: short,
            },
            5 => Fault::PolicyFlip {
                caller: tenant.opener(rng),
                provider: tenant.provider(rng),
                lasts: short,
            },
            6 => Fault::Move { pick },
            7 => Fault::Spurious { pick },
            8 => Fault::Thief {
                pick,
                kind: rng.upto(5),
            },
            9 => Fault::GoAway { pick },
            10 => Fault::CertificateEnds {
                agent: tenant.honest(rng),
                lasts: short,
            },
            11 => Fault::ClockStep {
                node: if rng.chance(50) {
                    Node::Relay(rng.size(self.relays - 1))
                } else {
                    Node::Agent(tenant.honest(rng))
                },
                by: CLOCK_STEPS[rng.size(CLOCK_STEPS.len() - 1)],
                lasts: short,
            },
            _ => Fault::KillLeg { pick },
        }
    }
}

impl Tenant {
    pub(super) fn number(self) -> usize {
        self.number
    }

    pub(super) fn thief(self) -> usize {
        self.first + self.openers + self.providers
    }

    pub(super) fn agents(self) -> RangeInclusive<usize> {
        self.first..=self.thief()
    }

    pub(super) fn providers(self) -> Range<usize> {
        self.first + self.openers..self.thief()
    }

    /// An agent as its own tenant names it: the names of two tenants are the same ones.
    pub(super) fn agent_id(self, agent: usize) -> AgentId {
        AgentId {
            tenant: format!("tenant-{}", self.number).parse().expect("a label"),
            name: format!("agent-{}", agent - self.first)
                .parse()
                .expect("a label"),
        }
    }

    fn opener(self, rng: &mut Rng) -> usize {
        self.first + rng.size(self.openers - 1)
    }

    fn provider(self, rng: &mut Rng) -> usize {
        self.first + self.openers + rng.size(self.providers - 1)
    }

    fn honest(self, rng: &mut Rng) -> usize {
        self.first + rng.size(self.openers + self.providers - 1)
    }
}

impl Fault {
    /// Whether it strikes a relay, and so everybody.
    pub(super) fn is_of_relay(self) -> bool {
        matches!(
            self,
            Self::RelayCrash { .. }
                | Self::ClockStep {
                    node: Node::Relay(_),
                    ..
                }
        )
    }

    pub(super) fn lasts(self) -> Micros {
        match self {
            Self::Clog { lasts, .. }
            | Self::RelayCrash { lasts, .. }
            | Self::AgentPause { lasts, .. }
            | Self::AgentCrash { lasts, .. }
            | Self::PolicyFlip { lasts, .. }
            | Self::CertificateEnds { lasts, .. }
            | Self::ClockStep { lasts, .. } => lasts,
            Self::KillLeg { .. }
            | Self::Move { .. }
            | Self::GoAway { .. }
            | Self::Spurious { .. }
            | Self::Thief { .. } => 0,
        }
    }
}

fn config(rng: &mut Rng, tiny: bool, bytes: usize) -> [StreamConfig; 2] {
    // Many tiny windows of a long stream cost much time and show nothing that a short stream does not.
    let least = 1 + u32::try_from(bytes / 16).expect("small");
    let max = if tiny { 16 } else { 8_192 };
    let small = |rng: &mut Rng, max| u32::try_from(rng.scaled(max)).expect("small");
    let early = if tiny { 0 } else { small(rng, 2_048) };
    [(); 2].map(|()| {
        let initial_window = least + small(rng, max);
        StreamConfig {
            initial_window,
            max_window: initial_window + small(rng, 4 * max),
            early,
            ack_delay: Duration::from_micros(rng.upto(20_000)),
            resume_window: Duration::from_micros(WINDOW),
        }
    })
}

fn app(rng: &mut Rng, tiny: bool) -> AppPlan {
    let total = match (tiny, rng.upto(5)) {
        (_, 0) => 0,
        (true, _) => rng.size(60),
        (false, 1..=4) => rng.size(2_000),
        (false, _) => rng.size(12_000),
    };
    let least = 1 + total / PIECES;
    let gap = |rng: &mut Rng| {
        if rng.chance(25) { 0 } else { rng.upto(SECOND) }
    };
    AppPlan {
        total,
        chunk: least + rng.size(2_000),
        write_gap: gap(rng),
        read_chunk: 1 + rng.size(2_000),
        read_gap: gap(rng),
        reset_at: rng.chance(8).then(|| rng.scaled(20 * SECOND)),
    }
}
