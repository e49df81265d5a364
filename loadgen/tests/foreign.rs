//! The load generator against other servers' protocols: small ones made here,
//! correct and wrong, and the real ones where they are installed.

mod peer;

use std::io::{BufRead, BufReader, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

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
    let check = |(tongue, protocol)| {
        for (fault, finding) in faults {
            let addr = peer::start(tongue, fault);
            let (code, json, _) = run(addr, &format!("{OPEN} {protocol} --drain-timeout 1"));
            assert_eq!(code, Some(1), "{protocol} {fault:?}");
            assert!(json["findings"][finding].as_u64() > Some(0), "{protocol} {fault:?}");
        }
    };
    // Most of it is waiting for what never comes.
    std::thread::scope(|scope| {
        for way in ALL {
            scope.spawn(move || check(way));
        }
    });
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

/// Starts an installed server and waits until it says `ready`; `None`, with a
/// word, when there is no such program.
fn installed(mut command: Command, ready: &str, dir: &Path) -> Option<Installed> {
    let (said, says) = std::io::pipe().expect("a pipe");
    let errors = says.try_clone().expect("a descriptor");
    let spawned = command.stdin(Stdio::null()).stdout(says).stderr(errors).current_dir(dir).spawn();
    // It holds the pipe's other end, which must close when the server does.
    let program = command.get_program().to_string_lossy().into_owned();
    drop(command);
    let server = match spawned {
        Ok(child) => Installed(child),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            println!("skipped: {program} is not installed");
            return None;
        }
        Err(error) => panic!("{program}: {error}"),
    };
    let mut lines = BufReader::new(said).lines();
    let mut log = Vec::new();
    while !log.last().is_some_and(|line: &String| line.contains(ready)) {
        match lines.next() {
            Some(line) => log.push(line.expect("text")),
            None => panic!("{program} ended: {}", log.join("\n")),
        }
    }
    // What it says later must not make it wait.
    std::thread::spawn(move || lines.for_each(drop));
    Some(server)
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
    if let Some(_server) = installed(command, " running", dir.path()) {
        passes_all(addr, ALL[0].1);
        passes_all(addr, ALL[1].1);
    }
}

#[test]
fn nats_server_passes_where_it_is_installed() {
    let (dir, addr) = (tempfile::tempdir().expect("a directory"), free_port());
    let mut command = Command::new("nats-server");
    command.args(["-a", "127.0.0.1", "-p", &addr.port().to_string()]);
    if let Some(_server) = installed(command, "Server is ready", dir.path()) {
        passes_all(addr, ALL[2].1);
    }
}

/// Where Debian has ejabberd's compiled code, if it is installed.
fn erlang_libraries() -> Option<PathBuf> {
    let places = std::fs::read_dir("/usr/lib").ok()?.flatten();
    places.map(|place| place.path()).find(|place| {
        let inside = std::fs::read_dir(place).into_iter().flatten().flatten();
        inside
            .map(|entry| entry.path())
            .any(|path| path.to_string_lossy().contains("/ejabberd-") && path.join("ebin").is_dir())
    })
}

#[test]
fn ejabberd_passes_where_it_is_installed() {
    let Some(libraries) = erlang_libraries() else {
        println!("skipped: ejabberd is not installed");
        return;
    };
    let (dir, addr) = (tempfile::tempdir().expect("a directory"), free_port());
    let path = |name: &str| dir.path().join(name);
    let text = format!(
        "loglevel: info\nhosts: [localhost]\nauth_method: anonymous\n\
         anonymous_protocol: login_anon\nallow_multiple_connections: true\nmodules: {{}}\n\
         listen:\n  - {{port: {}, ip: \"127.0.0.1\", module: ejabberd_c2s, backlog: 1000}}\n",
        addr.port()
    );
    std::fs::write(path("ejabberd.yml"), text).expect("a file");
    let mut command = Command::new("erl");
    command
        .env("HOME", dir.path())
        .env("ERL_LIBS", libraries)
        .env("ERL_CRASH_DUMP", "/dev/null")
        .env("EJABBERD_CONFIG_PATH", path("ejabberd.yml"))
        .env("EJABBERD_LOG_PATH", path("ejabberd.log"))
        .args(["-noinput", "-mnesia", "dir", &format!("{:?}", path("spool")), "-s", "ejabberd"]);
    if let Some(_server) = installed(command, "Start accepting", dir.path()) {
        passes_all(addr, ALL[3].1);
    }
}
