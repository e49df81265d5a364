//! What the codecs cost: the hot frames and packets of both protocols, one at
//! a time and pipelined in one buffer as a receive brings them.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use wire::id::{Class, MessageId};
use wire::v1::{Decoded, Packet};
use wire::v2::{Deliver, Reply, Request, Send};
use wire::{v1, v2};

const BODIES: [usize; 3] = [64, 1024, 16 * 1024];
/// Frames in one receive of a busy connection.
const PIPELINED: u64 = 32;

fn send(body: &[u8]) -> Request<'_> {
    let class = Class::Guaranteed;
    Request::Send(Send { seq: 7, class, flags: 0, expiry_s: 0, to: b"recipient-0001", body })
}

fn deliver(body: &[u8]) -> Reply<'_> {
    Reply::Deliver(Deliver {
        inbox_seq: 7,
        id: MessageId::new(1_800_000_000_000, 1, 0, 0),
        flags: 0,
        from_device: 1,
        send_seq: 7,
        time_ms: 1_800_000_000_000,
        from: b"sender-0000001",
        body,
    })
}

fn packet(body: &[u8]) -> Packet<'_> {
    Packet::Send { target: b"recipient-0001", body }
}

fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame/encode");
    group.throughput(Throughput::Elements(1));
    let mut out = Vec::with_capacity(1 << 17);
    for bytes in BODIES {
        let body = vec![7; bytes];
        group.bench_function(BenchmarkId::new("v2 deliver", bytes), |bencher| {
            bencher.iter(|| {
                out.clear();
                v2::put_reply(&mut out, black_box(&deliver(&body)));
            });
        });
        group.bench_function(BenchmarkId::new("v1 deliver", bytes), |bencher| {
            let id = MessageId::new(1, 1, 0, 0);
            bencher.iter(|| {
                out.clear();
                v1::put_deliver(&mut out, black_box(id), black_box(&body));
            });
        });
    }
    let sent = Reply::Sent {
        seq: 7,
        id: MessageId::new(1, 1, 0, 0),
        class: Class::Guaranteed,
        to: b"recipient-0001",
    };
    group.bench_function("v2 sent", |bencher| {
        bencher.iter(|| {
            out.clear();
            v2::put_reply(&mut out, black_box(&sent));
        });
    });
    group.finish();
}

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame/decode");
    group.throughput(Throughput::Elements(PIPELINED));
    for bytes in [64, 1024] {
        let body = vec![7; bytes];
        let (mut frames, mut packets) = (Vec::new(), Vec::new());
        for _ in 0..PIPELINED {
            v2::put_request(&mut frames, &send(&body));
            v1::put_packet(&mut packets, &packet(&body));
        }
        group.bench_function(BenchmarkId::new("v2 send", bytes), |bencher| {
            bencher.iter(|| drain_v2(black_box(&frames)));
        });
        group.bench_function(BenchmarkId::new("v1 send", bytes), |bencher| {
            bencher.iter(|| drain_v1(black_box(&packets)));
        });
    }
    let mut acks = Vec::new();
    (0..PIPELINED).for_each(|seq| v2::put_request(&mut acks, &Request::Ack { seq }));
    group.bench_function("v2 ack", |bencher| bencher.iter(|| drain_v2(black_box(&acks))));
    group.finish();
}

fn drain_v2(mut bytes: &[u8]) {
    while let Ok(Some((request, len))) = v2::decode_request(bytes) {
        black_box(request);
        bytes = &bytes[len..];
    }
    assert!(bytes.is_empty());
}

fn drain_v1(mut bytes: &[u8]) {
    while let Decoded::Packet(packet, len) = v1::decode(bytes) {
        black_box(packet);
        bytes = &bytes[len..];
    }
    assert!(bytes.is_empty());
}

criterion_group!(benches, encode, decode);
criterion_main!(benches);
