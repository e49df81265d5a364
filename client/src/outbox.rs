//! What one device has sent to one recipient and the server has not confirmed.
//!
//! Keeps the numbers, what is already on this connection's wire, and from where
//! to repeat. Invariant: `pending` is in rising order of `seq`, all of them
//! above `sent` or refused numbers; the first `transmitted` of them are on the
//! wire of the present connection.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use wire::id::Class;
use wire::v2::flag;

/// How long after a rewind a further GAP for the same number is taken for an
/// answer to frames that were under way before the rewind, milliseconds. When
/// the window is over and the number is still missing, it is repeated once more.
const GAP_GUARD_MS: u64 = 200;

/// Shortest and longest wait after a temporary refusal, milliseconds.
const RETRY_MS_MIN: u64 = 10;
const RETRY_MS_MAX: u64 = 60_000;

/// How long a server remembers a device that sends nothing new, milliseconds,
/// unless it is set to another time, which it does not tell.
const PAIRS_KEPT_MS: u64 = 7 * 24 * 60 * 60 * 1000;

/// One message that waits for its SENT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pending {
    pub(crate) seq: u64,
    pub(crate) class: Class,
    pub(crate) flags: u8,
    pub(crate) expiry_s: u32,
    pub(crate) body: Box<[u8]>,
}

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// Highest number given out.
    given: u64,
    /// Highest number the server confirmed.
    sent: u64,
    /// The highest of those that were guaranteed: whatever the server had
    /// confirmed up to here was on its disk.
    guaranteed: u64,
    /// When it last confirmed anything.
    sent_ms: u64,
    pending: VecDeque<Pending>,
    /// How many of `pending` are on this connection's wire.
    transmitted: usize,
    /// Nothing is transmitted before this time.
    hold_until_ms: Option<u64>,
    gap: Option<Gap>,
}

/// The last GAP that was acted on.
#[derive(Debug)]
struct Gap {
    expected: u64,
    /// What was repeated first: `expected`, or the first one kept above it.
    from_seq: u64,
    guard_until_ms: u64,
    /// Another GAP for the same number came inside the guard time.
    repeated: bool,
}

/// Numbers that the server had confirmed and does not know any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Gone {
    /// A crash took them: they were never on the disk.
    Lost(RangeInclusive<u64>),
    /// They were stored; the server does not remember who sent them.
    Forgotten(RangeInclusive<u64>),
}

impl Outbox {
    pub(crate) fn push(&mut self, class: Class, flags: u8, expiry_s: u32, body: &[u8]) -> u64 {
        self.given += 1;
        let pending = Pending { seq: self.given, class, flags, expiry_s, body: body.into() };
        self.pending.push_back(pending);
        self.given
    }

    /// Messages that wait for their SENT.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.pending.len()
    }

    /// The next message for the wire, at most `window` ahead of its SENTs.
    pub(crate) fn transmit(&mut self, window: usize) -> Option<&Pending> {
        if self.hold_until_ms.is_some() || self.transmitted >= window {
            return None;
        }
        let pending = self.pending.get(self.transmitted)?;
        self.transmitted += 1;
        Some(pending)
    }

    /// A new connection: nothing of the pending is on its wire.
    pub(crate) fn reconnect(&mut self) {
        self.transmitted = 0;
        self.hold_until_ms = None;
        self.gap = None;
    }

    /// The server has `seq` and everything below; each confirmed message goes
    /// to `confirmed`, in order.
    pub(crate) fn sent(&mut self, seq: u64, now_ms: u64, mut confirmed: impl FnMut(Pending)) {
        // A number that was never given out confirms nothing.
        let seq = seq.min(self.given);
        self.sent = self.sent.max(seq);
        self.sent_ms = now_ms;
        while self.pending.front().is_some_and(|first| first.seq <= seq) {
            let pending = self.pending.pop_front().expect("a first one is there");
            self.transmitted = self.transmitted.saturating_sub(1);
            if pending.class == Class::Guaranteed {
                self.guaranteed = pending.seq;
            }
            confirmed(pending);
        }
    }

    /// The server misses `expected`: repeat from there. Gives back the numbers
    /// it had confirmed before and has no more, as far as they are gone here.
    pub(crate) fn gap(&mut self, expected: u64, now_ms: u64) -> Option<Gone> {
        let at = self.place(expected);
        let first = self.pending.get_mut(at)?;
        if at >= self.transmitted {
            // Not on the wire since the last rewind: it will be repeated anyway.
            return None;
        }
        if let Some(gap) = &mut self.gap
            && gap.expected == expected
            && now_ms < gap.guard_until_ms
        {
            gap.repeated = true;
            return None;
        }
        let first_kept = first.seq;
        if first_kept > expected {
            first.flags |= flag::SKIP;
        }
        self.rewind(at, expected, now_ms);
        let gone = expected..=self.sent.min(first_kept - 1);
        if gone.is_empty() {
            return None;
        }
        // A crash takes nothing that stands before a guaranteed message; and of
        // best effort alone it is the time that tells.
        let is_forgotten =
            expected <= self.guaranteed || now_ms.saturating_sub(self.sent_ms) >= PAIRS_KEPT_MS;
        Some(if is_forgotten { Gone::Forgotten(gone) } else { Gone::Lost(gone) })
    }

    /// The server did not take `seq` now; repeat from there after a while.
    pub(crate) fn hold(&mut self, seq: u64, retry_after_ms: u32, now_ms: u64) {
        let at = self.place(seq);
        if self.pending.get(at).is_none_or(|pending| pending.seq != seq) {
            return;
        }
        let until = now_ms + u64::from(retry_after_ms).clamp(RETRY_MS_MIN, RETRY_MS_MAX);
        self.hold_until_ms = self.hold_until_ms.max(Some(until));
        if at < self.transmitted {
            self.rewind(at, seq, until);
        }
    }

    /// The server will never take `seq`; its number is used up.
    pub(crate) fn refused(&mut self, seq: u64) -> Option<Pending> {
        let at = self.place(seq);
        if self.pending.get(at)?.seq != seq {
            return None;
        }
        if at < self.transmitted {
            self.transmitted -= 1;
        }
        self.pending.remove(at)
    }

    /// When [`Outbox::tick`] has something to do, milliseconds.
    pub(crate) fn deadline_ms(&self) -> Option<u64> {
        let repeated = self.gap.as_ref().filter(|gap| gap.repeated).map(|gap| gap.guard_until_ms);
        match (self.hold_until_ms, repeated) {
            (Some(hold), Some(gap)) => Some(hold.min(gap)),
            (hold, gap) => hold.or(gap),
        }
    }

    pub(crate) fn tick(&mut self, now_ms: u64) {
        if self.hold_until_ms.is_some_and(|until| now_ms >= until) {
            self.hold_until_ms = None;
        }
        if let Some(gap) = &self.gap
            && gap.repeated
            && now_ms >= gap.guard_until_ms
        {
            let (expected, from_seq) = (gap.expected, gap.from_seq);
            self.gap = None;
            let at = self.place(from_seq);
            // When it is confirmed or refused by now, nothing is missing.
            if at < self.transmitted && self.pending[at].seq == from_seq {
                self.rewind(at, expected, now_ms);
            }
        }
    }

    /// Index of the first pending message numbered `seq` or above.
    fn place(&self, seq: u64) -> usize {
        self.pending.partition_point(|pending| pending.seq < seq)
    }

    fn rewind(&mut self, at: usize, expected: u64, resumes_ms: u64) {
        self.transmitted = at;
        self.gap = Some(Gap {
            expected,
            from_seq: self.pending[at].seq,
            guard_until_ms: resumes_ms + GAP_GUARD_MS,
            repeated: false,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outbox(n: u64) -> Outbox {
        let mut outbox = Outbox::default();
        push(&mut outbox, n, Class::Guaranteed);
        outbox
    }

    fn push(outbox: &mut Outbox, n: u64, class: Class) {
        for _ in 0..n {
            outbox.push(class, 0, 0, b"x");
        }
    }

    /// Everything that goes on the wire now: (seq, has SKIP).
    fn wire(outbox: &mut Outbox) -> Vec<(u64, bool)> {
        let mut wire = Vec::new();
        while let Some(pending) = outbox.transmit(100) {
            wire.push((pending.seq, pending.flags & flag::SKIP != 0));
        }
        wire
    }

    fn plain(seqs: impl IntoIterator<Item = u64>) -> Vec<(u64, bool)> {
        seqs.into_iter().map(|seq| (seq, false)).collect()
    }

    #[test]
    fn gap_repeats_once_for_many_answers() {
        let mut outbox = outbox(5);
        assert_eq!(wire(&mut outbox), plain(1..=5));
        assert_eq!(outbox.gap(2, 0), None);
        assert_eq!(wire(&mut outbox), plain(2..=5));
        // The GAPs that 4 and 5 of the first try caused.
        assert_eq!(outbox.gap(2, 1), None);
        assert_eq!(outbox.gap(2, 2), None);
        assert_eq!(wire(&mut outbox), []);
        // One of them may have been meant: try once more when it is quiet.
        assert_eq!(outbox.deadline_ms(), Some(GAP_GUARD_MS));
        outbox.tick(GAP_GUARD_MS);
        assert_eq!(wire(&mut outbox), plain(2..=5));
    }

    #[test]
    fn temporary_refusal_waits_and_repeats_in_order() {
        let mut outbox = outbox(3);
        wire(&mut outbox);
        outbox.hold(1, 50, 0);
        outbox.gap(1, 1);
        outbox.gap(1, 1);
        assert_eq!(wire(&mut outbox), []);
        assert_eq!(outbox.deadline_ms(), Some(50));
        outbox.tick(49);
        assert_eq!(wire(&mut outbox), []);
        outbox.tick(50);
        assert_eq!(wire(&mut outbox), plain(1..=3));
    }

    #[test]
    fn lost_numbers_are_named_and_skipped() {
        let mut outbox = outbox(2);
        push(&mut outbox, 4, Class::BestEffort);
        wire(&mut outbox);
        outbox.sent(4, 0, |_| {});
        outbox.reconnect();
        assert_eq!(wire(&mut outbox), plain(5..=6));
        assert_eq!(outbox.gap(3, 0), Some(Gone::Lost(3..=4)));
        assert_eq!(wire(&mut outbox), [(5, true), (6, false)]);
    }

    /// What a crash cannot have taken was stored, and who sent it is forgotten.
    #[test]
    fn forgotten_numbers_are_not_called_lost() {
        let mut outbox = outbox(4);
        push(&mut outbox, 2, Class::BestEffort);
        wire(&mut outbox);
        outbox.sent(5, 0, |_| {});
        outbox.reconnect();
        assert_eq!(wire(&mut outbox), plain(6..=6));
        assert_eq!(outbox.gap(1, 1), Some(Gone::Forgotten(1..=5)));
        assert_eq!(wire(&mut outbox), [(6, true)]);
    }

    #[test]
    fn of_best_effort_alone_the_time_tells() {
        for (ms, gone) in
            [(PAIRS_KEPT_MS - 1, Gone::Lost(1..=3)), (PAIRS_KEPT_MS, Gone::Forgotten(1..=3))]
        {
            let mut outbox = Outbox::default();
            push(&mut outbox, 3, Class::BestEffort);
            wire(&mut outbox);
            outbox.sent(3, 10, |_| {});
            push(&mut outbox, 1, Class::BestEffort);
            assert_eq!(wire(&mut outbox), plain(4..=4));
            assert_eq!(outbox.gap(1, 10 + ms), Some(gone));
            assert_eq!(wire(&mut outbox), [(4, true)]);
        }
    }

    #[test]
    fn permanent_refusal_leaves_a_hole() {
        let mut outbox = outbox(4);
        wire(&mut outbox);
        assert_eq!(outbox.refused(2).map(|pending| pending.seq), Some(2));
        assert_eq!(outbox.refused(2), None);
        outbox.reconnect();
        assert_eq!(wire(&mut outbox), plain([1, 3, 4]));
        // A crash forgot that 2 was used up.
        assert_eq!(outbox.gap(2, 0), None);
        assert_eq!(wire(&mut outbox), [(3, true), (4, false)]);
    }

    #[test]
    fn window_bounds_what_is_under_way() {
        let mut outbox = outbox(3);
        assert!(outbox.transmit(2).is_some());
        assert!(outbox.transmit(2).is_some());
        assert!(outbox.transmit(2).is_none());
        outbox.sent(1, 0, |_| {});
        assert_eq!(outbox.transmit(2).map(|pending| pending.seq), Some(3));
    }

    #[test]
    fn numbers_never_given_out_confirm_nothing() {
        let mut outbox = outbox(1);
        outbox.sent(u64::MAX, 0, |_| {});
        assert_eq!(outbox.push(Class::Guaranteed, 0, 0, b""), 2);
        assert_eq!(outbox.len(), 1);
    }
}
