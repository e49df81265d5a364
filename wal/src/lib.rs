//! The append-only log of one shard: records, commits, segments, recovery.
//!
//! Two halves. The **pure half** says which bytes stand where and when they
//! count as durable; it does no I/O, reads no clock and allocates nothing per
//! append. Production and the simulator are two callers of it. The **disk
//! half** ([`disk`], [`manifest`]) carries that out on files.
//!
//! The modules in the order in which a message meets them:
//!
//! - [`record`]: one record ↔ bytes, with a checksum chained to the one before;
//! - [`commit`]: what one write to disk begins with;
//! - [`log`]: the tail in memory and the pipeline of writes;
//! - [`segment`]: which file and offset holds a log position;
//! - [`names`]: which segment a file is, when its name says another one;
//! - [`sector`]: what a torn write leaves behind;
//! - [`recover`]: from the bytes of the segments back to records;
//! - [`salvage`]: what is left of a damaged one;
//! - [`snapshot`]: the state beside the log, as bytes;
//! - [`clean`]: which segments still hold what waits, and what is in one;
//! - [`manifest`] and [`disk`]: the data directory, its lock, its files.
//!
//! Three words carry the promises: `end` is what was appended, `durable` is the
//! end of what the disk has confirmed without a gap, and a record counts as
//! stored when `durable >= lsn + len`. docs/decisions/0002-log-format.md says
//! why the format is as it is.

mod checksum;
pub mod clean;
pub mod commit;
pub mod disk;
mod file;
pub mod log;
pub mod manifest;
pub mod names;
pub mod record;
pub mod recover;
pub mod salvage;
pub mod sector;
pub mod segment;
pub mod snapshot;
mod tail;

#[cfg(test)]
mod crash_tests;

pub use log::{Appended, Log, LogOptions, LogStart, Refused, Write};
pub use record::{Message, Record};
pub use recover::{Damage, Restore, Scanner, Torn};

/// A byte position in one shard's logical log. The order of positions is the
/// order of the log; a position is never used twice except after a torn tail
/// was cut.
pub type Lsn = u64;

/// The unit of writing, bytes: every write starts and ends on a multiple of it.
pub const BLOCK: usize = 4096;

/// The number of the on-disk format, in the manifest and in each segment: what
/// new files are written with. 2 brought records that move and drop messages,
/// snapshots, segments that are gone, and generations; 3 messages that are set
/// aside because they cannot be read; 4 says that what was never written is zero,
/// and counts the zeroes of a commit; 5 that it is a pattern.
pub const FORMAT: u32 = 5;

/// From this format on a torn write is told by what it leaves, in this one zeroes;
/// see [`sector`].
pub const FORMAT_ZEROED: u32 = 4;

/// From this format on it is told by a pattern.
pub const FORMAT_PATTERN: u32 = 5;

/// The oldest format that is still read. A file once written stays readable.
pub const FORMAT_OLDEST: u32 = 1;

/// [`BLOCK`] as a log distance.
pub(crate) const BLOCK_LSN: Lsn = BLOCK as Lsn;

/// The first block boundary at or after `lsn`.
pub fn block_end(lsn: Lsn) -> Lsn {
    lsn.next_multiple_of(BLOCK_LSN)
}
