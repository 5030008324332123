//! Any datagrams, raw or sealed, as the beginning of a QUIC flow.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sealock_proto::fuzz::run("sniff_quic", input));
