//! The open segment files of one shard while it runs.
//!
//! A segment is allocated and filled ahead of need: overwriting costs no journal
//! commit, growing a file costs one with every write (135 against 500 µs on ext4).
//! What it is filled with tells a torn write from rot, see [`sector`](crate::sector).
//! It gets its name only when it is complete, so a crash never leaves half a
//! segment.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::data_dir::sync_dir;
use super::probe::DirectMode;
use super::shard_dir::ShardDir;
use super::sys;
use crate::sector::Blank;
use crate::segment::{self, SegmentHeader};
use crate::{BLOCK, BLOCK_LSN, Lsn};

/// A segment is filled in pieces of this size: a commit waits behind one of them.
/// With 1 MiB its median beside a segment being made was four times what it is
/// alone, with this 1.3 times (docs/decisions/0009).
const FILL_BYTES: usize = 128 << 10;

/// The open segment files of one shard.
pub struct Segments {
    dir: ShardDir,
    mode: DirectMode,
    /// The number of the first one in `files`.
    first: u64,
    /// By segment number from `first` on; `None` for those that were deleted.
    /// Neither the first nor the last one is.
    files: VecDeque<Option<File>>,
    hurries: bool,
}

/// A job: delete a segment. [`Removal::run`] it on a helper thread, after every
/// read that was to use its descriptor has been handed to the kernel.
pub struct Removal {
    path: PathBuf,
    file: File,
}

/// A deleted segment that still takes its space. Dropped, it gives back all of
/// it at once.
pub struct Remains {
    file: File,
    len: u64,
}

/// With room for fewer segments than this the space of a deleted one is wanted
/// back at once: other shards and snapshots want some, too.
const ROOM_SEGMENTS: u64 = 16;

/// So much of a deleted segment is given back at once, bytes. While a file
/// system frees space, others may wait with their writes: 13 to 17 ms for 64 MiB
/// on an ext4 mounted with `discard`, which is as long as what is freed.
const SHRINK_BYTES: u64 = 8 << 20;

/// Segments that the log of one shard goes on in on a full disk: while it fills one
/// with acknowledgements, snapshots let go of the one before. Both are taken when
/// the one in which the disk became full holds messages that wait, and so is not let
/// go of.
pub const SPARE_SEGMENTS: usize = 2;

/// Of what others have left of theirs: how many segments a log leaves that has no
/// other place and so many of its own left.
///
/// A disk may have less free than was kept on it, when others than this server write
/// to it. Were each to leave what all others have not begun with, none could go on
/// where there is place for one. So whoever has begun goes on, because the second one
/// lets go of the first, and the others begin when he gives space back.
pub fn spare_to_leave(mine: u64, others: impl Iterator<Item = u64>) -> u64 {
    const WHOLE: u64 = SPARE_SEGMENTS as u64;
    match mine {
        0 => others.sum(),
        1..WHOLE => 0,
        _ => others.filter(|left| *left < WHOLE).sum(),
    }
}

const MIB: u64 = 1 << 20;

/// A job: make the next segment. [`Prepare::run`] it on a helper thread, then
/// [`Segments::adopt`] what comes back.
pub struct Prepare {
    dir: ShardDir,
    mode: DirectMode,
    index: u64,
    reserve: u64,
    least: u64,
}

/// A segment that is ready.
pub struct Prepared {
    index: u64,
    file: File,
    is_of_reserve: bool,
}

impl Segments {
    pub(super) fn open(
        dir: &ShardDir,
        indexes: &[u64],
        end: Lsn,
        mode: DirectMode,
    ) -> io::Result<Segments> {
        let (dir, files) = (dir.clone(), VecDeque::new());
        let mut segments = Segments { dir, mode, first: 0, files, hurries: true };
        for &index in indexes {
            let file = open(&segments.dir.segment_path(index), mode)?;
            segments.put(index, file);
        }
        if segments.files.is_empty() {
            segments.first = segment::index(end, segments.dir.segment_bytes);
        }
        while segments.first_missing() <= segment::index(end, segments.dir.segment_bytes) {
            let prepared = segments.prepare(segments.first_missing()).run()?;
            segments.adopt(prepared);
        }
        Ok(segments)
    }

    /// How these files are written and synced.
    pub fn mode(&self) -> DirectMode {
        self.mode
    }

    /// The file that holds `lsn` and the offset in it, for reading and writing;
    /// `None` when that segment is not there. The descriptor stays open until
    /// the segment is removed or this value dropped.
    pub fn locate(&self, lsn: Lsn) -> Option<(RawFd, u64)> {
        let index = segment::index(lsn, self.dir.segment_bytes);
        let file =
            self.files.get(usize::try_from(index.checked_sub(self.first)?).ok()?)?.as_ref()?;
        Some((file.as_raw_fd(), segment::file_offset(lsn, self.dir.segment_bytes)))
    }

    /// Writes bytes of the log, and makes the segments for them. Blocks and
    /// syncs nothing, see [`Segments::sync`]: for a log that nobody is served
    /// from yet.
    ///
    /// # Errors
    /// What the system said.
    ///
    /// # Panics
    /// When the bytes go beyond a segment's end; a commit never does.
    pub fn write(&mut self, lsn: Lsn, bytes: &[u8]) -> io::Result<()> {
        let end = lsn + bytes.len() as Lsn;
        while !self.has_space_for(end) {
            let prepared = self.prepare(self.first_missing()).run()?;
            self.adopt(prepared);
        }
        let index = segment::index(lsn, self.dir.segment_bytes);
        assert!(end <= segment::base(index + 1, self.dir.segment_bytes), "within a segment");
        let file = self.files[(index - self.first) as usize].as_ref().expect("it has space");
        file.write_all_at(bytes, segment::file_offset(lsn, self.dir.segment_bytes))
    }

    /// Makes all that was written durable.
    ///
    /// # Errors
    /// What the system said; never to be tried again.
    pub fn sync(&self) -> io::Result<()> {
        for file in self.files.iter().flatten() {
            file.sync_data()?;
            sys::drop_cached(file);
        }
        Ok(())
    }

    /// Whether the next segment is made while one and a half are left, as at
    /// first, or one only: enough where a segment lasts much longer than it
    /// takes to make one, and half a segment less of disk.
    pub fn hurry(&mut self, hurries: bool) {
        self.hurries = hurries;
    }

    /// The segment to make next, once less than one, or one and a half, are
    /// left: what is under way when no next one can be made because the disk is
    /// full still has a place. Answers the same until it is adopted: the
    /// caller runs one job at a time, and may ask again after a failure.
    pub fn wants_next(&self, end: Lsn) -> Option<Prepare> {
        let missing = self.first_missing();
        let half = if self.hurries { self.dir.segment_bytes / 2 } else { 0 };
        let ahead = self.dir.segment_bytes + half;
        let due = segment::base(missing, self.dir.segment_bytes).saturating_sub(ahead);
        (end >= due).then(|| self.prepare(missing))
    }

    /// Whether the disk shows too little space for the next segment and the
    /// reserve. Known before any attempt, so that a start on a full disk does not
    /// spend what is left on new messages.
    pub fn lacks_space(&self, reserve: u64) -> bool {
        self.prepare(self.first_missing()).leaving(reserve).lacks_space()
    }

    /// Takes a segment that is ready.
    ///
    /// # Panics
    /// When it is not the next one.
    pub fn adopt(&mut self, prepared: Prepared) {
        assert_eq!(prepared.index, self.first_missing(), "segments come one after the other");
        self.put(prepared.index, prepared.file);
    }

    /// Takes a segment out, to be deleted; `None` when it is not there. The last
    /// one stays: the log goes on in it.
    pub fn remove(&mut self, index: u64) -> Option<Removal> {
        let at = usize::try_from(index.checked_sub(self.first)?).ok()?;
        if at + 1 >= self.files.len() {
            return None;
        }
        let file = self.files[at].take()?;
        while matches!(self.files.front(), Some(None)) {
            self.files.pop_front();
            self.first += 1;
        }
        Some(Removal { path: self.dir.segment_path(index), file })
    }

    /// The numbers of the segments that are there, ascending.
    pub fn present(&self) -> impl Iterator<Item = u64> {
        let files = (self.first..).zip(&self.files);
        files.filter(|(_, file)| file.is_some()).map(|(index, _)| index)
    }

    /// The numbers of the newest of them, so many at most, descending.
    pub fn newest(&self, count: usize) -> Vec<u64> {
        let files = (self.first..self.first_missing()).rev().zip(self.files.iter().rev());
        files.filter(|(_, file)| file.is_some()).map(|(index, _)| index).take(count).collect()
    }

    /// What all segments take on the disk, bytes.
    pub fn bytes(&self) -> u64 {
        self.present().count() as u64 * segment::file_bytes(self.dir.segment_bytes)
    }

    /// Whether everything before `lsn_end` has a file to be written to.
    pub fn has_space_for(&self, lsn_end: Lsn) -> bool {
        lsn_end <= self.place_end()
    }

    /// Everything before this position has a file to be written to.
    pub fn place_end(&self) -> Lsn {
        segment::base(self.first_missing(), self.dir.segment_bytes)
    }

    /// The number after the last one.
    fn first_missing(&self) -> u64 {
        self.first + self.files.len() as u64
    }

    /// Puts a segment behind the others.
    fn put(&mut self, index: u64, file: File) {
        if self.files.is_empty() {
            self.first = index;
        }
        while self.first_missing() < index {
            self.files.push_back(None);
        }
        assert!(index == self.first_missing(), "segments come in order");
        // For the next server to see whether a write of this one is still under way. Nobody else has
        // such a lock: `DataDir::await_writes`.
        let _ = file.try_lock();
        self.files.push_back(Some(file));
    }

    fn prepare(&self, index: u64) -> Prepare {
        let (dir, mode) = (self.dir.clone(), self.mode);
        Prepare { dir, mode, index, reserve: 0, least: 0 }
    }
}

impl Removal {
    /// Deletes the segment, except for its space. Not synced: a file that comes
    /// back after a power cut is found to be needed by nothing, and deleted again.
    /// Nothing remains of a file that has another name: somebody keeps its bytes.
    ///
    /// # Errors
    /// What the system said; the file may still be there.
    pub fn run(self) -> io::Result<Option<Remains>> {
        fs::remove_file(&self.path)?;
        let file = self.file.metadata()?;
        Ok((file.nlink() == 0).then_some(Remains { file: self.file, len: file.len() }))
    }
}

impl Remains {
    /// Whether the disk is short of space, of which so much is left for snapshots.
    pub fn is_urgent(&self, reserve: u64) -> bool {
        let wanted = (ROOM_SEGMENTS * self.len).saturating_add(reserve);
        sys::free_bytes_beside(&self.file).is_ok_and(|free| free < wanted)
    }

    /// Leaves the rest to the end of the process, which closes the file.
    pub fn leave(self) {
        let _ = self.file.into_raw_fd();
    }

    /// Gives back a part of the space; what is left, unless that was the last.
    /// Blocks for as long as the file system takes.
    pub fn shrink(mut self) -> Option<Remains> {
        self.len = self.len.saturating_sub(SHRINK_BYTES);
        // What cannot be shortened goes at once.
        (self.file.set_len(self.len).is_ok() && self.len > 0).then_some(self)
    }
}

impl Prepare {
    /// So many bytes are to be left on the disk: for snapshots, without which no
    /// space is given back, and for [`Prepare::at_need`].
    #[must_use]
    pub fn leaving(self, reserve: u64) -> Prepare {
        Prepare { reserve, least: reserve, ..self }
    }

    /// The log has no other place, so only this much must be left: what
    /// snapshots need, because nothing is deleted without two of them.
    #[must_use]
    pub fn at_need(self, least: u64) -> Prepare {
        Prepare { least, ..self }
    }

    /// Makes the segment: allocates, fills, syncs, names it. Blocks for as long
    /// as the disk takes.
    ///
    /// # Errors
    /// What the system said, most likely that no space is left, or that what
    /// would be left is too little. Nothing is left behind then, and the job may be
    /// tried again.
    pub fn run(self) -> io::Result<Prepared> {
        if self.least > 0 && self.lacks_space() {
            return Err(self.too_little(segment::file_bytes(self.dir.segment_bytes)));
        }
        // Other shards may make theirs at the same moment: what is left is known
        // when this one has its place.
        let mut is_of_reserve = false;
        let unnamed = make_unnamed(&self.dir, self.index, self.mode, || {
            is_of_reserve = self.leaves_less(0, self.reserve);
            if self.leaves_less(0, self.least) { Err(self.too_little(0)) } else { Ok(()) }
        })?;
        Ok(Prepared { index: self.index, file: unnamed.name()?, is_of_reserve })
    }

    fn lacks_space(&self) -> bool {
        let bytes = segment::file_bytes(self.dir.segment_bytes);
        self.leaves_less(bytes, self.least)
    }

    /// Whether less than this would be left without so many bytes.
    fn leaves_less(&self, taken: u64, left: u64) -> bool {
        sys::free_bytes(&self.dir.path).is_ok_and(|free| free < taken.saturating_add(left))
    }

    fn too_little(&self, taken: u64) -> io::Error {
        let free = sys::free_bytes(&self.dir.path).unwrap_or(0);
        let why = format!(
            "{} MiB must be free, {} of them for what gives space back, and {} are",
            (taken + self.least).div_ceil(MIB),
            self.least.div_ceil(MIB),
            free / MIB
        );
        io::Error::new(io::ErrorKind::StorageFull, why)
    }
}

impl Prepared {
    /// Whether less is left on the disk than should be, see [`Prepare::leaving`].
    pub fn is_of_reserve(&self) -> bool {
        self.is_of_reserve
    }
}

/// A segment that is complete but for its name. Without it the next boot removes
/// the file.
pub(super) struct Unnamed {
    path: PathBuf,
    file: File,
}

impl Unnamed {
    /// Its file.
    pub(super) fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Gives it its name, durably.
    pub(super) fn name(self) -> io::Result<File> {
        let temporary = temporary(&self.path);
        let dir = self.path.parent().expect("in the shard's directory");
        let named = fs::rename(&temporary, &self.path).and_then(|()| sync_dir(dir));
        if named.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        named.map(|()| self.file)
    }
}

/// Makes a segment that is not there, as [`Prepare::run`], but for its name. When
/// it has its place on the disk `is_fine` may object.
pub(super) fn make_unnamed(
    dir: &ShardDir,
    index: u64,
    mode: DirectMode,
    is_fine: impl FnOnce() -> io::Result<()>,
) -> io::Result<Unnamed> {
    let path = dir.segment_path(index);
    match fill(&temporary(&path), &dir.header(index), mode, is_fine) {
        Ok(file) => Ok(Unnamed { path, file }),
        Err(error) => {
            let _ = fs::remove_file(temporary(&path));
            Err(error)
        }
    }
}

fn temporary(path: &Path) -> PathBuf {
    path.with_extension("log.tmp")
}

fn open(path: &Path, mode: DirectMode) -> io::Result<File> {
    fs::OpenOptions::new().read(true).write(true).custom_flags(mode.open_flags()).open(path)
}

/// A whole segment under its temporary name, on the disk.
fn fill(
    path: &Path,
    header: &SegmentHeader,
    mode: DirectMode,
    is_fine: impl FnOnce() -> io::Result<()>,
) -> io::Result<File> {
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(mode.open_flags())
        .open(path)?;
    let end = segment::file_bytes(header.segment_bytes);
    sys::allocate(&file, end)?;
    is_fine()?;
    let mut memory = vec![0; FILL_BYTES + BLOCK];
    let start = memory.as_ptr().align_offset(BLOCK);
    let piece = &mut memory[start..start + FILL_BYTES];
    piece[..BLOCK].copy_from_slice(&header.encode());
    file.write_all_at(&piece[..BLOCK], 0)?;
    Blank::of_log(header.log_id).fill(piece);
    let mut at = BLOCK_LSN;
    while at < end {
        let len = piece.len().min((end - at) as usize);
        file.write_all_at(&piece[..len], at)?;
        if !mode.is_direct() {
            sys::push(&file, at, len as u64)?;
        }
        at += len as u64;
    }
    file.sync_all()?;
    if !mode.is_direct() {
        sys::drop_cached(&file);
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_space_of_a_deleted_segment_comes_back_in_steps() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(2 * SHRINK_BYTES + 1).unwrap();
        let len = |file: &File| file.metadata().unwrap().len();
        let seen = file.try_clone().unwrap();
        let remains = Remains { len: len(&file), file };
        let remains = remains.shrink().expect("two steps are left");
        assert_eq!(len(&seen), SHRINK_BYTES + 1);
        let remains = remains.shrink().expect("one step is left");
        assert_eq!(len(&seen), 1);
        assert!(remains.shrink().is_none());
        assert_eq!(len(&seen), 0);
    }
}
