//! Several roots: one is prepared, it takes over signing, and the one before is given up, while nodes live on.

use sealock_net::identity::root_pin;

use super::*;
use crate::pki::prepare_root;
use crate::store::RootState;

/// The controller's store, while the controller is not running.
async fn store(config: &Config) -> SqliteStore {
    let path = config.state_dir.join("db.sqlite");
    let store = SqliteStore::open(&path, IfMissing::Refuse).await;
    store.expect("it opens")
}

async fn set(config: &Config, root: &[u8], state: RootState) {
    let act = Act::done(Timestamp::now(), "test", "ca.move", "root");
    let moved = store(config).await.set_root(root, state, &act).await;
    moved.expect("moved");
}

/// The trust that a watcher is told of, and a view that stands by it.
async fn told(member: &Member, trust: &Trust) -> Trust {
    let mut watch = member
        .client
        .watch(&BTreeMap::new())
        .await
        .expect("watches");
    let WatchEvent::Trust(told) = watch.next().await.expect("an event") else {
        panic!("the trust comes first");
    };
    let mut held = Held::default();
    until(&mut watch, &mut held, trust, |_| true).await;
    told
}

/// The member with the trust that it has learned since.
fn knowing(running: &Running, member: &Member, trust: &Trust) -> Member {
    let identity = IdentityStore::new(member.svid.clone());
    let client = controller_client(&identity, &TrustStore::new(trust.clone()));
    Member {
        client: running.connect(client),
        svid: member.svid.clone(),
        trust: trust.clone(),
    }
}

async fn renewed(running: &Running, member: &Member) -> Result<Member, CallError> {
    let key = Arc::new(KeyPair::generate().expect("randomness"));
    let request = key.request_der().expect("signed");
    let issued = member.client.renew(request).await?;
    Ok(running.member(issued, key))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_root_takes_over_and_nobody_has_to_join_again() {
    let running = started(|_| ()).await;
    let first = running.handle.trust().roots[0].to_vec();
    let one = running.join("one").await;

    let (config, _dir) = running.stop().await;
    let (stopped, domain) = (store(&config).await, &config.trust_domain);
    let second = prepare_root(&config.state_dir, &stopped, domain, Timestamp::now()).await;
    let second = second.expect("prepared");
    drop(stopped);
    let running = again(config).await;
    // Prepared: everybody is told, nothing is signed with it yet, and whoever joins trusts both at once.
    let both = told(&knowing(&running, &one, &one.trust), &one.trust).await;
    assert_eq!(both.roots, [first.clone().into(), second.clone().into()]);
    assert_eq!(
        running.handle.pin(),
        root_pin(&both.roots[0]).expect("a root")
    );
    assert_eq!(running.join("two").await.trust, both);

    let (config, _) = running.stop().await;
    set(&config, &second, RootState::Active).await;
    let running = again(config).await;
    assert_eq!(
        running.handle.pin(),
        root_pin(&both.roots[1]).expect("a root")
    );
    // Certificates of either root come in, whichever the controller's own is of, and views stand for those who know both.
    let one = knowing(&running, &one, &both);
    assert_eq!(told(&one, &both).await, both);
    let three = running.join("three").await;
    assert_eq!(told(&three, &both).await, both);
    let moved = renewed(&running, &one).await.expect("renewed");

    let (config, _) = running.stop().await;
    set(&config, &first, RootState::Revoked).await;
    let running = again(config).await;
    let only = running.handle.trust().clone();
    assert_eq!(only.roots, [second.into()]);
    // What was renewed or joined meanwhile lives on, by views that nobody needs the first root for.
    for member in [&moved, &three] {
        let member = knowing(&running, member, &only);
        assert_eq!(told(&member, &only).await, only);
        renewed(&running, &member).await.expect("renewed");
    }
    let refused = call(&knowing(&running, &one, &both).client, "watch").await;
    assert!(
        matches!(refused, Err(CallError::Unreachable(_))),
        "{refused:?}"
    );
}
