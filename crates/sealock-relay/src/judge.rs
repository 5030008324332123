//! The relay's judgement: early and cheap, by the tenant's signed view alone.
//!
//! It keeps what nobody may open away from providers. It is not the last word: the provider judges again by its own
//! view and by the identity that the caller proves end to end.

use sealock_core::choice::{self, Asked, Candidate, Terms};
use sealock_core::fact::Facts;
use sealock_core::identity::AgentId;
use sealock_core::name::{AgentName, Region};
use sealock_core::policy::RuleId;
use sealock_core::reason::Reason;
use sealock_core::view::Service;
use sealock_flow::arrival::LegHead;
use sealock_flow::outlet::Way;
use sealock_flow::rule::Judge;
use sealock_flow::rules;
use sealock_net::identity::PeerIdentity;
use sealock_net::transport::conduit::Conduits;
use sealock_net::views::ViewStore;

use crate::directory::Directory;
use crate::peers::Peers;

/// Judges by views, plans by who is connected.
#[derive(Debug, Clone)]
pub(crate) struct RelayJudge {
    pub(crate) views: ViewStore,
    pub(crate) directory: Directory,
    pub(crate) conduits: Conduits,
    pub(crate) peers: Peers,
    /// Where this relay is.
    pub(crate) region: Option<Region>,
}

impl Judge for RelayJudge {
    fn judge(&self, facts: &Facts) -> Result<RuleId, Reason> {
        rules::by_view(&self.views, facts)
    }

    fn plan(&self, facts: &Facts, leg: Option<&LegHead>) -> Result<Vec<Way>, Reason> {
        let view = self.views.current(&facts.tenant)?;
        let service = view.service(facts.service()?);
        match (leg.and_then(LegHead::holder), service) {
            // A later leg is of use with the holder of the stream's other end only.
            (Some(holder), Some(service)) if service.providers.contains_key(holder) => {
                self.ways_back(&agent(facts, holder), leg)
            }
            (Some(_), _) => Err(Reason::PolicyRevoked),
            (None, Some(service)) => self.ways_to(service, facts, leg),
            (None, None) => Err(Reason::NoProvider),
        }
    }
}

fn agent(facts: &Facts, name: &AgentName) -> AgentId {
    AgentId {
        tenant: facts.tenant.clone(),
        name: name.clone(),
    }
}

/// Only for a caller of our own who vouched: what another relay passed on to us ends here.
fn may_pass_on(leg: Option<&LegHead>) -> bool {
    leg.is_some_and(|leg| leg.vouched.is_some())
}

/// A provider that can be reached from here.
struct Reached<'a> {
    name: &'a AgentName,
    terms: &'a Terms,
    is_taking: bool,
    is_beyond: bool,
    legs: usize,
    ways: Vec<Way>,
}

impl RelayJudge {
    /// The ways to the one who holds a stream's other end.
    fn ways_back(&self, holder: &AgentId, leg: Option<&LegHead>) -> Result<Vec<Way>, Reason> {
        let here = self
            .directory
            .holder(holder)
            .map(|provider| Way::Provider(provider.over_conduits(self.conduits.clone())));
        let mut ways: Vec<Way> = here.into_iter().collect();
        if may_pass_on(leg) {
            ways.extend(self.peers.holding(holder).into_iter().map(Way::Peer));
        }
        if !ways.is_empty() {
            Ok(ways)
        } else if self.directory.is_gone(holder) {
            // Nobody needs to wait for an agent that will not come back to its streams.
            Err(Reason::PeerLost)
        } else {
            Err(Reason::NoProvider)
        }
    }

    /// The ways to those who take new flows of the service, in the order in which to try them.
    fn ways_to(
        &self,
        service: &Service,
        facts: &Facts,
        leg: Option<&LegHead>,
    ) -> Result<Vec<Way>, Reason> {
        let providers = service.providers.iter();
        let reached: Vec<Reached<'_>> = providers
            .filter_map(|(name, terms)| self.reach((name, terms), service, facts, leg))
            .collect();
        let candidates: Vec<Candidate<'_>> = reached.iter().map(Reached::candidate).collect();
        // A relay's own place says little of callers that may be at another one next time.
        let ours = self.region.as_ref().filter(|_| !service.sticky);
        let asked = Asked {
            service: &service.name,
            caller: &facts.caller.value,
            region: leg.and_then(|leg| leg.region.as_ref()).or(ours),
            is_sticky: service.sticky,
            seed: rand::random(),
        };
        let mut order = choice::order(&asked, &candidates);
        let chosen = leg.and_then(LegHead::chosen);
        // Stable: only the one that the other relay chose is moved.
        order.sort_by_key(|at| Some(reached[*at].name) != chosen);
        let ways = order.into_iter().flat_map(|at| reached[at].ways.clone());
        let ways: Vec<Way> = ways.collect();
        if ways.is_empty() {
            return Err(Reason::NoProvider);
        }
        Ok(ways)
    }

    fn reach<'a>(
        &self,
        (name, terms): (&'a AgentName, &'a Terms),
        service: &Service,
        facts: &Facts,
        leg: Option<&LegHead>,
    ) -> Option<Reached<'a>> {
        let agent = agent(facts, name);
        let here = self.directory.provider(&agent, &service.name);
        let beyond = match &here {
            Some((_, true)) => Vec::new(),
            Some((_, false)) | None if !may_pass_on(leg) => Vec::new(),
            // It may have left our session for one with another relay.
            Some((_, false)) | None => self.peers.providing(&agent, &service.name),
        };
        if !beyond.is_empty() {
            return Some(Reached {
                name,
                terms,
                is_taking: true,
                is_beyond: true,
                legs: beyond.iter().map(|peer| peer.load.legs()).sum(),
                ways: beyond.into_iter().map(Way::Peer).collect(),
            });
        }
        here.map(|(provider, offers)| Reached {
            name,
            terms,
            is_taking: offers,
            is_beyond: false,
            legs: provider.load.legs(),
            ways: vec![Way::Provider(provider)],
        })
    }
}

impl Reached<'_> {
    fn candidate(&self) -> Candidate<'_> {
        Candidate {
            agent: self.name,
            terms: self.terms,
            is_taking: self.is_taking,
            is_beyond: self.is_beyond,
            legs: self.legs,
        }
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
