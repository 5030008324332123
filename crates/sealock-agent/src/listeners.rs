//! Where the agent listens for its own workload: a table of local listeners, each for one service, and its front doors.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use sealock_core::address::Target;
use sealock_core::fact::Facts;
use sealock_core::name::ServiceName;
use sealock_core::reason::Reason;
use sealock_flow::hop::Hop;
use sealock_flow::inlet::door::{self, Door};
use sealock_flow::inlet::port::{self, Listener};
use sealock_net::task::{Scope, Spawner};
use sealock_net::unix::{BindError, PrivateListener};
use tokio::net::TcpListener;

/// Why the agent does not listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The TCP address cannot be had.
    #[error("cannot listen at {address}")]
    Tcp {
        /// The address.
        address: String,
        /// What the operating system says.
        source: io::Error,
    },
    /// The unix socket cannot be made.
    #[error(transparent)]
    Unix(#[from] BindError),
    /// The listener would lead to no service.
    #[error("a listener leads to a service")]
    NoService(#[from] Reason),
}

/// A listener of the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listening {
    pub(crate) service: ServiceName,
    pub(crate) listen: Target,
    pub(crate) detached: bool,
}

/// The listeners of an agent; clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Listeners {
    inner: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    entries: BTreeMap<u64, (Listening, Arc<Scope>)>,
    next: u64,
    /// The listeners of front doors, which stay until all are ended.
    doors: Vec<Scope>,
}

/// A listener that ends when it is dropped, unless it was detached. Its flows go on.
#[derive(Debug)]
pub(crate) struct ListenerGuard {
    listeners: Listeners,
    number: u64,
    /// Where it listens, with the port that the system chose.
    pub(crate) listen: Target,
}

impl Drop for ListenerGuard {
    fn drop(&mut self) {
        let mut table = self.listeners.inner.lock();
        if table
            .entries
            .get(&self.number)
            .is_some_and(|(listening, _)| !listening.detached)
        {
            table.entries.remove(&self.number);
        }
    }
}

impl Listeners {
    /// Listens for a service; its flows run through `hop` with these facts, in `flows`.
    pub(crate) async fn add(
        &self,
        listen: &Target,
        detached: bool,
        hop: Hop,
        facts: Facts,
        flows: Spawner,
    ) -> Result<ListenerGuard, ListenError> {
        let (listener, listen) = bind(listen).await?;
        let service = facts.service()?.clone();
        let scope = Arc::new(Scope::new("listener"));
        scope.spawn("listen", async move {
            port::serve(listener, hop, facts, &flows).await
        });
        let mut table = self.inner.lock();
        table.next += 1;
        let number = table.next;
        let listening = Listening {
            service,
            listen: listen.clone(),
            detached,
        };
        table.entries.insert(number, (listening, scope));
        drop(table);
        Ok(ListenerGuard {
            listeners: self.clone(),
            number,
            listen,
        })
    }

    /// Opens a front door, whose flows run in `flows`; says where it is.
    pub(crate) async fn open_door(
        &self,
        listen: SocketAddr,
        door: Door,
        flows: Spawner,
    ) -> Result<SocketAddr, ListenError> {
        let failed = |source| ListenError::Tcp {
            address: listen.to_string(),
            source,
        };
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        let scope = Scope::new("front door");
        scope.spawn("listen", async move {
            door::serve(listener, Arc::new(door), &flows).await;
        });
        self.inner.lock().doors.push(scope);
        Ok(local)
    }

    /// Ends every listener for a service; says how many.
    pub(crate) fn remove(&self, service: &ServiceName) -> u64 {
        let mut table = self.inner.lock();
        let before = table.entries.len();
        table
            .entries
            .retain(|_, (listening, _)| listening.service != *service);
        (before - table.entries.len()) as u64
    }

    /// Ends every listener; their flows go on.
    pub(crate) fn clear(&self) {
        let mut table = self.inner.lock();
        table.entries.clear();
        table.doors.clear();
    }

    /// Whether the listener of this guard is still there.
    pub(crate) fn has(&self, guard: &ListenerGuard) -> bool {
        self.inner.lock().entries.contains_key(&guard.number)
    }

    /// Every listener.
    pub(crate) fn list(&self) -> Vec<Listening> {
        self.inner
            .lock()
            .entries
            .values()
            .map(|(listening, _)| listening.clone())
            .collect()
    }
}

async fn bind(listen: &Target) -> Result<(Listener, Target), ListenError> {
    match listen {
        Target::Tcp(address) => {
            let shown = address.to_string();
            let failed = |source| ListenError::Tcp {
                address: shown.clone(),
                source,
            };
            let bound = TcpListener::bind((address.host(), address.port())).await;
            let listener = bound.map_err(failed)?;
            let local = listener.local_addr().map_err(failed)?;
            Ok((Listener::Tcp(listener), Target::Tcp(local.into())))
        }
        Target::Unix(path) => {
            let listener = PrivateListener::bind(path.clone())?;
            Ok((Listener::Unix(listener), listen.clone()))
        }
    }
}
