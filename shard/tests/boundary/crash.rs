//! Failed writes and restarts.

use crate::desk::check;

#[test]
fn a_failed_write_stops_everything_and_says_so() {
    check(
        "0 hello alice 1
         > 0 welcome 1..0
         commit
         0 send bob 1 a
         write
         fail
         > 0 goaway StorageFailed come back
         > 0 close
         1 hello carol 1
         > 1 goaway StorageFailed come back
         > 1 close
         restart
         0 hello alice 1
         > 0 welcome 1..0
         0 send bob 1 a
         commit
         > 0 sent bob 1",
    );
}

#[test]
fn numbers_and_cursors_survive() {
    check(
        "0 hello alice 1
         > 0 welcome 1..0
         0 send alice 1 a
         0 send alice 2 x*65537
         0 send alice 3 c
         commit
         > 0 deliver 1 alice a
         > 0 sent alice 1
         > 0 refused alice 2 TooLarge
         > 0 deliver 2 alice c
         > 0 sent alice 3
         0 ack 1
         commit
         restart
         0 hello alice 1 last=1
         > 0 welcome 2..2
         > 0 deliver 2 alice c
         0 send alice 3 c
         > 0 sent alice 3 again
         0 send alice 2 x*65537
         > 0 refused alice 2 TooLarge
         0 send alice 5 e
         > 0 gap alice 4",
    );
}

#[test]
fn single_acknowledgements_survive() {
    check(
        "0 login bob
         > 0 login_ok
         0 batch bob a,b,c
         commit
         > 0 message a
         > 0 message b
         > 0 message c
         0 got 2
         commit
         restart
         0 login bob
         > 0 login_ok
         > 0 message a
         > 0 message c",
    );
}

/// A number that a device has seen never names another message, although the
/// crash took the first one.
#[test]
fn a_lost_best_effort_message_leaves_its_seq_unused() {
    check(
        "0 hello alice 1
         > 0 welcome 1..0
         1 hello bob 1
         > 1 welcome 1..0
         0 send bob 1 a
         commit
         > 1 deliver 1 alice a
         > 0 sent bob 1
         0 send bob 2 b best
         commit
         > 1 deliver 2 alice b
         > 0 sent bob 2
         0 send bob 3 c best
         > 1 deliver 3 alice c
         > 0 sent bob 3
         restart
         0 hello alice 1
         > 0 welcome 1..0
         0 send bob 4 d
         > 0 gap bob 3
         0 send bob 4 d skip
         commit
         > 0 sent bob 4
         # bob has seen 3, which is c; d has another number
         1 hello bob 1 last=3
         > 1 welcome 67..67
         > 1 deliver 67 alice d",
    );
}

#[test]
fn bodies_that_left_the_memory_are_read_back() {
    check(
        "0 hello alice 1
         > 0 welcome 1..0
         0 send bob 1 a*20000
         0 send bob 2 b*20000
         0 send carol 1 c*20000
         commit
         > 0 sent bob 1
         > 0 sent bob 2
         > 0 sent carol 1
         0 send carol 2 d*20000
         0 send carol 3 e*20000
         commit
         > 0 sent carol 2
         > 0 sent carol 3
         1 hello bob 1
         > 1 welcome 1..2
         > 1 deliver 1 alice a…20000
         > 1 deliver 2 alice b…20000",
    );
}
