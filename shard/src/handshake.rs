//! The time to log in, and what is said at its end.

use wire::refuse::Code;
use wire::v1;

use crate::Shard;
use crate::io::{Conn, Effects, Now};
use crate::session::{Kind, LOGIN, RETRY_MS};

impl Shard {
    /// Ends the connections that have not logged in in time.
    pub(crate) fn close_late_handshakes(&mut self, now: Now, out: &mut Effects) {
        while let Some(conn) = self.handshakes.pop_due(now.mono_ns) {
            if self.sessions.waits_for_login(conn) {
                self.metrics.counters.handshake_timeouts += 1;
                self.end_handshake(now, conn, out);
            }
        }
    }

    /// Without a word, unless it has logged in and there was no room for that.
    fn end_handshake(&mut self, now: Now, conn: Conn, out: &mut Effects) {
        let session = self.sessions.at(conn.slot);
        if session.waits & LOGIN == 0 {
            return self.dismiss(now, conn, out);
        }
        self.metrics.counters.logins_refused += 1;
        if session.kind == Kind::Anonymous {
            out.send(conn, |bytes| bytes.extend_from_slice(v1::RATE_LIMITED));
            return self.dismiss(now, conn, out);
        }
        let code = if self.storage_full { Code::StorageFull } else { Code::Busy };
        self.goaway(now, conn, code, RETRY_MS, out);
    }
}
