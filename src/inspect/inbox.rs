//! One user's inbox: devices, cursors, what waits.

use std::fmt::Write;

use serde::Serialize;
use shard::{KeyHasher, Waiting};
use wal::disk::{ShardDir, Stored};
use wal::record::Message;
use wire::id::ShardId;

use super::record::{class, expiry};
use super::{Look, count, name, table, time};
use crate::exit::Exit;
use crate::progress::Teller;

/// What is in it.
#[derive(Debug, Serialize)]
pub(super) struct InboxReport {
    user: String,
    shard: ShardId,
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
    let dir = look.inspection.shard(shard);
    let mut replay = look.replay(shard);
    let read_back = dir.look_back(&mut replay, &mut |at| teller.reading(shard, at));
    read_back.map_err(|error| Exit::data(error.to_string()))?;
    let inbox = replay.inbox(user.as_bytes()).ok_or_else(|| {
        Exit::data(format!(
            "nobody named {} is known here; shard {shard} would be the one to know",
            name(user.as_bytes())
        ))
    })?;
    let mut memory = Vec::new();
    let entry = |it: &Waiting| entry(&dir, it, manifest.segment_bytes, &mut memory);
    let seen = inbox.last_seen_s;
    Ok(InboxReport {
        user: name(&inbox.name),
        shard,
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
    /// Whether every message that was looked at could be read.
    pub(super) fn is_whole(&self) -> bool {
        self.entries.iter().all(|entry| entry.damage.is_none())
    }

    pub(super) fn text(&self) -> String {
        let mut out = format!("Inbox of {} in shard {}\n", self.user, self.shard);
        let seen = self.last_seen.as_deref().unwrap_or("never");
        let _ = writeln!(out, "  last seen: {seen}");
        let _ = writeln!(out, "  numbers given out up to: {}", self.last_seq);
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
