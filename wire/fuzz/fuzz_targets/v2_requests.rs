//! A v2 client's frames. The promises stand in tests/codec/total.rs.
#![no_main]

#[path = "../../tests/codec/total.rs"]
mod total;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| total::v2_requests(bytes));
