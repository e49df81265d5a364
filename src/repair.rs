//! `iris-shard repair`: what is damaged in a data directory and what that costs,
//! in exact words; and, only when told to, a directory that a server starts on.
//!
//! Every message outside the damaged bytes is kept. What is cut out is moved
//! aside, never deleted. Shard by shard: read whatever is left (`finding`), give
//! segments that were mixed up their names, copy messages out of the segments that
//! are given up, take a snapshot after them, move the rest aside (`mend`), and read
//! it back as a start would.

mod finding;
mod mend;
mod report;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use wal::disk::{DataDir, DataDirError, manifest_copy};
use wire::id::ShardId;

use crate::exit::Exit;
use crate::inspect::{count, time, to_json};
use crate::progress::Teller;
use crate::read_back::waits_for;
use crate::terminal;
use finding::Finding;
use report::{DirectoryReport, ShardReport};

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    /// Do it.
    pub(crate) yes: bool,
    /// Print JSON for a program.
    pub(crate) json: bool,
    /// Say how far it is, terminal or not.
    pub(crate) progress: bool,
}

/// Looks, tells, and with `yes` does it. The code says whether the directory
/// needs a repair.
///
/// # Errors
/// Why it cannot be looked at, or what went wrong while it was repaired.
pub(crate) fn run(data_dir: &Path, wish: Wish) -> Result<ExitCode, Exit> {
    let now_ms = now_ms();
    let aside = aside_dir(data_dir, now_ms);
    let mut told = Told::new(data_dir, wish.json);
    match DataDir::open_as_it_is(data_dir) {
        Ok(data) => {
            refuse_links(&data)?;
            data.await_writes(&mut |path| terminal::tell(&waits_for(path)))
                .map_err(|error| Exit::data(error.to_string()))?;
            look_and_mend(data, (&aside, now_ms), wish, &mut told)?;
            told.conclude(data_dir, &aside, wish.yes);
        }
        Err(error @ (DataDirError::Manifest { .. } | DataDirError::Foreign { .. }))
            if manifest_copy::has_copy(data_dir) =>
        {
            restore_manifest(data_dir, &aside, wish.yes, &error, &mut told)?;
        }
        Err(error) => return Err(Exit::data(error.to_string())),
    }
    if wish.json {
        terminal::show(&to_json(&told.report))?;
    }
    Ok(ExitCode::from(if told.report.healthy { 0 } else { 3 }))
}

/// Shard by shard.
fn look_and_mend(
    data: DataDir,
    (aside, now_ms): (&Path, u64),
    wish: Wish,
    told: &mut Told,
) -> Result<(), Exit> {
    let mut teller = Teller::to_stderr(wish.progress);
    // Only what is about to be written to must say that this version did.
    let mut data = Some(data);
    for id in 0..data.as_ref().expect("held until the end").manifest().shards {
        let held = data.as_ref().expect("held until the end");
        let mut finding = look(held, id, &mut teller)?;
        told.say(&finding.text());
        let mut report = ShardReport::new(&finding);
        if !finding.is_healthy() {
            told.damaged += 1;
            if wish.yes {
                let writable = data.take().expect("held until the end").begin_to_write();
                let held = data.insert(writable.map_err(|error| Exit::data(error.to_string()))?);
                if !finding.kept.misnamed.is_empty() {
                    finding.rename()?;
                    let renamed = finding.kept.misnamed.len() as u64;
                    told.say(&format!("  Done: {} segments have their names\n", count(renamed)));
                    report.renamed(renamed);
                    finding = look(held, id, &mut teller)?;
                }
                if !finding.is_healthy() {
                    let to = aside.join(format!("shard-{id:04}"));
                    let mended = finding.mend(&to, now_ms, &mut teller)?;
                    told.say(&mended.text(&to));
                    report.mended(&mended);
                }
                let still_refused = Finding::try_start(held, id, &mut teller).err();
                told.check(id, still_refused.as_deref());
                report.checked(still_refused);
            }
        }
        told.report.shards.push(report);
    }
    Ok(())
}

fn look(data: &DataDir, id: ShardId, teller: &mut Teller) -> Result<Finding, Exit> {
    Finding::look(data, id, teller).map_err(|error| Exit::data(error.to_string()))
}

/// The manifest comes first: without it nothing else can be looked at.
fn restore_manifest(
    data_dir: &Path,
    aside: &Path,
    yes: bool,
    error: &DataDirError,
    told: &mut Told,
) -> Result<(), Exit> {
    told.report.manifest_refused = Some(error.to_string());
    told.say(&format!("{error}\n"));
    if !yes {
        told.say(
            "\nThe copy is whole, and nothing is lost by using it. Nothing was changed; \
             `iris-shard repair --yes` puts it in the manifest's place.\n",
        );
        return Ok(());
    }
    manifest_copy::restore(data_dir, aside).map_err(|error| Exit::data(error.to_string()))?;
    told.repaired(aside);
    told.say(
        "\nThe copy is the manifest now. Whether anything else is damaged `iris-shard repair` \
         tells when it is run again.\n",
    );
    Ok(())
}

/// What has been said, to people and for programs.
struct Told {
    json: bool,
    damaged: usize,
    /// Shards that were mended and that a start refuses all the same.
    refused: usize,
    /// For whoever asks later.
    text: String,
    is_heard: bool,
    report: DirectoryReport,
}

impl Told {
    fn new(data_dir: &Path, json: bool) -> Told {
        let report = DirectoryReport {
            directory: data_dir.display().to_string(),
            healthy: false,
            repaired: false,
            manifest_refused: None,
            aside: None,
            shards: Vec::new(),
        };
        Told { json, damaged: 0, refused: 0, text: String::new(), is_heard: true, report }
    }

    fn say(&mut self, text: &str) {
        self.text.push_str(text);
        // Nobody hears the rest either.
        self.is_heard = self.is_heard && (self.json || terminal::mention(text));
    }

    /// What a start says of a shard that was mended.
    fn check(&mut self, id: ShardId, refusal: Option<&str>) {
        if let Some(refusal) = refusal {
            self.refused += 1;
            self.say(&format!(
                "  Shard {id} was read back, and a start is still refused: {refusal}\n"
            ));
        }
    }

    fn repaired(&mut self, aside: &Path) {
        self.report.healthy = self.refused == 0;
        self.report.repaired = true;
        self.report.aside = Some(aside.display().to_string());
    }

    fn conclude(&mut self, data_dir: &Path, aside: &Path, yes: bool) {
        let path = data_dir.display();
        if self.damaged == 0 {
            self.report.healthy = true;
            self.say(&format!("{path} is healthy: nothing to repair, nothing was changed\n"));
        } else if !yes {
            self.say(&format!(
                "\nNothing was changed. Copy {path} somewhere safe first and look at the disk; if the \
                 damaged files cannot be brought back from a backup, `iris-shard repair --yes` does \
                 what is said above and deletes nothing.\n"
            ));
        } else {
            // The repair is done without it.
            let _ = keep_report(aside, &self.text);
            self.repaired(aside);
            self.say(&match self.refused {
                0 => format!("\nRepaired: a server starts on {path} now.\n"),
                _ => format!(
                    "\nNot repaired: a server does not start on {path}. What was moved is in {}; \
                     run `iris-shard repair` again, and please report this with the directory.\n",
                    aside.display()
                ),
            });
        }
    }
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
    let names = (1..).map(|n| match n {
        1 => format!("damaged-{stamp}"),
        _ => format!("damaged-{stamp}-{n}"),
    });
    let mut paths = names.map(|name| data_dir.join(name));
    paths.find(|path| !path.exists()).expect("there are ever more names")
}
