//! What the admin thread knows of all shards: the newest snapshot of each and
//! its two windows of time.
//!
//! *Since the start* is what the shards' histograms hold. The *interval* is the
//! newest stretch of ten seconds that is over, or, in the first ten seconds,
//! everything so far.

use hdrhistogram::Histogram;
use net::HandsStats;
use shard::metrics::{Counters, STAGES};

use super::published::{Board, Longest, Snapshot, histogram};
use super::recorded::Recorded;

/// Length of the interval, nanoseconds.
pub(super) const INTERVAL_NS: u64 = 10_000_000_000;

/// How many series of latencies there are: the stages, and the turn.
pub(super) const SERIES: usize = STAGES.len() + 1;

/// The place of the turn among the series, after the stages.
pub(super) const TURN: usize = STAGES.len();

/// The name of a series.
pub(super) fn series_name(series: usize) -> &'static str {
    STAGES.get(series).map_or("turn", |(_, name)| name)
}

/// The series with this name.
pub(super) fn series_named(name: &str) -> Option<usize> {
    (0..SERIES).find(|series| series_name(*series) == name)
}

/// A window of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Window {
    /// Since the server started.
    Start,
    /// The last interval.
    Interval,
}

/// The newest of one shard.
pub(super) struct Latest {
    /// Which shard.
    pub(super) shard: u16,
    /// When it was taken; `None` when the shard has not published yet.
    pub(super) at_mono_ns: Option<u64>,
    /// What the brain counts.
    pub(super) counters: Counters,
    /// What the hands count.
    pub(super) hands: HandsStats,
    /// End of the log, bytes.
    pub(super) log_end: u64,
    /// Durable end of the log, bytes.
    pub(super) log_durable: u64,
    /// Connections closed because they did not end a frame in time.
    pub(super) frame_timeouts: u64,
    /// Times that a sender was not read for a moment at the highest level.
    pub(super) paced: u64,
    /// Segment files of the log, and the bytes they take on the disk.
    pub(super) log_segments: u64,
    pub(super) log_disk_bytes: u64,
    pub(super) log_reserve_bytes: u64,
    pub(super) snapshot_slice: Longest,
    /// Turns.
    pub(super) turns: u64,
    since_start: [Recorded; SERIES],
    /// `since_start` when the running interval began.
    base: [Recorded; SERIES],
    /// The last interval that is over.
    interval: [Recorded; SERIES],
}

impl Latest {
    fn new(shard: u16) -> Latest {
        Latest {
            shard,
            at_mono_ns: None,
            counters: Counters::default(),
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
            since_start: Default::default(),
            base: Default::default(),
            interval: Default::default(),
        }
    }

    fn take(&mut self, snapshot: &Snapshot) {
        self.at_mono_ns = Some(snapshot.at_mono_ns);
        self.counters = snapshot.metrics.counters;
        self.hands = snapshot.hands;
        self.log_end = snapshot.log_end;
        self.log_durable = snapshot.log_durable;
        self.frame_timeouts = snapshot.frame_timeouts;
        self.paced = snapshot.paced;
        self.log_segments = snapshot.log_segments;
        self.log_disk_bytes = snapshot.log_disk_bytes;
        self.log_reserve_bytes = snapshot.log_reserve_bytes;
        self.snapshot_slice = snapshot.snapshot_slice;
        self.turns = snapshot.turns;
        let histograms = snapshot.metrics.latency_ns.iter().chain([&snapshot.turn_ns]);
        for (recorded, histogram) in self.since_start.iter_mut().zip(histograms) {
            recorded.copy(histogram);
        }
    }

    fn rotate(&mut self) {
        for series in 0..SERIES {
            let now = &self.since_start[series];
            self.interval[series] = now.since(&self.base[series]);
            self.base[series].clone_from(now);
        }
    }
}

/// Everything collected.
pub(super) struct Collected {
    shards: Vec<Latest>,
    spare: Box<Snapshot>,
    began_ns: u64,
    /// Begin and end of the last interval that is over.
    interval: Option<(u64, u64)>,
    /// Begin of the running one.
    interval_began_ns: u64,
}

impl Collected {
    /// Nothing, of as many shards as the board has.
    pub(super) fn new(board: &Board) -> Collected {
        Collected {
            shards: (0..board.shards()).map(Latest::new).collect(),
            spare: board.spare(),
            began_ns: board.began_mono_ns(),
            interval: None,
            interval_began_ns: board.began_mono_ns(),
        }
    }

    /// Picks up what is new, and ends the interval when its time is over. To
    /// be called about once a second.
    pub(super) fn collect(&mut self, board: &Board, now_ns: u64) {
        for latest in &mut self.shards {
            if board.pick_up(latest.shard, &mut self.spare) {
                latest.take(&self.spare);
            }
        }
        if now_ns.saturating_sub(self.interval_began_ns) >= INTERVAL_NS {
            self.shards.iter_mut().for_each(Latest::rotate);
            self.interval = Some((self.interval_began_ns, now_ns));
            self.interval_began_ns = now_ns;
        }
    }

    /// The newest of each shard.
    pub(super) fn shards(&self) -> &[Latest] {
        &self.shards
    }

    /// Begin and end of a window, [`net::Now::mono_ns`].
    pub(super) fn window(&self, window: Window, now_ns: u64) -> (u64, u64) {
        match (window, self.interval) {
            (Window::Interval, Some(interval)) => interval,
            _ => {
                let told = self.published_ns().filter(|told| *told > self.began_ns);
                (self.began_ns, told.unwrap_or(now_ns))
            }
        }
    }

    /// Up to when every shard has told everything.
    fn published_ns(&self) -> Option<u64> {
        self.shards.iter().filter_map(|latest| latest.at_mono_ns).min()
    }

    /// One series over a window, of one shard or of all.
    pub(super) fn histogram(
        &self,
        series: usize,
        window: Window,
        shard: Option<u16>,
    ) -> Histogram<u64> {
        let mut merged = histogram();
        for latest in &self.shards {
            if shard.is_none_or(|shard| shard == latest.shard) {
                let recorded = match (window, self.interval) {
                    (Window::Interval, Some(_)) => &latest.interval[series],
                    _ => &latest.since_start[series],
                };
                recorded.add_to(&mut merged);
            }
        }
        merged
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::published::ServerInfo;
    use super::*;

    #[test]
    fn intervals_follow_each_other_and_shards_add_up() {
        let info = ServerInfo { version: "0", listen: Vec::new(), data_dir: PathBuf::new() };
        let board = Board::new(2, info);
        let began = board.began_mono_ns();
        let mut collected = Collected::new(&board);
        let record = |shard, value_ns| {
            board.publish(shard, |snapshot| {
                snapshot.metrics.latency_ns[3].record(value_ns).unwrap();
                snapshot.turns += 1;
            });
        };
        let counts = |collected: &Collected, shard| {
            [Window::Start, Window::Interval]
                .map(|window| collected.histogram(3, window, shard).len())
        };
        record(0, 5_000);
        record(1, 6_000);
        collected.collect(&board, began + INTERVAL_NS - 1);
        assert_eq!(counts(&collected, None), [2, 2], "the first interval is still running");
        assert_eq!(collected.window(Window::Interval, began + 7), (began, began + 7));
        collected.collect(&board, began + INTERVAL_NS);
        assert_eq!(counts(&collected, None), [2, 2]);
        // The board hands out an older snapshot to fill; a real shard writes
        // all of it, here the one of shard 0 is looked at alone.
        board.publish(0, |snapshot| {
            snapshot.metrics.latency_ns[3].reset();
            for value_ns in [5_000, 7_000, 8_000, 9_000] {
                snapshot.metrics.latency_ns[3].record(value_ns).unwrap();
            }
        });
        collected.collect(&board, began + INTERVAL_NS + 1);
        assert_eq!(counts(&collected, None), [5, 2], "the second interval is running");
        collected.collect(&board, began + 2 * INTERVAL_NS);
        assert_eq!(counts(&collected, None), [5, 3]);
        assert_eq!(counts(&collected, Some(0)), [4, 3]);
        assert_eq!(counts(&collected, Some(1)), [1, 0]);
        let interval = (began + INTERVAL_NS, began + 2 * INTERVAL_NS);
        assert_eq!(collected.window(Window::Interval, began + 3 * INTERVAL_NS), interval);
    }

    #[test]
    fn every_series_has_its_name() {
        for series in 0..SERIES {
            assert_eq!(series_named(series_name(series)), Some(series));
        }
        assert_eq!(series_name(TURN), "turn");
        assert_eq!(series_named("nothing"), None);
    }
}
