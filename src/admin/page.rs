//! `/`: a page for whoever opens the port in a browser.

use std::fmt::Write;
use std::time::Duration;

use super::collected::Collected;
use super::health::Health;
use super::published::Board;

/// The page, at `now_ns`.
pub(super) fn page(board: &Board, collected: &Collected, health: &Health, now_ns: u64) -> String {
    let info = board.info();
    let up = Duration::from_nanos(now_ns.saturating_sub(board.began_mono_ns()));
    let sum = |of: fn(&shard::metrics::Counters) -> u64| -> u64 {
        collected.shards().iter().map(|latest| of(&latest.counters)).sum()
    };
    let listen: Vec<String> = info.listen.iter().map(ToString::to_string).collect();
    let rows = [
        ("status", health.status.word().to_owned()),
        ("", health.sentence.clone()),
        ("version", info.version.to_owned()),
        ("up", format!("{} s", up.as_secs())),
        ("clients", listen.join(", ")),
        ("data", info.data_dir.display().to_string()),
        ("shards", board.shards().to_string()),
        ("sessions", sum(|counters| counters.sessions).to_string()),
        ("users", sum(|counters| counters.users).to_string()),
        ("waiting messages", sum(|counters| counters.waiting_messages).to_string()),
    ];
    let mut table = String::new();
    for (name, value) in rows {
        writeln!(table, "<tr><th>{name}<td>{}", escaped(&value))
            .expect("a string takes everything");
    }
    format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>iris-shard</title>\n\
         <style>body{{font:16px/1.5 system-ui;margin:2rem;max-width:45rem}}\
         th{{text-align:left;padding-right:1rem;font-weight:normal;color:#666}}</style>\n\
         <h1>iris-shard</h1>\n<table>\n{table}</table>\n<ul>\n\
         <li><a href=\"/health\">/health</a>: whether everything works, for programs\n\
         <li><a href=\"/metrics\">/metrics</a>: counters for Prometheus\n\
         <li><a href=\"/latency\">/latency</a>: percentiles by stage; \
         <a href=\"/latency?by=shard\">by shard</a>\n\
         <li><a href=\"/latency.hgrm?stage=end_to_end\">/latency.hgrm?stage=end_to_end</a>: \
         the whole distribution, for HdrHistogram's plotter; <code>&amp;window=interval</code> \
         for the last ten seconds\n\
         <li><a href=\"/top\">/top</a>: the worst connections, <code>?by=</code>unsent, \
         unacknowledged, sent or received, and users, <code>?by=inbox</code>; \
         <a href=\"/top.json\">/top.json</a> for programs\n\
         </ul>\n"
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
