//! `replay A --against B`: what changed, in plain lines.

use std::fmt::Write as _;

use jiff::tz::TimeZone;

use super::plain::{BOLD, RED, clean, date_and_time, paint, rate};
use crate::doctor::text::thousands;
use crate::model::compare::{Change, Comparison, Seen};
use crate::model::incident::Incident;
use crate::model::{family_name, protocol_name};

/// Changes that are shown.
const MOST: usize = 60;
/// Tables that are shown.
const MOST_TABLES: usize = 20;

/// One of the two times.
#[derive(Debug)]
pub struct Time<'a> {
    /// The recording.
    pub file: &'a str,
    /// The machine.
    pub host: String,
    /// Its kernel.
    pub kernel: String,
    /// What happened.
    pub incident: &'a Incident,
}

/// All of it. Names are those of strangers.
pub fn plain(
    before: &Time<'_>,
    after: &Time<'_>,
    comparison: &Comparison,
    zone: &TimeZone,
    color: bool,
) -> String {
    let mut out = String::new();
    for (title, time) in [("A", before), ("B", after)] {
        head(&mut out, title, time, zone);
    }
    let line = |out: &mut String, cells: [&str; 5]| {
        let [what, event, before, after, change] = cells;
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{what:<24} {event:<22} {before:>9} {after:>9}  {change}");
    };
    if comparison.changes.is_empty() {
        out += "\nNo rate changed.\n";
    } else {
        let mut header = String::new();
        line(&mut header, ["flow", "events per second", "A", "B", "change"]);
        let _ = writeln!(out, "\n{}", paint(color, BOLD, header.trim_end()));
    }
    for change in comparison.changes.iter().take(MOST) {
        let mut text = String::new();
        let flow = format!(
            "{} {} {}",
            clean(&change.netns),
            family_name(change.flow.family),
            protocol_name(change.flow)
        );
        let (before, after) = (seen(change.before), seen(change.after));
        line(&mut text, [&flow, change.event.field(), &before, &after, &how(change)]);
        let style = if change.event.is_loss() { RED } else { "" };
        let _ = writeln!(out, "{}", paint(color, style, text.trim_end()));
    }
    if comparison.changes.len() > MOST {
        let _ = writeln!(out, "{} more rates changed less.", comparison.changes.len() - MOST);
    }
    if comparison.same > 0 {
        let what = if comparison.same == 1 {
            "1 rate is the same".into()
        } else {
            format!("{} rates are the same", comparison.same)
        };
        let _ = writeln!(out, "{what}: less than a tenth apart, or no further than chance explains.");
    }
    tables(&mut out, comparison, color);
    out
}

fn head(out: &mut String, title: &str, time: &Time<'_>, zone: &TimeZone) {
    let Time { file, host, kernel, incident } = time;
    let kind = incident.info.as_ref().map_or("nothing", |info| info.kind.name());
    let _ = writeln!(out, "{title}: {} of {}, Linux {}, by {kind}", clean(file), clean(host), clean(kernel));
    if let (Some(first), Some(last)) = (incident.parts.first(), incident.parts.last()) {
        let (from, to) = (date_and_time(first.from_ns, zone), date_and_time(last.to_ns, zone));
        let watched = incident.watched().as_secs_f64();
        let _ = writeln!(out, "   {from} to {to}, {watched:.1} s watched");
    }
    if incident.missed > 0 {
        let _ = writeln!(out, "   the source missed {} events", thousands(incident.missed));
    }
}

fn tables(out: &mut String, comparison: &Comparison, color: bool) {
    let mut header = String::new();
    let _ = write!(header, "{:<24} {:>22} {:>22}", "table at its fullest", "A", "B");
    let _ = writeln!(out, "\n{}", paint(color, BOLD, &header));
    for table in comparison.tables.iter().take(MOST_TABLES) {
        let fill = |fill: Option<(u64, Option<u64>)>| match fill {
            Some((count, Some(max))) => format!("{} of {}", thousands(count), thousands(max)),
            Some((count, None)) => thousands(count),
            None => "not there".into(),
        };
        let (before, after) = (fill(table.before), fill(table.after));
        let _ = writeln!(out, "{:<24} {before:>22} {after:>22}", clean(&table.netns));
    }
    if comparison.tables.len() > MOST_TABLES {
        let _ = writeln!(out, "and {} more", comparison.tables.len() - MOST_TABLES);
    }
}

fn seen(seen: Seen) -> String {
    match seen {
        Seen::Rate(0.0) => ".".into(),
        Seen::Rate(value) => rate(value),
        Seen::Unknown => "unknown".into(),
    }
}

/// How many times as much.
fn how(change: &Change) -> String {
    match (change.before, change.after) {
        (Seen::Unknown, _) | (_, Seen::Unknown) => String::new(),
        (Seen::Rate(0.0), Seen::Rate(_)) => "new".into(),
        (Seen::Rate(_), Seen::Rate(0.0)) => "gone".into(),
        (Seen::Rate(before), Seen::Rate(after)) => match after / before {
            times @ ..0.995 => format!("x {times:.2}"),
            times @ ..1000.0 => format!("x {times:.1}"),
            times => format!("x {times:.0}"),
        },
    }
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
