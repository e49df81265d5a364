//! One user's inbox: what waits, where it lies in the log, who sent what.
//!
//! Bodies are in the log. The inbox keeps 16 bytes for each waiting message
//! and one number for each device that ever sent to it. Sequence numbers are
//! contiguous: entry `i` has seq `first + i`.

use std::collections::VecDeque;

use hashbrown::HashTable;
use wal::Lsn;
use wire::id::{MessageId, UserKey};

use crate::dedup::{Pair, PairKey};

/// Place of one waiting message in the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) lsn: Lsn,
    pub(crate) len: u32,
    /// Protocol v1 acknowledges single messages, not a cursor.
    pub(crate) acked_by_v1: bool,
}

const _: () = assert!(size_of::<Entry>() == 16, "a waiting message costs 16 bytes");

impl Entry {
    /// A number that was given out and never will be again.
    const HOLE: Entry = Entry { lsn: 0, len: 0, acked_by_v1: true };

    pub(crate) fn is_hole(&self) -> bool {
        self.len == 0
    }
}

/// A *delivered* that its sender asked for, due when a device acknowledges.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Receipt {
    pub(crate) inbox_seq: u64,
    pub(crate) from_key: UserKey,
    pub(crate) device: u64,
    pub(crate) send_seq: u64,
    pub(crate) id: MessageId,
}

/// Entries of one inbox that may be shown before they are durable, and the
/// numbers that a crash may take back.
pub(crate) const EARLY_MAX: u64 = 64;

/// Receipts an inbox remembers; further ones are dropped.
const RECEIPTS_MAX: usize = 4096;

/// The inbox of one user.
pub(crate) struct Inbox {
    /// Seq of the first entry, or of the next one when there is none.
    first: u64,
    entries: VecDeque<Entry>,
    /// Log bytes of all entries.
    bytes: u64,
    /// Highest seq that may be handed out: everything up to it is as durable
    /// as its class asks for.
    visible: u64,
    /// Answers about this inbox that wait for an fsync.
    pending: u32,
    /// The numbering has moved on past what a crash may have taken.
    has_leapt: bool,
    /// Everything up to this seq is durable, and so is the leap; 0 for not known.
    safe: u64,
    /// What `safe` becomes, and how far the log must be durable for it.
    mark: (u64, Lsn),
    pairs: HashTable<Pair>,
    receipts: VecDeque<Receipt>,
}

impl Default for Inbox {
    fn default() -> Inbox {
        Inbox {
            first: 1,
            entries: VecDeque::new(),
            bytes: 0,
            visible: 0,
            pending: 0,
            has_leapt: false,
            safe: 0,
            mark: (0, 0),
            pairs: HashTable::new(),
            receipts: VecDeque::new(),
        }
    }
}

impl Inbox {
    pub(crate) fn first_seq(&self) -> u64 {
        self.first
    }

    /// Highest seq given out; 0 for none.
    pub(crate) fn last_seq(&self) -> u64 {
        self.first + self.entries.len() as u64 - 1
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn visible(&self) -> u64 {
        self.visible
    }

    pub(crate) fn entry(&self, seq: u64) -> Option<&Entry> {
        let at = usize::try_from(seq.checked_sub(self.first)?).ok()?;
        self.entries.get(at)
    }

    /// Appends a message and returns its seq.
    pub(crate) fn push(&mut self, lsn: Lsn, len: u32) -> u64 {
        self.entries.push_back(Entry { lsn, len, acked_by_v1: false });
        self.bytes += u64::from(len);
        self.last_seq()
    }

    /// Everything up to `seq` may be handed out.
    pub(crate) fn make_visible(&mut self, seq: u64) {
        assert!(seq <= self.last_seq(), "only what is there becomes visible");
        self.visible = self.visible.max(seq);
    }

    /// One more answer about this inbox waits for an fsync.
    pub(crate) fn start_waiting(&mut self) {
        self.pending += 1;
    }

    /// The oldest of the waiting answers may go out.
    pub(crate) fn end_waiting(&mut self) {
        self.pending -= 1;
    }

    /// Whether an answer now would overtake one that waits. Answers are
    /// cumulative, so it would tell that what waits is stored.
    pub(crate) fn has_waiting(&self) -> bool {
        self.pending > 0
    }

    /// Gives an entry up, its number stays taken. Returns its log bytes.
    pub(crate) fn make_hole(&mut self, seq: u64) -> u64 {
        let at = seq.checked_sub(self.first).expect("only what waits is given up");
        let entry = &mut self.entries[at as usize];
        let bytes = u64::from(entry.len);
        *entry = Entry::HOLE;
        self.bytes -= bytes;
        // Handed out and not acknowledged yet; a later acknowledgement would
        // call it delivered.
        if let Ok(at) = self.receipts.binary_search_by_key(&seq, |receipt| receipt.inbox_seq) {
            self.receipts.remove(at);
        }
        bytes
    }

    /// A waiting message has moved to `lsn`, if it still waits.
    pub(crate) fn repoint(&mut self, seq: u64, lsn: Lsn) {
        let Some(at) = seq.checked_sub(self.first) else { return };
        if let Some(entry) = self.entries.get_mut(at as usize).filter(|entry| !entry.is_hole()) {
            entry.lsn = lsn;
        }
    }

    /// Continues the numbering after `seq`. What waits stays; the numbers in
    /// between become holes that nobody gets.
    pub(crate) fn raise_floor(&mut self, seq: u64) {
        let is_all_visible = self.visible == self.last_seq();
        if self.entries.is_empty() {
            self.first = self.first.max(seq + 1);
        }
        while self.last_seq() < seq {
            self.entries.push_back(Entry::HOLE);
        }
        if is_all_visible {
            self.visible = self.last_seq();
        }
    }

    /// The seq of the next message. The first one after a restart leaps over
    /// `leap` numbers: so many may have been shown to devices and lost with the
    /// crash, and whoever has seen a number takes another message under it for
    /// a repetition.
    pub(crate) fn next_seq(&mut self, leap: u64) -> u64 {
        if !self.has_leapt {
            self.has_leapt = true;
            self.raise_floor(self.last_seq() + leap);
        }
        self.last_seq() + 1
    }

    /// Whether the entry `seq`, whose record ends at `end`, may be shown before
    /// it is durable. At most [`EARLY_MAX`] ever are, and none before the first
    /// message of this life is durable: the leap must not be lost with them.
    pub(crate) fn may_be_early(&mut self, seq: u64, durable: Lsn, end: Lsn) -> bool {
        if durable >= self.mark.1 {
            self.safe = self.mark.0;
            self.mark = (seq, end);
        }
        self.safe > 0 && seq <= self.safe + EARLY_MAX
    }

    /// Marks one entry as acknowledged by the v1 device; `false` when it is
    /// not waiting or was marked before.
    pub(crate) fn mark_acked_by_v1(&mut self, seq: u64) -> bool {
        let Some(at) = seq.checked_sub(self.first) else { return false };
        match self.entries.get_mut(at as usize) {
            Some(entry) if !entry.acked_by_v1 => {
                entry.acked_by_v1 = true;
                true
            }
            _ => false,
        }
    }

    /// Removes everything up to and including `seq`; returns how many entries
    /// and log bytes left.
    pub(crate) fn burn(&mut self, seq: u64) -> (u64, u64) {
        let (mut entries, mut bytes) = (0, 0);
        while self.first <= seq {
            let Some(entry) = self.entries.pop_front() else { break };
            self.first += 1;
            entries += u64::from(!entry.is_hole());
            bytes += u64::from(entry.len);
        }
        self.bytes -= bytes;
        if self.entries.is_empty() && self.entries.capacity() > 64 {
            self.entries = VecDeque::new();
        }
        (entries, bytes)
    }

    pub(crate) fn knows(&self, key: PairKey) -> bool {
        self.pairs.find(key.hash(), |pair| pair.key == key).is_some()
    }

    pub(crate) fn pair(&self, key: PairKey) -> Pair {
        *self.pairs.find(key.hash(), |pair| pair.key == key).unwrap_or(&Pair::new(key))
    }

    /// Remembers what a sending device is at; whether it is new here.
    pub(crate) fn put_pair(&mut self, pair: Pair) -> bool {
        let hash = pair.key.hash();
        match self.pairs.find_mut(hash, |known| known.key == pair.key) {
            Some(known) => {
                *known = pair;
                false
            }
            None => {
                self.pairs.insert_unique(hash, pair, |pair| pair.key.hash());
                true
            }
        }
    }

    pub(crate) fn expect_receipt(&mut self, receipt: Receipt) {
        let known = self.receipts.back().is_some_and(|last| last.inbox_seq >= receipt.inbox_seq);
        if !known && self.receipts.len() < RECEIPTS_MAX {
            self.receipts.push_back(receipt);
        }
    }

    /// The next receipt that an acknowledgement up to `seq` makes due.
    pub(crate) fn pop_receipt(&mut self, seq: u64) -> Option<Receipt> {
        if self.receipts.front()?.inbox_seq > seq {
            return None;
        }
        self.receipts.pop_front()
    }
}
