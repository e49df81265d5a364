//! How the process ends: a code for programs, a sentence for people.
//!
//! | code | whose turn it is |
//! |---|---|
//! | 0 | nobody's |
//! | 1 | ours: a defect |
//! | 2 | the command line or the configuration |
//! | 3 | the data directory: locked, other format, damaged, read-only, full |
//! | 4 | the network: port taken, address not there |
//! | 5 | the machine: no io_uring, limits too low |
//! | 74 | the disk's: a write failed while serving (start again, from what is stored), or the result of a command did not arrive where stdout leads |

use std::fmt;
use std::process::ExitCode;

/// Why the process ends other than by being asked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    /// The process's exit code, see the module's table.
    pub(crate) code: u8,
    /// What happened and what to do about it.
    pub(crate) sentence: String,
}

#[allow(dead_code, reason = "one constructor for each row of the table, used or not yet")]
impl Exit {
    /// A defect of this program.
    pub(crate) fn internal(sentence: impl Into<String>) -> Exit {
        Exit { code: 1, sentence: sentence.into() }
    }

    /// The command line or the configuration asks for something senseless.
    pub(crate) fn usage(sentence: impl Into<String>) -> Exit {
        Exit { code: 2, sentence: sentence.into() }
    }

    /// The data directory cannot be used as it is.
    pub(crate) fn data(sentence: impl Into<String>) -> Exit {
        Exit { code: 3, sentence: sentence.into() }
    }

    /// An address cannot be bound.
    pub(crate) fn network(sentence: impl Into<String>) -> Exit {
        Exit { code: 4, sentence: sentence.into() }
    }

    /// The machine cannot carry this.
    pub(crate) fn machine(sentence: impl Into<String>) -> Exit {
        Exit { code: 5, sentence: sentence.into() }
    }

    /// The disk failed while serving, or took no result of a command. The code is
    /// EX_IOERR of sysexits.h.
    pub(crate) fn disk(sentence: impl Into<String>) -> Exit {
        Exit { code: 74, sentence: sentence.into() }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for Exit {}

impl From<&Exit> for ExitCode {
    fn from(exit: &Exit) -> ExitCode {
        ExitCode::from(exit.code)
    }
}
