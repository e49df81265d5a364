//! One worker: its users' sockets, the schedule, and the phases of a run, in
//! one loop on one thread.
//!
//! The loop never waits for the server: what is due is handed over first, then
//! sockets are served, then it sleeps until the next thing is due.

mod acting;
mod connections;
mod imps;
mod sending;
mod visits;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;

use self::acting::Acting;
use self::imps::Imps;
use crate::clock;
use crate::dial::Dialer;
use crate::figures::{Figures, Progress};
use crate::intake::{Stages, Window};
use crate::plan::{Plan, Rhythm};
use crate::socket::Poller;
use crate::spec::{ClassChoice, Load, Names, Order, Spec, Word};
use crate::user::{Stage, User};
use crate::verify::{Book, Leniency};

/// Bytes of one read.
const CHUNK_BYTES: usize = 64 * 1024;
/// Events of one wait: each may be a connection to take down, which costs the
/// kernel tens of microseconds, and the schedule waits for all of them.
const EVENTS_MAX: usize = 128;
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
    /// An ordeal is played.
    Acting,
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
    /// Of a reader that was stopped.
    Wake,
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
    /// The witnesses' schedule.
    witnesses: Option<Plan>,
    acting: Acting,
    imps: Imps,
    /// For each user until when it was disturbed on purpose; `u64::MAX` while
    /// it is. Messages that were due before are measured apart.
    disturbed: Vec<u64>,
    window: Window,
    stages: Stages,
    book: Book,
    figures: Figures,
    /// Users logged in now.
    online: u32,
    /// Users that are to be logged in.
    wanted: u32,
    /// Users that were ordered to be, from the first on.
    ordered: u32,
    /// Logged in before, and not now.
    missed: u32,
    /// Messages in all users' `overdue` together.
    overdue: usize,
    told_connected: u32,
    dirty: Vec<u32>,
    answers: Vec<usize>,
    chunk: Vec<u8>,
    scratch: Vec<u8>,
    body: Vec<u8>,
    names: Names,
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
                match ready.token & imps::TOKEN {
                    0 => worker.ready(ready),
                    _ => worker.imp_ready(ready),
                }
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
            witnesses: None,
            acting: Acting::default(),
            imps: Imps::new(spec),
            disturbed: vec![0; spec.cast.users() as usize],
            stages: Stages::NONE,
            window: Window { from_ns: u64::MAX, to_ns: u64::MAX },
            book: Book::new(spec.cast, spec.base, leniency),
            figures: Figures::default(),
            online: 0,
            wanted: 0,
            ordered: 0,
            missed: 0,
            overdue: 0,
            told_connected: 0,
            dirty: Vec::new(),
            answers: Vec::new(),
            chunk: vec![0; CHUNK_BYTES],
            scratch: Vec::new(),
            body: Vec::new(),
            names: Names::new(spec),
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
        self.make_trouble(now_ns);
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
            self.witnesses.as_ref().and_then(Plan::next_ns),
            self.acting_due_ns(now_ns),
            self.imps_due_ns(now_ns),
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
                let users = users.min(self.spec.cast.present());
                for user in self.ordered..users {
                    self.want(user);
                }
                self.ordered = self.ordered.max(users);
            }
            Order::Start { at_ns } => self.start(at_ns),
            Order::Play { act, at_ns } => self.play(act, at_ns),
            Order::Finish => {
                self.end_sending_at(clock::now_ns());
                if self.phase == Phase::Acting {
                    self.end_acting(clock::now_ns());
                }
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
                senders: spec.cast.lines(),
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
        if spec.cast.witnesses > 0 {
            self.begin_witnesses(at_ns);
            self.stages.calm_ns = at_ns;
            self.stages.ordeal_ns = self.window.from_ns;
        }
        if let Load::Closed { in_flight } = spec.load {
            let now_ns = clock::now_ns();
            for line in (0..spec.cast.lines() & !1).step_by(2) {
                for _ in 0..in_flight {
                    self.hand_over(spec.cast.flow(line, false), now_ns);
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
                // Whatever was due has been taken up, however late.
                let all_out = self
                    .plan
                    .as_ref()
                    .is_none_or(|plan| plan.next_ns().is_none_or(|at| at > now_ns));
                if now_ns >= end_ns && all_out {
                    say(words, &Word::Quiet)?;
                    self.phase = Phase::Collecting;
                    self.witnesses = None;
                    self.stages.end_ns = now_ns;
                    self.last_activity_ns = now_ns;
                    for user in self.spec.cast.present()..self.spec.cast.users() {
                        self.want(user);
                    }
                }
            }
            Phase::Acting => {
                self.measure_cpu(now_ns);
                self.act(now_ns, words)?;
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
        everyone && self.overdue == 0 && self.book.is_settled()
    }

    /// How long nothing may happen before the end is given up. Where messages
    /// may be lost in an outage, nobody can say that all of them have arrived.
    fn patience_ns(&self) -> u64 {
        let lossy = self.has_excuse()
            && (confirms_nothing(self.spec) || self.spec.class == ClassChoice::BestEffort);
        if lossy { self.spec.drain_ns.min(LOSSY_PATIENCE_NS) } else { self.spec.drain_ns }
    }

    /// Whether something happened that may cost messages which nobody confirmed:
    /// an outage, or a refusal, of which v1 does not say what it refers to.
    fn has_excuse(&self) -> bool {
        let disturbed = self.figures.held + self.figures.chaos.killed;
        self.figures.lost_connections > 0 || confirms_nothing(self.spec) && disturbed > 0
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
        let has_excuse = self.has_excuse();
        self.figures.never_handed = self.overdue as u64;
        self.figures.findings = self.book.close(drained, has_excuse);
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
}

fn confirms_nothing(spec: &Spec) -> bool {
    spec.cast.scenario.confirms_nothing(spec.confirm, spec.protocol, spec.class)
}
