//! How much a shard has to bear, as a level, and what each level still allows.
//!
//! A level rises as soon as a measure calls for it and falls by one when for a
//! second every measure has been clearly below it: what hangs on it must not
//! flap. It decides about what is optional, about logins and about senders;
//! never about a message.

/// How much a shard has to bear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub enum Level {
    /// Everything is done.
    #[default]
    Calm = 0,
    /// Fewer logins; nothing that only says what somebody does just now.
    Busy = 1,
    /// Fewer still, and no receipts.
    High = 2,
    /// Few, and those who send most are read less.
    Critical = 3,
}

impl Level {
    /// How many there are.
    pub const COUNT: usize = 4;
    /// All of them, in rising order, with their names in metrics.
    pub const ALL: [(Level, &'static str); Level::COUNT] = [
        (Level::Calm, "calm"),
        (Level::Busy, "busy"),
        (Level::High, "high"),
        (Level::Critical, "critical"),
    ];
}
