//! Protocol v2: numbers, windows, logins, refusals.

use crate::desk::{PUSH_OUT, check};

#[test]
fn sent_and_delivered_after_the_fsync_only() {
    check(
        "0 hello alice 1
         > 0 welcome 1..0
         1 hello bob 1
         > 1 welcome 1..0
         commit
         0 send bob 1 hi
         write
         done
         > 1 deliver 1 alice hi
         > 0 sent bob 1",
    );
}

#[test]
fn a_higher_number_is_a_gap_and_a_lower_one_is_known() {
    check(
        "0 hello alice 1
         > 0 welcome 1..0
         0 send bob 2 b
         > 0 gap bob 1
         0 send bob 1 a
         0 send bob 2 b
         commit
         > 0 sent bob 1
         > 0 sent bob 2
         # everything is durable, so nothing will open the gate
         0 send bob 1 a
         > 0 sent bob 1 again
         0 send bob 9 z
         > 0 gap bob 3
         0 send bob 9 z skip
         commit
         > 0 sent bob 9
         0 send bob 5 e skip
         > 0 sent bob 5 again",
    );
}

#[test]
fn who_was_handed_a_burst_has_to_drain() {
    check(
        "0 hello alice 1
         > 0 welcome 1..0
         1 hello bob 1
         > 1 welcome 1..0
         0 send bob 1 a*30000
         commit
         > 1 deliver 1 alice a…30000
         > 0 sent bob 1
         0 send bob 2 b*30000
         commit
         > 1 deliver 2 alice b…30000
         > 0 sent bob 2
         0 send bob 3 c*30000
         commit
         > 1 deliver 3 alice c…30000
         > 0 sent bob 3
         1 ack 3
         0 send bob 4 d
         commit
         > 0 sent bob 4
         1 drained
         > 1 deliver 4 alice d
         # it has not been handed much since
         0 send bob 5 e
         commit
         > 1 deliver 5 alice e
         > 0 sent bob 5",
    );
}

#[test]
fn a_known_number_waits_for_the_one_it_repeats() {
    check(
        "0 hello alice 1
         > 0 welcome 1..0
         0 send bob 1 a
         0 send bob 1 a
         # of best effort, and yet not before the guaranteed one
         0 send bob 2 b best
         commit
         > 0 sent bob 1
         > 0 sent bob 1 again
         > 0 sent bob 2",
    );
}

#[test]
fn what_is_too_large_consumes_its_number() {
    check(
        "0 hello alice 1
         > 0 welcome 1..0
         0 send bob 1 x*65537
         0 send bob 2 hi
         commit
         > 0 refused bob 1 TooLarge
         > 0 sent bob 2
         # its refusal may have been lost; SENT would be a lie
         0 send bob 1 x*65537
         > 0 refused bob 1 TooLarge
         0 send a:b 1 hi
         > 0 refused a:b 1 BadName",
    );
}

/// Eight names fit the table of the test's shard, and a quarter of it is for those who log in.
#[test]
fn who_writes_to_unknown_names_locks_nobody_out() {
    check(
        "0 hello alice 1
         > 0 welcome 1..0
         0 send n1 1 x
         0 send n2 1 x
         0 send n3 1 x
         0 send n4 1 x
         0 send n5 1 x
         0 send n6 1 x
         > 0 refused n6 1 Busy
         0 send n1 2 y
         commit
         > 0 sent n1 1
         > 0 sent n2 1
         > 0 sent n3 1
         > 0 sent n4 1
         > 0 sent n5 1
         > 0 sent n1 2
         1 hello zoe 1
         > 1 welcome 1..0
         2 hello yan 1
         > 2 welcome 1..0
         3 hello xi 1
         > 3 goaway Busy come back
         > 3 close",
    );
}

/// Nor can a shard be made to remember more of who has written to whom than it has room for.
#[test]
fn who_writes_from_ever_new_devices_is_refused() {
    check(
        "0 hello alice 1
         > 0 welcome 1..0
         1 hello alice 2
         > 1 welcome 1..0
         2 hello alice 3
         > 2 welcome 1..0
         3 hello alice 4
         > 3 welcome 1..0
         0 send b 1 0
         0 send c 1 0
         0 send d 1 0
         0 send e 1 0
         0 send f 1 0
         1 send b 1 1
         1 send c 1 1
         1 send d 1 1
         1 send e 1 1
         1 send f 1 1
         2 send b 1 2
         2 send c 1 2
         2 send d 1 2
         2 send e 1 2
         2 send f 1 2
         3 send b 1 3
         3 send c 1 3
         3 send d 1 3
         3 send e 1 3
         3 send f 1 3
         0 send alice 1 0
         1 send alice 1 1
         2 send alice 1 2
         3 send alice 1 3
         4 hello zoe 1
         > 4 welcome 1..0
         4 send b 1 z
         > 4 refused b 1 Busy",
    );
}

#[test]
fn a_full_inbox_keeps_the_number() {
    check(
        "0 hello alice 1
         > 0 welcome 1..0
         0 send bob 1 a
         0 send bob 2 b
         0 send bob 3 c
         0 send bob 4 d
         0 send bob 5 e
         > 0 refused bob 5 InboxFull
         0 send bob 6 f
         > 0 gap bob 5
         commit
         > 0 sent bob 1
         > 0 sent bob 2
         > 0 sent bob 3
         > 0 sent bob 4
         1 hello bob 1
         > 1 welcome 1..4
         > 1 deliver 1 alice a
         > 1 deliver 2 alice b
         > 1 deliver 3 alice c
         > 1 deliver 4 alice d
         1 ack 4
         0 send bob 5 e
         commit
         > 1 deliver 5 alice e
         > 0 sent bob 5",
    );
}

#[test]
fn the_window_is_ahead_of_the_acknowledgements() {
    check(
        "0 hello bob 1 credit=2
         > 0 welcome 1..0
         0 send bob 1 a
         0 send bob 2 b
         0 send bob 3 c
         0 send bob 4 d
         commit
         > 0 deliver 1 bob a
         > 0 sent bob 1
         > 0 deliver 2 bob b
         > 0 sent bob 2
         > 0 sent bob 3
         > 0 sent bob 4
         0 ack 1
         > 0 deliver 3 bob c
         # beyond what was handed out counts as that
         0 ack 99
         > 0 deliver 4 bob d
         0 credit 0
         0 send bob 5 e
         commit
         > 0 sent bob 5
         0 credit 3
         > 0 deliver 5 bob e",
    );
}

#[test]
fn an_expired_message_takes_up_no_window() {
    check(
        "0 hello alice 1
         > 0 welcome 1..0
         0 send bob 1 a ttl=1
         0 send bob 2 b ttl=1
         0 send bob 3 c
         commit
         > 0 sent bob 1
         > 0 sent bob 2
         > 0 sent bob 3
         tick 1500
         1 hello bob 1 credit=1
         > 1 welcome 1..3
         > 1 deliver 3 alice c
         # the other device finds holes where the first found them expired
         2 hello bob 2 credit=1
         > 2 welcome 3..3
         > 2 deliver 3 alice c",
    );
}

#[test]
fn the_newest_login_of_a_device_wins() {
    check(
        "0 hello bob 1
         > 0 welcome 1..0
         1 hello bob 1
         > 0 goaway Replaced
         > 0 close
         > 1 welcome 1..0
         # what the old one still says is ignored, and its end ends nothing
         0 send bob 1 x
         0 ping 3
         0 close
         1 send bob 1 a
         commit
         > 1 deliver 1 bob a
         > 1 sent bob 1",
    );
}

#[test]
fn four_devices_and_no_more() {
    check(
        "0 hello bob 1
         > 0 welcome 1..0
         1 hello bob 2
         > 1 welcome 1..0
         2 hello bob 3
         > 2 welcome 1..0
         3 hello bob 4
         > 3 welcome 1..0
         4 hello bob 5
         > 4 goaway TooManyDevices
         > 4 close
         # every device gets every message
         0 send bob 1 a
         commit
         > 0 deliver 1 bob a
         > 1 deliver 1 bob a
         > 2 deliver 1 bob a
         > 3 deliver 1 bob a
         > 0 sent bob 1",
    );
}

#[test]
fn an_entry_stays_until_every_device_has_it() {
    check(
        "0 hello bob 1
         > 0 welcome 1..0
         1 hello bob 2
         > 1 welcome 1..0
         1 close
         0 send bob 1 a
         commit
         > 0 deliver 1 bob a
         > 0 sent bob 1
         0 ack 1
         1 hello bob 2
         > 1 welcome 1..1
         > 1 deliver 1 bob a
         1 ack 1
         1 close
         1 hello bob 2 last=1
         > 1 welcome 2..1",
    );
}

#[test]
fn delivered_is_told_to_the_device_that_asked() {
    check(
        "0 hello alice 1
         > 0 welcome 1..0
         1 hello bob 1
         > 1 welcome 1..0
         0 send bob 1 a delivered
         0 send bob 2 b
         commit
         > 1 deliver 1 alice a
         > 0 sent bob 1
         > 1 deliver 2 alice b
         > 0 sent bob 2
         1 ack 2
         > 0 delivered bob 1",
    );
}

/// One device was handed it, the other found it expired: nobody can say that
/// anybody has it.
#[test]
fn what_expired_is_not_delivered() {
    check(
        "0 hello alice 1
         > 0 welcome 1..0
         1 hello bob 1
         > 1 welcome 1..0
         0 send bob 1 a ttl=1 delivered
         0 send bob 2 b
         commit
         > 1 deliver 1 alice a
         > 0 sent bob 1
         > 1 deliver 2 alice b
         > 0 sent bob 2
         tick 1500
         2 hello bob 2
         > 2 welcome 1..2
         > 2 deliver 2 alice b
         2 ack 2",
    );
}

/// One read serves all that lies in it, also where what has expired stands
/// between what has not.
#[test]
fn the_expired_between_others_cost_no_reads() {
    check(&format!(
        "0 hello alice 1
         > 0 welcome 1..0
         0 send bob 1 a*3000 ttl=1
         0 send bob 2 b*3000
         0 send bob 3 c*3000 ttl=1
         0 send bob 4 d*3000
         commit
         > 0 sent bob 1
         > 0 sent bob 2
         > 0 sent bob 3
         > 0 sent bob 4
         {PUSH_OUT}
         jump 2000
         1 hello bob 1
         > 1 welcome 1..4
         > 1 deliver 2 alice b…3000
         > 1 deliver 4 alice d…3000
         reads were 1"
    ));
}

/// What a window does not take is not read: it would be thrown away.
#[test]
fn a_read_is_as_long_as_the_window() {
    check(&format!(
        "0 hello alice 1
         > 0 welcome 1..0
         0 send bob 1 a*3000
         0 send bob 2 b*3000
         0 send bob 3 c*3000
         0 send bob 4 d*3000
         commit
         > 0 sent bob 1
         > 0 sent bob 2
         > 0 sent bob 3
         > 0 sent bob 4
         {PUSH_OUT}
         1 hello bob 1 credit=2
         > 1 welcome 1..4
         > 1 deliver 1 alice a…3000
         > 1 deliver 2 alice b…3000
         reads were 1
         reads within 6400
         1 credit 5
         > 1 deliver 3 alice c…3000
         > 1 deliver 4 alice d…3000
         reads were 2
         reads within 6400"
    ));
}

/// What lies far from each other is read by itself, and at once where others read
/// the same stretch.
#[test]
fn a_stretch_that_others_read_is_read_at_once() {
    for (how, reads, within) in [("work", 3, 3_200), ("wide", 1, 60_000)] {
        check(&format!(
            "0 hello alice 1
             > 0 welcome 1..0
             0 send bob 1 a*3000
             0 send dave 1 x*20000
             0 send bob 2 b*3000
             0 send erin 1 x*20000
             0 send bob 3 c*3000
             commit
             > 0 sent bob 1
             > 0 sent dave 1
             > 0 sent bob 2
             > 0 sent erin 1
             > 0 sent bob 3
             {PUSH_OUT}
             reads {how}
             1 hello bob 1
             > 1 welcome 1..3
             > 1 deliver 1 alice a…3000
             > 1 deliver 2 alice b…3000
             > 1 deliver 3 alice c…3000
             reads were {reads}
             reads within {within}"
        ));
    }
}

/// What expires while it is handed out leaves its window to the next.
#[test]
fn a_window_goes_on_behind_what_expires() {
    check(
        "0 hello alice 1
         > 0 welcome 1..0
         0 send bob 1 a ttl=1
         0 send bob 2 b ttl=1
         0 send bob 3 c
         commit
         > 0 sent bob 1
         > 0 sent bob 2
         > 0 sent bob 3
         1 hello bob 1 credit=0
         > 1 welcome 1..3
         tick 1500
         1 credit 1
         > 1 deliver 3 alice c",
    );
}

#[test]
fn a_cursor_above_the_inbox_raises_it() {
    check(
        "0 hello bob 1 last=5
         > 0 welcome 6..5
         0 send bob 1 a
         commit
         > 0 deliver 6 bob a
         > 0 sent bob 1
         1 hello alice 1 last=99999999
         > 1 goaway BadCursor
         > 1 close",
    );
}

/// A floor above what still waits for its fsync does not show it.
#[test]
fn a_raised_floor_shows_nothing_early() {
    check(
        "0 hello alice 1
         > 0 welcome 1..0
         1 hello bob 1
         > 1 welcome 1..0
         commit
         0 send bob 1 a
         2 hello bob 2 last=9
         > 2 welcome 10..9
         1 credit 50
         commit
         > 1 deliver 1 alice a
         > 0 sent bob 1",
    );
}

#[test]
fn best_effort_is_early_but_not_before_what_waits() {
    check(
        "0 hello alice 1
         > 0 welcome 1..0
         1 hello bob 1
         > 1 welcome 1..0
         # the first of a life waits, the leap must not be lost with it
         0 send bob 1 a best
         commit
         > 1 deliver 1 alice a
         > 0 sent bob 1
         0 send bob 2 b best
         > 1 deliver 2 alice b
         > 0 sent bob 2
         0 send bob 3 c
         0 send bob 4 d best
         commit
         > 1 deliver 3 alice c
         > 0 sent bob 3
         > 1 deliver 4 alice d
         > 0 sent bob 4",
    );
}

#[test]
fn a_connection_must_log_in_in_time() {
    check(
        "0 open
         1 ping 5
         > 1 pong 5
         2 hello alice 1
         > 2 welcome 1..0
         tick 900
         tick 200
         > 0 close
         > 1 close",
    );
}

#[test]
fn frames_before_and_after_a_login() {
    check(
        "0 send bob 1 hi
         > 0 error NotLoggedIn
         0 hello alice 0
         > 0 goaway Malformed
         > 0 close
         1 hello alice 1
         > 1 welcome 1..0
         1 hello alice 1
         > 1 error Malformed",
    );
}

#[test]
fn the_32nd_bad_frame_in_a_row_is_the_last() {
    let bad = |n: usize| "0 bad\n> 0 error Malformed\n".repeat(n);
    check(&format!(
        "0 hello alice 1
         > 0 welcome 1..0
         {}
         0 ping 1
         > 0 pong 1
         {}
         0 bad
         > 0 goaway Malformed
         > 0 close
         # and that was the last word
         0 ping 2
         0 send alice 1 a
         0 bad
         1 hello bob 1
         > 1 welcome 1..0
         1 send alice 1 b
         commit
         > 1 sent alice 1",
        bad(31),
        bad(31)
    ));
}

#[test]
fn a_full_disk_refuses_messages_and_takes_acknowledgements() {
    check(
        "0 hello bob 1
         > 0 welcome 1..0
         0 send bob 1 a
         commit
         > 0 deliver 1 bob a
         > 0 sent bob 1
         storage full
         0 send bob 2 b
         > 0 refused bob 2 StorageFull
         0 ack 1
         storage ok
         0 send bob 2 b
         commit
         > 0 deliver 2 bob b
         > 0 sent bob 2",
    );
}

/// A login writes up to three records. The log has room for one short one here,
/// and behind it for none.
#[test]
fn a_login_waits_for_room_for_all_its_records() {
    let (short, long) = ("s".repeat(200), "n".repeat(256));
    check(&format!(
        "0 hello alice 1
         > 0 welcome 1..0
         1 hello 1{short} 1
         > 1 welcome 1..0
         2 hello 2{short} 1
         > 2 welcome 1..0
         commit
         0 send bob 1 x*31880
         0 send bob 2 x*27850
         0 send bob 3 x*3280
         1 close
         2 close
         3 hello {long} 1
         > blocked
         commit
         > 0 sent bob 1
         > 0 sent bob 2
         > 0 sent bob 3
         3 hello {long} 1
         > 3 welcome 1..0",
    ));
}

#[test]
fn a_drain_sends_everybody_away() {
    check(
        "0 hello alice 1
         > 0 welcome 1..0
         1 login bob
         > 1 login_ok
         2 open
         drain
         > 0 goaway Draining come back
         > 0 close
         > 1 close
         > 2 close
         3 hello carol 1
         > 3 goaway Draining come back
         > 3 close",
    );
}

#[test]
fn who_is_written_to_out_of_order_is_not_remembered() {
    check(
        "0 hello alice 1
         > 0 welcome 1..0
         commit
         0 send nobody 2 b
         > 0 gap nobody 1
         0 send nobody 1 a
         commit
         > 0 sent nobody 1",
    );
}

/// Among entries each number that a login leaves out is a hole in memory.
#[test]
fn logins_raise_an_inbox_with_messages_by_256_in_all() {
    check(
        "0 hello alice 1
         > 0 welcome 1..0
         0 send bob 1 a
         commit
         > 0 sent bob 1
         1 hello bob 1
         > 1 welcome 1..1
         > 1 deliver 1 alice a
         2 hello bob 2 last=201
         > 2 welcome 202..201
         3 hello bob 2 last=258
         > 3 goaway BadCursor
         > 3 close
         4 hello bob 2 last=257
         > 2 goaway Replaced
         > 2 close
         > 4 welcome 258..257
         5 hello bob 3 last=258
         > 5 goaway BadCursor
         > 5 close
         # holes take no message's place: the inbox holds four
         0 send bob 2 b
         0 send bob 3 c
         0 send bob 4 d
         0 send bob 5 e
         > 0 refused bob 5 InboxFull
         commit
         > 1 deliver 258 alice b
         > 4 deliver 258 alice b
         > 0 sent bob 2
         > 1 deliver 259 alice c
         > 4 deliver 259 alice c
         > 0 sent bob 3
         > 1 deliver 260 alice d
         > 4 deliver 260 alice d
         > 0 sent bob 4
         # without entries a login costs nothing, and the count begins anew
         1 ack 260
         4 ack 260
         1 close
         1 hello bob 1 last=2000
         > 1 welcome 2001..2000
         0 send bob 5 e
         commit
         > 1 deliver 2001 alice e
         > 4 deliver 2001 alice e
         > 0 sent bob 5
         1 close
         1 hello bob 1 last=2257
         > 1 welcome 2258..2257",
    );
}

/// The leap after a restart is wider than this window, and stands behind a
/// message that is not acknowledged.
#[test]
fn holes_behind_what_waits_take_up_no_window() {
    check(
        "0 hello alice 1
         > 0 welcome 1..0
         0 send bob 1 a
         commit
         > 0 sent bob 1
         1 hello bob 1 credit=2
         > 1 welcome 1..1
         > 1 deliver 1 alice a
         commit
         restart
         0 hello alice 1
         > 0 welcome 1..0
         1 hello bob 1 credit=2
         > 1 welcome 1..1
         > 1 deliver 1 alice a
         0 send bob 2 b
         0 send bob 3 c
         0 send bob 4 d
         commit
         > 1 deliver 66 alice b
         > 0 sent bob 2
         > 0 sent bob 3
         > 0 sent bob 4
         # the cursor comes over the holes: they count no more
         1 ack 1
         > 1 deliver 67 alice c
         1 ack 66
         > 1 deliver 68 alice d",
    );
}

/// The other device has it in its window when it expires.
#[test]
fn what_expires_in_a_window_leaves_its_place() {
    check(
        "0 hello alice 1
         > 0 welcome 1..0
         1 hello bob 1 credit=2
         > 1 welcome 1..0
         0 send bob 1 a
         0 send bob 2 b ttl=1
         0 send bob 3 c
         commit
         > 1 deliver 1 alice a
         > 0 sent bob 1
         > 1 deliver 2 alice b
         > 0 sent bob 2
         > 0 sent bob 3
         tick 1500
         2 hello bob 2
         > 2 welcome 1..3
         > 2 deliver 1 alice a
         > 2 deliver 3 alice c
         1 credit 2
         > 1 deliver 3 alice c
         0 send bob 4 d
         commit
         > 2 deliver 4 alice d
         > 0 sent bob 4
         1 ack 2
         > 1 deliver 4 alice d",
    );
}

/// The table has eight places, two of them for logins only.
#[test]
fn a_refused_login_leaves_no_user_behind() {
    let refused =
        |n: usize| format!("{n} hello r{n} 1 last=131073\n> {n} goaway BadCursor\n> {n} close\n");
    let refused: String = (10..30).map(refused).collect();
    let taken = |n: usize| format!("{n} hello t{n} 1 last=131072\n> {n} welcome 131073..131072\n");
    let taken: String = (0..8).map(taken).collect();
    check(&format!("{refused}{taken}8 hello t8 1\n> 8 goaway Busy come back\n> 8 close"));
}
