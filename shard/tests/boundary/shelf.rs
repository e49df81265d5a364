//! What cannot be read is set aside, and comes back when it can be.

use crate::desk::{PUSH_OUT, check};

/// Three messages for bob that have left the memory, a, b and c, and the steps
/// that follow.
#[track_caller]
fn check_after_filling(script: &str) {
    let filling = "0 hello alice 1
         > 0 welcome 1..0
         0 send bob 1 a*10000
         0 send bob 2 b*10000
         0 send bob 3 c*10000
         commit
         > 0 sent bob 1
         > 0 sent bob 2
         > 0 sent bob 3";
    check(&format!("{filling}{PUSH_OUT}{script}"));
}

/// The same, and b has been set aside: bob's first device was given the others.
#[track_caller]
fn check_after_setting_aside(script: &str) {
    check_after_filling(&format!(
        "rot b
         1 hello bob 1
         > 1 welcome 1..3
         > 1 deliver 1 alice a…10000
         > damaged 10221
         commit
         > 1 deliver 3 alice c…10000
         {script}"
    ));
}

#[test]
fn the_rest_of_the_inbox_is_delivered_once_the_log_says_so() {
    check_after_filling(
        "rot b
         1 hello bob 1
         > 1 welcome 1..3
         > 1 deliver 1 alice a…10000
         > damaged 10221
         1 ack 1
         commit
         > 1 deliver 3 alice c…10000
         1 ack 3
         1 close
         # Still not to be read; it is told once.
         1 hello bob 1 last=3
         > 1 welcome 4..3
         1 close
         1 hello bob 1
         > 1 welcome 4..3
         0 send bob 4 x
         commit
         > 1 deliver 4 alice x
         > 0 sent bob 4
         1 ack 4",
    );
}

/// It takes up no window, and it is not waited for.
#[test]
fn what_is_set_aside_takes_up_no_window() {
    check_after_filling(
        "rot b
         1 hello bob 1 credit=1
         > 1 welcome 1..3
         > 1 deliver 1 alice a…10000
         1 ack 1
         > damaged 10221
         commit
         > 1 deliver 3 alice c…10000
         0 send bob 4 x
         0 send bob 5 y
         commit
         > 0 sent bob 4
         > 0 sent bob 5
         1 ack 3
         > 1 deliver 4 alice x
         1 ack 4
         > 1 deliver 5 alice y
         # It owes no acknowledgement, however long that lasts.
         1 ack 5
         1 looked
         1 looked
         1 looked
         1 looked
         1 looked",
    );
}

/// The device says that it is beyond, and gets it all the same.
#[test]
fn a_cursor_beyond_does_not_give_it_up() {
    check_after_setting_aside(
        "1 ack 3
         commit
         snapshot
         restart
         1 hello bob 1 last=3
         > 1 welcome 4..3
         > damaged 10221
         1 close
         rot b
         1 hello bob 1 last=3
         > 1 welcome 4..3
         commit
         > 1 deliver 68 alice b…10000
         1 ack 68
         1 close
         1 hello bob 1 last=68
         > 1 welcome 69..68
         commit
         restart
         1 hello bob 1 last=68
         > 1 welcome 69..68",
    );
}

/// The same where the log alone says so, and the acknowledgement is lost.
#[test]
fn a_replay_of_the_log_knows_it() {
    check_after_setting_aside(
        "1 ack 3
         rot b
         restart
         1 hello bob 1 last=3
         > 1 welcome 4..3
         commit
         > 1 deliver 68 alice b…10000
         restart
         1 hello bob 1 last=3
         > 1 welcome 68..68
         > 1 deliver 68 alice b…10000",
    );
}

/// It has left the shelf and is not durable: nobody has seen the number.
#[test]
fn a_crash_while_it_comes_back() {
    check_after_filling(
        "rot b
         1 login bob
         > 1 login_ok
         > 1 message a…10000
         > damaged 10221
         commit
         > 1 message c…10000
         1 got 1
         1 got 2
         commit
         rot b
         restart
         1 login bob
         > 1 login_ok
         write
         restart
         1 login bob
         > 1 login_ok
         commit
         > 1 message b…10000
         1 got 3
         1 close
         commit
         restart
         1 login bob
         > 1 login_ok",
    );
}

/// The acknowledgement of what follows, and a crash before the log says that
/// something was set aside: it must not have been handed out.
#[test]
fn nothing_that_follows_goes_before_it_is_in_the_log() {
    check_after_filling(
        "rot b
         1 hello bob 1
         > 1 welcome 1..3
         > 1 deliver 1 alice a…10000
         > damaged 10221
         write
         # Nor to another device.
         2 hello bob 2
         > 2 welcome 1..3
         done
         > 1 deliver 3 alice c…10000
         > 2 deliver 1 alice a…10000
         > 2 deliver 3 alice c…10000",
    );
}

#[test]
fn what_the_disk_does_not_give_is_no_end() {
    check_after_filling(
        "reads fail
         1 hello bob 1
         > 1 welcome 1..3
         > damaged 101
         commit
         > damaged 10221
         commit
         > damaged 20341
         commit
         0 send bob 4 x
         commit
         > 1 deliver 4 alice x
         > 0 sent bob 4
         1 ack 4
         commit
         restart
         reads work
         1 hello bob 1 last=4
         > 1 welcome 5..4
         commit
         > 1 deliver 69 alice a…10000
         > 1 deliver 70 alice b…10000
         # There was no room for three at a time.
         commit
         > 1 deliver 71 alice c…10000",
    );
}

/// Who has acknowledged it does not get it again.
#[test]
fn it_comes_back_to_those_who_do_not_have_it() {
    check(&format!(
        "1 hello bob 1
         > 1 welcome 1..0
         2 hello bob 2
         > 2 welcome 1..0
         2 close
         3 login bob
         > 3 login_ok
         0 hello alice 1
         > 0 welcome 1..0
         0 send bob 1 a*10000 delivered
         0 send bob 2 x delivered
         commit
         > 1 deliver 1 alice a…10000
         > 3 message a…10000
         > 0 sent bob 1
         > 1 deliver 2 alice x
         > 3 message x
         > 0 sent bob 2
         1 ack 1
         > 0 delivered bob 1
         3 got 1
         {PUSH_OUT}
         rot a
         2 hello bob 2
         > 2 welcome 1..2
         > damaged 297
         commit
         > 2 deliver 2 alice x
         2 ack 2
         > 0 delivered bob 2
         1 ack 2
         1 close
         2 close
         commit
         snapshot
         rot a
         restart
         1 hello bob 1
         > 1 welcome 3..2
         3 login bob
         > 3 login_ok
         > 3 message x
         2 hello bob 2
         > 2 welcome 67..67
         commit
         > 2 deliver 67 alice a…10000
         # A device that comes later has nothing of it.
         4 hello bob 4
         > 4 welcome 2..67
         > 4 deliver 2 alice x
         > 4 deliver 67 alice a…10000
         commit
         snapshot
         restart
         2 hello bob 2
         > 2 welcome 67..67
         > 2 deliver 67 alice a…10000
         2 ack 67
         1 hello bob 1
         > 1 welcome 68..67
         3 login bob
         > 3 login_ok
         > 3 message x
         0 hello alice 1
         > 0 welcome 1..0
         0 send bob 3 y
         commit
         > 1 deliver 132 alice y
         > 2 deliver 132 alice y
         > 3 message y
         > 0 sent bob 3
         1 ack 132
         > 0 delivered bob 2"
    ));
}

/// What has expired on the shelf goes, when it can be read.
#[test]
fn what_has_expired_does_not_come_back() {
    check_after_setting_aside(
        "1 ack 3
         1 close
         jump 2000000
         1 hello bob 1
         > 1 welcome 4..3
         1 close
         reads were 3
         rot b
         1 hello bob 1
         > 1 welcome 4..3
         1 close
         reads were 4
         1 hello bob 1
         > 1 welcome 4..3
         reads were 4
         1 close
         commit
         restart
         1 hello bob 1
         > 1 welcome 4..3
         reads were 0",
    );
}

/// Without room in the log nothing goes to the shelf or comes back from it, and
/// both happen when there is some.
#[test]
fn what_has_no_room_is_done_later() {
    check_after_setting_aside(
        "1 close
         commit
         rot b
         0 send dave 1 h*30000
         write
         0 send dave 2 i*20000
         1 hello bob 1 last=3
         > 1 welcome 4..3
         commit
         > 0 sent dave 1
         > 0 sent dave 2
         commit
         > 1 deliver 4 alice b…10000",
    );
}

#[test]
fn what_came_back_to_a_full_disk_is_stored_when_there_is_room() {
    check_after_setting_aside(
        "1 ack 3
         1 close
         commit
         rot b
         storage full
         1 hello bob 1
         > 1 welcome 4..3
         commit
         storage ok
         commit
         > 1 deliver 4 alice b…10000",
    );
}

/// What `connect` connects is handed a, which leaves the memory; then bob's second
/// device finds that a cannot be read, and closes. Then the steps that follow.
#[track_caller]
fn check_after_handing(connect: &str, handed: &str, script: &str) {
    check(&format!(
        "2 hello bob 2
         > 2 welcome 1..0
         2 close
         {connect}
         0 hello alice 1
         > 0 welcome 1..0
         0 send bob 1 a*10000
         commit
         {handed}
         > 0 sent bob 1
         {PUSH_OUT}
         rot a
         2 hello bob 2
         > 2 welcome 1..1
         > damaged 246
         commit
         2 close
         commit
         {script}"
    ));
}

const HAND_TO_DEVICE_1: (&str, &str) = (
    "1 hello bob 1
     > 1 welcome 1..0",
    "> 1 deliver 1 alice a…10000",
);

/// Only the other one gets it, in this life of the server or the next.
#[test]
fn who_acknowledges_it_after_it_was_set_aside_does_not_get_it_again() {
    let (connect, handed) = HAND_TO_DEVICE_1;
    for restart in ["", "restart"] {
        check_after_handing(
            connect,
            handed,
            &format!(
                "1 ack 1
                 1 close
                 commit
                 rot a
                 {restart}
                 2 hello bob 2
                 > 2 welcome 2..1
                 commit
                 > 2 deliver {seq} alice a…10000
                 1 hello bob 1 last=1
                 > 1 welcome {next}..{seq}",
                seq = if restart.is_empty() { 2 } else { 66 },
                next = if restart.is_empty() { 3 } else { 67 },
            ),
        );
    }
}

/// Protocol v1 acknowledges one by one.
#[test]
fn a_v1_device_that_acknowledges_it_then_does_not_get_it_again() {
    check_after_handing(
        "1 login bob
         > 1 login_ok",
        "> 1 message a…10000",
        "1 got 1
         1 close
         commit
         rot a
         restart
         1 login bob
         > 1 login_ok
         commit
         2 hello bob 2
         > 2 welcome 66..66
         > 2 deliver 66 alice a…10000",
    );
}

/// A new connection tells how far the device is, and nothing else has arrived.
#[test]
fn a_device_that_comes_back_has_it_if_it_says_so() {
    let (connect, handed) = HAND_TO_DEVICE_1;
    check_after_handing(
        connect,
        handed,
        "1 close
         1 hello bob 1 last=1
         > 1 welcome 2..1
         1 close
         rot a
         2 hello bob 2
         > 2 welcome 2..1
         commit
         > 2 deliver 2 alice a…10000
         1 hello bob 1 last=1
         > 1 welcome 3..2",
    );
    check_after_handing(
        connect,
        handed,
        "1 close
         1 hello bob 1
         > 1 welcome 2..1
         1 ack 1
         rot a
         2 hello bob 2
         > 2 welcome 2..1
         commit
         > 2 deliver 2 alice a…10000
         > 1 deliver 2 alice a…10000",
    );
}

/// It may say any moment that it has it. When it has, or is gone, whoever else is
/// connected gets it without another login.
#[test]
fn what_a_connected_device_was_handed_is_not_tried_before_it_says_something() {
    let (connect, handed) = HAND_TO_DEVICE_1;
    for says in ["1 ack 1", "1 close"] {
        check_after_handing(
            connect,
            handed,
            &format!(
                "rot a
                 2 hello bob 2
                 > 2 welcome 2..1
                 commit
                 tick 100
                 commit
                 {says}
                 tick 100
                 commit
                 > 2 deliver 2 alice a…10000"
            ),
        );
    }
}

/// Others wait for its word.
#[test]
fn who_never_says_whether_it_has_it_is_cut() {
    let (connect, handed) = HAND_TO_DEVICE_1;
    check_after_handing(
        connect,
        handed,
        "rot a
         2 hello bob 2
         > 2 welcome 2..1
         1 looked
         1 looked
         1 looked
         1 looked
         > 1 goaway Timeout come back
         > 1 close
         tick 100
         commit
         > 2 deliver 2 alice a…10000",
    );
}
