//! A snapshot's bytes: frames with a checksum chained through the whole file.
//!
//! ```text
//! 0    4    8     9
//! | len | crc | kind | payload …
//! ```
//!
//! `len` is the whole frame. `crc` is CRC32C over the log's salt, the `crc` of
//! the frame before, `kind`, `len` and the payload. So a file is valid for one
//! log and only as it was written: no frame can be missing, repeated or come
//! from an older file. Integers are little-endian.
//!
//! The first frame says where the replay begins, the last one how far the log
//! must be durable for this snapshot to count. What stands between them belongs
//! to the shard. A file without its last frame is not a snapshot.
//!
//! [`Reader`] never trusts a byte and never panics, whatever it is given. The
//! golden test fixes the bytes for ever.

use std::fmt;

use wire::id::ShardId;

use crate::log::LogStart;
use crate::record::{Put, Take};
use crate::{FORMAT, Lsn};

const MAGIC: [u8; 8] = *b"irisSNP\n";

/// The first format with snapshots.
const FORMAT_FIRST: u32 = 2;

/// Bytes of a frame before its payload.
pub const FRAME_BYTES: usize = 9;

/// The longest frame, bytes: what a reader must be able to hold.
pub const FRAME_BYTES_MAX: usize = 1 << 20;

/// The longest payload, bytes.
pub const PAYLOAD_BYTES_MAX: usize = FRAME_BYTES_MAX - FRAME_BYTES;

const KIND_START: u8 = 0;
const KIND_STATE: u8 = 1;
const KIND_SPACE: u8 = 2;
const KIND_END: u8 = 3;

const START_BYTES: usize = 8 + 4 + 2 + 2 + 8 + 8 + 4 + 4 + 8 + 8;
const END_BYTES: usize = 16;

/// What the payload of a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A piece of the shard's state.
    State,
    /// The table of [`crate::clean::Space`].
    Space,
}

/// Writes a snapshot, frame by frame, to the end of a buffer of the caller's.
#[derive(Debug)]
pub struct Writer {
    salt: u64,
    prev_crc: u32,
    /// Frames written.
    frames: u64,
}

impl Writer {
    /// Begins a snapshot of this shard that a replay from `start` completes.
    pub fn new(shard: ShardId, start: &LogStart, out: &mut Vec<u8>) -> Writer {
        let mut writer = Writer { salt: start.salt, prev_crc: 0, frames: 0 };
        let mut payload = [0; START_BYTES];
        let mut put = Put::new(&mut payload);
        put.bytes(&MAGIC);
        put.u32(FORMAT);
        put.u16(shard);
        put.u16(0);
        put.u64(start.salt);
        put.u64(start.lsn);
        put.u32(start.prev_crc);
        put.u32(0);
        put.u64(start.commit_seq);
        put.u64(start.hlc_ms);
        writer.put(KIND_START, &payload, out);
        writer
    }

    /// Adds a frame.
    ///
    /// # Panics
    /// When the payload is longer than [`PAYLOAD_BYTES_MAX`].
    pub fn frame(&mut self, kind: Kind, payload: &[u8], out: &mut Vec<u8>) {
        let kind = match kind {
            Kind::State => KIND_STATE,
            Kind::Space => KIND_SPACE,
        };
        self.put(kind, payload, out);
    }

    /// Adds the last frame: the state was taken while the log's end moved up to
    /// `end`.
    pub fn end(mut self, end: Lsn, out: &mut Vec<u8>) {
        let mut payload = [0; END_BYTES];
        let mut put = Put::new(&mut payload);
        put.u64(end);
        put.u64(self.frames + 1);
        self.put(KIND_END, &payload, out);
    }

    fn put(&mut self, kind: u8, payload: &[u8], out: &mut Vec<u8>) {
        assert!(payload.len() <= PAYLOAD_BYTES_MAX, "a reader can hold every frame");
        let len = (FRAME_BYTES + payload.len()) as u32;
        let crc = checksum(self.salt, self.prev_crc, kind, len, payload);
        out.reserve(len as usize);
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&crc.to_le_bytes());
        out.push(kind);
        out.extend_from_slice(payload);
        self.prev_crc = crc;
        self.frames += 1;
    }
}

fn checksum(salt: u64, prev: u32, kind: u8, len: u32, payload: &[u8]) -> u32 {
    let mut head = [0; 17];
    let mut put = Put::new(&mut head);
    put.u64(salt);
    put.u32(prev);
    put.u32(len);
    put.bytes(&[kind]);
    crc32c::crc32c_append(crc32c::crc32c(&head), payload)
}

/// What one frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// The first frame: where the replay begins.
    Start(LogStart),
    /// A piece of the shard's state.
    State(&'a [u8]),
    /// The table of [`crate::clean::Space`].
    Space(&'a [u8]),
    /// The last frame: how far the log must be durable.
    End(Lsn),
}

/// Why a file is not a whole snapshot, and at which offset that shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Bytes from the file's start.
    pub offset: u64,
    /// What is wrong there.
    pub what: Flaw,
}

/// What is wrong with a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// A frame's length is impossible.
    Length,
    /// A frame's checksum does not fit: its bytes, its place or the log differ.
    Checksum,
    /// It does not begin as a snapshot does.
    NotASnapshot,
    /// Another format than this version reads.
    OtherFormat(u32),
    /// A snapshot of another shard.
    OtherShard(ShardId),
    /// A frame that cannot stand there, or that this version does not know.
    Order,
    /// It ends without its last frame.
    Cut,
    /// It goes on after its last frame.
    Trailing,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Flaw::Length => f.write_str("the length of a frame is impossible"),
            Flaw::Checksum => f.write_str("the checksum of a frame is wrong"),
            Flaw::NotASnapshot => f.write_str("it does not begin as a snapshot does"),
            Flaw::OtherFormat(n) => write!(
                f,
                "its format is {n}, and {FORMAT_FIRST} to {FORMAT} are known to this version"
            ),
            Flaw::OtherShard(shard) => write!(f, "it is a snapshot of shard {shard}"),
            Flaw::Order => f.write_str("a frame stands where it cannot"),
            Flaw::Cut => f.write_str("it ends before it is complete"),
            Flaw::Trailing => f.write_str("it goes on after its end"),
        }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at file offset {}", self.what, self.offset)
    }
}

impl std::error::Error for Broken {}

/// Reads a snapshot from bytes that come in pieces.
#[derive(Debug)]
pub struct Reader {
    salt: u64,
    shard: ShardId,
    prev_crc: u32,
    frames: u64,
    /// Where the next frame begins.
    offset: u64,
    end: Option<Lsn>,
}

impl Reader {
    /// A reader for a snapshot of this shard, whose log has this salt.
    pub fn new(salt: u64, shard: ShardId) -> Reader {
        Reader { salt, shard, prev_crc: 0, frames: 0, offset: 0, end: None }
    }

    /// Reads the frame that `bytes` begins with: how long it is and what it
    /// says, or `None` when more bytes are needed, [`FRAME_BYTES_MAX`] at most.
    /// The next call is given what follows.
    ///
    /// # Errors
    /// [`Broken`]; nothing after it can be read.
    pub fn frame<'a>(&mut self, bytes: &'a [u8]) -> Result<Option<(usize, Part<'a>)>, Broken> {
        let mut take = Take(bytes);
        let Some(len) = take.u32() else { return Ok(None) };
        if self.end.is_some() {
            return Err(self.broken(Flaw::Trailing));
        }
        if !(FRAME_BYTES..=FRAME_BYTES_MAX).contains(&(len as usize)) {
            return Err(self.broken(Flaw::Length));
        }
        let Some(frame) = bytes.get(..len as usize) else { return Ok(None) };
        let crc = take.u32().expect("a frame is longer than that");
        let (kind, payload) = (frame[FRAME_BYTES - 1], &frame[FRAME_BYTES..]);
        if crc != checksum(self.salt, self.prev_crc, kind, len, payload) {
            let is_one = self.frames > 0 || payload.starts_with(&MAGIC);
            return Err(self.broken(if is_one { Flaw::Checksum } else { Flaw::NotASnapshot }));
        }
        let part = self.part(kind, payload).map_err(|what| self.broken(what))?;
        self.prev_crc = crc;
        self.frames += 1;
        self.offset += u64::from(len);
        if let Part::End(end) = part {
            self.end = Some(end);
        }
        Ok(Some((len as usize, part)))
    }

    /// All bytes have been read but `rest` of them, for which [`Reader::frame`]
    /// answered `None`. Returns what the last frame says.
    ///
    /// # Errors
    /// [`Broken`] when it is not the end of a snapshot.
    pub fn finish(self, rest: usize) -> Result<Lsn, Broken> {
        match self.end {
            Some(end) if rest == 0 => Ok(end),
            Some(_) => Err(self.broken(Flaw::Trailing)),
            None => Err(self.broken(Flaw::Cut)),
        }
    }

    /// Where the next frame begins, bytes from the file's start.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    fn broken(&self, what: Flaw) -> Broken {
        Broken { offset: self.offset, what }
    }

    fn part<'a>(&self, kind: u8, payload: &'a [u8]) -> Result<Part<'a>, Flaw> {
        match (kind, self.frames) {
            (KIND_START, 0) => self.start(payload).map(Part::Start),
            (_, 0) => Err(Flaw::NotASnapshot),
            (KIND_STATE, _) => Ok(Part::State(payload)),
            (KIND_SPACE, _) => Ok(Part::Space(payload)),
            (KIND_END, frames) => end(payload, frames + 1).map(Part::End).ok_or(Flaw::Order),
            _ => Err(Flaw::Order),
        }
    }

    fn start(&self, payload: &[u8]) -> Result<LogStart, Flaw> {
        let mut take = Take(payload);
        if take.array() != Some(MAGIC) {
            return Err(Flaw::NotASnapshot);
        }
        let format = take.u32().ok_or(Flaw::Order)?;
        if !(FORMAT_FIRST..=FORMAT).contains(&format) {
            return Err(Flaw::OtherFormat(format));
        }
        let (shard, start) = start_fields(&mut take).ok_or(Flaw::Order)?;
        if !take.0.is_empty() || start.salt != self.salt {
            return Err(Flaw::Order);
        }
        if shard != self.shard {
            return Err(Flaw::OtherShard(shard));
        }
        Ok(start)
    }
}

fn start_fields(take: &mut Take<'_>) -> Option<(ShardId, LogStart)> {
    let shard = take.u16()?;
    take.u16()?;
    let (salt, lsn) = (take.u64()?, take.u64()?);
    let prev_crc = take.u32()?;
    take.u32()?;
    let (commit_seq, hlc_ms) = (take.u64()?, take.u64()?);
    let is_possible = lsn.is_multiple_of(crate::BLOCK_LSN);
    is_possible.then_some((shard, LogStart { salt, lsn, prev_crc, commit_seq, hlc_ms }))
}

fn end(payload: &[u8], frames: u64) -> Option<Lsn> {
    let mut take = Take(payload);
    let end = take.u64()?;
    (take.u64()? == frames && take.0.is_empty()).then_some(end)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    const SALT: u64 = 0x0123_4567_89ab_cdef;
    const SHARD: ShardId = 3;

    fn start() -> LogStart {
        LogStart { salt: SALT, lsn: 8192, prev_crc: 0xdead_beef, commit_seq: 2, hlc_ms: 42 }
    }

    /// Makes a whole snapshot say that it has this format.
    pub(crate) fn put_format(bytes: &mut [u8], salt: u64, format: u32) {
        let len = u32::from_le_bytes(bytes[..4].try_into().unwrap());
        let at = FRAME_BYTES + MAGIC.len();
        bytes[at..at + 4].copy_from_slice(&format.to_le_bytes());
        let crc = checksum(salt, 0, KIND_START, len, &bytes[FRAME_BYTES..len as usize]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    }

    /// A snapshot with these payloads.
    fn file(payloads: &[(bool, Vec<u8>)], end: Lsn) -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = Writer::new(SHARD, &start(), &mut out);
        for (is_state, payload) in payloads {
            let kind = if *is_state { Kind::State } else { Kind::Space };
            writer.frame(kind, payload, &mut out);
        }
        writer.end(end, &mut out);
        out
    }

    /// Reads a file that comes in pieces of these lengths, over and over.
    fn read(bytes: &[u8], pieces: &[usize]) -> Result<(Vec<String>, Lsn), Broken> {
        let mut reader = Reader::new(SALT, SHARD);
        let (mut parts, mut have, mut used) = (Vec::new(), 0, 0);
        let mut pieces = pieces.iter().cycle();
        loop {
            match reader.frame(&bytes[used..have])? {
                Some((len, part)) => {
                    used += len;
                    assert_eq!(reader.offset(), used as u64);
                    parts.push(format!("{part:?}"));
                }
                None if have == bytes.len() => break,
                None => have = bytes.len().min(have + pieces.next().unwrap()),
            }
        }
        Ok((parts, reader.finish(bytes.len() - used)?))
    }

    fn flaw(bytes: &[u8]) -> Option<Flaw> {
        read(bytes, &[bytes.len().max(1)]).err().map(|broken| broken.what)
    }

    #[test]
    fn golden_snapshot() {
        let bytes = file(&[(true, b"state".to_vec()), (false, b"".to_vec())], 12345);
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "41000000edf287250069726973534e500a0500000003000000efcdab896745230100200000000000\
             00efbeadde0000000002000000000000002a000000000000000e0000000d1fbee701737461746509\
             000000479f85ee021900000056582e900339300000000000000400000000000000"
        );
    }

    #[test]
    fn golden_snapshots_of_older_formats() {
        let format_2 = "41000000f1a158710069726973534e500a0200000003000000efcdab89674523010020\
             000000000000efbeadde0000000002000000000000002a000000000000000e0000007f2d6ec101737461\
             746509000000b82ccba9021900000081592ac40339300000000000000400000000000000";
        let format_3 = "41000000f5bc716d0069726973534e500a0300000003000000efcdab89674523010020\
             000000000000efbeadde0000000002000000000000002a000000000000000e000000d9269ecd01737461\
             746509000000f1cabfb30219000000e616b5000339300000000000000400000000000000";
        let format_4 = "41000000e9efae390069726973534e500a0400000003000000efcdab89674523010020\
             000000000000efbeadde0000000002000000000000002a000000000000000e000000ab144eeb01737461\
             7465090000000e79f1f402190000003117b1540339300000000000000400000000000000";
        for hex in [format_2, format_3, format_4] {
            let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
            let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
            let (parts, end) = read(&bytes, &[bytes.len()]).expect("it stays readable");
            assert_eq!((parts.len(), end), (4, 12345));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let good = file(&[(true, b"state".to_vec())], 9000);
        assert_eq!(flaw(&good), None);
        assert_eq!(flaw(b""), Some(Flaw::Cut));
        assert_eq!(flaw(&good[..good.len() - 1]), Some(Flaw::Cut));
        assert_eq!(flaw(&[&good[..], b"more"].concat()), Some(Flaw::Trailing));
        assert_eq!(flaw(&[&good[..], b"m"].concat()), Some(Flaw::Trailing));
        assert_eq!(flaw(&[0; 4096]), Some(Flaw::Length));
        assert_eq!(flaw(&[60, 0, 0, 0].repeat(100)), Some(Flaw::NotASnapshot));
        let other = Reader::new(SALT, 4).frame(&good).unwrap_err();
        assert_eq!(other, Broken { offset: 0, what: Flaw::OtherShard(3) });
        let other = Reader::new(SALT + 1, SHARD).frame(&good).unwrap_err();
        assert_eq!(other.what, Flaw::Checksum);
        assert!(Broken { offset: 7, what: Flaw::Cut }.to_string().contains("offset 7"));
    }

    #[test]
    fn frames_are_kept_in_their_order() {
        let frame = |kind, payloads: &[&[u8]]| {
            let mut out = Vec::new();
            let mut writer = Writer::new(SHARD, &start(), &mut out);
            for payload in payloads {
                writer.put(kind, payload, &mut out);
            }
            out
        };
        assert_eq!(flaw(&frame(KIND_START, &[b"again"])), Some(Flaw::Order));
        assert_eq!(flaw(&frame(9, &[b"unknown"])), Some(Flaw::Order));
        assert_eq!(flaw(&frame(KIND_END, &[b"short"])), Some(Flaw::Order));
        assert_eq!(flaw(&frame(KIND_END, &[&[0; 16]])), Some(Flaw::Order)); // wrong count
        let mut headless = Vec::new();
        Writer { salt: SALT, prev_crc: 0, frames: 0 }.put(KIND_STATE, b"state", &mut headless);
        assert_eq!(flaw(&headless), Some(Flaw::NotASnapshot));
        // A frame of an older snapshot of the same log.
        let (a, b) = (file(&[(true, vec![1; 50])], 1), file(&[(true, vec![2; 50])], 1));
        let at = a.len() - FRAME_BYTES - END_BYTES;
        assert_eq!(flaw(&[&a[..at], &b[at..]].concat()), Some(Flaw::Checksum));
    }

    fn payloads() -> impl Strategy<Value = Vec<(bool, Vec<u8>)>> {
        prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..60)), 0..6)
    }

    proptest! {
        #[test]
        fn comes_back_in_any_pieces(
            payloads in payloads(),
            end: u64,
            pieces in prop::collection::vec(1usize..40, 1..8),
        ) {
            let (parts, found) = read(&file(&payloads, end), &pieces).unwrap();
            prop_assert_eq!(found, end);
            prop_assert_eq!(&parts[0], &format!("{:?}", Part::Start(start())));
            for ((is_state, payload), part) in payloads.iter().zip(&parts[1..]) {
                let expected = if *is_state { Part::State(payload) } else { Part::Space(payload) };
                prop_assert_eq!(part, &format!("{expected:?}"));
            }
            prop_assert_eq!(parts.len(), payloads.len() + 2);
        }

        #[test]
        fn truncation_and_bit_flips_are_noticed(payloads in payloads(), end: u64) {
            let good = file(&payloads, end);
            for len in 0..good.len() {
                prop_assert!(read(&good[..len], &[7, 64]).is_err());
            }
            let mut bad = good.clone();
            for bit in 0..good.len() * 8 {
                bad[bit / 8] ^= 1 << (bit % 8);
                prop_assert!(read(&bad, &[64]).is_err(), "bit {}", bit);
                bad[bit / 8] ^= 1 << (bit % 8);
            }
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(read(&bytes, &[13]).is_err());
            let headed = [&file(&[], 0)[..FRAME_BYTES + START_BYTES], &bytes].concat();
            prop_assert!(read(&headed, &[13]).is_err());
        }
    }
}
