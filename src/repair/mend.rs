//! Makes one shard whole again, from what was found.
//!
//! Safe to be interrupted anywhere, see `wal::disk`'s repair: before the new
//! snapshot has its name the log only gets longer, and nothing but a damaged
//! snapshot under that very name is moved; what is to be moved then has a second
//! name before anything is done.

use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};

use shard::io::Now;
use shard::{SLICE_BYTES, Shard, Slice};
use wal::disk::{Continuation, DataDirError, DirectMode, Records, ShardDir, SnapshotFile};
use wal::record::{self, Record};
use wal::snapshot::{Kind, Writer};
use wal::{Log, LogOptions, LogStart};

use super::finding::Finding;
use crate::exit::Exit;
use crate::inspect::count;
use crate::progress::Teller;

impl Finding {
    /// Gives segments that stand under each other's names their own. What was
    /// found counts no more then, and is to be looked at again.
    pub(super) fn rename(&self) -> Result<(), Exit> {
        self.kept.dir.rename(&self.kept.misnamed).map_err(|error| {
            let moves = self.kept.misnamed.iter().map(|it| {
                format!("\n  {} belongs at {}", it.path.display(), it.belongs.display())
            });
            Exit::data(format!(
                "the file system cannot exchange the names of segments ({error}); do it by hand, by \
                 way of names of another directory, and run this again:{}",
                moves.collect::<String>()
            ))
        })
    }

    /// Does it. What is given up goes to `aside`.
    pub(super) fn mend(
        mut self,
        aside: &Path,
        now_ms: u64,
        teller: &mut Teller,
    ) -> Result<Mended, Exit> {
        let dir = self.kept.dir.clone();
        let failed = |error| Exit::data(DataDirError::from_io(dir.path(), error).to_string());
        // The log's clock goes on above all that is kept, whatever became of the heads of its
        // writes, and above the time that numbers go on above: the machine's may be set back.
        let has_forgotten = self.has_forgotten();
        let clock_ms = &mut self.kept.salvaged.fresh.hlc_ms;
        *clock_ms = (*clock_ms).max(self.kept.salvage.hlc_ms());
        if has_forgotten {
            *clock_ms = (*clock_ms).max(now_ms);
            self.kept.salvage.forget(*clock_ms);
        }
        assert!(self.kept.misnamed.is_empty(), "segments have their names by now");
        dir.make_ready().map_err(failed)?;
        let used = self.kept.salvaged.snapshot.as_ref().map(|loaded| loaded.start.lsn);
        let single = dir.keep(aside, &self.kept.salvaged.aside, used).map_err(failed)?;
        dir.confirm_end(&self.kept.salvaged).map_err(|error| Exit::data(error.to_string()))?;
        let copied = self.to_copy().len() as u64;
        let (start, last) = self.copy(teller).map_err(failed)?;
        let files = dir.files().map_err(failed)?;
        let segments: Vec<u64> = files
            .segments
            .iter()
            .map(|file| file.index)
            .filter(|index| self.kept.salvaged.aside.binary_search(index).is_err())
            .collect();
        let log = Log::new(log_options(self.segment_bytes), start);
        let mut shard = self.kept.salvage.finish(&start, log, segments);
        // If nothing had to be appended, the snapshot that was read is as good.
        let mut starts = vec![start, last];
        starts.dedup();
        starts.retain(|start| used != Some(start.lsn));
        let mut moved = Vec::new();
        for start in &starts {
            moved.extend(dir.set_aside_snapshot(aside, start.lsn).map_err(failed)?);
        }
        take_snapshots(&dir, self.id, &mut shard, &starts, now_ms).map_err(failed)?;
        let rest = dir.set_aside(aside, &self.kept.salvaged.aside, [start.lsn, last.lsn]);
        moved.extend(rest.map_err(failed)?);
        Ok(Mended { copied, snapshots: [start.lsn, last.lsn], moved, single })
    }

    /// Copies what waits in segments that are given up to the end of the log.
    /// Where that ends then, and where it ends after one more commit that says
    /// nothing: for two snapshots, as always, so that the rot of one costs nothing.
    fn copy(&mut self, teller: &mut Teller) -> io::Result<(LogStart, LogStart)> {
        let log = Log::new(log_options(self.segment_bytes), self.kept.salvaged.fresh);
        let mut log = log.vouching_up_to(self.kept.salvaged.end());
        let mut file = Continuation::new(&self.kept.dir, DirectMode::BufferedFdatasync);
        file.prepare(self.kept.salvaged.fresh.lsn)?;
        let mut records = Records::new(&self.kept.dir);
        let dropped: Vec<Record<'_>> = self.kept.salvage.dropped().collect();
        for record in dropped {
            append(&mut log, &mut file, &record)?;
        }
        let (id, to_copy) = (self.id, self.to_copy());
        let total = to_copy.len() as u64;
        for (done, placed) in to_copy.into_iter().enumerate() {
            teller.tell(|| {
                let (done, total) = (count(done as u64), count(total));
                format!("shard {id}: copied {done} of {total} messages")
            });
            let found = records.get(placed.lsn, placed.len);
            let copy = found.as_ref().and_then(Record::copied);
            let Some((copy, message)) = copy.as_ref().and_then(|it| Some((it, it.message()?)))
            else {
                return Err(io::Error::other("a message has become unreadable meanwhile"));
            };
            let lsn = append(&mut log, &mut file, copy)?;
            self.kept.salvage.moved_to(&placed, lsn, message.expires_ms);
        }
        if let Some(record) = self.kept.salvage.floor() {
            append(&mut log, &mut file, &record)?;
        }
        write_all(&mut log, &mut file)?;
        file.name()?;
        let start = log.checkpoint();
        if let Some(record) = self.kept.salvage.idle() {
            append(&mut log, &mut file, &record)?;
            write_all(&mut log, &mut file)?;
        }
        Ok((start, log.checkpoint()))
    }
}

/// What was done to a shard.
#[derive(Debug)]
pub(super) struct Mended {
    /// Messages copied out of segments that were given up.
    pub(super) copied: u64,
    /// Positions of the new snapshots.
    pub(super) snapshots: [u64; 2],
    /// Files that were moved aside, where they were.
    pub(super) moved: Vec<PathBuf>,
    /// Those of them that had no second name there meanwhile.
    single: Vec<PathBuf>,
}

impl Mended {
    pub(super) fn text(&self, aside: &Path) -> String {
        let [first, last] = self.snapshots;
        let mut out = format!(
            "  Done: {} messages copied, snapshots are at positions {first} and {last}",
            count(self.copied),
        );
        let _ = match self.moved.len() {
            0 => writeln!(out),
            1 => writeln!(out, ", 1 file moved to {}", aside.display()),
            files => writeln!(out, ", {files} files moved to {}", aside.display()),
        };
        if !self.single.is_empty() {
            out.push_str(
                "  (files have no second names here: had this been interrupted, a server that was \
                 started then could have deleted them)\n",
            );
        }
        for path in &self.moved {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let _ = writeln!(out, "    {name}");
        }
        out
    }
}

/// Puts a record into the log, on the disk what is in its way; where it stands.
fn append(log: &mut Log, file: &mut Continuation, record: &Record<'_>) -> io::Result<u64> {
    if !log.room(record::encoded_len(record)) {
        write_all(log, file)?;
    }
    // The clock stays where it is until the first message of the next life.
    let appended = log.append(record, 0);
    appended.map(|at| at.lsn).map_err(|_| io::Error::other("a record does not fit the log"))
}

/// One tail as large as a segment goes with every segment size.
fn log_options(segment_bytes: u64) -> LogOptions {
    LogOptions {
        tail_bytes: segment_bytes as usize,
        segment_bytes,
        writes_in_flight_max: 1,
        ..LogOptions::default()
    }
}

fn write_all(log: &mut Log, file: &mut Continuation) -> io::Result<()> {
    while let Some(write) = log.next_write() {
        file.write(write.lsn, log.write_bytes(&write))?;
        log.written(write.lsn, true);
    }
    Ok(())
}

/// The same state under each of these starts, oldest first: between them the
/// log says nothing.
fn take_snapshots(
    dir: &ShardDir,
    id: u16,
    shard: &mut Shard,
    starts: &[LogStart],
    now_ms: u64,
) -> io::Result<()> {
    shard.begin_snapshot(Now { mono_ns: 0, wall_ms: now_ms });
    let mut files = Vec::new();
    for start in starts {
        let mut framed = Vec::new();
        let writer = Writer::new(id, start, &mut framed);
        files.push(Framed { file: SnapshotFile::create(dir, start.lsn)?, writer, framed });
    }
    write_snapshots(&mut files, shard)?;
    for (it, start) in files.into_iter().zip(starts) {
        it.finish(start)?;
    }
    Ok(())
}

/// A snapshot that is being written. What a failure leaves behind the next
/// start, or repair, removes.
struct Framed {
    file: SnapshotFile,
    writer: Writer,
    framed: Vec<u8>,
}

impl Framed {
    fn put(&mut self, kind: Kind, payload: &[u8]) -> io::Result<()> {
        self.writer.frame(kind, payload, &mut self.framed);
        self.file.write(&self.framed)?;
        self.framed.clear();
        Ok(())
    }

    fn finish(mut self, start: &LogStart) -> io::Result<()> {
        self.writer.end(start.lsn, &mut self.framed);
        self.file.write(&self.framed)?;
        self.file.finish_beside().map(|_| ())
    }
}

fn write_snapshots(files: &mut [Framed], shard: &mut Shard) -> io::Result<()> {
    let mut payload = Vec::new();
    let mut slice = Slice::More;
    while slice == Slice::More {
        slice = shard.snapshot_slice(SLICE_BYTES, &mut payload);
        files.iter_mut().try_for_each(|file| file.put(Kind::State, &payload))?;
        payload.clear();
    }
    let mut from = Some(0);
    while let Some(at) = from {
        from = shard.snapshot_space(at, &mut payload);
        files.iter_mut().try_for_each(|file| file.put(Kind::Space, &payload))?;
        payload.clear();
    }
    Ok(())
}
