//! Agents, relays and the streams between them in virtual time: every run is one seed.
//!
//! The machines are the real ones (`Stream`, `Ticket`, both sides of a session, the messages as bytes); what drives
//! them, an opener that dials again, a provider that parks and checks tickets, a relay that judges and joins, is
//! modelled here by the rules of the design. A seed draws the fleet, then a list of faults. In the safety phase they
//! happen; then everything heals, and within the bound every stream must end, exact or with a reason, and every map
//! be empty. `check` looks after every step, K1 to K13 of the test plan; `defect` is the bug bank of the drivers'
//! rules. Deliberately absent: packets, handshakes and encryption (`sealock-net` simulates QUIC itself), wall clocks
//! (no machine here reads one), threads, sockets.

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
