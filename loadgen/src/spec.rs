//! What the parent and its workers say to each other: one JSON value a line,
//! the worker's orders on its standard input, its reports on its output.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use wire::id::Class;

use crate::acts::Act;
use crate::chaos::Chaos;
use crate::figures::{Figures, Progress};
use crate::plan::Arrivals;
use crate::scenario::Cast;

/// Which protocol the users speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Protocol {
    /// The original server's, which confirms nothing.
    V1,
    /// With numbers, confirmations and cursors.
    V2,
    /// Another server's: MQTT 3.1.1, `guaranteed` as QoS 1 and `best-effort`
    /// as QoS 0.
    Mqtt,
    /// Another server's: NATS core, which confirms nothing.
    Nats,
    /// Another server's: XMPP, which confirms nothing.
    Xmpp,
}

impl Protocol {
    /// Whether it is another server's.
    pub(crate) fn is_foreign(self) -> bool {
        !matches!(self, Protocol::V1 | Protocol::V2)
    }
}

/// The class of every message of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ClassChoice {
    /// Confirmed after the fsync.
    Guaranteed,
    /// Confirmed from memory.
    BestEffort,
}

impl ClassChoice {
    /// The class on the wire.
    pub(crate) fn class(self) -> Class {
        match self {
            ClassChoice::Guaranteed => Class::Guaranteed,
            ClassChoice::BestEffort => Class::BestEffort,
        }
    }
}

/// When messages are sent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Load {
    /// At their intended times, whatever the server does.
    Open {
        /// Messages per second of this worker.
        rate: f64,
        /// How they are spread.
        arrivals: Arrivals,
        /// Part of them that goes to absent users.
        absent_share: f64,
        /// See [`crate::plan::Rhythm::offset`].
        offset: f64,
    },
    /// Each pair keeps this many messages under way; an arrival is answered by
    /// the next message.
    Closed {
        /// Messages under way per pair.
        in_flight: u32,
    },
}

/// How a scenario that is played in acts goes; see [`crate::acts`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ordeal {
    /// How long only witnesses talk, nanoseconds.
    pub(crate) calm_ns: u64,
    /// Messages that are put into inboxes at the beginning.
    pub(crate) fill: u64,
    /// Messages without their confirmation in a closed loop, all senders
    /// together.
    pub(crate) depth: u64,
    /// Messages per second during the ordeal; `None` for a closed loop.
    pub(crate) rate: Option<f64>,
    /// Connections this worker starts per second when all were cut; `None` for
    /// as many as it can.
    pub(crate) reconnect_rate: Option<f64>,
    /// Connections that come and go per second.
    pub(crate) visit_rate: f64,
    /// Messages that each of them sends.
    pub(crate) visit_messages: u32,
    /// In which way slow users do not read.
    pub(crate) deafness: Deafness,
}

/// In which way a slow user does not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Deafness {
    /// It leaves its socket unread, so that buffers fill on both sides.
    Socket,
    /// It gives the server no credit.
    Credit,
}

/// Everything a worker must know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Spec {
    /// Number of the run: part of every user's name and every message.
    pub(crate) run: u64,
    /// This worker's users.
    pub(crate) cast: Cast,
    /// Index of its first user in the run.
    pub(crate) base: u32,
    /// Server addresses, used in turn.
    pub(crate) targets: Vec<SocketAddr>,
    /// Source addresses, used in turn; empty lets the kernel choose.
    pub(crate) from: Vec<IpAddr>,
    /// What the users speak.
    pub(crate) protocol: Protocol,
    /// The class of the messages.
    pub(crate) class: ClassChoice,
    /// Bytes of each message.
    pub(crate) size: usize,
    /// A relay sends each message back to its sender, too.
    pub(crate) confirm: bool,
    /// When they are sent.
    pub(crate) load: Load,
    /// Messages per second that the witnesses exchange.
    pub(crate) witness_rate: f64,
    /// The acts that are played instead.
    pub(crate) ordeal: Option<Ordeal>,
    /// What is done beside.
    pub(crate) chaos: Chaos,
    /// How long messages are sent, nanoseconds.
    pub(crate) duration_ns: u64,
    /// How much of it is not measured, nanoseconds.
    pub(crate) warmup_ns: u64,
    /// Seed of the schedule.
    pub(crate) seed: u64,
    /// Connections this worker starts per second.
    pub(crate) connect_rate: f64,
    /// Whether lost connections are taken up again.
    pub(crate) reconnect: bool,
    /// How long nothing may happen at the end before the worker gives up.
    pub(crate) drain_ns: u64,
    /// How long it listens for duplicates when everything has arrived.
    pub(crate) linger_ns: u64,
    /// Messages of one flow on the wire without their confirmation.
    pub(crate) window: usize,
    /// The core it stays on.
    pub(crate) core: Option<usize>,
}

impl Spec {
    /// The name of a user of this worker.
    pub(crate) fn name(&self, user: u32) -> String {
        Names::new(self).of(user).to_owned()
    }

    /// The user that a name belongs to, if it is one of this worker's.
    pub(crate) fn user(&self, name: &[u8]) -> Option<u32> {
        let name = std::str::from_utf8(name).ok()?;
        let (_, index) = name.rsplit_once('-')?;
        let user = index.parse::<u32>().ok()?.checked_sub(self.base)?;
        (user < self.cast.users()).then_some(user)
    }
}

/// Writes the names of a worker's users, each over the last one: every message
/// needs one, and a formatted string of its own is 3 % of what a message costs.
pub(crate) struct Names {
    text: String,
    prefix_len: usize,
    base: u32,
}

impl Names {
    /// For the users of this worker.
    pub(crate) fn new(spec: &Spec) -> Names {
        let text = format!("lg{:x}-", spec.run);
        Names { prefix_len: text.len(), text, base: spec.base }
    }

    /// The name of this user.
    pub(crate) fn of(&mut self, user: u32) -> &str {
        self.text.truncate(self.prefix_len);
        self.text.push_str(itoa::Buffer::new().format(self.base + user));
        &self.text
    }
}

/// From the parent to a worker; the first line is its [`Spec`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Have this many of the users connected.
    Connect {
        /// From the worker's first user on.
        users: u32,
    },
    /// Send from this time on.
    Start {
        /// Monotonic nanoseconds.
        at_ns: u64,
    },
    /// Play an act of an ordeal from this time on.
    Play {
        /// Which.
        act: Act,
        /// Monotonic nanoseconds.
        at_ns: u64,
    },
    /// Stop sending, collect, verify, report.
    Finish,
    /// Report at once.
    Abort,
}

/// From a worker to the parent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Word {
    /// As many users are connected as were ordered.
    Connected {
        /// How many.
        users: u32,
    },
    /// The last message has been sent.
    Quiet,
    /// The act is over.
    Played(Act),
    /// Once a second.
    Progress(Progress),
    /// It cannot go on, and why.
    Fatal(String),
    /// The end.
    Done(Box<Figures>),
}
