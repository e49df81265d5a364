//! What a shard holds, for those who look into a data directory: numbers, and
//! one inbox with everything that waits in it.
//!
//! Nothing here changes anything, and no path of a message comes here.

use wal::Lsn;

use crate::replay::Replay;
use crate::user::User;

/// How much a shard holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Users it knows.
    pub users: u64,
    /// Registered devices of all of them.
    pub devices: u64,
    /// Messages that wait.
    pub waiting_messages: u64,
    /// Their log bytes.
    pub waiting_bytes: u64,
    /// Sending devices that inboxes remember.
    pub pairs: u64,
}

/// One user's inbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboxContents {
    /// The user's name.
    pub name: Vec<u8>,
    /// When a device was last seen, Unix seconds; 0 for never.
    pub last_seen_s: u32,
    /// Registered devices: id, and the inbox seq up to which it has everything.
    /// Device 0 is that of protocol v1.
    pub devices: Vec<(u64, u64)>,
    /// The highest inbox seq given out; 0 for none.
    pub last_seq: u64,
    /// Sending devices that it remembers.
    pub pairs: u64,
    /// What waits, by inbox seq.
    pub waiting: Vec<Waiting>,
}

/// One message that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Its number in the inbox.
    pub inbox_seq: u64,
    /// Where its record stands in the log.
    pub lsn: Lsn,
    /// How long that record is, bytes.
    pub len: u32,
    /// It could not be read when its turn came, and is tried at each login.
    pub is_aside: bool,
}

impl Replay {
    /// How much has been read back.
    pub fn contents(&self) -> Contents {
        let mut contents = Contents::default();
        for user in self.users().iter() {
            contents.users += 1;
            contents.devices += user.devices.len() as u64;
            contents.pairs += pairs(user);
            for entry in user.waiting() {
                contents.waiting_messages += 1;
                contents.waiting_bytes += u64::from(entry.len);
            }
        }
        contents
    }

    /// The inbox of the user with this name, if the user is known.
    pub fn inbox(&self, name: &[u8]) -> Option<InboxContents> {
        let at = self.users().find(self.hasher().key(name))?;
        let user = &self.users()[at];
        let waiting = user.waiting_seqs().map(|(inbox_seq, entry)| Waiting {
            inbox_seq,
            lsn: entry.lsn,
            len: entry.len,
            is_aside: user.is_aside(inbox_seq),
        });
        Some(InboxContents {
            name: user.name.to_vec(),
            last_seen_s: user.last_seen_s,
            devices: user.devices.iter().map(|device| (device.id, device.cursor)).collect(),
            last_seq: user.last_seq(),
            pairs: pairs(user),
            waiting: waiting.collect(),
        })
    }
}

fn pairs(user: &User) -> u64 {
    user.inbox.as_deref().map_or(0, |inbox| inbox.pairs().len() as u64)
}
