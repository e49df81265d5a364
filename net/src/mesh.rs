//! The mesh: one bounded ring per ordered pair of cores, and who wakes whom.
//!
//! It never blocks and never grows: a full ring gives the value back, and the sender stops reading
//! the connection that produced it. Values of one sender arrive in the order they were pushed.

use std::sync::{Arc, OnceLock};

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;

use crate::eventfd::Waker;
use crate::sleeper::Sleeper;

/// All rings between `shards` cores. Cheap to clone.
#[derive(Debug)]
pub struct Mesh<T> {
    shared: Arc<Shared<T>>,
}

#[derive(Debug)]
struct Shared<T> {
    shards: usize,
    /// Row: sender, column: receiver. A core has no ring to itself.
    rings: Box<[Option<ArrayQueue<T>>]>,
    seats: Box<[CachePadded<Seat>]>,
}

/// Where one core sits: its sleep flag and the bell that wakes it.
#[derive(Debug)]
struct Seat {
    sleeper: Sleeper,
    /// Set once that core's ring exists. Before that nobody needs to wake it: it looks at all
    /// rings before it sleeps for the first time.
    waker: OnceLock<Waker>,
}

impl<T: Send> Mesh<T> {
    /// A mesh between `shards` cores with room for `capacity` values per ordered pair.
    ///
    /// # Panics
    /// If `shards` or `capacity` is zero.
    pub fn new(shards: usize, capacity: usize) -> Mesh<T> {
        assert!(shards > 0 && capacity > 0, "a mesh without room");
        let rings = (0..shards * shards)
            .map(|pair| (pair / shards != pair % shards).then(|| ArrayQueue::new(capacity)))
            .collect();
        let seats = (0..shards)
            .map(|_| CachePadded::new(Seat { sleeper: Sleeper::new(), waker: OnceLock::new() }))
            .collect();
        Mesh { shared: Arc::new(Shared { shards, rings, seats }) }
    }

    /// The end of core `shard`. Exactly one thread should use it.
    ///
    /// # Panics
    /// If there is no such core.
    pub fn port(&self, shard: usize) -> Port<T> {
        assert!(shard < self.shared.shards, "no such core");
        Port { shared: Arc::clone(&self.shared), me: shard }
    }
}

impl<T> Clone for Mesh<T> {
    fn clone(&self) -> Mesh<T> {
        Mesh { shared: Arc::clone(&self.shared) }
    }
}

/// One core's end of the mesh.
#[derive(Debug)]
pub struct Port<T> {
    shared: Arc<Shared<T>>,
    me: usize,
}

impl<T: Send> Port<T> {
    /// This core's number.
    pub fn shard(&self) -> usize {
        self.me
    }

    /// The number of cores.
    pub fn shards(&self) -> usize {
        self.shared.shards
    }

    /// Says how this core is woken; to be called once, when its ring exists.
    ///
    /// # Panics
    /// When called a second time.
    pub fn set_waker(&self, waker: Waker) {
        let fresh = self.shared.seats[self.me].waker.set(waker).is_ok();
        assert!(fresh, "a core has one waker");
    }

    /// Queues `value` for core `to`. A full ring gives it back.
    ///
    /// # Panics
    /// If `to` is this core: what stays here needs no mesh.
    pub fn push(&self, to: usize, value: T) -> Result<(), T> {
        self.ring(self.me, to).push(value)
    }

    /// The next value from core `from`, in the order it was pushed there.
    ///
    /// # Panics
    /// If `from` is this core.
    pub fn pop(&self, from: usize) -> Option<T> {
        self.ring(from, self.me).pop()
    }

    /// After a batch of pushes: wakes core `to` if it sleeps. Costs a fence and a load otherwise.
    pub fn wake(&self, to: usize) {
        let seat = &self.shared.seats[to];
        if seat.sleeper.rouse()
            && let Some(waker) = seat.waker.get()
        {
            waker.wake();
        }
    }

    /// Announces that this core is about to sleep, then looks at all incoming rings once more.
    /// `false`: something has arrived, do not sleep. Pair it with [`Port::awake`].
    pub fn sleep(&self) -> bool {
        self.shared.seats[self.me].sleeper.announce(|| self.has_incoming())
    }

    /// This core is up again.
    pub fn awake(&self) {
        self.shared.seats[self.me].sleeper.awake();
    }

    /// Is anything waiting in any incoming ring?
    pub fn has_incoming(&self) -> bool {
        (0..self.shared.shards)
            .filter(|&from| from != self.me)
            .any(|from| !self.ring(from, self.me).is_empty())
    }

    fn ring(&self, from: usize, to: usize) -> &ArrayQueue<T> {
        let shards = self.shared.shards;
        assert!(from < shards && to < shards, "no such core");
        self.shared.rings[from * shards + to].as_ref().expect("a core has no ring to itself")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eventfd::Bells;
    use std::thread;

    #[test]
    fn full_ring_gives_the_value_back() {
        let mesh = Mesh::new(2, 2);
        let (a, b) = (mesh.port(0), mesh.port(1));
        assert_eq!(a.push(1, 'x'), Ok(()));
        assert_eq!(a.push(1, 'y'), Ok(()));
        assert_eq!(a.push(1, 'z'), Err('z'));
        assert_eq!(b.pop(0), Some('x'));
        assert_eq!(a.push(1, 'z'), Ok(()));
        assert_eq!((b.pop(0), b.pop(0), b.pop(0)), (Some('y'), Some('z'), None));
    }

    #[test]
    fn sleep_is_refused_while_something_waits() {
        let mesh = Mesh::new(3, 4);
        let (a, c) = (mesh.port(0), mesh.port(2));
        assert!(c.sleep());
        c.awake();
        a.push(2, ()).unwrap();
        assert!(!c.sleep());
        c.pop(0).unwrap();
        assert!(c.sleep());
    }

    /// A receiver that really sleeps on its bell whenever it may, against two senders.
    #[test]
    fn no_wake_up_is_lost_between_threads() {
        const VALUES: u64 = 20_000;
        let mesh: Mesh<u64> = Mesh::new(3, 16);
        let bells = Arc::new(Bells::new().unwrap());
        let receiver = mesh.port(2);
        receiver.set_waker(Waker::new(Arc::clone(&bells)));

        let senders: Vec<_> = (0..2)
            .map(|me| {
                let port = mesh.port(me);
                thread::spawn(move || {
                    for mut value in 0..VALUES {
                        while let Err(back) = port.push(2, value) {
                            value = back;
                            port.wake(2);
                            thread::yield_now();
                        }
                        port.wake(2);
                    }
                })
            })
            .collect();

        let mut next = [0u64; 2];
        while next != [VALUES; 2] {
            for (from, expected) in next.iter_mut().enumerate() {
                while let Some(value) = receiver.pop(from) {
                    assert_eq!(value, *expected, "out of order");
                    *expected += 1;
                }
            }
            if next != [VALUES; 2] && receiver.sleep() {
                bells.ring.clear(); // a blocking eventfd: waits until somebody rings
                receiver.awake();
            }
        }
        senders.into_iter().for_each(|s| s.join().unwrap());
    }
}
