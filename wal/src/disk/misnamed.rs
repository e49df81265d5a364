//! Segments that stand under each other's [`names`]: a repair reads them by their
//! heads, and gives them their own.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::data_dir::sync_dir;
use super::shard_dir::{ShardDir, segment_name};
use super::sys;
use crate::names;
use crate::segment::{self, HeaderError};

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
    /// The segments whose heads are whole and say that they belong elsewhere. Only
    /// where all of them can be given their names: not one of two that claim the
    /// same place, and none whose place is taken by a file that stays.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn misnamed(&self) -> io::Result<Vec<Misnamed>> {
        let listing = self.list()?;
        let heads = listing.segments.iter().map(|name| (*name, self.head_says(*name)));
        let found = names::misnamed(&heads.collect());
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

    use crate::disk::tests::{filled, options, recover_again, segment_path};
    use crate::disk::{DataDir, RecoverError};

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
