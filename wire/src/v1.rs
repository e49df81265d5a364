//! Protocol v1: the packets of the original Erlang server, byte for byte.
//!
//! One opcode byte, then fields, no outer length. The decoder says how many
//! bytes a packet took, or asks for more as soon as a length field allows it
//! to know; a length above its limit is refused before the bytes arrive.

use crate::bytes::{Reader, put_s16, put_s32};
use crate::id::MessageId;
use crate::limits::{
    NAME_BYTES_MAX, STORED_BODY_BYTES_MAX, V1_BATCH_BYTES_MAX, V1_BATCH_ENTRIES_MAX,
    V1_CBOR_BYTES_MAX, V1_LOGIN_BYTES_MAX,
};

/// Longest key upload or sender key, bytes.
pub const KEYS_BYTES_MAX: usize = 8 * 1024;
/// Longest header map of an encrypted message, bytes.
pub const HEADER_BYTES_MAX: usize = 1024;
/// Longest ciphertext, bytes.
pub const CIPHERTEXT_BYTES_MAX: usize = 64 * 1024;
/// Longest message id a READ may name, bytes.
pub const READ_ID_BYTES_MAX: usize = 64;

/// One packet from a client. Names and bodies borrow from the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant names its layout")]
pub enum Packet<'a> {
    /// 0x01. The rest of what was read: `user` or `user:token`.
    Login { user: &'a [u8], token: Option<&'a [u8]> },
    /// 0x01 with more than 256 bytes of login data.
    LoginTooLong,
    /// 0x02.
    Send { target: &'a [u8], body: &'a [u8] },
    /// 0x03.
    Ack { id: MessageId },
    /// 0x04; iterate with [`BatchEntries`].
    Batch { target: &'a [u8], entries: BatchEntries<'a> },
    /// 0x05.
    GetStatus { user: &'a [u8] },
    /// 0x07.
    SendSeq { target: &'a [u8], seq: u64, body: &'a [u8] },
    /// 0x10: a message whose body is a CBOR map.
    Cbor { target: &'a [u8], map: &'a [u8] },
    /// 0x20.
    UploadPrekeys { map: &'a [u8] },
    /// 0x21.
    FetchPrekeys { user: &'a [u8] },
    /// 0x23.
    Encrypted { target: &'a [u8], header: &'a [u8], ciphertext: &'a [u8] },
    /// 0x30.
    GroupCreate { name: &'a [u8] },
    /// 0x32.
    GroupLeave { group: &'a [u8] },
    /// 0x33.
    GroupMessage { group: &'a [u8], header: &'a [u8], ciphertext: &'a [u8] },
    /// 0x35.
    GroupRoster { group: &'a [u8] },
    /// 0x36.
    SenderKey { group: &'a [u8], data: &'a [u8] },
    /// 0x70 (on) and 0x71 (off).
    Typing { target: &'a [u8], on: bool },
    /// 0x74.
    Read { id: &'a [u8], sender: &'a [u8] },
}

/// What the bytes at the start of a connection's buffer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded<'a> {
    /// A packet, and how many bytes it took.
    Packet(Packet<'a>, usize),
    /// Not all there yet.
    Incomplete,
    /// No packet, or one above its limits. The original drops everything it
    /// has read so far and keeps the connection.
    Bad,
}

/// The messages of a batch, in order. Stops at the first incomplete entry and
/// after 1000 of them, as the original does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchEntries<'a> {
    blob: &'a [u8],
    left: usize,
}

impl<'a> BatchEntries<'a> {
    /// Entries of `blob`, which is `s16(msg)` repeated.
    pub fn new(blob: &'a [u8]) -> BatchEntries<'a> {
        BatchEntries { blob, left: V1_BATCH_ENTRIES_MAX }
    }

    /// Bytes of the whole blob still to be read.
    pub fn bytes(&self) -> usize {
        self.blob.len()
    }
}

impl<'a> Iterator for BatchEntries<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.left == 0 {
            return None;
        }
        let mut reader = Reader::new(self.blob);
        let body = reader.s16()?;
        self.blob = &self.blob[reader.at()..];
        self.left -= 1;
        Some(body)
    }
}

/// Decodes the packet at the start of `bytes`, which are everything read and
/// not yet consumed on this connection.
pub fn decode(bytes: &[u8]) -> Decoded<'_> {
    let mut fields = Fields { reader: Reader::new(bytes) };
    match fields.packet() {
        Ok(packet) => Decoded::Packet(packet, fields.reader.at()),
        Err(Stop::Incomplete) => Decoded::Incomplete,
        Err(Stop::Bad) => Decoded::Bad,
    }
}

enum Stop {
    Incomplete,
    Bad,
}

struct Fields<'a> {
    reader: Reader<'a>,
}

impl<'a> Fields<'a> {
    fn packet(&mut self) -> Result<Packet<'a>, Stop> {
        Ok(match self.u8()? {
            0x01 => login(self.reader.rest()),
            0x02 => Packet::Send { target: self.name()?, body: self.s16(usize::MAX)? },
            0x03 => Packet::Ack { id: MessageId(self.reader.id().ok_or(Stop::Incomplete)?) },
            0x04 => Packet::Batch {
                target: self.name()?,
                entries: BatchEntries::new(self.s32(V1_BATCH_BYTES_MAX)?),
            },
            0x05 => Packet::GetStatus { user: self.name()? },
            0x07 => Packet::SendSeq {
                target: self.name()?,
                seq: self.reader.u64().ok_or(Stop::Incomplete)?,
                body: self.s16(usize::MAX)?,
            },
            0x10 => Packet::Cbor { target: self.name()?, map: self.s32(V1_CBOR_BYTES_MAX)? },
            0x20 => Packet::UploadPrekeys { map: self.s32(KEYS_BYTES_MAX)? },
            0x21 => Packet::FetchPrekeys { user: self.name()? },
            0x23 => Packet::Encrypted {
                target: self.name()?,
                header: self.s16(HEADER_BYTES_MAX)?,
                ciphertext: self.s32(CIPHERTEXT_BYTES_MAX)?,
            },
            0x30 => Packet::GroupCreate { name: self.name()? },
            0x32 => Packet::GroupLeave { group: self.name()? },
            0x33 => Packet::GroupMessage {
                group: self.name()?,
                header: self.s16(HEADER_BYTES_MAX)?,
                ciphertext: self.s32(CIPHERTEXT_BYTES_MAX)?,
            },
            0x35 => Packet::GroupRoster { group: self.name()? },
            0x36 => Packet::SenderKey { group: self.name()?, data: self.s32(KEYS_BYTES_MAX)? },
            0x70 => Packet::Typing { target: self.name()?, on: true },
            0x71 => Packet::Typing { target: self.name()?, on: false },
            0x74 => Packet::Read { id: self.s16(READ_ID_BYTES_MAX)?, sender: self.name()? },
            _ => return Err(Stop::Bad),
        })
    }

    fn name(&mut self) -> Result<&'a [u8], Stop> {
        self.s16(NAME_BYTES_MAX)
    }

    /// A string with a 16-bit length; refused by its length alone.
    fn s16(&mut self, bytes_max: usize) -> Result<&'a [u8], Stop> {
        let len = usize::from(self.reader.u16().ok_or(Stop::Incomplete)?);
        self.string(len, bytes_max)
    }

    fn s32(&mut self, bytes_max: usize) -> Result<&'a [u8], Stop> {
        let len = self.reader.u32().ok_or(Stop::Incomplete)? as usize;
        self.string(len, bytes_max)
    }

    fn string(&mut self, len: usize, bytes_max: usize) -> Result<&'a [u8], Stop> {
        if len > bytes_max {
            return Err(Stop::Bad);
        }
        self.reader.take(len).ok_or(Stop::Incomplete)
    }
}

fn login(data: &[u8]) -> Packet<'_> {
    if data.len() > V1_LOGIN_BYTES_MAX {
        return Packet::LoginTooLong;
    }
    match data.iter().position(|byte| *byte == b':') {
        Some(colon) => Packet::Login { user: &data[..colon], token: Some(&data[colon + 1..]) },
        None => Packet::Login { user: data, token: None },
    }
}

/// The answer to a good login.
pub const LOGIN_OK: &[u8] = b"\x03LOGIN_OK";
/// The answer to a login that was not accepted; the connection closes after it.
pub const AUTH_FAILED: &[u8] = b"AUTH_FAILED";
/// The answer to a login when there are too many; the connection closes after it.
pub const RATE_LIMITED: &[u8] = b"RATE_LIMITED";

/// Appends a delivery: `10 | s16(id) | s32(body)`.
pub fn put_deliver(out: &mut Vec<u8>, id: MessageId, body: &[u8]) {
    out.push(0x10);
    put_s16(out, &id.0);
    put_s32(out, body);
}

/// Bytes that [`put_deliver`] appends for a body of this length.
pub fn deliver_len(body_len: usize) -> usize {
    1 + 2 + 16 + 4 + body_len
}

/// Appends a status answer; `last_seen_s` is unix seconds, 0 while online or
/// never seen.
pub fn put_status(out: &mut Vec<u8>, user: &[u8], online: bool, last_seen_s: u64) {
    out.push(0x06);
    put_s16(out, user);
    out.push(u8::from(online));
    out.extend_from_slice(&last_seen_s.to_be_bytes());
}

/// Appends an error: `FE | s16(text)`.
pub fn put_error(out: &mut Vec<u8>, text: &str) {
    out.push(0xFE);
    put_s16(out, text.as_bytes());
}

/// Appends "rate limited": `FF | u32 milliseconds to wait`.
pub fn put_rate_limited(out: &mut Vec<u8>, wait_ms: u32) {
    out.extend_from_slice(&rate_limited(wait_ms));
}

/// The bytes of [`put_rate_limited`].
pub fn rate_limited(wait_ms: u32) -> [u8; 5] {
    let [a, b, c, d] = wait_ms.to_be_bytes();
    [0xFF, a, b, c, d]
}

/// Appends a key answer that carries no keys: `22 | s32({status, reason})`,
/// or with `reason` empty just the status. Keys and values are CBOR byte
/// strings, as existing clients expect.
pub fn put_prekeys_status(out: &mut Vec<u8>, status: &str, reason: &str) {
    let mut map = Vec::new();
    map.push(0xa0 | if reason.is_empty() { 1 } else { 2 });
    put_cbor_bytes(&mut map, b"status");
    put_cbor_bytes(&mut map, status.as_bytes());
    if !reason.is_empty() {
        put_cbor_bytes(&mut map, b"reason");
        put_cbor_bytes(&mut map, reason.as_bytes());
    }
    out.push(0x22);
    put_s32(out, &map);
}

/// Appends the answer to a key request before login: `22 | u32 0`.
pub fn put_prekeys_none(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0x22, 0, 0, 0, 0]);
}

fn put_cbor_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    let len = u8::try_from(bytes.len()).expect("short constant strings only");
    if len < 24 {
        out.push(0x40 | len);
    } else {
        out.extend_from_slice(&[0x58, len]);
    }
    out.extend_from_slice(bytes);
}

/// Appends the body of a delivered encrypted message:
/// `24 | s16(sender) | s16(header) | s32(ciphertext)`.
pub fn put_encrypted_body(out: &mut Vec<u8>, sender: &[u8], header: &[u8], ciphertext: &[u8]) {
    out.push(0x24);
    put_s16(out, sender);
    put_s16(out, header);
    put_s32(out, ciphertext);
}

/// Appends a packet as a client would send it. The server never calls this;
/// the client library, the load generator and the tests do.
pub fn put_packet(out: &mut Vec<u8>, packet: &Packet<'_>) {
    match *packet {
        Packet::Login { user, token } => {
            out.push(0x01);
            out.extend_from_slice(user);
            if let Some(token) = token {
                out.push(b':');
                out.extend_from_slice(token);
            }
        }
        Packet::LoginTooLong => {
            out.push(0x01);
            out.resize(out.len() + V1_LOGIN_BYTES_MAX + 1, b'x');
        }
        Packet::Send { target, body } => put_two(out, 0x02, target, body),
        Packet::Ack { id } => {
            out.push(0x03);
            out.extend_from_slice(&id.0);
        }
        Packet::Batch { target, entries } => {
            out.push(0x04);
            put_s16(out, target);
            put_s32(out, entries.blob);
        }
        Packet::GetStatus { user } => put_one(out, 0x05, user),
        Packet::SendSeq { target, seq, body } => {
            put_one(out, 0x07, target);
            out.extend_from_slice(&seq.to_be_bytes());
            put_s16(out, body);
        }
        Packet::Cbor { target, map } => {
            put_one(out, 0x10, target);
            put_s32(out, map);
        }
        Packet::UploadPrekeys { map } => {
            out.push(0x20);
            put_s32(out, map);
        }
        Packet::FetchPrekeys { user } => put_one(out, 0x21, user),
        Packet::Encrypted { target, header, ciphertext } => {
            put_two(out, 0x23, target, header);
            put_s32(out, ciphertext);
        }
        Packet::GroupCreate { name } => put_one(out, 0x30, name),
        Packet::GroupLeave { group } => put_one(out, 0x32, group),
        Packet::GroupMessage { group, header, ciphertext } => {
            put_two(out, 0x33, group, header);
            put_s32(out, ciphertext);
        }
        Packet::GroupRoster { group } => put_one(out, 0x35, group),
        Packet::SenderKey { group, data } => {
            put_one(out, 0x36, group);
            put_s32(out, data);
        }
        Packet::Typing { target, on } => put_one(out, if on { 0x70 } else { 0x71 }, target),
        Packet::Read { id, sender } => put_two(out, 0x74, id, sender),
    }
}

fn put_one(out: &mut Vec<u8>, opcode: u8, name: &[u8]) {
    out.push(opcode);
    put_s16(out, name);
}

fn put_two(out: &mut Vec<u8>, opcode: u8, first: &[u8], second: &[u8]) {
    put_one(out, opcode, first);
    put_s16(out, second);
}

/// One packet from the server, as a client reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant names its layout")]
pub enum Answer<'a> {
    /// `03 "LOGIN_OK"`.
    LoginOk,
    /// ASCII `AUTH_FAILED`.
    AuthFailed,
    /// ASCII `RATE_LIMITED`.
    LoginRateLimited,
    /// 0x10.
    Deliver { id: MessageId, body: &'a [u8] },
    /// 0x06.
    Status { user: &'a [u8], online: bool, last_seen_s: u64 },
    /// 0x22; empty when not logged in.
    Prekeys { map: &'a [u8] },
    /// 0xFE.
    Error { text: &'a [u8] },
    /// 0xFF.
    RateLimited { wait_ms: u32 },
}

/// Decodes one packet from the server: the packet and its length, `Ok(None)`
/// when more bytes are needed, `Err(())` when they are none of the server's.
#[allow(clippy::result_unit_err, reason = "there is one way to be wrong here")]
pub fn decode_answer(bytes: &[u8]) -> Result<Option<(Answer<'_>, usize)>, ()> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    let whole: Option<(&[u8], Answer<'_>)> = match first {
        0x03 => Some((LOGIN_OK, Answer::LoginOk)),
        b'A' => Some((AUTH_FAILED, Answer::AuthFailed)),
        b'R' => Some((RATE_LIMITED, Answer::LoginRateLimited)),
        _ => None,
    };
    if let Some((word, answer)) = whole {
        if bytes.len() < word.len() {
            return if word.starts_with(bytes) { Ok(None) } else { Err(()) };
        }
        return if bytes.starts_with(word) { Ok(Some((answer, word.len()))) } else { Err(()) };
    }
    let mut fields = Fields { reader: Reader::new(bytes) };
    match fields.answer() {
        Ok(answer) => Ok(Some((answer, fields.reader.at()))),
        Err(Stop::Incomplete) => Ok(None),
        Err(Stop::Bad) => Err(()),
    }
}

impl<'a> Fields<'a> {
    /// A client waits for no more than the largest message there is.
    fn answer(&mut self) -> Result<Answer<'a>, Stop> {
        Ok(match self.u8()? {
            0x06 => Answer::Status {
                user: self.s16(usize::MAX)?,
                online: self.u8()? == 1,
                last_seen_s: self.reader.u64().ok_or(Stop::Incomplete)?,
            },
            0x10 => {
                Answer::Deliver { id: self.sized_id()?, body: self.s32(STORED_BODY_BYTES_MAX)? }
            }
            0x22 => Answer::Prekeys { map: self.s32(STORED_BODY_BYTES_MAX)? },
            0xFE => Answer::Error { text: self.s16(usize::MAX)? },
            0xFF => Answer::RateLimited { wait_ms: self.reader.u32().ok_or(Stop::Incomplete)? },
            _ => return Err(Stop::Bad),
        })
    }

    fn u8(&mut self) -> Result<u8, Stop> {
        self.reader.u8().ok_or(Stop::Incomplete)
    }

    /// An id with its length before it, which is a constant of this server.
    fn sized_id(&mut self) -> Result<MessageId, Stop> {
        let len = self.reader.u16().ok_or(Stop::Incomplete)?;
        if len != 16 {
            return Err(Stop::Bad);
        }
        self.reader.id().map(MessageId).ok_or(Stop::Incomplete)
    }
}
