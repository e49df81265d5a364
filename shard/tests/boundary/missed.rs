//! What cannot be read is passed over, and stays.

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

#[test]
fn the_rest_of_the_inbox_is_delivered_and_does_not_return() {
    check_after_filling(
        "rot b
         1 hello bob 1
         > 1 welcome 1..3
         > 1 deliver 1 alice a…10000
         > damaged 10221
         > 1 deliver 3 alice c…10000
         1 ack 3
         1 ack 3
         1 close
         1 hello bob 1 last=3
         > 1 welcome 4..3
         1 close
         # It knows no more what it has; the shard does.
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
fn what_is_passed_over_takes_up_no_window() {
    check_after_filling(
        "rot b
         1 hello bob 1 credit=1
         > 1 welcome 1..3
         > 1 deliver 1 alice a…10000
         1 ack 1
         > damaged 10221
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

/// The bytes were brought back while the server was stopped.
#[test]
fn it_is_delivered_once_it_can_be_read() {
    check_after_filling(
        "snapshot
         rot b
         1 login bob
         > 1 login_ok
         > 1 message a…10000
         > damaged 10221
         > 1 message c…10000
         1 got 1
         1 got 2
         1 close
         1 login bob
         > 1 login_ok
         1 close
         commit
         rot b
         restart
         1 login bob
         > 1 login_ok
         > 1 message b…10000
         1 got 3
         1 close
         commit
         restart
         1 login bob
         > 1 login_ok",
    );
}

#[test]
fn what_the_disk_does_not_give_is_no_end() {
    check_after_filling(
        "reads fail
         1 hello bob 1
         > 1 welcome 1..3
         > damaged 101
         > damaged 10221
         > damaged 20341
         reads work
         0 send bob 4 x
         commit
         > 1 deliver 4 alice x
         > 0 sent bob 4
         1 ack 4
         commit
         restart
         # It does not say that it has 4.
         1 hello bob 1
         > 1 welcome 1..4
         > 1 deliver 1 alice a…10000
         > 1 deliver 2 alice b…10000
         > 1 deliver 3 alice c…10000
         > 1 deliver 4 alice x",
    );
}

/// Who has it has acknowledged it; the other one is not given it.
#[test]
fn each_device_misses_for_itself() {
    check(&format!(
        "1 hello bob 1
         > 1 welcome 1..0
         2 hello bob 2
         > 2 welcome 1..0
         2 close
         0 hello alice 1
         > 0 welcome 1..0
         0 send bob 1 a*10000 delivered
         0 send bob 2 x delivered
         commit
         > 1 deliver 1 alice a…10000
         > 0 sent bob 1
         > 1 deliver 2 alice x
         > 0 sent bob 2
         {PUSH_OUT}
         rot a
         2 hello bob 2
         > 2 welcome 1..2
         > damaged 246
         > 2 deliver 2 alice x
         2 ack 2
         > 0 delivered bob 1
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
         2 hello bob 2
         > 2 welcome 1..2
         > 2 deliver 1 alice a…10000
         > 2 deliver 2 alice x
         2 ack 2"
    ));
}
