//! The run of one seed: an event queue in virtual time, and what each event means to whom.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sealock_core::identity::AgentId;
use sealock_core::reason::Reason;

use super::agent::{Agent, End};
use super::check::{self, Failure};
use super::defect::Defect;
use super::link::{Leg, Link, Packet, Session};
use super::plan::{Fault, Micros, Plan, Planned, SECOND, Tenant};
use super::relay::Relay;
use super::rng::{Rng, mix, pattern};
use crate::stream::{Epoch, Proof};
use crate::wire::StreamId;

pub(super) const OPENER: usize = 0;
pub(super) const PROVIDER: usize = 1;

/// Where in the world something happens to a stream: which one, and at which of its ends.
pub(super) type Place = (usize, usize);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Happening {
    Packet {
        packet: u64,
    },
    Silence {
        link: usize,
        way: usize,
        since: Micros,
    },
    SessionDial {
        agent: usize,
        relay: usize,
        process: u32,
    },
    SessionUp {
        session: usize,
    },
    SessionLost {
        session: usize,
        end: usize,
    },
    StreamStart {
        stream: usize,
    },
    LegDial {
        stream: usize,
        process: u32,
    },
    LegTimeout {
        leg: usize,
        end: usize,
    },
    Write {
        place: Place,
        process: u32,
    },
    Read {
        place: Place,
        process: u32,
    },
    Reset {
        place: Place,
        process: u32,
    },
    Timer {
        place: Place,
        process: u32,
    },
    Fault {
        index: usize,
    },
    Healed {
        index: usize,
    },
    Resume {
        agent: usize,
    },
    View {
        node: usize,
        pair: (usize, usize),
        denied: bool,
    },
    Heal,
}

/// What is true of a stream, whatever agents and relays think of it.
#[derive(Debug)]
pub(super) struct Truth {
    pub(super) id: StreamId,
    pub(super) agents: [usize; 2],
    pub(super) sides: [TrueSide; 2],
    /// Its opener ever had a leg that carried.
    pub(super) attached: bool,
    /// Policy denied it at some time.
    pub(super) denied: bool,
    /// Its provider had no room for one more parked stream.
    pub(super) crowded_out: bool,
}

#[derive(Debug, Default)]
pub(super) struct TrueSide {
    pub(super) bytes: Bytes,
    pub(super) wrote: u64,
    pub(super) read: u64,
    pub(super) finished: bool,
    pub(super) verdict: Option<Result<(), Reason>>,
    pub(super) reset_with: Option<Reason>,
    /// There was ever such an end.
    pub(super) begun: bool,
    /// Its process died with it.
    pub(super) died: bool,
}

/// Who may not reach whom, in truth and as each enforcer sees it: relays first, then agents.
#[derive(Debug, Default)]
pub(super) struct Policy {
    pub(super) denied: BTreeMap<(usize, usize), Micros>,
    pub(super) views: Vec<BTreeSet<(usize, usize)>>,
    /// When each enforcer hears of the last change, tenant by tenant: no view of one waits for another's.
    told: BTreeMap<(usize, usize), Micros>,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) defect: Option<Defect>,
    pub(super) now: Micros,
    /// What each tenant draws from.
    rngs: Vec<Rng>,
    pub(super) agents: Vec<Agent>,
    pub(super) relays: Vec<Relay>,
    pub(super) links: Vec<Link>,
    pub(super) sessions: Vec<Session>,
    pub(super) legs: Vec<Leg>,
    pub(super) packets: BTreeMap<u64, Packet>,
    pub(super) truths: Vec<Truth>,
    pub(super) ends: BTreeMap<Place, End>,
    pub(super) policy: Policy,
    /// Proofs that went over the wire: what a hostile relay can repeat.
    pub(super) overheard: Vec<(usize, Epoch, Proof)>,
    /// By which leg the provider took each epoch of a stream.
    pub(super) taken: BTreeMap<(usize, Epoch), usize>,
    /// What enforcers decided, and what they wrote into the audit, by leg.
    pub(super) decisions: BTreeMap<(usize, &'static str), u32>,
    pub(super) audit: BTreeMap<(usize, &'static str), u32>,
    pub(super) healing: bool,
    pub(super) next_packet: u64,
    pub(super) stats: Stats,
    skipped: BTreeSet<usize>,
    /// A tenant that is not there.
    absent: Option<usize>,
    origin: Instant,
    queue: BinaryHeap<Reverse<(Micros, u64, Happening)>>,
    order: u64,
    /// What each tenant saw.
    pub(super) traces: Vec<u64>,
}

/// What a run did, for the tester to see that it did something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Stats {
    pub(super) streams: u64,
    pub(super) done: u64,
    pub(super) resumes: u64,
    pub(super) refusals: u64,
    pub(super) thefts: u64,
    pub(super) steps: u64,
    pub(super) trace: u64,
}

// No run may take longer, whatever it draws: it would be a loop.
const STEP_LIMIT: u64 = 500_000;

/// Runs one seed to its end under every checker, without the faults of these numbers.
pub(super) fn run(
    seed: u64,
    defect: Option<Defect>,
    skipped: &BTreeSet<usize>,
) -> Result<Stats, Failure> {
    let mut world = World::new(seed, defect, skipped.clone());
    world.begin();
    world.run()?;
    check::at_the_end(&world)?;
    let trace = world
        .traces
        .iter()
        .fold(seed, |sum, trace| mix(sum ^ trace));
    let done = |truth: &&Truth| truth.sides[OPENER].verdict == Some(Ok(()));
    Ok(Stats {
        done: world.truths.iter().filter(done).count() as u64,
        trace,
        ..world.stats
    })
}

/// K10: runs a seed as it is, and again without each tenant: what the others see is the same. Says how many others
/// there were.
pub(super) fn run_apart(seed: u64, defect: Option<Defect>) -> Result<usize, Failure> {
    let traces = |absent| {
        let mut world = World::new(seed, defect, BTreeSet::new());
        world.absent = absent;
        world.begin();
        world.run()?;
        Ok(world.traces)
    };
    let tenants = Plan::draw(seed).0.tenants.len();
    if tenants == 1 {
        return Ok(0);
    }
    let together = traces(None)?;
    for absent in 0..tenants {
        let apart = traces(Some(absent))?;
        let seen = (0..tenants).find(|&other| other != absent && together[other] != apart[other]);
        if let Some(by) = seen {
            return Err(Failure::Observed { tenant: absent, by });
        }
    }
    Ok(tenants)
}

/// The faults that a seed draws.
pub(super) fn faults_of(seed: u64) -> Vec<Planned> {
    Plan::draw(seed).0.faults
}

#[expect(
    clippy::disallowed_methods,
    reason = "an Instant has no other beginning; only differences to it are used"
)]
fn origin() -> Instant {
    Instant::now()
}

impl World {
    fn new(seed: u64, defect: Option<Defect>, skipped: BTreeSet<usize>) -> Self {
        let (plan, mut rngs) = Plan::draw(seed);
        let agents = (0..plan.agents()).map(|_| Agent::new(plan.relays));
        let links = (0..plan.agents() * plan.relays)
            .map(|link| {
                let rng = &mut rngs[plan.tenant_of(link / plan.relays)];
                Link::new(1 + rng.upto(plan.delay))
            })
            .collect();
        let nodes = plan.relays + plan.agents();
        let truths = plan.streams.iter().enumerate().map(|(index, stream)| {
            let side = |side: usize| TrueSide {
                bytes: pattern(
                    mix(seed ^ (2 * index + side + 1) as u64),
                    stream.apps[side].total,
                )
                .into(),
                ..TrueSide::default()
            };
            Truth {
                id: id_of(seed, index_within(&plan, index)),
                agents: [stream.opener, stream.provider],
                sides: [side(OPENER), side(PROVIDER)],
                attached: false,
                denied: false,
                crowded_out: false,
            }
        });
        Self {
            defect,
            now: 0,
            rngs,
            agents: agents.collect(),
            relays: (0..plan.relays).map(|_| Relay::default()).collect(),
            links,
            sessions: Vec::new(),
            legs: Vec::new(),
            packets: BTreeMap::new(),
            truths: truths.collect(),
            ends: BTreeMap::new(),
            policy: Policy {
                denied: BTreeMap::new(),
                views: vec![BTreeSet::new(); nodes],
                told: BTreeMap::new(),
            },
            overheard: Vec::new(),
            taken: BTreeMap::new(),
            decisions: BTreeMap::new(),
            audit: BTreeMap::new(),
            healing: false,
            next_packet: 0,
            stats: Stats::default(),
            skipped,
            absent: None,
            origin: origin(),
            queue: BinaryHeap::new(),
            order: 0,
            traces: vec![seed; plan.tenants.len()],
            plan,
        }
    }

    fn begin(&mut self) {
        for agent in 0..self.agents.len() {
            if self.absent == Some(self.plan.tenant_of(agent)) {
                continue;
            }
            for relay in 0..self.plan.relays {
                let process = self.agents[agent].process;
                let at = self.rng(agent).upto(SECOND / 10);
                self.schedule(
                    at,
                    Happening::SessionDial {
                        agent,
                        relay,
                        process,
                    },
                );
            }
        }
        for stream in 0..self.truths.len() {
            if self.absent == Some(self.plan.streams[stream].tenant) {
                continue;
            }
            // When most agents have said what they offer.
            let at = SECOND + 8 * self.plan.delay + self.plan.streams[stream].starts_at;
            self.schedule(at, Happening::StreamStart { stream });
        }
        for (index, planned) in self.plan.faults.clone().into_iter().enumerate() {
            let elsewhere = self.absent == Some(planned.tenant) && !planned.fault.is_of_relay();
            if !elsewhere && !self.skipped.contains(&index) {
                self.schedule(planned.at, Happening::Fault { index });
            }
        }
        self.schedule(self.plan.heal_at, Happening::Heal);
    }

    pub(super) fn schedule(&mut self, at: Micros, happening: Happening) {
        self.order += 1;
        self.queue
            .push(Reverse((at.max(self.now), self.order, happening)));
    }

    pub(super) fn clock(&self) -> Instant {
        self.origin + Duration::from_micros(self.now)
    }

    pub(super) fn micros_of(&self, at: Instant) -> Micros {
        let since = at.saturating_duration_since(self.origin).as_nanos();
        u64::try_from(since.div_ceil(1_000)).expect("virtual time is short")
    }

    /// What happens to an agent by chance is drawn from here.
    pub(super) fn rng(&mut self, agent: usize) -> &mut Rng {
        &mut self.rngs[self.plan.tenant_of(agent)]
    }

    pub(super) fn has(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }

    fn run(&mut self) -> Result<(), Failure> {
        while !self.is_over() {
            let Some(Reverse((at, _, happening))) = self.queue.pop() else {
                return Err(check::stuck(self, "nothing is left to happen"));
            };
            self.now = at;
            self.stats.steps += 1;
            if self.stats.steps > STEP_LIMIT {
                return Err(check::stuck(self, "the run does not end"));
            }
            if let Some(agent) = self.paused_agent(happening) {
                self.agents[agent].deferred.push_back(happening);
                continue;
            }
            self.note(happening);
            self.step(happening)?;
            check::after_step(self)?;
        }
        Ok(())
    }

    // Everything is over when everything is healed, all streams ran, and all maps are empty.
    fn is_over(&self) -> bool {
        (0..self.plan.tenants.len()).all(|tenant| self.has_ended(tenant))
    }

    pub(super) fn has_ended(&self, tenant: usize) -> bool {
        let of = |stream: usize| self.plan.streams[stream].tenant == tenant;
        let all_ran = || {
            let mut truths = self.truths.iter().enumerate();
            truths.all(|(stream, truth)| !of(stream) || truth.sides[OPENER].begun)
        };
        let none_left = || !self.ends.keys().any(|&(stream, _)| of(stream));
        self.absent == Some(tenant) || (self.healing && none_left() && all_ran())
    }

    // A paused agent hears and does nothing; what came meanwhile comes all at once behind the pause.
    fn paused_agent(&self, happening: Happening) -> Option<usize> {
        let agent = match happening {
            Happening::Packet { packet } => {
                let packet = self.packets.get(&packet)?;
                (!packet.up).then(|| self.sessions[packet.session].agent)?
            }
            Happening::SessionDial { agent, .. } => agent,
            Happening::SessionUp { session } => self.sessions[session].agent,
            Happening::SessionLost { session, end: 0 } => self.sessions[session].agent,
            Happening::LegDial { stream, .. } | Happening::StreamStart { stream } => {
                self.truths[stream].agents[OPENER]
            }
            Happening::LegTimeout { leg, end } => self.legs[leg].agent_at(end)?,
            Happening::Write { place, .. }
            | Happening::Read { place, .. }
            | Happening::Reset { place, .. }
            | Happening::Timer { place, .. } => self.truths[place.0].agents[place.1],
            Happening::View { node, .. } => node.checked_sub(self.plan.relays)?,
            Happening::Silence { .. }
            | Happening::Resume { .. }
            | Happening::SessionLost { .. }
            | Happening::Fault { .. }
            | Happening::Healed { .. }
            | Happening::Heal => return None,
        };
        (self.agents[agent].paused_until > 0).then_some(agent)
    }

    fn resume(&mut self, agent: usize) -> Result<(), Failure> {
        let known = &mut self.agents[agent];
        if known.paused_until > self.now {
            return Ok(());
        }
        known.resumed_at = self.now;
        known.paused_until = 0;
        for happening in std::mem::take(&mut known.deferred) {
            self.note(happening);
            self.step(happening)?;
        }
        Ok(())
    }

    fn step(&mut self, happening: Happening) -> Result<(), Failure> {
        match happening {
            Happening::Packet { packet } => self.packet_arrives(packet),
            Happening::Silence { link, way, since } => self.silence(link, way, since),
            Happening::SessionDial {
                agent,
                relay,
                process,
            } => {
                self.dial_session(agent, relay, process);
                Ok(())
            }
            Happening::SessionUp { session } => self.session_up(session),
            Happening::SessionLost { session, end } => self.session_lost(session, end),
            Happening::StreamStart { stream } => self.start_stream(stream),
            Happening::LegDial { stream, process } => self.dial_leg(stream, process),
            Happening::LegTimeout { leg, end } => self.leg_times_out(leg, end),
            Happening::Write { place, process } => self.write(place, process),
            Happening::Read { place, process } => self.read(place, process),
            Happening::Reset { place, process } => self.app_resets(place, process),
            Happening::Timer { place, process } => self.timer(place, process),
            Happening::Fault { index } => self.fault(index),
            Happening::Healed { index } => self.healed(index),
            Happening::Resume { agent } => self.resume(agent),
            Happening::View { node, pair, denied } => self.view_changes(node, pair, denied),
            Happening::Heal => self.heal(),
        }
    }

    // ---- faults

    fn fault(&mut self, index: usize) -> Result<(), Failure> {
        let Planned { tenant, fault, .. } = self.plan.faults[index];
        let until = self.now + fault.lasts();
        if fault.lasts() > 0 {
            self.schedule(until, Happening::Healed { index });
        }
        match fault {
            Fault::Clog {
                agent, relay, ways, ..
            } => {
                for way in [0, 1].into_iter().filter(|&way| ways[way]) {
                    self.clog(agent * self.plan.relays + relay, way);
                }
                Ok(())
            }
            Fault::KillLeg { pick } => self.kill_leg(tenant, pick),
            Fault::RelayCrash {
                relay, persisted, ..
            } => self.crash_relay(relay, persisted),
            Fault::AgentPause { agent, .. } => {
                self.pause_agent(agent, until);
                Ok(())
            }
            Fault::AgentCrash { agent, .. } => self.crash_agent(agent, until),
            Fault::PolicyFlip {
                caller, provider, ..
            } => {
                self.flip_policy((caller, provider), true);
                Ok(())
            }
            Fault::Move { pick } => self.move_leg(tenant, pick),
            Fault::GoAway { pick } => self.go_away(tenant, pick),
            Fault::Spurious { pick } => self.spurious(tenant, pick),
            Fault::Thief { pick, kind } => self.steal(tenant, pick, kind),
            Fault::CertificateEnds { agent, .. } => {
                self.end_certificate(agent);
                Ok(())
            }
            Fault::ClockStep { node, by, .. } => self.step_clock(node, by),
        }
    }

    fn healed(&mut self, index: usize) -> Result<(), Failure> {
        match self.plan.faults[index].fault {
            Fault::Clog {
                agent, relay, ways, ..
            } => {
                for way in [0, 1].into_iter().filter(|&way| ways[way]) {
                    self.unclog(agent * self.plan.relays + relay, way)?;
                }
                Ok(())
            }
            Fault::RelayCrash {
                relay, persisted, ..
            } => {
                self.restart_relay(relay, persisted);
                Ok(())
            }
            Fault::PolicyFlip {
                caller, provider, ..
            } => {
                self.flip_policy((caller, provider), false);
                Ok(())
            }
            Fault::CertificateEnds { agent, .. } => self.renew_certificate(agent),
            Fault::ClockStep { node, .. } => self.step_clock(node, 0),
            Fault::AgentPause { .. }
            | Fault::AgentCrash { .. }
            | Fault::KillLeg { .. }
            | Fault::Move { .. }
            | Fault::GoAway { .. }
            | Fault::Spurious { .. }
            | Fault::Thief { .. } => Ok(()),
        }
    }

    // Every fault has an end of its own before this.
    fn heal(&mut self) -> Result<(), Failure> {
        self.healing = true;
        for link in 0..self.links.len() {
            for way in [0, 1] {
                self.links[link].clogs[way] = self.links[link].clogs[way].min(1);
                self.unclog(link, way)?;
            }
        }
        Ok(())
    }

    fn flip_policy(&mut self, pair: (usize, usize), denied: bool) {
        if denied {
            self.policy.denied.entry(pair).or_insert(self.now);
            for truth in &mut self.truths {
                truth.denied |= (truth.agents[OPENER], truth.agents[PROVIDER]) == pair;
            }
        } else {
            self.policy.denied.remove(&pair);
        }
        let tenant = self.plan.tenants[self.plan.tenant_of(pair.0)];
        let relays = self.plan.relays;
        for node in (0..relays).chain(tenant.agents().map(|agent| relays + agent)) {
            let lag = self.rng(pair.0).upto(super::plan::POLICY_LAG);
            // Snapshots come in their order.
            let told = self.policy.told.entry((tenant.number(), node)).or_default();
            let at = (*told).max(self.now + lag);
            *told = at;
            self.schedule(at, Happening::View { node, pair, denied });
        }
    }

    fn view_changes(
        &mut self,
        node: usize,
        pair: (usize, usize),
        denied: bool,
    ) -> Result<(), Failure> {
        let view = &mut self.policy.views[node];
        let changed = if denied {
            view.insert(pair)
        } else {
            view.remove(&pair)
        };
        if !denied || !changed || self.has(Defect::LiveNotCut) {
            return Ok(());
        }
        match node.checked_sub(self.plan.relays) {
            None => self.relay_cuts(node, pair),
            Some(agent) => self.provider_cuts(agent, pair),
        }
    }

    /// The stream of this id at one provider.
    pub(super) fn stream_of(&self, id: StreamId, provider: usize) -> Option<usize> {
        let mut truths = self.truths.iter();
        truths.position(|truth| truth.id == id && truth.agents[PROVIDER] == provider)
    }

    pub(super) fn tenant_of(&self, agent: usize) -> Tenant {
        self.plan.tenants[self.plan.tenant_of(agent)]
    }

    pub(super) fn agent_id(&self, agent: usize) -> AgentId {
        self.tenant_of(agent).agent_id(agent)
    }

    pub(super) fn agent_of(&self, id: &AgentId) -> Option<usize> {
        (0..self.agents.len()).find(|&agent| self.agent_id(agent) == *id)
    }
}

// The first streams of two tenants have one id: neither may meet the other's.
fn index_within(plan: &Plan, index: usize) -> usize {
    let tenant = plan.streams[index].tenant;
    let first = plan
        .streams
        .iter()
        .position(|stream| stream.tenant == tenant);
    index - first.unwrap_or_default()
}

fn id_of(seed: u64, index: usize) -> StreamId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&mix(seed ^ 0x51).to_be_bytes());
    id[8..].copy_from_slice(&(index as u64).to_be_bytes());
    StreamId(id)
}

/// Counts of a simulated run fit everywhere.
pub(super) fn small(count: u64) -> usize {
    usize::try_from(count).expect("a run is short")
}
