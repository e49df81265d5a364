//! loom explores every interleaving of the sleep/wake agreement (`src/sleeper.rs`).
#![allow(missing_docs, unreachable_pub)]

mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicBool, Ordering, fence};
}

#[path = "../src/sleeper.rs"]
mod sleeper;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use sleeper::Sleeper;

/// One core that sleeps until it has seen all the work, `wakers` threads that each bring one piece.
/// The bell is a counter the sleeper waits for; a lost wake-up shows as "slept without a bell".
fn check(wakers: usize, preemptions_max: Option<usize>) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = preemptions_max;
    model.check(move || {
        let sleeper = Arc::new(Sleeper::new());
        let work = Arc::new(AtomicUsize::new(0));
        let bell = Arc::new(AtomicUsize::new(0));

        let threads: Vec<_> = (0..wakers)
            .map(|_| {
                let (sleeper, work, bell) = (sleeper.clone(), work.clone(), bell.clone());
                thread::spawn(move || {
                    // Relaxed on purpose: the fences alone must carry the agreement.
                    work.fetch_add(1, Ordering::Relaxed);
                    if sleeper.rouse() {
                        bell.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();

        let sleeps = sleeper.announce(|| work.load(Ordering::Relaxed) > 0);
        threads.into_iter().for_each(|t| t.join().unwrap());
        // Everyone has finished. A core that went to sleep before the work came has been rung,
        // and only once, although several had work for it.
        let rings = bell.load(Ordering::SeqCst);
        if sleeps {
            assert_eq!(rings, 1, "a wake-up was lost or doubled");
        } else {
            assert!(rings <= 1, "woken twice");
        }
    });
}

#[test]
fn one_waker() {
    check(1, None);
}

#[test]
fn two_wakers() {
    check(2, Some(3)); // every interleaving passes too, in a minute
}
