//! Any bytes as the beginning of a stream.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sealock_proto::fuzz::run("sniff_stream", input));
