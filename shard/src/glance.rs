//! A look at single sessions and users, for who asks which of them are the
//! worst. It changes nothing and walks nothing: whoever wants all of them asks
//! for one place after the other, a few in each turn.

use crate::Shard;
use crate::io::{Conn, Now};
use crate::session::Kind;
use crate::user::{NO_SLOT, User, UserIndex};

/// What is known of a logged-in connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionGlance {
    /// The connection.
    pub conn: Conn,
    /// Place of its user, for [`Shard::user_glance`].
    pub user: u32,
    /// Its device; 0 is that of protocol v1.
    pub device: u64,
    /// The protocol, 1 or 2.
    pub protocol: u8,
    /// Since its login, seconds.
    pub age_s: u64,
    /// Deliveries that it has not acknowledged.
    pub unacknowledged: u64,
    /// Messages it has sent since its login, modulo 2^32.
    pub sends: u32,
    /// Deliveries handed to it since then, modulo 2^32.
    pub deliveries: u32,
}

/// What is known of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserGlance<'a> {
    /// The name.
    pub name: &'a [u8],
    /// Messages that wait in the inbox.
    pub waiting_messages: u64,
    /// Log bytes of them.
    pub waiting_bytes: u64,
    /// For how long the oldest of them has waited at least, seconds; 0 for none.
    pub oldest_s: u64,
    /// Devices registered.
    pub devices: u8,
    /// Of them, connected.
    pub connected: u8,
}

impl Shard {
    /// Places of sessions: all below may have one.
    pub fn session_places(&self) -> u32 {
        self.sessions.slots()
    }

    /// Places of users: all below have one.
    pub fn user_places(&self) -> u32 {
        self.users.len() as u32
    }

    /// The connection at this place, if there is one, logged in or not.
    pub fn conn_at(&self, slot: u32) -> Option<Conn> {
        let session = self.sessions.look_at(slot)?;
        Some(Conn { slot, generation: session.generation })
    }

    /// Who is logged in at this place, if anybody is.
    pub fn session_glance(&self, now: Now, slot: u32) -> Option<SessionGlance> {
        let session = self.sessions.look_at(slot).filter(|session| session.is_logged_in())?;
        let device = self.users.look_at(session.user)?.devices.get(usize::from(session.device))?;
        Some(SessionGlance {
            conn: Conn { slot, generation: session.generation },
            user: session.user,
            device: device.id,
            protocol: if session.kind == Kind::V1 { 1 } else { 2 },
            age_s: u64::from(now.mono_s().saturating_sub(device.since_s)),
            unacknowledged: session.unacknowledged(device.cursor),
            sends: session.sends,
            deliveries: session.deliveries,
        })
    }

    /// The user at this place.
    pub fn user_glance(&self, now: Now, at: UserIndex) -> Option<UserGlance<'_>> {
        let user = self.users.look_at(at)?;
        let inbox = user.inbox.as_deref();
        Some(UserGlance {
            name: &user.name,
            waiting_messages: inbox.map_or(0, |inbox| inbox.waiting() as u64),
            waiting_bytes: inbox.map_or(0, |inbox| inbox.bytes()),
            oldest_s: self.oldest_s(now, user),
            devices: user.devices.len() as u8,
            connected: user.devices.iter().filter(|device| device.slot != NO_SLOT).count() as u8,
        })
    }

    /// Cleaning may have copied it forward, where it looks younger. No inbox
    /// begins with a hole for long.
    fn oldest_s(&self, now: Now, user: &User) -> u64 {
        let entries = user.inbox.as_deref().into_iter().flat_map(|inbox| inbox.entries().take(64));
        let oldest = entries.map(|(_, entry)| entry).find(|entry| !entry.is_hole());
        oldest.map_or(0, |entry| self.ages.seconds(now, entry.lsn))
    }
}
