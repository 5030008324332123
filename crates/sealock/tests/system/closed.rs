//! What is missing, damaged or open to others at the start: the role does not start and names the file, or it starts and
//! lets nothing through.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use futures_util::future::join_all;
use sealock_core::reason::Reason;
use sealock_net::identity::KeyPair;
use sealock_net::identity::testing::TestCa;
use sealock_proto::wire::{Message, SessionKind};

use crate::deployment::free_udp_port;
use crate::world::{RelayLimits, World};

/// How a start ends.
#[derive(Debug)]
enum Start {
    /// There is none, and this is what its user reads.
    Refused(String),
    /// There is one, and this is what comes of an open.
    Open(Reason),
}

/// What is done to the state directory of a role before it starts.
type Damage = fn(&Path) -> Result<()>;

fn overwrite(dir: &Path, file: &str, bytes: &[u8]) -> Result<()> {
    Ok(std::fs::write(dir.join(file), bytes)?)
}

fn loosen(path: &Path, mode: u32) -> Result<()> {
    Ok(std::fs::set_permissions(
        path,
        Permissions::from_mode(mode),
    )?)
}

/// Without it the start is refused, in a message that holds this.
const REFUSED: [(&str, Damage, &str); 14] = [
    (
        "no key",
        |dir| Ok(std::fs::remove_file(dir.join("key.pem"))?),
        "key.pem",
    ),
    (
        "an empty key",
        |dir| overwrite(dir, "key.pem", b""),
        "key.pem",
    ),
    (
        "a key that is none",
        |dir| overwrite(dir, "key.pem", b"a secret\n"),
        "key.pem",
    ),
    (
        "the key of another certificate",
        |dir| {
            let other = KeyPair::generate()?.to_pem();
            overwrite(dir, "key.pem", other.expose().as_bytes())
        },
        "another key",
    ),
    (
        "a key that others can read",
        |dir| loosen(&dir.join("key.pem"), 0o640),
        "chmod 600",
    ),
    (
        "no certificate",
        |dir| Ok(std::fs::remove_file(dir.join("cert.pem"))?),
        "no identity",
    ),
    (
        "an empty certificate",
        |dir| overwrite(dir, "cert.pem", b""),
        "cert.pem",
    ),
    (
        "a certificate that is none",
        |dir| overwrite(dir, "cert.pem", b"-----BEGIN CERTIFICATE-----\n!\n"),
        "cert.pem",
    ),
    (
        "no roots' file",
        |dir| Ok(std::fs::remove_file(dir.join("trust.json"))?),
        "no identity",
    ),
    (
        "an empty roots' file",
        |dir| overwrite(dir, "trust.json", b""),
        "trust.json",
    ),
    (
        "a roots' file with an unknown key",
        |dir| {
            let text = br#"{"trust_domain": "sealock", "roots": [], "insecure": true}"#;
            overwrite(dir, "trust.json", text)
        },
        "trust.json",
    ),
    (
        "a roots' file that others can write",
        |dir| loosen(&dir.join("trust.json"), 0o666),
        "chmod 600",
    ),
    (
        "a directory that others can enter",
        |dir| loosen(dir, 0o755),
        "chmod 700",
    ),
    (
        "views that others can replace",
        |dir| loosen(&dir.join("views"), 0o777),
        "chmod 700",
    ),
];

/// Without it nothing is allowed.
const CLOSED: [(&str, Damage); 4] = [
    ("no root", |dir| {
        let none = br#"{"trust_domain": "sealock", "roots": []}"#;
        overwrite(dir, "trust.json", none)
    }),
    ("the root of somebody else", |dir| {
        let other = serde_json::to_vec(&TestCa::new("sealock").trust())?;
        overwrite(dir, "trust.json", &other)
    }),
    ("no view", |dir| {
        Ok(std::fs::remove_file(dir.join("views/default.json"))?)
    }),
    ("an empty view", |dir| {
        overwrite(dir, "views/default.json", b"")
    }),
];

async fn agent(world: &World, damage: Damage) -> Result<Start> {
    let config = world.agent_config("caller", SessionKind::CallerOnly, free_udp_port()?)?;
    damage(&config.dir)?;
    Ok(match sealock_agent::start(config).await {
        Err(error) => Start::Refused(format!("{:#}", anyhow::Error::from(error))),
        Ok(agent) => Start::Open(agent.stdio("echo".parse()?).await),
    })
}

async fn relay(world: &World, damage: Damage) -> Result<Start> {
    let config = world.relay_config(RelayLimits::default())?;
    damage(&config.dir)?;
    let relay = match sealock_relay::start(config).await {
        Err(error) => return Ok(Start::Refused(format!("{:#}", anyhow::Error::from(error)))),
        Ok(relay) => relay,
    };
    let Ok(raw) = world.connect_as("caller", relay.listen).await else {
        return Ok(Start::Open(Reason::NotAdmitted));
    };
    let Ok(_control) = raw.greet(SessionKind::CallerOnly, [1; 16]).await else {
        return Ok(Start::Open(Reason::NotAdmitted));
    };
    let (answer, _leg) = raw.open("echo").await?;
    let Message::Refused(reason) = answer else {
        anyhow::bail!("the relay opened a leg: {answer:?}");
    };
    Ok(Start::Open(reason))
}

/// Both roles after the same damage, each in a world of its own.
async fn both(damage: Damage) -> Result<[(&'static str, Start); 2]> {
    let agent = agent(&World::new()?, damage).await.context("an agent")?;
    let relay = relay(&World::new()?, damage).await.context("a relay")?;
    Ok([("agent", agent), ("relay", relay)])
}

// S07: a secret or a root that is missing, unreadable or not private is no start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_whose_identity_is_not_whole_and_private_does_not_start_and_says_why() -> Result<()>
{
    for (what, damage, word) in REFUSED {
        for (role, start) in both(damage).await.context(what)? {
            let Start::Refused(text) = start else {
                anyhow::bail!("{what}: the {role} starts, {start:?}");
            };
            ensure!(text.contains(word), "{what}, {role}: {text}");
        }
    }
    Ok(())
}

// S07: no policy, or one that nobody vouches for, is no permission.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_without_a_policy_that_it_can_verify_lets_nothing_through() -> Result<()> {
    let whole = relay(&World::new()?, |_| Ok(())).await?;
    let opens = matches!(whole, Start::Open(Reason::NoProvider));
    ensure!(
        opens,
        "an undamaged one is not there to compare with: {whole:?}"
    );
    // All at once: an agent without a view waits for one before it says no.
    let started = CLOSED.map(|(what, damage)| async move {
        let both = both(damage).await;
        both.context(what).map(|both| (what, both))
    });
    for started in join_all(started).await {
        let (what, both) = started?;
        for (role, start) in both {
            let Start::Open(reason) = start else { continue };
            let closed = [Reason::NoPolicy, Reason::NotAdmitted];
            ensure!(closed.contains(&reason), "{what}, {role}: {reason}");
        }
    }
    Ok(())
}
