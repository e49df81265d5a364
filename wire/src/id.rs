//! Identities: message ids, user keys, partitions, shard numbers.
//!
//! All are plain values. Nothing here reads a clock or draws a number: the
//! caller brings the hash seed and the time.

use std::fmt;

/// Number of one shard inside a node, 0-based.
pub type ShardId = u16;

/// How many partitions the user space is cut into, for ever: a user's
/// partition is part of every log record.
pub const PARTITIONS: u16 = 4096;

/// A user's identity inside the server: a 128-bit keyed hash of the name.
///
/// Maps are keyed by it so that a message between two shards hashes each name
/// once. 128 bits make an accidental collision (about 2⁻⁶⁴ at four billion
/// users) less likely than a memory error, and the seed keeps an attacker from
/// searching for one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserKey(pub u128);

impl UserKey {
    /// The partition this user belongs to, below [`PARTITIONS`].
    pub fn partition(self) -> u16 {
        ((self.0 >> 64) as u16) % PARTITIONS
    }

    /// The shard that owns this user on a node with `shards` shards.
    ///
    /// # Panics
    /// When `shards` is 0.
    pub fn owner(self, shards: u16) -> ShardId {
        // Multiply-shift instead of modulo: partitions of one shard are
        // neighbours, so that moving a range of them is moving a slice.
        assert!(shards > 0, "a node has at least one shard");
        (u32::from(self.partition()) * u32::from(shards) / u32::from(PARTITIONS)) as ShardId
    }
}

impl fmt::Debug for UserKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A message id: 16 bytes, shaped like a UUIDv7 (RFC 9562), increasing within
/// one inbox in byte order.
///
/// Layout, from the most significant bit: 48 bits hybrid-logical-clock
/// milliseconds, 4 bits version (7), 12 bits counter high, 2 bits variant
/// (binary 10), 14 bits counter low, 16 bits node, 16 bits shard, 16 bits zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(pub [u8; 16]);

/// Values of the 26-bit counter inside one millisecond of a [`MessageId`].
pub const ID_COUNTER_END: u32 = 1 << 26;

impl MessageId {
    /// Puts an id together from its parts; `ms` keeps its low 48 bits.
    ///
    /// # Panics
    /// When `counter` is not below [`ID_COUNTER_END`].
    pub fn new(ms: u64, counter: u32, node: u16, shard: ShardId) -> MessageId {
        assert!(counter < ID_COUNTER_END, "the clock moves on before the counter overflows");
        let high = (ms << 16) | 0x7000 | u64::from(counter >> 14);
        let low = (0b10 << 62)
            | (u64::from(counter & 0x3fff) << 48)
            | (u64::from(node) << 32)
            | (u64::from(shard) << 16);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&high.to_be_bytes());
        bytes[8..].copy_from_slice(&low.to_be_bytes());
        MessageId(bytes)
    }

    /// The hybrid-logical-clock milliseconds since the Unix epoch.
    pub fn ms(self) -> u64 {
        u64::from_be_bytes(self.0[..8].try_into().expect("eight bytes")) >> 16
    }

    /// The counter within [`MessageId::ms`].
    pub fn counter(self) -> u32 {
        let high = u32::from(self.0[6] & 0x0f) << 8 | u32::from(self.0[7]);
        let low = u32::from(self.0[8] & 0x3f) << 8 | u32::from(self.0[9]);
        high << 14 | low
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// How sure the sender wants to be before it is told *stored*.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Class {
    /// Told and delivered as soon as the message is in memory; a crash within
    /// milliseconds may lose it.
    BestEffort = 0,
    /// Told and delivered only after the fsync that covers the message.
    Guaranteed = 1,
}

impl Class {
    /// The class with this number on the wire, if there is one.
    pub fn from_u8(byte: u8) -> Option<Class> {
        match byte {
            0 => Some(Class::BestEffort),
            1 => Some(Class::Guaranteed),
            _ => None,
        }
    }
}
