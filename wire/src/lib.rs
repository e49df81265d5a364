//! Bytes and messages: protocol v1 and v2, ids, limits, refusal codes.
//!
//! No state, no I/O, no clock. Decoders borrow from the bytes they are given
//! and never allocate; encoders append to a buffer of the caller. Every
//! decoder is total: any bytes give a packet, a request for more, or a typed
//! error, and never a panic.
#![forbid(unsafe_code)]

pub mod sniff;

pub mod v1;
pub mod v2;

pub mod id;
pub mod limits;
pub mod refuse;

mod bytes;
