//! Holds the shape of the code: which crate may know which, where unsafe code
//! may stand, what every file opens with, how files are named and how long
//! they get. When one of these fails, either the change is wrong or the design
//! has changed; in the second case change the table here and say why.

use std::fs;
use std::path::{Path, PathBuf};

/// Crates of this workspace and the ones of it that they may depend on.
const EDGES: [(&str, &[&str]); 9] = [
    ("iris-shard", &["net", "shard", "tuning", "wal", "wire"]),
    ("shard", &["wal", "wire"]),
    ("wal", &["wire"]),
    ("wire", &[]),
    ("net", &[]),
    ("tuning", &[]),
    ("client", &["wire"]),
    ("iris-loadgen", &["client", "wire"]),
    ("sim", &["client", "shard", "wal", "wire"]),
];

/// Libraries that touch the machine or bring a runtime, and who may use them.
const HOMES: [(&str, &[&str]); 4] = [
    ("axum", &["iris-shard"]),
    ("tokio", &["iris-shard"]),
    ("glommio", &["iris-shard", "net"]),
    ("io-uring", &["iris-loadgen", "net", "tuning"]),
];

/// The only files with unsafe code.
const UNSAFE: [&str; 28] = [
    "benches/allocations.rs",
    "benches/restart.rs",
    "loadgen/src/cpu_clock.rs",
    "loadgen/src/signals.rs",
    "loadgen/src/slice.rs",
    "loadgen/src/socket.rs",
    "net/examples/relay.rs",
    "net/src/bridge.rs",
    "net/src/buf.rs",
    "net/src/disk.rs",
    "net/src/eventfd.rs",
    "net/src/mesh.rs",
    "net/src/prefetch.rs",
    "net/src/ring.rs",
    "src/heap.rs",
    "src/signal.rs",
    "src/turn/log_io.rs",
    "tests/server/halt.rs",
    "tests/server/mounted.rs",
    "tests/server/refusing.rs",
    "tests/server/set_back.rs",
    "tests/server/vanish.rs",
    "tuning/src/ring.rs",
    "wal/examples/log_rate.rs",
    "wal/src/checksum.rs",
    "wal/src/disk/sys.rs",
    "wal/src/disk/tests.rs",
    "wal/tests/allocations.rs",
];

/// Rooms that do no I/O, read no clock and start no thread: the simulator runs the
/// same code.
const PURE: [&str; 3] = ["shard/src/", "wire/src/", "wal/src/"];

/// The half of the log that is the disk's, and the files that say what the log is.
const DISK: [&str; 4] =
    ["wal/src/disk.rs", "wal/src/disk/", "wal/src/file.rs", "wal/src/manifest.rs"];

/// What pure code does not name.
const IMPURE: [&str; 10] = [
    "std::fs",
    "std::process",
    "RandomState",
    "std::net",
    "std::thread",
    "std::time",
    "std::env",
    "libc::",
    "rustix::",
    "getrandom",
];

/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 8] =
    ["common", "helper", "helpers", "manager", "misc", "shared", "util", "utils"];

/// The server's own code, which is held to a length.
const SERVER: [&str; 6] =
    ["net/src/", "shard/src/", "src/", "tuning/src/", "wal/src/", "wire/src/"];

/// A file longer than this usually holds two nouns.
const CODE_LINES_MAX: usize = 500;

/// Files that are longer and better for it: all kinds of records and their
/// bytes stand side by side.
const LONG: [&str; 1] = ["wal/src/record.rs"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The manifests of all crates, the binary's first.
fn manifests() -> Vec<toml::Table> {
    let parse = |path: PathBuf| read(&path).parse::<toml::Table>().expect("cargo reads it too");
    let workspace = parse(root().join("Cargo.toml"));
    let members = workspace["workspace"]["members"].as_array().expect("an array of members");
    let members = members.iter().map(|member| member.as_str().expect("a path"));
    let mut all: Vec<toml::Table> =
        members.map(|member| parse(root().join(member).join("Cargo.toml"))).collect();
    all.insert(0, workspace);
    all
}

fn name(manifest: &toml::Table) -> &str {
    manifest["package"]["name"].as_str().expect("a package has a name")
}

fn dependencies<'a>(manifest: &'a toml::Table, kind: &str) -> Vec<&'a str> {
    let table = manifest.get(kind).and_then(toml::Value::as_table);
    table.map_or(Vec::new(), |table| table.keys().map(String::as_str).collect())
}

/// Every Rust file of the workspace with its path from the root.
fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open = vec![root().to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).expect("a directory of the workspace") {
            let path = entry.expect("an entry").path();
            let file_name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() && !file_name.starts_with('.') && file_name != "target" {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let short = path.strip_prefix(root()).expect("below the root");
                found.push((short.to_str().expect("names are ASCII").to_owned(), read(&path)));
            }
        }
    }
    assert!(found.len() > 20, "the walk finds the workspace");
    found.sort();
    found
}

/// The file without its test module.
fn without_tests(text: &str) -> &str {
    text.find("#[cfg(test)]\nmod ").map_or(text, |at| &text[..at])
}

fn none(what: &str, offenders: &[String]) {
    assert!(offenders.is_empty(), "{what}:\n  {}", offenders.join("\n  "));
}

#[test]
fn dependencies_point_one_way() {
    let ours: Vec<&str> = EDGES.iter().map(|(name, _)| *name).collect();
    let mut offenders = Vec::new();
    for manifest in manifests() {
        let name = name(&manifest);
        let Some((_, allowed)) = EDGES.iter().find(|(known, _)| *known == name) else {
            offenders.push(format!("{name} is not in the table of edges"));
            continue;
        };
        for dependency in dependencies(&manifest, "dependencies") {
            if ours.contains(&dependency) && !allowed.contains(&dependency) {
                offenders.push(format!("{name} → {dependency}"));
            }
            let home = HOMES.iter().find(|(library, _)| *library == dependency);
            if home.is_some_and(|(_, homes)| !homes.contains(&name)) {
                offenders.push(format!("{name} → {dependency} (not its home)"));
            }
        }
    }
    none("edges that the design does not have", &offenders);
}

#[test]
fn every_crate_takes_the_workspace_lints() {
    let manifests = manifests();
    let without = manifests.iter().filter(|manifest| {
        manifest.get("lints").and_then(|lints| lints.get("workspace")) != Some(&true.into())
    });
    let offenders: Vec<String> = without.map(|manifest| name(manifest).to_owned()).collect();
    none("crates without `[lints] workspace = true`", &offenders);
}

#[test]
fn unsafe_code_is_fenced() {
    // The compiler denies unsafe code without this attribute, so whoever
    // carries the attribute is whoever can have any.
    let permits = |text: &str| {
        ["allow(unsafe_code", "expect(unsafe_code", "warn(unsafe_code"]
            .iter()
            .any(|p| text.contains(p))
    };
    let sources = sources();
    let outside: Vec<String> = sources
        .iter()
        .filter(|(path, text)| {
            path != "tests/architecture.rs" && permits(text) && !UNSAFE.contains(&path.as_str())
        })
        .map(|(path, _)| path.clone())
        .collect();
    none("unsafe code outside of the list", &outside);
}

#[test]
fn the_brain_does_no_io() {
    let is_in = |path: &str, rooms: &[&str]| rooms.iter().any(|room| path.starts_with(room));
    let sources = sources();
    let pure = sources.iter().filter(|(path, _)| is_in(path, &PURE) && !is_in(path, &DISK));
    let mut offenders = Vec::new();
    for (path, text) in pure {
        for (number, line) in without_tests(text).lines().enumerate() {
            if let Some(word) = IMPURE.iter().find(|word| line.contains(*word)) {
                offenders.push(format!("{path}:{}: {word}", number + 1));
            }
        }
    }
    none("pure code that touches the machine", &offenders);
}

#[test]
fn every_file_says_what_it_is_for() {
    let sources = sources();
    let silent = sources.iter().filter(|(_, text)| !text.starts_with("//!"));
    let offenders: Vec<String> = silent.map(|(path, _)| path.clone()).collect();
    none("files that do not open with `//!`", &offenders);
}

#[test]
fn names_say_what_is_inside() {
    let sources = sources();
    let empty = sources.iter().filter(|(path, _)| {
        let mut parts = path.trim_end_matches(".rs").split('/');
        parts.any(|part| EMPTY_NAMES.contains(&part))
    });
    let offenders: Vec<String> = empty.map(|(path, _)| path.clone()).collect();
    none("names that say nothing", &offenders);
}

#[test]
fn a_file_holds_one_noun() {
    let mut offenders = Vec::new();
    for (path, text) in sources() {
        if !SERVER.iter().any(|dir| path.starts_with(dir)) {
            continue;
        }
        let is_code = |line: &&str| !line.trim().is_empty() && !line.trim().starts_with("//");
        let lines = without_tests(&text).lines().filter(is_code).count();
        if lines > CODE_LINES_MAX && !LONG.contains(&path.as_str()) {
            offenders.push(format!("{path}: {lines} lines of code"));
        }
        if lines <= CODE_LINES_MAX && LONG.contains(&path.as_str()) {
            offenders.push(format!("{path}: short again, take it off the list"));
        }
    }
    none("files longer than 500 lines of code", &offenders);
}
