//! Bugs planted on purpose: each must be noticed, or the oracle is worth
//! nothing. All of them live here and in the world around the shard; the code
//! of the server has none of them.

/// What is wrong in this world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Plant {
    /// Nothing.
    #[default]
    None,
    /// The shard is told that a write is durable when it was only submitted.
    EarlyAck,
    /// The same, while the oracle's look at the disk is off: what clients lose
    /// must be enough to notice.
    EarlyAckUnwatched,
    /// A send number in 16 is forgotten when the log is replayed.
    ForgetNumber,
    /// Recovery does not compare checksums with the record before.
    IgnoreChain,
    /// An acknowledgement in 16 is forgotten when the log is replayed.
    ForgetAck,
    /// Who has what was set aside is forgotten when the log is replayed.
    ForgetHad,
    /// With a segment, the one after it is deleted.
    DeleteNext,
    /// A snapshot gets its name before the log is durable as far as it reaches.
    NameEarly,
    /// Another layout counts before its logs are synced.
    SwitchUnsynced,
    /// The old layout is removed before the new one counts.
    SweepEarly,
    /// The shard is told that a write is durable whose sync failed.
    AckFailedSync,
    /// A write for which there is no space is called durable.
    ConfirmWithoutPlace,
    /// A start takes damage for the end of the log.
    CutDamage,
    /// A repair passes over the record behind what is damaged.
    SkipBesideDamage,
    /// The shard does not hear that the disk is full.
    IgnoreFull,
    /// A start leaves what a torn tail has left where the log goes on.
    LeaveTorn,
    /// A start judges every segment as one that it makes itself.
    OneFilling,
    /// A start looks at the heads only of segments that it needs.
    TrustNames,
    /// A number of v1 that comes from another shard is taken although a higher
    /// one came before.
    TakeLate,
}

impl Plant {
    /// Whether writes are reported before they are on the disk.
    pub fn acks_early(self) -> bool {
        matches!(self, Plant::EarlyAck | Plant::EarlyAckUnwatched)
    }
}
