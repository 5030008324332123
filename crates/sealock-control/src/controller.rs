//! The controller as a running role: what starts in which order, and what is looked after while it runs.

use std::fs::{File, OpenOptions, TryLockError};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use jiff::{SignedDuration, Timestamp};
use prometheus_client::registry::Registry;
use rustls_pki_types::UnixTime;
use sealock_core::address::HostPort;
use sealock_core::api::ApiError;
use sealock_core::api::token::{Create, CreateRequest, CreateResponse};
use sealock_core::identity::{Principal, Role, SpiffeId};
use sealock_core::name::{NodeName, TenantName, TrustDomain};
use sealock_core::policy::Rule;
use sealock_core::token::CaPin;
use sealock_net::admin as admin_pages;
use sealock_net::files;
use sealock_net::identity::{IdentityDir, IdentityStore, KeyPair, Svid, Trust, TrustStore};
use sealock_net::task::{Scope, Spawner};
use sealock_net::tls::controller_listener;
use sealock_net::tls::signed::ViewSigner;
use sealock_net::tls::verify::{Expect, Purpose, SpiffeVerifier};
use sealock_net::unix::{PrivateListener, serve_json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::admin::{Actor, Admin, invoke};
use crate::meter::Meter;
use crate::node::{self, LEASE, Limits, NodeService, Shared};
use crate::pki::{Authority, Csr, Profile, SIGNER_LIFETIME, has_root_keys};
use crate::store::sqlite::{IfMissing, SqliteStore};
use crate::store::{Act, Keep, Store};
use crate::views::Views;

const TIDY: Duration = Duration::from_secs(60); // what has ended leaves the views within a minute
const RETRY: Duration = Duration::from_secs(10);

/// Whether a new tenant begins with a rule that lets its agents open its services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Starter {
    /// The rule `starter` is there at the first start; it can be removed like any other.
    Open,
    /// Nothing is allowed until somebody says so.
    Closed,
}

/// What the controller needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where keys and database lie; private to this user.
    pub state_dir: PathBuf,
    /// The socket of the administrators' interface.
    pub socket: PathBuf,
    /// Where nodes come in.
    pub listen: SocketAddr,
    /// Where relays elsewhere reach this controller; for their join tokens.
    pub advertise: Vec<HostPort>,
    /// The trust domain of all identities.
    pub trust_domain: TrustDomain,
    /// This controller's name.
    pub name: NodeName,
    /// The tenant that there is from the first start on.
    pub tenant: TenantName,
    /// What that tenant's agents may do at first.
    pub starter: Starter,
    /// How long audit rows are kept.
    pub audit_retention: SignedDuration,
    /// How long a join token waits when its maker does not say.
    pub token_ttl: SignedDuration,
    /// How long the certificates of nodes live.
    pub certificate_ttl: SignedDuration,
    /// How long after its certificate ended a node may come back without a new token.
    pub recover_within: SignedDuration,
    /// What sources without a certificate may do.
    pub limits: Limits,
    /// Where metrics and health are served.
    pub admin: Option<SocketAddr>,
}

/// A running controller, for the process that runs it.
#[derive(Debug, Clone)]
pub struct ControllerHandle {
    admin: Arc<Admin>,
}

impl ControllerHandle {
    /// Where nodes come in; the port is the real one.
    #[must_use]
    pub fn listen(&self) -> SocketAddr {
        self.admin.listen
    }

    /// What join tokens pin.
    #[must_use]
    pub fn pin(&self) -> CaPin {
        self.admin.shared.authority.pin()
    }

    /// The roots of the deployment.
    #[must_use]
    pub fn trust(&self) -> &Trust {
        self.admin.shared.authority.trust()
    }

    /// Makes a join token, as `sealock token create` does.
    ///
    /// # Errors
    /// When there is no address that the node could go to, or the store fails.
    ///
    /// # Cancel safety
    /// A token that nobody got may be left; it ends by itself.
    pub async fn create_token(&self, request: CreateRequest) -> Result<CreateResponse, ApiError> {
        invoke::<Create>(&self.admin, &Actor::own(), request).await
    }
}

/// Runs the controller until the scope is asked to stop.
///
/// # Errors
/// When it cannot start.
pub async fn run(config: Config, scope: &Scope) -> anyhow::Result<()> {
    start(config, scope).await?;
    scope.stopping().await;
    Ok(())
}

/// Starts the controller's tasks in `scope`; when this returns, nodes and administrators can come.
///
/// # Errors
/// When its state is damaged, belongs to another deployment, or an address is taken.
///
/// # Cancel safety
/// Tasks that were started end with the scope.
pub async fn start(config: Config, scope: &Scope) -> anyhow::Result<ControllerHandle> {
    let now: fn() -> Timestamp = Timestamp::now;
    files::ensure_private_dir(&config.state_dir).context("preparing the state directory")?;
    let socket = PrivateListener::bind(&config.socket).context("opening the control socket")?;
    let lock = lock_state(&config.state_dir)?;
    let store = open_store(&config).await?;
    let authority = Authority::open(&config.state_dir, &*store, &config.trust_domain, now())
        .await
        .context("opening the certificate authority")?
        .with_leaf_lifetime(config.certificate_ttl);
    add_first_tenant(&config, &*store, now()).await?;
    let lease = now().saturating_add(LEASE)?;
    store
        .extend_leases(lease)
        .await
        .context("extending leases")?;
    let own = Own {
        principal: Principal::Controller(config.name.clone()),
        store: Arc::clone(&store),
        authority: authority.clone(),
    };
    let signer_dir = config.state_dir.join("signer");
    let signer = own.signer(&signer_dir, now()).await?;
    let views = Views::open(Arc::clone(&store), signer, now()).await;
    let views = views.context("building the views")?;
    let identity = IdentityStore::new(own.svid(Profile::Role, now()).await?);
    let trust = TrustStore::new(authority.trust().clone());
    let listener = TcpListener::bind(config.listen).await;
    let listener = listener.with_context(|| {
        let hint = "is another controller running? set [controller] listen to another address";
        format!("listening at TCP {}; hint: {hint}", config.listen)
    })?;
    let listen = listener
        .local_addr()
        .context("asking for the own address")?;
    let recover_within = config.recover_within;
    let shared = Shared::new(store, authority, Arc::clone(&views), now, recover_within);
    let admin = Arc::new(Admin {
        shared: Arc::clone(&shared),
        name: config.name.clone(),
        listen,
        advertise: config.advertise.clone(),
        token_ttl: config.token_ttl,
        started: now(),
    });
    let spawner = scope.spawner();
    scope.spawn("views", Arc::clone(&views).run(spawner.clone(), now));
    let keeper = Keeper {
        own,
        identity: identity.clone(),
        signer_dir,
        shared: Arc::clone(&shared),
        audit_retention: config.audit_retention,
        _lock: lock,
    };
    scope.spawn("keeper", keeper.run(spawner.clone()));
    let service = NodeService::new(shared, config.limits, spawner.clone());
    let tls = TlsAcceptor::from(controller_listener(&identity, &trust));
    let mut registry = Registry::with_prefix("sealock_controller");
    let meter = Meter::registered(&mut registry, &views);
    scope.spawn("nodes", node::serve(listener, tls, service, meter, spawner));
    if let Some(address) = config.admin {
        // What this function has done by now is all that there is to be ready for.
        let readiness = Arc::new(Vec::new);
        admin_pages::serve(address, registry, readiness, &scope.spawner()).await?;
    }
    serve_json(socket, admin.routes().into_router(), scope);
    tracing::info!(%listen, "the controller is ready");
    Ok(ControllerHandle { admin })
}

/// Two controllers over one state would each sign views that the other does not know.
fn lock_state(dir: &Path) -> anyhow::Result<File> {
    let mut open = OpenOptions::new();
    let lock = open.create(true).truncate(false).write(true).mode(0o600);
    let lock = lock
        .open(dir.join("lock"))
        .context("opening the lock of the state directory")?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            anyhow::bail!(
                "{} is in use by a running controller; hint: stop it first",
                dir.display()
            )
        }
        Err(TryLockError::Error(error)) => Err(error).context("locking the state directory"),
    }
}

async fn open_store(config: &Config) -> anyhow::Result<Arc<dyn Store>> {
    let path = config.state_dir.join("db.sqlite");
    let if_missing = if has_root_keys(&config.state_dir) {
        IfMissing::Refuse
    } else {
        IfMissing::Create
    };
    let store = SqliteStore::open(&path, if_missing).await;
    Ok(Arc::new(store.context("opening the database")?))
}

async fn add_first_tenant(
    config: &Config,
    store: &dyn Store,
    now: Timestamp,
) -> anyhow::Result<()> {
    let rules = match config.starter {
        Starter::Open => vec![starter_rule()?],
        Starter::Closed => Vec::new(),
    };
    let act = Act::done(now, "controller", "tenant.add", &config.tenant);
    let added = store.add_tenant(&config.tenant, &rules, &act).await;
    added.context("making the first tenant")?;
    Ok(())
}

/// Every agent of the tenant may open every service of it; providing a name of another agent stays forbidden.
fn starter_rule() -> anyhow::Result<Rule> {
    let rule = serde_json::json!({
        "id": "starter", "effect": "allow", "callers": ["*"], "services": ["*"], "actions": ["open"],
    });
    serde_json::from_value(rule).context("making the starter rule")
}

/// Certificates of this process itself.
#[derive(Debug)]
struct Own {
    principal: Principal,
    store: Arc<dyn Store>,
    authority: Authority,
}

impl Own {
    async fn svid(&self, profile: Profile, now: Timestamp) -> anyhow::Result<Svid> {
        let key = KeyPair::generate().context("making a key")?;
        let csr = Csr::read(&key.request_der().context("signing a request")?)?;
        let id = SpiffeId {
            trust_domain: self.authority.trust().trust_domain.clone(),
            principal: self.principal.clone(),
        };
        let issue = |_: &Principal| self.authority.issue(&id, &csr, profile, now);
        let issued = self.store.issue_own(&self.principal, now, &issue).await;
        let chain = issued
            .context("issuing the controller's certificate")?
            .chain;
        let chain = chain.into_iter().map(Into::into).collect();
        Svid::new(chain, Arc::new(key)).context("using the controller's certificate")
    }

    /// The signer that lies on disk, or a new one when it is missing or half of its life is over.
    async fn signer(&self, dir: &Path, now: Timestamp) -> anyhow::Result<ViewSigner> {
        let dir = IdentityDir::open(dir).context("opening the signer's directory")?;
        let kept = dir.load_svid().context("reading the view signer")?;
        let kept = kept.filter(|svid| {
            let left = svid.leaf().not_after.duration_since(now);
            left > SIGNER_LIFETIME / 2
                && svid.id().principal == self.principal
                && self.is_believed(svid)
        });
        let svid = match kept {
            Some(svid) => svid,
            None => {
                let svid = self.svid(Profile::ViewSigner, now).await?;
                dir.store_svid(&svid).context("keeping the view signer")?;
                svid
            }
        };
        ViewSigner::from_svid(&svid).context("using the view signer")
    }

    /// Whether nodes believe what this signs: no more when the root that it is of was revoked.
    fn is_believed(&self, signer: &Svid) -> bool {
        let trust = TrustStore::new(self.authority.trust().clone());
        let expect = Expect::role(Role::Controller, Purpose::ViewSigner);
        let verifier = SpiffeVerifier::new(&trust, expect);
        let chain = signer.chain().split_first();
        chain.is_some_and(|(leaf, others)| verifier.verify(leaf, others, UnixTime::now()).is_ok())
    }
}

/// Renews what ends and drops what has ended.
#[derive(Debug)]
struct Keeper {
    own: Own,
    identity: IdentityStore,
    signer_dir: PathBuf,
    shared: Arc<Shared>,
    audit_retention: SignedDuration,
    _lock: File, // held for as long as the controller runs
}

impl Keeper {
    async fn run(self, spawner: Spawner) {
        let mut renew_at = self.half_life();
        let mut pause = self.beat();
        loop {
            tokio::select! {
                biased; // a stopping controller begins nothing
                () = spawner.stopping() => return,
                () = tokio::time::sleep(pause) => {}
            }
            let now = (self.shared.now)();
            if let Err(err) = self.tidy(now).await {
                tracing::warn!(%err, "what has ended could not be dropped");
            }
            pause = self.beat();
            if now < renew_at {
                continue;
            }
            match self.renew(now).await {
                Ok(()) => renew_at = self.half_life(),
                Err(err) => {
                    tracing::error!(
                        err = format!("{err:#}"),
                        "the controller's certificate could not be renewed"
                    );
                    pause = RETRY;
                }
            }
        }
    }

    fn half_life(&self) -> Timestamp {
        let left = self.own.authority.leaf_lifetime() / 2;
        let now = (self.shared.now)();
        now.saturating_add(left).unwrap_or(now)
    }

    /// Short certificates, as tests and laboratories use them, need a shorter beat.
    fn beat(&self) -> Duration {
        let quarter = self.own.authority.leaf_lifetime() / 4;
        quarter
            .unsigned_abs()
            .clamp(Duration::from_millis(100), TIDY)
    }

    async fn renew(&self, now: Timestamp) -> anyhow::Result<()> {
        self.identity.set(self.own.svid(Profile::Role, now).await?);
        let signer = self.own.signer(&self.signer_dir, now).await?;
        self.shared.views.set_signer(signer);
        Ok(())
    }

    async fn tidy(&self, now: Timestamp) -> Result<(), crate::store::StoreError> {
        let before = |span| now.saturating_sub(span).unwrap_or(now);
        let keep = Keep {
            audit_from: before(self.audit_retention),
            recoverable_from: before(self.shared.recover_within),
        };
        self.shared.store.tidy(now, keep).await?;
        self.shared.views.poke();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
