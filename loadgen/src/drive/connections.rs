//! The connections of a worker: dialing, logging in, reading, losing them and
//! coming back.

use std::cmp::Reverse;
use std::io::{self, ErrorKind};

use wire::refuse::Code;

use super::{AlarmKind, CHUNK_BYTES, Phase, Worker};
use crate::clock;
use crate::figures::{OUTAGES_MAX, Outage};
use crate::foreign;
use crate::intake::{Goodbye, Intake};
use crate::socket::{self, Ready};
use crate::user::{Side, Stage};

/// About as long as the answer to a login.
const WELCOME_BYTES: usize = 64;
/// How long a login may take before the connection counts as failed.
const LOGIN_NS_MAX: u64 = 30_000_000_000;
/// Failures in a row after which a user that was never logged in gives up.
const FIRST_ATTEMPTS_MAX: u32 = 6;

impl Worker<'_> {
    pub(super) fn dial(&mut self, index: u32, now_ns: u64) {
        let global = (self.spec.base + index) as usize;
        let target = self.spec.targets[global % self.spec.targets.len()];
        let from = (!self.spec.from.is_empty())
            .then(|| self.spec.from[global / self.spec.targets.len() % self.spec.from.len()]);
        let user = &mut self.users[index as usize];
        user.generation += 1;
        user.began_ns = now_ns;
        user.stage = Stage::Connecting;
        let token = u64::from(user.generation) << 32 | u64::from(index);
        let dialed = socket::dial(target, from).and_then(|socket| {
            self.poller.add(&socket, token)?;
            Ok(socket)
        });
        match dialed {
            Ok(socket) => {
                user.socket = Some(socket);
                let alarm = (now_ns + LOGIN_NS_MAX, index, AlarmKind::Login(user.generation));
                self.alarms.push(Reverse(alarm));
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EMFILE | libc::ENFILE) => {
                    self.fatal = Some(format!(
                        "{error}: raise the limit of open files or give more --workers"
                    ));
                }
                Some(libc::EADDRNOTAVAIL) if !self.spec.reconnect => {
                    self.fatal = Some(format!(
                        "{error}: no free local port or no such local address; give more addresses with --from"
                    ));
                }
                _ => self.failed(index, Some(&error), None),
            },
        }
    }

    /// Something happened on a user's socket.
    pub(super) fn ready(&mut self, ready: Ready) {
        let index = ready.token as u32;
        let user = &mut self.users[index as usize];
        if user.generation != (ready.token >> 32) as u32 {
            return;
        }
        if user.stage == Stage::Connecting {
            let Some(socket) = &user.socket else { return };
            match socket::connected(socket) {
                Ok(()) if ready.writable => {
                    user.greet();
                    self.flush(index);
                    if matches!(self.users[index as usize].side, Side::Relay(_)) {
                        let now_ns = clock::now_ns();
                        self.logged_in(index, now_ns);
                        self.catch_up(index, now_ns);
                    }
                }
                Ok(()) => return,
                Err(error) => return self.failed(index, Some(&error), None),
            }
        } else if ready.writable {
            self.flush(index);
        }
        let user = &self.users[index as usize];
        let ignores = user.deaf && user.stage == Stage::Online && !ready.ending;
        if ready.readable && !ignores {
            self.read(index, ready.ending);
        }
    }

    pub(super) fn read(&mut self, index: u32, ending: bool) {
        loop {
            let user = &self.users[index as usize];
            let Some(socket) = &user.socket else { return };
            // Who is about to be deaf takes its welcome and no more.
            let most = if user.deaf && !ending { WELCOME_BYTES } else { CHUNK_BYTES };
            match socket::read(socket, &mut self.chunk[..most]) {
                Ok(0) => return self.lost(index, None),
                Ok(n) => {
                    self.received(index, n);
                    let user = &self.users[index as usize];
                    let is_deaf = user.deaf && user.stage == Stage::Online;
                    if (n < most || is_deaf) && !ending {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.lost(index, None),
            }
        }
    }

    fn received(&mut self, index: u32, n: usize) {
        let now_ns = clock::now_ns();
        let user = &mut self.users[index as usize];
        let bytes = &self.chunk[..n];
        let mut intake = Intake {
            spec: self.spec,
            book: &mut self.book,
            figures: &mut self.figures,
            window: self.window,
            disturbed: &self.disturbed,
            stages: self.stages,
            user: index,
            generation: user.generation,
            began_ns: user.began_ns.max(user.awake_ns),
            now_ns,
            answers: &mut self.answers,
            ack: 0,
            ack_ids: Vec::new(),
            has_arrived: false,
            logged_in: false,
            goodbye: None,
        };
        let broken = match &mut user.side {
            Side::V2(session) => {
                let result =
                    session.receive(now_ns / 1_000_000, bytes, |event| intake.event(event));
                session.ack(intake.ack);
                if !user.ticking
                    && let Some(deadline_ms) = session.deadline_ms()
                {
                    user.ticking = true;
                    let alarm = (deadline_ms * 1_000_000, index, AlarmKind::Tick);
                    self.alarms.push(Reverse(alarm));
                }
                result.is_err()
            }
            Side::V1(session) => {
                let result = session.receive(bytes, |event| intake.event_v1(event));
                intake.ack_ids.iter().for_each(|id| session.ack(*id));
                result.is_err()
            }
            Side::Relay(end) => {
                end.receive(bytes, self.spec.size, |body| intake.relayed(body));
                if intake.has_arrived {
                    end.acknowledge(self.spec.size);
                }
                false
            }
            Side::Foreign(end) => {
                let result = end.receive(bytes, |event| intake.event_foreign(event));
                // Refused, or no such server: it will not be better next time.
                if let (Err(foreign::Broken(why)), Stage::Greeting) = (&result, user.stage) {
                    self.fatal = Some(why.clone());
                }
                result.is_err()
            }
        };
        let (logged_in, goodbye) = (intake.logged_in, intake.goodbye);
        self.note_activity(now_ns);
        if broken {
            self.figures.errors += 1;
            return self.lost(index, None);
        }
        if logged_in {
            self.logged_in(index, now_ns);
        }
        self.catch_up(index, now_ns);
        self.answer(now_ns);
        self.mark_dirty(index);
        self.look_at(index, logged_in, now_ns);
        if let Some(goodbye) = goodbye {
            self.lost(index, Some(goodbye));
        }
    }

    /// The closed loop: each arrival is answered by the next message.
    fn answer(&mut self, now_ns: u64) {
        while let Some(flow) = self.answers.pop() {
            if self.phase == Phase::Sending && now_ns < self.window.to_ns {
                self.hand_over(flow, now_ns);
            }
        }
    }

    fn logged_in(&mut self, index: u32, now_ns: u64) {
        let user = &mut self.users[index as usize];
        if user.stage != Stage::Greeting {
            return;
        }
        user.stage = Stage::Online;
        user.attempts = 0;
        self.dialer.arrived();
        self.online += 1;
        self.figures.logins += 1;
        self.figures.login.record(now_ns.saturating_sub(user.began_ns));
        self.last_activity_ns = now_ns;
        self.recovered(index, now_ns);
        if std::mem::take(&mut self.users[index as usize].missed) {
            self.missed -= 1;
            let all_back = self.missed == 0;
            let now_ms = clock::unix_ms();
            if let Some(outage) = self.figures.outages.last_mut() {
                outage.first_back_ms.get_or_insert(now_ms);
                outage.all_back_ms = all_back.then_some(now_ms);
            }
        }
    }

    /// A connection ended, or the server said that it will.
    pub(super) fn lost(&mut self, index: u32, goodbye: Option<Goodbye>) {
        let user = &mut self.users[index as usize];
        match user.stage {
            Stage::Away | Stage::Waiting => {}
            Stage::Connecting | Stage::Greeting => self.failed(index, None, goodbye),
            Stage::Online => {
                user.disconnected();
                user.missed = true;
                self.missed += 1;
                self.online -= 1;
                self.figures.lost_connections += 1;
                self.note_outage();
                self.retry(index, goodbye);
            }
        }
    }

    /// The first connection of all that are missed now begins an outage.
    fn note_outage(&mut self) {
        let outages = &mut self.figures.outages;
        if self.missed == 1 && outages.len() < OUTAGES_MAX {
            outages.push(Outage {
                began_ms: clock::unix_ms(),
                first_back_ms: None,
                all_back_ms: None,
            });
        } else if let Some(outage) = outages.last_mut() {
            outage.all_back_ms = None;
        }
    }

    fn retry(&mut self, index: u32, goodbye: Option<Goodbye>) {
        let user = &mut self.users[index as usize];
        let refused = goodbye.and_then(|goodbye| goodbye.code).is_some_and(is_final);
        if !self.spec.reconnect || refused {
            user.stage = Stage::Away;
            return;
        }
        user.stage = Stage::Waiting;
        let wait_ns = goodbye.map_or(0, |goodbye| goodbye.wait_ns);
        self.dialer.again(index, user.attempts, wait_ns, clock::now_ns());
        user.attempts += 1;
    }

    /// Ends a connection from this side, by a reset or by closing.
    pub(super) fn hang_up(&mut self, index: u32, by_reset: bool) {
        let user = &mut self.users[index as usize];
        if user.stage != Stage::Online {
            return;
        }
        if let Some(socket) = user.socket.as_ref().filter(|_| by_reset) {
            // It ends in any case, if need be politely.
            let _polite = socket::reset_on_close(socket);
        }
        user.disconnected();
        user.stage = Stage::Away;
        self.online -= 1;
    }

    /// A connection did not come about.
    fn failed(&mut self, index: u32, error: Option<&io::Error>, goodbye: Option<Goodbye>) {
        let user = &mut self.users[index as usize];
        user.disconnected();
        self.dialer.arrived();
        self.figures.failed_connects += 1;
        let code = goodbye.and_then(|goodbye| goodbye.code);
        let never_in =
            self.figures.logins == 0 || (self.phase == Phase::Gathering && !self.spec.reconnect);
        let give_up = code.is_some_and(is_final) || user.attempts + 1 >= FIRST_ATTEMPTS_MAX;
        if never_in && give_up {
            let why = match (error, code) {
                (Some(error), _) => error.to_string(),
                (None, Some(code)) => format!("the server says: {}", code.text()),
                (None, None) => "the server closed the connection during the login".to_owned(),
            };
            self.fatal = Some(why);
            return;
        }
        // Before everyone is there, a first failure is tried again in any case.
        if self.phase == Phase::Gathering && !code.is_some_and(is_final) {
            user.stage = Stage::Waiting;
            let wait_ns = goodbye.map_or(0, |goodbye| goodbye.wait_ns);
            self.dialer.again(index, user.attempts, wait_ns, clock::now_ns());
            user.attempts += 1;
        } else {
            self.retry(index, goodbye);
        }
    }

    pub(super) fn ring_alarms(&mut self, now_ns: u64) {
        while self.alarms.peek().is_some_and(|Reverse((at, _, _))| *at <= now_ns) {
            let Reverse((_, index, kind)) = self.alarms.pop().expect("it was just seen");
            let user = &mut self.users[index as usize];
            match kind {
                AlarmKind::Tick => {
                    if let Side::V2(session) = &mut user.side {
                        session.tick(now_ns / 1_000_000);
                        user.ticking = false;
                        if let Some(deadline_ms) = session.deadline_ms() {
                            // Rounded up: a deadline in this millisecond is over.
                            let at = (deadline_ms * 1_000_000).max(now_ns + 1_000_000);
                            self.alarms.push(Reverse((at, index, AlarmKind::Tick)));
                            user.ticking = true;
                        }
                        self.mark_dirty(index);
                    }
                }
                AlarmKind::Wake => self.wake(index, now_ns),
                AlarmKind::Login(generation) => {
                    let waits = matches!(user.stage, Stage::Connecting | Stage::Greeting);
                    if waits && user.generation == generation {
                        let error = io::Error::new(ErrorKind::TimedOut, "the login took too long");
                        self.failed(index, Some(&error), None);
                    }
                }
            }
        }
    }
}

/// Whether a refused login is refused for good.
fn is_final(code: Code) -> bool {
    matches!(
        code,
        Code::Malformed
            | Code::Version
            | Code::AuthFailed
            | Code::TooLarge
            | Code::TooManyDevices
            | Code::BadCursor
            | Code::Unsupported
            | Code::BadName
            | Code::Replaced
    )
}
