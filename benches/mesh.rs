//! What crossing to another core costs: a value through a ring, and the ways to
//! carry bodies there (docs/decisions/0006-parcels.md).

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use net::Mesh;

const BODIES: [usize; 4] = [64, 512, 4096, 16_384];
/// Messages to one other core in one busy turn.
const MESSAGES: usize = 64;

/// A value there and taken out, on one thread: the ring alone.
fn ring(criterion: &mut Criterion) {
    let mesh = Mesh::new(2, 1024);
    let (there, here) = (mesh.port(0), mesh.port(1));
    let mut group = criterion.benchmark_group("mesh/ring");
    group.throughput(Throughput::Elements(1));
    group.bench_function("push and pop", |bencher| {
        bencher.iter(|| {
            there.push(1, black_box([7u64; 6])).expect("there is room");
            here.pop(0)
        });
    });
    group.bench_function("wake somebody who is awake", |bencher| {
        bencher.iter(|| there.wake(1));
    });
    group.finish();
}

/// Three ways to carry the bodies of a turn to the core that logs them. All on
/// one thread, so that nothing depends on who else runs here; that favours the
/// two with references, whose counters and frees would cross cores.
fn bodies(criterion: &mut Criterion) {
    for bytes in BODIES {
        let mut group = criterion.benchmark_group(format!("mesh/bodies of {bytes} B"));
        group.throughput(Throughput::Elements(MESSAGES as u64));
        let received: Arc<[u8]> = vec![7; bytes].into();
        let mut log = vec![0; bytes];
        group.bench_function("copied into a reused parcel", |bencher| {
            let mut parcel = Parcel { spans: Vec::new(), bytes: Vec::new() };
            bencher.iter(|| parcel_round(&mut parcel, black_box(&received), &mut log));
        });
        group.bench_function("each in an allocation of its own", |bencher| {
            let mut hops: Vec<Box<[u8]>> = Vec::new();
            bencher.iter(|| {
                hops.extend((0..MESSAGES).map(|_| Box::from(black_box(&received[..]))));
                hops.drain(..).for_each(|body| log.copy_from_slice(&body));
            });
        });
        group.bench_function("a share of the receive buffer", |bencher| {
            let mut hops: Vec<Arc<[u8]>> = Vec::new();
            bencher.iter(|| {
                hops.extend((0..MESSAGES).map(|_| Arc::clone(black_box(&received))));
                hops.drain(..).for_each(|body| log.copy_from_slice(&body));
            });
        });
        black_box(&log);
        group.finish();
    }
}

/// What the shards do: spans of one buffer, which comes back empty.
struct Parcel {
    spans: Vec<(u32, u32)>,
    bytes: Vec<u8>,
}

fn parcel_round(parcel: &mut Parcel, received: &[u8], log: &mut [u8]) {
    for _ in 0..MESSAGES {
        parcel.spans.push((parcel.bytes.len() as u32, received.len() as u32));
        parcel.bytes.extend_from_slice(received);
    }
    for (start, len) in parcel.spans.drain(..) {
        log.copy_from_slice(&parcel.bytes[start as usize..][..len as usize]);
    }
    parcel.bytes.clear();
}

criterion_group!(benches, ring, bodies);
criterion_main!(benches);
