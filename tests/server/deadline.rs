//! The end of a wait, which only a hang reaches.

use std::thread;
use std::time::{Duration, Instant};

/// How long a test waits for something that must come.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The end of such a wait, for conditions that can only be asked for again.
pub struct Deadline(Instant);

impl Deadline {
    /// From now on.
    #[allow(clippy::new_without_default, reason = "a default would hide that time runs")]
    pub fn new() -> Deadline {
        Deadline(Instant::now() + PATIENCE)
    }

    /// Fails when it is over.
    #[track_caller]
    pub fn check(&self, what: impl Fn() -> String) {
        assert!(Instant::now() < self.0, "{} after {PATIENCE:?}", what());
    }

    /// Lets others run before asking again; fails when it is over.
    #[track_caller]
    pub fn pause(&self, what: impl Fn() -> String) {
        self.check(what);
        thread::park_timeout(Duration::from_millis(20));
    }
}
