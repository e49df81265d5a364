//! In which hour how many bytes of one segment expire.
//!
//! Invariant: ascending, no hour twice, at most [`HOURS_MAX`]. A message stands
//! under the hour in which it expires or under a later one: what is past has
//! expired.

use crate::record::Take;

/// Hours told apart in one segment. A default retention of 30 days has 720.
pub(super) const HOURS_MAX: usize = 1024;
pub(super) const HOUR_MS: u64 = 60 * 60 * 1000;
/// The hour of what never expires.
const NEVER: u32 = u32::MAX;

/// Message bytes of a segment by the hour in which they expire.
#[derive(Clone, Debug, Default)]
pub(super) struct Hours {
    bytes: Vec<(u32, u64)>,
    /// Their sum.
    total: u64,
}

impl Hours {
    /// So many bytes expire then, 0 for never.
    pub(super) fn add(&mut self, expires_ms: u64, bytes: u64) {
        let hour = u32::try_from(expires_ms / HOUR_MS).unwrap_or(NEVER);
        let hour = if expires_ms == 0 { NEVER } else { hour };
        self.total += bytes;
        let at = match self.bytes.binary_search_by_key(&hour, |(hour, _)| *hour) {
            Ok(at) => at,
            Err(at) if self.bytes.len() < HOURS_MAX => {
                self.bytes.insert(at, (hour, 0));
                at
            }
            // Rather late than early: only an estimate becomes worse.
            Err(at) => {
                let at = at.min(HOURS_MAX - 1);
                self.bytes[at].0 = self.bytes[at].0.max(hour);
                at
            }
        };
        self.bytes[at].1 += bytes;
    }

    /// Of `live` bytes that are left, those that have not expired: what was
    /// taken away is taken to be spread evenly.
    pub(super) fn unexpired(&self, live: u64, now_ms: u64) -> u64 {
        let expired: u64 = self.past(now_ms).iter().map(|(_, bytes)| bytes).sum();
        if expired == 0 {
            return live;
        }
        let left = u128::from(live) * u128::from(self.total - expired);
        (left / u128::from(self.total)) as u64
    }

    /// For how long the oldest has expired that is not given up.
    pub(super) fn overdue_ms(&self, now_ms: u64) -> Option<u64> {
        let (hour, _) = self.past(now_ms).first()?;
        Some(now_ms - end_ms(*hour))
    }

    /// Whether there were any, and all have expired.
    pub(super) fn are_past(&self, now_ms: u64) -> bool {
        !self.bytes.is_empty() && self.past(now_ms).len() == self.bytes.len()
    }

    /// What had expired then is given up.
    pub(super) fn forget(&mut self, now_ms: u64) {
        let count = self.past(now_ms).len();
        let bytes: u64 = self.bytes.drain(..count).map(|(_, bytes)| bytes).sum();
        self.total -= bytes;
    }

    fn past(&self, now_ms: u64) -> &[(u32, u64)] {
        let is_past = |(hour, _): &(u32, u64)| *hour != NEVER && end_ms(*hour) <= now_ms;
        &self.bytes[..self.bytes.partition_point(is_past)]
    }

    /// What [`Hours::encode`] appends, bytes.
    pub(super) fn encoded_bytes(&self) -> usize {
        4 + 12 * self.bytes.len()
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.bytes.len() as u32).to_le_bytes());
        for (hour, bytes) in &self.bytes {
            out.extend_from_slice(&hour.to_le_bytes());
            out.extend_from_slice(&bytes.to_le_bytes());
        }
    }

    pub(super) fn decode(take: &mut Take<'_>) -> Option<Hours> {
        let count = take.u32()? as usize;
        if count > HOURS_MAX {
            return None;
        }
        let mut hours = Hours::default();
        for _ in 0..count {
            let (hour, bytes) = (take.u32()?, take.u64()?);
            if hours.bytes.last().is_some_and(|(last, _)| *last >= hour) {
                return None;
            }
            hours.total = hours.total.checked_add(bytes)?;
            hours.bytes.push((hour, bytes));
        }
        Some(hours)
    }
}

fn end_ms(hour: u32) -> u64 {
    (u64::from(hour) + 1) * HOUR_MS
}

#[cfg(test)]
impl Hours {
    pub(super) fn list(&self) -> Vec<(u32, u64)> {
        self.bytes.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_table_counts_late_rather_than_early() {
        let mut hours = Hours::default();
        for hour in 1..=2 * HOURS_MAX as u64 {
            hours.add(hour * HOUR_MS, 1);
        }
        assert_eq!(hours.bytes.len(), HOURS_MAX);
        assert_eq!(hours.total, 2 * HOURS_MAX as u64);
        let last = (HOURS_MAX as u64 + 1) * HOUR_MS;
        assert_eq!(hours.unexpired(hours.total, last), HOURS_MAX as u64 + 1);
        assert!(!hours.are_past(2 * last - 3 * HOUR_MS));
        assert!(hours.are_past(2 * last));
    }

    #[test]
    fn what_is_given_up_leaves_the_table() {
        let mut hours = Hours::default();
        hours.add(10 * HOUR_MS + 7, 300);
        hours.add(20 * HOUR_MS, 500);
        hours.add(0, 200);
        assert_eq!(hours.overdue_ms(11 * HOUR_MS - 1), None, "not the whole hour");
        assert_eq!(hours.overdue_ms(13 * HOUR_MS), Some(2 * HOUR_MS));
        assert_eq!(hours.unexpired(1000, 13 * HOUR_MS), 700);
        hours.forget(13 * HOUR_MS);
        assert_eq!(hours.overdue_ms(13 * HOUR_MS), None);
        assert_eq!(hours.unexpired(700, 13 * HOUR_MS), 700);
        assert_eq!(hours.unexpired(700, 21 * HOUR_MS), 200);
        hours.forget(u64::MAX);
        assert_eq!(hours.list(), [(NEVER, 200)]);
        assert!(!hours.are_past(u64::MAX), "what never expires stays");
    }
}
