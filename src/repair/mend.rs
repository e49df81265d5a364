//! Makes one shard whole again, from what was found.
//!
//! Safe to be interrupted anywhere, see `wal::disk`'s repair: nothing that is
//! there is written to or moved before the new snapshot has its name.

use std::fmt::Write;
use std::io;
use std::path::Path;

use shard::io::Now;
use shard::{SLICE_BYTES, Shard, Slice};
use wal::disk::{Continuation, DataDirError, DirectMode, Records, ShardDir, SnapshotFile};
use wal::record::{self, Record};
use wal::snapshot::{Kind, Writer};
use wal::{Log, LogOptions, LogStart};

use super::finding::Finding;
use crate::exit::Exit;
use crate::inspect::count;

impl Finding {
    /// Does it. What is given up goes to `aside`.
    pub(super) fn mend(mut self, aside: &Path, now_ms: u64) -> Result<String, Exit> {
        let dir = self.dir.clone();
        let failed = |error| Exit::data(DataDirError::from_io(dir.path(), error).to_string());
        dir.make_ready().map_err(failed)?;
        dir.confirm_end(&self.salvaged).map_err(|error| Exit::data(error.to_string()))?;
        let copied = self.to_copy().len() as u64;
        let start = self.copy().map_err(failed)?;
        let files = dir.files().map_err(failed)?;
        let segments: Vec<u64> = files
            .segments
            .iter()
            .map(|file| file.index)
            .filter(|index| self.salvaged.aside.binary_search(index).is_err())
            .collect();
        let log = Log::new(log_options(self.segment_bytes), start);
        let mut shard = self.salvage.finish(&start, log, segments);
        // Nothing had to be appended, and the snapshot that was read is as good.
        let used = self.salvaged.snapshot.as_ref().map(|loaded| loaded.start.lsn);
        if used != Some(start.lsn) {
            dir.set_aside_snapshot(aside, start.lsn).map_err(failed)?;
            take_snapshot(&dir, self.id, &mut shard, now_ms).map_err(failed)?;
        }
        let moved = dir.set_aside(aside, &self.salvaged.aside, start.lsn).map_err(failed)?;
        let mut out = format!(
            "  Done: {} messages copied, a snapshot is at position {}",
            count(copied),
            start.lsn,
        );
        let _ = match moved.len() {
            0 => writeln!(out),
            files => writeln!(out, ", {files} files moved to {}", aside.display()),
        };
        for path in moved {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let _ = writeln!(out, "    {name}");
        }
        Ok(out)
    }

    /// Copies what waits in segments that are given up to the end of the log.
    /// Where that ends then.
    fn copy(&mut self) -> io::Result<LogStart> {
        let mut log = Log::new(log_options(self.segment_bytes), self.salvaged.fresh);
        let mut file = Continuation::new(&self.dir, DirectMode::BufferedFdatasync);
        file.prepare(self.salvaged.fresh.lsn)?;
        let mut records = Records::new(&self.dir);
        let dropped: Vec<Record<'_>> = self.salvage.dropped().collect();
        for record in dropped {
            append(&mut log, &mut file, &record)?;
        }
        for placed in self.to_copy() {
            let found = records.get(placed.lsn, placed.len);
            let Some(Record::Message(message) | Record::Moved(message)) = found else {
                return Err(io::Error::other("a message has become unreadable meanwhile"));
            };
            let lsn = append(&mut log, &mut file, &Record::Moved(message))?;
            self.salvage.moved_to(&placed, lsn, message.expires_ms);
        }
        write_all(&mut log, &mut file)?;
        Ok(log.checkpoint())
    }
}

/// Puts a record into the log, on the disk what is in its way; where it stands.
fn append(log: &mut Log, file: &mut Continuation, record: &Record<'_>) -> io::Result<u64> {
    if !log.room(record::encoded_len(record)) {
        write_all(log, file)?;
    }
    // The clock goes on with the first message of the next life.
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

fn take_snapshot(dir: &ShardDir, id: u16, shard: &mut Shard, now_ms: u64) -> io::Result<()> {
    let start = shard.begin_snapshot(Now { mono_ns: 0, wall_ms: now_ms });
    let mut file = SnapshotFile::create(dir, start.lsn)?;
    match write_snapshot(&mut file, &start, id, shard) {
        Ok(()) => file.finish_beside().map(|_| ()),
        Err(error) => {
            file.abandon();
            Err(error)
        }
    }
}

fn write_snapshot(
    file: &mut SnapshotFile,
    start: &LogStart,
    id: u16,
    shard: &mut Shard,
) -> io::Result<()> {
    let (mut framed, mut payload) = (Vec::new(), Vec::new());
    let mut writer = Writer::new(id, start, &mut framed);
    let end = loop {
        let slice = shard.snapshot_slice(SLICE_BYTES, &mut payload);
        writer.frame(Kind::State, &payload, &mut framed);
        file.write(&framed)?;
        framed.clear();
        payload.clear();
        if let Slice::Done { end } = slice {
            break end;
        }
    };
    let mut from = Some(0);
    while let Some(at) = from {
        from = shard.snapshot_space(at, &mut payload);
        writer.frame(Kind::Space, &payload, &mut framed);
        file.write(&framed)?;
        framed.clear();
        payload.clear();
    }
    writer.end(end, &mut framed);
    file.write(&framed)
}
