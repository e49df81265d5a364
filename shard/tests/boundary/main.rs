//! The shard at its boundary: inputs in, effects out, nothing else.

mod desk;

mod crash;
mod v1;
mod v2;
