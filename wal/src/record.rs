//! One record and its bytes.
//!
//! A record is a 16-byte header and a payload, little-endian, no alignment:
//!
//! ```text
//! 0    4    8     12    13     14         16
//! | len | crc | prev | kind | flags | partition | payload …
//! ```
//!
//! `len` is the whole record. `crc` is CRC32C over the log's salt, the record's
//! own lsn, and everything but `crc` itself; `prev` is the `crc` of the record
//! before it. So a record is valid in one log, at one place, after one history:
//! neither a client's bytes inside a body (it does not know the salt) nor a
//! stale block (another lsn, another history) can pass for one.
//!
//! This module never trusts a byte: [`decode`] and [`verify`] answer
//! [`Malformed`] and never panic, whatever they are given. The bytes are fixed
//! for ever by the golden tests below.

use std::fmt;

use wire::id::{Class, MessageId, UserKey};

use crate::{Lsn, checksum};

/// Bytes of a record's header.
pub const HEADER_BYTES: usize = 16;

/// A message as it stands in the log: everything an inbox needs to deliver it
/// and to recognise it when it is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// The recipient.
    pub key: UserKey,
    /// The recipient's name, at most 65,535 bytes.
    pub to: &'a [u8],
    /// Number in the recipient's inbox.
    pub inbox_seq: u64,
    /// The message's id.
    pub id: MessageId,
    /// The sender's name, at most 65,535 bytes.
    pub from: &'a [u8],
    /// The sender.
    pub from_key: UserKey,
    /// The sending device.
    pub device: u64,
    /// The device's number for this message to this recipient; 0: not numbered.
    pub send_seq: u64,
    /// When it was accepted, Unix milliseconds.
    pub time_ms: u64,
    /// When it may be forgotten, Unix milliseconds; 0: never.
    pub expires_ms: u64,
    /// The promise made to the sender.
    pub class: Class,
    /// Flags of the protocol, opaque here; stored in the header.
    pub flags: u8,
    /// The body.
    pub body: &'a [u8],
}

/// What the log can say. Borrowed: from the caller when appending, from the
/// log's own bytes when reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// A message entered an inbox.
    Message(Message<'a>),
    /// A device has its messages: all up to and including `seq`, or, `exact`,
    /// only that one.
    Ack {
        /// The inbox.
        key: UserKey,
        /// The device.
        device: u64,
        /// Inbox seq.
        seq: u64,
        /// Only this entry instead of all up to it.
        exact: bool,
    },
    /// A device registered for this user or, `gone`, was forgotten.
    Device {
        /// The user.
        key: UserKey,
        /// The user's name.
        name: &'a [u8],
        /// The device.
        device: u64,
        /// The last inbox seq the device has.
        cursor: u64,
        /// Forgotten instead of registered.
        gone: bool,
    },
    /// A user was last seen.
    Seen {
        /// The user.
        key: UserKey,
        /// The user's name.
        name: &'a [u8],
        /// Unix seconds.
        at_s: u64,
    },
    /// The inbox's numbering continues after `seq`: a device proved that the
    /// server forgot best-effort entries.
    Floor {
        /// The user.
        key: UserKey,
        /// The user's name.
        name: &'a [u8],
        /// Inbox seq.
        seq: u64,
    },
    /// A send number was used up by a permanent refusal.
    Consumed {
        /// The recipient the number counts for.
        key: UserKey,
        /// The recipient's name.
        name: &'a [u8],
        /// The sender.
        from_key: UserKey,
        /// The sending device.
        device: u64,
        /// The number used up.
        send_seq: u64,
    },
    /// A message that still waits was copied forward, so that the segment it
    /// stood in can be deleted. It is the same message in every field: whoever
    /// knows its inbox seq points at this copy from now on.
    Moved(Message<'a>),
    /// Inbox entries that waited for nobody any more, because they expired,
    /// were given up: their numbers lead to nothing from now on.
    Dropped {
        /// The inbox.
        key: UserKey,
        /// Inbox seq of the first entry.
        first: u64,
        /// Inbox seq of the last entry.
        last: u64,
    },
    /// A message that waits could not be read when its turn came. Its number
    /// leads to nothing from now on; it is kept where it is until it can be read
    /// again, or is given up.
    Aside {
        /// The inbox.
        key: UserKey,
        /// The inbox seq it had.
        seq: u64,
        /// Where its record stands.
        lsn: Lsn,
        /// How long that is, bytes.
        len: u32,
        /// Who has it already.
        had: Devices<'a>,
    },
    /// A message that had been set aside could be read: it waits again, in its
    /// inbox's last place, with all its fields but the number. With a number that
    /// is known it is a copy of the same, as [`Record::Moved`].
    Returned {
        /// The message, under its new number.
        message: Message<'a>,
        /// The number under which it was set aside.
        from: u64,
        /// Who has it already.
        had: Devices<'a>,
    },
}

impl<'a> Record<'a> {
    /// The message that stands here, in whichever way it came here.
    pub fn message(&self) -> Option<&Message<'a>> {
        match self {
            Record::Message(message)
            | Record::Moved(message)
            | Record::Returned { message, .. } => Some(message),
            _ => None,
        }
    }

    /// The message that stands here as a copy that somebody points at from now on:
    /// as long as it is here. `None` for what is no message.
    pub fn copied(&self) -> Option<Record<'a>> {
        match *self {
            Record::Message(message) | Record::Moved(message) => Some(Record::Moved(message)),
            Record::Returned { .. } => Some(*self),
            _ => None,
        }
    }
}

/// Devices of a user, by id, as they stand in a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Devices<'a>(&'a [[u8; 8]]);

impl<'a> Devices<'a> {
    /// Those with these ids, each little-endian; at most 255.
    pub fn new(ids: &'a [[u8; 8]]) -> Devices<'a> {
        assert!(ids.len() <= usize::from(u8::MAX), "a user has few devices");
        Devices(ids)
    }

    /// Their ids.
    pub fn iter(self) -> impl Iterator<Item = u64> + 'a {
        self.0.iter().copied().map(u64::from_le_bytes)
    }

    fn len(self) -> usize {
        8 * self.0.len()
    }
}

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The length in the header is impossible or not the length given.
    Length,
    /// The checksum does not fit the bytes, the place or the log.
    Checksum,
    /// A kind of record that this version does not know.
    Kind(u8),
    /// The payload does not have the shape of its kind.
    Payload,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Malformed::Length => f.write_str("its length is impossible"),
            Malformed::Checksum => f.write_str("its checksum is wrong"),
            Malformed::Kind(kind) => write!(f, "its kind {kind} is unknown to this version"),
            Malformed::Payload => f.write_str("its fields make no sense"),
        }
    }
}

impl std::error::Error for Malformed {}

/// How many bytes this record takes in the log.
pub fn encoded_len(record: &Record<'_>) -> usize {
    HEADER_BYTES
        + match record {
            Record::Message(m) | Record::Moved(m) => message_len(m),
            Record::Returned { message, had, .. } => {
                RETURNED_FIXED + had.len() + message_len(message)
            }
            Record::Ack { .. } => ACK_FIXED,
            Record::Device { name, .. } => DEVICE_FIXED + name.len(),
            Record::Seen { name, .. } => SEEN_FIXED + name.len(),
            Record::Floor { name, .. } => FLOOR_FIXED + name.len(),
            Record::Consumed { name, .. } => CONSUMED_FIXED + name.len(),
            Record::Dropped { .. } => DROPPED_FIXED,
            Record::Aside { had, .. } => ASIDE_FIXED + had.len(),
        }
}

fn message_len(m: &Message<'_>) -> usize {
    MESSAGE_FIXED + m.to.len() + m.from.len() + m.body.len()
}

/// Reads one record whose checksum has been verified before, or which never
/// left memory. `bytes` is exactly the record.
///
/// # Errors
/// [`Malformed`] when the bytes do not have the shape of a known record.
pub fn decode(bytes: &[u8]) -> Result<Record<'_>, Malformed> {
    let header = Header::read(bytes).ok_or(Malformed::Length)?;
    if header.len as usize != bytes.len() {
        return Err(Malformed::Length);
    }
    let mut take = Take(&bytes[HEADER_BYTES..]);
    let (key, record) = payload(&header, &mut take).ok_or(Malformed::Payload)??;
    if key.partition() != header.partition || !take.0.is_empty() {
        return Err(Malformed::Payload);
    }
    Ok(record)
}

/// Reads one record back from a file: checks it against its own stored `prev`,
/// the log's salt and the place it should stand at, then decodes it. `bytes` is
/// exactly the record.
///
/// # Errors
/// [`Malformed`] when it is not that record.
pub fn verify(bytes: &[u8], salt: u64, lsn: Lsn) -> Result<Record<'_>, Malformed> {
    let header = check(bytes, salt, lsn)?;
    if header.len as usize != bytes.len() {
        return Err(Malformed::Length);
    }
    decode(bytes)
}

/// The kind byte of a commit's first record, see [`crate::commit`].
pub(crate) const KIND_COMMIT: u8 = 1;
const KIND_MESSAGE: u8 = 2;
const KIND_ACK: u8 = 3;
const KIND_DEVICE: u8 = 4;
const KIND_SEEN: u8 = 5;
const KIND_FLOOR: u8 = 6;
const KIND_CONSUMED: u8 = 7;
const KIND_MOVED: u8 = 8;
const KIND_DROPPED: u8 = 9;
const KIND_ASIDE: u8 = 10;
const KIND_RETURNED: u8 = 11;
/// The last kind there is.
pub(crate) const KIND_LAST: u8 = KIND_RETURNED;

/// Header flag of an Ack that names one entry only.
const FLAG_EXACT: u8 = 1;
/// Header flag of a Device that is forgotten.
const FLAG_GONE: u8 = 1;

const MESSAGE_FIXED: usize = 16 + FIXED_AFTER_KEY;
/// Of those the ones that follow the key.
const FIXED_AFTER_KEY: usize = 2 * 16 + 5 * 8 + 8;
const ACK_FIXED: usize = 16 + 2 * 8;
const DEVICE_FIXED: usize = 16 + 2 * 8;
const SEEN_FIXED: usize = 16 + 8;
const FLOOR_FIXED: usize = 16 + 8;
const CONSUMED_FIXED: usize = 2 * 16 + 2 * 8;
const DROPPED_FIXED: usize = 16 + 2 * 8;
const ASIDE_FIXED: usize = 16 + 2 * 8 + 4 + 1;
/// Beside what every message has.
const RETURNED_FIXED: usize = 8 + 1;

/// A record's first 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) len: u32,
    pub(crate) crc: u32,
    pub(crate) prev: u32,
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) partition: u16,
}

impl Header {
    /// The header at the start of `bytes`, when they can hold one. Nothing is
    /// checked.
    pub(crate) fn read(bytes: &[u8]) -> Option<Header> {
        // Of a known length, so that the fields need no checks of their own.
        let mut take = Take(bytes.first_chunk::<HEADER_BYTES>()?);
        Some(Header {
            len: take.u32()?,
            crc: take.u32()?,
            prev: take.u32()?,
            kind: take.u8()?,
            flags: take.u8()?,
            partition: take.u16()?,
        })
    }

    /// Writes it to the front of `bytes`.
    ///
    /// # Panics
    /// When they cannot hold it.
    pub(crate) fn write(&self, bytes: &mut [u8]) {
        let bytes = bytes.first_chunk_mut::<HEADER_BYTES>().expect("room for a header");
        let mut put = Put::new(bytes);
        put.u32(self.len);
        put.u32(self.crc);
        put.u32(self.prev);
        put.u8(self.kind);
        put.u8(self.flags);
        put.u16(self.partition);
    }

    fn checksum(&self, salt: u64, lsn: Lsn, payload: &[u8]) -> u32 {
        let mut head = [0; 28];
        let mut put = Put::new(&mut head);
        put.u64(salt);
        put.u64(lsn);
        put.u32(self.prev);
        put.u8(self.kind);
        put.u8(self.flags);
        put.u16(self.partition);
        put.u32(self.len);
        checksum::append(checksum::append(0, &head), payload)
    }
}

/// Writes a record into exactly its bytes, with `crc` and `prev` still zero:
/// they are known only when its commit is sealed, see [`stamp`].
pub(crate) fn encode(record: &Record<'_>, bytes: &mut [u8]) {
    let (kind, flags, key) = identity(record);
    let len = u32::try_from(bytes.len()).expect("a record is far smaller than 4 GiB");
    Header { len, crc: 0, prev: 0, kind, flags, partition: key.partition() }.write(bytes);
    let mut put = Put::new(&mut bytes[HEADER_BYTES..]);
    put.u128(key.0);
    match record {
        Record::Message(m) | Record::Moved(m) => put_message(&mut put, m),
        &Record::Ack { device, seq, .. } => {
            put.u64(device);
            put.u64(seq);
        }
        &Record::Device { name, device, cursor, .. } => {
            put.u64(device);
            put.u64(cursor);
            put.bytes(name);
        }
        &Record::Seen { name, at_s, .. } => {
            put.u64(at_s);
            put.bytes(name);
        }
        &Record::Floor { name, seq, .. } => {
            put.u64(seq);
            put.bytes(name);
        }
        &Record::Consumed { name, from_key, device, send_seq, .. } => {
            put.u128(from_key.0);
            put.u64(device);
            put.u64(send_seq);
            put.bytes(name);
        }
        &Record::Dropped { first, last, .. } => {
            put.u64(first);
            put.u64(last);
        }
        &Record::Aside { seq, lsn, len, had, .. } => {
            put.u64(seq);
            put.u64(lsn);
            put.u32(len);
            put_devices(&mut put, had);
        }
        &Record::Returned { ref message, from, had } => {
            put.u64(from);
            put_devices(&mut put, had);
            put_message(&mut put, message);
        }
    }
    assert!(put.rest.is_empty(), "encoded_len and encode agree");
}

/// Chains the record in `bytes` to the one before and seals it with its
/// checksum, which is returned: the next record's `prev`.
pub(crate) fn stamp(bytes: &mut [u8], salt: u64, lsn: Lsn, prev: u32) -> u32 {
    let mut header = Header::read(bytes).expect("a record was encoded here");
    assert_eq!(header.len as usize, bytes.len(), "one whole record is stamped");
    header.prev = prev;
    header.crc = header.checksum(salt, lsn, &bytes[HEADER_BYTES..]);
    header.write(bytes);
    header.crc
}

/// Checks the record at the start of `bytes` against its own stored `prev`.
/// `bytes` may go on after it.
pub(crate) fn check(bytes: &[u8], salt: u64, lsn: Lsn) -> Result<Header, Malformed> {
    let header = Header::read(bytes).ok_or(Malformed::Length)?;
    let payload = bytes.get(HEADER_BYTES..header.len as usize).ok_or(Malformed::Length)?;
    if header.checksum(salt, lsn, payload) != header.crc {
        return Err(Malformed::Checksum);
    }
    Ok(header)
}

fn identity(record: &Record<'_>) -> (u8, u8, UserKey) {
    match record {
        Record::Message(m) => (KIND_MESSAGE, m.flags, m.key),
        &Record::Ack { key, exact, .. } => (KIND_ACK, if exact { FLAG_EXACT } else { 0 }, key),
        &Record::Device { key, gone, .. } => (KIND_DEVICE, if gone { FLAG_GONE } else { 0 }, key),
        &Record::Seen { key, .. } => (KIND_SEEN, 0, key),
        &Record::Floor { key, .. } => (KIND_FLOOR, 0, key),
        &Record::Consumed { key, .. } => (KIND_CONSUMED, 0, key),
        Record::Moved(m) => (KIND_MOVED, m.flags, m.key),
        &Record::Dropped { key, .. } => (KIND_DROPPED, 0, key),
        &Record::Aside { key, .. } => (KIND_ASIDE, 0, key),
        Record::Returned { message: m, .. } => (KIND_RETURNED, m.flags, m.key),
    }
}

fn put_devices(put: &mut Put<'_>, devices: Devices<'_>) {
    put.u8(u8::try_from(devices.0.len()).expect("looked at when they were made"));
    put.bytes(devices.0.as_flattened());
}

fn put_message(put: &mut Put<'_>, m: &Message<'_>) {
    let name_len = |name: &[u8]| u16::try_from(name.len()).expect("names are at most 65,535 bytes");
    let mut fixed = Put::new(put.array::<FIXED_AFTER_KEY>());
    fixed.bytes(&m.id.0);
    fixed.u128(m.from_key.0);
    fixed.u64(m.inbox_seq);
    fixed.u64(m.device);
    fixed.u64(m.send_seq);
    fixed.u64(m.time_ms);
    fixed.u64(m.expires_ms);
    fixed.u8(m.class as u8);
    fixed.bytes(&[0; 3]);
    fixed.u16(name_len(m.to));
    fixed.u16(name_len(m.from));
    put.bytes(m.to);
    put.bytes(m.from);
    put.bytes(m.body);
}

/// The record and its key; `None` when the payload ends too early.
fn payload<'a>(
    h: &Header,
    take: &mut Take<'a>,
) -> Option<Result<(UserKey, Record<'a>), Malformed>> {
    if !(KIND_MESSAGE..=KIND_LAST).contains(&h.kind) {
        return Some(Err(Malformed::Kind(h.kind)));
    }
    let key = UserKey(take.u128()?);
    if matches!(h.kind, KIND_MESSAGE | KIND_MOVED) {
        let message = take_message(h.flags, key, take)?;
        let is_moved = h.kind == KIND_MOVED;
        let record = if is_moved { Record::Moved(message) } else { Record::Message(message) };
        return Some(Ok((key, record)));
    }
    if h.kind == KIND_RETURNED {
        let (from, had) = (take.u64()?, take_devices(take)?);
        let message = take_message(h.flags, key, take)?;
        return Some(Ok((key, Record::Returned { message, from, had })));
    }
    let flag = match h.flags {
        0 => false,
        1 if matches!(h.kind, KIND_ACK | KIND_DEVICE) => true,
        _ => return None,
    };
    let record = match h.kind {
        KIND_ACK => Record::Ack { key, device: take.u64()?, seq: take.u64()?, exact: flag },
        KIND_DEVICE => {
            let (device, cursor) = (take.u64()?, take.u64()?);
            Record::Device { key, name: take.rest(), device, cursor, gone: flag }
        }
        KIND_SEEN => {
            let at_s = take.u64()?;
            Record::Seen { key, name: take.rest(), at_s }
        }
        KIND_FLOOR => {
            let seq = take.u64()?;
            Record::Floor { key, name: take.rest(), seq }
        }
        KIND_DROPPED => {
            let (first, last) = (take.u64()?, take.u64()?);
            if first > last {
                return None;
            }
            Record::Dropped { key, first, last }
        }
        KIND_ASIDE => {
            let (seq, lsn, len) = (take.u64()?, take.u64()?, take.u32()?);
            Record::Aside { key, seq, lsn, len, had: take_devices(take)? }
        }
        _ => {
            let (from_key, device, send_seq) = (UserKey(take.u128()?), take.u64()?, take.u64()?);
            Record::Consumed { key, name: take.rest(), from_key, device, send_seq }
        }
    };
    Some(Ok((key, record)))
}

fn take_devices<'a>(take: &mut Take<'a>) -> Option<Devices<'a>> {
    let count = usize::from(take.u8()?);
    Some(Devices(take.bytes(8 * count)?.as_chunks().0))
}

fn take_message<'a>(flags: u8, key: UserKey, take: &mut Take<'a>) -> Option<Message<'a>> {
    let fixed = take.array::<FIXED_AFTER_KEY>()?;
    let mut fixed = Take(&fixed);
    let id = MessageId(fixed.array()?);
    let from_key = UserKey(fixed.u128()?);
    let (inbox_seq, device, send_seq) = (fixed.u64()?, fixed.u64()?, fixed.u64()?);
    let (time_ms, expires_ms) = (fixed.u64()?, fixed.u64()?);
    let class = Class::from_u8(fixed.u8()?)?;
    if fixed.array()? != [0; 3] {
        return None;
    }
    let (to_len, from_len) = (fixed.u16()?, fixed.u16()?);
    let to = take.bytes(to_len.into())?;
    let from = take.bytes(from_len.into())?;
    let body = take.rest();
    #[rustfmt::skip]
    let message = Message {
        key, to, inbox_seq, id, from, from_key, device, send_seq, time_ms, expires_ms, class, flags,
        body,
    };
    Some(message)
}

/// Reads fields off the front of a slice; `None` once they run out.
pub(crate) struct Take<'a>(pub(crate) &'a [u8]);

impl<'a> Take<'a> {
    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn u128(&mut self) -> Option<u128> {
        self.array().map(u128::from_le_bytes)
    }
}

/// Writes fields to the front of a slice that was measured for them.
pub(crate) struct Put<'a> {
    rest: &'a mut [u8],
}

impl<'a> Put<'a> {
    pub(crate) fn new(bytes: &'a mut [u8]) -> Put<'a> {
        Put { rest: bytes }
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        let (head, rest) = std::mem::take(&mut self.rest).split_at_mut(bytes.len());
        head.copy_from_slice(bytes);
        self.rest = rest;
    }

    /// The next `N` bytes, to write them in one go.
    fn array<const N: usize>(&mut self) -> &mut [u8; N] {
        let (head, rest) = std::mem::take(&mut self.rest).split_at_mut(N);
        self.rest = rest;
        head.first_chunk_mut().expect("split there")
    }

    fn u8(&mut self, value: u8) {
        self.bytes(&[value]);
    }

    pub(crate) fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    fn u128(&mut self, value: u128) {
        self.bytes(&value.to_le_bytes());
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    const SALT: u64 = 0x0123_4567_89ab_cdef;

    /// A record with every field its own value, for the tests of this crate.
    pub(crate) fn message(body: &[u8]) -> Message<'_> {
        Message {
            key: UserKey(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
            to: b"bob",
            inbox_seq: 7,
            id: MessageId::new(1_700_000_000_000, 3, 1, 2),
            from: b"alice",
            from_key: UserKey(0xf1f2_f3f4_f5f6_f7f8_f9fa_fbfc_fdfe_ff00),
            device: 0x1111_2222_3333_4444,
            send_seq: 9,
            time_ms: 1_700_000_000_001,
            expires_ms: 1_702_592_000_001,
            class: Class::Guaranteed,
            flags: 5,
            body,
        }
    }

    fn bytes(record: &Record<'_>, lsn: Lsn, prev: u32) -> Vec<u8> {
        let mut bytes = vec![0; encoded_len(record)];
        encode(record, &mut bytes);
        stamp(&mut bytes, SALT, lsn, prev);
        bytes
    }

    #[test]
    fn golden_record() {
        let record = Record::Message(message(b"hello"));
        let hex: String =
            bytes(&record, 4144, 0xdead_beef).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "7d000000988812a8efbeadde02050807100f0e0d0c0b0a090807060504030201018bcfe568007000\
             800300010002000000fffefdfcfbfaf9f8f7f6f5f4f3f2f107000000000000004444333322221111\
             09000000000000000168e5cf8b0100000130646a8c0100000100000003000500626f62616c696365\
             68656c6c6f"
        );
    }

    /// What came with format 2.
    #[test]
    fn golden_moved_and_dropped() {
        let check = |record: Record<'_>, expected: &str| {
            let hex: String =
                bytes(&record, 4144, 0xdead_beef).iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(hex, expected);
        };
        check(
            Record::Moved(message(b"hello")),
            "7d000000932d1b36efbeadde08050807100f0e0d0c0b0a090807060504030201018bcfe568007000\
             800300010002000000fffefdfcfbfaf9f8f7f6f5f4f3f2f107000000000000004444333322221111\
             09000000000000000168e5cf8b0100000130646a8c0100000100000003000500626f62616c696365\
             68656c6c6f",
        );
        let key = message(b"").key;
        check(
            Record::Dropped { key, first: 7, last: 9 },
            "30000000678d9578efbeadde09000807100f0e0d0c0b0a0908070605040302010700000000000000\
             0900000000000000",
        );
    }

    /// What came with format 3.
    #[test]
    fn golden_aside_and_returned() {
        let check = |record: Record<'_>, expected: &str| {
            let hex: String =
                bytes(&record, 4144, 0xdead_beef).iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(hex, expected);
        };
        let had = [7u64.to_le_bytes(), 0u64.to_le_bytes()];
        let had = Devices::new(&had);
        assert_eq!(had.iter().collect::<Vec<u64>>(), [7, 0]);
        let key = message(b"").key;
        check(
            Record::Aside { key, seq: 7, lsn: 4096, len: 125, had },
            "4500000002ed5873efbeadde0a000807100f0e0d0c0b0a0908070605040302010700000000000000\
             00100000000000007d0000000207000000000000000000000000000000",
        );
        check(
            Record::Returned { message: message(b"hello"), from: 3, had },
            "96000000393abfb0efbeadde0b050807100f0e0d0c0b0a0908070605040302010300000000000000\
             0207000000000000000000000000000000018bcfe568007000800300010002000000fffefdfcfbfa\
             f9f8f7f6f5f4f3f2f10700000000000000444433332222111109000000000000000168e5cf8b0100\
             000130646a8c0100000100000003000500626f62616c69636568656c6c6f",
        );
    }

    #[test]
    fn a_range_that_ends_before_it_begins_is_malformed() {
        let key = message(b"").key;
        let bytes = bytes(&Record::Dropped { key, first: 9, last: 7 }, 0, 0);
        assert_eq!(decode(&bytes), Err(Malformed::Payload));
    }

    #[test]
    fn a_record_is_valid_in_one_log_at_one_place() {
        let record = Record::Message(message(b"hello"));
        let good = bytes(&record, 4144, 1);
        assert_eq!(verify(&good, SALT, 4144), Ok(record));
        assert_eq!(verify(&good, SALT, 4145), Err(Malformed::Checksum), "another place");
        assert_eq!(verify(&good, SALT + 1, 4144), Err(Malformed::Checksum), "another log");
        assert_eq!(verify(&good[..good.len() - 1], SALT, 4144), Err(Malformed::Length));
    }

    #[test]
    fn unknown_kinds_and_shapes_are_malformed() {
        let check = |edit: fn(&mut Vec<u8>), expected: Malformed| {
            let mut bytes = bytes(&Record::Message(message(b"hello")), 0, 0);
            edit(&mut bytes);
            assert_eq!(decode(&bytes), Err(expected));
        };
        check(|b| b[12] = 0, Malformed::Kind(0));
        check(|b| b[12] = KIND_COMMIT, Malformed::Kind(KIND_COMMIT));
        check(|b| b[12] = 99, Malformed::Kind(99));
        check(|b| b[12] = KIND_SEEN, Malformed::Payload); // its flags are not 0
        check(|b| b[14] ^= 1, Malformed::Payload); // not the key's partition
        check(|b| b[104] = 2, Malformed::Payload); // no such class
        check(|b| b[105] = 1, Malformed::Payload); // reserved
        check(|b| b[109] = 1, Malformed::Payload); // name beyond the record
        check(|b| b[0] += 1, Malformed::Length);
        check(|b| b.truncate(15), Malformed::Length);
        // More devices than there are bytes for.
        check(|b| (b[12], b[40]) = (KIND_RETURNED, 255), Malformed::Payload);
    }

    /// An owned record, so that proptest can make and shrink it.
    #[derive(Clone, Debug)]
    pub(crate) struct Owned {
        kind: u8,
        keys: (u128, u128),
        numbers: [u64; 5],
        names: (Vec<u8>, Vec<u8>),
        flags: u8,
        class: bool,
        body: Vec<u8>,
        len: u32,
        had: Vec<[u8; 8]>,
    }

    impl Owned {
        fn had(&self) -> Devices<'_> {
            Devices::new(&self.had)
        }

        pub(crate) fn record(&self) -> Record<'_> {
            let (key, from_key) = (UserKey(self.keys.0), UserKey(self.keys.1));
            let [device, seq, send_seq, time_ms, expires_ms] = self.numbers;
            let name = &self.names.0[..];
            match self.kind {
                0 | 6 | 8 => {
                    let message = Message {
                        key,
                        to: name,
                        inbox_seq: seq,
                        id: MessageId((self.keys.0 ^ self.keys.1).to_be_bytes()),
                        from: &self.names.1,
                        from_key,
                        device,
                        send_seq,
                        time_ms,
                        expires_ms,
                        class: if self.class { Class::Guaranteed } else { Class::BestEffort },
                        flags: self.flags,
                        body: &self.body,
                    };
                    match self.kind {
                        0 => Record::Message(message),
                        6 => Record::Moved(message),
                        _ => Record::Returned { message, from: send_seq, had: self.had() },
                    }
                }
                1 => Record::Ack { key, device, seq, exact: self.class },
                2 => Record::Device { key, name, device, cursor: seq, gone: self.class },
                3 => Record::Seen { key, name, at_s: time_ms },
                4 => Record::Floor { key, name, seq },
                5 => Record::Consumed { key, name, from_key, device, send_seq },
                7 => Record::Aside { key, seq, lsn: time_ms, len: self.len, had: self.had() },
                _ => Record::Dropped { key, first: seq.min(send_seq), last: seq.max(send_seq) },
            }
        }
    }

    /// Records of every kind with bodies up to `body_max` bytes.
    pub(crate) fn any_record(body_max: usize) -> impl Strategy<Value = Owned> {
        let name = || prop::collection::vec(any::<u8>(), 0..20);
        (
            0..10u8,
            any::<(u128, u128)>(),
            any::<[u64; 5]>(),
            (name(), name()),
            any::<u8>(),
            any::<bool>(),
            prop::collection::vec(any::<u8>(), 0..=body_max),
            (any::<u32>(), prop::collection::vec(any::<[u8; 8]>(), 0..4)),
        )
            .prop_map(|(kind, keys, numbers, names, flags, class, body, (len, had))| {
                Owned { kind, keys, numbers, names, flags, class, body, len, had }
            })
    }

    proptest! {
        #[test]
        fn round_trip(owned in any_record(300), lsn: u64, prev: u32) {
            let record = owned.record();
            let bytes = bytes(&record, lsn, prev);
            prop_assert_eq!(verify(&bytes, SALT, lsn), Ok(record));
        }

        #[test]
        fn truncation_and_bit_flips_are_noticed(owned in any_record(60), lsn: u64, prev: u32) {
            let good = bytes(&owned.record(), lsn, prev);
            for len in 0..good.len() {
                prop_assert!(verify(&good[..len], SALT, lsn).is_err());
                prop_assert!(decode(&good[..len]).is_err());
            }
            let mut bad = good.clone();
            for bit in 0..good.len() * 8 {
                bad[bit / 8] ^= 1 << (bit % 8);
                prop_assert!(verify(&bad, SALT, lsn).is_err(), "bit {}", bit);
                let _ = decode(&bad);
                bad[bit / 8] ^= 1 << (bit % 8);
            }
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), lsn: u64) {
            let _ = decode(&bytes);
            prop_assert!(verify(&bytes, SALT, lsn).is_err());
            prop_assert!(crate::commit::Commit::read(&bytes, SALT, lsn).is_err());
        }
    }
}
