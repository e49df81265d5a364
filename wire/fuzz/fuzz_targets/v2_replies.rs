//! A v2 server's frames, as a client reads them. The promises stand in tests/codec/total.rs.
#![no_main]

#[path = "../../tests/codec/total.rs"]
mod total;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| total::v2_replies(bytes));
