//! The word that a test leaves which cannot be run here: it passes all the
//! same, and cargo hides what a test that passes has printed.

use std::env;
use std::fmt::Display;
use std::fs::File;
use std::io::Write;
use std::thread;

/// Names a file to which each skipped test adds a line. `scripts/test` sets it
/// and shows that file at its end.
const LIST: &str = "SKIPPED_TESTS";
/// Says that this machine has everything, so that a test that is skipped has
/// failed.
const NONE: &str = "NO_SKIPPED_TESTS";

/// To be said before a test returns early.
#[track_caller]
pub fn skipped(why: impl Display) {
    let why = why.to_string().replace('\n', " ");
    assert!(env::var_os(NONE).is_none(), "not to be skipped ({NONE} is set): {why}");
    println!("skipped: {why}");
    if let Some(list) = env::var_os(LIST) {
        // The test's name, unless it runs on the main thread.
        let thread = thread::current();
        let line =
            format!("{}: {}: {why}\n", env!("CARGO_CRATE_NAME"), thread.name().unwrap_or("?"));
        // In one write: other tests add theirs at the same time.
        let file = File::options().append(true).create(true).open(list);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the list of the skipped");
    }
}

/// Whether `scripts/test` runs this, which has built everything there is.
pub fn is_listed() -> bool {
    env::var_os(LIST).is_some()
}
