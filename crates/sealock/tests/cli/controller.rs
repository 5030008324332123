//! F10: a controller that is killed in the middle of its writes, as a process, again and again over one database.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sealock_core::api::policy::{Allow, List as Rules, ListRequest as RulesRequest};
use sealock_core::api::relay::{List as Relays, ListRequest};
use sealock_core::api::token::{Create, CreateRequest};
use sealock_core::api::{Method, audit};
use sealock_core::identity::Role;
use sealock_core::token::JoinToken;
use sealock_net::identity::{IdentityDir, IdentityStore, KeyPair, TrustStore};
use sealock_net::join::{self, Naming};
use sealock_net::node_api::NodeClient;
use sealock_net::tls;
use sealock_net::unix::UnixClient;
use tempfile::TempDir;

use crate::program::{Running, SOON, free_tcp, sealock};

/// What somebody was told is done, and what nobody was told about.
#[derive(Default)]
struct Told {
    rules: Vec<String>,
    joined: BTreeMap<String, PathBuf>,
    /// Tokens whose use was under way when the controller died, by the name of the relay.
    open: BTreeMap<String, JoinToken>,
}

struct Bench {
    dir: TempDir,
    listen: SocketAddr,
    told: Told,
}

impl Bench {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("a directory"),
            listen: free_tcp(),
            told: Told::default(),
        }
    }

    fn client(&self) -> UnixClient {
        UnixClient::new(self.dir.path().join("state/controller/admin.sock"))
    }

    async fn ask<M: Method>(&self, request: &M::Request) -> Option<M::Response> {
        self.client().call::<M>(request).await.ok()
    }

    /// Starts the controller and waits until it answers.
    async fn start(&self) -> Running {
        let listen = self.listen.to_string();
        let state = self.dir.path().join("state");
        let running = Running::spawn(sealock(&state, &["controller", "--listen", &listen]));
        let deadline = Instant::now() + SOON;
        while self.ask::<Relays>(&ListRequest {}).await.is_none() {
            assert!(
                Instant::now() < deadline,
                "it does not start: {}",
                running.errors()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        running
    }

    /// Writes without a pause until nobody answers any more.
    async fn write(&mut self, round: u32) {
        for number in 0.. {
            let id = format!("r{round}-{number}");
            let rule = serde_json::json!({"id": id, "callers": ["*"], "services": ["web"]});
            let rule = serde_json::from_value(rule).expect("a request");
            if self.ask::<Allow>(&rule).await.is_none() {
                return;
            }
            self.told.rules.push(id);
            if self.join(&format!("relay{round}-{number}")).await.is_none() {
                return;
            }
        }
    }

    async fn join(&mut self, name: &str) -> Option<()> {
        let request = CreateRequest {
            role: Role::Relay,
            addresses: vec![self.listen.into()],
            ..CreateRequest::default()
        };
        let created = self.ask::<Create>(&request).await?;
        let token: JoinToken = created.text.parse().expect("a token");
        let dir = self.dir.path().join(name);
        if redeem(&token, name, &dir).await {
            self.told.joined.insert(name.to_owned(), dir);
            return Some(());
        }
        self.told.open.insert(name.to_owned(), token);
        None
    }

    /// Everything that was confirmed is there, and nothing is there by half.
    async fn check(&mut self) {
        let everything = RulesRequest {
            tenant: sealock_core::api::default_tenant(),
        };
        let rules = self.ask::<Rules>(&everything).await.expect("listed");
        let rules: Vec<String> = rules
            .rules
            .iter()
            .map(|row| row.rule.id.to_string())
            .collect();
        for rule in &self.told.rules {
            assert!(
                rules.contains(rule),
                "rule {rule} was confirmed and is lost"
            );
        }
        let relays = self.ask::<Relays>(&ListRequest {}).await.expect("listed");
        let relays: Vec<String> = relays
            .relays
            .iter()
            .map(|row| row.name.to_string())
            .collect();
        for name in self.told.joined.keys() {
            assert!(relays.contains(name), "relay {name} has joined and is lost");
        }
        // The last one that joined has a certificate that the controller knows.
        if let Some(dir) = self.told.joined.values().next_back() {
            self.renews(dir).await;
        }
        for (name, token) in std::mem::take(&mut self.told.open) {
            let dir = self.dir.path().join(&name);
            let is_there = relays.contains(&name);
            let redeemed = redeem(&token, &name, &dir).await;
            assert_eq!(redeemed, !is_there, "{name}: a half enrolment");
            if redeemed {
                self.told.joined.insert(name, dir);
            }
        }
        for deployment in [false, true] {
            let request = audit::VerifyRequest {
                deployment,
                tenant: sealock_core::api::default_tenant(),
            };
            let report = self.ask::<audit::Verify>(&request).await.expect("answered");
            assert_eq!(report.broken_at, None, "the record is whole");
        }
    }

    async fn renews(&self, dir: &Path) {
        let dir = IdentityDir::open(dir).expect("a directory");
        let svid = dir.load_svid().expect("readable").expect("joined");
        let trust = dir.load_trust().expect("readable").expect("joined");
        let tls = tls::controller_client(&IdentityStore::new(svid), &TrustStore::new(trust));
        let listen = self.listen.into();
        let client = NodeClient::new(tls, move || join::dial_controller(Clone::clone(&listen)));
        let request = KeyPair::generate().and_then(|key| key.request_der());
        let renewed = client.renew(request.expect("signed")).await;
        renewed.expect("the certificate that was given stands");
    }
}

async fn redeem(token: &JoinToken, name: &str, dir: &Path) -> bool {
    let dir = IdentityDir::open(dir).expect("a directory");
    let naming = Naming {
        asked: Some(name.to_owned()),
        own: None,
    };
    join::join_relay(token, naming, Vec::new(), &dir)
        .await
        .is_ok()
}

/// The longest that a controller may write before it is killed.
const LIFE: Duration = Duration::from_millis(150);

/// Kills a controller so many times at random points of its writes.
pub(crate) async fn survives_kills(rounds: u32) {
    let _already = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut bench = Bench::new();
    let mut written = 0;
    for round in 0..rounds {
        let running = bench.start().await;
        bench.check().await;
        let life = LIFE.mul_f64(rand::random_range(0.0..1.0));
        let killer = Arc::new(parking_lot::Mutex::new(Some(running)));
        let killed = Arc::clone(&killer);
        let kill = async move {
            tokio::time::sleep(life).await;
            killed.lock().take(); // SIGKILL
        };
        let before = bench.told.rules.len();
        tokio::join!(kill, bench.write(round));
        written += bench.told.rules.len() - before;
    }
    let _last = bench.start().await;
    bench.check().await;
    assert!(
        written > usize::try_from(rounds).expect("few"),
        "{written} writes in all"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_is_killed_in_the_middle_of_its_writes_loses_nothing_that_it_confirmed() {
    survives_kills(24).await;
}
