//! Protocol v1 as it arrives: cut anywhere, many packets at once, at and
//! beyond every limit.

use crate::parts::any_parts;
use crate::stream::{chunks, drain};
use crate::total::{self, put_answer};
use proptest::prelude::*;
use wire::id::MessageId;
use wire::limits::{
    NAME_BYTES_MAX, STORED_BODY_BYTES_MAX, V1_BATCH_BYTES_MAX, V1_BATCH_ENTRIES_MAX,
    V1_CBOR_BYTES_MAX, V1_LOGIN_BYTES_MAX, V1_PACKET_BYTES_MAX,
};
use wire::v1::{
    self, BatchEntries, CIPHERTEXT_BYTES_MAX, Decoded, HEADER_BYTES_MAX, KEYS_BYTES_MAX, Packet,
    READ_ID_BYTES_MAX,
};

fn encoded(packet: Packet<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    v1::put_packet(&mut out, &packet);
    out
}

proptest! {
    #[test]
    fn packets_survive_every_split(parts in any_parts(), tail: Vec<u8>) {
        for packet in parts.v1_packets() {
            let mut bytes = encoded(packet);
            for cut in 0..bytes.len() {
                prop_assert_eq!(v1::decode(&bytes[..cut]), Decoded::Incomplete, "cut at {}", cut);
            }
            let len = bytes.len();
            bytes.extend_from_slice(&tail);
            prop_assert_eq!(v1::decode(&bytes), Decoded::Packet(packet, len));
        }
        for login in parts.v1_logins() {
            let bytes = encoded(login);
            prop_assert_eq!(v1::decode(&bytes), Decoded::Packet(login, bytes.len()));
        }
    }

    #[test]
    fn answers_survive_every_split(parts in any_parts(), tail: Vec<u8>) {
        for answer in parts.v1_answers() {
            let mut bytes = Vec::new();
            put_answer(&mut bytes, &answer);
            for cut in 0..bytes.len() {
                prop_assert_eq!(v1::decode_answer(&bytes[..cut]), Ok(None), "cut at {}", cut);
            }
            let len = bytes.len();
            bytes.extend_from_slice(&tail);
            prop_assert_eq!(v1::decode_answer(&bytes), Ok(Some((answer, len))));
        }
    }

    #[test]
    fn pipelined_packets_come_out_in_order(parts in any_parts(), order: [u8; 24], seed: u64) {
        let kinds = parts.v1_packets();
        let sent: Vec<_> = order.iter().map(|n| kinds[usize::from(*n) % kinds.len()]).collect();
        let bytes: Vec<u8> = sent.iter().flat_map(|packet| encoded(*packet)).collect();
        let mut left = &sent[..];
        drain(&chunks(&bytes, seed), |buffer| match v1::decode(buffer) {
            Decoded::Packet(packet, len) => {
                assert_eq!(packet, left[0]);
                left = &left[1..];
                Some(len)
            }
            Decoded::Incomplete => None,
            Decoded::Bad => panic!("a good packet was bad"),
        });
        prop_assert!(left.is_empty());
    }

    #[test]
    fn pipelined_answers_come_out_in_order(parts in any_parts(), order: [u8; 24], seed: u64) {
        let kinds = parts.v1_answers();
        let sent: Vec<_> = order.iter().map(|n| kinds[usize::from(*n) % kinds.len()]).collect();
        let mut bytes = Vec::new();
        for answer in &sent {
            put_answer(&mut bytes, answer);
        }
        let mut left = &sent[..];
        drain(&chunks(&bytes, seed), |buffer| {
            let (answer, len) = v1::decode_answer(buffer).expect("good answers")?;
            assert_eq!(answer, left[0]);
            left = &left[1..];
            Some(len)
        });
        prop_assert!(left.is_empty());
    }

    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        total::v1_packets(&bytes);
        total::v1_answers(&bytes);
    }

    #[test]
    fn batch_entries_are_what_was_put_in(
        bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..30),
        torn in proptest::collection::vec(any::<u8>(), 0..12),
    ) {
        let mut blob = blob_of(&bodies);
        // The start of an entry that promises more than there is.
        blob.extend_from_slice(&[0xff, 0xff]);
        blob.extend_from_slice(&torn);
        let entries = BatchEntries::new(&blob);
        prop_assert_eq!(entries.bytes(), blob.len());
        prop_assert!(entries.eq(bodies.iter().map(Vec::as_slice)));
    }
}

fn blob_of(bodies: &[Vec<u8>]) -> Vec<u8> {
    let mut blob = Vec::new();
    for body in bodies {
        blob.extend_from_slice(&(body.len() as u16).to_be_bytes());
        blob.extend_from_slice(body);
    }
    blob
}

#[test]
fn a_batch_ends_after_a_thousand_entries() {
    let blob = blob_of(&vec![vec![1]; V1_BATCH_ENTRIES_MAX + 1]);
    assert_eq!(BatchEntries::new(&blob).count(), V1_BATCH_ENTRIES_MAX);
}

#[test]
fn a_run_of_acks_in_one_read_is_many_acks() {
    let ids: Vec<_> = (0..50).map(|n| MessageId::new(1, n, 0, 0)).collect();
    let bytes: Vec<u8> = ids.iter().flat_map(|id| encoded(Packet::Ack { id: *id })).collect();
    let mut left = &ids[..];
    drain(&[&bytes], |buffer| {
        assert_eq!(v1::decode(buffer), Decoded::Packet(Packet::Ack { id: left[0] }, 17));
        left = &left[1..];
        Some(17)
    });
    assert!(left.is_empty());
}

#[test]
fn a_login_takes_the_rest_of_the_read() {
    let longest = vec![b'u'; V1_LOGIN_BYTES_MAX];
    let bytes = encoded(Packet::Login { user: &longest, token: None });
    assert_eq!(
        v1::decode(&bytes),
        Decoded::Packet(Packet::Login { user: &longest, token: None }, 257)
    );
    let longer = [&bytes[..], b"u"].concat();
    assert_eq!(v1::decode(&longer), Decoded::Packet(Packet::LoginTooLong, 258));
    assert_eq!(longer.len(), encoded(Packet::LoginTooLong).len());
}

#[test]
fn unknown_opcodes_are_bad_at_once() {
    let known = [
        0x01, 0x02, 0x03, 0x04, 0x05, 0x07, 0x10, 0x20, 0x21, 0x23, 0x30, 0x32, 0x33, 0x35, 0x36,
        0x70, 0x71, 0x74,
    ];
    for opcode in 0..=u8::MAX {
        let is_bad = v1::decode(&[opcode]) == Decoded::Bad;
        assert_eq!(is_bad, !known.contains(&opcode), "opcode {opcode:#04x}");
    }
}

/// `head` ends with the length field under test, set to one above its limit:
/// refused before a byte of what it promises, and not one byte earlier.
#[track_caller]
fn check_refused(head: &[u8]) {
    assert_eq!(v1::decode(head), Decoded::Bad);
    for cut in 0..head.len() {
        assert_eq!(v1::decode(&head[..cut]), Decoded::Incomplete, "cut at {cut}");
    }
}

fn over16(before: &[u8], bytes_max: usize) -> Vec<u8> {
    [before, &(bytes_max as u16 + 1).to_be_bytes()].concat()
}

fn over32(before: &[u8], bytes_max: usize) -> Vec<u8> {
    [before, &(bytes_max as u32 + 1).to_be_bytes()].concat()
}

#[test]
fn limits_are_refused_by_the_length_field_alone() {
    for opcode in [0x02, 0x04, 0x05, 0x07, 0x10, 0x21, 0x23, 0x30, 0x32, 0x33, 0x35, 0x36, 0x70] {
        check_refused(&over16(&[opcode], NAME_BYTES_MAX));
    }
    check_refused(&over16(&[0x74], READ_ID_BYTES_MAX));
    check_refused(&over16(&[0x74, 0, 1, b'm'], NAME_BYTES_MAX));
    check_refused(&over32(&[0x04, 0, 1, b'b'], V1_BATCH_BYTES_MAX));
    check_refused(&over32(&[0x10, 0, 1, b'b'], V1_CBOR_BYTES_MAX));
    check_refused(&over32(&[0x20], KEYS_BYTES_MAX));
    check_refused(&over32(&[0x36, 0, 1, b'g'], KEYS_BYTES_MAX));
    for opcode in [0x23, 0x33] {
        check_refused(&over16(&[opcode, 0, 1, b'b'], HEADER_BYTES_MAX));
        check_refused(&over32(&[opcode, 0, 1, b'b', 0, 0], CIPHERTEXT_BYTES_MAX));
    }
}

#[track_caller]
fn check_accepted(packet: Packet<'_>) -> usize {
    let bytes = encoded(packet);
    assert!(v1::decode(&bytes) == Decoded::Packet(packet, bytes.len()), "at its limit");
    assert_eq!(v1::decode(&bytes[..bytes.len() - 1]), Decoded::Incomplete);
    bytes.len()
}

#[test]
fn the_largest_packets_are_taken() {
    let long = vec![0xab; V1_BATCH_BYTES_MAX];
    let target = &long[..NAME_BYTES_MAX];
    let header = &long[..HEADER_BYTES_MAX];
    let ciphertext = &long[..CIPHERTEXT_BYTES_MAX];
    check_accepted(Packet::Send { target, body: &long[..65_535] });
    check_accepted(Packet::SendSeq { target, seq: u64::MAX, body: &long[..65_535] });
    check_accepted(Packet::Cbor { target, map: &long[..V1_CBOR_BYTES_MAX] });
    check_accepted(Packet::UploadPrekeys { map: &long[..KEYS_BYTES_MAX] });
    check_accepted(Packet::Encrypted { target, header, ciphertext });
    check_accepted(Packet::GroupMessage { group: target, header, ciphertext });
    check_accepted(Packet::SenderKey { group: target, data: &long[..KEYS_BYTES_MAX] });
    check_accepted(Packet::Read { id: &long[..READ_ID_BYTES_MAX], sender: target });
    let batch = check_accepted(Packet::Batch { target, entries: BatchEntries::new(&long) });
    assert_eq!(batch, V1_PACKET_BYTES_MAX, "the longest packet is the longest batch");
}

/// What a client must not be made to wait for.
#[test]
fn a_client_refuses_impossible_answers() {
    let id = [7; 16];
    let deliver = |id_len: u16, body_len: u32| {
        [&[0x10][..], &id_len.to_be_bytes(), &id, &body_len.to_be_bytes()].concat()
    };
    let most = STORED_BODY_BYTES_MAX as u32;
    assert_eq!(v1::decode_answer(&deliver(16, most)), Ok(None));
    assert_eq!(v1::decode_answer(&deliver(16, most + 1)), Err(()));
    assert_eq!(v1::decode_answer(&deliver(15, 0)[..3]), Err(()));
    assert_eq!(v1::decode_answer(&deliver(17, 0)), Err(()));
    assert_eq!(v1::decode_answer(&over32(&[0x22], STORED_BODY_BYTES_MAX)), Err(()));
    assert_eq!(v1::decode_answer(b"AUTH_FAILET"), Err(()));
    assert_eq!(v1::decode_answer(b"\x03LOGIN_NO"), Err(()));
    assert_eq!(v1::decode_answer(b"\x02"), Err(()));
}
