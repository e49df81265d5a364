//! What a shard counts: plain numbers and HDR histograms, copied out once a
//! second by the caller.

use hdrhistogram::Histogram;

use crate::flow::{Level, Measure};

/// Longest latency a histogram can hold, nanoseconds; longer ones count as it.
pub const LATENCY_NS_MAX: u64 = 60_000_000_000;

/// Steps of one turn whose end is told later; those beyond end with the turn's
/// own time.
const UNSTAMPED_MAX: usize = 2048;

/// The stages of a message's way through the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Stage {
    /// Bytes received to record appended, hop between shards included.
    ReceiveToAppend = 0,
    /// Record appended to the fsync that covers it.
    AppendToDurable = 1,
    /// Durable to handed to a connected device, waiting for its window included.
    DurableToDelivered = 2,
    /// Bytes received to handed to a connected device.
    EndToEnd = 3,
}

/// Every stage with its name in metrics and file names.
pub const STAGES: [(Stage, &str); 4] = [
    (Stage::ReceiveToAppend, "receive_to_append"),
    (Stage::AppendToDurable, "append_to_durable"),
    (Stage::DurableToDelivered, "durable_to_delivered"),
    (Stage::EndToEnd, "end_to_end"),
];

/// Counters and gauges of one shard. Counters only grow.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Sessions logged in now.
    pub sessions: u64,
    /// Users known now, connected or not.
    pub users: u64,
    /// Sending devices that inboxes know, each by its last number, now.
    pub pairs: u64,
    /// Messages waiting in inboxes now.
    pub waiting_messages: u64,
    /// Bytes of them, log records included.
    pub waiting_bytes: u64,
    /// Logins accepted.
    pub logins: u64,
    /// Logins refused.
    pub logins_refused: u64,
    /// Of them, those that were told to come back because there were too many.
    pub logins_put_off: u64,
    /// Logins that took over from an older connection.
    pub takeovers: u64,
    /// Sends taken from clients of this shard.
    pub sends: u64,
    /// Messages appended to this shard's log.
    pub appended: u64,
    /// Messages known already by their number.
    pub duplicates: u64,
    /// Sends answered with GAP.
    pub gaps: u64,
    /// Numbered sends of v1 that a higher number came before.
    pub late: u64,
    /// Sends refused, for whatever reason.
    pub refused: u64,
    /// Deliveries handed to connections, repeated ones included.
    pub delivered: u64,
    /// Entries that left inboxes because every device had them.
    pub burned: u64,
    /// Messages that expired before every device had them.
    pub expired: u64,
    /// Acknowledgements taken.
    pub acks: u64,
    /// Packets and frames that were none.
    pub bad_packets: u64,
    /// Connections closed because no login came in time.
    pub handshake_timeouts: u64,
    /// Connections cut because nothing moved on them.
    pub stalled: u64,
    /// Reads of the log for devices that catch up.
    pub reads: u64,
    /// Hops sent to other shards.
    pub hops: u64,
    /// The [`Level`] now.
    pub flow_level: u64,
    /// The levels that the single measures call for now, by [`Measure`].
    pub flow_measures: [u64; Measure::COUNT],
    /// Times that each level was entered, from above or below.
    pub flow_entered: [u64; Level::COUNT],
    /// Receipts not told because there was too much to do.
    pub receipts_shed: u64,
    /// Inputs that found no room and were kept waiting.
    pub blocked: u64,
    /// Messages copied forward to empty their segment.
    pub moved: u64,
    /// Log bytes of them.
    pub moved_bytes: u64,
    /// Segments walked through to empty them, or to give up what has expired.
    pub segments_cleaned: u64,
    /// Segments that were deleted.
    pub segments_discarded: u64,
    /// Snapshots that count.
    pub snapshots: u64,
    /// Snapshots that could not be written.
    pub snapshots_failed: u64,
    /// Bytes of the newest one.
    pub snapshot_bytes: u64,
    /// Records that did not check when read back.
    pub damaged: u64,
    /// 1 when the log failed and the shard refuses everything.
    pub poisoned: u64,
    /// 1 while the disk is full.
    pub storage_full: u64,
}

/// Counters and latency histograms of one shard.
#[derive(Clone)]
pub struct Metrics {
    /// Plain numbers.
    pub counters: Counters,
    /// Latencies in nanoseconds since the start, by [`Stage`].
    pub latency_ns: [Histogram<u64>; 4],
    /// By [`Stage`]: when the steps began that have ended in this turn. The
    /// turn's own time is that of its beginning, so only who turns the shard can
    /// say when they were over, once for all of them.
    /// Mostly many at the same time, which are counted together.
    unstamped: [Vec<(u64, u64)>; 4],
}

impl Metrics {
    /// Nothing has happened.
    #[allow(clippy::new_without_default, reason = "four histograms are no cheap default")]
    pub fn new() -> Metrics {
        let histogram = || {
            Histogram::new_with_bounds(1_000, LATENCY_NS_MAX, 3)
                .expect("1 µs to 60 s with three digits is a valid histogram")
        };
        Metrics {
            counters: Counters::default(),
            latency_ns: [histogram(), histogram(), histogram(), histogram()],
            unstamped: [const { Vec::new() }; 4],
        }
    }

    /// A step that ends when the turn says so.
    pub(crate) fn record_late(&mut self, stage: Stage, from_ns: u64, to_ns: u64) {
        let unstamped = &mut self.unstamped[stage as usize];
        if let Some((last_ns, count)) = unstamped.last_mut()
            && *last_ns == from_ns
        {
            *count += 1;
        } else if unstamped.len() < UNSTAMPED_MAX {
            unstamped.push((from_ns, 1));
        } else {
            self.record(stage, from_ns, to_ns);
        }
    }

    pub(crate) fn stamp(&mut self, stage: Stage, to_ns: u64) {
        let histogram = &mut self.latency_ns[stage as usize];
        for (from_ns, count) in self.unstamped[stage as usize].drain(..) {
            histogram.saturating_record_n(to_ns.saturating_sub(from_ns), count);
        }
    }

    pub(crate) fn record(&mut self, stage: Stage, from_ns: u64, to_ns: u64) {
        self.latency_ns[stage as usize].saturating_record(to_ns.saturating_sub(from_ns));
    }
}
