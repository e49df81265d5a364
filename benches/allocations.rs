//! Counts allocations per message on the steady path: no row may have any,
//! except those that say so. Run by `cargo test` and by
//! `cargo bench --bench allocations`.
//!
//! The brain is counted with every kind of traffic, the mesh with a parcel
//! going round, the hands with real sockets. Everything runs on one thread, and
//! each thread counts its own.
#![allow(unsafe_code)] // the counting allocator

mod node;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use net::{Event, Hands, HandsOptions, Mesh};
use node::{Burst, Node, Pairs, Speaks};
use shard::hop::Parcel;
use wire::id::Class;

/// Passes everything on and counts what is asked for.
struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    COUNT.set(COUNT.get() + 1);
}

// SAFETY: everything is passed on to the system's allocator unchanged; the
// counter is a plain thread-local without a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is the one asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One line of the table.
struct Row {
    what: &'static str,
    messages: u64,
    allocations: u64,
    /// The most it may have per message.
    allowed: f64,
}

fn main() {
    let guaranteed = Speaks::V2(Class::Guaranteed);
    let best_effort = Speaks::V2(Class::BestEffort);
    let rows = [
        pairs("v2 guaranteed, one shard", 1, guaranteed),
        pairs("v2 best effort, one shard", 1, best_effort),
        pairs("v1, one shard", 1, Speaks::V1),
        pairs("v2 guaranteed, two shards", 2, guaranteed),
        pairs("v2 best effort, two shards", 2, best_effort),
        pairs("v1, two shards", 2, Speaks::V1),
        burst("v2 guaranteed, 64 at once into one inbox", 64, 0.0),
        // An emptied inbox gives back what it grew to beyond 64 entries, so
        // that a million users with one busy hour do not keep it for ever.
        burst("v2 guaranteed, 256 at once into one inbox", 256, 0.05),
        mesh(),
        hands(),
    ];
    println!("{:<44}{:>10}{:>13}{:>13}", "steady path", "messages", "allocations", "per message");
    let mut failed = 0;
    for Row { what, messages, allocations, allowed } in &rows {
        let each = *allocations as f64 / *messages as f64;
        let verdict = if each <= *allowed { "" } else { "  TOO MANY" };
        failed += u32::from(each > *allowed);
        println!("{what:<44}{messages:>10}{allocations:>13}{each:>13.4}{verdict}");
    }
    assert_eq!(failed, 0, "rows above allocate on the steady path");
}

/// Warms up, then counts.
fn measure(
    what: &'static str,
    allowed: f64,
    rounds: u64,
    each: u64,
    mut round: impl FnMut(),
) -> Row {
    // Tables and buffers grow to their size, the log goes round its tail.
    (0..rounds).for_each(|_| round());
    let before = COUNT.get();
    (0..rounds).for_each(|_| round());
    Row { what, messages: rounds * each, allocations: COUNT.get() - before, allowed }
}

fn pairs(what: &'static str, shards: u16, speaks: Speaks) -> Row {
    let mut node = Node::new(shards);
    let mut pairs = Pairs::new(&mut node, 64, 0, shards - 1, speaks);
    measure(what, 0.0, 2_000, pairs.len() as u64, || pairs.round(&mut node))
}

fn burst(what: &'static str, count: u64, allowed: f64) -> Row {
    let mut node = Node::new(1);
    let mut burst = Burst::new(&mut node, count);
    measure(what, allowed, 500, count, || burst.round(&mut node))
}

/// A parcel with bytes in it travels there and comes back empty.
fn mesh() -> Row {
    let mesh = Mesh::new(2, 64);
    let (there, here) = (mesh.port(0), mesh.port(1));
    let mut parcel = Some(Parcel::default());
    measure("mesh, a parcel there and back", 0.0, 50_000, 1, || {
        let mut full = parcel.take().expect("it came back");
        full.bytes.extend_from_slice(&[7; 640]);
        there.push(1, full).expect("there is room");
        there.wake(1);
        let mut empty = here.pop(0).expect("it arrived");
        empty.clear();
        here.push(0, empty).expect("there is room");
        parcel = there.pop(1);
    })
}

/// Connections of the hands' row, each with one message under way.
const CLIENTS: usize = 8;
const ECHO_BYTES: usize = 100;

/// Real sockets: what is received goes back. The clients write and read on this
/// same thread, so that each round is like the one before.
fn hands() -> Row {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = net::listen::bind(any).expect("a free port on loopback");
    let address = net::listen::local_addr(&listener).expect("it is bound");
    let mut hands = Hands::new(HandsOptions::default(), vec![listener]).expect("io_uring");
    let connect = |_| TcpStream::connect(address).expect("the backlog holds them");
    let mut clients: Vec<TcpStream> = (0..CLIENTS).map(connect).collect();
    let mut events = Vec::new();
    measure("hands, echo over loopback", 0.0, 2_000, CLIENTS as u64, || {
        for client in &mut clients {
            client.write_all(&[7; ECHO_BYTES]).expect("the socket takes a hundred bytes");
        }
        let mut drained = 0;
        while drained < CLIENTS {
            drained += echo(&mut hands, &mut events);
            hands.wait(Duration::from_millis(if drained < CLIENTS { 100 } else { 0 }));
        }
        let mut back = [0; ECHO_BYTES];
        for client in &mut clients {
            client.read_exact(&mut back).expect("the kernel has it");
        }
    })
}

/// One turn; how many connections have got all of their bytes.
fn echo(hands: &mut Hands, events: &mut Vec<Event>) -> usize {
    let mut drained = 0;
    hands.reap(events);
    for event in events.drain(..) {
        match event {
            Event::Received { conn } => {
                let mut copy = [0; 4096];
                let len = hands.received(conn).len();
                copy[..len].copy_from_slice(hands.received(conn));
                hands.consume(conn, len);
                hands.send(conn, &copy[..len]);
                hands.tell_drained(conn);
            }
            Event::Drained { .. } => drained += 1,
            _ => {}
        }
    }
    hands.flush();
    drained
}
