//! A new connection: sniff, then the protocol it chose. The promises stand in tests/codec/total.rs.
#![no_main]

#[path = "../../tests/codec/total.rs"]
mod total;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| total::first_bytes(bytes));
