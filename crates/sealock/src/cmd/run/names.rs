//! The names that a fenced program may know: those that its rules speak of, each at an address that stands for it alone.
//!
//! Whether a name exists shows when a flow to it opens, outside of the fence; nothing is asked of anybody before, so a
//! question carries nothing out.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::Context;
use sealock_core::destination::{Destination, Protocol};
use sealock_core::fact::{Fact, Source};
use sealock_core::host::HostName;
use sealock_core::name::ServiceName;
use sealock_core::policy::{Answer, DestinationPattern, Effect, Ports, RuleSet};
use sealock_net::capture::{DatagramReceiver, answer_names};
use sealock_net::dns::{Desk, Upstreams, serve_tcp};
use sealock_net::task::Scope;
use sealock_proto::dns::server::{Naming, Settings, World, ZONE};
use sealock_proto::dns::vip::Found;
use tokio::net::TcpListener;

/// The DNS of a program that may go by these rules.
pub(super) fn desk(rules: Arc<RuleSet>, scope: &Scope) -> anyhow::Result<Desk> {
    let settings = Settings {
        zone: ZONE.parse().context("the zone of services")?,
        naming: Naming::Synthetic,
        split: Vec::new(),
    };
    // Nobody to ask: what is no address is answered with a failure.
    let upstreams = Upstreams::new(Vec::new(), Vec::new(), scope.spawner());
    Ok(Desk::new(settings, Box::new(Alone { rules }), upstreams))
}

/// Serves the sockets that take questions, until the scope ends.
pub(super) fn serve(
    desk: &Desk,
    streams: Vec<OwnedFd>,
    datagrams: Vec<OwnedFd>,
    scope: &Scope,
) -> anyhow::Result<()> {
    for socket in streams {
        let listener = TcpListener::from_std(socket.into())?;
        let (desk, tasks) = (desk.clone(), scope.spawner());
        scope.spawn("names", async move {
            // The order is free: either ends it.
            tokio::select! {
                () = tasks.stopping() => {}
                () = serve_tcp(desk, listener, &tasks) => {}
            }
        });
    }
    for socket in datagrams {
        let socket = DatagramReceiver::new(socket)?;
        let (desk, tasks) = (desk.clone(), scope.spawner());
        scope.spawn("names", async move {
            // The order is free: either ends it.
            tokio::select! {
                () = tasks.stopping() => {}
                () = answer_names(socket, desk, &tasks) => {}
            }
        });
    }
    Ok(())
}

/// A machine without a tenant: no services, and the names of the rules.
struct Alone {
    rules: Arc<RuleSet>,
}

impl World for Alone {
    fn allows_service(&self, _name: &ServiceName) -> bool {
        false
    }

    fn find(&self, _name: &ServiceName) -> Found {
        Found::Nothing
    }

    fn service_at(&self, _address: IpAddr) -> Option<ServiceName> {
        None
    }

    fn allows_name(&self, name: &HostName) -> bool {
        let allows = self
            .rules
            .iter()
            .filter(|rule| rule.effect == Effect::Allow);
        allows
            .flat_map(|rule| &rule.destinations)
            .any(|pattern| speaks_of(pattern, name))
    }

    fn allows_address(&self, _name: &HostName, _address: IpAddr) -> bool {
        false // no upstream is asked, so none may say
    }
}

/// Whether a pattern speaks of a name, at whatever port.
fn speaks_of(pattern: &DestinationPattern, name: &HostName) -> bool {
    let DestinationPattern::Place(host, _ports) = pattern else {
        return false; // a kind that this version does not know
    };
    let anywhere = DestinationPattern::Place(host.clone(), Ports::ALL);
    let name = Fact::new(name.clone(), Source::Asked);
    let destination = Destination::named(Protocol::Tcp, name, 0);
    anywhere.matches(&destination, Effect::Allow) == Answer::Yes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_known_when_a_rule_speaks_of_it_at_any_port() {
        let check = |pattern: &str, name: &str| {
            let pattern = pattern.parse().expect("a pattern");
            speaks_of(&pattern, &name.parse().expect("a name"))
        };
        assert!(check("*.example.test:443", "api.example.test"));
        assert!(check("api.example.test", "api.example.test"));
        assert!(!check("*.example.test:443", "example.org"));
        assert!(!check("10.0.0.0/8", "api.example.test"));
    }
}
