//! Plans for a table of machines, held by snapshot, and the invariants of a
//! plan over a grid of machines and wishes.
//!
//! `IRIS_BLESS=1 cargo test -p tuning --test plans` writes the snapshots anew;
//! the difference is then for a reviewer to judge.

use std::path::Path;

use tuning::doctor::Report;
use tuning::{DiskProbe, Machine, Plan, RingFeatures, Wishes, Without, Written, plan};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// The machine on which most of this was built.
fn two_cores() -> Machine {
    Machine {
        cores: vec![0, 1],
        numa_nodes: 1,
        ram_bytes: 24 * GIB,
        cgroup_memory_bytes: None,
        cgroup_cpus: None,
        nofile_soft: 20_000,
        nofile_hard: 20_000,
        nr_open: 1 << 20,
        file_max: u64::MAX,
        memlock: 8 * MIB,
        file_bytes_max: u64::MAX,
        address_space: u64::MAX,
        kernel: (6, 18),
        ring: RingFeatures::all(),
        without: Without::default(),
        somaxconn: 4096,
        port_range: (32768, 60999),
        conntrack_max: None,
        netdev_backlog: Some(1_000),
        disk: Some(DiskProbe {
            fs: "ext4".to_owned(),
            direct_mode: "O_DIRECT + RWF_DSYNC".to_owned(),
            fdatasync_per_s: 12_000,
            write_p50_us: 80,
            write_p99_us: 150,
            free_bytes: 80 * GIB,
        }),
    }
}

fn one_small_core() -> Machine {
    Machine {
        cores: vec![0],
        ram_bytes: 512 * MIB,
        nofile_soft: 1024,
        nofile_hard: 4096,
        disk: None,
        ..two_cores()
    }
}

fn sixty_four_cores() -> Machine {
    Machine {
        cores: (0..64).collect(),
        numa_nodes: 2,
        ram_bytes: 256 * GIB,
        nofile_soft: 1024,
        nofile_hard: 1 << 20,
        conntrack_max: Some(262_144),
        netdev_backlog: Some(100_000),
        somaxconn: 128,
        ..two_cores()
    }
}

fn in_a_container() -> Machine {
    Machine {
        cgroup_memory_bytes: Some(2 * GIB),
        cgroup_cpus: Some(2.5),
        nofile_hard: 1 << 20,
        ..sixty_four_cores()
    }
}

fn old_kernel() -> Machine {
    Machine { kernel: (5, 10), memlock: 512 << 10, ring: RingFeatures::default(), ..two_cores() }
}

fn without_ring() -> Machine {
    let why = "io_uring is switched off for everyone (kernel.io_uring_disabled = 2)".to_owned();
    Machine {
        ring: RingFeatures { unavailable: Some(why), ..RingFeatures::default() },
        ..two_cores()
    }
}

fn check(name: &str, machine: &Machine, wishes: &Wishes) -> Plan {
    let plan = plan(machine, wishes);
    let sizes = serde_json::to_string_pretty(&Sizes(&plan).value()).unwrap();
    let shown = format!("{}\n{sizes}\n", Report::new(machine, &plan, None).text());
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plans").join(format!("{name}.txt"));
    if std::env::var_os("IRIS_BLESS").is_some() {
        std::fs::write(&path, &shown).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(shown, kept, "the plan for {name} changed; IRIS_BLESS=1 accepts it");
    plan
}

/// The plan's sizes without its sentences, which the report has already.
struct Sizes<'a>(&'a Plan);

impl Sizes<'_> {
    fn value(&self) -> serde_json::Value {
        let mut value = serde_json::to_value(self.0).unwrap();
        let map = value.as_object_mut().unwrap();
        for told in ["reasons", "limits", "stops"] {
            map.remove(told);
        }
        let cores: Vec<String> = self.0.core_of_shard.iter().map(ToString::to_string).collect();
        map.insert("core_of_shard".to_owned(), cores.join(" ").into());
        value
    }
}

#[test]
fn two_cores_and_the_defaults() {
    let plan = check("two-cores", &two_cores(), &Wishes::default());
    assert_eq!((plan.shards, plan.core_of_shard.as_slice()), (2, &[0, 1][..]));
    assert!(plan.conns_max > 15_000, "the memory test holds 15,000 plain connections");
    assert!(!plan.direct_descriptors);
    assert_eq!(plan.tail_bytes as u64, 8 * MIB);
}

#[test]
fn a_million_connections_on_two_cores() {
    let asked = Wishes { conns_max: Some(1_000_000), ..Wishes::default() };
    let refused = check("million-refused", &two_cores(), &asked);
    assert_eq!(refused.stops.len(), 1);

    let asked = Wishes { shards: Some(52), ..asked };
    let plan = check("million", &two_cores(), &asked);
    assert_eq!(plan.stops, []);
    assert_eq!(plan.conns_max, 1_000_000);
    assert!(plan.direct_descriptors && plan.conns_max_per_shard <= 20_000);
}

#[test]
fn many_shards_on_two_cores_stay_small() {
    let plan =
        check("fifty-one-shards", &two_cores(), &Wishes { shards: Some(51), ..Wishes::default() });
    assert_eq!(plan.core_of_shard[..4], [0, 1, 0, 1]);
    assert!(plan.fixed_bytes < GIB);
}

#[test]
fn a_data_directory_keeps_what_it_was_written_with() {
    let written = Some(Written { shards: 16, segment_bytes: 3 * MIB });
    let plan = check("written", &two_cores(), &Wishes { written, ..Wishes::default() });
    assert_eq!((plan.shards, plan.segment_bytes), (16, 3 * MIB));
    assert_eq!(plan.tail_bytes as u64, MIB, "tails fill the segment that is there");

    let wishes = Wishes {
        shards: Some(2),
        tail_bytes: Some(8 * MIB),
        segment_bytes: Some(64 * MIB),
        written,
        ..Wishes::default()
    };
    let plan = tuning::plan(&two_cores(), &wishes);
    assert_eq!(plan.shards, 2, "the directory itself refuses another number");
    assert_eq!((plan.tail_bytes as u64, plan.segment_bytes), (MIB, 3 * MIB));
}

#[test]
fn small_large_and_fenced_machines() {
    check("one-small-core", &one_small_core(), &Wishes::default());
    check("sixty-four-cores", &sixty_four_cores(), &Wishes::default());
    check("container", &in_a_container(), &Wishes::default());
}

#[test]
fn old_kernels_run_with_less_and_none_without_a_ring() {
    let plan = check("old-kernel", &old_kernel(), &Wishes::default());
    assert_eq!(plan.stops, []);
    let machine = without_ring();
    let plan = check("no-ring", &machine, &Wishes::default());
    assert_eq!(Report::new(&machine, &plan, None).exit_code(), 5);
    let direct = Wishes { direct_descriptors: Some(true), ..Wishes::default() };
    assert!(first_stop(&old_kernel(), &direct).contains("direct_descriptors"));
}

#[test]
fn what_cannot_be_had_is_refused_with_a_sentence() {
    let few = Machine { nofile_soft: 64, nofile_hard: 64, ..two_cores() };
    assert!(first_stop(&few, &Wishes::default()).contains("RLIMIT_NOFILE"));
    let locked = Machine { memlock: 128 << 10, ..two_cores() };
    assert!(first_stop(&locked, &Wishes::default()).contains("RLIMIT_MEMLOCK"));
    let many = Wishes { conns_max: Some(16_000_000), ..Wishes::default() };
    assert!(first_stop(&two_cores(), &many).contains("RLIMIT_NOFILE allows"));
    let much = Wishes { memory_bytes: Some(64 * GIB), ..Wishes::default() };
    assert!(first_stop(&two_cores(), &much).contains("memory_bytes"));
    let tiny = Wishes { memory_bytes: Some(MIB), ..Wishes::default() };
    assert!(first_stop(&two_cores(), &tiny).contains("too little"));
    let ancient = Machine { kernel: (4, 19), ..two_cores() };
    assert!(first_stop(&ancient, &Wishes::default()).contains("too old"));
    let crowded = Wishes { shards: Some(256), memory_bytes: Some(512 * MIB), ..Wishes::default() };
    assert!(first_stop(&two_cores(), &crowded).contains("at boot"));
}

#[test]
fn bounded_address_space_and_files_are_kept_within() {
    let small = Machine { address_space: 512 * MIB, ..two_cores() };
    assert!(first_stop(&small, &Wishes::default()).contains("RLIMIT_AS allows 512 MiB"));
    let large = Machine { address_space: 4 * GIB, ..two_cores() };
    let fits = plan(&large, &Wishes::default());
    assert_eq!((fits.stops, fits.memory_bytes), (vec![], 2 * GIB / 5 * 4));
    let files = Machine { file_bytes_max: 64 * MIB, ..two_cores() };
    assert!(first_stop(&files, &Wishes::default()).contains("RLIMIT_FSIZE allows 67,108,864"));
    let files = Machine { file_bytes_max: 64 * MIB + 4096, ..two_cores() };
    assert_eq!(plan(&files, &Wishes::default()).stops, []);
}

/// A refused data directory is the second reason that counts.
#[test]
fn a_refused_data_directory_is_told() {
    let refused = || Some("/data is on fire".to_owned());
    let machine = two_cores();
    let fine = plan(&machine, &Wishes::default());
    let report = Report::new(&machine, &fine, refused());
    assert!(report.text().ends_with("Cannot start: /data is on fire.\n"), "{}", report.text());
    assert_eq!(report.exit_code(), 3);
    let without = without_ring();
    let none = plan(&without, &Wishes::default());
    assert_eq!(Report::new(&without, &none, refused()).exit_code(), 5);
}

/// What was given up by hand is no fault of the kernel's.
#[test]
fn ways_done_without_are_told_apart_from_missing_ones() {
    let mut machine = Machine { kernel: (5, 19), ..two_cores() };
    machine.ring.without("single_issuer").unwrap();
    machine.do_without(&Without::named(&["multishot_poll", "rwf_dsync"]).unwrap());
    let text = Report::new(&machine, &plan(&machine, &Wishes::default()), None).text();
    for words in [
        "io_uring                 works, without multishot_poll, single_issuer\n",
        "done without             multishot_poll, rwf_dsync\n",
        "speed by the kernel: single_issuer of io_uring missing",
        "speed by debug.without: multishot_poll, rwf_dsync not used",
    ] {
        assert!(text.contains(words), "'{words}' is not in: {text}");
    }
}

fn first_stop(machine: &Machine, wishes: &Wishes) -> String {
    let plan = plan(machine, wishes);
    assert!(!plan.stops.is_empty());
    assert!(!Report::new(machine, &plan, None).ready);
    plan.stops[0].sentence.clone()
}

/// No machine and no wish within the configuration's bounds breaks a plan:
/// its own assertions run for each of these, and the sizes stay within memory.
#[test]
fn every_machine_gets_a_plan_that_holds() {
    let mut ready = 0;
    for cores in [1, 2, 3, 7, 64, 300] {
        for ram_bytes in [MIB, 64 * MIB, 512 * MIB, 24 * GIB, 4096 * GIB] {
            for nofile_hard in [0, 3, 100, 1024, 20_000, 1 << 20, u64::MAX] {
                let machine =
                    Machine { cores: (0..cores).collect(), ram_bytes, nofile_hard, ..two_cores() };
                for shards in [None, Some(1), Some(51), Some(256)] {
                    for conns_max in [None, Some(1), Some(100_000), Some(u64::MAX)] {
                        for direct_descriptors in [None, Some(false), Some(true)] {
                            let wishes = Wishes {
                                shards,
                                conns_max,
                                direct_descriptors,
                                ..Wishes::default()
                            };
                            ready += u32::from(holds(&machine, &wishes));
                        }
                    }
                }
            }
        }
    }
    assert!(ready > 1000, "the grid reaches plans that run, not only refusals");
}

/// What is taken when every bound is reached at once.
fn most_bytes(plan: &Plan) -> u64 {
    let tables = plan.users_max_per_shard as u64 * plan::USER_BYTES
        + plan.waiting_messages_max_per_shard as u64 * plan::WAITING_BYTES
        + plan.pairs_max_per_shard as u64 * plan::PAIR_BYTES;
    plan.fixed_bytes
        + plan.partial_bytes_max_total as u64
        + u64::from(plan.shards) * (plan.unsent_bytes_max_per_shard as u64 + tables)
        + plan.conns_max as u64 * (plan::CONN_USER_BYTES + plan::CONN_KERNEL_BYTES)
}

fn holds(machine: &Machine, wishes: &Wishes) -> bool {
    let plan = plan(machine, wishes);
    if !plan.stops.is_empty() {
        return false;
    }
    assert!(plan.fixed_bytes <= plan.memory_bytes, "{plan:?}");
    assert!(plan.memory_bytes <= machine.ram_bytes);
    assert!(most_bytes(&plan) <= plan.memory_bytes, "{plan:?}");
    let shards = u64::from(plan.shards);
    let conns = plan.conns_max_per_shard as u64;
    let descriptors = if plan.direct_descriptors { conns } else { conns * shards };
    assert!(descriptors <= machine.nofile_hard, "{plan:?}");
    assert!(wishes.conns_max.is_none_or(|wish| plan.conns_max as u64 == wish));
    true
}
