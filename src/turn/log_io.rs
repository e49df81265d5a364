//! The log's bytes to the disk and back: commits, reads, segments ahead of need.
#![allow(unsafe_code)] // one block: the kernel reads a commit out of the log's tail

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use net::{ReadBuf, WriteMode};
use shard::gather::{Gather, Pressure};
use shard::{Conn, Input};
use wal::disk::{DirectMode, Prepared, Remains, SPARE_SEGMENTS, Segments};
use wal::segment::file_bytes;
use wal::{BLOCK, Lsn, Write};

use super::reads::{Read, Reads, stretch};
use super::{Core, Shared, clock};
use crate::exit::Exit;

/// A failed attempt to make a segment is repeated after this long.
const RETRY_NS: u64 = 1_000_000_000;

/// A segment that lasted so many times as long as making the next one took is
/// no reason to hurry.
const LASTS_LONG: u64 = 4;

/// How long a deleted segment keeps its space: an inbox that is being emptied
/// leaves one after the other, and commits stand still while each is freed.
const KEPT: Duration = Duration::from_secs(2);

/// Between two steps in which a deleted segment gives its space back.
const SHRINK_PAUSE: Duration = Duration::from_millis(20);

/// Who wants to read the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// A device that catches up.
    Device(Conn),
    /// The shard itself, to get space back.
    Cleaner,
}

/// One core's side of the disk.
pub(super) struct LogIo {
    segments: Segments,
    mode: WriteMode,
    /// Lengths of the commits in flight, by their position.
    writing: Vec<Write>,
    /// Reads that wait for a buffer, and those under way.
    pub(super) reads: Reads,
    /// Every buffer is taken: those that wait are not looked through again
    /// before one comes back.
    is_out_of_buffers: bool,
    /// A segment being made, or how that ended.
    preparing: Option<Rc<RefCell<Option<io::Result<Prepared>>>>>,
    /// Helper threads that delete segments.
    removing: Rc<Cell<u32>>,
    /// When the one being made was begun, and when the last one was ready.
    began_ns: u64,
    adopted_ns: u64,
    retry_ns: u64,
    is_full: bool,
    /// What the shard knows of its place.
    told: (Lsn, Lsn),
    /// Segments that were made of what is kept for a full disk.
    at_need: Vec<u64>,
    /// The last one that was tried was urgent.
    was_urgent: bool,
    gather: Gather,
}

impl LogIo {
    pub(super) fn new(segments: Segments) -> LogIo {
        let mode = match segments.mode() {
            DirectMode::DirectDsync => WriteMode::Dsync,
            DirectMode::DirectFdatasync | DirectMode::BufferedFdatasync => WriteMode::ThenFdatasync,
        };
        LogIo {
            segments,
            mode,
            writing: Vec::new(),
            reads: Reads::default(),
            is_out_of_buffers: false,
            preparing: None,
            removing: Rc::default(),
            began_ns: 0,
            adopted_ns: clock().mono_ns,
            retry_ns: 0,
            is_full: false,
            told: (0, 0),
            at_need: Vec::new(),
            was_urgent: false,
            gather: Gather::default(),
        }
    }
}

impl Core {
    /// While the core goes from turn to turn without a rest, what is appended
    /// gathers for a moment: a commit costs as much as several messages.
    pub(super) fn commit_in_time(&mut self) {
        self.commit_if_due(true);
    }

    /// Before a rest everything is committed that somebody waits for, unless the
    /// disk is full.
    pub(super) fn commit_before_rest(&mut self) {
        self.commit_if_due(false);
    }

    fn commit_if_due(&mut self, is_busy: bool) {
        let pressure = if self.draining_since.is_some() {
            Pressure::Stop
        } else if self.has_blocked() || self.mesh.is_stuck() {
            Pressure::Input
        } else {
            Pressure::None
        };
        if self.log.gather.is_due(&self.shard, self.now, is_busy, pressure) {
            self.commit();
        }
    }

    /// One write for everything appended since the last one, if none is under
    /// way or enough has gathered for another.
    pub(super) fn commit(&mut self) {
        self.log.gather.committed();
        while let Some(write) = self.shard.next_write() {
            self.write(write);
        }
    }

    fn write(&mut self, write: Write) {
        let (fd, offset) =
            self.log.segments.locate(write.lsn).expect("what was appended has its place");
        let bytes = self.shard.log().write_bytes(&write);
        assert_eq!(bytes.as_ptr().align_offset(BLOCK), 0, "direct writes are aligned");
        self.log.writing.push(write);
        // SAFETY: the log keeps the bytes of a write in place and unchanged
        // until it is reported as written, which happens on the `Written` event
        // with this tag and nowhere else. The log belongs to the shard, which
        // is dropped after the hands, and dropping those waits for the write.
        // The segment's descriptor stays open as long as `self.log.segments`,
        // which is dropped after the hands, too.
        unsafe {
            self.hands.write(write.lsn, fd, bytes.as_ptr(), write.len, offset, self.log.mode);
        }
    }

    /// A write ended: everything it covers may leave now, or nothing ever.
    pub(super) fn written(&mut self, lsn: Lsn, result: io::Result<u32>) {
        let at = self.log.writing.iter().position(|write| write.lsn == lsn);
        let write = self.log.writing.swap_remove(at.expect("a completion has its write"));
        let ok = matches!(result, Ok(len) if len == write.len);
        self.shard.foresee_release(lsn + u64::from(write.len), net::prefetch);
        self.tell(Input::Written { lsn, ok });
        if !ok {
            self.fail(lsn, write.len, &result);
        }
    }

    /// Nobody knows what a failed write has left on the disk, except who reads
    /// it back from the beginning. So all shards leave in order, and whoever
    /// supervises the process starts it again.
    fn fail(&mut self, lsn: Lsn, asked: u32, result: &io::Result<u32>) {
        let what = match result {
            Ok(wrote) => format!("{wrote} of {asked} bytes were written"),
            Err(error) => error.to_string(),
        };
        tracing::error!(
            shard = self.id,
            lsn,
            "a write of the log failed ({what}): this shard takes nothing more and the server \
             stops; what was acknowledged is on the disk"
        );
        // Whoever looks between now and the end sees why.
        self.publish();
        self.fault.get_or_insert_with(|| {
            Exit::disk(format!(
                "stopped, because shard {} could not write its log ({what}); what was \
                 acknowledged is on the disk: see to it and start the server again, it goes on \
                 from there",
                self.id
            ))
        });
        self.shared.stop.store(true, Ordering::Relaxed);
    }

    /// Starts at the end of the turn, if it is not served by what others read.
    pub(super) fn read_log(&mut self, read: Read) {
        self.log.reads.ask(read);
    }

    /// Tries again what has failed a while ago.
    pub(super) fn retry_reads(&mut self) {
        self.log.reads.wake(self.now.mono_ns);
    }

    /// Starts as many reads as there are buffers.
    pub(super) fn start_reads(&mut self) {
        while !self.log.is_out_of_buffers {
            let segments = &self.log.segments;
            let file = |lsn: Lsn| segments.locate(lsn).map(|(fd, _)| fd);
            let reads = self.log.reads.next(|a, b| file(a) == file(b));
            let Some(&first) = reads.first() else { return };
            let Some((fd, offset)) = segments.locate(first.lsn) else {
                for read in reads {
                    tracing::error!(
                        shard = self.id,
                        lsn = read.lsn,
                        "no segment holds this position"
                    );
                    self.tell(answer(read.reader, read.lsn, None));
                }
                continue;
            };
            let log = self.shard.log();
            let segment_bytes = log.options().segment_bytes;
            let file_end = (first.lsn / segment_bytes + 1) * segment_bytes;
            let wanted = stretch(&reads, file_end.min(log.durable()));
            let (start, len) = aligned(offset, wanted);
            debug_assert!(offset - start + u64::from(first.len_min) <= len.into(), "it fits");
            let tag = self.log.reads.tag();
            if self.hands.read(tag as u64, fd, start, len).is_err() {
                self.log.reads.put_back(reads);
                self.log.is_out_of_buffers = true;
                return;
            }
            let end = first.lsn + u64::from(len) - (offset - start);
            self.log.reads.began(tag, reads, end.min(first.lsn + u64::from(wanted)));
        }
    }

    pub(super) fn read_done(&mut self, tag: u64, result: io::Result<(ReadBuf, u32)>) {
        let tag = tag as usize;
        match result {
            Ok((buffer, len)) => {
                self.log.reads.came_back(tag, buffer, len);
                self.queue_read(tag);
            }
            Err(error) => {
                self.log.buffer_is_back();
                let reads = self.log.reads.failed(tag);
                let are_many = reads.len() > 1;
                for read in reads {
                    if self.log.reads.try_again(self.now.mono_ns, read, are_many) {
                        continue;
                    }
                    let lsn = read.lsn;
                    tracing::error!(shard = self.id, lsn, %error, "reading the log failed twice");
                    self.tell(answer(read.reader, lsn, None));
                }
            }
        }
    }

    /// Deletes a segment that nothing needs any more, on a helper thread, and
    /// gives its space back in steps: commits wait for each of them.
    pub(super) fn discard(&mut self, segment: u64) {
        let Some(job) = self.log.segments.remove(segment) else { return };
        self.log.at_need.retain(|made| *made != segment);
        let (shard, removing) = (self.id, Rc::clone(&self.log.removing));
        removing.set(removing.get() + 1);
        let shared = Arc::clone(&self.shared);
        let reserve = self.reserve_bytes();
        glommio::spawn_local(async move {
            match glommio::executor().spawn_blocking(move || job.run()).await {
                Ok(remains) => give_back(remains, &shared, reserve).await,
                Err(error) => tracing::warn!(
                    shard,
                    segment,
                    %error,
                    "a log segment that is not needed any more could not be deleted; the next \
                     start tries again"
                ),
            }
            removing.set(removing.get() - 1);
        })
        .detach();
    }

    /// Makes the next segment ahead of need, on a helper thread.
    pub(super) fn prepare_segment(&mut self) {
        if let Some(prepared) = self.log.take_prepared() {
            self.adopt(prepared);
        }
        // What a core that stops must still write has its place.
        if self.log.is_preparing() || self.draining_since.is_some() {
            return;
        }
        let log = self.shard.log();
        let is_urgent = log.lacks_place();
        // What was tried in vain was not urgent, perhaps, and left the reserve alone.
        let is_due = self.now.mono_ns >= self.log.retry_ns || is_urgent && !self.log.was_urgent;
        if !is_due {
            return;
        }
        let Some(job) = self.log.segments.wants_next(log.end()) else {
            return self.look_again();
        };
        let job = job.leaving(self.reserve_bytes());
        let job = if is_urgent { job.at_need(self.least_bytes()) } else { job };
        self.log.was_urgent = is_urgent;
        self.log.began_ns = self.now.mono_ns;
        let slot = Rc::new(RefCell::new(None));
        self.log.preparing = Some(Rc::clone(&slot));
        glommio::spawn_local(async move {
            let made = glommio::executor().spawn_blocking(move || job.run()).await;
            *slot.borrow_mut() = Some(made);
        })
        .detach();
    }

    /// A segment that was made at need may last for long: is there space again?
    fn look_again(&mut self) {
        if !self.log.is_full {
            return;
        }
        self.log.retry_ns = self.now.mono_ns + RETRY_NS;
        if !self.log.segments.lacks_space(self.reserve_bytes()) {
            self.take_messages();
        }
        self.tell_place();
    }

    fn take_messages(&mut self) {
        if std::mem::take(&mut self.log.is_full) {
            self.log.at_need.clear();
            tracing::info!(shard = self.id, "the disk has space again");
            self.tell(Input::Storage { full: false });
        }
    }

    /// What this shard keeps of a full disk for its segments, bytes.
    pub(super) fn kept_bytes(&self) -> u64 {
        SPARE_SEGMENTS as u64 * file_bytes(self.shard.log().options().segment_bytes)
    }

    /// What a segment that is made ahead of need must leave on the disk.
    pub(super) fn reserve_bytes(&self) -> u64 {
        self.tell_reserve();
        let shards = self.shared.reserves.len() as u64;
        self.shared.reserved() + shards * self.kept_bytes()
    }

    /// What one must leave without which the log has no place.
    fn least_bytes(&self) -> u64 {
        self.tell_reserve();
        self.shared.reserved_from(self.id, file_bytes(self.shard.log().options().segment_bytes))
    }

    fn adopt(&mut self, prepared: io::Result<Prepared>) {
        match prepared {
            Ok(segment) => {
                let is_of_reserve = segment.is_of_reserve();
                self.log.segments.adopt(segment);
                self.log.pace(self.now.mono_ns);
                self.log.was_urgent = false;
                if is_of_reserve {
                    self.log.note_at_need();
                    self.log.retry_ns = self.now.mono_ns + RETRY_NS;
                    let why = "the last one was made of what is kept for acknowledgements";
                    self.refuse_messages(&io::Error::new(io::ErrorKind::StorageFull, why));
                } else {
                    self.take_messages();
                }
            }
            Err(error) => {
                self.log.retry_ns = self.now.mono_ns + RETRY_NS;
                self.log.segments.hurry(true);
                self.refuse_messages(&error);
            }
        }
        self.tell_place();
    }

    /// The last segment that a full disk has place for is for cleaning.
    fn tell_place(&mut self) {
        let segments = &self.log.segments;
        let end = segments.place_end();
        let is_last = self.log.is_full && segments.lacks_space(self.least_bytes());
        let kept = if is_last { self.shard.log().options().segment_bytes } else { 0 };
        let place = (end, end - kept);
        if std::mem::replace(&mut self.log.told, place) != place {
            self.tell(Input::Place { end, common: place.1 });
        }
    }

    /// Before anything is appended: how much place there is. On a disk that is
    /// full at the start nothing of what is left is for new messages: each start
    /// would take some, until one finds no place at all.
    pub(super) fn look_for_space(&mut self) {
        let reserve = self.reserve_bytes();
        let is_due = self.log.segments.wants_next(self.shard.log().end()).is_some();
        if is_due && self.log.segments.lacks_space(reserve) {
            let why = format!(
                "a segment and {} MiB for acknowledgements and snapshots must be free",
                reserve.div_ceil(1 << 20)
            );
            // The life before has used what is kept, perhaps: who keeps what he
            // does not need holds up others.
            self.log.at_need = self.log.segments.newest(SPARE_SEGMENTS);
            self.tell_reserve();
            self.refuse_messages(&io::Error::new(io::ErrorKind::StorageFull, why));
        }
        self.tell_place();
    }

    fn refuse_messages(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.log.is_full, true) {
            tracing::error!(
                shard = self.id,
                %error,
                "cannot make the next log segment: {}; until it works (tried every second) new \
                 messages are refused and deliveries go on",
                remedy(error)
            );
            self.tell(Input::Storage { full: true });
        }
    }
}

impl LogIo {
    fn take_prepared(&mut self) -> Option<io::Result<Prepared>> {
        let ended = self.preparing.as_ref()?.borrow_mut().take()?;
        self.preparing = None;
        Some(ended)
    }

    /// A segment is ready: how early the next one must be.
    fn pace(&mut self, now_ns: u64) {
        let (lasted, took) = (now_ns - self.adopted_ns, now_ns - self.began_ns);
        self.segments.hurry(lasted < LASTS_LONG * took || self.was_urgent);
        self.adopted_ns = now_ns;
    }

    /// Whether a read waits that could be started.
    pub(super) fn has_reads(&self) -> bool {
        !self.is_out_of_buffers && !self.reads.is_empty()
    }

    /// One of those that everybody waits for may be taken again.
    pub(super) fn buffer_is_back(&mut self) {
        self.is_out_of_buffers = false;
    }

    /// Whether something appended, for which somebody waits, gathers more before
    /// it is committed.
    pub(super) fn is_gathering(&self) -> bool {
        self.gather.is_awaited()
    }

    /// Whether something gathers although somebody may wait for it, as everything
    /// does on a full disk.
    pub(super) fn is_sparing(&self) -> bool {
        self.is_full && self.gather.since_ns().is_some()
    }

    /// Whether a helper thread makes a segment.
    pub(super) fn is_preparing(&self) -> bool {
        self.preparing.is_some()
    }

    /// Whether helper threads delete segments.
    pub(super) fn is_removing(&self) -> bool {
        self.removing.get() > 0
    }

    /// Segments that are still kept for a full disk.
    pub(super) fn spare_segments(&self) -> u64 {
        SPARE_SEGMENTS.saturating_sub(self.at_need.len()) as u64
    }

    /// The last segment was made of it.
    fn note_at_need(&mut self) {
        self.at_need.extend(self.segments.newest(1));
    }

    /// The segments there are, and the bytes they take.
    pub(super) fn space(&self) -> (u64, u64) {
        (self.segments.present().count() as u64, self.segments.bytes())
    }
}

/// Gives the space of a deleted segment back, after a while and with a pause
/// before each step. A process that stops leaves the rest to its end.
async fn give_back(mut remains: Option<Remains>, shared: &Shared, reserve: u64) {
    let since_ns = clock().mono_ns;
    let is_kept = || u128::from(clock().mono_ns - since_ns) < KEPT.as_nanos();
    while let Some(rest) = remains {
        glommio::timer::sleep(SHRINK_PAUSE).await;
        if shared.stop.load(Ordering::Relaxed) {
            return rest.leave();
        }
        remains = if is_kept() && !rest.is_urgent(reserve) {
            Some(rest)
        } else {
            glommio::executor().spawn_blocking(move || rest.shrink()).await
        };
    }
}

/// The end of a read as the shard hears of it.
pub(super) fn answer(reader: Reader, lsn: Lsn, bytes: Option<&[u8]>) -> Input<'_> {
    match reader {
        Reader::Device(conn) => Input::Read { conn, lsn, bytes },
        Reader::Cleaner => Input::Surveyed { lsn, bytes },
    }
}

/// What the operator can do about a segment that cannot be made.
fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EDQUOT) => "the quota is used up, raise it or make room",
        Some(libc::EMFILE) => "this process has no file descriptor left, raise its `nofile` limit",
        Some(libc::ENFILE) => "the system has no file descriptor left, raise `fs.file-max`",
        Some(libc::EROFS) => "the file system is read-only now, see the kernel's log",
        Some(libc::EACCES | libc::EPERM) => "the data directory may no longer be written",
        Some(libc::EFBIG) => "the file size limit of this process is too low, see `ulimit -f`",
        Some(libc::EIO) => "the disk fails, see the kernel's log",
        _ if error.kind() == io::ErrorKind::StorageFull => "the disk is full, make room",
        _ => "see to the data directory",
    }
}

/// The block-aligned range of a file that covers a read of so many bytes, as far as
/// a buffer reaches.
fn aligned(offset: u64, len: u32) -> (u64, u32) {
    let block = BLOCK as u64;
    let start = offset / block * block;
    let end = (offset + u64::from(len)).next_multiple_of(block);
    let len = (end - start).min(u64::from(net::READ_BYTES_MAX));
    (start, len as u32)
}
