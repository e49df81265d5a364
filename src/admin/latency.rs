//! `/latency`: every series as percentiles, in JSON.

use hdrhistogram::Histogram;
use serde::{Serialize, Serializer};

use super::collected::{Collected, SERIES, Window, series_name};

/// The answer: all shards together and, when asked for, each.
#[derive(Serialize)]
pub(super) struct Latency {
    #[serde(flatten)]
    windows: Windows,
    #[serde(skip_serializing_if = "Option::is_none")]
    shards: Option<Vec<OfShard>>,
}

#[derive(Serialize)]
struct OfShard {
    shard: u16,
    #[serde(flatten)]
    windows: Windows,
}

#[derive(Serialize)]
struct Windows {
    since_start: OfWindow,
    last_interval: OfWindow,
}

#[derive(Serialize)]
struct OfWindow {
    /// How long the window is.
    seconds: f64,
    /// How long ago it ended.
    ended_ago_seconds: f64,
    #[serde(serialize_with = "in_order")]
    stages: Vec<(&'static str, Percentiles)>,
}

#[derive(Serialize)]
struct Percentiles {
    count: u64,
    unit: &'static str,
    min: u64,
    mean: f64,
    max: u64,
    p50: u64,
    p75: u64,
    p90: u64,
    p99: u64,
    p99_9: u64,
    p99_99: u64,
    p99_999: u64,
}

/// What is known, at `now_ns`.
pub(super) fn latency(collected: &Collected, by_shard: bool, now_ns: u64) -> Latency {
    let shards = by_shard.then(|| {
        let of_shard = |shard| OfShard { shard, windows: windows(collected, Some(shard), now_ns) };
        collected.shards().iter().map(|latest| of_shard(latest.shard)).collect()
    });
    Latency { windows: windows(collected, None, now_ns), shards }
}

fn windows(collected: &Collected, shard: Option<u16>, now_ns: u64) -> Windows {
    let of_window = |window| {
        let (from_ns, to_ns) = collected.window(window, now_ns);
        OfWindow {
            seconds: seconds(to_ns.saturating_sub(from_ns)),
            ended_ago_seconds: seconds(now_ns.saturating_sub(to_ns)),
            stages: (0..SERIES)
                .map(|series| {
                    let histogram = collected.histogram(series, window, shard);
                    (series_name(series), Percentiles::of(&histogram))
                })
                .collect(),
        }
    };
    Windows { since_start: of_window(Window::Start), last_interval: of_window(Window::Interval) }
}

/// An object that keeps the order in which a message meets the stages.
fn in_order<S: Serializer>(
    stages: &[(&'static str, Percentiles)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(stages.iter().map(|(name, percentiles)| (name, percentiles)))
}

/// Milliseconds are exact enough for a window.
fn seconds(ns: u64) -> f64 {
    (ns / 1_000_000) as f64 / 1_000.0
}

impl Percentiles {
    fn of(histogram: &Histogram<u64>) -> Percentiles {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Percentiles {
            count: histogram.len(),
            unit: "ns",
            min: histogram.min(),
            mean: histogram.mean().round(),
            max: histogram.max(),
            p50: at(0.5),
            p75: at(0.75),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            p99_99: at(0.9999),
            p99_999: at(0.99999),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::published::histogram;
    use super::*;

    #[test]
    fn percentiles_of_an_even_ramp() {
        let mut ramp = histogram();
        (1..=100_000_u64).for_each(|micros| ramp.record(micros * 1_000).unwrap());
        let percentiles = Percentiles::of(&ramp);
        assert_eq!(percentiles.count, 100_000);
        let check = |found: u64, expect: u64| {
            assert!(found.abs_diff(expect) <= expect / 1_000, "{found} is not {expect}");
        };
        check(percentiles.p50, 50_000_000);
        check(percentiles.p75, 75_000_000);
        check(percentiles.p90, 90_000_000);
        check(percentiles.p99, 99_000_000);
        check(percentiles.p99_9, 99_900_000);
        check(percentiles.p99_999, 99_999_000);
        check(percentiles.max, 100_000_000);
        check(percentiles.mean as u64, 50_000_500);
    }

    #[test]
    fn nothing_is_zero() {
        let percentiles = Percentiles::of(&histogram());
        assert_eq!((percentiles.count, percentiles.max, percentiles.p99), (0, 0, 0));
    }
}
