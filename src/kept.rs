//! What a repair keeps of one shard, whatever happened to its files: the newest
//! whole snapshot and every valid record since, without the messages that cannot
//! be read. An inspection shows it where a start is refused.
//!
//! Changes nothing.

use shard::{KeyHasher, Salvage};
use wal::Restore;
use wal::disk::{Misnamed, Records, RecoverError, Salvaged, ShardDir};
use wal::manifest::Manifest;
use wal::record::Record;
use wire::id::ShardId;

use crate::inspect::{count, options};
use crate::progress::Teller;

/// See the module.
pub(crate) struct Kept {
    /// Segments under each other's names. Everything else is told as if each had
    /// its own.
    pub(crate) misnamed: Vec<Misnamed>,
    /// Reads them by their heads.
    pub(crate) dir: ShardDir,
    pub(crate) salvaged: Salvaged,
    pub(crate) salvage: Salvage,
    /// Messages that waited and cannot be read.
    pub(crate) given_up: u64,
}

impl Kept {
    /// Looks at every byte of every segment.
    ///
    /// # Errors
    /// When the directory cannot be read, or is not for this version to judge.
    pub(crate) fn read(
        manifest: &Manifest,
        dir: &ShardDir,
        id: ShardId,
        teller: &mut Teller,
    ) -> Result<Kept, RecoverError> {
        let misnamed = dir.misnamed().unwrap_or_default();
        let dir = dir.read_by_heads(&misnamed);
        let hasher = KeyHasher::new(manifest.seed);
        let options = options(id, manifest.shards);
        let mut salvage = Salvage::new(options, hasher, manifest.segment_bytes);
        let salvaged = dir.salvage(&mut salvage, &mut |at| teller.reading(id, at))?;
        let mut kept = Kept { misnamed, dir, salvaged, salvage, given_up: 0 };
        kept.give_up_unreadable(id, teller);
        Ok(kept)
    }

    /// Whatever waits must be there.
    fn give_up_unreadable(&mut self, id: ShardId, teller: &mut Teller) {
        let mut records = Records::new(&self.dir);
        let waiting = self.salvage.waiting();
        let total = waiting.len() as u64;
        for (done, placed) in waiting.into_iter().enumerate() {
            teller.tell(|| {
                let (done, total) = (count(done as u64), count(total));
                format!("shard {id}: looked at {done} of {total} messages that wait")
            });
            let found = records.get(placed.lsn, placed.len);
            let message = found.as_ref().and_then(Record::message);
            let is_there = message.is_some_and(|message| self.salvage.is_it(&placed, message));
            if !is_there {
                self.salvage.give_up(&placed);
                self.given_up += 1;
            }
        }
    }

    /// What waits in each segment, by the number in the name of its file: bytes
    /// and messages.
    pub(crate) fn live(&self) -> Vec<(u64, u64, u64)> {
        let mut live = self.salvage.needed();
        for (index, ..) in &mut live {
            let bearer = self.misnamed.iter().find(|it| it.segment == *index);
            *index = bearer.map_or(*index, |it| it.name);
        }
        live
    }
}
