//! What an ordeal showed, beyond the histograms.

use serde_json::{Value, json};

use super::count;
use crate::args::Args;
use crate::crowd::Outcome;
use crate::figures::Figures;
use crate::probe::{Moment, Sample};
use crate::scenario::Scenario;

/// What the crowd does, for the title.
pub(super) fn load(args: &Args) -> String {
    let rate = || count(args.rate() as u64);
    match args.scenario {
        Scenario::HotInbox => format!(
            "{} senders fill {} away with {} messages",
            count(u64::from(args.connections)),
            users(args.absent.unwrap_or(1)),
            count(args.messages)
        ),
        Scenario::Storm => format!(
            "{} cut at once, {} messages wait for each",
            users(args.connections),
            args.waiting
        ),
        Scenario::Slow => format!(
            "{} never read, {} messages wait for each and {} messages/s come",
            users(args.connections),
            args.waiting,
            rate()
        ),
        Scenario::Churn => format!(
            "{} come and go, {} visits/s of {} messages",
            users(args.connections),
            args.visit_rate,
            args.visit_messages
        ),
        _ if args.is_closed() => {
            format!("CLOSED loop to absent users, {} in flight per sender", args.depth())
        }
        _ => format!("open loop to absent users, {} messages/s", rate()),
    }
}

fn users(n: u32) -> String {
    if n == 1 { "1 user".to_owned() } else { format!("{} users", count(u64::from(n))) }
}

/// The lines for people.
pub(super) fn lines(args: &Args, outcome: &Outcome) -> Vec<String> {
    let figures = &outcome.figures;
    let mut lines = Vec::new();
    if figures.filled > 0 {
        lines.push(format!(
            "filled       {} messages in {:.2} s",
            count(figures.filled),
            figures.fill_ns as f64 / 1e9
        ));
    }
    match args.scenario {
        Scenario::HotInbox => lines.push(format!(
            "emptied      in {:.0} ms from the login to the last message: {} messages/s out",
            figures.collected.max_ms(),
            count(out_per_s(figures).round() as u64)
        )),
        Scenario::Storm => lines.push(storm_line(args, figures)),
        Scenario::Churn => lines.push(format!(
            "visits       {} begun, {} skipped because the last one was not over, {} ended by a reset",
            count(figures.visits),
            count(figures.visits_skipped),
            count(figures.resets)
        )),
        _ => {}
    }
    lines.extend(memory_line(args, outcome));
    if let Some((before, during)) = witnesses(figures) {
        lines.push(format!(
            "witnesses    p99 {before:.3} ms before, {during:.3} ms during: {:.1} times",
            during / before
        ));
    }
    lines
}

fn storm_line(args: &Args, figures: &Figures) -> String {
    if figures.back.count() == 0 {
        return "storm        ended before anybody was back".to_owned();
    }
    let served = |percent: f64| figures.served.percentile_ms(percent) / 1e3;
    format!(
        "storm        {} cut in {:.3} s, {} back: {} logins/s; served: 50 % after {:.3} s, \
         90 % {:.3} s, 99 % {:.3} s, 100 % {:.3} s",
        count(u64::from(args.connections)),
        figures.cut_ns as f64 / 1e9,
        count(figures.back.count()),
        count(logins_per_s(figures).round() as u64),
        served(50.0),
        served(90.0),
        served(99.0),
        figures.served.max_ms() / 1e3,
    )
}

fn memory_line(args: &Args, outcome: &Outcome) -> Option<String> {
    let (before, during) = memory(outcome)?;
    if args.scenario != Scenario::Slow {
        return None;
    }
    let mib = |sample: &Sample| sample.rss_bytes as f64 / 1_048_576.0;
    Some(format!(
        "slow         server resident {:.1} MiB before, {:.1} MiB with them: {:.0} B for each",
        mib(before),
        mib(during),
        per_user(args, before, during)
    ))
}

fn per_user(args: &Args, before: &Sample, during: &Sample) -> f64 {
    (during.rss_bytes as f64 - before.rss_bytes as f64) / f64::from(args.connections)
}

fn memory(outcome: &Outcome) -> Option<(&Sample, &Sample)> {
    let at = |moment: Moment| outcome.samples.iter().find(|sample| sample.moment == moment);
    Some((at(Moment::Before)?, at(Moment::During)?))
}

/// The witnesses' p99 before and during the ordeal, milliseconds.
fn witnesses(figures: &Figures) -> Option<(f64, f64)> {
    let (before, during) = (&figures.witness_before, &figures.witness_during);
    let both = before.count() > 0 && during.count() > 0;
    both.then(|| (before.percentile_ms(99.0), during.percentile_ms(99.0)))
}

fn out_per_s(figures: &Figures) -> f64 {
    per_second(figures.collected.count(), figures.collected.max_ms())
}

fn logins_per_s(figures: &Figures) -> f64 {
    per_second(figures.back.count(), figures.back.max_ms())
}

fn per_second(count: u64, ms: f64) -> f64 {
    if ms > 0.0 { count as f64 * 1e3 / ms } else { 0.0 }
}

/// The results for programs; null where there was no ordeal.
pub(super) fn json(args: &Args, outcome: &Outcome) -> Value {
    if !args.scenario.is_ordeal() && args.scenario != Scenario::Chaos {
        return Value::Null;
    }
    let figures = &outcome.figures;
    let p99 = witnesses(figures);
    let memory = memory(outcome);
    let mut value = json!({
        "witnesses": args.witnesses(),
        "witness_rate": args.witness_rate(),
        "witness_p99_before_ms": p99.map(|(before, _)| before),
        "witness_p99_during_ms": p99.map(|(_, during)| during),
        "filled": figures.filled,
        "fill_s": figures.fill_ns as f64 / 1e9,
        "rss_before_bytes": memory.map(|(before, _)| before.rss_bytes),
        "rss_during_bytes": memory.map(|(_, during)| during.rss_bytes),
        "given_up": figures.given_up,
    });
    let own = match args.scenario {
        Scenario::HotInbox => json!({
            "out_ms": figures.collected.max_ms(),
            "out_per_s": out_per_s(figures),
        }),
        Scenario::Storm => json!({
            "cut_s": figures.cut_ns as f64 / 1e9,
            "back": figures.back.count(),
            "logins_per_s": logins_per_s(figures),
            "served": figures.served.count(),
            "served_50_s": figures.served.percentile_ms(50.0) / 1e3,
            "served_90_s": figures.served.percentile_ms(90.0) / 1e3,
            "served_99_s": figures.served.percentile_ms(99.0) / 1e3,
            "served_100_s": figures.served.max_ms() / 1e3,
        }),
        Scenario::Slow => json!({
            "rss_per_user_bytes": memory.map(|(before, during)| per_user(args, before, during)),
        }),
        Scenario::Churn => json!({
            "visits": figures.visits,
            "visits_skipped": figures.visits_skipped,
            "resets": figures.resets,
        }),
        _ => json!({}),
    };
    let (Value::Object(all), Value::Object(own)) = (&mut value, own) else {
        unreachable!("both are objects");
    };
    all.extend(own);
    value
}
