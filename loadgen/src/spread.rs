//! How the users of a run are spread over its workers.

use rustix::process::{Resource, getrlimit};

use crate::args::Args;
use crate::clock;
use crate::scenario::{Cast, Scenario};
use crate::spec::{Load, Ordeal, Spec};

/// Descriptors of a worker that are no connections.
const DESCRIPTORS_SPARE: u64 = 64;
/// Storm and slow: how many users one feeder writes to. Feeders only fill
/// inboxes, so few are enough.
const USERS_PER_FEEDER: u32 = 20;

/// All users of a run by what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Crowd {
    witnesses: u32,
    online: u32,
    absent: u32,
}

impl Crowd {
    fn of(args: &Args) -> Crowd {
        let connections = args.steps.last().copied().unwrap_or(args.connections);
        let (online, absent) = match args.scenario {
            Scenario::Pairs | Scenario::Idle | Scenario::Relay | Scenario::Storm => {
                (connections, 0)
            }
            Scenario::Offline | Scenario::Crusher => {
                (connections, args.absent.unwrap_or(connections))
            }
            Scenario::Mixed | Scenario::Chaos => {
                (connections, args.absent.unwrap_or((connections / 10).max(1)))
            }
            Scenario::HotInbox => (connections, args.absent.unwrap_or(1)),
            Scenario::Slow => (connections.div_ceil(USERS_PER_FEEDER), connections),
            Scenario::Churn => (0, connections),
        };
        Crowd { witnesses: args.witnesses(), online, absent }
    }

    fn users(self) -> u32 {
        self.witnesses + self.online + self.absent
    }

    /// Workers that have somebody to look after.
    fn workers_max(self) -> u32 {
        let slow_or_churning = self.absent > self.online;
        let pairs = if slow_or_churning { self.absent } else { self.online };
        pairs.div_ceil(2)
    }

    /// One worker's share.
    fn share(self, scenario: Scenario, workers: u32, index: u32) -> Cast {
        let mut absent = share(self.absent, workers, index);
        let mut online = share(self.online, workers, index);
        // Everyone's friend or feeder is in the same worker.
        if scenario == Scenario::Slow {
            online = absent.div_ceil(USERS_PER_FEEDER);
        } else if self.absent > 0 && self.online > 0 {
            absent = absent.max(1);
        }
        Cast { scenario, witnesses: share(self.witnesses, workers, index), online, absent }
    }
}

/// What each worker must know.
pub(crate) fn specs(args: &Args) -> Vec<Spec> {
    let crowd = Crowd::of(args);
    let limit = getrlimit(Resource::Nofile).maximum.unwrap_or(1 << 20);
    let per_worker = limit.saturating_sub(DESCRIPTORS_SPARE).max(2);
    let chaos = args.chaos();
    let descriptors =
        u64::from(crowd.users()) + u64::from(chaos.drips) + u64::from(chaos.half_open);
    let needed = descriptors.div_ceil(per_worker) as u32;
    // A little room, because shares are rounded to pairs.
    let wanted = args.workers.max(if needed > 1 { needed + 1 } else { 1 });
    let workers = wanted.min(crowd.workers_max());
    let lines: u32 = (0..workers).map(|at| crowd.share(args.scenario, workers, at).lines()).sum();
    let run = clock::unix_ms() << 8 | u64::from(std::process::id() & 0xff);
    let (mut base, mut lines_before) = (0, 0);
    (0..workers)
        .map(|index| {
            let cast = crowd.share(args.scenario, workers, index);
            let part = 1.0 / f64::from(workers);
            let share = Share {
                workers: part,
                load: of(cast.lines(), lines),
                from: of(lines_before, lines),
                to: of(lines_before + cast.lines(), lines),
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
                confirm: args.confirm,
                load: load(args, cast, &share, part * f64::from(index)),
                witness_rate: args.witness_rate() * of(cast.witnesses, crowd.witnesses),
                ordeal: args.scenario.is_ordeal().then(|| ordeal(args, cast, &share)),
                chaos: args.chaos().share(workers, index),
                duration_ns: clock::seconds_ns(args.duration_s()),
                warmup_ns: clock::seconds_ns(args.warmup_s()),
                seed: args.seed,
                connect_rate: args.connect_rate * part,
                reconnect: args.reconnects(),
                drain_ns: clock::seconds_ns(args.drain_timeout),
                linger_ns: clock::seconds_ns(args.linger),
                window: args.window,
                core: (!args.cores.is_empty())
                    .then(|| args.cores[index as usize % args.cores.len()]),
            };
            base += cast.users();
            lines_before += cast.lines();
            spec
        })
        .collect()
}

/// One worker's part of the whole, 0 to 1.
struct Share {
    /// As one of the workers.
    workers: f64,
    /// Of everything that is sent.
    load: f64,
    /// Where that part begins and ends.
    from: f64,
    to: f64,
}

fn load(args: &Args, cast: Cast, share: &Share, offset: f64) -> Load {
    if let Some(in_flight) = args.in_flight.filter(|_| !args.scenario.is_ordeal()) {
        return Load::Closed { in_flight };
    }
    Load::Open {
        rate: args.rate() * share.load,
        arrivals: args.arrivals,
        absent_share: if cast.absent == 0 { 0.0 } else { args.absent_share },
        offset,
    }
}

fn ordeal(args: &Args, cast: Cast, share: &Share) -> Ordeal {
    let messages_to = |part: f64| (args.messages as f64 * part).round() as u64;
    let fill = match args.scenario {
        Scenario::HotInbox => messages_to(share.to) - messages_to(share.from),
        Scenario::Storm | Scenario::Slow => u64::from(args.waiting) * u64::from(cast.lines()),
        _ => 0,
    };
    let rate = match args.scenario {
        Scenario::Slow => Some(args.rate()),
        Scenario::Crusher => args.rate,
        _ => None,
    };
    Ordeal {
        calm_ns: clock::seconds_ns(args.calm),
        fill,
        depth: u64::from(args.depth()) * u64::from(cast.online),
        rate: rate.map(|rate| rate * share.load),
        reconnect_rate: args.reconnect_rate.map(|rate| rate * share.workers),
        visit_rate: args.visit_rate * share.load,
        visit_messages: args.visit_messages,
        deafness: args.deaf,
    }
}

/// The part that some are of all.
fn of(some: u32, all: u32) -> f64 {
    if all == 0 { 0.0 } else { f64::from(some) / f64::from(all) }
}

/// One worker's share of `n` users, in whole pairs; an odd one goes to the
/// last worker.
pub(crate) fn share(n: u32, workers: u32, index: u32) -> u32 {
    let up_to = |index: u32| (u64::from(n / 2) * u64::from(index) / u64::from(workers)) as u32;
    let odd = if index + 1 == workers { n % 2 } else { 0 };
    2 * (up_to(index + 1) - up_to(index)) + odd
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

    #[test]
    fn every_worker_of_an_ordeal_has_somebody_to_write_to() {
        use clap::Parser;
        for scenario in ["hot-inbox", "storm", "slow", "churn", "crusher"] {
            let args = Args::parse_from(["iris-loadgen", scenario, "-c", "100", "-w", "3"]);
            let specs = specs(&args);
            assert_eq!(specs.len(), 3);
            for spec in &specs {
                assert!(spec.cast.lines() > 0, "{scenario}");
                let writes = spec.cast.online > 0 || args.scenario == Scenario::Churn;
                assert!(writes && spec.ordeal.is_some() && spec.cast.witnesses % 2 == 0);
            }
            if args.scenario == Scenario::HotInbox {
                let fills = specs.iter().filter_map(|spec| spec.ordeal).map(|ordeal| ordeal.fill);
                assert_eq!(fills.sum::<u64>(), args.messages);
            }
            let rate: f64 = specs.iter().map(|spec| spec.witness_rate).sum();
            assert!((rate - args.witness_rate()).abs() < 1e-6);
        }
    }
}
