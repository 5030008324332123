//! What a client says at a front door before its own bytes: SOCKS5, and HTTP's CONNECT.
//!
//! A reader takes exactly the bytes of the talk and none of those behind it, so whatever the client said early stays
//! with its flow. Where a client wants to go is read in one way for every door: an address in whatever brackets is an
//! address, and no spelling of one passes as a name. Deliberately absent: what becomes of the flow, and waiting.

pub mod connect;
pub mod socks5;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use data_encoding::BASE64;
use sealock_core::destination::{Destination, Protocol};
use sealock_core::fact::{Fact, Goal, Source};
use sealock_core::host::HostName;
use sealock_core::secret::Secret;

use crate::dns::server::ZONE;

/// The user and the password that a door asks for.
#[derive(Debug, Clone)]
pub struct Login {
    /// User and password, as HTTP joins them; RFC 7617 §2 forbids a colon in the user.
    joined: Secret<Vec<u8>>,
}

impl Login {
    /// Reads `USER:PASSWORD`; `None` where a half is missing, or longer than SOCKS5 can say (RFC 1929 §2).
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let (user, password) = text.split_once(':')?;
        let fits = |half: &str| (1..=usize::from(u8::MAX)).contains(&half.len());
        (fits(user) && fits(password)).then(|| Self {
            joined: Secret::new(text.as_bytes().to_vec()),
        })
    }

    /// Whether this is the login.
    #[must_use]
    pub fn is(&self, user: &[u8], password: &[u8]) -> bool {
        let joined = Secret::new([user, b":", password].concat());
        // A user with a colon would share a text with another login.
        !user.contains(&b':') && self.joined.matches(joined.expose())
    }

    /// Whether the value of a `Proxy-Authorization` header tells the login (RFC 7617).
    #[must_use]
    pub fn is_basic(&self, value: &[u8]) -> bool {
        let Some((scheme, rest)) = value.split_at_checked(BASIC.len()) else {
            return false;
        };
        let told = BASE64.decode(rest.trim_ascii()).unwrap_or_default();
        scheme.eq_ignore_ascii_case(BASIC) && self.joined.matches(&told)
    }
}

const BASIC: &[u8] = b"basic ";

/// A place as a client names it: a host, with an IPv6 address in brackets or bare, and a port.
#[must_use]
pub fn place(host: &[u8], port: u16) -> Option<Destination> {
    let host = std::str::from_utf8(host).ok()?;
    if port == 0 {
        return None;
    }
    let inner = host.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    let address = match inner {
        Some(inner) => Some(IpAddr::V6(inner.parse::<Ipv6Addr>().ok()?)),
        None => host.parse().ok(),
    };
    if let Some(address) = address {
        return Some(Destination::at(
            Protocol::Tcp,
            SocketAddr::new(address, port),
        ));
    }
    let name: HostName = host.parse().ok()?;
    let asked = Fact::new(name, Source::Asked);
    Some(Destination::named(Protocol::Tcp, asked, port))
}

/// A place in one text, `HOST:PORT`; without a port it is the one that the scheme implies, if it implies one.
#[must_use]
pub fn authority(text: &[u8], implied: Option<u16>) -> Option<Destination> {
    let colon = text.iter().rposition(|b| *b == b':');
    match colon.filter(|_| !text.ends_with(b"]")) {
        Some(at) => {
            let digits = std::str::from_utf8(&text[at + 1..]).ok()?;
            // `parse` alone would take «+80».
            let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            let host = &text[..at];
            // Without brackets nobody can tell where an IPv6 address ends.
            let is_bare = host.contains(&b':') && !host.starts_with(b"[");
            place(host, digits.parse().ok()?).filter(|_| plain && !is_bare)
        }
        None => place(text, implied?),
    }
}

/// What a flow to this place is for: a name below the zone of services is the service of that name (ADR 17).
#[must_use]
pub fn goal(place: Destination) -> Goal {
    let known = place.name().and_then(|name| {
        let above = name.value.as_str().strip_suffix(ZONE)?;
        let service = above.strip_suffix('.')?.parse().ok()?;
        Some(Fact::new(service, name.source))
    });
    match known {
        Some(service) => Goal::Service(service),
        None => Goal::Destination(place),
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Option<String> {
        authority(text.as_bytes(), Some(80)).map(|place| place.to_string())
    }

    #[test]
    fn a_place_is_read_in_one_way_whatever_its_form() {
        let cases = [
            ("Example.COM:443", "example.com:443/tcp"),
            ("example.com.", "example.com:80/tcp"),
            ("192.0.2.1:22", "192.0.2.1:22/tcp"),
            ("[2001:db8::1]:22", "[2001:db8::1]:22/tcp"),
            ("[2001:db8::1]", "[2001:db8::1]:80/tcp"),
            // S23: an IPv4 address in the clothes of IPv6 is that address.
            ("[::ffff:127.0.0.1]:1", "127.0.0.1:1/tcp"),
        ];
        for (text, expected) in cases {
            assert_eq!(shown(text).as_deref(), Some(expected), "{text}");
        }
        let bare = place(b"2001:db8::1", 22).map(|place| place.to_string());
        assert_eq!(bare.as_deref(), Some("[2001:db8::1]:22/tcp"));
    }

    // S22, S23: no spelling of an address passes as a name, and no address with a zone passes at all.
    #[test]
    fn what_is_neither_a_name_nor_an_address_leads_nowhere() {
        let nowhere = [
            "127.1:80",
            "0177.1:80",
            "2130706433:80",
            "0x7f000001:80",
            "[127.0.0.1]:80",
            "[fe80::1%eth0]:80",
            "::1:80",
            "[::1:80",
            "example.com:0",
            "example.com:+80",
            "example.com:",
            "example.com:65536",
            "user@example.com:80",
            ":80",
            "",
            "a b:80",
            "\u{e9}:80",
        ];
        for text in nowhere {
            assert_eq!(shown(text), None, "{text}");
        }
        assert_eq!(authority(b"example.com", None), None);
    }

    #[test]
    fn a_name_below_the_zone_of_services_is_a_service_and_no_other_is() {
        let told = |text: &str| goal(authority(text.as_bytes(), None).expect(text)).to_string();
        assert_eq!(told("db.sealock.internal:5432"), "db");
        assert_eq!(told("DB.Prod.Sealock.Internal.:1"), "db.prod");
        for outside in ["sealock.internal:1", "dbsealock.internal:1"] {
            assert_eq!(told(outside), format!("{outside}/tcp"));
        }
    }

    #[test]
    fn a_login_is_known_by_both_halves_and_by_its_basic_form_alone() {
        let login = Login::new("user:pass:word").expect("two halves");
        assert!(login.is(b"user", b"pass:word"));
        assert!(!login.is(b"user:pass", b"word"));
        assert!(!login.is(b"user", b"pass") && !login.is(b"", b""));
        let value = format!("Basic {}", BASE64.encode(b"user:pass:word"));
        assert!(login.is_basic(value.as_bytes()));
        for other in [
            "Basic ",
            "Basic",
            "Bearer dXNlcjpwYXNzOndvcmQ=",
            "",
            "Basic !",
        ] {
            assert!(!login.is_basic(other.as_bytes()), "{other}");
        }
        for bad in [
            "user",
            ":password",
            "user:",
            &format!("{}:p", "u".repeat(256)),
        ] {
            assert!(Login::new(bad).is_none(), "{bad}");
        }
    }
}
