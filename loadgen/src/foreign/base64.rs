//! Base64, because XMPP carries text and messages are bytes. Standard alphabet,
//! padded, without line breaks.

use super::Broken;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const NONE: u8 = 64;

/// The value of each byte that stands for one.
const VALUES: [u8; 256] = {
    let mut values = [NONE; 256];
    let mut at = 0;
    while at < ALPHABET.len() {
        values[ALPHABET[at] as usize] = at as u8;
        at += 1;
    }
    values
};

/// Writes bytes as text to the end of `out`.
pub(super) fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    for chunk in bytes.chunks(3) {
        let at = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for digit in 0..4 {
            out.push(if digit <= chunk.len() {
                ALPHABET[(bits >> (18 - 6 * digit)) as usize & 63]
            } else {
                b'='
            });
        }
    }
}

/// Reads text into `out`, whose content it replaces.
///
/// # Errors
/// When it is no base64.
pub(super) fn read(text: &[u8], out: &mut Vec<u8>) -> Result<(), Broken> {
    let broken = || Broken::new("a body that is no base64");
    out.clear();
    if !text.len().is_multiple_of(4) {
        return Err(broken());
    }
    let padding = text.iter().rev().take_while(|byte| **byte == b'=').count();
    if padding > 2 {
        return Err(broken());
    }
    for chunk in text[..text.len() - padding].chunks(4) {
        let mut bits = 0;
        for (at, byte) in chunk.iter().enumerate() {
            let value = VALUES[usize::from(*byte)];
            if value == NONE {
                return Err(broken());
            }
            bits |= u32::from(value) << (18 - 6 * at);
        }
        out.extend_from_slice(&bits.to_be_bytes()[1..chunk.len()]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_texts() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
            ("\0u\0p", "AHUAcA=="),
        ] {
            let mut out = Vec::new();
            put(&mut out, bytes.as_bytes());
            assert_eq!(out, text.as_bytes());
        }
    }

    #[test]
    fn every_byte_survives_and_nonsense_does_not() {
        let bytes: Vec<u8> = (0..=255).collect();
        for end in 0..=bytes.len() {
            let (mut text, mut back) = (Vec::new(), vec![1]);
            put(&mut text, &bytes[..end]);
            assert_eq!(read(&text, &mut back), Ok(()));
            assert_eq!(back, bytes[..end]);
        }
        for text in ["Zg", "Zg=", "====", "Z\n==", "Zg=v"] {
            assert!(read(text.as_bytes(), &mut Vec::new()).is_err(), "{text}");
        }
    }
}
