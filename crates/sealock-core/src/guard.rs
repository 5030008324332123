//! Addresses that no workload reaches by accident: loopback, link-local, metadata services, multicast and their like.
//!
//! An IPv6 address may carry an IPv4 one within it (mapped, NAT64, 6to4, Teredo and older forms) and lead to it; so an
//! address is looked at with all the [`faces`] that it has. Policy opens a special address only by naming it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Why an address is special.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Special {
    /// This machine's own.
    Loopback,
    /// No address at all; some systems take it for loopback.
    Unspecified,
    /// The link's own, metadata services among them.
    LinkLocal,
    /// Where clouds answer with credentials.
    Metadata,
    /// Several receivers at once.
    Multicast,
    /// Set aside, and never a host on the Internet.
    Reserved,
}

impl Special {
    /// The word in messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Unspecified => "unspecified",
            Self::LinkLocal => "link-local",
            Self::Metadata => "metadata",
            Self::Multicast => "multicast",
            Self::Reserved => "reserved",
        }
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8, length: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length))
}

const fn v6(groups: [u16; 8], length: u8) -> IpNet {
    let [a, b, c, d, e, f, g, h] = groups;
    IpNet::V6(Ipv6Net::new_assert(
        Ipv6Addr::new(a, b, c, d, e, f, g, h),
        length,
    ))
}

/// The blocks, narrow ones before those that hold them (RFC 6890, RFC 1122, RFC 4291, and what clouds document).
const BLOCKS: &[(Special, IpNet)] = &[
    (Special::Metadata, v4(169, 254, 169, 254, 32)),
    (Special::Metadata, v4(168, 63, 129, 16, 32)),
    (Special::Metadata, v4(100, 100, 100, 200, 32)),
    (Special::Metadata, v4(192, 0, 0, 192, 32)),
    (
        Special::Metadata,
        v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128),
    ),
    (Special::Unspecified, v4(0, 0, 0, 0, 8)),
    (Special::Unspecified, v6([0; 8], 128)),
    (Special::Loopback, v4(127, 0, 0, 0, 8)),
    (Special::Loopback, v6([0, 0, 0, 0, 0, 0, 0, 1], 128)),
    (Special::LinkLocal, v4(169, 254, 0, 0, 16)),
    (Special::LinkLocal, v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10)),
    (Special::LinkLocal, v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10)),
    (Special::Multicast, v4(224, 0, 0, 0, 4)),
    (Special::Multicast, v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8)),
    (Special::Reserved, v4(240, 0, 0, 0, 4)),
    (Special::Reserved, v4(192, 0, 0, 0, 24)),
    (Special::Reserved, v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64)),
];

/// The block of special addresses that one of the address's faces lies in, and why it is special.
#[must_use]
pub fn special(address: IpAddr) -> Option<(Special, IpNet)> {
    faces(address).find_map(|face| {
        let found = BLOCKS.iter().find(|(_, block)| block.contains(&face));
        found.copied()
    })
}

/// An address as it is: an IPv4 one that was mapped into IPv6 (RFC 4291 §2.5.5.2) is IPv4.
#[must_use]
pub fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// The address, and every IPv4 address that it carries and might lead to.
pub fn faces(address: IpAddr) -> impl Iterator<Item = IpAddr> {
    let address = plain(address);
    let carried = match address {
        IpAddr::V4(_) => [None; 4],
        IpAddr::V6(address) => carried(address),
    };
    let carried = carried.into_iter().flatten().map(IpAddr::V4);
    std::iter::once(address).chain(carried)
}

/// The IPv4 addresses within an IPv6 address.
fn carried(address: Ipv6Addr) -> [Option<Ipv4Addr>; 4] {
    let bits = address.to_bits();
    let groups = address.segments();
    #[expect(clippy::cast_possible_truncation, reason = "the low 32 bits are meant")]
    let at = |shift: u32| Ipv4Addr::from_bits((bits >> shift) as u32);
    match groups {
        // IPv4-compatible, RFC 4291 §2.5.5.1; `::` and `::1` are themselves.
        [0, 0, 0, 0, 0, 0, _, _] if bits > 1 => [Some(at(0)), None, None, None],
        // NAT64, RFC 6052; in the local-use prefix of RFC 8215 the length, and so the place, is the operator's choice.
        [0x64, 0xff9b, 0, 0, 0, 0, _, _] => [Some(at(0)), None, None, None],
        [0x64, 0xff9b, 1, ..] => {
            let places = [at(0), split(bits, 48), split(bits, 56), split(bits, 64)];
            // Where another length is meant, the rest of the address is zero (RFC 6052 §2.2).
            places.map(|face| (face.octets()[0] != 0).then_some(face))
        }
        // 6to4, RFC 3056.
        [0x2002, ..] => [Some(at(80)), None, None, None],
        // Teredo, RFC 4380 §4: the server, and the client with its bits turned.
        [0x2001, 0, server, ..] => {
            let client = Ipv4Addr::from_bits(!at(0).to_bits());
            [(server != 0).then(|| at(64)), Some(client), None, None]
        }
        // ISATAP, RFC 5214 §6.1.
        [_, _, _, _, 0 | 0x200, 0x5efe, _, _] => [Some(at(0)), None, None, None],
        _ => [None; 4],
    }
}

/// The IPv4 address behind a NAT64 prefix of this length: bits 64 to 71 are skipped (RFC 6052 §2.2).
fn split(bits: u128, length: u32) -> Ipv4Addr {
    let mut address = 0;
    let mut place = length;
    for _ in 0..4 {
        if place == 64 {
            place += 8;
        }
        let byte = (bits >> (120 - place)) & 0xff;
        address = (address << 8) | u32::try_from(byte).unwrap_or_default();
        place += 8;
    }
    Ipv4Addr::from_bits(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<Special> {
        special(text.parse().expect(text)).map(|(kind, _)| kind)
    }

    // S21, S22: every address that a door must not open by accident.
    #[test]
    fn names_every_special_address() {
        for (text, kind) in [
            ("127.0.0.1", Special::Loopback),
            ("127.255.255.254", Special::Loopback),
            ("::1", Special::Loopback),
            ("0.0.0.0", Special::Unspecified),
            ("0.1.2.3", Special::Unspecified),
            ("::", Special::Unspecified),
            ("169.254.1.1", Special::LinkLocal),
            ("fe80::1", Special::LinkLocal),
            ("fec0::1", Special::LinkLocal),
            ("169.254.169.254", Special::Metadata),
            ("fd00:ec2::254", Special::Metadata),
            ("168.63.129.16", Special::Metadata),
            ("100.100.100.200", Special::Metadata),
            ("224.0.0.251", Special::Multicast),
            ("ff02::1", Special::Multicast),
            ("240.0.0.1", Special::Reserved),
            ("255.255.255.255", Special::Reserved),
        ] {
            assert_eq!(of(text), Some(kind), "{text}");
        }
        for text in [
            "1.1.1.1",
            "10.0.0.1",
            "100.64.0.1",
            "2001:db8::1",
            "fd00::1",
            "192.168.0.1",
        ] {
            assert_eq!(of(text), None, "{text}");
        }
    }

    // S23: an IPv4 address within an IPv6 one is found in every form.
    #[test]
    fn finds_what_an_address_carries_within() {
        for text in [
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::7f00:1",
            "64:ff9b:1:7f00:0:100::",
            "2002:7f00:1::",
            "2001:0:7f00:1::1",
            "2001::80ff:fffe",
            "2001:db8::5efe:127.0.0.1",
            "2001:db8::200:5efe:127.0.0.1",
        ] {
            assert_eq!(of(text), Some(Special::Loopback), "{text}");
        }
        assert_eq!(of("64:ff9b::a9fe:a9fe"), Some(Special::Metadata));
        assert_eq!(of("64:ff9b::808:808"), None);
        assert_eq!(of("2002:808:808::"), None);
    }

    #[test]
    fn the_places_of_nat64_are_those_of_the_standard() {
        // The examples of RFC 6052 §2.4 for 192.0.2.33.
        for (text, length) in [
            ("2001:db8:122:c000:2:2100::", 48),
            ("2001:db8:122:3c0:0:221::", 56),
            ("2001:db8:122:344:c0:2:2100::", 64),
        ] {
            let address: Ipv6Addr = text.parse().expect(text);
            let found = split(address.to_bits(), length);
            assert_eq!(found, Ipv4Addr::new(192, 0, 2, 33), "{text}");
        }
    }
}
