//! Legs that the relay offers: each is answered in a task of its own, within a bound.
//!
//! A stream's id is its caller's choice, so an id that is live here already is refused: no caller gets near another's
//! stream by naming it (lesson 04).

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;

use sealock_core::name::AgentName;
use sealock_core::reason::Reason;
use sealock_flow::arrival::Near;
use sealock_flow::hop::{self, Hop};
use sealock_flow::inlet;
use sealock_net::e2e::EndToEnd;
use sealock_net::session::Offered;
use sealock_net::task::Spawner;
use sealock_proto::wire::StreamId;
use tokio::sync::{Semaphore, mpsc};

/// How many callers may be proving themselves at once: more are refused rather than all made slow.
const HANDSHAKES_LIMIT: usize = 512;

/// The streams that live at this agent; clones share them.
#[derive(Debug, Clone, Default)]
struct LiveStreams(Arc<Mutex<HashSet<StreamId>>>);

/// A stream's place among the live ones, until it ends.
#[derive(Debug)]
struct LiveStream {
    all: LiveStreams,
    id: StreamId,
}

impl LiveStreams {
    /// Enters a stream; nothing when its id is live already.
    fn enter(&self, id: StreamId) -> Option<LiveStream> {
        let is_new = self.0.lock().insert(id);
        is_new.then(|| LiveStream {
            all: self.clone(),
            id,
        })
    }
}

impl Drop for LiveStream {
    fn drop(&mut self) {
        self.all.0.lock().remove(&self.id);
    }
}

/// Answers offered legs until the session's owner is gone.
pub(crate) async fn serve(
    mut offered: mpsc::Receiver<Offered>,
    me: AgentName,
    hop: Hop,
    end_to_end: EndToEnd,
    tasks: Spawner,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_LIMIT));
    let streams = LiveStreams::default();
    while let Some(Offered { incoming, leg }) = offered.recv().await {
        let Ok(slot) = Arc::clone(&handshakes).try_acquire_owned() else {
            leg.reset(Reason::Overloaded);
            continue;
        };
        let (me, hop, end_to_end) = (me.clone(), hop.clone(), end_to_end.clone());
        let entered = streams.enter(incoming.stream);
        tasks.spawn("provide", async move {
            let Some(_live) = entered else {
                return Near::Leg(leg).refuse(Reason::StreamInUse).await;
            };
            let arrival = inlet::session::at_provider(&end_to_end, &me, incoming, leg).await;
            drop(slot);
            match arrival {
                Ok(arrival) => {
                    hop::run(&hop, arrival).await;
                }
                Err(reason) => tracing::debug!(reason = reason.code(), "a caller did not arrive"),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // S20: whoever names a live stream's id gets nothing, and the stream keeps its place.
    #[test]
    fn an_id_that_is_live_is_not_given_twice() {
        let streams = LiveStreams::default();
        let first = streams.enter(StreamId([7; 16]));
        assert!(first.is_some() && streams.enter(StreamId([7; 16])).is_none());
        drop(first);
        assert!(streams.enter(StreamId([7; 16])).is_some());
    }
}
