//! What the clients do: connect, write, acknowledge, vanish, come back.

use wire::id::Class;
use wire::{v1, v2};

use crate::device::{Acks, Device};
use crate::ledger::{Kind, Letter, LetterId};
use crate::link::{LinkId, Party, Place};
use crate::world::{Event, World};

const MS: u64 = 1_000_000;
/// Letters a device leaves unsettled with one recipient before it waits.
const UNSETTLED_MAX: usize = 48;
/// Until a device asks again for what has no place on a full disk.
const PATIENCE_NS: u64 = 1_000 * MS;

impl World {
    pub(crate) fn gather_crowd(&mut self) {
        for user in 0..self.knobs.users {
            let count = self.chance.within(1, self.knobs.devices_max);
            for n in 0..count {
                // One v1 device at most: they all have the same number.
                let is_v1 = n == 0 && self.chance.permille(self.knobs.v1_devices);
                let id = if is_v1 { 0 } else { n + 1 };
                let acks = if self.chance.permille(self.knobs.never_acks) {
                    Acks::Never
                } else {
                    self.chance.pick(&[Acks::AtOnce, Acks::NowAndThen])
                };
                let mut device = Device::new(user, id, acks);
                device.offline_until = self.chance.below(self.knobs.run_ns / 4);
                self.devices.push(device);
            }
        }
    }

    pub(crate) fn schedule_wake(&mut self, device: usize) {
        let pause_ns = self.chance.within(MS, self.knobs.wake_ns * 2);
        self.after(pause_ns, Event::Wake { device });
    }

    /// Faults are over: everybody comes, reads and acknowledges.
    pub(crate) fn calm_crowd(&mut self) {
        for device in &mut self.devices {
            device.acks = Acks::AtOnce;
            device.offline_until = 0;
        }
    }

    /// A device does something, or nothing.
    pub(crate) fn wake(&mut self, device: usize) {
        self.schedule_wake(device);
        self.drop_zombie(device);
        let it = &self.devices[device];
        if it.link.is_none() {
            if self.now_ns >= it.offline_until {
                self.connect(device);
            }
            return;
        }
        if self.chance.permille(self.knobs.disconnect) {
            return self.disconnect(device);
        }
        if self.chance.permille(self.knobs.takeover) {
            return self.take_over(device);
        }
        if !self.devices[device].is_online {
            return;
        }
        if self.is_quiet() && self.has_something_aside(device) {
            // Only a login has it tried.
            self.disconnect(device);
            return self.be_patient(device);
        }
        let is_v1 = self.devices[device].is_v1();
        if !is_v1 || !self.is_quiet() || self.is_surely_logged_in(device) {
            self.write_letters(device);
        }
        if !self.devices[device].is_online {
            // It logs in again. What comes right behind a login of v1 would be
            // taken for a part of it.
            return;
        }
        if is_v1 {
            self.wake_v1(device);
        } else {
            self.wake_v2(device);
        }
    }

    /// A full disk has no place for what comes back, and each login takes some.
    fn be_patient(&mut self, device: usize) {
        if self.knobs.reserves && self.is_full() {
            let it = &mut self.devices[device];
            it.offline_until = it.offline_until.max(self.now_ns + PATIENCE_NS);
        }
    }

    /// Whether something that can be read was set aside for this user.
    fn has_something_aside(&self, device: usize) -> bool {
        let user = self.devices[device].user;
        self.knobs.read_fails > 0
            && self
                .model
                .inbox(user)
                .aside
                .iter()
                .any(|(seq, id)| !self.is_beside_damage(user, *seq, *id))
    }

    fn connect(&mut self, device: usize) {
        let link = self.open_link(Party::Device(device));
        let it = &mut self.devices[device];
        it.link = Some(link);
        let name = self.names[usize::from(it.user)].as_bytes();
        let mut bytes = Vec::new();
        if it.is_v1() {
            v1::put_packet(&mut bytes, &v1::Packet::Login { user: name, token: None });
        } else {
            it.window = self.chance.within(1, self.knobs.window_max);
            it.acked = it.cursor;
            self.links[link].hello_seq = it.cursor;
            self.links[link].window_max = it.window;
            bytes.extend_from_slice(v2::PREFACE);
            let hello = v2::Hello {
                version_min: 1,
                version_max: 1,
                capabilities: 0,
                device: it.id,
                last_seq: it.cursor,
                credit: it.window as u32,
                user: name,
                token: b"",
            };
            v2::put_request(&mut bytes, &v2::Request::Hello(hello));
        }
        let (user, id, cursor) = (it.user, it.id, it.cursor);
        self.note("connect: link, user, device, cursor", [link as u64, user.into(), id, cursor]);
        self.write_up(link, bytes, id != 0);
        // v2 may write right behind its HELLO.
        if id != 0 && self.chance.below(2) == 0 {
            self.flush(device);
        }
    }

    /// Bytes on their way to the server, perhaps in pieces.
    pub(crate) fn write_up(&mut self, link: LinkId, bytes: Vec<u8>, splits: bool) {
        if bytes.is_empty() || self.links[link].is_left {
            return;
        }
        let mut rest = &bytes[..];
        while splits && rest.len() > 1 && self.chance.permille(self.knobs.split) {
            let (piece, left) =
                rest.split_at(self.chance.within(1, rest.len() as u64 - 1) as usize);
            self.write_piece(link, piece.to_vec());
            rest = left;
        }
        self.write_piece(link, rest.to_vec());
    }

    fn write_piece(&mut self, link: LinkId, bytes: Vec<u8>) {
        let net_ns = self.chance.latency(self.knobs.net_ns);
        let at = self.links[link].up_at.max(self.now_ns + net_ns);
        self.links[link].up_at = at;
        self.at(at, Event::Up { link, bytes });
    }

    /// The client closes its end. The server may see that much later, and what
    /// was on its way may be lost.
    pub(crate) fn leave(&mut self, link: LinkId, half_open: bool) {
        self.note("leave: link, half open", [link as u64, half_open.into(), 0, 0]);
        self.links[link].is_left = true;
        let net_ns = self.chance.latency(self.knobs.net_ns);
        let at = if half_open {
            self.now_ns + self.chance.within(MS, 3000 * MS)
        } else if self.chance.below(2) == 0 {
            self.now_ns + net_ns // a reset overtakes what was under way
        } else {
            self.links[link].up_at.max(self.now_ns + net_ns)
        };
        self.at(at, Event::Gone { link });
    }

    fn disconnect(&mut self, device: usize) {
        let half_open = self.chance.permille(self.knobs.half_open);
        if let Some(link) = self.devices[device].link {
            self.leave(link, half_open);
        }
        self.devices[device].forget_link();
        let away_ns = if self.chance.permille(self.knobs.long_absence) {
            self.chance.within(0, self.knobs.run_ns)
        } else {
            self.chance.within(0, 50 * MS)
        };
        self.devices[device].offline_until = self.now_ns + away_ns;
    }

    /// Logs in elsewhere, the old connection left as it is; v1 sometimes on
    /// the same connection.
    fn take_over(&mut self, device: usize) {
        let Some(link) = self.devices[device].link else { return };
        if self.devices[device].is_v1() && self.chance.below(2) == 0 {
            if self.devices[device].is_online {
                self.log_in_again(device, link);
            }
            return;
        }
        self.note("take over from: link", [link as u64, 0, 0, 0]);
        self.devices[device].forget_link();
        self.devices[device].zombies.push(link);
        self.connect(device);
    }

    pub(crate) fn log_in_again(&mut self, device: usize, link: LinkId) {
        self.note("log in again: link", [link as u64, 0, 0, 0]);
        self.devices[device].is_online = false;
        let name = self.names[usize::from(self.devices[device].user)].as_bytes();
        let mut bytes = Vec::new();
        v1::put_packet(&mut bytes, &v1::Packet::Login { user: name, token: None });
        self.write_up(link, bytes, false);
    }

    fn drop_zombie(&mut self, device: usize) {
        if !self.devices[device].zombies.is_empty() && self.chance.below(8) == 0 {
            let link = self.devices[device].zombies.remove(0);
            if self.links[link].place != Place::Nowhere {
                self.leave(link, false);
            }
        }
    }

    /// The connection ends under a client.
    pub(crate) fn end(&mut self, link: LinkId) {
        let Party::Device(device) = self.links[link].party else { return };
        self.links[link].is_left = true;
        self.devices[device].zombies.retain(|zombie| *zombie != link);
        if self.devices[device].link == Some(link) {
            self.note("ended: link", [link as u64, 0, 0, 0]);
            self.devices[device].forget_link();
            let pause_ns = self.chance.within(0, 100 * MS);
            self.devices[device].offline_until = self.now_ns + pause_ns;
        }
    }

    /// New letters into the outboxes (v2), or onto the wire (v1).
    fn write_letters(&mut self, device: usize) {
        if self.now_ns < self.devices[device].silent_until {
            return;
        }
        let count = if !self.is_quiet() {
            self.chance.within(0, self.knobs.sends)
        } else {
            // One last letter from everybody, when nothing can stop it.
            u64::from(!std::mem::replace(&mut self.devices[device].has_said_goodbye, true))
        };
        for _ in 0..count {
            let to = self.chance.below(self.knobs.users.into()) as u16;
            if self.devices[device].is_v1() {
                self.write_v1(device, to);
            } else {
                self.write_v2(device, to);
            }
        }
    }

    /// A letter of this device, without its number.
    pub(crate) fn new_letter(&mut self, device: usize, to: u16, kind: Kind) -> Letter {
        let grains = self.chance.below(self.knobs.body_grains + 1) as usize;
        let it = &self.devices[device];
        Letter {
            from: it.user,
            device: it.id,
            to,
            seq: 0,
            kind,
            class: Class::Guaranteed,
            expiry_s: 0,
            bytes: (grains * self.knobs.body_grain).max(8),
            told: false,
            refused: false,
            excused: false,
            must_arrive: self.is_quiet() && self.knobs.inbox_messages_max > 1000,
            id: None,
        }
    }

    fn write_v2(&mut self, device: usize, to: u16) {
        let mut letter = self.new_letter(device, to, Kind::Numbered);
        let outbox = self.devices[device].outboxes.entry(to).or_default();
        if outbox.unsettled.len() >= UNSETTLED_MAX {
            return;
        }
        outbox.last += 1;
        letter.seq = outbox.last;
        if !self.is_quiet() {
            if self.chance.permille(self.knobs.best_effort) {
                letter.class = Class::BestEffort;
            }
            if self.chance.permille(self.knobs.expires) {
                letter.expiry_s = self.chance.within(1, 3) as u32;
            }
            if self.chance.permille(self.knobs.too_large) {
                letter.bytes = wire::limits::BODY_BYTES_MAX + 1;
            }
        }
        let seq = letter.seq;
        let id = self.ledger.write(letter);
        let it = &mut self.devices[device];
        it.written.insert((to, seq), id);
        it.outboxes.entry(to).or_default().unsettled.push_back((seq, id));
    }

    fn wake_v2(&mut self, device: usize) {
        self.flush(device);
        let it = &self.devices[device];
        let acks = match it.acks {
            Acks::AtOnce => !it.owed.is_empty(),
            Acks::NowAndThen => !it.owed.is_empty() && self.chance.below(3) == 0,
            Acks::Never => false,
        };
        if acks {
            self.acknowledge_v2(device);
        }
        self.change_window(device);
    }

    /// Acknowledges everything, or up to somewhere in between.
    pub(crate) fn acknowledge_v2(&mut self, device: usize) {
        let Some(link) = self.devices[device].link else { return };
        let it = &mut self.devices[device];
        let seq = match it.acks {
            Acks::NowAndThen => it.owed[self.chance.below(it.owed.len() as u64) as usize],
            _ => it.cursor,
        };
        it.owed.retain(|owed| *owed > seq);
        if it.owed.is_empty() {
            it.expiring_owed = 0;
        }
        it.acked = it.acked.max(seq);
        self.note("ack: link, seq", [link as u64, seq, 0, 0]);
        self.request(link, &v2::Request::Ack { seq });
    }

    fn change_window(&mut self, device: usize) {
        let wants = self.is_quiet() && self.devices[device].window == 0;
        if !wants && self.chance.below(32) > 0 {
            return;
        }
        let Some(link) = self.devices[device].link else { return };
        let least = u64::from(self.is_quiet());
        let window = self.chance.within(least, self.knobs.window_max);
        self.devices[device].window = window;
        self.links[link].window_max = self.links[link].window_max.max(window);
        self.note("credit: link, window", [link as u64, window, 0, 0]);
        self.request(link, &v2::Request::Credit { window: window as u32 });
        self.request(link, &v2::Request::Ping { nonce: window });
    }

    fn request(&mut self, link: LinkId, request: &v2::Request<'_>) {
        let mut bytes = Vec::new();
        v2::put_request(&mut bytes, request);
        self.write_up(link, bytes, true);
    }

    /// Writes what was not written on this connection, and what must be
    /// written again.
    fn flush(&mut self, device: usize) {
        let recipients: Vec<u16> = self.devices[device].outboxes.keys().copied().collect();
        let mut bytes = Vec::new();
        for to in recipients {
            self.flush_to(device, to, &mut bytes);
        }
        if let Some(link) = self.devices[device].link {
            self.write_up(link, bytes, true);
        }
    }

    fn flush_to(&mut self, device: usize, to: u16, bytes: &mut Vec<u8>) {
        let now_ns = self.now_ns;
        let outbox = self.devices[device].outboxes.get_mut(&to).expect("known recipient");
        let mut expected = u64::MAX;
        match outbox.again {
            Some((at, _)) if at > now_ns => return,
            Some((_, from)) => {
                (outbox.written, outbox.again, expected) = (from - 1, None, from);
            }
            None => {}
        }
        let first = outbox.unsettled.partition_point(|(seq, _)| *seq <= outbox.written);
        let frames: Vec<(u64, LetterId)> = outbox.unsettled.iter().skip(first).copied().collect();
        if let Some((seq, _)) = frames.last() {
            outbox.written = *seq;
        }
        let link = self.devices[device].link.unwrap_or(usize::MAX);
        for (n, (seq, id)) in frames.into_iter().enumerate() {
            // Numbers that were settled and are missed were lost with a crash.
            let skips = n == 0 && expected < seq;
            self.stats.skips += u64::from(skips);
            self.note("send: link, to, seq, letter", [link as u64, to.into(), seq, id.into()]);
            self.put_letter(id, skips, bytes);
        }
    }

    fn put_letter(&mut self, id: LetterId, skips: bool, bytes: &mut Vec<u8>) {
        let letter = self.ledger.get(id);
        let flags = if skips { v2::flag::SKIP } else { 0 };
        let send = v2::Send {
            seq: letter.seq,
            class: letter.class,
            flags: flags | if id.is_multiple_of(3) { v2::flag::WANTS_DELIVERED } else { 0 },
            expiry_s: letter.expiry_s,
            to: self.names[usize::from(letter.to)].as_bytes(),
            body: &self.ledger.body(id),
        };
        v2::put_request(bytes, &v2::Request::Send(send));
    }
}
