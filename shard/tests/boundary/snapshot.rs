//! Snapshots, and what a restart makes of them.

use crate::desk::check;

#[test]
fn a_restart_begins_with_the_snapshot() {
    check(
        "0 hello alice 1
         > 0 welcome 1..0
         0 send bob 1 a
         0 send bob 2 x*65537
         0 send bob 3 c
         commit
         > 0 sent bob 1
         > 0 refused bob 2 TooLarge
         > 0 sent bob 3
         1 hello bob 1
         > 1 welcome 1..2
         > 1 deliver 1 alice a
         > 1 deliver 2 alice c
         1 ack 1
         commit
         snapshot
         restart
         1 hello bob 1 last=1
         > 1 welcome 2..2
         > 1 deliver 2 alice c
         0 hello alice 1
         > 0 welcome 1..0
         0 send bob 3 c
         > 0 sent bob 3 again
         0 send bob 5 e
         > 0 gap bob 4",
    );
}

/// What happens between the slices stands in the log; nothing of it is lost
/// and nothing done twice.
#[test]
fn traffic_goes_on_while_it_is_taken() {
    check(
        "0 login bob
         > 0 login_ok
         0 batch bob a,b,c
         commit
         > 0 message a
         > 0 message b
         > 0 message c
         snapshot begin
         0 got 2
         0 number bob 7 d
         snapshot slice
         0 got 1
         0 number bob 8 e
         commit
         > 0 message d
         > 0 message e
         snapshot end
         restart
         0 login bob
         > 0 login_ok
         > 0 message c
         > 0 message d
         > 0 message e
         0 number bob 7 d
         0 number bob 8 e
         commit",
    );
}

/// The record of a refusal does not say when that was, so it counts as new.
#[test]
fn a_number_used_up_is_not_forgotten_at_once() {
    check(
        "0 hello alice 1
         > 0 welcome 1..0
         0 send bob 1 x*65537
         commit
         > 0 refused bob 1 TooLarge
         restart
         snapshot
         0 hello alice 1
         > 0 welcome 1..0
         0 send bob 2 b
         commit
         > 0 sent bob 2
         restart
         0 hello alice 1
         > 0 welcome 1..0
         0 send bob 1 x*65537
         > 0 refused bob 1 TooLarge",
    );
}

/// The log is complete without it.
#[test]
fn a_failed_snapshot_costs_nothing() {
    check(
        "0 hello alice 1
         > 0 welcome 1..0
         0 send alice 1 a
         commit
         > 0 deliver 1 alice a
         > 0 sent alice 1
         snapshot begin
         snapshot slice
         snapshot fail
         restart
         0 hello alice 1
         > 0 welcome 1..1
         > 0 deliver 1 alice a",
    );
}

/// Who has sent nothing for a week begins anew, at once and after a restart.
#[test]
fn a_silent_device_is_forgotten_with_a_snapshot() {
    let week = 7 * 24 * 60 * 60 * 1000;
    check(&format!(
        "0 hello alice 1
         > 0 welcome 1..0
         0 send bob 1 a
         commit
         > 0 sent bob 1
         tick {week}
         snapshot
         0 send bob 3 c
         > 0 gap bob 2
         tick 3600000
         commit
         snapshot
         0 send bob 3 c
         > 0 gap bob 1
         restart
         0 hello alice 1
         > 0 welcome 1..0
         0 send bob 3 c
         > 0 gap bob 1
         0 send bob 1 d
         commit
         > 0 sent bob 1
         restart
         0 hello alice 1
         > 0 welcome 1..0
         0 send bob 1 d
         > 0 sent bob 1 again"
    ));
}

#[test]
fn what_expired_stays_away() {
    check(
        "0 hello alice 1
         > 0 welcome 1..0
         0 send bob 1 a ttl=1
         0 send bob 2 b
         commit
         > 0 sent bob 1
         > 0 sent bob 2
         tick 2000
         1 hello bob 1
         > 1 welcome 1..2
         > 1 deliver 2 alice b
         commit
         restart
         1 hello bob 1
         > 1 welcome 2..2
         > 1 deliver 2 alice b",
    );
}

/// More than the seven days after which a sending device is forgotten.
#[test]
fn a_clock_that_is_set_forward_forgets_nobody() {
    check(
        "0 hello alice 1
         > 0 welcome 1..0
         1 hello bob 1
         > 1 welcome 1..0
         tick 100
         0 send bob 1 a
         commit
         > 1 deliver 1 alice a
         > 0 sent bob 1
         1 ack 1
         commit
         jump 700000000
         tick 100
         snapshot
         0 send bob 1 a
         > 0 sent bob 1 again
         tick 700000000
         commit
         snapshot
         0 send bob 2 b
         > 0 gap bob 1",
    );
}

/// Who has logged in, and waits for a place until the time for that is over, hears
/// why.
#[test]
fn a_login_without_a_place_is_told() {
    check(
        "0 hello alice 1
         > 0 welcome 1..0
         commit
         storage full
         place 2 2
         1 hello bob 1
         > blocked
         2 login carol
         > blocked
         tick 999
         tick 1
         > 1 goaway StorageFull come back
         > 1 close
         > 2 rate_limited
         > 2 close
         # who has said nothing hears nothing
         3 open
         tick 1000
         > 3 close
         # who finds room in time hears no more of it
         4 hello dave 1
         > blocked
         tick 500
         place 8 8
         4 hello dave 1
         > 4 welcome 1..0
         tick 1000
         # a log that is merely full
         storage ok
         place 2 2
         5 hello erin 1
         > blocked
         tick 1000
         > 5 goaway Busy come back
         > 5 close",
    );
}

/// Without a place on the disk nothing is appended, so nothing that waits for
/// the disk keeps a snapshot from counting.
#[test]
fn without_a_place_acknowledgements_wait_and_snapshots_count() {
    check(
        "0 hello alice 1
         > 0 welcome 1..0
         1 hello bob 1
         > 1 welcome 1..0
         0 send bob 1 a
         0 send bob 2 b
         commit
         > 1 deliver 1 alice a
         > 0 sent bob 1
         > 1 deliver 2 alice b
         > 0 sent bob 2
         storage full
         # two blocks are for marks
         place 2 2
         1 ack 1
         > blocked
         2 hello carol 1
         > blocked
         # what is refused needs no place
         0 send bob 3 c*30000
         > 0 refused bob 3 StorageFull
         0 send bob 3 c*70000
         > 0 refused bob 3 StorageFull
         commit
         snapshot
         place 8 0
         # all of it is for cleaning
         1 ack 1
         > blocked
         place 3 3
         1 ack 1
         commit
         place 2 2
         1 ack 2
         > blocked
         snapshot
         place 8 8
         1 ack 2
         2 hello carol 1
         > 2 welcome 1..0
         commit
         restart
         1 hello bob 1
         > 1 welcome 3..2",
    );
}
