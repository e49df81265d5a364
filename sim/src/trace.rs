//! What happened, as a hash of everything and the last lines of it.
//!
//! Two runs of one seed must have the same hash; on a violation the last lines
//! are what a person reads first.

use std::collections::VecDeque;
use std::fmt;

/// Lines kept.
const RECENT_MAX: usize = 120;

/// One thing that happened.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    at_ns: u64,
    what: &'static str,
    args: [u64; 4],
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Line { at_ns, what, args: [a, b, c, d] } = self;
        write!(f, "{:>12.3} ms  {what:<44} {a} {b} {c} {d}", *at_ns as f64 / 1e6)
    }
}

/// The history of one world.
pub struct Trace {
    hash: u64,
    recent: VecDeque<Line>,
    prints: bool,
}

impl Trace {
    /// An empty history; `prints` writes every line to standard output.
    pub(crate) fn new(prints: bool) -> Trace {
        Trace { hash: 0xcbf2_9ce4_8422_2325, recent: VecDeque::with_capacity(RECENT_MAX), prints }
    }

    /// Takes note. `what` names the four numbers.
    pub(crate) fn note(&mut self, at_ns: u64, what: &'static str, args: [u64; 4]) {
        let line = Line { at_ns, what, args };
        self.fold(at_ns);
        self.fold(what.len() as u64 ^ u64::from(what.as_bytes()[0]) << 8);
        for arg in args {
            self.fold(arg);
        }
        if self.prints {
            println!("{line}");
        }
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(line);
    }

    /// Bytes that left the server belong to the hash too.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.fold(digest(bytes));
    }

    /// The hash of everything so far.
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// The last lines.
    pub fn recent(&self) -> impl Iterator<Item = &Line> {
        self.recent.iter()
    }

    fn fold(&mut self, word: u64) {
        self.hash = mix(self.hash, word);
    }
}

fn mix(hash: u64, word: u64) -> u64 {
    let folded = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    folded ^ (folded >> 29)
}

/// A hash of bytes, eight at a time. Not for the wire or the disk.
pub(crate) fn digest(bytes: &[u8]) -> u64 {
    let mut hash = bytes.len() as u64;
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        hash = mix(hash, u64::from_le_bytes(chunk.try_into().expect("eight bytes")));
    }
    for byte in chunks.remainder() {
        hash = mix(hash, u64::from(*byte));
    }
    hash
}
