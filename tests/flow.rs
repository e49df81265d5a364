//! The real process when it is asked for more than it can give: logins beyond
//! their rate.

mod server;

use std::io::{Error, ErrorKind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use client::blocking::{Client, ClientV1, LoginRefused};
use server::{Deadline, PATIENCE, Setup};
use wire::refuse::Code;

/// Everybody at once: some are served, the others are told when to come back,
/// all are in at the end, and who was there before notices nothing.
#[test]
fn a_storm_of_logins_is_put_off_and_comes_in() {
    const CLIENTS: u64 = 50;
    let server = Setup::new().shards(2).set("limits.logins_per_second", "5").start();
    let addr = server.addr();
    let mut alice = Client::connect_within(addr, b"alice", 1, PATIENCE).unwrap();
    let is_over = AtomicBool::new(false);
    let clients: Vec<Client> = thread::scope(|scope| {
        let witness = scope.spawn(|| {
            let mut told = 0_u64;
            while !is_over.load(Ordering::Relaxed) {
                alice.send_and_wait(b"alice", b"still here", PATIENCE).unwrap();
                let delivery = alice.next_delivery(PATIENCE).unwrap().expect("a message");
                alice.ack(delivery.inbox_seq).unwrap();
                told += 1;
            }
            told
        });
        let enter = |n: u64| {
            let user = format!("user-{n}");
            Client::connect_within(addr, user.as_bytes(), 1, PATIENCE).unwrap()
        };
        let enters: Vec<_> = (0..CLIENTS).map(|n| scope.spawn(move || enter(n))).collect();
        let clients = enters.into_iter().map(|it| it.join().unwrap()).collect();
        is_over.store(true, Ordering::Relaxed);
        assert!(witness.join().unwrap() > 0, "the witness was served");
        clients
    });
    let put_off: u32 = clients.iter().map(Client::put_off).sum();
    assert!(put_off > 0, "five a second are not enough for all of them");
    assert!(clients.iter().any(|client| client.put_off() == 0), "some come in at once");
    server.wait_metric("iris_sessions", |sessions| sessions == (CLIENTS + 1) as f64);
    server.wait_metric("iris_logins_put_off_total", |count| count >= f64::from(put_off));
    // Nobody who was put off has become a user by that alone.
    assert_eq!(server.metric("iris_users"), (CLIENTS + 1) as f64);
    alice.ping(1, PATIENCE).unwrap();
    server.stop();
}

/// v2 is told a code and a time, v1 the word it knows.
#[test]
fn each_protocol_has_its_word_for_too_many() {
    let server = Setup::new().shards(1).set("limits.logins_per_second", "1").start();
    let addr = server.addr();
    let error = first_refusal(|user| Client::connect(addr, user, 1).err());
    let word = *error.get_ref().unwrap().downcast_ref::<LoginRefused>().unwrap();
    assert_eq!(word.code, Code::RateLimited as u16);
    assert!((250..=2_000).contains(&word.retry_after_ms), "{word:?}");
    let error = first_refusal(|user| ClientV1::connect(addr, user).err());
    assert!(error.to_string().contains("LoginRateLimited"), "{error}");
}

/// Logs in again and again until that is refused.
#[track_caller]
fn first_refusal(connect: impl Fn(&[u8]) -> Option<Error>) -> Error {
    let deadline = Deadline::new();
    loop {
        deadline.check(|| "more than one login a second comes in".to_owned());
        if let Some(error) = connect(b"somebody") {
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
            return error;
        }
    }
}
