//! The plain loop that everything durable is compared with: write 4 KiB,
//! fdatasync, again, into a file that was written full of zeroes before, so that
//! no commit has to change the file system's own tables.
//!
//! `sync_loop --dir DIRECTORY [--seconds N] [--direct]` prints one JSON object
//! with the rate and the times of one write with its fdatasync; `waited_p99_us` is
//! what 99 of 100 who come at any moment wait at most for the end of the write
//! under way, which is where a stall counts for as long as it lasts. `--direct` opens
//! the file with `O_DIRECT` and `O_DSYNC` instead, which is how the log writes
//! where the file system can.
//!
//! `--bytes N` is the size of a write, a multiple of 4 KiB, `--pause-us N` the
//! rest between two; `--beside segments` makes segments of 64 MiB and deletes
//! them meanwhile, `--beside snapshots` writes snapshots of 24 MiB.
//!
//! `--rate R` is the plainest group commit instead: R records of `--record N` bytes
//! become due in a second, evenly, and each write takes all that are due by then,
//! in whole blocks. `due_p50_us` and `due_p99_us` are the times from when a record
//! was due to the end of its write.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::num::{NonZeroU32, NonZeroUsize};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use wal::Lsn;
use wal::disk::{DataDir, OpenOptions as DataDirOptions, ShardDir, SnapshotFile, probe};

const BLOCK_BYTES: usize = 4096;
const FILE_BYTES: usize = 64 << 20;
/// Of records that are due together.
const WRITE_BYTES_MAX: usize = 1 << 20;

const SNAPSHOT_BYTES: usize = 24 << 20;
/// So much of a snapshot comes from the shard at once, and so long after the last.
const FRAMES_BYTES: usize = 256 << 10;
const FRAMES_PAUSE: Duration = Duration::from_millis(1);

const USAGE: &str = "usage: sync_loop --dir DIRECTORY [--seconds N] [--direct] \
     [--bytes N] [--pause-us N] [--rate N [--record N]] [--beside segments|snapshots]";

/// What is measured.
struct Loop {
    duration: Duration,
    direct: bool,
    bytes: usize,
    pause: Duration,
    /// Instead of writes of one size.
    records: Option<Records>,
}

/// What becomes due.
#[derive(Clone, Copy)]
struct Records {
    per_second: f64,
    bytes: usize,
}

/// Microseconds.
#[derive(Default)]
struct Times {
    writes: Vec<u32>,
    records: Vec<u32>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let (mut dir, mut seconds, mut direct) = (None, 2.0, false);
    let (mut bytes, mut pause_us, mut beside) = (BLOCK_BYTES, 0, None);
    let (mut rate, mut record_bytes) = (None, 200_usize);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{name} wants a value"));
        match name.as_str() {
            "--dir" => dir = Some(PathBuf::from(value()?)),
            "--seconds" => seconds = value()?.parse::<f64>()?,
            "--direct" => direct = true,
            "--bytes" => bytes = value()?.parse::<usize>()?.next_multiple_of(BLOCK_BYTES),
            "--pause-us" => pause_us = value()?.parse()?,
            "--beside" => beside = Some(value()?),
            "--rate" => rate = Some(value()?.parse::<NonZeroU32>()?),
            "--record" => record_bytes = value()?.parse::<NonZeroUsize>()?.get(),
            _ => return Err(format!("unknown argument {name}").into()),
        }
    }
    let dir = dir.ok_or(USAGE)?;
    let path = dir.join(format!("sync_loop.{}", std::process::id()));
    let (duration, pause) = (Duration::from_secs_f64(seconds), Duration::from_micros(pause_us));
    if rate.is_some() && (bytes != BLOCK_BYTES || pause_us != 0) {
        return Err(
            "--rate decides how large writes are and when: no --bytes, no --pause-us".into()
        );
    }
    if record_bytes > WRITE_BYTES_MAX {
        return Err(format!("a record has {WRITE_BYTES_MAX} bytes at most").into());
    }
    let records = rate.map(|rate| Records { per_second: rate.get().into(), bytes: record_bytes });
    let bytes = if records.is_some() { WRITE_BYTES_MAX } else { bytes };
    let bytes = bytes.clamp(BLOCK_BYTES, FILE_BYTES / 2);
    let run = Loop { duration, direct, bytes, pause, records };
    let result = match beside.as_deref() {
        None => measure(&path, &run),
        Some("segments") => beside_it(&dir, make_segments, || measure(&path, &run)),
        Some("snapshots") => beside_it(&dir, write_snapshots, || measure(&path, &run)),
        Some(other) => Err(format!("beside what: segments or snapshots, not {other}").into()),
    };
    std::fs::remove_file(&path)?;
    let Times { mut writes, mut records } = result?;
    writes.sort_unstable();
    records.sort_unstable();
    println!("{{\n  \"writes_per_s\": {:.0},", writes.len() as f64 / seconds);
    for (name, share) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999)] {
        println!("  \"{name}_us\": {},", at(&writes, share));
    }
    if !records.is_empty() {
        println!("  \"records_per_s\": {:.0},", records.len() as f64 / seconds);
        println!(
            "  \"due_p50_us\": {},\n  \"due_p99_us\": {},",
            at(&records, 0.5),
            at(&records, 0.99)
        );
    }
    println!("  \"waited_p99_us\": {:.0}\n}}", waited_us(&writes, 0.99));
    Ok(())
}

fn at(sorted_us: &[u32], share: f64) -> u32 {
    sorted_us[(sorted_us.len() as f64 * share) as usize]
}

/// The wait that `share` of those who come at random times do not exceed. Who
/// comes during a write that takes `t` waits for a time between 0 and `t`.
fn waited_us(sorted_us: &[u32], share: f64) -> f64 {
    let total: f64 = sorted_us.iter().map(|time| f64::from(*time)).sum();
    let (mut low, mut high) = (0.0, sorted_us.last().map_or(0.0, |time| f64::from(*time)));
    for _ in 0..40 {
        let wait = (low + high) / 2.0;
        let longer: f64 = sorted_us.iter().map(|time| (f64::from(*time) - wait).max(0.0)).sum();
        if longer / total > 1.0 - share { low = wait } else { high = wait }
    }
    high
}

/// Does something with a data directory of its own while something else runs.
fn beside_it<T>(
    dir: &Path,
    work: fn(&ShardDir, &AtomicBool) -> std::io::Result<()>,
    run: impl FnOnce() -> Result<T, Box<dyn Error>>,
) -> Result<T, Box<dyn Error>> {
    let dir = dir.join(format!("sync_loop.{}.data", std::process::id()));
    let options = DataDirOptions { shards: None, default_shards: 1, segment_bytes: 64 << 20 };
    let shard = DataDir::open(&dir, options)?.shard(0);
    let is_over = AtomicBool::new(false);
    let (result, worked) = std::thread::scope(|scope| {
        let worker = scope.spawn(|| work(&shard, &is_over));
        let result = run();
        is_over.store(true, Ordering::Relaxed);
        (result, worker.join().expect("it does not panic"))
    });
    std::fs::remove_dir_all(&dir)?;
    worked?;
    result
}

fn make_segments(shard: &ShardDir, is_over: &AtomicBool) -> std::io::Result<()> {
    let mut segments =
        shard.open_segments(0, probe(shard.path())).map_err(std::io::Error::other)?;
    let mut index = 0;
    while !is_over.load(Ordering::Relaxed) {
        let next = segments.wants_next(Lsn::MAX).expect("there is never enough");
        segments.adopt(next.run()?);
        drop(segments.remove(index).expect("it is not the last").run()?);
        index += 1;
    }
    Ok(())
}

fn write_snapshots(shard: &ShardDir, is_over: &AtomicBool) -> std::io::Result<()> {
    let frames = vec![0x5a; FRAMES_BYTES];
    let mut start = 0;
    while !is_over.load(Ordering::Relaxed) {
        let mut file = SnapshotFile::create(shard, start)?;
        for _ in 0..SNAPSHOT_BYTES / FRAMES_BYTES {
            file.write(&frames)?;
            std::thread::sleep(FRAMES_PAUSE);
        }
        file.finish()?;
        start += 1;
    }
    Ok(())
}

/// How long each write took until it was durable, and each record since it was due.
fn measure(path: &Path, run: &Loop) -> Result<Times, Box<dyn Error>> {
    let zeroes = vec![0; 1 << 20];
    let file = File::create(path)?;
    for at in (0..FILE_BYTES).step_by(zeroes.len()) {
        file.write_all_at(&zeroes, at as u64)?;
    }
    file.sync_all()?;
    let flags = if run.direct { libc::O_DIRECT | libc::O_DSYNC } else { 0 };
    let file = OpenOptions::new().write(true).custom_flags(flags).open(path)?;
    // Where `O_DIRECT` wants it.
    let memory = vec![0xa5; run.bytes + BLOCK_BYTES];
    let start = memory.as_ptr().align_offset(BLOCK_BYTES);
    let block = &memory[start..start + run.bytes];
    let mut times = Times { writes: Vec::with_capacity(1 << 20), ..Times::default() };
    let (began, mut offset) = (Instant::now(), 0);
    while times.writes.is_empty() || began.elapsed() < run.duration {
        let due = run.records.map(|records| await_due(records, times.records.len(), began));
        let bytes = due.as_ref().map_or(run.bytes, |due| due.bytes);
        if offset + bytes > FILE_BYTES {
            offset = 0;
        }
        let before = Instant::now();
        file.write_all_at(&block[..bytes], offset as u64)?;
        if !run.direct {
            file.sync_data()?;
        }
        let after = Instant::now();
        offset += bytes;
        times.writes.push((after - before).as_micros() as u32);
        if let (Some(records), Some(due)) = (run.records, due) {
            let ended = (after - began).as_secs_f64();
            let waited = |index: usize| (ended - index as f64 / records.per_second) * 1e6;
            let first = times.records.len();
            times.records.extend((first..first + due.count).map(|index| waited(index) as u32));
        }
        if !run.pause.is_zero() {
            std::thread::sleep(run.pause);
        }
    }
    Ok(times)
}

struct Due {
    count: usize,
    bytes: usize,
}

/// Waits until the record of this index is due, and takes what is due by then.
fn await_due(records: Records, index: usize, began: Instant) -> Due {
    let due = Duration::from_secs_f64(index as f64 / records.per_second);
    // An open loop: nobody could be asked when the next one is due but the schedule.
    std::thread::sleep(due.saturating_sub(began.elapsed()));
    let until = (began.elapsed().as_secs_f64() * records.per_second) as usize + 1;
    let count = (until - index).min(WRITE_BYTES_MAX / records.bytes).max(1);
    let bytes = (count * records.bytes).next_multiple_of(BLOCK_BYTES).min(WRITE_BYTES_MAX);
    Due { count, bytes }
}
