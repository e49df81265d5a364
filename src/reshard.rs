//! Another number of shards than the data directory was written for: everything
//! is rewritten as a new layout beside the present one, before anybody is served.
//!
//! Read back every shard, deal their users out anew, copy what waits from the
//! old logs to the new ones, take snapshots, read all of it back once more, and
//! only then store the manifest that names the new layout: that is the switch.
//! Whatever goes wrong before, the old layout is as it was; whatever happens
//! after, the new one is whole.
//!
//! One thread copies. Each old segment in which something waits is read once, in
//! order, and in pieces; memory is what the shards hold and a tail for each.

use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use shard::{KeyHasher, Load, Newcomer, Options, Replay, SnapshotPart};
use wal::disk::{DataDir, DataDirError, DirectMode, Generation, Segments, ShardDir, SnapshotFile};
use wal::snapshot::{Kind, Writer};
use wal::{LogOptions, LogStart, Lsn, Record, Refused, Restore, segment};
use wire::id::ShardId;

use crate::boot::cannot_thread;
use crate::exit::Exit;
use crate::read_back::{bytes, read_back};

/// Of the bytes that are copied so many are lost at most at the ends of writes.
const PADDING_PER: u64 = 12;

/// What a layout is made with.
pub(crate) struct Layout<'a> {
    pub(crate) log: LogOptions,
    pub(crate) mode: DirectMode,
    /// The options of one of so many shards.
    pub(crate) options: &'a (dyn Fn(ShardId, u16) -> Options + Sync),
}

/// A shard as it was, and where its log ends.
type ReadBack = (Replay, LogStart);

/// One shard of the old layout.
struct Source {
    dir: ShardDir,
    /// Segments in which something waits.
    segments: Vec<u64>,
    end: Lsn,
}

/// One shard of the new layout.
struct Target {
    newcomer: Newcomer,
    dir: ShardDir,
    segments: Segments,
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
    next.make().map_err(refused)?;
    match fill(&next, replays, &sources, layout, total) {
        Ok(()) => {}
        Err(exit) => {
            next.abandon();
            return Err(exit);
        }
    }
    data.switch(next).map_err(refused)?;
    tracing::info!(
        "rewritten for {shards} shards in {} ms, {} of messages copied; the old layout is removed \
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
        let (replay, recovered) = read_back(&dir, options, hasher, &layout.log)?;
        let segments = replay.needed().into_iter().map(|(segment, ..)| segment).collect();
        Ok(((replay, recovered.start), Source { dir, segments, end: recovered.start.lsn }))
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

/// Writes the whole new layout to the disk.
fn fill(
    next: &Generation,
    replays: Vec<ReadBack>,
    sources: &[Source],
    layout: &Layout<'_>,
    total: u64,
) -> Result<(), Exit> {
    let shards = next.manifest().shards;
    let salts = next.manifest().salts.iter();
    let options = (0..shards).map(|id| (layout.options)(id, shards));
    let new: Vec<(Options, u64)> = options.zip(salts.copied()).collect();
    let newcomers = shard::regroup(replays, layout.log, &new).map_err(defect)?;
    let target = |(id, newcomer): (usize, Newcomer)| {
        let dir = next.shard(id as ShardId);
        let segments = dir.open_segments(0, layout.mode).map_err(refused)?;
        Ok(Target { newcomer, dir, segments })
    };
    let mut targets =
        newcomers.into_iter().enumerate().map(target).collect::<Result<Vec<_>, _>>()?;
    copy(sources, &mut targets, total)?;
    for target in &mut targets {
        target.complete().map_err(|error| target.failed(error))?;
    }
    for target in &targets {
        target.look_back(layout, next)?;
    }
    Ok(())
}

/// What cannot be, unless this program is wrong.
fn defect(why: impl std::fmt::Display) -> Exit {
    Exit::data(format!(
        "the data directory cannot be rewritten for another number of shards: {why}; nothing was \
         changed, please report this with the data directory"
    ))
}

/// Copies what waits out of all old logs.
fn copy(sources: &[Source], targets: &mut [Target], total: u64) -> Result<(), Exit> {
    let mut progress = Progress { done: 0, total, last: Instant::now() };
    for source in sources {
        for &segment in &source.segments {
            let mut failed = None;
            source
                .dir
                .each_record(segment, source.end, &mut |lsn, _, record| match give(
                    targets,
                    lsn,
                    &record,
                    &mut progress,
                ) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(exit) => {
                        failed = Some(exit);
                        ControlFlow::Break(())
                    }
                })
                .map_err(|error| damaged(&error, sources.len()))?;
            failed.map_or(Ok(()), Err)?;
        }
    }
    for target in targets {
        let (load, copied) = (target.newcomer.load(), target.newcomer.copied());
        if copied != load.messages {
            let waiting = load.messages;
            return Err(defect(format!("{waiting} messages wait and {copied} were found")));
        }
    }
    Ok(())
}

fn damaged(error: &wal::disk::RecoverError, written: usize) -> Exit {
    Exit::data(format!(
        "the data directory cannot be rewritten for another number of shards: {error}; the old \
         layout was not changed and can be served with --shards {written}"
    ))
}

/// Gives a record to the shard whose it will be.
fn give(
    targets: &mut [Target],
    lsn: Lsn,
    record: &Record<'_>,
    progress: &mut Progress,
) -> Result<(), Exit> {
    let (Record::Message(message) | Record::Moved(message)) = record else { return Ok(()) };
    let owner = message.key.owner(targets.len() as u16);
    let target = &mut targets[usize::from(owner)];
    let copied = target.append(|newcomer| newcomer.take(lsn, record));
    progress.add(copied.map_err(|error| target.failed(error))?);
    Ok(())
}

impl Target {
    /// Appends something, and writes what is there when it has no room.
    fn append<T>(
        &mut self,
        mut append: impl FnMut(&mut Newcomer) -> Result<T, Refused>,
    ) -> io::Result<T> {
        if let Ok(appended) = append(&mut self.newcomer) {
            return Ok(appended);
        }
        self.write_out()?;
        append(&mut self.newcomer)
            .map_err(|_| io::Error::other("a message is longer than the log's tail allows"))
    }

    fn write_out(&mut self) -> io::Result<()> {
        while let Some(write) = self.newcomer.next_write() {
            self.segments.write(write.lsn, self.newcomer.log().write_bytes(&write))?;
            self.newcomer.written(&write);
        }
        Ok(())
    }

    /// Brings everything to the disk. Two snapshots, because without any nobody
    /// knows any more who waits for what.
    fn complete(&mut self) -> io::Result<()> {
        self.write_out()?;
        self.segments.sync()?;
        self.take_snapshot()?;
        if self.append(Newcomer::mark)? {
            self.write_out()?;
            self.segments.sync()?;
            self.take_snapshot()?;
        }
        Ok(())
    }

    fn take_snapshot(&mut self) -> io::Result<()> {
        let start = self.newcomer.log().checkpoint();
        let mut file = SnapshotFile::create(&self.dir, start.lsn)?;
        let mut frames = Vec::new();
        let mut writer = Writer::new(self.dir.shard(), &start, &mut frames);
        let end = self.newcomer.snapshot(&mut |part| -> io::Result<()> {
            match part {
                SnapshotPart::State(payload) => writer.frame(Kind::State, payload, &mut frames),
                SnapshotPart::Space(payload) => writer.frame(Kind::Space, payload, &mut frames),
            }
            file.write(&frames)?;
            frames.clear();
            Ok(())
        })?;
        assert!(self.newcomer.log().durable() >= end, "everything was written and synced");
        writer.end(end, &mut frames);
        file.write(&frames)?;
        file.finish().map(|_| ())
    }

    /// Reads it back as the next start will.
    fn look_back(&self, layout: &Layout<'_>, next: &Generation) -> Result<(), Exit> {
        let manifest = next.manifest();
        let options = (layout.options)(self.dir.shard(), manifest.shards);
        let hasher = KeyHasher::new(manifest.seed);
        let mut replay = Replay::new(options, hasher, manifest.segment_bytes);
        self.dir.recover(&mut replay, &mut |_| {}).map_err(defect)?;
        let (found, load) = (replay.contents(), self.newcomer.load());
        let of = (found.users, found.waiting_messages, found.waiting_bytes);
        if of != (load.users, load.messages, load.message_bytes) || replay.contradictions() > 0 {
            return Err(defect(format!("{load:?} was written and {found:?} is read back")));
        }
        Ok(())
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

/// Tells how far it is, once a second.
struct Progress {
    done: u64,
    total: u64,
    last: Instant,
}

impl Progress {
    fn add(&mut self, copied: Option<u32>) {
        self.done += u64::from(copied.unwrap_or(0));
        if copied.is_some() && self.last.elapsed() >= Duration::from_secs(1) {
            self.last = Instant::now();
            tracing::info!("copied {} of {}", bytes(self.done), bytes(self.total));
        }
    }
}
