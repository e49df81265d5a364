//! What the log costs without a disk: append and seal by batch and body size,
//! next to the checksum and the copy alone, which are its floor; and reading a
//! commit back. And what it costs with one, next to the disk alone.

#[path = "wal/catch_up.rs"]
mod catch_up;
#[path = "wal/clean.rs"]
mod clean;
#[path = "wal/disk.rs"]
mod disk;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use wal::{Appended, Log, LogOptions, LogStart, Message, Record};
use wire::id::{Class, MessageId, UserKey};

const BODIES: [usize; 2] = [100, 1024];
const BATCHES: [usize; 3] = [1, 64, 512];

fn message(body: &[u8]) -> Record<'_> {
    Record::Message(Message {
        key: UserKey(1 << 70),
        to: b"recipient-0001",
        inbox_seq: 1,
        id: MessageId::new(1, 0, 0, 0),
        from: b"sender-0000001",
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

/// One commit: a batch appended, sealed and confirmed.
fn commit(log: &mut Log, record: &Record<'_>, batch: usize) -> Appended {
    let mut last = Appended { lsn: 0, len: 0 };
    for _ in 0..batch {
        last = log.append(record, 1).expect("everything before is durable");
    }
    while let Some(write) = log.next_write() {
        black_box(log.write_bytes(&write));
        log.written(write.lsn, true);
    }
    last
}

fn append_and_seal(criterion: &mut Criterion) {
    for bytes in BODIES {
        let body = vec![5; bytes];
        let record = message(&body);
        let mut group = criterion.benchmark_group(format!("wal/append and seal, {bytes} B"));
        for batch in BATCHES {
            let mut log = Log::new(LogOptions::default(), LogStart::fresh(3));
            group.throughput(Throughput::Elements(batch as u64));
            group.bench_function(BenchmarkId::from_parameter(batch), |bencher| {
                bencher.iter(|| commit(&mut log, black_box(&record), batch));
            });
        }
        group.finish();
    }
}

fn floor(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wal/floor");
    group.throughput(Throughput::Elements(1));
    for bytes in BODIES {
        let record = vec![5u8; wal::record::encoded_len(&message(&vec![5; bytes]))];
        let mut copy = vec![0; record.len()];
        group.bench_function(BenchmarkId::new("crc32c", bytes), |bencher| {
            bencher.iter(|| crc32c::crc32c(black_box(&record)));
        });
        group.bench_function(BenchmarkId::new("copy", bytes), |bencher| {
            bencher.iter(|| black_box(&mut copy).copy_from_slice(black_box(&record)));
        });
    }
    group.finish();
}

fn read_back(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wal/read");
    group.throughput(Throughput::Elements(1));
    for bytes in BODIES {
        let body = vec![5; bytes];
        let mut log = Log::new(LogOptions::default(), LogStart::fresh(3));
        log.append(&message(&body), 1).expect("it is empty");
        let write = log.next_write().expect("there is a record");
        let start = wal::commit::COMMIT_BYTES;
        let len = wal::record::encoded_len(&message(&body));
        let stored = log.write_bytes(&write)[start..start + len].to_vec();
        group.bench_function(BenchmarkId::new("from the tail", bytes), |bencher| {
            bencher.iter(|| black_box(log.get(start as u64, len as u32)));
        });
        group.bench_function(BenchmarkId::new("from disk, checked", bytes), |bencher| {
            bencher.iter(|| {
                wal::record::verify(black_box(&stored), 3, start as u64).expect("it is intact");
            });
        });
    }
    group.finish();
}

criterion_group!(benches, append_and_seal, floor, read_back);
criterion_group!(on_disk, disk::group_commit, disk::recovery, clean::clean, catch_up::catch_up);
criterion_main!(benches, on_disk);
