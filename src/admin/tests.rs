//! The started server, asked over real sockets.

use std::collections::{HashMap, HashSet};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;

use serde_json::Value;

use super::listen::CONNS_MAX;
use super::*;

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

fn board(shards: u16) -> Arc<Board> {
    let listen = vec![SocketAddr::from(([127, 0, 0, 1], 8085))];
    let data_dir = PathBuf::from("/tmp/<iris> & data");
    Board::new(shards, ServerInfo { version: "1.2.3", listen, data_dir })
}

/// Publishes for every shard, as of now.
fn publish(board: &Board, shards: u16, fill: impl Fn(&mut Snapshot)) {
    for shard in 0..shards {
        // The admin thread may be picking up the one before.
        while !board.publish(shard, |snapshot| {
            snapshot.at_mono_ns = net::Clock::now().mono_ns;
            fill(snapshot);
        }) {}
    }
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        assert!(self.head.contains("content-type: application/json"), "{}", self.head);
        serde_json::from_str(&self.body).unwrap()
    }
}

fn get(admin: &Admin, path: &str) -> Answer {
    ask(admin, &format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n"))
}

/// Sends bytes and reads until the server closes: it does after each answer.
fn ask(admin: &Admin, request: &str) -> Answer {
    let mut stream = TcpStream::connect(admin.addr()).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

#[test]
fn health_tells_each_state() {
    let board = board(2);
    let admin = start(listener(), Arc::clone(&board)).unwrap();
    let check = |status: u16, word: &str, sentence: &str| {
        let answer = get(&admin, "/health");
        let health = answer.json();
        assert_eq!((answer.status, health["status"].as_str().unwrap()), (status, word));
        let found = health["sentence"].as_str().unwrap();
        assert!(found.contains(sentence), "'{sentence}' is not in: {found}");
        health
    };
    let health = check(503, "starting", "Shard 0, shard 1 has not reported yet");
    assert_eq!(health["shards"][1]["age_ms"], Value::Null);
    publish(&board, 2, |_| ());
    let health = check(200, "ok", "Every shard works.");
    assert!(health["shards"][1]["age_ms"].as_u64().is_some());
    publish(&board, 1, |snapshot| snapshot.metrics.counters.storage_full = 1);
    check(200, "degraded", "refuses new messages");
    publish(&board, 1, |snapshot| snapshot.metrics.counters.poisoned = 1);
    let health = check(503, "degraded", "Shard 0 takes nothing more");
    assert_eq!(health["shards"][0]["poisoned"], true);
    assert_eq!(health["shards"][1]["poisoned"], false);
    admin.stop();
}

#[test]
fn latency_merges_and_takes_apart() {
    let board = board(2);
    let admin = start(listener(), Arc::clone(&board)).unwrap();
    publish(&board, 2, |snapshot| {
        let value_ns = 1_000_000 * (1 + u64::from(snapshot.shard));
        snapshot.metrics.latency_ns[3].record_n(value_ns, 10).unwrap();
        snapshot.turn_ns.record(20_000).unwrap();
    });
    let latency = get(&admin, "/latency").json();
    for window in ["since_start", "last_interval"] {
        let stage = &latency[window]["stages"]["end_to_end"];
        assert_eq!((stage["count"].as_u64(), stage["unit"].as_str()), (Some(20), Some("ns")));
        let near = |value: &Value, ns: u64| value.as_u64().unwrap().abs_diff(ns) <= ns / 1_000;
        assert!(near(&stage["min"], 1_000_000) && near(&stage["max"], 2_000_000), "{stage}");
        assert!(near(&stage["p50"], 1_000_000) && near(&stage["p99_999"], 2_000_000), "{stage}");
        assert!(stage["mean"].as_f64().unwrap() > 1_400_000.0);
        assert_eq!(latency[window]["stages"]["append_to_durable"]["count"], 0);
        assert_eq!(latency[window]["stages"]["turn"]["count"], 2);
        assert!(latency[window]["seconds"].as_f64().is_some());
    }
    assert_eq!(latency["shards"], Value::Null);
    let by_shard = get(&admin, "/latency?by=shard").json();
    assert_eq!(by_shard["shards"][1]["shard"], 1);
    assert_eq!(by_shard["shards"][1]["since_start"]["stages"]["end_to_end"]["count"], 10);
    assert_eq!(get(&admin, "/latency?by=moon").status, 400);
}

#[test]
fn hgrm_knows_its_stages_and_windows() {
    let board = board(1);
    let admin = start(listener(), Arc::clone(&board)).unwrap();
    publish(&board, 1, |snapshot| snapshot.metrics.latency_ns[3].record(1_000_000).unwrap());
    for query in ["?stage=end_to_end", "?stage=end_to_end&window=interval"] {
        let answer = get(&admin, &format!("/latency.hgrm{query}"));
        assert_eq!(answer.status, 200);
        assert!(answer.body.contains("Total count    =            1]"), "{}", answer.body);
    }
    for query in ["", "?stage=", "?stage=nothing"] {
        let answer = get(&admin, &format!("/latency.hgrm{query}"));
        assert_eq!(answer.status, 404);
        assert!(answer.body.contains("receive_to_append, append_to_durable"), "{}", answer.body);
    }
    assert_eq!(get(&admin, "/latency.hgrm?stage=turn&window=never").status, 400);
}

#[test]
fn other_paths_and_methods_are_told_what_there_is() {
    let admin = start(listener(), board(1)).unwrap();
    let answer = get(&admin, "/nothing?x=1");
    assert_eq!(answer.status, 404);
    assert!(answer.body.contains("/latency.hgrm"), "{}", answer.body);
    let answer = ask(&admin, "POST /metrics HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(answer.status, 405);
    assert!(answer.head.contains("allow: get, head"), "{}", answer.head);
    let answer = ask(&admin, "HEAD /metrics HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));
    let answer = ask(&admin, "\u{1}\u{2}nonsense\r\n\r\n");
    assert_eq!(answer.status, 400);
    let answer = get(&admin, "/");
    assert!(answer.head.contains("content-type: text/html") && answer.status == 200);
    for word in ["starting", "1.2.3", "127.0.0.1:8085", "/tmp/&lt;iris&gt; &amp; data"] {
        assert!(answer.body.contains(word), "'{word}' is not in: {}", answer.body);
    }
}

#[test]
fn the_longest_slice_of_a_snapshot_is_told() {
    let board = board(1);
    let admin = start(listener(), Arc::clone(&board)).unwrap();
    publish(&board, 1, |snapshot| {
        snapshot.snapshot_slice = Longest { wall_ns: 250_000, cpu_ns: 125_000 };
    });
    let metrics = get(&admin, "/metrics").body;
    for line in [
        "\niris_snapshot_slice_seconds_max{shard=\"0\"} 0.00025\n",
        "\niris_snapshot_slice_cpu_seconds_max{shard=\"0\"} 0.000125\n",
    ] {
        assert!(metrics.contains(line), "{metrics}");
    }
    admin.stop();
}

#[test]
fn a_stop_gives_the_port_back() {
    let admin = start(listener(), board(1)).unwrap();
    let addr = admin.addr();
    let taken = TcpListener::bind(addr).err().map(|error| error.kind());
    assert_eq!(taken, Some(ErrorKind::AddrInUse));
    admin.stop();
    start(TcpListener::bind(addr).unwrap(), board(1)).unwrap();
}

/// Clients that say nothing, or not enough, go when their time is over.
#[test]
fn silent_clients_leave_after_their_time() {
    let time_max = Duration::from_millis(200);
    let admin = start_with(listener(), board(1), time_max).unwrap();
    let mut silent: Vec<TcpStream> =
        (0..CONNS_MAX).map(|_| TcpStream::connect(admin.addr()).unwrap()).collect();
    silent[0].write_all(b"GET / HTTP/1.1\r\nhost: a\r\n").unwrap();
    for stream in &mut silent {
        // Closed without a word, or reset.
        assert!(matches!(stream.read(&mut [0; 16]), Ok(0) | Err(_)));
    }
}

/// However many sit there, the next one is answered at once: nobody's time is
/// over in this test.
#[test]
fn silent_clients_make_room() {
    let admin = start_with(listener(), board(1), Duration::from_secs(3600)).unwrap();
    let silent: Vec<TcpStream> =
        (0..300).map(|_| TcpStream::connect(admin.addr()).unwrap()).collect();
    assert_eq!(get(&admin, "/metrics").status, 200);
    for stream in &silent[..300 - CONNS_MAX] {
        assert!(matches!((&mut &*stream).read(&mut [0; 16]), Ok(0) | Err(_)));
    }
}

#[test]
fn metrics_follow_the_grammar() {
    let board = board(2);
    let admin = start(listener(), Arc::clone(&board)).unwrap();
    publish(&board, 2, |snapshot| {
        snapshot.metrics.counters.sends = 7;
        snapshot.metrics.counters.sessions = 1 + u64::from(snapshot.shard);
        snapshot.metrics.counters.flow_measures = [0, 0, 3, 1, 0];
        snapshot.metrics.counters.flow_entered = [0, 0, 0, 1];
        snapshot.metrics.counters.receipts_shed = 5;
        snapshot.hands.closed = std::array::from_fn(|reason| reason as u64);
        (snapshot.hands.conns, snapshot.hands.table_bytes) = (10, 1_280);
        (snapshot.log_end, snapshot.log_durable) = (8_192, 4_096);
        for value_ns in [40_000, 50_000, 300_000, 59_000_000_000] {
            snapshot.metrics.latency_ns[3].record(value_ns).unwrap();
        }
    });
    let answer = get(&admin, "/metrics");
    assert!(answer.head.contains("content-type: text/plain; version=0.0.4"), "{}", answer.head);
    let samples = parse(&answer.body);
    let check = |series: &str, expect: f64| {
        assert_eq!(samples.get(series), Some(&expect), "{series} in\n{}", answer.body);
    };
    check("iris_build_info{version=\"1.2.3\"}", 1.0);
    check("iris_shards", 2.0);
    check("iris_sends_total", 14.0);
    check("iris_sessions{shard=\"1\"}", 2.0);
    check("iris_log_undurable_bytes{shard=\"0\"}", 4_096.0);
    check("iris_connection_bytes{part=\"tables\"}", 128.0);
    assert!(!samples.contains_key("iris_connection_bytes{part=\"kernel\"}"), "nothing to compare");
    check("iris_flow_measure_level{shard=\"0\",measure=\"frames\"}", 3.0);
    check("iris_flow_transitions_total{to=\"critical\"}", 2.0);
    check("iris_flow_shed_total{kind=\"receipt\"}", 10.0);
    check("iris_connections_closed_total{reason=\"slow_reader\"}", 6.0);
    check("iris_stage_seconds_bucket{stage=\"end_to_end\",le=\"0.0001\"}", 4.0);
    check("iris_stage_seconds_bucket{stage=\"end_to_end\",le=\"0.0005\"}", 6.0);
    check("iris_stage_seconds_bucket{stage=\"end_to_end\",le=\"5\"}", 6.0);
    check("iris_stage_seconds_bucket{stage=\"end_to_end\",le=\"+Inf\"}", 8.0);
    check("iris_stage_seconds_count{stage=\"end_to_end\"}", 8.0);
    let sum = samples["iris_stage_seconds_sum{stage=\"end_to_end\"}"];
    assert!((sum - 118.000_78).abs() < 0.1, "{sum}");
    check("iris_turn_seconds_count", 0.0);
    assert!(samples["process_resident_memory_bytes"] > 100_000.0);
    assert!(samples["iris_snapshot_age_seconds{shard=\"0\"}"] >= 0.0);
    assert!(answer.body.lines().count() < 350, "few series");
}

/// Reads the text format strictly: every family described before its samples,
/// once; names, labels and values well formed; no series twice.
fn parse(text: &str) -> HashMap<String, f64> {
    let is_name = |name: &str| {
        !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let mut samples = HashMap::new();
    let mut families = HashSet::new();
    let (mut described, mut family, mut kind) = ("", "", "");
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            described = help.split_once(' ').expect("a name and a meaning").0;
            assert!(is_name(described) && families.insert(described), "{line}");
        } else if let Some(of) = line.strip_prefix("# TYPE ") {
            (family, kind) = of.split_once(' ').expect("a name and a type");
            assert_eq!(family, described, "{line}");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", family.ends_with("_total"), "{line}");
        } else {
            let (series, value) = line.rsplit_once(' ').expect("a series and a value");
            let (name, labels) = match series.split_once('{') {
                Some((name, labels)) => (name, labels.strip_suffix('}').expect("a closing brace")),
                None => (series, ""),
            };
            let suffix = name.strip_prefix(family).expect("a sample of the family before it");
            let is_of_kind = match kind {
                "histogram" => ["_bucket", "_sum", "_count"].contains(&suffix),
                _ => suffix.is_empty(),
            };
            assert!(is_name(name) && is_of_kind, "{line}");
            for label in labels.split(',').filter(|label| !label.is_empty()) {
                let (name, value) = label.split_once('=').expect("a label and its value");
                let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
                assert!(is_name(name) && value.is_some_and(|v| !v.contains(['"', '\\'])), "{line}");
            }
            let value: f64 = value.parse().expect("a number");
            assert!(samples.insert(series.to_owned(), value).is_none(), "twice: {line}");
        }
    }
    samples
}
