//! Lives and deaths of the server: recovery, crashes, the faults of the
//! machine.

use shard::gather::Gather;
use shard::{Input, Options, Replay};
use wal::record::Devices;
use wal::recover::Scanner;
use wal::{Log, Record, Restore};
use wire::id::ShardId;

use crate::layout::ReadBack;
use crate::link::{Link, Party, Place};
use crate::plant::Plant;
use crate::reshard::End;
use crate::space::Pace;
use crate::volume::Ahead;
use crate::world::{Core, Event, Ring, World};

const MS: u64 = 1_000_000;
/// A tick of the server.
const TICK_NS: u64 = 100 * MS;
/// Time a connection has to log in.
pub(crate) const HANDSHAKE_MS: u64 = 3_000;

impl World {
    /// The server starts on what is on its disks.
    pub(crate) fn boot(&mut self) {
        self.life += 1;
        self.note("boot: life", [u64::from(self.life), 0, 0, 0]);
        self.storage_full = false;
        self.draining = false;
        self.steps_to_live = None;
        self.upgrade();
        match self.see_to_names() {
            Ok(true) => {}
            Ok(false) => return self.after(MS, Event::Restart),
            Err(what) => return self.violate(what),
        }
        if self.knobs.may_decay {
            match self.see_to_damage() {
                Ok(true) => {}
                Ok(false) => return self.after(MS, Event::Restart),
                Err(what) => return self.violate(what),
            }
        }
        if let Some(shards) = self.asked_for() {
            match self.reshard(shards) {
                Ok(End::Switched | End::Abandoned) => {}
                Ok(End::Died) => return self.die_early(),
                Err(what) => return self.violate(what),
            }
        }
        self.model.forget();
        let shards = usize::from(self.layout.shards);
        self.rings = (0..shards * shards).map(|_| Ring::default()).collect();
        let mut cores = Vec::new();
        for shard in 0..shards {
            match self.recover(shard) {
                Ok(core) => cores.push(core),
                Err(what) => return self.violate(what),
            }
            let end = cores[shard].brain.log().end();
            if self.make_first_segment(shard, end).is_err() {
                return self.refuse_start();
            }
        }
        self.cores = cores;
        if let Some(letter) = self.waits_nowhere() {
            self.violate(format!("letter {letter} waits and was not copied to this layout"));
        }
        self.compare_inboxes();
        self.check_promises();
        self.forget_registrations();
        if self.sweep() == End::Died {
            return self.die_early();
        }
        self.look_for_space();
        self.after(TICK_NS, Event::Tick { life: self.life });
        // A short life leaves little on the disk over what the one before it
        // left: that is when stale bytes are the most plausible.
        let relapses = self.chance.permille(self.knobs.relapse);
        self.writes_to_live = relapses.then(|| self.chance.within(1, 3));
    }

    /// The server dies before it serves anybody.
    fn die_early(&mut self) {
        self.stats.reshard_deaths += 1;
        self.crash();
    }

    /// A device whose first login the crash took begins anew: it may get what
    /// others had acknowledged already, if the crash took that as well.
    fn forget_registrations(&mut self) {
        for device in &mut self.devices {
            if !self.model.inbox(device.user).began.contains_key(&device.id) {
                device.last_id = None;
                device.last_from.clear();
            }
        }
    }

    fn recover(&mut self, shard: usize) -> Result<Core, String> {
        let image = self.image(shard);
        let ReadBack { replay, start, cut } = self.read_back(shard)?;
        self.read_history(shard)?;
        let present = self.layout.disks[shard].present(start.lsn);
        let brain = replay.finish(&start, Log::new(self.knobs.log, start), present);
        self.keep_image(image, start.lsn, cut, &brain);
        Ok(Core {
            brain,
            out: shard::Effects::default(),
            slots: Vec::new(),
            generations: Vec::new(),
            free: Vec::new(),
            blocked: Vec::new(),
            turn_wanted: false,
            gather: Gather::default(),
            writing: None,
            pace: Pace::default(),
            place: Ahead::default(),
        })
    }

    /// What a start reads from a shard's disk; it must be what was written.
    pub(crate) fn read_back(&mut self, shard: usize) -> Result<ReadBack, String> {
        let log = self.knobs.log;
        let options = self.options(shard, self.layout.shards);
        let mut replay = Replay::new(options, self.hasher, log.segment_bytes);
        let (from, vouched) = self.load_snapshot(shard, &mut replay)?;
        let mut scanner = Scanner::resume(from, vouched, log);
        if self.plant == Plant::IgnoreChain {
            scanner.ignore_chain();
        }
        let (disk, history, plant) =
            (&self.layout.disks[shard], &mut self.layout.histories[shard], self.plant);
        let (mut count, mut found) = (history.first_from(from.lsn), Ok(()));
        let own = self.filling.blank(self.layout.salts[shard]);
        for (index, base, bytes) in disk.segments(from.lsn) {
            if disk.lacks(index) {
                return Err(format!("recovery of shard {shard} needs segment {index}"));
            }
            scanner.blank(if plant == Plant::OneFilling { own } else { disk.blank(index) });
            let scanned = scanner.segment(base, bytes, &mut |lsn, len, record| {
                if found.is_ok() {
                    found = history.compare(count, lsn, disk.record(lsn, len), disk.durable());
                }
                count += 1;
                replay_planted(&mut replay, plant, count, lsn, len, &record);
            });
            found?;
            found = Ok(());
            scanned.map_err(|damage| format!("recovery of shard {shard}: {damage}"))?;
        }
        let (start, torn) = scanner.finish().map_err(|damage| damage.to_string())?;
        self.layout.histories[shard].cut(count, self.layout.disks[shard].durable())?;
        if start.lsn < self.layout.disks[shard].durable() {
            return Err(format!("recovery of shard {shard} ended before the durable end"));
        }
        if replay.contradictions() > 0 && self.plant == Plant::None {
            return Err(format!("{} contradictions in shard {shard}", replay.contradictions()));
        }
        let disk = &mut self.layout.disks[shard];
        disk.recovered(start.lsn);
        if self.plant != Plant::LeaveTorn {
            disk.blank_behind(start.lsn);
        }
        if let Some((index, ..)) = replay.needed().into_iter().find(|(it, ..)| disk.lacks(*it)) {
            return Err(format!(
                "messages of shard {shard} wait in segment {index}, it is deleted"
            ));
        }
        let cut = torn.map_or(0, |torn| torn.bytes);
        self.note(
            "recovered: shard, records, end, cut",
            [shard as u64, count as u64, start.lsn, cut],
        );
        Ok(ReadBack { replay, start, cut })
    }

    /// Tells the model every record that is on the disk or was cleaned away.
    pub(crate) fn read_history(&mut self, shard: usize) -> Result<(), String> {
        for (end, bytes) in self.layout.histories[shard].records() {
            let record = wal::record::decode(bytes).map_err(|why| why.to_string())?;
            self.model.take(shard, end, &record, &self.ledger)?;
        }
        Ok(())
    }

    /// The options of one of so many shards.
    pub(crate) fn options(&self, shard: usize, shards: u16) -> Options {
        Options {
            shard: shard as ShardId,
            shards,
            node: 1,
            users_max: 100_000,
            waiting_messages_max: usize::MAX,
            pairs_max: usize::MAX,
            inbox_messages_max: self.knobs.inbox_messages_max,
            inbox_bytes_max: 1 << 30,
            retention_ms: 30 * 24 * 60 * 60 * 1000,
            pairs_kept_ms: 7 * 24 * 60 * 60 * 1000,
            handshake_ms: HANDSHAKE_MS,
            logins_per_second: self.knobs.logins_per_second,
            vouch_after_ms: self.knobs.vouch_after_ms,
        }
    }

    /// What the shards say of their inboxes is what the records say.
    pub(crate) fn compare_inboxes(&mut self) {
        let mut found = Ok(());
        for (user, name) in self.names.iter().enumerate() {
            let owner = self.hasher.key(name.as_bytes()).owner(self.layout.shards);
            let core = &self.cores[usize::from(owner)];
            let expected = self.model.inbox(user as u16);
            let is = core.brain.inboxes().find(|(known, ..)| *known == name.as_bytes());
            let (first, last) = is.map_or((1, 0), |(_, first, last)| (first, last));
            let waits = expected.waiting().next().map_or(u64::MAX, |(seq, _)| seq);
            // A repair leaps over numbers, and another layout takes that along.
            let is_leapt = self.model.has_scars() && last > expected.last;
            // What damage took of an acknowledgement waits again.
            if self.model.is_scarred(user as u16) && last >= expected.last {
                continue;
            }
            let leftover = expected.entries.range(first..waits.min(last + 1).max(first)).next();
            if (last != expected.last && !is_leapt) || first > waits || leftover.is_some() {
                found = Err(format!(
                    "after replay {name} has {first}..={last}, the records say {waits}..={}",
                    expected.last
                ));
            }
        }
        self.require(found);
    }

    /// Whatever a sender was told to be stored is there.
    pub(crate) fn check_promises(&mut self) {
        let lost = self.ledger.iter().find(|(id, letter)| {
            letter.told
                && letter.is_guaranteed()
                && !letter.excused
                && self.model.letter(*id).is_none()
        });
        if let Some((id, letter)) = lost {
            let what = format!("letter {id} was SENT and is lost: {letter:?}");
            self.violate(what);
        }
    }

    /// The process dies, with everything that was not on the disk.
    pub(crate) fn crash(&mut self) {
        self.note("crash: life", [u64::from(self.life), 0, 0, 0]);
        self.stats.crashes += 1;
        self.life += 1;
        self.count_cores();
        self.lose_snapshots();
        self.cores.clear();
        for disk in &mut self.layout.disks {
            disk.crash(&mut self.chance, self.knobs.garbage_sectors);
            if self.knobs.snapshots_return {
                self.stats.snapshots_back += disk.return_snapshots(&mut self.store_chance);
            }
        }
        self.keep_deleted();
        self.decay();
        self.mix_names();
        for link in 0..self.links.len() {
            if self.links[link].place != Place::Nowhere {
                self.links[link].place = Place::Nowhere;
                // What had left the server may still arrive.
                self.links[link].is_cut = self.chance.below(2) == 0;
                let at = self.links[link].down_at.max(self.now_ns) + self.chance.within(1, 5 * MS);
                self.at(at, Event::End { link });
            }
        }
        let down_ns = self.chance.within(MS, 500 * MS);
        self.after(down_ns, Event::Restart);
    }

    /// Adds what the shards of this life have counted.
    pub(crate) fn count_cores(&mut self) {
        for core in &mut self.cores {
            let counters = core.brain.metrics().counters;
            self.stats.takeovers += counters.takeovers;
            self.stats.blocked += counters.blocked;
            self.stats.reads += counters.reads;
            self.stats.moved += counters.moved;
            self.stats.late += counters.late;
        }
    }

    /// Time passes for the server.
    pub(crate) fn tick(&mut self) {
        for shard in 0..self.cores.len() {
            self.measure(shard);
            self.notice(shard, Input::Tick);
            self.prepare_segment(shard);
            self.rescue(shard);
            if self.draining {
                self.vouch(shard);
            }
        }
        self.begin_snapshots();
        // The end of what has expired moves cursors without a record.
        if self.volume.is_some() && self.knobs.expires == 0 {
            self.watch_acks();
        }
        if self.knobs.read_fails > 0 {
            self.watch_asides();
        }
        if self.knobs.is_steady && !self.is_quiet() {
            self.watch_space();
        }
        self.after(TICK_NS, Event::Tick { life: self.life });
    }

    /// A log at rest is vouched for before the server is gone.
    fn vouch(&mut self, shard: usize) {
        let now = self.now();
        if self.cores[shard].brain.vouch(now) {
            self.want_turn(shard);
        }
    }

    /// Turns are long and memories full now and then, or so it is said.
    fn measure(&mut self, shard: usize) {
        let is_pressed = !self.is_quiet() && self.chance.permille(self.knobs.pressure);
        let (mut turn_ns, mut frames_permille, mut unsent_permille) = (0, 0, 0);
        if is_pressed {
            turn_ns = self.chance.below(400_000_000);
            frames_permille = self.chance.below(1_100);
            unsent_permille = self.chance.below(1_100);
        }
        let measured = Input::Measured { turn_ns, frames_permille, unsent_permille };
        self.notice(shard, measured);
    }

    /// Faults that come from outside, a few times a second.
    pub(crate) fn chaos(&mut self) {
        if self.is_quiet() {
            return;
        }
        if self.chance.permille(self.knobs.clock_jump) {
            self.jump_clock();
        }
        if self.knobs.stores && self.store_chance.permille(self.knobs.hours) {
            self.pass_hours();
        }
        self.begin_snapshots();
        self.others_write();
        self.decay_awake();
        if !self.cores.is_empty() {
            self.trouble();
        }
        let pause_ns = self.chance.within(5 * MS, 80 * MS);
        self.after(pause_ns, Event::Chaos);
    }

    fn trouble(&mut self) {
        if self.chance.permille(self.knobs.storage_full) {
            self.storage_full = !self.storage_full;
            self.announce_storage();
        }
        if self.chance.permille(self.knobs.stranger) {
            self.stranger();
        }
        if self.chance.permille(self.knobs.drain) && !self.draining {
            self.drain();
        }
        if self.resize_chance.permille(self.knobs.restart) && !self.draining {
            self.drain();
        }
        if self.chance.permille(self.knobs.crash) {
            self.crash();
        }
    }

    fn announce_storage(&mut self) {
        let full = self.storage_full;
        self.note("storage: full", [u64::from(full), 0, 0, 0]);
        for shard in 0..self.cores.len() {
            self.notice(shard, Input::Storage { full });
        }
    }

    /// The server is asked to stop, and is gone a little later.
    fn drain(&mut self) {
        self.note("drain", [0; 4]);
        self.draining = true;
        for shard in 0..self.cores.len() {
            self.notice(shard, Input::Drain);
        }
        let grace_ns = self.chance.within(MS, 200 * MS);
        self.after(grace_ns, Event::Crash { life: self.life });
    }

    /// Somebody connects who is no client: says nothing, or garbage.
    fn stranger(&mut self) {
        let link = self.open_link(Party::Stranger);
        let pieces = self.chance.below(6);
        for _ in 0..pieces {
            let garbage = self.garbage();
            self.write_up(link, garbage, true);
        }
        self.note("stranger: link, pieces", [link as u64, pieces, 0, 0]);
        if self.chance.below(2) == 0 {
            self.leave(link, false);
        }
    }

    fn garbage(&mut self) -> Vec<u8> {
        let starts: [&[u8]; 8] = [
            b"IRS2",
            b"IRS2\0\0\0\x02\x09\0",
            b"IRS2\0\0\0\x03\x02\0\x01",
            b"\x01nobody",
            b"\x04\0\x02xx\0\0\0\x09",
            b"\x02\0\x05",
            b"\x16\x03",
            b"\xff",
        ];
        let mut bytes = self.chance.pick(&starts).to_vec();
        for _ in 0..self.chance.below(40) {
            bytes.push(self.chance.bits() as u8);
        }
        bytes
    }

    /// No more faults from here on.
    pub(crate) fn calm(&mut self) {
        self.note("calm", [0; 4]);
        let knobs = &mut self.knobs;
        for fault in [
            &mut knobs.crash,
            &mut knobs.relapse,
            &mut knobs.write_fails,
            &mut knobs.disconnect,
            &mut knobs.half_open,
            &mut knobs.takeover,
            &mut knobs.long_absence,
            &mut knobs.never_acks,
            &mut knobs.clock_jump,
            &mut knobs.storage_full,
            &mut knobs.stranger,
            &mut knobs.drain,
            &mut knobs.rot,
            &mut knobs.hours,
            &mut knobs.snapshot,
            &mut knobs.snapshot_fails,
            &mut knobs.resize,
            &mut knobs.restart,
            &mut knobs.sync_fails,
            &mut knobs.decay,
            &mut knobs.decay_awake,
            &mut knobs.misnames,
            &mut knobs.newer,
        ] {
            *fault = 0;
        }
        if self.storage_full {
            self.storage_full = false;
            self.announce_storage();
        }
        self.give_space();
        self.calm_crowd();
    }

    /// A new connection, at whichever core the kernel chooses. `None` inside
    /// its place when the server is down.
    pub(crate) fn open_link(&mut self, party: Party) -> usize {
        let link = self.links.len();
        self.links.push(Link::new(party, self.life, Place::Moving, self.now_ns));
        if self.cores.is_empty() {
            self.links[link].place = Place::Nowhere;
            self.after(MS, Event::End { link });
        } else {
            let shard = self.chance.below(self.cores.len() as u64) as usize;
            self.arrive(link, shard);
        }
        link
    }
}

/// Replays a record, or, with a bug planted, something else.
fn replay_planted(
    replay: &mut Replay,
    plant: Plant,
    count: usize,
    lsn: u64,
    len: u32,
    record: &Record<'_>,
) {
    let is_hit = count.is_multiple_of(16);
    match *record {
        Record::Message(message) if plant == Plant::ForgetNumber && is_hit => {
            // Unnumbered, as protocol v1 sends: everything else is kept.
            let message = wal::Message { device: 0, flags: 0, ..message };
            replay.record(lsn, len, &Record::Message(message));
        }
        Record::Consumed { .. } if plant == Plant::ForgetNumber && is_hit => {}
        Record::Ack { .. } if plant == Plant::ForgetAck && is_hit => {}
        Record::Aside { key, seq, lsn: at, len: bytes, .. } if plant == Plant::ForgetHad => {
            let had = Devices::new(&[]);
            replay.record(lsn, len, &Record::Aside { key, seq, lsn: at, len: bytes, had });
        }
        _ => replay.record(lsn, len, record),
    }
}
