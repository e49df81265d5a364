//! The hybrid logical clock that message ids are drawn from.
//!
//! It follows the wall clock and never goes back with it, so ids of one shard,
//! and therefore of each inbox, only increase.

use wire::id::{ID_COUNTER_END, MessageId, ShardId};

/// Milliseconds and a counter within them.
pub(crate) struct Hlc {
    ms: u64,
    counter: u32,
    node: u16,
    shard: ShardId,
}

impl Hlc {
    pub(crate) fn new(node: u16, shard: ShardId) -> Hlc {
        Hlc { ms: 0, counter: 0, node, shard }
    }

    /// The next id, above every id given or seen before.
    pub(crate) fn next_id(&mut self, wall_ms: u64) -> MessageId {
        if wall_ms > self.ms {
            (self.ms, self.counter) = (wall_ms, 0);
        } else {
            self.counter += 1;
            if self.counter == ID_COUNTER_END {
                (self.ms, self.counter) = (self.ms + 1, 0);
            }
        }
        MessageId::new(self.ms, self.counter, self.node, self.shard)
    }

    /// The clock's milliseconds, for the log.
    pub(crate) fn ms(&self) -> u64 {
        self.ms
    }

    /// Takes note of a time found in the log: ids from before a restart stay
    /// below those after it, whatever the wall clock says.
    pub(crate) fn saw(&mut self, ms: u64) {
        if ms >= self.ms {
            (self.ms, self.counter) = (ms + 1, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// M5: ids increase although the clock steps ±30 s and the shard restarts.
        #[test]
        fn ids_increase(steps in prop::collection::vec((-30_000i64..30_000, any::<bool>()), 1..200)) {
            let mut wall: i64 = 1_800_000_000_000;
            let mut hlc = Hlc::new(1, 2);
            let mut last = None;
            for (step, restart) in steps {
                wall += step;
                if restart {
                    let ms = hlc.ms();
                    hlc = Hlc::new(1, 2);
                    hlc.saw(ms);
                }
                let id = hlc.next_id(wall as u64);
                prop_assert!(last < Some(id), "{last:?} then {id:?}");
                last = Some(id);
            }
        }
    }
}
