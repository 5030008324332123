//! Two streams against a naive model of them.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sealock_proto::fuzz::run("stream_model", input));
