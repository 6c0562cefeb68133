//! What happened lately: rates over the last 1, 10 and 60 seconds and the run of each interval, in bounded memory.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ctwatch_ebpf::{Counters, Event, FlowType, Group};

use super::diff::{Report, SHORTEST_FOR_PEAK, per_second};
use super::forecast::Occupancy;

/// The windows that rates are given over, where the interval is not longer.
pub const WINDOWS: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(10), Duration::from_mins(1)];
/// How many intervals a run holds: as many columns as a wide screen gives it.
pub const RUN: usize = 160;
/// Readings closer than this are not all kept, so that a short interval does not fill the memory.
const SPACING: Duration = Duration::from_millis(500);
/// A timer is seldom exact: 0.97 s is what an interval of one second may look like.
const JITTER: Duration = Duration::from_millis(90);
/// The longest window at the closest spacing, the one before it, and one to spare.
const MARKS: usize = 123;
/// The groups whose run is kept, in the order in which people read them.
pub const SUMS: [Group; 6] =
    [Group::Insert, Group::Delete, Group::EarlyDrop, Group::Drop, Group::InsertFailed, Group::Invalid];

/// Totals at one moment of the time watched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Mark {
    at: Duration,
    total: Counters,
}

/// The recent past of one flow type.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FlowHistory {
    now: Mark,
    /// Oldest first; never empty once something was taken in.
    marks: VecDeque<Mark>,
    runs: [VecDeque<f64>; SUMS.len()],
    peaks: [f64; SUMS.len()],
    /// Totals when it was last begun anew.
    base: Counters,
}

impl FlowHistory {
    fn advance(&mut self, now: Duration, elapsed: Duration, counts: &Counters, total: &Counters) {
        if self.marks.is_empty() {
            let before = Mark { at: now.saturating_sub(elapsed), total: difference(total, counts) };
            self.marks.push_back(before);
        } else if self.marks.back().is_some_and(|last| self.now.at.saturating_sub(last.at) >= SPACING) {
            self.marks.push_back(self.now);
        }
        self.now = Mark { at: now, total: *total };
        let longest = WINDOWS[WINDOWS.len() - 1];
        while self.marks.get(1).is_some_and(|second| now.saturating_sub(second.at) >= longest) {
            self.marks.pop_front();
        }
        while self.marks.len() > MARKS {
            self.marks.pop_front();
        }
        for ((run, peak), sum) in self.runs.iter_mut().zip(&mut self.peaks).zip(SUMS) {
            if run.len() == RUN {
                run.pop_front();
            }
            let rate = per_second(sum.of(counts), elapsed);
            run.push_back(rate);
            if elapsed >= SHORTEST_FOR_PEAK {
                *peak = peak.max(rate);
            }
        }
    }

    fn reset(&mut self) {
        *self = Self {
            now: self.now,
            marks: VecDeque::from([self.now]),
            base: self.now.total,
            ..Self::default()
        };
    }

    /// Counts of at least `window` before the last report, or of all the time there is, and how long that was.
    pub fn since(&self, window: Duration) -> (Counters, Duration) {
        let enough = window.saturating_sub(JITTER);
        let from = self
            .marks
            .iter()
            .rev()
            .find(|mark| self.now.at.saturating_sub(mark.at) >= enough)
            .or_else(|| self.marks.front());
        let Some(from) = from else { return (Counters::default(), Duration::ZERO) };
        (difference(&self.now.total, &from.total), self.now.at.saturating_sub(from.at))
    }

    /// The rate of some events together over a window.
    pub fn rate(&self, events: &[Event], window: Duration) -> f64 {
        let (counts, elapsed) = self.since(window);
        per_second(events.iter().fold(0, |sum, event| sum.saturating_add(counts.get(*event))), elapsed)
    }

    /// The rate of each interval, oldest first.
    pub fn run(&self, sum: Group) -> &VecDeque<f64> {
        &self.runs[place(sum)]
    }

    /// The highest rate of any interval since the last reset.
    pub fn peak(&self, sum: Group) -> f64 {
        self.peaks[place(sum)]
    }

    /// Counts since the last reset.
    pub fn total(&self) -> Counters {
        difference(&self.now.total, &self.base)
    }
}

/// The recent past of everything that reports tell.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    flows: BTreeMap<FlowType, FlowHistory>,
    tables: BTreeMap<u32, Occupancy>,
}

impl History {
    /// Takes in a report.
    pub fn advance(&mut self, report: &Report) {
        for flow in &report.flows {
            self.flows.entry(flow.key).or_default().advance(
                report.watched,
                report.elapsed,
                &flow.counts,
                &flow.total,
            );
        }
        self.flows.retain(|key, _| report.flows.iter().any(|flow| flow.key == *key));
        for table in &report.tables {
            self.tables.entry(table.netns).or_default().advance(report.watched, report.elapsed, table);
        }
        self.tables.retain(|netns, _| report.tables.iter().any(|table| table.netns == *netns));
    }

    /// Starts the runs anew: intervals of another length cannot stand side by side with those before.
    pub fn interval_changed(&mut self) {
        for history in self.flows.values_mut() {
            for run in &mut history.runs {
                run.clear();
            }
        }
    }

    /// Begins everything anew: totals, peaks, rates and runs.
    pub fn reset(&mut self) {
        self.flows.values_mut().for_each(FlowHistory::reset);
    }

    /// Counts since the last reset, all flow types together.
    pub fn total(&self) -> Counters {
        let mut sum = Counters::default();
        for flow in self.flows.values() {
            sum.add(&flow.total());
        }
        sum
    }

    /// Forgets how full the tables were: nothing was seen for a while.
    pub fn gap(&mut self) {
        self.tables.clear();
    }

    /// The past of one flow type.
    pub fn flow(&self, key: FlowType) -> Option<&FlowHistory> {
        self.flows.get(&key)
    }

    /// The past of one namespace's table.
    pub fn table(&self, netns: u32) -> Option<&Occupancy> {
        self.tables.get(&netns)
    }

    /// The rate of some events over a window, all flow types together.
    pub fn rate(&self, events: &[Event], window: Duration) -> f64 {
        self.flows.values().map(|flow| flow.rate(events, window)).sum()
    }
}

fn place(sum: Group) -> usize {
    SUMS.iter().position(|kept| *kept == sum).unwrap_or_default()
}

fn difference(more: &Counters, less: &Counters) -> Counters {
    Counters(std::array::from_fn(|event| more.0[event].saturating_sub(less.0[event])))
}

/// The windows that can be told apart at this interval: none is shorter than the interval itself.
pub fn windows(interval: Duration) -> [Duration; 3] {
    WINDOWS.map(|window| window.max(interval))
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
