//! One side of a stream against a peer and a driver that do anything.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sealock_proto::fuzz::run("stream_machine", input));
