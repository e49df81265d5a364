//! The command line: subcommands and flags, and their help.
//!
//! Values are passed on as typed; the configuration reads them like those of
//! any other source, so that bounds and messages are the same everywhere.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::{Flag, settings};
use crate::inspect;

const EXAMPLES: &str = "\
Examples:
  iris-shard                                   start on loopback, data in ./iris-data
  iris-shard --data-dir /var/lib/iris --listen 127.0.0.1:8085 --listen 127.0.0.1:8086
  iris-shard --config iris.toml --set limits.conns_max=100000
  iris-shard --config iris.toml --check-config show every setting and where it came from
  iris-shard doctor                            what this machine allows, and what would lift it
  iris-shard inspect --data-dir /var/lib/iris  what is in a data directory, server or not
  iris-shard repair --data-dir /var/lib/iris   what is damaged there; changes nothing without --yes

Exit codes: 0 fine, 1 a defect, 2 command line or configuration, 3 data directory,
4 network, 5 machine, 74 the disk failed while serving: start again; or took no
result of a command.";

/// A messaging engine: one binary turns a Linux host into a messaging node.
#[derive(Debug, Parser)]
#[command(name = "iris-shard", version, after_help = EXAMPLES, after_long_help = long_help())]
pub(crate) struct Cli {
    /// What to do; without one, the server runs.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    /// Settings given as flags.
    #[command(flatten)]
    pub(crate) flags: Flags,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum Command {
    /// Run the server (this is also what happens without a command)
    Run,
    /// Show the machine, the plan for it, and the commands that lift each limit
    Doctor {
        /// Print JSON for a program
        #[arg(long)]
        json: bool,
    },
    /// Look into a data directory, changing nothing: segments, snapshots, what waits
    Inspect {
        /// One user's inbox: devices, cursors, messages that wait
        #[arg(long, value_name = "NAME", conflicts_with = "record")]
        inbox: Option<String>,
        /// Messages of the inbox to show
        #[arg(long, value_name = "N", default_value_t = 100, requires = "inbox")]
        limit: usize,
        /// One record of the log, by its shard and position
        #[arg(long, value_name = "SHARD:POSITION", value_parser = inspect::place)]
        record: Option<(u16, u64)>,
        /// Print JSON for a program
        #[arg(long)]
        json: bool,
        /// Say on stderr how far it is, as on a terminal
        #[arg(long)]
        progress: bool,
    },
    /// Say what is damaged in a data directory and what that costs; repair it with --yes
    Repair {
        /// Do it. Nothing is deleted: what is cut out is moved aside
        #[arg(long)]
        yes: bool,
        /// Print JSON for a program
        #[arg(long)]
        json: bool,
        /// Say on stderr how far it is, as on a terminal
        #[arg(long)]
        progress: bool,
    },
}

/// Settings given as flags.
#[derive(Debug, Default, Args)]
pub(crate) struct Flags {
    /// Configuration file (TOML); also IRIS_CONFIG
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Directory of the logs, made at the first start [default: ./iris-data]
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<String>,
    /// Address for clients; may be given several times [default: 127.0.0.1:8085]
    #[arg(long, global = true, value_name = "ADDR:PORT")]
    listen: Vec<String>,
    /// Address of the admin HTTP [default: 127.0.0.1:8084]
    #[arg(long, global = true, value_name = "ADDR:PORT")]
    admin: Option<String>,
    /// Number of shards, may exceed the cores [default: one for each core]
    #[arg(long, global = true, value_name = "N")]
    shards: Option<String>,
    /// Connections in the rings' own tables: auto, on or off [default: auto]
    #[arg(long, global = true, value_name = "WHEN")]
    direct_descriptors: Option<String>,
    /// error, warn, info, debug or trace [default: info]
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<String>,
    /// text or json [default: text]
    #[arg(long, global = true, value_name = "FORMAT")]
    log_format: Option<String>,
    /// Any setting by its file key; may be given several times
    #[arg(long, global = true, value_name = "KEY=VALUE", value_parser = pair)]
    set: Vec<(String, String)>,
    /// Print the effective settings as TOML with their origins, then exit
    #[arg(long, global = true)]
    pub(crate) check_config: bool,
}

impl Flags {
    /// The settings that were given, in the order in which they count.
    pub(crate) fn settings(&self) -> Vec<Flag> {
        let named = [
            ("data_dir", "--data-dir", &self.data_dir),
            ("admin", "--admin", &self.admin),
            ("shards", "--shards", &self.shards),
            ("direct_descriptors", "--direct-descriptors", &self.direct_descriptors),
            ("log.level", "--log-level", &self.log_level),
            ("log.format", "--log-format", &self.log_format),
        ];
        let mut given: Vec<Flag> = Vec::new();
        for (key, value) in &self.set {
            given.push(flag(key, &format!("--set {key}"), vec![value.clone()]));
        }
        for (key, typed, value) in named {
            if let Some(value) = value {
                given.push(flag(key, typed, vec![value.clone()]));
            }
        }
        if !self.listen.is_empty() {
            given.push(flag("listen", "--listen", self.listen.clone()));
        }
        given
    }
}

fn flag(key: &str, typed: &str, values: Vec<String>) -> Flag {
    Flag { key: key.to_owned(), typed: typed.to_owned(), values }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) =
        text.split_once('=').ok_or("KEY=VALUE is expected, such as limits.conns_max=5000")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

fn long_help() -> String {
    format!("{}\n{EXAMPLES}", settings::help())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_may_stand_before_or_after_the_command() {
        for line in
            [&["iris-shard", "--shards", "3", "run"], &["iris-shard", "run", "--shards", "3"]]
        {
            let cli = Cli::try_parse_from(line).unwrap();
            assert_eq!(cli.command, Some(Command::Run));
            assert_eq!(cli.flags.settings(), [flag("shards", "--shards", vec!["3".to_owned()])]);
        }
    }

    /// Every flag, those of the commands included.
    fn flags() -> Vec<String> {
        let cli = Cli::command();
        let commands = [&cli].into_iter().chain(cli.get_subcommands());
        let arguments = commands.flat_map(clap::Command::get_arguments);
        let mut flags: Vec<String> =
            arguments.filter_map(|it| it.get_long().map(str::to_owned)).collect();
        flags.extend(["help", "version"].map(str::to_owned));
        flags
    }

    fn document(name: &str) -> String {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        std::fs::read_to_string(path).expect(name)
    }

    /// `IRIS_BLESS=1` writes the table anew.
    #[test]
    fn the_reference_holds_every_setting() {
        const MARKS: [&str; 2] = ["<!-- settings -->", "<!-- /settings -->"];
        let named = flags();
        let flag = |setting: &settings::Setting| {
            let flag = setting.key.replace(['.', '_'], "-");
            named.contains(&flag).then_some(flag)
        };
        let text = document("docs/CONFIG.md");
        let (before, rest) = text.split_once(MARKS[0]).expect("a mark");
        let (_, after) = rest.split_once(MARKS[1]).expect("a mark");
        let [begin, end] = MARKS;
        let wanted = format!("{before}{begin}\n\n{}\n{end}{after}", settings::reference(flag));
        if std::env::var_os("IRIS_BLESS").is_some() {
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/CONFIG.md");
            std::fs::write(path, wanted).expect("the reference");
        } else {
            assert!(text == wanted, "docs/CONFIG.md is old; IRIS_BLESS=1 writes it anew");
        }
    }

    /// Whatever a document tells to type is there.
    #[test]
    fn the_documents_name_flags_that_exist() {
        let known = flags();
        let names = ["README.md", "docs/CONFIG.md", "docs/DURABILITY.md", "docs/ARCHITECTURE.md"];
        for name in names {
            let text = document(name);
            let commands = text.split(['`', '\n']).filter(|it| it.starts_with("iris-shard"));
            for command in commands {
                let typed = command.split('#').next().unwrap_or_default().split_whitespace();
                for flag in typed.filter_map(|word| word.strip_prefix("--")) {
                    let flag = flag.split('=').next().unwrap_or_default();
                    assert!(known.iter().any(|it| it == flag), "{name}: --{flag} in '{command}'");
                }
            }
        }
    }

    #[test]
    fn a_named_flag_counts_more_than_set() {
        let cli =
            Cli::try_parse_from(["iris-shard", "--shards", "3", "--set", "shards=4"]).unwrap();
        let last = cli.flags.settings().pop().unwrap();
        assert_eq!(last.typed, "--shards");
        assert!(Cli::try_parse_from(["iris-shard", "--set", "shards"]).is_err());
    }
}
