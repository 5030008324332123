//! DNS as workloads see it: what they ask is read, judged and answered here, without a socket.
//!
//! A [`server`] answers for one workload. Names of the tenant's services are its own zone, and lead to the addresses of
//! [`vip`]; of other names policy decides first, then an upstream or nobody is asked, and the [`book`] remembers which
//! address this workload was given for which name. [`wire`] and [`record`] are the messages, [`upstream`] is what comes
//! back from other resolvers, [`cache`] what is kept of it. Nothing of a workload or an upstream is trusted: every length
//! has a bound, and pointers in names only lead backwards. Deliberately absent: DNSSEC (an answer that we change has no
//! signature; the workload is told so), zone transfers and updates.

pub mod book;
pub mod cache;
pub mod record;
pub mod server;
pub mod upstream;
pub mod vip;
pub mod wire;

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

#[cfg(any(test, fuzzing))]
#[expect(
    clippy::disallowed_methods,
    reason = "an Instant has no other beginning; only differences to it are used"
)]
fn origin() -> std::time::Instant {
    std::time::Instant::now()
}
