//! What arrives at a user, entered into the book and the figures.

use client::{Event, v1};
use wire::id::MessageId;
use wire::refuse::Code;

use crate::body::Body;
use crate::figures::{Figures, Refused};
use crate::foreign;
use crate::scenario::Scenario;
use crate::spec::{Load, Spec};
use crate::verify::Book;

/// The part of a run that is measured, monotonic nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// Its beginning; `u64::MAX` until it is known.
    pub(crate) from_ns: u64,
    /// Its end.
    pub(crate) to_ns: u64,
}

impl Window {
    /// Whether a time lies in the window.
    pub(crate) fn holds(&self, ns: u64) -> bool {
        (self.from_ns..self.to_ns).contains(&ns)
    }
}

/// When the acts of an ordeal were played, as far as they have begun.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stages {
    /// The calm began.
    pub(crate) calm_ns: u64,
    /// The ordeal began.
    pub(crate) ordeal_ns: u64,
    /// It ended, and others began to collect.
    pub(crate) collect_ns: u64,
    /// The end of all.
    pub(crate) end_ns: u64,
}

impl Stages {
    /// Nothing has begun.
    pub(crate) const NONE: Stages =
        Stages { calm_ns: u64::MAX, ordeal_ns: u64::MAX, collect_ns: u64::MAX, end_ns: u64::MAX };
}

/// One read's worth of arrivals at one user.
pub(crate) struct Intake<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) book: &'a mut Book,
    pub(crate) figures: &'a mut Figures,
    pub(crate) window: Window,
    pub(crate) stages: Stages,
    /// For each user until when it was disturbed on purpose.
    pub(crate) disturbed: &'a [u64],
    pub(crate) user: u32,
    pub(crate) generation: u32,
    /// When the user's connection was started, or when it began to read.
    pub(crate) began_ns: u64,
    pub(crate) now_ns: u64,
    /// Flows in which a closed loop sends the next message.
    pub(crate) answers: &'a mut Vec<usize>,
    /// What to acknowledge in protocol v2.
    pub(crate) ack: u64,
    /// What to acknowledge in protocol v1.
    pub(crate) ack_ids: Vec<MessageId>,
    /// Something came that a relay which answers is told of.
    pub(crate) has_arrived: bool,
    /// The login succeeded.
    pub(crate) logged_in: bool,
    /// The server ends the connection or refuses the login.
    pub(crate) goodbye: Option<Goodbye>,
}

/// Why the server ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Goodbye {
    /// Its code, if one was given.
    pub(crate) code: Option<Code>,
    /// When to come back, nanoseconds from now.
    pub(crate) wait_ns: u64,
}

impl Intake<'_> {
    /// An event of protocol v2.
    pub(crate) fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Welcome(_) => self.logged_in = true,
            Event::Sent { body, .. } => self.sent(body),
            Event::Deliver { deliver, .. } => {
                self.ack = deliver.inbox_seq;
                self.delivered(deliver.body);
            }
            Event::Gap { .. } => self.figures.gaps += 1,
            Event::Held { code, .. } => {
                self.figures.held += 1;
                self.figures.refused(Refused::Message, code);
            }
            // No run takes the seven days after which a server may forget.
            Event::Lost { to, first, last } | Event::Forgotten { to, first, last } => {
                if let Some(flow) = self.flow_to(to) {
                    let after_outage = self.figures.lost_connections > 0;
                    self.book.forgotten(flow, first, last, after_outage);
                }
            }
            Event::Refused { to, seq, code, .. } => {
                if let Some(flow) = self.flow_to(to) {
                    self.book.refused(flow, seq, code);
                }
            }
            Event::Goaway { code, reconnect_after_ms, .. } => {
                self.figures.refused(Refused::Login, code);
                let wait_ns = u64::from(reconnect_after_ms) * 1_000_000;
                self.goodbye = Some(Goodbye { code: Code::from_u16(code), wait_ns });
            }
            Event::Error { .. } => self.figures.errors += 1,
            // A server with older data has lost what it confirmed: the login that
            // it refused ends the run.
            Event::StartsOver { .. } | Event::Delivered { .. } | Event::Pong { .. } => {}
        }
    }

    /// An event of protocol v1.
    pub(crate) fn event_v1(&mut self, event: v1::Event<'_>) {
        match event {
            v1::Event::LoginOk => self.logged_in = true,
            v1::Event::Deliver { id, body } => {
                self.ack_ids.push(id);
                self.delivered(body);
            }
            v1::Event::AuthFailed => {
                self.figures.errors += 1;
                self.goodbye = Some(Goodbye { code: Some(Code::AuthFailed), wait_ns: 0 });
            }
            v1::Event::LoginRateLimited => {
                self.figures.refused(Refused::Login, Code::RateLimited as u16);
                self.goodbye = Some(Goodbye { code: Some(Code::RateLimited), wait_ns: 0 });
            }
            v1::Event::RateLimited { .. } => {
                self.figures.held += 1;
                self.figures.refused(Refused::Message, Code::RateLimited as u16);
            }
            v1::Event::Error { .. } => self.figures.errors += 1,
            v1::Event::Status { .. } | v1::Event::Prekeys { .. } => {}
        }
    }

    /// An event of another server's protocol.
    pub(crate) fn event_foreign(&mut self, event: foreign::Event<'_>) {
        match event {
            foreign::Event::LoggedIn => self.logged_in = true,
            foreign::Event::Sent(body) => self.confirmed(&body),
            foreign::Event::Delivered(bytes) => self.delivered(bytes),
        }
    }

    fn sent(&mut self, bytes: &[u8]) {
        let body = Body::read(bytes, self.spec.size).expect("the outbox keeps what it was given");
        self.confirmed(&body);
    }

    fn confirmed(&mut self, body: &Body) {
        let flow = self.flow_of(body).expect("only flows of the run are sent");
        self.book.sent(flow, body.number);
        if self.spec.cast.is_witnessed(flow) {
            return;
        }
        if self.window.holds(self.now_ns) {
            self.figures.window_sent += 1;
        }
        // Who left before hearing of it hears of it on its next visit, whenever
        // that is: no latency of the server's.
        let comes_and_goes = self.spec.cast.scenario == Scenario::Churn;
        let is_of_old = comes_and_goes && body.handed_ns < self.began_ns;
        if self.is_disturbed(body) {
            self.figures.disturbed.record(self.now_ns.saturating_sub(body.intended_ns));
        } else if body.intended_ns >= self.window.from_ns && !is_of_old {
            self.figures.sent.record(self.now_ns.saturating_sub(body.intended_ns));
            self.figures.sent_service.record(self.now_ns.saturating_sub(body.handed_ns));
        }
    }

    /// A message out of a relay: the partner's, or one's own if it answers.
    pub(crate) fn relayed(&mut self, bytes: &[u8]) {
        let Some(body) = Body::read(bytes, self.spec.size) else {
            return self.book.corrupt(self.user);
        };
        let is_own = body.run == self.spec.run
            && body.sender.checked_sub(self.spec.base) == Some(self.user)
            && self.flow_of(&body).is_some();
        if self.spec.confirm && is_own {
            return self.confirmed(&body);
        }
        self.has_arrived = self.spec.confirm;
        self.arrived(&body);
    }

    /// A message of any protocol.
    pub(crate) fn delivered(&mut self, bytes: &[u8]) {
        let Some(body) = Body::read(bytes, self.spec.size) else {
            return self.book.corrupt(self.user);
        };
        self.arrived(&body);
    }

    fn arrived(&mut self, body: &Body) {
        let mine = body.run == self.spec.run
            && body.recipient.checked_sub(self.spec.base) == Some(self.user);
        let Some(flow) = self.flow_of(body).filter(|_| mine) else {
            return self.book.foreign(self.user);
        };
        let fresh = self.book.received(flow, body.number, self.generation);
        if !fresh {
            return;
        }
        if self.spec.cast.is_witnessed(flow) {
            return self.witnessed(body);
        }
        if self.window.holds(self.now_ns) {
            self.figures.window_received += 1;
        }
        // What was there before its recipient was there, too.
        let waited = self.spec.cast.is_absent(self.user) || self.spec.ordeal.is_some();
        if waited && body.intended_ns < self.began_ns {
            self.figures.collected.record(self.now_ns.saturating_sub(self.began_ns));
        } else if self.is_disturbed(body) {
            self.figures.disturbed.record(self.now_ns.saturating_sub(body.intended_ns));
        } else if body.intended_ns >= self.window.from_ns {
            self.figures.delivered.record(self.now_ns.saturating_sub(body.intended_ns));
            self.figures.delivered_service.record(self.now_ns.saturating_sub(body.handed_ns));
        }
        if matches!(self.spec.load, Load::Closed { .. }) {
            self.answers.extend(self.spec.cast.answer(self.user));
        }
    }

    /// Whether sender or recipient was cut or stopped on purpose after the
    /// message was due.
    fn is_disturbed(&self, body: &Body) -> bool {
        let until_ns = |user: u32| self.disturbed[(user - self.spec.base) as usize];
        body.intended_ns < until_ns(body.sender).max(until_ns(body.recipient))
    }

    /// What others see while something is done to the crowd.
    fn witnessed(&mut self, body: &Body) {
        let due_ns = body.intended_ns;
        let latency = match self.stages {
            stages if due_ns < stages.calm_ns || due_ns >= stages.end_ns => return,
            stages if due_ns < stages.ordeal_ns => &mut self.figures.witness_before,
            stages if due_ns < stages.collect_ns => &mut self.figures.witness_during,
            _ => &mut self.figures.witness_after,
        };
        latency.record(self.now_ns.saturating_sub(due_ns));
    }

    /// The flow from this user to that name.
    fn flow_to(&self, to: &[u8]) -> Option<usize> {
        self.spec.cast.between(self.user, self.spec.user(to)?)
    }

    fn flow_of(&self, body: &Body) -> Option<usize> {
        let sender = body.sender.checked_sub(self.spec.base)?;
        let recipient = body.recipient.checked_sub(self.spec.base)?;
        self.spec.cast.between(sender, recipient)
    }
}
