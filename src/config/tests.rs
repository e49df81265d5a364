//! What the configuration accepts, refuses and suggests.

use std::io::Write;

use super::*;

fn flag(key: &str, value: &str) -> Flag {
    Flag { key: key.to_owned(), typed: format!("--{key}"), values: vec![value.to_owned()] }
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn load_file(text: &str) -> Result<Loaded, Exit> {
    load(Some(file(text).path()), std::iter::empty(), &[])
}

fn variables(pairs: &[(&str, &str)]) -> impl Iterator<Item = (String, String)> {
    pairs
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect::<Vec<_>>()
        .into_iter()
}

/// Each text is refused with code 2 and a sentence that holds all of `told`.
fn check_refused(text: &str, told: &[&str]) {
    let exit = load_file(text).expect_err(text);
    assert_eq!(exit.code, 2, "{text}");
    for words in told {
        assert!(exit.sentence.contains(words), "{text}: {} lacks {words}", exit.sentence);
    }
}

#[test]
fn nothing_given_is_the_default() {
    let loaded = load(None, std::iter::empty(), &[]).unwrap();
    assert_eq!(loaded.config, Config::default());
    assert_eq!(loaded.warnings, [""; 0]);
}

#[test]
fn later_sources_win_and_are_remembered() {
    let file = file("shards = 2\nadmin = \"127.0.0.1:9000\"\n[limits]\nhandshake_ms = 5000\n");
    let environment =
        variables(&[("IRIS_SHARDS", "3"), ("IRIS_LIMITS_HANDSHAKE_MS", "6_000"), ("HOME", "/")]);
    let loaded = load(Some(file.path()), environment, &[flag("shards", "4")]).unwrap();
    assert_eq!(loaded.config.shards, Some(4));
    assert_eq!(loaded.config.handshake_ms, 6000);
    assert_eq!(loaded.config.admin.port(), 9000);
    let shown = loaded.toml();
    assert!(shown.contains("shards = 4  # from --shards\n"), "{shown}");
    assert!(shown.contains("handshake_ms = 6000  # from IRIS_LIMITS_HANDSHAKE_MS\n"), "{shown}");
    assert!(shown.contains(&format!("# from {}\n", file.path().display())), "{shown}");
    assert!(shown.contains("retention_days = 30\n"), "{shown}");
    assert!(shown.contains("# memory_bytes is chosen by the plan\n"), "{shown}");
}

#[test]
fn what_is_shown_is_read_back_the_same() {
    let flags = [
        flag("listen", "127.0.0.1:8085,[::1]:8086"),
        flag("data_dir", "a \"quoted\" # directory"),
        flag("memory_bytes", "2GiB"),
        flag("direct_descriptors", "on"),
        flag("log.format", "json"),
        flag("storage.tail_bytes", "4MiB"),
        flag("storage.segment_bytes", "16MiB"),
        flag("debug.without", "ext_arg,multishot_poll"),
    ];
    let first = load(None, std::iter::empty(), &flags).unwrap();
    assert_eq!(first.config.listen.len(), 2);
    assert_eq!(first.config.segment_bytes, Some(16 << 20));
    let again = load_file(&first.toml()).unwrap();
    assert_eq!(again.config, first.config);
}

#[test]
fn every_setting_is_documented_shown_and_in_its_section() {
    let mut sections: Vec<&str> =
        SETTINGS.iter().map(|s| s.key.rsplit_once('.').map_or("", |p| p.0)).collect();
    sections.dedup();
    let mut unique = sections.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(sections.len(), unique.len(), "sections stand together: {sections:?}");
    assert_eq!(sections[0], "", "the root stands first, as TOML demands");
    assert!(SETTINGS.iter().all(|setting| !setting.about.is_empty()));
    // Showing all of them and reading that back proves that show and set match.
    assert_eq!(
        load_file(&load(None, std::iter::empty(), &[]).unwrap().toml()).unwrap().config,
        Config::default()
    );
}

#[test]
fn values_of_another_type_are_refused() {
    check_refused("data_dir = true", &["data_dir", "a string or a whole number"]);
    check_refused("shards = 1.5", &["shards", "a string or a whole number"]);
    check_refused("listen = [true]", &["listen", "strings or whole numbers"]);
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_one() {
    check_refused("shard = 2", &["no setting 'shard'", "did you mean shards?"]);
    check_refused(
        "[limit]\nconns_max = 2",
        &["'limit.conns_max'", "did you mean limits.conns_max?"],
    );
    check_refused("conns_max = 2", &["did you mean limits.conns_max?"]);
    check_refused("[limits]\nhandshake = 2", &["did you mean limits.handshake_ms?"]);
    for far in ["qqqq = 1", "[limits]\nfoo = 1"] {
        let exit = load_file(far).unwrap_err();
        assert!(!exit.sentence.contains("did you mean"), "{}", exit.sentence);
    }
    let exit = load(None, std::iter::empty(), &[flag("nonsense.key", "1")]).unwrap_err();
    assert_eq!(exit.code, 2);
}

#[test]
fn unknown_variables_are_only_warned_about() {
    let loaded =
        load(None, variables(&[("IRIS_SHARD", "2"), ("IRIS_PORT", "tcp://10.0.0.1:8085")]), &[])
            .unwrap();
    assert_eq!(loaded.config, Config::default());
    assert_eq!(loaded.warnings.len(), 2);
    assert!(loaded.warnings[1].contains("did you mean IRIS_SHARDS?"), "{:?}", loaded.warnings);
}

#[test]
fn values_out_of_bounds_are_refused() {
    for (text, told) in [
        ("shards = 0", "from 1 to 256"),
        ("shards = 257", "from 1 to 256"),
        ("shards = -1", "from 1 to 256"),
        ("shards = 99999999999999999999", "TOML"),
        ("shards = [1, 2]", "one value"),
        ("shards = \"many\"", "whole number"),
        ("memory_bytes = \"1MiB\"", "64 MiB"),
        ("memory_bytes = \"64MB\"", "not a size"),
        ("listen = []", "at least one address"),
        ("listen = [\"8085\"]", "address with a port"),
        ("listen = \"localhost:8085\"", "address with a port"),
        ("direct_descriptors = \"maybe\"", "auto, on, off"),
        ("data_dir = \"\"", "a path is expected"),
        ("[log]\nlevel = \"loud\"", "error, warn, info, debug, trace"),
        ("[limits]\nhandshake_ms = 1", "from 100"),
        ("[limits]\nretention_days = 0", "from 1"),
        ("[limits]\npairs_kept_days = 0", "from 1 to 3650"),
        ("[limits]\npairs_kept_days = 3651", "from 1 to 3650"),
        ("[limits]\nstalled_ms = 999", "from 1000"),
        ("[limits]\ninbox_bytes_max = 5", "1 MiB"),
        ("[storage]\ntail_bytes = \"3MiB\"", "power of two"),
        ("[storage]\nsegment_bytes = 4096", "1 MiB"),
        ("[debug]\nprogress_ms = 60001", "from 0 to 60000"),
        ("[debug]\nwithout = [\"warp\"]", "multishot_poll"),
        ("shards = ", "is not TOML"),
    ] {
        check_refused(text, &[told]);
    }
}

#[test]
fn contradictions_are_refused() {
    check_refused("listen = [\"0.0.0.0:8085\"]", &["TLS and authentication", "bind loopback"]);
    check_refused("admin = \"192.0.2.1:8084\"", &["admin", "bind loopback"]);
    check_refused("listen = [\"127.0.0.1:8084\"]", &["both 127.0.0.1:8084"]);
    check_refused("listen = [\"127.0.0.1:1\", \"127.0.0.1:1\"]", &["twice"]);
    check_refused("[storage]\ntail_bytes = \"8MiB\"\nsegment_bytes = \"4MiB\"", &["larger than"]);
    let taken = file("");
    let text = format!("data_dir = \"{}\"", taken.path().display());
    check_refused(&text, &["is a file"]);
    assert!(
        load_file("listen = [\"127.0.0.1:0\", \"127.0.0.1:0\"]\nadmin = \"127.0.0.1:0\"").is_ok()
    );
}

#[test]
fn all_complaints_come_at_once() {
    let exit = load_file("shards = 0\nshard = 1\nadmin = \"0.0.0.0:1\"").unwrap_err();
    assert_eq!(exit.sentence.lines().count(), 3, "{}", exit.sentence);
}

#[test]
fn a_missing_file_is_named() {
    let exit = load(Some(Path::new("/nowhere/iris.toml")), std::iter::empty(), &[]).unwrap_err();
    assert!(exit.sentence.contains("/nowhere/iris.toml"), "{}", exit.sentence);
}
