//! Which rules speak of a destination, found without asking each rule.
//!
//! Rules share few sets of ports, so the patterns are parted by ports first; within one set names are found as in
//! [`super::index`], domains label by label, and networks by one look-up for each length that occurs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::Effect;
use super::index::{Bits, Key, Posting, Side};
use super::place::{DestinationPattern, HostPattern, Ports, opens};
use crate::destination::Destination;
use crate::guard;

/// The index over the destinations of all rules.
#[derive(Debug, Clone)]
pub(super) struct Places {
    rules: usize,
    unknown: Bits,
    by_ports: BTreeMap<Ports, Hosts>,
}

#[derive(Debug, Clone)]
struct Hosts {
    names: Side,
    any: Bits,
    domains: BTreeMap<Arc<str>, Posting>,
    /// By the length of the network, and then by the network.
    nets: BTreeMap<u8, BTreeMap<IpNet, Posting>>,
}

impl Hosts {
    fn new(rules: usize) -> Self {
        Self {
            names: Side::new(rules),
            any: Bits::none(rules),
            domains: BTreeMap::new(),
            nets: BTreeMap::new(),
        }
    }

    fn insert(&mut self, host: &HostPattern, rule: usize, rules: usize) {
        let posting = match host {
            HostPattern::Any => {
                self.any.insert(rule);
                return self.names.insert(&Key::Any, rule);
            }
            HostPattern::Name(name) => return self.names.insert(&Key::Name(name.as_str()), rule),
            HostPattern::Glob(glob) => return self.names.insert(&Key::Glob(glob), rule),
            HostPattern::Under(domain) => self
                .domains
                .entry(domain.as_str().into())
                .or_insert_with(Posting::empty),
            HostPattern::Net(net) => {
                let same_length = self.nets.entry(net.prefix_len()).or_default();
                same_length.entry(*net).or_insert_with(Posting::empty)
            }
        };
        posting.insert(rule, rules);
    }

    fn add_name(&self, name: &str, found: &mut Bits) {
        found.add(&self.names.of_name(name));
        let mut rest = name;
        while let Some((_, domain)) = rest.split_once('.') {
            if let Some(posting) = self.domains.get(domain) {
                posting.add_to(found);
            }
            rest = domain;
        }
    }

    fn add_address(&self, address: IpAddr, effect: Effect, found: &mut Bits) {
        match effect {
            Effect::Deny => {
                found.add(&self.any);
                for face in guard::faces(address) {
                    self.add_nets(face, |_| true, found);
                }
            }
            Effect::Allow => {
                if guard::special(address).is_none() {
                    found.add(&self.any);
                }
                self.add_nets(address, |net| opens(net, address), found);
            }
        }
    }

    fn add_nets(&self, address: IpAddr, wanted: impl Fn(IpNet) -> bool, found: &mut Bits) {
        for (length, nets) in &self.nets {
            let Ok(net) = IpNet::new(address, *length) else {
                continue; // an IPv6 length, an IPv4 address
            };
            let net = net.trunc();
            if let Some(posting) = nets.get(&net).filter(|_| wanted(net)) {
                posting.add_to(found);
            }
        }
    }
}

impl Places {
    pub(super) fn new(rules: usize) -> Self {
        Self {
            rules,
            unknown: Bits::none(rules),
            by_ports: BTreeMap::new(),
        }
    }

    /// Notes that a pattern of this rule is `pattern`.
    pub(super) fn insert(&mut self, pattern: &DestinationPattern, rule: usize) {
        let rules = self.rules;
        match pattern {
            DestinationPattern::Unknown(_) => self.unknown.insert(rule),
            DestinationPattern::Place(host, ports) => {
                let hosts = self.by_ports.entry(*ports);
                let hosts = hosts.or_insert_with(|| Hosts::new(rules));
                hosts.insert(host, rule, rules);
            }
        }
    }

    /// The rules that speak of the destination, if they have this effect.
    pub(super) fn of(&self, destination: &Destination, effect: Effect) -> Bits {
        let mut found = match effect {
            Effect::Deny => self.unknown.clone(),
            Effect::Allow => Bits::none(self.rules),
        };
        let meant = |ports: &Ports| ports.contains(destination.protocol(), destination.port());
        for (_, hosts) in self.by_ports.iter().filter(|(ports, _)| meant(ports)) {
            if let Some(name) = destination.name() {
                hosts.add_name(name.value.as_str(), &mut found);
            }
            if let Some(address) = destination.address() {
                hosts.add_address(address, effect, &mut found);
            }
        }
        found
    }
}
