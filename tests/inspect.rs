//! `iris-shard inspect` on directories that the real server wrote: what it shows
//! of them, and that it changes nothing.

mod server;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use serde_json::Value;
use server::files::{
    body, check, contents, filled, find, flip, iris_shard, json, segment, snapshots, written,
};
use server::{PATIENCE, Setup};
use wal::manifest::Manifest;

#[test]
fn a_directory_is_shown() {
    let setup = written(5);
    let before = contents(setup.data_dir());
    let output = iris_shard("inspect", setup.data_dir(), &[]);
    check(&output, 0, &["format 5, 1 shard", "5 messages", "SEGMENT", "no snapshots"]);
    let shown = json(&iris_shard("inspect", setup.data_dir(), &["--json"]), 0);
    assert_eq!(shown["starts"], true);
    assert_eq!(shown["running"], Value::Null);
    let shard = &shown["shards"][0];
    assert_eq!(shard["holds"]["waiting_messages"], 5);
    assert_eq!(shard["holds"]["users"], 2, "alice and bob");
    assert_eq!(shard["segments"][0]["live_messages"], 5);
    assert_eq!(shard["segments"][0]["flaw"], Value::Null);
    assert!(contents(setup.data_dir()) == before, "looking changes nothing");
}

#[test]
fn an_inbox_and_a_record_are_shown() {
    let setup = written(5);
    let dir = setup.data_dir();
    let shown = json(&iris_shard("inspect", dir, &["--inbox", "bob", "--json"]), 0);
    assert_eq!(shown["waiting_messages"], 5);
    let entries = shown["entries"].as_array().unwrap();
    assert_eq!(entries.len(), 5);
    assert_eq!(entries[2]["message"]["from"], "alice");
    assert_eq!(entries[2]["message"]["send_seq"], 3);
    let position = entries[2]["position"].as_u64().unwrap();
    let place = format!("0:{position}");
    let shown = json(&iris_shard("inspect", dir, &["--record", &place, "--json"]), 0);
    assert_eq!(shown["kind"], "message");
    assert_eq!(shown["body_text"], body(2));
    assert_eq!(shown["fields"]["to"], "bob");
    check(&iris_shard("inspect", dir, &["--record", &place]), 0, &["message at", &body(2)]);
    check(&iris_shard("inspect", dir, &["--record", "0:0"]), 0, &["commit at", "number: 1"]);
    let text = iris_shard("inspect", dir, &["--inbox", "bob", "--limit", "2"]);
    check(&text, 0, &["waiting: 5 messages", "and 3 more", "alice", "guaranteed", "no device"]);
}

#[test]
fn what_is_not_there_is_told() {
    let setup = written(1);
    let dir = setup.data_dir();
    check(&iris_shard("inspect", dir, &["--inbox", "carol"]), 3, &["nobody named carol"]);
    check(&iris_shard("inspect", dir, &["--record", "0:7"]), 3, &["no record", "file offset 4103"]);
    check(&iris_shard("inspect", dir, &["--record", "9:0"]), 2, &["no shard 9"]);
    check(&iris_shard("inspect", dir, &["--record", "0:99999999999"]), 3, &["is not there"]);
    check(&iris_shard("inspect", dir, &["--record", "x"]), 2, &["SHARD:POSITION"]);
    let other = tempfile::tempdir().unwrap();
    check(&iris_shard("inspect", other.path(), &[]), 3, &["no data directory of iris-shard"]);
    check(&iris_shard("inspect", &other.path().join("none"), &[]), 3, &["no data directory"]);
    assert_eq!(fs::read_dir(other.path()).unwrap().count(), 0, "nothing was made");
    fs::write(other.path().join("thesis.txt"), "all there is").unwrap();
    check(&iris_shard("inspect", other.path(), &[]), 3, &["thesis.txt"]);
}

#[test]
fn a_running_server_is_told_of_and_not_disturbed() {
    let server = Setup::new().shards(1).start();
    let mut alice = server.v2("alice", 1);
    let dir = server.setup().data_dir().to_owned();
    alice.send_and_wait(b"bob", b"hello", PATIENCE).unwrap();
    let shown = json(&iris_shard("inspect", &dir, &["--json"]), 0);
    assert_eq!(shown["running"]["pid"], server.pid());
    let pid = server.pid().to_string();
    let inbox = iris_shard("inspect", &dir, &["--inbox", "bob"]);
    check(&inbox, 0, &["in use by the server with process id", &pid, "waiting: 1 messages"]);
    alice.send_and_wait(b"bob", b"still here", PATIENCE).unwrap();
    server.stop();
}

#[test]
fn snapshots_are_shown() {
    let setup = filled(600);
    let shown = json(&iris_shard("inspect", setup.data_dir(), &["--json"]), 0);
    let shard = &shown["shards"][0];
    assert_eq!(shard["holds"]["waiting_messages"], 600);
    let snapshots = shard["snapshots"].as_array().unwrap();
    assert_eq!(snapshots.last().unwrap()["used"], true);
    assert_eq!(shard["segments"][0]["below_snapshot"], true);
    // What a start does not read is not read here, and that is said.
    assert!(shard["log"]["unchecked_below"].as_u64() > Some(0));
    check(&iris_shard("inspect", setup.data_dir(), &[]), 0, &["not checked: bytes before"]);
    // A damaged one is told of, and the start would use another.
    let newest = PathBuf::from(snapshots.last().unwrap()["file"].as_str().unwrap());
    let mut bytes = fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&newest, bytes).unwrap();
    check(&iris_shard("inspect", setup.data_dir(), &[]), 0, &["damaged: the checksum"]);
    assert!(newest.exists(), "looking sets nothing aside");
}

/// How much waits in each file of a segment: messages and bytes.
fn live(shard: &Value) -> Vec<[u64; 2]> {
    let segments = shard["segments"].as_array().unwrap();
    let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("in {shard}"));
    segments.iter().map(|it| ["live_messages", "live_bytes"].map(|key| number(&it[key]))).collect()
}

/// A start is refused, and what is shown is what a repair keeps, to the byte.
#[track_caller]
fn check_kept(setup: &Setup, messages: u64) -> Vec<[u64; 2]> {
    let dir = setup.data_dir();
    let before = contents(dir);
    let kept = format!("a repair would keep: {messages} messages (");
    let text = check(&iris_shard("inspect", dir, &[]), 3, &[&kept, "LIVE, SHARE and MESSAGES"]);
    assert!(!text.contains(" ?"), "all is known: {text}");
    let shown = json(&iris_shard("inspect", dir, &["--json"]), 3);
    assert!(contents(dir) == before, "looking changes nothing");
    let shard = &shown["shards"][0];
    assert_eq!((&shown["starts"], &shard["holds"]), (&false.into(), &Value::Null));
    let live = live(shard);
    let total = |which: usize| live.iter().map(|it| it[which]).sum::<u64>();
    assert_eq!(
        (total(0), &shard["repair_keeps"]["waiting_messages"]),
        (messages, &messages.into())
    );
    assert_eq!(shard["repair_keeps"]["waiting_bytes"], total(1));
    let looked = json(&iris_shard("repair", dir, &["--json"]), 3);
    assert_eq!(looked["shards"][0]["kept_messages"], messages);
    check(&iris_shard("repair", dir, &["--yes"]), 0, &["Repaired"]);
    let shown = json(&iris_shard("inspect", dir, &["--json"]), 0);
    let shard = &shown["shards"][0];
    assert_eq!((&shown["starts"], &shard["repair_keeps"]), (&true.into(), &Value::Null));
    assert_eq!(shard["holds"]["waiting_messages"], messages);
    assert_eq!(shard["holds"]["waiting_bytes"], total(1));
    live
}

#[test]
fn of_a_damaged_directory_what_a_repair_keeps_is_shown() {
    // One rotten record.
    let setup = written(60);
    let path = segment(&setup, 0);
    flip(&path, find(&path, &body(30)));
    check_kept(&setup, 59);
    // A segment in the middle is gone.
    let setup = filled(600);
    let shown = json(&iris_shard("inspect", setup.data_dir(), &["--json"]), 0);
    let mut expected = live(&shown["shards"][0]);
    let [gone, _] = expected.remove(2);
    assert!(gone > 50, "{expected:?}");
    fs::remove_file(segment(&setup, 2)).unwrap();
    assert_eq!(check_kept(&setup, 600 - gone), expected);
}

/// Each is told of under the name that it has.
#[test]
fn segments_under_each_others_names_are_shown_with_what_is_in_them() {
    let server = filled(600).start();
    let mut bob = server.v2("bob", 1);
    for _ in 0..30 {
        let delivery = bob.next_delivery(PATIENCE).unwrap().expect("a message");
        bob.ack(delivery.inbox_seq).unwrap();
    }
    bob.ping(1, PATIENCE).unwrap();
    drop(bob);
    let setup = server.stop();
    let shown = json(&iris_shard("inspect", setup.data_dir(), &["--json"]), 0);
    let mut expected = live(&shown["shards"][0]);
    assert!(expected[0] < expected[1], "the first ones are acknowledged: {expected:?}");
    let [first, second] = [0, 1].map(|index| segment(&setup, index));
    let between = first.with_extension("between");
    for (from, to) in [(&first, &between), (&second, &first), (&between, &second)] {
        fs::rename(from, to).unwrap();
    }
    expected.swap(0, 1);
    assert_eq!(check_kept(&setup, 570), expected);
}

#[test]
fn of_a_lost_shard_is_said_what_a_start_says() {
    let server = Setup::new().shards(2).start();
    let mut alice = server.v2("alice", 1);
    // One of each shard.
    for name in server.names("user", 1) {
        alice.send_and_wait(name.as_bytes(), b"for you", PATIENCE).unwrap();
    }
    drop(alice);
    let setup = server.stop();
    let dir = setup.data_dir();
    fs::remove_dir_all(dir.join("shard-0001")).unwrap();
    let words = ["shard-0001 is missing, and with it the messages", "would keep: 0 messages"];
    check(&iris_shard("inspect", dir, &[]), 3, &words);
    setup.check_refused(3, &words[..1]);
    let shown = json(&iris_shard("inspect", dir, &["--json"]), 3);
    let [kept, lost] = [0, 1].map(|shard| &shown["shards"][shard]);
    assert_eq!((&kept["refusal"], &kept["holds"]["waiting_messages"]), (&Value::Null, &1.into()));
    assert_eq!(lost["repair_keeps"]["waiting_messages"], 0);
}

/// What is there may only seem to be damaged, and nothing is repaired now.
#[test]
fn beside_a_server_nothing_is_said_of_a_repair() {
    let server = Setup::new().shards(1).start();
    server.v2("alice", 1).send_and_wait(b"bob", body(1).as_bytes(), PATIENCE).unwrap();
    // Two writes: what no later one vouches for would be a torn end.
    server.v2("alice", 2).send_and_wait(b"bob", body(2).as_bytes(), PATIENCE).unwrap();
    let path = segment(server.setup(), 0);
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"T", find(&path, &body(1)) as u64).unwrap();
    let dir = server.setup().data_dir();
    check(&iris_shard("inspect", dir, &[]), 3, &["is damaged at file offset", " ?"]);
    let shown = json(&iris_shard("inspect", dir, &["--json"]), 3);
    let shard = &shown["shards"][0];
    assert_eq!(
        (&shown["running"]["pid"], &shard["repair_keeps"]),
        (&server.pid().into(), &Value::Null)
    );
    assert_eq!(shard["segments"][0]["live_bytes"], Value::Null);
    let setup = server.kill();
    check_kept(&setup, 1);
}

/// A start is refused, and what a repair would keep of an inbox is shown.
#[test]
fn a_damaged_inbox_is_shown() {
    let setup = written(5);
    let dir = setup.data_dir();
    let path = segment(&setup, 0);
    flip(&path, find(&path, &body(2)));
    let before = contents(dir);
    let shown = json(&iris_shard("inspect", dir, &["--inbox", "bob", "--json"]), 3);
    assert!(shown["refusal"].as_str().unwrap().contains("damaged"), "{shown}");
    assert_eq!(
        (&shown["waiting_messages"], &shown["missing"]["recognised"]),
        (&4.into(), &1.into())
    );
    let entries = shown["entries"].as_array().unwrap();
    let numbers: Vec<u64> =
        entries.iter().map(|it| it["message"]["send_seq"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [1, 2, 4, 5]);
    let words = ["a start would be refused", "would keep", "1 damaged records", "waiting: 4"];
    check(&iris_shard("inspect", dir, &["--inbox", "bob"]), 3, &words);
    let words = ["nobody named carol", "a start would be refused"];
    check(&iris_shard("inspect", dir, &["--inbox", "carol"]), 3, &words);
    assert!(contents(dir) == before, "looking changes nothing");
}

/// It is not damaged, and nobody says so: not a start, not a repair, not a look.
#[test]
fn a_snapshot_of_a_newer_version_is_called_that() {
    let setup = filled(600);
    let dir = setup.data_dir();
    let path = snapshots(&setup).pop().expect("one at least");
    let text = fs::read_to_string(dir.join("manifest.toml")).unwrap();
    let manifest = Manifest::decode(&text).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    // Length, checksum, kind, "irisSNP\n", format.
    let newer = manifest.format + 1;
    bytes[17..21].copy_from_slice(&newer.to_le_bytes());
    let len: [u8; 4] = bytes[..4].try_into().unwrap();
    let frame = u32::from_le_bytes(len) as usize;
    let head = [&manifest.salts[0].to_le_bytes()[..], &[0; 4], &len, &bytes[8..frame]].concat();
    bytes[4..8].copy_from_slice(&crc32c::crc32c(&head).to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let words = [&format!("has format {newer}")[..], "run the version that wrote it"];
    setup.check_refused(3, &words);
    check(&iris_shard("repair", dir, &["--yes"]), 3, &words);
    let name = format!("a newer version's: its format is {newer}");
    check(&iris_shard("inspect", dir, &[]), 3, &[&name]);
    let shown = json(&iris_shard("inspect", dir, &["--json"]), 3);
    let seen = shown["shards"][0]["snapshots"].as_array().unwrap().last().unwrap();
    assert_eq!(seen["newer_format"], newer, "{seen}");
}
