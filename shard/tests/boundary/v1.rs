//! Protocol v1: what existing clients rely on.

use crate::desk::check;

#[test]
fn messages_wait_until_each_is_acknowledged() {
    check(
        "0 login alice
         > 0 login_ok
         0 say bob a
         0 say bob b
         0 say bob c
         commit
         1 login bob
         > 1 login_ok
         > 1 message a
         > 1 message b
         > 1 message c
         # in any order, and an unknown or repeated one is nothing
         1 got 3
         1 got 1
         1 got 1
         1 close
         1 login bob
         > 1 login_ok
         > 1 message b
         1 got 4
         1 close
         1 login bob
         > 1 login_ok",
    );
}

#[test]
fn a_batch_is_stored_in_order() {
    check(
        "0 login bob
         > 0 login_ok
         0 batch bob a,b,c
         commit
         > 0 message a
         > 0 message b
         > 0 message c",
    );
}

#[test]
fn a_batch_larger_than_the_room_goes_on_where_it_stopped() {
    check(
        "0 login alice
         > 0 login_ok
         commit
         0 batch bob a*30000,b*30000,c*30000
         > blocked
         commit
         0 batch bob a*30000,b*30000,c*30000
         > blocked
         commit
         0 batch bob a*30000,b*30000,c*30000
         commit
         1 login bob
         > 1 login_ok
         > 1 message a…30000
         > 1 message b…30000
         > 1 message c…30000",
    );
}

/// What was left of a batch when another login took over is not taken off the
/// next one.
#[test]
fn a_broken_off_batch_takes_nothing_from_the_next() {
    check(
        "0 login alice
         > 0 login_ok
         commit
         0 batch bob a*30000,b*30000,c*30000
         > blocked
         commit
         1 login alice
         > 1 login_ok
         0 batch bob a*30000,b*30000,c*30000
         0 login alice
         > 0 login_ok
         0 batch carol d,e
         commit
         2 login carol
         > 2 login_ok
         > 2 message d
         > 2 message e",
    );
}

/// What was stored is repeated, what was passed over is too late, and who
/// repeats more than the window holds is not told that it is missing.
#[test]
fn numbers_only_rise_and_each_is_taken_once() {
    check(
        "0 login bob
         > 0 login_ok
         0 number bob 5 a
         0 number bob 5 a
         0 number bob 4 b
         > 0 error out_of_order
         0 number bob 0 z
         > 0 error out_of_order
         0 number bob 7 c
         0 number bob 5 a
         0 number bob 100 d
         0 number bob 5 a
         0 number bob 4 b
         commit
         > 0 message a
         > 0 message c
         > 0 message d",
    );
}

/// What was sent right behind a refused number would make it too late: it is
/// refused for the same time. Then the sender goes on from the refused one,
/// or has given it up.
#[test]
fn higher_numbers_wait_for_a_refused_one() {
    check(
        "storage full
         0 login alice
         > 0 login_ok
         0 number bob 1 a
         > 0 wait 1000
         commit
         storage ok
         tick 400
         0 number bob 2 b
         > 0 wait 600
         # other recipients and plain sends have nothing to do with it
         0 number carol 2 c
         0 say bob plain
         0 number bob 1 a
         0 number bob 2 b
         commit
         storage full
         0 number bob 3 d
         > 0 wait 1000
         storage ok
         tick 1000
         0 number bob 4 e
         0 number bob 3 d
         > 0 error out_of_order
         commit
         1 login bob
         > 1 login_ok
         > 1 message plain
         > 1 message a
         > 1 message b
         > 1 message e",
    );
}

#[test]
fn the_older_connection_stays_and_gets_nothing() {
    check(
        "0 login bob
         > 0 login_ok
         1 login bob
         > 1 login_ok
         1 say bob a
         commit
         > 1 message a
         0 say bob b
         0 close
         2 status bob
         > 2 status bob true 0",
    );
}

#[test]
fn both_protocols_share_an_inbox() {
    check(
        "0 login bob
         > 0 login_ok
         1 hello bob 1
         > 1 welcome 1..0
         0 say bob a
         commit
         > 0 message a
         > 1 deliver 1 bob a
         1 ack 1
         0 close
         0 login bob
         > 0 login_ok
         > 0 message a
         0 got 2
         0 close
         0 login bob
         > 0 login_ok",
    );
}

#[test]
fn status_before_and_after() {
    check(
        "0 status bob
         > 0 status bob false 0
         1 login bob
         > 1 login_ok
         0 status bob
         > 0 status bob true 0
         tick 2000
         > 0 close
         1 close
         2 status bob
         > 2 status bob false 2000",
    );
}

#[test]
fn the_32nd_bad_packet_in_a_row_is_the_last() {
    let bad = |n: usize| "0 bad1\n".repeat(n);
    check(&format!(
        "0 login alice
         > 0 login_ok
         {}
         0 status alice
         > 0 status alice true 0
         {}
         0 bad1
         > 0 close",
        bad(31),
        bad(31)
    ));
}

#[test]
fn a_login_without_a_name_is_refused() {
    check(
        "0 login
         > 0 auth_failed
         > 0 close",
    );
}
