//! Which segment is cleaned, swept and deleted, and when.

use proptest::prelude::*;

use super::super::hours::HOURS_MAX;
use super::*;

const SEGMENT: u64 = 1 << 20;
const LEN: u32 = 1000;

/// A log of full segments that hold so many live messages, and an empty one
/// being written.
fn space(live: &[u64]) -> Space {
    let mut space = Space::new(SEGMENT);
    for (segment, &count) in live.iter().enumerate() {
        space.reach(segment as u64 * SEGMENT);
        for n in 0..count {
            space.add(segment as u64 * SEGMENT + n * u64::from(LEN), LEN, 100 * HOUR_MS);
        }
    }
    space.reach(live.len() as u64 * SEGMENT);
    space
}

fn victim(space: &Space) -> Option<u64> {
    space.victim(HOUR_MS, u64::MAX, 0)
}

fn is_emptying(space: &Space, segment: usize) -> bool {
    space.emptying().nth(segment).expect("it holds something").1
}

#[test]
fn the_emptiest_segment_is_the_victim() {
    assert_eq!(victim(&space(&[1000, 1000])), None);
    assert_eq!(victim(&space(&[600, 600])), None, "less than twice");
    assert_eq!(victim(&space(&[500, 499])), Some(1));
    assert_eq!(victim(&space(&[300, 300, 900])), Some(0), "the oldest of equals");
    assert_eq!(victim(&space(&[0, 700, 0, 0])), None, "the dead do not count");
    assert_eq!(victim(&space(&[0, 500, 0, 0])), Some(1));
    assert_eq!(victim(&space(&[])), None);
}

/// Until they stop before it is empty.
#[test]
fn what_its_readers_empty_is_no_victim() {
    let mut space = space(&[1000, 900]);
    let mut at = 0..1000;
    let acknowledge = |space: &mut Space, at: u64| {
        space.acknowledged(at * u64::from(LEN), LEN, 9);
    };
    at.by_ref().take(900).for_each(|at| acknowledge(&mut space, at));
    assert_eq!(victim(&space), None);
    space.tick();
    assert_eq!((is_emptying(&space, 0), victim(&space)), (true, None));
    space.tick();
    assert_eq!((is_emptying(&space, 0), victim(&space)), (false, Some(0)));
    at.by_ref().take(9).for_each(|at| acknowledge(&mut space, at));
    assert_eq!(victim(&space), Some(0), "that is too slow");
    acknowledge(&mut space, at.next().expect("ninety are left"));
    assert_eq!(victim(&space), None);
}

/// The one being written empties, too, but what is copied stands there.
#[test]
fn what_is_written_counts_though_it_is_acknowledged_at_once() {
    let mut space = space(&[500]);
    let victim = |space: &Space| space.victim(HOUR_MS, SEGMENT, 0);
    assert_eq!(victim(&space), Some(0));
    for n in 0..500 {
        space.add(SEGMENT + n * u64::from(LEN), LEN, 0);
    }
    (0..60).for_each(|n| space.acknowledged(SEGMENT + n * u64::from(LEN), LEN, 9));
    assert_eq!((is_emptying(&space, 1), victim(&space)), (true, None));
}

/// Those who come back take the newest messages first, five segments a second,
/// and leave one of fifty: what they leave behind them is nearly dead, and lies
/// behind those who take the next. The most segments beyond twice the live bytes.
#[test]
fn readers_of_the_newest_keep_little_from_being_cleaned() {
    let (segments, each, by_tick) = (200, 1000, 500);
    let len = u64::from(LEN);
    let mut space = space(&vec![each; segments as usize]);
    let place = |segment: u64, n: u64| segment * SEGMENT + n * len;
    let mut left: Vec<Vec<Lsn>> = Vec::new();
    left.extend((0..segments).map(|at| (0..each).map(|n| place(at, n)).collect()));
    let pairs = (0..segments / 2).rev().flat_map(|pair| [2 * pair, 2 * pair + 1]);
    let order: Vec<Lsn> =
        pairs.flat_map(|at| (0..each).filter(|n| n % 50 > 0).map(move |n| place(at, n))).collect();
    let (mut end, mut deleted, mut most) = (segments * SEGMENT, 0, 0);
    for collected in order.chunks(by_tick) {
        for &lsn in collected {
            let stays = &mut left[(lsn / SEGMENT) as usize];
            if let Ok(at) = stays.binary_search(&lsn) {
                stays.remove(at);
                space.acknowledged(lsn, LEN, end);
            }
        }
        space.tick();
        while let Some(victim) = space.victim(HOUR_MS, end / SEGMENT * SEGMENT, 0) {
            for lsn in std::mem::take(&mut left[victim as usize]) {
                space.add(end, LEN, 0);
                left.resize((end / SEGMENT) as usize + 1, Vec::new());
                left[(end / SEGMENT) as usize].push(end);
                end += len;
                space.sub(lsn, LEN, end);
            }
        }
        for dead in space.dead(end, end).collect::<Vec<_>>() {
            space.forget(dead);
            deleted += 1;
        }
        let there = (end / SEGMENT + 1 - deleted) * SEGMENT;
        most = most.max(there.saturating_sub(2 * space.total_live().0));
    }
    println!("at most {:.1} segments beyond twice the live bytes", most as f64 / SEGMENT as f64);
    assert!(most <= 2 * 10 * by_tick as u64 * len, "two seconds' acknowledgements");
}

#[test]
fn only_what_is_full_and_durable_is_a_victim() {
    let space = space(&[10, 10, 10]);
    assert_eq!(space.victim(0, SEGMENT - 1, 0), None);
    assert_eq!(space.victim(0, SEGMENT, 0), Some(0));
    let mut space = Space::new(SEGMENT);
    space.add(5, LEN, 0);
    assert_eq!(space.victim(0, 4096, 0), None, "it is being written");
}

#[test]
fn what_expires_makes_a_victim() {
    let mut space = Space::new(SEGMENT);
    for n in 0..2000 {
        let hour = if n < 1000 { 10 } else { 20 };
        space.add(n * u64::from(LEN), LEN, hour * HOUR_MS + 7);
    }
    space.reach(2 * SEGMENT);
    assert_eq!(space.victim(10 * HOUR_MS + 8, u64::MAX, 0), None, "not the whole hour");
    assert_eq!(space.victim(11 * HOUR_MS, u64::MAX, 0), Some(0));
    // Half of what remains of the first segment is taken to be expired.
    let mut half = super::tests::space(&[0]);
    for n in 0..1000 {
        half.add(SEGMENT + n * u64::from(LEN), LEN, if n < 500 { HOUR_MS } else { 0 });
    }
    for n in 0..400 {
        half.sub(SEGMENT + n * u64::from(LEN), LEN, 9);
    }
    let cell = &half.cells[1];
    assert_eq!((cell.live_bytes, cell.unexpired(0)), (600_000, 600_000));
    assert_eq!(cell.unexpired(2 * HOUR_MS), 300_000);
    assert_eq!(cell.unexpired(u64::MAX), 300_000, "what never expires stays");
}

#[test]
fn what_lies_beside_makes_victims_earlier() {
    let space = space(&[600, 600, 700, 700]); // 2.6 million bytes in 4 MiB
    let victim = |beside| space.victim(HOUR_MS, u64::MAX, beside);
    assert_eq!(victim(SEGMENT - 100_000), None);
    assert_eq!(victim(SEGMENT), Some(0));
    // Two thirds full is full enough, whatever lies beside.
    assert_eq!(super::tests::space(&[700, 700]).victim(HOUR_MS, u64::MAX, u64::MAX), None);
    assert_eq!(super::tests::space(&[690, 690]).victim(HOUR_MS, u64::MAX, u64::MAX), Some(0));
}

/// Full segments; of the first, so many messages expire in these hours.
fn expiring(hours: &[(u64, u64)]) -> Space {
    let mut space = space(&[0, 1000]);
    let mut n = 0;
    for &(hour, count) in hours {
        for _ in 0..count {
            space.add(n * u64::from(LEN), LEN, hour * HOUR_MS);
            n += 1;
        }
    }
    space
}

#[test]
fn an_eighth_is_swept_at_once_and_less_after_a_day() {
    let due = |space: &Space, hour: u64| space.expired(hour * HOUR_MS, u64::MAX);
    let mut space = expiring(&[(1, 132), (2, 30), (5, 30), (90, 800)]);
    assert_eq!(due(&space, 1), None);
    assert_eq!(space.expired(2 * HOUR_MS, SEGMENT - 1), None, "it is being written");
    assert_eq!(due(&space, 2), Some(0));
    space.swept(0, 2 * HOUR_MS);
    assert_eq!(due(&space, 3), None, "what was given up is not looked for again");
    // The second time it takes two days.
    assert_eq!(due(&space, 3 + 47), None);
    assert_eq!(due(&space, 3 + 48), Some(0));
    space.swept(0, 51 * HOUR_MS);
    assert_eq!(due(&space, 90), None);
    assert_eq!(due(&space, 91), Some(0), "nothing else is left");
    let fresh = expiring(&[(1, 3), (900, 900)]);
    assert_eq!(due(&fresh, 25), None);
    assert_eq!(due(&fresh, 26), Some(0));
}

/// However the hours lie and whenever somebody looks.
#[test]
fn a_segment_is_swept_eight_times_at_most() {
    for step in [1, 3, 7, 24, 100] {
        let each: Vec<_> = (1..=1000).map(|hour| (hour, 1)).collect();
        let mut space = expiring(&each);
        space.forget_second();
        let mut sweeps = 0;
        for now_ms in (0..3000).step_by(step).map(|hour| hour * HOUR_MS) {
            while space.expired(now_ms, u64::MAX) == Some(0) {
                space.swept(0, now_ms);
                sweeps += 1;
            }
        }
        assert!((1..=8).contains(&sweeps), "{sweeps} sweeps with steps of {step} hours");
        assert_eq!(space.cells[0].hours.list(), [], "all of it was given up");
    }
}

impl Space {
    /// Takes away what [`space`] put into the second segment.
    fn forget_second(&mut self) {
        for n in 0..1000 {
            self.sub(SEGMENT + n * u64::from(LEN), LEN, 0);
        }
        self.forget(1);
    }
}

#[test]
fn the_dead_wait_for_the_snapshot_and_the_disk() {
    let mut space = space(&[1, 0, 1]);
    let dead = |space: &Space, below, durable| space.dead(below, durable).collect::<Vec<_>>();
    assert_eq!(dead(&space, u64::MAX, u64::MAX - 1)[..1], [1]);
    assert_eq!(dead(&space, 2 * SEGMENT, 0), [1]);
    assert_eq!(dead(&space, 2 * SEGMENT - 1, 0), [0; 0]);
    space.sub(0, LEN, 5000);
    assert_eq!(dead(&space, 2 * SEGMENT, 4999), [1]);
    assert_eq!(dead(&space, 2 * SEGMENT, 5000), [0, 1]);
    assert_eq!(space.total_live(), (1000, 1));
    assert_eq!(space.needed(), [(2, 1000, 1)]);
    space.forget(0);
    assert_eq!(dead(&space, 2 * SEGMENT, 5000), [1]);
}

#[test]
fn a_segment_that_is_passed_over_while_nothing_is_known_is_known_later() {
    let mut space = space(&[1, 1]);
    space.reach(SEGMENT);
    for segment in [0, 1] {
        space.sub(segment * SEGMENT, LEN, 0);
        space.forget(segment);
    }
    space.reach(3 * SEGMENT);
    assert_eq!(space.dead(4 * SEGMENT, 0).collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn a_damaged_segment_is_left_alone() {
    let mut space = space(&[1, 2]);
    space.leave(0);
    assert_eq!(victim(&space), Some(1));
    space.sub(0, LEN, 0);
    space.sub(SEGMENT, LEN, 0);
    space.sub(SEGMENT + 1000, LEN, 0);
    assert_eq!(victim(&space), None);
    assert_eq!(space.dead(2 * SEGMENT, 0).collect::<Vec<_>>(), [1]);
    space.return_to(0);
    assert_eq!(space.dead(2 * SEGMENT, 0).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn a_restart_finds_what_is_on_the_disk() {
    let mut space = Space::new(SEGMENT);
    space.restore(7 * SEGMENT, LEN);
    space.restore(3 * SEGMENT, LEN);
    space.decode(&encoded(&super::tests::space(&[1; 9]), 0)).unwrap();
    space.present([3, 5, 7, 8, 9, 10], 8 * SEGMENT + 5);
    let known: Vec<u64> = space.cells.iter().map(|cell| cell.segment).collect();
    assert_eq!(known, [3, 5, 7, 8], "those made ahead hold nothing yet");
    assert_eq!(space.dead(8 * SEGMENT, 0).collect::<Vec<_>>(), [5]);
}

#[test]
#[should_panic(expected = "was counted")]
fn what_was_never_added_cannot_leave() {
    space(&[1, 0]).sub(SEGMENT, LEN, 0);
}

/// All payloads in one.
fn encoded(space: &Space, as_of: Lsn) -> Vec<u8> {
    let (mut all, mut from) = (Vec::new(), 0);
    loop {
        let mut payload = Vec::new();
        let next = space.encode(from, as_of, &mut payload);
        assert!(payload.len() < PAYLOAD_BYTES + 20 + 12 * HOURS_MAX);
        all.extend_from_slice(&payload);
        match next {
            Some(next) => from = next,
            None => return all,
        }
    }
}

#[test]
fn the_hours_survive_and_are_not_counted_twice() {
    let mut before = space(&[3, 4]);
    before.add(2 * SEGMENT + 100, LEN, 50 * HOUR_MS);
    let mut after = Space::new(SEGMENT);
    after.decode(&encoded(&before, 2 * SEGMENT + 200)).unwrap();
    after.add(2 * SEGMENT + 100, LEN, 50 * HOUR_MS); // replayed
    after.add(2 * SEGMENT + 200, LEN, 60 * HOUR_MS); // new
    let hours: Vec<_> = after.cells.iter().map(|cell| cell.hours.list()).collect();
    assert_eq!(hours, [vec![(100, 3000)], vec![(100, 4000)], vec![(50, 1000), (60, 1000)]]);
    assert_eq!(after.total_live(), (2000, 2));
    assert_eq!(after.decode(&encoded(&before, 9)), Err(Malformed::Payload), "twice");
}

#[test]
fn hours_are_bounded_and_payloads_are_sliced() {
    let mut space = Space::new(SEGMENT);
    for segment in 0..5 {
        for hour in (1..3000).rev() {
            space.add(segment * SEGMENT, 1, hour * HOUR_MS);
        }
    }
    assert!(space.cells.iter().all(|cell| cell.hours.list().len() == HOURS_MAX));
    let sum = |cell: &Cell| cell.hours.list().iter().map(|(_, bytes)| bytes).sum::<u64>();
    assert!(space.cells.iter().all(|cell| sum(cell) == 2999));
    let mut payload = Vec::new();
    assert_eq!(space.encode(0, 1, &mut payload), Some(3));
    let mut after = Space::new(SEGMENT);
    after.decode(&encoded(&space, 1)).unwrap();
    assert_eq!(after.cells.len(), 5);
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut space = Space::new(SEGMENT);
        let _ = space.decode(&bytes);
        let _ = space.victim(HOUR_MS, u64::MAX / 2, 1 << 20);
    }

    /// Whatever happens, the sums are those of the messages that are there.
    #[test]
    fn the_sums_agree(steps in prop::collection::vec((0..6u64, any::<bool>()), 0..200)) {
        let mut space = Space::new(SEGMENT);
        let mut live: Vec<Lsn> = Vec::new();
        let mut end = 0;
        for (n, adds) in steps {
            end += n * 200_000;
            if adds || live.is_empty() {
                space.add(end, LEN, n * HOUR_MS);
                live.push(end);
            } else if n % 2 == 0 {
                space.sub(live.remove(n as usize % live.len()), LEN, end);
            } else {
                space.acknowledged(live.remove(n as usize % live.len()), LEN, end);
                space.tick();
            }
            prop_assert_eq!(space.total_live().1, live.len() as u64);
            if let Some(victim) = space.victim(3 * HOUR_MS, end, 0) {
                prop_assert!((victim + 1) * SEGMENT <= end);
                prop_assert!(live.iter().any(|at| at / SEGMENT == victim));
            }
            for dead in space.dead(end, end) {
                prop_assert!(live.iter().all(|at| at / SEGMENT != dead));
            }
        }
        let needed: u64 = space.needed().iter().map(|(_, _, messages)| messages).sum();
        prop_assert_eq!(needed, live.len() as u64);
    }
}
