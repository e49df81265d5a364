//! The real server as a child process: started on free ports in a directory of
//! its own, with small segments so that a boot takes milliseconds.
//!
//! Waits are for events (a line on stdout, its end, bytes on a socket), each
//! with a limit that only a hang reaches. Whatever fails, the server's stderr
//! is shown; and a server that panicked or died by itself fails its test.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

pub mod deadline;
pub mod files;
pub mod halt;
pub mod mounted;
pub mod peer;
pub mod preload;
pub mod skipped;
pub mod unreadable;
pub mod vanish;

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use client::blocking::{Client, ClientV1};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use shard::KeyHasher;
use tempfile::TempDir;
use wal::manifest::Manifest;

pub use deadline::{Deadline, PATIENCE};

/// `IRIS_TEST_DEBUG_WITHOUT=all cargo test` gives every server the variable
/// `IRIS_DEBUG_WITHOUT=all`, and so on for each setting: the whole suite under
/// another one. What a test sets itself counts more, as flags do.
const FOR_SERVERS: &str = "IRIS_TEST_";

/// Shown of the server's stderr when something fails.
const TAIL_LINES: usize = 60;

/// How to start a server. Keeps the data directory, so that the next start
/// finds what the last one left.
#[derive(Clone)]
pub struct Setup {
    data_dir: PathBuf,
    /// Removed with the last clone.
    _temporary: Option<Arc<TempDir>>,
    arguments: Vec<OsString>,
    listen: SocketAddr,
    admin: SocketAddr,
    /// Limits of the process, as `ulimit` names and counts them.
    limits: Vec<(char, u64)>,
    /// Not the user who runs the test.
    user: Option<u32>,
}

impl Setup {
    /// Two shards in a new temporary directory.
    pub fn new() -> Setup {
        let temporary = tempfile::tempdir().expect("a temporary directory");
        let data_dir = temporary.path().join("data");
        Setup { _temporary: Some(Arc::new(temporary)), ..Setup::in_dir(&data_dir) }
    }

    /// In this directory, which is left alone at the end; as many shards as it
    /// was written for, or as there are cores.
    pub fn in_dir(data_dir: &Path) -> Setup {
        let setup = Setup {
            data_dir: data_dir.to_owned(),
            _temporary: None,
            arguments: Vec::new(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            admin: SocketAddr::from(([127, 0, 0, 1], 0)),
            limits: Vec::new(),
            user: None,
        };
        setup
            .set("storage.segment_bytes", "1MiB")
            .set("storage.tail_bytes", "1MiB")
            .set("memory_bytes", "512MiB")
    }

    /// With this number of shards.
    pub fn shards(self, shards: u16) -> Setup {
        self.argument("--shards").argument(&shards.to_string())
    }

    /// With this setting.
    pub fn set(self, key: &str, value: &str) -> Setup {
        self.argument("--set").argument(&format!("{key}={value}"))
    }

    /// With one more argument.
    pub fn argument(mut self, argument: &str) -> Setup {
        self.arguments.push(argument.into());
        self
    }

    /// On this address instead of a free port.
    pub fn listen(self, listen: SocketAddr) -> Setup {
        Setup { listen, ..self }
    }

    /// With the admin HTTP on this address instead of a free port.
    pub fn admin(self, admin: SocketAddr) -> Setup {
        Setup { admin, ..self }
    }

    /// With this many descriptors at most.
    pub fn nofile(self, nofile: u64) -> Setup {
        self.ulimit('n', nofile)
    }

    /// With this limit, soft and hard, as `ulimit` names and counts it.
    pub fn ulimit(mut self, which: char, value: u64) -> Setup {
        self.limits.push((which, value));
        self
    }

    /// As this user; only root may say so.
    pub fn user(self, user: u32) -> Setup {
        Setup { user: Some(user), ..self }
    }

    /// Where the server keeps its data.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Starts the server and waits until it is ready.
    #[track_caller]
    pub fn start(&self) -> Server {
        match self.try_start() {
            Ok(server) => server,
            Err(ended) => panic!("the server did not start: {ended:?}"),
        }
    }

    /// Starts the server; gives how it ended if it did not become ready.
    ///
    /// # Errors
    /// How it ended.
    #[track_caller]
    pub fn try_start(&self) -> Result<Server, Ended> {
        let mut child = self.command().spawn().expect("the binary starts");
        let stderr = Stderr::follow(child.stderr.take().expect("it is piped"));
        let stdout = follow_lines(child.stdout.take().expect("it is piped"));
        match stdout.recv_timeout(PATIENCE) {
            Ok(line) => {
                let (addrs, admin) = addresses(&line).unwrap_or_else(|| {
                    panic!("'{line}' does not say where it listens\n{}", stderr.tail())
                });
                let setup = self.clone();
                Ok(Server { child, addrs, admin, stdout, stderr, setup, is_over: false })
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = child.wait().expect("our own child");
                Err(Ended { code: status.code(), stderr: stderr.finish() })
            }
            Err(RecvTimeoutError::Timeout) => {
                let _ = child.kill();
                let _ = child.wait();
                panic!("no ready line in {PATIENCE:?}\n{}", stderr.finish());
            }
        }
    }

    /// Expects that the server refuses to start with this code and a message
    /// that holds each of `told`.
    #[track_caller]
    pub fn check_refused(&self, code: i32, told: &[&str]) -> String {
        let ended = match self.try_start() {
            Ok(_server) => panic!("the server started instead of refusing with {code} {told:?}"),
            Err(ended) => ended,
        };
        assert_eq!(ended.code, Some(code), "{}", ended.stderr);
        for word in told {
            assert!(ended.stderr.contains(word), "'{word}' is not in: {}", ended.stderr);
        }
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
        ended.stderr
    }

    /// Starts the server and kills it when it has said this many lines, or is
    /// ready, or has ended: somewhere in its boot.
    #[track_caller]
    pub fn kill_in_boot(&self, lines: usize) {
        let mut child = self.command().spawn().expect("the binary starts");
        let stderr = BufReader::new(child.stderr.take().expect("it is piped"));
        let is_last = |line: &String| line.contains("protocols v1 and v2");
        let lines = stderr.lines().map_while(Result::ok).take(lines);
        let said: Vec<String> = lines.take_while(|line| !is_last(line)).collect();
        let _ = child.kill();
        let status = child.wait().expect("our own child");
        assert_eq!(status.code(), None, "it did not end by itself: {}", said.join("\n"));
    }

    /// Starts the server and sends it a signal when it has said this many lines
    /// or is ready.
    #[track_caller]
    pub fn end_in_boot(&self, lines: usize, signal: Signal) -> Ended {
        let mut child = self.command().spawn().expect("the binary starts");
        let mut stderr = BufReader::new(child.stderr.take().expect("it is piped"));
        let mut said = String::new();
        for _ in 0..lines {
            let begun = said.len();
            let more = stderr.read_line(&mut said).expect("text");
            if more == 0 || said[begun..].contains("protocols v1 and v2") {
                break;
            }
        }
        let pid = Pid::from_raw(child.id() as i32).expect("a process");
        kill_process(pid, signal).expect("our own child");
        stderr.read_to_string(&mut said).expect("text");
        let status = child.wait().expect("our own child");
        Ended { code: status.code(), stderr: said }
    }

    /// Starts the server and kills it as soon as `is_due`, or when it is ready
    /// or has ended. What it said.
    #[track_caller]
    pub fn kill_in_boot_when(&self, mut is_due: impl FnMut(&Stderr) -> bool) -> String {
        let mut child = self.command().spawn().expect("the binary starts");
        let stderr = Stderr::follow(child.stderr.take().expect("it is piped"));
        let stdout = follow_lines(child.stdout.take().expect("it is piped"));
        let deadline = Deadline::new();
        while matches!(stdout.try_recv(), Err(TryRecvError::Empty)) && !is_due(&stderr) {
            deadline.check(|| format!("neither due nor ready\n{}", stderr.tail()));
            thread::yield_now();
        }
        let _ = child.kill();
        let status = child.wait().expect("our own child");
        let said = stderr.finish();
        assert_eq!(status.code(), None, "it did not end by itself: {said}");
        said
    }

    /// A copy of the binary beside the data directory: where it was built others
    /// may not look.
    fn binary_for_all(&self) -> PathBuf {
        let copy = self.data_dir.with_file_name("iris-shard");
        if !copy.exists() {
            // Not by this process: what another test starts meanwhile would have the
            // copy open for writing for a moment, and it could not be run.
            let mut copying = Command::new("/bin/cp");
            copying.arg(env!("CARGO_BIN_EXE_iris-shard")).arg(&copy);
            assert!(copying.status().expect("cp is there").success(), "room for a copy");
            allow(&copy, 0o755);
        }
        copy
    }

    fn command(&self) -> Command {
        let binary = env!("CARGO_BIN_EXE_iris-shard");
        let mut script = String::new();
        for (which, value) in &self.limits {
            script += &format!("ulimit -S{which} {value} && ulimit -H{which} {value} && ");
        }
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &(script + "exec \"$0\" \"$@\""), binary]);
        if self.limits.is_empty() {
            command = Command::new(binary);
        }
        if let Some(user) = self.user {
            command = Command::new(self.binary_for_all());
            command.uid(user).gid(user);
        }
        for (name, value) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("IRIS_") {
                command.env_remove(&*name);
            }
            if let Some(setting) = name.strip_prefix(FOR_SERVERS) {
                command.env(format!("IRIS_{setting}"), value);
            }
        }
        command
            .arg("--data-dir")
            .arg(&self.data_dir)
            .args(["--listen", &self.listen.to_string(), "--admin", &self.admin.to_string()])
            .args(&self.arguments)
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

/// Who may do what with a file of the test's own.
pub fn allow(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("it is ours");
}

/// How a server ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; `None` when a signal killed it.
    pub code: Option<i32>,
    /// All it said.
    pub stderr: String,
}

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    addrs: Vec<SocketAddr>,
    admin: SocketAddr,
    /// Its end tells that the process has ended.
    stdout: Receiver<String>,
    stderr: Stderr,
    setup: Setup,
    is_over: bool,
}

impl Server {
    /// As [`Setup::new`] says.
    #[track_caller]
    pub fn start() -> Server {
        Setup::new().shards(2).start()
    }

    /// Where clients connect.
    pub fn addr(&self) -> SocketAddr {
        self.addrs[0]
    }

    /// All addresses where clients connect.
    pub fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// Where the admin HTTP listens.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// How it was started.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A v2 device, logged in.
    #[track_caller]
    pub fn v2(&self, user: &str, device: u64) -> Client {
        Client::connect(self.addr(), user.as_bytes(), device)
            .unwrap_or_else(|error| panic!("{user}/{device} cannot log in: {error}"))
    }

    /// A v1 user, logged in.
    #[track_caller]
    pub fn v1(&self, user: &str) -> ClientV1 {
        ClientV1::connect(self.addr(), user.as_bytes())
            .unwrap_or_else(|error| panic!("{user} cannot log in: {error}"))
    }

    /// `count` user names for each shard, those of one shard together.
    #[track_caller]
    pub fn names(&self, prefix: &str, count: usize) -> Vec<String> {
        let manifest = Manifest::load(self.setup.data_dir()).expect("the server wrote it");
        let hasher = KeyHasher::new(manifest.seed);
        let mut found = Vec::new();
        for shard in 0..manifest.shards {
            let names = (0..).map(|n| format!("{prefix}-{n}"));
            let is_its =
                |name: &String| hasher.key(name.as_bytes()).owner(manifest.shards) == shard;
            found.extend(names.filter(is_its).take(count));
        }
        found
    }

    /// What it has said on stderr so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Waits until it has said this on stderr, which arrives when it likes.
    #[track_caller]
    pub fn wait_said(&self, words: &str) {
        let deadline = Deadline::new();
        while !self.stderr().contains(words) {
            deadline.pause(|| format!("'{words}' is not said"));
        }
    }

    /// The words after `before` in each line that it has said by the time it
    /// serves, such as of how far its start was.
    #[track_caller]
    pub fn said_in_boot(&self, before: &str) -> Vec<String> {
        self.wait_said("protocols v1 and v2");
        let text = self.stderr();
        let words = |line: &str| Some(line.split_once(before)?.1.to_owned());
        text.lines()
            .take_while(|line| !line.contains("protocols v1 and v2"))
            .filter_map(words)
            .collect()
    }

    /// Sends a signal.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the server runs");
    }

    /// Lowers or raises one of its soft limits while it runs; gives the one
    /// before.
    #[track_caller]
    pub fn limit(&self, resource: Resource, current: Option<u64>) -> Option<u64> {
        let limits = Rlimit { current, ..getrlimit(resource) };
        let pid = Some(Pid::from_child(&self.child));
        prlimit(pid, resource, limits).expect("the server runs").current
    }

    /// Kills it without a warning and waits until it is gone.
    #[track_caller]
    pub fn kill(mut self) -> Setup {
        self.check_alive();
        self.end_by(Signal::KILL);
        self.setup.clone()
    }

    /// Asks it to stop and expects that it does, with code 0.
    #[track_caller]
    pub fn stop(mut self) -> Setup {
        self.check_alive();
        let status = self.end_by(Signal::TERM);
        assert_eq!(status.code(), Some(0), "{}", self.stderr.tail());
        self.setup.clone()
    }

    /// Kills it and starts it again on the same data.
    #[track_caller]
    pub fn crash_and_restart(self) -> Server {
        self.kill().start()
    }

    /// Waits until it has ended by itself or by a signal sent before.
    #[track_caller]
    pub fn wait(mut self) -> Ended {
        let status = self.wait_for_end();
        Ended { code: status.code(), stderr: self.stderr.finish_ref() }
    }

    fn end_by(&mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.wait_for_end()
    }

    fn wait_for_end(&mut self) -> ExitStatus {
        self.is_over = true;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.stdout.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return self.child.wait().expect("ours"),
                Err(RecvTimeoutError::Timeout) => {
                    let _ = self.child.kill();
                    let _ = self.child.wait();
                    panic!("the server does not end\n{}", self.stderr.tail());
                }
            }
        }
    }

    #[track_caller]
    fn check_alive(&mut self) {
        let ended = self.child.try_wait().expect("our own child");
        assert!(ended.is_none(), "the server ended by itself: {ended:?}\n{}", self.stderr.tail());
    }

    /// GET from the admin HTTP: status and body.
    #[track_caller]
    pub fn get(&self, path: &str) -> (u16, String) {
        get(self.admin, path).unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// The sum over all series of a metric.
    #[track_caller]
    pub fn metric(&self, name: &str) -> f64 {
        let (status, text) = self.get("/metrics");
        assert_eq!(status, 200);
        let samples = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let value = match rest.strip_prefix('{') {
                Some(labels) => labels.split_once('}')?.1,
                None => rest,
            };
            value.strip_prefix(' ')?.parse::<f64>().ok()
        });
        let values: Vec<f64> = samples.collect();
        assert!(!values.is_empty(), "there is no metric {name}");
        values.iter().sum()
    }

    /// Waits until a metric is as expected. Shards publish once a second.
    #[track_caller]
    pub fn wait_metric(&self, name: &str, is_fine: impl Fn(f64) -> bool) -> f64 {
        let deadline = Deadline::new();
        loop {
            let value = self.metric(name);
            if is_fine(value) {
                return value;
            }
            deadline.pause(|| format!("{name} stays {value}"));
        }
    }

    /// Resident memory, bytes.
    pub fn resident_bytes(&self) -> u64 {
        let path = format!("/proc/{}/status", self.pid());
        let text = std::fs::read_to_string(path).expect("it runs");
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse().expect("a number");
        kib * 1024
    }

    /// Waits until it has this many sockets open, listeners included.
    #[track_caller]
    pub fn wait_sockets(&self, expected: usize) {
        let deadline = Deadline::new();
        while self.open_sockets() != expected {
            deadline.pause(|| format!("{} sockets, not {expected}", self.open_sockets()));
        }
    }

    fn open_sockets(&self) -> usize {
        self.open_files().iter().filter(|link| link.starts_with("socket:")).count()
    }

    /// What its descriptors lead to, as the system calls it.
    #[track_caller]
    pub fn open_files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("it runs");
        let links = entries.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        links.map(|link| link.to_string_lossy().into_owned()).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let ended = if self.is_over { None } else { self.child.try_wait().ok().flatten() };
        // A stopped process dies by this, too.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let text = self.stderr.finish_ref();
        if thread::panicking() {
            eprintln!("the server's stderr:\n{}", tail(&text));
        } else {
            assert!(ended.is_none(), "the server ended by itself: {ended:?}\n{}", tail(&text));
            assert!(!text.contains("panicked at"), "the server panicked\n{text}");
        }
    }
}

/// One answer of an HTTP server that closes after it.
///
/// # Errors
/// What the socket says.
pub fn get(addr: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let broken = || std::io::Error::other(format!("not an HTTP answer: {answer}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(broken)?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(broken)?;
    Ok((status, body.to_owned()))
}

/// `ready listen=A,B admin=C`.
fn addresses(line: &str) -> Option<(Vec<SocketAddr>, SocketAddr)> {
    let (listen, admin) = line.strip_prefix("ready listen=")?.split_once(" admin=")?;
    let listen: Result<Vec<SocketAddr>, _> = listen.split(',').map(str::parse).collect();
    Some((listen.ok()?, admin.parse().ok()?))
}

fn follow_lines(stdout: impl Read + Send + 'static) -> Receiver<String> {
    let (lines, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            // The test may have lost interest; the pipe must not fill up.
            let _ = lines.send(line);
        }
    });
    receiver
}

/// What the server says, collected as it says it.
pub struct Stderr {
    text: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Stderr {
    fn follow(stderr: impl Read + Send + 'static) -> Stderr {
        let text = Arc::new(Mutex::new(String::new()));
        let collected = Arc::clone(&text);
        let reader = thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut text = collected.lock().unwrap_or_else(PoisonError::into_inner);
                text.push_str(&line);
                text.push('\n');
            }
        });
        Stderr { text, reader: Some(reader) }
    }

    /// What it has said so far: its log has a thread of its own, which may be late.
    pub fn text(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn tail(&self) -> String {
        tail(&self.text())
    }

    /// All of it, once the process has ended.
    fn finish(mut self) -> String {
        self.finish_ref()
    }

    fn finish_ref(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        self.text()
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}
