//! How many connections all cores of a process hold together.
//!
//! Each core has a bound of its own, with room for chance; connections move between cores after
//! they were admitted, so only a common count keeps the sum. It is touched when a connection
//! comes, moves or is gone, never for a message, and orders nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A common bound on connections; the cores of one process share it.
#[derive(Debug)]
pub struct Quota {
    max: usize,
    held: AtomicUsize,
}

impl Quota {
    /// Room for so many connections.
    pub fn new(max: usize) -> Arc<Quota> {
        Arc::new(Quota { max, held: AtomicUsize::new(0) })
    }

    /// Connections held now, those on their way between cores and those still closing included.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Takes a place if there is one.
    pub(crate) fn admit(&self) -> bool {
        let is_admitted = self.held.fetch_add(1, Ordering::Relaxed) < self.max;
        if !is_admitted {
            self.leave();
        }
        is_admitted
    }

    /// Takes a place for one that was admitted elsewhere.
    pub(crate) fn enter(&self) {
        self.held.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn leave(&self) {
        let before = self.held.fetch_sub(1, Ordering::Relaxed);
        assert!(before > 0, "a connection leaves once");
    }
}

/// The place of a connection that is on its way; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place(Arc<Quota>);

impl Place {
    /// For a connection that has a place already.
    pub(crate) fn of(quota: &Arc<Quota>) -> Place {
        Place(Arc::clone(quota))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.leave();
    }
}
