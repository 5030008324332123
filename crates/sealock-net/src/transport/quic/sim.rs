//! QUIC itself in virtual time: two endpoints of the library, our stream above them, and a seeded network between.
//!
//! The library's state machine is driven without sockets, with the settings and the kept keys that the product uses.
//! A seed draws loss, duplicates, delay and reordering, and what happens on the way: the relay's end restarts, the
//! dialler's address changes, a leg is reset, nothing gets through for a while. The stream must arrive exact, within
//! bounds of time. Packets hold fresh key shares, so what two runs of a seed have in common is when packets of which
//! size went where; that is what the trace hashes. Deliberately absent: sockets, tasks, certificates of our own form.

mod identity;
mod node;
mod tests;
mod world;
