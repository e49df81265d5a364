//! One device of the crowd: a correct client, independent of the client
//! library, whose memory survives every crash of the server.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use wire::id::MessageId;

use crate::ledger::{Kind, LetterId};
use crate::link::LinkId;

/// What a device has written to one recipient and not seen settled.
#[derive(Default)]
pub(crate) struct Outbox {
    /// The last number given out.
    pub(crate) last: u64,
    /// Number and letter, increasing.
    pub(crate) unsettled: VecDeque<(u64, LetterId)>,
    /// Numbers up to this one have been written on this connection.
    pub(crate) written: u64,
    /// Write again from this number on, at this time.
    pub(crate) again: Option<(u64, u64)>,
    /// The last GAP acted on, and until when its repetitions mean nothing.
    pub(crate) gap: (u64, u64),
}

impl Outbox {
    /// A new connection: everything is to be written again.
    pub(crate) fn reconnect(&mut self) {
        (self.written, self.again, self.gap) = (0, None, (0, 0));
    }

    /// Removes what a SENT for this number settles.
    pub(crate) fn settle(&mut self, seq: u64) -> Vec<(u64, LetterId)> {
        let count = self.unsettled.partition_point(|(number, _)| *number <= seq);
        self.unsettled.drain(..count).collect()
    }
}

/// When a device acknowledges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acks {
    AtOnce,
    NowAndThen,
    Never,
}

/// See the module.
pub(crate) struct Device {
    pub(crate) user: u16,
    /// 0 speaks protocol v1.
    pub(crate) id: u64,
    pub(crate) acks: Acks,
    pub(crate) link: Option<LinkId>,
    /// Abandoned connections that are still open.
    pub(crate) zombies: Vec<LinkId>,
    /// WELCOME or LOGIN_OK has come.
    pub(crate) is_online: bool,
    pub(crate) offline_until: u64,
    /// Received and not a whole frame yet.
    pub(crate) partial: Vec<u8>,
    /// Every letter it has.
    pub(crate) seen: BTreeSet<LetterId>,
    /// Highest number (or letter, for unnumbered ones) from each device.
    pub(crate) last_from: BTreeMap<(u16, u64, Kind), u64>,

    /// The highest id of a guaranteed letter.
    pub(crate) last_id: Option<MessageId>,
    /// Where the server last told it that it is logged in.
    pub(crate) welcomed_on: Option<LinkId>,
    /// v1: a connection was left with a login unanswered. The server may still
    /// take that login, and its answer may have nowhere to go.
    pub(crate) is_doubtful: bool,
    /// It has written its last letter.
    pub(crate) has_said_goodbye: bool,
    /// It was told to write nothing before.
    pub(crate) silent_until: u64,

    // Protocol v2.
    pub(crate) cursor: u64,
    pub(crate) acked: u64,
    pub(crate) window: u64,
    /// Deliveries on this connection not yet acknowledged.
    pub(crate) owed: VecDeque<u64>,
    /// How many deliveries since the last acknowledgement may expire.
    pub(crate) expiring_owed: u64,
    pub(crate) outboxes: BTreeMap<u16, Outbox>,
    /// Every letter by recipient and number.
    pub(crate) written: BTreeMap<(u16, u64), LetterId>,

    // Protocol v1.
    /// Delivered on this connection and not acknowledged.
    pub(crate) unacked: Vec<(MessageId, LetterId)>,
    /// Every letter that it ever acknowledged.
    pub(crate) let_go: BTreeSet<LetterId>,
    /// Delivered since this login.
    pub(crate) since_login: BTreeSet<LetterId>,
    pub(crate) ascending_seq: BTreeMap<u16, u64>,
    /// Numbered letters, to be repeated now and then.
    pub(crate) repeatable: Vec<LetterId>,
}

impl Device {
    pub(crate) fn new(user: u16, id: u64, acks: Acks) -> Device {
        Device {
            user,
            id,
            acks,
            link: None,
            zombies: Vec::new(),
            is_online: false,
            offline_until: 0,
            partial: Vec::new(),
            seen: BTreeSet::new(),
            last_from: BTreeMap::new(),
            last_id: None,
            welcomed_on: None,
            is_doubtful: false,
            has_said_goodbye: false,
            silent_until: 0,
            cursor: 0,
            acked: 0,
            window: 0,
            owed: VecDeque::new(),
            expiring_owed: 0,
            outboxes: BTreeMap::new(),
            written: BTreeMap::new(),
            unacked: Vec::new(),
            let_go: BTreeSet::new(),
            since_login: BTreeSet::new(),
            ascending_seq: BTreeMap::new(),
            repeatable: Vec::new(),
        }
    }

    pub(crate) fn is_v1(&self) -> bool {
        self.id == 0
    }

    /// The connection is gone; what was on it counts no more.
    pub(crate) fn forget_link(&mut self) {
        self.is_doubtful |= self.is_v1() && self.link.is_some() && !self.is_online;
        self.link = None;
        self.is_online = false;
        self.partial.clear();
        self.owed.clear();
        self.expiring_owed = 0;
        self.unacked.clear();
        self.since_login.clear();
        for outbox in self.outboxes.values_mut() {
            outbox.reconnect();
        }
    }
}
