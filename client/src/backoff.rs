//! When to try a connection again.
//!
//! A server that has too many logins says when to come back; coming earlier
//! only makes the line longer. Without its word the pauses double. Either way
//! everybody adds a little of its own, so that those who were cut together do
//! not come back together.

use wire::refuse::Code;

/// The first pause without advice, milliseconds.
const FIRST_MS: u64 = 200;
/// The longest pause without advice, jitter not included.
const LONGEST_MS: u64 = 30_000;
/// Of each pause, so much more may be added.
const JITTER_SHARE: u64 = 4;

/// The pauses of one device between its attempts. No clock and no source of
/// randomness: devices differ by their names, attempts by their number.
#[derive(Clone, Debug)]
pub struct Backoff {
    seed: u64,
    attempts: u32,
}

impl Backoff {
    /// For a device that has not failed yet.
    pub fn new(user: &[u8], device: u64) -> Backoff {
        // FNV-1a.
        let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        let seed =
            user.iter().copied().chain(device.to_be_bytes()).fold(0xcbf2_9ce4_8422_2325, fold);
        Backoff { seed, attempts: 0 }
    }

    /// An attempt failed: how long to wait before the next, milliseconds.
    /// `advice_ms` is what GOAWAY said, 0 for nothing. Never less than that, and
    /// at most a quarter more.
    pub fn wait_ms(&mut self, advice_ms: u32) -> u64 {
        let doubled = FIRST_MS.checked_shl(self.attempts.min(16)).unwrap_or(LONGEST_MS);
        let wait_ms = if advice_ms > 0 { u64::from(advice_ms) } else { doubled.min(LONGEST_MS) };
        self.attempts += 1;
        let mixed = mix(self.seed.wrapping_add(u64::from(self.attempts)));
        wait_ms + mixed % (wait_ms / JITTER_SHARE + 1)
    }

    /// How many attempts have failed.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// A login was taken: the next pause is a short one.
    pub fn succeeded(&mut self) {
        self.attempts = 0;
    }
}

/// Whether coming back after this code would meet the same.
pub(crate) fn is_final(code: u16) -> bool {
    use Code::{AuthFailed, BadName, Malformed, Replaced, TooManyDevices, Version};
    matches!(
        Code::from_u16(code),
        Some(AuthFailed | BadName | Malformed | Replaced | TooManyDevices | Version)
    )
}

/// The finalizer of SplitMix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_is_followed_and_spread() {
        let waits: Vec<u64> =
            (0..1000).map(|device| Backoff::new(b"alice", device).wait_ms(4_000)).collect();
        assert!(waits.iter().all(|wait| (4_000..=5_000).contains(wait)));
        for from in (4_000..5_000).step_by(250) {
            let there = waits.iter().filter(|wait| (from..from + 250).contains(*wait)).count();
            assert!(there > 150, "{there} of 1000 from {from} on");
        }
    }

    #[test]
    fn without_advice_pauses_double_up_to_a_bound() {
        let mut backoff = Backoff::new(b"alice", 1);
        let waits: Vec<u64> = (0..40).map(|_| backoff.wait_ms(0)).collect();
        for (n, wait) in waits.iter().enumerate() {
            let least = (FIRST_MS << n.min(16)).min(LONGEST_MS);
            assert!((least..=least + least / 4).contains(wait), "{n}: {wait}");
        }
        backoff.succeeded();
        assert!(backoff.wait_ms(0) <= 250);
    }
}
