//! What the brain costs: one message from `Shard::handle` of its SEND to the
//! acknowledgement of its delivery, the log's sealing included, without
//! sockets and disk. Counted in messages per second.

mod node;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use node::{Node, Pairs, Speaks};
use wire::id::Class;

/// Pairs that talk; one round is one message in each, in one commit.
const PAIRS: [usize; 2] = [1, 64];

fn turn(criterion: &mut Criterion) {
    let loads = [
        ("v2 guaranteed", Speaks::V2(Class::Guaranteed)),
        ("v2 best effort", Speaks::V2(Class::BestEffort)),
        ("v1", Speaks::V1),
    ];
    for (name, speaks) in loads {
        for (place, shards) in [("one shard", 1), ("two shards", 2)] {
            let mut group = criterion.benchmark_group(format!("turn/{name}, {place}"));
            for pairs in PAIRS {
                let mut node = Node::new(shards);
                let mut pairs = Pairs::new(&mut node, pairs, 0, shards - 1, speaks);
                group.throughput(Throughput::Elements(pairs.len() as u64));
                let id = BenchmarkId::from_parameter(format!("{} in a commit", pairs.len()));
                group.bench_function(id, |bencher| bencher.iter(|| pairs.round(&mut node)));
            }
            group.finish();
        }
    }
}

criterion_group!(benches, turn);
criterion_main!(benches);
