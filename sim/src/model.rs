//! What the records on the disk mean: a second, simpler replay.
//!
//! It is fed with the records of every write when the write is submitted and,
//! after a crash, with what recovery reads. From that the oracle knows at any
//! moment which letter lies where, whether it is durable, and what each inbox
//! must look like after a restart.

use std::collections::{BTreeMap, BTreeSet};

use wal::record::{self, Devices, Message};
use wal::{Lsn, Record};
use wire::id::UserKey;

use crate::ledger::{Kind, Ledger, LetterId};

/// Where a letter, or a number used up, stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// The shard; none when it was written to an earlier layout, all of which
    /// was durable before the next one counted.
    pub(crate) shard: Option<usize>,
    /// The log position behind it: it is durable when the disk is up to here.
    pub(crate) end: Lsn,
    /// Inbox seq, 0 for a number used up.
    pub(crate) inbox_seq: u64,
}

/// One user's inbox as the records say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inbox {
    /// Device and cursor.
    pub(crate) devices: BTreeMap<u64, u64>,
    /// Device and the cursor it began with.
    pub(crate) began: BTreeMap<u64, u64>,
    /// Every letter that has a place here.
    pub(crate) entries: BTreeMap<u64, LetterId>,
    /// Highest inbox seq given out.
    pub(crate) last: u64,
    /// What the v1 device acknowledged one by one.
    pub(crate) acked_by_v1: BTreeSet<u64>,
    /// What has expired and was given up.
    pub(crate) dropped: BTreeSet<u64>,
    /// What could not be read, by the number it had.
    pub(crate) aside: BTreeMap<u64, LetterId>,
    /// What was ever set aside: it may come out of order, and again where nobody
    /// said that it had come.
    pub(crate) ever_aside: BTreeSet<LetterId>,
    /// The numbers under which anything ever stood that was set aside.
    pub(crate) ever_aside_at: BTreeSet<u64>,
    /// Where it says that something came back under this number.
    pub(crate) returned: BTreeMap<u64, Place>,
    /// Who has had an entry under another number.
    had: BTreeSet<(u64, u64)>,
    /// Where the newest copy of each entry in this layout begins and ends.
    places: BTreeMap<u64, (Lsn, Lsn)>,
}

impl Inbox {
    /// Where an entry lies in this layout.
    pub(crate) fn place(&self, seq: u64) -> Option<(Lsn, Lsn)> {
        self.places.get(&seq).copied()
    }

    /// An entry lies there.
    pub(crate) fn put(&mut self, seq: u64, id: LetterId, from: Lsn, to: Lsn) {
        self.entries.insert(seq, id);
        self.places.insert(seq, (from, to));
    }

    /// An entry lies there that could not be read.
    pub(crate) fn put_aside(&mut self, seq: u64, id: LetterId, from: Lsn, to: Lsn) {
        self.aside.insert(seq, id);
        self.ever_aside.insert(id);
        self.ever_aside_at.insert(seq);
        self.places.insert(seq, (from, to));
    }

    /// What a repair does not change of who has had what.
    pub(crate) fn keep_asides_of(&mut self, was: &Inbox) {
        self.ever_aside.extend(&was.ever_aside);
        self.ever_aside_at.extend(&was.ever_aside_at);
        self.had.clone_from(&was.had);
    }

    /// Whether a device has had this entry under another number.
    pub(crate) fn has_had(&self, device: u64, seq: u64) -> bool {
        self.had.contains(&(device, seq))
    }

    /// Whether a device still has to get this entry.
    pub(crate) fn is_due(&self, device: u64, seq: u64) -> bool {
        seq > self.devices[&device]
            && !(device == 0 && self.acked_by_v1.contains(&seq))
            && !self.has_had(device, seq)
    }

    /// The same of any device.
    pub(crate) fn waits_for(&self, device: u64, seq: u64) -> bool {
        self.devices.contains_key(&device) && self.is_due(device, seq)
    }

    /// Entries that some device still has to get, and what is aside.
    pub(crate) fn kept(&self) -> impl Iterator<Item = (u64, LetterId)> {
        self.aside.iter().map(|(seq, id)| (*seq, *id)).chain(self.waiting())
    }

    /// Entries that some device still has to get.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = (u64, LetterId)> {
        let is_waiting = |seq: u64| {
            self.devices.is_empty() || self.devices.keys().any(|device| self.is_due(*device, seq))
        };
        let entries = self.entries.iter().map(|(seq, id)| (*seq, *id));
        entries.filter(move |(seq, _)| !self.dropped.contains(seq) && is_waiting(*seq))
    }
}

/// See the module.
pub(crate) struct Model {
    keys: BTreeMap<u128, u16>,
    /// What earlier layouts said; it stands in no log of this one.
    before: Known,
    known: Known,
    /// Users of whom damage took something.
    scarred: BTreeSet<u16>,
    /// A repair, or a cut, has taken something.
    has_scars: bool,
}

/// What some records say.
#[derive(Clone, Default)]
struct Known {
    inboxes: Vec<Inbox>,
    letters: BTreeMap<LetterId, Place>,
    /// The numbers under which they first came; one that comes back has another.
    came_as: BTreeMap<LetterId, u64>,
    consumed: BTreeMap<(u16, u64, u16, u64), Place>,
}

impl Model {
    /// Empty, for users with these keys.
    pub(crate) fn new(keys: impl Iterator<Item = UserKey>) -> Model {
        let keys: BTreeMap<u128, u16> = keys.enumerate().map(|(n, k)| (k.0, n as u16)).collect();
        let before = Known { inboxes: vec![Inbox::default(); keys.len()], ..Known::default() };
        Model { keys, known: before.clone(), before, scarred: BTreeSet::new(), has_scars: false }
    }

    /// The same users and what earlier layouts said, nothing else: before a
    /// recovery.
    pub(crate) fn forget(&mut self) {
        self.known = self.before.clone();
    }

    /// What a recovery of this layout begins with.
    pub(crate) fn forgotten(&self) -> Model {
        let (keys, before) = (self.keys.clone(), self.before.clone());
        let scarred = self.scarred.clone();
        Model { keys, known: before.clone(), before, scarred, has_scars: self.has_scars }
    }

    /// Damage took something of these users.
    pub(crate) fn scar(&mut self, users: &[u16]) {
        self.scarred.extend(users);
        self.has_scars = true;
    }

    /// Whether it did of anybody.
    pub(crate) fn has_scars(&self) -> bool {
        self.has_scars
    }

    /// Whether it did of this one.
    pub(crate) fn is_scarred(&self, user: u16) -> bool {
        self.scarred.contains(&user)
    }

    /// A repair has left these inboxes, in which these letters wait, of what `was`
    /// said. That stands in no log any more. Which letters are lost.
    pub(crate) fn adopt(
        &mut self,
        inboxes: &BTreeMap<u16, Inbox>,
        waiting: &BTreeSet<LetterId>,
        was: &Model,
    ) -> Vec<LetterId> {
        let mut lost = Vec::new();
        for (user, inbox) in inboxes {
            let old = was.inbox(*user);
            let waited: BTreeSet<LetterId> = old.waiting().map(|(_, id)| id).collect();
            for (seq, id) in &old.entries {
                if waited.contains(id) && !waiting.contains(id) {
                    self.before.letters.remove(id);
                    lost.push(*id);
                } else {
                    let place = Place { shard: None, end: 0, inbox_seq: *seq };
                    self.before.letters.insert(*id, place);
                }
            }
            for id in old.aside.values().filter(|id| !waiting.contains(id)) {
                self.before.letters.remove(id);
                lost.push(*id);
            }
            // What was lost before may be found again, in an older copy.
            for (seq, id) in inbox.entries.iter().chain(&inbox.aside) {
                let place = Place { shard: None, end: 0, inbox_seq: *seq };
                self.before.letters.insert(*id, place);
            }
            self.before.inboxes[usize::from(*user)] = inbox.clone();
        }
        let consumed = was.known.consumed.iter().filter(|(at, _)| inboxes.contains_key(&at.2));
        let consumed = consumed.map(|(at, place)| (*at, Place { shard: None, ..*place }));
        self.before.consumed.extend(consumed);
        lost
    }

    /// Another layout counts. What the one before said was read back from it,
    /// and where its letters lie now the new logs must say.
    pub(crate) fn switch(&mut self) {
        for inbox in &mut self.known.inboxes {
            inbox.places.clear();
            inbox.returned.clear();
        }
        let places = self.known.letters.values_mut().chain(self.known.consumed.values_mut());
        for place in places {
            place.shard = None;
        }
        self.before = self.known.clone();
    }

    /// Letters known of earlier layouts.
    pub(crate) fn letters_before(&self) -> usize {
        self.before.letters.len()
    }

    /// The first letter that waits for one of these users between these
    /// positions.
    pub(crate) fn waits_between(
        &self,
        is_owned: impl Fn(usize) -> bool,
        from: Lsn,
        to: Lsn,
    ) -> Option<LetterId> {
        let inboxes = self.known.inboxes.iter().enumerate().filter(|(user, _)| is_owned(*user));
        let mut inboxes = inboxes.flat_map(|(_, inbox)| {
            let is_there = move |place: (Lsn, Lsn)| (from + 1..=to).contains(&place.1);
            inbox.kept().filter(move |(seq, _)| inbox.place(*seq).is_some_and(is_there))
        });
        inboxes.next().map(|(_, id)| id)
    }

    /// The letters that wait and lie nowhere: whose, and under which number.
    pub(crate) fn nowhere(&self) -> impl Iterator<Item = (u16, u64, LetterId)> {
        (0..).zip(&self.known.inboxes).flat_map(|(user, inbox)| {
            let lost = inbox.kept().filter(|(seq, _)| inbox.place(*seq).is_none());
            lost.map(move |(seq, id)| (user, seq, id))
        })
    }

    /// A user's inbox.
    pub(crate) fn inbox(&self, user: u16) -> &Inbox {
        &self.known.inboxes[usize::from(user)]
    }

    /// Where a letter lies.
    pub(crate) fn letter(&self, id: LetterId) -> Option<Place> {
        self.known.letters.get(&id).copied()
    }

    /// Where it says that a number was used up.
    pub(crate) fn consumed(&self, from: u16, device: u64, to: u16, seq: u64) -> Option<Place> {
        self.known.consumed.get(&(from, device, to, seq)).copied()
    }

    /// The number under which a letter first came, if a log still says so.
    pub(crate) fn came_as(&self, id: LetterId) -> Option<u64> {
        self.known.came_as.get(&id).copied()
    }

    /// Every letter in an inbox.
    pub(crate) fn letters(&self) -> impl Iterator<Item = (LetterId, Place)> {
        self.known.letters.iter().map(|(id, place)| (*id, *place))
    }

    /// Takes the next record of a shard's log.
    ///
    /// # Errors
    /// What no correct server would have written.
    pub(crate) fn take(
        &mut self,
        shard: usize,
        end: Lsn,
        record: &Record<'_>,
        ledger: &Ledger,
    ) -> Result<(), String> {
        let from = end - record::encoded_len(record) as Lsn;
        match *record {
            Record::Message(ref message) => self.message(shard, (from, end), message, ledger),
            Record::Ack { key, device, seq, exact } => {
                let is_scarred = self.user(key).is_some_and(|user| self.is_scarred(user));
                let Some(inbox) = self.by_key(key) else { return Ok(()) };
                if exact {
                    inbox.acked_by_v1.insert(seq);
                }
                if is_scarred {
                    inbox.devices.entry(device).or_default();
                }
                let cursor = inbox.devices.get_mut(&device).ok_or("an ack of no device")?;
                if !exact {
                    *cursor = (*cursor).max(seq);
                }
                Ok(())
            }
            Record::Device { key, device, cursor, .. } => {
                let Some(inbox) = self.by_key(key) else { return Ok(()) };
                inbox.devices.insert(device, cursor);
                inbox.began.insert(device, cursor);
                Ok(())
            }
            Record::Floor { key, seq, .. } => {
                let Some(inbox) = self.by_key(key) else { return Ok(()) };
                inbox.last = inbox.last.max(seq);
                Ok(())
            }
            Record::Consumed { key, from_key, device, send_seq, .. } => {
                let (Some(to), Some(from)) = (self.user(key), self.user(from_key)) else {
                    return Ok(());
                };
                let place = Place { shard: Some(shard), end, inbox_seq: 0 };
                self.known.consumed.insert((from, device, to, send_seq), place);
                Ok(())
            }
            Record::Moved(ref message) => self.moved((from, end), message, ledger),
            Record::Dropped { key, first, last } => self.dropped(key, first, last, ledger),
            Record::Aside { key, seq, had, .. } => {
                let Some(inbox) = self.by_key(key) else { return Ok(()) };
                if !inbox.aside.contains_key(&seq) {
                    let id =
                        inbox.entries.remove(&seq).ok_or("what is set aside stands nowhere")?;
                    inbox.aside.insert(seq, id);
                    inbox.ever_aside.insert(id);
                    inbox.ever_aside_at.insert(seq);
                }
                inbox.had.extend(had.iter().map(|device| (device, seq)));
                Ok(())
            }
            Record::Returned { ref message, from: was, had } => {
                self.returned(shard, (from, end), (message, was, had), ledger)
            }
            Record::Seen { .. } => Ok(()),
        }
    }

    fn message(
        &mut self,
        shard: usize,
        (from, end): (Lsn, Lsn),
        message: &Message<'_>,
        ledger: &Ledger,
    ) -> Result<(), String> {
        let Some(to) = self.user(message.key) else { return Ok(()) };
        let id = ledger.find(message.body).ok_or("a stored body that nobody wrote")?;
        let letter = ledger.get(id);
        let fits = letter.to == to
            && self.user(message.from_key) == Some(letter.from)
            && (message.device, message.send_seq) == (letter.device, letter.seq)
            && message.class == letter.class;
        if !fits {
            return Err(format!("letter {id} was stored as another: {message:?}"));
        }
        let inbox = &mut self.known.inboxes[usize::from(to)];
        if message.inbox_seq <= inbox.last {
            return Err(format!("inbox seq {} given out twice", message.inbox_seq));
        }
        inbox.last = message.inbox_seq;
        inbox.put(message.inbox_seq, id, from, end);
        let place = Place { shard: Some(shard), end, inbox_seq: message.inbox_seq };
        self.known.came_as.entry(id).or_insert(message.inbox_seq);
        match self.known.letters.insert(id, place) {
            Some(_) if self.scarred.contains(&to) => Ok(()),
            Some(first) => {
                let kind = if letter.kind == Kind::Plain { "plain" } else { "numbered" };
                Err(format!("{kind} letter {id} stored twice: {first:?} and {place:?}"))
            }
            None => Ok(()),
        }
    }

    /// What was aside waits again under a new number, or this is a copy of it.
    fn returned(
        &mut self,
        shard: usize,
        (from, end): (Lsn, Lsn),
        (message, from_seq, had): (&Message<'_>, u64, Devices<'_>),
        ledger: &Ledger,
    ) -> Result<(), String> {
        let Some(to) = self.user(message.key) else { return Ok(()) };
        let inbox = &mut self.known.inboxes[usize::from(to)];
        if message.inbox_seq <= inbox.last {
            return self.moved((from, end), message, ledger);
        }
        let id = ledger.find(message.body).ok_or("a returned body that nobody wrote")?;
        let was = inbox.aside.remove(&from_seq);
        if was != Some(id) {
            return Err(format!("letter {id} comes back from where {was:?} was set aside"));
        }
        let seq = message.inbox_seq;
        let is_scarred = self.scarred.contains(&to);
        let forgotten = inbox
            .had
            .iter()
            .find(|(device, at)| *at == from_seq && !had.iter().any(|it| it == *device));
        if let Some((device, _)) = forgotten.filter(|_| !is_scarred) {
            return Err(format!("letter {id} comes back, and device {device} had it"));
        }
        inbox.last = seq;
        inbox.put(seq, id, from, end);
        inbox.had.extend(had.iter().map(|device| (device, seq)));
        inbox.returned.insert(seq, Place { shard: Some(shard), end, inbox_seq: seq });
        // It has been durable since it was stored.
        if let Some(place) = self.known.letters.get_mut(&id) {
            place.inbox_seq = seq;
        }
        Ok(())
    }

    /// A copy stands for the same letter. That letter was durable before.
    fn moved(
        &mut self,
        (from, end): (Lsn, Lsn),
        message: &Message<'_>,
        ledger: &Ledger,
    ) -> Result<(), String> {
        let Some(to) = self.user(message.key) else { return Ok(()) };
        let id = ledger.find(message.body).ok_or("a copied body that nobody wrote")?;
        let inbox = &mut self.known.inboxes[usize::from(to)];
        let seq = &message.inbox_seq;
        match inbox.entries.get(seq).or_else(|| inbox.aside.get(seq)) {
            Some(known) if *known == id => {
                inbox.places.insert(message.inbox_seq, (from, end));
                Ok(())
            }
            known => Err(format!("letter {id} was copied to where {known:?} stands")),
        }
    }

    /// Nobody gets these any more.
    fn dropped(
        &mut self,
        key: UserKey,
        first: u64,
        last: u64,
        ledger: &Ledger,
    ) -> Result<(), String> {
        let Some(inbox) = self.by_key(key) else { return Ok(()) };
        let early =
            inbox.entries.range(first..=last).find(|(_, id)| ledger.get(**id).expiry_s == 0);
        if let Some((seq, id)) = early {
            return Err(format!("letter {id}, inbox seq {seq}, was given up before its time"));
        }
        let mut aside = inbox.aside.range(first..=last);
        let early = aside.find(|(_, id)| ledger.get(**id).expiry_s == 0);
        if let Some((seq, id)) = early {
            return Err(format!("letter {id}, aside as {seq}, was given up before its time"));
        }
        let kept_aside = inbox.aside.extract_if(first..=last, |_, _| true);
        inbox.entries.extend(kept_aside);
        inbox.dropped.extend(inbox.entries.range(first..=last).map(|(seq, _)| *seq));
        Ok(())
    }

    fn user(&self, key: UserKey) -> Option<u16> {
        self.keys.get(&key.0).copied()
    }

    fn by_key(&mut self, key: UserKey) -> Option<&mut Inbox> {
        let user = self.user(key)?;
        Some(&mut self.known.inboxes[usize::from(user)])
    }
}
