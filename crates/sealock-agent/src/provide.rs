//! Legs that the relay offers, first ones and later ones: each is answered in a task of its own, within a bound.

use sealock_core::name::AgentName;
use sealock_core::reason::Reason;
use sealock_flow::arrival::{InletKind, Near};
use sealock_flow::hop::{self, Hop};
use sealock_flow::inlet::session::{self, Stranger};
use sealock_net::e2e::EndToEnd;
use sealock_net::limit::PeerLimit;
use sealock_net::session::Offered;
use sealock_net::stream::door::Doors;
use sealock_net::task::Spawner;
use sealock_proto::stream::Epoch;
use tokio::sync::mpsc;

/// How many callers may be proving themselves at once: more are refused rather than all made slow.
const HANDSHAKES_LIMIT: usize = 1_024;
/// How many of them may be one caller's, so that nobody keeps the others out: more than an honest burst.
const HANDSHAKES_LIMIT_PER_CALLER: usize = HANDSHAKES_LIMIT / 2;
/// How many later legs may be on their way to their streams: all streams that an agent parks.
const TAKE_UPS_LIMIT: usize = 4_096; // each costs one message and one proof
/// How many of them may be one caller's: all that it parks.
const TAKE_UPS_LIMIT_PER_CALLER: usize = 1_024;

/// Answers offered legs until the session's owner is gone.
pub(crate) async fn serve(
    mut offered: mpsc::Receiver<Offered>,
    me: AgentName,
    hop: Hop,
    end_to_end: EndToEnd,
    tasks: Spawner,
) {
    let handshakes = PeerLimit::new(HANDSHAKES_LIMIT, HANDSHAKES_LIMIT_PER_CALLER);
    let take_ups = PeerLimit::new(TAKE_UPS_LIMIT, TAKE_UPS_LIMIT_PER_CALLER);
    let doors = Doors::default();
    while let Some(Offered { incoming, leg }) = offered.recv().await {
        let is_later = incoming.epoch > Epoch::FIRST;
        let limit = if is_later { &take_ups } else { &handshakes };
        let Some(slot) = limit.enter(&incoming.caller) else {
            let claimed = session::claimed(&incoming);
            hop.note_refusal(InletKind::Session, &claimed, Reason::Overloaded);
            leg.io.reset(Reason::Overloaded);
            continue;
        };
        let (me, hop, end_to_end) = (me.clone(), hop.clone(), end_to_end.clone());
        let doors = doors.clone();
        let before = async move {
            if is_later {
                session::take_up(&hop, &doors, &me, incoming, leg).await;
                drop(slot);
                return None;
            }
            let Some(place) = doors.enter(incoming.stream, incoming.service.clone()) else {
                let claimed = session::claimed(&incoming);
                hop.note_refusal(InletKind::Session, &claimed, Reason::StreamInUse);
                Near::Leg(leg.io).refuse(Reason::StreamInUse).await;
                return None;
            };
            let arrival = session::at_provider(&end_to_end, &me, incoming, (leg, place)).await;
            drop(slot);
            match arrival {
                Ok(arrival) => Some(hop::run(&hop, arrival)),
                Err(stranger) => {
                    let Stranger { facts, reason } = *stranger;
                    hop.note_refusal(InletKind::Session, &facts, reason);
                    None
                }
            }
        };
        tasks.spawn("provide", hop::follow(before));
    }
}
