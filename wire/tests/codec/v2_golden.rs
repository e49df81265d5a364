//! Protocol v2, byte for byte. Each vector also stands in docs/WIRE.md as an
//! example; `documented` holds the two together.

use crate::hex;
use crate::v1_golden::id;
use wire::id::Class;
use wire::refuse::Code;
use wire::v2::{self, Deliver, Hello, Reply, Request, Send, Welcome, flag};

/// Every request with its bytes.
pub(crate) const REQUESTS: [(Request<'_>, &str); 6] = [
    (
        Request::Hello(Hello {
            version_min: 1,
            version_max: 1,
            capabilities: 0,
            device: 7,
            last_seq: 41,
            credit: 256,
            user: b"alice",
            token: b"t0k",
        }),
        "00000028 01 00  01 01 00000000 0000000000000007 0000000000000029 00000100 0005 616c696365 0003 74306b",
    ),
    (
        Request::Send(Send {
            seq: 1,
            class: Class::Guaranteed,
            flags: flag::WANTS_DELIVERED,
            expiry_s: 0,
            to: b"bob",
            body: b"hi",
        }),
        "00000016 02 01  0000000000000001 01 00000000 0003 626f62 6869",
    ),
    (
        Request::Send(Send {
            seq: 9,
            class: Class::BestEffort,
            flags: flag::SKIP,
            expiry_s: 3600,
            to: b"bob",
            body: b"",
        }),
        "00000014 02 02  0000000000000009 00 00000e10 0003 626f62",
    ),
    (Request::Ack { seq: 42 }, "0000000a 03 00  000000000000002a"),
    (Request::Credit { window: 1024 }, "00000006 04 00  00000400"),
    (Request::Ping { nonce: 0x0102_0304_0506_0708 }, "0000000a 05 00  0102030405060708"),
];

/// Every reply with its bytes.
pub(crate) fn replies() -> Vec<(Reply<'static>, &'static str)> {
    vec![
        (
            Reply::Welcome(Welcome {
                version: 1,
                capabilities: 0,
                server_time_ms: 0x0193_4b8c_0000,
                first_seq: 42,
                last_seq: 43,
                frame_bytes_max: 66_560,
                body_bytes_max: 65_536,
                credit_max: 65_535,
            }),
            "0000002b 81 00  01 00000000 000001934b8c0000 000000000000002a 000000000000002b 00010400 00010000 0000ffff",
        ),
        (
            Reply::Sent { seq: 1, id: id(), class: Class::Guaranteed, to: b"bob" },
            "00000020 82 00  0000000000000001 01934b8c000070008001000200030000 01 0003 626f62",
        ),
        (Reply::Gap { expected: 3, to: b"bob" }, "0000000f 83 00  0000000000000003 0003 626f62"),
        (
            Reply::Refused { seq: 4, code: Code::Busy as u16, retry_after_ms: 500, to: b"bob" },
            "00000015 84 00  0000000000000004 0008 000001f4 0003 626f62",
        ),
        (
            Reply::Deliver(Deliver {
                inbox_seq: 42,
                id: id(),
                flags: 0,
                from_device: 7,
                send_seq: 1,
                time_ms: 0x0193_4b8c_0000,
                from: b"alice",
                body: b"hi",
            }),
            "0000003b 85 00  000000000000002a 01934b8c000070008001000200030000 0000000000000007 0000000000000001 000001934b8c0000 0005 616c696365 6869",
        ),
        (Reply::Pong { nonce: 0x0102_0304_0506_0708 }, "0000000a 86 00  0102030405060708"),
        (
            Reply::Goaway { code: Code::Draining as u16, reconnect_after_ms: 2000, text: b"bye" },
            "0000000d 87 00  000d 000007d0 0003 627965",
        ),
        (
            Reply::Error { code: Code::UnknownType as u16, text: b"huh" },
            "00000009 88 00  0002 0003 687568",
        ),
        (
            Reply::Delivered { seq: 1, id: id(), to: b"bob" },
            "0000001f 89 00  0000000000000001 01934b8c000070008001000200030000 0003 626f62",
        ),
    ]
}

#[test]
fn requests() {
    for (request, text) in REQUESTS {
        let bytes = hex(text);
        let mut out = Vec::new();
        v2::put_request(&mut out, &request);
        assert_eq!(out, bytes, "encoded {request:?}");
        assert_eq!(v2::decode_request(&bytes), Ok(Some((request, bytes.len()))));
    }
}

#[test]
fn every_reply() {
    for (reply, text) in replies() {
        let bytes = hex(text);
        let mut out = Vec::new();
        v2::put_reply(&mut out, &reply);
        assert_eq!(out, bytes, "encoded {reply:?}");
        assert_eq!(v2::decode_reply(&bytes), Ok(Some((reply, bytes.len()))));
    }
}

#[test]
fn the_preface() {
    assert_eq!(v2::PREFACE[..], hex("49 52 53 32"));
}

#[test]
fn errors_carry_the_sentence_of_their_code() {
    let mut out = Vec::new();
    v2::put_error(&mut out, Code::NotLoggedIn);
    let text = b"log in first";
    assert_eq!(v2::decode_reply(&out), Ok(Some((Reply::Error { code: 4, text }, out.len()))));

    let mut out = Vec::new();
    v2::put_goaway(&mut out, Code::Draining, 1500);
    let text = b"the server is stopping; reconnect";
    let goaway = Reply::Goaway { code: 13, reconnect_after_ms: 1500, text };
    assert_eq!(v2::decode_reply(&out), Ok(Some((goaway, out.len()))));
}
