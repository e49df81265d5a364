//! Exactly once, in order: one number per (sending device, inbox).
//!
//! Protocol v2 numbers its sends 1, 2, 3 …; the next number is accepted, a
//! lower one is known already, a higher one tells that something is missing.
//! Protocol v1's numbered send has no way to say *missing*: there any higher
//! number is new, and one that was passed over is too late. A window of 64
//! numbers tells such a one from a repetition.

use wire::id::UserKey;

/// How a send's number is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbering {
    /// No number: always new (v1 SEND and its relatives).
    None,
    /// v2: only the next one is new.
    Next,
    /// v2, after the sender gave up what lies between: any higher one is new.
    Higher,
    /// v1 SEND_SEQ: any higher one is new; a lower one is known or too late.
    Ascending,
    /// A logged v1 message: before decision 0015 late ones were taken.
    Window,
}

impl Numbering {
    /// How a logged message was numbered, for replay: it was accepted, so only
    /// whether it moves the window or the last number matters.
    pub(crate) fn of_record(device: u64, flags: u8) -> Numbering {
        match (device, flags & RECORD_NUMBERED_V1) {
            (0, 0) => Numbering::None,
            (0, _) => Numbering::Window,
            _ => Numbering::Higher,
        }
    }
}

/// Flag of a logged v1 message that carried a number; on the wire there is no
/// such flag.
pub(crate) const RECORD_NUMBERED_V1: u8 = 1 << 7;

/// Names one sending device in the inbox of one recipient: 96 bits of a keyed
/// hash, so that a pair is 32 bytes. Two of a million devices that write to one
/// inbox share them with a probability of 10⁻¹⁷.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PairKey([u32; 3]);

impl PairKey {
    pub(crate) fn new(from: UserKey, device: u64) -> PairKey {
        // Multiplying by an odd number loses nothing modulo 2^64: two devices
        // of one user never share a key.
        const ODD: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;
        let key = from.0 ^ u128::from(device).wrapping_mul(ODD);
        PairKey([key as u32, (key >> 32) as u32, (key >> 64) as u32])
    }

    /// The key is a keyed hash already; its low 64 bits serve as one.
    pub(crate) fn hash(self) -> u64 {
        u64::from(self.0[1]) << 32 | u64::from(self.0[0])
    }

    fn from_bytes(bytes: &[u8; 12]) -> PairKey {
        let parts = bytes.as_chunks::<4>().0;
        PairKey([0, 1, 2].map(|n| u32::from_le_bytes(parts[n])))
    }
}

/// What an inbox remembers of one sending device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair {
    pub(crate) key: PairKey,
    /// When it last sent something new, whole hours since 1970.
    pub(crate) touched_h: u32,
    /// Highest number accepted; 0 for none.
    last: u64,
    /// v1: bit k tells that `last - k` was accepted.
    window: u64,
}

/// The least that a server may be told to remember a pair for, milliseconds:
/// who is away for a night goes on with his numbers. A log may have been written
/// with any setting, so reading it back relies on this one.
pub const PAIRS_KEPT_MS_MIN: u64 = 24 * 60 * 60 * 1000;

/// Bytes of a pair, in memory and in a snapshot.
pub(crate) const PAIR_BYTES: usize = 32;

const _: () = assert!(size_of::<Pair>() == PAIR_BYTES, "a pair costs 32 bytes");

/// Milliseconds as the whole hours that [`Pair::touched_h`] counts.
pub(crate) fn hours(ms: u64) -> u32 {
    u32::try_from(ms / 3_600_000).unwrap_or(u32::MAX)
}

/// The judgement of one number; late is one that was passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    New,
    Known,
    Gap { expected: u64 },
    Late,
}

impl Pair {
    pub(crate) fn new(key: PairKey) -> Pair {
        Pair { key, touched_h: 0, last: 0, window: 0 }
    }

    /// Whether no number of it was ever accepted: nobody keeps such a pair.
    pub(crate) fn is_new(&self) -> bool {
        self.last == 0 && self.window == 0
    }

    /// Notes that it sent something new at this hour.
    pub(crate) fn touch(&mut self, hour: u32) {
        self.touched_h = self.touched_h.max(hour);
    }

    /// As it stands in a snapshot.
    pub(crate) fn to_bytes(self) -> [u8; PAIR_BYTES] {
        let mut bytes = [0; PAIR_BYTES];
        for (place, part) in bytes.chunks_exact_mut(4).zip(self.key.0) {
            place.copy_from_slice(&part.to_le_bytes());
        }
        bytes[12..16].copy_from_slice(&self.touched_h.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.last.to_le_bytes());
        bytes[24..].copy_from_slice(&self.window.to_le_bytes());
        bytes
    }

    /// Back from a snapshot.
    pub(crate) fn from_bytes(bytes: &[u8; PAIR_BYTES]) -> Pair {
        let words = bytes.as_chunks::<8>().0;
        Pair {
            key: PairKey::from_bytes(bytes.first_chunk().expect("32 bytes hold 12")),
            touched_h: (u64::from_le_bytes(words[1]) >> 32) as u32,
            last: u64::from_le_bytes(words[2]),
            window: u64::from_le_bytes(words[3]),
        }
    }

    pub(crate) fn judge(&self, numbering: Numbering, seq: u64) -> Verdict {
        match numbering {
            Numbering::None => Verdict::New,
            Numbering::Window => self.judge_window(seq),
            Numbering::Ascending => match self.judge_window(seq) {
                Verdict::New if self.window != 0 && seq < self.last => Verdict::Late,
                verdict => verdict,
            },
            _ if seq <= self.last => Verdict::Known,
            Numbering::Higher => Verdict::New,
            Numbering::Next if seq == self.last + 1 => Verdict::New,
            Numbering::Next => Verdict::Gap { expected: self.last + 1 },
        }
    }

    fn judge_window(&self, seq: u64) -> Verdict {
        if seq > self.last || self.window == 0 {
            return Verdict::New;
        }
        let back = self.last - seq;
        // Older than the window can tell: whoever sends everything again after a
        // broken connection must not be told that it is missing.
        if back < 64 && self.window & (1 << back) == 0 { Verdict::New } else { Verdict::Known }
    }

    /// Takes note of an accepted number.
    pub(crate) fn accept(&mut self, numbering: Numbering, seq: u64) {
        match numbering {
            Numbering::None => {}
            Numbering::Next | Numbering::Higher => {
                assert!(seq > self.last, "only a new number is accepted");
                self.last = seq;
            }
            Numbering::Ascending | Numbering::Window => self.accept_window(seq),
        }
    }

    fn accept_window(&mut self, seq: u64) {
        if self.window == 0 {
            (self.last, self.window) = (seq, 1);
        } else if seq > self.last {
            let ahead = seq - self.last;
            self.window = if ahead < 64 { self.window << ahead | 1 } else { 1 };
            self.last = seq;
        } else {
            self.window |= 1 << (self.last - seq);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds numbers and compares which were new.
    #[track_caller]
    fn check(numbering: Numbering, seqs: &[u64], expect: &[u64]) {
        let mut pair = Pair::new(PairKey::new(UserKey(7), 1));
        let mut new = Vec::new();
        for &seq in seqs {
            if pair.judge(numbering, seq) == Verdict::New {
                pair.accept(numbering, seq);
                new.push(seq);
            }
        }
        assert_eq!(new, expect);
    }

    #[test]
    fn next_takes_only_the_next() {
        check(Numbering::Next, &[1, 1, 2, 4, 3, 2, 4], &[1, 2, 3, 4]);
        let pair = Pair::new(PairKey::new(UserKey(7), 1));
        assert_eq!(pair.judge(Numbering::Next, 3), Verdict::Gap { expected: 1 });
    }

    #[test]
    fn higher_skips_forward_only() {
        check(Numbering::Higher, &[2, 5, 5, 4, 6], &[2, 5, 6]);
    }

    #[test]
    fn ascending_never_goes_back() {
        check(Numbering::Ascending, &[5, 5, 3, 4, 6, 3, 6], &[5, 6]);
        check(Numbering::Ascending, &[0, 0, 1], &[0, 1]);
        check(Numbering::Ascending, &[1, 100, 36, 37, 37], &[1, 100]);
        check(Numbering::Ascending, &[u64::MAX, 1, u64::MAX], &[u64::MAX]);
        let mut pair = Pair::new(PairKey::new(UserKey(7), 0));
        for seq in [1, 100] {
            pair.accept(Numbering::Ascending, seq);
        }
        // Nobody knows any more whether 36 was accepted; 37 was not.
        assert_eq!(pair.judge(Numbering::Ascending, 36), Verdict::Known);
        assert_eq!(pair.judge(Numbering::Ascending, 37), Verdict::Late);
        assert_eq!(pair.judge(Numbering::Ascending, 100), Verdict::Known);
    }

    #[test]
    fn window_takes_each_once() {
        check(Numbering::Window, &[5, 5, 3, 4, 6, 3, 6], &[5, 3, 4, 6]);
        check(Numbering::Window, &[0, 0, 1], &[0, 1]);
        check(Numbering::Window, &[1, 100, 36, 37, 37], &[1, 100, 37]);
        check(Numbering::Window, &[u64::MAX, 1, u64::MAX], &[u64::MAX]);
    }

    #[test]
    fn a_pair_survives_its_bytes() {
        let mut pair = Pair::new(PairKey::new(UserKey(u128::MAX / 7), 9));
        pair.accept(Numbering::Window, 5);
        pair.accept(Numbering::Window, 9);
        pair.touch(500_000);
        let back = Pair::from_bytes(&pair.to_bytes());
        assert_eq!(format!("{back:?}"), format!("{pair:?}"));
        assert_eq!((back.key, back.key.hash()), (pair.key, pair.key.hash()));
    }

    #[test]
    fn devices_of_one_user_differ() {
        assert_ne!(PairKey::new(UserKey(1), 1), PairKey::new(UserKey(1), 2));
        assert_ne!(PairKey::new(UserKey(1), 1), PairKey::new(UserKey(2), 1));
    }
}
