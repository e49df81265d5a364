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
    /// All full but the last.
    pieces: Vec<Vec<T>>,
    len: usize,
}

impl<T> Default for Chunks<T> {
    fn default() -> Chunks<T> {
        Chunks { pieces: Vec::new(), len: 0 }
    }
}

impl<T> Chunks<T> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn push(&mut self, entry: T) {
        if self.len.is_multiple_of(PIECE) {
            self.pieces.push(Vec::with_capacity(PIECE));
        }
        self.pieces[self.len / PIECE].push(entry);
        self.len += 1;
    }

    #[inline]
    pub(crate) fn get(&self, at: usize) -> Option<&T> {
        self.pieces.get(at / PIECE)?.get(at % PIECE)
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, at: usize) -> Option<&mut T> {
        self.pieces.get_mut(at / PIECE)?.get_mut(at % PIECE)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.pieces.iter().flatten()
    }

    pub(crate) fn into_iter(self) -> impl Iterator<Item = T> {
        self.pieces.into_iter().flatten()
    }
}

impl<T> Index<usize> for Chunks<T> {
    type Output = T;
    #[inline]
    fn index(&self, at: usize) -> &T {
        &self.pieces[at / PIECE][at % PIECE]
    }
}

impl<T> IndexMut<usize> for Chunks<T> {
    #[inline]
    fn index_mut(&mut self, at: usize) -> &mut T {
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
