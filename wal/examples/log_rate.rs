//! How fast this machine appends to, writes and reads back a log.
//!
//! `cargo run --release -p wal --example log_rate [-- DIRECTORY]`; with an empty
//! or new directory it also writes 1 GiB there and reads it back.
#![allow(unsafe_code, clippy::disallowed_methods, clippy::disallowed_types)]

use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use wal::disk::{DataDir, OpenOptions, Recovered, Segments, probe};
use wal::record::Malformed;
use wal::{Log, LogOptions, LogStart, Lsn, Message, Record, Restore};
use wire::id::{Class, MessageId, UserKey};

const DISK_BYTES: Lsn = 1 << 30;

fn main() {
    for body_bytes in [100, 1024] {
        let best = (0..10).map(|_| append_ns(body_bytes)).fold(f64::MAX, f64::min);
        println!("append and seal, batches of 64, {body_bytes} B bodies: {best:.0} ns per record");
    }
    if let Some(dir) = std::env::args_os().nth(1) {
        on_disk(Path::new(&dir));
    }
}

/// Nanoseconds per record when every write completes at once.
fn append_ns(body_bytes: usize) -> f64 {
    let body = vec![5; body_bytes];
    let mut log = Log::new(LogOptions::default(), LogStart::fresh(3));
    let (began, batches) = (Instant::now(), 10_000);
    for _ in 0..batches {
        for _ in 0..64 {
            log.append(&message(&body), 1).expect("everything before is durable");
        }
        while let Some(write) = log.next_write() {
            log.written(write.lsn, true);
        }
    }
    began.elapsed().as_nanos() as f64 / f64::from(batches * 64)
}

fn on_disk(dir: &Path) {
    let options = LogOptions::default();
    let open =
        OpenOptions { shards: None, default_shards: 1, segment_bytes: options.segment_bytes };
    let data = DataDir::open(dir, open).unwrap_or_else(|error| panic!("{error}"));
    let shard = data.shard(0);
    let start =
        shard.recover(&mut Count(0), &mut |_| {}).unwrap_or_else(|error| panic!("{error}")).start;
    let mode = probe(shard.path());
    let began = Instant::now();
    let mut segments =
        shard.open_segments(start.lsn, mode).unwrap_or_else(|error| panic!("{error}"));
    println!("{mode:?}; open_segments took {:?}", began.elapsed());

    let mut log = Log::new(options, start);
    let began = Instant::now();
    while log.end() < start.lsn + DISK_BYTES {
        while log.append(&message(&[5; 100]), 1).is_ok() {}
        write_out(&mut log, &mut segments);
    }
    println!("wrote 1 GiB without a sync, segments included, in {:?}", began.elapsed());

    let mut count = Count(0);
    let recovered = shard.recover(&mut count, &mut |_| {});
    let recovered = recovered.unwrap_or_else(|error| panic!("{error}"));
    let Recovered { replayed_bytes, elapsed, .. } = recovered;
    println!("read {} records, {replayed_bytes} bytes, in {elapsed:?}", count.0);
}

/// Counts the records of a log that never had a snapshot.
struct Count(u64);

impl Restore for Count {
    fn reset(&mut self) {
        self.0 = 0;
    }

    fn state(&mut self, _: &[u8]) -> Result<(), Malformed> {
        Err(Malformed::Payload)
    }

    fn space(&mut self, _: &[u8]) -> Result<(), Malformed> {
        Err(Malformed::Payload)
    }

    fn loaded(&mut self, _: LogStart, _: Lsn) {}

    fn record(&mut self, _: Lsn, _: u32, _: &Record<'_>) {
        self.0 += 1;
    }

    fn needed(&self) -> Vec<(u64, u64, u64)> {
        Vec::new()
    }
}

fn write_out(log: &mut Log, segments: &mut Segments) {
    while let Some(write) = log.next_write() {
        let end = write.lsn + Lsn::from(write.len);
        while !segments.has_space_for(end) {
            let job = segments.wants_next(end).expect("the end is past the half");
            segments.adopt(job.run().expect("there is space"));
        }
        let (fd, offset) = segments.locate(write.lsn).expect("made above");
        write_at(fd, log.write_bytes(&write), offset);
        log.written(write.lsn, true);
    }
}

fn write_at(fd: RawFd, bytes: &[u8], offset: u64) {
    // SAFETY: the segments own the descriptor and outlive this borrow of it.
    let file = ManuallyDrop::new(unsafe { File::from_raw_fd(fd) });
    file.write_all_at(bytes, offset).expect("the disk takes it");
}

fn message(body: &[u8]) -> Record<'_> {
    Record::Message(Message {
        key: UserKey(1 << 70),
        to: b"bob",
        inbox_seq: 1,
        id: MessageId::new(1, 0, 0, 0),
        from: b"alice",
        from_key: UserKey(3),
        device: 1,
        send_seq: 1,
        time_ms: 1,
        expires_ms: 0,
        class: Class::Guaranteed,
        flags: 0,
        body,
    })
}
