//! The hands of one core: everything that touches a socket, a disk or a clock.
//!
//! [`Hands`] owns one io_uring (the *hot ring*) and every operation in flight on it: accepting,
//! receiving, sending, writing the log, reading it back. It turns completions into [`Event`]s and
//! knows nothing of what the bytes mean. [`Mesh`] carries values between cores, [`Clock`] is the
//! only reader of the time.
//!
//! A turn uses it in one fixed order: [`Hands::reap`] → [`Hands::received`] / [`Hands::consume`] →
//! [`Hands::write`] → [`Hands::send`] / [`Hands::flush`] → [`Hands::wait`] or [`Hands::park`].

mod bridge;
mod buf;
pub mod clock;
mod close;
mod conn;
mod disk;
mod event;
mod eventfd;
mod hands;
mod late;
pub mod listen;
pub mod mesh;
mod options;
mod prefetch;
mod quota;
mod receive;
mod relocate;
mod ring;
mod send;
mod sleeper;
mod stats;

/// The atomics of [`sleeper`], named here so that the loom test can put its own in their place.
mod atomic {
    pub(crate) use std::sync::atomic::{AtomicBool, Ordering, fence};
}

pub use buf::ReadBuf;
pub use clock::{Clock, Now};
pub use close::{After, CloseReason};
pub use conn::ConnId;
pub use disk::{NoBuffer, READ_BYTES_MAX, WriteMode};
pub use event::Event;
pub use eventfd::Waker;
pub use hands::Hands;
pub use late::{LATE_PERIODS, Patience};
pub use mesh::{Mesh, Port};
pub use options::{Features, HandsOptions};
pub use prefetch::prefetch;
pub use quota::Quota;
pub use relocate::{Moved, Peer};
pub use stats::HandsStats;
