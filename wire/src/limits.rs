//! Every limit of the wire, in one place, and how they relate.
//!
//! A limit reached is an answer on the wire, never an allocation.

/// Longest user or group name, bytes.
pub const NAME_BYTES_MAX: usize = 256;
/// Longest body of one message, bytes (v1 may send one byte less than 64 KiB,
/// v2 up to 64 KiB).
pub const BODY_BYTES_MAX: usize = 64 * 1024;
/// Longest authentication token, bytes.
pub const TOKEN_BYTES_MAX: usize = 4096;
/// Longest v2 frame of a client, length field excluded: SEND with the longest name and body.
pub const V2_FRAME_BYTES_MAX: usize = BODY_BYTES_MAX + 1024;
/// Longest CBOR map of a v1 message (0x10), bytes.
pub const V1_CBOR_BYTES_MAX: usize = 256 * 1024;
/// Longest v1 batch blob (0x04), bytes.
pub const V1_BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Most messages in one v1 batch.
pub const V1_BATCH_ENTRIES_MAX: usize = 1000;
/// Longest v1 packet: the batch with its header.
pub const V1_PACKET_BYTES_MAX: usize = V1_BATCH_BYTES_MAX + 7 + NAME_BYTES_MAX;
/// Longest v1 login data (`user:token`), bytes.
pub const V1_LOGIN_BYTES_MAX: usize = 256;
/// Devices one user may register.
pub const DEVICES_MAX: usize = 4;
/// Largest delivery window a v2 device may ask for, messages.
pub const CREDIT_MAX: u32 = 65_535;
/// Deliveries a v1 connection gets ahead of its acknowledgements.
pub const V1_WINDOW: u32 = 256;

/// Longest body a log record can hold: the largest message of either protocol.
pub const STORED_BODY_BYTES_MAX: usize = V1_CBOR_BYTES_MAX;
/// Longest v2 frame of a server, length field excluded: DELIVER with the longest name and the
/// longest body, which v1 clients may send to v2 devices, too.
pub const V2_REPLY_BYTES_MAX: usize = STORED_BODY_BYTES_MAX + 1024;

const _: () = assert!(BODY_BYTES_MAX + NAME_BYTES_MAX + 64 <= V2_FRAME_BYTES_MAX);
const _: () = assert!(V1_BATCH_BYTES_MAX < V1_PACKET_BYTES_MAX);
const _: () = assert!(TOKEN_BYTES_MAX + NAME_BYTES_MAX + 64 <= V2_FRAME_BYTES_MAX);
const _: () = assert!(STORED_BODY_BYTES_MAX >= BODY_BYTES_MAX);
const _: () = assert!(V2_REPLY_BYTES_MAX >= V2_FRAME_BYTES_MAX);
