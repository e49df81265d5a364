//! What goes to stdout and stderr. Whoever reads there may stop at any time
//! (`iris-shard inspect | head`, a supervisor that was restarted), and neither a
//! server nor a repair ends because nobody listens any more.

use std::io::{ErrorKind, Write, stderr, stdout};

use crate::exit::Exit;

/// A result, to stdout.
///
/// # Errors
/// When it does not arrive although somebody wants it: a file on a full disk.
pub(crate) fn show(text: &str) -> Result<(), Exit> {
    let mut out = stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Exit::disk(format!("stdout cannot be written to: {error}")))
        }
        _ => Ok(()),
    }
}

/// The same of what is done whether or not it arrives, which it returns.
pub(crate) fn mention(text: &str) -> bool {
    let shown = show(text);
    if let Err(exit) = &shown {
        tell(&format!("iris-shard: {exit}"));
    }
    shown.is_ok()
}

/// A line for a person, to stderr.
pub(crate) fn tell(line: &str) {
    // There is no other place to tell an error.
    let _ = writeln!(stderr(), "{line}");
}
