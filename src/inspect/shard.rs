//! One shard of a data directory: its files, its log, how much waits.

use std::fmt::Write;
use std::io;

use ::shard::{Contents, Replay};
use serde::Serialize;
use wal::Restore;
use wal::disk::{Files, Recovered, SegmentFile, ShardDir, SnapshotSeen};
use wal::recover::Torn;
use wire::id::ShardId;

use super::{Look, bytes, count, table};
use crate::kept::Kept;
use crate::progress::Teller;
use crate::read_back::look_back;

/// What is there of one shard.
#[derive(Debug, Serialize)]
pub(super) struct ShardReport {
    shard: ShardId,
    directory: String,
    /// Why a start would be refused.
    refusal: Option<String>,
    log: Option<LogReport>,
    holds: Option<HoldsReport>,
    /// Where a start would be refused and no server is at work: what a repair
    /// would keep.
    repair_keeps: Option<HoldsReport>,
    /// Why that is not known, when it was looked for.
    repair_keeps_unknown: Option<String>,
    segments: Vec<SegmentReport>,
    snapshots: Vec<SnapshotReport>,
    set_aside: Vec<String>,
    unfinished: Vec<String>,
    foreign: Vec<String>,
}

#[derive(Debug, Serialize)]
struct LogReport {
    /// Where the next commit would begin.
    end: u64,
    commits: u64,
    /// Log bytes that a start reads.
    replayed_bytes: u64,
    /// What stands before this position was not read, as a start would not: it
    /// may be damaged all the same.
    unchecked_below: Option<u64>,
    torn: Option<TornReport>,
}

/// What a start would cut.
#[derive(Debug, Serialize)]
pub(crate) struct TornReport {
    position: u64,
    bytes: u64,
}

impl TornReport {
    pub(crate) fn new(torn: &Torn) -> TornReport {
        TornReport { position: torn.lsn, bytes: torn.bytes }
    }
}

#[derive(Debug, Serialize)]
struct HoldsReport {
    users: u64,
    devices: u64,
    waiting_messages: u64,
    waiting_bytes: u64,
    pairs: u64,
}

#[derive(Debug, Serialize)]
struct SegmentReport {
    segment: u64,
    file: String,
    bytes: u64,
    /// Of what waits, or else of what a repair would keep; unknown when that is
    /// not known either.
    live_bytes: Option<u64>,
    live_messages: Option<u64>,
    live_share: Option<f64>,
    /// All of it lies before the place where a start begins to read the log.
    below_snapshot: bool,
    /// What is wrong with the file as such.
    flaw: Option<String>,
}

#[derive(Debug, Serialize)]
struct SnapshotReport {
    file: String,
    start: u64,
    end: Option<u64>,
    bytes: u64,
    /// A start would use this one.
    used: bool,
    /// Its format, if a newer version wrote it: it is not damaged then.
    newer_format: Option<u32>,
    flaw: Option<String>,
}

impl HoldsReport {
    fn new(contents: &Contents) -> HoldsReport {
        HoldsReport {
            users: contents.users,
            devices: contents.devices,
            waiting_messages: contents.waiting_messages,
            waiting_bytes: contents.waiting_bytes,
            pairs: contents.pairs,
        }
    }

    fn text(&self) -> String {
        format!(
            "{} messages ({}) that wait, {} users with {} devices, {} pairs of sender and inbox",
            count(self.waiting_messages),
            bytes(self.waiting_bytes),
            count(self.users),
            count(self.devices),
            count(self.pairs)
        )
    }
}

impl ShardReport {
    pub(super) fn look(look: &Look, id: ShardId, teller: &mut Teller) -> ShardReport {
        let dir = look.inspection.shard(id);
        let mut report = ShardReport {
            shard: id,
            directory: dir.path().display().to_string(),
            refusal: None,
            log: None,
            holds: None,
            repair_keeps: None,
            repair_keeps_unknown: None,
            segments: Vec::new(),
            snapshots: Vec::new(),
            set_aside: Vec::new(),
            unfinished: Vec::new(),
            foreign: Vec::new(),
        };
        let files = match dir.files() {
            Ok(files) => files,
            // A repair makes it anew.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Files::default(),
            Err(error) => {
                report.refusal = Some(format!("{} cannot be read: {error}", report.directory));
                return report;
            }
        };
        let mut replay = look.replay(id);
        let mut live = None;
        let mut used = None;
        match look_back(&dir, id, &mut replay, teller) {
            Ok(recovered) => {
                used = recovered.snapshot.as_ref().map(|loaded| loaded.start.lsn);
                live = Some(replay.needed());
                report.read_back(&recovered, &replay);
            }
            Err(refusal) => {
                report.refusal = Some(refusal);
                drop(replay);
                // What a server is at work on may only seem to be damaged.
                if look.running.is_none() {
                    live = report.read_kept(look, &dir, teller);
                }
            }
        }
        let size = look.inspection.manifest().segment_bytes;
        report.list(&files, size, used, live.as_deref());
        report
    }

    /// Whether a server would start on it.
    pub(super) fn starts(&self) -> bool {
        self.refusal.is_none()
    }

    fn read_back(&mut self, recovered: &Recovered, replay: &Replay) {
        let torn = recovered.torn.as_ref();
        self.log = Some(LogReport {
            end: recovered.start.lsn,
            commits: recovered.start.commit_seq,
            replayed_bytes: recovered.replayed_bytes,
            unchecked_below: None,
            torn: torn.map(TornReport::new),
        });
        self.holds = Some(HoldsReport::new(&replay.contents()));
    }

    /// Looks for whatever a repair would keep; how much of that each segment holds.
    fn read_kept(
        &mut self,
        look: &Look,
        dir: &ShardDir,
        teller: &mut Teller,
    ) -> Option<Vec<(u64, u64, u64)>> {
        match Kept::read(look.inspection.manifest(), dir, self.shard, teller) {
            Ok(kept) => {
                self.repair_keeps = Some(HoldsReport::new(&kept.salvage.contents()));
                Some(kept.live())
            }
            Err(error) => {
                self.repair_keeps_unknown = Some(error.to_string());
                None
            }
        }
    }

    fn list(
        &mut self,
        files: &Files,
        segment_bytes: u64,
        used: Option<u64>,
        live: Option<&[(u64, u64, u64)]>,
    ) {
        let below = used.unwrap_or(0) / segment_bytes;
        let segment = |file: &SegmentFile| {
            let found = live.map(|live| {
                let at = live.iter().find(|(segment, ..)| *segment == file.index);
                at.map_or((0, 0), |(_, bytes, messages)| (*bytes, *messages))
            });
            SegmentReport {
                segment: file.index,
                file: file.path.display().to_string(),
                bytes: file.bytes,
                live_bytes: found.map(|(bytes, _)| bytes),
                live_messages: found.map(|(_, messages)| messages),
                live_share: found.map(|(bytes, _)| bytes as f64 / segment_bytes as f64),
                below_snapshot: file.index < below,
                flaw: file.flaw.clone(),
            }
        };
        self.segments = files.segments.iter().map(segment).collect();
        if let Some((log, used)) = self.log.as_mut().zip(used) {
            let is_before = |file: &SegmentFile| file.index * segment_bytes < used;
            log.unchecked_below = files.segments.iter().any(is_before).then_some(used);
        }
        let snapshot = |seen: &SnapshotSeen| SnapshotReport {
            file: seen.path.display().to_string(),
            start: seen.start,
            end: seen.read.as_ref().ok().map(|loaded| loaded.end),
            bytes: seen.bytes,
            used: used == Some(seen.start),
            newer_format: seen.newer,
            flaw: seen.read.as_ref().err().cloned(),
        };
        self.snapshots = files.snapshots.iter().map(snapshot).collect();
        let shown = |paths: &[std::path::PathBuf]| {
            paths.iter().map(|path| path.display().to_string()).collect()
        };
        self.set_aside = shown(&files.aside);
        self.unfinished = shown(&files.leftovers);
        self.foreign = shown(&files.foreign);
    }

    pub(super) fn text(&self) -> String {
        let mut out = format!("Shard {} in {}\n", self.shard, self.directory);
        if let Some(refusal) = &self.refusal {
            let _ = writeln!(out, "  a start would be refused: {refusal}");
        }
        if let Some(log) = &self.log {
            let _ = writeln!(
                out,
                "  log: ends at position {} after {} commits; a start reads {} of it",
                log.end,
                count(log.commits),
                bytes(log.replayed_bytes)
            );
            if let Some(torn) = &log.torn {
                let _ = writeln!(
                    out,
                    "  torn tail: {} bytes from position {} on belong to no whole commit; a start \
                     cuts them, which loses nothing unless the disk had confirmed them",
                    torn.bytes, torn.position
                );
            }
        }
        if let Some(below) = self.log.as_ref().and_then(|log| log.unchecked_below) {
            let _ = writeln!(
                out,
                "  not checked: bytes before position {below}, which the snapshot covers; \
                 `iris-shard repair` without --yes reads them all and changes nothing"
            );
        }
        if let Some(holds) = &self.holds {
            let _ = writeln!(out, "  holds: {}", holds.text());
        }
        if let Some(kept) = &self.repair_keeps {
            let _ = writeln!(
                out,
                "  a repair would keep: {}; LIVE, SHARE and MESSAGES are of that",
                kept.text()
            );
        }
        if let Some(why) = &self.repair_keeps_unknown {
            let _ = writeln!(out, "  what a repair would keep is not known: {why}");
        }
        out.push_str(&self.segments_text());
        out.push_str(&self.snapshots_text());
        let others = [
            ("a snapshot that was set aside", &self.set_aside),
            ("unfinished, removed by the next start", &self.unfinished),
            ("not ours, left alone", &self.foreign),
        ];
        for (what, paths) in others {
            for path in paths {
                let _ = writeln!(out, "  {what}: {path}");
            }
        }
        out
    }

    fn segments_text(&self) -> String {
        let unknown = || "?".to_owned();
        let row = |it: &SegmentReport| {
            let mut notes = Vec::new();
            if it.below_snapshot {
                notes.push("before the snapshot".to_owned());
            }
            notes.extend(it.flaw.clone());
            vec![
                it.segment.to_string(),
                bytes(it.bytes),
                it.live_bytes.map_or_else(unknown, bytes),
                it.live_share.map_or_else(unknown, |share| format!("{:.0} %", share * 100.0)),
                it.live_messages.map_or_else(unknown, count),
                notes.join("; "),
            ]
        };
        let rows: Vec<Vec<String>> = self.segments.iter().map(row).collect();
        if rows.is_empty() {
            return "  no segments\n".to_owned();
        }
        table(&["SEGMENT", "FILE", "LIVE", "SHARE", "MESSAGES", ""], &rows)
    }

    fn snapshots_text(&self) -> String {
        let row = |it: &SnapshotReport| {
            let state = match &it.flaw {
                Some(flaw) if it.newer_format.is_some() => format!("a newer version's: {flaw}"),
                Some(flaw) => format!("damaged: {flaw}"),
                None if it.used => "a start uses this one".to_owned(),
                None => "whole".to_owned(),
            };
            let end = it.end.map_or_else(|| "?".to_owned(), |end| end.to_string());
            vec![it.start.to_string(), end, bytes(it.bytes), state]
        };
        let rows: Vec<Vec<String>> = self.snapshots.iter().map(row).collect();
        if rows.is_empty() {
            return "  no snapshots\n".to_owned();
        }
        table(&["SNAPSHOT FROM", "TO", "FILE", ""], &rows)
    }
}
