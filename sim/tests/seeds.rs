//! The same seed lives the same life; a slice of seeds lives without a
//! violation. The long run is `sim --seeds N`.

use sim::Plant;

/// Seeds that notice when the repair of a defect is undone, and which: tried
/// with each of them taken out again. A world that draws otherwise needs others.
const NOTICE: [(u64, &str); 53] = [
    (0, "an answer overtakes one that waits for the disk"),
    (1, "a hole takes up a window"),
    (2, "a replaced v2 connection logs the newer one out"),
    (2, "an inbox seq that a crash took is given out again"),
    (4, "a body to be refused waits for room"),
    (52, "a refused send is called SENT when it is repeated"),
    (84, "an answer waits for a write although everything is durable"),
    (281, "what waits for room is not woken by a failed write"),
    (664, "bytes beyond the durable end are read and called damaged"),
    (1185, "an entry is shown early before the leap is durable"),
    (1201, "a read for a device expects copies in the order of their inbox"),
    (1_008_297, "a number that a refusal used up is forgotten after a restart"),
    (1_009_272, "the same, with nothing else in the log"),
    (2_010_532, "a login left behind on a v1 connection takes over before that ends"),
    (6_219_982, "a repair takes the floor of the unknown for the inbox of a known user"),
    (6_300_535, "a repair moves the cursor of v1 over a number whose copy follows"),
    (7_000_071, "a segment that could not be read once is never cleaned again"),
    (7_000_492, "what came back waits for a device that has had it and is away"),
    (7_009_000, "a segment that is passed over while nothing is known is never deleted"),
    (8_123_201, "a damaged length led a repair past records that were not"),
    (9_740_395, "a repair begun again takes the torn end for confirmed"),
    (10_130_706, "the oracle asks who began behind a letter for it when it comes back"),
    (12_000_792, "a hole behind what rotted hides that it was durable"),
    (12_100_550, "what a torn tail left beside a hole is believed"),
    (12_101_134, "a repair without a snapshot does not speak of a lost beginning"),
    (12_116_202, "a repair dies when all that is missing has been said"),
    (12_276_101, "a stale write behind a torn one is believed before a hole"),
    (12_288_111, "a stale acknowledgement is"),
    (12_406_844, "a repair dies when it has written over what rotted"),
    (12_520_224, "the oracle forgets that what dies makes twice as much too many"),
    (12_522_357, "a repair after the clock was set back has numbers begin lower"),
    (12_544_378, "the oracle waits for room in an inbox of what cannot be read"),
    (12_547_859, "the oracle asks for a record over what was had under another number"),
    (12_800_881, "a leap of an earlier repair and numbers that are lost are not added up"),
    (12_819_816, "a shard that was repaired without users keeps a dead segment"),
    (12_852_995, "the oracle misses who has what a torn acknowledgement beside a hole says"),
    (12_867_755, "the oracle takes zeroes behind a hole for a commit's"),
    (12_889_112, "the oracle asks for what stood in a hole before something that is kept"),
    (13_053_153, "the oracle misses that two lives began with the same records"),
    (15_034_110, "the oracle has a repair say twice what a deleted segment had"),
    (16_122_641, "nobody makes space for a snapshot when acknowledgements took it"),
    (16_534_674, "a repair dies when it has written over the beginning of a long torn end"),
    (17_112_092, "the oracle misses that v1 let go of what a torn acknowledgement says"),
    (17_204_338, "the oracle waits for v1 to get what it has let go of"),
    (17_598_074, "the world forgets over a start that the reserve is used up"),
    (17_541_871, "a device that a second repair knows nothing of begins again"),
    (17_542_267, "a damaged length that fits leads a repair past a record that is not damaged"),
    (17_600_728, "a shard that was given a segment at need stays full when there is space"),
    (17_746_487, "cleaning uses up the last place of a full disk with half a segment"),
    (17_900_782, "a segment is chosen for cleaning and left again, for ever"),
    (17_912_049, "the world has no place for twice what waits"),
    (19_017_073, "a snapshot vouches for half a commit, whose head has rotted"),
    (20_324_087, "the oracle asks another layout for what v1 has let go of"),
];

#[test]
fn the_same_seed_lives_the_same_life() {
    for seed in [
        1, 2, 5, 8, 13, 21, 3_000_001, 3_000_002, 6_000_001, 6_000_002, 7_000_001, 8_000_001,
        14_000_001, 15_000_001, 16_000_001, 16_000_002, 17_000_001, 17_000_020, 19_000_001,
    ] {
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
fn seeds_that_noticed_something_are_quiet() {
    for (seed, why) in NOTICE {
        check(seed, why);
    }
}

#[test]
fn a_slice_of_seeds_is_quiet() {
    for from in [
        20_000, 3_000_000, 6_000_000, 7_000_000, 8_000_000, 10_000_000, 11_000_000, 12_000_000,
        14_000_000, 15_000_000, 16_000_000, 17_000_000, 19_000_000, 20_000_000,
    ] {
        for seed in from..from + 200 {
            check(seed, "slice");
        }
    }
}
