//! The way of agents to the controller: the relay joins a stream with a TCP connection and passes bytes on blindly.
//!
//! What goes through is TLS between agent and controller, so the relay learns neither tokens nor certificates nor
//! policy from it. Nodes that have no certificate yet come this way too, within limits of their own.

use std::sync::Arc;
use std::time::Duration;

use sealock_core::address::HostPort;
use sealock_core::reason::Reason;
use sealock_flow::io::Io;
use sealock_flow::outlet::direct;
use sealock_net::transport::{BiStream, Connection};
use tokio::sync::Semaphore;

/// Dials the controller for others.
#[derive(Debug, Clone)]
pub(crate) struct ControllerWay {
    address: HostPort,
    joining: Arc<Semaphore>,
}

/// Nodes without a certificate that may talk to the controller at once.
const JOINING_LIMIT: usize = 64;
/// How long an enrolment may take in all: a key, a request, an answer.
const JOINING_DEADLINE: Duration = Duration::from_secs(30);
/// What an enrolment may send: a token, a signing request, TLS around it.
const JOINING_BYTES: usize = 64 * 1024;

impl ControllerWay {
    pub(crate) fn new(address: HostPort) -> Self {
        Self {
            address,
            joining: Arc::new(Semaphore::new(JOINING_LIMIT)),
        }
    }

    /// Joins a stream with the controller until both directions ended.
    pub(crate) async fn join(&self, leg: BiStream) {
        self.join_at_most(leg, usize::MAX).await;
    }

    /// Lets a node without a certificate talk to the controller: one stream, briefly.
    pub(crate) async fn admit_joining(&self, connection: &Connection) {
        let Ok(_slot) = self.joining.try_acquire() else {
            connection.close(Reason::Overloaded);
            return;
        };
        let talk = async {
            let leg = connection.accept_bi().await?;
            self.join_at_most(leg, JOINING_BYTES).await;
            Ok::<(), Reason>(())
        };
        let ended = match tokio::time::timeout(JOINING_DEADLINE, talk).await {
            Ok(Ok(())) => Reason::Done,
            Ok(Err(reason)) => reason,
            Err(_elapsed) => Reason::HandshakeTimeout,
        };
        // The agent closes when it has what it came for; closing here first could overtake the last bytes.
        let _in_time = tokio::time::timeout(JOINING_DEADLINE, connection.closed()).await;
        connection.close(ended);
    }

    async fn join_at_most(&self, leg: BiStream, limit: usize) {
        let controller = match direct::open(&self.address).await {
            Ok(stream) => Io::Tcp(stream),
            Err(reason) => {
                tracing::warn!(reason = reason.code(), controller = %self.address, "the controller cannot be reached");
                leg.reset(Reason::ControllerUnreachable);
                return;
            }
        };
        let (mut near_reader, mut near_writer) = Io::Leg(leg).split();
        let (mut far_reader, mut far_writer) = controller.split();
        let up = async {
            let mut left = limit;
            while let Some(chunk) = near_reader.read().await? {
                left = left.checked_sub(chunk.len()).ok_or(Reason::QuotaExceeded)?;
                far_writer.write(chunk).await?;
            }
            far_writer.finish().await
        };
        let down = async {
            while let Some(chunk) = far_reader.read().await? {
                near_writer.write(chunk).await?;
            }
            near_writer.finish().await
        };
        let ended = tokio::try_join!(up, down);
        if let Err(reason) = ended {
            near_reader.stop(reason);
            near_writer.reset(reason);
            far_writer.reset(reason);
        }
    }
}
