//! The command line, checked.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::Parser;

use crate::body::BODY_BYTES_MIN;
use crate::chaos::{Chaos, Trouble, trouble};
use crate::plan::Arrivals;
use crate::scenario::Scenario;
use crate::spec::{ClassChoice, Deafness, Protocol};

/// Messages per second where nothing else is said.
const RATE: f64 = 1000.0;
/// Messages under way per sender in a closed loop of the crusher.
const CRUSHER_IN_FLIGHT: u32 = 16;
/// The same while inboxes are filled.
const FILL_IN_FLIGHT: u32 = 64;
/// What each witness says in a second unless told.
const WITNESS_RATE: f64 = 10.0;

/// Loads an iris-shard server and verifies every confirmed message.
///
/// Open loop by default: messages leave at their intended times whatever the
/// server does, and latencies count from those times.
///
/// hot-inbox, storm, slow, churn and crusher are played in acts beside
/// witnesses, who exchange messages in pairs all the time and are left alone:
/// what they see before and during the ordeal is what it costs others.
///
/// Examples:
///
///   iris-loadgen pairs -c 1000 -r 5000
///
///   iris-loadgen hot-inbox -c 100 --messages 200000
///
///   iris-loadgen storm -c 10000 --waiting 10
///
///   iris-loadgen slow -c 1000 --server-pid $(pidof iris-shard)
///
///   iris-loadgen churn -c 1000 --visit-rate 500
///
///   iris-loadgen crusher -c 1000 -d 60 -r 60000
///
///   iris-loadgen chaos -c 1000 -r 5000 -d 60 --seed 7
///
///   iris-loadgen pairs -c 1000 -r 5000 --chaos kill:50,burn:2
///
/// Exit code: 0 verified, 1 verification failed, 2 wrong usage, 4 cannot
/// connect.
#[derive(Clone, Debug, Parser)]
#[command(name = "iris-loadgen", version, args_override_self = true)]
pub(crate) struct Args {
    /// What the users do.
    #[arg(value_enum)]
    pub(crate) scenario: Scenario,

    /// Server addresses, used in turn.
    #[arg(long, value_delimiter = ',', default_value = "127.0.0.1:8085")]
    pub(crate) target: Vec<SocketAddr>,

    /// Source addresses, used in turn: one, several, or ranges such as
    /// 127.0.0.1-127.0.0.20. Each has about 28,000 ports per target.
    #[arg(long, value_delimiter = ',', value_parser = addresses)]
    pub(crate) from: Vec<Addresses>,

    /// Connections from the start; in an ordeal those that it is about: who
    /// sends (hot-inbox, crusher), is cut (storm), never reads (slow), comes
    /// and goes (churn). Witnesses come on top.
    #[arg(long, short = 'c', default_value_t = 1000)]
    pub(crate) connections: u32,

    /// Messages per second, all together; 1000 by default, but crusher is a
    /// closed loop without it.
    #[arg(long, short = 'r')]
    pub(crate) rate: Option<f64>,

    /// How messages are spread over time.
    #[arg(long, value_enum, default_value = "constant")]
    pub(crate) arrivals: Arrivals,

    /// Closed loop instead: each pair keeps this many messages under way; in
    /// an ordeal, each sender (64 by default while inboxes are filled, 16 in
    /// crusher). For rates, not for latencies.
    #[arg(long)]
    pub(crate) in_flight: Option<u32>,

    /// Seconds of sending (or, idle, of holding).
    #[arg(long, short = 'd', default_value_t = 10.0)]
    pub(crate) duration: f64,

    /// Seconds at the beginning that are not measured.
    #[arg(long, default_value_t = 0.0)]
    pub(crate) warmup: f64,

    /// What the users speak; mqtt, nats and xmpp load another server for a
    /// comparison (pairs and idle only).
    #[arg(long, value_enum, default_value = "v2")]
    pub(crate) protocol: Protocol,

    /// The class of the messages.
    #[arg(long, value_enum, default_value = "guaranteed")]
    pub(crate) class: ClassChoice,

    /// Bytes of each message.
    #[arg(long, default_value_t = 64)]
    pub(crate) size: usize,

    /// The relay answers, as a messaging server must: it sends each message back
    /// to its sender, too, and hears of each arrival (its own `--confirm SIZE`).
    #[arg(long)]
    pub(crate) confirm: bool,

    /// Users that log in only at the end (offline, crusher: one per connection;
    /// mixed, chaos: one per ten; hot-inbox: one). Each worker has one at least.
    #[arg(long)]
    pub(crate) absent: Option<u32>,

    /// Part of the messages of `mixed` that goes to absent users.
    #[arg(long, default_value_t = 0.2)]
    pub(crate) absent_share: f64,

    /// Users who talk in pairs and are left alone, beside --connections: a
    /// number, or a part of those such as 5 %.
    #[arg(long, default_value = "5%", value_parser = amount)]
    pub(crate) witnesses: Amount,

    /// Messages per second that the witnesses exchange; 10 each by default.
    #[arg(long)]
    pub(crate) witness_rate: Option<f64>,

    /// Seconds before an ordeal in which only witnesses talk.
    #[arg(long, default_value_t = 3.0)]
    pub(crate) calm: f64,

    /// Hot-inbox: messages that wait when the user comes.
    #[arg(long, default_value_t = 200_000)]
    pub(crate) messages: u64,

    /// Storm, slow: messages that wait for each user.
    #[arg(long, default_value_t = 10)]
    pub(crate) waiting: u32,

    /// Storm: connections started per second after the cut; as many as can be
    /// by default.
    #[arg(long)]
    pub(crate) reconnect_rate: Option<f64>,

    /// Slow: how the users do not read.
    #[arg(long, value_enum, default_value = "socket")]
    pub(crate) deaf: Deafness,

    /// Churn: connections that come and go per second.
    #[arg(long, default_value_t = 200.0)]
    pub(crate) visit_rate: f64,

    /// Churn: messages that each of them sends to its partner.
    #[arg(long, default_value_t = 5)]
    pub(crate) visit_messages: u32,

    /// Trouble beside the load, from the end of --warmup (or --calm) on: kill(:MS)
    /// cuts a connection every MS ms (100), stall(:MS) stops a reader every MS ms
    /// (200) for up to 2 s, drip(:N) has N connections (8) speak byte by byte,
    /// half-open(:N) keeps N connections (64) that say nothing or half a word,
    /// burn(:N) spins N threads (one per core); all is everything.
    #[arg(long, value_name = "KIND[:N]", value_delimiter = ',', value_parser = trouble)]
    pub(crate) chaos: Vec<Trouble>,

    /// Seed of the schedule and of the trouble.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,

    /// Worker processes; more are started where the limit of open files asks
    /// for it.
    #[arg(long, short = 'w', default_value_t = 1)]
    pub(crate) workers: u32,

    /// Cores to keep the workers on, in turn.
    #[arg(long, value_delimiter = ',')]
    pub(crate) cores: Vec<usize>,

    /// Connections started per second, all together.
    #[arg(long, default_value_t = 5000.0)]
    pub(crate) connect_rate: f64,

    /// Take lost connections up again, with the same sessions.
    #[arg(long)]
    pub(crate) reconnect: bool,

    /// Messages of one sender to one recipient on the wire without their
    /// confirmation.
    #[arg(long, default_value_t = client::session::WINDOW)]
    pub(crate) window: usize,

    /// Seconds in which nothing arrives before the end is given up.
    #[arg(long, default_value_t = 30.0)]
    pub(crate) drain_timeout: f64,

    /// Seconds to listen for duplicates when everything has arrived.
    #[arg(long, default_value_t = 0.5)]
    pub(crate) linger: f64,

    /// Idle: hold these numbers of connections one after the other and give
    /// the memory per connection between the first and the last.
    #[arg(long, value_delimiter = ',')]
    pub(crate) steps: Vec<u32>,

    /// The server's process: its memory and CPU are reported.
    #[arg(long)]
    pub(crate) server_pid: Option<u32>,

    /// The server's admin address: its memory is asked for there where its
    /// process is not given.
    #[arg(long)]
    pub(crate) admin: Option<SocketAddr>,

    /// Write the results as JSON.
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,

    /// Write histograms in HDR percentile text: PREFIX.sent.hgrm,
    /// PREFIX.delivered.hgrm and so on, in milliseconds.
    #[arg(long, value_name = "PREFIX")]
    pub(crate) hgrm: Option<PathBuf>,

    /// Append a line for each phase: connected, steady (in an ordeal its acts:
    /// fill, calm, ordeal, collect), quiet, done. May be a named pipe.
    #[arg(long)]
    pub(crate) control: Option<PathBuf>,

    /// No progress lines.
    #[arg(long, short = 'q')]
    pub(crate) quiet: bool,
}

/// A number of users, or a part of the connections.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Amount {
    /// So many.
    Users(u32),
    /// Of 1.
    Part(f64),
}

fn amount(text: &str) -> Result<Amount, String> {
    let amount = match text.strip_suffix('%') {
        Some(percent) => {
            let percent = percent.trim().parse().ok().filter(|n| (0.0..=1000.0).contains(n));
            percent.map(|percent: f64| Amount::Part(percent / 100.0))
        }
        None => text.parse().ok().map(Amount::Users),
    };
    amount.ok_or_else(|| format!("{text}: neither a number nor a part such as 5%"))
}

/// One address or a range of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Addresses(pub(crate) Vec<IpAddr>);

fn addresses(text: &str) -> Result<Addresses, String> {
    let parse = |text: &str| text.parse::<IpAddr>().map_err(|error| format!("{text}: {error}"));
    let Some((first, last)) = text.split_once('-') else {
        return Ok(Addresses(vec![parse(text)?]));
    };
    match (parse(first)?, parse(last)?) {
        (IpAddr::V4(first), IpAddr::V4(last)) if first <= last => {
            let (first, last) = (first.to_bits(), last.to_bits());
            if last - first >= 65_536 {
                return Err("a range holds at most 65,536 addresses".to_owned());
            }
            Ok(Addresses((first..=last).map(|bits| Ipv4Addr::from_bits(bits).into()).collect()))
        }
        _ => Err("a range goes from a lower to a higher IPv4 address".to_owned()),
    }
}

impl Args {
    /// Every source address.
    pub(crate) fn sources(&self) -> Vec<IpAddr> {
        self.from.iter().flat_map(|addresses| addresses.0.iter().copied()).collect()
    }

    /// Messages per second of the open loop.
    pub(crate) fn rate(&self) -> f64 {
        self.rate.unwrap_or(RATE)
    }

    /// Whether answers or confirmations drive the load, not times.
    pub(crate) fn is_closed(&self) -> bool {
        match self.scenario {
            Scenario::Crusher => self.rate.is_none(),
            scenario if scenario.is_ordeal() => false,
            _ => self.in_flight.is_some(),
        }
    }

    /// Messages under way per sender in an ordeal's closed loops.
    pub(crate) fn depth(&self) -> u32 {
        let usual = match self.scenario {
            Scenario::Crusher => CRUSHER_IN_FLIGHT,
            _ => FILL_IN_FLIGHT,
        };
        self.in_flight.unwrap_or(usual)
    }

    /// Users who talk in pairs and are left alone: whole pairs.
    pub(crate) fn witnesses(&self) -> u32 {
        if !self.has_witnesses() {
            return 0;
        }
        let users = match self.witnesses {
            Amount::Users(users) => users,
            Amount::Part(part) => ((f64::from(self.connections) * part) as u32).max(2),
        };
        users.next_multiple_of(2)
    }

    fn has_witnesses(&self) -> bool {
        self.scenario.is_ordeal() || self.scenario == Scenario::Chaos
    }

    /// The trouble that is made.
    pub(crate) fn chaos(&self) -> Chaos {
        match self.scenario {
            Scenario::Chaos if self.chaos.is_empty() => Chaos::all(),
            _ => Chaos::of(&self.chaos),
        }
    }

    /// Seconds that are not measured; in chaos, those before it.
    pub(crate) fn warmup_s(&self) -> f64 {
        if self.scenario == Scenario::Chaos { self.calm } else { self.warmup }
    }

    /// Seconds of sending, with those.
    pub(crate) fn duration_s(&self) -> f64 {
        if self.scenario == Scenario::Chaos { self.calm + self.duration } else { self.duration }
    }

    /// Messages per second of all witnesses.
    pub(crate) fn witness_rate(&self) -> f64 {
        self.witness_rate.unwrap_or(WITNESS_RATE * f64::from(self.witnesses()))
    }

    /// Whether lost connections are taken up again: asked for, or because the
    /// scenario takes them down.
    pub(crate) fn reconnects(&self) -> bool {
        self.reconnect
            || matches!(self.scenario, Scenario::Storm | Scenario::Churn)
            || self.chaos().kill_ms > 0
    }

    /// What does not fit together, as a sentence.
    pub(crate) fn check(&self) -> Result<(), String> {
        let size_max = match self.scenario {
            // v1 lengths have 16 bits.
            // v1 lengths have 16 bits; the others' are kept as short.
            _ if self.protocol != Protocol::V2 => 65_535,
            _ => wire::limits::BODY_BYTES_MAX,
        };
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let rules = [
            (
                (BODY_BYTES_MIN..=size_max).contains(&self.size),
                format!(
                    "--size is {BODY_BYTES_MIN} to {size_max} bytes: a message carries what verifies it"
                ),
            ),
            (self.connections > 0, "--connections is at least 1".to_owned()),
            (
                self.connections <= 10_000_000 && self.absent.unwrap_or(0) <= 10_000_000,
                "--connections and --absent are at most 10,000,000".to_owned(),
            ),
            (
                !self.scenario.is_paired() || self.connections.is_multiple_of(2),
                "--connections must be even: users talk in pairs".to_owned(),
            ),
            (positive(self.rate()), "--rate is above 0".to_owned()),
            (positive(self.visit_rate), "--visit-rate is above 0".to_owned()),
            (self.reconnect_rate.is_none_or(positive), "--reconnect-rate is above 0".to_owned()),
            (self.witness_rate.is_none_or(positive), "--witness-rate is above 0".to_owned()),
            (
                positive(self.calm) && self.calm < 1e7,
                "--calm is above 0: without it there is nothing to compare with".to_owned(),
            ),
            (self.witnesses() <= 1_000_000, "--witnesses is at most 1,000,000".to_owned()),
            (
                !self.scenario.is_ordeal() || self.protocol == Protocol::V2,
                "hot-inbox, storm, slow, churn and crusher speak v2: their acts end with \
                 confirmations"
                    .to_owned(),
            ),
            (
                !self.has_witnesses() || self.warmup == 0.0,
                "--warmup is for other scenarios; an ordeal has its --calm".to_owned(),
            ),
            (
                self.chaos().is_none()
                    || self.scenario != Scenario::Relay && !self.protocol.is_foreign(),
                "--chaos is for servers of v1 and v2".to_owned(),
            ),
            (
                self.visit_messages > 0 && self.visit_messages <= 1000,
                "--visit-messages is 1 to 1000".to_owned(),
            ),
            (positive(self.connect_rate), "--connect-rate is above 0".to_owned()),
            (positive(self.duration) && self.duration < 1e7, "--duration is above 0".to_owned()),
            (
                (0.0..self.duration).contains(&self.warmup),
                "--warmup is shorter than --duration".to_owned(),
            ),
            ((0.0..=1.0).contains(&self.absent_share), "--absent-share is 0 to 1".to_owned()),
            (
                (0.0..1e7).contains(&self.drain_timeout) && (0.0..1e7).contains(&self.linger),
                "--drain-timeout and --linger are not negative".to_owned(),
            ),
            (self.rate.is_none_or(|rate| rate <= 1e8), "--rate is at most 100,000,000".to_owned()),
            ((1..=1024).contains(&self.workers), "--workers is 1 to 1024".to_owned()),
            (self.window > 0, "--window is at least 1".to_owned()),
            (self.in_flight != Some(0), "--in-flight is at least 1".to_owned()),
            (self.absent != Some(0), "--absent is at least 1".to_owned()),
            (
                self.in_flight.is_none()
                    || self.scenario.is_ordeal()
                    || matches!(self.scenario, Scenario::Pairs | Scenario::Relay),
                "--in-flight goes with pairs, relay and ordeals".to_owned(),
            ),
            (
                !self.confirm || self.scenario == Scenario::Relay,
                "--confirm goes with relay; servers confirm by themselves".to_owned(),
            ),
            (
                !self.protocol.is_foreign()
                    || matches!(self.scenario, Scenario::Pairs | Scenario::Idle),
                "--protocol mqtt, nats and xmpp go with pairs and idle".to_owned(),
            ),
            (
                !self.protocol.is_foreign() || !self.reconnect,
                "--reconnect goes with v1 and v2".to_owned(),
            ),
            (
                !matches!(self.protocol, Protocol::Nats | Protocol::Xmpp)
                    || self.class == ClassChoice::BestEffort,
                "nats and xmpp confirm nothing: give --class best-effort".to_owned(),
            ),
            (
                self.steps.is_empty() || matches!(self.scenario, Scenario::Idle | Scenario::Pairs),
                "--steps goes with idle and pairs".to_owned(),
            ),
            (
                self.steps.is_sorted_by(|a, b| a < b) && self.steps.first() != Some(&0),
                "--steps rise, from 1 on".to_owned(),
            ),
        ];
        match rules.into_iter().find(|(holds, _)| !holds) {
            Some((_, sentence)) => Err(sentence),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_addresses() {
        let range = addresses("127.0.0.254-127.0.1.1").expect("a range");
        let texts: Vec<String> = range.0.iter().map(IpAddr::to_string).collect();
        assert_eq!(texts, ["127.0.0.254", "127.0.0.255", "127.0.1.0", "127.0.1.1"]);
        assert!(addresses("127.0.0.2-127.0.0.1").is_err());
        assert!(addresses("::1-::2").is_err());
        assert!(addresses("here").is_err());
    }

    #[test]
    fn witnesses_are_whole_pairs() {
        let witnesses = |line: &str| {
            let words = std::iter::once("iris-loadgen").chain(line.split(' '));
            Args::try_parse_from(words).expect("it parses").witnesses()
        };
        assert_eq!(witnesses("pairs"), 0);
        assert_eq!(witnesses("storm -c 1000"), 50);
        assert_eq!(witnesses("storm -c 10"), 2);
        assert_eq!(witnesses("storm --witnesses 7"), 8);
        assert_eq!(witnesses("storm --witnesses 0"), 0);
        assert_eq!(witnesses("storm -c 1000 --witnesses 20%"), 200);
        assert!(amount("many").is_err() && amount("-1%").is_err() && amount("x%").is_err());
    }

    #[test]
    fn nonsense_is_named() {
        let sentence = |line: &str| {
            let words = std::iter::once("iris-loadgen").chain(line.split(' '));
            Args::try_parse_from(words).expect("it parses").check().err().unwrap_or_default()
        };
        assert_eq!(sentence("pairs"), "");
        assert_eq!(sentence("idle --steps 10,20"), "");
        assert!(sentence("pairs -c 3").contains("even"));
        assert!(sentence("pairs --size 8").contains("--size"));
        assert_eq!(sentence("relay --rate 1000"), "");
        assert_eq!(sentence("relay --confirm"), "");
        assert!(sentence("pairs --confirm").contains("relay"));
        assert!(sentence("idle --steps 20,10").contains("rise"));
        assert!(sentence("pairs --rate 0").contains("--rate"));
        assert!(sentence("pairs --rate NaN").contains("--rate"));
        assert!(sentence("pairs --warmup 10").contains("--warmup"));
        assert_eq!(sentence("pairs --protocol mqtt"), "");
        assert!(sentence("pairs --protocol nats").contains("best-effort"));
        assert!(sentence("offline --protocol mqtt").contains("idle"));
        assert!(sentence("pairs --protocol mqtt --reconnect").contains("--reconnect"));
        assert_eq!(sentence("storm -c 100"), "");
        assert!(sentence("storm -c 3").contains("even"));
        assert!(sentence("slow --protocol v1").contains("v2"));
        assert!(sentence("churn --warmup 1").contains("--calm"));
        assert!(sentence("crusher --calm 0").contains("--calm"));
        assert_eq!(sentence("pairs --chaos kill:50,stall"), "");
        assert!(sentence("relay --in-flight 1 --chaos kill").contains("--chaos"));
        assert!(sentence("chaos --warmup 1").contains("--calm"));
    }
}
