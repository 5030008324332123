//! Two streams, their applications and the legs between them in virtual time: every run is one seed.
//!
//! A seed draws first which faults are possible and how often, then the run itself (`swarm`). In the safety phase
//! legs are cut at any byte, late, one-sided or twice in a row, replaced while they live, and answered late; when the
//! drawn number of faults is used up the liveness phase begins, and both sides must come to one verdict and forget
//! the stream. `check` looks after every step. Deliberately absent: threads, sockets and time.

mod check;
mod leg;
mod swarm;
mod tests;
mod world;
