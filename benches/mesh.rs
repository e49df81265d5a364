//! What crossing to another core costs: a value through a ring, and the two
//! ways to carry bodies, copied into a reused parcel or each in a counted
//! reference (docs/decisions/0006-parcels.md).

use std::hint::black_box;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use net::Mesh;

const BODIES: [usize; 4] = [64, 512, 4096, 65_536];
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

/// The two ways to carry the bodies of a turn to another core. Both run
/// between two threads in lockstep: the receiver reads every body and gives
/// back, or drops, what carried it.
fn bodies(criterion: &mut Criterion) {
    for bytes in BODIES {
        let mut group = criterion.benchmark_group(format!("mesh/bodies of {bytes} B"));
        group.throughput(Throughput::Elements(MESSAGES as u64));
        let received = vec![7; bytes];
        group.bench_function(BenchmarkId::from_parameter("copied into a parcel"), |bencher| {
            bencher.iter_custom(|rounds| parcels(rounds, &received));
        });
        group.bench_function(BenchmarkId::from_parameter("counted references"), |bencher| {
            bencher.iter_custom(|rounds| references(rounds, &received));
        });
        group.finish();
    }
}

/// What the shards do: spans of one buffer, which comes back empty.
struct Parcel {
    spans: Vec<(u32, u32)>,
    bytes: Vec<u8>,
}

fn parcels(rounds: u64, received: &[u8]) -> Duration {
    let mesh = Mesh::new(2, 4);
    let (there, here) = (mesh.port(0), mesh.port(1));
    let receiver = thread::spawn(move || {
        for _ in 0..rounds {
            let mut parcel: Parcel = wait_for(|| here.pop(0));
            for (start, len) in parcel.spans.drain(..) {
                read(&parcel.bytes[start as usize..][..len as usize]);
            }
            parcel.bytes.clear();
            here.push(0, parcel).unwrap_or_else(|_| unreachable!("one parcel goes round"));
        }
    });
    let mut parcel = Parcel { spans: Vec::new(), bytes: Vec::new() };
    let began = Instant::now();
    for _ in 0..rounds {
        for _ in 0..MESSAGES {
            parcel.spans.push((parcel.bytes.len() as u32, received.len() as u32));
            parcel.bytes.extend_from_slice(black_box(received));
        }
        there.push(1, parcel).unwrap_or_else(|_| unreachable!("one parcel goes round"));
        parcel = wait_for(|| there.pop(1));
    }
    let took = began.elapsed();
    receiver.join().expect("it read everything");
    took
}

/// The other way: each body is moved out of the receive buffer into an
/// allocation of its own, which the other core frees.
fn references(rounds: u64, received: &[u8]) -> Duration {
    let mesh = Mesh::new(2, 4);
    let (there, here) = (mesh.port(0), mesh.port(1));
    let receiver = thread::spawn(move || {
        for _ in 0..rounds {
            let mut hops: Vec<Arc<[u8]>> = wait_for(|| here.pop(0));
            hops.drain(..).for_each(|body| read(&body));
            here.push(0, hops).unwrap_or_else(|_| unreachable!("one list goes round"));
        }
    });
    let mut hops = Vec::new();
    let began = Instant::now();
    for _ in 0..rounds {
        for _ in 0..MESSAGES {
            hops.push(Arc::from(black_box(received)));
        }
        there.push(1, hops).unwrap_or_else(|_| unreachable!("one list goes round"));
        hops = wait_for(|| there.pop(1));
    }
    let took = began.elapsed();
    receiver.join().expect("it read everything");
    took
}

fn wait_for<T>(mut take: impl FnMut() -> Option<T>) -> T {
    loop {
        for _ in 0..1000 {
            if let Some(value) = take() {
                return value;
            }
            std::hint::spin_loop();
        }
        // Somebody else may have this core's neighbour.
        thread::yield_now();
    }
}

/// Every cache line once, as the copy into the log does.
fn read(body: &[u8]) {
    let sum = body.iter().step_by(64).fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    black_box(sum);
}

criterion_group!(benches, ring, bodies);
criterion_main!(benches);
