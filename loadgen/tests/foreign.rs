//! The load generator against other servers' protocols: small ones made here,
//! correct and wrong, and the real ones where they are installed.

mod peer;

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use peer::{Fault, Tongue};
use serde_json::Value;

/// Runs the load generator; gives its exit code, its JSON, if it wrote any, and
/// what it complained about.
fn run(addr: SocketAddr, line: &str) -> (Option<i32>, Value, String) {
    let dir = tempfile::tempdir().expect("a directory");
    let json = dir.path().join("result.json");
    let output = Command::new(env!("CARGO_BIN_EXE_iris-loadgen"))
        .args(line.split_ascii_whitespace())
        .args(["--target", &addr.to_string(), "--linger", "0.1", "--quiet", "--json"])
        .arg(&json)
        .output()
        .expect("it runs");
    let value = std::fs::read(&json)
        .map_or(Value::Null, |bytes| serde_json::from_slice(&bytes).expect("it wrote JSON"));
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("{}{errors}{value:#}", String::from_utf8_lossy(&output.stdout));
    (output.status.code(), value, errors)
}

const OPEN: &str = "pairs -c 20 -r 1000 -d 0.5";

/// Every protocol and quality, as the command line has it.
const ALL: [(Tongue, &str); 4] = [
    (Tongue::Mqtt, "--protocol mqtt"),
    (Tongue::Mqtt, "--protocol mqtt --class best-effort"),
    (Tongue::Nats, "--protocol nats --class best-effort"),
    (Tongue::Xmpp, "--protocol xmpp --class best-effort"),
];

/// A run whose every message arrives; gives the results.
fn passes(addr: SocketAddr, line: &str) -> Value {
    let (code, json, _) = run(addr, line);
    assert_eq!(code, Some(0), "{line}");
    assert_eq!(json["ok"], true);
    json
}

/// Open and closed loop, and silence.
fn passes_all(addr: SocketAddr, protocol: &str) {
    for size in [64, 1024] {
        let json = passes(addr, &format!("{OPEN} --size {size} {protocol}"));
        assert_eq!(json["findings"]["received"], 500);
        assert_eq!(json["latency_ms"]["delivered"]["count"], 500);
        let confirmed = if protocol == ALL[0].1 { 500 } else { 0 };
        assert_eq!(json["findings"]["sent"], confirmed);
    }
    let json = passes(addr, &format!("pairs -c 20 --in-flight 2 -d 0.3 {protocol}"));
    assert!(json["findings"]["received"].as_u64() >= Some(20));
    let json = passes(addr, &format!("idle --steps 10,20 -d 0.1 {protocol}"));
    assert_eq!(json["connections"], 20);
}

#[test]
fn a_good_server_passes() {
    for (tongue, protocol) in ALL {
        passes_all(peer::start(tongue, Fault::None), protocol);
    }
}

#[test]
fn every_way_of_being_wrong_is_caught() {
    let faults = [
        (Fault::Lose, "missing"),
        (Fault::Duplicate, "duplicates"),
        (Fault::Reorder, "reordered"),
        (Fault::Misdeliver, "foreign"),
    ];
    for (tongue, protocol) in ALL {
        for (fault, finding) in faults {
            let addr = peer::start(tongue, fault);
            let (code, json, _) = run(addr, &format!("{OPEN} {protocol} --drain-timeout 1"));
            assert_eq!(code, Some(1), "{protocol} {fault:?}");
            assert!(json["findings"][finding].as_u64() > Some(0), "{protocol} {fault:?}");
        }
    }
    let addr = peer::start(Tongue::Mqtt, Fault::Swallow);
    let (code, json, _) = run(addr, &format!("{OPEN} --protocol mqtt --drain-timeout 1"));
    assert_eq!(code, Some(1));
    assert!(json["findings"]["unconfirmed"].as_u64() > Some(0));
}

#[test]
fn a_refused_login_is_told_in_the_servers_words() {
    for (tongue, word) in
        [(Tongue::Mqtt, "code 5"), (Tongue::Nats, "Violation"), (Tongue::Xmpp, "not-authorized")]
    {
        let (_, protocol) = ALL[1..].iter().find(|(t, _)| *t == tongue).expect("all are there");
        let (code, _, errors) =
            run(peer::start(tongue, Fault::Closed), &format!("{OPEN} {protocol}"));
        assert_eq!(code, Some(4));
        assert!(errors.contains(word), "{errors}");
    }
}

/// A server that ends with the test.
struct Installed(Child);

impl Drop for Installed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

/// Starts an installed server and waits until it takes connections; `None`,
/// with a word, when there is no such program.
fn installed(mut command: Command, addr: SocketAddr, dir: &Path) -> Option<Installed> {
    let log = std::fs::File::create(dir.join("log")).expect("a file");
    let errors = log.try_clone().expect("a descriptor");
    match command.stdin(Stdio::null()).stdout(log).stderr(errors).current_dir(dir).spawn() {
        Ok(child) => {
            let mut server = Installed(child);
            let until = Instant::now() + Duration::from_secs(60);
            while TcpStream::connect(addr).is_err() {
                let ended = server.0.try_wait().expect("it is our child");
                let log = || std::fs::read_to_string(dir.join("log")).unwrap_or_default();
                assert_eq!(ended, None, "it ended at once: {}", log());
                assert!(Instant::now() < until, "it does not listen: {}", log());
                std::thread::yield_now();
            }
            Some(server)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            println!("skipped: {command:?} is not installed");
            None
        }
        Err(error) => panic!("{command:?}: {error}"),
    }
}

/// A port that was free a moment ago.
fn free_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound")
}

#[test]
fn mosquitto_passes_where_it_is_installed() {
    let (dir, addr) = (tempfile::tempdir().expect("a directory"), free_port());
    let config = dir.path().join("mosquitto.conf");
    let text = format!(
        "listener {} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\nuser root\n",
        addr.port()
    );
    std::fs::write(&config, text).expect("a file");
    let mut command = Command::new("mosquitto");
    command.arg("-c").arg(&config);
    if let Some(_server) = installed(command, addr, dir.path()) {
        passes_all(addr, ALL[0].1);
        passes_all(addr, ALL[1].1);
    }
}

#[test]
fn nats_server_passes_where_it_is_installed() {
    let (dir, addr) = (tempfile::tempdir().expect("a directory"), free_port());
    let mut command = Command::new("nats-server");
    command.args(["-a", "127.0.0.1", "-p", &addr.port().to_string()]);
    if let Some(_server) = installed(command, addr, dir.path()) {
        passes_all(addr, ALL[2].1);
    }
}
