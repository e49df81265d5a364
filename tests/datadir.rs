//! Everything that can be wrong with a data directory, the ports or the limits
//! when the real server starts: a sentence that says what to do, the right exit
//! code, and nothing lost.

mod server;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use client::blocking::{Client, Notice};
use server::files::{
    self, body, check, check_untouched, find, flip, iris_shard, lose_sector, segment, snapshots,
    tear_behind, wait_vouched, wipe_sector,
};
use server::mounted::Mounted;
use server::peer::{Peer, hello, send};
use server::{Deadline, PATIENCE, Server, Setup};
use wal::BLOCK;
use wal::manifest::Manifest;
use wire::id::Class;
use wire::v2::{self, Request};

/// A directory of one shard with this many messages for "bob", each confirmed
/// and each in a commit of its own, left behind by a crash.
fn written(setup: &Setup, messages: usize) {
    let server = setup.start();
    let mut alice = server.v2("alice", 1);
    for n in 0..messages {
        alice.send_and_wait(b"bob", body(n).as_bytes(), PATIENCE).unwrap();
    }
    server.kill();
}

#[track_caller]
fn check_messages(server: &Server, messages: usize) {
    let mut bob = server.v2("bob", 1);
    for n in 0..messages {
        let delivery = bob.next_delivery(PATIENCE).unwrap().expect("a message");
        assert_eq!(String::from_utf8_lossy(&delivery.body), body(n));
    }
    bob.ping(1, PATIENCE).unwrap();
    assert!(bob.next_delivery(Duration::ZERO).unwrap().is_none(), "nothing more");
}

/// Turns one bit of the first place where `text` stands in a file; gives the
/// place.
#[track_caller]
fn damage(path: &Path, text: &str) -> u64 {
    let at = find(path, text);
    flip(path, at);
    at as u64
}

/// A backup is put back that is older than what devices and senders have: they
/// are told, go on, and get whatever waits in it and comes later.
#[test]
fn a_backup_of_an_earlier_day_serves_devices_of_today() {
    let setup = files::written(3);
    let backup = files::contents(setup.data_dir());
    let server = setup.start();
    let (mut alice, mut bob) = (server.v2("alice", 2), server.v2("bob", 1));
    for n in 0..3 {
        let delivery = bob.next_delivery(PATIENCE).unwrap().expect("a message");
        assert_eq!(String::from_utf8_lossy(&delivery.body), body(n));
        bob.ack(delivery.inbox_seq).unwrap();
    }
    // More than a crash can explain while something waits.
    files::pass(&mut alice, &mut bob, 400);
    let (alice, bob) = (alice.into_session(), bob.into_session());
    let ahead = bob.cursor();
    let setup = server.stop();
    fs::remove_dir_all(setup.data_dir()).unwrap();
    for (path, bytes) in &backup {
        fs::create_dir_all(path.parent().expect("it is in the directory")).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let server = setup.start();
    let mut bob = Client::connect_session(server.addr(), bob).unwrap();
    let told: Vec<Notice> =
        std::iter::from_fn(|| bob.next_notice(Duration::ZERO).unwrap()).collect();
    assert!(told.contains(&Notice::StartsOver { cursor: ahead }), "{told:?}");
    let mut alice = Client::connect_session(server.addr(), alice).unwrap();
    alice.send_and_wait(b"bob", b"later", PATIENCE).unwrap();
    let expected = (0..3).map(body).chain(["later".to_owned()]);
    for expected in expected {
        let delivery = bob.next_delivery(PATIENCE).unwrap().expect("a message");
        assert_eq!(String::from_utf8_lossy(&delivery.body), expected);
        bob.ack(delivery.inbox_seq).unwrap();
    }
    bob.ping(1, PATIENCE).unwrap();
    assert!(bob.next_delivery(Duration::ZERO).unwrap().is_none(), "nothing more");
}

/// Files were deleted behind what is left, and nothing says so but that nothing
/// was made ahead.
#[test]
fn a_log_that_ends_with_its_last_file_is_told() {
    let setup = files::filled(600);
    snapshots(&setup).iter().for_each(|path| fs::remove_file(path).unwrap());
    let shown = files::json(&iris_shard("inspect", setup.data_dir(), &["--json"]), 0);
    let end = shown["shards"][0]["log"]["end"].as_u64().unwrap();
    let first = (end / shown["segment_bytes"].as_u64().unwrap()) as u32;
    let there = (first..).map(|index| segment(&setup, index)).take_while(|path| path.exists());
    there.for_each(|path| fs::remove_file(path).unwrap());
    let words = ["healthy", "the log ends where its last file does", "bring them back"];
    check(&iris_shard("repair", setup.data_dir(), &[]), 0, &words);
    let server = setup.start();
    assert!(server.stderr().contains(words[1]), "{}", server.stderr());
}

#[test]
fn a_running_server_keeps_others_out() {
    let server = Setup::new().shards(2).start();
    let pid = server.pid().to_string();
    let words = ["in use", &pid, "choose another directory"];
    server.setup().check_refused(3, &words);
    // It is not hurt by that.
    drop(server.v2("alice", 1));
    // Nor does its death leave a lock behind.
    let server = server.crash_and_restart();
    drop(server.v2("alice", 1));
}

#[test]
fn the_number_of_shards_is_kept_until_another_one_is_asked_for() {
    let setup = Setup::new().shards(3);
    drop(setup.start());
    let other = Setup::in_dir(setup.data_dir());
    let server = other.start();
    assert_eq!(server.metric("iris_shards"), 3.0);
    drop(server);
    let server = other.clone().shards(2).start();
    assert_eq!(server.metric("iris_shards"), 2.0);
    drop(server);
    assert_eq!(other.start().metric("iris_shards"), 2.0);
}

#[test]
fn another_format_is_refused() {
    let setup = Setup::new().shards(1);
    written(&setup, 3);
    let path = setup.data_dir().join("manifest.toml");
    let text = fs::read_to_string(&path).unwrap();
    let newer = Manifest { format: wal::FORMAT + 1, ..Manifest::decode(&text).unwrap() };
    fs::write(&path, newer.encode()).unwrap();
    check_untouched(&setup, &["format 6", "reads formats 1 to 5", "or a newer one"]);
    // One that rotted is another thing.
    fs::write(&path, text.replace("format = 5\n", "format = 7\n")).unwrap();
    check_untouched(&setup, &["its format is damaged", "iris-shard repair"]);
    // An edited manifest is noticed.
    fs::write(&path, text.replace("shards = 1\n", "shards = 2\n")).unwrap();
    check_untouched(&setup, &["manifest.toml", "edited or damaged", "backup"]);
    fs::write(&path, &text[..text.len() / 2]).unwrap();
    check_untouched(&setup, &["manifest.toml", "backup"]);
    fs::write(&path, [0xff, 0xfe, 0]).unwrap();
    check_untouched(&setup, &["manifest.toml", "not text"]);
    fs::remove_file(&path).unwrap();
    check_untouched(&setup, &["no manifest.toml", "shard-0000"]);
    fs::write(&path, text).unwrap();
    check_messages(&setup.start(), 3);
}

#[test]
fn a_directory_of_somebody_else_is_left_alone() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("thesis.txt"), "all there is").unwrap();
    let setup = Setup::in_dir(home.path()).shards(1);
    check_untouched(&setup, &["thesis.txt", "choose an empty or new directory"]);
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1, "nothing was added");
}

#[test]
fn what_is_no_directory_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("file");
    fs::write(&file, "a file").unwrap();
    Setup::in_dir(&file).check_refused(2, &["is a file", "name a directory"]);
    Setup::in_dir(&file.join("below")).check_refused(3, &["not a directory"]);
    // Neither is a place that keeps no directories, nor a link to nothing.
    let words = ["cannot be made", "as /proc does", "choose another data directory"];
    Setup::in_dir(Path::new("/proc/foo")).check_refused(3, &words);
    let link = home.path().join("link");
    std::os::unix::fs::symlink(home.path().join("gone"), &link).unwrap();
    Setup::in_dir(&link).check_refused(3, &["a link that leads nowhere"]);
    Setup::in_dir(&home.path().join("x".repeat(300))).check_refused(3, &["a shorter path"]);
    // A device is neither.
    Setup::in_dir(Path::new("/dev/null")).check_refused(3, &["not a directory"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "a file");
    // What is not there is made, parents included.
    let deep = home.path().join("a/b/c");
    drop(Setup::in_dir(&deep).start());
    assert!(Manifest::load(&deep).is_ok());
}

#[test]
fn what_is_missing_is_named() {
    let setup = Setup::new().shards(2);
    drop(setup.start());
    let shard = setup.data_dir().join("shard-0001");
    let aside = setup.data_dir().join("../aside");
    fs::rename(&shard, &aside).unwrap();
    check_untouched(&setup, &["shard-0001", "missing", "backup"]);
    fs::rename(&aside, &shard).unwrap();
    drop(setup.start());
}

/// Two segments' worth of messages, confirmed in batches.
fn filled(setup: &Setup) {
    let server = setup.start();
    let mut alice = server.v2("alice", 1);
    let body = vec![b'f'; 10_000];
    for n in 1..=250 {
        let seq = alice.send(b"bob", &body, Class::Guaranteed).unwrap();
        if n % 50 == 0 {
            alice.wait_sent(b"bob", seq, PATIENCE).unwrap();
        }
    }
    server.kill();
}

#[test]
fn a_start_says_how_far_it_is() {
    let setup = Setup::new().shards(1);
    filled(&setup);
    // It was killed before its snapshot was there, or after.
    let server = setup.start();
    let deadline = Deadline::new();
    let shard = setup.data_dir().join("shard-0000");
    let names = || fs::read_dir(&shard).unwrap().map(|entry| entry.unwrap().file_name());
    while !names().any(|name| name.to_string_lossy().ends_with(".snap")) {
        deadline.pause(|| "there is no snapshot".into());
    }
    server.kill();
    let server = setup.set("debug.progress_ms", "0").start();
    let said = server.said_in_boot("shard 0: read ");
    for what in [" of the snapshot", " of the log"] {
        let words = said.iter().rev().find_map(|words| words.strip_suffix(what));
        let (done, total) = words.and_then(|words| words.split_once(" of ")).expect(what);
        assert_eq!(done, total, "{said:?}");
    }
}

#[test]
fn a_missing_or_cut_segment_stops_the_boot() {
    let setup = Setup::new().shards(1);
    filled(&setup);
    let (first, second) = (segment(&setup, 0), segment(&setup, 1));
    let aside = setup.data_dir().join("../aside");
    fs::rename(&first, &aside).unwrap();
    check_untouched(&setup, &["segment-0000000000.log", "missing"]);
    // Another one's place.
    fs::copy(&second, &first).unwrap();
    check_untouched(&setup, &["segment-0000000000.log"]);
    // Half of it.
    let whole = fs::read(&aside).unwrap();
    fs::write(&first, &whole[..whole.len() / 2]).unwrap();
    check_untouched(&setup, &["segment-0000000000.log", "bytes long instead of"]);
    fs::rename(&aside, &first).unwrap();
    let server = setup.start();
    let mut bob = server.v2("bob", 1);
    for seq in 1..=250 {
        let delivery = bob.next_delivery(PATIENCE).unwrap().expect("a message");
        assert_eq!(delivery.send_seq, seq);
        bob.ack(delivery.inbox_seq).unwrap();
    }
}

#[test]
fn damage_in_the_middle_stops_the_boot() {
    let setup = Setup::new().shards(1);
    written(&setup, 60);
    let path = segment(&setup, 0);
    for n in [0, 30, 50] {
        let at = damage(&path, &body(n));
        let stderr = check_untouched(&setup, &["segment-0000000000.log", "damaged at file offset"]);
        let told = stderr.split("file offset ").nth(1).and_then(|rest| rest.split(' ').next());
        let told: u64 = told.unwrap().parse().unwrap();
        assert!(told <= at && at < told + 8192, "damage at {at}, told {told}");
        // The same bit again: whole as before.
        let damaged = body(n).replacen('t', "u", 1);
        assert_eq!(damage(&path, &damaged), at);
    }
    check_messages(&setup.start(), 60);
}

#[test]
fn a_torn_tail_is_cut_and_reported() {
    let setup = Setup::new().shards(1);
    written(&setup, 39);
    let torn = body(39).repeat(40);
    let server = setup.start();
    server.v2("alice", 2).send_and_wait(b"bob", torn.as_bytes(), PATIENCE).unwrap();
    server.kill();
    let path = segment(&setup, 0);
    let at = find(&path, &torn);
    // The last commit, for which no later one vouches, has lost a sector.
    lose_sector(&path, at + torn.len() / 2);
    tear_behind(&path, at);
    let words = ["healthy", "belong to no whole commit", "a start cuts them"];
    check(&iris_shard("repair", setup.data_dir(), &[]), 0, &words);
    let looked = files::json(&iris_shard("repair", setup.data_dir(), &["--json"]), 0);
    assert!(looked["shards"][0]["torn"]["bytes"].as_u64().unwrap() > 0, "{looked}");
    let server = setup.start();
    server.wait_said("cut");
    check_messages(&server, 39);
    // Nothing of it is left where the log goes on.
    let bytes = fs::read(&path).unwrap();
    assert!(!bytes.windows(body(39).len()).any(|it| it == body(39).as_bytes()));
    // It goes on behind what is left.
    let mut alice = server.v2("alice", 2);
    alice.send_and_wait(b"bob", body(39).as_bytes(), PATIENCE).unwrap();
    let server = server.crash_and_restart();
    check_messages(&server, 40);
}

/// Nothing vouches for a commit that is followed by none, but all of its sectors are
/// there. What is whole in it is kept, whether a record of it has rotted or what says
/// that it begins there.
#[test]
fn rot_in_the_last_commit_is_damage() {
    let check = |in_head: bool, kept: &[usize]| {
        let setup = Setup::new().shards(1);
        let path = last_commit(&setup, &[2, 3, 4].map(body));
        let rotten = find(&path, &body(3));
        flip(&path, if in_head { rotten / BLOCK * BLOCK + 20 } else { rotten });
        check_mended(&setup, kept.iter().map(|n| body(*n)));
    };
    check(false, &[0, 1, 2, 4]);
    check(true, &[0, 1, 2, 3, 4]);
}

/// Nor is a sector lost of which nothing but zeroes is left: a torn write leaves what
/// the segment was filled with.
#[test]
fn zeroes_in_the_last_commit_are_damage() {
    let long = |n| body(n).repeat(60);
    let check = |wiped: &dyn Fn(&Path) -> usize, kept: &[usize]| {
        let setup = Setup::new().shards(1);
        let path = last_commit(&setup, &[2, 3, 4].map(long));
        wipe_sector(&path, wiped(&path));
        let text = |n: &usize| if *n < 2 { body(*n) } else { long(*n) };
        check_mended(&setup, kept.iter().map(text));
    };
    let middle = |n| move |path: &Path| find(path, &long(n)) + long(n).len() / 2;
    check(&middle(3), &[0, 1, 2, 4]);
    check(&middle(4), &[0, 1, 2, 3]);
    // With what says that a commit begins there.
    check(&|path| find(path, &long(2)) / BLOCK * BLOCK, &[0, 1, 3, 4]);
}

/// Two messages of `written`, then these in one write, which is one commit, for which
/// nothing vouches; the segment's path.
fn last_commit(setup: &Setup, bodies: &[String]) -> PathBuf {
    written(setup, 2);
    let server = setup.start();
    let (mut alice, _) = Peer::v2(server.addr(), &hello("alice", 2));
    let mut bytes = Vec::new();
    for (seq, body) in (1..).zip(bodies) {
        v2::put_request(&mut bytes, &Request::Send(send("bob", seq, body.as_bytes())));
    }
    alice.write(&bytes);
    (1..=bodies.len() as u64).for_each(|seq| _ = alice.expect_sent(seq));
    drop((alice, server.kill()));
    let path = segment(setup, 0);
    let last = &bodies[bodies.len() - 1];
    tear_behind(&path, find(&path, last) + last.len() - 1);
    path
}

/// The end of the log is damaged, and a repair keeps these messages.
fn check_mended(setup: &Setup, kept: impl Iterator<Item = String>) {
    let words = ["segment-0000000000.log", "damaged at file offset", "has changed since"];
    check_untouched(setup, &words);
    check(&iris_shard("repair", setup.data_dir(), &["--yes"]), 0, &["Repaired"]);
    let server = setup.start();
    let mut bob = server.v2("bob", 1);
    for body in kept {
        let delivery = bob.next_delivery(PATIENCE).unwrap().expect("a message");
        assert_eq!(String::from_utf8_lossy(&delivery.body), body);
    }
    bob.ping(1, PATIENCE).unwrap();
    assert!(bob.next_delivery(Duration::ZERO).unwrap().is_none(), "nothing more");
}

/// Even without a client, a server that stops vouches for what it has found.
#[test]
fn rot_after_a_clean_stop_is_damage() {
    let setup = Setup::new().shards(1);
    written(&setup, 40);
    let setup = setup.start().stop();
    damage(&segment(&setup, 0), &body(39));
    let words = ["segment-0000000000.log", "damaged at file offset", "had been acknowledged"];
    check_untouched(&setup, &words);
}

/// So does one at rest, after a moment.
#[test]
fn rot_after_a_rest_is_damage() {
    let setup = Setup::new().shards(1);
    let server = setup.start();
    let mut alice = server.v2("alice", 1);
    alice.send_and_wait(b"bob", body(0).as_bytes(), PATIENCE).unwrap();
    alice.send_and_wait(b"bob", body(1).as_bytes(), PATIENCE).unwrap();
    wait_vouched(&server, &body(1));
    server.kill();
    damage(&segment(&setup, 0), &body(1));
    let words = ["segment-0000000000.log", "damaged at file offset", "had been acknowledged"];
    check_untouched(&setup, &words);
    // Everything else is kept.
    check(&iris_shard("repair", setup.data_dir(), &["--yes"]), 0, &["Repaired"]);
    check_messages(&setup.start(), 1);
}

/// A shard without a file looks like a new one.
#[test]
fn a_shard_that_lost_all_of_its_files_stops_the_boot() {
    let setup = Setup::new().shards(2);
    let setup = setup.start().stop();
    let shard = setup.data_dir().join("shard-0001");
    let aside = setup.data_dir().join("../aside");
    fs::rename(&shard, &aside).unwrap();
    fs::create_dir(&shard).unwrap();
    check_untouched(&setup, &["shard-0001 has lost all segments", "iris-shard repair"]);
    fs::remove_dir(&shard).unwrap();
    fs::rename(&aside, &shard).unwrap();
    let setup = setup.start().stop();
    // A repair begins it anew.
    for file in fs::read_dir(&shard).unwrap() {
        fs::remove_file(file.unwrap().path()).unwrap();
    }
    let repair = |code: i32, arguments: &[&str]| {
        let mut repair = Command::new(env!("CARGO_BIN_EXE_iris-shard"));
        let output = repair.arg("repair").arg("--data-dir").arg(setup.data_dir()).args(arguments);
        let output = output.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        said
    };
    assert!(repair(3, &[]).contains("has lost all segments"));
    repair(0, &["--yes"]);
    setup.start().stop();
}

#[test]
fn strange_files_are_told_of_and_left_alone() {
    let setup = Setup::new().shards(1);
    written(&setup, 5);
    let shard = setup.data_dir().join("shard-0000");
    fs::write(shard.join("notes.txt"), "mine").unwrap();
    fs::write(shard.join("segment-0000000009.log.tmp"), "left by a crash").unwrap();
    let server = setup.start();
    check_messages(&server, 5);
    server.wait_said("notes.txt");
    assert!(shard.join("notes.txt").exists(), "not ours to remove");
    assert!(!shard.join("segment-0000000009.log.tmp").exists(), "ours, and never finished");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let port = addr.port().to_string();
    let setup = Setup::new().shards(2);
    setup.clone().listen(addr).check_refused(4, &[&port, "taken", "--listen"]);
    setup.clone().admin(addr).check_refused(4, &[&port, "taken", "--admin"]);
    assert!(!setup.data_dir().exists(), "a start that cannot serve leaves nothing behind");
    // Also when it is another server that has it.
    let server = setup.start();
    let other = Setup::new().shards(1);
    other.clone().listen(server.addr()).check_refused(4, &["taken", "--listen"]);
    other.listen("192.0.2.1:0".parse().unwrap()).check_refused(2, &["loopback"]);
    drop(server.v2("alice", 1));
}

/// Both see a free port; the kernel lets any number of the same user share it
/// when they say so.
#[test]
fn of_two_servers_that_start_at_once_one_gets_the_port() {
    // Addresses of our own: nobody is given a free port there.
    let [.., high, low] = std::process::id().to_be_bytes();
    for batch in 0..4 {
        thread::scope(|scope| {
            let pairs: Vec<_> = (0..5)
                .map(|pair| {
                    let port = 20_000 + batch * 5 + pair;
                    let addr = SocketAddr::from(([127, 77, high, low], port));
                    let start = move || Setup::new().shards(2).listen(addr).try_start();
                    (scope.spawn(start), scope.spawn(start))
                })
                .collect();
            for (one, other) in pairs {
                let ended = match (one.join().unwrap(), other.join().unwrap()) {
                    (Ok(_server), Err(ended)) | (Err(ended), Ok(_server)) => ended,
                    (Ok(_), Ok(_)) => panic!("both have the port"),
                    (Err(one), Err(other)) => panic!("none started: {one:?} {other:?}"),
                };
                assert_eq!(ended.code, Some(4), "{ended:?}");
                assert!(ended.stderr.contains("is taken by another program"), "{ended:?}");
            }
        });
    }
}

/// A server may take the port of the one before it at once.
#[test]
fn a_port_is_free_again_after_a_stop() {
    let setup = Setup::new().shards(2);
    let server = setup.start();
    let addr = server.addr();
    // Connections that the server ends leave their traces with the port.
    let mut peers: Vec<Peer> = (0..20).map(|n| Peer::v1(addr, &format!("user-{n}"))).collect();
    server.signal(rustix::process::Signal::TERM);
    peers.iter_mut().for_each(Peer::expect_closed);
    drop(peers);
    assert_eq!(server.wait().code, Some(0));
    let again = setup.clone().listen(addr);
    match again.try_start() {
        Ok(server) => assert_eq!(server.addr(), addr),
        // The kernel gives free ports to other tests, too.
        Err(ended) => {
            let taken = TcpListener::bind(addr).is_err();
            assert!(ended.code == Some(4) && taken, "{ended:?}");
        }
    }
}

#[test]
fn limits_that_are_too_low_are_told_before_anything_starts() {
    let setup = Setup::new().shards(2).argument("--direct-descriptors").argument("off");
    let stderr = setup.clone().nofile(64).check_refused(5, &["RLIMIT_NOFILE 64", "prlimit"]);
    assert!(stderr.contains("iris-shard doctor"), "{stderr}");
    assert!(!setup.data_dir().exists(), "nothing was made");
    // More wanted than there can be.
    let greedy = setup.clone().set("limits.conns_max", "100000").set("memory_bytes", "8GiB");
    let greedy = greedy.nofile(1024);
    greedy.check_refused(5, &["RLIMIT_NOFILE"]);
}

/// Few descriptors are enough for few connections; more are turned away and
/// hurt nobody.
#[test]
fn few_descriptors_serve_few_connections() {
    let server = Setup::new().shards(1).nofile(300).start();
    server.wait_said("RLIMIT_NOFILE");
    let mut alice = server.v2("alice", 1);
    let mut bob = server.v2("bob", 1);
    let crowd: Vec<_> =
        (0..400).map(|_| std::net::TcpStream::connect(server.addr()).unwrap()).collect();
    alice.send_and_wait(b"bob", b"in the crowd", PATIENCE).unwrap();
    assert_eq!(bob.next_delivery(PATIENCE).unwrap().expect("served").body, b"in the crowd");
    // The admin has a descriptor, too.
    assert_eq!(server.get("/health").0, 200);
    drop(crowd);
    server.wait_metric("iris_connections", |conns| conns == 2.0);
    drop(server.v2("carol", 1));
}

#[test]
fn a_read_only_file_system_is_told() {
    let Some(mounted) = Mounted::tmpfs("64m") else { return };
    let setup = Setup::in_dir(&mounted.path().join("data")).shards(1);
    written(&setup, 3);
    if mounted.make_read_only().is_none() {
        return;
    }
    check_untouched(&setup, &["read-only", "mount it writable"]);
    let mut doctor = Command::new(env!("CARGO_BIN_EXE_iris-shard"));
    let doctor = doctor.arg("doctor").arg("--data-dir").arg(setup.data_dir()).output().unwrap();
    let said = String::from_utf8_lossy(&doctor.stdout);
    assert_eq!(doctor.status.code(), Some(3), "{said}");
    assert!(said.contains("Cannot start: ") && said.contains("read-only"), "{said}");
    // A new directory there cannot be made either.
    Setup::in_dir(&mounted.path().join("new")).check_refused(3, &["read-only"]);
}

/// Two servers that start at once on one new directory: one serves, the other
/// says why it does not.
#[test]
fn of_two_that_start_at_once_one_serves() {
    for _ in 0..5 {
        let setup = Setup::new().shards(2);
        let other = setup.clone();
        let first = thread::spawn(move || other.try_start());
        let second = setup.try_start();
        let first = first.join().unwrap();
        match (first, second) {
            (Ok(server), Err(ended)) | (Err(ended), Ok(server)) => {
                assert_eq!(ended.code, Some(3), "{}", ended.stderr);
                assert!(ended.stderr.contains("in use"), "{}", ended.stderr);
                drop(server.v2("alice", 1));
            }
            (Ok(_), Ok(_)) => panic!("both serve"),
            (Err(first), Err(second)) => panic!("neither serves: {first:?} {second:?}"),
        }
    }
}
