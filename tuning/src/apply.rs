//! Raises what this process may raise, and says what it could not.
//!
//! Nothing here outlives the process or touches the system: limits of the
//! machine are lifted by its owner, with the commands that a [`crate::plan::Limit`]
//! carries. Pinning happens where the executors are made.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;

use crate::plan::Plan;
use crate::quantity::count;

/// One thing that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Applied {
    /// What it is about, in a few words.
    pub what: String,
    /// What came of it: the new value, or a sentence with the command that
    /// would lift what stood in the way.
    pub result: Result<String, String>,
}

/// Raises the soft limits of descriptors and lockable memory to what the plan
/// counts on. Call once, before anything is opened.
pub fn apply(plan: &Plan) -> Vec<Applied> {
    vec![
        raise("open descriptors", Resource::Nofile, Some(plan.nofile_target), |now| {
            format!(
                "start with `ulimit -n {}` or LimitNOFILE={0} in the systemd unit (now {now})",
                plan.nofile_target
            )
        }),
        raise("lockable memory", Resource::Memlock, None, |now| {
            format!(
                "start with `ulimit -l unlimited` or LimitMEMLOCK=infinity in the systemd unit (now {now})"
            )
        }),
    ]
}

/// Raises a soft limit to `target`, or to the hard limit without one.
fn raise(
    what: &str,
    resource: Resource,
    target: Option<u64>,
    lift: impl Fn(String) -> String,
) -> Applied {
    let old = getrlimit(resource);
    let target = lower(target, old.maximum);
    let result = if at_least(old.current, target) {
        Ok(shown(old.current))
    } else {
        setrlimit(resource, Rlimit { current: target, maximum: old.maximum })
            .map(|()| format!("{} → {}", shown(old.current), shown(target)))
            .map_err(|error| format!("cannot be raised ({error}): {}", lift(shown(old.current))))
    };
    Applied { what: what.to_owned(), result }
}

/// The smaller of two limits, where `None` is no limit.
fn lower(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn at_least(limit: Option<u64>, wanted: Option<u64>) -> bool {
    match (limit, wanted) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(limit), Some(wanted)) => limit >= wanted,
    }
}

fn shown(limit: Option<u64>) -> String {
    limit.map_or_else(|| "unlimited".to_owned(), count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_is_above_every_limit() {
        assert_eq!(lower(None, Some(3)), Some(3));
        assert_eq!(lower(Some(2), Some(3)), Some(2));
        assert_eq!(lower(None, None), None);
        assert!(at_least(None, None) && at_least(None, Some(9)) && at_least(Some(9), Some(9)));
        assert!(!at_least(Some(9), None) && !at_least(Some(8), Some(9)));
        assert_eq!(shown(Some(20_000)), "20,000");
    }

    #[test]
    fn the_soft_limit_never_falls() {
        let before = getrlimit(Resource::Nofile);
        let applied = raise("open descriptors", Resource::Nofile, Some(3), |_| String::new());
        assert!(applied.result.is_ok());
        assert_eq!(getrlimit(Resource::Nofile), before);
    }
}
