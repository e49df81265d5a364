//! What is wrong with one shard, what is left of it, and what the damage costs.

use std::fmt::Write;

use shard::{KeyHasher, Missing, Placed};
use wal::BLOCK;
use wal::disk::{DataDir, RecoverError};
use wal::recover::Torn;
use wire::id::ShardId;

use crate::inspect::{bytes, count, name, replay};
use crate::kept::Kept;
use crate::progress::Teller;
use crate::read_back::{ends_with, look_back};

/// Lines of one kind that a person is shown.
const LINES_MAX: usize = 20;

/// See the module.
pub(super) struct Finding {
    pub(super) id: ShardId,
    /// Why a start would be refused.
    pub(super) refusal: Option<String>,
    /// What a start would cut off the end of the log.
    pub(super) torn: Option<Torn>,
    pub(super) kept: Kept,
    pub(super) segment_bytes: u64,
}

impl Finding {
    /// Reads the shard back as a start would, and then whatever is left of it.
    /// Changes nothing.
    pub(super) fn look(
        data: &DataDir,
        id: ShardId,
        teller: &mut Teller,
    ) -> Result<Finding, RecoverError> {
        let (refusal, torn) = match Finding::try_start(data, id, teller) {
            Ok(torn) => (None, torn),
            Err(refusal) => (Some(refusal), None),
        };
        let segment_bytes = data.manifest().segment_bytes;
        let kept = Kept::read(data.manifest(), &data.shard(id), id, teller)?;
        Ok(Finding { id, refusal, torn, kept, segment_bytes })
    }

    /// Whether a start succeeds and everything that waits can be delivered.
    pub(super) fn is_healthy(&self) -> bool {
        self.refusal.is_none() && self.kept.misnamed.is_empty() && self.is_whole()
    }

    /// Whether every byte that counts is there.
    fn is_whole(&self) -> bool {
        let found = &self.kept.salvaged;
        self.kept.given_up == 0
            && found.flawed.is_empty()
            && found.missing.is_empty()
            && found.lost.is_empty()
    }

    /// The last segment, if the log ends exactly where it does.
    fn ends_with_last_file(&self) -> Option<u64> {
        let last = self.kept.dir.files().ok()?.segments.last()?.index;
        (self.kept.salvaged.end() == (last + 1) * self.segment_bytes).then_some(last)
    }

    /// What a start would cut now, or why it would be refused: asked again after a
    /// repair.
    pub(super) fn try_start(
        data: &DataDir,
        id: ShardId,
        teller: &mut Teller,
    ) -> Result<Option<Torn>, String> {
        let manifest = data.manifest();
        let hasher = KeyHasher::new(manifest.seed);
        let mut replay = replay(id, manifest.shards, hasher, manifest.segment_bytes);
        look_back(&data.shard(id), id, &mut replay, teller).map(|recovered| recovered.torn)
    }

    /// What waits in segments that are given up.
    pub(super) fn to_copy(&self) -> Vec<Placed> {
        let mut waiting = self.kept.salvage.waiting();
        let is_aside = |it: &Placed| {
            self.kept.salvaged.aside.binary_search(&(it.lsn / self.segment_bytes)).is_ok()
        };
        waiting.retain(is_aside);
        waiting
    }

    /// Whether the log alone is left, and does not lead to the whole state.
    pub(super) fn has_lost_its_state(&self) -> bool {
        self.kept.dir.needs_snapshot() && self.kept.salvaged.snapshot.is_none()
    }

    /// Whether nothing at all is left of the shard, its directory perhaps neither.
    pub(super) fn has_lost_everything(&self) -> bool {
        self.kept.salvaged.snapshot.is_none() && self.kept.salvage.contents().users == 0
    }

    /// Whether there may have been users of whom nothing is left.
    pub(super) fn has_forgotten(&self) -> bool {
        let found = &self.kept.salvaged;
        // Where the log begins, an earlier repair may have said above which numbers all go on.
        let is_begun = found.lost.first().is_none_or(|it| it.lsn >= BLOCK as u64);
        let is_whole = !self.kept.dir.needs_snapshot() && found.lost_before.is_none() && is_begun;
        self.has_lost_everything() || found.snapshot.is_none() && !is_whole
    }

    /// All of it in words.
    pub(super) fn text(&self) -> String {
        let contents = self.kept.salvage.contents();
        let (waiting, users) = (count(contents.waiting_messages), count(contents.users));
        if self.is_healthy() {
            let mut out = format!(
                "Shard {}: healthy, {waiting} messages wait and all of them can be read\n",
                self.id
            );
            if let Some(torn) = &self.torn {
                let _ = writeln!(
                    out,
                    "  {} bytes from position {} on belong to no whole commit, as a crash leaves \
                     them; a start cuts them, and no repair can tell whether the disk had \
                     confirmed them",
                    count(torn.bytes),
                    torn.lsn
                );
            }
            if let Some(last) = self.ends_with_last_file() {
                let _ = writeln!(out, "  But {}", ends_with(last));
            }
            for (path, why) in &self.kept.salvaged.damaged_snapshots {
                let path = path.display();
                let _ = writeln!(
                    out,
                    "  {path} cannot be used: {why}; the next start sets it aside and nothing is \
                     lost"
                );
            }
            return out;
        }
        let mut out = format!("Shard {}: damaged\n", self.id);
        if let Some(refusal) = &self.refusal {
            let _ = writeln!(out, "  a start is refused: {refusal}");
        }
        self.tell_damage(&mut out);
        self.tell_cost(&mut out);
        let _ = writeln!(out, "  What is kept: {waiting} messages that wait, {users} users");
        self.tell_plan(&mut out);
        out
    }

    fn tell_damage(&self, out: &mut String) {
        let found = &self.kept.salvaged;
        out.push_str("  What is damaged:\n");
        let snapshots =
            found.damaged_snapshots.iter().map(|(path, why)| format!("{}: {why}", path.display()));
        let flawed = found.flawed.iter().map(|(path, why)| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            format!(
                "{} {why}",
                path.parent().map_or(path.clone(), |dir| dir.join(&*name)).display()
            )
        });
        let misnamed = self.kept.misnamed.iter().map(|it| {
            let belongs = it.belongs.file_name().unwrap_or_default().to_string_lossy();
            format!("{} is in truth {belongs}: their names were mixed up", it.path.display())
        });
        let missing = found.missing.iter().map(|path| format!("{} is missing", path.display()));
        let before = found.lost_before.iter().map(|lsn| {
            format!("no snapshot can be read, and the log before position {lsn} is not there")
        });
        let lost = found.lost.iter().map(|lost| {
            format!(
                "{} bytes at file offset {} of {} (log position {}) are not what they were, or \
                 cannot be read",
                lost.bytes,
                lost.offset,
                lost.path.display(),
                lost.lsn
            )
        });
        let all = [
            snapshots.collect::<Vec<_>>(),
            flawed.collect(),
            misnamed.collect(),
            missing.collect(),
            before.collect(),
            lost.collect(),
        ];
        for lines in all {
            some_lines(out, lines.len(), lines.into_iter());
        }
    }

    fn tell_cost(&self, out: &mut String) {
        let (places, lost) = self.kept.salvaged.lost_total;
        out.push_str("  What would be lost:\n");
        if self.has_lost_everything() {
            out.push_str("    everything of this shard: its messages, devices and numbers\n");
        }
        let _ = writeln!(
            out,
            "    {} messages that wait and whose bytes are damaged or gone",
            count(self.kept.given_up)
        );
        if self.has_lost_its_state() {
            out.push_str(
                "    what only a snapshot said: devices and acknowledgements from before the number of \
                 shards was changed, and which numbers each sender had used\n",
            );
        }
        if self.has_forgotten() {
            out.push_str(
                "    the numbers of inboxes: where nothing waits they go on far above any that there \
                 can have been, where something does a little above it\n",
            );
        }
        if places > 0 {
            let _ = writeln!(
                out,
                "    whatever {} of log in {places} places said: messages, acknowledgements (their \
                 messages come again), registered devices",
                bytes(lost)
            );
        }
        let missing: Vec<(&[u8], Missing)> = self.kept.salvage.missing().collect();
        let lines = missing.iter().map(|(user, missing)| {
            let mut parts = Vec::new();
            if missing.given_up > 0 {
                parts.push(format!("{} messages", missing.given_up));
            }
            if missing.recognised > 0 {
                parts.push(format!("{} damaged records with its name", missing.recognised));
            }
            if missing.unknown > 0 {
                parts.push(format!(
                    "up to {} numbers that no record tells of",
                    count(missing.unknown)
                ));
            }
            format!("inbox of {}: {}", name(user), parts.join(", "))
        });
        some_lines(out, missing.len(), lines);
    }

    fn tell_plan(&self, out: &mut String) {
        if !self.kept.misnamed.is_empty() {
            let files = count(self.kept.misnamed.len() as u64);
            let _ = writeln!(
                out,
                "  A repair gives {files} segments their names, and then looks again"
            );
            if self.is_whole() {
                return;
            }
        }
        let found = &self.kept.salvaged;
        let copied = self.to_copy();
        let copied_bytes = copied.iter().map(|it| u64::from(it.len)).sum();
        let aside: Vec<String> = found.aside.iter().map(u64::to_string).collect();
        let _ = writeln!(
            out,
            "  A repair copies {} messages ({}) to the end of the log, takes a snapshot there, and moves {} aside",
            count(copied.len() as u64),
            bytes(copied_bytes),
            match aside.len() {
                0 => "the old snapshots".to_owned(),
                1 => format!("segment {} and the old snapshots", aside[0]),
                _ => format!("segments {} and the old snapshots", aside.join(", ")),
            }
        );
    }
}

fn some_lines(out: &mut String, total: usize, lines: impl Iterator<Item = String>) {
    for line in lines.take(LINES_MAX) {
        let _ = writeln!(out, "    {line}");
    }
    if total > LINES_MAX {
        let _ = writeln!(out, "    and {} more of that kind", count((total - LINES_MAX) as u64));
    }
}
