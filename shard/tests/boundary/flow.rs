//! What a shard does when it is asked for more than it can give.

use crate::desk::check;

#[test]
fn too_many_logins_are_told_to_come_back_and_cost_nothing() {
    check(
        "logins 4
         0 hello a 1
         > 0 welcome 1..0
         1 hello b 1
         > 1 welcome 1..0
         2 hello c 1
         > 2 goaway RateLimited come back
         > 2 close
         3 login d
         > 3 rate_limited
         > 3 close
         # whoever is there notices nothing
         0 send b 1 hi
         commit
         > 1 deliver 1 a hi
         > 0 sent b 1
         1 ack 1
         # those who were put off are no users: eight fit, and six more come in
         tick 500
         4 hello c 1
         > 4 welcome 1..0
         5 login d
         > 5 login_ok
         tick 500
         6 hello e 1
         > 6 welcome 1..0
         7 hello f 1
         > 7 welcome 1..0
         tick 500
         8 hello g 1
         > 8 welcome 1..0
         9 hello h 1
         > 9 welcome 1..0",
    );
}

/// However often they try, and however many: nobody else is sent away for longer.
#[test]
fn v1_logins_beyond_the_rate_have_no_place_in_the_line() {
    let taken = "logins 1\n0 hello a 1\n> 0 welcome 1..0\n";
    let attempt = |n| format!("{n} login d\n> {n} rate_limited\n> {n} close\n");
    let refused: String = (1..40).map(attempt).collect();
    check(&format!("{taken}{refused}40 hello b 1\n> 40 goaway RateLimited come back\n> 40 close"));
}

/// A device that comes back while its older connection is still there keeps
/// that one when there are too many logins.
#[test]
fn a_login_that_is_put_off_takes_nothing_over() {
    check(
        "logins 1
         0 hello a 1
         > 0 welcome 1..0
         1 hello a 1
         > 1 goaway RateLimited come back
         > 1 close
         0 ping 1
         > 0 pong 1
         tick 1000
         2 hello a 1
         > 0 goaway Replaced
         > 0 close
         > 2 welcome 1..0",
    );
}

/// Coming back would not help: no time is given.
#[test]
fn who_is_refused_for_good_is_told_so() {
    check(
        "logins 1
         0 hello a 1 last=200000
         > 0 goaway BadCursor
         > 0 close
         1 hello a 0
         > 1 goaway Malformed
         > 1 close",
    );
}

#[test]
fn receipts_are_shed_when_there_is_much_to_bear_and_messages_never() {
    check(
        "0 hello a 1
         > 0 welcome 1..0
         1 hello b 1
         > 1 welcome 1..0
         memory 760
         > high
         0 send b 1 x delivered
         commit
         > 1 deliver 1 a x
         > 0 sent b 1
         1 ack 1
         # until everything has been quiet for a second, twice
         tick 900
         memory 0
         > high
         tick 1000
         memory 0
         > busy
         0 send b 2 y delivered
         commit
         > 1 deliver 2 a y
         > 0 sent b 2
         1 ack 2
         > 0 delivered b 2
         # what waits for the disk without an end counts, too
         commit
         tick 100
         memory 0
         > busy
         tick 1000
         memory 0
         > calm",
    );
}

/// The busier a shard is, the fewer come in.
#[test]
fn the_level_lowers_the_rate_of_logins() {
    check(
        "logins 8
         memory 900
         > critical
         0 hello a 1
         > 0 welcome 1..0
         tick 1000
         1 hello b 1
         > 1 goaway RateLimited come back
         > 1 close
         1 close
         tick 1000
         memory 900
         > critical
         1 hello b 1
         > 1 welcome 1..0
         2 hello c 1
         > 2 goaway RateLimited come back
         > 2 close",
    );
}

#[test]
fn who_owes_something_and_gives_no_sign_is_cut() {
    check(
        "0 hello a 1
         > 0 welcome 1..0
         1 hello b 1
         > 1 welcome 1..0
         0 send b 1 x
         0 send b 2 y
         commit
         > 1 deliver 1 a x
         > 0 sent b 1
         > 1 deliver 2 a y
         > 0 sent b 2
         1 looked
         1 looked
         1 looked
         # any word will do
         1 ping 1
         > 1 pong 1
         1 looked
         1 looked
         1 ack 1
         1 looked
         1 looked
         1 looked
         1 looked
         > 1 goaway Timeout come back
         > 1 close
         # nothing is lost by it
         2 hello b 1
         > 2 welcome 2..2
         > 2 deliver 2 a y
         2 ack 2
         # who owes nothing may be silent for ever
         2 looked
         2 looked
         2 looked
         2 looked
         2 looked
         0 looked
         0 looked
         0 looked
         0 looked
         0 looked",
    );
}

#[test]
fn bytes_that_move_are_a_sign() {
    check(
        "0 hello a 1
         > 0 welcome 1..0
         0 looked moved
         0 looked same
         0 looked same
         0 looked same
         0 looked moved
         0 looked same
         0 looked same
         0 looked same
         0 looked same
         > 0 goaway Timeout come back
         > 0 close",
    );
}

/// Clients of v1 have no word for being alive, and some never acknowledge: only
/// bytes that they do not take count.
#[test]
fn a_v1_client_that_never_acknowledges_is_left_alone() {
    check(
        "0 login a
         > 0 login_ok
         0 say a x
         commit
         > 0 message x
         0 looked
         0 looked
         0 looked
         0 looked
         0 looked
         0 looked same
         0 looked same
         0 looked same
         0 looked same
         > 0 close",
    );
}
