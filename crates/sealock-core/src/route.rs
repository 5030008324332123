//! Routes: by which ways a destination is reached, in the order in which they are tried.
//!
//! Policy says whether a flow may be; a route only says how. The first route whose patterns cover the destination gives
//! its ways, and where none does, the way is direct.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::config::{Upstream, UpstreamError};
use crate::destination::Destination;
use crate::name::{NameError, ServiceName};
use crate::policy::DestinationPattern;

/// One way out.
#[derive(Debug, Clone)]
pub enum Way {
    /// From this machine, to an address that was looked up and judged here.
    Direct,
    /// Through a proxy, which looks the name up.
    Proxy(Upstream),
    /// To a unix stream socket.
    Unix(PathBuf),
    /// To a service of the tenant, through the tunnel.
    Service(ServiceName),
    /// Nowhere.
    Refuse,
}

/// Why a text is no way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WayError {
    /// None of the kinds that there are.
    #[error(
        "`{0}` is no way: write `direct`, `socks5://HOST:PORT`, `http://HOST:PORT`, `unix:/PATH`, `service:NAME` or `refuse`"
    )]
    Kind(String),
    /// A proxy that is none.
    #[error(transparent)]
    Proxy(#[from] UpstreamError),
    /// A service that is no name.
    #[error(transparent)]
    Service(#[from] NameError),
    /// A path that is not absolute.
    #[error("the unix socket path `{0}` must be absolute")]
    Path(String),
}

impl FromStr for Way {
    type Err = WayError;

    fn from_str(text: &str) -> Result<Self, WayError> {
        if text.contains("://") {
            return Ok(Self::Proxy(text.parse()?));
        }
        let shown = |text: &str| {
            let start: String = text.chars().take(80).collect();
            start.escape_default().to_string()
        };
        match text.split_once(':') {
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(("unix", path)) => Err(WayError::Path(shown(path))),
            Some(("service", name)) => Ok(Self::Service(name.parse()?)),
            None if text == "direct" => Ok(Self::Direct),
            None if text == "refuse" => Ok(Self::Refuse),
            Some(_) | None => Err(WayError::Kind(shown(text))),
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.write_str("direct"),
            // Without the password.
            Self::Proxy(upstream) => upstream.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Service(name) => write!(f, "service:{name}"),
            Self::Refuse => f.write_str("refuse"),
        }
    }
}

/// How some destinations are reached.
#[derive(Debug, Clone)]
pub struct Route {
    /// Which destinations: one of the patterns covers them.
    pub destinations: Vec<DestinationPattern>,
    /// The ways, the first one first.
    pub ways: Vec<Way>,
}

/// The routes of a workload, in their order.
#[derive(Debug, Clone, Default)]
pub struct Routes(Vec<Route>);

impl Routes {
    /// These routes, of which an earlier one comes before a later one.
    #[must_use]
    pub fn new(routes: Vec<Route>) -> Self {
        Self(routes)
    }

    /// One list of ways for every destination.
    #[must_use]
    pub fn all_by(ways: Vec<Way>) -> Self {
        Self(vec![Route {
            destinations: vec![DestinationPattern::ALL],
            ways,
        }])
    }

    /// The ways to the destination, never none.
    #[must_use]
    pub fn ways(&self, destination: &Destination) -> &[Way] {
        let covers = |route: &&Route| {
            let mut patterns = route.destinations.iter();
            patterns.any(|pattern| pattern.covers(destination))
        };
        match self.0.iter().find(covers) {
            Some(route) if !route.ways.is_empty() => &route.ways,
            Some(_) => &[Way::Refuse],
            None => &[Way::Direct],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(text: &str) -> Way {
        text.parse().expect(text)
    }

    fn shown(routes: &Routes, destination: &str) -> Vec<String> {
        let destination = destination.parse().expect(destination);
        routes
            .ways(&destination)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn the_first_route_that_covers_a_destination_gives_its_ways() {
        let route = |destinations: &[&str], ways: &[&str]| Route {
            destinations: destinations
                .iter()
                .map(|it| it.parse().expect(it))
                .collect(),
            ways: ways.iter().map(|it| way(it)).collect(),
        };
        let routes = Routes::new(vec![
            route(
                &["*.corp.example"],
                &["service:exit", "socks5://proxy.example:1080"],
            ),
            route(&["169.254.0.0/16", "10.0.0.0/8"], &[]),
            route(&["**.example:443"], &["http://a:b@proxy.example:3128"]),
        ]);
        assert_eq!(
            shown(&routes, "git.corp.example:22"),
            ["service:exit", "socks5://proxy.example:1080"]
        );
        assert_eq!(shown(&routes, "169.254.169.254:80"), ["refuse"]);
        assert_eq!(
            shown(&routes, "a.b.example:443"),
            ["http://a:***@proxy.example:3128"]
        );
        assert_eq!(shown(&routes, "a.b.example:80"), ["direct"]);
        let all = Routes::all_by(vec![way("unix:/run/x.sock")]);
        assert_eq!(shown(&all, "127.0.0.1:80"), ["unix:/run/x.sock"]);
    }

    #[test]
    fn a_text_that_is_no_way_says_what_would_be_one() {
        for (text, fix) in [
            ("", "write `direct`"),
            ("proxy.example:3128", "write `direct`"),
            ("ftp://proxy.example", "socks5://"),
            ("unix:x.sock", "absolute"),
            ("service:A B", "service name"),
        ] {
            let error = text.parse::<Way>().expect_err(text).to_string();
            assert!(error.contains(fix), "{text}: {error}");
        }
    }
}
