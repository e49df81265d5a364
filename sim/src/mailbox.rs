//! What reaches the clients, and what they make of it: the oracle at the
//! receiving end.

use wire::id::{Class, MessageId};
use wire::v2::{self, Reply};
use wire::{refuse, v1};

use crate::device::Acks;
use crate::ledger::{Kind, LetterId};
use crate::link::{LinkId, Party};
use crate::world::World;

/// Repairs without any snapshot or the whole log after which numbers may come
/// again.
const FORGOTTEN_TWICE: u64 = 2;

impl World {
    /// Bytes arrive at a client.
    pub(crate) fn down(&mut self, link: LinkId, bytes: &[u8]) {
        let it = &self.links[link];
        let Party::Device(device) = it.party else { return };
        // What comes on an abandoned connection is not looked at.
        if it.is_cut || it.is_left || self.devices[device].link != Some(link) {
            return;
        }
        let mut partial = std::mem::take(&mut self.devices[device].partial);
        partial.extend_from_slice(bytes);
        let mut used = 0;
        while self.devices[device].link == Some(link) {
            let taken = if self.devices[device].is_v1() {
                self.take_v1(device, link, &partial[used..])
            } else {
                self.take_v2(device, link, &partial[used..])
            };
            let Some(len) = taken else { break };
            used += len;
        }
        partial.drain(..used);
        if self.devices[device].link == Some(link) {
            self.devices[device].partial = partial;
        }
    }

    fn take_v1(&mut self, device: usize, link: LinkId, bytes: &[u8]) -> Option<usize> {
        match v1::decode_answer(bytes) {
            Ok(None) => None,
            Ok(Some((answer, len))) => {
                self.answer(device, link, &answer);
                Some(len)
            }
            Err(()) => {
                self.violate("bytes that are no answer of v1".into());
                None
            }
        }
    }

    fn take_v2(&mut self, device: usize, link: LinkId, bytes: &[u8]) -> Option<usize> {
        match v2::decode_reply(bytes) {
            Ok(None) => None,
            Ok(Some((reply, len))) => {
                self.reply(device, link, &reply);
                Some(len)
            }
            Err(wrong) => {
                self.violate(format!("bytes that are no reply of v2: {wrong:?}"));
                None
            }
        }
    }

    fn reply(&mut self, device: usize, link: LinkId, reply: &Reply<'_>) {
        match *reply {
            Reply::Welcome(_) => self.devices[device].is_online = true,
            Reply::Sent { seq, to, .. } => self.sent(device, link, seq, to),
            Reply::Gap { expected, to } => self.gap(device, link, expected, to),
            Reply::Refused { seq, code, retry_after_ms, to } => {
                self.refused(device, link, seq, code, retry_after_ms, to);
            }
            Reply::Deliver(ref deliver) => self.delivered(device, link, deliver),
            Reply::Delivered { seq, id, to } => self.was_delivered(device, seq, id, to),
            Reply::Goaway { code, reconnect_after_ms, .. } => {
                self.goaway(device, link, code, reconnect_after_ms);
            }
            Reply::Pong { .. } => {}
            Reply::Error { code, .. } => {
                self.violate(format!("a correct client was told error {code}"));
            }
        }
    }

    fn user_named(&mut self, name: &[u8]) -> u16 {
        match self.names.iter().position(|known| known.as_bytes() == name) {
            Some(user) => user as u16,
            None => {
                self.violate(format!("a reply about nobody: {name:?}"));
                0
            }
        }
    }

    fn sent(&mut self, device: usize, link: LinkId, seq: u64, to: &[u8]) {
        let to = self.user_named(to);
        self.note("sent: link, to, seq", [link as u64, to.into(), seq, 0]);
        let outbox = self.devices[device].outboxes.entry(to).or_default();
        for (_, id) in outbox.settle(seq) {
            let letter = self.ledger.get_mut(id);
            letter.told = true;
            if letter.is_too_large() && !letter.refused {
                self.violate(format!("letter {id} cannot be stored and was SENT"));
            }
        }
    }

    fn gap(&mut self, device: usize, link: LinkId, expected: u64, to: &[u8]) {
        let to = self.user_named(to);
        self.note("gap: link, to, expected", [link as u64, to.into(), expected, 0]);
        self.check_gap(device, to, expected);
        let quiet_ns = self.now_ns + 40 * (self.knobs.net_ns + self.knobs.mesh_ns);
        let now_ns = self.now_ns;
        let outbox = self.devices[device].outboxes.entry(to).or_default();
        let is_repetition = outbox.gap.0 == expected && outbox.gap.1 > now_ns;
        let is_coming = outbox.again.is_some_and(|(_, from)| from <= expected);
        if !is_repetition && !is_coming {
            outbox.gap = (expected, quiet_ns);
            outbox.again = Some((now_ns, expected));
        }
    }

    /// The server may only miss what it was allowed to lose.
    fn check_gap(&mut self, device: usize, to: u16, expected: u64) {
        let it = &self.devices[device];
        let promised = it.written.range((to, expected)..=(to, u64::MAX)).find(|(_, id)| {
            let letter = self.ledger.get(**id);
            let is_settled = (letter.told || letter.refused) && letter.is_guaranteed();
            is_settled && !self.model.is_scarred(to)
        });
        if let Some(((_, seq), id)) = promised {
            self.violate(format!("number {seq} (letter {id}) was settled and is missed"));
        }
    }

    fn refused(
        &mut self,
        device: usize,
        link: LinkId,
        seq: u64,
        code: u16,
        retry_ms: u32,
        to: &[u8],
    ) {
        let to = self.user_named(to);
        self.note("refused: link, to, seq, code", [link as u64, to.into(), seq, code.into()]);
        let now_ns = self.now_ns;
        let outbox = self.devices[device].outboxes.entry(to).or_default();
        if retry_ms > 0 {
            let at = now_ns + u64::from(retry_ms) * 1_000_000;
            if outbox.again.is_none_or(|(_, from)| from >= seq) {
                outbox.again = Some((at, seq));
            }
            return;
        }
        let Some(at) = outbox.unsettled.iter().position(|(number, _)| *number == seq) else {
            return;
        };
        let (_, id) = outbox.unsettled.remove(at).expect("found above");
        let letter = self.ledger.get_mut(id);
        letter.refused = true;
        if !letter.is_too_large() {
            let code = refuse::Code::from_u16(code);
            self.violate(format!("letter {id} is refused for good: {code:?}"));
        }
    }

    fn goaway(&mut self, device: usize, link: LinkId, code: u16, wait_ms: u32) {
        use refuse::Code::{
            BadCursor, Busy, Draining, RateLimited, Replaced, StorageFailed, StorageFull,
        };
        self.note("goaway: link, code", [link as u64, code.into(), 0, 0]);
        let code = refuse::Code::from_u16(code);
        let is_put_off = code == Some(RateLimited) && self.knobs.logins_per_second > 0;
        // There was no room for its login until the time for that was over.
        let had_no_room = matches!(code, Some(Busy | StorageFull))
            && self.links[link].had_no_room
            && self.devices[device].welcomed_on != Some(link);
        // Two repairs of which nobody knows what there was before, see DURABILITY.
        let is_scarred = self.model.is_scarred(self.devices[device].user);
        let starts_over =
            code == Some(BadCursor) && is_scarred && self.stats.forgotten >= FORGOTTEN_TWICE;
        if starts_over {
            self.devices[device].cursor = 0;
            self.stats.started_over += 1;
        } else if !is_put_off
            && !had_no_room
            && !matches!(code, Some(Draining | Replaced | StorageFailed))
        {
            self.violate(format!("a correct client must go: {code:?}"));
        }
        // Of two connections on their way to the owner the older may arrive
        // last; without another one nobody can have replaced this.
        let life = self.links[link].life;
        let is_alone = !self.links.iter().enumerate().any(|(other, it)| {
            other != link && it.party == Party::Device(device) && it.life == life
        });
        if code == Some(Replaced) && is_alone {
            self.violate("the only login was replaced".into());
        }
        self.leave(link, false);
        self.devices[device].forget_link();
        let mut pause_ns = self.chance.within(0, 100_000_000);
        if is_put_off {
            pause_ns += u64::from(wait_ms) * 1_000_000;
        }
        self.devices[device].offline_until = self.now_ns + pause_ns;
    }

    fn delivered(&mut self, device: usize, link: LinkId, deliver: &v2::Deliver<'_>) {
        let seq = deliver.inbox_seq;
        let Some(letter) = self.ledger.find(deliver.body) else {
            return self.violate("a delivered body that nobody wrote".into());
        };
        self.note("delivered: link, seq, letter", [link as u64, seq, letter.into(), 0]);
        let from = self.user_named(deliver.from);
        self.check_number(device, seq, letter);
        let written = self.ledger.get(letter);
        if (from, deliver.from_device, deliver.send_seq)
            != (written.from, written.device, written.seq)
        {
            self.violate(format!("letter {letter} came as another: {deliver:?}"));
        }
        let expires = self.ledger.get(letter).expiry_s > 0;
        let it = &mut self.devices[device];
        it.owed.push_back(seq);
        it.cursor = it.cursor.max(seq);
        // What expires on the way takes up no window any more.
        it.expiring_owed += u64::from(expires);
        // Nor does what another device has found unreadable.
        let passed = &self.model.inbox(it.user).ever_aside_at;
        let owed = it.owed.iter().filter(|seq| !passed.contains(seq)).count() as u64;
        let owed = owed.saturating_sub(it.expiring_owed);
        if owed > self.links[link].window_max {
            self.violate(format!("{owed} deliveries are beyond the window"));
        }
        self.came_on_this_login(device, letter);
        self.receive(device, letter, deliver.id);
        if self.devices[device].acks == Acks::AtOnce && self.chance.below(2) == 0 {
            self.acknowledge_v2(device);
        }
    }

    /// A number that was shown stands for the same letter for ever, whatever a
    /// crash took and however many shards there are: devices compare nothing else.
    fn check_number(&mut self, device: usize, seq: u64, letter: LetterId) {
        let user = self.devices[device].user;
        let first = *self.shown.entry((user, seq)).or_insert(letter);
        if first != letter {
            self.violate(format!("inbox seq {seq} of user {user} is letter {first} and {letter}"));
        }
    }

    /// Only a repair may have left two copies of it in the inbox.
    pub(crate) fn came_on_this_login(&mut self, device: usize, letter: LetterId) {
        let it = &mut self.devices[device];
        if !it.since_login.insert(letter) && !self.model.is_scarred(it.user) {
            self.violate(format!("letter {letter} came twice on one login"));
        }
    }

    /// What both protocols promise of a delivery.
    pub(crate) fn receive(&mut self, device: usize, letter: LetterId, id: MessageId) {
        self.stats.deliveries += 1;
        let it = &mut self.devices[device];
        let written = self.ledger.get_mut(letter);
        if written.to != it.user {
            return self.violate(format!("letter {letter} came to the wrong user"));
        }
        let was_aside = self.model.inbox(it.user).ever_aside.contains(&letter);
        // Damage takes acknowledgements and numbers, too.
        let is_lossy = written.class == Class::BestEffort || self.model.is_scarred(it.user);
        if !it.seen.insert(letter) {
            // The same copy may come again until it is acknowledged. A crash
            // may have taken a best-effort one from the server, not from here.
            if it.id != 0 && !is_lossy && !was_aside {
                self.violate(format!("letter {letter} came twice to one device"));
            } else if written.id != Some(id) && !is_lossy {
                self.violate(format!("letter {letter} was stored twice"));
            }
            return;
        }
        if written.id.is_some_and(|first| first != id) && !is_lossy {
            return self.violate(format!("letter {letter} has two ids"));
        }
        written.id = Some(id);
        let order = if written.kind == Kind::Plain { u64::from(letter) + 1 } else { written.seq };
        // One that expires may be passed over, and come after all when the clock
        // has jumped back.
        let is_scarred = self.model.is_scarred(it.user);
        if written.expiry_s > 0 || is_scarred || was_aside {
            return;
        }
        let sender = (written.from, written.device, written.kind);
        let last = it.last_from.entry(sender).or_default();
        if order <= *last {
            let last = *last;
            return self.violate(format!("letter {letter} came after number {last}"));
        }
        *last = order;
        self.check_id(device, letter, id);
    }

    /// Ids of one inbox increase. Of what a crash may take nothing is asked.
    fn check_id(&mut self, device: usize, letter: LetterId, id: MessageId) {
        if self.ledger.get(letter).class == Class::BestEffort {
            return;
        }
        let it = &mut self.devices[device];
        if it.last_id.is_some_and(|last| last >= id) {
            return self.violate(format!("letter {letter} has an id below the one before"));
        }
        it.last_id = Some(id);
    }

    fn was_delivered(&mut self, device: usize, seq: u64, id: MessageId, to: &[u8]) {
        let to = self.user_named(to);
        let letter = self.devices[device].written.get(&(to, seq)).copied();
        let has = letter.is_some_and(|letter| {
            let has = |it: &crate::device::Device| it.user == to && it.seen.contains(&letter);
            self.devices.iter().any(has)
        });
        if !has && !self.model.is_scarred(to) {
            self.violate(format!("number {seq} ({id}) is DELIVERED to nobody"));
        }
    }
}
