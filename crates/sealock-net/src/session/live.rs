//! One session that is up: its greeting, its control stream, the legs that the relay offers on it, and its retirement.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sealock_core::address::HostPort;
use sealock_core::name::ServiceName;
use sealock_core::reason::Reason;
use sealock_proto::session::{AgentEvent, AgentSide};
use sealock_proto::wire::{Drain, Hello, Message, PROTOCOL_VERSION, Voucher};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use super::keep::{Next, relay_name};
use super::{Offered, Session, SessionConfig};
use crate::message::{self, Inbox, ReadError};
use crate::stream::Leg;
use crate::task::Scope;
use crate::tls::voucher::vouch;
use crate::transport::{BiStream, Connection, Lost, SendHalf};

/// A session that is up, with its control stream.
pub(super) struct Live {
    pub(super) session: Session,
    control: Control,
    /// Has seen every renewal up to the handshake of this session.
    pub(super) renewed: watch::Receiver<()>,
}

/// How a session ended that was kept.
pub(super) enum Ended {
    Lost(Reason),
    Replaced(Box<Next>),
}

/// Says hello on a connection and waits to be let in.
pub(super) async fn welcome(
    config: &SessionConfig,
    connection: Connection,
    relay: &HostPort,
    renewed: watch::Receiver<()>,
) -> Result<Live, Reason> {
    match greet(config, &connection).await {
        Ok((control, number)) => {
            let session = Session::new(connection, number, relay.clone(), &config.dialer);
            session.span.in_scope(|| tracing::info!("session up"));
            Ok(Live {
                session,
                control,
                renewed,
            })
        }
        Err(reason) => {
            connection.close(reason);
            Err(reason)
        }
    }
}

/// What a relay may still offer on a session before it knows the next one.
const RETIRE_GRACE: Duration = Duration::from_secs(10); // as long as an open waits

/// Takes the last legs of a session that was replaced. Its connection ends by itself with the last of its streams.
pub(super) async fn retire(session: Session, offered: mpsc::Sender<Offered>) {
    let scope = Scope::new("retired session");
    let headless = Arc::new(Semaphore::new(HEADLESS_LIMIT));
    let last = async {
        while let Ok((leg, slot)) = accept(&session.connection, &headless).await {
            take_in(session.leg(leg), slot, offered.clone(), &scope);
        }
    };
    // The time-out is the ordinary end.
    let _over = tokio::time::timeout(RETIRE_GRACE, last).await;
}

/// How long the relay may take to welcome us.
const WELCOME_DEADLINE: Duration = Duration::from_secs(10);

async fn greet(config: &SessionConfig, connection: &Connection) -> Result<(Control, u64), Reason> {
    let talk = async {
        let control = connection.open_bi().await?;
        control.stand_by();
        let BiStream {
            recv: reader,
            send: mut writer,
        } = control;
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            instance: config.instance,
            kind: config.kind,
            software: env!("CARGO_PKG_VERSION").to_owned(),
            voucher: voucher(config, connection),
            region: config.region.clone(),
        };
        writer.write(Message::Hello(hello).encode()).await?;
        let mut control = Control {
            inbox: Inbox::new(reader),
            writer,
            side: AgentSide::default(),
            offered: BTreeSet::new(),
        };
        match control.hear().await? {
            AgentEvent::Welcomed(welcome) => Ok((control, welcome.session)),
            AgentEvent::Left(reason) => Err(reason),
            AgentEvent::Registered(_) | AgentEvent::Draining(_) => Err(Reason::ProtocolViolation),
        }
    };
    let outcome = tokio::time::timeout(WELCOME_DEADLINE, talk).await;
    let outcome = outcome.unwrap_or(Err(Reason::HandshakeTimeout));
    // What the relay says at the close of the connection tells more than the broken stream.
    outcome.map_err(|reason| {
        connection
            .close_reason()
            .map_or(reason, |lost| lost.reason())
    })
}

/// The agent's word for being at this relay, by which its legs can be passed on to others.
fn voucher(config: &SessionConfig, connection: &Connection) -> Option<Voucher> {
    let relay = relay_name(connection)?;
    let svid = config.identity.current()?;
    let vouched = vouch(&svid, &relay, config.instance);
    vouched
        .inspect_err(|error| tracing::warn!(err = %error, "the agent's key cannot sign"))
        .ok()
}

/// The control stream of a live session.
struct Control {
    inbox: Inbox,
    writer: SendHalf,
    side: AgentSide,
    offered: BTreeSet<ServiceName>,
}

/// How many streams of the relay may be between their arrival and their head.
const HEADLESS_LIMIT: usize = 256;

impl Control {
    async fn hear(&mut self) -> Result<AgentEvent, Reason> {
        let message = self.inbox.next().await.map_err(ReadError::reason)?;
        self.side
            .handle_message(message)
            .map_err(|violation| violation.0)
    }
}

impl Live {
    /// Keeps the session until it ends or another one takes its place.
    pub(super) async fn run(
        &mut self,
        config: &SessionConfig,
        next: impl Future<Output = Next>,
        draining: impl Fn(Drain),
    ) -> Ended {
        let scope = Scope::new("session");
        let headless = Arc::new(Semaphore::new(HEADLESS_LIMIT));
        let mut offers = config.offers.clone();
        let (session, connection) = (&self.session, &self.session.connection);
        let Control {
            inbox,
            writer,
            side,
            offered,
        } = &mut self.control;
        let mut is_leaving = false;
        tokio::pin!(next);
        offers.mark_changed();
        loop {
            let step = tokio::select! {
                biased; // news of the session before new work on it
                lost = connection.closed() => return Ended::Lost(lost.reason()),
                message = inbox.next() => match message {
                    Ok(message) => on_message(side, message).map(|drain| {
                        if let Some(drain) = drain {
                            session.retire();
                            draining(drain);
                        }
                    }),
                    Err(error) => Err(error.reason()),
                },
                next = &mut next => {
                    // Takes no new streams; a farewell that fails changes nothing.
                    let _told = writer.write(Message::Drain(Drain::default()).encode()).await;
                    let _told = writer.finish();
                    return Ended::Replaced(Box::new(next));
                }
                () = config.farewell.cancelled(), if !is_leaving => {
                    // Nothing is offered any more; the session stays, so that later legs of what runs find us.
                    is_leaving = true;
                    // Also what an earlier session of ours offered: the relay carries that over to this one.
                    offered.extend(offers.borrow().iter().cloned());
                    send_offers(side, writer, offered, BTreeSet::new()).await
                }
                Ok(()) = offers.changed(), if !is_leaving => {
                    let wanted = offers.borrow_and_update().clone();
                    send_offers(side, writer, offered, wanted).await
                }
                stream = accept(connection, &headless) => match stream {
                    Ok((leg, slot)) => {
                        take_in(session.leg(leg), slot, config.offered.clone(), &scope);
                        Ok(())
                    }
                    Err(lost) => Err(lost.reason()),
                }
            };
            if let Err(reason) = step {
                let closed = connection.close_reason();
                return Ended::Lost(closed.map_or(reason, |lost| lost.reason()));
            }
        }
    }
}

/// Takes a message of the relay; returns its farewell when it drains.
fn on_message(side: &mut AgentSide, message: Message) -> Result<Option<Drain>, Reason> {
    match side
        .handle_message(message)
        .map_err(|violation| violation.0)?
    {
        AgentEvent::Registered(waiting) if waiting.names.is_empty() => {}
        AgentEvent::Registered(waiting) => {
            tracing::debug!(
                services = waiting.names.len(),
                "the relay does not know these services yet"
            );
        }
        AgentEvent::Draining(drain) => {
            tracing::info!("the relay is shutting down");
            return Ok(Some(drain));
        }
        AgentEvent::Left(reason) => return Err(reason),
        AgentEvent::Welcomed(_) => return Err(Reason::ProtocolViolation),
    }
    Ok(None)
}

async fn send_offers(
    side: &mut AgentSide,
    writer: &mut SendHalf,
    offered: &mut BTreeSet<ServiceName>,
    wanted: BTreeSet<ServiceName>,
) -> Result<(), Reason> {
    let new: Vec<_> = wanted.difference(offered).cloned().collect();
    let gone: Vec<_> = offered.difference(&wanted).cloned().collect();
    let messages = side.register(&new).into_iter().chain(side.withdraw(&gone));
    let bytes: Vec<Bytes> = messages.map(|message| message.encode()).collect();
    writer.write(bytes.concat().into()).await?;
    *offered = wanted;
    Ok(())
}

/// Accepts a stream when there is a place among the headless ones: a burst waits its turn in QUIC's own queue.
///
/// # Errors
/// When the connection is gone.
///
/// # Cancel safety
/// Safe.
pub async fn accept(
    connection: &Connection,
    headless: &Arc<Semaphore>,
) -> Result<(BiStream, OwnedSemaphorePermit), Lost> {
    let slot = Arc::clone(headless).acquire_owned().await;
    let slot = slot.map_err(|_closed| Lost::ByUs)?; // nobody closes the semaphore
    Ok((connection.accept_bi().await?, slot))
}

/// How long a stream may take to say what it is for.
const HEAD_DEADLINE: Duration = Duration::from_secs(5);

/// Reads a stream's head and hands it over, in a task of its own: a slow head holds up nobody.
fn take_in(
    mut leg: Leg,
    slot: OwnedSemaphorePermit,
    offered: mpsc::Sender<Offered>,
    scope: &Scope,
) {
    scope.spawn("head", async move {
        let head = tokio::time::timeout(HEAD_DEADLINE, message::read(&mut leg.io.recv)).await;
        drop(slot);
        match head {
            Ok(Ok(Message::Incoming(incoming))) => {
                if let Err(error) = offered.try_send(Offered { incoming, leg }) {
                    error.into_inner().leg.io.reset(Reason::Overloaded);
                }
            }
            Ok(Ok(_) | Err(_)) => leg.io.reset(Reason::ProtocolViolation),
            Err(_elapsed) => leg.io.reset(Reason::HandshakeTimeout),
        }
    });
}
