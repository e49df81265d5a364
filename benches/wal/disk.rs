//! What the log costs with a disk, each beside what the plain disk does with
//! the same bytes: a group commit, and reading back at boot with and without a
//! snapshot.
//!
//! Every read really reads: the page cache is emptied of the file before it.

use std::fs::{self, File, OpenOptions};
use std::hint::black_box;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use rustix::fs::{Advice, fadvise};
use tempfile::TempDir;
use wal::disk::{DataDir, DirectMode, Segments, ShardDir, SnapshotFile};
use wal::record::Malformed;
use wal::snapshot::{Kind, Writer};
use wal::{Log, LogOptions, LogStart, Lsn, Record, Restore};

use super::message;

pub(crate) const SEGMENT_BYTES: u64 = 16 << 20;
/// Segments that are full.
const SEGMENTS: u64 = 4;
pub(crate) const BODY: [u8; 100] = [5; 100];
/// Waiting messages in the snapshot, of 16 bytes each.
const ENTRIES: usize = 1 << 20;

/// Counts.
#[derive(Default)]
struct Count {
    records: u64,
    state_bytes: u64,
}

impl Restore for Count {
    fn reset(&mut self) {
        *self = Count::default();
    }

    fn state(&mut self, payload: &[u8]) -> Result<(), Malformed> {
        self.state_bytes += payload.len() as u64;
        Ok(())
    }

    fn space(&mut self, _: &[u8]) -> Result<(), Malformed> {
        Ok(())
    }

    fn loaded(&mut self, _: LogStart, _: Lsn) {}

    fn record(&mut self, _: Lsn, _: u32, record: &Record<'_>) {
        black_box(record);
        self.records += 1;
    }

    fn needed(&self) -> Vec<(u64, u64, u64)> {
        Vec::new()
    }
}

/// A log on a disk.
pub(crate) struct Store {
    _dir: TempDir,
    _data: DataDir,
    pub(crate) shard: ShardDir,
    pub(crate) segments: Segments,
    pub(crate) log: Log,
    /// The segment that was written to last.
    open: Option<(u64, File)>,
}

impl Store {
    pub(crate) fn new() -> Store {
        let dir = temporary_dir();
        let options = wal::disk::OpenOptions {
            shards: None,
            default_shards: 1,
            segment_bytes: SEGMENT_BYTES,
        };
        let data = DataDir::open(dir.path(), options).expect("it is new");
        let shard = data.shard(0);
        let start = recover(&shard).0;
        let segments =
            shard.open_segments(start.lsn, DirectMode::BufferedFdatasync).expect("there is space");
        let log = Log::new(log_options(), start);
        Store { _dir: dir, _data: data, shard, segments, log, open: None }
    }

    /// With full segments, and a little in the next one.
    fn filled() -> Store {
        let mut store = Store::new();
        while store.log.end() < SEGMENTS * SEGMENT_BYTES + 1000 {
            store.append(&message(&BODY));
        }
        store.settle();
        store
    }

    /// Appends a record, and writes out what is in its way.
    pub(crate) fn append(&mut self, record: &Record<'_>) {
        if self.log.append(record, 1).is_err() {
            self.write_out(|bytes, file, offset| file.write_all_at(bytes, offset));
            self.log.append(record, 1).expect("everything before is written");
        }
    }

    /// Brings everything that was appended to the disk.
    pub(crate) fn settle(&mut self) {
        self.write_out(|bytes, file, offset| file.write_all_at(bytes, offset));
        for index in self.segments.present() {
            File::open(path(&self.shard, index)).unwrap().sync_all().unwrap();
        }
    }

    /// Makes the segments that the server would have ahead.
    pub(crate) fn make_segments(&mut self) {
        while let Some(job) = self.segments.wants_next(self.log.end()) {
            self.segments.adopt(job.run().expect("there is space"));
        }
    }

    pub(crate) fn write_out(&mut self, mut write: impl FnMut(&[u8], &File, u64) -> io::Result<()>) {
        while let Some(commit) = self.log.next_write() {
            let end = commit.lsn + Lsn::from(commit.len);
            while !self.segments.has_space_for(end) {
                self.make_segments();
            }
            let index = commit.lsn / SEGMENT_BYTES;
            let (_, file) = match self.open.take() {
                Some((open, file)) if open == index => self.open.insert((open, file)),
                _ => {
                    let file = OpenOptions::new().write(true).open(path(&self.shard, index));
                    self.open.insert((index, file.unwrap()))
                }
            };
            let offset = wal::segment::file_offset(commit.lsn, SEGMENT_BYTES);
            write(self.log.write_bytes(&commit), file, offset).expect("a write");
            self.log.written(commit.lsn, true);
        }
    }

    /// A snapshot of as many entries, the log durable.
    fn snapshot(&self) {
        let start = self.log.checkpoint();
        let mut file = SnapshotFile::create(&self.shard, start.lsn).unwrap();
        let mut bytes = Vec::new();
        let mut writer = Writer::new(0, &start, &mut bytes);
        let payload = vec![0xa5; 32 << 10];
        for _ in 0..ENTRIES * 16 / payload.len() {
            writer.frame(Kind::State, &payload, &mut bytes);
            file.write(&bytes).unwrap();
            bytes.clear();
        }
        writer.end(self.log.end(), &mut bytes);
        file.write(&bytes).unwrap();
        file.finish().unwrap();
    }

    fn segment_paths(&self) -> Vec<PathBuf> {
        self.segments.present().map(|index| path(&self.shard, index)).collect()
    }
}

/// In the directory for temporary files or `IRIS_BENCH_DIR`.
pub(crate) fn temporary_dir() -> TempDir {
    let dir = match std::env::var_os("IRIS_BENCH_DIR") {
        Some(path) => TempDir::new_in(path),
        None => TempDir::new(),
    };
    dir.expect("a directory")
}

pub(crate) fn log_options() -> LogOptions {
    LogOptions { segment_bytes: SEGMENT_BYTES, ..LogOptions::default() }
}

pub(crate) fn path(shard: &ShardDir, index: u64) -> PathBuf {
    shard.path().join(format!("segment-{index:010}.log"))
}

fn recover(shard: &ShardDir) -> (LogStart, Count) {
    let mut count = Count::default();
    let recovered = shard.recover(&mut count, &mut |_| {}).unwrap_or_else(|e| panic!("{e}"));
    (recovered.start, count)
}

/// Reads whole files in pieces, from the disk.
fn read_plain(paths: &[PathBuf], buffer: &mut [u8]) -> u64 {
    let mut total = 0;
    for path in paths {
        let file = cold(path);
        let mut at = 0;
        loop {
            let got = file.read_at(buffer, at).unwrap();
            if got == 0 {
                break;
            }
            at += got as u64;
        }
        total += at;
    }
    total
}

pub(crate) fn cold(path: &Path) -> File {
    let file = File::open(path).unwrap();
    forget_pages(&file);
    file
}

/// Those of the page cache that are on the disk.
pub(crate) fn forget_pages(file: &File) {
    fadvise(file, 0, None, Advice::DontNeed).unwrap();
}

fn files_bytes(paths: &[PathBuf]) -> u64 {
    paths.iter().map(|path| fs::metadata(path).unwrap().len()).sum()
}

pub(crate) fn group_commit(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wal/group commit, 100 B");
    for batch in [1, 64, 512] {
        let mut store = Store::new();
        group.throughput(Throughput::Elements(batch));
        group.bench_function(BenchmarkId::new("log", batch), |bencher| {
            bencher.iter_custom(|times| (0..times).map(|_| commit(&mut store, batch)).sum());
        });
        let record_bytes = wal::record::encoded_len(&message(&BODY));
        let bytes = vec![5; (48 + batch as usize * record_bytes).next_multiple_of(wal::BLOCK)];
        let file = OpenOptions::new().write(true).open(path(&store.shard, 0)).unwrap();
        let mut at = 0;
        group.bench_function(BenchmarkId::new("plain write and fdatasync", batch), |bencher| {
            bencher.iter(|| {
                file.write_all_at(&bytes, at).unwrap();
                file.sync_data().unwrap();
                at = (at + bytes.len() as u64) % (SEGMENT_BYTES - bytes.len() as u64);
            });
        });
    }
    group.finish();
}

/// How long a commit takes that finds its segment made, as in the server.
fn commit(store: &mut Store, batch: u64) -> Duration {
    store.make_segments();
    let began = Instant::now();
    for _ in 0..batch {
        store.log.append(&message(&BODY), 1).expect("everything is durable");
    }
    store.write_out(|bytes, file, offset| {
        file.write_all_at(bytes, offset)?;
        file.sync_data()
    });
    began.elapsed()
}

pub(crate) fn recovery(criterion: &mut Criterion) {
    let store = Store::filled();
    let mut buffer = vec![0; 1 << 20];
    let mut group = criterion.benchmark_group("wal/recover");
    group.sample_size(10);
    let paths = store.segment_paths();
    group.throughput(Throughput::Bytes(files_bytes(&paths)));
    group.bench_function("the whole log", |bencher| bencher.iter(|| recover(&store.shard)));
    group.bench_function("the same files, plain", |bencher| {
        bencher.iter(|| read_plain(&paths, &mut buffer));
    });
    store.snapshot();
    let last = SEGMENTS;
    let mut paths = store.segment_paths().split_off(last as usize);
    let snapshots = fs::read_dir(store.shard.path()).unwrap().map(|entry| entry.unwrap().path());
    paths.extend(snapshots.filter(|path| path.extension().is_some_and(|end| end == "snap")));
    group.throughput(Throughput::Bytes(files_bytes(&paths)));
    group.bench_function("a snapshot of a million messages", |bencher| {
        bencher.iter(|| recover(&store.shard));
    });
    group.bench_function("its files, plain", |bencher| {
        bencher.iter(|| read_plain(&paths, &mut buffer));
    });
    group.finish();
}
