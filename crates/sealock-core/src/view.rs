//! A tenant's view: all that the tenant's nodes and the relays know of it, signed by the controller.
//!
//! A view is a sorted map of entries (`rule/…`, `service/…`, `agent/…`, `revoked/…`), each a JSON value, under a head
//! that holds the version and the digest of the whole map. Only the head is signed. So a delta needs no trust: the
//! receiver applies it and compares digests, and a relay or a disk that alters one byte is found out.
//! Deliberately absent: keys and signatures themselves (`sealock-net`), and time: callers say what `now` is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::choice::Terms;
use crate::destination::Destination;
use crate::fact::Goal;
use crate::identity::AgentId;
use crate::name::{AgentName, GroupName, ServiceName, TenantName};
use crate::policy::{Action, Decision, Explanation, Question, Rule, RuleSet, Subject};

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
    pub issued_at: Timestamp,
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
        let value = match entry {
            Entry::Rule(rule) => serde_json::to_vec(rule),
            Entry::Service(service) => serde_json::to_vec(service),
            Entry::Agent(agent) => serde_json::to_vec(agent),
            Entry::Revoked(revoked) => serde_json::to_vec(revoked),
        };
        let value = value.expect("an entry is always expressible in JSON");
        self.put(entry.key(), value);
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

impl Entry {
    /// The key under which the entry lies.
    #[must_use]
    pub fn key(&self) -> String {
        match self {
            Self::Rule(rule) => format!("rule/{}", rule.id),
            Self::Service(service) => format!("service/{}", service.name),
            Self::Agent(agent) => format!("agent/{}", agent.name),
            Self::Revoked(revoked) => format!("revoked/{}", revoked.serial),
        }
    }

    /// Reads an entry, which must lie under its own key.
    fn read(key: &str, value: &[u8]) -> Result<Self, ViewError> {
        let key_text = || key.to_owned();
        let bad = |source| ViewError::Entry {
            key: key_text(),
            source,
        };
        let entry = match key.split_once('/').map(|(kind, _)| kind) {
            Some("rule") => serde_json::from_slice(value).map(Self::Rule),
            Some("service") => serde_json::from_slice(value).map(Self::Service),
            Some("agent") => serde_json::from_slice(value).map(Self::Agent),
            Some("revoked") => serde_json::from_slice(value).map(Self::Revoked),
            Some(_) | None => return Err(ViewError::UnknownKind { key: key_text() }),
        };
        let entry = entry.map_err(bad)?;
        if entry.key() == key {
            Ok(entry)
        } else {
            Err(ViewError::Misplaced { key: key_text() })
        }
    }
}

/// A service and the agents that may provide it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// The service's name in its tenant.
    pub name: ServiceName,
    /// The agents whose registration the controller accepted, whether they are connected or not, and how each wants to
    /// be chosen.
    pub providers: BTreeMap<AgentName, Terms>,
    /// What its owner said of it.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Whether a caller is to get the same provider each time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sticky: bool,
}

/// What an agent says of a service when it registers it. Labels and stickiness are the word of the service's owner alone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Offering {
    /// What rules may know of it.
    pub labels: BTreeMap<String, String>,
    /// How this provider wants to be chosen.
    pub terms: Terms,
    /// Whether a caller is to get the same provider each time.
    pub sticky: bool,
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
    pub expires: Timestamp,
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
    /// An entry that lies under the key of another.
    #[error("the entry `{key}` holds what belongs under another key")]
    Misplaced {
        /// The entry's key.
        key: String,
    },
    /// An entry of a kind that this version does not know: it may hold a restriction, so the view is not used.
    #[error("the entry `{key}` is of a kind that this version does not know: upgrade this node")]
    UnknownKind {
        /// The entry's key.
        key: String,
    },
}

/// What is asked of a view: may it be opened, or provided?
#[derive(Debug, Clone, Copy)]
pub enum Wanted<'a> {
    /// A service of the tenant.
    Service(&'a ServiceName),
    /// A place outside.
    Destination(&'a Destination),
}

impl<'a> From<&'a Goal> for Wanted<'a> {
    fn from(goal: &'a Goal) -> Self {
        match goal {
            Goal::Service(service) => Self::Service(&service.value),
            Goal::Destination(destination) => Self::Destination(destination),
        }
    }
}

/// A tenant's view, read and ready for decisions.
#[derive(Debug, Clone)]
pub struct View {
    /// Which version of which tenant this is.
    pub head: Head,
    rules: RuleSet,
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
        let mut rules = Vec::new();
        let mut view = Self {
            head,
            rules: RuleSet::default(),
            services: BTreeMap::new(),
            agents: BTreeMap::new(),
            revoked_keys: BTreeMap::new(),
            revoked_serials: BTreeMap::new(),
        };
        for (key, value) in entries.iter() {
            view.take(Entry::read(key, value)?, &mut rules);
        }
        view.rules = RuleSet::new(rules);
        Ok(view)
    }

    fn take(&mut self, entry: Entry, rules: &mut Vec<Rule>) {
        match entry {
            Entry::Rule(rule) => rules.push(rule),
            Entry::Service(service) => {
                self.services.insert(service.name.clone(), service);
            }
            Entry::Agent(agent) => {
                self.agents.insert(agent.name.clone(), agent);
            }
            Entry::Revoked(revoked) => {
                self.revoked_keys
                    .insert(revoked.key_digest, revoked.agent.clone());
                self.revoked_serials.insert(revoked.serial, revoked.agent);
            }
        }
    }

    /// Decides whether `caller` may do `action` to the service.
    ///
    /// Callers of another tenant and callers that the controller does not know are denied before any rule is asked. A
    /// service that does not exist is told apart from a forbidden one only to those whom a rule allows its name.
    #[must_use]
    pub fn judge(
        &self,
        caller: &AgentId,
        action: Action,
        wanted: Wanted<'_>,
        now: Timestamp,
    ) -> Decision {
        let question = match self.question(caller, action, wanted) {
            Ok(question) => question,
            Err(decision) => return decision,
        };
        self.tell(&question, self.rules.decide(&question, now))
    }

    /// Decides as [`Self::judge`] does, and tells of every rule that applied or came near.
    #[must_use]
    pub fn why(
        &self,
        caller: &AgentId,
        action: Action,
        wanted: Wanted<'_>,
        now: Timestamp,
    ) -> Explanation {
        match self.question(caller, action, wanted) {
            Ok(question) => {
                let mut explanation = self.rules.explain(&question, now);
                explanation.decision = self.tell(&question, explanation.decision);
                explanation
            }
            Err(decision) => Explanation {
                decision,
                rules: Vec::new(),
            },
        }
    }

    /// Decides whether an address that an allowed destination's name has may be dialled; see [`RuleSet::admits`].
    #[must_use]
    pub fn admits(
        &self,
        caller: &AgentId,
        destination: &Destination,
        address: IpAddr,
        now: Timestamp,
    ) -> Decision {
        match self.question(caller, Action::Open, Wanted::Destination(destination)) {
            Ok(question) => self.rules.admits(&question, address, now),
            Err(decision) => decision,
        }
    }

    /// The question with all that the view knows of its caller and service, or why it is not even asked.
    fn question<'a>(
        &'a self,
        caller: &'a AgentId,
        action: Action,
        wanted: Wanted<'a>,
    ) -> Result<Question<'a>, Decision> {
        if caller.tenant != self.head.tenant {
            return Err(Decision::ForeignCaller);
        }
        let Some(agent) = self.agents.get(&caller.name) else {
            return Err(Decision::UnknownCaller);
        };
        Ok(Question {
            caller,
            groups: &agent.groups,
            labels: &agent.labels,
            action,
            subject: match wanted {
                Wanted::Service(name) => Subject::Service {
                    name,
                    labels: self.services.get(name).map(|it| &it.labels),
                },
                Wanted::Destination(destination) => Subject::Destination(destination),
            },
        })
    }

    /// Nothing can be opened that is not there; a name that nobody provides yet can be provided.
    fn tell(&self, question: &Question<'_>, decision: Decision) -> Decision {
        let missing = match question.subject {
            Subject::Service { name, .. } => {
                question.action == Action::Open && !self.services.contains_key(name)
            }
            Subject::Destination(_) => false,
        };
        match decision {
            Decision::Allowed { rule } if missing => Decision::NoSuchService { rule },
            Decision::Allowed { .. }
            | Decision::Denied { .. }
            | Decision::NoRule
            | Decision::ForeignCaller
            | Decision::UnknownCaller
            | Decision::NoSuchService { .. } => decision,
        }
    }

    /// The lines of policy.
    #[must_use]
    pub fn rules(&self) -> &RuleSet {
        &self.rules
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reason::Reason;

    fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
        text.parse().expect("a name")
    }

    fn agent(text: &str) -> AgentId {
        let (tenant, agent) = text.split_once('/').expect("tenant/name");
        AgentId {
            tenant: name(tenant),
            name: name(agent),
        }
    }

    fn now() -> Timestamp {
        "2026-01-05T12:00:00Z".parse().expect("RFC 3339")
    }

    fn rule(id: &str, effect: &str, caller: &str, service: &str) -> Entry {
        let json = format!(
            r#"{{"id":"{id}","effect":"{effect}","callers":["{caller}"],"services":["{service}"],"actions":["open","provide"]}}"#
        );
        Entry::Rule(serde_json::from_str(&json).expect("a rule"))
    }

    fn entries() -> Entries {
        let mut entries = Entries::default();
        let known = |agent: &str, groups: &[&str]| {
            Entry::Agent(Agent {
                name: name(agent),
                groups: groups.iter().map(|it| name(it)).collect(),
                labels: BTreeMap::new(),
            })
        };
        let service = |service: &str, tier: &str| {
            Entry::Service(Service {
                name: name(service),
                providers: BTreeMap::from([(name("host"), Terms::default())]),
                sticky: false,
                labels: BTreeMap::from([("tier".to_owned(), tier.to_owned())]),
            })
        };
        for entry in [
            known("ana", &["ops"]),
            known("bob", &[]),
            known("carl", &["audit"]),
            service("web", "open"),
            service("vault", "secret"),
            rule("ops-all", "allow", "group:ops", "*"),
            rule("bob-web", "allow", "bob", "web*"),
            rule("carl-all", "allow", "carl", "*"),
            rule("carl-no-secrets", "deny", "carl", "label:tier=secret"),
            Entry::Revoked(Revoked {
                agent: name("eve"),
                serial: "0a".to_owned(),
                key_digest: "ff".to_owned(),
                expires: now(),
            }),
        ] {
            entries.put_entry(&entry);
        }
        entries
    }

    fn head(entries: &Entries) -> Head {
        Head {
            tenant: name("t"),
            version: ViewVersion(7),
            issued_at: now(),
            digest: entries.digest(),
        }
    }

    fn view() -> View {
        let entries = entries();
        View::read(head(&entries), &entries).expect("a good view")
    }

    #[test]
    fn one_altered_byte_is_found_out() {
        let entries = entries();
        let head = head(&entries);
        for (key, value) in entries.iter() {
            let mut altered = entries.clone();
            let mut bytes = value.to_vec();
            bytes[0] ^= 1;
            altered.put(key.to_owned(), bytes);
            let error = View::read(head.clone(), &altered).expect_err("altered");
            assert!(matches!(error, ViewError::Digest { .. }), "{error}");
        }
    }

    #[test]
    fn an_entry_of_an_unknown_kind_refuses_the_whole_view() {
        for key in ["quota/web", "rule", ""] {
            let mut entries = entries();
            entries.put(key.to_owned(), b"{}".to_vec());
            let error = View::read(head(&entries), &entries).expect_err("unknown");
            assert!(matches!(error, ViewError::UnknownKind { .. }), "{error}");
        }
    }

    #[test]
    fn an_entry_that_cannot_be_read_or_lies_elsewhere_refuses_the_whole_view() {
        let mut broken = entries();
        broken.put("rule/x".to_owned(), b"{\"id\":\"x\"}".to_vec());
        let error = View::read(head(&broken), &broken).expect_err("broken");
        assert!(matches!(error, ViewError::Entry { .. }), "{error}");

        let mut moved = entries();
        moved.put(
            "agent/eve".to_owned(),
            br#"{"name":"ana","groups":["ops"]}"#.to_vec(),
        );
        let error = View::read(head(&moved), &moved).expect_err("misplaced");
        assert!(matches!(error, ViewError::Misplaced { .. }), "{error}");
    }

    #[test]
    fn a_delta_leads_to_the_same_digest() {
        let (old, mut newer) = (entries(), entries());
        newer.put_entry(&rule("new", "deny", "*", "*"));
        newer.0.remove("agent/bob");
        let mut applied = old.clone();
        applied.apply(old.delta_to(&newer));
        assert_eq!(applied.digest(), newer.digest());
    }

    #[test]
    fn a_certificate_is_revoked_by_its_serial_or_its_key() {
        let view = view();
        for (serial, key, revoked) in [
            ("0a", "00", true),
            ("0b", "ff", true),
            ("0b", "00", false),
            ("ff", "0a", false),
        ] {
            assert_eq!(view.is_revoked(serial, key), revoked, "{serial} {key}");
        }
    }

    #[test]
    fn judges_with_what_it_knows_of_caller_and_service() {
        let view = view();
        for (caller, service, decision) in [
            ("t/ana", "vault", "allowed by rule `ops-all`"),
            ("t/bob", "web", "allowed by rule `bob-web`"),
            ("t/bob", "vault", "denied: no rule allows it"),
            ("t/carl", "vault", "denied by rule `carl-no-secrets`"),
            ("t/carl", "web", "allowed by rule `carl-all`"),
            ("t/eve", "web", "denied: the caller is not known"),
            (
                "u/ana",
                "web",
                "denied: the caller belongs to another tenant",
            ),
        ] {
            let judged = view.judge(
                &agent(caller),
                Action::Open,
                Wanted::Service(&name(service)),
                now(),
            );
            assert_eq!(judged.to_string(), decision, "{caller} {service}");
            let why = view.why(
                &agent(caller),
                Action::Open,
                Wanted::Service(&name(service)),
                now(),
            );
            assert_eq!(why.decision, judged);
        }
    }

    #[test]
    fn nobody_learns_whether_a_forbidden_service_exists() {
        let view = view();
        let reason = |caller: &str, service: &str| {
            view.judge(
                &agent(caller),
                Action::Open,
                Wanted::Service(&name(service)),
                now(),
            )
            .reason()
        };
        // `vault` exists, `nothing` does not.
        for caller in ["t/bob", "t/carl", "t/eve", "u/ana"] {
            assert_eq!(reason(caller, "vault"), Some(Reason::PolicyDenied));
            assert_eq!(reason(caller, "nothing"), Some(Reason::PolicyDenied));
        }
        assert_eq!(reason("t/ana", "nothing"), Some(Reason::NoSuchService));
        assert_eq!(reason("t/bob", "web2"), Some(Reason::NoSuchService));
    }

    #[test]
    fn a_name_that_nobody_provides_yet_can_be_provided() {
        let judged = view().judge(
            &agent("t/ana"),
            Action::Provide,
            Wanted::Service(&name("new")),
            now(),
        );
        assert!(judged.is_allowed(), "{judged}");
    }
}
