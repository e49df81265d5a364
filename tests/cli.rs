//! The real binary's command line: what it prints, and the exit codes that
//! scripts rely on.

mod server;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal};
use server::{Deadline, Setup};

/// Runs the binary in an empty directory with none of our variables set.
fn iris_shard(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let output = binary()
        .args(arguments)
        .envs(variables.iter().copied())
        .current_dir(dir.path())
        .output()
        .expect("the binary runs");
    let left = std::fs::read_dir(dir.path()).expect("still there").count();
    assert_eq!(left, 0, "{arguments:?} leaves nothing behind");
    output
}

/// The binary with none of our variables set.
fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_iris-shard"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("IRIS_") {
            command.env_remove(name);
        }
    }
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// The arguments are refused with `code` and a message that holds `told`.
fn check_refused(arguments: &[&str], variables: &[(&str, &str)], code: i32, told: &str) {
    let output = iris_shard(arguments, variables);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
    assert!(stderr.contains(told), "{arguments:?}: {stderr} lacks {told}");
    assert!(output.stdout.is_empty(), "{arguments:?}: complaints go to stderr");
}

#[test]
fn nonsense_is_refused_with_code_2() {
    check_refused(&["--bogus"], &[], 2, "--bogus");
    check_refused(&["frobnicate"], &[], 2, "frobnicate");
    check_refused(&["--shards", "0"], &[], 2, "from 1 to 256");
    check_refused(&["--shards", "many"], &[], 2, "whole number");
    check_refused(&["--set", "storage.segment_bytes=2GiB"], &[], 2, "1 GiB");
    check_refused(&["--listen", "0.0.0.0:8085"], &[], 2, "TLS and authentication");
    check_refused(&["--config", "missing.toml"], &[], 2, "missing.toml");
    check_refused(&["--set", "limits.conn_max=3"], &[], 2, "did you mean limits.conns_max?");
    check_refused(&[], &[("IRIS_ADMIN", "everywhere")], 2, "IRIS_ADMIN");
    check_refused(&[], &[("IRIS_CONFIG", "missing.toml")], 2, "missing.toml");
    check_refused(&["doctor", "--data-dir", "/dev/null/x", "--admin", "x"], &[], 2, "admin");
}

#[test]
fn a_machine_that_is_too_small_is_refused_with_code_5() {
    let asked = "limits.conns_max=16000000";
    check_refused(&["--set", asked, "--set", "memory_bytes=64MiB"], &[], 5, "16,000,000");
}

#[test]
fn the_effective_configuration_is_shown() {
    let output = iris_shard(&["--check-config", "--shards", "3"], &[("IRIS_LOG_LEVEL", "debug")]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    assert!(shown.contains("shards = 3  # from --shards\n"), "{shown}");
    assert!(shown.contains("level = \"debug\"  # from IRIS_LOG_LEVEL\n"), "{shown}");
    shown.parse::<toml::Table>().expect("what is shown is TOML");
}

#[test]
fn the_doctor_speaks_to_people_and_programs() {
    let output = iris_shard(&["doctor"], &[]);
    let shown = text(&output.stdout);
    for heading in ["Machine\n", "Plan\n", "What stops it from more\n"] {
        assert!(shown.contains(heading), "{shown}");
    }
    let json = iris_shard(&["doctor", "--json"], &[]);
    let report: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    let ready = report["ready"].as_bool().expect("a verdict");
    assert_eq!(json.status.code(), Some(if ready { 0 } else { 5 }));
    assert_eq!(output.status.code(), json.status.code());
    assert!(report["plan"]["shards"].as_u64().expect("a number") >= 1);
    assert!(!report["machine"]["cores"].as_array().expect("a list").is_empty());
}

/// The doctor's verdict is that of a start, the data directory included.
#[test]
fn the_doctor_looks_at_the_data_directory() {
    let check = |path: &Path, code: i32, told: &[&str]| {
        let path = path.to_str().expect("UTF-8");
        let output = iris_shard(&["doctor", "--data-dir", path], &[]);
        let said = text(&output.stdout);
        assert_eq!(output.status.code(), Some(code), "{said}");
        for words in told {
            assert!(said.contains(words), "'{words}' is not in: {said}");
        }
        assert_eq!(said.contains("Ready:"), code == 0, "{said}");
        let json = iris_shard(&["doctor", "--json", "--data-dir", path], &[]);
        let report: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
        assert_eq!(json.status.code(), Some(code));
        assert_eq!(report["ready"], code == 0);
        assert_eq!(report["data_dir_refused"].is_string(), code == 3, "{report}");
    };
    let home = tempfile::tempdir().expect("a temporary directory");
    let new = home.path().join("new");
    check(&new, 0, &[]);
    assert!(!new.exists(), "looking makes nothing");
    check(Path::new("/proc/foo"), 3, &["Cannot start: ", "/proc/foo", "another data directory"]);
    check(Path::new("/dev/null"), 3, &["not a directory"]);
    std::fs::write(home.path().join("thesis.txt"), "all there is").expect("a file");
    check(home.path(), 3, &["thesis.txt"]);
    let nowhere = home.path().join("link");
    std::os::unix::fs::symlink(home.path().join("gone"), &nowhere).expect("a link");
    check(&nowhere, 3, &["leads nowhere"]);

    let server = Setup::in_dir(&new).start();
    check(&new, 3, &["in use", &server.pid().to_string()]);
    server.stop();
    check(&new, 0, &[]);
    std::fs::rename(new.join("shard-0000"), new.join("aside")).expect("a shard");
    check(&new, 3, &["shard-0000", "missing"]);
}

/// Each older way can be asked for from every source, and the doctor shows it.
#[test]
fn older_ways_are_asked_for_by_name() {
    let shown = |arguments: &[&str], variables: &[(&str, &str)]| {
        let output = iris_shard(&[&["doctor", "--json"], arguments].concat(), variables);
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        report["machine"].clone()
    };
    let machine = shown(&[], &[("IRIS_DEBUG_WITHOUT", "o_direct,multishot_poll")]);
    assert_eq!(machine["without"], serde_json::json!(["multishot_poll", "o_direct"]));
    assert_eq!(machine["ring"]["multishot_poll"], false);
    assert_eq!(machine["disk"]["direct_mode"], "buffered + fdatasync");
    let machine = shown(&["--set", "debug.without=all"], &[("IRIS_DEBUG_WITHOUT", "ext_arg")]);
    assert_eq!(machine["without"].as_array().map(Vec::len), Some(tuning::without::NAMES.len()));
    assert_eq!(machine["ring"]["ext_arg"], false);

    let output = iris_shard(&["doctor"], &[("IRIS_DEBUG_WITHOUT", "defer_taskrun")]);
    let told = text(&output.stdout);
    for words in ["done without             defer_taskrun\n", "leave debug.without"] {
        assert!(told.contains(words), "{told}");
    }
}

#[test]
fn a_data_directory_is_opened_again_without_its_flags() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let data_dir = dir.path().join("data");
    Setup::in_dir(&data_dir).shards(3).start().stop();

    // What is planned without a word about sizes is what is there.
    let path = data_dir.to_str().expect("UTF-8");
    let output = iris_shard(&["doctor", "--json", "--data-dir", path], &[]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let plan = &report["plan"];
    assert_eq!(plan["shards"], 3);
    assert_eq!(plan["core_of_shard"].as_array().map(Vec::len), Some(3));
    assert_eq!(
        (&plan["segment_bytes"], &plan["tail_bytes"]),
        (&(1 << 20).into(), &(1 << 20).into())
    );

    let defaults = Setup::in_dir(&data_dir)
        .set("storage.segment_bytes", "64MiB")
        .set("storage.tail_bytes", "8MiB");
    let server = defaults.start();
    let deadline = Deadline::new();
    while !server.get("/health").1.contains("\"shard\":2") {
        deadline.pause(|| format!("no third shard: {}", server.get("/health").1));
    }
    server.stop();

    // The doctor tells what another number would lead to.
    let output = iris_shard(&["doctor", "--data-dir", path, "--shards", "2"], &[]);
    let told = text(&output.stdout);
    assert!(told.contains("written for 3 and is rewritten at the start"), "{told}");
}

#[test]
fn help_and_version_end_well() {
    let help = iris_shard(&["--help"], &[]);
    assert_eq!(help.status.code(), Some(0));
    for word in ["Examples:", "IRIS_LIMITS_CONNS_MAX", "Exit codes:"] {
        assert!(text(&help.stdout).contains(word), "help lacks {word}");
    }
    let version = iris_shard(&["--version"], &[]);
    assert_eq!(text(&version.stdout), concat!("iris-shard ", env!("CARGO_PKG_VERSION"), "\n"));
}

/// `iris-shard inspect | head` and the like: the code still tells the verdict.
#[test]
fn nobody_need_read_what_is_printed() {
    let setup = Setup::new().shards(2);
    let server = setup.start();
    drop(server.v2("alice", 1));
    server.stop();
    for arguments in [
        &["inspect"][..],
        &["inspect", "--json"],
        &["repair"],
        &["repair", "--json"],
        &["doctor"],
        &["--check-config"],
    ] {
        let heard = on_data(setup.data_dir(), arguments).output().expect("the binary runs");
        assert!(!heard.stdout.is_empty(), "{arguments:?} prints nothing");
        let ended = unheard(setup.data_dir(), arguments).output().expect("the binary runs");
        let told = |output: &Output| (output.status.code(), text(&output.stderr));
        assert_eq!(told(&ended), told(&heard), "{arguments:?}");
    }
    // Who wanted it and has not got it is told so.
    for arguments in [&["inspect", "--json"][..], &["repair", "--json"], &["doctor"]] {
        let full = File::options().write(true).open("/dev/full").expect("it takes nothing");
        let mut command = on_data(setup.data_dir(), arguments);
        let ended = command.stdout(full).stderr(Stdio::piped()).output().expect("the binary runs");
        assert_eq!(ended.status.code(), Some(74), "{arguments:?}");
        assert!(text(&ended.stderr).contains("stdout cannot be written to"), "{arguments:?}");
    }
    let mut child = unheard(setup.data_dir(), &[]).spawn().expect("the binary starts");
    let lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
    let mut lines = lines.map_while(Result::ok);
    assert!(lines.any(|line| line.contains("try:")), "it did not start");
    // Nor what it says later on.
    drop(lines);
    let pid = Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::TERM).expect("it runs");
    assert_eq!(child.wait().expect("a child").code(), Some(0));
}

/// The binary with a stdout that nobody reads.
fn unheard(data_dir: &Path, arguments: &[&str]) -> Command {
    let (_, stdout) = std::io::pipe().expect("a pipe");
    let mut command = on_data(data_dir, arguments);
    command.stdout(stdout).stderr(Stdio::piped());
    command
}

/// The binary on a data directory and ports of its own.
fn on_data(data_dir: &Path, arguments: &[&str]) -> Command {
    let mut command = binary();
    command.args(arguments).arg("--data-dir").arg(data_dir).args(["--shards", "2"]);
    command.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    command.args(["--set", "memory_bytes=512MiB"]);
    command
}

/// Wherever in its start: on the way to the data directory, while it waits for
/// a port, while the cores read back.
#[test]
fn a_signal_ends_a_start() {
    let setup = Setup::new();
    setup.start().stop();
    for lines in 1..6 {
        let ended = setup.end_in_boot(lines, Signal::TERM);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    }
    // Such a port is tried for three seconds, and that alone would end in code 4.
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let setup = setup.listen(taken.local_addr().expect("it has one"));
    let ended = setup.end_in_boot(1, Signal::INT);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

/// What would end in an abort, a signal or a bare error number later is told
/// before anything is made.
#[test]
fn limits_of_files_and_address_space_are_refused_with_code_5() {
    let setup = Setup::new();
    for (which, allowed, told) in [
        ('v', 200_000, ["RLIMIT_AS", "ulimit -v unlimited"]),
        ('v', 60_000, ["RLIMIT_AS", "LimitAS=infinity"]),
        ('f', 1000, ["RLIMIT_FSIZE", "ulimit -f unlimited"]),
        ('f', 0, ["RLIMIT_FSIZE", "LimitFSIZE=infinity"]),
    ] {
        setup.clone().ulimit(which, allowed).check_refused(5, &told);
        assert!(!setup.data_dir().exists(), "nothing was made");
    }
    // What is enough is enough, and the plan keeps within it.
    let server = setup.ulimit('v', 2_000_000).ulimit('f', 3000).start();
    drop(server.v2("alice", 1));
    server.stop();
}

/// An executor that cannot be made is a sentence, not silence.
#[test]
fn too_little_lockable_memory_is_refused_with_code_5() {
    for allowed in [0, 64, 128] {
        let refused = Setup::new().ulimit('l', allowed).check_refused(5, &["RLIMIT_MEMLOCK"]);
        assert!(refused.contains("prlimit --pid $$ --memlock"), "{refused}");
    }
}
