//! What was found and what was done, for programs.

use serde::Serialize;
use wire::id::ShardId;

use super::finding::Finding;
use super::mend::Mended;
use crate::inspect::{TornReport, name};

/// A whole directory.
#[derive(Debug, Serialize)]
pub(super) struct DirectoryReport {
    pub(super) directory: String,
    /// Nothing that was looked at is damaged, or nothing is any more.
    pub(super) healthy: bool,
    /// Something was written or moved.
    pub(super) repaired: bool,
    /// Why the manifest cannot be used; nothing else is looked at then. Its copy
    /// is whole.
    pub(super) manifest_refused: Option<String>,
    /// Where that is which was cut out.
    pub(super) aside: Option<String>,
    pub(super) shards: Vec<ShardReport>,
}

/// One shard of it.
#[derive(Debug, Serialize)]
pub(super) struct ShardReport {
    shard: ShardId,
    /// As it was found.
    healthy: bool,
    /// Why a start would be refused.
    refusal: Option<String>,
    /// What a start would cut off the end of the log, as after a crash.
    torn: Option<TornReport>,
    damage: DamageReport,
    cost: CostReport,
    kept_messages: u64,
    kept_users: u64,
    /// Messages to copy out of the segments that are given up, and their bytes.
    to_copy_messages: u64,
    to_copy_bytes: u64,
    /// Segments to move aside.
    to_move_segments: Vec<u64>,
    /// Segments that were given their names; what they cost is told as it was
    /// found before.
    renamed_segments: u64,
    done: Option<DoneReport>,
    /// Why a start is still refused although that was done: a defect.
    still_refused: Option<String>,
}

#[derive(Debug, Serialize)]
struct DamageReport {
    snapshots: Vec<FlawReport>,
    segments: Vec<FlawReport>,
    /// Segments under each other's names, by their heads; the rest is told as if
    /// each had its own.
    misnamed_segments: Vec<MisnamedReport>,
    missing_segments: Vec<String>,
    /// No snapshot can be read, and the log before this position is not there.
    lost_before: Option<u64>,
    /// The first places of the log that cannot be read.
    places: Vec<PlaceReport>,
    places_total: u64,
    bytes_total: u64,
}

#[derive(Debug, Serialize)]
struct FlawReport {
    file: String,
    why: String,
}

#[derive(Debug, Serialize)]
struct MisnamedReport {
    file: String,
    belongs: String,
}

#[derive(Debug, Serialize)]
struct PlaceReport {
    file: String,
    offset: u64,
    position: u64,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct CostReport {
    /// Messages that wait and whose bytes are damaged or gone.
    messages: u64,
    /// Nothing at all is left of the shard: no message, device or number.
    everything: bool,
    /// What only a snapshot said is gone.
    snapshot_only: bool,
    inboxes: Vec<InboxReport>,
}

#[derive(Debug, Serialize)]
struct InboxReport {
    user: String,
    messages: u64,
    /// Damaged records that still show its name.
    recognised: u64,
    /// Numbers that no record tells of.
    unknown: u64,
}

#[derive(Debug, Serialize)]
struct DoneReport {
    copied_messages: u64,
    /// Positions of the new snapshots.
    snapshots: [u64; 2],
    moved: Vec<String>,
}

impl ShardReport {
    pub(super) fn new(finding: &Finding) -> ShardReport {
        let found = &finding.kept.salvaged;
        let contents = finding.kept.salvage.contents();
        let to_copy = finding.to_copy();
        let flaw = |(path, why): &(std::path::PathBuf, String)| FlawReport {
            file: path.display().to_string(),
            why: why.clone(),
        };
        let misnamed = |it: &wal::disk::Misnamed| MisnamedReport {
            file: it.path.display().to_string(),
            belongs: it.belongs.display().to_string(),
        };
        let place = |lost: &wal::disk::Lost| PlaceReport {
            file: lost.path.display().to_string(),
            offset: lost.offset,
            position: lost.lsn,
            bytes: lost.bytes,
        };
        ShardReport {
            shard: finding.id,
            healthy: finding.is_healthy(),
            refusal: finding.refusal.clone(),
            torn: finding.torn.as_ref().map(TornReport::new),
            damage: DamageReport {
                snapshots: found.damaged_snapshots.iter().map(flaw).collect(),
                segments: found.flawed.iter().map(flaw).collect(),
                misnamed_segments: finding.kept.misnamed.iter().map(misnamed).collect(),
                missing_segments: found.missing.iter().map(|p| p.display().to_string()).collect(),
                lost_before: found.lost_before,
                places: found.lost.iter().map(place).collect(),
                places_total: found.lost_total.0,
                bytes_total: found.lost_total.1,
            },
            cost: CostReport::new(finding),
            kept_messages: contents.waiting_messages,
            kept_users: contents.users,
            to_copy_messages: to_copy.len() as u64,
            to_copy_bytes: to_copy.iter().map(|it| u64::from(it.len)).sum(),
            to_move_segments: found.aside.clone(),
            renamed_segments: 0,
            done: None,
            still_refused: None,
        }
    }

    pub(super) fn renamed(&mut self, segments: u64) {
        self.renamed_segments = segments;
    }

    /// Whether a start is still refused.
    pub(super) fn checked(&mut self, still_refused: Option<String>) {
        self.still_refused = still_refused;
    }

    pub(super) fn mended(&mut self, mended: &Mended) {
        self.done = Some(DoneReport {
            copied_messages: mended.copied,
            snapshots: mended.snapshots,
            moved: mended.moved.iter().map(|path| path.display().to_string()).collect(),
        });
    }
}

impl CostReport {
    fn new(finding: &Finding) -> CostReport {
        let inboxes = finding.kept.salvage.missing().map(|(user, missing)| InboxReport {
            user: name(user),
            messages: missing.given_up,
            recognised: missing.recognised,
            unknown: missing.unknown,
        });
        CostReport {
            messages: finding.kept.given_up,
            everything: !finding.is_healthy() && finding.has_lost_everything(),
            snapshot_only: finding.has_lost_its_state(),
            inboxes: if finding.is_healthy() { Vec::new() } else { inboxes.collect() },
        }
    }
}
