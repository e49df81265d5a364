//! The hands inside a glommio executor: parking, waking, and letting others run.
#![allow(missing_docs)]

mod world;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use glommio::{LocalExecutorBuilder, Placement};
use net::{Event, Hands, Mesh, listen};
use world::{PATIENCE, ways};

/// Runs `work` in an executor of its own, as the server does.
fn execute<T: Send + 'static, F: Future<Output = T> + 'static>(
    work: impl FnOnce() -> F + Send + 'static,
) -> T {
    LocalExecutorBuilder::new(Placement::Unbound)
        .io_memory(64 << 10)
        .spawn(work)
        .unwrap()
        .join()
        .unwrap()
}

/// A parked core answers data, a mesh message and a second round of data; each time it sleeps with
/// a patience that a lost wake-up would use up.
#[test]
fn a_parked_core_wakes_by_data_and_by_mesh() {
    for options in ways() {
        let listener = listen::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = listen::local_addr(&listener).unwrap();
        let mesh: Mesh<&'static str> = Mesh::new(2, 8);
        let (here, there) = (mesh.port(0), mesh.port(1));
        let (tell, told) = mpsc::channel();

        let client = thread::spawn(move || {
            let mut stream = TcpStream::connect(addr).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            for round in 0..20u8 {
                stream.write_all(&[round]).unwrap();
                let mut back = [0];
                stream.read_exact(&mut back).unwrap();
                assert_eq!(back[0], round);
                if round % 5 == 4 {
                    here.push(1, "ping").unwrap();
                    here.wake(1);
                    assert_eq!(told.recv_timeout(PATIENCE), Ok("pong"));
                }
            }
            here.push(1, "stop").unwrap();
            here.wake(1);
        });

        let slept_in = execute(move || async move {
            let mut hands = Hands::new(options, vec![listener]).unwrap();
            there.set_waker(hands.waker());
            let mut events = Vec::new();
            let mut longest = Duration::ZERO;
            loop {
                hands.reap(&mut events);
                for event in events.drain(..) {
                    if let Event::Received { conn } = event {
                        let bytes = hands.received(conn).to_vec();
                        hands.consume(conn, bytes.len());
                        hands.send(conn, &bytes);
                    }
                }
                match there.pop(0) {
                    Some("ping") => tell.send("pong").unwrap(),
                    Some(_) => break longest,
                    None => {}
                }
                if there.sleep() {
                    let start = Instant::now();
                    hands.park(PATIENCE).await;
                    longest = longest.max(start.elapsed());
                }
                there.awake();
            }
        });
        client.join().unwrap();
        assert!(slept_in < PATIENCE, "a wake-up was lost");
    }
}

/// Waits until a thread sleeps in the kernel (`/proc/<pid>/task/<tid>` is given).
fn until_asleep(thread: &Path) {
    let start = Instant::now();
    loop {
        let stat = fs::read_to_string(Path::new("/proc").join(thread).join("stat")).unwrap();
        if stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('S')) {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "it never sleeps");
        thread::yield_now();
    }
}

/// Many wakes, each of a core that is really asleep. Linux 6.18 loses the second and every later
/// one if only the ring's registered eventfd is relied on.
#[test]
fn a_parked_core_is_woken_again_and_again() {
    const WAKES: usize = 30;
    for (way, options) in ways().into_iter().enumerate() {
        let mesh: Mesh<Instant> = Mesh::new(2, 8);
        let (here, there) = (mesh.port(0), mesh.port(1));
        let (tell, told) = mpsc::channel();
        let waker = thread::spawn(move || {
            for _ in 0..WAKES {
                let thread: PathBuf = told.recv_timeout(PATIENCE).unwrap();
                until_asleep(&thread);
                here.push(1, Instant::now()).unwrap();
                here.wake(1);
            }
        });
        let latencies = execute(move || async move {
            let me = fs::read_link("/proc/thread-self").unwrap();
            let mut hands = Hands::new(options, Vec::new()).unwrap();
            there.set_waker(hands.waker());
            let mut events = Vec::new();
            let mut latencies = Vec::new();
            for _ in 0..WAKES {
                tell.send(me.clone()).unwrap();
                let pushed = loop {
                    events.clear();
                    hands.reap(&mut events);
                    if let Some(pushed) = there.pop(0) {
                        break pushed;
                    }
                    if there.sleep() {
                        hands.park(PATIENCE).await;
                    }
                    there.awake();
                };
                latencies.push(pushed.elapsed());
            }
            latencies.sort();
            latencies
        });
        waker.join().unwrap();
        let (median, longest) = (latencies[WAKES / 2], latencies[WAKES - 1]);
        println!("way {way}: woken after {median:?}, at most {longest:?}");
        assert!(longest < PATIENCE, "a wake-up was lost, way {way}");
    }
}

#[test]
fn parking_ends_by_timeout() {
    execute(|| async {
        let mut hands = Hands::new(ways().remove(0), Vec::new()).unwrap();
        for _ in 0..3 {
            hands.park(Duration::from_millis(2)).await;
        }
    });
}

/// Everything pending is reaped before sleeping: a bell that rang before the park is not lost.
#[test]
fn a_wake_before_the_park_counts() {
    execute(|| async {
        for options in ways() {
            let mut hands = Hands::new(options, Vec::new()).unwrap();
            hands.waker().wake();
            let start = Instant::now();
            let mut events = Vec::new();
            while !events.iter().any(|e| matches!(e, Event::Wake)) {
                hands.park(PATIENCE).await;
                hands.reap(&mut events);
            }
            assert!(start.elapsed() < PATIENCE);
        }
    });
}

/// A core that never sleeps still lets the executor's timers and tasks go on.
#[test]
fn breathing_lets_timers_fire() {
    execute(|| async {
        let mut hands = Hands::new(ways().remove(0), Vec::new()).unwrap();
        let fired = Rc::new(std::cell::Cell::new(false));
        let theirs = Rc::clone(&fired);
        glommio::spawn_local(async move {
            glommio::timer::sleep(Duration::from_millis(5)).await;
            theirs.set(true);
        })
        .detach();
        let start = Instant::now();
        while !fired.get() {
            assert!(start.elapsed() < PATIENCE, "the timer starved");
            hands.wait(Duration::from_micros(100));
            hands.breathe().await;
        }
    });
}
