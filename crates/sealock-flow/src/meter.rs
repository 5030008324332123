//! What is counted and recorded of flows: metrics with bounded labels, and one access record for each flow.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use sealock_core::fact::Facts;
use sealock_core::reason::Reason;

use crate::arrival::InletKind;
use crate::live::LiveFlow;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ending {
    inlet: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Direction {
    direction: &'static str,
}

/// Counts the flows of one hop.
#[derive(Debug, Clone, Default)]
pub struct Meter {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    ended: Family<Ending, Counter>,
    bytes: Family<Direction, Counter>,
    live: Gauge<i64, AtomicI64>,
    began: Counter<u64, AtomicU64>,
}

impl Meter {
    /// A meter whose figures appear in `registry`.
    #[must_use]
    pub fn registered(registry: &mut Registry) -> Self {
        let meter = Self::default();
        let inner = &meter.inner;
        registry.register(
            "flows_began",
            "Flows that policy allowed",
            inner.began.clone(),
        );
        registry.register("flows_live", "Flows that exist", inner.live.clone());
        registry.register(
            "flows_ended",
            "Flows that ended or were refused, by reason",
            inner.ended.clone(),
        );
        registry.register_with_unit(
            "flows_carried",
            "Payload carried for flows that ended",
            Unit::Bytes,
            inner.bytes.clone(),
        );
        meter
    }

    /// A meter whose figures nobody reads.
    #[must_use]
    pub fn unread() -> Self {
        Self::default()
    }

    pub(crate) fn began(&self, _inlet: InletKind) {
        self.inner.began.inc();
        self.inner.live.inc();
    }

    pub(crate) fn refused(&self, inlet: InletKind, facts: &Facts, reason: Reason) {
        self.count(inlet, reason);
        tracing::info!(
            target: "access",
            inlet = inlet.as_str(),
            tenant = %facts.tenant,
            caller = %facts.caller.value.name,
            service = facts.goal.service().map(tracing::field::display),
            destination = facts.goal.destination().map(tracing::field::display),
            reason = reason.code(),
            "flow refused"
        );
    }

    pub(crate) fn ended(&self, flow: &LiveFlow, reason: Reason) {
        self.inner.live.dec();
        self.count(flow.inlet, reason);
        let (up, down) = flow.bytes();
        for (direction, bytes) in [("up", up), ("down", down)] {
            self.inner
                .bytes
                .get_or_create(&Direction { direction })
                .inc_by(bytes);
        }
        tracing::info!(
            target: "access",
            flow_id = %flow.id,
            inlet = flow.inlet.as_str(),
            tenant = %flow.facts.tenant,
            caller = %flow.facts.caller.value.name,
            service = flow.facts.goal.service().map(tracing::field::display),
            destination = flow.facts.goal.destination().map(tracing::field::display),
            reason = reason.code(),
            bytes_up = up,
            bytes_down = down,
            dur_ms = u64::try_from(flow.began.elapsed().as_millis()).unwrap_or(u64::MAX),
            "flow ended"
        );
    }

    fn count(&self, inlet: InletKind, reason: Reason) {
        self.inner
            .ended
            .get_or_create(&Ending {
                inlet: inlet.as_str(),
                reason: reason.code(),
            })
            .inc();
    }
}
