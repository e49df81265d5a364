//! Parcels and connections between this core and the others.
//!
//! A full ring is answered by keeping what did not fit: one parcel for each
//! core beside the one that its shard is filling, whose room then runs out and
//! blocks the connections that want more.

use std::collections::VecDeque;

use crossbeam::queue::ArrayQueue;
use net::{ConnId, Moved, Port};
use shard::hop::Parcel;
use shard::{Input, Outcome};
use wire::id::ShardId;

use super::Core;
use super::inbound::Speaks;

/// Parcels taken from one other core in one turn.
const PARCELS_PER_TURN: usize = 4;
/// Empty parcels a core keeps for itself. A core that sends more parcels than
/// it gets would allocate each of them anew; what one has too many of goes to
/// the others by [`Shared::empties`](super::Shared).
const SPARES_MAX: usize = 8;

/// What travels between cores.
pub(crate) enum Cargo {
    /// Hops of the shard.
    Parcel(Parcel),
    /// A connection whose login belongs to the other core.
    Conn(Box<Moved>, Speaks),
}

// The plan's memory for the mesh counts with it.
const _: () = assert!(size_of::<Cargo>() <= 128);

/// One core's side of the mesh.
pub(super) struct MeshIo {
    port: Port<Cargo>,
    /// By sender: a parcel that the shard had no room for, and how many of its
    /// hops it has taken.
    unfinished: Vec<Option<(Parcel, usize)>>,
    /// By receiver: a parcel that found the ring full.
    unsent: Vec<Option<Parcel>>,
    /// Connections on their way out, until the kernel lets go of them.
    departing: Vec<(ConnId, ShardId, Speaks)>,
    /// Connections that found the ring full.
    stranded: VecDeque<(ShardId, Cargo)>,
    spares: Vec<Parcel>,
}

impl MeshIo {
    pub(super) fn new(port: Port<Cargo>) -> MeshIo {
        let shards = port.shards();
        MeshIo {
            port,
            unfinished: (0..shards).map(|_| None).collect(),
            unsent: (0..shards).map(|_| None).collect(),
            departing: Vec::new(),
            stranded: VecDeque::new(),
            spares: Vec::new(),
        }
    }

    pub(super) fn expect_departure(&mut self, conn: ConnId, to: ShardId, speaks: Speaks) {
        self.departing.push((conn, to, speaks));
    }

    pub(super) fn forget_departure(&mut self, conn: ConnId) {
        self.departing.retain(|(departing, ..)| *departing != conn);
    }

    fn spare(&mut self, empties: &ArrayQueue<Parcel>) -> Parcel {
        self.spares.pop().or_else(|| empties.pop()).unwrap_or_default()
    }

    fn keep_spare(&mut self, mut parcel: Parcel, empties: &ArrayQueue<Parcel>) {
        parcel.clear();
        if self.spares.len() < SPARES_MAX {
            self.spares.push(parcel);
        } else {
            // More than all cores keep is given back to the allocator.
            let _ = empties.push(parcel);
        }
    }

    /// Announces sleep; `false` when something has arrived meanwhile.
    pub(super) fn sleep(&self) -> bool {
        self.port.sleep()
    }

    pub(super) fn awake(&self) {
        self.port.awake();
    }

    /// Whether something from another core waits for room here. What is behind
    /// it in the ring is no reason to stay awake then.
    pub(super) fn is_stuck(&self) -> bool {
        self.unfinished.iter().any(Option::is_some)
    }

    /// Whether something for another core waits for room there. That core does
    /// not say when it has taken something.
    pub(super) fn is_congested(&self) -> bool {
        !self.stranded.is_empty() || self.unsent.iter().any(Option::is_some)
    }

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let me = self.port.shard();
        (0..self.port.shards()).filter(move |shard| *shard != me)
    }
}

impl Core {
    /// Everything that other cores have sent.
    pub(super) fn take_from_mesh(&mut self) {
        for from in self.mesh.others() {
            for _ in 0..PARCELS_PER_TURN {
                let next = match self.mesh.unfinished[from].take() {
                    Some((parcel, done)) => Some((Cargo::Parcel(parcel), done)),
                    None => self.mesh.port.pop(from).map(|cargo| (cargo, 0)),
                };
                match next {
                    None => break,
                    Some((Cargo::Conn(moved, speaks), _)) => self.arrived(*moved, speaks),
                    Some((Cargo::Parcel(parcel), done)) => {
                        if !self.unpack(from, parcel, done) {
                            break;
                        }
                    }
                }
            }
        }
        self.apply();
    }

    /// Hands a parcel's hops to the shard; `false` when it has no room for the
    /// rest, which is kept.
    fn unpack(&mut self, from: usize, parcel: Parcel, done: usize) -> bool {
        for (at, hop) in parcel.hops.iter().enumerate().skip(done) {
            let input = Input::Hop { from: from as ShardId, hop, bytes: &parcel.bytes };
            if self.shard.handle(self.now, input, &mut self.out) == Outcome::Blocked {
                self.mesh.unfinished[from] = Some((parcel, at));
                return false;
            }
        }
        self.mesh.keep_spare(parcel, &self.shared.empties);
        true
    }

    /// The kernel has let go of a connection: on to its new core.
    pub(super) fn departed(&mut self, conn: ConnId, moved: Box<Moved>) {
        let departing = &mut self.mesh.departing;
        let at = departing
            .iter()
            .position(|(departing, ..)| *departing == conn)
            .expect("every departure was asked for");
        let (_, to, speaks) = departing.swap_remove(at);
        self.mesh.stranded.push_back((to, Cargo::Conn(moved, speaks)));
    }

    /// Pushes everything for other cores and wakes those that sleep, once each.
    pub(super) fn send_to_mesh(&mut self) {
        for _ in 0..self.mesh.stranded.len() {
            let Some((to, cargo)) = self.mesh.stranded.pop_front() else { break };
            match self.mesh.port.push(usize::from(to), cargo) {
                Ok(()) => self.mesh.port.wake(usize::from(to)),
                Err(cargo) => self.mesh.stranded.push_back((to, cargo)),
            }
        }
        for to in self.mesh.others() {
            if self.send_parcel(to) {
                self.mesh.port.wake(to);
            }
        }
    }

    /// Pushes what is ready for one core; whether anything was.
    fn send_parcel(&mut self, to: usize) -> bool {
        let mut pushed = false;
        loop {
            let parcel = match self.mesh.unsent[to].take() {
                Some(parcel) => parcel,
                None if self.shard.has_parcel(to as ShardId) => {
                    let spare = self.mesh.spare(&self.shared.empties);
                    self.shard.take_parcel(to as ShardId, spare)
                }
                None => return pushed,
            };
            match self.mesh.port.push(to, Cargo::Parcel(parcel)) {
                Ok(()) => pushed = true,
                Err(Cargo::Parcel(parcel)) => {
                    self.mesh.unsent[to] = Some(parcel);
                    return pushed;
                }
                Err(Cargo::Conn(..)) => unreachable!("a parcel comes back as one"),
            }
        }
    }
}
