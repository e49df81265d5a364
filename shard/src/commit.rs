//! The commit rule: nothing leaves before the fsync that covers it.
//!
//! Whatever depends on an append waits here until the log says that it is
//! durable, in the order of the log. The queue is bounded by what fits the
//! log's window of undurable bytes.

use std::collections::VecDeque;

use wal::Lsn;
use wal::record::Record;
use wire::refuse::Code;

use crate::Shard;
use crate::hop::{Posted, ReplyTo};
use crate::io::{Effects, Now};
use crate::metrics::Stage;
use crate::user::UserIndex;

/// Something that may happen once the log is durable up to `until`.
pub(crate) struct Waiting {
    pub(crate) until: Lsn,
    pub(crate) reply: ReplyTo,
    pub(crate) user: UserIndex,
    pub(crate) send_seq: u64,
    pub(crate) posted: Posted,
    /// The inbox entry that becomes visible, 0 for none.
    pub(crate) inbox_seq: u64,
    pub(crate) received_ns: u64,
    pub(crate) appended_ns: u64,
}

/// Everything that waits for an fsync, oldest first.
#[derive(Default)]
pub(crate) struct Gate {
    queue: VecDeque<Waiting>,
}

impl Gate {
    pub(crate) fn push(&mut self, waiting: Waiting) {
        debug_assert!(self.queue.back().is_none_or(|last| last.until <= waiting.until));
        self.queue.push_back(waiting);
    }

    fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// What may happen once the log is durable up to there.
    pub(crate) fn due(&self, durable: Lsn) -> impl Iterator<Item = &Waiting> {
        self.queue.iter().take_while(move |waiting| waiting.until <= durable)
    }

    fn pop(&mut self, durable: Lsn) -> Option<Waiting> {
        if self.queue.front()?.until > durable {
            return None;
        }
        self.queue.pop_front()
    }
}

/// When recent stretches of the log became durable, so that a delivery can
/// tell how long it waited since.
#[derive(Default)]
pub(crate) struct Durables {
    recent: VecDeque<(Lsn, u64)>,
}

const DURABLES_MAX: usize = 256;

impl Durables {
    fn note(&mut self, durable: Lsn, mono_ns: u64) {
        if self.recent.len() == DURABLES_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back((durable, mono_ns));
    }

    /// When the log became durable up to `end`; `None` when that is too long
    /// ago or has not happened.
    pub(crate) fn when(&self, end: Lsn) -> Option<u64> {
        // Best effort asks before it has happened.
        if self.recent.back().is_none_or(|(durable, _)| *durable < end) {
            return None;
        }
        let at = self.recent.partition_point(|(durable, _)| *durable < end);
        if at == 0 && self.recent.len() == DURABLES_MAX {
            return None;
        }
        self.recent.get(at).map(|(_, mono_ns)| *mono_ns)
    }
}

impl Shard {
    /// Whether something waits for what was appended to become durable: a
    /// confirmation, a delivery, or work that goes on after a write.
    pub fn awaits_log(&self) -> bool {
        !self.gate.is_empty()
            || !self.starved.is_empty()
            || self.shelves.hold_back()
            || self.is_cleaning()
    }

    /// Appends a record for which room was checked before.
    pub(crate) fn append(&mut self, now: Now, record: &Record<'_>) -> wal::Appended {
        let hlc_ms = self.hlc.ms().max(now.wall_ms);
        self.no_more_vouched();
        self.log.append(record, hlc_ms).expect("room was checked before the append")
    }

    /// A write of the log ended.
    pub(crate) fn written(&mut self, now: Now, lsn: Lsn, ok: bool, out: &mut Effects) {
        let before = self.log.durable();
        let durable = self.log.written(lsn, ok);
        if !ok {
            // What waited for room is refused now instead, and what waits for
            // an fsync waits in vain: better that its senders know.
            self.room_epoch += 1;
            self.dismiss_all(now, Code::StorageFailed, out);
        }
        self.metrics.counters.poisoned = u64::from(self.log.is_poisoned());
        if durable == before {
            return;
        }
        self.room_epoch += 1;
        self.durables.note(durable, now.mono_ns);
        self.release(now, durable, out);
        self.go_on_with_shelves(now, durable, out);
        self.serve_starved(now, out);
        if self.is_cleaning() {
            self.clean(now, out);
        }
    }

    fn release(&mut self, now: Now, durable: Lsn, out: &mut Effects) {
        while let Some(waiting) = self.gate.pop(durable) {
            self.metrics.record(Stage::AppendToDurable, waiting.appended_ns, now.mono_ns);
            self.users[waiting.user].inbox_mut().end_waiting();
            if waiting.inbox_seq > 0 {
                self.make_visible(now, waiting.user, waiting.inbox_seq, waiting.received_ns, out);
            }
            self.reply_about_user(
                waiting.reply,
                waiting.user,
                waiting.send_seq,
                waiting.posted,
                out,
            );
        }
    }

    /// An entry may be handed out from now on.
    pub(crate) fn make_visible(
        &mut self,
        now: Now,
        user: UserIndex,
        inbox_seq: u64,
        received_ns: u64,
        out: &mut Effects,
    ) {
        let before = self.metrics.counters.delivered;
        let inbox = self.users[user].inbox_mut();
        // A device that knew more than the server did may have raised the
        // floor above it in the meantime.
        inbox.make_visible(inbox_seq.min(inbox.last_seq()));
        self.pump_user(now, user, out);
        if self.metrics.counters.delivered > before {
            self.metrics.record_late(Stage::EndToEnd, received_ns, now.mono_ns);
        }
    }
}
