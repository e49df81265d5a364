//! From the shard's effects to the hands.

use net::After;
use shard::Effect;

use super::Core;
use super::inbound::id;
use super::log_io::Reader;
use super::reads::Read;

impl Core {
    /// Carries out what the shard wants done. Bytes go to the connections'
    /// send buffers; the kernel gets them at the end of the turn, one send for
    /// each connection.
    pub(super) fn apply(&mut self) {
        // Carrying out may tell the shard something that leads to more, so the
        // two sets of effects take turns; both keep their memory.
        while !self.out.list.is_empty() {
            std::mem::swap(&mut self.out, &mut self.doing);
            let mut doing = std::mem::take(&mut self.doing);
            let mut coming = doing.list.drain(..);
            while let Some(effect) = coming.next() {
                let rest = coming.as_slice();
                self.hands.foresee(|ahead| match rest.get(ahead - 1) {
                    Some(Effect::Send { conn, .. }) => Some(id(*conn)),
                    _ => None,
                });
                self.carry_out(effect, &doing.bytes);
            }
            drop(coming);
            doing.clear();
            self.doing = doing;
        }
    }

    fn carry_out(&mut self, effect: Effect, bytes: &[u8]) {
        match effect {
            Effect::Send { conn, start, end, late: true } => {
                self.rest.company.confirmed(conn);
                self.hands.send_late(id(conn), &bytes[start..end], self.rest.patience());
            }
            Effect::Send { conn, start, end, late: false } => {
                self.rest.company.sent(conn);
                self.hands.send(id(conn), &bytes[start..end]);
            }
            Effect::TellDrained { conn } => self.hands.tell_drained(id(conn)),
            Effect::Close { conn } => self.hands.close(id(conn), After::Flush),
            Effect::Read { conn, lsn, len_min, len, len_wide } => {
                self.read_log(Read::new(Reader::Device(conn), lsn, (len_min, len, len_wide)));
            }
            Effect::Survey { lsn, len_min, len } => {
                self.read_log(Read::new(Reader::Cleaner, lsn, (len_min, len, len)));
            }
            Effect::Discard { segment } => self.discard(segment),
            Effect::Damaged { lsn } => tracing::error!(
                shard = self.id,
                lsn,
                "what is stored cannot be read or does not match its checksum; it is kept and \
                 not delivered, what follows it is, and docs/DURABILITY.md says what can be done"
            ),
        }
    }

    /// Everything released in this turn leaves: to clients and to other cores.
    pub(super) fn send(&mut self) {
        self.apply();
        self.send_to_mesh();
        self.age_overdue();
        self.hands.flush();
    }
}
