//! The data directory and the segments on a real file system.

use std::fs::{self, File};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::manifest::Manifest;
use crate::record::Malformed;
use crate::record::tests::message;
use crate::salvage::Rescue;
use crate::segment::HeaderError;
use crate::{BLOCK, Log, LogOptions, LogStart, Lsn, Record, Restore};

pub(super) const SEGMENT_BYTES: u64 = 1 << 20;

pub(super) fn options(shards: Option<u16>) -> OpenOptions {
    OpenOptions { shards, default_shards: 2, segment_bytes: SEGMENT_BYTES }
}

pub(super) fn log_options() -> LogOptions {
    LogOptions {
        tail_bytes: 256 << 10,
        segment_bytes: SEGMENT_BYTES,
        commit_bytes_max: 64 << 10,
        ..LogOptions::default()
    }
}

pub(super) fn refusal(path: &Path, options: OpenOptions) -> DataDirError {
    match DataDir::open(path, options) {
        Ok(_) => panic!("it was opened"),
        Err(error) => {
            assert!(error.to_string().len() > 30, "a sentence: {error}");
            error
        }
    }
}

/// Writes everything that the log hands out, making segments as they are needed.
pub(super) fn write_out(log: &mut Log, segments: &mut Segments) {
    while let Some(write) = log.next_write() {
        let end = write.lsn + u64::from(write.len);
        while !segments.has_space_for(end) {
            let prepared = segments.wants_next(end).unwrap().run().unwrap();
            segments.adopt(prepared);
        }
        let (fd, offset) = segments.locate(write.lsn).unwrap();
        write_at(fd, log.write_bytes(&write), offset).unwrap();
        log.written(write.lsn, true);
    }
}

fn write_at(fd: i32, bytes: &[u8], offset: u64) -> io::Result<()> {
    let file = file_of(fd)?;
    file.write_all_at(bytes, offset)?;
    file.sync_data()
}

pub(super) fn read_at(fd: i32, len: usize, offset: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    file_of(fd)?.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

#[allow(unsafe_code)]
fn file_of(fd: i32) -> io::Result<File> {
    // SAFETY: the segments that own the descriptor outlive this call.
    Ok(File::from(unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()?))
}

/// A data directory whose shard 0 holds `messages` messages of 10,000 bytes.
pub(super) fn filled(messages: u64) -> (TempDir, LogStart) {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::open(dir.path(), options(None)).unwrap();
    let end = append(&data.shard(0), 0, messages);
    (dir, end)
}

/// Recovers, appends messages numbered from `first`, and writes them.
pub(super) fn append(shard: &ShardDir, first: u64, messages: u64) -> LogStart {
    let start = recover(shard).unwrap().0.start;
    let mut segments = shard.open_segments(start.lsn, probe(shard.path())).unwrap();
    let mut log = Log::new(log_options(), start);
    for inbox_seq in first..first + messages {
        let message = message(&[7; 10_000]);
        let record = Record::Message(crate::Message { inbox_seq, ..message });
        if log.append(&record, 42).is_err() {
            write_out(&mut log, &mut segments);
            log.append(&record, 42).unwrap();
        }
    }
    write_out(&mut log, &mut segments);
    recover(shard).unwrap().0.start
}

/// What was found, and the inbox seqs of the messages read.
pub(super) fn recover(shard: &ShardDir) -> Result<(Recovered, Vec<u64>), RecoverError> {
    let mut found = Found::default();
    let recovered = shard.recover(&mut found, &mut |_| {})?;
    Ok((recovered, found.seqs))
}

/// A log read back without a snapshot.
#[derive(Default)]
pub(super) struct Found {
    pub(super) seqs: Vec<u64>,
}

impl Restore for Found {
    fn reset(&mut self) {
        self.seqs.clear();
    }

    fn state(&mut self, _: &[u8]) -> Result<(), Malformed> {
        unreachable!("there is no snapshot")
    }

    fn space(&mut self, _: &[u8]) -> Result<(), Malformed> {
        unreachable!("there is no snapshot")
    }

    fn loaded(&mut self, _: LogStart, _: Lsn) {
        unreachable!("there is no snapshot")
    }

    fn record(&mut self, _: Lsn, _: u32, record: &Record<'_>) {
        if let Record::Message(message) = record {
            self.seqs.push(message.inbox_seq);
        }
    }

    fn needed(&self) -> Vec<(u64, u64, u64)> {
        Vec::new()
    }
}

impl Rescue for Found {
    fn lost(&mut self, _: u64, _: Option<&Record<'_>>) {}
}

pub(super) fn recover_again(dir: &TempDir) -> Result<(Recovered, Vec<u64>), RecoverError> {
    recover(&DataDir::open(dir.path(), options(None)).unwrap().shard(0))
}

pub(super) fn segment_path(dir: &TempDir, index: u64) -> std::path::PathBuf {
    dir.path().join(format!("shard-0000/segment-{index:010}.log"))
}

pub(super) fn flip(path: &Path, offset: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

#[test]
fn a_new_directory_is_complete_and_stays_itself() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b");
    let first = DataDir::open(&path, options(Some(3))).unwrap().manifest().clone();
    assert_eq!((first.shards, first.salts.len(), first.segment_bytes), (3, 3, SEGMENT_BYTES));
    assert_ne!(first.seed[0], first.seed[1]);
    let other = OpenOptions { shards: None, default_shards: 7, segment_bytes: 8 << 20 };
    assert_eq!(*DataDir::open(&path, other).unwrap().manifest(), first);
}

#[test]
fn a_log_comes_back_across_segments() {
    let (dir, start) = filled(250);
    assert!(start.lsn > 2 * SEGMENT_BYTES && start.hlc_ms == 42);
    let data = DataDir::open(dir.path(), options(None)).unwrap();
    let (recovered, seqs) = recover(&data.shard(0)).unwrap();
    assert_eq!(seqs, (0..250).collect::<Vec<_>>());
    assert_eq!((recovered.torn, &recovered.segments[..]), (None, &[0, 1, 2][..]));
    append(&data.shard(0), 250, 100);
    assert_eq!(recover(&data.shard(0)).unwrap().1, (0..350).collect::<Vec<_>>());
    assert_eq!(recover(&data.shard(1)).unwrap().0.start.lsn, 0, "the other shard is empty");
}

#[test]
fn every_mode_writes_what_recovery_reads() {
    use DirectMode::*;
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::open(dir.path(), options(None)).unwrap();
    let best = probe(dir.path());
    let modes = [DirectDsync, DirectFdatasync, BufferedFdatasync];
    for mode in modes.into_iter().filter(|mode| best.is_direct() || !mode.is_direct()) {
        let shard = data.shard(0);
        let start = recover(&shard).unwrap().0.start;
        let mut segments = shard.open_segments(start.lsn, mode).unwrap();
        let mut log = Log::new(log_options(), start);
        log.append(&Record::Message(message(b"x")), 1).unwrap();
        write_out(&mut log, &mut segments);
        assert_eq!(recover(&shard).unwrap().0.start.lsn, log.durable());
    }
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 5, "the probe leaves nothing: {left:?}");
}

/// A segment leaves the disk what is to be left; at need less, and no less than
/// that.
#[test]
fn the_reserve_is_left_alone() {
    const NOBODY_HAS: u64 = u64::MAX / 2;
    let (dir, start) = filled(1);
    let shard = DataDir::open(dir.path(), options(None)).unwrap().shard(0);
    let mut segments = shard.open_segments(start.lsn, DirectMode::BufferedFdatasync).unwrap();
    assert!(!segments.lacks_space(1));
    assert!(segments.lacks_space(NOBODY_HAS));
    let files = || fs::read_dir(shard.path()).unwrap().count();
    let before = files();
    for least in [None, Some(NOBODY_HAS / 2)] {
        let mut job = segments.wants_next(start.lsn).unwrap().leaving(NOBODY_HAS);
        if let Some(least) = least {
            job = job.at_need(least);
        }
        let refused = job.run().err().expect("nobody has such a disk");
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
        assert!(refused.to_string().contains("for what gives space back"), "{refused}");
        assert_eq!(files(), before, "nothing is left behind");
    }
    let job = segments.wants_next(start.lsn).unwrap().leaving(NOBODY_HAS).at_need(1);
    let prepared = job.run().unwrap();
    assert!(prepared.is_of_reserve());
    segments.adopt(prepared);
    let prepared = segments.wants_next(Lsn::MAX).unwrap().leaving(1).run().unwrap();
    assert!(!prepared.is_of_reserve());
    segments.adopt(prepared);
    assert_eq!(segments.place_end() % SEGMENT_BYTES, 0);
    assert!(segments.has_space_for(segments.place_end()));
}

#[test]
fn one_and_a_half_segments_are_kept_ahead() {
    let (dir, start) = filled(1);
    let shard = DataDir::open(dir.path(), options(None)).unwrap().shard(0);
    let mut segments = shard.open_segments(start.lsn, DirectMode::BufferedFdatasync).unwrap();
    assert!(segments.has_space_for(SEGMENT_BYTES) && !segments.has_space_for(SEGMENT_BYTES + 1));
    assert_eq!(segments.locate(SEGMENT_BYTES), None);
    let job = segments.wants_next(0).unwrap();
    let prepared = std::thread::scope(|scope| scope.spawn(|| job.run()).join().unwrap()).unwrap();
    segments.adopt(prepared);
    assert!(segments.has_space_for(2 * SEGMENT_BYTES));
    assert_eq!(segments.locate(SEGMENT_BYTES + 5).unwrap().1, 4096 + 5);
    assert!(segments.wants_next(SEGMENT_BYTES / 2 - 1).is_none());
    assert!(segments.wants_next(SEGMENT_BYTES / 2).is_some());
    segments.hurry(false);
    assert!(segments.wants_next(SEGMENT_BYTES - 1).is_none());
    assert!(segments.wants_next(SEGMENT_BYTES).is_some());
    // It is whole on the disk, and recovery finds nothing in it.
    assert_eq!(recover(&shard).unwrap().0.segments, [0, 1]);
    assert_eq!(recover(&shard).unwrap().0.torn, None);
}

#[test]
fn an_end_at_a_segment_boundary_gets_its_segment() {
    let (dir, _) = filled(1);
    let shard = DataDir::open(dir.path(), options(None)).unwrap().shard(0);
    let segments = shard.open_segments(SEGMENT_BYTES, DirectMode::BufferedFdatasync).unwrap();
    assert!(segments.locate(SEGMENT_BYTES).is_some());
}

#[test]
fn a_torn_tail_is_cut_and_said() {
    let (dir, start) = filled(3);
    // Half of a commit, as a crash leaves it: without its first sector.
    let file = File::options().write(true).open(segment_path(&dir, 0)).unwrap();
    file.write_all_at(&[9; 512], BLOCK as Lsn + start.lsn + 512).unwrap();
    let (recovered, seqs) = recover_again(&dir).unwrap();
    assert_eq!(seqs, [0, 1, 2]);
    assert_eq!(recovered.torn, Some(crate::Torn { lsn: start.lsn, bytes: 512 }));
    assert_eq!(recovered.start, start);
    // It becomes blank when the log goes on there, with what a second write has left.
    file.write_all_at(&[9; 512], BLOCK as Lsn + start.lsn + 9 * BLOCK as Lsn).unwrap();
    let shard = DataDir::open(dir.path(), options(None)).unwrap().shard(0);
    drop(shard.open_segments(start.lsn, DirectMode::BufferedFdatasync).unwrap());
    drop(shard);
    let (recovered, _) = recover_again(&dir).unwrap();
    assert_eq!((recovered.torn, recovered.start), (None, start));
}

/// What no torn write leaves was written, whether or not anybody was told.
#[test]
fn rot_of_the_last_commit_is_damage() {
    let (dir, start) = filled(3);
    flip(&segment_path(&dir, 0), start.lsn + 60);
    let said = recover_again(&dir).unwrap_err().to_string();
    assert!(said.contains("offset") && said.contains("it was written and has changed"), "{said}");
}

/// Versions before format 4 left what was torn where the log went on.
#[test]
fn in_a_segment_of_an_older_format_it_is_cut() {
    let (dir, start) = filled(3);
    let path = segment_path(&dir, 0);
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = 3;
    let checksum = crc32c::crc32c(&bytes[..40]);
    bytes[40..44].copy_from_slice(&checksum.to_le_bytes());
    fs::write(&path, &bytes).unwrap();
    flip(&path, start.lsn + 60);
    let (recovered, seqs) = recover_again(&dir).unwrap();
    assert_eq!((recovered.torn.unwrap().lsn, recovered.start.lsn), (0, 0));
    assert!(seqs.is_empty(), "one commit");
}

#[test]
fn damage_in_the_middle_names_file_and_offset() {
    let (dir, _) = filled(150);
    flip(&segment_path(&dir, 0), 4096 + 60);
    let error = recover_again(&dir).unwrap_err();
    let said = error.to_string();
    assert!(said.contains("segment-0000000000.log") && said.contains("offset 4096"), "{said}");
    assert!(matches!(error, RecoverError::Damage { damage, .. } if damage.lsn == 0));
}

#[test]
fn segments_that_do_not_belong_are_named() {
    let check = |spoil: &dyn Fn(&TempDir), word: &str| {
        let (dir, _) = filled(250);
        spoil(&dir);
        let said = recover_again(&dir).unwrap_err().to_string();
        assert!(said.contains("segment-") && said.contains(word), "{said}");
        assert!(said.contains("docs/DURABILITY.md"), "{said}");
    };
    let path = segment_path;
    check(&|dir| fs::remove_file(path(dir, 1)).unwrap(), "segment-0000000001.log is missing");
    check(&|dir| fs::remove_file(path(dir, 0)).unwrap(), "segment-0000000000.log is missing");
    check(&|dir| fs::rename(path(dir, 2), path(dir, 1)).unwrap(), "not where its name puts it");
    check(
        &|dir| {
            let (other, _) = filled(1);
            fs::copy(path(&other, 0), path(dir, 1)).unwrap();
        },
        "belongs to another log",
    );
    check(&|dir| flip(&path(dir, 1), 30), "damaged header");
    check(&|dir| fs::write(path(dir, 1), b"hello").unwrap(), "not a log segment");
    check(&|dir| fs::write(path(dir, 1), b"").unwrap(), "not a log segment");
    check(
        &|dir| {
            let file = File::options().write(true).open(path(dir, 2)).unwrap();
            file.write_all_at(&9u32.to_le_bytes(), 8).unwrap();
        },
        "damaged header",
    );
    check(
        &|dir| File::options().write(true).open(path(dir, 2)).unwrap().set_len(9000).unwrap(),
        "9000 bytes",
    );
}

/// Neither a start nor a repair takes what a newer version wrote for damaged.
#[test]
fn a_segment_of_a_newer_version_is_left_to_that() {
    let (dir, _) = filled(250);
    let mut bytes = fs::read(segment_path(&dir, 2)).unwrap();
    bytes[8] = 9;
    let crc = crc32c::crc32c(&bytes[..40]);
    bytes[40..44].copy_from_slice(&crc.to_le_bytes());
    fs::write(segment_path(&dir, 2), bytes).unwrap();
    let shard = DataDir::open(dir.path(), options(None)).unwrap().shard(0);
    let salvaged = shard.salvage(&mut Found::default(), &mut |_| {}).map(|_| ());
    for refused in [recover(&shard).map(|_| ()), salvaged] {
        let said = refused.unwrap_err().to_string();
        let words = ["segment-0000000002.log", "format 9", "or a newer one"];
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
        assert!(!said.contains("iris-shard repair"), "{said}");
    }
}

#[test]
fn another_shards_segment_is_refused() {
    let (dir, _) = filled(1);
    let data = DataDir::open(dir.path(), options(None)).unwrap();
    // Another shard's log has another number, which is said first.
    let ours = data.shard(0).header(0);
    let theirs = crate::segment::SegmentHeader { shard: 1, ..ours };
    assert_eq!(ours.expect(&theirs.encode()), Err(HeaderError::OtherShard(1)));
}

#[test]
fn our_leftovers_go_and_foreign_files_stay() {
    let (dir, start) = filled(2);
    let shard = dir.path().join("shard-0000");
    for name in ["segment-0000000001.log.tmp", "probe-1-0.tmp", "notes.txt", "segment-1.log"] {
        fs::write(shard.join(name), b"x").unwrap();
    }
    let (recovered, _) = recover_again(&dir).unwrap();
    assert_eq!(recovered.foreign, [shard.join("notes.txt"), shard.join("segment-1.log")]);
    assert_eq!(recovered.start, start);
    assert!(!shard.join("segment-0000000001.log.tmp").exists());
    assert!(!shard.join("probe-1-0.tmp").exists());
}

#[test]
fn a_directory_in_use_is_refused_with_the_pid() {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::open(dir.path(), options(None)).unwrap();
    let error = refusal(dir.path(), options(None));
    let me = std::process::id();
    assert!(matches!(error, DataDirError::Locked { pid: Some(pid), .. } if pid == me), "{error}");
    let shard = data.shard(0);
    drop(data);
    refusal(dir.path(), options(None)); // a shard still holds it
    drop(shard);
    DataDir::open(dir.path(), options(None)).unwrap();
}

#[test]
fn directories_that_are_not_ours_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, b"x").unwrap();
    assert!(matches!(refusal(&file, options(None)), DataDirError::NotADirectory { .. }));
    let below = file.join("below");
    assert!(matches!(refusal(&below, options(None)), DataDirError::NotADirectory { .. }));
    let error = refusal(dir.path(), options(None));
    assert!(matches!(&error, DataDirError::Foreign { found, .. } if found == "file"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing was added");
}

/// Of two that start at once on a new directory, the second may see it half made.
#[test]
fn a_directory_that_another_makes_is_in_use() {
    let (dir, _) = filled(1);
    let open = || DataDir::open(dir.path(), options(None)).map(drop);
    let (manifest, aside) = (dir.path().join("manifest.toml"), dir.path().join("aside"));
    let held = DataDir::open(dir.path(), options(None)).expect("nobody holds it");
    fs::rename(&manifest, &aside).expect("it is the test's own");
    assert!(matches!(open(), Err(DataDirError::Locked { .. })));
    fs::rename(&aside, &manifest).expect("it is the test's own");
    drop(held);
    assert!(open().is_ok());
}

#[test]
fn a_lost_manifest_is_not_a_new_directory() {
    let (dir, _) = filled(1);
    fs::remove_file(dir.path().join("manifest.toml")).unwrap();
    assert!(matches!(refusal(dir.path(), options(None)), DataDirError::Foreign { .. }));
}

#[test]
fn what_a_crash_while_making_leaves_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("shard-0000")).unwrap();
    fs::create_dir_all(dir.path().join("lost+found")).unwrap();
    fs::write(dir.path().join("manifest.toml.tmp"), b"form").unwrap();
    fs::write(dir.path().join("lock"), b"").unwrap();
    DataDir::open(dir.path(), options(None)).unwrap();
    assert!(!dir.path().join("manifest.toml.tmp").exists());
}

#[test]
fn another_format_or_a_lost_shard_is_refused() {
    let (dir, _) = filled(1);
    let kept = DataDir::open(dir.path(), options(Some(5))).unwrap().manifest().shards;
    assert_eq!(kept, 2, "an open changes nothing");

    let manifest = dir.path().join("manifest.toml");
    let text = fs::read_to_string(&manifest).unwrap();
    let newer = Manifest { format: 9, ..Manifest::decode(&text).unwrap() };
    fs::write(&manifest, newer.encode()).unwrap();
    let error = refusal(dir.path(), options(None));
    assert!(matches!(error, DataDirError::OtherFormat { written: 9, .. }), "{error}");
    fs::write(&manifest, [0xff, 0xfe]).unwrap();
    assert!(matches!(refusal(dir.path(), options(None)), DataDirError::Manifest { .. }));
    fs::write(&manifest, text).unwrap();

    fs::remove_dir_all(dir.path().join("shard-0001")).unwrap();
    assert!(matches!(refusal(dir.path(), options(None)), DataDirError::ShardMissing { .. }));
}

#[test]
fn options_that_cannot_be_are_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new");
    for bad in [
        OpenOptions { segment_bytes: 4096, ..options(None) },
        OpenOptions { segment_bytes: SEGMENT_BYTES + 1, ..options(None) },
        options(Some(0)),
        options(Some(4097)),
    ] {
        assert!(matches!(refusal(&path, bad), DataDirError::Options { .. }));
    }
    assert!(!path.exists());
}

#[test]
fn what_the_system_says_gets_its_name() {
    let check = |errno: i32, word: &str| {
        let error = io::Error::from_raw_os_error(errno);
        let said = DataDirError::from_io(Path::new("/data"), error).to_string();
        assert!(said.contains("/data") && said.contains(word), "{said}");
    };
    check(libc::EROFS, "read-only");
    check(libc::EACCES, "may not read or write");
    check(libc::EPERM, "may not read or write");
    check(libc::ENOTDIR, "not a directory");
    check(libc::ENOSPC, "no space");
    check(libc::EDQUOT, "no space");
    check(libc::EIO, "could not be used");
}

#[test]
fn a_segment_that_cannot_be_made_leaves_nothing() {
    let (dir, start) = filled(1);
    let shard = DataDir::open(dir.path(), options(None)).unwrap().shard(0);
    let segments = shard.open_segments(start.lsn, DirectMode::BufferedFdatasync).unwrap();
    let job = segments.wants_next(SEGMENT_BYTES).unwrap();
    let gone = dir.path().join("away");
    fs::rename(shard.path(), &gone).unwrap();
    assert!(job.run().is_err());
    fs::rename(&gone, shard.path()).unwrap();
    segments.wants_next(SEGMENT_BYTES).unwrap().run().unwrap();
}

/// With less free than two logs keep, one of them goes on to its end.
#[test]
fn who_has_begun_with_what_is_kept_goes_on() {
    const EACH: u64 = SPARE_SEGMENTS as u64;
    for count in 1..=4 {
        // Segments that are free; all that are needed make no difference.
        for free in 1..=EACH * count + 1 {
            let (mut left, mut now) = (vec![EACH; count as usize], free);
            let mut took_one = true;
            while std::mem::take(&mut took_one) {
                for at in 0..left.len() {
                    let others = left.iter().enumerate().filter(|(it, _)| *it != at);
                    let leaves = spare_to_leave(left[at], others.map(|(_, left)| *left));
                    if left[at] > 0 && now > leaves {
                        (left[at], now, took_one) = (left[at] - 1, now - 1, true);
                    }
                }
            }
            let served = left.iter().filter(|left| **left == 0).count() as u64;
            assert!(served >= (free / EACH).min(count), "{left:?} of {free}, {now} left");
            assert!(free < EACH || served > 0);
        }
    }
    // Whoever has used up his own touches nothing of the others'.
    assert_eq!(spare_to_leave(0, [EACH, 1].into_iter()), EACH + 1);
}
