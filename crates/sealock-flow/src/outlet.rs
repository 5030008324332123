//! The fourth stage: the first way that answers.
//!
//! A way is one entry of a plan, complete with all that its opening needs, so that opening is one `match`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use sealock_core::address::HostPort;
use sealock_core::fact::Facts;
use sealock_core::reason::Reason;

use crate::arrival::{LegHead, Near};
use crate::io::Io;
use crate::live::{LiveFlow, Permit};
use crate::rule::Ruled;

pub mod direct;
pub mod outside;
pub mod session;
pub mod unix;

/// One way to the far side.
#[derive(Debug, Clone)]
pub enum Way {
    /// At an agent: to a service, through a relay, encrypted end to end.
    Service(Arc<session::ServiceOutlet>),
    /// At a relay: the session of an agent that provides the service.
    Provider(session::Provider),
    /// At a relay: another relay that a provider is at.
    Peer(session::PeerRelay),
    /// To a TCP listener.
    Direct(HostPort),
    /// To the flow's destination outside.
    Outside(Box<outside::Outside>),
    /// To a unix stream socket.
    Unix(PathBuf),
    /// Nowhere.
    Refuse(Reason),
}

impl Way {
    /// The word in logs.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Service(_) | Self::Provider(_) => "session",
            Self::Peer(_) => "peer",
            Self::Direct(_) => "direct",
            Self::Outside(outside) => outside.as_str(),
            Self::Unix(_) => "unix",
            Self::Refuse(_) => "refuse",
        }
    }
}

/// What an outlet is told of the flow that it opens a way for.
#[derive(Debug)]
pub struct Opening<'a> {
    /// What is known of the flow.
    pub facts: &'a Facts,
    /// Which leg of which stream it is, when it came over a session.
    pub leg: Option<&'a LegHead>,
    /// The near side, for what it has already sent.
    pub near: &'a mut Near,
    /// The flow, for counting what it has already sent.
    pub flow: &'a LiveFlow,
}

impl Opening<'_> {
    /// What the near side has already sent. Taken once, by the way that can carry it.
    ///
    /// # Errors
    /// When the near side is gone.
    pub fn early(&mut self) -> Result<Bytes, Reason> {
        let early = self.near.early()?;
        self.flow
            .bytes_up
            .fetch_add(early.len() as u64, Ordering::Relaxed);
        Ok(early)
    }
}

/// A flow whose far side is open; the near side is still unanswered.
#[derive(Debug)]
pub struct Opened {
    /// Who waits for an answer.
    pub near: Near,
    /// Where the flow goes.
    pub far: Io,
}

/// A flow that no way was open for.
#[derive(Debug)]
pub struct Failed {
    /// Who waits for an answer.
    pub near: Near,
    /// The flow's right to be, for its record.
    pub permit: Permit,
    /// Why the last way did not open.
    pub reason: Reason,
}

/// How long one way may take to answer.
const OPEN_DEADLINE: Duration = Duration::from_secs(15); // a dial of 10 s at the provider, and the way there

/// Opens the first way that answers.
///
/// # Errors
/// The near side with the reason of the last way, so that it can be answered. A permit that policy takes back
/// meanwhile fails the opening too.
pub async fn open(ruled: Ruled) -> Result<(Opened, Permit), Box<Failed>> {
    let Ruled {
        named,
        permit,
        ways,
    } = ruled;
    let mut near = named.near;
    let mut last = Reason::Internal; // replaced by the first way: a plan is never empty
    for way in ways {
        let mut opening = Opening {
            facts: &named.facts,
            leg: named.leg.as_ref(),
            near: &mut near,
            flow: permit.flow(),
        };
        let answer = tokio::select! {
            biased; // policy before progress
            reason = permit.revoked() => Err(reason),
            answer = tokio::time::timeout(OPEN_DEADLINE, open_way(&way, &mut opening)) => {
                answer.unwrap_or(Err(Reason::OpenTimeout))
            }
        };
        match answer {
            Ok(far) => return Ok((Opened { near, far }, permit)),
            Err(reason) => {
                tracing::debug!(outlet = way.as_str(), %reason, "a way did not open");
                last = reason;
            }
        }
    }
    Err(Box::new(Failed {
        near,
        permit,
        reason: last,
    }))
}

async fn open_way(way: &Way, opening: &mut Opening<'_>) -> Result<Io, Reason> {
    match way {
        Way::Service(outlet) => outlet.open(opening).await,
        Way::Provider(provider) => session::forward(provider, opening).await,
        Way::Peer(peer) => session::hand_over(peer, opening).await,
        Way::Direct(address) => direct::open(address).await.map(Io::Tcp),
        Way::Outside(outside) => outside.open(opening.facts).await.map(Io::Tcp),
        Way::Unix(path) => {
            let stream = unix::open(path).await?;
            Ok(Io::Unix(stream.into()))
        }
        Way::Refuse(reason) => Err(*reason),
    }
}
