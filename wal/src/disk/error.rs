//! What can be wrong with a data directory, each as a sentence for the operator
//! that names the path and says what to do.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::recover::Damage;
use crate::segment::HeaderError;
use crate::{FORMAT, FORMAT_OLDEST};

/// Why a data directory cannot be opened or written.
#[derive(Debug)]
pub enum DataDirError {
    /// A running server holds it.
    Locked {
        /// The data directory.
        path: PathBuf,
        /// The process that holds it, when it said so.
        pid: Option<u32>,
    },
    /// The file system is mounted read-only.
    ReadOnly {
        /// What could not be written.
        path: PathBuf,
    },
    /// It is somebody else's.
    OtherOwner {
        /// The directory.
        path: PathBuf,
        /// Whose.
        owner: u32,
        /// As whom this process runs.
        user: u32,
    },
    /// This user may not read or write it.
    NotWritable {
        /// What could not be written.
        path: PathBuf,
    },
    /// The path, or a part of it, is something else than a directory.
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// Nothing is there, and nothing can be made.
    NotMakeable {
        /// The path.
        path: PathBuf,
    },
    /// Nothing of ours is there.
    NotADataDir {
        /// The path.
        path: PathBuf,
    },
    /// A directory that something else lives in.
    Foreign {
        /// The directory.
        path: PathBuf,
        /// One name found in it.
        found: String,
    },
    /// Written in a format that this version does not read.
    OtherFormat {
        /// The data directory.
        path: PathBuf,
        /// Its format.
        written: u32,
    },
    /// The manifest is not one, or is damaged.
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The manifest names a shard whose directory is gone.
    ShardMissing {
        /// The directory that should be there.
        path: PathBuf,
    },
    /// The lock is a symbolic link.
    LinkedLock {
        /// The link.
        path: PathBuf,
    },
    /// An option that cannot be.
    Options {
        /// What is wrong with it.
        why: &'static str,
    },
    /// No space is left.
    Full {
        /// What could not be written.
        path: PathBuf,
    },
    /// Anything else the system said.
    Io {
        /// What was being worked on.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

impl DataDirError {
    /// Gives what the system said to making a directory, or a file in a place
    /// where there is none yet, its name.
    pub fn making(path: &Path, error: io::Error) -> DataDirError {
        match error.kind() {
            io::ErrorKind::NotFound => DataDirError::NotMakeable { path: path.to_path_buf() },
            _ => DataDirError::from_io(path, error),
        }
    }

    /// Gives what the system said its name.
    pub fn from_io(path: &Path, error: io::Error) -> DataDirError {
        let path = path.to_path_buf();
        match error.raw_os_error() {
            Some(libc::EROFS) => DataDirError::ReadOnly { path },
            Some(libc::EACCES | libc::EPERM) => DataDirError::NotWritable { path },
            Some(libc::ENOTDIR) => DataDirError::NotADirectory { path },
            Some(libc::ENOSPC | libc::EDQUOT) => DataDirError::Full { path },
            _ => DataDirError::Io { path, error },
        }
    }
}

impl fmt::Display for DataDirError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DataDirError::Locked { path, pid } => {
                write!(f, "the data directory {} is in use by ", path.display())?;
                match pid {
                    Some(pid) => write!(f, "the server with process id {pid}")?,
                    None => f.write_str("another process")?,
                }
                f.write_str("; stop it or choose another directory")
            }
            DataDirError::ReadOnly { path } => write!(
                f,
                "{} is on a file system that is mounted read-only; mount it writable or choose \
                 another data directory",
                path.display()
            ),
            DataDirError::NotWritable { path } => write!(
                f,
                "this user may not read or write {}; change its owner or permissions, or choose \
                 another data directory",
                path.display()
            ),
            DataDirError::OtherOwner { path, owner, user } => write!(
                f,
                "the data directory {} belongs to the user with id {owner}, who could not read what \
                 this process makes there as user {user}; run as its owner, or give all of it to this \
                 user with `chown -R {user}`",
                path.display()
            ),
            DataDirError::NotADirectory { path } => write!(
                f,
                "{} is not a directory, or a part of its path is none; choose another data \
                 directory",
                path.display()
            ),
            DataDirError::NotMakeable { path } => write!(
                f,
                "{} is not there and cannot be made: what is above it keeps no directories of \
                 others, as /proc does; choose another data directory",
                path.display()
            ),
            DataDirError::NotADataDir { path } => write!(
                f,
                "{} is no data directory of iris-shard: it has no {}; name one with --data-dir",
                path.display(),
                crate::manifest::FILE_NAME
            ),
            DataDirError::Foreign { path, found } => write!(
                f,
                "{} has no {} but holds other things, for example {found}; choose an empty or new \
                 directory, or bring the manifest back: `iris-shard repair` does from the copy beside \
                 it, if that is there, else from a backup",
                path.display(),
                crate::manifest::FILE_NAME
            ),
            DataDirError::OtherFormat { path, written } => write!(
                f,
                "the data directory {} has format {written} and this version reads formats \
                 {FORMAT_OLDEST} to {FORMAT}; run the version that wrote it or a newer one",
                path.display()
            ),
            DataDirError::Manifest { path, why } => write!(
                f,
                "{} cannot be used: {why}; bring it back: `iris-shard repair` does from the copy \
                 beside it, if that is whole, else from a backup",
                path.display()
            ),
            DataDirError::ShardMissing { path } => write!(
                f,
                "{} is missing, and with it the messages of one shard; bring it back from where \
                 it was moved or from a backup, or see what `iris-shard repair` says",
                path.display()
            ),
            DataDirError::LinkedLock { path } => write!(
                f,
                "{} is a symbolic link, and what it leads to would be overwritten; remove it or \
                 choose another data directory",
                path.display()
            ),
            DataDirError::Options { why } => f.write_str(why),
            DataDirError::Full { path } => write!(
                f,
                "no space is left for {}; free some or choose another data directory",
                path.display()
            ),
            DataDirError::Io { path, error } => {
                write!(f, "{} could not be used: {error}{}", path.display(), advice(error))
            }
        }
    }
}

impl std::error::Error for DataDirError {}

/// What to do about an error of the system, where it says too little.
fn advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EEXIST) => {
            "; a link that leads nowhere, or something else, has this name; choose another data \
             directory"
        }
        Some(libc::ELOOP) => {
            "; the symbolic links of its path lead in a circle; choose another data directory"
        }
        Some(libc::ENAMETOOLONG) => "; choose a data directory with a shorter path",
        Some(libc::EFBIG) => {
            "; files must be allowed to be as large as the log needs them: start with `ulimit -f \
             unlimited`, or LimitFSIZE=infinity in the systemd unit"
        }
        Some(libc::EMFILE) => {
            "; this process may not open more files: raise `ulimit -n`, or LimitNOFILE= in the \
             systemd unit"
        }
        Some(libc::ENFILE) => "; the whole machine has too many files open: raise fs.file-max",
        Some(libc::ENOMEM) => "; there is too little memory, or `ulimit -v` allows too little",
        Some(libc::EXDEV) => {
            "; it is on another file system than what is beside it in the data directory, and files \
             are moved within one only: put all of it on one"
        }
        Some(libc::EACCES | libc::EPERM) => {
            "; this user may not do that: change the owner or the permissions of the file"
        }
        Some(libc::EIO) => "; the disk, or what connects it, fails: the kernel's log says more",
        _ => "",
    }
}

/// Why a shard's log cannot be read back. Booting on would lose messages.
#[derive(Debug)]
pub enum RecoverError {
    /// What had been acknowledged is not what it was.
    Damage {
        /// The segment's file.
        path: PathBuf,
        /// Where and what.
        damage: Damage,
    },
    /// A segment is not there although later ones are.
    MissingSegment {
        /// The file that should be there.
        path: PathBuf,
    },
    /// No segment is there although the log once had one.
    NoLog {
        /// The shard's directory.
        path: PathBuf,
    },
    /// A symbolic link stands where a file of the log should be.
    Linked {
        /// The link.
        path: PathBuf,
    },
    /// A snapshot was written by a newer version.
    NewerSnapshot {
        /// Its file.
        path: PathBuf,
        /// Its format.
        written: u32,
    },
    /// A segment is not there although messages in it still wait.
    MissingMessages {
        /// The file that should be there.
        path: PathBuf,
        /// How many messages it held.
        messages: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// No snapshot can be read, and the beginning of the log is not there.
    NoSnapshot {
        /// The newest snapshot.
        snapshot: PathBuf,
        /// What is wrong with it.
        why: String,
        /// The segment that would be needed without one.
        missing: PathBuf,
    },
    /// No snapshot can be read, and the log does not begin with nothing.
    NoState {
        /// The shard's directory.
        path: PathBuf,
        /// The newest snapshot and what is wrong with it, if there is one.
        damaged: Option<(PathBuf, String)>,
    },
    /// A segment's file does not begin as it must.
    Header {
        /// The segment's file.
        path: PathBuf,
        /// What is wrong.
        why: HeaderError,
    },
    /// A segment's file is longer or shorter than it was made.
    WrongSize {
        /// The segment's file.
        path: PathBuf,
        /// Its length, bytes.
        found: u64,
        /// The length it was made with, bytes.
        expected: u64,
    },
    /// The system said no.
    Io {
        /// What was being worked on.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
}

impl fmt::Display for RecoverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecoverError::Damage { path, damage } => {
                write!(f, "{}: {damage}; nothing was changed", path.display())?;
            }
            RecoverError::MissingSegment { path } => write!(
                f,
                "{} is missing although later parts of the log are there; bring it back from where \
                 it was moved or from a backup",
                path.display()
            )?,
            RecoverError::Linked { path } => {
                return write!(
                    f,
                    "{} is a symbolic link, and a log is neither read nor written through one; put \
                     the file itself there",
                    path.display()
                );
            }
            RecoverError::NewerSnapshot { path, written } => {
                return write!(
                    f,
                    "{} has format {written} and this version reads formats up to {FORMAT}; run the \
                     version that wrote it or a newer one",
                    path.display()
                );
            }
            RecoverError::NoLog { path } => write!(
                f,
                "{} has lost all segments of its log; nothing was changed; bring them back from \
                 where they were moved or from a backup",
                path.display()
            )?,
            RecoverError::MissingMessages { path, messages, bytes } => write!(
                f,
                "{} is missing and {messages} messages ({bytes} bytes) that still wait were in it; \
                 bring it back from where it was moved or from a backup",
                path.display()
            )?,
            RecoverError::NoSnapshot { snapshot, why, missing } => write!(
                f,
                "{} cannot be used: {why}; no other snapshot can, and without one {} would be \
                 needed, which is not there; nothing was changed; bring back a snapshot or the \
                 missing segments from a backup",
                snapshot.display(),
                missing.display()
            )?,
            RecoverError::NoState { path, damaged } => {
                match damaged {
                    Some((snapshot, why)) => {
                        write!(f, "{} cannot be used: {why}; ", snapshot.display())?;
                    }
                    None => write!(f, "{} holds no snapshot; ", path.display())?,
                }
                f.write_str(
                    "since the number of shards was changed only a snapshot says who waits for \
                     what; nothing was changed; bring back a snapshot from a backup",
                )?;
            }
            RecoverError::Header { path, why: why @ HeaderError::OtherFormat(_) } => {
                return write!(f, "{} {why}", path.display());
            }
            RecoverError::Header { path, why } => write!(f, "{} {why}", path.display())?,
            RecoverError::WrongSize { path, found, expected } => write!(
                f,
                "{} is {found} bytes long instead of {expected}; it was cut or copied incompletely",
                path.display()
            )?,
            RecoverError::Io { path, error } => {
                let advice = advice(error);
                return write!(f, "{} could not be read back: {error}{advice}", path.display());
            }
        }
        f.write_str(
            "; `iris-shard repair` shows what would be lost and changes nothing until told to, \
             docs/DURABILITY.md says what else can be done",
        )
    }
}

impl RecoverError {
    /// The same, unless a link stands where something is missed.
    pub(super) fn or_linked(self, links: &[PathBuf]) -> RecoverError {
        let link = match &self {
            RecoverError::MissingSegment { path } | RecoverError::MissingMessages { path, .. } => {
                links.iter().find(|link| *link == path)
            }
            RecoverError::NoLog { .. }
            | RecoverError::NoSnapshot { .. }
            | RecoverError::NoState { .. } => links.first(),
            _ => None,
        };
        link.cloned().map_or(self, |path| RecoverError::Linked { path })
    }
}

impl std::error::Error for RecoverError {}
