//! Cleaning: what is copied, what is given up, what is deleted and when.

use crate::desk::check;

/// Three messages of 20,000 bytes fill a segment of the log. The first of them
/// is left when two ticks have passed and nobody collects there any more.
const FILLED: &str = "0 hello alice 1
     > 0 welcome 1..0
     0 send bob 1 a*20000
     0 send carol 1 b*20000
     0 send carol 2 c*20000
     commit
     > 0 sent bob 1
     > 0 sent carol 1
     > 0 sent carol 2
     0 send carol 3 d*20000
     0 send carol 4 e*20000
     commit
     > 0 sent carol 3
     > 0 sent carol 4
     1 hello carol 1
     > 1 welcome 1..4
     > 1 deliver 1 alice b…20000
     > 1 deliver 2 alice c…20000
     > 1 deliver 3 alice d…20000
     > 1 deliver 4 alice e…20000
     1 ack 4
     commit
";

#[track_caller]
fn check_after_filling(script: &str) {
    check(&format!("{FILLED}{script}"));
}

/// On a full disk the last place may be enough for what is left of a segment in one
/// write, and not in two. Then nothing is copied before all of it has been read.
#[test]
fn what_fits_one_write_is_copied_in_one() {
    let reads = "reads held\ncommit\n".repeat(8);
    check(&format!(
        "0 hello alice 1
         > 0 welcome 1..0
         0 send bob 1 a*5600
         0 send carol 1 b*25000
         0 send bob 2 c*5600
         0 send carol 2 d*20000
         commit
         > 0 sent bob 1
         > 0 sent carol 1
         > 0 sent bob 2
         > 0 sent carol 2
         0 send carol 3 e*20000
         commit
         > 0 sent carol 3
         1 hello carol 1
         > 1 welcome 1..3
         > 1 deliver 1 alice b…25000
         > 1 deliver 2 alice d…20000
         > 1 deliver 3 alice e…20000
         1 ack 3
         commit
         surveys short
         reads hold
         storage full
         place 5 0
         tick 100
         {reads}snapshot
         commit
         snapshot
         > discard 0
         storage free
         place 8 8
         reads go
         2 hello bob 1
         > 2 welcome 1..2
         > 2 deliver 1 alice a…5600
         > 2 deliver 2 alice c…5600"
    ));
}

/// Two snapshots must do without a segment before it goes; what waited in it
/// has moved and comes as if nothing had been.
#[test]
fn what_is_left_moves_and_the_segment_goes() {
    check_after_filling(
        "tick 100
         tick 100
         commit
         snapshot
         0 send dave 1 f
         commit
         > 0 sent dave 1
         tick 100
         snapshot
         > discard 0
         > discard 1
         2 hello bob 1
         > 2 welcome 1..1
         > 2 deliver 1 alice a…20000
         restart
         2 hello bob 1
         > 2 welcome 1..1
         > 2 deliver 1 alice a…20000",
    );
}

/// Of the copy and the snapshots nothing counts before it is durable.
#[test]
fn nothing_goes_before_the_copy_is_durable() {
    check_after_filling(
        "reads hold
         snapshot
         0 send dave 1 f
         commit
         > 0 sent dave 1
         snapshot
         reads go
         tick 100
         write
         tick 100
         commit
         > discard 0",
    );
}

/// A device reads where a message was before it moved: the segment stays until
/// the read has ended, and the message comes.
#[test]
fn a_read_under_way_holds_its_segment() {
    check_after_filling(
        "reads hold
         tick 100
         tick 100
         snapshot
         2 hello bob 1
         > 2 welcome 1..1
         0 send dave 1 f
         commit
         > 0 sent dave 1
         snapshot
         reads go
         > 2 deliver 1 alice a…20000
         commit
         > discard 0",
    );
}

/// What has expired (here after 1000 s, whatever its sender said) is given up
/// although nobody asked for it, and does not come back.
#[test]
fn the_expired_are_given_up() {
    check(
        "0 hello alice 1
         > 0 welcome 1..0
         0 send bob 1 a*20000 ttl=1
         0 send bob 2 b*20000
         0 send carol 1 c*20000 ttl=1
         commit
         > 0 sent bob 1
         > 0 sent bob 2
         > 0 sent carol 1
         0 send dave 1 d*20000
         commit
         > 0 sent dave 1
         tick 7200000
         commit
         snapshot
         0 send dave 2 e
         commit
         > 0 sent dave 2
         snapshot
         > discard 0
         restart
         1 hello bob 1
         > 1 welcome 3..2
         2 hello carol 1
         > 2 welcome 2..1",
    );
}

/// On a full disk nothing new is taken. What waits for two snapshots must not
/// wait for somebody to send something in between.
#[test]
fn a_full_disk_gets_its_space_back_by_itself() {
    check(
        "0 hello alice 1
         > 0 welcome 1..0
         0 send alice 1 a*20000
         0 send alice 2 b*20000
         0 send alice 3 c*20000
         commit
         > 0 deliver 1 alice a…20000
         > 0 sent alice 1
         > 0 deliver 2 alice b…20000
         > 0 sent alice 2
         > 0 deliver 3 alice c…20000
         > 0 sent alice 3
         storage full
         0 ack 3
         commit
         tick 100
         commit
         snapshot due
         tick 100
         commit
         tick 100
         snapshot due
         > discard 0",
    );
}

/// The same where nobody sends any more, and after a start from one snapshot.
#[test]
fn a_shard_at_rest_gets_its_space_back() {
    check_after_filling(
        "2 hello bob 1
         > 2 welcome 1..1
         > 2 deliver 1 alice a…20000
         2 ack 1
         commit
         tick 100
         snapshot due
         restart
         tick 100
         commit
         tick 100
         snapshot due
         > discard 0",
    );
}

/// While a segment is left alone because of what `fault` does to it, another is
/// begun. Then the steps that follow.
#[track_caller]
fn check_after_leaving(fault: &str, script: &str) {
    check_after_filling(&format!(
        "{fault}
         tick 100
         tick 100
         > damaged 0
         commit
         snapshot
         0 send dave 1 f
         commit
         > 0 sent dave 1
         snapshot
         {script}"
    ));
}

/// It is told once, tried again after 30 seconds and goes when it can be read.
#[test]
fn a_segment_that_cannot_be_read_is_tried_again() {
    check_after_leaving(
        "reads fail",
        "tick 29000
         reads work
         commit
         snapshot
         tick 1000
         commit
         > discard 0",
    );
    // Still not to be read: nothing more is said of it.
    check_after_leaving(
        "reads fail",
        "tick 30000
         commit
         tick 30000
         commit
         reads work
         tick 30000
         commit
         > discard 0",
    );
}

/// What was read and is not what it should be stays for a repair.
#[test]
fn a_segment_that_is_damaged_is_not_tried_again() {
    check_after_leaving(
        "rot a",
        "rot a
         tick 60000
         commit
         snapshot
         tick 60000
         commit
         snapshot",
    );
}

/// What is left cannot be read, and its recipient has been told and is gone.
#[track_caller]
fn check_after_setting_aside(script: &str) {
    check_after_filling(&format!(
        "rot a
         2 hello bob 1
         > 2 welcome 1..1
         > damaged 101
         commit
         2 close
         {script}"
    ));
}

/// Cleaning has just copied what is on the shelf when its recipient logs in: it
/// is tried when the copy is durable, and not at the next login only.
#[test]
fn what_is_aside_and_on_its_way_is_tried_when_it_is_there() {
    check_after_setting_aside(
        "rot a
         tick 100
         tick 100
         2 hello bob 1
         > 2 welcome 2..1
         tick 100
         commit
         tick 100
         commit
         > 2 deliver 2 alice a…20000",
    );
}

/// It is read for its recipient when cleaning copies it: what was read is of the
/// old place, and the new one is tried when the copy is durable.
#[test]
fn what_is_aside_and_moves_while_it_is_read_is_tried_at_its_new_place() {
    check_after_setting_aside(
        "rot a
         reads hold
         tick 100
         tick 100
         2 hello bob 1
         > 2 welcome 2..1
         reads go
         commit
         tick 100
         commit
         > 2 deliver 2 alice a…20000",
    );
}

/// The same while another message is still being read: the shelf is tried again
/// when that has ended.
#[test]
fn what_moved_is_tried_when_the_rest_of_the_shelf_has_been() {
    check_after_filling(
        "0 send bob 2 z*20000
         commit
         > 0 sent bob 2
         0 send carol 5 f*20000
         0 send carol 6 g*20000
         commit
         > 0 sent carol 5
         > 0 sent carol 6
         0 send carol 7 h*20000
         0 send carol 8 i*20000
         commit
         > 0 sent carol 7
         > 0 sent carol 8
         rot a
         rot z
         2 hello bob 1
         > 2 welcome 1..2
         > damaged 101
         commit
         > damaged 110640
         commit
         2 close
         rot a
         rot z
         reads hold
         tick 100
         tick 100
         2 hello bob 1
         > 2 welcome 3..2
         reads held
         commit
         tick 100
         reads go
         tick 100
         commit
         > 2 deliver 3 alice z…20000
         tick 100
         commit
         > 2 deliver 4 alice a…20000",
    );
}
