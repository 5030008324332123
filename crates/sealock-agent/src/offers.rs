//! What the agent offers: a table of services and the programs behind them, and its registration at the controller.
//!
//! The table is the truth; the session to the relay and the registration follow it. An offer works when the controller
//! has accepted it; until then, and after a refusal, its state says why not. An offer whose check fails stays registered,
//! and keeps its flows, but relays do not hear of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sealock_core::address::Target;
use sealock_core::check::{Check, CheckFailure, Health, Standing};
use sealock_core::choice::{Terms, Weight};
use sealock_core::name::{Region, ServiceName};
use sealock_core::reason::Reason;
use sealock_core::view::Offering;
use sealock_net::link::Link;
use tokio::sync::watch;

/// What to offer, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewOffer {
    /// The service's name.
    pub service: ServiceName,
    /// The program behind it.
    pub target: Target,
    /// What rules may know of it.
    pub labels: BTreeMap<String, String>,
    /// What tells whether the program is well; none: it always counts as well.
    pub check: Option<Check>,
    /// Its share of the service's flows, beside the weights of other providers.
    pub weight: Weight,
    /// Whether it serves only while no active provider is left.
    pub standby: bool,
    /// Whether a caller is to get the same provider each time; counts when this agent owns the service.
    pub sticky: bool,
}

impl NewOffer {
    /// An offer with nothing special about it.
    #[must_use]
    pub fn new(service: ServiceName, target: Target) -> Self {
        Self {
            service,
            target,
            labels: BTreeMap::new(),
            check: None,
            weight: Weight::default(),
            standby: false,
            sticky: false,
        }
    }
}

/// A service and the program behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) target: Target,
    /// What the controller is told of it.
    pub(crate) offering: Offering,
    /// Whether it outlives the request that asked for it.
    pub(crate) detached: bool,
    pub(crate) state: OfferState,
    /// Its check and what that says so far.
    pub(crate) health: Option<(Check, Health)>,
    /// Tells an offer from a later one of the same name.
    number: u64,
}

impl Offer {
    /// Whether relays may hear of it.
    fn is_well(&self) -> bool {
        let health = self.health.as_ref();
        health.is_none_or(|(_, health)| health.standing() == Standing::Well)
    }
}

/// An offer that has a check.
#[derive(Debug, Clone)]
pub(crate) struct Checked {
    pub(crate) number: u64,
    pub(crate) check: Check,
    pub(crate) target: Target,
    service: ServiceName,
}

/// How far an offer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OfferState {
    /// The controller has not answered yet; the reason is why, where one is known.
    Waiting(Option<Reason>),
    /// The controller accepted it.
    Registered,
    /// The controller refused it.
    Refused(Reason),
}

/// The offers of an agent; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Offers {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    table: Mutex<Table>,
    /// Where this agent is.
    region: Option<Region>,
    names: watch::Sender<BTreeSet<ServiceName>>,
    /// Those that are well.
    well: watch::Sender<BTreeSet<ServiceName>>,
    /// Counts every change, of the table or of a state.
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Table {
    offers: BTreeMap<ServiceName, Offer>,
    next: u64,
}

/// An offer that ends when it is dropped, unless it was detached.
#[derive(Debug)]
pub(crate) struct OfferGuard {
    offers: Offers,
    name: ServiceName,
    number: u64,
}

impl Drop for OfferGuard {
    fn drop(&mut self) {
        self.offers.remove_if(&self.name, |offer| {
            offer.number == self.number && !offer.detached
        });
    }
}

impl Offers {
    pub(crate) fn new(region: Option<Region>) -> Self {
        let names = watch::Sender::default();
        let well = watch::Sender::default();
        let (changes, _) = watch::channel(0);
        let table = Mutex::default();
        Self {
            inner: Arc::new(Inner {
                table,
                region,
                names,
                well,
                changes,
            }),
        }
    }

    /// The names of what is well, now and later, for the session.
    pub(crate) fn well(&self) -> watch::Receiver<BTreeSet<ServiceName>> {
        self.inner.well.subscribe()
    }

    /// Every name, now and later, for the controller.
    pub(crate) fn names(&self) -> watch::Receiver<BTreeSet<ServiceName>> {
        self.inner.names.subscribe()
    }

    /// Counts changes, for those who wait for one.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// Adds an offer; `None` when the name is offered already.
    pub(crate) fn add(&self, offer: NewOffer, detached: bool) -> Option<OfferGuard> {
        let NewOffer {
            service: name,
            target,
            labels,
            check,
            weight,
            standby,
            sticky,
        } = offer;
        let terms = Terms {
            weight,
            standby,
            region: self.inner.region.clone(),
        };
        let offering = Offering {
            labels,
            terms,
            sticky,
        };
        let mut table = self.inner.table.lock();
        if table.offers.contains_key(&name) {
            return None;
        }
        table.next += 1;
        let number = table.next;
        let state = OfferState::Waiting(None);
        let health = check.map(|check| {
            let health = Health::new(&check);
            (check, health)
        });
        table.offers.insert(
            name.clone(),
            Offer {
                target,
                offering,
                detached,
                state,
                health,
                number,
            },
        );
        self.publish(table);
        Some(OfferGuard {
            offers: self.clone(),
            name,
            number,
        })
    }

    /// Ends an offer; says whether there was one.
    pub(crate) fn remove(&self, name: &ServiceName) -> bool {
        self.remove_if(name, |_| true)
    }

    fn remove_if(&self, name: &ServiceName, ends: impl Fn(&Offer) -> bool) -> bool {
        let mut table = self.inner.table.lock();
        if !table.offers.get(name).is_some_and(ends) {
            return false;
        }
        table.offers.remove(name);
        self.publish(table);
        true
    }

    fn publish(&self, table: parking_lot::MutexGuard<'_, Table>) {
        let names = table.offers.keys().cloned().collect();
        // Within the lock, so that no older list comes after a newer one.
        self.inner.names.send_replace(names);
        self.publish_well(&table);
        drop(table);
        self.inner.changes.send_modify(|count| *count += 1);
    }

    fn publish_well(&self, table: &Table) {
        let well = table.offers.iter().filter(|(_, offer)| offer.is_well());
        let well: BTreeSet<ServiceName> = well.map(|(name, _)| name.clone()).collect();
        self.inner.well.send_if_modified(|known| {
            let changed = *known != well;
            *known = well;
            changed
        });
    }

    /// The checked offers that came after the one of this number.
    pub(crate) fn checked_since(&self, number: u64) -> Vec<Checked> {
        let table = self.inner.table.lock();
        let later = table
            .offers
            .iter()
            .filter(|(_, offer)| offer.number > number);
        let checked = |(service, offer): (&ServiceName, &Offer)| {
            let (check, _) = offer.health.as_ref()?;
            Some(Checked {
                number: offer.number,
                check: check.clone(),
                target: offer.target.clone(),
                service: service.clone(),
            })
        };
        later.filter_map(checked).collect()
    }

    /// Whether this offer is still there.
    pub(crate) fn has(&self, checked: &Checked) -> bool {
        let table = self.inner.table.lock();
        let offer = table.offers.get(&checked.service);
        offer.is_some_and(|offer| offer.number == checked.number)
    }

    /// Enters a result of an offer's check; says whether the offer is still there.
    pub(crate) fn take_result(&self, checked: &Checked, result: Result<(), CheckFailure>) -> bool {
        let mut table = self.inner.table.lock();
        let offer = table.offers.get_mut(&checked.service);
        let Some(offer) = offer.filter(|offer| offer.number == checked.number) else {
            return false;
        };
        let Some((_, health)) = &mut offer.health else {
            return false;
        };
        let before = health.standing();
        health.handle_result(result);
        let after = health.standing();
        if after == before {
            return true;
        }
        self.publish_well(&table);
        drop(table);
        let service = &checked.service;
        match after {
            Standing::Ill(why) => tracing::warn!(%service, %why, "taken back: its check fails"),
            Standing::Well => tracing::info!(%service, "offered: its check passes"),
            Standing::Unknown => {}
        }
        self.inner.changes.send_modify(|count| *count += 1);
        true
    }

    /// The program behind a service that is offered, whether the controller has accepted it or not: callers open only
    /// what the signed view names.
    pub(crate) fn target(&self, name: &ServiceName) -> Option<Target> {
        Some(self.inner.table.lock().offers.get(name)?.target.clone())
    }

    /// How far the offer of this guard is; `None` when it ended.
    pub(crate) fn state(&self, guard: &OfferGuard) -> Option<OfferState> {
        let table = self.inner.table.lock();
        let offer = table.offers.get(&guard.name)?;
        (offer.number == guard.number).then_some(offer.state)
    }

    /// Every offer, in name order.
    pub(crate) fn list(&self) -> Vec<(ServiceName, Offer)> {
        let table = self.inner.table.lock();
        table
            .offers
            .iter()
            .map(|(name, offer)| (name.clone(), offer.clone()))
            .collect()
    }

    fn set_states(&self, state_of: impl Fn(&ServiceName, OfferState) -> OfferState) {
        let mut table = self.inner.table.lock();
        let mut changed = false;
        for (name, offer) in &mut table.offers {
            let state = state_of(name, offer.state);
            changed |= state != offer.state;
            offer.state = state;
        }
        drop(table);
        if changed {
            self.inner.changes.send_modify(|count| *count += 1);
        }
    }

    fn offerings(&self) -> BTreeMap<ServiceName, Offering> {
        let table = self.inner.table.lock();
        table
            .offers
            .iter()
            .map(|(name, offer)| (name.clone(), offer.offering.clone()))
            .collect()
    }
}

const RETRY: Duration = Duration::from_secs(1);
const LONGEST_LEASE: Duration = Duration::from_secs(3_600);

/// Registers what is offered and keeps its leases, until dropped. `generation` grows with each start of the agent, so
/// that an older process can no longer change what this one registered.
pub(crate) async fn register(offers: Offers, link: Link, generation: u64) {
    let mut names = offers.names();
    let mut known = BTreeSet::new();
    loop {
        let wanted = names.borrow_and_update().clone();
        let gone: BTreeSet<ServiceName> = known.difference(&wanted).cloned().collect();
        let pause = match exchange(&offers, &link, generation, &gone).await {
            Ok(lease) => {
                known = wanted;
                // A third, so that two may be lost.
                lease.clamp(RETRY, LONGEST_LEASE) / 3
            }
            Err(()) => {
                known.extend(wanted);
                RETRY.mul_f64(rand::random_range(0.5..1.5))
            }
        };
        tokio::select! {
            biased; // a change goes out at once
            changed = names.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn exchange(
    offers: &Offers,
    link: &Link,
    generation: u64,
    gone: &BTreeSet<ServiceName>,
) -> Result<Duration, ()> {
    let client = link.client();
    if !gone.is_empty() {
        client.unregister(generation, gone).await.map_err(|error| {
            tracing::debug!(err = %error, "services could not be taken back yet");
        })?;
    }
    let wanted = offers.offerings();
    if wanted.is_empty() {
        return Ok(LONGEST_LEASE);
    }
    match client.register(generation, &wanted).await {
        Ok(registered) => {
            offers.set_states(|name, state| match registered.services.get(name) {
                Some(Reason::Done) => OfferState::Registered,
                Some(&reason) => OfferState::Refused(reason),
                None => state,
            });
            Ok(registered.lease)
        }
        Err(error) => {
            let reason = error.reason();
            tracing::debug!(err = %error, "services could not be registered yet");
            offers.set_states(|_, state| match state {
                OfferState::Waiting(_) => OfferState::Waiting(Some(reason)),
                // What was accepted before stays accepted while the controller is away.
                OfferState::Registered | OfferState::Refused(_) => state,
            });
            Err(())
        }
    }
}

/// Takes everything back before the agent stops, as far as the controller can be reached in time.
pub(crate) async fn farewell(offers: &Offers, link: &Link, generation: u64) {
    let names: BTreeSet<ServiceName> = offers
        .list()
        .into_iter()
        .filter(|(_, offer)| !offer.detached)
        .map(|(name, _)| name)
        .collect();
    if names.is_empty() {
        return;
    }
    if let Err(error) = link.client().unregister(generation, &names).await {
        tracing::debug!(err = %error, "services could not be taken back before the end");
    }
}
