//! What it costs a core to hand out a full inbox from the disk: from the login
//! to the last message, each read through the ring, checked and framed. Beside
//! it the same reads through the same ring with nothing done about the bytes, and
//! the log read from its beginning to its end.
//!
//! The shard, the hands and the order of the reads are the server's; what joins
//! them here is as short as it can be. There are no sockets: what is handed to a
//! connection has left at once. Nobody acknowledges, so that the inbox is full
//! again for the next login.

use std::cell::{LazyCell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::RawFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use net::{Event, Hands, HandsOptions, READ_BYTES_MAX};
use shard::{Conn, Effect, Effects, Input, KeyHasher, Now, Options, Outcome, Replay, Shard};
use wal::disk::{Segments, probe};
use wal::{BLOCK, Log, Lsn, Message, Record, segment};
use wire::limits::CREDIT_MAX;
use wire::v2::{Hello, Request, VERSION};

use self::log_io::Reader;
use self::reads::{Read, Reads, stretch};
use super::disk::{SEGMENT_BYTES, Store, cold, log_options, path};
use super::message;

/// What a turn of the server reads next, its own file.
#[allow(dead_code, reason = "no read fails here")]
#[path = "../../src/turn/reads.rs"]
mod reads;

/// What that knows of the rest of a turn.
mod log_io {
    /// Who wants to read the log.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[allow(dead_code, reason = "nothing is cleaned here")]
    pub(super) enum Reader {
        Device(shard::Conn),
        Cleaner,
    }
}

const NOW: Now = Now { mono_ns: 1_000_000_000, wall_ms: 1_800_000_000_000 };
/// After this long no other portion is begun in a turn, as in the server's.
const BEGIN_MAX: Duration = Duration::from_micros(100);
/// How much of the whole log is read at once.
const PLAIN_BYTES: usize = 256 << 10;
/// Longer than any read takes.
const WAIT: Duration = Duration::from_secs(1);

/// Inboxes that got their messages in turn, and how many of them are fetched at
/// once.
#[derive(Clone, Copy)]
struct Case {
    fetched: u32,
    inboxes: u32,
    /// In each inbox.
    messages: u64,
    body_bytes: usize,
}

const CASES: [Case; 5] = [
    Case { fetched: 1, inboxes: 1, messages: 60_000, body_bytes: 100 },
    Case { fetched: 1, inboxes: 11, messages: 24_000, body_bytes: 100 },
    // Too far from each other to be read together.
    Case { fetched: 1, inboxes: 11, messages: 1_500, body_bytes: 4096 },
    Case { fetched: 11, inboxes: 11, messages: 24_000, body_bytes: 100 },
    // The same, but those between are fetched, too.
    Case { fetched: 100, inboxes: 100, messages: 2_500, body_bytes: 100 },
];

pub(crate) fn catch_up(criterion: &mut Criterion) {
    for case in CASES {
        let Case { fetched, inboxes, body_bytes, .. } = case;
        let mut group = criterion
            .benchmark_group(format!("wal/catch up, {fetched} of {inboxes}, {body_bytes} B"));
        group.sample_size(10);
        group.throughput(Throughput::Bytes(case.wanted_bytes()));
        // Made when the first of these is run: it takes a while.
        let core = LazyCell::new(|| {
            let mut core = Core::new(case);
            core.fetch();
            println!("{}", core.trace.words(case.wanted_bytes()));
            RefCell::new(core)
        });
        group.bench_function("server's", |bencher| {
            let mut core = core.borrow_mut();
            bencher.iter_custom(|times| (0..times).map(|_| core.fetch()).sum());
        });
        group.bench_function("the same reads, unchecked", |bencher| {
            let mut core = core.borrow_mut();
            bencher.iter_custom(|times| (0..times).map(|_| core.repeat()).sum());
        });
        group.bench_function("the whole log, plain", |bencher| {
            let core = core.borrow();
            bencher.iter_custom(|times| (0..times).map(|_| core.read_all()).sum());
        });
        group.finish();
    }
}

impl Case {
    /// What those that are fetched take in the log.
    fn wanted_bytes(&self) -> u64 {
        let body = vec![5; self.body_bytes];
        let record_bytes = wal::record::encoded_len(&message(&body)) as u64;
        u64::from(self.fetched) * self.messages * record_bytes
    }
}

/// The reads that a fetch has led to.
#[derive(Default)]
struct Trace {
    reads: Vec<(RawFd, u64, u32)>,
    /// At once, at most.
    under_way: usize,
}

impl Trace {
    fn words(&self, wanted: u64) -> String {
        let bytes: u64 = self.reads.iter().map(|(_, _, len)| u64::from(*len)).sum();
        format!(
            "{} reads, {} KiB each on average, {} under way at most, {:.2} times what is wanted",
            self.reads.len(),
            bytes / 1024 / self.reads.len() as u64,
            self.under_way,
            bytes as f64 / wanted as f64
        )
    }
}

/// What leads to one more burst for somebody, in the order in which it came.
enum Portion {
    /// By its tag.
    Read(usize),
    Drained(Conn),
}

/// What one core of the server has for catching up.
struct Core {
    hands: Hands,
    segments: Segments,
    shard: Shard,
    out: Effects,
    events: Vec<Event>,
    reads: Reads,
    /// How many are under way.
    under_way: usize,
    portions: VecDeque<Portion>,
    /// As often as somebody has logged in: no connection is the one before.
    lives: u32,
    case: Case,
    /// What was read for the last ones.
    trace: Trace,
    store: Store,
}

impl Core {
    /// Right after its start, with everything on the disk and nothing in memory.
    fn new(case: Case) -> Core {
        let mut store = Store::new();
        let hasher = KeyHasher::new([1, 2]);
        fill(&mut store, &case, &hasher);
        let mut replay = Replay::new(options(), hasher, SEGMENT_BYTES);
        let recovered = store.shard.recover(&mut replay, &mut |_| {});
        let start = recovered.unwrap_or_else(|error| panic!("{error}")).start;
        assert_eq!(replay.contradictions(), 0, "what was written is a log");
        let log = Log::new(log_options(), start);
        let shard = replay.finish(&start, log, store.segments.present());
        let segments = store.shard.open_segments(start.lsn, probe(store.shard.path()));
        Core {
            hands: Hands::new(HandsOptions::default(), Vec::new()).expect("io_uring"),
            segments: segments.expect("there is space"),
            shard,
            out: Effects::default(),
            events: Vec::new(),
            reads: Reads::default(),
            under_way: 0,
            portions: VecDeque::new(),
            lives: 0,
            case,
            trace: Trace::default(),
            store,
        }
    }

    /// They log in and get all there is; how long that took.
    fn fetch(&mut self) -> Duration {
        self.forget_pages();
        self.lives += 1;
        for conn in self.conns() {
            self.take(Input::Opened { conn });
        }
        self.trace = Trace::default();
        let end = self.delivered() + u64::from(self.case.fetched) * self.case.messages;
        let began = Instant::now();
        for conn in self.conns() {
            let hello = Hello {
                version_min: VERSION,
                version_max: VERSION,
                capabilities: 0,
                device: 1,
                last_seq: 0,
                credit: CREDIT_MAX,
                user: &name(conn.slot),
                token: b"",
            };
            self.take(Input::V2 { conn, request: Request::Hello(hello) });
        }
        self.apply();
        while self.delivered() < end {
            if self.portions.is_empty() {
                self.hands.wait(WAIT);
            }
            self.turn();
        }
        let took = began.elapsed();
        assert_eq!(self.delivered(), end, "everything came once");
        self.leave();
        took
    }

    /// As in the server, for those who catch up: what came back, some portions of
    /// it, what is to be read next.
    fn turn(&mut self) {
        self.reap();
        let began = Instant::now();
        while let Some(portion) = self.portions.pop_front() {
            match portion {
                Portion::Drained(conn) => self.take(Input::Drained { conn }),
                Portion::Read(tag) => self.serve(tag),
            }
            if began.elapsed() >= BEGIN_MAX {
                break;
            }
        }
        self.apply();
    }

    /// Carries out what the shard wants done.
    fn apply(&mut self) {
        for effect in self.out.list.drain(..) {
            match effect {
                Effect::Send { .. } => {}
                Effect::TellDrained { conn } => self.portions.push_back(Portion::Drained(conn)),
                Effect::Read { conn, lsn, len_min, len, len_wide } => {
                    let read = Read::new(Reader::Device(conn), lsn, (len_min, len, len_wide));
                    self.reads.ask(read);
                }
                other => unreachable!("nobody asked for {other:?}"),
            }
        }
        self.out.clear();
        self.start_reads();
        self.hands.flush();
    }

    fn reap(&mut self) {
        self.hands.reap(&mut self.events);
        for event in self.events.drain(..) {
            let Event::Read { tag, result } = event else { continue };
            self.under_way -= 1;
            let (buffer, len) = result.expect("the disk reads");
            self.reads.came_back(tag as usize, buffer, len);
            self.portions.push_back(Portion::Read(tag as usize));
        }
    }

    /// The first of those for whom a read was made; the others have their turn
    /// later.
    fn serve(&mut self, tag: usize) {
        let (read, buffer, len, start) = self.reads.reader(tag);
        let Reader::Device(conn) = read.reader else { unreachable!("nothing is cleaned") };
        let bytes = &self.hands.read_bytes(buffer)[..len as usize];
        let bytes = &bytes[(read.lsn - start) as usize..];
        let input = Input::Read { conn, lsn: read.lsn, bytes: Some(bytes) };
        assert_eq!(self.shard.handle(NOW, input, &mut self.out), Outcome::Taken);
        match self.reads.served(tag) {
            Some(buffer) => self.hands.release(buffer),
            None => self.portions.push_back(Portion::Read(tag)),
        }
    }

    /// As many as there are buffers.
    fn start_reads(&mut self) {
        loop {
            let file = |lsn: Lsn| self.segments.locate(lsn).map(|(fd, _)| fd);
            let reads = self.reads.next(|a, b| file(a) == file(b));
            let Some(first) = reads.first() else { return };
            let (fd, offset) = self.segments.locate(first.lsn).expect("nothing was deleted");
            let lsn = first.lsn;
            let file_end = (lsn / SEGMENT_BYTES + 1) * SEGMENT_BYTES;
            let wanted = stretch(&reads, file_end.min(self.shard.log().durable()));
            let (start, len) = aligned(offset, wanted);
            let tag = self.reads.tag();
            if self.hands.read(tag as u64, fd, start, len).is_err() {
                return self.reads.put_back(reads);
            }
            let end = lsn + u64::from(len) - (offset - start);
            self.reads.began(tag, reads, end.min(lsn + u64::from(wanted)));
            self.trace.reads.push((fd, start, len));
            self.under_way += 1;
            self.trace.under_way = self.trace.under_way.max(self.under_way);
        }
    }

    /// Everybody goes; what that appends is not for the disk.
    fn leave(&mut self) {
        for conn in self.conns() {
            self.take(Input::Closed { conn });
        }
        while let Some(write) = self.shard.next_write() {
            self.take(Input::Written { lsn: write.lsn, ok: true });
        }
        self.out.clear();
        self.portions.retain(|portion| matches!(portion, Portion::Read(_)));
        let is_reading = self.under_way > 0 || !self.reads.is_empty();
        assert!(!is_reading && self.portions.is_empty(), "nobody waits for a read");
    }

    /// The same reads, as many at once, and nothing else; how long that took.
    fn repeat(&mut self) -> Duration {
        self.forget_pages();
        let mut reads = self.trace.reads.iter();
        let mut under_way = 0;
        let began = Instant::now();
        loop {
            while under_way < self.trace.under_way
                && let Some(&(fd, start, len)) = reads.next()
            {
                self.hands.read(0, fd, start, len).expect("there were as many buffers");
                under_way += 1;
            }
            if under_way == 0 {
                return began.elapsed();
            }
            self.hands.wait(WAIT);
            self.hands.reap(&mut self.events);
            for event in self.events.drain(..) {
                let Event::Read { result, .. } = event else { continue };
                self.hands.release(result.expect("the disk reads").0);
                under_way -= 1;
            }
        }
    }

    /// The whole log in its order, through the page cache; how long that took.
    fn read_all(&self) -> Duration {
        let files = self.forget_pages();
        let mut buffer = vec![0; PLAIN_BYTES];
        let began = Instant::now();
        for (index, file) in files {
            let base = segment::base(index, SEGMENT_BYTES);
            let bytes = (self.store.log.end() - base).min(SEGMENT_BYTES);
            for offset in (0..bytes).step_by(PLAIN_BYTES) {
                file.read_exact_at(&mut buffer, offset).unwrap();
            }
        }
        began.elapsed()
    }

    /// Empties the page cache of the log, if it is read through that.
    fn forget_pages(&self) -> Vec<(u64, File)> {
        let used = 0..=segment::index(self.store.log.end() - 1, SEGMENT_BYTES);
        used.map(|index| (index, cold(&path(&self.store.shard, index)))).collect()
    }

    fn conns(&self) -> impl Iterator<Item = Conn> + use<> {
        let generation = self.lives;
        (0..self.case.fetched).map(move |slot| Conn { slot, generation })
    }

    fn take(&mut self, input: Input<'_>) {
        assert_eq!(self.shard.handle(NOW, input, &mut self.out), Outcome::Taken);
    }

    fn delivered(&mut self) -> u64 {
        self.shard.metrics().counters.delivered
    }
}

/// The whole blocks that a read of `len` bytes from `offset` on touches, as far as
/// a buffer reaches.
fn aligned(offset: u64, len: u32) -> (u64, u32) {
    let block = BLOCK as u64;
    let start = offset / block * block;
    let end = (offset + u64::from(len)).next_multiple_of(block);
    (start, (end - start).min(READ_BYTES_MAX.into()) as u32)
}

/// Writes the log.
fn fill(store: &mut Store, case: &Case, hasher: &KeyHasher) {
    let users: Vec<_> = (0..case.inboxes).map(name).map(|it| (hasher.key(&it), it)).collect();
    for (key, name) in &users {
        store.append(&Record::Device { key: *key, name, device: 1, cursor: 0, gone: false });
    }
    let body = vec![5; case.body_bytes];
    let Record::Message(one) = message(&body) else { unreachable!("it is one") };
    for seq in 1..=case.messages {
        for (key, to) in &users {
            let message = Message { key: *key, to, inbox_seq: seq, send_seq: seq, ..one };
            store.append(&Record::Message(message));
        }
    }
    store.settle();
}

fn name(inbox: u32) -> Vec<u8> {
    format!("recipient-{inbox:04}").into_bytes()
}

fn options() -> Options {
    Options {
        shard: 0,
        shards: 1,
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
    }
}
