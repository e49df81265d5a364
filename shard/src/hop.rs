//! Messages between shards, and the parcels they travel in.
//!
//! All hops of one turn to one shard share a parcel: one push, one wake-up.
//! Bodies and names are spans of the parcel's bytes, so that nothing is
//! allocated per message; parcels are reused.
//!
//! Every request hop is answered by exactly one reply hop, and a shard has at
//! most [`INFLIGHT_MAX`] requests unanswered at each other shard. Replies
//! therefore always find room, and no shard ever waits for another to read.

use wire::id::{Class, MessageId, ShardId, UserKey};
use wire::refuse::Code;

use crate::dedup::Numbering;
use crate::io::Conn;

/// Requests that may be unanswered between one ordered pair of shards. A v1
/// batch may exceed it by its own length.
pub const INFLIGHT_MAX: u32 = 4096;
/// Bytes of names and bodies in one parcel before requests stop fitting. A v1
/// batch must fit an empty one.
pub const PARCEL_BYTES_MAX: usize = 2 * wire::limits::V1_BATCH_BYTES_MAX;

/// A range of a parcel's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    start: u32,
    len: u32,
}

impl Span {
    /// The bytes meant, out of the parcel the hop came in.
    pub fn of(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.start as usize..][..self.len as usize]
    }
}

/// Who asked: a connection on a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyTo {
    /// The shard that asked.
    pub shard: ShardId,
    /// The connection on it. It may be gone when the reply arrives.
    pub conn: Conn,
}

/// A message on its way into an inbox.
#[derive(Clone, Copy, Debug)]
pub struct Post<B> {
    /// The recipient's name.
    pub to: B,
    /// The recipient.
    pub to_key: UserKey,
    /// The sender's name.
    pub from: B,
    /// The sender.
    pub from_key: UserKey,
    /// The sending device, 0 for protocol v1.
    pub device: u64,
    /// The number its sender gave it, 0 for none.
    pub send_seq: u64,
    /// How the number is to be judged.
    pub numbering: Numbering,
    /// When the sender wants to hear *stored*.
    pub class: Class,
    /// `wire::v2::flag` bits.
    pub flags: u8,
    /// When it may be dropped undelivered, unix milliseconds; 0 for never.
    pub expires_ms: u64,
    /// Refuse it with this permanent code, and consume its number.
    pub refuse: Option<Code>,
    /// Who wants to know.
    pub reply: ReplyTo,
    /// When its bytes were received, [`crate::io::Now::mono_ns`].
    pub received_ns: u64,
    /// The body.
    pub body: B,
}

/// What became of a [`Post`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant says what its fields are")]
pub enum Posted {
    /// Stored, in this class. The id is zero when it was stored earlier.
    Sent { id: MessageId, class: Class },
    /// A number is missing before it.
    Gap { expected: u64 },
    /// A higher number came before it (protocol v1).
    Late,
    /// Not taken.
    Refused { code: Code, retry_after_ms: u32 },
    /// Nobody needs to know (protocol v1).
    Quiet,
}

/// One message between two shards.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "each variant says what its fields are")]
pub enum Hop {
    /// Request: put this into an inbox.
    Post(Post<Span>),
    /// Reply to `Post`.
    Posted { reply: ReplyTo, to: Span, send_seq: u64, posted: Posted },
    /// Request: is this user online?
    Status { reply: ReplyTo, user: Span, key: UserKey },
    /// Reply to `Status`.
    StatusIs { reply: ReplyTo, user: Span, online: bool, last_seen_s: u64 },
    /// Neither: a device of `to` has the message; tell its sender if it is
    /// here. May be dropped.
    Receipt { from_key: UserKey, device: u64, send_seq: u64, id: MessageId, to: Span },
}

impl Hop {
    /// Whether the receiving shard owes an answer.
    pub fn is_request(&self) -> bool {
        matches!(self, Hop::Post(_) | Hop::Status { .. })
    }

    /// Whether this answers a request.
    pub fn is_reply(&self) -> bool {
        matches!(self, Hop::Posted { .. } | Hop::StatusIs { .. })
    }
}

/// Hops for one shard, with the bytes they refer to.
#[derive(Default, Debug)]
pub struct Parcel {
    /// In the order in which they were made.
    pub hops: Vec<Hop>,
    /// Names and bodies.
    pub bytes: Vec<u8>,
}

impl Parcel {
    /// Forgets everything, keeps the memory.
    pub fn clear(&mut self) {
        self.hops.clear();
        self.bytes.clear();
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.hops.is_empty()
    }

    pub(crate) fn put(&mut self, bytes: &[u8]) -> Span {
        let start = u32::try_from(self.bytes.len()).expect("a parcel is bounded");
        self.bytes.extend_from_slice(bytes);
        Span { start, len: u32::try_from(bytes.len()).expect("a parcel is bounded") }
    }
}

/// The parcels being filled, one for every shard, and the count of unanswered
/// requests at each.
pub(crate) struct Outbox {
    pub(crate) parcels: Vec<Parcel>,
    inflight: Vec<u32>,
}

impl Outbox {
    pub(crate) fn new(shards: ShardId) -> Outbox {
        Outbox {
            parcels: (0..shards).map(|_| Parcel::default()).collect(),
            inflight: vec![0; usize::from(shards)],
        }
    }

    /// Whether a request with this many bytes may be added for `to` now.
    pub(crate) fn has_room(&self, to: ShardId, bytes: usize) -> bool {
        let parcel = &self.parcels[usize::from(to)];
        self.inflight[usize::from(to)] < INFLIGHT_MAX
            && (parcel.is_empty() || parcel.bytes.len() + bytes <= PARCEL_BYTES_MAX)
    }

    /// Adds a hop that `make` builds with its bytes in the parcel.
    pub(crate) fn push(&mut self, to: ShardId, make: impl FnOnce(&mut Parcel) -> Hop) {
        let parcel = &mut self.parcels[usize::from(to)];
        let hop = make(parcel);
        if hop.is_request() {
            self.inflight[usize::from(to)] += 1;
        }
        parcel.hops.push(hop);
    }

    /// Whether a hop that nobody waits for should still be added.
    pub(crate) fn has_room_for_optional(&self, to: ShardId) -> bool {
        self.parcels[usize::from(to)].hops.len() < INFLIGHT_MAX as usize
    }

    /// Counts an answer from `from`.
    pub(crate) fn answered(&mut self, from: ShardId) {
        let inflight = &mut self.inflight[usize::from(from)];
        *inflight = inflight.checked_sub(1).expect("a reply answers a request");
    }
}
