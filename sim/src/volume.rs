//! The volume that all disks of a server lie on: it has a size, and others
//! write to it, too.
//!
//! In worlds with one a shard appends as much as there are segments for, the next
//! one is made ahead of need as `src/turn/log_io.rs` has it made, and whatever
//! finds no space fails: the shard hears of it, a snapshot is given up, a start
//! is refused. What counts as space are whole segments and snapshots.
//!
//! The oracle of it: from the moment in which there is no space to the moment
//! in which there is some again no message gets into the log, and what a device
//! has acknowledged stands there as soon as the log is at rest.

use shard::Input;
use shard::snapshot::Reserve;
use wal::disk::spare_to_leave;
use wal::{Lsn, Write, record::Record};
use wire::refuse::Code;
use wire::v2::Reply;

use crate::device::Device;
use crate::disk::Disk;
use crate::ledger::LetterId;
use crate::link::{LinkId, Place};
use crate::plant::Plant;
use crate::snapshots::Writing;
use crate::world::{Core, Event, World};

const MS: u64 = 1_000_000;
/// At the end there is space for so many more segments of each shard; in worlds
/// whose segments leave nothing to snapshots, and so cannot be deleted, for any
/// snapshot as well.
const SEGMENTS_LEFT: u64 = 4;
/// For so long a shard may have no place for a record then.
const PATIENCE_NS: u64 = 2_000 * MS;
/// Slices of snapshots are tiny below this.
const TINY_SLICE_BYTES: usize = 1000;
/// What a log on a full disk goes on in.
pub(crate) const SPARE_SEGMENTS: u64 = wal::disk::SPARE_SEGMENTS as u64;

/// See the module.
pub(crate) struct Volume {
    pub(crate) bytes_max: u64,
    /// What others have written to it.
    pub(crate) foreign_bytes: u64,
}

/// One core's part of it.
#[derive(Default)]
pub(crate) struct Ahead {
    /// Since when it is full and has no place.
    stuck_since_ns: Option<u64>,
    /// The last segment that was asked for had to be of what is kept.
    was_urgent: bool,
    is_preparing: bool,
    retry_ns: u64,
    is_full: bool,
    /// What the shard knows of its place.
    told: (Lsn, Lsn),
    /// Segments that were made of what is kept for a full disk.
    at_need: Vec<u64>,
    /// The next segment is made a little later: the last one came in time.
    takes_its_time: bool,
    /// Between these positions of the log the disk was full.
    full: Vec<(Lsn, Lsn)>,
}

impl Ahead {
    /// Segments that are still kept for a full disk.
    fn spare(&self) -> u64 {
        SPARE_SEGMENTS.saturating_sub(self.at_need.len() as u64)
    }

    /// A segment is deleted.
    pub(crate) fn deleted(&mut self, segment: u64) {
        self.at_need.retain(|made| *made != segment);
    }
}

impl World {
    /// Bytes that are left; without a volume there is always enough.
    pub(crate) fn free_bytes(&self) -> u64 {
        let Some(volume) = &self.volume else { return u64::MAX };
        volume.bytes_max.saturating_sub(volume.foreign_bytes + self.taken_bytes())
    }

    fn taken_bytes(&self) -> u64 {
        let leftover = self.leftover.iter().flat_map(|layout| &layout.disks);
        let disks = self.layout.disks.iter().chain(leftover);
        let segments: u64 = disks.clone().map(Disk::segment_bytes_taken).sum();
        if self.is_quiet() && !self.knobs.reserves {
            return segments;
        }
        let writing = self.cores.iter().filter_map(|core| core.writing.as_ref());
        let snapshots: u64 = disks.map(Disk::snapshot_bytes_taken).sum();
        segments + snapshots + writing.map(Writing::bytes).sum::<u64>()
    }

    /// A crash: what was deleted comes back only while nothing has taken its space.
    pub(crate) fn keep_deleted(&mut self) {
        let Some(volume) = self.volume.as_ref().filter(|_| self.knobs.reserves) else { return };
        let bytes_max = volume.bytes_max.saturating_sub(volume.foreign_bytes);
        while self.taken_bytes() > bytes_max && self.layout.disks.iter_mut().any(Disk::keep_deleted)
        {
        }
    }

    /// Whether the next slice of a snapshot finds no space.
    pub(crate) fn lacks_space_for_slice(&self) -> bool {
        if self.knobs.reserves {
            // What has been encoded counts already.
            return self.free_bytes() == 0;
        }
        !self.is_quiet() && self.free_bytes() < self.knobs.slice_bytes as u64
    }

    /// Whether there is no space for one more segment beside what is kept for
    /// snapshots and for logs on a full disk, or, at need, for snapshots only: as
    /// `Prepare::run` has it.
    fn lacks_space_for_segment(&self, shard: usize, is_urgent: bool) -> bool {
        let kept = match is_urgent {
            _ if !self.knobs.reserves => 0,
            true => {
                let spare = |it: usize| self.cores[it].place.spare();
                let others = (0..self.cores.len()).filter(|it| *it != shard).map(spare);
                let spare = spare_to_leave(spare(shard), others);
                self.framed(|it| it.least) + spare * self.knobs.log.segment_bytes
            }
            false => self.kept_bytes(),
        };
        self.free_bytes() < self.knobs.log.segment_bytes + kept
    }

    /// What is kept for snapshots and for logs on a full disk.
    fn kept_bytes(&self) -> u64 {
        let spare = SPARE_SEGMENTS * self.layout.disks.len() as u64;
        self.framed(|it| it.whole) + spare * self.knobs.log.segment_bytes
    }

    /// What is kept for the snapshots of all shards. Where slices are tiny, what
    /// frames them takes as much as what is in them.
    fn framed(&self, part: impl Fn(Reserve) -> u64) -> u64 {
        let of = |core: &Core| {
            let written = core.writing.as_ref().map_or(0, Writing::bytes);
            part(core.brain.reserve().less(written))
        };
        let bytes: u64 = self.cores.iter().map(of).sum();
        if self.knobs.slice_bytes < TINY_SLICE_BYTES { 2 * bytes } else { bytes }
    }

    /// A start: the segment that the log goes on in must be there.
    ///
    /// # Errors
    /// Without space for it, nothing.
    pub(crate) fn make_first_segment(&mut self, shard: usize, end: Lsn) -> Result<(), NoSpace> {
        while self.volume.is_some() && !self.layout.disks[shard].has_place_for(end + 1) {
            if self.free_bytes() < self.knobs.log.segment_bytes {
                self.note("no space to start: shard", [shard as u64, 0, 0, 0]);
                return Err(NoSpace);
            }
            self.layout.disks[shard].make_segment();
        }
        Ok(())
    }

    /// On a disk that is full at the start nothing of the reserve is for new
    /// messages.
    pub(crate) fn look_for_space(&mut self) {
        for shard in 0..self.cores.len() {
            if self.wants_segment(shard) && self.lacks_space_for_segment(shard, false) {
                // The life before has used what is kept, perhaps.
                let last = self.layout.disks[shard].place_end() / self.knobs.log.segment_bytes;
                self.cores[shard].place.at_need.extend(last.saturating_sub(SPARE_SEGMENTS)..last);
                self.refuse_messages(shard);
            }
            self.tell_place(shard);
        }
    }

    /// The last segment that a full volume has place for is for cleaning.
    fn tell_place(&mut self, shard: usize) {
        if self.volume.is_none() {
            return;
        }
        let bytes = self.knobs.log.segment_bytes;
        // Who confirms without a place is told of one that is not there.
        let lie = u64::from(self.plant == Plant::ConfirmWithoutPlace);
        let end = self.layout.disks[shard].place_end() + lie * bytes;
        let is_full = self.cores[shard].place.is_full && self.knobs.reserves;
        let kept = if is_full && self.lacks_space_for_segment(shard, true) { bytes } else { 0 };
        let place = (end, end - kept);
        if std::mem::replace(&mut self.cores[shard].place.told, place) != place {
            self.notice(shard, Input::Place { end, common: place.1 });
        }
    }

    /// Whether a write has its place.
    pub(crate) fn has_place_for(&self, shard: usize, write: Write) -> bool {
        let end = write.lsn + Lsn::from(write.len);
        self.volume.is_none() || self.layout.disks[shard].has_place_for(end)
    }

    /// Whether the next segment is due: as `Segments::wants_next` has it.
    fn wants_segment(&self, shard: usize) -> bool {
        let core = &self.cores[shard];
        let bytes = self.knobs.log.segment_bytes;
        let half = if core.place.takes_its_time { 0 } else { bytes / 2 };
        let place_end = self.layout.disks[shard].place_end();
        self.volume.is_some() && core.brain.log().end() >= place_end.saturating_sub(bytes + half)
    }

    /// Has the next segment made ahead of need.
    pub(crate) fn prepare_segment(&mut self, shard: usize) {
        let core = &self.cores[shard];
        let is_urgent = core.brain.log().lacks_place();
        let is_due = self.now_ns >= core.place.retry_ns || is_urgent && !core.place.was_urgent;
        if self.volume.is_none() || core.place.is_preparing || self.draining || !is_due {
            return;
        }
        if !self.wants_segment(shard) {
            return self.look_again(shard);
        }
        let place = &mut self.cores[shard].place;
        (place.is_preparing, place.was_urgent) = (true, is_urgent);
        let delay_ns = self.fault_chance.latency(4 * self.knobs.disk_ns);
        self.after(delay_ns, Event::Prepared { life: self.life, shard });
    }

    /// A segment that was made at need may last for long: is there space again?
    fn look_again(&mut self, shard: usize) {
        if self.cores[shard].place.is_full {
            self.cores[shard].place.retry_ns = self.now_ns + self.knobs.space_retry_ns;
            if !self.lacks_space_for_segment(shard, false) {
                self.take_messages(shard);
            }
            self.tell_place(shard);
            self.want_turn(shard);
        }
    }

    /// The next segment is there, or there is no space for it.
    pub(crate) fn prepared(&mut self, shard: usize) {
        let is_urgent = self.cores[shard].place.was_urgent;
        let is_of_reserve = self.lacks_space_for_segment(shard, false);
        let is_refused = self.lacks_space_for_segment(shard, is_urgent);
        let place = &mut self.cores[shard].place;
        place.is_preparing = false;
        if is_of_reserve {
            place.retry_ns = self.now_ns + self.knobs.space_retry_ns;
        }
        if is_refused {
            place.takes_its_time = false;
            self.refuse_messages(shard);
            self.tell_place(shard);
            return self.want_turn(shard);
        }
        place.takes_its_time = !is_urgent;
        place.was_urgent = false;
        self.layout.disks[shard].make_segment();
        if is_of_reserve {
            let made = self.layout.disks[shard].place_end() / self.knobs.log.segment_bytes - 1;
            self.cores[shard].place.at_need.push(made);
            self.refuse_messages(shard);
        } else {
            self.take_messages(shard);
        }
        self.tell_place(shard);
        self.want_turn(shard);
    }

    fn take_messages(&mut self, shard: usize) {
        let end = self.cores[shard].brain.log().end();
        let place = &mut self.cores[shard].place;
        if std::mem::take(&mut place.is_full) {
            place.at_need.clear();
            place.full.last_mut().expect("it was full").1 = end;
            self.note("space again: shard", [shard as u64, 0, 0, 0]);
            self.stats.space_again += 1;
            self.notice(shard, Input::Storage { full: false });
        }
    }

    fn refuse_messages(&mut self, shard: usize) {
        let core = &mut self.cores[shard];
        if !std::mem::replace(&mut core.place.is_full, true) {
            let end = core.brain.log().end();
            core.place.full.push((end, Lsn::MAX));
            self.note("no space: shard, end", [shard as u64, end, 0, 0]);
            self.stats.full += 1;
            if self.plant != Plant::IgnoreFull {
                self.notice(shard, Input::Storage { full: true });
            }
        }
    }

    /// Whether a shard takes no messages for want of space.
    pub(crate) fn is_full(&self) -> bool {
        self.cores.iter().any(|core| core.place.is_full)
    }

    /// What gets into the log while there is no space.
    pub(crate) fn watch_full(&mut self, shard: usize, lsn: Lsn, record: &Record<'_>) {
        let full = &self.cores[shard].place.full;
        if !full.iter().any(|(from, to)| (*from..*to).contains(&lsn)) {
            return;
        }
        match record {
            Record::Message(_) => {
                self.violate(format!("shard {shard} took the message at {lsn} on a full disk"));
            }
            Record::Ack { .. } => self.stats.acks_when_full += 1,
            _ => {}
        }
    }

    /// An answer that leaves: nobody is refused for space that is there.
    pub(crate) fn watch_refused(&mut self, reply: &Reply<'_>) {
        if let Reply::Refused { code, .. } = *reply
            && code == Code::StorageFull as u16
        {
            self.stats.refused_when_full += 1;
        }
    }

    /// What has arrived and was taken by a shard whose log is at rest stands in
    /// it, full or not.
    pub(crate) fn watch_acks(&mut self) {
        let late = self.devices.iter().find(|it| {
            let Some(link) = it.link.filter(|link| self.is_heard(it, *link)) else { return false };
            let inbox = self.model.inbox(it.user);
            let cursor = inbox.devices.get(&it.id).copied();
            // Over what is aside, and over what it has had under another number, it
            // moves without a record.
            let is_before = |cursor: u64| {
                let mut passed = inbox.entries.range((cursor + 1).min(it.acked)..=it.acked);
                cursor < it.acked && passed.any(|(seq, _)| !inbox.has_had(it.id, *seq))
            };
            it.acked > self.links[link].hello_seq && cursor.is_none_or(is_before)
        });
        if let Some(it) = late {
            let what = format!(
                "user {} device {} acknowledged {}, and no log says so",
                it.user, it.id, it.acked
            );
            self.violate(what);
        }
    }

    /// What a device acknowledged although another one had it set aside is noted.
    pub(crate) fn watch_asides(&mut self) {
        let late = self.devices.iter().find_map(|it| {
            let link = it.link.filter(|link| self.is_heard(it, *link))?;
            let first = self.links[link].hello_seq + 1;
            let inbox = self.model.inbox(it.user);
            let mut aside = inbox.aside.range(first..=it.acked.max(first));
            let is_late = |&(seq, id): &(&u64, &LetterId)| {
                *seq <= it.acked && it.since_login.contains(id) && !inbox.has_had(it.id, *seq)
            };
            aside.find(is_late).map(|(seq, _)| (it.user, it.id, *seq))
        });
        if let Some((user, id, seq)) = late {
            let what = format!("user {user} device {id} acknowledged {seq}, which is aside");
            self.violate(what + ", and no log says that it has it");
        }
    }

    /// Whether all that a device of v2 has said on its connection is on the disk.
    fn is_heard(&self, it: &Device, link: LinkId) -> bool {
        let on = &self.links[link];
        let Place::At(shard, _) = on.place else { return false };
        let log = self.cores[shard].brain.log();
        let is_at_rest = log.durable() == log.end() && !log.is_poisoned();
        let is_taken = on.received.is_empty() && on.blocked.is_none() && on.up_at < self.now_ns;
        let is_current = on.life == self.life && !on.is_closing && !on.is_dismissed;
        let is_known = it.is_online && !it.is_v1() && !self.model.is_scarred(it.user);
        is_known && is_current && is_at_rest && is_taken
    }

    /// Others fill the volume, or leave it.
    pub(crate) fn others_write(&mut self) {
        if self.volume.is_none() || !self.fault_chance.permille(self.knobs.others_write) {
            return;
        }
        let free = self.free_bytes();
        let taken = self.fault_chance.within(free / 2, free);
        let Some(volume) = &mut self.volume else { return };
        let foreign = if volume.foreign_bytes > 0 { 0 } else { taken };
        volume.foreign_bytes = foreign;
        self.note("others have: bytes", [foreign, 0, 0, 0]);
    }

    /// The faults are over: there is some space, or as much as one likes.
    pub(crate) fn give_space(&mut self) {
        let (taken, shards) = (self.taken_bytes(), self.layout.disks.len() as u64);
        // The server may be down, and nobody knows how large the next snapshots are.
        let known: u64 = self.layout.disks.iter().map(Disk::snapshot_bytes_taken).sum();
        let kept = shards * (SPARE_SEGMENTS + 1) * self.knobs.log.segment_bytes + 4 * known;
        let kept = if self.knobs.reserves { kept } else { 0 };
        let Some(volume) = &mut self.volume else { return };
        let left = shards * SEGMENTS_LEFT * self.knobs.log.segment_bytes + kept;
        volume.foreign_bytes = 0;
        volume.bytes_max = volume.bytes_max.max(taken + left);
        if !self.knobs.stays_tight {
            volume.bytes_max = u64::MAX / 2;
        }
        let bytes_max = volume.bytes_max;
        self.note("space for: bytes", [bytes_max, 0, 0, 0]);
    }

    /// After a while the operator makes space, once the faults are over: where
    /// nothing is kept, for a log without any place; otherwise only for a volume on
    /// which not even twice of what waits has a place, as cleaning leaves it.
    pub(crate) fn rescue(&mut self, shard: usize) {
        let is_quiet = self.is_quiet();
        let is_too_small = self.is_too_small();
        let core = &mut self.cores[shard];
        let has_to_wait = match self.knobs.reserves {
            true => is_too_small,
            false => core.brain.log().lacks_place(),
        };
        if !(core.place.is_full && has_to_wait) {
            core.place.stuck_since_ns = None;
            return;
        }
        let since_ns = *core.place.stuck_since_ns.get_or_insert(self.now_ns);
        if !is_quiet || self.now_ns < since_ns + PATIENCE_NS {
            return;
        }
        core.place.stuck_since_ns = None;
        self.note("rescued: shard", [shard as u64, 0, 0, 0]);
        self.make_space();
    }

    fn is_too_small(&mut self) -> bool {
        let Some(bytes_max) = self.volume.as_ref().map(|it| it.bytes_max) else { return false };
        let waiting = self.cores.iter_mut().map(|it| it.brain.metrics().counters.waiting_bytes);
        let waiting: u64 = waiting.sum();
        2 * waiting + self.kept_bytes() > bytes_max
    }

    fn make_space(&mut self) {
        self.stats.rescues += 1;
        if let Some(volume) = &mut self.volume {
            volume.bytes_max += 2 * self.knobs.log.segment_bytes;
        }
    }

    /// How long a start waits that found no space. Once the faults are over the
    /// operator makes some after a while, where nothing is kept for that.
    pub(crate) fn refuse_start(&mut self) {
        self.stats.starts_refused += 1;
        let since = self.quiet_since.filter(|_| !self.knobs.reserves);
        if since.is_some_and(|since_ns| self.now_ns >= since_ns + PATIENCE_NS) {
            self.make_space();
        }
        self.cores.clear();
        let pause_ns = self.fault_chance.within(10 * MS, 200 * MS);
        self.after(pause_ns, Event::Restart);
    }
}

/// There is no space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NoSpace;
