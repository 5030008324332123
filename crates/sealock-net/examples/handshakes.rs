//! Makes sessions with a relay, each to the relay's Welcome, and prints how many a second.
//!
//! `handshakes RELAY COUNT STATE...`: the relay's address, how many by each agent, and the state directories of agents
//! that joined and do not run. The agents knock at the same time, each with one session after the other: a new QUIC
//! connection with both certificates, Hello and Welcome, then a close. A relay slows down a source that knocks too
//! often, so each 50 sessions come from a loopback address of their own. `make bench` runs it.
#![expect(
    clippy::print_stdout,
    reason = "a tool whose only answer is its output"
)]

use std::error::Error;
use std::net::Ipv4Addr;
use std::time::Instant;

use sealock_core::address::HostPort;
use sealock_core::reason::Reason;
use sealock_net::identity::{IdentityDir, IdentityStore, TrustStore};
use sealock_net::message;
use sealock_net::session::Dialer;
use sealock_net::tls;
use sealock_net::transport::{Endpoint, Settings, TransportKeys};
use sealock_proto::wire::{Hello, Message, PROTOCOL_VERSION, SessionKind};
use tokio::task::JoinSet;

type Failure = Box<dyn Error + Send + Sync>;

/// Under what a relay takes at once from one source.
const PER_SOURCE: u32 = 50;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [relay, count, states @ ..] = arguments.as_slice() else {
        return Err("usage: handshakes RELAY COUNT STATE...".into());
    };
    let relay: HostPort = relay.parse()?;
    let count: u32 = count.parse()?;
    let knockers: Vec<Vec<Dialer>> = (0..)
        .zip(states)
        .map(|(index, state)| knocker(index, count, state))
        .collect::<Result<_, _>>()?;
    let sessions = f64::from(count) * states.len() as f64;
    let begun = Instant::now();
    let mut knocking = JoinSet::new();
    for dialers in knockers {
        let relay = relay.clone();
        knocking.spawn(async move {
            for dialer in dialers
                .iter()
                .flat_map(|dialer| std::iter::repeat_n(dialer, PER_SOURCE as usize))
                .take(count as usize)
            {
                knock(dialer, &relay).await?;
            }
            Ok::<_, Failure>(())
        });
    }
    while let Some(done) = knocking.join_next().await {
        done??;
    }
    println!("{:.1}", sessions / begun.elapsed().as_secs_f64());
    Ok(())
}

/// The addresses that an agent knocks from.
fn knocker(index: u32, count: u32, state: &str) -> Result<Vec<Dialer>, Failure> {
    let dir = IdentityDir::open(format!("{state}/agent"))?;
    let identity = IdentityStore::new(dir.load_svid()?.ok_or("this state has no identity")?);
    let trust = TrustStore::new(dir.load_trust()?.ok_or("this state has no trust bundle")?);
    // Nobody calls them; an endpoint that could be called may choose its address.
    let unused = tls::e2e_server(&identity, &trust, None);
    let keys = TransportKeys::generate();
    let sources = count.div_ceil(PER_SOURCE);
    let dialer = |number: u32| {
        let source =
            Ipv4Addr::from_bits(Ipv4Addr::new(127, 0, 1, 0).to_bits() + index * sources + number);
        let endpoint = Endpoint::server(
            (source, 0).into(),
            unused.clone(),
            Settings::default(),
            &keys,
        )?;
        Ok(Dialer::for_sessions(endpoint, &identity, &trust))
    };
    (0..sources).map(dialer).collect()
}

async fn knock(dialer: &Dialer, relay: &HostPort) -> Result<(), Failure> {
    let connection = dialer.dial(relay).await?;
    let mut control = connection.open_bi().await?;
    let hello = Message::Hello(Hello {
        protocol: PROTOCOL_VERSION,
        instance: [7; 16],
        kind: SessionKind::Full,
        voucher: None,
        region: None,
        software: "bench".to_owned(),
    });
    control.send.write(hello.encode()).await?;
    let answer = message::read(&mut control.recv).await?;
    let Message::Welcome(_) = answer else {
        return Err("the relay did not welcome us".into());
    };
    connection.close(Reason::Done);
    Ok(())
}
