//! The scenarios, one function each: every count compared with what the kernel and the generators say.

mod alive;
mod attacker;
mod causes;
mod causes_others;
mod clash;
mod doctor;
mod events;
mod export;
mod filters;
mod footprint;
mod full;
mod generators;
mod hidden_code;
mod invalid;
mod manners;
mod misread;
mod modules;
mod netlink;
mod privileges;
pub(super) mod ranking;
mod record;
mod report;
mod screen;
mod spaces;
mod table;
mod trace;
mod traffic;
mod units;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;

use super::kernel_log::KernelLog;
use super::report::{Outcome, Report};
use super::space::Space;
use super::state;

/// A named scenario.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scenario {
    /// Its name, group first.
    pub(super) name: &'static str,
    run: fn() -> anyhow::Result<()>,
}

/// An error that means: this kernel cannot show it.
#[derive(Debug)]
struct Skip(String);

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

const fn scenario(name: &'static str, run: fn() -> anyhow::Result<()>) -> Scenario {
    Scenario { name, run }
}

/// All of them, in the order they run.
pub(super) fn all() -> Vec<Scenario> {
    // The guest boots without conntrack: what must not load it comes first.
    [
        events::SCENARIOS_BEFORE,
        manners::SCENARIOS_BEFORE,
        doctor::SCENARIOS_BEFORE,
        table::SCENARIOS_BEFORE,
        // Doctor warns of losses that the kernel's log still holds: before all that lose flows.
        doctor::SCENARIOS,
        generators::SCENARIOS,
        traffic::SCENARIOS,
        full::SCENARIOS,
        causes::SCENARIOS,
        causes_others::SCENARIOS,
        hidden_code::SCENARIOS,
        misread::SCENARIOS,
        netlink::SCENARIOS,
        events::SCENARIOS,
        clash::SCENARIOS,
        invalid::SCENARIOS,
        spaces::SCENARIOS,
        filters::SCENARIOS,
        footprint::SCENARIOS,
        ranking::SCENARIOS,
        record::SCENARIOS,
        report::SCENARIOS,
        trace::SCENARIOS,
        table::SCENARIOS,
        screen::SCENARIOS,
        export::SCENARIOS,
        manners::SCENARIOS,
        alive::SCENARIOS,
        attacker::SCENARIOS,
        privileges::SCENARIOS,
        modules::SCENARIOS,
        units::SCENARIOS,
        attacker::SCENARIOS_LAST,
    ]
    .concat()
}

/// Whether a scenario of this name is asked for: by a part of its name, by `=` and the whole of it, or by no filter.
pub(super) fn wanted(filters: &[String], name: &str) -> bool {
    let asks = |filter: &String| match filter.strip_prefix('=') {
        Some(whole) => name == whole,
        None => name.contains(filter.as_str()),
    };
    filters.is_empty() || filters.iter().any(asks)
}

/// Runs those that are asked for and reports each.
pub(super) fn run(filters: &[String], first_failure: bool, results: &Path) -> anyhow::Result<ExitCode> {
    let mut report = Report::open(results)?;
    let mut log = KernelLog::open()?;
    let mut failed = false;
    let start = Instant::now();
    if let Some(complaints) = log.complaints()? {
        failed = true;
        report.scenario("kernel::boot", &Outcome::Failed(complaints), start.elapsed())?;
    }
    for scenario in all().into_iter().filter(|scenario| wanted(filters, scenario.name)) {
        let start = Instant::now();
        let limit = state::limit();
        let result = std::panic::catch_unwind(scenario.run);
        // One limit holds for all namespaces: a small one would refuse flows of the scenarios behind this one. A module
        // that was unloaded comes back with its own.
        if let (Some(before), Some(now)) = (limit, state::limit())
            && before != now
        {
            state::set("nf_conntrack_max", before)?;
        }
        let outcome = outcome(result, log.complaints()?);
        failed |= matches!(outcome, Outcome::Failed(_));
        report.scenario(scenario.name, &outcome, start.elapsed())?;
        if failed && first_failure {
            break;
        }
    }
    report.end(i32::from(failed)).context("the last result")?;
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What a run of a scenario means.
fn outcome(result: std::thread::Result<anyhow::Result<()>>, complaints: Option<String>) -> Outcome {
    let said = match result {
        Ok(Ok(())) => Outcome::Ok,
        Ok(Err(error)) if error.is::<Skip>() => Outcome::Skipped(format!("{error:#}")),
        Ok(Err(error)) => Outcome::Failed(format!("{error:#}")),
        Err(_) => Outcome::Failed("it panicked; the console has the message".to_owned()),
    };
    match (said, complaints) {
        (said, None) => said,
        (Outcome::Failed(detail), Some(complaints)) => Outcome::Failed(format!("{complaints}\n{detail}")),
        (_, Some(complaints)) => Outcome::Failed(complaints),
    }
}

/// The namespace that scenarios use unless they need several.
fn init() -> Space {
    Space::init()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_of_the_kernel_always_counts() {
        let complaint = || Some("WARNING: x".to_owned());
        let failure = || Ok(Err(anyhow::anyhow!("lost 272")));
        assert!(matches!(outcome(failure(), None), Outcome::Failed(_)));
        assert!(matches!(outcome(Ok(Ok(())), complaint()), Outcome::Failed(_)));
        assert!(matches!(outcome(failure(), complaint()), Outcome::Failed(_)));
        assert!(matches!(outcome(Ok(Err(Skip("no".to_owned()).into())), None), Outcome::Skipped(_)));
    }
}
