//! What one inbox remembers of the devices that write to it.
//!
//! Most inboxes hear from a few devices only: those stand in a short list that
//! is searched from its front, the only one in the inbox itself, one line of
//! memory for two of them and nothing for those that are not there. Whoever
//! hears from more has a hash table.

use hashbrown::HashTable;
use smallvec::SmallVec;

use crate::dedup::{Pair, PairKey};

/// More than these are kept in a table.
const FEW_MAX: usize = 8;

/// The pairs of one inbox, in places that can be walked one by one.
pub(crate) struct Pairs {
    kept: Kept,
    /// Counts the insertions that may have moved pairs to other places.
    moves: u16,
}

enum Kept {
    Few(SmallVec<[Pair; 1]>),
    /// In a box, so that an inbox of few pairs does not pay for it.
    Many(Box<HashTable<Pair>>),
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
            Kept::Many(table) => table.len(),
        }
    }

    pub(crate) fn find(&self, key: PairKey) -> Option<&Pair> {
        match &self.kept {
            Kept::Few(list) => list.iter().find(|pair| pair.key == key),
            Kept::Many(table) => table.find(key.hash(), |pair| pair.key == key),
        }
    }

    #[inline]
    pub(crate) fn find_mut(&mut self, key: PairKey) -> Option<&mut Pair> {
        match &mut self.kept {
            Kept::Few(list) => list.iter_mut().find(|pair| pair.key == key),
            Kept::Many(table) => table.find_mut(key.hash(), |pair| pair.key == key),
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
        match &mut self.kept {
            Kept::Few(list) if list.len() < FEW_MAX => {
                if list.len() == list.capacity() {
                    list.reserve_exact(list.len().max(1));
                }
                list.push(pair);
            }
            Kept::Few(list) => {
                // Sixteen places; room for twice as many would take 32.
                let mut table = HashTable::with_capacity(FEW_MAX + 1);
                for pair in list.drain(..).chain([pair]) {
                    table.insert_unique(pair.key.hash(), pair, |pair| pair.key.hash());
                }
                self.kept = Kept::Many(Box::new(table));
                self.moves = self.moves.wrapping_add(1);
            }
            Kept::Many(table) => {
                if table.len() == table.capacity() {
                    self.moves = self.moves.wrapping_add(1);
                }
                table.insert_unique(pair.key.hash(), pair, |pair| pair.key.hash());
            }
        }
    }

    /// Places there are, taken or not.
    pub(crate) fn places(&self) -> usize {
        match &self.kept {
            Kept::Few(list) => list.len(),
            Kept::Many(table) => table.num_buckets(),
        }
    }

    /// The pair in this place.
    pub(crate) fn at(&self, place: usize) -> Option<&Pair> {
        match &self.kept {
            Kept::Few(list) => list.get(place),
            Kept::Many(table) => table.get_bucket(place),
        }
    }

    /// Forgets the pair in this place; whether another one has come there.
    pub(crate) fn forget(&mut self, place: usize) -> bool {
        match &mut self.kept {
            Kept::Few(list) => {
                list.swap_remove(place);
                place < list.len()
            }
            Kept::Many(table) => {
                if let Ok(pair) = table.get_bucket_entry(place) {
                    pair.remove();
                }
                false
            }
        }
    }

    /// Moves when pairs may have moved to other places.
    pub(crate) fn moves(&self) -> u16 {
        self.moves
    }

    /// Gives back memory that forgotten pairs leave behind.
    pub(crate) fn shrink(&mut self) {
        match &mut self.kept {
            Kept::Few(list) if list.len() < list.capacity() / 2 => list.shrink_to_fit(),
            Kept::Many(table) if table.len() <= FEW_MAX / 2 => {
                self.kept = Kept::Few(table.drain().collect());
                self.moves = self.moves.wrapping_add(1);
            }
            Kept::Many(table) if table.len() < table.capacity() / 4 => {
                table.shrink_to_fit(|pair| pair.key.hash());
                self.moves = self.moves.wrapping_add(1);
            }
            _ => {}
        }
    }

    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Pair> {
        (0..self.places()).filter_map(|place| self.at(place))
    }

    /// The place that is looked at first, whoever is looked for.
    #[inline]
    pub(crate) fn foresee(&self, fetch: &impl Fn(*const u8)) {
        if let Kept::Few(list) = &self.kept {
            fetch(list.as_ptr().cast());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use wire::id::UserKey;

    use super::*;

    fn key(device: u64) -> PairKey {
        PairKey::new(UserKey(5), device)
    }

    proptest! {
        /// Whatever comes and goes, it holds what a plain map holds, and a walk
        /// over its places meets everything once.
        #[test]
        fn it_is_a_map(steps in prop::collection::vec((0u64..40, 0u32..4), 0..200)) {
            let (mut pairs, mut map) = (Pairs::default(), BTreeMap::new());
            for (device, what) in steps {
                if what == 0 {
                    let mut place = 0;
                    while place < pairs.places() {
                        let is_it = pairs.at(place).is_some_and(|pair| pair.key == key(device));
                        if !(is_it && pairs.forget(place)) {
                            place += 1;
                        }
                    }
                    map.remove(&device);
                    pairs.shrink();
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
