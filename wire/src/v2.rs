//! Protocol v2: `u32 length | u8 type | u8 flags | body`, big-endian.
//!
//! `length` counts everything after itself, so it is at least 2. Hot frames
//! have fixed fields before one opaque body that runs to the end of the frame.
//! Bytes after the last field of a frame without a body are ignored: a later
//! version may add optional fields there. docs/WIRE.md is the specification.

use crate::bytes::{Reader, put_s16};
use crate::id::{Class, MessageId};
use crate::limits::{
    BODY_BYTES_MAX, NAME_BYTES_MAX, TOKEN_BYTES_MAX, V2_FRAME_BYTES_MAX, V2_REPLY_BYTES_MAX,
};
use crate::refuse::Code;

pub use crate::sniff::V2_PREFACE as PREFACE;

/// The newest version of protocol 2 that this code speaks.
pub const VERSION: u8 = 1;

/// Bytes before a frame's body: length, type, flags.
pub const HEADER_BYTES: usize = 6;

/// Flags of SEND and DELIVER.
pub mod flag {
    /// SEND: the sender wants to be told when a device has the message.
    pub const WANTS_DELIVERED: u8 = 1 << 0;
    /// SEND: every number below this one was given up for good; the server
    /// takes this number as the next.
    pub const SKIP: u8 = 1 << 1;
}

/// Capability bits of HELLO and WELCOME. None is defined yet in version 1;
/// a server answers with the intersection.
pub const CAPABILITIES: u32 = 0;

/// One frame from a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant names its layout")]
pub enum Request<'a> {
    /// Type 0x01.
    Hello(Hello<'a>),
    /// Type 0x02.
    Send(Send<'a>),
    /// Type 0x03: this device has everything up to and including `seq`.
    Ack { seq: u64 },
    /// Type 0x04: from now on at most `window` deliveries may be ahead of the
    /// device's acknowledgements.
    Credit { window: u32 },
    /// Type 0x05; answered by PONG with the same number.
    Ping { nonce: u64 },
}

/// The login of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello<'a> {
    /// Lowest version of protocol 2 the client speaks.
    pub version_min: u8,
    /// Highest version of protocol 2 the client speaks.
    pub version_max: u8,
    /// Capabilities the client offers.
    pub capabilities: u32,
    /// The device, unique within its user; 0 is the device of protocol v1.
    pub device: u64,
    /// The highest inbox seq this device has stored; 0 for none.
    pub last_seq: u64,
    /// The delivery window, see [`Request::Credit`].
    pub credit: u32,
    /// The user's name.
    pub user: &'a [u8],
    /// The authentication token, empty where none is needed.
    pub token: &'a [u8],
}

/// One message on its way to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Send<'a> {
    /// 1, 2, 3 … per sending device and recipient.
    pub seq: u64,
    /// When the sender wants to hear *stored*.
    pub class: Class,
    /// [`flag`] bits; unknown ones are ignored.
    pub flags: u8,
    /// Seconds until an undelivered message may be dropped; 0 for the
    /// server's retention.
    pub expiry_s: u32,
    /// The recipient's name.
    pub to: &'a [u8],
    /// The body, opaque to the server.
    pub body: &'a [u8],
}

/// One frame from the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant names its layout")]
pub enum Reply<'a> {
    /// Type 0x81.
    Welcome(Welcome),
    /// Type 0x82: this number and all below it, for this recipient, are stored.
    Sent { seq: u64, id: MessageId, class: Class, to: &'a [u8] },
    /// Type 0x83: the server misses `expected` and what follows it.
    Gap { expected: u64, to: &'a [u8] },
    /// Type 0x84. Whether the number is consumed: [`Code::is_permanent`].
    Refused { seq: u64, code: u16, retry_after_ms: u32, to: &'a [u8] },
    /// Type 0x85.
    Deliver(Deliver<'a>),
    /// Type 0x86.
    Pong { nonce: u64 },
    /// Type 0x87: the connection ends; come back after so long.
    Goaway { code: u16, reconnect_after_ms: u32, text: &'a [u8] },
    /// Type 0x88: something was wrong with a frame.
    Error { code: u16, text: &'a [u8] },
    /// Type 0x89: a device of `to` has the message that was sent as `seq`.
    Delivered { seq: u64, id: MessageId, to: &'a [u8] },
}

/// The answer to a good HELLO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The chosen version.
    pub version: u8,
    /// Capabilities both sides have.
    pub capabilities: u32,
    /// The server's clock, unix milliseconds.
    pub server_time_ms: u64,
    /// Seq of the first entry that waits for this device; one above
    /// `last_seq` when none does.
    pub first_seq: u64,
    /// Highest seq given out in this inbox, 0 for none.
    pub last_seq: u64,
    /// Longest frame the server takes, length field excluded, bytes.
    pub frame_bytes_max: u32,
    /// Longest body of one message, bytes.
    pub body_bytes_max: u32,
    /// Largest delivery window the server grants.
    pub credit_max: u32,
}

/// One message on its way to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deliver<'a> {
    /// Place in the recipient's inbox, contiguous from 1.
    pub inbox_seq: u64,
    /// The message's id.
    pub id: MessageId,
    /// [`flag`] bits.
    pub flags: u8,
    /// The device it was sent from; 0 for protocol v1.
    pub from_device: u64,
    /// The number its sender gave it; 0 for none.
    pub send_seq: u64,
    /// When the server stored it, unix milliseconds.
    pub time_ms: u64,
    /// The sender's name.
    pub from: &'a [u8],
    /// The body.
    pub body: &'a [u8],
}

/// What is wrong with bytes that will never become a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// The length field is above the limit or below 2: the stream cannot be
    /// followed any further.
    Length,
    /// A frame of a known type with fields missing or out of bounds. It took
    /// this many bytes and can be skipped.
    Fields(usize),
    /// A frame of a type this version does not know, and how many bytes it
    /// took. It is answered with an error and skipped.
    UnknownType(u8, usize),
}

/// Decodes the request at the start of `bytes`: the frame and its length,
/// `Ok(None)` when more bytes are needed.
pub fn decode_request(bytes: &[u8]) -> Result<Option<(Request<'_>, usize)>, Wrong> {
    decode(bytes, V2_FRAME_BYTES_MAX, request)
}

/// Decodes the reply at the start of `bytes`, as a client reads it.
pub fn decode_reply(bytes: &[u8]) -> Result<Option<(Reply<'_>, usize)>, Wrong> {
    decode(bytes, V2_REPLY_BYTES_MAX, reply)
}

/// A frame's fields: `None` when its type is unknown, `Some(None)` when they
/// are malformed.
type Fields<T> = Option<Option<T>>;

fn decode<'a, T>(
    bytes: &'a [u8],
    len_max: usize,
    fields: fn(u8, u8, &mut Reader<'a>) -> Fields<T>,
) -> Result<Option<(T, usize)>, Wrong> {
    let Some(header) = bytes.first_chunk::<4>() else { return Ok(None) };
    let len = u32::from_be_bytes(*header) as usize;
    if !(2..=len_max).contains(&len) {
        return Err(Wrong::Length);
    }
    let end = 4 + len;
    let Some(frame) = bytes.get(4..end) else { return Ok(None) };
    let mut reader = Reader::new(&frame[2..]);
    match fields(frame[0], frame[1], &mut reader) {
        Some(Some(message)) => Ok(Some((message, end))),
        Some(None) => Err(Wrong::Fields(end)),
        None => Err(Wrong::UnknownType(frame[0], end)),
    }
}

fn request<'a>(kind: u8, flags: u8, reader: &mut Reader<'a>) -> Fields<Request<'a>> {
    Some(match kind {
        0x01 => hello(reader).map(Request::Hello),
        0x02 => send(flags, reader).map(Request::Send),
        0x03 => reader.u64().map(|seq| Request::Ack { seq }),
        0x04 => reader.u32().map(|window| Request::Credit { window }),
        0x05 => reader.u64().map(|nonce| Request::Ping { nonce }),
        _ => return None,
    })
}

fn hello<'a>(reader: &mut Reader<'a>) -> Option<Hello<'a>> {
    let hello = Hello {
        version_min: reader.u8()?,
        version_max: reader.u8()?,
        capabilities: reader.u32()?,
        device: reader.u64()?,
        last_seq: reader.u64()?,
        credit: reader.u32()?,
        user: reader.s16()?,
        token: reader.s16()?,
    };
    (hello.token.len() <= TOKEN_BYTES_MAX).then_some(hello)
}

/// Bounds of name and body are the shard's to refuse, with the send's number
/// in the answer; the frame limit bounds them here.
fn send<'a>(flags: u8, reader: &mut Reader<'a>) -> Option<Send<'a>> {
    let seq = reader.u64()?;
    let class = Class::from_u8(reader.u8()?)?;
    let expiry_s = reader.u32()?;
    let to = reader.s16()?;
    (seq > 0).then(|| Send { seq, class, flags, expiry_s, to, body: reader.rest() })
}

fn reply<'a>(kind: u8, flags: u8, reader: &mut Reader<'a>) -> Fields<Reply<'a>> {
    Some(match kind {
        0x81 => welcome(reader).map(Reply::Welcome),
        0x82 => sent(reader),
        0x83 => gap(reader),
        0x84 => refused(reader),
        0x85 => deliver(flags, reader).map(Reply::Deliver),
        0x86 => reader.u64().map(|nonce| Reply::Pong { nonce }),
        0x87 => goaway(reader),
        0x88 => error(reader),
        0x89 => delivered(reader),
        _ => return None,
    })
}

fn welcome(reader: &mut Reader<'_>) -> Option<Welcome> {
    Some(Welcome {
        version: reader.u8()?,
        capabilities: reader.u32()?,
        server_time_ms: reader.u64()?,
        first_seq: reader.u64()?,
        last_seq: reader.u64()?,
        frame_bytes_max: reader.u32()?,
        body_bytes_max: reader.u32()?,
        credit_max: reader.u32()?,
    })
}

fn sent<'a>(reader: &mut Reader<'a>) -> Option<Reply<'a>> {
    Some(Reply::Sent {
        seq: reader.u64()?,
        id: MessageId(reader.id()?),
        class: Class::from_u8(reader.u8()?)?,
        to: reader.s16()?,
    })
}

fn gap<'a>(reader: &mut Reader<'a>) -> Option<Reply<'a>> {
    Some(Reply::Gap { expected: reader.u64()?, to: reader.s16()? })
}

fn refused<'a>(reader: &mut Reader<'a>) -> Option<Reply<'a>> {
    Some(Reply::Refused {
        seq: reader.u64()?,
        code: reader.u16()?,
        retry_after_ms: reader.u32()?,
        to: reader.s16()?,
    })
}

fn deliver<'a>(flags: u8, reader: &mut Reader<'a>) -> Option<Deliver<'a>> {
    Some(Deliver {
        inbox_seq: reader.u64()?,
        id: MessageId(reader.id()?),
        flags,
        from_device: reader.u64()?,
        send_seq: reader.u64()?,
        time_ms: reader.u64()?,
        from: reader.s16()?,
        body: reader.rest(),
    })
}

fn goaway<'a>(reader: &mut Reader<'a>) -> Option<Reply<'a>> {
    Some(Reply::Goaway {
        code: reader.u16()?,
        reconnect_after_ms: reader.u32()?,
        text: reader.s16()?,
    })
}

fn error<'a>(reader: &mut Reader<'a>) -> Option<Reply<'a>> {
    Some(Reply::Error { code: reader.u16()?, text: reader.s16()? })
}

fn delivered<'a>(reader: &mut Reader<'a>) -> Option<Reply<'a>> {
    Some(Reply::Delivered { seq: reader.u64()?, id: MessageId(reader.id()?), to: reader.s16()? })
}

/// Appends a request as a client sends it.
///
/// # Panics
/// When a name or token is longer than 65,535 bytes.
pub fn put_request(out: &mut Vec<u8>, request: &Request<'_>) {
    match request {
        Request::Hello(hello) => frame(out, 0x01, 0, |out| {
            out.extend_from_slice(&[hello.version_min, hello.version_max]);
            out.extend_from_slice(&hello.capabilities.to_be_bytes());
            out.extend_from_slice(&hello.device.to_be_bytes());
            out.extend_from_slice(&hello.last_seq.to_be_bytes());
            out.extend_from_slice(&hello.credit.to_be_bytes());
            put_s16(out, hello.user);
            put_s16(out, hello.token);
        }),
        Request::Send(send) => frame(out, 0x02, send.flags, |out| {
            out.extend_from_slice(&send.seq.to_be_bytes());
            out.push(send.class as u8);
            out.extend_from_slice(&send.expiry_s.to_be_bytes());
            put_s16(out, send.to);
            out.extend_from_slice(send.body);
        }),
        Request::Ack { seq } => frame(out, 0x03, 0, |out| {
            out.extend_from_slice(&seq.to_be_bytes());
        }),
        Request::Credit { window } => frame(out, 0x04, 0, |out| {
            out.extend_from_slice(&window.to_be_bytes());
        }),
        Request::Ping { nonce } => frame(out, 0x05, 0, |out| {
            out.extend_from_slice(&nonce.to_be_bytes());
        }),
    }
}

/// Appends a reply.
///
/// # Panics
/// When a name or text is longer than 65,535 bytes.
pub fn put_reply(out: &mut Vec<u8>, reply: &Reply<'_>) {
    match reply {
        Reply::Welcome(welcome) => Head::new(0x81, 0)
            .put([welcome.version])
            .put(welcome.capabilities.to_be_bytes())
            .put(welcome.server_time_ms.to_be_bytes())
            .put(welcome.first_seq.to_be_bytes())
            .put(welcome.last_seq.to_be_bytes())
            .put(welcome.frame_bytes_max.to_be_bytes())
            .put(welcome.body_bytes_max.to_be_bytes())
            .put(welcome.credit_max.to_be_bytes())
            .append_to(out, &[], &[]),
        Reply::Sent { seq, id, class, to } => Head::new(0x82, 0)
            .put(seq.to_be_bytes())
            .put(id.0)
            .put([*class as u8])
            .put_len(to)
            .append_to(out, to, &[]),
        Reply::Gap { expected, to } => {
            Head::new(0x83, 0).put(expected.to_be_bytes()).put_len(to).append_to(out, to, &[])
        }
        Reply::Refused { seq, code, retry_after_ms, to } => Head::new(0x84, 0)
            .put(seq.to_be_bytes())
            .put(code.to_be_bytes())
            .put(retry_after_ms.to_be_bytes())
            .put_len(to)
            .append_to(out, to, &[]),
        Reply::Deliver(deliver) => put_deliver(out, deliver),
        Reply::Pong { nonce } => {
            Head::new(0x86, 0).put(nonce.to_be_bytes()).append_to(out, &[], &[])
        }
        Reply::Goaway { code, reconnect_after_ms, text } => Head::new(0x87, 0)
            .put(code.to_be_bytes())
            .put(reconnect_after_ms.to_be_bytes())
            .put_len(text)
            .append_to(out, text, &[]),
        Reply::Error { code, text } => {
            Head::new(0x88, 0).put(code.to_be_bytes()).put_len(text).append_to(out, text, &[])
        }
        Reply::Delivered { seq, id, to } => {
            Head::new(0x89, 0).put(seq.to_be_bytes()).put(id.0).put_len(to).append_to(out, to, &[])
        }
    }
}

/// Appends a delivery: what a server says most, without a look at what it says.
///
/// # Panics
/// When the name is longer than 65,535 bytes.
pub fn put_deliver(out: &mut Vec<u8>, deliver: &Deliver<'_>) {
    Head::new(0x85, deliver.flags)
        .put(deliver.inbox_seq.to_be_bytes())
        .put(deliver.id.0)
        .put(deliver.from_device.to_be_bytes())
        .put(deliver.send_seq.to_be_bytes())
        .put(deliver.time_ms.to_be_bytes())
        .put_len(deliver.from)
        .append_to(out, deliver.from, deliver.body);
}

/// The longest one is that of DELIVER.
const HEAD_BYTES_MAX: usize = 64;

/// A reply's header and fixed fields. They are put together in a place of known length and leave it
/// at once: a vector would look for room for each of them.
struct Head {
    bytes: [u8; HEAD_BYTES_MAX],
    len: usize,
}

impl Head {
    #[inline]
    fn new(kind: u8, flags: u8) -> Head {
        let mut bytes = [0; HEAD_BYTES_MAX];
        (bytes[4], bytes[5]) = (kind, flags);
        Head { bytes, len: HEADER_BYTES }
    }

    #[inline]
    fn put<const N: usize>(mut self, field: [u8; N]) -> Head {
        self.bytes[self.len..self.len + N].copy_from_slice(&field);
        self.len += N;
        self
    }

    /// How long the string is that comes first after the fixed fields.
    #[inline]
    fn put_len(self, string: &[u8]) -> Head {
        let len = u16::try_from(string.len()).expect("a 16-bit string is bounded by its caller");
        self.put(len.to_be_bytes())
    }

    /// Appends the frame, which ends with a string and a body. Always in place:
    /// elsewhere nobody would know how long the fields are.
    #[inline(always)]
    fn append_to(mut self, out: &mut Vec<u8>, string: &[u8], body: &[u8]) {
        let len = self.len - 4 + string.len() + body.len();
        let len = u32::try_from(len).expect("a frame is bounded by its fields");
        self.bytes[..4].copy_from_slice(&len.to_be_bytes());
        out.extend_from_slice(&self.bytes[..self.len]);
        out.extend_from_slice(string);
        out.extend_from_slice(body);
    }
}

/// Appends an ERROR with the code's own text.
pub fn put_error(out: &mut Vec<u8>, code: Code) {
    put_reply(out, &Reply::Error { code: code as u16, text: code.text().as_bytes() });
}

/// Appends a GOAWAY with the code's own text.
pub fn put_goaway(out: &mut Vec<u8>, code: Code, reconnect_after_ms: u32) {
    let text = code.text().as_bytes();
    put_reply(out, &Reply::Goaway { code: code as u16, reconnect_after_ms, text });
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0, 0, 0, 0, kind, flags]);
    body(out);
    let len = u32::try_from(out.len() - start - 4).expect("a frame is bounded by its fields");
    out[start..start + 4].copy_from_slice(&len.to_be_bytes());
}

/// Whether a v2 name is acceptable: 1 to 256 bytes, no `:`, no control bytes.
pub fn is_name(name: &[u8]) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        // Not `all`: without a way out in the middle several bytes are looked at together.
        && !name.iter().fold(false, |bad, byte| {
            bad | (*byte == b':') | (*byte < 0x20) | (*byte == 0x7f)
        })
}

/// Whether a body fits one message.
pub fn is_body(body: &[u8]) -> bool {
    body.len() <= BODY_BYTES_MAX
}
