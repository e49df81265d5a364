//! Between the hot ring and the executor: the only file that knows glommio.
//!
//! Two eventfds. The *doorbell* is registered with the hot ring and wakes a parked core; watching
//! the ring's own descriptor instead was tried and hung with deferred completions. The *open door*
//! is always readable: awaiting it makes the executor's reactor run once, which a bare yield does
//! not.

use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use glommio::GlommioError;
use glommio::io::PollableFd;
use glommio::timer::try_timeout;

use crate::eventfd::Eventfd;

/// The two eventfds, and their registrations with the executor once there is one.
pub(crate) struct Bridge {
    doorbell: Arc<Eventfd>,
    door: Rc<Eventfd>,
    /// Made at the first await: hands may also live on a thread without an executor.
    watched: Option<Watched>,
}

struct Watched {
    doorbell: PollableFd<Arc<Eventfd>>,
    door: PollableFd<Rc<Eventfd>>,
}

impl Bridge {
    pub(crate) fn new(doorbell: Arc<Eventfd>) -> io::Result<Bridge> {
        let door = Eventfd::new(true)?;
        door.ring();
        Ok(Bridge { doorbell, door: Rc::new(door), watched: None })
    }

    /// For the ring to be registered with.
    pub(crate) fn doorbell_fd(&self) -> i32 {
        self.doorbell.as_raw_fd()
    }

    /// Sleeps in the executor until the doorbell rings or `timeout` has passed.
    pub(crate) async fn doorbell(&mut self, timeout: Duration) {
        let bell = &self.watched().doorbell;
        // Errors are the timeout, or an executor that is shutting down: either way, wake up.
        let _ = try_timeout(timeout, async { bell.readable().await }).await;
        self.doorbell.clear();
    }

    /// Lets the executor's reactor and its other tasks run once.
    pub(crate) async fn step_outside(&mut self) {
        let _: Result<(), GlommioError<()>> = self.watched().door.readable().await;
    }

    fn watched(&mut self) -> &Watched {
        self.watched.get_or_insert_with(|| {
            const WHY: &str = "park and breathe need an executor";
            Watched {
                doorbell: PollableFd::new(Arc::clone(&self.doorbell)).expect(WHY),
                door: PollableFd::new(Rc::clone(&self.door)).expect(WHY),
            }
        })
    }
}

impl std::fmt::Debug for Bridge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bridge").finish_non_exhaustive()
    }
}
