//! Any bytes as what a SOCKS5 client says.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sealock_proto::fuzz::run("socks5", input));
