//! A TCP connection to a place outside: its name is looked up once, each address is judged, and one that was judged is
//! dialled; or a proxy is asked for it, which looks the name up where it is.

use std::net::SocketAddr;
use std::time::Duration;

use sealock_core::address::HostPort;
use sealock_core::config::{Upstream, UpstreamKind};
use sealock_core::destination::{Destination, Protocol};
use sealock_core::fact::Facts;
use sealock_core::reason::Reason;
use sealock_net::transport::proxy::{self, ProxyError};
use tokio::net::TcpStream;

use super::direct;
use crate::rules::Rules;

/// A way to a place outside.
#[derive(Debug, Clone)]
pub struct Outside {
    /// The place: a name, or an address.
    pub place: Destination,
    /// What its addresses are judged by.
    pub rules: Rules,
    /// The proxy that is asked for it, if one is.
    pub proxy: Option<Upstream>,
}

impl Outside {
    /// The word in logs.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self.proxy.as_ref().map(Upstream::kind) {
            None => "direct",
            Some(UpstreamKind::Http) => "http_connect",
            Some(UpstreamKind::Socks5) => "socks5",
        }
    }

    /// Connects to the place.
    ///
    /// # Errors
    /// [`Reason::PolicyDenied`] when every address that it has is one that may not be dialled; else refused, unreachable
    /// or too slow.
    ///
    /// # Cancel safety
    /// Safe: what was dialled is closed.
    pub async fn open(&self, facts: &Facts) -> Result<TcpStream, Reason> {
        if self.place.protocol() != Protocol::Tcp {
            return Err(Reason::Internal);
        }
        match &self.proxy {
            None => direct::first(self.admitted(facts, addresses(&self.place).await?)?).await,
            Some(proxy) => {
                // An address is judged here as well; a name's addresses only the proxy knows.
                let address = self.place.address();
                address.map_or(Ok(()), |it| {
                    self.rules.admits(facts, &self.place, it).map(|_| ())
                })?;
                self.ask(proxy).await
            }
        }
    }

    /// The addresses that may be dialled.
    fn admitted(&self, facts: &Facts, found: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Reason> {
        let mut admitted = Vec::with_capacity(found.len());
        let mut last = Reason::TargetUnreachable;
        for address in found {
            match self.rules.admits(facts, &self.place, address.ip()) {
                Ok(_) => admitted.push(address),
                Err(reason) => {
                    tracing::debug!(goal = %self.place, %address, %reason, "an address is left out");
                    last = reason;
                }
            }
        }
        if admitted.is_empty() {
            Err(last)
        } else {
            Ok(admitted)
        }
    }

    async fn ask(&self, proxy: &Upstream) -> Result<TcpStream, Reason> {
        let target = target(&self.place)?;
        let opened = tokio::time::timeout(PROXY_DEADLINE, proxy::open(proxy, &target)).await;
        let opened = opened.map_err(|_elapsed| Reason::TargetTimeout)?;
        opened.map_err(|error| {
            tracing::warn!(goal = %self.place, %proxy, err = %error, "a proxy did not open the way");
            match error {
                ProxyError::Refused { .. } => Reason::TargetRefused,
                ProxyError::Io { .. }
                | ProxyError::Login(_)
                | ProxyError::Protocol(_)
                | ProxyError::TooLong(_) => Reason::TargetUnreachable,
            }
        })
    }
}

/// How long a proxy may take: it has to look up and dial what we would.
const PROXY_DEADLINE: Duration = Duration::from_secs(10);

/// The place as a proxy is told it.
fn target(place: &Destination) -> Result<HostPort, Reason> {
    let port = place.port();
    match (place.address(), place.name()) {
        (Some(address), _) => Ok(SocketAddr::new(address, port).into()),
        (None, Some(name)) => HostPort::named(&name.value, port).ok_or(Reason::TargetUnreachable),
        (None, None) => Err(Reason::Internal),
    }
}

async fn addresses(place: &Destination) -> Result<Vec<SocketAddr>, Reason> {
    direct::addresses(&target(place)?).await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sealock_core::fact::{Fact, Goal, Source};
    use sealock_core::identity::AgentId;
    use sealock_core::policy::{PolicyFile, RuleSet};
    use tokio::net::TcpListener;

    use super::*;

    fn rules(text: &str) -> Rules {
        let file = PolicyFile::parse(text, "test").expect("rules");
        Rules::Local(Arc::new(RuleSet::new(file.rules)))
    }

    async fn open(rules: &Rules, wanted: &str) -> Result<TcpStream, Reason> {
        let place: Destination = wanted.parse().expect(wanted);
        let facts = facts(place.clone());
        let outside = Outside {
            place,
            rules: rules.clone(),
            proxy: None,
        };
        outside.open(&facts).await
    }

    fn allow(destinations: &str) -> String {
        format!(
            "[[rule]]\nid = \"a\"\neffect = \"allow\"\ncallers = [\"*\"]\ndestinations = {destinations}\n"
        )
    }

    fn facts(destination: Destination) -> Facts {
        let caller: AgentId = AgentId {
            tenant: "local".parse().expect("a name"),
            name: "run".parse().expect("a name"),
        };
        Facts {
            tenant: caller.tenant.clone(),
            caller: Fact::new(caller, Source::Configured),
            certificate: None,
            goal: Goal::Destination(destination),
        }
    }

    // S24: the name is allowed, the address that it leads to is not.
    #[tokio::test]
    async fn a_name_that_leads_to_loopback_is_refused_until_loopback_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let port = listener.local_addr().expect("bound").port();
        let wanted = format!("localhost:{port}");
        let by_name = rules(&allow("[\"localhost\"]"));
        let refused = open(&by_name, &wanted).await;
        assert_eq!(refused.err(), Some(Reason::PolicyDenied));
        let named = rules(&allow("[\"localhost\", \"127.0.0.0/8\"]"));
        assert!(open(&named, &wanted).await.is_ok());
    }

    #[tokio::test]
    async fn a_denied_network_is_not_dialled_whatever_the_name() {
        let deny = "[[rule]]\nid = \"d\"\neffect = \"deny\"\ncallers = [\"*\"]\ndestinations = [\"127.0.0.0/8\"]\n";
        let rules = rules(&format!("{}{deny}", allow("[\"*\", \"127.0.0.1\"]")));
        for wanted in ["localhost:9", "127.0.0.1:9"] {
            let opened = open(&rules, wanted).await;
            assert_eq!(opened.err(), Some(Reason::PolicyDenied), "{wanted}");
        }
    }
}
