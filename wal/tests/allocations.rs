//! Appending, sealing, completing and reading from the tail allocate nothing.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use wal::{Log, LogOptions, LogStart, Message, Record};
use wire::id::{Class, MessageId, UserKey};

/// Counts the allocations of each thread, so that the test harness's own do
/// not matter.
struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator unchanged; the
// counter is a plain thread-local without a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller's promise is the one asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn the_steady_path_allocates_nothing() {
    let options = LogOptions { tail_bytes: 1 << 20, ..LogOptions::default() };
    let mut log = Log::new(options, LogStart::fresh(1));
    let body = [7; 700];
    let before = COUNT.get();
    let mut appended = 0;
    // A hundred times round the tail, as full as it gets, in both orders of
    // completion.
    while log.durable() < 100 << 20 {
        while let Ok(at) = log.append(&message(&body[..appended % 700]), 1) {
            assert!(log.get(at.lsn, at.len).is_some());
            appended += 1;
        }
        let writes = [log.next_write(), log.next_write()];
        for write in writes.into_iter().rev().flatten() {
            assert!(!log.write_bytes(&write).is_empty());
            log.written(write.lsn, true);
        }
    }
    assert_eq!(COUNT.get() - before, 0, "allocations for {appended} records");
}

fn message(body: &[u8]) -> Record<'_> {
    Record::Message(Message {
        key: UserKey(1 << 70),
        to: b"bob",
        inbox_seq: 1,
        id: MessageId::new(1, 0, 0, 0),
        from: b"alice",
        from_key: UserKey(3),
        device: 1,
        send_seq: 1,
        time_ms: 1,
        expires_ms: 0,
        class: Class::Guaranteed,
        flags: 0,
        body,
    })
}
