//! Who takes part and who writes to whom.
//!
//! Users of one worker are numbered from 0: first those that are online from
//! the start, then those that are absent and log in at the end. A *flow* is one
//! sender's messages to one recipient; both ends of a flow belong to the same
//! worker, so that each worker verifies its own.

use serde::{Deserialize, Serialize};

/// The kinds of run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Scenario {
    /// Users 2k and 2k+1 write to each other.
    Pairs,
    /// Everyone writes to a user who is not there, and who logs in at the end
    /// and collects.
    Offline,
    /// Connections are held and nothing is said.
    Idle,
    /// Pairs, and a part of the messages goes to absent users.
    Mixed,
    /// Pairs over a bare relay instead of a server: the baseline.
    Relay,
}

/// The users of one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cast {
    /// What they do.
    pub(crate) scenario: Scenario,
    /// Users that are online from the start.
    pub(crate) online: u32,
    /// Users that log in at the end.
    pub(crate) absent: u32,
}

impl Cast {
    /// All users.
    pub(crate) fn users(&self) -> u32 {
        self.online + self.absent
    }

    /// Users that send.
    pub(crate) fn senders(&self) -> u32 {
        match self.scenario {
            Scenario::Idle => 0,
            _ => self.online,
        }
    }

    /// Whether a user logs in only at the end.
    pub(crate) fn is_absent(&self, user: u32) -> bool {
        user >= self.online
    }

    /// How many flows there are.
    pub(crate) fn flows(&self) -> usize {
        match self.scenario {
            Scenario::Idle => 0,
            Scenario::Mixed => 2 * self.online as usize,
            _ => self.online as usize,
        }
    }

    /// The flow from a sender to its partner, or to its absent friend.
    pub(crate) fn flow(&self, sender: u32, to_absent: bool) -> usize {
        match self.scenario {
            Scenario::Mixed => 2 * sender as usize + usize::from(to_absent),
            _ => sender as usize,
        }
    }

    /// The sender of a flow.
    pub(crate) fn sender(&self, flow: usize) -> u32 {
        match self.scenario {
            Scenario::Mixed => flow as u32 / 2,
            _ => flow as u32,
        }
    }

    /// The recipient of a flow.
    pub(crate) fn recipient(&self, flow: usize) -> u32 {
        let sender = self.sender(flow);
        match self.scenario {
            Scenario::Mixed if flow % 2 == 1 => self.online + sender % self.absent.max(1),
            Scenario::Offline => self.online + sender % self.absent.max(1),
            _ => sender ^ 1,
        }
    }

    /// The flow between two users, if they have one.
    pub(crate) fn between(&self, sender: u32, recipient: u32) -> Option<usize> {
        if sender >= self.senders() || recipient >= self.users() {
            return None;
        }
        let flow = self.flow(sender, self.is_absent(recipient));
        (self.recipient(flow) == recipient).then_some(flow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flow_is_found_again() {
        for scenario in [Scenario::Pairs, Scenario::Offline, Scenario::Mixed, Scenario::Relay] {
            let cast = Cast { scenario, online: 10, absent: 3 };
            for flow in 0..cast.flows() {
                let (sender, recipient) = (cast.sender(flow), cast.recipient(flow));
                assert_ne!(sender, recipient);
                assert_eq!(cast.between(sender, recipient), Some(flow), "{scenario:?} {flow}");
            }
        }
    }

    #[test]
    fn strangers_have_no_flow() {
        let cast = Cast { scenario: Scenario::Pairs, online: 10, absent: 0 };
        assert_eq!(cast.between(0, 2), None);
        assert_eq!(cast.between(10, 11), None);
        assert_eq!(cast.between(0, u32::MAX), None);
    }
}
