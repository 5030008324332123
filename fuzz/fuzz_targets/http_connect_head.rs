//! Any bytes as the head of a CONNECT.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sealock_proto::fuzz::run("http_connect_head", input));
