//! The parent: starts the workers, leads them through the phases together, and
//! adds up what they measured.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use rustix::process::{Resource, getrlimit};

use crate::args::Args;
use crate::clock;
use crate::figures::{Figures, Progress};
use crate::probe::{self, Moment, Sample};
use crate::scenario::{Cast, Scenario};
use crate::signals;
use crate::spec::{Load, Order, Spec, Word};

/// Descriptors of a worker that are no connections.
const DESCRIPTORS_SPARE: u64 = 64;
/// How long the parent waits for a word before it looks after other things.
const LOOK: Duration = Duration::from_millis(50);
/// Between everyone being there and the first message.
const START_NS: u64 = 200_000_000;
/// The server's memory counts as settled when it moved less than this between
/// two looks a second apart.
const SETTLED_BYTES: u64 = 64 * 1024;
const SETTLE_LOOKS_MAX: u32 = 15;

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
    done: bool,
    online: u32,
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
    let specs = specs(args);
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

/// How the users are spread over the workers.
fn specs(args: &Args) -> Vec<Spec> {
    let online = args.steps.last().copied().unwrap_or(args.connections);
    let absent = match args.scenario {
        Scenario::Offline => args.absent.unwrap_or(online),
        Scenario::Mixed => args.absent.unwrap_or((online / 10).max(1)),
        Scenario::Pairs | Scenario::Idle | Scenario::Relay => 0,
    };
    let limit = getrlimit(Resource::Nofile).maximum.unwrap_or(1 << 20);
    let per_worker = limit.saturating_sub(DESCRIPTORS_SPARE).max(2);
    let needed = u64::from(online + absent).div_ceil(per_worker) as u32;
    // A little room, because shares are rounded to pairs.
    let workers = args.workers.max(if needed > 1 { needed + 1 } else { 1 }).min(online.div_ceil(2));
    let run = clock::unix_ms() << 8 | u64::from(std::process::id() & 0xff);
    let mut base = 0;
    (0..workers)
        .map(|index| {
            let part = 1.0 / f64::from(workers);
            let mine = share(online, workers, index);
            // Everyone's absent friend is in the same worker.
            let friends = if absent == 0 { 0 } else { share(absent, workers, index).max(1) };
            let cast = Cast { scenario: args.scenario, online: mine, absent: friends };
            let senders = if args.scenario == Scenario::Idle { 0 } else { mine };
            let load = match args.in_flight {
                Some(in_flight) => Load::Closed { in_flight },
                None => Load::Open {
                    rate: args.rate * f64::from(senders) / f64::from(online),
                    arrivals: args.arrivals,
                    absent_share: if absent == 0 { 0.0 } else { args.absent_share },
                    offset: part * f64::from(index),
                },
            };
            let spec = Spec {
                run,
                cast,
                base,
                targets: args.target.clone(),
                from: args.sources(),
                protocol: args.protocol,
                class: args.class,
                size: args.size,
                load,
                duration_ns: clock::seconds_ns(args.duration),
                warmup_ns: clock::seconds_ns(args.warmup),
                seed: args.seed,
                connect_rate: args.connect_rate * part,
                reconnect: args.reconnect,
                drain_ns: clock::seconds_ns(args.drain_timeout),
                linger_ns: clock::seconds_ns(args.linger),
                window: args.window,
                core: (!args.cores.is_empty())
                    .then(|| args.cores[index as usize % args.cores.len()]),
            };
            base += cast.users();
            spec
        })
        .collect()
}

/// One worker's share of `n` users, in whole pairs; an odd one goes to the
/// last worker.
fn share(n: u32, workers: u32, index: u32) -> u32 {
    let up_to = |index: u32| (u64::from(n / 2) * u64::from(index) / u64::from(workers)) as u32;
    let odd = if index + 1 == workers { n % 2 } else { 0 };
    2 * (up_to(index + 1) - up_to(index)) + odd
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
        done: false,
        online: spec.cast.online,
    })
}

impl Crowd<'_> {
    fn lead(&mut self) -> Result<Outcome, String> {
        self.meter.look(Moment::Start, 0);
        let steps = match self.args.steps.as_slice() {
            [] => vec![self.args.connections],
            steps => steps.to_vec(),
        };
        for step in &steps {
            if !self.gather(*step)? {
                return self.end();
            }
        }
        self.tell("steady");
        let start_ns = clock::now_ns() + START_NS;
        self.order(&Order::Start { at_ns: start_ns });
        self.meter.measure(start_ns, self.args);
        self.listen(|crowd| crowd.workers.iter().all(|worker| worker.quiet || worker.done))?;
        self.tell("quiet");
        self.end()
    }

    /// Has `users` connected; false when a signal came before.
    fn gather(&mut self, users: u32) -> Result<bool, String> {
        let workers = self.workers.len() as u32;
        let mut wanted = Vec::new();
        for index in 0..workers {
            let worker = &mut self.workers[index as usize];
            let users = share(users, workers, index).min(worker.online);
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
        if is_weighed && self.meter.pid.is_some() {
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
        if let Some(control) = &mut self.control
            && let Err(error) = writeln!(control, "{line}")
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
        probe::sample(self.pid?, moment, connections)
    }

    fn look(&mut self, moment: Moment, connections: u32) {
        let sample = self.sample(moment, connections);
        self.samples.extend(sample);
    }

    fn measure(&mut self, start_ns: u64, args: &Args) {
        let from_ns = start_ns + clock::seconds_ns(args.warmup);
        self.window = Some((from_ns, start_ns + clock::seconds_ns(args.duration)));
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
            eprint!("\r\x1b[K{line}");
        } else {
            eprintln!("{line}");
        }
    }

    fn finish(&mut self) {
        if self.terminal && !self.quiet {
            eprint!("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_whole_pairs_and_lose_nobody() {
        for (n, workers) in [(10, 3), (11, 3), (2, 1), (1_000_000, 53), (15_000, 2)] {
            let shares: Vec<u32> = (0..workers).map(|index| share(n, workers, index)).collect();
            assert_eq!(shares.iter().sum::<u32>(), n);
            assert!(shares[..shares.len() - 1].iter().all(|share| share % 2 == 0));
        }
    }
}
