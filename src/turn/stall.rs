//! Looks for connections on which nothing moves any more.
//!
//! All places of the table are looked at in turn, a few at each tick, so that
//! each of them is met three times within the time that is allowed. Kept is
//! only how much was unsent where something was.

use std::collections::HashMap;

use net::ConnId;
use shard::{Input, LOOKS, Unsent};

use super::Core;
use super::inbound::id;

/// Most places looked at in one tick.
const PLACES_PER_TICK: u64 = 4096;

/// Where the looking is.
pub(super) struct Stalls {
    /// From one look at a connection to the next; 0: nobody is cut.
    every_ns: u64,
    /// The next place.
    next: u32,
    /// Until when the places before it were due.
    done_ns: u64,
    /// By place: the connection there, and what was unsent when it was looked
    /// at. They have buffers, so this adds little to what they cost.
    unsent: HashMap<u32, (ConnId, usize)>,
}

impl Stalls {
    pub(super) fn new(now_ns: u64, limit_ms: u64) -> Stalls {
        let every_ns = limit_ms * 1_000_000 / u64::from(LOOKS);
        Stalls { every_ns, next: 0, done_ns: now_ns, unsent: HashMap::new() }
    }

    /// How many places are due, of so many.
    fn due(&mut self, now_ns: u64, places: u64) -> u64 {
        if self.every_ns == 0 || places == 0 {
            self.done_ns = now_ns;
            return 0;
        }
        let one_ns = (self.every_ns / places).max(1);
        let due = (now_ns - self.done_ns) / one_ns;
        if due > PLACES_PER_TICK {
            self.done_ns = now_ns;
            return PLACES_PER_TICK.min(places);
        }
        self.done_ns += due * one_ns;
        due.min(places)
    }

    /// What became of the unsent bytes since the last look.
    fn compare(&mut self, conn: ConnId, unsent: usize) -> Unsent {
        if unsent == 0 {
            self.unsent.remove(&conn.slot);
            return Unsent::None;
        }
        match self.unsent.insert(conn.slot, (conn, unsent)) {
            Some(before) if before == (conn, unsent) => Unsent::Same,
            _ => Unsent::Moved,
        }
    }
}

impl Core {
    /// Looks at the connections that are due; at each tick.
    pub(super) fn look_for_stalled(&mut self) {
        let places = self.shard.session_places();
        for _ in 0..self.stalls.due(self.now.mono_ns, places.into()) {
            let place = self.stalls.next % places;
            self.stalls.next = (place + 1) % places;
            let Some(conn) = self.shard.conn_at(place) else {
                self.stalls.unsent.remove(&place);
                continue;
            };
            let mut unsent = self.stalls.compare(id(conn), self.hands.unsent(id(conn)));
            if self.hands.is_paused(id(conn)) {
                // What it says is not heard, which is not its fault.
                unsent = Unsent::Moved;
            }
            self.tell(Input::Looked { conn, unsent });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    #[track_caller]
    fn check_rounds(places: u64, tick_ns: u64, seconds: u64) -> u64 {
        let mut stalls = Stalls::new(0, 3_000);
        let ticks = seconds * SECOND_NS / tick_ns;
        (1..=ticks).map(|tick| stalls.due(tick * tick_ns, places)).sum()
    }

    #[test]
    fn each_place_is_looked_at_three_times_within_the_limit() {
        for (places, tick_ns) in [(1, SECOND_NS / 10), (7, SECOND_NS / 10), (900, SECOND_NS / 2)] {
            let looks = check_rounds(places, tick_ns, 30);
            assert!(looks.abs_diff(30 * places) <= places, "{looks} looks at {places} places");
        }
    }

    #[test]
    fn many_places_take_longer_and_not_more_at_a_tick() {
        let looks = check_rounds(1_000_000, SECOND_NS / 10, 10);
        assert_eq!(looks, 100 * PLACES_PER_TICK);
    }

    #[test]
    fn unsent_bytes_are_compared_for_one_connection_only() {
        let mut stalls = Stalls::new(0, 3_000);
        let conn = |generation| ConnId { slot: 4, generation };
        assert_eq!(stalls.compare(conn(1), 10), Unsent::Moved);
        assert_eq!(stalls.compare(conn(1), 10), Unsent::Same);
        assert_eq!(stalls.compare(conn(1), 9), Unsent::Moved);
        assert_eq!(stalls.compare(conn(2), 9), Unsent::Moved);
        assert_eq!(stalls.compare(conn(2), 0), Unsent::None);
        assert!(stalls.unsent.is_empty());
    }
}
