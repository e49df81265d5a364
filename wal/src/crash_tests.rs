//! Crashes against the pure half: random lives, writes that finish in any order
//! or tear at any sector, then recovery, then on to the next life.
//!
//! The disk here is a byte vector per segment; a sector of 512 bytes is written
//! whole or not at all, as real disks promise.

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use self::disk::*;
use crate::commit::COMMIT_BYTES;
use crate::record::encoded_len;
use crate::record::tests::{Owned, any_record, message};
use crate::recover::{Proof, What};
use crate::sector::{Blank, SECTOR};
use crate::{Appended, BLOCK, Log, LogStart, Record, Scanner, Write};

mod disk;

/// Two writes in flight, the first lost and the second on disk; then, after
/// recovery, another first of the same length over the lost one. Returns what
/// the next recovery reads as bodies.
fn stale_second(prepare: impl Fn(&mut Scanner)) -> Vec<String> {
    let (mut log, mut disk) = durable_log(1);
    let first = commit(&mut log, b'1', 700);
    let second = commit(&mut log, b'2', 700);
    disk.write(second.0, &second.1, |_| true);

    let recovered = disk.recover().unwrap();
    assert_eq!(recovered.start.lsn, first.0.lsn, "cut where the lost write was");
    assert_eq!(recovered.torn.unwrap().lsn, first.0.lsn);

    let mut log = Log::new(options(), recovered.start);
    let again = commit(&mut log, b'3', 700);
    assert_eq!(again.0, first.0, "the same place and length");
    disk.write(again.0, &again.1, |_| true);

    let mut scanner = Scanner::new(SALT, options(), 0);
    prepare(&mut scanner);
    let records = disk.recover_with(scanner).unwrap().records;
    records.into_iter().map(|(_, record)| record).collect()
}

#[test]
fn a_stale_commit_is_never_valid_again() {
    let records = stale_second(|_| {});
    assert_eq!(records.len(), 2);
    assert!(!records.iter().any(|record| record.contains("50, 50, 50")), "the stale body");
}

#[test]
fn without_the_chain_the_stale_commit_would_return() {
    let records = stale_second(Scanner::ignore_chain);
    assert_eq!(records.len(), 3);
    assert!(records[2].contains("50, 50, 50"), "this is what the chain is for");
}

#[test]
fn damage_in_the_middle_is_named() {
    let check = |lsn: u64, expected: Option<(u64, u64, u64, What)>| {
        let (_, mut disk) = durable_log(20);
        *disk.byte(lsn) ^= 0x10;
        let found = disk.recover().err();
        let found = found.map(|damage| (damage.segment, damage.offset, damage.lsn, damage.what));
        assert_eq!(found, expected);
    };
    use crate::record::Malformed::*;
    let at = |segment, block: u64, what| {
        let offset = 4096 + block * 4096;
        Some((segment, offset, segment * 16 * 4096 + block * 4096, what))
    };
    check(100, at(0, 0, What::Record(Checksum)));
    check(5 * 4096 + 30, at(0, 5, What::Commit(Checksum)));
    check(17 * 4096 + 60, at(1, 1, What::Record(Checksum)));
    check(3 * 4096 + 12, at(0, 3, What::Commit(Kind(17))));
    check(4000, None); // padding carries nothing
}

#[test]
fn a_foreign_commit_breaks_the_chain() {
    // A valid commit of the same log at the same place, but of another life.
    let (_, mut disk) = durable_log(6);
    let mut other = Log::new(options(), LogStart { prev_crc: 9, ..LogStart::fresh(SALT) });
    let (write, bytes) = commit(&mut other, 1, 500);
    disk.write(write, &bytes, |_| true);
    assert_eq!(disk.recover().err().unwrap().what, What::Chain);
}

#[test]
fn the_end_of_the_log_may_rot_unseen_but_not_unsaid() {
    let (_, mut disk) = durable_log(3);
    *disk.byte(2 * 4096 + 100) ^= 1;
    let recovered = disk.recover().unwrap();
    assert_eq!(recovered.start.lsn, 2 * 4096);
    assert!(recovered.torn.unwrap().bytes > 500);
}

/// A torn write leaves a blank where it has lost a sector: whatever else stands
/// there has changed since.
#[test]
fn the_end_of_the_log_does_not_rot_unseen() {
    use crate::record::Malformed::*;
    let check = |at: u64, what: What| {
        for blank in blanks() {
            let (_, mut disk) = durable_log_on(blank, 3);
            *disk.byte(2 * 4096 + at) ^= 1;
            let damage = disk.recover().err().expect("no crash leaves this");
            assert_eq!((damage.lsn, damage.what), (2 * 4096, what));
            assert_eq!(damage.proof, Some(Proof::Sectors));
            assert!(damage.to_string().contains("has changed since"), "{damage}");
        }
    };
    check(100, What::Record(Checksum));
    check(600, What::Record(Checksum));
    check(30, What::Commit(Checksum));
    check(0, What::NoCommit);
    check(12, What::NoCommit);
}

/// Nor where a sector has become nothing but zeroes, unless that is what a crash
/// leaves, too.
#[test]
fn a_sector_that_has_become_zeroes_looks_torn_among_zeroes_only() {
    for sector in [0, 1] {
        let recovered = |blank| {
            let (_, mut disk) = durable_log_on(blank, 3);
            let from = 2 * 4096 + sector * SECTOR as u64;
            (from..from + SECTOR as u64).for_each(|at| *disk.byte(at) = 0);
            disk.recover().map(|found| found.torn.map(|torn| torn.lsn))
        };
        let [zeroes, pattern] = blanks().map(recovered);
        assert_eq!(zeroes, Ok(Some(2 * 4096)));
        assert_eq!(pattern.unwrap_err().proof, Some(Proof::Sectors));
    }
}

/// Zeroes in a body are no sign of a torn write, and a sector that was to be zero
/// need not have arrived.
#[test]
fn sectors_of_a_body_may_be_zero() {
    let (mut log, mut disk) = durable_log_on(Blank::Zeroes, 1);
    let (write, bytes) = commit(&mut log, 0, 3000);
    let zero = |n: &usize| bytes[n * SECTOR..][..SECTOR].iter().all(|byte| *byte == 0);
    let zeroes: Vec<usize> = (0..8).filter(zero).collect();
    assert!(zeroes.len() > 4, "{zeroes:?}");
    disk.write(write, &bytes, |n| !zeroes.contains(&n));
    assert_eq!(disk.recover().unwrap().records.len(), 2);
    *disk.byte(write.lsn + 100) ^= 1;
    assert_eq!(disk.recover().err().unwrap().proof, Some(Proof::Sectors));
    disk.write(write, &vec![0; BLOCK], |n| n == 0);
    assert_eq!(disk.recover().unwrap().records.len(), 1);
}

#[test]
fn clean_ends_are_clean() {
    let check = |commits: usize| {
        let (log, disk) = durable_log(commits);
        let recovered = disk.recover().unwrap();
        assert_eq!(recovered.torn, None);
        assert_eq!(recovered.start.lsn, log.durable());
        assert_eq!(recovered.start.commit_seq, commits as u64);
        assert_eq!(recovered.records.len(), commits);
    };
    check(0);
    check(1);
    check(16); // exactly one segment
    check(40);
}

#[test]
fn segments_out_of_order_are_refused() {
    let (_, disk) = durable_log(40);
    let mut scanner = Scanner::new(SALT, options(), 0);
    let sink = &mut |_, _, _: Record<'_>| {};
    scanner.segment(0, &disk.segments[0], sink).unwrap();
    let damage = scanner.segment(2 * 16 * 4096, &disk.segments[2], sink).unwrap_err();
    assert_eq!((damage.what, damage.segment), (What::Gap, 1));
}

#[test]
fn a_log_may_begin_at_a_later_segment() {
    let (log, disk) = durable_log(40);
    let mut scanner = Scanner::new(SALT, options(), 16 * 4096);
    let mut count = 0;
    for n in 1..disk.segments.len() {
        let base = n as u64 * options().segment_bytes;
        scanner.segment(base, &disk.segments[n], &mut |_, _, _| count += 1).unwrap();
    }
    let (start, torn) = scanner.finish().unwrap();
    assert_eq!((start.lsn, start.commit_seq, torn, count), (log.durable(), 40, None, 24));
}

/// The checkpoints of a log of `n` commits of one block each, one before each
/// commit and one after the last, and what is on the disk.
fn checkpoints(n: usize) -> (Vec<LogStart>, Disk) {
    let (mut log, mut disk) = (Log::new(options(), LogStart::fresh(SALT)), Disk::default());
    let mut starts = vec![log.checkpoint()];
    for fill in 0..n {
        let (write, bytes) = commit(&mut log, fill as u8, 500);
        starts.push(log.checkpoint());
        disk.write(write, &bytes, |_| true);
        log.written(write.lsn, true);
    }
    (starts, disk)
}

#[test]
fn a_checkpoint_is_before_what_is_not_sealed() {
    let mut log = Log::new(options(), LogStart::fresh(SALT));
    assert_eq!(log.checkpoint(), LogStart::fresh(SALT));
    log.append(&Record::Message(message(b"open")), 5).unwrap();
    assert_eq!(log.checkpoint().lsn, 0);
    let write = log.next_write().unwrap();
    let sealed = log.checkpoint();
    assert_eq!((sealed.lsn, sealed.commit_seq, sealed.hlc_ms), (u64::from(write.len), 1, 5));
    // More than one commit waits, none of them sealed.
    for _ in 0..4 {
        log.append(&Record::Message(message(&[7; 5000])), 6).unwrap();
    }
    assert_eq!(log.checkpoint(), LogStart { hlc_ms: 6, ..sealed });
}

#[test]
fn a_log_goes_on_from_any_checkpoint() {
    let (starts, disk) = checkpoints(40);
    let whole = disk.recover().unwrap();
    for (n, start) in starts.into_iter().enumerate() {
        for vouched in [start.lsn, 40 * 4096] {
            let found = disk.resume(start, vouched).unwrap();
            assert_eq!(found.records, whole.records[n..]);
            assert_eq!((found.start, found.torn), (whole.start, None));
        }
    }
}

#[test]
fn an_end_before_what_was_vouched_for_is_damage() {
    let (starts, mut disk) = checkpoints(20);
    let check = |disk: &Disk, vouched, lsn, what| {
        let damage = disk.resume(starts[5], vouched).err().unwrap();
        assert_eq!((damage.lsn, damage.what), (lsn, what));
        assert_eq!(damage.proof, Some(Proof::Snapshot(vouched)));
        assert!(damage.to_string().contains("the snapshot shows"));
    };
    check(&disk, 20 * 4096 + 1, 20 * 4096, What::NoCommit);
    // Rot at the very end, which would be cut otherwise.
    *disk.byte(19 * 4096 + 100) ^= 1;
    assert!(disk.resume(starts[5], 19 * 4096).unwrap().torn.is_some());
    check(&disk, 20 * 4096, 19 * 4096, What::Record(crate::record::Malformed::Checksum));
    disk.segments.truncate(1);
    check(&disk, 20 * 4096, 16 * 4096, What::NoCommit);
}

#[test]
fn a_checkpoint_of_another_history_breaks_the_chain() {
    let (starts, disk) = checkpoints(20);
    let other = LogStart { prev_crc: starts[5].prev_crc ^ 1, ..starts[5] };
    assert_eq!(disk.resume(other, 0).err().unwrap().what, What::Chain);
    let other = LogStart { commit_seq: starts[5].commit_seq + 1, ..starts[5] };
    assert_eq!(disk.resume(other, 0).err().unwrap().what, What::Chain);
}

#[test]
fn a_write_without_its_last_sectors_is_not_complete() {
    // Every record ends where a sector ends. Lost sectors read as zero, which is
    // what padding looks like, so what is left looks like a shorter commit.
    let overhead = encoded_len(&Record::Message(message(b"")));
    let mut log = Log::new(options(), LogStart::fresh(SALT));
    for n in 0..10 {
        let len = if n == 0 { SECTOR - COMMIT_BYTES } else { SECTOR };
        log.append(&Record::Message(message(&vec![7; len - overhead])), 1).unwrap();
    }
    let write = log.next_write().unwrap();
    let bytes = log.write_bytes(&write).to_vec();
    for sectors in 0..=write.len as usize / SECTOR {
        let mut disk = Disk::default();
        disk.write(write, &bytes, |sector| sector < sectors);
        let found = disk.recover().unwrap().records.len();
        assert_eq!(found, if sectors >= 10 { 10 } else { 0 }, "{sectors} sectors");
    }
}

/// One life of a server between two crashes.
#[derive(Clone, Debug)]
struct Life {
    steps: Vec<Step>,
    /// Which sectors of the writes in flight land, drawn bit by bit.
    sectors: Vec<u64>,
}

#[derive(Clone, Debug)]
enum Step {
    Append(Owned),
    /// A body of so many zeroes.
    Zeroes(usize),
    Write,
    /// Completes one of the writes in flight.
    Complete(bool),
    /// Begins a snapshot, which ends after so many more steps.
    Checkpoint(usize),
}

/// Where a snapshot began, and how far the log must be durable for it to count.
type Checkpoint = (LogStart, u64);

fn life() -> impl Strategy<Value = Life> {
    let step = prop_oneof![
        4 => any_record(600).prop_map(Step::Append),
        1 => any_record(9000).prop_map(Step::Append),
        1 => (0..6000usize).prop_map(Step::Zeroes),
        3 => Just(Step::Write),
        3 => any::<bool>().prop_map(Step::Complete),
        1 => (0..6usize).prop_map(Step::Checkpoint),
    ];
    (prop::collection::vec(step, 0..60), prop::collection::vec(any::<u64>(), 1..4))
        .prop_map(|(steps, sectors)| Life { steps, sectors })
}

/// Lives one life on the disk; appended records are added to `history`.
/// Returns the durable end at the moment of the crash.
fn live(
    life: &Life,
    start: LogStart,
    disk: &mut Disk,
    history: &mut Vec<(Appended, String)>,
    checkpoints: &mut Vec<Checkpoint>,
) -> Result<u64, TestCaseError> {
    let mut log = Log::new(options(), start);
    let mut flying: Vec<(Write, Vec<u8>)> = Vec::new();
    let mut begun: Vec<(usize, LogStart)> = Vec::new();
    let mut encoded: Vec<Checkpoint> = Vec::new();
    for (at, step) in life.steps.iter().enumerate() {
        begun.retain(|&(end, start)| {
            if end <= at {
                encoded.push((start, log.end()));
            }
            end > at
        });
        match step {
            Step::Checkpoint(steps) => begun.push((at + steps, log.checkpoint())),
            Step::Append(owned) => {
                let record = owned.record();
                if let Ok(at) = log.append(&record, 1) {
                    prop_assert_eq!(log.get(at.lsn, at.len), Some(record));
                    history.push((at, format!("{record:?}")));
                }
            }
            Step::Zeroes(bytes) => {
                let body = vec![0; *bytes];
                let record = Record::Message(message(&body));
                if let Ok(at) = log.append(&record, 1) {
                    history.push((at, format!("{record:?}")));
                }
            }
            Step::Write => {
                if let Some(write) = log.next_write() {
                    flying.push((write, log.write_bytes(&write).to_vec()));
                }
            }
            Step::Complete(newest) if !flying.is_empty() => {
                let which = if *newest { flying.len() - 1 } else { 0 };
                let (write, bytes) = flying.remove(which);
                disk.write(write, &bytes, |_| true);
                log.written(write.lsn, true);
            }
            Step::Complete(_) => {}
        }
    }
    // Those that are not durable yet never get their name.
    checkpoints.extend(encoded.into_iter().filter(|(_, end)| log.durable() >= *end));
    let mut draw = 0;
    for (write, bytes) in &flying {
        disk.write(*write, bytes, |_| {
            draw += 1;
            life.sectors[draw / 64 % life.sectors.len()] >> (draw % 64) & 1 == 1
        });
    }
    Ok(log.durable())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// However the writes in flight tear: everything durable is there, in
    /// order, nothing that was never appended appears, and life goes on.
    #[test]
    fn no_crash_loses_or_invents(lives in prop::collection::vec(life(), 1..5), blank in 0..3) {
        let blank = [Blank::Unknown, Blank::Zeroes, Blank::of_log(SALT)][blank as usize];
        let mut disk = Disk::on(blank);
        let mut history: Vec<(Appended, String)> = Vec::new();
        let mut start = LogStart::fresh(SALT);
        let mut checkpoints = Vec::new();
        for life in &lives {
            let durable = live(life, start, &mut disk, &mut history, &mut checkpoints)?;
            let recover = |disk: &Disk| {
                let crash = |damage| TestCaseError::fail(format!("a crash is not damage: {damage}"));
                disk.recover().map_err(crash)
            };
            let recovered = recover(&disk)?;
            let kept = recovered.records.len();
            prop_assert!(kept <= history.len());
            prop_assert_eq!(&recovered.records[..], &history[..kept]);
            for (at, _) in &history[kept..] {
                prop_assert!(at.lsn + u64::from(at.len) > durable, "a durable record was lost");
            }
            prop_assert!(recovered.start.lsn >= durable);
            prop_assert!(recovered.durable <= durable, "no commit vouches for too much");
            if let Some(torn) = recovered.torn {
                prop_assert_eq!(torn.lsn, recovered.start.lsn);
            }
            for &(from, end) in &checkpoints {
                let resumed = disk.resume(from, end).map_err(|damage| {
                    TestCaseError::fail(format!("from {} on: {damage}", from.lsn))
                })?;
                let first = history.partition_point(|(at, _)| at.lsn < from.lsn);
                prop_assert_eq!(&resumed.records[..], &history[first..kept]);
                prop_assert_eq!(resumed.start, recovered.start);
                prop_assert_eq!(resumed.torn, recovered.torn);
            }
            history.truncate(kept);
            start = recovered.start;
            // A crash while it is blanked changes nothing.
            if blank != Blank::Unknown {
                // A repair finds the same.
                prop_assert_eq!(disk.salvage(), (kept, vec![], start));
                let bits = life.sectors[0];
                disk.blank_behind(start.lsn, |n| bits >> (n % 64) & 1 == 1);
                let again = recover(&disk)?;
                prop_assert_eq!((again.start, again.records.len()), (start, kept));
                disk.blank_behind(start.lsn, |_| true);
                prop_assert_eq!(recover(&disk)?.torn, None);
            }
        }
    }

    /// Nothing that was written as a whole rots unseen, whether or not anything vouches
    /// for it, and however what was behind it was torn.
    #[test]
    fn a_flipped_bit_is_damage_whatever_vouches_for_it(
        block in 0u64..20, byte in 0u64..600, bit in 0u8..8, torn: u8, is_pattern: bool,
    ) {
        let (mut log, mut disk) = durable_log_on(blanks()[usize::from(is_pattern)], 20);
        let (write, bytes) = commit(&mut log, 9, 3000);
        disk.write(write, &bytes, |n| torn >> n & 1 == 1);
        let lsn = block * 4096 + byte;
        *disk.byte(lsn) ^= 1 << bit;
        let first = lsn / 512 * 512;
        let is_left = (first..first + 512).any(|at| *disk.byte(at) != 0);
        let damage = disk.recover().err().map(|damage| damage.lsn);
        prop_assert_eq!(damage, (is_left || is_pattern).then_some(block * 4096));
    }

    /// One flipped bit anywhere: named as damage, or cut at the end and said
    /// so, or without effect because it hit padding; never read as something
    /// else.
    #[test]
    fn a_flipped_bit_never_passes(block in 0u64..20, byte in 0u64..4096, bit in 0u8..8) {
        let (_, mut disk) = durable_log(20);
        let whole = disk.recover().unwrap().records;
        *disk.byte(block * 4096 + byte) ^= 1 << bit;
        match disk.recover() {
            Ok(found) => {
                prop_assert_eq!(&found.records[..], &whole[..found.records.len()]);
                prop_assert!(found.records.len() == 20 || (block == 19 && found.torn.is_some()));
            }
            Err(damage) => {
                prop_assert_eq!(damage.lsn, block * 4096);
                prop_assert_eq!(damage.offset, 4096 + block % 16 * 4096);
            }
        }
    }
}
