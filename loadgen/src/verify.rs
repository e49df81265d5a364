//! The book of a run: what was given, what the server confirmed, what arrived.
//!
//! Numbers in a flow are contiguous, so a flow costs a few counters however
//! many messages it carries; only what is missing is kept as ranges. The rule:
//! every confirmed number arrives exactly once, in order, unchanged.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::scenario::Cast;

/// Ranges of missing numbers that one flow remembers; further ones are counted
/// and, should they come late, taken for duplicates. The run failed by then.
const MISSING_RANGES_MAX: usize = 64;
/// Examples of what went wrong that are kept.
const EXAMPLES_MAX: usize = 20;

/// What is allowed beside the rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Leniency {
    /// Protocol v1: nothing is confirmed, so that what was not acknowledged may
    /// come again on a new connection.
    pub(crate) unconfirmed: bool,
    /// Best effort: messages may be lost when the server dies, and one that was
    /// delivered and then lost before its confirmation comes again.
    pub(crate) best_effort: bool,
}

/// What the verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Findings {
    /// Messages handed to the sessions.
    pub(crate) given: u64,
    /// Messages the server confirmed.
    pub(crate) sent: u64,
    /// Different messages that arrived.
    pub(crate) received: u64,
    /// Confirmed and not arrived.
    pub(crate) missing: u64,
    /// Arrived a second time after they were acknowledged.
    pub(crate) duplicates: u64,
    /// Arrived after a later number of the same flow.
    pub(crate) reordered: u64,
    /// Bodies that are not as they were sent.
    pub(crate) corrupt: u64,
    /// Messages of another run, or for somebody else.
    pub(crate) foreign: u64,
    /// Handed to the session and never confirmed.
    pub(crate) unconfirmed: u64,
    /// Confirmed once and asked for again: the server lost them.
    pub(crate) forgotten: u64,
    /// Refused for good.
    pub(crate) refused: u64,
    /// v1 and best effort: arrived again on a new connection, which is allowed.
    pub(crate) redelivered: u64,
    /// Best effort or v1: not arrived after an outage, or v1 after a refusal,
    /// which is allowed.
    pub(crate) lost_allowed: u64,
    /// Some of what went wrong, in words.
    pub(crate) examples: Vec<String>,
}

impl Findings {
    /// Whether every promise was kept.
    #[cfg(test)]
    pub(crate) fn ok(&self) -> bool {
        let wrong = [
            self.missing,
            self.duplicates,
            self.reordered,
            self.corrupt,
            self.foreign,
            self.unconfirmed,
            self.forgotten,
            self.refused,
        ];
        wrong.iter().all(|count| *count == 0)
    }

    /// Adds what another worker found.
    pub(crate) fn add(&mut self, other: Findings) {
        self.given += other.given;
        self.sent += other.sent;
        self.received += other.received;
        self.missing += other.missing;
        self.duplicates += other.duplicates;
        self.reordered += other.reordered;
        self.corrupt += other.corrupt;
        self.foreign += other.foreign;
        self.unconfirmed += other.unconfirmed;
        self.forgotten += other.forgotten;
        self.refused += other.refused;
        self.redelivered += other.redelivered;
        self.lost_allowed += other.lost_allowed;
        let room = EXAMPLES_MAX.saturating_sub(self.examples.len());
        self.examples.extend(other.examples.into_iter().take(room));
    }

    fn example(&mut self, text: impl FnOnce() -> String) {
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(text());
        }
    }
}

/// Counts of the flows that are not the witnesses'.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Messages handed to the sessions.
    pub(crate) given: u64,
    /// Messages the server confirmed.
    pub(crate) sent: u64,
    /// Different messages that arrived.
    pub(crate) received: u64,
}

#[derive(Debug, Default)]
struct Flow {
    /// Highest number handed to the session.
    given: u64,
    /// Highest number the server confirmed.
    sent: u64,
    /// Highest number that arrived.
    arrived: u64,
    /// Which connection of the recipient brought it.
    generation: u32,
    /// Numbers below `arrived` that did not arrive.
    missing: Vec<RangeInclusive<u64>>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Book {
    cast: Cast,
    base: u32,
    leniency: Leniency,
    flows: Vec<Flow>,
    findings: Findings,
    crowd: Tally,
}

impl Book {
    /// An empty book; `base` is the index of the worker's first user in the run.
    pub(crate) fn new(cast: Cast, base: u32, leniency: Leniency) -> Book {
        let flows = (0..cast.flows()).map(|_| Flow::default()).collect();
        let (findings, crowd) = (Findings::default(), Tally::default());
        Book { cast, base, leniency, flows, findings, crowd }
    }

    /// What was found so far; [`Book::close`] adds what is missing.
    pub(crate) fn findings(&self) -> &Findings {
        &self.findings
    }

    /// What was counted beside the witnesses.
    pub(crate) fn crowd(&self) -> Tally {
        self.crowd
    }

    /// Whether everything given to a flow has arrived.
    pub(crate) fn is_complete(&self, flow: usize) -> bool {
        let flow = &self.flows[flow];
        flow.arrived >= flow.given && flow.missing.is_empty()
    }

    /// The number that the next message of a flow must carry.
    pub(crate) fn next_number(&self, flow: usize) -> u64 {
        self.flows[flow].given + 1
    }

    /// That message was handed to the session.
    pub(crate) fn given(&mut self, flow: usize) {
        self.flows[flow].given += 1;
        self.findings.given += 1;
        self.crowd.given += u64::from(!self.cast.is_witnessed(flow));
    }

    /// The server confirmed a number.
    pub(crate) fn sent(&mut self, flow: usize, number: u64) {
        let entry = &mut self.flows[flow];
        if number > entry.sent {
            self.findings.sent += 1;
            self.crowd.sent += u64::from(!self.cast.is_witnessed(flow));
            entry.sent = number;
        }
    }

    /// The server asks again for numbers that it confirmed.
    pub(crate) fn forgotten(&mut self, flow: usize, first: u64, last: u64, after_outage: bool) {
        if self.leniency.best_effort && after_outage {
            // Those that did not arrive either are counted at the end.
            return;
        }
        self.findings.forgotten += (last + 1).saturating_sub(first);
        let flow = self.name(flow);
        self.findings.example(|| format!("{flow}: {first}..{last} confirmed and then forgotten"));
    }

    /// The server refused a number for good.
    pub(crate) fn refused(&mut self, flow: usize, number: u64, code: u16) {
        self.findings.refused += 1;
        let flow = self.name(flow);
        self.findings.example(|| format!("{flow}: {number} refused with code {code}"));
    }

    /// A body that cannot be read arrived at a user.
    pub(crate) fn corrupt(&mut self, user: u32) {
        self.findings.corrupt += 1;
        let user = u64::from(self.base + user);
        self.findings.example(|| format!("user {user}: a body is not as it was sent"));
    }

    /// A message that is not this user's or not this run's arrived.
    pub(crate) fn foreign(&mut self, user: u32) {
        self.findings.foreign += 1;
        let user = u64::from(self.base + user);
        self.findings.example(|| format!("user {user}: a message of somebody else arrived"));
    }

    /// A number arrived on the recipient's connection `generation`. Gives
    /// whether it is the first time.
    pub(crate) fn received(&mut self, flow: usize, number: u64, generation: u32) -> bool {
        let name = self.name(flow);
        let crowd = u64::from(!self.cast.is_witnessed(flow));
        let entry = &mut self.flows[flow];
        if number > entry.arrived {
            if number > entry.arrived + 1 {
                entry.missing_from(entry.arrived + 1..=number - 1);
            }
            entry.arrived = number;
            entry.generation = generation;
            self.findings.received += 1;
            self.crowd.received += crowd;
            return true;
        }
        if entry.take_missing(number) {
            let arrived = entry.arrived;
            self.findings.received += 1;
            self.crowd.received += crowd;
            self.findings.reordered += 1;
            self.findings.example(|| format!("{name}: {number} arrived after {arrived}"));
            return true;
        }
        let lenient = self.leniency.unconfirmed || self.leniency.best_effort;
        if lenient && generation != entry.generation {
            self.findings.redelivered += 1;
        } else {
            self.findings.duplicates += 1;
            self.findings.example(|| format!("{name}: {number} arrived again"));
        }
        false
    }

    /// Whether everything given is confirmed (where that can be) and arrived.
    pub(crate) fn is_settled(&self) -> bool {
        let findings = &self.findings;
        let sent = self.leniency.unconfirmed || findings.sent >= findings.given;
        sent && findings.received >= findings.given
    }

    /// The end: says what is missing. With `drained` the run came to rest by
    /// itself or waited long enough, so that unconfirmed messages count; with
    /// `has_excuse` something happened that may cost what nobody confirmed.
    pub(crate) fn close(mut self, drained: bool, has_excuse: bool) -> Findings {
        let allowed = has_excuse && (self.leniency.best_effort || self.leniency.unconfirmed);
        for index in 0..self.flows.len() {
            let flow = &self.flows[index];
            // v1 confirms nothing: without an excuse all that was given counts.
            let owed = if self.leniency.unconfirmed { flow.given } else { flow.sent };
            let missing = flow.missing_up_to(owed);
            let unconfirmed = flow.given - flow.sent.min(flow.given);
            if missing > 0 {
                if allowed || (self.leniency.unconfirmed && !drained) {
                    self.findings.lost_allowed += missing;
                } else {
                    self.findings.missing += missing;
                    let ranges = flow.ranges_up_to(owed);
                    let name = self.name(index);
                    self.findings.example(|| format!("{name}: confirmed, not arrived: {ranges}"));
                }
            }
            if drained && !self.leniency.unconfirmed && unconfirmed > 0 {
                self.findings.unconfirmed += unconfirmed;
                let (from, to) = (self.flows[index].sent + 1, self.flows[index].given);
                let name = self.name(index);
                self.findings.example(|| format!("{name}: {from}..{to} never confirmed"));
            }
        }
        self.findings
    }

    fn name(&self, flow: usize) -> FlowName {
        FlowName {
            sender: self.base + self.cast.sender(flow),
            recipient: self.base + self.cast.recipient(flow),
        }
    }
}

/// Sender and recipient, written only when somebody reads it.
#[derive(Clone, Copy)]
struct FlowName {
    sender: u32,
    recipient: u32,
}

impl std::fmt::Display for FlowName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} to {}", self.sender, self.recipient)
    }
}

impl Flow {
    fn missing_from(&mut self, numbers: RangeInclusive<u64>) {
        if self.missing.len() < MISSING_RANGES_MAX {
            self.missing.push(numbers);
        } else if let Some(last) = self.missing.last_mut() {
            // Too many holes to keep apart; the count of the last one grows.
            let more = numbers.end() - numbers.start() + 1;
            *last = *last.start()..=*last.end() + more;
        }
    }

    fn take_missing(&mut self, number: u64) -> bool {
        let Some(at) = self.missing.iter().position(|range| range.contains(&number)) else {
            return false;
        };
        let range = self.missing.remove(at);
        if number < *range.end() {
            self.missing.insert(at, number + 1..=*range.end());
        }
        if number > *range.start() {
            self.missing.insert(at, *range.start()..=number - 1);
        }
        true
    }

    fn missing_up_to(&self, owed: u64) -> u64 {
        let holes: u64 = self
            .missing
            .iter()
            .map(|range| (range.end().min(&owed) + 1).saturating_sub(*range.start()))
            .sum();
        holes + owed.saturating_sub(self.arrived)
    }

    fn ranges_up_to(&self, owed: u64) -> String {
        let mut ranges: Vec<String> = self
            .missing
            .iter()
            .filter(|range| *range.start() <= owed)
            .map(|range| format!("{}..{}", range.start(), range.end().min(&owed)))
            .collect();
        if owed > self.arrived {
            ranges.push(format!("{}..{owed}", self.arrived + 1));
        }
        ranges.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Scenario;

    fn book(leniency: Leniency) -> Book {
        Book::new(
            Cast { scenario: Scenario::Pairs, witnesses: 0, online: 2, absent: 0 },
            0,
            leniency,
        )
    }

    /// Plays one flow: `given` messages, confirmed up to `sent`, arrivals as
    /// (number, generation).
    fn play(
        leniency: Leniency,
        given: u64,
        sent: u64,
        arrivals: &[(u64, u32)],
        outage: bool,
    ) -> Findings {
        let mut book = book(leniency);
        for number in 1..=given {
            assert_eq!(book.next_number(0), number);
            book.given(0);
        }
        for number in 1..=sent {
            book.sent(0, number);
        }
        for (number, generation) in arrivals {
            book.received(0, *number, *generation);
        }
        book.close(true, outage)
    }

    const STRICT: Leniency = Leniency { unconfirmed: false, best_effort: false };
    const V1: Leniency = Leniency { unconfirmed: true, best_effort: false };
    const BEST_EFFORT: Leniency = Leniency { unconfirmed: false, best_effort: true };

    #[test]
    fn a_clean_run_is_ok() {
        let findings = play(STRICT, 3, 3, &[(1, 1), (2, 1), (3, 2)], true);
        assert!(findings.ok(), "{findings:?}");
        assert_eq!((findings.given, findings.sent, findings.received), (3, 3, 3));
    }

    #[test]
    fn losses_are_named() {
        let findings = play(STRICT, 6, 6, &[(1, 1), (4, 1)], true);
        assert!(!findings.ok());
        assert_eq!(findings.missing, 4);
        assert_eq!(findings.examples, ["0 to 1: confirmed, not arrived: 2..3, 5..6"]);
    }

    #[test]
    fn an_unconfirmed_message_may_arrive_but_must_be_confirmed_in_the_end() {
        let findings = play(STRICT, 2, 1, &[(1, 1), (2, 1)], false);
        assert_eq!((findings.missing, findings.unconfirmed), (0, 1));
        assert!(!findings.ok());
    }

    #[test]
    fn duplicates_and_order() {
        let findings = play(STRICT, 3, 3, &[(1, 1), (3, 1), (2, 1), (2, 2)], false);
        assert_eq!((findings.reordered, findings.duplicates, findings.missing), (1, 1, 0));
        assert!(!findings.ok());
    }

    #[test]
    fn v1_may_repeat_on_a_new_connection_only() {
        let findings = play(V1, 2, 0, &[(1, 1), (2, 1), (1, 2), (2, 2)], true);
        assert!(findings.ok(), "{findings:?}");
        assert_eq!(findings.redelivered, 2);
        let findings = play(V1, 2, 0, &[(1, 1), (1, 1), (2, 1)], true);
        assert_eq!(findings.duplicates, 1);
    }

    #[test]
    fn v1_owes_everything_unless_there_was_an_outage() {
        assert_eq!(play(V1, 2, 0, &[(2, 1)], false).missing, 1);
        assert_eq!(play(V1, 2, 0, &[(2, 1)], true).lost_allowed, 1);
    }

    #[test]
    fn best_effort_may_lose_in_an_outage_only() {
        assert_eq!(play(BEST_EFFORT, 2, 2, &[(2, 1)], true).lost_allowed, 1);
        assert_eq!(play(BEST_EFFORT, 2, 2, &[(2, 1)], false).missing, 1);
        assert_eq!(play(BEST_EFFORT, 2, 2, &[(1, 1), (1, 2), (2, 2)], true).redelivered, 1);
        assert_eq!(play(BEST_EFFORT, 2, 2, &[(1, 1), (1, 1), (2, 2)], true).duplicates, 1);
    }

    #[test]
    fn many_holes_stay_bounded_and_counted() {
        let arrivals: Vec<(u64, u32)> = (1..=500).map(|n| (2 * n, 1)).collect();
        let findings = play(STRICT, 1000, 1000, &arrivals, false);
        assert_eq!(findings.missing, 500);
    }
}
