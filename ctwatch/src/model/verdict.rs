//! Is connection tracking hurting this machine right now? Worst news first.

use std::time::Duration;

use ctwatch_ebpf::{Event, Group};

use super::diff::Report;
use super::forecast::Occupancy;
use super::history::{History, WINDOWS};
use super::sample::Table;

/// Over how much time news stays news: long enough to be read, short enough to be now.
pub const RECENT: Duration = Duration::from_secs(10);
/// A table this full is about to hurt: above 95 % the collector evicts (`gc_worker`, since 4.20).
pub const NEARLY_FULL_PCT: f64 = 95.0;
/// A forecast nearer than this is news.
const SOON: Duration = Duration::from_mins(10);

/// What befalls packets of connections that live; all other reasons are a stranger's packets too, which reach every machine.
pub const INVALID_OF_CONNECTIONS: [Event; 2] = [Event::InvalidOutOfWindow, Event::InvalidBadChecksum];
/// So many of these a second are no accident.
pub const INVALID_HURTS: f64 = 1.0;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing to do.
    Calm,
    /// It will hurt soon, or hurts a little.
    Warning,
    /// New connections are refused or live ones thrown out.
    Critical,
}

/// How bad it is that a sum is not 0, in every view.
pub const fn weight(sum: Group) -> Level {
    match sum {
        Group::Insert | Group::InsertNetlink | Group::ClashResolve | Group::Delete => Level::Calm,
        Group::InsertFailed | Group::Invalid => Level::Warning,
        Group::EarlyDrop | Group::Drop => Level::Critical,
    }
}

/// One piece of bad news.
#[derive(Clone, Debug, PartialEq)]
pub enum Trouble {
    /// New flows refused, per second.
    Drop(f64),
    /// Live entries evicted by newcomers, per second.
    EarlyDrop(f64),
    /// Live entries evicted by the collector, per second.
    Pressure(f64),
    /// Packets lost at confirmation, per second.
    InsertFailed(f64),
    /// Packets of live connections marked INVALID, per second.
    Invalid(f64),
    /// The table of this namespace is at its limit.
    Full(String),
    /// The table of this namespace will be full so soon.
    Filling(String, Duration),
    /// The table of this namespace is this full, in per cent.
    NearlyFull(String, f64),
}

impl Trouble {
    /// How bad this is.
    pub const fn level(&self) -> Level {
        match self {
            Self::Drop(_) | Self::EarlyDrop(_) | Self::Full(_) => Level::Critical,
            Self::Pressure(_)
            | Self::InsertFailed(_)
            | Self::Invalid(_)
            | Self::Filling(..)
            | Self::NearlyFull(..) => Level::Warning,
        }
    }
}

/// All bad news of the last seconds, worst first; empty where all is well.
pub fn troubles(report: &Report, history: &History) -> Vec<Trouble> {
    // What happens now is told as it is now; what has just stopped, as the mean of the time it is told for.
    let rate = |events: &[Event]| {
        [WINDOWS[0], RECENT].into_iter().map(|window| history.rate(events, window)).find(|rate| *rate > 0.0)
    };
    let mut found: Vec<Trouble> = [
        rate(Group::Drop.parts()).map(Trouble::Drop),
        rate(Group::EarlyDrop.parts()).map(Trouble::EarlyDrop),
        rate(&[Event::DeletePressure]).map(Trouble::Pressure),
        rate(Group::InsertFailed.parts()).map(Trouble::InsertFailed),
        // One alone is no news.
        Some(history.rate(&INVALID_OF_CONNECTIONS, RECENT))
            .filter(|rate| *rate >= INVALID_HURTS)
            .map(Trouble::Invalid),
    ]
    .into_iter()
    .flatten()
    .collect();
    found.extend(report.tables.iter().filter_map(|table| of_table(table, history)));
    found.sort_by_key(|trouble| std::cmp::Reverse(trouble.level()));
    found
}

fn of_table(table: &Table, history: &History) -> Option<Trouble> {
    let pct = filled_pct(table)?;
    let soon = history.table(table.netns).and_then(Occupancy::full_in).filter(|eta| *eta <= SOON);
    if pct >= 100.0 {
        Some(Trouble::Full(table.name.clone()))
    } else if let Some(eta) = soon {
        Some(Trouble::Filling(table.name.clone(), eta))
    } else {
        (pct >= NEARLY_FULL_PCT).then(|| Trouble::NearlyFull(table.name.clone(), pct))
    }
}

/// How full a table is; `None` where it cannot be read or has no limit.
pub fn filled_pct(table: &Table) -> Option<f64> {
    match (table.count, table.max) {
        (Some(count), Some(max)) if max > 0 => Some(count as f64 * 100.0 / max as f64),
        _ => None,
    }
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
