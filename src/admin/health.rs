//! `/health`: one word for programs, one sentence for people.
//!
//! 200 means that clients are served. 503 means that they are not, all of them:
//! a shard is still starting, hangs, or has stopped after a failed write.

use serde::Serialize;

use super::collected::Latest;

/// A shard that says nothing for this long is taken for hanging, nanoseconds.
const SILENCE_NS_MAX: u64 = 5_000_000_000;

/// The answer.
#[derive(Debug, Serialize)]
pub(super) struct Health {
    /// The word.
    pub(super) status: Status,
    /// What is the matter and what to do about it.
    pub(super) sentence: String,
    /// Whether every shard serves its users.
    #[serde(skip)]
    pub(super) is_serving: bool,
    shards: Vec<OfShard>,
}

/// How it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    /// Everything works.
    Ok,
    /// Not everything works.
    Degraded,
    /// A shard has not published yet.
    Starting,
}

impl Status {
    /// The word.
    pub(super) fn word(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Degraded => "degraded",
            Status::Starting => "starting",
        }
    }
}

#[derive(Debug, Serialize)]
struct OfShard {
    shard: u16,
    /// Time since its last snapshot; null before the first.
    age_ms: Option<u64>,
    poisoned: bool,
    storage_full: bool,
    /// Stored records that could not be read back.
    damaged: u64,
}

/// What can be the matter with shards, the worst first.
struct Complaint {
    is_it: fn(&OfShard) -> bool,
    status: Status,
    /// Whether the others of its kind are still served.
    serves: bool,
    /// What follows "shard 1" or "shards 1, 2": both forms in one.
    sentence: &'static str,
}

const COMPLAINTS: [Complaint; 5] = [
    Complaint {
        is_it: |shard| shard.poisoned,
        status: Status::Degraded,
        serves: false,
        sentence: "takes nothing more, because a write to the log failed: the server stops now \
                   with exit code 74, and goes on from what is stored when it is started again",
    },
    Complaint {
        is_it: |shard| shard.age_ms.is_some_and(|age_ms| age_ms > SILENCE_NS_MAX / 1_000_000),
        status: Status::Degraded,
        serves: false,
        sentence: "has been silent for more than 5 seconds: its core hangs or gets no time; if \
                   it stays so, restart the server",
    },
    Complaint {
        is_it: |shard| shard.age_ms.is_none(),
        status: Status::Starting,
        serves: false,
        sentence: "has not reported yet",
    },
    Complaint {
        is_it: |shard| shard.storage_full,
        status: Status::Degraded,
        serves: true,
        sentence: "refuses new messages, because the next segment of the log cannot be made: \
                   most likely the disk is full, but for what gives space back \
                   (iris_log_reserve_bytes); the server's log says why; with room where the data \
                   directory is it goes on by itself",
    },
    Complaint {
        is_it: |shard| shard.damaged > 0,
        status: Status::Degraded,
        serves: true,
        sentence: "could not read back messages that it had stored: the server's log names the \
                   places; the disk is losing data",
    },
];

/// Judges the shards at `now_ns`.
pub(super) fn health(shards: &[Latest], now_ns: u64) -> Health {
    judge(shards.iter().map(|latest| OfShard::of(latest, now_ns)).collect())
}

fn judge(shards: Vec<OfShard>) -> Health {
    let mut sentences = Vec::new();
    let mut status = Status::Ok;
    let mut is_serving = true;
    for complaint in &COMPLAINTS {
        let which: Vec<String> = shards
            .iter()
            .filter(|shard| (complaint.is_it)(shard))
            .map(|shard| shard.shard.to_string())
            .collect();
        if which.is_empty() {
            continue;
        }
        sentences.push(format!("Shard {} {}.", which.join(", shard "), complaint.sentence));
        is_serving &= complaint.serves;
        if status == Status::Ok {
            status = complaint.status;
        }
    }
    if sentences.is_empty() {
        sentences.push("Every shard works.".to_owned());
    }
    Health { status, sentence: sentences.join(" "), is_serving, shards }
}

impl OfShard {
    fn of(latest: &Latest, now_ns: u64) -> OfShard {
        OfShard {
            shard: latest.shard,
            age_ms: latest.at_mono_ns.map(|at| now_ns.saturating_sub(at) / 1_000_000),
            poisoned: latest.counters.poisoned > 0,
            storage_full: latest.counters.storage_full > 0,
            damaged: latest.counters.damaged,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: OfShard =
        OfShard { shard: 0, age_ms: Some(900), poisoned: false, storage_full: false, damaged: 0 };

    #[track_caller]
    fn check(shards: Vec<OfShard>, status: Status, is_serving: bool, words: &[&str]) {
        let health = judge(shards);
        assert_eq!((health.status, health.is_serving), (status, is_serving));
        for word in words {
            assert!(health.sentence.contains(word), "'{word}' is not in: {}", health.sentence);
        }
    }

    #[test]
    fn each_state_has_its_word_and_sentence() {
        check(vec![], Status::Ok, true, &["Every shard works."]);
        check(vec![WELL], Status::Ok, true, &["Every shard works."]);
        check(vec![OfShard { age_ms: Some(5_000), ..WELL }], Status::Ok, true, &[]);
        let silent = || OfShard { shard: 3, age_ms: Some(5_001), ..WELL };
        check(vec![WELL, silent()], Status::Degraded, false, &["Shard 3 has been silent"]);
        let new = OfShard { age_ms: None, ..WELL };
        check(vec![new], Status::Starting, false, &["Shard 0 has not reported yet."]);
        let full = OfShard { storage_full: true, ..WELL };
        check(vec![full], Status::Degraded, true, &["refuses new messages"]);
        let damaged = OfShard { damaged: 1, ..WELL };
        check(vec![damaged], Status::Degraded, true, &["could not read back"]);
        let poisoned = |shard| OfShard { shard, poisoned: true, ..WELL };
        check(
            vec![poisoned(1), poisoned(2), silent(), OfShard { age_ms: None, ..WELL }],
            Status::Degraded,
            false,
            &["Shard 1, shard 2 takes nothing more", "Shard 3", "Shard 0 has not"],
        );
    }
}
