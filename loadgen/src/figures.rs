//! The measurements of a run: histograms and counters that can be added up
//! over workers and sent through a pipe.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use wire::refuse::Code;

use crate::chaos::Done;
use crate::verify::Findings;

/// Longest time a histogram tells apart, nanoseconds: ten minutes.
const VALUE_NS_MAX: u64 = 600_000_000_000;

/// A latency histogram in nanoseconds, three significant digits.
#[derive(Clone, Debug)]
pub(crate) struct Latency(Histogram<u64>);

impl Latency {
    /// An empty histogram.
    pub(crate) fn new() -> Latency {
        Latency(Histogram::new_with_bounds(1_000, VALUE_NS_MAX, 3).expect("constant bounds"))
    }

    /// Counts one value; above ten minutes it counts as ten minutes.
    pub(crate) fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns);
    }

    /// Adds another histogram.
    pub(crate) fn add(&mut self, other: &Latency) {
        self.0.add(&other.0).expect("all have the same bounds");
    }

    /// How many values there are.
    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// The value that `percent` of all do not exceed, milliseconds.
    pub(crate) fn percentile_ms(&self, percent: f64) -> f64 {
        self.0.value_at_percentile(percent) as f64 / 1e6
    }

    /// The largest value, milliseconds.
    pub(crate) fn max_ms(&self) -> f64 {
        if self.0.is_empty() { 0.0 } else { self.0.max() as f64 / 1e6 }
    }

    /// The mean, milliseconds.
    pub(crate) fn mean_ms(&self) -> f64 {
        self.0.mean() / 1e6
    }

    /// The histogram behind it.
    pub(crate) fn histogram(&self) -> &Histogram<u64> {
        &self.0
    }
}

impl Default for Latency {
    fn default() -> Latency {
        Latency::new()
    }
}

/// As a list of (value, count).
impl Serialize for Latency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(
            self.0.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value())),
        )
    }
}

impl<'de> Deserialize<'de> for Latency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Latency, D::Error> {
        let mut latency = Latency::new();
        for (value, count) in Vec::<(u64, u64)>::deserialize(deserializer)? {
            latency.0.saturating_record_n(value, count);
        }
        Ok(latency)
    }
}

/// Counters that a worker tells once a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Connections that are logged in now.
    pub(crate) online: u32,
    /// Messages handed to the sessions.
    pub(crate) given: u64,
    /// Messages the server confirmed.
    pub(crate) sent: u64,
    /// Different messages that arrived.
    pub(crate) received: u64,
    /// How far behind its schedule the worker sends now, nanoseconds.
    pub(crate) lag_ns: u64,
    /// Things found wrong so far.
    pub(crate) wrong: u64,
}

impl Progress {
    /// Adds another worker's counters.
    pub(crate) fn add(&mut self, other: &Progress) {
        self.online += other.online;
        self.given += other.given;
        self.sent += other.sent;
        self.received += other.received;
        self.lag_ns = self.lag_ns.max(other.lag_ns);
        self.wrong += other.wrong;
    }
}

/// When connections were lost and came back, unix milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outage {
    /// The first connection was lost.
    pub(crate) began_ms: u64,
    /// The first connection was back.
    pub(crate) first_back_ms: Option<u64>,
    /// All connections were back.
    pub(crate) all_back_ms: Option<u64>,
}

/// Outages that are kept apart.
pub(crate) const OUTAGES_MAX: usize = 100;

impl Outage {
    /// How long it took until all were back, milliseconds; `None` while not.
    pub(crate) fn length_ms(&self) -> Option<u64> {
        Some(self.all_back_ms?.saturating_sub(self.began_ms))
    }
}

/// Workers see one death of the server as an outage each: those that overlap
/// are one.
fn joined(mut outages: Vec<Outage>) -> Vec<Outage> {
    outages.sort_by_key(|outage| outage.began_ms);
    let mut list: Vec<Outage> = Vec::new();
    for outage in outages {
        let room = list.len() < OUTAGES_MAX;
        match list.last_mut() {
            Some(last) if last.all_back_ms.is_none_or(|back| outage.began_ms <= back) => {
                let first_backs = [last.first_back_ms, outage.first_back_ms];
                last.first_back_ms = first_backs.into_iter().flatten().min();
                last.all_back_ms = last.all_back_ms.zip(outage.all_back_ms).map(|(a, b)| a.max(b));
            }
            _ if room => list.push(outage),
            _ => {}
        }
    }
    list
}

/// What the server did not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// A connection, or a login on it.
    Login,
    /// A message, for a time.
    Message,
}

/// Everything one worker measured; summed, everything a run measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Figures {
    /// What the verification found.
    pub(crate) findings: Findings,
    /// From the intended time to the server's confirmation.
    pub(crate) sent: Latency,
    /// From handing it to the session to the confirmation.
    pub(crate) sent_service: Latency,
    /// From the intended time to the arrival at an online recipient.
    pub(crate) delivered: Latency,
    /// From handing it to the session to that arrival.
    pub(crate) delivered_service: Latency,
    /// From an absent user's login to each arrival of what waited.
    pub(crate) collected: Latency,
    /// From starting a connection to being logged in.
    pub(crate) login: Latency,
    /// Witnesses' messages, from the intended time to the arrival: those that
    /// were due before the ordeal.
    pub(crate) witness_before: Latency,
    /// Those that were due in it.
    pub(crate) witness_during: Latency,
    /// Those that were due after it, while others collected.
    pub(crate) witness_after: Latency,
    /// From the intended time to the confirmation or the arrival, where sender
    /// or recipient had been cut or stopped on purpose meanwhile.
    pub(crate) disturbed: Latency,
    /// Storm: from cutting all to a login's success.
    pub(crate) back: Latency,
    /// Storm: from cutting all to a user's having everything that waited.
    pub(crate) served: Latency,
    /// Churn: from the intended time of a visit to all of it being confirmed.
    pub(crate) visit: Latency,
    /// From the intended time to taking it up, whether the session has room for
    /// it then or not: the load generator's own lateness.
    pub(crate) lag: Latency,
    /// Given, confirmed and arrived inside the measured window.
    pub(crate) window_given: u64,
    /// See `window_given`.
    pub(crate) window_sent: u64,
    /// See `window_given`.
    pub(crate) window_received: u64,
    /// Length of the measured window, nanoseconds.
    pub(crate) window_ns: u64,
    /// CPU time of the busiest worker inside the window, as a part of it.
    pub(crate) cpu_share_max: f64,
    /// CPU time of all workers inside the window, nanoseconds.
    pub(crate) cpu_ns: u64,
    /// Messages that were due and had to wait, because their sender's outbox was
    /// full or, in a protocol without one, its connection was gone.
    pub(crate) kept: u64,
    /// The longest from the intended time of such a message to handing it to
    /// the session, nanoseconds.
    pub(crate) kept_ns_max: u64,
    /// Those that still waited at the end.
    pub(crate) never_handed: u64,
    /// Messages that were due when no more could be kept: in no histogram.
    pub(crate) skipped: u64,
    /// Logins that succeeded.
    pub(crate) logins: u64,
    /// Connections that ended without being asked to.
    pub(crate) lost_connections: u64,
    /// Attempts to connect that failed.
    pub(crate) failed_connects: u64,
    /// Answers GAP.
    pub(crate) gaps: u64,
    /// Temporary refusals.
    pub(crate) held: u64,
    /// How often the server refused what; see [`Refused`].
    pub(crate) refusals: BTreeMap<u32, u64>,
    /// Messages that were put into inboxes before the ordeal.
    pub(crate) filled: u64,
    /// How long that took, nanoseconds.
    pub(crate) fill_ns: u64,
    /// How long it took to cut all connections, nanoseconds.
    pub(crate) cut_ns: u64,
    /// Churn: visits that began.
    pub(crate) visits: u64,
    /// Churn: visits that did not, because the last one of the same user was
    /// not over.
    pub(crate) visits_skipped: u64,
    /// Churn: visits that ended by a reset.
    pub(crate) resets: u64,
    /// Acts that came to no end and were given up.
    pub(crate) given_up: u64,
    /// The trouble that was made.
    pub(crate) chaos: Done,
    /// ERROR frames, and bytes that are none of a server's.
    pub(crate) errors: u64,
    /// Logged-in connections when everyone was there.
    pub(crate) connections: u32,
    /// When connections were lost and came back, in order of time; at most
    /// [`OUTAGES_MAX`] of them.
    pub(crate) outages: Vec<Outage>,
    /// The run came to rest before its time for that was over.
    pub(crate) settled: bool,
    /// The run was cut short by a signal.
    pub(crate) interrupted: bool,
}

impl Figures {
    /// Adds another worker's measurements.
    pub(crate) fn add(&mut self, other: Figures) {
        self.findings.add(other.findings);
        self.sent.add(&other.sent);
        self.sent_service.add(&other.sent_service);
        self.delivered.add(&other.delivered);
        self.delivered_service.add(&other.delivered_service);
        self.collected.add(&other.collected);
        self.login.add(&other.login);
        self.witness_before.add(&other.witness_before);
        self.witness_during.add(&other.witness_during);
        self.witness_after.add(&other.witness_after);
        self.disturbed.add(&other.disturbed);
        self.back.add(&other.back);
        self.served.add(&other.served);
        self.visit.add(&other.visit);
        self.lag.add(&other.lag);
        self.window_given += other.window_given;
        self.window_sent += other.window_sent;
        self.window_received += other.window_received;
        self.window_ns = self.window_ns.max(other.window_ns);
        self.cpu_share_max = self.cpu_share_max.max(other.cpu_share_max);
        self.cpu_ns += other.cpu_ns;
        self.kept += other.kept;
        self.kept_ns_max = self.kept_ns_max.max(other.kept_ns_max);
        self.never_handed += other.never_handed;
        self.skipped += other.skipped;
        self.logins += other.logins;
        self.lost_connections += other.lost_connections;
        self.failed_connects += other.failed_connects;
        self.gaps += other.gaps;
        self.held += other.held;
        for (what, times) in other.refusals {
            *self.refusals.entry(what).or_default() += times;
        }
        self.filled += other.filled;
        self.fill_ns = self.fill_ns.max(other.fill_ns);
        self.cut_ns = self.cut_ns.max(other.cut_ns);
        self.visits += other.visits;
        self.visits_skipped += other.visits_skipped;
        self.resets += other.resets;
        self.given_up += other.given_up;
        self.chaos.add(other.chaos);
        self.errors += other.errors;
        self.connections += other.connections;
        self.outages.extend(other.outages);
        self.outages = joined(std::mem::take(&mut self.outages));
        self.settled &= other.settled;
        self.interrupted |= other.interrupted;
    }

    /// Counts a refusal that is no failure by itself.
    pub(crate) fn refused(&mut self, what: Refused, code: u16) {
        *self.refusals.entry((what as u32) << 16 | u32::from(code)).or_default() += 1;
    }

    /// Every refusal in words, and how often.
    pub(crate) fn refusals(&self) -> Vec<(String, u64)> {
        let words = |key: u32| {
            let what = if key >> 16 == Refused::Login as u32 { "connection" } else { "message" };
            match Code::from_u16(key as u16) {
                Some(code) => format!("{what}: {}", code.text()),
                None => format!("{what}: code {}", key as u16),
            }
        };
        self.refusals.iter().map(|(key, times)| (words(*key), *times)).collect()
    }

    /// Events per second of the measured window.
    pub(crate) fn per_second(&self, count: u64) -> f64 {
        if self.window_ns == 0 { 0.0 } else { count as f64 * 1e9 / self.window_ns as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_outages_are_one() {
        let outage = |began_ms, first: u64, all: u64| Outage {
            began_ms,
            first_back_ms: Some(first),
            all_back_ms: (all > 0).then_some(all),
        };
        let list = joined(vec![outage(100, 150, 200), outage(20, 30, 40), outage(190, 191, 250)]);
        assert_eq!(list, [outage(20, 30, 40), outage(100, 150, 250)]);
        assert_eq!(list[1].length_ms(), Some(150));
        assert_eq!(joined(vec![outage(1, 2, 0), outage(5, 6, 9)]), [outage(1, 2, 0)]);
    }

    #[test]
    fn figures_survive_the_pipe() {
        let mut figures = Figures::default();
        for ns in [1_000, 50_000, 50_001, 7_000_000, 9_999_999_999_999] {
            figures.sent.record(ns);
        }
        let text = serde_json::to_string(&figures).expect("figures are plain data");
        let back: Figures = serde_json::from_str(&text).expect("it was written by us");
        assert_eq!(back.sent.0, figures.sent.0);
        let mut sum = back;
        sum.add(figures);
        assert_eq!(sum.sent.count(), 10);
        assert!((sum.sent.max_ms() - 600_000.0).abs() / 600_000.0 < 0.001);
    }
}
