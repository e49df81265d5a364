//! The worst connections and users of a shard, as it hands them to the admin
//! thread: the first so many by each order that can be asked for.
//!
//! A shard looks at a few hundred places a turn and keeps the worst it has
//! seen, so neither its turns nor its memory grow with the number of
//! connections.

use serde::Serialize;

/// Most rows that can be asked for.
pub(crate) const ROWS_MAX: usize = 100;

/// What "worst" means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Order {
    /// Connections by bytes that their kernel does not take.
    Unsent = 0,
    /// Connections by deliveries they have not acknowledged.
    Unacknowledged = 1,
    /// Connections by messages they have sent since their login.
    Sent = 2,
    /// Connections by deliveries handed to them since their login.
    Received = 3,
    /// Users, connected or not, by messages that wait for them.
    Inbox = 4,
}

impl Order {
    /// How many there are.
    pub(crate) const COUNT: usize = 5;
    /// All of them with their names in a request.
    pub(crate) const ALL: [(Order, &'static str); Order::COUNT] = [
        (Order::Unsent, "unsent"),
        (Order::Unacknowledged, "unacknowledged"),
        (Order::Sent, "sent"),
        (Order::Received, "received"),
        (Order::Inbox, "inbox"),
    ];
}

/// One connection with its user, or a user alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Row {
    /// The name; bytes that are no plain text are escaped.
    pub(crate) user: String,
    /// Its shard.
    pub(crate) shard: u16,
    /// Messages that wait for the user.
    pub(crate) inbox_messages: u64,
    /// Bytes of them in the log.
    pub(crate) inbox_bytes: u64,
    /// For how long the oldest has waited at least, seconds.
    pub(crate) oldest_s: u64,
    /// Devices registered and connected.
    pub(crate) devices: u8,
    pub(crate) connected: u8,
    /// The rest is of one connection; `None` in a list of users.
    #[serde(flatten)]
    pub(crate) conn: Option<ConnRow>,
}

/// What is of a connection alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct ConnRow {
    /// The device; 0 is that of protocol v1.
    pub(crate) device: u64,
    /// The protocol, 1 or 2.
    pub(crate) protocol: u8,
    /// Since its login, seconds.
    pub(crate) age_s: u64,
    /// Bytes that its kernel does not take.
    pub(crate) unsent_bytes: u64,
    /// Deliveries not acknowledged.
    pub(crate) unacknowledged: u64,
    /// Messages it has sent since its login.
    pub(crate) sent: u64,
    /// Deliveries handed to it since then.
    pub(crate) received: u64,
}

impl Row {
    /// What the rows of an order are sorted by.
    pub(crate) fn measure(&self, order: Order) -> u64 {
        let of_conn = |of: fn(&ConnRow) -> u64| self.conn.as_ref().map_or(0, of);
        match order {
            Order::Unsent => of_conn(|conn| conn.unsent_bytes),
            Order::Unacknowledged => of_conn(|conn| conn.unacknowledged),
            Order::Sent => of_conn(|conn| conn.sent),
            Order::Received => of_conn(|conn| conn.received),
            Order::Inbox => self.inbox_messages,
        }
    }
}

/// What one shard found.
#[derive(Clone, Debug)]
pub(crate) struct Worst {
    /// When it had looked at everybody, [`net::Now::mono_ns`].
    pub(crate) at_mono_ns: u64,
    /// By [`Order`], the worst first.
    pub(crate) rows: [Vec<Row>; Order::COUNT],
}

/// The greatest of many measures, with what they belong to.
#[derive(Clone, Debug)]
pub(crate) struct Greatest<T> {
    /// Beyond twice the bound the lesser half goes.
    list: Vec<(u64, T)>,
    /// What does not exceed this is not among them.
    least: u64,
}

impl<T> Default for Greatest<T> {
    fn default() -> Greatest<T> {
        Greatest { list: Vec::new(), least: 0 }
    }
}

impl<T> Greatest<T> {
    /// One more; nothing measured 0 is of interest.
    pub(crate) fn offer(&mut self, measure: u64, of: impl FnOnce() -> T) {
        if measure <= self.least {
            return;
        }
        self.list.push((measure, of()));
        if self.list.len() == 2 * ROWS_MAX {
            self.keep();
            self.least = self.list.last().expect("some are kept").0;
        }
    }

    fn keep(&mut self) {
        self.list.sort_by_key(|(measure, _)| std::cmp::Reverse(*measure));
        self.list.truncate(ROWS_MAX);
    }

    /// The greatest, the first before all.
    pub(crate) fn finish(mut self) -> impl Iterator<Item = T> {
        self.keep();
        self.list.into_iter().map(|(_, of)| of)
    }
}

/// A name for eyes: plain text as it is, everything else escaped.
pub(crate) fn shown(name: &[u8]) -> String {
    match std::str::from_utf8(name) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => name.escape_ascii().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greatest_of_many_are_kept_in_order() {
        let mut greatest = Greatest::default();
        for n in 0..10_000_u64 {
            let measure = n * 7919 % 10_007;
            greatest.offer(measure, || measure);
        }
        let found: Vec<u64> = greatest.finish().collect();
        let mut all: Vec<u64> = (0..10_000).map(|n| n * 7919 % 10_007).collect();
        all.sort_unstable_by_key(|measure| std::cmp::Reverse(*measure));
        assert_eq!(found, all[..ROWS_MAX]);
    }

    #[test]
    fn zero_is_of_no_interest_and_the_bound_bounds_equals() {
        let mut greatest = Greatest::default();
        greatest.offer(0, || 0);
        assert_eq!(greatest.clone().finish().count(), 0);
        (0..1_000).for_each(|n| greatest.offer(5, || n));
        assert!(greatest.list.len() < 2 * ROWS_MAX);
        assert_eq!(greatest.finish().count(), ROWS_MAX);
    }

    #[test]
    fn names_are_for_eyes() {
        assert_eq!(shown("zoë".as_bytes()), "zoë");
        assert_eq!(shown(b"a\x1b[2Jb"), "a\\x1b[2Jb");
        assert_eq!(shown(b"\xff\x00"), "\\xff\\x00");
    }
}
