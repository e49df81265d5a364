//! `sim`: lives the lives of many seeds and says whether any of them broke a
//! promise.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use clap::Parser;
use sim::{Outcome, Plant, Stats, World};

/// Simulated worlds, one for each seed; the exit code is 1 when a promise was
/// broken in any of them.
#[derive(Parser)]
struct Args {
    /// How many seeds.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Only this one.
    #[arg(long, conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,
    /// Threads; each world has only one.
    #[arg(long, default_value_t = 1)]
    jobs: u64,
    /// A bug to plant, which must be noticed.
    #[arg(long, value_enum, default_value_t = Plant::None)]
    plant: Plant,
    /// Print everything that happens; with --seed.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Go on after a violation.
    #[arg(long)]
    keep_going: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match args.seed {
        Some(seed) => live_one(seed, args.plant, args.trace),
        None => live_many(&args),
    }
}

fn live_one(seed: u64, plant: Plant, prints: bool) -> ExitCode {
    let mut world = World::new(seed, plant, prints);
    println!("seed {seed}: {:?}", world.knobs());
    if prints {
        // Nothing is caught here: a panic prints where it came from.
        let outcome = world.live();
        println!("hash {:016x}, {:?}", outcome.hash, outcome.stats);
        return report(seed, &outcome, &[]);
    }
    let (outcome, lines) = sim::run(seed, plant);
    println!("hash {:016x}, {:?}", outcome.hash, outcome.stats);
    report(seed, &outcome, &lines)
}

fn report(seed: u64, outcome: &Outcome, lines: &[String]) -> ExitCode {
    let Some(violation) = &outcome.violation else { return ExitCode::SUCCESS };
    for line in lines {
        println!("{line}");
    }
    println!("seed {seed}, step {}: VIOLATION: {violation}", outcome.stats.steps);
    ExitCode::FAILURE
}

/// What all seeds together came to.
#[derive(Default)]
struct Sum {
    seeds: u64,
    violations: u64,
    stats: Stats,
}

impl Sum {
    fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.violations += u64::from(outcome.violation.is_some());
        self.stats.add(&outcome.stats);
    }
}

fn live_many(args: &Args) -> ExitCode {
    std::panic::set_hook(Box::new(|_| {})); // told with the seed, below
    let next = AtomicU64::new(args.from);
    let end = args.from + args.seeds;
    let stop = AtomicBool::new(false);
    let (tell, hear) = mpsc::channel();
    let started = Instant::now();
    let sum = std::thread::scope(|scope| {
        for _ in 0..args.jobs.max(1) {
            let (next, stop, tell) = (&next, &stop, tell.clone());
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        break;
                    }
                    let (outcome, lines) = sim::run(seed, args.plant);
                    if tell.send((seed, outcome, lines)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(tell);
        listen(args, &hear, &stop, started)
    });
    println!(
        "sim: {} seeds, {} steps, {} crashes, {} messages, {} violations in {:.1} s \
         ({} deliveries, {} failed writes, {} failed syncs, {} of {} reads failed, {} set aside, {} returned, {} blocked, {} takeovers, {} skips, {} late, {} started over, \
         {} snapshots, {} starts from one, {} rotten and {} back, {} messages moved, {} segments deleted, \
         {} times other shards with {} messages, {} deaths on the way, \
         {} times full and {} no more, {} refused and {} acknowledged meanwhile, {} put off, \
         {} snapshots and {} starts without space, {} times rescued, \
         {} sectors and {} manifests rotten and {} places unreadable, \
         {} times other names and {} exchanged, {} files of a newer format, {} times come across, {} starts refused for it and {} ends cut, {} repairs of {} ranges and {} of them torn, \
         {} of them without a snapshot, {} letters lost, {} upgrades)",
        sum.seeds,
        sum.stats.steps,
        sum.stats.crashes,
        sum.stats.messages,
        sum.violations,
        started.elapsed().as_secs_f64(),
        sum.stats.deliveries,
        sum.stats.failed_writes,
        sum.stats.failed_syncs,
        sum.stats.failed_reads,
        sum.stats.reads,
        sum.stats.aside,
        sum.stats.returned,
        sum.stats.blocked,
        sum.stats.takeovers,
        sum.stats.skips,
        sum.stats.late,
        sum.stats.started_over,
        sum.stats.snapshots,
        sum.stats.loads,
        sum.stats.rotten,
        sum.stats.snapshots_back,
        sum.stats.moved,
        sum.stats.deleted,
        sum.stats.reshardings,
        sum.stats.carried,
        sum.stats.reshard_deaths,
        sum.stats.full,
        sum.stats.space_again,
        sum.stats.refused_when_full,
        sum.stats.acks_when_full,
        sum.stats.gathered,
        sum.stats.snapshots_without_space,
        sum.stats.starts_refused,
        sum.stats.rescues,
        sum.stats.decayed,
        sum.stats.manifests_rotten,
        sum.stats.holes,
        sum.stats.misnamed,
        sum.stats.renamed,
        sum.stats.newer,
        sum.stats.told_damaged,
        sum.stats.refused_for_damage,
        sum.stats.cut_by_rot,
        sum.stats.repairs,
        sum.stats.lost_ranges,
        sum.stats.torn_repairs,
        sum.stats.forgotten,
        sum.stats.excused,
        sum.stats.upgrades,
    );
    if sum.violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Takes the outcomes as they come, and says how far it is.
fn listen(
    args: &Args,
    hear: &mpsc::Receiver<(u64, Outcome, Vec<String>)>,
    stop: &AtomicBool,
    started: Instant,
) -> Sum {
    let mut sum = Sum::default();
    let mut told = started;
    for (seed, outcome, lines) in hear {
        sum.add(&outcome);
        if outcome.violation.is_some() {
            let lines = if args.keep_going { &[] } else { &lines[..] };
            let _ = report(seed, &outcome, lines);
            println!("again: sim --seed {seed} --trace");
            stop.store(!args.keep_going, Ordering::Relaxed);
        }
        if told.elapsed() > Duration::from_secs(5) {
            told = Instant::now();
            println!("{} of {} seeds, {} violations", sum.seeds, args.seeds, sum.violations);
        }
    }
    sum
}
