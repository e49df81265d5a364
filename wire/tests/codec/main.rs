//! The codec against bytes: fixed vectors, round trips, splits, garbage.
//!
//! One binary, so that it links once. `total` states what must hold for any
//! bytes at all; the fuzz targets in `wire/fuzz` check the same file.

mod parts;
mod stream;
mod total;

mod v1_golden;
mod v1_stream;

mod v2_golden;
mod v2_stream;

mod documented;
mod garbage;
mod ids;

/// Bytes from a hex literal; white space is for the reader.
#[track_caller]
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| c.to_digit(16).expect("a hex digit") as u8)
        .collect();
    assert!(digits.len().is_multiple_of(2), "half a byte in {text:?}");
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}
