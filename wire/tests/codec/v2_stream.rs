//! Protocol v2 as it arrives: cut anywhere, many frames at once, from a later
//! version, at and beyond every limit.

use crate::parts::any_parts;
use crate::stream::{chunks, drain};
use crate::total;
use proptest::prelude::*;
use wire::id::{Class, MessageId};
use wire::limits::{
    BODY_BYTES_MAX, NAME_BYTES_MAX, STORED_BODY_BYTES_MAX, TOKEN_BYTES_MAX, V2_FRAME_BYTES_MAX,
    V2_REPLY_BYTES_MAX,
};
use wire::v2::{self, Deliver, Hello, Reply, Request, Send, Wrong};

fn request_bytes(request: &Request<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    v2::put_request(&mut out, request);
    out
}

fn reply_bytes(reply: &Reply<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    v2::put_reply(&mut out, reply);
    out
}

/// The same frame with more bytes at its end, as a later version may send.
fn extended(frame: &[u8], more: &[u8]) -> Vec<u8> {
    let mut out = [frame, more].concat();
    let len = out.len() as u32 - 4;
    out[..4].copy_from_slice(&len.to_be_bytes());
    out
}

/// A frame of any type with any bytes in it.
fn frame(kind: u8, flags: u8, body: &[u8]) -> Vec<u8> {
    extended(&[0, 0, 0, 0, kind, flags], body)
}

proptest! {
    #[test]
    fn requests_survive_every_split(parts in any_parts(), tail: Vec<u8>) {
        for request in parts.v2_requests() {
            let mut bytes = request_bytes(&request);
            for cut in 0..bytes.len() {
                prop_assert_eq!(v2::decode_request(&bytes[..cut]), Ok(None), "cut at {}", cut);
            }
            let len = bytes.len();
            bytes.extend_from_slice(&tail);
            prop_assert_eq!(v2::decode_request(&bytes), Ok(Some((request, len))));
        }
    }

    #[test]
    fn replies_survive_every_split(parts in any_parts(), tail: Vec<u8>) {
        for reply in parts.v2_replies() {
            let mut bytes = reply_bytes(&reply);
            for cut in 0..bytes.len() {
                prop_assert_eq!(v2::decode_reply(&bytes[..cut]), Ok(None), "cut at {}", cut);
            }
            let len = bytes.len();
            bytes.extend_from_slice(&tail);
            prop_assert_eq!(v2::decode_reply(&bytes), Ok(Some((reply, len))));
        }
    }

    #[test]
    fn pipelined_requests_come_out_in_order(parts in any_parts(), order: [u8; 24], seed: u64) {
        let kinds = parts.v2_requests();
        let sent: Vec<_> = order.iter().map(|n| kinds[usize::from(*n) % kinds.len()]).collect();
        let bytes: Vec<u8> = sent.iter().flat_map(request_bytes).collect();
        let mut left = &sent[..];
        drain(&chunks(&bytes, seed), |buffer| {
            let (request, len) = v2::decode_request(buffer).expect("good frames")?;
            assert_eq!(request, left[0]);
            left = &left[1..];
            Some(len)
        });
        prop_assert!(left.is_empty());
    }

    #[test]
    fn pipelined_replies_come_out_in_order(parts in any_parts(), order: [u8; 24], seed: u64) {
        let kinds = parts.v2_replies();
        let sent: Vec<_> = order.iter().map(|n| kinds[usize::from(*n) % kinds.len()]).collect();
        let bytes: Vec<u8> = sent.iter().flat_map(reply_bytes).collect();
        let mut left = &sent[..];
        drain(&chunks(&bytes, seed), |buffer| {
            let (reply, len) = v2::decode_reply(buffer).expect("good frames")?;
            assert_eq!(reply, left[0]);
            left = &left[1..];
            Some(len)
        });
        prop_assert!(left.is_empty());
    }

    #[test]
    fn later_fields_are_ignored(parts in any_parts(), more: Vec<u8>) {
        for request in parts.v2_requests() {
            if !matches!(request, Request::Send(_)) {
                let bytes = extended(&request_bytes(&request), &more);
                prop_assert_eq!(v2::decode_request(&bytes), Ok(Some((request, bytes.len()))));
            }
        }
        for reply in parts.v2_replies() {
            if !matches!(reply, Reply::Deliver(_)) {
                let bytes = extended(&reply_bytes(&reply), &more);
                prop_assert_eq!(v2::decode_reply(&bytes), Ok(Some((reply, bytes.len()))));
            }
        }
    }

    #[test]
    fn later_flags_are_ignored(parts in any_parts(), flags: u8) {
        for request in parts.v2_requests() {
            let mut bytes = request_bytes(&request);
            bytes[5] = flags;
            let decoded = v2::decode_request(&bytes);
            match request {
                Request::Send(send) => {
                    let send = Request::Send(Send { flags, ..send });
                    prop_assert_eq!(decoded, Ok(Some((send, bytes.len()))));
                }
                other => prop_assert_eq!(decoded, Ok(Some((other, bytes.len())))),
            }
        }
    }

    #[test]
    fn unknown_types_are_skipped(kind: u8, flags: u8, body: Vec<u8>, parts in any_parts()) {
        let unknown = frame(kind, flags, &body);
        for request in parts.v2_requests() {
            let bytes = [&unknown[..], &request_bytes(&request)].concat();
            if !(0x01..=0x05).contains(&kind) {
                let wrong = Err(Wrong::UnknownType(kind, unknown.len()));
                prop_assert_eq!(v2::decode_request(&bytes), wrong);
            }
            let next = v2::decode_request(&bytes[unknown.len()..]);
            prop_assert_eq!(next, Ok(Some((request, bytes.len() - unknown.len()))));
        }
        if !(0x81..=0x89).contains(&kind) {
            let wrong = Err(Wrong::UnknownType(kind, unknown.len()));
            prop_assert_eq!(v2::decode_reply(&unknown), wrong);
        }
    }

    #[test]
    fn a_frame_cut_short_inside_is_skippable(parts in any_parts()) {
        // The length field is right, the fields inside end too early.
        for request in parts.v2_requests() {
            let bytes = request_bytes(&request);
            let fields_end = match request {
                Request::Send(send) => bytes.len() - send.body.len(),
                _ => bytes.len(),
            };
            for end in v2::HEADER_BYTES..fields_end {
                let short = extended(&bytes[..end], b"");
                prop_assert_eq!(v2::decode_request(&short), Err(Wrong::Fields(end)));
            }
        }
        for reply in parts.v2_replies() {
            let bytes = reply_bytes(&reply);
            let fields_end = match reply {
                Reply::Deliver(deliver) => bytes.len() - deliver.body.len(),
                _ => bytes.len(),
            };
            for end in v2::HEADER_BYTES..fields_end {
                let short = extended(&bytes[..end], b"");
                prop_assert_eq!(v2::decode_reply(&short), Err(Wrong::Fields(end)));
            }
        }
    }

    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        total::v2_requests(&bytes);
        total::v2_replies(&bytes);
        total::first_bytes(&bytes);
    }

    #[test]
    fn any_fields_are_answered(kind: u8, flags: u8, body: Vec<u8>) {
        // Random bytes rarely hold a good length; these always do.
        for kind in [kind, kind % 6, 0x80 + kind % 10] {
            total::v2_requests(&frame(kind, flags, &body));
            total::v2_replies(&frame(kind, flags, &body));
        }
    }
}

#[test]
fn limits_are_refused_by_the_length_field_alone() {
    let (most, most_of_server) = (V2_FRAME_BYTES_MAX as u32, V2_REPLY_BYTES_MAX as u32);
    for len in [0, 1, most + 1, u32::MAX] {
        let bytes = len.to_be_bytes();
        assert_eq!(v2::decode_request(&bytes), Err(Wrong::Length), "length {len}");
        assert_eq!(v2::decode_request(&bytes[..3]), Ok(None));
    }
    for len in [0, 1, most_of_server + 1, u32::MAX] {
        assert_eq!(v2::decode_reply(&len.to_be_bytes()), Err(Wrong::Length), "length {len}");
    }
    for len in [2, most] {
        assert_eq!(v2::decode_request(&len.to_be_bytes()), Ok(None), "length {len}");
    }
    for len in [2, most, most_of_server] {
        assert_eq!(v2::decode_reply(&len.to_be_bytes()), Ok(None), "length {len}");
    }
}

#[test]
fn the_largest_frames_are_taken() {
    let long = vec![0xab; BODY_BYTES_MAX];
    let send = Request::Send(Send {
        seq: u64::MAX,
        class: Class::Guaranteed,
        flags: 0,
        expiry_s: u32::MAX,
        to: &long[..NAME_BYTES_MAX],
        body: &long,
    });
    let bytes = request_bytes(&send);
    assert!(bytes.len() <= 4 + V2_FRAME_BYTES_MAX);
    assert!(v2::decode_request(&bytes) == Ok(Some((send, bytes.len()))));

    let bytes = frame(0x77, 0, &vec![1; V2_FRAME_BYTES_MAX - 2]);
    assert_eq!(v2::decode_request(&bytes), Err(Wrong::UnknownType(0x77, bytes.len())));
}

/// A v1 client may send more than a v2 client, and to v2 devices, too.
#[test]
fn the_largest_message_of_v1_fits_a_delivery() {
    let body = vec![0xa0; STORED_BODY_BYTES_MAX];
    let deliver = Reply::Deliver(Deliver {
        inbox_seq: 1,
        id: MessageId([7; 16]),
        flags: 0,
        from_device: 0,
        send_seq: 0,
        time_ms: 1,
        from: &body[..NAME_BYTES_MAX],
        body: &body,
    });
    let bytes = reply_bytes(&deliver);
    assert!(v2::decode_reply(&bytes) == Ok(Some((deliver, bytes.len()))));
}

/// A recipient's name comes back in REFUSED, however long it was.
#[test]
fn the_longest_name_a_send_can_carry_fits_its_refusal() {
    let to = vec![0xab; usize::from(u16::MAX)];
    let send = Send { seq: 1, class: Class::Guaranteed, flags: 0, expiry_s: 0, to: &to, body: b"" };
    let bytes = request_bytes(&Request::Send(send));
    assert!(matches!(v2::decode_request(&bytes), Ok(Some((Request::Send(_), _)))));
    let refused = Reply::Refused { seq: 1, code: 18, retry_after_ms: 0, to: &to };
    let bytes = reply_bytes(&refused);
    assert!(v2::decode_reply(&bytes) == Ok(Some((refused, bytes.len()))));
}

#[test]
fn fields_out_of_bounds_are_skippable() {
    let hello = |token: &[u8]| {
        request_bytes(&Request::Hello(Hello {
            version_min: 1,
            version_max: 1,
            capabilities: 0,
            device: 1,
            last_seq: 0,
            credit: 1,
            user: b"alice",
            token,
        }))
    };
    let token = vec![b't'; TOKEN_BYTES_MAX + 1];
    assert!(matches!(v2::decode_request(&hello(&token[1..])), Ok(Some(_))));
    let bytes = hello(&token);
    assert_eq!(v2::decode_request(&bytes), Err(Wrong::Fields(bytes.len())));

    // Numbers begin at 1, and there are two classes.
    let send = |seq: u64, class: u8| {
        let fields = [&seq.to_be_bytes()[..], &[class], &[0; 4], &[0, 1, b'b'], b"hi"].concat();
        frame(0x02, 0, &fields)
    };
    assert!(matches!(v2::decode_request(&send(1, 1)), Ok(Some(_))));
    assert_eq!(v2::decode_request(&send(0, 1)), Err(Wrong::Fields(24)));
    assert_eq!(v2::decode_request(&send(1, 2)), Err(Wrong::Fields(24)));
}

#[test]
fn names_and_bodies_have_bounds() {
    assert!(v2::is_name(b"a") && v2::is_name(&[0xff; NAME_BYTES_MAX]));
    assert!(v2::is_name("für immer".as_bytes()));
    for bad in [&b""[..], &[b'a'; NAME_BYTES_MAX + 1], b"a:b", b"a\0", b"\x1f", b"\x7f", b"a\n"] {
        assert!(!v2::is_name(bad), "{bad:?}");
    }
    assert!(v2::is_body(b"") && v2::is_body(&vec![0; BODY_BYTES_MAX]));
    assert!(!v2::is_body(&vec![0; BODY_BYTES_MAX + 1]));
}
