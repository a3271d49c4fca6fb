//! Any bytes are read as a tar archive or refused, in bounded memory.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bulkhead_oci::fuzz::archive(bytes));
