//! `/top` and `/top.json`: the worst connections and users of all shards, by
//! one order.

use std::cmp::Reverse;
use std::fmt::Write;

use serde::Serialize;

use super::worst::{Order, Row, Worst};

/// The answer.
#[derive(Serialize)]
pub(super) struct Top {
    by: &'static str,
    /// Shards that did not answer in time: their connections are missing.
    silent_shards: Vec<u16>,
    /// How old the oldest of the answers is, milliseconds.
    age_ms: u64,
    rows: Vec<Row>,
}

/// The worst of what the shards found, at `now_ns`; `found` by shard.
pub(super) fn top(
    found: &[Option<Box<Worst>>],
    (order, by): (Order, &'static str),
    limit: usize,
    now_ns: u64,
) -> Top {
    let silent = found.iter().zip(0..).filter(|(worst, _)| worst.is_none());
    let ages = found.iter().flatten().map(|worst| now_ns.saturating_sub(worst.at_mono_ns));
    let of_order = found.iter().flatten().flat_map(|worst| &worst.rows[order as usize]);
    let mut rows: Vec<Row> = of_order.cloned().collect();
    rows.sort_by_key(|row| Reverse(row.measure(order)));
    rows.truncate(limit);
    Top {
        by,
        silent_shards: silent.map(|(_, shard)| shard).collect(),
        age_ms: ages.max().unwrap_or(0) / 1_000_000,
        rows,
    }
}

impl Top {
    /// The same as a table.
    pub(super) fn table(&self) -> String {
        let is_of_users = self.by == Order::ALL[Order::Inbox as usize].1;
        let mut lines = vec![head(is_of_users)];
        lines.extend(self.rows.iter().map(cells));
        let mut text = String::new();
        put(&mut text, format_args!("by {}, {} ms ago", self.by, self.age_ms));
        if !self.silent_shards.is_empty() {
            let silent: Vec<String> = self.silent_shards.iter().map(u16::to_string).collect();
            put(&mut text, format_args!("no answer from shard {}", silent.join(", ")));
        }
        if self.rows.is_empty() {
            put(&mut text, format_args!("nobody"));
            return text;
        }
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
        let widths: Vec<usize> = (0..lines[0].len()).filter_map(width).collect();
        for line in &lines {
            let cells = line.iter().zip(&widths).enumerate();
            let padded: Vec<String> =
                cells.map(|(n, (cell, width))| pad(n, cell, *width)).collect();
            put(&mut text, format_args!("{}", padded.join("  ").trim_end()));
        }
        text
    }
}

fn head(is_of_users: bool) -> Vec<String> {
    let of_conn = ["device", "v", "age s", "unsent B", "unacked", "sent", "received"];
    let of_user = ["waiting", "waiting B", "oldest s", "devices", "connected"];
    let of_conn = if is_of_users { &[][..] } else { &of_conn };
    ["user", "shard"].iter().chain(of_conn).chain(&of_user).map(|word| word.to_string()).collect()
}

fn cells(row: &Row) -> Vec<String> {
    let mut cells = vec![row.user.clone(), row.shard.to_string()];
    if let Some(conn) = &row.conn {
        cells.extend([conn.device, conn.protocol.into(), conn.age_s].map(|n| n.to_string()));
        let counts = [conn.unsent_bytes, conn.unacknowledged, conn.sent, conn.received];
        cells.extend(counts.map(|n| n.to_string()));
    }
    cells.extend([row.inbox_messages, row.inbox_bytes, row.oldest_s].map(|n| n.to_string()));
    cells.extend([row.devices, row.connected].map(|n| n.to_string()));
    cells
}

/// Names to the left, numbers to the right.
fn pad(column: usize, cell: &str, width: usize) -> String {
    if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
}

fn put(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a string takes everything");
}

#[cfg(test)]
mod tests {
    use super::super::worst::ConnRow;
    use super::*;

    fn row(user: &str, shard: u16, unsent_bytes: u64, inbox_messages: u64) -> Row {
        let conn = Some(ConnRow { unsent_bytes, protocol: 2, ..ConnRow::default() });
        Row { user: user.to_owned(), shard, inbox_messages, conn, ..Row::default() }
    }

    fn worst(at_mono_ns: u64, rows: Vec<Row>) -> Option<Box<Worst>> {
        Some(Box::new(Worst { at_mono_ns, rows: [rows, vec![], vec![], vec![], vec![]] }))
    }

    #[test]
    fn the_shards_are_merged_and_the_silent_named() {
        let found = [
            worst(9_000_000, vec![row("a", 0, 50, 1), row("b", 0, 10, 2)]),
            None,
            worst(4_000_000, vec![row("c", 2, 30, 3)]),
        ];
        let top = top(&found, Order::ALL[0], 2, 10_000_000);
        assert_eq!((top.silent_shards.as_slice(), top.age_ms), (&[1][..], 6));
        let users: Vec<&str> = top.rows.iter().map(|row| &row.user[..]).collect();
        assert_eq!(users, ["a", "c"]);
        assert_eq!(
            top.table(),
            "by unsent, 6 ms ago\nno answer from shard 1\n\
             user  shard  device  v  age s  unsent B  unacked  sent  received  waiting  waiting B  oldest s  devices  connected\n\
             a         0       0  2      0        50        0     0         0        1          0         0        0          0\n\
             c         2       0  2      0        30        0     0         0        3          0         0        0          0\n"
        );
    }

    #[test]
    fn nobody_is_said_to_be_nobody() {
        let top = top(&[worst(0, vec![])], Order::ALL[4], 20, 0);
        assert_eq!(top.table(), "by inbox, 0 ms ago\nnobody\n");
    }
}
