//! Mutated streams against every promise of `total`.
//!
//! The fuzz targets need a nightly compiler; this loop runs wherever the tests
//! do. It is seeded, so a failure is the same failure everywhere.

use crate::hex;
use crate::parts::any_parts;
use crate::stream::Random;
use crate::total::{self, put_answer};
use crate::v2_golden::{REQUESTS, replies};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use wire::v1;
use wire::v2;

/// Inputs tried; each goes to every decoder.
const ROUNDS: usize = 500_000;
/// Longest input, bytes; a mutation may add to it.
const INPUT_BYTES_MAX: usize = 2_000;

/// Good bytes to start from: every packet of both protocols, both directions.
fn seeds() -> Vec<Vec<u8>> {
    let mut runner = TestRunner::deterministic();
    let mut seeds = vec![hex("49525332"), hex("1603010200"), b"GET / HTTP/1.1\r\n".to_vec()];
    for _ in 0..4 {
        let parts = any_parts().new_tree(&mut runner).expect("parts").current();
        let encode = |put: &dyn Fn(&mut Vec<u8>)| {
            let mut out = Vec::new();
            put(&mut out);
            out
        };
        for packet in parts.v1_packets().iter().chain(&parts.v1_logins()) {
            seeds.push(encode(&|out| v1::put_packet(out, packet)));
        }
        seeds.extend(parts.v1_answers().iter().map(|a| encode(&|out| put_answer(out, a))));
        seeds.extend(parts.v2_requests().iter().map(|r| encode(&|out| v2::put_request(out, r))));
        seeds.extend(parts.v2_replies().iter().map(|r| encode(&|out| v2::put_reply(out, r))));
    }
    seeds.extend(REQUESTS.map(|(_, text)| hex(&format!("49525332 {text}"))));
    seeds.extend(replies().iter().map(|(_, text)| hex(text)));
    seeds
}

/// Values that sit on the borders of length fields.
const BORDERS: [u32; 14] =
    [0, 1, 2, 15, 16, 17, 64, 255, 256, 257, 65_535, 66_560, 66_561, u32::MAX];

fn mutate(input: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) {
    let at = random.below(input.len() + 1);
    match random.below(8) {
        0 => input.truncate(at),
        1 => input.insert(at, random.next() as u8),
        2 => input.extend_from_slice(&seeds[random.below(seeds.len())]),
        3 => {
            let seed = &seeds[random.below(seeds.len())];
            let from = random.below(seed.len() + 1);
            input.splice(at..at, seed[from..].iter().copied());
        }
        4 if at < input.len() => {
            input.remove(at);
        }
        5 => overwrite(input, at, &BORDERS[random.below(BORDERS.len())].to_be_bytes()),
        6 => overwrite(input, at, &(BORDERS[random.below(10)] as u16).to_be_bytes()),
        _ if at < input.len() => input[at] ^= 1 << random.below(8),
        _ => input.push(random.next() as u8),
    }
    input.truncate(INPUT_BYTES_MAX);
}

fn overwrite(input: &mut [u8], at: usize, bytes: &[u8]) {
    for (old, new) in input[at..].iter_mut().zip(bytes) {
        *old = *new;
    }
}

#[test]
fn mutated_streams_break_no_promise() {
    let seeds = seeds();
    for seed in &seeds {
        total::all(seed);
    }
    let mut random = Random(2);
    for round in 0..ROUNDS {
        let mut input = seeds[round % seeds.len()].clone();
        for _ in 0..1 + random.below(6) {
            mutate(&mut input, &seeds, &mut random);
        }
        total::all(&input);
    }
}
