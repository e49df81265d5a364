//! The server's turns: what `src/turn.rs` does in production, here against
//! simulated links, rings and disks.
//!
//! Inputs gather until the turn ends; then writes are handed out, then effects
//! leave, then parcels. A crash may come between any two of these.

use shard::gather::{GATHER_NS, LAZY_NS, Pressure};
use shard::hop::{Hop, Parcel};
use shard::{Conn, Effect, Input, Numbering, Outcome};
use wal::record::Record;
use wal::{Lsn, Write};
use wire::id::ShardId;
use wire::sniff::{self, Protocol};
use wire::{v1, v2};

use crate::history::records_of;
use crate::link::{LinkId, Place, Speaks};
use crate::plant::Plant;
use crate::world::{Core, Event, World};

/// Hops and bytes of one parcel that would be a queue without a bound. Replies
/// and receipts come on top of what `shard::hop` allows for requests.
const PARCEL_HOPS_MAX: usize = 4 * shard::hop::INFLIGHT_MAX as usize;
const PARCEL_BYTES_MAX: usize = 2 * shard::hop::PARCEL_BYTES_MAX;
/// The longest wait of a core that is not parked.
const WAIT_NS: u64 = 5_000_000;

impl World {
    /// Hands a shard an input and looks at what it is afterwards.
    fn feed(&mut self, shard: usize, input: Input<'_>) -> Outcome {
        let now = self.now();
        let core = &mut self.cores[shard];
        let outcome = core.brain.handle(now, input, &mut core.out);
        let log = core.brain.log();
        let undurable = log.end() - log.durable();
        if undurable > self.knobs.log.tail_bytes as Lsn {
            self.violate(format!("{undurable} bytes of shard {shard} are not durable"));
        }
        self.want_turn(shard);
        outcome
    }

    /// Hands a shard an input that is always taken.
    pub(crate) fn notice(&mut self, shard: usize, input: Input<'_>) {
        if self.feed(shard, input) != Outcome::Taken {
            self.violate(format!("an input that is always taken was not: {input:?}"));
        }
    }

    pub(crate) fn want_turn(&mut self, shard: usize) {
        if !self.cores[shard].turn_wanted {
            self.cores[shard].turn_wanted = true;
            let delay_ns = self.chance.below(self.knobs.turn_ns + 1);
            self.after(delay_ns, Event::EndTurn { life: self.life, shard });
        }
    }

    pub(crate) fn end_turn(&mut self, shard: usize) {
        let life = self.life;
        self.cores[shard].turn_wanted = false;
        if self.is_commit_due(shard) {
            self.commit(shard);
        } else {
            self.prepare_segment(shard);
        }
        if self.chance.permille(self.knobs.crash / 10) {
            return self.crash(); // between commit and send
        }
        self.carry_out(shard);
        self.send_parcels(shard);
        if life == self.life {
            self.retry(shard);
        }
    }

    /// Whether the turn ends with a commit, as `src/turn/log_io.rs` has it.
    fn is_commit_due(&mut self, shard: usize) -> bool {
        if self.knobs.busy == 0 {
            return true;
        }
        let shards = self.cores.len();
        let is_blocked = !self.cores[shard].blocked.is_empty()
            || (0..shards).any(|from| self.rings[from * shards + shard].blocked.is_some());
        let pressure = if self.draining {
            Pressure::Stop
        } else if is_blocked {
            Pressure::Input
        } else {
            Pressure::None
        };
        // Before a rest nobody who waits is kept waiting.
        let is_busy = self.gather_chance.permille(self.knobs.busy);
        let now = self.now();
        let Core { gather, brain, .. } = &mut self.cores[shard];
        let gathered = gather.since_ns();
        let is_due = gather.is_due(brain, now, is_busy, pressure);
        if !is_due && gather.since_ns().is_some() {
            self.stats.gathered += 1;
            let is_awaited = gather.is_awaited();
            if gathered.is_none() || is_awaited {
                // The core looks again after its longest wait, whatever happens.
                let lazy_ns = LAZY_NS + self.gather_chance.below(WAIT_NS);
                let delay_ns = if is_awaited { GATHER_NS } else { lazy_ns };
                self.after(delay_ns, Event::EndTurn { life: self.life, shard });
            }
        }
        is_due
    }

    fn commit(&mut self, shard: usize) {
        self.cores[shard].gather.committed();
        while let Some(write) = self.cores[shard].brain.next_write() {
            self.writes += 1;
            let id = self.writes;
            let bytes = self.cores[shard].brain.log().write_bytes(&write).to_vec();
            self.note(
                "write: shard, id, lsn, bytes",
                [shard as u64, id, write.lsn, bytes.len() as u64],
            );
            self.trace.bytes(&bytes);
            self.read_commit(shard, write.lsn, &bytes);
            if self.has_place_for(shard, write) {
                self.submit(shard, id, write, &bytes);
            } else if self.plant == Plant::ConfirmWithoutPlace {
                self.notice(shard, Input::Written { lsn: write.lsn, ok: true });
            } else {
                self.violate(format!("a commit at {} of shard {shard} has no place", write.lsn));
            }
        }
        self.prepare_segment(shard);
    }

    /// A commit goes to the disk.
    pub(crate) fn submit(&mut self, shard: usize, id: u64, write: Write, bytes: &[u8]) {
        self.layout.disks[shard].submit(id, write.lsn, bytes);
        let delay_ns = self.chance.latency(self.knobs.disk_ns);
        self.after(delay_ns, Event::Written { life: self.life, shard, id, lsn: write.lsn });
        if self.plant.acks_early() {
            self.notice(shard, Input::Written { lsn: write.lsn, ok: true });
        }
    }

    /// Tells the model what is on its way to the disk.
    fn read_commit(&mut self, shard: usize, lsn: Lsn, bytes: &[u8]) {
        for (start, record) in records_of(lsn, bytes) {
            let end = start + record.len() as Lsn;
            self.layout.histories[shard].push(start, record);
            let taken = match wal::record::decode(record) {
                Ok(record) => {
                    self.watch_full(shard, start, &record);
                    self.stats.aside += u64::from(matches!(record, Record::Aside { .. }));
                    self.stats.returned += u64::from(matches!(record, Record::Returned { .. }));
                    self.model.take(shard, end, &record, &self.ledger)
                }
                Err(why) => Err(format!("a record that cannot be read: {why}")),
            };
            self.require(taken);
        }
    }

    pub(crate) fn written(&mut self, shard: usize, id: u64, lsn: Lsn) {
        let ok = self.end_write(shard, id) || self.plant == Plant::AckFailedSync;
        self.count_down();
        if self.plant.acks_early() {
            return;
        }
        let (epoch, was_poisoned) = self.room(shard);
        self.notice(shard, Input::Written { lsn, ok });
        if !ok && !was_poisoned {
            self.poisoned(shard, epoch);
        }
    }

    /// What the disk makes of a write; whether it calls it good.
    fn end_write(&mut self, shard: usize, id: u64) -> bool {
        let disk = &mut self.layout.disks[shard];
        let writes = !self.chance.permille(self.knobs.write_fails);
        let syncs = !self.fault_chance.permille(self.knobs.sync_fails);
        if !writes {
            self.stats.failed_writes += 1;
            disk.fail(id, &mut self.chance, self.knobs.garbage_sectors);
        } else if !syncs {
            self.stats.failed_syncs += 1;
            disk.fail_sync(id, &mut self.fault_chance);
            self.note("its sync fails: shard, id", [shard as u64, id, 0, 0]);
        } else {
            disk.complete(id, &mut self.fault_chance);
        }
        let ok = writes && syncs;
        self.note("written: shard, id, ok", [shard as u64, id, u64::from(ok), 0]);
        ok
    }

    /// A short life ends after a few writes.
    fn count_down(&mut self) {
        let Some(left) = self.writes_to_live else { return };
        self.writes_to_live = left.checked_sub(1);
        if left == 1 && !self.is_quiet() {
            let delay_ns = self.chance.below(self.knobs.disk_ns);
            self.after(delay_ns, Event::Crash { life: self.life });
        }
    }

    fn room(&self, shard: usize) -> (u64, bool) {
        let brain = &self.cores[shard].brain;
        (brain.room_epoch(), brain.log().is_poisoned())
    }

    /// A shard has just failed; the operator restarts it soon.
    fn poisoned(&mut self, shard: usize, epoch: u64) {
        self.note("poisoned: shard", [shard as u64, 0, 0, 0]);
        if !self.cores[shard].brain.log().is_poisoned() {
            self.violate(format!("shard {shard} goes on after a failed write"));
        }
        let blocks = !self.cores[shard].blocked.is_empty()
            || (0..self.cores.len()).any(|from| self.ring(from, shard).blocked.is_some());
        if blocks && self.cores[shard].brain.room_epoch() == epoch {
            self.violate(format!("what waits for room in poisoned shard {shard} waits for ever"));
        }
        let delay_ns = self.chance.within(1_000_000, 300_000_000);
        self.after(delay_ns, Event::Crash { life: self.life });
    }

    fn carry_out(&mut self, shard: usize) {
        let mut out = std::mem::take(&mut self.cores[shard].out);
        for effect in out.list.drain(..) {
            match effect {
                Effect::Send { conn, start, end, .. } => {
                    self.send(shard, conn, &out.bytes[start..end])
                }
                Effect::TellDrained { conn } => self.tell_drained(shard, conn),
                Effect::Close { conn } => self.close(shard, conn),
                Effect::Read { conn, lsn, len_min, len_wide, .. } => {
                    self.start_read(shard, conn, lsn, len_min, len_wide);
                }
                Effect::Survey { lsn, len_min, len } => {
                    self.start_survey(shard, lsn, len_min, len);
                }
                Effect::Discard { segment } => {
                    self.cores[shard].place.deleted(segment);
                    self.delete(shard, segment);
                }
                Effect::Damaged { lsn } => self.watch_damaged(shard, lsn),
            }
        }
        out.clear();
        self.cores[shard].out = out;
    }

    fn link_at(&self, shard: usize, conn: Conn) -> Option<LinkId> {
        let core = &self.cores[shard];
        let is_current = core.generations.get(conn.slot as usize) == Some(&conn.generation);
        if is_current { core.slots[conn.slot as usize] } else { None }
    }

    fn send(&mut self, shard: usize, conn: Conn, bytes: &[u8]) {
        let Some(link) = self.link_at(shard, conn) else { return };
        self.trace.bytes(bytes);
        self.note("send: link, bytes", [link as u64, bytes.len() as u64, 0, 0]);
        let deliveries = self.watch(link, bytes);
        let net_ns = self.chance.latency(self.knobs.net_ns);
        let drain_ns = self.chance.latency(self.knobs.drain_ns);
        let at = self.links[link].down_at.max(self.now_ns + net_ns);
        let it = &mut self.links[link];
        it.down_at = at;
        it.undrained += bytes.len();
        it.undrained_deliveries += deliveries;
        self.watch_burst(link);
        self.at(at, Event::Down { link, bytes: bytes.to_vec() });
        let bytes = bytes.len();
        self.after(drain_ns, Event::Drained { link, bytes, deliveries });
    }

    pub(crate) fn drained(&mut self, link: LinkId, bytes: usize, deliveries: usize) {
        let it = &mut self.links[link];
        it.undrained -= bytes;
        it.undrained_deliveries -= deliveries;
        if let (Place::At(shard, conn), 0, true) = (it.place, it.undrained, it.is_awaited) {
            self.links[link].is_awaited = false;
            self.notice(shard, Input::Drained { conn });
        }
    }

    fn tell_drained(&mut self, shard: usize, conn: Conn) {
        let Some(link) = self.link_at(shard, conn) else { return };
        self.links[link].is_awaited = true;
        // It may have left already.
        self.after(0, Event::Drained { link, bytes: 0, deliveries: 0 });
    }

    fn close(&mut self, shard: usize, conn: Conn) {
        let Some(link) = self.link_at(shard, conn) else { return };
        if self.links[link].is_closing {
            return;
        }
        self.note("close: link", [link as u64, 0, 0, 0]);
        self.links[link].is_closing = true;
        let at = self.links[link].down_at.max(self.now_ns) + 1;
        self.at(at, Event::End { link });
        let gone_ns = self.chance.latency(self.knobs.net_ns);
        self.after(gone_ns, Event::Gone { link });
    }

    fn start_read(&mut self, shard: usize, conn: Conn, lsn: Lsn, len_min: u32, len: u32) {
        self.note("read: shard, lsn, least, most", [shard as u64, lsn, len_min.into(), len.into()]);
        let life = self.life;
        let len = self.chance.within(len_min.into(), len.into()) as u32;
        let delay_ns = self.chance.latency(self.knobs.read_ns);
        // The disk may look at the bytes early or late.
        let event = if self.read_fails(shard, lsn) {
            Event::Read { life, shard, conn, lsn, bytes: None }
        } else if self.chance.below(2) == 0 {
            let bytes = Some(self.read_disk(shard, lsn, len));
            Event::Read { life, shard, conn, lsn, bytes }
        } else {
            Event::ReadLate { life, shard, conn, lsn, len }
        };
        self.after(delay_ns, event);
    }

    pub(crate) fn read_done(&mut self, shard: usize, conn: Conn, lsn: Lsn, bytes: Option<&[u8]>) {
        self.notice(shard, Input::Read { conn, lsn, bytes });
    }

    /// Whether the disk does not give what it has, this time.
    pub(crate) fn read_fails(&mut self, shard: usize, lsn: Lsn) -> bool {
        let fails = !self.is_quiet() && self.fault_chance.permille(self.knobs.read_fails);
        if fails {
            self.stats.failed_reads += 1;
            self.unread.insert((shard, lsn));
        }
        fails
    }

    fn ring(&mut self, from: usize, to: usize) -> &mut crate::world::Ring {
        let shards = self.cores.len();
        &mut self.rings[from * shards + to]
    }

    fn send_parcels(&mut self, from: usize) {
        for to in 0..self.cores.len() {
            let is_full = self.ring(from, to).parcels.len() >= self.knobs.ring_parcels;
            if is_full || !self.cores[from].brain.has_parcel(to as ShardId) {
                continue;
            }
            let parcel = self.cores[from].brain.take_parcel(to as ShardId, Parcel::default());
            let (hops, bytes) = (parcel.hops.len(), parcel.bytes.len());
            self.note(
                "parcel: from, to, hops, bytes",
                [from as u64, to as u64, hops as u64, bytes as u64],
            );
            if hops > PARCEL_HOPS_MAX || bytes > PARCEL_BYTES_MAX {
                self.violate(format!("a parcel of {hops} hops and {bytes} bytes"));
            }
            self.ring(from, to).parcels.push_back(parcel);
            let delay_ns = self.chance.latency(self.knobs.mesh_ns);
            self.after(delay_ns, Event::Parcel { life: self.life, from, to });
        }
    }

    pub(crate) fn parcel(&mut self, from: usize, to: usize) {
        self.ring(from, to).ready += 1;
        if self.ring(from, to).blocked.is_none() {
            self.take_from_ring(from, to);
        }
    }

    fn take_from_ring(&mut self, from: usize, to: usize) {
        while self.ring(from, to).ready > 0 {
            let ring = self.ring(from, to);
            let parcel = ring.parcels.pop_front().expect("what is ready is there");
            let mut taken = ring.taken;
            while let Some(hop) = parcel.hops.get(taken) {
                let mut hop = *hop;
                if let (Plant::TakeLate, Hop::Post(post)) = (self.plant, &mut hop)
                    && post.numbering == Numbering::Ascending
                {
                    post.numbering = Numbering::Window;
                }
                let input = Input::Hop { from: from as ShardId, hop: &hop, bytes: &parcel.bytes };
                match self.feed(to, input) {
                    Outcome::Taken => taken += 1,
                    Outcome::Blocked => {
                        let epoch = self.cores[to].brain.room_epoch();
                        let ring = self.ring(from, to);
                        (ring.taken, ring.blocked) = (taken, Some(epoch));
                        ring.parcels.push_front(parcel);
                        return;
                    }
                    Outcome::Move(_) => return self.violate("a hop moves nothing".into()),
                }
            }
            let ring = self.ring(from, to);
            (ring.taken, ring.ready) = (0, ring.ready - 1);
            self.want_turn(from);
        }
    }

    /// Hands in again what found no room, when there may be some.
    fn retry(&mut self, shard: usize) {
        let epoch = self.cores[shard].brain.room_epoch();
        for from in 0..self.cores.len() {
            if self.ring(from, shard).blocked.is_some_and(|then| then != epoch) {
                self.ring(from, shard).blocked = None;
                self.take_from_ring(from, shard);
            }
        }
        let blocked = std::mem::take(&mut self.cores[shard].blocked);
        let (again, still): (Vec<LinkId>, Vec<LinkId>) =
            blocked.into_iter().partition(|link| self.links[*link].blocked != Some(epoch));
        self.cores[shard].blocked = still;
        for link in again {
            if self.links[link].blocked.take().is_some() {
                self.serve(link);
            }
        }
    }

    /// A connection appears at a core.
    pub(crate) fn arrive(&mut self, link: LinkId, shard: usize) {
        let is_current = self.links[link].life == self.life;
        if !is_current || self.links[link].place != Place::Moving {
            return;
        }
        let core = &mut self.cores[shard];
        let slot = core.free.pop().unwrap_or_else(|| {
            core.slots.push(None);
            core.generations.push(0);
            core.slots.len() as u32 - 1
        });
        core.generations[slot as usize] += 1;
        core.slots[slot as usize] = Some(link);
        let conn = Conn { slot, generation: core.generations[slot as usize] };
        self.note("opened: link, shard, slot", [link as u64, shard as u64, slot.into(), 0]);
        self.links[link].place = Place::At(shard, conn);
        self.notice(shard, Input::Opened { conn });
        self.serve(link);
    }

    /// The server sees that a connection is gone.
    pub(crate) fn gone(&mut self, link: LinkId) {
        if self.links[link].life == self.life {
            self.take_out(link);
            self.links[link].place = Place::Nowhere;
        }
    }

    fn take_out(&mut self, link: LinkId) {
        let Place::At(shard, conn) = self.links[link].place else { return };
        self.note("closed: link, shard", [link as u64, shard as u64, 0, 0]);
        self.links[link].blocked = None;
        self.cores[shard].blocked.retain(|blocked| *blocked != link);
        self.cores[shard].slots[conn.slot as usize] = None;
        self.cores[shard].free.push(conn.slot);
        self.notice(shard, Input::Closed { conn });
    }

    pub(crate) fn up(&mut self, link: LinkId, bytes: &[u8]) {
        let it = &mut self.links[link];
        if it.life != self.life || it.place == Place::Nowhere || it.is_closing {
            return;
        }
        it.received.extend_from_slice(bytes);
        if it.blocked.is_none() {
            self.serve(link);
        }
    }

    /// Decodes and hands in what a connection has sent.
    fn serve(&mut self, link: LinkId) {
        let received = std::mem::take(&mut self.links[link].received);
        let mut used = 0;
        while let Place::At(shard, conn) = self.links[link].place
            && !self.links[link].is_closing
            && let Some((input, len)) = self.decode(link, conn, &received[used..])
        {
            let Some(input) = input else {
                used += len;
                continue;
            };
            match self.feed(shard, input) {
                Outcome::Taken => used += len,
                Outcome::Blocked => {
                    self.links[link].blocked = Some(self.cores[shard].brain.room_epoch());
                    self.cores[shard].blocked.push(link);
                    break;
                }
                Outcome::Move(to) => self.move_link(link, shard, usize::from(to)),
            }
        }
        self.links[link].received = received[used..].to_vec();
    }

    fn move_link(&mut self, link: LinkId, shard: usize, to: usize) {
        self.note("move: link, from, to", [link as u64, shard as u64, to as u64, 0]);
        if to == shard {
            self.violate(format!("shard {shard} moves a connection to itself"));
        }
        self.take_out(link);
        self.links[link].place = Place::Moving;
        let delay_ns = self.chance.latency(self.knobs.mesh_ns);
        self.after(delay_ns, Event::Arrive { link, to });
    }

    /// The next input and the bytes it took; no input for a preface.
    fn decode<'a>(
        &mut self,
        link: LinkId,
        conn: Conn,
        bytes: &'a [u8],
    ) -> Option<(Option<Input<'a>>, usize)> {
        match self.links[link].speaks {
            Speaks::Unknown => match sniff::sniff(bytes)? {
                Protocol::V2 => {
                    self.links[link].speaks = Speaks::V2;
                    Some((None, v2::PREFACE.len()))
                }
                Protocol::V1 => {
                    self.links[link].speaks = Speaks::V1;
                    Some((None, 0))
                }
                Protocol::Tls | Protocol::Http => {
                    self.after(1, Event::Gone { link });
                    self.links[link].is_closing = true;
                    None
                }
            },
            Speaks::V1 if bytes.is_empty() => None,
            Speaks::V1 => match v1::decode(bytes) {
                v1::Decoded::Packet(packet, len) => Some((Some(Input::V1 { conn, packet }), len)),
                v1::Decoded::Incomplete => None,
                v1::Decoded::Bad => Some((Some(Input::V1Bad { conn }), bytes.len())),
            },
            Speaks::V2 => match v2::decode_request(bytes) {
                Ok(Some((request, len))) => Some((Some(Input::V2 { conn, request }), len)),
                Ok(None) => None,
                Err(wrong) => {
                    let len = match wrong {
                        v2::Wrong::Length => bytes.len(),
                        v2::Wrong::Fields(len) | v2::Wrong::UnknownType(_, len) => len,
                    };
                    Some((Some(Input::V2Bad { conn, wrong }), len))
                }
            },
        }
    }
}
