//! A local listener for one service: TCP on an address of this machine, or a unix socket.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use sealock_core::fact::Facts;
use sealock_net::socket;
use sealock_net::task::Spawner;
use sealock_net::unix::PrivateListener;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::arrival::{Arrival, InletKind, Near};
use crate::hop::{self, Hop};

/// What a port listens on.
#[derive(Debug)]
pub enum Listener {
    /// A TCP address.
    Tcp(TcpListener),
    /// A unix socket that only this user can reach.
    Unix(PrivateListener),
}

impl Listener {
    async fn accept(&self) -> io::Result<Near> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _remote) = listener.accept().await?;
                stream.set_nodelay(true)?;
                // A caller whose flow never opens must not see a clean end, whatever happens to this process.
                socket::reset_on_close(&stream);
                Ok(Near::Tcp(stream))
            }
            Self::Unix(listener) => listener
                .accept()
                .await
                .map(|(stream, _caller)| Near::Unix(stream.into())),
        }
    }
}

/// How long the listener rests after an error such as «too many open files».
const ERROR_REST: Duration = Duration::from_millis(100); // ten tries a second cost nothing and recover within one
/// How many flows of one port may be at once; more wait in the kernel's backlog.
const FLOWS_LIMIT: usize = 4_096;

/// Accepts connections and runs each through the pipe, until dropped. An error of one never ends the listener.
///
/// # Cancel safety
/// Dropping it stops accepting; flows belong to `tasks` and go on.
pub async fn serve(listener: Listener, hop: Hop, facts: Facts, tasks: &Spawner) {
    let slots = Arc::new(Semaphore::new(FLOWS_LIMIT));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok(near) => {
                let arrival = Arrival {
                    inlet: InletKind::Port,
                    facts: facts.clone(),
                    leg: None,
                    near,
                };
                let flow = hop::run(&hop, arrival);
                tasks.spawn("flow", flow.map(|_reason| drop(slot)));
            }
            Err(error) => {
                tracing::warn!(err = %error, "the listener could not accept a connection");
                tokio::time::sleep(ERROR_REST).await;
            }
        }
    }
}
