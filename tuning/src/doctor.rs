//! Tells a person what the machine is, what was chosen and what lifts each
//! limit: as text, or as JSON for a program.

use std::fmt::Write;

use serde::Serialize;

use crate::plan::Plan;
use crate::probe::Machine;
use crate::quantity::{bytes, count};

/// The whole report; serializes to JSON as it stands.
#[derive(Clone, Debug, Serialize)]
pub struct Report<'a> {
    /// Whether the server can start with this plan.
    pub ready: bool,
    /// What is there.
    pub machine: &'a Machine,
    /// What was chosen.
    pub plan: &'a Plan,
    /// Why the data directory would be refused, as a sentence.
    pub data_dir_refused: Option<String>,
}

impl<'a> Report<'a> {
    /// Puts a report together.
    pub fn new(machine: &'a Machine, plan: &'a Plan, data_dir_refused: Option<String>) -> Self {
        let ready = plan.stops.is_empty() && data_dir_refused.is_none();
        Report { ready, machine, plan, data_dir_refused }
    }

    /// The exit code of the process, that of a start: 0 when the server can
    /// start, 5 when the machine stands in the way, 3 when the data directory
    /// does.
    pub fn exit_code(&self) -> u8 {
        match &self.data_dir_refused {
            _ if !self.plan.stops.is_empty() => 5,
            Some(_) => 3,
            None => 0,
        }
    }

    /// The report for a terminal, ending with a line break.
    pub fn text(&self) -> String {
        let mut out = String::new();
        out.push_str("Machine\n");
        for (what, found) in self.machine_lines() {
            line(&mut out, what, &found);
        }
        out.push_str("\nPlan\n");
        for reason in &self.plan.reasons {
            let _ = writeln!(out, "  {:<24} {:<12} {}", reason.what, reason.chosen, reason.because);
        }
        out.push_str("\nWhat stops it from more\n");
        for limit in &self.plan.limits {
            let _ = writeln!(out, "  {}: {}", limit.what, limit.holds_at);
            commands(&mut out, &limit.lift);
        }
        if self.plan.limits.is_empty() {
            out.push_str("  nothing that a setting could lift\n");
        }
        out.push('\n');
        for stop in &self.plan.stops {
            let _ = writeln!(out, "Cannot start: {}.", stop.sentence);
            commands(&mut out, &stop.lift);
        }
        if let Some(refusal) = &self.data_dir_refused {
            let _ = writeln!(out, "Cannot start: {refusal}.");
        }
        if self.ready {
            out.push_str("Ready: `iris-shard` can start with this plan.\n");
        }
        out
    }

    /// The report as indented JSON, ending with a line break.
    pub fn json(&self) -> String {
        let mut json = serde_json::to_string_pretty(self).expect("plain values serialize");
        json.push('\n');
        json
    }

    fn machine_lines(&self) -> Vec<(&'static str, String)> {
        let machine = self.machine;
        let (major, minor) = machine.kernel;
        let mut lines = vec![
            ("cores", cores(&machine.cores)),
            ("memory nodes", machine.numa_nodes.to_string()),
            ("memory", bytes(machine.ram_bytes)),
        ];
        if let Some(allowed) = machine.cgroup_memory_bytes {
            lines.push(("memory allowed", format!("{} by the control group", bytes(allowed))));
        }
        if machine.address_space < u64::MAX {
            lines.push(("address space", bytes(machine.address_space)));
        }
        if machine.file_bytes_max < u64::MAX {
            lines.push(("largest file", bytes(machine.file_bytes_max)));
        }
        if let Some(cpus) = machine.cgroup_cpus {
            lines.push(("CPU time allowed", format!("{cpus} cores by the control group")));
        }
        lines.push((
            "descriptors",
            format!(
                "{} (can be raised to {})",
                count(machine.nofile_soft),
                count(machine.nofile_hard)
            ),
        ));
        lines.push(("kernel", format!("Linux {major}.{minor}")));
        lines.push(("io_uring", ring(machine)));
        if !machine.without.names().is_empty() {
            lines.push(("done without", machine.without.names().join(", ")));
        }
        lines.push(("accept queue", count(u64::from(machine.somaxconn))));
        match &machine.disk {
            Some(disk) => lines.push((
                "disk",
                format!(
                    "{}, {}, {} free, {} durable 4 KiB writes/s, p50 {} µs, p99 {} µs",
                    disk.fs,
                    disk.direct_mode,
                    bytes(disk.free_bytes),
                    count(disk.fdatasync_per_s),
                    disk.write_p50_us,
                    disk.write_p99_us,
                ),
            )),
            None => lines.push(("disk", "not measured".to_owned())),
        }
        lines
    }
}

fn line(out: &mut String, what: &str, found: &str) {
    let _ = writeln!(out, "  {what:<24} {found}");
}

fn commands(out: &mut String, lift: &[String]) {
    for command in lift {
        let _ = writeln!(out, "      {command}");
    }
}

/// `4 (0-2, 7)`.
fn cores(cores: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &core in cores {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == core => *last = core,
            _ => runs.push((core, core)),
        }
    }
    let runs: Vec<String> =
        runs.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") }).collect();
    format!("{} ({})", cores.len(), runs.join(", "))
}

fn ring(machine: &Machine) -> String {
    match &machine.ring.unavailable {
        Some(why) => format!("none: {why}"),
        None if machine.ring.missing().is_empty() => "everything that is used".to_owned(),
        None => format!("works, without {}", machine.ring.missing().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_shown_as_runs() {
        assert_eq!(cores(&[0]), "1 (0)");
        assert_eq!(cores(&[0, 1, 2, 7]), "4 (0-2, 7)");
    }
}
