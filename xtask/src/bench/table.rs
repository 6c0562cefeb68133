//! Figures as text.

use std::fmt::Write as _;

use super::Measured;
use super::figure::{Cost, Figure};

/// The observer that all others are compared with.
const NOTHING: &str = "nothing";

/// Instructions per flow that each observer adds: scenario, observer, base, added.
pub(super) fn added(measured: &Measured) -> Vec<(String, String, f64, f64)> {
    let costs: Vec<&Cost> = measured
        .figures
        .iter()
        .filter_map(|figure| if let Figure::Cost(cost) = figure { Some(cost) } else { None })
        .collect();
    let nobody =
        |scenario: &str| costs.iter().find(|cost| cost.observer == NOTHING && cost.scenario == scenario);
    costs
        .iter()
        .filter_map(|cost| {
            let nobody = nobody(&cost.scenario)?;
            let added = cost.added_to(nobody);
            Some((cost.scenario.clone(), cost.observer.clone(), nobody.instructions(), added))
        })
        .collect()
}

/// The tables of one kernel.
pub(super) fn costs(measured: &Measured) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = render(measured, &mut text);
    text
}

/// Whole commands, beside the first of them.
fn listings(measured: &Measured, text: &mut String) -> std::fmt::Result {
    let mut first = None;
    for figure in &measured.figures {
        let Figure::Listing(listing) = figure else { continue };
        let instructions = listing.instructions() as f64;
        if first.is_none() {
            writeln!(text, "\n{}: a table of {} entries, whole commands", measured.release, listing.entries)?;
        }
        let of_first = instructions / *first.get_or_insert(instructions);
        write!(text, "{:8.0} M instructions, {of_first:5.2} x", instructions / 1e6)?;
        match listing.resident {
            Some(resident) => write!(text, ", {:4.1} MB", resident as f64 / 1024.0)?,
            None => write!(text, "         ")?,
        }
        writeln!(text, "  {}", listing.command)?;
    }
    Ok(())
}

fn render(measured: &Measured, text: &mut String) -> std::fmt::Result {
    let added = added(measured);
    let mut scenarios: Vec<&str> = Vec::new();
    let mut observers: Vec<&str> = Vec::new();
    for (scenario, observer, ..) in &added {
        if !scenarios.contains(&scenario.as_str()) {
            scenarios.push(scenario);
        }
        if !observers.contains(&observer.as_str()) {
            observers.push(observer);
        }
    }
    listings(measured, text)?;
    if !scenarios.is_empty() {
        writeln!(text, "\n{}: guest instructions per new flow; + is what watching adds", measured.release)?;
        write!(text, "{:16}", "observer")?;
        for scenario in &scenarios {
            write!(text, "{scenario:>18}")?;
        }
        writeln!(text)?;
    }
    for observer in observers {
        write!(text, "{observer:16}")?;
        for scenario in &scenarios {
            let cell = added.iter().find(|(s, o, ..)| s == scenario && o == observer).map_or_else(
                || "-".to_owned(),
                |(_, _, base, more)| {
                    if observer == NOTHING {
                        format!("{base:.0}")
                    } else {
                        format!("{:.0} +{more:.0}", base + more)
                    }
                },
            );
            write!(text, "{cell:>18}")?;
        }
        writeln!(text)?;
    }
    for figure in &measured.figures {
        match figure {
            Figure::Hooks(hooks) => {
                writeln!(
                    text,
                    "{} {} (runs per flow x instructions per run, measuring included):",
                    hooks.observer, hooks.scenario
                )?;
                for program in &hooks.programs {
                    writeln!(
                        text,
                        "  {:16} {:6.3} x {:6.0} = {:6.0}",
                        program.name,
                        program.runs as f64 / hooks.flows as f64,
                        program.instructions as f64 / program.runs as f64,
                        program.instructions as f64 / hooks.flows as f64
                    )?;
                }
            }
            Figure::Process(process) => writeln!(
                text,
                "{}: {:.1} M instructions until attached and {:.1} ms of waiting, {:.3} M a report, {:.1} MB resident",
                process.observer,
                process.attach as f64 / 1e6,
                process.elapsed.saturating_sub(process.attach) as f64 / 1e6,
                process.report as f64 / 1e6,
                process.resident as f64 / 1024.0
            )?,
            Figure::Told(told) => writeln!(
                text,
                "{}: told of {} of {} events ({:.1} %)",
                told.observer,
                told.accounted,
                told.happened,
                100.0 * told.accounted as f64 / told.happened as f64
            )?,
            Figure::Absent { observer, why } => writeln!(text, "{observer}: not measured: {why}")?,
            Figure::Cost(_)
            | Figure::Million(_)
            | Figure::Burst(_)
            | Figure::Kernel(_)
            | Figure::Listing(_) => {}
        }
    }
    Ok(())
}
