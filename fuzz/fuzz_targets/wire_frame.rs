//! Bytes as the frames of a leg, cut in many ways.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sealock_proto::fuzz::run("wire_frame", input));
