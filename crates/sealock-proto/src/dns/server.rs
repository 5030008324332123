//! The answers of one workload's DNS, as far as they need no waiting; what needs an upstream is told to the caller.
//!
//! The order is that of a flow: the name is read, then policy is asked, and only then anybody else. A refused name costs
//! one lookup in the rules and its refusal says why. Deliberately absent: recursion; an upstream does that.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use sealock_core::host::HostName;
use sealock_core::name::ServiceName;

use super::book::{self, Book};
use super::cache::STALE_TTL;
use super::record::{Cause, Code, Data, Over, Reply, unread};
use super::upstream::{Answer, Content};
use super::vip::{self, Found};
use super::wire::{self, Query, Unreadable, kind};

/// How long the emptiness of a name of ours may be kept, in seconds: a service that comes is seen soon.
const EMPTY_TTL: u32 = 5;

/// How a workload's names of hosts get addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Naming {
    /// Every name that policy allows gets a synthetic address at once; whether the name exists shows when a flow opens,
    /// wherever that is looked up. Needs no upstream.
    #[default]
    Synthetic,
    /// As before, after an upstream said that the name exists and has addresses of that kind.
    Checked,
    /// The workload gets the real addresses.
    Real,
}

/// What a workload's DNS is to do.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The zone below which services have their names.
    pub zone: HostName,
    /// How names of hosts get addresses.
    pub naming: Naming,
    /// Zones that other upstreams than the first ones know; the longest that fits counts.
    pub split: Vec<HostName>,
}

/// The zone of services where nobody says another one; `internal` is set aside for private use.
pub const ZONE: &str = "sealock.internal";

/// What the answers depend on: the policy and the services of this moment.
pub trait World {
    /// Whether the workload may open this service.
    fn allows_service(&self, name: &ServiceName) -> bool;
    /// What there is at this name below the zone.
    fn find(&self, name: &ServiceName) -> Found;
    /// The service that has this address.
    fn service_at(&self, address: IpAddr) -> Option<ServiceName>;
    /// Whether a flow to this name could be allowed.
    fn allows_name(&self, name: &HostName) -> bool;
    /// Whether an upstream may say that this name has this address.
    fn allows_address(&self, name: &HostName, address: IpAddr) -> bool;
}

/// What becomes of a message.
#[derive(Debug)]
pub enum Outcome {
    /// This goes back.
    Reply(Vec<u8>),
    /// An upstream is to be asked, then [`Server::handle_answer`].
    Forward(Box<Pending>),
    /// Nothing goes back.
    Nothing,
}

/// A question that waits for an upstream.
#[derive(Debug, Clone)]
pub struct Pending {
    /// The question.
    pub query: Query,
    /// The name that is asked for.
    pub name: HostName,
    /// Which upstreams know: 0 for the first ones, then as in [`Settings::split`].
    pub upstreams: usize,
    over: Over,
}

/// What came of asking upstreams.
#[derive(Debug, Clone, Copy)]
pub enum Asked<'a> {
    /// An answer of that age.
    Answer(&'a Answer, Duration),
    /// Upstreams fail; this is what they said before.
    Stale(&'a Answer),
    /// No upstream answered in time.
    Silent,
    /// No answer could be used.
    Failed,
}

/// The DNS of one workload.
#[derive(Debug)]
pub struct Server {
    settings: Settings,
    book: Book,
}

impl Server {
    /// One that has given no address yet.
    #[must_use]
    pub fn new(settings: Settings, book: Book) -> Self {
        Self { settings, book }
    }

    /// The addresses that were given.
    #[must_use]
    pub fn book(&self) -> &Book {
        &self.book
    }

    /// The addresses that were given, for a flow that begins or ends.
    #[must_use]
    pub fn book_mut(&mut self) -> &mut Book {
        &mut self.book
    }

    /// Takes a message of the workload.
    pub fn handle_query(
        &mut self,
        now: Instant,
        over: Over,
        message: &[u8],
        world: &dyn World,
    ) -> Outcome {
        let query = match wire::read(message) {
            Ok(query) => query,
            Err(Unreadable::NoQuery) => return Outcome::Nothing,
            Err(Unreadable::Format { id }) => return Outcome::Reply(unread(id, 0, Code::Format)),
            Err(Unreadable::Opcode { id, opcode }) => {
                return Outcome::Reply(unread(id, opcode, Code::NotImplemented));
            }
        };
        match self.judge(now, &query, world) {
            Judged::Reply(reply) => Outcome::Reply(reply.encode(over)),
            Judged::Forward(name) => Outcome::Forward(Box::new(Pending {
                upstreams: self.upstreams(&name),
                query,
                name,
                over,
            })),
        }
    }

    fn judge<'a>(&mut self, now: Instant, query: &'a Query, world: &dyn World) -> Judged<'a> {
        let question = &query.question;
        if query.edns.is_some_and(|edns| edns.version != 0) {
            return Judged::Reply(Reply::empty(query, Code::Version)); // RFC 6891 §6.1.3
        }
        if question.class != 1 {
            return refused(query, Cause::Other("only the Internet's class is answered"));
        }
        if kind::META.contains(&question.kind) || question.kind == kind::OPT {
            // RFC 8482 §4.3 for ANY; transfers are nobody's here.
            return Judged::Reply(Reply::empty(query, Code::NotImplemented));
        }
        let Some(name) = question.host() else {
            return refused(query, Cause::Blocked("this is not the name of a host"));
        };
        if name == self.settings.zone || is_below(&name, &self.settings.zone) {
            return Judged::Reply(self.ours(query, &name, world));
        }
        if name.as_str() == "localhost" || name.as_str().ends_with(".localhost") {
            return Judged::Reply(loopback(query)); // RFC 6761 §6.3
        }
        if let Some(address) = reversed(&name)
            && let Some(reply) = self.reverse(now, query, address, world)
        {
            return Judged::Reply(reply);
        }
        self.other(now, query, name, world)
    }

    /// A name of our zone.
    fn ours<'a>(&self, query: &'a Query, name: &HostName, world: &dyn World) -> Reply<'a> {
        let zone = &self.settings.zone;
        let mut reply = Reply::empty(query, Code::NoError);
        reply.is_ours = true;
        reply.emptiness = Some((zone.clone(), EMPTY_TTL));
        if name == zone {
            if query.question.kind == kind::SOA {
                reply.answers.push((Data::Soa(zone.clone()), EMPTY_TTL));
                reply.emptiness = None;
            }
            return reply;
        }
        let label = &name.as_str()[..name.as_str().len() - zone.as_str().len() - 1];
        let Ok(service) = label.parse::<ServiceName>() else {
            reply.code = Code::NoName;
            return reply;
        };
        let found = world.find(&service);
        // Asked before the answer is looked at, so that nobody learns which services there are that it may not open.
        if found != Found::Between && !world.allows_service(&service) {
            return refusal(query, Cause::Blocked("no rule allows this service"));
        }
        match found {
            Found::Service(vip) => {
                let v4 = vip
                    .v4
                    .filter(|_| query.question.kind == kind::A)
                    .map(Data::A);
                let v6 = vip
                    .v6
                    .filter(|_| query.question.kind == kind::AAAA)
                    .map(Data::Aaaa);
                if let Some(data) = v4.or(v6) {
                    reply.answers.push((data, vip::TTL));
                    reply.emptiness = None;
                }
            }
            Found::Between => {}
            Found::Nothing => reply.code = Code::NoName,
        }
        reply
    }

    /// The name of an address; `None` where others may know one.
    fn reverse<'a>(
        &self,
        now: Instant,
        query: &'a Query,
        address: IpAddr,
        world: &dyn World,
    ) -> Option<Reply<'a>> {
        let service = world
            .service_at(address)
            .filter(|name| world.allows_service(name));
        let zone = &self.settings.zone;
        let service = service.and_then(|name| format!("{name}.{zone}").parse().ok());
        let name = service.or_else(|| self.book.names(now, address).into_iter().next());
        if name.is_none() && !vip::is_ours(address) {
            return None;
        }
        let mut reply = Reply::empty(query, Code::NoError);
        reply.is_ours = true;
        match name {
            Some(name) if query.question.kind == kind::PTR => {
                reply.answers.push((Data::Ptr(name), vip::TTL));
            }
            Some(_) => {}
            None => reply.code = Code::NoName,
        }
        Some(reply)
    }

    /// A name of a host.
    fn other<'a>(
        &mut self,
        now: Instant,
        query: &'a Query,
        name: HostName,
        world: &dyn World,
    ) -> Judged<'a> {
        if !world.allows_name(&name) {
            return refused(query, Cause::Blocked("no rule allows this name"));
        }
        match query.question.kind {
            kind::A | kind::AAAA => match self.settings.naming {
                Naming::Synthetic => Judged::Reply(self.synthetic(now, query, &name)),
                Naming::Checked | Naming::Real => Judged::Forward(name),
            },
            // They hold addresses past the ones that we give, and keys that would hide the name of a flow.
            kind::SVCB | kind::HTTPS => Judged::Reply(Reply::empty(query, Code::NoError)),
            _ => Judged::Forward(name),
        }
    }

    fn synthetic<'a>(&mut self, now: Instant, query: &'a Query, name: &HostName) -> Reply<'a> {
        let Ok((v4, v6)) = self.book.give(now, name) else {
            let mut reply = Reply::empty(query, Code::Failure);
            reply.cause = Some(Cause::Other(
                "every synthetic address of this workload is in use",
            ));
            return reply;
        };
        let mut reply = Reply::empty(query, Code::NoError);
        let data = match query.question.kind {
            kind::A => Data::A(v4),
            _ => Data::Aaaa(v6),
        };
        reply.answers.push((data, book::TTL));
        reply
    }

    fn upstreams(&self, name: &HostName) -> usize {
        let fitting = self.settings.split.iter().enumerate();
        let fitting = fitting.filter(|(_, zone)| name == *zone || is_below(name, zone));
        let longest = fitting.max_by_key(|(_, zone)| zone.as_str().len());
        longest.map_or(0, |(index, _)| index + 1)
    }

    /// Takes what came of asking upstreams; returns the reply.
    pub fn handle_answer(
        &mut self,
        now: Instant,
        pending: &Pending,
        asked: Asked<'_>,
        world: &dyn World,
    ) -> Vec<u8> {
        let (answer, age, at_most) = match asked {
            Asked::Answer(answer, age) => (answer, age, u32::MAX),
            Asked::Stale(answer) => (answer, Duration::ZERO, STALE_TTL),
            Asked::Silent => return self.failed(pending, Cause::NoReachableAuthority),
            Asked::Failed => return self.failed(pending, Cause::NetworkError),
        };
        let mut reply = match &answer.content {
            Content::Addresses(addresses) => {
                let ttl = answer
                    .ttl
                    .saturating_sub(age)
                    .min(Duration::from_secs(at_most.into()));
                self.addresses(now, pending, addresses, ttl, world)
            }
            Content::Records(records) => {
                let code = if answer.exists {
                    Code::NoError
                } else {
                    Code::NoName
                };
                let mut reply = Reply::empty(&pending.query, code);
                reply.foreign = Some(records.aged(age, at_most));
                reply
            }
        };
        if matches!(asked, Asked::Stale(_)) && reply.cause.is_none() {
            reply.cause = Some(Cause::Stale);
        }
        reply.encode(pending.over)
    }

    fn addresses<'a>(
        &mut self,
        now: Instant,
        pending: &'a Pending,
        addresses: &[IpAddr],
        ttl: Duration,
        world: &dyn World,
    ) -> Reply<'a> {
        // S24: one such address among many is no accident, so none of the answer is believed.
        let is_lawful = |address: &IpAddr| {
            !vip::is_ours(*address) && world.allows_address(&pending.name, *address)
        };
        if !addresses.iter().all(is_lawful) {
            return refusal(
                &pending.query,
                Cause::Blocked("the name leads to an address that no rule allows"),
            );
        }
        if self.settings.naming != Naming::Real {
            return self.synthetic(now, &pending.query, &pending.name);
        }
        self.book.learn(now, &pending.name, addresses, ttl);
        let mut reply = Reply::empty(&pending.query, Code::NoError);
        let ttl = u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX);
        let data = addresses.iter().map(|address| match address {
            IpAddr::V4(v4) => Data::A(*v4),
            IpAddr::V6(v6) => Data::Aaaa(*v6),
        });
        reply.answers = data.map(|data| (data, ttl)).collect();
        reply
    }

    fn failed(&self, pending: &Pending, cause: Cause) -> Vec<u8> {
        let mut reply = Reply::empty(&pending.query, Code::Failure);
        reply.cause = Some(cause);
        reply.encode(pending.over)
    }
}

enum Judged<'a> {
    Reply(Reply<'a>),
    Forward(HostName),
}

fn refusal(query: &Query, cause: Cause) -> Reply<'_> {
    let mut reply = Reply::empty(query, Code::Refused);
    reply.cause = Some(cause);
    reply
}

fn refused(query: &Query, cause: Cause) -> Judged<'_> {
    Judged::Reply(refusal(query, cause))
}

fn loopback(query: &Query) -> Reply<'_> {
    let mut reply = Reply::empty(query, Code::NoError);
    match query.question.kind {
        kind::A => reply
            .answers
            .push((Data::A([127, 0, 0, 1].into()), vip::TTL)),
        kind::AAAA => reply
            .answers
            .push((Data::Aaaa(std::net::Ipv6Addr::LOCALHOST), vip::TTL)),
        _ => {}
    }
    reply
}

fn is_below(name: &HostName, zone: &HostName) -> bool {
    let above = name.as_str().strip_suffix(zone.as_str());
    above.is_some_and(|above| above.ends_with('.'))
}

/// The address that a name of the reverse zones stands for (RFC 1035 §3.5, RFC 3596 §2.5).
fn reversed(name: &HostName) -> Option<IpAddr> {
    if let Some(labels) = name.as_str().strip_suffix(".in-addr.arpa") {
        let numbers: Vec<u8> = labels
            .rsplit('.')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .ok()?;
        return Some(<[u8; 4]>::try_from(numbers).ok()?.into());
    }
    let labels = name.as_str().strip_suffix(".ip6.arpa")?;
    let digits: String = labels.rsplit('.').collect();
    let is_whole = digits.len() == 32 && labels.len() == 63;
    let bits = u128::from_str_radix(&digits, 16)
        .ok()
        .filter(|_| is_whole)?;
    Some(std::net::Ipv6Addr::from_bits(bits).into())
}

#[cfg(test)]
mod tests;
