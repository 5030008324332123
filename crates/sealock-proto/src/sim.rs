//! Agents, relays and the streams between them in virtual time: every run is one seed.
//!
//! The machines are the real ones (`Stream`, `Ticket`, both sides of a session, the messages as bytes); what drives
//! them, an opener that dials again, a provider that parks and checks tickets, a relay that judges and joins, is
//! modelled here by the rules of the design. A seed draws one tenant or two at the same relays, their fleets, then a
//! list of faults. In the safety phase they happen; then everything heals, and within the bound every stream must end,
//! exact or with a reason, and every map be empty. `check` looks after every step, K1 to K13 of the test plan, and a
//! seed of two tenants also runs without each of them, which the other must not see (`trace`, K10); `defect` is the bug
//! bank of the drivers' rules. Wall clocks may be wrong and certificates end (`clock`): only relays look at them.
//! Deliberately absent: packets, handshakes and encryption (`sealock-net` simulates QUIC itself), so a relay is not
//! searched for plaintext here (K14): the lab searches the real one's memory, files and packets
//! (`lab/tests/it/blindness.rs`). No threads, no sockets.

mod agent;
mod check;
mod clock;
mod defect;
mod link;
mod opener;
mod plan;
mod provider;
mod relay;
pub(crate) mod rng;
pub(crate) mod tests;
mod thief;
mod trace;
mod world;
