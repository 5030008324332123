//! Who somebody is: SPIFFE identities, one form per role.
//!
//! `spiffe://<trust-domain>/<tenant>/agent/<name>`, `…/<tenant>/user/<name>`, `…/relay/<id>`, `…/controller/<id>`
//! (SPIFFE-ID specification §2). The role is part of the path, so a certificate of one role can never be taken for
//! another, and every boundary asks for the role it expects.
//! Parsing is strict: one canonical spelling, no percent-encoding, no query, no port. Deliberately absent: X.509.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::name::{AgentName, NodeName, TenantName, TrustDomain, UserName};

/// An agent of a tenant: the identity that rules and audit rows speak of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AgentId {
    /// The tenant that the agent belongs to.
    pub tenant: TenantName,
    /// The agent's name in its tenant.
    pub name: AgentName,
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, self.name)
    }
}

/// What a node or a person is within a trust domain.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Principal {
    /// A program beside a workload.
    Agent(AgentId),
    /// A person whom a gateway vouches for; never the subject of a certificate.
    User {
        /// The tenant that the user belongs to.
        tenant: TenantName,
        /// The user's name in the tenant.
        name: UserName,
    },
    /// A meeting point of agents.
    Relay(NodeName),
    /// The holder of identity, registry and policy.
    Controller(NodeName),
}

/// The part that a certificate's holder may play.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A program beside a workload.
    Agent,
    /// A person, vouched for by a gateway.
    User,
    /// A meeting point of agents.
    Relay,
    /// The holder of identity, registry and policy.
    Controller,
}

impl Role {
    /// The role's word in a SPIFFE path, in tokens and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::User => "user",
            Self::Relay => "relay",
            Self::Controller => "controller",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        match text {
            "agent" => Ok(Self::Agent),
            "user" => Ok(Self::User),
            "relay" => Ok(Self::Relay),
            "controller" => Ok(Self::Controller),
            _ => Err(IdentityError::UnknownRole),
        }
    }
}

impl Principal {
    /// The role that this principal plays.
    #[must_use]
    pub fn role(&self) -> Role {
        match self {
            Self::Agent(_) => Role::Agent,
            Self::User { .. } => Role::User,
            Self::Relay(_) => Role::Relay,
            Self::Controller(_) => Role::Controller,
        }
    }

    /// The agent, when this principal is one.
    #[must_use]
    pub fn as_agent(&self) -> Option<&AgentId> {
        match self {
            Self::Agent(agent) => Some(agent),
            Self::User { .. } | Self::Relay(_) | Self::Controller(_) => None,
        }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent(AgentId { tenant, name }) => write!(f, "{tenant}/agent/{name}"),
            Self::User { tenant, name } => write!(f, "{tenant}/user/{name}"),
            Self::Relay(name) => write!(f, "relay/{name}"),
            Self::Controller(name) => write!(f, "controller/{name}"),
        }
    }
}

/// A principal in its trust domain, as a certificate's URI SAN names it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    /// The deployment that issued the identity.
    pub trust_domain: TrustDomain,
    /// Who it is in that deployment.
    pub principal: Principal,
}

/// Why a text is not an identity of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Over 512 bytes; our longest legal id is shorter.
    #[error("the identity is longer than 512 bytes")]
    TooLong,
    /// Not `spiffe://`.
    #[error("the identity does not begin with spiffe://")]
    Scheme,
    /// The trust domain is not canonical.
    #[error("the identity's trust domain is not a lower-case host name")]
    TrustDomain,
    /// The path is none of the forms of the roles.
    #[error(
        "the identity's path is not one of <tenant>/agent/<name>, <tenant>/user/<name>, relay/<id>, controller/<id>"
    )]
    Path,
    /// The role's word is unknown.
    #[error("the role is none of agent, user, relay, controller")]
    UnknownRole,
}

const ID_LIMIT: usize = 512;

impl FromStr for SpiffeId {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        if text.len() > ID_LIMIT {
            return Err(IdentityError::TooLong);
        }
        let rest = text
            .strip_prefix("spiffe://")
            .ok_or(IdentityError::Scheme)?;
        let (domain, path) = rest.split_once('/').ok_or(IdentityError::Path)?;
        let trust_domain = domain.parse().map_err(|_| IdentityError::TrustDomain)?;
        let segments: Vec<&str> = path.split('/').collect();
        let principal = match segments.as_slice() {
            ["relay", name] => Principal::Relay(segment(name)?),
            ["controller", name] => Principal::Controller(segment(name)?),
            [tenant, "agent", name] => Principal::Agent(AgentId {
                tenant: segment(tenant)?,
                name: segment(name)?,
            }),
            [tenant, "user", name] => Principal::User {
                tenant: segment(tenant)?,
                name: segment(name)?,
            },
            _ => return Err(IdentityError::Path),
        };
        Ok(Self {
            trust_domain,
            principal,
        })
    }
}

fn segment<T: FromStr>(text: &str) -> Result<T, IdentityError> {
    text.parse().map_err(|_| IdentityError::Path)
}

impl TryFrom<String> for SpiffeId {
    type Error = IdentityError;

    fn try_from(text: String) -> Result<Self, IdentityError> {
        text.parse()
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/{}", self.trust_domain, self.principal)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_round_trips_in_its_canonical_form() {
        for text in [
            "spiffe://corp.example/default/agent/laptop-1",
            "spiffe://corp.example/default/user/ana",
            "spiffe://sealock/relay/eu-1",
            "spiffe://sealock/controller/main",
        ] {
            let id: SpiffeId = text.parse().expect("canonical");
            assert_eq!(id.to_string(), text);
        }
    }

    // S09: every other spelling is refused, whichever part it is in.
    #[test]
    fn refuses_everything_that_is_not_canonical() {
        for text in [
            "",
            "spiffe://",
            "spiffe://td",
            "spiffe://td/",
            "https://td/t/agent/a",
            "SPIFFE://td/t/agent/a",
            "spiffe://TD/t/agent/a",
            "spiffe://td:443/t/agent/a",
            "spiffe://user@td/t/agent/a",
            "spiffe://td/t/Agent/a",
            "spiffe://td/t/agent/A",
            "spiffe://td/t/agent/a/",
            "spiffe://td/t//agent/a",
            "spiffe://td/t/agent/a/b",
            "spiffe://td/t/agent/..",
            "spiffe://td/t/agent/%61",
            "spiffe://td/t/agent/*",
            "spiffe://td/t/agent/a?x",
            "spiffe://td/t/agent/a#x",
            "spiffe://td/t/agent/a\0",
            "spiffe://td/t/agent/ä",
            "spiffe://td/agent/a",
            "spiffe://td/t/relay/a",
            "spiffe://td/relay/",
            &format!("spiffe://td/t/agent/{}", "a".repeat(2_000)),
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text:?}");
        }
    }
}
