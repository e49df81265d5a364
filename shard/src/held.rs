//! What protocol v1 numbers waits behind a number that was refused for now.
//!
//! A client of v1 hears that it has to wait, but not for which message, and what
//! it sent right behind that one is under way already. If such a one were
//! stored, the refused one would be too late when it comes again. So for as
//! long as the client was told to wait, whatever has a higher number is refused
//! as well.

use std::collections::BTreeMap;

use wire::id::UserKey;

use crate::dedup::PairKey;
use crate::io::Now;
use crate::session::RETRY_MS;

/// Sets of pairs, by sender: whoever is refused for thousands of recipients fills
/// his own, which few others share, and nobody can choose with whom. Thousands of
/// senders can fill them all, which is 0.8 MB.
const SETS: u64 = 256;

/// Pairs held at a time in a set. Of further ones a higher number may come first;
/// then the refused one is told to be too late.
const HELD_MAX: usize = 64;

/// The pairs whose sender was told to wait, and has not come again.
#[derive(Default)]
pub(crate) struct Held {
    sets: BTreeMap<u8, Vec<Hold>>,
}

struct Hold {
    to: UserKey,
    pair: PairKey,
    /// The number that was refused.
    seq: u64,
    until_ns: u64,
}

/// A pair's key is its sender's, a keyed hash.
fn set_of(pair: PairKey) -> u8 {
    (pair.hash() % SETS) as u8
}

const _: () = assert!(SETS <= 1 << 8, "a byte says which");

impl Held {
    /// Its sender is told to wait for [`RETRY_MS`] with this number.
    pub(crate) fn hold(&mut self, now: Now, to: UserKey, pair: PairKey, seq: u64) {
        let until_ns = now.mono_ns + u64::from(RETRY_MS) * 1_000_000;
        let hold = Hold { to, pair, seq, until_ns };
        let set = self.sets.entry(set_of(pair)).or_default();
        if let Some(known) = set.iter_mut().find(|hold| (hold.to, hold.pair) == (to, pair)) {
            *known = hold;
        } else if set.len() < HELD_MAX {
            set.push(hold);
        }
    }

    /// How long this number has to wait for a lower one that was refused, ms.
    pub(crate) fn wait_ms(&self, now: Now, to: UserKey, pair: PairKey, seq: u64) -> Option<u32> {
        let set = self.sets.get(&set_of(pair))?;
        let hold = set.iter().find(|hold| (hold.to, hold.pair) == (to, pair))?;
        let left_ns = hold.until_ns.saturating_sub(now.mono_ns);
        let left_ms = u32::try_from(left_ns.div_ceil(1_000_000)).unwrap_or(u32::MAX);
        (seq > hold.seq && left_ms > 0).then_some(left_ms)
    }

    /// This number is stored: the one that was refused, or its time was over.
    pub(crate) fn release(&mut self, to: UserKey, pair: PairKey, seq: u64) {
        if let Some(set) = self.sets.get_mut(&set_of(pair)) {
            set.retain(|hold| (hold.to, hold.pair) != (to, pair) || seq < hold.seq);
        }
    }

    /// Lets go those whose time is over.
    pub(crate) fn tick(&mut self, now: Now) {
        self.sets.retain(|_, set| {
            set.retain(|hold| hold.until_ns > now.mono_ns);
            !set.is_empty()
        });
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
        for to in 0..HELD_MAX as u128 + 10 {
            held.hold(at(0), UserKey(to), pair(1), 1);
        }
        let is_held = |held: &Held, to: u128, ms| held.wait_ms(at(ms), UserKey(to), pair(1), 2);
        assert!(is_held(&held, HELD_MAX as u128 - 1, 0).is_some());
        assert!(is_held(&held, HELD_MAX as u128, 0).is_none());
        // Who is held already may be told to wait again.
        held.hold(at(500), UserKey(0), pair(1), 1);
        held.tick(at(RETRY_MS.into()));
        assert!(is_held(&held, 0, RETRY_MS.into()).is_some());
        assert!(is_held(&held, 1, RETRY_MS.into()).is_none());
        held.tick(at(u64::from(RETRY_MS) + 500));
        assert!(held.sets.is_empty());
    }

    #[test]
    fn who_is_refused_for_everybody_takes_no_place_of_others() {
        let mut held = Held::default();
        for to in 0..100_000 {
            held.hold(at(0), UserKey(to), pair(1), 1);
        }
        for of in 2..50 {
            held.hold(at(0), TO, pair(of), 1);
            assert!(held.wait_ms(at(0), TO, pair(of), 2).is_some());
        }
    }
}
