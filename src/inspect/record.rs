//! One record of the log, decoded.

use std::fmt::Write;

use serde::{Serialize, Serializer};
use wal::commit::Commit;
use wal::disk::Stored;
use wal::record::{Devices, Message, Record};
use wire::id::{Class, ShardId};

use super::{Look, name, time};
use crate::exit::Exit;

/// Bytes of a body that a person is shown.
const PREVIEW_BYTES: usize = 256;

/// A record and where it stands.
#[derive(Debug, Serialize)]
pub(super) struct RecordReport {
    shard: ShardId,
    position: u64,
    file: String,
    offset: u64,
    /// Length, bytes.
    bytes: u64,
    kind: &'static str,
    #[serde(serialize_with = "as_map")]
    fields: Vec<(&'static str, String)>,
    /// The body of a message, when it is text.
    body_text: Option<String>,
    body_hex: Option<String>,
}

/// Reads it from the disk.
pub(super) fn report(look: &Look, shard: ShardId, lsn: u64) -> Result<RecordReport, Exit> {
    let shards = look.inspection.manifest().shards;
    if shard >= shards {
        let last = shards - 1;
        return Err(Exit::usage(format!("there is no shard {shard}; the last one is {last}")));
    }
    let dir = look.inspection.shard(shard);
    let (path, offset) = dir.place(lsn);
    let mut memory = Vec::new();
    let stored = dir.record_at(lsn, &mut memory).map_err(|why| Exit::data(why.to_string()))?;
    let mut report = RecordReport {
        shard,
        position: lsn,
        file: path.display().to_string(),
        offset,
        bytes: 0,
        kind: "",
        fields: Vec::new(),
        body_text: None,
        body_hex: None,
    };
    match stored {
        Stored::Commit(commit) => report.commit(&commit),
        Stored::Record(record) => report.record(&record),
    }
    report.bytes = memory.len() as u64;
    Ok(report)
}

impl RecordReport {
    fn commit(&mut self, commit: &Commit) {
        self.kind = "commit";
        self.fields = vec![
            ("number", commit.seq.to_string()),
            ("commit bytes", commit.commit_bytes.to_string()),
            ("record bytes", commit.record_bytes.to_string()),
            ("log durable up to", commit.lsn_durable.to_string()),
            ("clock", time(commit.hlc_ms)),
        ];
    }

    fn record(&mut self, record: &Record<'_>) {
        let user = |name: &[u8]| ("user", super::name(name));
        let devices = |had: Devices<'_>| {
            let ids: Vec<String> = had.iter().map(|id| id.to_string()).collect();
            (
                "devices that have it",
                if ids.is_empty() { "none".to_owned() } else { ids.join(", ") },
            )
        };
        let (kind, fields) = match *record {
            Record::Message(ref message) => ("message", self.message(message)),
            Record::Moved(ref message) => ("moved message", self.message(message)),
            Record::Returned { ref message, from, had } => {
                let mut fields = self.message(message);
                fields.extend([("came back from inbox seq", from.to_string()), devices(had)]);
                ("returned message", fields)
            }
            Record::Aside { key, seq, lsn, len, had } => (
                "message set aside",
                vec![
                    ("inbox", format!("{key:?}")),
                    ("inbox seq", seq.to_string()),
                    ("position", lsn.to_string()),
                    ("length", len.to_string()),
                    devices(had),
                ],
            ),
            Record::Ack { key, device, seq, exact } => (
                "acknowledgement",
                vec![
                    ("inbox", format!("{key:?}")),
                    ("device", device.to_string()),
                    (if exact { "only inbox seq" } else { "up to inbox seq" }, seq.to_string()),
                ],
            ),
            Record::Device { name, device, cursor, gone, .. } => (
                if gone { "device gone" } else { "device" },
                vec![user(name), ("device", device.to_string()), ("cursor", cursor.to_string())],
            ),
            Record::Seen { name, at_s, .. } => {
                ("seen", vec![user(name), ("at", time(at_s * 1000))])
            }
            Record::Floor { name, seq, .. } => {
                ("floor", vec![user(name), ("numbering goes on after", seq.to_string())])
            }
            Record::Consumed { name, from_key, device, send_seq, .. } => (
                "number used up",
                vec![
                    user(name),
                    ("sender", format!("{from_key:?}")),
                    ("device", device.to_string()),
                    ("send seq", send_seq.to_string()),
                ],
            ),
            Record::Dropped { key, first, last } => (
                "dropped",
                vec![
                    ("inbox", format!("{key:?}")),
                    ("first inbox seq", first.to_string()),
                    ("last inbox seq", last.to_string()),
                ],
            ),
        };
        (self.kind, self.fields) = (kind, fields);
    }

    fn message(&mut self, message: &Message<'_>) -> Vec<(&'static str, String)> {
        self.body_text = std::str::from_utf8(message.body).ok().map(str::to_owned);
        self.body_hex = Some(hex(message.body));
        vec![
            ("to", name(message.to)),
            ("inbox seq", message.inbox_seq.to_string()),
            ("id", message.id.to_string()),
            ("from", name(message.from)),
            ("device", message.device.to_string()),
            ("send seq", message.send_seq.to_string()),
            ("stored", time(message.time_ms)),
            ("expires", expiry(message.expires_ms)),
            ("class", class(message.class).to_owned()),
            ("flags", message.flags.to_string()),
            ("body bytes", message.body.len().to_string()),
        ]
    }

    pub(super) fn text(&self) -> String {
        let mut out = format!(
            "{} at position {} of shard {}: {} bytes at file offset {} of {}\n",
            self.kind, self.position, self.shard, self.bytes, self.offset, self.file
        );
        for (what, value) in &self.fields {
            let _ = writeln!(out, "  {what}: {value}");
        }
        let preview = match (&self.body_text, &self.body_hex) {
            (Some(text), _) => text.chars().take(PREVIEW_BYTES).collect::<String>(),
            (None, Some(hex)) => format!("0x{}", &hex[..hex.len().min(2 * PREVIEW_BYTES)]),
            (None, None) => return out,
        };
        let _ = writeln!(out, "  body: {}", name(preview.as_bytes()));
        out
    }
}

fn as_map<S: Serializer>(fields: &[(&str, String)], to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(fields.iter().map(|(what, value)| (what.replace(' ', "_"), value)))
}

pub(super) fn class(class: Class) -> &'static str {
    match class {
        Class::BestEffort => "best effort",
        Class::Guaranteed => "guaranteed",
    }
}

pub(super) fn expiry(ms: u64) -> String {
    if ms == 0 { "never".to_owned() } else { time(ms) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}
