//! One agent's session at the relay: its control stream, its opens, its way to the controller.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sealock_core::identity::{AgentId, Principal};
use sealock_core::name::ServiceName;
use sealock_core::reason::Reason;
use sealock_flow::hop::{self, Hop};
use sealock_flow::inlet;
use sealock_net::identity::PeerIdentity;
use sealock_net::message::{self, Inbox, ReadError};
use sealock_net::relays::RelayList;
use sealock_net::session::accept;
use sealock_net::task::Spawner;
use sealock_net::tls::voucher::VoucherCheck;
use sealock_net::transport::conduit::Conduits;
use sealock_net::transport::{BiStream, Connection, SendHalf};
use sealock_net::views::ViewStore;
use sealock_proto::session::{RelayEvent, RelaySide};
use sealock_proto::wire::{Drain, Message, Present, SUCCESSORS_LIMIT, Services, Welcome};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::budget::{OpenBudget, OpenLimit};
use crate::controller::ControllerWay;
use crate::directory::{Directory, Live};
use crate::judge;

/// What every session of a relay shares.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub(crate) hop: Hop,
    pub(crate) directory: Directory,
    /// Conduits that legs wait for, or go over.
    pub(crate) conduits: Conduits,
    pub(crate) views: ViewStore,
    pub(crate) controller: ControllerWay,
    pub(crate) tasks: Spawner,
    /// Verifies what callers at other relays said.
    pub(crate) vouchers: VoucherCheck,
    /// Who this relay is.
    pub(crate) me: Principal,
    /// The relays of the deployment.
    pub(crate) relays: RelayList,
    /// Cancelled when this relay takes nothing new.
    pub(crate) draining: CancellationToken,
    /// How many opens an agent may make in a time.
    pub(crate) open_limit: OpenLimit,
}

impl Shared {
    /// What other relays are told of the agents here.
    pub(crate) fn present(&self) -> BTreeSet<Present> {
        if self.draining.is_cancelled() {
            return BTreeSet::new();
        }
        self.directory.present()
    }

    /// What an agent is told when this relay drains.
    fn farewell(&self) -> Message {
        let relays = self.relays.current();
        let others = relays
            .iter()
            .filter(|relay| relay.connected && self.me != Principal::Relay(relay.name.clone()));
        let successors = others.flat_map(|relay| relay.addresses.iter().cloned());
        Message::Drain(Drain {
            successors: successors.take(SUCCESSORS_LIMIT).collect(),
        })
    }
}

/// How long an agent may take to say hello, and a stream to say what it is for.
const WORD_DEADLINE: Duration = Duration::from_secs(5);
/// Streams of one session that may be between their arrival and their head.
const HEADLESS_LIMIT: usize = 64;
/// Streams to the controller that one session may have at once: its watch, its calls, and as many again at a renewal.
const CONTROLLER_LIMIT: usize = 4;

/// Serves an admitted agent until its session ends.
pub(crate) async fn serve(
    shared: Shared,
    connection: Connection,
    agent: AgentId,
    peer: PeerIdentity,
) {
    let ended = match greet(&shared, &connection, agent, peer).await {
        Ok((control, live)) => {
            let transport = connection.transport();
            let span = tracing::info_span!("session", session_id = live.number, agent = %live.agent, %transport);
            let session = async {
                tracing::info!("session up");
                let ended = run(&shared, &connection, control, &live).await;
                shared.directory.leave(&live);
                tracing::info!(reason = ended.code(), "session ended");
                ended
            };
            session.instrument(span).await
        }
        Err(reason) => {
            tracing::debug!(reason = reason.code(), "an agent was not let in");
            reason
        }
    };
    connection.close(ended);
}

/// The control stream of a session.
struct Control {
    inbox: Inbox,
    writer: SendHalf,
    side: RelaySide,
}

async fn greet(
    shared: &Shared,
    connection: &Connection,
    agent: AgentId,
    peer: PeerIdentity,
) -> Result<(Control, Arc<Live>), Reason> {
    if shared.draining.is_cancelled() {
        return Err(Reason::Draining);
    }
    judge::admits(&shared.views, &agent, &peer)?;
    let hear = async {
        let control = connection.accept_bi().await?;
        control.stand_by();
        let BiStream { recv, send } = control;
        let mut inbox = Inbox::new(recv);
        let mut side = RelaySide::default();
        let message = inbox.next().await.map_err(ReadError::reason)?;
        let event = side
            .handle_message(message)
            .map_err(|violation| violation.0)?;
        let RelayEvent::Greeted(hello) = event else {
            return Err(Reason::ProtocolViolation);
        };
        let writer = send;
        let control = Control {
            inbox,
            writer,
            side,
        };
        Ok((control, hello))
    };
    let heard = tokio::time::timeout(WORD_DEADLINE, hear).await;
    let (mut control, hello) = heard.unwrap_or(Err(Reason::HandshakeTimeout))?;
    let live = shared
        .directory
        .enter(agent, peer, connection.clone(), &hello)?;
    let welcome = Message::Welcome(Welcome {
        session: live.number,
    });
    let told = control.writer.write(welcome.encode());
    let told = tokio::time::timeout(WORD_DEADLINE, told).await;
    match told {
        Ok(Ok(())) => Ok((control, live)),
        // Whoever does not take its welcome must not keep its place.
        Ok(Err(error)) => {
            shared.directory.leave(&live);
            Err(error.reason())
        }
        Err(_elapsed) => {
            shared.directory.leave(&live);
            Err(Reason::HandshakeTimeout)
        }
    }
}

async fn run(
    shared: &Shared,
    connection: &Connection,
    control: Control,
    live: &Arc<Live>,
) -> Reason {
    let Control {
        mut inbox,
        mut writer,
        mut side,
    } = control;
    let (mut hears, mut is_told) = (true, false);
    let limits = Limits::new(shared.open_limit);
    loop {
        let step = tokio::select! {
            biased; // the end of the session and its control stream before new work on it
            lost = connection.closed() => return lost.reason(),
            message = inbox.next(), if hears => match message {
                Ok(message) => on_message(shared, &mut side, &mut writer, live, message).await,
                // An agent that said farewell lives on in its streams alone.
                Err(_) if side.is_draining() => {
                    hears = false;
                    Ok(())
                }
                Err(error) => Err(error.reason()),
            },
            () = shared.draining.cancelled(), if !is_told => {
                is_told = true;
                // Whoever does not take it sees the end of the connection soon enough.
                let told = writer.write(shared.farewell().encode());
                let _told = tokio::time::timeout(WORD_DEADLINE, told).await;
                Ok(())
            }
            leg = accept(connection, &limits.headless) => match leg {
                Ok((leg, slot)) => {
                    take_in(shared, live, leg, (slot, &limits));
                    Ok(())
                }
                Err(lost) => Err(lost.reason()),
            },
        };
        if let Err(reason) = step {
            return connection
                .close_reason()
                .map_or(reason, |lost| lost.reason());
        }
    }
}

async fn on_message(
    shared: &Shared,
    side: &mut RelaySide,
    writer: &mut SendHalf,
    live: &Live,
    message: Message,
) -> Result<(), Reason> {
    match side
        .handle_message(message)
        .map_err(|violation| violation.0)?
    {
        RelayEvent::OffersChanged { sequence, asked } => {
            live.set_offers(side.offers().clone());
            shared.directory.touch();
            let names = waiting(&shared.views, &live.agent, asked);
            let answer = Message::Registered(Services { sequence, names });
            Ok(writer.write(answer.encode()).await?)
        }
        RelayEvent::Draining => {
            live.leave();
            shared.directory.touch();
            Ok(())
        }
        RelayEvent::Left(reason) => Err(reason),
        RelayEvent::Greeted(_) => Err(Reason::ProtocolViolation),
    }
}

/// Those of the asked services that the view does not name this agent a provider of.
fn waiting(views: &ViewStore, agent: &AgentId, asked: Vec<ServiceName>) -> Vec<ServiceName> {
    let Ok(view) = views.current(&agent.tenant) else {
        return asked;
    };
    let provides = |name: &ServiceName| {
        view.service(name)
            .is_some_and(|service| service.providers.contains_key(&agent.name))
    };
    asked.into_iter().filter(|name| !provides(name)).collect()
}

/// What one session may have in hand at once.
struct Limits {
    headless: Arc<Semaphore>,
    controller: Arc<Semaphore>,
    opens: Arc<Mutex<OpenBudget>>,
}

impl Limits {
    fn new(opens: OpenLimit) -> Self {
        let controller = Arc::new(Semaphore::new(CONTROLLER_LIMIT));
        Self {
            headless: Arc::new(Semaphore::new(HEADLESS_LIMIT)),
            controller,
            opens: Arc::new(Mutex::new(OpenBudget::new(opens, Instant::now()))),
        }
    }
}

/// Whether this relay takes an open of this agent at all, before policy is asked.
fn takes(shared: &Shared, live: &Live, opens: &Mutex<OpenBudget>) -> Result<(), Reason> {
    // Streams outlive the certificate that opened them; new ones need one that is valid (F25).
    if live.peer.not_after < jiff::Timestamp::now() {
        return Err(Reason::NotAdmitted);
    }
    if shared.draining.is_cancelled() {
        return Err(Reason::Draining);
    }
    if !opens.lock().spend(Instant::now()) {
        return Err(Reason::QuotaExceeded);
    }
    Ok(())
}

/// Reads a stream's head and does what it says, in a task of its own: a slow head holds up nobody.
fn take_in(
    shared: &Shared,
    live: &Arc<Live>,
    mut leg: BiStream,
    (headless, limits): (OwnedSemaphorePermit, &Limits),
) {
    let (shared, live, tasks) = (shared.clone(), Arc::clone(live), shared.tasks.clone());
    let (controller, opens) = (Arc::clone(&limits.controller), Arc::clone(&limits.opens));
    let before = async move {
        let head = tokio::time::timeout(WORD_DEADLINE, message::read(&mut leg.recv)).await;
        drop(headless);
        match head {
            Ok(Ok(Message::Open(open))) => {
                let arrival = inlet::session::at_relay(&live.agent, &live.peer, open, leg);
                match takes(&shared, &live, &opens) {
                    Ok(()) => {
                        let arrival = arrival
                            .vouched(live.vouched.clone())
                            .in_region(live.region.clone());
                        return Some(hop::run(&shared.hop, arrival));
                    }
                    Err(reason) => hop::refuse(&shared.hop, arrival, reason).await,
                }
            }
            Ok(Ok(Message::Controller)) => match controller.try_acquire_owned() {
                Ok(_slot) => {
                    leg.stand_by();
                    shared.controller.join(leg).await;
                }
                Err(_full) => leg.reset(Reason::QuotaExceeded),
            },
            Ok(Ok(_) | Err(_)) => leg.reset(Reason::ProtocolViolation),
            Err(_elapsed) => leg.reset(Reason::HandshakeTimeout),
        }
        None
    };
    tasks.spawn("stream", hop::follow(before).in_current_span());
}
