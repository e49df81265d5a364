//! One connection, as both ends and the wire between them see it.

use shard::Conn;

/// A connection's number in the world.
pub(crate) type LinkId = usize;

/// Who is at the client's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Party {
    /// A device of the crowd.
    Device(usize),
    /// Somebody who sends garbage, or nothing.
    Stranger,
}

/// What the server has found it to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    Unknown,
    V1,
    V2,
}

/// The server's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// At a core, under this name.
    At(usize, Conn),
    /// On its way to another core.
    Moving,
    /// Closed.
    Nowhere,
}

/// See the module.
pub(crate) struct Link {
    pub(crate) party: Party,
    /// Which life of the server it belongs to.
    pub(crate) life: u32,
    pub(crate) place: Place,
    pub(crate) speaks: Speaks,
    /// Bytes the server has and has not taken yet.
    pub(crate) received: Vec<u8>,
    /// The shard had no room; its room then.
    pub(crate) blocked: Option<u64>,
    /// The server is done with it; nothing it sends is looked at.
    pub(crate) is_closing: bool,
    /// What is on its way down is lost.
    pub(crate) is_cut: bool,
    /// The client has closed its end.
    pub(crate) is_left: bool,
    /// When the last bytes upwards and downwards arrive.
    pub(crate) up_at: u64,
    pub(crate) down_at: u64,
    /// Bytes sent that have not left the server yet, deliveries of them.
    pub(crate) undrained: usize,
    pub(crate) undrained_deliveries: usize,
    /// The shard waits for all of them to have left.
    pub(crate) is_awaited: bool,

    // What the oracle knows of it.
    /// The cursor its HELLO brought.
    pub(crate) hello_seq: u64,
    /// Largest window asked for on it.
    pub(crate) window_max: u64,
    /// GOAWAY was sent.
    pub(crate) is_dismissed: bool,
    /// And there was no room for what it had said before.
    pub(crate) had_no_room: bool,
    /// Highest inbox seq delivered on it.
    pub(crate) delivered_seq: u64,
}

impl Link {
    pub(crate) fn new(party: Party, life: u32, place: Place, now_ns: u64) -> Link {
        Link {
            party,
            life,
            place,
            speaks: Speaks::Unknown,
            received: Vec::new(),
            blocked: None,
            is_closing: false,
            is_cut: false,
            is_left: false,
            up_at: now_ns,
            down_at: now_ns,
            undrained: 0,
            undrained_deliveries: 0,
            is_awaited: false,
            hello_seq: 0,
            window_max: 0,
            is_dismissed: false,
            had_no_room: false,
            delivered_seq: 0,
        }
    }
}
