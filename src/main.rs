//! The iris-shard binary: arguments → configuration → tuning → boot.

// They end the process when nobody reads: see `terminal`.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod admin;
mod boot;
mod cli;
mod config;
mod exit;
mod heap;
mod inspect;
mod kept;
mod log;
mod progress;
mod pulse;
mod read_back;
mod repair;
mod reshard;
mod signal;
mod terminal;
mod turn;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, io};

use clap::Parser;
use tuning::doctor::Report;
use tuning::{Machine, Plan, Wishes, Written, plan};
use wal::disk::{DataDir, DataDirError};
use wal::manifest::Manifest;

use cli::{Cli, Command};
use config::{Config, Loaded};
use exit::Exit;
use inspect::Subject;
use progress::Teller;
use signal::Signals;

fn main() -> ExitCode {
    heap::return_large_blocks();
    match start(&Cli::parse()) {
        Ok(code) => code,
        Err(exit) => {
            for line in exit.sentence.lines() {
                terminal::tell(&format!("iris-shard: {line}"));
            }
            ExitCode::from(&exit)
        }
    }
}

fn start(cli: &Cli) -> Result<ExitCode, Exit> {
    signal::make_large_files_an_error().map_err(no_signals)?;
    let file = cli.flags.config.clone().or_else(|| env::var_os("IRIS_CONFIG").map(PathBuf::from));
    let environment = env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let loaded = config::load(file.as_deref(), environment, &cli.flags.settings())?;
    if cli.flags.check_config {
        terminal::show(&loaded.toml())?;
        return Ok(ExitCode::SUCCESS);
    }
    match cli.command {
        Some(Command::Doctor { json }) => doctor(&loaded.config, json),
        Some(Command::Inspect { ref inbox, limit, record, json, progress }) => {
            let subject = match (inbox, record) {
                (Some(name), _) => Subject::Inbox { name: name.clone(), limit },
                (None, Some((shard, lsn))) => Subject::Record(shard, lsn),
                (None, None) => Subject::Directory,
            };
            inspect::run(&loaded.config.data_dir, &subject, json, &mut Teller::to_stderr(progress))
        }
        Some(Command::Repair { yes, json, progress }) => {
            repair::run(&loaded.config.data_dir, repair::Wish { yes, json, progress })
        }
        Some(Command::Run) | None => run(&loaded),
    }
}

/// What this machine is and what would run on it; and what the disk said when
/// it was measured.
fn tune(config: &Config) -> (Machine, Plan, io::Result<()>) {
    let mut machine = Machine::probe();
    machine.do_without(&config.without);
    let disk = machine.probe_disk(&config.data_dir);
    let wishes = Wishes { written: written(&config.data_dir), ..config.wishes() };
    let plan = plan(&machine, &wishes);
    (machine, plan, disk)
}

/// What the data directory was written with. A manifest that cannot be read or
/// says something impossible is refused when the directory is opened, in words
/// of its own.
fn written(data_dir: &Path) -> Option<Written> {
    let manifest = Manifest::load(data_dir).ok()?;
    let sizes = plan::SEGMENT_BYTES_MIN..=plan::SEGMENT_BYTES_MAX;
    sizes
        .contains(&manifest.segment_bytes)
        .then_some(Written { shards: manifest.shards, segment_bytes: manifest.segment_bytes })
}

fn doctor(config: &Config, json: bool) -> Result<ExitCode, Exit> {
    let (machine, plan, disk) = tune(config);
    let path = &config.data_dir;
    let data =
        DataDir::check(path).and_then(|()| disk.map_err(|error| DataDirError::making(path, error)));
    let report = Report::new(&machine, &plan, data.err().map(|error| error.to_string()));
    terminal::show(&if json { report.json() } else { report.text() })?;
    Ok(ExitCode::from(report.exit_code()))
}

fn run(loaded: &Loaded) -> Result<ExitCode, Exit> {
    // A directory that cannot be written to is refused when it is opened, in the
    // data directory's own words.
    let (machine, plan, _) = tune(&loaded.config);
    if !plan.stops.is_empty() {
        return Err(stopped(&plan));
    }
    // Before the first thread: each inherits what is blocked.
    let signals = Signals::block().map_err(no_signals)?;
    let _log = log::start(&loaded.config).map_err(|error| boot::cannot_thread(&error))?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    for applied in tuning::apply::apply(&plan) {
        match applied.result {
            Ok(value) => tracing::debug!(value, "{}", applied.what),
            Err(sentence) => tracing::warn!("{}: {sentence}", applied.what),
        }
    }
    tell(&plan);
    boot::run(&loaded.config, &machine, &plan, signals)?;
    Ok(ExitCode::SUCCESS)
}

fn no_signals(error: io::Error) -> Exit {
    Exit::internal(format!("cannot set up signal handling: {error}"))
}

/// The sentence for a plan that cannot run.
fn stopped(plan: &Plan) -> Exit {
    let mut lines = Vec::new();
    for stop in &plan.stops {
        lines.push(stop.sentence.clone());
        lines.extend(stop.lift.iter().map(|lift| format!("  {lift}")));
    }
    lines.push("`iris-shard doctor` shows the whole plan".to_owned());
    Exit::machine(lines.join("\n"))
}

/// What was chosen and why, briefly; the doctor says all of it.
fn tell(plan: &Plan) {
    for reason in &plan.reasons {
        match reason.what.as_str() {
            "shards" | "memory" | "connections" => {
                tracing::info!("{}: {} ({})", reason.what, reason.chosen, reason.because);
            }
            _ => tracing::debug!("{}: {} ({})", reason.what, reason.chosen, reason.because),
        }
    }
    for limit in &plan.limits {
        tracing::info!(
            "limited: {}: {}; `iris-shard doctor` says how to lift it",
            limit.what,
            limit.holds_at
        );
    }
}
