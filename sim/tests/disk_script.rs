//! The same script on the simulated disk and on a real one: after each step both
//! have the same segments, snapshots, bytes and space, and refuse the same; and
//! what a crash or a failing disk leaves on the real one is among what the
//! simulated one may leave.
//!
//! The steps are those of the log's disk half: write a commit, sync, make the
//! next segment, delete a dead one, write a snapshot piece by piece and give it
//! its name. A seed draws the script; where a power cut has lost something the
//! rest of it may differ from one time to the next. A core of the server writes
//! its commits through its ring instead (`net/tests/disk.rs`), into the same files.

#[path = "../../tests/server"]
#[allow(dead_code, unreachable_pub, reason = "what the server's tests know of disks")]
mod server {
    pub mod deadline;
    pub mod mounted;
    pub mod skipped;
}
mod twin;

use server::mounted::Mounted;
use twin::{Place, Tally, Twin};
use wal::disk::{DirectMode, probe};

const STEPS: usize = 250;

fn play(
    what: &str,
    seeds: std::ops::Range<u64>,
    mut twin: impl FnMut(u64) -> Option<Twin>,
) -> Tally {
    let mut tally = Tally::default();
    for seed in seeds {
        let Some(mut twin) = twin(seed) else { return tally };
        for _ in 0..STEPS {
            twin.step();
        }
        twin.crash();
        println!("{what}, seed {seed}: {:?}", twin.tally);
        tally += twin.tally;
    }
    // Otherwise this would show little.
    assert!(tally.written > 300 && tally.made > 20 && tally.crashes > 10, "{what}: {tally:?}");
    assert!(tally.snapshots > 10 && tally.deleted > 5, "{what}: {tally:?}");
    tally
}

#[test]
fn a_killed_process_leaves_all_it_wrote() {
    let tally = play("a directory", 0..4, |seed| {
        let dir = tempfile::tempdir().unwrap();
        let mode = probe(dir.path());
        Some(Twin::new(seed, Place::Dir(dir), mode, None))
    });
    assert_eq!((tally.lost, tally.came_back), (0, 0), "a kernel that goes on loses nothing");
}

#[test]
fn a_full_disk_refuses_what_the_simulated_one_refuses() {
    const SPACE: u64 = 12 << 20;
    let tally = play("a small disk", 100..104, |seed| {
        let room = twin::room_for(SPACE);
        let memory = Mounted::tmpfs(&room.to_string())?;
        Some(Twin::new(seed, Place::Memory(memory), DirectMode::BufferedFdatasync, Some(SPACE)))
    });
    assert!(tally.is_empty() || tally.full > 5, "{tally:?}");
}

#[test]
fn a_power_cut_and_a_failing_disk_leave_what_the_simulated_one_may_leave() {
    let tally = play("a disk behind a cache", 200..203, |seed| {
        let disk = Mounted::ext4(96 << 20)?;
        Some(Twin::new(seed, Place::Disk(disk), DirectMode::BufferedFdatasync, None))
    });
    // What was not synced is lost, and not all of it was synced.
    let shows = tally.lost > 0 && tally.simulated_lost > 0 && tally.failed > 0;
    assert!(tally.cut == 0 || shows, "{tally:?}");
    play("a disk written to directly", 300..303, |seed| {
        let disk = Mounted::ext4(96 << 20)?;
        let mode = probe(disk.path());
        if !mode.is_direct() {
            server::skipped::skipped(format!("no direct writes here: {mode:?}"));
            return None;
        }
        Some(Twin::new(seed, Place::Disk(disk), mode, None))
    });
}
