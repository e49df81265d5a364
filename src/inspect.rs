//! `iris-shard inspect`: what is in a data directory, as a table for people or
//! as JSON for programs. Changes nothing, locks nothing, needs no server; beside
//! a running one it works too, and says that what it read may have moved.

mod inbox;
mod record;
mod shard;
mod text;

use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;

use ::shard::{KeyHasher, Options, Replay};
use ::wal::disk::Inspection;
use serde::Serialize;
use wire::id::ShardId;

use crate::exit::Exit;
use crate::progress::Teller;
use crate::terminal;
use shard::ShardReport;
pub(crate) use shard::TornReport;
pub(crate) use text::{bytes, count, name, table, time};

/// What to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// All of it.
    Directory,
    /// One user's inbox, and how many messages of it at most.
    Inbox {
        /// The user's name.
        name: String,
        /// Messages shown.
        limit: usize,
    },
    /// One record: its shard and its position.
    Record(ShardId, u64),
}

/// Looks, and prints what there is. The code says whether a server would start
/// on it.
///
/// # Errors
/// Why there is nothing to see.
pub(crate) fn run(
    data_dir: &Path,
    subject: &Subject,
    json: bool,
    teller: &mut Teller,
) -> Result<ExitCode, Exit> {
    let look = Look::open(data_dir)?;
    let (printed, is_sound) = match subject {
        Subject::Directory => {
            let report = look.directory(teller);
            let is_sound = report.starts;
            (if json { to_json(&report) } else { report.text() }, is_sound)
        }
        Subject::Inbox { name, limit } => {
            let report = inbox::report(&look, name, *limit, teller)?;
            (if json { to_json(&report) } else { report.text() }, report.is_whole())
        }
        Subject::Record(shard, lsn) => {
            let report = record::report(&look, *shard, *lsn)?;
            (if json { to_json(&report) } else { report.text() }, true)
        }
    };
    if let Some(note) = look.note().filter(|_| !json) {
        terminal::show(&format!("{note}\n\n"))?;
    }
    terminal::show(&printed)?;
    Ok(ExitCode::from(if is_sound { 0 } else { 3 }))
}

/// `SHARD:POSITION` as typed.
pub(crate) fn place(text: &str) -> Result<(ShardId, u64), String> {
    let parsed = text
        .split_once(':')
        .and_then(|(shard, lsn)| Some((shard.trim().parse().ok()?, lsn.trim().parse().ok()?)));
    parsed.ok_or_else(|| "SHARD:POSITION is expected, such as 0:4144".to_owned())
}

/// An opened directory.
struct Look {
    inspection: Inspection,
    running: Option<Running>,
}

/// A server has the directory.
#[derive(Clone, Copy, Debug, Serialize)]
struct Running {
    pid: Option<u32>,
}

impl Look {
    fn open(data_dir: &Path) -> Result<Look, Exit> {
        let inspection =
            Inspection::open(data_dir).map_err(|error| Exit::data(error.to_string()))?;
        let running = inspection.holder().map(|holder| Running { pid: holder.pid });
        Ok(Look { inspection, running })
    }

    /// What to know before reading on.
    fn note(&self) -> Option<String> {
        let who = match self.running?.pid {
            Some(pid) => format!("the server with process id {pid}"),
            None => "another process".to_owned(),
        };
        Some(format!(
            "The directory is in use by {who}: what is shown may have changed while it was read. \
             Damage that is told of now need not be any; stop the server to be sure."
        ))
    }

    fn replay(&self, shard: ShardId) -> Replay {
        let manifest = self.inspection.manifest();
        replay(shard, manifest.shards, KeyHasher::new(manifest.seed), manifest.segment_bytes)
    }

    fn directory(&self, teller: &mut Teller) -> DirectoryReport {
        let manifest = self.inspection.manifest();
        let shards: Vec<ShardReport> =
            (0..manifest.shards).map(|id| ShardReport::look(self, id, teller)).collect();
        DirectoryReport {
            starts: shards.iter().all(ShardReport::starts),
            running: self.running,
            format: manifest.format,
            generation: manifest.generation,
            segment_bytes: manifest.segment_bytes,
            shards,
        }
    }
}

/// A shard to read into that refuses nothing for its size.
pub(crate) fn replay(shard: ShardId, shards: u16, hasher: KeyHasher, segment_bytes: u64) -> Replay {
    Replay::new(options(shard, shards), hasher, segment_bytes)
}

/// Bounds that hold nothing back.
pub(crate) fn options(shard: ShardId, shards: u16) -> Options {
    Options {
        shard,
        shards,
        node: 0,
        users_max: usize::MAX,
        waiting_messages_max: usize::MAX,
        pairs_max: usize::MAX,
        inbox_messages_max: usize::MAX,
        inbox_bytes_max: u64::MAX,
        retention_ms: 0,
        // What a server would forget it forgets by itself; a repair does not.
        pairs_kept_ms: u64::MAX,
        handshake_ms: 0,
        logins_per_second: 0,
        vouch_after_ms: u64::MAX,
    }
}

/// The whole directory.
#[derive(Debug, Serialize)]
struct DirectoryReport {
    /// Whether a server would start on it.
    starts: bool,
    running: Option<Running>,
    format: u32,
    generation: u64,
    segment_bytes: u64,
    shards: Vec<ShardReport>,
}

impl DirectoryReport {
    fn text(&self) -> String {
        let shards = self.shards.len();
        let mut out = String::new();
        let _ = writeln!(
            out,
            "format {}, {shards} {}, segments of {}, generation {}",
            self.format,
            if shards == 1 { "shard" } else { "shards" },
            bytes(self.segment_bytes),
            self.generation
        );
        for shard in &self.shards {
            out.push('\n');
            out.push_str(&shard.text());
        }
        if !self.starts {
            out.push_str(
                "\nA start would be refused; `iris-shard repair` says what can be done.\n",
            );
        }
        out
    }
}

pub(crate) fn to_json(report: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(report).expect("plain fields are JSON");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read() {
        assert_eq!(place("3:4144"), Ok((3, 4144)));
        for wrong in ["", "3", "a:1", "1:-2", "99999:1", ":"] {
            assert!(place(wrong).is_err(), "{wrong}");
        }
    }
}
