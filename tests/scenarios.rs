//! The load generator's scenarios against the real server: small ones, each
//! ends verified and tells what it is for.
//!
//! The load generator stands beside the server's binary; cargo builds it with
//! the workspace. Without it these tests are skipped, each with a word; but not
//! by `scripts/test`, which builds it.

mod server;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use server::skipped::{is_listed, skipped};
use server::{Server, Setup};

fn load_generator() -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_BIN_EXE_iris-shard")).with_file_name("iris-loadgen");
    if path.exists() {
        return Some(path);
    }
    let why = format!("{} is not built; `cargo build --workspace --bins`", path.display());
    assert!(!is_listed(), "scripts/test has built everything, and yet {why}");
    skipped(why);
    None
}

/// Runs one against a new server of two shards; gives what it found, `None`
/// where it cannot be run.
fn run(line: &str) -> Option<Value> {
    let found = try_run_on(&Setup::new().start(), line)?;
    assert!(found["latency_ms"]["witness_before"]["count"].as_u64() > Some(0), "{found:#}");
    Some(found)
}

fn try_run_on(server: &Server, line: &str) -> Option<Value> {
    let dir = tempfile::tempdir().expect("a directory");
    let json = dir.path().join("result.json");
    let output = Command::new(load_generator()?)
        .args(line.split_ascii_whitespace())
        .args(["--target", &server.addr().to_string(), "--quiet", "--linger", "0.1"])
        .args(["--admin", &server.admin().to_string(), "--witness-rate", "200"])
        // Patience is for machines that stand still for a while.
        .args(["--drain-timeout", "60", "--json"])
        .arg(&json)
        .output()
        .expect("it runs");
    let table = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{table}{errors}");
    let value: Value =
        serde_json::from_slice(&std::fs::read(&json).expect("it wrote JSON")).expect("JSON");
    assert_eq!(value["ok"], true, "{table}");
    Some(value)
}

#[test]
fn a_hot_inbox_comes_out_whole() {
    let Some(found) = run("hot-inbox -c 20 --messages 5000 --calm 0.2") else { return };
    assert_eq!(found["ordeal"]["filled"], 5000);
    assert_eq!(found["latency_ms"]["collected"]["count"], 5000);
    assert!(found["ordeal"]["out_per_s"].as_f64() > Some(0.0));
}

#[test]
fn several_workers_have_a_hot_inbox_each() {
    let Some(found) = run("hot-inbox -c 20 --messages 1001 --calm 0.2 -w 3 --witnesses 6") else {
        return;
    };
    assert_eq!(found["workers"], 3);
    assert_eq!(found["ordeal"]["filled"], 1001);
}

#[test]
fn a_storm_ends_with_everyone_served() {
    let Some(found) = run("storm -c 200 --waiting 5 --calm 0.2") else { return };
    assert_eq!(found["ordeal"]["filled"], 1000);
    assert_eq!(found["ordeal"]["back"], 200);
    assert_eq!(found["ordeal"]["served"], 200);
    // Not one of them before the cut: they wait without credit.
    assert_eq!(found["latency_ms"]["collected"]["count"], 1000);
    assert_eq!(found["lost_connections"], 0);
}

#[test]
fn a_storm_can_be_paced() {
    let Some(found) = run("storm -c 100 --waiting 1 --calm 0.2 --reconnect-rate 200") else {
        return;
    };
    // 100 at 200 a second, and what a late start may catch up.
    assert!(found["ordeal"]["served_100_s"].as_f64() > Some(0.4), "{found:#}");
}

/// More than the buffers of both sides hold waits for each.
#[test]
fn clients_that_never_read_get_everything_when_they_do() {
    let line = "slow -c 10 --waiting 300 --size 16000 -r 200 -d 0.3 --calm 0.2";
    let Some(found) = run(line) else { return };
    assert_eq!(found["ordeal"]["filled"], 3000);
    assert!(found["ordeal"]["rss_during_bytes"].as_u64() > Some(0));
    assert_eq!(found["lost_connections"], 0);
}

#[test]
fn clients_without_credit_get_everything_when_they_give_it() {
    let Some(found) = run("slow -c 50 --waiting 5 -r 500 -d 0.3 --calm 0.2 --deaf credit") else {
        return;
    };
    assert_eq!(found["ordeal"]["filled"], 250);
    // All of it after they woke: not one message came before.
    let later = found["latency_ms"]["sent"]["count"].as_u64().expect("a number");
    assert_eq!(found["latency_ms"]["collected"]["count"], 250 + later);
}

#[test]
fn whoever_comes_and_goes_loses_nothing() {
    let Some(found) = run("churn -c 100 --visit-rate 200 -d 1 --calm 0.2") else { return };
    assert!(found["ordeal"]["visits"].as_u64() > Some(0));
    assert!(found["ordeal"]["resets"].as_u64() > Some(0));
}

#[test]
fn the_crusher_loses_nothing() {
    let Some(found) = run("crusher -c 20 --in-flight 8 -d 0.5 --calm 0.2") else { return };
    assert_eq!(found["loop"], "closed");
    let Some(found) = run("crusher -c 20 -r 2000 -d 0.5 --calm 0.2") else { return };
    assert_eq!(found["latency_ms"]["sent"]["count"], 1000);
}

#[test]
fn chaos_loses_nothing() {
    let Some(found) = run("chaos -c 100 -r 1000 -d 2 --calm 0.3 --seed 3 \
         --chaos kill:20,stall:50,drip:4,half-open:16,burn:1")
    else {
        return;
    };
    let done = &found["chaos"]["done"];
    // How many messages drip through depends on how fast the machine is.
    for kind in ["killed", "stalled", "dripped_bytes", "half_opened"] {
        assert!(done[kind].as_u64() > Some(0), "{kind}: {done:#}");
    }
    assert!(found["latency_ms"]["disturbed"]["count"].as_u64() > Some(0));
    assert_eq!(found["lost_connections"], 0, "the server cut nobody");
}

/// Every kind of load takes every kind of trouble.
#[test]
fn trouble_goes_with_every_scenario() {
    for line in [
        "storm -c 50 --waiting 2 --calm 0.1",
        "slow -c 10 --waiting 5 -r 200 -d 0.5 --calm 0.1",
        "churn -c 50 --visit-rate 100 -d 0.5 --calm 0.1",
        "crusher -c 10 -d 0.5 --calm 0.1",
        "hot-inbox -c 10 --messages 2000 --calm 0.1",
    ] {
        let trouble = "--chaos kill:10,stall:30,drip:2,half-open:4";
        let Some(found) = run(&format!("{line} {trouble}")) else { return };
        assert!(found["chaos"]["done"]["half_opened"].as_u64().is_some());
    }
}

#[test]
fn old_clients_survive_trouble_as_well_as_their_protocol_lets_them() {
    let server = Setup::new().start();
    for line in [
        "pairs -c 20 -r 500 -d 1 --protocol v1 --chaos kill:50,stall:100",
        "pairs -c 20 --in-flight 2 -d 1 --class best-effort --chaos kill:50,stall:100",
        "offline -c 20 -r 500 -d 1 --protocol v1 --chaos stall:50,drip:2",
    ] {
        let Some(found) = try_run_on(&server, line) else { return };
        assert_eq!(found["ok"], true);
        assert!(found["chaos"]["done"]["stalled"].as_u64() > Some(0));
    }
}

/// A signal ends the sending, and everything that was confirmed is still
/// collected and verified, whatever act it came in.
#[test]
fn an_interrupted_ordeal_is_verified() {
    let Some(program) = load_generator() else { return };
    let server = Setup::new().start();
    let dir = tempfile::tempdir().expect("a directory");
    for (line, act) in [
        ("storm -c 20 --waiting 5 --calm 600", "calm"),
        ("slow -c 10 --waiting 5 -d 600 --calm 0.1", "ordeal"),
        ("churn -c 20 -d 600 --calm 0.1", "ordeal"),
    ] {
        let control = dir.path().join(format!("control-{}", line.len()));
        let made = Command::new("mkfifo").arg(&control).status().expect("it runs");
        assert!(made.success());
        let child = Command::new(&program)
            .args(line.split_ascii_whitespace())
            .args(["--target", &server.addr().to_string(), "--quiet", "--linger", "0.1"])
            .arg("--control")
            .arg(&control)
            .stdout(Stdio::piped())
            .spawn()
            .expect("it runs");
        let phases = BufReader::new(File::open(&control).expect("a pipe"));
        let pid = Pid::from_child(&child);
        for phase in phases.lines() {
            if phase.expect("text") == act {
                kill_process(pid, Signal::INT).expect("it runs");
            }
        }
        let output = child.wait_with_output().expect("it ends");
        let table = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{line}: {table}");
    }
}
