//! The settings themselves: name, meaning, bounds, how to read and show each.
//!
//! One table feeds the file, the environment, the flags, `--help` and
//! `--check-config`, so that none of them can forget a setting.

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use tuning::quantity::{bytes, parse_bytes};
use tuning::{Without, plan, without};

use super::{Config, LogFormat, LogLevel};

/// Most addresses to listen on.
const LISTEN_MAX: usize = 64;

/// One setting.
pub(crate) struct Setting {
    /// Its name in the file, sections joined by dots.
    pub(crate) key: &'static str,
    /// What it means, and its bounds.
    pub(crate) about: &'static str,
    /// Several values are allowed.
    pub(crate) list: bool,
    /// Reads the values into the configuration or says what is wrong.
    pub(crate) set: fn(&mut Config, &[String]) -> Result<(), String>,
    /// The value as TOML; `None` when it is left to the plan.
    pub(crate) show: fn(&Config) -> Option<String>,
}

impl Setting {
    /// Name of the environment variable: `limits.conns_max` is
    /// `IRIS_LIMITS_CONNS_MAX`.
    pub(crate) fn variable(&self) -> String {
        format!("IRIS_{}", self.key.replace('.', "_").to_ascii_uppercase())
    }
}

/// All settings; those of one section stand together, the root's first.
pub(crate) static SETTINGS: [Setting; 21] = [
    Setting {
        key: "data_dir",
        about: "Directory of the logs; made at the first start",
        list: false,
        set: |config, values| {
            let path = one(values)?;
            if path.is_empty() {
                return Err("a path is expected".to_owned());
            }
            config.data_dir = path.into();
            Ok(())
        },
        show: |config| Some(quoted(&config.data_dir.display().to_string())),
    },
    Setting {
        key: "listen",
        about: "Addresses for clients, both protocols; loopback only until TLS is there",
        list: true,
        set: |config, values| {
            let addresses: Result<Vec<SocketAddr>, String> =
                values.iter().map(|value| address(value)).collect();
            config.listen = addresses?;
            match config.listen.len() {
                0 => Err("at least one address is needed, such as 127.0.0.1:8085".to_owned()),
                n if n > LISTEN_MAX => {
                    Err(format!("{n} addresses are too many, {LISTEN_MAX} is the most"))
                }
                _ => Ok(()),
            }
        },
        show: |config| {
            let addresses: Vec<String> = config.listen.iter().map(quoted).collect();
            Some(format!("[{}]", addresses.join(", ")))
        },
    },
    Setting {
        key: "admin",
        about: "Address of the admin HTTP: health, metrics, latency; loopback only",
        list: false,
        set: |config, values| address(one(values)?).map(|value| config.admin = value),
        show: |config| Some(quoted(&config.admin)),
    },
    Setting {
        key: "shards",
        about: "Number of shards, 1 to 256; may exceed the cores",
        list: false,
        set: |config, values| {
            number(one(values)?, 1..=plan::SHARDS_MAX).map(|value| config.shards = Some(value))
        },
        show: |config| config.shards.map(|value| value.to_string()),
    },
    Setting {
        key: "memory_bytes",
        about: "Memory for the process and its sockets, from 64MiB",
        list: false,
        set: |config, values| {
            size(one(values)?, plan::MEMORY_BYTES_MIN..=1 << 50)
                .map(|value| config.memory_bytes = Some(value))
        },
        show: |config| config.memory_bytes.map(|value| value.to_string()),
    },
    Setting {
        key: "direct_descriptors",
        about: "Connections in the rings' own tables: auto, on or off",
        list: false,
        set: |config, values| {
            let known = [("auto", None), ("on", Some(true)), ("off", Some(false))];
            choice(one(values)?, &known).map(|value| config.direct_descriptors = value)
        },
        show: |config| {
            let name = match config.direct_descriptors {
                None => "auto",
                Some(true) => "on",
                Some(false) => "off",
            };
            Some(quoted(&name))
        },
    },
    Setting {
        key: "log.level",
        about: "error, warn, info, debug or trace",
        list: false,
        set: |config, values| choice(one(values)?, &LEVELS).map(|value| config.log_level = value),
        show: |config| name_of(config.log_level, &LEVELS),
    },
    Setting {
        key: "log.format",
        about: "text, or json for one object a line; both on stderr",
        list: false,
        set: |config, values| choice(one(values)?, &FORMATS).map(|value| config.log_format = value),
        show: |config| name_of(config.log_format, &FORMATS),
    },
    Setting {
        key: "limits.conns_max",
        about: "Connections that must fit, 1 to 16777216; default: what the machine allows",
        list: false,
        set: |config, values| {
            number(one(values)?, 1..=16 << 20).map(|value| config.conns_max = Some(value))
        },
        show: |config| config.conns_max.map(|value| value.to_string()),
    },
    Setting {
        key: "limits.handshake_ms",
        about: "Time to log in after connecting, 100 to 600000 ms",
        list: false,
        set: |config, values| {
            number(one(values)?, 100..=600_000).map(|value| config.handshake_ms = value)
        },
        show: |config| Some(config.handshake_ms.to_string()),
    },
    Setting {
        key: "limits.logins_per_second",
        about: "Logins a shard takes in a second, 1 to 10000000, fewer when it is busy; 0 for no bound",
        list: false,
        set: |config, values| {
            number(one(values)?, 0..=10_000_000).map(|value| config.logins_per_second = value)
        },
        show: |config| Some(config.logins_per_second.to_string()),
    },
    Setting {
        key: "limits.frame_ms",
        about: "Time to end a frame that was begun, 100 to 86400000 ms, and 1 s more per kB of it",
        list: false,
        set: |config, values| {
            number(one(values)?, 100..=86_400_000).map(|value| config.frame_ms = value)
        },
        show: |config| Some(config.frame_ms.to_string()),
    },
    Setting {
        key: "limits.stalled_ms",
        about: "Time after which a connection that owes something and gives no sign is cut, 1000 to 86400000 ms; 0 for never",
        list: false,
        set: |config, values| {
            let value = one(values)?;
            let bounds = if value.trim() == "0" { 0..=0 } else { 1_000..=86_400_000 };
            number(value, bounds).map(|value| config.stalled_ms = value)
        },
        show: |config| Some(config.stalled_ms.to_string()),
    },
    Setting {
        key: "limits.inbox_messages_max",
        about: "Messages waiting in one inbox, 1 to 100000000",
        list: false,
        set: |config, values| {
            number(one(values)?, 1..=100_000_000).map(|value| config.inbox_messages_max = value)
        },
        show: |config| Some(config.inbox_messages_max.to_string()),
    },
    Setting {
        key: "limits.inbox_bytes_max",
        about: "Bytes waiting in one inbox, 1MiB to 1TiB",
        list: false,
        set: |config, values| {
            size(one(values)?, 1 << 20..=1 << 40).map(|value| config.inbox_bytes_max = value)
        },
        show: |config| Some(config.inbox_bytes_max.to_string()),
    },
    Setting {
        key: "limits.retention_days",
        about: "Days an undelivered message is kept, 1 to 3650",
        list: false,
        set: |config, values| {
            number(one(values)?, 1..=3650).map(|value| config.retention_days = value)
        },
        show: |config| Some(config.retention_days.to_string()),
    },
    Setting {
        key: "limits.pairs_kept_days",
        about: "Days an inbox remembers the numbers of a device that sends it nothing new, 1 to 3650",
        list: false,
        set: |config, values| {
            number(one(values)?, 1..=3650).map(|value| config.pairs_kept_days = value)
        },
        show: |config| Some(config.pairs_kept_days.to_string()),
    },
    Setting {
        key: "storage.tail_bytes",
        about: "The log's window in memory per shard, a power of two, 1MiB to 1GiB",
        list: false,
        set: |config, values| {
            power_of_two(one(values)?, plan::TAIL_BYTES_MIN..=1 << 30)
                .map(|value| config.tail_bytes = Some(value))
        },
        show: |config| config.tail_bytes.map(|value| value.to_string()),
    },
    Setting {
        key: "storage.segment_bytes",
        about: "Size of a log segment of a new data directory, a power of two, 1MiB to 1GiB; at most 64MiB by default",
        list: false,
        set: |config, values| {
            power_of_two(one(values)?, plan::SEGMENT_BYTES_MIN..=plan::SEGMENT_BYTES_MAX)
                .map(|value| config.segment_bytes = Some(value))
        },
        show: |config| config.segment_bytes.map(|value| value.to_string()),
    },
    Setting {
        key: "debug.without",
        about: "Ways of newer kernels and disks to do without, for tests and around defects: all, or some of the names below",
        list: true,
        set: |config, values| Without::named(values).map(|value| config.without = value),
        show: |config| {
            let names: Vec<String> = config.without.names().iter().map(quoted).collect();
            Some(format!("[{}]", names.join(", ")))
        },
    },
    Setting {
        key: "debug.progress_ms",
        about: "Time between two lines of the log that say how far a start is, 0 to 60000 ms; 0 says every step, for tests",
        list: false,
        set: |config, values| {
            number(one(values)?, 0..=60_000).map(|value| config.progress_ms = value)
        },
        show: |config| Some(config.progress_ms.to_string()),
    },
];

const LEVELS: [(&str, LogLevel); 5] = [
    ("error", LogLevel::Error),
    ("warn", LogLevel::Warn),
    ("info", LogLevel::Info),
    ("debug", LogLevel::Debug),
    ("trace", LogLevel::Trace),
];

const FORMATS: [(&str, LogFormat); 2] = [("text", LogFormat::Text), ("json", LogFormat::Json)];

/// The table as `--help` shows it.
pub(crate) fn help() -> String {
    let default = Config::default();
    let mut out = String::from("Settings (file key, environment variable, default):\n");
    for setting in &SETTINGS {
        let value = (setting.show)(&default).unwrap_or_else(|| "chosen by the plan".to_owned());
        out.push_str(&format!(
            "  {}  {}  {value}\n      {}\n",
            setting.key,
            setting.variable(),
            setting.about
        ));
    }
    out.push_str("What debug.without knows:\n");
    for (name, about) in without::NAMES {
        out.push_str(&format!("  {name:<18}{about}\n"));
    }
    out
}

/// The table as docs/CONFIG.md shows it.
#[cfg(test)]
pub(crate) fn reference(flag: impl Fn(&Setting) -> Option<String>) -> String {
    let default = Config::default();
    let mut out = String::from(
        "| key | variable | flag | default | meaning and bounds |\n|---|---|---|---|---|\n",
    );
    for setting in &SETTINGS {
        let value = (setting.show)(&default);
        out.push_str(&format!(
            "| `{}` | `{}` | {} | {} | {} |\n",
            setting.key,
            setting.variable(),
            flag(setting).map_or(String::new(), |flag| format!("`--{flag}`")),
            value.map_or("chosen by the plan".to_owned(), |value| format!("`{value}`")),
            setting.about
        ));
    }
    out.push_str("\n`debug.without` knows `all` and:\n\n| name | what is done the older way without it |\n|---|---|\n");
    for (name, about) in without::NAMES {
        out.push_str(&format!("| `{name}` | {about} |\n"));
    }
    out
}

fn one(values: &[String]) -> Result<&str, String> {
    match values {
        [value] => Ok(value),
        _ => Err(format!("one value is expected, not {}", values.len())),
    }
}

fn number<T: FromStr + PartialOrd + Display>(
    text: &str,
    bounds: RangeInclusive<T>,
) -> Result<T, String> {
    match text.trim().replace('_', "").parse::<T>() {
        Ok(value) if bounds.contains(&value) => Ok(value),
        _ => Err(format!(
            "'{text}' is not a whole number from {} to {}",
            bounds.start(),
            bounds.end()
        )),
    }
}

fn size(text: &str, bounds: RangeInclusive<u64>) -> Result<u64, String> {
    let value = parse_bytes(text)?;
    if bounds.contains(&value) {
        Ok(value)
    } else {
        Err(format!(
            "'{text}' is not between {} and {}",
            bytes(*bounds.start()),
            bytes(*bounds.end())
        ))
    }
}

fn power_of_two(text: &str, bounds: RangeInclusive<u64>) -> Result<u64, String> {
    let value = size(text, bounds)?;
    if value.is_power_of_two() {
        Ok(value)
    } else {
        Err(format!("'{text}' is not a power of two, such as 8MiB"))
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let parsed = text.trim().parse();
    parsed.map_err(|_| {
        format!("'{text}' is not an address with a port, such as 127.0.0.1:8085 or [::1]:8085")
    })
}

fn choice<T: Copy>(text: &str, known: &[(&str, T)]) -> Result<T, String> {
    match known.iter().find(|(name, _)| name.eq_ignore_ascii_case(text.trim())) {
        Some((_, value)) => Ok(*value),
        None => {
            let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            Err(format!("'{text}' is none of {}", names.join(", ")))
        }
    }
}

fn name_of<T: PartialEq>(value: T, known: &[(&str, T)]) -> Option<String> {
    known.iter().find(|(_, candidate)| *candidate == value).map(|(name, _)| quoted(name))
}

fn quoted(value: &(impl Display + ?Sized)) -> String {
    toml::Value::String(value.to_string()).to_string()
}
