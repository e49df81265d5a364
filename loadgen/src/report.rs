//! The results: a table for people, JSON for programs, HDR text for plots.

mod chaos;
mod ordeal;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::args::Args;
use crate::crowd::Outcome;
use crate::figures::{Figures, Latency};
use crate::probe::{self, Moment, Sample};
use crate::scenario::Scenario;
use crate::spec::Protocol;

/// Above this lateness at the 99th percentile the load generator, not the
/// server, is what was measured, milliseconds.
const LAG_MS_MAX: f64 = 10.0;
/// The same for the CPU share of the busiest worker.
const CPU_SHARE_MAX: f64 = 0.9;

const PERCENTILES: [(&str, f64); 5] =
    [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9), ("p99.99", 99.99)];

/// Whether every promise was kept, and if not, why.
pub(crate) fn failures(args: &Args, figures: &Figures) -> Vec<String> {
    let findings = &figures.findings;
    let mut list = Vec::new();
    let counts = [
        (findings.missing, "confirmed messages did not arrive"),
        (findings.duplicates, "messages arrived twice"),
        (findings.reordered, "messages arrived out of order"),
        (findings.corrupt, "messages were changed on the way"),
        (findings.foreign, "messages arrived at the wrong user"),
        (findings.unconfirmed, "messages were never confirmed"),
        (findings.forgotten, "confirmed messages were forgotten by the server"),
        (findings.refused, "messages were refused for good"),
        (figures.errors, "errors of the protocol"),
        (figures.never_handed, "messages were due and could not be sent until the end"),
        (figures.skipped, "messages were due when no more could be kept: in no figure above"),
    ];
    for (count, text) in counts {
        if count > 0 {
            list.push(format!("{count} {text}"));
        }
    }
    if figures.given_up > 0 {
        list.push("an act came to no end: what it waited for never happened".to_owned());
    }
    if figures.lost_connections > 0 && !args.reconnects() {
        list.push(format!("{} connections were lost", figures.lost_connections));
    }
    let gone = figures.outages.iter().any(|outage| outage.all_back_ms.is_none());
    if gone && args.reconnects() && !figures.interrupted {
        list.push("not every lost connection came back".to_owned());
    }
    if figures.interrupted && !figures.settled {
        list.push("interrupted before everything had arrived".to_owned());
    }
    list
}

/// Why the figures tell more about the load generator than about the server.
pub(crate) fn bottleneck(figures: &Figures) -> Option<String> {
    let lag_ms = figures.lag.percentile_ms(99.0);
    if figures.lag.count() > 0 && lag_ms > LAG_MS_MAX {
        return Some(format!("it sent late: p99 {lag_ms:.1} ms behind its schedule"));
    }
    if figures.cpu_share_max > CPU_SHARE_MAX {
        let percent = figures.cpu_share_max * 100.0;
        return Some(format!("its busiest worker used {percent:.0} % of a core"));
    }
    None
}

/// What a server that did not confirm in time, or was away, did to the schedule.
fn backlog(figures: &Figures) -> Option<String> {
    if figures.kept == 0 {
        return None;
    }
    let whose = match bottleneck(figures) {
        None => "the server did not confirm in time or was away",
        Some(_) => "server or load generator were too slow, which cannot be told apart here",
    };
    Some(format!(
        "{whose}: {} messages could not leave when they were due, by up to {:.2} s, and count from then",
        count(figures.kept),
        figures.kept_ns_max as f64 / 1e9
    ))
}

/// The table for people.
pub(crate) fn table(args: &Args, outcome: &Outcome) -> String {
    let figures = &outcome.figures;
    let mut out = String::new();
    let text = &mut out;
    line(text, &title(args, outcome));
    line(text, &connections(figures));
    let says_itself =
        matches!(args.scenario, Scenario::Idle | Scenario::HotInbox | Scenario::Storm);
    if figures.window_ns > 0 && !says_itself {
        line(text, &rates(args, figures));
    }
    ordeal::lines(args, outcome).iter().for_each(|found| line(text, found));
    chaos::lines(args, figures).iter().for_each(|found| line(text, found));
    latencies(text, args, figures);
    server(text, args, outcome);
    generator(text, figures);
    verification(text, args, figures);
    out
}

fn line(out: &mut String, text: &str) {
    out.push_str(text);
    out.push('\n');
}

fn title(args: &Args, outcome: &Outcome) -> String {
    let scenario = name(&args.scenario);
    let protocol = name(&args.protocol);
    let class = name(&args.class);
    let load = match args.in_flight {
        _ if args.scenario.is_ordeal() => ordeal::load(args),
        Some(n) => format!("CLOSED loop, {n} in flight per pair (latencies hide waiting)"),
        None if args.scenario == Scenario::Idle => "silence".to_owned(),
        None => {
            format!("open loop, {} messages/s {}", count(args.rate() as u64), name(&args.arrivals))
        }
    };
    let what = match (args.scenario, args.protocol) {
        (Scenario::Relay, _) if args.confirm => "relay that answers".to_owned(),
        (Scenario::Relay, _) => "bare relay".to_owned(),
        (_, Protocol::V2 | Protocol::Mqtt) => format!("{protocol} {class}"),
        _ => protocol,
    };
    let seconds = match args.scenario {
        // They take as long as they take.
        Scenario::HotInbox | Scenario::Storm => String::new(),
        _ => format!("{} s, ", args.duration),
    };
    format!(
        "{scenario}: {what}, {} B, {load}, {seconds}{} worker{}",
        args.size,
        outcome.workers,
        if outcome.workers == 1 { "" } else { "s" }
    )
}

fn confirms_nothing(args: &Args) -> bool {
    args.scenario.confirms_nothing(args.confirm, args.protocol, args.class)
}

fn connections(figures: &Figures) -> String {
    let mut text = format!(
        "connections  {} held, {} logins, {} lost, {} attempts failed",
        count(u64::from(figures.connections)),
        count(figures.logins),
        count(figures.lost_connections),
        count(figures.failed_connects),
    );
    let longest =
        figures.outages.iter().max_by_key(|outage| outage.length_ms().unwrap_or(u64::MAX));
    if let Some(outage) = longest {
        let after = |ms: Option<u64>| {
            ms.map_or("never".to_owned(), |ms| {
                format!("{:.2} s", ms.saturating_sub(outage.began_ms) as f64 / 1e3)
            })
        };
        let _infallible = write!(
            text,
            "\noutages      {}; longest: first connection back after {}, all after {}",
            figures.outages.len(),
            after(outage.first_back_ms),
            after(outage.all_back_ms)
        );
    }
    text
}

fn rates(args: &Args, figures: &Figures) -> String {
    let rate = |n: u64| count(figures.per_second(n).round() as u64);
    let confirmed = if confirms_nothing(args) {
        String::new()
    } else {
        format!("{} confirmed, ", rate(figures.window_sent))
    };
    format!(
        "per second   {} given, {confirmed}{} arrived",
        rate(figures.window_given),
        rate(figures.window_received)
    )
}

/// Every histogram with what it measures.
fn histograms(figures: &Figures) -> [(&'static str, &'static str, &Latency); 14] {
    [
        ("login", "connecting to logged in", &figures.login),
        ("back", "the cut to logged in again", &figures.back),
        ("served", "the cut to having everything that waited", &figures.served),
        ("visit", "intended beginning to everything confirmed", &figures.visit),
        ("witness_before", "others, before: intended time to arrival", &figures.witness_before),
        ("witness_during", "others, during", &figures.witness_during),
        ("witness_after", "others, after", &figures.witness_after),
        ("sent", "intended time to confirmation", &figures.sent),
        ("delivered", "intended time to arrival", &figures.delivered),
        ("disturbed", "intended time to confirmation or arrival, if hit", &figures.disturbed),
        ("collected", "login to arrival of what waited", &figures.collected),
        ("sent_service", "handed over to confirmation", &figures.sent_service),
        ("delivered_service", "handed over to arrival", &figures.delivered_service),
        ("lag", "intended time to taken up", &figures.lag),
    ]
}

fn latencies(out: &mut String, args: &Args, figures: &Figures) {
    let mut header = format!("{:<18}{:>12}", "milliseconds", "count");
    for (name, _) in PERCENTILES {
        let _infallible = write!(header, "{name:>10}");
    }
    let _infallible = write!(header, "{:>10}", "max");
    line(out, &header);
    for (name, meaning, latency) in histograms(figures) {
        // In a closed loop the intended time is the time of handing over.
        let same = args.is_closed()
            && !args.scenario.is_ordeal()
            && (name.ends_with("_service") || name == "lag");
        if latency.count() == 0 || same {
            continue;
        }
        let mut row = format!("{name:<18}{:>12}", count(latency.count()));
        for (_, percent) in PERCENTILES {
            let _infallible = write!(row, "{:>10.3}", latency.percentile_ms(percent));
        }
        let _infallible = write!(row, "{:>10.3}  {meaning}", latency.max_ms());
        line(out, &row);
    }
}

fn server(out: &mut String, args: &Args, outcome: &Outcome) {
    let samples = &outcome.samples;
    for sample in samples {
        line(
            out,
            &format!(
                "server       {:>9} connections ({}): {:.1} MiB resident, {:.1} MiB slab of the machine",
                count(u64::from(sample.connections)),
                name(&sample.moment),
                sample.rss_bytes as f64 / 1_048_576.0,
                sample.slab_bytes as f64 / 1_048_576.0
            ),
        );
    }
    if let Some(slope) = slope(args, outcome) {
        line(
            out,
            &format!(
                "per connection {:.0} B resident{}, {:.0} B kernel slab, both ends",
                slope.rss_bytes,
                slope.anon_bytes.map_or(String::new(), |n| format!(" ({n:.0} B of it anonymous)")),
                slope.slab_bytes
            ),
        );
    }
    if let Some(cpu_ns) = outcome.server_cpu_ns
        && outcome.figures.window_ns > 0
    {
        let share = cpu_ns as f64 / outcome.figures.window_ns as f64 * 100.0;
        let mut text = format!("server CPU   {share:.0} % of a core");
        let messages = outcome.figures.window_received;
        if messages > 0 {
            let _infallible =
                write!(text, ", {:.2} µs per message", cpu_ns as f64 / 1e3 / messages as f64);
        }
        line(out, &text);
    }
}

/// Memory per connection from the first step (or the empty server, where there
/// are no steps) to the last.
fn slope(args: &Args, outcome: &Outcome) -> Option<probe::Slope> {
    if args.scenario.is_ordeal() {
        // Not everyone is there when its connections are held.
        return None;
    }
    let held = |sample: &&Sample| sample.moment == Moment::Held;
    let last = outcome.samples.iter().rfind(held)?;
    let first =
        outcome.samples.iter().find(held).filter(|first| first.connections < last.connections);
    let empty = outcome.samples.first().filter(|sample| sample.moment == Moment::Start);
    probe::slope(first.or(empty)?, last)
}

fn generator(out: &mut String, figures: &Figures) {
    let mut text =
        format!("generator    busiest worker {:.0} % CPU", figures.cpu_share_max * 100.0);
    if figures.lag.count() > 0 {
        let _infallible = write!(text, ", lag p99 {:.3} ms", figures.lag.percentile_ms(99.0));
    }
    let refusals = figures.refusals();
    if figures.gaps + figures.held > 0 {
        let _infallible = write!(
            text,
            "; repeated after {} gaps and {} temporary refusals",
            count(figures.gaps),
            count(figures.held)
        );
    }
    line(out, &text);
    for (what, times) in refusals {
        line(out, &format!("refused      {} times {what}", count(times)));
    }
    if let Some(why) = bottleneck(figures) {
        line(out, &format!("NOTE         the load generator was the bottleneck: {why}"));
    }
    if let Some(why) = backlog(figures) {
        line(out, &format!("NOTE         {why}"));
    }
}

fn verification(out: &mut String, args: &Args, figures: &Figures) {
    let findings = &figures.findings;
    if findings.given > 0 {
        let confirmed = if confirms_nothing(args) {
            "nothing is confirmed".to_owned()
        } else {
            format!("{} confirmed", count(findings.sent))
        };
        let mut text = format!(
            "verified     {} given, {confirmed}, {} arrived; {} missing, {} duplicate, {} out of order",
            count(findings.given),
            count(findings.received),
            count(findings.missing),
            count(findings.duplicates),
            count(findings.reordered),
        );
        if findings.redelivered > 0 {
            let _infallible =
                write!(text, "; {} came again after a reconnect", count(findings.redelivered));
        }
        if findings.lost_allowed > 0 {
            let _infallible =
                write!(text, "; {} lost in the outage, as allowed", count(findings.lost_allowed));
        }
        line(out, &text);
    }
    for example in &findings.examples {
        line(out, &format!("             {example}"));
    }
    let failures = failures(args, figures);
    if failures.is_empty() {
        line(out, "verdict      ok");
    } else {
        line(out, &format!("verdict      FAILED: {}", failures.join("; ")));
    }
}

/// The results for programs.
pub(crate) fn json(args: &Args, outcome: &Outcome) -> Value {
    let figures = &outcome.figures;
    let failures = failures(args, figures);
    let latencies: serde_json::Map<String, Value> = histograms(figures)
        .into_iter()
        .filter(|(_, _, latency)| latency.count() > 0)
        .map(|(name, _, latency)| (name.to_owned(), percentiles(latency)))
        .collect();
    json!({
        "scenario": name(&args.scenario),
        "protocol": name(&args.protocol),
        "class": name(&args.class),
        "size_bytes": args.size,
        "loop": if args.is_closed() { "closed" } else { "open" },
        "in_flight": args.in_flight,
        "rate": (!args.is_closed()).then_some(args.rate()),
        "duration_s": args.duration,
        "workers": outcome.workers,
        "seed": args.seed,
        "connections": figures.connections,
        "logins": figures.logins,
        "lost_connections": figures.lost_connections,
        "failed_connects": figures.failed_connects,
        "outages": figures.outages,
        "late": {
            "kept": figures.kept,
            "longest_ms": figures.kept_ns_max as f64 / 1e6,
            "never_handed": figures.never_handed,
            "skipped": figures.skipped,
        },
        "given_per_s": figures.per_second(figures.window_given),
        "sent_per_s": figures.per_second(figures.window_sent),
        "delivered_per_s": figures.per_second(figures.window_received),
        "latency_ms": latencies,
        "server": {
            "samples": outcome.samples,
            "per_connection": slope(args, outcome),
            "cpu_ns": outcome.server_cpu_ns,
        },
        "generator": {
            "cpu_share_max": figures.cpu_share_max,
            "cpu_ns": figures.cpu_ns,
            "bottleneck": bottleneck(figures),
        },
        "ordeal": ordeal::json(args, outcome),
        "chaos": chaos::json(args, figures),
        "refusals": figures.refusals().into_iter().collect::<BTreeMap<_, _>>(),
        "gaps": figures.gaps,
        "held": figures.held,
        "errors": figures.errors,
        "findings": figures.findings,
        "failures": failures,
        "ok": failures.is_empty(),
    })
}

fn percentiles(latency: &Latency) -> Value {
    let mut map = serde_json::Map::new();
    map.insert("count".to_owned(), json!(latency.count()));
    map.insert("mean".to_owned(), json!(latency.mean_ms()));
    for (name, percent) in PERCENTILES {
        map.insert(name.to_owned(), json!(latency.percentile_ms(percent)));
    }
    map.insert("max".to_owned(), json!(latency.max_ms()));
    Value::Object(map)
}

/// Writes every histogram that has values beside `prefix`.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn write_hgrm(prefix: &Path, figures: &Figures) -> io::Result<()> {
    for (name, _, latency) in histograms(figures) {
        if latency.count() > 0 {
            let mut path = prefix.as_os_str().to_owned();
            path.push(format!(".{name}.hgrm"));
            fs::write(path, hgrm(latency.histogram()))?;
        }
    }
    Ok(())
}

/// The percentile distribution as HdrHistogram's own tools write it, values in
/// milliseconds.
fn hgrm(histogram: &Histogram<u64>) -> String {
    let mut out = String::new();
    line(&mut out, "       Value     Percentile TotalCount 1/(1-Percentile)\n");
    let mut total = 0;
    for step in histogram.iter_quantiles(5) {
        total += step.count_since_last_iteration();
        let value = step.value_iterated_to() as f64 / 1e6;
        let quantile = step.quantile_iterated_to();
        let row = if quantile < 1.0 {
            format!("{value:12.3} {quantile:1.12} {total:10} {:14.2}", 1.0 / (1.0 - quantile))
        } else {
            format!("{value:12.3} {quantile:1.12} {total:10}            inf")
        };
        line(&mut out, &row);
    }
    let (mean, deviation) = (histogram.mean() / 1e6, histogram.stdev() / 1e6);
    line(&mut out, &format!("#[Mean    = {mean:12.3}, StdDeviation   = {deviation:12.3}]"));
    let max = histogram.max() as f64 / 1e6;
    line(&mut out, &format!("#[Max     = {max:12.3}, Total count    = {:12}]", histogram.len()));
    let sub_buckets = 2048;
    line(
        &mut out,
        &format!("#[Buckets = {:12}, SubBuckets     = {sub_buckets:12}]", histogram.buckets()),
    );
    out
}

/// The name of a choice as the command line has it.
fn name(choice: &impl serde::Serialize) -> String {
    match serde_json::to_value(choice) {
        Ok(Value::String(name)) => name,
        other => unreachable!("choices are written as their names: {other:?}"),
    }
}

/// A number with commas.
fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_commas() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_000), "1,000");
        assert_eq!(count(12_345_678), "12,345,678");
    }

    #[test]
    fn hgrm_ends_at_the_maximum() {
        let mut latency = Latency::new();
        (1..=1000).for_each(|ms| latency.record(ms * 1_000_000));
        let text = hgrm(latency.histogram());
        assert!(text.starts_with("       Value     Percentile TotalCount 1/(1-Percentile)\n\n"));
        let last = text.lines().rfind(|line| !line.starts_with('#')).expect("rows");
        assert!(last.contains("1.000000000000       1000"), "{last}");
        assert!(text.contains("Total count    =         1000]"));
    }

    #[test]
    fn a_late_generator_says_so() {
        let mut figures = Figures::default();
        assert_eq!(bottleneck(&figures), None);
        (0..100).for_each(|_| figures.lag.record(20_000_000));
        assert!(bottleneck(&figures).is_some_and(|why| why.contains("late")));
    }

    #[test]
    fn a_full_outbox_is_the_servers_unless_the_generator_was_slow() {
        let mut figures = Figures { kept: 7, kept_ns_max: 2_500_000_000, ..Figures::default() };
        assert_eq!(bottleneck(&figures), None);
        let why = backlog(&figures).expect("messages waited");
        assert!(why.starts_with("the server did not confirm"), "{why}");
        assert!(why.contains("7 messages") && why.contains("2.50 s"), "{why}");
        figures.cpu_share_max = 0.95;
        assert!(backlog(&figures).is_some_and(|why| why.contains("cannot be told apart")));
    }
}
