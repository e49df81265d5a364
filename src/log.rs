//! The server's log: structured lines on stderr, text or JSON.
//!
//! A shard must never wait for whoever reads stderr, so lines go through a
//! bounded queue to a thread of their own; when it is full, lines are dropped
//! and the next one that fits says how many. What is logged is chosen by the
//! callers: names and counts, never tokens or message bodies.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{Config, LogFormat, LogLevel};

/// Lines that wait for stderr before more are dropped.
const LINES_MAX: usize = 4096;
/// How long the end of the process waits for the last lines.
const FLUSH: Duration = Duration::from_secs(1);

/// Keeps the log going; dropping it waits for the lines logged so far.
pub(crate) struct Log {
    queue: Queue,
}

enum Entry {
    Line(Vec<u8>),
    /// Answered when everything before it is written.
    Flush(SyncSender<()>),
}

/// Starts the log; what is logged before goes nowhere.
///
/// # Errors
/// There is no thread to be had.
///
/// # Panics
/// When called twice in one process.
pub(crate) fn start(config: &Config) -> io::Result<Log> {
    let (sender, receiver) = sync_channel(LINES_MAX);
    let dropped = Arc::new(AtomicU64::new(0));
    let queue = Queue { sender, dropped: Arc::clone(&dropped) };
    thread::Builder::new()
        .name("log".to_owned())
        .spawn(move || write_lines(&receiver, &dropped, &mut io::stderr()))?;

    let lines = tracing_subscriber::fmt()
        .with_max_level(filter(config.log_level))
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(queue.clone());
    match config.log_format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    Ok(Log { queue })
}

impl Drop for Log {
    fn drop(&mut self) {
        let (done, flushed) = sync_channel(1);
        // A reader that blocks stderr must not keep the process alive.
        if self.queue.sender.try_send(Entry::Flush(done)).is_ok() {
            let _ = flushed.recv_timeout(FLUSH);
        }
    }
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

fn write_lines(entries: &Receiver<Entry>, dropped: &AtomicU64, out: &mut dyn Write) {
    // Errors are ignored: there is no other place to tell them.
    for entry in entries {
        match entry {
            Entry::Line(line) => {
                let _ = out.write_all(&line);
            }
            Entry::Flush(done) => {
                let _ = out.flush();
                let _ = done.try_send(());
            }
        }
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let _ =
                writeln!(out, "{{\"level\":\"WARN\",\"message\":\"{lost} log lines dropped\"}}");
        }
    }
}

/// The sending end; a line is one `write`.
#[derive(Clone)]
struct Queue {
    sender: SyncSender<Entry>,
    dropped: Arc<AtomicU64>,
}

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.sender.try_send(Entry::Line(line.to_vec())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Queue {
    type Writer = Queue;

    fn make_writer(&self) -> Queue {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_drops_and_says_so() {
        let (sender, receiver) = sync_channel(2);
        let mut queue = Queue { sender, dropped: Arc::new(AtomicU64::new(0)) };
        for line in [&b"one\n"[..], b"two\n", b"three\n", b"four\n"] {
            assert_eq!(queue.write(line).unwrap(), line.len());
        }
        let dropped = Arc::clone(&queue.dropped);
        drop(queue);
        let mut out = Vec::new();
        write_lines(&receiver, &dropped, &mut out);
        let out = String::from_utf8(out).unwrap();
        assert!(out.starts_with("one\n") && out.ends_with("two\n"), "{out}");
        assert!(out.contains("2 log lines dropped"), "{out}");
    }
}
