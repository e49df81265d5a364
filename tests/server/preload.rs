//! Libraries that stand in for functions of the C library, in a process into
//! which they are loaded before anything else: for what no file system and no
//! clock can be asked for.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds the library of this name, whose source stands beside this file, in a
/// directory.
pub fn build(name: &str, dir: &Path) -> PathBuf {
    let library = dir.join(format!("{name}.so"));
    let sources = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/server"));
    let compiler = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut rustc = Command::new(compiler);
    rustc.args(["--edition", "2024", "--crate-type", "cdylib", "-o"]).arg(&library);
    let built = rustc.arg(sources.join(format!("{name}.rs"))).output().expect("the compiler runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    library
}
