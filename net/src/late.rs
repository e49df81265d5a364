//! What may wait to share a send with something more urgent for the same connection.
//!
//! Whether it does is learned for each connection: company that comes in time adds to its trust,
//! and where none comes some is lost. Who is not trusted does not wait, but is watched as if it
//! did, so that it is trusted again when that would have paid.

use crate::conn::{Conn, ConnId, Flags};
use crate::hands::Hands;

/// From here on what may wait where company is likely does, see [`Flags::trust`].
pub(crate) const TRUST_MIN: u32 = 8;

/// Where something waits to share a send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Nowhere: it leaves at once.
    None,
    /// On connections where company has come nearly every time lately. Where it comes to two of
    /// three by chance, one of three hundred has that luck.
    Proven,
    /// On connections where it has come more than six times as often as not, and on new ones.
    Likely,
}

impl Patience {
    /// From which trust on; nothing where it does not wait.
    fn trust_min(self) -> Option<u32> {
        match self {
            Patience::None => None,
            Patience::Proven => Some(Flags::TRUST_MAX),
            Patience::Likely => Some(TRUST_MIN),
        }
    }
}

/// What is lost when company does not come in time: it has to come six times as often as not.
const TRUST_LOST: u32 = 6;

/// The same when nothing came to anybody, which says little about this one.
const TRUST_LOST_IDLE: u32 = 1;

/// Periods of [`Hands::age_late`] after which something late has waited long enough: one less for
/// certain, and so many at most. The more of them, the better that is known.
pub const LATE_PERIODS: usize = 4;

const _: () = assert!(LATE_PERIODS.is_power_of_two(), "it fills the bits of a generation");

/// Connections with something that waits or is watched, by when that began.
#[derive(Debug, Default)]
pub(crate) struct Late {
    generations: [Vec<ConnId>; LATE_PERIODS],
    newest: usize,
}

impl Conn {
    /// Something urgent takes along what waits, or would have. Whether it waits.
    pub(crate) fn find_company(&mut self) -> bool {
        let has_waited = self.flags.any(Flags::LATE);
        if has_waited || self.flags.any(Flags::LONE) {
            self.flags.clear(Flags::LATE.or(Flags::LONE));
            self.flags.set_trust(self.flags.trust() + 1);
        }
        has_waited
    }
}

impl Hands {
    /// As [`send`](Hands::send), for bytes that may wait to share a send with something more
    /// urgent for the same connection: they go out with that, or with
    /// [`age_late`](Hands::age_late) and [`flush_late`](Hands::flush_late).
    ///
    /// They wait only where there is [`Patience`] for it. On other connections they go out like
    /// any, and it is watched whether company would have come in the same time.
    pub fn send_late(&mut self, conn: ConnId, bytes: &[u8], patience: Patience) {
        let unsent = self.append(conn, bytes);
        if unsent.is_none() {
            return;
        }
        let entry = &mut self.table[conn.slot];
        let Some(trust_min) = patience.trust_min() else {
            return entry.mark_dirty(conn.slot, &mut self.dirty);
        };
        if unsent != Some(0) {
            // Whoever put bytes there before has seen to it that the rest follows.
            return;
        }
        if entry.flags.trust() >= trust_min {
            entry.flags.set(Flags::LATE);
        } else {
            entry.mark_dirty(conn.slot, &mut self.dirty);
            if entry.flags.any(Flags::LONE) {
                return;
            }
            entry.flags.set(Flags::LONE);
        }
        entry.flags.set_generation(self.late.newest);
        self.late.generations[self.late.newest].push(conn);
    }

    /// Whether bytes of [`send_late`](Hands::send_late) may still be waiting, or be watched. Of one
    /// connection as many as were sent within four calls of [`age_late`](Hands::age_late).
    pub fn has_late(&self) -> bool {
        self.late.generations.iter().any(|generation| !generation.is_empty())
    }

    /// Lets everything late go out with the next flush.
    pub fn flush_late(&mut self) {
        for _ in 0..LATE_PERIODS {
            self.age(TRUST_LOST_IDLE);
        }
    }

    /// As [`flush_late`](Hands::flush_late), for what has waited since before the last three calls.
    /// Called every now and then, it lets nothing wait for more than four such times, and
    /// everything for at least three.
    pub fn age_late(&mut self) {
        self.age(TRUST_LOST);
    }

    /// Ends one generation, whose connections lose so much trust.
    fn age(&mut self, trust_lost: u32) {
        let oldest = (self.late.newest + 1) % LATE_PERIODS;
        let mut late = std::mem::take(&mut self.late.generations[oldest]);
        for conn in late.drain(..) {
            let Some(slot) = self.table.current(conn) else { continue };
            let flags = &mut self.table[slot].flags;
            // It may have found company and wait again, for something newer.
            let is_watched = flags.any(Flags::LATE.or(Flags::LONE));
            if is_watched && flags.generation() == oldest {
                let has_waited = flags.any(Flags::LATE);
                flags.clear(Flags::LATE.or(Flags::LONE));
                flags.set_trust(flags.trust().saturating_sub(trust_lost));
                if has_waited {
                    self.stats.late_alone += 1;
                    self.mark_dirty(slot);
                }
            }
        }
        self.late.generations[oldest] = late;
        self.late.newest = oldest;
    }
}
