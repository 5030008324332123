//! An agent's session to a relay: made, kept, and made again.
//!
//! [`maintain`] owns the connection: it says hello, offers what there is to offer, hands over what comes in, and starts
//! over with jittered back-off when the session is lost. Others hold [`Sessions`] and wait for the session of the
//! moment. A refusal that trying again cannot change slows the attempts down to a trickle and is shown as the state.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sealock_core::address::HostPort;
use sealock_core::name::ServiceName;
use sealock_core::reason::Reason;
use sealock_proto::session::{AgentEvent, AgentSide};
use sealock_proto::wire::{Hello, Incoming, Message, Open, PROTOCOL_VERSION, SessionKind};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use crate::message::{self, Inbox, ReadError};
use crate::task::Scope;
use crate::transport::{BiStream, Connection, Lost, SendHalf};

mod dial;

pub use dial::{DialError, Dialer};

/// How long an open waits for a stream to become free.
const STREAM_WAIT: Duration = Duration::from_secs(2); // one that ends is free again a round trip later

/// The session of the moment.
#[derive(Debug, Clone)]
pub struct Session {
    connection: Connection,
    number: u64,
}

impl Session {
    /// Asks the relay for a leg. The answer comes on the leg itself, so that the caller can already send more.
    ///
    /// # Errors
    /// When the session is lost.
    pub async fn open_leg(&self, open: &Open) -> Result<BiStream, Reason> {
        self.open_stream(&Message::Open(open.clone())).await
    }

    /// A stream that the relay joins with the controller, blindly.
    ///
    /// # Errors
    /// When the session is lost.
    pub async fn open_controller(&self) -> Result<BiStream, Reason> {
        self.open_stream(&Message::Controller).await
    }

    async fn open_stream(&self, head: &Message) -> Result<BiStream, Reason> {
        // The relay allows only so many; who has them all in use is told so, and not left to wait.
        let opened = tokio::time::timeout(STREAM_WAIT, self.connection.open_bi()).await;
        let mut leg = opened.map_err(|_elapsed| Reason::QuotaExceeded)??;
        leg.send.write(head.encode()).await?;
        Ok(leg)
    }

    /// The relay's number for the session.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The time of a round trip to the relay.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.connection.rtt()
    }
}

/// What a session is at.
#[derive(Debug, Clone)]
pub enum State {
    /// Being made, for the first time or again, and why the last one ended.
    Connecting {
        /// Why there is none, when one was there or tried.
        last: Option<Reason>,
    },
    /// Up.
    Up(Session),
}

/// What a session is at, where, and since when.
#[derive(Debug, Clone)]
pub struct SessionStatus {
    /// What it is at.
    pub state: State,
    /// The relay that it is with, or that was tried last.
    pub relay: HostPort,
    /// Since when.
    pub since: jiff::Timestamp,
}

/// The sessions of an agent, as others see them.
#[derive(Debug, Clone)]
pub struct Sessions {
    state: watch::Receiver<SessionStatus>,
}

impl Sessions {
    /// The session, waiting until there is one.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn current(&self) -> Session {
        let mut state = self.state.clone();
        loop {
            if let State::Up(session) = &state.borrow_and_update().state {
                return session.clone();
            }
            if state.changed().await.is_err() {
                // The owner is gone, and so will be whoever waits here.
                std::future::pending::<()>().await;
            }
        }
    }

    /// What the session is at.
    #[must_use]
    pub fn state(&self) -> State {
        self.state.borrow().state.clone()
    }

    /// What the session is at, where, and since when.
    #[must_use]
    pub fn status(&self) -> SessionStatus {
        self.state.borrow().clone()
    }

    /// Waits until the state changes.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn changed(&mut self) {
        if self.state.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// A leg that a relay offers, its head read and not yet answered.
#[derive(Debug)]
pub struct Offered {
    /// What the relay says of it.
    pub incoming: Incoming,
    /// The leg.
    pub leg: BiStream,
}

/// What a session is made of.
#[derive(Debug)]
pub struct SessionConfig {
    /// The relays, tried in turn.
    pub relays: Vec<HostPort>,
    /// Dials them, with this agent's identity.
    pub dialer: Dialer,
    /// Random for each start of the process.
    pub instance: [u8; 16],
    /// What the session is for.
    pub kind: SessionKind,
    /// The services to offer, now and later.
    pub offers: watch::Receiver<BTreeSet<ServiceName>>,
    /// Where offered legs go; when it is full, a leg is refused.
    pub offered: mpsc::Sender<Offered>,
    /// Tells when the identity was renewed: the session is then made anew, and the old one lives on for its streams.
    pub renewed: watch::Receiver<()>,
}

/// Says how to get at the session that the returned future keeps.
pub fn maintain(config: SessionConfig) -> (Sessions, impl Future<Output = ()> + Send + 'static) {
    // A configuration without relays never gets anywhere; `sealock` refuses it before.
    let first = config.relays.first().cloned();
    let (publish, state) = watch::channel(SessionStatus {
        state: State::Connecting { last: None },
        relay: first.unwrap_or_else(|| HostPort::from(SocketAddr::from(([0, 0, 0, 0], 0)))),
        since: jiff::Timestamp::now(),
    });
    (Sessions { state }, keep(config, Publisher(publish)))
}

const FIRST_PAUSE: Duration = Duration::from_millis(100); // a relay restart takes less than a second
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
const HOPELESS_PAUSE: Duration = Duration::from_secs(60); // where only a person can help
const SUPERSEDED_PAUSE: Duration = Duration::from_secs(120); // two machines with one identity swap once a minute at most
const STABLE: Duration = Duration::from_secs(10); // a session that lived so long starts the back-off anew

/// Tells the state; the time stays while nothing but the reason changes.
struct Publisher(watch::Sender<SessionStatus>);

impl Publisher {
    fn set(&self, relay: &HostPort, state: State) {
        self.0.send_modify(|status| {
            let was_up = matches!(status.state, State::Up(_));
            if was_up != matches!(state, State::Up(_)) {
                status.since = jiff::Timestamp::now();
            }
            status.relay = relay.clone();
            status.state = state;
        });
    }
}

async fn keep(config: SessionConfig, publish: Publisher) {
    if config.relays.is_empty() {
        return std::future::pending().await;
    }
    let mut pause = FIRST_PAUSE;
    loop {
        for relay in config.relays.clone() {
            let began = Instant::now();
            let reason = one(&config, &relay, &publish).await;
            publish.set(&relay, State::Connecting { last: Some(reason) });
            if began.elapsed() > STABLE {
                pause = FIRST_PAUSE;
            }
            report(&relay, reason);
            // Full jitter: agents that lost a relay together do not come back together.
            let wait = if reason == Reason::Superseded {
                SUPERSEDED_PAUSE.mul_f64(rand::random_range(0.5..1.0))
            } else if is_hopeless(reason) {
                HOPELESS_PAUSE.mul_f64(rand::random_range(0.1..1.0))
            } else {
                pause.mul_f64(rand::random_range(0.1..1.0))
            };
            tokio::time::sleep(wait).await;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn is_hopeless(reason: Reason) -> bool {
    !reason.is_transient()
}

fn report(relay: &HostPort, reason: Reason) {
    if reason == Reason::Superseded {
        tracing::error!(%relay, reason = reason.code(), "another machine uses this agent's identity");
    } else if is_hopeless(reason) {
        tracing::warn!(%relay, reason = reason.code(), "the relay refuses the session; trying again cannot help");
    } else {
        tracing::info!(%relay, reason = reason.code(), "no session to the relay");
    }
}

/// Makes one session and keeps it until it ends; says why it did.
async fn one(config: &SessionConfig, relay: &HostPort, publish: &Publisher) -> Reason {
    let mut live = match establish(config, relay).await {
        Ok(live) => live,
        Err(reason) => return reason,
    };
    let retired = Scope::new("retired sessions");
    loop {
        publish.set(relay, State::Up(live.session.clone()));
        match live
            .run(config, replacement(config, relay, live.renewed.clone()))
            .await
        {
            Ended::Replaced(next) => {
                let old = std::mem::replace(&mut live, *next);
                retired.spawn("retire", retire(old.session, config.offered.clone()));
            }
            Ended::Lost(reason) => {
                live.session.connection.close(reason);
                return reason;
            }
        }
    }
}

/// What a relay may still offer on a session before it knows the next one.
const RETIRE_GRACE: Duration = Duration::from_secs(10); // as long as an open waits

/// Takes the last legs of a session that was replaced. Its connection ends by itself with the last of its streams.
async fn retire(session: Session, offered: mpsc::Sender<Offered>) {
    let scope = Scope::new("retired session");
    let headless = Arc::new(Semaphore::new(HEADLESS_LIMIT));
    let last = async {
        while let Ok((leg, slot)) = accept(&session.connection, &headless).await {
            take_in(leg, slot, offered.clone(), &scope);
        }
    };
    // The time-out is the ordinary end.
    let _over = tokio::time::timeout(RETIRE_GRACE, last).await;
}

/// A session that is up, with its control stream.
struct Live {
    session: Session,
    control: Control,
    /// Has seen every renewal up to the handshake of this session.
    renewed: watch::Receiver<()>,
}

/// How a session of [`one`] ended.
enum Ended {
    Lost(Reason),
    Replaced(Box<Live>),
}

async fn establish(config: &SessionConfig, relay: &HostPort) -> Result<Live, Reason> {
    // Before the handshake: a renewal during it may have come too late for it.
    let mut renewed = config.renewed.clone();
    renewed.mark_unchanged();
    let connection = config.dialer.dial(relay).await.map_err(|error| {
        tracing::debug!(%relay, err = %error, "dialling the relay failed");
        error.reason()
    })?;
    match greet(config, &connection).await {
        Ok((control, number)) => {
            tracing::info!(%relay, session_id = number, "session up");
            let session = Session { connection, number };
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

/// Waits for a renewed identity and makes a session with it, while the old one still serves.
async fn replacement(
    config: &SessionConfig,
    relay: &HostPort,
    mut renewed: watch::Receiver<()>,
) -> Live {
    if renewed.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
    loop {
        match establish(config, relay).await {
            Ok(live) => return live,
            Err(reason) => {
                tracing::info!(
                    reason = reason.code(),
                    "no session with the renewed identity yet"
                );
                tokio::time::sleep(LONGEST_PAUSE.mul_f64(rand::random_range(0.1..1.0))).await;
            }
        }
    }
}

/// How long the relay may take to welcome us.
const WELCOME_DEADLINE: Duration = Duration::from_secs(10);

async fn greet(config: &SessionConfig, connection: &Connection) -> Result<(Control, u64), Reason> {
    let talk = async {
        let BiStream {
            recv: reader,
            send: mut writer,
        } = connection.open_bi().await?;
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            instance: config.instance,
            kind: config.kind,
            software: env!("CARGO_PKG_VERSION").to_owned(),
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
            AgentEvent::Registered(_) | AgentEvent::Draining => Err(Reason::ProtocolViolation),
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
    async fn run(&mut self, config: &SessionConfig, next: impl Future<Output = Self>) -> Ended {
        let scope = Scope::new("session");
        let headless = Arc::new(Semaphore::new(HEADLESS_LIMIT));
        let mut offers = config.offers.clone();
        let connection = &self.session.connection;
        let Control {
            inbox,
            writer,
            side,
            offered,
        } = &mut self.control;
        tokio::pin!(next);
        offers.mark_changed();
        loop {
            let step = tokio::select! {
                biased; // news of the session before new work on it
                lost = connection.closed() => return Ended::Lost(lost.reason()),
                message = inbox.next() => match message {
                    Ok(message) => on_message(side, message),
                    Err(error) => Err(error.reason()),
                },
                next = &mut next => {
                    // Takes no new streams; a farewell that fails changes nothing.
                    let _told = writer.write(Message::Drain.encode()).await;
                    let _told = writer.finish();
                    return Ended::Replaced(Box::new(next));
                }
                Ok(()) = offers.changed() => {
                    let wanted = offers.borrow_and_update().clone();
                    send_offers(side, writer, offered, wanted).await
                }
                stream = accept(connection, &headless) => match stream {
                    Ok((leg, slot)) => {
                        take_in(leg, slot, config.offered.clone(), &scope);
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

fn on_message(side: &mut AgentSide, message: Message) -> Result<(), Reason> {
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
        AgentEvent::Draining => tracing::info!("the relay is shutting down"),
        AgentEvent::Left(reason) => return Err(reason),
        AgentEvent::Welcomed(_) => return Err(Reason::ProtocolViolation),
    }
    Ok(())
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
    mut leg: BiStream,
    slot: OwnedSemaphorePermit,
    offered: mpsc::Sender<Offered>,
    scope: &Scope,
) {
    scope.spawn("head", async move {
        let head = tokio::time::timeout(HEAD_DEADLINE, message::read(&mut leg.recv)).await;
        drop(slot);
        match head {
            Ok(Ok(Message::Incoming(incoming))) => {
                if let Err(error) = offered.try_send(Offered { incoming, leg }) {
                    error.into_inner().leg.reset(Reason::Overloaded);
                }
            }
            Ok(Ok(_) | Err(_)) => leg.reset(Reason::ProtocolViolation),
            Err(_elapsed) => leg.reset(Reason::HandshakeTimeout),
        }
    });
}
