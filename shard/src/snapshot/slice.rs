//! The state of all users as bytes, in slices between which the shard works on.
//!
//! A slice is a sequence of items:
//!
//! ```text
//! 1 user     key 16 | last seen 4 | as of 8 | first 8 | last 8 | has inbox 1 |
//!            devices 1, each: id 8, cursor 8 | name 2 + its bytes
//! 2 entries  first seq 8 | count 4, each: lsn 8, length, who had it and v1's flag 4
//! 3 pairs    count 4, each 32
//! 4 aside    count 4, each: seq 8, lsn 8, length and who had it 4
//! ```
//!
//! All of these belong to the user before them; a long inbox has several of
//! each. What is aside comes before the entries. Integers are little-endian. A user without a name, the first one,
//! is nobody: its last number is the one above which the inboxes of new users
//! begin (see `salvage`).
//!
//! A user's head is exact as of the log's end when it was encoded; replay skips
//! what stands in the log before that. What follows of a long inbox may be
//! newer than its head: what happened to it in between only burned, moved, gave
//! up, set aside, brought back or raised something, and does so again in the replay without harm.

use wal::Lsn;
use wire::id::UserKey;
use wire::limits::DEVICES_MAX;

use super::Slice;
use crate::Shard;
use crate::dedup::PAIR_BYTES;
use crate::inbox::Entry;
use crate::pairs::Pairs;
use crate::user::{Devices, Name, User, UserIndex};

/// Holes in a row that one slice looks at.
const HOLES_AT_ONCE: u64 = 1 << 16;
/// Pairs that one slice moves to give back memory, and those of one part more.
const MOVED_AT_ONCE: usize = 1000;

pub(super) const USER: u8 = 1;
pub(super) const ENTRIES: u8 = 2;
pub(super) const PAIRS: u8 = 3;
pub(super) const ASIDE: u8 = 4;

pub(super) const ENTRY_BYTES: usize = 12;
pub(super) const SHELVED_BYTES: usize = 8 + ENTRY_BYTES;
/// In an entry's length: protocol v1 has acknowledged it.
pub(super) const ACKED_BY_V1: u32 = 1 << 31;
/// In it, too: by position, the devices that have had it under another number.
pub(super) const HAD_BY: u32 = ((1 << DEVICES_MAX) - 1) << (31 - DEVICES_MAX);

/// How far a snapshot is encoded.
pub(crate) struct Taking {
    /// Pairs untouched since before this hour are left out and forgotten.
    pairs_from_h: u32,
    /// The floor of new users is encoded.
    has_floor: bool,
    user: UserIndex,
    part: Part,
}

/// How far the current user is.
#[derive(Clone, Copy)]
pub(super) enum Part {
    Head,
    /// What is aside, from this seq on; then the entries.
    Aside {
        from: u64,
        next: u64,
        last: u64,
    },
    /// From this seq on, up to the last one its head knew.
    Entries {
        next: u64,
        last: u64,
    },
    Pairs(Walk),
    /// From this part of them on memory is given back.
    Shrink(usize),
}

/// A walk through the pairs, part by part and place by place. An insertion between
/// two slices may move all of a part to other places, then that one begins again.
#[derive(Clone, Copy)]
pub(super) struct Walk {
    part: usize,
    place: usize,
    moves: u16,
}

impl Walk {
    pub(super) fn begin(pairs: &Pairs) -> Walk {
        Walk { part: 0, place: 0, moves: pairs.moves() }
    }
}

impl Taking {
    pub(crate) fn new(pairs_from_h: u32) -> Taking {
        Taking { pairs_from_h, has_floor: false, user: 0, part: Part::Head }
    }
}

impl Shard {
    /// Encodes the next users, about `bytes_max` bytes of them, to the end of
    /// `out`.
    pub(crate) fn encode_slice(
        &mut self,
        taking: &mut Taking,
        bytes_max: usize,
        out: &mut Vec<u8>,
    ) -> Slice {
        let as_of = self.log.end();
        let full = out.len() + bytes_max;
        let mut forgotten = 0;
        if !std::mem::replace(&mut taking.has_floor, true) && self.users.floor() > 0 {
            put_floor(self.users.floor(), as_of, out);
        }
        // At least one step, however small the slice is to be.
        while (taking.user as usize) < self.users.len() {
            let user = &mut self.users[taking.user];
            let room = full.saturating_sub(out.len());
            let before = out.len();
            let was_entries = matches!(taking.part, Part::Entries { .. });
            taking.part = match taking.part {
                Part::Head => put_head(user, as_of, out),
                Part::Aside { from, next, last } => put_shelf(user, from, (next, last), room, out),
                Part::Entries { next, last } => put_entries(user, next, last, room, out),
                Part::Shrink(part) => shrink_pairs(user, part),
                Part::Pairs(walk) => {
                    let (part, count) = put_pairs(user, walk, taking.pairs_from_h, room, out);
                    forgotten += count;
                    part
                }
            };
            let is_next = matches!(taking.part, Part::Head);
            taking.user += UserIndex::from(is_next);
            // Looking at holes and at empty buckets takes time as well.
            let is_slow = match taking.part {
                Part::Head => false,
                Part::Aside { .. } => false,
                Part::Entries { .. } => was_entries && out.len() == before,
                Part::Pairs(_) => !was_entries,
                Part::Shrink(_) => true,
            };
            if out.len() >= full || is_slow {
                break;
            }
        }
        self.metrics.counters.pairs -= forgotten;
        if (taking.user as usize) < self.users.len() {
            return Slice::More;
        }
        Slice::Done { end: as_of }
    }
}

/// As the user that nobody is, so that versions which know of no floor read it
/// and hand it on.
pub(super) fn put_floor(seq: u64, as_of: Lsn, out: &mut Vec<u8>) {
    let mut nobody = User {
        key: UserKey(0),
        name: Name::new(),
        devices: Devices::new(),
        inbox: None,
        last_seen_s: 0,
    };
    nobody.inbox_mut().raise_floor(seq);
    let _ = put_head(&nobody, as_of, out);
}

pub(super) fn put_head(user: &User, as_of: Lsn, out: &mut Vec<u8>) -> Part {
    let inbox = user.inbox.as_deref();
    let (first, last) = inbox.map_or((1, 0), |inbox| (inbox.first_seq(), inbox.last_seq()));
    out.push(USER);
    out.extend_from_slice(&user.key.0.to_le_bytes());
    out.extend_from_slice(&user.last_seen_s.to_le_bytes());
    for word in [as_of, first, last] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.push(u8::from(inbox.is_some()));
    out.push(u8::try_from(user.devices.len()).expect("a user has few devices"));
    for device in &user.devices {
        out.extend_from_slice(&device.id.to_le_bytes());
        out.extend_from_slice(&device.cursor.to_le_bytes());
    }
    let name_len = u16::try_from(user.name.len()).expect("names are short");
    out.extend_from_slice(&name_len.to_le_bytes());
    out.extend_from_slice(&user.name);
    match inbox {
        Some(inbox) if inbox.shelf().is_some() => Part::Aside { from: 0, next: first, last },
        Some(_) => Part::Entries { next: first, last },
        None => Part::Head,
    }
}

/// As much of what is aside as there is room for.
fn put_shelf(
    user: &User,
    from: u64,
    (next, last): (u64, u64),
    room: usize,
    out: &mut Vec<u8>,
) -> Part {
    let shelf = user.inbox.as_deref().and_then(|inbox| inbox.shelf());
    let count_at = put_run(ASIDE, 0, out);
    let (mut count, mut at) = (0, from);
    while let Some(it) = shelf.and_then(|shelf| shelf.from(at))
        && (count as usize) < (room / SHELVED_BYTES).max(1)
    {
        out.extend_from_slice(&it.seq.to_le_bytes());
        put_entry(&it.entry, out);
        (count, at) = (count + 1, it.seq + 1);
    }
    if count == 0 {
        out.truncate(count_at - 1);
        return Part::Entries { next, last };
    }
    out[count_at..count_at + 4].copy_from_slice(&u32::to_le_bytes(count));
    Part::Aside { from: at, next, last }
}

fn put_entry(entry: &Entry, out: &mut Vec<u8>) {
    let flags = u32::from(entry.had_by) << HAD_BY.trailing_zeros();
    let flags = flags | if entry.acked_by_v1 { ACKED_BY_V1 } else { 0 };
    assert!(entry.len & (ACKED_BY_V1 | HAD_BY) == 0, "records are far shorter than 128 MiB");
    out.extend_from_slice(&entry.lsn.to_le_bytes());
    out.extend_from_slice(&(entry.len | flags).to_le_bytes());
}

/// One run of entries without a hole in it.
fn put_entries(user: &User, next: u64, last: u64, room: usize, out: &mut Vec<u8>) -> Part {
    let inbox = user.inbox.as_deref().expect("an inbox stays");
    let next = next.max(inbox.first_seq());
    if next > last {
        return Part::Pairs(Walk::begin(inbox.pairs()));
    }
    let waits = |seq: &u64| inbox.entry(*seq).is_some_and(|entry| !entry.is_hole());
    let looked_at = last.min(next + HOLES_AT_ONCE);
    let Some(start) = (next..=looked_at).find(waits) else {
        return Part::Entries { next: looked_at + 1, last };
    };
    let count_at = put_run(ENTRIES, start, out);
    let mut count = 0;
    for seq in (start..=last).take_while(waits).take((room / ENTRY_BYTES).max(1)) {
        let entry = inbox.entry(seq).expect("it waits");
        put_entry(entry, out);
        count += 1;
    }
    out[count_at..count_at + 4].copy_from_slice(&u32::to_le_bytes(count));
    Part::Entries { next: start + u64::from(count), last }
}

/// Begins a run and returns where its length is to be put.
fn put_run(tag: u8, start: u64, out: &mut Vec<u8>) -> usize {
    out.push(tag);
    if tag == ENTRIES {
        out.extend_from_slice(&start.to_le_bytes());
    }
    out.extend_from_slice(&[0; 4]);
    out.len() - 4
}

/// Some places of pairs; forgets the stale ones. How many those were.
pub(super) fn put_pairs(
    user: &mut User,
    mut walk: Walk,
    from_h: u32,
    room: usize,
    out: &mut Vec<u8>,
) -> (Part, u64) {
    let inbox = user.inbox.as_deref_mut().expect("an inbox stays");
    if walk.moves != inbox.pairs().moves() {
        walk = Walk { place: 0, moves: inbox.pairs().moves(), ..walk };
    }
    let pairs_max = (room / PAIR_BYTES).max(1);
    // Empty places cost time as well.
    let mut looks = 8 * pairs_max;
    let mut forgotten = 0;
    let count_at = put_run(PAIRS, 0, out);
    let mut count = 0u32;
    while walk.part < inbox.pairs().parts() && looks > 0 && (count as usize) < pairs_max {
        looks -= 1;
        if walk.place >= inbox.pairs().places(walk.part) {
            walk = Walk { part: walk.part + 1, place: 0, ..walk };
            continue;
        }
        match inbox.pairs().at(walk.part, walk.place) {
            Some(pair) if pair.touched_h < from_h => {
                forgotten += 1;
                if inbox.pairs_mut().forget(walk.part, walk.place) {
                    continue;
                }
            }
            Some(pair) => {
                out.extend_from_slice(&pair.to_bytes());
                count += 1;
            }
            None => {}
        }
        walk.place += 1;
    }
    match count {
        0 => out.truncate(count_at - 1),
        _ => out[count_at..count_at + 4].copy_from_slice(&count.to_le_bytes()),
    }
    if walk.part < inbox.pairs().parts() {
        return (Part::Pairs(walk), forgotten);
    }
    (shrink_pairs(user, 0), forgotten)
}

/// Gives back some of the memory that forgotten pairs leave behind.
fn shrink_pairs(user: &mut User, part: usize) -> Part {
    let inbox = user.inbox.as_deref_mut().expect("an inbox stays");
    let (mut done, mut next) = (0, Some(part));
    while let Some(part) = next {
        if done >= MOVED_AT_ONCE {
            return Part::Shrink(part);
        }
        let work;
        (work, next) = inbox.pairs_mut().shrink(part);
        done += work;
    }
    Part::Head
}
