//! The parent: starts the workers, leads them through the phases together, and
//! adds up what they measured.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, IsTerminal, Write, stderr};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use crate::acts::{self, Act};
use crate::admin;
use crate::args::Args;
use crate::burn::Fire;
use crate::clock;
use crate::figures::{Figures, Progress};
use crate::probe::{self, Moment, Sample};
use crate::scenario::Scenario;
use crate::signals;
use crate::spec::{Order, Spec, Word};
use crate::spread::{self, share};

/// How long the parent waits for a word before it looks after other things.
const LOOK: Duration = Duration::from_millis(50);
/// Between everyone being there and the first message.
const START_NS: u64 = 200_000_000;
/// The server's memory counts as settled when it moved less than this between
/// two looks a second apart.
const SETTLED_BYTES: u64 = 64 * 1024;
const SETTLE_LOOKS_MAX: u32 = 15;
/// From ordering an act to its beginning: every worker knows of it by then.
const CUE_NS: u64 = 20_000_000;

/// What a run gave.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The sum of all workers.
    pub(crate) figures: Figures,
    /// The server and the kernel: before the first connection, at every step,
    /// with everyone there, and at the end; empty without `--server-pid`.
    pub(crate) samples: Vec<Sample>,
    /// CPU time of the server inside the measured window, nanoseconds.
    pub(crate) server_cpu_ns: Option<u64>,
    /// Worker processes.
    pub(crate) workers: u32,
}

struct Worker {
    child: Child,
    orders: Option<ChildStdin>,
    progress: Progress,
    connected: u32,
    quiet: bool,
    played: Option<Act>,
    done: bool,
    /// Users that are connected from the start.
    present: u32,
}

struct Crowd<'a> {
    args: &'a Args,
    workers: Vec<Worker>,
    words: Receiver<(usize, Heard)>,
    figures: Option<Figures>,
    control: Option<File>,
    meter: Meter,
    requests: u32,
}

enum Heard {
    Word(Box<Word>),
    /// The worker's output ended.
    End,
}

/// Runs the whole thing.
///
/// # Errors
/// A sentence for the operator: no worker could be started or none could
/// connect.
pub(crate) fn run(args: &Args) -> Result<Outcome, String> {
    signals::listen();
    let control = args.control.as_ref().map(|path| {
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .map_err(|error| format!("{}: {error}", path.display()))
    });
    let control = control.transpose()?;
    let specs = spread::specs(args);
    let (sender, words) = channel();
    let mut workers = Vec::new();
    for (index, spec) in specs.iter().enumerate() {
        let worker = start(spec, index, &sender)
            .map_err(|error| format!("cannot start a worker process: {error}"))?;
        workers.push(worker);
    }
    drop(sender);
    let meter = Meter::new(args);
    let mut crowd = Crowd { args, workers, words, figures: None, control, meter, requests: 0 };
    let outcome = crowd.lead();
    crowd.dismiss();
    outcome
}

fn start(spec: &Spec, index: usize, words: &Sender<(usize, Heard)>) -> io::Result<Worker> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg(crate::WORKER_ARG)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut orders = child.stdin.take().expect("it was piped");
    let mut line = serde_json::to_vec(spec)?;
    line.push(b'\n');
    orders.write_all(&line)?;
    let output = BufReader::new(child.stdout.take().expect("it was piped"));
    let words = words.clone();
    std::thread::spawn(move || {
        for line in output.lines() {
            let Ok(word) =
                line.map_err(drop).and_then(|line| serde_json::from_str(&line).map_err(drop))
            else {
                break;
            };
            if words.send((index, Heard::Word(Box::new(word)))).is_err() {
                return;
            }
        }
        // The parent may have gone on already.
        let _gone = words.send((index, Heard::End));
    });
    Ok(Worker {
        child,
        orders: Some(orders),
        progress: Progress::default(),
        connected: 0,
        quiet: false,
        played: None,
        done: false,
        present: spec.cast.present(),
    })
}

impl Crowd<'_> {
    fn lead(&mut self) -> Result<Outcome, String> {
        self.meter.look(Moment::Start, 0);
        let steps = match self.args.steps.as_slice() {
            [] => vec![None],
            steps => steps.iter().copied().map(Some).collect(),
        };
        for step in steps {
            if !self.gather(step)? {
                return self.end();
            }
        }
        if self.args.scenario.is_ordeal() {
            return self.play();
        }
        self.tell("steady");
        let start_ns = clock::now_ns() + START_NS;
        self.order(&Order::Start { at_ns: start_ns });
        self.meter.measure(start_ns, self.args);
        let fire_ns = start_ns + clock::seconds_ns(self.args.warmup_s());
        let _fire = Fire::light(self.args.chaos().burners, fire_ns);
        self.listen(|crowd| crowd.workers.iter().all(|worker| worker.quiet || worker.done))?;
        self.tell("quiet");
        self.end()
    }

    /// Plays an ordeal, act by act.
    fn play(&mut self) -> Result<Outcome, String> {
        for act in acts::of(self.args.scenario) {
            if *act == Act::Ordeal {
                self.meter.look(Moment::Before, self.online());
            }
            self.tell(act.name());
            let at_ns = clock::now_ns() + CUE_NS;
            self.order(&Order::Play { act: *act, at_ns });
            if *act == Act::Ordeal {
                self.meter.window = Some((at_ns, u64::MAX));
            }
            let burners = if *act == Act::Ordeal { self.args.chaos().burners } else { 0 };
            let _fire = Fire::light(burners, at_ns);
            let played = |worker: &Worker| worker.played == Some(*act) || worker.done;
            self.listen(|crowd| crowd.requests > 0 || crowd.workers.iter().all(played))?;
            if *act == Act::Ordeal {
                self.meter.look(Moment::During, self.online());
                self.meter.window = self.meter.window.map(|(from, _)| (from, clock::now_ns()));
            }
            if self.requests > 0 {
                return self.end();
            }
        }
        self.tell("quiet");
        self.order(&Order::Finish);
        self.end()
    }

    fn online(&self) -> u32 {
        self.workers.iter().map(|worker| worker.progress.online).sum()
    }

    /// Has `users`, or everyone who is there from the start, connected; false
    /// when a signal came before.
    fn gather(&mut self, users: Option<u32>) -> Result<bool, String> {
        let workers = self.workers.len() as u32;
        let mut wanted = Vec::new();
        for index in 0..workers {
            let worker = &mut self.workers[index as usize];
            let users = users
                .map_or(worker.present, |users| share(users, workers, index).min(worker.present));
            wanted.push(users);
            send(worker, &Order::Connect { users });
        }
        self.listen(move |crowd| {
            crowd.requests > 0
                || crowd.workers.iter().zip(&wanted).all(|(worker, n)| worker.connected >= *n)
        })?;
        if self.requests > 0 {
            return Ok(false);
        }
        self.tell("connected");
        let connected = self.workers.iter().map(|worker| worker.connected).sum();
        let is_weighed = self.args.scenario == Scenario::Idle || !self.args.steps.is_empty();
        if is_weighed && (self.meter.pid.is_some() || self.meter.admin.is_some()) {
            self.settle(connected)?;
        }
        self.meter.look(Moment::Held, connected);
        Ok(true)
    }

    /// Waits until the server's memory has come to rest.
    fn settle(&mut self, connected: u32) -> Result<(), String> {
        let mut before = 0;
        for _ in 0..SETTLE_LOOKS_MAX {
            let until_ns = clock::now_ns() + 1_000_000_000;
            self.listen(|crowd| crowd.requests > 0 || clock::now_ns() >= until_ns)?;
            let now =
                self.meter.sample(Moment::Held, connected).map_or(0, |sample| sample.rss_bytes);
            if now.abs_diff(before) < SETTLED_BYTES || self.requests > 0 {
                break;
            }
            before = now;
        }
        Ok(())
    }

    /// Waits for every worker's report.
    fn end(&mut self) -> Result<Outcome, String> {
        self.listen(|crowd| crowd.workers.iter().all(|worker| worker.done))?;
        self.tell("done");
        let figures = self.figures.take().expect("every worker has reported");
        self.meter.look(Moment::End, figures.connections);
        Ok(Outcome {
            figures,
            samples: std::mem::take(&mut self.meter.samples),
            server_cpu_ns: self.meter.cpu_ns(),
            workers: self.workers.len() as u32,
        })
    }

    /// Takes words, and shows progress, until `enough`.
    fn listen(&mut self, enough: impl Fn(&Crowd<'_>) -> bool) -> Result<(), String> {
        while !enough(self) {
            match self.words.recv_timeout(LOOK) {
                Ok((index, Heard::Word(word))) => self.heard(index, *word)?,
                Ok((index, Heard::End)) if self.workers[index].done => {}
                Ok((_, Heard::End)) => return Err("a worker process ended early".to_owned()),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            self.heed_signals();
            let progress = self.progress();
            self.meter.tick(&progress);
        }
        Ok(())
    }

    fn heard(&mut self, index: usize, word: Word) -> Result<(), String> {
        let worker = &mut self.workers[index];
        match word {
            Word::Connected { users } => worker.connected = users,
            Word::Quiet => worker.quiet = true,
            Word::Played(act) => worker.played = Some(act),
            Word::Progress(progress) => worker.progress = progress,
            Word::Fatal(why) => {
                let targets: Vec<String> =
                    self.args.target.iter().map(ToString::to_string).collect();
                return Err(format!("cannot connect to {}: {why}", targets.join(", ")));
            }
            Word::Done(figures) => {
                worker.done = true;
                match &mut self.figures {
                    Some(sum) => sum.add(*figures),
                    None => self.figures = Some(*figures),
                }
            }
        }
        Ok(())
    }

    /// The first signal ends the sending, the second the run.
    fn heed_signals(&mut self) {
        let requests = signals::requests();
        if requests > self.requests {
            self.order(if self.requests == 0 && requests == 1 {
                &Order::Finish
            } else {
                &Order::Abort
            });
            self.requests = requests;
        }
    }

    fn order(&mut self, order: &Order) {
        self.workers.iter_mut().for_each(|worker| send(worker, order));
    }

    fn progress(&self) -> Progress {
        let mut sum = Progress::default();
        self.workers.iter().for_each(|worker| sum.add(&worker.progress));
        sum
    }

    fn tell(&mut self, line: &str) {
        // In one write: others may write to the same pipe, and a line that another one
        // breaks in two is none.
        if let Some(control) = &mut self.control
            && let Err(error) = control.write_all(format!("{line}\n").as_bytes())
        {
            eprintln!("the control file cannot be written: {error}");
            self.control = None;
        }
    }

    /// Lets the workers go: without orders they end.
    fn dismiss(&mut self) {
        self.meter.finish();
        for worker in &mut self.workers {
            worker.orders = None;
        }
        for worker in &mut self.workers {
            // An end that cannot be waited for has happened already.
            let _status = worker.child.wait();
        }
    }
}

fn send(worker: &mut Worker, order: &Order) {
    let mut line = serde_json::to_vec(order).expect("orders are plain data");
    line.push(b'\n');
    if let Some(orders) = &mut worker.orders
        && orders.write_all(&line).is_err()
    {
        // Its end shows in its output.
        worker.orders = None;
    }
}

/// The progress line and the looks at the server's process.
struct Meter {
    pid: Option<u32>,
    admin: Option<SocketAddr>,
    samples: Vec<Sample>,
    /// When the measured window begins and ends, and the server's CPU there.
    window: Option<(u64, u64)>,
    cpu_began: Option<u64>,
    cpu_ended: Option<u64>,
    terminal: bool,
    quiet: bool,
    began_ns: u64,
    next_line_ns: u64,
    last: Progress,
}

impl Meter {
    fn new(args: &Args) -> Meter {
        let now_ns = clock::now_ns();
        Meter {
            pid: args.server_pid,
            admin: args.admin,
            samples: Vec::new(),
            window: None,
            cpu_began: None,
            cpu_ended: None,
            terminal: io::stderr().is_terminal(),
            quiet: args.quiet,
            began_ns: now_ns,
            next_line_ns: now_ns + 1_000_000_000,
            last: Progress::default(),
        }
    }

    fn sample(&self, moment: Moment, connections: u32) -> Option<Sample> {
        match (self.pid, self.admin) {
            (Some(pid), _) => probe::sample(pid, moment, connections),
            (None, Some(admin)) => admin::sample(admin, moment, connections),
            (None, None) => None,
        }
    }

    fn look(&mut self, moment: Moment, connections: u32) {
        let sample = self.sample(moment, connections);
        self.samples.extend(sample);
    }

    fn measure(&mut self, start_ns: u64, args: &Args) {
        let from_ns = start_ns + clock::seconds_ns(args.warmup_s());
        self.window = Some((from_ns, start_ns + clock::seconds_ns(args.duration_s())));
    }

    fn cpu_ns(&self) -> Option<u64> {
        self.cpu_ended?.checked_sub(self.cpu_began?)
    }

    fn tick(&mut self, progress: &Progress) {
        let now_ns = clock::now_ns();
        if let Some((from_ns, to_ns)) = self.window {
            if self.cpu_began.is_none() && now_ns >= from_ns {
                self.cpu_began = self.sample(Moment::Sending, 0).map(|sample| sample.cpu_ns);
            }
            if self.cpu_ended.is_none() && now_ns >= to_ns {
                self.cpu_ended = self.sample(Moment::Sending, 0).map(|sample| sample.cpu_ns);
            }
        }
        if self.quiet || now_ns < self.next_line_ns {
            return;
        }
        self.next_line_ns += 1_000_000_000;
        let line = format!(
            "{:5.0} s  {:>8} online  {:>8}/s given  {:>8}/s confirmed  {:>8}/s arrived  lag {:.1} ms{}",
            (now_ns - self.began_ns) as f64 / 1e9,
            progress.online,
            progress.given.saturating_sub(self.last.given),
            progress.sent.saturating_sub(self.last.sent),
            progress.received.saturating_sub(self.last.received),
            progress.lag_ns as f64 / 1e6,
            if progress.wrong > 0 { format!("  {} WRONG", progress.wrong) } else { String::new() },
        );
        self.last = *progress;
        if self.terminal {
            self.show(&format!("\r\x1b[K{line}"));
        } else {
            self.show(&format!("{line}\n"));
        }
    }

    fn finish(&mut self) {
        if self.terminal && !self.quiet {
            self.show("\r\x1b[K");
        }
    }

    /// To stderr. Nobody need read there: the results are what counts.
    fn show(&self, text: &str) {
        let _ = stderr().write_all(text.as_bytes());
    }
}
