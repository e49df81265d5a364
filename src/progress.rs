//! Says how far something long has come, now and then while it takes.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use wal::disk::{Phase, Progress};
use wire::id::ShardId;

use crate::inspect::bytes;
use crate::terminal;

/// Between two words to who looks at a terminal.
const PAUSE: Duration = Duration::from_secs(1);

/// Where it is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Log,
    Stderr,
    Nowhere,
}

/// Remembers when it spoke last.
#[derive(Debug)]
pub(crate) struct Teller {
    place: Place,
    pause: Duration,
    last: Instant,
}

impl Teller {
    /// To the log, for a server.
    pub(crate) fn to_log(pause: Duration) -> Teller {
        Teller { place: Place::Log, pause, last: Instant::now() }
    }

    /// To the terminal, if there is one or it is `asked` for; results go to
    /// stdout and stay clean.
    pub(crate) fn to_stderr(asked: bool) -> Teller {
        let place = if asked || stderr().is_terminal() { Place::Stderr } else { Place::Nowhere };
        Teller { place, pause: PAUSE, last: Instant::now() }
    }

    /// Says it if the last word is long enough ago.
    pub(crate) fn tell(&mut self, what: impl FnOnce() -> String) {
        if self.place == Place::Nowhere || self.last.elapsed() < self.pause {
            return;
        }
        self.last = Instant::now();
        match self.place {
            Place::Log => tracing::info!("{}", what()),
            Place::Stderr => terminal::tell(&what()),
            Place::Nowhere => {}
        }
    }

    /// How far reading a shard back is.
    pub(crate) fn reading(&mut self, shard: ShardId, progress: Progress) {
        self.tell(|| {
            let what = match progress.phase {
                Phase::Snapshot => "snapshot",
                Phase::Log => "log",
            };
            let (done, total) = (bytes(progress.done), bytes(progress.total));
            format!("shard {shard}: read {done} of {total} of the {what}")
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_speaks_once_a_second_where_it_is_heard() {
        for (place, expected) in [(Place::Stderr, 1), (Place::Nowhere, 0)] {
            let long_ago = Instant::now().checked_sub(PAUSE).expect("the machine runs longer");
            let mut teller = Teller { place, pause: PAUSE, last: long_ago };
            let mut said = 0;
            for _ in 0..2 {
                teller.tell(|| {
                    said += 1;
                    "half of it is done".to_owned()
                });
            }
            assert_eq!(said, expected);
        }
    }
}
