//! Makes sessions with a relay one after the other, each to the relay's Welcome, and prints how many a second.
//!
//! `handshakes STATE RELAY COUNT`: the state directory of an agent that joined and does not run, the relay's address.
//! Each turn is a new QUIC connection with both certificates, Hello and Welcome, then a close. A relay slows down a
//! source that knocks too often, so each 50 sessions come from a loopback address of their own. `make bench` runs it.
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

/// Under what a relay takes at once from one source.
const PER_SOURCE: u32 = 50;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [state, relay, count] = arguments.as_slice() else {
        return Err("usage: handshakes STATE RELAY COUNT".into());
    };
    let relay: HostPort = relay.parse()?;
    let count: u32 = count.parse()?;
    let dir = IdentityDir::open(format!("{state}/agent"))?;
    let identity = IdentityStore::new(dir.load_svid()?.ok_or("this state has no identity")?);
    let trust = TrustStore::new(dir.load_trust()?.ok_or("this state has no trust bundle")?);
    // Nobody calls them; an endpoint that could be called may choose its address.
    let unused = tls::e2e_server(&identity, &trust, None);
    let keys = TransportKeys::generate();
    let endpoints = (0..count.div_ceil(PER_SOURCE)).map(|index| {
        let source = Ipv4Addr::from_bits(Ipv4Addr::new(127, 0, 1, 0).to_bits() + index);
        Endpoint::server(
            (source, 0).into(),
            unused.clone(),
            Settings::default(),
            &keys,
        )
    });
    let dialers: Vec<_> = endpoints
        .map(|endpoint| Ok(Dialer::for_sessions(endpoint?, &identity, &trust)))
        .collect::<std::io::Result<_>>()?;
    let instance = [7; 16];
    let begun = Instant::now();
    for index in 0..count {
        let dialer = &dialers[usize::try_from(index / PER_SOURCE)?];
        let connection = dialer.dial(&relay).await?;
        let mut control = connection.open_bi().await?;
        let hello = Message::Hello(Hello {
            protocol: PROTOCOL_VERSION,
            instance,
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
    }
    let rate = f64::from(count) / begun.elapsed().as_secs_f64();
    println!("{rate:.1}");
    Ok(())
}
