//! One user's inbox: devices, cursors, what waits; where a start would be
//! refused, what a repair would keep of it.

use std::fmt::Write;

use serde::Serialize;
use shard::{InboxContents, KeyHasher, Waiting};
use wal::disk::{ShardDir, Stored};
use wal::record::Message;
use wire::id::ShardId;

use super::record::{class, expiry};
use super::{Look, count, name, table, time};
use crate::exit::Exit;
use crate::kept::Kept;
use crate::progress::Teller;
use crate::read_back::look_back;

/// What is in it.
#[derive(Debug, Serialize)]
pub(super) struct InboxReport {
    user: String,
    shard: ShardId,
    /// Why a start would be refused. Everything else is what a repair would keep
    /// then.
    refusal: Option<String>,
    /// What is known to be missing of it then.
    missing: Option<MissingReport>,
    last_seen: Option<String>,
    devices: Vec<DeviceReport>,
    /// Highest inbox seq given out.
    last_seq: u64,
    pairs: u64,
    waiting_messages: u64,
    waiting_bytes: u64,
    /// The first of them.
    entries: Vec<EntryReport>,
}

/// As `iris-shard repair` tells it, under the same names.
#[derive(Debug, Serialize)]
struct MissingReport {
    /// Messages that waited and cannot be read.
    messages: u64,
    /// Damaged records that still show the inbox's name.
    recognised: u64,
    /// Numbers that no record tells of.
    unknown: u64,
}

#[derive(Debug, Serialize)]
struct DeviceReport {
    device: u64,
    /// It has everything up to this inbox seq.
    cursor: u64,
}

#[derive(Debug, Serialize)]
struct EntryReport {
    inbox_seq: u64,
    position: u64,
    segment: u64,
    bytes: u32,
    /// It could not be read when its turn came.
    is_aside: bool,
    /// Unknown when the record cannot be read.
    message: Option<MessageReport>,
    damage: Option<String>,
}

#[derive(Debug, Serialize)]
struct MessageReport {
    id: String,
    from: String,
    device: u64,
    send_seq: u64,
    stored: String,
    expires: String,
    class: &'static str,
    body_bytes: usize,
}

/// Reads the shard back, and the first `limit` messages of the inbox.
pub(super) fn report(
    look: &Look,
    user: &str,
    limit: usize,
    teller: &mut Teller,
) -> Result<InboxReport, Exit> {
    let manifest = look.inspection.manifest();
    let shard = KeyHasher::new(manifest.seed).key(user.as_bytes()).owner(manifest.shards);
    let found = Found::look(look, shard, user, teller)?;
    let inbox = found.inbox.ok_or_else(|| {
        let refusal =
            found.refusal.as_ref().map(|why| format!("; a start would be refused: {why}"));
        Exit::data(format!(
            "nobody named {} is known here; shard {shard} would be the one to know{}",
            name(user.as_bytes()),
            refusal.unwrap_or_default()
        ))
    })?;
    let mut memory = Vec::new();
    let entry = |it: &Waiting| entry(&found.dir, it, manifest.segment_bytes, &mut memory);
    let seen = inbox.last_seen_s;
    Ok(InboxReport {
        user: name(&inbox.name),
        shard,
        refusal: found.refusal,
        missing: found.missing,
        last_seen: (seen > 0).then(|| time(u64::from(seen) * 1000)),
        devices: inbox
            .devices
            .iter()
            .map(|&(device, cursor)| DeviceReport { device, cursor })
            .collect(),
        last_seq: inbox.last_seq,
        pairs: inbox.pairs,
        waiting_messages: inbox.waiting.len() as u64,
        waiting_bytes: inbox.waiting.iter().map(|it| u64::from(it.len)).sum(),
        entries: inbox.waiting.iter().take(limit).map(entry).collect(),
    })
}

/// An inbox, and where its messages are read.
struct Found {
    inbox: Option<InboxContents>,
    dir: ShardDir,
    refusal: Option<String>,
    missing: Option<MissingReport>,
}

impl Found {
    /// Reads the shard back as a start would, and where that is refused, whatever
    /// is left of it.
    fn look(look: &Look, id: ShardId, user: &str, teller: &mut Teller) -> Result<Found, Exit> {
        let dir = look.inspection.shard(id);
        let mut replay = look.replay(id);
        let Err(refusal) = look_back(&dir, id, &mut replay, teller) else {
            let inbox = replay.inbox(user.as_bytes());
            return Ok(Found { inbox, dir, refusal: None, missing: None });
        };
        drop(replay);
        // What a server is at work on may only seem to be damaged.
        if look.running.is_some() {
            return Err(Exit::data(refusal));
        }
        let kept = Kept::read(look.inspection.manifest(), &dir, id, teller)
            .map_err(|error| Exit::data(error.to_string()))?;
        let missing = kept.salvage.missing().find(|(name, _)| *name == user.as_bytes());
        let missing = missing.map(|(_, it)| MissingReport {
            messages: it.given_up,
            recognised: it.recognised,
            unknown: it.unknown,
        });
        let inbox = kept.salvage.inbox(user.as_bytes());
        Ok(Found { inbox, dir: kept.dir, refusal: Some(refusal), missing })
    }
}

fn entry(dir: &ShardDir, it: &Waiting, segment_bytes: u64, memory: &mut Vec<u8>) -> EntryReport {
    let found = dir.record_at(it.lsn, memory);
    let (message, damage) = match &found {
        Ok(Stored::Record(record)) => {
            let message = record.message().filter(|message| message.inbox_seq == it.inbox_seq);
            (message.map(describe), None)
        }
        Ok(_) => (None, None),
        Err(why) => (None, Some(why.to_string())),
    };
    let other = || "another record stands there".to_owned();
    let damage = if message.is_some() { None } else { damage.or_else(|| Some(other())) };
    EntryReport {
        inbox_seq: it.inbox_seq,
        position: it.lsn,
        segment: it.lsn / segment_bytes,
        bytes: it.len,
        is_aside: it.is_aside,
        message,
        damage,
    }
}

fn describe(message: &Message<'_>) -> MessageReport {
    MessageReport {
        id: message.id.to_string(),
        from: name(message.from),
        device: message.device,
        send_seq: message.send_seq,
        stored: time(message.time_ms),
        expires: expiry(message.expires_ms),
        class: class(message.class),
        body_bytes: message.body.len(),
    }
}

impl InboxReport {
    /// Whether a server would start on it, and every message that was looked at
    /// could be read.
    pub(super) fn is_whole(&self) -> bool {
        self.refusal.is_none() && self.entries.iter().all(|entry| entry.damage.is_none())
    }

    pub(super) fn text(&self) -> String {
        let mut out = format!("Inbox of {} in shard {}\n", self.user, self.shard);
        if let Some(refusal) = &self.refusal {
            let _ = writeln!(out, "  a start would be refused: {refusal}");
            out.push_str("  what `iris-shard repair` would keep:\n");
        }
        if let Some(missing) = &self.missing {
            let _ = writeln!(
                out,
                "  missing: {} messages that cannot be read, {} damaged records with its name, up to \
                 {} numbers that no record tells of",
                count(missing.messages),
                count(missing.recognised),
                count(missing.unknown)
            );
        }
        let seen = self.last_seen.as_deref().unwrap_or("never");
        let _ = writeln!(out, "  last seen: {seen}");
        let known = if self.refusal.is_some() { "known to have been " } else { "" };
        let _ = writeln!(out, "  numbers {known}given out up to: {}", self.last_seq);
        let _ = writeln!(out, "  sending devices remembered: {}", count(self.pairs));
        for DeviceReport { device, cursor } in &self.devices {
            let what = if *device == 0 { " (protocol v1)" } else { "" };
            let _ = writeln!(out, "  device {device}{what} has everything up to {cursor}");
        }
        if self.devices.is_empty() {
            out.push_str("  no device: the user never logged in, everything waits\n");
        }
        let _ = writeln!(
            out,
            "  waiting: {} messages ({})",
            count(self.waiting_messages),
            super::bytes(self.waiting_bytes)
        );
        if !self.entries.is_empty() {
            out.push_str(&self.entries_text());
        }
        let more = self.waiting_messages - self.entries.len() as u64;
        if more > 0 {
            let _ = writeln!(out, "  and {} more; --limit shows more of them", count(more));
        }
        out
    }

    fn entries_text(&self) -> String {
        let row = |entry: &EntryReport| {
            let mut row = vec![
                format!("{}{}", entry.inbox_seq, if entry.is_aside { " (aside)" } else { "" }),
                entry.position.to_string(),
                entry.segment.to_string(),
                entry.bytes.to_string(),
            ];
            match (&entry.message, &entry.damage) {
                (Some(it), _) => row.extend([
                    it.from.clone(),
                    it.stored.clone(),
                    it.expires.clone(),
                    it.class.to_owned(),
                    it.body_bytes.to_string(),
                ]),
                (None, damage) => {
                    let damage = damage.clone().unwrap_or_default();
                    row.extend([format!("damaged: {damage}")]);
                    row.resize(9, String::new());
                }
            }
            row
        };
        let rows: Vec<Vec<String>> = self.entries.iter().map(row).collect();
        let head =
            ["SEQ", "POSITION", "SEGMENT", "BYTES", "FROM", "STORED", "EXPIRES", "CLASS", "BODY"];
        table(&head, &rows)
    }
}
