//! Every letter that clients ever wrote, and what became of it: the memory of
//! the oracle, which no crash touches.
//!
//! A *letter* is one message as its sender means it; however often it is
//! repeated on the wire it stays one. Its body begins with its number.

use wire::id::{Class, MessageId};

/// A letter's number.
pub(crate) type LetterId = u32;

/// How a letter is numbered on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Protocol v2.
    Numbered,
    /// Protocol v1 without a number: written once, at most once stored.
    Plain,
    /// Protocol v1 with a number.
    Ascending,
}

/// One letter.
#[derive(Clone, Debug)]
pub(crate) struct Letter {
    /// The sender and its device.
    pub(crate) from: u16,
    /// Its device, 0 for protocol v1.
    pub(crate) device: u64,
    /// The recipient.
    pub(crate) to: u16,
    /// Its number, 0 for none.
    pub(crate) seq: u64,
    /// How it is numbered.
    pub(crate) kind: Kind,
    /// The promise asked for.
    pub(crate) class: Class,
    /// Seconds after which it may be dropped, 0 for never.
    pub(crate) expiry_s: u32,
    /// Length of its body.
    pub(crate) bytes: usize,
    /// Its sender was told that it is stored.
    pub(crate) told: bool,
    /// Its sender was told that it is refused for good.
    pub(crate) refused: bool,
    /// Damage took it.
    pub(crate) excused: bool,
    /// It was written when no fault could stop it any more.
    pub(crate) must_arrive: bool,
    /// The id it was delivered with.
    pub(crate) id: Option<MessageId>,
}

/// Longest body that is not refused.
const BODY_BYTES_MAX: usize = wire::limits::BODY_BYTES_MAX;

impl Letter {
    /// Whether the server refuses it for good.
    pub(crate) fn is_too_large(&self) -> bool {
        self.bytes > BODY_BYTES_MAX
    }

    /// Whether losing it would break a promise.
    pub(crate) fn is_guaranteed(&self) -> bool {
        self.class == Class::Guaranteed
    }
}

/// All letters.
#[derive(Default)]
pub(crate) struct Ledger {
    letters: Vec<Letter>,
}

impl Ledger {
    /// Takes a new letter.
    pub(crate) fn write(&mut self, letter: Letter) -> LetterId {
        assert!(letter.bytes >= 8, "a body holds its letter's number");
        self.letters.push(letter);
        (self.letters.len() - 1) as LetterId
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.letters.len()
    }

    /// A letter.
    pub(crate) fn get(&self, id: LetterId) -> &Letter {
        &self.letters[id as usize]
    }

    /// A letter, to note what became of it.
    pub(crate) fn get_mut(&mut self, id: LetterId) -> &mut Letter {
        &mut self.letters[id as usize]
    }

    /// Every letter.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (LetterId, &Letter)> {
        self.letters.iter().enumerate().map(|(id, letter)| (id as LetterId, letter))
    }

    /// Every letter, to note what became of it.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (LetterId, &mut Letter)> {
        self.letters.iter_mut().enumerate().map(|(id, letter)| (id as LetterId, letter))
    }

    /// The body of a letter.
    pub(crate) fn body(&self, id: LetterId) -> Vec<u8> {
        let mut body = vec![id as u8; self.get(id).bytes];
        body[..8].copy_from_slice(&u64::from(id).to_be_bytes());
        body
    }

    /// Which letter this body is, if it is one byte for byte.
    pub(crate) fn find(&self, body: &[u8]) -> Option<LetterId> {
        let number = u64::from_be_bytes(*body.first_chunk::<8>()?);
        let id = LetterId::try_from(number).ok()?;
        let letter = self.letters.get(id as usize)?;
        let is_whole = letter.bytes == body.len() && body[8..].iter().all(|b| *b == id as u8);
        is_whole.then_some(id)
    }
}
