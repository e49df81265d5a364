//! What protocol v1 numbers waits behind a number that was refused for now.
//!
//! A client of v1 hears that it has to wait, but not for which message, and what
//! it sent right behind that one is under way already. If such a one were
//! stored, the refused one would be too late when it comes again. So for as
//! long as the client was told to wait, whatever has a higher number is refused
//! as well.

use hashbrown::HashTable;
use wire::id::UserKey;

use crate::dedup::PairKey;
use crate::io::Now;
use crate::session::RETRY_MS;

/// Pairs held at a time. Of further ones a higher number may come first; then
/// the refused one is told to be too late.
const HELD_MAX: usize = 4096;

/// The pairs whose sender was told to wait, and has not come again.
#[derive(Default)]
pub(crate) struct Held {
    holds: HashTable<Hold>,
}

struct Hold {
    to: UserKey,
    pair: PairKey,
    /// The number that was refused.
    seq: u64,
    until_ns: u64,
}

/// Both are keyed hashes already, and the same one where somebody writes to
/// himself.
fn hash(to: UserKey, pair: PairKey) -> u64 {
    pair.hash().rotate_left(32) ^ to.0 as u64
}

impl Held {
    /// Its sender is told to wait for [`RETRY_MS`] with this number.
    pub(crate) fn hold(&mut self, now: Now, to: UserKey, pair: PairKey, seq: u64) {
        let until_ns = now.mono_ns + u64::from(RETRY_MS) * 1_000_000;
        let hold = Hold { to, pair, seq, until_ns };
        if let Some(known) = self.find_mut(to, pair) {
            *known = hold;
        } else if self.holds.len() < HELD_MAX {
            self.holds.insert_unique(hash(to, pair), hold, |hold| hash(hold.to, hold.pair));
        }
    }

    fn find_mut(&mut self, to: UserKey, pair: PairKey) -> Option<&mut Hold> {
        self.holds.find_mut(hash(to, pair), |hold| (hold.to, hold.pair) == (to, pair))
    }

    /// How long this number has to wait for a lower one that was refused, ms.
    pub(crate) fn wait_ms(&self, now: Now, to: UserKey, pair: PairKey, seq: u64) -> Option<u32> {
        let hold = self.holds.find(hash(to, pair), |hold| (hold.to, hold.pair) == (to, pair))?;
        let left_ns = hold.until_ns.saturating_sub(now.mono_ns);
        let left_ms = u32::try_from(left_ns.div_ceil(1_000_000)).unwrap_or(u32::MAX);
        (seq > hold.seq && left_ms > 0).then_some(left_ms)
    }

    /// This number is stored: the one that was refused, or its time was over.
    pub(crate) fn release(&mut self, to: UserKey, pair: PairKey, seq: u64) {
        let is_it = |hold: &Hold| (hold.to, hold.pair) == (to, pair) && seq >= hold.seq;
        if let Ok(held) = self.holds.find_entry(hash(to, pair), is_it) {
            held.remove();
        }
    }

    /// Lets go those whose time is over.
    pub(crate) fn tick(&mut self, now: Now) {
        self.holds.retain(|hold| hold.until_ns > now.mono_ns);
        if self.holds.is_empty() {
            self.holds.shrink_to(0, |hold| hash(hold.to, hold.pair));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TO: UserKey = UserKey(5);

    fn at(ms: u64) -> Now {
        Now { mono_ns: ms * 1_000_000, wall_ms: 0 }
    }

    fn pair(of: u128) -> PairKey {
        PairKey::new(UserKey(of), 0)
    }

    #[test]
    fn higher_numbers_wait_as_long_as_the_refused_one() {
        let mut held = Held::default();
        held.hold(at(0), TO, pair(1), 7);
        assert_eq!(held.wait_ms(at(0), TO, pair(1), 8), Some(RETRY_MS));
        assert_eq!(held.wait_ms(at(400), TO, pair(1), 8), Some(RETRY_MS - 400));
        assert_eq!(held.wait_ms(at(0), TO, pair(1), 7), None);
        assert_eq!(held.wait_ms(at(0), TO, pair(2), 8), None);
        assert_eq!(held.wait_ms(at(0), UserKey(6), pair(1), 8), None);
        assert_eq!(held.wait_ms(at(RETRY_MS.into()), TO, pair(1), 8), None);
        held.release(TO, pair(1), 6);
        assert_eq!(held.wait_ms(at(1), TO, pair(1), 8), Some(RETRY_MS - 1));
        held.release(TO, pair(1), 7);
        assert_eq!(held.wait_ms(at(1), TO, pair(1), 8), None);
    }

    #[test]
    fn it_is_bounded_and_forgets() {
        let mut held = Held::default();
        for of in 0..HELD_MAX as u128 + 10 {
            held.hold(at(0), TO, pair(of), 1);
        }
        assert_eq!(held.holds.len(), HELD_MAX);
        // Who is held already may be told to wait again.
        held.hold(at(500), TO, pair(0), 1);
        held.tick(at(RETRY_MS.into()));
        assert_eq!(held.holds.len(), 1);
        held.tick(at(u64::from(RETRY_MS) + 500));
        assert_eq!(held.holds.capacity(), 0);
    }
}
