//! Message ids sort as time passes; partitions and owners cover everyone.

use proptest::prelude::*;
use wire::id::{Class, ID_COUNTER_END, MessageId, PARTITIONS, ShardId, UserKey};

const MS_END: u64 = 1 << 48;

proptest! {
    #[test]
    fn order_of_bytes_is_order_of_time(
        (a, b) in ((0..MS_END, 0..ID_COUNTER_END), (0..MS_END, 0..ID_COUNTER_END)),
        near in any::<bool>(),
        (node, other_node, shard, other_shard) in any::<(u16, u16, u16, u16)>(),
    ) {
        // Half of the cases within one millisecond, where the counter decides.
        let b = if near { (a.0, b.1) } else { b };
        let left = MessageId::new(a.0, a.1, node, shard);
        let right = MessageId::new(b.0, b.1, other_node, other_shard);
        if a != b {
            prop_assert_eq!(left.cmp(&right), a.cmp(&b));
            prop_assert_eq!(left.0.cmp(&right.0), a.cmp(&b));
        }
    }

    #[test]
    fn parts_come_back(ms in 0..MS_END, counter in 0..ID_COUNTER_END, node: u16, shard: u16) {
        let id = MessageId::new(ms, counter, node, shard);
        prop_assert_eq!((id.ms(), id.counter()), (ms, counter));
        prop_assert_eq!(id.0[6] >> 4, 7, "version");
        prop_assert_eq!(id.0[8] >> 6, 0b10, "variant");
        prop_assert_eq!(&id.0[10..12], &node.to_be_bytes());
        prop_assert_eq!(&id.0[12..14], &shard.to_be_bytes());
        prop_assert_eq!(&id.0[14..], &[0, 0]);
    }

    #[test]
    fn text_is_a_uuid(id: [u8; 16]) {
        let text = MessageId(id).to_string();
        let lengths: Vec<_> = text.split('-').map(str::len).collect();
        prop_assert_eq!(lengths, [8, 4, 4, 4, 12]);
        let value = u128::from_str_radix(&text.replace('-', ""), 16).expect("hex");
        prop_assert_eq!(value.to_be_bytes(), id);
    }

    #[test]
    fn every_key_has_a_partition_and_an_owner(key: u128, shards in 1..=u16::MAX) {
        let key = UserKey(key);
        prop_assert!(key.partition() < PARTITIONS);
        prop_assert!(key.owner(shards) < shards);
        prop_assert_eq!(key.owner(1), 0);
    }
}

#[test]
fn the_counter_carries_over_its_two_halves() {
    // 14 bits of the counter stand after the variant bits, 12 before them.
    let below = MessageId::new(5, (1 << 14) - 1, u16::MAX, u16::MAX);
    let above = MessageId::new(5, 1 << 14, 0, 0);
    assert!(below < above);
    let last = MessageId::new(5, ID_COUNTER_END - 1, u16::MAX, u16::MAX);
    assert!(above < last && last < MessageId::new(6, 0, 0, 0));
}

#[test]
fn time_wraps_at_48_bits_without_touching_the_rest() {
    let id = MessageId::new(u64::MAX, 0, 0, 0);
    assert_eq!((id.ms(), id.counter()), (MS_END - 1, 0));
}

#[test]
#[should_panic(expected = "the clock moves on")]
fn a_counter_that_is_too_large_is_ours_to_prevent() {
    MessageId::new(0, ID_COUNTER_END, 0, 0);
}

fn owners(shards: u16) -> Vec<ShardId> {
    (0..PARTITIONS)
        .map(|partition| {
            let key = UserKey(u128::from(partition) << 64);
            assert_eq!(key.partition(), partition);
            key.owner(shards)
        })
        .collect()
}

#[test]
fn partitions_are_dealt_in_contiguous_balanced_ranges() {
    for shards in 1..=64 {
        let owners = owners(shards);
        assert!(owners.is_sorted(), "{shards} shards: a shard's partitions are neighbours");
        let held: Vec<_> = (0..shards)
            .map(|shard| owners.iter().filter(|owner| **owner == shard).count())
            .collect();
        let least = usize::from(PARTITIONS / shards);
        assert!(held.iter().all(|n| *n == least || *n == least + 1), "{shards} shards: {held:?}");
    }
}

#[test]
fn partitions_are_used_evenly_by_any_good_hash() {
    // Only bits 64..76 of the key decide.
    let key = UserKey(u128::from(u64::MAX) | (0xabc << 64) | (7 << 80));
    assert_eq!(key.partition(), 0xabc);
}

#[test]
fn classes_are_numbers() {
    assert_eq!(Class::from_u8(0), Some(Class::BestEffort));
    assert_eq!(Class::from_u8(1), Some(Class::Guaranteed));
    assert!((2..=u8::MAX).all(|byte| Class::from_u8(byte).is_none()));
}
