//! The relay's door: accepts connections, and lets each prove itself in a task of its own.
//!
//! Nobody is awaited in the accept loop. What strangers may cost is counted before anything is spent on them, and a crowd
//! stands in line: each of it is done with soon after its turn came, rather than all of them too late.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use sealock_core::reason::Reason;
use sealock_net::tls::{self, Admission, alpn};
use sealock_net::transport::admission::{HandshakeTicket, PreAuthBudget, Verdict};
use sealock_net::transport::conduit::Arriving;
use sealock_net::transport::{Arrived, ConnectError, Connection, Endpoint, Incoming, TcpEndpoint};

use crate::judge;
use crate::peers;
use crate::session::{self, Shared};

/// How long a handshake may take.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// How many wait for their turn: as many as are done with while their callers have patience.
const WAITING_LIMIT: usize = 2_048; // × a first flight of two packets = 6 MiB
/// How long somebody waits for its turn: as long as a dial has patience with a relay that has answered.
const TURN_DEADLINE: Duration = Duration::from_secs(10);

/// Accepts until the endpoint is closed.
pub(crate) async fn serve(endpoint: Endpoint, budget: PreAuthBudget, shared: Shared) {
    let mut waiting: VecDeque<(Instant, Incoming)> = VecDeque::new();
    loop {
        while let Some((since, first)) = waiting.pop_front() {
            if since.elapsed() > TURN_DEADLINE {
                first.ignore(); // it has gone
            } else if let Some(first) = let_in(first, &budget, &shared) {
                waiting.push_front((since, first));
                break;
            }
        }
        let incoming = tokio::select! {
            biased; // a place that is free belongs to whoever waits
            () = budget.room(), if !waiting.is_empty() => continue,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else {
            return;
        };
        if waiting.len() >= WAITING_LIMIT {
            incoming.ignore(); // it repeats what it sent
        } else if !waiting.is_empty() && incoming.is_validated() {
            waiting.push_back((Instant::now(), incoming));
        } else if let Some(incoming) = let_in(incoming, &budget, &shared) {
            waiting.push_back((Instant::now(), incoming));
        }
    }
}

/// Lets somebody in or turns it away; gives it back when it is to wait.
fn let_in(incoming: Incoming, budget: &PreAuthBudget, shared: &Shared) -> Option<Incoming> {
    if shared.draining.is_cancelled() {
        incoming.refuse();
        return None;
    }
    let source = incoming.remote_address().ip();
    match budget.admit(Instant::now(), source, incoming.is_validated()) {
        Verdict::Accept(ticket) => {
            let admit = admit(incoming, ticket, shared.clone());
            shared.tasks.spawn("admit", admit);
        }
        Verdict::Retry => incoming.retry(),
        Verdict::Refuse => incoming.refuse(),
        Verdict::Wait => return Some(incoming),
    }
    None
}

/// Accepts over TCP until the endpoint is closed. TCP has proved the addresses, so nobody is asked to.
pub(crate) async fn serve_tcp(endpoint: TcpEndpoint, budget: PreAuthBudget, shared: Shared) {
    while let Some(incoming) = endpoint.accept().await {
        if shared.draining.is_cancelled() {
            incoming.refuse();
            continue;
        }
        let source = incoming.remote_address().ip();
        match budget.admit(Instant::now(), source, true) {
            Verdict::Accept(ticket) => {
                let shared = shared.clone();
                let tasks = shared.tasks.clone();
                tasks.spawn("admit", async move {
                    let deadline = tokio::time::Instant::now() + HANDSHAKE_DEADLINE;
                    let entered = incoming.enter(deadline).await;
                    drop(ticket);
                    match entered {
                        Ok(Arrived::Conduit(end)) => take_end(end, shared).await,
                        Ok(Arrived::Connection(connection)) => {
                            welcome(Ok(connection), shared).await
                        }
                        Err(error) => welcome(Err(error), shared).await,
                    }
                });
            }
            // Each would hold a file here; who comes this way as well waits over QUIC.
            Verdict::Retry | Verdict::Wait | Verdict::Refuse => incoming.refuse(),
        }
    }
}

/// Takes one end of a conduit of an agent that may be here at all.
async fn take_end(end: Arriving, shared: Shared) {
    let admitted = match tls::admit(Some(alpn::SESSION), Some(end.peer())) {
        Ok(Admission::Agent(agent, peer)) => judge::admits(&shared.views, &agent, &peer),
        Ok(Admission::Relay(..) | Admission::Joining) => Err(Reason::NotAdmitted),
        Err(reason) => Err(reason),
    };
    match admitted {
        Ok(()) => shared.conduits.serve(end).await,
        Err(reason) => end.refuse(reason).await,
    }
}

async fn admit(incoming: Incoming, ticket: HandshakeTicket, shared: Shared) {
    let deadline = tokio::time::Instant::now() + HANDSHAKE_DEADLINE;
    let handshake = incoming.handshake(deadline).await;
    drop(ticket);
    welcome(handshake, shared).await;
}

async fn welcome(handshake: Result<Connection, ConnectError>, shared: Shared) {
    let connection = match handshake {
        Ok(connection) => connection,
        Err(error) => {
            tracing::debug!(err = %error, "a handshake failed");
            return;
        }
    };
    match tls::admit(connection.alpn(), connection.peer()) {
        Ok(Admission::Agent(agent, peer)) => session::serve(shared, connection, agent, peer).await,
        Ok(Admission::Relay(relay, peer)) => peers::serve(shared, connection, relay, peer).await,
        Ok(Admission::Joining) => shared.controller.admit_joining(&connection).await,
        Err(reason) => connection.close(reason),
    }
}
