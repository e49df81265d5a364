//! The shard at its boundary: inputs in, effects out, nothing else.

mod desk;

mod clean;
mod crash;
mod flow;
mod shelf;
mod snapshot;
mod v1;
mod v2;
