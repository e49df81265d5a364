//! Data directories that belong to somebody else: refused in words, told from
//! damage, and not a byte changed.

mod server;

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;

use rustix::process::geteuid;
use server::allow;
use server::files::{
    check, check_untouched, command, contents, filled, iris_shard, segment, snapshots, taken,
    written,
};
use server::skipped::skipped;

/// Nobody, everywhere.
const OTHER: u32 = 65_534;

fn give(path: &Path, user: u32) {
    chown(path, Some(user), Some(user)).unwrap();
}

/// A directory of one shard, with all that is in it, to [`OTHER`], who may enter
/// where it lies.
fn give_away(dir: &Path) {
    allow(&dir.join(".."), 0o755);
    [dir, &dir.join("shard-0000"), &dir.join("lock")].iter().for_each(|path| give(path, OTHER));
    contents(dir).iter().for_each(|(path, _)| give(path, OTHER));
}

#[test]
fn a_directory_of_another_user_is_refused() {
    let setup = written(3);
    allow(&setup.data_dir().join(".."), 0o755);
    let lock = setup.data_dir().join("lock");
    if !geteuid().is_root() {
        // Who cannot be another user takes the right to write from himself.
        allow(&lock, 0o400);
    }
    // Closed to others, and open to their eyes.
    for mode in [0o700, 0o755] {
        allow(setup.data_dir(), mode);
        let other = if geteuid().is_root() { setup.clone().user(OTHER) } else { setup.clone() };
        let words = ["this user may not read or write", "change its owner or permissions"];
        check_untouched(&other, &words);
    }
    allow(&lock, 0o600);
    assert_eq!(taken(&setup.start(), "bob").len(), 3);
}

/// What root makes there the owner could not read.
#[test]
fn root_leaves_the_directory_of_another_user_alone() {
    if !geteuid().is_root() {
        return skipped("only root can give files away");
    }
    let setup = written(3);
    give_away(setup.data_dir());
    check_untouched(&setup, &["belongs to the user with id 65534", "chown -R 0"]);
    // Who only looks leaves nothing that its owner could not use.
    fs::remove_file(setup.data_dir().join("lock")).unwrap();
    check(&iris_shard("repair", setup.data_dir(), &[]), 0, &["healthy"]);
    assert_eq!(taken(&setup.clone().user(OTHER).start(), "bob").len(), 3);
}

/// A copy by another user, say.
#[test]
fn what_may_not_be_read_is_not_damaged() {
    if !geteuid().is_root() {
        return skipped("only root can give files away");
    }
    let setup = filled(600);
    let dir = setup.data_dir();
    give_away(dir);
    for path in [segment(&setup, 1), snapshots(&setup)[1].clone()] {
        give(&path, 0);
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let words = [&name[..], "Permission denied", "change the owner or the permissions"];
        let before = contents(dir);
        let output = command("repair", dir, &["--yes"]).uid(OTHER).gid(OTHER).output().unwrap();
        check(&output, 3, &words);
        assert!(contents(dir) == before, "a repair has changed something");
        check_untouched(&setup.clone().user(OTHER), &words);
        give(&path, OTHER);
    }
    assert_eq!(taken(&setup.clone().user(OTHER).start(), "bob").len(), 600);
}
