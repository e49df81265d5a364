//! The oracle of damage: whatever was durable and is not damaged must be served,
//! and of what is missing a repair must have said so.
//!
//! What the repair has made of the shard is believed from then on: its inboxes
//! become what earlier records said. Of the users of a repaired shard, who are
//! *scarred*, less is asked: what was acknowledged may come again, what was
//! settled may be missed. That a number which was shown never stands for another
//! letter is asked of them, too.

use std::collections::{BTreeMap, BTreeSet};

use shard::Replay;
use wal::manifest::Manifest;
use wal::record::{self, Record};
use wal::salvage::Survey;
use wal::sector::Blank;
use wal::{BLOCK, FORMAT, Lsn};

use crate::damage::Finding;
use crate::disk::Disk;
use crate::ledger::LetterId;
use crate::model::{Inbox, Model};
use crate::world::World;

impl World {
    /// Durable bytes rot while the server is down.
    pub(crate) fn decay(&mut self) {
        for shard in 0..self.layout.disks.len() {
            if self.fault_chance.permille(self.knobs.decay) {
                let disk = &mut self.layout.disks[shard];
                let Some(at) = disk.decay(&mut self.fault_chance) else { continue };
                self.note("bytes rot: shard, lsn", [shard as u64, at, 0, 0]);
                self.stats.decayed += 1;
            }
            if self.fault_chance.permille(self.knobs.decay / 8) {
                let disk = &mut self.layout.disks[shard];
                let count = disk.rot_all(&mut self.fault_chance);
                self.note("snapshots rot: shard, how many", [shard as u64, count, 0, 0]);
                self.stats.rotten += count;
            }
            if self.knobs.refuses && self.fault_chance.permille(self.knobs.decay / 2) {
                let disk = &mut self.layout.disks[shard];
                let Some(hole) = disk.refuse(&mut self.fault_chance) else { continue };
                self.note("not to be read: shard, lsn", [shard as u64, hole.start, hole.end, 0]);
                self.stats.holes += 1;
            }
        }
    }

    /// They rot while it is up: who reads there is told, and passes over it.
    pub(crate) fn decay_awake(&mut self) {
        for shard in 0..self.cores.len() {
            if !self.fault_chance.permille(self.knobs.decay_awake) {
                continue;
            }
            let Some(at) = self.layout.disks[shard].decay(&mut self.fault_chance) else { continue };
            self.note("bytes rot under the server: shard, lsn", [shard as u64, at, 0, 0]);
            self.stats.decayed += 1;
            self.scar(shard);
        }
    }

    /// A shard calls something damaged.
    pub(crate) fn watch_damaged(&mut self, shard: usize, lsn: Lsn) {
        let bytes = self.knobs.log.segment_bytes;
        let base = lsn / bytes * bytes;
        let was_read = !self.unread.contains(&(shard, lsn));
        if was_read && !self.layout.disks[shard].is_hit(base, base + bytes) {
            self.violate(format!("shard {shard} calls {lsn} damaged on a good disk"));
        }
        self.stats.told_damaged += 1;
    }

    /// Whether this need not arrive: it is damaged, or stands in an inbox beside
    /// such a one, and each device that waits for it has it.
    pub(crate) fn is_beside_damage(&self, user: u16, seq: u64, id: LetterId) -> bool {
        if self.is_damaged(user, seq) {
            return true;
        }
        let inbox = self.model.inbox(user);
        let has = |device: &u64| self.has_seen(user, *device, id);
        let mut due = inbox.devices.keys().filter(|device| inbox.is_due(**device, seq));
        inbox.kept().any(|(seq, _)| self.is_damaged(user, seq)) && due.all(has)
    }

    fn has_seen(&self, user: u16, device: u64, id: LetterId) -> bool {
        let mut devices = self.devices.iter().filter(|it| it.user == user);
        devices.any(|it| it.id == device && it.seen.contains(&id))
    }

    /// Whether this user's v1 client has acknowledged this, heard or not; it moves no
    /// cursor.
    fn lets_go(&self, user: u16, id: LetterId) -> bool {
        let mut v1 = self.devices.iter().filter(|it| it.user == user && it.id == 0);
        v1.any(|it| it.let_go.contains(&id))
    }

    /// Whether only a v1 client is still to get this, and has let go of it: a repair
    /// may have believed a torn acknowledgement, which no cursor shows.
    pub(crate) fn is_let_go(&self, user: u16, seq: u64, id: LetterId) -> bool {
        let inbox = self.model.inbox(user);
        let due = inbox.devices.keys().filter(|device| inbox.is_due(**device, seq));
        let is_v1 = due.eq([&0]);
        is_v1 && self.model.is_scarred(user) && self.lets_go(user, id)
    }

    /// The first letter that waits and lies nowhere.
    pub(crate) fn waits_nowhere(&self) -> Option<LetterId> {
        let mut nowhere = self.model.nowhere();
        let lost = nowhere.find(|(user, seq, id)| !self.is_let_go(*user, *seq, *id));
        lost.map(|(.., letter)| letter)
    }

    /// Whether the newest copy of this can be read no more.
    pub(crate) fn is_damaged(&self, user: u16, seq: u64) -> bool {
        let owner = self.hasher.key(self.names[usize::from(user)].as_bytes());
        let disk = &self.layout.disks[usize::from(owner.owner(self.layout.shards))];
        let place = self.model.inbox(user).place(seq);
        place.is_some_and(|(from, to)| disk.is_hit(from, to))
    }

    /// A bit of the manifest flips: it is refused with words, or says what it
    /// said, and its copy is whole.
    ///
    /// # Errors
    /// When it says something else.
    pub(crate) fn rot_manifest(&mut self) -> Result<(), String> {
        let is = Manifest {
            format: FORMAT,
            shards: self.layout.shards,
            seed: self.seed,
            salts: self.layout.salts.clone(),
            segment_bytes: self.knobs.log.segment_bytes,
            generation: self.layout.generation,
        };
        let copy = is.encode();
        let mut bytes = copy.clone().into_bytes();
        let at = self.fault_chance.below(bytes.len() as u64) as usize;
        bytes[at] ^= 1 << self.fault_chance.below(8);
        self.stats.manifests_rotten += 1;
        self.note("manifest rots: at", [at as u64, 0, 0, 0]);
        let Ok(text) = String::from_utf8(bytes) else { return Ok(()) };
        match Manifest::decode(&text) {
            Ok(other) if other != is => Err(format!("a rotten manifest passes: {other:?}")),
            Err(why) if why.to_string().is_empty() => Err("a manifest refused wordlessly".into()),
            _ if Manifest::decode(&copy).is_ok_and(|copy| copy == is) => Ok(()),
            _ => Err("the manifest's copy cannot be read".into()),
        }
    }

    /// What the durable records of a shard say, and what all of them say.
    fn said(&self, shard: usize) -> Result<[Model; 2], String> {
        let durable = self.layout.disks[shard].durable();
        let mut said = [self.model.forgotten(), self.model.forgotten()];
        for (end, bytes) in self.layout.histories[shard].records() {
            let record = record::decode(bytes).map_err(|why| why.to_string())?;
            if end <= durable {
                said[0].take(shard, end, &record, &self.ledger)?;
            }
            said[1].take(shard, end, &record, &self.ledger)?;
        }
        Ok(said)
    }

    pub(crate) fn is_owned(&self, user: usize, shard: usize) -> bool {
        let key = self.hasher.key(self.names[user].as_bytes());
        usize::from(key.owner(self.layout.shards)) == shard
    }

    /// Compares what is left of a shard with what had been durable.
    ///
    /// # Errors
    /// Something is missing that is not damaged, or that nobody speaks of.
    pub(crate) fn judge_finding(&mut self, shard: usize, finding: &Finding) -> Result<(), String> {
        self.check_cut(shard, finding.end)?;
        let (disk, salt) = (&self.layout.disks[shard], self.layout.salts[shard]);
        let placed = finding.salvage.waiting();
        let bodies = placed.iter().filter_map(|it| finding.read(disk, salt, it));
        let kept: BTreeSet<LetterId> = bodies.filter_map(|body| self.ledger.find(body)).collect();
        let spoken_of: BTreeSet<Vec<u8>> =
            finding.salvage.missing().map(|(name, _)| name.to_vec()).collect();
        let [durable, all] = self.said(shard)?;
        let mut excused = Vec::new();
        for user in (0..self.names.len()).filter(|user| self.is_owned(*user, shard)) {
            let (inbox, later) = (durable.inbox(user as u16), all.inbox(user as u16));
            for (seq, id) in waiting_for_good(inbox, later) {
                if kept.contains(&id) || self.ledger.get(id).excused {
                    continue;
                }
                let name = self.names[user].as_bytes();
                let left =
                    finding.salvage.inbox(name).map(|inbox| inbox.devices).unwrap_or_default();
                if !is_awaited(later, &left, seq, finding.keeps_registrations()) {
                    excused.push(id);
                    continue;
                }
                // What a crash tore of an acknowledgement's commit a hole may hide, so that
                // it counts again: said by somebody who has the letter.
                let due = || left.iter().filter(|(device, _)| later.waits_for(*device, seq));
                let has = |(device, cursor): &(u64, u64)| {
                    let has_it = *cursor >= seq && self.has_seen(user as u16, *device, id);
                    has_it || *device == 0 && self.lets_go(user as u16, id)
                };
                let is_torn = disk.has_holes() && !finding.lost.is_empty();
                if is_torn && due().next().is_some() && due().all(has) {
                    excused.push(id);
                    continue;
                }
                let Some((from, to)) = inbox.place(seq) else { continue };
                let is_cut = to > finding.end;
                let is_lost = finding.lost.iter().any(|(lost, end)| *lost < to && from < *end);
                let is_doubtful = is_lost && disk.has_holes() && !is_vouched_for(disk, salt, from);
                let is_hit = disk.is_hit(from, to) || is_cut || is_doubtful;
                // What rotted there is taken for a torn tail, but not what could not be read.
                let bytes = self.knobs.log.segment_bytes;
                let is_unread = disk.is_in_hole(from, to) && finding.end / bytes == from / bytes;
                let is_told = is_cut && !is_unread
                    || finding.lost_before.is_some_and(|lsn| from < lsn)
                    || is_lost
                    || spoken_of.contains(self.names[user].as_bytes());
                if !is_hit && self.ledger.get(id).expiry_s == 0 {
                    return Err(format!(
                        "letter {id} (inbox seq {seq}, {from}..{to} of shard {shard}) is not damaged \
                         and a repair does not find it; devices {:?}, left {left:?}, acked {:?}",
                        inbox.devices, inbox.acked_by_v1
                    ));
                }
                if !is_told && self.ledger.get(id).expiry_s == 0 {
                    return Err(format!(
                        "letter {id} ({from}..{to} of shard {shard}) is damaged and a repair does \
                         not speak of it"
                    ));
                }
                excused.push(id);
            }
        }
        excused.extend(self.passed_over(shard, finding, &kept));
        self.excuse(excused);
        if finding.end < self.layout.disks[shard].durable() {
            self.forget_shown(shard, finding.end)?;
        }
        Ok(())
    }

    /// What no log has, with a number in front of what is kept of the same sender:
    /// that is taken for stored, as it may have been where something is lost.
    fn passed_over(
        &self,
        shard: usize,
        finding: &Finding,
        kept: &BTreeSet<LetterId>,
    ) -> Vec<LetterId> {
        if finding.lost.is_empty() || !self.layout.disks[shard].has_holes() {
            return Vec::new();
        }
        let mut passed = Vec::new();
        for it in &self.devices {
            for (to, outbox) in &it.outboxes {
                let is_of_pair = |id: &LetterId| {
                    let letter = self.ledger.get(*id);
                    (letter.from, letter.device, letter.to) == (it.user, it.id, *to)
                };
                let of_pair = kept.iter().filter(|id| is_of_pair(id));
                let last = of_pair.map(|id| self.ledger.get(*id).seq).max().unwrap_or(0);
                let lost = |(seq, id): &&(u64, LetterId)| {
                    *seq < last && !kept.contains(id) && self.model.letter(*id).is_none()
                };
                passed.extend(outbox.unsettled.iter().filter(lost).map(|(_, id)| *id));
            }
        }
        passed
    }

    /// Nobody knows how many numbers were in what was cut as a torn end.
    fn forget_shown(&mut self, shard: usize, end: Lsn) -> Result<(), String> {
        let mut left = self.model.forgotten();
        for (at, bytes) in self.layout.histories[shard].records().filter(|(at, _)| *at <= end) {
            let record = record::decode(bytes).map_err(|why| why.to_string())?;
            left.take(shard, at, &record, &self.ledger)?;
        }
        for user in 0..self.names.len() as u16 {
            let last = left.inbox(user).last;
            if self.is_owned(user.into(), shard) {
                self.shown.retain(|(of, seq), _| *of != user || *seq <= last);
            }
        }
        Ok(())
    }

    fn excuse(&mut self, letters: Vec<LetterId>) {
        for id in letters {
            let letter = self.ledger.get_mut(id);
            self.stats.excused += u64::from(!letter.excused);
            letter.excused = true;
        }
    }

    /// A start that is not refused has cut the log's end where it rotted.
    ///
    /// # Errors
    /// When something vouched for what it has cut.
    pub(crate) fn accept_cut(&mut self, shard: usize, end: Lsn) -> Result<(), String> {
        let durable = self.layout.disks[shard].durable();
        if end >= durable {
            return Ok(());
        }
        self.check_cut(shard, end)?;
        self.stats.cut_by_rot += 1;
        self.note("cut by rot: shard, end, durable", [shard as u64, end, durable, 0]);
        let [_, all] = self.said(shard)?;
        let here = all.letters().filter(|(_, it)| it.shard == Some(shard) && it.end > end);
        self.excuse(here.map(|(id, _)| id).collect());
        self.forget_shown(shard, end)?;
        self.scar(shard);
        self.layout.disks[shard].recovered(end);
        Ok(())
    }

    /// Only what rotted is cut, and what no later commit vouches for; where a torn
    /// write leaves zeroes, only what has become zeroes, and where it leaves a pattern
    /// nothing.
    fn check_cut(&self, shard: usize, end: Lsn) -> Result<(), String> {
        let (disk, salt) = (&self.layout.disks[shard], self.layout.salts[shard]);
        let durable = disk.durable();
        // A repair that died has written over what rotted, and must set more aside.
        if disk.half_mended.as_ref().is_some_and(|it| it.start <= end) {
            return Ok(());
        }
        // A snapshot may vouch for half a commit.
        let commit = end / BLOCK as Lsn * BLOCK as Lsn;
        // Behind a hole zeroes say nothing, not even that a commit goes on in them.
        let is_silent = disk.is_in_hole(end.saturating_sub(1), end)
            && disk
                .record_there(end, (durable.saturating_sub(end)) as u32)
                .is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0));
        if end < durable && !disk.is_hit(commit, durable) && !is_silent {
            return Err(format!("shard {shard} is cut at {end}, and nothing rotted there"));
        }
        let is_told = match disk.blank(end / self.knobs.log.segment_bytes) {
            Blank::Unknown => false,
            Blank::Zeroes => !disk.has_rotted_to_zero(commit),
            Blank::Pattern(_) => true,
        };
        if end < durable && is_told && !disk.has_holes() {
            return Err(format!("shard {shard} is cut at {end}, and no write was torn there"));
        }
        for at in (end.next_multiple_of(BLOCK as Lsn)..durable).step_by(BLOCK) {
            let bytes = disk.record_there(at, (durable - at).min(BLOCK as u64) as u32);
            let mut said = Survey::new(salt, 0);
            said.segment(at, bytes.unwrap_or_default());
            if said.durable > end {
                return Err(format!(
                    "shard {shard} is cut at {end}, and the commit at {at} vouches for more"
                ));
            }
        }
        Ok(())
    }

    fn scar(&mut self, shard: usize) {
        let users = (0..self.names.len()).filter(|user| self.is_owned(*user, shard));
        let users: Vec<u16> = users.map(|user| user as u16).collect();
        self.model.scar(&users);
    }

    /// Believes what a repaired shard says.
    ///
    /// # Errors
    /// What nobody can have written.
    pub(crate) fn adopt(&mut self, shard: usize, replay: &Replay) -> Result<(), String> {
        let (disk, salt) = (&self.layout.disks[shard], self.layout.salts[shard]);
        let [_, all] = self.said(shard)?;
        let mut adopted = BTreeMap::new();
        let mut waiting = BTreeSet::new();
        for user in (0..self.names.len()).filter(|user| self.is_owned(*user, shard)) {
            let name = self.names[user].as_bytes();
            let was = all.inbox(user as u16);
            let mut inbox = Inbox::default();
            if let Some(is) = replay.inbox(name) {
                inbox.last = is.last_seq;
                for (device, cursor) in is.devices {
                    let began = was.began.get(&device).copied().unwrap_or(cursor);
                    inbox.devices.insert(device, cursor);
                    inbox.began.insert(device, began);
                }
                for it in is.waiting {
                    let bytes = disk.record_there(it.lsn, it.len);
                    let record = bytes.and_then(|b| record::verify(b, salt, it.lsn).ok());
                    let Some(message) = record.as_ref().and_then(Record::message) else {
                        return Err(format!("what waits at {} is no message", it.lsn));
                    };
                    let id = self.ledger.find(message.body).ok_or("a body that nobody wrote")?;
                    let (seq, end) = (it.inbox_seq, it.lsn + Lsn::from(it.len));
                    if it.is_aside {
                        inbox.put_aside(seq, id, it.lsn, end);
                    } else {
                        inbox.put(seq, id, it.lsn, end);
                    }
                    waiting.insert(id);
                }
                // If one of these is lost, that letter comes again and nobody minds.
                inbox.acked_by_v1 = was.acked_by_v1.clone();
                inbox.keep_asides_of(was);
            }
            adopted.insert(user as u16, inbox);
        }
        let lost: Vec<LetterId> = self.model.adopt(&adopted, &waiting, &all);
        self.excuse(lost);
        self.scar(shard);
        Ok(())
    }
}

/// Whether a commit that can be read says that this position was durable. Beside
/// what cannot be read nothing else tells it from a torn tail.
fn is_vouched_for(disk: &Disk, salt: u64, lsn: Lsn) -> bool {
    let block = BLOCK as Lsn;
    (lsn.next_multiple_of(block)..disk.durable()).step_by(BLOCK).any(|at| {
        let mut said = Survey::new(salt, 0);
        said.segment(at, disk.record_there(at, BLOCK as u32).unwrap_or_default());
        said.durable > lsn
    })
}

/// Whether somebody who is known has still to get this. Where registrations may
/// be lost, a device is known from its first acknowledgement on, and what others
/// have acknowledged until then is gone.
fn is_awaited(inbox: &Inbox, left: &[(u64, u64)], seq: u64, keeps_registrations: bool) -> bool {
    if !keeps_registrations {
        return inbox.devices.keys().all(|device| inbox.is_due(*device, seq));
    }
    let is_left = |device: u64| left.iter().any(|(id, _)| *id == device);
    let mut due = inbox.devices.keys().filter(|device| inbox.is_due(**device, seq));
    inbox.devices.is_empty() || due.any(|device| is_left(*device))
}

/// What waits whatever became of the records that were not durable.
fn waiting_for_good(durable: &Inbox, all: &Inbox) -> Vec<(u64, LetterId)> {
    let later: BTreeSet<u64> = all.waiting().map(|(seq, _)| seq).collect();
    durable.waiting().filter(|(seq, _)| later.contains(seq)).collect()
}
