//! What cleaning a segment costs the log, beside the plain disk with the same
//! reads, writes and syncs: walk through it, copy what is live to the log's end,
//! make the copies durable, delete it. Which records are live is decided by
//! counting; in the server the inboxes know.
//!
//! One thing after the other and through the page cache, which is empty of the
//! segment at first. The server reads the next piece while the copies of this
//! one are written.

use std::fs::{self, File};
use std::hint::black_box;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BatchSize, BenchmarkGroup, BenchmarkId, Criterion, Throughput};
use tempfile::TempDir;
use wal::clean::Walker;
use wal::{Lsn, Record};

use super::disk::{BODY, SEGMENT_BYTES, Store, cold, forget_pages, path, temporary_dir};
use super::message;

/// One of so many records is live.
const LIVE: [(u64, &str); 2] = [(4, "a quarter live"), (2, "half live")];
/// The longest read, as for a survey of the shard's.
const READ_BYTES: u32 = 256 << 10;
/// So much is copied before it is committed and read on, as by the shard.
const COPY_BYTES_MAX: Lsn = 64 << 10;

/// What the disk has to do for it.
#[derive(Clone, Copy, Debug)]
enum Step {
    Read {
        offset: u64,
        len: u32,
    },
    /// With an fdatasync behind it.
    Write {
        len: usize,
    },
}

pub(crate) fn clean(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wal/clean a segment");
    group.sample_size(20);
    group.throughput(Throughput::Bytes(SEGMENT_BYTES));
    walk_only(&mut group);
    for (one_of, name) in LIVE {
        let mut store = Store::new();
        let steps = clean_segment(&mut store, one_of).1;
        group.bench_function(BenchmarkId::new(name, "log"), |bencher| {
            bencher
                .iter_custom(|times| (0..times).map(|_| clean_segment(&mut store, one_of).0).sum());
        });
        let plain = Plain::new();
        group.bench_function(BenchmarkId::new(name, "plain"), |bencher| {
            bencher.iter_custom(|times| (0..times).map(|_| plain.repeat(&steps)).sum());
        });
    }
    group.finish();
}

/// The part of it that only reads.
fn walk_only(group: &mut BenchmarkGroup<'_, WallTime>) {
    let mut store = Store::new();
    let segment = fill(&mut store);
    let salt = store.log.checkpoint().salt;
    let file = path(&store.shard, segment);
    group.bench_function("walk only/log", |bencher| {
        bencher.iter_batched(
            || cold(&file),
            |file| {
                let mut walker = Walker::new(salt, segment, SEGMENT_BYTES, READ_BYTES);
                let mut buffer = vec![0; READ_BYTES as usize];
                let mut records = 0u64;
                while let Some((lsn, bytes)) = read(&walker, &file, &mut buffer).unwrap() {
                    let sink = &mut |_, _, record: Record<'_>| {
                        black_box(record);
                        records += 1;
                        ControlFlow::Continue(())
                    };
                    walker.feed(lsn, bytes, sink).unwrap();
                }
                records
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("walk only/plain", |bencher| {
        bencher.iter_batched(
            || cold(&file),
            |file| {
                let mut buffer = vec![0; READ_BYTES as usize];
                for offset in (0..SEGMENT_BYTES).step_by(buffer.len()) {
                    file.read_exact_at(&mut buffer, offset).unwrap();
                }
            },
            BatchSize::PerIteration,
        );
    });
}

/// Appends until the first segment there is is full and room for what will be
/// copied out of it was made, brings everything to the disk, and says which
/// segment that is.
fn fill(store: &mut Store) -> u64 {
    let segment = store.segments.present().next().expect("the log has a segment");
    while store.log.end() <= wal::segment::base(segment + 1, SEGMENT_BYTES) {
        store.append(&message(&BODY));
    }
    store.settle();
    store.make_segments();
    segment
}

/// What the next piece of a walk is about.
fn read<'a>(
    walker: &Walker,
    file: &File,
    buffer: &'a mut [u8],
) -> io::Result<Option<(Lsn, &'a [u8])>> {
    let Some(want) = walker.want() else { return Ok(None) };
    let bytes = &mut buffer[..want.len as usize];
    file.read_exact_at(bytes, wal::segment::file_offset(want.lsn, SEGMENT_BYTES))?;
    Ok(Some((want.lsn, bytes)))
}

/// Fills a segment and cleans it; how long the cleaning took, and what the disk
/// did for it.
fn clean_segment(store: &mut Store, one_of: u64) -> (Duration, Vec<Step>) {
    let segment = fill(store);
    let salt = store.log.checkpoint().salt;
    let file = cold(&path(&store.shard, segment));
    let mut buffer = vec![0; READ_BYTES as usize];
    let (mut steps, mut records) = (Vec::new(), 0);
    let began = Instant::now();
    let mut walker = Walker::new(salt, segment, SEGMENT_BYTES, READ_BYTES);
    while let Some((lsn, bytes)) = read(&walker, &file, &mut buffer).unwrap() {
        let offset = wal::segment::file_offset(lsn, SEGMENT_BYTES);
        steps.push(Step::Read { offset, len: bytes.len() as u32 });
        let log = &mut store.log;
        let end_max = log.end() + COPY_BYTES_MAX;
        let sink = &mut |_, _, record: Record<'_>| {
            records += 1;
            if records % one_of == 0 {
                let copy = record.copied().expect("a message stands there");
                log.append(&copy, 1).expect("everything before is durable");
            }
            let is_enough = log.end() >= end_max;
            if is_enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        walker.feed(lsn, bytes, sink).unwrap();
        store.write_out(|bytes, file, offset| {
            steps.push(Step::Write { len: bytes.len() });
            file.write_all_at(bytes, offset)?;
            file.sync_data()
        });
    }
    drop(file);
    let removal = store.segments.remove(segment).expect("it is not the last one");
    let mut remains = removal.run().unwrap();
    // Without the server's pauses between the steps.
    while let Some(rest) = remains {
        remains = rest.shrink();
    }
    (began.elapsed(), steps)
}

/// A file that is read and deleted, and one that is written to, which as a
/// segment has its blocks already.
struct Plain {
    _dir: TempDir,
    from: PathBuf,
    to: File,
}

impl Plain {
    fn new() -> Plain {
        let dir = temporary_dir();
        let to = full_file(&dir.path().join("to"), 0);
        Plain { from: dir.path().join("from"), _dir: dir, to }
    }

    /// The same for the disk, once more; how long that took.
    fn repeat(&self, steps: &[Step]) -> Duration {
        drop(full_file(&self.from, 5));
        let from = cold(&self.from);
        forget_pages(&self.to);
        let mut buffer = vec![5; READ_BYTES as usize];
        let mut at = 0;
        let began = Instant::now();
        for step in steps {
            match *step {
                Step::Read { offset, len } => {
                    from.read_exact_at(&mut buffer[..len as usize], offset).unwrap();
                }
                Step::Write { len } => {
                    self.to.write_all_at(&buffer[..len], at).unwrap();
                    self.to.sync_data().unwrap();
                    at += len as u64;
                }
            }
        }
        fs::remove_file(&self.from).unwrap();
        drop(from);
        began.elapsed()
    }
}

/// As large as a segment's, and on the disk.
fn full_file(path: &Path, byte: u8) -> File {
    let file = File::create(path).unwrap();
    let bytes = vec![byte; wal::segment::file_bytes(SEGMENT_BYTES) as usize];
    file.write_all_at(&bytes, 0).unwrap();
    file.sync_all().unwrap();
    file
}
