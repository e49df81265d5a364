//! How long a confirmation waits for a delivery to share its send with.
//!
//! Clients that answer each other hear of something again after one trip through
//! the server and the other client: all of them after about the same time, which
//! a wait a little longer than the mean covers. Where company is chance the times
//! scatter, and the same wait meets about two of three: too few for the hands to
//! let anything wait on most connections, but a few are lucky for a while, and
//! that wait is then what one confirmation in twenty takes. So what the wait meets
//! is counted, too, and where it is less than seven of eight the hands ask for
//! more luck than that. It does not have to be known how many clients there are,
//! nor what they do. One connection at a time is timed for both.
//!
//! Time is counted in what this core has to send to anybody (*sends*): it stands
//! still while a disk or a load generator does.

use net::LATE_PERIODS;
use shard::Conn;

/// The shortest wait, per mille of the mean.
const LEAST_PERMILLE: u64 = 1_300;
/// One of so many parts of the mean is the latest time.
const MEMORY: u64 = 8;
/// One of so many parts of the share that the wait meets is the latest.
const MET_MEMORY: u64 = 64;
/// Where it meets fewer of a thousand, company is chance.
const MET_MIN: u64 = 875;
/// Before anything was timed, and at most, sends.
const MEAN: u64 = 1_000;
const MEAN_MAX: u64 = 100_000;
/// A period is over after so long at the latest, so that nothing waits for more
/// than four times this and a turn.
const LATE_NS: u64 = 10_000_000;

/// See the module.
pub(super) struct Company {
    /// What was sent that does not wait.
    sends: u64,
    /// When the last period ended, in sends and by the clock.
    ended_at: u64,
    ended_ns: u64,
    /// Who was sent a confirmation, and when.
    timed: Option<(Conn, u64)>,
    /// [`MEMORY`] times the mean, sends.
    means: u64,
    /// [`MET_MEMORY`] times how many of a thousand found company in time.
    met: u64,
}

impl Default for Company {
    fn default() -> Company {
        Company {
            sends: 0,
            ended_at: 0,
            ended_ns: 0,
            timed: None,
            means: MEAN * MEMORY,
            met: 1_000 * MET_MEMORY,
        }
    }
}

impl Company {
    /// A confirmation is ready for this connection.
    pub(super) fn confirmed(&mut self, conn: Conn) {
        if let Some((_, since)) = self.timed {
            if self.sends - since < self.longest() {
                return;
            }
            // Nothing came. Whoever waits longer does not wait for company.
            self.took(self.longest());
        }
        self.timed = Some((conn, self.sends));
    }

    /// Something that does not wait is on its way there.
    pub(super) fn sent(&mut self, conn: Conn) {
        self.sends += 1;
        if let Some((timed, since)) = self.timed
            && timed == conn
        {
            self.took((self.sends - since).min(self.longest()));
            self.timed = None;
        }
    }

    /// How many periods have ended since it was asked last. Not all that a wait
    /// has: what began to wait since then has some of its time left.
    pub(super) fn ended(&mut self, now_ns: u64) -> u64 {
        let period = self.period();
        let by_sends = whole(&mut self.ended_at, self.sends, period);
        let by_clock = whole(&mut self.ended_ns, now_ns, LATE_NS);
        if by_sends > 0 {
            self.ended_ns = now_ns;
        }
        by_sends.max(by_clock).min(LATE_PERIODS as u64 - 1)
    }

    /// Sends in a period.
    fn period(&self) -> u64 {
        let least = self.means / MEMORY * LEAST_PERMILLE / 1_000;
        1 + least / (LATE_PERIODS as u64 - 1)
    }

    /// Whether company comes by chance, and not because clients answer each other.
    pub(super) fn is_chance(&self) -> bool {
        self.met < MET_MIN * MET_MEMORY
    }

    /// Company came after this time, or had not come when the longest was over.
    fn took(&mut self, time: u64) {
        let met = if time < self.longest() { 1_000 } else { 0 };
        self.met = self.met - self.met / MET_MEMORY + met;
        self.means = (self.means - self.means / MEMORY + time).min(MEAN_MAX * MEMORY);
    }

    fn longest(&self) -> u64 {
        self.period() * LATE_PERIODS as u64
    }
}

/// How many whole periods are between `from`, which moves on by them, and `to`.
fn whole(from: &mut u64, to: u64, period: u64) -> u64 {
    let periods = (to - *from) / period;
    *from += periods * period;
    periods
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conn(slot: u32) -> Conn {
        Conn { slot, generation: 1 }
    }

    /// The shortest and the longest wait after confirmations of which each finds
    /// company after the next of `times`.
    fn waits(times: impl IntoIterator<Item = u64>) -> (u64, u64) {
        let mut company = Company::default();
        time(&mut company, times);
        (company.longest() - company.period(), company.longest())
    }

    fn time(company: &mut Company, times: impl IntoIterator<Item = u64>) {
        for time in times {
            company.confirmed(conn(1));
            for _ in 1..time {
                company.sent(conn(2));
            }
            company.sent(conn(1));
        }
    }

    #[test]
    fn a_wait_is_a_little_longer_than_company_takes() {
        for time in [20, 500, 20_000] {
            let (least, most) = waits(std::iter::repeat_n(time, 100));
            assert!(least > time + time / 5, "{least} for {time}");
            assert!(most < 2 * time, "{most} for {time}");
        }
    }

    /// It shrinks and grows with what it has to cover.
    #[test]
    fn it_follows_clients_of_which_there_are_more() {
        let times = std::iter::repeat_n(10, 200).chain(std::iter::repeat_n(900, 200));
        let (least, most) = waits(times);
        assert!(least > 900 && most < 1_800, "{least} to {most}");
    }

    /// Times as between clients that send whenever they want to: the longest
    /// wait meets fewer than three of four of them, and the hands ask for six of
    /// seven.
    #[test]
    fn where_company_is_chance_the_wait_is_too_short_for_it() {
        let times = exponential(1_000);
        let (_, most) = waits(times.iter().copied());
        let met = times.iter().filter(|time| **time <= most).count();
        assert!(met * 4 < times.len() * 3, "{met} of {} within {most}", times.len());
    }

    /// What the hands are told to ask for follows what clients do.
    #[test]
    fn it_is_told_whether_company_is_chance() {
        let mut company = Company::default();
        assert!(!company.is_chance(), "nothing is known yet");
        let answers = || std::iter::repeat_n(500, 400);
        for (times, is_chance) in
            [(exponential(1_000), true), (answers().collect(), false), (exponential(30), true)]
        {
            time(&mut company, times);
            assert_eq!(company.is_chance(), is_chance);
        }
        // So many of a hundred come in time.
        for (met, is_chance) in [(95, false), (82, true), (92, false)] {
            let slow = |n: u64| n * 37 % 100 >= met;
            time(
                &mut company,
                answers().zip(0..).map(|(time, n)| if slow(n) { 9 * time } else { time }),
            );
            assert_eq!(company.is_chance(), is_chance, "{met} of a hundred");
        }
    }

    fn exponential(mean: u64) -> Vec<u64> {
        let shares = (0..4_000u64).map(|n| (n * 7_919 % 4_000) as f64 / 4_000.0);
        shares.map(|share| 1 + (-(1.0 - share).ln() * mean as f64) as u64).collect()
    }

    /// Where most send to somebody who is away nothing but the clock ends a wait.
    #[test]
    fn silence_has_a_bound() {
        let mut company = Company::default();
        for n in 0..2_000 {
            company.confirmed(conn(n));
            company.sends += company.longest();
        }
        assert_eq!(company.means / MEMORY, MEAN_MAX);
    }

    /// A period ends after as many sends as it has, and another begins.
    #[test]
    fn periods_follow_each_other() {
        let mut company = Company::default();
        let period = company.period();
        let mut after = |sends| {
            for _ in 0..sends {
                company.sent(conn(1));
            }
            company.ended(0)
        };
        assert_eq!(after(period - 1), 0);
        assert_eq!(after(1), 1);
        assert_eq!(after(3 * period / 2), 1);
        assert_eq!(after(period / 2 + 1), 1);
        assert_eq!(after(5 * period), 3, "what has just begun to wait goes on");
    }

    /// However long turns take.
    #[test]
    fn the_clock_ends_periods_in_which_little_is_sent() {
        let mut company = Company::default();
        let turns = (0..=100 * LATE_NS).step_by(LATE_NS as usize * 9 / 10);
        let ended: u64 = turns.map(|now_ns| company.ended(now_ns)).sum();
        assert_eq!(ended, 99);
        assert_eq!(company.ended(200 * LATE_NS), 3);
        assert_eq!(company.ended(201 * LATE_NS), 1);
    }

    /// One of both is enough: more would end waits too early.
    #[test]
    fn the_clock_begins_anew_with_each_period() {
        let mut company = Company::default();
        let ended: u64 = (0..100u64)
            .map(|turn| {
                for _ in 0..company.period() / 2 {
                    company.sent(conn(1));
                }
                company.ended(turn * LATE_NS * 3 / 8)
            })
            .sum();
        assert_eq!(ended, 50);
    }
}
