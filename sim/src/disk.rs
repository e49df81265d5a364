//! One shard's disk: bytes in sectors, writes in flight, crashes.
//!
//! A completed write is durable, as RWF_DSYNC promises. Of a write in flight
//! at a crash each sector of 512 bytes is the old one, the new one or, on bad
//! disks, garbage. What was cut by a recovery stays where it is: only the
//! log's chain tells that it is stale.

use std::collections::BTreeMap;

use wal::Lsn;

use crate::chance::Chance;

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// How the writes in flight end at a crash.
#[derive(Clone, Copy, Debug)]
enum Tear {
    Nothing,
    Everything,
    /// The first sectors only.
    Prefix,
    /// Each sector by itself.
    Sectors,
}

struct Flight {
    id: u64,
    lsn: Lsn,
    bytes: Vec<u8>,
}

/// See the module.
pub(crate) struct Disk {
    segment_bytes: u64,
    bytes: Vec<u8>,
    flights: Vec<Flight>,
    /// Completed writes beyond a gap: where each begins and ends.
    done: BTreeMap<Lsn, Lsn>,
    durable: Lsn,
}

impl Disk {
    /// An empty disk.
    pub(crate) fn new(segment_bytes: u64) -> Disk {
        Disk {
            segment_bytes,
            bytes: Vec::new(),
            flights: Vec::new(),
            done: BTreeMap::new(),
            durable: 0,
        }
    }

    /// Everything before this position is on the disk for good.
    pub(crate) fn durable(&self) -> Lsn {
        self.durable
    }

    /// Takes a write; nothing of it is on the disk yet.
    pub(crate) fn submit(&mut self, id: u64, lsn: Lsn, bytes: &[u8]) {
        let end = lsn as usize + bytes.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.flights.push(Flight { id, lsn, bytes: bytes.to_vec() });
    }

    /// The write reaches the disk.
    pub(crate) fn complete(&mut self, id: u64) {
        let flight = self.land(id);
        let at = flight.lsn as usize;
        self.bytes[at..at + flight.bytes.len()].copy_from_slice(&flight.bytes);
        self.done.insert(flight.lsn, flight.lsn + flight.bytes.len() as Lsn);
        while let Some(end) = self.done.remove(&self.durable) {
            self.durable = end;
        }
    }

    /// The write fails; what it leaves behind is anything.
    pub(crate) fn fail(&mut self, id: u64, chance: &mut Chance, garbage_permille: u32) {
        let flight = self.land(id);
        self.tear(&flight, Tear::Sectors, chance, garbage_permille);
    }

    /// The process or the machine dies.
    pub(crate) fn crash(&mut self, chance: &mut Chance, garbage_permille: u32) {
        let tears = [Tear::Nothing, Tear::Everything, Tear::Prefix, Tear::Sectors];
        for flight in std::mem::take(&mut self.flights) {
            let tear = chance.pick(&tears);
            self.tear(&flight, tear, chance, garbage_permille);
        }
        self.done.clear();
    }

    /// Recovery found the end of the log here, and the boot flushed the disk.
    pub(crate) fn recovered(&mut self, end: Lsn) {
        self.durable = end;
    }

    /// What a read of `len` bytes gives; it ends where the segment does.
    pub(crate) fn read(&self, lsn: Lsn, len: usize) -> &[u8] {
        let segment_end = (lsn / self.segment_bytes + 1) * self.segment_bytes;
        let end = (lsn + len as Lsn).min(segment_end).min(self.bytes.len() as Lsn);
        &self.bytes[lsn as usize..end as usize]
    }

    /// The segments as recovery reads them: base and bytes.
    pub(crate) fn segments(&self) -> impl Iterator<Item = (Lsn, &[u8])> {
        let size = self.segment_bytes as usize;
        self.bytes.chunks(size).enumerate().map(move |(n, bytes)| ((n * size) as Lsn, bytes))
    }

    /// The bytes of one record.
    pub(crate) fn record(&self, lsn: Lsn, len: u32) -> &[u8] {
        &self.bytes[lsn as usize..lsn as usize + len as usize]
    }

    fn land(&mut self, id: u64) -> Flight {
        let at = self.flights.iter().position(|flight| flight.id == id);
        self.flights.swap_remove(at.expect("a write lands once"))
    }

    fn tear(&mut self, flight: &Flight, tear: Tear, chance: &mut Chance, garbage_permille: u32) {
        let sectors = (flight.bytes.len() / SECTOR) as u64;
        let kept = chance.below(sectors + 1);
        for (n, sector) in flight.bytes.chunks(SECTOR).enumerate() {
            let lands = match tear {
                Tear::Nothing => false,
                Tear::Everything => true,
                Tear::Prefix => (n as u64) < kept,
                Tear::Sectors => chance.below(2) == 0,
            };
            let at = flight.lsn as usize + n * SECTOR;
            let place = &mut self.bytes[at..at + SECTOR];
            if chance.permille(garbage_permille) {
                place.fill_with(|| chance.bits() as u8);
            } else if lands {
                place.copy_from_slice(sector);
            }
        }
    }
}
