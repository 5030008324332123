//! A tenant's view: all that the tenant's nodes and the relays know of it, signed by the controller.
//!
//! A view is a sorted map of entries (`rule/…`, `service/…`, `agent/…`, `revoked/…`), each a JSON value, under a head
//! that holds the version and the digest of the whole map. Only the head is signed. So a delta needs no trust: the
//! receiver applies it and compares digests, and a relay or a disk that alters one byte is found out.
//! Deliberately absent: keys and signatures themselves (`sealock-net`), and time: callers say what `now` is.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::identity::AgentId;
use crate::name::{AgentName, GroupName, ServiceName, TenantName};
use crate::policy::Rule;

/// Counts the changes of a tenant's view; it only grows.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct ViewVersion(pub u64);

/// What the controller signs: which map of entries is the tenant's view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// The tenant that the view describes.
    pub tenant: TenantName,
    /// The view's version.
    pub version: ViewVersion,
    /// When the controller made it.
    pub issued_at: jiff::Timestamp,
    /// The SHA-256 over all entries, see [`Entries::digest`], in lower-case hex.
    pub digest: String,
}

impl Head {
    /// The bytes under the signature; the prefix keeps them apart from all else that the key may sign.
    ///
    /// # Panics
    /// Never: a head holds only text and numbers, which JSON can always express.
    #[must_use]
    pub fn signed_bytes(&self) -> Vec<u8> {
        let mut bytes = b"sealock view head v1\0".to_vec();
        bytes.extend(serde_json::to_vec(self).expect("a head is always expressible in JSON"));
        bytes
    }
}

/// The entries of a view, as they are stored, sent and signed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entries(BTreeMap<String, Vec<u8>>);

/// The difference between two versions of a view.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Delta {
    /// Entries that are new or changed.
    pub put: Vec<(String, Vec<u8>)>,
    /// Keys of entries that are gone.
    pub remove: Vec<String>,
}

impl Entries {
    /// Adds or replaces an entry.
    pub fn put(&mut self, key: String, value: Vec<u8>) {
        self.0.insert(key, value);
    }

    /// Adds a rule, a service, an agent or a revocation under its own key.
    ///
    /// # Panics
    /// Never: entries hold only text, numbers and lists, which JSON can always express.
    pub fn put_entry(&mut self, entry: &Entry) {
        let (key, value) = match entry {
            Entry::Rule(rule) => (format!("rule/{}", rule.id), serde_json::to_vec(rule)),
            Entry::Service(service) => (
                format!("service/{}", service.name),
                serde_json::to_vec(service),
            ),
            Entry::Agent(agent) => (format!("agent/{}", agent.name), serde_json::to_vec(agent)),
            Entry::Revoked(revoked) => (
                format!("revoked/{}", revoked.serial),
                serde_json::to_vec(revoked),
            ),
        };
        self.put(key, value.expect("an entry is always expressible in JSON"));
    }

    /// Every entry, in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_slice()))
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The SHA-256 over the entries in key order, each key and value behind its length (64 bit, big-endian).
    #[must_use]
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for (key, value) in &self.0 {
            for part in [key.as_bytes(), value] {
                hash.update((part.len() as u64).to_be_bytes());
                hash.update(part);
            }
        }
        data_encoding::HEXLOWER.encode(&hash.finalize())
    }

    /// What leads from `self` to `newer`.
    #[must_use]
    pub fn delta_to(&self, newer: &Self) -> Delta {
        let changed = |(key, value): &(&String, &Vec<u8>)| self.0.get(*key) != Some(*value);
        let put = newer
            .0
            .iter()
            .filter(changed)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let remove = self
            .0
            .keys()
            .filter(|key| !newer.0.contains_key(*key))
            .cloned()
            .collect();
        Delta { put, remove }
    }

    /// Takes a delta over; compare [`Self::digest`] with the signed head afterwards.
    pub fn apply(&mut self, delta: Delta) {
        for key in delta.remove {
            self.0.remove(&key);
        }
        self.0.extend(delta.put);
    }
}

/// One thing that a view tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A line of policy.
    Rule(Rule),
    /// A service and who may provide it.
    Service(Service),
    /// An agent and what rules may know of it.
    Agent(Agent),
    /// A certificate that is valid no more.
    Revoked(Revoked),
}

/// A service and the agents that may provide it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// The service's name in its tenant.
    pub name: ServiceName,
    /// The agents whose registration the controller accepted, whether they are connected or not.
    pub providers: BTreeSet<AgentName>,
    /// What the registrants said of it.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// An agent and what rules may know of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    /// The agent's name in its tenant.
    pub name: AgentName,
    /// The groups that an administrator put it in.
    #[serde(default)]
    pub groups: BTreeSet<GroupName>,
    /// The labels that its token gave it.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// A certificate that is valid no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// The agent that held it.
    pub agent: AgentName,
    /// The certificate's serial number, lower-case hex.
    pub serial: String,
    /// The SHA-256 of its SubjectPublicKeyInfo, lower-case hex: a re-signed copy is revoked with it.
    pub key_digest: String,
    /// When the certificate ends by itself, after which the entry is dropped.
    pub expires: jiff::Timestamp,
}

/// Why entries are not a view.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// The entries are not those that the head was signed for.
    #[error("the entries of version {} do not match the signed digest", version.0)]
    Digest {
        /// The version that the head claims.
        version: ViewVersion,
    },
    /// An entry of a known kind could not be read.
    #[error("the entry `{key}` cannot be read")]
    Entry {
        /// The entry's key.
        key: String,
        /// What was wrong.
        source: serde_json::Error,
    },
    /// An entry of a kind that this version does not know: it may hold a restriction, so the view is not used.
    #[error("the entry `{key}` is of a kind that this version does not know: upgrade this node")]
    UnknownKind {
        /// The entry's key.
        key: String,
    },
}

/// A tenant's view, read and ready for decisions.
#[derive(Debug, Clone)]
pub struct View {
    /// Which version of which tenant this is.
    pub head: Head,
    /// The lines of policy.
    pub rules: Vec<Rule>,
    services: BTreeMap<ServiceName, Service>,
    agents: BTreeMap<AgentName, Agent>,
    revoked_keys: BTreeMap<String, AgentName>,
    revoked_serials: BTreeMap<String, AgentName>,
}

impl View {
    /// Reads entries under a head whose signature the caller has verified.
    ///
    /// # Errors
    /// When the digest differs or any entry cannot be understood: a view is taken whole or not at all.
    pub fn read(head: Head, entries: &Entries) -> Result<Self, ViewError> {
        if entries.digest() != head.digest {
            return Err(ViewError::Digest {
                version: head.version,
            });
        }
        let mut view = Self {
            head,
            rules: Vec::new(),
            services: BTreeMap::new(),
            agents: BTreeMap::new(),
            revoked_keys: BTreeMap::new(),
            revoked_serials: BTreeMap::new(),
        };
        for (key, value) in entries.iter() {
            view.take(key, value)?;
        }
        Ok(view)
    }

    fn take(&mut self, key: &str, value: &[u8]) -> Result<(), ViewError> {
        let bad = |source| ViewError::Entry {
            key: key.to_owned(),
            source,
        };
        match key.split_once('/').map(|(kind, _)| kind) {
            Some("rule") => self.rules.push(serde_json::from_slice(value).map_err(bad)?),
            Some("service") => {
                let service: Service = serde_json::from_slice(value).map_err(bad)?;
                self.services.insert(service.name.clone(), service);
            }
            Some("agent") => {
                let agent: Agent = serde_json::from_slice(value).map_err(bad)?;
                self.agents.insert(agent.name.clone(), agent);
            }
            Some("revoked") => {
                let revoked: Revoked = serde_json::from_slice(value).map_err(bad)?;
                self.revoked_keys
                    .insert(revoked.key_digest, revoked.agent.clone());
                self.revoked_serials.insert(revoked.serial, revoked.agent);
            }
            Some(_) | None => {
                return Err(ViewError::UnknownKind {
                    key: key.to_owned(),
                });
            }
        }
        Ok(())
    }

    /// The service of this name, if the tenant has one.
    #[must_use]
    pub fn service(&self, name: &ServiceName) -> Option<&Service> {
        self.services.get(name)
    }

    /// Every service, in name order.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// The agent of this name, if the tenant has one.
    #[must_use]
    pub fn agent(&self, name: &AgentName) -> Option<&Agent> {
        self.agents.get(name)
    }

    /// Whether a certificate of this serial number (lower-case hex) or key digest (lower-case hex) was revoked.
    #[must_use]
    pub fn is_revoked(&self, serial: &str, key_digest: &str) -> bool {
        self.revoked_serials.contains_key(serial) || self.revoked_keys.contains_key(key_digest)
    }

    /// Whether the agent is of this tenant and still known to the controller.
    #[must_use]
    pub fn knows(&self, agent: &AgentId) -> bool {
        agent.tenant == self.head.tenant && self.agents.contains_key(&agent.name)
    }
}
