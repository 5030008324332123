//! The way of agents to the controller: the relay joins a stream with a TCP connection and passes bytes on blindly.
//!
//! What goes through is TLS between agent and controller, so the relay learns neither tokens nor certificates nor
//! policy from it. Nodes that have no certificate yet come this way too, within limits of their own.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sealock_core::address::HostPort;
use sealock_core::reason::Reason;
use sealock_flow::io::Io;
use sealock_flow::outlet::direct;
use sealock_net::transport::admission::network_of;
use sealock_net::transport::{BiStream, Connection};

/// Dials the controller for others.
#[derive(Debug, Clone)]
pub(crate) struct ControllerWay {
    address: HostPort,
    joining: Joining,
}

/// How long a node that joins may take to say its first word.
const FIRST_WORD_DEADLINE: Duration = Duration::from_secs(5);
/// How long an enrolment may take in all: a key, a request, an answer. The node itself gives up sooner.
const JOINING_DEADLINE: Duration = Duration::from_secs(10);
/// What an enrolment may send: a token, a signing request, TLS around it.
const JOINING_BYTES: usize = 64 * 1024;

impl ControllerWay {
    pub(crate) fn new(address: HostPort) -> Self {
        Self {
            address,
            joining: Joining::default(),
        }
    }

    /// Joins a stream with the controller until both directions ended.
    pub(crate) async fn join(&self, leg: BiStream) {
        // The leg has been told how it ended.
        let _ended = self.join_at_most(leg, usize::MAX).await;
    }

    /// Lets a node without a certificate talk to the controller: one stream, briefly.
    pub(crate) async fn admit_joining(&self, connection: &Connection) {
        let source = connection.remote_address().map(|address| address.ip());
        let slot = source.and_then(|source| self.joining.enter(source));
        let ended = match slot {
            None => Reason::Overloaded,
            Some(_slot) => tokio::time::timeout(JOINING_DEADLINE, self.enrol(connection))
                .await
                .unwrap_or(Reason::HandshakeTimeout),
        };
        connection.close(ended);
    }

    async fn enrol(&self, connection: &Connection) -> Reason {
        let first = tokio::time::timeout(FIRST_WORD_DEADLINE, connection.accept_bi()).await;
        let leg = match first {
            Ok(Ok(leg)) => leg,
            Ok(Err(lost)) => return lost.reason(),
            Err(_elapsed) => return Reason::HandshakeTimeout,
        };
        let talk = async {
            match self.join_at_most(leg, JOINING_BYTES).await {
                // The node closes when it has what it came for; closing here first could overtake the last bytes.
                Ok(()) => connection.closed().await.reason(),
                Err(reason) => reason,
            }
        };
        tokio::select! {
            biased; // an enrolment that ended is not disturbed any more
            ended = talk => ended,
            second = connection.accept_bi() => match second {
                Ok(_) => Reason::ProtocolViolation,
                Err(lost) => lost.reason(),
            },
        }
    }

    async fn join_at_most(&self, leg: BiStream, limit: usize) -> Result<(), Reason> {
        let controller = match direct::open(&self.address).await {
            Ok(stream) => Io::Tcp(stream),
            Err(reason) => {
                tracing::warn!(reason = reason.code(), controller = %self.address, "the controller cannot be reached");
                leg.reset(Reason::ControllerUnreachable);
                return Err(Reason::ControllerUnreachable);
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
        ended.map(|_| ())
    }
}

/// Nodes without a certificate that may talk to the controller at once.
const JOINING_LIMIT: usize = 128;
/// As many of one source: nobody keeps all others out, and a rack behind one address still joins together.
const JOINING_PER_SOURCE: usize = 32;

/// Counts the nodes without a certificate, by where they come from.
#[derive(Debug, Clone, Default)]
struct Joining {
    sources: Arc<Mutex<BTreeMap<IpAddr, usize>>>,
}

/// A node that may join, until it is dropped.
#[derive(Debug)]
struct JoiningSlot {
    joining: Joining,
    source: IpAddr,
}

impl Joining {
    fn enter(&self, source: IpAddr) -> Option<JoiningSlot> {
        let source = network_of(source);
        let mut sources = self.sources.lock();
        if sources.values().sum::<usize>() >= JOINING_LIMIT {
            return None;
        }
        let count = sources.entry(source).or_default();
        if *count >= JOINING_PER_SOURCE {
            return None;
        }
        *count += 1;
        Some(JoiningSlot {
            joining: self.clone(),
            source,
        })
    }
}

impl Drop for JoiningSlot {
    fn drop(&mut self) {
        let mut sources = self.joining.sources.lock();
        if let Some(count) = sources.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                sources.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // S28: one source that holds all it may have leaves room for others, and what ends is free again.
    #[test]
    fn no_source_takes_every_place_and_places_come_back() {
        let joining = Joining::default();
        let bad: IpAddr = "192.0.2.1".parse().expect("an address");
        let same_host =
            ["2001:db8::1", "2001:db8::2"].map(|text| text.parse().expect("an address"));
        let held: Vec<_> = (0..200).filter_map(|_| joining.enter(bad)).collect();
        assert_eq!(held.len(), JOINING_PER_SOURCE);
        let others: Vec<_> = (0..JOINING_PER_SOURCE)
            .filter_map(|n| joining.enter(same_host[n % 2]))
            .collect();
        assert_eq!(others.len(), JOINING_PER_SOURCE);
        assert!(joining.enter(same_host[0]).is_none(), "a /64 counts as one");
        drop((held, others));
        assert!(joining.enter(bad).is_some());
        assert!(joining.sources.lock().is_empty());
    }
}
