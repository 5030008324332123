//! A text as the patterns of a policy rule.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sealock_proto::fuzz::run("policy_pattern", input));
