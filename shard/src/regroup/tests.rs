//! Any life of a shard, regrouped into three and back into one: everything that
//! waits and every number is what it was.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use proptest::prelude::*;
use wal::clean::{Walker, Want};
use wal::record::Message;
use wal::{Record, Restore, segment};

use super::*;
use crate::snapshot::tests::{Life, SEGMENT, Step, log_options, options, view};

/// A log as it lies on the disk, and where it goes on.
struct Disk {
    bytes: Vec<u8>,
    start: LogStart,
}

impl Disk {
    fn walk(&self, index: u64, sink: &mut dyn FnMut(Lsn, &Record<'_>)) {
        let mut walker = Walker::new(self.start.salt, index, SEGMENT, 64 << 10);
        while let Some(Want { lsn, len, .. }) = walker.want() {
            let to = self.start.lsn.min(lsn + u64::from(len)) as usize;
            if lsn >= self.start.lsn {
                break;
            }
            let fed = walker.feed(lsn, &self.bytes[lsn as usize..to], &mut |lsn, _, record| {
                sink(lsn, &record);
                ControlFlow::Continue(())
            });
            fed.expect("no damage");
        }
    }

    fn message<'a>(&'a self, lsn: Lsn, len: u32) -> Message<'a> {
        let bytes = &self.bytes[lsn as usize..][..len as usize];
        let record = wal::record::verify(bytes, self.start.salt, lsn).expect("a good record");
        *record.message().expect("a message stands there")
    }
}

fn write_out(newcomer: &mut Newcomer, disk: &mut Disk) {
    while let Some(write) = newcomer.next_write() {
        let bytes = newcomer.log().write_bytes(&write);
        let end = write.lsn as usize + bytes.len();
        disk.bytes.resize(disk.bytes.len().max(end), 0);
        disk.bytes[write.lsn as usize..end].copy_from_slice(bytes);
        newcomer.written(&write);
    }
    disk.start = newcomer.log().checkpoint();
}

/// These shards as so many others, as a start reads them back.
fn change(old: Vec<(Replay, Disk)>, shards: u16, salt: u64) -> Vec<(Replay, Disk)> {
    let ended = |(replay, disk): (Replay, Disk)| ((replay, disk.start), disk);
    let (replays, disks): (Vec<_>, Vec<Disk>) = old.into_iter().map(ended).unzip();
    let needed = |replay: &Replay| replay.needed().into_iter().map(|(at, ..)| at).collect();
    let needed: Vec<Vec<u64>> = replays.iter().map(|(replay, _)| needed(replay)).collect();
    let loads = weigh(&replays, shards);
    let of = |shard: u16| (Options { shard, shards, ..options() }, salt + u64::from(shard));
    let new: Vec<(Options, u64)> = (0..shards).map(of).collect();
    let mut newcomers = regroup(replays, log_options(), &new).expect("each user once");
    let empty =
        |(_, salt): &(Options, u64)| Disk { bytes: Vec::new(), start: LogStart::fresh(*salt) };
    let mut targets: Vec<Disk> = new.iter().map(empty).collect();
    for (disk, segments) in disks.iter().zip(needed) {
        for index in segments {
            disk.walk(index, &mut |lsn, record| {
                for (newcomer, target) in newcomers.iter_mut().zip(&mut targets) {
                    if newcomer.take(lsn, record).is_err() {
                        write_out(newcomer, target);
                        newcomer.take(lsn, record).expect("it has room now");
                    }
                }
            });
        }
    }
    let done = newcomers.into_iter().zip(targets).zip(new).zip(loads);
    done.map(|(((mut newcomer, mut disk), (options, _)), load)| {
        assert_eq!((newcomer.load(), newcomer.copied()), (load, load.messages));
        write_out(&mut newcomer, &mut disk);
        let first = read_back(&mut newcomer, options);
        newcomer.mark().expect("there is room");
        write_out(&mut newcomer, &mut disk);
        let second = read_back(&mut newcomer, options);
        assert_eq!(first.contents(), second.contents());
        (second, disk)
    })
    .collect()
}

fn read_back(newcomer: &mut Newcomer, options: Options) -> Replay {
    let start = newcomer.log().checkpoint();
    let hasher = newcomer.shard.hasher;
    let mut replay = Replay::new(options, hasher, SEGMENT);
    let end = newcomer.snapshot(&mut |part| match part {
        SnapshotPart::State(payload) => replay.state(payload),
        SnapshotPart::Space(payload) => Restore::space(&mut replay, payload),
    });
    replay.loaded(start, end.expect("good payloads"));
    replay
}

/// By user and number: what the message says.
fn messages(replay: &Replay, disk: &Disk) -> BTreeMap<(Vec<u8>, u64), String> {
    let mut found = BTreeMap::new();
    for user in replay.users().iter() {
        for (seq, entry) in user.waiting_seqs() {
            let message = disk.message(entry.lsn, entry.len);
            assert!(message.inbox_seq == seq && message.key == user.key);
            found.insert((user.name.to_vec(), seq), format!("{message:?}"));
        }
    }
    found
}

/// Without the places of the messages, and each user's lines together.
fn lines(replay: Replay, disk: &Disk) -> BTreeMap<String, Vec<String>> {
    let start = disk.start;
    let present = 0..=segment::index(start.lsn, SEGMENT);
    let mut shard = replay.finish(&start, Log::new(log_options(), start), present);
    let (mut users, mut user) = (BTreeMap::<String, Vec<String>>::new(), String::new());
    for line in view(&mut shard).into_iter().filter(|line| !line.starts_with('[')) {
        if !line.starts_with(' ') {
            user.clone_from(&line);
        }
        let cut = line.find("lsn: ").map(|at| {
            let rest = line[at..].find(',').map_or("", |comma| &line[at + comma..]);
            format!("{}{rest}", &line[..at])
        });
        users.entry(user.clone()).or_default().push(cut.unwrap_or(line));
    }
    users
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn regrouped_and_back_it_is_what_it_was(
        steps in prop::collection::vec(any::<Step>(), 1..400),
    ) {
        let mut life = Life::new(SLICE_BYTES);
        steps.into_iter().for_each(|step| life.step(step));
        life.rest();
        let Some(taken) = life.kept.last().cloned() else { return Ok(()) };
        let mut read = || {
            let (replay, start) = life.replayed(&taken);
            (replay, Disk { bytes: life.disk.clone(), start })
        };
        let (was, was_on) = read();
        let hlc_ms = was.hlc_ms().max(was_on.start.hlc_ms);
        let three = change(vec![read()], 3, 100);
        prop_assert!(three.iter().all(|(replay, _)| replay.hlc_ms() >= hlc_ms));
        let (is, is_on) = change(three, 1, 200).pop().expect("one shard");
        prop_assert_eq!(messages(&is, &is_on), messages(&was, &was_on));
        prop_assert_eq!(lines(is, &is_on), lines(was, &was_on));
    }
}

/// Numbers that were shown and lost with a crash must not come again, whether
/// or not anything stands in the new log.
#[test]
fn an_inbox_leaps_though_the_log_is_new() {
    let mut life = Life::new(SLICE_BYTES);
    // Sends to everybody, acknowledges, commits, and a snapshot.
    for step in [(3, 0, 1, 9), (10, 0, 0, 0), (13, 0, 0, 0), (13, 0, 0, 0), (13, 0, 0, 0)] {
        life.step(step);
    }
    life.rest();
    let taken = life.kept.last().cloned().expect("one was taken");
    let (replay, start) = life.replayed(&taken);
    let disk = Disk { bytes: life.disk.clone(), start };
    for (replay, disk) in change(vec![(replay, disk)], 2, 50) {
        let is_known = replay.contents().users > 0;
        let start = LogStart::fresh(disk.start.salt);
        let shard = replay.finish(&start, Log::new(log_options(), start), [0]);
        assert_eq!(shard.leap > 0, is_known);
    }
}
