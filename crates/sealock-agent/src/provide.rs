//! Legs that the relay offers, first ones and later ones: each is answered in a task of its own, within a bound.

use std::sync::Arc;

use sealock_core::name::AgentName;
use sealock_core::reason::Reason;
use sealock_flow::arrival::{InletKind, Near};
use sealock_flow::hop::{self, Hop};
use sealock_flow::inlet::session::{self, Stranger};
use sealock_net::e2e::EndToEnd;
use sealock_net::session::Offered;
use sealock_net::stream::door::Doors;
use sealock_net::task::Spawner;
use sealock_proto::stream::Epoch;
use tokio::sync::{Semaphore, mpsc};

/// How many callers may be proving themselves at once: more are refused rather than all made slow.
const HANDSHAKES_LIMIT: usize = 512;

/// Answers offered legs until the session's owner is gone.
pub(crate) async fn serve(
    mut offered: mpsc::Receiver<Offered>,
    me: AgentName,
    hop: Hop,
    end_to_end: EndToEnd,
    tasks: Spawner,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_LIMIT));
    let doors = Doors::default();
    while let Some(Offered { incoming, leg }) = offered.recv().await {
        let Ok(slot) = Arc::clone(&handshakes).try_acquire_owned() else {
            let claimed = session::claimed(&incoming);
            hop.note_refusal(InletKind::Session, &claimed, Reason::Overloaded);
            leg.io.reset(Reason::Overloaded);
            continue;
        };
        let (me, hop, end_to_end) = (me.clone(), hop.clone(), end_to_end.clone());
        let doors = doors.clone();
        tasks.spawn("provide", async move {
            if incoming.epoch > Epoch::FIRST {
                return session::take_up(&hop, &doors, &me, incoming, leg).await;
            }
            let Some(place) = doors.enter(incoming.stream, incoming.service.clone()) else {
                let claimed = session::claimed(&incoming);
                hop.note_refusal(InletKind::Session, &claimed, Reason::StreamInUse);
                return Near::Leg(leg.io).refuse(Reason::StreamInUse).await;
            };
            let arrival = session::at_provider(&end_to_end, &me, incoming, (leg, place));
            let arrival = arrival.await;
            drop(slot);
            match arrival {
                Ok(arrival) => {
                    hop::run(&hop, arrival).await;
                }
                Err(stranger) => {
                    let Stranger { facts, reason } = *stranger;
                    hop.note_refusal(InletKind::Session, &facts, reason);
                }
            }
        });
    }
}
