//! The volume that all disks of a server lie on: it has a size, and others
//! write to it, too.
//!
//! In worlds with one a commit waits until its segment is there, a segment is
//! made ahead of need as `src/turn/log_io.rs` has it made, and whatever finds no
//! space fails: the shard hears of it, a snapshot is given up, a start is
//! refused. What counts as space are whole segments and snapshots.
//!
//! The oracle of it: from the moment in which there is no space to the moment
//! in which there is some again no message gets into the log, and what a device
//! has acknowledged stands there as soon as the log is at rest.

use shard::Input;
use wal::{Lsn, Write, record::Record};
use wire::refuse::Code;
use wire::v2::Reply;

use crate::device::Device;
use crate::disk::Disk;
use crate::ledger::LetterId;
use crate::link::{LinkId, Place};
use crate::plant::Plant;
use crate::snapshots::Writing;
use crate::world::{Event, World};

const MS: u64 = 1_000_000;
/// At the end there is space for so many more segments of each shard; in worlds
/// whose segments leave nothing to snapshots, and so cannot be deleted, for any
/// snapshot as well.
const SEGMENTS_LEFT: u64 = 4;
/// For so long a commit may wait for its segment then.
const PATIENCE_NS: u64 = 2_000 * MS;

/// See the module.
pub(crate) struct Volume {
    pub(crate) bytes_max: u64,
    /// What others have written to it.
    pub(crate) foreign_bytes: u64,
}

/// One core's part of it.
#[derive(Default)]
pub(crate) struct Ahead {
    /// Commits whose segment is not there yet.
    held: std::collections::VecDeque<(u64, Write, Vec<u8>)>,
    /// Since when there are any.
    held_since_ns: Option<u64>,
    is_preparing: bool,
    retry_ns: u64,
    is_full: bool,
    /// A commit had no other place than a segment that took what was left for
    /// snapshots, or a crash brought back what was deleted, and there has been no
    /// space since.
    is_in_reserve: bool,
    /// Since when no snapshot has found space although the faults are over.
    unsaved_since_ns: Option<u64>,
    /// The next segment is made a little later: the last one came in time.
    takes_its_time: bool,
    /// Between these positions of the log the disk was full.
    full: Vec<(Lsn, Lsn)>,
}

impl Ahead {
    /// Whether a commit waits for its segment.
    pub(crate) fn is_held(&self) -> bool {
        !self.held.is_empty()
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

    /// Whether there is no space for one more segment beside what is left for
    /// snapshots: as `Prepare::run` has it.
    fn lacks_space_for_segment(&self) -> bool {
        let reserve = if self.knobs.reserves { self.reserve_bytes() } else { 0 };
        self.free_bytes() < self.knobs.log.segment_bytes + reserve
    }

    fn reserve_bytes(&self) -> u64 {
        self.cores.iter().map(|core| core.brain.reserve_bytes()).sum()
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
            if self.wants_segment(shard) && self.lacks_space_for_segment() {
                self.refuse_messages(shard);
            }
            // As the life before left it.
            self.cores[shard].place.is_in_reserve = self.free_bytes() < self.reserve_bytes() / 2;
        }
    }

    /// A commit goes to the disk, or waits for its segment.
    pub(crate) fn hold(&mut self, shard: usize, id: u64, write: Write, bytes: Vec<u8>) {
        self.cores[shard].place.held.push_back((id, write, bytes));
    }

    /// Hands out the commits that have a place.
    pub(crate) fn release_held(&mut self, shard: usize) {
        while let Some((id, write, bytes)) = self.cores[shard].place.held.pop_front() {
            let end = write.lsn + Lsn::from(write.len);
            if self.volume.is_none() || self.layout.disks[shard].has_place_for(end) {
                self.submit(shard, id, write, &bytes);
            } else if self.plant == Plant::ConfirmWithoutPlace {
                self.notice(shard, Input::Written { lsn: write.lsn, ok: true });
            } else {
                self.stats.held += 1;
                self.cores[shard].place.held.push_front((id, write, bytes));
                break;
            }
        }
        self.prepare_segment(shard);
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
        let place = &self.cores[shard].place;
        let is_needed = !self.draining || place.is_held();
        if place.is_preparing || self.now_ns < place.retry_ns || !is_needed {
            return;
        }
        if self.wants_segment(shard) {
            self.cores[shard].place.is_preparing = true;
            let delay_ns = self.fault_chance.latency(4 * self.knobs.disk_ns);
            self.after(delay_ns, Event::Prepared { life: self.life, shard });
        }
    }

    /// The next segment is there, or there is no space for it.
    pub(crate) fn prepared(&mut self, shard: usize) {
        self.cores[shard].place.is_preparing = false;
        let is_of_reserve = self.lacks_space_for_segment();
        let is_urgent = self.cores[shard].place.is_held();
        let has_any = self.free_bytes() >= self.knobs.log.segment_bytes;
        if is_of_reserve && !(is_urgent && has_any) {
            let place = &mut self.cores[shard].place;
            place.retry_ns = self.now_ns + self.knobs.space_retry_ns;
            place.takes_its_time = false;
            return self.refuse_messages(shard);
        }
        self.layout.disks[shard].make_segment();
        let place = &mut self.cores[shard].place;
        place.takes_its_time = !is_urgent;
        place.is_in_reserve = is_of_reserve;
        if is_of_reserve {
            place.retry_ns = self.now_ns + self.knobs.space_retry_ns;
            self.refuse_messages(shard);
        } else {
            self.take_messages(shard);
        }
        self.want_turn(shard);
    }

    fn take_messages(&mut self, shard: usize) {
        let end = self.cores[shard].brain.log().end();
        let place = &mut self.cores[shard].place;
        if std::mem::take(&mut place.is_full) {
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
        let Some(volume) = &mut self.volume else { return };
        let left = shards * SEGMENTS_LEFT * self.knobs.log.segment_bytes;
        volume.foreign_bytes = 0;
        volume.bytes_max = volume.bytes_max.max(taken + left);
        if !self.knobs.stays_tight {
            volume.bytes_max = u64::MAX / 2;
        }
        let bytes_max = volume.bytes_max;
        self.note("space for: bytes", [bytes_max, 0, 0, 0]);
    }

    /// A log whose reserve is used up cannot go on by itself: after a while the
    /// operator makes space, once the faults are over.
    pub(crate) fn rescue(&mut self, shard: usize) {
        let place = &mut self.cores[shard].place;
        if place.held.is_empty() {
            place.held_since_ns = None;
            return;
        }
        let since_ns = *place.held_since_ns.get_or_insert(self.now_ns);
        if !self.is_quiet() || self.now_ns < since_ns + PATIENCE_NS {
            return;
        }
        self.cores[shard].place.held_since_ns = None;
        self.note("rescued: shard", [shard as u64, 0, 0, 0]);
        self.make_space();
    }

    /// So it is when a snapshot finds no space, and not for the first time, while the
    /// reserve is used up: in these worlds three commits fill a segment, and a shard
    /// looks whether a snapshot is due ten times a second. A snapshot without space
    /// beside an untouched reserve is no excuse.
    pub(crate) fn rescue_snapshots(&mut self, shard: usize) {
        let is_used_up = self.cores.iter().any(|core| core.place.is_in_reserve);
        if !self.is_quiet() || !is_used_up || !self.knobs.reserves {
            return;
        }
        let place = &mut self.cores[shard].place;
        let since_ns = *place.unsaved_since_ns.get_or_insert(self.now_ns);
        if self.now_ns >= since_ns + PATIENCE_NS {
            place.unsaved_since_ns = None;
            self.stats.snapshots_rescued += 1;
            self.note("rescued: snapshots, shard", [shard as u64, 0, 0, 0]);
            self.make_space();
        }
    }

    /// A snapshot has found its space.
    pub(crate) fn snapshot_is_saved(&mut self, shard: usize) {
        self.cores[shard].place.unsaved_since_ns = None;
    }

    fn make_space(&mut self) {
        self.stats.rescues += 1;
        if let Some(volume) = &mut self.volume {
            volume.bytes_max += 2 * self.knobs.log.segment_bytes;
        }
    }

    /// How long a start waits that found no space. Once the faults are over the
    /// operator makes some after a while.
    pub(crate) fn refuse_start(&mut self) {
        self.stats.starts_refused += 1;
        if self.quiet_since.is_some_and(|since_ns| self.now_ns >= since_ns + PATIENCE_NS) {
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
