//! Handing due messages to their senders' sessions, and what these have to say
//! to their sockets.
//!
//! A message whose time has come is sent or kept, never dropped: where a
//! sender's outbox is full, because the server does not confirm, or where a
//! protocol without an outbox has no connection, it waits in order and leaves as
//! soon as it can. Its latency counts from its intended time all the same.

use client::SendError;

use super::{Phase, Worker};
use crate::body::Body;
use crate::clock;
use crate::scenario::Scenario;
use crate::user::{Overdue, Side, Stage};

/// Messages taken up before sockets get their turn.
pub(super) const SHOTS_PER_TURN: usize = 512;
/// Messages that one worker keeps for senders that cannot send, 16 bytes each.
/// Further ones are counted, and the run has failed.
const OVERDUE_MAX: usize = 2 << 20;

impl Worker<'_> {
    pub(super) fn shoot(&mut self) {
        if !matches!(self.phase, Phase::Sending | Phase::Acting) {
            return;
        }
        for _ in 0..SHOTS_PER_TURN {
            let now_ns = clock::now_ns();
            if let Some(shot) = self.witnesses.as_mut().and_then(|plan| plan.due(now_ns)) {
                self.hand_over(shot.sender as usize, shot.intended_ns);
                continue;
            }
            if self.spec.cast.scenario == Scenario::Churn {
                let Some(shot) = self.plan.as_mut().and_then(|plan| plan.due(now_ns)) else {
                    return;
                };
                self.visit(shot);
                continue;
            }
            let Some(shot) = self.plan.as_mut().and_then(|plan| plan.due(now_ns)) else { return };
            self.hand_over(self.spec.cast.flow(shot.sender, shot.to_absent), shot.intended_ns);
        }
    }

    /// Takes up a flow's next message, which is due: to its sender's session, or
    /// behind those that wait for it already.
    pub(super) fn hand_over(&mut self, flow: usize, intended_ns: u64) {
        let now_ns = clock::now_ns();
        let lag_ns = now_ns.saturating_sub(intended_ns);
        self.lag_ns = self.lag_ns.max(lag_ns);
        // While a server is dead, taking down and taking up connections is what
        // is measured; the lateness still counts in every latency.
        let follows_times =
            self.acting.feed.is_none() && self.spec.cast.scenario != Scenario::Churn;
        let is_timed = follows_times || self.spec.cast.is_witnessed(flow);
        let from_ns = self.window.from_ns.min(self.stages.calm_ns);
        let is_after = intended_ns >= self.stages.collect_ns;
        if intended_ns >= from_ns && !is_after && self.missed == 0 && is_timed {
            self.figures.lag.record(lag_ns);
        }
        let sender = self.spec.cast.sender(flow);
        let waits = !self.users[sender as usize].overdue.is_empty();
        if waits || !self.give(flow, intended_ns, now_ns) {
            if self.overdue >= OVERDUE_MAX {
                self.figures.skipped += 1;
                return;
            }
            self.overdue += 1;
            self.figures.kept += 1;
            let overdue = Overdue { flow: flow as u32, intended_ns };
            self.users[sender as usize].overdue.push_back(overdue);
        }
        if self.window.holds(now_ns) && !self.spec.cast.is_witnessed(flow) {
            self.figures.window_given += 1;
        }
    }

    /// Sends what a user could not send before, as far as there is room now.
    pub(super) fn catch_up(&mut self, index: u32, now_ns: u64) {
        while let Some(first) = self.users[index as usize].overdue.front() {
            let (flow, intended_ns) = (first.flow as usize, first.intended_ns);
            if !self.give(flow, intended_ns, now_ns) {
                return;
            }
            let late_ns = now_ns.saturating_sub(intended_ns);
            self.figures.kept_ns_max = self.figures.kept_ns_max.max(late_ns);
            self.users[index as usize].overdue.pop_front();
            self.overdue -= 1;
        }
    }

    /// Gives a flow's next message to its sender's session; false when that
    /// takes none now.
    fn give(&mut self, flow: usize, intended_ns: u64, now_ns: u64) -> bool {
        let spec = self.spec;
        let (sender, recipient) = (spec.cast.sender(flow), spec.cast.recipient(flow));
        let number = self.book.next_number(flow);
        let body = Body {
            run: spec.run,
            sender: spec.base + sender,
            recipient: spec.base + recipient,
            number,
            intended_ns,
            handed_ns: now_ns,
        };
        self.body.clear();
        body.put(&mut self.body, spec.size);
        let user = &mut self.users[sender as usize];
        match &mut user.side {
            Side::V2(session) => {
                let to = self.names.of(recipient).as_bytes();
                match session.send(to, &self.body, spec.class.class()) {
                    Ok(seq) => assert_eq!(seq, number, "session and book count alike"),
                    Err(SendError::Full) => return false,
                    Err(error) => unreachable!("names and bodies are bounded: {error:?}"),
                }
            }
            // Without confirmations only those who are there can send.
            Side::V1(_) | Side::Relay(_) | Side::Foreign(_) if user.stage != Stage::Online => {
                return false;
            }
            Side::V1(session) => {
                session.send_seq(self.names.of(recipient).as_bytes(), number, &self.body);
            }
            Side::Relay(end) => end.send(&self.body),
            Side::Foreign(end) => {
                if !end.send(self.names.of(recipient), &self.body, body) {
                    return false;
                }
            }
        }
        self.book.given(flow);
        self.mark_dirty(sender);
        true
    }

    pub(super) fn mark_dirty(&mut self, index: u32) {
        let user = &mut self.users[index as usize];
        if !user.dirty {
            user.dirty = true;
            self.dirty.push(index);
        }
    }

    pub(super) fn flush_dirty(&mut self) {
        while let Some(index) = self.dirty.pop() {
            self.users[index as usize].dirty = false;
            self.flush(index);
        }
    }

    pub(super) fn flush(&mut self, index: u32) {
        let user = &mut self.users[index as usize];
        if !matches!(user.stage, Stage::Greeting | Stage::Online) {
            return;
        }
        if user.flush(&mut self.scratch).is_err() {
            self.lost(index, None);
        }
    }
}
