//! The census for `/top`: which connections and users are the worst.
//!
//! Nothing is done until somebody asks, and then a few hundred places in a
//! turn at most, so that a million connections do not stall one. At most one census is
//! begun in a second, however many ask.

use std::sync::atomic::Ordering;

use shard::{SessionGlance, UserGlance};

use super::Core;
use super::inbound::id;
use crate::admin::{ConnRow, Greatest, Order, Row, Worst, shown};

/// Places looked at in one turn: each costs a few cache misses.
const PLACES_PER_TURN: u32 = 512;
/// From the beginning of one census to that of the next.
const EVERY_NS: u64 = 1_000_000_000;

/// A core's part in answering.
#[derive(Default)]
pub(super) struct Census {
    /// The request that the last census was begun for.
    answered: u64,
    began_ns: u64,
    looking: Option<Looking>,
    /// Found, and the admin thread was just looking.
    found: Option<Box<Worst>>,
}

/// A census that is under way.
#[derive(Default)]
struct Looking {
    next_session: u32,
    next_user: u32,
    /// By [`Order`]; the last one is of users.
    sessions: [Greatest<SessionGlance>; Order::Inbox as usize],
    /// Users by place.
    users: Greatest<u32>,
}

impl Census {
    /// Whether the next turn has something to do for it.
    pub(super) fn is_hungry(&self) -> bool {
        self.looking.is_some() || self.found.is_some()
    }
}

impl Core {
    /// Begins a census, if somebody asks; called at each tick.
    pub(super) fn begin_census(&mut self) {
        let asked = self.shared.board.asked().load(Ordering::Relaxed);
        let census = &mut self.census;
        let is_due = self.now.mono_ns - census.began_ns >= EVERY_NS;
        if asked != census.answered && census.looking.is_none() && is_due {
            census.answered = asked;
            census.began_ns = self.now.mono_ns;
            census.looking = Some(Looking::default());
        }
    }

    /// Looks at some more.
    pub(super) fn census(&mut self) {
        if let Some(mut looking) = self.census.looking.take() {
            if self.look_on(&mut looking) {
                self.census.looking = Some(looking);
            } else {
                self.census.found = Some(Box::new(self.describe(looking)));
            }
        }
        if let Some(found) = self.census.found.take() {
            self.census.found = self.shared.board.publish_worst(self.id, found).err();
        }
    }

    /// Whether there is more to look at.
    fn look_on(&self, looking: &mut Looking) -> bool {
        let sessions = self.shard.session_places().saturating_sub(looking.next_session);
        let sessions = sessions.min(PLACES_PER_TURN);
        for slot in (looking.next_session..).take(sessions as usize) {
            if let Some(glance) = self.shard.session_glance(self.now, slot) {
                for ((order, _), greatest) in Order::ALL.iter().zip(&mut looking.sessions) {
                    greatest.offer(self.measure_of(*order, &glance), || glance);
                }
            }
        }
        looking.next_session += sessions;
        let users = self.shard.user_places().saturating_sub(looking.next_user);
        let users = users.min(PLACES_PER_TURN - sessions);
        for place in (looking.next_user..).take(users as usize) {
            if let Some(user) = self.shard.user_glance(self.now, place) {
                looking.users.offer(user.waiting_messages, || place);
            }
        }
        looking.next_user += users;
        sessions + users > 0
    }

    fn measure_of(&self, order: Order, glance: &SessionGlance) -> u64 {
        match order {
            Order::Unsent => self.hands.unsent(id(glance.conn)) as u64,
            Order::Unacknowledged => glance.unacknowledged,
            Order::Sent => glance.sends.into(),
            Order::Received => glance.deliveries.into(),
            Order::Inbox => 0,
        }
    }

    /// The names come last: of those that are the worst.
    fn describe(&self, looking: Looking) -> Worst {
        let Looking { sessions, users, .. } = looking;
        let mut rows: [Vec<Row>; Order::COUNT] = Default::default();
        for (rows, greatest) in rows.iter_mut().zip(sessions) {
            let of = |glance: SessionGlance| {
                let user = self.shard.user_glance(self.now, glance.user)?;
                Some(Row { conn: Some(self.conn_row(&glance)), ..self.row(&user) })
            };
            rows.extend(greatest.finish().filter_map(of));
        }
        let users = users.finish().filter_map(|place| self.shard.user_glance(self.now, place));
        rows[Order::Inbox as usize].extend(users.map(|user| self.row(&user)));
        Worst { at_mono_ns: self.now.mono_ns, rows }
    }

    fn row(&self, user: &UserGlance<'_>) -> Row {
        Row {
            user: shown(user.name),
            shard: self.id,
            inbox_messages: user.waiting_messages,
            inbox_bytes: user.waiting_bytes,
            oldest_s: user.oldest_s,
            devices: user.devices,
            connected: user.connected,
            conn: None,
        }
    }

    fn conn_row(&self, glance: &SessionGlance) -> ConnRow {
        ConnRow {
            device: glance.device,
            protocol: glance.protocol,
            age_s: glance.age_s,
            unsent_bytes: self.hands.unsent(id(glance.conn)) as u64,
            unacknowledged: glance.unacknowledged,
            sent: glance.sends.into(),
            received: glance.deliveries.into(),
        }
    }
}
