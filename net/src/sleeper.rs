//! The agreement between a core that goes to sleep and those who have work for it.
//!
//! A waker publishes its work, then looks at the flag; a sleeper raises the flag, then looks for
//! work. A SeqCst fence between the two halves on each side makes it impossible that both miss
//! each other, whatever the hardware reorders. `tests/sleeper_loom.rs` runs this very file under
//! loom with loom's atomics in place of the real ones.

use super::atomic::{AtomicBool, Ordering, fence};

/// The flag of one core.
#[derive(Debug)]
pub(crate) struct Sleeper {
    sleeping: AtomicBool,
}

impl Sleeper {
    pub(crate) fn new() -> Sleeper {
        Sleeper { sleeping: AtomicBool::new(false) }
    }

    /// Announces sleep, then looks once more. `false`: there is work, the core must not sleep.
    pub(crate) fn announce(&self, has_work: impl FnOnce() -> bool) -> bool {
        self.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if has_work() {
            self.awake();
            return false;
        }
        true
    }

    /// Takes the announcement back.
    pub(crate) fn awake(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
    }

    /// After publishing work: must the caller ring the bell? At most one caller per sleep does.
    pub(crate) fn rouse(&self) -> bool {
        fence(Ordering::SeqCst);
        // The plain load keeps the line shared while the core is awake, which is nearly always.
        self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::Relaxed)
    }
}
