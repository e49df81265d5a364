//! The same shards and the same log in a simulated world: one thread, one
//! seed, virtual time.
//!
//! A [`World`] has a server of one to four [`shard::Shard`]s on [`wal::Log`]s,
//! disks that tear, links that break, a crowd of clients that come and go, and
//! an oracle that knows what was promised. Nothing in it is a stand-in for the
//! brain or the log: those are the ones that production runs. What production
//! has around them (`src/turn.rs`) is played by the module `turn`.
//!
//! The same seed lives the same life, to the last byte that leaves the server:
//! [`Outcome::hash`] says so. docs/decisions/0005-simulator.md says what is
//! promised, what is modelled and what is not.
//!
//! Modules in reading order: what the world is made of, then what happens in
//! it, then who watches.
#![forbid(unsafe_code)]

mod chance;
mod knobs;
mod plant;
mod stats;
mod trace;

mod device;
mod disk;
mod filling;
mod layout;
mod link;

mod boot;
mod crowd;
mod crowd_v1;
mod damage;
mod names;
mod reshard;
mod snapshots;
mod turn;
mod volume;
mod world;

mod history;
mod image;
mod ledger;
mod mailbox;
mod model;
mod settle;
mod space;
mod verdict;
mod watch;

pub use chance::Chance;
pub use disk::{Disk, SnapshotFile};
pub use image::{Image, Wreck};
pub use plant::Plant;
pub use stats::Stats;
pub use world::{Outcome, World};

/// Lives the life of one seed. A panic of the code under test is a violation
/// like others, where panics unwind.
pub fn run(seed: u64, plant: Plant) -> (Outcome, Vec<String>) {
    let mut world = World::new(seed, plant, false);
    let lived = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.live()));
    let outcome = lived.unwrap_or_else(|panic| Outcome {
        hash: world.trace().hash(),
        stats: Stats::default(),
        violation: Some(format!("panic: {}", panic_text(panic.as_ref()))),
    });
    let lines = if outcome.violation.is_some() {
        world.trace().recent().map(ToString::to_string).collect()
    } else {
        Vec::new()
    };
    (outcome, lines)
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without words")
}
