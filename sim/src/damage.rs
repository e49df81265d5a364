//! What an operator does about a disk on which durable bytes have rotted, before
//! the server starts: what `iris-shard repair` does in production, here on
//! simulated disks, with the same parts of `wal` and `shard`.
//!
//! First a start is tried: it must refuse, or lose nothing but what rotted at
//! the log's end, where no later commit vouches for it. Then whatever is left is
//! read; the oracle (`verdict`) compares that with what had been durable. What
//! is to be kept is copied, snapshots are taken, the rest is moved aside, and the
//! repair may be interrupted before each of these.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use shard::{Placed, Replay, Salvage, Shard, Slice};
use wal::clean::Walker;
use wal::record::{self, Record};
use wal::recover::Scanner;
use wal::salvage::{Piece, Rescue, Salvage as LogSalvage, Survey, fresh_segment};
use wal::sector::SECTOR;
use wal::snapshot::{Kind, Writer};
use wal::{BLOCK, Log, LogOptions, LogStart, Lsn, Restore};
use wire::id::ShardId;

use crate::chance::Chance;
use crate::disk::{Disk, HalfMended};
use crate::history::{History, records_of};
use crate::plant::Plant;
use crate::snapshots::{feed, verify};
use crate::world::World;

/// What is left of a shard.
pub(crate) struct Finding {
    pub(crate) salvage: Salvage,
    /// Ranges that are told to be lost.
    pub(crate) lost: Vec<(Lsn, Lsn)>,
    /// Messages that waited and cannot be read.
    pub(crate) given_up: u64,
    /// Segments that should be there.
    missing: Vec<u64>,
    /// Segments that are given up.
    pub(crate) aside: BTreeSet<u64>,
    is_flawed: bool,
    /// Where the log ends.
    pub(crate) end: Lsn,
    /// Where it can go on.
    pub(crate) fresh: LogStart,
    /// Where the snapshot begins that was read.
    pub(crate) snapshot: Option<Lsn>,
    /// Without a snapshot nothing is known of what stood before this position.
    pub(crate) lost_before: Option<Lsn>,
    /// A snapshot was read, or the log is complete without.
    has_state: bool,
}

impl World {
    /// Sees to the shards whose disks have rotted. Whether the repair came to
    /// its end; otherwise somebody begins it again.
    ///
    /// # Errors
    /// A promise that was broken.
    pub(crate) fn see_to_damage(&mut self) -> Result<bool, String> {
        if self.fault_chance.permille(self.knobs.decay) {
            self.rot_manifest()?;
        }
        for shard in 0..self.layout.disks.len() {
            let disk = &self.layout.disks[shard];
            let is_suspect = disk.has_rotted() || disk.tells_torn() && disk.has_garbage();
            if !is_suspect {
                continue;
            }
            let refusal = self.try_start(shard);
            let finding = self.look(shard);
            self.keep_wreck(shard, &finding);
            let is_healthy = finding.is_healthy() || self.plant == Plant::CutDamage;
            if let Ok(end) = refusal
                && is_healthy
            {
                match self.layout.disks[shard].half_mended.take() {
                    // Only old files were not moved aside.
                    Some(it) => self.end_repair(shard, it.start, &it.records)?,
                    None => self.accept_cut(shard, end)?,
                }
                continue;
            }
            if let Err(words) = &refusal {
                self.stats.refused_for_damage += 1;
                if words.is_empty() {
                    return Err(format!("shard {shard} refuses to start without a word"));
                }
            }
            self.judge_finding(shard, &finding)?;
            if !self.mend(shard, finding)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads a shard back as a start does, and changes nothing; where its log
    /// ends, or why the start is refused.
    fn try_start(&self, shard: usize) -> Result<Lsn, String> {
        let mut replay = self.empty_replay(shard);
        self.read_as_start(shard, &mut replay).map(|start| start.lsn)
    }

    pub(crate) fn empty_replay(&self, shard: usize) -> Replay {
        let options = self.options(shard, self.layout.shards);
        Replay::new(options, self.hasher, self.knobs.log.segment_bytes)
    }

    fn read_as_start(&self, shard: usize, replay: &mut Replay) -> Result<LogStart, String> {
        let disk = &self.layout.disks[shard];
        let loaded = self.newest_whole(shard, replay);
        if loaded.is_none() && disk.needs_snapshot() {
            return Err("no snapshot can be read that says who waits for what".into());
        }
        let named = disk.snapshots.last().map_or(0, |it| it.start);
        let (from, vouched) = loaded.unwrap_or((LogStart::fresh(self.layout.salts[shard]), 0));
        let vouched = vouched.max(named);
        let mut scanner = Scanner::resume(from, vouched, self.knobs.log);
        for (index, base, bytes) in disk.segments(from.lsn) {
            if disk.lacks(index) {
                return Err(format!("segment {index} is missing"));
            }
            if let Some(hole) = disk.holes_in(index).first() {
                return Err(format!("segment {index} cannot be read at {}", hole.start));
            }
            scanner.blank(disk.blank(index));
            let taken = scanner.segment(base, bytes, &mut |lsn, len, record| {
                replay.record(lsn, len, &record);
            });
            match taken {
                Ok(()) => {}
                Err(damage) if self.plant == Plant::CutDamage => {
                    return Ok(LogStart { lsn: damage.lsn, ..from });
                }
                Err(damage) => return Err(damage.to_string()),
            }
        }
        let (start, _) = scanner.finish().map_err(|damage| damage.to_string())?;
        match replay.needed().into_iter().find(|(index, ..)| disk.lacks(*index)) {
            Some((index, ..)) => Err(format!("messages wait in segment {index}, it is missing")),
            None if replay.contradictions() > 0 => Err("the log contradicts itself".into()),
            None => Ok(start),
        }
    }

    /// Feeds the newest snapshot that can be used; where its replay begins, and
    /// how far the log was durable.
    pub(crate) fn newest_whole(
        &self,
        shard: usize,
        into: &mut dyn Restore,
    ) -> Option<(LogStart, Lsn)> {
        let salt = self.layout.salts[shard];
        for it in self.layout.disks[shard].snapshots.iter().rev() {
            into.reset();
            if let Ok((start, end)) = verify(shard, salt, &it.bytes)
                && feed(shard, salt, &it.bytes, into).is_ok()
            {
                into.loaded(start, end);
                return Some((start, end));
            }
        }
        into.reset();
        None
    }

    /// Reads whatever is left. Changes nothing.
    pub(crate) fn look(&self, shard: usize) -> Finding {
        let segment_bytes = self.knobs.log.segment_bytes;
        let (disk, salt) = (&self.layout.disks[shard], self.layout.salts[shard]);
        let options = self.options(shard, self.layout.shards);
        let mut salvage = Salvage::new(options, self.hasher, segment_bytes);
        let loaded = self.newest_whole(shard, &mut salvage);
        let named = disk.snapshots.last().map_or(0, |it| it.start);
        let vouched = loaded.map_or(0, |(_, end)| end).max(named);
        let present = disk.written_segments();
        let first = present.first().copied().unwrap_or(0);
        let begin = LogStart { lsn: first * segment_bytes, ..LogStart::fresh(salt) };
        let start = loaded.map_or(begin, |(start, _)| start);
        let is_exact = loaded.is_some() || start.lsn == 0;
        let lost_before = (loaded.is_none() && start.lsn > 0).then_some(start.lsn);
        if let Some(lsn) = lost_before {
            salvage.lost(lsn, None);
        }
        let mut survey = Survey::new(salt, vouched);
        for index in present.iter().filter(|index| **index >= start.lsn / segment_bytes) {
            survey.segment(index * segment_bytes, &disk.whole_segment(*index));
        }
        let mut finding = Finding {
            salvage,
            lost: Vec::new(),
            given_up: 0,
            missing: Vec::new(),
            aside: BTreeSet::new(),
            is_flawed: false,
            end: start.lsn,
            fresh: start,
            snapshot: loaded.map(|(start, _)| start.lsn),
            lost_before,
            has_state: loaded.is_some() || start.lsn == 0 && !disk.needs_snapshot(),
        };
        let mut log = LogSalvage::new(start, is_exact, segment_bytes, &survey);
        self.read_pieces(disk, &survey, &mut log, &mut finding);
        finding.look_at_each(disk, salt, segment_bytes, log.end().lsn);
        finding.go_on(&present, &survey, log.end(), segment_bytes);
        let needed = finding.salvage.needed().into_iter().map(|(index, ..)| index);
        finding.missing.extend(needed.filter(|index| disk.lacks(*index)));
        finding.give_up_unreadable(disk, salt);
        finding
    }

    fn read_pieces(
        &self,
        disk: &Disk,
        survey: &Survey,
        log: &mut LogSalvage,
        finding: &mut Finding,
    ) {
        let segment_bytes = self.knobs.log.segment_bytes;
        let skips = self.plant == Plant::SkipBesideDamage;
        let mut was_lost = false;
        let present = disk.written_segments();
        let newest = present.last().copied().unwrap_or(0);
        let first = log.end().lsn / segment_bytes;
        let last = fresh_segment(survey, log.end().lsn, segment_bytes).max(newest);
        for index in first..last.max(first) + 1 {
            let base = index * segment_bytes;
            let is_there = present.binary_search(&index).is_ok();
            if index == last && !is_there {
                break;
            }
            let was_made = !is_there && index < newest;
            if !is_there && (base < survey.durable || was_made) {
                finding.missing.push(index);
            }
            let Finding { salvage, lost, aside, .. } = finding;
            let mut sink = |piece: Piece<'_>| match piece {
                Piece::Record { .. } if skips && std::mem::take(&mut was_lost) => {}
                Piece::Record { lsn, len, record } => salvage.record(lsn, len, &record),
                Piece::Lost { from, to, likely } => {
                    was_lost = true;
                    salvage.lost(to - from, likely.as_ref());
                    lost.push((from, to));
                    aside.insert(from / segment_bytes);
                }
            };
            log.blank(disk.blank(index));
            if was_made {
                log.missing(base, &mut sink);
            } else if !log.is_over() {
                let bytes = if is_there { disk.whole_segment(index) } else { Vec::new() };
                let holes = if is_there { disk.holes_in(index) } else { Vec::new() };
                log.segment(base, &bytes, &holes, &mut sink);
            }
        }
    }

    /// Makes the shard whole again; whether nothing came in between.
    fn mend(&mut self, shard: usize, mut finding: Finding) -> Result<bool, String> {
        self.stats.repairs += 1;
        self.stats.lost_ranges += finding.lost.len() as u64;
        self.note(
            "repair: shard, lost ranges, given up",
            [shard as u64, finding.lost.len() as u64, finding.given_up, finding.fresh.lsn],
        );
        let dies_at = self.fault_chance.below(12); // mostly at no step
        let is_empty = finding.snapshot.is_none() && finding.salvage.contents().users == 0;
        let has_lost_begin = finding.lost.first().is_some_and(|(from, _)| *from < BLOCK as Lsn);
        let has_forgotten =
            !finding.has_state || is_empty || finding.snapshot.is_none() && has_lost_begin;
        finding.fresh.hlc_ms = finding.fresh.hlc_ms.max(finding.salvage.hlc_ms());
        if has_forgotten {
            self.stats.forgotten += 1;
            finding.fresh.hlc_ms = finding.fresh.hlc_ms.max(self.now().wall_ms);
            finding.salvage.forget(finding.fresh.hlc_ms);
        }
        let goes_on = finding.fresh.lsn == finding.end;
        let tears =
            Tears { permille: self.knobs.repair_tears, goes_on, chance: &mut self.fault_chance };
        let mut repair = Repair::new(finding.fresh, finding.end, self.knobs.log, tears);
        let disk = &mut self.layout.disks[shard];
        disk.blank_behind(finding.fresh.lsn);
        let (segment_bytes, salt) = (self.knobs.log.segment_bytes, self.layout.salts[shard]);
        let copied = copy_waiting(disk, salt, segment_bytes, &mut finding, &mut repair)?;
        let records = repair.records;
        self.stats.torn_repairs += u64::from(copied.is_none());
        // See `Tears::goes_on`; where nothing is torn they die here, too. Unless a
        // segment is gone: what it had to say is said then, and a start succeeds.
        let is_gone = self.layout.disks[shard].has_holes() || !finding.missing.is_empty();
        let is_told_twice = self.knobs.repair_tears == 0 && !is_gone;
        let Some((start, last)) = copied else { return Ok(false) };
        let disk = &mut self.layout.disks[shard];
        // Nor where a part of the torn end is left, which nobody can tell from rot
        // that is cut.
        let is_covered = disk.durable() <= last.lsn;
        if dies_at == 0 && (!goes_on || is_told_twice && is_covered) {
            return Ok(false);
        }
        let present = disk.written_segments().into_iter();
        let present: Vec<u64> = present.filter(|it| !finding.aside.contains(it)).collect();
        let log = Log::new(log_options(self.knobs.log), start);
        let Finding { salvage, aside, snapshot: used, .. } = finding;
        let mut brain = salvage.finish(&start, log, present);
        let mut starts = vec![start, last];
        starts.dedup();
        starts.retain(|start| used != Some(start.lsn));
        let first = start.lsn;
        let snapshots = take_snapshots(shard, &mut brain, &starts, self.now());
        let disk = &mut self.layout.disks[shard];
        for (n, (start, bytes)) in starts.iter().zip(snapshots).enumerate() {
            disk.snapshots.retain(|it| it.start != start.lsn);
            disk.put_snapshot(start.lsn, bytes);
            disk.half_mended = Some(HalfMended { start: first, records: records.clone() });
            if dies_at == n as u64 + 1 {
                return Ok(false);
            }
        }
        disk.snapshots.retain(|it| [start.lsn, last.lsn].contains(&it.start));
        for segment in aside {
            disk.set_aside(segment);
        }
        disk.half_mended = None;
        self.end_repair(shard, first, &records)?;
        Ok(true)
    }

    /// A start must succeed now, and what it reads is believed.
    fn end_repair(
        &mut self,
        shard: usize,
        first: Lsn,
        records: &[(Lsn, Vec<u8>)],
    ) -> Result<(), String> {
        // The server would keep older ones until it has taken two more.
        self.layout.disks[shard].snapshots.retain(|it| it.start >= first);
        let mut replay = self.empty_replay(shard);
        let end = self
            .read_as_start(shard, &mut replay)
            .map_err(|words| format!("shard {shard} was repaired and refuses to start: {words}"))?;
        self.adopt(shard, &replay)?;
        self.layout.disks[shard].mended(end.lsn);
        self.layout.histories[shard] = History::default();
        for (lsn, record) in records.iter().filter(|(lsn, _)| *lsn >= first) {
            self.layout.histories[shard].push(*lsn, record);
        }
        Ok(())
    }
}

/// Copies what waits in segments that are given up to the end of the log. `None`
/// when it died meanwhile.
fn copy_waiting(
    disk: &mut Disk,
    salt: u64,
    segment_bytes: u64,
    finding: &mut Finding,
    repair: &mut Repair<'_>,
) -> Result<Option<(LogStart, LogStart)>, String> {
    for record in finding.salvage.dropped() {
        if repair.append(disk, &record).is_none() {
            return Ok(None);
        }
    }
    let mut waiting = finding.salvage.waiting();
    waiting.retain(|it| finding.aside.contains(&(it.lsn / segment_bytes)));
    for placed in waiting {
        let bytes = disk.record(placed.lsn, placed.len).to_vec();
        let copy = record::verify(&bytes, salt, placed.lsn).ok().and_then(|it| it.copied());
        let Some((copy, message)) = copy.as_ref().and_then(|it| Some((it, it.message()?))) else {
            return Err("a message has become unreadable meanwhile".into());
        };
        let Some(lsn) = repair.append(disk, copy) else { return Ok(None) };
        finding.salvage.moved_to(&placed, lsn, message.expires_ms);
    }
    if let Some(record) = finding.salvage.floor()
        && repair.append(disk, &record).is_none()
    {
        return Ok(None);
    }
    if !repair.write(disk) {
        return Ok(None);
    }
    let start = repair.log.checkpoint();
    if let Some(record) = finding.salvage.idle()
        && (repair.append(disk, &record).is_none() || !repair.write(disk))
    {
        return Ok(None);
    }
    Ok(Some((start, repair.log.checkpoint())))
}

/// How often the power fails in the middle of a repair's write.
struct Tears<'a> {
    permille: u32,
    /// It writes where the log ends. Then only its first write is torn, and never
    /// has a beginning: a start would go on with what arrived, and the oracle does
    /// not follow it there.
    goes_on: bool,
    chance: &'a mut Chance,
}

/// What a repair writes to the log.
struct Repair<'a> {
    log: Log,
    records: Vec<(Lsn, Vec<u8>)>,
    tears: Tears<'a>,
}

impl<'a> Repair<'a> {
    fn new(start: LogStart, end: Lsn, options: LogOptions, tears: Tears<'a>) -> Repair<'a> {
        let log = Log::new(log_options(options), start).vouching_up_to(end);
        Repair { log, records: Vec::new(), tears }
    }

    /// Where it stands; `None` when the repair died.
    fn append(&mut self, disk: &mut Disk, record: &Record<'_>) -> Option<Lsn> {
        if !self.log.room(record::encoded_len(record)) && !self.write(disk) {
            return None;
        }
        Some(self.log.append(record, 0).expect("a record fits an empty log").lsn)
    }

    /// Whether it lived to see the end of it.
    fn write(&mut self, disk: &mut Disk) -> bool {
        while let Some(write) = self.log.next_write() {
            let bytes = self.log.write_bytes(&write);
            let may_tear = !self.tears.goes_on || self.records.is_empty();
            if may_tear && self.tears.chance.permille(self.tears.permille) {
                let first = usize::from(self.tears.goes_on);
                for (n, sector) in bytes.chunks(SECTOR).enumerate().skip(first) {
                    if self.tears.chance.below(2) == 0 {
                        disk.write_durably(write.lsn + (n * SECTOR) as Lsn, sector);
                    }
                }
                return false;
            }
            let records = records_of(write.lsn, bytes);
            self.records.extend(records.map(|(lsn, record)| (lsn, record.to_vec())));
            disk.write_durably(write.lsn, bytes);
            self.log.written(write.lsn, true);
        }
        true
    }
}

impl Finding {
    /// Whether all that told of devices is left.
    pub(crate) fn keeps_registrations(&self) -> bool {
        self.lost.is_empty() && self.missing.is_empty() && self.has_state
    }

    fn is_healthy(&self) -> bool {
        let is_whole = self.lost.is_empty() && self.missing.is_empty();
        is_whole && self.given_up == 0 && !self.is_flawed
    }

    /// Looks at each segment by itself; which ones are given up.
    fn look_at_each(&mut self, disk: &Disk, salt: u64, segment_bytes: u64, end: Lsn) {
        for index in disk.written_segments() {
            if !disk.holes_in(index).is_empty() {
                self.is_flawed = true;
                self.aside.insert(index);
                continue;
            }
            if index > end / segment_bytes {
                continue;
            }
            let bytes = disk.whole_segment(index);
            let mut walker = Walker::new(salt, index, segment_bytes, segment_bytes as u32);
            let base = index * segment_bytes;
            let walked = walker.feed(base, &bytes, &mut |_, _, _| ControlFlow::Continue(()));
            if walked.is_err_and(|damage| damage.lsn < end) {
                self.is_flawed = true;
                self.aside.insert(index);
            }
        }
        self.aside.retain(|index| !disk.lacks(*index));
    }

    /// Where the log goes on: at its end if nothing of it is lost, otherwise in
    /// a segment of its own.
    fn go_on(&mut self, present: &[u64], survey: &Survey, end: LogStart, segment_bytes: u64) {
        let unfinished = end.lsn / segment_bytes;
        let is_whole = self.lost.is_empty()
            && self.missing.is_empty()
            && self.lost_before.is_none()
            && self.aside.last().is_none_or(|last| *last < unfinished);
        (self.end, self.fresh) = (end.lsn, end);
        if is_whole {
            return;
        }
        let fresh = fresh_segment(survey, end.lsn, segment_bytes);
        let fresh = self.aside.last().map_or(fresh, |last| fresh.max(last + 1));
        self.aside.extend(present.iter().filter(|it| (unfinished..fresh).contains(it)));
        self.fresh.lsn = fresh * segment_bytes;
    }

    fn give_up_unreadable(&mut self, disk: &Disk, salt: u64) {
        for placed in self.salvage.waiting() {
            if self.read(disk, salt, &placed).is_none() {
                self.salvage.give_up(&placed);
                self.given_up += 1;
            }
        }
    }

    /// The body of a message that waits, if it can be read.
    pub(crate) fn read<'a>(&self, disk: &'a Disk, salt: u64, placed: &Placed) -> Option<&'a [u8]> {
        let bytes = disk.record_there(placed.lsn, placed.len)?;
        let record = record::verify(bytes, salt, placed.lsn).ok()?;
        let message = *record.message()?;
        self.salvage.is_it(placed, &message).then_some(message.body)
    }
}

/// One tail as large as a segment.
fn log_options(options: LogOptions) -> LogOptions {
    let tail_bytes = options.segment_bytes as usize;
    LogOptions { tail_bytes, commit_bytes_max: tail_bytes, writes_in_flight_max: 1, ..options }
}

/// The same state under each of these starts.
fn take_snapshots(
    shard: usize,
    brain: &mut Shard,
    starts: &[LogStart],
    now: shard::Now,
) -> Vec<Vec<u8>> {
    brain.begin_snapshot(now);
    let mut frames = Vec::new();
    let mut slice = Slice::More;
    while slice == Slice::More {
        let mut payload = Vec::new();
        slice = brain.snapshot_slice(shard::SLICE_BYTES, &mut payload);
        frames.push((Kind::State, payload));
    }
    let mut from = Some(0);
    while let Some(at) = from {
        let mut payload = Vec::new();
        from = brain.snapshot_space(at, &mut payload);
        frames.push((Kind::Space, payload));
    }
    let framed = |start: &LogStart| {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(shard as ShardId, start, &mut bytes);
        for (kind, payload) in &frames {
            writer.frame(*kind, payload, &mut bytes);
        }
        writer.end(start.lsn, &mut bytes);
        bytes
    };
    starts.iter().map(framed).collect()
}
