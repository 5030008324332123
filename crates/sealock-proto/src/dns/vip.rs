//! The addresses that services have inside a workload: derived from their names, so that every node and every restart
//! finds the same ones without asking anybody.
//!
//! Of the 4 million IPv4 addresses two services may hash to one; then the one whose name sorts first has it, and the other
//! the next of its own sequence. The whole set decides, so nodes with the same view agree. When a new service takes an
//! address away, or one is withdrawn, the address leads nowhere until every answer that told it has expired: a name may
//! lead into the fence, never to another service.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use sealock_core::name::{ServiceName, TenantName};
use sha2::{Digest, Sha256};

/// How long a client may keep an answer of ours, in seconds: soon gone when a service is, and few questions a minute.
pub const TTL: u32 = 30;
/// How long an address that changed hands leads nowhere: clients count from when they got the answer, some twice.
const FENCED: Duration = Duration::from_secs(2 * TTL as u64);

const V4: u32 = 0x6440_0000; // 100.64.0.0/10, RFC 6598
const V4_MASK: u32 = 0x003f_ffff;
/// The first 40 bits of SHA-256 over «sealock», behind `fd` (RFC 4193 §3.2): services here, other names in the next /64.
const ULA: [u8; 6] = [0xfd, 0xcd, 0xbc, 0xff, 0x8e, 0x04];
/// Addresses of a service's sequence that are tried: with as many services as places one in two is taken.
const ROUNDS: u8 = 32;

/// The IPv6 networks of ours by their number: 0 for services, 1 for names of hosts.
pub(super) fn v6(network: u8, host: u64) -> Ipv6Addr {
    let mut bytes = [0; 16];
    bytes[..6].copy_from_slice(&ULA);
    bytes[7] = network;
    bytes[8..].copy_from_slice(&host.to_be_bytes());
    bytes.into()
}

/// Whether an address lies in a network that only we give addresses of; no upstream may name one.
#[must_use]
pub fn is_ours(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.to_bits() & !V4_MASK == V4 || super::book::is_synthetic(v4),
        IpAddr::V6(v6) => v6.octets()[..6] == ULA,
    }
}

/// Whether an address lies in the networks of services.
#[must_use]
pub fn is_vip(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.to_bits() & !V4_MASK == V4,
        IpAddr::V6(v6) => v6.octets()[..6] == ULA && v6.octets()[6..8] == [0, 0],
    }
}

/// A service's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vip {
    /// Its IPv4 address; none while the address that it shall have may still be kept by clients of another service.
    pub v4: Option<Ipv4Addr>,
    /// Its IPv6 address, with the same exception.
    pub v6: Option<Ipv6Addr>,
}

/// The addresses of all services of a tenant.
#[derive(Debug, Clone)]
pub struct Vips {
    tenant: TenantName,
    services: BTreeMap<ServiceName, (Ipv4Addr, Ipv6Addr)>,
    owners: BTreeMap<IpAddr, ServiceName>,
    /// Addresses that changed hands, and until when they lead nowhere.
    fenced: BTreeMap<IpAddr, Instant>,
}

/// What there is at a name of the zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A service.
    Service(Vip),
    /// Nothing, but services lie below it (RFC 8020): it exists and is empty.
    Between,
    /// Nothing.
    Nothing,
}

impl Vips {
    /// The addresses of a tenant that has no service yet.
    #[must_use]
    pub fn new(tenant: TenantName) -> Self {
        Self {
            tenant,
            services: BTreeMap::new(),
            owners: BTreeMap::new(),
            fenced: BTreeMap::new(),
        }
    }

    /// Takes over the services that there are now.
    pub fn assign(&mut self, now: Instant, names: &BTreeSet<ServiceName>) {
        let mut owners = BTreeMap::new();
        let mut services = BTreeMap::new();
        for name in names {
            let places = (0..ROUNDS).map(|round| self.derived(name, round));
            let free = places
                .filter(|(v4, v6)| {
                    let is_free = |address: IpAddr| !owners.contains_key(&address);
                    is_free((*v4).into()) && is_free((*v6).into())
                })
                .find(|(v4, _)| is_usable(*v4));
            let Some((v4, v6)) = free else {
                continue; // as good as impossible; the service is reached by every other way
            };
            owners.insert(IpAddr::V4(v4), name.clone());
            owners.insert(IpAddr::V6(v6), name.clone());
            services.insert(name.clone(), (v4, v6));
        }
        self.fenced.retain(|_, until| *until > now);
        for (address, name) in &self.owners {
            if owners.get(address) != Some(name) {
                self.fenced.insert(*address, now + FENCED);
            }
        }
        self.owners = owners;
        self.services = services;
    }

    fn derived(&self, name: &ServiceName, round: u8) -> (Ipv4Addr, Ipv6Addr) {
        let mut digest = Sha256::new();
        for part in [self.tenant.as_str(), name.as_str()] {
            digest.update(part);
            digest.update([0]); // no name holds it, so parts cannot run into each other
        }
        digest.update([round]);
        let digest: [u8; 32] = digest.finalize().into();
        let [a, b, c, d, rest @ ..] = digest;
        let v4 = V4 | (u32::from_be_bytes([a, b, c, d]) & V4_MASK);
        let host = rest.first_chunk().copied().unwrap_or_default();
        (v4.into(), v6(0, u64::from_be_bytes(host)))
    }

    fn is_fenced(&self, now: Instant, address: IpAddr) -> bool {
        self.fenced.get(&address).is_some_and(|until| *until > now)
    }

    /// What there is at a name, relative to the zone.
    #[must_use]
    pub fn find(&self, now: Instant, name: &ServiceName) -> Found {
        if let Some((v4, v6)) = self.services.get(name) {
            return Found::Service(Vip {
                v4: Some(*v4).filter(|v4| !self.is_fenced(now, (*v4).into())),
                v6: Some(*v6).filter(|v6| !self.is_fenced(now, (*v6).into())),
            });
        }
        let below = format!(".{name}");
        if self
            .services
            .keys()
            .any(|other| other.as_str().ends_with(&below))
        {
            return Found::Between;
        }
        Found::Nothing
    }

    /// The service that a packet to this address is for.
    #[must_use]
    pub fn service_at(&self, now: Instant, address: IpAddr) -> Option<&ServiceName> {
        let address = address.to_canonical();
        let owner = self.owners.get(&address)?;
        (!self.is_fenced(now, address)).then_some(owner)
    }
}

/// Clouds and other private networks answer at 100.100.100.*: that a service is there would confuse people.
fn is_usable(address: Ipv4Addr) -> bool {
    let [a, b, c, d] = address.octets();
    [a, b, c] != [100, 100, 100] && !matches!(d, 0 | 255)
}

#[cfg(test)]
mod tests {
    use super::super::origin;
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<ServiceName> {
        names.iter().map(|n| n.parse().expect("a name")).collect()
    }

    fn vips(services: &BTreeSet<ServiceName>) -> Vips {
        let mut vips = Vips::new("default".parse().expect("a name"));
        vips.assign(origin(), services);
        vips
    }

    fn v4_of(vips: &Vips, now: Instant, name: &ServiceName) -> Option<Ipv4Addr> {
        match vips.find(now, name) {
            Found::Service(vip) => vip.v4,
            Found::Between | Found::Nothing => None,
        }
    }

    #[test]
    fn the_prefix_is_drawn_as_said() {
        assert_eq!(ULA[1..], Sha256::digest("sealock")[..5]);
    }

    // The very addresses: another version of the program must find the same ones.
    #[test]
    fn a_service_has_the_same_addresses_everywhere() {
        let some = vips(&names(&["web", "db.staging"]));
        let all = vips(&names(&["web", "db.staging", "cache", "mail"]));
        let now = origin();
        for name in ["web", "db.staging"] {
            let name = name.parse().expect("a name");
            assert_eq!(some.find(now, &name), all.find(now, &name));
        }
        let web: ServiceName = "web".parse().expect("a name");
        let Found::Service(vip) = all.find(now, &web) else {
            panic!("no service");
        };
        assert_eq!(
            vip.v4.map(|a| a.to_string()).as_deref(),
            Some("100.72.69.17")
        );
        assert_eq!(
            vip.v6.map(|a| a.to_string()).as_deref(),
            Some("fdcd:bcff:8e04:0:aaf4:a907:a43:b5a6")
        );
        for address in [vip.v4.map(IpAddr::V4), vip.v6.map(IpAddr::V6)] {
            let address = address.expect("both");
            assert!(is_vip(address) && is_ours(address));
            assert_eq!(all.service_at(now, address), Some(&web));
        }
        assert_eq!(
            all.find(now, &"staging".parse().expect("a name")),
            Found::Between
        );
        assert_eq!(
            all.find(now, &"nobody".parse().expect("a name")),
            Found::Nothing
        );
    }

    /// Two names that hash to one IPv4 address, found by trying.
    fn twins() -> (ServiceName, ServiceName) {
        let vips = Vips::new("default".parse().expect("a name"));
        let mut seen = BTreeMap::new();
        (0..)
            .find_map(|n| {
                let name: ServiceName = format!("s{n}").parse().expect("a name");
                let (v4, _) = vips.derived(&name, 0);
                is_usable(v4).then_some(())?;
                Some((seen.insert(v4, name.clone())?, name))
            })
            .map(|(a, b)| (a.clone().min(b.clone()), a.max(b)))
            .expect("4 million places")
    }

    #[test]
    fn an_address_that_changes_hands_leads_nowhere_until_its_answers_expired() {
        let (early, late) = twins();
        let now = origin();
        let mut vips = vips(&BTreeSet::from([late.clone()]));
        let address = v4_of(&vips, now, &late).expect("an address");
        vips.assign(now, &BTreeSet::from([early.clone(), late.clone()]));
        // The one that sorts first has it from here on, but not yet.
        let other = v4_of(&vips, now, &late).expect("another address");
        assert_ne!(other, address);
        assert_eq!(v4_of(&vips, now, &early), None);
        assert_eq!(vips.service_at(now, address.into()), None);
        let later = now + FENCED;
        assert_eq!(v4_of(&vips, later, &early), Some(address));
        assert_eq!(vips.service_at(later, address.into()), Some(&early));
        // Withdrawn, it is nobody's.
        vips.assign(later, &BTreeSet::from([late.clone()]));
        assert_eq!(
            v4_of(&vips, later, &late),
            None,
            "it comes back, but not yet"
        );
        assert_eq!(vips.service_at(later, address.into()), None);
        assert_eq!(v4_of(&vips, later + FENCED, &late), Some(address));
    }

    #[test]
    fn ten_thousand_services_have_addresses_of_their_own() {
        let services = (0..10_000).map(|n| format!("s{n}").parse().expect("a name"));
        let vips = vips(&services.collect());
        assert_eq!(vips.services.len(), 10_000);
        assert_eq!(vips.owners.len(), 20_000);
        assert!(vips.owners.keys().all(|address| is_vip(*address)));
    }
}
