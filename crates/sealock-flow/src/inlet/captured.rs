//! Connections of a fenced workload, to whatever address it made them: by `anyip`, `redirect` or `tproxy`.
//!
//! Where our own DNS gave the address, the name that it stands for is the destination. An address that it never gave is
//! judged as such; where no rule allows it, the name that the flow's first bytes claim is judged beside it, and a flow
//! that says nothing in time is refused. A flow whose address is allowed waits for nothing, so a protocol in which the
//! server speaks first loses no time.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sealock_core::destination::{Destination, Protocol};
use sealock_core::fact::{Fact, Facts, Goal, Source};
use sealock_core::host::HostName;
use sealock_core::identity::AgentId;
use sealock_core::reason::Reason;
use sealock_net::capture::{Captured, Method, StreamListener};
use sealock_net::dns::{Desk, Lease};
use sealock_net::socket;
use sealock_net::task::Spawner;
use sealock_proto::sniff::{self, Sniffed, Spoken};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::arrival::{Arrival, InletKind, Near};
use crate::hop::{self, Hop};
use crate::rules::Rules;

/// Hears of the flows of a workload.
pub trait Notes: Send + Sync + 'static {
    /// How one ended, or why it never began.
    fn ended(&self, facts: &Facts, reason: Reason);
}

/// Whose connections they are, and what they are judged by.
#[derive(Clone)]
pub struct Workload {
    /// Who the workload is.
    pub caller: AgentId,
    /// What tells whether a claimed name is worth waiting for.
    pub rules: Rules,
    /// Its DNS, which knows what name an address stands for.
    pub desk: Desk,
    /// Who is told of its flows.
    pub notes: Arc<dyn Notes>,
}

impl std::fmt::Debug for Workload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workload")
            .field("caller", &self.caller)
            .finish_non_exhaustive()
    }
}

/// How long the listener rests after an error such as «too many open files».
const ERROR_REST: Duration = Duration::from_millis(100); // ten tries a second cost nothing and recover within one
/// How many flows of one workload may be at once; more wait in the kernel's backlog.
const FLOWS_LIMIT: usize = 4_096;
/// How long a flow to an address that no rule allows may take to say a name.
const CLAIM_LIMIT: Duration = Duration::from_secs(1); // a client speaks as soon as it is connected
/// How long it is waited between two looks at a beginning that is not whole yet.
const CLAIM_LOOK: Duration = Duration::from_millis(5); // the rest of a hello follows its first packet closely

/// Accepts captured connections and runs each through the pipe, until `tasks` is asked to stop; then takes those that
/// were made before. An error of one never ends the listener.
///
/// # Cancel safety
/// Dropping it stops accepting; flows belong to `tasks` and go on.
pub async fn serve(listener: StreamListener, hop: Hop, workload: Workload, tasks: &Spawner) {
    let slots = Arc::new(Semaphore::new(FLOWS_LIMIT));
    let inlet = kind(listener.method());
    let start = |captured, slot| {
        let (hop, workload) = (hop.clone(), workload.clone());
        tasks.spawn("flow", async move {
            run(&hop, &workload, inlet, captured).await;
            drop(slot);
        });
    };
    loop {
        // The stop comes first: under a flood of connections it would never be seen otherwise.
        let accepted = tokio::select! {
            biased;
            () = tasks.stopping() => break,
            accepted = accept(&listener, &slots) => accepted,
        };
        match accepted {
            Ok((captured, slot)) => start(captured, slot),
            Err(error) => {
                tracing::warn!(err = %error, "a captured connection could not be accepted");
                tokio::time::sleep(ERROR_REST).await;
            }
        }
    }
    // A program that sent its last words and ended has ended before they were taken.
    while let Ok(slot) = Arc::clone(&slots).try_acquire_owned()
        && let Ok(captured) = listener.accept_now()
    {
        start(captured, slot);
    }
}

async fn accept(
    listener: &StreamListener,
    slots: &Arc<Semaphore>,
) -> io::Result<(Captured, OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots)
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    Ok((listener.accept().await?, slot))
}

fn kind(method: Method) -> InletKind {
    match method {
        Method::AnyipTproxy | Method::Anyip => InletKind::Anyip,
        Method::Redirect => InletKind::Redirect,
        Method::Tproxy => InletKind::Tproxy,
    }
}

async fn run(hop: &Hop, workload: &Workload, inlet: InletKind, captured: Captured) {
    let stream = captured.stream;
    // A workload whose flow never opens must not see a clean end, whatever happens to this process.
    socket::reset_on_close(&stream);
    let Some(address) = captured.destination else {
        tracing::debug!("a connection to our own socket was reset");
        return;
    };
    if stream.set_nodelay(true).is_err() {
        return; // it is gone already
    }
    // To the end of the flow, so that its address stands for no other name meanwhile.
    let lease = workload.desk.hold(address.ip());
    let facts = workload.facts(&stream, address, lease.as_ref()).await;
    let arrival = Arrival {
        inlet,
        facts: facts.clone(),
        leg: None,
        near: Near::Tcp(stream),
    };
    let reason = hop::run(hop, arrival).await;
    drop(lease);
    workload.notes.ended(&facts, reason);
}

impl Workload {
    async fn facts(&self, stream: &TcpStream, address: SocketAddr, lease: Option<&Lease>) -> Facts {
        if let Some(lease) = lease {
            let name = Fact::new(lease.name().clone(), Source::Dns);
            return self.going_to(Destination::named(Protocol::Tcp, name, address.port()));
        }
        let destination = Destination::at(Protocol::Tcp, address);
        let plain = self.going_to(destination.clone());
        if self.rules.judge(&plain).is_ok() {
            return plain;
        }
        let claim = tokio::time::timeout(CLAIM_LIMIT, claimed_name(stream)).await;
        match claim.ok().flatten() {
            Some((name, source)) => self.going_to(destination.claimed(name, source)),
            None => plain,
        }
    }

    fn going_to(&self, destination: Destination) -> Facts {
        Facts {
            tenant: self.caller.tenant.clone(),
            caller: Fact::new(self.caller.clone(), Source::Configured),
            certificate: None,
            goal: Goal::Destination(destination),
        }
    }
}

/// The name that the first bytes claim; they stay where they are, and leave with the flow.
async fn claimed_name(stream: &TcpStream) -> Option<(HostName, Source)> {
    let mut seen = vec![0; sniff::BUDGET];
    let mut length = 0;
    loop {
        let now = stream.peek(&mut seen).await.ok()?;
        if now == length {
            // The end, or nothing more yet: a peek returns at once while there is anything.
            if now == 0 {
                return None;
            }
            tokio::time::sleep(CLAIM_LOOK).await;
            continue;
        }
        length = now;
        match sniff::stream(&seen[..length]) {
            (Spoken::Tls, Sniffed::Name(name)) => return Some((name, Source::Sni)),
            (Spoken::Http, Sniffed::Name(name)) => return Some((name, Source::Host)),
            (_, Sniffed::NeedMore) => {}
            (_, Sniffed::None(why)) => {
                tracing::debug!(why = why.as_str(), "a flow tells no name");
                return None;
            }
        }
    }
}
