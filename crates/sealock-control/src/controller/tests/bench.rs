//! A controller in this process, and nodes that join it over loopback TLS.

use super::*;

pub(super) const SOON: Duration = Duration::from_secs(5); // what a change may take to reach a node

pub(super) struct Running {
    pub(super) handle: ControllerHandle,
    pub(super) client: UnixClient,
    pub(super) config: Config,
    pub(super) scope: Scope,
    pub(super) _dir: Option<tempfile::TempDir>,
}

pub(super) fn config(dir: &Path) -> Config {
    Config {
        state_dir: dir.join("controller"),
        socket: dir.join("run/controller.sock"),
        listen: "127.0.0.1:0".parse().expect("an address"),
        advertise: vec!["controller.example:7444".parse().expect("an address")],
        trust_domain: "sealock".parse().expect("canonical"),
        name: "main".parse().expect("canonical"),
        tenant: "default".parse().expect("canonical"),
        starter: Starter::Open,
        audit_retention: SignedDuration::from_hours(24),
        token_ttl: SignedDuration::from_mins(15),
        certificate_ttl: SignedDuration::from_hours(1),
        recover_within: SignedDuration::from_hours(24),
        limits: Limits::default(),
        admin: None,
    }
}

pub(super) async fn started(change: impl FnOnce(&mut Config)) -> Running {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut config = config(dir.path());
    change(&mut config);
    let mut running = again(config).await;
    running._dir = Some(dir);
    running
}

pub(super) async fn again(config: Config) -> Running {
    let scope = Scope::new("test-controller");
    let handle = start(config.clone(), &scope).await.expect("it starts");
    Running {
        handle,
        client: UnixClient::new(&config.socket),
        config,
        scope,
        _dir: None,
    }
}

/// A node that has joined.
pub(super) struct Member {
    pub(super) client: NodeClient,
    pub(super) svid: Svid,
    pub(super) trust: Trust,
}

impl Running {
    pub(super) fn shared(&self) -> &Shared {
        &self.handle.admin.shared
    }

    pub(super) fn connect(&self, tls: Arc<rustls::ClientConfig>) -> NodeClient {
        let address = self.handle.listen();
        NodeClient::new(tls, move || TcpStream::connect(address))
    }

    pub(super) async fn token(&self, request: CreateRequest) -> JoinToken {
        let addresses = vec!["relay.example:7443".parse().expect("an address")];
        let request = CreateRequest {
            addresses,
            ..request
        };
        let created = self.handle.create_token(request).await.expect("created");
        created.text.parse().expect("a token")
    }

    pub(super) async fn enrol(
        &self,
        token: &JoinToken,
        name: &str,
        role: Role,
    ) -> Result<(Issued, Arc<KeyPair>), CallError> {
        let key = Arc::new(KeyPair::generate().expect("randomness"));
        let enrol = Enrol {
            secret: token.secret.clone(),
            csr: key.request_der().expect("signed"),
            naming: Naming {
                asked: Some(name.to_owned()),
                own: None,
            },
            role,
            addresses: Vec::new(),
        };
        let client = self.connect(enrol_client(token.pin));
        Ok((client.enrol(&enrol).await?, key))
    }

    pub(super) fn member(&self, issued: Issued, key: Arc<KeyPair>) -> Member {
        let svid = Svid::new(issued.chain, key).expect("a pair");
        let identity = IdentityStore::new(svid.clone());
        let trust = TrustStore::new(issued.trust.clone());
        let client = self.connect(controller_client(&identity, &trust));
        Member {
            client,
            svid,
            trust: issued.trust,
        }
    }

    pub(super) async fn join(&self, name: &str) -> Member {
        let token = self.token(CreateRequest::default()).await;
        let (issued, key) = self.enrol(&token, name, Role::Agent).await.expect("joins");
        self.member(issued, key)
    }

    pub(super) async fn join_relay(&self, name: &str) -> Member {
        let request = CreateRequest {
            role: Role::Relay,
            ..CreateRequest::default()
        };
        let token = self.token(request).await;
        let (issued, key) = self.enrol(&token, name, Role::Relay).await.expect("joins");
        self.member(issued, key)
    }

    pub(super) async fn stop(self) -> (Config, Option<tempfile::TempDir>) {
        self.scope.shutdown(SOON).await;
        (self.config, self._dir)
    }
}

/// What a watcher holds, kept as a node keeps it.
#[derive(Default)]
pub(super) struct Held(pub(super) BTreeMap<TenantName, (SignedHead, Entries)>);

impl Held {
    pub(super) fn take(&mut self, event: WatchEvent) -> &'static str {
        match event {
            WatchEvent::Full { head, entries } => {
                self.0.insert(head.head.tenant.clone(), (head, entries));
                "full"
            }
            WatchEvent::Delta { head, from, delta } => {
                let held = self.0.get_mut(&head.head.tenant).expect("known before");
                assert_eq!(held.0.head.version, from);
                held.1.apply(delta);
                held.0 = head;
                "delta"
            }
            WatchEvent::Trust(_) => "trust",
            WatchEvent::Relays(_) => "relays",
        }
    }

    pub(super) fn view(&self, tenant: &str, trust: &Trust) -> View {
        let (head, entries) = &self.0[&tenant.parse::<TenantName>().expect("canonical")];
        let signed = SignedView {
            head: head.clone(),
            entries: entries.clone(),
        };
        let day = Duration::from_secs(86_400);
        signed
            .verify(trust, Timestamp::now(), day)
            .expect("signed by the controller")
    }
}

pub(super) async fn until(
    watch: &mut Watch,
    held: &mut Held,
    trust: &Trust,
    holds: impl Fn(&View) -> bool,
) -> Vec<&'static str> {
    let mut kinds = Vec::new();
    let seen = async {
        loop {
            kinds.push(held.take(watch.next().await.expect("an event")));
            if !held.0.is_empty() && holds(&held.view("default", trust)) {
                return;
            }
        }
    };
    timeout(SOON, seen).await.expect("within five seconds");
    kinds
}

pub(super) fn services(names: &[&str]) -> BTreeMap<ServiceName, Offering> {
    let service = |name: &&str| (name.parse().expect("canonical"), Offering::default());
    names.iter().map(service).collect()
}

pub(super) fn service(name: &str) -> ServiceName {
    name.parse().expect("canonical")
}

pub(super) fn agent(name: &str) -> AgentId {
    AgentId {
        tenant: "default".parse().expect("canonical"),
        name: name.parse().expect("canonical"),
    }
}
