//! Threads that use up CPU beside the server, for as long as the trouble lasts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use crate::clock;

/// See the module; dropping it puts the fire out.
pub(crate) struct Fire {
    is_out: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Fire {
    /// `threads` that burn from `from_ns` on.
    pub(crate) fn light(threads: u32, from_ns: u64) -> Fire {
        let is_out = Arc::new(AtomicBool::new(false));
        let threads = (0..threads)
            .map(|_| {
                let is_out = Arc::clone(&is_out);
                thread::spawn(move || burn(&is_out, from_ns))
            })
            .collect();
        Fire { is_out, threads }
    }
}

fn burn(is_out: &AtomicBool, from_ns: u64) {
    while !is_out.load(Ordering::Relaxed) {
        match from_ns.saturating_sub(clock::now_ns()) {
            0 => (0..100_000).for_each(|_| std::hint::spin_loop()),
            wait_ns => thread::park_timeout(std::time::Duration::from_nanos(wait_ns)),
        }
    }
}

impl Drop for Fire {
    fn drop(&mut self) {
        self.is_out.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            // It cannot panic, and nothing hangs on it.
            let _ended = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fire_goes_out_whether_it_burns_or_not() {
        drop(Fire::light(2, 0));
        drop(Fire::light(2, u64::MAX));
    }
}
