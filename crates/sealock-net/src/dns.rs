//! The DNS of workloads on sockets: a [`Desk`] answers for one workload, [`Upstreams`] are asked for all of them.
//!
//! The sockets are opened by whoever knows the workload's namespace and handed over; whoever has datagrams without a
//! socket (a capture of every port) calls [`Desk::answer`] itself. What needs no upstream is answered on the spot.
//! Deliberately absent: what the answers are, which is `sealock_proto::dns`.

mod ask;
mod serve;
mod upstreams;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use sealock_core::host::HostName;
use sealock_proto::dns::book::Book;
use sealock_proto::dns::server::{Asked, Outcome, Pending, Server, Settings, World};

pub use sealock_proto::dns::record::Over;
pub use serve::{serve_tcp, serve_udp};
use upstreams::Found;
pub use upstreams::Upstreams;

/// The DNS of one workload; clones are the same desk.
#[derive(Clone)]
pub struct Desk {
    inner: Arc<Inner>,
}

struct Inner {
    server: Mutex<Server>,
    world: Box<dyn World + Send + Sync>,
    upstreams: Upstreams,
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

/// What becomes of a message at once.
enum Step {
    Reply(Vec<u8>),
    Wait(Box<Pending>),
    Nothing,
}

impl Desk {
    /// The DNS of a workload that was given no address yet.
    #[must_use]
    pub fn new(
        settings: Settings,
        world: Box<dyn World + Send + Sync>,
        upstreams: Upstreams,
    ) -> Self {
        let server = Mutex::new(Server::new(settings, Book::default()));
        Self {
            inner: Arc::new(Inner {
                server,
                world,
                upstreams,
            }),
        }
    }

    /// The reply to a message of the workload, within six seconds; `None` where none is due.
    ///
    /// # Cancel safety
    /// Safe: an upstream that was asked goes on, and its answer is there for the next question.
    pub async fn answer(&self, over: Over, message: &[u8]) -> Option<Vec<u8>> {
        match self.step(over, message) {
            Step::Reply(reply) => Some(reply),
            Step::Wait(pending) => Some(self.finish(&pending).await),
            Step::Nothing => None,
        }
    }

    fn step(&self, over: Over, message: &[u8]) -> Step {
        let mut server = self.inner.server.lock();
        let outcome = server.handle_query(Instant::now(), over, message, self.inner.world.as_ref());
        match outcome {
            Outcome::Reply(reply) => Step::Reply(reply),
            Outcome::Forward(pending) => Step::Wait(pending),
            Outcome::Nothing => Step::Nothing,
        }
    }

    async fn finish(&self, pending: &Pending) -> Vec<u8> {
        let kind = pending.query.question.kind;
        let found = self
            .inner
            .upstreams
            .find(pending.upstreams, &pending.name, kind)
            .await;
        let asked = match &found {
            Found::Answer(answer, age) => Asked::Answer(answer, *age),
            Found::Stale(answer) => Asked::Stale(answer),
            Found::Silent => Asked::Silent,
            Found::Failed => Asked::Failed,
        };
        let mut server = self.inner.server.lock();
        server.handle_answer(Instant::now(), pending, asked, self.inner.world.as_ref())
    }

    /// The names that this workload was given for an address, the latest first.
    #[must_use]
    pub fn names(&self, address: IpAddr) -> Vec<HostName> {
        self.inner
            .server
            .lock()
            .book()
            .names(Instant::now(), address)
    }

    /// The name that a synthetic address stands for, which keeps it until the lease is dropped.
    #[must_use]
    pub fn hold(&self, address: IpAddr) -> Option<Lease> {
        let name = self.inner.server.lock().book_mut().hold(address)?;
        let desk = self.clone();
        Some(Lease {
            name,
            address,
            desk,
        })
    }
}

/// A flow's claim on its synthetic address: it stands for the same name as long as this lives.
#[derive(Debug)]
pub struct Lease {
    name: HostName,
    address: IpAddr,
    desk: Desk,
}

impl Lease {
    /// The name.
    #[must_use]
    pub fn name(&self) -> &HostName {
        &self.name
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut server = self.desk.inner.server.lock();
        server.book_mut().release(Instant::now(), self.address);
    }
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;
