//! The relay's judgement: early and cheap, by the tenant's signed view alone.
//!
//! It keeps what nobody may open away from providers. It is not the last word: the provider judges again by its own
//! view and by the identity that the caller proves end to end.

use sealock_core::fact::Facts;
use sealock_core::identity::AgentId;
use sealock_core::name::AgentName;
use sealock_core::policy::RuleId;
use sealock_core::reason::Reason;
use sealock_flow::arrival::LegHead;
use sealock_flow::outlet::Way;
use sealock_flow::rule::{self, Judge};
use sealock_net::identity::PeerIdentity;
use sealock_net::views::ViewStore;

use crate::directory::Directory;
use crate::peers::Peers;

/// Judges by views, plans by who is connected.
#[derive(Debug, Clone)]
pub(crate) struct RelayJudge {
    pub(crate) views: ViewStore,
    pub(crate) directory: Directory,
    pub(crate) peers: Peers,
}

impl Judge for RelayJudge {
    fn judge(&self, facts: &Facts) -> Result<RuleId, Reason> {
        rule::by_view(&self.views, facts)
    }

    fn plan(&self, facts: &Facts, leg: Option<&LegHead>) -> Result<Vec<Way>, Reason> {
        let view = self.views.current(&facts.tenant)?;
        // A later leg is of use with the holder of the stream's other end only.
        let holder = leg.and_then(|leg| leg.provider.as_ref());
        let mut ways: Vec<Way> = self
            .directory
            .providers(&view, &facts.service.value, holder)
            .into_iter()
            .filter(|provider| holder.is_none_or(|holder| provider.agent.name == *holder))
            .map(Way::Provider)
            .collect();
        // Only for a caller of our own who vouched: what another relay passed on to us ends here.
        if leg.is_some_and(|leg| leg.vouched.is_some())
            && let Some(service) = view.service(&facts.service.value)
        {
            let wanted = service.providers.iter();
            let wanted = wanted.filter(|name| holder.is_none_or(|holder| *name == holder));
            let peers = self.peers.holders(&facts.tenant, wanted);
            ways.extend(peers.into_iter().map(Way::Peer));
        }
        let provides = |holder: &AgentName| {
            view.service(&facts.service.value)
                .is_some_and(|service| service.providers.contains(holder))
        };
        match holder {
            Some(holder) if !provides(holder) => Err(Reason::PolicyRevoked),
            _ if !ways.is_empty() => Ok(ways),
            // Nobody needs to wait for an agent that will not come back to its streams.
            Some(holder) if self.is_gone(facts, holder) => Err(Reason::PeerLost),
            Some(_) | None => Err(Reason::NoProvider),
        }
    }
}

impl RelayJudge {
    fn is_gone(&self, facts: &Facts, name: &AgentName) -> bool {
        self.directory.is_gone(&AgentId {
            tenant: facts.tenant.clone(),
            name: name.clone(),
        })
    }
}

/// Whether an agent may have a session: its tenant has a view, knows it, and has not revoked its certificate.
///
/// # Errors
/// The reason why not.
pub(crate) fn admits(
    views: &ViewStore,
    agent: &AgentId,
    peer: &PeerIdentity,
) -> Result<(), Reason> {
    // A view that is too old refuses opens, not sessions: the agent needs the session to get to the controller.
    let view = match views.current(&agent.tenant) {
        Ok(view) => view,
        Err(_no_view) => return Ok(()),
    };
    if view.is_revoked(&peer.serial, &peer.key_digest) {
        return Err(Reason::IdentityRevoked);
    }
    Ok(())
}
