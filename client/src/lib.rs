//! Client library for iris-shard.
//!
//! The sessions ([`Session`] for protocol v2, [`v1::Session`] for v1) are
//! sans-io: bytes and the time go in, events and bytes come out. They own what
//! makes a client correct: numbers per recipient, an outbox of everything the
//! server has not confirmed, repeats after a gap, a refusal or a reconnect, and
//! the delivery cursor. [`blocking`] puts them on a `std::net::TcpStream` with
//! timeouts, for tests and simple programs.

pub mod session;
pub mod v1;

pub mod blocking;

mod backoff;
mod outbox;

pub use backoff::Backoff;
pub use session::{Event, SendError, Session};
