//! Churn: a connection comes, says a few things to its partner and goes, in one
//! of several ways. The times at which visits are meant to begin are fixed.

use super::Worker;
use crate::clock;
use crate::plan::Shot;
use crate::user::{Leave, Side, Stage, Visit};

impl Worker<'_> {
    /// It is time for a visit of this user.
    pub(super) fn visit(&mut self, shot: Shot) {
        let index = self.spec.cast.present() + shot.sender;
        self.figures.lag.record(clock::now_ns().saturating_sub(shot.intended_ns));
        if self.users[index as usize].stage != Stage::Away {
            // Open loop: nobody waits for the last one to end.
            self.figures.visits_skipped += 1;
            return;
        }
        let leave = match self.acting.rng.as_mut().map_or(0, |rng| rng.below(4)) {
            0 => Leave::Abrupt,
            1 => Leave::Reset,
            _ => Leave::Close,
        };
        self.figures.visits += 1;
        self.users[index as usize].visit = Some(Visit { intended_ns: shot.intended_ns, leave });
        self.want(index);
    }

    /// Says what it came for, and goes when that has been heard.
    pub(super) fn go_on_visiting(&mut self, index: u32, logged_in: bool, now_ns: u64) {
        if logged_in {
            let messages = self.spec.ordeal.map_or(0, |ordeal| ordeal.visit_messages);
            if let Some(flow) = self.spec.cast.answer(index) {
                for _ in 0..messages {
                    self.hand_over(flow, clock::now_ns());
                }
            }
            self.flush(index);
        }
        let user = &self.users[index as usize];
        let Some(visit) = user.visit else { return };
        let is_heard = matches!(&user.side, Side::V2(session) if session.unsent() == 0);
        let goes = user.stage == Stage::Online && (is_heard || visit.leave == Leave::Abrupt);
        if !goes {
            return;
        }
        if is_heard {
            self.figures.visit.record(now_ns.saturating_sub(visit.intended_ns));
        }
        // Acknowledgements leave with it.
        if visit.leave != Leave::Abrupt {
            self.flush(index);
        }
        self.users[index as usize].visit = None;
        let by_reset = visit.leave != Leave::Close;
        self.figures.resets += u64::from(by_reset);
        self.hang_up(index, by_reset);
        self.wanted -= 1;
    }
}
