//! The acts of an ordeal: what happens one after the other while witnesses
//! talk all the time.
//!
//! The parent begins each act in all workers together and the next one when
//! every worker has played it; so "before" and "during" mean the same to all.

use serde::{Deserialize, Serialize};

use crate::scenario::Scenario;

/// One act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Act {
    /// Messages are put into inboxes; over when all are confirmed.
    Fill,
    /// Only witnesses talk: what they see now is what the ordeal is compared
    /// with.
    Calm,
    /// What the scenario is named after.
    Ordeal,
    /// Whoever was away, or did not read, comes for everything.
    Collect,
}

impl Act {
    /// As it is told to whoever watches.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Act::Fill => "fill",
            Act::Calm => "calm",
            Act::Ordeal => "ordeal",
            Act::Collect => "collect",
        }
    }
}

/// The acts of a scenario, in order; none where it is not played in acts.
pub(crate) fn of(scenario: Scenario) -> &'static [Act] {
    match scenario {
        // The ordeal is over when everything has been collected.
        Scenario::HotInbox | Scenario::Storm => &[Act::Fill, Act::Calm, Act::Ordeal],
        Scenario::Slow => &[Act::Fill, Act::Calm, Act::Ordeal, Act::Collect],
        Scenario::Churn | Scenario::Crusher => &[Act::Calm, Act::Ordeal, Act::Collect],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn whoever_has_an_ordeal_has_a_calm_before_it() {
        for scenario in Scenario::value_variants() {
            let acts = of(*scenario);
            assert_eq!(acts.is_empty(), !scenario.is_ordeal());
            let ordeal = acts.iter().position(|act| *act == Act::Ordeal);
            assert!(ordeal.is_none_or(|at| acts[at - 1] == Act::Calm), "{scenario:?}");
        }
    }
}
