//! A segment: which file and which offset holds a log position, and the block
//! that each file begins with.
//!
//! Segment `n` holds the positions from `n * segment_bytes` up to the next
//! multiple; its file is one header block and then those bytes. The header names
//! the log it belongs to, so that a file that was copied from elsewhere is never
//! read as one's own.

use std::fmt;

use wire::id::ShardId;

use crate::record::{Put, Take};
use crate::sector::Blank;
use crate::{BLOCK, BLOCK_LSN, FORMAT, FORMAT_OLDEST, FORMAT_PATTERN, FORMAT_ZEROED, Lsn};

const MAGIC: [u8; 8] = *b"irisWAL\n";
/// What the header's checksum covers.
const CHECKED_BYTES: usize = 40;
/// So many bytes of a file's first block say something.
pub const HEAD_BYTES: usize = CHECKED_BYTES + 4;

/// The number of the segment that holds `lsn`.
pub fn index(lsn: Lsn, segment_bytes: u64) -> u64 {
    lsn / segment_bytes
}

/// The first position in segment `index`.
pub fn base(index: u64, segment_bytes: u64) -> Lsn {
    index * segment_bytes
}

/// Where in its segment's file `lsn` stands, bytes from the file's start.
pub fn file_offset(lsn: Lsn, segment_bytes: u64) -> u64 {
    BLOCK_LSN + lsn % segment_bytes
}

/// How long a segment's file is, bytes.
pub fn file_bytes(segment_bytes: u64) -> u64 {
    BLOCK_LSN + segment_bytes
}

/// What the first block of a segment's file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Which log: the shard's salt from the manifest.
    pub log_id: u64,
    /// Which shard's log.
    pub shard: ShardId,
    /// The first position in the file.
    pub base: Lsn,
    /// Log bytes in the file.
    pub segment_bytes: u64,
}

/// Why a file's first block is not the header that belongs there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// Not a segment file at all.
    NotASegment,
    /// Another format than this version reads.
    OtherFormat(u32),
    /// The checksum does not fit.
    Checksum,
    /// A segment of another log: each shard's has its own number.
    OtherLog,
    /// A segment of the same data directory's other shard.
    OtherShard(ShardId),
    /// Another place in the log than its name says: this position.
    OtherBase(Lsn),
    /// Another segment size than the manifest's.
    OtherSize(u64),
}

impl HeaderError {
    /// Whether the header is whole: the file is one, and not the one that belongs
    /// there.
    pub fn is_another_file(&self) -> bool {
        !matches!(self, HeaderError::NotASegment | HeaderError::Checksum)
    }
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HeaderError::NotASegment => f.write_str("is not a log segment of iris-shard"),
            HeaderError::OtherFormat(n) => {
                write!(
                    f,
                    "has format {n}, this version reads formats {FORMAT_OLDEST} to {FORMAT}; use the \
                     version that wrote it or a newer one"
                )
            }
            HeaderError::Checksum => f.write_str("has a damaged header"),
            HeaderError::OtherLog => {
                f.write_str("belongs to another log: another shard's, or another data directory's")
            }
            HeaderError::OtherShard(shard) => write!(f, "belongs to the log of shard {shard}"),
            HeaderError::OtherBase(lsn) => {
                write!(f, "holds the log from position {lsn}, which is not where its name puts it")
            }
            HeaderError::OtherSize(bytes) => {
                write!(f, "was written for segments of {bytes} bytes, the manifest says otherwise")
            }
        }
    }
}

impl std::error::Error for HeaderError {}

impl SegmentHeader {
    /// The header as the block that stands at the start of the file.
    pub fn encode(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut put = Put::new(&mut block);
        put.bytes(&MAGIC);
        put.u32(FORMAT);
        put.u16(self.shard);
        put.u16(0);
        put.u64(self.log_id);
        put.u64(self.base);
        put.u64(self.segment_bytes);
        let crc = crc32c::crc32c(&block[..CHECKED_BYTES]);
        block[CHECKED_BYTES..CHECKED_BYTES + 4].copy_from_slice(&crc.to_le_bytes());
        block
    }

    /// Reads a file's first bytes (at least 44) and compares them with what
    /// should stand there.
    ///
    /// # Errors
    /// The first [`HeaderError`] that applies; the checksum comes before the
    /// format, so that rot is not taken for a newer one.
    pub fn expect(&self, block: &[u8]) -> Result<(), HeaderError> {
        let (_, found) = decode(block)?;
        if found.log_id != self.log_id {
            return Err(HeaderError::OtherLog);
        }
        if found.shard != self.shard {
            return Err(HeaderError::OtherShard(found.shard));
        }
        if found.segment_bytes != self.segment_bytes {
            return Err(HeaderError::OtherSize(found.segment_bytes));
        }
        if found.base != self.base {
            return Err(HeaderError::OtherBase(found.base));
        }
        Ok(())
    }
}

/// What stands where nothing was written yet in a file that begins with these
/// bytes.
pub fn blank(block: &[u8]) -> Blank {
    match decode(block) {
        Ok((FORMAT_PATTERN.., header)) => Blank::of_log(header.log_id),
        Ok((FORMAT_ZEROED.., _)) => Blank::Zeroes,
        _ => Blank::Unknown,
    }
}

/// The format and the rest.
fn decode(block: &[u8]) -> Result<(u32, SegmentHeader), HeaderError> {
    let mut take = Take(block);
    if take.array() != Some(MAGIC) {
        return Err(HeaderError::NotASegment);
    }
    let format = take.u32().ok_or(HeaderError::NotASegment)?;
    let checked = block.get(..CHECKED_BYTES).ok_or(HeaderError::NotASegment)?;
    let header = fields(&mut take).ok_or(HeaderError::NotASegment)?;
    let crc = take.u32().ok_or(HeaderError::NotASegment)?;
    // A newer format keeps its checksum where it is, so that rot is not taken for one.
    if crc != crc32c::crc32c(checked) {
        return Err(HeaderError::Checksum);
    }
    if !(FORMAT_OLDEST..=FORMAT).contains(&format) {
        return Err(HeaderError::OtherFormat(format));
    }
    Ok((format, header))
}

fn fields(take: &mut Take<'_>) -> Option<SegmentHeader> {
    let shard = take.u16()?;
    take.u16()?;
    Some(SegmentHeader {
        shard,
        log_id: take.u64()?,
        base: take.u64()?,
        segment_bytes: take.u64()?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINE: SegmentHeader =
        SegmentHeader { log_id: 0xaabb, shard: 3, base: 1 << 20, segment_bytes: 1 << 20 };

    #[test]
    fn golden_header() {
        let block = MINE.encode();
        let hex: String = block[..44].iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "6972697357414c0a0500000003000000bbaa00000000000000001000000000000000100000000000\
             719d13d0"
        );
        assert!(block[44..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn golden_headers_of_older_formats() {
        let all = [("01", "5dde8826"), ("02", "00af6360"), ("03", "cb7fc55d"), ("04", "ba4db5ed")];
        for (format, checksum) in all {
            let hex = format!(
                "6972697357414c0a{format}00000003000000bbaa0000000000000000100000000000000010\
                 0000000000{checksum}"
            );
            let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
            let block: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
            assert_eq!(MINE.expect(&block), Ok(()));
            let expected = if format == "04" { Blank::Zeroes } else { Blank::Unknown };
            assert_eq!(blank(&block), expected);
        }
        assert_eq!(blank(&MINE.encode()), Blank::of_log(MINE.log_id));
        assert_eq!(blank(&[0; BLOCK]), Blank::Unknown);
    }

    #[test]
    fn each_mismatch_has_its_name() {
        let check = |edit: fn(&mut SegmentHeader), expected: HeaderError| {
            let mut other = MINE;
            edit(&mut other);
            assert_eq!(MINE.expect(&other.encode()), Err(expected));
        };
        assert_eq!(MINE.expect(&MINE.encode()), Ok(()));
        check(|h| h.log_id = 1, HeaderError::OtherLog);
        check(|h| h.shard = 4, HeaderError::OtherShard(4));
        check(|h| h.base = 0, HeaderError::OtherBase(0));
        check(|h| h.segment_bytes = 5, HeaderError::OtherSize(5));
    }

    #[test]
    fn damage_is_not_taken_for_a_newer_format() {
        for at in [8, 20] {
            let mut block = MINE.encode();
            block[at] ^= 4;
            assert_eq!(MINE.expect(&block), Err(HeaderError::Checksum));
        }
        let mut block = MINE.encode();
        block[8] = 6;
        seal(&mut block);
        assert_eq!(MINE.expect(&block), Err(HeaderError::OtherFormat(6)));
        assert_eq!(blank(&block), Blank::Unknown);
        assert_eq!(MINE.expect(&[0; BLOCK]), Err(HeaderError::NotASegment));
        for len in 0..44 {
            assert!(MINE.expect(&MINE.encode()[..len]).is_err());
        }
    }

    #[test]
    fn rot_is_noticed() {
        for bit in 0..44 * 8 {
            let mut block = MINE.encode();
            block[bit / 8] ^= 1 << (bit % 8);
            assert!(MINE.expect(&block).is_err(), "bit {bit}");
        }
    }

    /// Has the checksum fit whatever stands before it.
    fn seal(block: &mut [u8]) {
        let crc = crc32c::crc32c(&block[..CHECKED_BYTES]);
        block[CHECKED_BYTES..][..4].copy_from_slice(&crc.to_le_bytes());
    }

    #[test]
    fn positions_map_to_files() {
        let bytes = 1 << 20;
        assert_eq!((index(0, bytes), file_offset(0, bytes)), (0, 4096));
        assert_eq!((index(bytes - 1, bytes), file_offset(bytes - 1, bytes)), (0, bytes + 4095));
        assert_eq!((index(bytes, bytes), file_offset(bytes, bytes)), (1, 4096));
        assert_eq!(base(3, bytes), 3 * bytes);
    }

    fn any_header() -> impl Strategy<Value = SegmentHeader> {
        any::<(u64, ShardId, Lsn, u64)>().prop_map(|(log_id, shard, base, segment_bytes)| {
            SegmentHeader { log_id, shard, base, segment_bytes }
        })
    }

    proptest! {
        #[test]
        fn round_trip(header in any_header(), behind in prop::collection::vec(any::<u8>(), 0..60)) {
            prop_assert_eq!(header.expect(&header.encode()), Ok(()));
            // What follows is not its own.
            let block = [&header.encode()[..CHECKED_BYTES + 4], &behind].concat();
            prop_assert_eq!(header.expect(&block), Ok(()));
        }

        #[test]
        fn what_differs_is_named(
            mine in any_header(),
            which in 0..4,
            by in 1..=u16::MAX,
            shift in 0..=48,
        ) {
            let (mut other, wide) = (mine, u64::from(by) << shift);
            let expected = match which {
                0 => {
                    other.log_id ^= wide;
                    HeaderError::OtherLog
                }
                1 => {
                    other.shard ^= by;
                    HeaderError::OtherShard(other.shard)
                }
                2 => {
                    other.segment_bytes ^= wide;
                    HeaderError::OtherSize(other.segment_bytes)
                }
                _ => {
                    other.base ^= wide;
                    HeaderError::OtherBase(other.base)
                }
            };
            prop_assert_eq!(mine.expect(&other.encode()), Err(expected));
        }

        /// Of a newer format nothing is believed but its number.
        #[test]
        fn any_other_format_is_named(
            header in any_header(),
            format in prop_oneof![any::<u32>(), 0..=FORMAT + 3],
            others: [u8; 28],
        ) {
            let mut block = header.encode();
            block[8..12].copy_from_slice(&format.to_le_bytes());
            let is_ours = (FORMAT_OLDEST..=FORMAT).contains(&format);
            if !is_ours {
                block[12..40].copy_from_slice(&others);
            }
            seal(&mut block);
            let expected = if is_ours { Ok(()) } else { Err(HeaderError::OtherFormat(format)) };
            prop_assert_eq!(header.expect(&block), expected);
        }

        #[test]
        fn garbage_is_refused(
            header in any_header(),
            garbage in prop::collection::vec(any::<u8>(), 0..100),
            at in 0..CHECKED_BYTES + 4,
        ) {
            prop_assert_eq!(header.expect(&garbage), Err(HeaderError::NotASegment));
            let is_too_short = garbage.len() < CHECKED_BYTES - 4;
            let expected =
                if is_too_short { HeaderError::NotASegment } else { HeaderError::Checksum };
            prop_assert_eq!(header.expect(&[&MAGIC[..], &garbage].concat()), Err(expected));
            // And where it stands in a header, unless it is what stood there.
            let whole = header.encode();
            let mut block = whole;
            let len = garbage.len().min(CHECKED_BYTES + 4 - at);
            block[at..at + len].copy_from_slice(&garbage[..len]);
            prop_assert_eq!(header.expect(&block).is_ok(), block == whole);
        }
    }
}
