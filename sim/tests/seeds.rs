//! The same seed lives the same life; a slice of seeds lives without a
//! violation. The long run is `sim --seeds N`.

use sim::Plant;

/// Seeds that found a defect once; each names what it found.
const FOUND: [(u64, &str); 14] = [
    (3, "a replaced v2 connection logged the newer one out"),
    (6, "a replaced v2 connection still got deliveries"),
    (27, "a body to be refused waited for room"),
    (91, "an inbox seq that a crash took was given out again"),
    (147, "bytes beyond the durable end were read and called damaged"),
    (199, "an expired entry took up a window of one"),
    (231, "bytes beyond the durable end were read and called damaged"),
    (251, "two connections of one device reached the owner out of order"),
    (389, "a refused send was called SENT when it was repeated"),
    (451, "what waited for room was not woken by a failed write"),
    (846, "an inbox seq that a crash took was given out again"),
    (1142, "and so was a leap that the crash took as well"),
    (1976, "a window and an expiry"),
    (11273, "DELIVERED for an entry that expired unread"),
];

#[test]
fn the_same_seed_lives_the_same_life() {
    for seed in [1, 2, 5, 8, 13, 21] {
        let (first, _) = sim::run(seed, Plant::None);
        let (second, _) = sim::run(seed, Plant::None);
        assert_eq!((first.hash, first.stats), (second.hash, second.stats), "seed {seed}");
    }
}

#[test]
fn other_seeds_live_other_lives() {
    assert_ne!(sim::run(1, Plant::None).0.hash, sim::run(2, Plant::None).0.hash);
}

#[track_caller]
fn check(seed: u64, why: &str) {
    let (outcome, lines) = sim::run(seed, Plant::None);
    if let Some(violation) = outcome.violation {
        panic!("{}\nseed {seed} ({why}): {violation}", lines.join("\n"));
    }
}

#[test]
fn seeds_that_found_something_stay_quiet() {
    for (seed, why) in FOUND {
        check(seed, why);
    }
}

#[test]
fn a_slice_of_seeds_is_quiet() {
    for seed in 20_000..20_200 {
        check(seed, "slice");
    }
}
