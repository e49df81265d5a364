//! A worker's part in an ordeal: beginning an act, keeping it going, seeing
//! that it is over.
//!
//! Witnesses talk by their schedule from the first act to the last, whatever
//! else is done here; so what is done is done in slices.

use std::io::{self, Write};

use super::sending::SHOTS_PER_TURN;
use super::{Phase, Worker, say};
use crate::acts::Act;
use crate::clock;
use crate::plan::{Arrivals, Plan, Rhythm, Rng};
use crate::scenario::Scenario;
use crate::spec::{Deafness, Ordeal, Word};
use crate::user::Stage;

/// Connections cut in one turn.
const CUT_SLICE: u32 = 64;
/// Users woken in one turn: each may have megabytes to read.
const WAKE_SLICE: u32 = 4;

/// Where a worker stands in an ordeal.
#[derive(Default)]
pub(super) struct Acting {
    /// What is played, and whether its end was told.
    act: Option<(Act, bool)>,
    /// What comes next, and when.
    cue: Option<(Act, u64)>,
    began_ns: u64,
    /// The closed loop, while there is one.
    pub(super) feed: Option<Feed>,
    /// What the crowd had done at the last progress, and when that was.
    advance: u64,
    advanced_ns: u64,
    /// The next user to be cut or woken; `None` when nobody is.
    next_user: Option<u32>,
    /// Users that have everything that waited for them, in a storm.
    served: Vec<bool>,
    served_count: u32,
    /// How visits end.
    pub(super) rng: Option<Rng>,
}

/// A closed loop over all flows in turn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Feed {
    left: u64,
    next_line: u32,
}

impl Worker<'_> {
    fn ordeal(&self) -> &Ordeal {
        self.spec.ordeal.as_ref().expect("only ordeals are played in acts")
    }

    /// The parent gives the cue for an act.
    pub(super) fn play(&mut self, act: Act, at_ns: u64) {
        self.phase = Phase::Acting;
        self.acting.cue = Some((act, at_ns));
    }

    /// When this has something to do.
    pub(super) fn acting_due_ns(&self, now_ns: u64) -> Option<u64> {
        if self.phase != Phase::Acting {
            return None;
        }
        if self.can_feed() || self.acting.next_user.is_some() {
            return Some(now_ns);
        }
        self.acting.cue.map(|(_, at_ns)| at_ns).or_else(|| self.ends_ns())
    }

    /// When the present act is over because its time is.
    fn ends_ns(&self) -> Option<u64> {
        let ordeal = self.ordeal();
        let (act, told) = self.acting.act?;
        let length_ns = match (act, self.spec.cast.scenario) {
            (Act::Calm, _) => ordeal.calm_ns,
            (Act::Ordeal, Scenario::Slow | Scenario::Churn | Scenario::Crusher) => {
                self.spec.duration_ns
            }
            _ => return None,
        };
        (!told).then_some(self.acting.began_ns.saturating_add(length_ns))
    }

    pub(super) fn act(&mut self, now_ns: u64, words: &mut impl Write) -> io::Result<()> {
        if let Some((act, at_ns)) = self.acting.cue.take_if(|(_, at_ns)| *at_ns <= now_ns) {
            self.begin(act, at_ns);
        }
        self.cut_or_wake(now_ns);
        self.feed();
        let Some((act, false)) = self.acting.act else { return Ok(()) };
        let is_over = self.is_over(act, now_ns);
        if is_over || self.is_stuck(now_ns) {
            self.figures.given_up += u64::from(!is_over);
            self.end(act, now_ns);
            self.acting.act = Some((act, true));
            say(words, &Word::Played(act))?;
        }
        Ok(())
    }

    fn begin(&mut self, act: Act, at_ns: u64) {
        self.acting.act = Some((act, false));
        self.acting.began_ns = at_ns;
        self.acting.advanced_ns = at_ns;
        self.begin_witnesses(at_ns);
        match act {
            Act::Fill => self.acting.feed = Some(Feed { left: self.ordeal().fill, next_line: 0 }),
            Act::Calm => self.stages.calm_ns = at_ns,
            Act::Ordeal => self.begin_ordeal(at_ns),
            Act::Collect => {
                self.stages.collect_ns = at_ns;
                self.fetch_everyone();
            }
        }
    }

    /// Has the witnesses talk from now on to the end, if they do not yet.
    pub(super) fn begin_witnesses(&mut self, at_ns: u64) {
        let spec = self.spec;
        self.witnesses.get_or_insert_with(|| {
            let rhythm = Rhythm {
                rate: spec.witness_rate,
                arrivals: Arrivals::Poisson,
                senders: spec.cast.witnesses,
                absent_share: 0.0,
                seed: !spec.seed ^ (u64::from(spec.base) << 20),
                offset: 0.0,
            };
            Plan::new(rhythm, at_ns, u64::MAX)
        });
    }

    /// Whether the ordeal itself is played now.
    pub(super) fn is_in_ordeal(&self) -> bool {
        self.acting.act == Some((Act::Ordeal, false))
    }

    fn begin_ordeal(&mut self, at_ns: u64) {
        let ordeal = *self.ordeal();
        self.stages.ordeal_ns = at_ns;
        self.window.from_ns = at_ns;
        self.window.to_ns = u64::MAX;
        let users = self.spec.cast.users() as usize;
        match self.spec.cast.scenario {
            Scenario::HotInbox => self.fetch_everyone(),
            Scenario::Storm => {
                self.dialer.set_rate(ordeal.reconnect_rate.unwrap_or(1e9));
                self.acting.served = vec![false; users];
                self.acting.next_user = Some(self.spec.cast.witnesses);
            }
            Scenario::Slow => {
                self.plan = Some(self.schedule(ordeal.rate.unwrap_or_default(), at_ns));
                self.fetch_everyone();
            }
            Scenario::Churn => {
                self.acting.rng = Some(Rng::new(self.spec.seed ^ u64::from(self.spec.base)));
                self.plan = Some(self.schedule(ordeal.visit_rate, at_ns));
            }
            Scenario::Crusher => match ordeal.rate {
                Some(rate) => self.plan = Some(self.schedule(rate, at_ns)),
                None => self.acting.feed = Some(Feed { left: u64::MAX, next_line: 0 }),
            },
            scenario => unreachable!("{scenario:?} is not played in acts"),
        }
    }

    /// The ordeal's own open-loop schedule.
    fn schedule(&self, rate: f64, at_ns: u64) -> Plan {
        let arrivals = match self.spec.load {
            crate::spec::Load::Open { arrivals, .. } => arrivals,
            crate::spec::Load::Closed { .. } => Arrivals::Constant,
        };
        let rhythm = Rhythm {
            rate,
            arrivals,
            senders: self.spec.cast.lines(),
            absent_share: 0.0,
            seed: self.spec.seed ^ (u64::from(self.spec.base) << 20),
            offset: 0.0,
        };
        Plan::new(rhythm, at_ns, self.spec.duration_ns)
    }

    /// Has everyone who is away log in, and everyone who is deaf read.
    fn fetch_everyone(&mut self) {
        for user in self.spec.cast.present()..self.spec.cast.users() {
            // Who is on a visit stays.
            self.users[user as usize].visit = None;
            if self.users[user as usize].stage == Stage::Away {
                self.want(user);
            }
        }
        if self.spec.cast.scenario == Scenario::Slow && self.stages.collect_ns != u64::MAX {
            self.acting.next_user = Some(self.spec.cast.present());
        }
    }

    fn is_over(&self, act: Act, now_ns: u64) -> bool {
        let crowd = self.book.crowd();
        let all_arrived = self.online == self.wanted
            && self.overdue == 0
            && crowd.sent >= crowd.given
            && crowd.received >= crowd.given;
        match (act, self.spec.cast.scenario) {
            (Act::Fill, _) => {
                self.acting.feed.is_none_or(|feed| feed.left == 0)
                    && self.overdue == 0
                    && crowd.sent >= crowd.given
            }
            (Act::Ordeal, Scenario::HotInbox) => all_arrived,
            (Act::Ordeal, Scenario::Storm) => {
                self.acting.next_user.is_none() && self.acting.served_count == self.spec.cast.online
            }
            (Act::Collect, _) => self.acting.next_user.is_none() && all_arrived,
            (Act::Calm | Act::Ordeal, _) => {
                let is_taken_up = self
                    .plan
                    .as_ref()
                    .is_none_or(|plan| plan.next_ns().is_none_or(|at| at > now_ns));
                self.ends_ns().is_some_and(|at| now_ns >= at) && is_taken_up
            }
        }
    }

    /// Whether the crowd has come no further for so long that it never will;
    /// the verification at the end says what is missing.
    fn is_stuck(&mut self, now_ns: u64) -> bool {
        let crowd = self.book.crowd();
        let advance = crowd.given + crowd.sent + crowd.received + self.figures.logins;
        if advance != self.acting.advance || self.ends_ns().is_some() {
            self.acting.advance = advance;
            self.acting.advanced_ns = now_ns;
        }
        now_ns.saturating_sub(self.acting.advanced_ns) > self.spec.drain_ns
    }

    fn end(&mut self, act: Act, now_ns: u64) {
        let crowd = self.book.crowd();
        match act {
            Act::Fill => {
                self.acting.feed = None;
                self.figures.filled = crowd.sent;
                self.figures.fill_ns = now_ns.saturating_sub(self.acting.began_ns);
            }
            Act::Ordeal => {
                self.acting.feed = None;
                self.plan = None;
                self.window.to_ns = now_ns;
                self.measure_cpu(now_ns);
            }
            Act::Calm | Act::Collect => {}
        }
    }

    /// No more acts, perhaps before the last one: what is on its way arrives.
    pub(super) fn end_acting(&mut self, now_ns: u64) {
        self.acting.feed = None;
        self.acting.cue = None;
        self.plan = None;
        self.witnesses = None;
        self.stages.end_ns = now_ns;
        self.phase = Phase::Collecting;
        self.last_activity_ns = now_ns;
        self.stages.collect_ns = self.stages.collect_ns.min(now_ns);
        self.fetch_everyone();
        let was_never_cut = self.stages.ordeal_ns == u64::MAX;
        if self.spec.cast.scenario == Scenario::Storm && was_never_cut {
            (self.spec.cast.witnesses..self.spec.cast.users())
                .for_each(|user| self.wake(user, now_ns));
        }
        // Without a turn of its own this phase does the rest at once.
        while self.acting.next_user.is_some() {
            self.cut_or_wake(now_ns);
        }
    }

    // The closed loop.

    fn can_feed(&self) -> bool {
        let crowd = self.book.crowd();
        let under_way = crowd.given.saturating_sub(crowd.sent) + self.overdue as u64;
        self.acting.feed.is_some_and(|feed| feed.left > 0) && under_way < self.ordeal().depth
    }

    fn feed(&mut self) {
        let now_ns = clock::now_ns();
        for _ in 0..SHOTS_PER_TURN {
            if !self.can_feed() {
                return;
            }
            let Some(feed) = &mut self.acting.feed else { return };
            let line = feed.next_line;
            feed.left -= 1;
            feed.next_line = (line + 1) % self.spec.cast.lines().max(1);
            self.hand_over(self.spec.cast.flow(line, false), now_ns);
        }
    }

    // The storm, and the end of slowness.

    /// Cuts the next of those that are to be cut, or wakes the next of those
    /// that are deaf. Those that were cut come back when all are.
    fn cut_or_wake(&mut self, now_ns: u64) {
        let Some(first) = self.acting.next_user else { return };
        let users = self.spec.cast.users();
        let slice = match self.spec.cast.scenario {
            Scenario::Storm => CUT_SLICE,
            _ => WAKE_SLICE,
        };
        let end = users.min(first + slice);
        for user in first..end {
            match self.spec.cast.scenario {
                Scenario::Storm => self.cut(user),
                _ => self.wake(user, now_ns),
            }
        }
        self.acting.next_user = (end < users).then_some(end);
        if self.acting.next_user.is_none() && self.spec.cast.scenario == Scenario::Storm {
            self.figures.cut_ns = clock::now_ns().saturating_sub(self.acting.began_ns);
            for user in self.spec.cast.witnesses..users {
                if self.users[user as usize].stage == Stage::Away {
                    self.users[user as usize].stage = Stage::Waiting;
                    self.dialer.add(user);
                }
            }
        }
    }

    fn cut(&mut self, user: u32) {
        self.hang_up(user, true);
        if let crate::user::Side::V2(session) = &mut self.users[user as usize].side {
            session.set_credit(client::session::CREDIT);
        }
    }

    pub(super) fn wake(&mut self, index: u32, now_ns: u64) {
        let by_credit = match (self.spec.cast.scenario, self.spec.ordeal) {
            (Scenario::Storm, _) => true,
            (Scenario::Slow, Some(ordeal)) => ordeal.deafness == Deafness::Credit,
            _ => false,
        };
        let user = &mut self.users[index as usize];
        user.deaf = false;
        user.awake_ns = now_ns;
        if by_credit && let crate::user::Side::V2(session) = &mut user.side {
            session.credit(client::session::CREDIT);
        }
        self.mark_dirty(index);
        if self.users[index as usize].stage == Stage::Online {
            self.recovered(index, now_ns);
            // What came meanwhile is not reported again.
            self.read(index, false);
        }
    }

    /// Something arrived at a user: is it served, is its visit over?
    pub(super) fn look_at(&mut self, index: u32, logged_in: bool, now_ns: u64) {
        if self.users[index as usize].visit.is_some() {
            self.go_on_visiting(index, logged_in, now_ns);
        }
        let in_storm = self.spec.cast.scenario == Scenario::Storm
            && self.is_in_ordeal()
            && self.acting.next_user.is_none();
        if !in_storm || self.spec.cast.is_witness(index) {
            return;
        }
        let since_ns = now_ns.saturating_sub(self.acting.began_ns);
        if logged_in {
            self.figures.back.record(since_ns);
        }
        let is_online = self.users[index as usize].stage == Stage::Online;
        let inbound = self.spec.cast.between(index ^ 1, index);
        let is_complete = inbound.is_some_and(|flow| self.book.is_complete(flow));
        let served = &mut self.acting.served[index as usize];
        if is_online && is_complete && !*served {
            *served = true;
            self.acting.served_count += 1;
            self.figures.served.record(since_ns);
        }
    }
}
