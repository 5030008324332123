//! Joining: a token becomes an identity on disk.
//!
//! The controller is authenticated end to end by the token's pin, so neither the relay on the way nor anybody else
//! learns the token's secret or can put another deployment in the place of ours.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sealock_core::address::HostPort;
use sealock_core::identity::{Role, SpiffeId};
use sealock_core::reason::Reason;
use sealock_core::token::JoinToken;
use tokio::net::TcpStream;

use crate::files::FileError;
use crate::identity::{IdentityDir, KeyError, KeyPair, Svid, SvidError};
pub use crate::node_api::Naming;
use crate::node_api::{CallError, Enrol, NodeClient};
use crate::session::{Dialer, Plan};
use crate::tls;
use crate::transport::{Settings, StreamIo};

/// Why a node did not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The token is for another role.
    #[error("the token is for a {token}, and this is a {wanted}")]
    WrongRole {
        /// What the token is for.
        token: Role,
        /// What wants to join.
        wanted: Role,
    },
    /// No UDP socket.
    #[error("no UDP socket can be opened")]
    Socket(#[source] io::Error),
    /// The machine makes no keys.
    #[error("a key could not be made")]
    Key(#[source] KeyError),
    /// The controller did not let it in.
    #[error("{}", .0.reason().text())]
    Refused(#[source] CallError),
    /// No address of the token leads to the controller, although a relay was there, where one is needed.
    #[error("none of the token's addresses leads to the controller")]
    Unreachable(#[source] CallError),
    /// No relay of the token is there.
    #[error("none of the token's relays can be reached")]
    NoRelay(#[source] CallError),
    /// What was issued is of no use.
    #[error("the controller issued a certificate that cannot be used")]
    Issued(#[source] SvidError),
    /// The identity cannot be kept.
    #[error("the new identity cannot be written to disk")]
    Keep(#[source] FileError),
}

impl JoinError {
    /// How it is shown to users.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::WrongRole { .. } => Reason::TokenInvalid,
            Self::Socket(_) | Self::Key(_) | Self::Keep(_) => Reason::Internal,
            Self::Refused(error) | Self::Unreachable(error) => error.reason(),
            Self::NoRelay(_) => Reason::RelayUnreachable,
            Self::Issued(_) => Reason::ProtocolViolation,
        }
    }
}

/// Joins as an agent, through the relays that the token names, by any of `ways`.
///
/// # Errors
/// When the token is not good, nobody is reached, or the identity cannot be kept.
///
/// # Cancel safety
/// The token may be used although no identity was kept.
pub async fn join_agent(
    token: &JoinToken,
    naming: Naming,
    dir: &IdentityDir,
    ways: &Plan,
) -> Result<SpiffeId, JoinError> {
    expect_role(token, Role::Agent)?;
    let ways = ways.open(Settings::default()).map_err(JoinError::Socket)?;
    let dialer = Dialer::for_joining(ways.clone(), token.pin);
    let met = Arc::new(AtomicBool::new(false));
    let meeting = Arc::clone(&met);
    let through = move |relay: HostPort| {
        let (dialer, met) = (dialer.clone(), Arc::clone(&meeting));
        async move {
            let stream = dial_through(&dialer, &relay).await?;
            met.store(true, Ordering::Relaxed);
            Ok(stream)
        }
    };
    let joined = join(token, naming, Vec::new(), dir, through).await;
    ways.close(Reason::Done);
    ways.wait_idle().await;
    match joined {
        Err(JoinError::Unreachable(error)) if !met.load(Ordering::Relaxed) => {
            Err(JoinError::NoRelay(error))
        }
        joined => joined,
    }
}

pub(crate) async fn dial_through(dialer: &Dialer, relay: &HostPort) -> io::Result<StreamIo> {
    let connection = dialer.dial(relay).await.map_err(|error| {
        tracing::info!(%relay, err = %error, "the relay was not reached");
        io::Error::from(error.reason())
    })?;
    let stream = connection
        .open_bi()
        .await
        .map_err(|lost| io::Error::from(lost.reason()))?;
    Ok(stream.into_io())
}

/// Joins as a relay, at the controller that the token names; `addresses` are where agents will reach it.
///
/// # Errors
/// When the token is not good, nobody is reached, or the identity cannot be kept.
///
/// # Cancel safety
/// The token may be used although no identity was kept.
pub async fn join_relay(
    token: &JoinToken,
    naming: Naming,
    addresses: Vec<HostPort>,
    dir: &IdentityDir,
) -> Result<SpiffeId, JoinError> {
    expect_role(token, Role::Relay)?;
    join(token, naming, addresses, dir, dial_controller).await
}

/// Dials the controller directly, as relays do.
///
/// # Errors
/// What the operating system says.
pub async fn dial_controller(controller: HostPort) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((controller.host(), controller.port())).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn expect_role(token: &JoinToken, wanted: Role) -> Result<(), JoinError> {
    if token.role == wanted {
        return Ok(());
    }
    Err(JoinError::WrongRole {
        token: token.role,
        wanted,
    })
}

async fn join<F, S>(
    token: &JoinToken,
    naming: Naming,
    addresses: Vec<HostPort>,
    dir: &IdentityDir,
    dial: impl Fn(HostPort) -> F + Clone + Send + Sync + 'static,
) -> Result<SpiffeId, JoinError>
where
    F: Future<Output = io::Result<S>> + Send + 'static,
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let key = Arc::new(KeyPair::generate().map_err(JoinError::Key)?);
    let enrol = Enrol {
        secret: token.secret.clone(),
        csr: key.request_der().map_err(JoinError::Key)?,
        naming,
        role: token.role,
        addresses,
    };
    let mut last = CallError::TimedOut;
    for address in token.addresses.clone() {
        let dial = dial.clone();
        let client = NodeClient::new(tls::enrol_client(token.pin), move || dial(address.clone()));
        match client.enrol(&enrol).await {
            Ok(issued) => {
                let svid = Svid::new(issued.chain, key).map_err(JoinError::Issued)?;
                dir.store_trust(&issued.trust).map_err(JoinError::Keep)?;
                dir.store_svid(&svid).map_err(JoinError::Keep)?;
                return Ok(issued.id);
            }
            Err(error @ CallError::Refused(_)) => return Err(JoinError::Refused(error)),
            Err(error) => last = error,
        }
    }
    Err(JoinError::Unreachable(last))
}
