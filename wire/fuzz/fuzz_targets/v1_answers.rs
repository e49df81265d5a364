//! A v1 server's bytes, as a client reads them. The promises stand in tests/codec/total.rs.
#![no_main]

#[path = "../../tests/codec/total.rs"]
mod total;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| total::v1_answers(bytes));
