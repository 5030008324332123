//! Bytes as the messages of a session, to both of its sides.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sealock_proto::fuzz::run("control_message", input));
