//! Where shards publish what they count, and the admin thread picks it up.
//!
//! Neither side ever waits for the other: both only try the lock, and the admin
//! thread holds it no longer than it takes to exchange two pointers. A shard
//! that finds it taken publishes a turn later.
//!
//! Nothing is allocated after the start: a shard copies into the histograms
//! that are there, the admin thread gives back those it has read.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;
use net::HandsStats;
use shard::metrics::{LATENCY_NS_MAX, Metrics};

use super::process::Process;
use super::worst::Worst;

/// The longest of steps that are taken between other things.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Longest {
    /// From beginning to end, nanoseconds.
    pub(crate) wall_ns: u64,
    /// What the core itself had to do for it, nanoseconds.
    pub(crate) cpu_ns: u64,
}

impl Longest {
    pub(crate) fn note(&mut self, wall_ns: u64, cpu_ns: u64) {
        self.wall_ns = self.wall_ns.max(wall_ns);
        self.cpu_ns = self.cpu_ns.max(cpu_ns);
    }
}

/// What a shard says about itself, about once a second, idle or not: silence
/// is what makes it look dead.
pub(crate) struct Snapshot {
    /// Which shard.
    pub(crate) shard: u16,
    /// When it was taken, [`net::Now::mono_ns`].
    pub(crate) at_mono_ns: u64,
    /// What the brain counts.
    pub(crate) metrics: Metrics,
    /// What the hands count.
    pub(crate) hands: HandsStats,
    /// End of what was appended to the log, bytes.
    pub(crate) log_end: u64,
    /// End of what the disk has confirmed, bytes.
    pub(crate) log_durable: u64,
    /// Connections closed because they did not end a frame in time.
    pub(crate) frame_timeouts: u64,
    /// Times that a sender was not read for a moment at the highest level.
    pub(crate) paced: u64,
    /// Segment files of the log, and the bytes they take on the disk.
    pub(crate) log_segments: u64,
    pub(crate) log_disk_bytes: u64,
    /// What its next snapshots may need of the disk, bytes.
    pub(crate) log_reserve_bytes: u64,
    /// The longest slice of a snapshot since the start.
    pub(crate) snapshot_slice: Longest,
    /// Turns since the start.
    pub(crate) turns: u64,
    /// How long turns took, nanoseconds, time asleep not included.
    pub(crate) turn_ns: Histogram<u64>,
}

impl Snapshot {
    fn new(shard: u16) -> Snapshot {
        Snapshot {
            shard,
            at_mono_ns: 0,
            metrics: Metrics::new(),
            hands: HandsStats::default(),
            log_end: 0,
            log_durable: 0,
            frame_timeouts: 0,
            paced: 0,
            log_segments: 0,
            log_disk_bytes: 0,
            log_reserve_bytes: 0,
            snapshot_slice: Longest::default(),
            turns: 0,
            turn_ns: histogram(),
        }
    }

    /// Copies everything that has a histogram in it, without allocating.
    pub(crate) fn copy(&mut self, metrics: &Metrics, turn_ns: &Histogram<u64>) {
        self.metrics.counters = metrics.counters;
        for (into, from) in self.metrics.latency_ns.iter_mut().zip(&metrics.latency_ns) {
            copy_histogram(into, from);
        }
        copy_histogram(&mut self.turn_ns, turn_ns);
    }
}

/// A histogram for nanoseconds with the bounds of those in the shards, so that
/// copying is copying memory. Turns are to be counted in one of these.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, LATENCY_NS_MAX, 3)
        .expect("1 µs to 60 s with three digits is a valid histogram")
}

fn copy_histogram(into: &mut Histogram<u64>, from: &Histogram<u64>) {
    into.reset();
    into.add(from).expect("all of them have the same bounds");
}

/// What does not change while the server runs.
#[derive(Clone, Debug)]
pub(crate) struct ServerInfo {
    /// The version of this program.
    pub(crate) version: &'static str,
    /// Where clients connect.
    pub(crate) listen: Vec<SocketAddr>,
    /// Where the logs are.
    pub(crate) data_dir: PathBuf,
}

/// One slot for each shard.
pub(crate) struct Board {
    slots: Vec<Mutex<Slot>>,
    /// Grows with each request for the worst.
    asked: AtomicU64,
    /// By shard: the worst it found when it was last asked.
    worst: Vec<Mutex<Option<Box<Worst>>>>,
    info: ServerInfo,
    began: SystemTime,
    began_mono_ns: u64,
    /// The process before the first connection.
    empty: OnceLock<Process>,
}

struct Slot {
    snapshot: Box<Snapshot>,
    /// Published and not picked up yet.
    is_fresh: bool,
}

impl Board {
    /// A board on which nobody has published. The process counts as started
    /// now.
    pub(crate) fn new(shards: u16, info: ServerInfo) -> Arc<Board> {
        let slot = |shard| Slot { snapshot: Box::new(Snapshot::new(shard)), is_fresh: false };
        let now = net::Clock::now();
        Arc::new(Board {
            slots: (0..shards).map(|shard| Mutex::new(slot(shard))).collect(),
            asked: AtomicU64::new(0),
            worst: (0..shards).map(|_| Mutex::new(None)).collect(),
            info,
            began: SystemTime::UNIX_EPOCH + Duration::from_millis(now.wall_ms),
            began_mono_ns: now.mono_ns,
            empty: OnceLock::new(),
        })
    }

    /// Lets a shard write its snapshot, all of it: what `fill` finds there is
    /// an older one. `false` when the admin thread was just picking it up: the
    /// shard tries again in its next turn.
    pub(crate) fn publish(&self, shard: u16, fill: impl FnOnce(&mut Snapshot)) -> bool {
        let Ok(mut slot) = self.slots[usize::from(shard)].try_lock() else { return false };
        fill(&mut slot.snapshot);
        slot.snapshot.shard = shard;
        slot.is_fresh = true;
        true
    }

    /// Exchanges `spare` for what a shard published since the last time, if
    /// there is something and the shard is not just writing it.
    pub(super) fn pick_up(&self, shard: u16, spare: &mut Box<Snapshot>) -> bool {
        let Ok(mut slot) = self.slots[usize::from(shard)].try_lock() else { return false };
        let is_fresh = std::mem::take(&mut slot.is_fresh);
        if is_fresh {
            std::mem::swap(&mut slot.snapshot, spare);
        }
        is_fresh
    }

    /// Counts the requests for the worst connections and users: when it moves,
    /// the shards look for them.
    pub(crate) fn asked(&self) -> &AtomicU64 {
        &self.asked
    }

    /// Lets a shard say what it found.
    ///
    /// # Errors
    /// What was to be published, when the admin thread is just looking: the
    /// shard tries again in its next turn.
    pub(crate) fn publish_worst(&self, shard: u16, worst: Box<Worst>) -> Result<(), Box<Worst>> {
        match self.worst[usize::from(shard)].try_lock() {
            Ok(mut slot) => {
                *slot = Some(worst);
                Ok(())
            }
            Err(_) => Err(worst),
        }
    }

    /// What the shards found since `since_ns`; `None` for those that have not
    /// ended looking.
    pub(super) fn worst_since(&self, since_ns: u64) -> Vec<Option<Box<Worst>>> {
        let look = |slot: &Mutex<Option<Box<Worst>>>| {
            let slot = slot.try_lock().ok()?;
            slot.as_ref().filter(|worst| worst.at_mono_ns >= since_ns).cloned()
        };
        self.worst.iter().map(look).collect()
    }

    /// A snapshot to begin exchanging with.
    pub(super) fn spare(&self) -> Box<Snapshot> {
        Box::new(Snapshot::new(0))
    }

    /// How many shards there are.
    pub(super) fn shards(&self) -> u16 {
        self.slots.len() as u16
    }

    /// What does not change.
    pub(super) fn info(&self) -> &ServerInfo {
        &self.info
    }

    /// When the server started: wall clock.
    pub(super) fn began(&self) -> SystemTime {
        self.began
    }

    /// Remembers how large the process is without any connection.
    pub(crate) fn note_empty(&self) {
        self.empty.get_or_init(Process::read);
    }

    /// That size, once it is known.
    pub(super) fn empty(&self) -> Option<&Process> {
        self.empty.get()
    }

    /// When the server started, [`net::Now::mono_ns`].
    pub(super) fn began_mono_ns(&self) -> u64 {
        self.began_mono_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> ServerInfo {
        ServerInfo { version: "0.0.0", listen: Vec::new(), data_dir: PathBuf::new() }
    }

    #[test]
    fn what_is_published_is_picked_up_once() {
        let board = Board::new(2, info());
        let mut spare = board.spare();
        assert!(!board.pick_up(1, &mut spare), "nobody has published");
        assert!(board.publish(1, |snapshot| snapshot.turns = 5));
        assert!(!board.pick_up(0, &mut spare), "the other one has not");
        assert!(board.pick_up(1, &mut spare));
        assert_eq!((spare.shard, spare.turns), (1, 5));
        assert!(!board.pick_up(1, &mut spare), "it was picked up");
    }

    #[test]
    fn neither_side_waits() {
        let board = Board::new(1, info());
        let mut spare = board.spare();
        assert!(board.publish(0, |_| {
            // While a shard writes, the admin thread goes without.
            assert!(!board.pick_up(0, &mut spare));
            assert!(!board.publish(0, |_| unreachable!("it is taken")));
        }));
        assert!(board.pick_up(0, &mut spare));
    }

    #[test]
    fn a_copy_replaces_what_was_there() {
        let mut snapshot = Snapshot::new(0);
        let mut metrics = Snapshot::new(0).metrics;
        metrics.counters.sends = 3;
        metrics.latency_ns[2].record_n(5_000, 7).unwrap();
        let mut turn_ns = histogram();
        turn_ns.record(2_000).unwrap();
        for _ in 0..2 {
            snapshot.copy(&metrics, &turn_ns);
            assert_eq!(snapshot.metrics.counters.sends, 3);
            assert_eq!(snapshot.metrics.latency_ns[2].len(), 7);
            assert_eq!(snapshot.turn_ns.len(), 1);
        }
    }
}
