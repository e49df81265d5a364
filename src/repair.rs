//! `iris-shard repair`: what is damaged in a data directory and what that costs,
//! in exact words; and, only when told to, a directory that a server starts on.
//!
//! Every message outside the damaged bytes is kept. What is cut out is moved
//! aside, never deleted. Shard by shard: read whatever is left (`finding`), copy
//! messages out of the segments that are given up, take a snapshot after them,
//! move the rest aside (`mend`).

mod finding;
mod mend;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use wal::disk::{DataDir, DataDirError, manifest_copy};

use crate::exit::Exit;
use crate::inspect::time;
use finding::Finding;

/// Looks, tells, and with `yes` does it. The code says whether the directory
/// needs a repair.
///
/// # Errors
/// Why it cannot be looked at, or what went wrong while it was repaired.
pub(crate) fn run(data_dir: &Path, yes: bool) -> Result<ExitCode, Exit> {
    let now_ms = now_ms();
    let aside = aside_dir(data_dir, now_ms);
    let data = match DataDir::open_as_it_is(data_dir) {
        Ok(data) => data,
        Err(error @ (DataDirError::Manifest { .. } | DataDirError::Foreign { .. }))
            if manifest_copy::has_copy(data_dir) =>
        {
            return restore_manifest(data_dir, &aside, yes, &error);
        }
        Err(error) => return Err(Exit::data(error.to_string())),
    };
    refuse_links(&data)?;
    let mut damaged = 0;
    let mut report = String::new();
    // Only what is about to be written to must say that this version did.
    let mut data = Some(data);
    for id in 0..data.as_ref().expect("held until the end").manifest().shards {
        let held = data.as_ref().expect("held until the end");
        let finding = Finding::look(held, id).map_err(|error| Exit::data(error.to_string()))?;
        let text = finding.text();
        print!("{text}");
        report.push_str(&text);
        if finding.is_healthy() {
            continue;
        }
        damaged += 1;
        if yes {
            let writable = data.take().expect("held until the end").begin_to_write();
            data = Some(writable.map_err(|error| Exit::data(error.to_string()))?);
            let to = aside.join(format!("shard-{id:04}"));
            let done = finding.mend(&to, now_ms)?;
            print!("{done}");
            report.push_str(&done);
        }
    }
    Ok(conclude(data_dir, &aside, damaged, yes, &report))
}

/// The manifest comes first: without it nothing else can be looked at.
fn restore_manifest(
    data_dir: &Path,
    aside: &Path,
    yes: bool,
    error: &DataDirError,
) -> Result<ExitCode, Exit> {
    println!("{error}");
    if !yes {
        println!(
            "\nThe copy is whole, and nothing is lost by using it. Nothing was changed; \
             `iris-shard repair --yes` puts it in the manifest's place."
        );
        return Ok(ExitCode::from(3));
    }
    manifest_copy::restore(data_dir, aside).map_err(|error| Exit::data(error.to_string()))?;
    println!(
        "\nThe copy is the manifest now. Whether anything else is damaged `iris-shard repair` \
         tells when it is run again."
    );
    Ok(ExitCode::SUCCESS)
}

fn conclude(data_dir: &Path, aside: &Path, damaged: usize, yes: bool, report: &str) -> ExitCode {
    let path = data_dir.display();
    if damaged == 0 {
        println!("{path} is healthy: nothing to repair, nothing was changed");
        return ExitCode::SUCCESS;
    }
    if !yes {
        println!(
            "\nNothing was changed. Copy {path} somewhere safe first and look at the disk; if the \
             damaged files cannot be brought back from a backup, `iris-shard repair --yes` does \
             what is said above and deletes nothing."
        );
        return ExitCode::from(3);
    }
    // For whoever asks later; the repair is done without it.
    let _ = keep_report(aside, report);
    println!("\nRepaired: a server starts on {path} now.");
    ExitCode::SUCCESS
}

fn keep_report(aside: &Path, report: &str) -> std::io::Result<()> {
    fs::create_dir_all(aside)?;
    let mut file = fs::File::create(aside.join("report.txt"))?;
    file.write_all(report.as_bytes())?;
    file.sync_all()
}

fn refuse_links(data: &DataDir) -> Result<(), Exit> {
    let links = (0..data.manifest().shards).flat_map(|id| data.shard(id).links());
    match links.collect::<Vec<PathBuf>>().first() {
        None => Ok(()),
        Some(path) => Err(Exit::data(format!(
            "{} is a symbolic link; repair moves files and must not leave behind what it points \
             to: put the file or directory itself there",
            path.display()
        ))),
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A name that nothing has yet.
fn aside_dir(data_dir: &Path, now_ms: u64) -> PathBuf {
    let stamp: String = time(now_ms).chars().filter(|c| !"-:.".contains(*c)).collect();
    data_dir.join(format!("damaged-{stamp}"))
}
