//! The trouble that one worker makes: connections cut, readers stopped, bytes
//! that drip, connections that stay half open. Seeded, and only while messages
//! are measured; what it costs the users it hits is kept apart from what the
//! others see.

use std::cmp::Reverse;
use std::os::fd::OwnedFd;

use client::{Event, Session};
use wire::id::Class;

use super::{AlarmKind, Phase, Worker};
use crate::chaos::Done;
use crate::clock;
use crate::plan::Rng;
use crate::socket::{self, Ready};
use crate::spec::Spec;
use crate::user::Stage;

/// Set in the tokens of connections that are no user's.
pub(super) const TOKEN: u64 = 1 << 63;
/// Set beside it for those that drip.
const DRIP: u64 = 1 << 62;

/// Between two bytes of a dripping connection.
const DRIP_NS: u64 = 5_000_000;
/// Bytes of a message that drips.
const DRIP_BYTES: usize = 32;
/// Between two half-open connections that are begun.
const HALF_OPEN_NS: u64 = 5_000_000;
/// How long one lives if the server lets it: some outlive a login's time.
const HALF_OPEN_LIFE_NS: (u64, u64) = (100_000_000, 12_000_000_000);
/// How long a reader stops.
const STALL_NS: (u64, u64) = (100_000_000, 2_000_000_000);
/// How often somebody is looked for to whom something can be done.
const PICKS: u32 = 8;
/// What a half-open connection says: nothing, a part of a word, a word and the
/// beginning of a frame, the beginning of a v1 packet.
const HALF_WORDS: [&[u8]; 5] = [b"", b"I", b"IRS", b"IRS2\x00\x00\x00\x40\x01", b"\x02\x00\x05bo"];

/// See the module.
pub(super) struct Imps {
    rng: Rng,
    next_kill_ns: u64,
    next_stall_ns: u64,
    next_drip_ns: u64,
    next_half_open_ns: u64,
    drips: Vec<Drip>,
    half_open: Vec<Option<HalfOpen>>,
    /// They are at it.
    awake: bool,
}

struct Drip {
    session: Session,
    socket: Option<OwnedFd>,
    /// What is still to be said, and how much of it has been.
    words: Vec<u8>,
    said: usize,
    /// Messages given, confirmed and arrived.
    given: u64,
    sent: u64,
    arrived: u64,
}

struct HalfOpen {
    socket: OwnedFd,
    words: &'static [u8],
    until_ns: u64,
}

impl Imps {
    pub(super) fn new(spec: &Spec) -> Imps {
        let drip = |index: u32| Drip {
            session: Session::new(
                format!("lg{:x}-drip-{}-{index}", spec.run, spec.base).as_bytes(),
                1,
                b"",
            ),
            socket: None,
            words: Vec::new(),
            said: 0,
            given: 0,
            sent: 0,
            arrived: 0,
        };
        Imps {
            rng: Rng::new(spec.seed ^ (u64::from(spec.base) << 24) ^ 0x0063_6861_6f73),
            next_kill_ns: 0,
            next_stall_ns: 0,
            next_drip_ns: 0,
            next_half_open_ns: 0,
            drips: (0..spec.chaos.drips).map(drip).collect(),
            half_open: (0..spec.chaos.half_open).map(|_| None).collect(),
            awake: false,
        }
    }

    fn between(&mut self, (from, to): (u64, u64)) -> u64 {
        from + self.rng.below(to - from)
    }
}

impl Worker<'_> {
    fn imps_may(&self, now_ns: u64) -> bool {
        !self.spec.chaos.is_none()
            && match self.phase {
                Phase::Sending => self.window.holds(now_ns),
                Phase::Acting => self.is_in_ordeal(),
                _ => false,
            }
    }

    /// When they have something to do.
    pub(super) fn imps_due_ns(&self, now_ns: u64) -> Option<u64> {
        if self.spec.chaos.is_none() {
            return None;
        }
        if !self.imps.awake {
            return (self.phase == Phase::Sending)
                .then_some(self.window.from_ns)
                .filter(|at| *at > now_ns);
        }
        let chaos = &self.spec.chaos;
        let due = [
            (chaos.kill_ms > 0).then_some(self.imps.next_kill_ns),
            (chaos.stall_ms > 0).then_some(self.imps.next_stall_ns),
            (chaos.drips > 0).then_some(self.imps.next_drip_ns),
            (chaos.half_open > 0).then_some(self.imps.next_half_open_ns),
        ];
        due.into_iter().flatten().min()
    }

    /// Makes the trouble that is due.
    pub(super) fn make_trouble(&mut self, now_ns: u64) {
        if !self.imps_may(now_ns) {
            if std::mem::take(&mut self.imps.awake) {
                self.imps.drips.iter_mut().for_each(|drip| drip.socket = None);
                self.imps.half_open.iter_mut().for_each(|slot| *slot = None);
            }
            return;
        }
        let chaos = &self.spec.chaos;
        let (kill_ns, stall_ns) =
            (u64::from(chaos.kill_ms) * 1_000_000, u64::from(chaos.stall_ms) * 1_000_000);
        if !std::mem::replace(&mut self.imps.awake, true) {
            self.imps.next_kill_ns = now_ns + kill_ns;
            self.imps.next_stall_ns = now_ns + stall_ns;
        }
        if kill_ns > 0 && now_ns >= self.imps.next_kill_ns {
            self.imps.next_kill_ns += kill_ns;
            self.kill(now_ns);
        }
        if stall_ns > 0 && now_ns >= self.imps.next_stall_ns {
            self.imps.next_stall_ns += stall_ns;
            self.stall(now_ns);
        }
        if chaos.drips > 0 && now_ns >= self.imps.next_drip_ns {
            self.imps.next_drip_ns = now_ns + DRIP_NS;
            (0..self.imps.drips.len()).for_each(|index| self.drip(index));
        }
        if chaos.half_open > 0 && now_ns >= self.imps.next_half_open_ns {
            self.imps.next_half_open_ns = now_ns + HALF_OPEN_NS;
            self.half_open(now_ns);
        }
    }

    /// Somebody online who is no witness and who reads.
    fn victim(&mut self) -> Option<u32> {
        let witnesses = self.spec.cast.witnesses;
        let others = self.spec.cast.users() - witnesses;
        (0..PICKS).find_map(|_| {
            let user = witnesses + self.imps.rng.below(u64::from(others.max(1))) as u32;
            let found = self.users.get(user as usize)?;
            (found.stage == Stage::Online && !found.deaf).then_some(user)
        })
    }

    fn kill(&mut self, now_ns: u64) {
        let Some(user) = self.victim() else { return };
        self.figures.chaos.killed += 1;
        self.disturbed[user as usize] = u64::MAX;
        self.hang_up(user, true);
        self.users[user as usize].stage = Stage::Waiting;
        self.dialer.again(user, 0, 0, now_ns);
    }

    fn stall(&mut self, now_ns: u64) {
        let Some(user) = self.victim() else { return };
        self.figures.chaos.stalled += 1;
        self.disturbed[user as usize] = u64::MAX;
        self.users[user as usize].deaf = true;
        let until_ns = now_ns + self.imps.between(STALL_NS);
        self.alarms.push(Reverse((until_ns, user, AlarmKind::Wake)));
    }

    /// Who was hit is there again: what was due before is no measure.
    pub(super) fn recovered(&mut self, user: u32, now_ns: u64) {
        let disturbed = &mut self.disturbed[user as usize];
        if *disturbed == u64::MAX && !self.users[user as usize].deaf {
            *disturbed = now_ns;
        }
    }

    // Connections that are no user's.

    pub(super) fn imp_ready(&mut self, ready: Ready) {
        let index = (ready.token & 0xffff_ffff) as usize;
        if ready.token & DRIP != 0 {
            self.drip_ready(index, ready);
        } else {
            self.half_open_ready(index, ready);
        }
    }

    /// One more byte, on a connection that is begun when there is none.
    fn drip(&mut self, index: usize) {
        let target = self.spec.targets[index % self.spec.targets.len()];
        let drip = &mut self.imps.drips[index];
        let Some(socket) = &drip.socket else {
            let dialed = socket::dial(target, self.spec.from.first().copied());
            let added = dialed.and_then(|socket| {
                self.poller.add(&socket, TOKEN | DRIP | index as u64)?;
                Ok(socket)
            });
            // Without descriptors it is tried again; users have none then either.
            if let Ok(socket) = added {
                drip.words = drip.session.connect();
                drip.said = 0;
                drip.socket = Some(socket);
            }
            return;
        };
        if drip.said == drip.words.len() {
            drip.words.clear();
            drip.said = 0;
            drip.session.take_output(&mut drip.words);
            return;
        }
        // Not connected yet, or not any more: reading tells.
        if let Ok(n) = socket::write(socket, &drip.words[drip.said..=drip.said]) {
            drip.said += n;
            self.figures.chaos.dripped_bytes += n as u64;
        }
    }

    fn drip_ready(&mut self, index: usize, ready: Ready) {
        let now_ms = clock::now_ns() / 1_000_000;
        let drip = &mut self.imps.drips[index];
        loop {
            let Some(socket) = &drip.socket else { return };
            let n = match socket::read(socket, &mut self.chunk) {
                Ok(0) => None,
                Ok(n) => Some(n),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && !ready.ending => {
                    return;
                }
                Err(_) => None,
            };
            let heard =
                n.and_then(|n| drip.hear(now_ms, &self.chunk[..n], &mut self.figures.chaos));
            match heard {
                Some(wrong) => self.figures.errors += wrong,
                None => {
                    drip.socket = None;
                    drip.session.disconnected();
                    self.figures.chaos.drips_lost += 1;
                    return;
                }
            }
        }
    }

    /// One more of them, in a place where there is none or whose time is over.
    fn half_open(&mut self, now_ns: u64) {
        let target = self.spec.targets[0];
        let slots = self.imps.half_open.iter();
        let is_free =
            |slot: &Option<HalfOpen>| slot.as_ref().is_none_or(|it| it.until_ns <= now_ns);
        let Some(index) = slots.into_iter().position(is_free) else { return };
        let dialed = socket::dial(target, self.spec.from.first().copied());
        let added = dialed.and_then(|socket| {
            self.poller.add(&socket, TOKEN | index as u64)?;
            Ok(socket)
        });
        let until_ns = now_ns + self.imps.between(HALF_OPEN_LIFE_NS);
        let words = HALF_WORDS[self.imps.rng.below(HALF_WORDS.len() as u64) as usize];
        match added {
            Ok(socket) => {
                self.figures.chaos.half_opened += 1;
                self.imps.half_open[index] = Some(HalfOpen { socket, words, until_ns });
            }
            Err(_) => self.figures.chaos.half_failed += 1,
        }
    }

    fn half_open_ready(&mut self, index: usize, ready: Ready) {
        let slot = &mut self.imps.half_open[index];
        let Some(half_open) = slot else { return };
        if ready.writable && !half_open.words.is_empty() {
            // What it says is of no weight, nor whether it can.
            let _heard = socket::write(&half_open.socket, half_open.words);
            half_open.words = b"";
        }
        if ready.readable {
            let ended = match socket::read(&half_open.socket, &mut self.chunk) {
                Ok(n) => n == 0,
                Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
            };
            if ended {
                self.figures.chaos.half_closed += 1;
                *slot = None;
            }
        }
    }
}

impl Drip {
    /// Takes what the server says; gives how much of it is wrong, `None` when
    /// the connection must end. One message to itself follows the other.
    fn hear(&mut self, now_ms: u64, bytes: &[u8], done: &mut Done) -> Option<u64> {
        let (given, sent, arrived) = (self.given, &mut self.sent, &mut self.arrived);
        let (mut wrong, mut ack, mut welcome, mut goodbye) = (0, 0, false, false);
        let name = self.session.user().to_vec();
        let result = self.session.receive(now_ms, bytes, |event| match event {
            Event::Welcome(_) => welcome = true,
            Event::Sent { seq, .. } => *sent = seq,
            Event::Deliver { deliver, again: false } => {
                ack = deliver.inbox_seq;
                *arrived += 1;
                wrong += u64::from(*arrived > given || deliver.body != message(*arrived));
            }
            Event::Goaway { .. } => goodbye = true,
            Event::Error { .. } | Event::Refused { .. } | Event::Lost { .. } => wrong += 1,
            _ => {}
        });
        if result.is_err() || goodbye {
            return None;
        }
        self.session.ack(ack);
        let is_done = self.sent == self.given && self.arrived == self.given;
        if is_done && (welcome || self.given > 0) {
            done.dripped_messages += u64::from(self.given > 0 && !welcome);
            self.given += 1;
            let given = self.session.send(&name, &message(self.given), Class::Guaranteed);
            assert_eq!(given, Ok(self.given), "one message at a time fits");
        }
        Some(wrong)
    }
}

/// The dripping message with this number.
fn message(number: u64) -> [u8; DRIP_BYTES] {
    let mut body = [number as u8; DRIP_BYTES];
    body[..8].copy_from_slice(&number.to_be_bytes());
    body
}
