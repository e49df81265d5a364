//! What every message carries, so that its receiver can check it without any
//! other knowledge: the run, who, to whom, the number, and the times.

/// Length of the fields; no message of a run is shorter.
pub(crate) const BODY_BYTES_MIN: usize = 44;

const MAGIC: u32 = 0x4952_4c47;

/// The fields of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Body {
    /// Tells the messages of this run from others in the same inbox.
    pub(crate) run: u64,
    /// The sending user's index in the run.
    pub(crate) sender: u32,
    /// The receiving user's index in the run.
    pub(crate) recipient: u32,
    /// 1, 2, 3 … from this sender to this recipient.
    pub(crate) number: u64,
    /// When it was meant to leave, monotonic nanoseconds.
    pub(crate) intended_ns: u64,
    /// When it was handed to the session, monotonic nanoseconds.
    pub(crate) handed_ns: u64,
}

impl Body {
    /// Writes the message into `out`, `size` bytes long in all.
    ///
    /// # Panics
    /// When `size` is below [`BODY_BYTES_MIN`].
    pub(crate) fn put(&self, out: &mut Vec<u8>, size: usize) {
        assert!(size >= BODY_BYTES_MIN, "a message holds its fields");
        let end = out.len() + size;
        out.extend_from_slice(&MAGIC.to_be_bytes());
        out.extend_from_slice(&self.run.to_be_bytes());
        out.extend_from_slice(&self.sender.to_be_bytes());
        out.extend_from_slice(&self.recipient.to_be_bytes());
        out.extend_from_slice(&self.number.to_be_bytes());
        out.extend_from_slice(&self.intended_ns.to_be_bytes());
        out.extend_from_slice(&self.handed_ns.to_be_bytes());
        out.resize(end, self.padding());
    }

    /// Reads a message; `None` when it is none of a load generator's or when a
    /// byte of it has changed.
    pub(crate) fn read(bytes: &[u8], size: usize) -> Option<Body> {
        if bytes.len() != size || bytes.len() < BODY_BYTES_MIN {
            return None;
        }
        if u32_at(bytes, 0) != MAGIC {
            return None;
        }
        let body = Body {
            run: u64_at(bytes, 4),
            sender: u32_at(bytes, 12),
            recipient: u32_at(bytes, 16),
            number: u64_at(bytes, 20),
            intended_ns: u64_at(bytes, 28),
            handed_ns: u64_at(bytes, 36),
        };
        let padding = body.padding();
        bytes[BODY_BYTES_MIN..].iter().all(|byte| *byte == padding).then_some(body)
    }

    /// Differs between neighbours, so that swapped bytes are seen.
    fn padding(&self) -> u8 {
        (self.number as u8) ^ (self.sender as u8).rotate_left(4) ^ 0xa5
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_every_changed_padding_byte_is_seen() {
        let body =
            Body { run: 1, sender: 2, recipient: 3, number: 4, intended_ns: 5, handed_ns: 6 };
        let mut bytes = Vec::new();
        body.put(&mut bytes, 64);
        assert_eq!(Body::read(&bytes, 64), Some(body));
        assert_eq!(Body::read(&bytes[..63], 64), None);
        for at in (0..4).chain(BODY_BYTES_MIN..64) {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert_eq!(Body::read(&bad, 64), None, "byte {at}");
        }
    }
}
