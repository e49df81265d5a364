//! Connections on which nothing moves are cut.
//!
//! A peer that has vanished without a word looks like one that is silent. What
//! tells them apart is what is owed: bytes that its kernel does not take, or
//! (v2, which has a word for being alive) deliveries that are not acknowledged.
//! Who owes nothing may be silent for ever, and who says anything or takes any
//! byte is slow, which costs nothing: its messages are on the disk.

use wire::refuse::Code;

use crate::Shard;
use crate::io::{Conn, Effects, Now, Unsent};
use crate::session::{Kind, RETRY_MS};

/// Looks in a row at which nothing had moved; at the next one a connection is
/// cut. The caller looks so often within the time that it allows.
pub const LOOKS: u8 = 3;

impl Shard {
    /// The caller looks at a connection.
    pub(crate) fn looked(&mut self, now: Now, conn: Conn, unsent: Unsent, out: &mut Effects) {
        let Some(session) = self.sessions.get(conn) else { return };
        let kind = session.kind;
        let (user, device) = (session.user, usize::from(session.device));
        let is_stuck = match unsent {
            Unsent::Same => kind != Kind::Leaving,
            Unsent::Moved => false,
            Unsent::None => {
                kind == Kind::V2 && {
                    let inbox = self.users[user].inbox.as_deref();
                    let shelf = inbox.and_then(|inbox| inbox.shelf());
                    // Others wait for what it says of this.
                    let owes_shelved = shelf.is_some_and(|shelf| shelf.is_owed_by(device));
                    let cursor = self.users[user].devices[device].cursor;
                    owes_shelved || self.sessions.at(conn.slot).unacknowledged(cursor) > 0
                }
            }
        };
        let session = self.sessions.at(conn.slot);
        if !is_stuck {
            session.progressed();
        } else if session.look() > LOOKS {
            self.metrics.counters.stalled += 1;
            if kind == Kind::V2 {
                self.goaway(now, conn, Code::Timeout, RETRY_MS, out);
            } else {
                self.dismiss(now, conn, out);
            }
        }
    }
}
