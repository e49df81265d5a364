//! Acknowledgements from devices: cursors move, entries burn, senders that
//! asked hear *delivered*.

use std::collections::VecDeque;

use wal::record::Record;
use wire::id::{MessageId, UserKey};
use wire::v2;

use crate::Shard;
use crate::flow::Optional;
use crate::hop::Hop;
use crate::io::{Conn, Effects, Now, Outcome};
use crate::session::Kind;
use crate::shelf::ASIDE_LOG_BYTES;
use crate::user::{NO_SLOT, UserIndex};

/// Log bytes of an acknowledgement, and of what it may say of a message that was
/// set aside.
const ACK_LOG_BYTES: usize = 128 + 2 * ASIDE_LOG_BYTES;

/// Receipts an inbox remembers; further ones are dropped.
const RECEIPTS_MAX: usize = 4096;

/// Room for so many stays with an inbox.
const RECEIPTS_KEPT: usize = 64;

/// A *delivered* that its sender asked for, due when a device acknowledges.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Receipt {
    pub(crate) inbox_seq: u64,
    pub(crate) from_key: UserKey,
    pub(crate) device: u64,
    pub(crate) send_seq: u64,
    pub(crate) id: MessageId,
}

/// The receipts of one inbox that are not due yet, by ascending seq.
#[derive(Default)]
pub(crate) struct Receipts(VecDeque<Receipt>);

impl Receipts {
    /// One more, unless it is known or there are too many.
    pub(crate) fn expect(&mut self, receipt: Receipt) {
        let is_known = self.0.back().is_some_and(|last| last.inbox_seq >= receipt.inbox_seq);
        if !is_known && self.0.len() < RECEIPTS_MAX {
            self.0.push_back(receipt);
        }
    }

    /// The next one that an acknowledgement up to `seq` makes due.
    pub(crate) fn pop_due(&mut self, seq: u64) -> Option<Receipt> {
        if self.0.front()?.inbox_seq > seq {
            return None;
        }
        self.0.pop_front()
    }

    /// Whether nothing is expected, with room that only a burst needs.
    pub(crate) fn is_left_behind(&self) -> bool {
        self.0.is_empty() && self.0.capacity() > RECEIPTS_KEPT
    }

    /// The message with this number was given up.
    pub(crate) fn forget(&mut self, seq: u64) {
        if let Ok(at) = self.0.binary_search_by_key(&seq, |receipt| receipt.inbox_seq) {
            self.0.remove(at);
        }
    }
}

impl Shard {
    /// v2: the device has everything up to and including `seq`.
    pub(crate) fn ack_v2(&mut self, now: Now, conn: Conn, seq: u64, out: &mut Effects) -> Outcome {
        if !self.log.is_poisoned() && !self.log.room(ACK_LOG_BYTES) {
            return Outcome::Blocked;
        }
        let Some(session) = self.sessions.get(conn) else { return Outcome::Taken };
        let (user, device, sent) = (session.user, usize::from(session.device), session.sent);
        // Nobody can have what was not handed out.
        let seq = seq.min(sent);
        if self.log.is_poisoned() {
            return Outcome::Taken;
        }
        self.acknowledge_shelved(now, user, device, 0..=seq);
        if seq > self.users[user].devices[device].cursor {
            self.acknowledge(now, user, device, seq);
            self.send_receipts(user, seq, out);
            self.pump(now, conn.slot, out);
        }
        Outcome::Taken
    }

    /// v1: the device has the message with this id. Unknown ids are ignored.
    pub(crate) fn ack_v1(
        &mut self,
        now: Now,
        conn: Conn,
        id: MessageId,
        out: &mut Effects,
    ) -> Outcome {
        if !self.log.is_poisoned() && !self.log.room(ACK_LOG_BYTES) {
            return Outcome::Blocked;
        }
        let Some(session) = self.sessions.get(conn) else { return Outcome::Taken };
        let Some(seq) = take_outstanding(session, id) else { return Outcome::Taken };
        let (user, device) = (session.user, usize::from(session.device));
        let record_device = self.users[user].devices[device].id;
        let key = self.users[user].key;
        if self.log.is_poisoned() {
            return Outcome::Taken;
        }
        if !self.users[user].inbox_mut().mark_acked_by_v1(seq) {
            // It has expired or was set aside meanwhile; its place in the window
            // is free.
            self.acknowledge_shelved(now, user, device, seq..=seq);
            self.pump(now, conn.slot, out);
            return Outcome::Taken;
        }
        self.metrics.counters.acks += 1;
        self.append(now, &Record::Ack { key, device: record_device, seq, exact: true });
        let cursor = self.advance(user, device);
        self.send_receipts(user, cursor, out);
        self.pump(now, conn.slot, out);
        Outcome::Taken
    }

    /// Moves a device's cursor up to `seq`, in the log and in memory.
    pub(crate) fn acknowledge(&mut self, now: Now, user: UserIndex, device: usize, seq: u64) {
        // A poisoned log takes nothing more; after the restart the device says
        // again what it has.
        if self.log.is_poisoned() {
            return;
        }
        self.metrics.counters.acks += 1;
        let it = &self.users[user];
        let (key, id) = (it.key, it.devices[device].id);
        self.append(now, &Record::Ack { key, device: id, seq, exact: false });
        self.move_cursor(user, device, seq);
        self.burn(user);
    }

    /// Removes what every device has.
    pub(crate) fn burn(&mut self, user: UserIndex) {
        let (counters, space) = (&mut self.metrics.counters, &mut self.cleaner.space);
        let end = self.log.end();
        let is_drained = self.users[user].burn_in_passing(|entry| {
            counters.burned += 1;
            counters.waiting_messages -= 1;
            counters.waiting_bytes -= u64::from(entry.len);
            space.acknowledged(entry.lsn, entry.len, end);
        });
        if is_drained {
            self.drained.push(user);
        }
    }

    /// Inboxes that were emptied since the last tick and are empty give back
    /// what a burst has left them. At each acknowledgement the next burst would
    /// have to ask for it again.
    pub(crate) fn give_back(&mut self) {
        for user in std::mem::take(&mut self.drained) {
            self.users[user].inbox_mut().give_back_now();
        }
    }

    /// Tells the senders that asked that a device has everything up to `seq`.
    pub(crate) fn send_receipts(&mut self, user: UserIndex, seq: u64, out: &mut Effects) {
        while let Some(inbox) = self.users[user].inbox.as_deref_mut()
            && let Some(receipt) = inbox.pop_receipt(seq)
        {
            self.send_due_receipt(user, &receipt, out);
        }
    }

    fn send_due_receipt(&mut self, user: UserIndex, receipt: &Receipt, out: &mut Effects) {
        if !self.flow.level().allows(Optional::Receipt) {
            self.metrics.counters.receipts_shed += 1;
            return;
        }
        let name = std::mem::take(&mut self.users[user].name);
        self.send_receipt(receipt, &name, out);
        self.users[user].name = name;
    }

    fn send_receipt(&mut self, receipt: &Receipt, to: &[u8], out: &mut Effects) {
        let owner = receipt.from_key.owner(self.options.shards);
        if owner == self.options.shard {
            return self.receipt_arrived(receipt, to, out);
        }
        if self.outbox.has_room_for_optional(owner) {
            self.outbox.push(owner, |parcel| Hop::Receipt {
                from_key: receipt.from_key,
                device: receipt.device,
                send_seq: receipt.send_seq,
                id: receipt.id,
                to: parcel.put(to),
            });
        }
    }

    /// Tells the sender, if the device that sent it is connected.
    pub(crate) fn receipt_arrived(&mut self, receipt: &Receipt, to: &[u8], out: &mut Effects) {
        let Some(user) = self.users.find(receipt.from_key) else { return };
        let user = &self.users[user];
        let Some(position) = user.device_position(receipt.device) else { return };
        let slot = user.devices[position].slot;
        if slot == NO_SLOT {
            return;
        }
        let session = self.sessions.at(slot);
        if session.kind == Kind::V2 {
            let conn = Conn { slot, generation: session.generation };
            let delivered = v2::Reply::Delivered { seq: receipt.send_seq, id: receipt.id, to };
            out.send_late(conn, |bytes| v2::put_reply(bytes, &delivered));
        }
    }
}

/// Removes a delivery from those a v1 connection owes an acknowledgement for.
fn take_outstanding(session: &mut crate::session::Session, id: MessageId) -> Option<u64> {
    let outstanding = &mut session.v1.as_mut()?.outstanding;
    let at = outstanding.iter().position(|(known, _)| *known == id)?;
    outstanding.remove(at).map(|(_, seq)| seq)
}
