//! The relay's door: accepts connections, and lets each prove itself in a task of its own.
//!
//! Nobody is awaited in the accept loop. What strangers may cost is counted before anything is spent on them.

use std::time::{Duration, Instant};

use sealock_net::tls::{self, Admission};
use sealock_net::transport::admission::{HandshakeTicket, PreAuthBudget, Verdict};
use sealock_net::transport::{ConnectError, Connection, Endpoint, Incoming, TcpEndpoint};

use crate::peers;
use crate::session::{self, Shared};

/// How long a handshake may take.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// Accepts until the endpoint is closed.
pub(crate) async fn serve(endpoint: Endpoint, budget: PreAuthBudget, shared: Shared) {
    while let Some(incoming) = endpoint.accept().await {
        if shared.draining.is_cancelled() {
            incoming.refuse();
            continue;
        }
        let source = incoming.remote_address().ip();
        match budget.admit(Instant::now(), source, incoming.is_validated()) {
            Verdict::Accept(ticket) => {
                shared
                    .tasks
                    .spawn("admit", admit(incoming, ticket, shared.clone()));
            }
            Verdict::Retry => incoming.retry(),
            Verdict::Refuse => incoming.refuse(),
        }
    }
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
                    let handshake = incoming.handshake(deadline).await;
                    drop(ticket);
                    welcome(handshake, shared).await;
                });
            }
            Verdict::Retry | Verdict::Refuse => incoming.refuse(),
        }
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
