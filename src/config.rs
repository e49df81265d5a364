//! Every setting: where it comes from, and whether all of them make sense
//! together.
//!
//! Defaults, then the file, then the environment, then flags: the later one
//! wins, and each value remembers where it came from. Nothing starts before
//! all of it is read and checked, and all complaints come at once. What a
//! setting is called, means and may be stands in [`settings`].

pub(crate) mod settings;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tuning::{Wishes, Without};

use crate::exit::Exit;
use settings::{SETTINGS, Setting};

/// The effective settings.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "some are read by parts that come later")]
pub(crate) struct Config {
    /// Where logs and the manifest live; made at the first start.
    pub(crate) data_dir: PathBuf,
    /// Where clients connect, both protocols.
    pub(crate) listen: Vec<SocketAddr>,
    /// Where the admin HTTP listens.
    pub(crate) admin: SocketAddr,
    /// Number of shards; `None` leaves it to the plan.
    pub(crate) shards: Option<u16>,
    /// Memory for the whole process; `None` leaves it to the plan.
    pub(crate) memory_bytes: Option<u64>,
    /// Connections in the rings' own tables; `None` leaves it to the plan.
    pub(crate) direct_descriptors: Option<bool>,
    /// The least severe level that is logged.
    pub(crate) log_level: LogLevel,
    /// Shape of a log line.
    pub(crate) log_format: LogFormat,
    /// Most messages waiting in one inbox.
    pub(crate) inbox_messages_max: u64,
    /// Most bytes waiting in one inbox.
    pub(crate) inbox_bytes_max: u64,
    /// Connections the process must hold; `None` is what the machine allows.
    pub(crate) conns_max: Option<u64>,
    /// Time from connecting to being logged in, milliseconds.
    pub(crate) handshake_ms: u64,
    /// Logins that a shard takes in a second; 0 for no bound.
    pub(crate) logins_per_second: u32,
    /// Time from the first byte of a frame to its last, milliseconds.
    pub(crate) frame_ms: u64,
    /// Time after which a connection is cut on which nothing moves,
    /// milliseconds; 0 for never.
    pub(crate) stalled_ms: u64,
    /// Days after which an undelivered message is given up.
    pub(crate) retention_days: u32,
    /// Days after which a sending device is forgotten that sends nothing.
    pub(crate) pairs_kept_days: u32,
    /// The log's window in memory, per shard; `None` leaves it to the plan.
    pub(crate) tail_bytes: Option<u64>,
    /// Size of a log segment; `None` leaves it to the plan.
    pub(crate) segment_bytes: Option<u64>,
    /// What to take as missing, so that the older ways run.
    pub(crate) without: Without,
    /// Time between two words of how far a start is, milliseconds.
    pub(crate) progress_ms: u64,
}

/// Severity of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogLevel {
    /// Something is broken.
    Error,
    /// Something will be, or was avoided.
    Warn,
    /// What an operator wants to know once.
    Info,
    /// What explains a decision.
    Debug,
    /// Everything.
    Trace,
}

/// Shape of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// For eyes.
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            data_dir: PathBuf::from("./iris-data"),
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 8085))],
            admin: SocketAddr::from(([127, 0, 0, 1], 8084)),
            shards: None,
            memory_bytes: None,
            direct_descriptors: None,
            log_level: LogLevel::Info,
            log_format: LogFormat::Text,
            inbox_messages_max: 1_000_000,
            inbox_bytes_max: 1 << 30,
            conns_max: None,
            handshake_ms: 10_000,
            logins_per_second: 20_000,
            frame_ms: 60_000,
            stalled_ms: 300_000,
            retention_days: 30,
            pairs_kept_days: 7,
            tail_bytes: None,
            segment_bytes: None,
            without: Without::default(),
            progress_ms: 1000,
        }
    }
}

impl Config {
    /// What the plan has to respect.
    pub(crate) fn wishes(&self) -> Wishes {
        Wishes {
            shards: self.shards,
            memory_bytes: self.memory_bytes,
            conns_max: self.conns_max,
            tail_bytes: self.tail_bytes,
            segment_bytes: self.segment_bytes,
            direct_descriptors: self.direct_descriptors,
            written: None,
        }
    }
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    Default,
    File(PathBuf),
    Environment(String),
    Flag(String),
}

impl Origin {
    fn name(&self) -> String {
        match self {
            Origin::Default => "the default".to_owned(),
            Origin::File(path) => path.display().to_string(),
            Origin::Environment(name) | Origin::Flag(name) => name.clone(),
        }
    }
}

/// What was asked for on the command line: a setting's key, how the flag was
/// written, and its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flag {
    /// The setting's key, known or not.
    pub(crate) key: String,
    /// The flag as typed, for messages.
    pub(crate) typed: String,
    /// The values as typed; several for a list.
    pub(crate) values: Vec<String>,
}

/// The settings with their origins.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    /// What they say.
    pub(crate) config: Config,
    /// What looks like a mistake but need not be one, as sentences.
    pub(crate) warnings: Vec<String>,
    origins: [Origin; SETTINGS.len()],
}

/// Reads the file (if any), the environment and the flags, in rising order.
///
/// # Errors
/// Exit code 2 with every complaint, one on a line.
pub(crate) fn load(
    file: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
    flags: &[Flag],
) -> Result<Loaded, Exit> {
    let mut loading = Loading {
        loaded: Loaded {
            config: Config::default(),
            warnings: Vec::new(),
            origins: std::array::from_fn(|_| Origin::Default),
        },
        complaints: Vec::new(),
    };
    if let Some(file) = file {
        loading.file(file);
    }
    loading.environment(environment);
    loading.flags(flags);
    loading.complaints.extend(contradictions(&loading.loaded.config));
    if loading.complaints.is_empty() {
        Ok(loading.loaded)
    } else {
        Err(Exit::usage(loading.complaints.join("\n")))
    }
}

struct Loading {
    loaded: Loaded,
    complaints: Vec<String>,
}

impl Loading {
    fn file(&mut self, path: &Path) {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                let complaint =
                    format!("cannot read the configuration {}: {error}", path.display());
                return self.complaints.push(complaint);
            }
        };
        match text.parse::<toml::Table>() {
            Ok(table) => self.table("", &table, path),
            Err(error) => {
                let error = error.to_string();
                self.complaints.push(format!(
                    "{} is not TOML: {}",
                    path.display(),
                    error.trim_end()
                ));
            }
        }
    }

    fn table(&mut self, prefix: &str, table: &toml::Table, path: &Path) {
        for (name, value) in table {
            let key = format!("{prefix}{name}");
            let origin = Origin::File(path.to_owned());
            match value {
                toml::Value::Table(inner) => self.table(&format!("{key}."), inner, path),
                toml::Value::Array(values) => {
                    if let Some(values) = values.iter().map(plain).collect::<Option<Vec<_>>>() {
                        self.set(&key, &values, origin);
                    } else {
                        self.refuse(&key, &origin, "its values are strings or whole numbers");
                    }
                }
                value => match plain(value) {
                    Some(value) => self.set(&key, &[value], origin),
                    None => self.refuse(&key, &origin, "a string or a whole number is wanted"),
                },
            }
        }
    }

    fn environment(&mut self, environment: impl Iterator<Item = (String, String)>) {
        let mut found: Vec<(String, String)> =
            environment.filter(|(name, _)| name.starts_with("IRIS_")).collect();
        found.sort();
        for (name, value) in found {
            match SETTINGS.iter().find(|setting| setting.variable() == name) {
                Some(setting) => {
                    let values = split(setting, &value);
                    self.set(setting.key, &values, Origin::Environment(name));
                }
                None if name == "IRIS_CONFIG" => {}
                // Not refused: an orchestrator that runs a service called
                // "iris" puts variables of its own with this prefix here.
                None => {
                    let names = SETTINGS.iter().map(Setting::variable);
                    let hint = nearest(&name, names)
                        .map_or(String::new(), |n| format!("; did you mean {n}?"));
                    self.loaded.warnings.push(format!("{name} is set but is no setting{hint}"));
                }
            }
        }
    }

    fn flags(&mut self, flags: &[Flag]) {
        for flag in flags {
            let values = match SETTINGS.iter().find(|setting| setting.key == flag.key) {
                Some(setting) => {
                    flag.values.iter().flat_map(|value| split(setting, value)).collect()
                }
                None => flag.values.clone(),
            };
            self.set(&flag.key, &values, Origin::Flag(flag.typed.clone()));
        }
    }

    fn refuse(&mut self, key: &str, origin: &Origin, what: &str) {
        self.complaints.push(format!("{key} ({}): {what}", origin.name()));
    }

    fn set(&mut self, key: &str, values: &[String], origin: Origin) {
        let Some(index) = SETTINGS.iter().position(|setting| setting.key == key) else {
            let keys = SETTINGS.iter().map(|s| s.key.to_owned());
            let hint =
                nearest(key, keys).map_or(String::new(), |near| format!("; did you mean {near}?"));
            let from = origin.name();
            return self.complaints.push(format!("there is no setting '{key}' ({from}){hint}"));
        };
        match (SETTINGS[index].set)(&mut self.loaded.config, values) {
            Ok(()) => self.loaded.origins[index] = origin,
            Err(why) => self.complaints.push(format!("{key} ({}): {why}", origin.name())),
        }
    }
}

/// A TOML value as a setting reads it: a string without its quotes, or a number.
fn plain(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Lists are written with commas where there are no brackets.
fn split(setting: &Setting, value: &str) -> Vec<String> {
    if setting.list {
        value.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
    } else {
        vec![value.to_owned()]
    }
}

/// The known name that a typing error most likely meant.
fn nearest(typed: &str, known: impl Iterator<Item = String>) -> Option<String> {
    let likeness = |name: &String| {
        // Sections are few and alike: `conns_max` without its own is as near as a
        // typing error, and a shared one makes nothing near.
        let bare = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
        strsim::jaro_winkler(&bare(typed), &bare(name))
    };
    known
        .map(|name| (likeness(&name), name))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// Settings that are fine alone and senseless together.
fn contradictions(config: &Config) -> Vec<String> {
    let mut found = Vec::new();
    for (i, address) in config.listen.iter().enumerate() {
        if address.port() != 0 && config.listen[..i].contains(address) {
            found.push(format!("listen: {address} is there twice"));
        }
        if *address == config.admin && address.port() != 0 {
            found.push(format!("listen and admin are both {address}; give the admin another port"));
        }
    }
    for (key, address) in
        config.listen.iter().map(|a| ("listen", a)).chain([("admin", &config.admin)])
    {
        if !address.ip().is_loopback() {
            found.push(format!(
                "{key}: {address} can be reached from outside, but TLS and authentication are not \
                 there yet; bind loopback, for example 127.0.0.1:{}",
                address.port()
            ));
        }
    }
    if let (Some(tail), Some(segment)) = (config.tail_bytes, config.segment_bytes)
        && tail > segment
    {
        found.push(format!(
            "storage.tail_bytes ({tail}) is larger than storage.segment_bytes ({segment}); \
             tails must fill a segment exactly"
        ));
    }
    if config.data_dir.is_file() {
        let path = config.data_dir.display();
        found
            .push(format!("data_dir: {path} is a file; name a directory, or one that can be made"));
    }
    found
}

impl Loaded {
    /// The effective configuration as TOML that [`load`] reads back, with the
    /// origin of each value that is not the default.
    pub(crate) fn toml(&self) -> String {
        let mut out = String::new();
        let mut section = "";
        for (setting, origin) in SETTINGS.iter().zip(&self.origins) {
            let (table, name) = setting.key.rsplit_once('.').unwrap_or(("", setting.key));
            if table != section {
                out.push_str(&format!("\n[{table}]\n"));
                section = table;
            }
            match ((setting.show)(&self.config), origin) {
                (Some(value), Origin::Default) => out.push_str(&format!("{name} = {value}\n")),
                (Some(value), origin) => {
                    out.push_str(&format!("{name} = {value}  # from {}\n", origin.name()));
                }
                (None, _) => out.push_str(&format!("# {name} is chosen by the plan\n")),
            }
        }
        out
    }
}

#[cfg(test)]
mod tests;
