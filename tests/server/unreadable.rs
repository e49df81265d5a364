//! A disk that refuses some bytes of a file: for a process into which `refusing`
//! is loaded before anything else, because no file system can be asked for it.

use std::env;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::files::command;

/// Builds what is to be loaded, in this directory.
pub fn build(dir: &Path) -> PathBuf {
    let library = dir.join("refusing.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/server/refusing.rs");
    let compiler = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut rustc = Command::new(compiler);
    rustc.args(["--edition", "2024", "--crate-type", "cdylib", "-o"]).arg(&library).arg(source);
    let built = rustc.output().expect("the compiler runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    library
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
