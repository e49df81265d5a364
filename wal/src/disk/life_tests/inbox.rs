//! One inbox, which stands for the state of a shard.

use std::collections::BTreeMap;

use super::super::tests::SEGMENT_BYTES;
use crate::clean::Space;
use crate::record::Malformed;
use crate::{LogStart, Lsn, Record, Restore};

/// One inbox.
pub(super) struct Inbox {
    pub(super) waiting: BTreeMap<u64, (Lsn, u32)>,
    pub(super) last: u64,
    pub(super) space: Space,
    /// Records before this are in the state that was loaded.
    as_of: Lsn,
    pub(super) resets: u32,
}

impl Inbox {
    pub(super) fn new() -> Inbox {
        let space = Space::new(SEGMENT_BYTES);
        Inbox { waiting: BTreeMap::new(), last: 0, space, as_of: 0, resets: 0 }
    }

    pub(super) fn put(&mut self, seq: u64, lsn: Lsn, len: u32, end: Lsn) {
        self.space.add(lsn, len, 0);
        self.last = self.last.max(seq);
        if let Some((from, len)) = self.waiting.insert(seq, (lsn, len)) {
            self.space.sub(from, len, end);
        }
    }

    pub(super) fn burn(&mut self, seq: u64, end: Lsn) {
        let left = self.waiting.split_off(&(seq + 1));
        for (lsn, len) in std::mem::replace(&mut self.waiting, left).into_values() {
            self.space.sub(lsn, len, end);
        }
    }

    /// The state as payloads of a few entries each, all as of `end`.
    pub(super) fn payloads(&self, end: Lsn) -> Vec<Vec<u8>> {
        let waiting: Vec<_> = self.waiting.iter().collect();
        let mut payloads = Vec::new();
        for part in waiting.chunks(10).chain(waiting.is_empty().then_some(&[][..])) {
            let mut payload = [end.to_le_bytes(), self.last.to_le_bytes()].concat();
            for (seq, (lsn, len)) in part {
                payload.extend_from_slice(&seq.to_le_bytes());
                payload.extend_from_slice(&lsn.to_le_bytes());
                payload.extend_from_slice(&u64::from(*len).to_le_bytes());
            }
            payloads.push(payload);
        }
        payloads
    }
}

impl Restore for Inbox {
    fn reset(&mut self) {
        *self = Inbox { resets: self.resets + 1, ..Inbox::new() };
    }

    fn state(&mut self, payload: &[u8]) -> Result<(), Malformed> {
        let (words, rest) = payload.as_chunks::<8>();
        let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let [as_of, last, ref entries @ ..] = words[..] else { return Err(Malformed::Payload) };
        if !rest.is_empty() || !entries.len().is_multiple_of(3) {
            return Err(Malformed::Payload);
        }
        (self.as_of, self.last) = (as_of, last);
        for entry in entries.chunks(3) {
            let len = u32::try_from(entry[2]).map_err(|_| Malformed::Payload)?;
            self.waiting.insert(entry[0], (entry[1], len));
            self.space.restore(entry[1], len);
        }
        Ok(())
    }

    fn space(&mut self, payload: &[u8]) -> Result<(), Malformed> {
        self.space.decode(payload)
    }

    fn loaded(&mut self, start: LogStart, end: Lsn) {
        assert!(start.lsn <= self.as_of && self.as_of <= end);
    }

    fn record(&mut self, lsn: Lsn, len: u32, record: &Record<'_>) {
        let end = lsn + Lsn::from(len);
        if lsn < self.as_of {
            return;
        }
        match *record {
            Record::Message(m) => self.put(m.inbox_seq, lsn, len, end),
            Record::Moved(m) if self.waiting.contains_key(&m.inbox_seq) => {
                self.put(m.inbox_seq, lsn, len, end);
            }
            Record::Ack { seq, .. } => self.burn(seq, end),
            _ => {}
        }
    }

    fn needed(&self) -> Vec<(u64, u64, u64)> {
        self.space.needed()
    }
}
