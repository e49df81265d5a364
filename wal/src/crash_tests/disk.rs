//! A log and a disk that loses the sectors it is told to.

use crate::record::tests::message;
use crate::salvage::{Piece, Salvage, Survey};
use crate::sector::{Blank, SECTOR};
use crate::{Appended, BLOCK, Damage, Log, LogOptions, LogStart, Record, Scanner, Torn, Write};

pub(super) const SALT: u64 = 0x5a17;

pub(super) fn options() -> LogOptions {
    LogOptions {
        tail_bytes: 8 * BLOCK,
        segment_bytes: 16 * BLOCK as u64,
        commit_bytes_max: 4 * BLOCK,
        writes_in_flight_max: 2,
        pipeline_bytes: 0,
    }
}

/// Segments as a disk holds them, without headers.
#[derive(Default)]
pub(super) struct Disk {
    pub(super) segments: Vec<Vec<u8>>,
    pub(super) blank: Blank,
}

/// What segments were filled with that are judged by it.
pub(super) fn blanks() -> [Blank; 2] {
    [Blank::Zeroes, Blank::of_log(SALT)]
}

impl Disk {
    pub(super) fn on(blank: Blank) -> Disk {
        Disk { blank, ..Disk::default() }
    }

    /// Carries out those sectors of a write for which `lands` says yes.
    pub(super) fn write(
        &mut self,
        write: Write,
        bytes: &[u8],
        mut lands: impl FnMut(usize) -> bool,
    ) {
        let size = options().segment_bytes as usize;
        let (index, at) = (write.lsn as usize / size, write.lsn as usize % size);
        while self.segments.len() <= index {
            let mut segment = vec![0; size];
            self.blank.fill(&mut segment);
            self.segments.push(segment);
        }
        for (n, sector) in bytes.chunks(SECTOR).enumerate() {
            if lands(n) {
                let from = at + n * SECTOR;
                self.segments[index][from..from + SECTOR].copy_from_slice(sector);
            }
        }
    }

    pub(super) fn byte(&mut self, lsn: u64) -> &mut u8 {
        let size = options().segment_bytes;
        &mut self.segments[(lsn / size) as usize][(lsn % size) as usize]
    }

    pub(super) fn recover(&self) -> Result<Recovered, Damage> {
        self.recover_with(Scanner::new(SALT, options(), 0))
    }

    /// Recovers from a checkpoint on, the log durable up to `vouched`.
    pub(super) fn resume(&self, start: LogStart, vouched: u64) -> Result<Recovered, Damage> {
        self.recover_with(Scanner::resume(start, vouched, options()))
    }

    /// What a repair finds: the number of records, the lost ranges, and where the log
    /// ends.
    pub(super) fn salvage(&self) -> (usize, Vec<(u64, u64)>, LogStart) {
        let bytes = options().segment_bytes;
        let mut survey = Survey::new(SALT, 0);
        let bases = || self.segments.iter().zip((0..).step_by(bytes as usize));
        bases().for_each(|(segment, base)| survey.segment(base, segment));
        let mut salvage = Salvage::new(LogStart::fresh(SALT), true, bytes, &survey);
        salvage.blank(self.blank);
        let (mut count, mut lost) = (0, Vec::new());
        for (segment, base) in bases() {
            if salvage.is_over() {
                break;
            }
            salvage.segment(base, segment, &[], &mut |piece| match piece {
                Piece::Record { .. } => count += 1,
                Piece::Lost { from, to, .. } => lost.push((from, to)),
            });
        }
        (count, lost, salvage.end())
    }

    /// Blanks those sectors from a position on for which `lands` says yes.
    pub(super) fn blank_behind(&mut self, end: u64, mut lands: impl FnMut(usize) -> bool) {
        let sectors = self.segments.iter_mut().flat_map(|segment| segment.chunks_mut(SECTOR));
        for (n, sector) in sectors.enumerate().skip(end as usize / SECTOR) {
            if lands(n) {
                self.blank.fill(sector);
            }
        }
    }

    pub(super) fn recover_with(&self, mut scanner: Scanner) -> Result<Recovered, Damage> {
        scanner.blank(self.blank);
        let mut records = Vec::new();
        let first = (scanner.next_base() / options().segment_bytes) as usize;
        for (n, segment) in self.segments.iter().enumerate().skip(first) {
            let base = n as u64 * options().segment_bytes;
            scanner.segment(base, segment, &mut |lsn, len, record| {
                records.push((Appended { lsn, len }, format!("{record:?}")));
            })?;
        }
        let durable = scanner.known_durable();
        let (start, torn) = scanner.finish()?;
        Ok(Recovered { start, torn, records, durable })
    }
}

pub(super) struct Recovered {
    pub(super) start: LogStart,
    pub(super) torn: Option<Torn>,
    /// Where and what, in log order.
    pub(super) records: Vec<(Appended, String)>,
    pub(super) durable: u64,
}

/// A commit of one message of `body` bytes, handed out but not carried out.
pub(super) fn commit(log: &mut Log, fill: u8, body: usize) -> (Write, Vec<u8>) {
    let body = vec![fill; body];
    log.append(&Record::Message(message(&body)), 1).unwrap();
    let write = log.next_write().unwrap();
    (write, log.write_bytes(&write).to_vec())
}

/// A log of `n` commits of one block each, all durable.
pub(super) fn durable_log(n: usize) -> (Log, Disk) {
    durable_log_on(Blank::Unknown, n)
}

pub(super) fn durable_log_on(blank: Blank, n: usize) -> (Log, Disk) {
    let (mut log, mut disk) = (Log::new(options(), LogStart::fresh(SALT)), Disk::on(blank));
    for fill in 0..n {
        let (write, bytes) = commit(&mut log, fill as u8, 500);
        disk.write(write, &bytes, |_| true);
        log.written(write.lsn, true);
    }
    (log, disk)
}
