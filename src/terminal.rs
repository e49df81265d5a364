//! What goes to stdout and stderr. Whoever reads there may stop at any time
//! (`iris-shard inspect | head`, a supervisor that was restarted), and neither a
//! server nor a repair ends because nobody listens any more.

use std::io::{Write, stderr, stdout};

/// A result, to stdout.
pub(crate) fn show(text: &str) {
    let mut out = stdout().lock();
    let shown = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    if let Err(error) = shown
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        tell(&format!("iris-shard: stdout cannot be written to: {error}"));
    }
}

/// A line for a person, to stderr.
pub(crate) fn tell(line: &str) {
    // There is no other place to tell an error.
    let _ = writeln!(stderr(), "{line}");
}
