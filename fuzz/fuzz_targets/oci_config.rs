//! Any config.json is accepted or refused with one line; it never panics.
#![no_main]

libfuzzer_sys::fuzz_target!(|json: &[u8]| bulkhead_oci::fuzz::config(json));
