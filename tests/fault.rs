//! A write of the log that really fails, in the real server: it says so, ends in
//! order, and goes on from what is stored when it is started again.
//!
//! Where no disk can be made to fail, the kernel refuses the write because of a
//! file size limit that is lowered while the server runs: for the server a
//! failure like any other. A device that answers EIO is a loop device whose
//! file's file system is full: not every kernel has a device mapper.

mod server;

use std::fs::{self, TryLockError};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use client::Session;
use client::blocking::{Client, Notice};
use rustix::process::{Resource, Signal};
use server::files::{segment, wait_vouched};
use server::mounted::Mounted;
use server::{Deadline, PATIENCE, Server, Setup};
use tuning::disk::{O_DIRECT, RWF_DSYNC};
use wire::id::Class;
use wire::refuse::Code;

/// So many that both shards have some.
const CROWD: usize = 40;

/// The segment's header is as far as a file may reach.
fn fail_writes(server: &Server) {
    server.limit(Resource::Fsize, Some(4096));
}

/// Why the server asks this client to go.
#[track_caller]
fn goodbye(client: &mut Client) -> u16 {
    loop {
        match client.next_notice(PATIENCE).unwrap() {
            Some(Notice::Goaway { code, .. }) => return code,
            Some(_) => {}
            None => panic!("no GOAWAY"),
        }
    }
}

/// While anybody is still connected `/health` tells.
#[track_caller]
fn wait_until_told(server: &Server) {
    let deadline = Deadline::new();
    loop {
        let (status, health) = server.get("/health");
        if status == 503 && health.contains("exit code 74") {
            return;
        }
        deadline.pause(|| format!("{status} {health}"));
    }
}

const FIRST_SEGMENT: &str = "segment-0000000000.log";

/// Whether somebody waits for the lock of this file.
fn is_awaited(file: &fs::File) -> bool {
    let inode = format!(":{} ", file.metadata().unwrap().ino());
    let locks = fs::read_to_string("/proc/locks").unwrap();
    locks.lines().any(|line| line.contains("-> FLOCK") && line.contains(&inode))
}

/// A process may end before what it has written to its log arrives. Nothing is read
/// before that is there, or it would come over what the next server writes.
#[test]
fn a_start_waits_for_the_writes_of_a_server_that_is_gone() {
    let server = Setup::new().shards(1).start();
    server.v2("alice", 1).send_and_wait(b"bob", b"first", PATIENCE).unwrap();
    let file = fs::File::open(segment(server.setup(), 0)).unwrap();
    let is_locked = |file: &fs::File| matches!(file.try_lock(), Err(TryLockError::WouldBlock));
    assert!(is_locked(&file), "by the server that writes to it");
    let setup = server.kill();
    // As a write that is still under way has it.
    file.lock().unwrap();
    let is_told = |said: &str| said.contains("waiting for") && said.contains(FIRST_SEGMENT);
    let said = setup.kill_in_boot_when(|said| is_awaited(&file) && is_told(&said.text()));
    assert!(is_told(&said), "ready before the lock was free: {said}");
    drop(file);
    let server = setup.start();
    let delivery = server.v2("bob", 1).next_delivery(PATIENCE).unwrap();
    assert_eq!(delivery.expect("a message").body, b"first");
}

/// Which is what happens on a disk that hangs.
#[test]
fn a_write_that_outlives_its_server_keeps_its_segment_locked() {
    let Some(outer) = Mounted::ext4(128 << 20) else { return };
    let Some(inner) = Mounted::ext4_in(outer.path(), 64 << 20) else { return };
    let Some(()) = inner.commit_when_asked() else { return };
    // With O_DIRECT, whatever else the tests run without: a buffered write keeps the process itself.
    let setup = Setup::in_dir(&inner.path().join("data")).shards(1);
    let server = setup.set("debug.without", "multishot_accept").start();
    let mut alice = server.v2("alice", 1);
    alice.send_and_wait(b"bob", b"first", PATIENCE).unwrap();
    // Nothing else will be written.
    wait_vouched(&server, "first");
    let file = fs::File::open(segment(server.setup(), 0)).unwrap();
    let Some(frozen) = outer.freeze() else { return };
    let sent = alice.send(b"bob", b"second", Class::Guaranteed);
    server.wait_metric("iris_log_undurable_bytes", |bytes| bytes > 0.0);
    let setup = server.kill();
    let lock = file.try_lock();
    drop(frozen);
    assert!(sent.is_ok() && matches!(lock, Err(TryLockError::WouldBlock)), "{sent:?} {lock:?}");
    drop(file);
    let server = setup.start();
    let mut bob = server.v2("bob", 1);
    for expected in ["first", "second"] {
        let delivery = bob.next_delivery(PATIENCE).unwrap();
        assert_eq!(delivery.expect("a message").body, expected.as_bytes());
    }
}

#[test]
fn a_failed_write_ends_the_server_and_the_next_one_has_everything() {
    let server = Setup::new().shards(2).start();
    let mut alice = server.v2("alice", 1);
    let mut crowd: Vec<Client> = (0..CROWD).map(|n| server.v2(&format!("user {n}"), 1)).collect();
    for n in 1..=20 {
        alice.send_and_wait(b"bob", format!("message {n}").as_bytes(), PATIENCE).unwrap();
    }
    fail_writes(&server);
    // Where a second has gone by since, what vouches for the log has failed already.
    let _sent = alice.send(b"bob", b"message 21", Class::Guaranteed);

    let codes: Vec<u16> = crowd.iter_mut().map(goodbye).collect();
    wait_until_told(&server);
    let of = |code: Code| codes.iter().filter(|told| **told == code as u16).count();
    let (failed, draining) = (of(Code::StorageFailed), of(Code::Draining));
    // Mostly one shard fails and the other drains; but that may have had a write
    // to do as well, of somebody who had just logged in.
    assert!(failed > 0 && failed + draining == CROWD, "{codes:?}");
    assert_eq!(alice.session().unsent(), 1, "nothing says that the last one is stored");
    drop(crowd);
    let setup = server.setup().clone();
    let ended = server.wait();
    assert_eq!(ended.code, Some(74), "{}", ended.stderr);
    let last = ended.stderr.lines().last().unwrap_or_default();
    assert!(last.contains("start the server again"), "{}", ended.stderr);

    let server = setup.start();
    alice.reconnect(Some(server.addr())).unwrap();
    alice.wait_sent(b"bob", 21, PATIENCE).unwrap();
    let mut bob = server.v2("bob", 1);
    for n in 1..=21 {
        let delivery = bob.next_delivery(PATIENCE).unwrap().expect("a message");
        assert_eq!(String::from_utf8_lossy(&delivery.body), format!("message {n}"));
        bob.ack(delivery.inbox_seq).unwrap();
    }
    bob.ping(1, PATIENCE).unwrap();
    assert_eq!(bob.next_delivery(Duration::ZERO).unwrap(), None);
    server.stop();
}

/// A real disk: its blocks are gone, and there is no room for others.
#[test]
fn a_disk_that_fails_ends_the_server() {
    let Some(memory) = Mounted::tmpfs("48m") else { return };
    let Some(disk) = Mounted::ext4_in(memory.path(), 32 << 20) else { return };
    let server = Setup::in_dir(&disk.path().join("data")).shards(1).start();
    let mut alice = server.v2("alice", 1);
    alice.send_and_wait(b"bob", b"first", PATIENCE).unwrap();
    wait_vouched(&server, "first");
    disk.punch();
    let mut ballast = fs::File::create(memory.path().join("ballast")).unwrap();
    while ballast.write_all(&[1; 4096]).is_ok() {}
    alice.send(b"bob", b"second", Class::Guaranteed).unwrap();
    assert_eq!(goodbye(&mut alice), Code::StorageFailed as u16);
    assert_eq!(alice.session().unsent(), 1, "nothing says that it is stored");
    drop(alice);
    let ended = server.wait();
    assert_eq!(ended.code, Some(74), "{}", ended.stderr);
    println!("{}", ended.stderr.lines().last().unwrap_or_default());
}

/// Where a disk fails with EIO.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Broken {
    /// The file system refuses each write before it has begun.
    FileSystem,
    /// The device under it does: what goes through the page cache is written,
    /// and only the fdatasync behind it meets the error.
    Device,
}

#[test]
fn eio_of_the_file_system_loses_nothing_confirmed() {
    check_each_way_of_writing(Broken::FileSystem);
}

#[test]
fn eio_of_the_device_loses_nothing_confirmed() {
    check_each_way_of_writing(Broken::Device);
}

/// The write is synchronous; an fdatasync follows it; that, and the page cache
/// lies between.
const WAYS: [Option<&str>; 3] = [None, Some(RWF_DSYNC), Some(O_DIRECT)];
const EIO: &str = "Input/output error (os error 5)";

fn in_this_way(setup: Setup, without: Option<&str>) -> Setup {
    match without {
        Some(name) => setup.set("debug.without", name),
        None => setup,
    }
}

/// With nothing on the way when it happens.
#[test]
fn eio_is_told_in_the_words_of_the_system() {
    for without in WAYS {
        let Some(disk) = Mounted::ext4(32 << 20) else { return };
        let setup = Setup::in_dir(&disk.path().join("data")).shards(1);
        let server = in_this_way(setup, without).start();
        let mut alice = server.v2("alice", 1);
        alice.send_and_wait(b"bob", b"first", PATIENCE).unwrap();
        wait_vouched(&server, "first");
        if disk.fail_with_eio().is_none() {
            return;
        }
        alice.send(b"bob", b"second", Class::Guaranteed).unwrap();
        assert_eq!(goodbye(&mut alice), Code::StorageFailed as u16);
        assert_eq!(alice.session().unsent(), 1, "nothing says that it is stored");
        drop(alice);
        let ended = server.wait();
        let last = ended.stderr.lines().last().unwrap_or_default();
        assert_eq!(ended.code, Some(74), "without {without:?}: {}", ended.stderr);
        assert!(last.contains(&format!("could not write its log ({EIO})")), "{last}");
    }
}

fn check_each_way_of_writing(broken: Broken) {
    for without in WAYS {
        if check_eio(broken, without).is_none() {
            return;
        }
    }
}

/// A disk begins to fail under load. What is confirmed by then, and no more, is
/// there when it has come back without what the kernel still had of it.
fn check_eio(broken: Broken, without: Option<&str>) -> Option<()> {
    let what = format!("EIO of the {broken:?} without {without:?}");
    let device = Mounted::ext4(192 << 20)?;
    let disk = Mounted::ext4_in(device.path(), 128 << 20)?;
    let setup = in_this_way(Setup::in_dir(&disk.path().join("data")).shards(2), without);
    let server = setup.start();
    let confirmed: [AtomicU64; PAIRS] = Default::default();
    let (shuts_down, loads) = thread::scope(|scope| {
        let clients: Vec<Client> =
            (0..PAIRS).map(|n| server.v2(&format!("sender {n}"), 1)).collect();
        let confirmed = &confirmed;
        let threads: Vec<_> = clients
            .into_iter()
            .enumerate()
            .map(|(n, client)| scope.spawn(move || send_until_the_end(client, n, &confirmed[n])))
            .collect();
        let deadline = Deadline::new();
        while confirmed.iter().any(|count| count.load(Ordering::Relaxed) < 40) {
            deadline.pause(|| format!("{what}: {confirmed:?} confirmed"));
        }
        let shuts_down = match broken {
            Broken::FileSystem => disk.fail_with_eio(),
            Broken::Device => device.fail_with_eio(),
        };
        if shuts_down.is_none() {
            server.signal(Signal::TERM);
        }
        // A new device is written down even when messages are refused for want
        // of a segment, which cannot be made any more either.
        for n in 0..PAIRS {
            drop(Client::connect(server.addr(), format!("guest {n}").as_bytes(), 1));
        }
        let loads: Vec<Load> = threads.into_iter().map(|load| load.join().unwrap()).collect();
        (shuts_down, loads)
    });
    let ended = server.wait();
    shuts_down?;
    assert_eq!(ended.code, Some(74), "{what}: {}", ended.stderr);
    let last = ended.stderr.lines().last().unwrap_or_default();
    let told = |why| last.contains(&format!("could not write its log ({why}"));
    // The write that it happens to may only end early. And on a device that fails
    // ext4 may meet the error before the server does, and takes no more writes.
    let is_short = last.contains(" bytes were written)");
    let is_second = broken == Broken::Device && told("Read-only file system (os error 30)");
    assert!(told(EIO) || is_short || is_second, "{what}: {}", ended.stderr);

    disk.unmount();
    device.unmount();
    device.mount();
    disk.mount();
    let server = setup.start();
    for (n, Load { session, sent }) in loads.into_iter().enumerate() {
        let to = format!("receiver {n}");
        let confirmed = sent - session.unsent() as u64;
        assert!(confirmed > 0, "{what}: sender {n} was not served");
        let mut receiver = server.v2(&to, 1);
        // These nobody has any more who could send them again.
        for number in 1..=confirmed {
            take(&mut receiver, n, number, &what);
        }
        let mut sender = Client::connect_session(server.addr(), session).unwrap();
        // What was confirmed before is not told again.
        if confirmed < sent {
            sender.wait_sent(to.as_bytes(), sent, PATIENCE).unwrap();
        }
        for number in confirmed + 1..=sent {
            take(&mut receiver, n, number, &what);
        }
        receiver.ping(1, PATIENCE).unwrap();
        assert_eq!(receiver.next_delivery(Duration::ZERO).unwrap(), None, "{what}");
    }
    server.stop();
    Some(())
}

/// Enough that both shards have some.
const PAIRS: usize = 6;
/// On the way at the same time, of each sender.
const AT_ONCE: u64 = 16;

/// What somebody sent to a receiver of the same number. Nobody is connected any
/// more, or the server would wait for him.
struct Load {
    session: Session,
    sent: u64,
}

/// Of several lengths, some of more than a block.
fn numbered(sender: usize, number: u64) -> Vec<u8> {
    let mut body = format!("{number} from {sender} ").into_bytes();
    body.resize(body.len() + (number * 7919 % 6000) as usize, b'.');
    body
}

/// Sends until the server asks to leave, or is gone.
fn send_until_the_end(mut client: Client, n: usize, confirmed: &AtomicU64) -> Load {
    let to = format!("receiver {n}");
    let mut sent = 0;
    loop {
        let unsent = client.session().unsent() as u64;
        for _ in unsent..AT_ONCE {
            sent += 1;
            let body = numbered(n, sent);
            // In the outbox, whatever becomes of the connection.
            client.session().send(to.as_bytes(), &body, Class::Guaranteed).unwrap();
        }
        let waited = client.next_notice(Duration::from_millis(2));
        let left = unsent.max(AT_ONCE) - client.session().unsent() as u64;
        confirmed.fetch_add(left, Ordering::Relaxed);
        match waited {
            Ok(Some(Notice::Goaway { code, .. })) => {
                let told = [Code::StorageFailed as u16, Code::Draining as u16];
                assert!(told.contains(&code), "{code}");
                return Load { session: client.into_session(), sent };
            }
            Ok(_) => {}
            Err(_) => return Load { session: client.into_session(), sent },
        }
    }
}

#[track_caller]
fn take(receiver: &mut Client, sender: usize, number: u64, what: &str) {
    let delivery = receiver.next_delivery(PATIENCE).unwrap();
    let delivery = delivery.unwrap_or_else(|| panic!("{what}: {number} from {sender} is lost"));
    let text = String::from_utf8_lossy(&delivery.body);
    assert!(delivery.body == numbered(sender, number), "{what}: not {number} but {text:.40}");
    receiver.ack(delivery.inbox_seq).unwrap();
}

/// The other way of writing, for file systems that lack the first.
#[test]
fn a_failed_write_before_an_fsync_counts_as_well() {
    let Some(memory) = std::path::Path::new("/dev/shm").exists().then_some("/dev/shm") else {
        return;
    };
    let dir = tempfile::tempdir_in(memory).unwrap();
    let server = Setup::in_dir(&dir.path().join("data")).shards(1).start();
    let mut alice = server.v2("alice", 1);
    alice.send_and_wait(b"bob", b"first", PATIENCE).unwrap();
    wait_vouched(&server, "first");
    fail_writes(&server);
    alice.send(b"bob", b"second", Class::Guaranteed).unwrap();
    assert_eq!(goodbye(&mut alice), Code::StorageFailed as u16);
    let setup = server.setup().clone();
    // With everybody gone nothing holds it up.
    drop(alice);
    assert_eq!(server.wait().code, Some(74));
    let server = setup.start();
    let first = server.v2("bob", 1).next_delivery(PATIENCE).unwrap().expect("a message");
    assert_eq!(first.body, b"first");
    server.stop();
}

/// A segment that cannot be made is not a failed write: nothing of the log is in
/// doubt.
#[test]
fn a_segment_beyond_the_limit_is_not_a_fault() {
    let server = Setup::new().shards(1).set("storage.segment_bytes", "8MiB").start();
    let mut alice = server.v2("alice", 1);
    let second = server.setup().data_dir().join("shard-0000/segment-0000000001.log");
    let deadline = Deadline::new();
    while !second.exists() {
        deadline.pause(|| "the second segment is not made".into());
    }
    // One block less than a segment and its header. The third segment is due halfway
    // through the first; the log stays there until it has failed, as it may not
    // write the last block of a segment either.
    let before = server.limit(Resource::Fsize, Some(8 << 20));
    let body = [b'x'; 20_000];
    let halfway = (5 << 20) / body.len() as u64;
    for _ in 0..halfway {
        alice.send(b"bob", &body, Class::Guaranteed).unwrap();
    }
    server.wait_said("ulimit -f");
    alice.send(b"bob", &body, Class::Guaranteed).unwrap();
    let notice = alice.next_notice(PATIENCE).unwrap();
    let Some(Notice::Held { code, .. }) = notice else { panic!("{notice:?}") };
    assert_eq!(code, Code::StorageFull as u16);
    server.limit(Resource::Fsize, before);
    alice.wait_sent(b"bob", halfway + 1, PATIENCE).unwrap();
    server.stop();
}
