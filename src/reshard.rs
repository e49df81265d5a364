//! Another number of shards than the data directory was written for: everything
//! is rewritten as a new layout beside the present one, before anybody is served.
//!
//! The order of the steps is `shard::Rewrite`'s: read back every shard, deal
//! their users out anew, copy what waits from the old logs to the new ones, take
//! snapshots, read all of it back once more, and only then store the manifest
//! that names the new layout: that is the switch. Here each step is carried out
//! on files. Whatever goes wrong before the switch, the old layout is as it was;
//! whatever happens after, the new one is whole.
//!
//! One thread copies. Each old segment in which something waits is read once, in
//! order, and in pieces; memory is what the shards hold and a tail for each.

use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use shard::{KeyHasher, Load, Options, Replay, Rewrite, SnapshotPart, Step};
use wal::disk::{DataDir, DataDirError, DirectMode, Generation, Segments, ShardDir, SnapshotFile};
use wal::snapshot::{Kind, Writer};
use wal::{LogOptions, LogStart, Lsn, Record, segment};
use wire::id::ShardId;

use crate::boot::cannot_thread;
use crate::exit::Exit;
use crate::progress::Teller;
use crate::read_back::{bytes, read_back};

/// Of the bytes that are copied so many are lost at most at the ends of writes.
const PADDING_PER: u64 = 12;

/// What a layout is made with.
pub(crate) struct Layout<'a> {
    pub(crate) log: LogOptions,
    pub(crate) mode: DirectMode,
    /// Between two words of how far it is.
    pub(crate) pause: Duration,
    /// The options of one of so many shards.
    pub(crate) options: &'a (dyn Fn(ShardId, u16) -> Options + Sync),
}

/// A shard as it was, and where its log ends.
type ReadBack = (Replay, LogStart);

/// One shard of the old layout.
struct Source {
    dir: ShardDir,
    end: Lsn,
}

/// One shard of the new layout.
struct Target {
    dir: ShardDir,
    segments: Segments,
}

/// A new layout on its way to the disk.
struct Rewriting<'a> {
    next: &'a Generation,
    layout: &'a Layout<'a>,
    sources: Vec<Source>,
    /// None before they are made.
    targets: Vec<Target>,
    progress: Progress,
}

/// Rewrites the data directory for this number of shards.
///
/// # Errors
/// Why not; the old layout counts and is as it was.
pub(crate) fn reshard(data: &mut DataDir, shards: u16, layout: &Layout<'_>) -> Result<(), Exit> {
    let began = Instant::now();
    let written = data.manifest().shards;
    tracing::info!(
        "{} was written for {written} shards and {shards} are asked for: rewriting it; until that \
         is complete the old layout stays as it is and counts",
        data.path().display()
    );
    let (replays, sources) = read_all(data, layout)?;
    // Of an attempt that a crash ended; its space is needed.
    sweep(data)?;
    let loads = shard::weigh(&replays, shards);
    let total = loads.iter().map(|load| load.message_bytes).sum();
    check_space(data, &loads, layout)?;
    let next = data.next_generation(shards).map_err(refused)?;
    match fill(&next, replays, sources, layout, total) {
        Ok(()) => {}
        Err(exit) => {
            next.abandon();
            return Err(exit);
        }
    }
    data.switch(next).map_err(refused)?;
    let of = if shards == 1 { "shard" } else { "shards" };
    tracing::info!(
        "rewritten for {shards} {of} in {} ms, {} of messages copied; the old layout is removed \
         next",
        began.elapsed().as_millis(),
        bytes(total)
    );
    Ok(())
}

/// Removes what is left of other layouts, and says so.
///
/// # Errors
/// When the directory cannot be read.
pub(crate) fn sweep(data: &DataDir) -> Result<(), Exit> {
    let failed = |error| refused(DataDirError::from_io(data.path(), error));
    for (path, outcome) in data.leftovers().map_err(failed)?.remove() {
        let path = path.display();
        match outcome {
            Ok(()) => tracing::info!("removed {path}, which belongs to no layout that counts"),
            Err(error) => tracing::warn!(
                "{path} belongs to no layout that counts and could not be removed: {error}; it \
                 takes space and does no harm"
            ),
        }
    }
    Ok(())
}

fn refused(error: DataDirError) -> Exit {
    Exit::data(error.to_string())
}

/// Reads all shards back, each on a thread of its own.
fn read_all(data: &DataDir, layout: &Layout<'_>) -> Result<(Vec<ReadBack>, Vec<Source>), Exit> {
    let manifest = data.manifest();
    let hasher = KeyHasher::new(manifest.seed);
    let read = |id: ShardId| {
        let dir = data.shard(id);
        let options = (layout.options)(id, manifest.shards);
        let teller = Teller::to_log(layout.pause);
        let (replay, recovered) = read_back(&dir, options, hasher, &layout.log, teller)?;
        Ok(((replay, recovered.start), Source { dir, end: recovered.start.lsn }))
    };
    thread::scope(|scope| {
        let read = &read;
        let spawn = |id| {
            let thread = thread::Builder::new().spawn_scoped(scope, move || read(id));
            thread.map_err(|error| cannot_thread(&error))
        };
        let threads = (0..manifest.shards).map(spawn).collect::<Result<Vec<_>, Exit>>()?;
        threads.into_iter().map(|thread| thread.join().expect("a panic aborts")).collect()
    })
}

/// Refuses what will most likely not fit before anything is written.
fn check_space(data: &DataDir, loads: &[Load], layout: &Layout<'_>) -> Result<(), Exit> {
    let segment_bytes = layout.log.segment_bytes;
    let need = |load: &Load| {
        let log = load.message_bytes + load.message_bytes / PADDING_PER;
        (log / segment_bytes + 1) * segment::file_bytes(segment_bytes) + 2 * load.snapshot_bytes
    };
    let needed: u64 = loads.iter().map(need).sum();
    let free =
        data.free_bytes().map_err(|error| refused(DataDirError::from_io(data.path(), error)))?;
    let messages: u64 = loads.iter().map(|load| load.messages).sum();
    if free < needed {
        let written = data.manifest().shards;
        return Err(Exit::data(format!(
            "to rewrite {} from {written} to {} shards, {} must be free beside what is there, and {} \
             are; nothing was changed: free some space, or start with --shards {written}",
            data.path().display(),
            loads.len(),
            bytes(needed),
            bytes(free)
        )));
    }
    tracing::info!(
        "{messages} messages to copy; {} are needed for the new layout, {} are free",
        bytes(needed),
        bytes(free)
    );
    Ok(())
}

/// Carries out every step before the switch.
fn fill(
    next: &Generation,
    replays: Vec<ReadBack>,
    sources: Vec<Source>,
    layout: &Layout<'_>,
    total: u64,
) -> Result<(), Exit> {
    let shards = next.manifest().shards;
    let salts = next.manifest().salts.iter();
    let options = (0..shards).map(|id| (layout.options)(id, shards));
    let new: Vec<(Options, u64)> = options.zip(salts.copied()).collect();
    let mut rewrite = Rewrite::new(replays, layout.log, &new).map_err(defect)?;
    let progress = Progress { done: 0, total, teller: Teller::to_log(layout.pause) };
    let mut rewriting = Rewriting { next, layout, sources, targets: Vec::new(), progress };
    while let Some(step) = rewrite.next_step().map_err(defect)? {
        match step {
            Step::Make => rewriting.make()?,
            Step::Read { shard, segment } => rewriting.copy(&mut rewrite, shard, segment)?,
            Step::Write { shard } => rewriting.write(&mut rewrite, shard)?,
            Step::Sync { shard } => {
                let target = rewriting.target(shard);
                target.segments.sync().map_err(|error| target.failed(error))?;
            }
            Step::Snapshot { shard } => {
                let target = rewriting.target(shard);
                target.take_snapshot(&mut rewrite).map_err(|error| target.failed(error))?;
            }
            Step::LookBack { shard } => rewriting.look_back(&rewrite, shard)?,
            // The last one, and the caller's.
            Step::Switch => return Ok(()),
        }
    }
    unreachable!("the last step is the switch")
}

/// What cannot be, unless this program is wrong.
fn defect(why: impl std::fmt::Display) -> Exit {
    Exit::data(format!(
        "the data directory cannot be rewritten for another number of shards: {why}; nothing was \
         changed, please report this with the data directory"
    ))
}

fn damaged(error: &wal::disk::RecoverError, written: usize) -> Exit {
    Exit::data(format!(
        "the data directory cannot be rewritten for another number of shards: {error}; the old \
         layout was not changed and can be served with --shards {written}"
    ))
}

impl Rewriting<'_> {
    fn make(&mut self) -> Result<(), Exit> {
        self.next.make().map_err(refused)?;
        let target = |shard: ShardId| {
            let dir = self.next.shard(shard);
            let segments = dir.open_segments(0, self.layout.mode).map_err(refused)?;
            Ok(Target { dir, segments })
        };
        self.targets = (0..self.next.manifest().shards).map(target).collect::<Result<_, Exit>>()?;
        Ok(())
    }

    fn target(&mut self, shard: ShardId) -> &mut Target {
        &mut self.targets[usize::from(shard)]
    }

    /// Copies what waits in one old segment.
    fn copy(&mut self, rewrite: &mut Rewrite, shard: ShardId, segment: u64) -> Result<(), Exit> {
        let Source { dir, end } = &self.sources[usize::from(shard)];
        let (dir, end, written) = (dir.clone(), *end, self.sources.len());
        let mut failed = None;
        let mut sink = |lsn, _, record: Record<'_>| match self.give(rewrite, lsn, &record) {
            Ok(()) => ControlFlow::Continue(()),
            Err(exit) => {
                failed = Some(exit);
                ControlFlow::Break(())
            }
        };
        dir.each_record(segment, end, &mut sink).map_err(|error| damaged(&error, written))?;
        failed.map_or(Ok(()), Err)
    }

    /// Gives a record to the shard whose it will be.
    fn give(&mut self, rewrite: &mut Rewrite, lsn: Lsn, record: &Record<'_>) -> Result<(), Exit> {
        let copied = match rewrite.take(lsn, record) {
            Ok(copied) => copied,
            Err(full) => {
                self.write(rewrite, full)?;
                let again = rewrite.take(lsn, record);
                again.map_err(|_| defect("a message is longer than the log's tail allows"))?
            }
        };
        self.progress.add(copied);
        Ok(())
    }

    fn write(&mut self, rewrite: &mut Rewrite, shard: ShardId) -> Result<(), Exit> {
        let target = self.target(shard);
        while let Some(write) = rewrite.next_write(shard) {
            let bytes = rewrite.write_bytes(shard, &write);
            target.segments.write(write.lsn, bytes).map_err(|error| target.failed(error))?;
        }
        Ok(())
    }

    fn look_back(&mut self, rewrite: &Rewrite, shard: ShardId) -> Result<(), Exit> {
        let manifest = self.next.manifest();
        let options = (self.layout.options)(shard, manifest.shards);
        let hasher = KeyHasher::new(manifest.seed);
        let mut replay = Replay::new(options, hasher, manifest.segment_bytes);
        self.target(shard).dir.recover(&mut replay, &mut |_| {}).map_err(defect)?;
        rewrite.compare(shard, &replay).map_err(defect)
    }
}

impl Target {
    fn take_snapshot(&mut self, rewrite: &mut Rewrite) -> io::Result<()> {
        let shard = self.dir.shard();
        let start = rewrite.snapshot_start(shard);
        let mut file = SnapshotFile::create(&self.dir, start.lsn)?;
        let mut frames = Vec::new();
        let mut writer = Writer::new(shard, &start, &mut frames);
        let end = rewrite.snapshot(shard, &mut |part| -> io::Result<()> {
            match part {
                SnapshotPart::State(payload) => writer.frame(Kind::State, payload, &mut frames),
                SnapshotPart::Space(payload) => writer.frame(Kind::Space, payload, &mut frames),
            }
            file.write(&frames)?;
            frames.clear();
            Ok(())
        })?;
        writer.end(end, &mut frames);
        file.write(&frames)?;
        file.finish().map(|_| ())
    }

    fn failed(&self, error: io::Error) -> Exit {
        let path: &Path = self.dir.path();
        let error = DataDirError::from_io(path, error);
        Exit::data(format!(
            "the data directory could not be rewritten for another number of shards: {error}; the \
             old layout was not changed"
        ))
    }
}

/// How far the copying is.
struct Progress {
    done: u64,
    total: u64,
    teller: Teller,
}

impl Progress {
    fn add(&mut self, copied: Option<u32>) {
        let Some(copied) = copied else { return };
        self.done += u64::from(copied);
        let (done, total) = (self.done, self.total);
        self.teller.tell(|| format!("copied {} of {}", bytes(done), bytes(total)));
    }
}
