//! A unix stream socket of the program behind a service.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use sealock_core::reason::Reason;
use tokio::net::UnixStream;

/// How long the socket may take: it blocks only while the program's backlog is full.
const DEADLINE: Duration = Duration::from_secs(5);

/// Connects to the target.
///
/// # Errors
/// Refused when nobody listens, unreachable when there is no socket or no permission, too slow otherwise.
pub async fn open(path: &Path) -> Result<UnixStream, Reason> {
    match tokio::time::timeout(DEADLINE, UnixStream::connect(path)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => {
            Err(Reason::TargetRefused)
        }
        Ok(Err(error)) => {
            tracing::debug!(err = %error, "the target cannot be reached");
            Err(Reason::TargetUnreachable)
        }
        Err(_elapsed) => Err(Reason::TargetTimeout),
    }
}
