//! The oracle at the server's door: every byte that leaves is read and
//! compared with what is on the disk at this moment.

use wire::id::MessageId;
use wire::v1::{self, Answer};
use wire::v2::{self, Reply};

use crate::ledger::LetterId;
use crate::link::{LinkId, Party, Speaks};
use crate::model::Place;
use crate::plant::Plant;
use crate::world::World;

/// Deliveries handed to a connection that has not drained: a burst, and the
/// message that ends it; twice, because what was sent before may have drained in
/// the turn in which the first one was handed out.
const BURST_BYTES_MAX: usize = 2 * (64 * 1024 + wire::limits::V2_FRAME_BYTES_MAX);

impl World {
    /// Looks at what is sent on a link; returns how many bytes of it are
    /// deliveries.
    pub(crate) fn watch(&mut self, link: LinkId, bytes: &[u8]) -> usize {
        let Party::Device(device) = self.links[link].party else { return 0 };
        let mut deliveries = 0;
        let mut rest = bytes;
        while !rest.is_empty() {
            let len = match self.links[link].speaks {
                Speaks::V2 => self.watch_v2(link, device, rest, &mut deliveries),
                _ => self.watch_v1(link, device, rest, &mut deliveries),
            };
            let Some(len) = len else {
                self.violate("a send that ends inside a frame".into());
                break;
            };
            rest = &rest[len..];
        }
        deliveries
    }

    pub(crate) fn watch_burst(&mut self, link: LinkId) {
        let bytes = self.links[link].undrained_deliveries;
        if bytes > BURST_BYTES_MAX {
            self.violate(format!("{bytes} bytes of deliveries wait in link {link}"));
        }
    }

    fn watch_v2(
        &mut self,
        link: LinkId,
        device: usize,
        bytes: &[u8],
        deliveries: &mut usize,
    ) -> Option<usize> {
        let (reply, len) = v2::decode_reply(bytes).ok()??;
        if self.links[link].is_dismissed {
            self.violate(format!("something leaves after GOAWAY: {reply:?}"));
        }
        self.watch_refused(&reply);
        match reply {
            Reply::Welcome(_) => self.welcomed(link, device),
            Reply::Deliver(deliver) => {
                *deliveries += len;
                self.watch_delivery(link, device, deliver.body);
                self.watch_returned(device, deliver.inbox_seq);
                let it = &mut self.links[link];
                if deliver.inbox_seq <= it.hello_seq.max(it.delivered_seq) {
                    let seq = deliver.inbox_seq;
                    self.violate(format!("inbox seq {seq} goes out again on link {link}"));
                }
                self.links[link].delivered_seq = deliver.inbox_seq;
            }
            Reply::Sent { seq, to, .. } => self.watch_settled(device, seq, to, true),
            Reply::Refused { seq, retry_after_ms: 0, to, .. } => {
                self.watch_settled(device, seq, to, false);
            }
            Reply::Goaway { .. } => {
                let it = &mut self.links[link];
                (it.is_dismissed, it.had_no_room) = (true, it.blocked.is_some());
            }
            _ => {}
        }
        Some(len)
    }

    fn watch_v1(
        &mut self,
        link: LinkId,
        device: usize,
        bytes: &[u8],
        deliveries: &mut usize,
    ) -> Option<usize> {
        let (answer, len) = v1::decode_answer(bytes).ok()??;
        match answer {
            Answer::LoginOk => self.welcomed(link, device),
            Answer::Deliver { id, body } => {
                *deliveries += len;
                self.watch_delivery(link, device, body);
                self.watch_acked(device, id, body);
            }
            _ => {}
        }
        Some(len)
    }

    fn welcomed(&mut self, link: LinkId, device: usize) {
        self.devices[device].welcomed_on = Some(link);
    }

    /// A delivery leaves: on the newest login only, and, guaranteed, only what
    /// is on the disk.
    fn watch_delivery(&mut self, link: LinkId, device: usize, body: &[u8]) {
        if self.devices[device].welcomed_on != Some(link) {
            self.violate(format!("link {link} was replaced and still gets deliveries"));
        }
        let Some(id) = self.ledger.find(body) else {
            return self.violate("a body leaves that nobody wrote".into());
        };
        if self.ledger.get(id).is_guaranteed() && !self.is_durable(self.model.letter(id)) {
            self.too_early("is delivered", id);
        }
    }

    /// What has come back is handed out once the disk says so, and never to a
    /// device that is noted to have it.
    fn watch_returned(&mut self, device: usize, seq: u64) {
        let it = &self.devices[device];
        let (user, id) = (it.user, it.id);
        let inbox = self.model.inbox(user);
        if inbox.has_had(id, seq) && !self.model.is_scarred(user) {
            return self
                .violate(format!("user {user} device {id} has had {seq} and gets it again"));
        }
        let Some(place) = inbox.returned.get(&seq) else { return };
        if !self.is_durable(Some(*place)) {
            self.violate(format!("{seq} of user {user} is back before the disk has it"));
        }
    }

    /// What a v1 device acknowledged never comes again.
    fn watch_acked(&mut self, device: usize, id: MessageId, body: &[u8]) {
        let Some(letter) = self.ledger.find(body) else { return };
        let Some(place) = self.model.letter(letter) else { return };
        let inbox = self.model.inbox(self.devices[device].user);
        let is_acked = inbox.acked_by_v1.contains(&place.inbox_seq)
            || inbox.devices.get(&0).is_some_and(|cursor| place.inbox_seq <= *cursor);
        if is_acked && !self.model.is_scarred(self.devices[device].user) {
            self.violate(format!("letter {letter} ({id}) was acknowledged and returns"));
        }
    }

    /// An answer leaves that settles numbers: all of them up to `seq`, or only
    /// that one.
    fn watch_settled(&mut self, device: usize, seq: u64, to: &[u8], cumulative: bool) {
        let Some(to) = self.names.iter().position(|name| name.as_bytes() == to) else { return };
        let to = to as u16;
        let Some(outbox) = self.devices[device].outboxes.get(&to) else { return };
        let early = outbox.unsettled.iter().find(|(number, id)| {
            let letter = self.ledger.get(*id);
            let is_meant = if cumulative { *number <= seq } else { *number == seq };
            let place = self
                .model
                .letter(*id)
                .or_else(|| self.model.consumed(letter.from, letter.device, letter.to, letter.seq));
            let counts = letter.is_guaranteed() && !letter.refused && !letter.excused;
            is_meant && counts && !self.is_durable(place)
        });
        if let Some((_, id)) = early {
            self.too_early("is called settled", *id);
        }
    }

    fn is_durable(&self, place: Option<Place>) -> bool {
        place.is_some_and(|place| {
            let disk = place.shard.map(|shard| &self.layout.disks[shard]);
            disk.is_none_or(|disk| place.end <= disk.durable())
        })
    }

    fn too_early(&mut self, what: &str, id: LetterId) {
        if self.plant != Plant::EarlyAckUnwatched {
            self.violate(format!("letter {id} {what} and is not on the disk"));
        }
    }
}
