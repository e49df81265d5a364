//! Looking ahead: which memory the next inputs will touch.
//!
//! The state of some thousand users is more than a core's own caches hold, so
//! a message that comes in finds almost nothing of what it needs there: it would
//! wait for one line of memory after the other, each of which says where the
//! next one is. Whoever knows which connections come next asks for their lines
//! ahead of time, a step further down the chain each time.

use wal::Lsn;

use crate::Shard;
use crate::io::Conn;
use crate::session::NOBODY;
use crate::user::UserIndex;

/// Bytes that come with one line.
const LINE: usize = 64;

/// So many answers of one commit are looked ahead to: as many as a core's own
/// caches hold.
const RELEASED_AHEAD: usize = 256;

/// Bytes of the log that an input leads to, a message of some hundred bytes and an
/// acknowledgement; and those of the inputs before it.
const APPENDED_BYTES: usize = 512;
const APPENDED_AHEAD: usize = 2048;

/// How far down the chain. Each step reads what the one before it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ahead {
    /// The connection's session.
    Session,
    /// Its user, and to whom it wrote last.
    Users,
    /// Their inboxes and devices.
    Inboxes,
    /// What stands first and last in them.
    Entries,
}

impl Shard {
    /// Calls `fetch` with the places that an input of this connection is likely
    /// to touch. Changes nothing, and may be wrong.
    #[inline]
    pub fn foresee(&self, conn: Conn, step: Ahead, fetch: impl Fn(*const u8)) {
        let Some(session) = self.sessions.peek(conn.slot) else { return };
        if step == Ahead::Session {
            self.foresee_append(&fetch);
            return fetch_all(session, &fetch);
        }
        if !session.is_logged_in() {
            return;
        }
        self.foresee_user(session.user, step, &fetch);
        if session.partner != NOBODY {
            self.foresee_user(session.partner, step, &fetch);
        }
    }

    /// The same for what waits for the log to be durable up to there.
    pub fn foresee_release(&self, durable: Lsn, fetch: impl Fn(*const u8)) {
        let due = || self.gate.due(durable).take(RELEASED_AHEAD);
        for step in [Ahead::Users, Ahead::Inboxes, Ahead::Entries] {
            due().for_each(|waiting| self.foresee_user(waiting.user, step, &fetch));
        }
        let devices = due().flat_map(|waiting| &self.users[waiting.user].devices);
        for session in devices.filter_map(|device| self.sessions.peek(device.slot)) {
            fetch_all(session, &fetch);
        }
    }

    /// Where the log goes on after what is appended until then.
    #[inline]
    fn foresee_append(&self, fetch: &impl Fn(*const u8)) {
        let coming = self.log.coming(APPENDED_AHEAD + APPENDED_BYTES);
        for line in coming.get(APPENDED_AHEAD..).unwrap_or_default().chunks(LINE) {
            fetch(line.as_ptr());
        }
    }

    #[inline]
    fn foresee_user(&self, index: UserIndex, step: Ahead, fetch: &impl Fn(*const u8)) {
        let user = &self.users[index];
        match (step, user.inbox.as_deref()) {
            (Ahead::Users, _) => fetch_all(user, fetch),
            (Ahead::Inboxes, inbox) => {
                fetch(user.devices.as_ptr().cast());
                fetch(user.name.as_ptr());
                if let Some(inbox) = inbox {
                    fetch_all(inbox, fetch);
                }
            }
            (_, Some(inbox)) => inbox.foresee(fetch),
            _ => {}
        }
    }
}

/// Every line of a value.
#[inline]
fn fetch_all<T>(value: &T, fetch: &impl Fn(*const u8)) {
    let start = std::ptr::from_ref(value).cast::<u8>();
    for offset in (0..size_of::<T>()).step_by(LINE) {
        fetch(start.wrapping_add(offset));
    }
}
