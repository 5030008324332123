//! Front doors: local listeners whose clients say where they want to go, by SOCKS5 or as to an HTTP proxy.
//!
//! The name that a client asks for is the destination, and we look it up ourselves; a name of the zone of services opens
//! that service. From then on the flow is one like any other: the same policy, the same ways, and an answer only when
//! the way is open. Of the client's bytes none is taken but those of its request. Deliberately absent: who may connect
//! to a door, beyond a login; that is the address which it listens at.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use sealock_core::destination::Destination;
use sealock_core::fact::{Fact, Facts, Source};
use sealock_core::identity::AgentId;
use sealock_net::socket;
use sealock_net::task::Spawner;
use sealock_proto::door::{self, Login, connect, socks5};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::arrival::{Arrival, InletKind, Near, Wording, last_word};
use crate::hop::{self, Hop};

mod forward;

/// In which protocol a door is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speech {
    /// SOCKS5.
    Socks5,
    /// HTTP: CONNECT, and requests to be forwarded.
    Http,
}

impl Speech {
    /// Where its flows come in.
    #[must_use]
    pub fn inlet(self) -> InletKind {
        match self {
            Self::Socks5 => InletKind::Socks5,
            Self::Http => InletKind::HttpConnect,
        }
    }
}

/// A front door.
#[derive(Debug)]
pub struct Door {
    /// In which protocol.
    pub speech: Speech,
    /// What a client has to show; nothing for a door that is open to whoever reaches it.
    pub login: Option<Login>,
    /// Whose flows they are.
    pub caller: AgentId,
    /// The pipe for them.
    pub hop: Hop,
}

/// How long a client may take to say where it wants to go.
const TALK_LIMIT: Duration = Duration::from_secs(10); // some round trips over a bad link; a person who types is no client
/// How much of the talk is looked at in one go.
const LOOK: usize = 1_024; // more than most heads, and than every message of SOCKS5
/// How long the listener rests after an error such as «too many open files».
const ERROR_REST: Duration = Duration::from_millis(100); // ten tries a second cost nothing and recover within one
/// How many clients of one door may be at once; more wait in the kernel's backlog.
const CLIENTS_LIMIT: usize = 4_096;

/// Accepts clients and runs the flow of each through the pipe, until dropped. An error of one never ends the listener.
///
/// # Cancel safety
/// Dropping it stops accepting; flows belong to `tasks` and go on.
pub async fn serve(listener: TcpListener, door: Arc<Door>, tasks: &Spawner) {
    let slots = Arc::new(Semaphore::new(CLIENTS_LIMIT));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _remote)) => {
                // A client whose flow never opens must not see a clean end, whatever happens to this process.
                socket::reset_on_close(&stream);
                let (door, flows) = (Arc::clone(&door), tasks.clone());
                let served = async move {
                    let flow = welcome(door, stream, flows).await;
                    flow.map(|flow| -> hop::Running {
                        Box::pin(async move {
                            let reason = flow.await;
                            drop(slot);
                            reason
                        })
                    })
                };
                tasks.spawn("flow", hop::follow(served));
            }
            Err(error) => {
                tracing::warn!(err = %error, "the front door could not take a connection");
                tokio::time::sleep(ERROR_REST).await;
            }
        }
    }
}

/// What a client wants.
enum Wish {
    /// A way to this place.
    Tunnel(Destination),
    /// That its requests are forwarded; these first bytes of them were read.
    Forward(Vec<u8>),
    /// Nothing that a door gives; it was told.
    Nothing,
}

/// Hears a client out, and begins what it asks for.
async fn welcome(door: Arc<Door>, mut stream: TcpStream, tasks: Spawner) -> Option<hop::Running> {
    stream.set_nodelay(true).ok()?;
    let login = door.login.as_ref();
    let talk = async {
        match door.speech {
            Speech::Socks5 => by_socks5(&mut stream, login).await,
            Speech::Http => by_http(&mut stream, login).await,
        }
    };
    let (wish, word) = match tokio::time::timeout(TALK_LIMIT, talk).await {
        Ok(Ok(told)) => told,
        Ok(Err(error)) => {
            tracing::debug!(err = %error, "a client of a front door went before it had asked");
            return None;
        }
        Err(_elapsed) => {
            tracing::debug!("a client of a front door did not ask in time");
            return None;
        }
    };
    match wish {
        Wish::Tunnel(place) => {
            let wording = match door.speech {
                Speech::Socks5 => Wording::Socks5,
                Speech::Http => Wording::Http,
            };
            let arrival = door.arrival(place, Near::Asked(stream, wording));
            Some(hop::run(&door.hop, arrival))
        }
        Wish::Forward(read) => {
            forward::serve(stream, read, door, tasks).await;
            None
        }
        Wish::Nothing => {
            last_word(stream, &word).await;
            None
        }
    }
}

impl Door {
    fn arrival(&self, place: Destination, near: Near) -> Arrival {
        Arrival {
            inlet: self.speech.inlet(),
            facts: Facts {
                tenant: self.caller.tenant.clone(),
                caller: Fact::new(self.caller.clone(), Source::Configured),
                certificate: None,
                goal: door::goal(place),
            },
            leg: None,
            near,
        }
    }
}

/// A wish, and what is still to be said to a client that gets nothing.
type Told = (Wish, Vec<u8>);

async fn by_socks5(stream: &mut TcpStream, login: Option<&Login>) -> io::Result<Told> {
    let mut handshake = socks5::Handshake::new(login.cloned());
    loop {
        let step = message(stream, |bytes| match handshake.handle(bytes) {
            (_, socks5::Step::NeedMore) => None,
            read => Some(read),
        });
        match step.await? {
            socks5::Step::Say(answer) => stream.write_all(&answer).await?,
            socks5::Step::Asked(place) => return Ok((Wish::Tunnel(place), Vec::new())),
            socks5::Step::Refuse(word) => return Ok((Wish::Nothing, word.unwrap_or_default())),
            socks5::Step::NeedMore => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

async fn by_http(stream: &mut TcpStream, login: Option<&Login>) -> io::Result<Told> {
    let mut read = Vec::new();
    let step = message(stream, |bytes| {
        if connect::is_connect(bytes) == Some(false) {
            // What is left in the socket is read by whoever forwards it.
            read = bytes.to_vec();
            return Some((bytes.len(), connect::Step::NeedMore));
        }
        match connect::handle(login, bytes) {
            (_, connect::Step::NeedMore) => None,
            read => Some(read),
        }
    });
    Ok(match step.await? {
        connect::Step::NeedMore => (Wish::Forward(read), Vec::new()),
        connect::Step::Asked(place) => (Wish::Tunnel(place), Vec::new()),
        connect::Step::Refuse(status) => (Wish::Nothing, status.answer()),
    })
}

/// Reads one message of a talk, and leaves what is behind it in the socket. `read` is given all bytes so far, and says
/// how many are the message's and what it says, or nothing while all of them are and more will come.
async fn message<S>(
    stream: &mut TcpStream,
    mut read: impl FnMut(&[u8]) -> Option<(usize, S)>,
) -> io::Result<S> {
    let mut seen = Vec::new();
    let mut look = vec![0; LOOK];
    loop {
        let fresh = stream.peek(&mut look).await?;
        if fresh == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let before = seen.len();
        seen.extend_from_slice(&look[..fresh]);
        let told = read(&seen);
        let length = told.as_ref().map_or(seen.len(), |(length, _)| *length);
        let taken = length.saturating_sub(before).min(fresh);
        stream.read_exact(&mut look[..taken]).await?;
        if let Some((_, told)) = told {
            return Ok(told);
        }
    }
}
