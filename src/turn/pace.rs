//! Pacing at the highest level: who sends much at once is read more slowly.
//!
//! Protocol v2 has no credit for senders and v1 no word at all, so the credit
//! is TCP's: a connection whose last receive held much is not read for a
//! while, the longer the more it was. Whoever sends a message now and then is
//! read as ever, so those who answer each other do not pay for those who pour.

use net::ConnId;
use shard::flow::Level;

use super::Core;

/// What a connection may send that sends without a pause, bytes/s.
const RATE: u64 = 64 << 10;
/// Less than this at once is not much.
const LITTLE_BYTES: usize = 1 << 10;
/// Nobody waits for longer.
const PAUSE_NS_MAX: u64 = 250_000_000;

/// Connections that are not read for a while.
#[derive(Default)]
pub(super) struct Pacer {
    /// Until when each of them, in no order; some may have ended since.
    paused: Vec<(u64, ConnId)>,
    /// How often one was paused.
    pub(super) paced: u64,
}

impl Pacer {
    /// Whether somebody waits for being read again.
    pub(super) fn is_pacing(&self) -> bool {
        !self.paused.is_empty()
    }
}

impl Core {
    /// A connection has sent `bytes` of whole frames at once.
    pub(super) fn pace(&mut self, conn: ConnId, bytes: usize) {
        if self.shard.level() < Level::Critical || bytes < LITTLE_BYTES {
            return;
        }
        let pause_ns = (bytes as u64 * 1_000_000_000 / RATE).min(PAUSE_NS_MAX);
        self.hands.pause(conn);
        self.pacer.paused.push((self.now.mono_ns + pause_ns, conn));
        self.pacer.paced += 1;
    }

    /// Reads those again whose time is over; at each tick.
    pub(super) fn resume_paced(&mut self) {
        let (hands, now_ns) = (&mut self.hands, self.now.mono_ns);
        let is_over = |(until_ns, conn): &mut (u64, ConnId)| {
            let is_over = *until_ns <= now_ns;
            if is_over {
                hands.resume(*conn);
            }
            is_over
        };
        self.pacer.paused.extract_if(.., is_over).for_each(drop);
    }
}
