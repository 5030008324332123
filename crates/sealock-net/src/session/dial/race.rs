//! One race: the transports and addresses that lead to a relay, begun one after the other; the first handshake wins.
//!
//! The order is that of RFC 8305 (Happy Eyeballs) with transports as a second dimension: families take turns, and no
//! transport waits for all addresses of the one before. Losers are dropped, which gives their attempts up. What the
//! kernel refuses at once is tried again while others are still under way, because a relay that restarts is back soon.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use rustls::ClientConfig;
use sealock_core::address::HostPort;
use sealock_core::config::{Transport, Upstream};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::{DialError, Ways};
use crate::names;
use crate::transport::{ConnectError, Connection, proxy};

/// How long each attempt is ahead of the next one (RFC 8305 §5).
const STAGGER: Duration = Duration::from_millis(250);
/// How long one attempt may take, and the look-up of a name.
const ATTEMPT_DEADLINE: Duration = Duration::from_secs(5); // three QUIC PTOs at a first guess of 333 ms, and room
/// Attempts of one race; a name with more addresses than that is a mistake or an attack.
const ATTEMPTS: usize = 24;

/// Where an attempt goes.
#[derive(Debug, Clone)]
enum Target {
    Address(SocketAddr),
    Through(Arc<Upstream>),
}

#[derive(Debug, Clone)]
struct Attempt {
    transport: Transport,
    target: Target,
}

type Outcome = (Attempt, Result<Connection, ConnectError>);

pub(super) struct Race<'a> {
    ways: &'a Ways,
    tls: &'a Arc<ClientConfig>,
    relay: &'a HostPort,
    told: BTreeMap<Transport, String>,
}

impl<'a> Race<'a> {
    pub(super) fn new(ways: &'a Ways, tls: &'a Arc<ClientConfig>, relay: &'a HostPort) -> Self {
        Self {
            ways,
            tls,
            relay,
            told: BTreeMap::new(),
        }
    }

    /// What the transports said that did not win.
    pub(super) fn told(self) -> impl Iterator<Item = (Transport, String)> {
        self.told.into_iter()
    }

    pub(super) async fn run(&mut self, transports: &[Transport]) -> Result<Connection, DialError> {
        let mut waiting = self.plan(transports).await;
        let mut running: FuturesUnordered<BoxFuture<'_, Outcome>> = FuturesUnordered::new();
        let mut begun = Vec::new();
        let mut worst: Option<ConnectError> = None;
        let mut next = Instant::now();
        loop {
            let is_idle = running.is_empty();
            if is_idle && waiting.is_empty() {
                return Err(match worst {
                    Some(error) => error.into(),
                    None => DialError::NoAddress(self.relay.clone()),
                });
            }
            tokio::select! {
                biased; // a handshake that is done beats one that begins
                Some((attempt, outcome)) = running.next(), if !is_idle => match outcome {
                    Ok(connection) => {
                        self.passed_over(&begun, connection.transport());
                        return Ok(connection);
                    }
                    Err(error) => {
                        tracing::debug!(relay = %self.relay, transport = %attempt.transport, err = %error, "a way leads nowhere");
                        self.told.insert(attempt.transport, error.to_string());
                        if is_refused(&error) && !running.is_empty() {
                            waiting.push_back(attempt);
                        } else {
                            next = Instant::now();
                        }
                        worst = Some(match worst {
                            // What trying again cannot mend says more than silence.
                            Some(worst) if error.is_transient() => worst,
                            Some(_) | None => error,
                        });
                    }
                },
                () = tokio::time::sleep_until(next), if !waiting.is_empty() => {
                    if let Some(attempt) = waiting.pop_front() {
                        begun.push(attempt.transport);
                        running.push(Box::pin(try_one(self.ways, self.tls, self.relay, attempt)));
                    }
                    next = Instant::now() + STAGGER;
                }
            }
        }
    }

    /// Notes those that were begun, are better than the winner, and had said nothing.
    fn passed_over(&mut self, begun: &[Transport], winner: Transport) {
        for transport in begun.iter().filter(|it| **it < winner) {
            let silence = || "no answer so far".to_owned();
            self.told.entry(*transport).or_insert_with(silence);
        }
        self.told.retain(|transport, _| *transport < winner);
    }

    async fn plan(&self, transports: &[Transport]) -> VecDeque<Attempt> {
        let upstream = self.ways.upstreams.towards(self.relay).map(Arc::new);
        let needs_address = |it: &&Transport| upstream.is_none() || **it == Transport::Quic;
        let addresses = if transports.iter().any(|it| needs_address(&it)) {
            alternating(addresses(self.relay).await)
        } else {
            Vec::new()
        };
        let mut plan: Vec<(usize, Attempt)> = Vec::new();
        for (rung, transport) in transports.iter().copied().enumerate() {
            match &upstream {
                Some(upstream) if transport != Transport::Quic => {
                    let target = Target::Through(Arc::clone(upstream));
                    plan.push((rung, Attempt { transport, target }));
                }
                Some(_) | None => plan.extend(addresses.iter().enumerate().map(|(at, address)| {
                    let target = Target::Address(*address);
                    (rung + at, Attempt { transport, target })
                })),
            }
        }
        plan.sort_by_key(|(place, _)| *place); // stable: the better rung first
        plan.truncate(ATTEMPTS);
        plan.into_iter().map(|(_, attempt)| attempt).collect()
    }
}

async fn try_one(
    ways: &Ways,
    tls: &Arc<ClientConfig>,
    relay: &HostPort,
    attempt: Attempt,
) -> Outcome {
    let deadline = Instant::now() + ATTEMPT_DEADLINE;
    let tls = Arc::clone(tls);
    let connect = async {
        let stream = match (&attempt.target, attempt.transport) {
            (Target::Address(address), Transport::Quic) => {
                return ways.udp.connect(*address, tls, deadline).await;
            }
            (Target::Address(address), Transport::Tls | Transport::Websocket) => {
                let connect = TcpStream::connect(*address);
                let stream = tokio::time::timeout_at(deadline, connect).await;
                stream
                    .map_err(|_elapsed| ConnectError::Timeout)?
                    .map_err(ConnectError::Tcp)?
            }
            (Target::Through(upstream), _) => {
                let open = proxy::open(upstream, relay);
                let stream = tokio::time::timeout_at(deadline, open).await;
                stream.map_err(|_elapsed| ConnectError::Timeout)??
            }
        };
        let host = relay.to_string();
        let connect = ways
            .tcp
            .connect(attempt.transport, stream, &host, tls, deadline);
        connect.await
    };
    let outcome = connect.await;
    (attempt, outcome)
}

fn is_refused(error: &ConnectError) -> bool {
    matches!(error, ConnectError::Tcp(error) if error.kind() == io::ErrorKind::ConnectionRefused)
}

/// The addresses with the families in turn, the resolver's first one first (RFC 8305 §4).
fn alternating(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let Some(first) = addresses.first().copied() else {
        return addresses;
    };
    let (same, other): (Vec<_>, Vec<_>) = addresses
        .into_iter()
        .partition(|it| it.is_ipv6() == first.is_ipv6());
    let (mut same, mut other) = (same.into_iter(), other.into_iter());
    let mut all = Vec::new();
    loop {
        let pair = [same.next(), other.next()];
        if pair == [None, None] {
            return all;
        }
        all.extend(pair.into_iter().flatten());
    }
}

async fn addresses(relay: &HostPort) -> Vec<SocketAddr> {
    match names::lookup(relay).await {
        Ok(found) => found,
        Err(error) => {
            tracing::debug!(%relay, err = %error, "the relay's name could not be looked up");
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns_and_the_first_stays_first() {
        let list = |text: &str| -> Vec<SocketAddr> {
            text.split(' ')
                .map(|it| it.parse().expect("an address"))
                .collect()
        };
        let cases = [
            ("[::1]:1 [::2]:1 127.0.0.1:1", "[::1]:1 127.0.0.1:1 [::2]:1"),
            (
                "127.0.0.1:1 127.0.0.2:1 [::1]:1",
                "127.0.0.1:1 [::1]:1 127.0.0.2:1",
            ),
            ("127.0.0.1:1 127.0.0.2:1", "127.0.0.1:1 127.0.0.2:1"),
        ];
        for (given, expected) in cases {
            assert_eq!(alternating(list(given)), list(expected));
        }
    }
}
