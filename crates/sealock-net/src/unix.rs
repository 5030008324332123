//! Private unix sockets, over which the command line talks to a running node: JSON over HTTP/1.1.
//!
//! The socket is closed to others from its first moment: its directory is 0700 and the umask is set before the bind, so
//! there is no window in which a mode is still to be repaired. Every caller's user id is checked besides.
//! Deliberately absent: TCP, tokens, and what a caller may do (the methods say what they need).

mod client;
mod routes;

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::fs::{FlockOperation, OFlags, flock};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use crate::files::{self, FileError};
use crate::sys;
use crate::task::{Scope, Spawner};

pub use client::{CallError, Lines, UnixClient};
pub use routes::Routes;

/// Why a socket was not made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The directory is missing, open to others, or somebody else's; or the socket's place is taken by another file.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another process is listening there.
    #[error("{} is in use by a running process; hint: stop it first", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The operating system said no.
    #[error("{} cannot be listened at", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Who is at the other end of a unix socket, as the kernel says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// The user that it ran as when it connected.
    pub uid: u32,
    /// Its process, for the log only: numbers are used again.
    pub pid: Option<i32>,
}

impl Caller {
    fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        Ok(Self {
            uid: credentials.uid(),
            pid: credentials.pid(),
        })
    }

    fn is_trusted(self) -> bool {
        self.uid == sys::own_uid() || self.uid == ROOT
    }
}

const ROOT: u32 = 0;

/// A unix socket that only its own user and root can reach. Dropping it removes the socket.
#[derive(Debug)]
pub struct PrivateListener {
    inner: UnixListener,
    path: PathBuf,
    inode: (u64, u64),
    _lock: File, // held for as long as the socket is ours
}

impl PrivateListener {
    /// Listens at `path`; makes its directory if it is missing, and takes the place of a socket whose process is gone.
    ///
    /// # Errors
    /// When the directory is open to others, the place holds something else than an old socket of ours, or another
    /// process listens there. Must be called within the runtime.
    pub fn bind(path: impl Into<PathBuf>) -> Result<Self, BindError> {
        let path = path.into();
        let dir = path.parent().unwrap_or_else(|| Path::new("/"));
        files::ensure_private_dir(dir)?;
        // Two processes that start together would each take the other's new socket for an old one.
        let lock = take_lock(&path)?;
        remove_stale(&path)?;
        let io = |source| BindError::Io {
            path: path.clone(),
            source,
        };
        let listener = sys::with_private_umask(|| StdListener::bind(&path)).map_err(io)?;
        listener.set_nonblocking(true).map_err(io)?;
        let inner = UnixListener::from_std(listener).map_err(io)?;
        let metadata = fs::symlink_metadata(&path).map_err(io)?;
        Ok(Self {
            inner,
            inode: (metadata.dev(), metadata.ino()),
            path,
            _lock: lock,
        })
    }

    /// The socket's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for a caller of our own user or root; any other is dropped and logged.
    ///
    /// # Errors
    /// When the system has no more file descriptors or memory.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn accept(&self) -> io::Result<(UnixStream, Caller)> {
        loop {
            let (stream, _) = self.inner.accept().await?;
            match Caller::of(&stream) {
                Ok(caller) if caller.is_trusted() => return Ok((stream, caller)),
                Ok(caller) => tracing::warn!(
                    uid = caller.uid,
                    pid = caller.pid,
                    "a caller of another user was turned away from the control socket"
                ),
                Err(err) => tracing::debug!(%err, "a caller left before it was known"),
            }
        }
    }
}

impl Drop for PrivateListener {
    fn drop(&mut self) {
        let still_ours = |metadata: Metadata| (metadata.dev(), metadata.ino()) == self.inode;
        if fs::symlink_metadata(&self.path).is_ok_and(still_ours) {
            fs::remove_file(&self.path).ok(); // a socket that stays is taken over by the next start
        }
    }
}

fn take_lock(path: &Path) -> Result<File, BindError> {
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    let lock_path = PathBuf::from(lock_path);
    let lock = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(&lock_path);
    let lock = lock.map_err(|source| BindError::Io {
        path: lock_path,
        source,
    })?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(BindError::InUse {
            path: path.to_owned(),
        }),
        Err(source) => Err(BindError::Io {
            path: path.to_owned(),
            source: source.into(),
        }),
    }
}

fn remove_stale(path: &Path) -> Result<(), BindError> {
    let io = |source| BindError::Io {
        path: path.to_owned(),
        source,
    };
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
    };
    if !metadata.file_type().is_socket() {
        // A link could lead us to remove or to serve somewhere else; nothing that is not ours is touched.
        return Err(BindError::File(FileError::WrongKind {
            path: path.to_owned(),
            expected: "socket",
        }));
    }
    match StdStream::connect(path) {
        Ok(_) => Err(BindError::InUse {
            path: path.to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(io)
        }
        Err(error) => Err(io(error)),
    }
}

const CONNECTIONS: usize = 1_024; // each `expose` and `connect` holds one; more callers wait in the kernel's queue
const HEADER_DEADLINE: Duration = Duration::from_secs(10);
const HEADER_BYTES: usize = 16 * 1024;

/// Serves `router` to the callers of `listener` in a task of `scope`, until the scope is asked to stop.
///
/// Handlers find the [`Caller`] among the request's extensions.
pub fn serve_json(listener: PrivateListener, router: Router, scope: &Scope) {
    let spawner = scope.spawner();
    scope.spawn("control-socket", async move {
        tokio::select! {
            biased; // a stopping node takes no more callers
            () = spawner.stopping() => {}
            () = accept_all(&listener, &router, &spawner) => {}
        }
    });
}

async fn accept_all(listener: &PrivateListener, router: &Router, spawner: &Spawner) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return; // never closed
        };
        match listener.accept().await {
            Ok((stream, caller)) => {
                let router = router.clone().layer(axum::Extension(caller));
                let own = spawner.clone();
                spawner.spawn("control-connection", async move {
                    serve_one(stream, router, &own).await;
                    drop(place);
                });
            }
            Err(err) => {
                tracing::warn!(%err, "the control socket cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(100); // out of descriptors: others have to close some first

async fn serve_one(stream: UnixStream, router: Router, spawner: &Spawner) {
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        biased; // either order is right: both arms end the connection
        served = connection.as_mut() => served,
        () = spawner.stopping() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(err) = served {
        tracing::debug!(%err, "a control connection ended early");
    }
}

#[cfg(test)]
mod tests;
