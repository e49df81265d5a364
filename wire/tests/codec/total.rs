//! What must hold of every decoder for any bytes at all.
//!
//! Each function takes one input, walks it as a stream and panics at the first
//! broken promise. Nothing here knows where the bytes come from: the round
//! trips, the mutation loop and the fuzz targets (which include this file by
//! path) all end here.
#![allow(dead_code, reason = "each fuzz target uses one of these functions")]

use wire::limits::{
    STORED_BODY_BYTES_MAX, TOKEN_BYTES_MAX, V1_BATCH_ENTRIES_MAX, V1_LOGIN_BYTES_MAX,
    V1_PACKET_BYTES_MAX, V2_FRAME_BYTES_MAX, V2_REPLY_BYTES_MAX,
};
use wire::sniff::{Protocol, V2_PREFACE, sniff};
use wire::v1::{self, Answer, Decoded, Packet};
use wire::v2::{self, Request, Wrong};

/// All promises, each against the same bytes.
pub(crate) fn all(bytes: &[u8]) {
    v1_packets(bytes);
    v1_answers(bytes);
    v2_requests(bytes);
    v2_replies(bytes);
    first_bytes(bytes);
}

/// A v1 client's bytes, packet after packet until one is bad or incomplete.
pub(crate) fn v1_packets(mut bytes: &[u8]) {
    while let Some(len) = v1_packet(bytes) {
        bytes = &bytes[len..];
    }
}

fn v1_packet(bytes: &[u8]) -> Option<usize> {
    let (packet, len) = match v1::decode(bytes) {
        Decoded::Incomplete => {
            assert!(bytes.len() < V1_PACKET_BYTES_MAX, "a full buffer that still waits");
            return None;
        }
        Decoded::Bad => {
            let longer = [bytes, &[0]].concat();
            assert_eq!(v1::decode(&longer), Decoded::Bad, "more bytes cured a bad packet");
            return None;
        }
        Decoded::Packet(packet, len) => (packet, len),
    };
    assert!((1..=bytes.len()).contains(&len));
    assert_eq!(v1::decode(&bytes[..len]), Decoded::Packet(packet, len), "alone it is another");
    match packet {
        Packet::LoginTooLong => {
            assert!(len == bytes.len() && len > 1 + V1_LOGIN_BYTES_MAX);
            return Some(len);
        }
        Packet::Login { .. } => assert!(len == bytes.len() && len <= 1 + V1_LOGIN_BYTES_MAX),
        _ => assert_eq!(v1::decode(&bytes[..len - 1]), Decoded::Incomplete),
    }
    if let Packet::Batch { entries, .. } = packet {
        let blob = entries.bytes();
        let (count, taken) = entries.fold((0, 0), |(n, sum), body| (n + 1, sum + 2 + body.len()));
        assert!(count <= V1_BATCH_ENTRIES_MAX && taken <= blob);
    }
    assert!(len <= V1_PACKET_BYTES_MAX);
    let mut again = Vec::new();
    v1::put_packet(&mut again, &packet);
    assert_eq!(again, bytes[..len], "there is one way to write a packet");
    Some(len)
}

/// A v1 server's bytes as its client reads them.
pub(crate) fn v1_answers(mut bytes: &[u8]) {
    while let Some(len) = v1_answer(bytes) {
        bytes = &bytes[len..];
    }
}

fn v1_answer(bytes: &[u8]) -> Option<usize> {
    let (answer, len) = match v1::decode_answer(bytes) {
        Ok(Some(decoded)) => decoded,
        Ok(None) => {
            assert!(bytes.len() < v1::deliver_len(STORED_BODY_BYTES_MAX));
            return None;
        }
        Err(()) => {
            let longer = [bytes, &[0]].concat();
            assert_eq!(v1::decode_answer(&longer), Err(()), "more bytes cured a bad answer");
            return None;
        }
    };
    assert!((1..=bytes.len()).contains(&len));
    assert_eq!(v1::decode_answer(&bytes[..len - 1]), Ok(None));
    let mut again = Vec::new();
    put_answer(&mut again, &answer);
    assert_eq!(again.len(), len);
    assert_eq!(v1::decode_answer(&again), Ok(Some((answer, len))));
    Some(len)
}

/// Writes any v1 answer with the function the server writes it with.
pub(crate) fn put_answer(out: &mut Vec<u8>, answer: &Answer<'_>) {
    match *answer {
        Answer::LoginOk => out.extend_from_slice(v1::LOGIN_OK),
        Answer::AuthFailed => out.extend_from_slice(v1::AUTH_FAILED),
        Answer::LoginRateLimited => out.extend_from_slice(v1::RATE_LIMITED),
        Answer::Deliver { id, body } => v1::put_deliver(out, id, body),
        Answer::Status { user, online, last_seen_s } => {
            v1::put_status(out, user, online, last_seen_s);
        }
        Answer::RateLimited { wait_ms } => v1::put_rate_limited(out, wait_ms),
        // The server writes constant maps and texts only; a client must read any.
        Answer::Prekeys { map } => {
            out.push(0x22);
            out.extend_from_slice(&(map.len() as u32).to_be_bytes());
            out.extend_from_slice(map);
        }
        Answer::Error { text } => {
            out.push(0xFE);
            out.extend_from_slice(&(text.len() as u16).to_be_bytes());
            out.extend_from_slice(text);
        }
    }
}

/// A v2 client's frames, after the preface.
pub(crate) fn v2_requests(mut bytes: &[u8]) {
    while let Some(len) = v2_request(bytes) {
        bytes = &bytes[len..];
    }
}

fn v2_request(bytes: &[u8]) -> Option<usize> {
    let decoded = v2::decode_request(bytes);
    let len =
        v2_frame_len(bytes, V2_FRAME_BYTES_MAX, decoded.map(|frame| frame.map(|(_, len)| len)))?;
    assert_eq!(v2::decode_request(&bytes[..len - 1]), Ok(None));
    let Ok(Some((request, _))) = decoded else { return Some(len) };
    match request {
        Request::Hello(hello) => assert!(hello.token.len() <= TOKEN_BYTES_MAX),
        Request::Send(send) => assert!(send.seq > 0),
        _ => {}
    }
    let mut again = Vec::new();
    v2::put_request(&mut again, &request);
    assert!(again.len() <= len, "only what is ignored gets lost");
    assert_eq!(v2::decode_request(&again), Ok(Some((request, again.len()))));
    Some(len)
}

/// A v2 server's frames as its client reads them.
pub(crate) fn v2_replies(mut bytes: &[u8]) {
    while let Some(len) = v2_reply(bytes) {
        bytes = &bytes[len..];
    }
}

fn v2_reply(bytes: &[u8]) -> Option<usize> {
    let decoded = v2::decode_reply(bytes);
    let len =
        v2_frame_len(bytes, V2_REPLY_BYTES_MAX, decoded.map(|frame| frame.map(|(_, len)| len)))?;
    assert_eq!(v2::decode_reply(&bytes[..len - 1]), Ok(None));
    let Ok(Some((reply, _))) = decoded else { return Some(len) };
    let mut again = Vec::new();
    v2::put_reply(&mut again, &reply);
    assert!(again.len() <= len, "only what is ignored gets lost");
    assert_eq!(v2::decode_reply(&again), Ok(Some((reply, again.len()))));
    Some(len)
}

/// Where the frame at the start ends, good or skippable; `None` when the
/// stream needs more bytes or cannot be followed.
fn v2_frame_len(
    bytes: &[u8],
    len_max: usize,
    decoded: Result<Option<usize>, Wrong>,
) -> Option<usize> {
    let len = match decoded {
        Ok(Some(len)) | Err(Wrong::Fields(len)) => len,
        Err(Wrong::UnknownType(kind, len)) => {
            assert_eq!(bytes[4], kind);
            len
        }
        Ok(None) => {
            assert!(bytes.len() < 4 + len_max, "a full buffer that still waits");
            return None;
        }
        Err(Wrong::Length) => {
            let said = u32::from_be_bytes(bytes[..4].try_into().expect("four bytes"));
            assert!(said < 2 || said as usize > len_max);
            return None;
        }
    };
    assert!((v2::HEADER_BYTES..=bytes.len()).contains(&len) && len <= 4 + len_max);
    Some(len)
}

/// A new connection: which protocol, then its packets.
pub(crate) fn first_bytes(bytes: &[u8]) {
    let Some(protocol) = sniff(bytes) else {
        assert!(bytes.len() < V2_PREFACE.len() && V2_PREFACE.starts_with(bytes));
        return;
    };
    let longer = [bytes, &[0]].concat();
    assert_eq!(sniff(&longer), Some(protocol), "more bytes changed the protocol");
    match protocol {
        Protocol::V1 => v1_packets(bytes),
        Protocol::V2 => v2_requests(&bytes[V2_PREFACE.len()..]),
        Protocol::Tls => assert_eq!(bytes[0], 0x16),
        Protocol::Http => assert_eq!(bytes[0], b'G'),
    }
}
