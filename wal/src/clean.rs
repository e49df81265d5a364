//! What the cleaning of the log needs to know, without I/O: how much of each
//! segment still waits ([`Space`]), and what stands in one ([`Walker`]).
//!
//! Cleaning copies what still waits out of a segment to the log's end, after
//! which the segment can be deleted. Who drives it is the shard: only an inbox
//! knows whether a message waits.

mod emptying;
mod hours;
mod space;
mod walker;

pub use space::Space;
pub use walker::{Walker, Want};
