//! What this machine is, what to choose for it, and how to apply it.
//!
//! In the order in which a boot meets them: [`probe`] looks, [`mod@plan`] chooses
//! (a pure function, so that a table of machines tests it), [`apply`] raises
//! what the process may raise, [`doctor`] tells a person all of it together
//! with the commands that lift each limit. Nothing here opens a socket that
//! serves anyone or touches the data directory beyond one short-lived file.

pub mod apply;
pub mod cgroup;
pub mod disk;
pub mod doctor;
pub mod plan;
pub mod probe;
pub mod quantity;
pub mod ring;
pub mod without;

pub use apply::Applied;
pub use disk::DiskProbe;
pub use plan::{Limit, Plan, Reason, Stop, Wishes, Written, plan};
pub use probe::Machine;
pub use ring::RingFeatures;
pub use without::Without;
