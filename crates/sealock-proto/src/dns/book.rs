//! Which address a workload was given for which name: so a flow's name is known, whatever it speaks.
//!
//! A synthetic address is a place of the workload's own, from 198.18.0.0/15 and a network of ours, that stands for one
//! name. It goes to another name only when every answer that told it has long expired and no flow uses it, and then the
//! one that was given longest ago goes first. A real address may have many names; each counts while its answer does.
//! One book belongs to one workload: what another one asked for proves nothing. Deliberately absent: names that a
//! workload only claims.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use sealock_core::host::HostName;

use super::vip;

/// How long a client may keep a synthetic address, in seconds.
pub const TTL: u32 = 60;
/// Programs keep an address longer than they may: for ten minutes behind its end it stays with its name.
const LINGER: Duration = Duration::from_secs(600);
/// A flow follows its question within this time, also when the answer was not to be kept at all.
const FOLLOWS: Duration = Duration::from_secs(60);
/// Names of one workload that have an address; 16 MiB at most.
pub const PLACES_LIMIT: usize = 32_768;
/// Real addresses that are remembered for a workload; beyond, the one that ends first is forgotten.
const ADDRESSES_LIMIT: usize = 4_096;
/// Names of one real address: a large host serves thousands, a workload asks for few of them.
const NAMES_LIMIT: usize = 16;

const V4: u32 = 0xc612_0000; // 198.18.0.0/15, RFC 2544
const V4_SIZE: u32 = 1 << 17;
const V6_NETWORK: u8 = 1;

/// Whether an IPv4 address is one that stands for a name.
pub(super) fn is_synthetic(address: Ipv4Addr) -> bool {
    address.to_bits() & !(V4_SIZE - 1) == V4
}

/// Every place of a book is taken by names whose answers may still be kept, or that flows use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("every synthetic address is in use")]
pub struct Exhausted;

/// The addresses that one workload knows.
#[derive(Debug)]
pub struct Book {
    places: Vec<Place>,
    limit: usize,
    by_name: HashMap<HostName, usize>,
    /// Places that no flow uses, by when they may go to another name.
    free: BTreeSet<(Instant, usize)>,
    real: HashMap<IpAddr, Vec<(HostName, Instant)>>,
}

#[derive(Debug)]
struct Place {
    name: HostName,
    free_at: Instant,
    flows: usize,
}

impl Default for Book {
    fn default() -> Self {
        Self::new(PLACES_LIMIT)
    }
}

impl Book {
    /// An empty book with so many places for synthetic addresses.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            places: Vec::new(),
            limit: limit.min(PLACES_LIMIT),
            by_name: HashMap::new(),
            free: BTreeSet::new(),
            real: HashMap::new(),
        }
    }

    /// The addresses that stand for a name, in an answer that goes out at this moment.
    ///
    /// # Errors
    /// When there is no place left.
    pub fn give(
        &mut self,
        now: Instant,
        name: &HostName,
    ) -> Result<(Ipv4Addr, Ipv6Addr), Exhausted> {
        let free_at = now + Duration::from_secs(TTL.into()) + LINGER;
        let index = match self.by_name.get(name) {
            Some(index) => *index,
            None => self.place(now, name)?,
        };
        let place = &mut self.places[index];
        self.free.remove(&(place.free_at, index));
        place.free_at = free_at;
        if place.flows == 0 {
            self.free.insert((free_at, index));
        }
        Ok(addresses(index))
    }

    fn place(&mut self, now: Instant, name: &HostName) -> Result<usize, Exhausted> {
        let fresh = Place {
            name: name.clone(),
            free_at: now,
            flows: 0,
        };
        let index = if self.places.len() < self.limit {
            self.places.push(fresh);
            self.places.len() - 1
        } else {
            let first = self.free.first().copied();
            let (free_at, index) = first.filter(|(at, _)| *at <= now).ok_or(Exhausted)?;
            self.free.remove(&(free_at, index));
            let old = std::mem::replace(&mut self.places[index], fresh);
            self.by_name.remove(&old.name);
            index
        };
        self.by_name.insert(name.clone(), index);
        Ok(index)
    }

    /// Notes that the workload was told real addresses of a name, to be kept for so long.
    pub fn learn(&mut self, now: Instant, name: &HostName, addresses: &[IpAddr], ttl: Duration) {
        let until = now + ttl.max(FOLLOWS);
        for address in addresses {
            let address = address.to_canonical();
            if !self.real.contains_key(&address) && self.real.len() >= ADDRESSES_LIMIT {
                self.forget(now);
            }
            let names = self.real.entry(address).or_default();
            names.retain(|(known, end)| known != name && *end > now);
            if names.len() >= NAMES_LIMIT {
                names.remove(0); // the one that was told longest ago
            }
            names.push((name.clone(), until));
        }
    }

    /// Makes room for one real address.
    fn forget(&mut self, now: Instant) {
        let end = |names: &[(HostName, Instant)]| names.iter().map(|(_, end)| *end).max();
        self.real
            .retain(|_, names| end(names).is_some_and(|end| end > now));
        if self.real.len() >= ADDRESSES_LIMIT {
            let first = self.real.iter().min_by_key(|(_, names)| end(names));
            if let Some(address) = first.map(|(address, _)| *address) {
                self.real.remove(&address);
            }
        }
    }

    /// The names that this workload was given for an address, the latest first.
    #[must_use]
    pub fn names(&self, now: Instant, address: IpAddr) -> Vec<HostName> {
        let address = address.to_canonical();
        if let Some(index) = self.index(address) {
            return vec![self.places[index].name.clone()];
        }
        let names = self.real.get(&address).into_iter().flatten().rev();
        let alive = names.filter(|(_, end)| *end > now);
        alive.map(|(name, _)| name.clone()).collect()
    }

    /// The name that a synthetic address stands for; the place stays with it until [`Self::release`] is called as often.
    pub fn hold(&mut self, address: IpAddr) -> Option<HostName> {
        let index = self.index(address.to_canonical())?;
        let place = &mut self.places[index];
        self.free.remove(&(place.free_at, index));
        place.flows += 1;
        Some(place.name.clone())
    }

    /// A flow to a synthetic address ended.
    pub fn release(&mut self, now: Instant, address: IpAddr) {
        let Some(index) = self.index(address.to_canonical()) else {
            return;
        };
        let place = &mut self.places[index];
        place.flows = place.flows.saturating_sub(1);
        if place.flows == 0 {
            // Who reads the book at a flow's end may open the next one.
            self.free.remove(&(place.free_at, index));
            place.free_at = place.free_at.max(now + LINGER);
            self.free.insert((place.free_at, index));
        }
    }

    fn index(&self, address: IpAddr) -> Option<usize> {
        let number = match address {
            IpAddr::V4(v4) if is_synthetic(v4) => u64::from(v4.to_bits() - V4),
            IpAddr::V4(_) => return None,
            IpAddr::V6(v6) => {
                let (network, host) = split(v6);
                (network == vip::v6(V6_NETWORK, 0)).then_some(host)?
            }
        };
        let index = usize::try_from(number.checked_sub(1)?).ok()?;
        (index < self.places.len()).then_some(index)
    }
}

fn split(address: Ipv6Addr) -> (Ipv6Addr, u64) {
    let bits = address.to_bits();
    let host = bits & u128::from(u64::MAX);
    (
        Ipv6Addr::from_bits(bits ^ host),
        u64::try_from(host).unwrap_or_default(),
    )
}

/// The addresses of a place: from .1 on, because many systems treat a network's first address specially.
fn addresses(index: usize) -> (Ipv4Addr, Ipv6Addr) {
    let number = u32::try_from(index + 1).unwrap_or(V4_SIZE - 1);
    (
        Ipv4Addr::from_bits(V4 + number),
        vip::v6(V6_NETWORK, number.into()),
    )
}

#[cfg(test)]
mod tests {
    use super::super::origin;
    use super::*;

    fn host(text: &str) -> HostName {
        text.parse().expect("a host name")
    }

    fn give(book: &mut Book, now: Instant, name: &str) -> IpAddr {
        book.give(now, &host(name)).expect("a place").0.into()
    }

    #[test]
    fn an_address_stands_for_its_name_until_answers_and_flows_are_gone() {
        let start = origin();
        let mut book = Book::new(2);
        let (v4, v6) = book.give(start, &host("a.example")).expect("a place");
        assert_eq!(book.names(start, v4.into()), [host("a.example")]);
        assert_eq!(book.names(start, v6.into()), [host("a.example")]);
        assert_eq!(
            book.names(start, v4.to_ipv6_mapped().into()),
            [host("a.example")]
        );
        let b = give(&mut book, start, "b.example");
        assert_eq!(book.give(start, &host("c.example")), Err(Exhausted));
        assert_eq!(
            give(&mut book, start, "a.example"),
            IpAddr::V4(v4),
            "a name keeps its place"
        );

        // Flows hold `a`; `b` goes to another name as soon as its answer is long gone.
        assert_eq!(book.hold(v4.into()), Some(host("a.example")));
        assert_eq!(book.hold(v6.into()), Some(host("a.example")));
        let gone = Duration::from_secs(TTL.into()) + LINGER;
        let almost = start + gone - Duration::from_secs(1);
        assert_eq!(book.give(almost, &host("c.example")), Err(Exhausted));
        assert_eq!(give(&mut book, start + gone, "c.example"), b);
        assert_eq!(book.names(start + gone, b), [host("c.example")]);
        let later = start + gone * 9;
        assert_eq!(book.names(later, v4.into()), [host("a.example")]);
        book.release(later, v4.into());
        assert_eq!(give(&mut book, later, "d.example"), b);
        assert_eq!(book.give(later, &host("e.example")), Err(Exhausted));
        book.release(later, v6.into());
        assert_eq!(book.give(later, &host("e.example")), Err(Exhausted));
        assert_eq!(give(&mut book, later + LINGER, "e.example"), IpAddr::V4(v4));
    }

    #[test]
    fn the_place_that_was_given_longest_ago_goes_first() {
        let start = origin();
        let mut book = Book::new(3);
        let second = Duration::from_secs(1);
        let places: Vec<_> = ["a.example", "b.example", "c.example"]
            .iter()
            .zip(0..)
            .map(|(name, n)| give(&mut book, start + second * n, name))
            .collect();
        give(&mut book, start + second * 9, "a.example");
        let later = start + second * 10_000;
        assert_eq!(give(&mut book, later, "d.example"), places[1]);
        assert_eq!(give(&mut book, later, "e.example"), places[2]);
        assert_eq!(give(&mut book, later, "f.example"), places[0]);
    }

    #[test]
    fn addresses_that_were_never_given_have_no_name() {
        let now = origin();
        let mut book = Book::default();
        give(&mut book, now, "a.example");
        for text in [
            "198.18.0.0",
            "198.18.0.2",
            "198.20.0.1",
            "100.64.0.1",
            "fdcd:bcff:8e04:1::2",
            "fdcd:bcff:8e04::1",
            "::1",
        ] {
            let address: IpAddr = text.parse().expect(text);
            assert!(book.names(now, address).is_empty(), "{text}");
            assert_eq!(book.hold(address), None, "{text}");
            book.release(now, address);
        }
    }

    #[test]
    fn a_real_address_has_the_names_it_was_told_for_while_they_hold() {
        let now = origin();
        let shared: IpAddr = "192.0.2.7".parse().expect("an address");
        let mut book = Book::default();
        book.learn(now, &host("a.example"), &[shared], Duration::from_secs(300));
        book.learn(now, &host("b.example"), &[shared], Duration::ZERO);
        assert_eq!(
            book.names(now, shared),
            [host("b.example"), host("a.example")]
        );
        assert_eq!(book.names(now + FOLLOWS, shared), [host("a.example")]);
        assert!(book.names(now + FOLLOWS * 5, shared).is_empty());
    }

    #[test]
    fn a_workload_that_asks_without_end_fills_no_memory() {
        let mut now = origin();
        let mut book = Book::new(100);
        let mut given = 0;
        for n in 0..20_000_u32 {
            now += Duration::from_micros(1);
            let name = host(&format!("n{n}.example"));
            given += usize::from(book.give(now, &name).is_ok());
            let addresses = [
                IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 + n)),
                [192, 0, 2, 1].into(),
            ];
            book.learn(now, &name, &addresses, Duration::from_secs(300));
        }
        assert_eq!((given, book.places.len()), (100, 100));
        assert_eq!(book.real.len(), ADDRESSES_LIMIT);
        assert_eq!(book.names(now, [192, 0, 2, 1].into()).len(), NAMES_LIMIT);
    }
}
