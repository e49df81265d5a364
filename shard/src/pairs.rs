//! What one inbox remembers of the devices that write to it.
//!
//! Most inboxes hear from a few devices only: those stand in a short list that
//! is searched from its front, the only one in the inbox itself, one line of
//! memory for two of them and nothing for those that are not there. Whoever
//! hears from more has a hash table, and from many more several, each of a part
//! of the hashes (linear hashing): one that grew or shrank with a million pairs
//! in it would hold up everybody on its core for as long as it takes to move them.
//!
//! Invariant: between two looks at one part no pair that stays comes to a part
//! before it, unless [`Pairs::shrink`] is called: a walk from part to part misses none.

use hashbrown::HashTable;
use smallvec::SmallVec;

use crate::dedup::{Pair, PairKey};

/// More than these are kept in a table.
const FEW_MAX: usize = 8;

/// So many pairs for each part, at the mean. Twice as many, which one has before
/// it is split, and some for chance, fit 4,096 buckets.
const PART_PAIRS: usize = 1650;

/// The pairs of one inbox, in places that can be walked one by one.
pub(crate) struct Pairs {
    kept: Kept,
    /// Counts the changes that may have moved pairs to other places of their part.
    moves: u16,
}

enum Kept {
    Few(SmallVec<[Pair; 1]>),
    /// In a box, so that an inbox of few pairs does not pay for it.
    Many(Box<Parts>),
}

/// A table for each part of the hashes.
struct Parts {
    tables: SmallVec<[HashTable<Pair>; 1]>,
    len: usize,
}

impl Default for Pairs {
    fn default() -> Pairs {
        Pairs { kept: Kept::Few(SmallVec::new()), moves: 0 }
    }
}

impl Pairs {
    pub(crate) fn len(&self) -> usize {
        match &self.kept {
            Kept::Few(list) => list.len(),
            Kept::Many(parts) => parts.len,
        }
    }

    pub(crate) fn find(&self, key: PairKey) -> Option<&Pair> {
        match &self.kept {
            Kept::Few(list) => list.iter().find(|pair| pair.key == key),
            Kept::Many(parts) => {
                parts.tables[parts.of(key)].find(key.hash(), |pair| pair.key == key)
            }
        }
    }

    #[inline]
    pub(crate) fn find_mut(&mut self, key: PairKey) -> Option<&mut Pair> {
        match &mut self.kept {
            Kept::Few(list) => list.iter_mut().find(|pair| pair.key == key),
            Kept::Many(parts) => {
                let part = parts.of(key);
                parts.tables[part].find_mut(key.hash(), |pair| pair.key == key)
            }
        }
    }

    /// Takes a pair in the place of the one with its key; whether there was none.
    pub(crate) fn put(&mut self, pair: Pair) -> bool {
        match self.find_mut(pair.key) {
            Some(known) => *known = pair,
            None => {
                self.add(pair);
                return true;
            }
        }
        false
    }

    fn add(&mut self, pair: Pair) {
        let moves = match &mut self.kept {
            Kept::Few(list) if list.len() < FEW_MAX => {
                if list.len() == list.capacity() {
                    list.reserve_exact(list.len().max(1));
                }
                list.push(pair);
                false
            }
            Kept::Few(list) => {
                let mut parts = Parts::new();
                for pair in list.drain(..).chain([pair]) {
                    parts.add(pair);
                }
                self.kept = Kept::Many(Box::new(parts));
                true
            }
            Kept::Many(parts) => parts.add(pair),
        };
        self.moves = self.moves.wrapping_add(moves.into());
    }

    /// Parts there are.
    pub(crate) fn parts(&self) -> usize {
        match &self.kept {
            Kept::Few(_) => 1,
            Kept::Many(parts) => parts.tables.len(),
        }
    }

    /// Places there are in a part, taken or not.
    pub(crate) fn places(&self, part: usize) -> usize {
        match &self.kept {
            Kept::Few(list) => list.len(),
            Kept::Many(parts) => parts.tables[part].num_buckets(),
        }
    }

    /// The pair in this place of a part.
    pub(crate) fn at(&self, part: usize, place: usize) -> Option<&Pair> {
        match &self.kept {
            Kept::Few(list) => list.get(place),
            Kept::Many(parts) => parts.tables[part].get_bucket(place),
        }
    }

    /// Forgets the pair in this place of a part; whether another one has come there.
    pub(crate) fn forget(&mut self, part: usize, place: usize) -> bool {
        match &mut self.kept {
            Kept::Few(list) => {
                list.swap_remove(place);
                place < list.len()
            }
            Kept::Many(parts) => {
                if let Ok(pair) = parts.tables[part].get_bucket_entry(place) {
                    pair.remove();
                    parts.len -= 1;
                }
                false
            }
        }
    }

    /// Moves when pairs may have moved to other places of their part.
    pub(crate) fn moves(&self) -> u16 {
        self.moves
    }

    /// Gives back memory that forgotten pairs leave behind, one part of it at a
    /// time, from this one on; how much work that was, in pairs moved, and where to
    /// go on.
    pub(crate) fn shrink(&mut self, part: usize) -> (usize, Option<usize>) {
        let (work, next) = match &mut self.kept {
            Kept::Few(list) => {
                if list.len() < list.capacity() / 2 {
                    list.shrink_to_fit();
                }
                (0, None)
            }
            Kept::Many(parts) if parts.len <= FEW_MAX / 2 && parts.tables.len() == 1 => {
                self.kept = Kept::Few(parts.tables[0].drain().collect());
                (FEW_MAX / 2, None)
            }
            Kept::Many(parts) => parts.shrink(part),
        };
        self.moves = self.moves.wrapping_add(u16::from(work > 0));
        (work, next)
    }

    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Pair> {
        let places = |part| (0..self.places(part)).map(move |place| (part, place));
        let places = (0..self.parts()).flat_map(places);
        places.filter_map(|(part, place)| self.at(part, place))
    }

    /// The place that is looked at first, whoever is looked for.
    #[inline]
    pub(crate) fn foresee(&self, fetch: &impl Fn(*const u8)) {
        if let Kept::Few(list) = &self.kept {
            fetch(list.as_ptr().cast());
        }
    }
}

impl Parts {
    fn new() -> Parts {
        // Sixteen buckets; room for twice as many pairs would take 32.
        let table = HashTable::with_capacity(FEW_MAX + 1);
        Parts { tables: SmallVec::from_buf([table]), len: 0 }
    }

    /// The part of this pair.
    #[inline]
    fn of(&self, key: PairKey) -> usize {
        part_of(key, self.tables.len())
    }

    /// Whether others of its part may have moved.
    fn add(&mut self, pair: Pair) -> bool {
        if self.len >= self.tables.len() * PART_PAIRS {
            self.split();
        }
        let part = self.of(pair.key);
        let table = &mut self.tables[part];
        let moves = table.len() == table.capacity();
        table.insert_unique(pair.key.hash(), pair, |pair| pair.key.hash());
        self.len += 1;
        moves
    }

    /// One more part, which gets half of another one. The other half stays where it
    /// is.
    fn split(&mut self) {
        let parts = self.tables.len() + 1;
        let from = partner(parts - 1);
        let is_new = |pair: &mut Pair| part_of(pair.key, parts) == parts - 1;
        let mut table = HashTable::with_capacity(self.tables[from].len() / 2);
        for pair in self.tables[from].extract_if(is_new) {
            table.insert_unique(pair.key.hash(), pair, |pair| pair.key.hash());
        }
        self.tables.push(table);
    }

    /// As [`Pairs::shrink`].
    fn shrink(&mut self, part: usize) -> (usize, Option<usize>) {
        let last = self.tables.len() - 1;
        if last > 0 && self.len < self.tables.len() * PART_PAIRS / 4 {
            let table = self.tables.pop().expect("there are several");
            let work = work(&table);
            let partner = &mut self.tables[partner(last)];
            for pair in table {
                partner.insert_unique(pair.key.hash(), pair, |pair| pair.key.hash());
            }
            return (work, Some(part));
        }
        let Some(table) = self.tables.get_mut(part) else {
            self.tables.shrink_to_fit();
            return (0, None);
        };
        if table.len() >= table.capacity() / 4 {
            return (0, Some(part + 1));
        }
        let work = work(table);
        table.shrink_to_fit(|pair| pair.key.hash());
        (work, Some(part + 1))
    }
}

/// What it takes to move all that is in a table elsewhere, and to free it.
fn work(table: &HashTable<Pair>) -> usize {
    table.len() + table.num_buckets() / 16
}

/// The part of a pair where there are so many: the lowest of these bits that tell
/// all parts apart, one less where that part is not there yet. A table looks at
/// others.
#[inline]
fn part_of(key: PairKey, parts: usize) -> usize {
    let bits = (key.hash() >> 32) as usize;
    let part = bits & (parts.next_power_of_two() - 1);
    if part < parts { part } else { partner(part) }
}

/// The part that this one was split from.
fn partner(part: usize) -> usize {
    part & !(1 << part.ilog2())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;
    use wire::id::UserKey;

    use super::*;

    fn key(device: u64) -> PairKey {
        PairKey::new(UserKey(5), device)
    }

    fn forget(pairs: &mut Pairs, is_it: impl Fn(&Pair) -> bool) {
        for part in 0..pairs.parts() {
            let mut place = 0;
            while place < pairs.places(part) {
                let is_it = pairs.at(part, place).is_some_and(&is_it);
                if !(is_it && pairs.forget(part, place)) {
                    place += 1;
                }
            }
        }
    }

    fn shrink(pairs: &mut Pairs) {
        let mut from = Some(0);
        while let Some(part) = from {
            let work;
            (work, from) = pairs.shrink(part);
            assert!(work <= 3 * PART_PAIRS, "{work} at once");
        }
    }

    fn pair(device: u64) -> Pair {
        Pair::new(PairKey::new(UserKey(u128::from(device) << 40), device))
    }

    /// Of many pairs few move at a time, and their memory comes back.
    #[test]
    fn no_part_is_large() {
        const MANY: u64 = 100_000;
        let mut pairs = Pairs::default();
        assert!((0..MANY).all(|device| pairs.put(pair(device))));
        assert!(!pairs.put(pair(MANY / 2)), "it is known");
        let largest = |pairs: &Pairs| (0..pairs.parts()).map(|part| pairs.places(part)).max();
        assert_eq!(largest(&pairs), Some(4096));
        for left in [MANY / 3, MANY / 50, 100, 3, 0] {
            let keys: Vec<PairKey> = (0..left).map(|device| pair(device).key).collect();
            let kept: BTreeSet<_> = keys.iter().map(|key| Pair::new(*key).to_bytes()).collect();
            forget(&mut pairs, |pair| !kept.contains(&pair.to_bytes()));
            shrink(&mut pairs);
            assert_eq!((pairs.len(), pairs.iter().count()), (keys.len(), keys.len()));
            assert!(keys.iter().all(|key| pairs.find(*key).is_some()));
            let places: usize = (0..pairs.parts()).map(|part| pairs.places(part)).sum();
            assert!(places <= 16 + 8 * keys.len(), "{places} places for {}", keys.len());
        }
        assert!(matches!(pairs.kept, Kept::Few(_)));
    }

    proptest! {
        /// Whatever comes and goes, it holds what a plain map holds, and a walk
        /// over its places meets everything once.
        #[test]
        fn it_is_a_map(steps in prop::collection::vec((0u64..40, 0u32..4), 0..200)) {
            let (mut pairs, mut map) = (Pairs::default(), BTreeMap::new());
            for (device, what) in steps {
                if what == 0 {
                    forget(&mut pairs, |pair| pair.key == key(device));
                    map.remove(&device);
                    shrink(&mut pairs);
                } else {
                    let mut pair = Pair::new(key(device));
                    pair.touched_h = what;
                    prop_assert_eq!(pairs.put(pair), map.insert(device, what).is_none());
                }
                prop_assert_eq!(pairs.len(), map.len());
                prop_assert_eq!(pairs.iter().count(), map.len());
                for device in 0..40 {
                    let found = pairs.find(key(device)).map(|pair| pair.touched_h);
                    prop_assert_eq!(found, map.get(&device).copied());
                }
            }
        }
    }
}
