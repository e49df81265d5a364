//! A node in memory for the benches: real shards with real logs, a disk that
//! is done at once, parcels that change hands directly. What a core's turn
//! does around a shard, without the kernel.
//!
//! Nothing here allocates per message, so that what the allocation counter
//! finds is the shard's.
#![allow(dead_code, reason = "each bench uses its part")]

use shard::hop::Parcel;
use shard::{Conn, Effect, Effects, Input, KeyHasher, Now, Options, Outcome, Replay, Shard};
use wal::{Log, LogOptions, LogStart};
use wire::id::{Class, MessageId, ShardId};
use wire::v1::{Answer, Packet};
use wire::v2::{Hello, Reply, Request, Send};
use wire::{v1, v2};

/// The time of every turn: histograms and ids do not care that it stands still.
const NOW: Now = Now { mono_ns: 1_000_000_000, wall_ms: 1_800_000_000_000 };

/// What a client of protocol v2 asks for.
const CREDIT: u32 = 1024;

/// A logged-in user.
pub(crate) struct User {
    pub(crate) name: Vec<u8>,
    pub(crate) shard: ShardId,
    pub(crate) conn: Conn,
}

/// One core: a shard and what its turn reuses.
pub(crate) struct Core {
    pub(crate) shard: Shard,
    pub(crate) out: Effects,
    /// Effects that were looked through for [`Effect::TellDrained`].
    looked: usize,
}

/// All cores of the node.
pub(crate) struct Node {
    pub(crate) cores: Vec<Core>,
    spares: Vec<Parcel>,
    users: u32,
}

impl Node {
    pub(crate) fn new(shards: ShardId) -> Node {
        let cores = (0..shards).map(|id| Core::new(id, shards)).collect();
        Node { cores, spares: Vec::new(), users: 0 }
    }

    /// A connected user of protocol v2 on the shard that owns the name.
    pub(crate) fn login_v2(&mut self, shard: ShardId) -> User {
        let user = self.connect(shard);
        let hello = Hello {
            version_min: 1,
            version_max: 1,
            capabilities: 0,
            device: 1,
            last_seq: 0,
            credit: CREDIT,
            user: &user.name,
            token: b"",
        };
        self.request(&user, Request::Hello(hello));
        self.settle();
        user
    }

    /// The same with protocol v1.
    pub(crate) fn login_v1(&mut self, shard: ShardId) -> User {
        let user = self.connect(shard);
        self.packet(&user, Packet::Login { user: &user.name, token: None });
        self.settle();
        user
    }

    fn connect(&mut self, shard: ShardId) -> User {
        let core = &self.cores[usize::from(shard)];
        let name = loop {
            self.users += 1;
            let name = format!("user{:08}", self.users).into_bytes();
            if core.shard.owner_of(&name) == shard {
                break name;
            }
        };
        let conn = Conn { slot: self.users, generation: 0 };
        self.cores[usize::from(shard)].take(Input::Opened { conn });
        User { name, shard, conn }
    }

    pub(crate) fn request(&mut self, user: &User, request: Request<'_>) {
        self.cores[usize::from(user.shard)].take(Input::V2 { conn: user.conn, request });
    }

    pub(crate) fn packet(&mut self, user: &User, packet: Packet<'_>) {
        self.cores[usize::from(user.shard)].take(Input::V1 { conn: user.conn, packet });
    }

    pub(crate) fn send_v2(&mut self, from: &User, to: &User, seq: u64, class: Class, body: &[u8]) {
        let send = Send { seq, class, flags: 0, expiry_s: 0, to: &to.name, body };
        self.request(from, Request::Send(send));
    }

    /// Turns until nothing moves: parcels, commits, their completions, sockets.
    pub(crate) fn settle(&mut self) {
        while self.exchange() | self.commit() | self.drain() {}
    }

    /// Hands every parcel to its shard; whether there was one.
    fn exchange(&mut self) -> bool {
        let shards = self.cores.len();
        let mut moved = false;
        for from in 0..shards {
            for to in (0..shards).filter(|to| *to != from) {
                if !self.cores[from].shard.has_parcel(to as ShardId) {
                    continue;
                }
                let spare = self.spares.pop().unwrap_or_default();
                let mut parcel = self.cores[from].shard.take_parcel(to as ShardId, spare);
                for hop in &parcel.hops {
                    let from = from as ShardId;
                    self.cores[to].take(Input::Hop { from, hop, bytes: &parcel.bytes });
                }
                parcel.clear();
                self.spares.push(parcel);
                moved = true;
            }
        }
        moved
    }

    fn commit(&mut self) -> bool {
        let mut wrote = false;
        for core in &mut self.cores {
            while let Some(write) = core.shard.next_write() {
                core.take(Input::Written { lsn: write.lsn, ok: true });
                wrote = true;
            }
        }
        wrote
    }

    /// The kernel takes everything at once; whether somebody waited for that.
    fn drain(&mut self) -> bool {
        let mut moved = false;
        for core in &mut self.cores {
            while let Some(effect) = core.out.list.get(core.looked) {
                core.looked += 1;
                if let Effect::TellDrained { conn } = *effect {
                    core.take(Input::Drained { conn });
                    moved = true;
                }
            }
        }
        moved
    }

    /// Forgets what was sent and keeps the memory, as a turn does.
    pub(crate) fn sent(&mut self) {
        for core in &mut self.cores {
            core.out.clear();
            core.looked = 0;
        }
    }

    /// Messages handed to connections so far.
    pub(crate) fn delivered(&mut self) -> u64 {
        self.cores.iter_mut().map(|core| core.shard.metrics().counters.delivered).sum()
    }

    /// The ids of v1 deliveries on this shard since [`Node::sent`].
    pub(crate) fn ids_v1(&self, shard: ShardId, ids: &mut Vec<(Conn, MessageId)>) {
        ids.clear();
        let out = &self.cores[usize::from(shard)].out;
        for effect in &out.list {
            let Effect::Send { conn, start, end, .. } = *effect else { continue };
            let mut bytes = &out.bytes[start..end];
            while let Ok(Some((answer, len))) = v1::decode_answer(bytes) {
                if let Answer::Deliver { id, .. } = answer {
                    ids.push((conn, id));
                }
                bytes = &bytes[len..];
            }
        }
    }

    /// The v2 deliveries on this shard since [`Node::sent`] by their inbox seq,
    /// and how many sends were confirmed.
    pub(crate) fn delivered_v2(&self, shard: ShardId, seqs: &mut Vec<(Conn, u64)>) -> usize {
        let out = &self.cores[usize::from(shard)].out;
        let mut confirmed = 0;
        for effect in &out.list {
            let Effect::Send { conn, start, end, .. } = *effect else { continue };
            let mut bytes = &out.bytes[start..end];
            while let Ok(Some((reply, len))) = v2::decode_reply(bytes) {
                match reply {
                    Reply::Deliver(deliver) => seqs.push((conn, deliver.inbox_seq)),
                    Reply::Sent { .. } => confirmed += 1,
                    other => unreachable!("nothing else was asked for: {other:?}"),
                }
                bytes = &bytes[len..];
            }
        }
        confirmed
    }
}

impl Core {
    fn new(id: ShardId, shards: ShardId) -> Core {
        let options = Options {
            shard: id,
            shards,
            node: 0,
            users_max: 1 << 20,
            waiting_messages_max: 1 << 20,
            pairs_max: 1 << 20,
            inbox_messages_max: 1 << 20,
            inbox_bytes_max: 1 << 30,
            retention_ms: 30 * 24 * 60 * 60 * 1000,
            pairs_kept_ms: 7 * 24 * 60 * 60 * 1000,
            handshake_ms: 10_000,
            logins_per_second: 0,
            vouch_after_ms: shard::VOUCH_AFTER_MS,
        };
        let start = LogStart::fresh(u64::from(id) + 1);
        let log = Log::new(LogOptions::default(), start);
        let shard =
            Replay::new(options, KeyHasher::new([1, 2]), LogOptions::default().segment_bytes)
                .finish(&start, log, []);
        Core { shard, out: Effects::default(), looked: 0 }
    }

    fn take(&mut self, input: Input<'_>) {
        let outcome = self.shard.handle(NOW, input, &mut self.out);
        assert_eq!(outcome, Outcome::Taken, "the benches stay below every bound");
    }
}

/// Users in pairs, one message under way in each.
pub(crate) struct Pairs {
    pairs: Vec<(User, User)>,
    speaks: Speaks,
    body: Vec<u8>,
    /// Number of the last message of each pair.
    seq: u64,
    ids: Vec<(Conn, MessageId)>,
    seqs: Vec<(Conn, u64)>,
}

/// What a load speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    V1,
    V2(Class),
}

impl Pairs {
    /// Pairs whose senders live on shard `from` and recipients on shard `to`.
    pub(crate) fn new(
        node: &mut Node,
        count: usize,
        from: ShardId,
        to: ShardId,
        speaks: Speaks,
    ) -> Pairs {
        let mut login = |shard| match speaks {
            Speaks::V1 => node.login_v1(shard),
            Speaks::V2(_) => node.login_v2(shard),
        };
        let pairs = (0..count).map(|_| (login(from), login(to))).collect();
        node.sent();
        Pairs { pairs, speaks, body: vec![7; 64], seq: 0, ids: Vec::new(), seqs: Vec::new() }
    }

    /// Messages of one round.
    pub(crate) fn len(&self) -> usize {
        self.pairs.len()
    }

    /// One message in every pair: sent, logged, durable, confirmed (v2),
    /// delivered, acknowledged. The acknowledgements ride in the next round's
    /// commit, as they do in the server.
    pub(crate) fn round(&mut self, node: &mut Node) {
        self.seq += 1;
        for (from, to) in &self.pairs {
            match self.speaks {
                Speaks::V1 => {
                    node.packet(from, Packet::Send { target: &to.name, body: &self.body })
                }
                Speaks::V2(class) => node.send_v2(from, to, self.seq, class, &self.body),
            }
        }
        node.settle();
        match self.speaks {
            Speaks::V1 => self.acknowledge_v1(node),
            Speaks::V2(_) => self.acknowledge_v2(node),
        }
        node.sent();
    }

    fn acknowledge_v1(&mut self, node: &mut Node) {
        let mut ids = std::mem::take(&mut self.ids);
        node.ids_v1(self.pairs[0].1.shard, &mut ids);
        assert_eq!(ids.len(), self.pairs.len(), "every message was delivered");
        for ((conn, id), (_, to)) in ids.iter().zip(&self.pairs) {
            assert_eq!(*conn, to.conn);
            node.packet(to, Packet::Ack { id: *id });
        }
        self.ids = ids;
    }

    fn acknowledge_v2(&mut self, node: &mut Node) {
        let mut seqs = std::mem::take(&mut self.seqs);
        seqs.clear();
        let [from, to] = [self.pairs[0].0.shard, self.pairs[0].1.shard];
        let mut confirmed = node.delivered_v2(to, &mut seqs);
        if from != to {
            confirmed += node.delivered_v2(from, &mut seqs);
        }
        let all = self.pairs.len();
        assert_eq!((confirmed, seqs.len()), (all, all), "confirmed and delivered, each once");
        for ((conn, seq), (_, to)) in seqs.iter().zip(&self.pairs) {
            assert_eq!(*conn, to.conn);
            node.request(to, Request::Ack { seq: *seq });
        }
        self.seqs = seqs;
    }
}

/// One sender that fills one inbox with bursts: what the pairs do not show.
pub(crate) struct Burst {
    from: User,
    to: User,
    body: Vec<u8>,
    seq: u64,
    count: u64,
    seqs: Vec<(Conn, u64)>,
}

impl Burst {
    pub(crate) fn new(node: &mut Node, count: u64) -> Burst {
        let (from, to) = (node.login_v2(0), node.login_v2(0));
        node.sent();
        Burst { from, to, body: vec![7; 64], seq: 0, count, seqs: Vec::new() }
    }

    /// The whole burst, then one acknowledgement for all of it.
    pub(crate) fn round(&mut self, node: &mut Node) {
        for _ in 0..self.count {
            self.seq += 1;
            node.send_v2(&self.from, &self.to, self.seq, Class::Guaranteed, &self.body);
        }
        node.settle();
        self.seqs.clear();
        let confirmed = node.delivered_v2(0, &mut self.seqs);
        assert_eq!((confirmed, self.seqs.len()), (self.count as usize, self.count as usize));
        let (_, seq) = self.seqs[self.seqs.len() - 1];
        node.request(&self.to, Request::Ack { seq });
        node.sent();
    }
}
