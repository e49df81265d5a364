//! `/metrics`: the text format 0.0.4 of Prometheus.
//!
//! Few series: what differs between shards by fault or by load carries a shard
//! label, everything else is summed up. Latencies are histograms with a few
//! buckets, because buckets of several nodes can be added and percentiles
//! cannot; the exact percentiles are at `/latency`.

use std::fmt::{Display, Write};
use std::time::{Duration, SystemTime};

use net::CloseReason;
use shard::flow::{Level, Measure};
use shard::metrics::STAGES;

use super::collected::{Collected, Latest, TURN, Window};
use super::process::Process;
use super::published::Board;

/// Upper bounds of the buckets, nanoseconds, and as they are written, seconds.
const BUCKETS: [(u64, &str); 12] = [
    (50_000, "0.00005"),
    (100_000, "0.0001"),
    (250_000, "0.00025"),
    (500_000, "0.0005"),
    (1_000_000, "0.001"),
    (2_500_000, "0.0025"),
    (5_000_000, "0.005"),
    (10_000_000, "0.01"),
    (50_000_000, "0.05"),
    (100_000_000, "0.1"),
    (500_000_000, "0.5"),
    (5_000_000_000, "5"),
];

/// Every reason for which a connection ends, with its name.
const CLOSE_REASONS: [(CloseReason, &str); CloseReason::COUNT] = [
    (CloseReason::Peer, "peer"),
    (CloseReason::Reset, "reset"),
    (CloseReason::Local, "local"),
    (CloseReason::SlowReader, "slow_reader"),
    (CloseReason::Overload, "overload"),
];

#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A family of metrics: name, kind, meaning and where its value comes from.
struct Family {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    of: fn(&Latest) -> u64,
}

const fn counter(name: &'static str, help: &'static str, of: fn(&Latest) -> u64) -> Family {
    Family { name, kind: Kind::Counter, help, of }
}

const fn gauge(name: &'static str, help: &'static str, of: fn(&Latest) -> u64) -> Family {
    Family { name, kind: Kind::Gauge, help, of }
}

/// One sample for each shard.
const BY_SHARD: [Family; 8] = [
    gauge("iris_sessions", "Devices logged in.", |l| l.counters.sessions),
    gauge("iris_connections", "Connections, those still closing included.", |l| {
        l.hands.conns as u64
    }),
    gauge("iris_poisoned", "1 when a write to the log failed and the shard stopped.", |l| {
        l.counters.poisoned
    }),
    gauge("iris_storage_full", "1 while the disk has no room for new messages.", |l| {
        l.counters.storage_full
    }),
    gauge("iris_flow_level", "How much there is to bear: 0 calm to 3 critical.", |l| {
        l.counters.flow_level
    }),
    gauge("iris_log_undurable_bytes", "Appended and not yet confirmed by the disk.", |l| {
        l.log_end.saturating_sub(l.log_durable)
    }),
    counter("iris_messages_appended_total", "Messages appended to the log.", |l| {
        l.counters.appended
    }),
    counter("iris_turns_total", "Turns of the core.", |l| l.turns),
];

/// One sample, summed up over the shards.
const SUMMED: [Family; 52] = [
    gauge("iris_users", "Users known, connected or not.", |l| l.counters.users),
    gauge("iris_inbox_messages", "Messages waiting in inboxes.", |l| l.counters.waiting_messages),
    gauge("iris_inbox_bytes", "Bytes of them in the log.", |l| l.counters.waiting_bytes),
    counter("iris_logins_total", "Logins accepted.", |l| l.counters.logins),
    counter("iris_logins_refused_total", "Logins refused.", |l| l.counters.logins_refused),
    counter("iris_logins_put_off_total", "Of them, those beyond the rate of logins.", |l| {
        l.counters.logins_put_off
    }),
    counter("iris_takeovers_total", "Logins that took over from an older connection.", |l| {
        l.counters.takeovers
    }),
    counter("iris_sends_total", "Sends taken from clients.", |l| l.counters.sends),
    counter("iris_sends_duplicate_total", "Sends known already by their number.", |l| {
        l.counters.duplicates
    }),
    counter("iris_sends_gap_total", "Sends answered with GAP.", |l| l.counters.gaps),
    counter("iris_sends_late_total", "Numbered v1 sends that a higher number came before.", |l| {
        l.counters.late
    }),
    counter("iris_sends_refused_total", "Sends refused.", |l| l.counters.refused),
    counter("iris_deliveries_total", "Messages handed to connections, again included.", |l| {
        l.counters.delivered
    }),
    counter("iris_acks_total", "Acknowledgements taken from devices.", |l| l.counters.acks),
    counter("iris_messages_burned_total", "Messages that every device of their user has.", |l| {
        l.counters.burned
    }),
    counter("iris_messages_expired_total", "Messages that nobody fetched in time.", |l| {
        l.counters.expired
    }),
    counter("iris_bad_packets_total", "Packets and frames that were none.", |l| {
        l.counters.bad_packets
    }),
    counter(
        "iris_handshake_timeouts_total",
        "Connections that were not logged in in time; those that had no room are among the refused as well.",
        |l| l.counters.handshake_timeouts,
    ),
    counter("iris_stalled_total", "Connections cut because nothing moved on them.", |l| {
        l.counters.stalled
    }),
    counter("iris_frame_timeouts_total", "Connections that did not end a frame in time.", |l| {
        l.frame_timeouts
    }),
    counter("iris_flow_paced_total", "Times that a sender of much was not read a while.", |l| {
        l.paced
    }),
    counter("iris_log_bytes_total", "End of the logs.", |l| l.log_end),
    gauge("iris_log_segments", "Segment files of the logs.", |l| l.log_segments),
    gauge("iris_log_disk_bytes", "Bytes they take on the disk.", |l| l.log_disk_bytes),
    gauge("iris_log_reserve_bytes", "What is left on the disk for what gives space back.", |l| {
        l.log_reserve_bytes
    }),
    counter("iris_log_moved_total", "Messages copied forward to empty a segment.", |l| {
        l.counters.moved
    }),
    counter("iris_log_moved_bytes_total", "Log bytes of them.", |l| l.counters.moved_bytes),
    counter(
        "iris_log_segments_cleaned_total",
        "Segments walked through to empty them, or to give up what has expired.",
        |l| l.counters.segments_cleaned,
    ),
    counter("iris_log_segments_deleted_total", "Segments deleted.", |l| {
        l.counters.segments_discarded
    }),
    counter("iris_log_snapshots_total", "Snapshots of the state taken.", |l| l.counters.snapshots),
    counter("iris_log_snapshots_failed_total", "Snapshots that could not be written.", |l| {
        l.counters.snapshots_failed
    }),
    gauge("iris_log_snapshot_bytes", "Bytes of the newest snapshots.", |l| {
        l.counters.snapshot_bytes
    }),
    gauge("iris_pairs", "Sending devices that inboxes know.", |l| l.counters.pairs),
    counter("iris_log_reads_total", "Reads of the log for devices that catch up.", |l| {
        l.counters.reads
    }),
    counter("iris_damaged_records_total", "Stored records that could not be read back.", |l| {
        l.counters.damaged
    }),
    counter("iris_hops_total", "Messages from shard to shard.", |l| l.counters.hops),
    counter("iris_blocked_total", "Inputs that found no room and had to wait.", |l| {
        l.counters.blocked
    }),
    counter("iris_connections_accepted_total", "Connections accepted.", |l| l.hands.accepted),
    counter("iris_connections_refused_total", "Connections beyond the limit.", |l| l.hands.refused),
    counter("iris_connections_moved_total", "Connections that moved to another core.", |l| {
        l.hands.attached
    }),
    counter("iris_accept_paused_total", "Times that accepting found no descriptor.", |l| {
        l.hands.emfile
    }),
    counter("iris_received_bytes_total", "Bytes received from clients.", |l| l.hands.bytes_in),
    counter("iris_sent_bytes_total", "Bytes sent to clients.", |l| l.hands.bytes_out),
    counter("iris_receives_total", "Receive operations.", |l| l.hands.receives),
    counter("iris_socket_sends_total", "Send operations.", |l| l.hands.sends),
    counter("iris_sends_joined_total", "Confirmations that shared a send.", |l| {
        l.hands.late_joined
    }),
    counter("iris_sends_alone_total", "Confirmations that waited to share a send in vain.", |l| {
        l.hands.late_alone
    }),
    counter("iris_ring_enters_total", "Calls of io_uring_enter.", |l| l.hands.enters),
    counter("iris_receive_waits_total", "Times that a receive found no memory.", |l| {
        l.hands.arena_empty
    }),
    gauge("iris_connection_table_bytes", "Memory of the tables of connections.", |l| {
        l.hands.table_bytes as u64
    }),
    gauge("iris_partial_bytes", "Memory of frames that have not arrived in full.", |l| {
        l.hands.partial_bytes as u64
    }),
    gauge("iris_ring_operations", "Operations in flight in the rings.", |l| {
        l.hands.inflight as u64
    }),
];

/// Everything, at `now_ns`.
pub(super) fn metrics(
    board: &Board,
    collected: &Collected,
    process: &Process,
    now_ns: u64,
) -> String {
    let mut text = Text(String::with_capacity(16 << 10));
    server(&mut text, board, now_ns);
    of_process(&mut text, process);
    shards(&mut text, collected.shards(), now_ns);
    flow(&mut text, collected.shards());
    closed(&mut text, collected.shards());
    connection_bytes(&mut text, board, collected.shards(), process);
    latencies(&mut text, collected);
    text.0
}

fn server(text: &mut Text, board: &Board, now_ns: u64) {
    text.family("iris_build_info", Kind::Gauge, "Always 1; the version is in the label.");
    text.sample("iris_build_info", &[("version", &board.info().version)], 1);
    text.family("iris_uptime_seconds", Kind::Gauge, "Time since the start.");
    let up = Duration::from_nanos(now_ns.saturating_sub(board.began_mono_ns()));
    text.sample("iris_uptime_seconds", &[], up.as_secs_f64());
    text.family("iris_shards", Kind::Gauge, "Number of shards.");
    text.sample("iris_shards", &[], board.shards());
    let began = board.began().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    text.family("process_start_time_seconds", Kind::Gauge, "Start, Unix time.");
    text.sample("process_start_time_seconds", &[], began.as_secs_f64());
}

fn of_process(text: &mut Text, process: &Process) {
    let mut one = |name, kind, help, value: Option<f64>| {
        if let Some(value) = value {
            text.family(name, kind, help);
            text.sample(name, &[], value);
        }
    };
    let float = |value: Option<u64>| value.map(|value| value as f64);
    let (resident, open) = (float(process.resident_bytes), float(process.open_fds));
    one("process_resident_memory_bytes", Kind::Gauge, "Memory in use.", resident);
    one("process_open_fds", Kind::Gauge, "Descriptors open.", open);
    one("process_max_fds", Kind::Gauge, "Descriptors allowed.", float(process.fds_max));
    let help = "Processor time of all threads.";
    one("process_cpu_seconds_total", Kind::Counter, help, process.cpu_seconds);
}

fn shards(text: &mut Text, shards: &[Latest], now_ns: u64) {
    let name = "iris_snapshot_age_seconds";
    text.family(name, Kind::Gauge, "Time since the shard last reported.");
    for latest in shards {
        if let Some(at_ns) = latest.at_mono_ns {
            let age = Duration::from_nanos(now_ns.saturating_sub(at_ns));
            text.sample(name, &[("shard", &latest.shard)], age.as_secs_f64());
        }
    }
    let wall = "The longest that a slice of a snapshot has held up a turn since the start.";
    let cpu = "The most of the core's own time that one has taken; the rest is the machine's.";
    type Of = fn(&Latest) -> u64;
    for (name, help, of) in [
        ("iris_snapshot_slice_seconds_max", wall, (|it| it.snapshot_slice.wall_ns) as Of),
        ("iris_snapshot_slice_cpu_seconds_max", cpu, |it| it.snapshot_slice.cpu_ns),
    ] {
        text.family(name, Kind::Gauge, help);
        for latest in shards {
            let longest = Duration::from_nanos(of(latest));
            text.sample(name, &[("shard", &latest.shard)], longest.as_secs_f64());
        }
    }
    for family in &BY_SHARD {
        text.family(family.name, family.kind, family.help);
        for latest in shards {
            text.sample(family.name, &[("shard", &latest.shard)], (family.of)(latest));
        }
    }
    for family in &SUMMED {
        text.family(family.name, family.kind, family.help);
        text.sample(family.name, &[], shards.iter().map(family.of).sum::<u64>());
    }
}

fn flow(text: &mut Text, shards: &[Latest]) {
    let name = "iris_flow_measure_level";
    text.family(name, Kind::Gauge, "The level that each measure calls for.");
    for latest in shards {
        for (measure, word) in Measure::ALL {
            let level = latest.counters.flow_measures[measure as usize];
            text.sample(name, &[("shard", &latest.shard), ("measure", &word)], level);
        }
    }
    let name = "iris_flow_transitions_total";
    text.family(name, Kind::Counter, "Changes of the level, by the one that was entered.");
    for (level, word) in Level::ALL {
        let entered = |latest: &Latest| latest.counters.flow_entered[level as usize];
        text.sample(name, &[("to", &word)], shards.iter().map(entered).sum::<u64>());
    }
    let name = "iris_flow_shed_total";
    text.family(name, Kind::Counter, "What was optional and not done.");
    let shed: u64 = shards.iter().map(|latest| latest.counters.receipts_shed).sum();
    text.sample(name, &[("kind", &"receipt")], shed);
}

fn closed(text: &mut Text, shards: &[Latest]) {
    let name = "iris_connections_closed_total";
    text.family(name, Kind::Counter, "Connections ended, by reason.");
    for (reason, word) in CLOSE_REASONS {
        let count: u64 = shards.iter().map(|latest| latest.hands.closed[reason as usize]).sum();
        text.sample(name, &[("reason", &word)], count);
    }
}

/// What one connection costs, measured: what has grown since there was none.
/// docs/CAPACITY.md says how far to trust it.
fn connection_bytes(text: &mut Text, board: &Board, shards: &[Latest], now: &Process) {
    let conns: usize = shards.iter().map(|latest| latest.hands.conns).sum();
    if conns == 0 {
        return;
    }
    let tables: usize =
        shards.iter().map(|latest| latest.hands.table_bytes + latest.hands.partial_bytes).sum();
    let name = "iris_connection_bytes";
    let help = "Memory over connections: the tables of connections (estimated); what the process \
                has grown by since its start (resident), users and inboxes included; what the \
                machine's kernel objects have grown by (kernel), the other ends included if they \
                are on this machine.";
    text.family(name, Kind::Gauge, help);
    text.sample(name, &[("part", &"tables")], tables as f64 / conns as f64);
    let empty = board.empty().copied().unwrap_or_default();
    let parts = [
        ("resident", empty.resident_bytes, now.resident_bytes),
        ("kernel", empty.slab_bytes, now.slab_bytes),
    ];
    for (part, then, now) in parts {
        if let (Some(then), Some(now)) = (then, now) {
            let grown = now.saturating_sub(then) as f64;
            text.sample(name, &[("part", &part)], grown / conns as f64);
        }
    }
}

fn latencies(text: &mut Text, collected: &Collected) {
    let name = "iris_stage_seconds";
    text.family(name, Kind::Histogram, "A message's way through the server, by stage.");
    for (stage, word) in STAGES {
        histogram(text, name, &[("stage", &word)], collected, stage as usize);
    }
    text.family("iris_turn_seconds", Kind::Histogram, "Length of the turns of a core.");
    histogram(text, "iris_turn_seconds", &[], collected, TURN);
}

fn histogram(
    text: &mut Text,
    name: &str,
    labels: &[(&str, &dyn Display)],
    collected: &Collected,
    series: usize,
) {
    let values = collected.histogram(series, Window::Start, None);
    let mut counts = [0; BUCKETS.len()];
    let mut sum_ns = 0.0;
    for place in values.iter_recorded() {
        let (value, count) = (place.value_iterated_to(), place.count_at_value());
        sum_ns += values.median_equivalent(value) as f64 * count as f64;
        let bucket = BUCKETS.partition_point(|(bound_ns, _)| *bound_ns < value);
        if let Some(bucket) = counts.get_mut(bucket) {
            *bucket += count;
        }
    }
    let bucket_name = format!("{name}_bucket");
    let mut below = 0;
    for ((_, bound), count) in BUCKETS.iter().zip(counts) {
        below += count;
        text.sample(&bucket_name, &[labels, &[("le", bound)]].concat(), below);
    }
    text.sample(&bucket_name, &[labels, &[("le", &"+Inf")]].concat(), values.len());
    text.sample(&format!("{name}_sum"), labels, sum_ns / 1e9);
    text.sample(&format!("{name}_count"), labels, values.len());
}

/// The text as it grows.
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    /// No value of a label holds a quote, a backslash or a line feed: all of
    /// them are ours.
    fn sample(&mut self, name: &str, labels: &[(&str, &dyn Display)], value: impl Display) {
        let list: Vec<String> =
            labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
        match list.join(",").as_str() {
            "" => self.line(format_args!("{name} {value}")),
            list => self.line(format_args!("{name}{{{list}}} {value}")),
        }
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.0, "{line}").expect("a string takes everything");
    }
}
