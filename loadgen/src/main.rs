//! iris-loadgen: an open-loop load generator that verifies every acknowledged
//! message.
//!
//! The process that is started only leads: worker processes (this binary once
//! more) hold the connections, so that no limit per process stands in the way.
//! A message travels: `plan` says when, `drive` hands it to a `user`'s session,
//! `socket` carries it, `intake` enters what comes back into the `verify` book
//! and the `figures`, `crowd` adds them up, `report` prints.

mod acts;
mod args;
mod chaos;
mod scenario;
mod spec;

mod plan;

mod body;

mod drive;

mod dial;
mod foreign;
mod socket;
mod user;

mod intake;

mod verify;

mod figures;

mod admin;
mod burn;
mod crowd;
mod probe;
mod report;
mod spread;

mod clock;
mod cpu_clock;
mod signals;
mod slice;

use std::fs;
use std::io::{self, Write, stdout};
use std::num::NonZeroU64;
use std::os::fd::AsFd;
use std::process::ExitCode;

use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::args::Args;
use crate::spec::Spec;

/// The first argument of a worker process.
const WORKER_ARG: &str = "--worker";

const VERIFICATION_FAILED: u8 = 1;
const WRONG_USAGE: u8 = 2;
const CANNOT_CONNECT: u8 = 4;

fn main() -> ExitCode {
    raise_limits();
    if std::env::args().nth(1).as_deref() == Some(WORKER_ARG) {
        return worker();
    }
    let args = Args::parse();
    if let Err(sentence) = args.check() {
        eprintln!("iris-loadgen: {sentence}");
        return ExitCode::from(WRONG_USAGE);
    }
    if let Err(sentence) = can_report(&args) {
        eprintln!("iris-loadgen: {sentence}");
        return ExitCode::from(WRONG_USAGE);
    }
    let outcome = match crowd::run(&args) {
        Ok(outcome) => outcome,
        Err(sentence) => {
            eprintln!("iris-loadgen: {sentence}");
            return ExitCode::from(CANNOT_CONNECT);
        }
    };
    // `head` may be all that reads it, and the files are still to be written.
    let _ = stdout().write_all(report::table(&args, &outcome).as_bytes());
    if let Err(error) = write_files(&args, &outcome) {
        eprintln!("iris-loadgen: the results cannot be written: {error}");
        return ExitCode::from(WRONG_USAGE);
    }
    if report::failures(&args, &outcome.figures).is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(VERIFICATION_FAILED)
    }
}

/// What a run brings is not lost to a name that was wrong from the start.
fn can_report(args: &Args) -> Result<(), String> {
    if let Some(path) = &args.json {
        let was_there = path.exists();
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .and_then(|_| if was_there { Ok(()) } else { fs::remove_file(path) })
            .map_err(|error| format!("--json {} cannot be written: {error}", path.display()))?;
    }
    if let Some(prefix) = &args.hgrm {
        let dir = prefix.parent().filter(|dir| !dir.as_os_str().is_empty());
        if dir.is_some_and(|dir| !dir.is_dir()) {
            return Err(format!("--hgrm {}: no such directory", prefix.display()));
        }
    }
    if let Some(pid) = args.server_pid
        && !fs::exists(format!("/proc/{pid}")).unwrap_or(false)
    {
        return Err(format!("--server-pid {pid}: no such process"));
    }
    Ok(())
}

fn write_files(args: &Args, outcome: &crowd::Outcome) -> io::Result<()> {
    if let Some(path) = &args.json {
        fs::write(path, format!("{:#}\n", report::json(args, outcome)))?;
    }
    if let Some(prefix) = &args.hgrm {
        report::write_hgrm(prefix, &outcome.figures)?;
    }
    Ok(())
}

/// A worker process: its spec is the first line of its input.
fn worker() -> ExitCode {
    signals::leave_to_parent();
    match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("iris-loadgen worker: {error}");
            ExitCode::FAILURE
        }
    }
}

fn work() -> io::Result<()> {
    let spec: Spec = serde_json::from_str(&first_line()?)?;
    if let Some(id) = spec.core {
        core_affinity::set_for_current(core_affinity::CoreId { id });
    }
    slice::shorten();
    // The default slack of 50 µs would be lateness against the schedule.
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
    drive::run(&spec, io::stdin().as_fd(), &mut io::stdout().lock())
}

/// Reads byte by byte past no newline: what follows belongs to the worker's
/// own reading of the descriptor.
fn first_line() -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while rustix::io::read(io::stdin().as_fd(), &mut byte)? == 1 && byte != *b"\n" {
        line.push(byte[0]);
    }
    String::from_utf8(line).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Takes as many descriptors as the hard limit allows; what that is, decides
/// how many workers there are.
fn raise_limits() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // Without it there are fewer descriptors, and dialing says so.
    let _kept = setrlimit(Resource::Nofile, raised);
}
