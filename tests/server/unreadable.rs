//! A disk that refuses some bytes of a file: for a process into which `refusing`
//! is loaded before anything else, because no file system can be asked for it.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Output;

use super::files::command;
use super::preload;

/// Builds what is to be loaded, in this directory.
pub fn build(dir: &Path) -> PathBuf {
    preload::build("refusing", dir)
}

/// Runs a command of the binary, to which these bytes of a file are refused.
pub fn iris_shard(
    library: &Path,
    (path, bytes): (&Path, &Range<u64>),
    name: &str,
    data_dir: &Path,
    arguments: &[&str],
) -> Output {
    command(name, data_dir, arguments)
        .env("LD_PRELOAD", library)
        .env("REFUSED_FILE", path)
        .env("REFUSED_BYTES", format!("{} {}", bytes.start, bytes.end))
        .output()
        .expect("the binary runs")
}
