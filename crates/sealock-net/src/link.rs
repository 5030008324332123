//! A node's standing link to the controller: views and trust as they change, and a new certificate in time.
//!
//! Every part goes on by itself when the controller is away and comes back with jitter; nothing on the data path waits
//! for it. Deliberately absent: what an agent registers and what a node reports; those know more of their role.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use rustls::ClientConfig;
use sealock_core::name::Region;
use sealock_core::reason::Reason;
use sealock_core::view::ViewVersion;
use tokio::sync::watch;

use crate::identity::{
    BACKDATED, IdentityDir, IdentityStore, KeyPair, Svid, SvidError, Trust, TrustStore,
};
use crate::node_api::{CallError, Issued, NodeClient, Watch, WatchEvent};
use crate::recover::RecoverError;
use crate::relays::RelayList;
use crate::tls;
use crate::views::{TakeError, ViewStore};

/// Brings the identity back to life that ended while nobody could renew it.
pub type WayBack =
    Arc<dyn Fn() -> BoxFuture<'static, Result<(Svid, Trust), RecoverError>> + Send + Sync>;

/// Makes a client of the node interface over this role's way to the controller.
pub type ClientMaker = Arc<dyn Fn(Arc<ClientConfig>) -> NodeClient + Send + Sync>;

/// A node's link; clones share it.
#[derive(Clone)]
pub struct Link {
    make: ClientMaker,
    identity: IdentityStore,
    trust: TrustStore,
    dir: Option<IdentityDir>,
    way_back: Option<WayBack>,
    client: watch::Sender<NodeClient>,
    region: Option<Region>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

/// Why a certificate that was issued is of no use.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// The controller did not issue it.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The machine makes no keys.
    #[error("a new key could not be made")]
    Key(#[source] crate::identity::KeyError),
    /// It had ended, and the node was not taken back.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// It does not fit the key that it was asked for.
    #[error("the new certificate cannot be used")]
    Svid(#[from] SvidError),
}

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// Where nobody but a person can help.
const HOPELESS_PAUSE: Duration = Duration::from_secs(300);
/// Each renewal makes the session anew; certificates live ten seconds at least.
const BETWEEN_RENEWALS: Duration = Duration::from_secs(1);

impl Link {
    /// A link for the identity in `identity`; `dir` is where a renewed one is kept, nowhere for a program that does not
    /// own the directory.
    ///
    /// Must be called within the runtime.
    #[must_use]
    pub fn new(
        make: ClientMaker,
        identity: IdentityStore,
        trust: TrustStore,
        dir: Option<IdentityDir>,
    ) -> Self {
        let client = make(tls::controller_client(&identity, &trust));
        let (client, _) = watch::channel(client.with_kept_certificate());
        Self {
            make,
            identity,
            trust,
            dir,
            way_back: None,
            client,
            region: None,
        }
    }

    /// The same link, which goes this way when the certificate has ended, as on a machine that slept for long.
    #[must_use]
    pub fn with_way_back(mut self, way_back: WayBack) -> Self {
        self.way_back = Some(way_back);
        self
    }

    /// The same link of a relay that is in this region.
    #[must_use]
    pub fn in_region(mut self, region: Option<Region>) -> Self {
        self.region = region;
        self
    }

    /// The client of the moment: one that was made with the newest certificate.
    #[must_use]
    pub fn client(&self) -> NodeClient {
        self.client.borrow().clone()
    }

    /// Tells of each renewal from here on.
    #[must_use]
    pub fn renewals(&self) -> watch::Receiver<NodeClient> {
        self.client.subscribe()
    }

    /// Keeps `views`, `relays` and the trust as the controller says, until dropped.
    pub async fn keep_views(&self, views: &ViewStore, relays: &RelayList) {
        let mut pause = FIRST_PAUSE;
        let mut full = false;
        loop {
            let have = if full {
                Default::default()
            } else {
                views.versions()
            };
            full = false;
            let mut renewed = self.client.subscribe();
            let outcome = match self.client().watch_in(&have, self.region.as_ref()).await {
                Ok(mut watch) => {
                    tracing::debug!("watching the controller");
                    pause = FIRST_PAUSE;
                    tokio::select! {
                        biased; // the controller ends watches of certificates that end
                        Ok(()) = renewed.changed() => continue,
                        outcome = self.follow(&mut watch, views, relays) => outcome,
                    }
                }
                Err(error) => Err(FollowError::Call(error)),
            };
            match outcome {
                Ok(()) => {}
                Err(FollowError::NeedsFull) => full = true,
                Err(FollowError::Call(error)) => report_away(&error),
            }
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn follow(
        &self,
        watch: &mut Watch,
        views: &ViewStore,
        relays: &RelayList,
    ) -> Result<(), FollowError> {
        loop {
            let event = watch.next().await.map_err(FollowError::Call)?;
            let taken = match event {
                WatchEvent::Full { head, entries } => {
                    views.put(tls::signed::SignedView { head, entries })
                }
                WatchEvent::Delta { head, from, delta } => {
                    take_delta(views, head, from, delta)?;
                    Ok(())
                }
                WatchEvent::Trust(trust) => {
                    self.keep_trust(trust);
                    Ok(())
                }
                WatchEvent::Relays(list) => {
                    relays.set(list);
                    Ok(())
                }
            };
            if let Err(error) = taken {
                // Keeps the last good view; see F29.
                tracing::error!(err = %error, "a view from the controller was not taken");
            }
        }
    }

    fn keep_trust(&self, trust: Trust) {
        if trust.roots.is_empty() || trust.trust_domain != self.trust.current().trust_domain {
            tracing::error!(
                "the controller's trust names no root or another trust domain and was not taken"
            );
            return;
        }
        if let Some(dir) = &self.dir
            && let Err(error) = dir.store_trust(&trust)
        {
            tracing::error!(err = %error, "the new trust could not be kept on disk");
        }
        self.trust.set(trust);
    }

    /// Renews the certificate at half of its life ±10 %, until dropped.
    pub async fn keep_identity(&self) {
        let mut pause = FIRST_PAUSE;
        loop {
            tokio::time::sleep(self.until_renewal()).await;
            let renewed = match &self.way_back {
                Some(way_back) if self.has_ended() => self.come_back(way_back).await,
                Some(_) | None => self.renew().await,
            };
            match renewed {
                Ok(()) => {
                    pause = FIRST_PAUSE;
                    tokio::time::sleep(BETWEEN_RENEWALS).await;
                }
                Err(error) => {
                    let hopeless = match &error {
                        RenewError::Call(call) => !call.is_transient(),
                        RenewError::Recover(recover) => !recover.is_transient(),
                        RenewError::Key(_) | RenewError::Svid(_) => false,
                    };
                    tracing::warn!(err = %error, hopeless, "the certificate could not be renewed");
                    let wait = if hopeless { HOPELESS_PAUSE } else { pause };
                    tokio::time::sleep(wait.mul_f64(rand::random_range(0.5..1.0))).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    fn until_renewal(&self) -> Duration {
        let Some(svid) = self.identity.current() else {
            return HOPELESS_PAUSE;
        };
        let (begin, end) = (svid.leaf().not_before, svid.leaf().not_after);
        let share = rand::random_range(0.45..0.55);
        due(begin, end, jiff::Timestamp::now()).mul_f64(share * 2.0)
    }

    /// Gets a certificate for a new key, at once.
    ///
    /// # Errors
    /// When the controller does not issue one, or it is of no use; the old one stays.
    ///
    /// # Cancel safety
    /// Safe: the old identity stays until the new one is whole.
    pub async fn renew(&self) -> Result<(), RenewError> {
        let key = KeyPair::generate().map_err(RenewError::Key)?;
        let request = key.request_der().map_err(RenewError::Key)?;
        let Issued { chain, trust, .. } = self.client().renew(request).await?;
        let svid = Svid::new(chain, Arc::new(key))?;
        let kept = self.dir.as_ref().is_some_and(|dir| {
            let stored = dir.store_svid(&svid);
            if let Err(error) = &stored {
                tracing::error!(err = %error, "the new certificate could not be kept on disk");
            }
            stored.is_ok()
        });
        tracing::info!(expires = %svid.leaf().not_after, "certificate renewed");
        self.identity.set(svid);
        self.keep_trust(trust);
        self.replace_client(kept);
        Ok(())
    }

    fn replace_client(&self, kept: bool) {
        let mut client = (self.make)(tls::controller_client(&self.identity, &self.trust));
        if kept {
            client = client.with_kept_certificate();
        }
        self.client.send_replace(client);
    }

    fn has_ended(&self) -> bool {
        let current = self.identity.current();
        current.is_some_and(|svid| svid.leaf().not_after <= jiff::Timestamp::now())
    }

    async fn come_back(&self, way_back: &WayBack) -> Result<(), RenewError> {
        let (svid, trust) = way_back().await?;
        tracing::warn!(
            expires = %svid.leaf().not_after,
            "the certificate had ended; the controller gave this node a new one"
        );
        self.identity.set(svid);
        self.trust.set(trust);
        self.replace_client(true);
        Ok(())
    }
}

enum FollowError {
    NeedsFull,
    Call(CallError),
}

fn take_delta(
    views: &ViewStore,
    head: tls::signed::SignedHead,
    from: ViewVersion,
    delta: sealock_core::view::Delta,
) -> Result<(), FollowError> {
    match views.apply(head, from, delta) {
        Ok(()) => Ok(()),
        // A change that cannot be taken is asked for again as a whole view.
        Err(error @ (TakeError::WrongBase | TakeError::Signed(_))) => {
            tracing::warn!(err = %error, "a change of the view did not fit; asking for the whole");
            Err(FollowError::NeedsFull)
        }
        Err(error @ TakeError::Older { .. }) => {
            tracing::error!(err = %error, "a view from the controller was not taken");
            Ok(())
        }
    }
}

fn report_away(error: &CallError) {
    let reason = error.reason();
    if reason == Reason::ControllerUnreachable {
        tracing::info!(err = %error, "the controller is away; what is known keeps working");
    } else {
        tracing::warn!(reason = reason.code(), "the controller refuses this node");
    }
}

/// How long it is until half of a certificate's life, which began with its issue and not with its backdated begin.
fn due(begin: jiff::Timestamp, end: jiff::Timestamp, now: jiff::Timestamp) -> Duration {
    let issued = begin.checked_add(BACKDATED).ok();
    let issued = issued.filter(|issued| *issued < end).unwrap_or(begin);
    let length = |from: jiff::Timestamp, to: jiff::Timestamp| {
        Duration::try_from(to.duration_since(from)).unwrap_or_default()
    };
    (length(issued, end) / 2).saturating_sub(length(issued, now))
}

#[cfg(test)]
mod tests;
