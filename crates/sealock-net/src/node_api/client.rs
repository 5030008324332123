//! The typed client of the node interface: each call has a deadline, each failure a reason.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use sealock_core::address::HostPort;
use sealock_core::name::{Region, ServiceName, TenantName};
use sealock_core::reason::Reason;
use sealock_core::view::{Offering, ViewVersion};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use super::proto::node_client::NodeClient as Generated;
use super::{
    BadMessage, DecisionRow, Enrol, Issued, REASON_KEY, RESPONSE_LIMIT, Registered, WatchEvent,
    proto,
};
use crate::recover::Claim;
use crate::tls::unused_server_name;

const CONNECT: Duration = Duration::from_secs(4); // dial, relay and two TLS round trips
const CALL: Duration = Duration::from_secs(5); // F11: a join without a controller fails within this
const PING: Duration = Duration::from_secs(15); // a watch is silent for minutes, so the connection is asked
const PONG: Duration = Duration::from_secs(10);

/// Why a call to the controller brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The controller answered with a refusal.
    #[error("the controller refused: {}", .0.text())]
    Refused(Reason),
    /// The controller, or the way to it, is not there.
    #[error("the controller cannot be reached")]
    Unreachable(#[source] Away),
    /// The controller did not answer in time.
    #[error("the controller did not answer in time")]
    TimedOut,
    /// The controller ended the stream as it does before a restart.
    #[error("the controller ended the stream")]
    Ended,
    /// The controller sent what it may not.
    #[error("the controller's answer cannot be used")]
    Answer(#[from] BadMessage),
}

/// Why there was no way to the controller; what the library says around it is for its authors.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.message())]
pub struct Away(Status);

impl CallError {
    /// The coded reason.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Refused(reason) => *reason,
            Self::Unreachable(_) | Self::TimedOut | Self::Ended => Reason::ControllerUnreachable,
            Self::Answer(_) => Reason::ProtocolViolation,
        }
    }

    /// Whether the same call may succeed later without anybody changing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.reason().is_transient() || matches!(self.reason(), Reason::ControllerUnreachable)
    }
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        let number = status.metadata().get(REASON_KEY);
        let number = number.and_then(|value| value.to_str().ok()?.parse().ok());
        if let Some(number) = number {
            return Self::Refused(Reason::from_number(number));
        }
        match status.code() {
            Code::DeadlineExceeded => Self::TimedOut,
            Code::InvalidArgument | Code::Unimplemented | Code::OutOfRange => {
                Self::Refused(Reason::ProtocolViolation)
            }
            Code::ResourceExhausted => Self::Refused(Reason::Overloaded),
            Code::Unauthenticated | Code::PermissionDenied => Self::Refused(Reason::NotAdmitted),
            // `Cancelled` is what the library says when the connection went away under the call.
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss => Self::Unreachable(Away(status)),
        }
    }
}

/// Calls the controller; clones share one connection, which is made anew when it was lost.
///
/// The certificate of the connection is the one of its handshake. After a renewal make another client: the controller
/// ends calls whose certificate has ended.
#[derive(Clone)]
pub struct NodeClient {
    generated: Generated<Channel>,
    kept: bool,
}

impl fmt::Debug for NodeClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeClient").finish_non_exhaustive()
    }
}

impl NodeClient {
    /// A client over the bytes that `connect` brings, with TLS as in `tls` on top.
    ///
    /// Nothing is dialled before the first call. `tls` is `tls::controller_client` or, to join, `tls::enrol_client`.
    pub fn new<C, F, S>(tls: Arc<ClientConfig>, connect: C) -> Self
    where
        C: Fn() -> F + Clone + Send + Sync + 'static,
        F: Future<Output = io::Result<S>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let tls = TlsConnector::from(tls);
        let connector = tower::service_fn(move |_: http::Uri| {
            let (tls, stream) = (tls.clone(), connect());
            async move {
                let handshake = async {
                    let stream = stream.await?;
                    tls.connect(unused_server_name(), stream).await
                };
                let stream = timeout(CONNECT, handshake).await;
                let stream = stream.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
                Ok::<_, io::Error>(TokioIo::new(stream))
            }
        });
        // The scheme is about tonic's own TLS; ours is inside the connector.
        let endpoint = Endpoint::from_static("http://sealock")
            .http2_keep_alive_interval(PING)
            .keep_alive_timeout(PONG);
        let channel = endpoint.connect_with_connector_lazy(connector);
        let generated = Generated::new(channel).max_decoding_message_size(RESPONSE_LIMIT);
        Self {
            generated,
            kept: false,
        }
    }

    /// The same client, which tells the controller that the certificate it was made with lies on this node's disk: from
    /// then on nobody comes back with the one before it.
    #[must_use]
    pub fn with_kept_certificate(mut self) -> Self {
        self.kept = true;
        self
    }

    /// Joins with a token.
    ///
    /// # Errors
    /// `TOKEN_INVALID`, `NAME_TAKEN`, or the controller is not there.
    ///
    /// # Cancel safety
    /// The token may be used although nobody got the certificate.
    pub async fn enrol(&self, enrol: &Enrol) -> Result<Issued, CallError> {
        let request = proto::EnrolRequest {
            secret: enrol.secret.expose().to_vec(),
            csr: enrol.csr.clone(),
            name: enrol.naming.asked.clone().unwrap_or_default(),
            own_name: enrol.naming.own.clone().unwrap_or_default(),
            role: proto::Role::from(enrol.role).into(),
            addresses: texts(&enrol.addresses),
        };
        let mut client = self.generated.clone();
        let identity = within(client.enrol(request)).await?;
        Ok(identity.try_into()?)
    }

    /// Comes back with the key of a certificate that ended; the connection shows none.
    ///
    /// # Errors
    /// `IDENTITY_REVOKED`, `NOT_ADMITTED`, or the controller is not there.
    ///
    /// # Cancel safety
    /// Safe: a certificate that nobody got ends by itself.
    pub async fn recover(&self, claim: &Claim, proof: Vec<u8>) -> Result<Issued, CallError> {
        let request = proto::RecoverRequest {
            certificate: claim.certificate.to_vec(),
            csr: claim.csr.clone(),
            at_ms: claim.at.as_millisecond(),
            proof,
        };
        let mut client = self.generated.clone();
        let identity = within(client.recover(request)).await?;
        Ok(identity.try_into()?)
    }

    /// Gets the next certificate for the identity of this connection.
    ///
    /// # Errors
    /// `IDENTITY_REVOKED`, or the controller is not there.
    ///
    /// # Cancel safety
    /// Safe: a certificate that nobody got ends by itself.
    pub async fn renew(&self, csr: Vec<u8>) -> Result<Issued, CallError> {
        let mut client = self.generated.clone();
        let identity = within(client.renew(proto::RenewRequest { csr })).await?;
        Ok(identity.try_into()?)
    }

    /// Watches views, trust and relays; `have` are the versions that need not be sent again.
    ///
    /// # Errors
    /// `IDENTITY_REVOKED`, or the controller is not there.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn watch(
        &self,
        have: &BTreeMap<TenantName, ViewVersion>,
    ) -> Result<Watch, CallError> {
        self.watch_in(have, None).await
    }

    /// The same for a relay, which says where it is.
    ///
    /// # Errors
    /// As of [`Self::watch`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn watch_in(
        &self,
        have: &BTreeMap<TenantName, ViewVersion>,
        region: Option<&Region>,
    ) -> Result<Watch, CallError> {
        let have = have
            .iter()
            .map(|(tenant, version)| proto::watch_request::Have {
                tenant: tenant.to_string(),
                version: version.0,
            });
        let request = proto::WatchRequest {
            have: have.collect(),
            kept: self.kept,
            region: region.map(ToString::to_string).unwrap_or_default(),
        };
        let mut client = self.generated.clone();
        let events = within(client.watch(request)).await?;
        Ok(Watch { events })
    }

    /// Offers services, or repeats the offer before its lease ends.
    ///
    /// # Errors
    /// `IDENTITY_REVOKED`, or the controller is not there.
    ///
    /// # Cancel safety
    /// The offer may stand although nobody got the answer; repeat it.
    pub async fn register(
        &self,
        generation: u64,
        services: &BTreeMap<ServiceName, Offering>,
    ) -> Result<Registered, CallError> {
        let request = proto::RegisterRequest {
            generation,
            services: services.iter().map(Into::into).collect(),
        };
        let mut client = self.generated.clone();
        let answer = within(client.register(request)).await?;
        let row = |row: proto::Registered| {
            let name = row.name.parse().map_err(|_| BadMessage("service"))?;
            Ok((name, Reason::from_number(row.reason.into())))
        };
        let rows: Result<_, BadMessage> = answer.services.into_iter().map(row).collect();
        Ok(Registered {
            services: rows?,
            lease: Duration::from_secs(answer.lease_seconds.into()),
        })
    }

    /// Takes services back.
    ///
    /// # Errors
    /// When the controller is not there.
    ///
    /// # Cancel safety
    /// They may be gone or not; repeat it.
    pub async fn unregister(
        &self,
        generation: u64,
        services: &BTreeSet<ServiceName>,
    ) -> Result<(), CallError> {
        let request = proto::UnregisterRequest {
            generation,
            services: services.iter().map(ToString::to_string).collect(),
        };
        let mut client = self.generated.clone();
        within(client.unregister(request)).await?;
        Ok(())
    }

    /// Hands decisions over for the audit record; `addresses` are a relay's own, and empty for an agent.
    ///
    /// # Errors
    /// When the controller is not there; keep the rows and try again.
    ///
    /// # Cancel safety
    /// The rows may be recorded although nobody got the answer.
    pub async fn report(
        &self,
        decisions: &[DecisionRow],
        addresses: &[HostPort],
    ) -> Result<(), CallError> {
        let request = proto::ReportRequest {
            decisions: decisions.iter().map(Into::into).collect(),
            addresses: texts(addresses),
        };
        let mut client = self.generated.clone();
        within(client.report(request)).await?;
        Ok(())
    }
}

fn texts(addresses: &[HostPort]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

async fn within<T>(
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, CallError> {
    let answer = timeout(CALL, call).await;
    Ok(answer.map_err(|_| CallError::TimedOut)??.into_inner())
}

/// Views and trust as they change.
#[derive(Debug)]
pub struct Watch {
    events: Streaming<proto::WatchEvent>,
}

impl Watch {
    /// The next event. It may take minutes; the connection itself is asked for life meanwhile.
    ///
    /// # Errors
    /// When the stream ended or the connection was lost: watch again with the versions that are held.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn next(&mut self) -> Result<WatchEvent, CallError> {
        let event = self.events.message().await?.ok_or(CallError::Ended)?;
        Ok(event.try_into()?)
    }
}
