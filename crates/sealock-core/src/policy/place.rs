//! Patterns of destinations: which places outside a rule speaks of.
//!
//! | pattern | matches |
//! |---|---|
//! | `*` | every name, and every address that is not special |
//! | `api.example.com`, `*.example.com` | names; a `*` stands for any characters of *one* label |
//! | `**.example.com` | every name below `example.com`, however deep, and not `example.com` itself |
//! | `192.0.2.7`, `10.0.0.0/8`, `[2001:db8::/32]` | addresses |
//! | `HOST:443`, `HOST:8000-8999` | the same, at these ports only; without ports it is every port |
//! | `HOST:53/udp`, `HOST/tcp` | the same, for this protocol only; without one it is both |
//!
//! An address that is special ([`guard`]) is allowed only by a pattern within its own block, so `0.0.0.0/0` opens no
//! loopback; a deny meets an address in every form. A claimed name satisfies a deny as a known one does.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::pattern::{Glob, PatternError, Plain, plain, shown};
use super::{Answer, Effect};
use crate::destination::{Destination, Protocol};
use crate::guard;
use crate::host::HostName;

/// Why a text is not a pattern of destinations.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// The host is no pattern.
    #[error(transparent)]
    Host(#[from] PatternError),
    /// The ports are none.
    #[error("`{0}` are no ports: write HOST:443, HOST:8000-8999 or HOST:*")]
    Ports(String),
    /// What stands behind the `/` is no protocol and no length of a network.
    #[error("`/{0}` is neither `/tcp`, `/udp` nor the length of a network")]
    Slash(String),
    /// An IPv6 address without brackets, whose port nobody could tell.
    #[error("an IPv6 address stands in brackets: `[{0}]`")]
    NoBrackets(String),
    /// A network that is written with bits of a host.
    #[error("`{given}` has bits behind its length: write `{network}`")]
    HostBits {
        /// What was given.
        given: String,
        /// The network that it lies in.
        network: IpNet,
    },
    /// An IPv4 address as IPv6 would write it.
    #[error("`{0}` is an IPv4 address in IPv6 form: write it as IPv4")]
    Mapped(String),
}

/// Which ports, over which protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ports {
    protocol: Option<Protocol>,
    first: u16,
    last: u16,
}

impl Ports {
    /// Every port, over every protocol.
    pub const ALL: Self = Self {
        protocol: None,
        first: 0,
        last: u16::MAX,
    };

    /// Whether they hold this one.
    #[must_use]
    pub fn contains(self, protocol: Protocol, port: u16) -> bool {
        self.protocol.is_none_or(|it| it == protocol) && (self.first..=self.last).contains(&port)
    }

    fn read(text: Option<&str>, protocol: Option<Protocol>) -> Result<Self, PlaceError> {
        let all = Self {
            protocol,
            ..Self::ALL
        };
        let Some(text) = text.filter(|it| *it != "*") else {
            return Ok(all);
        };
        let bad = || PlaceError::Ports(shown(text));
        let number = |text: &str| {
            // `parse` alone would take «+80».
            let lawful = text.bytes().all(|b| b.is_ascii_digit());
            let number = text.parse().ok().filter(|port| lawful && *port > 0);
            number.ok_or_else(bad)
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(bad());
        }
        Ok(Self { first, last, ..all })
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.first, self.last) {
            (0, u16::MAX) => {}
            (first, last) if first == last => write!(f, ":{first}")?,
            (first, last) => write!(f, ":{first}-{last}")?,
        }
        match self.protocol {
            Some(protocol) => write!(f, "/{protocol}"),
            None => Ok(()),
        }
    }
}

/// Which hosts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostPattern {
    /// Every one.
    Any,
    /// The host of this name.
    Name(HostName),
    /// Hosts whose name matches, label by label.
    Glob(Glob),
    /// Every host below this one.
    Under(HostName),
    /// Addresses of this network.
    Net(IpNet),
}

impl HostPattern {
    fn read(text: &str) -> Result<Self, PlaceError> {
        if let Some(inner) = text.strip_prefix('[') {
            let inner = inner
                .strip_suffix(']')
                .ok_or_else(|| PlaceError::NoBrackets(shown(inner)))?;
            return network(inner)?.map(Self::Net).ok_or_else(|| {
                PlaceError::Host(PatternError::Malformed {
                    text: shown(text),
                    dots: "",
                })
            });
        }
        if let Some(net) = network(text)? {
            return match net {
                IpNet::V4(_) => Ok(Self::Net(net)),
                IpNet::V6(_) => Err(PlaceError::NoBrackets(shown(text))),
            };
        }
        if let Some(name) = text.strip_prefix("**.")
            && let Plain::Name(name) = plain(name, DOTS)?
        {
            return Ok(Self::Under(name));
        }
        Ok(match plain(text, DOTS)? {
            Plain::Any => Self::Any,
            Plain::Name(name) => Self::Name(name),
            Plain::Glob(glob) => Self::Glob(glob),
        })
    }

    fn names(&self, name: &HostName) -> bool {
        match self {
            Self::Any => true,
            Self::Name(wanted) => wanted == name,
            Self::Glob(glob) => glob.matches(name.as_str()),
            Self::Under(domain) => is_under(name.as_str(), domain.as_str()),
            Self::Net(_) => false,
        }
    }

    fn holds(&self, address: IpAddr, effect: Effect) -> bool {
        let special = guard::special(address);
        match (self, effect) {
            (Self::Any, Effect::Deny) => true,
            (Self::Any, Effect::Allow) => special.is_none(),
            (Self::Net(net), Effect::Deny) => guard::faces(address).any(|face| net.contains(&face)),
            (Self::Net(net), Effect::Allow) => net.contains(&address) && opens(*net, address),
            (Self::Name(_) | Self::Glob(_) | Self::Under(_), _) => false,
        }
    }
}

/// Whether an allow of this network may open the address: a special one only from within its own block.
pub(super) fn opens(net: IpNet, address: IpAddr) -> bool {
    guard::special(address).is_none_or(|(_, block)| block.contains(&net))
}

fn is_under(name: &str, domain: &str) -> bool {
    name.strip_suffix(domain)
        .is_some_and(|rest| rest.ends_with('.'))
}

const DOTS: &str = ", labels joined by dots";

/// The network or single address that the text is.
fn network(text: &str) -> Result<Option<IpNet>, PlaceError> {
    let net = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => match text.parse::<IpNet>() {
            Ok(net) => net,
            Err(_) => return Ok(None),
        },
    };
    if net.addr() != net.network() {
        return Err(PlaceError::HostBits {
            given: shown(text),
            network: net.trunc(),
        });
    }
    match net.addr() {
        IpAddr::V6(address) if address.to_ipv4_mapped().is_some() && net.prefix_len() >= 96 => {
            Err(PlaceError::Mapped(shown(text)))
        }
        IpAddr::V4(_) | IpAddr::V6(_) => Ok(Some(net)),
    }
}

/// Which destinations a rule speaks of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DestinationPattern {
    /// These hosts at these ports.
    Place(HostPattern, Ports),
    /// A kind of pattern that this version does not know; what it matches cannot be decided.
    Unknown(Arc<str>),
}

impl FromStr for DestinationPattern {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        let (rest, protocol) = match text.rsplit_once('/') {
            Some((rest, "tcp")) => (rest, Some(Protocol::Tcp)),
            Some((rest, "udp")) => (rest, Some(Protocol::Udp)),
            Some((_, end)) if !end.starts_with(|c: char| c.is_ascii_digit()) => {
                return Err(PlaceError::Slash(shown(end)));
            }
            Some(_) | None => (text, None),
        };
        let (host, ports) = parts(rest)?;
        let host = HostPattern::read(host)?;
        Ok(Self::Place(host, Ports::read(ports, protocol)?))
    }
}

/// The host and the ports of a pattern.
fn parts(text: &str) -> Result<(&str, Option<&str>), PlaceError> {
    if text.starts_with('[') {
        return Ok(match text.split_once("]:") {
            Some((host, ports)) => (text.get(..=host.len()).unwrap_or(host), Some(ports)),
            None => (text, None),
        });
    }
    let Some((host, ports)) = text.rsplit_once(':') else {
        return Ok((text, None));
    };
    if host.contains(':') {
        return Err(PlaceError::NoBrackets(shown(text)));
    }
    let is_word = |text: &str| text.bytes().all(|b| b.is_ascii_lowercase());
    if ports.starts_with(|c: char| c.is_ascii_digit() || c == '*') || !is_word(host) {
        return Ok((host, Some(ports)));
    }
    Err(PlaceError::Host(PatternError::UnknownKind {
        kind: shown(host),
        known: "HOST, HOST:PORT or a network, each with `/tcp` or `/udp` where one is meant",
    }))
}

impl TryFrom<String> for DestinationPattern {
    type Error = PlaceError;

    fn try_from(text: String) -> Result<Self, PlaceError> {
        match text.parse() {
            Err(PlaceError::Host(PatternError::UnknownKind { .. })) => {
                Ok(Self::Unknown(text.into()))
            }
            other => other,
        }
    }
}

impl From<DestinationPattern> for String {
    fn from(pattern: DestinationPattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Name(name) => write!(f, "{name}"),
            Self::Glob(glob) => f.write_str(glob.as_str()),
            Self::Under(domain) => write!(f, "**.{domain}"),
            Self::Net(net) if net.prefix_len() == net.max_prefix_len() => match net.addr() {
                IpAddr::V4(address) => write!(f, "{address}"),
                IpAddr::V6(address) => write!(f, "[{address}]"),
            },
            Self::Net(IpNet::V4(net)) => write!(f, "{net}"),
            Self::Net(IpNet::V6(net)) => write!(f, "[{net}]"),
        }
    }
}

impl fmt::Display for DestinationPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Place(host, ports) => write!(f, "{host}{ports}"),
            Self::Unknown(text) => f.pad(text),
        }
    }
}

impl DestinationPattern {
    /// Every destination.
    pub const ALL: Self = Self::Place(HostPattern::Any, Ports::ALL);

    /// Whether the destination is one of those meant, special or not; what cannot be decided is not.
    #[must_use]
    pub fn covers(&self, destination: &Destination) -> bool {
        let Self::Place(host, ports) = self else {
            return false;
        };
        let holds = |address: IpAddr| match host {
            HostPattern::Any => true,
            HostPattern::Net(net) => net.contains(&address),
            HostPattern::Name(_) | HostPattern::Glob(_) | HostPattern::Under(_) => false,
        };
        let named = destination.name().map(|name| host.names(&name.value));
        let held = destination.address().map(holds);
        ports.contains(destination.protocol(), destination.port())
            && (named == Some(true) || held == Some(true))
    }

    /// Whether a rule of this effect speaks of the destination by this pattern.
    #[must_use]
    pub fn matches(&self, destination: &Destination, effect: Effect) -> Answer {
        let Self::Place(host, ports) = self else {
            return Answer::Unknown;
        };
        if !ports.contains(destination.protocol(), destination.port()) {
            return Answer::No;
        }
        let named = destination
            .name()
            .is_some_and(|name| host.names(&name.value));
        let held = destination
            .address()
            .is_some_and(|address| host.holds(address, effect));
        (named || held).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fact::{Fact, Source};

    fn pattern(text: &str) -> DestinationPattern {
        text.parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn named(name: &str, port: u16) -> Destination {
        let name = Fact::new(name.parse().expect("a name"), Source::Asked);
        Destination::named(Protocol::Tcp, name, port)
    }

    fn at(address: &str) -> Destination {
        Destination::at(Protocol::Tcp, address.parse().expect(address))
    }

    fn allows(text: &str, destination: &Destination) -> bool {
        pattern(text).matches(destination, Effect::Allow) == Answer::Yes
    }

    fn denies(text: &str, destination: &Destination) -> bool {
        pattern(text).matches(destination, Effect::Deny) == Answer::Yes
    }

    #[test]
    fn patterns_round_trip_through_their_text() {
        for text in [
            "*",
            "*:443",
            "*/udp",
            "api.example.com:443",
            "*.example.com:443/tcp",
            "**.example.com",
            "10.0.0.0/8",
            "10.0.0.0/8:5432",
            "10.0.0.0/8:53/udp",
            "192.0.2.7:8000-8999",
            "[2001:db8::1]:443",
            "[2001:db8::/32]",
            "[2001:db8::/32]:443/udp",
            "api-*.example.com",
        ] {
            assert_eq!(pattern(text).to_string(), text);
        }
        assert_eq!(pattern("a.example:*").to_string(), "a.example");
        assert_eq!(pattern("192.0.2.7/32").to_string(), "192.0.2.7");
    }

    #[test]
    fn refuses_what_is_not_canonical_and_names_the_fix() {
        for (text, fix) in [
            ("", "write `*`"),
            ("API.example.com", "write `api.example.com`"),
            ("a.example:0", "HOST:443"),
            ("a.example:http", "HOST:443"),
            ("a.example:9-8", "HOST:443"),
            ("a.example:+80", "HOST:443"),
            ("10.0.0.1/8", "write `10.0.0.0/8`"),
            ("2001:db8::1", "[2001:db8::1]"),
            ("2001:db8::1:443", "in brackets"),
            ("[2001:db8::1", "in brackets"),
            ("[::ffff:10.0.0.1]", "write it as IPv4"),
            ("10.0.0.0/8/icmp", "/tcp"),
            ("https://a.example/x", "/tcp"),
            ("https://a.example", "/tcp"),
            ("127.1", "a-z"),
            ("a..example", "leave out the dot"),
            ("***.example", "`**`"),
            ("a.**.example", "`**`"),
            ("geo:de", "HOST:PORT"),
        ] {
            let error = text
                .parse::<DestinationPattern>()
                .expect_err(text)
                .to_string();
            assert!(error.contains(fix), "{text}: {error}");
        }
    }

    #[test]
    fn names_match_label_by_label() {
        let deep = named("a.b.example.com", 443);
        assert!(allows("**.example.com:443", &deep));
        assert!(!allows("*.example.com:443", &deep));
        assert!(allows("*.example.com", &named("a.example.com", 443)));
        for other in ["**.example.com", "*.example.com"] {
            assert!(!allows(other, &named("example.com", 443)), "{other}");
            assert!(!allows(other, &named("badexample.com", 443)), "{other}");
        }
        assert!(!allows("a.example:443", &named("a.example", 80)));
        assert!(!allows("a.example/udp", &named("a.example", 80)));
        assert!(!allows("10.0.0.0/8", &named("a.example", 80)));
    }

    // C7: a special address is opened by its own name only, and denied in every disguise.
    #[test]
    fn a_special_address_is_opened_only_from_within_its_block() {
        let metadata = at("169.254.169.254:80");
        for wide in ["*", "0.0.0.0/0", "169.254.0.0/16"] {
            assert!(!allows(wide, &metadata), "{wide}");
            assert!(denies(wide, &metadata), "{wide}");
        }
        assert!(allows("169.254.169.254:80", &metadata));
        let loopback = at("127.0.0.1:80");
        assert!(!allows("*", &loopback) && !allows("0.0.0.0/0", &loopback));
        assert!(allows("127.0.0.0/8:80", &loopback));
        let within = at("[64:ff9b::a00:1]:80");
        assert!(denies("10.0.0.0/8", &within) && !allows("10.0.0.0/8", &within));
        assert!(allows("[64:ff9b::/96]", &within));
        assert!(!allows("[64:ff9b::/96]", &at("[64:ff9b::7f00:1]:80")));
        assert!(allows("10.0.0.0/8", &at("[::ffff:10.0.0.1]:80")));
    }

    // C12: the name that a flow claims can only close, or open the way to that name.
    #[test]
    fn a_claim_is_judged_beside_the_address() {
        let claim = "allowed.example".parse().expect("a name");
        let claimed = at("192.0.2.1:443").claimed(claim, Source::Sni);
        assert!(denies("allowed.example", &claimed) && denies("192.0.2.0/24", &claimed));
        assert!(allows("allowed.example", &claimed));
        let address = claimed.by_address().expect("an address");
        assert!(!allows("allowed.example", &address));
        let name = claimed.by_name().expect("a name");
        assert!(!allows("192.0.2.0/24", &name));
    }

    #[test]
    fn a_kind_of_a_newer_version_is_kept_from_the_store_but_not_from_people() {
        let stored: DestinationPattern = serde_json::from_str("\"geo:de\"").expect("kept");
        assert_eq!(stored, DestinationPattern::Unknown("geo:de".into()));
        assert_eq!(
            stored.matches(&at("192.0.2.1:1"), Effect::Deny),
            Answer::Unknown
        );
    }
}
