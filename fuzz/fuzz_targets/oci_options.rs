//! Any text of an option is parsed or refused.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| bulkhead_oci::fuzz::options(text));
