//! How a version of the server fills the segments that it makes, and the day on
//! which another version is started on what the one before it has left: its
//! segments stay as they are, those that are made from then on are filled anew.

use wal::sector::Blank;

use crate::knobs::{PATTERN_FROM, ZERO_FROM};
use crate::world::World;

/// The ways so far, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Filling {
    /// With zeroes, and what a torn tail has left stays.
    Unknown,
    /// A start makes zeroes of that.
    Zeroes,
    /// With a pattern, which it puts back.
    Pattern,
}

impl Filling {
    /// That of a world whose server stays what it is.
    pub(crate) fn of_seed(seed: u64) -> Filling {
        match seed.is_multiple_of(2) {
            true => Filling::Unknown,
            false if seed >= PATTERN_FROM => Filling::Pattern,
            false if seed >= ZERO_FROM => Filling::Zeroes,
            false => Filling::Unknown,
        }
    }

    /// What stands where nothing was written, in the log with this salt.
    pub(crate) fn blank(self, salt: u64) -> Blank {
        match self {
            Filling::Unknown => Blank::Unknown,
            Filling::Zeroes => Blank::Zeroes,
            Filling::Pattern => Blank::of_log(salt),
        }
    }
}

impl World {
    /// Now and then this start is the first one of a later version.
    pub(crate) fn upgrade(&mut self) {
        let is_first = self.life == 1;
        if is_first || !self.version_chance.permille(self.knobs.upgrade) {
            return;
        }
        let later = [Filling::Zeroes, Filling::Pattern].into_iter().filter(|it| *it > self.filling);
        let later: Vec<Filling> = later.collect();
        if later.is_empty() {
            return;
        }
        self.filling = self.version_chance.pick(&later);
        self.stats.upgrades += 1;
        self.note("upgrade: filling", [self.filling as u64, 0, 0, 0]);
        let salts = self.layout.salts.iter();
        for (disk, salt) in self.layout.disks.iter_mut().zip(salts) {
            disk.fill_from_now_on(self.filling.blank(*salt));
        }
    }
}
