//! Segments that stand under each other's [`names`]: a repair reads them by their
//! heads, and gives them their own.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::data_dir::sync_dir;
use super::shard_dir::{ShardDir, segment_name};
use super::sys;
use crate::commit::{COMMIT_BYTES, Commit};
use crate::segment::{self, HeaderError};
use crate::{BLOCK_LSN, file, names};

/// A segment under the name of another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misnamed {
    /// Where it stands.
    pub path: PathBuf,
    /// Where it belongs.
    pub belongs: PathBuf,
    /// The number in its name.
    pub name: u64,
    /// Its own.
    pub segment: u64,
}

/// So many places without a file are thought of.
const GAPS_MAX: usize = 4096;

/// Which names segments have that do not have their own.
#[derive(Debug, Default)]
pub(super) struct Names(BTreeMap<u64, u64>);

impl Names {
    /// The number in the name of this segment.
    pub(super) fn of(&self, segment: u64) -> u64 {
        self.0.get(&segment).copied().unwrap_or(segment)
    }

    /// The segment with this number in its name.
    pub(super) fn bearer(&self, name: u64) -> u64 {
        let found = self.0.iter().find(|(_, it)| **it == name);
        found.map_or(name, |(segment, _)| *segment)
    }
}

impl ShardDir {
    /// The segments that by their heads belong elsewhere, or by the commit that they
    /// begin with where the head is not whole. Left out are those that cannot be
    /// given their names, see [`names::misnamed`].
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn misnamed(&self) -> io::Result<Vec<Misnamed>> {
        let listing = self.list()?;
        let heads = listing.segments.iter().map(|name| (*name, self.head_says(*name)));
        let mut files: BTreeMap<u64, Option<u64>> = heads.collect();
        // Any place that no head claims can be that of a file without one.
        let claimed: BTreeSet<u64> = files.values().copied().flatten().collect();
        let [first, last] = [files.first_key_value(), files.last_key_value()]
            .map(|it| it.map_or(0, |(name, _)| *name));
        let between = (first..last).take(GAPS_MAX);
        let mut places: BTreeSet<u64> = files.keys().copied().chain(between).collect();
        places.retain(|place| !claimed.contains(place));
        for (name, is) in files.iter_mut().filter(|(_, is)| is.is_none()) {
            *is = self.body_says(*name, &places);
        }
        let found = names::misnamed(&files);
        let misnamed = found.into_iter().map(|(name, segment)| Misnamed {
            path: self.path.join(segment_name(name)),
            belongs: self.path.join(segment_name(segment)),
            name,
            segment,
        });
        Ok(misnamed.collect())
    }

    /// The segment that the head of this file begins, when it is one of this log.
    fn head_says(&self, name: u64) -> Option<u64> {
        match self.head(name)? {
            Ok(()) => Some(name),
            Err(HeaderError::OtherBase(lsn)) if lsn.is_multiple_of(self.segment_bytes) => {
                Some(segment::index(lsn, self.segment_bytes))
            }
            Err(_) => None,
        }
    }

    /// Which of these segments begins with the commit that this file begins with: its
    /// checksum covers its place.
    fn body_says(&self, name: u64, places: &BTreeSet<u64>) -> Option<u64> {
        let mut commit = [0; COMMIT_BYTES];
        let file = file::open(&self.segment_path(name)).ok()?;
        file.read_exact_at(&mut commit, BLOCK_LSN).ok()?;
        let begins = |segment: &u64| {
            Commit::read(&commit, self.salt, segment::base(*segment, self.segment_bytes)).is_ok()
        };
        places.iter().copied().find(begins)
    }

    /// The same directory, read as if each of these had its own name. For reading
    /// only.
    #[must_use]
    pub fn read_by_heads(&self, misnamed: &[Misnamed]) -> ShardDir {
        let names = misnamed.iter().map(|it| (it.segment, it.name)).collect();
        let mut dir = self.clone();
        dir.names = Arc::new(Names(names));
        dir
    }

    /// Gives each of these its name. Interrupted anywhere and done again, it comes
    /// to the same end.
    ///
    /// # Errors
    /// What the system said; a file system may have no way to exchange two names.
    pub fn rename(&self, misnamed: &[Misnamed]) -> io::Result<()> {
        let mut left: BTreeMap<u64, u64> =
            misnamed.iter().map(|it| (it.name, it.segment)).collect();
        while !left.is_empty() {
            self.rename_one(&mut left)?;
        }
        sync_dir(&self.path)
    }

    /// Gives one of these its name; what is left, by name.
    fn rename_one(&self, left: &mut BTreeMap<u64, u64>) -> io::Result<()> {
        let Some((name, segment)) = names::next_exchange(left) else { return Ok(()) };
        let [from, to] = [name, segment].map(|it| self.path.join(segment_name(it)));
        sys::exchange(&from, &to)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::disk::tests::{
        Found, SEGMENT_BYTES, filled, flip, log_options, options, recover_again, segment_path,
        write_out,
    };
    use crate::disk::{DataDir, RecoverError, probe};
    use crate::record::tests::message;
    use crate::{Log, LogStart, Message, Record};

    #[test]
    fn segments_get_their_names_back_whatever_became_of_them() {
        let (dir, start) = filled(250);
        let open = || DataDir::open(dir.path(), options(None)).unwrap().shard(0);
        let whole: Vec<Vec<u8>> =
            (0..3).map(|n| fs::read(segment_path(&dir, n)).unwrap()).collect();
        assert_eq!(open().misnamed().unwrap(), []);
        // Which segment stands under each of the names 0 to 3.
        for names in [[1, 0, 2, 9], [2, 0, 1, 9], [9, 1, 0, 2], [9, 0, 1, 2], [9, 2, 9, 0]] {
            for (name, segment) in names.into_iter().enumerate() {
                let path = segment_path(&dir, name as u64);
                match whole.get(segment) {
                    Some(bytes) => fs::write(path, bytes).unwrap(),
                    None => drop(fs::remove_file(path)),
                }
            }
            let refused = recover_again(&dir).unwrap_err();
            let is_told = matches!(
                refused,
                RecoverError::Header { .. } | RecoverError::MissingSegment { .. }
            );
            assert!(is_told, "{refused}");
            let shard = open();
            let misnamed = shard.misnamed().unwrap();
            let by_heads = shard.read_by_heads(&misnamed);
            let there = names.iter().filter(|segment| **segment < 3);
            let mut expected: Vec<u64> = there.map(|segment| *segment as u64).collect();
            expected.sort_unstable();
            assert_eq!(by_heads.list().unwrap().segments, expected);
            // Interrupted after each of them, and begun again.
            let mut left = misnamed;
            while !left.is_empty() {
                shard
                    .rename_one(&mut left.iter().map(|it| (it.name, it.segment)).collect())
                    .unwrap();
                left = shard.misnamed().unwrap();
            }
            for segment in expected {
                let bytes = fs::read(segment_path(&dir, segment)).unwrap();
                assert!(bytes == whole[segment as usize], "{names:?}: segment {segment}");
            }
        }
        fs::write(segment_path(&dir, 1), &whole[1]).unwrap();
        let (recovered, seqs) = recover_again(&dir).unwrap();
        assert_eq!((recovered.start, seqs.len()), (start, 250));
    }

    /// What the file begins with says where it belongs, too.
    #[test]
    fn a_rotten_head_beside_other_names_costs_nothing() {
        let (dir, start) = filled(250);
        let [first, second] = [0, 1].map(|n| fs::read(segment_path(&dir, n)).unwrap());
        fs::write(segment_path(&dir, 0), &second).unwrap();
        fs::write(segment_path(&dir, 1), &first).unwrap();
        flip(&segment_path(&dir, 0), 20);
        let shard = DataDir::open(dir.path(), options(None)).unwrap().shard(0);
        shard.rename(&shard.misnamed().unwrap()).unwrap();
        assert_eq!(shard.misnamed().unwrap(), []);
        drop(shard);
        flip(&segment_path(&dir, 1), 20);
        let now = [0, 1].map(|n| fs::read(segment_path(&dir, n)).unwrap());
        assert!(now == [first, second]);
        assert_eq!(recover_again(&dir).unwrap().0.start, start);
    }

    #[test]
    fn a_copy_with_a_rotten_head_is_in_nobodys_way() {
        let (dir, start) = filled(250);
        let [first, second] = [0, 1].map(|n| fs::read(segment_path(&dir, n)).unwrap());
        let rename = || {
            let shard = DataDir::open(dir.path(), options(None)).unwrap().shard(0);
            shard.rename(&shard.misnamed().unwrap()).unwrap();
        };
        fs::write(segment_path(&dir, 0), &second).unwrap();
        fs::write(segment_path(&dir, 1), &first).unwrap();
        fs::write(segment_path(&dir, 9), &second).unwrap();
        flip(&segment_path(&dir, 9), 20);
        rename();
        let now = [0, 1].map(|n| fs::read(segment_path(&dir, n)).unwrap());
        assert!(now == [first.clone(), second]);
        // Without another claim it is the segment itself.
        fs::remove_file(segment_path(&dir, 1)).unwrap();
        rename();
        flip(&segment_path(&dir, 1), 20);
        assert_eq!(recover_again(&dir).unwrap().0.start, start);
    }

    /// Nobody looks for what would have to stand before them.
    #[test]
    fn strays_with_huge_numbers_are_given_up_and_nothing_else() {
        let (dir, start) = filled(250);
        let strays = [1 << 32, (1 << 32) + 7];
        fs::copy(segment_path(&dir, 1), segment_path(&dir, strays[0])).unwrap();
        fs::write(segment_path(&dir, strays[1]), b"").unwrap();
        assert!(recover_again(&dir).is_err());
        let shard = DataDir::open(dir.path(), options(None)).unwrap().shard(0);
        let mut into = Found::default();
        let found = shard.salvage(&mut into, &mut |_| {}).unwrap();
        assert_eq!((&found.aside[..], found.fresh.lsn), (&strays[..], start.lsn));
        assert_eq!((found.missing.len(), found.lost_total, found.flawed.len()), (0, (0, 0), 2));
        assert!(found.flawed.iter().all(|(_, why)| !why.is_empty()), "{:?}", found.flawed);
        assert_eq!(into.seqs.len(), 250);
    }

    /// Many dead segments may have been deleted before one that rots.
    #[test]
    fn what_has_a_commit_is_no_stray_however_far_it_is() {
        let (dir, _) = filled(20);
        let shard = DataDir::open(dir.path(), options(None)).unwrap().shard(0);
        let (near, away) = (segment_path(&dir, 0), dir.path().join("away"));
        fs::rename(&near, &away).unwrap();
        let start = LogStart { lsn: 9000 * SEGMENT_BYTES, ..LogStart::fresh(shard.salt) };
        let mut segments = shard.open_segments(start.lsn, probe(dir.path())).unwrap();
        let mut log = Log::new(log_options(), start);
        for inbox_seq in 100..105 {
            let message = Message { inbox_seq, ..message(b"far") };
            log.append(&Record::Message(message), 1).unwrap();
            write_out(&mut log, &mut segments);
        }
        drop(segments);
        fs::rename(&away, &near).unwrap();
        let far = segment_path(&dir, 9000);
        flip(&far, 20);
        flip(&far, 4096 + 20);
        let mut into = Found::default();
        let found = shard.salvage(&mut into, &mut |_| {}).unwrap();
        assert!(found.aside.contains(&9000) && found.fresh.lsn > start.lsn, "{:?}", found.aside);
        assert_eq!(into.seqs[20..], [100, 101, 102, 103, 104]);
    }

    #[test]
    fn where_two_claim_one_place_nothing_is_renamed() {
        let (dir, _) = filled(250);
        let shard = DataDir::open(dir.path(), options(None)).unwrap().shard(0);
        // A copy under another name, and a file of which nobody knows what it is.
        fs::copy(segment_path(&dir, 1), segment_path(&dir, 7)).unwrap();
        assert_eq!(shard.misnamed().unwrap(), []);
        fs::copy(segment_path(&dir, 7), segment_path(&dir, 0)).unwrap();
        fs::write(segment_path(&dir, 1), vec![0; 8192]).unwrap();
        fs::remove_file(segment_path(&dir, 7)).unwrap();
        assert_eq!(shard.misnamed().unwrap(), []);
    }
}
