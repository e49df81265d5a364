//! CRC32C of a record: what most of a commit's time goes into.
//!
//! A record is a few words, and the crate that computes the checksum of long
//! inputs, three streams at once, spends more on finding out that there is
//! nothing to split than on the bytes. So short inputs go through the
//! processor's own instruction here, a word at a time, and long ones, and other
//! processors, through the crate. Both give the same.
#![allow(unsafe_code)]

/// From here on three streams are worth their preparation.
const LONG: usize = 512;

/// Goes on with a checksum, 0 at the beginning.
#[inline]
pub(crate) fn append(crc: u32, bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if bytes.len() < LONG && is_x86_feature_detected!("sse4.2") {
        // SAFETY: the processor has the instruction.
        return unsafe { short(crc, bytes) };
    }
    crc32c::crc32c_append(crc, bytes)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2")]
fn short(crc: u32, bytes: &[u8]) -> u32 {
    use std::arch::x86_64::{_mm_crc32_u8, _mm_crc32_u32, _mm_crc32_u64};
    let (words, rest) = bytes.as_chunks::<8>();
    let mut wide = u64::from(!crc);
    for word in words {
        wide = _mm_crc32_u64(wide, u64::from_le_bytes(*word));
    }
    let mut narrow = wide as u32;
    let (halves, rest) = rest.as_chunks::<4>();
    for half in halves {
        narrow = _mm_crc32_u32(narrow, u32::from_le_bytes(*half));
    }
    for byte in rest {
        narrow = _mm_crc32_u8(narrow, *byte);
    }
    !narrow
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_the_crate_computes() {
        let bytes: Vec<u8> = (0..LONG + 64).map(|at| (at * 31 % 251) as u8).collect();
        for start in 0..16 {
            for end in start..bytes.len() {
                let part = &bytes[start..end];
                for crc in [0, 0x1234_5678] {
                    let expected = crc32c::crc32c_append(crc, part);
                    assert_eq!(append(crc, part), expected, "{start}..{end}");
                }
            }
        }
    }
}
