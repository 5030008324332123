//! A deployment whose certificates and views a test makes itself: relay and agents with the controller away for ever.
//!
//! What a controller would never issue can be issued here, and all that runs does so from what it finds on disk (F11).

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, SignatureScheme};
use sealock_agent::{AgentConfig, AgentHandle};
use sealock_core::address::HostPort;
use sealock_core::choice::Terms;
use sealock_core::identity::{AgentId, Role};
use sealock_core::view::{Agent, Entries, Entry, Head, Revoked, Service, ViewVersion};
use sealock_net::e2e::Call;
use sealock_net::files;
use sealock_net::identity::testing::{Leaf, TestCa};
use sealock_net::identity::{IdentityDir, IdentityStore, KeyPair, Svid};
use sealock_net::message;
use sealock_net::stream::MEMORY_LIMIT;
use sealock_net::task::Scope;
use sealock_net::tls::signed::SignedView;
use sealock_net::tls::{self, alpn};
use sealock_net::transport::{BiStream, ConnectError, Connection, Endpoint, Settings};
use sealock_proto::stream::Epoch;
use sealock_proto::wire::{Hello, Message, Open, PROTOCOL_VERSION, SessionKind, StreamId};
use sealock_relay::{OpenLimit, RelayConfig, RelayHandle};
use tempfile::TempDir;
use tokio::net::UdpSocket;

use crate::deployment::{DAY, READY};

/// An authority, the view of its one tenant, and the state of all who take part.
pub(crate) struct World {
    pub(crate) state: TempDir,
    pub(crate) ca: TestCa,
    pub(crate) entries: Entries,
}

pub(crate) const AGENTS: [&str; 4] = ["provider", "caller", "mallory", "second"];

impl World {
    /// Four agents, the service `echo` of `provider`, and everybody may open everything.
    pub(crate) fn new() -> Result<Self> {
        let _already = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let _already = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let mut world = Self {
            state: tempfile::tempdir()?,
            ca: TestCa::new("sealock"),
            entries: Entries::default(),
        };
        for name in AGENTS {
            world.entries.put_entry(&Entry::Agent(Agent {
                name: name.parse()?,
                groups: Default::default(),
                labels: BTreeMap::new(),
            }));
        }
        world.allow("starter", "*", "*");
        world.provide("echo", &["provider"])?;
        Ok(world)
    }

    pub(crate) fn allow(&mut self, id: &str, caller: &str, service: &str) {
        let rule = format!(
            r#"{{"id":"{id}","effect":"allow","callers":["{caller}"],"services":["{service}"],"actions":["open"]}}"#
        );
        self.entries.put(format!("rule/{id}"), rule.into_bytes());
    }

    pub(crate) fn forbid_everything(&mut self) {
        self.entries.apply(sealock_core::view::Delta {
            put: Vec::new(),
            remove: vec!["rule/starter".to_owned()],
        });
    }

    pub(crate) fn provide(&mut self, service: &str, providers: &[&str]) -> Result<()> {
        let usual: Vec<_> = providers
            .iter()
            .map(|name| (*name, Terms::default()))
            .collect();
        self.provide_on(service, &usual)
    }

    /// The same, each provider on terms of its own.
    pub(crate) fn provide_on(&mut self, service: &str, providers: &[(&str, Terms)]) -> Result<()> {
        let read = |(name, terms): &(&str, Terms)| Ok((name.parse()?, terms.clone()));
        let providers: Result<_> = providers.iter().map(read).collect();
        self.entries.put_entry(&Entry::Service(Service {
            name: service.parse()?,
            providers: providers?,
            labels: BTreeMap::new(),
            sticky: false,
        }));
        Ok(())
    }

    pub(crate) fn revoke(&mut self, agent: &str, svid: &Svid) -> Result<()> {
        self.entries.put_entry(&Entry::Revoked(Revoked {
            agent: agent.parse()?,
            serial: svid.leaf().serial.clone(),
            key_digest: svid.leaf().key_digest.clone(),
            expires: svid.leaf().not_after,
        }));
        Ok(())
    }

    /// The view as it stands, signed by the authority's signer.
    pub(crate) fn view(&self, version: u64, issued_at: jiff::Timestamp) -> Result<SignedView> {
        let head = Head {
            tenant: "default".parse()?,
            version: ViewVersion(version),
            issued_at,
            digest: self.entries.digest(),
        };
        Ok(SignedView {
            head: self.ca.view_signer().sign(head)?,
            entries: self.entries.clone(),
        })
    }

    fn keep_view(&self, dir: &Path) -> Result<()> {
        let views = dir.join("views");
        files::ensure_private_dir(&views)?;
        let view = serde_json::to_vec(&self.view(1, jiff::Timestamp::now())?)?;
        files::write_private(&views.join("default.json"), &view)?;
        Ok(())
    }

    /// The state directory of a node, with its identity and the view of this moment.
    pub(crate) fn dir(&self, name: &str, svid: &Svid) -> Result<PathBuf> {
        let path = self.state.path().join(name);
        let dir = IdentityDir::open(&path)?;
        dir.store_trust(&self.ca.trust())?;
        dir.store_svid(svid)?;
        self.keep_view(&path)?;
        Ok(path)
    }

    pub(crate) fn svid(&self, path: &str) -> Result<Svid> {
        let store = self.ca.identity(path);
        Ok(Svid::clone(&*store.current().context("an identity")?))
    }

    pub(crate) async fn relay(&self) -> Result<RelayHandle> {
        self.relay_with(RelayLimits::default()).await
    }

    pub(crate) async fn relay_with(&self, limits: RelayLimits) -> Result<RelayHandle> {
        Ok(sealock_relay::start(self.relay_config(limits)?).await?)
    }

    pub(crate) fn relay_config(&self, limits: RelayLimits) -> Result<RelayConfig> {
        let name = limits.name;
        let dir = self.dir(name, &self.svid(&format!("relay/{name}"))?)?;
        Ok(RelayConfig {
            dir,
            listen: limits.listen,
            advertise: Vec::new(),
            controller: limits.controller.unwrap_or_else(nobody),
            max_policy_age: limits.max_policy_age,
            max_sessions: 100,
            max_streams_per_session: limits.streams,
            open_limit: limits.opens,
            admin: None,
            region: None,
        })
    }

    pub(crate) fn agent_config(
        &self,
        name: &str,
        kind: SessionKind,
        relay: SocketAddr,
    ) -> Result<AgentConfig> {
        let dir = self.dir(name, &self.svid(&format!("default/agent/{name}"))?)?;
        Ok(AgentConfig {
            dir,
            relays: vec![HostPort::from(relay)],
            region: None,
            kind,
            ways: Default::default(),
            max_policy_age: DAY,
            stream_memory: MEMORY_LIMIT,
            bulk: Default::default(),
            socket: None,
            admin: None,
        })
    }

    pub(crate) async fn agent(
        &self,
        name: &str,
        kind: SessionKind,
        relay: SocketAddr,
    ) -> Result<AgentHandle> {
        let agent = sealock_agent::start(self.agent_config(name, kind, relay)?).await?;
        agent.ready(READY).await?;
        Ok(agent)
    }

    /// Who offers the service `echo`, and who only calls.
    pub(crate) async fn pair(&self, relay: SocketAddr) -> Result<(AgentHandle, AgentHandle)> {
        let provider = self.agent("provider", SessionKind::Full, relay).await?;
        let caller = self.agent("caller", SessionKind::CallerOnly, relay).await?;
        Ok((provider, caller))
    }

    /// A client of the relay that brings no certificate.
    pub(crate) fn without_certificate(&self, protocol: &[u8]) -> Arc<ClientConfig> {
        if protocol == alpn::JOIN {
            return tls::join_relay_client(self.ca.pin());
        }
        let mut config = self.session_client();
        config.alpn_protocols = vec![protocol.to_vec(), alpn::NONE.to_vec()];
        config.client_auth_cert_resolver = Arc::new(NoCertificate);
        Arc::new(config)
    }

    fn session_client(&self) -> ClientConfig {
        let identity = self.ca.identity("default/agent/caller");
        ClientConfig::clone(&tls::relay_client(&identity, &self.ca.trust_store()))
    }

    /// A client of the relay with exactly this certificate, sensible or not, of this authority or another.
    pub(crate) fn with_certificate(&self, ca: &TestCa, leaf: &Leaf) -> Result<Arc<ClientConfig>> {
        let key = KeyPair::generate()?;
        let chain = vec![ca.sign(leaf, &key)];
        self.with_chain(chain, &key)
    }

    fn with_chain(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: &KeyPair,
    ) -> Result<Arc<ClientConfig>> {
        let key = PrivateKeyDer::from_pem_slice(key.to_pem().expose().as_bytes())?;
        let key = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&key)?;
        let certified = rustls::sign::CertifiedKey::new(chain, key);
        let mut config = self.session_client();
        config.client_auth_cert_resolver =
            Arc::new(rustls::sign::SingleCertAndKey::from(certified));
        Ok(Arc::new(config))
    }

    /// A session's connection in the name of `name`, without a word said on it.
    pub(crate) async fn connect_as(&self, name: &str, relay: SocketAddr) -> Result<Raw> {
        let identity = self.ca.identity(&format!("default/agent/{name}"));
        self.connect_with(&identity, relay).await
    }

    pub(crate) async fn connect_with(
        &self,
        identity: &IdentityStore,
        relay: SocketAddr,
    ) -> Result<Raw> {
        let config = tls::relay_client(identity, &self.ca.trust_store());
        Ok(Raw::connect(relay, config).await?)
    }
}

#[derive(Debug)]
struct NoCertificate;

impl ResolvesClientCert for NoCertificate {
    fn resolve(
        &self,
        _roots: &[&[u8]],
        _schemes: &[SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// What a relay of a test allows.
pub(crate) struct RelayLimits {
    pub(crate) name: &'static str,
    pub(crate) listen: SocketAddr,
    pub(crate) streams: u32,
    pub(crate) opens: OpenLimit,
    pub(crate) max_policy_age: Duration,
    pub(crate) controller: Option<HostPort>,
}

impl Default for RelayLimits {
    fn default() -> Self {
        Self {
            name: "relay-1",
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            streams: 1_000,
            opens: OpenLimit::default(),
            max_policy_age: DAY,
            controller: None,
        }
    }
}

/// An address of this machine where nobody listens.
fn nobody() -> HostPort {
    HostPort::from(SocketAddr::from(([127, 0, 0, 1], 1)))
}

/// The purposes and name of an agent's certificate, to be made worse.
pub(crate) fn agent_leaf(uris: &[&str]) -> Leaf {
    Leaf::of(Role::Agent, uris)
}

/// A peer that says what the test wants it to say.
pub(crate) struct Raw {
    /// Kept, so that the connection is driven.
    _endpoint: Endpoint,
    pub(crate) connection: Connection,
}

impl Raw {
    pub(crate) async fn connect(
        relay: SocketAddr,
        config: Arc<ClientConfig>,
    ) -> Result<Self, ConnectError> {
        let endpoint = Endpoint::client(Settings::default()).map_err(|_| ConnectError::Endpoint)?;
        let deadline = tokio::time::Instant::now() + READY;
        let connection = endpoint.connect(relay, config, deadline).await?;
        Ok(Self {
            _endpoint: endpoint,
            connection,
        })
    }

    /// Says hello and hears the welcome.
    pub(crate) async fn greet(&self, kind: SessionKind, instance: [u8; 16]) -> Result<BiStream> {
        let mut control = self.connection.open_bi().await?;
        control.send.write(hello(kind, instance).encode()).await?;
        let answer = message::read(&mut control.recv).await?;
        anyhow::ensure!(matches!(answer, Message::Welcome(_)), "{answer:?}");
        Ok(control)
    }

    /// Opens a leg and hears what the relay or the provider says of it.
    pub(crate) async fn open(&self, service: &str) -> Result<(Message, BiStream)> {
        let mut leg = self.connection.open_bi().await?;
        leg.send.write(open(service)?.encode()).await?;
        Ok((message::read(&mut leg.recv).await?, leg))
    }
}

pub(crate) fn hello(kind: SessionKind, instance: [u8; 16]) -> Message {
    Message::Hello(Hello {
        protocol: PROTOCOL_VERSION,
        instance,
        kind,
        software: "test".to_owned(),
        voucher: None,
        region: None,
    })
}

pub(crate) fn open(service: &str) -> Result<Message> {
    Ok(Message::Open(Open {
        stream: StreamId(rand::random()),
        epoch: Epoch::FIRST,
        service: service.parse()?,
        provider: None,
        conduit: None,
    }))
}

/// A call of a service that these agents may answer, whatever their certificates.
pub(crate) fn call(service: &str, providers: &[&str]) -> Result<Call> {
    let id = |name: &&str| {
        let name = name.parse()?;
        let tenant = "default".parse()?;
        Ok(AgentId { tenant, name })
    };
    Ok(Call {
        stream: StreamId(rand::random()),
        service: service.parse()?,
        providers: providers.iter().map(id).collect::<Result<_>>()?,
        judge: Arc::new(|_| Ok(())),
        legs: None,
        instead_of: Vec::new(),
    })
}

/// Waits until `holds`, looking often; says what did not come.
pub(crate) async fn until(what: &str, deadline: Duration, holds: impl Fn() -> bool) -> Result<()> {
    let look = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(deadline, look)
        .await
        .with_context(|| format!("it never came to this: {what}"))
}

/// A way to a UDP address on which every packet takes this long, in either direction; lasts as long as the tasks.
pub(crate) async fn slow_way(
    tasks: &Scope,
    to: SocketAddr,
    one_way: Duration,
) -> Result<SocketAddr> {
    let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await?);
    let address = front.local_addr()?;
    let spawner = tasks.spawner();
    tasks.spawn("slow way", async move {
        let mut backs: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
        let mut packet = vec![0; 64 * 1024];
        while let Ok((length, from)) = front.recv_from(&mut packet).await {
            let back = match backs.get(&from) {
                Some(back) => Arc::clone(back),
                None => {
                    let Ok(back) = UdpSocket::bind("127.0.0.1:0").await else {
                        return;
                    };
                    let back = Arc::new(back);
                    backs.insert(from, Arc::clone(&back));
                    let (front, answers, spawn) =
                        (Arc::clone(&front), Arc::clone(&back), spawner.clone());
                    spawner.spawn("slow way back", async move {
                        let mut packet = vec![0; 64 * 1024];
                        while let Ok(length) = answers.recv(&mut packet).await {
                            let late = late(&front, from, &packet[..length], one_way);
                            spawn.spawn("on its way", late);
                        }
                    });
                    back
                }
            };
            let late = late(&back, to, &packet[..length], one_way);
            spawner.spawn("on its way", late);
        }
    });
    Ok(address)
}

fn late(
    socket: &Arc<UdpSocket>,
    to: SocketAddr,
    packet: &[u8],
    one_way: Duration,
) -> impl Future<Output = ()> + Send + use<> {
    let (socket, packet) = (Arc::clone(socket), packet.to_vec());
    let due = tokio::time::Instant::now() + one_way;
    async move {
        tokio::time::sleep_until(due).await;
        // A packet that is lost is what networks do.
        let _sent = socket.send_to(&packet, to).await;
    }
}
