//! Protocol v1, byte for byte. These vectors never change: clients that exist
//! speak them.

use crate::hex;
use crate::total::put_answer;
use wire::id::MessageId;
use wire::v1::{self, Answer, BatchEntries, Decoded, Packet};

/// The id of the examples.
pub(crate) fn id() -> MessageId {
    MessageId::new(0x0193_4b8c_0000, 1, 2, 3)
}

#[track_caller]
fn check(packet: Packet<'_>, text: &str) {
    let bytes = hex(text);
    let mut out = Vec::new();
    v1::put_packet(&mut out, &packet);
    assert_eq!(out, bytes, "encoded {packet:?}");
    assert_eq!(v1::decode(&bytes), Decoded::Packet(packet, bytes.len()));
}

#[track_caller]
fn check_answer(answer: Answer<'_>, text: &str) {
    let bytes = hex(text);
    let mut out = Vec::new();
    put_answer(&mut out, &answer);
    assert_eq!(out, bytes, "encoded {answer:?}");
    assert_eq!(v1::decode_answer(&bytes), Ok(Some((answer, bytes.len()))));
}

#[test]
fn login() {
    check(Packet::Login { user: b"alice", token: None }, "01 616c696365");
    check(Packet::Login { user: b"alice", token: Some(b"s3:t") }, "01 616c696365 3a 73333a74");
    check(Packet::Login { user: b"alice", token: Some(b"") }, "01 616c696365 3a");
    check(Packet::Login { user: b"", token: None }, "01");
    check(Packet::Login { user: b"a\0b", token: None }, "01 610062");
}

#[test]
fn messages() {
    check(Packet::Send { target: b"bob", body: b"hi" }, "02 0003 626f62 0002 6869");
    check(Packet::Send { target: b"", body: b"" }, "02 0000 0000");
    check(Packet::Ack { id: id() }, "03 01934b8c0000 7000 8001 0002 0003 0000");
    check(
        Packet::Batch {
            target: b"bob",
            entries: BatchEntries::new(&hex("0002 6869 0000 0003 796f75")),
        },
        "04 0003 626f62 0000000b 0002 6869 0000 0003 796f75",
    );
    check(
        Packet::SendSeq { target: b"bob", seq: 0x0102_0304_0506_0708, body: b"hi" },
        "07 0003 626f62 0102030405060708 0002 6869",
    );
    check(
        Packet::Cbor { target: b"bob", map: &hex("a1 61 6b 01") },
        "10 0003 626f62 00000004 a1 61 6b 01",
    );
}

#[test]
fn presence() {
    check(Packet::GetStatus { user: b"bob" }, "05 0003 626f62");
    check(Packet::Typing { target: b"bob", on: true }, "70 0003 626f62");
    check(Packet::Typing { target: b"bob", on: false }, "71 0003 626f62");
    check(Packet::Read { id: b"m1", sender: b"bob" }, "74 0002 6d31 0003 626f62");
}

#[test]
fn keys_and_groups() {
    check(Packet::UploadPrekeys { map: &hex("a0") }, "20 00000001 a0");
    check(Packet::FetchPrekeys { user: b"bob" }, "21 0003 626f62");
    check(
        Packet::Encrypted { target: b"bob", header: &hex("a0"), ciphertext: b"xyz" },
        "23 0003 626f62 0001 a0 00000003 78797a",
    );
    check(Packet::GroupCreate { name: b"team" }, "30 0004 7465616d");
    check(Packet::GroupLeave { group: b"g" }, "32 0001 67");
    check(
        Packet::GroupMessage { group: b"g", header: &hex("a0"), ciphertext: b"xyz" },
        "33 0001 67 0001 a0 00000003 78797a",
    );
    check(Packet::GroupRoster { group: b"g" }, "35 0001 67");
    check(Packet::SenderKey { group: b"g", data: b"k" }, "36 0001 67 00000001 6b");
}

#[test]
fn answers() {
    check_answer(Answer::LoginOk, "03 4c4f47494e5f4f4b");
    check_answer(Answer::AuthFailed, "415554485f4641494c4544");
    check_answer(Answer::LoginRateLimited, "524154455f4c494d49544544");
    check_answer(
        Answer::Deliver { id: id(), body: b"hi" },
        "10 0010 01934b8c0000 7000 8001 0002 0003 0000 00000002 6869",
    );
    check_answer(
        Answer::Status { user: b"bob", online: true, last_seen_s: 0 },
        "06 0003 626f62 01 0000000000000000",
    );
    check_answer(
        Answer::Status { user: b"bob", online: false, last_seen_s: 0x6553_f100 },
        "06 0003 626f62 00 000000006553f100",
    );
    check_answer(Answer::RateLimited { wait_ms: 1500 }, "ff 000005dc");
}

#[test]
fn words_of_the_server() {
    let mut out = Vec::new();
    v1::put_error(&mut out, "not_member");
    assert_eq!(out, hex("fe 000a 6e6f745f6d656d626572"));
    assert_eq!(
        v1::decode_answer(&out),
        Ok(Some((Answer::Error { text: b"not_member" }, out.len())))
    );

    let mut out = Vec::new();
    v1::put_prekeys_none(&mut out);
    assert_eq!(out, hex("22 00000000"));

    let mut out = Vec::new();
    v1::put_prekeys_status(&mut out, "ok", "");
    assert_eq!(out, hex("22 0000000b a1 46 737461747573 42 6f6b"));

    let mut out = Vec::new();
    v1::put_prekeys_status(&mut out, "error", "unsupported");
    assert_eq!(
        out,
        hex("22 00000021 a2 46 737461747573 45 6572726f72
             46 726561736f6e 4b 756e737570706f72746564")
    );

    // A reason of 24 bytes and more takes the longer CBOR head.
    let mut out = Vec::new();
    v1::put_prekeys_status(&mut out, "error", "abcdefghijklmnopqrstuvwx");
    assert_eq!(out[26..28], hex("58 18"));

    let mut out = Vec::new();
    v1::put_encrypted_body(&mut out, b"alice", &hex("a0"), b"xyz");
    assert_eq!(out, hex("24 0005 616c696365 0001 a0 00000003 78797a"));
}

#[test]
fn a_delivery_is_as_long_as_it_says() {
    for len in [0, 1, 65_535, 65_536] {
        let mut out = Vec::new();
        v1::put_deliver(&mut out, id(), &vec![7; len]);
        assert_eq!(out.len(), v1::deliver_len(len));
    }
}
