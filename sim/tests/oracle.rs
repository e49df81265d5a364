//! The oracle is tested like everything else: with a bug planted it must speak
//! up within a bounded number of seeds, and without one it must be silent on
//! the very same seeds.

use sim::Plant;

/// The first of these seeds that notices the plant.
fn noticed(plant: Plant, seeds: std::ops::Range<u64>) -> Option<(u64, String)> {
    seeds.into_iter().find_map(|seed| {
        let (outcome, _) = sim::run(seed, plant);
        outcome.violation.map(|violation| (seed, violation))
    })
}

/// A planted bug is noticed in `seeds`, and nothing is wrong there without it.
#[track_caller]
fn check(plant: Plant, seeds: std::ops::Range<u64>) {
    let Some((seed, violation)) = noticed(plant, seeds.clone()) else {
        panic!("{plant:?} was not noticed in {seeds:?}");
    };
    println!("{plant:?} was noticed by seed {seed}: {violation}");
    let found = noticed(Plant::None, seeds.start..seed + 1);
    assert_eq!(found, None, "without {plant:?} these seeds are clean");
}

#[test]
fn an_acknowledgement_before_the_fsync_is_noticed() {
    check(Plant::EarlyAck, 0..10);
}

/// Even by what clients lose alone, without a look at the disk.
#[test]
fn an_acknowledgement_before_the_fsync_loses_messages() {
    check(Plant::EarlyAckUnwatched, 0..40);
}

#[test]
fn a_forgotten_send_number_is_noticed() {
    check(Plant::ForgetNumber, 0..60);
}

#[test]
fn a_forgotten_acknowledgement_is_noticed() {
    check(Plant::ForgetAck, 0..60);
}

#[test]
fn who_had_what_was_set_aside_forgotten_is_noticed() {
    check(Plant::ForgetHad, 7_000_000..7_000_200);
}

#[test]
fn a_segment_deleted_too_early_is_noticed() {
    check(Plant::DeleteNext, 1200..1210);
}

#[test]
fn a_snapshot_named_too_early_is_noticed() {
    check(Plant::NameEarly, 1500..1800);
}

#[test]
fn a_switch_before_the_new_logs_are_synced_is_noticed() {
    check(Plant::SwitchUnsynced, 3_000_000..3_000_060);
}

#[test]
fn an_old_layout_removed_too_early_is_noticed() {
    check(Plant::SweepEarly, 3_000_000..3_000_200);
}

#[test]
fn an_acknowledgement_after_a_failed_sync_is_noticed() {
    check(Plant::AckFailedSync, 6_000_000..6_000_040);
}

#[test]
fn a_confirmation_without_space_is_noticed() {
    check(Plant::ConfirmWithoutPlace, 6_000_000..6_000_040);
}

#[test]
fn a_message_taken_on_a_full_disk_is_noticed() {
    check(Plant::IgnoreFull, 6_000_000..6_000_040);
}

#[test]
fn damage_taken_for_a_torn_end_is_noticed() {
    check(Plant::CutDamage, 6_000_000..6_000_100);
}

#[test]
fn a_record_passed_over_silently_is_noticed() {
    check(Plant::SkipBesideDamage, 6_000_000..6_000_300);
}

#[test]
fn what_a_torn_end_has_left_under_the_log_is_noticed() {
    check(Plant::LeaveTorn, 15_004_300..15_004_400);
}

#[test]
fn segments_judged_as_those_of_another_version_are_noticed() {
    check(Plant::OneFilling, 20_000_000..20_000_100);
}

#[test]
fn dead_segments_under_other_names_are_noticed() {
    check(Plant::TrustNames, 17_000_600..17_000_700);
}

#[test]
fn a_number_out_of_order_is_noticed() {
    check(Plant::TakeLate, 17_600_000..17_600_200);
}

#[test]
fn a_log_without_its_chain_is_noticed() {
    check(Plant::IgnoreChain, 0..1500);
}
