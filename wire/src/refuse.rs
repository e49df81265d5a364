//! The stable codes of every refusal. A number once given is never reused.

/// Why something was refused. The number is what goes on the wire in protocol
/// v2; protocol v1 has its own few words for the cases it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Code {
    /// Bytes that are no valid frame, or a field outside its bounds.
    Malformed = 1,
    /// A frame type this server does not know. The frame was skipped.
    UnknownType = 2,
    /// No protocol version in common.
    Version = 3,
    /// A frame that needs a login before it.
    NotLoggedIn = 4,
    /// Name, token or signature not accepted.
    AuthFailed = 5,
    /// A frame or a body above its limit. Permanent: the number is consumed.
    TooLarge = 6,
    /// The recipient's inbox is full. Temporary.
    InboxFull = 7,
    /// The server has more than it can take right now. Temporary.
    Busy = 8,
    /// Too many requests of this user. Temporary.
    RateLimited = 9,
    /// The disk is full; delivery goes on. Temporary.
    StorageFull = 10,
    /// The log of the owning shard failed; it restarts from what is on disk.
    StorageFailed = 11,
    /// A newer login of the same device took over.
    Replaced = 12,
    /// The server is stopping.
    Draining = 13,
    /// This user has its four devices already.
    TooManyDevices = 14,
    /// The device claims to have more than the inbox ever held.
    BadCursor = 15,
    /// Understood, and not offered by this version of the server.
    Unsupported = 16,
    /// A frame that was begun did not end in time.
    Timeout = 17,
    /// A name that is empty, too long, or has forbidden bytes. Permanent; no
    /// inbox can have this name, so no number is kept for it.
    BadName = 18,
}

impl Code {
    const ALL: [Code; 18] = [
        Code::Malformed,
        Code::UnknownType,
        Code::Version,
        Code::NotLoggedIn,
        Code::AuthFailed,
        Code::TooLarge,
        Code::InboxFull,
        Code::Busy,
        Code::RateLimited,
        Code::StorageFull,
        Code::StorageFailed,
        Code::Replaced,
        Code::Draining,
        Code::TooManyDevices,
        Code::BadCursor,
        Code::Unsupported,
        Code::Timeout,
        Code::BadName,
    ];

    /// The code with this number, if this version knows it.
    pub fn from_u16(number: u16) -> Option<Code> {
        Code::ALL.into_iter().find(|code| *code as u16 == number)
    }

    /// Whether the refused send consumed its number: trying again is useless,
    /// and the next send must carry the next number.
    pub fn is_permanent(self) -> bool {
        matches!(self, Code::TooLarge | Code::BadName | Code::Unsupported)
    }

    /// A sentence for a person.
    pub fn text(self) -> &'static str {
        match self {
            Code::Malformed => "malformed frame",
            Code::UnknownType => "unknown frame type; skipped",
            Code::Version => "no protocol version in common",
            Code::NotLoggedIn => "log in first",
            Code::AuthFailed => "authentication failed",
            Code::TooLarge => "larger than the limit",
            Code::InboxFull => "the recipient's inbox is full; try later",
            Code::Busy => "busy; try later",
            Code::RateLimited => "too many requests; try later",
            Code::StorageFull => "the server's disk is full; try later",
            Code::StorageFailed => "the server's log failed; try later",
            Code::Replaced => "a newer login of this device took over",
            Code::Draining => "the server is stopping; reconnect",
            Code::TooManyDevices => "this user has all the devices it may have",
            Code::BadCursor => "the device claims more than the inbox ever held",
            Code::Unsupported => "not offered by this server",
            Code::Timeout => "a frame took too long to end",
            Code::BadName => "a name has 1 to 256 bytes, no ':' and no control bytes",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip() {
        for code in Code::ALL {
            assert_eq!(Code::from_u16(code as u16), Some(code));
        }
        assert_eq!(Code::from_u16(0), None);
        assert_eq!(Code::from_u16(u16::MAX), None);
    }
}
