//! Any bytes as what a workload asks of its DNS.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sealock_proto::fuzz::run("dns_message", input));
