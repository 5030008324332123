//! Any bytes as what a resolver upstream answers.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sealock_proto::fuzz::run("dns_answer", input));
