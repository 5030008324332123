//! The replay buffer against one that forgets nothing.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sealock_proto::fuzz::run("replay_buffer", input));
