//! The running agent's own interface: `sealock status`, `expose` and `connect` talk to it over its control socket.

use std::time::Duration;

use futures_util::stream::{self, Stream};
use sealock_core::api::local::{
    Connect, ConnectRequest, ConnectedRow, Event, Expose, ExposeRequest, ExposedRow, HealthRow,
    PassedOverRow, PolicyState, SessionRow, Status, StatusResponse, Withdraw, WithdrawResponse,
};
use sealock_core::api::{ApiError, Method};
use sealock_core::check::{Check, Health, Standing};
use sealock_core::reason::Reason;
use sealock_net::session::{SessionStatus, State};
use sealock_net::task::Scope;
use sealock_net::unix::{self, PrivateListener, Routes};
use tokio::sync::watch;

use crate::agent::Parts;
use crate::listeners::ListenerGuard;
use crate::offers::{NewOffer, OfferGuard, OfferState};

/// Serves the interface until the scope ends.
pub(crate) fn serve(listener: PrivateListener, parts: Parts, stays: bool, scope: &Scope) {
    let (status, expose, connect) = (parts.clone(), parts.clone(), parts.clone());
    let routes = Routes::new()
        .method::<Status, _, _>(move |_caller, _request| {
            let parts = status.clone();
            async move { Ok(state_of(&parts)) }
        })
        .lines::<Expose, _, _, _>(move |_caller, request| {
            let parts = expose.clone();
            async move {
                may_leave(stays, request.detached)?;
                expose_events(&parts, request)
            }
        })
        .lines::<Connect, _, _, _>(move |_caller, request| {
            let parts = connect.clone();
            async move {
                may_leave(stays, request.detached)?;
                connect_events(&parts, request).await
            }
        })
        .method::<Withdraw, _, _>(move |_caller, request| {
            let parts = parts.clone();
            async move {
                let offered = u64::from(parts.offers.remove(&request.service));
                let ended = offered + parts.listeners.remove(&request.service);
                Ok(WithdrawResponse { ended })
            }
        });
    unix::serve_json(listener, routes.into_router(), scope);
}

/// What is left to an agent that ends with somebody's terminal would end with it, unseen.
fn may_leave(stays: bool, detached: bool) -> Result<(), ApiError> {
    if stays || !detached {
        return Ok(());
    }
    let text =
        "the agent of this machine is a `sealock expose` in another terminal, and ends with it";
    let hint = "leave out --detach, or end that one and start `sealock agent` for what is to stay";
    Err(ApiError::new(text).with_hint(hint))
}

fn state_of(parts: &Parts) -> StatusResponse {
    let now = jiff::Timestamp::now();
    let expires = parts
        .identity
        .current()
        .map_or(now, |svid| svid.leaf().not_after);
    let view = parts.views.current(&parts.me.tenant).ok();
    StatusResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        identity: parts.id.clone(),
        certificate_expires: expires,
        started: parts.started,
        sessions: session_rows(parts),
        policy: view.map(|view| PolicyState {
            version: view.head.version,
            confirmed: view.head.issued_at,
        }),
        exposed: exposed_rows(parts),
        connected: parts
            .listeners
            .list()
            .into_iter()
            .map(connected_row)
            .collect(),
        flows: (parts.caller.live.len() + parts.provider.live.len()) as u64,
    }
}

fn session_rows(parts: &Parts) -> Vec<SessionRow> {
    let statuses = parts.sessions.statuses().into_iter();
    // The best one for a new leg comes first, when there is one.
    let is_preferred = |at: usize| at == 0 && matches!(parts.sessions.state(), State::Up(_));
    statuses
        .enumerate()
        .map(|(at, status)| session_row(parts, status, is_preferred(at)))
        .collect()
}

fn session_row(parts: &Parts, status: SessionStatus, preferred: bool) -> SessionRow {
    let (up, reason, rtt, transport) = match &status.state {
        State::Up(session) => (true, None, session.rtt(), Some(session.transport())),
        State::Connecting { last } => (false, *last, None, None),
    };
    let passed_over = transport.map(|in_use| parts.dialer.passed_over(&status.relay, in_use));
    let passed_over = passed_over.unwrap_or_default().into_iter();
    SessionRow {
        relay: status.relay,
        preferred,
        up,
        since: status.since,
        reason,
        rtt_ms: rtt.map(|rtt| u64::try_from(rtt.as_millis()).unwrap_or(u64::MAX)),
        transport,
        passed_over: passed_over
            .map(|it| PassedOverRow {
                transport: it.transport,
                because: it.because,
                since: it.since,
            })
            .collect(),
    }
}

/// The offers, as others can reach them: of a machine that another one has put out, nobody reaches any.
fn exposed_rows(parts: &Parts) -> Vec<ExposedRow> {
    let statuses = parts.sessions.statuses();
    let put_out = |status: &SessionStatus| {
        matches!(
            status.state,
            State::Connecting {
                last: Some(Reason::Superseded)
            }
        )
    };
    let is_up = |status: &SessionStatus| matches!(status.state, State::Up(_));
    let superseded = statuses.iter().any(put_out) && !statuses.iter().any(is_up);
    let row = |offer| {
        let mut row = exposed_row(offer);
        if superseded {
            row.registered = Some(false);
            row.reason = Some(Reason::Superseded);
        }
        row
    };
    parts.offers.list().into_iter().map(row).collect()
}

fn exposed_row(
    (service, offer): (sealock_core::name::ServiceName, crate::offers::Offer),
) -> ExposedRow {
    let (registered, reason) = match offer.state {
        OfferState::Waiting(reason) => (None, reason),
        OfferState::Registered => (Some(true), None),
        OfferState::Refused(reason) => (Some(false), Some(reason)),
    };
    ExposedRow {
        service,
        target: offer.target,
        registered,
        reason,
        health: offer.health.as_ref().map(health_row),
        detached: offer.detached,
    }
}

fn health_row((check, health): &(Check, Health)) -> HealthRow {
    let (well, why) = match health.standing() {
        Standing::Unknown => (None, None),
        Standing::Well => (Some(true), None),
        Standing::Ill(why) => (Some(false), Some(why.to_string())),
    };
    HealthRow {
        check: check.probe.to_string(),
        well,
        why,
    }
}

fn connected_row(listening: crate::listeners::Listening) -> ConnectedRow {
    let crate::listeners::Listening {
        service,
        listen,
        detached,
    } = listening;
    ConnectedRow {
        service,
        listen,
        detached,
    }
}

/// How often a line shows both sides that the other is there.
const ALIVE: Duration = Duration::from_secs(10);

type Events<T> = Result<T, ApiError>;

fn expose_events(
    parts: &Parts,
    request: <Expose as Method>::Request,
) -> Events<impl Stream<Item = Event> + Send + 'static + use<>> {
    let ExposeRequest {
        service,
        target,
        labels,
        check,
        weight,
        standby,
        sticky,
        detached,
    } = request;
    let offer = NewOffer {
        service: service.clone(),
        target,
        labels,
        check,
        weight,
        standby,
        sticky,
    };
    let added = parts.offers.add(offer, detached);
    let guard = added.ok_or_else(|| {
        ApiError::new(format!("this agent exposes `{service}` already")).with_hint(
            "choose another name with --as, or end the other one: `sealock status` lists them",
        )
    })?;
    let (offers, changes) = (parts.offers.clone(), parts.offers.changes());
    let state = move |guard: &OfferGuard| match offers.state(guard) {
        None => Step::Last(Event::Ended {
            reason: Reason::Cancelled,
        }),
        Some(OfferState::Refused(reason)) => Step::Last(Event::Ended { reason }),
        Some(OfferState::Waiting(Some(reason))) => Step::More(Event::Waiting { reason }),
        Some(OfferState::Waiting(None)) => Step::Nothing,
        Some(OfferState::Registered) => {
            let event = Event::Registered {
                service: service.clone(),
            };
            if detached {
                Step::Last(event)
            } else {
                Step::More(event)
            }
        }
    };
    Ok(events(guard, changes, state))
}

async fn connect_events(
    parts: &Parts,
    request: <Connect as Method>::Request,
) -> Events<impl Stream<Item = Event> + Send + 'static + use<>> {
    let ConnectRequest {
        service,
        listen,
        detached,
    } = request;
    let (hop, facts) = (parts.caller.clone(), parts.facts(service.clone()));
    // Who asks for a port learns at once what every connection to it would meet.
    parts.may_open(&facts).map_err(ApiError::from)?;
    let added = parts
        .listeners
        .add(&listen, detached, hop, facts, parts.flows.clone())
        .await;
    let guard = added.map_err(|error| {
        let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
        ApiError::new(format!("{error}{}", source.unwrap_or_default()))
            .with_hint("choose another address with --listen")
    })?;
    let listeners = parts.listeners.clone();
    let state = move |guard: &ListenerGuard| {
        if !listeners.has(guard) {
            return Step::Last(Event::Ended {
                reason: Reason::Cancelled,
            });
        }
        let event = Event::Listening {
            service: service.clone(),
            listen: guard.listen.clone(),
        };
        if detached {
            Step::Last(event)
        } else {
            Step::More(event)
        }
    };
    Ok(events(guard, parts.offers.changes(), state))
}

/// What a look at the state of a request says.
enum Step {
    Nothing,
    More(Event),
    Last(Event),
}

/// Turns changes of a state into events; a caller who leaves drops the stream and with it the guard.
fn events<G: Send + 'static>(
    guard: G,
    changes: watch::Receiver<u64>,
    state: impl Fn(&G) -> Step + Send + 'static,
) -> impl Stream<Item = Event> + Send + 'static {
    struct Told<G, S> {
        guard: G,
        changes: watch::Receiver<u64>,
        state: S,
        last: Option<Event>,
        over: bool,
    }
    let told = Told {
        guard,
        changes,
        state,
        last: None,
        over: false,
    };
    stream::unfold(told, |mut told| async move {
        if told.over {
            return None;
        }
        loop {
            let (event, over) = match (told.state)(&told.guard) {
                Step::Nothing => (None, false),
                Step::More(event) => (Some(event), false),
                Step::Last(event) => (Some(event), true),
            };
            if let Some(event) = event
                && (over || told.last.as_ref() != Some(&event))
            {
                told.over = over;
                told.last = Some(event.clone());
                return Some((event, told));
            }
            tokio::select! {
                biased; // news before signs of life
                changed = told.changes.changed() => {
                    if changed.is_err() {
                        return None;
                    }
                }
                () = tokio::time::sleep(ALIVE) => return Some((Event::Alive, told)),
            }
        }
    })
}
