//! Proofs of many contexts against each other.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sealock_proto::fuzz::run("ticket", input));
