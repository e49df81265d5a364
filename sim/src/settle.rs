//! The oracle at the end: when the faults stop, everything must arrive.

use crate::device::Device;
use crate::world::World;

impl World {
    /// Whether nothing is left to do.
    pub(crate) fn has_settled(&mut self) -> bool {
        self.waiting_for().is_none()
    }

    /// What the world still waits for, in words.
    pub(crate) fn what_waits(&mut self) -> String {
        self.waiting_for().unwrap_or_else(|| "nothing".into())
    }

    fn waiting_for(&mut self) -> Option<String> {
        if self.cores.is_empty() {
            return Some("the server is down".into());
        }
        if let Some(device) = self
            .devices
            .iter()
            .position(|it| !it.is_online || !it.has_said_goodbye || !self.is_settled(it))
        {
            let it = &self.devices[device];
            let unsettled: Vec<_> = it
                .outboxes
                .iter()
                .flat_map(|(to, outbox)| outbox.unsettled.front().map(|first| (*to, *first)))
                .collect();
            return Some(format!(
                "user {} device {}: online {}, link {:?}, unsettled (to, (seq, letter)) {unsettled:?}",
                it.user, it.id, it.is_online, it.link
            ));
        }
        for (shard, core) in self.cores.iter().enumerate() {
            let log = core.brain.log();
            if log.end() > self.layout.disks[shard].durable() {
                return Some(format!("the log of shard {shard}"));
            }
        }
        self.waiting_letter().or_else(|| self.waiting_space())
    }

    /// Whether a device has nothing more to send that anybody can take.
    fn is_settled(&self, device: &Device) -> bool {
        let unsettled = device.outboxes.iter().filter(|(_, outbox)| !outbox.unsettled.is_empty());
        unsettled.into_iter().all(|(to, _)| self.is_full_of_damage(*to))
    }

    /// Whether an inbox has no room for anything but what cannot be read, which
    /// stays until an operator gives it up.
    fn is_full_of_damage(&self, user: u16) -> bool {
        let kept = || self.model.inbox(user).kept();
        kept().count() >= self.knobs.inbox_messages_max
            && kept().all(|(seq, _)| self.is_damaged(user, seq))
    }

    fn waiting_letter(&self) -> Option<String> {
        for user in 0..self.knobs.users {
            let inbox = self.model.inbox(user);
            let mut waiting = inbox.kept().filter(|(_, id)| self.ledger.get(*id).expiry_s == 0);
            if let Some((seq, id)) = waiting.find(|(seq, id)| {
                !self.is_beside_damage(user, *seq, *id) && !self.is_let_go(user, *seq, *id)
            }) {
                return Some(format!("user {user} to get letter {id}, its inbox seq {seq}"));
            }
        }
        let late = self
            .ledger
            .iter()
            .filter(|(id, letter)| letter.must_arrive && self.model.letter(*id).is_none())
            .find(|(_, letter)| !self.is_full_of_damage(letter.to));
        late.map(|(id, _)| format!("letter {id} to be stored"))
    }

    /// Looks back at the whole life.
    pub(crate) fn judge(&mut self) {
        self.check_promises();
        for (id, place) in self.model.letters().collect::<Vec<_>>() {
            let letter = self.ledger.get(id);
            if letter.refused {
                self.violate(format!("letter {id} was refused and is stored"));
                continue;
            }
            if letter.expiry_s > 0 || self.model.is_scarred(letter.to) {
                continue;
            }
            let inbox = self.model.inbox(letter.to);
            // A device that began behind it need not get it when it comes back.
            let came_as = self.model.came_as(id).unwrap_or(place.inbox_seq);
            let missed = self.devices.iter().find(|it| {
                it.user == letter.to
                    && inbox.began.get(&it.id).is_some_and(|began| *began < came_as)
                    && !it.seen.contains(&id)
            });
            if let Some(it) = missed {
                let what = format!(
                    "letter {id} (inbox seq {}) never came to user {} device {}",
                    place.inbox_seq, it.user, it.id
                );
                self.violate(what);
            }
        }
        self.compare_inboxes();
        self.count_cores();
    }
}
