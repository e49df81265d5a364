//! The older ways, asked for by name on a machine that knows newer ones.
//!
//! Every kernel and file system runs through the same code with some of its
//! steps done the older way. Which ones is probed at the start; what is named
//! here is taken as missing although it is there, so that tests run an old
//! kernel's server anywhere and an operator can go around a kernel's defect.

use serde::Serialize;

use crate::disk;
use crate::ring;

/// Stands for every name: the oldest way of everything.
pub const ALL: &str = "all";

/// Every name with what it means, the ring's first.
pub const NAMES: [(&str, &str); 12] = [
    ("ext_arg", "waiting in the ring takes a timeout (5.11)"),
    ("multishot_poll", "one poll reports every readiness (5.13)"),
    ("msg_ring", "one ring tells another (5.18)"),
    ("multishot_accept", "one accept takes every connection (5.19)"),
    ("sparse_files", "tables of direct descriptors (5.19)"),
    ("coop_taskrun", "completions do not interrupt the core (5.19)"),
    ("single_issuer", "one thread submits (6.0)"),
    ("msg_ring_fd", "a direct descriptor moves to another ring (6.0)"),
    ("quiet_send", "a send that takes everything needs no completion (6.1)"),
    ("defer_taskrun", "completions run when asked for (6.1)"),
    (disk::O_DIRECT, "the log is written past the page cache"),
    (disk::RWF_DSYNC, "a write is durable by itself, without fdatasync"),
];

/// What is done without: some of [`NAMES`], in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Without {
    names: Vec<&'static str>,
}

impl Without {
    /// Reads names as typed; [`ALL`] is every one.
    ///
    /// # Errors
    /// A sentence with the known names.
    pub fn named<T: AsRef<str>>(typed: &[T]) -> Result<Without, String> {
        let known = || NAMES.map(|(name, _)| name);
        let is_known = |it: &&T| it.as_ref() == ALL || known().contains(&it.as_ref());
        if let Some(unknown) = typed.iter().find(|it| !is_known(it)) {
            return Err(format!("'{}' is none of {}, {ALL}", unknown.as_ref(), known().join(", ")));
        }
        let is_typed = |name: &&str| typed.iter().any(|it| [ALL, *name].contains(&it.as_ref()));
        Ok(Without { names: known().into_iter().filter(is_typed).collect() })
    }

    /// The names.
    pub fn names(&self) -> &[&'static str] {
        &self.names
    }

    /// Whether this one is done without.
    pub fn has(&self, name: &str) -> bool {
        self.names.contains(&name)
    }

    /// Those of the ring among them.
    pub(crate) fn of_ring(&self) -> impl Iterator<Item = &'static str> {
        self.names.iter().copied().filter(|name| ring::FEATURES.contains(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_once_and_in_order() {
        let without = Without::named(&["rwf_dsync", "ext_arg", "rwf_dsync"]).unwrap();
        assert_eq!(without.names(), ["ext_arg", "rwf_dsync"]);
        assert!(without.has("ext_arg") && !without.has("o_direct"));
        assert_eq!(without.of_ring().collect::<Vec<_>>(), ["ext_arg"]);
        assert_eq!(Without::named::<&str>(&[]).unwrap(), Without::default());
    }

    #[test]
    fn all_is_every_name() {
        let all = Without::named(&["ext_arg", ALL]).unwrap();
        assert_eq!(all.names(), NAMES.map(|(name, _)| name));
        assert_eq!(all.of_ring().collect::<Vec<_>>(), ring::FEATURES);
    }

    #[test]
    fn an_unknown_name_is_told_the_known_ones() {
        let told = Without::named(&["ext_arg", "warp_drive"]).unwrap_err();
        assert!(told.contains("'warp_drive'") && told.contains("multishot_poll"), "{told}");
        assert!(told.contains("o_direct") && told.contains("all"), "{told}");
    }
}
