//! The shard's snapshots to the disk: slices into a buffer, the buffer to a
//! helper thread, the file's name when the log is durable far enough.
//!
//! One slice a turn at most, so that no turn is long; one buffer under way, so that
//! memory stays bounded when the disk is slow. The shard works on meanwhile.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use net::Clock;
use shard::{Input, SLICE_BYTES, Slice};
use wal::Lsn;
use wal::disk::{Finished, ShardDir, SnapshotFile};
use wal::snapshot::{Kind, Writer};

use super::{Core, clock};
use crate::admin::Longest;

/// So much is gathered before it goes to the disk.
const WRITE_BYTES: usize = 256 << 10;
/// Above this no slice is taken until the disk has caught up.
const BUFFER_BYTES_MAX: usize = 1 << 20;

/// One core's side of its snapshots.
pub(super) struct SnapshotIo {
    dir: ShardDir,
    taking: Option<Taking>,
    job: Option<Job>,
    /// Reused for each slice.
    payload: Vec<u8>,
    /// The longest that one step has kept a turn.
    longest: Longest,
}

/// A snapshot that is being taken.
struct Taking {
    start: Lsn,
    writer: Option<Writer>,
    stage: Stage,
    /// Frames that the file does not have yet.
    buffer: Vec<u8>,
    /// Not while a job has it.
    file: Option<SnapshotFile>,
    /// Bytes that it has, or that are on their way.
    written: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Users are being encoded.
    Users,
    /// The table of what expires, from this segment on; the users' end.
    Space(u64, Lsn),
    /// Everything is framed; it counts once the log is durable up to here.
    Framed(Lsn),
}

/// What a helper thread has done.
enum Done {
    /// The file took what it was given, or is new.
    Written(SnapshotFile),
    /// It has its name and this length, bytes.
    Finished(Finished),
    Abandoned,
}

/// A job on a helper thread, and how it ended.
type Job = Rc<RefCell<Option<io::Result<Done>>>>;

impl SnapshotIo {
    pub(super) fn new(dir: ShardDir) -> SnapshotIo {
        SnapshotIo {
            dir,
            taking: None,
            job: None,
            payload: Vec::new(),
            longest: Longest::default(),
        }
    }

    /// The longest that one step has kept a turn.
    pub(super) fn longest(&self) -> Longest {
        self.longest
    }

    /// What the one that is being taken has of the disk, bytes.
    pub(super) fn written(&self) -> u64 {
        self.taking.as_ref().map_or(0, |taking| taking.written)
    }

    /// Whether a helper thread is at work. Its executor must live as long.
    pub(super) fn is_writing(&self) -> bool {
        self.job.is_some()
    }

    /// Whether the next turn has something to do for it.
    pub(super) fn is_hungry(&self) -> bool {
        self.taking.as_ref().is_some_and(Taking::has_room)
    }

    /// Whether one is being taken that waits for a helper thread or the log.
    pub(super) fn is_awaited(&self) -> bool {
        self.taking.is_some() || self.job.is_some()
    }

    /// Whether there is nothing to do before a helper thread is done or the log is
    /// durable.
    pub(super) fn is_idle_until_told(&self) -> bool {
        self.is_awaited() && !self.is_hungry()
    }

    fn start_job(&mut self, work: impl FnOnce() -> io::Result<Done> + Send + 'static) {
        let slot = Rc::new(RefCell::new(None));
        self.job = Some(Rc::clone(&slot));
        glommio::spawn_local(async move {
            let done = glommio::executor().spawn_blocking(work).await;
            *slot.borrow_mut() = Some(done);
        })
        .detach();
    }

    fn take_done(&mut self) -> Option<io::Result<Done>> {
        let done = self.job.as_ref()?.borrow_mut().take()?;
        self.job = None;
        Some(done)
    }
}

impl Taking {
    /// Whether it is worth a slice now.
    fn has_room(&self) -> bool {
        !matches!(self.stage, Stage::Framed(_)) && self.buffer.len() < BUFFER_BYTES_MAX
    }
}

impl Core {
    /// One step of the snapshot that is being taken, or the beginning of one.
    pub(super) fn snapshot(&mut self) {
        if !self.snapshots.is_awaited() && !self.shard.wants_snapshot() {
            return;
        }
        // The clock of the processor is a system call, and most turns meanwhile only wait.
        if self.snapshots.is_idle_until_told() {
            return self.go_on_with_snapshot();
        }
        let (began_ns, cpu_ns) = (clock().mono_ns, Clock::thread_cpu_ns());
        self.go_on_with_snapshot();
        let cpu_ns = Clock::thread_cpu_ns() - cpu_ns;
        self.snapshots.longest.note(clock().mono_ns - began_ns, cpu_ns);
    }

    fn go_on_with_snapshot(&mut self) {
        match self.snapshots.take_done() {
            Some(Ok(done)) => self.snapshot_went_on(done),
            Some(Err(error)) => self.snapshot_failed(&error),
            None => {}
        }
        if self.draining_since.is_some() || self.shard.log().is_poisoned() {
            return self.abandon_snapshot();
        }
        if self.snapshots.taking.is_none() && !self.snapshots.is_writing() {
            if !self.shard.wants_snapshot() {
                return;
            }
            self.begin_snapshot();
        }
        self.encode_snapshot();
        self.write_snapshot();
    }

    fn begin_snapshot(&mut self) {
        let start = self.shard.begin_snapshot(self.now);
        let mut buffer = Vec::with_capacity(BUFFER_BYTES_MAX + 2 * SLICE_BYTES);
        let writer = Some(Writer::new(self.id, &start, &mut buffer));
        let start = start.lsn;
        let stage = Stage::Users;
        self.snapshots.taking =
            Some(Taking { start, writer, stage, buffer, file: None, written: 0 });
        let dir = self.snapshots.dir.clone();
        self.snapshots.start_job(move || SnapshotFile::create(&dir, start).map(Done::Written));
    }

    /// Frames one more slice.
    fn encode_snapshot(&mut self) {
        let SnapshotIo { taking: Some(taking), payload, .. } = &mut self.snapshots else { return };
        let Some(writer) =
            taking.writer.as_mut().filter(|_| taking.buffer.len() < BUFFER_BYTES_MAX)
        else {
            return;
        };
        payload.clear();
        match taking.stage {
            Stage::Users => {
                let slice = self.shard.snapshot_slice(SLICE_BYTES, payload);
                writer.frame(Kind::State, payload, &mut taking.buffer);
                if let Slice::Done { end } = slice {
                    taking.stage = Stage::Space(0, end);
                }
            }
            Stage::Space(from, end) => {
                let next = self.shard.snapshot_space(from, payload);
                writer.frame(Kind::Space, payload, &mut taking.buffer);
                match next {
                    Some(next) => taking.stage = Stage::Space(next, end),
                    None => {
                        let writer = taking.writer.take().expect("looked at above");
                        writer.end(end, &mut taking.buffer);
                        taking.stage = Stage::Framed(end);
                    }
                }
            }
            Stage::Framed(_) => unreachable!("its writer has ended"),
        }
    }

    /// Gives the helper thread what it can do now.
    fn write_snapshot(&mut self) {
        let Some(taking) = &mut self.snapshots.taking else { return };
        let is_framed = matches!(taking.stage, Stage::Framed(_));
        let is_due = taking.buffer.len() >= WRITE_BYTES || is_framed && !taking.buffer.is_empty();
        let is_durable =
            matches!(taking.stage, Stage::Framed(end) if self.shard.log().durable() >= end);
        if !is_due && !is_durable {
            return;
        }
        let Some(mut file) = taking.file.take() else { return };
        if is_due {
            let next = Vec::with_capacity(if is_framed { 0 } else { taking.buffer.capacity() });
            let buffer = std::mem::replace(&mut taking.buffer, next);
            taking.written += buffer.len() as u64;
            self.snapshots.start_job(move || match file.write(&buffer) {
                Ok(()) => Ok(Done::Written(file)),
                Err(error) => {
                    // Most likely the disk is full, and this frees some of it.
                    file.abandon();
                    Err(error)
                }
            });
        } else {
            self.snapshots.start_job(move || file.finish().map(Done::Finished));
        }
    }

    fn snapshot_went_on(&mut self, done: Done) {
        match (done, &mut self.snapshots.taking) {
            (Done::Written(file), Some(taking)) => taking.file = Some(file),
            // Given up meanwhile.
            (Done::Written(file), None) => self.snapshots.start_job(move || {
                file.abandon();
                Ok(Done::Abandoned)
            }),
            (Done::Finished(Finished { bytes, forgotten }), Some(taking)) => {
                let start = taking.start;
                for path in forgotten {
                    let path = path.display();
                    tracing::info!(
                        shard = self.id,
                        "deleted {path}, which an earlier start could not use and had set aside"
                    );
                }
                self.snapshots.taking = None;
                tracing::debug!(shard = self.id, start, bytes, "took a snapshot");
                self.tell(Input::Snapshotted { start, bytes });
            }
            // Whole and named, only that nobody waits for it any more.
            (Done::Finished(_), None) | (Done::Abandoned, _) => {}
        }
    }

    fn snapshot_failed(&mut self, error: &io::Error) {
        if self.snapshots.taking.take().is_some() {
            tracing::warn!(
                shard = self.id,
                %error,
                "a snapshot could not be written; the log is complete without it, takes more \
                 space and longer to read back, and the next attempt follows"
            );
            self.tell(Input::SnapshotFailed);
        }
    }

    /// Ends the one being taken: a core that stops reads its log back instead.
    fn abandon_snapshot(&mut self) {
        let Some(taking) = self.snapshots.taking.take() else { return };
        self.tell(Input::SnapshotFailed);
        if let Some(file) = taking.file {
            self.snapshot_went_on(Done::Written(file));
        }
    }
}
