//! Who takes part and who writes to whom.
//!
//! Users of one worker are numbered from 0: first the *witnesses*, who talk in
//! pairs all the time and to whom nothing is done, then those that are online
//! from the start, then those that are absent and come later. A *flow* is one
//! sender's messages to one recipient; both ends of a flow belong to the same
//! worker, so that each worker verifies its own.

use serde::{Deserialize, Serialize};

use crate::spec::{ClassChoice, Protocol};

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
    /// Many write to one user who is away and then comes for it all.
    HotInbox,
    /// All connections are cut at once and come back, with messages waiting.
    Storm,
    /// Users log in and never read, until the end.
    Slow,
    /// Connections come, exchange a few messages and go.
    Churn,
    /// Everything goes to absent users, at the highest rate.
    Crusher,
    /// `mixed` with every kind of `--chaos`.
    Chaos,
}

impl Scenario {
    /// Whether nothing tells a sender that its message was taken; a relay does
    /// if it `answers`.
    pub(crate) fn confirms_nothing(
        self,
        answers: bool,
        protocol: Protocol,
        class: ClassChoice,
    ) -> bool {
        match protocol {
            _ if self == Scenario::Relay => !answers,
            Protocol::V1 | Protocol::Nats | Protocol::Xmpp => true,
            Protocol::V2 => false,
            Protocol::Mqtt => class == ClassChoice::BestEffort,
        }
    }

    /// Whether it is played in acts beside witnesses.
    pub(crate) fn is_ordeal(self) -> bool {
        use Scenario::{Churn, Crusher, HotInbox, Slow, Storm};
        matches!(self, HotInbox | Storm | Slow | Churn | Crusher)
    }

    /// Whether users must be even because they talk in pairs.
    pub(crate) fn is_paired(self) -> bool {
        use Scenario::{Chaos, Churn, Mixed, Pairs, Relay, Storm};
        matches!(self, Pairs | Mixed | Relay | Storm | Churn | Chaos)
    }
}

/// How the flows that are not the witnesses' run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// None at all.
    Silent,
    /// Everyone to a neighbour.
    Pairs,
    /// Each to a neighbour and to an absent friend.
    PairsAndFriends,
    /// Each online user to one absent one.
    Friends,
    /// As many as the larger side has users, so that each has one at least.
    Cross,
}

/// The users of one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cast {
    /// What they do.
    pub(crate) scenario: Scenario,
    /// Users that talk in pairs and are left alone; even.
    pub(crate) witnesses: u32,
    /// Other users that are online from the start.
    pub(crate) online: u32,
    /// Users that log in later.
    pub(crate) absent: u32,
}

impl Cast {
    /// All users.
    pub(crate) fn users(&self) -> u32 {
        self.present() + self.absent
    }

    /// Users that are online from the start.
    pub(crate) fn present(&self) -> u32 {
        self.witnesses + self.online
    }

    /// Whether a user logs in later.
    pub(crate) fn is_absent(&self, user: u32) -> bool {
        user >= self.present()
    }

    /// Whether a user is one of those that are left alone.
    pub(crate) fn is_witness(&self, user: u32) -> bool {
        user < self.witnesses
    }

    /// Whether a flow runs between two of those.
    pub(crate) fn is_witnessed(&self, flow: usize) -> bool {
        flow < self.witnesses as usize
    }

    fn shape(&self) -> Shape {
        match self.scenario {
            Scenario::Idle => Shape::Silent,
            Scenario::Pairs | Scenario::Relay | Scenario::Storm | Scenario::Churn => Shape::Pairs,
            Scenario::Mixed | Scenario::Chaos => Shape::PairsAndFriends,
            Scenario::Offline => Shape::Friends,
            Scenario::HotInbox | Scenario::Slow | Scenario::Crusher => Shape::Cross,
        }
    }

    /// Among how many a schedule chooses for its next message.
    pub(crate) fn lines(&self) -> u32 {
        match self.shape() {
            Shape::Silent => 0,
            Shape::Pairs => self.online + self.absent,
            Shape::PairsAndFriends | Shape::Friends => self.online,
            Shape::Cross => self.online.max(self.absent),
        }
    }

    /// How many flows there are, the witnesses' first.
    pub(crate) fn flows(&self) -> usize {
        let lines = self.lines() as usize;
        let each = if self.shape() == Shape::PairsAndFriends { 2 } else { 1 };
        self.witnesses as usize + each * lines
    }

    /// The flow that a line of the schedule stands for.
    pub(crate) fn flow(&self, line: u32, to_absent: bool) -> usize {
        let first = self.witnesses as usize;
        match self.shape() {
            Shape::PairsAndFriends => first + 2 * line as usize + usize::from(to_absent),
            _ => first + line as usize,
        }
    }

    /// The flow by which a user answers its partner.
    pub(crate) fn answer(&self, user: u32) -> Option<usize> {
        if self.is_witness(user) {
            return Some(user as usize);
        }
        let line = user - self.witnesses;
        (line < self.lines()).then(|| self.flow(line, false))
    }

    /// The sender of a flow.
    pub(crate) fn sender(&self, flow: usize) -> u32 {
        let flow = flow as u32;
        let Some(line) = flow.checked_sub(self.witnesses) else { return flow };
        self.witnesses
            + match self.shape() {
                Shape::PairsAndFriends => line / 2,
                Shape::Cross => line % self.online.max(1),
                _ => line,
            }
    }

    /// The recipient of a flow.
    pub(crate) fn recipient(&self, flow: usize) -> u32 {
        let flow = flow as u32;
        let Some(line) = flow.checked_sub(self.witnesses) else { return flow ^ 1 };
        let friend = |of: u32| self.online + of % self.absent.max(1);
        self.witnesses
            + match self.shape() {
                Shape::PairsAndFriends if line % 2 == 1 => friend(line / 2),
                Shape::PairsAndFriends => (line / 2) ^ 1,
                Shape::Friends | Shape::Cross => friend(line),
                Shape::Silent | Shape::Pairs => line ^ 1,
            }
    }

    /// The flow between two users, if they have one.
    pub(crate) fn between(&self, sender: u32, recipient: u32) -> Option<usize> {
        if sender >= self.users() || recipient >= self.users() {
            return None;
        }
        let flow = match (sender.checked_sub(self.witnesses), self.shape()) {
            (None, _) => sender as usize,
            // The side with more users has one flow each.
            (Some(_), Shape::Cross) if self.absent > self.online => {
                self.flow(recipient.checked_sub(self.present())?, false)
            }
            (Some(line), _) => self.flow(line, self.is_absent(recipient)),
        };
        let is_it =
            flow < self.flows() && self.sender(flow) == sender && self.recipient(flow) == recipient;
        is_it.then_some(flow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn every_flow_is_found_again() {
        for scenario in Scenario::value_variants() {
            for (witnesses, online, absent) in [(0, 10, 3), (4, 10, 3), (2, 2, 7), (4, 0, 6)] {
                let cast = Cast { scenario: *scenario, witnesses, online, absent };
                let pairs = cast.shape() == Shape::Pairs && (online + absent) % 2 == 1;
                if pairs || online == 0 && *scenario != Scenario::Churn {
                    continue;
                }
                for flow in 0..cast.flows() {
                    let (sender, recipient) = (cast.sender(flow), cast.recipient(flow));
                    assert_ne!(sender, recipient);
                    assert!(sender < cast.users() && recipient < cast.users());
                    assert_eq!(cast.between(sender, recipient), Some(flow), "{cast:?} {flow}");
                    assert_eq!(cast.is_witnessed(flow), cast.is_witness(sender));
                    assert_eq!(cast.is_witnessed(flow), cast.is_witness(recipient));
                }
            }
        }
    }

    #[test]
    fn strangers_have_no_flow() {
        let cast = Cast { scenario: Scenario::Pairs, witnesses: 0, online: 10, absent: 0 };
        assert_eq!(cast.between(0, 2), None);
        assert_eq!(cast.between(10, 11), None);
        assert_eq!(cast.between(0, u32::MAX), None);
        let cast = Cast { scenario: Scenario::Slow, witnesses: 2, online: 2, absent: 5 };
        assert_eq!(cast.between(0, 4), None);
        assert_eq!(cast.between(2, 5), None);
        assert_eq!(cast.between(3, 5), Some(3));
    }
}
