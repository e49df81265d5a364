//! One worker: its users' sockets, the schedule, and the phases of a run, in
//! one loop on one thread.
//!
//! The loop never waits for the server: what is due is handed over first, then
//! sockets are served, then it sleeps until the next thing is due.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, ErrorKind, Write};
use std::os::fd::BorrowedFd;

use client::SendError;
use wire::refuse::Code;

use crate::body::Body;
use crate::clock;
use crate::dial::Dialer;
use crate::figures::{Figures, OUTAGES_MAX, Outage, Progress};
use crate::intake::{Goodbye, Intake, Window};
use crate::plan::{Plan, Rhythm};
use crate::scenario::Scenario;
use crate::socket::{self, Poller, Ready};
use crate::spec::{ClassChoice, Load, Order, Protocol, Spec, Word};
use crate::user::{Side, Stage, User};
use crate::verify::{Book, Leniency};

/// Bytes of one read.
const CHUNK_BYTES: usize = 64 * 1024;
/// Events of one wait: each may be a connection to take down, which costs the
/// kernel tens of microseconds, and the schedule waits for all of them.
const EVENTS_MAX: usize = 128;
/// Messages handed over before sockets get their turn.
const SHOTS_PER_TURN: usize = 512;
/// How long a login may take before the connection counts as failed.
const LOGIN_NS_MAX: u64 = 30_000_000_000;
/// Failures in a row after which a user that was never logged in gives up.
const FIRST_ATTEMPTS_MAX: u32 = 6;
/// See [`Worker::patience_ns`].
const LOSSY_PATIENCE_NS: u64 = 3_000_000_000;
const PROGRESS_NS: u64 = 1_000_000_000;
const WAIT_NS_MAX: u64 = 100_000_000;

const ORDERS: u64 = u64::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Connecting, or waiting for the start.
    Gathering,
    /// The schedule runs.
    Sending,
    /// Absent users log in; everything on its way arrives.
    Collecting,
    /// Everything has arrived; duplicates may still come.
    Lingering(u64),
    Done,
}

/// Something to look at later: a session's repeat, a login that takes too long.
type Alarm = Reverse<(u64, u32, AlarmKind)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum AlarmKind {
    Tick,
    /// Of this generation.
    Login(u32),
}

struct Worker<'a> {
    spec: &'a Spec,
    phase: Phase,
    poller: Poller,
    users: Vec<User>,
    dialer: Dialer,
    alarms: BinaryHeap<Alarm>,
    plan: Option<Plan>,
    window: Window,
    book: Book,
    figures: Figures,
    /// Users logged in now.
    online: u32,
    /// Users that are to be logged in.
    wanted: u32,
    /// Logged in before, and not now.
    missed: u32,
    told_connected: u32,
    dirty: Vec<u32>,
    answers: Vec<usize>,
    chunk: Vec<u8>,
    scratch: Vec<u8>,
    body: Vec<u8>,
    last_activity_ns: u64,
    /// Confirmations, arrivals and logins at that time.
    advance: u64,
    next_progress_ns: u64,
    lag_ns: u64,
    cpu: CpuWindow,
    fatal: Option<String>,
}

/// CPU time of the process inside the measured window.
#[derive(Clone, Copy, Debug, Default)]
struct CpuWindow {
    /// (wall, CPU) at the beginning and at the end.
    began: Option<(u64, u64)>,
    ended: Option<(u64, u64)>,
}

/// Runs a worker until it is done: orders come from `orders`, words go to
/// `words`.
///
/// # Errors
/// When the pipes to the parent or epoll fail.
pub(crate) fn run(spec: &Spec, orders: BorrowedFd<'_>, words: &mut impl Write) -> io::Result<()> {
    let mut worker = Worker::new(spec)?;
    worker.poller.add_pipe(orders, ORDERS)?;
    let mut pipe = Orders::default();
    while worker.phase != Phase::Done {
        let now_ns = clock::now_ns();
        worker.turn(now_ns, words)?;
        if let Some(text) = worker.fatal.take() {
            return say(words, &Word::Fatal(text));
        }
        if worker.phase == Phase::Done {
            break;
        }
        let wait_ns = worker.wait_ns(clock::now_ns());
        worker.poller.wait(wait_ns)?;
        for at in 0..worker.poller.len() {
            let ready = worker.poller.ready(at);
            if ready.token != ORDERS {
                worker.ready(ready);
                continue;
            }
            match pipe.read(orders)? {
                Some(list) => list.into_iter().for_each(|order| worker.order(order)),
                // The parent is gone: nobody is left to report to.
                None => return Ok(()),
            }
        }
    }
    let done = worker.finish();
    say(words, &Word::Done(Box::new(done)))
}

/// Orders cut into lines.
#[derive(Default)]
struct Orders {
    text: Vec<u8>,
}

impl Orders {
    fn read(&mut self, pipe: BorrowedFd<'_>) -> io::Result<Option<Vec<Order>>> {
        let mut chunk = [0; 4096];
        let n = rustix::io::read(pipe, &mut chunk)?;
        if n == 0 {
            return Ok(None);
        }
        self.text.extend_from_slice(&chunk[..n]);
        let mut orders = Vec::new();
        while let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.text.drain(..=end).collect();
            orders.push(serde_json::from_slice(&line)?);
        }
        Ok(Some(orders))
    }
}

fn say(words: &mut impl Write, word: &Word) -> io::Result<()> {
    let mut line = serde_json::to_vec(word)?;
    line.push(b'\n');
    words.write_all(&line)?;
    words.flush()
}

impl Worker<'_> {
    fn new(spec: &Spec) -> io::Result<Worker<'_>> {
        let leniency = Leniency {
            unconfirmed: confirms_nothing(spec),
            best_effort: spec.class == ClassChoice::BestEffort,
        };
        Ok(Worker {
            spec,
            phase: Phase::Gathering,
            poller: Poller::new(EVENTS_MAX)?,
            users: (0..spec.cast.users()).map(|index| User::new(spec, index)).collect(),
            dialer: Dialer::new(spec.connect_rate, spec.seed ^ u64::from(spec.base)),
            alarms: BinaryHeap::new(),
            plan: None,
            window: Window { from_ns: u64::MAX, to_ns: u64::MAX },
            book: Book::new(spec.cast, spec.base, leniency),
            figures: Figures::default(),
            online: 0,
            wanted: 0,
            missed: 0,
            told_connected: 0,
            dirty: Vec::new(),
            answers: Vec::new(),
            chunk: vec![0; CHUNK_BYTES],
            scratch: Vec::new(),
            body: Vec::new(),
            last_activity_ns: 0,
            advance: 0,
            next_progress_ns: 0,
            lag_ns: 0,
            cpu: CpuWindow::default(),
            fatal: None,
        })
    }

    /// One turn: phases, due messages, due connections, due repeats, writes.
    fn turn(&mut self, now_ns: u64, words: &mut impl Write) -> io::Result<()> {
        self.step(now_ns, words)?;
        self.shoot();
        while let Some(user) = self.dialer.due(now_ns) {
            self.dial(user, now_ns);
        }
        self.ring_alarms(now_ns);
        self.flush_dirty();
        if now_ns >= self.next_progress_ns {
            self.next_progress_ns = now_ns + PROGRESS_NS;
            say(words, &Word::Progress(self.progress()))?;
            self.lag_ns = 0;
        }
        Ok(())
    }

    fn wait_ns(&self, now_ns: u64) -> u64 {
        let due = [
            self.plan.as_ref().and_then(Plan::next_ns),
            self.dialer.next_ns(),
            self.alarms.peek().map(|Reverse((at, _, _))| *at),
            Some(self.next_progress_ns),
        ];
        let next = due.into_iter().flatten().min().unwrap_or(u64::MAX);
        next.saturating_sub(now_ns).min(WAIT_NS_MAX)
    }

    fn order(&mut self, order: Order) {
        match order {
            Order::Connect { users } => {
                for user in self.wanted..users.min(self.spec.cast.online) {
                    self.want(user);
                }
            }
            Order::Start { at_ns } => self.start(at_ns),
            Order::Finish => {
                self.end_sending_at(clock::now_ns());
                if self.phase == Phase::Gathering {
                    self.phase = Phase::Done;
                    self.figures.interrupted = true;
                }
            }
            Order::Abort => {
                self.figures.interrupted = true;
                self.phase = Phase::Done;
            }
        }
    }

    fn want(&mut self, user: u32) {
        assert_eq!(self.users[user as usize].stage, Stage::Away, "wanted once");
        self.users[user as usize].stage = Stage::Waiting;
        self.wanted += 1;
        self.dialer.add(user);
    }

    // Phases.

    fn start(&mut self, at_ns: u64) {
        let spec = self.spec;
        let end_ns = at_ns.saturating_add(spec.duration_ns);
        self.window = Window { from_ns: at_ns + spec.warmup_ns, to_ns: end_ns };
        self.phase = Phase::Sending;
        let rhythm = match spec.load {
            Load::Open { rate, arrivals, absent_share, offset } => Rhythm {
                rate,
                arrivals,
                senders: spec.cast.senders(),
                absent_share,
                seed: spec.seed ^ (u64::from(spec.base) << 20),
                offset,
            },
            // The answers drive it; the plan only knows the end.
            Load::Closed { .. } => Rhythm {
                rate: 0.0,
                arrivals: crate::plan::Arrivals::Constant,
                senders: 0,
                absent_share: 0.0,
                seed: 0,
                offset: 0.0,
            },
        };
        self.plan = Some(Plan::new(rhythm, at_ns, spec.duration_ns));
        if let Load::Closed { in_flight } = spec.load {
            let now_ns = clock::now_ns();
            for sender in (0..spec.cast.online & !1).step_by(2) {
                for _ in 0..in_flight {
                    self.hand_over(spec.cast.flow(sender, false), now_ns);
                }
            }
        }
    }

    fn end_sending_at(&mut self, now_ns: u64) {
        if let Some(plan) = &mut self.plan {
            plan.stop_at(now_ns);
        }
        self.window.to_ns = self.window.to_ns.min(now_ns);
    }

    fn step(&mut self, now_ns: u64, words: &mut impl Write) -> io::Result<()> {
        match self.phase {
            Phase::Gathering => {
                if self.online == self.wanted && self.told_connected < self.wanted {
                    self.told_connected = self.wanted;
                    self.figures.connections = self.online;
                    say(words, &Word::Connected { users: self.online })?;
                }
            }
            Phase::Sending => {
                self.measure_cpu(now_ns);
                let end_ns = self.plan.as_ref().map_or(0, Plan::end_ns);
                // Whatever was due has been handed over, however late.
                let all_out = self
                    .plan
                    .as_ref()
                    .is_none_or(|plan| plan.next_ns().is_none_or(|at| at > now_ns));
                if now_ns >= end_ns && all_out {
                    say(words, &Word::Quiet)?;
                    self.phase = Phase::Collecting;
                    self.last_activity_ns = now_ns;
                    for user in self.spec.cast.online..self.spec.cast.users() {
                        self.want(user);
                    }
                }
            }
            Phase::Collecting => {
                if self.is_at_rest() {
                    self.phase = Phase::Lingering(now_ns + self.spec.linger_ns);
                } else if now_ns.saturating_sub(self.last_activity_ns) > self.patience_ns() {
                    self.phase = Phase::Done;
                }
            }
            Phase::Lingering(until_ns) => {
                if now_ns >= until_ns {
                    self.figures.settled = self.is_at_rest();
                    self.phase = Phase::Done;
                }
            }
            Phase::Done => {}
        }
        Ok(())
    }

    /// Only what brings the end nearer counts: a server that goes on asking for
    /// the same number would keep the run alive for ever.
    fn note_activity(&mut self, now_ns: u64) {
        let findings = self.book.findings();
        let advance = findings.sent + findings.received + self.figures.logins;
        if advance != self.advance {
            self.advance = advance;
            self.last_activity_ns = now_ns;
        }
    }

    fn is_at_rest(&self) -> bool {
        let everyone = self.online == self.wanted
            || (!self.spec.reconnect && self.figures.lost_connections > 0);
        everyone && self.book.is_settled()
    }

    /// How long nothing may happen before the end is given up. Where messages
    /// may be lost in an outage, nobody can say that all of them have arrived.
    fn patience_ns(&self) -> u64 {
        let lossy = self.figures.lost_connections > 0
            && (confirms_nothing(self.spec) || self.spec.class == ClassChoice::BestEffort);
        if lossy { self.spec.drain_ns.min(LOSSY_PATIENCE_NS) } else { self.spec.drain_ns }
    }

    fn measure_cpu(&mut self, now_ns: u64) {
        if self.cpu.began.is_none() && now_ns >= self.window.from_ns {
            self.cpu.began = Some((now_ns, clock::cpu_ns()));
        }
        if self.cpu.ended.is_none() && now_ns >= self.window.to_ns {
            self.cpu.ended = Some((now_ns, clock::cpu_ns()));
        }
    }

    fn finish(mut self) -> Figures {
        let began = self.cpu.began.unwrap_or_default();
        let ended = self.cpu.ended.unwrap_or((clock::now_ns(), clock::cpu_ns()));
        if self.cpu.began.is_some() {
            self.figures.cpu_ns = ended.1 - began.1;
            let wall_ns = (ended.0 - began.0).max(1);
            self.figures.cpu_share_max = self.figures.cpu_ns as f64 / wall_ns as f64;
            self.figures.window_ns = self.window.to_ns.saturating_sub(self.window.from_ns);
        }
        // A relay confirms nothing and nothing can be missing for ever there.
        let drained = !self.figures.interrupted || self.figures.settled;
        self.figures.findings = self.book.close(drained, self.figures.lost_connections > 0);
        self.figures
    }

    fn progress(&self) -> Progress {
        let findings = self.book.findings();
        Progress {
            online: self.online,
            given: findings.given,
            sent: findings.sent,
            received: findings.received,
            lag_ns: self.lag_ns,
            wrong: findings.duplicates
                + findings.reordered
                + findings.corrupt
                + findings.foreign
                + findings.forgotten
                + findings.refused
                + self.figures.errors,
        }
    }

    // Sending.

    fn shoot(&mut self) {
        if self.phase != Phase::Sending {
            return;
        }
        for _ in 0..SHOTS_PER_TURN {
            let now_ns = clock::now_ns();
            let Some(shot) = self.plan.as_mut().and_then(|plan| plan.due(now_ns)) else { return };
            self.hand_over(self.spec.cast.flow(shot.sender, shot.to_absent), shot.intended_ns);
        }
    }

    /// Gives a flow's next message to its sender's session.
    fn hand_over(&mut self, flow: usize, intended_ns: u64) {
        let spec = self.spec;
        let (sender, recipient) = (spec.cast.sender(flow), spec.cast.recipient(flow));
        let now_ns = clock::now_ns();
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
        let taken = match &mut user.side {
            Side::V2(session) => {
                let to = spec.name(recipient);
                match session.send(to.as_bytes(), &self.body, spec.class.class()) {
                    Ok(seq) => {
                        assert_eq!(seq, number, "session and book count alike");
                        true
                    }
                    Err(SendError::Full) => false,
                    Err(error) => unreachable!("names and bodies are bounded: {error:?}"),
                }
            }
            // Without confirmations only those who are there can send.
            Side::V1(session) if user.stage == Stage::Online => {
                session.send_seq(spec.name(recipient).as_bytes(), number, &self.body);
                true
            }
            Side::Relay(end) if user.stage == Stage::Online => {
                end.send(&self.body);
                true
            }
            Side::V1(_) | Side::Relay(_) => {
                self.figures.skipped_offline += 1;
                return;
            }
        };
        if !taken {
            self.figures.skipped += 1;
            return;
        }
        self.book.given(flow);
        let lag_ns = now_ns.saturating_sub(intended_ns);
        self.lag_ns = self.lag_ns.max(lag_ns);
        // While a server is dead, taking down and taking up connections is what
        // is measured; the lateness still counts in every latency.
        if intended_ns >= self.window.from_ns && self.missed == 0 {
            self.figures.lag.record(lag_ns);
        }
        if self.window.holds(now_ns) {
            self.figures.window_given += 1;
        }
        self.mark_dirty(sender);
    }

    fn mark_dirty(&mut self, index: u32) {
        let user = &mut self.users[index as usize];
        if !user.dirty {
            user.dirty = true;
            self.dirty.push(index);
        }
    }

    fn flush_dirty(&mut self) {
        while let Some(index) = self.dirty.pop() {
            self.users[index as usize].dirty = false;
            self.flush(index);
        }
    }

    fn flush(&mut self, index: u32) {
        let user = &mut self.users[index as usize];
        if !matches!(user.stage, Stage::Greeting | Stage::Online) {
            return;
        }
        if user.flush(&mut self.scratch).is_err() {
            self.lost(index, None);
        }
    }

    // Connections.

    fn dial(&mut self, index: u32, now_ns: u64) {
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
    fn ready(&mut self, ready: Ready) {
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
                        self.logged_in(index, clock::now_ns());
                    }
                }
                Ok(()) => return,
                Err(error) => return self.failed(index, Some(&error), None),
            }
        } else if ready.writable {
            self.flush(index);
        }
        if ready.readable {
            self.read(index, ready);
        }
    }

    fn read(&mut self, index: u32, ready: Ready) {
        loop {
            let Some(socket) = &self.users[index as usize].socket else { return };
            match socket::read(socket, &mut self.chunk) {
                Ok(0) => return self.lost(index, None),
                Ok(n) => {
                    self.received(index, n);
                    if n < CHUNK_BYTES && !ready.ending {
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
            user: index,
            generation: user.generation,
            began_ns: user.began_ns,
            now_ns,
            answers: &mut self.answers,
            ack: 0,
            ack_ids: Vec::new(),
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
                end.receive(bytes, self.spec.size, |body| intake.delivered(body));
                false
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
        self.answer(now_ns);
        self.mark_dirty(index);
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
        if std::mem::take(&mut user.missed) {
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
    fn lost(&mut self, index: u32, goodbye: Option<Goodbye>) {
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

    fn ring_alarms(&mut self, now_ns: u64) {
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

fn confirms_nothing(spec: &Spec) -> bool {
    spec.cast.scenario == Scenario::Relay || spec.protocol == Protocol::V1
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
