//! The kernel's own statistics of each BPF program.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use anyhow::Context;
use serde_json::Value;

use super::super::space::checked;
use crate::bench::figure::Program;

const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// The gathering, on until dropped.
#[derive(Debug)]
pub(in crate::guest) struct Statistics(());

/// Runs and instructions of each program, by its id.
pub(super) type Counts = BTreeMap<u64, (String, u64, u64)>;

impl Statistics {
    pub(in crate::guest) fn switch_on() -> anyhow::Result<Self> {
        fs::write(SWITCH, "1").context("switch on the statistics of BPF programs")?;
        Ok(Self(()))
    }
}

impl Drop for Statistics {
    fn drop(&mut self) {
        // The guest ends soon: a switch that stays on only costs.
        let _ = fs::write(SWITCH, "0");
    }
}

/// Reads them.
pub(super) fn read() -> anyhow::Result<Counts> {
    let text = checked(Command::new("bpftool").args(["-j", "prog", "show"]))?;
    let all: Vec<Value> = serde_json::from_str(&text).context("bpftool prog show")?;
    let number = |program: &Value, field: &str| program[field].as_u64().unwrap_or(0);
    Ok(all
        .iter()
        .map(|program| {
            let name = program["name"].as_str().unwrap_or("(no name)").to_owned();
            (number(program, "id"), (name, number(program, "run_cnt"), number(program, "run_time_ns")))
        })
        .collect())
}

/// How often all of them ran.
pub(in crate::guest) fn runs() -> anyhow::Result<u64> {
    Ok(read()?.values().map(|(_, runs, _)| runs).sum())
}

/// What each program did between two readings.
pub(super) fn since(before: &Counts, after: &Counts) -> Vec<Program> {
    let mut programs: Vec<Program> = after
        .iter()
        .filter_map(|(id, (name, runs, instructions))| {
            let (_, runs_before, instructions_before) = before.get(id)?;
            Some(Program {
                name: name.clone(),
                runs: runs - runs_before,
                instructions: instructions - instructions_before,
            })
        })
        .filter(|program| program.runs > 0)
        .collect();
    programs.sort_by_key(|program| std::cmp::Reverse(program.instructions));
    programs
}
