//! The disk half: the data directory and the files in it.
//!
//! It carries out what the pure half says: it locks, creates, fills, opens and
//! reads. The steady-state writes are not here; the ring of the core writes the
//! bytes of [`crate::Log::write_bytes`] where [`Segments::locate`] says.
//!
//! Everything here blocks. It runs at boot, or on a helper thread
//! ([`Prepare::run`], [`Removal::run`], [`Remains::shrink`], [`SnapshotFile`]),
//! never in a turn.
#![allow(clippy::disallowed_types, clippy::disallowed_methods)] // the disk half

mod check;
mod data_dir;
mod error;
mod generation;
mod inspect;
pub mod manifest_copy;
mod misnamed;
mod probe;
mod recovery;
mod repair;
mod segments;
mod shard_dir;
mod snapshots;
mod sys;

#[cfg(test)]
mod generation_tests;
#[cfg(test)]
mod life_tests;
#[cfg(test)]
mod names_tests;
#[cfg(test)]
mod tests;

pub use data_dir::{DataDir, Holder, OpenOptions, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
pub use error::{DataDirError, RecoverError};
pub use generation::{Generation, Leftovers};
pub use inspect::{Files, Inspection, NoRecord, Nowhere, SegmentFile, SnapshotSeen, Stored};
pub use misnamed::Misnamed;
pub use probe::{DirectMode, probe};
pub use recovery::{Phase, Progress, Recovered};
pub use repair::{Continuation, Lost, Records, Salvaged};
pub use segments::{Prepare, Prepared, Remains, Removal, SPARE_SEGMENTS, Segments, spare_to_leave};
pub use shard_dir::ShardDir;
pub use snapshots::{Finished, Loaded, SNAPSHOTS_KEPT, SnapshotFile};
