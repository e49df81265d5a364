//! The load generator against a model server: a good one passes, and every way
//! of being wrong is caught and named.

mod model;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::Command;

use model::Fault;
use serde_json::Value;

/// Runs the load generator; gives its exit code and its JSON, if it wrote any.
fn run(addr: SocketAddr, line: &str) -> (Option<i32>, Value) {
    let dir = tempfile::tempdir().expect("a directory");
    let json = dir.path().join("result.json");
    let output = Command::new(env!("CARGO_BIN_EXE_iris-loadgen"))
        .args(line.split_ascii_whitespace())
        .args(["--target", &addr.to_string(), "--linger", "0.1", "--quiet"])
        .arg("--json")
        .arg(&json)
        .output()
        .expect("it runs");
    let result = std::fs::read(&json).ok();
    let value =
        result.map_or(Value::Null, |bytes| serde_json::from_slice(&bytes).expect("it wrote JSON"));
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    println!("{text}{errors}{value:#}");
    (output.status.code(), value)
}

const PAIRS: &str = "pairs -c 20 -r 1000 -d 0.5";

/// Expects success; gives the findings.
fn passes(fault: Fault, line: &str) -> Value {
    let (code, json) = run(model::start(fault), line);
    assert_eq!(code, Some(0));
    assert_eq!(json["ok"], true);
    json
}

/// Expects a failed verification that counts under `finding`.
fn caught(fault: Fault, line: &str, finding: &str) {
    // What never comes is waited for only a short time.
    let (code, json) = run(model::start(fault), &format!("{line} --drain-timeout 1"));
    assert_eq!(code, Some(1));
    assert!(json["findings"][finding].as_u64() > Some(0), "{finding} is counted");
    assert_ne!(json["failures"], serde_json::json!([]));
}

#[test]
fn a_good_server_passes() {
    let json = passes(Fault::None, PAIRS);
    assert_eq!(json["findings"]["given"], 500);
    assert_eq!(json["findings"]["received"], 500);
    assert_eq!(json["latency_ms"]["sent"]["count"], 500);
    assert_eq!(json["connections"], 20);
}

#[test]
fn workers_share_the_load() {
    let json = passes(Fault::None, "pairs -c 30 -r 1000 -d 0.5 -w 3 --arrivals poisson --seed 5");
    assert_eq!(json["workers"], 3);
    assert_eq!(json["connections"], 30);
}

#[test]
fn a_busy_server_passes() {
    let json = passes(Fault::Busy, PAIRS);
    assert!(json["held"].as_u64() > Some(0));
}

#[test]
fn a_cut_is_survived_with_reconnect_only() {
    let json = passes(Fault::Cut, &format!("{PAIRS} --reconnect"));
    assert_eq!(json["lost_connections"], 20);
    assert!(json["outages"][0]["all_back_ms"].is_u64());
    let (code, _) = run(model::start(Fault::Cut), &format!("{PAIRS} --drain-timeout 1"));
    assert_eq!(code, Some(1));
}

#[test]
fn absent_users_collect() {
    let json = passes(Fault::None, "offline -c 20 -r 1000 -d 0.5");
    assert_eq!(json["latency_ms"]["collected"]["count"], 500);
    let json = passes(Fault::Cut, "mixed -c 20 -r 1000 -d 0.5 --reconnect");
    let collected = json["latency_ms"]["collected"]["count"].as_u64();
    assert!((Some(50)..Some(160)).contains(&collected), "{collected:?}");
}

#[test]
fn v1_passes() {
    let json = passes(Fault::None, &format!("{PAIRS} --protocol v1"));
    assert_eq!(json["findings"]["received"], 500);
}

#[test]
fn what_was_due_in_an_outage_is_sent_late_in_v1_too() {
    let json = passes(Fault::Cut, &format!("{PAIRS} --protocol v1 --reconnect"));
    assert_eq!(json["findings"]["given"], 500);
    assert_eq!(json["late"]["never_handed"], 0);
}

/// The server stands still until the schedule is over: every message that was
/// due meanwhile is sent afterwards and its waiting counts.
#[test]
fn a_paused_server_makes_messages_late_and_loses_none_of_their_times() {
    let (addr, resume) = model::start_pausing();
    let dir = tempfile::tempdir().expect("a directory");
    let control = dir.path().join("control");
    let made = Command::new("mkfifo").arg(&control).status().expect("it runs");
    assert!(made.success());
    let phases = control.clone();
    std::thread::spawn(move || {
        let phases = BufReader::new(File::open(phases).expect("a pipe"));
        for line in phases.lines() {
            if line.expect("text") == "quiet" {
                resume.send(()).expect("the server waits");
            }
        }
    });
    let line = format!("pairs -c 2 -r 20000 -d 0.6 --control {}", control.display());
    let (code, json) = run(addr, &line);
    assert_eq!(code, Some(0));
    assert_eq!(json["findings"]["given"], 12_000);
    for latency in ["sent", "delivered", "lag"] {
        assert_eq!(json["latency_ms"][latency]["count"], 12_000, "{latency}");
    }
    // Two outboxes of 4,096; what was confirmed before the pause is little.
    let kept = json["late"]["kept"].as_u64().expect("a number");
    assert!((3_000..3_808 + 1).contains(&kept), "{kept} were kept");
    assert_eq!(json["late"]["skipped"], 0);
    let longest_ms = json["late"]["longest_ms"].as_f64().expect("a number");
    let max_ms = json["latency_ms"]["sent"]["max"].as_f64().expect("a number");
    assert!(longest_ms > 0.0 && max_ms >= longest_ms, "{longest_ms} {max_ms}");
}

#[test]
fn idle_says_nothing() {
    let json = passes(Fault::None, "idle -d 0.2 --steps 10,20");
    assert_eq!(json["connections"], 20);
    assert_eq!(json["findings"]["given"], 0);
}

#[test]
fn closed_loops_count_alike_on_relay_and_server() {
    let (code, relay) = run(model::start_relay(), "relay -c 4 --in-flight 2 -d 0.3");
    assert_eq!(code, Some(0));
    assert!(relay["delivered_per_s"].as_f64() > Some(0.0));
    let json = passes(Fault::None, "pairs -c 4 --in-flight 2 -d 0.3");
    assert!(json["delivered_per_s"].as_f64() > Some(0.0));
}

#[test]
fn a_relay_that_answers_confirms() {
    let (code, json) =
        run(model::start_answering_relay(), "relay --confirm -c 4 --rate 500 -d 0.3");
    assert_eq!(code, Some(0));
    assert_eq!(json["findings"]["sent"], json["findings"]["given"]);
    assert!(json["latency_ms"]["sent"]["count"].as_u64() > Some(0));
    // One that does not is noticed.
    let (code, json) =
        run(model::start_relay(), "relay --confirm -c 4 --rate 500 -d 0.3 --drain-timeout 0.2");
    assert_eq!((code, &json["findings"]["sent"]), (Some(1), &0.into()));
}

const HOT_INBOX: &str = "hot-inbox -c 10 --messages 500 --calm 0.1";

#[test]
fn a_hot_inbox_is_filled_and_emptied() {
    let json = passes(Fault::None, HOT_INBOX);
    assert_eq!(json["ordeal"]["filled"], 500);
    assert_eq!(json["latency_ms"]["collected"]["count"], 500);
    assert!(json["ordeal"]["out_per_s"].as_f64() > Some(0.0));
}

#[test]
fn a_busy_server_is_quoted() {
    let json = passes(Fault::Busy, HOT_INBOX);
    assert!(json["refusals"]["message: busy; try later"].as_u64() > Some(0));
}

#[test]
fn everyone_is_served_after_a_storm() {
    let json = passes(Fault::None, "storm -c 20 --waiting 3 --calm 0.1");
    assert_eq!(json["ordeal"]["served"], 20);
    assert_eq!(json["ordeal"]["back"], 20);
    assert_eq!(json["lost_connections"], 0);
}

#[test]
fn whoever_never_read_gets_everything_in_the_end() {
    for how in ["socket", "credit"] {
        let line = format!("slow -c 10 --waiting 5 -r 200 -d 0.3 --calm 0.1 --deaf {how}");
        let json = passes(Fault::None, &line);
        assert_eq!(json["ordeal"]["filled"], 50);
        assert!(json["findings"]["received"].as_u64() > Some(100));
    }
}

#[test]
fn visits_are_verified() {
    let json = passes(Fault::None, "churn -c 20 --visit-rate 100 -d 0.5 --calm 0.1");
    let begun = json["ordeal"]["visits"].as_u64().expect("a number");
    let skipped = json["ordeal"]["visits_skipped"].as_u64().expect("a number");
    assert_eq!(begun + skipped, 50);
    assert!(json["latency_ms"]["visit"]["count"].as_u64() <= Some(begun));
}

#[test]
fn the_crusher_runs_by_confirmations_or_by_the_clock() {
    let json = passes(Fault::None, "crusher -c 10 --in-flight 2 -d 0.3 --calm 0.1");
    assert_eq!(json["loop"], "closed");
    assert!(json["sent_per_s"].as_f64() > Some(0.0));
    let json = passes(Fault::None, "crusher -c 10 -r 500 -d 0.4 --calm 0.1");
    assert_eq!(json["loop"], "open");
    assert_eq!(json["latency_ms"]["sent"]["count"], 200);
}

#[test]
fn an_ordeal_is_verified() {
    caught(Fault::Lose, HOT_INBOX, "missing");
    caught(Fault::Duplicate, "storm -c 20 --waiting 10 --calm 0.1", "duplicates");
    caught(Fault::Reorder, "crusher -c 10 -r 500 -d 0.4 --calm 0.1", "reordered");
    caught(Fault::Swallow, HOT_INBOX, "unconfirmed");
}

#[test]
fn losing_is_caught() {
    caught(Fault::Lose, PAIRS, "missing");
}

#[test]
fn losing_is_caught_in_v1() {
    caught(Fault::Lose, &format!("{PAIRS} --protocol v1"), "missing");
}

#[test]
fn duplicating_is_caught() {
    caught(Fault::Duplicate, PAIRS, "duplicates");
}

#[test]
fn reordering_is_caught() {
    caught(Fault::Reorder, PAIRS, "reordered");
}

#[test]
fn changing_bytes_is_caught() {
    caught(Fault::Corrupt, PAIRS, "corrupt");
}

#[test]
fn delivering_to_the_wrong_user_is_caught() {
    caught(Fault::Misdeliver, PAIRS, "foreign");
}

#[test]
fn not_confirming_is_caught() {
    caught(Fault::Swallow, PAIRS, "unconfirmed");
}

#[test]
fn refusing_for_good_is_caught() {
    caught(Fault::Refuse, PAIRS, "refused");
}

#[test]
fn forgetting_what_was_confirmed_is_caught() {
    caught(Fault::Forget, &format!("{PAIRS} --reconnect"), "forgotten");
}

#[test]
fn exit_codes_tell_usage_and_connecting() {
    let closed = model::start(Fault::Closed);
    assert_eq!(run(closed, PAIRS).0, Some(4));
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.local_addr().expect("it is bound")
    };
    assert_eq!(run(nobody, PAIRS).0, Some(4));
    assert_eq!(run(nobody, "pairs -c 3").0, Some(2));
    assert_eq!(run(nobody, "pairs --nonsense").0, Some(2));
    assert_eq!(run(nobody, "pairs --rate 1e30").0, Some(2));
    // What would be found out at the end is said at the beginning.
    assert_eq!(run(nobody, "pairs --hgrm /nowhere/at-all").0, Some(2));
    assert_eq!(run(nobody, "pairs --server-pid 4000000000").0, Some(2));
}
