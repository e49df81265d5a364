//! Which trouble was made, and how often.

use serde_json::{Value, json};

use super::count;
use crate::args::Args;
use crate::figures::Figures;

/// The lines for people.
pub(super) fn lines(args: &Args, figures: &Figures) -> Vec<String> {
    let (asked, done) = (args.chaos(), &figures.chaos);
    let mut parts = Vec::new();
    if asked.kill_ms > 0 {
        parts.push(format!("{} connections cut", count(done.killed)));
    }
    if asked.stall_ms > 0 {
        parts.push(format!("{} readers stopped", count(done.stalled)));
    }
    if asked.drips > 0 {
        parts.push(format!(
            "{} bytes one by one on {} connections ({} messages, {} times cut off)",
            count(done.dripped_bytes),
            asked.drips,
            count(done.dripped_messages),
            count(done.drips_lost)
        ));
    }
    if asked.half_open > 0 {
        parts.push(format!(
            "{} half-open connections ({} closed by the server, {} never came about)",
            count(done.half_opened),
            count(done.half_closed),
            count(done.half_failed)
        ));
    }
    if asked.burners > 0 {
        parts.push(format!("{} threads spinning", asked.burners));
    }
    if parts.is_empty() { Vec::new() } else { vec![format!("chaos        {}", parts.join(", "))] }
}

/// The same for programs; null where there was none.
pub(super) fn json(args: &Args, figures: &Figures) -> Value {
    let asked = args.chaos();
    if asked.is_none() {
        return Value::Null;
    }
    json!({ "asked": asked, "done": figures.chaos })
}
