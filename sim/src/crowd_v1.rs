//! What clients of protocol v1 do: no numbers, no answers, single ids to
//! acknowledge.

use wire::v1::{self, Answer, BatchEntries, Packet};

use crate::device::Acks;
use crate::ledger::{Kind, LetterId};
use crate::link::{LinkId, Party, Place};
use crate::world::World;

const MS: u64 = 1_000_000;
/// A crash that was due when the faults ended is over after this time.
const LAST_CRASH_NS: u64 = 1_500_000_000;

impl World {
    /// Writes one letter, or a batch of them, or an old one again.
    pub(crate) fn write_v1(&mut self, device: usize, to: u16) {
        let choice = if self.is_quiet() { self.chance.pick(&[0, 6]) } else { self.chance.below(8) };
        match choice {
            0..=3 => {
                let letter = self.new_letter(device, to, Kind::Plain);
                let id = self.ledger.write(letter);
                self.put_plain(device, to, id);
            }
            4 | 5 => {
                let mut letter = self.new_letter(device, to, Kind::Ascending);
                let seq = self.devices[device].ascending_seq.entry(to).or_default();
                *seq += 1;
                letter.seq = *seq;
                let id = self.ledger.write(letter);
                self.devices[device].repeatable.push(id);
                self.put_numbered(device, id);
            }
            6 => self.put_batch(device, to),
            _ => {
                let count = self.devices[device].repeatable.len() as u64;
                if count > 0 {
                    let recent = count - 1 - self.chance.below(count.min(20));
                    let id = self.devices[device].repeatable[recent as usize];
                    self.put_numbered(device, id);
                }
            }
        }
    }

    fn put_plain(&mut self, device: usize, to: u16, id: LetterId) {
        let target = self.names[usize::from(to)].clone();
        let body = self.ledger.body(id);
        let (target, body) = (target.as_bytes(), &body[..]);
        let packet = if id.is_multiple_of(5) {
            Packet::Cbor { target, map: body }
        } else {
            Packet::Send { target, body }
        };
        self.put(device, "v1 send: link, letter", id, &packet);
    }

    fn put_numbered(&mut self, device: usize, id: LetterId) {
        let letter = self.ledger.get(id);
        let (target, seq) = (self.names[usize::from(letter.to)].clone(), letter.seq);
        let body = self.ledger.body(id);
        let packet = Packet::SendSeq { target: target.as_bytes(), seq, body: &body };
        self.put(device, "v1 send numbered: link, letter", id, &packet);
    }

    fn put_batch(&mut self, device: usize, to: u16) {
        let target = self.names[usize::from(to)].clone();
        let count = self.chance.within(1, self.knobs.batch_entries);
        let mut blob = Vec::new();
        let mut last = 0;
        for _ in 0..count {
            let letter = self.new_letter(device, to, Kind::Plain);
            last = self.ledger.write(letter);
            let body = self.ledger.body(last);
            blob.extend_from_slice(&(body.len() as u16).to_be_bytes());
            blob.extend_from_slice(&body);
        }
        let entries = BatchEntries::new(&blob);
        let packet = Packet::Batch { target: target.as_bytes(), entries };
        self.put(device, "v1 batch: link, last letter", last, &packet);
    }

    fn put(&mut self, device: usize, what: &'static str, letter: LetterId, packet: &Packet<'_>) {
        let Some(link) = self.devices[device].link else { return };
        self.note(what, [link as u64, letter.into(), 0, 0]);
        let mut bytes = Vec::new();
        v1::put_packet(&mut bytes, packet);
        self.write_up(link, bytes, true);
    }

    /// Acknowledges some of what was delivered, in any order.
    pub(crate) fn wake_v1(&mut self, device: usize) {
        let owed = self.devices[device].unacked.len() as u64;
        let count = match self.devices[device].acks {
            Acks::AtOnce => owed,
            Acks::NowAndThen if owed > 0 => self.chance.below(owed + 1),
            _ => 0,
        };
        for _ in 0..count {
            let left = self.devices[device].unacked.len() as u64;
            let which = self.chance.below(left) as usize;
            let (id, letter) = self.devices[device].unacked.remove(which);
            self.devices[device].let_go.insert(letter);
            self.put(device, "v1 ack: link, letter", letter, &Packet::Ack { id });
        }
        if self.chance.below(16) == 0 {
            let user = self.chance.below(self.names.len() as u64) as usize;
            let name = self.names[user].clone();
            self.put(device, "v1 status", 0, &Packet::GetStatus { user: name.as_bytes() });
        }
    }

    /// Whether no older connection of the device can take its login away. v1 has
    /// no word for that; a person would notice the silence and log in again.
    pub(crate) fn is_surely_logged_in(&mut self, device: usize) -> bool {
        let it = &self.devices[device];
        let (Some(link), Some(since)) = (it.link, self.quiet_since) else { return false };
        if self.now_ns < since + LAST_CRASH_NS {
            return false;
        }
        let has_older = self.links.iter().enumerate().any(|(other, older)| {
            other != link && older.party == Party::Device(device) && older.place != Place::Nowhere
        });
        if it.welcomed_on != Some(link) || it.is_doubtful && !has_older {
            self.devices[device].is_doubtful &= has_older;
            self.log_in_again(device, link);
            return false;
        }
        !has_older
    }

    /// Whatever is not stored may be what was refused; a person would write it
    /// again.
    fn was_refused(&mut self, device: usize, wait_ms: u32) {
        if self.volume.is_none() || !self.is_quiet() {
            return;
        }
        self.devices[device].has_said_goodbye = false;
        self.devices[device].silent_until = self.now_ns + u64::from(wait_ms) * MS;
        let user = self.devices[device].user;
        for (id, letter) in self.ledger.iter_mut() {
            let is_lost = letter.from == user && letter.device == 0;
            letter.must_arrive &= !is_lost || self.model.letter(id).is_some();
        }
    }

    fn has_numbered(&self, device: usize) -> bool {
        !self.devices[device].repeatable.is_empty()
    }

    /// A packet of the server has arrived.
    pub(crate) fn answer(&mut self, device: usize, link: LinkId, answer: &Answer<'_>) {
        match *answer {
            Answer::LoginOk => {
                self.note("v1 logged in: link", [link as u64, 0, 0, 0]);
                let it = &mut self.devices[device];
                it.is_online = true;
                // Whatever is not acknowledged comes again.
                it.unacked.clear();
                it.since_login.clear();
            }
            Answer::Deliver { id, body } => {
                let Some(letter) = self.ledger.find(body) else {
                    return self.violate("a delivered body that nobody wrote".into());
                };
                self.note("v1 delivered: link, letter", [link as u64, letter.into(), 0, 0]);
                self.came_on_this_login(device, letter);
                self.devices[device].unacked.push((id, letter));
                let owed = self.devices[device].unacked.len();
                if owed > wire::limits::V1_WINDOW as usize {
                    self.violate(format!("{owed} deliveries beyond the window of v1"));
                }
                self.receive(device, letter, id);
            }
            Answer::Status { .. } => {}
            // One of its letters was refused; v1 cannot say which.
            Answer::RateLimited { wait_ms: wait_ms @ 1.. } => self.was_refused(device, wait_ms),
            // A person would write it again, under a number of its own.
            Answer::Error { text: b"out_of_order" } if self.has_numbered(device) => {}
            Answer::LoginRateLimited => {} // poisoned, draining, too many; it closes
            _ => self.violate(format!("an answer for nothing: {answer:?}")),
        }
    }
}
