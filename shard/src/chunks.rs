//! A list that grows without copying what is in it.
//!
//! A vector doubles: with a million users that is a turn of tens of
//! milliseconds, and memory that the old half leaves behind. Here another piece
//! is added.

use std::ops::{Index, IndexMut};

/// Entries of a piece: as many as the allocator still takes from its own pages.
const PIECE: usize = 1024;

/// Entries with stable places.
pub(crate) struct Chunks<T> {
    /// All full but the last, which ends with vacant entries: so the place in a
    /// piece needs no check, and this is looked into a dozen times per message.
    pieces: Vec<Box<[T; PIECE]>>,
    len: usize,
}

impl<T> Default for Chunks<T> {
    fn default() -> Chunks<T> {
        Chunks { pieces: Vec::new(), len: 0 }
    }
}

impl<T: Default> Chunks<T> {
    pub(crate) fn push(&mut self, entry: T) {
        if self.len.is_multiple_of(PIECE) {
            let piece: Box<[T]> = (0..PIECE).map(|_| T::default()).collect();
            let piece = piece.try_into().ok().expect("as many as a piece has");
            self.pieces.push(piece);
        }
        self.pieces[self.len / PIECE][self.len % PIECE] = entry;
        self.len += 1;
    }
}

impl<T> Chunks<T> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(crate) fn get(&self, at: usize) -> Option<&T> {
        (at < self.len).then(|| &self[at])
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, at: usize) -> Option<&mut T> {
        (at < self.len).then(|| &mut self[at])
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.pieces.iter().flat_map(|piece| piece.iter()).take(self.len)
    }

    pub(crate) fn into_iter(self) -> impl Iterator<Item = T> {
        self.pieces.into_iter().flat_map(|piece| (piece as Box<[T]>).into_iter()).take(self.len)
    }
}

/// The entry at a place that was pushed.
impl<T> Index<usize> for Chunks<T> {
    type Output = T;
    #[inline]
    fn index(&self, at: usize) -> &T {
        debug_assert!(at < self.len, "a place that was pushed");
        &self.pieces[at / PIECE][at % PIECE]
    }
}

impl<T> IndexMut<usize> for Chunks<T> {
    #[inline]
    fn index_mut(&mut self, at: usize) -> &mut T {
        debug_assert!(at < self.len, "a place that was pushed");
        &mut self.pieces[at / PIECE][at % PIECE]
    }
}

#[cfg(test)]
mod tests {
    use super::{Chunks, PIECE};

    #[test]
    fn places_are_stable_and_nothing_is_copied() {
        let mut chunks = Chunks::default();
        chunks.push(0);
        let first = std::ptr::from_ref(&chunks[0]);
        for number in 1..3 * PIECE {
            chunks.push(number);
        }
        assert_eq!(std::ptr::from_ref(&chunks[0]), first);
        assert_eq!(chunks.len(), 3 * PIECE);
        assert_eq!(chunks.get(3 * PIECE), None);
        chunks[PIECE] = 7;
        *chunks.get_mut(2 * PIECE).unwrap() = 8;
        let sum: usize = chunks.iter().sum();
        let numbers: Vec<usize> = chunks.into_iter().collect();
        assert_eq!(sum, numbers.iter().sum());
        let wrong: Vec<_> =
            numbers.iter().enumerate().filter(|(at, number)| at != *number).collect();
        assert_eq!(wrong, [(PIECE, &7), (2 * PIECE, &8)]);
    }
}
