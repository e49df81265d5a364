//! One user's inbox: what waits, where it lies in the log, who sent what.
//!
//! Bodies are in the log. The inbox keeps 16 bytes for each waiting message
//! and one number for each device that ever sent to it. Sequence numbers are
//! contiguous: entry `i` has seq `first + i`. Nothing begins with a hole for
//! longer than until the next burn.

use std::collections::VecDeque;

use wal::Lsn;

use crate::dedup::{Pair, PairKey};
use crate::pairs::Pairs;
use crate::receipt::{Receipt, Receipts};
use crate::shelf::Shelf;

/// Place of one waiting message in the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) lsn: Lsn,
    pub(crate) len: u32,
    /// Protocol v1 acknowledges single messages, not a cursor.
    pub(crate) acked_by_v1: bool,
    /// By position: devices that have had it under another number.
    pub(crate) had_by: u8,
}

const _: () = assert!(size_of::<Entry>() == 16, "a waiting message costs 16 bytes");

impl Entry {
    /// A number that was given out and never will be again.
    const HOLE: Entry = Entry { lsn: 0, len: 0, acked_by_v1: true, had_by: 0 };

    pub(crate) fn new(lsn: Lsn, len: u32, acked_by_v1: bool) -> Entry {
        Entry { lsn, len, acked_by_v1, had_by: 0 }
    }

    /// One that some devices have had.
    pub(crate) fn had(lsn: Lsn, len: u32, had_by: u8) -> Entry {
        Entry { lsn, len, acked_by_v1: false, had_by }
    }

    pub(crate) fn is_had_by(&self, device: usize) -> bool {
        self.had_by & 1 << device != 0
    }

    /// The device at this position is forgotten.
    pub(crate) fn forget_device(&mut self, device: usize) {
        self.had_by = without_device(self.had_by, device);
    }

    pub(crate) fn is_hole(&self) -> bool {
        self.len == 0
    }
}

/// Devices by position, when the one at this position is forgotten.
pub(crate) fn without_device(devices: u8, device: usize) -> u8 {
    let below = (1 << device) - 1;
    devices & below | devices >> 1 & !below
}

/// Entries of one inbox that may be shown before they are durable, and the
/// numbers that a crash may take back.
pub(crate) const EARLY_MAX: u64 = 64;

/// Entries that an inbox grows by at least.
const GROWS_BY: usize = 4;
/// Entries from which on an inbox gives back what it has grown out of.
const LONG: usize = 1024;

/// Entries that an empty inbox keeps room for, and until the next tick. What
/// growing makes of 64, see [`Inbox::put`].
const KEPT_IDLE: usize = 72;
const KEPT_BUSY: usize = 1024;

/// Numbers in a row that a snapshot may leave out.
pub(crate) const HOLES_MAX: u64 = 1 << 28;

/// How far beyond the last seq a login may raise the numbering of an inbox
/// without entries: what a crash can have cost of best-effort messages.
pub(crate) const RAISE_EMPTY_MAX: u64 = 1 << 17;

/// Holes that logins may make among entries, all together: a crash costs no
/// more than what was shown early in a few lives of the server.
const RAISED_MAX: u32 = 4 * EARLY_MAX as u32;

/// The inbox of one user.
pub(crate) struct Inbox {
    /// Seq of the first entry, or of the next one when there is none.
    first: u64,
    entries: VecDeque<Entry>,
    /// How many of the entries are holes.
    holes: u32,
    /// Holes that logins have made since the inbox was last without entries;
    /// a restart counts anew.
    raised: u32,
    /// It is empty and gives memory back at the next tick.
    is_listed: bool,
    /// Log bytes of all entries and of what is on the shelf.
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
    pairs: Pairs,
    /// Those that acknowledgements will make due; most inboxes never see one.
    receipts: Option<Box<Receipts>>,
    /// What could not be read; nearly always nothing.
    shelf: Option<Box<Shelf>>,
}

const _: () = assert!(size_of::<Inbox>() <= 168, "a million inboxes must stay small");

impl Default for Inbox {
    fn default() -> Inbox {
        Inbox {
            first: 1,
            entries: VecDeque::new(),
            holes: 0,
            raised: 0,
            is_listed: false,
            bytes: 0,
            visible: 0,
            pending: 0,
            has_leapt: false,
            safe: 0,
            mark: (0, 0),
            pairs: Pairs::default(),
            receipts: None,
            shelf: None,
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

    /// Entries without a message.
    pub(crate) fn holes(&self) -> usize {
        self.holes as usize
    }

    /// Messages that wait, also those on the shelf.
    pub(crate) fn waiting(&self) -> usize {
        self.entries.len() - self.holes() + self.shelf().map_or(0, Shelf::len)
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
        self.push_entry(Entry::new(lsn, len, false))
    }

    /// The same for a message that some devices may have had.
    pub(crate) fn push_entry(&mut self, entry: Entry) -> u64 {
        self.put(entry);
        self.last_seq()
    }

    /// Appends an entry. The deque grows by a quarter: doubling would have a
    /// waiting message cost up to 32 bytes instead of 20.
    fn put(&mut self, entry: Entry) {
        let len = self.entries.len();
        if len == self.entries.capacity() {
            self.entries.reserve_exact(GROWS_BY.max(len / 4));
        }
        self.holes += u32::from(entry.is_hole());
        self.entries.push_back(entry);
        self.bytes += u64::from(entry.len);
    }

    /// Appends entries that a snapshot says stood from `seq` on; what is
    /// missing before them was burned or given up. `false` when they cannot
    /// stand there.
    pub(crate) fn load(&mut self, seq: u64, entries: impl ExactSizeIterator<Item = Entry>) -> bool {
        if seq <= self.last_seq() || seq - self.last_seq() > HOLES_MAX {
            return false;
        }
        self.raise_floor(seq - 1);
        let len = self.entries.len();
        if len + entries.len() > self.entries.capacity() {
            // Not by one slice only: each time all of it is copied.
            self.entries.reserve_exact(entries.len().max(len / 4));
        }
        entries.for_each(|entry| self.put(entry));
        true
    }

    /// Puts a message back whose number leads to nothing, or stands before all
    /// that wait; `false` when one waits under it already.
    pub(crate) fn put_back(&mut self, seq: u64, entry: Entry) -> bool {
        if seq < self.first {
            if seq == 0 || self.first - seq > HOLES_MAX {
                return false;
            }
            while self.first > seq {
                self.entries.push_front(Entry::HOLE);
                self.holes += 1;
                self.first -= 1;
            }
        }
        let at = (seq - self.first) as usize;
        match self.entries.get_mut(at).filter(|known| known.is_hole()) {
            Some(hole) => {
                *hole = entry;
                self.holes -= 1;
                self.bytes += u64::from(entry.len);
                true
            }
            None => false,
        }
    }

    /// The numbering begins at `first`, in an empty inbox.
    pub(crate) fn begin_at(&mut self, first: u64) {
        assert!(self.entries.is_empty(), "only an empty inbox begins");
        (self.first, self.visible) = (first, first - 1);
    }

    /// Every entry with its seq.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (u64, &Entry)> {
        (self.first..).zip(&self.entries)
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

    /// Gives an entry up, its number stays taken. Returns what stood there,
    /// when it waited.
    pub(crate) fn make_hole(&mut self, seq: u64) -> Option<Entry> {
        let at = seq.checked_sub(self.first)?;
        let entry = self.entries.get_mut(usize::try_from(at).ok()?)?;
        if entry.is_hole() {
            return None;
        }
        let given_up = std::mem::replace(entry, Entry::HOLE);
        self.bytes -= u64::from(given_up.len);
        self.holes += 1;
        // Handed out and not acknowledged yet; a later acknowledgement would
        // call it delivered.
        if let Some(receipts) = &mut self.receipts {
            receipts.forget(seq);
        }
        Some(given_up)
    }

    /// An entry that cannot be read goes to the shelf. Its number leads to
    /// nothing then; it may do so already. `false` when nothing stood there.
    pub(crate) fn set_aside(&mut self, seq: u64, entry: Entry) -> bool {
        let stood = self.make_hole(seq).is_some();
        let is_new = self.shelf.get_or_insert_default().put(seq, entry);
        if is_new {
            self.bytes += u64::from(entry.len);
        }
        stood || !is_new
    }

    /// What could not be read.
    pub(crate) fn shelf(&self) -> Option<&Shelf> {
        self.shelf.as_deref()
    }

    pub(crate) fn shelf_mut(&mut self) -> Option<&mut Shelf> {
        self.shelf.as_deref_mut()
    }

    /// Takes a message from the shelf, for whatever becomes of it.
    pub(crate) fn take_back(&mut self, seq: u64) -> Option<Entry> {
        let shelf = self.shelf.as_deref_mut()?;
        let entry = shelf.take(seq)?;
        if shelf.len() == 0 {
            self.shelf = None;
        }
        self.bytes -= u64::from(entry.len);
        Some(entry)
    }

    /// Some devices have had the message with this number.
    pub(crate) fn mark_had(&mut self, seq: u64, had_by: u8) {
        let Some(at) = seq.checked_sub(self.first) else { return };
        if let Some(entry) = self.entries.get_mut(at as usize).filter(|entry| !entry.is_hole()) {
            entry.had_by |= had_by;
        }
    }

    /// The device at this position is forgotten.
    pub(crate) fn forget_device(&mut self, device: usize) {
        self.entries.iter_mut().for_each(|entry| entry.forget_device(device));
        if let Some(shelf) = self.shelf_mut() {
            shelf.forget_device(device);
        }
    }

    /// Where the message with this number stands, if it waits.
    fn place_mut(&mut self, seq: u64) -> Option<&mut Entry> {
        let at = seq.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        match at.and_then(|at| self.entries.get_mut(at)).filter(|entry| !entry.is_hole()) {
            Some(entry) => Some(entry),
            None => self.shelf.as_deref_mut()?.get_mut(seq),
        }
    }

    fn place(&self, seq: u64) -> Option<&Entry> {
        let waits = self.entry(seq).filter(|entry| !entry.is_hole());
        waits.or_else(|| self.shelf()?.get(seq))
    }

    /// Whether the message with this number waits, in line or on the shelf.
    pub(crate) fn waits(&self, seq: u64) -> bool {
        self.place(seq).is_some()
    }

    /// Whether it waits and stands there.
    pub(crate) fn stands_at(&self, seq: u64, lsn: Lsn) -> bool {
        self.place(seq).is_some_and(|entry| entry.lsn == lsn)
    }

    /// A waiting message has moved there, if it still waits.
    pub(crate) fn repoint(&mut self, seq: u64, lsn: Lsn) {
        if let Some(entry) = self.place_mut(seq) {
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
            self.put(Entry::HOLE);
        }
        if is_all_visible {
            self.visible = self.last_seq();
        }
    }

    /// How far a login may raise the numbering now. With nothing in the inbox
    /// that costs nothing; otherwise each number in between is a hole, and there
    /// is a bound for all logins together.
    pub(crate) fn raise_max(&self) -> u64 {
        if self.entries.is_empty() {
            return RAISE_EMPTY_MAX;
        }
        u64::from(RAISED_MAX - self.raised)
    }

    /// [`Inbox::raise_floor`] for a login, which has asked [`Inbox::raise_max`].
    pub(crate) fn raise_by_login(&mut self, seq: u64) {
        let by = seq.saturating_sub(self.last_seq());
        assert!(by <= self.raise_max(), "a login asks before it raises");
        if !self.entries.is_empty() {
            self.raised += by as u32;
        }
        self.raise_floor(seq);
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

    /// Removes everything up to and including `seq`, and the holes after it,
    /// which nobody waits for. `gone` hears of each message.
    pub(crate) fn burn(&mut self, seq: u64, mut gone: impl FnMut(&Entry)) {
        while let Some(entry) = self.entries.front()
            && (self.first <= seq || entry.is_hole())
        {
            if entry.is_hole() {
                self.holes -= 1;
            } else {
                self.bytes -= u64::from(entry.len);
                gone(entry);
            }
            self.entries.pop_front();
            self.first += 1;
        }
        if self.entries.is_empty() {
            self.raised = 0;
        }
    }

    /// [`Inbox::give_back`], but an empty inbox keeps a little for the next
    /// burst. Whether it is to be put on the list of those that give it back at
    /// the next tick.
    pub(crate) fn give_back_later(&mut self) -> bool {
        if self.entries.is_empty() && (KEPT_IDLE + 1..=KEPT_BUSY).contains(&self.entries.capacity())
        {
            return !std::mem::replace(&mut self.is_listed, true);
        }
        self.give_back();
        false
    }

    /// The tick has come.
    pub(crate) fn give_back_now(&mut self) {
        self.is_listed = false;
        self.give_back();
    }

    /// Gives back memory that a long queue leaves behind.
    pub(crate) fn give_back(&mut self) {
        self.receipts.take_if(|receipts| receipts.is_left_behind());
        let (len, capacity) = (self.entries.len(), self.entries.capacity());
        if len == 0 && capacity > KEPT_IDLE {
            self.entries = VecDeque::new();
        } else if capacity > LONG && len < capacity / 4 {
            self.entries.shrink_to(2 * len);
        }
    }

    pub(crate) fn pair(&self, key: PairKey) -> Pair {
        self.pairs.find(key).copied().unwrap_or(Pair::new(key))
    }

    /// What a sending device is at, to change it, if it is known here.
    #[inline]
    pub(crate) fn pair_mut(&mut self, key: PairKey) -> Option<&mut Pair> {
        self.pairs.find_mut(key)
    }

    /// Remembers what a sending device is at; whether it is new here.
    pub(crate) fn put_pair(&mut self, pair: Pair) -> bool {
        self.pairs.put(pair)
    }

    /// The places that the next message and the next acknowledgement touch.
    #[inline]
    pub(crate) fn foresee(&self, fetch: &impl Fn(*const u8)) {
        for entry in [self.entries.front(), self.entries.back()].into_iter().flatten() {
            fetch(std::ptr::from_ref(entry).cast());
        }
        self.pairs.foresee(fetch);
    }

    /// The sending devices, to walk them in a snapshot.
    pub(crate) fn pairs(&self) -> &Pairs {
        &self.pairs
    }

    pub(crate) fn pairs_mut(&mut self) -> &mut Pairs {
        &mut self.pairs
    }

    pub(crate) fn expect_receipt(&mut self, receipt: Receipt) {
        self.receipts.get_or_insert_default().expect(receipt);
    }

    /// The next receipt that an acknowledgement up to `seq` makes due.
    pub(crate) fn pop_receipt(&mut self, seq: u64) -> Option<Receipt> {
        self.receipts.as_deref_mut()?.pop_due(seq)
    }
}

#[cfg(test)]
mod tests {
    use wire::id::{MessageId, UserKey};

    use super::*;

    /// Room for the next burst stays until the tick, and no longer.
    #[test]
    fn an_empty_inbox_gives_back_at_the_tick() {
        let mut inbox = Inbox::default();
        let burst = |inbox: &mut Inbox, count: u64| {
            let last = (0..count).map(|n| inbox.push(n, 1)).last().expect("some");
            inbox.burn(last, |_| {});
            inbox.give_back_later()
        };
        assert!(!burst(&mut inbox, 64) && inbox.entries.capacity() > 0);
        assert!(burst(&mut inbox, 256), "put on the list");
        assert!(!burst(&mut inbox, 256), "it is there");
        assert!(inbox.entries.capacity() >= 256);
        inbox.give_back_now();
        assert_eq!(inbox.entries.capacity(), 0);
        assert!(!burst(&mut inbox, 2000), "that is too much to wait");
        assert_eq!(inbox.entries.capacity(), 0);
    }

    /// And so do its receipts, but room for a few of them stays.
    #[test]
    fn receipts_of_a_burst_are_given_back() {
        let mut inbox = Inbox::default();
        let mut burst = |seqs: std::ops::Range<u64>| {
            for inbox_seq in seqs.clone() {
                let (from_key, id) = (UserKey(1), MessageId([0; 16]));
                inbox.expect_receipt(Receipt { inbox_seq, from_key, device: 1, send_seq: 1, id });
            }
            inbox.give_back();
            assert!(inbox.receipts.is_some(), "they are not due yet");
            let due = std::iter::from_fn(|| inbox.pop_receipt(seqs.end)).count();
            inbox.give_back();
            (due, inbox.receipts.is_some())
        };
        assert_eq!(burst(1..61), (60, true));
        assert_eq!(burst(100..200), (100, false));
    }
}
